//! Ways on small maps, held against every way that there is.

#![allow(clippy::unwrap_used)]

mod last_resort;

use millrace_wire::{Msat, ShortChannelId};
use proptest::prelude::*;

use super::*;
use crate::liquidity::Liquidity;
use crate::map::{Map, Usable};

const NOW: u32 = 1_700_000_000;

fn node(number: u8) -> NodeId {
    NodeId([number; 33])
}

fn policy(base: u32, share: u32, delta: u16) -> Policy {
    Policy {
        is_disabled: false,
        cltv_expiry_delta: delta,
        htlc_minimum: Msat(1),
        htlc_maximum: Msat(10_000_000),
        fee_base_msat: base,
        fee_proportional_millionths: share,
    }
}

fn usable(id: u64, from: u8, to: u8, policy: Policy) -> Usable {
    let direction = if from < to { Direction::FromLesser } else { Direction::FromGreater };
    let capacity = Msat(20_000_000);
    Usable { short_channel_id: ShortChannelId(id), direction, from: node(from), to: node(to), policy, capacity }
}

fn door(id: u64, peer: u8, most: u64) -> FirstHop {
    FirstHop { peer: node(peer), short_channel_id: ShortChannelId(id), least: Msat(1), most: Msat(most) }
}

/// From node 0 to node 9.
fn request<'a>(amount: u64, first_hops: &'a [FirstHop], hints: &'a [Hint]) -> Request<'a> {
    Request {
        source: node(0),
        payee: node(9),
        amount: Msat(amount),
        final_delta: 20,
        fee_limit: Msat(1_000_000),
        delta_limit: DELTA_MAX,
        hops_limit: HOPS_MAX,
        first_hops,
        hints,
    }
}

struct World {
    map: Map,
    liquidity: Liquidity,
    in_flight: InFlight,
    caps: Caps,
}

impl World {
    fn new(channels: Vec<Usable>) -> Self {
        let (liquidity, in_flight, caps) = (Liquidity::default(), InFlight::new(), Caps::new());
        Self { map: Map::of_channels(channels), liquidity, in_flight, caps }
    }

    const fn weights(&self) -> Weights<'_> {
        let Self { liquidity, in_flight, caps, .. } = self;
        Weights { liquidity, in_flight, caps, now: NOW, is_last_resort: false }
    }

    /// As a last resort.
    fn resort(&self, request: &Request<'_>) -> Result<Path, NoPath> {
        Search::new().find(&self.map, request, &Weights { is_last_resort: true, ..self.weights() })
    }

    fn find(&self, request: &Request<'_>) -> Result<Path, NoPath> {
        Search::new().find(&self.map, request, &self.weights())
    }

    fn find_parts(&self, request: &Request<'_>, most: usize) -> Result<Vec<Path>, NoPath> {
        find_parts(&mut Search::new(), &self.map, request, &self.weights(), Parts { most })
    }
}

fn route(path: &Path) -> Vec<u64> {
    path.hops.iter().map(|hop| hop.short_channel_id.0).collect()
}

#[test]
fn a_neighbour_is_paid_over_the_channel_that_fits_best() {
    let world = World::new(Vec::new());
    let doors = [door(1, 9, 900), door(2, 9, 5_000), door(3, 9, 2_000)];
    let path = world.find(&request(1_000, &doors, &[])).unwrap();
    let hop = Hop { node: node(9), short_channel_id: ShortChannelId(3), amount: Msat(1_000), delta: 20 };
    assert_eq!(path.hops, [hop]);
    assert_eq!(path.fee(), Msat::ZERO);
}

#[test]
fn each_hop_gets_what_the_next_ones_charge_and_the_blocks_that_they_want() {
    // 0 -> 1 -> 2 -> 9. BOLT 7's example: each charges on what it forwards.
    let world = World::new(vec![usable(12, 1, 2, policy(200, 2_000, 20)), usable(29, 2, 9, policy(100, 1_000, 10))]);
    let path = world.find(&request(4_999_999, &[door(1, 1, 10_000_000)], &[])).unwrap();
    let at_2 = 4_999_999 + 100 + 4_999;
    let at_1 = at_2 + 200 + at_2 * 2_000 / 1_000_000;
    let told: Vec<_> = path.hops.iter().map(|hop| (hop.short_channel_id.0, hop.amount.0, hop.delta)).collect();
    assert_eq!(told, [(1, at_1, 50), (12, at_2, 30), (29, 4_999_999, 20)]);
    assert_eq!(path.fee().0, at_1 - 4_999_999);
}

#[test]
fn a_dear_short_way_or_a_cheap_long_one() {
    let long = |share| {
        vec![
            usable(19, 1, 9, policy(30_000, 0, 10)),
            usable(12, 1, 2, policy(0, share, 10)),
            usable(23, 2, 3, policy(0, share, 10)),
            usable(39, 3, 9, policy(0, share, 10)),
        ]
    };
    let doors = [door(1, 1, 10_000_000)];
    assert_eq!(route(&World::new(long(100)).find(&request(1_000_000, &doors, &[])).unwrap()), [1, 12, 23, 39]);
    assert_eq!(route(&World::new(long(20_000)).find(&request(1_000_000, &doors, &[])).unwrap()), [1, 19]);
}

#[test]
fn what_a_channel_does_not_take() {
    let small = Policy { htlc_maximum: Msat(999), ..policy(0, 0, 1) };
    let large = Policy { htlc_minimum: Msat(1_001), ..policy(0, 0, 1) };
    let doors = [door(1, 1, 10_000_000)];
    for (policy, amount, wanted) in
        [(small, 999, true), (small, 1_000, false), (large, 1_001, true), (large, 1_000, false)]
    {
        let found = World::new(vec![usable(19, 1, 9, policy)]).find(&request(amount, &doors, &[]));
        assert_eq!(found.is_ok(), wanted, "{amount}: {found:?}");
    }
    let mut thin = usable(19, 1, 9, policy(0, 0, 1));
    thin.capacity = Msat(999);
    assert_eq!(World::new(vec![thin]).find(&request(1_000, &doors, &[])), Err(NoPath::NoWay));
}

#[test]
fn limits_of_fee_time_and_length_are_kept_to_the_last_unit() {
    let world = World::new(vec![usable(12, 1, 2, policy(7, 0, 10)), usable(29, 2, 9, policy(5, 0, 10))]);
    let doors = [door(1, 1, 10_000_000)];
    let asked = request(1_000, &doors, &[]);
    let just = Request { fee_limit: Msat(12), delta_limit: 40, hops_limit: 3, ..asked };
    let path = world.find(&just).unwrap();
    assert_eq!((path.fee(), path.hops[0].delta, path.hops.len()), (Msat(12), 40, 3));
    let fee_limit = Msat(11);
    assert_eq!(world.find(&Request { fee_limit, ..just }), Err(NoPath::FeeLimit { fee_limit }));
    assert_eq!(
        world.find(&Request { delta_limit: 39, ..just }),
        Err(NoPath::DeltaLimit { delta_limit: 39, needed: 40 })
    );
    assert_eq!(world.find(&Request { hops_limit: 2, ..just }), Err(NoPath::NoWay));
    // Where both are broken, the fee is told first; what breaks no limit of blocks is no matter of blocks.
    assert_eq!(world.find(&Request { fee_limit, delta_limit: 39, ..just }), Err(NoPath::FeeLimit { fee_limit }));
    assert_eq!(world.find(&Request { delta_limit: 39, hops_limit: 2, ..just }), Err(NoPath::NoWay));
    assert_eq!(world.find(&Request { delta_limit: 39, payee: node(8), ..just }), Err(NoPath::NoWay));
}

#[test]
fn parts_that_take_too_many_blocks() {
    let world = World::new(vec![usable(12, 1, 2, policy(0, 0, 10)), usable(29, 2, 9, policy(0, 0, 10))]);
    let doors = [door(1, 1, 600_000), door(2, 1, 600_000)];
    let asked = Request { delta_limit: 40, ..request(1_000_000, &doors, &[]) };
    assert_eq!(world.find_parts(&asked, 2).map(|paths| paths.len()), Ok(2));
    let near = Request { delta_limit: 39, ..asked };
    assert_eq!(world.find_parts(&near, 2), Err(NoPath::DeltaLimit { delta_limit: 39, needed: 40 }));
    // Each part would cost the same, and all of them more than may be paid: it needs none.
    let base = policy(600, 0, 10);
    let world = World::new(vec![usable(12, 1, 2, base), usable(29, 2, 9, base)]);
    let doors = [door(1, 1, 1_100_000)];
    let near = Request { fee_limit: Msat(1_200), first_hops: &doors, ..near };
    assert_eq!(world.find_parts(&near, 16), Err(NoPath::DeltaLimit { delta_limit: 39, needed: 40 }));
    let dear = Request { fee_limit: Msat(1_199), ..near };
    assert!(matches!(world.find_parts(&dear, 16), Err(NoPath::FeeLimit { .. })));
    // What it takes for all of it, though less would do for a part.
    let thin = Usable { capacity: Msat(500_000), ..usable(28, 2, 9, policy(0, 0, 5)) };
    let world = World::new(vec![usable(12, 1, 2, policy(0, 0, 10)), usable(29, 2, 9, policy(0, 0, 10)), thin]);
    let nearest = Request { delta_limit: 34, ..near };
    assert_eq!(world.find_parts(&nearest, 16), Err(NoPath::DeltaLimit { delta_limit: 34, needed: 40 }));
}

/// Of two channels from node 2 to the payee the one is better until a limit cuts it off, one hop before it.
#[test]
fn a_way_within_the_limits_that_another_hides() {
    let doors = [door(1, 1, 10_000_000)];
    let thin = Usable { capacity: Msat(1_050_000), ..usable(28, 2, 9, policy(0, 0, 10)) };
    let world = World::new(vec![usable(12, 1, 2, policy(10, 0, 10)), usable(29, 2, 9, policy(5_000, 0, 10)), thin]);
    let asked = request(1_000_000, &doors, &[]);
    assert_eq!(route(&world.find(&asked).unwrap()), [1, 12, 29], "it is dearer, and far likelier");
    let just = Request { fee_limit: Msat(5_009), ..asked };
    assert_eq!(route(&world.find(&just).unwrap()), [1, 12, 28]);
    // By blocks: the one without a fee wants too many.
    let late = usable(28, 2, 9, policy(0, 0, 100));
    let world = World::new(vec![usable(12, 1, 2, policy(10, 0, 10)), usable(29, 2, 9, policy(5_000, 0, 10)), late]);
    assert_eq!(route(&world.find(&asked).unwrap()), [1, 12, 28]);
    let near = Request { delta_limit: 129, ..asked };
    assert_eq!(route(&world.find(&near).unwrap()), [1, 12, 29]);
    let fee_limit = Msat(5_009);
    assert_eq!(world.find(&Request { fee_limit, ..near }), Err(NoPath::FeeLimit { fee_limit }));
    let delta_limit = 39;
    let cheapest = NoPath::DeltaLimit { delta_limit, needed: 130 };
    assert_eq!(world.find(&Request { delta_limit, ..asked }), Err(cheapest));
    // By hops: the one without a fee has one more.
    let around = vec![
        usable(12, 1, 2, policy(10, 0, 10)),
        usable(29, 2, 9, policy(5_000, 0, 50)),
        usable(23, 2, 3, policy(0, 0, 1)),
        usable(39, 3, 9, policy(0, 0, 1)),
    ];
    let world = World::new(around);
    assert_eq!(route(&world.find(&asked).unwrap()), [1, 12, 23, 39]);
    assert_eq!(route(&world.find(&Request { hops_limit: 3, ..asked }).unwrap()), [1, 12, 29]);
}

#[test]
fn a_node_that_demands_what_is_unknown_is_paid_and_forwards_nothing() {
    let channels = vec![usable(12, 1, 2, policy(0, 0, 1)), usable(29, 2, 9, policy(0, 0, 1))];
    let demanding = |nodes: &[u8]| World {
        map: Map::of(channels.clone(), nodes.iter().map(|number| node(*number)).collect()),
        ..World::new(Vec::new())
    };
    let doors = [door(1, 1, 10_000)];
    let asked = request(1_000, &doors, &[]);
    assert_eq!(route(&demanding(&[9]).find(&asked).unwrap()), [1, 12, 29]);
    assert_eq!(demanding(&[2]).find(&asked), Err(NoPath::NoWay));
    assert_eq!(demanding(&[1]).find(&asked), Err(NoPath::NoWay), "a peer of ours, too");
    let world = demanding(&[2]);
    assert_eq!(route(&world.find(&Request { payee: node(2), ..asked }).unwrap()), [1, 12]);
    // Nor does it over a channel that an invoice tells of.
    let hint = Hint { from: node(2), to: node(8), short_channel_id: ShortChannelId(28), policy: policy(0, 0, 1) };
    let hinted = Request { payee: node(8), hints: &[hint], ..asked };
    assert_eq!(world.find(&hinted), Err(NoPath::NoWay));
    assert_eq!(route(&demanding(&[]).find(&hinted).unwrap()), [1, 12, 28]);
    assert!(!world.map.is_understood(&node(2)) && world.map.is_understood(&node(1)));
}

#[test]
fn why_there_is_no_way() {
    let world = World::new(vec![usable(19, 1, 9, policy(0, 0, 1))]);
    let asked = request(1_000, &[], &[]);
    assert_eq!(world.find(&asked), Err(NoPath::NoChannel));
    assert_eq!(world.find(&Request { payee: node(0), ..asked }), Err(NoPath::Ourselves));
    let doors = [door(1, 1, 999), door(2, 5, 500)];
    let asked = request(1_000, &doors, &[]);
    assert_eq!(world.find(&asked), Err(NoPath::Balance { most: Msat(999) }));
    // What our own channel cannot carry with the fees is no way either.
    let dear = World::new(vec![usable(19, 1, 9, policy(1, 0, 1))]);
    let doors = [door(1, 1, 1_000)];
    assert_eq!(dear.find(&request(1_000, &doors, &[])), Err(NoPath::NoWay));
    assert_eq!(world.find(&Request { payee: node(8), ..request(1_000, &doors, &[]) }), Err(NoPath::NoWay));
}

#[test]
fn our_own_channels_count_by_what_they_hold_and_not_by_what_the_graph_says() {
    // The graph says that we forward to 9; we have no such channel now.
    let world = World::new(vec![usable(9, 0, 9, policy(0, 0, 1)), usable(19, 1, 9, policy(3, 0, 1))]);
    let path = world.find(&request(1_000, &[door(1, 1, 2_000)], &[])).unwrap();
    assert_eq!((route(&path), path.fee()), (vec![1, 19], Msat(3)));
    // Nor does a way lead through us.
    let round = World::new(vec![usable(10, 1, 0, policy(0, 0, 1)), usable(9, 0, 9, policy(0, 0, 1))]);
    assert_eq!(round.find(&request(1_000, &[door(1, 1, 2_000)], &[])), Err(NoPath::NoWay));
}

#[test]
fn an_invoice_tells_of_the_last_hops() {
    let world = World::new(vec![usable(12, 1, 2, policy(10, 0, 5))]);
    let hint = |id, from, to, base| Hint {
        from: node(from),
        to: node(to),
        short_channel_id: ShortChannelId(id),
        policy: policy(base, 0, 7),
    };
    // 2 -> 20 -> 9: node 20 is in no map.
    let hints = [hint(220, 2, 20, 3), hint(209, 20, 9, 4)];
    let doors = [door(1, 1, 10_000)];
    let path = world.find(&request(1_000, &doors, &hints)).unwrap();
    assert_eq!((route(&path), path.fee()), (vec![1, 12, 220, 209], Msat(17)));
    assert_eq!(path.hops[0].delta, 20 + 7 + 7 + 5);
    // And straight from our peer.
    let hints = [hint(209, 1, 9, 4)];
    assert_eq!(route(&world.find(&request(1_000, &doors, &hints)).unwrap()), [1, 209]);
}

#[test]
fn what_has_failed_is_gone_around_until_it_is_forgotten() {
    let channels = vec![
        usable(19, 1, 9, policy(0, 0, 1)),
        usable(12, 1, 2, policy(500, 0, 1)),
        usable(29, 2, 9, policy(500, 0, 1)),
    ];
    let mut world = World::new(channels);
    let doors = [door(1, 1, 10_000_000)];
    let asked = request(5_000_000, &doors, &[]);
    assert_eq!(route(&world.find(&asked).unwrap()), [1, 19]);
    let way = (ShortChannelId(19), Direction::FromLesser);
    world.liquidity.refused(way, Msat(5_000_000), Msat(20_000_000), NOW);
    assert_eq!(route(&world.find(&asked).unwrap()), [1, 12, 29]);
    // A smaller amount may pass; and so may this one, days later.
    assert_eq!(route(&world.find(&Request { amount: Msat(10_000), ..asked }).unwrap()), [1, 19]);
    let weights = Weights { now: NOW + 40 * 3600, ..world.weights() };
    assert_eq!(route(&Search::new().find(&world.map, &asked, &weights).unwrap()), [1, 19]);
    // What our other parts hold is not there twice.
    world.liquidity = Liquidity::default();
    world.in_flight.insert(way, Msat(16_000_000));
    assert_eq!(route(&world.find(&asked).unwrap()), [1, 12, 29]);
}

#[test]
fn an_amount_is_split_only_if_it_must_be() {
    let wide = |id, from, to| usable(id, from, to, policy(100, 100, 5));
    let world = World::new(vec![wide(19, 1, 9), wide(29, 2, 9), wide(39, 3, 9)]);
    let doors = [door(1, 1, 4_000_000), door(2, 2, 4_000_000), door(3, 3, 4_000_000)];
    let one = world.find_parts(&request(3_000_000, &doors, &[]), 16).unwrap();
    assert_eq!(one.len(), 1);
    let three = world.find_parts(&request(9_000_000, &doors, &[]), 16).unwrap();
    assert!((3..=8).contains(&three.len()), "{three:?}");
    check_parts(&three, 9_000_000, &doors, 1_000_000);
    // What the doors hold in all, fees included, is the end.
    let most = request(12_000_001, &doors, &[]);
    assert_eq!(world.find_parts(&most, 16), Err(NoPath::Balance { most: Msat(12_000_000) }));
    assert!(world.find_parts(&request(9_000_000, &doors, &[]), 2).is_err(), "no two of them hold it");
    let fee_limit = Msat(500);
    let dear = Request { fee_limit, ..request(9_000_000, &doors, &[]) };
    assert!(world.find_parts(&dear, 16).is_err(), "all parts together keep the limit");
}

fn check_parts(paths: &[Path], amount: u64, doors: &[FirstHop], fee_limit: u64) {
    assert_eq!(paths.iter().map(|path| path.received().0).sum::<u64>(), amount);
    assert!(paths.iter().map(|path| path.fee().0).sum::<u64>() <= fee_limit);
    for door in doors {
        let over = |path: &&Path| path.hops[0].short_channel_id == door.short_channel_id;
        let sent: u64 = paths.iter().filter(over).map(|path| path.sent().0).sum();
        assert!(sent <= door.most.0, "{sent} over a channel that holds {}", door.most);
    }
}

/// What a way costs, by walking it backwards, and what of that is fees; `None` if it breaks a rule.
fn cost(path: &[&Usable], door: &FirstHop, request: &Request<'_>, weights: &Weights<'_>) -> Option<(u64, u64)> {
    let (mut amount, mut delta, mut cost) = (request.amount, request.final_delta, 0);
    for channel in path.iter().rev() {
        let policy = &channel.policy;
        let blocks = u32::from(policy.cltv_expiry_delta);
        if amount < policy.htlc_minimum || amount > policy.htlc_maximum || amount > channel.capacity {
            return None;
        }
        cost += weights.of_hop(channel.short_channel_id, channel.direction, channel.capacity, amount, blocks)?;
        let fee = policy.fee(amount)?;
        cost += fee.0;
        amount = Msat(amount.0 + fee.0);
        delta += blocks;
    }
    let fees = amount.0 - request.amount.0;
    let is_short = delta <= request.delta_limit && path.len() < request.hops_limit;
    let is_within = fees <= request.fee_limit.0 && is_short;
    (is_within && door.least <= amount && amount <= door.most).then_some((cost, fees))
}

/// Every way from a node to the payee that meets no node twice.
fn all_ways<'a>(
    from: NodeId,
    channels: &'a [Usable],
    met: &mut Vec<NodeId>,
    so_far: &mut Vec<&'a Usable>,
    out: &mut Vec<Vec<&'a Usable>>,
) {
    if from == node(9) {
        return out.push(so_far.clone());
    }
    met.push(from);
    for channel in channels.iter().filter(|channel| channel.from == from) {
        if !met.contains(&channel.to) && channel.to != node(0) {
            so_far.push(channel);
            all_ways(channel.to, channels, met, so_far, out);
            so_far.pop();
        }
    }
    met.pop();
}

fn any_channel() -> impl Strategy<Value = (u8, u8, u32, u32, u16, u64)> {
    (1..6_u8, 1..7_u8, 0..3_000_u32, 0..3_000_u32, 1..100_u16, 200_000..3_000_000_u64)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3_000))]

    /// A way is found exactly if there is one within all limits, and why there is none is true. What is found keeps every rule.
    /// Unless it may be no longer than so, no way costs less (but for a little: fees on fees); or, where the fee limit cuts off
    /// what does, none within it has less fees.
    #[test]
    fn what_is_found_is_the_best_of_all_ways_that_there_are(
        wanted in proptest::collection::vec(any_channel(), 1..18),
        amount in 1_000..2_000_000_u64,
        fee_limit in 0..20_000_u64,
        (delta_limit, hops_limit) in prop_oneof![Just((DELTA_MAX, HOPS_MAX)), (30..300_u32, 2..7_usize)],
    ) {
        let mut channels = Vec::new();
        for (id, (from, to, base, share, delta, maximum)) in (100..).zip(wanted) {
            let to = if to == 6 { 9 } else { to };
            if from != to {
                let terms = Policy { htlc_maximum: Msat(maximum), ..policy(base, share, delta) };
                channels.push(usable(id, from, to, terms));
            }
        }
        let world = World::new(channels.clone());
        let doors = [door(1, 1, 2_500_000), door(2, 2, 1_500_000)];
        let fee_limit = Msat(fee_limit);
        let asked = Request { fee_limit, delta_limit, hops_limit, ..request(amount, &doors, &[]) };
        let weights = world.weights();
        let mut ways = Vec::new();
        for door in &doors {
            let mut of_door = Vec::new();
            all_ways(door.peer, &channels, &mut Vec::new(), &mut Vec::new(), &mut of_door);
            ways.extend(of_door.into_iter().map(|way| (way, door)));
        }
        let costs = |asked: &Request<'_>| -> Vec<(u64, u64)> {
            ways.iter().filter_map(|(way, door)| cost(way, door, asked, &weights)).collect()
        };
        let within = costs(&asked);
        let found = world.find(&asked);
        if let Ok(path) = &found {
            let by_id = |id: ShortChannelId| channels.iter().find(|channel| channel.short_channel_id == id).unwrap();
            let door = doors.iter().find(|door| door.short_channel_id == path.hops[0].short_channel_id).unwrap();
            let way: Vec<&Usable> = path.hops[1..].iter().map(|hop| by_id(hop.short_channel_id)).collect();
            let found_cost = cost(&way, door, &asked, &weights);
            prop_assert!(found_cost.is_some(), "it breaks a rule: {path:?}");
            let mut amount = path.received();
            for (channel, hop) in way.iter().zip(&path.hops).rev() {
                prop_assert_eq!(channel.to, path.hops[path.hops.iter().position(|other| other == hop).unwrap() + 1].node);
                amount = Msat(amount.0 + channel.policy.fee(amount).unwrap().0);
                prop_assert_eq!(hop.amount, amount);
            }
            let (found_cost, found_fees) = found_cost.unwrap();
            let (best, least) = (within.iter().map(|way| way.0).min(), within.iter().map(|way| way.1).min());
            // A label that costs less may hold more, and so be dearer further on: by a part of a fee.
            let is_best = found_cost <= best.unwrap() + 60 || found_fees == least.unwrap();
            prop_assert!(is_best || delta_limit < DELTA_MAX, "{found_cost} {best:?}, {found_fees} {least:?}");
        } else {
            prop_assert!(within.is_empty(), "{found:?}, and there is a way for {within:?}");
            let is_too_dear = !costs(&Request { fee_limit: Msat(u64::MAX), ..asked }).is_empty();
            let without_blocks = Request { delta_limit: u32::MAX, ..asked };
            let all = costs(&Request { fee_limit: Msat(u64::MAX), ..without_blocks });
            match all.iter().map(|way| way.1).min() {
                None => prop_assert_eq!(found, Err(NoPath::NoWay)),
                Some(least) if is_too_dear || least > fee_limit.0 => {
                    prop_assert_eq!(found, Err(NoPath::FeeLimit { fee_limit }));
                }
                // What is told to be needed is: with it there is a way, and it is the cheapest of all.
                Some(least) => {
                    let Err(NoPath::DeltaLimit { delta_limit: told, needed }) = found else {
                        return Err(TestCaseError::fail(format!("{found:?}")));
                    };
                    prop_assert!(told == delta_limit && needed > delta_limit);
                    let longer = world.find(&Request { delta_limit: needed, fee_limit: Msat(least), ..asked }).unwrap();
                    prop_assert!(longer.fee().0 == least && longer.hops[0].delta <= needed, "{longer:?}");
                }
            }
        }
    }

    /// Parts are exact, and keep to what our channels hold and to the fee limit.
    #[test]
    fn parts_are_exact_and_keep_the_limits(
        wanted in proptest::collection::vec(any_channel(), 1..14),
        amount in 1_000..6_000_000_u64,
        fee_limit in 0..60_000_u64,
        most in 1..20_usize,
    ) {
        let mut channels = Vec::new();
        for (id, (from, to, base, share, delta, maximum)) in (100..).zip(wanted) {
            let to = if to == 6 { 9 } else { to };
            if from != to {
                channels.push(usable(id, from, to, Policy { htlc_maximum: Msat(maximum), ..policy(base, share, delta) }));
            }
        }
        let world = World::new(channels);
        let doors = [door(1, 1, 2_500_000), door(2, 2, 1_500_000), door(3, 9, 700_000)];
        let asked = Request { fee_limit: Msat(fee_limit), ..request(amount, &doors, &[]) };
        if let Ok(paths) = world.find_parts(&asked, most) {
            prop_assert!(paths.len() <= most);
            check_parts(&paths, amount, &doors, fee_limit);
        } else {
            prop_assert!(world.find(&asked).is_err(), "there is a single way");
        }
    }
}
