//! Whether those whose sessions last are still there: a pod's session ends with the pod.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use attestation::Verifier;
use model::{Code, Failure};
use tokio::time::Instant;

use crate::index::Index;
use crate::now;
use crate::store::Binding;

/// How long what the API server said of a pod is relied on. With the five seconds after which a watch looks again, a
/// session ends 65 s after its pod at the latest; a session that does nothing costs the API server nothing.
const RELIED_ON: Duration = Duration::from_secs(60);

/// How long until an API server that could not be asked is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(10);

/// Instances that are remembered; a forgotten one is only asked for once more.
const INSTANCES_MAX: usize = 100_000;

/// Who was there when last asked.
pub struct Attendance {
    verifier: Arc<Verifier>,
    index: Arc<Index>,
    seen: Mutex<HashMap<[u8; 32], Seen>>,
}

/// What is known of a session, by its key.
#[derive(Clone)]
struct Seen {
    ask_again: Instant,
    gone: Option<String>,
}

impl Attendance {
    /// Nobody has been asked for yet.
    #[must_use]
    pub fn new(verifier: Arc<Verifier>, index: Arc<Index>) -> Self {
        Self { verifier, index, seen: Mutex::default() }
    }

    /// Whether a session may go on.
    ///
    /// Leans to going on: while the API server can't be asked, a session lasts until its certificate ends; it is not
    /// renewed then, which needs the API server's word.
    ///
    /// # Errors
    /// [`Code::WorkloadGone`] if its pod is gone.
    pub async fn check(&self, binding: &Binding) -> Result<(), Failure> {
        let known = self.lock().get(&binding.key).cloned();
        let seen = match known {
            Some(seen) if Instant::now() < seen.ask_again => seen,
            _ => self.look(binding).await,
        };
        match seen.gone {
            None => Ok(()),
            Some(detail) => Err(Failure::new(Code::WorkloadGone, detail)),
        }
    }

    async fn look(&self, binding: &Binding) -> Seen {
        let policies = self.index.now();
        let (gone, relied_on) = match self.verifier.still_there(&binding.caller, &policies.trust, now()).await
        {
            Ok(()) => (None, RELIED_ON),
            Err(failure) if failure.code == Code::WorkloadGone => {
                tracing::info!(stage = "identity", caller = %binding.caller.id, "its session ends: {failure}");
                (Some(failure.detail), RELIED_ON)
            }
            Err(failure) => {
                tracing::warn!(
                    stage = "identity", caller = %binding.caller.id, cause = ?failure.cause,
                    "whether it is still there can't be found out: {failure}"
                );
                (None, ASK_AGAIN)
            }
        };
        let seen = Seen { ask_again: Instant::now() + relied_on, gone };
        let mut all = self.lock();
        if all.len() >= INSTANCES_MAX {
            all.clear();
        }
        all.insert(binding.key, seen.clone());
        seen
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<[u8; 32], Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
