//! Countersign in a Kubernetes cluster: pods get their proxy from a mutating webhook.

pub mod admission;
pub mod check;
pub mod crds;
pub mod inject;
pub mod roots;
pub mod webhook;
