//! Accepts redirected connections and asks the kernel where they were going.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use bytes::BytesMut;
use model::{Code, Failure, HostName};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpListener, TcpStream};

/// Where the application was going: the address that it dialled before the redirect, or what it asked the explicit
/// proxy for. A type of its own, so that nobody dials the peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OriginalDestination {
    address: Option<SocketAddr>,
    name: Option<HostName>,
    port: u16,
    asked: bool,
}

impl OriginalDestination {
    /// The application dialled this address.
    #[must_use]
    pub const fn dialled(address: SocketAddr) -> Self {
        Self { address: Some(address), name: None, port: address.port(), asked: false }
    }

    /// The application asked the explicit proxy for this address.
    #[must_use]
    pub const fn asked(address: SocketAddr) -> Self {
        Self { address: Some(address), name: None, port: address.port(), asked: true }
    }

    /// The application asked the explicit proxy for a name, and leaves it to the proxy to find its address.
    #[must_use]
    pub const fn named(name: HostName, port: u16) -> Self {
        Self { address: None, name: Some(name), port, asked: true }
    }

    /// The same, once the proxy has dialled an address for it.
    #[must_use]
    pub fn at(self, address: SocketAddr) -> Self {
        Self { address: Some(address), ..self }
    }

    /// The address; `None` if the application gave a name and nothing has been dialled for it.
    #[must_use]
    pub const fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// The name that the application asked the explicit proxy for.
    #[must_use]
    pub const fn name(&self) -> Option<&HostName> {
        self.name.as_ref()
    }

    /// The port.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Whether the explicit proxy was asked: then it is the proxy that reaches out, not the application.
    #[must_use]
    pub const fn is_asked(&self) -> bool {
        self.asked
    }

    /// Whether a request names another service than the tunnel that the application asked for: who asked said where it
    /// goes. Nothing contradicts what was captured.
    #[must_use]
    pub fn contradicts(&self, named: Option<&HostName>, port: Option<u16>) -> bool {
        let elsewhere = port.is_some_and(|port| port != self.port);
        self.asked && (elsewhere || self.name.as_ref().is_some_and(|asked| named != Some(asked)))
    }

    /// Whether the explicit proxy was asked for another name than this one.
    #[must_use]
    pub fn disagrees(&self, name: &HostName) -> bool {
        self.name.as_ref().is_some_and(|asked| asked != name)
    }
}

impl fmt::Display for OriginalDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.name, self.address) {
            (Some(name), _) => write!(f, "{name}:{}", self.port),
            (None, Some(address)) => write!(f, "{address}"),
            (None, None) => write!(f, "port {}", self.port),
        }
    }
}

/// A connection of the workload.
pub struct Captured {
    /// The application's side.
    pub stream: TcpStream,
    /// What was read of it before.
    pub first: BytesMut,
    /// Where it was going.
    pub original: OriginalDestination,
    /// The other side, if that was dialled already: to hear whether it speaks first, or to tell the application whether it
    /// can be reached.
    pub dialled: Option<TcpStream>,
}

/// The loopback addresses to which the redirect sends, one for each family.
pub const REDIRECT_TARGETS: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// Listens for the workload's connections; several workers listen on one port and the kernel spreads connections over
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
pub fn captured(stream: TcpStream) -> Result<Captured, Failure> {
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
    let original = OriginalDestination::dialled(original);
    Ok(Captured { stream, first: BytesMut::new(), original, dialled: None })
}
