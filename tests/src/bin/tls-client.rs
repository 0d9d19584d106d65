//! A TLS client whose ClientHello can be cut and changed: in records and segments of any size, with what looks like ECH,
//! without a name.
//!
//! Makes one request and prints what it saw as JSON: `tls-client --url https://host/path --root FILE [--record N]
//! [--segment N] [--grease-ech] [--no-sni] [--filler BYTES] [--tls12]`.

use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::Parser;
use rustls::client::{EchGreaseConfig, EchMode};
use rustls::crypto::aws_lc_rs;
use rustls::crypto::hpke::Hpke as _;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

#[derive(Parser)]
struct Options {
    /// What to call.
    #[arg(long)]
    url: String,
    /// Roots (PEM).
    #[arg(long)]
    root: PathBuf,
    /// Bytes of the handshake message in each record of the ClientHello.
    #[arg(long)]
    record: Option<usize>,
    /// Bytes in each segment of the ClientHello.
    #[arg(long)]
    segment: Option<usize>,
    /// With an extension that looks like ECH (RFC 9849 §6.2).
    #[arg(long)]
    grease_ech: bool,
    /// Without a server name.
    #[arg(long)]
    no_sni: bool,
    /// Bytes of application protocols that nobody speaks.
    #[arg(long, default_value_t = 0)]
    filler: usize,
    /// TLS 1.2 only.
    #[arg(long)]
    tls12: bool,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let uri: http::Uri = options.url.parse()?;
    let host = uri.host().context("no host")?.to_owned();
    let mut stream = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(443)))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut connection =
        ClientConnection::new(Arc::new(config(&options)?), ServerName::try_from(host.clone())?)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    let sent = send_hello(&mut stream, &hello, &options)?;
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let request = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    connection.writer().write_all(request.as_bytes())?;
    let mut answer = Vec::new();
    let ended = rustls::Stream::new(&mut connection, &mut stream).read_to_end(&mut answer);
    let head = String::from_utf8_lossy(&answer);
    let status = head.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()).unwrap_or(0);
    if status == 0 {
        ended.context("no answer")?;
    }
    let group = connection.negotiated_key_exchange_group().map(|group| format!("{:?}", group.name()));
    let told = serde_json::json!({
        "status": status, "records": sent.records, "bytes": hello.len(), "group": group,
        "version": connection.protocol_version().map(|version| format!("{version:?}")),
        "protocol": connection.alpn_protocol().map(|name| String::from_utf8_lossy(name).into_owned()),
    });
    writeln!(io::stdout(), "{told}")?;
    Ok(())
}

fn config(options: &Options) -> anyhow::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_file_iter(&options.root)? {
        // The bundle holds the machine's roots too, of which some may not be readable.
        let _ = roots.add(root?);
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()));
    let builder = if options.grease_ech {
        let suite = aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_128;
        let (placeholder, _) = suite.generate_key_pair()?;
        builder.with_ech(EchMode::Grease(EchGreaseConfig::new(suite, placeholder)))?
    } else if options.tls12 {
        builder.with_protocol_versions(&[&rustls::version::TLS12])?
    } else {
        builder.with_safe_default_protocol_versions()?
    };
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.enable_sni = !options.no_sni;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let mut left = options.filler;
    while left > 0 {
        let length = left.min(255);
        config.alpn_protocols.push(vec![b'x'; length]);
        left -= length;
    }
    Ok(config)
}

struct Sent {
    records: usize,
}

/// The same handshake message in other records and segments: neither is part of the handshake's transcript.
fn send_hello(stream: &mut TcpStream, hello: &[u8], options: &Options) -> anyhow::Result<Sent> {
    let mut message = Vec::new();
    let mut rest = hello;
    while let Some((header, body)) = rest.split_first_chunk::<5>() {
        let length = usize::from(u16::from_be_bytes([header[3], header[4]]));
        message.extend_from_slice(body.get(..length).context("a record that is cut")?);
        rest = &body[length..];
    }
    let size = options.record.unwrap_or(1 << 14);
    let mut bytes = Vec::new();
    for part in message.chunks(size) {
        bytes.extend([22, 3, 1]);
        bytes.extend(u16::try_from(part.len())?.to_be_bytes());
        bytes.extend(part);
    }
    for segment in bytes.chunks(options.segment.unwrap_or(bytes.len())) {
        stream.write_all(segment)?;
        if options.segment.is_some() {
            // Else the kernel may put what is queued into one segment.
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    Ok(Sent { records: message.len().div_ceil(size) })
}
