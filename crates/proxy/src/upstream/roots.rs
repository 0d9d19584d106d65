//! By whose certificates upstreams are believed, and the TLS configurations made from that.
//!
//! A configuration is made once for each set of roots and each protocol and then shared: sessions resume only within
//! one configuration, and one that is made anew for each connection never resumes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use model::destination::HttpVersion;
use model::{Code, Destination, Failure};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// The roots of the image and the operator, and what is made of them.
pub struct Roots {
    standard: Arc<RootCertStore>,
    configs: Mutex<HashMap<ConfigKey, Arc<ClientConfig>>>,
}

/// Which configuration: the destination's own roots (empty for the standard ones) and what is offered.
#[derive(Clone, PartialEq, Eq, Hash)]
struct ConfigKey {
    ca_bundle: String,
    offer: Vec<HttpVersion>,
}

/// Configurations that are kept at most; destinations are few, but their number is the control plane's.
const CONFIGS_MAX: usize = 1024;

impl Roots {
    /// Takes the roots for destinations that bring none of their own.
    pub fn new(standard: RootCertStore) -> Self {
        Self { standard: Arc::new(standard), configs: Mutex::default() }
    }

    /// The configuration for a destination, offering these versions of HTTP, best first.
    ///
    /// # Errors
    /// [`Code::UpstreamUntrusted`] if the destination's own roots can't be read: it then verifies by none at all.
    pub fn config(
        &self,
        destination: &Destination,
        offer: &[HttpVersion],
    ) -> Result<Arc<ClientConfig>, Failure> {
        let key = ConfigKey { ca_bundle: destination.ca_bundle.clone(), offer: offer.to_vec() };
        // A poisoned lock means a panic while inserting; the map itself is whole.
        let mut configs = self.configs.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(config) = configs.get(&key) {
            return Ok(config.clone());
        }
        let roots = if key.ca_bundle.is_empty() {
            self.standard.clone()
        } else {
            Arc::new(parse(&key.ca_bundle, destination)?)
        };
        let mut config = ClientConfig::builder_with_provider(service::tls_provider::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(Code::UpstreamTls, "no TLS version is configured").because(e))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = offer.iter().map(|version| version.alpn().to_vec()).collect();
        let config = Arc::new(config);
        if configs.len() >= CONFIGS_MAX {
            configs.clear();
        }
        configs.insert(key, config.clone());
        Ok(config)
    }
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
