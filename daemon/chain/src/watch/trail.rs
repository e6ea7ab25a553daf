//! The last blocks that were delivered: where to go on, and where to fall back to.
//!
//! One block is enough to start from, as long as bitcoind still knows it. bitcoind forgets: killed by
//! a power cut, it may lose its newest blocks, and if one of them was stale it never sees it again.
//! With some blocks more, the fork is found all the same.

use std::collections::VecDeque;

use bitcoin::BlockHash;

/// How many blocks are kept: two days of them.
pub const TRAIL_MAX: usize = 288;

/// A block, by its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Its height.
    pub height: u32,
    /// Its hash.
    pub hash: BlockHash,
}

/// Blocks one below the other, the newest first. Empty: nothing was seen yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trail {
    blocks: VecDeque<Cursor>,
}

impl Trail {
    /// From blocks in any order, highest last seen. What lies below a gap is left out, as nothing
    /// could say which blocks go when it is returned to.
    #[must_use]
    pub fn new(blocks: impl IntoIterator<Item = Cursor>) -> Self {
        let mut sorted: Vec<Cursor> = blocks.into_iter().collect();
        sorted.sort_by_key(|cursor| std::cmp::Reverse(cursor.height));
        let mut trail = Self::default();
        for cursor in sorted {
            let follows = trail.blocks.back().is_none_or(|above| above.height == cursor.height.saturating_add(1));
            if !follows || trail.blocks.len() == TRAIL_MAX {
                break;
            }
            trail.blocks.push_back(cursor);
        }
        trail
    }

    /// The newest block.
    #[must_use]
    pub fn newest(&self) -> Option<Cursor> {
        self.blocks.front().copied()
    }

    /// All of them, the newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Cursor> {
        self.blocks.iter()
    }

    /// A block on top.
    pub(super) fn push(&mut self, cursor: Cursor) {
        self.blocks.push_front(cursor);
        self.blocks.truncate(TRAIL_MAX);
    }

    /// Takes the newest block off; `below` is the one under it, should the trail end there.
    pub(super) fn pop(&mut self, below: Option<Cursor>) {
        self.blocks.pop_front();
        if self.blocks.is_empty() {
            self.blocks.extend(below);
        }
    }
}

impl From<Option<Cursor>> for Trail {
    fn from(cursor: Option<Cursor>) -> Self {
        Self::new(cursor)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bitcoin::hashes::Hash;

    fn cursor(height: u32) -> Cursor {
        Cursor { height, hash: BlockHash::from_byte_array([u8::try_from(height % 256).unwrap(); 32]) }
    }

    fn heights(trail: &Trail) -> Vec<u32> {
        trail.iter().map(|cursor| cursor.height).collect()
    }

    #[test]
    fn new_sorts_and_stops_at_a_gap() {
        assert_eq!(heights(&Trail::new([2, 7, 5, 6, 3].map(cursor))), [7, 6, 5]);
        assert_eq!(heights(&Trail::new([])), [0; 0]);
    }

    #[test]
    fn new_stops_at_two_of_one_height() {
        assert_eq!(heights(&Trail::new([5, 5, 4].map(cursor))), [5]);
    }

    #[test]
    fn push_keeps_the_newest() {
        let mut trail = Trail::default();
        (0..1000).for_each(|height| trail.push(cursor(height)));
        assert_eq!(trail.newest().unwrap().height, 999);
        assert_eq!(trail.iter().count(), TRAIL_MAX);
    }

    #[test]
    fn pop_of_the_last_leaves_the_one_below() {
        let mut trail = Trail::new([8, 7].map(cursor));
        trail.pop(Some(cursor(7)));
        assert_eq!(heights(&trail), [7]);
        trail.pop(Some(cursor(6)));
        assert_eq!(heights(&trail), [6]);
    }
}
