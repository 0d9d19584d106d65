//! Accepts redirected connections and asks the kernel where they were going.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use model::{Code, Failure};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// The address that the application dialled, before the redirect. A type of its own, so that nobody dials the peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDestination(pub SocketAddr);

/// A connection of the workload.
pub struct Captured {
    /// The application's side.
    pub stream: TcpStream,
    /// Where the application connected from.
    pub peer: SocketAddr,
    /// Where it was going.
    pub original: OriginalDestination,
}

/// The loopback addresses to which the redirect sends, one for each family.
pub const REDIRECT_TARGETS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Listens for redirected connections; several workers listen on one port and the kernel spreads connections over
/// them (`SO_REUSEPORT`).
///
/// # Errors
/// If the port is taken by a program that is not ours, or the family does not exist here.
pub fn listen(address: IpAddr, port: u16) -> io::Result<TcpListener> {
    let address = SocketAddr::new(address, port);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Finds out where an accepted connection was going.
///
/// # Errors
/// [`Code::NoOriginalDestination`] if it was not redirected: somebody dialled the proxy's port itself.
pub fn captured(stream: TcpStream, peer: SocketAddr) -> Result<Captured, Failure> {
    let refuse = |detail: &str| Failure::new(Code::NoOriginalDestination, detail);
    let local = stream.local_addr().map_err(|e| refuse("the connection has no address").because(e))?;
    let socket = SockRef::from(&stream);
    let original = if local.is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() }
        .map_err(|e| refuse("the kernel knows no address before the redirect").because(e))?
        .as_socket()
        .ok_or_else(|| refuse("the kernel's answer is not an address"))?;
    if original == local {
        return Err(refuse("the proxy's own port was dialled"));
    }
    // Small writes are answers and requests, which someone waits for.
    let _ = stream.set_nodelay(true);
    Ok(Captured { stream, peer, original: OriginalDestination(original) })
}
