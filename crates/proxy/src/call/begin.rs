//! Stages 1 and 2, capture and tls: how a connection begins, and whether it is opened, left shut, or refused.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use model::destination::HttpVersion;
use model::{Code, Failure};
use policy::Snapshot;
use tracing::{Instrument as _, debug_span};

use super::{Connection, sender};
use crate::bypass;
use crate::caller::CallerState;
use crate::capture::accept::Captured;
use crate::exchange::Open;
use crate::passage;
use crate::policy::{Route, route_http, route_tls, route_unknown};
use crate::protocol::facts::Channel;
use crate::protocol::hangup::Tcp;
use crate::protocol::head::{self, First};
use crate::protocol::interim::Interim;
use crate::protocol::rewind::Rewind;
use crate::protocol::{http1, http2};
use crate::splice::reset;
use crate::tls::{self, Opening};
use crate::upstream::pool::OriginKey;
use crate::worker::{Worker, now};

/// How long an application may be silent before the server is given the chance to speak first (SMTP, MySQL, SSH do).
const SILENCE: Duration = Duration::from_millis(50);

/// Stages 1 and 2: where was it going, and is it opened?
///
/// What a connection needs to begin, or to be carried, is boxed: it lies idle in a task that has room for all that it holds
/// at its largest.
pub async fn connection(worker: &Rc<Worker>, mut captured: Captured) {
    let caller = debug_span!("identity").in_scope(|| worker.shared.callers.at_accept());
    if let Some(caller) = &caller {
        worker.watch(caller);
    }
    let opening = open(worker, caller.as_ref(), &mut captured).instrument(debug_span!("tls"));
    let opening = Box::pin(opening).await;
    let Some(opening) = opening else {
        return;
    };
    // The application may have taken hours for its first byte: what counts is the policy of now.
    let snapshot = caller.as_ref().and_then(|caller| caller.snapshot());
    let begun = Begun { worker: worker.clone(), caller, captured };
    match snapshot {
        None => Box::pin(begun.without_policy(opening)).await,
        Some(snapshot) => begun.routed(&snapshot, opening).await,
    }
}

/// Reads how the connection begins. `None` if it is over: it broke, or a server spoke first and it was carried.
async fn open(
    worker: &Rc<Worker>,
    caller: Option<&Arc<CallerState>>,
    captured: &mut Captured,
) -> Option<Opening> {
    let patience = worker.shared.limits.head;
    let may_wait_for_server =
        caller.is_some_and(|caller| passage::server_may_speak(caller, &captured.original));
    let port = captured.original.port();
    let may_be_covered = || {
        let snapshot = caller.and_then(|caller| caller.snapshot());
        snapshot.is_none_or(|snapshot| passage::may_be_covered(&snapshot, port))
    };
    // Where nothing can be covered the address is dialled whatever the application says, so it need not be waited for.
    let silence = if may_be_covered() { SILENCE } else { Duration::ZERO };
    let Captured { stream, first, .. } = &mut *captured;
    if !first.is_empty() {
        // It came behind a CONNECT.
    } else if !may_wait_for_server {
        tokio::time::timeout(patience, tls::first_bytes(stream, first)).await.ok()?.ok()?;
    } else if let Ok(spoke) = tokio::time::timeout(silence, tls::first_bytes(stream, first)).await {
        spoke.ok()?;
    } else {
        passage::server_first(worker, caller?, captured).await?;
    }
    // Nor has anything to be recognised there: what stops in the middle waits for the server.
    let counts = may_be_covered();
    let patience = if may_wait_for_server && !counts { SILENCE } else { patience };
    tls::peek(&mut captured.stream, &mut captured.first, patience, counts).await.ok()
}

/// A connection whose first bytes have been read.
struct Begun {
    worker: Rc<Worker>,
    caller: Option<Arc<CallerState>>,
    captured: Captured,
}

impl Begun {
    /// Nothing passes before the first policy is there: HTTP is told so, everything else is closed before a
    /// certificate is shown.
    async fn without_policy(self, opening: Opening) {
        match opening {
            Opening::Http1 | Opening::Http2 => self.requests_in_clear(&opening).await,
            _ => {
                let failure = Failure::new(Code::NoSnapshot, "no policy has been received yet");
                self.worker.shared.metrics.failed(&failure);
                let original = &self.captured.original;
                passage::refuse(&self.worker, self.caller.as_deref(), None, original, &failure);
                reset(&self.captured.stream);
            }
        }
    }

    async fn routed(mut self, snapshot: &Snapshot, opening: Opening) {
        match opening {
            Opening::Tls(hello) => {
                let versions = tls::offered_versions(&hello);
                let original = &self.captured.original;
                // The explicit proxy was told a name: then TLS need not repeat it, but may not say another.
                let name = hello.sni.clone().or_else(|| original.name().cloned());
                let route = if hello.sni.as_ref().is_some_and(|sni| original.disagrees(sni)) {
                    Route::Refuse(Code::Misdirected)
                } else {
                    route_tls(snapshot, name.as_ref(), original, !versions.is_empty())
                };
                match route {
                    // A refusal is opened too where it can be, so that it can be read.
                    Route::Requests | Route::Refuse(Code::NotCovered | Code::Blocked | Code::Misdirected)
                        if name.is_some() && !versions.is_empty() =>
                    {
                        if let Some(name) = name {
                            self.requests_in_tls(snapshot, name, &versions).await;
                        }
                    }
                    route => self.carried(route, name.map(|n| n.to_string()), "tls").await,
                }
            }
            Opening::Http1 => {
                let limits = self.worker.shared.limits;
                let Captured { stream, first, original, .. } = &mut self.captured;
                let told = match head::read(stream, first, limits.head_bounds(), limits.head).await {
                    First::Host(host, port) => Some((host, port)),
                    First::Nameless => None,
                    First::Other => return self.unknown(snapshot).await,
                };
                let disagrees =
                    told.as_ref().is_some_and(|(host, port)| original.contradicts(Some(host), *port));
                let host = told.map(|(host, _)| host).or_else(|| original.name().cloned());
                match route_http(snapshot, host.as_ref(), original) {
                    _ if disagrees => self.requests_in_clear(&Opening::Http1).await,
                    // The next request may name another host, and a head that can't be read was going to name one: each
                    // is looked at where a policy may cover what it names.
                    Route::Pass if passage::requests_may_be_covered(snapshot, original.port()) => {
                        self.in_clear(&Opening::Http1, true).await;
                    }
                    Route::Requests | Route::Refuse(_) => self.requests_in_clear(&Opening::Http1).await,
                    route => self.carried(route, host.map(|h| h.to_string()), "http").await,
                }
            }
            // Its names are in its requests, so it is read unless nothing could cover it.
            Opening::Http2 => {
                let original = &self.captured.original;
                let name = original.name().map(ToString::to_string);
                match route_http(snapshot, original.name(), original) {
                    Route::Pass if passage::requests_may_be_covered(snapshot, original.port()) => {
                        self.in_clear(&Opening::Http2, true).await;
                    }
                    Route::Requests | Route::Refuse(_) => self.requests_in_clear(&Opening::Http2).await,
                    route => self.carried(route, name, "http").await,
                }
            }
            // Half a ClientHello names nobody, but a policy may cover what it was going to name.
            Opening::Unfinished
                if passage::may_be_covered(snapshot, self.captured.original.port())
                    && bypass::of_connection(snapshot, None, &self.captured.original, now()).is_none() =>
            {
                self.carried(Route::Refuse(Code::BadClientHello), None, "tls").await;
            }
            Opening::Unknown | Opening::Unfinished => self.unknown(snapshot).await,
        }
    }

    /// Carries what is neither TLS nor HTTP, or closes it.
    async fn unknown(self, snapshot: &Snapshot) {
        let original = &self.captured.original;
        let (route, name) = (route_unknown(snapshot, original), original.name().map(ToString::to_string));
        self.carried(route, name, "tcp").await;
    }

    /// Carries the connection as such, or closes it.
    async fn carried(self, route: Route, name: Option<String>, protocol: &'static str) {
        let Self { worker, caller, captured: Captured { stream, first, original, dialled } } = self;
        let Some(caller) = caller else { return };
        let passing = passage::Passing { original, stream, dialled, first, name, protocol };
        Box::pin(passage::carry(&worker, &caller, route, passing)).await;
    }

    async fn requests_in_clear(self, opening: &Opening) {
        self.in_clear(opening, false).await;
    }

    /// Reads requests in the clear. If the first `passes`, it goes to where was dialled already, if that was done; what is
    /// covered goes to where its name leads.
    async fn in_clear(self, opening: &Opening, passes: bool) {
        let version = if matches!(opening, Opening::Http2) { HttpVersion::Http2 } else { HttpVersion::Http1 };
        let Captured { stream, first, original, dialled } = self.captured;
        let channel = Channel { original: Some(original), name: None, secure: false };
        let connection = Connection::new(self.worker, self.caller, channel, version);
        connection.beside.seed(dialled.filter(|_| passes));
        Box::pin(serve(Rc::new(connection), Rewind::new(first, stream))).await;
    }

    async fn requests_in_tls(self, snapshot: &Snapshot, name: model::HostName, offered: &[HttpVersion]) {
        let version = self.version_to_offer(snapshot, &name, offered).await;
        let Captured { stream, first, original, .. } = self.captured;
        let io = Rewind::new(first, stream);
        let opened = Box::pin(self.worker.terminator.open(io, &name, version, now())).await;
        let stream = match opened {
            Ok(stream) => Box::new(stream),
            Err(failure) => {
                self.worker.shared.metrics.failed(&failure);
                tracing::warn!(stage = "tls", code = %failure.code, %name, "{failure}");
                return;
            }
        };
        let version = tls::terminate::agreed(&stream);
        let channel = Channel { original: Some(original), name: Some(name), secure: true };
        let connection = Connection::new(self.worker, self.caller, channel, version);
        Box::pin(serve(Rc::new(connection), stream)).await;
    }

    /// Of the versions that the application offers, the one that the destination speaks. Where that is not known the
    /// upstream is dialled first; if it can't be reached the request will be told so.
    async fn version_to_offer(
        &self,
        snapshot: &Snapshot,
        name: &model::HostName,
        offered: &[HttpVersion],
    ) -> Option<HttpVersion> {
        let fallback = offered.last().copied();
        let original = &self.captured.original;
        let (Some(destination), Some(state), false) =
            (snapshot.cover(name, original.port()), self.caller.as_deref(), original.disagrees(name))
        else {
            return fallback;
        };
        // If there is no certificate to show, the request will be told so.
        let (Some(caller), Ok(svid)) = (state.caller(), state.shown_to(destination)) else {
            return fallback;
        };
        let (id, name) = (caller.id.clone(), name.clone());
        let key = OriginKey::new(id, name, true, destination, original, svid.as_deref());
        let origin = self.worker.pool.origin(key, svid);
        if let Some(known) = origin.version_for(offered, &destination.http_versions) {
            return Some(known);
        }
        let (interim, open) = (Interim::default(), Open::default());
        let sender = sender(&self.worker, &origin, destination, original.clone(), &interim, &open);
        match Box::pin(sender.learn()).await {
            Ok(version) if offered.contains(&version) => Some(version),
            Ok(_) => fallback,
            Err(failure) => {
                tracing::debug!(stage = "upstream", code = %failure.code, "{failure}");
                fallback
            }
        }
    }
}

async fn serve(
    connection: Rc<Connection>,
    io: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Tcp + Unpin + 'static,
) {
    match connection.version {
        HttpVersion::Http1 => http1::serve(connection, io).await,
        HttpVersion::Http2 => http2::serve(connection, io).await,
    }
}
