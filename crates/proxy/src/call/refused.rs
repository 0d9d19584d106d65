//! A call that is not made: what is known of it, how it is recorded, and what its caller reads.

use std::rc::Rc;
use std::sync::Arc;

use http::Response;
use http::request::Parts;
use model::audit::{Refusal, What};
use model::decision::NearMiss;
use model::{Code, Decision, DecisionId, Failure, RequestFacts, ResourceRef};
use protocols::answer::Dialect;

use super::Connection;
use super::judge::Judged;
use crate::answer;
use crate::protocol::Body;
use crate::protocol::facts;

/// A call that is not made, with what is known of it.
pub(super) struct Refused {
    pub failure: Failure,
    facts: Option<Rc<RequestFacts>>,
    method: String,
    pub destination: Option<ResourceRef>,
    decision: Option<Arc<Decision>>,
    /// Whom the request named, if that alone is known.
    authority: Option<String>,
    /// Whether its intent is recorded already: then the outcome is too, and there is no refusal to record.
    pub recorded: bool,
}

impl Refused {
    pub(super) fn before_judgement(failure: Failure, parts: &Parts) -> Box<Self> {
        let method = parts.method.as_str().to_owned();
        // Without user information, which may hold a password.
        let named = parts.uri.authority().map(|a| (a.host(), a.port_u16().unwrap_or(facts::HTTP_PORT)));
        let authority = named.map(|(host, port)| format!("{host}:{port}"));
        Box::new(Self { authority, method, ..Self::unread(failure) })
    }

    pub(super) fn of(failure: Failure, facts: &Rc<RequestFacts>) -> Box<Self> {
        let (facts, method) = (Some(facts.clone()), facts.method.clone());
        Box::new(Self { facts, method, ..Self::unread(failure) })
    }

    fn unread(failure: Failure) -> Self {
        let method = String::new();
        let (facts, destination, decision, authority) = (None, None, None, None);
        Self { failure, facts, method, destination, decision, authority, recorded: false }
    }

    pub(super) fn judged(mut self: Box<Self>, judged: &Judged) -> Box<Self> {
        self.destination = Some(judged.destination.name.clone());
        self.decision = Some(judged.decision.clone());
        self
    }
}

/// How an answer of ours is to read.
#[derive(Clone, Copy)]
pub(super) struct Asker {
    pub dialect: Dialect,
    /// The answer to HEAD has no body (RFC 9110 §9.3.2).
    pub head: bool,
}

/// Records a call that is not made, and says why.
pub(super) fn refuse(
    connection: &Connection,
    id: DecisionId,
    asker: Asker,
    refused: Refused,
) -> Response<Body> {
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

/// Records a request that could not be read.
pub fn refuse_unread(connection: &Connection, id: DecisionId, failure: &Failure) {
    let failure = Failure::new(failure.code, failure.detail.clone());
    let asker = Asker { dialect: Dialect::Problem, head: false };
    let _ = refuse(connection, id, asker, Refused::unread(failure));
}
