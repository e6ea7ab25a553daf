//! The public graph, as people ask for it.

use std::sync::atomic::Ordering;

use millrace_routing::graph::{Channel, Direction, NodeId, Policy};
use millrace_wire::{BlockHeight, Decoded, Message, NodeAnnouncement, PublicKey, Sat, ShortChannelId};

use super::{Gossip, Inner};

/// The graph in numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GraphInfo {
    /// Announced channels.
    pub channels: usize,
    /// Directions whose terms are known.
    pub directions: usize,
    /// Nodes that have an announced channel.
    pub nodes: usize,
    /// What all channels hold.
    pub capacity: Sat,
    /// Channels whose funding output is spent: they leave soon.
    pub spent: usize,
    /// When a peer was last asked for the whole graph, to the end: Unix time in milliseconds.
    pub synced_ms: Option<u64>,
    /// Peers that are being asked for it.
    pub syncing: Vec<PublicKey>,
    /// Peers that were asked for what is new.
    pub flows: usize,
}

/// A side's terms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownTerms {
    /// The terms.
    pub policy: Policy,
    /// Seconds of Unix time.
    pub timestamp: u32,
}

/// An announced channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownChannel {
    /// Its id.
    pub id: ShortChannelId,
    /// Its nodes, the lesser id first.
    pub nodes: [NodeId; 2],
    /// What it holds.
    pub capacity: Sat,
    /// When it was first heard of, in seconds of Unix time.
    pub known_since: u32,
    /// The block that spends it.
    pub spent_at: Option<BlockHeight>,
    /// What each side asks.
    pub terms: [Option<ShownTerms>; 2],
}

/// An announced node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ShownNode {
    /// Its id.
    pub id: NodeId,
    /// What it says of itself.
    pub announcement: Option<NodeAnnouncement>,
    /// Its channels, as many as were asked for.
    pub channels: Vec<ShownChannel>,
    /// How many it has.
    pub channel_count: u32,
}

impl Gossip {
    /// The graph in numbers.
    pub async fn info(&self) -> GraphInfo {
        self.inner.work(Inner::info).await
    }

    /// A channel, if it is announced.
    pub async fn channel(&self, id: ShortChannelId) -> Option<ShownChannel> {
        self.inner.work(move |inner| inner.read().graph.channels().get(&id).map(|channel| shown(id, channel))).await
    }

    /// A node, if it has an announced channel; with no more than `channels_max` of its channels.
    pub async fn node(&self, id: NodeId, channels_max: usize) -> Option<ShownNode> {
        self.inner.work(move |inner| inner.node(id, channels_max)).await
    }
}

impl Inner {
    fn info(&self) -> GraphInfo {
        let book = self.read();
        let channels = book.graph.channels();
        let seats = self.seats();
        GraphInfo {
            channels: channels.len(),
            directions: book.directions(),
            nodes: book.graph.nodes().len(),
            capacity: Sat(channels.values().map(|channel| channel.capacity.0).sum()),
            spent: channels.values().filter(|channel| channel.spent_at.is_some()).count(),
            synced_ms: Some(self.synced_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0),
            syncing: seats
                .values()
                .filter(|seated| seated.is_asking.load(Ordering::Relaxed))
                .map(|seated| seated.peer)
                .collect(),
            flows: seats.values().filter(|seated| seated.flows.load(Ordering::Relaxed)).count(),
        }
    }

    fn node(&self, id: NodeId, channels_max: usize) -> Option<ShownNode> {
        let book = self.read();
        let node = book.graph.nodes().get(&id)?;
        let announcement = node.announcement.as_ref().and_then(|announced| {
            match Message::decode(&super::book::whole(257, &announced.bytes)) {
                Ok(Decoded::Message(Message::NodeAnnouncement(announcement))) => Some(*announcement),
                Ok(_) | Err(_) => None,
            }
        });
        let of_node = book.graph.channels().iter().filter(|(_, channel)| channel.nodes.contains(&id));
        let channels = of_node.take(channels_max).map(|(id, channel)| shown(*id, channel)).collect();
        Some(ShownNode { id, announcement, channels, channel_count: node.channels })
    }
}

fn shown(id: ShortChannelId, channel: &Channel) -> ShownChannel {
    let terms = |way| {
        let terms = channel.terms_of(way)?;
        Some(ShownTerms { policy: terms.policy, timestamp: terms.timestamp })
    };
    ShownChannel {
        id,
        nodes: channel.nodes,
        capacity: channel.capacity,
        known_since: channel.known_since,
        spent_at: channel.spent_at,
        terms: Direction::BOTH.map(terms),
    }
}
