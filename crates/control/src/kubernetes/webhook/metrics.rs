//! What the webhook counts. Labels come from closed sets.

use std::time::Duration;

use prometheus::{Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry};

use crate::kubernetes::admission::Outcome;

/// Counters of the webhook.
#[derive(Clone)]
pub struct Metrics {
    admissions: IntCounterVec,
    duration: Histogram,
    /// When the certificate that is shown ends, in seconds since 1970.
    pub certificate_expires: IntGauge,
}

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// If one is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let admissions = Opts::new(
            "countersign_webhook_admissions_total",
            "Pods, and debug containers, by what was decided and why; `dry_run` ones change nothing.",
        );
        let duration = HistogramOpts::new(
            "countersign_webhook_admission_seconds",
            "Time that a decision took, from the review to the answer.",
        )
        .buckets(vec![0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1.0]);
        let metrics = Self {
            admissions: IntCounterVec::new(admissions, &["decision", "reason", "dry_run"])?,
            duration: Histogram::with_opts(duration)?,
            certificate_expires: IntGauge::new(
                "countersign_webhook_certificate_expires_seconds",
                "When the certificate that the API server is shown ends, in seconds since 1970.",
            )?,
        };
        registry.register(Box::new(metrics.admissions.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        registry.register(Box::new(metrics.certificate_expires.clone()))?;
        Ok(metrics)
    }

    /// A decision was made.
    pub fn decided(&self, outcome: Outcome, dry_run: bool, took: Duration) {
        let dry_run = if dry_run { "true" } else { "false" };
        self.admissions.with_label_values(&[outcome.decision(), outcome.reason(), dry_run]).inc();
        self.duration.observe(took.as_secs_f64());
    }
}
