//! Standing credentials: what an application sends of its own to prove who it is.

use http::HeaderMap;

use crate::connect::FIELDS_MAX;

/// Lower-case names of fields that hold a credential: RFC 9110 §11.6.2, RFC 6265, and those that common services made up
/// for themselves (AWS, Azure, Google, GitLab, Vault, Slack and what copied them).
const FIELDS: [&str; 17] = [
    "authorization",
    "cookie",
    "api-key",
    "apikey",
    "ocp-apim-subscription-key",
    "private-token",
    "job-token",
    "x-access-token",
    "x-amz-security-token",
    "x-api-key",
    "x-api-token",
    "x-auth-key",
    "x-auth-token",
    "x-functions-key",
    "x-goog-api-key",
    "x-ms-authorization-auxiliary",
    "x-vault-token",
];

/// Whether a field holds a credential, by its name.
#[must_use]
pub fn is_credential(name: &str) -> bool {
    FIELDS.iter().any(|field| name.eq_ignore_ascii_case(field))
}

/// The credentials in a header.
pub fn in_header(headers: &HeaderMap) -> impl Iterator<Item = (&str, &[u8])> {
    headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .filter(|(name, _)| is_credential(name))
}

/// The credentials in the head of a request as it came, with lower-case names; none if it can't be read.
#[must_use]
pub fn in_head(bytes: &[u8]) -> Vec<(String, &[u8])> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    if !matches!(head.parse(bytes), Ok(httparse::Status::Complete(_))) {
        return Vec::new();
    }
    let found = head.headers.iter().filter(|field| is_credential(field.name));
    found.map(|field| (field.name.to_ascii_lowercase(), field.value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_in_every_spelling() {
        let head =
            b"GET / HTTP/1.1\r\nHost: a\r\nAUTHORIZATION: Basic eA==\r\nX-Api-Key: k\r\nAccept: */*\r\n\r\n";
        let found = in_head(head);
        assert_eq!(found, [("authorization".to_owned(), &b"Basic eA=="[..]), ("x-api-key".to_owned(), b"k")]);
        assert!(in_head(&head[..30]).is_empty());
        assert!(in_head(b"\x16\x03\x01").is_empty());
    }
}
