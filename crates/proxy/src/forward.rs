//! Requests that pass in `observe` although their connection is read: those in absolute-form (RFC 9112 §3.2.2) on the
//! explicit proxy's port outside of tunnels, and those of HTTP/2 in the clear, where the requests alone name a host.
//!
//! What a policy covers is judged and carried like every other request. What none covers passes to the host that it
//! names, or to where the application dialled: without a credential of ours, with what the application sends, and
//! recorded.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{HeaderName, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, Method, Response};
use http_body::Body as _;
use model::audit::{Passed, What};
use model::destination::HttpVersion;
use model::{Caller, Code, Failure, HostName, UnixMillis};
use policy::Snapshot;
use protocols::http::Host;
use tokio::net::TcpStream;

use crate::bypass;
use crate::call::{Asked, Connection};
use crate::caller::CallerState;
use crate::capture::accept::OriginalDestination;
use crate::exchange::{Guarded, Open, why_stopped};
use crate::memory::Reserved;
use crate::policy::{Route, route_http, uncovered};
use crate::protocol::body::BodyError;
use crate::protocol::facts::{HTTP_PORT, check_expectation};
use crate::protocol::{Body, Message};
use crate::standing;
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
    Dialled(SocketAddr),
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

/// Looks at a request of HTTP/2 in the clear, where the requests alone name a host: whether it passes to where the
/// application dialled. `None` if it is to be judged.
pub fn passing(connection: &Connection, parts: &Parts) -> Option<Uncovered> {
    let original = connection.channel.original.as_ref()?;
    let in_clear = connection.version == HttpVersion::Http2 && !connection.channel.secure;
    // A tunnel that has a name was routed by that.
    if !in_clear || original.name().is_some() {
        return None;
    }
    // What is unclear is told where every request is judged.
    let host = protocols::http::authority_of(parts, None).ok()?.host;
    let state = connection.caller.clone()?;
    let (snapshot, caller) = (state.snapshot()?, state.caller()?);
    let (port, to) = (original.port(), To::Dialled(original.address()?));
    let passes = route_http(&snapshot, name_of(&host), original) == Route::Pass;
    passes.then_some(Uncovered { host, port, to, state, caller, bypass: None })
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
        let patience = shared.limits.answer;
        if let To::Dialled(address) = self.to {
            let send = async |message, asked: &Asked, open: &Open| {
                let awaited = Awaited { open, patience, host: &address, interim: &asked.interim };
                connection.beside.send(async || dialled(connection, address).await, message, awaited).await
            };
            return self.carried(connection, (asked, room), message, Some(address), send).await;
        }
        let upgrade = message.headers().contains_key(http::header::UPGRADE);
        if message.is_websocket() || upgrade && !is_h2c(message.headers()) {
            return Err(Failure::new(Code::NotCarried, "an Upgrade to such a destination: ask by CONNECT"));
        }
        let (stream, address) = self.dial(connection).await?;
        let send = async move |message, asked: &Asked, _: &Open| {
            once::send(stream, message, &asked.interim, patience, &shared.metrics.trailers_dropped).await
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
        let judge = self.judge();
        let valid_until = judge(now())?;
        self.record(connection, &asked, address, message.headers());
        protocols::http::strip_hop_by_hop(&mut message.parts.headers);
        let open = Rc::new(Open::bounded(worker.shared.limits.body_bytes));
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
        protocols::http::strip_hop_by_hop(&mut parts.headers);
        parts.version = http::Version::HTTP_11;
        if body.is_end_stream() {
            return Ok(Response::from_parts(parts, Body::Empty));
        }
        let on_end = Box::new(move |end: crate::exchange::End<'_>| {
            if let crate::exchange::End::Broken(error) = end
                && !matches!(error, BodyError::Cut)
            {
                tracing::debug!(stage = "upstream", ?error, "an answer broke off");
            }
            drop((registration, asked, room));
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

    /// Whether the request may (still) pass.
    fn judge(&self) -> crate::exchange::Judge {
        let (state, host, port) = (self.state.clone(), self.host.clone(), self.port);
        let dialled = match self.to {
            To::Named => None,
            To::Dialled(address) => Some(address.ip()),
        };
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
            standing::note(worker, &self.state, &self.caller.id, asked.id, header, value);
        }
    }
}

/// Connects to where the application dialled, as for what passes untouched.
async fn dialled(connection: &Connection, address: SocketAddr) -> Result<TcpStream, Failure> {
    let dialler = &connection.worker.dialler;
    if connection.channel.original.as_ref().is_some_and(OriginalDestination::is_asked) {
        dialler.resolver().check(address, None)?;
    }
    dialler.to_address(address).await
}

/// An offer that a server is free to ignore (RFC 9110 §7.8), which ends at this hop.
fn is_h2c(headers: &HeaderMap) -> bool {
    headers.get(http::header::UPGRADE).is_some_and(|value| value.as_bytes() == b"h2c")
}
