//! By whose certificates upstreams are believed, what is shown to them, and the TLS configurations made from that.
//!
//! A session resumes only within one configuration, so one is kept for each upstream identity (all that
//! [`OriginKey`] holds) and what is offered to it: it resumes across connections and workers, and a ticket that was got
//! on behalf of one caller, from one server, or with one client certificate is never shown for another.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use lru::LruCache;
use model::destination::HttpVersion;
use model::{Code, Destination, Failure};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, SignatureScheme};

use super::pool::{Origin, OriginKey};

/// The roots of the image and the operator, and what is made of them.
pub struct Roots {
    standard: Arc<RootCertStore>,
    given: Mutex<LruCache<String, Arc<RootCertStore>>>,
    clients: Mutex<LruCache<(OriginKey, Vec<HttpVersion>), Client>>,
}

/// How to speak TLS to one upstream identity.
#[derive(Clone)]
pub struct Client {
    /// For a handshake.
    pub config: Arc<ClientConfig>,
    /// What it shows if it is asked.
    pub shown: Arc<Shown>,
}

/// Configurations that are kept; one with the tickets of a busy server has about 30 KiB.
const CLIENTS_MAX: NonZeroUsize = NonZeroUsize::new(256).expect("not zero");

/// Sets of roots that destinations bring.
const GIVEN_MAX: NonZeroUsize = NonZeroUsize::new(64).expect("not zero");

/// rustls keeps eight TLS 1.3 tickets for a server, each good once; a configuration knows one server.
const SESSIONS: usize = 8;

impl Roots {
    /// Takes the roots for destinations that bring none of their own.
    pub fn new(standard: RootCertStore) -> Self {
        Self {
            standard: Arc::new(standard),
            given: Mutex::new(LruCache::new(GIVEN_MAX)),
            clients: Mutex::new(LruCache::new(CLIENTS_MAX)),
        }
    }

    /// How to speak TLS to an origin of this destination, offering these versions of HTTP, best first.
    ///
    /// # Errors
    /// [`Code::UpstreamUntrusted`] if the destination's own roots can't be read: it then verifies by none at all.
    pub fn client(
        &self,
        origin: &Origin,
        destination: &Destination,
        offer: &[HttpVersion],
    ) -> Result<Client, Failure> {
        let key = (origin.key.clone(), offer.to_vec());
        // A poisoned lock means a panic while inserting; the cache itself is whole.
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let roots = self.roots(&origin.key.ca_bundle, destination)?;
        let certificate = origin.svid.as_ref().map(|svid| svid.key.clone());
        let client = make(roots, certificate, offer)?;
        clients.put(key, client.clone());
        Ok(client)
    }

    fn roots(&self, ca_bundle: &str, destination: &Destination) -> Result<Arc<RootCertStore>, Failure> {
        if ca_bundle.is_empty() {
            return Ok(self.standard.clone());
        }
        let mut given = self.given.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(roots) = given.get(ca_bundle) {
            return Ok(roots.clone());
        }
        let roots = Arc::new(parse(ca_bundle, destination)?);
        given.put(ca_bundle.to_owned(), roots.clone());
        Ok(roots)
    }
}

fn make(
    roots: Arc<RootCertStore>,
    certificate: Option<Arc<CertifiedKey>>,
    offer: &[HttpVersion],
) -> Result<Client, Failure> {
    let shown = Arc::new(Shown { certificate, asked: AtomicBool::new(false) });
    let mut config = ClientConfig::builder_with_provider(service::tls_provider::provider())
        .with_safe_default_protocol_versions()
        .map_err(|e| Failure::new(Code::UpstreamTls, "no TLS version is configured").because(e))?
        .with_root_certificates(roots)
        .with_client_cert_resolver(shown.clone());
    config.alpn_protocols = offer.iter().map(|version| version.alpn().to_vec()).collect();
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(Client { config: Arc::new(config), shown })
}

fn parse(pem: &str, destination: &Destination) -> Result<RootCertStore, Failure> {
    let refuse = || {
        let detail = format!("the caBundle of destination {} has no usable certificate", destination.name);
        Failure::new(Code::UpstreamUntrusted, detail)
    };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.map_err(|e| refuse().because(e))?).map_err(|e| refuse().because(e))?;
    }
    if roots.is_empty() { Err(refuse()) } else { Ok(roots) }
}

/// The client certificate, if there is one, and whether the server has ever asked for one: a server of TLS 1.2 that gets
/// none refuses with an alert that could mean anything.
#[derive(Debug)]
pub struct Shown {
    certificate: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl Shown {
    /// Whether the server has asked for a client certificate.
    pub fn was_asked_for(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Whether there is one to show.
    pub fn is_there(&self) -> bool {
        self.certificate.is_some()
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.certificate.clone()
    }

    fn has_certs(&self) -> bool {
        self.certificate.is_some()
    }
}

#[cfg(test)]
mod tests;
