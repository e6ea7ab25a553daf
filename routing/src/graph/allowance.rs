//! How often something announced may change: some times at once, and then now and then. Each change costs every node of the
//! network a signature and some bytes. Checked after the signature, so that nobody can use up what is another's.

/// What is left of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Allowance {
    left: u8,
    since: u32,
}

/// Changes at once.
const CHANGES_MAX: u8 = 12;
/// Seconds after which one more is allowed.
const SECONDS_PER_CHANGE: u32 = 4 * 3600;

impl Allowance {
    pub(super) const fn full(now: u32) -> Self {
        Self { left: CHANGES_MAX, since: now }
    }

    /// What is left after one more change; `None` if there may be none now.
    pub(super) fn after_change(self, now: u32) -> Option<Self> {
        let earned = now.saturating_sub(self.since) / SECONDS_PER_CHANGE;
        let left = self.left.saturating_add(u8::try_from(earned).unwrap_or(u8::MAX)).min(CHANGES_MAX);
        let since = if left == CHANGES_MAX { now } else { self.since + earned * SECONDS_PER_CHANGE };
        let left = left.checked_sub(1)?;
        Some(Self { left, since })
    }
}
