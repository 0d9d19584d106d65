//! HTTP/2 on the application's side: h2 itself, with each exchange in the connection's own task.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Request, Response, StatusCode, header};
use http_body::Body as _;
use model::{Code, DecisionId, Failure};
use tokio::io::{AsyncRead, AsyncWrite};

use super::activity::Clock;
use super::backlog::{Backlog, Bursts};
use super::flood::Resets;
use super::interim::Interim;
use super::pump::{Stopped, pump};
use super::websocket;
use super::window::{self, Uploads, Window};
use super::{Body, Message};
use crate::call::{self, Connection};
use crate::limits::RESETS_WITHIN;

/// Window towards applications for one stream: the protocol's own, a 64th of the best one of a connection ([`window`]),
/// so that uploads that nobody takes hold none of the others up. They come from the same host, where a round trip is
/// nothing.
const STREAM_WINDOW: u32 = window::SMALL;

/// For GOAWAY to reach an application whose connection is ended, and for it to leave.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Bytes that small DATA frames may cost beyond what is in them, on one connection, before h2 ends it with its streams:
/// several times what one burst of the smallest costs (see [`super::backlog`]).
pub const FRAME_BUDGET: usize = 16 << 20;

/// Serves the streams of one connection until it ends.
pub async fn serve(connection: Rc<Connection>, io: impl AsyncRead + AsyncWrite + Unpin) {
    let limits = connection.worker.shared.limits;
    let backlog = Backlog::default();
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(window::SMALL)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .data_frame_budget(FRAME_BUDGET)
        .enable_connect_protocol()
        .handshake::<_, Bytes>(Bursts::new(io, &backlog));
    let mut server = match tokio::time::timeout(limits.head, handshake).await {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => {
            tracing::debug!(stage = "protocol", %error, "the application's HTTP/2 did not begin");
            return;
        }
        Err(_) => return,
    };
    // In a set of its own, which polls it only when it was woken.
    let mut ending = FuturesUnordered::from_iter([connection.told_to_end()]);
    let mut exchanges = FuturesUnordered::new();
    let mut clock = Clock::new(connection.activity.clone(), limits.head, limits.idle);
    let (mut window, uploads) = (Window::default(), Uploads::default());
    let resets = Resets::new(limits.resets, RESETS_WITHIN);
    loop {
        let accepted = poll_fn(|cx| {
            if clock.poll(cx).is_ready() {
                return Poll::Ready(Next::Expired);
            }
            if let Poll::Ready(Some(())) = ending.poll_next_unpin(cx) {
                server.graceful_shutdown();
            }
            // Exchanges first: what they write goes out with the accept that follows.
            while let Poll::Ready(Some(())) = exchanges.poll_next_unpin(cx) {}
            if resets.is_exceeded() {
                return Poll::Ready(Next::Flood);
            }
            if let Some(size) = window.change(&uploads, &connection.worker.shared.memory) {
                server.set_target_window_size(size);
            }
            let accepted = server.poll_accept(cx).map(Next::Stream);
            backlog.absorb();
            accepted
        })
        .await;
        let reason = match accepted {
            Next::Stream(Some(Ok((request, respond)))) => {
                let request = Message::new(request.map(|body| Body::from_http2(body, &backlog)));
                // Boxed, so that it is not moved into the set as a whole.
                let stream = stream(connection.clone(), request, respond, resets.clone(), uploads.clone());
                exchanges.push(Box::pin(stream));
                continue;
            }
            Next::Stream(Some(Err(error))) => {
                tracing::debug!(stage = "protocol", %error, "the application's connection ended");
                if error.reason() == Some(Reason::ENHANCE_YOUR_CALM) && !error.is_remote() {
                    refuse_flood(&connection, "what h2 limits: CONTINUATION frames, streams reset at once");
                }
                return;
            }
            Next::Stream(None) => return,
            Next::Expired => Reason::NO_ERROR,
            Next::Flood => {
                let within = RESETS_WITHIN.as_secs();
                refuse_flood(&connection, &format!("more than {} streams in {within} s", limits.resets));
                Reason::ENHANCE_YOUR_CALM
            }
        };
        drop(exchanges);
        server.abrupt_shutdown(reason);
        let _ = tokio::time::timeout(LAST_WORDS, poll_fn(|cx| server.poll_closed(cx))).await;
        return;
    }
}

/// What happens next on a connection.
#[expect(clippy::large_enum_variant, reason = "it lives for one turn of the loop")]
enum Next {
    Stream(Option<Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>>),
    Expired,
    Flood,
}

/// Counts and records a connection that was ended because of what it did too often.
fn refuse_flood(connection: &Connection, what: &str) {
    connection.worker.shared.metrics.flood();
    let detail = format!("the application gave up {what} of one connection");
    call::refuse_unread(connection, DecisionId(rand::random()), &Failure::new(Code::StreamFlood, detail));
}

/// One stream: a request, its interim answers, its answer, and the answer's body.
async fn stream(
    connection: Rc<Connection>,
    mut request: Box<Message>,
    mut respond: SendResponse<Bytes>,
    resets: Resets,
    uploads: Uploads,
) {
    let _upload = (!request.body.is_end_stream()).then(|| uploads.begin());
    websocket::mark_http2(&mut request.parts);
    let interim = Interim::default();
    let answered = {
        let mut exchange = std::pin::pin!(call::exchange(&connection, request, interim.clone()));
        // An application that gives up takes its request with it: dropping the exchange resets the upstream's stream.
        poll_fn(|cx| {
            if let Poll::Ready(reset) = respond.poll_reset(cx) {
                interim.cancel(reset.unwrap_or(Reason::CANCEL));
                return Poll::Ready(None);
            }
            let answer = exchange.as_mut().poll(cx).map(Some);
            while let Poll::Ready(early) = interim.poll_next(cx) {
                // Fails only if the stream is gone, which the next poll sees.
                let _ = respond.send_informational(early);
            }
            answer
        })
        .await
    };
    let Some(mut response) = answered else { return resets.count() };
    if let Some(reason) = interim.given_up() {
        return respond.send_reset(reason);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // RFC 8441 §5: a 2xx takes the place of 101, and nothing that of the accept value.
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    }
    let _untaken = Untaken::of(&connection, response.body());
    if let Err(stopped) = send(response, respond, &interim).await {
        if matches!(stopped, Stopped::Reset(_)) {
            resets.count();
        }
        tracing::debug!(stage = "protocol", ?stopped, "an answer stopped before its end");
    }
}

/// A whole answer, for as long as the application has not taken it.
struct Untaken<'a> {
    connection: &'a Connection,
    bytes: usize,
}

impl<'a> Untaken<'a> {
    fn of(connection: &'a Connection, body: &Body) -> Option<Self> {
        let Body::Full(whole) = body else { return None };
        let bytes = whole.len();
        connection.untaken.set(connection.untaken.get() + bytes);
        Some(Self { connection, bytes })
    }
}

impl Drop for Untaken<'_> {
    fn drop(&mut self) {
        self.connection.untaken.set(self.connection.untaken.get() - self.bytes);
    }
}

async fn send(
    response: Response<Body>,
    mut respond: SendResponse<Bytes>,
    interim: &Interim,
) -> Result<(), Stopped> {
    let (mut parts, mut body) = response.into_parts();
    // Connection-specific fields make a message malformed here (RFC 9113 §8.2.2).
    protocols::http::strip_hop_by_hop(&mut parts.headers);
    parts.version = http::Version::HTTP_2;
    let ended = body.is_end_stream();
    let mut sink = respond.send_response(Response::from_parts(parts, ()), ended).map_err(Stopped::Sink)?;
    if ended {
        return Ok(());
    }
    let pumped = pump(&mut body, &mut sink).await;
    if let Err(Stopped::Reset(reason)) = &pumped {
        // Before the body goes, and the upstream's stream with it.
        interim.cancel(*reason);
    }
    pumped
}
