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

/// What changes in a request to this destination.
#[must_use]
pub fn edit(snapshot: &Snapshot, destination: &Destination, grant: Option<&Grant>) -> Edit {
    let owned = snapshot.owned_headers(destination).iter();
    let edit = Edit::new(owned.filter_map(|name| HeaderName::from_bytes(name.as_bytes()).ok()));
    match grant {
        Some(grant) => edit.with(grant.header_name.clone(), grant.header.clone()),
        None => edit,
    }
}

/// Applies the change to a request's head; returns what the application had sent in headers that we own.
#[must_use]
pub fn apply(edit: &Edit, parts: &mut Parts) -> Vec<Removed> {
    let removed = edit.apply(&mut parts.headers);
    protocols::http::strip_hop_by_hop(&mut parts.headers);
    removed
}
