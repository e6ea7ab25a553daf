//! Onions that were used (BOLT 4, "Shared Secrets": each is to be taken once only, also over a restart).
//!
//! An onion is known by its ephemeral key, which alone decides the secret that it shares with us. Nothing is written for
//! this: an HTLC is in its channel's records, with its onion, before it is peeled, and `OfferCommitted` before anything
//! goes on, so the set is folded from the same facts as the circuits. An onion stays in it until the HTLC that brought it
//! has expired: what it asks for then is in the past. One that was refused without going on does no harm a second time, nor
//! does one that ended here: what it paid is paid, and its second coming is refused as such.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use bitcoin::hashes::{Hash as _, sha256};
use millrace_wire::{BlockHeight, CltvExpiry, OnionPacket};
use serde::{Deserialize, Serialize};

use super::Key;

/// Expiries are counted by so many blocks: a look goes through a dozen sets at most.
const BLOCKS_OF_A_SET: u32 = 144;

/// The first half of the hash of an onion's ephemeral key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub(super) struct OnionId([u8; 16]);

impl OnionId {
    /// Of an onion as it came in.
    pub(super) fn of(onion: &OnionPacket) -> Self {
        // BOLT 4: a version byte, then the key.
        let hash = sha256::Hash::hash(&onion.0[1..34]).to_byte_array();
        Self(*hash.first_chunk().expect("a hash has 32 bytes"))
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Onions {
    /// By when they may be forgotten.
    used: BTreeMap<u32, BTreeSet<OnionId>>,
    /// Volatile: who has begun to use which.
    taken: HashMap<OnionId, Key>,
}

/// Those that were used, in a checkpoint.
pub(super) type OnionsSection = Vec<(u32, BTreeSet<OnionId>)>;

impl Onions {
    /// It was used, for good.
    pub(super) fn used(&mut self, onion: OnionId, expiry: CltvExpiry) {
        self.used.entry(expiry.0 / BLOCKS_OF_A_SET).or_default().insert(onion);
    }

    /// Takes it for an HTLC. False if it was used before, or another HTLC has taken it.
    pub(super) fn take(&mut self, onion: OnionId, key: Key) -> bool {
        if self.used.values().any(|used| used.contains(&onion)) {
            return false;
        }
        *self.taken.entry(onion).or_insert(key) == key
    }

    /// The HTLC is gone.
    pub(super) fn forget(&mut self, onion: OnionId, key: Key) {
        if self.taken.get(&onion) == Some(&key) {
            self.taken.remove(&onion);
        }
    }

    /// Forgets what has expired.
    pub(super) fn prune(&mut self, height: BlockHeight) {
        self.used = self.used.split_off(&(height.0 / BLOCKS_OF_A_SET));
    }

    pub(super) fn section(&self) -> OnionsSection {
        self.used.iter().map(|(set, onions)| (*set, onions.clone())).collect()
    }

    pub(super) fn restore(&mut self, section: OnionsSection) {
        self.used = section.into_iter().collect();
    }
}

#[cfg(test)]
mod tests {
    use millrace_wire::{ChannelId, HtlcId};

    use super::*;

    const ONE: OnionId = OnionId([1; 16]);

    fn key(n: u64) -> Key {
        (ChannelId([1; 32]), HtlcId(n))
    }

    #[test]
    fn one_htlc_takes_an_onion_and_may_be_told_of_again() {
        let mut onions = Onions::default();
        assert!(onions.take(ONE, key(1)) && onions.take(ONE, key(1)));
        assert!(!onions.take(ONE, key(2)));
        onions.forget(ONE, key(2));
        assert!(!onions.take(ONE, key(2)), "another one's end frees nothing");
        onions.forget(ONE, key(1));
        assert!(onions.take(ONE, key(2)), "the first was refused, and is gone");
    }

    #[test]
    fn a_used_one_stays_so_until_it_has_expired() {
        let mut onions = Onions::default();
        onions.used(ONE, CltvExpiry(1_000));
        let mut restarted = Onions::default();
        restarted.restore(onions.section());
        restarted.prune(BlockHeight(1_000));
        assert!(!restarted.take(ONE, key(2)));
        restarted.prune(BlockHeight(1_200));
        assert!(restarted.take(ONE, key(2)));
    }
}
