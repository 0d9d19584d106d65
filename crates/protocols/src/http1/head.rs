//! The head of a message (RFC 9112 §§2 to 6).

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use http::{Method, StatusCode, Uri, Version};

use super::{line, without_spaces};
use crate::Malformed;

/// Digits of a Content-Length that are read.
const LENGTH_DIGITS_MAX: usize = 18;

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Bytes, of all that is kept while it has not ended.
    pub bytes: usize,
    /// Fields.
    pub fields: usize,
}

/// Why there is no head.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It is not one, or could be read in two ways. Nothing after it has a meaning.
    #[error("{0}")]
    Malformed(#[from] Malformed),
    /// It has more bytes than it may have.
    #[error("it has more than {0} bytes")]
    TooLong(usize),
    /// It has more fields than it may have.
    #[error("it has more than {0} fields")]
    TooMany(usize),
}

/// Looks for the end of a head in what has come so far, each byte once.
#[derive(Debug, Default)]
pub struct Scan {
    /// Where the line begins that has not ended.
    begun: usize,
    /// Up to where that line was looked at.
    seen: usize,
    /// Whether the first line was there.
    first: bool,
    fields: usize,
}

impl Scan {
    /// How many of the bytes are the head, empty lines before it and the one that ends it included; `None` if it has
    /// not ended. `bytes` is all that has come, not only what is new.
    ///
    /// # Errors
    /// As soon as it is certain that no head will come of it.
    pub fn end(&mut self, bytes: &[u8], bounds: Bounds) -> Result<Option<usize>, Fault> {
        while let Some(found) = memchr::memchr(b'\n', &bytes[self.seen..]) {
            let end = self.seen + found;
            let Some(line) = bytes[self.begun..end].strip_suffix(b"\r") else {
                return Err(Malformed("a line ends with LF alone").into());
            };
            (self.begun, self.seen) = (end + 1, end + 1);
            if !self.first {
                // RFC 9112 §2.2: an empty line before a request is ignored.
                if !line.is_empty() {
                    first_line(line)?;
                    self.first = true;
                }
            } else if line.is_empty() {
                return if end < bounds.bytes {
                    Ok(Some(end + 1))
                } else {
                    Err(Fault::TooLong(bounds.bytes))
                };
            } else {
                self.fields += 1;
            }
            if self.fields > bounds.fields {
                return Err(Fault::TooMany(bounds.fields));
            }
        }
        self.seen = bytes.len();
        if bytes.len() > bounds.bytes { Err(Fault::TooLong(bounds.bytes)) } else { Ok(None) }
    }

    /// How many fields there were.
    #[must_use]
    pub const fn fields(&self) -> usize {
        self.fields
    }
}

/// Whether a first line can be one, before the rest has come.
fn first_line(line: &[u8]) -> Result<(), Malformed> {
    let answer = line.starts_with(b"HTTP/1.1 ") || line.starts_with(b"HTTP/1.0 ");
    if answer || line.ends_with(b" HTTP/1.1") || line.ends_with(b" HTTP/1.0") {
        return Ok(());
    }
    Err(Malformed("the first line is not one of HTTP/1"))
}

/// What a head says about the end of its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// Nothing.
    Unsaid,
    /// So many bytes.
    Exactly(u64),
    /// It is chunked.
    Chunked,
}

/// What the heads of requests and answers have in common.
#[derive(Debug)]
pub struct Fields {
    /// 1.1 or 1.0.
    pub version: Version,
    /// The fields, those of the framing too.
    pub headers: HeaderMap,
    /// How their names were spelt.
    pub spelling: Spelling,
    /// What they say about the end of the message.
    pub length: Length,
    /// Whether the connection can be used again, by its version and by `Connection` (RFC 9112 §9.3).
    pub persists: bool,
}

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub target: Uri,
    /// The rest.
    pub fields: Fields,
}

/// The head of an answer.
#[derive(Debug)]
pub struct AnswerHead {
    /// Its status.
    pub status: StatusCode,
    /// Its reason phrase.
    pub reason: Bytes,
    /// The rest.
    pub fields: Fields,
}

/// Reads a request's head, as [`Scan::end`] found it; `count` is how many fields it has.
///
/// # Errors
/// If it is not one, or could be read in two ways.
pub fn request(head: &Bytes, count: usize) -> Result<RequestHead, Malformed> {
    let mut at = 0;
    let first = loop {
        let first = next(head, &mut at)?;
        if !first.is_empty() {
            break first;
        }
    };
    let mut words = first.split(|byte| *byte == b' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed("the request's first line is not method, target and version"));
    };
    let version = version_of(version)?;
    let method = Method::from_bytes(method).map_err(|_| Malformed("the request's method is not a token"))?;
    // RFC 9112 §3.2: no form of a target has a fragment; who reads it drops it in silence.
    if memchr::memchr(b'#', target).is_some() {
        return Err(Malformed("the request's target has a fragment"));
    }
    let target = Uri::from_maybe_shared(head.slice_ref(target))
        .map_err(|_| Malformed("the request's target is not one"))?;
    Ok(RequestHead { method, target, fields: fields(head, at, version, count)? })
}

/// Reads an answer's head, as [`Scan::end`] found it; `count` is how many fields it has.
///
/// # Errors
/// If it is not one, or could be read in two ways.
pub fn answer(head: &Bytes, count: usize) -> Result<AnswerHead, Malformed> {
    let mut at = 0;
    let first = next(head, &mut at)?;
    // RFC 9112 §4: the space before the reason may be missing with it.
    let (Some(version), Some(b' '), Some(status)) = (first.get(..8), first.get(8), first.get(9..12)) else {
        return Err(Malformed("the answer's first line is not one"));
    };
    let version = version_of(version)?;
    let status =
        StatusCode::from_bytes(status).map_err(|_| Malformed("the answer's status is not a number"))?;
    let reason = match &first[12..] {
        [] => &[],
        [b' ', reason @ ..] => reason,
        _ => return Err(Malformed("the answer's status is not a number")),
    };
    if reason.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
        return Err(Malformed("the answer's reason has a control character"));
    }
    let reason = if reason.is_empty() { Bytes::new() } else { head.slice_ref(reason) };
    Ok(AnswerHead { status, reason, fields: fields(head, at, version, count)? })
}

fn next<'a>(head: &'a [u8], at: &mut usize) -> Result<&'a [u8], Malformed> {
    let (line, taken) = line(&head[*at..])?.ok_or(Malformed("the head has no end"))?;
    *at += taken;
    Ok(line)
}

fn version_of(text: &[u8]) -> Result<Version, Malformed> {
    match text {
        b"HTTP/1.1" => Ok(Version::HTTP_11),
        b"HTTP/1.0" => Ok(Version::HTTP_10),
        _ => Err(Malformed("the version is not one of HTTP/1")),
    }
}

fn fields(head: &Bytes, mut at: usize, version: Version, count: usize) -> Result<Fields, Malformed> {
    // With room for a credential.
    let mut headers = HeaderMap::with_capacity(count + 1);
    let mut spelling = Vec::with_capacity(count);
    let mut length = Length::Unsaid;
    let mut wishes = Wishes::default();
    loop {
        let line = next(head, &mut at)?;
        if line.is_empty() {
            break;
        }
        let (name, spelt, value) = field(line)?;
        if name == CONTENT_LENGTH {
            length = content_length(length, value)?;
        } else if name == TRANSFER_ENCODING {
            length = transfer_encoding(length, value, version)?;
        } else if name == CONNECTION {
            wishes.read(value);
        }
        let value = HeaderValue::from_maybe_shared(head.slice_ref(value))
            .map_err(|_| Malformed("a field's value has a control character"))?;
        spelling.push(span(head, spelt));
        headers.try_append(name, value).map_err(|_| Malformed("the head has too many fields"))?;
    }
    let spelling = Spelling { head: head.clone(), names: spelling };
    Ok(Fields { version, headers, spelling, length, persists: wishes.persists(version) })
}

/// A field's name, how it was spelt, and its value.
pub(super) fn field(line: &[u8]) -> Result<(HeaderName, &[u8], &[u8]), Malformed> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Malformed("a field goes on over several lines (obs-fold)"));
    }
    let colon = memchr::memchr(b':', line).ok_or(Malformed("a field has no colon"))?;
    let spelt = &line[..colon];
    let name = HeaderName::from_bytes(spelt).map_err(|_| Malformed("a field's name is not a token"))?;
    Ok((name, spelt, without_spaces(&line[colon + 1..])))
}

fn content_length(length: Length, value: &[u8]) -> Result<Length, Malformed> {
    match length {
        Length::Exactly(_) => return Err(Malformed("there are two Content-Length fields")),
        Length::Chunked => return Err(Malformed("there are both Transfer-Encoding and Content-Length")),
        Length::Unsaid => {}
    }
    if value.is_empty() || value.len() > LENGTH_DIGITS_MAX || !value.iter().all(u8::is_ascii_digit) {
        return Err(Malformed("the Content-Length is not a number"));
    }
    Ok(Length::Exactly(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0'))))
}

fn transfer_encoding(length: Length, value: &[u8], version: Version) -> Result<Length, Malformed> {
    if matches!(length, Length::Exactly(_)) {
        return Err(Malformed("there are both Transfer-Encoding and Content-Length"));
    }
    if length == Length::Chunked || !value.eq_ignore_ascii_case(b"chunked") {
        return Err(Malformed("the Transfer-Encoding is something else than chunked"));
    }
    if version != Version::HTTP_11 {
        return Err(Malformed("only HTTP/1.1 has Transfer-Encoding"));
    }
    Ok(Length::Chunked)
}

/// What `Connection` says about the connection (RFC 9112 §9.3).
#[derive(Default)]
struct Wishes {
    close: bool,
    keep_alive: bool,
}

impl Wishes {
    fn read(&mut self, value: &[u8]) {
        for option in value.split(|byte| *byte == b',').map(without_spaces) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn persists(&self, version: Version) -> bool {
        !self.close && (self.keep_alive || version == Version::HTTP_11)
    }
}

/// How names of fields were spelt, for a peer that minds (RFC 9110 §5.1 says that none should).
#[derive(Clone, Debug, Default)]
pub struct Spelling {
    head: Bytes,
    /// Where in the head each name is, and how long it is.
    names: Vec<(u32, u32)>,
}

fn span(head: &Bytes, part: &[u8]) -> (u32, u32) {
    let start = part.as_ptr() as usize - head.as_ptr() as usize;
    (u32::try_from(start).unwrap_or(u32::MAX), u32::try_from(part.len()).unwrap_or(0))
}

impl Spelling {
    /// The next spelling of this name, from the `from`th name on and round again; the name itself if there is none.
    /// Sets `from` behind it: who asks in the order of the head finds each at once.
    pub fn of<'a>(&'a self, name: &'a HeaderName, from: &mut usize) -> &'a [u8] {
        let count = self.names.len();
        let canonical = name.as_str().as_bytes();
        for step in 0..count {
            let at = (*from + step) % count;
            let (start, length) = self.names[at];
            let spelt = (start as usize)
                .checked_add(length as usize)
                .and_then(|end| self.head.get(start as usize..end));
            if let Some(spelt) = spelt
                && is_spelt(spelt, canonical)
            {
                *from = at + 1;
                return spelt;
            }
        }
        canonical
    }
}

/// Whether this is a spelling of a name, which is lower-case itself. Without a way out in the middle: names are short.
fn is_spelt(spelt: &[u8], canonical: &[u8]) -> bool {
    let differ = |(a, b): (&u8, &u8)| a.to_ascii_lowercase() ^ b;
    spelt.len() == canonical.len()
        && spelt.iter().zip(canonical).map(differ).fold(0, |all, one| all | one) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { bytes: 1024, fields: 8 };

    /// Where the head ends, found in the whole and byte by byte.
    #[track_caller]
    fn end(bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let whole = Scan::default().end(bytes, BOUNDS);
        let mut scan = Scan::default();
        let parts = (0..=bytes.len()).find_map(|length| scan.end(&bytes[..length], BOUNDS).transpose());
        assert_eq!(whole.clone().transpose(), parts, "{}", bytes.escape_ascii());
        whole
    }

    fn read(bytes: &[u8]) -> Result<RequestHead, Fault> {
        let end = end(bytes)?.expect("it is whole");
        Ok(request(&Bytes::copy_from_slice(&bytes[..end]), 0)?)
    }

    fn read_answer(bytes: &[u8]) -> Result<AnswerHead, Fault> {
        let end = end(bytes)?.expect("it is whole");
        Ok(answer(&Bytes::copy_from_slice(&bytes[..end]), 0)?)
    }

    #[test]
    fn a_head_is_read_as_it_is() {
        let head =
            b"\r\nPOST /a?b HTTP/1.1\r\nHost: a\r\nX-Two:\t 1 \r\nx-two:2\r\nCONTENT-LENGTH:  4 \r\n\r\nbody";
        let RequestHead { method, target, fields } = read(head).unwrap();
        assert_eq!((method, target.to_string()), (Method::POST, "/a?b".to_owned()));
        assert_eq!(
            (fields.version, fields.length, fields.persists),
            (Version::HTTP_11, Length::Exactly(4), true)
        );
        let two: Vec<_> = fields.headers.get_all("x-two").iter().collect();
        assert_eq!(two, ["1", "2"]);
        let mut from = 0;
        let spelt: Vec<_> = fields.headers.keys().map(|name| fields.spelling.of(name, &mut from)).collect();
        assert_eq!(spelt, [&b"Host"[..], b"X-Two", b"CONTENT-LENGTH"]);
        assert_eq!(fields.spelling.of(&HeaderName::from_static("x-two"), &mut 2), b"x-two", "each its own");
        assert_eq!(fields.spelling.of(&HeaderName::from_static("x-ours"), &mut from), b"x-ours");
    }

    #[test]
    fn an_answer_s_first_line_is_read_as_it_is() {
        for (line, status, reason) in [
            ("HTTP/1.1 200 OK", 200, "OK"),
            ("HTTP/1.1 404 No  such thing", 404, "No  such thing"),
            ("HTTP/1.0 204 ", 204, ""),
            ("HTTP/1.1 599", 599, ""),
            ("HTTP/1.1 200 Voil\u{e0}", 200, "Voil\u{e0}"),
        ] {
            let head = read_answer(format!("{line}\r\n\r\n").as_bytes()).unwrap();
            assert_eq!((head.status.as_u16(), &head.reason[..]), (status, reason.as_bytes()), "{line}");
        }
        for line in [
            "HTTP/1.1 2000 OK",
            "HTTP/1.1  200 OK",
            "HTTP/1.1 20 OK",
            "HTTP/2 200 OK",
            "HTTP/1.1 200\tOK",
            "HTTP/1.1 200 O\rK",
            "HTTP/1.1 200 O\0K",
        ] {
            assert!(read_answer(format!("{line}\r\n\r\n").as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for head in [
            &b"GET / HTTP/1.1\nHost: a\n\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\x0bb\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\x7fb\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
            b"GET / HTTP/1.1\r\n X: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET / HTTP/1.1\r\n: a\r\n\r\n",
            b"GET / HTTP/1.1\r\nX : a\r\n\r\n",
            b"GET /#a HTTP/1.1\r\n\r\n",
            b"GET /a\rb HTTP/1.1\r\n\r\n",
            b"GET /a\0b HTTP/1.1\r\n\r\n",
            b"GET /a\tb HTTP/1.1\r\n\r\n",
            b"G\rT / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1\r\nX\0: a\r\n\r\n",
            b"GET  / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.1 \r\n\r\n",
            b"GET / a HTTP/1.1\r\n\r\n",
            b"G(T / HTTP/1.1\r\n\r\n",
            b"GET / HTTP/1.2\r\n\r\n",
            b"GET /\r\n",
            b"PRI * HTTP/2.0\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: +1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 1, 1\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length:\r\n\r\n",
            b"POST / HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: \x0bchunked\r\n\r\n",
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\x0c\r\n\r\n",
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert!(matches!(read(head), Err(Fault::Malformed(_))), "{}", head.escape_ascii());
        }
    }

    #[test]
    fn a_head_has_bounds() {
        assert_eq!(end(b"GET / HTTP/1.1\r\nHost: a\r\n"), Ok(None));
        assert_eq!(end(&[b'a'; 1025]), Err(Fault::TooLong(1024)));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(9));
        assert_eq!(end(many.as_bytes()), Err(Fault::TooMany(8)));
        assert_eq!(
            end("\r\n".repeat(600).as_bytes()),
            Err(Fault::TooLong(1024)),
            "empty lines before a request"
        );
        let long = format!("GET / HTTP/1.1\r\na: {}\r\n\r\n", "b".repeat(1024));
        assert_eq!(Scan::default().end(long.as_bytes(), BOUNDS), Err(Fault::TooLong(1024)));
    }

    #[test]
    fn a_connection_persists_by_version_and_wish() {
        for (version, fields, persists) in [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: x, Close\r\n", false),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: close\r\nConnection: keep-alive\r\n", false),
        ] {
            let head = read(format!("GET / HTTP/{version}\r\n{fields}\r\n").as_bytes()).unwrap();
            assert_eq!(head.fields.persists, persists, "{version} {fields}");
        }
    }
}
