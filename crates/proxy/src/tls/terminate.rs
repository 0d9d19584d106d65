//! Opens applications' TLS with leaves of the instance's CA.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use model::destination::HttpVersion;
use model::{Code, Failure, HostName, UnixMillis};
use rustls::ServerConfig;
use rustls::server::{
    ClientHello as RustlsHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert,
};
use rustls::sign::CertifiedKey;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::distrust::{Signal, Watched};
use super::leaves::Leaves;
use crate::metrics::Metrics;
use crate::protocol::rewind::Rewind;

/// Opens applications' TLS. One per worker.
pub struct Terminator {
    leaves: Arc<Leaves>,
    /// All that connections have in common; the leaf and the protocol are put in for each.
    base: ServerConfig,
    metrics: Metrics,
    patience: Duration,
}

/// A connection that was opened.
pub type Opened = Watched<TlsStream<Rewind<TcpStream>>>;

/// The version of HTTP that the application and we have agreed on.
#[must_use]
pub fn agreed(opened: &Opened) -> HttpVersion {
    match opened.get_ref().get_ref().1.alpn_protocol() {
        Some(b"h2") => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    }
}

impl Terminator {
    /// One ticketer serves all names and all workers: rustls takes a ticket only for the name that it was made for.
    /// A handshake may take as long as `patience`.
    ///
    /// # Errors
    /// [`Code::DownstreamHandshake`] if no TLS version is configured.
    pub fn new(
        leaves: Arc<Leaves>,
        ticketer: Arc<dyn ProducesTickets>,
        metrics: Metrics,
        patience: Duration,
    ) -> Result<Self, Failure> {
        let mut base = ServerConfig::builder_with_provider(service::tls_provider::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(Code::DownstreamHandshake, "no TLS version is configured").because(e))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(NoLeaf));
        // Tickets alone: what they hold is with the application, so that nothing is kept for each connection.
        base.session_storage = Arc::new(NoServerSessionStorage {});
        base.ticketer = ticketer;
        Ok(Self { leaves, base, metrics, patience })
    }

    /// Completes the handshake with a leaf for exactly `name`, offering `version` (or no ALPN, if `None`). Counts
    /// distrust.
    ///
    /// # Errors
    /// [`Code::ApplicationDistrusts`] if the application says that it does not trust us,
    /// [`Code::DownstreamHandshake`] for every other failure.
    pub async fn open(
        &self,
        stream: Rewind<TcpStream>,
        name: &HostName,
        version: Option<HttpVersion>,
        now: UnixMillis,
    ) -> Result<Opened, Failure> {
        let handshake = async {
            let leaf = self.leaves.get(name, now).await?;
            let acceptor = TlsAcceptor::from(Arc::new(self.config(leaf, version)));
            acceptor.accept(stream).await.map_err(|error| self.failed(name, error))
        };
        match tokio::time::timeout(self.patience, handshake).await {
            Ok(opened) => Ok(Watched::new(opened?, name.clone(), self.metrics.clone())),
            Err(_) => {
                let seconds = self.patience.as_secs();
                let detail = format!("the handshake for {name} was not complete after {seconds} s");
                Err(Failure::new(Code::DownstreamHandshake, detail))
            }
        }
    }

    /// A configuration is a handful of references: one for each connection costs less than keeping them by name, and
    /// sessions resume by the ticketer, which is the same for all.
    fn config(&self, leaf: Arc<CertifiedKey>, version: Option<HttpVersion>) -> ServerConfig {
        let mut config = self.base.clone();
        config.cert_resolver = Arc::new(OneLeaf(leaf));
        config.alpn_protocols = version.map(|v| v.alpn().to_vec()).into_iter().collect();
        config
    }

    /// Tells distrust, which somebody can mend by setting a variable, from all other ways in which a handshake fails.
    fn failed(&self, name: &HostName, error: io::Error) -> Failure {
        let signal = Signal::of(&error, Signal::EofHandshake);
        if let Some(signal) = signal {
            self.metrics.untrusted(signal);
        }
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        let (code, detail) = match (signal, tls) {
            (Some(Signal::Alert), Some(alert)) => (
                Code::ApplicationDistrusts,
                format!("the application does not trust the proxy's certificate for {name} ({alert})"),
            ),
            (Some(_), _) => (
                Code::DownstreamHandshake,
                format!(
                    "the application left during the handshake for {name}; probably it does not trust the proxy"
                ),
            ),
            (None, Some(tls)) => {
                (Code::DownstreamHandshake, format!("the handshake for {name} failed: {tls}"))
            }
            (None, None) => (Code::DownstreamHandshake, format!("the handshake for {name} failed")),
        };
        Failure::new(code, detail).because(error)
    }
}

/// Answers every ClientHello of one connection with its leaf: the name was read before.
#[derive(Debug)]
struct OneLeaf(Arc<CertifiedKey>);

impl ResolvesServerCert for OneLeaf {
    fn resolve(&self, _: RustlsHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// What stands in the base: there is no connection without a leaf of its own.
#[derive(Debug)]
struct NoLeaf;

impl ResolvesServerCert for NoLeaf {
    fn resolve(&self, _: RustlsHello<'_>) -> Option<Arc<CertifiedKey>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use rustls::client::{ClientSessionStore, Resumption, Tls12ClientSessionValue, Tls13ClientSessionValue};
    use rustls::pki_types::{CertificateDer, ServerName};
    use rustls::{ClientConfig, HandshakeKind, NamedGroup, RootCertStore, SupportedProtocolVersion};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::authority::Authority;
    use crate::state::StateDir;
    use crate::tls::leaves::LEAVES_MAX;

    const NOW: UnixMillis = UnixMillis(1_795_514_400_000);

    struct Instance {
        terminator: Terminator,
        root: CertificateDer<'static>,
    }

    fn instance() -> Instance {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open(&directory.path().join("s")).unwrap();
        // Leaves are valid now, whenever the test runs.
        let authority = Arc::new(Authority::open(&state, crate::worker::now()).unwrap());
        let root = authority.certificate().clone();
        let leaves = Leaves::start(authority, LEAVES_MAX).unwrap();
        let ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        let metrics = Metrics::new(&prometheus::Registry::new()).unwrap();
        let terminator = Terminator::new(leaves, ticketer, metrics, Duration::from_secs(10)).unwrap();
        Instance { terminator, root }
    }

    fn client(instance: &Instance, version: &'static SupportedProtocolVersion) -> ClientConfig {
        let mut roots = RootCertStore::empty();
        roots.add(instance.root.clone()).unwrap();
        ClientConfig::builder_with_provider(service::tls_provider::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth()
    }

    /// One connection, with a byte each way so that tickets arrive; how its handshake was, and over which group.
    async fn connect(
        instance: &Instance,
        client: &Arc<ClientConfig>,
        name: &'static str,
    ) -> (HandshakeKind, NamedGroup) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let connector = tokio_rustls::TlsConnector::from(client.clone());
        let serve = async {
            let (stream, _) = listener.accept().await.unwrap();
            let host = HostName::new(name).unwrap();
            let stream = Rewind::new(bytes::BytesMut::new(), stream);
            let mut opened =
                instance.terminator.open(stream, &host, None, crate::worker::now()).await.unwrap();
            let byte = opened.read_u8().await.unwrap();
            opened.write_u8(byte).await.unwrap();
            opened.flush().await.unwrap();
        };
        let call = async {
            let stream = TcpStream::connect(address).await.unwrap();
            let mut stream = connector.connect(ServerName::try_from(name).unwrap(), stream).await.unwrap();
            stream.write_u8(7).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), 7);
            let connection = stream.get_ref().1;
            let group = connection.negotiated_key_exchange_group().map(|group| group.name());
            (connection.handshake_kind().unwrap(), group.unwrap_or(NamedGroup::Unknown(0)))
        };
        tokio::join!(serve, call).1
    }

    #[tokio::test(flavor = "current_thread")]
    async fn applications_resume_in_both_versions_and_prefer_the_hybrid_group() {
        let instance = instance();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let client = Arc::new(client(&instance, version));
            let (kind, group) = connect(&instance, &client, "a.example").await;
            assert_eq!(kind, HandshakeKind::Full, "{version:?}");
            if *version == rustls::version::TLS13 {
                assert_eq!(group, NamedGroup::X25519MLKEM768);
            }
            let (kind, _) = connect(&instance, &client, "a.example").await;
            assert_eq!(kind, HandshakeKind::Resumed, "{version:?}");
        }
    }

    /// Gives every name the tickets of all others.
    #[derive(Debug)]
    struct OneForAll(Arc<dyn ClientSessionStore>);

    const ONE: &str = "one.example";

    fn one() -> ServerName<'static> {
        ServerName::try_from(ONE).unwrap()
    }

    impl ClientSessionStore for OneForAll {
        fn set_kx_hint(&self, _: ServerName<'static>, group: NamedGroup) {
            self.0.set_kx_hint(one(), group);
        }
        fn kx_hint(&self, _: &ServerName<'_>) -> Option<NamedGroup> {
            self.0.kx_hint(&one())
        }
        fn set_tls12_session(&self, _: ServerName<'static>, value: Tls12ClientSessionValue) {
            self.0.set_tls12_session(one(), value);
        }
        fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
            self.0.tls12_session(&one())
        }
        fn remove_tls12_session(&self, _: &ServerName<'static>) {
            self.0.remove_tls12_session(&one());
        }
        fn insert_tls13_ticket(&self, _: ServerName<'static>, value: Tls13ClientSessionValue) {
            self.0.insert_tls13_ticket(one(), value);
        }
        fn take_tls13_ticket(&self, _: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
            self.0.take_tls13_ticket(&one())
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_ticket_of_one_name_never_resumes_another() {
        let instance = instance();
        for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
            let mut client = client(&instance, version);
            let shared = OneForAll(Arc::new(rustls::client::ClientSessionMemoryCache::new(32)));
            client.resumption = Resumption::store(Arc::new(shared));
            let client = Arc::new(client);
            assert_eq!(connect(&instance, &client, "a.example").await.0, HandshakeKind::Full);
            // The client really offers it: to the name that it is for, it is taken.
            assert_eq!(connect(&instance, &client, "a.example").await.0, HandshakeKind::Resumed);
            assert_eq!(connect(&instance, &client, "b.example").await.0, HandshakeKind::Full);
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_ticket_of_one_instance_never_resumes_at_another() {
        let (first, second) = (instance(), instance());
        let mut roots = RootCertStore::empty();
        roots.add(first.root.clone()).unwrap();
        roots.add(second.root.clone()).unwrap();
        let client = Arc::new(
            ClientConfig::builder_with_provider(service::tls_provider::provider())
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth(),
        );
        assert_eq!(connect(&first, &client, "a.example").await.0, HandshakeKind::Full);
        assert_eq!(connect(&second, &client, "a.example").await.0, HandshakeKind::Full);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_does_not_complete_the_handshake_is_not_waited_for() {
        let mut instance = instance();
        instance.terminator.patience = Duration::from_millis(50);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let _silent = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (stream, _) = listener.accept().await.unwrap();
        let stream = Rewind::new(bytes::BytesMut::new(), stream);
        let name = HostName::new("a.example").unwrap();
        let failure = instance.terminator.open(stream, &name, None, NOW).await.err().unwrap();
        assert_eq!(failure.code, Code::DownstreamHandshake);
    }
}
