//! What is called.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::name::{HostName, HostPattern, ResourceRef};

/// A service that workloads call, as a `Destination` document describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Which document.
    pub name: ResourceRef,
    /// Names under which it is called; never empty unless `addresses` is not.
    pub hosts: Vec<HostPattern>,
    /// TCP ports; never empty.
    pub ports: Vec<u16>,
    /// Addresses that connections without a name are matched by, and that are allowed though they are loopback,
    /// link-local or metadata addresses.
    pub addresses: Vec<IpNet>,
    /// What is spoken there.
    pub protocol: Protocol,
    /// HTTP versions that it is declared to speak, best first; empty if that is to be learned by dialling it.
    pub http_versions: Vec<HttpVersion>,
    /// Whether its TLS is opened.
    pub tls: TlsMode,
    /// Who finds its address.
    pub resolve: Resolution,
    /// Whether a credential may be sent to it without TLS.
    pub insecure: bool,
    /// Roots for its certificate in PEM, instead of the proxy's; empty for the proxy's.
    pub ca_bundle: String,
    /// The name that is sent to it (SNI) and must be in its certificate, instead of the one that was called.
    pub server_name: Option<HostName>,
    /// What the proxy shows when it asks for a client certificate; `None` for nothing.
    pub client_certificate: Option<ClientCertificate>,
    /// Whether a credential that it sends back is taken out of its answers.
    pub redact: bool,
    /// How sensitive its data is, in the words of the platform team; for policies and audit.
    pub sensitivity: String,
}

/// What a destination speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1 or HTTP/2, and what is carried by them.
    Http,
    /// Bytes that are not looked into: policy and audit see the connection only.
    Tcp,
}

/// A version of HTTP, by its ALPN protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum HttpVersion {
    /// ALPN `http/1.1`.
    Http1,
    /// ALPN `h2`.
    Http2,
}

impl HttpVersion {
    /// The ALPN protocol ID (IANA registry).
    #[must_use]
    pub const fn alpn(self) -> &'static [u8] {
        match self {
            Self::Http1 => b"http/1.1",
            Self::Http2 => b"h2",
        }
    }
}

/// Whether TLS to a destination is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Opened with a leaf of the instance's CA.
    Terminate,
    /// Left shut: pinned clients, or the application's own client certificate.
    Passthrough,
}

/// Who finds the address of a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// The proxy, by the name: the application's address counts if it is among the name's own.
    Name,
    /// The application: it has chosen one member of a headless service, and no other is right. Never without TLS, which
    /// alone then proves the server.
    Application,
}

/// What a proxy shows to a destination that asks for a client certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientCertificate {
    /// The caller's own X.509-SVID, by which it speaks to the control plane: nothing is stored for it, and it lives for
    /// hours.
    Svid,
}

impl ClientCertificate {
    /// As documents and messages write it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Svid => "svid",
        }
    }
}

impl Destination {
    /// Whether a call to this name and port is a call to this destination.
    #[must_use]
    pub fn covers_host(&self, host: &HostName, port: u16) -> bool {
        self.ports.contains(&port) && self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// Whether a connection without a name to this address is one to this destination.
    #[must_use]
    pub fn covers_address(&self, address: IpAddr, port: u16) -> bool {
        self.ports.contains(&port) && self.lists_address(address)
    }

    /// Whether the document lists this address. IPv4-mapped IPv6 addresses are looked up as IPv4.
    #[must_use]
    pub fn lists_address(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.addresses.iter().any(|net| net.contains(&address))
    }
}
