//! The body of a message of HTTP/1, read from its connection by whoever wants it.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use protocols::http1::body::{Piece, Reader};
use tokio::io::AsyncRead;

use super::body::{BodyError, Broken, WatchedBody};
use super::wire::Wire;

/// Where one body on a connection is.
pub struct Inward {
    reader: RefCell<Reader>,
    /// Somebody has it in his hands.
    lent: Cell<bool>,
    /// Somebody waits for bytes of it, and will see the connection's end.
    reading: Cell<bool>,
    /// It broke off, or could be read in two ways: nothing after it has a meaning.
    broken: Cell<bool>,
    /// Who waits for it to be over or given back.
    waiting: RefCell<Option<Waker>>,
}

impl Default for Inward {
    fn default() -> Self {
        Self {
            reader: RefCell::new(Reader::EMPTY),
            lent: Cell::default(),
            reading: Cell::default(),
            broken: Cell::default(),
            waiting: RefCell::default(),
        }
    }
}

impl Inward {
    /// Begins another body; gives it as one piece if all of it has come.
    pub fn begin<T>(&self, reader: Reader, wire: &Wire<T>) -> Option<Bytes> {
        let left = reader.left().and_then(|left| usize::try_from(left).ok());
        let whole = wire.with_unread(|unread| match left.filter(|left| *left <= unread.len())? {
            0 => Some(Bytes::new()),
            left => Some(unread.split_to(left).freeze()),
        });
        *self.reader.borrow_mut() = if whole.is_some() { Reader::EMPTY } else { reader };
        whole
    }

    /// Whether all of it was taken.
    pub fn is_over(&self) -> bool {
        self.reader.borrow().is_over()
    }

    /// Whether it broke off.
    pub fn is_broken(&self) -> bool {
        self.broken.get()
    }

    /// Whether somebody waits for bytes of it.
    pub fn is_read(&self) -> bool {
        self.reading.get()
    }

    /// Whether nobody takes any more of it.
    pub fn is_left(&self) -> bool {
        !self.lent.get() || self.is_over() || self.broken.get()
    }

    /// Ready once nobody does.
    pub fn poll_left(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.is_left() {
            return Poll::Ready(());
        }
        self.await_end(cx);
        Poll::Pending
    }

    /// Wakes whoever polls once it is over, broken, or given back.
    pub fn await_end(&self, cx: &mut Context<'_>) {
        let mut waiting = self.waiting.borrow_mut();
        match &mut *waiting {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waiting = Some(cx.waker().clone()),
        }
    }

    /// Throws away what of it was read already; says whether that was all.
    pub fn discard<T>(&self, wire: &Wire<T>) -> bool {
        wire.with_unread(|unread| {
            let mut reader = self.reader.borrow_mut();
            while let Ok(Piece::Data(_) | Piece::Trailers(_)) = reader.next(unread) {}
            reader.is_over()
        })
    }

    fn wake(&self) {
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }

    /// The next frame of it.
    pub fn poll_frame<T: AsyncRead + Unpin>(
        &self,
        wire: &Wire<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.broken.get() {
            return Poll::Ready(None);
        }
        let frame = ready!(self.poll_piece(wire, cx));
        if matches!(frame, Some(Err(_))) {
            self.broken.set(true);
        }
        if self.broken.get() || self.is_over() {
            self.wake();
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Http1)))
    }

    fn poll_piece<T: AsyncRead + Unpin>(
        &self,
        wire: &Wire<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        loop {
            let piece = wire.with_unread(|unread| self.reader.borrow_mut().next(unread));
            match piece.map_err(Broken::Malformed) {
                Ok(Piece::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Piece::Trailers(trailers)) => return Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(Piece::End) => return Poll::Ready(None),
                Ok(Piece::More) => {}
                Err(broken) => return Poll::Ready(Some(Err(broken))),
            }
            self.reading.set(true);
            let read = ready!(wire.poll_read_chunk(cx));
            self.reading.set(false);
            match read {
                Ok(0) if self.reader.borrow_mut().end() => return Poll::Ready(None),
                Ok(0) => return Poll::Ready(Some(Err(Broken::Closed))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(Broken::Io(error)))),
            }
        }
    }

    /// How much of it is left.
    pub fn size_hint(&self) -> SizeHint {
        self.reader.borrow().left().map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

/// The body of a request, in somebody's hands.
pub struct Lent<T> {
    wire: Rc<Wire<T>>,
    inward: Rc<Inward>,
}

impl<T> Lent<T> {
    /// Of the body that was begun.
    pub fn new(wire: Rc<Wire<T>>, inward: Rc<Inward>) -> Self {
        inward.lent.set(true);
        Self { wire, inward }
    }
}

impl<T> Drop for Lent<T> {
    fn drop(&mut self) {
        self.inward.lent.set(false);
        self.inward.reading.set(false);
        self.inward.wake();
    }
}

impl<T: AsyncRead + Unpin> WatchedBody for Lent<T> {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.inward.poll_frame(&self.wire, cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inward.is_over()
    }

    fn size_hint(&self) -> SizeHint {
        self.inward.size_hint()
    }

    fn is_cut(&self) -> bool {
        false
    }
}
