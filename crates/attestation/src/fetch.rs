//! Small documents over verified HTTPS: discovery, key sets, what an API server knows. Bounded in size and time; follows no
//! redirect.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;

/// Largest document.
const BYTES_MAX: usize = 1 << 20;

/// For one document, from the name look-up to its last byte.
const PATIENCE: Duration = Duration::from_secs(10);

/// A document, and how long it may be kept.
#[derive(Debug)]
pub struct Fetched {
    /// Its bytes.
    pub body: Bytes,
    /// `max-age` of its `Cache-Control`, if it has one.
    pub max_age: Option<Duration>,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// An https URL.
    pub url: &'a str,
    /// Roots for its certificate.
    pub roots: &'a Arc<RootCertStore>,
    /// The bearer token to present.
    pub bearer: Option<&'a model::Secret>,
    /// A JSON document to POST; GET without one.
    pub post: Option<&'a model::Secret>,
}

/// Gets a document.
///
/// # Errors
/// If the server can't be reached or verified, or answers anything but 200 with a bounded body.
pub async fn get(
    url: &str,
    roots: &Arc<RootCertStore>,
    bearer: Option<&model::Secret>,
) -> anyhow::Result<Fetched> {
    let (status, fetched) = ask(Ask { url, roots, bearer, post: None }).await?;
    if status != StatusCode::OK {
        bail!("could not get {url}: the answer is {status}");
    }
    Ok(fetched)
}

/// Asks, whatever the status of the answer.
///
/// # Errors
/// If the server can't be reached or verified, or its answer has no bounded body.
pub async fn ask(asked: Ask<'_>) -> anyhow::Result<(StatusCode, Fetched)> {
    tokio::time::timeout(PATIENCE, request(asked))
        .await
        .with_context(|| format!("{} did not answer in {} s", asked.url, PATIENCE.as_secs()))?
        .with_context(|| format!("could not ask {}", asked.url))
}

async fn request(asked: Ask<'_>) -> anyhow::Result<(StatusCode, Fetched)> {
    let uri: Uri = asked.url.parse().context("not a URL")?;
    if uri.scheme_str() != Some("https") {
        bail!("only https is asked");
    }
    let host = uri.host().context("the URL names no host")?.to_owned();
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), uri.port_u16().unwrap_or(443))).await?;
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(asked.roots.clone())
        .with_no_client_auth();
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())?;
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let response = sender.send_request(message(&uri, asked)?).await?;
    let status = response.status();
    let max_age =
        response.headers().get(header::CACHE_CONTROL).and_then(|value| max_age(value.to_str().ok()?));
    let body = Limited::new(response.into_body(), BYTES_MAX);
    let body =
        body.collect().await.map_err(|error| anyhow::anyhow!("the body broke off: {error}"))?.to_bytes();
    Ok((status, Fetched { body, max_age }))
}

fn message(uri: &Uri, asked: Ask<'_>) -> anyhow::Result<Request<Full<Bytes>>> {
    let authority = uri.authority().context("the URL names no host")?.as_str();
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    // An API server has its keys in no other form than the first (406).
    let mut request = Request::builder()
        .uri(path)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/jwk-set+json, application/json");
    if let Some(bearer) = asked.bearer {
        let mut value = header::HeaderValue::from_bytes(&[b"Bearer ", bearer.expose()].concat())?;
        value.set_sensitive(true);
        request = request.header(header::AUTHORIZATION, value);
    }
    Ok(match asked.post {
        None => request.method("GET").body(Full::default())?,
        Some(document) => request
            .method("POST")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::copy_from_slice(document.expose())))?,
    })
}

fn max_age(cache_control: &str) -> Option<Duration> {
    let seconds = cache_control.split(',').find_map(|part| part.trim().strip_prefix("max-age="))?;
    seconds.parse().ok().map(Duration::from_secs)
}
