//! Documents compiled to Cedar, and the decision.
//!
//! Pure: no clock, no socket. The control plane [`compile`]s documents and cuts one [`model::Slice`] for each caller;
//! proxy, control plane and command line build the same [`Snapshot`] from it and come to the same decision.

pub mod cedar;
pub mod compile;
pub mod matching;
pub mod snapshot;
pub mod windows;

pub use compile::{Compiled, compile, expressions};
pub use snapshot::{Explanation, Question, Snapshot};
