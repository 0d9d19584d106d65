//! Connections that are not opened: carried untouched, or refused as a whole.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use bytes::BytesMut;
use model::audit::{CallResult, Outcome, Passed, Refusal, What};
use model::destination::Protocol;
use model::request::Action;
use model::{Code, DecisionId, Destination, Failure, HostName, RequestFacts, UnixMillis, Verdict};
use policy::{Question, Snapshot};
use tokio::net::TcpStream;

use crate::audit::line;
use crate::bypass;
use crate::caller::CallerState;
use crate::capture::accept::{Captured, OriginalDestination};
use crate::exchange::{Judge, Open};
use crate::policy::{Route, uncovered};
use crate::splice::{Carried, reset, splice};
use crate::standing;
use crate::tls;
use crate::upstream::dial::Dialler;
use crate::worker::{Worker, now};

/// A connection on its way through.
pub struct Passing {
    /// Where the application was going.
    pub original: OriginalDestination,
    /// The application's side.
    pub stream: TcpStream,
    /// The other side, if that was dialled already.
    pub dialled: Option<TcpStream>,
    /// What was read of it.
    pub first: BytesMut,
    /// The name that it gave.
    pub name: Option<String>,
    /// `tls`, `http`, `tcp`.
    pub protocol: &'static str,
}

/// Whether a policy may cover something at this port.
pub fn may_be_covered(snapshot: &Snapshot, port: u16) -> bool {
    covered_at(snapshot, port).next().is_some()
}

/// Whether a policy may cover a request at this port: not where all that is covered there is carried as a connection.
pub fn requests_may_be_covered(snapshot: &Snapshot, port: u16) -> bool {
    covered_at(snapshot, port).any(|destination| destination.protocol != Protocol::Tcp)
}

fn covered_at(snapshot: &Snapshot, port: u16) -> impl Iterator<Item = &Destination> {
    snapshot.slice().destinations.iter().filter(move |one| one.ports.contains(&port))
}

/// Whether the address may be dialled before the application has said anything: nothing covers it, or what does is a
/// connection that a policy allows.
pub fn server_may_speak(caller: &Arc<CallerState>, original: &OriginalDestination) -> bool {
    let Some(snapshot) = caller.snapshot() else { return false };
    let route = crate::policy::route_unknown(&snapshot, original);
    let unnamed = Described::of_unknown(original);
    match route {
        Route::Pass | Route::Bypass(_) => true,
        Route::Connection(_) => judge(caller.clone(), &route, &unnamed)(now()).is_ok(),
        Route::Requests | Route::Refuse(_) => false,
    }
}

/// Gives a server the chance to speak first to an application that waits for it.
///
/// Dials where the application was going. If the application speaks after all, it is judged as ever, and the connection
/// that was dialled is kept, so that the server sees only one. If the server speaks, or ends, the connection is carried
/// and this returns `None`; as long as both are silent it waits for either.
pub async fn server_first(
    worker: &Rc<Worker>,
    caller: &Arc<CallerState>,
    captured: &mut Captured,
) -> Option<()> {
    let limits = &worker.shared.limits;
    let Captured { stream, first, original, dialled } = captured;
    let described = Described::of_unknown(original);
    let snapshot = caller.snapshot()?;
    let may_be_covered = may_be_covered(&snapshot, original.port());
    let there = dialled.take();
    let dialling = async {
        match there {
            Some(there) => Ok(there),
            None => dial(worker, &crate::policy::route_unknown(&snapshot, original), &described).await,
        }
    };
    let dialling = tokio::select! {
        biased;
        there = dialling => there,
        // What may be covered goes elsewhere, perhaps: it does not wait for an address that may not even answer.
        spoke = tls::first_bytes(stream, first), if may_be_covered => {
            spoke.ok()?;
            return Some(());
        }
    };
    let upstream = match dialling {
        Ok(upstream) => upstream,
        Err(failure) if !may_be_covered => {
            worker.shared.metrics.failed(&failure);
            reset(stream);
            return None;
        }
        Err(_) => {
            // It may still speak, and then gets its answer from where it is judged.
            tokio::time::timeout(limits.head, tls::first_bytes(stream, first)).await.ok()?.ok()?;
            return Some(());
        }
    };
    tokio::select! {
        spoke = tls::first_bytes(stream, first) => {
            spoke.ok()?;
            *dialled = Some(upstream);
            return Some(());
        }
        readable = upstream.readable() => readable.ok()?,
    }
    let snapshot = caller.snapshot()?;
    let route = crate::policy::route_unknown(&snapshot, original);
    carried(worker, caller, route, described, stream, Some(upstream), std::mem::take(first)).await;
    None
}

/// Carries a connection as the route says, or resets it.
pub async fn carry(worker: &Rc<Worker>, caller: &Arc<CallerState>, route: Route, passing: Passing) {
    let Passing { original, stream, dialled, first, name, protocol } = passing;
    let described = Described { original, name, protocol };
    carried(worker, caller, route, described, &stream, dialled, first).await;
}

/// Judges, records, dials and carries, in this order; what is not carried to its end is reset, so that it does not look
/// as if it had been.
async fn carried(
    worker: &Rc<Worker>,
    caller: &Arc<CallerState>,
    route: Route,
    passing: Described,
    stream: &TcpStream,
    dialled: Option<TcpStream>,
    first: BytesMut,
) {
    let id = DecisionId(rand::random());
    let started = Instant::now();
    let judge = judge(caller.clone(), &route, &passing);
    let judged = judge(now()).and_then(|valid_until| {
        let room = worker.room()?;
        Ok((valid_until, record(worker, caller, &route, &passing, id)?, room))
    });
    let (valid_until, recorded, _room) = match judged {
        Ok(judged) => judged,
        Err(failure) => {
            worker.shared.metrics.failed(&failure);
            refuse(worker, Some(caller), passing.name.as_deref(), &passing.original, &failure);
            reset(stream);
            return;
        }
    };
    let watched = passing.protocol == "http" && matches!(route, Route::Pass);
    let watch = if watched { standing::Watch::new(worker, caller, id) } else { None };
    let open = Rc::new(Open::default());
    let _registration = worker.register.enter(open.clone(), valid_until, judge);
    let carried = Carried::default();
    let sides = Sides { stream, dialled, first };
    let through = through(worker, &route, &passing, sides, &carried, watch.as_ref());
    let ended = open.unless_cut(pin!(through)).await;
    let (result, code) = match ended {
        Ok(Ok(())) => (CallResult::Completed, None),
        Ok(Err(Ended::Unreached(failure))) => {
            worker.shared.metrics.failed(&failure);
            tracing::debug!(stage = "upstream", code = %failure.code, "{failure}");
            if recorded.is_none() && failure.code == Code::ForbiddenAddress {
                refuse(worker, Some(caller), passing.name.as_deref(), &passing.original, &failure);
            }
            (CallResult::Failed, Some(failure.code))
        }
        Ok(Err(Ended::Broken)) => (CallResult::Aborted, None),
        Err(code) => {
            worker.shared.metrics.cut(code);
            (CallResult::Cut, Some(code))
        }
    };
    if result != CallResult::Completed {
        reset(stream);
    }
    let Some(open_call) = recorded else { return };
    open_call.finish(Outcome {
        decision: id,
        result,
        status: None,
        code,
        bytes_up: carried.up.get(),
        bytes_down: carried.down.get(),
        duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
    });
}

/// The application's side with what was read of it, and the other if it is there already.
struct Sides<'a> {
    stream: &'a TcpStream,
    dialled: Option<TcpStream>,
    first: BytesMut,
}

/// Why a connection was not carried to its end.
enum Ended {
    /// The other side could not be dialled.
    Unreached(Failure),
    /// One of the two sides broke.
    Broken,
}

/// Dials, unless that was done, and carries.
async fn through(
    worker: &Worker,
    route: &Route,
    passing: &Described,
    Sides { stream, dialled, first }: Sides<'_>,
    carried: &Carried,
    watch: Option<&standing::Watch<'_>>,
) -> Result<(), Ended> {
    let upstream = match dialled {
        // What is covered goes to the name that was judged: an address that was dialled may be another's.
        Some(dialled) if !is_judged_by_name(route, passing) || passing.original.name().is_some() => dialled,
        _ => dial(worker, route, passing).await.map_err(Ended::Unreached)?,
    };
    worker.shared.metrics.passed();
    let guard = ResetUnlessDone(&upstream, Cell::new(false));
    let look = watch.map(|watch| move |bytes: &[u8]| watch.look(bytes));
    let look = look.as_ref().map(|look| look as &dyn Fn(&[u8]));
    splice(stream, &upstream, first, carried, look).await.map_err(|_| Ended::Broken)?;
    guard.1.set(true);
    Ok(())
}

/// Resets the other side too when the connection breaks or is cut in the middle.
struct ResetUnlessDone<'a>(&'a TcpStream, Cell<bool>);

impl Drop for ResetUnlessDone<'_> {
    fn drop(&mut self) {
        if !self.1.get() {
            reset(self.0);
        }
    }
}

fn is_judged_by_name(route: &Route, passing: &Described) -> bool {
    matches!(route, Route::Connection(_)) && passing.name.is_some()
}

/// Connects for a connection that is not opened: to the name that was judged if a policy covers it, else to the address
/// that the application dialled; to the name that it gave to the explicit proxy if it dialled none.
async fn dial(worker: &Worker, route: &Route, passing: &Described) -> Result<TcpStream, Failure> {
    let dialler = &worker.dialler;
    let Described { original, name, .. } = passing;
    let covering = match route {
        Route::Connection(destination) => Some(&**destination),
        _ => None,
    };
    let Some(name) = covering.and(name.as_ref()) else {
        return dial_original(dialler, original, covering).await;
    };
    let host = HostName::new(name)
        .map_err(|e| Failure::new(Code::NameNotResolved, format!("{name} is not a name")).because(e))?;
    dialler.to_name(&host, covering, original).await.map(|(stream, _)| stream)
}

/// Connects to the address that the application dialled, or to the name that it gave to the explicit proxy if it dialled
/// none.
///
/// # Errors
/// As resolving and dialling do.
pub async fn dial_original(
    dialler: &Dialler,
    original: &OriginalDestination,
    covering: Option<&Destination>,
) -> Result<TcpStream, Failure> {
    match (original.address(), original.name()) {
        (Some(address), _) => {
            if original.is_asked() {
                dialler.resolver().check(address, covering)?;
            }
            dialler.to_address(address).await
        }
        (None, Some(name)) => dialler.to_name(name, covering, original).await.map(|(stream, _)| stream),
        (None, None) => Err(Failure::new(Code::NameNotResolved, "there is no address to dial")),
    }
}

/// What is told of a connection.
struct Described {
    original: OriginalDestination,
    name: Option<String>,
    protocol: &'static str,
}

impl Described {
    /// A connection that has not said what it is; only the explicit proxy was told its name.
    fn of_unknown(original: &OriginalDestination) -> Self {
        let name = original.name().map(ToString::to_string);
        Self { original: original.clone(), name, protocol: "tcp" }
    }
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
        Route::Refuse(code) => {
            let failure =
                (*code, format!("{} is not carried", target(&passing.original, passing.name.as_deref())));
            Box::new(move |_| Err(Failure::new(failure.0, failure.1.clone())))
        }
        _ => {
            let name = passing.name.as_deref().and_then(|name| HostName::new(name).ok());
            let original = passing.original.clone();
            let was_bypassed = matches!(route, Route::Bypass(_));
            Box::new(move |now| {
                // A snapshot that is gone changes nothing for what has passed.
                let Some(snapshot) = caller.snapshot() else { return Ok(UnixMillis(i64::MAX)) };
                if let Some(bypass) = bypass::of_connection(&snapshot, name.as_ref(), &original, now) {
                    return Ok(bypass.until);
                }
                match uncovered(&snapshot) {
                    Route::Refuse(code) => Err(Failure::new(code, "the connection may no longer pass")),
                    _ if was_bypassed && bypass::is_covered(&snapshot, name.as_ref(), &original) => {
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
        port: passing.original.port(),
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
            address: passing.original.address().map(|a| a.to_string()).unwrap_or_default(),
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
    let intent = line::Intent {
        decision: id,
        caller: &who.id,
        action: Action::Connect.as_str(),
        method: "",
        destination: &destination.name,
        host: &facts.host,
        port: facts.port,
        path: "",
        policies: decision.as_ref().map(|d| d.policies.as_slice()).unwrap_or_default(),
        version: decision.as_ref().map(|d| d.version).unwrap_or_default(),
        provider: None,
        grant: None,
        upstream: &passing.original.to_string(),
    };
    match worker.shared.audit.intent(crate::worker::now(), &intent) {
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
    original: &OriginalDestination,
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

fn target(original: &OriginalDestination, name: Option<&str>) -> String {
    match name {
        Some(name) => format!("{name}:{}", original.port()),
        None => original.to_string(),
    }
}
