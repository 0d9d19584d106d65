//! What the clocks say: read once for all that is decided at one moment.

use model::UnixMillis;

use crate::worker::now;

/// A moment on two clocks. The wall clock can be set back, the boot-time clock can't; the earlier of the two counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// The wall clock.
    pub wall_ms: i64,
    /// Since the machine was started, its sleep included.
    pub boot_ms: i64,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
        Self { wall_ms: now().0, boot_ms: boot.tv_sec * 1000 + boot.tv_nsec / 1_000_000 }
    }

    /// So much later.
    #[must_use]
    pub const fn plus(self, millis: i64) -> Self {
        Self { wall_ms: self.wall_ms.saturating_add(millis), boot_ms: self.boot_ms.saturating_add(millis) }
    }

    /// Whether it has come, by either clock.
    #[must_use]
    pub const fn has_passed(self, now: Self) -> bool {
        now.wall_ms >= self.wall_ms || now.boot_ms >= self.boot_ms
    }

    /// The wall clock's part.
    #[must_use]
    pub const fn wall(self) -> UnixMillis {
        UnixMillis(self.wall_ms)
    }
}
