//! Dials: to the name that was judged, or to the address that the application dialled; through a corporate proxy where
//! there is one.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use model::destination::Resolution;
use model::{Code, Destination, Failure, HostName};
use protocols::http::Host;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::address::is_special;
use super::corporate::Corporate;
use super::resolve::{OffLimits, Resolver};
use crate::capture::accept::OriginalDestination;
use crate::socket::{self, SocketOptions};

/// The head start of an address over the next one (RFC 8305 §8).
const HEAD_START: Duration = Duration::from_millis(250);

/// How long a name may take to be looked up where a corporate proxy would look it up too.
const GLANCE: Duration = Duration::from_secs(1);

/// Dials for one worker.
pub struct Dialler {
    resolver: Resolver,
    options: SocketOptions,
    patience: Duration,
    corporate: Option<Arc<Corporate>>,
}

impl Dialler {
    /// One that has dialled nothing yet.
    ///
    /// # Errors
    /// If its resolver can't be set up.
    pub fn new(
        options: SocketOptions,
        off_limits: Arc<OffLimits>,
        patience: Duration,
        corporate: Option<Arc<Corporate>>,
    ) -> Result<Self, Failure> {
        Ok(Self { resolver: Resolver::new(options, off_limits)?, options, patience, corporate })
    }

    /// Where a call may go.
    #[must_use]
    pub const fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Connects to a name: of a covered call, or of one that the explicit proxy was asked for without a policy
    /// (`destination` is `None`). Tells the address that answered, if it was we who chose it.
    ///
    /// # Errors
    /// As resolving and dialling do.
    pub async fn to_name(
        &self,
        name: &HostName,
        destination: Option<&Destination>,
        original: &OriginalDestination,
    ) -> Result<(TcpStream, Option<SocketAddr>), Failure> {
        let looking = self.resolver.addresses(name, destination, original);
        let Some(corporate) = self.corporate.as_ref().filter(|corporate| !corporate.exempts_name(name))
        else {
            return self.directly(&looking.await?).await;
        };
        if destination.is_some_and(|destination| destination.resolve == Resolution::Application) {
            let addresses = looking.await?;
            return Ok((self.to_address(addresses[0]).await?, Some(addresses[0])));
        }
        // The corporate proxy looks the name up itself. What is known here all the same is heeded.
        match timeout(GLANCE, looking).await {
            Ok(Ok(addresses)) => {
                let outside = |address: &SocketAddr| self.goes_through(address.ip()).is_none();
                let direct: Vec<SocketAddr> = addresses.into_iter().filter(outside).collect();
                if !direct.is_empty() {
                    return self.directly(&direct).await;
                }
            }
            Ok(Err(forbidden)) if forbidden.code == Code::ForbiddenAddress => return Err(forbidden),
            // It may well know more names than we do.
            Ok(Err(_)) | Err(_) => {}
        }
        Ok((self.through(corporate, &format!("{name}:{}", original.port())).await?, None))
    }

    /// Connects to the address that the application dialled.
    ///
    /// # Errors
    /// [`Code::UpstreamUnreachable`] or [`Code::UpstreamTimeout`], and what the corporate proxy has against it.
    pub async fn to_address(&self, address: SocketAddr) -> Result<TcpStream, Failure> {
        match self.goes_through(address.ip()) {
            Some(corporate) => self.through(corporate, &address.to_string()).await,
            None => attempt(address, &self.options, self.patience).await.map(|(stream, _)| stream),
        }
    }

    /// The corporate proxy, if this address is reached through it. What is this host's or its link's never is.
    fn goes_through(&self, address: IpAddr) -> Option<&Corporate> {
        let corporate = self.corporate.as_deref()?;
        (!is_special(address) && !corporate.exempts_address(address)).then_some(corporate)
    }

    async fn directly(&self, addresses: &[SocketAddr]) -> Result<(TcpStream, Option<SocketAddr>), Failure> {
        let (stream, address) = first_of(addresses, &self.options, self.patience).await?;
        Ok((stream, Some(address)))
    }

    /// Connects to `target` through the corporate proxy.
    async fn through(&self, corporate: &Corporate, target: &str) -> Result<TcpStream, Failure> {
        let unreachable = |failure: Failure| {
            let detail = format!("the corporate proxy can't be reached: {}", failure.detail);
            Failure::new(Code::UpstreamProxyUnusable, detail)
        };
        let addresses = match &corporate.host {
            Host::Address(address) => vec![*address],
            Host::Name(name) => self.resolver.all(name).await.map_err(unreachable)?,
        };
        let addresses: Vec<SocketAddr> =
            addresses.into_iter().map(|address| SocketAddr::new(address, corporate.port)).collect();
        let (mut stream, _) =
            first_of(&addresses, &self.options, self.patience).await.map_err(unreachable)?;
        match timeout(self.patience, corporate.tunnel(&mut stream, target)).await {
            Ok(begun) => begun.map(|()| stream),
            Err(_) => {
                let seconds = self.patience.as_secs();
                let detail = format!("the corporate proxy did not answer in {seconds} s for {target}");
                Err(Failure::new(Code::UpstreamTimeout, detail))
            }
        }
    }
}

/// Connects to the first of the addresses that answers: each begins when the one before it has failed, or has had its
/// head start (RFC 8305 §5).
async fn first_of(
    addresses: &[SocketAddr],
    options: &SocketOptions,
    patience: Duration,
) -> Result<(TcpStream, SocketAddr), Failure> {
    let mut waiting = addresses.iter();
    let mut attempts = FuturesUnordered::new();
    let mut last = Failure::new(Code::UpstreamUnreachable, "there is no address to dial");
    loop {
        match waiting.next() {
            Some(next) => attempts.push(attempt(*next, options, patience)),
            None if attempts.is_empty() => return Err(last),
            None => {}
        }
        tokio::select! {
            Some(ended) = attempts.next() => match ended {
                Ok(connected) => return Ok(connected),
                Err(failure) => last = failure,
            },
            () = sleep(HEAD_START), if waiting.len() > 0 => {}
        }
    }
}

async fn attempt(
    address: SocketAddr,
    options: &SocketOptions,
    patience: Duration,
) -> Result<(TcpStream, SocketAddr), Failure> {
    match timeout(patience, socket::connect_tcp(address, options)).await {
        Ok(Ok(stream)) => {
            let _ = stream.set_nodelay(true);
            Ok((stream, address))
        }
        Ok(Err(error)) => {
            Err(Failure::new(Code::UpstreamUnreachable, format!("{address}: {error}")).because(error))
        }
        Err(_) => {
            let detail = format!("{address} did not accept a connection in {} s", patience.as_secs());
            Err(Failure::new(Code::UpstreamTimeout, detail))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_refuses_costs_no_time_and_the_next_one_answers() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let good = listener.local_addr().unwrap();
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bad = closed.local_addr().unwrap();
        drop(closed);
        let options = SocketOptions::default();
        let (_, answered) = first_of(&[bad, good], &options, Duration::from_secs(5)).await.unwrap();
        assert_eq!(answered, good);
        let failure = first_of(&[bad, bad], &options, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(failure.code, Code::UpstreamUnreachable);
        let none = first_of(&[], &options, Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(none.code, Code::UpstreamUnreachable);
    }
}
