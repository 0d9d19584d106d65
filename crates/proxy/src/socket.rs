//! The proxy's own sockets: told from the application's by their owner, or by a mark.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

/// How the redirect tells the proxy's sockets from the application's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// `SO_MARK`; needs CAP_NET_ADMIN in the network namespace. Without one the proxy's UID must exempt it.
    pub mark: Option<u32>,
}

/// Connects from a socket that is not redirected.
///
/// # Errors
/// As connecting does; also if the mark may not be set, since the connection would come back to us.
pub async fn connect_tcp(address: SocketAddr, options: &SocketOptions) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(address).await
}

/// Binds a socket whose datagrams are told from the application's.
///
/// # Errors
/// As binding does; also if the mark may not be set.
pub fn bind_udp(address: SocketAddr, options: &SocketOptions) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// A connection of ours, below TLS.
pub struct Dialled<T> {
    inner: T,
}

impl<T> Dialled<T> {
    /// Wraps a connection.
    pub const fn new(inner: T) -> Self {
        Self { inner }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Dialled<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

crate::delegate::delegate_writes!(Dialled);
