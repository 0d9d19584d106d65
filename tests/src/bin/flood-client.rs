//! `flood-client`: an application for tests that means ill, or is broken.
//!
//! Each kind does one thing to whoever answers for a host, a bounded number of times, and prints one JSON object: what
//! became of it. Frames and heads are written by hand, since no library sends what these are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::{Parser, ValueEnum};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Does one thing, many times.
#[derive(Debug, Parser)]
struct Settings {
    /// What.
    #[arg(value_enum)]
    kind: Kind,

    /// To whom: also the name in its ClientHello.
    #[arg(long, default_value = "payments.demo.test")]
    host: String,

    /// The port.
    #[arg(long, default_value_t = 443)]
    port: u16,

    /// How often, or how many connections.
    #[arg(long, default_value_t = 1)]
    count: usize,

    /// How large an answer that is not read is.
    #[arg(long, default_value_t = 20_000_000)]
    bytes: usize,

    /// At most this many seconds.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// A ClientHello for another name on each connection; one in a hundred finishes its handshake.
    Names,
    /// Connections that stop in the middle of a ClientHello.
    Hellos,
    /// Handshakes that are given up once the certificate has come.
    Aborts,
    /// Connections that stop in the middle of a head.
    Heads,
    /// Connections that are opened and say nothing more.
    Idle,
    /// Requests whose bodies stop.
    Bodies,
    /// Answers that are not read.
    Unread,
    /// Answers of HTTP/2 for which no window is ever given, as many streams of one connection as `--count` says.
    Windowless,
    /// More HTTP/2 streams at a time than there may be.
    Streams,
    /// A head without end.
    Header,
    /// A head of very many fields, over HTTP/2.
    Fields,
    /// A body without end.
    Body,
    /// HTTP/2 streams that are given up at once.
    Resets,
    /// A header block of HTTP/2 that never ends.
    Continuation,
    /// A call of gRPC in both directions, for as long as it may.
    Grpc,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let settings = Arc::new(Settings::parse());
    let within = Duration::from_secs(settings.seconds);
    let begun = Instant::now();
    let told = match tokio::time::timeout(within, run(settings.clone())).await {
        Ok(told) => told?,
        Err(_) => BTreeMap::from([("the time was over".to_owned(), 1)]),
    };
    say(&json!({ "became": told, "ms": begun.elapsed().as_millis() }).to_string());
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the line is the program's answer")]
fn say(line: &str) {
    println!("{line}");
}

/// What became of each connection, and how often.
type Told = BTreeMap<String, usize>;

async fn run(settings: Arc<Settings>) -> anyhow::Result<Told> {
    match settings.kind {
        Kind::Names => names(&settings).await,
        Kind::Hellos => each(&settings, hello_in_part).await,
        Kind::Aborts => each(&settings, abort).await,
        Kind::Heads => each(&settings, head_in_part).await,
        Kind::Idle => each(&settings, idle).await,
        Kind::Bodies => each(&settings, body_in_part).await,
        Kind::Unread => each(&settings, unread).await,
        Kind::Windowless => each(&settings, windowless).await,
        Kind::Streams => each(&settings, streams).await,
        Kind::Header => each(&settings, endless_header).await,
        Kind::Fields => each(&settings, fields).await,
        Kind::Body => each(&settings, endless_body).await,
        Kind::Resets => each(&settings, resets).await,
        Kind::Continuation => each(&settings, continuation).await,
        Kind::Grpc => each(&settings, grpc).await,
    }
}

/// Runs one conversation for each connection, all at once.
async fn each<F>(settings: &Arc<Settings>, one: impl Fn(Arc<Settings>) -> F) -> anyhow::Result<Told>
where
    F: Future<Output = anyhow::Result<String>> + Send + 'static,
{
    let mut running = JoinSet::new();
    let count = if matches!(
        settings.kind,
        Kind::Resets | Kind::Body | Kind::Header | Kind::Windowless | Kind::Streams
    ) {
        1
    } else {
        settings.count
    };
    for _ in 0..count {
        running.spawn(one(settings.clone()));
    }
    tally(running).await
}

async fn tally(mut running: JoinSet<anyhow::Result<String>>) -> anyhow::Result<Told> {
    let mut told = Told::new();
    while let Some(ended) = running.join_next().await {
        let what = ended?.unwrap_or_else(|error| format!("failed: {}", error.root_cause()));
        *told.entry(what).or_default() += 1;
    }
    Ok(told)
}

/// Connections at a time for [`names`].
const AT_A_TIME: usize = 32;

/// All names are equally long, so that one ClientHello is every other with some bytes changed.
async fn names(settings: &Arc<Settings>) -> anyhow::Result<Told> {
    let address = tokio::net::lookup_host((settings.host.as_str(), settings.port))
        .await?
        .next()
        .context("no address")?;
    let name = |number: usize| format!("s{number:07}.flood.demo.test");
    let hello = client_hello(&name(0))?;
    let at = find(&hello, name(0).as_bytes()).context("the name is not in the hello")?;
    let tls = tls(&[b"http/1.1"])?;
    let mut told = Told::new();
    let mut running = JoinSet::new();
    for number in 0..settings.count {
        if running.len() >= AT_A_TIME {
            note(&mut told, running.join_next().await);
        }
        let (mut hello, tls, name) = (hello.clone(), tls.clone(), name(number));
        hello[at..at + name.len()].copy_from_slice(name.as_bytes());
        running.spawn(async move {
            let mut stream = TcpStream::connect(address).await?;
            if number % 100 == 0 {
                let mut stream = tls.connect(ServerName::try_from(name.clone())?, stream).await?;
                let request = format!("GET / HTTP/1.1\r\nhost: {name}\r\n\r\n");
                stream.write_all(request.as_bytes()).await?;
                return first_line(&mut stream).await;
            }
            stream.write_all(&hello).await?;
            let mut answer = [0; 1];
            let read = stream.read(&mut answer).await?;
            Ok::<_, anyhow::Error>(
                if read == 1 && answer[0] == 22 { "a handshake" } else { "nothing" }.to_owned(),
            )
        });
    }
    while !running.is_empty() {
        note(&mut told, running.join_next().await);
    }
    Ok(told)
}

fn note(told: &mut Told, ended: Option<Result<anyhow::Result<String>, tokio::task::JoinError>>) {
    let what = match ended {
        Some(Ok(Ok(what))) => what,
        Some(Ok(Err(error))) => format!("failed: {}", error.root_cause()),
        _ => "panicked".to_owned(),
    };
    *told.entry(what).or_default() += 1;
}

fn client_hello(name: &str) -> anyhow::Result<Vec<u8>> {
    let config = config(&[b"http/1.1"])?;
    let mut connection = rustls::ClientConnection::new(config, ServerName::try_from(name.to_owned())?)?;
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes)?;
    Ok(bytes)
}

async fn hello_in_part(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect((settings.host.as_str(), settings.port)).await?;
    let hello = client_hello(&settings.host)?;
    stream.write_all(&hello[..hello.len() / 2]).await?;
    until_closed(&mut stream).await
}

async fn abort(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect((settings.host.as_str(), settings.port)).await?;
    stream.write_all(&client_hello(&settings.host)?).await?;
    let mut answer = [0; 1];
    let read = stream.read(&mut answer).await?;
    // unknown_ca, as those say it who do not trust the proxy (RFC 8446 §6.2).
    let _ = stream.write_all(&[21, 3, 3, 0, 2, 2, 48]).await;
    Ok(if read == 1 && answer[0] == 22 { "a handshake" } else { "nothing" }.to_owned())
}

async fn head_in_part(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = secure(&settings, b"http/1.1").await?;
    let mut head = format!("GET /v1/charges/42 HTTP/1.1\r\nhost: {}\r\nx: ", settings.host).into_bytes();
    head.extend([b'x'; 10_000]);
    drip(&mut stream, &head).await
}

async fn idle(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = secure(&settings, b"http/1.1").await?;
    until_closed(&mut stream).await
}

async fn body_in_part(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = secure(&settings, b"http/1.1").await?;
    let head =
        format!("POST /v1/charges/42 HTTP/1.1\r\nhost: {}\r\ncontent-length: 1000\r\n\r\nx", settings.host);
    stream.write_all(head.as_bytes()).await?;
    until_closed(&mut stream).await
}

/// Asks for a large answer, reads its first line, and holds the connection without reading on.
async fn unread(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = secure(&settings, b"http/1.1").await?;
    let head = format!("GET /v1/charges/large?bytes=20000000 HTTP/1.1\r\nhost: {}\r\n\r\n", settings.host);
    stream.write_all(head.as_bytes()).await?;
    let line = first_line(&mut stream).await?;
    // What is not read can't tell that the other side has closed; whether it has shows when it is read in the end.
    tokio::time::sleep(Duration::from_secs(settings.seconds.saturating_sub(2))).await;
    let mut rest = vec![0; 1 << 16];
    let mut read = 0;
    while let Ok(more) = stream.read(&mut rest).await
        && more > 0
    {
        read += more;
    }
    Ok(format!("{line}, {}", if read < 20_000_000 { "cut" } else { "whole" }))
}

/// Opens all streams at once, and says how many were refused.
async fn streams(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = http2(&settings).await?;
    let block = block(&settings.host, "/v1/charges/slow?ms=1000");
    for number in 0..settings.count {
        let id = u32::try_from(number * 2 + 1)?;
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, &block)).await?;
    }
    let (mut refused, mut answered) = (0, 0);
    while refused + answered < settings.count {
        match next_frame(&mut stream).await? {
            // REFUSED_STREAM
            (RST_STREAM, code) if code == 7_u32.to_be_bytes() => refused += 1,
            (HEADERS, _) => answered += 1,
            (GOAWAY, why) => bail!("GOAWAY {why:?}"),
            _ => {}
        }
    }
    Ok(format!("{refused} were refused"))
}

/// Waits until each of the streams was reset, or the connection ended.
async fn windowless(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = secure(&settings, b"h2").await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    // SETTINGS_INITIAL_WINDOW_SIZE (4) is 0.
    stream.write_all(&frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0])).await?;
    let block = block(&settings.host, &format!("/v1/charges/large?bytes={}", settings.bytes));
    for number in 0..settings.count {
        let id = u32::try_from(number * 2 + 1)?;
        stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, id, &block)).await?;
    }
    let mut reset = 0;
    while reset < settings.count {
        match next_frame(&mut stream).await {
            Ok((RST_STREAM, _)) => reset += 1,
            Ok((GOAWAY, _)) | Err(_) => return Ok(format!("given up, the connection after {reset}")),
            Ok(_) => {}
        }
    }
    Ok("given up, each by itself".to_owned())
}

async fn endless_header(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = secure(&settings, b"http/1.1").await?;
    let head = format!("GET /v1/charges/42 HTTP/1.1\r\nhost: {}\r\n", settings.host);
    stream.write_all(head.as_bytes()).await?;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let write = async move {
        for number in 0..settings.count {
            let line = format!("x-{number}: {}\r\n", "x".repeat(1000));
            if writing.write_all(line.as_bytes()).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        line = first_line(&mut reading) => line,
        () = write => bail!("no answer"),
    }
}

async fn endless_body(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = secure(&settings, b"http/1.1").await?;
    let head = format!(
        "POST /v1/charges/slow?ms=3000 HTTP/1.1\r\nhost: {}\r\ntransfer-encoding: chunked\r\n\r\n",
        settings.host
    );
    stream.write_all(head.as_bytes()).await?;
    let mut chunk = b"10000\r\n".to_vec();
    chunk.extend(vec![b'x'; 0x10000]);
    chunk.extend(b"\r\n");
    let (mut reading, mut writing) = tokio::io::split(stream);
    let write = async move {
        for _ in 0..settings.count {
            if writing.write_all(&chunk).await.is_err() {
                break;
            }
        }
        // Whoever has taken it all may answer.
        let _ = writing.write_all(b"0\r\n\r\n").await;
        let _ = writing.flush().await;
        std::future::pending::<()>().await;
    };
    tokio::select! {
        line = first_line(&mut reading) => line,
        () = write => bail!("no answer"),
    }
}

// ---- HTTP/2, by hand (RFC 9113 §4.1) ----

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// A literal without indexing, name by its index in the static table (RFC 7541 §6.2.2).
fn literal(index: u8, value: &str) -> Vec<u8> {
    let mut bytes = vec![index, u8::try_from(value.len()).unwrap_or(0)];
    bytes.extend(value.as_bytes());
    bytes
}

/// GET https://host/path, as a header block.
fn block(host: &str, path: &str) -> Vec<u8> {
    [vec![0x82, 0x87], literal(4, path), literal(1, host)].concat()
}

async fn http2(settings: &Settings) -> anyhow::Result<Stream> {
    let mut stream = secure(settings, b"h2").await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
    Ok(stream)
}

async fn resets(settings: Arc<Settings>) -> anyhow::Result<String> {
    let stream = http2(&settings).await?;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let block = block(&settings.host, "/v1/charges/slow?ms=1000");
    let write = async move {
        for number in 0..settings.count {
            let id = u32::try_from(number * 2 + 1)?;
            let head = frame(HEADERS, END_HEADERS | END_STREAM, id, &block);
            if writing.write_all(&head).await.is_err() {
                break;
            }
            // It was accepted: what is reset before that h2 limits by itself.
            tokio::time::sleep(Duration::from_millis(1)).await;
            // CANCEL
            if writing.write_all(&frame(RST_STREAM, 0, id, &8_u32.to_be_bytes())).await.is_err() {
                break;
            }
        }
        std::future::pending::<anyhow::Result<()>>().await
    };
    tokio::select! {
        goaway = goaway(&mut reading) => goaway,
        ended = write => { ended?; bail!("no answer") }
    }
}

async fn continuation(settings: Arc<Settings>) -> anyhow::Result<String> {
    let stream = http2(&settings).await?;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let block = block(&settings.host, "/v1/charges/42");
    let write = async move {
        let _ = writing.write_all(&frame(HEADERS, END_STREAM, 1, &block)).await;
        // Another field each time: a literal with a new name.
        let field = [vec![0, 1, b'x', 100], vec![b'x'; 100]].concat();
        let fields = field.repeat(150);
        while writing.write_all(&frame(CONTINUATION, 0, 1, &fields)).await.is_ok() {}
        std::future::pending::<()>().await;
    };
    tokio::select! {
        goaway = goaway(&mut reading) => goaway,
        () = write => bail!("no answer"),
    }
}

/// More fields than are taken, in fewer bytes than are.
async fn fields(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = http2(&settings).await?;
    let field = [0, 1, b'x', 1, b'x'];
    let block = [block(&settings.host, "/v1/charges/42"), field.repeat(500)].concat();
    stream.write_all(&frame(HEADERS, END_HEADERS | END_STREAM, 1, &block)).await?;
    loop {
        let (kind, payload) = next_frame(&mut stream).await?;
        if kind == HEADERS {
            // `:status` comes first, as a literal for what is not in the static table.
            let status = payload.windows(3).find(|window| window.iter().all(u8::is_ascii_digit));
            let plain = status.map(|digits| String::from_utf8_lossy(digits).into_owned());
            return Ok(plain.unwrap_or_else(|| format!("an answer with {} bytes of header", payload.len())));
        }
        if kind == GOAWAY {
            bail!("GOAWAY {payload:?}");
        }
    }
}

/// Sends a message every 100 ms, and hears each of them again, until the stream ends.
async fn grpc(settings: Arc<Settings>) -> anyhow::Result<String> {
    let mut stream = http2(&settings).await?;
    let kind = "application/grpc";
    // POST; `content-type` is 31 in the static table, beyond the four bits of a literal's index.
    let block = [
        vec![0x83, 0x87],
        literal(4, "/v1/charges/echo"),
        literal(1, &settings.host),
        vec![0x0f, 0x10, u8::try_from(kind.len())?],
        kind.as_bytes().to_vec(),
    ];
    stream.write_all(&frame(HEADERS, END_HEADERS, 1, &block.concat())).await?;
    let (mut reading, mut writing) = tokio::io::split(stream);
    let write = async move {
        while writing.write_all(&frame(DATA, 0, 1, b"\0\0\0\0\x02hi")).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    let read = async {
        let mut heard = 0;
        loop {
            match next_frame(&mut reading).await {
                Ok((DATA, payload)) if !payload.is_empty() => heard += 1,
                Ok((RST_STREAM | GOAWAY, _)) | Err(_) => break,
                Ok(_) => {}
            }
        }
        if heard > 3 { "heard, then cut" } else { "hardly heard" }.to_owned()
    };
    tokio::select! {
        ended = read => Ok(ended),
        () = write => bail!("no answer"),
    }
}

async fn next_frame(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<(u8, Vec<u8>)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await?;
    Ok((head[3], payload))
}

async fn goaway(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<String> {
    loop {
        let (kind, payload) = next_frame(stream).await?;
        if kind == GOAWAY {
            let code = payload.get(4..8).and_then(|code| code.try_into().ok()).map(u32::from_be_bytes);
            return Ok(format!("GOAWAY {}", code.context("a short GOAWAY")?));
        }
    }
}

// ---- what all have in common ----

type Stream = tokio_rustls::client::TlsStream<TcpStream>;

async fn secure(settings: &Settings, alpn: &[u8]) -> anyhow::Result<Stream> {
    let stream = TcpStream::connect((settings.host.as_str(), settings.port)).await?;
    let name = ServerName::try_from(settings.host.clone())?;
    Ok(tls(&[alpn])?.connect(name, stream).await?)
}

/// One byte each half second; says how it ended.
async fn drip(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> anyhow::Result<String> {
    let (mut reading, mut writing) = tokio::io::split(stream);
    let write = async {
        for byte in bytes.chunks(1) {
            if writing.write_all(byte).await.is_err() || writing.flush().await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        ended = until_closed(&mut reading) => ended,
        () = write => bail!("no answer"),
    }
}

/// The first line that comes before the other side closes, or that none came.
async fn until_closed(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<String> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    loop {
        match stream.read(&mut piece).await {
            Ok(0) | Err(_) => break,
            Ok(read) => all.extend(&piece[..read]),
        }
    }
    Ok(line_of(&all))
}

async fn first_line(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<String> {
    let mut all = Vec::new();
    let mut piece = [0; 4096];
    while find(&all, b"\r\n").is_none() {
        let read = stream.read(&mut piece).await?;
        if read == 0 {
            break;
        }
        all.extend(&piece[..read]);
    }
    Ok(line_of(&all))
}

fn line_of(bytes: &[u8]) -> String {
    match bytes {
        [] => "closed".to_owned(),
        bytes => String::from_utf8_lossy(bytes).lines().next().unwrap_or_default().to_owned(),
    }
}

fn find(bytes: &[u8], pattern: &[u8]) -> Option<usize> {
    bytes.windows(pattern.len()).position(|window| window == pattern)
}

/// Read once: a bundle takes longer to read than a handshake.
static ROOTS: std::sync::OnceLock<Arc<rustls::RootCertStore>> = std::sync::OnceLock::new();

fn read_roots() -> anyhow::Result<Arc<rustls::RootCertStore>> {
    let path = std::env::var_os("SSL_CERT_FILE").context("SSL_CERT_FILE is not set")?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path)? {
        // A system's bundle may hold what rustls can't use.
        let _ = roots.add(certificate?);
    }
    Ok(Arc::new(roots))
}

fn config(alpn: &[&[u8]]) -> anyhow::Result<Arc<rustls::ClientConfig>> {
    let roots = match ROOTS.get() {
        Some(roots) => roots.clone(),
        None => {
            let read = read_roots()?;
            ROOTS.get_or_init(|| read).clone()
        }
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}

fn tls(alpn: &[&[u8]]) -> anyhow::Result<tokio_rustls::TlsConnector> {
    Ok(tokio_rustls::TlsConnector::from(config(alpn)?))
}
