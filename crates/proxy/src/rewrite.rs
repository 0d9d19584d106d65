//! Stage 7, rewrite: what changes in the message?
//!
//! The change is data, made by the pure half ([`protocols::edit::Edit`]) and applied here: hop-by-hop fields go, the
//! headers that we own lose whatever the application put there, and the credential goes in.

use http::request::Parts;
use http::{HeaderName, HeaderValue};
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
    rewrite(edit, grant.map(|grant| (&grant.header_name, &grant.header)), parts)
}

fn rewrite(edit: &Edit, credential: Option<(&HeaderName, &HeaderValue)>, parts: &mut Parts) -> Vec<Removed> {
    let removed = edit.remove(&mut parts.headers, credential.map(|(name, _)| name));
    protocols::http::strip_hop_by_hop(&mut parts.headers);
    protocols::edit::put(&mut parts.headers, credential);
    removed
}

#[cfg(test)]
mod tests {
    use http::{Request, header};

    use super::*;

    #[test]
    fn an_application_can_t_have_our_credential_end_at_this_hop() {
        let request =
            Request::builder().header("connection", "close, Authorization").header("authorization", "theirs");
        let mut parts = request.body(()).unwrap().into_parts().0;
        let ours = HeaderValue::from_static("ours");
        assert_eq!(rewrite(&Edit::new([]), Some((&header::AUTHORIZATION, &ours)), &mut parts).len(), 1);
        assert_eq!(parts.headers.get(header::AUTHORIZATION), Some(&HeaderValue::from_static("ours")));
        assert_eq!(parts.headers.len(), 1);
    }
}
