//! Connections that are not opened: carried untouched, or refused as a whole.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use model::audit::{CallResult, Intent, Outcome, Passed, Refusal, What};
use model::request::Action;
use model::{Code, DecisionId, Destination, Failure, HostName, RequestFacts, UnixMillis, Verdict};
use policy::{Question, Snapshot};
use tokio::net::TcpStream;

use crate::bypass;
use crate::caller::CallerState;
use crate::capture::accept::OriginalDestination;
use crate::exchange::{Judge, Open};
use crate::policy::{Route, uncovered};
use crate::splice::splice;
use crate::tls::{self, Opening};
use crate::upstream::connect;
use crate::worker::{Worker, now};

/// A connection on its way through.
pub struct Passing {
    /// Where the application dialled.
    pub original: OriginalDestination,
    /// The application's side.
    pub stream: TcpStream,
    /// What was read of it.
    pub first: BytesMut,
    /// The name that it gave.
    pub name: Option<String>,
    /// `tls`, `http`, `tcp`.
    pub protocol: &'static str,
}

/// Whether a policy may cover something at this port that is called without TLS.
pub fn may_be_covered(snapshot: &Snapshot, port: u16) -> bool {
    snapshot.slice().destinations.iter().any(|destination| destination.ports.contains(&port))
}

/// Gives a server the chance to speak first to an application that waits for it.
///
/// Dials where the application dialled. If the server speaks, the connection is carried and this returns `None`; if
/// the application does, it is judged as ever.
pub async fn server_first(
    worker: &Rc<Worker>,
    stream: &mut TcpStream,
    first: &mut BytesMut,
    original: OriginalDestination,
) -> Option<Opening> {
    let limits = &worker.shared.limits;
    let dialled = connect::dial(&[original.0], &worker.shared.socket, limits.patience.connect).await;
    let Ok((mut upstream, _)) = dialled else {
        // It may still speak, and then gets its answer from where it is judged.
        return tls::peek(stream, first, limits.head, limits.head).await.ok();
    };
    let application_spoke = tokio::select! {
        opening = tls::peek(stream, first, limits.head, limits.head) => Some(opening.ok()?),
        readable = upstream.readable() => {
            readable.ok()?;
            None
        }
    };
    match application_spoke {
        // Both stay silent: it is the server's turn, for as long as it likes.
        None | Some(Opening::Silent) => {
            let caller = worker.shared.callers.at_accept()?;
            let snapshot = caller.snapshot()?;
            let route = crate::policy::route_unknown(&snapshot, original.0);
            let placeholder = std::mem::take(first);
            let passing = Described { original, name: None, protocol: "tcp" };
            spliced(worker, &caller, route, &passing, stream, &mut upstream, placeholder).await;
            None
        }
        Some(opening) => Some(opening),
    }
}

/// Carries a connection as the route says, or closes it.
pub async fn carry(worker: &Rc<Worker>, caller: &Arc<CallerState>, route: Route, passing: Passing) {
    let Passing { original, mut stream, first, name, protocol } = passing;
    let addresses = match (&route, &name) {
        (Route::Refuse(code), _) => {
            let failure =
                Failure::new(*code, format!("{} is not carried", target(original, name.as_deref())));
            refuse(worker, Some(caller), name.as_deref(), original, &failure);
            worker.shared.metrics.failed(&failure);
            tls::reset(stream);
            return;
        }
        // What is covered goes to the name that was judged, what is not to where the application dialled.
        (Route::Connection(destination), Some(name)) => {
            match judged_addresses(worker, name, destination, original).await {
                Ok(addresses) => addresses,
                Err(failure) => {
                    refuse(worker, Some(caller), Some(name), original, &failure);
                    worker.shared.metrics.failed(&failure);
                    return;
                }
            }
        }
        _ => vec![original.0],
    };
    let patience = worker.shared.limits.patience.connect;
    match connect::dial(&addresses, &worker.shared.socket, patience).await {
        Ok((mut upstream, _)) => {
            let described = Described { original, name, protocol };
            spliced(worker, caller, route, &described, &mut stream, &mut upstream, first).await;
        }
        Err(failure) => {
            worker.shared.metrics.failed(&failure);
            tracing::debug!(stage = "upstream", code = %failure.code, "{failure}");
        }
    }
}

async fn judged_addresses(
    worker: &Worker,
    name: &str,
    destination: &Destination,
    original: OriginalDestination,
) -> Result<Vec<std::net::SocketAddr>, Failure> {
    let host = HostName::new(name)
        .map_err(|e| Failure::new(Code::NameNotResolved, format!("{name} is not a name")).because(e))?;
    worker.resolver.addresses(&host, destination, original).await
}

/// What is told of a connection.
struct Described {
    original: OriginalDestination,
    name: Option<String>,
    protocol: &'static str,
}

/// Judges once more what was judged before dialling, records it, and carries it until it ends or is cut.
async fn spliced(
    worker: &Rc<Worker>,
    caller: &Arc<CallerState>,
    route: Route,
    passing: &Described,
    stream: &mut TcpStream,
    upstream: &mut TcpStream,
    first: BytesMut,
) {
    let id = DecisionId(rand::random());
    let started = Instant::now();
    let judge = judge(caller.clone(), &route, passing);
    let judged = judge(now()).and_then(|valid_until| {
        let room = worker.room()?;
        record(worker, caller, &route, passing, id).map(|recorded| (valid_until, recorded, room))
    });
    let (valid_until, recorded, _room) = match judged {
        Ok(judged) => judged,
        Err(failure) => {
            worker.shared.metrics.failed(&failure);
            refuse(worker, Some(caller), passing.name.as_deref(), passing.original, &failure);
            return;
        }
    };
    worker.shared.metrics.passed();
    let open = Rc::new(Open::default());
    let _registration = worker.register.enter(open.clone(), valid_until, judge);
    let ended = open.unless_cut(splice(stream, upstream, first)).await;
    let Some(open_call) = recorded else { return };
    let (result, code, bytes) = match ended {
        Ok(Ok(bytes)) => (CallResult::Completed, None, bytes),
        Ok(Err(_)) => (CallResult::Aborted, None, (0, 0)),
        Err(code) => (CallResult::Cut, Some(code), (0, 0)),
    };
    open_call.finish(Outcome {
        decision: id,
        result,
        status: None,
        code,
        bytes_up: bytes.0,
        bytes_down: bytes.1,
        duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
    });
}

/// Whether the connection may (still) be carried.
fn judge(caller: Arc<CallerState>, route: &Route, passing: &Described) -> Judge {
    match route {
        Route::Connection(destination) => {
            let destination = destination.clone();
            let facts = connection_facts(&destination, passing);
            Box::new(move |now| {
                let no_policy = || Failure::new(Code::NoSnapshot, "no policy has been received yet");
                let snapshot = caller.snapshot().ok_or_else(no_policy)?;
                let who = caller.caller().ok_or_else(no_policy)?;
                let decision = snapshot.decide(&Question {
                    caller: &who,
                    destination: &destination,
                    request: &facts,
                    now,
                });
                match &decision.verdict {
                    Verdict::Allow { .. } => Ok(decision.valid_until),
                    Verdict::Deny { code, reason } => Err(Failure::new(*code, reason.clone())),
                }
            })
        }
        _ => {
            let name = passing.name.as_deref().and_then(|name| HostName::new(name).ok());
            let original = passing.original.0;
            let was_bypassed = matches!(route, Route::Bypass(_));
            Box::new(move |now| {
                // A snapshot that is gone changes nothing for what has passed.
                let Some(snapshot) = caller.snapshot() else { return Ok(UnixMillis(i64::MAX)) };
                if let Some(bypass) = bypass::of_connection(&snapshot, name.as_ref(), original, now) {
                    return Ok(bypass.until);
                }
                match uncovered(&snapshot) {
                    Route::Refuse(code) => Err(Failure::new(code, "the connection may no longer pass")),
                    _ if was_bypassed && bypass::is_covered(&snapshot, name.as_ref(), original) => {
                        Err(Failure::new(Code::BypassEnded, "the connection passed under a bypass"))
                    }
                    _ => Ok(UnixMillis(i64::MAX)),
                }
            })
        }
    }
}

fn connection_facts(destination: &Destination, passing: &Described) -> RequestFacts {
    let named = passing.name.as_deref().and_then(|name| HostName::new(name).ok());
    let exact = destination.hosts.iter().find_map(|pattern| match pattern {
        model::HostPattern::Exact(name) => Some(name.clone()),
        model::HostPattern::OneLabelBelow(_) => None,
    });
    // A connection that was matched by its address has no name; policies see a fixed one.
    let unnamed = || HostName::new("unnamed.invalid").ok();
    RequestFacts {
        action: Action::Connect,
        method: String::new(),
        host: named.or(exact).or_else(unnamed).unwrap_or_else(|| unreachable!("a constant name is good")),
        port: passing.original.0.port(),
        path: String::new(),
        headers: std::collections::BTreeMap::new(),
    }
}

/// A covered connection is recorded like a call, one that merely passes as such.
fn record(
    worker: &Worker,
    caller: &CallerState,
    route: &Route,
    passing: &Described,
    id: DecisionId,
) -> Result<Option<crate::audit::OpenCall>, Failure> {
    let Some(who) = caller.caller() else { return Ok(None) };
    let Route::Connection(destination) = route else {
        let event = Passed {
            decision: id,
            caller: who.id.clone(),
            address: passing.original.0.to_string(),
            name: passing.name.clone(),
            protocol: passing.protocol.to_owned(),
            destination: None,
            bypass: match route {
                Route::Bypass(id) => Some(id.to_string()),
                _ => None,
            },
        };
        if worker.shared.audit.write(What::Passed(event)).is_err() {
            worker.shared.metrics.unrecorded();
        }
        return Ok(None);
    };
    let snapshot = caller.snapshot();
    let facts = connection_facts(destination, passing);
    let decision = snapshot.as_ref().map(|snapshot| {
        snapshot.decide(&Question { caller: &who, destination, request: &facts, now: now() })
    });
    let intent = Intent {
        decision: id,
        caller: who.id.clone(),
        subject: None,
        action: Action::Connect.as_str().to_owned(),
        method: String::new(),
        destination: destination.name.clone(),
        authority: format!("{}:{}", facts.host, facts.port),
        path: String::new(),
        policies: decision.as_ref().map(|d| d.policies.clone()).unwrap_or_default(),
        version: decision.as_ref().map(|d| d.version).unwrap_or_default(),
        provider: None,
        grant: None,
        upstream: passing.original.0.to_string(),
    };
    match worker.shared.audit.intent(intent) {
        Ok(open_call) => Ok(Some(open_call)),
        // It carries no credential of ours, so a full spool does not stop it; it is counted.
        Err(_) => {
            worker.shared.metrics.unrecorded();
            Ok(None)
        }
    }
}

/// Records a connection that was closed without an answer.
pub fn refuse(
    worker: &Worker,
    caller: Option<&CallerState>,
    name: Option<&str>,
    original: OriginalDestination,
    failure: &Failure,
) {
    let event = Refusal {
        decision: DecisionId(rand::random()),
        caller: caller.and_then(CallerState::caller).map(|caller| caller.id.clone()),
        action: Action::Connect.as_str().to_owned(),
        method: String::new(),
        destination: None,
        authority: target(original, name),
        path: String::new(),
        code: failure.code,
        detail: failure.detail.clone(),
        policies: Vec::new(),
        nearest: Vec::new(),
        version: caller.and_then(CallerState::snapshot).map(|snapshot| snapshot.version()),
    };
    tracing::info!(stage = failure.code.stage().as_str(), code = %failure.code, target = %event.authority, "{failure}");
    if let Err(unrecorded) = worker.shared.audit.write(What::Refusal(event)) {
        tracing::warn!(stage = "audit", code = %unrecorded.code, "a refusal could not be recorded: {unrecorded}");
    }
}

fn target(original: OriginalDestination, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{name}:{}", original.0.port()),
        None => original.0.to_string(),
    }
}
