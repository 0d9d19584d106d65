//! HTTP/1 on the application's side: hyper, with its edges ours.

use std::cell::Cell;
use std::convert::Infallible;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::http1::Builder;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use model::{Code, DecisionId, Failure};
use protocols::answer::Dialect;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::Body;
use super::activity::{Clock, Expired, Noticed};
use super::hangup::{Tcp, Watched};
use super::interim::Interim;
use super::own_answer::OwnAnswer;
use super::slot::Slot;
use super::tunnel::{self, Uplink};
use super::{trailers, websocket};
use crate::answer;
use crate::call::{self, Connection};
use crate::limits::HEADERS_DEFAULT;

/// How long, and how much, is read and thrown away after the last answer.
const LINGER_TIME: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;

/// Serves the requests of one connection, one after the other.
pub async fn serve(connection: Rc<Connection>, io: impl AsyncRead + AsyncWrite + Tcp + Unpin + 'static) {
    let limits = connection.worker.shared.limits;
    let activity = connection.activity.clone();
    let mut clock = Clock::new(activity.clone(), limits.head, limits.idle);
    let (io, mut watch) = Watched::new(io);
    let (io, held, current) = OwnAnswer::new(Noticed::new(io, activity.clone()));
    let serving = connection.clone();
    let agreed: Agreed = Rc::default();
    let opening = agreed.clone();
    let slot = Slot::default();
    let service = service_fn(move |request: Request<Incoming>| {
        let (connection, current, agreed) = (serving.clone(), current.clone(), opening.clone());
        // In a slot: the connection itself must stay movable, so that it can be taken apart at its end.
        slot.run(async move {
            let request = request.map(Body::from_http1);
            let interim = current.begin();
            let response = answer_one(&connection, request, interim, &agreed).await;
            current.end();
            Ok::<_, Infallible>(response)
        })
    });
    let mut builder = Builder::new();
    // The bounds in time are ours: hyper has one for a head and for a connection at rest.
    builder
        .preserve_header_case(true)
        .auto_date_header(false)
        .header_read_timeout(None)
        .max_buf_size(limits.head_bytes);
    if limits.headers != HEADERS_DEFAULT {
        // Said only if it is another number: hyper then takes memory for each request.
        builder.max_headers(limits.headers);
    }
    let mut served = builder.serve_connection(TokioIo::new(io), service);
    let mut expired = None;
    let ended = {
        // In a set of its own, which polls it only when it was woken.
        let mut ending = FuturesUnordered::from_iter([connection.told_to_end()]);
        poll_fn(|cx| {
            activity.turn();
            if let Poll::Ready(Some(())) = ending.poll_next_unpin(cx) {
                std::pin::Pin::new(&mut served).graceful_shutdown();
            }
            if let Poll::Ready(reason) = clock.poll(cx) {
                expired = Some(reason);
                return Poll::Ready(Some(Ok(())));
            }
            let ended = served.poll_without_shutdown(cx).map(Some);
            // Its end is cancellation: what is open goes with the connection.
            if ended.is_pending() { watch.poll_gone(cx).map(|()| None) } else { ended }
        })
        .await
    };
    activity.last_turn();
    let Some(ended) = ended else {
        tracing::debug!(stage = "protocol", "the application closed its side");
        return;
    };
    drop(watch);
    let parts = served.into_parts();
    let mut io = parts.io.into_inner();
    match expired {
        // A request that comes just now must not be lost without an answer: it gets none, which says so.
        Some(Expired::Idle) => return drop(io.shutdown().await),
        Some(Expired::Head) => {
            let failure = Failure::new(
                Code::RequestTimeout,
                format!("the request's header did not end within {} s", limits.head.as_secs()),
            );
            let _ = io.write_all(&refuse(&connection, &failure)).await;
            return linger(&mut io).await;
        }
        None => {}
    }
    if let Some((uplink, down)) = agreed.take().filter(|_| ended.is_ok()) {
        let (io, first) = io.into_parts(parts.read_buf);
        return tunnel::serve(io, first, uplink, down).await;
    }
    if let Err(error) = ended {
        tracing::debug!(stage = "protocol", %error, "the application's connection ended");
        if let Some(failure) = held.is_refusal().then(|| unreadable(&error, held.fault())) {
            let bytes = refuse(&connection, &failure);
            held.discard();
            let _ = io.write_all(&bytes).await;
        }
    }
    linger(&mut io).await;
}

/// What an upgrade has agreed on: from then on the connection is a tunnel.
type Agreed = Rc<Cell<Option<(Uplink, Body)>>>;

/// One request; if it asks for a WebSocket and gets one, `agreed` has both directions of it.
async fn answer_one(
    connection: &Rc<Connection>,
    mut request: Request<Body>,
    interim: Interim,
    agreed: &Agreed,
) -> Response<Body> {
    let Some(key) = websocket::mark_http1(&mut request) else {
        let takes_trailers = request.version() == Version::HTTP_11 && trailers::are_taken(request.headers());
        let response = call::exchange(connection, request, interim).await;
        let (parts, body) = response.into_parts();
        let dropped = &connection.worker.shared.metrics.trailers_dropped;
        let body = trailers::to_http1(body, &parts.headers, takes_trailers, dropped);
        return Response::from_parts(parts, body);
    };
    let (uplink, up) = tunnel::uplink();
    *request.body_mut() = up;
    let response = call::exchange(connection, request, interim).await;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return response;
    }
    let (mut parts, down) = response.into_parts();
    websocket::agree_http1(&mut parts.headers, &key);
    agreed.set(Some((uplink, down)));
    Response::from_parts(parts, Body::Empty)
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

/// What was wrong with a request that never became one; `fault` if it was kept from hyper.
fn unreadable(error: &hyper::Error, fault: Option<&'static str>) -> Failure {
    if let Some(fault) = fault {
        Failure::new(Code::MalformedRequest, format!("the request can be read in two ways: {fault}"))
    } else if error.is_parse_too_large() {
        Failure::new(Code::HeaderTooLarge, "the request's header has too many fields or bytes")
            .because(error.to_string())
    } else {
        Failure::new(Code::MalformedRequest, "the request is not valid HTTP/1.1").because(error.to_string())
    }
}

/// Records the refusal and renders its answer.
pub(crate) fn refuse(connection: &Connection, failure: &Failure) -> Vec<u8> {
    let id = DecisionId(rand::random());
    call::refuse_unread(connection, id, failure);
    answer::as_http1(&answer::answer(Dialect::Problem, failure, id, &[]))
}
