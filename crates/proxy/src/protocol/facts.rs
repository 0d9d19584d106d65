//! What a request is judged by, made from its head in one place for both versions of HTTP.

use std::collections::BTreeMap;

use http::request::Parts;
use http::{Method, header};
use model::request::Action;
use model::{Code, Failure, HostName, RequestFacts};
use protocols::http::{Host, Unclear, is_grpc};

use super::websocket::WebSocket;
use crate::capture::accept::OriginalDestination;

/// What is known of a connection before its first request.
#[derive(Clone, Debug)]
pub struct Channel {
    /// Where the application was going; `None` on the explicit proxy's port outside a tunnel, where each request says it.
    pub original: Option<OriginalDestination>,
    /// The name in its ClientHello; `None` without TLS.
    pub name: Option<HostName>,
    /// Whether it is TLS.
    pub secure: bool,
}

impl Channel {
    /// Where a request on this connection goes.
    #[must_use]
    pub fn destination_of(&self, facts: &RequestFacts) -> OriginalDestination {
        self.original.clone().unwrap_or_else(|| OriginalDestination::named(facts.host.clone(), facts.port))
    }

    /// Where the connection was going, for people.
    #[must_use]
    pub fn shown(&self) -> String {
        self.original.as_ref().map_or_else(|| "the explicit proxy".to_owned(), ToString::to_string)
    }
}

/// The port of `http`, for a request in absolute-form that names none (RFC 9110 §4.2.1).
pub const HTTP_PORT: u16 = 80;

/// Reads what is asked.
///
/// # Errors
/// [`Code::MalformedRequest`] if it is ambiguous, [`Code::Misdirected`] if it names another service than its
/// connection, [`Code::UnmetExpectation`] if it expects what nobody
/// promises, [`Code::MethodRefused`] for TRACE, [`Code::NotCarried`] for CONNECT and upgrades.
pub fn facts(parts: &Parts, channel: &Channel) -> Result<RequestFacts, Failure> {
    let malformed = |e: protocols::Malformed| Failure::new(Code::MalformedRequest, e.to_string());
    protocols::http::check_request(parts).map_err(malformed)?;
    check_expectation(&parts.headers)?;
    let authority =
        protocols::http::authority_of(parts, channel.name.as_ref()).map_err(|unclear| match unclear {
            Unclear::Malformed(why) => malformed(why),
            Unclear::Disagree => Failure::new(
                Code::Misdirected,
                "the request's target and its Host field name different servers",
            ),
        })?;
    check_scheme(parts, channel)?;
    let host = judged_host(&authority.host, channel)?;
    let port = match &channel.original {
        None => authority.port.unwrap_or(HTTP_PORT),
        Some(original) => {
            let port = original.port();
            if let Some(named) = authority.port.filter(|named| *named != port) {
                let detail = format!("the request is for port {named}, its connection for {port}");
                return Err(Failure::new(Code::Misdirected, detail));
            }
            port
        }
    };
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

/// A target may say a scheme (RFC 9112 §3.2.2, RFC 9113 §8.3.1); it must be the connection's (RFC 9110 §7.4).
fn check_scheme(parts: &Parts, channel: &Channel) -> Result<(), Failure> {
    let expected = if channel.secure { "https" } else { "http" };
    match parts.uri.scheme_str() {
        Some(scheme) if !scheme.eq_ignore_ascii_case(expected) => {
            let detail = format!("the request's scheme is {scheme}, its connection's {expected}");
            Err(Failure::new(Code::Misdirected, detail))
        }
        _ => Ok(()),
    }
}

/// The one name that decides: that of the ClientHello, which the request must repeat; and that of the tunnel, if the
/// application asked the explicit proxy for one by a name.
fn judged_host(host: &Host, channel: &Channel) -> Result<HostName, Failure> {
    let tunnel = channel.original.as_ref().and_then(OriginalDestination::name);
    if let Some(asked) = tunnel
        && let Some(other) = channel.name.as_ref().filter(|name| *name != asked)
    {
        let detail = format!("the tunnel is to {asked}, the TLS in it to {other}");
        return Err(Failure::new(Code::Misdirected, detail));
    }
    match (host, channel.name.as_ref().or(tunnel)) {
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

/// Refuses what nobody on the way can promise.
///
/// # Errors
/// [`Code::UnmetExpectation`] if the request expects something else than leave for its body.
pub fn check_expectation(headers: &http::HeaderMap) -> Result<(), Failure> {
    if protocols::http::expects_another(headers) {
        let detail = "the request expects something else than 100-continue";
        return Err(Failure::new(Code::UnmetExpectation, detail));
    }
    Ok(())
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
