//! Tests that need no namespaces.

#![allow(clippy::unwrap_used, reason = "a test fails by it")]

mod architecture;
mod chart;
mod injection;
mod promises;
mod rules;
mod wire;
