//! WebSockets to upstreams: over HTTP/1.1 by an upgrade on a connection of its own, over HTTP/2 by an extended CONNECT
//! on a connection that others use too.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Response;
use http::request::Parts;
use http_body::{Frame, SizeHint};
use model::destination::HttpVersion;
use model::{Code, Failure};
use tokio::task::AbortHandle;

use super::SendFailure;
use super::connect::Link;
use super::failure::bad_answer;
use super::http1::to_http1;
use super::http1_connection::{Http1Connection, Io, Switched};
use super::http2::settled;
use super::pool::Http2Sender;
use super::send::{Fresh, Sender};
use crate::protocol::body::{BodyError, WatchedBody};
use crate::protocol::wire::Handle;
use crate::protocol::{Body, Message, tunnel, websocket};

impl Sender<'_> {
    /// Asks for the tunnel by the application's version where the server can, else by the other. The answer that agrees
    /// is a 101, whatever the version.
    pub(super) async fn send_websocket(
        &self,
        request: Box<Message>,
        version: HttpVersion,
    ) -> Result<Response<Body>, SendFailure> {
        let over_http2 = self.speaks_only_http2()
            || (version == HttpVersion::Http2 && self.origin.knows_extended_connect());
        if over_http2 {
            return self.extended_connect(request).await;
        }
        match Box::pin(self.link(&[HttpVersion::Http1])).await {
            Ok(Link::Plain(stream)) => self.upgrade(Http1Connection::new(stream), request).await,
            Ok(Link::Tls(stream, _)) => self.upgrade(Http1Connection::new(*stream), request).await,
            Err(_) if self.origin.is_http1_refused() => self.extended_connect(request).await,
            Err(failure) => Err(failure.into()),
        }
    }

    async fn extended_connect(&self, mut request: Box<Message>) -> Result<Response<Body>, SendFailure> {
        let Fresh::Http2(turn) = self.http2().await? else {
            return Err(bad_answer("the server's choice of protocol was not offered").into());
        };
        ask_http2(&turn.sender, &mut request.parts).await?;
        self.send_http2(turn, request).await
    }

    async fn upgrade(
        &self,
        connection: Http1Connection,
        mut request: Box<Message>,
    ) -> Result<Response<Body>, SendFailure> {
        to_http1(&mut request.parts, Some(self.origin));
        let expected = websocket::ask_http1(&mut request.parts.headers);
        let up = request.take_body();
        let switching = std::pin::pin!(connection.switch(request, self.interim, self.trailers_dropped, None));
        let (answer, first, io) = match self.awaited().in_time(switching).await?? {
            Switched::No(answer) => return Ok(answer),
            Switched::Yes(answer, first, io) => (answer, first, io),
        };
        if !websocket::is_agreed(answer.headers(), &expected) {
            return Err(bad_answer("the upstream's handshake is not one of WebSocket").into());
        }
        Ok(carried(answer, first, io, up))
    }
}

/// The answer that agrees to a tunnel, whose body is what the server says; what the application says goes up beside it.
pub(super) fn carried(
    answer: Response<()>,
    first: Bytes,
    io: Handle<Box<dyn Io>>,
    up: Body,
) -> Response<Body> {
    let (reading, writing) = tokio::io::split(io);
    let upload = tokio::task::spawn_local(tunnel::upload(writing, up));
    let body = tunnel::downlink(first, reading);
    let kept = Kept { body, _task: Task(upload.abort_handle()) };
    answer.map(|()| Body::Watched(Box::new(kept)))
}

/// Makes a request the extended CONNECT that it stands for.
///
/// # Errors
/// [`Code::NotCarried`] if the server knows none.
pub(super) async fn ask_http2(sender: &Http2Sender, request: &mut Parts) -> Result<(), Failure> {
    // It may be used only after the server's SETTINGS have said so (RFC 8441 §3).
    if !settled(|| sender.sender.is_extended_connect_protocol_enabled()).await {
        let detail = "the destination knows no WebSocket over HTTP/2 (RFC 8441)";
        return Err(Failure::new(Code::NotCarried, detail));
    }
    websocket::ask_http2(request);
    Ok(())
}

/// A body, with the task that it needs beside it.
struct Kept {
    body: Body,
    _task: Task,
}

struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl WatchedBody for Kept {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        http_body::Body::poll_frame(Pin::new(&mut self.body), cx)
    }

    fn is_end_stream(&self) -> bool {
        http_body::Body::is_end_stream(&self.body)
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.body)
    }

    fn is_cut(&self) -> bool {
        self.body.is_cut()
    }
}
