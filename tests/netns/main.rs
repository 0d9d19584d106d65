//! The real programs in network namespaces of their own, as root or as any user.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod sandbox;
mod service;
