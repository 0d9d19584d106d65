//! Names: of hosts, callers, namespaces and documents. Each is checked when made, so that a value is always good.
//!
//! They are shared and written without a copy: each call of the proxy names its caller, its destination and its
//! policies several times.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize, Serializer};

/// Why a text is not the name that it was taken for. The message says what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Not a DNS host name.
    #[error(
        "`{0}` is not a host name: it must be labels of letters, digits and hyphens, at most 253 characters"
    )]
    Host(String),
    /// A wildcard elsewhere than as the whole first label.
    #[error(
        "`{0}` is not a host pattern: `*` must be the whole first label, followed by at least two labels"
    )]
    Pattern(String),
    /// Not an RFC 1123 label or subdomain.
    #[error(
        "`{0}` is not a name: it must be lower-case letters, digits, `-` and `.`, at most 253 characters, and begin and end with a letter or digit"
    )]
    Resource(String),
    /// Not a SPIFFE ID.
    #[error(
        "`{0}` is not a SPIFFE ID: it must be spiffe://TRUST-DOMAIN/PATH without query, fragment, port or empty segments"
    )]
    Spiffe(String),
}

/// A DNS name in the form in which names are compared: lower-case A-labels (IDNA 2008, UTS 46), no trailing dot.
///
/// Never an IP address.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostName(Arc<str>);

impl HostName {
    /// Checks and normalises a name as an application or a document wrote it.
    ///
    /// # Errors
    /// [`InvalidName::Host`] for an empty name, an IP address, an illegal label, or more than 253 characters
    /// (RFC 1035 §2.3.4). An underscore is allowed, because real service names have it.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let refuse = || InvalidName::Host(text.to_owned());
        let undotted = text.strip_suffix('.').unwrap_or(text);
        let ascii = if undotted.is_ascii() {
            undotted.to_ascii_lowercase()
        } else {
            idna::domain_to_ascii_strict(undotted).map_err(|_| refuse())?
        };
        let labels_good = ascii.split('.').all(is_host_label);
        // The last label of a host name is never all digits (RFC 3696 §2): this keeps every spelling of an IPv4
        // address, decimal and octal ones too, from being taken for a name.
        let numeric_end = ascii
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()) || last.starts_with("0x"));
        if !labels_good || ascii.len() > 253 || numeric_end { Err(refuse()) } else { Ok(Self(ascii.into())) }
    }

    /// The normalised name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// So that a name can be looked up by its text.
impl Borrow<str> for HostName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

fn is_host_label(label: &str) -> bool {
    let bytes = label.as_bytes();
    let inner = |b: &u8| b.is_ascii_alphanumeric() || *b == b'-' || *b == b'_';
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes.iter().all(inner)
        && bytes[0] != b'-'
        && bytes[bytes.len() - 1] != b'-'
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for HostName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

/// The hosts of a destination: one name, or all names one label below a parent (`*.example.com`).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HostPattern {
    /// Exactly this name.
    Exact(HostName),
    /// Exactly one label, then this name: the rule of RFC 6125 §6.4.3 for certificates.
    OneLabelBelow(HostName),
}

impl HostPattern {
    /// Whether the pattern names `host`.
    #[must_use]
    pub fn matches(&self, host: &HostName) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::OneLabelBelow(parent) => {
                host.as_str().split_once('.').is_some_and(|(_, rest)| rest == parent.as_str())
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let Some(parent) = text.strip_prefix("*.") else {
            let wild = text.contains('*').then(|| InvalidName::Pattern(text.to_owned()));
            return wild.map_or_else(|| HostName::new(text).map(Self::Exact), Err);
        };
        let parent = HostName::new(parent)?;
        // Counted in the normalised name: `*.com.` must not pass for one with two labels.
        if parent.as_str().contains('.') {
            Ok(Self::OneLabelBelow(parent))
        } else {
            Err(InvalidName::Pattern(text.to_owned()))
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => write!(f, "{name}"),
            Self::OneLabelBelow(parent) => write!(f, "*.{parent}"),
        }
    }
}

/// Whether a text can name a document or a namespace: an RFC 1123 subdomain, as in Kubernetes.
#[must_use]
pub fn is_resource_name(text: &str) -> bool {
    let edge = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 253
        && edge(bytes[0])
        && edge(bytes[bytes.len() - 1])
        && bytes.iter().all(|b| edge(*b) || *b == b'-' || *b == b'.')
}

/// The tenant that a document or a caller belongs to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct Namespace(Arc<str>);

impl Namespace {
    /// # Errors
    /// [`InvalidName::Resource`] if the text is not an RFC 1123 subdomain.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        if is_resource_name(text) {
            Ok(Self(text.into()))
        } else {
            Err(InvalidName::Resource(text.to_owned()))
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Namespace {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(&text)
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> Self {
        (*namespace.0).to_owned()
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which document: `namespace/name`, or `name` alone for what is cluster-scoped. The kind is known from where it stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct ResourceRef {
    /// `None` for cluster-scoped documents.
    pub namespace: Option<Namespace>,
    /// An RFC 1123 subdomain.
    pub name: Arc<str>,
}

impl ResourceRef {
    /// # Errors
    /// [`InvalidName::Resource`] if `name` is not an RFC 1123 subdomain.
    pub fn new(namespace: Option<Namespace>, name: &str) -> Result<Self, InvalidName> {
        if is_resource_name(name) {
            Ok(Self { namespace, name: name.into() })
        } else {
            Err(InvalidName::Resource(name.to_owned()))
        }
    }
}

impl fmt::Display for ResourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl FromStr for ResourceRef {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        match text.split_once('/') {
            Some((namespace, name)) => Self::new(Some(Namespace::new(namespace)?), name),
            None => Self::new(None, text),
        }
    }
}

impl TryFrom<String> for ResourceRef {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<ResourceRef> for String {
    fn from(reference: ResourceRef) -> Self {
        reference.to_string()
    }
}

/// A SPIFFE ID (SPIFFE-ID specification §2): the name of a caller, proved by evidence, never taken from a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// Longest SPIFFE ID in bytes (SPIFFE-ID specification §2.3).
    pub const MAX_BYTES: usize = 2048;

    /// # Errors
    /// [`InvalidName::Spiffe`] unless the text is `spiffe://`, a trust domain of lower-case letters, digits, `.`,
    /// `-`, `_` (at most 255 bytes), and a path of non-empty segments of letters, digits, `.`, `-`, `_`, none of
    /// them `.` or `..`.
    pub fn new(text: &str) -> Result<Self, InvalidName> {
        let refuse = || InvalidName::Spiffe(text.to_owned());
        let rest = text.strip_prefix("spiffe://").ok_or_else(refuse)?;
        let (domain, path) = rest.split_once('/').ok_or_else(refuse)?;
        let domain_good = !domain.is_empty()
            && domain.len() <= 255
            && domain.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b));
        let segment_good = |segment: &str| {
            !segment.is_empty()
                && segment != "."
                && segment != ".."
                && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if domain_good && text.len() <= Self::MAX_BYTES && path.split('/').all(segment_good) {
            Ok(Self(text.into()))
        } else {
            Err(refuse())
        }
    }

    /// The whole URI.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part between `spiffe://` and the path.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        self.0["spiffe://".len()..].split('/').next().unwrap_or_default()
    }

    /// The path without its leading slash, as people read it: `ns/payments/sa/billing`.
    #[must_use]
    pub fn path(&self) -> &str {
        self.0["spiffe://".len()..].split_once('/').map_or("", |(_, path)| path)
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        Self::new(text)
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        Self::new(&text)
    }
}

impl From<SpiffeId> for String {
    fn from(id: SpiffeId) -> Self {
        (*id.0).to_owned()
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Serialize for HostName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Serialize for Namespace {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Serialize for SpiffeId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Serialize for ResourceRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_compared_in_one_form() {
        let cases = [
            ("API.Example.COM.", Some("api.example.com")),
            ("bücher.example", Some("xn--bcher-kva.example")),
            ("_grpc.svc", Some("_grpc.svc")),
            ("localhost", Some("localhost")),
            ("", None),
            (".", None),
            ("a..b", None),
            ("-a.example", None),
            ("127.0.0.1", None),
            ("2130706433", None),
            ("0x7f.0x1", None),
            ("a b", None),
            ("a/b", None),
        ];
        for (text, expected) in cases {
            let name = HostName::new(text).ok();
            assert_eq!(name.as_ref().map(HostName::as_str), expected, "{text}");
        }
    }

    #[test]
    fn a_wildcard_is_exactly_one_label() {
        let pattern: HostPattern = "*.example.com".parse().unwrap();
        let names = |text: &str| pattern.matches(&HostName::new(text).unwrap());
        assert!(names("a.example.com"));
        assert!(!names("a.b.example.com"));
        assert!(!names("example.com"));
        for bad in ["*", "*.com", "*.com.", "a*.example.com", "a.*.example.com"] {
            assert!(bad.parse::<HostPattern>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spiffe_ids_are_checked() {
        let id = SpiffeId::new("spiffe://demo/ns/payments/sa/billing").unwrap();
        assert_eq!((id.trust_domain(), id.path()), ("demo", "ns/payments/sa/billing"));
        for bad in [
            "spiffe://demo",
            "spiffe://demo/",
            "spiffe://Demo/a",
            "spiffe://demo/a//b",
            "spiffe://demo/../a",
            "spiffe://demo:1/a",
            "https://demo/a",
            "spiffe://demo/a?b",
            "spiffe:///a",
        ] {
            assert!(SpiffeId::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn references_read_back_as_they_are_written() {
        for text in ["payments/billing", "production"] {
            assert_eq!(text.parse::<ResourceRef>().unwrap().to_string(), text);
        }
        for bad in ["", "a/", "/a", "a/b/c", "A", "a_b"] {
            assert!(bad.parse::<ResourceRef>().is_err(), "{bad}");
        }
    }
}
