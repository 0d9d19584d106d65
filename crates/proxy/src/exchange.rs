//! Exchanges that are open: judged again whenever something changes, and cut if they are no longer allowed.
//!
//! Each worker has one [`Register`]. What is in it is judged again at each new snapshot or revocation, and when the
//! decision's own time is over; both within a second (docs/architecture.md, "Bounds").

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use model::{Code, Failure, UnixMillis};

use crate::protocol::Body;
use crate::protocol::body::{BodyError, WatchedBody};

/// How often decisions that end by themselves are looked at: half of the bound of one second.
const TICK: Duration = Duration::from_millis(500);

/// One exchange, shared by its two directions and the register.
#[derive(Default)]
pub struct Open {
    cut: Cell<Option<Code>>,
    wakers: RefCell<[Option<Waker>; 2]>,
    bytes_up: Cell<u64>,
    bytes_up_max: Option<u64>,
    bytes_down: Cell<u64>,
}

/// Which of the two directions of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the application.
    Up,
    /// To the application.
    Down,
}

impl Open {
    /// One whose request may have this many bytes.
    pub fn bounded(bytes_up_max: u64) -> Self {
        Self { bytes_up_max: Some(bytes_up_max), ..Self::default() }
    }

    /// Why it was cut, if it was.
    pub fn cut_by(&self) -> Option<Code> {
        self.cut.get()
    }

    /// Body bytes so far, up and down.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_up.get(), self.bytes_down.get())
    }

    fn cut(&self, code: Code) {
        self.cut.set(Some(code));
        self.wakers.borrow_mut().iter_mut().filter_map(Option::take).for_each(Waker::wake);
    }

    /// Ready once the exchange is cut; else wakes whoever polls this direction when it is.
    pub fn poll_cut(&self, direction: Direction, cx: &mut Context<'_>) -> Poll<Code> {
        if let Some(code) = self.cut.get() {
            return Poll::Ready(code);
        }
        let slot = &mut self.wakers.borrow_mut()[direction as usize];
        match slot {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *slot = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    /// Runs `work` until it is done or the exchange is cut. Pinned by the caller: an async function holds what it is
    /// given twice, and this is much.
    ///
    /// # Errors
    /// The code by which it was cut.
    pub async fn unless_cut<T>(&self, mut work: Pin<&mut impl Future<Output = T>>) -> Result<T, Code> {
        std::future::poll_fn(|cx| match self.poll_cut(Direction::Down, cx) {
            Poll::Ready(code) => Poll::Ready(Err(code)),
            Poll::Pending => work.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    fn count(&self, direction: Direction, bytes: usize) {
        let counter = if direction == Direction::Up { &self.bytes_up } else { &self.bytes_down };
        counter.set(counter.get() + bytes as u64);
        if direction == Direction::Up && self.bytes_up_max.is_some_and(|max| counter.get() > max) {
            self.cut(Code::BodyTooLarge);
        }
    }
}

/// Judges an exchange anew: until when it may go on, or why not.
pub type Judge = Box<dyn Fn(UnixMillis) -> Result<UnixMillis, Failure>>;

struct Entry {
    open: Rc<Open>,
    judge: Judge,
    valid_until: UnixMillis,
}

/// All open exchanges of one worker.
#[derive(Default)]
pub struct Register {
    entries: RefCell<HashMap<u64, Entry>>,
    next: Cell<u64>,
}

/// Takes the exchange out of the register when dropped.
pub struct Registration {
    register: Rc<Register>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.register.entries.borrow_mut().remove(&self.id);
    }
}

impl Register {
    /// Watches an exchange whose decision is good until `valid_until`.
    pub fn enter(self: &Rc<Self>, open: Rc<Open>, valid_until: UnixMillis, judge: Judge) -> Registration {
        let id = self.next.get();
        self.next.set(id + 1);
        self.entries.borrow_mut().insert(id, Entry { open, judge, valid_until });
        Registration { register: self.clone(), id }
    }

    /// How many exchanges are open.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.entries.borrow().is_empty()
    }

    /// Judges all exchanges again.
    pub fn judge_all(&self, now: UnixMillis) {
        self.judge_where(now, |_| true);
    }

    fn judge_due(&self, now: UnixMillis) {
        self.judge_where(now, |entry| entry.valid_until <= now);
    }

    fn judge_where(&self, now: UnixMillis, due: impl Fn(&Entry) -> bool) {
        for entry in self.entries.borrow_mut().values_mut().filter(|entry| due(entry)) {
            match (entry.judge)(now) {
                Ok(valid_until) => entry.valid_until = valid_until,
                Err(failure) => entry.open.cut(failure.code),
            }
        }
    }

    /// Looks at decisions whose time is over, for as long as the worker lives.
    pub async fn watch_time(self: Rc<Self>) {
        loop {
            tokio::time::sleep(TICK).await;
            if !self.is_empty() {
                self.judge_due(UnixMillis::from_system(std::time::SystemTime::now()));
            }
        }
    }
}

/// A body that counts its bytes and ends when its exchange is cut.
pub struct Guarded {
    body: Body,
    open: Rc<Open>,
    direction: Direction,
    on_end: Option<OnEnd>,
}

/// How a body ended.
#[derive(Debug)]
pub enum End<'a> {
    /// It was carried to its end.
    Complete,
    /// It broke off.
    Broken(&'a BodyError),
    /// Nobody wanted the rest.
    Dropped,
}

/// Told how a body ended, exactly once.
pub type OnEnd = Box<dyn FnOnce(End<'_>)>;

impl Guarded {
    /// Guards the request's body.
    pub fn up(body: Body, open: Rc<Open>) -> Body {
        if matches!(body, Body::Empty) {
            return body;
        }
        Body::Watched(Box::new(Self { body, open, direction: Direction::Up, on_end: None }))
    }

    /// Guards the answer's body.
    pub fn down(body: Body, open: Rc<Open>, on_end: OnEnd) -> Body {
        Body::Watched(Box::new(Self { body, open, direction: Direction::Down, on_end: Some(on_end) }))
    }

    fn end(&mut self, end: End<'_>) {
        if let Some(on_end) = self.on_end.take() {
            on_end(end);
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end(End::Dropped);
    }
}

impl WatchedBody for Guarded {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.open.poll_cut(self.direction, cx).is_ready() {
            self.end(End::Broken(&BodyError::Cut));
            return Poll::Ready(Some(Err(BodyError::Cut)));
        }
        let polled = std::pin::Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.open.count(self.direction, frame.data_ref().map_or(0, Bytes::len));
                if self.body.is_end_stream() || frame.is_trailers() {
                    self.end(End::Complete);
                }
            }
            Poll::Ready(Some(Err(error))) => self.end(End::Broken(error)),
            Poll::Ready(None) => self.end(End::Complete),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
