//! Searches that what is known does not hold back.

use super::*;

const CAPACITY: Msat = Msat(20_000_000);

fn way(id: u64) -> (ShortChannelId, Direction) {
    (ShortChannelId(id), Direction::FromLesser)
}

/// 0 -> 1 -> 9, and so much was refused.
fn only_way(refused: u64) -> World {
    let mut world = World::new(vec![usable(19, 1, 9, policy(0, 0, 1))]);
    world.liquidity.refused(way(19), Msat(refused), CAPACITY, NOW);
    world
}

#[test]
fn the_only_way_is_found_though_it_has_refused_less_or_as_much() {
    let (world, doors) = (only_way(5_000_000), [door(1, 1, 10_000_000)]);
    for amount in [5_000_000, 9_000_000] {
        let asked = request(amount, &doors, &[]);
        assert_eq!(world.find(&asked), Err(NoPath::NoWay));
        assert_eq!(route(&world.resort(&asked).unwrap()), [1, 19]);
    }
}

#[test]
fn what_cannot_be_is_no_resort() {
    let (mut world, doors) = (only_way(5_000_000), [door(1, 1, 30_000_000)]);
    let asked = |amount| Request { amount: Msat(amount), ..request(0, &doors, &[]) };
    assert_eq!(world.resort(&asked(10_000_001)), Err(NoPath::NoWay), "above htlc_maximum_msat");
    // With what other parts hold, to the last millisatoshi that the channel has.
    world.in_flight.insert(way(19), Msat(14_000_000));
    assert!(world.resort(&asked(6_000_000)).is_ok());
    assert_eq!(world.resort(&asked(6_000_001)), Err(NoPath::NoWay));
    let doors = [door(1, 1, 5_999_999)];
    let asked = Request { first_hops: &doors, ..asked(6_000_000) };
    assert_eq!(world.resort(&asked), Err(NoPath::Balance { most: Msat(5_999_999) }));
}

#[test]
fn what_is_left_out_stays_so_with_what_it_holds() {
    let (mut world, doors) = (only_way(5_000_000), [door(1, 1, 10_000_000)]);
    world.caps.insert(way(19), Msat(4_999_999));
    let asked = |amount| Request { amount: Msat(amount), ..request(0, &doors, &[]) };
    assert_eq!(world.resort(&asked(5_000_000)), Err(NoPath::NoWay));
    assert!(world.resort(&asked(4_999_999)).is_ok());
    world.in_flight.insert(way(19), Msat(1_000_000));
    assert_eq!(world.resort(&asked(4_000_000)), Err(NoPath::NoWay));
    assert!(world.resort(&asked(3_999_999)).is_ok());
    // Nor is it tried by an ordinary search, whatever memory says.
    world.in_flight.clear();
    world.liquidity.passed(way(19), Msat(9_000_000), CAPACITY, NOW);
    assert_eq!(world.find(&asked(5_000_000)), Err(NoPath::NoWay));
    assert!(world.find(&asked(4_999_999)).is_ok());
}

#[test]
fn the_fewest_that_have_refused_are_tried() {
    // Over node 1 two of them have refused, over node 2 one: it is worth a fee.
    let dear = policy(50_000, 0, 1);
    let free = policy(0, 0, 1);
    let channels = vec![usable(13, 1, 3, free), usable(39, 3, 9, free), usable(24, 2, 4, dear), usable(49, 4, 9, dear)];
    let mut world = World::new(channels);
    for id in [13, 39, 49] {
        world.liquidity.refused(way(id), Msat(1_000_000), CAPACITY, NOW);
    }
    let doors = [door(1, 1, 10_000_000), door(2, 2, 10_000_000)];
    let asked = request(1_000_000, &doors, &[]);
    assert_eq!(world.find(&asked), Err(NoPath::NoWay));
    assert_eq!(route(&world.resort(&asked).unwrap()), [2, 24, 49]);
}

#[test]
fn how_likely_it_is_is_told_as_it_is_known() {
    let doors = [door(1, 1, 10_000_000)];
    let told = |world: &World, paths: &[Path]| chances(&world.map, paths, &world.weights());
    // Nothing is known: half of the capacity passes every other time.
    let world = World::new(vec![usable(19, 1, 9, policy(0, 0, 1))]);
    let half = world.find(&request(10_000_000, &doors, &[])).unwrap();
    let chance = told(&world, std::slice::from_ref(&half))[0];
    assert!((chance - 0.5).abs() < 1e-6, "{chance}");
    // A second part of as much takes all that there may be; what is there for certain is certain.
    assert!(told(&world, &[half.clone(), half.clone()])[1] < 0.01);
    let mut sure = World::new(vec![usable(19, 1, 9, policy(0, 0, 1))]);
    sure.liquidity.passed(way(19), Msat(15_000_000), CAPACITY, NOW);
    assert_eq!(told(&sure, std::slice::from_ref(&half)), [1.0]);
    // A last resort is unlikely, and not impossible; chances multiply.
    let mut world = World::new(vec![usable(12, 1, 2, policy(0, 0, 1)), usable(29, 2, 9, policy(0, 0, 1))]);
    world.liquidity.refused(way(29), Msat(10_000_000), CAPACITY, NOW);
    let path = world.resort(&request(10_000_000, &doors, &[])).unwrap();
    let chance = told(&world, &[path])[0];
    assert!(chance > 0.0 && (chance - 0.0005).abs() < 1e-6, "{chance}");
    // Of a peer of ours, and of channels that no map shows, nothing else is known than that they are there.
    let world = World::new(Vec::new());
    let hint = Hint { from: node(1), to: node(9), short_channel_id: ShortChannelId(7), policy: policy(0, 0, 1) };
    let path = world.find(&request(1_000, &doors, &[hint])).unwrap();
    assert_eq!((route(&path), told(&world, &[path])), (vec![1, 7], vec![1.0]));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// As a last resort, a way is found exactly if there is one when nothing is known.
    #[test]
    fn what_was_refused_rules_nothing_out_as_a_last_resort(
        wanted in proptest::collection::vec((any_channel(), any::<bool>()), 1..14),
        amount in 1_000..2_000_000_u64,
        fee_limit in 0..60_000_u64,
    ) {
        let (mut channels, mut refusing) = (Vec::new(), Vec::new());
        for (id, ((from, to, base, share, delta, maximum), is_refusing)) in (100..).zip(wanted) {
            let to = if to == 6 { 9 } else { to };
            if from != to {
                let terms = Policy { htlc_maximum: Msat(maximum), ..policy(base, share, delta) };
                channels.push(usable(id, from, to, terms));
                refusing.extend(channels.last().filter(|_| is_refusing).cloned());
            }
        }
        let mut world = World::new(channels);
        let doors = [door(1, 1, 2_500_000), door(2, 2, 1_500_000)];
        let asked = Request { fee_limit: Msat(fee_limit), ..request(amount, &doors, &[]) };
        let unknowing = world.find(&asked).map(drop);
        for channel in refusing {
            let way = (channel.short_channel_id, channel.direction);
            world.liquidity.refused(way, Msat(amount / 2), channel.capacity, NOW);
        }
        prop_assert_eq!(world.resort(&asked).map(drop), unknowing);
    }
}
