//! A port at which a runtime can be asked whether it trusts the proxy: what `countersign doctor` calls.
//!
//! It needs no name to resolve, no policy and no upstream: whoever reads its answer trusts the instance's CA. It opens
//! TLS for `localhost` alone, on loopback alone, and says the same to everybody.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::{Bytes, BytesMut};
use http::{Request, Response, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use model::HostName;
use model::destination::HttpVersion;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::protocol::rewind::Rewind;
use crate::tls::terminate::Terminator;
use crate::tls::{self, Opening};
use crate::worker::now;

/// The one name.
const NAME: &str = "localhost";

const ANSWER: &str = "countersign: this runtime trusts the proxy\n";

/// Connections at a time; a runtime that is asked needs one or two.
const CONNECTIONS_MAX: usize = 64;

/// How long one may take, all in all.
const PATIENCE: Duration = Duration::from_secs(20);

/// The port, on both families.
pub struct TrustPort(Vec<TcpListener>);

impl TrustPort {
    /// Takes the port; `None` for 0.
    ///
    /// # Errors
    /// If somebody else has it.
    pub async fn listen(port: u16) -> anyhow::Result<Option<Self>> {
        if port == 0 {
            return Ok(None);
        }
        let mut listeners = Vec::new();
        for address in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            let listener = TcpListener::bind((address, port)).await;
            listeners.push(listener.with_context(|| format!("could not listen on {address} port {port}"))?);
        }
        Ok(Some(Self(listeners)))
    }

    /// Serves for as long as the program runs.
    pub fn serve(self, terminator: Terminator) {
        let (terminator, places) = (Arc::new(terminator), Arc::new(Semaphore::new(CONNECTIONS_MAX)));
        for listener in self.0 {
            tokio::spawn(accept(listener, terminator.clone(), places.clone()));
        }
    }
}

async fn accept(listener: TcpListener, terminator: Arc<Terminator>, places: Arc<Semaphore>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let Ok(place) = places.clone().try_acquire_owned() else { continue };
        let terminator = terminator.clone();
        tokio::spawn(async move {
            let _place = place;
            let _ = tokio::time::timeout(PATIENCE, answer(stream, &terminator)).await;
        });
    }
}

async fn answer(mut stream: TcpStream, terminator: &Terminator) {
    let Ok(name) = HostName::new(NAME) else { return };
    let mut first = BytesMut::new();
    let Ok(Opening::Tls(hello)) = tls::peek(&mut stream, &mut first, PATIENCE, false).await else { return };
    if hello.sni.is_some_and(|sni| sni != name) {
        return;
    }
    let opened = terminator.open(Rewind::new(first, stream), &name, Some(HttpVersion::Http1), now()).await;
    let opened = match opened {
        Ok(opened) => opened,
        Err(failure) => {
            tracing::info!(stage = "tls", code = %failure.code, "asked whether it trusts the proxy: {failure}");
            return;
        }
    };
    let service = service_fn(|_: Request<Incoming>| async {
        let mut response = Response::new(http_body_util::Full::new(Bytes::from_static(ANSWER.as_bytes())));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        headers.insert(header::CONNECTION, header::HeaderValue::from_static("close"));
        Ok::<_, Infallible>(response)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(opened), service);
    let _ = connection.await;
}
