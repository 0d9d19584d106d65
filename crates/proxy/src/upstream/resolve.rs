//! Finds the addresses of the name that was judged, as the application would (hosts file, search list, DNS), and leaves
//! out those to which nobody may be led.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use ipnet::IpNet;
use model::destination::Resolution;
use model::{Code, Destination, Failure, HostName};

use super::address::{interleaved, is_own, is_special};
use super::dns::Dns;
use crate::capture::accept::OriginalDestination;
use crate::socket::SocketOptions;

/// The resolver of one worker.
pub struct Resolver {
    dns: Dns,
    off_limits: Arc<OffLimits>,
}

/// Where nobody is led, beside the special addresses.
#[derive(Debug, Default)]
pub struct OffLimits {
    /// Ports of the proxy itself, on this host: never.
    pub own_ports: Vec<u16>,
    /// Networks of the operator's choice: only where the destination lists the address.
    pub networks: Vec<IpNet>,
}

impl Resolver {
    /// A resolver by the system's files.
    ///
    /// # Errors
    /// If it can't be made from them.
    pub fn new(options: SocketOptions, off_limits: Arc<OffLimits>) -> Result<Self, Failure> {
        Ok(Self { dns: Dns::new(options)?, off_limits })
    }

    /// The addresses to dial for a covered call, or for what the explicit proxy was asked for without a policy
    /// (`destination` is `None`), best first: the one that the application dialled, if it is among the name's own; then
    /// the others, the families in turn.
    ///
    /// The addresses that are checked here are the ones that are dialled: nobody looks the name up again.
    ///
    /// # Errors
    /// [`Code::NameNotResolved`] if the name has none, [`Code::ForbiddenAddress`] if it has only such as a call may not
    /// go to.
    pub async fn addresses(
        &self,
        name: &HostName,
        destination: Option<&Destination>,
        original: &OriginalDestination,
    ) -> Result<Vec<SocketAddr>, Failure> {
        let port = original.port();
        let dialled = original.address().map(|address| address.ip().to_canonical());
        let found = match destination.map(|destination| destination.resolve) {
            Some(Resolution::Application) => vec![application_s(name, dialled)?],
            _ => self.look_up(name, destination).await?,
        };
        let allowed: Vec<IpAddr> =
            found.iter().copied().filter(|address| self.is_allowed(*address, port, destination)).collect();
        let Some(first) = found.first() else {
            return Err(Failure::new(Code::NameNotResolved, format!("{name} has no address")));
        };
        if allowed.is_empty() {
            let detail = format!("{name} resolves to {first}, which such a call may not go to");
            return Err(Failure::new(Code::ForbiddenAddress, detail));
        }
        Ok(in_order(allowed, dialled).into_iter().map(|address| SocketAddr::new(address, port)).collect())
    }

    /// All addresses of a name that the operator has configured, wherever they lead.
    ///
    /// # Errors
    /// [`Code::NameNotResolved`] if it has none.
    pub async fn all(&self, name: &HostName) -> Result<Vec<IpAddr>, Failure> {
        Ok(interleaved(self.look_up(name, None).await?))
    }

    async fn look_up(
        &self,
        name: &HostName,
        destination: Option<&Destination>,
    ) -> Result<Vec<IpAddr>, Failure> {
        // The application can write the hosts file; without TLS nothing else would prove the server.
        let insecure = destination.is_some_and(|destination| destination.insecure);
        let listed = if insecure { Vec::new() } else { self.dns.in_hosts_file(name) };
        let found = if listed.is_empty() { self.dns.look_up(name).await? } else { listed };
        Ok(found.into_iter().map(|address| address.to_canonical()).collect())
    }

    /// Whether the explicit proxy may go to this address, for which it was asked.
    ///
    /// # Errors
    /// [`Code::ForbiddenAddress`] if not.
    pub fn check(&self, address: SocketAddr, destination: Option<&Destination>) -> Result<(), Failure> {
        if self.is_allowed(address.ip(), address.port(), destination) {
            return Ok(());
        }
        Err(Failure::new(Code::ForbiddenAddress, format!("the explicit proxy does not go to {address}")))
    }

    /// Whether a call may go to this address: special ones and those that the operator refuses only where the
    /// destination lists them, the proxy's own ports never.
    fn is_allowed(&self, address: IpAddr, port: u16, destination: Option<&Destination>) -> bool {
        let listed = destination.is_some_and(|destination| destination.lists_address(address));
        let own = || self.off_limits.own_ports.contains(&port) && is_own(address);
        let refused =
            || self.off_limits.networks.iter().any(|network| network.contains(&address.to_canonical()));
        (listed || !(is_special(address) || refused())) && !own()
    }
}

fn application_s(name: &HostName, dialled: Option<IpAddr>) -> Result<IpAddr, Failure> {
    dialled.ok_or_else(|| {
        let detail = format!(
            "only the application knows the address of {name} (`resolve: application`), and it gave a name to the \
             explicit proxy: let the call be captured, or ask the explicit proxy for the address"
        );
        Failure::new(Code::NameNotResolved, detail)
    })
}

fn in_order(mut addresses: Vec<IpAddr>, dialled: Option<IpAddr>) -> Vec<IpAddr> {
    if let Some(position) = addresses.iter().position(|address| Some(*address) == dialled) {
        let first = addresses.remove(position);
        addresses.insert(0, first);
    }
    interleaved(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_application_s_address_comes_first_if_it_is_among_the_answers() {
        let addresses =
            |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let found = addresses(&["fd77::1", "fd77::2", "10.0.0.1"]);
        let first = |dialled: &str| in_order(found.clone(), dialled.parse().ok())[0];
        assert_eq!(first("fd77::2").to_string(), "fd77::2");
        assert_eq!(first("10.0.0.1").to_string(), "10.0.0.1");
        assert_eq!(first("10.9.9.9").to_string(), "fd77::1");
        assert_eq!(in_order(found.clone(), None), addresses(&["fd77::1", "10.0.0.1", "fd77::2"]));
    }
}
