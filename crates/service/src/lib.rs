//! What our programs do alike: configuration, telemetry, metrics, health, readiness, drain, signals, the TLS provider.

pub mod config;
pub mod drain;
pub mod files;
pub mod health;
pub mod process;
pub mod roots;
pub mod signals;
pub mod telemetry;
pub mod tls_provider;
pub mod trust;
