//! Stage 7, rewrite: what changes in the message?
//!
//! The change is data, made by the pure half ([`protocols::edit::Edit`]) and applied here: hop-by-hop fields go, the
//! headers that we own lose whatever the application put there, and the credential goes in.

use http::HeaderName;
use http::request::Parts;
use model::Destination;
use policy::Snapshot;
use protocols::edit::Edit;
pub use protocols::edit::Removed;

use crate::credential::Grant;

/// What changes in requests to this destination.
#[must_use]
pub fn edit(snapshot: &Snapshot, destination: &Destination) -> Edit {
    let owned = snapshot.owned_headers(destination).iter();
    Edit::new(owned.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()))
}

/// Applies the change to a request's head; returns what the application had sent in headers that we own.
#[must_use]
pub fn apply(edit: &Edit, grant: Option<&Grant>, parts: &mut Parts) -> Vec<Removed> {
    let credential = grant.map(|grant| (&grant.header_name, &grant.header));
    let removed = edit.apply(&mut parts.headers, credential);
    protocols::http::strip_hop_by_hop(&mut parts.headers);
    removed
}
