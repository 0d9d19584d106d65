//! A connection of HTTP/1, to either side: what was read of it and not taken yet, what waits to be written to it, and
//! how a body goes into it.
//!
//! Its parts are borrowed for one step at a time, so that two may hold it: whoever reads a message, and whoever writes
//! the one that goes the other way.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use protocols::http1::write::{Around, Framing, Wrong};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Body, BodyError};

/// What is read at a time.
const CHUNK: usize = 16 << 10;

/// Pieces of a body up to this size are put together before they are written; larger ones are written from where they
/// are.
const GATHERED: usize = 4 << 10;

/// Above this nothing more is gathered.
const FULL: usize = 16 << 10;

/// Room that is kept for the next message; more is given back.
const KEPT: usize = 2 * FULL;

/// How many buffers a thread keeps for connections that will need one.
const SPARE_MAX: usize = 64;

thread_local! {
    static SPARE: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; CHUNK]);
}

/// What waits to be written.
#[derive(Default)]
struct Outbox {
    /// Heads, and what is gathered.
    front: Vec<u8>,
    /// A large piece, behind the front.
    piece: Bytes,
    /// What ends it.
    behind: &'static [u8],
    /// How much of all three is written.
    written: usize,
}

impl Outbox {
    fn len(&self) -> usize {
        self.front.len() + self.piece.len() + self.behind.len()
    }

    fn is_full(&self) -> bool {
        !self.piece.is_empty() || self.front.len() >= FULL
    }

    fn front(&mut self) -> &mut Vec<u8> {
        if self.front.capacity() == 0 {
            self.front = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
        }
        &mut self.front
    }

    /// Puts a piece behind what is there; there must be no large one yet.
    fn put(&mut self, piece: Bytes, around: Around) {
        let front = self.front();
        front.extend_from_slice(around.before.as_bytes());
        if piece.len() <= GATHERED {
            front.extend_from_slice(&piece);
            front.extend_from_slice(around.behind);
        } else {
            self.piece = piece;
            self.behind = around.behind;
        }
    }

    fn poll_write(
        &mut self,
        io: &mut (impl AsyncWrite + Unpin + ?Sized),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.len() {
            let mut io = Pin::new(&mut *io);
            let written = if self.piece.is_empty() {
                io.as_mut().poll_write(cx, &self.front[self.written..])
            } else {
                let mut skip = self.written;
                let parts = [&self.front[..], &self.piece, self.behind].map(|part| {
                    let skipped = skip.min(part.len());
                    skip -= skipped;
                    IoSlice::new(&part[skipped..])
                });
                // The first may be written already; what writes one part at a time would write nothing of it.
                let from = parts.iter().position(|part| !part.is_empty()).unwrap_or(0);
                io.as_mut().poll_write_vectored(cx, &parts[from..])
            };
            match ready!(written)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.clear();
        Poll::Ready(Ok(()))
    }

    fn clear(&mut self) {
        self.written = 0;
        self.piece = Bytes::new();
        self.behind = b"";
        self.front.clear();
        let front = std::mem::take(&mut self.front);
        if front.capacity() > 0 && front.capacity() <= KEPT {
            SPARE.with_borrow_mut(|spare| {
                if spare.len() < SPARE_MAX {
                    spare.push(front)
                }
            });
        }
    }
}

/// One connection.
pub struct Wire<T> {
    io: RefCell<T>,
    unread: RefCell<BytesMut>,
    outbox: RefCell<Outbox>,
    unflushed: Cell<bool>,
}

impl<T> Wire<T> {
    /// Of a connection.
    pub fn new(io: T) -> Self {
        Self {
            io: RefCell::new(io),
            unread: RefCell::default(),
            outbox: RefCell::default(),
            unflushed: Cell::new(false),
        }
    }

    /// The connection itself, for a look at it.
    pub fn with_io<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        look(&self.io.borrow())
    }

    /// What was read and not taken yet.
    pub fn with_unread<R>(&self, take: impl FnOnce(&mut BytesMut) -> R) -> R {
        take(&mut self.unread.borrow_mut())
    }

    /// Puts a head behind what waits to be written.
    pub fn put_head(&self, write: impl FnOnce(&mut Vec<u8>)) {
        write(self.outbox.borrow_mut().front());
    }

    /// Gives back the room that is not needed while nothing comes.
    pub fn rest(&self) {
        let mut unread = self.unread.borrow_mut();
        if unread.is_empty() && unread.capacity() > 0 {
            *unread = BytesMut::new();
        }
    }
}

impl<T: AsyncRead + Unpin> Wire<T> {
    /// Reads what is there, up to one chunk, behind what was read before; 0 at the end. Takes no more room than what has
    /// come needs: for heads.
    pub fn poll_read_some(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        SCRATCH.with_borrow_mut(|scratch| {
            let mut buffer = ReadBuf::new(scratch);
            ready!(Pin::new(&mut *self.io.borrow_mut()).poll_read(cx, &mut buffer))?;
            self.unread.borrow_mut().extend_from_slice(buffer.filled());
            Poll::Ready(Ok(buffer.filled().len()))
        })
    }

    /// The same into room of its own, which whoever takes it gets: for bodies.
    pub fn poll_read_chunk(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut unread = self.unread.borrow_mut();
        unread.reserve(CHUNK);
        let mut io = self.io.borrow_mut();
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut *io), cx, &mut *unread);
        if read.is_pending() && unread.is_empty() {
            *unread = BytesMut::new();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> Wire<T> {
    /// Writes all that waits.
    pub fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut outbox = self.outbox.borrow_mut();
        if outbox.len() > 0 {
            self.unflushed.set(true);
            ready!(outbox.poll_write(&mut *self.io.borrow_mut(), cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes all that waits, and sees that it goes out.
    pub fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_write(cx))?;
        if self.unflushed.get() {
            ready!(Pin::new(&mut *self.io.borrow_mut()).poll_flush(cx))?;
            self.unflushed.set(false);
        }
        Poll::Ready(Ok(()))
    }

    /// Ends the writing side.
    pub fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io.borrow_mut()).poll_shutdown(cx)
    }
}

/// Why a body stopped before its end.
#[derive(Debug)]
pub enum Stopped {
    /// It broke off.
    Source(BodyError),
    /// The connection did.
    Sink(io::Error),
    /// It is not what its head has said.
    Length(Wrong),
}

/// A body on its way into a connection, with what frames it.
pub struct Outgoing {
    body: Body,
    framing: Framing,
    over: bool,
}

impl Outgoing {
    /// A body whose head waits to be written.
    pub fn new(body: Body, framing: Framing) -> Self {
        Self { body, framing, over: framing == Framing::None }
    }

    /// Writes as much of it as there is, at the speed at which the peer takes it; ready at its end. What comes at once
    /// goes out at once, and nothing waits for what has not come.
    pub fn poll<T: AsyncWrite + Unpin>(
        &mut self,
        wire: &Wire<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        let polled = self.poll_on(wire, cx);
        if polled.is_pending() && self.body.ends_if_cut(cx) {
            return Poll::Ready(Err(Stopped::Source(BodyError::Cut)));
        }
        polled
    }

    fn poll_on<T: AsyncWrite + Unpin>(
        &mut self,
        wire: &Wire<T>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Stopped>> {
        while !self.over {
            if wire.outbox.borrow().is_full() {
                ready!(wire.poll_write(cx)).map_err(Stopped::Sink)?;
            }
            if let Poll::Ready(next) = Pin::new(&mut self.body).poll_frame(cx) {
                if let Err(stopped) = self.take(wire, next) {
                    // What came before it is the peer's all the same.
                    let _ = wire.poll_flush(cx);
                    return Poll::Ready(Err(stopped));
                }
            } else {
                ready!(wire.poll_flush(cx)).map_err(Stopped::Sink)?;
                return Poll::Pending;
            }
        }
        wire.poll_flush(cx).map_err(Stopped::Sink)
    }

    fn take<T>(
        &mut self,
        wire: &Wire<T>,
        next: Option<Result<http_body::Frame<Bytes>, BodyError>>,
    ) -> Result<(), Stopped> {
        let mut outbox = wire.outbox.borrow_mut();
        let trailers = match next.transpose().map_err(Stopped::Source)?.map(http_body::Frame::into_data) {
            Some(Ok(data)) => {
                if !data.is_empty() {
                    let around = self.framing.data(data.len()).map_err(Stopped::Length)?;
                    outbox.put(data, around);
                }
                if !self.body.is_end_stream() {
                    return Ok(());
                }
                None
            }
            // There is no third kind of frame today; one that we don't know is not ours to forward.
            Some(Err(frame)) => Some(frame.into_trailers().unwrap_or_default()),
            None => None,
        };
        self.over = true;
        if outbox.piece.is_empty() {
            return self.framing.end(outbox.front(), trailers.as_ref()).map_err(Stopped::Length);
        }
        // The end goes behind a piece that is written from where it is.
        match (self.framing, trailers) {
            (Framing::Chunked, None) => outbox.behind = b"\r\n0\r\n\r\n",
            (Framing::Length(left), _) if left > 0 => return Err(Stopped::Length(Wrong::Shorter)),
            _ => {}
        }
        Ok(())
    }
}

/// A connection as one that is read and written in the usual way, by whoever goes on with it.
pub struct Handle<T>(pub Rc<Wire<T>>);

impl<T: AsyncRead + Unpin> AsyncRead for Handle<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Handle<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0.io.borrow_mut()).poll_shutdown(cx)
    }
}
