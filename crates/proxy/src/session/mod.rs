//! The proxy's side of the control plane: who we are, what the policy is, credentials, and the delivery of events.
//!
//! [`attest`] gets the session's certificate, [`channel`] makes mutually authenticated connections with it, [`run`] keeps
//! one session after the other alive; while one runs, [`watch`] receives policy and [`report`] delivers events.

pub mod attest;
pub mod channel;
pub mod report;
pub mod run;
pub mod trust;
pub mod watch;

pub use run::{Session, SessionConfig};
