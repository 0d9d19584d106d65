//! Follows what an HTTP/1 peer sends from message to message, and stops at what could be read in two ways (RFC 9112
//! §§2.2, 3, 5, 6 and 7; docs/framing.md).
//!
//! It stands in front of the library that reads the messages, which forgives more than we do. Both find the same ends:
//! where they might not, the message is refused here.

use crate::Malformed;

/// Digits of a chunk's size that are read; more would not fit 64 bits.
const SIZE_DIGITS_MAX: usize = 16;

/// Digits of a Content-Length that are read.
const LENGTH_DIGITS_MAX: usize = 18;

/// What was wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// So many of the bytes just given are sound: what is wrong begins after them. The head of a message is wrong from
    /// its first byte.
    pub sound: usize,
    /// What is wrong.
    pub why: Malformed,
}

/// The requests of one connection.
#[derive(Debug, Default)]
pub struct Requests {
    state: State,
    head: Head,
    line: Line,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Head,
    Length(u64),
    ChunkSize,
    ChunkData(u64),
    ChunkEnd,
    Trailers,
}

impl Requests {
    /// Looks at the next bytes of the connection.
    ///
    /// # Errors
    /// At what could be read in two ways. Nothing after that has a meaning; don't ask again.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let mut at = 0;
        // Where the message that is being read begins, in these bytes.
        let mut begun = 0;
        while at < bytes.len() {
            let rest = &bytes[at..];
            match &mut self.state {
                State::Length(left) | State::ChunkData(left) => {
                    let taken = rest.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    *left -= taken as u64;
                    at += taken;
                    if *left == 0 {
                        let chunked = matches!(self.state, State::ChunkData(_));
                        self.state = if chunked { State::ChunkEnd } else { State::Head };
                        begun = at;
                    }
                }
                _ => {
                    let (line, taken) = match self.line.take(rest) {
                        Ok(Some(found)) => found,
                        Ok(None) => return Ok(()),
                        Err(why) => return Err(Fault { sound: begun, why }),
                    };
                    let next = match self.state {
                        State::Head => self.head.line(line).and_then(|ended| {
                            if ended { std::mem::take(&mut self.head).body() } else { Ok(State::Head) }
                        }),
                        State::ChunkSize => chunk_size(line),
                        State::ChunkEnd if line.is_empty() => Ok(State::ChunkSize),
                        State::ChunkEnd => Err(Malformed("a chunk is longer than its size says")),
                        _ => trailer(line),
                    };
                    self.line.clear();
                    let next = next.map_err(|why| Fault { sound: begun, why })?;
                    at += taken;
                    // A head is wrong as a whole; within a body each line stands for itself.
                    if next != State::Head || self.state != State::Head || self.head.is_new() {
                        begun = at;
                    }
                    self.state = next;
                }
            }
        }
        Ok(())
    }
}

/// The heads of one upstream's answers. Bodies are not looked at: an upstream is asked one thing at a time, so that
/// what follows an answer is nothing that could be taken for another.
#[derive(Debug, Default)]
pub struct Answers {
    reading: bool,
    head: Head,
    line: Line,
}

impl Answers {
    /// A request has been sent: a head is what comes next.
    pub fn expect(&mut self) {
        *self = Self { reading: true, ..Self::default() };
    }

    /// Looks at the next bytes of the connection.
    ///
    /// # Errors
    /// At a head that could be read in two ways. Nothing after that has a meaning.
    pub fn follow(&mut self, bytes: &[u8]) -> Result<(), Fault> {
        let (mut at, mut begun) = (0, 0);
        while self.reading && at < bytes.len() {
            let fault = |why| Fault { sound: begun, why };
            let Some((line, taken)) = self.line.take(&bytes[at..]).map_err(fault)? else { return Ok(()) };
            let ended = self.head.line(line).map_err(fault)?;
            self.line.clear();
            at += taken;
            if ended {
                // After an interim answer (RFC 9110 §15.2) there is another; after 101 there is something else.
                self.reading = std::mem::take(&mut self.head).is_interim();
                begun = at;
            }
        }
        Ok(())
    }
}

/// The line that is being read, as far as it came with bytes that are gone.
#[derive(Debug, Default)]
struct Line(Vec<u8>);

impl Line {
    /// The next whole line without its end, and how many of `bytes` belong to it.
    fn take<'a>(&'a mut self, bytes: &'a [u8]) -> Result<Option<(&'a [u8], usize)>, Malformed> {
        let Some(end) = memchr::memchr(b'\n', bytes) else {
            self.0.extend_from_slice(bytes);
            return Ok(None);
        };
        let line = if self.0.is_empty() {
            &bytes[..end]
        } else {
            self.0.extend_from_slice(&bytes[..end]);
            &self.0[..]
        };
        let line = line.strip_suffix(b"\r").ok_or(Malformed("a line ends with LF alone"))?;
        if memchr::memchr2(b'\r', 0, line).is_some() {
            return Err(Malformed("a line has CR or NUL in it"));
        }
        Ok(Some((line, end + 1)))
    }

    fn clear(&mut self) {
        // What was kept of a long line is not kept for the life of the connection.
        self.0 = Vec::new();
    }
}

/// What of a head decides where its message ends.
#[derive(Debug, Default)]
struct Head {
    begun: bool,
    old: bool,
    interim: bool,
    length: Option<u64>,
    chunked: bool,
}

impl Head {
    /// Whether nothing of it has come yet.
    fn is_new(&self) -> bool {
        !self.begun
    }

    fn is_interim(&self) -> bool {
        self.interim
    }

    /// Takes a line; says whether it was the last.
    fn line(&mut self, line: &[u8]) -> Result<bool, Malformed> {
        if !self.begun {
            // RFC 9112 §2.2: an empty line before a request is ignored.
            if !line.is_empty() {
                self.first(line)?;
            }
            return Ok(false);
        }
        if line.is_empty() {
            return Ok(true);
        }
        if matches!(line[0], b' ' | b'\t') {
            return Err(Malformed("a field goes on over several lines (obs-fold)"));
        }
        let colon = memchr::memchr(b':', line).ok_or(Malformed("a field has no colon"))?;
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        match name.len() {
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value)?,
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value)?,
            _ => {}
        }
        Ok(false)
    }

    fn first(&mut self, line: &[u8]) -> Result<(), Malformed> {
        self.begun = true;
        if let Some(status) = line.strip_prefix(b"HTTP/1.") {
            self.interim = status.get(2..5).is_some_and(|code| code[0] == b'1' && code != b"101");
            self.old = status.first() == Some(&b'0');
            return Ok(());
        }
        // RFC 9112 §3.2: no form of a target has a fragment; who reads it drops it in silence.
        if memchr::memchr(b'#', line).is_some() {
            return Err(Malformed("the request's target has a fragment"));
        }
        self.old = line.ends_with(b"HTTP/1.0");
        Ok(())
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.length.is_some() {
            return Err(Malformed("there are two Content-Length fields"));
        }
        if self.chunked {
            return Err(Malformed("there are both Transfer-Encoding and Content-Length"));
        }
        if value.is_empty() || value.len() > LENGTH_DIGITS_MAX || !value.iter().all(u8::is_ascii_digit) {
            return Err(Malformed("the Content-Length is not a number"));
        }
        self.length = Some(value.iter().fold(0, |sum, digit| sum * 10 + u64::from(digit - b'0')));
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), Malformed> {
        if self.length.is_some() {
            return Err(Malformed("there are both Transfer-Encoding and Content-Length"));
        }
        if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
            return Err(Malformed("the Transfer-Encoding is something else than chunked"));
        }
        if self.old {
            return Err(Malformed("only HTTP/1.1 has Transfer-Encoding"));
        }
        self.chunked = true;
        Ok(())
    }

    /// What follows the head of a request (RFC 9112 §6.3).
    fn body(self) -> Result<State, Malformed> {
        Ok(match self.length {
            _ if self.chunked => State::ChunkSize,
            Some(length) if length > 0 => State::Length(length),
            _ => State::Head,
        })
    }
}

/// RFC 9112 §7.1: hexadecimal digits; an extension after them means nothing to us and ends here.
fn chunk_size(line: &[u8]) -> Result<State, Malformed> {
    let digits = line.iter().position(|byte| *byte == b';').map_or(line, |end| &line[..end]);
    if digits.is_empty()
        || digits.len() > SIZE_DIGITS_MAX
        || !digits.iter().all(u8::is_ascii_hexdigit)
        || line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
    {
        return Err(Malformed("a chunk's size is not a number"));
    }
    let text = std::str::from_utf8(digits).unwrap_or_default();
    match u64::from_str_radix(text, 16) {
        Ok(0) => Ok(State::Trailers),
        Ok(size) => Ok(State::ChunkData(size)),
        Err(_) => Err(Malformed("a chunk's size is not a number")),
    }
}

fn trailer(line: &[u8]) -> Result<State, Malformed> {
    match line.first() {
        None => Ok(State::Head),
        Some(b' ' | b'\t') => Err(Malformed("a trailer field goes on over several lines (obs-fold)")),
        Some(_) => Ok(State::Trailers),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How the requests are read, whole and byte by byte: `None` if they are sound.
    #[track_caller]
    fn fault(bytes: &[u8]) -> Option<(usize, &'static str)> {
        let whole = Requests::default().follow(bytes).err();
        let mut bit_by_bit = Requests::default();
        let parts = bytes.iter().find_map(|byte| bit_by_bit.follow(&[*byte]).err());
        assert_eq!(whole.as_ref().map(|f| &f.why), parts.as_ref().map(|f| &f.why), "{bytes:?}");
        whole.map(|fault| (fault.sound, fault.why.0))
    }

    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

    #[test]
    fn messages_that_can_be_read_in_one_way_are_sound() {
        let chunked = b"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n3;a=\"b\"\r\nabc\r\nA\r\n0123\n\r\x00789\r\n0\r\nx: y\r\n\r\n";
        let counted = b"POST / HTTP/1.1\r\nCONTENT-LENGTH:  4 \r\n\r\n\n\n\n\n";
        let old = b"\r\nGET / HTTP/1.0\r\n\r\n";
        for message in [GET, &chunked[..], counted, old] {
            assert_eq!(fault(&[message, message, GET].concat()), None);
        }
    }

    #[test]
    fn a_head_that_can_be_read_in_two_ways_is_wrong_from_its_first_byte() {
        for head in [
            &b"GET / HTTP/1.1\nHost: a\n\n"[..],
            b"GET / HTTP/1.1\r\nHost: a\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n\n",
            b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
            b"GET / HTTP/1.1\r\nX: a\r\n b\r\n\r\n",
            b"GET / HTTP/1.1\r\nno colon\r\n\r\n",
            b"GET /#a HTTP/1.1\r\n\r\n",
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
            b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n",
        ] {
            assert_eq!(fault(head).map(|(sound, _)| sound), Some(0), "{head:?}");
            let (sound, _) = fault(&[GET, head].concat()).expect("the second is as wrong");
            assert_eq!(sound, GET.len(), "{head:?}");
        }
    }

    #[test]
    fn a_body_that_can_be_read_in_two_ways_is_wrong_where_it_is() {
        let head = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
        for (sound, body) in [
            (0, &b"3\nabc\r\n0\r\n\r\n"[..]),
            (0, b"3 \r\nabc\r\n0\r\n\r\n"),
            (0, b"0x3\r\nabc\r\n0\r\n\r\n"),
            (0, b"-3\r\nabc\r\n0\r\n\r\n"),
            (0, b"10000000000000003\r\nabc\r\n0\r\n\r\n"),
            (0, b"3;a\nb\r\nabc\r\n0\r\n\r\n"),
            (0, b"\r\n\r\n"),
            (6, b"3\r\nabcd\r\n0\r\n\r\n"),
            (6, b"3\r\nabc\n0\r\n\r\n"),
            (11, b"3\r\nabc\r\n0\r\nx: y\n\r\n"),
            (17, b"3\r\nabc\r\n0\r\nx: y\r\n z\r\n\r\n"),
        ] {
            assert_eq!(
                fault(&[head, body].concat()).map(|(sound, _)| sound),
                Some(head.len() + sound),
                "{}",
                body.escape_ascii()
            );
        }
    }

    #[test]
    fn heads_of_answers_are_followed_and_bodies_are_not() {
        let mut answers = Answers::default();
        answers.expect();
        let good = b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n\n\0\n\n";
        assert_eq!(answers.follow(good), Ok(()));
        assert_eq!(answers.follow(b"\nanything\n"), Ok(()));
        answers.expect();
        assert_eq!(answers.follow(b"HTTP/1.1 200 O"), Ok(()));
        assert_eq!(answers.follow(b"K\nX: y\r\n").unwrap_err().sound, 0);
        answers.expect();
        assert_eq!(answers.follow(b"HTTP/1.1 101 Switching Protocols\r\n\r\n\n\0"), Ok(()));
        for wrong in [
            &b"HTTP/1.1 200 OK\r\nX: y\n\r\n"[..],
            b"HTTP/1.1 200 OK\r\nX: y\0\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: y\r\n z\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\n\n",
        ] {
            answers.expect();
            assert!(answers.follow(wrong).is_err(), "{}", wrong.escape_ascii());
        }
    }
}
