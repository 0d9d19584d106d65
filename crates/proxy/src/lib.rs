//! countersign-proxy: the data plane.
//!
//! [`call`] reads as the table of the nine stages; each stage is a module of its name. [`session`] is the control
//! plane's side of it, [`worker`] the thread that carries calls.

pub mod answer;
pub mod audit;
pub mod authority;
pub mod bundle;
pub mod bypass;
pub mod call;
pub mod caller;
pub mod capture;
pub mod config;
pub mod credential;
mod delegate;
pub mod exchange;
pub mod forward;
pub mod limits;
pub mod memory;
pub mod metrics;
pub mod moment;
pub mod passage;
pub mod policy;
pub mod probe;
pub mod program;
pub mod protocol;
pub mod redact;
pub mod rewrite;
pub mod session;
pub mod socket;
pub mod splice;
pub mod standing;
pub mod state;
pub mod svid;
pub mod tls;
pub mod trust_port;
pub mod upstream;
pub mod way;
pub mod worker;
