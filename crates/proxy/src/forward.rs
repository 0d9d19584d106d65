//! Requests that pass in `observe` although their connection is read: those in absolute-form (RFC 9112 §3.2.2) on the
//! explicit proxy's port outside of tunnels, and those in the clear at a port where a policy covers something, since each
//! of them names a host.
//!
//! What a policy covers is judged and carried like every other request. What none covers passes to the host that it
//! names, or to where the application dialled: without a credential of ours, with what the application sends, and
//! recorded.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{HOST, HeaderName, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, Method, Response, Version};
use http_body::Body as _;
use model::audit::{Passed, What};
use model::destination::HttpVersion;
use model::{Caller, Code, Failure, HostName, UnixMillis};
use policy::Snapshot;
use protocols::http::{Authority, Host};
use tokio::net::TcpStream;

use crate::bypass;
use crate::call::{Asked, Connection};
use crate::caller::CallerState;
use crate::capture::accept::OriginalDestination;
use crate::exchange::{End, Guarded, Open, why_stopped};
use crate::memory::Reserved;
use crate::passage::dial_original;
use crate::policy::{Route, route_http, uncovered};
use crate::protocol::body::BodyError;
use crate::protocol::facts::{HTTP_PORT, check_expectation};
use crate::protocol::{Body, Message, tunnel};
use crate::upstream::once;
use crate::upstream::send::Awaited;
use crate::worker::now;

/// A request that no policy covers, and where it goes.
pub struct Uncovered {
    host: Host,
    port: u16,
    to: To,
    state: Arc<CallerState>,
    caller: Arc<Caller>,
    /// The bypass under which it passes, if a policy covers it.
    bypass: Option<String>,
}

/// How its server is reached.
enum To {
    /// By what it named to the explicit proxy, on a connection of its own.
    Named,
    /// Where the application dialled, on one beside the application's.
    Dialled,
}

/// Looks at a request on the explicit proxy's port: who may use it, and whether it passes. `None` if it is to be judged.
///
/// # Errors
/// [`Code::ProxyAuthentication`] without the token, [`Code::MalformedRequest`] or [`Code::NotCarried`] for what is no
/// request to a proxy.
pub fn admit(connection: &Connection, parts: &mut Parts) -> Result<Option<Uncovered>, Failure> {
    let access = &connection.worker.shared.explicit;
    let credentials = parts.headers.get_all(PROXY_AUTHORIZATION).iter();
    let admitted =
        access.admits(credentials.map(|value| protocols::connect::basic_password(value.as_bytes())));
    // It is for us, whether we ask for it or not (RFC 9110 §11.7.2).
    parts.headers.remove(PROXY_AUTHORIZATION);
    parts.headers.remove(HeaderName::from_static("proxy-connection"));
    admitted?;
    let malformed = |e: protocols::Malformed| Failure::new(Code::MalformedRequest, e.to_string());
    match parts.uri.scheme() {
        _ if parts.method == Method::CONNECT => {
            let detail = "a tunnel must be asked for by the first request of a connection";
            return Err(Failure::new(Code::NotCarried, detail));
        }
        None => {
            let detail = "this is the explicit proxy: it takes CONNECT and requests in absolute-form";
            return Err(Failure::new(Code::MalformedRequest, detail));
        }
        Some(scheme) if *scheme != Scheme::HTTP => {
            let detail = format!("`{scheme}` in absolute-form would be read in the clear: ask by CONNECT");
            return Err(Failure::new(Code::NotCarried, detail));
        }
        Some(_) => {}
    }
    protocols::http::check_request(parts).map_err(malformed)?;
    check_expectation(&parts.headers)?;
    // What is unclear is told where every request is judged.
    let Ok(authority) = protocols::http::authority_of(parts, None) else { return Ok(None) };
    let (host, port) = (authority.host, authority.port.unwrap_or(HTTP_PORT));
    let Some(state) = connection.caller.clone() else { return Ok(None) };
    let (Some(snapshot), Some(caller)) = (state.snapshot(), state.caller()) else { return Ok(None) };
    let bypass = bypass_of(&snapshot, &host, port, now()).map(|bypass| bypass.id.clone());
    let passes =
        bypass.is_some() || !is_covered(&snapshot, &host, port) && uncovered(&snapshot) == Route::Pass;
    Ok(passes.then_some(Uncovered { host, port, to: To::Named, state, caller, bypass }))
}

/// Looks at a request in the clear on a captured connection: whether it passes to where the application dialled. `None` if
/// it is to be judged.
pub fn passing(connection: &Connection, parts: &Parts) -> Option<Uncovered> {
    let original = connection.channel.original.as_ref().filter(|_| !connection.channel.secure)?;
    // What is unclear, or can be read in two ways, is told where every request is judged.
    protocols::http::check_request(parts).ok()?;
    check_expectation(&parts.headers).ok()?;
    let host = host_of(parts, original)?;
    let state = connection.caller.clone()?;
    let (snapshot, caller) = (state.snapshot()?, state.caller()?);
    let port = original.port();
    let passes =
        route_http(&snapshot, name_of(&host), original) == Route::Pass && !is_covered(&snapshot, &host, port);
    passes.then_some(Uncovered { host, port, to: To::Dialled, state, caller, bypass: None })
}

/// Whom a request in the clear names. One of HTTP/1.0 need not name anybody, and is for where it goes then.
fn host_of(parts: &Parts, original: &OriginalDestination) -> Option<Host> {
    let names_nobody = parts.version == Version::HTTP_10
        && parts.uri.authority().is_none()
        && !parts.headers.contains_key(HOST);
    let named = if names_nobody { None } else { Some(protocols::http::authority_of(parts, None).ok()?) };
    let Some(Authority { host, port }) = named else {
        let asked = original.name().cloned().map(Host::Name);
        return asked.or_else(|| original.address().map(|address| Host::Address(address.ip())));
    };
    (!original.contradicts(name_of(&host), port)).then_some(host)
}

const fn name_of(host: &Host) -> Option<&HostName> {
    match host {
        Host::Name(name) => Some(name),
        Host::Address(_) => None,
    }
}

fn bypass_of<'a>(
    snapshot: &'a Snapshot,
    host: &Host,
    port: u16,
    now: UnixMillis,
) -> Option<&'a model::slice::Bypass> {
    let asked = match host {
        Host::Name(name) => OriginalDestination::named(name.clone(), port),
        Host::Address(address) => OriginalDestination::asked(SocketAddr::new(*address, port)),
    };
    bypass::of_connection(snapshot, None, &asked, now)
}

fn is_covered(snapshot: &Snapshot, host: &Host, port: u16) -> bool {
    match host {
        Host::Name(name) => snapshot.cover(name, port).is_some(),
        Host::Address(address) => snapshot.cover_address(*address, port).is_some(),
    }
}

impl Uncovered {
    /// Carries the request.
    ///
    /// # Errors
    /// As for dialling; [`Code::NotCarried`] for an Upgrade.
    pub async fn pass(
        self,
        connection: &Rc<Connection>,
        asked: Asked,
        room: Reserved,
        message: Box<Message>,
    ) -> Result<Response<Body>, Failure> {
        let shared = &connection.worker.shared;
        // Whoever waits for long there has always done so.
        let patience = shared.limits.answer.max(shared.limits.stream);
        let dropped = &shared.metrics.trailers_dropped;
        if let (To::Dialled, Some(original)) = (&self.to, connection.channel.original.as_ref()) {
            let address = original.address();
            let send = async |mut message: Box<Message>, asked: &Asked, open: &Open| {
                name_host(&mut message.parts, original);
                let dial = async || dial_original(&connection.worker.dialler, original, None).await;
                let awaited = Awaited { open, patience, host: original, interim: &asked.interim };
                match connection.version {
                    HttpVersion::Http1 => connection.beside.send_http1(dial, message, awaited, dropped).await,
                    HttpVersion::Http2 => connection.beside.send_http2(dial, message, awaited).await,
                }
            };
            return self.carried(connection, (asked, room), message, address, send).await;
        }
        let upgrade = message.headers().contains_key(http::header::UPGRADE);
        if message.is_websocket() || upgrade && !is_h2c(message.headers()) {
            return Err(Failure::new(Code::NotCarried, "an Upgrade to such a destination: ask by CONNECT"));
        }
        let (stream, address) = self.dial(connection).await?;
        let send = async move |message, asked: &Asked, _: &Open| {
            once::send(stream, message, &asked.interim, patience, dropped).await
        };
        self.carried(connection, (asked, room), message, address, send).await
    }

    /// Judges once more, records, and sends.
    async fn carried(
        self,
        connection: &Connection,
        (asked, room): (Asked, Reserved),
        mut message: Box<Message>,
        address: Option<SocketAddr>,
        send: impl AsyncFnOnce(Box<Message>, &Asked, &Open) -> Result<Response<Body>, Failure>,
    ) -> Result<Response<Body>, Failure> {
        let worker = &connection.worker;
        // Policy may have changed meanwhile.
        let judge = self.judge(address.filter(|_| matches!(self.to, To::Dialled)));
        let valid_until = judge(now())?;
        self.record(connection, &asked, address, message.headers());
        let connects = message.parts.method == Method::CONNECT;
        let is_tunnel = message.asks_for_tunnel();
        strip_hop_by_hop(&mut message.parts.headers, is_tunnel);
        // What a tunnel carries is not a body.
        let open = if is_tunnel { Open::default() } else { Open::bounded(worker.shared.limits.body_bytes) };
        let open = Rc::new(open);
        open.be_patient(worker.shared.limits.stream);
        let registration = worker.register.enter(open.clone(), valid_until, judge);
        message.body = Guarded::up(message.take_body(), open.clone());
        let response = open
            .unless_cut(std::pin::pin!(send(message, &asked, &open)))
            .await
            .unwrap_or_else(|code| Err(Failure::new(code, why_stopped(code))))?;
        worker.shared.metrics.passed();
        asked.answered(worker);
        let (mut parts, body) = response.into_parts();
        let agreed = is_tunnel && tunnel::is_agreed(connects, parts.status);
        strip_hop_by_hop(&mut parts.headers, agreed);
        parts.version = Version::HTTP_11;
        // What of the request still goes up is judged and bounded until it has ended too.
        let uploading = open.clone();
        let over = move || {
            let held = (registration, asked, room);
            if uploading.is_uploading() {
                uploading.at_upload_end(move || drop(held));
            }
        };
        if body.is_end_stream() {
            over();
            return Ok(Response::from_parts(parts, Body::Empty));
        }
        let on_end = Box::new(move |end: End<'_>| {
            if let End::Broken(error) = end
                && !matches!(error, BodyError::Cut)
            {
                tracing::debug!(stage = "upstream", ?error, "an answer broke off");
            }
            over();
        });
        Ok(Response::from_parts(parts, Guarded::down(body, open, on_end)))
    }

    /// Connects to what the request has named to the explicit proxy.
    async fn dial(&self, connection: &Connection) -> Result<(TcpStream, Option<SocketAddr>), Failure> {
        let dialler = &connection.worker.dialler;
        match &self.host {
            Host::Name(name) => {
                let original = OriginalDestination::named(name.clone(), self.port);
                dialler.to_name(name, None, &original).await
            }
            Host::Address(address) => {
                let address = SocketAddr::new(*address, self.port);
                dialler.resolver().check(address, None)?;
                Ok((dialler.to_address(address).await?, Some(address)))
            }
        }
    }

    /// Whether the request may (still) pass to where the application dialled.
    fn judge(&self, dialled: Option<SocketAddr>) -> crate::exchange::Judge {
        let (state, host, port) = (self.state.clone(), self.host.clone(), self.port);
        let dialled = dialled.map(|address| address.ip());
        Box::new(move |now| {
            let snapshot = state.snapshot();
            if let Some(bypass) = snapshot.as_deref().and_then(|s| bypass_of(s, &host, port, now)) {
                return Ok(bypass.until);
            }
            let is_covered = |snapshot: &Snapshot| {
                is_covered(snapshot, &host, port)
                    || dialled.is_some_and(|address| snapshot.cover_address(address, port).is_some())
            };
            match snapshot.as_deref().map(|snapshot| (is_covered(snapshot), uncovered(snapshot))) {
                Some((_, Route::Refuse(code))) => Err(Failure::new(code, "the call may no longer pass")),
                Some((true, _)) => {
                    Err(Failure::new(Code::Misdirected, "a policy covers it by now: call again"))
                }
                // A snapshot that is gone changes nothing for what has passed.
                _ => Ok(UnixMillis(i64::MAX)),
            }
        })
    }

    fn record(
        &self,
        connection: &Connection,
        asked: &Asked,
        address: Option<SocketAddr>,
        headers: &HeaderMap,
    ) {
        let worker = &connection.worker;
        let name = match &self.host {
            Host::Name(name) => Some(HostName::to_string(name)),
            Host::Address(_) => None,
        };
        let event = Passed {
            decision: asked.id,
            caller: self.caller.id.clone(),
            address: address.map(|address| address.to_string()).unwrap_or_default(),
            name,
            protocol: "http".to_owned(),
            destination: None,
            bypass: self.bypass.clone(),
        };
        if worker.shared.audit.write(What::Passed(event)).is_err() {
            worker.shared.metrics.unrecorded();
        }
        for (header, value) in protocols::standing::in_header(headers) {
            connection.known.note(worker, &self.state, (&self.caller.id, asked.id), (header, value));
        }
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap, is_tunnel: bool) {
    if is_tunnel { tunnel::strip_hop_by_hop(headers) } else { protocols::http::strip_hop_by_hop(headers) }
}

/// What goes on is HTTP/1.1, which has a Host field; HTTP/1.0 need not (RFC 9112 §3.2).
fn name_host(parts: &mut Parts, original: &OriginalDestination) {
    if parts.version == Version::HTTP_10 && !parts.headers.contains_key(HOST) {
        let named = parts.uri.authority().map_or_else(|| original.to_string(), ToString::to_string);
        if let Ok(named) = http::HeaderValue::try_from(named) {
            parts.headers.insert(HOST, named);
        }
    }
}

/// An offer that a server is free to ignore (RFC 9110 §7.8), which ends at this hop.
fn is_h2c(headers: &HeaderMap) -> bool {
    headers.get(http::header::UPGRADE).is_some_and(|value| value.as_bytes() == b"h2c")
}
