//! Asking a peer for what it knows of the graph (BOLT 7, "Initial Sync"): first which channels there are, with timestamps and
//! checksums; then for those that are unknown here or newer there, some at a time.
//!
//! One job for each peer that is asked. What the peer says is bounded: by its own range, which its replies may only cover
//! once and in order, and by [`CHANNELS_MAX`].

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use millrace_wire::{
    BlockHeight, ChainHash, PerDirection, QueryChannelRange, QueryShortChannelIds, ReplyChannelRange,
    ReplyShortChannelIdsEnd, ShortChannelId,
};
use thiserror::Error;

use super::{Direction, Graph, STALE_AFTER_SECONDS};

/// Timestamps and checksums are wanted.
const QUERY_OPTIONS: u64 = 3;
/// More than this no peer is asked for: some times what there is in the world.
const CHANNELS_MAX: usize = 500_000;
/// Channels asked for at once: their answers have about a megabyte.
const CHANNELS_PER_QUERY: usize = 1_000;
/// `query_flags`.
const WANT_ALL: u64 = 31;
const WANT_UPDATES: [u64; 2] = [2, 4];

/// What a peer says against the rules of BOLT 7. The job ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum AskFault {
    /// A reply to nothing.
    #[error("a reply to a question that was not asked")]
    NotAsked,
    /// A reply that goes back, leaves a gap, or names channels outside of its range.
    #[error("reply_channel_range about {found} channels from block {first} on, where {expected} is next")]
    Range {
        /// Where the reply begins.
        first: u32,
        /// Where it should.
        expected: u32,
        /// How many channels it has.
        found: usize,
    },
    /// Lists that are not of one length.
    #[error("{channels} channels with {numbers} timestamps or checksums")]
    Numbers {
        /// Channels.
        channels: usize,
        /// Numbers.
        numbers: usize,
    },
    /// There are not so many channels.
    #[error("more than {CHANNELS_MAX} channels")]
    TooMany,
}

/// What is to be said next.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    /// Wait for the peer.
    Wait,
    /// Ask for these.
    Query(QueryShortChannelIds),
    /// It is done.
    Done,
}

/// The job of asking one peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Asking {
    chain_hash: ChainHash,
    stage: Stage,
    /// The last channel that was named.
    named: Option<ShortChannelId>,
    /// Channels that are to be asked for, and what of each.
    wanted: BTreeMap<ShortChannelId, u64>,
    /// Every channel was named with the times of its terms.
    tells_times: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// Replies are coming; the next begins here.
    Ranges {
        next: BlockHeight,
    },
    /// Answers are coming.
    Channels,
    Done,
}

impl Asking {
    /// Begins one: what is to be sent.
    #[must_use]
    pub const fn begin(chain_hash: ChainHash) -> (Self, QueryChannelRange) {
        let first_block = BlockHeight(0);
        let query = QueryChannelRange {
            chain_hash,
            first_block,
            number_of_blocks: u32::MAX,
            query_options: Some(QUERY_OPTIONS),
        };
        let stage = Stage::Ranges { next: first_block };
        (Self { chain_hash, stage, named: None, wanted: BTreeMap::new(), tells_times: true }, query)
    }

    /// Whether nothing more will be asked.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done)
    }

    /// Whether the peer has told of every channel when its terms were last said, as it was asked to. One that has not leaves
    /// open what is newer there, and may not answer for single channels either (LDK does not).
    #[must_use]
    pub const fn tells_times(&self) -> bool {
        self.tells_times
    }

    /// The peer tells which channels there are. `now` in seconds of Unix time.
    ///
    /// # Errors
    /// [`AskFault`]; the job is over.
    pub fn on_range(&mut self, reply: &ReplyChannelRange, graph: &Graph, now: u32) -> Result<Next, AskFault> {
        let result = self.take_range(reply, graph, now);
        if result.is_err() {
            self.stage = Stage::Done;
        }
        result
    }

    fn take_range(&mut self, reply: &ReplyChannelRange, graph: &Graph, now: u32) -> Result<Next, AskFault> {
        let Stage::Ranges { next } = self.stage else { return Err(AskFault::NotAsked) };
        if reply.chain_hash != self.chain_hash {
            return Err(AskFault::NotAsked);
        }
        check(reply, next, self.named)?;
        self.named = self.named.max(reply.short_channel_ids.last().copied());
        self.tells_times &= reply.timestamps.is_some() || reply.short_channel_ids.is_empty();
        for (place, id) in reply.short_channel_ids.iter().enumerate() {
            let of = |numbers: &Option<Vec<PerDirection>>| numbers.as_ref().map(|numbers| numbers[place]);
            let flags = wanted_of(*id, of(&reply.timestamps), of(&reply.checksums), graph, now);
            if flags != 0 {
                self.wanted.insert(*id, flags);
            }
        }
        if self.wanted.len() > CHANNELS_MAX {
            return Err(AskFault::TooMany);
        }
        let end = u64::from(reply.first_block.0) + u64::from(reply.number_of_blocks);
        // Some implementations say `sync_complete` of every reply, or of none: the range decides.
        if end >= u64::from(u32::MAX) {
            return Ok(self.query());
        }
        self.stage = Stage::Ranges { next: BlockHeight(u32::try_from(end).unwrap_or(u32::MAX)) };
        Ok(Next::Wait)
    }

    /// The peer has answered for the channels that it was asked for.
    ///
    /// # Errors
    /// [`AskFault`]; the job is over.
    pub fn on_end(&mut self, end: &ReplyShortChannelIdsEnd) -> Result<Next, AskFault> {
        if self.stage != Stage::Channels || end.chain_hash != self.chain_hash {
            self.stage = Stage::Done;
            return Err(AskFault::NotAsked);
        }
        // A peer that says that it knows nothing of this chain need not be asked any more.
        if !end.full_information {
            self.wanted.clear();
        }
        Ok(self.query())
    }

    fn query(&mut self) -> Next {
        let rest = match self.wanted.keys().nth(CHANNELS_PER_QUERY).copied() {
            Some(first) => self.wanted.split_off(&first),
            None => BTreeMap::new(),
        };
        let (short_channel_ids, query_flags): (Vec<_>, Vec<_>) =
            std::mem::replace(&mut self.wanted, rest).into_iter().unzip();
        if short_channel_ids.is_empty() {
            self.stage = Stage::Done;
            return Next::Done;
        }
        self.stage = Stage::Channels;
        let query_flags = Some(query_flags);
        Next::Query(QueryShortChannelIds { chain_hash: self.chain_hash, short_channel_ids, query_flags })
    }
}

/// A reply begins where the one before has ended, or with the block in which that one was cut, and names its own blocks only,
/// in order. One that goes no further than what was told names channels behind the last one: or else there could be no end.
fn check(reply: &ReplyChannelRange, next: BlockHeight, named: Option<ShortChannelId>) -> Result<(), AskFault> {
    let ids = &reply.short_channel_ids;
    let (first, expected) = (reply.first_block.0, next.0);
    let fault = AskFault::Range { first, expected, found: ids.len() };
    // Most begin at a block before what was asked for, and end beyond it: BOLT 7 allows that.
    let end = u64::from(first) + u64::from(reply.number_of_blocks);
    if first > expected
        || end + 1 < u64::from(expected)
        || (end <= u64::from(expected) && expected > 0 && ids.last().copied() <= named)
    {
        return Err(fault);
    }
    let is_in = |id: &ShortChannelId| u64::from(id.parts().0) >= u64::from(first) && u64::from(id.parts().0) < end;
    if !ids.iter().all(is_in) || !ids.is_sorted_by(|one, other| one < other) {
        return Err(fault);
    }
    for numbers in [&reply.timestamps, &reply.checksums].into_iter().flatten() {
        if numbers.len() != ids.len() {
            return Err(AskFault::Numbers { channels: ids.len(), numbers: numbers.len() });
        }
    }
    Ok(())
}

/// What to ask of a channel: all of one that is unknown, and of another the terms that are newer there and differ.
fn wanted_of(
    id: ShortChannelId,
    timestamps: Option<PerDirection>,
    checksums: Option<PerDirection>,
    graph: &Graph,
    now: u32,
) -> u64 {
    let Some(channel) = graph.channels().get(&id) else {
        // Terms that are all stale come with a channel that would be pruned at once.
        let is_alive = |PerDirection { node_1, node_2 }: PerDirection| {
            let newest = node_1.max(node_2);
            newest == 0 || newest >= now.saturating_sub(STALE_AFTER_SECONDS)
        };
        return if timestamps.is_none_or(is_alive) { WANT_ALL } else { 0 };
    };
    let Some(timestamps) = timestamps else { return 0 };
    let mut flags = 0;
    for direction in Direction::BOTH {
        let of = |numbers: PerDirection| match direction {
            Direction::FromLesser => numbers.node_1,
            Direction::FromGreater => numbers.node_2,
        };
        let (known, checksum) = channel.terms_of(direction).map_or((0, 0), |terms| (terms.timestamp, terms.checksum));
        // The same terms again are worth asking for only when ours are about to be forgotten.
        let is_same = known > 0 && checksums.is_some_and(|checksums| of(checksums) == checksum);
        let is_old = known < now.saturating_sub(STALE_AFTER_SECONDS / 2);
        if of(timestamps) > known && (!is_same || is_old) {
            flags |= WANT_UPDATES[direction.index()];
        }
    }
    flags
}
