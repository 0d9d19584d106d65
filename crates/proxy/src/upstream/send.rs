//! Puts a request on a connection to its upstream and brings the answer's head back.

use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Response};
use model::destination::HttpVersion;
use model::{Code, Destination, Failure};
use prometheus::IntCounter;

use super::SendFailure;
use super::connect::{self, Link};
use super::dial::Dialler;
use super::http1_connection::{Home as _, Http1Connection};
use super::http2::{Room, start_http2};
use super::last_word::LastWord;
use super::pool::{Http2Sender, Origin, Turn};
use super::roots::Roots;
use crate::capture::accept::OriginalDestination;
use crate::exchange::Open;
use crate::memory::Budget;
use crate::protocol::interim::Interim;
use crate::protocol::{Body, Message};
use crate::socket::keep_alive_shared;

/// What sending needs besides the request.
pub struct Sender<'a> {
    /// Where connections are kept.
    pub origin: &'a Rc<Origin>,
    /// What is called.
    pub destination: &'a Arc<Destination>,
    /// Where the application was going.
    pub original: OriginalDestination,
    /// Of this worker.
    pub dialler: &'a Dialler,
    /// By whom upstreams are believed.
    pub roots: &'a Roots,
    /// For the TLS handshake.
    pub handshake_patience: Duration,
    /// The exchange of which this is a part.
    pub open: &'a Open,
    /// For the head of the answer.
    pub answer_patience: Duration,
    /// What a connection may hold.
    pub memory: &'a Budget,
    /// Counts the fields of trailers that are not carried on.
    pub trailers_dropped: &'a IntCounter,
    /// Where interim answers go.
    pub interim: &'a Interim,
}

/// An answer that is awaited.
#[derive(Clone, Copy)]
pub struct Awaited<'a> {
    /// The exchange of which this is a part.
    pub open: &'a Open,
    /// For the head of the answer.
    pub patience: Duration,
    /// Of whom it is awaited.
    pub host: &'a dyn fmt::Display,
    /// Where interim answers go.
    pub interim: &'a Interim,
}

impl Awaited<'_> {
    /// Waits for it as long as one may take. Pinned by the caller: see [`Open::unless_cut`].
    pub(super) async fn in_time<T>(&self, answer: Pin<&mut impl Future<Output = T>>) -> Result<T, Failure> {
        let answered = self.open.within(self.patience, answer).await;
        answered.ok_or_else(|| {
            let detail = format!("{} did not answer in {} s", self.host, self.patience.as_secs());
            Failure::new(Code::UpstreamTimeout, detail)
        })
    }
}

/// A connection that can take a request, by what it speaks.
pub(super) enum Fresh {
    Http1(Http1Connection),
    Http2(Turn),
}

/// A new connection, by what it speaks.
pub(super) enum Opened {
    Http1(Http1Connection),
    Http2(Http2Sender),
}

const BOTH: [HttpVersion; 2] = [HttpVersion::Http2, HttpVersion::Http1];

impl Sender<'_> {
    /// Opens a connection that offers HTTP/2 and HTTP/1.1 and keeps it: tells which of them the server speaks.
    ///
    /// # Errors
    /// As for dialling.
    pub async fn learn(&self) -> Result<HttpVersion, Failure> {
        let flight = self.origin.flight().await?;
        if let Some(known) = self.origin.version_for(&BOTH, &[]) {
            return Ok(known);
        }
        match flight.landed(self.open(&BOTH, Room::reserve(self.memory).0).await)? {
            Opened::Http1(sender) => {
                self.origin.put_http1(sender);
                Ok(HttpVersion::Http1)
            }
            Opened::Http2(sender) => {
                self.origin.add_http2(sender);
                Ok(HttpVersion::Http2)
            }
        }
    }

    /// Sends a request by the application's `version` if the server speaks it, else by the other.
    ///
    /// # Errors
    /// A failure of this stage; `unsent` holds the request if nothing of it went out.
    pub async fn send(
        &self,
        mut request: Box<Message>,
        version: HttpVersion,
    ) -> Result<Response<Body>, SendFailure> {
        if request.is_websocket() {
            return Box::pin(self.send_websocket(request, version)).await;
        }
        if expects(request.headers()) {
            request.body = self.interim.guard(request.take_body());
        }
        match version {
            HttpVersion::Http1 if !self.speaks_only_http2() => match self.send_http1(request).await {
                // The server has chosen none of the versions that it was offered: it speaks the other.
                Err(SendFailure { unsent: Some(unsent), failure, .. })
                    if failure.code == Code::UpstreamTls && self.origin.is_http1_refused() =>
                {
                    Box::pin(self.send_multiplexed(unsent)).await
                }
                sent => sent,
            },
            _ => match self.ready_http2().await {
                Some(turn) => self.send_http2(turn, request).await,
                // Boxed like everything that is not of every request: a request's future is moved as a whole.
                None => Box::pin(self.send_multiplexed(request)).await,
            },
        }
    }

    async fn send_multiplexed(&self, request: Box<Message>) -> Result<Response<Body>, SendFailure> {
        match self.http2().await? {
            Fresh::Http2(turn) => self.send_http2(turn, request).await,
            Fresh::Http1(sender) => self.send_fresh_http1(sender, request).await,
        }
    }

    /// Whether there is no use in offering HTTP/1.1.
    pub(super) fn speaks_only_http2(&self) -> bool {
        self.destination.http_versions == [HttpVersion::Http2] || self.origin.is_http1_refused()
    }

    pub(super) fn awaited(&self) -> Awaited<'_> {
        let Self { open, answer_patience: patience, origin, interim, .. } = self;
        Awaited { open, patience: *patience, host: &origin.key.host, interim }
    }

    /// Opens a connection; if it is HTTP/2, with this much room for each stream.
    pub(super) async fn open(&self, offer: &[HttpVersion], room: Room) -> Result<Opened, Failure> {
        // Boxed: dialling is rare, and its state would make every request's future large.
        match Box::pin(self.link(offer)).await? {
            Link::Plain(stream) if self.begins_with_http2(offer) => {
                keep_alive_shared(stream.get_ref());
                start_http2(stream, room).await.map(Opened::Http2)
            }
            Link::Plain(stream) => Ok(Opened::Http1(Http1Connection::new(stream))),
            Link::Tls(stream, version) => {
                if offer.contains(&HttpVersion::Http2) {
                    self.origin.learn(version);
                }
                match version {
                    HttpVersion::Http1 => Ok(Opened::Http1(Http1Connection::new(*stream))),
                    HttpVersion::Http2 => {
                        keep_alive_shared(stream.get_ref().get_ref().0.get_ref());
                        start_http2(*stream, room).await.map(Opened::Http2)
                    }
                }
            }
        }
    }

    /// Without TLS nothing is negotiated: HTTP/2 is spoken by prior knowledge (RFC 9113 §3.3), if the destination is
    /// declared to, or says nothing and the application does.
    fn begins_with_http2(&self, offer: &[HttpVersion]) -> bool {
        let wanted = self.destination.http_versions.first().or(offer.first());
        wanted == Some(&HttpVersion::Http2)
    }

    pub(super) async fn link(&self, offer: &[HttpVersion]) -> Result<Link, Failure> {
        let key = &self.origin.key;
        let (stream, _) = self.dialler.to_name(&key.host, Some(self.destination), &self.original).await?;
        if !key.secure {
            return Ok(Link::Plain(LastWord::new(stream)));
        }
        let patience = self.handshake_patience;
        let linked =
            connect::secure(stream, self.origin, self.destination, self.roots, offer, patience).await;
        if offer == [HttpVersion::Http1] && linked.as_ref().is_err_and(connect::is_protocol_refused) {
            self.origin.refuse_http1();
        }
        linked
    }
}

/// Whether the application waits for leave to send its body (RFC 9110 §10.1.1).
pub(super) fn expects(headers: &HeaderMap) -> bool {
    headers.contains_key(http::header::EXPECT)
}
