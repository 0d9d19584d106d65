//! What a connection of HTTP/2 has received and nobody has taken yet, kept small.
//!
//! h2 keeps each DATA frame for itself until its stream is read, and ends the whole connection once many small ones
//! wait: one reader that stalls would take the others with it. So the connection's own task takes them out after every
//! [`BURST`] of bytes, and puts small ones together. The window is given back only when the reader takes them: that is
//! what holds the sender back, and bounds what is kept.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::io::{AsyncRead, ReadBuf};

/// Bytes that are read from a connection before what waits is looked at.
const BURST: usize = 64 * 1024;

/// Frames shorter than this are put together. h2 counts those below 256 bytes as small.
const SMALL: usize = 1024;

/// Of one connection.
#[derive(Clone, Default)]
pub struct Backlog(Rc<Shared>);

#[derive(Default)]
struct Shared {
    read: Cell<usize>,
    streams: RefCell<Vec<Weak<RefCell<Waiting>>>>,
}

impl Backlog {
    /// The receiving half of a stream of this connection, which was polled once already, with this.
    pub fn stream(&self, stream: h2::RecvStream, first: Poll<Option<Result<Bytes, h2::Error>>>) -> Received {
        let mut waiting =
            Waiting { stream, whole: VecDeque::new(), small: BytesMut::new(), end: None, is_read: false };
        if let Poll::Ready(first) = first {
            waiting.take(first);
        }
        let waiting = Rc::new(RefCell::new(waiting));
        self.0.streams.borrow_mut().push(Rc::downgrade(&waiting));
        Received { waiting, taken: 0 }
    }

    /// Takes out what waits, if enough was read. To be called by the connection's task after it has polled it.
    pub fn absorb(&self) {
        if self.0.read.get() < BURST {
            return;
        }
        self.0.read.set(0);
        self.0.streams.borrow_mut().retain(|stream| {
            let Some(stream) = stream.upgrade() else { return false };
            stream.borrow_mut().absorb();
            true
        });
    }
}

/// A connection that lets its task look at what waits after every [`BURST`].
pub struct Bursts<T> {
    inner: T,
    backlog: Backlog,
}

impl<T> Bursts<T> {
    /// Wraps a connection.
    pub fn new(inner: T, backlog: &Backlog) -> Self {
        Self { inner, backlog: backlog.clone() }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Bursts<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = &self.backlog.0.read;
        if read.get() >= BURST {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        let read = &self.backlog.0.read;
        read.set(read.get() + buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

crate::delegate::delegate_writes!(Bursts);

/// What of one stream waits for its reader.
struct Waiting {
    stream: h2::RecvStream,
    whole: VecDeque<Bytes>,
    /// Small frames put together; they come after what is in `whole`.
    small: BytesMut,
    /// How the data ended, if it was found to have.
    end: Option<Result<(), h2::Error>>,
    /// Its reader is there and waits for the next frame, of which h2 tells it.
    is_read: bool,
}

impl Waiting {
    fn absorb(&mut self) {
        // Whoever waits is woken by h2, and takes it itself.
        if self.is_read || self.end.is_some() {
            return;
        }
        let mut context = Context::from_waker(Waker::noop());
        while self.end.is_none()
            && let Poll::Ready(next) = self.stream.poll_data(&mut context)
        {
            self.take(next);
        }
    }

    fn take(&mut self, next: Option<Result<Bytes, h2::Error>>) {
        match next {
            Some(Ok(data)) => self.keep(data),
            Some(Err(error)) => self.end = Some(Err(error)),
            None => self.end = Some(Ok(())),
        }
    }

    fn keep(&mut self, data: Bytes) {
        if data.len() < SMALL {
            self.small.extend_from_slice(&data);
            return;
        }
        if !self.small.is_empty() {
            self.whole.push_back(self.small.split().freeze());
        }
        self.whole.push_back(data);
    }

    /// The next of what was taken out.
    fn next_kept(&mut self) -> Option<Bytes> {
        let small = &mut self.small;
        self.whole.pop_front().or_else(|| {
            // All of it, so that nothing of the buffer stays.
            (!small.is_empty()).then(|| std::mem::take(small).freeze())
        })
    }

    fn is_empty(&self) -> bool {
        self.whole.is_empty() && self.small.is_empty()
    }
}

/// The receiving half of a stream.
///
/// Window is given back only when the next data is asked for, that is when what came before has been taken by the other
/// side: this is what carries back-pressure across.
pub struct Received {
    waiting: Rc<RefCell<Waiting>>,
    taken: usize,
}

impl Received {
    /// The next data; `None` at its end, after which there may be trailers.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, h2::Error>>> {
        let mut waiting = self.waiting.borrow_mut();
        if self.taken > 0 {
            // Fails only if more is released than was received, which the bookkeeping here excludes.
            let _ = waiting.stream.flow_control().release_capacity(self.taken);
            self.taken = 0;
        }
        if let Some(data) = waiting.next_kept() {
            self.taken = data.len();
            return Poll::Ready(Some(Ok(data)));
        }
        if let Some(end) = waiting.end.take() {
            return Poll::Ready(end.err().map(Err));
        }
        let polled = waiting.stream.poll_data(cx);
        waiting.is_read = polled.is_pending();
        if let Poll::Ready(Some(Ok(data))) = &polled {
            self.taken = data.len();
        }
        polled
    }

    /// The trailers, once the data has ended.
    pub fn poll_trailers(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<HeaderMap>, h2::Error>> {
        self.waiting.borrow_mut().stream.poll_trailers(cx)
    }

    /// Whether nothing follows, not even trailers.
    pub fn is_end_stream(&self) -> bool {
        let waiting = self.waiting.borrow();
        waiting.is_empty() && waiting.end.as_ref().is_none_or(Result::is_ok) && waiting.stream.is_end_stream()
    }
}
