//! `steady-client`: an application for tests that goes on calling.
//!
//! Like a program written before anybody thought of Countersign: it reads its roots once, at its start
//! (`SSL_CERT_FILE`), keeps its connection as long as that works, and opens a new one when it does not. It prints one
//! line for each call, `ID STATUS MS NOTE`: the status is 0 if there was no answer, MS is when it was sent, in
//! milliseconds since 1970. It ends when its standard input does.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use bytes::Bytes;
use clap::Parser;
use http::{Request, Uri, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;

/// Calls one URL until its standard input ends.
#[derive(Debug, Parser)]
struct Settings {
    /// What to call (https); `{id}` is replaced by the call's id.
    #[arg(long)]
    url: String,

    /// The method.
    #[arg(long, default_value = "GET")]
    method: http::Method,

    /// HTTP/2 instead of HTTP/1.1.
    #[arg(long)]
    http2: bool,

    /// Connections, each with one call at a time.
    #[arg(long, default_value_t = 1)]
    connections: u32,

    /// Milliseconds between two calls of a connection.
    #[arg(long, default_value_t = 10)]
    pause_ms: u64,

    /// Calls of each connection, after which it only stays; 0 for no end.
    #[arg(long, default_value_t = 0)]
    calls: u64,

    /// Put before the number in `x-request-id`.
    #[arg(long, default_value = "r")]
    name: String,
}

/// Time for one call.
const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Arc::new(Settings::parse());
    let tls = tls(settings.http2)?;
    let (number, ending) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..settings.connections)
        .map(|_| tokio::spawn(caller(settings.clone(), tls.clone(), number.clone(), ending.clone())))
        .collect();
    let until_end = tokio::task::spawn_blocking(|| {
        let mut rest = Vec::new();
        let _ = std::io::stdin().read_to_end(&mut rest);
    });
    until_end.await?;
    // What was begun is finished, so that each call has its line.
    ending.store(true, Ordering::Relaxed);
    for caller in callers {
        let _ = caller.await;
    }
    Ok(())
}

async fn caller(
    settings: Arc<Settings>,
    tls: tokio_rustls::TlsConnector,
    number: Arc<AtomicU64>,
    ending: Arc<AtomicBool>,
) {
    let mut connection = None;
    let mut made = 0;
    while !ending.load(Ordering::Relaxed) {
        if settings.calls > 0 && made == settings.calls {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        made += 1;
        let id = format!("{}-{}", settings.name, number.fetch_add(1, Ordering::Relaxed));
        let sent = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis());
        let (status, note) =
            match tokio::time::timeout(PATIENCE, call(&settings, &tls, &mut connection, &id)).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(error)) => {
                    connection = None;
                    (0, format!("{error:#}").replace('\n', " "))
                }
                Err(_) => {
                    connection = None;
                    (0, "timed out".to_owned())
                }
            };
        say(&format!("{id} {status} {sent} {note}"));
        tokio::time::sleep(Duration::from_millis(settings.pause_ms)).await;
    }
}

#[expect(clippy::print_stdout, reason = "the lines are the program's answer")]
fn say(line: &str) {
    println!("{line}");
    let _ = std::io::stdout().flush();
}

enum Connection {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

async fn call(
    settings: &Settings,
    tls: &tokio_rustls::TlsConnector,
    connection: &mut Option<Connection>,
    id: &str,
) -> anyhow::Result<(u16, String)> {
    let url: Uri = settings.url.replace("{id}", id).parse()?;
    let host = url.host().context("no host")?;
    let port = url.port_u16().unwrap_or(443);
    let open = match connection {
        Some(open) => open,
        None => connection.insert(connect(tls, host, port, settings.http2).await?),
    };
    let request = Request::builder().method(&settings.method).header("x-request-id", id);
    let body = Full::new(Bytes::new());
    let response = match open {
        Connection::Http1(sender) => {
            sender.ready().await?;
            let path = url.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
            let authority = url.authority().context("no authority")?.as_str();
            sender.send_request(request.uri(path).header(header::HOST, authority).body(body)?).await?
        }
        Connection::Http2(sender) => {
            sender.ready().await?;
            sender.send_request(request.uri(&url).body(body)?).await?
        }
    };
    let status = response.status().as_u16();
    let code = response.headers().get("countersign-code").and_then(|code| code.to_str().ok());
    let note = code.unwrap_or("-").to_owned();
    response.into_body().collect().await?;
    Ok((status, note))
}

async fn connect(
    tls: &tokio_rustls::TlsConnector,
    host: &str,
    port: u16,
    h2: bool,
) -> anyhow::Result<Connection> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let stream = tls.connect(ServerName::try_from(host.to_owned())?, stream).await?;
    let io = TokioIo::new(stream);
    if h2 {
        let (sender, driver) = http2::handshake(TokioExecutor::new(), io).await?;
        tokio::spawn(driver);
        Ok(Connection::Http2(sender))
    } else {
        let (sender, driver) = http1::handshake(io).await?;
        tokio::spawn(driver);
        Ok(Connection::Http1(sender))
    }
}

fn tls(h2: bool) -> anyhow::Result<tokio_rustls::TlsConnector> {
    let path = std::env::var_os("SSL_CERT_FILE").context("SSL_CERT_FILE is not set")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        // A system's bundle may hold what rustls can't use.
        let _ = roots.add(certificate?);
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![if h2 { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}
