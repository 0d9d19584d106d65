//! Evidence: what proves a workload.
//!
//! [`gather`] is the proxy's side, [`oidc`] the control plane's verification of tokens, [`kubernetes`] what an API server
//! is asked beyond them, [`caller`] how a caller is named by what the evidence proved.

pub mod caller;
pub mod fetch;
pub mod gather;
pub mod kubernetes;
pub mod oidc;

pub use caller::Verified;
pub use oidc::Verifier;
