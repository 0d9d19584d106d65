//! HTTP/2 on the application's side: h2 itself, with each exchange in the connection's own task.

use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use h2::RecvStream;
use h2::server::SendResponse;
use http::{Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::io::{AsyncRead, AsyncWrite};

use super::Body;
use super::interim::Interim;
use super::pump::{Stopped, pump};
use super::websocket;
use crate::call::{self, Connection};

/// Windows towards applications, for one stream and for a connection.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;

/// Bytes that small DATA frames may cost beyond what is in them, on one connection. h2's default ends a connection with
/// its streams when one of them is slow and gets small messages.
pub const FRAME_BUDGET: usize = 64 << 20;

/// Serves the streams of one connection until it ends.
pub async fn serve(connection: Rc<Connection>, io: impl AsyncRead + AsyncWrite + Unpin) {
    let limits = connection.worker.shared.limits;
    let handshake = h2::server::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head_bytes).unwrap_or(u32::MAX))
        .data_frame_budget(FRAME_BUDGET)
        .enable_connect_protocol()
        .handshake::<_, Bytes>(io);
    let mut server = match tokio::time::timeout(limits.head, handshake).await {
        Ok(Ok(server)) => server,
        Ok(Err(error)) => {
            tracing::debug!(stage = "protocol", %error, "the application's HTTP/2 did not begin");
            return;
        }
        Err(_) => return,
    };
    let drain = connection.worker.shared.drain.clone();
    let mut draining = std::pin::pin!(drain.started());
    let mut told = false;
    let mut exchanges = FuturesUnordered::new();
    loop {
        let accepted = poll_fn(|cx| {
            if !told && draining.as_mut().poll(cx).is_ready() {
                told = true;
                server.graceful_shutdown();
            }
            // Exchanges first: what they write goes out with the accept that follows.
            while let Poll::Ready(Some(())) = exchanges.poll_next_unpin(cx) {}
            server.poll_accept(cx)
        })
        .await;
        match accepted {
            Some(Ok((request, respond))) => exchanges.push(stream(connection.clone(), request, respond)),
            Some(Err(error)) => {
                tracing::debug!(stage = "protocol", %error, "the application's connection ended");
                return;
            }
            None => return,
        }
    }
}

/// One stream: a request, its interim answers, its answer, and the answer's body.
async fn stream(connection: Rc<Connection>, request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let mut request = request.map(Body::from_http2);
    websocket::mark_http2(&mut request);
    let interim = Interim::default();
    let answered = {
        let mut exchange = std::pin::pin!(call::exchange(&connection, request, interim.clone()));
        // An application that gives up takes its request with it: dropping the exchange resets the upstream's stream.
        poll_fn(|cx| {
            if respond.poll_reset(cx).is_ready() {
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
    let Some(mut response) = answered else { return };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        // RFC 8441 §5: a 2xx takes the place of 101, and nothing that of the accept value.
        *response.status_mut() = StatusCode::OK;
        response.headers_mut().remove(header::SEC_WEBSOCKET_ACCEPT);
    }
    if let Err(stopped) = send(response, respond).await {
        tracing::debug!(stage = "protocol", ?stopped, "an answer stopped before its end");
    }
}

async fn send(response: Response<Body>, mut respond: SendResponse<Bytes>) -> Result<(), Stopped> {
    let (mut parts, body) = response.into_parts();
    // Connection-specific fields make a message malformed here (RFC 9113 §8.2.2).
    for name in [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE] {
        parts.headers.remove(name);
    }
    parts.version = http::Version::HTTP_2;
    let ended = body.is_end_stream();
    let sink = respond.send_response(Response::from_parts(parts, ()), ended).map_err(Stopped::Sink)?;
    if ended {
        return Ok(());
    }
    pump(body, sink).await
}
