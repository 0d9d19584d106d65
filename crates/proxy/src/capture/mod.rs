//! Stage 1, capture: where was it really going?
//!
//! The kernel redirects the workload's connections to the proxy's port and remembers where they were going
//! ([`rules`] is the text that tells it so, [`conflicts`] what can't be asked for together, [`install`] puts it in
//! place); [`accept`] asks it. [`sentinel`] notices that the redirect is gone,
//! [`namesake`] that somebody else has the proxy's UID. An application that knows of the proxy asks the [`explicit`] one
//! itself.

pub mod accept;
pub mod conflicts;
pub mod explicit;
pub mod install;
pub mod namesake;
pub mod rules;
pub mod sentinel;
