//! Stage 1, capture: where was it really going?
//!
//! The kernel redirects the workload's connections to the proxy's port and remembers where they were going
//! ([`rules`] is the text that tells it so, [`install`] puts it in place); [`accept`] asks it.

pub mod accept;
pub mod install;
pub mod rules;
