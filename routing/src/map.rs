//! The graph as path finding reads it: numbers in arrays, and nothing else.
//!
//! A copy, made from the [`Graph`] now and then and shared by all searches: no search holds up gossip, nor gossip a search.
//! Edges stand by the node that they lead to, since searches begin at the payee.

use std::collections::BTreeMap;

use millrace_wire::{Msat, ShortChannelId};

use crate::graph::{Announced, Direction, Graph, NodeId, Policy};

/// A node of a [`Map`], by its place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NodeIndex(pub(crate) u32);

/// One direction of a channel that may be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edge {
    /// The channel.
    pub short_channel_id: ShortChannelId,
    /// Which way.
    pub direction: Direction,
    /// Who forwards over it.
    pub from: NodeIndex,
    /// On what terms.
    pub policy: Policy,
    /// What the channel holds.
    pub capacity: Msat,
}

/// The usable channels of a graph, at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Map {
    nodes: Vec<NodeId>,
    /// For each node, where its edges begin in `edges`; and the end of all.
    first: Vec<u32>,
    edges: Vec<Edge>,
    /// Nodes that demand what is unknown here, in ascending order.
    demanding: Vec<NodeId>,
}

impl Map {
    /// Of a graph.
    #[must_use]
    pub fn new(graph: &Graph) -> Self {
        let channels = graph.channels().iter().flat_map(|(id, channel)| {
            Direction::BOTH.into_iter().filter_map(move |direction| {
                let policy = *channel.usable(direction)?;
                let (from, to) = (*channel.sender(direction), *channel.sender(direction.reversed()));
                Some(Usable {
                    short_channel_id: *id,
                    direction,
                    from,
                    to,
                    policy,
                    capacity: channel.capacity.to_msat(),
                })
            })
        });
        let demands = |announced: &Announced| !announced.is_understood;
        let demanding = graph.nodes().iter().filter(|(_, node)| node.announcement.as_ref().is_some_and(demands));
        Self::of(channels.collect(), demanding.map(|(id, _)| *id).collect())
    }

    /// Of channels that are usable, in any order.
    #[must_use]
    pub fn of_channels(channels: Vec<Usable>) -> Self {
        Self::of(channels, Vec::new())
    }

    /// The same, where some nodes demand what is unknown here. BOLT 7, "The `node_announcement` Message": nothing is forwarded
    /// by them. They can be paid: their invoices say what that needs.
    #[must_use]
    pub fn of(mut channels: Vec<Usable>, mut demanding: Vec<NodeId>) -> Self {
        demanding.sort_unstable();
        channels.retain(|channel| demanding.binary_search(&channel.from).is_err());
        let mut nodes: Vec<NodeId> = channels.iter().flat_map(|channel| [channel.from, channel.to]).collect();
        nodes.sort_unstable();
        nodes.dedup();
        let places: BTreeMap<NodeId, u32> = nodes.iter().copied().zip(0..).collect();
        channels.sort_unstable_by_key(|channel| (channel.to, channel.short_channel_id, channel.direction));
        let mut first = Vec::with_capacity(nodes.len() + 1);
        let mut edges = Vec::with_capacity(channels.len());
        let mut node = 0;
        first.push(0);
        for channel in &channels {
            let Usable { short_channel_id, direction, policy, capacity, .. } = *channel;
            let to = places[&channel.to];
            while node < to {
                first.push(edges.len() as u32);
                node += 1;
            }
            edges.push(Edge { short_channel_id, direction, from: NodeIndex(places[&channel.from]), policy, capacity });
        }
        first.resize(nodes.len() + 1, edges.len() as u32);
        Self { nodes, first, edges, demanding }
    }

    /// How many nodes there are.
    #[must_use]
    pub const fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// How many directions of channels there are.
    #[must_use]
    pub const fn edge_count(&self) -> usize {
        self.edges.len()
    }

    /// Where a node stands.
    #[must_use]
    pub fn index(&self, node: &NodeId) -> Option<NodeIndex> {
        self.nodes.binary_search(node).ok().and_then(|place| u32::try_from(place).ok()).map(NodeIndex)
    }

    /// Which node stands there.
    #[must_use]
    pub fn node(&self, index: NodeIndex) -> &NodeId {
        &self.nodes[index.0 as usize]
    }

    /// The nodes, in ascending order.
    #[must_use]
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    /// Whether a node may forward, and may be paid without an invoice: it demands nothing that is unknown here.
    #[must_use]
    pub fn is_understood(&self, node: &NodeId) -> bool {
        self.demanding.binary_search(node).is_err()
    }

    /// What leads to a node.
    #[must_use]
    pub fn edges_to(&self, node: NodeIndex) -> &[Edge] {
        let [begin, end] = [0, 1].map(|next| self.first[node.0 as usize + next] as usize);
        &self.edges[begin..end]
    }
}

/// One direction of a channel, by the names of its nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Usable {
    /// The channel.
    pub short_channel_id: ShortChannelId,
    /// Which way.
    pub direction: Direction,
    /// Who forwards over it.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// On what terms.
    pub policy: Policy,
    /// What the channel holds.
    pub capacity: Msat,
}
