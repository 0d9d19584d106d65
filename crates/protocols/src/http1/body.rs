//! The body of a message: where it ends, and what is in it (RFC 9112 §§6.3, 7).

use bytes::{Buf as _, Bytes, BytesMut};
use http::HeaderMap;
use http::header::HeaderValue;

use super::head::{Length, field};
use super::line;
use crate::Malformed;

/// Digits of a chunk's size that are read; more would not fit 64 bits.
const SIZE_DIGITS_MAX: usize = 16;

/// Bytes of a chunk's first line with its extensions, and of one trailer field.
const LINE_MAX: usize = 8 << 10;

/// Bytes of all trailer fields, and how many there may be.
const TRAILERS_MAX: usize = 32 << 10;
const TRAILER_FIELDS_MAX: usize = 100;

/// Where in its body the reading of a message is.
#[derive(Debug)]
pub struct Reader(State);

#[derive(Debug)]
enum State {
    Length(u64),
    UntilEnd,
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers { fields: HeaderMap, bytes: usize },
    Over,
}

/// What comes next in a body.
#[derive(Debug)]
pub enum Piece {
    /// Bytes of it.
    Data(Bytes),
    /// The fields behind it; nothing follows.
    Trailers(HeaderMap),
    /// More must be read before there is something.
    More,
    /// Nothing.
    End,
}

impl Reader {
    /// A message without a body.
    pub const EMPTY: Self = Self(State::Over);

    /// The body of a request whose head says this: without a length there is none.
    #[must_use]
    pub fn of_request(length: Length) -> Self {
        match length {
            Length::Unsaid => Self::EMPTY,
            length => Self::of_length(length),
        }
    }

    /// The body of an answer that may have one, whose head says this: without a length the end of the connection is its
    /// end.
    #[must_use]
    pub fn of_answer(length: Length) -> Self {
        Self::of_length(length)
    }

    const fn of_length(length: Length) -> Self {
        Self(match length {
            Length::Exactly(0) => State::Over,
            Length::Exactly(length) => State::Length(length),
            Length::Chunked => State::ChunkSize,
            Length::Unsaid => State::UntilEnd,
        })
    }

    /// Whether all of it has been taken.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        matches!(self.0, State::Over)
    }

    /// How many bytes are still to come, if that is known.
    #[must_use]
    pub const fn left(&self) -> Option<u64> {
        match self.0 {
            State::Length(left) => Some(left),
            State::Over => Some(0),
            _ => None,
        }
    }

    /// Whether its end is that of the connection.
    #[must_use]
    pub const fn ends_with_connection(&self) -> bool {
        matches!(self.0, State::UntilEnd)
    }

    /// The connection has ended: whether the body has too.
    #[must_use]
    pub fn end(&mut self) -> bool {
        if self.ends_with_connection() {
            self.0 = State::Over;
        }
        self.is_over()
    }

    /// Takes what comes next out of what was read.
    ///
    /// # Errors
    /// At what could be read in two ways. Nothing after it has a meaning; don't ask again.
    pub fn next(&mut self, unread: &mut BytesMut) -> Result<Piece, Malformed> {
        loop {
            match &mut self.0 {
                State::Over => return Ok(Piece::End),
                _ if unread.is_empty() => return Ok(Piece::More),
                State::UntilEnd => return Ok(Piece::Data(unread.split().freeze())),
                State::Length(left) => {
                    let data = take(unread, left);
                    if *left == 0 {
                        self.0 = State::Over;
                    }
                    return Ok(Piece::Data(data));
                }
                State::ChunkData(left) => {
                    let data = take(unread, left);
                    if *left == 0 {
                        self.0 = State::ChunkEnd;
                    }
                    return Ok(Piece::Data(data));
                }
                State::ChunkSize => {
                    let Some((line, taken)) = whole_line(unread)? else { return Ok(Piece::More) };
                    self.0 = match chunk_size(line)? {
                        0 => State::Trailers { fields: HeaderMap::new(), bytes: 0 },
                        size => State::ChunkData(size),
                    };
                    unread.advance(taken);
                }
                State::ChunkEnd => {
                    // Whatever else is there is wrong before its line has ended.
                    if !b"\r\n".starts_with(&unread[..unread.len().min(2)]) {
                        return Err(Malformed("a chunk is longer than its size says"));
                    }
                    if unread.len() < 2 {
                        return Ok(Piece::More);
                    }
                    unread.advance(2);
                    self.0 = State::ChunkSize;
                }
                State::Trailers { fields, bytes } => {
                    let Some((line, taken)) = whole_line(unread)? else { return Ok(Piece::More) };
                    if line.is_empty() {
                        let fields = std::mem::take(fields);
                        unread.advance(taken);
                        self.0 = State::Over;
                        return Ok(if fields.is_empty() { Piece::End } else { Piece::Trailers(fields) });
                    }
                    *bytes += taken;
                    trailer(line, *bytes, fields)?;
                    unread.advance(taken);
                }
            }
        }
    }
}

fn take(unread: &mut BytesMut, left: &mut u64) -> Bytes {
    let length = unread.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
    *left -= length as u64;
    unread.split_to(length).freeze()
}

fn whole_line(unread: &[u8]) -> Result<Option<(&[u8], usize)>, Malformed> {
    let found = line(unread)?;
    if found.map_or(unread.len(), |(_, taken)| taken) > LINE_MAX {
        return Err(Malformed("a line between chunks is too long"));
    }
    Ok(found)
}

/// RFC 9112 §7.1: hexadecimal digits; an extension after them means nothing to us and ends here.
fn chunk_size(line: &[u8]) -> Result<u64, Malformed> {
    let digits = line.iter().position(|byte| *byte == b';').map_or(line, |end| &line[..end]);
    if digits.is_empty()
        || digits.len() > SIZE_DIGITS_MAX
        || !digits.iter().all(u8::is_ascii_hexdigit)
        || line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(Malformed("a chunk's size is not a number"));
    }
    let text = std::str::from_utf8(digits).unwrap_or_default();
    u64::from_str_radix(text, 16).map_err(|_| Malformed("a chunk's size is not a number"))
}

fn trailer(line: &[u8], bytes: usize, fields: &mut HeaderMap) -> Result<(), Malformed> {
    let (name, _, value) = field(line)?;
    let value =
        HeaderValue::from_bytes(value).map_err(|_| Malformed("a trailer's value has a control character"))?;
    if bytes > TRAILERS_MAX || fields.len() >= TRAILER_FIELDS_MAX {
        return Err(Malformed("the message has too many trailers"));
    }
    fields.try_append(name, value).map_err(|_| Malformed("the message has too many trailers"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read of a chunked body in pieces of `step` bytes: its data, its trailers, and what follows it.
    fn chunked(bytes: &[u8], step: usize) -> Result<(Vec<u8>, HeaderMap, Vec<u8>), Malformed> {
        let mut reader = Reader::of_request(Length::Chunked);
        let (mut unread, mut data, mut trailers) = (BytesMut::new(), Vec::new(), HeaderMap::new());
        for part in bytes.chunks(step) {
            unread.extend_from_slice(part);
            loop {
                match reader.next(&mut unread)? {
                    Piece::Data(piece) => data.extend_from_slice(&piece),
                    Piece::Trailers(fields) => trailers = fields,
                    Piece::More | Piece::End => break,
                }
            }
        }
        assert!(reader.is_over(), "it has no end");
        Ok((data, trailers, unread.to_vec()))
    }

    #[test]
    fn chunks_are_read_however_they_come() {
        let body = b"3;a=\"b\"\r\nabc\r\nA\r\n0123\n\r\x00789\r\n00\r\nX: y\r\nx:\tz\r\n\r\nGET";
        for step in 1..body.len() {
            let (data, trailers, rest) = chunked(body, step).unwrap();
            assert_eq!(data, b"abc0123\n\r\x00789");
            assert_eq!(trailers.get_all("x").iter().collect::<Vec<_>>(), ["y", "z"]);
            assert_eq!(rest, b"GET");
        }
    }

    #[test]
    fn a_chunk_that_could_be_read_in_two_ways_is_refused() {
        for body in [
            &b"3\nabc\r\n0\r\n\r\n"[..],
            b"3 \r\nabc\r\n0\r\n\r\n",
            b"0x3\r\nabc\r\n0\r\n\r\n",
            b"-3\r\nabc\r\n0\r\n\r\n",
            b"10000000000000003\r\nabc\r\n0\r\n\r\n",
            b"3;a\nb\r\nabc\r\n0\r\n\r\n",
            b"3;a\x01b\r\nabc\r\n0\r\n\r\n",
            b"\r\n\r\n",
            b"3\r\nabcd\r\n0\r\n\r\n",
            b"3\r\nabc\n0\r\n\r\n",
            b"3\r\nabc\r\r\n0\r\n\r\n",
            b"3\r\nabc\r\n0\r\nx: y\n\r\n",
            b"3\r\nabc\r\n0\r\nx: y\r\n z\r\n\r\n",
            b"3\r\nabc\r\n0\r\nx\r\n\r\n",
        ] {
            for step in 1..body.len() {
                assert!(chunked(body, step).is_err(), "{} by {step}", body.escape_ascii());
            }
        }
        let endless = [&b"3;"[..], &[b'a'; LINE_MAX + 1]].concat();
        assert!(chunked(&endless, 100).is_err(), "an extension has an end");
        let many = format!("0\r\n{}\r\n", "a: b\r\n".repeat(TRAILER_FIELDS_MAX + 1));
        assert!(chunked(many.as_bytes(), 100).is_err());
    }

    #[test]
    fn a_length_is_kept_to() {
        let mut reader = Reader::of_answer(Length::Exactly(4));
        let mut unread = BytesMut::from(&b"bo"[..]);
        assert!(matches!(reader.next(&mut unread), Ok(Piece::Data(data)) if data == "bo"));
        assert!(matches!(reader.next(&mut unread), Ok(Piece::More)));
        assert_eq!((reader.left(), reader.end()), (Some(2), false), "the connection may not end here");
        unread.extend_from_slice(b"dyHTTP");
        assert!(matches!(reader.next(&mut unread), Ok(Piece::Data(data)) if data == "dy"));
        assert!(reader.is_over() && matches!(reader.next(&mut unread), Ok(Piece::End)));
        assert_eq!(unread, "HTTP");
    }

    #[test]
    fn without_a_length_an_answer_ends_with_its_connection_and_a_request_has_no_body() {
        let mut reader = Reader::of_answer(Length::Unsaid);
        let mut unread = BytesMut::from(&b"all"[..]);
        assert!(matches!(reader.next(&mut unread), Ok(Piece::Data(data)) if data == "all"));
        assert!(!reader.is_over() && reader.end());
        assert!(Reader::of_request(Length::Unsaid).is_over());
    }
}
