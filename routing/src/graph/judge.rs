//! What is not taken into the graph, and why. None of it is a fault of whoever sent it: gossip crosses, repeats itself, and
//! comes in any order. Asked before any signature is verified, since that is what costs.

use millrace_wire::{ChannelAnnouncement, ChannelUpdate, NodeAnnouncement, ShortChannelId};
use thiserror::Error;

use super::channel::is_for_peer_alone;
use super::{Direction, Graph, NodeId, STALE_AFTER_SECONDS};

/// An announcement may be so many seconds ahead of our clock.
pub(super) const AHEAD_SECONDS_MAX: u32 = 24 * 3600;

/// Why something is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum Unwanted {
    /// It is of another chain.
    #[error("it is of another chain")]
    OtherChain,
    /// It is known, or something newer.
    #[error("it is no news")]
    Known,
    /// The channel's id is another channel's, which was verified first.
    #[error("its short channel id is taken by another channel")]
    Conflict,
    /// It is about a channel that was not announced.
    #[error("the channel was not announced")]
    UnknownChannel,
    /// It is by a node without an announced channel.
    #[error("the node has no announced channel")]
    UnknownNode,
    /// It is older than what is forgotten.
    #[error("it is older than two weeks")]
    Stale,
    /// Its time is in the future.
    #[error("its time is more than a day ahead")]
    Ahead,
    /// It is for the peer alone.
    #[error("it is for a peer alone")]
    NotPublic,
    /// It is more than one in a while.
    #[error("it changes too often")]
    TooOften,
}

impl Graph {
    /// Whether a channel is to be verified and looked up.
    ///
    /// # Errors
    /// [`Unwanted`].
    pub fn check_channel(&self, announcement: &ChannelAnnouncement) -> Result<(), Unwanted> {
        let contents = &announcement.parsed().contents;
        if contents.chain_hash != self.chain_hash {
            return Err(Unwanted::OtherChain);
        }
        match self.channels.get(&ShortChannelId(contents.short_channel_id)) {
            None => Ok(()),
            Some(known) if *known.announcement == *announcement.bytes() => Err(Unwanted::Known),
            // BOLT 7 lets it be blacklisted. Whoever is in the chain was here first, and nobody can prove more.
            Some(_) => Err(Unwanted::Conflict),
        }
    }

    /// Whether an update is to be verified, and by whom it must be. `now` in seconds of Unix time.
    ///
    /// # Errors
    /// [`Unwanted`].
    pub fn sender_of(&self, update: &ChannelUpdate, now: u32) -> Result<NodeId, Unwanted> {
        let contents = &update.parsed().contents;
        if contents.chain_hash != self.chain_hash {
            return Err(Unwanted::OtherChain);
        }
        if is_for_peer_alone(contents) {
            return Err(Unwanted::NotPublic);
        }
        let channel = self.channels.get(&ShortChannelId(contents.short_channel_id)).ok_or(Unwanted::UnknownChannel)?;
        let direction = Direction::of_update(contents);
        if contents.timestamp > now.saturating_add(AHEAD_SECONDS_MAX) {
            return Err(Unwanted::Ahead);
        }
        if contents.timestamp < now.saturating_sub(STALE_AFTER_SECONDS) {
            return Err(Unwanted::Stale);
        }
        match channel.terms_of(direction) {
            Some(known) if known.timestamp >= contents.timestamp => Err(Unwanted::Known),
            _ => Ok(*channel.sender(direction)),
        }
    }

    /// Whether a node's announcement is to be verified. `now` in seconds of Unix time. One from long ago is wanted: nodes need
    /// not repeat theirs.
    ///
    /// # Errors
    /// [`Unwanted`].
    pub fn check_node(&self, announcement: &NodeAnnouncement, now: u32) -> Result<(), Unwanted> {
        let contents = &announcement.parsed().contents;
        let id = NodeId(*contents.node_id.as_array());
        let node = self.nodes.get(&id).ok_or(Unwanted::UnknownNode)?;
        if contents.timestamp > now.saturating_add(AHEAD_SECONDS_MAX) {
            return Err(Unwanted::Ahead);
        }
        match &node.announcement {
            Some(known) if known.timestamp >= contents.timestamp => Err(Unwanted::Known),
            _ => Ok(()),
        }
    }
}
