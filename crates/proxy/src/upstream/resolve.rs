//! Finds the addresses of the name that was judged, as the application would: hosts file, search list, DNS.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use model::{Code, Destination, Failure, HostName};

use crate::capture::accept::OriginalDestination;

/// The resolver of one worker.
pub struct Resolver {
    as_application: TokioResolver,
    without_hosts_file: TokioResolver,
    own_ports: Arc<[u16]>,
}

impl Resolver {
    /// Reads `/etc/resolv.conf` and the hosts file. Without a usable `resolv.conf` only the hosts file is asked.
    ///
    /// # Errors
    /// If the resolver can't be made from that.
    pub fn new(own_ports: Arc<[u16]>) -> Result<Self, Failure> {
        Ok(Self {
            as_application: build(ResolveHosts::Always)?,
            without_hosts_file: build(ResolveHosts::Never)?,
            own_ports,
        })
    }

    /// The addresses to dial for a covered call, best first: the one that the application dialled, if it is among
    /// the name's own; then the others.
    ///
    /// # Errors
    /// [`Code::NameNotResolved`] if the name has none, [`Code::ForbiddenAddress`] if it has only such as a covered
    /// call may not go to.
    pub async fn addresses(
        &self,
        name: &HostName,
        destination: &Destination,
        original: OriginalDestination,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let port = original.0.port();
        // The application can write the hosts file; without TLS nothing else would prove the server.
        let resolver = if destination.insecure { &self.without_hosts_file } else { &self.as_application };
        let answer = resolver.lookup_ip(name.as_str()).await.map_err(|error| {
            Failure::new(Code::NameNotResolved, format!("{name} has no address")).because(error)
        })?;
        let all: Vec<IpAddr> = answer.iter().map(|address| address.to_canonical()).collect();
        let mut allowed: Vec<IpAddr> =
            all.iter().copied().filter(|address| self.is_allowed(*address, port, destination)).collect();
        if let (None, Some(first)) = (allowed.first(), all.first()) {
            let detail = format!("{name} resolves to {first}, which a covered call may not go to");
            return Err(Failure::new(Code::ForbiddenAddress, detail));
        }
        let dialled = original.0.ip().to_canonical();
        if let Some(position) = allowed.iter().position(|address| *address == dialled) {
            allowed.swap(0, position);
        }
        if allowed.is_empty() {
            return Err(Failure::new(Code::NameNotResolved, format!("{name} has no address")));
        }
        Ok(allowed.into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    fn is_allowed(&self, address: IpAddr, port: u16, destination: &Destination) -> bool {
        let own = address.is_loopback() && self.own_ports.contains(&port);
        !own && (destination.lists_address(address) || !is_special(address))
    }
}

/// Addresses that a covered call may not go to unless its destination lists them: loopback, link-local (the metadata
/// services of the clouds among them), unspecified, multicast, and the IPv6 metadata address of AWS.
pub fn is_special(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            v4.is_loopback()
                || v4.is_link_local()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.octets()[0] == 0
        }
        IpAddr::V6(v6) => {
            v6.is_loopback()
                || v6.is_unicast_link_local()
                || v6.is_unspecified()
                || v6.is_multicast()
                // fd00:ec2::/32: AWS instance metadata and its siblings over IPv6 (EC2 user guide).
                || v6.segments()[..2] == [0xfd00, 0x0ec2]
        }
    }
}

fn build(hosts: ResolveHosts) -> Result<TokioResolver, Failure> {
    let provider = TokioRuntimeProvider::default;
    let mut builder = TokioResolver::builder(provider())
        .unwrap_or_else(|_| TokioResolver::builder_with_config(ResolverConfig::default(), provider()));
    builder.options_mut().use_hosts_file = hosts;
    builder.build().map_err(|error| {
        Failure::new(Code::NameNotResolved, "the resolver could not be set up from /etc/resolv.conf")
            .because(error)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_in_every_spelling() {
        let special = [
            "127.0.0.1",
            "127.9.9.9",
            "169.254.169.254",
            "::1",
            "fe80::1",
            "::ffff:169.254.169.254",
            "::ffff:127.0.0.1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "0.1.2.3",
            "224.0.0.1",
            "ff02::1",
        ];
        for text in special {
            assert!(is_special(text.parse().unwrap()), "{text}");
        }
        for text in ["10.0.0.1", "192.168.1.1", "203.0.113.9", "fd77::1", "2001:db8::1"] {
            assert!(!is_special(text.parse().unwrap()), "{text}");
        }
    }
}
