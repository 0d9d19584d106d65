//! Keeps upstream connections, each under all that it can remember.
//!
//! One pool per worker, so that taking and giving back cost no lock. Connections of two callers, two names, two ports,
//! two ways of verifying or two client certificates never meet.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use model::destination::{HttpVersion, Resolution};
use model::{Destination, Failure, HostName, SpiffeId, UnixMillis};

use super::http1_connection::{Home, Http1Connection};
use super::http2::{Room, STREAMS_MAX, UNSETTLED};
use crate::capture::accept::OriginalDestination;
use crate::memory::Reserved;
use crate::protocol::backlog::Backlog;
use crate::svid::Svid;

/// A connection of HTTP/2 that can take requests.
#[derive(Clone)]
pub struct Http2Sender {
    /// What h2 sends by.
    pub sender: h2::client::SendRequest<Bytes>,
    /// What waits for readers on it.
    pub backlog: Backlog,
    /// What each of its streams has.
    room: Room,
    open: Rc<Cell<usize>>,
    /// Sweeps since it had a stream.
    sweeps: Rc<Cell<u8>>,
}

/// A stream that is to be opened.
pub struct Turn {
    /// On this connection.
    pub sender: Http2Sender,
    /// What it takes there.
    pub place: Place,
}

/// One stream's place on its connection, until it is dropped.
pub struct Place {
    open: Rc<Cell<usize>>,
    _reserved: Option<Reserved>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.open.set(self.open.get() - 1);
    }
}

impl Http2Sender {
    /// A connection without streams.
    pub fn new(sender: h2::client::SendRequest<Bytes>, backlog: Backlog, room: Room) -> Self {
        Self { sender, backlog, room, open: Rc::default(), sweeps: Rc::default() }
    }

    /// The turn of a stream, for which this is reserved.
    pub fn turn(self, reserved: Option<Reserved>) -> Turn {
        self.open.set(self.open.get() + 1);
        let place = Place { open: self.open.clone(), _reserved: reserved };
        Turn { sender: self, place }
    }

    /// Waits until a stream can be opened.
    ///
    /// # Errors
    /// If the connection has ended.
    pub async fn ready(self) -> Result<Self, h2::Error> {
        Ok(Self { sender: self.sender.ready().await?, ..self })
    }

    /// Whether it has rested for too long.
    fn sweep(&self) -> bool {
        self.sweeps.set(if self.open.get() == 0 { self.sweeps.get() + 1 } else { 0 });
        self.sweeps.get() >= SHARED_SWEEPS_MAX
    }

    fn has_room(&self) -> bool {
        let most =
            if self.is_settling() { 1 } else { self.sender.current_max_send_streams().min(STREAMS_MAX) };
        self.open.get() < most
    }

    /// Whether the server has not said yet how many streams it takes.
    fn is_settling(&self) -> bool {
        self.sender.current_max_send_streams() == UNSETTLED
    }
}

/// All that a connection can remember.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OriginKey {
    /// On whose behalf it was opened.
    pub caller: SpiffeId,
    /// The name that was judged and verified.
    pub host: HostName,
    /// The port.
    pub port: u16,
    /// Whether it is TLS.
    pub secure: bool,
    /// The name that was sent and verified; another than `host` if the destination says so.
    pub server_name: HostName,
    /// The roots that it was verified by; empty for the standard ones.
    pub ca_bundle: String,
    /// The client certificate that it was made with: a renewed one gets connections of its own.
    pub client_certificate: Option<[u8; 32]>,
    /// The address, where only the application knows which one is right.
    pub member: Option<SocketAddr>,
}

impl OriginKey {
    /// The key of calls by `caller` to `host` under this destination, with what is shown to a server that asks.
    pub fn new(
        caller: SpiffeId,
        host: HostName,
        secure: bool,
        destination: &Destination,
        original: &OriginalDestination,
        svid: Option<&Svid>,
    ) -> Self {
        let application_s = destination.resolve == Resolution::Application;
        Self {
            caller,
            server_name: destination.server_name.as_ref().unwrap_or(&host).clone(),
            host,
            port: original.port(),
            secure,
            ca_bundle: destination.ca_bundle.clone(),
            client_certificate: svid.map(Svid::fingerprint),
            member: original.address().filter(|_| application_s),
        }
    }

    fn authority(&self) -> Authority {
        let is_default = self.port == if self.secure { 443 } else { 80 };
        let named = if is_default { self.host.to_string() } else { format!("{}:{}", self.host, self.port) };
        Authority::try_from(named).expect("a host name is one, with a port or without")
    }
}

/// The connections of one key, and what was learned about the server behind them.
pub struct Origin {
    /// What they have in common.
    pub key: OriginKey,
    /// The judged name, with its port unless that is the scheme's (RFC 9110 §4.2).
    pub authority: Authority,
    /// The certificate of which the key has the fingerprint.
    pub svid: Option<Arc<Svid>>,
    idle: RefCell<Vec<Idle>>,
    multiplexed: RefCell<Vec<Http2Sender>>,
    speaks_http2: Cell<Option<bool>>,
    refuses_http1: Cell<bool>,
    /// Held while an HTTP/2 connection is dialled, so that many first requests open one connection.
    dialling: tokio::sync::Mutex<()>,
    /// How many times that came to an end.
    flights: Cell<usize>,
    /// How it failed the last time, if it did.
    failed: RefCell<Option<Failure>>,
}

/// The turn to dial, until it is dropped.
pub struct Flight<'a> {
    origin: &'a Origin,
    _turn: tokio::sync::MutexGuard<'a, ()>,
}

impl Flight<'_> {
    /// What came of it, which those who have waited for it are told if it failed.
    ///
    /// # Errors
    /// As it failed.
    pub fn landed<T>(self, dialled: Result<T, Failure>) -> Result<T, Failure> {
        self.origin.flights.set(self.origin.flights.get() + 1);
        *self.origin.failed.borrow_mut() = dialled.as_ref().err().map(again);
        dialled
    }
}

fn again(failure: &Failure) -> Failure {
    Failure::new(failure.code, failure.detail.clone())
}

struct Idle {
    connection: Http1Connection,
    /// Sweeps since it lies here: a clock that no request has to read.
    sweeps: u8,
}

/// Idle HTTP/1 connections kept for one key; more are closed.
const IDLE_MAX: usize = 256;

/// HTTP/2 connections of one kind kept for one key; past this streams wait for their turn.
const MULTIPLEXED_MAX: usize = 16;

/// How often [`Pool::sweep`] is to be called.
pub const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Sweeps for which a connection may lie idle, 40 to 50 s: shorter than the 60 s and 75 s at which common servers close
/// theirs.
const SWEEPS_MAX: u8 = 5;

/// The same for one of HTTP/2, about five minutes.
const SHARED_SWEEPS_MAX: u8 = 30;

impl Origin {
    fn new(key: OriginKey, svid: Option<Arc<Svid>>) -> Self {
        Self {
            authority: key.authority(),
            key,
            svid,
            idle: RefCell::default(),
            multiplexed: RefCell::default(),
            speaks_http2: Cell::new(None),
            refuses_http1: Cell::new(false),
            dialling: tokio::sync::Mutex::default(),
            flights: Cell::new(0),
            failed: RefCell::default(),
        }
    }

    /// Takes the connection that was used last, if there is one. Whether the server closes it at this moment shows when
    /// it is used: then the request is given back.
    pub fn take_http1(&self) -> Option<Http1Connection> {
        Some(self.idle.borrow_mut().pop()?.connection)
    }

    /// Waits for the turn to dial.
    ///
    /// # Errors
    /// As the one failed that was being dialled: the same address need not fail for each who waits, one after the other.
    pub async fn flight(&self) -> Result<Flight<'_>, Failure> {
        let before = self.flights.get();
        let turn = self.dialling.lock().await;
        match self.failed.borrow().as_ref().filter(|_| self.flights.get() != before) {
            Some(failure) => Err(again(failure)),
            None => Ok(Flight { origin: self, _turn: turn }),
        }
    }

    /// An HTTP/2 connection that can take another stream, with this much room. With as many as may be opened, the one
    /// that has the fewest: the stream then waits for its turn.
    pub fn http2(&self, room: Room) -> Option<Http2Sender> {
        let kept = self.multiplexed.borrow();
        let such = || kept.iter().filter(|sender| sender.room == room);
        if let Some(sender) = such().find(|sender| sender.has_room()) {
            return Some(sender.clone());
        }
        let fewest = such().min_by_key(|sender| sender.open.get());
        fewest.filter(|_| such().count() >= MULTIPLEXED_MAX).cloned()
    }

    /// Whether an HTTP/2 connection is so new that its server has not said yet how many streams it takes.
    pub fn is_settling(&self) -> bool {
        self.multiplexed.borrow().iter().any(Http2Sender::is_settling)
    }

    /// Whether an HTTP/2 connection is kept whose server knows extended CONNECT (RFC 8441).
    pub fn knows_extended_connect(&self) -> bool {
        self.multiplexed.borrow().iter().any(|kept| kept.sender.is_extended_connect_protocol_enabled())
    }

    /// Keeps a new HTTP/2 connection.
    pub fn add_http2(&self, sender: Http2Sender) {
        self.multiplexed.borrow_mut().push(sender);
    }

    /// Forgets the HTTP/2 connections that have ended.
    pub fn forget_ended(&self) {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        self.multiplexed.borrow_mut().retain_mut(|sender| {
            !matches!(sender.sender.poll_ready(&mut context), std::task::Poll::Ready(Err(_)))
        });
    }

    /// The server does not take HTTP/1.1 (its ALPN said so).
    pub fn refuse_http1(&self) {
        self.refuses_http1.set(true);
    }

    /// Whether it has refused HTTP/1.1.
    pub fn is_http1_refused(&self) -> bool {
        self.refuses_http1.get()
    }

    /// What a handshake that offered HTTP/2 has shown.
    pub fn learn(&self, version: HttpVersion) {
        self.speaks_http2.set(Some(version == HttpVersion::Http2));
    }

    /// The version to offer an application that speaks `offered`, best first; `None` if the server has to be asked.
    pub fn version_for(&self, offered: &[HttpVersion], declared: &[HttpVersion]) -> Option<HttpVersion> {
        let common = declared.iter().find(|version| offered.contains(version));
        match (common, offered, self.speaks_http2.get()) {
            (Some(version), _, _) => Some(*version),
            (None, [only], _) => Some(*only),
            (None, _, Some(true)) => Some(HttpVersion::Http2),
            (None, _, Some(false)) => Some(HttpVersion::Http1),
            (None, _, None) => None,
        }
    }

    fn sweep(&self) -> bool {
        self.idle.borrow_mut().retain_mut(|idle| {
            idle.sweeps += 1;
            idle.sweeps < SWEEPS_MAX && !idle.connection.is_closed()
        });
        self.multiplexed.borrow_mut().retain(|sender| !sender.sweep());
        self.forget_ended();
        self.idle.borrow().is_empty() && self.multiplexed.borrow().is_empty()
    }
}

impl Home for Origin {
    fn put_http1(&self, connection: Http1Connection) {
        connection.rests();
        let mut idle = self.idle.borrow_mut();
        if idle.len() < IDLE_MAX {
            idle.push(Idle { connection, sweeps: 0 });
        }
    }
}

/// All origins of one worker.
#[derive(Default)]
pub struct Pool {
    origins: RefCell<HashMap<OriginKey, Rc<Origin>>>,
}

impl Pool {
    /// The origin of a key, with the certificate that it was made for.
    pub fn origin(&self, key: OriginKey, svid: Option<Arc<Svid>>) -> Rc<Origin> {
        let mut origins = self.origins.borrow_mut();
        if let Some(origin) = origins.get(&key) {
            return origin.clone();
        }
        let origin = Rc::new(Origin::new(key.clone(), svid));
        origins.insert(key, origin.clone());
        origin
    }

    /// Closes what lies idle too long, and forgets origins that nobody uses or whose certificate has ended: what is open
    /// there ends with its last exchange.
    pub fn sweep(&self, now: UnixMillis) {
        self.origins.borrow_mut().retain(|_, origin| {
            let ended = origin.svid.as_ref().is_some_and(|svid| svid.ends <= now);
            let unused = origin.sweep() && Rc::strong_count(origin) == 1;
            !ended && !unused
        });
    }
}
