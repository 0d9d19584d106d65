//! Bytes and messages, without sockets: what a connection is, what a ClientHello says, whom an HTTP request is for, what
//! changes in it, and how an answer of ours reads.
//!
//! Everything here is pure and meets strangers' bytes; each parser has a fuzz target in `tests/fuzz`.

pub mod answer;
pub mod client_hello;
pub mod connect;
pub mod detect;
pub mod edit;
pub mod http;
pub mod http1;
pub mod redact;
pub mod standing;

/// Bytes or fields that are not what they should be, or could be read in two ways. Says what is wrong, without
/// repeating values that may be secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(pub &'static str);
