//! What our programs do alike: configuration, telemetry, metrics, health, readiness, drain, signals, the TLS provider.
