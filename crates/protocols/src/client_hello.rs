//! What a TLS ClientHello says: server name, application protocols, whether it is encrypted (RFC 8446 §4.1.2).
//!
//! A function over the bytes so far that can say "not yet"; the reading loop and its patience live elsewhere. Records
//! and segments may be cut anywhere.

use model::HostName;

use crate::Malformed;

/// Bytes of a ClientHello that are read at most: with post-quantum key shares it has about 2 KiB, and its length field
/// could say 16 MiB.
pub const MAX_BYTES: usize = 64 * 1024;

/// What a ClientHello says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The server name (RFC 6066 §3), if it is a host name. With ECH this is the outer name.
    pub sni: Option<HostName>,
    /// The application protocols offered (RFC 7301 §3.1), in order; empty if the extension is absent.
    pub alpn: Vec<Box<[u8]>>,
    /// Whether it carries an encrypted inner hello, or GREASE that looks like one (RFC 9849).
    pub ech: bool,
}

const RECORD_HANDSHAKE: u8 = 22;
const HANDSHAKE_CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const EXTENSION_ALPN: u16 = 16;
const EXTENSION_ECH: u16 = 0xfe0d;
const NAME_TYPE_HOST: u8 = 0;

/// Longest record body that a peer may send (RFC 8446 §5.2 allows 2^14 + 256 for ciphertext; a hello is plain).
const RECORD_MAX: usize = 1 << 14;

/// Reads a ClientHello from the beginning of a connection; `None` if more bytes are needed.
///
/// # Errors
/// If the bytes can't become a ClientHello, or are too many.
pub fn parse(bytes: &[u8]) -> Result<Option<ClientHello>, Malformed> {
    match handshake(bytes)? {
        Some(message) => hello(&message).map(Some),
        None if bytes.len() >= MAX_BYTES => Err(Malformed("the ClientHello is too long")),
        None => Ok(None),
    }
}

/// Puts the first handshake message together from its records: its body, without the four bytes of its header.
fn handshake(bytes: &[u8]) -> Result<Option<Vec<u8>>, Malformed> {
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        if let Some(length) = message_length(&message)?
            && message.len() >= 4 + length
        {
            message.truncate(4 + length);
            message.drain(..4);
            return Ok(Some(message));
        }
        let Some((header, body)) = rest.split_first_chunk::<5>() else {
            return Ok(None);
        };
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        if header[0] != RECORD_HANDSHAKE || header[1] != 3 {
            return Err(Malformed("not a handshake record"));
        }
        if length == 0 || length > RECORD_MAX {
            return Err(Malformed("a record of impossible length"));
        }
        message.extend_from_slice(&body[..length.min(body.len())]);
        if body.len() < length {
            // Only a whole message counts, but one that can't become a ClientHello is refused at once.
            let complete = message_length(&message)?.is_some_and(|needed| message.len() >= 4 + needed);
            if !complete {
                return Ok(None);
            }
        }
        rest = body.get(length..).unwrap_or_default();
    }
}

fn message_length(message: &[u8]) -> Result<Option<usize>, Malformed> {
    if message.first().is_some_and(|kind| *kind != HANDSHAKE_CLIENT_HELLO) {
        return Err(Malformed("not a ClientHello"));
    }
    let Some([_, high, middle, low]) = message.first_chunk::<4>() else { return Ok(None) };
    let length = usize::from(*high) << 16 | usize::from(*middle) << 8 | usize::from(*low);
    if length > MAX_BYTES {
        return Err(Malformed("the ClientHello is too long"));
    }
    Ok(Some(length))
}

fn hello(body: &[u8]) -> Result<ClientHello, Malformed> {
    let mut rest = Reader(body);
    rest.take(2 + 32)?; // legacy_version, random
    rest.vector8()?; // legacy_session_id
    rest.vector16()?; // cipher_suites
    rest.vector8()?; // legacy_compression_methods
    let mut found = ClientHello::default();
    if rest.0.is_empty() {
        // TLS 1.2 allows a hello without extensions.
        return Ok(found);
    }
    let mut extensions = Reader(rest.vector16()?);
    if !rest.0.is_empty() {
        return Err(Malformed("bytes after the extensions"));
    }
    let (mut names, mut protocols) = (0, 0);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let value = extensions.vector16()?;
        match kind {
            EXTENSION_SERVER_NAME => {
                names += 1;
                found.sni = server_name(value)?;
            }
            EXTENSION_ALPN => {
                protocols += 1;
                found.alpn = alpn(value)?;
            }
            EXTENSION_ECH => found.ech = true,
            _ => {}
        }
    }
    if names > 1 || protocols > 1 {
        return Err(Malformed("an extension is there twice"));
    }
    Ok(found)
}

/// `None` if the name is not a host name that can be judged by: the connection then has no name.
fn server_name(value: &[u8]) -> Result<Option<HostName>, Malformed> {
    let mut list = Reader(Reader(value).vector16()?);
    let kind = list.u8()?;
    let name = list.vector16()?;
    if kind != NAME_TYPE_HOST || !list.0.is_empty() {
        return Err(Malformed("a server name that is not one host name"));
    }
    let text = std::str::from_utf8(name).map_err(|_| Malformed("a server name that is not ASCII"))?;
    if !text.is_ascii() {
        return Err(Malformed("a server name that is not ASCII"));
    }
    Ok(HostName::new(text).ok())
}

fn alpn(value: &[u8]) -> Result<Vec<Box<[u8]>>, Malformed> {
    let mut list = Reader(Reader(value).vector16()?);
    let mut names = Vec::new();
    while !list.0.is_empty() {
        let name = list.vector8()?;
        if name.is_empty() {
            return Err(Malformed("an empty protocol name"));
        }
        names.push(name.into());
    }
    Ok(names)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) =
            self.0.split_at_checked(length).ok_or(Malformed("a length that runs past the end"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector8(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u8()?;
        self.take(usize::from(length))
    }

    fn vector16(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u16()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(kind: u16, value: &[u8]) -> Vec<u8> {
        [&kind.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
    }

    fn sni(name: &str) -> Vec<u8> {
        let name = name.as_bytes();
        let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name].concat();
        extension(0, &[&(entry.len() as u16).to_be_bytes()[..], &entry].concat())
    }

    fn alpn_of(names: &[&[u8]]) -> Vec<u8> {
        let list: Vec<u8> = names.iter().flat_map(|name| [&[name.len() as u8][..], name].concat()).collect();
        extension(16, &[&(list.len() as u16).to_be_bytes()[..], &list].concat())
    }

    /// A hello with these extensions, in records of at most `record` bytes.
    fn made(extensions: &[Vec<u8>], record: usize) -> Vec<u8> {
        let extensions = extensions.concat();
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend((extensions.len() as u16).to_be_bytes());
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend((body.len() as u16).to_be_bytes());
        message.extend(body);
        message
            .chunks(record)
            .flat_map(|chunk| [&[22, 3, 1][..], &(chunk.len() as u16).to_be_bytes(), chunk].concat())
            .collect()
    }

    #[test]
    fn reads_name_and_protocols_in_any_fragmentation() {
        let extensions = [sni("API.example.com"), alpn_of(&[b"h2", b"http/1.1"])];
        for record in [1, 2, 7, 100, 16_384] {
            let bytes = made(&extensions, record);
            for end in 0..bytes.len() {
                assert_eq!(parse(&bytes[..end]), Ok(None), "{record} {end}");
            }
            let hello = parse(&bytes).unwrap().unwrap();
            assert_eq!(hello.sni.unwrap().as_str(), "api.example.com");
            assert_eq!(hello.alpn, [b"h2".as_slice().into(), b"http/1.1".as_slice().into()]);
            let with_more = [&bytes[..], b"more"].concat();
            assert!(parse(&with_more).unwrap().is_some(), "what follows is not looked at");
        }
    }

    #[test]
    fn a_hello_larger_than_a_record_is_read() {
        let key_share = extension(51, &vec![9; 20_000]);
        let bytes = made(&[key_share, sni("a.example")], 16_384);
        assert_eq!(parse(&bytes).unwrap().unwrap().sni.unwrap().as_str(), "a.example");
    }

    #[test]
    fn no_name_an_address_and_ech() {
        assert_eq!(parse(&made(&[], 999)).unwrap().unwrap(), ClientHello::default());
        assert_eq!(parse(&made(&[sni("127.0.0.1")], 999)).unwrap().unwrap().sni, None);
        assert!(parse(&made(&[extension(0xfe0d, b"x")], 999)).unwrap().unwrap().ech);
    }

    #[test]
    fn refuses_what_can_not_be_one() {
        let cases: [&[u8]; 6] = [
            b"\x16\x03\x01\x00\x00",
            b"\x17\x03\x01\x00\x05",
            b"\x16\x03\x01\x00\x01\x02",
            b"\x16\x03\x01\xff\xff",
            b"\x16\x03\x01\x00\x04\x01\xff\xff\xff",
            b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",
        ];
        for bytes in cases {
            assert!(parse(bytes).is_err(), "{bytes:?}");
        }
        assert!(parse(&made(&[sni("a.example"), sni("b.example")], 999)).is_err(), "two names");
    }
}
