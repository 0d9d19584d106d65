//! A connection of HTTP/1 that has become a tunnel, as two bodies: so that it is counted, recorded and cut like every
//! other exchange, and may be HTTP/2 on its other side.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, HeaderMap, HeaderValue, UPGRADE};
use http::{Method, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::mpsc;
use tokio_util::io::poll_write_buf;

use super::body::{BodyError, WatchedBody};
use super::websocket::has_token;
use super::{Body, Message};

/// What is read at a time.
const CHUNK: usize = 16 * 1024;

/// How long one direction may go on after the server has ended the other.
const LINGER: Duration = Duration::from_secs(10);

/// Marks a request of HTTP/1 that asks for a tunnel other than a WebSocket; kept in its extensions.
#[derive(Clone, Copy, Debug)]
pub struct Asked;

/// Marks a request of HTTP/1 that asks for a tunnel: CONNECT (RFC 9110 §9.3.6), or an Upgrade (§7.8) without a body, to
/// whatever protocol. An offer of h2c is not taken: a server is free to ignore it.
pub fn mark(request: &mut Message) -> bool {
    let asks = request.parts.method == Method::CONNECT || asks_for_upgrade(request);
    if asks {
        request.parts.extensions.insert(Asked);
    }
    asks
}

fn asks_for_upgrade(request: &Message) -> bool {
    let mut upgrades = request.headers().get_all(UPGRADE).iter();
    let upgrade = (upgrades.next(), upgrades.next());
    request.version() == Version::HTTP_11
        && matches!(upgrade, (Some(to), None) if !to.as_bytes().eq_ignore_ascii_case(b"h2c"))
        && has_token(request.headers(), &CONNECTION, b"upgrade")
        && request.body.is_end_stream()
}

/// Whether an answer agrees to the tunnel.
pub fn is_agreed(connects: bool, status: StatusCode) -> bool {
    if connects { status.is_success() } else { status == StatusCode::SWITCHING_PROTOCOLS }
}

/// Strips what ends at this hop, and keeps what asks for a tunnel or agrees to one: that does not pass a hop, but is asked
/// of the next one too.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let upgrade = headers.get(UPGRADE).cloned();
    protocols::http::strip_hop_by_hop(headers);
    // Of a tunnel nothing is framed (RFC 9110 §9.3.6).
    headers.remove(CONTENT_LENGTH);
    if let Some(upgrade) = upgrade {
        headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(UPGRADE, upgrade);
    }
}

/// The application's bytes: put in where its connection is read, taken out where the upstream is written.
pub type Uplink = mpsc::Sender<Bytes>;

/// An uplink and the request's body that it becomes. It holds one chunk, which is what carries back-pressure across.
pub fn uplink() -> (Uplink, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, Body::Watched(Box::new(FromApplication(receiver))))
}

struct FromApplication(mpsc::Receiver<Bytes>);

impl WatchedBody for FromApplication {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        false
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }

    fn is_cut(&self) -> bool {
        false
    }
}

/// Carries the application's connection until both sides have ended; `first` was read before.
pub async fn serve(io: impl AsyncRead + AsyncWrite + Unpin, first: Bytes, up: Uplink, down: Body) {
    let (mut reading, mut writing) = tokio::io::split(io);
    let upwards = async move {
        if !first.is_empty() && up.send(first).await.is_err() {
            return;
        }
        while let Ok(Some(chunk)) = read_chunk(&mut reading).await {
            if up.send(chunk).await.is_err() {
                return;
            }
        }
    };
    let downwards = async move {
        let whole = write_all(&mut writing, down).await;
        let _ = writing.shutdown().await;
        whole
    };
    let (mut upwards, mut downwards) = (std::pin::pin!(upwards), std::pin::pin!(downwards));
    tokio::select! {
        // Cut, or broken off: the rest is nobody's.
        whole = &mut downwards => if whole.is_ok() {
            let _ = tokio::time::timeout(LINGER, upwards).await;
        },
        () = &mut upwards => drop(downwards.await),
    }
}

/// Sends the request's body to an upstream and says where it ends.
pub async fn upload<T: AsyncRead + AsyncWrite>(mut writing: WriteHalf<T>, body: Body) {
    if write_all(&mut writing, body).await.is_ok() {
        let _ = writing.shutdown().await;
    }
}

/// What an upstream sends, as the answer's body; `first` was read before.
pub fn downlink<T: AsyncRead + Unpin + 'static>(first: Bytes, reading: ReadHalf<T>) -> Body {
    Body::Watched(Box::new(FromUpstream { first, reading, buffer: BytesMut::new(), ended: false }))
}

struct FromUpstream<T> {
    first: Bytes,
    reading: ReadHalf<T>,
    buffer: BytesMut,
    ended: bool,
}

impl<T: AsyncRead + Unpin> WatchedBody for FromUpstream<T> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut self.first)))));
        }
        self.buffer.reserve(CHUNK);
        let reading = Pin::new(&mut self.reading);
        match ready!(tokio_util::io::poll_read_buf(reading, cx, &mut self.buffer)) {
            Ok(0) => {
                self.ended = true;
                Poll::Ready(None)
            }
            Ok(_) => Poll::Ready(Some(Ok(Frame::data(self.buffer.split().freeze())))),
            Err(error) => Poll::Ready(Some(Err(BodyError::Tunnel(error)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }

    fn is_cut(&self) -> bool {
        false
    }
}

async fn read_chunk(reading: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    Ok((reading.read_buf(&mut buffer).await? > 0).then(|| buffer.freeze()))
}

async fn write_all(writing: &mut (impl AsyncWrite + Unpin), mut body: Body) -> Result<(), BodyError> {
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        if let Ok(mut data) = frame?.into_data() {
            while !data.is_empty() {
                poll_fn(|cx| {
                    unless_cut(&mut body, cx, |cx| poll_write_buf(Pin::new(&mut *writing), cx, &mut data))
                })
                .await
                .and_then(|written| match written {
                    0 => Err(BodyError::Tunnel(io::ErrorKind::WriteZero.into())),
                    _ => Ok(()),
                })?;
            }
            poll_fn(|cx| unless_cut(&mut body, cx, |cx| Pin::new(&mut *writing).poll_flush(cx))).await?;
        }
    }
    Ok(())
}

/// Goes on with writing what came of a body, unless that is cut: a peer that takes nothing is not waited for.
fn unless_cut<T>(
    body: &mut Body,
    cx: &mut Context<'_>,
    mut write: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
) -> Poll<Result<T, BodyError>> {
    let written = write(cx);
    if written.is_pending() && body.ends_if_cut(cx) {
        return Poll::Ready(Err(BodyError::Cut));
    }
    written.map_err(BodyError::Tunnel)
}
