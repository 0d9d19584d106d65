//! The OIDC issuer's public face: who we are and by which keys our tokens are verified. It serves nothing else.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::keys::{CACHE_SECS, Keys};

/// The path of the discovery document (OpenID Connect Discovery 1.0 §4).
const DISCOVERY: &str = "/.well-known/openid-configuration";
/// The path of the key set.
const JWKS: &str = "/keys";

/// For a handshake.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

#[derive(Clone)]
struct Issuer {
    url: Arc<str>,
    keys: Keys,
}

/// The discovery document. The issuer's URL is configuration; it is never derived from a listener.
#[must_use]
pub fn document(issuer_url: &str) -> Value {
    json!({
        "issuer": issuer_url,
        "jwks_uri": format!("{}{JWKS}", issuer_url.trim_end_matches('/')),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "claims_supported": ["iss", "sub", "aud", "exp", "nbf", "iat", "jti"],
    })
}

/// Writes both documents as files, for a static web server: `DIR/.well-known/openid-configuration` and `DIR/keys`.
///
/// # Errors
/// If the store fails or the directory can't be written to.
pub async fn export(directory: &Path, issuer_url: &str, keys: &Keys) -> anyhow::Result<()> {
    let files = [(DISCOVERY, document(issuer_url)), (JWKS, keys.jwks().await?)];
    for (path, content) in files {
        let path = directory.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap_or(directory))?;
        service::files::write_atomically(&path, format!("{content:#}\n").as_bytes(), 0o644)
            .with_context(|| format!("could not write {}", path.display()))?;
    }
    Ok(())
}

/// The certificate of the listener, if it speaks TLS itself.
///
/// # Errors
/// If the files can't be read or do not fit.
pub fn tls(certificate: &Path, key: &Path) -> anyhow::Result<Arc<ServerConfig>> {
    let chain = service::roots::from_file(certificate)?;
    let key = service::roots::key_from_file(key)?;
    let mut config = ServerConfig::builder_with_provider(service::tls_provider::provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("certificate and key of the discovery listener do not fit")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Serves until the program ends.
pub async fn serve(listener: TcpListener, tls: Option<Arc<ServerConfig>>, issuer_url: &str, keys: Keys) {
    let service = TowerToHyperService::new(router(issuer_url, keys));
    let acceptor = tls.map(TlsAcceptor::from);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let (service, acceptor) = (service.clone(), acceptor.clone());
        tokio::spawn(async move {
            let mut builder = Builder::new(TokioExecutor::new());
            builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            match acceptor {
                None => drop(builder.serve_connection(TokioIo::new(stream), service).await),
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                        drop(builder.serve_connection(TokioIo::new(stream), service).await);
                    }
                }
            }
        });
    }
}

fn router(issuer_url: &str, keys: Keys) -> Router {
    let issuer = Issuer { url: issuer_url.into(), keys };
    Router::new()
        .route(DISCOVERY, get(|State(issuer): State<Issuer>| async move { answer(&document(&issuer.url)) }))
        .route(JWKS, get(key_set))
        .with_state(issuer)
}

async fn key_set(State(issuer): State<Issuer>) -> Response {
    match issuer.keys.jwks().await {
        Ok(keys) => answer(&keys),
        Err(error) => {
            tracing::error!(%error, "the key set can't be read");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
    }
}

fn answer(document: &Value) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/json".to_owned()),
        (header::CACHE_CONTROL, format!("public, max-age={CACHE_SECS}")),
    ];
    (headers, document.to_string()).into_response()
}
