//! Serves the discovery document and the keys (OpenID Connect Discovery 1.0 §4), as an API server does.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::Issuer;
use crate::keys::Key;

/// Where and as whom.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Settings {
    #[command(flatten)]
    issuer: Issuer,

    /// Address to listen on; may be given several times.
    #[arg(long, value_name = "ADDR", default_value = "[::]:8443")]
    listen: Vec<SocketAddr>,

    /// Certificate chain (PEM).
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,

    /// Its private key (PEM).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
}

/// The two documents.
struct Documents {
    discovery: Bytes,
    keys: Bytes,
}

/// Where the keys are, under the issuer's URL; the path is the API server's.
const KEYS: &str = "/openid/v1/jwks";
/// Time for a handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Serves until the program ends.
pub(crate) async fn serve(settings: Settings) -> anyhow::Result<()> {
    let documents = Arc::new(documents(&settings.issuer)?);
    let tls = tls(&settings)?;
    let mut servers = tokio::task::JoinSet::new();
    for address in settings.listen {
        let listener =
            TcpListener::bind(address).await.with_context(|| format!("could not listen on {address}"))?;
        servers.spawn(accept(listener, tls.clone(), documents.clone()));
    }
    while servers.join_next().await.is_some() {}
    Ok(())
}

fn documents(issuer: &Issuer) -> anyhow::Result<Documents> {
    let key = Key::open(&issuer.key_file)?;
    let url = issuer.issuer.trim_end_matches('/');
    let discovery = json!({
        "issuer": issuer.issuer,
        "jwks_uri": format!("{url}{KEYS}"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    });
    let keys = json!({ "keys": [key.jwk()] });
    Ok(Documents { discovery: discovery.to_string().into(), keys: keys.to_string().into() })
}

fn tls(settings: &Settings) -> anyhow::Result<TlsAcceptor> {
    let chain = CertificateDer::pem_file_iter(&settings.certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("could not read certificates from {}", settings.certificate.display()))?;
    let key = PrivateKeyDer::from_pem_file(&settings.key)
        .with_context(|| format!("could not read a private key from {}", settings.key.display()))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn accept(listener: TcpListener, tls: TlsAcceptor, documents: Arc<Documents>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        tokio::spawn(connection(stream, tls.clone(), documents.clone()));
    }
}

async fn connection(stream: TcpStream, tls: TlsAcceptor, documents: Arc<Documents>) {
    let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else { return };
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(request.method(), request.uri().path(), &documents);
        async move { Ok::<_, Infallible>(response) }
    });
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

fn answer(method: &Method, path: &str, documents: &Documents) -> Response<Full<Bytes>> {
    let (body, kind) = match (method, path) {
        (&Method::GET, "/.well-known/openid-configuration") => (&documents.discovery, "application/json"),
        (&Method::GET, KEYS) => (&documents.keys, "application/jwk-set+json"),
        _ => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NOT_FOUND;
            return response;
        }
    };
    let mut response = Response::new(Full::new(body.clone()));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=60"));
    response
}
