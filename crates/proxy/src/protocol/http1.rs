//! HTTP/1 on the application's side: one request after the other, each with its answer.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::header::{CONTENT_LENGTH, EXPECT};
use http::{Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::ext::ReasonPhrase;
use model::{Code, DecisionId, Failure};
use protocols::answer::Dialect;
use protocols::http1::body::Reader;
use protocols::http1::head::{self, Bounds, Fault, RequestHead, Scan};
use protocols::http1::write::{self, Framing};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::activity::{Activity, Clock, Expired};
use super::hangup::{Tcp, Watch, is_closed};
use super::incoming::{Inward, Lent};
use super::interim::Interim;
use super::tunnel::{self, Uplink};
use super::wire::{Handle, Outgoing, Wire};
use super::{Body, Message, trailers, websocket};
use crate::answer;
use crate::call::{self, Connection};
use crate::splice::reset;

/// How long, and how much, is read and thrown away after the last answer.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;

/// Serves the requests of one connection, one after the other.
pub async fn serve(connection: Rc<Connection>, io: impl AsyncRead + AsyncWrite + Tcp + Unpin + 'static) {
    let limits = connection.worker.shared.limits;
    let mut served = Served {
        wire: Rc::new(Wire::new(io)),
        inward: Rc::default(),
        clock: Clock::new(connection.activity.clone(), limits.head, limits.idle),
        activity: connection.activity.clone(),
        watch: Watch::default(),
    };
    let told = connection.told_to_end();
    // In a set of its own, which polls it only when it was woken.
    let mut ending = Ending { telling: FuturesUnordered::from_iter([told]), told: false };
    loop {
        let request = match served.head(&mut ending, limits.head_bounds()).await {
            Next::Request(request) => request,
            Next::Over => break,
            Next::Expired(Expired::Idle) => {
                // A request that comes just now must not be lost without an answer: it gets none, which says so.
                let shutdown = poll_fn(|cx| served.wire.poll_shutdown(cx));
                let _ = tokio::time::timeout(LINGER_TIME, shutdown).await;
                return;
            }
            Next::Expired(Expired::Head) => {
                let detail = format!("the request's header did not end within {} s", limits.head.as_secs());
                served.refuse(&connection, &Failure::new(Code::RequestTimeout, detail)).await;
                break;
            }
            Next::Unreadable(fault) => {
                served.refuse(&connection, &unreadable(&fault)).await;
                break;
            }
        };
        match served.one(&connection, request, &mut ending).await {
            Then::Next => {}
            Then::End => break,
            Then::Gone => return tracing::debug!(stage = "protocol", "the application closed its side"),
            Then::Tunnel(uplink, down) => {
                let first = served.wire.with_unread(bytes::BytesMut::split).freeze();
                return tunnel::serve(Handle(served.wire), first, uplink, down).await;
            }
        }
    }
    linger(&mut Handle(served.wire)).await;
}

/// One connection of the application.
struct Served<T> {
    wire: Rc<Wire<T>>,
    /// The body of the request that is open.
    inward: Rc<Inward>,
    activity: Activity,
    clock: Clock,
    watch: Watch,
}

/// What comes next on a connection.
enum Next {
    /// A request.
    Request(Begun),
    /// Nothing.
    Over,
    /// Nothing has come for too long.
    Expired(Expired),
    /// Bytes that are no request.
    Unreadable(Fault),
}

/// A request that has begun.
struct Begun {
    message: Box<Message>,
    asked: Asked,
    interim: Interim,
}

/// What happens after an answer.
enum Then {
    /// The next request may come.
    Next,
    /// The connection ends.
    End,
    /// The application has ended it: what was open has gone with it.
    Gone,
    /// It is a tunnel from now on: both directions of it.
    Tunnel(Uplink, Body),
}

/// Whether a connection is to end after its answer.
struct Ending<F> {
    telling: FuturesUnordered<F>,
    told: bool,
}

impl<F: Future<Output = ()>> Ending<F> {
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        self.told = self.told || matches!(self.telling.poll_next_unpin(cx), Poll::Ready(Some(())));
        self.told
    }
}

/// What of a request decides how its answer is written.
struct Asked {
    version: Version,
    head: bool,
    /// Whether the connection may go on after the answer.
    persists: bool,
    /// Whether the application waits for leave to send its body.
    waits: bool,
}

impl<T: AsyncRead + AsyncWrite + Tcp + Unpin + 'static> Served<T> {
    /// Waits for the head of the next request.
    async fn head(&mut self, ending: &mut Ending<impl Future<Output = ()>>, bounds: Bounds) -> Next {
        let mut scan = Scan::default();
        poll_fn(|cx| {
            loop {
                let found = self.wire.with_unread(|unread| {
                    let end = scan.end(unread, bounds)?;
                    let read = end.map(|end| head::request(&unread.split_to(end).freeze(), scan.fields()));
                    read.transpose().map_err(Fault::from)
                });
                match found {
                    Ok(Some(head)) => return Poll::Ready(Next::Request(self.begin(head))),
                    Ok(None) if self.wire.with_unread(|unread| unread.is_empty()) => {}
                    Ok(None) => self.activity.bytes_came(),
                    Err(fault) => return Poll::Ready(Next::Unreadable(fault)),
                }
                match self.wire.poll_read_some(cx) {
                    Poll::Ready(Ok(1..)) => {}
                    Poll::Ready(_) => return Poll::Ready(Next::Over),
                    Poll::Pending => break,
                }
            }
            if ending.poll(cx) && self.wire.with_unread(|unread| unread.is_empty()) {
                return Poll::Ready(Next::Over);
            }
            self.wire.rest();
            self.clock.poll(cx).map(Next::Expired)
        })
        .await
    }

    /// Carries one request, and its answer.
    async fn one(
        &mut self,
        connection: &Rc<Connection>,
        begun: Begun,
        ending: &mut Ending<impl Future<Output = ()>>,
    ) -> Then {
        let Begun { message, asked, interim } = begun;
        let answered = {
            let mut answering = pin!(answer_one(connection, message, &interim));
            poll_fn(|cx| {
                let answered = answering.as_mut().poll(cx);
                // What has come with the answer goes before it.
                if self.poll_interim(&interim, &asked, cx).is_err() {
                    return Poll::Ready(None);
                }
                if let Poll::Ready(answered) = answered {
                    return Poll::Ready(Some(answered));
                }
                self.poll_gone(cx).map(|()| None)
            })
            .await
        };
        let Some((response, agreed)) = answered else { return Then::Gone };
        let told = poll_fn(|cx| Poll::Ready(ending.poll(cx))).await;
        self.answer(response, &asked, &interim, told, agreed).await
    }

    /// The request that a head begins.
    fn begin(&mut self, head: RequestHead) -> Begun {
        let interim = Interim::default();
        let RequestHead { method, target, fields } = head;
        let asked = Asked {
            version: fields.version,
            head: method == Method::HEAD,
            persists: fields.persists,
            waits: fields.version == Version::HTTP_11 && fields.headers.contains_key(EXPECT),
        };
        interim.asked(fields.spelling);
        let mut message = Message::new(Request::new(self.body(Reader::of_request(fields.length))));
        message.parts.method = method;
        message.parts.uri = target;
        message.parts.version = fields.version;
        message.parts.headers = fields.headers;
        Begun { message, asked, interim }
    }

    /// The body of a request; it is one piece if all of it is there already.
    fn body(&mut self, reader: Reader) -> Body {
        // Somebody may still hold the body before, all of which was taken: it is told apart from this one.
        if Rc::strong_count(&self.inward) > 1 {
            self.inward = Rc::default();
        }
        let lent = || Body::Watched(Box::new(Lent::new(self.wire.clone(), self.inward.clone())));
        self.inward.begin(reader, &self.wire).map_or_else(lent, Body::whole)
    }

    /// Relays the interim answers that have come. One of HTTP/1.0 knows none, and `100` is told to who waits for it.
    fn poll_interim(&self, interim: &Interim, asked: &Asked, cx: &mut Context<'_>) -> io::Result<()> {
        while let Poll::Ready(response) = interim.poll_next(cx) {
            if asked.version == Version::HTTP_11 && (asked.waits || response.status() != StatusCode::CONTINUE)
            {
                self.wire.put_head(|out| write::interim(out, response.status(), response.headers()));
            }
        }
        match self.wire.poll_flush(cx) {
            Poll::Ready(flushed) => flushed,
            Poll::Pending => Ok(()),
        }
    }

    /// Ready once the application has closed its side, which is cancellation: what is open goes with the connection.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.inward.is_read() {
            // Whoever waits for bytes of the body will see the end. Once nobody does, it is looked for again.
            self.inward.await_end(cx);
            return Poll::Pending;
        }
        // What comes while a request is open is of the next one, and is read once.
        if self.inward.is_over() && self.wire.with_unread(|unread| unread.is_empty()) {
            match ready!(self.wire.poll_read_some(cx)) {
                Ok(1..) => {}
                _ => return Poll::Ready(()),
            }
        }
        self.watch.poll_gone(cx, || self.wire.with_io(|io| is_closed(io.tcp())))
    }

    /// Ready also when the application takes nothing of its answer for as long as a connection may rest.
    fn poll_lost(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.poll_gone(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => self.clock.poll(cx).map(|_| ()),
        }
    }

    /// Writes an answer, and says what comes after it.
    async fn answer(
        &mut self,
        response: Response<Body>,
        asked: &Asked,
        interim: &Interim,
        told: bool,
        agreed: Option<(Uplink, Body)>,
    ) -> Then {
        let (mut parts, body) = response.into_parts();
        let becomes_tunnel = agreed.is_some();
        let framing = if becomes_tunnel { Framing::None } else { framing(&mut parts, &body, asked) };
        let closes = parts.headers.get(http::header::CONNECTION).is_some_and(|value| value == "close");
        // Of a body that nobody takes any more, and that is not all there, nothing can be told from the next request.
        let rest_is_lost = self.inward.is_left() && !self.inward.discard(&self.wire);
        let keep = becomes_tunnel
            || asked.persists
                && !told
                && !closes
                && !rest_is_lost
                && !self.inward.is_broken()
                && framing != Framing::UntilEnd;
        let reason = parts.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
        self.wire.put_head(|out| {
            interim.with_answered(|spelling| {
                let line = (parts.status, reason);
                write::answer(out, asked.version, line, &parts.headers, spelling, framing, keep);
            });
        });
        let mut outgoing = Outgoing::new(body, framing);
        let written = poll_fn(|cx| {
            if let Poll::Ready(written) = outgoing.poll(&self.wire, cx) {
                return Poll::Ready(Some(written));
            }
            self.poll_lost(cx).map(|()| None)
        })
        .await;
        drop(outgoing);
        match written {
            None => return Then::Gone,
            Some(Ok(())) => {}
            Some(Err(stopped)) => {
                tracing::debug!(stage = "protocol", ?stopped, "an answer stopped before its end");
                if framing == Framing::UntilEnd {
                    // Its end would look like that of the whole.
                    self.wire.with_io(|io| reset(io.tcp()));
                    return Then::Gone;
                }
                return Then::End;
            }
        }
        if let Some((uplink, down)) = agreed {
            return Then::Tunnel(uplink, down);
        }
        self.rest(keep).await
    }

    /// After an answer: somebody may still take the request's body.
    async fn rest(&mut self, keep: bool) -> Then {
        let left = poll_fn(|cx| match self.inward.poll_left(cx) {
            Poll::Ready(()) => Poll::Ready(true),
            Poll::Pending => self.poll_lost(cx).map(|()| false),
        });
        if !left.await {
            return Then::Gone;
        }
        if keep && !self.inward.is_broken() && self.inward.discard(&self.wire) {
            Then::Next
        } else {
            Then::End
        }
    }

    /// Answers what could not be read; nothing is read after that.
    async fn refuse(&self, connection: &Connection, failure: &Failure) {
        self.wire.put_head(|out| out.extend_from_slice(&refuse(connection, failure)));
        let _ = tokio::time::timeout(LINGER_TIME, poll_fn(|cx| self.wire.poll_flush(cx))).await;
    }
}

/// How an answer is framed. What its status or its method does not let it have is taken from it (RFC 9110 §§6.4.1, 8.6).
fn framing(parts: &mut http::response::Parts, body: &Body, asked: &Asked) -> Framing {
    if parts.status.is_informational() || parts.status == StatusCode::NO_CONTENT {
        parts.headers.remove(CONTENT_LENGTH);
        return Framing::None;
    }
    if asked.head || parts.status == StatusCode::NOT_MODIFIED {
        return Framing::None;
    }
    match body.size_hint().exact().or_else(|| write::said_length(&parts.headers)) {
        Some(length) => Framing::Length(length),
        None if asked.version == Version::HTTP_11 => Framing::Chunked,
        None => Framing::UntilEnd,
    }
}

/// One request; if it asks for a tunnel and gets one, with both directions of it.
async fn answer_one(
    connection: &Rc<Connection>,
    mut request: Box<Message>,
    interim: &Interim,
) -> (Response<Body>, Option<(Uplink, Body)>) {
    let key = websocket::mark_http1(&mut request.parts);
    let asks = key.is_some() || tunnel::mark(&mut request);
    let uplink = asks.then(|| {
        let (uplink, up) = tunnel::uplink();
        request.body = up;
        uplink
    });
    let takes_trailers = request.version() == Version::HTTP_11;
    let connects = request.parts.method == Method::CONNECT;
    let response = call::exchange(connection, request, interim.clone()).await;
    let (mut parts, body) = response.into_parts();
    match uplink {
        Some(uplink) if tunnel::is_agreed(connects, parts.status) => {
            if let Some(key) = &key {
                websocket::agree_http1(&mut parts.headers, key);
            }
            (Response::from_parts(parts, Body::Empty), Some((uplink, body)))
        }
        _ => {
            let dropped = &connection.worker.shared.metrics.trailers_dropped;
            let body = trailers::to_http1(body, &parts.headers, takes_trailers, dropped);
            (Response::from_parts(parts, body), None)
        }
    }
}

/// Ends the connection so that the last answer is read: a peer that still sends when we close is answered with a reset,
/// and loses what it has not read (RFC 9112 §9.6).
pub(crate) async fn linger(io: &mut (impl AsyncRead + AsyncWrite + Unpin)) {
    let discard = async {
        if io.shutdown().await.is_err() {
            return;
        }
        let mut discarded = vec![0; 8192];
        let mut left = LINGER_BYTES;
        while let Ok(read) = io.read(&mut discarded).await
            && read > 0
            && left > read
        {
            left -= read;
        }
    };
    let _ = tokio::time::timeout(LINGER_TIME, discard).await;
}

/// What was wrong with a request that never became one.
fn unreadable(fault: &Fault) -> Failure {
    match fault {
        Fault::Malformed(why) => {
            Failure::new(Code::MalformedRequest, format!("the request is not valid HTTP/1.1: {why}"))
        }
        Fault::TooLong(bytes) => {
            let detail = format!("the request's header is longer than {bytes} bytes");
            Failure::new(Code::HeaderTooLarge, detail)
        }
        Fault::TooMany(fields) => {
            let detail = format!("the request's header has more than {fields} fields");
            Failure::new(Code::HeaderTooLarge, detail)
        }
    }
}

/// Records the refusal and renders its answer.
pub(crate) fn refuse(connection: &Connection, failure: &Failure) -> Vec<u8> {
    let id = DecisionId(rand::random());
    call::refuse_unread(connection, id, failure);
    answer::as_http1(&answer::answer(Dialect::Problem, failure, id, &[]))
}
