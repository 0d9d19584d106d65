//! What the data path counts. Labels come from closed sets: codes, stages, outcomes; never a name that somebody else chose.

use std::time::Duration;

use model::{Code, Failure, Stage};
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

use crate::tls::distrust::Signal;

/// Counters of the data path.
#[derive(Clone)]
pub struct Metrics {
    /// Connections of the application that are open.
    pub connections: IntGauge,
    connections_refused: IntCounter,
    floods: IntCounter,
    calls: IntCounterVec,
    /// Of `calls`: looked up once, since every call counts there.
    completed: IntCounter,
    failures: IntCounterVec,
    passed: IntCounter,
    unrecorded: IntCounter,
    standing: IntCounter,
    untrusted: IntCounterVec,
    /// Fields of trailers that were not carried on.
    pub trailers_dropped: IntCounter,
    duration: Histogram,
}

impl Metrics {
    /// Registers all of them.
    ///
    /// # Errors
    /// If one is registered already.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let calls = IntCounterVec::new(
            Opts::new(
                "countersign_requests_total",
                "Requests, by how they ended: completed, cut, denied by policy, or failed.",
            ),
            &["result"],
        )?;
        let metrics = Self {
            completed: calls.with_label_values(&["completed"]),
            calls,
            connections: IntGauge::new(
                "countersign_connections_open",
                "Open connections of the application.",
            )?,
            connections_refused: IntCounter::new(
                "countersign_connections_refused_total",
                "Connections closed because the proxy was at its limit.",
            )?,
            floods: IntCounter::new(
                "countersign_http2_floods_total",
                "HTTP/2 connections of the application that were ended because of what it did too often.",
            )?,
            failures: IntCounterVec::new(
                Opts::new("countersign_failures_total", "Refusals and failures, by stage and code."),
                &["stage", "code"],
            )?,
            passed: IntCounter::new("countersign_passthrough_total", "Connections that passed untouched.")?,
            unrecorded: IntCounter::new(
                "countersign_events_unrecorded_total",
                "Calls without a credential that went on although the audit spool was full.",
            )?,
            standing: IntCounter::new(
                "countersign_standing_credential_seen_total",
                "Values of the application's own in headers that the proxy owns.",
            )?,
            untrusted: IntCounterVec::new(
                Opts::new(
                    "countersign_tls_untrusted_total",
                    "Connections of applications that do not trust the proxy (alert), or may not (the two ends of stream).",
                ),
                &["signal"],
            )?,
            trailers_dropped: IntCounter::new(
                "countersign_trailer_fields_dropped_total",
                "Fields of trailers that were not carried: not announced to an HTTP/1 peer, or not allowed there.",
            )?,
            duration: Histogram::with_opts(
                HistogramOpts::new(
                    "countersign_request_duration_seconds",
                    "From a request's arrival to its answer's head.",
                )
                .buckets(prometheus::exponential_buckets(0.000_25, 2.0, 16)?),
            )?,
        };
        registry.register(Box::new(metrics.connections.clone()))?;
        registry.register(Box::new(metrics.connections_refused.clone()))?;
        registry.register(Box::new(metrics.floods.clone()))?;
        registry.register(Box::new(metrics.calls.clone()))?;
        registry.register(Box::new(metrics.failures.clone()))?;
        registry.register(Box::new(metrics.passed.clone()))?;
        registry.register(Box::new(metrics.unrecorded.clone()))?;
        registry.register(Box::new(metrics.standing.clone()))?;
        registry.register(Box::new(metrics.untrusted.clone()))?;
        registry.register(Box::new(metrics.trailers_dropped.clone()))?;
        registry.register(Box::new(metrics.duration.clone()))?;
        // There from the start: a rate over a counter that appears with its first event misses that event.
        ["cut", "denied", "failed"]
            .iter()
            .for_each(|result| drop(metrics.calls.with_label_values(&[result])));
        Signal::ALL.iter().for_each(|signal| drop(metrics.untrusted.with_label_values(&[signal.as_str()])));
        Ok(metrics)
    }

    /// A call ended with an answer of the upstream.
    pub fn completed(&self) {
        self.completed.inc();
    }

    /// A call was cut by us.
    pub fn cut(&self, code: Code) {
        self.calls.with_label_values(&["cut"]).inc();
        self.count(code);
    }

    /// A request was answered by us: policy denied it, or it failed on its way.
    pub fn refused(&self, failure: &Failure) {
        let result = if failure.code.stage() == Stage::Policy { "denied" } else { "failed" };
        self.calls.with_label_values(&[result]).inc();
        self.count(failure.code);
    }

    /// A connection was refused, or failed.
    pub fn failed(&self, failure: &Failure) {
        self.count(failure.code);
    }

    fn count(&self, code: Code) {
        self.failures.with_label_values(&[code.stage().as_str(), code.as_str()]).inc();
    }

    /// An answer's head was sent this long after its request came.
    pub fn answered_after(&self, time: Duration) {
        self.duration.observe(time.as_secs_f64());
    }

    /// A connection was closed because of the limit.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// A connection was ended because of what it did too often.
    pub fn flood(&self) {
        self.floods.inc();
    }

    /// A connection passed untouched.
    pub fn passed(&self) {
        self.passed.inc();
    }

    /// A call without a credential went on unrecorded.
    pub fn unrecorded(&self) {
        self.unrecorded.inc();
    }

    /// The application sent a credential of its own in a header that we own.
    pub fn standing_credential(&self) {
        self.standing.inc();
    }

    /// An application does not trust the proxy, or may not.
    pub fn untrusted(&self, signal: Signal) {
        self.untrusted.with_label_values(&[signal.as_str()]).inc();
    }

    /// How often that was seen.
    #[must_use]
    pub fn untrusted_seen(&self, signal: Signal) -> u64 {
        self.untrusted.with_label_values(&[signal.as_str()]).get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_once_by_how_it_ended() {
        let registry = Registry::new();
        let metrics = Metrics::new(&registry).unwrap();
        metrics.completed();
        metrics.cut(Code::NoPolicyAllows);
        metrics.refused(&Failure::new(Code::NoPolicyAllows, "no policy allows it"));
        metrics.refused(&Failure::new(Code::UpstreamUnreachable, "nobody listens"));
        // No request: a connection.
        metrics.failed(&Failure::new(Code::NoPolicyAllows, "no policy allows it"));
        let count = |result| metrics.calls.with_label_values(&[result]).get();
        assert_eq!(["completed", "cut", "denied", "failed"].map(count), [1; 4]);
    }

    #[test]
    fn counters_end_in_total() {
        let registry = Registry::new();
        let _metrics = Metrics::new(&registry).unwrap();
        for family in registry.gather() {
            let counter = family.get_field_type() == prometheus::proto::MetricType::COUNTER;
            assert_eq!(family.name().ends_with("_total"), counter, "{}", family.name());
        }
    }
}
