//! Whom the proxy believes to be the control plane.

use std::sync::{Arc, RwLock};

use anyhow::{Context as _, bail};
use prost::Message as _;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use sha2::{Digest as _, Sha256};
use wire::v1;

use crate::state::StateDir;

const BUNDLE_FILE: &str = "bundle.pb";

/// Believes the control plane by roots that were given, or by the fingerprint of its root's key; and by the roots that
/// it sent itself since, before they were needed.
#[derive(Debug)]
pub struct Trust {
    given: Vec<CertificateDer<'static>>,
    fingerprint: Option<[u8; 32]>,
    sent: RwLock<Vec<CertificateDer<'static>>>,
}

impl Trust {
    /// Trust by what was given out of band, with the bundle that an earlier run received.
    ///
    /// # Errors
    /// If neither is given, or the kept bundle can't be read.
    pub fn new(
        given: Vec<CertificateDer<'static>>,
        fingerprint: Option<&str>,
        state: &StateDir,
    ) -> anyhow::Result<Self> {
        let fingerprint = fingerprint.map(parse_fingerprint).transpose()?;
        if given.is_empty() && fingerprint.is_none() {
            bail!("the control plane must be known by --control-ca or --control-fingerprint");
        }
        let sent = match state.read(BUNDLE_FILE)? {
            Some(bytes) => {
                roots_of(&v1::Bundle::decode(bytes.as_slice()).context("the kept bundle can't be read")?)
            }
            None => Vec::new(),
        };
        Ok(Self { given, fingerprint, sent: RwLock::new(sent) })
    }

    /// The control plane sent its roots, over a channel that was believed.
    ///
    /// # Errors
    /// If they can't be kept; they are believed all the same.
    pub fn learn(&self, bundle: &v1::Bundle, state: &StateDir) -> anyhow::Result<()> {
        let roots = roots_of(bundle);
        if roots.is_empty() {
            return Ok(());
        }
        *self.sent.write().unwrap_or_else(std::sync::PoisonError::into_inner) = roots;
        state
            .write(BUNDLE_FILE, &bundle.encode_to_vec())
            .context("the control plane's roots could not be kept")
    }

    fn roots(&self, presented: &[CertificateDer<'_>]) -> Vec<CertificateDer<'static>> {
        let mut roots = self.given.clone();
        roots.extend(self.sent.read().unwrap_or_else(std::sync::PoisonError::into_inner).iter().cloned());
        if let Some(fingerprint) = self.fingerprint {
            let pinned =
                presented.iter().filter(|certificate| key_fingerprint(certificate) == Some(fingerprint));
            roots.extend(pinned.map(|certificate| certificate.clone().into_owned()));
        }
        roots
    }
}

fn roots_of(bundle: &v1::Bundle) -> Vec<CertificateDer<'static>> {
    bundle.roots.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

fn parse_fingerprint(text: &str) -> anyhow::Result<[u8; 32]> {
    let hex = text.strip_prefix("sha256:").unwrap_or(text);
    let bytes: Option<Vec<u8>> = hex
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    bytes.and_then(|bytes| bytes.try_into().ok()).with_context(|| {
        format!("`{text}` is not a fingerprint: it must be sha256: and 64 hexadecimal digits")
    })
}

/// SHA-256 of a certificate's public key (SPKI).
fn key_fingerprint(certificate: &CertificateDer<'_>) -> Option<[u8; 32]> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(Sha256::digest(parsed.public_key().raw).into())
}

/// The verifier for connections to the control plane.
#[derive(Debug)]
pub struct Verifier(pub Arc<Trust>);

impl Verifier {
    fn webpki(&self, presented: &[CertificateDer<'_>]) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(self.0.roots(presented));
        WebPkiServerVerifier::builder_with_provider(Arc::new(store), service::tls_provider::provider())
            .build()
            .map_err(|_| rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer))
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.webpki(intermediates)?.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        )
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("the control plane speaks TLS 1.3".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = service::tls_provider::provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        service::tls_provider::provider().signature_verification_algorithms.supported_schemes()
    }
}
