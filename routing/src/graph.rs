//! The public graph: which nodes have announced which channels, and on what terms they forward (BOLT 7).
//!
//! What comes in has been verified ([`VerifiedChannel`] and the like), and the caller has asked the chain about funding
//! outputs. Messages are kept as they came, and that is how they are relayed: their signatures cover bytes that this node
//! may not understand. Path finding reads none of this: it has a copy of its own ([`crate::map`]).

mod allowance;
mod answer;
mod ask;
mod channel;
#[cfg(test)]
mod fixture;
mod judge;
mod node;
mod saved;
#[cfg(test)]
mod tests;
mod verify;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use millrace_wire::{BlockHeight, ChainHash, Sat, ShortChannelId};

pub use answer::{Backlog, IdsAnswer, RangeAnswer, Relayed};
pub use ask::{AskFault, Asking, Next};
pub use channel::{Channel, Direction, Policy, Terms};
pub use judge::Unwanted;
pub use node::{Announced, Node, NodeId};
pub use saved::LoadError;
pub use verify::{GossipFault, VerifiedChannel, VerifiedNode, VerifiedUpdate};

use allowance::Allowance;

/// BOLT 7, "Pruning the Network View": terms that were not repeated for so long may be forgotten.
pub const STALE_AFTER_SECONDS: u32 = 14 * 24 * 3600;
/// BOLT 7: a channel is forgotten so many blocks after its funding output was spent, since it may have been spliced.
pub const SPENT_BLOCKS: u32 = 72;

/// All announced channels and their nodes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Graph {
    chain_hash: ChainHash,
    channels: BTreeMap<ShortChannelId, Channel>,
    nodes: BTreeMap<NodeId, Node>,
}

impl Graph {
    /// Of a chain, with nothing in it.
    #[must_use]
    pub const fn new(chain_hash: ChainHash) -> Self {
        Self { chain_hash, channels: BTreeMap::new(), nodes: BTreeMap::new() }
    }

    // --- what is in it ---

    /// The channels, in the order of their ids.
    #[must_use]
    pub const fn channels(&self) -> &BTreeMap<ShortChannelId, Channel> {
        &self.channels
    }

    /// The nodes that have an announced channel.
    #[must_use]
    pub const fn nodes(&self) -> &BTreeMap<NodeId, Node> {
        &self.nodes
    }

    // --- what comes in ---

    /// Takes a channel whose funding output is there, and holds `capacity`.
    ///
    /// # Errors
    /// [`Unwanted`] if it is known by now.
    pub fn add_channel(&mut self, channel: &VerifiedChannel, capacity: Sat, now: u32) -> Result<(), Unwanted> {
        self.check_channel(&channel.announcement)?;
        let contents = &channel.announcement.parsed().contents;
        let nodes = [contents.node_id_1, contents.node_id_2].map(|id| NodeId(*id.as_array()));
        let added = Channel {
            nodes,
            capacity,
            announcement: channel.announcement.bytes().into(),
            known_since: now,
            is_understood: !contents.features.requires_unknown_bits(),
            terms: [None, None],
            spent_at: None,
        };
        self.insert(ShortChannelId(contents.short_channel_id), added);
        Ok(())
    }

    fn insert(&mut self, id: ShortChannelId, channel: Channel) {
        for node in channel.nodes {
            self.nodes.entry(node).or_default().channels += 1;
        }
        self.channels.insert(id, channel);
    }

    /// Takes a side's terms.
    ///
    /// # Errors
    /// [`Unwanted`] if they are not news, or too many.
    pub fn apply_update(&mut self, update: &VerifiedUpdate, now: u32) -> Result<(), Unwanted> {
        self.take_update(update, now, |before| before.after_change(now).ok_or(Unwanted::TooOften))
    }

    /// Takes this node's own terms: nobody else could use up its right to change them, so they are never too many.
    ///
    /// # Errors
    /// [`Unwanted`] if they are not news.
    pub fn apply_own_update(&mut self, update: &VerifiedUpdate, now: u32) -> Result<(), Unwanted> {
        self.take_update(update, now, Ok)
    }

    fn take_update(
        &mut self,
        update: &VerifiedUpdate,
        now: u32,
        after: impl FnOnce(Allowance) -> Result<Allowance, Unwanted>,
    ) -> Result<(), Unwanted> {
        if self.sender_of(&update.update, now)? != update.by {
            // The channel was forgotten meanwhile, and is there again as another's.
            return Err(Unwanted::UnknownChannel);
        }
        let contents = &update.update.parsed().contents;
        let id = ShortChannelId(contents.short_channel_id);
        let channel = self.channels.get_mut(&id).ok_or(Unwanted::UnknownChannel)?;
        let terms = &mut channel.terms[Direction::of_update(contents).index()];
        let before = terms.as_ref().map_or(Allowance::full(now), |terms| terms.allowance);
        let allowance = after(before)?;
        *terms = Some(Terms::new(&update.update, allowance));
        Ok(())
    }

    /// Takes what a node says of itself.
    ///
    /// # Errors
    /// [`Unwanted`] if it is not news, or too often, or the node has no channel.
    pub fn apply_node(&mut self, announcement: &VerifiedNode, now: u32) -> Result<(), Unwanted> {
        self.take_node(announcement, now, |before| before.after_change(now).ok_or(Unwanted::TooOften))
    }

    /// Takes what this node says of itself: never too often, as with [`Graph::apply_own_update`].
    ///
    /// # Errors
    /// [`Unwanted`] if it is not news, or this node has no channel.
    pub fn apply_own_node(&mut self, announcement: &VerifiedNode, now: u32) -> Result<(), Unwanted> {
        self.take_node(announcement, now, Ok)
    }

    fn take_node(
        &mut self,
        announcement: &VerifiedNode,
        now: u32,
        after: impl FnOnce(Allowance) -> Result<Allowance, Unwanted>,
    ) -> Result<(), Unwanted> {
        self.check_node(&announcement.0, now)?;
        let id = NodeId(*announcement.0.parsed().contents.node_id.as_array());
        let node = self.nodes.get_mut(&id).ok_or(Unwanted::UnknownNode)?;
        let before = node.announcement.as_ref().map_or(Allowance::full(now), |announced| announced.allowance);
        node.announcement = Some(Announced::new(&announcement.0, after(before)?));
        Ok(())
    }

    // --- what goes ---

    /// A block spends a channel's funding output. No route uses it any more; it is forgotten by [`Graph::prune`].
    pub fn mark_spent(&mut self, id: ShortChannelId, height: BlockHeight) -> bool {
        self.channels.get_mut(&id).is_some_and(|channel| channel.spent_at.replace(height) != Some(height))
    }

    /// Blocks from this height on are no longer in the chain: what they spent is not spent, and what they funded is gone.
    pub fn on_disconnected(&mut self, height: BlockHeight) {
        for channel in self.channels.values_mut() {
            if channel.spent_at.is_some_and(|at| at >= height) {
                channel.spent_at = None;
            }
        }
        let gone: Vec<_> = self.channels.keys().filter(|id| id.parts().0 >= height.0).copied().collect();
        gone.into_iter().for_each(|id| self.remove(id));
    }

    /// Forgets what is stale: terms not repeated for [`STALE_AFTER_SECONDS`], channels with neither, and those whose
    /// funding output was spent [`SPENT_BLOCKS`] ago. Returns the channels that are gone.
    pub fn prune(&mut self, now: u32, height: BlockHeight) -> Vec<ShortChannelId> {
        let oldest = now.saturating_sub(STALE_AFTER_SECONDS);
        let mut gone = Vec::new();
        for (id, channel) in &mut self.channels {
            for terms in &mut channel.terms {
                if terms.as_ref().is_some_and(|terms| terms.timestamp < oldest) {
                    *terms = None;
                }
            }
            let is_silent = channel.terms.iter().all(Option::is_none) && channel.known_since < oldest;
            let is_spent = channel.spent_at.is_some_and(|at| at.0.saturating_add(SPENT_BLOCKS) <= height.0);
            if is_silent || is_spent {
                gone.push(*id);
            }
        }
        gone.iter().for_each(|id| self.remove(*id));
        gone
    }

    /// Forgets a channel, and its nodes if they have no other.
    fn remove(&mut self, id: ShortChannelId) {
        let Some(channel) = self.channels.remove(&id) else { return };
        for node in channel.nodes {
            if let Entry::Occupied(mut known) = self.nodes.entry(node) {
                known.get_mut().channels -= 1;
                if known.get().channels == 0 {
                    known.remove();
                }
            }
        }
    }
}
