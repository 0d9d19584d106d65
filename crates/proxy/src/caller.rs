//! Stage 4, identity: who asks? All that a proxy holds for one caller.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use aws_lc_rs::hmac;
use model::destination::ClientCertificate;
use model::{Caller, Code, Destination, Failure, GrantId};
use policy::Snapshot;
use tokio::sync::watch;

use crate::credential::Cache;
use crate::svid::Svid;
use crate::worker::now;

/// One caller: its policy, its credentials, and who it is.
pub struct CallerState {
    snapshot: ArcSwapOption<Snapshot>,
    caller: ArcSwapOption<Caller>,
    credentials: Arc<Cache>,
    svid: ArcSwapOption<Svid>,
    fingerprint_key: ArcSwapOption<hmac::Key>,
    changed: watch::Sender<u64>,
}

impl CallerState {
    /// A caller of whom nothing is known yet.
    #[must_use]
    pub fn new(credentials: Arc<Cache>) -> Self {
        Self {
            snapshot: ArcSwapOption::empty(),
            caller: ArcSwapOption::empty(),
            credentials,
            svid: ArcSwapOption::empty(),
            fingerprint_key: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
        }
    }

    /// The policy of this moment; `None` before the first. Takes no lock.
    #[must_use]
    pub fn snapshot(&self) -> Option<Arc<Snapshot>> {
        self.snapshot.load_full()
    }

    /// The caller as attested last; `None` before that.
    #[must_use]
    pub fn caller(&self) -> Option<Arc<Caller>> {
        self.caller.load_full()
    }

    /// What is shown to this destination if it asks for a client certificate; `None` if nothing is.
    ///
    /// # Errors
    /// [`Code::NoCaller`] if it is to be the caller's certificate and there is none that is still good.
    pub fn shown_to(&self, destination: &Destination) -> Result<Option<Arc<Svid>>, Failure> {
        match destination.client_certificate {
            None => Ok(None),
            Some(ClientCertificate::Svid) => {
                let now = now();
                let svid = self.svid.load_full().filter(|svid| svid.ends > now);
                let missing = || {
                    let detail = "the destination is shown the workload's certificate, and the proxy has none that is good";
                    Failure::new(Code::NoCaller, detail)
                };
                svid.ok_or_else(missing).map(Some)
            }
        }
    }

    /// Ticks at each new snapshot and revocation, so that open exchanges are judged again.
    #[must_use]
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The caller's credentials.
    #[must_use]
    pub fn credentials(&self) -> &Cache {
        &self.credentials
    }

    /// Whether a credential was revoked.
    #[must_use]
    pub fn is_revoked(&self, grant: &GrantId) -> bool {
        self.credentials.is_revoked(grant)
    }

    /// Tells standing credentials apart without showing them; empty while the installation's key is not known.
    #[must_use]
    pub fn fingerprint(&self, value: &[u8]) -> String {
        let Some(key) = self.fingerprint_key.load_full() else { return String::new() };
        let tag = hmac::sign(&key, value);
        tag.as_ref()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Puts a new policy in force: from the next look on, everything is judged by it.
    pub fn set_snapshot(&self, snapshot: Snapshot) {
        let version = snapshot.version();
        self.snapshot.store(Some(Arc::new(snapshot)));
        self.credentials.raise_watermark(version);
        self.tick();
    }

    /// Forgets the policy: it was another caller's.
    pub fn forget_snapshot(&self) {
        self.snapshot.store(None);
        self.tick();
    }

    /// The caller was attested.
    pub fn set_caller(&self, caller: Caller) {
        self.caller.store(Some(Arc::new(caller)));
    }

    /// The caller has a new certificate.
    pub fn set_svid(&self, svid: Svid) {
        self.svid.store(Some(Arc::new(svid)));
    }

    /// The installation's key for fingerprints.
    pub fn set_fingerprint_key(&self, key: &[u8]) {
        self.fingerprint_key.store(Some(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, key))));
    }

    /// Credentials were revoked.
    pub fn revoke(&self, grants: impl IntoIterator<Item = GrantId>) {
        self.credentials.revoke(grants);
        self.tick();
    }

    fn tick(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

/// The callers of a proxy, each with its own state.
pub struct Callers {
    only: Arc<CallerState>,
}

impl Callers {
    /// A sidecar's: one caller, whoever connects.
    #[must_use]
    pub const fn sidecar(only: Arc<CallerState>) -> Self {
        Self { only }
    }

    /// Who a new connection belongs to.
    #[must_use]
    pub fn at_accept(&self) -> Option<Arc<CallerState>> {
        Some(self.only.clone())
    }
}
