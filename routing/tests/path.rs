//! LDK's router as the oracle of ours: on the same channels, with the same penalty for each hop, neither finds a way that costs
//! less than the other's.

#![allow(clippy::unwrap_used, missing_docs)]

use bitcoin::Network;
use lightning::ln::msgs::UnsignedChannelUpdate;
use lightning::routing::gossip::NetworkGraph;
use lightning::routing::router::{PaymentParameters, RouteParameters, find_route};
use lightning::routing::scoring::FixedPenaltyScorer;
use lightning::types::features::ChannelFeatures;
use lightning::util::logger::{Logger, Record};
use millrace_routing::graph::{Direction, NodeId, Policy};
use millrace_routing::liquidity::Liquidity;
use millrace_routing::map::{Map, Usable};
use millrace_routing::path::{Caps, DELTA_MAX, FirstHop, HOPS_MAX, InFlight, Path, Request, Search, Weights};
use millrace_wire::{ChainHash, Msat, ShortChannelId};
use proptest::prelude::*;
use secp256k1::{PublicKey, SECP256K1, SecretKey};

struct Silent;

impl Logger for Silent {
    fn log(&self, _record: Record<'_>) {}
}

/// Nothing of a channel's size or of time weighs anything.
const CAPACITY_SAT: u64 = 20_000_000_000_000;
const AMOUNT_MAX: u64 = 500_000;
/// What ours charges for a hop.
const PER_HOP_MSAT: u64 = 500;
const FINAL_DELTA: u32 = 30;

fn key(seed: u8) -> PublicKey {
    SecretKey::from_slice(&[seed + 1; 32]).unwrap().public_key(SECP256K1)
}

#[derive(Clone, Debug)]
struct Channel {
    scid: u64,
    nodes: (u8, u8),
    /// Of each node.
    fees: [(u32, u32); 2],
    deltas: [u16; 2],
    maximum: [u64; 2],
}

#[expect(clippy::disallowed_methods, reason = "LDK refuses updates that are old by the clock")]
fn now() -> u32 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u32::try_from(now.as_secs()).unwrap()
}

/// The lesser id first, as gossip has it.
fn ordered(channel: &Channel) -> [(u8, usize); 2] {
    let (one, other) = ((channel.nodes.0, 0), (channel.nodes.1, 1));
    if key(one.0).serialize() < key(other.0).serialize() { [one, other] } else { [other, one] }
}

fn theirs(channels: &[Channel]) -> NetworkGraph<&'static Silent> {
    let graph = NetworkGraph::new(Network::Regtest, &Silent);
    for channel in channels {
        let nodes = ordered(channel);
        let [one, other] = nodes.map(|(node, _)| lightning::routing::gossip::NodeId::from_pubkey(&key(node)));
        let features = ChannelFeatures::empty();
        graph
            .add_channel_from_partial_announcement(channel.scid, Some(CAPACITY_SAT), now().into(), features, one, other)
            .unwrap();
        for (flags, (_, side)) in (0..).zip(nodes) {
            let update = UnsignedChannelUpdate {
                chain_hash: ChainHash::REGTEST,
                short_channel_id: channel.scid,
                timestamp: now(),
                message_flags: 1,
                channel_flags: flags,
                cltv_expiry_delta: channel.deltas[side],
                htlc_minimum_msat: 0,
                htlc_maximum_msat: channel.maximum[side],
                fee_base_msat: channel.fees[side].0,
                fee_proportional_millionths: channel.fees[side].1,
                excess_data: Vec::new(),
            };
            graph.update_channel_unsigned(&update).unwrap();
        }
    }
    graph
}

fn ours(channels: &[Channel]) -> Map {
    let usable = channels.iter().flat_map(|channel| {
        let nodes = ordered(channel);
        Direction::BOTH.into_iter().map(move |direction| {
            let (from, side) = nodes[direction.index()];
            let (to, _) = nodes[direction.reversed().index()];
            let policy = Policy {
                is_disabled: false,
                cltv_expiry_delta: channel.deltas[side],
                htlc_minimum: Msat(0),
                htlc_maximum: Msat(channel.maximum[side]),
                fee_base_msat: channel.fees[side].0,
                fee_proportional_millionths: channel.fees[side].1,
            };
            let (from, to) = (NodeId::from(key(from)), NodeId::from(key(to)));
            let capacity = Msat(CAPACITY_SAT * 1000);
            Usable { short_channel_id: ShortChannelId(channel.scid), direction, from, to, policy, capacity }
        })
    });
    Map::of_channels(usable.collect())
}

/// Whether each channel carries what the path puts on it, and each node is paid for it.
fn is_a_way(path: &Path, channels: &[Channel]) -> bool {
    let mut from = NodeId::from(key(0));
    let mut before: Option<Msat> = None;
    path.hops.iter().all(|hop| {
        let channel = channels.iter().find(|channel| channel.scid == hop.short_channel_id.0).unwrap();
        let (of, to, side) = if from == NodeId::from(key(channel.nodes.0)) {
            (channel.nodes.0, channel.nodes.1, 0)
        } else {
            (channel.nodes.1, channel.nodes.0, 1)
        };
        let (base, share) = channel.fees[side];
        let needed = hop.amount.0 + u64::from(base) + hop.amount.0 * u64::from(share) / 1_000_000;
        let is_paid = before.is_none_or(|before| before.0 >= needed);
        let is_joined = from == NodeId::from(key(of)) && hop.node == NodeId::from(key(to));
        (from, before) = (hop.node, Some(hop.amount));
        is_joined && is_paid && hop.amount.0 <= channel.maximum[side]
    })
}

fn any_channel() -> impl Strategy<Value = Channel> {
    let side = || ((0..5_000_u32, 0..20_000_u32), 1..200_u16, AMOUNT_MAX / 4..AMOUNT_MAX * 2);
    (0..9_u8, 0..9_u8, side(), side()).prop_filter("two nodes", |(one, other, ..)| one != other).prop_map(
        |(one, other, first, second)| Channel {
            scid: 0,
            nodes: (one, other),
            fees: [first.0, second.0],
            deltas: [first.1, second.1],
            maximum: [first.2, second.2],
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn ours_costs_what_ldks_costs(
        mut channels in proptest::collection::vec(any_channel(), 3..40),
        amount in 1_000..AMOUNT_MAX,
        payee in 1..9_u8,
    ) {
        for (channel, number) in channels.iter_mut().zip(1..) {
            channel.scid = (100 + number) << 40 | 1 << 16;
        }
        let parameters = PaymentParameters::from_node_id(key(payee), FINAL_DELTA)
            .with_max_path_count(1)
            .with_max_channel_saturation_power_of_half(0)
            .with_max_total_cltv_expiry_delta(DELTA_MAX);
        let wanted = RouteParameters {
            payment_params: parameters,
            final_value_msat: amount,
            max_total_routing_fee_msat: Some(1_000_000),
        };
        let graph = theirs(&channels);
        let scorer = FixedPenaltyScorer::with_penalty(PER_HOP_MSAT);
        let ldks = find_route(&key(0), &wanted, &graph, None, &Silent, &scorer, &(), &[7; 32]);

        let first_hops: Vec<FirstHop> = channels
            .iter()
            .flat_map(|channel| {
                let ends = [(channel.nodes.0, channel.nodes.1, 0), (channel.nodes.1, channel.nodes.0, 1)];
                ends.into_iter().filter(|(from, ..)| *from == 0).map(|(_, to, side)| FirstHop {
                    peer: NodeId::from(key(to)),
                    short_channel_id: ShortChannelId(channel.scid),
                    least: Msat(0),
                    most: Msat(channel.maximum[side]),
                }).collect::<Vec<_>>()
            })
            .collect();
        let request = Request {
            source: NodeId::from(key(0)),
            payee: NodeId::from(key(payee)),
            amount: Msat(amount),
            final_delta: FINAL_DELTA,
            fee_limit: Msat(1_000_000),
            delta_limit: DELTA_MAX,
            hops_limit: HOPS_MAX,
            first_hops: &first_hops,
            hints: &[],
        };
        let (liquidity, in_flight, caps) = (Liquidity::default(), InFlight::new(), Caps::new());
        let weights = Weights {
            liquidity: &liquidity,
            in_flight: &in_flight,
            caps: &caps,
            now: now(),
            is_last_resort: false,
        };
        let found = Search::new().find(&ours(&channels), &request, &weights);

        match (ldks, found) {
            (Ok(route), Ok(path)) => {
                let hops = &route.paths[0].hops;
                let ldks = route.get_total_fees() + PER_HOP_MSAT * hops.len() as u64;
                let cost = path.fee().0 + PER_HOP_MSAT * path.hops.len() as u64;
                // By no more than fees on a difference in fees.
                let tolerance = 1 + cost.max(ldks) / 25;
                prop_assert!(cost <= ldks + tolerance && ldks <= cost + tolerance, "{cost} {ldks}\n{path:?}\n{route:?}");
            }
            (Err(_), Err(_)) => {}
            // LDK, too, keeps one way for each node; ours looks further when that one does not fit in the end.
            (Err(_), Ok(path)) => prop_assert!(is_a_way(&path, &channels), "{path:?}"),
            (ldks, found) => prop_assert!(false, "{ldks:?}\n{found:?}"),
        }
    }
}
