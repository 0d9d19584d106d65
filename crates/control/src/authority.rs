//! The control plane's own certificate authority: who it is, and who its proxies are.

use std::sync::Arc;

use anyhow::Context as _;
use model::{SpiffeId, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use crate::store::{Store, StoredKey};

/// The name in the control plane's certificate, whatever address it has.
pub const SERVER_NAME: &str = "countersign-control";

/// What the roots are kept under.
pub(crate) const PURPOSE: &str = "ca";

const DAY: i64 = 86_400;

const ROOT_LIFE_SECS: i64 = 10 * 365 * DAY;

/// A root signs this long, then the next one does.
const ROOT_SIGNS_SECS: i64 = 5 * 365 * DAY;

/// A root is sent to proxies this long before it signs: longer than any proxy is away and comes back as itself.
pub const ROOT_AHEAD_SECS: i64 = 30 * DAY;

/// A root stays believed this long after the next one signs: longer than anything that it signed lives.
const ROOT_STAYS_SECS: i64 = 30 * DAY;

/// The server's certificate lives a week and is made anew every day.
const SERVER_LIFE_SECS: i64 = 7 * DAY;
const SERVER_RENEW_SECS: i64 = DAY;

/// How often rotation is looked at.
const LOOK_EVERY: std::time::Duration = std::time::Duration::from_secs(60);

/// Certificates of ours are backdated, for clocks that are behind.
const BACKDATED_SECS: i64 = 600;

/// The CA, ready to sign.
pub struct Authority {
    store: Arc<dyn Store>,
    trust_domain: String,
    state: watch::Sender<Arc<Generation>>,
}

/// The CA between two rotations.
pub struct Generation {
    issuer: Issuer<'static, KeyPair>,
    signs: CertificateDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    server: Arc<CertifiedKey>,
    server_made: UnixMillis,
}

impl Generation {
    /// The roots to believe: what signs first, then what will sign, and what has signed.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The roots in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> String {
        self.roots.iter().map(|root| service::roots::to_pem(root)).collect()
    }

    /// The server's certificate of this moment.
    #[must_use]
    pub fn server(&self) -> Arc<CertifiedKey> {
        self.server.clone()
    }

    /// The roots as proxies are sent them.
    #[must_use]
    pub fn bundle(&self) -> wire::v1::Bundle {
        wire::v1::Bundle { roots: self.roots.iter().map(|root| root.to_vec()).collect() }
    }

    fn of(keys: &[StoredKey], now: UnixMillis) -> anyhow::Result<Self> {
        let active = keys.iter().filter(|key| key.active_from <= now).max_by_key(|key| key.active_from);
        let active = active.context("the installation has no CA")?;
        let signs = CertificateDer::from(active.public.clone());
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(active.private.expose().to_vec()));
        let key = KeyPair::try_from(&key).context("the CA's key can't be read")?;
        let issuer = Issuer::from_ca_cert_der(&signs, key).context("the CA can't be read")?;
        let others = keys.iter().filter(|key| key.id != active.id);
        let others = others.map(|key| CertificateDer::from(key.public.clone()));
        let roots = std::iter::once(signs.clone()).chain(others).collect();
        let server = Arc::new(server_certificate(&issuer, &signs, now)?);
        Ok(Self { issuer, signs, roots, server, server_made: now })
    }

    fn is_stale(&self, keys: &[StoredKey], now: UnixMillis) -> bool {
        let active = keys.iter().filter(|key| key.active_from <= now).max_by_key(|key| key.active_from);
        now >= self.server_made.plus_secs(SERVER_RENEW_SECS)
            || keys.len() != self.roots.len()
            || active.is_some_and(|key| key.public != self.signs.as_ref())
    }
}

/// A certificate for a proxy.
pub struct Svid {
    /// Leaf first.
    pub certificates: Vec<CertificateDer<'static>>,
    /// From when.
    pub not_before: UnixMillis,
    /// Until when.
    pub not_after: UnixMillis,
}

impl Authority {
    /// Opens the installation's CA, or makes it. The very first root signs at once: it is given to proxies out of band.
    ///
    /// # Errors
    /// If the store fails, or what it holds is not ours.
    pub async fn open(
        store: Arc<dyn Store>,
        trust_domain: &str,
        now: UnixMillis,
    ) -> anyhow::Result<Arc<Self>> {
        if store.keys(PURPOSE).await?.is_empty() {
            store.add_key(&make_root(trust_domain, now, now)?, true).await?;
        }
        let first = Generation::of(&store.keys(PURPOSE).await?, now)?;
        let state = watch::channel(Arc::new(first)).0;
        Ok(Arc::new(Self { store, trust_domain: trust_domain.to_owned(), state }))
    }

    /// The CA as it is now.
    #[must_use]
    pub fn now(&self) -> Arc<Generation> {
        self.state.borrow().clone()
    }

    /// Tells when it changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Generation>> {
        self.state.subscribe()
    }

    /// SHA-256 of the public keys (SPKI) of the roots, as a proxy can be told one.
    ///
    /// # Errors
    /// If a root can't be read.
    pub fn fingerprints(&self) -> anyhow::Result<Vec<String>> {
        self.now().roots.iter().map(fingerprint).collect()
    }

    /// Makes the next root when the one that signs has signed long enough, retires what nothing rests on, and renews
    /// the server's certificate.
    ///
    /// # Errors
    /// If the store fails, or what it holds is not ours.
    pub async fn rotate(&self, now: UnixMillis) -> anyhow::Result<()> {
        let mut keys = self.store.keys(PURPOSE).await?;
        keys.sort_by_key(|key| key.active_from);
        let due = |newest: &StoredKey| now >= newest.active_from.plus_secs(ROOT_SIGNS_SECS - ROOT_AHEAD_SECS);
        if keys.last().is_some_and(due) {
            next_root(&*self.store, &self.trust_domain, now, ROOT_AHEAD_SECS).await?;
        }
        for pair in keys.windows(2) {
            let done = pair[1].active_from.plus_secs(ROOT_STAYS_SECS);
            self.store.retire_key(PURPOSE, &pair[0].id, done, now).await?;
        }
        let keys = self.store.keys(PURPOSE).await?;
        if self.now().is_stale(&keys, now) {
            self.state.send_replace(Arc::new(Generation::of(&keys, now)?));
        }
        Ok(())
    }

    /// Looks at rotation for as long as the program runs; `publish` is told when the roots change.
    pub async fn keep_rotating(self: Arc<Self>, publish: impl Fn(&Self) -> anyhow::Result<()>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let before = self.now();
            let rotated = self
                .rotate(crate::now())
                .await
                .and_then(|()| if before.roots == self.now().roots { Ok(()) } else { publish(&self) });
            if let Err(error) = rotated {
                tracing::error!("the control plane's CA could not be renewed: {error:#}");
            }
        }
    }

    /// An X.509-SVID (SPIFFE X509-SVID §4) for a caller and its key: one URI, no CA, for both sides of TLS.
    ///
    /// # Errors
    /// If it can't be made.
    pub fn svid(
        &self,
        caller: &SpiffeId,
        key: &impl PublicKeyData,
        life_secs: i64,
        now: UnixMillis,
    ) -> anyhow::Result<Svid> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(caller.as_str().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        // Without it the library takes the key's hash, which stays the same when a certificate is renewed: a serial number
        // is for one certificate (RFC 5280 §4.1.2.2).
        params.serial_number = Some(rand::random::<[u8; 16]>().to_vec().into());
        let (not_before, not_after) = validity(&mut params, now, life_secs);
        let state = self.now();
        let leaf = params.signed_by(key, &state.issuer)?;
        Ok(Svid { certificates: vec![leaf.der().clone(), state.signs.clone()], not_before, not_after })
    }
}

/// SHA-256 of a certificate's public key (SPKI): `sha256:` and hexadecimal digits.
///
/// # Errors
/// If the certificate can't be read.
pub fn fingerprint(certificate: &CertificateDer<'_>) -> anyhow::Result<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)?;
    let digest = Sha256::digest(parsed.public_key().raw);
    Ok(format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// Makes the next root: proxies are sent it now, and it signs after `ahead_secs`.
///
/// # Errors
/// If the store fails.
pub async fn next_root(
    store: &dyn Store,
    trust_domain: &str,
    now: UnixMillis,
    ahead_secs: i64,
) -> anyhow::Result<UnixMillis> {
    let from = now.plus_secs(ahead_secs);
    store.add_key(&make_root(trust_domain, now, from)?, false).await?;
    tracing::info!(signs_from = %from, "the next root of the control plane is published");
    Ok(from)
}

/// From a little before now until `life` seconds after it.
pub(crate) fn validity(
    params: &mut CertificateParams,
    now: UnixMillis,
    life: i64,
) -> (UnixMillis, UnixMillis) {
    // Certificates count in whole seconds.
    let now = UnixMillis::from_secs(now.as_secs());
    let (from, to) = (now.plus_secs(-BACKDATED_SECS), now.plus_secs(life));
    let moment = |at: UnixMillis| {
        let since = std::time::Duration::from_millis(u64::try_from(at.0).unwrap_or_default());
        std::time::SystemTime::UNIX_EPOCH + since
    };
    params.not_before = moment(from).into();
    params.not_after = moment(to).into();
    (from, to)
}

fn make_root(trust_domain: &str, now: UnixMillis, active_from: UnixMillis) -> anyhow::Result<StoredKey> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    let unique = format!("Countersign {trust_domain} {:08x}", rand::random::<u32>());
    params.distinguished_name.push(DnType::CommonName, unique);
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").as_str().try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    validity(&mut params, now, ROOT_LIFE_SECS);
    let certificate = params.self_signed(&key)?;
    Ok(StoredKey {
        purpose: PURPOSE.to_owned(),
        id: Sha256::digest(certificate.der()).iter().map(|byte| format!("{byte:02x}")).collect(),
        private: model::Secret::new(key.serialize_der()),
        public: certificate.der().to_vec(),
        created_at: now,
        active_from,
        retires_at: None,
    })
}

fn server_certificate(
    issuer: &Issuer<'static, KeyPair>,
    root: &CertificateDer<'static>,
    now: UnixMillis,
) -> anyhow::Result<CertifiedKey> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::new(vec![SERVER_NAME.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    validity(&mut params, now, SERVER_LIFE_SECS);
    let leaf = params.signed_by(&key, issuer)?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = service::tls_provider::provider().key_provider.load_private_key(private)?;
    Ok(CertifiedKey::new(vec![leaf.der().clone(), root.clone()], signing))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::seal::SealingKey;
    use crate::store::sqlite::SqliteStore;

    #[tokio::test]
    async fn a_root_is_sent_before_it_signs_and_believed_until_nothing_rests_on_it() {
        let directory = tempfile::tempdir().unwrap();
        let sealing = SealingKey::new(&[1; 32]).unwrap();
        let path = directory.path().join("c.db");
        let store = Arc::new(SqliteStore::open(&path, sealing, "control/0".into()).await.unwrap());
        let start = UnixMillis(1_795_514_400_000);
        let authority = Authority::open(store, "example.org", start).await.unwrap();
        let first = authority.now().roots()[0].clone();
        let mut changes = authority.changes();

        authority.rotate(start).await.unwrap();
        assert!(!changes.has_changed().unwrap());
        let ahead = start.plus_secs(ROOT_SIGNS_SECS - ROOT_AHEAD_SECS);
        authority.rotate(ahead).await.unwrap();
        assert!(changes.has_changed().unwrap(), "proxies are told");
        changes.mark_unchanged();
        assert_eq!(authority.now().roots().len(), 2);
        assert_eq!(authority.now().roots()[0], first, "it does not sign yet");

        let signs = start.plus_secs(ROOT_SIGNS_SECS);
        authority.rotate(signs).await.unwrap();
        let roots = authority.now().roots().to_vec();
        assert_eq!(roots[1], first, "what it signed is still good");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let caller = SpiffeId::new("spiffe://example.org/ns/a/sa/b").unwrap();
        let svid = authority.svid(&caller, &key, 3600, signs).unwrap();
        assert_eq!(svid.certificates[1], roots[0]);
        let renewed = authority.svid(&caller, &key, 3600, signs).unwrap();
        let serial = |svid: &Svid| {
            x509_parser::parse_x509_certificate(&svid.certificates[0]).unwrap().1.raw_serial().to_vec()
        };
        assert_ne!(serial(&renewed), serial(&svid), "a renewed certificate has a serial number of its own");
        assert_eq!(authority.now().server().cert[1], roots[0]);

        authority.rotate(signs.plus_secs(ROOT_STAYS_SECS)).await.unwrap();
        assert_eq!(authority.now().roots(), &roots[..1]);
    }

    #[tokio::test]
    async fn the_server_s_certificate_is_renewed_every_day() {
        let directory = tempfile::tempdir().unwrap();
        let sealing = SealingKey::new(&[1; 32]).unwrap();
        let path = directory.path().join("c.db");
        let store = Arc::new(SqliteStore::open(&path, sealing, "control/0".into()).await.unwrap());
        let start = UnixMillis(1_795_514_400_000);
        let authority = Authority::open(store, "example.org", start).await.unwrap();
        let before = authority.now().server().cert[0].clone();
        authority.rotate(start.plus_secs(DAY - 1)).await.unwrap();
        assert_eq!(authority.now().server().cert[0], before);
        authority.rotate(start.plus_secs(DAY)).await.unwrap();
        assert_ne!(authority.now().server().cert[0], before);
    }
}
