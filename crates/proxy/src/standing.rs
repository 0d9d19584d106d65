//! Standing credentials of the application's own: recorded by fingerprint, never by value.

use model::audit::{StandingCredential, What};
use model::{DecisionId, SpiffeId};

use crate::caller::CallerState;
use crate::worker::Worker;

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
