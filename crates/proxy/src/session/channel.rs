//! Connections to the control plane: TLS 1.3, verified, with the session's certificate once there is one.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use wire::v1::control_plane_client::ControlPlaneClient;

use super::trust::{Trust, Verifier};
use crate::socket::{self, SocketOptions};

/// The name in the control plane's certificate, whatever address it has.
const SERVER_NAME: &str = "countersign-control";

/// For connecting, and for each unary call.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the control plane is.
#[derive(Clone, Debug)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// Reads `https://host:port`.
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let uri: Uri = url.parse().with_context(|| format!("`{url}` is not a URL"))?;
        let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
        let host =
            host.with_context(|| format!("`{url}` must be an https URL: the control plane speaks TLS only"))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self { host, port: uri.port_u16().unwrap_or(443) })
    }
}

/// The certificate of a session, with its key.
#[derive(Clone)]
pub struct Identity {
    /// Leaf first.
    pub certificates: Vec<CertificateDer<'static>>,
    /// PKCS#8.
    pub key: Arc<zeroize::Zeroizing<Vec<u8>>>,
}

/// Connects; every connection that the channel opens later is made in the same way.
///
/// # Errors
/// If the control plane can't be reached or is not who it should be.
pub async fn connect(
    address: &Address,
    trust: &Arc<Trust>,
    identity: Option<&Identity>,
    options: SocketOptions,
) -> anyhow::Result<ControlPlaneClient<Channel>> {
    let config = Arc::new(tls_config(trust, identity)?);
    let address = address.clone();
    let connector = service_fn(move |_: Uri| {
        let (config, address) = (config.clone(), address.clone());
        async move { dial(&address, config, options).await.map(TokioIo::new) }
    });
    // The scheme only keeps tonic from adding a TLS of its own.
    let channel = Endpoint::from_static("http://countersign-control")
        .connect_timeout(PATIENCE)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .context("the control plane could not be reached")?;
    Ok(ControlPlaneClient::new(channel).max_decoding_message_size(16 << 20))
}

fn tls_config(trust: &Arc<Trust>, identity: Option<&Identity>) -> anyhow::Result<ClientConfig> {
    let builder = ClientConfig::builder_with_provider(service::tls_provider::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier(trust.clone())));
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(identity.key.to_vec()));
            builder.with_client_auth_cert(identity.certificates.clone(), key)?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

async fn dial(
    address: &Address,
    config: Arc<ClientConfig>,
    options: SocketOptions,
) -> io::Result<tokio_rustls::client::TlsStream<tokio::net::TcpStream>> {
    let addresses = tokio::net::lookup_host((address.host.as_str(), address.port)).await?;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the control plane's name has no address");
    for candidate in addresses {
        let connecting = async {
            let stream = socket::connect_tcp(candidate, &options).await?;
            stream.set_nodelay(true)?;
            let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
            tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await
        };
        match tokio::time::timeout(PATIENCE, connecting).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}
