//! Evidence: what proves a workload.
//!
//! [`gather`] is the proxy's side, [`oidc`] the control plane's verification of tokens, [`caller`] how a caller is named
//! by what the evidence proved.

pub mod caller;
pub mod fetch;
pub mod gather;
pub mod oidc;

pub use caller::Verified;
pub use oidc::Verifier;
