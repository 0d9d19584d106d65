//! The door for proxies, and for administrators with a token: TLS 1.3, and who is on the other side.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use model::{Code, Failure, SpiffeId, UnixMillis};
use rustls::server::WebPkiClientVerifier;
use rustls::sign::SingleCertAndKey;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::authority::{Authority, Generation};

/// For a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// Handshakes and connections at a time.
const CONNECTIONS_MAX: usize = 20_000;

/// Who is on the other side of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where it came from.
    pub address: SocketAddr,
    /// What its certificate proved; `None` if it showed none.
    pub certificate: Option<PeerCertificate>,
}

/// What a proxy's certificate proved: it was signed by us and has not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The caller.
    pub caller: SpiffeId,
    /// SHA-256 of its public key (SPKI).
    pub key: [u8; 32],
    /// When it ends; no stream outlives it.
    pub not_after: UnixMillis,
}

/// A connection with its peer.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts connections and completes their handshakes, many at a time, into a stream for tonic.
///
/// # Errors
/// If the TLS configuration can't be made.
pub fn incoming(
    listener: TcpListener,
    authority: Arc<Authority>,
) -> anyhow::Result<tokio_stream::wrappers::ReceiverStream<io::Result<Connection>>> {
    let mut changes = authority.changes();
    let mut acceptor = TlsAcceptor::from(Arc::new(tls_config(&authority.now())?));
    let (sender, receiver) = tokio::sync::mpsc::channel(64);
    let places = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS_MAX));
    tokio::spawn(async move {
        loop {
            let Ok((stream, address)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            if changes.has_changed().unwrap_or(false) {
                let latest = changes.borrow_and_update().clone();
                match tls_config(&latest) {
                    Ok(config) => acceptor = TlsAcceptor::from(Arc::new(config)),
                    Err(error) => tracing::error!("the CA can't be used: {error:#}"),
                }
            }
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let (acceptor, sender) = (acceptor.clone(), sender.clone());
            tokio::spawn(async move {
                let _place = place;
                let _ = stream.set_nodelay(true);
                match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                    Ok(Ok(stream)) => {
                        let certificate = certificate_of(&stream);
                        let _ =
                            sender.send(Ok(Connection { stream, peer: Peer { address, certificate } })).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%address, %error, "a handshake failed"),
                    Err(_) => tracing::debug!(%address, "a handshake took too long"),
                }
            });
        }
    });
    Ok(tokio_stream::wrappers::ReceiverStream::new(receiver))
}

fn tls_config(authority: &Generation) -> anyhow::Result<ServerConfig> {
    let mut roots = RootCertStore::empty();
    for root in authority.roots() {
        roots.add(root.clone())?;
    }
    // A certificate is not asked for by TLS but by each method: Attest is how a proxy gets one.
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), service::tls_provider::provider())
            .allow_unauthenticated()
            .build()?;
    let mut config = ServerConfig::builder_with_provider(service::tls_provider::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(authority.server())));
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn certificate_of(stream: &TlsStream<TcpStream>) -> Option<PeerCertificate> {
    use x509_parser::extensions::GeneralName;
    let leaf = stream.get_ref().1.peer_certificates()?.first()?;
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    let [GeneralName::URI(uri)] = names.value.general_names.as_slice() else { return None };
    Some(PeerCertificate {
        caller: SpiffeId::new(uri).ok()?,
        key: Sha256::digest(parsed.public_key().raw).into(),
        not_after: UnixMillis::from_secs(parsed.validity().not_after.timestamp()),
    })
}

/// Who sent a request.
///
/// # Errors
/// [`Code::SessionEnded`] if the connection has no certificate that is still good.
pub fn authenticated<T>(request: &tonic::Request<T>, now: UnixMillis) -> Result<PeerCertificate, Failure> {
    let peer = request.extensions().get::<Peer>();
    match peer.and_then(|peer| peer.certificate.clone()) {
        Some(certificate) if certificate.not_after > now => Ok(certificate),
        Some(_) => Err(Failure::new(Code::SessionEnded, "the certificate of this channel has ended")),
        None => Err(Failure::new(Code::SessionEnded, "this call needs the certificate that Attest gives")),
    }
}
