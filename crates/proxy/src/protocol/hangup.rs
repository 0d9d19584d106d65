//! Notices that an application of HTTP/1 has closed its side, also while nobody reads from it.
//!
//! The end of a connection is seen by reading, and nobody reads while there are bytes that can't be used yet: the next
//! request of a pipeline, or a body that the upstream does not take. The kernel knows all the same, and tells beside the
//! data (`EPOLLRDHUP`).

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt as _;
use tokio::io::Interest;
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

/// Whether the peer has ended its direction, as far as the kernel knows.
pub fn is_closed(stream: &TcpStream) -> bool {
    // Beside data that nobody has read, only this interest tells of the end alone.
    stream
        .ready(Interest::PRIORITY)
        .now_or_never()
        .is_some_and(|ready| ready.is_ok_and(|ready| ready.is_read_closed()))
}

/// Looks at a connection now and then.
#[derive(Default)]
pub struct Watch(Option<Pin<Box<Sleep>>>);

impl Watch {
    /// Ready once it `is_closed`; to be polled only while nobody reads from it.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>, is_closed: impl Fn() -> bool) -> Poll<()> {
        loop {
            let next = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep(LOOK)));
            ready!(next.as_mut().poll(cx));
            self.0 = None;
            if is_closed() {
                return Poll::Ready(());
            }
        }
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
        let (mut client, (server, _)) = (client.unwrap(), server.unwrap());
        client.write_all(b"unread").await.unwrap();
        let mut watch = Watch::default();
        let mut gone = async || std::future::poll_fn(|cx| watch.poll_gone(cx, || is_closed(&server))).await;
        let early = tokio::time::timeout(LOOK * 3, gone()).await;
        assert!(early.is_err(), "it is still there");
        client.shutdown().await.unwrap();
        tokio::time::timeout(LOOK * 20, gone()).await.unwrap();
        let mut server = server;
        assert_eq!(server.read_u8().await.unwrap(), b'u');
    }
}
