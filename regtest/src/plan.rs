//! What a network shall be: its nodes, its channels, and what each asks for forwarding.
//!
//! It is pure: a topology or a file makes one (`file`), `mesh` brings it about. Nodes are named by their index.

pub mod file;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::random::Random;

/// The fewest and the most nodes of a topology. Every daemon is a process with a memory of its own.
pub const NODES_MIN: usize = 2;
/// See [`NODES_MIN`].
pub const NODES_MAX: usize = 40;
/// A channel's size unless it is said.
pub const CAPACITY_SAT: u64 = 10_000_000;
/// The smallest channel that is worth its anchors, reserve and fees.
pub const CAPACITY_SAT_MIN: u64 = 100_000;
/// The largest that a daemon opens by its default settings.
pub const CAPACITY_SAT_MAX: u64 = 1_000_000_000;
/// The largest that ldk-node takes part in.
pub const LDK_CAPACITY_SAT_MAX: u64 = 16_777_215;

/// The fewest blocks between the two HTLCs' expiries that a daemon takes, and LDK.
pub const CLTV_DELTA_MIN: u16 = 48;
/// The most: BOLT 7 recommends to lock no payment for longer.
pub const CLTV_DELTA_MAX: u16 = 2_016;
/// A `channel_update` can name no higher fee, neither the base nor the share.
pub const FEE_MAX: u64 = u32::MAX as u64;

/// The first of them; whoever comes later is called by a number.
const NAMES: [&str; 12] =
    ["alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy", "kim", "leo"];

/// Which program a node is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// `millraced`.
    #[default]
    Millrace,
    /// ldk-node.
    Ldk,
}

impl Kind {
    /// As files and tables name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Millrace => "millrace",
            Self::Ldk => "ldk",
        }
    }
}

/// A node.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct NodePlan {
    /// What commands call it.
    pub name: String,
    /// Which program it is.
    pub kind: Kind,
    /// What it calls itself.
    pub alias: String,
}

/// A channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelPlan {
    /// Who opens it and pays for it.
    pub from: usize,
    /// The other.
    pub to: usize,
    /// Its whole size.
    pub capacity_sat: u64,
    /// Of it, what is the other's at the start.
    pub push_sat: u64,
    /// Whether it is announced.
    pub public: bool,
}

/// What a node asks for forwarding; what is absent stays the node's default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct PolicyPlan {
    /// Whose.
    pub node: usize,
    /// Over its channels with this one; absent: over all of its channels.
    pub peer: Option<usize>,
    /// For each payment.
    pub fee_base_msat: Option<u64>,
    /// Of the amount, in millionths.
    pub fee_ppm: Option<u32>,
    /// Blocks between the two HTLCs' expiries.
    pub cltv_delta: Option<u16>,
    /// The smallest HTLC.
    pub htlc_minimum_msat: Option<u64>,
    /// The largest HTLC.
    pub htlc_maximum_msat: Option<u64>,
}

impl PolicyPlan {
    /// Whether it is about a channel.
    #[must_use]
    pub fn is_for(&self, channel: &ChannelPlan) -> bool {
        let ends = [(channel.from, channel.to), (channel.to, channel.from)];
        ends.iter().any(|(node, peer)| *node == self.node && self.peer.is_none_or(|wanted| wanted == *peer))
    }
}

/// A network.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Plan {
    /// Its nodes.
    pub nodes: Vec<NodePlan>,
    /// Its channels, in the order in which they are opened.
    pub channels: Vec<ChannelPlan>,
    /// What is asked for forwarding.
    pub policies: Vec<PolicyPlan>,
}

/// How channels lie between the nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Topology {
    /// Each with the next.
    Line,
    /// The first with every other.
    Star,
    /// A line whose ends are joined.
    Ring,
    /// Everyone reaches everyone; which way, the seed decides.
    Random,
}

impl ChannelPlan {
    /// An announced channel that each side has half of.
    #[must_use]
    pub const fn halves(from: usize, to: usize) -> Self {
        Self { from, to, capacity_sat: CAPACITY_SAT, push_sat: CAPACITY_SAT / 2, public: true }
    }
}

impl Plan {
    /// So many `millraced` and no channel.
    #[must_use]
    pub fn nodes(count: usize) -> Self {
        let name = |index: usize| NAMES.get(index).map_or_else(|| format!("node{}", index + 1), ToString::to_string);
        let node = |index| NodePlan { name: name(index), kind: Kind::Millrace, alias: name(index) };
        Self { nodes: (0..count).map(node).collect(), ..Self::default() }
    }

    /// With announced channels between these nodes, each side having half.
    #[must_use]
    pub fn with_channels(mut self, ends: &[(usize, usize)]) -> Self {
        self.channels.extend(ends.iter().map(|(from, to)| ChannelPlan::halves(*from, *to)));
        self
    }

    /// With some nodes of another kind. LDK takes part only in smaller channels, which these are.
    #[must_use]
    pub fn with_kind(mut self, nodes: &[usize], kind: Kind) -> Self {
        for node in nodes {
            self.nodes[*node].kind = kind;
        }
        self
    }

    /// Each with the next.
    #[must_use]
    pub fn line(count: usize) -> Self {
        Self::topology(Topology::Line, count, 0)
    }

    /// Two ways from the first to the last: 0–1–3 and 0–2–3.
    #[must_use]
    pub fn diamond() -> Self {
        Self::nodes(4).with_channels(&[(0, 1), (0, 2), (1, 3), (2, 3)])
    }

    /// As a topology says.
    #[must_use]
    pub fn topology(topology: Topology, count: usize, seed: u64) -> Self {
        let line = || (1..count).map(|node| (node - 1, node));
        let ends: Vec<(usize, usize)> = match topology {
            Topology::Line => line().collect(),
            Topology::Star => (1..count).map(|node| (0, node)).collect(),
            // Of two nodes, the way back is the way there.
            Topology::Ring => line().chain((count > 2).then(|| (count - 1, 0))).collect(),
            Topology::Random => random_ends(count, seed),
        };
        Self::nodes(count).with_channels(&ends)
    }

    /// A node by its name.
    #[must_use]
    pub fn node_named(&self, name: &str) -> Option<usize> {
        self.nodes.iter().position(|node| node.name == name)
    }

    /// Whether payments may come to a node that are to go on over a channel of it which is not announced.
    pub(crate) fn forwards_to_private(&self, node: usize) -> bool {
        let own = self.channels.iter().filter(|channel| channel.from == node || channel.to == node);
        let (public, private): (Vec<&ChannelPlan>, _) = own.partition(|channel| channel.public);
        !public.is_empty() && !private.is_empty()
    }

    /// Whether a network that is `self` can become `wanted` by adding to it; else, what stands against it.
    ///
    /// # Errors
    /// In words, for a person.
    pub fn check_may_become(&self, wanted: &Self) -> Result<(), String> {
        for node in &self.nodes {
            let found = wanted.nodes.iter().find(|other| other.name == node.name);
            match found {
                None => return Err(format!("{} is in the network, and is not wanted any more", node.name)),
                Some(other) if other.kind != node.kind => {
                    let (has, wants) = (node.kind.name(), other.kind.name());
                    return Err(format!("{} is of kind {has} in the network, and {wants} is wanted", node.name));
                }
                Some(_) => {}
            }
        }
        // A node's place decides nothing once it has its folder; a channel's place is what it is known by.
        for (index, channel) in self.channels.iter().enumerate() {
            if wanted.channels.get(index).map(|other| wanted.in_names(other)) != Some(self.in_names(channel)) {
                let (from, to, ..) = self.in_names(channel);
                return Err(format!(
                    "channel {} of the network, {from} to {to}, is another in what is wanted: channels can only be added, \
                     after those that are there",
                    index + 1
                ));
            }
        }
        Ok(())
    }

    fn in_names<'a>(&'a self, channel: &ChannelPlan) -> (&'a str, &'a str, u64, u64, bool) {
        let name = |node: usize| self.nodes[node].name.as_str();
        (name(channel.from), name(channel.to), channel.capacity_sat, channel.push_sat, channel.public)
    }
}

/// A tree that reaches everyone, and half as many channels again.
fn random_ends(count: usize, seed: u64) -> Vec<(usize, usize)> {
    let mut random = Random(seed);
    let mut below = |bound: usize| usize::try_from(random.below(bound as u64)).expect("it is below a usize");
    let mut ends: Vec<(usize, usize)> = (1..count).map(|node| (below(node), node)).collect();
    let mut taken: BTreeSet<(usize, usize)> = ends.iter().copied().collect();
    let pairs = count * (count - 1) / 2;
    let wanted = (ends.len() + count / 2).min(pairs);
    while ends.len() < wanted {
        let (one, other) = (below(count), below(count));
        let pair = (one.min(other), one.max(other));
        if one != other && taken.insert(pair) {
            ends.push((one, other));
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn ends(plan: &Plan) -> Vec<(usize, usize)> {
        plan.channels.iter().map(|channel| (channel.from, channel.to)).collect()
    }

    #[test]
    fn topologies_are_what_their_names_say() {
        assert_eq!(ends(&Plan::line(4)), [(0, 1), (1, 2), (2, 3)]);
        assert_eq!(ends(&Plan::topology(Topology::Star, 4, 0)), [(0, 1), (0, 2), (0, 3)]);
        assert_eq!(ends(&Plan::topology(Topology::Ring, 4, 0)), [(0, 1), (1, 2), (2, 3), (3, 0)]);
        assert_eq!(ends(&Plan::topology(Topology::Ring, 2, 0)), [(0, 1)]);
        assert_eq!(ends(&Plan::diamond()), [(0, 1), (0, 2), (1, 3), (2, 3)]);
    }

    #[test]
    fn whoever_has_channels_of_both_kinds_forwards_to_private_ones() {
        let mut plan = Plan::line(3);
        plan.channels[1].public = false;
        let forwards: Vec<bool> = (0..3).map(|node| plan.forwards_to_private(node)).collect();
        assert_eq!(forwards, [false, true, false]);
    }

    #[test]
    fn random_ones_reach_everyone_and_repeat_by_their_seed() {
        for seed in 0..50 {
            for count in [2, 3, 5, 12] {
                let plan = Plan::topology(Topology::Random, count, seed);
                assert_eq!(plan, Plan::topology(Topology::Random, count, seed));
                let mut reached = BTreeSet::from([0]);
                for _ in 0..count {
                    for (from, to) in ends(&plan) {
                        assert_ne!(from, to);
                        if reached.contains(&from) || reached.contains(&to) {
                            reached.extend([from, to]);
                        }
                    }
                }
                assert_eq!(reached.len(), count, "seed {seed}");
                let pairs: BTreeSet<_> = ends(&plan).iter().map(|(a, b)| (*a.min(b), *a.max(b))).collect();
                assert_eq!(pairs.len(), plan.channels.len(), "two channels between the same nodes, seed {seed}");
            }
        }
        let all: BTreeSet<String> =
            (0..20).map(|seed| format!("{:?}", ends(&Plan::topology(Topology::Random, 6, seed)))).collect();
        assert!(all.len() > 10, "seeds decide little: {}", all.len());
    }

    #[test]
    fn names_are_told_apart_however_many_there_are() {
        let plan = Plan::nodes(NODES_MAX);
        let names: BTreeSet<&str> = plan.nodes.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(names.len(), NODES_MAX);
        assert_eq!((plan.node_named("carol"), plan.node_named("node13")), (Some(2), Some(12)));
    }

    mod may_become {
        use super::*;

        #[test]
        fn what_adds_to_it() {
            let now = Plan::line(3);
            now.check_may_become(&now).unwrap();
            now.check_may_become(&Plan::line(5)).unwrap();
        }

        #[test]
        fn nothing_that_takes_a_node_away() {
            let why = Plan::line(3).check_may_become(&Plan::line(2)).unwrap_err();
            assert!(why.contains("carol"), "{why}");
        }

        #[test]
        fn nothing_that_changes_a_channel() {
            let mut wanted = Plan::line(3);
            wanted.channels[1].capacity_sat += 1;
            let why = Plan::line(3).check_may_become(&wanted).unwrap_err();
            assert!(why.contains("channel 2") && why.contains("bob to carol"), "{why}");
        }

        #[test]
        fn nothing_that_changes_a_kind() {
            let why = Plan::line(3).check_may_become(&Plan::line(3).with_kind(&[1], Kind::Ldk)).unwrap_err();
            assert!(why.contains("bob") && why.contains("ldk"), "{why}");
        }
    }
}
