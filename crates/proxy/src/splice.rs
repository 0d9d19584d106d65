//! Carries a connection untouched: not a byte is changed, and half-close is kept.

use std::io;

use bytes::BytesMut;
use tokio::io::{AsyncWriteExt, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;

/// Bytes moved at a time, each way. 64 KiB took about half the CPU of tokio's default of 8 KiB for bulk.
const CHUNK: usize = 64 * 1024;

/// Sends what was already read, then everything in both directions until both have ended.
///
/// Returns the bytes that went up and down.
///
/// # Errors
/// If either connection breaks.
pub async fn splice(
    downstream: &mut TcpStream,
    upstream: &mut TcpStream,
    first_up: BytesMut,
) -> io::Result<(u64, u64)> {
    upstream.write_all(&first_up).await?;
    let early = first_up.len() as u64;
    drop(first_up);
    let (up, down) = copy_bidirectional_with_sizes(downstream, upstream, CHUNK, CHUNK).await?;
    Ok((early + up, down))
}
