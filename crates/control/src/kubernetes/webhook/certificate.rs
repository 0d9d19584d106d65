//! The certificate that the API server is shown: of this moment, while connections come.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use prometheus::IntGauge;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// How often files are looked at. The kubelet needs about a minute to bring a new Secret into a volume.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What is shown now; nothing until there is one.
#[derive(Debug)]
pub struct Shown {
    certificate: RwLock<Option<Arc<CertifiedKey>>>,
    expires: IntGauge,
}

impl Shown {
    /// Nothing yet; the gauge says when what is shown ends.
    #[must_use]
    pub fn new(expires: IntGauge) -> Self {
        Self { certificate: RwLock::default(), expires }
    }

    /// Shows this one from now on; says whether it is another one than before.
    pub fn replace(&self, certificate: CertifiedKey) -> bool {
        let mut shown = self.certificate.write().unwrap_or_else(PoisonError::into_inner);
        let other = shown.as_ref().is_none_or(|before| before.cert != certificate.cert);
        if other {
            self.expires.set(certificate.cert.first().map_or(0, end_of));
            *shown = Some(Arc::new(certificate));
        }
        other
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certificate.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// In seconds since 1970; 0 of what can't be read.
fn end_of(certificate: &CertificateDer<'_>) -> i64 {
    x509_parser::parse_x509_certificate(certificate)
        .map_or(0, |(_, parsed)| parsed.validity().not_after.timestamp())
}

/// A chain with its key.
///
/// # Errors
/// If they do not fit.
pub fn certified(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> anyhow::Result<CertifiedKey> {
    CertifiedKey::from_der(chain, key, &service::tls_provider::provider())
        .context("certificate and key do not fit")
}

/// A certificate and its key as files that somebody else keeps current.
#[derive(Clone, Debug)]
pub struct Files {
    /// Chain (PEM).
    pub certificate: PathBuf,
    /// Private key (PEM).
    pub key: PathBuf,
}

impl Files {
    /// Reads both.
    ///
    /// # Errors
    /// If they can't be read, or do not fit.
    pub fn read(&self) -> anyhow::Result<CertifiedKey> {
        let chain = service::roots::from_file(&self.certificate)?;
        let key = service::roots::key_from_file(&self.key)?;
        certified(chain, key).with_context(|| self.certificate.display().to_string())
    }

    /// Shows them anew whenever they change, for as long as the program runs. What can't be used is told, and the last
    /// one that could stays.
    pub async fn keep_current(self, shown: Arc<Shown>) {
        let mut told = String::new();
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            let error = match self.read() {
                Ok(certificate) => {
                    if shown.replace(certificate) {
                        tracing::info!("the certificate of the files has changed");
                    }
                    String::new()
                }
                Err(error) => format!("{error:#}"),
            };
            if !error.is_empty() && error != told {
                tracing::error!("the certificate stays as it was: {error}");
            }
            told = error;
        }
    }
}
