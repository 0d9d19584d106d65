//! The host and port of a plain HTTP connection's first request, read without taking it from the connection.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use model::HostName;
use protocols::http::{Host, parse_authority};
use protocols::http1::head::{self, Bounds, Scan};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// What a first head says.
pub enum First {
    /// One host, and perhaps a port.
    Host(HostName, Option<u16>),
    /// None that can be judged by, or two; or it is none that stage 3 would read, or has not ended.
    Nameless,
    /// It is none of HTTP: its first line says no version.
    Other,
}

/// Reads on until the head is complete, into `first`, within the bounds of stage 3.
pub async fn read(stream: &mut TcpStream, first: &mut BytesMut, bounds: Bounds, patience: Duration) -> First {
    let deadline = tokio::time::Instant::now() + patience;
    let mut scan = Scan::default();
    loop {
        match scan.end(first, bounds) {
            Ok(Some(end)) => {
                let named = host_of(&Bytes::copy_from_slice(&first[..end]), scan.fields());
                return named.map_or(First::Nameless, |(host, port)| First::Host(host, port));
            }
            Ok(None) => {}
            Err(_) if is_other(first) => return First::Other,
            Err(_) => return First::Nameless,
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(first)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return First::Nameless,
        }
    }
}

/// Whether the first line is one that nobody takes for a request's. HTTP/0.9, which had no version, has no hosts either.
fn is_other(first: &[u8]) -> bool {
    let begun = first.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line = first[begun..].split(|byte| *byte == b'\n').next().unwrap_or_default();
    !line.windows(5).any(|five| five.eq_ignore_ascii_case(b"HTTP/"))
}

fn host_of(head: &Bytes, count: usize) -> Option<(HostName, Option<u16>)> {
    let head = head::request(head, count).ok()?;
    let mut hosts = head.fields.headers.get_all(HOST).iter();
    let authority = parse_authority(hosts.next()?.to_str().ok()?).ok()?;
    match authority.host {
        Host::Name(name) if hosts.next().is_none() => Some((name, authority.port)),
        _ => None,
    }
}
