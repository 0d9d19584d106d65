//! Reaches the control plane: by its socket, or over TLS with a token.

use std::sync::Arc;

use hyper_util::rt::TokioIo;
use model::Code;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::{TcpStream, UnixStream};
use tonic::metadata::MetadataValue;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;
use wire::v1::administration_client::AdministrationClient;

use crate::arguments::Cli;
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
        None => (by_socket(cli).await?, Token(None)),
        Some(url) => (by_network(cli, url).await?, Token(Some(token(cli)?))),
    };
    Ok(AdministrationClient::with_interceptor(channel, token)
        .max_decoding_message_size(MESSAGE_MAX)
        .max_encoding_message_size(MESSAGE_MAX))
}

async fn by_socket(cli: &Cli) -> Result<Channel, Refusal> {
    let path = cli.socket.clone();
    let connector = service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    let shown = cli.socket.display().to_string();
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
    let config = Arc::new(tls(cli)?);
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

fn tls(cli: &Cli) -> Result<ClientConfig, Refusal> {
    let problem = |error: anyhow::Error| Refusal::plain(Exit::Error, format!("{error:#}"));
    let mut roots = RootCertStore::empty();
    if let Some(path) = &cli.ca_file {
        let certificates = service::roots::from_file(path).map_err(problem)?;
        roots.add_parsable_certificates(certificates);
    }
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
    let mut value = MetadataValue::try_from(format!("Bearer {}", token.trim()))
        .map_err(|_| Refusal::plain(Exit::Error, format!("{shown} does not hold a token")))?;
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
