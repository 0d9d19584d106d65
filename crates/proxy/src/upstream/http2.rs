//! Requests over HTTP/2: many at a time on each connection.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, StatusCode, Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use model::destination::HttpVersion;
use model::{Code, Failure};
use protocols::http::is_grpc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use super::SendFailure;
use super::failure::{bad_answer, http2_failure};
use super::loan::Loan;
use super::pool::{Http2Sender, Origin, Place, Turn};
use super::send::{Awaited, Fresh, Opened, Sender};
use crate::memory::{Budget, Reserved};
use crate::protocol::backlog::{Backlog, Bursts};
use crate::protocol::body::{BodyError, WatchedBody};
use crate::protocol::http2::FRAME_BUDGET;
use crate::protocol::interim::{Interim, Sent};
use crate::protocol::message::Spare;
use crate::protocol::{Body, Message, pump, window};

/// Streams at a time on one connection to an upstream. Its window is as large as all of theirs together, so that readers
/// that have stalled take nothing from the others.
pub(super) const STREAMS_MAX: usize = 64;

/// What h2 takes for the server's limit of streams until its SETTINGS have come: no server's own.
pub(super) const UNSETTLED: usize = 1_000_003;

/// How long a new connection may take to say how many streams it takes, and whether it knows extended CONNECT.
const SETTINGS: Duration = Duration::from_secs(1);

/// Waits until a connection's SETTINGS have come and say so, as long as they may take.
pub(super) async fn settled(is_so: impl Fn() -> bool) -> bool {
    let deadline = tokio::time::Instant::now() + SETTINGS;
    while !is_so() {
        if tokio::time::Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// How much of an answer an upstream may send before somebody takes it: the window of each stream of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Enough for bodies from far away; reserved for each stream.
    Large,
    /// The protocol's own, which is part of what is reserved for a request.
    Small,
}

impl Room {
    const fn window(self) -> u32 {
        match self {
            Self::Large => 1 << 20,
            Self::Small => window::SMALL,
        }
    }

    /// What there is memory for.
    pub fn reserve(memory: &Budget) -> (Self, Option<Reserved>) {
        let reserved = memory.reserve_spare(Self::Large.window() as usize);
        (if reserved.is_some() { Self::Large } else { Self::Small }, reserved)
    }
}

impl Sender<'_> {
    /// A connection with room for a stream: a kept one, or a new one, which may turn out to be HTTP/1.1.
    pub(super) async fn http2(&self) -> Result<Fresh, Failure> {
        if let Some(sender) = self.ready_http2().await {
            return Ok(Fresh::Http2(sender));
        }
        let flight = self.origin.flight().await?;
        // A new connection takes one stream until it has said how many.
        settled(|| !self.origin.is_settling()).await;
        if let Some(sender) = self.ready_http2().await {
            return Ok(Fresh::Http2(sender));
        }
        let (room, reserved) = Room::reserve(self.memory);
        match flight.landed(self.open(&[HttpVersion::Http2, HttpVersion::Http1], room).await)? {
            Opened::Http2(sender) => {
                self.origin.add_http2(sender.clone());
                Ok(Fresh::Http2(sender.turn(reserved)))
            }
            Opened::Http1(connection) => Ok(Fresh::Http1(connection)),
        }
    }

    /// A kept connection, once it is ready for another stream; those that have ended are forgotten.
    pub(super) async fn ready_http2(&self) -> Option<Turn> {
        let (room, reserved) = Room::reserve(self.memory);
        loop {
            match self.origin.http2(room)?.ready().await {
                Ok(sender) => return Some(sender.turn(reserved)),
                Err(_) => self.origin.forget_ended(),
            }
        }
    }

    pub(super) async fn send_http2(
        &self,
        turn: Turn,
        mut request: Box<Message>,
    ) -> Result<Response<Body>, SendFailure> {
        to_http2(&mut request.parts, self.origin)?;
        exchange(turn, request, self.awaited()).await
    }
}

/// One stream of a connection: a request, whose target is absolute, and its answer. A tunnel that is agreed is a 101
/// here, whatever the version.
///
/// # Errors
/// If there is no answer that can be used; with the request, if nothing of it went out.
pub(super) async fn exchange(
    Turn { sender, place }: Turn,
    request: Box<Message>,
    awaited: Awaited<'_>,
) -> Result<Response<Body>, SendFailure> {
    let mut sender = match sender.ready().await {
        Ok(sender) => sender,
        Err(error) => {
            let unsent = Some(request);
            return Err(SendFailure { failure: http2_failure(error), unsent, untouched: true });
        }
    };
    let interim = awaited.interim;
    let is_tunnel = request.is_websocket();
    let Message { parts, body } = *request;
    let ended = body.is_end_stream();
    let is_grpc = is_grpc(&parts.method, &parts.headers);
    // For a body that may be had back; of a tunnel nothing is sent twice.
    let spare = (!ended && !is_tunnel).then(|| Spare::of(&parts));
    if ended {
        interim.sent(Sent::Spare(Spare::of(&parts)));
    }
    let head = Request::from_parts(parts, ());
    let (mut answer, sink) = sender.sender.send_request(head, ended).map_err(failed)?;
    let outgoing = Outgoing { stream: sink, interim: interim.clone() };
    let (loan, lent) = Loan::new(body);
    let mut upload = match (ended, is_tunnel) {
        (true, _) => Upload::Over { _outgoing: outgoing },
        // What is not agreed yet carries nothing (RFC 8441 §5).
        (false, true) => Upload::Held(lent, outgoing),
        (false, false) => Upload::begin(lent, outgoing),
    };
    let mut answer = std::future::poll_fn(|cx| {
        // Before the answer itself, which discards them.
        while let Poll::Ready(Some(Ok(early))) = answer.poll_informational(cx) {
            interim.push(early.status(), early.headers());
        }
        Pin::new(&mut answer).poll(cx)
    });
    let answer = match awaited.in_time(Pin::new(&mut answer)).await? {
        Ok(answer) => answer,
        Err(error) => {
            if let Some(reason) = cancellation(&error, is_grpc) {
                interim.give_up(reason);
            }
            let mut failure = failed(error);
            if failure.untouched
                && let Some(head) = spare
                && let Some(body) = loan.take_back()
            {
                let mut unsent = head.restore();
                unsent.body = body;
                failure.unsent = Some(unsent);
            }
            return Err(failure);
        }
    };
    protocols::http::check_answer(answer.headers()).map_err(|e| bad_answer(&e.to_string()))?;
    let (mut head, stream) = answer.into_parts();
    if is_tunnel && head.status.is_success() {
        head.status = StatusCode::SWITCHING_PROTOCOLS;
        upload = upload.agreed();
    }
    let body = match Body::from_http2(stream, &sender.backlog) {
        // The request may still be on its way after the answer's end, so the upload goes with the body.
        whole @ (Body::Empty | Body::Full(_)) if !matches!(upload, Upload::Running(_)) => whole,
        body => Body::Watched(Box::new(Http2Answer { body, _upload: upload, _place: place })),
    };
    Ok(Response::from_parts(head, body))
}

/// A stream above the last that GOAWAY names, or one refused with REFUSED_STREAM, has not been looked at
/// (RFC 9113 §§6.8, 8.7). The peer's GOAWAY, whatever its reason, is the error of those streams only: what goes on below
/// them ends with its own frames or with the connection.
fn failed(error: h2::Error) -> SendFailure {
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let untouched = error.is_remote() && (refused || error.is_go_away());
    SendFailure { failure: http2_failure(error), unsent: None, untouched }
}

/// A reset that says more to the application than an answer of ours: that the upstream has cancelled the call, and of
/// gRPC any, since each code is a status of its own there (gRPC over HTTP2, "Errors"). REFUSED_STREAM asks whoever reads
/// it to send the call again, which was done.
fn cancellation(error: &h2::Error, is_grpc: bool) -> Option<h2::Reason> {
    let reason = error.reason().filter(|_| error.is_reset() && error.is_remote())?;
    let carried = reason == h2::Reason::CANCEL || (is_grpc && reason != h2::Reason::REFUSED_STREAM);
    carried.then_some(reason)
}

/// Begins HTTP/2 on a new connection, with this much room for each stream.
pub(super) async fn start_http2(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
    room: Room,
) -> Result<Http2Sender, Failure> {
    let backlog = Backlog::default();
    let (sender, connection) = h2::client::Builder::new()
        .initial_max_send_streams(UNSETTLED)
        .initial_window_size(room.window())
        .initial_connection_window_size(room.window() * STREAMS_MAX as u32)
        .max_header_list_size(64 * 1024)
        .enable_push(false)
        .data_frame_budget(FRAME_BUDGET)
        .handshake(Bursts::new(io, &backlog))
        .await
        .map_err(http2_failure)?;
    let mut connection: h2::client::Connection<_, Bytes> = connection;
    let absorbing = backlog.clone();
    let driver = std::future::poll_fn(move |cx| {
        let polled = Pin::new(&mut connection).poll(cx);
        absorbing.absorb();
        polled
    });
    tokio::task::spawn_local(async move {
        if let Err(error) = driver.await {
            tracing::debug!(%error, "upstream connection ended");
        }
    });
    Ok(Http2Sender::new(sender, backlog, room))
}

/// Scheme and authority in the pseudo-headers, none in Host (RFC 9113 §8.3.1).
pub(super) fn to_http2(request: &mut Parts, origin: &Origin) -> Result<(), Failure> {
    let mut target = http::uri::Parts::default();
    let path = request.uri.path_and_query().cloned();
    target.path_and_query = path.or_else(|| Some(PathAndQuery::from_static("/")));
    target.scheme = Some(if origin.key.secure { Scheme::HTTPS } else { Scheme::HTTP });
    target.authority = Some(origin.authority.clone());
    request.uri = Uri::from_parts(target).map_err(|e| {
        Failure::new(Code::MalformedRequest, "the request's target can't be carried").because(e)
    })?;
    request.headers.remove(header::HOST);
    request.version = Version::HTTP_2;
    Ok(())
}

/// The body of an HTTP/2 answer, with the upload that may still run beside it.
struct Http2Answer {
    body: Body,
    _upload: Upload,
    _place: Place,
}

impl WatchedBody for Http2Answer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_cut(&self) -> bool {
        self.body.is_cut()
    }
}

/// A request's body on its way to the server.
enum Upload {
    /// All of it is there. The stream can still be reset, for as long as its answer is awaited.
    Over { _outgoing: Outgoing },
    /// Of a tunnel, until the server agrees to it.
    Held(Body, Outgoing),
    /// What is there of it is being sent.
    Running(#[expect(dead_code, reason = "ends the task when it is dropped")] AbortOnDrop),
}

impl Upload {
    fn begin(mut body: Body, mut outgoing: Outgoing) -> Self {
        let task = tokio::task::spawn_local(async move {
            match pump::pump(&mut body, &mut outgoing.stream).await {
                // The stream can still be reset, for as long as its answer is awaited.
                Ok(()) => std::future::pending().await,
                Err(stopped) => tracing::debug!(?stopped, "the request's body stopped before its end"),
            }
        });
        Self::Running(AbortOnDrop(task.abort_handle()))
    }

    /// The server has agreed to the tunnel.
    fn agreed(self) -> Self {
        match self {
            Self::Held(body, outgoing) => Self::begin(body, outgoing),
            other => other,
        }
    }
}

/// The sending half of a request's stream. If the application resets its own, this one is reset with the same code.
struct Outgoing {
    stream: h2::SendStream<Bytes>,
    interim: Interim,
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if let Some(reason) = self.interim.cancelled() {
            self.stream.send_reset(reason);
        }
    }
}

struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}
