//! What hyper says by itself to an application of HTTP/1, made ours.
//!
//! Four things, for which hyper has no hook. What could be read in two ways is kept from it ([`protocols::framing`]): in
//! its place hyper gets what it refuses for certain, at its turn. The bare `400` and `431` that it writes to a request that it can't read are
//! held back, so that ours, with its code and its reason, is written instead: it writes such an answer only just before
//! it ends the connection with an error, and what looks like one and is not followed by that error is let through.
//! Interim answers of the upstream are written in between, where hyper has nothing unfinished. The `100 Continue` that
//! hyper writes when a body is first asked for is dropped if the upstream never said it.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::StatusCode;
use protocols::framing::Requests;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::interim::{self, Interim};

const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

const AUTOMATIC: [&[u8]; 2] =
    [b"HTTP/1.1 400 Bad Request\r\n", b"HTTP/1.1 431 Request Header Fields Too Large\r\n"];

/// An automatic answer is this long at most; longer ones have more in them than hyper writes by itself.
const AUTOMATIC_MAX: usize = 160;

/// What hyper refuses wherever it stands: a byte that no head, chunk size or trailer may have.
pub const POISON: &[u8] = b"\0\r\n\r\n";

/// The connection, with what is held back and what is put in between.
pub struct OwnAnswer<T> {
    inner: T,
    held: Held,
    current: Current,
    between: BytesMut,
    requests: Requests,
    /// What was read and is kept from hyper.
    unsound: Option<BytesMut>,
    /// What of the poison hyper has not got yet.
    poison: &'static [u8],
    /// Everything that hyper has written has gone out.
    flushed: bool,
}

/// The exchange that is waiting for its answer on this connection, if there is one.
#[derive(Clone, Default)]
pub struct Current(Rc<RefCell<Option<Interim>>>);

impl Current {
    /// A request has come.
    pub fn begin(&self) -> Interim {
        let interim = Interim::default();
        *self.0.borrow_mut() = Some(interim.clone());
        interim
    }

    /// Its answer is there.
    pub fn end(&self) {
        self.0.borrow_mut().take();
    }
}

/// What is held back, for whoever sees how the connection ended.
#[derive(Clone, Default)]
pub struct Held(Rc<Kept>);

#[derive(Default)]
struct Kept {
    refusal: RefCell<Vec<u8>>,
    fault: Cell<Option<&'static str>>,
}

impl Held {
    /// Whether the last thing that was written is an automatic refusal.
    pub fn is_refusal(&self) -> bool {
        !self.0.refusal.borrow().is_empty()
    }

    /// Forgets it: something else is said instead.
    pub fn discard(&self) {
        self.0.refusal.borrow_mut().clear();
    }

    /// What could have been read in two ways, if something could.
    pub fn fault(&self) -> Option<&'static str> {
        self.0.fault.get()
    }
}

impl<T> OwnAnswer<T> {
    /// Wraps a connection.
    pub fn new(inner: T) -> (Self, Held, Current) {
        let (held, current) = (Held::default(), Current::default());
        let own = Self {
            inner,
            held: held.clone(),
            current: current.clone(),
            between: BytesMut::new(),
            requests: Requests::default(),
            unsound: None,
            poison: b"",
            flushed: true,
        };
        (own, held, current)
    }

    /// The connection itself, and of what was read from it all that hyper has not taken; `unread` is what hyper says
    /// that is.
    pub fn into_parts(self, unread: Bytes) -> (T, Bytes) {
        let given = &POISON[..POISON.len() - self.poison.len()];
        match (self.unsound, unread.strip_suffix(given)) {
            (Some(kept), Some(sound)) => (self.inner, [sound, &kept].concat().into()),
            _ => (self.inner, unread),
        }
    }

    /// Looks at what was just read, and gives hyper only what can be read in one way.
    fn follow(&mut self, buf: &mut ReadBuf<'_>, before: usize) {
        let Err(fault) = self.requests.follow(&buf.filled()[before..]) else { return };
        self.held.0.fault.set(Some(fault.why.0));
        self.unsound = Some(BytesMut::from(&buf.filled()[before + fault.sound..]));
        buf.set_filled(before + fault.sound);
        // There may be too little space for it now, or when it is asked for again.
        self.poison = POISON;
        self.put_poison(buf);
    }

    fn put_poison(&mut self, buf: &mut ReadBuf<'_>) {
        let length = self.poison.len().min(buf.remaining());
        buf.put_slice(&self.poison[..length]);
        self.poison = &self.poison[length..];
    }
}

/// Where an automatic refusal begins, if the bytes end with one.
fn automatic_tail(bytes: &[u8]) -> Option<usize> {
    // Most writes end with a body, and need not be searched.
    if !bytes.ends_with(b"\r\n\r\n") {
        return None;
    }
    let from = bytes.len().saturating_sub(AUTOMATIC_MAX);
    let tail = &bytes[from..];
    let start =
        AUTOMATIC.iter().find_map(|line| tail.windows(line.len()).rposition(|window| window == *line))?;
    let head = &tail[start..];
    let bare = head.windows(4).filter(|window| window == b"\r\n\r\n").count() == 1
        && head.windows(17).any(|window| window.eq_ignore_ascii_case(b"content-length: 0"));
    bare.then_some(from + start)
}

impl<T: AsyncWrite + Unpin> OwnAnswer<T> {
    /// Writes the interim answers that have come, where hyper has nothing unfinished.
    fn poll_between(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let current = self.current.0.borrow().clone();
        if let Some(current) = current.filter(|_| self.flushed) {
            while let Poll::Ready(response) = current.poll_next(cx) {
                // hyper says 100 by itself, once the body is asked for.
                if response.status() != StatusCode::CONTINUE {
                    self.between.extend_from_slice(&interim::as_http1(&response));
                }
            }
        }
        if self.between.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while !self.between.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.between))?;
            self.between.advance(written);
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn is_unwanted_continue(&self, buf: &[u8]) -> bool {
        buf == CONTINUE && self.current.0.borrow().as_ref().is_some_and(Interim::is_silent)
    }

    /// Lets through what was held: it was not the last word after all.
    fn poll_release(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut held = self.held.0.refusal.borrow_mut();
        while !held.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &held))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            held.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for OwnAnswer<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(Err(error)) = self.poll_between(cx) {
            return Poll::Ready(Err(error));
        }
        if self.unsound.is_some() {
            // Nothing after it has a meaning; whoever reads on is kept waiting.
            if self.poison.is_empty() {
                return Poll::Pending;
            }
            self.put_poison(buf);
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        self.follow(buf, before);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for OwnAnswer<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_between(cx))?;
        ready!(self.poll_release(cx))?;
        if self.is_unwanted_continue(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        self.flushed = false;
        match automatic_tail(buf) {
            None => Pin::new(&mut self.inner).poll_write(cx, buf),
            Some(0) => {
                self.held.0.refusal.borrow_mut().extend_from_slice(buf);
                Poll::Ready(Ok(buf.len()))
            }
            Some(start) => Pin::new(&mut self.inner).poll_write(cx, &buf[..start]),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_between(cx))?;
        ready!(self.poll_release(cx))?;
        // hyper flattens what is this short; anything larger is no automatic answer.
        let total: usize = bufs.iter().map(|buf| buf.len()).sum();
        if total <= AUTOMATIC_MAX
            && let Some(first) = bufs.iter().find(|buf| !buf.is_empty())
        {
            return self.poll_write(cx, first);
        }
        self.flushed = false;
        Pin::new(&mut self.inner).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.inner).poll_flush(cx))?;
        self.flushed = true;
        self.poll_between(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_release(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bare_refusal_at_the_end_is_held() {
        let automatic = b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(automatic_tail(automatic), Some(0));
        let before = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
        assert_eq!(automatic_tail(&[&before[..], automatic].concat()), Some(before.len()));
        assert_eq!(automatic_tail(before), None);
        let with_body = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 4\r\n\r\noops";
        assert_eq!(automatic_tail(with_body), None);
    }
}
