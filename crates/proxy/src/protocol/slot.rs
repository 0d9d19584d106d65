//! Room for the one exchange that a connection of HTTP/1 has at a time, taken once for the connection.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

/// The room.
pub struct Slot<F>(Rc<RefCell<Pin<Box<Option<F>>>>>);

/// What runs in it; to drop it is to drop what runs. Movable, wherever that is.
pub struct Running<F>(Rc<RefCell<Pin<Box<Option<F>>>>>);

impl<F> Default for Slot<F> {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(Box::pin(None))))
    }
}

impl<F: Future> Slot<F> {
    /// Runs `work` there, in the place of what ran before.
    pub fn run(&self, work: F) -> Running<F> {
        self.0.borrow_mut().as_mut().set(Some(work));
        Running(self.0.clone())
    }
}

impl<F: Future> Future for Running<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.0.borrow_mut().as_mut().as_pin_mut() {
            Some(work) => work.poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<F> Drop for Running<F> {
    fn drop(&mut self) {
        self.0.borrow_mut().as_mut().set(None);
    }
}
