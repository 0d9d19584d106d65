//! Stage 2, tls: open it or leave it shut?
//!
//! The first bytes are read, never consumed: a connection that is left shut goes on byte for byte as it came, and
//! nothing at all is written to the application before its bytes are known to be TLS that we open.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use model::destination::HttpVersion;
use model::{Code, Failure, HostName, UnixMillis};
use protocols::client_hello::{self, ClientHello};
use protocols::detect::{self, Detected};
use rustls::ServerConfig;
use rustls::server::{
    ClientHello as RustlsHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert,
};
use rustls::sign::CertifiedKey;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::authority::Authority;
use crate::protocol::rewind::Rewind;

/// Bytes that are read at most to find out what a connection is. A ClientHello with post-quantum key shares has
/// about 2 KiB; the head of an HTTP/1 request is bounded by the same number as in stage 3.
const OPENING_MAX: usize = 64 * 1024;

/// How a connection begins.
pub enum Opening {
    /// TLS, with what its ClientHello says.
    Tls(Box<ClientHello>),
    /// A request of HTTP/1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge (RFC 9113 §3.3).
    Http2,
    /// Something else, TLS that can't be read, or nothing at all before the application ended its side.
    Unknown,
    /// It began like TLS and stopped in the middle of its ClientHello.
    Unfinished,
}

/// Waits until the application says something, or ends its side, which is an answer too.
///
/// # Errors
/// If the connection breaks.
pub async fn first_bytes(stream: &mut TcpStream, first: &mut BytesMut) -> io::Result<()> {
    stream.read_buf(first).await.map(drop)
}

/// Reads until it is clear how the connection begins; what was read is left in `first`. What stops in the middle does not
/// become clearer by waiting for longer than `patience`.
///
/// # Errors
/// If the connection breaks.
pub async fn peek(stream: &mut TcpStream, first: &mut BytesMut, patience: Duration) -> io::Result<Opening> {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        if let Some(opening) = recognise(first) {
            return Ok(opening);
        }
        match tokio::time::timeout_at(deadline, stream.read_buf(first)).await {
            Err(_) if detect::detect(first) == Some(Detected::Tls) => return Ok(Opening::Unfinished),
            Err(_) => return Ok(Opening::Unknown),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(0)) => return Ok(Opening::Unknown),
            Ok(Ok(_)) => {}
        }
    }
}

/// What the bytes so far are, if that is already clear.
fn recognise(first: &[u8]) -> Option<Opening> {
    match detect::detect(first)? {
        Detected::Tls => match client_hello::parse(first) {
            Ok(Some(hello)) => Some(Opening::Tls(Box::new(hello))),
            Ok(None) if first.len() < OPENING_MAX => None,
            Ok(None) | Err(_) => Some(Opening::Unknown),
        },
        Detected::Http1 => Some(Opening::Http1),
        Detected::Http2Preface => Some(Opening::Http2),
        Detected::Unknown => Some(Opening::Unknown),
    }
}

/// The versions of HTTP among the protocols that an application offers; HTTP/1.1 if it offers none at all.
///
/// Empty if it offers only what we do not know: the connection then counts as an unknown protocol.
pub fn offered_versions(hello: &ClientHello) -> Vec<HttpVersion> {
    if hello.alpn.is_empty() {
        return vec![HttpVersion::Http1];
    }
    let known = [HttpVersion::Http2, HttpVersion::Http1];
    known.into_iter().filter(|version| hello.alpn.iter().any(|name| **name == *version.alpn())).collect()
}

/// Opens applications' TLS with leaves of the instance's CA. One per worker.
pub struct Terminator {
    authority: Arc<Authority>,
    ticketer: Arc<dyn ProducesTickets>,
    configs: RefCell<HashMap<(HostName, Option<HttpVersion>), CachedConfig>>,
}

struct CachedConfig {
    config: Arc<ServerConfig>,
    good_until: UnixMillis,
}

/// How many configurations a worker keeps. An application can send any number of names; past this the cache starts
/// anew, which costs a handshake's worth of work for each name in use.
const CONFIGS_MAX: usize = 256;

/// A configuration is made anew this often, so that its leaf, which lives a day, never ends under it.
const CONFIG_LIFE_SECS: i64 = 12 * 3600;

impl Terminator {
    /// One ticketer serves all names and all workers: rustls compares the name that a ticket was made for.
    pub fn new(authority: Arc<Authority>, ticketer: Arc<dyn ProducesTickets>) -> Self {
        Self { authority, ticketer, configs: RefCell::default() }
    }

    /// Completes the handshake with a leaf for exactly `name`, offering `version` (or no ALPN, if `None`).
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
    ) -> Result<TlsStream<Rewind<TcpStream>>, Failure> {
        let config = self.config(name, version, now)?;
        TlsAcceptor::from(config).accept(stream).await.map_err(|error| handshake_failure(name, error))
    }

    fn config(
        &self,
        name: &HostName,
        version: Option<HttpVersion>,
        now: UnixMillis,
    ) -> Result<Arc<ServerConfig>, Failure> {
        let key = (name.clone(), version);
        if let Some(cached) = self.configs.borrow().get(&key)
            && cached.good_until > now
        {
            return Ok(cached.config.clone());
        }
        let config = Arc::new(self.make(name, version, now)?);
        let mut configs = self.configs.borrow_mut();
        if configs.len() >= CONFIGS_MAX {
            configs.clear();
        }
        let good_until = now.plus_secs(CONFIG_LIFE_SECS);
        configs.insert(key, CachedConfig { config: config.clone(), good_until });
        Ok(config)
    }

    fn make(
        &self,
        name: &HostName,
        version: Option<HttpVersion>,
        now: UnixMillis,
    ) -> Result<ServerConfig, Failure> {
        let leaf = self.authority.leaf(name, now)?;
        let mut config = ServerConfig::builder_with_provider(service::tls_provider::provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| Failure::new(Code::DownstreamHandshake, "no TLS version is configured").because(e))?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(OneLeaf(leaf)));
        config.alpn_protocols = version.map(|v| v.alpn().to_vec()).into_iter().collect();
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = self.ticketer.clone();
        Ok(config)
    }
}

/// Answers every ClientHello of one configuration with the same leaf: the name was read before.
#[derive(Debug)]
struct OneLeaf(Arc<CertifiedKey>);

impl ResolvesServerCert for OneLeaf {
    fn resolve(&self, _: RustlsHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

/// Tells distrust, which somebody can mend by setting a variable, from all other ways in which a handshake fails.
fn handshake_failure(name: &HostName, error: io::Error) -> Failure {
    use rustls::AlertDescription::{BadCertificate, CertificateUnknown, UnknownCA, UnsupportedCertificate};
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::AlertReceived(
            alert @ (UnknownCA | BadCertificate | CertificateUnknown | UnsupportedCertificate),
        )) => Failure::new(
            Code::ApplicationDistrusts,
            format!("the application does not trust the proxy's certificate for {name} (alert {alert:?})"),
        ),
        _ if error.kind() == io::ErrorKind::UnexpectedEof => Failure::new(
            Code::DownstreamHandshake,
            format!(
                "the application left during the handshake for {name}; probably it does not trust the proxy"
            ),
        ),
        _ => Failure::new(Code::DownstreamHandshake, format!("the handshake for {name} failed")),
    }
    .because(error)
}
