//! Carries a body into the sending half of an HTTP/2 stream, at the speed at which the peer takes it.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body as _;

use super::{Body, BodyError};

/// Why a pump stopped before the body's end.
#[derive(Debug)]
pub enum Stopped {
    /// The source broke off; the stream was reset with its reason.
    Source(BodyError),
    /// The peer reset the stream, or its connection ended.
    Sink(h2::Error),
    /// The peer reset the stream with this reason.
    Reset(Reason),
}

/// Sends `body` to its end, with its trailers.
///
/// Polls the sink for a reset also while it waits for the source, and the source only when the sink has room.
///
/// # Errors
/// [`Stopped`] if either side ended early; the other side has then been told.
pub async fn pump(body: &mut Body, sink: &mut SendStream<Bytes>) -> Result<(), Stopped> {
    loop {
        let frame = match poll_fn(|cx| poll_source(body, sink, cx)).await? {
            None => return sink.send_data(Bytes::new(), true).map_err(Stopped::Sink),
            Some(Ok(frame)) => frame,
            Some(Err(error)) => {
                sink.send_reset(error.reason());
                return Err(Stopped::Source(error));
            }
        };
        match frame.into_data() {
            Ok(data) => send_data(data, body, sink).await?,
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => {
                    // Unused reservations would hold the connection's window for nothing.
                    sink.reserve_capacity(0);
                    return sink.send_trailers(trailers).map_err(Stopped::Sink);
                }
                // There is no third kind of frame today; one that we don't know is not ours to forward.
                Err(_) => continue,
            },
        }
        if body.is_end_stream() {
            return Ok(());
        }
    }
}

type Next = Option<Result<http_body::Frame<Bytes>, BodyError>>;

fn poll_source(
    body: &mut Body,
    sink: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<Next, Stopped>> {
    if let Poll::Ready(reset) = sink.poll_reset(cx) {
        return Poll::Ready(Err(reset.map_or_else(Stopped::Sink, Stopped::Reset)));
    }
    Pin::new(body).poll_frame(cx).map(Ok)
}

/// Sends one chunk of `body`, split by what the peer's window takes: what is queued beyond it would be memory without
/// bound.
async fn send_data(mut data: Bytes, body: &mut Body, sink: &mut SendStream<Bytes>) -> Result<(), Stopped> {
    let last = body.is_end_stream();
    if data.is_empty() && last {
        return sink.send_data(data, true).map_err(Stopped::Sink);
    }
    while !data.is_empty() {
        sink.reserve_capacity(data.len());
        // `poll_capacity` reports increases only, so what is there already is asked for first.
        let mut room = sink.capacity();
        if room == 0 {
            room = poll_fn(|cx| poll_capacity(body, sink, cx)).await?;
        }
        let chunk = data.split_to(room.min(data.len()));
        let end = last && data.is_empty();
        sink.send_data(chunk, end).map_err(Stopped::Sink)?;
    }
    Ok(())
}

fn poll_capacity(
    body: &mut Body,
    sink: &mut SendStream<Bytes>,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, Stopped>> {
    if body.ends_if_cut(cx) {
        sink.send_reset(BodyError::Cut.reason());
        return Poll::Ready(Err(Stopped::Source(BodyError::Cut)));
    }
    if let Poll::Ready(reset) = sink.poll_reset(cx) {
        return Poll::Ready(Err(reset.map_or_else(Stopped::Sink, Stopped::Reset)));
    }
    loop {
        match sink.poll_capacity(cx) {
            Poll::Ready(Some(Ok(0))) => {}
            Poll::Ready(Some(Ok(room))) => return Poll::Ready(Ok(room)),
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(Stopped::Sink(error))),
            // The stream is no longer there to be sent to.
            Poll::Ready(None) => return Poll::Ready(Err(Stopped::Reset(Reason::CANCEL))),
            Poll::Pending => return Poll::Pending,
        }
    }
}
