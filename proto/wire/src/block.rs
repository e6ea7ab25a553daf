//! Heights, expiries and the distances between them, in blocks (BOLT 2, `cltv_expiry`).
//!
//! A height is where the chain is, an expiry is where an HTLC ends, a delta is what a hop asks
//! for between two expiries. Wall-clock time does not occur here.

use core::fmt;

use serde::{Deserialize, Serialize};

/// A height of the block chain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockHeight(pub u32);

/// The absolute height at which an HTLC expires.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CltvExpiry(pub u32);

/// A number of blocks between an incoming expiry and an outgoing one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CltvDelta(pub u16);

impl BlockHeight {
    /// The height `blocks` later, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, blocks: u32) -> Option<Self> {
        match self.0.checked_add(blocks) {
            Some(height) => Some(Self(height)),
            None => None,
        }
    }

    /// The height `blocks` earlier, or `None` before the first block.
    #[must_use]
    pub const fn checked_sub(self, blocks: u32) -> Option<Self> {
        match self.0.checked_sub(blocks) {
            Some(height) => Some(Self(height)),
            None => None,
        }
    }

    /// Blocks from `earlier` to here, or `None` when it is not earlier.
    #[must_use]
    pub const fn blocks_since(self, earlier: Self) -> Option<u32> {
        self.0.checked_sub(earlier.0)
    }

    /// The expiry `delta` blocks from here, or `None` when it does not fit.
    #[must_use]
    pub const fn expiry_after(self, delta: CltvDelta) -> Option<CltvExpiry> {
        CltvExpiry(self.0).checked_add(delta)
    }
}

impl CltvExpiry {
    /// BOLT 2, "Adding an HTLC": from this number on, a `cltv_expiry` would be a time in seconds
    /// and is not allowed.
    pub const FIRST_NOT_A_HEIGHT: u32 = 500_000_000;

    /// Whether this is a block height and not, by Bitcoin's rule for lock times, a time.
    #[must_use]
    pub const fn is_height(self) -> bool {
        self.0 < Self::FIRST_NOT_A_HEIGHT
    }

    /// The expiry `delta` blocks later, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, delta: CltvDelta) -> Option<Self> {
        match self.0.checked_add(delta.0 as u32) {
            Some(expiry) => Some(Self(expiry)),
            None => None,
        }
    }

    /// The expiry `delta` blocks earlier, or `None` before the first block.
    #[must_use]
    pub const fn checked_sub(self, delta: CltvDelta) -> Option<Self> {
        match self.0.checked_sub(delta.0 as u32) {
            Some(expiry) => Some(Self(expiry)),
            None => None,
        }
    }

    /// Blocks by which this lies after `earlier`, or `None` when it does not.
    #[must_use]
    pub const fn blocks_after(self, earlier: Self) -> Option<u32> {
        self.0.checked_sub(earlier.0)
    }

    /// Blocks left at `height`, or `None` when the expiry is already behind it.
    #[must_use]
    pub const fn blocks_left(self, height: BlockHeight) -> Option<u32> {
        self.0.checked_sub(height.0)
    }

    /// Whether the chain at `height` has reached the expiry: a transaction with this lock time may
    /// be in the next block.
    #[must_use]
    pub const fn is_reached(self, height: BlockHeight) -> bool {
        height.0 >= self.0
    }

    /// The height it names.
    #[must_use]
    pub const fn to_height(self) -> BlockHeight {
        BlockHeight(self.0)
    }
}

impl CltvDelta {
    /// The sum, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }
}

impl fmt::Display for BlockHeight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for CltvExpiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for CltvDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} blocks", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_between_heights_and_expiries() {
        let height = BlockHeight(100);
        assert_eq!(height.expiry_after(CltvDelta(40)), Some(CltvExpiry(140)));
        assert_eq!(CltvExpiry(140).blocks_left(height), Some(40));
        assert_eq!(CltvExpiry(99).blocks_left(height), None);
        assert_eq!(CltvExpiry(140).blocks_after(CltvExpiry(100)), Some(40));
        assert_eq!(CltvExpiry(100).blocks_after(CltvExpiry(101)), None);
        assert_eq!(CltvExpiry(30).checked_sub(CltvDelta(31)), None);
        assert_eq!(BlockHeight(7).blocks_since(BlockHeight(5)), Some(2));
        assert_eq!(BlockHeight(5).blocks_since(BlockHeight(7)), None);
        assert_eq!(BlockHeight(5).checked_sub(6), None);
    }

    #[test]
    fn nothing_wraps_at_the_top() {
        assert_eq!(BlockHeight(u32::MAX).checked_add(1), None);
        assert_eq!(BlockHeight(u32::MAX).expiry_after(CltvDelta(1)), None);
        assert_eq!(CltvExpiry(u32::MAX).checked_add(CltvDelta(1)), None);
        assert_eq!(CltvDelta(u16::MAX).checked_add(CltvDelta(1)), None);
    }

    #[test]
    fn an_expiry_is_reached_at_its_own_height() {
        assert!(!CltvExpiry(100).is_reached(BlockHeight(99)));
        assert!(CltvExpiry(100).is_reached(BlockHeight(100)));
        assert!(CltvExpiry(499_999_999).is_height());
        assert!(!CltvExpiry(500_000_000).is_height());
    }
}
