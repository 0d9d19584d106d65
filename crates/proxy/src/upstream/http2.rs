//! Requests over HTTP/2: many at a time on each connection.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::request::Parts;
use http::uri::{PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version, header};
use http_body::{Body as _, Frame, SizeHint};
use model::destination::HttpVersion;
use model::{Code, Failure};
use protocols::http::is_grpc;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use super::SendFailure;
use super::failure::{bad_answer, http2_failure};
use super::loan::Loan;
use super::pool::{Http2Sender, Origin, Place};
use super::send::{Awaited, Fresh, Sender};
use crate::protocol::backlog::{Backlog, Bursts};
use crate::protocol::body::{BodyError, WatchedBody};
use crate::protocol::http2::FRAME_BUDGET;
use crate::protocol::interim::{Interim, Sent};
use crate::protocol::message::Spare;
use crate::protocol::{Body, Message, pump};

/// HTTP/2 windows towards upstreams, for one stream and for a connection: 64 KiB, the protocol's default, is too small
/// for bodies.
const STREAM_WINDOW: u32 = 1 << 20;
///
/// Sixteen readers that have stalled with a full window each leave nothing for the others of a connection, so that a
/// connection with half of that gets no new streams ([`CROWDED`]).
const CONNECTION_WINDOW: u32 = 16 << 20;

/// Bytes that wait for readers on a connection beyond which it gets no new streams.
pub(super) const CROWDED: usize = CONNECTION_WINDOW as usize / 2;

impl Sender<'_> {
    /// A connection with room for a stream: a kept one, or a new one, which may turn out to be HTTP/1.1.
    pub(super) async fn http2(&self) -> Result<Fresh, Failure> {
        if let Some(sender) = self.ready_http2().await {
            return Ok(Fresh::Http2(sender));
        }
        let _flight = self.origin.dialling.lock().await;
        if let Some(sender) = self.ready_http2().await {
            return Ok(Fresh::Http2(sender));
        }
        let fresh = self.open(&[HttpVersion::Http2, HttpVersion::Http1]).await?;
        if let Fresh::Http2(sender) = &fresh {
            self.origin.add_http2(sender.clone());
        }
        Ok(fresh)
    }

    /// A kept connection, once it is ready for another stream; those that have ended are forgotten.
    pub(super) async fn ready_http2(&self) -> Option<Http2Sender> {
        loop {
            match self.origin.http2()?.ready().await {
                Ok(sender) => return Some(sender),
                Err(_) => self.origin.forget_ended(),
            }
        }
    }

    pub(super) async fn send_http2(
        &self,
        sender: Http2Sender,
        mut request: Box<Message>,
    ) -> Result<Response<Body>, SendFailure> {
        to_http2(&mut request.parts, self.origin)?;
        exchange(sender, request, self.awaited()).await
    }
}

/// One stream of a connection: a request, whose target is absolute, and its answer.
///
/// # Errors
/// If there is no answer that can be used; with the request, if nothing of it went out.
pub(super) async fn exchange(
    sender: Http2Sender,
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
    let place = sender.place();
    let (mut answer, sink) = sender.sender.send_request(head, ended).map_err(failed)?;
    let mut outgoing = Outgoing { stream: sink, interim: interim.clone() };
    let (loan, mut lent) = Loan::new(body);
    let (upload, outgoing) = if ended {
        (None, Some(outgoing))
    } else {
        let task = tokio::task::spawn_local(async move {
            match pump::pump(&mut lent, &mut outgoing.stream).await {
                // The stream can still be reset, for as long as its answer is awaited.
                Ok(()) => std::future::pending().await,
                Err(stopped) => tracing::debug!(?stopped, "the request's body stopped before its end"),
            }
        });
        (Some(AbortOnDrop(task.abort_handle())), None)
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
    Ok(answer.map(|stream| match Body::from_http2(stream, &sender.backlog) {
        // The request may still be on its way after the answer's end, so the upload goes with the body.
        whole @ (Body::Empty | Body::Full(_)) if upload.is_none() => whole,
        body => {
            Body::Watched(Box::new(Http2Answer { body, _upload: upload, _outgoing: outgoing, _place: place }))
        }
    }))
}

/// A stream above the last that GOAWAY names, or one refused with REFUSED_STREAM, has not been looked at
/// (RFC 9113 §§6.8, 8.7). h2 gives the former with GOAWAY's own reason, to those streams only.
fn failed(error: h2::Error) -> SendFailure {
    let refused = error.reason() == Some(h2::Reason::REFUSED_STREAM);
    let untouched = error.is_remote()
        && (refused || (error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)));
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

/// Begins HTTP/2 on a new connection.
pub(super) async fn start_http2(
    io: impl AsyncRead + AsyncWrite + Unpin + 'static,
) -> Result<Http2Sender, Failure> {
    let backlog = Backlog::default();
    let (sender, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
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
    Ok(Http2Sender::new(sender, backlog))
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
    _upload: Option<AbortOnDrop>,
    _outgoing: Option<Outgoing>,
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
