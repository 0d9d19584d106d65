//! What the two sides of one exchange tell each other beside the message: interim answers (1xx) on their way from the
//! upstream to the application, the body that waits for one of them, the code with which either gave up, how the names
//! of fields were spelt, and what was sent.
//!
//! RFC 9110 §15.2: a proxy forwards interim answers.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use protocols::http1::head::Spelling;

use super::Body;
use super::body::{BodyError, WatchedBody};
use super::message::{Message, Spare};

/// How long a body waits for the upstream's `100 Continue` (RFC 9110 §10.1.1: not for ever; servers may ignore it).
/// Common clients wait one second.
const PATIENCE: Duration = Duration::from_secs(1);

/// Interim answers that are kept for an application that does not read.
const QUEUE_MAX: usize = 16;

/// Of one exchange; shared by its two sides.
#[derive(Clone, Default)]
pub struct Interim(Rc<Shared>);

#[derive(Default)]
struct Shared {
    queue: RefCell<VecDeque<Response<()>>>,
    application: RefCell<Option<Waker>>,
    /// Whether a body that waits may go.
    open: Cell<bool>,
    muted: Cell<bool>,
    body: RefCell<Option<Waker>>,
    cancelled: Cell<Option<h2::Reason>>,
    given_up: Cell<Option<h2::Reason>>,
    sent: RefCell<Option<Sent>>,
    asked: RefCell<Option<Spelling>>,
    answered: RefCell<Option<Spelling>>,
}

/// A request that was sent.
pub enum Sent {
    /// Itself, without its body.
    Whole(Box<Message>),
    /// What is kept of one that was given away.
    Spare(Spare),
}

impl Interim {
    /// Relays nothing from now on but the bare `100`: what else an upstream says is not searched.
    pub fn mute(&self) {
        self.0.muted.set(true);
    }

    /// An interim answer has come from the upstream.
    pub fn push(&self, status: StatusCode, headers: &HeaderMap) {
        if status == StatusCode::CONTINUE {
            self.open();
        }
        let muted = self.0.muted.get();
        if muted && status != StatusCode::CONTINUE {
            return;
        }
        let mut response = Response::new(());
        *response.status_mut() = status;
        if !muted {
            response.headers_mut().clone_from(headers);
        }
        protocols::http::strip_hop_by_hop(response.headers_mut());
        // RFC 9110 §8.6: an interim answer has no Content-Length.
        for name in [http::header::ALT_SVC, http::header::CONTENT_LENGTH] {
            response.headers_mut().remove(name);
        }
        let mut queue = self.0.queue.borrow_mut();
        if queue.len() < QUEUE_MAX {
            queue.push_back(response);
        }
        drop(queue);
        wake(&self.0.application);
    }

    /// The application has reset its stream with this code.
    pub fn cancel(&self, reason: h2::Reason) {
        self.0.cancelled.set(Some(reason));
    }

    /// The code with which the application has reset its stream, if it has.
    pub fn cancelled(&self) -> Option<h2::Reason> {
        self.0.cancelled.get()
    }

    /// The upstream has reset its stream with this code before its answer, and that is what the application is to see.
    pub fn give_up(&self, reason: h2::Reason) {
        self.0.given_up.set(Some(reason));
    }

    /// The code of that, if so.
    pub fn given_up(&self) -> Option<h2::Reason> {
        self.0.given_up.get()
    }

    /// The next one for the application; else wakes whoever polls when there is one.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Response<()>> {
        match self.0.queue.borrow_mut().pop_front() {
            Some(response) => Poll::Ready(response),
            None => {
                register(&self.0.application, cx);
                Poll::Pending
            }
        }
    }

    /// The request as it was sent, without its body, should it have to be sent again.
    pub fn sent(&self, request: Sent) {
        *self.0.sent.borrow_mut() = Some(request);
    }

    /// That request.
    pub fn take_sent(&self) -> Option<Box<Message>> {
        self.0.sent.take().map(|sent| match sent {
            Sent::Whole(request) => request,
            Sent::Spare(head) => head.restore(),
        })
    }

    /// How the application has spelt the names of the request's fields.
    pub fn asked(&self, spelling: Spelling) {
        *self.0.asked.borrow_mut() = Some(spelling);
    }

    /// The same, for whoever writes them.
    pub fn with_asked<R>(&self, write: impl FnOnce(Option<&Spelling>) -> R) -> R {
        write(self.0.asked.borrow().as_ref())
    }

    /// How the upstream has spelt those of the answer's.
    pub fn answered(&self, spelling: Spelling) {
        *self.0.answered.borrow_mut() = Some(spelling);
    }

    /// The same, for whoever writes them.
    pub fn with_answered<R>(&self, write: impl FnOnce(Option<&Spelling>) -> R) -> R {
        write(self.0.answered.borrow().as_ref())
    }

    fn open(&self) {
        self.0.open.set(true);
        wake(&self.0.body);
    }

    /// A body that is not asked for before the upstream wants it.
    pub fn guard(&self, body: Body) -> Body {
        if matches!(body, Body::Empty) {
            return body;
        }
        let patience = Box::pin(tokio::time::sleep(PATIENCE));
        Body::Watched(Box::new(Expecting { body, interim: self.clone(), patience }))
    }
}

struct Expecting {
    body: Body,
    interim: Interim,
    patience: Pin<Box<tokio::time::Sleep>>,
}

impl WatchedBody for Expecting {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let shared = &self.interim.0;
        if !shared.open.get() {
            if self.patience.as_mut().poll(cx).is_pending() {
                register(&shared.body, cx);
                return Poll::Pending;
            }
            self.interim.open();
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_cut(&self) -> bool {
        self.body.is_cut()
    }
}

fn register(place: &RefCell<Option<Waker>>, cx: &Context<'_>) {
    let mut place = place.borrow_mut();
    if !place.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *place = Some(cx.waker().clone());
    }
}

fn wake(place: &RefCell<Option<Waker>>) {
    if let Some(waker) = place.take() {
        waker.wake();
    }
}
