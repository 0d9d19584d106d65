//! The life of a call, as the table of nine stages (docs/life-of-a-call.md).
//!
//! | # | stage | here |
//! |---|---|---|
//! | 1 | capture | [`begin`] is given what was captured |
//! | 2 | tls | [`begin`] looks at the first bytes and opens, leaves shut, or refuses |
//! | 3 | protocol | [`exchange`] reads what is asked |
//! | 4 | identity | the caller belongs to the connection and is known at accept |
//! | 5 | policy | [`judge`] |
//! | 6 | credential | [`arm`], which judges again after it has waited |
//! | 7 | rewrite | [`crate::rewrite`] |
//! | 8 | upstream | [`act`] |
//! | 9 | audit | [`act`]: the intent before the first byte goes out, the outcome at the end; [`refused`] where there is none |
//!
//! Decide, then act, then record; the intent is recorded before the act.

mod act;
mod arm;
mod begin;
mod judge;
mod refused;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::request::Parts;
use http::{Method, Response};
use http_body::Body as _;
use model::destination::HttpVersion;
use model::{Code, DecisionId, Destination, Failure, RequestFacts};
use protocols::answer::Dialect;
use protocols::http1::write;
use tokio::time::Instant;
use tracing::{Instrument as _, debug_span};

use act::{Act, intend, note_standing};
use arm::{Credential, arm, at_hand};
pub use begin::connection;
use judge::{Judged, judge, searchable, unless_bypassed};
pub use refused::refuse_unread;
use refused::{Asker, Refused, refuse};

use crate::bypass;
use crate::caller::CallerState;
use crate::capture::accept::OriginalDestination;
use crate::credential::Grant;
use crate::exchange::Open;
use crate::forward;
use crate::limits::Limits;
use crate::memory::Reserved;
use crate::moment::Moment;
use crate::protocol::activity::{Activity, Busy};
use crate::protocol::facts::{self, Channel};
use crate::protocol::interim::Interim;
use crate::protocol::{Body, Message, trailers};
use crate::redact;
use crate::rewrite::{self, Removed};
use crate::standing::Known;
use crate::upstream::once::Beside;
use crate::upstream::pool::Origin;
use crate::upstream::send::Sender;
use crate::way::{For, Way, Ways};
use crate::worker::Worker;

/// One connection of the application, for as long as it lives.
pub struct Connection {
    /// On which worker.
    pub worker: Rc<Worker>,
    /// Who calls; `None` if nobody could be attested.
    pub caller: Option<Arc<CallerState>>,
    /// What is known of it.
    pub channel: Channel,
    /// The version of HTTP that the application speaks.
    pub version: HttpVersion,
    /// What goes on on it.
    pub activity: Activity,
    /// Where its requests go that no policy covers, if they are HTTP/2 in the clear.
    pub beside: Beside,
    /// The application's own credentials that were recorded where its requests pass.
    pub known: Known,
    /// Bytes of answers that had come as a whole and are not taken by the application yet.
    pub untaken: Cell<usize>,
    /// What its requests have in common.
    ways: Ways,
}

/// Bytes of whole answers that one connection may leave untaken without being watched for it: less than what is reserved
/// for a request.
const UNTAKEN_MAX: usize = 64 << 10;

impl Connection {
    /// One that has carried nothing yet.
    pub fn new(
        worker: Rc<Worker>,
        caller: Option<Arc<CallerState>>,
        channel: Channel,
        version: HttpVersion,
    ) -> Self {
        let (activity, beside, ways) = (Activity::default(), Beside::default(), Ways::default());
        let (known, untaken) = (Known::default(), Cell::new(0));
        Self { worker, caller, channel, version, activity, beside, known, untaken, ways }
    }

    /// Whether a whole answer may be handed over without being watched.
    fn may_leave_untaken(&self) -> bool {
        self.untaken.get() < UNTAKEN_MAX
    }

    /// What is made once for all requests that are judged as this one was.
    ///
    /// # Errors
    /// If the destination is to be shown a certificate that is not there.
    fn way(&self, facts: &RequestFacts, judged: &Judged) -> Result<Rc<Way>, Failure> {
        let svid = match self.caller.as_deref() {
            Some(state) => state.shown_to(&judged.destination)?,
            None => None,
        };
        let asked = For {
            snapshot: &judged.snapshot,
            caller: &judged.caller,
            destination: &judged.destination,
            facts,
            channel: &self.channel,
            svid: svid.as_ref(),
        };
        Ok(self.ways.find(&asked, &self.worker.pool))
    }

    /// Ready when nothing new may come on it: the proxy drains, or the workload is bypassed.
    pub async fn told_to_end(&self) {
        let bypassed = async {
            match &self.channel.original {
                Some(original) => {
                    bypass::begun(self.caller.clone(), self.channel.name.as_ref(), original).await;
                }
                // Each request to the explicit proxy says where it goes, and passes or not by itself.
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.worker.shared.drain.clone().started() => {}
            () = bypassed => {}
        }
    }
}

fn sender<'a>(
    worker: &'a Worker,
    origin: &'a Rc<Origin>,
    destination: &'a Arc<Destination>,
    original: OriginalDestination,
    interim: &'a Interim,
    open: &'a Open,
) -> Sender<'a> {
    Sender {
        origin,
        destination,
        original,
        dialler: &worker.dialler,
        roots: &worker.shared.roots,
        handshake_patience: worker.shared.limits.patience.handshake,
        answer_patience: worker.shared.limits.answer,
        memory: &worker.shared.memory,
        trailers_dropped: &worker.shared.metrics.trailers_dropped,
        interim,
        open,
    }
}

/// Stages 3 to 9: one request, and its answer whatever happens.
pub async fn exchange(
    connection: &Rc<Connection>,
    message: Box<Message>,
    interim: Interim,
) -> Response<Body> {
    let started = Instant::now();
    let id = DecisionId(rand::random());
    let asker = Asker { dialect: Dialect::of(&message.parts), head: message.parts.method == Method::HEAD };
    let begun = Asked { id, started, interim, busy: connection.activity.begin() };
    match carry(connection, begun, message).await {
        Ok(response) => response,
        Err(refused) => {
            connection.worker.shared.metrics.answered_after(started.elapsed());
            refuse(connection, id, asker, *refused)
        }
    }
}

/// A request of the application, from its first moment.
pub struct Asked {
    /// Names the call.
    pub id: DecisionId,
    started: Instant,
    /// Where interim answers go.
    pub interim: Interim,
    busy: Busy,
}

impl Asked {
    /// The head of its answer is here: counts how long that took, and says when it was.
    pub fn answered(&self, worker: &Worker) -> Instant {
        let now = Instant::now();
        worker.shared.metrics.answered_after(now - self.started);
        now
    }
}

async fn carry(
    connection: &Rc<Connection>,
    asked: Asked,
    mut message: Box<Message>,
) -> Result<Response<Body>, Box<Refused>> {
    let id = asked.id;
    let room =
        within_limits(connection, &message).map_err(|f| Refused::before_judgement(f, &message.parts))?;
    let uncovered = match connection.channel.original {
        Some(_) => forward::passing(connection, &message.parts),
        None => forward::admit(connection, &mut message.parts)
            .map_err(|f| Refused::before_judgement(f, &message.parts))?,
    };
    if let Some(uncovered) = uncovered {
        let refusing = message.parts.clone();
        // Boxed: rare, and its state would make every request's future large.
        let passed = Box::pin(uncovered.pass(connection, asked, room, message)).await;
        return passed.map_err(|f| Refused::before_judgement(f, &refusing));
    }
    let parts = &mut message.parts;
    // 3 protocol
    let facts = debug_span!("protocol")
        .in_scope(|| facts::facts(parts, &connection.channel))
        .map_err(|f| Refused::before_judgement(f, parts))?;
    let facts = Rc::new(facts);
    // 4 identity, 5 policy
    let now = Moment::now();
    unless_bypassed(connection, &facts, now.wall())?;
    let mut judged = debug_span!("policy").in_scope(|| judge(connection, &facts, now.wall()))?;
    searchable(&message, &judged).map_err(|f| Refused::of(f, &facts).judged(&judged))?;
    // 6 credential
    let way = connection.way(&facts, &judged).map_err(|f| Refused::of(f, &facts).judged(&judged))?;
    let at_hand =
        at_hand(connection, &judged, &way, now).map_err(|f| Refused::of(f, &facts).judged(&judged))?;
    let (grant, way, now) = match at_hand {
        Credential::None => (None, way, now),
        Credential::Held(grant) => (Some(grant), way, now),
        // Boxed: to wait for one is rare, and its state would make every request's future large.
        Credential::Missing(_) => {
            let arming = Box::pin(arm(connection, &facts, id, &mut judged));
            let (grant, way) = arming.instrument(debug_span!("credential")).await?;
            (grant, way, Moment::now())
        }
    };
    let may_repeat = message.body.is_end_stream();
    // 7 rewrite
    let standing = debug_span!("rewrite")
        .in_scope(|| rewritten(&way, &judged.destination, grant.as_deref(), &mut message.parts));
    let owned = (&way.edit, grant.as_ref().map(|grant| &grant.header_name));
    let dropped = &connection.worker.shared.metrics.trailers_dropped;
    message.body = trailers::clean(message.take_body(), Some(owned), dropped);
    note_standing(connection, id, &judged, &standing);
    // 9 audit: the intent
    let open_call = debug_span!("audit")
        .in_scope(|| intend(connection, id, now.wall(), &facts, &judged, &way, grant.as_deref()))?;
    // 8 upstream
    let connection = connection.clone();
    let act = Box::new(Act { connection, asked, facts, judged, grant, open_call, way, _room: room });
    act.send(message, may_repeat).instrument(debug_span!("upstream")).await
}

/// Stage 7, on the request's head; returns what the application had sent in headers that we own.
fn rewritten(way: &Way, destination: &Destination, grant: Option<&Grant>, parts: &mut Parts) -> Vec<Removed> {
    let standing = rewrite::apply(&way.edit, grant, parts);
    redact::ask(destination, &mut parts.headers);
    standing
}

/// What one application may have open at a time, and how much it may send at once.
fn within_limits(connection: &Connection, message: &Message) -> Result<Reserved, Failure> {
    let worker = &connection.worker;
    let limits = &worker.shared.limits;
    if worker.is_over_limit() {
        let detail = format!("the proxy has more than {} connections", limits.connections);
        return Err(Failure::new(Code::OverLimit, detail));
    }
    if worker.register.len() >= limits.requests {
        let detail = format!("the application has {} requests open", limits.requests);
        return Err(Failure::new(Code::TooManyRequests, detail));
    }
    if connection.version == HttpVersion::Http2 {
        head_within_limits(limits, message.headers())?;
    }
    // What is announced is known before anything is sent; a body of unknown length is cut at the limit. Of HTTP/2 only the
    // header says it; h2 holds the body to that.
    let said = write::said_length(message.headers()).unwrap_or(0);
    if message.body.size_hint().lower().max(said) > limits.body_bytes {
        let detail = format!("the request's body is longer than {} bytes", limits.body_bytes);
        return Err(Failure::new(Code::BodyTooLarge, detail));
    }
    worker.room()
}

/// Of HTTP/2; a head of HTTP/1 is counted where it is read.
fn head_within_limits(limits: &Limits, headers: &http::HeaderMap) -> Result<(), Failure> {
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if bytes > limits.head_bytes {
        let detail = format!("the request's header is longer than {} bytes", limits.head_bytes);
        return Err(Failure::new(Code::HeaderTooLarge, detail));
    }
    if headers.len() > limits.headers {
        let detail = format!("the request's header has more than {} fields", limits.headers);
        return Err(Failure::new(Code::HeaderTooLarge, detail));
    }
    Ok(())
}
