//! How messages are written: one head, one framing.

use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, TRANSFER_ENCODING};
use http::{Method, StatusCode, Uri, Version};

use super::head::Spelling;

/// How a body is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// There is none, and nothing is said about one.
    None,
    /// By this many bytes.
    Length(u64),
    /// By chunks.
    Chunked,
    /// By the end of the connection, for a peer that knows no chunks.
    UntilEnd,
}

/// Why a body can't be written as its head has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// There is more of it.
    #[error("the body is longer than its Content-Length")]
    Longer,
    /// There is less of it.
    #[error("the body is shorter than its Content-Length")]
    Shorter,
}

/// The length that a head says, as it was read or made.
#[must_use]
pub fn said_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The head of a request, with its target in the form that it has (RFC 9112 §3.2).
pub fn request(
    out: &mut Vec<u8>,
    (method, target): (&Method, &Uri),
    headers: &HeaderMap,
    spelling: Option<&Spelling>,
    framing: Framing,
) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    if let Some(scheme) = target.scheme_str() {
        out.extend_from_slice(scheme.as_bytes());
        out.extend_from_slice(b"://");
    }
    if let Some(authority) = target.authority() {
        out.extend_from_slice(authority.as_str().as_bytes());
    }
    match target.path_and_query() {
        Some(target) if !target.as_str().is_empty() => out.extend_from_slice(target.as_str().as_bytes()),
        // CONNECT's target is an authority and nothing else (RFC 9112 §3.2.3).
        _ if target.scheme().is_none() && target.authority().is_some() => {}
        _ => out.push(b'/'),
    }
    out.extend_from_slice(b" HTTP/1.1\r\n");
    fields(out, headers, spelling, framing);
    out.extend_from_slice(b"\r\n");
}

/// The head of an answer; `keep` says whether the connection goes on after it.
pub fn answer(
    out: &mut Vec<u8>,
    version: Version,
    (status, reason): (StatusCode, Option<&[u8]>),
    headers: &HeaderMap,
    spelling: Option<&Spelling>,
    framing: Framing,
    keep: bool,
) {
    let old = version == Version::HTTP_10;
    out.extend_from_slice(if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " });
    out.extend_from_slice(status.as_str().as_bytes());
    out.push(b' ');
    out.extend_from_slice(reason.unwrap_or_else(|| status.canonical_reason().unwrap_or_default().as_bytes()));
    out.extend_from_slice(b"\r\n");
    fields(out, headers, spelling, framing);
    if !headers.contains_key(CONNECTION) {
        match keep {
            false => out.extend_from_slice(b"connection: close\r\n"),
            true if old => out.extend_from_slice(b"connection: keep-alive\r\n"),
            true => {}
        }
    }
    out.extend_from_slice(b"\r\n");
}

/// An interim answer (RFC 9110 §15.2).
pub fn interim(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap) {
    let reason = status.canonical_reason().unwrap_or_default();
    out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    fields(out, headers, None, Framing::None);
    out.extend_from_slice(b"\r\n");
}

/// All fields, but those of the framing, which are ours.
fn fields(out: &mut Vec<u8>, headers: &HeaderMap, spelling: Option<&Spelling>, framing: Framing) {
    let mut from = 0;
    let spell =
        |name| spelling.map_or(http::HeaderName::as_str(name).as_bytes(), |known| known.of(name, &mut from));
    let mut spell = spell;
    for (name, value) in headers {
        if *name == TRANSFER_ENCODING || (*name == CONTENT_LENGTH && framing != Framing::None) {
            continue;
        }
        out.extend_from_slice(spell(name));
        out.extend_from_slice(b": ");
        out.extend_from_slice(value.as_bytes());
        out.extend_from_slice(b"\r\n");
    }
    match framing {
        Framing::Length(length) => {
            out.extend_from_slice(spell(&CONTENT_LENGTH));
            out.extend_from_slice(b": ");
            out.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
            out.extend_from_slice(b"\r\n");
        }
        Framing::Chunked => {
            out.extend_from_slice(spell(&TRANSFER_ENCODING));
            out.extend_from_slice(b": chunked\r\n");
        }
        Framing::None | Framing::UntilEnd => {}
    }
}

/// What is written before and behind some bytes of a body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Around {
    /// Before them.
    pub before: ChunkHead,
    /// Behind them.
    pub behind: &'static [u8],
}

/// The first line of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkHead {
    text: [u8; 18],
    start: u8,
}

impl ChunkHead {
    fn of(mut size: usize) -> Self {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut text = [0; 18];
        text[16..].copy_from_slice(b"\r\n");
        let mut start = 16;
        while size > 0 {
            start -= 1;
            text[start] = DIGITS[size & 15];
            size >>= 4;
        }
        Self { text, start: start as u8 }
    }

    /// Its bytes; none where nothing is chunked.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        if self.start == 0 { &[] } else { &self.text[usize::from(self.start)..] }
    }
}

impl Framing {
    /// What goes around the next bytes of the body; there are some.
    ///
    /// # Errors
    /// [`Wrong::Longer`]; nothing more may be written.
    pub fn data(&mut self, length: usize) -> Result<Around, Wrong> {
        match self {
            Self::None => Err(Wrong::Longer),
            Self::UntilEnd => Ok(Around::default()),
            Self::Chunked => Ok(Around { before: ChunkHead::of(length), behind: b"\r\n" }),
            Self::Length(left) => {
                *left = left.checked_sub(length as u64).ok_or(Wrong::Longer)?;
                Ok(Around::default())
            }
        }
    }

    /// Ends the body, with fields behind it where there is a place for them.
    ///
    /// # Errors
    /// [`Wrong::Shorter`]; the connection must end with it.
    pub fn end(self, out: &mut Vec<u8>, trailers: Option<&HeaderMap>) -> Result<(), Wrong> {
        match self {
            Self::Length(left) if left > 0 => return Err(Wrong::Shorter),
            Self::Chunked => {
                out.extend_from_slice(b"0\r\n");
                if let Some(trailers) = trailers {
                    fields(out, trailers, None, Self::None);
                }
                out.extend_from_slice(b"\r\n");
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    use super::*;
    use crate::http1::body::{Piece, Reader};
    use crate::http1::head::{self, Length};

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_request_is_written_with_its_spelling_and_our_framing() {
        let read = head::request(
            &Bytes::from_static(
                b"POST http://a/b?c HTTP/1.1\r\nHOST: a\r\nContent-length: 3\r\nX-A: 1\r\nx-a: 2\r\n\r\n",
            ),
            4,
        )
        .unwrap();
        let fields = read.fields;
        let asked = (&read.method, &read.target);
        let written =
            |framing| text(|out| request(out, asked, &fields.headers, Some(&fields.spelling), framing));
        let head = "POST http://a/b?c HTTP/1.1\r\nHOST: a\r\nX-A: 1\r\nx-a: 2\r\n";
        assert_eq!(written(Framing::Length(3)), format!("{head}Content-length: 3\r\n\r\n"));
        assert_eq!(written(Framing::Chunked), format!("{head}transfer-encoding: chunked\r\n\r\n"));
    }

    #[test]
    fn a_target_keeps_its_form() {
        for (method, target) in [
            (Method::GET, "/a?b"),
            (Method::OPTIONS, "*"),
            (Method::GET, "http://a:81/b?c"),
            (Method::CONNECT, "a:443"),
        ] {
            let (uri, headers) = (target.parse().unwrap(), HeaderMap::new());
            let written = text(|out| request(out, (&method, &uri), &headers, None, Framing::None));
            assert_eq!(written, format!("{method} {target} HTTP/1.1\r\n\r\n"));
        }
    }

    #[test]
    fn an_answer_says_what_becomes_of_the_connection() {
        let headers = HeaderMap::new();
        let answer = |version, keep| {
            let line = (StatusCode::OK, None);
            text(|out| answer(out, version, line, &headers, None, Framing::Length(0), keep))
        };
        assert_eq!(answer(Version::HTTP_11, true), "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        assert!(answer(Version::HTTP_11, false).ends_with("connection: close\r\n\r\n"));
        assert!(answer(Version::HTTP_10, true).starts_with("HTTP/1.0 200 OK\r\n"));
        assert!(answer(Version::HTTP_10, true).ends_with("connection: keep-alive\r\n\r\n"));
    }

    #[test]
    fn a_body_is_what_its_length_says() {
        let mut framing = Framing::Length(3);
        assert_eq!(framing.data(2), Ok(Around::default()));
        assert_eq!(framing.end(&mut Vec::new(), None), Err(Wrong::Shorter));
        assert_eq!(framing.data(2), Err(Wrong::Longer));
        assert_eq!(Framing::None.data(1), Err(Wrong::Longer));
    }

    proptest! {
        #[test]
        fn what_is_written_in_chunks_is_read_again(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..300), 0..8),
            trailers in prop::collection::vec("[a-z]{1,8}", 0..3),
        ) {
            let (mut framing, mut out) = (Framing::Chunked, Vec::new());
            for piece in &pieces {
                let around = framing.data(piece.len()).unwrap();
                out.extend_from_slice(around.before.as_bytes());
                out.extend_from_slice(piece);
                out.extend_from_slice(around.behind);
            }
            let mut fields = HeaderMap::new();
            for name in &trailers {
                fields.append(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), "value".parse().unwrap());
            }
            framing.end(&mut out, Some(&fields)).unwrap();
            let (mut reader, mut unread) = (Reader::of_answer(Length::Chunked), BytesMut::from(&out[..]));
            let (mut data, mut read) = (Vec::new(), HeaderMap::new());
            while !reader.is_over() {
                match reader.next(&mut unread).unwrap() {
                    Piece::Data(piece) => data.extend_from_slice(&piece),
                    Piece::Trailers(fields) => read = fields,
                    Piece::More => prop_assert!(false, "it has no end"),
                    Piece::End => {}
                }
            }
            prop_assert_eq!(data, pieces.concat());
            prop_assert_eq!(read, fields);
            prop_assert!(unread.is_empty());
        }
    }
}
