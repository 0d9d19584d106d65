//! The instance's own certificate authority: it signs the leaves for what we open.
//!
//! Made once for an instance, valid for years, useless in any other: runtimes read their bundle at start, so it must
//! never change under a running application.

use std::sync::Arc;

use anyhow::Context as _;
use model::{HostName, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use crate::state::StateDir;

const KEY_FILE: &str = "ca.key";
const CERTIFICATE_FILE: &str = "ca.der";

/// The CA is valid this long: longer than any instance lives.
const CA_LIFE_SECS: i64 = 10 * 365 * 86_400;

/// A leaf lives a day, and is made anew half a day before its end.
const LEAF_LIFE_SECS: i64 = 86_400;
const LEAF_RENEW_SECS: i64 = 43_200;

/// Certificates of ours are backdated, for clocks that are behind.
const BACKDATED_SECS: i64 = 600;

/// The CA, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    leaf_key: KeyPair,
    signing_key: Arc<dyn rustls::sign::SigningKey>,
}

/// A leaf with its chain.
pub struct Leaf {
    /// What a handshake needs.
    pub key: Arc<CertifiedKey>,
    /// When it is to be made anew: well before its end.
    pub renew_at: UnixMillis,
}

impl Authority {
    /// Opens the instance's CA, or makes it if the instance is new.
    ///
    /// # Errors
    /// If the state directory can't be used, or what it holds is not ours.
    pub fn open(state: &StateDir, now: UnixMillis) -> anyhow::Result<Self> {
        let (key, certificate) = match (state.read(KEY_FILE)?, state.read(CERTIFICATE_FILE)?) {
            (Some(key), Some(certificate)) => (Zeroizing::new(key), CertificateDer::from(certificate)),
            _ => make_ca(state, now)?,
        };
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.to_vec()));
        let key = KeyPair::try_from(&key).context("the instance's CA key can't be read")?;
        let issuer =
            Issuer::from_ca_cert_der(&certificate, key).context("the instance's CA can't be read")?;
        let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let leaf_der = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
        let signing_key = service::tls_provider::provider().key_provider.load_private_key(leaf_der)?;
        Ok(Self { issuer, certificate, leaf_key, signing_key })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Makes a leaf for exactly this name. A signature is work for the CPU: see [`crate::tls::leaves`].
    ///
    /// # Errors
    /// If the cryptography fails.
    pub fn mint(&self, name: &HostName, now: UnixMillis) -> anyhow::Result<Leaf> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Long names do not fit a common name (RFC 5280, ub-common-name 64); verifiers read the SAN alone.
        params.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        // One key serves all leaves, and the library's serial is the key's hash: then all would have one serial number,
        // which some verifiers refuse (RFC 5280 §4.1.2.2).
        params.serial_number = Some(rand::random::<[u8; 16]>().to_vec().into());
        validity(&mut params, now, LEAF_LIFE_SECS);
        let leaf = params.signed_by(&self.leaf_key, &self.issuer)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        let key = Arc::new(CertifiedKey::new(chain, self.signing_key.clone()));
        Ok(Leaf { key, renew_at: now.plus_secs(LEAF_RENEW_SECS) })
    }
}

fn validity(params: &mut CertificateParams, now: UnixMillis, life: i64) {
    let moment = |at: UnixMillis| {
        let since = std::time::Duration::from_millis(u64::try_from(at.0).unwrap_or_default());
        std::time::SystemTime::UNIX_EPOCH + since
    };
    params.not_before = moment(now.plus_secs(-BACKDATED_SECS)).into();
    params.not_after = moment(now.plus_secs(life)).into();
}

fn make_ca(
    state: &StateDir,
    now: UnixMillis,
) -> anyhow::Result<(Zeroizing<Vec<u8>>, CertificateDer<'static>)> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let unique = format!("Countersign instance {:016x}", rand::random::<u64>());
    params.distinguished_name.push(DnType::CommonName, unique);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, CA_LIFE_SECS);
    let certificate = params.self_signed(&key)?;
    let private = Zeroizing::new(key.serialize_der());
    state.write(KEY_FILE, &private)?;
    state.write(CERTIFICATE_FILE, certificate.der())?;
    Ok((private, certificate.der().clone()))
}

#[cfg(test)]
mod tests {
    use rustls::RootCertStore;
    use rustls::pki_types::ServerName;

    use super::*;

    const NOW: UnixMillis = UnixMillis(1_795_514_400_000);

    fn verifies(authority: &Authority, leaf: &CertifiedKey, name: &str, now: UnixMillis) -> bool {
        let mut roots = RootCertStore::empty();
        roots.add(authority.certificate().clone()).unwrap();
        let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
            Arc::new(roots),
            service::tls_provider::provider(),
        )
        .build()
        .unwrap();
        let at =
            rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_millis(now.0 as u64));
        let name = ServerName::try_from(name).unwrap();
        rustls::client::danger::ServerCertVerifier::verify_server_cert(
            &*verifier,
            &leaf.cert[0],
            &leaf.cert[1..],
            &name,
            &[],
            at,
        )
        .is_ok()
    }

    #[test]
    fn leaves_are_for_exactly_their_name_and_a_day() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("s")).unwrap();
        let authority = Authority::open(&state, NOW).unwrap();
        let leaf = authority.mint(&HostName::new("a.example").unwrap(), NOW).unwrap().key;
        assert!(verifies(&authority, &leaf, "a.example", NOW));
        assert!(verifies(&authority, &leaf, "a.example", NOW.plus_secs(-500)));
        assert!(!verifies(&authority, &leaf, "b.example", NOW));
        assert!(!verifies(&authority, &leaf, "a.example", NOW.plus_secs(86_401)));
    }

    #[test]
    fn no_two_leaves_have_one_serial_number() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("s")).unwrap();
        let authority = Authority::open(&state, NOW).unwrap();
        let serial = |name: &str| {
            let leaf = authority.mint(&HostName::new(name).unwrap(), NOW).unwrap().key;
            x509_parser::parse_x509_certificate(&leaf.cert[0]).unwrap().1.raw_serial().to_vec()
        };
        let serials: std::collections::BTreeSet<_> =
            ["a.example", "a.example", "b.example"].into_iter().map(serial).collect();
        assert_eq!(serials.len(), 3);
    }

    #[test]
    fn it_survives_a_restart_and_is_another_for_another_instance() {
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            let state = StateDir::open(&directory.path().join(name)).unwrap();
            Authority::open(&state, NOW).unwrap().certificate().clone()
        };
        assert_eq!(open("a"), open("a"));
        assert_ne!(open("a"), open("b"));
    }
}
