//! Notices that an application of HTTP/1 has closed its side, also while nobody reads from it.
//!
//! hyper sees the end of a connection only when it reads, and it does not read while bytes that it can't use yet lie in
//! its buffer: the next request of a pipeline, or a body that the upstream does not take. The kernel knows all the same,
//! and tells beside the data (`EPOLLRDHUP`).

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tokio_rustls::server::TlsStream;

use super::rewind::Rewind;

/// How often the kernel is asked while nobody reads.
const LOOK: Duration = Duration::from_millis(250);

/// What has a TCP connection below it.
pub trait Tcp {
    /// That connection.
    fn tcp(&self) -> &TcpStream;
}

impl Tcp for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl<T: Tcp> Tcp for Rewind<T> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
    }
}

impl<T: Tcp> Tcp for TlsStream<T> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0.tcp()
    }
}

impl<T: Tcp> Tcp for crate::tls::distrust::Watched<T> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().tcp()
    }
}

impl<T: Tcp> Tcp for Box<T> {
    fn tcp(&self) -> &TcpStream {
        (**self).tcp()
    }
}

/// A connection that somebody else may look at.
pub struct Watched<T> {
    io: Rc<RefCell<T>>,
    reading: Rc<Cell<bool>>,
}

/// Whoever looks at it.
pub struct Watch<T> {
    io: Rc<RefCell<T>>,
    /// A read is waiting, and will see the end by itself.
    reading: Rc<Cell<bool>>,
    next: Option<Pin<Box<Sleep>>>,
}

impl<T> Watched<T> {
    /// Wraps a connection.
    pub fn new(io: T) -> (Self, Watch<T>) {
        let (io, reading) = (Rc::new(RefCell::new(io)), Rc::default());
        let watch = Watch { io: io.clone(), reading: Rc::clone(&reading), next: None };
        (Self { io, reading }, watch)
    }
}

impl<T: Tcp> Watch<T> {
    /// Ready once the application has closed its side and nobody would notice.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.reading.get() {
            let next = self.next.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
            ready!(next.as_mut().poll(cx));
            self.next = None;
            // Beside data that nobody has read, only this interest tells of the end alone.
            let closed = self.io.borrow().tcp().ready(Interest::PRIORITY).now_or_never();
            if closed.is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed())) {
                return Poll::Ready(());
            }
        }
        Poll::Pending
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, buf);
        self.reading.set(polled.is_pending());
        polled
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.borrow().is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    #[tokio::test(flavor = "current_thread")]
    async fn an_end_behind_unread_bytes_is_noticed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (client, server) =
            tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut client, (mut watched, mut watch)) = (client.unwrap(), Watched::new(server.unwrap().0));
        client.write_all(b"unread").await.unwrap();
        let mut gone = async || std::future::poll_fn(|cx| watch.poll_gone(cx)).await;
        let early = tokio::time::timeout(LOOK * 3, gone()).await;
        assert!(early.is_err(), "it is still there");
        client.shutdown().await.unwrap();
        tokio::time::timeout(LOOK * 20, gone()).await.unwrap();
        assert_eq!(watched.read_u8().await.unwrap(), b'u');
    }
}
