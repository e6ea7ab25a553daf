//! What nodes say of themselves.

use super::*;

#[test]
fn a_node_says_what_it_is_once_it_has_a_channel() {
    let mut graph = graph();
    assert_eq!(graph.hear(node(3, NOW)), Err(Unwanted::UnknownNode));
    assert_eq!(graph.hear(node(1, 7)), Ok(()));
    assert_eq!((graph.hear(node(1, 7)), graph.hear(node(1, 6))), (Err(Unwanted::Known), Err(Unwanted::Known)));
    assert_eq!(graph.hear(node(1, 8)), Ok(()));
    let announced = graph.nodes()[&node_id(1)].announcement.as_ref().unwrap();
    assert_eq!((announced.timestamp, &*announced.bytes), (8, node(1, 8).bytes()));
    let mut forged = node(1, 9).into_parsed();
    forged.contents.rgb = [0; 3];
    assert!(VerifiedNode::verify(Verbatim::new(forged)).is_err());
}

#[test]
fn a_node_that_says_too_often_what_it_is_waits_as_terms_do() {
    let mut graph = graph();
    for second in 0..12 {
        assert_eq!(graph.hear(node(1, NOW + second)), Ok(()), "{second}");
    }
    assert_eq!(graph.hear(node(1, NOW + 12)), Err(Unwanted::TooOften));
    let later = NOW + 4 * 3600;
    assert_eq!(graph.hear_at(node(1, NOW + 12), later - 1), Err(Unwanted::TooOften));
    assert_eq!(graph.hear_at(node(1, NOW + 12), later), Ok(()));
    assert_eq!(graph.hear_at(node(1, NOW + 13), later), Err(Unwanted::TooOften));
    let own = VerifiedNode::verify(node(1, NOW + 13)).unwrap();
    assert_eq!(graph.apply_own_node(&own, later), Ok(()), "this node's own are never too many");
    assert_eq!(graph.hear(node(2, NOW)), Ok(()), "and another's are its own");
}

#[test]
fn a_node_that_says_something_at_a_time_to_come() {
    let mut graph = graph();
    assert_eq!(graph.hear(node(1, NOW + 86_401)), Err(Unwanted::Ahead));
    assert_eq!(graph.hear(node(1, u32::MAX)), Err(Unwanted::Ahead));
    assert_eq!(graph.hear(node(1, NOW + 86_400)), Ok(()));
    // A file may hold what was taken when the clock was ahead: it would keep out whatever the node says now.
    assert_eq!(graph.hear_at(node(2, NOW + 200_000), NOW + 200_000), Ok(()));
    let mut bytes = Vec::new();
    graph.save(&mut bytes);
    let loaded = Graph::load(&bytes, chain(), NOW).unwrap();
    let said = |seed| loaded.nodes()[&node_id(seed)].announcement.is_some();
    assert!(said(1) && !said(2));
}

#[test]
fn a_node_that_demands_what_is_unknown_is_not_forwarded_through() {
    use crate::map::Map;

    let mut graph = graph();
    let (one, other) = ordered(1, 2);
    graph.learn(update(one, Direction::FromLesser, NOW), NOW).unwrap();
    graph.learn(update(other, Direction::FromGreater, NOW), NOW).unwrap();
    let with_bit = |bit: usize| {
        let mut flags = vec![0; bit / 8 + 1];
        flags[bit / 8] = 1 << (bit % 8);
        NodeFeatures::from_le_bytes(flags)
    };
    for (bit, timestamp, is_understood) in [(100, 1, false), (101, 2, true), (8, 3, true), (100, 4, false)] {
        graph.hear(node_with(one, timestamp, with_bit(bit))).unwrap();
        let mut bytes = Vec::new();
        graph.save(&mut bytes);
        for graph in [&graph, &Graph::load(&bytes, chain(), NOW).unwrap()] {
            let map = Map::new(graph);
            assert_eq!(map.is_understood(&node_id(one)), is_understood, "{bit}");
            let edges = |seed| map.edges_to(map.index(&node_id(seed)).unwrap()).len();
            assert_eq!(
                (edges(other), edges(one)),
                (usize::from(is_understood), 1),
                "{bit}: it can be paid in any case"
            );
        }
    }
}
