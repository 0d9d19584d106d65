//! Against a server with one ticketer, which resumes whatever it is shown a ticket for.

use std::sync::Arc;

use model::destination::{Protocol, Resolution, TlsMode};
use model::{HostName, SpiffeId, UnixMillis};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, NamedGroup, ServerConfig, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::capture::accept::OriginalDestination;
use crate::session::channel::Identity;
use crate::svid::Svid;
use crate::upstream::pool::Pool;

struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: rcgen::Issuer::new(params, key), root }
    }

    fn leaf(&self, name: &str) -> (CertificateDer<'static>, Vec<u8>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().der().clone(), key.serialize_der())
    }

    fn roots(&self) -> RootCertStore {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        roots
    }

    fn svid(&self) -> Arc<Svid> {
        let (certificate, key) = self.leaf("caller.example");
        let identity =
            Identity { certificates: vec![certificate], key: Arc::new(zeroize::Zeroizing::new(key)) };
        Arc::new(Svid::new(&identity, UnixMillis(i64::MAX)).unwrap())
    }

    fn server(&self, name: &str, version: &'static SupportedProtocolVersion) -> Arc<ServerConfig> {
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(self.roots()),
            service::tls_provider::provider(),
        );
        let (certificate, key) = self.leaf(name);
        let mut config = ServerConfig::builder_with_provider(service::tls_provider::provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_client_cert_verifier(verifier.allow_unauthenticated().build().unwrap())
            .with_single_cert(vec![certificate], PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key)))
            .unwrap();
        config.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
        Arc::new(config)
    }
}

fn destination(server_name: Option<&str>) -> Destination {
    Destination {
        name: "a/d".parse().unwrap(),
        hosts: vec!["called.example".parse().unwrap()],
        ports: vec![443],
        addresses: Vec::new(),
        protocol: Protocol::Http,
        http_versions: Vec::new(),
        tls: TlsMode::Terminate,
        insecure: false,
        redact: false,
        ca_bundle: String::new(),
        server_name: server_name.map(|name| name.parse().unwrap()),
        client_certificate: None,
        resolve: Resolution::Name,
        sensitivity: String::new(),
    }
}

fn origin(
    caller: &str,
    port: u16,
    destination: &Destination,
    svid: Option<Arc<Svid>>,
) -> std::rc::Rc<Origin> {
    let caller = SpiffeId::new(&format!("spiffe://demo/{caller}")).unwrap();
    let host = HostName::new("called.example").unwrap();
    let dialled = OriginalDestination::dialled(([192, 0, 2, 1], port).into());
    let key = OriginKey::new(caller, host, true, destination, &dialled, svid.as_deref());
    Pool::default().origin(key, svid)
}

struct Made {
    kind: HandshakeKind,
    group: Option<NamedGroup>,
    sni: Option<String>,
    shown: bool,
}

/// One connection by the configuration for this origin, with a byte each way so that tickets arrive.
async fn connect(
    roots: &Roots,
    server: &Arc<ServerConfig>,
    origin: &Origin,
    destination: &Destination,
) -> Made {
    let client = roots.client(origin, destination, &[HttpVersion::Http1]).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut tls = tokio_rustls::TlsAcceptor::from(server.clone()).accept(stream).await.unwrap();
        let byte = tls.read_u8().await.unwrap();
        tls.write_u8(byte).await.unwrap();
        tls.flush().await.unwrap();
        let connection = tls.get_ref().1;
        (connection.server_name().map(str::to_owned), connection.peer_certificates().is_some())
    };
    let call = async {
        let name = ServerName::try_from(origin.key.server_name.as_str().to_owned()).unwrap();
        let stream = TcpStream::connect(address).await.unwrap();
        let mut tls = tokio_rustls::TlsConnector::from(client.config).connect(name, stream).await.unwrap();
        tls.write_u8(7).await.unwrap();
        assert_eq!(tls.read_u8().await.unwrap(), 7);
        let connection = tls.get_ref().1;
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        (connection.handshake_kind().unwrap(), group)
    };
    let ((sni, shown), (kind, group)) = tokio::join!(serve, call);
    Made { kind, group, sni, shown }
}

#[tokio::test(flavor = "current_thread")]
async fn upstreams_resume_in_both_versions_and_are_offered_the_hybrid_group_first() {
    let authority = Authority::new();
    let destination = destination(None);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (roots, server) = (Roots::new(authority.roots()), authority.server("called.example", version));
        // As two workers have it: each its own origin of the same key.
        let (one, other) = (origin("a", 443, &destination, None), origin("a", 443, &destination, None));
        let first = connect(&roots, &server, &one, &destination).await;
        assert_eq!(first.kind, HandshakeKind::Full, "{version:?}");
        if *version == rustls::version::TLS13 {
            assert_eq!(first.group, Some(NamedGroup::X25519MLKEM768));
        }
        assert_eq!(connect(&roots, &server, &other, &destination).await.kind, HandshakeKind::Resumed);
    }
}

#[tokio::test(flavor = "current_thread")]
async fn a_ticket_of_one_identity_never_resumes_another() {
    let authority = Authority::new();
    let destination = destination(None);
    for version in [&rustls::version::TLS12, &rustls::version::TLS13] {
        let (roots, server) = (Roots::new(authority.roots()), authority.server("called.example", version));
        let (first, renewed) = (authority.svid(), authority.svid());
        let identities = [
            origin("a", 443, &destination, Some(first.clone())),
            // A renewed certificate, none, another caller, another port.
            origin("a", 443, &destination, Some(renewed)),
            origin("a", 443, &destination, None),
            origin("b", 443, &destination, Some(first.clone())),
            origin("a", 8443, &destination, Some(first)),
        ];
        for identity in &identities {
            let made = connect(&roots, &server, identity, &destination).await;
            assert_eq!(made.kind, HandshakeKind::Full, "{version:?} {:?}", identity.key);
            assert_eq!(made.shown, identity.svid.is_some());
        }
        // Each has tickets by now, and they are its own.
        for identity in &identities {
            let made = connect(&roots, &server, identity, &destination).await;
            assert_eq!(made.kind, HandshakeKind::Resumed, "{version:?} {:?}", identity.key);
            assert_eq!(made.shown, identity.svid.is_some(), "the server remembers whom it resumes");
        }
    }
}

#[tokio::test(flavor = "current_thread")]
async fn another_name_is_sent_and_verified_where_the_destination_says_so() {
    let authority = Authority::new();
    let roots = Roots::new(authority.roots());
    let server = authority.server("inside.example", &rustls::version::TLS13);
    let inside = destination(Some("inside.example"));
    let made = connect(&roots, &server, &origin("a", 443, &inside, None), &inside).await;
    assert_eq!(made.sni.as_deref(), Some("inside.example"));
}

#[test]
fn the_configurations_are_bounded() {
    let roots = Roots::new(Authority::new().roots());
    let destination = destination(None);
    for port in 1..=1000 {
        roots.client(&origin("a", port, &destination, None), &destination, &[HttpVersion::Http1]).unwrap();
    }
    assert_eq!(roots.clients.lock().unwrap().len(), CLIENTS_MAX.get());
}
