//! Whether a peer is said to be away. Each change is a message to the whole network, so a peer that comes and goes must not
//! make many: it counts as away only after a long while, and as back only when it has stayed a little.

use millrace_channel::Millis;

/// How long a peer is gone before its channel is said to be disabled.
pub(super) const AWAY_AFTER_MS: u64 = 20 * 60 * 1_000;
/// How long it must be there again before the channel is said to be usable.
pub(super) const BACK_AFTER_MS: u64 = 60 * 1_000;

/// How long a peer has been there, or gone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Presence {
    is_online: bool,
    since: Millis,
}

impl Presence {
    /// As it is now; since when it was so, nobody knows.
    pub(super) const fn new(is_online: bool, now: Millis) -> Self {
        Self { is_online, since: now }
    }

    /// Whether the channel is to be called disabled, if it `was` so before.
    pub(super) fn look(&mut self, is_online: bool, was: bool, now: Millis) -> bool {
        if self.is_online != is_online {
            *self = Self::new(is_online, now);
        }
        let waits = if is_online { BACK_AFTER_MS } else { AWAY_AFTER_MS };
        if self.since.plus(waits) <= now { !is_online } else { was }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_away_after_twenty_minutes_and_back_after_one() {
        let mut presence = Presence::new(true, Millis(0));
        let gone = Millis(1_000);
        assert!(!presence.look(false, false, gone));
        assert!(!presence.look(false, false, gone.plus(AWAY_AFTER_MS - 1)));
        assert!(presence.look(false, false, gone.plus(AWAY_AFTER_MS)));
        let back = gone.plus(2 * AWAY_AFTER_MS);
        assert!(presence.look(true, true, back));
        assert!(presence.look(true, true, back.plus(BACK_AFTER_MS - 1)));
        assert!(!presence.look(true, true, back.plus(BACK_AFTER_MS)));
    }

    #[test]
    fn a_peer_that_comes_and_goes_for_a_day_changes_nothing() {
        let mut presence = Presence::new(true, Millis(0));
        for minute in 0..24 * 60 {
            let is_online = minute % 3 == 0;
            assert!(!presence.look(is_online, false, Millis(minute * 60_000)), "in minute {minute}");
        }
    }
}
