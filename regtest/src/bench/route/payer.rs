//! What payments over the found ways come to, and what that teaches the next searches: as the daemon learns of its payments.

use std::collections::BTreeMap;

use millrace_routing::graph::{Direction, NodeId};
use millrace_routing::liquidity::Liquidity;
use millrace_routing::map::{Edge, Map};
use millrace_routing::path::Path;
use millrace_wire::{Msat, ShortChannelId};

use super::measure::Dice;

/// Pays over ways, and remembers what it learns.
#[derive(Default)]
pub(super) struct Payer {
    /// What is known to it.
    pub(super) liquidity: Liquidity,
    /// What channels really hold at the side of the lesser node. Nobody is told; drawn from the channel's id at first.
    held: BTreeMap<ShortChannelId, u64>,
    /// Payments that arrived.
    pub(super) arrived: usize,
}

impl Payer {
    /// Pays once. A channel that cannot carry it ends it there.
    pub(super) fn pay(&mut self, map: &Map, path: &Path, now: u32) {
        // Of its own channel a payer knows everything.
        let hops = path.hops.iter().skip(1);
        let others: Vec<(&Edge, Msat)> =
            hops.filter_map(|hop| Some((edge(map, &hop.node, hop.short_channel_id)?, hop.amount))).collect();
        for (edge, amount) in &others {
            let way = (edge.short_channel_id, edge.direction);
            if amount.0 > self.held(edge) {
                self.liquidity.refused(way, *amount, edge.capacity, now);
                return;
            }
            self.liquidity.passed(way, *amount, edge.capacity, now);
        }
        for (edge, amount) in others {
            self.liquidity.moved((edge.short_channel_id, edge.direction), amount, edge.capacity, now);
            let lesser = self.held.entry(edge.short_channel_id).or_default();
            *lesser = match edge.direction {
                Direction::FromLesser => *lesser - amount.0,
                Direction::FromGreater => *lesser + amount.0,
            };
        }
        self.arrived += 1;
    }

    /// What a channel holds for this direction.
    fn held(&mut self, edge: &Edge) -> u64 {
        let (id, capacity) = (edge.short_channel_id, edge.capacity.0);
        let lesser = *self.held.entry(id).or_insert_with(|| Dice(id.0).next() % (capacity + 1));
        match edge.direction {
            Direction::FromLesser => lesser,
            Direction::FromGreater => capacity - lesser,
        }
    }
}

fn edge<'a>(map: &'a Map, towards: &NodeId, id: ShortChannelId) -> Option<&'a Edge> {
    map.edges_to(map.index(towards)?).iter().find(|edge| edge.short_channel_id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use millrace_routing::graph::Policy;
    use millrace_routing::map::Usable;
    use millrace_routing::path::Hop;

    const NOW: u32 = 1_700_000_000;
    const CAPACITY: Msat = Msat(1_000_000);

    fn node(number: u8) -> NodeId {
        NodeId([2 + number; 33])
    }

    fn id(number: u64) -> ShortChannelId {
        ShortChannelId(number << 40)
    }

    /// Nodes in a line: 0 – 1 – 2, by the channels 1 and 2, both directions.
    fn line() -> Map {
        let channel = |number: u8, direction| {
            let ends = [node(number - 1), node(number)];
            let [from, to] = if direction == Direction::FromLesser { ends } else { [ends[1], ends[0]] };
            let policy = Policy {
                is_disabled: false,
                cltv_expiry_delta: 40,
                htlc_minimum: Msat(1),
                htlc_maximum: CAPACITY,
                fee_base_msat: 0,
                fee_proportional_millionths: 0,
            };
            Usable { short_channel_id: id(number.into()), direction, from, to, policy, capacity: CAPACITY }
        };
        Map::of_channels([1, 2].into_iter().flat_map(|n| Direction::BOTH.map(|way| channel(n, way))).collect())
    }

    fn path(amount: Msat) -> Path {
        let hop = |number: u8| Hop { node: node(number), short_channel_id: id(number.into()), amount, delta: 40 };
        Path { hops: vec![hop(1), hop(2)] }
    }

    #[test]
    fn a_channel_that_holds_too_little_refuses_and_it_is_remembered() {
        let mut payer = Payer::default();
        payer.held.insert(id(2), 5_000);
        payer.pay(&line(), &path(Msat(5_001)), NOW);
        let bounds = payer.liquidity.bounds((id(2), Direction::FromLesser), CAPACITY, NOW);
        assert_eq!((payer.arrived, bounds.most, payer.liquidity.len()), (0, Msat(5_000), 1));
    }

    #[test]
    fn what_arrives_moves_what_the_channel_holds() {
        let mut payer = Payer::default();
        payer.held.insert(id(2), 5_000);
        payer.pay(&line(), &path(Msat(3_000)), NOW);
        assert_eq!((payer.arrived, payer.held[&id(2)]), (1, 2_000));
        let back = payer.liquidity.bounds((id(2), Direction::FromGreater), CAPACITY, NOW);
        assert_eq!(back.least, Msat(3_000), "it could go back");
        payer.pay(&line(), &path(Msat(3_000)), NOW);
        assert_eq!(payer.arrived, 1);
    }
}
