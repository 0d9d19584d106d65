//! What changes in a request's header: data, not a closure.

use std::fmt;

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The headers that we own.
#[derive(Clone, Debug)]
pub struct Edit {
    owned: Vec<HeaderName>,
}

/// A value that the application had sent in a header that we own.
#[derive(Clone)]
pub struct Removed {
    /// The name as the application spelt it, lower-case.
    pub header: String,
    /// The value: a secret of the application's. Marked sensitive.
    pub value: HeaderValue,
}

impl Edit {
    /// An edit that removes what the application puts into these headers.
    #[must_use]
    pub fn new(owned: impl IntoIterator<Item = HeaderName>) -> Self {
        Self { owned: owned.into_iter().collect() }
    }

    /// Removes what the application put into headers that we own, in every spelling, and puts a credential in. Its
    /// header is one that we own.
    pub fn apply(
        &self,
        headers: &mut HeaderMap,
        credential: Option<(&HeaderName, &HeaderValue)>,
    ) -> Vec<Removed> {
        let removed = self.remove(headers, credential.map(|(name, _)| name));
        put(headers, credential);
        removed
    }

    /// Removes headers that we own from trailers; nothing is ever put into those. `also` is that of the credential.
    pub fn apply_to_trailers(&self, trailers: &mut HeaderMap, also: Option<&HeaderName>) -> Vec<Removed> {
        self.remove(trailers, also)
    }

    /// Removes what the application put into headers that we own, in every spelling. `also` is that of the credential.
    pub fn remove(&self, headers: &mut HeaderMap, also: Option<&HeaderName>) -> Vec<Removed> {
        let ours = |name: &HeaderName| self.owned.iter().chain(also).any(|owned| same(owned, name));
        // Of most requests nothing is removed, and then nothing is copied.
        let spellings: Vec<HeaderName> = headers.keys().filter(|name| ours(name)).cloned().collect();
        let mut removed = Vec::new();
        for spelling in spellings {
            if let http::header::Entry::Occupied(entry) = headers.entry(&spelling) {
                let (_, values) = entry.remove_entry_mult();
                removed.extend(values.map(|mut value| {
                    value.set_sensitive(true);
                    Removed { header: spelling.as_str().to_owned(), value }
                }));
            }
        }
        removed
    }
}

/// Puts a credential in. The last thing that happens to a header: what ends at this hop must be gone by then, since an
/// application can name any field there.
pub fn put(headers: &mut HeaderMap, credential: Option<(&HeaderName, &HeaderValue)>) {
    if let Some((name, value)) = credential {
        let mut value = value.clone();
        value.set_sensitive(true);
        headers.insert(name.clone(), value);
    }
}

/// Names that some server takes for one: CGI and WSGI turn `-` into `_` (RFC 3875 §4.1.18).
fn same(owned: &HeaderName, name: &HeaderName) -> bool {
    let fold = |byte: u8| if byte == b'_' { b'-' } else { byte };
    let (owned, name) = (owned.as_str().as_bytes(), name.as_str().as_bytes());
    owned.len() == name.len() && owned.iter().zip(name).all(|(a, b)| fold(*a) == fold(*b))
}

impl fmt::Debug for Removed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Removed").field("header", &self.header).finish_non_exhaustive()
    }
}

/// Why a credential can't be sent.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub &'static str);

/// Makes a header's value of a credential: one newline at its end, as files have it, is dropped.
///
/// # Errors
/// If it is empty, only white space, or has a byte that a header can't carry (RFC 9110 §5.5); nothing is repaired.
pub fn header_value(prefix: &str, credential: &[u8]) -> Result<HeaderValue, Unusable> {
    let credential = credential.strip_suffix(b"\n").unwrap_or(credential);
    let credential = credential.strip_suffix(b"\r").unwrap_or(credential);
    if credential.trim_ascii().is_empty() {
        return Err(Unusable("the credential is empty"));
    }
    if credential.iter().any(|byte| *byte < b' ' || *byte == 0x7f) {
        return Err(Unusable("the credential has a byte that a header can't carry"));
    }
    let mut value = HeaderValue::from_bytes(&[prefix.as_bytes(), credential].concat())
        .map_err(|_| Unusable("the credential has a byte that a header can't carry"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;

    use super::*;

    fn ours() -> Edit {
        Edit::new([HeaderName::from_static("x-api-key"), AUTHORIZATION])
    }

    fn apply(headers: &mut HeaderMap) -> Vec<Removed> {
        ours().apply(headers, Some((&AUTHORIZATION, &HeaderValue::from_static("Bearer canary"))))
    }

    #[test]
    fn exactly_one_value_is_left_and_it_is_ours() {
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        headers.append(AUTHORIZATION, HeaderValue::from_static("Bearer b"));
        headers.append("x_api_key", HeaderValue::from_static("c"));
        headers.append("x-api-key", HeaderValue::from_static("d"));
        headers.append("accept", HeaderValue::from_static("*/*"));
        let removed = apply(&mut headers);
        assert_eq!(removed.len(), 4);
        let left: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect();
        assert_eq!(left, [("accept", &b"*/*"[..]), ("authorization", b"Bearer canary")]);
    }

    #[test]
    fn trailers_lose_ours_and_gain_nothing() {
        let mut trailers = HeaderMap::new();
        trailers.append(AUTHORIZATION, HeaderValue::from_static("Bearer a"));
        assert_eq!(ours().apply_to_trailers(&mut trailers, Some(&AUTHORIZATION)).len(), 1);
        assert!(trailers.is_empty());
    }

    #[test]
    fn nothing_shows_itself() {
        let mut headers = HeaderMap::new();
        headers.append(AUTHORIZATION, HeaderValue::from_static("standing"));
        let removed = apply(&mut headers);
        let shown = format!("{removed:?} {headers:?}");
        assert!(!shown.contains("canary") && !shown.contains("standing"), "{shown}");
    }

    #[test]
    fn credentials_are_checked() {
        assert_eq!(header_value("Bearer ", b"abc\n").unwrap().as_bytes(), b"Bearer abc");
        assert_eq!(header_value("", b"abc\r\n").unwrap().as_bytes(), b"abc");
        for bad in [&b""[..], b"\n", b"  ", b"a\nb", b"a\r\nx: y", b"a\0b", b"a\x7f"] {
            assert!(header_value("Bearer ", bad).is_err(), "{bad:?}");
        }
    }
}
