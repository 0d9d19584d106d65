//! The control plane's own certificate authority: who it is, and who its proxies are.

use std::sync::{Arc, RwLock};

use anyhow::Context as _;
use model::{SpiffeId, UnixMillis};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest as _, Sha256};

use crate::store::{Store, StoredKey};

/// The name in the control plane's certificate, whatever address it has.
pub const SERVER_NAME: &str = "countersign-control";

const PURPOSE: &str = "ca";

const ROOT_LIFE_SECS: i64 = 10 * 365 * 86_400;

/// The server's certificate lives a week and is made anew every day.
const SERVER_LIFE_SECS: i64 = 7 * 86_400;
const SERVER_RENEW: std::time::Duration = std::time::Duration::from_secs(86_400);

/// Certificates of ours are backdated, for clocks that are behind.
const BACKDATED_SECS: i64 = 600;

/// The CA, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
    server: RwLock<Arc<CertifiedKey>>,
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
    /// Opens the installation's CA, or makes it.
    ///
    /// # Errors
    /// If the store fails, or what it holds is not ours.
    pub async fn open(store: &dyn Store, trust_domain: &str, now: UnixMillis) -> anyhow::Result<Arc<Self>> {
        if store.keys(PURPOSE).await?.is_empty() {
            store.add_key(&make_root(trust_domain, now)?, true).await?;
        }
        let stored = store.keys(PURPOSE).await?.into_iter().next().context("the installation has no CA")?;
        let root = CertificateDer::from(stored.public);
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(stored.private.expose().to_vec()));
        let key = KeyPair::try_from(&key).context("the CA's key can't be read")?;
        let issuer = Issuer::from_ca_cert_der(&root, key).context("the CA can't be read")?;
        let server = Arc::new(server_certificate(&issuer, &root, now)?);
        Ok(Arc::new(Self { issuer, root, server: RwLock::new(server) }))
    }

    /// The root's certificate.
    #[must_use]
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// The root's certificate in PEM.
    #[must_use]
    pub fn root_pem(&self) -> String {
        service::roots::to_pem(&self.root)
    }

    /// SHA-256 of the root's public key (SPKI), as a proxy can be told it.
    ///
    /// # Errors
    /// If the root can't be read.
    pub fn fingerprint(&self) -> anyhow::Result<String> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.root)?;
        let digest = Sha256::digest(parsed.public_key().raw);
        Ok(format!("sha256:{}", digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
    }

    /// The server's certificate of this moment.
    #[must_use]
    pub fn server(&self) -> Arc<CertifiedKey> {
        self.server.read().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Renews the server's certificate for as long as the program runs.
    pub async fn keep_renewing(self: Arc<Self>) {
        loop {
            tokio::time::sleep(SERVER_RENEW).await;
            match server_certificate(&self.issuer, &self.root, crate::now()) {
                Ok(fresh) => {
                    *self.server.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Arc::new(fresh);
                }
                Err(error) => tracing::error!("the server's certificate could not be renewed: {error:#}"),
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
        let (not_before, not_after) = validity(&mut params, now, life_secs);
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(Svid { certificates: vec![leaf.der().clone(), self.root.clone()], not_before, not_after })
    }
}

fn validity(params: &mut CertificateParams, now: UnixMillis, life: i64) -> (UnixMillis, UnixMillis) {
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

fn make_root(trust_domain: &str, now: UnixMillis) -> anyhow::Result<StoredKey> {
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
        id: "1".to_owned(),
        private: model::Secret::new(key.serialize_der()),
        public: certificate.der().to_vec(),
        created_at: now,
        active_from: now,
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
