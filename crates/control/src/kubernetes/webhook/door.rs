//! The door for the API server: HTTPS.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::CertificateDer;
use service::drain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// For a handshake.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection without a request; API servers close theirs after 90 s (net/http's `IdleConnTimeout` as Kubernetes
/// sets it), and who closes first loses no request.
const IDLE: Duration = Duration::from_secs(120);

/// Connections at a time. An API server needs a few.
const CONNECTIONS_MAX: usize = 512;

/// How the door speaks TLS: with the certificate of this moment, and only with those whom these roots vouch for, if
/// there are any.
///
/// # Errors
/// If one of the roots is not usable.
pub fn tls(
    certificate: Arc<dyn ResolvesServerCert>,
    clients: Option<&[CertificateDer<'static>]>,
) -> anyhow::Result<Arc<ServerConfig>> {
    let builder = ServerConfig::builder_with_provider(service::tls_provider::provider())
        .with_safe_default_protocol_versions()?;
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(roots) => {
            let mut store = RootCertStore::empty();
            roots.iter().try_for_each(|root| store.add(root.clone()))?;
            let provider = service::tls_provider::provider();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider).build()?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// Accepts connections until the drain has finished; those that are open end with the request that they carry when it
/// starts.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, router: Router, drain: drain::Watch) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let finished = drain.clone().finished();
    tokio::pin!(finished);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut finished => return,
        };
        let Ok((stream, _)) = accepted else {
            // No descriptor is left, for instance.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let (acceptor, router, drain) = (acceptor.clone(), router.clone(), drain.clone());
        tokio::spawn(async move {
            let _place = place;
            connection(stream, acceptor, router, drain).await;
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router, drain: drain::Watch) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a handshake failed"),
        Err(_) => return tracing::debug!("a handshake took too long"),
    };
    let mut builder = Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(IDLE);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(IDLE)
        .keep_alive_timeout(PATIENCE)
        .max_concurrent_streams(256);
    let open = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(open);
    let ended = tokio::select! {
        ended = &mut open => ended,
        () = drain.started() => {
            open.as_mut().graceful_shutdown();
            open.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
