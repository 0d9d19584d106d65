//! Whom an HTTP request is for, whether it can be read in only one way, and which of its fields end at the next hop.

use std::net::IpAddr;

use http::header::{
    ALT_SVC, AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_TYPE, COOKIE, EXPECT, HOST, HeaderMap, HeaderName, HeaderValue, LOCATION, MAX_FORWARDS,
    PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, RANGE, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
    WWW_AUTHENTICATE,
};
use http::request::Parts;
use http::{Method, Version};
use model::HostName;

use crate::Malformed;

/// The host of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A name, in the form in which names are compared.
    Name(HostName),
    /// An address.
    Address(IpAddr),
}

/// Whom a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// The host.
    pub host: Host,
    /// The port, if it is named.
    pub port: Option<u16>,
}

/// Why a request has no one authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unclear {
    /// There is none, or it is not one.
    Malformed(Malformed),
    /// Its target and its Host field name different servers.
    Disagree,
}

impl From<Malformed> for Unclear {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

/// The one authority of a request (RFC 9112 §3.2, RFC 9113 §8.3.1). `expected` is the name that it will have most of the
/// time, which then need not be read again.
///
/// # Errors
/// If there is none, if there are several that differ, or if it has user information.
pub fn authority_of(parts: &Parts, expected: Option<&HostName>) -> Result<Authority, Unclear> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let from_host = match (hosts.next(), hosts.next()) {
        (None, _) => None,
        (Some(host), None) => Some(host_value(host, expected)?),
        (Some(_), Some(_)) => return Err(Malformed("the request has two Host fields").into()),
    };
    let from_target =
        parts.uri.authority().map(|authority| authority_in(authority.as_str(), expected)).transpose()?;
    match (from_target, from_host) {
        // RFC 9112 §3.2: a request of HTTP/1.1 without Host is refused, even in absolute-form.
        (_, None) if parts.version == Version::HTTP_11 => {
            Err(Malformed("the request has no Host field").into())
        }
        (None, None) => Err(Malformed("the request names no host").into()),
        (Some(target), Some(host)) if !agree(&target, &host, parts) => Err(Unclear::Disagree),
        (Some(authority), _) | (None, Some(authority)) => Ok(authority),
    }
}

/// Whether a target and a Host field name the same: a port that one leaves out is the scheme's, and that of a CONNECT, which
/// has no scheme, may be left out of Host (many clients do).
fn agree(target: &Authority, host: &Authority, parts: &Parts) -> bool {
    let default = match parts.uri.scheme_str() {
        Some("http") => Some(80),
        Some("https") => Some(443),
        _ if parts.method == Method::CONNECT && host.port.is_none() => target.port,
        _ => None,
    };
    target.host == host.host && target.port.or(default) == host.port.or(default)
}

fn host_value(value: &HeaderValue, expected: Option<&HostName>) -> Result<Authority, Malformed> {
    authority_in(value.to_str().map_err(|_| Malformed("the Host field is not ASCII"))?, expected)
}

fn authority_in(text: &str, expected: Option<&HostName>) -> Result<Authority, Malformed> {
    match expected {
        Some(name) if name.as_str() == text => Ok(Authority { host: Host::Name(name.clone()), port: None }),
        _ => parse_authority(text),
    }
}

/// Reads `host`, `host:port`, `[v6]`, `[v6]:port`.
///
/// # Errors
/// If it is something else: user information, an empty host, a port that is not a number.
pub fn parse_authority(text: &str) -> Result<Authority, Malformed> {
    if text.contains('@') {
        return Err(Malformed("the request's host has user information"));
    }
    if let Some(bracketed) = text.strip_prefix('[') {
        let (address, rest) = bracketed.split_once(']').ok_or(Malformed("an address without its bracket"))?;
        let address = address.parse().map(IpAddr::V6).map_err(|_| Malformed("not an IPv6 address"))?;
        return Ok(Authority { host: Host::Address(address.to_canonical()), port: port(rest)? });
    }
    let split = text.find(':').unwrap_or(text.len());
    let (host, rest) = text.split_at(split);
    let host = match host.parse() {
        Ok(address) => Host::Address(IpAddr::V4(address)),
        Err(_) => Host::Name(HostName::new(host).map_err(|_| Malformed("the request's host is not a name"))?),
    };
    Ok(Authority { host, port: port(rest)? })
}

fn port(rest: &str) -> Result<Option<u16>, Malformed> {
    match rest.strip_prefix(':') {
        None if rest.is_empty() => Ok(None),
        // RFC 3986 §3.2.3 allows an empty port; it means the scheme's.
        Some("") => Ok(None),
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
            digits.parse().map(Some).map_err(|_| Malformed("the port is not one"))
        }
        _ => Err(Malformed("the request's host has something after it that is no port")),
    }
}

/// Whether a request can be read in only one way.
///
/// # Errors
/// For each ambiguity that the HTTP libraries let through.
pub fn check_request(parts: &Parts) -> Result<(), Malformed> {
    let headers = &parts.headers;
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let (length, encoding) = (lengths.next(), encodings.next());
    if lengths.next().is_some() {
        return Err(Malformed("the request has two Content-Length fields"));
    }
    if length.is_some_and(|length| !is_number(length)) {
        return Err(Malformed("the request's Content-Length is not a number"));
    }
    if let Some(encoding) = encoding {
        if length.is_some() {
            return Err(Malformed("the request has both Transfer-Encoding and Content-Length"));
        }
        if parts.version != Version::HTTP_11 {
            return Err(Malformed("only HTTP/1.1 has Transfer-Encoding"));
        }
        if encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed("the request's Transfer-Encoding is something else than chunked"));
        }
    }
    // RFC 9112 §3.2: a target that is an authority is CONNECT's, and every other one has a path.
    let is_authority = parts.uri.authority().is_some() && parts.uri.scheme().is_none();
    let target = parts.uri.path_and_query().map_or("", http::uri::PathAndQuery::as_str);
    if parts.method != Method::CONNECT && (is_authority || target.starts_with('?')) {
        return Err(Malformed("the request's target has no path"));
    }
    let asterisk = parts.uri.path() == "*";
    if asterisk && parts.method != Method::OPTIONS {
        return Err(Malformed("only OPTIONS has the target *"));
    }
    Ok(())
}

/// Whether a request expects something that nobody on its way promises: there is no expectation but `100-continue`
/// (RFC 9110 §10.1.1).
#[must_use]
pub fn expects_another(headers: &HeaderMap) -> bool {
    headers.get_all(EXPECT).iter().any(|value| !value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Whether an answer of HTTP/1 can be read in only one way.
///
/// # Errors
/// For each ambiguity of its framing that the HTTP libraries let through.
pub fn check_answer(headers: &HeaderMap) -> Result<(), Malformed> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let length = lengths.next();
    if lengths.next().is_some() {
        return Err(Malformed("the answer has two Content-Length fields"));
    }
    if length.is_some_and(|length| !is_number(length)) {
        return Err(Malformed("the answer's Content-Length is not a number"));
    }
    let Some(encoding) = encodings.next() else { return Ok(()) };
    if length.is_some() {
        return Err(Malformed("the answer has both Transfer-Encoding and Content-Length"));
    }
    if encodings.next().is_some() || !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") {
        return Err(Malformed("the answer's Transfer-Encoding is something else than chunked"));
    }
    Ok(())
}

fn is_number(value: &HeaderValue) -> bool {
    !value.is_empty() && value.as_bytes().iter().all(u8::is_ascii_digit)
}

/// Removes what ends at this hop (RFC 9110 §7.6.1): `Connection` and what it names, and the fields that are of one
/// connection by nature. `TE: trailers` stays, because we carry trailers.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    static ALWAYS: [HeaderName; 4] = [
        TRANSFER_ENCODING,
        UPGRADE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ];
    // Most messages have one of them or none; one look at all names costs less than to look for each.
    let (mut connection, mut te, mut always) = (false, false, false);
    for name in headers.keys() {
        connection |= *name == CONNECTION;
        te |= *name == TE;
        always |= ALWAYS.contains(name);
    }
    if connection {
        for name in connection_names(headers) {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    if always {
        for name in &ALWAYS {
            headers.remove(name);
        }
    }
    if te
        && let Some(te) = headers.remove(TE)
        && te.as_bytes().split(|b| *b == b',').any(|t| t.trim_ascii().eq_ignore_ascii_case(b"trailers"))
    {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
}

/// Removes from trailers what a recipient must not take from there (RFC 9110 §6.5.1): framing, routing, what says how to
/// read the content, authentication and state; and what leads elsewhere.
pub fn clean_trailers(trailers: &mut HeaderMap) {
    const NEVER: [HeaderName; 24] = [
        ALT_SVC,
        AUTHORIZATION,
        CACHE_CONTROL,
        CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        COOKIE,
        EXPECT,
        HOST,
        MAX_FORWARDS,
        PROXY_AUTHENTICATE,
        PROXY_AUTHORIZATION,
        RANGE,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
        UPGRADE,
        WWW_AUTHENTICATE,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
        LOCATION,
    ];
    for name in NEVER {
        trailers.remove(name);
    }
}

/// The fields that `Connection` names, without those that it may not name: a peer can't have the host or the framing
/// removed.
#[must_use]
pub fn connection_names(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|b| *b == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| ![HOST, CONTENT_LENGTH, TE, CONNECTION].contains(name))
        .collect()
}

/// gRPC over HTTP/2: a POST of `application/grpc` with an optional format (gRPC over HTTP2, "Requests"). gRPC-Web is
/// ordinary HTTP.
#[must_use]
pub fn is_grpc(method: &Method, headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    method == Method::POST
        && kind
            .and_then(|kind| kind.strip_prefix(b"application/grpc"))
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';' | b' ')))
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn parts(version: Version, uri: &str, fields: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().version(version).uri(uri);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn one_authority_decides() {
        let (one, two) = (Version::HTTP_11, Version::HTTP_2);
        let cases: [(Version, &str, &[(&str, &str)], Option<(&str, Option<u16>)>); 14] = [
            (one, "/", &[("host", "A.example")], Some(("a.example", None))),
            (one, "/", &[("host", "a.example:8443")], Some(("a.example", Some(8443)))),
            (one, "/", &[], None),
            (one, "/", &[("host", "a.example"), ("host", "a.example")], None),
            (one, "http://a.example/", &[("host", "a.example")], Some(("a.example", None))),
            (one, "http://a.example/", &[("host", "b.example")], None),
            (one, "http://a.example/", &[], None),
            (one, "/", &[("host", "u@a.example")], None),
            (one, "/", &[("host", "a.example/b")], None),
            (one, "/", &[("host", "")], None),
            (one, "/", &[("host", "a.example:x")], None),
            (one, "/", &[("host", "a.example:70000")], None),
            (two, "https://a.example/", &[], Some(("a.example", None))),
            (two, "https://a.example/", &[("host", "b.example")], None),
        ];
        for (version, uri, fields, expected) in cases {
            let parts = parts(version, uri, fields);
            let authority = authority_of(&parts, None).ok();
            let expected = expected
                .map(|(name, port)| Authority { host: Host::Name(HostName::new(name).unwrap()), port });
            assert_eq!(authority, expected, "{uri} {fields:?}");
            let name = HostName::new("a.example").unwrap();
            assert_eq!(authority_of(&parts, Some(&name)).ok(), expected, "expected: {uri} {fields:?}");
        }
        assert_eq!(
            parse_authority("[::ffff:127.0.0.1]:80"),
            Ok(Authority { host: Host::Address("127.0.0.1".parse().unwrap()), port: Some(80) })
        );
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        let refused: [&[(&str, &str)]; 7] = [
            &[("content-length", "1"), ("content-length", "1")],
            &[("content-length", "+1")],
            &[("content-length", "1, 1")],
            &[("content-length", "1"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "gzip, chunked")],
            &[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
            &[("transfer-encoding", "identity")],
        ];
        for fields in refused {
            assert!(check_request(&parts(Version::HTTP_11, "/", fields)).is_err(), "{fields:?}");
        }
        for fields in [
            &[("content-length", "12")][..],
            &[("transfer-encoding", "Chunked")],
            &[("expect", "100-continue")],
        ] {
            assert!(check_request(&parts(Version::HTTP_11, "/", fields)).is_ok(), "{fields:?}");
        }
        assert!(check_request(&parts(Version::HTTP_10, "/", &[("transfer-encoding", "chunked")])).is_err());
        for (expected, another) in [("100-continue", false), ("100-Continue", false), ("a-miracle", true)] {
            let parts = parts(Version::HTTP_11, "/", &[("expect", expected)]);
            assert_eq!(expects_another(&parts.headers), another, "{expected}");
        }
    }

    #[test]
    fn what_is_of_one_hop_ends_here() {
        let mut headers = parts(
            Version::HTTP_11,
            "/",
            &[
                ("connection", "keep-alive, X-Mine , host"),
                ("x-mine", "1"),
                ("keep-alive", "5"),
                ("host", "a.example"),
                ("te", "gzip, trailers"),
                ("upgrade", "h2c"),
                ("x-other", "2"),
            ],
        )
        .headers;
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap())).collect();
        left.sort_unstable();
        assert_eq!(left, [("host", "a.example"), ("te", "trailers"), ("x-other", "2")]);
    }
}
