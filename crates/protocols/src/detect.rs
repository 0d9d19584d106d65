//! What a connection's first bytes are.

/// What a connection speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detected {
    /// A TLS handshake record.
    Tls,
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2 by prior knowledge.
    Http2Preface,
    /// Neither.
    Unknown,
}

/// The preface of HTTP/2 (RFC 9113 §3.4).
pub const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Longest method that is taken for HTTP. The longest registered one has 17 characters (IANA, HTTP Method Registry), but
/// a server may take any.
const METHOD_MAX: usize = 1024;

/// Looks at the first bytes; `None` while they could still become more than one of the answers.
#[must_use]
pub fn detect(first: &[u8]) -> Option<Detected> {
    if first.is_empty() {
        return None;
    }
    if let Some(tls) = looks_like_tls(first) {
        return tls.then_some(Detected::Tls);
    }
    let common = first.len().min(HTTP2_PREFACE.len());
    if first[..common] == HTTP2_PREFACE[..common] {
        return (common == HTTP2_PREFACE.len()).then_some(Detected::Http2Preface);
    }
    looks_like_http1(first)
}

/// What bytes that are not clear yet are on their way to be, should nothing more come: `None` if there are none.
#[must_use]
pub fn leaning(first: &[u8]) -> Option<Detected> {
    let is_preface = first.len() > b"PRI * HTTP/".len() && HTTP2_PREFACE.starts_with(first);
    match (first, detect(first)) {
        ([], _) => None,
        (_, Some(clear)) => Some(clear),
        ([0x16, ..], None) => Some(Detected::Tls),
        (_, None) if is_preface => Some(Detected::Http2Preface),
        (_, None) => Some(Detected::Http1),
    }
}

/// `Some(true)` for a handshake record of TLS 1.0 to 1.3 (RFC 8446 §5.1), `Some(false)` while it may become one.
fn looks_like_tls(first: &[u8]) -> Option<bool> {
    let expected: [fn(u8) -> bool; 3] = [|b| b == 0x16, |b| b == 0x03, |b| b <= 0x04];
    let fits = first.iter().zip(expected).all(|(byte, fits)| fits(*byte));
    fits.then_some(first.len() >= expected.len())
}

/// A token, then a space (RFC 9112 §3), or what a lenient reader takes for one; behind empty lines, which a server ignores
/// (§2.2).
fn looks_like_http1(first: &[u8]) -> Option<Detected> {
    let empty = first.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let first = &first[empty..];
    let method = first.iter().take_while(|byte| is_token(**byte)).count();
    if method > METHOD_MAX {
        return Some(Detected::Unknown);
    }
    match first.get(method) {
        None => None,
        Some(b' ' | b'\t') if method > 0 => Some(Detected::Http1),
        Some(_) => Some(Detected::Unknown),
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_what_it_sees() {
        let cases: [(&[u8], Option<Detected>); 18] = [
            (b"", None),
            (b"\x16", None),
            (b"\x16\x03", None),
            (b"\x16\x03\x01", Some(Detected::Tls)),
            (b"\x16\x03\x09", Some(Detected::Unknown)),
            (b"\x15\x03\x01", Some(Detected::Unknown)),
            (b"GET", None),
            (b"GET ", Some(Detected::Http1)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(Detected::Http2Preface)),
            (b"PRI * HTTP/2.0\r\n", None),
            (b"PRI * HTTP/1.1\r\n", Some(Detected::Http1)),
            (b" GET", Some(Detected::Unknown)),
            (b"SSH-2.0-OpenSSH\r\n", Some(Detected::Unknown)),
            (b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA ", Some(Detected::Http1)),
            (&[b'A'; 1100], Some(Detected::Unknown)),
            (b"\r\n\r\n", None),
            (b"\r\nGET / HTTP/1.1", Some(Detected::Http1)),
            (b"GET\t/", Some(Detected::Http1)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(detect(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn what_stops_early_leans_to_what_it_began_as() {
        let cases: [(&[u8], Option<Detected>); 6] = [
            (b"", None),
            (b"\x16", Some(Detected::Tls)),
            (b"GE", Some(Detected::Http1)),
            (b"\r\n", Some(Detected::Http1)),
            (b"PRI ", Some(Detected::Http1)),
            (b"PRI * HTTP/2.0\r\n", Some(Detected::Http2Preface)),
        ];
        for (bytes, expected) in cases {
            assert_eq!(leaning(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn never_changes_its_mind() {
        for whole in [&b"GET / HTTP/1.1\r\n"[..], HTTP2_PREFACE, b"\x16\x03\x01\x02\x00\x01"] {
            let known = detect(whole);
            for end in 0..whole.len() {
                assert!(detect(&whole[..end]).is_none_or(|early| Some(early) == known), "{end}");
            }
        }
    }
}
