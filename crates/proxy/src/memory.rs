//! How much memory applications can make the proxy take.
//!
//! Two things hold the cap (docs/limits.md has the arithmetic). Each connection, each open request and each window that
//! is larger than the protocol's reserves what it may have to hold, before it gets it; what can't reserve is refused
//! (CS3005). And what the process really has is looked at ten times a second, since no arithmetic knows every library:
//! above the cap nothing new is taken, and exchanges that stand still, which is what holds bytes, are cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use prometheus::{IntGauge, Registry};

/// A connection of the application: its TLS state, what is read of it before it is known, its head's buffer.
pub const CONNECTION: usize = 32 << 10;

/// An open request, or a connection that is carried: a chunk each way on both legs, and its head.
pub const REQUEST: usize = 96 << 10;

/// How often the process is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// Looks between which nothing is reserved, after which the allocator gives back what it keeps in reserve.
const QUIET: u32 = 50;

/// What may be held, and what is.
#[derive(Clone)]
pub struct Budget(Arc<Inner>);

struct Inner {
    cap: usize,
    reserved: AtomicUsize,
    /// How often something was reserved.
    times: AtomicUsize,
    over: AtomicBool,
    shown: Gauges,
}

struct Gauges {
    reserved: IntGauge,
    anonymous: IntGauge,
}

/// Bytes that somebody may hold, given back when dropped.
pub struct Reserved {
    budget: Budget,
    bytes: usize,
}

impl Budget {
    /// A budget of this many bytes.
    ///
    /// # Errors
    /// If its metrics are registered already.
    pub fn new(cap: usize, registry: &Registry) -> Result<Self, prometheus::Error> {
        let shown = Gauges {
            reserved: IntGauge::new(
                "countersign_memory_reserved_bytes",
                "What connections and open requests may have to hold.",
            )?,
            anonymous: IntGauge::new(
                "countersign_memory_anonymous_bytes",
                "What the process has for itself: resident, less what is of files.",
            )?,
        };
        registry.register(Box::new(shown.reserved.clone()))?;
        registry.register(Box::new(shown.anonymous.clone()))?;
        let (reserved, times) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Self(Arc::new(Inner { cap, reserved, times, over: AtomicBool::new(false), shown })))
    }

    /// Reserves; `None` if that would be more than the cap, or the process has more already.
    #[must_use]
    pub fn reserve(&self, bytes: usize) -> Option<Reserved> {
        self.reserve_below(bytes, self.0.cap)
    }

    /// Reserves what makes carrying faster, but is not needed for it: only while half of the cap is left for what is.
    #[must_use]
    pub fn reserve_spare(&self, bytes: usize) -> Option<Reserved> {
        self.reserve_below(bytes, self.0.cap / 2)
    }

    fn reserve_below(&self, bytes: usize, most: usize) -> Option<Reserved> {
        if self.is_over() {
            return None;
        }
        let fits = |held: usize| held.checked_add(bytes).filter(|sum| *sum <= most);
        let before = self.0.reserved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        self.0.times.fetch_add(1, Ordering::Relaxed);
        self.show(before + bytes);
        Some(Reserved { budget: self.clone(), bytes })
    }

    /// Whether the process has more than the cap.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.over.load(Ordering::Relaxed)
    }

    /// The cap, in MiB.
    #[must_use]
    pub fn cap_mib(&self) -> usize {
        self.0.cap >> 20
    }

    /// Looks at the process for as long as the program runs.
    pub async fn watch(self) {
        let mut rest = Rest::default();
        loop {
            tokio::time::sleep(LOOK).await;
            if let Some(bytes) = anonymous() {
                self.look(bytes);
            }
            if rest.begins(self.0.times.load(Ordering::Relaxed)) {
                give_back();
            }
        }
    }

    fn look(&self, anonymous: usize) {
        self.0.shown.anonymous.set(i64::try_from(anonymous).unwrap_or(i64::MAX));
        let is_over = anonymous > self.0.cap;
        if is_over && !self.0.over.swap(is_over, Ordering::Relaxed) {
            tracing::warn!(
                bytes = anonymous,
                cap = self.0.cap,
                "the memory cap is reached: nothing new is taken until it falls"
            );
        }
        if is_over {
            give_back();
        } else {
            self.0.over.store(false, Ordering::Relaxed);
        }
    }

    fn show(&self, reserved: usize) {
        self.0.shown.reserved.set(i64::try_from(reserved).unwrap_or(i64::MAX));
    }
}

/// Notices that nothing goes on, once each time.
#[derive(Default)]
struct Rest {
    times: usize,
    looks: u32,
}

impl Rest {
    /// Whether nothing was reserved for so many looks that a rest has just begun.
    fn begins(&mut self, times: usize) -> bool {
        self.looks = if times == self.times { self.looks.saturating_add(1) } else { 0 };
        self.times = times;
        self.looks == QUIET
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let before = self.budget.0.reserved.fetch_sub(self.bytes, Ordering::Relaxed);
        self.budget.show(before - self.bytes);
    }
}

/// What the process has for itself, from `/proc/self/statm` (proc(5)): resident pages less those of files.
fn anonymous() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split(' ').skip(1).map(|number| number.parse::<usize>().ok());
    let (resident, shared) = (pages.next()??, pages.next()??);
    Some(resident.saturating_sub(shared) * rustix::param::page_size())
}

/// What the allocator may keep at the end of a heap before it gives it back: with its own 128 KiB it does so hundreds of
/// times a second under load, and takes it again at once, page by page. It goes back when nothing goes on.
#[cfg(target_env = "gnu")]
const RESERVE: i32 = 4 << 20;

/// Has the allocator keep a reserve, and no lists of small pieces that it would have to put together each time that it
/// looks for a large one; to be called once, at the start.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library's allocator is told; there is no safe interface to it")]
pub fn keep_reserve() {
    // SAFETY: mallopt(3) may be called at any time, takes no pointer, and refuses by its result alone.
    let taken = unsafe { libc::mallopt(libc::M_TRIM_THRESHOLD, RESERVE) & libc::mallopt(libc::M_MXFAST, 0) };
    if taken == 0 {
        tracing::debug!("the allocator keeps its own settings");
    }
}

/// Other allocators have their own way.
#[cfg(not(target_env = "gnu"))]
pub fn keep_reserve() {}

/// Gives what the allocator keeps in reserve back to the kernel: otherwise a peak that is over would still count.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "the C library's allocator is asked; there is no safe interface to it")]
fn give_back() {
    // SAFETY: malloc_trim(3) may be called at any time from any thread, and takes no pointer.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators give back by themselves.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_reserved_than_the_cap_and_it_is_given_back() {
        let budget = Budget::new(100, &Registry::new()).unwrap();
        let first = budget.reserve(60).unwrap();
        assert!(budget.reserve(41).is_none());
        assert!(budget.reserve(usize::MAX).is_none(), "no overflow");
        let second = budget.reserve(40).unwrap();
        drop(first);
        assert!(budget.reserve(60).is_some());
        drop(second);
        assert_eq!(budget.0.reserved.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn above_the_cap_nothing_is_reserved_until_it_falls() {
        let budget = Budget::new(100, &Registry::new()).unwrap();
        budget.look(101);
        assert!(budget.reserve(1).is_none());
        budget.look(100);
        assert!(budget.reserve(1).is_some());
    }

    #[test]
    fn a_rest_begins_once_after_each_time_that_something_went_on() {
        let mut rest = Rest::default();
        let mut begun = |times: usize, looks: u32| (0..looks).filter(|_| rest.begins(times)).count();
        assert_eq!([begun(0, QUIET * 3), begun(1, QUIET), begun(2, QUIET), begun(2, QUIET)], [1, 0, 0, 1]);
    }

    #[test]
    fn the_process_has_some_memory() {
        assert!(anonymous().is_some_and(|bytes| bytes > 4096));
    }
}
