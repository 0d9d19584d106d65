//! Stage 5, policy: may it, with what?
//!
//! The evaluator is the `policy` crate's, the same as in the control plane; here is what a connection does with it:
//! where it goes before any request is read.

use std::sync::Arc;

use model::destination::{Protocol, TlsMode};
use model::slice::{Block, BlockTarget, Egress};
use model::{Code, Destination, HostName};
use policy::Snapshot;

use crate::bypass;
use crate::capture::accept::OriginalDestination;
use crate::worker::now;

/// What is done with a connection, once its first bytes are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// Its requests are read and judged one by one.
    Requests,
    /// A policy covers it, but only as a connection: judged once, then carried untouched.
    Connection(Arc<Destination>),
    /// No policy covers it: carried untouched to where the application dialled.
    Pass,
    /// The workload is bypassed: carried untouched to where the application dialled. With the bypass's id.
    Bypass(Arc<str>),
    /// Not carried. HTTP, and TLS that can be opened, get an answer with this code; the rest is closed.
    Refuse(Code),
}

/// Where a TLS connection goes.
///
/// `speaks_http` is whether the application offers a version of HTTP at all (ALPN).
pub fn route_tls(
    snapshot: &Snapshot,
    name: Option<&HostName>,
    original: &OriginalDestination,
    speaks_http: bool,
) -> Route {
    if let Some(bypassed) = bypassed(snapshot, name, original) {
        return bypassed;
    }
    let covering = match name {
        Some(name) => snapshot.cover(name, original.port()),
        None => by_address(snapshot, original),
    };
    match covering {
        Some(destination) if is_connection_only(destination) => Route::Connection(destination.clone()),
        // Without a name there is nothing to make a leaf for; another protocol is not ours to speak.
        Some(_) if name.is_none() || !speaks_http => Route::Refuse(Code::UnknownProtocol),
        Some(_) => Route::Requests,
        None => uncovered(snapshot),
    }
}

/// Where a connection goes that is neither TLS nor HTTP, or whose application waits for the server to speak. Only the
/// explicit proxy was told its name.
pub fn route_unknown(snapshot: &Snapshot, original: &OriginalDestination) -> Route {
    if let Some(bypassed) = bypassed(snapshot, original.name(), original) {
        return bypassed;
    }
    let covering = original
        .name()
        .and_then(|name| snapshot.cover(name, original.port()))
        .or_else(|| by_address(snapshot, original));
    match covering {
        Some(destination) if destination.protocol == Protocol::Tcp => Route::Connection(destination.clone()),
        Some(_) => Route::Refuse(Code::UnknownProtocol),
        None => uncovered(snapshot),
    }
}

/// Where a plain HTTP connection goes, by the host of its first request.
pub fn route_http(snapshot: &Snapshot, host: Option<&HostName>, original: &OriginalDestination) -> Route {
    if let Some(bypassed) = bypassed(snapshot, host, original) {
        return bypassed;
    }
    let covering = host
        .and_then(|host| snapshot.cover(host, original.port()))
        .or_else(|| by_address(snapshot, original));
    match covering {
        Some(destination) if destination.protocol == Protocol::Tcp => Route::Connection(destination.clone()),
        // Whether the clear is allowed is judged with each request.
        Some(_) => Route::Requests,
        None => uncovered(snapshot),
    }
}

fn by_address<'a>(snapshot: &'a Snapshot, original: &OriginalDestination) -> Option<&'a Arc<Destination>> {
    original.address().and_then(|address| snapshot.cover_address(address.ip(), address.port()))
}

fn bypassed(snapshot: &Snapshot, name: Option<&HostName>, original: &OriginalDestination) -> Option<Route> {
    let bypass = bypass::of_connection(snapshot, name, original, now())?;
    Some(Route::Bypass(bypass.id.as_str().into()))
}

fn is_connection_only(destination: &Destination) -> bool {
    destination.tls == TlsMode::Passthrough || destination.protocol == Protocol::Tcp
}

/// What happens to a call that no policy covers.
pub fn uncovered(snapshot: &Snapshot) -> Route {
    let blocked = |block: &Block| matches!(block.target, BlockTarget::Workload(_) | BlockTarget::Everything);
    if snapshot.slice().blocks.iter().any(blocked) {
        return Route::Refuse(Code::Blocked);
    }
    match snapshot.slice().egress {
        Egress::Observe => Route::Pass,
        Egress::Enforce => Route::Refuse(Code::NotCovered),
    }
}
