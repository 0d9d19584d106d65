//! What the control plane counts. Labels come from closed sets.

use model::Failure;
use prometheus::{IntCounterVec, IntGauge, Opts, Registry};

/// Counters of the control plane.
#[derive(Clone)]
pub struct Metrics {
    attestations: IntCounterVec,
    grants: IntCounterVec,
    /// Proxies whose watch is up.
    pub proxies: IntGauge,
    /// Bypasses in force.
    pub bypasses: IntGauge,
}

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// If one is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| IntCounterVec::new(Opts::new(name, help), &["code"]);
        let metrics = Self {
            attestations: counter("countersign_attestations_total", "Attestations; code `ok` if accepted.")?,
            grants: counter("countersign_grants_total", "Credentials asked for; code `ok` if made.")?,
            proxies: IntGauge::new("countersign_proxies", "Proxies whose watch is up.")?,
            bypasses: IntGauge::new("countersign_bypass_active", "Bypasses in force.")?,
        };
        registry.register(Box::new(metrics.attestations.clone()))?;
        registry.register(Box::new(metrics.grants.clone()))?;
        registry.register(Box::new(metrics.proxies.clone()))?;
        registry.register(Box::new(metrics.bypasses.clone()))?;
        Ok(metrics)
    }

    /// An attestation ended.
    pub fn attested(&self, refused: Option<&Failure>) {
        self.attestations.with_label_values(&[refused.map_or("ok", |failure| failure.code.as_str())]).inc();
    }

    /// A credential was made or refused.
    pub fn issued(&self, refused: Option<&Failure>) {
        self.grants.with_label_values(&[refused.map_or("ok", |failure| failure.code.as_str())]).inc();
    }
}
