//! How names are looked up: the system's files, read anew when they change, and sockets that the redirect leaves alone.

use std::cell::RefCell;
use std::fs;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use hickory_resolver::config::{LookupIpStrategy, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::iocompat::AsyncIoTokioAsStd;
use hickory_resolver::net::runtime::{RuntimeProvider, TokioHandle, TokioRuntimeProvider, TokioTime};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RecordType};
use hickory_resolver::{Hosts, Resolver};
use model::{Code, Failure, HostName};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::Instant;

use crate::socket::{self, SocketOptions};

/// What tells a resolver about the system.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// How often they are looked at, as glibc does at each look-up.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How long a TCP connection to a name server may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Looks up names as the application would. One per worker: each keeps answers for as long as their TTL says.
pub struct Dns {
    options: SocketOptions,
    system: RefCell<System>,
}

/// What was read of the system, and when.
struct System {
    resolver: Rc<Resolver<Marked>>,
    hosts: Rc<Hosts>,
    changed: [Option<SystemTime>; 2],
    looked: Instant,
}

impl Dns {
    /// Reads `/etc/resolv.conf` and the hosts file. Without a usable `resolv.conf` only the hosts file is asked.
    ///
    /// # Errors
    /// If no resolver can be made from that.
    pub fn new(options: SocketOptions) -> Result<Self, Failure> {
        let system = RefCell::new(System::read(options)?);
        Ok(Self { options, system })
    }

    /// The addresses that the hosts file has for a name, of both families; like every reader of that file, it knows no
    /// search list.
    pub fn in_hosts_file(&self, name: &HostName) -> Vec<IpAddr> {
        self.look_again();
        let hosts = self.system.borrow().hosts.clone();
        let Ok(name) = Name::from_ascii(name.as_str()) else { return Vec::new() };
        let of = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
        let found = [of(RecordType::AAAA), of(RecordType::A)];
        let records = found.iter().flatten().flat_map(|lookup| lookup.answers());
        records.filter_map(|record| record.data.ip_addr()).collect()
    }

    /// The addresses that DNS has for a name, by the search list.
    ///
    /// # Errors
    /// [`Code::NameNotResolved`] if it has none, or does not answer.
    pub async fn look_up(&self, name: &HostName) -> Result<Vec<IpAddr>, Failure> {
        self.look_again();
        let resolver = self.system.borrow().resolver.clone();
        let found = resolver.lookup_ip(name.as_str()).await.map_err(|error| {
            Failure::new(Code::NameNotResolved, format!("{name} has no address")).because(error)
        })?;
        Ok(found.iter().collect())
    }

    /// Reads the files again if they have changed. What can't be read changes nothing.
    fn look_again(&self) {
        let mut system = self.system.borrow_mut();
        if system.looked.elapsed() < LOOK_AGAIN {
            return;
        }
        system.looked = Instant::now();
        if FILES.map(changed) == system.changed {
            return;
        }
        match System::read(self.options) {
            Ok(read) => *system = read,
            Err(failure) => tracing::warn!(stage = "upstream", code = %failure.code, "{failure}"),
        }
    }
}

fn changed(path: &str) -> Option<SystemTime> {
    fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

impl System {
    fn read(options: SocketOptions) -> Result<Self, Failure> {
        let changed = FILES.map(changed);
        let provider = || Marked { tokio: TokioRuntimeProvider::new(), options };
        let mut builder = Resolver::builder(provider())
            .unwrap_or_else(|_| Resolver::builder_with_config(ResolverConfig::default(), provider()));
        // The file is asked by us: hickory would ask DNS for the family that the file does not have.
        builder.options_mut().use_hosts_file = ResolveHosts::Never;
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv6AndIpv4;
        let resolver = builder.build().map_err(|error| {
            Failure::new(Code::NameNotResolved, "the resolver could not be set up from /etc/resolv.conf")
                .because(error)
        })?;
        let hosts = Hosts::from_system().unwrap_or_default();
        Ok(Self { resolver: Rc::new(resolver), hosts: Rc::new(hosts), changed, looked: Instant::now() })
    }
}

/// hickory's sockets, told from the application's as all of ours are: a TCP connection to a name server would come back
/// to us.
#[derive(Clone)]
struct Marked {
    tokio: TokioRuntimeProvider,
    options: SocketOptions,
}

type Connecting<T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

impl RuntimeProvider for Marked {
    type Handle = TokioHandle;
    type Timer = TokioTime;
    type Udp = UdpSocket;
    type Tcp = AsyncIoTokioAsStd<TcpStream>;

    fn create_handle(&self) -> Self::Handle {
        self.tokio.create_handle()
    }

    fn connect_tcp(
        &self,
        server: SocketAddr,
        _: Option<SocketAddr>,
        within: Option<Duration>,
    ) -> Connecting<Self::Tcp> {
        let options = self.options;
        Box::pin(async move {
            let connecting = socket::connect_tcp(server, &options);
            let stream = tokio::time::timeout(within.unwrap_or(CONNECT), connecting).await??;
            stream.set_nodelay(true)?;
            Ok(AsyncIoTokioAsStd(stream))
        })
    }

    fn bind_udp(&self, local: SocketAddr, _: SocketAddr) -> Connecting<Self::Udp> {
        let options = self.options;
        Box::pin(async move { socket::bind_udp(local, &options) })
    }
}
