//! The caller's own certificate, as it is shown to upstreams that ask for one (`clientCertificate: svid`).
//!
//! The same X.509-SVID by which the proxy speaks to the control plane: there is no secret to store, it names the caller
//! as the control plane attested it, and it ends within hours.

use std::sync::Arc;

use aws_lc_rs::digest;
use model::{Code, Failure, UnixMillis};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use crate::session::channel::Identity;

/// A certificate with its key.
#[derive(Debug)]
pub struct Svid {
    /// What a handshake needs.
    pub key: Arc<CertifiedKey>,
    /// When it ends.
    pub ends: UnixMillis,
    fingerprint: [u8; 32],
}

impl Svid {
    /// The certificate of a session that ends then.
    ///
    /// # Errors
    /// [`Code::NoCaller`] if certificate and key are not of one pair, or there is none.
    pub fn new(identity: &Identity, ends: UnixMillis) -> Result<Self, Failure> {
        let unusable = || Failure::new(Code::NoCaller, "the workload's certificate can't be used");
        let leaf = identity.certificates.first().ok_or_else(unusable)?;
        let hash = digest::digest(&digest::SHA256, leaf);
        let fingerprint = hash.as_ref().try_into().map_err(|_| unusable())?;
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key.to_vec()));
        let provider = service::tls_provider::provider();
        let key = CertifiedKey::from_der(identity.certificates.clone(), private, &provider)
            .map_err(|error| unusable().because(error))?;
        Ok(Self { key: Arc::new(key), ends, fingerprint })
    }

    /// Tells one certificate from every other: SHA-256 of it.
    #[must_use]
    pub const fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }
}
