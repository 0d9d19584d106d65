//! What the rest of Countersign talks about: callers, destinations, credentials, decisions, audit events, errors.
//!
//! This crate is pure. It knows no runtime, no clock, no socket and no file; whoever needs "now" passes it in.
//! The types are the domain's own; `resources` has the shape of documents, `wire` the shape of messages.

pub mod audit;
pub mod caller;
pub mod credential;
pub mod decision;
pub mod destination;
pub mod error;
pub mod name;
pub mod redirect;
pub mod request;
pub mod slice;
pub mod text;
pub mod time;
pub mod version;

pub use caller::{Attestation, Caller, InstanceId, Subject};
pub use credential::{GrantId, Injection, Secret};
pub use decision::{Decision, DecisionId, Verdict};
pub use destination::Destination;
pub use error::{Code, Failure, Stage};
pub use name::{HostName, HostPattern, Namespace, ResourceRef, SpiffeId};
pub use request::RequestFacts;
pub use slice::Slice;
pub use time::UnixMillis;
pub use version::Version;
