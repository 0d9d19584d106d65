//! `bench-load`: so many requests over so many connections, one at a time on each; prints one JSON line.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use clap::Parser;
use http::{Request, Uri};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

/// Calls and measures.
#[derive(Clone, Debug, Parser)]
struct Settings {
    /// What to call (https).
    #[arg(long)]
    url: Uri,
    /// HTTP/2 instead of HTTP/1.1.
    #[arg(long)]
    http2: bool,
    /// Connections.
    #[arg(long)]
    connections: usize,
    /// Requests, in all.
    #[arg(long)]
    requests: usize,
    /// Keeps the connections open, idle, until standard input ends.
    #[arg(long)]
    hold: bool,
}

/// Connections that are opened at a time.
const OPENING: usize = 8;

/// What a caller has found, and its connection.
struct Called {
    latencies: Vec<Duration>,
    _connection: Connection,
}

/// Open as long as it is there.
enum Connection {
    Http1(#[expect(dead_code, reason = "held")] http1::SendRequest<Empty<Bytes>>),
    Http2(#[expect(dead_code, reason = "held")] http2::SendRequest<Empty<Bytes>>),
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Settings::parse();
    let tls = Arc::new(tls(settings.http2)?);
    let each = settings.requests / settings.connections;
    let opening = Arc::new(tokio::sync::Semaphore::new(OPENING));
    let began = Instant::now();
    let callers: Vec<_> = (0..settings.connections)
        .map(|_| tokio::spawn(caller(settings.clone(), tls.clone(), opening.clone(), each)))
        .collect();
    let mut called = Vec::new();
    for caller in callers {
        called.push(caller.await??);
    }
    let mut latencies: Vec<Duration> = called.iter().flat_map(|called| called.latencies.clone()).collect();
    let seconds = began.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() as f64 * share) as usize;
        latencies[index.min(latencies.len() - 1)].as_secs_f64() * 1e6
    };
    let line = serde_json::json!({
        "requests": latencies.len(), "seconds": seconds, "p50_us": at(0.5), "p99_us": at(0.99),
    });
    say(&line.to_string());
    if settings.hold {
        let end = || std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        tokio::task::spawn_blocking(end).await??;
    }
    Ok(())
}

async fn caller(
    settings: Settings,
    tls: Arc<rustls::ClientConfig>,
    opening: Arc<tokio::sync::Semaphore>,
    requests: usize,
) -> anyhow::Result<Called> {
    let host = settings.url.host().context("the URL names no host")?.to_owned();
    let turn = opening.acquire().await?;
    let stream = TcpStream::connect((host.as_str(), settings.url.port_u16().unwrap_or(443))).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from(host.clone())?;
    let stream = TokioIo::new(tokio_rustls::TlsConnector::from(tls).connect(name, stream).await?);
    let mut latencies = Vec::with_capacity(requests);
    let request = |uri: Uri| {
        Request::get(uri).header("host", host.as_str()).header("x-direct", "1").body(Empty::<Bytes>::new())
    };
    let connection = if settings.http2 {
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await?;
        tokio::spawn(connection);
        let mut turn = Some(turn);
        for _ in 0..requests {
            let mut request = request(settings.url.clone())?;
            request.headers_mut().remove("host");
            latencies.push(timed(sender.send_request(request)).await?);
            turn.take();
        }
        Connection::Http2(sender)
    } else {
        let (mut sender, connection) = http1::handshake(stream).await?;
        tokio::spawn(connection);
        let path: Uri = settings.url.path().parse()?;
        let mut turn = Some(turn);
        for _ in 0..requests {
            latencies.push(timed(sender.send_request(request(path.clone())?)).await?);
            turn.take();
        }
        Connection::Http1(sender)
    };
    // The first request of a connection pays for what comes after none.
    if requests > 1 {
        latencies.remove(0);
    }
    Ok(Called { latencies, _connection: connection })
}

async fn timed(
    answer: impl Future<Output = hyper::Result<http::Response<hyper::body::Incoming>>>,
) -> anyhow::Result<Duration> {
    let began = Instant::now();
    let answer = answer.await?;
    ensure!(answer.status().is_success(), "answered {}", answer.status());
    let body = answer.into_body().collect().await?.to_bytes();
    ensure!(body.len() == 1024, "the body has {} bytes", body.len());
    Ok(began.elapsed())
}

/// Trusts what the environment says, as an application does.
fn tls(http2: bool) -> anyhow::Result<rustls::ClientConfig> {
    let path = std::env::var_os("SSL_CERT_FILE").context("SSL_CERT_FILE is not set")?;
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(CertificateDer::pem_file_iter(path)?.filter_map(Result::ok));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if http2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(config)
}

#[expect(clippy::print_stdout, reason = "the answer of the program")]
fn say(line: &str) {
    println!("{line}");
}
