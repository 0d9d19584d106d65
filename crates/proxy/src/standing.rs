//! Standing credentials of the application's own: recorded by fingerprint, never by value.

use std::cell::RefCell;
use std::collections::BTreeSet;

use model::audit::{StandingCredential, What};
use model::{DecisionId, SpiffeId};
use protocols::standing::Follower;

use crate::caller::CallerState;
use crate::worker::Worker;

/// Values that are told apart on one connection; later ones are not recorded.
const KNOWN_MAX: usize = 64;

/// What was recorded of one connection already.
#[derive(Default)]
pub struct Known(RefCell<BTreeSet<(String, String)>>);

impl Known {
    /// Records a credential, unless that was done.
    pub fn note(
        &self,
        worker: &Worker,
        state: &CallerState,
        (caller, id): (&SpiffeId, DecisionId),
        (header, value): (&str, &[u8]),
    ) {
        let mut known = self.0.borrow_mut();
        if known.len() < KNOWN_MAX && known.insert((header.to_owned(), state.fingerprint(value))) {
            note(worker, state, caller, id, header, value);
        }
    }
}

/// Looks at the requests of a connection that passes in the clear, without holding any of them up. Each credential is
/// recorded once.
pub struct Watch<'a> {
    worker: &'a Worker,
    state: &'a CallerState,
    caller: SpiffeId,
    id: DecisionId,
    follower: RefCell<Follower>,
    known: Known,
}

impl<'a> Watch<'a> {
    /// Of a connection of this caller; `None` if nobody is attested.
    pub fn new(worker: &'a Worker, state: &'a CallerState, id: DecisionId) -> Option<Self> {
        let caller = state.caller()?.id.clone();
        Some(Self { worker, state, caller, id, follower: RefCell::default(), known: Known::default() })
    }

    /// Looks at what the application sends.
    pub fn look(&self, bytes: &[u8]) {
        self.follower.borrow_mut().feed(bytes, |header, value| {
            self.known.note(self.worker, self.state, (&self.caller, self.id), (header, value));
        });
    }
}

/// Records that the application sent a credential of its own in this header of the call.
pub fn note(
    worker: &Worker,
    state: &CallerState,
    caller: &SpiffeId,
    id: DecisionId,
    header: &str,
    value: &[u8],
) {
    worker.shared.metrics.standing_credential();
    let event = StandingCredential {
        decision: id,
        caller: caller.clone(),
        header: header.to_owned(),
        fingerprint: state.fingerprint(value),
    };
    // The spool may be full; a call that needs a credential is then refused.
    if worker.shared.audit.write(What::StandingCredential(event)).is_err() {
        worker.shared.metrics.unrecorded();
    }
}
