//! Stage 7, rewrite: what changes in the message?
//!
//! The change is data, made by the pure half ([`protocols::edit::Edit`]) and applied here: hop-by-hop fields go, the
//! headers that we own lose whatever the application put there, and the credential goes in.

use http::request::Parts;
use model::Destination;
use policy::Snapshot;
use protocols::edit::Edit;

use crate::credential::Grant;

/// What changes in a request to this destination.
pub fn edit(snapshot: &Snapshot, destination: &Destination, grant: Option<&Grant>) -> Edit {
    let owned = snapshot.owned_headers(destination);
    let edit = Edit::new(owned.iter());
    match grant {
        Some(grant) => edit.with(grant.header_name.clone(), grant.header.clone()),
        None => edit,
    }
}

/// Applies the change to a request's head; returns the names of owned headers that the application had sent.
pub fn apply(edit: &Edit, parts: &mut Parts) -> Vec<String> {
    let removed = edit.apply(&mut parts.headers);
    protocols::http::strip_hop_by_hop(&mut parts.headers);
    removed
}
