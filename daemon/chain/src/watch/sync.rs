//! How far bitcoind and we are, for the API, the switch and the alarms.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bitcoin::Network;

/// A tip older than this is an alarm: bitcoind may be cut off from the network, or shown an old
/// chain by whoever surrounds it. Twelve times the mean time between blocks: once in 160,000 blocks
/// by chance.
pub const TIP_AGE_MAX: Duration = Duration::from_secs(2 * 60 * 60);

/// How far bitcoind and we are.
#[derive(Debug, Clone, PartialEq)]
pub enum SyncState {
    /// bitcoind does not answer, or not sensibly.
    Away {
        /// What was seen.
        reason: String,
    },
    /// bitcoind, or this node behind it, has blocks to catch up with.
    Syncing {
        /// Blocks done.
        blocks: u32,
        /// Blocks there are.
        headers: u32,
        /// From 0 to 1.
        progress: f64,
    },
    /// All blocks there are have been delivered.
    Synced {
        /// The height of the chain.
        height: u32,
    },
    /// The same, but the last block is suspiciously old. An alarm: nothing new should be accepted or
    /// forwarded.
    Stalled {
        /// The height of the chain.
        height: u32,
        /// The last block's time, in seconds of the Unix epoch.
        tip_time: u32,
    },
}

impl SyncState {
    /// Whether what we know of the chain is fresh enough to take on new obligations.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        match self {
            Self::Synced { .. } => true,
            Self::Away { .. } | Self::Syncing { .. } | Self::Stalled { .. } => false,
        }
    }

    /// The height of the chain, once all of it has been delivered.
    #[must_use]
    pub fn height(&self) -> Option<u32> {
        match self {
            Self::Synced { height } | Self::Stalled { height, .. } => Some(*height),
            Self::Away { .. } | Self::Syncing { .. } => None,
        }
    }

    /// The state at a tip of this height and time.
    pub(super) fn at_tip(network: Network, height: u32, tip_time: u32, now: SystemTime) -> Self {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        // A block's time may be up to two hours ahead of the clock: that is no age at all.
        let age = now.saturating_sub(Duration::from_secs(tip_time.into()));
        if age > TIP_AGE_MAX && network != Network::Regtest {
            Self::Stalled { height, tip_time }
        } else {
            Self::Synced { height }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    mod at_tip {
        use super::*;

        const TIP: u32 = 1_700_000_000;

        fn state(network: Network, seconds_after: i64) -> SyncState {
            let now = i64::from(TIP) + seconds_after;
            let now = UNIX_EPOCH + Duration::from_secs(now.unsigned_abs());
            SyncState::at_tip(network, 7, TIP, now)
        }

        #[test]
        fn two_hours_old() {
            assert_eq!(state(Network::Bitcoin, 7200), SyncState::Synced { height: 7 });
        }

        #[test]
        fn one_second_older() {
            let stalled = state(Network::Bitcoin, 7201);
            assert_eq!(stalled, SyncState::Stalled { height: 7, tip_time: TIP });
            assert!(!stalled.is_synced());
            assert_eq!(stalled.height(), Some(7));
        }

        #[test]
        fn from_the_future() {
            assert_eq!(state(Network::Bitcoin, -7200), SyncState::Synced { height: 7 });
        }

        #[test]
        fn old_on_regtest() {
            assert_eq!(state(Network::Regtest, 1_000_000), SyncState::Synced { height: 7 });
        }
    }
}
