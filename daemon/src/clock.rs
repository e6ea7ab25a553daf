//! The two clocks of the daemon: one that only goes forward, for deadlines, and the calendar, for people.

use std::sync::LazyLock;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use millrace_channel::Millis;

static STARTED: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Milliseconds since the process first asked. Never goes back.
#[must_use]
pub(crate) fn now() -> Millis {
    Millis(u64::try_from(STARTED.elapsed().as_millis()).unwrap_or(u64::MAX))
}

/// Unix time in milliseconds, as the system's clock has it.
#[must_use]
pub(crate) fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
