//! A request's body that can be had back for as long as nothing of it was taken.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};

use crate::protocol::Body;
use crate::protocol::body::{BodyError, WatchedBody};

/// The owner's half.
pub struct Loan(Rc<Shared>);

struct Shared {
    body: RefCell<Body>,
    begun: Cell<bool>,
}

impl Loan {
    /// Lends a body; the second half is what is sent.
    pub fn new(body: Body) -> (Self, Body) {
        let shared = Rc::new(Shared { body: RefCell::new(body), begun: Cell::new(false) });
        (Self(shared.clone()), Body::Watched(Box::new(Lent(shared))))
    }

    /// The body, if nothing of it was taken.
    pub fn take_back(&self) -> Option<Body> {
        (!self.0.begun.get()).then(|| self.0.body.replace(Body::Empty))
    }
}

struct Lent(Rc<Shared>);

impl WatchedBody for Lent {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = Pin::new(&mut *self.0.body.borrow_mut()).poll_frame(cx);
        if polled.is_ready() {
            self.0.begun.set(true);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.0.body.borrow().is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.body.borrow().size_hint()
    }

    fn is_cut(&self) -> bool {
        self.0.body.borrow().is_cut()
    }
}
