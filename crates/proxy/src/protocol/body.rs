//! One body type for both versions of HTTP and both directions: streamed, never buffered.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};

use super::backlog::{Backlog, Received};

/// A message body on its way through.
pub enum Body {
    /// Nothing.
    Empty,
    /// An answer of ours, or a message that had come as a whole.
    Full(Bytes),
    /// From an HTTP/2 peer.
    Http2(Http2Body),
    /// One of the above with whoever watches it.
    Watched(Box<dyn WatchedBody>),
}

/// A body that does something besides carrying bytes: counts, gives a connection back, can be cut.
pub trait WatchedBody {
    /// As [`HttpBody::poll_frame`].
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>>;
    /// As [`HttpBody::is_end_stream`].
    fn is_end_stream(&self) -> bool;
    /// As [`HttpBody::size_hint`].
    fn size_hint(&self) -> SizeHint;
    /// Whether it was cut: then whoever can't take more of it need not be waited for. What wraps a body answers for it.
    fn is_cut(&self) -> bool;
}

/// Why a body ended before its end. Carried to the other side as a reset or a truncated message, never as an end.
#[derive(Debug)]
pub enum BodyError {
    /// An HTTP/1 peer broke off.
    Http1(Broken),
    /// An HTTP/2 peer reset the stream, or its connection ended.
    Http2(h2::Error),
    /// A tunnel broke off.
    Tunnel(std::io::Error),
    /// Cut by us: the exchange's authority has ended.
    Cut,
}

/// How a body of HTTP/1 broke off.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// It could be read in two ways.
    #[error("{0}")]
    Malformed(protocols::Malformed),
    /// Its connection ended before it did.
    #[error("the connection ended")]
    Closed,
    /// Its connection broke.
    #[error("{0}")]
    Io(std::io::Error),
}

impl BodyError {
    /// The reset code to carry across, where the cause has one (RFC 9113 §7).
    pub fn reason(&self) -> h2::Reason {
        match self {
            Self::Http2(error) => error.reason().unwrap_or(h2::Reason::INTERNAL_ERROR),
            Self::Http1(_) | Self::Tunnel(_) => h2::Reason::INTERNAL_ERROR,
            Self::Cut => h2::Reason::CANCEL,
        }
    }
}

impl fmt::Display for BodyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http1(error) => write!(f, "body broke off: {error}"),
            Self::Http2(error) => write!(f, "body broke off: {error}"),
            Self::Tunnel(error) => write!(f, "tunnel broke off: {error}"),
            Self::Cut => f.write_str("body cut: the call is no longer allowed"),
        }
    }
}

impl std::error::Error for BodyError {}

impl Body {
    /// A message's body that has come as a whole.
    pub fn whole(bytes: Bytes) -> Self {
        if bytes.is_empty() { Self::Empty } else { Self::Full(bytes) }
    }

    /// Whether it was cut.
    pub fn is_cut(&self) -> bool {
        matches!(self, Self::Watched(body) if body.is_cut())
    }

    /// For whoever waits for a peer that takes nothing: if this was cut the peer is not waited for any longer, and the body
    /// is told that it has ended.
    pub fn ends_if_cut(&mut self, cx: &mut Context<'_>) -> bool {
        let is_cut = self.is_cut();
        if is_cut {
            let _ = Pin::new(self).poll_frame(cx);
        }
        is_cut
    }

    /// Takes a body as h2 gives it, of the connection with this backlog; one piece if all of it has come in one frame.
    pub fn from_http2(mut stream: h2::RecvStream, backlog: &Backlog) -> Self {
        if stream.is_end_stream() {
            return Self::Empty;
        }
        let first = match stream.poll_data(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(data))) if stream.is_end_stream() => {
                // Fails only if more is released than was received.
                let _ = stream.flow_control().release_capacity(data.len());
                return Self::whole(data);
            }
            polled => polled,
        };
        Self::Http2(Http2Body::new(backlog.stream(stream, first)))
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Full(bytes) if bytes.is_empty() => Poll::Ready(None),
            Self::Full(bytes) => Poll::Ready(Some(Ok(Frame::data(std::mem::take(bytes))))),
            Self::Http2(body) => body.poll_frame(cx),
            Self::Watched(body) => body.poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(bytes) => bytes.is_empty(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Watched(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Self::Http2(body) => body.size_hint(),
            Self::Watched(body) => body.size_hint(),
        }
    }
}

/// The receiving half of an HTTP/2 stream as a body.
pub struct Http2Body {
    stream: Received,
    data_done: bool,
}

impl Http2Body {
    fn new(stream: Received) -> Self {
        Self { stream, data_done: false }
    }

    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if !self.data_done {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                // Also NO_ERROR: a message that had ended before it (RFC 9113 §8.1) has ended here too, by h2's account.
                Some(Err(error)) => return Poll::Ready(Some(Err(BodyError::Http2(error)))),
                None => self.data_done = true,
            }
        }
        let trailers: Option<HeaderMap> = ready!(self.stream.poll_trailers(cx)).map_err(BodyError::Http2)?;
        Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
