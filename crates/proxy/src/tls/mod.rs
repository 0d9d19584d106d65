//! Stage 2, tls: open it or leave it shut?
//!
//! The first bytes are read, never consumed: a connection that is left shut goes on byte for byte as it came, and
//! nothing at all is written to the application before its bytes are known to be TLS that we open. [`terminate`] opens it,
//! with a leaf from [`leaves`]; [`distrust`] tells from how it ends whether the application trusts us.

pub mod distrust;
pub mod leaves;
pub mod terminate;

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use model::destination::HttpVersion;
use protocols::client_hello::{self, ClientHello};
use protocols::detect::{self, Detected};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Bytes that are read at most to find out what a connection is. A ClientHello with post-quantum key shares has
/// about 2 KiB; the head of an HTTP/1 request is bounded by the same number as in stage 3.
const OPENING_MAX: usize = 64 * 1024;

/// How a connection begins.
pub enum Opening {
    /// TLS, with what its ClientHello says.
    Tls(Box<ClientHello>),
    /// A request of HTTP/1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113 §3.3).
    Http2,
    /// Something else, TLS that can't be read, or nothing at all before the application ended its side.
    Unknown,
    /// It began like TLS and stopped in the middle of its ClientHello.
    Unfinished,
}

/// Waits until the application says something, or ends its side, which is an answer too.
///
/// # Errors
/// If the connection breaks.
pub async fn first_bytes(stream: &mut TcpStream, first: &mut BytesMut) -> io::Result<()> {
    stream.read_buf(first).await.map(drop)
}

/// Reads until it is clear how the connection begins; what was read is left in `first`. What stops in the middle does not
/// become clearer by waiting for longer than `patience`. It is then what it began as if that `counts`, because a policy may
/// cover what it was going to name.
///
/// # Errors
/// If the connection breaks.
pub async fn peek(
    stream: &mut TcpStream,
    first: &mut BytesMut,
    patience: Duration,
    counts: bool,
) -> io::Result<Opening> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(opening) = recognise(first) {
            return Ok(opening);
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(first)).await {
            Err(_) => return Ok(unfinished(first, counts)),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(0)) => return Ok(Opening::Unknown),
            Ok(Ok(_)) => {}
        }
    }
}

/// What stopped before it was clear.
fn unfinished(first: &[u8], counts: bool) -> Opening {
    match detect::leaning(first) {
        Some(Detected::Tls) if counts || detect::detect(first).is_some() => Opening::Unfinished,
        Some(Detected::Http1) if counts => Opening::Http1,
        Some(Detected::Http2Preface) if counts => Opening::Http2,
        _ => Opening::Unknown,
    }
}

/// What the bytes so far are, if that is already clear.
fn recognise(first: &[u8]) -> Option<Opening> {
    match detect::detect(first)? {
        Detected::Tls => match client_hello::parse(first) {
            Ok(Some(hello)) => Some(Opening::Tls(Box::new(hello))),
            Ok(None) if first.len() < OPENING_MAX => None,
            Ok(None) | Err(_) => Some(Opening::Unknown),
        },
        Detected::Http1 => Some(Opening::Http1),
        Detected::Http2Preface => Some(Opening::Http2),
        Detected::Unknown => Some(Opening::Unknown),
    }
}

/// The versions of HTTP among the protocols that an application offers; HTTP/1.1 if it offers none at all.
///
/// Empty if it offers only what we do not know: the connection then counts as an unknown protocol.
pub fn offered_versions(hello: &ClientHello) -> Vec<HttpVersion> {
    if hello.alpn.is_empty() {
        return vec![HttpVersion::Http1];
    }
    let known = [HttpVersion::Http2, HttpVersion::Http1];
    known.into_iter().filter(|version| hello.alpn.iter().any(|name| **name == *version.alpn())).collect()
}
