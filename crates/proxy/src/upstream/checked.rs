//! Keeps from hyper what could be read in two ways in an upstream's answer ([`protocols::framing`]): in its place hyper
//! gets what it refuses for certain.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use protocols::framing::Answers;
use tokio::io::{AsyncRead, ReadBuf};

use crate::protocol::own_answer::POISON;

/// A connection of HTTP/1 to an upstream.
pub struct Checked<T> {
    inner: T,
    heads: Heads,
    poison: &'static [u8],
}

/// What is known of the answers on one connection.
#[derive(Clone, Default)]
pub struct Heads(Rc<Shared>);

#[derive(Default)]
struct Shared {
    answers: RefCell<Answers>,
    fault: Cell<Option<&'static str>>,
}

impl Heads {
    /// A request is about to be sent.
    pub fn expect(&self) {
        self.0.answers.borrow_mut().expect();
    }

    /// What could have been read in two ways, if something could.
    pub fn fault(&self) -> Option<&'static str> {
        self.0.fault.get()
    }
}

impl<T> Checked<T> {
    /// Wraps a connection.
    pub fn new(inner: T) -> (Self, Heads) {
        let heads = Heads::default();
        (Self { inner, heads: heads.clone(), poison: b"" }, heads)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Checked<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.heads.fault().is_none() {
            let before = buf.filled().len();
            ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
            let followed = self.heads.0.answers.borrow_mut().follow(&buf.filled()[before..]);
            let Err(fault) = followed else { return Poll::Ready(Ok(())) };
            buf.set_filled(before + fault.sound);
            self.heads.0.fault.set(Some(fault.why.0));
            self.poison = POISON;
        }
        // After that the connection is at its end, for us.
        let length = self.poison.len().min(buf.remaining());
        buf.put_slice(&self.poison[..length]);
        self.poison = &self.poison[length..];
        Poll::Ready(Ok(()))
    }
}

crate::delegate::delegate_writes!(Checked);
