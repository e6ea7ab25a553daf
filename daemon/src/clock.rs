//! The two clocks of the daemon: one that only goes forward, for deadlines, and the calendar, for people.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use millrace_channel::Millis;

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the process first asked. Never goes back.
#[must_use]
pub(crate) fn now() -> Millis {
    #[cfg(test)]
    if let Some(ms) = simulated::get() {
        return Millis(ms);
    }
    Millis(u64::try_from(STARTED.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Unix time in milliseconds, as the system's clock has it.
#[must_use]
pub(crate) fn unix_ms() -> u64 {
    #[cfg(test)]
    if let Some(ms) = simulated::get() {
        return simulated::BEGIN_UNIX_MS + ms;
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The time of a simulation, for the thread that plays it.
#[cfg(test)]
pub(crate) mod simulated {
    use std::cell::Cell;

    /// When simulations begin, as Unix time.
    pub(crate) const BEGIN_UNIX_MS: u64 = 1_700_000_000_000;

    thread_local! {
        static NOW_MS: Cell<Option<u64>> = const { Cell::new(None) };
    }

    /// It is so late on this thread; none: as late as it is.
    pub(crate) fn set(now_ms: Option<u64>) {
        NOW_MS.set(now_ms);
    }

    pub(super) fn get() -> Option<u64> {
        NOW_MS.get()
    }
}
