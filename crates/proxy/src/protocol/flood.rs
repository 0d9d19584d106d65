//! Streams that an application opens and gives up at once (CVE-2023-44487), counted and limited by us.
//!
//! h2 limits what is reset before we have accepted it (20 at a time) and what it resets itself (1024); a stream that
//! was accepted has cost a judgement, a place upstream and two events, and h2 does not count those.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

/// How often streams of one connection may be given up: a bucket of `burst` tokens that fills within `within`.
#[derive(Clone)]
pub struct Resets(Rc<Bucket>);

struct Bucket {
    burst: f64,
    within: Duration,
    tokens: Cell<f64>,
    filled: Cell<Instant>,
}

impl Resets {
    /// A full bucket.
    pub fn new(burst: u32, within: Duration) -> Self {
        let burst = f64::from(burst);
        let bucket = Bucket { burst, within, tokens: Cell::new(burst), filled: Cell::new(Instant::now()) };
        Self(Rc::new(bucket))
    }

    /// A stream was given up.
    pub fn count(&self) {
        let bucket = &self.0;
        let now = Instant::now();
        let share =
            now.duration_since(bucket.filled.replace(now)).as_secs_f64() / bucket.within.as_secs_f64();
        bucket.tokens.set((bucket.tokens.get() + share * bucket.burst).min(bucket.burst) - 1.0);
    }

    /// Whether more were given up than may be.
    pub fn is_exceeded(&self) -> bool {
        self.0.tokens.get() < 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_allowed_and_a_flood_is_not() {
        let resets = Resets::new(10, Duration::from_secs(10));
        for _ in 0..10 {
            resets.count();
        }
        assert!(!resets.is_exceeded());
        tokio::time::advance(Duration::from_secs(1)).await;
        resets.count();
        assert!(!resets.is_exceeded(), "it fills by one each second");
        resets.count();
        assert!(resets.is_exceeded());
    }
}
