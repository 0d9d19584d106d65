//! Stages 4 and 5, identity and policy: what policy says of a request, under the snapshot of this moment.

use std::rc::Rc;
use std::sync::Arc;

use model::slice::Egress;
use model::{Caller, Code, Decision, Destination, Failure, RequestFacts, UnixMillis, Verdict};
use policy::{Question, Snapshot};

use super::Connection;
use super::refused::Refused;
use crate::bypass;
use crate::capture::accept::OriginalDestination;
use crate::policy::Route;
use crate::protocol::Message;

/// What policy says of one request, and under which snapshot.
pub(super) struct Judged {
    pub snapshot: Arc<Snapshot>,
    pub caller: Arc<Caller>,
    pub destination: Arc<Destination>,
    pub decision: Arc<Decision>,
}

/// While the workload is bypassed nothing is injected, also not on what was opened before: such a connection is being
/// ended, and a request that comes all the same is sent to another one.
pub(super) fn unless_bypassed(
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
pub(super) fn judge(
    connection: &Connection,
    facts: &Rc<RequestFacts>,
    now: UnixMillis,
) -> Result<Judged, Box<Refused>> {
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

/// A tunnel's bytes can't be searched for a credential: frames may split it, or compress it.
pub(super) fn searchable(message: &Message, judged: &Judged) -> Result<(), Failure> {
    if judged.destination.redact && message.is_websocket() {
        let detail = format!("{} says `redact`, and a WebSocket can't be searched", judged.destination.name);
        return Err(Failure::new(Code::NotCarried, detail));
    }
    Ok(())
}
