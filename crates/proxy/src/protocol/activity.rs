//! What goes on on one connection of the application, so that it is ended when nothing does.
//!
//! Three bounds: for a request's head, from its first byte; for a connection without an open request; and for the
//! first request of a connection, which gets as long as a head.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Shared by a connection's reader, its requests, and its clock.
#[derive(Clone)]
pub struct Activity(Rc<State>);

struct State {
    open: Cell<usize>,
    quiet_since: Cell<Instant>,
    head_since: Cell<Option<Instant>>,
}

/// Why a connection is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// No request was open for too long.
    Idle,
    /// A head has begun and does not end.
    Head,
}

/// A request that is open, until it is dropped.
pub struct Busy {
    state: Rc<State>,
    ended: Cell<Option<Instant>>,
}

impl Busy {
    /// It ends, at this moment: then the clock need not be read again.
    pub fn ends(&self, now: Instant) {
        self.ended.set(Some(now));
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.state.open.set(self.state.open.get() - 1);
        self.state.quiet_since.set(self.ended.get().unwrap_or_else(Instant::now));
    }
}

impl Default for Activity {
    /// A connection that begins now, with the head of its first request.
    fn default() -> Self {
        let now = Instant::now();
        Self(Rc::new(State {
            open: Cell::new(0),
            quiet_since: Cell::new(now),
            head_since: Cell::new(Some(now)),
        }))
    }
}

impl Activity {
    /// A request has come: its head is complete.
    pub fn begin(&self) -> Busy {
        self.0.open.set(self.0.open.get() + 1);
        self.0.head_since.set(None);
        Busy { state: self.0.clone(), ended: Cell::new(None) }
    }

    /// Bytes have come from the application, and a head has not ended with them.
    pub fn bytes_came(&self) {
        // While a request is open they are its body's, or of a head that waits for its turn.
        if self.0.open.get() == 0 && self.0.head_since.get().is_none() {
            self.0.head_since.set(Some(Instant::now()));
        }
    }

    /// Whether the connection is to be ended, or when to look again.
    fn look(&self, now: Instant, head: Duration, idle: Duration) -> Result<Instant, Expired> {
        let soon = now + head.min(idle);
        if self.0.open.get() > 0 {
            return Ok(soon);
        }
        if let Some(since) = self.0.head_since.get() {
            let ends = since + head;
            return if ends <= now { Err(Expired::Head) } else { Ok(ends) };
        }
        let ends = self.0.quiet_since.get() + idle;
        if ends <= now { Err(Expired::Idle) } else { Ok(ends.min(soon)) }
    }
}

/// Ready when the connection has to end. One timer for each connection, armed anew only when it fires.
pub struct Clock {
    activity: Activity,
    head: Duration,
    idle: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Clock {
    /// Looks at a connection.
    pub fn new(activity: Activity, head: Duration, idle: Duration) -> Self {
        Self { activity, head, idle, sleep: Box::pin(tokio::time::sleep(head.min(idle))) }
    }

    /// Ready with the reason.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            match self.activity.look(Instant::now(), self.head, self.idle) {
                Ok(again) => self.sleep.as_mut().reset(again),
                Err(expired) => return Poll::Ready(expired),
            }
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: Duration = Duration::from_secs(5);
    const IDLE: Duration = Duration::from_secs(60);

    async fn ended(activity: &Activity) -> (Expired, Duration) {
        let begun = Instant::now();
        let mut clock = Clock::new(activity.clone(), HEAD, IDLE);
        let expired = std::future::poll_fn(|cx| clock.poll(cx)).await;
        (expired, begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_request_gets_as_long_as_a_head() {
        let (expired, after) = ended(&Activity::default()).await;
        assert_eq!((expired, after.as_secs()), (Expired::Head, 5));
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_a_connection_may_rest() {
        let activity = Activity::default();
        drop(activity.begin());
        let (expired, after) = ended(&activity).await;
        assert_eq!((expired, after.as_secs()), (Expired::Idle, 60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_that_has_begun_must_end() {
        let activity = Activity::default();
        drop(activity.begin());
        activity.bytes_came();
        tokio::time::advance(Duration::from_secs(3)).await;
        activity.bytes_came();
        let (expired, after) = ended(&activity).await;
        assert_eq!(expired, Expired::Head);
        assert!(after <= HEAD, "more bytes give no more time: {after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_open_request_keeps_the_connection() {
        let activity = Activity::default();
        let busy = activity.begin();
        activity.bytes_came();
        let look = ended(&activity);
        assert!(tokio::time::timeout(IDLE * 10, look).await.is_err());
        drop(busy);
        assert_eq!(ended(&activity).await.0, Expired::Idle);
    }
}
