//! Which channel keys are free: an index is written down as used before anybody could have seen its keys.
//!
//! Indexes are reserved in blocks, ahead of need, so that no opening waits for the disk. What is left of a block at a
//! restart is never used: a few numbers, for keys that are surely fresh.

use std::sync::atomic::{AtomicU64, Ordering};

use millrace_channel::keys::ChannelKeys;
use tokio::sync::Notify;

use crate::entry::{Entry, Kind};
use crate::steps::JournalHandle;

/// Indexes that are reserved at a time.
const BLOCK: u64 = 256;
/// A new block is asked for when so many are left: more openings than may be under way at once.
const REFILL_AT: u64 = 128;

/// Makes the keys of a channel from their index.
pub type KeysOf = std::sync::Arc<dyn Fn(u64) -> ChannelKeys + Send + Sync>;

/// The node's supply of fresh channel keys.
#[derive(Debug)]
pub(crate) struct FreshKeys {
    next: AtomicU64,
    reserved: AtomicU64,
    low: Notify,
}

impl FreshKeys {
    /// From the first index that nobody can have seen. Nothing is free before [`FreshKeys::refill`].
    pub(crate) fn new(next: u64) -> Self {
        Self { next: AtomicU64::new(next), reserved: AtomicU64::new(next), low: Notify::new() }
    }

    /// An index that was never used; none if the next block is not on disk yet.
    pub(crate) fn take(&self) -> Option<u64> {
        let reserved = self.reserved.load(Ordering::Acquire);
        let taken = self.next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
            if next < reserved { next.checked_add(1) } else { None }
        });
        if taken.map_or(0, |index| reserved - index) <= REFILL_AT {
            self.low.notify_one();
        }
        taken.ok()
    }

    /// Writes down one more block.
    pub(crate) async fn refill(&self, journal: &JournalHandle) {
        let reserved = self.next.load(Ordering::Relaxed).saturating_add(BLOCK);
        let entry = Entry::new(Kind::Keys, reserved.to_le_bytes().to_vec());
        if journal.write(vec![entry]).await.is_ok() {
            self.reserved.fetch_max(reserved, Ordering::Release);
        }
    }

    /// Keeps the supply up, for ever.
    pub(crate) async fn keep_up(&self, journal: JournalHandle) {
        loop {
            self.low.notified().await;
            self.refill(&journal).await;
        }
    }

    /// The first index that is surely fresh, after what the journal and the channels say.
    pub(crate) fn next_after(entry: &[u8]) -> Option<u64> {
        Some(u64::from_le_bytes(entry.try_into().ok()?))
    }

    /// What is reserved: for a checkpoint.
    pub(crate) fn reserved(&self) -> u64 {
        self.reserved.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_free_that_is_not_reserved() {
        let keys = FreshKeys::new(7);
        assert_eq!(keys.take(), None);
        keys.reserved.store(9, Ordering::Release);
        assert_eq!((keys.take(), keys.take(), keys.take()), (Some(7), Some(8), None));
        assert_eq!(FreshKeys::next_after(&keys.reserved().to_le_bytes()), Some(9));
        assert_eq!(FreshKeys::next_after(&[1]), None);
    }
}
