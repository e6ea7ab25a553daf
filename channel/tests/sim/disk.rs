//! A node's journal: whole steps, flushed in order, and what a power cut leaves of those that were not.

use millrace_channel::record::Record;
use millrace_wire::BlockHeight;

/// One entry of a step.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A record of the channel on this link.
    Record { link: usize, bytes: Vec<u8> },
    /// Every channel has handled the chain up to this block.
    Cursor { height: BlockHeight, block: u64 },
}

/// What one actor did, written whole or not at all.
pub type Step = Vec<Entry>;

/// The journal of one node.
#[derive(Default)]
pub struct Disk {
    durable: Vec<Step>,
    waiting: Vec<Step>,
}

impl Disk {
    /// Takes a step in, and says its number: it is durable once [`Disk::durable_up_to`] is above it.
    pub fn submit(&mut self, step: Step) -> usize {
        self.waiting.push(step);
        self.durable.len() + self.waiting.len() - 1
    }

    /// How many steps are durable.
    pub fn durable_up_to(&self) -> usize {
        self.durable.len()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Flushes the first `count` waiting steps; returns what has become durable.
    pub fn flush(&mut self, count: usize) -> Vec<Step> {
        let flushed: Vec<Step> = self.waiting.drain(..count).collect();
        self.durable.extend(flushed.iter().cloned());
        flushed
    }

    /// The power goes: of the steps that were not flushed, the first `kept` were on the disk all the same.
    ///
    /// A disk may lose any subset of what was not flushed, and yet a start never finds anything but a prefix. The journal
    /// writes a frame only after the flush of the frame before it has returned; until then later steps wait in memory.
    /// So at most one frame of steps is not flushed, the next in order, and a frame of which any page was lost is cut
    /// whole (D12). Whole frames are prefixes; the simulator keeps every number of steps, which is more than those. That
    /// the journal does so is its own tests' to show: `any_subset_of_the_last_frames_pages_lost` and
    /// `crash_at_every_operation_of_a_story`, where unsynced pages, lengths and names are lost one by one.
    pub fn cut(&mut self, kept: usize) -> Vec<Step> {
        let flushed = self.flush(kept);
        self.waiting.clear();
        flushed
    }

    /// An old copy of the disk is put in place of the newest.
    pub fn roll_back_to(&mut self, steps: usize) {
        self.waiting.clear();
        self.durable.truncate(steps);
    }

    /// The records of one link's channel, in order.
    pub fn records(&self, link: usize) -> Vec<Record> {
        let entries = self.durable.iter().flatten();
        let of_link = entries.filter_map(|entry| match entry {
            Entry::Record { link: of, bytes } if *of == link => Some(bytes),
            Entry::Record { .. } | Entry::Cursor { .. } => None,
        });
        of_link.map(|bytes| Record::decode(bytes).expect("what was encoded decodes")).collect()
    }

    /// The number of steps up to and with the `n`th record of a link.
    pub fn steps_through(&self, link: usize, n: usize) -> usize {
        let mut seen = 0;
        for (index, step) in self.durable.iter().enumerate() {
            seen += step.iter().filter(|entry| matches!(entry, Entry::Record { link: of, .. } if *of == link)).count();
            if seen >= n {
                return index + 1;
            }
        }
        self.durable.len()
    }

    /// The last block that was handled, as far as the disk knows.
    pub fn cursor(&self) -> Option<(BlockHeight, u64)> {
        self.durable.iter().flatten().rev().find_map(|entry| match entry {
            Entry::Cursor { height, block } => Some((*height, *block)),
            Entry::Record { .. } => None,
        })
    }
}
