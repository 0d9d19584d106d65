//! What a request is judged by, made from its head in one place for both versions of HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use http::request::Parts;
use http::{Method, header};
use model::request::Action;
use model::{Code, Failure, HostName, RequestFacts};
use protocols::http::{Host, is_grpc};

use super::websocket::WebSocket;

/// What is known of a connection before its first request.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Where the application dialled.
    pub original: SocketAddr,
    /// The name in its ClientHello; `None` without TLS.
    pub name: Option<HostName>,
    /// Whether it is TLS.
    pub secure: bool,
}

/// Reads what is asked.
///
/// # Errors
/// [`Code::MalformedRequest`] if it is ambiguous, [`Code::Misdirected`] if it names another service than its
/// connection, [`Code::MethodRefused`] for TRACE, [`Code::NotCarried`] for CONNECT and upgrades.
pub fn facts(parts: &Parts, channel: &Channel) -> Result<RequestFacts, Failure> {
    let malformed = |e: protocols::Malformed| Failure::new(Code::MalformedRequest, e.to_string());
    protocols::http::check_request(parts).map_err(malformed)?;
    let authority = protocols::http::authority_of(parts).map_err(malformed)?;
    let host = judged_host(&authority.host, channel)?;
    let port = channel.original.port();
    if authority.port.is_some_and(|named| named != port) {
        let detail =
            format!("the request is for port {}, its connection for {port}", authority.port.unwrap_or(0));
        return Err(Failure::new(Code::Misdirected, detail));
    }
    carried(parts)?;
    Ok(RequestFacts {
        action: if is_grpc(&parts.method, &parts.headers) { Action::Grpc } else { Action::Http },
        method: parts.method.as_str().to_owned(),
        host,
        port,
        path: parts.uri.path().to_owned(),
        headers: BTreeMap::new(),
    })
}

/// The one name that decides: that of the ClientHello, which the request must repeat.
fn judged_host(host: &Host, channel: &Channel) -> Result<HostName, Failure> {
    match (host, &channel.name) {
        (Host::Name(name), Some(opened_for)) if name != opened_for => {
            let detail = format!("the request is for {name}, its connection was opened for {opened_for}");
            Err(Failure::new(Code::Misdirected, detail))
        }
        (Host::Name(name), _) => Ok(name.clone()),
        (Host::Address(address), Some(opened_for)) => {
            let detail = format!("the request is for {address}, its connection was opened for {opened_for}");
            Err(Failure::new(Code::Misdirected, detail))
        }
        (Host::Address(address), None) => {
            let detail = format!("the request names {address}; a call is judged by the name of its host");
            Err(Failure::new(Code::Misdirected, detail))
        }
    }
}

fn carried(parts: &Parts) -> Result<(), Failure> {
    if parts.method == Method::TRACE {
        return Err(Failure::new(Code::MethodRefused, "TRACE is never carried with a credential"));
    }
    if parts.method == Method::CONNECT {
        return Err(Failure::new(Code::NotCarried, "CONNECT is not carried to a covered destination"));
    }
    if parts.extensions.get::<WebSocket>().is_some() {
        return Ok(());
    }
    let upgrade = parts.headers.get(header::UPGRADE).map(header::HeaderValue::as_bytes);
    match upgrade {
        // An offer that a server is free to ignore (RFC 9110 §7.8); curl makes it with `--http2`.
        None | Some(b"h2c") => Ok(()),
        Some(_) => Err(Failure::new(Code::NotCarried, "an Upgrade is not carried to a covered destination")),
    }
}
