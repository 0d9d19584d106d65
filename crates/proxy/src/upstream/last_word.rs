//! Hears what a server said last, also when writing to it fails first.
//!
//! A server that refuses a request, or in TLS 1.3 a client without a certificate, says so and closes at once. What the
//! client has written by then is answered with a reset, so that its next write fails before the answer or the alert is
//! read; who writes then gives up, and the reason is lost. Here a failed write waits until the reading side has been
//! given all that had arrived.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is kept for the reading side at most; an answer's head, or an alert.
const READ_AHEAD_MAX: usize = 64 * 1024;

/// A connection to an upstream.
pub struct LastWord<T> {
    inner: T,
    read_ahead: BytesMut,
    /// How writing failed.
    failed: Option<io::ErrorKind>,
    /// How reading ended, until the reader is told.
    end: Option<io::Result<()>>,
    /// The reader has had its turn to see the end.
    offered: bool,
    /// Who reads, if that is another than who writes.
    reader: Option<Waker>,
}

impl<T> LastWord<T> {
    /// Wraps a connection; TLS must have been agreed.
    pub fn new(inner: T) -> Self {
        Self { inner, read_ahead: BytesMut::new(), failed: None, end: None, offered: false, reader: None }
    }

    /// The connection.
    pub const fn get_ref(&self) -> &T {
        &self.inner
    }
}

impl<T: AsyncRead + Unpin> LastWord<T> {
    /// Gives the write's error, once the reader has had its turn.
    fn after<R>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<R>>) -> Poll<io::Result<R>> {
        let error = match ready!(written) {
            Ok(written) => return Poll::Ready(Ok(written)),
            Err(error) => *self.failed.get_or_insert(error.kind()),
        };
        if self.offered || self.read_ahead.len() >= READ_AHEAD_MAX {
            return Poll::Ready(Err(error.into()));
        }
        if self.end.is_none() {
            ready!(self.poll_ahead(cx));
        }
        self.offered = self.end.is_some();
        cx.waker().wake_by_ref();
        // What was read here would not wake it.
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
        Poll::Pending
    }

    /// Reads what has arrived. Becomes ready soon: the peer has closed.
    fn poll_ahead(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut space = [0; 4096];
        let mut unread = ReadBuf::new(&mut space);
        match ready!(Pin::new(&mut self.inner).poll_read(cx, &mut unread)) {
            Ok(()) if unread.filled().is_empty() => self.end = Some(Ok(())),
            Ok(()) => self.read_ahead.extend_from_slice(unread.filled()),
            Err(error) => self.end = Some(Err(error)),
        }
        Poll::Ready(())
    }

    fn failed_before<R>(&self) -> Option<Poll<io::Result<R>>> {
        self.failed.map(|kind| Poll::Ready(Err(kind.into())))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for LastWord<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.read_ahead.is_empty() {
            let length = self.read_ahead.len().min(buf.remaining());
            buf.put_slice(&self.read_ahead[..length]);
            self.read_ahead.advance(length);
            return Poll::Ready(Ok(()));
        }
        match self.end.take() {
            Some(end) => Poll::Ready(end),
            None => {
                let polled = Pin::new(&mut self.inner).poll_read(cx, buf);
                if polled.is_pending()
                    && !self.reader.as_ref().is_some_and(|reader| reader.will_wake(cx.waker()))
                {
                    self.reader = Some(cx.waker().clone());
                }
                polled
            }
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for LastWord<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let before = self.failed_before();
        let written = before.unwrap_or_else(|| Pin::new(&mut self.inner).poll_write(cx, buf));
        self.after(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.failed_before();
        let flushed = before.unwrap_or_else(|| Pin::new(&mut self.inner).poll_flush(cx));
        self.after(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let before = self.failed_before();
        let written = before.unwrap_or_else(|| Pin::new(&mut self.inner).poll_write_vectored(cx, bufs));
        self.after(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};

    #[tokio::test(flavor = "current_thread")]
    async fn what_a_server_said_before_it_closed_is_read_although_writing_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut client, (mut server, _)) = (LastWord::new(client.unwrap()), server.unwrap());
        client.write_all(b"unread").await.unwrap();
        server.write_all(b"no").await.unwrap();
        drop(server);
        let (mut reading, mut writing) = tokio::io::split(client);
        let write = async {
            loop {
                if let Err(error) = writing.write_all(&[0; 1024]).await {
                    return error;
                }
            }
        };
        let mut said = Vec::new();
        let (read, error) = tokio::join!(reading.read_to_end(&mut said), write);
        assert_eq!(said, b"no", "{read:?} {error}");
    }
}
