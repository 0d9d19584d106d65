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

/// Follows the requests of one connection of HTTP/1 as they pass, and finds the credentials in their heads. Bodies are
/// skipped by their framing; what is no HTTP/1, or could be read in two ways, is not followed any further.
#[derive(Debug)]
pub struct Follower(State);

#[derive(Debug)]
enum State {
    /// In a head, of which this much has come.
    Head(Vec<u8>),
    /// In a body or a chunk with this many bytes left, and what comes then.
    Data(u64, After),
    /// In the line that says how long a chunk is.
    Size(Vec<u8>),
    /// In a line of trailers, of which this many bytes have come.
    Trailer(usize),
    Lost,
}

#[derive(Clone, Copy, Debug)]
enum After {
    Head,
    Size,
}

/// Bytes of a head, or of a line, that are kept at most.
const HEAD_MAX: usize = 64 << 10;
const LINE_MAX: usize = 4096;

impl Default for Follower {
    fn default() -> Self {
        Self(State::Head(Vec::new()))
    }
}

impl Follower {
    /// Takes what comes next; tells each credential's field, by its lower-case name, and its value.
    pub fn feed(&mut self, mut bytes: &[u8], mut found: impl FnMut(&str, &[u8])) {
        while !bytes.is_empty() {
            let (taken, next) = match &mut self.0 {
                State::Lost => return,
                State::Head(head) => {
                    let before = head.len();
                    let taking = bytes.len().min(HEAD_MAX - before);
                    head.extend_from_slice(&bytes[..taking]);
                    match end_of_head(head, before) {
                        Some(end) => (end - before, Some(after_head(&head[..end], &mut found))),
                        None if head.len() >= HEAD_MAX => (taking, Some(State::Lost)),
                        None => (taking, None),
                    }
                }
                State::Data(left, after) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= taken as u64;
                    let next = match after {
                        After::Head => State::Head(Vec::new()),
                        After::Size => State::Size(Vec::new()),
                    };
                    (taken, (*left == 0).then_some(next))
                }
                State::Size(line) => {
                    let (taken, ended) = up_to_line_end(bytes);
                    line.extend_from_slice(&bytes[..taken]);
                    let next = match ended {
                        _ if line.len() > LINE_MAX => Some(State::Lost),
                        true => Some(after_size(line)),
                        false => None,
                    };
                    (taken, next)
                }
                State::Trailer(length) => {
                    let (taken, ended) = up_to_line_end(bytes);
                    *length += taken;
                    let next = match (ended, *length) {
                        (true, ..=2) => Some(State::Head(Vec::new())),
                        (true, _) => Some(State::Trailer(0)),
                        (false, _) => None,
                    };
                    (taken, next)
                }
            };
            bytes = &bytes[taken..];
            if let Some(next) = next {
                self.0 = next;
            }
        }
    }
}

/// Where the head ends, if it does; what came `before` had no end in it.
fn end_of_head(head: &[u8], before: usize) -> Option<usize> {
    let from = before.saturating_sub(3);
    let at = head[from..].windows(4).position(|window| window == b"\r\n\r\n")?;
    Some(from + at + 4)
}

fn up_to_line_end(bytes: &[u8]) -> (usize, bool) {
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(at) => (at + 1, true),
        None => (bytes.len(), false),
    }
}

/// What follows a head, by its framing (RFC 9112 §6.3).
fn after_head(head: &[u8], found: &mut impl FnMut(&str, &[u8])) -> State {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    // A line that ends in a bare LF could have ended the head before.
    if !matches!(request.parse(head), Ok(httparse::Status::Complete(end)) if end == head.len()) {
        return State::Lost;
    }
    for field in request.headers.iter().filter(|field| is_credential(field.name)) {
        found(&field.name.to_ascii_lowercase(), field.value);
    }
    let of = |name: &str| {
        let fields = request.headers.iter().filter(move |field| field.name.eq_ignore_ascii_case(name));
        fields.map(|field| field.value.trim_ascii()).collect::<Vec<_>>()
    };
    let tunnel = request.method == Some("CONNECT") || !of("upgrade").is_empty();
    match (of("transfer-encoding").as_slice(), of("content-length").as_slice()) {
        _ if tunnel => State::Lost,
        ([], []) => State::Head(Vec::new()),
        ([], [length]) => match std::str::from_utf8(length).ok().and_then(|text| text.parse().ok()) {
            Some(0) => State::Head(Vec::new()),
            Some(length) => State::Data(length, After::Head),
            None => State::Lost,
        },
        ([coding], []) if coding.eq_ignore_ascii_case(b"chunked") => State::Size(Vec::new()),
        _ => State::Lost,
    }
}

/// What follows the line that says how long a chunk is (RFC 9112 §7.1).
fn after_size(line: &[u8]) -> State {
    let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
    let size = std::str::from_utf8(digits).ok().and_then(|text| u32::from_str_radix(text, 16).ok());
    match size {
        Some(0) => State::Trailer(0),
        // With the line's end behind it.
        Some(size) => State::Data(u64::from(size) + 2, After::Size),
        None => State::Lost,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &[u8], piece: usize) -> Vec<(String, Vec<u8>)> {
        let (mut follower, mut all) = (Follower::default(), Vec::new());
        for bytes in text.chunks(piece) {
            follower.feed(bytes, |name, value| all.push((name.to_owned(), value.to_vec())));
        }
        all
    }

    #[test]
    fn credentials_of_every_request_are_found_in_every_spelling() {
        let text = b"GET / HTTP/1.1\r\nHost: a\r\nAUTHORIZATION: Basic eA==\r\nAccept: */*\r\n\r\n\
            POST / HTTP/1.1\r\nContent-Length: 24\r\n\r\nCookie: not-a-field\r\n\r\n!\
            POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\n\r\n\r\nz\r\n0\r\nCookie: trailer\r\n\r\n\
            GET / HTTP/1.1\r\nX-Api-Key: k\r\n\r\n";
        let expected =
            [("authorization".to_owned(), b"Basic eA==".to_vec()), ("x-api-key".to_owned(), b"k".to_vec())];
        for piece in [1, 2, 3, 7, 64, text.len()] {
            assert_eq!(found(text, piece), expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_not_followed() {
        let next = "GET / HTTP/1.1\r\nCookie: c\r\n\r\n";
        for first in [
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n",
            "GET / HTTP/1.1\r\nUpgrade: websocket\r\n\r\n",
            "\x16\x03\x01\r\n\r\n",
        ] {
            assert_eq!(found(format!("{first}{next}").as_bytes(), 5), [], "{first}");
        }
        assert_eq!(found(next.as_bytes(), 5).len(), 1);
    }
}
