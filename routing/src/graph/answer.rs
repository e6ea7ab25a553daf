//! Answers to what peers ask of the graph (BOLT 7, "Query Messages" and "Initial Sync"), piece by piece: whoever sends them
//! takes the next piece once the last has left, so that no question makes this node hold more than one piece. Between two
//! pieces the graph may change.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::ops::Bound;

use millrace_wire::{
    BlockHeight, ChainHash, GossipTimestampFilter, PerDirection, QueryChannelRange, QueryShortChannelIds,
    ReplyChannelRange, ReplyShortChannelIdsEnd, ShortChannelId,
};

use super::{Channel, Direction, Graph, NodeId};

/// Bit 0 of `query_option_flags`: timestamps are wanted.
const WANT_TIMESTAMPS: u64 = 1;
/// Bit 1: checksums.
const WANT_CHECKSUMS: u64 = 2;
/// Channels in a reply: with timestamps and checksums it has 24 bytes for each, of 65,535 at most.
const CHANNELS_PER_REPLY: usize = 2_500;

/// `query_flags`: what is wanted of a channel.
const WANT_CHANNEL: u64 = 1;
const WANT_UPDATES: [u64; 2] = [2, 4];
const WANT_NODES: [u64; 2] = [8, 16];
const WANT_ALL: u64 = 31;

/// A gossip message as it came: its type, and what stands behind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relayed {
    /// 256, 257 or 258.
    pub type_number: u16,
    /// Everything behind the type.
    pub bytes: Box<[u8]>,
}

impl Relayed {
    const fn new(type_number: u16, bytes: Box<[u8]>) -> Self {
        Self { type_number, bytes }
    }
}

/// The answer to `query_channel_range`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RangeAnswer {
    query: QueryChannelRange,
    /// The first block that no reply was wholly about; `None` at the end.
    next: Option<BlockHeight>,
    /// In that block, the last channel that was told.
    told: Option<ShortChannelId>,
}

impl RangeAnswer {
    /// Begins one.
    #[must_use]
    pub const fn new(query: QueryChannelRange) -> Self {
        Self { query, next: Some(query.first_block), told: None }
    }

    /// The next reply; `None` after the last. Replies follow each other without a gap, and end with a block, unless one block
    /// has more channels than a reply holds: then the next begins with the same block.
    pub fn next(&mut self, graph: &Graph) -> Option<ReplyChannelRange> {
        let first_block = self.next?;
        let QueryChannelRange { chain_hash, query_options, .. } = self.query;
        let empty = |number_of_blocks| ReplyChannelRange {
            chain_hash,
            first_block,
            number_of_blocks,
            sync_complete: true,
            short_channel_ids: Vec::new(),
            timestamps: None,
            checksums: None,
        };
        let asked = query_options.unwrap_or(0);
        let is_ours = chain_hash == graph.chain_hash;
        let Some(last_block) = self.query.last_block().filter(|_| is_ours) else {
            self.next = None;
            return Some(ReplyChannelRange { sync_complete: is_ours, ..empty(self.query.number_of_blocks) });
        };
        let (begin, end) = (self.told.map_or(first_of(first_block), Bound::Excluded), after(last_block));
        let mut found: Vec<(ShortChannelId, &Channel)> = graph
            .channels
            .range((begin, end))
            .take(CHANNELS_PER_REPLY + 1)
            .map(|(id, channel)| (*id, channel))
            .collect();
        let is_last = found.len() <= CHANNELS_PER_REPLY;
        let mut covered = last_block;
        (self.next, self.told) = (None, None);
        if !is_last {
            (covered, self.told) = cut(&mut found);
            let next = if self.told.is_some() { Some(covered.0) } else { covered.0.checked_add(1) };
            self.next = next.map(BlockHeight);
        }
        let numbers = |of: fn(&super::Terms) -> u32| {
            found.iter().map(|(_, channel)| per_direction(channel, of)).collect::<Vec<PerDirection>>()
        };
        Some(ReplyChannelRange {
            sync_complete: is_last,
            timestamps: (asked & WANT_TIMESTAMPS != 0).then(|| numbers(|terms| terms.timestamp)),
            checksums: (asked & WANT_CHECKSUMS != 0).then(|| numbers(|terms| terms.checksum)),
            short_channel_ids: found.iter().map(|(id, _)| *id).collect(),
            // What was asked for may run past the last height that there can be.
            ..empty(if is_last { self.left_from(first_block) } else { covered.0 - first_block.0 + 1 })
        })
    }

    const fn left_from(&self, first_block: BlockHeight) -> u32 {
        self.query.number_of_blocks - (first_block.0 - self.query.first_block.0)
    }
}

/// Cuts a list off, one channel longer than a reply, before the block in which it ends; or within that block, if it has no
/// other. Gives the last block that the rest is about, and its last channel if the block goes on.
fn cut(found: &mut Vec<(ShortChannelId, &Channel)>) -> (BlockHeight, Option<ShortChannelId>) {
    let block = |(id, _): &(ShortChannelId, &Channel)| id.parts().0;
    let last = found.last().map_or(0, block);
    match found.iter().position(|channel| block(channel) == last).unwrap_or(0) {
        0 => {
            found.pop();
            (BlockHeight(last), found.last().map(|(id, _)| *id))
        }
        whole => {
            found.truncate(whole);
            (BlockHeight(last.saturating_sub(1)), None)
        }
    }
}

fn per_direction(channel: &Channel, of: fn(&super::Terms) -> u32) -> PerDirection {
    let number = |direction| channel.terms_of(direction).map_or(0, of);
    PerDirection { node_1: number(Direction::FromLesser), node_2: number(Direction::FromGreater) }
}

fn first_of(block: BlockHeight) -> Bound<ShortChannelId> {
    ShortChannelId::new(block.0, 0, 0).map_or(Bound::Excluded(ShortChannelId(u64::MAX)), Bound::Included)
}

fn after(block: BlockHeight) -> Bound<ShortChannelId> {
    let next = block.0.checked_add(1).and_then(|next| ShortChannelId::new(next, 0, 0));
    next.map_or(Bound::Unbounded, Bound::Excluded)
}

/// The answer to `query_short_channel_ids`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IdsAnswer {
    query: QueryShortChannelIds,
    place: usize,
    told: BTreeSet<NodeId>,
}

impl IdsAnswer {
    /// Begins one.
    #[must_use]
    pub const fn new(query: QueryShortChannelIds) -> Self {
        Self { query, place: 0, told: BTreeSet::new() }
    }

    /// What is known of the next channel: its announcement, its sides' terms, its nodes (each once). `None` when all are
    /// answered: then comes [`IdsAnswer::end`].
    pub fn next(&mut self, graph: &Graph) -> Option<Vec<Relayed>> {
        if self.query.chain_hash != graph.chain_hash {
            return None;
        }
        let id = *self.query.short_channel_ids.get(self.place)?;
        let flags = self.query.query_flags.as_ref();
        let wanted = flags.map_or(WANT_ALL, |flags| flags.get(self.place).copied().unwrap_or(0));
        self.place += 1;
        let mut out = Vec::new();
        if let Some(channel) = graph.channels.get(&id) {
            put_channel(channel, wanted & WANT_CHANNEL != 0, |way| wanted & WANT_UPDATES[way.index()] != 0, &mut out);
            for (node, flag) in channel.nodes.iter().zip(WANT_NODES) {
                if wanted & flag != 0 && self.told.insert(*node) {
                    put_node(graph, node, |_| true, &mut out);
                }
            }
        }
        Some(out)
    }

    /// What ends the answer.
    #[must_use]
    pub fn end(&self, graph: &Graph) -> ReplyShortChannelIdsEnd {
        let chain_hash = self.query.chain_hash;
        ReplyShortChannelIdsEnd { chain_hash, full_information: chain_hash == graph.chain_hash }
    }
}

fn put_channel(channel: &Channel, announcement: bool, updates: impl Fn(Direction) -> bool, out: &mut Vec<Relayed>) {
    if announcement {
        out.push(Relayed::new(256, channel.announcement.clone()));
    }
    for direction in Direction::BOTH {
        if let Some(terms) = channel.terms_of(direction).filter(|_| updates(direction)) {
            out.push(Relayed::new(258, terms.bytes.clone()));
        }
    }
}

fn put_node(graph: &Graph, node: &NodeId, wanted: impl Fn(u32) -> bool, out: &mut Vec<Relayed>) {
    let announced = graph.nodes.get(node).and_then(|node| node.announcement.as_ref());
    if let Some(announced) = announced.filter(|announced| wanted(announced.timestamp)) {
        out.push(Relayed::new(257, announced.bytes.clone()));
    }
}

/// What a `gossip_timestamp_filter` lets through of what is known already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backlog {
    filter: GossipTimestampFilter,
    after: Option<ShortChannelId>,
    told: BTreeSet<NodeId>,
}

impl Backlog {
    /// Begins one.
    #[must_use]
    pub const fn new(filter: GossipTimestampFilter) -> Self {
        Self { filter, after: None, told: BTreeSet::new() }
    }

    /// Whether something of this time passes a filter.
    #[must_use]
    pub fn passes(filter: &GossipTimestampFilter, timestamp: u32) -> bool {
        let since = timestamp.checked_sub(filter.first_timestamp);
        since.is_some_and(|since| since < filter.timestamp_range)
    }

    /// The chain that it is about.
    #[must_use]
    pub const fn chain_hash(&self) -> ChainHash {
        self.filter.chain_hash
    }

    /// The next channel that passes, and its nodes; `None` at the end. Looks at no more than `patience` channels, so it may be
    /// empty.
    pub fn next(&mut self, graph: &Graph, patience: usize) -> Option<Vec<Relayed>> {
        if self.filter.chain_hash != graph.chain_hash {
            return None;
        }
        let begin = self.after.map_or(Bound::Unbounded, Bound::Excluded);
        let passes = |timestamp| Self::passes(&self.filter, timestamp);
        let mut out = Vec::new();
        let mut is_end = true;
        for (id, channel) in graph.channels.range((begin, Bound::Unbounded)).take(patience.max(1)) {
            (self.after, is_end) = (Some(*id), false);
            // An announcement has no time of its own: it goes before the first of its channel's updates.
            let is_wanted = |way| channel.terms_of(way).is_some_and(|terms| passes(terms.timestamp));
            put_channel(channel, Direction::BOTH.into_iter().any(is_wanted), is_wanted, &mut out);
            for node in &channel.nodes {
                if !self.told.contains(node) {
                    let before = out.len();
                    put_node(graph, node, passes, &mut out);
                    if out.len() > before {
                        self.told.insert(*node);
                    }
                }
            }
            if !out.is_empty() {
                break;
            }
        }
        (!is_end).then_some(out)
    }
}
