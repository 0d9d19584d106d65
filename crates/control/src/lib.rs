//! countersign-control: the control plane.
//!
//! [`attest`], [`watch`], [`issue`] and [`report`] are what a proxy asks for, [`attendance`] ends the sessions of those that
//! are gone, [`administration`] what an administrator
//! does; [`store`] is what lasts, [`index`] the policy in force, [`audit`] the proof over everything.

pub mod administration;
pub mod attendance;
pub mod attest;
pub mod audit;
pub mod authority;
pub mod config;
pub mod discovery;
pub mod door;
pub mod explain;
pub mod index;
pub mod issue;
pub mod keys;
pub mod kubernetes;
pub mod metrics;
pub mod program;
pub mod proposal;
pub mod proxies;
pub mod report;
pub mod server;
pub mod services;
pub mod store;
pub mod watch;

use model::{Code, Failure, UnixMillis};

/// The wall clock: the one place that reads it.
#[must_use]
pub fn now() -> UnixMillis {
    UnixMillis::from_system(std::time::SystemTime::now())
}

/// A store that fails is a control plane that can't be asked.
#[must_use]
pub fn store_failure(error: store::StoreError) -> Failure {
    Failure::new(Code::ControlPlaneUnreachable, "the control plane's store failed").because(error)
}
