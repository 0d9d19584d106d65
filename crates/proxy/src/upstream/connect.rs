//! Verifies an upstream, once it is connected.

use std::io;
use std::time::Duration;

use model::destination::HttpVersion;
use model::{Code, Destination, Failure};
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::last_word::LastWord;
use super::pool::Origin;
use super::roots::Roots;
use super::tls_failure::tls_failure;
use crate::socket::Dialled;

/// How long one address may take to accept a connection, and a server to complete a handshake.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For TCP.
    pub connect: Duration,
    /// For TLS.
    pub handshake: Duration,
}

/// A connection to an upstream, verified if it is TLS.
pub enum Link {
    /// TLS, and the version of HTTP that was agreed.
    Tls(Box<LastWord<TlsStream<Dialled<TcpStream>>>>, HttpVersion),
    /// Without TLS, to a destination that says `insecure`.
    Plain(LastWord<TcpStream>),
}

/// Completes TLS on a connection and verifies the server for exactly the origin's name.
///
/// # Errors
/// [`Code::UpstreamUntrusted`], [`Code::UpstreamWantsCertificate`], [`Code::UpstreamTls`] or
/// [`Code::UpstreamTimeout`]; not one byte of a request has then been sent.
pub async fn secure(
    stream: TcpStream,
    origin: &Origin,
    destination: &Destination,
    roots: &Roots,
    offer: &[HttpVersion],
    patience: Duration,
) -> Result<Link, Failure> {
    let name = &origin.key.server_name;
    let client = roots.client(origin, destination, offer)?;
    let server = ServerName::try_from(name.as_str().to_owned()).map_err(|e| {
        Failure::new(Code::UpstreamTls, format!("{name} can't be verified as a name")).because(e)
    })?;
    let connecting = TlsConnector::from(client.config).connect(server, Dialled::new(stream));
    let tls = match timeout(patience, connecting).await {
        Ok(Ok(tls)) => tls,
        Ok(Err(error)) => return Err(tls_failure(name, &client.shown, error)),
        Err(_) => {
            let detail = format!("{name} did not complete the TLS handshake in {} s", patience.as_secs());
            return Err(Failure::new(Code::UpstreamTimeout, detail));
        }
    };
    let version = match tls.get_ref().1.alpn_protocol() {
        Some(b"h2") => HttpVersion::Http2,
        _ => HttpVersion::Http1,
    };
    Ok(Link::Tls(Box::new(LastWord::new(tls)), version))
}

/// Whether the server speaks none of the versions that it was offered (RFC 7301 §3.2).
pub fn is_protocol_refused(failure: &Failure) -> bool {
    use rustls::AlertDescription::NoApplicationProtocol;
    let cause = failure.cause.as_ref().and_then(|cause| cause.downcast_ref::<io::Error>());
    let tls = cause.and_then(|error| error.get_ref()?.downcast_ref::<rustls::Error>());
    matches!(tls, Some(rustls::Error::AlertReceived(NoApplicationProtocol)))
}
