//! A connection whose first bytes were read to see what it is, given on as if nobody had looked.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};

/// An I/O object with bytes to be read before its own.
pub struct Rewind<T> {
    first: BytesMut,
    inner: T,
}

impl<T> Rewind<T> {
    /// `first` is read before anything that `inner` still has.
    pub fn new(first: BytesMut, inner: T) -> Self {
        Self { first, inner }
    }

    /// What is below.
    pub fn get_ref(&self) -> &T {
        &self.inner
    }

    /// The two parts again; `first` holds what was not read yet.
    pub fn into_parts(self) -> (BytesMut, T) {
        (self.first, self.inner)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Rewind<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.first.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let length = self.first.len().min(buf.remaining());
        buf.put_slice(&self.first[..length]);
        self.first.advance(length);
        if self.first.is_empty() {
            // The buffer of a large ClientHello is not kept for the life of the connection.
            self.first = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

crate::delegate::delegate_writes!(Rewind);
