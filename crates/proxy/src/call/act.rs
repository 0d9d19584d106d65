//! Stages 8 and 9, upstream and audit: the intent, the request, its answer, the outcome.

use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use http::{Response, StatusCode, header};
use http_body::Body as _;
use model::audit::{CallResult, Outcome};
use model::destination::HttpVersion;
use model::request::Action;
use model::{Code, DecisionId, Failure, RequestFacts, UnixMillis};
use tokio::time::Instant;

use super::arm::arm;
use super::judge::{Judged, judge};
use super::refused::Refused;
use super::{Asked, Connection, rewritten, sender};
use crate::audit::{OpenCall, line};
use crate::credential::Grant;
use crate::exchange::{Direction, End, Guarded, Judge, Open, Registration, why_stopped};
use crate::memory::Reserved;
use crate::protocol::body::BodyError;
use crate::protocol::grpc_end::GrpcEnd;
use crate::protocol::{Body, Message, trailers};
use crate::redact::Redaction;
use crate::rewrite::Removed;
use crate::standing;
use crate::way::Way;
use crate::worker::now;

/// A call that is allowed, recorded, and about to be made.
pub(super) struct Act {
    pub connection: Rc<Connection>,
    pub asked: Asked,
    pub facts: Rc<RequestFacts>,
    pub judged: Judged,
    pub grant: Option<Arc<Grant>>,
    pub open_call: Option<OpenCall>,
    pub way: Rc<Way>,
    /// What it holds of the memory that requests may use, until it ends.
    pub _room: Reserved,
}

impl Act {
    /// Stage 8, with one more try if the upstream does not take our credential. Only a request without a body may be
    /// sent a second time.
    pub(super) async fn send(
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
        let mut registration = self.watched(&open, self.grant.as_ref());
        if self.judged.destination.redact {
            self.asked.interim.mute();
        }
        message.body = Guarded::up(message.take_body(), open.clone());
        let mut response = self.dispatch(&open, message, may_repeat).await?;
        if response.status() == StatusCode::UNAUTHORIZED
            && may_repeat
            && let Some(second) = Box::pin(self.second_try(&open, &mut registration)).await
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
                may_repeat.then(|| {
                    self.asked.interim.take_sent().map(|sent| self.again(sent, self.grant.as_ref()))
                })?
            })
        {
            let mut sending = Box::pin(sender.send(again, self.connection.version));
            sent = open.unless_cut(sending.as_mut()).await;
        }
        // Whoever carried the body may have heard of a cut first.
        let sent = match (sent, open.cut_by()) {
            (Ok(Err(_)), Some(code)) => Err(code),
            (sent, _) => sent,
        };
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

    /// The request once more, with this credential.
    fn again(&self, mut sent: Box<Message>, grant: Option<&Arc<Grant>>) -> Box<Message> {
        let grant = grant.map(|grant| &**grant);
        let _ = rewritten(&self.way, &self.judged.destination, grant, &mut sent.parts);
        sent
    }

    /// The upstream did not take our credential: drop it, get another, try once; at most once a minute for each.
    async fn second_try(
        &mut self,
        open: &Rc<Open>,
        registration: &mut Registration,
    ) -> Option<Response<Body>> {
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
        self.open_call = second;
        let again = self.again(sent, Some(&grant));
        *registration = self.watched(open, Some(&grant));
        let answer = Box::pin(self.dispatch(open, again, false)).await.ok()?;
        // The answer that there was may show the credential that it was given.
        self.grant = Some(grant);
        Some(answer)
    }

    /// Has this exchange judged again, with this credential, for as long as it is open.
    fn watched(&self, open: &Rc<Open>, grant: Option<&Arc<Grant>>) -> Registration {
        let (judge, valid_until) = (self.judge_again(grant.cloned()), self.judged.decision.valid_until);
        self.connection.worker.register.enter(open.clone(), valid_until, judge)
    }

    fn judge_again(&self, grant: Option<Arc<Grant>>) -> Judge {
        let connection = self.connection.clone();
        let facts = self.facts.clone();
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
        self: Box<Self>,
        open: Rc<Open>,
        registration: Registration,
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
        let whole = match &body {
            Body::Empty => Some(0),
            // All of it is here: there is nothing to count, or to cut.
            Body::Full(whole) if self.connection.may_leave_untaken() => Some(whole.len()),
            body => body.is_end_stream().then_some(0),
        };
        if let Some(length) = whole {
            open.count(Direction::Down, length);
            let end = Ended { at: now, result: CallResult::Completed, status: Some(status), code: None };
            self.over(&open, registration, end);
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
            let end = Ended { at: Instant::now(), result, status: Some(status), code };
            self.over(&watched, registration, end);
        });
        let body = Guarded::down(body, open, on_end);
        let body = if ends_with_status { GrpcEnd::of(body, cut, id) } else { body };
        Response::from_parts(parts, body)
    }

    /// The answer is over. What of its request still goes up keeps the exchange open: it is bounded, judged and cut like
    /// every other until that has ended too.
    fn over(mut self: Box<Self>, open: &Rc<Open>, registration: Registration, end: Ended) {
        if !open.is_uploading() {
            self.counted(end.code);
            self.close(end.at, end.result, end.status, end.code, open.bytes());
            return drop(registration);
        }
        let uploading = open.clone();
        open.at_upload_end(move || {
            let (result, code) = match uploading.cut_by() {
                Some(code) => (CallResult::Cut, Some(code)),
                None => (end.result, end.code),
            };
            self.counted(code);
            self.close(Instant::now(), result, end.status, code, uploading.bytes());
            drop(registration);
        });
    }

    fn counted(&self, code: Option<Code>) {
        let metrics = &self.connection.worker.shared.metrics;
        match code {
            Some(code) => metrics.cut(code),
            None => metrics.completed(),
        }
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

/// How an answer ended, and when.
#[derive(Clone, Copy)]
struct Ended {
    at: Instant,
    result: CallResult,
    status: Option<u16>,
    code: Option<Code>,
}

/// Whether an answer is one that may be silent for long.
fn is_event_stream(headers: &http::HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |value| value.as_bytes());
    value.len() >= 17 && value[..17].eq_ignore_ascii_case(b"text/event-stream")
}

/// Stage 9, first half: nothing goes out before this has been handed to the kernel.
pub(super) fn intend(
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

pub(super) fn note_standing(connection: &Connection, id: DecisionId, judged: &Judged, standing: &[Removed]) {
    for removed in standing {
        let Some(state) = &connection.caller else { continue };
        let value = removed.value.as_bytes();
        standing::note(&connection.worker, state, &judged.caller.id, id, &removed.header, value);
    }
}
