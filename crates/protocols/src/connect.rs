//! CONNECT (RFC 9110 §9.3.6): the request that an application sends to the explicit proxy, the answer that a corporate
//! proxy sends to ours, and the credential that both may carry.

use base64::Engine as _;
use model::Secret;

use crate::Malformed;
use crate::detect::HTTP2_PREFACE;
use crate::http::{Authority, Host, parse_authority};

/// Fields of a head that are looked at; the same number as for every other request.
pub(crate) const FIELDS_MAX: usize = 100;

/// What an application's first request to the explicit proxy is.
#[derive(Debug)]
pub enum Request {
    /// It asks for a tunnel.
    Tunnel(Tunnel),
    /// It is no request yet, but the preface of HTTP/2 (RFC 9113 §3.4).
    Http2,
    /// It is another request, to be read by whoever reads requests.
    Other,
}

/// A tunnel that is asked for.
#[derive(Debug)]
pub struct Tunnel {
    /// To which host: authority-form, which has a port (RFC 9112 §3.2.3).
    pub host: Host,
    /// To which port.
    pub port: u16,
    /// What the Host field says, if there is one.
    pub host_field: Option<Authority>,
    /// The password in `Proxy-Authorization`, if there is one.
    pub password: Option<Secret>,
    /// Bytes of the head; what follows is the tunnel's.
    pub length: usize,
}

/// Reads the head of a first request; `None` while it is not complete.
///
/// # Errors
/// If it is not valid, or could be read in two ways.
pub fn request(bytes: &[u8]) -> Result<Option<Request>, Malformed> {
    const METHOD: &[u8] = b"CONNECT ";
    let begun = bytes.len().min(HTTP2_PREFACE.len());
    if bytes[..begun] == HTTP2_PREFACE[..begun] {
        return Ok((begun == HTTP2_PREFACE.len()).then_some(Request::Http2));
    }
    let begun = bytes.len().min(METHOD.len());
    if bytes[..begun] != METHOD[..begun] {
        return Ok(Some(Request::Other));
    }
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Request::new(&mut fields);
    let length = match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(_) => return Err(Malformed("the CONNECT request is not valid HTTP/1.1")),
    };
    lines_end_in_crlf(&bytes[..length])?;
    let target = parse_authority(head.path.unwrap_or_default())?;
    let port = target.port.filter(|port| *port > 0).ok_or(Malformed("CONNECT needs a host and a port"))?;
    let hosts: Vec<&[u8]> = values(head.headers, "host").collect();
    let host_field = match hosts.as_slice() {
        [] if head.version == Some(1) => return Err(Malformed("the request has no Host field")),
        [] => None,
        [one] => {
            let text = std::str::from_utf8(one).map_err(|_| Malformed("the Host field is not ASCII"))?;
            Some(parse_authority(text.trim())?)
        }
        _ => return Err(Malformed("the request has two Host fields")),
    };
    // Content in a CONNECT has no defined meaning: what follows the head is the tunnel's.
    let framed = ["transfer-encoding", "content-length"].iter().any(|name| {
        values(head.headers, name).any(|value| *name == "transfer-encoding" || value.trim_ascii() != b"0")
    });
    if framed {
        return Err(Malformed("a CONNECT request has no content"));
    }
    let credentials: Vec<&[u8]> = values(head.headers, "proxy-authorization").collect();
    let password = match credentials.as_slice() {
        [] => None,
        [one] => basic_password(one),
        _ => return Err(Malformed("the request has two Proxy-Authorization fields")),
    };
    Ok(Some(Request::Tunnel(Tunnel { host: target.host, port, host_field, password, length })))
}

/// What a proxy answers to our CONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its status; the tunnel begins after a 2xx.
    pub status: u16,
    /// Bytes of the head; what follows is the tunnel's.
    pub length: usize,
}

/// Reads the head of an answer; `None` while it is not complete.
///
/// # Errors
/// If it is not valid HTTP.
pub fn answer(bytes: &[u8]) -> Result<Option<Answer>, Malformed> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut head = httparse::Response::new(&mut fields);
    match head.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => Ok(head.code.map(|status| Answer { status, length })),
        Ok(httparse::Status::Partial) => Ok(None),
        Err(_) => Err(Malformed("the answer to CONNECT is not valid HTTP")),
    }
}

/// The password of `Basic` credentials (RFC 7617 §2); `None` if they are something else.
#[must_use]
pub fn basic_password(value: &[u8]) -> Option<Secret> {
    let (scheme, token) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(token.trim_ascii()).ok()?;
    let whole = Secret::new(decoded);
    let colon = whole.expose().iter().position(|byte| *byte == b':')?;
    Some(Secret::new(&whole.expose()[colon + 1..]))
}

fn values<'a>(fields: &'a [httparse::Header<'a>], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    fields.iter().filter(move |field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value)
}

/// A bare LF is a line's end to some readers and not to others (RFC 9112 §2.2).
fn lines_end_in_crlf(head: &[u8]) -> Result<(), Malformed> {
    let bare = |(at, byte): (usize, &u8)| *byte == b'\n' && (at == 0 || head[at - 1] != b'\r');
    if head.iter().enumerate().any(bare) {
        return Err(Malformed("a line of the request does not end in CR LF"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use model::HostName;

    use super::*;

    fn tunnel(text: &str) -> Result<Tunnel, &'static str> {
        match request(text.as_bytes()) {
            Ok(Some(Request::Tunnel(tunnel))) => Ok(tunnel),
            Ok(Some(Request::Other)) => Err("other"),
            Ok(Some(Request::Http2)) => Err("HTTP/2"),
            Ok(None) => Err("not complete"),
            Err(Malformed(why)) => Err(why),
        }
    }

    #[test]
    fn a_tunnel_is_asked_for_in_one_form() {
        let whole = "CONNECT A.Example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\nrest";
        let good = tunnel(whole).unwrap();
        assert_eq!((good.host, good.port), (Host::Name(HostName::new("a.example").unwrap()), 443));
        assert_eq!(&whole[good.length..], "rest");
        // Python before 3.12 asks like this.
        let old = tunnel("CONNECT [::1]:443 HTTP/1.0\r\n\r\n").unwrap();
        assert_eq!((old.host, old.host_field), (Host::Address("::1".parse().unwrap()), None));
        for (bad, why) in [
            ("GET http://a.example/ HTTP/1.1\r\n\r\n", "other"),
            ("CONN", "not complete"),
            ("CONNECT a.example:443 HTTP/1.1\r\nHost: a.exa", "not complete"),
            ("CONNECT a.example:443 HTTP/1.1\r\n\r\n", "the request has no Host field"),
            ("CONNECT a.example HTTP/1.0\r\n\r\n", "CONNECT needs a host and a port"),
            ("CONNECT a.example:0 HTTP/1.0\r\n\r\n", "CONNECT needs a host and a port"),
            (
                "CONNECT http://a.example:443 HTTP/1.0\r\n\r\n",
                "the request's host has something after it that is no port",
            ),
            ("CONNECT u:p@a.example:443 HTTP/1.0\r\n\r\n", "the request's host has user information"),
            ("CONNECT 2130706433:80 HTTP/1.0\r\n\r\n", "the request's host is not a name"),
            ("CONNECT 0x7f000001:80 HTTP/1.0\r\n\r\n", "the request's host is not a name"),
            ("CONNECT 0x7f.1:80 HTTP/1.0\r\n\r\n", "the request's host is not a name"),
            ("CONNECT 0177.0.0.1:80 HTTP/1.0\r\n\r\n", "the request's host is not a name"),
            ("CONNECT 127.1:80 HTTP/1.0\r\n\r\n", "the request's host is not a name"),
            ("CONNECT a.example:1 HTTP/1.0\n\n", "a line of the request does not end in CR LF"),
            ("CONNECT a.example:1 HTTP/1.0\r\nContent-Length: 3\r\n\r\n", "a CONNECT request has no content"),
            ("CONNECT a.example:1 HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", "the request has two Host fields"),
        ] {
            assert_eq!(tunnel(bad).err(), Some(why), "{bad}");
        }
    }

    #[test]
    fn an_answer_is_read_up_to_where_the_tunnel_begins() {
        let whole = b"HTTP/1.0 200 Connection established\r\nProxy-agent: x\r\n\r\n220 hello";
        let read = answer(whole).unwrap().unwrap();
        assert_eq!((read.status, &whole[read.length..]), (200, &b"220 hello"[..]));
        assert_eq!(answer(&whole[..20]), Ok(None));
        assert!(answer(b"220 hello\r\n\r\n").is_err());
    }

    #[test]
    fn a_password_is_read_and_does_not_show() {
        let password = basic_password(b"bAsIc dXNlcjpzZWM6cmV0").unwrap();
        assert_eq!(password.expose(), b"sec:ret");
        assert_eq!(format!("{password:?}"), "Secret(***)");
        for bad in [&b"Basic"[..], b"Basic !", b"Basic dXNlcg==", b"Bearer dXNlcjpzZWM6cmV0", b""] {
            assert!(basic_password(bad).is_none(), "{bad:?}");
        }
    }
}
