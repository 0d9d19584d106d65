//! Stage 6, credential: what the decision names is taken from what is at hand, or asked for.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use model::slice::ProviderFace;
use model::{Code, DecisionId, Failure, RequestFacts, Verdict};

use super::Connection;
use super::judge::{Judged, judge, unless_bypassed};
use super::refused::Refused;
use crate::credential::{Ask, Grant, Key};
use crate::moment::Moment;
use crate::way::Way;
use crate::worker::now;

/// How long a call waits for the newer policy when proxy and control plane disagree about the version.
const CATCH_UP: Duration = Duration::from_secs(1);

/// The credential that a decision names.
pub(super) enum Credential {
    /// It names none.
    None,
    /// It is there.
    Held(Arc<Grant>),
    /// It has to be asked for, by this key.
    Missing(Rc<Key>),
}

/// Stage 6, as far as nothing has to be waited for.
pub(super) fn at_hand(
    connection: &Connection,
    judged: &Judged,
    way: &Way,
    now: Moment,
) -> Result<Credential, Failure> {
    let Some(state) = connection.caller.as_ref() else { return Ok(Credential::None) };
    let Some(face) = provider(judged)? else { return Ok(Credential::None) };
    let key = way.key(&judged.destination, face);
    let held = state.credentials().cached(&key, judged.snapshot.version(), now);
    Ok(held.map_or(Credential::Missing(key), Credential::Held))
}

/// Stage 6: the credential that the decision names, if it names one, and the way that its request then goes.
///
/// After every wait the request is judged again, under the snapshot that there is by then.
pub(super) async fn arm(
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
                let refused = |failure| Refused::of(failure, facts).judged(judged);
                let way = connection.way(facts, judged).map_err(refused)?;
                let names = provider(judged).map_err(refused)?.map(|face| way.key(&judged.destination, face));
                // With time a decision may come to name another credential, or none.
                if names.is_some_and(|names| names == key) {
                    return Ok((Some(grant), way));
                }
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
