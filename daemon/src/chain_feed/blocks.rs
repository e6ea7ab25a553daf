//! The last blocks that every channel has handled, as the journal has them.

use std::collections::VecDeque;

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use millrace_chain::Cursor;
use millrace_chain::watch::TRAIL_MAX;
use serde::{Deserialize, Serialize};

/// The version of the entries that are written here.
const VERSION: u8 = 1;

/// One entry of the journal: every channel has handled this, and its records are on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) enum CursorEntry {
    /// A block on top.
    Connected {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: [u8; 32],
    },
    /// The block at this height was taken off.
    Disconnected {
        /// Its height.
        height: u32,
    },
}

impl CursorEntry {
    pub(crate) fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("numbers and bytes")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).ok(),
            Some(_) | None => None,
        }
    }

    /// The block, if one was connected.
    pub(crate) fn cursor_of(&self) -> Option<Cursor> {
        match *self {
            Self::Connected { height, hash } => Some(Cursor { height, hash: BlockHash::from_byte_array(hash) }),
            Self::Disconnected { .. } => None,
        }
    }
}

/// The last blocks, the newest first, without a gap.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Blocks(VecDeque<Cursor>);

impl Blocks {
    /// From a checkpoint, the newest first.
    pub(crate) fn new(newest_first: impl IntoIterator<Item = Cursor>) -> Self {
        Self(newest_first.into_iter().collect())
    }

    /// Applies an entry. A block replaces what stood at its height and above, so entries that are in already do no harm
    /// if all that followed them comes again, too.
    pub(crate) fn apply(&mut self, entry: &CursorEntry) {
        let height = match entry {
            CursorEntry::Connected { height, .. } | CursorEntry::Disconnected { height } => *height,
        };
        while self.0.front().is_some_and(|block| block.height >= height) {
            self.0.pop_front();
        }
        if let Some(block) = entry.cursor_of() {
            if self.0.front().is_some_and(|below| below.height + 1 != height) {
                self.0.clear();
            }
            self.0.push_front(block);
            self.0.truncate(TRAIL_MAX);
        }
    }

    pub(crate) fn newest(&self) -> Option<Cursor> {
        self.0.front().copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Cursor> {
        self.0.iter()
    }

    /// For a checkpoint, the newest first.
    pub(crate) fn to_entries(&self) -> Vec<CursorEntry> {
        let entry = |block: &Cursor| CursorEntry::Connected { height: block.height, hash: block.hash.to_byte_array() };
        self.0.iter().map(entry).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connected(height: u32, byte: u8) -> CursorEntry {
        CursorEntry::Connected { height, hash: [byte; 32] }
    }

    fn applied(entries: &[CursorEntry]) -> Blocks {
        let mut blocks = Blocks::default();
        entries.iter().for_each(|entry| blocks.apply(entry));
        blocks
    }

    #[test]
    fn version_1_stays_what_it_was() {
        let bytes = [vec![1, 0, 0xac, 0x02], vec![7; 32]].concat();
        assert_eq!(connected(300, 7).encode(), bytes);
        assert_eq!(CursorEntry::decode(&bytes), Some(connected(300, 7)));
        assert_eq!(CursorEntry::Disconnected { height: 5 }.encode(), [1, 1, 5]);
        assert_eq!(CursorEntry::decode(&[1, 1, 5]), Some(CursorEntry::Disconnected { height: 5 }));
        assert_eq!(CursorEntry::decode(&[2, 1, 5]), None);
    }

    #[test]
    fn a_reorganisation() {
        let off = |height| CursorEntry::Disconnected { height };
        let blocks = applied(&[connected(7, 1), connected(8, 1), connected(9, 1), off(9), off(8), connected(8, 2)]);
        assert_eq!(blocks, applied(&[connected(7, 1), connected(8, 2)]));
        assert_eq!(Blocks::new(blocks.to_entries().iter().filter_map(CursorEntry::cursor_of)), blocks);
    }

    #[test]
    fn entries_that_are_in_already_do_no_harm() {
        let tail = [connected(8, 1), CursorEntry::Disconnected { height: 8 }, connected(8, 2), connected(9, 2)];
        let mut blocks = applied(&[connected(7, 1)]);
        tail.iter().for_each(|entry| blocks.apply(entry));
        let once = blocks.clone();
        tail.iter().for_each(|entry| blocks.apply(entry));
        assert_eq!(blocks, once);
    }
}
