//! Countersign in a Kubernetes cluster: pods get their proxy from a mutating webhook, and custom resources are the
//! documents.

pub mod admission;
pub mod check;
pub mod controller;
pub mod crds;
pub mod inject;
pub mod roots;
pub mod validate;
pub mod webhook;
