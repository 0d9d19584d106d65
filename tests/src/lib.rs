//! The test harness: a world of namespaces, programs and clients as builders, so that a test reads as a story.

pub mod certificates;
pub mod sandbox;

pub use certificates::Certificates;
pub use sandbox::{As, Mode, Output, Place, Process, Sandbox};
