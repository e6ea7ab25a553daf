//! The graph with what the chain says of it: which output funds each channel, so that a spend is noticed.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bitcoin::{OutPoint, Txid};
use millrace_routing::graph::{Channel, Direction, Graph, Unwanted, VerifiedChannel, VerifiedNode, VerifiedUpdate};
use millrace_wire::{BlockHeight, PublicKey, Sat, ShortChannelId};

use super::relay::Passed;

const CHANNEL_ANNOUNCEMENT: u16 = 256;
const NODE_ANNOUNCEMENT: u16 = 257;
const CHANNEL_UPDATE: u16 = 258;

/// The graph and its outputs.
pub(super) struct Book {
    pub(super) graph: Graph,
    /// The funding output of each channel. The standard hash is seeded, and a channel has about 90 bytes here, a tenth of
    /// what its messages have.
    pub(super) outpoints: HashMap<OutPoint, ShortChannelId>,
    /// Grows with every block that comes or goes: what was looked up before may be otherwise since.
    pub(super) chain_changes: u64,
    /// The last block; none before the first since a node began.
    pub(super) height: Option<BlockHeight>,
    /// Grows with whatever changes.
    pub(super) changes: u64,
    /// Of which the file has so many.
    pub(super) saved: AtomicU64,
    /// Channels that are new and were not passed on: BOLT 7 lets an announcement wait for the first update of its channel,
    /// which tells its time.
    unannounced: BTreeSet<ShortChannelId>,
}

/// Whose message it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum From {
    /// This node's.
    Own,
    /// A peer's.
    Peer(PublicKey),
}

impl From {
    pub(super) fn peer(self) -> Option<PublicKey> {
        match self {
            Self::Own => None,
            Self::Peer(peer) => Some(peer),
        }
    }
}

impl Book {
    pub(super) fn new(graph: Graph, outpoints: HashMap<OutPoint, ShortChannelId>) -> Self {
        let is_silent =
            |(id, channel): (&ShortChannelId, &Channel)| channel.terms.iter().all(Option::is_none).then_some(*id);
        let unannounced = graph.channels().iter().filter_map(is_silent).collect();
        Self { graph, outpoints, chain_changes: 0, height: None, changes: 0, saved: AtomicU64::new(0), unannounced }
    }

    /// Takes a channel whose funding output is there.
    pub(super) fn add_channel(
        &mut self,
        channel: &VerifiedChannel,
        txid: Txid,
        capacity: Sat,
        now: u32,
    ) -> Result<(), Unwanted> {
        self.graph.add_channel(channel, capacity, now)?;
        let id = ShortChannelId(channel.announcement().parsed().contents.short_channel_id);
        self.outpoints.insert(outpoint_of(id, txid), id);
        self.unannounced.insert(id);
        self.changes += 1;
        Ok(())
    }

    /// Takes a side's terms; what is to be passed on goes to `out`.
    pub(super) fn apply_update(
        &mut self,
        update: &VerifiedUpdate,
        from: From,
        now: u32,
        out: &mut Vec<Passed>,
    ) -> Result<(), Unwanted> {
        match from {
            From::Own => self.graph.apply_own_update(update, now)?,
            From::Peer(_) => self.graph.apply_update(update, now)?,
        }
        self.changes += 1;
        let contents = &update.update().parsed().contents;
        let (id, timestamp) = (ShortChannelId(contents.short_channel_id), contents.timestamp);
        if self.unannounced.remove(&id)
            && let Some(channel) = self.graph.channels().get(&id)
        {
            out.push(passed(CHANNEL_ANNOUNCEMENT, &channel.announcement, timestamp, from));
        }
        out.push(passed(CHANNEL_UPDATE, update.update().bytes(), timestamp, from));
        Ok(())
    }

    /// Takes what a node says of itself; what is to be passed on goes to `out`.
    pub(super) fn apply_node(
        &mut self,
        node: &VerifiedNode,
        from: From,
        now: u32,
        out: &mut Vec<Passed>,
    ) -> Result<(), Unwanted> {
        match from {
            From::Own => self.graph.apply_own_node(node, now)?,
            From::Peer(_) => self.graph.apply_node(node, now)?,
        }
        self.changes += 1;
        let announcement = node.announcement();
        out.push(passed(NODE_ANNOUNCEMENT, announcement.bytes(), announcement.parsed().contents.timestamp, from));
        Ok(())
    }

    /// A block has come.
    pub(super) fn on_connected(&mut self, height: BlockHeight, spent: &[ShortChannelId], now: u32) {
        self.chain_changes += 1;
        self.height = Some(height);
        for id in spent {
            if self.graph.mark_spent(*id, height) {
                self.changes += 1;
                tracing::debug!(short_channel_id = %id, %height, "an announced channel is spent");
            }
        }
        self.prune(now);
    }

    /// These were spent while nobody watched, and the chain has this height now. Which block spent them is not known, and the
    /// last one that was seen here may be from long before: counted from there, they could leave at once.
    pub(super) fn mark_spent_unseen(&mut self, spent: &[ShortChannelId], height: BlockHeight) {
        for id in spent {
            let is_known = self.graph.channels().get(id).is_some_and(|channel| channel.spent_at.is_some());
            if !is_known && self.graph.mark_spent(*id, height) {
                self.changes += 1;
            }
        }
    }

    /// The last block was taken off.
    pub(super) fn on_disconnected(&mut self, height: BlockHeight) {
        self.chain_changes += 1;
        self.changes += 1;
        self.height = Some(BlockHeight(height.0.saturating_sub(1)));
        self.graph.on_disconnected(height);
        self.forget_outpoints();
    }

    /// Forgets what is stale, or was spent long enough ago.
    pub(super) fn prune(&mut self, now: u32) {
        let gone = self.graph.prune(now, self.height.unwrap_or_default());
        if !gone.is_empty() {
            self.changes += 1;
            self.forget_outpoints();
        }
    }

    fn forget_outpoints(&mut self) {
        let graph = &self.graph;
        self.outpoints.retain(|_, id| graph.channels().contains_key(id));
        self.unannounced.retain(|id| graph.channels().contains_key(id));
    }

    /// How many directions have terms.
    pub(super) fn directions(&self) -> usize {
        let of = |channel: &Channel| Direction::BOTH.iter().filter(|way| channel.terms_of(**way).is_some()).count();
        self.graph.channels().values().map(of).sum()
    }
}

/// A channel's output, by the transaction that its id names.
pub(super) fn outpoint_of(id: ShortChannelId, txid: Txid) -> OutPoint {
    OutPoint { txid, vout: u32::from(id.parts().2) }
}

/// A whole message.
pub(super) fn whole(type_number: u16, bytes: &[u8]) -> Arc<[u8]> {
    type_number.to_be_bytes().iter().chain(bytes).copied().collect()
}

fn passed(type_number: u16, bytes: &[u8], timestamp: u32, from: From) -> Passed {
    Passed { bytes: whole(type_number, bytes), timestamp, from: from.peer() }
}
