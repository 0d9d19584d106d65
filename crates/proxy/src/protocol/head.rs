//! The host and port of a plain HTTP connection's first request, read without taking it from the connection.

use std::time::Duration;

use bytes::BytesMut;
use model::HostName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// Bytes of a head that are read at most to find its host.
const HEAD_MAX: usize = 64 * 1024;

/// Fields of a head that are looked at; the same number as in stage 3.
const FIELDS_MAX: usize = 100;

/// Reads on until the head is complete, into `first`; `None` if it names no host that can be judged by, or two.
pub async fn host(
    stream: &mut TcpStream,
    first: &mut BytesMut,
    patience: Duration,
) -> Option<(HostName, Option<u16>)> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
        let mut head = httparse::Request::new(&mut fields);
        match head.parse(first) {
            Ok(httparse::Status::Complete(_)) => return host_of(&head),
            Ok(httparse::Status::Partial) if first.len() < HEAD_MAX => {}
            Ok(httparse::Status::Partial) | Err(_) => return None,
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(first)).await {
            Ok(Ok(read)) if read > 0 => {}
            _ => return None,
        }
    }
}

/// Whether a whole head has been read, however it is to be understood.
pub fn is_complete(first: &[u8]) -> bool {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    first.len() >= HEAD_MAX
        || !matches!(httparse::Request::new(&mut fields).parse(first), Ok(status) if status.is_partial())
}

fn host_of(head: &httparse::Request<'_, '_>) -> Option<(HostName, Option<u16>)> {
    let mut hosts = head.headers.iter().filter(|field| field.name.eq_ignore_ascii_case("host"));
    let value = std::str::from_utf8(hosts.next()?.value).ok()?;
    if hosts.next().is_some() {
        return None;
    }
    let authority: http::uri::Authority = value.trim().parse().ok()?;
    Some((HostName::new(authority.host()).ok()?, authority.port_u16()))
}
