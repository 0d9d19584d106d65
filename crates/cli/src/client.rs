//! Reaches the control plane: by its socket, over TLS with a token, or through a cluster's API server.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use model::Code;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Mutex;
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use wire::v1::administration_client::AdministrationClient;

use crate::arguments::Cli;
use crate::cluster::{self, Cluster, Role};
use crate::exit::{Exit, Refusal};

/// The name in the control plane's certificate, whatever address it has.
const SERVER_NAME: &str = "countersign-control";

/// Largest answer.
const MESSAGE_MAX: usize = 64 << 20;

/// Adds the token to each call, if there is one.
#[derive(Clone)]
pub struct Token(Option<MetadataValue<tonic::metadata::Ascii>>);

impl tonic::service::Interceptor for Token {
    fn call(&mut self, mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// The control plane, ready to be asked.
pub type Client = AdministrationClient<InterceptedService<Channel, Token>>;

/// Connects as the arguments say.
///
/// # Errors
/// If the control plane can't be reached, or the token or the certificate can't be read.
pub async fn connect(cli: &Cli) -> Result<Client, Refusal> {
    let (channel, token) = match &cli.server {
        None if cluster::is_meant(cli) => by_cluster(cli).await?,
        None => (by_socket(cli).await?, Token(None)),
        Some(url) => (by_network(cli, url).await?, Token(Some(token(cli)?))),
    };
    Ok(AdministrationClient::with_interceptor(channel, token)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX))
}

async fn by_socket(cli: &Cli) -> Result<Channel, Refusal> {
    let path = cli.socket_path();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let shown = cli.socket_path().display().to_string();
    Endpoint::from_static("http://countersign-control")
        .connect_with_connector(connector)
        .await
        .map_err(|error| away(&shown, &error))
}

async fn by_network(cli: &Cli, url: &str) -> Result<Channel, Refusal> {
    let uri: Uri = url.parse().map_err(|_| Refusal::plain(Exit::Usage, format!("`{url}` is not a URL")))?;
    let host = uri.host().filter(|_| uri.scheme_str() == Some("https"));
    let host =
        host.ok_or_else(|| Refusal::plain(Exit::Usage, format!("`{url}` must be an https URL")))?.to_owned();
    let port = uri.port_u16().unwrap_or(443);
    let problem = |error: anyhow::Error| Refusal::plain(Exit::Error, format!("{error:#}"));
    let roots =
        cli.ca_file.as_ref().map(|path| service::roots::from_file(path)).transpose().map_err(problem)?;
    let config = Arc::new(tls(roots.unwrap_or_default())?);
    let connector = service_fn(move |_: Uri| {
        let (config, host) = (config.clone(), host.clone());
        async move {
            let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await?;
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    Endpoint::from_static("http://countersign-control")
        .connect_with_connector(connector)
        .await
        .map_err(|error| away(url, &error))
}

/// Through the API server's port-forward; TLS is with the control plane itself.
async fn by_cluster(cli: &Cli) -> Result<(Channel, Token), Refusal> {
    let cluster = Cluster::open(cli).await?;
    let roots = CertificateDer::pem_slice_iter(cluster.roots().await?.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Refusal::plain(Exit::Error, format!("{}: its roots: {error}", cluster.shown())))?;
    let config = Arc::new(tls(roots)?);
    let token = cluster.token(Role::of(&cli.command)).await?;
    let token = bearer(token.expose(), "the API server's answer")?;
    // The first connection is made here, where what is wrong with it can be said in the user's words.
    let first = Arc::new(Mutex::new(Some(cluster.connect().await?)));
    let shown = cluster.shown();
    let cluster = Arc::new(cluster);
    let connector = service_fn(move |_: Uri| {
        let (config, first, cluster) = (config.clone(), first.clone(), cluster.clone());
        async move {
            let stream = match first.lock().await.take() {
                Some(stream) => stream,
                None => cluster.connect().await.map_err(|refusal| std::io::Error::other(refusal.message))?,
            };
            let name = ServerName::try_from(SERVER_NAME).map_err(std::io::Error::other)?;
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    let channel = Endpoint::from_static("http://countersign-control")
        .connect_with_connector(connector)
        .await
        .map_err(|error| away(&shown, &error))?;
    Ok((channel, Token(Some(token))))
}

fn tls(certificates: Vec<CertificateDer<'static>>) -> Result<ClientConfig, Refusal> {
    let problem = |error: anyhow::Error| Refusal::plain(Exit::Error, format!("{error:#}"));
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    let mut config = ClientConfig::builder_with_provider(service::tls_provider::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| problem(error.into()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn token(cli: &Cli) -> Result<MetadataValue<tonic::metadata::Ascii>, Refusal> {
    let path = cli.token_file.clone().unwrap_or_default();
    let shown = path.display().to_string();
    let token = std::fs::read_to_string(&path).map_err(|error| {
        Refusal::plain(Exit::Error, format!("the token in {shown} can't be read: {error}"))
    })?;
    bearer(token.trim().as_bytes(), &shown)
}

fn bearer(token: &[u8], of: &str) -> Result<MetadataValue<tonic::metadata::Ascii>, Refusal> {
    let mut value = MetadataValue::try_from([b"Bearer ", token].concat())
        .map_err(|_| Refusal::plain(Exit::Error, format!("{of} does not hold a token")))?;
    value.set_sensitive(true);
    Ok(value)
}

fn away(place: &str, error: &tonic::transport::Error) -> Refusal {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    if cause
        .downcast_ref::<std::io::Error>()
        .is_some_and(|io| io.kind() == std::io::ErrorKind::PermissionDenied)
    {
        return Refusal::coded(Code::NotAuthorised, format!("{place} may not be used by this user"));
    }
    Refusal::coded(Code::ControlPlaneAway, format!("the control plane does not answer at {place}: {cause}"))
}
