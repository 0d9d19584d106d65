//! The host and port of a plain HTTP connection's first request, read without taking it from the connection.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::HOST;
use model::HostName;
use protocols::http::{Host, parse_authority};
use protocols::http1::head::{self, Bounds, Scan};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Reads on until the head is complete, into `first`; `None` if it names no host that can be judged by, or two, or is
/// not one that stage 3 would read, within the same bounds.
pub async fn host(
    stream: &mut TcpStream,
    first: &mut BytesMut,
    bounds: Bounds,
    patience: Duration,
) -> Option<(HostName, Option<u16>)> {
    let deadline = tokio::time::Instant::now() + patience;
    let mut scan = Scan::default();
    loop {
        if let Some(end) = scan.end(first, bounds).ok()? {
            return host_of(&Bytes::copy_from_slice(&first[..end]), scan.fields());
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(first)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return None,
        }
    }
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
