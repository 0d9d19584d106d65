//! What is asked, in the form in which it is judged and recorded.

use std::collections::BTreeMap;

use crate::name::HostName;

/// The facts of one request that policy may look at.
///
/// `path` is byte for byte what is sent upstream: nothing is decoded or normalised between the judgement and the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestFacts {
    /// The kind of action.
    pub action: Action,
    /// HTTP method, upper case as sent; empty for `connect`.
    pub method: String,
    /// The judged host name.
    pub host: HostName,
    /// The destination's port.
    pub port: u16,
    /// Path without query, as sent; empty for `connect`.
    pub path: String,
    /// Headers that some policy names, by lower-case name; the rest is not carried.
    pub headers: BTreeMap<String, String>,
}

/// What kind of thing is done at a destination: the Cedar action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// One HTTP request.
    Http,
    /// One gRPC call: an HTTP POST, which rules see as such.
    Grpc,
    /// One connection whose contents are not looked into.
    Connect,
}

impl Action {
    /// The Cedar action's id.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Connect => "connect",
        }
    }
}
