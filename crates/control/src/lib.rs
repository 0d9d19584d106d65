//! countersign-control: the control plane.

pub mod store;
