//! The proxy's own sockets: told from the application's by their owner, or by a mark.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
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

/// A peer that has vanished without a word is noticed within about two minutes, so that nobody waits for it for ever.
const KEEPALIVE: Duration = Duration::from_secs(60);
const KEEPALIVE_BETWEEN: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMES: u32 = 4;

/// What was sent and is not acknowledged in this time never will be.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Often enough that within that time several questions are lost before a peer counts as gone: the kernel ends a connection
/// at the first one that is unanswered when that time is over, however many it may ask.
const SHARED_KEEPALIVE: Duration = Duration::from_secs(10);
const SHARED_KEEPALIVE_BETWEEN: Duration = Duration::from_secs(5);

/// Has the kernel look whether the peer of a connection on which nothing moves is still there.
pub fn keep_alive(stream: &TcpStream) {
    keep_alive_by(stream, KEEPALIVE, KEEPALIVE_BETWEEN);
}

fn keep_alive_by(stream: &TcpStream, after: Duration, between: Duration) {
    let keepalive = TcpKeepalive::new().with_time(after);
    let keepalive = keepalive.with_interval(between).with_retries(KEEPALIVE_TIMES);
    // What can't be had is not needed to carry.
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive);
}

/// The same for a connection that many requests use, where one that is dead would take all that follow: also what is on
/// its way must arrive. Not for others, since the kernel counts a peer that is slow to read among the dead (tcp(7),
/// `TCP_USER_TIMEOUT`; HTTP/2 has windows of its own before that).
pub fn keep_alive_shared(stream: &TcpStream) {
    keep_alive_by(stream, SHARED_KEEPALIVE, SHARED_KEEPALIVE_BETWEEN);
    let _ = SockRef::from(stream).set_tcp_user_timeout(Some(UNACKNOWLEDGED));
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

    /// The connection.
    pub const fn get_ref(&self) -> &T {
        &self.inner
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
