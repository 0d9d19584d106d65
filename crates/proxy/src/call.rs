//! The life of a call, as the table of nine stages (docs/life-of-a-call.md).
//!
//! | # | stage | here |
//! |---|---|---|
//! | 1 | capture | [`connection`] is given what was captured |
//! | 2 | tls | [`connection`] looks at the first bytes and opens, leaves shut, or refuses |
//! | 3 | protocol | [`exchange`] reads what is asked |
//! | 4 | identity | the caller belongs to the connection and is known at accept |
//! | 5 | policy | [`judge`] |
//! | 6 | credential | [`arm`], which judges again after it has waited |
//! | 7 | rewrite | [`crate::rewrite`] |
//! | 8 | upstream | [`dispatch`] |
//! | 9 | audit | the intent before the first byte goes out, the outcome at the end |
//!
//! Decide, then act, then record; the intent is recorded before the act.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use http::{Method, Response, StatusCode, header};
use http_body::Body as _;
use model::audit::{CallResult, Outcome, Refusal, What};
use model::decision::NearMiss;
use model::destination::HttpVersion;
use model::request::Action;
use model::slice::{Egress, ProviderFace};
use model::{
    Caller, Code, Decision, DecisionId, Destination, Failure, RequestFacts, ResourceRef, UnixMillis, Verdict,
};
use policy::{Question, Snapshot};
use protocols::answer::Dialect;
use tokio::time::Instant;
use tracing::{Instrument as _, debug_span};

use crate::answer;
use crate::audit::{OpenCall, line};
use crate::bypass;
use crate::caller::CallerState;
use crate::capture::accept::{Captured, OriginalDestination};
use crate::credential::{Ask, Grant, Key};
use crate::exchange::{End, Guarded, Open, why_stopped};
use crate::forward;
use crate::limits::Limits;
use crate::memory::Reserved;
use crate::moment::Moment;
use crate::passage;
use crate::policy::{Route, route_http, route_tls, route_unknown};
use crate::protocol::activity::{Activity, Busy};
use crate::protocol::body::BodyError;
use crate::protocol::facts::{self, Channel};
use crate::protocol::grpc_end::GrpcEnd;
use crate::protocol::hangup::Tcp;
use crate::protocol::interim::Interim;
use crate::protocol::rewind::Rewind;
use crate::protocol::{Body, Message, head, http1, http2, trailers};
use crate::redact::{self, Redaction};
use crate::rewrite::{self, Removed};
use crate::splice::reset;
use crate::standing;
use crate::tls::{self, Opening};
use crate::upstream::once::Beside;
use crate::upstream::pool::{Origin, OriginKey};
use crate::upstream::send::Sender;
use crate::way::{For, Way, Ways};
use crate::worker::{Worker, now};

/// How long an application may be silent before the server is given the chance to speak first (SMTP, MySQL, SSH do).
const SILENCE: Duration = Duration::from_millis(50);

/// How long a call waits for the newer policy when proxy and control plane disagree about the version.
const CATCH_UP: Duration = Duration::from_secs(1);

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
    /// What its requests have in common.
    ways: Ways,
}

impl Connection {
    /// One that has carried nothing yet.
    pub fn new(
        worker: Rc<Worker>,
        caller: Option<Arc<CallerState>>,
        channel: Channel,
        version: HttpVersion,
    ) -> Self {
        let (activity, beside, ways) = (Activity::default(), Beside::default(), Ways::default());
        Self { worker, caller, channel, version, activity, beside, ways }
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
}

/// Stages 1 and 2: where was it going, and is it opened?
pub async fn connection(worker: &Rc<Worker>, mut captured: Captured) {
    let caller = debug_span!("identity").in_scope(|| worker.shared.callers.at_accept());
    if let Some(caller) = &caller {
        worker.watch(caller);
    }
    let opening = open(worker, caller.as_ref(), &mut captured).instrument(debug_span!("tls")).await;
    let Some(opening) = opening else {
        return;
    };
    // The application may have taken hours for its first byte: what counts is the policy of now.
    let snapshot = caller.as_ref().and_then(|caller| caller.snapshot());
    let begun = Begun { worker: worker.clone(), caller, captured };
    match snapshot {
        None => begun.without_policy(opening).await,
        Some(snapshot) => begun.routed(&snapshot, opening).await,
    }
}

/// Reads how the connection begins. `None` if it is over: it broke, or a server spoke first and it was carried.
async fn open(
    worker: &Rc<Worker>,
    caller: Option<&Arc<CallerState>>,
    captured: &mut Captured,
) -> Option<Opening> {
    let patience = worker.shared.limits.head;
    let may_wait_for_server =
        caller.is_some_and(|caller| passage::server_may_speak(caller, &captured.original));
    let port = captured.original.port();
    let may_be_covered = || {
        let snapshot = caller.and_then(|caller| caller.snapshot());
        snapshot.is_none_or(|snapshot| passage::may_be_covered(&snapshot, port))
    };
    // Where nothing can be covered the address is dialled whatever the application says, so it need not be waited for.
    let silence = if may_be_covered() { SILENCE } else { Duration::ZERO };
    let Captured { stream, first, .. } = &mut *captured;
    if !first.is_empty() {
        // It came behind a CONNECT.
    } else if !may_wait_for_server {
        tokio::time::timeout(patience, tls::first_bytes(stream, first)).await.ok()?.ok()?;
    } else if let Ok(spoke) = tokio::time::timeout(silence, tls::first_bytes(stream, first)).await {
        spoke.ok()?;
    } else {
        passage::server_first(worker, caller?, captured).await?;
    }
    // Nor has anything to be recognised there: what stops in the middle waits for the server.
    let patience = if may_wait_for_server && !may_be_covered() { SILENCE } else { patience };
    tls::peek(&mut captured.stream, &mut captured.first, patience).await.ok()
}

/// A connection whose first bytes have been read.
struct Begun {
    worker: Rc<Worker>,
    caller: Option<Arc<CallerState>>,
    captured: Captured,
}

impl Begun {
    /// Nothing passes before the first policy is there: HTTP is told so, everything else is closed before a
    /// certificate is shown.
    async fn without_policy(self, opening: Opening) {
        match opening {
            Opening::Http1 | Opening::Http2 => self.requests_in_clear(&opening).await,
            _ => {
                let failure = Failure::new(Code::NoSnapshot, "no policy has been received yet");
                self.worker.shared.metrics.failed(&failure);
                let original = &self.captured.original;
                passage::refuse(&self.worker, self.caller.as_deref(), None, original, &failure);
                reset(&self.captured.stream);
            }
        }
    }

    async fn routed(mut self, snapshot: &Snapshot, opening: Opening) {
        match opening {
            Opening::Tls(hello) => {
                let versions = tls::offered_versions(&hello);
                let original = &self.captured.original;
                // The explicit proxy was told a name: then TLS need not repeat it, but may not say another.
                let name = hello.sni.clone().or_else(|| original.name().cloned());
                let route = if hello.sni.as_ref().is_some_and(|sni| original.disagrees(sni)) {
                    Route::Refuse(Code::Misdirected)
                } else {
                    route_tls(snapshot, name.as_ref(), original, !versions.is_empty())
                };
                match route {
                    // A refusal is opened too where it can be, so that it can be read.
                    Route::Requests | Route::Refuse(Code::NotCovered | Code::Blocked | Code::Misdirected)
                        if name.is_some() && !versions.is_empty() =>
                    {
                        if let Some(name) = name {
                            self.requests_in_tls(snapshot, name, &versions).await;
                        }
                    }
                    route => self.carried(route, name.map(|n| n.to_string()), "tls").await,
                }
            }
            Opening::Http1 => {
                let Captured { stream, first, original, .. } = &mut self.captured;
                let told = head::host(stream, first, self.worker.shared.limits.head).await;
                // A head that never ends names no host, but a policy may cover what it was going to name.
                let unfinished = told.is_none() && !head::is_complete(first);
                let disagrees = told.as_ref().is_some_and(|(host, port)| {
                    original.is_asked()
                        && (original.disagrees(host) || port.is_some_and(|port| port != original.port()))
                });
                let host = told.map(|(host, _)| host).or_else(|| original.name().cloned());
                match route_http(snapshot, host.as_ref(), original) {
                    _ if disagrees => self.requests_in_clear(&Opening::Http1).await,
                    Route::Pass if unfinished && passage::may_be_covered(snapshot, original.port()) => {
                        self.requests_in_clear(&Opening::Http1).await;
                    }
                    Route::Requests | Route::Refuse(_) => self.requests_in_clear(&Opening::Http1).await,
                    route => self.carried(route, host.map(|h| h.to_string()), "http").await,
                }
            }
            // Its names are in its requests, so it is read unless nothing could cover it, or a tunnel has its name.
            Opening::Http2 => {
                let original = &self.captured.original;
                match route_http(snapshot, original.name(), original) {
                    Route::Pass
                        if original.name().is_some()
                            || !passage::may_be_covered(snapshot, original.port()) =>
                    {
                        let name = original.name().map(ToString::to_string);
                        self.carried(Route::Pass, name, "http").await;
                    }
                    route @ Route::Bypass(_) => {
                        let name = original.name().map(ToString::to_string);
                        self.carried(route, name, "http").await;
                    }
                    _ => self.requests_in_clear(&Opening::Http2).await,
                }
            }
            // Half a ClientHello names nobody, but a policy may cover what it was going to name.
            Opening::Unfinished
                if passage::may_be_covered(snapshot, self.captured.original.port())
                    && bypass::of_connection(snapshot, None, &self.captured.original, now()).is_none() =>
            {
                self.carried(Route::Refuse(Code::BadClientHello), None, "tls").await;
            }
            Opening::Unknown | Opening::Unfinished => {
                let original = &self.captured.original;
                let (route, name) = (route_unknown(snapshot, original), original.name());
                let name = name.map(ToString::to_string);
                self.carried(route, name, "tcp").await;
            }
        }
    }

    /// Carries the connection as such, or closes it.
    async fn carried(self, route: Route, name: Option<String>, protocol: &'static str) {
        let Self { worker, caller, captured: Captured { stream, first, original, dialled } } = self;
        let Some(caller) = caller else { return };
        let passing = passage::Passing { original, stream, dialled, first, name, protocol };
        passage::carry(&worker, &caller, route, passing).await;
    }

    async fn requests_in_clear(self, opening: &Opening) {
        let version = if matches!(opening, Opening::Http2) { HttpVersion::Http2 } else { HttpVersion::Http1 };
        let Captured { stream, first, original, .. } = self.captured;
        let channel = Channel { original: Some(original), name: None, secure: false };
        let connection = Connection::new(self.worker, self.caller, channel, version);
        serve(Rc::new(connection), Rewind::new(first, stream)).await;
    }

    async fn requests_in_tls(self, snapshot: &Snapshot, name: model::HostName, offered: &[HttpVersion]) {
        let version = self.version_to_offer(snapshot, &name, offered).await;
        let Captured { stream, first, original, .. } = self.captured;
        let io = Rewind::new(first, stream);
        // Boxed, so that a connection that lies idle does not hold the room that its beginning took.
        let opened = Box::pin(self.worker.terminator.open(io, &name, version, now())).await;
        let stream = match opened {
            Ok(stream) => Box::new(stream),
            Err(failure) => {
                self.worker.shared.metrics.failed(&failure);
                tracing::warn!(stage = "tls", code = %failure.code, %name, "{failure}");
                return;
            }
        };
        let version = tls::terminate::agreed(&stream);
        let channel = Channel { original: Some(original), name: Some(name), secure: true };
        let connection = Connection::new(self.worker, self.caller, channel, version);
        Box::pin(serve(Rc::new(connection), stream)).await;
    }

    /// Of the versions that the application offers, the one that the destination speaks. Where that is not known the
    /// upstream is dialled first; if it can't be reached the request will be told so.
    async fn version_to_offer(
        &self,
        snapshot: &Snapshot,
        name: &model::HostName,
        offered: &[HttpVersion],
    ) -> Option<HttpVersion> {
        let fallback = offered.last().copied();
        let original = &self.captured.original;
        let (Some(destination), Some(state), false) =
            (snapshot.cover(name, original.port()), self.caller.as_deref(), original.disagrees(name))
        else {
            return fallback;
        };
        // If there is no certificate to show, the request will be told so.
        let (Some(caller), Ok(svid)) = (state.caller(), state.shown_to(destination)) else {
            return fallback;
        };
        let (id, name) = (caller.id.clone(), name.clone());
        let key = OriginKey::new(id, name, true, destination, original, svid.as_deref());
        let origin = self.worker.pool.origin(key, svid);
        if let Some(known) = origin.version_for(offered, &destination.http_versions) {
            return Some(known);
        }
        let (interim, open) = (Interim::default(), Open::default());
        let sender = sender(&self.worker, &origin, destination, original.clone(), &interim, &open);
        match Box::pin(sender.learn()).await {
            Ok(version) if offered.contains(&version) => Some(version),
            Ok(_) => fallback,
            Err(failure) => {
                tracing::debug!(stage = "upstream", code = %failure.code, "{failure}");
                fallback
            }
        }
    }
}

impl Connection {
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

async fn serve(
    connection: Rc<Connection>,
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Tcp + Unpin + 'static,
) {
    match connection.version {
        HttpVersion::Http1 => http1::serve(connection, io).await,
        HttpVersion::Http2 => http2::serve(connection, io).await,
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

/// A call that is not made, with what is known of it.
struct Refused {
    failure: Failure,
    facts: Option<Rc<RequestFacts>>,
    method: String,
    destination: Option<ResourceRef>,
    decision: Option<Arc<Decision>>,
    /// Whom the request named, if that alone is known.
    authority: Option<String>,
    /// Whether its intent is recorded already: then the outcome is too, and there is no refusal to record.
    recorded: bool,
}

impl Refused {
    fn before_judgement(failure: Failure, parts: &Parts) -> Box<Self> {
        let method = parts.method.as_str().to_owned();
        // Without user information, which may hold a password.
        let named = parts.uri.authority().map(|a| (a.host(), a.port_u16().unwrap_or(facts::HTTP_PORT)));
        let authority = named.map(|(host, port)| format!("{host}:{port}"));
        Box::new(Self { authority, method, ..Self::unread(failure) })
    }

    fn of(failure: Failure, facts: &Rc<RequestFacts>) -> Box<Self> {
        let (facts, method) = (Some(facts.clone()), facts.method.clone());
        Box::new(Self { facts, method, ..Self::unread(failure) })
    }

    fn unread(failure: Failure) -> Self {
        let method = String::new();
        let (facts, destination, decision, authority) = (None, None, None, None);
        Self { failure, facts, method, destination, decision, authority, recorded: false }
    }

    fn judged(mut self: Box<Self>, judged: &Judged) -> Box<Self> {
        self.destination = Some(judged.destination.name.clone());
        self.decision = Some(judged.decision.clone());
        self
    }
}

/// What policy says of one request, and under which snapshot.
struct Judged {
    snapshot: Arc<Snapshot>,
    caller: Arc<Caller>,
    destination: Arc<Destination>,
    decision: Arc<Decision>,
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

/// A tunnel's bytes can't be searched for a credential: frames may split it, or compress it.
fn searchable(message: &Message, judged: &Judged) -> Result<(), Failure> {
    if judged.destination.redact && message.is_websocket() {
        let detail = format!("{} says `redact`, and a WebSocket can't be searched", judged.destination.name);
        return Err(Failure::new(Code::NotCarried, detail));
    }
    Ok(())
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
    // What is announced is known before anything is sent; a body of unknown length is cut at the limit.
    if message.body.size_hint().lower() > limits.body_bytes {
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

/// While the workload is bypassed nothing is injected, also not on what was opened before: such a connection is being
/// ended, and a request that comes all the same is sent to another one.
fn unless_bypassed(
    connection: &Connection,
    facts: &Rc<RequestFacts>,
    now: UnixMillis,
) -> Result<(), Box<Refused>> {
    let Some(snapshot) = connection.caller.as_ref().and_then(|caller| caller.snapshot()) else {
        return Ok(());
    };
    if snapshot.slice().bypasses.is_empty() {
        return Ok(());
    }
    let asked = OriginalDestination::named(facts.host.clone(), facts.port);
    match bypass::of_connection(&snapshot, None, &asked, now) {
        None => Ok(()),
        Some(bypass) => {
            let detail = format!("the workload is bypassed until {}; open a new connection", bypass.until);
            Err(Refused::of(Failure::new(Code::Misdirected, detail), facts))
        }
    }
}

/// Stage 5: under the snapshot of this moment.
fn judge(connection: &Connection, facts: &Rc<RequestFacts>, now: UnixMillis) -> Result<Judged, Box<Refused>> {
    let state = connection.caller.as_ref().ok_or_else(|| {
        Refused::of(Failure::new(Code::NoCaller, "the proxy has no attested caller"), facts)
    })?;
    let snapshot = state.snapshot().ok_or_else(|| {
        Refused::of(Failure::new(Code::NoSnapshot, "no policy has been received yet"), facts)
    })?;
    let caller = state
        .caller()
        .ok_or_else(|| Refused::of(Failure::new(Code::NoCaller, "the workload is not attested"), facts))?;
    let Some(destination) = snapshot.cover(&facts.host, facts.port).cloned() else {
        return Err(Refused::of(not_covered(&snapshot, &caller, facts), facts));
    };
    if !connection.channel.secure && !destination.insecure {
        let detail = format!("{} is covered by a policy; call it with https", facts.host);
        let mut refused = Refused::of(Failure::new(Code::PlainHttp, detail), facts);
        refused.destination = Some(destination.name.clone());
        return Err(refused);
    }
    let decision =
        snapshot.decide(&Question { caller: &caller, destination: &destination, request: facts, now });
    let judged = Judged { snapshot, caller, destination, decision };
    match &judged.decision.verdict {
        Verdict::Allow { .. } => Ok(judged),
        Verdict::Deny { code, reason } => {
            Err(Refused::of(Failure::new(*code, reason.clone()), facts).judged(&judged))
        }
    }
}

fn not_covered(snapshot: &Snapshot, caller: &Caller, facts: &RequestFacts) -> Failure {
    let host = &facts.host;
    if let Route::Refuse(code @ Code::Blocked) = crate::policy::uncovered(snapshot) {
        return Failure::new(code, format!("{} is blocked", caller.id.path()));
    }
    match snapshot.slice().egress {
        Egress::Enforce => {
            let detail = format!("no policy covers {host}:{} for {}", facts.port, caller.id.path());
            Failure::new(Code::NotCovered, detail)
        }
        // The connection was opened when a policy still covered it, so it can't be carried untouched any more.
        Egress::Observe => {
            let detail = format!("no policy covers {host} any longer; open a new connection");
            Failure::new(Code::Misdirected, detail)
        }
    }
}

/// The credential that a decision names.
enum Credential {
    /// It names none.
    None,
    /// It is there.
    Held(Arc<Grant>),
    /// It has to be asked for, by this key.
    Missing(Rc<Key>),
}

/// Stage 6, as far as nothing has to be waited for.
fn at_hand(connection: &Connection, judged: &Judged, way: &Way, now: Moment) -> Result<Credential, Failure> {
    let Some(state) = connection.caller.as_ref() else { return Ok(Credential::None) };
    let Some(face) = provider(judged)? else { return Ok(Credential::None) };
    let key = way.key(&judged.destination, face);
    let held = state.credentials().cached(&key, judged.snapshot.version(), now);
    Ok(held.map_or(Credential::Missing(key), Credential::Held))
}

/// Stage 6: the credential that the decision names, if it names one, and the way that its request then goes.
///
/// After every wait the request is judged again, under the snapshot that there is by then.
async fn arm(
    connection: &Connection,
    facts: &Rc<RequestFacts>,
    id: DecisionId,
    judged: &mut Judged,
) -> Result<(Option<Arc<Grant>>, Rc<Way>), Box<Refused>> {
    // Twice: once as it is now, once more if policy moved meanwhile.
    for _ in 0..3 {
        let refused = |failure| Refused::of(failure, facts).judged(judged);
        let way = connection.way(facts, judged).map_err(refused)?;
        let key = match at_hand(connection, judged, &way, Moment::now()).map_err(refused)? {
            Credential::None => return Ok((None, way)),
            Credential::Held(grant) => return Ok((Some(grant), way)),
            Credential::Missing(key) => key,
        };
        let Some(state) = connection.caller.as_ref() else { return Ok((None, way)) };
        let version = judged.snapshot.version();
        let mut changed = state.changed();
        let ask = Ask { request: facts, decision: id, version };
        let got = state.credentials().get(&key, &ask).await;
        if got.as_ref().is_err_and(|failure| failure.code == Code::PolicyMoved) {
            let _ = tokio::time::timeout(CATCH_UP, changed.changed()).await;
        }
        unless_bypassed(connection, facts, now())?;
        *judged = judge(connection, facts, now())?;
        match got {
            Ok(grant) if judged.snapshot.version() == version && !state.is_revoked(&grant.id) => {
                let way = connection.way(facts, judged);
                return Ok((Some(grant), way.map_err(|f| Refused::of(f, facts).judged(judged))?));
            }
            Ok(_) => {}
            Err(failure) if failure.code == Code::PolicyMoved => {}
            Err(failure) => return Err(Refused::of(failure, facts).judged(judged)),
        }
    }
    let failure = Failure::new(Code::PolicyMoved, "policy kept changing while a credential was being made");
    Err(Refused::of(failure, facts).judged(judged))
}

/// Who makes the credential that the decision names, if it names one.
fn provider(judged: &Judged) -> Result<Option<&ProviderFace>, Failure> {
    let Verdict::Allow { credential: Some(provider), .. } = &judged.decision.verdict else {
        return Ok(None);
    };
    let face = judged.snapshot.provider(provider).ok_or_else(|| {
        Failure::new(Code::PolicyError, format!("the policy names {provider}, which is not in its slice"))
    })?;
    Ok(Some(face))
}

/// Stage 9, first half: nothing goes out before this has been handed to the kernel.
fn intend(
    connection: &Connection,
    id: DecisionId,
    now: UnixMillis,
    facts: &Rc<RequestFacts>,
    judged: &Judged,
    way: &Way,
    grant: Option<&Grant>,
) -> Result<Option<OpenCall>, Box<Refused>> {
    let intent = line::Intent {
        decision: id,
        caller: &judged.caller.id,
        action: facts.action.as_str(),
        method: &facts.method,
        destination: &judged.destination.name,
        host: &facts.host,
        port: facts.port,
        path: &facts.path,
        policies: &judged.decision.policies,
        version: judged.decision.version,
        provider: grant.map(|grant| &grant.provider),
        grant: grant.map(|grant| &grant.id),
        upstream: &way.shown,
    };
    match connection.worker.shared.audit.intent(now, &intent) {
        Ok(open_call) => Ok(Some(open_call)),
        // Only what carries no credential may go on unrecorded, and it is counted.
        Err(_) if grant.is_none() => {
            connection.worker.shared.metrics.unrecorded();
            Ok(None)
        }
        Err(failure) => Err(Refused::of(failure, facts).judged(judged)),
    }
}

fn note_standing(connection: &Connection, id: DecisionId, judged: &Judged, standing: &[rewrite::Removed]) {
    for removed in standing {
        let Some(state) = &connection.caller else { continue };
        let value = removed.value.as_bytes();
        standing::note(&connection.worker, state, &judged.caller.id, id, &removed.header, value);
    }
}

/// A call that is allowed, recorded, and about to be made.
struct Act {
    connection: Rc<Connection>,
    asked: Asked,
    facts: Rc<RequestFacts>,
    judged: Judged,
    grant: Option<Arc<Grant>>,
    open_call: Option<OpenCall>,
    way: Rc<Way>,
    _room: Reserved,
}

impl Act {
    /// Stage 8, with one more try if the upstream does not take our credential. Only a request without a body may be
    /// sent a second time.
    async fn send(
        mut self: Box<Self>,
        mut message: Box<Message>,
        may_repeat: bool,
    ) -> Result<Response<Body>, Box<Refused>> {
        let limits = &self.connection.worker.shared.limits;
        let is_tunnel = message.is_websocket();
        // What a tunnel carries is not a body.
        let open = Rc::new(if is_tunnel { Open::default() } else { Open::bounded(limits.body_bytes) });
        let may_be_silent = is_tunnel || self.facts.action == Action::Grpc;
        open.be_patient(if may_be_silent { limits.stream } else { limits.body });
        let registration = self.connection.worker.register.enter(
            open.clone(),
            self.judged.decision.valid_until,
            self.judge_again(),
        );
        if self.judged.destination.redact {
            self.asked.interim.mute();
        }
        message.body = Guarded::up(message.take_body(), open.clone());
        let mut response = self.dispatch(&open, message, may_repeat).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && may_repeat
            && let Some(second) = Box::pin(self.second_try(&open)).await
        {
            response = second;
        }
        let response = match Redaction::of(&self.judged.destination, self.grant.as_deref()) {
            None => response,
            Some(redaction) => redaction
                .answer(response)
                .map_err(|failure| self.failed(failure, &open, CallResult::Failed))?,
        };
        Ok(self.finish(open, registration, response))
    }

    async fn dispatch(
        &mut self,
        open: &Rc<Open>,
        message: Box<Message>,
        may_repeat: bool,
    ) -> Result<Response<Body>, Box<Refused>> {
        let worker = self.connection.worker.clone();
        let original = self.way.original.clone();
        let origin = self.way.origin.clone();
        let sender = sender(&worker, &origin, &self.judged.destination, original, &self.asked.interim, open);
        let mut sent = {
            let sending = pin!(sender.send(message, self.connection.version));
            open.unless_cut(sending).await
        };
        if let Ok(Err(failed)) = &mut sent
            && failed.untouched
            && let Some(again) = failed.unsent.take().or_else(|| {
                may_repeat.then(|| self.asked.interim.take_sent().map(|sent| self.again(sent)))?
            })
        {
            let mut sending = Box::pin(sender.send(again, self.connection.version));
            sent = open.unless_cut(sending.as_mut()).await;
        }
        match sent {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(_)) if open.is_broken_up() => {
                let detail = "the request's body is not valid, or broke off before its end";
                Err(self.failed(Failure::new(Code::MalformedRequest, detail), open, CallResult::Failed))
            }
            Ok(Err(failed)) => Err(self.failed(failed.failure, open, CallResult::Failed)),
            Err(code) => {
                let failure = Failure::new(code, why_stopped(code));
                Err(self.failed(failure, open, CallResult::Cut))
            }
        }
    }

    /// The request once more, with the credential of this moment.
    fn again(&self, mut sent: Box<Message>) -> Box<Message> {
        let _ = rewritten(&self.way, &self.judged.destination, self.grant.as_deref(), &mut sent.parts);
        sent
    }

    /// The upstream did not take our credential: drop it, get another, try once; at most once a minute for each.
    async fn second_try(&mut self, open: &Rc<Open>) -> Option<Response<Body>> {
        let state = self.connection.caller.clone()?;
        let refused = self.grant.clone()?;
        let sent = self.asked.interim.take_sent()?;
        if !state.credentials().may_replace(&refused) {
            return None;
        }
        state.credentials().drop_grant(&refused.id);
        let connection = self.connection.clone();
        let (grant, way) = arm(&connection, &self.facts, self.asked.id, &mut self.judged).await.ok()?;
        let grant = grant?;
        self.way = way;
        let second =
            intend(&connection, self.asked.id, now(), &self.facts, &self.judged, &self.way, Some(&grant))
                .ok()?;
        let refused = Some(StatusCode::UNAUTHORIZED.as_u16());
        self.close(Instant::now(), CallResult::Completed, refused, None, (0, 0));
        self.grant = Some(grant);
        self.open_call = second;
        let again = self.again(sent);
        Box::pin(self.dispatch(open, again, false)).await.ok()
    }

    /// Judges this exchange again, for as long as it is open.
    fn judge_again(&self) -> crate::exchange::Judge {
        let connection = self.connection.clone();
        let facts = self.facts.clone();
        let grant = self.grant.clone();
        Box::new(move |now| {
            let judged = judge(&connection, &facts, now).map_err(|refused| refused.failure)?;
            let revoked = grant.as_ref().is_some_and(|grant| {
                connection.caller.as_ref().is_some_and(|caller| caller.is_revoked(&grant.id))
            });
            if revoked {
                return Err(Failure::new(Code::Blocked, "the credential of this call was revoked"));
            }
            Ok(judged.decision.valid_until)
        })
    }

    /// Hands the answer over; the outcome is recorded at the end of its body.
    fn finish(
        mut self: Box<Self>,
        open: Rc<Open>,
        registration: crate::exchange::Registration,
        response: Response<Body>,
    ) -> Response<Body> {
        let now = self.asked.answered(&self.connection.worker);
        let (mut parts, body) = response.into_parts();
        protocols::http::strip_hop_by_hop(&mut parts.headers);
        // It would lead the application to a protocol, a port or a host where nothing is captured.
        parts.headers.remove(header::ALT_SVC);
        // The version is of one hop (RFC 9110 §6.2); the application's is put in where its connection is written.
        parts.version = http::Version::HTTP_11;
        let status = parts.status.as_u16();
        if body.is_end_stream() {
            self.close(now, CallResult::Completed, Some(status), None, open.bytes());
            self.connection.worker.shared.metrics.completed();
            return Response::from_parts(parts, Body::Empty);
        }
        if let Body::Full(whole) = &body {
            // All of it is here: there is nothing to count, or to cut.
            let (up, down) = open.bytes();
            self.close(now, CallResult::Completed, Some(status), None, (up, down + whole.len() as u64));
            self.connection.worker.shared.metrics.completed();
            return Response::from_parts(parts, body);
        }
        if is_event_stream(&parts.headers) {
            open.be_patient(self.connection.worker.shared.limits.stream);
        }
        let body = trailers::clean(body, None, &self.connection.worker.shared.metrics.trailers_dropped);
        let (watched, cut, id) = (open.clone(), open.clone(), self.asked.id);
        let ends_with_status =
            self.facts.action == Action::Grpc && self.connection.version == HttpVersion::Http2;
        let on_end = Box::new(move |end: End<'_>| {
            let (result, code) = match end {
                End::Complete => (CallResult::Completed, None),
                End::Broken(BodyError::Cut) => (CallResult::Cut, watched.cut_by()),
                End::Broken(_) => (CallResult::Failed, Some(Code::UpstreamBadAnswer)),
                End::Dropped => (CallResult::Aborted, None),
            };
            let metrics = &self.connection.worker.shared.metrics;
            match code {
                Some(code) => metrics.cut(code),
                None => metrics.completed(),
            }
            self.close(Instant::now(), result, Some(status), code, watched.bytes());
            drop(registration);
        });
        let body = Guarded::down(body, open, on_end);
        let body = if ends_with_status { GrpcEnd::of(body, cut, id) } else { body };
        Response::from_parts(parts, body)
    }

    fn failed(&mut self, failure: Failure, open: &Open, result: CallResult) -> Box<Refused> {
        self.close(Instant::now(), result, None, Some(failure.code), open.bytes());
        let mut refused = Refused::of(failure, &self.facts).judged(&self.judged);
        refused.recorded = true;
        refused
    }

    /// Stage 9, second half.
    fn close(
        &mut self,
        now: Instant,
        result: CallResult,
        status: Option<u16>,
        code: Option<Code>,
        bytes: (u64, u64),
    ) {
        self.asked.busy.ends(now);
        if let Some(open_call) = self.open_call.take() {
            open_call.finish(Outcome {
                decision: self.asked.id,
                result,
                status,
                code,
                bytes_up: bytes.0,
                bytes_down: bytes.1,
                duration_us: u64::try_from((now - self.asked.started).as_micros()).unwrap_or(u64::MAX),
            });
        }
    }
}

/// Whether an answer is one that may be silent for long.
fn is_event_stream(headers: &http::HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    value.len() >= 17 && value[..17].eq_ignore_ascii_case(b"text/event-stream")
}

/// Records a request that could not be read.
pub fn refuse_unread(connection: &Connection, id: DecisionId, failure: &Failure) {
    let failure = Failure::new(failure.code, failure.detail.clone());
    let asker = Asker { dialect: Dialect::Problem, head: false };
    let _ = refuse(connection, id, asker, Refused::unread(failure));
}

/// How an answer of ours is to read.
#[derive(Clone, Copy)]
struct Asker {
    dialect: Dialect,
    /// The answer to HEAD has no body (RFC 9110 §9.3.2).
    head: bool,
}

/// Records a call that is not made, and says why.
fn refuse(connection: &Connection, id: DecisionId, asker: Asker, refused: Refused) -> Response<Body> {
    let Refused { failure, facts, method, destination, decision, authority, recorded } = refused;
    connection.worker.shared.metrics.refused(&failure);
    tracing::info!(stage = failure.code.stage().as_str(), code = %failure.code, decision = %id, cause = ?failure.cause, "{failure}");
    let nearest: Vec<NearMiss> = decision.as_ref().map(|d| d.nearest.clone()).unwrap_or_default();
    if !recorded {
        let authority = match &facts {
            Some(facts) => format!("{}:{}", facts.host, facts.port),
            None => authority.unwrap_or_else(|| connection.channel.shown()),
        };
        let event = Refusal {
            decision: id,
            caller: connection.caller.as_ref().and_then(|c| c.caller()).map(|c| c.id.clone()),
            action: "http".to_owned(),
            method,
            destination,
            authority,
            path: facts.map(|facts| facts.path.clone()).unwrap_or_default(),
            code: failure.code,
            detail: failure.detail.clone(),
            policies: decision.as_ref().map(|d| d.policies.clone()).unwrap_or_default(),
            nearest: nearest.clone(),
            version: decision.as_ref().map(|d| d.version),
        };
        if let Err(unrecorded) = connection.worker.shared.audit.write(What::Refusal(event)) {
            tracing::warn!(stage = "audit", code = %unrecorded.code, "a refusal could not be recorded: {unrecorded}");
        }
    }
    let mut response = answer::answer(asker.dialect, &failure, id, &nearest);
    if asker.head {
        *response.body_mut() = Body::Empty;
    }
    // What may follow is not read: where one request can be read in two ways, so can that; and a body that nobody gave
    // leave for may be there or not.
    let ends = matches!(failure.code, Code::MalformedRequest | Code::UnmetExpectation);
    if ends { answer::closing(response) } else { response }
}
