//! The instance's own certificate authority: leaves for what we open, and the bundle by which the application trusts them.
//!
//! Made once for an instance, valid for years, useless in any other: runtimes read their bundle at start, so it must
//! never change under a running application.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use model::{Code, Failure, HostName, UnixMillis};
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

/// Leaves that are kept. An application can name any number of hosts; past this the cache starts anew.
const LEAVES_MAX: usize = 1024;

/// The CA, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    leaf_key: KeyPair,
    signing_key: Arc<dyn rustls::sign::SigningKey>,
    leaves: Mutex<HashMap<HostName, (Arc<CertifiedKey>, UnixMillis)>>,
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
        Ok(Self { issuer, certificate, leaf_key, signing_key, leaves: Mutex::default() })
    }

    /// The CA's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A leaf for exactly this name.
    ///
    /// # Errors
    /// [`Code::DownstreamHandshake`] if it can't be made.
    pub fn leaf(&self, name: &HostName, now: UnixMillis) -> Result<Arc<CertifiedKey>, Failure> {
        if let Some((leaf, renew_at)) = self.leaves().get(name)
            && *renew_at > now
        {
            return Ok(leaf.clone());
        }
        let leaf = self.mint(name, now).map_err(|error| {
            Failure::new(Code::DownstreamHandshake, format!("no certificate could be made for {name}"))
                .because(error.into_boxed_dyn_error())
        })?;
        let mut leaves = self.leaves();
        if leaves.len() >= LEAVES_MAX {
            leaves.clear();
        }
        leaves.insert(name.clone(), (leaf.clone(), now.plus_secs(LEAF_RENEW_SECS)));
        Ok(leaf)
    }

    fn leaves(&self) -> std::sync::MutexGuard<'_, HashMap<HostName, (Arc<CertifiedKey>, UnixMillis)>> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mint(&self, name: &HostName, now: UnixMillis) -> anyhow::Result<Arc<CertifiedKey>> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        // Long names do not fit a common name (RFC 5280, ub-common-name 64); verifiers read the SAN alone.
        params.subject_alt_names = vec![SanType::DnsName(name.as_str().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now, LEAF_LIFE_SECS);
        let leaf = params.signed_by(&self.leaf_key, &self.issuer)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        Ok(Arc::new(CertifiedKey::new(chain, self.signing_key.clone())))
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

/// Writes the application's trust bundle: the image's roots, the operator's and ours, since most runtimes take the
/// bundle instead of their own roots. A bundle that is there already and equal is not touched.
///
/// # Errors
/// If the directory can't be written to.
pub fn write_bundle(
    path: &Path,
    roots: &[CertificateDer<'static>],
    ours: &CertificateDer<'static>,
) -> anyhow::Result<()> {
    let unique: BTreeSet<&[u8]> = roots.iter().map(AsRef::as_ref).collect();
    let mut bundle = String::new();
    for der in std::iter::once(ours.as_ref()).chain(unique) {
        bundle.push_str(&service::roots::to_pem(der));
    }
    if std::fs::read(path).is_ok_and(|there| there == bundle.as_bytes()) {
        return Ok(());
    }
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).with_context(|| {
            format!("could not make the directory of the trust bundle {}", path.display())
        })?;
    }
    service::files::write_atomically(path, bundle.as_bytes(), 0o644)
        .with_context(|| format!("could not write the trust bundle {}", path.display()))
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
        let leaf = authority.leaf(&HostName::new("a.example").unwrap(), NOW).unwrap();
        assert!(verifies(&authority, &leaf, "a.example", NOW));
        assert!(verifies(&authority, &leaf, "a.example", NOW.plus_secs(-500)));
        assert!(!verifies(&authority, &leaf, "b.example", NOW));
        assert!(!verifies(&authority, &leaf, "a.example", NOW.plus_secs(86_401)));
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

    #[test]
    fn the_bundle_has_all_roots_and_is_written_once() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("s")).unwrap();
        let authority = Authority::open(&state, NOW).unwrap();
        let path = directory.path().join("trust/bundle.pem");
        let roots = [CertificateDer::from(vec![1, 2, 3])];
        write_bundle(&path, &roots, authority.certificate()).unwrap();
        let first = std::fs::metadata(&path).unwrap().modified().unwrap();
        write_bundle(&path, &roots, authority.certificate()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().modified().unwrap(), first);
        assert_eq!(std::fs::read_to_string(&path).unwrap().matches("BEGIN CERTIFICATE").count(), 2);
    }
}
