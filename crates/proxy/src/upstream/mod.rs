//! Stage 8, upstream: send it to the right server.
//!
//! [`resolve`] finds the addresses of the judged name ([`dns`] looks it up, [`address`] knows which may not be dialled),
//! [`dial`] connects to one of them, through a [`corporate`] proxy if need be, and [`connect`] verifies it; [`pool`] keeps connections by all that they can remember,
//! and [`send`] puts a request on one of them, in its version of HTTP ([`http1`], on an
//! [`http1_connection`]; [`http2`]) or as a tunnel
//! ([`websocket`]). [`once`] is for a request that no policy covers.

pub mod address;
pub mod connect;
pub mod corporate;
#[cfg(test)]
mod cross_talk;
pub mod dial;
pub mod dns;
pub mod failure;
pub mod http1;
pub mod http1_connection;
pub mod http2;
pub mod last_word;
pub mod loan;
pub mod once;
pub mod pool;
pub mod resolve;
pub mod roots;
pub mod send;
pub mod tls_failure;
pub mod websocket;

use model::Failure;

/// A failure of this stage, with whether the request may be sent again: nothing of it has reached the upstream.
pub struct SendFailure {
    /// What to tell the application.
    pub failure: Failure,
    /// The request, if it was given back unsent.
    pub unsent: Option<Box<crate::protocol::Message>>,
    /// The server has not looked at the request and says so (RFC 9113 §8.7): it may be sent again.
    pub untouched: bool,
}

impl From<Failure> for SendFailure {
    fn from(failure: Failure) -> Self {
        Self { failure, unsent: None, untouched: false }
    }
}
