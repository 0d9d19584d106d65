//! Requests in absolute-form (RFC 9112 §3.2.2) on the explicit proxy's port, outside of tunnels.
//!
//! What a policy covers is judged and carried like every other request. What none covers passes in `observe` to the host
//! that it names: without a credential of ours, with what the application sends, and recorded.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use http::header::{HeaderName, PROXY_AUTHORIZATION};
use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, Method, Response};
use http_body::Body as _;
use model::audit::{Passed, What};
use model::{Caller, Code, Failure, HostName, UnixMillis};
use policy::Snapshot;
use protocols::http::Host;

use crate::bypass;
use crate::call::{Asked, Connection};
use crate::caller::CallerState;
use crate::capture::accept::OriginalDestination;
use crate::exchange::{Guarded, Open, why_stopped};
use crate::memory::Reserved;
use crate::policy::{Route, uncovered};
use crate::protocol::body::BodyError;
use crate::protocol::facts::{HTTP_PORT, check_expectation};
use crate::protocol::{Body, Message};
use crate::standing;
use crate::upstream::once;
use crate::worker::now;

/// A request that no policy covers, and where it goes.
pub struct Uncovered {
    host: Host,
    port: u16,
    state: Arc<CallerState>,
    caller: Arc<Caller>,
    /// The bypass under which it passes, if a policy covers it.
    bypass: Option<String>,
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
    Ok(passes.then_some(Uncovered { host, port, state, caller, bypass }))
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
    /// Carries the request to the host that it names.
    ///
    /// # Errors
    /// As for dialling; [`Code::NotCarried`] for an Upgrade.
    pub async fn pass(
        self,
        connection: &Rc<Connection>,
        asked: Asked,
        room: Reserved,
        mut message: Box<Message>,
    ) -> Result<Response<Body>, Failure> {
        let upgrade = message.headers().contains_key(http::header::UPGRADE);
        if message.is_websocket() || upgrade && !is_h2c(message.headers()) {
            return Err(Failure::new(Code::NotCarried, "an Upgrade to such a destination: ask by CONNECT"));
        }
        let worker = &connection.worker;
        let (stream, address) = match &self.host {
            Host::Name(name) => {
                let original = OriginalDestination::named(name.clone(), self.port);
                worker.dialler.to_name(name, None, &original).await?
            }
            Host::Address(address) => self.dial(connection, *address).await?,
        };
        // Policy may have changed meanwhile.
        let judge = self.judge();
        let valid_until = judge(crate::worker::now())?;
        self.record(connection, &asked, address, message.headers());
        protocols::http::strip_hop_by_hop(&mut message.parts.headers);
        let open = Rc::new(Open::bounded(worker.shared.limits.body_bytes));
        open.be_patient(worker.shared.limits.stream);
        let registration = worker.register.enter(open.clone(), valid_until, judge);
        message.body = Guarded::up(message.take_body(), open.clone());
        let dropped = &worker.shared.metrics.trailers_dropped;
        let sending = once::send(stream, message, &asked.interim, worker.shared.limits.answer, dropped);
        let response = open
            .unless_cut(std::pin::pin!(sending))
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

    async fn dial(
        &self,
        connection: &Connection,
        address: IpAddr,
    ) -> Result<(tokio::net::TcpStream, Option<SocketAddr>), Failure> {
        let address = SocketAddr::new(address, self.port);
        let dialler = &connection.worker.dialler;
        dialler.resolver().check(address, None)?;
        Ok((dialler.to_address(address).await?, Some(address)))
    }

    /// Whether the request may (still) pass.
    fn judge(&self) -> crate::exchange::Judge {
        let (state, host, port) = (self.state.clone(), self.host.clone(), self.port);
        Box::new(move |now| {
            let snapshot = state.snapshot();
            if let Some(bypass) = snapshot.as_deref().and_then(|s| bypass_of(s, &host, port, now)) {
                return Ok(bypass.until);
            }
            match snapshot.as_deref().map(|snapshot| (is_covered(snapshot, &host, port), uncovered(snapshot)))
            {
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

/// An offer that a server is free to ignore (RFC 9110 §7.8), which ends at this hop.
fn is_h2c(headers: &HeaderMap) -> bool {
    headers.get(http::header::UPGRADE).is_some_and(|value| value.as_bytes() == b"h2c")
}
