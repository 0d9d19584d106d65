//! Exchanges that are open: judged again whenever something changes, and cut if they are no longer allowed.
//!
//! Each worker has one [`Register`]. What is in it is judged again at each new snapshot or revocation, and when the
//! decision's own time is over; both within a second (docs/architecture.md, "Bounds").

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use model::{Code, Failure, UnixMillis};
use slab::Slab;

use crate::memory::Budget;
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
    still: Still,
    broken_up: Cell<bool>,
    /// What happens when the request's body has ended too.
    at_upload_end: RefCell<Option<Box<dyn FnOnce()>>>,
}

/// Whether something moves, looked at once a tick: reading a clock for each frame would cost more than all of this.
#[derive(Default)]
struct Still {
    /// Directions that have a body which has not ended.
    carrying: Cell<[bool; 2]>,
    /// Whether the application owes the next bytes.
    owed: Cell<bool>,
    moved: Cell<bool>,
    ticks: Cell<u32>,
    /// Ticks in which something must move; 0 for no bound.
    patience: Cell<u32>,
    /// Ticks that are left for an answer that is awaited; 0 if none is.
    answer: Cell<u32>,
    late: Cell<bool>,
}

fn ticks(time: Duration) -> u32 {
    u32::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(0)
}

/// Above the memory cap, what stands still for this many ticks is cut.
const PATIENCE_OVER: u32 = 2;

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

    /// Whether the request's body broke off before its end, or was not valid.
    pub fn is_broken_up(&self) -> bool {
        self.broken_up.get()
    }

    /// Body bytes so far, up and down.
    pub fn bytes(&self) -> (u64, u64) {
        (self.bytes_up.get(), self.bytes_down.get())
    }

    fn cut(&self, code: Code) {
        self.cut.set(Some(code));
        self.wake();
    }

    fn wake(&self) {
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

    /// Waits for an answer as long as that, give or take a tick: `None` if it is late. To be polled by whoever polls
    /// [`Self::unless_cut`]. A timer for each answer would cost more than the tick that is there anyway.
    pub async fn within<T>(
        &self,
        patience: Duration,
        mut answer: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        self.still.late.set(false);
        // The first tick may come at once.
        self.still.answer.set(ticks(patience).saturating_add(1));
        let answered = std::future::poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if self.still.late.get() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        let answered = answered.await;
        self.still.answer.set(0);
        answered
    }

    /// How long a body may stand still from now on.
    pub fn be_patient(&self, patience: Duration) {
        self.still.patience.set(ticks(patience));
    }

    /// Whether the request's body has not ended yet.
    pub fn is_uploading(&self) -> bool {
        self.still.carrying.get()[Direction::Up as usize]
    }

    /// Runs `last` once the request's body, which is being carried, has ended.
    pub fn at_upload_end(&self, last: impl FnOnce() + 'static) {
        *self.at_upload_end.borrow_mut() = Some(Box::new(last));
    }

    fn carry(&self, direction: Direction, carrying: bool) {
        let mut both = self.still.carrying.get();
        both[direction as usize] = carrying;
        self.still.carrying.set(both);
    }

    /// One tick of the clock; `over` if the memory cap is reached.
    fn tick(&self, over: bool) {
        let still = &self.still;
        if let Some(left) = still.answer.get().checked_sub(1) {
            still.answer.set(left);
            still.late.set(left == 0);
            if left == 0 {
                self.wake();
            }
        }
        if still.moved.replace(false) || still.carrying.get() == [false, false] {
            still.ticks.set(0);
            return;
        }
        let ticks = still.ticks.get() + 1;
        still.ticks.set(ticks);
        // What has moved just before the tick has not stood still for all of it.
        if still.patience.get() > 0 && ticks > still.patience.get() {
            self.cut(self.stalled_by());
        } else if over && ticks > PATIENCE_OVER {
            self.cut(Code::OverLimit);
        }
    }

    fn stalled_by(&self) -> Code {
        match self.still.carrying.get() {
            [_, true] => Code::BodyStalled,
            _ if self.still.owed.get() => Code::RequestTimeout,
            _ => Code::UpstreamTimeout,
        }
    }

    /// Counts bytes of a body that have moved.
    pub fn count(&self, direction: Direction, bytes: usize) {
        let counter = if direction == Direction::Up { &self.bytes_up } else { &self.bytes_down };
        counter.set(counter.get() + bytes as u64);
        self.still.moved.set(true);
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
    entries: RefCell<Slab<Entry>>,
}

/// Takes the exchange out of the register when dropped.
pub struct Registration {
    register: Rc<Register>,
    key: usize,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.register.entries.borrow_mut().remove(self.key);
    }
}

impl Register {
    /// Watches an exchange whose decision is good until `valid_until`.
    pub fn enter(self: &Rc<Self>, open: Rc<Open>, valid_until: UnixMillis, judge: Judge) -> Registration {
        let key = self.entries.borrow_mut().insert(Entry { open, judge, valid_until });
        Registration { register: self.clone(), key }
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
        for (_, entry) in self.entries.borrow_mut().iter_mut().filter(|(_, entry)| due(entry)) {
            match (entry.judge)(now) {
                Ok(valid_until) => entry.valid_until = valid_until,
                Err(failure) => entry.open.cut(failure.code),
            }
        }
    }

    /// Looks at decisions whose time is over, and at bodies that stand still, for as long as the worker lives.
    pub async fn watch_time(self: Rc<Self>, memory: Budget) {
        loop {
            tokio::time::sleep(TICK).await;
            if !self.is_empty() {
                self.judge_due(UnixMillis::from_system(std::time::SystemTime::now()));
                let over = memory.is_over();
                self.entries.borrow().iter().for_each(|(_, entry)| entry.open.tick(over));
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
    /// The last frame was given: it has ended once that was taken, which shows by whether more is asked for or none.
    last: bool,
    /// How it broke off, until that is told: what came before must have gone out by then, since a reset throws away what
    /// h2 has not written.
    broken: Option<BodyError>,
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
        open.carry(Direction::Up, true);
        Body::Watched(Box::new(Self {
            body,
            open,
            direction: Direction::Up,
            on_end: None,
            last: false,
            broken: None,
        }))
    }

    /// Guards the answer's body.
    pub fn down(body: Body, open: Rc<Open>, on_end: OnEnd) -> Body {
        open.carry(Direction::Down, true);
        let on_end = Some(on_end);
        Body::Watched(Box::new(Self {
            body,
            open,
            direction: Direction::Down,
            on_end,
            last: false,
            broken: None,
        }))
    }

    fn end(&mut self, end: End<'_>) {
        self.open.carry(self.direction, false);
        if let Some(on_end) = self.on_end.take() {
            on_end(end);
        }
        if self.direction == Direction::Up
            && let Some(last) = self.open.at_upload_end.take()
        {
            last();
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.end(if self.last { End::Complete } else { End::Dropped });
    }
}

impl WatchedBody for Guarded {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Some(Err(error)));
        }
        match self.poll_guarded(cx) {
            Poll::Ready(Some(Err(error))) if self.direction == Direction::Down => {
                self.broken = Some(error);
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            polled => polled,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.broken.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }

    fn is_cut(&self) -> bool {
        self.open.cut_by().is_some()
    }
}

impl Guarded {
    fn poll_guarded(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.open.poll_cut(self.direction, cx).is_ready() {
            self.end(End::Broken(&BodyError::Cut));
            return Poll::Ready(Some(Err(BodyError::Cut)));
        }
        let polled = std::pin::Pin::new(&mut self.body).poll_frame(cx);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.open.count(self.direction, frame.data_ref().map_or(0, Bytes::len));
                self.last = self.body.is_end_stream() || frame.is_trailers();
                // Of an upload that shows no more than this.
                if self.last && self.direction == Direction::Up {
                    self.end(End::Complete);
                }
            }
            Poll::Ready(Some(Err(error))) => {
                if self.direction == Direction::Up {
                    self.open.broken_up.set(true);
                }
                self.end(End::Broken(error));
            }
            Poll::Ready(None) => self.end(End::Complete),
            Poll::Pending => {}
        }
        if self.direction == Direction::Up {
            self.open.still.owed.set(polled.is_pending());
        }
        polled
    }
}

/// Why an exchange was stopped before its answer, for people.
#[must_use]
pub fn why_stopped(code: Code) -> &'static str {
    match code {
        Code::BodyTooLarge => "the request's body is longer than the limit",
        Code::RequestTimeout => "nothing has come of the request's body for as long as the body time-out",
        Code::UpstreamTimeout => {
            "the destination has taken nothing of the request's body for as long as the body time-out"
        }
        Code::OverLimit => "the memory cap is reached, and nothing moved in this call",
        _ => "the call was stopped: it is no longer allowed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(open: &Open, ticks: u32, over: bool) -> Option<Code> {
        (0..ticks).for_each(|_| open.tick(over));
        open.cut_by()
    }

    fn patient(seconds: u64) -> Open {
        let open = Open::default();
        open.be_patient(Duration::from_secs(seconds));
        open
    }

    #[test]
    fn a_body_that_stands_still_is_cut_and_who_owes_it_is_told() {
        let open = patient(1);
        open.carry(Direction::Up, true);
        open.still.owed.set(true);
        assert_eq!(after(&open, 2, false), None);
        open.count(Direction::Up, 1);
        assert_eq!(after(&open, 3, false), None, "what moves goes on");
        assert_eq!(after(&open, 1, false), Some(Code::RequestTimeout));
        let open = patient(1);
        open.carry(Direction::Up, true);
        assert_eq!(after(&open, 3, false), Some(Code::UpstreamTimeout));
        open.carry(Direction::Down, true);
        assert_eq!(after(&open, 1, false), Some(Code::BodyStalled));
    }

    #[test]
    fn an_answer_that_has_not_begun_has_a_bound_of_its_own() {
        assert_eq!(after(&patient(1), 10, true), None);
    }

    #[test]
    fn above_the_memory_cap_what_stands_still_goes_first() {
        let open = patient(0);
        open.carry(Direction::Down, true);
        assert_eq!(after(&open, 100, false), None, "0 is no bound");
        let open = patient(0);
        open.carry(Direction::Down, true);
        assert_eq!(after(&open, 3, true), Some(Code::OverLimit));
    }
}
