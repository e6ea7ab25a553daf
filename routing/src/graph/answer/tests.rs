//! Answers, on graphs of unsigned channels.

#![allow(clippy::unwrap_used)]

use millrace_wire::{Decoded, Message};
use proptest::prelude::*;

use super::super::fixture::{announced, channel, terms};
use super::*;

fn scid(block: u32, transaction: u32) -> ShortChannelId {
    ShortChannelId::new(block, transaction, 0).unwrap()
}

/// Channels of the nodes 1 and 2, each with the lesser's terms at `timestamp` and the greater's a second later.
fn graph(channels: impl IntoIterator<Item = (ShortChannelId, u32)>) -> Graph {
    let mut graph = Graph::new(ChainHash::REGTEST);
    for (id, timestamp) in channels {
        let sides = [timestamp, timestamp + 1].map(|timestamp| Some(terms(timestamp, timestamp ^ 7)));
        graph.insert(id, channel(&id.0.to_be_bytes(), sides));
    }
    for (node, timestamp) in [(1, 50), (2, 60)] {
        if let Some(node) = graph.nodes.get_mut(&NodeId([node; 33])) {
            node.announcement = Some(announced(timestamp));
        }
    }
    graph
}

fn range(first: u32, blocks: u32, options: Option<u64>) -> QueryChannelRange {
    QueryChannelRange {
        chain_hash: ChainHash::REGTEST,
        first_block: BlockHeight(first),
        number_of_blocks: blocks,
        query_options: options,
    }
}

fn replies(graph: &Graph, query: QueryChannelRange) -> Vec<ReplyChannelRange> {
    let mut answer = RangeAnswer::new(query);
    std::iter::from_fn(|| answer.next(graph)).take(1_000).collect()
}

/// BOLT 7: every channel of the range is told once, in order; the replies cover the range without a gap, and only the last
/// is complete.
fn check(graph: &Graph, query: QueryChannelRange) -> Vec<ReplyChannelRange> {
    let replies = replies(graph, query);
    let told: Vec<_> = replies.iter().flat_map(|reply| reply.short_channel_ids.clone()).collect();
    let last_block = query.last_block().map(|last| last.0);
    let is_in =
        |id: &&ShortChannelId| last_block.is_some_and(|last| (query.first_block.0..=last).contains(&id.parts().0));
    let expected: Vec<_> = graph.channels.keys().filter(is_in).copied().collect();
    assert_eq!(told, expected);
    assert_eq!(replies[0].first_block, query.first_block);
    for two in replies.windows(2) {
        let end = two[0].first_block.0 + two[0].number_of_blocks;
        assert!(two[1].first_block.0 == end || two[1].first_block.0 + 1 == end, "{two:?}");
        assert!(!two[0].sync_complete);
    }
    let last = replies.last().unwrap();
    assert!(last.sync_complete);
    let end = |first: BlockHeight, blocks: u32| u64::from(first.0) + u64::from(blocks);
    assert_eq!(end(last.first_block, last.number_of_blocks), end(query.first_block, query.number_of_blocks));
    for reply in &replies {
        let mut bytes = Vec::new();
        Message::ReplyChannelRange(reply.clone()).encode(&mut bytes).unwrap();
        assert!(bytes.len() <= 65_535, "{} bytes", bytes.len());
        assert!(matches!(Message::decode(&bytes), Ok(Decoded::Message(_))));
        for id in &reply.short_channel_ids {
            let block = id.parts().0;
            assert!(block >= reply.first_block.0 && u64::from(block) < end(reply.first_block, reply.number_of_blocks));
        }
    }
    replies
}

#[test]
fn a_range_that_fits_into_one_reply() {
    let graph = graph([(scid(10, 1), 100), (scid(20, 2), 200), (scid(30, 3), 300)]);
    let all = check(&graph, range(0, u32::MAX, Some(3)));
    assert_eq!(all.len(), 1);
    let both = |one, other| PerDirection { node_1: one, node_2: other };
    assert_eq!(all[0].timestamps, Some(vec![both(100, 101), both(200, 201), both(300, 301)]));
    assert_eq!(all[0].checksums.as_ref().unwrap()[1], both(200 ^ 7, 201 ^ 7));
    let bare = check(&graph, range(20, 10, None));
    assert_eq!((bare[0].short_channel_ids.as_slice(), &bare[0].timestamps), (&[scid(20, 2)][..], &None));
    assert_eq!(check(&graph, range(20, 11, Some(1)))[0].short_channel_ids.len(), 2);
    assert!(check(&graph, range(11, 9, Some(2)))[0].short_channel_ids.is_empty());
}

#[test]
fn ranges_at_the_edges_of_what_there_can_be() {
    let graph = graph([(scid(0, 0), 1), (scid(0x00ff_ffff, 0), 2)]);
    for (first, blocks) in
        [(0, 1), (0x00ff_ffff, 1), (0x00ff_ffff, u32::MAX), (0x0100_0000, 5), (u32::MAX, u32::MAX), (u32::MAX, 1)]
    {
        check(&graph, range(first, blocks, Some(3)));
    }
    // No block at all (zero-block ranges have wrapped elsewhere), and another chain.
    let none = replies(&graph, range(0, 0, None));
    assert_eq!((none.len(), none[0].short_channel_ids.len()), (1, 0));
    let elsewhere = QueryChannelRange { chain_hash: ChainHash::BITCOIN, ..range(0, 100, None) };
    let refused = replies(&graph, elsewhere);
    assert_eq!((refused.len(), refused[0].sync_complete, refused[0].short_channel_ids.len()), (1, false, 0));
}

#[test]
fn many_channels_take_many_replies_which_end_with_blocks() {
    let graph = graph((0..12_000).map(|n| (scid(100 + n / 7, n % 7), n)));
    let replies = check(&graph, range(0, 1_000_000, Some(3)));
    assert!(replies.len() >= 5, "{}", replies.len());
    for two in replies.windows(2) {
        assert_eq!(two[0].first_block.0 + two[0].number_of_blocks, two[1].first_block.0);
    }
}

#[test]
fn one_block_with_more_channels_than_a_reply_holds() {
    let graph = graph((0..6_000).map(|n| (scid(500, n), n)).chain([(scid(499, 0), 1), (scid(501, 0), 1)]));
    check(&graph, range(0, 1_000, Some(3)));
    check(&graph, range(500, 1, None));
}

fn ids(ids: Vec<ShortChannelId>, query_flags: Option<Vec<u64>>) -> QueryShortChannelIds {
    QueryShortChannelIds { chain_hash: ChainHash::REGTEST, short_channel_ids: ids, query_flags }
}

fn told(graph: &Graph, query: QueryShortChannelIds) -> Vec<Vec<u16>> {
    let mut answer = IdsAnswer::new(query);
    let types = std::iter::from_fn(|| answer.next(graph)).map(|piece| piece.iter().map(|m| m.type_number).collect());
    types.collect()
}

#[test]
fn channels_are_answered_with_terms_and_nodes_each_node_once() {
    let graph = graph([(scid(10, 1), 100), (scid(20, 2), 200)]);
    let all = told(&graph, ids(vec![scid(10, 1), scid(11, 0), scid(20, 2)], None));
    assert_eq!(all, [vec![256, 258, 258, 257, 257], vec![], vec![256, 258, 258]]);
    for (flags, expected) in
        [(1, vec![256]), (2, vec![258]), (4, vec![258]), (8, vec![257]), (16, vec![257]), (0, vec![])]
    {
        assert_eq!(told(&graph, ids(vec![scid(10, 1)], Some(vec![flags]))), [expected], "{flags}");
    }
    // Each flag names its own side.
    let mut answer = IdsAnswer::new(ids(vec![scid(10, 1)], Some(vec![4 | 16])));
    let piece = answer.next(&graph).unwrap();
    assert_eq!((&*piece[0].bytes, &*piece[1].bytes), (&101_u32.to_be_bytes()[..], &60_u32.to_be_bytes()[..]));
    assert!(answer.end(&graph).full_information);
    // Fewer flags than channels: nothing is wanted of the rest.
    assert_eq!(told(&graph, ids(vec![scid(10, 1), scid(20, 2)], Some(vec![1]))), [vec![256], vec![]]);
    let elsewhere = QueryShortChannelIds { chain_hash: ChainHash::BITCOIN, ..ids(vec![scid(10, 1)], None) };
    assert_eq!(
        (told(&graph, elsewhere.clone()).len(), IdsAnswer::new(elsewhere).end(&graph).full_information),
        (0, false)
    );
}

fn passed(graph: &Graph, first_timestamp: u32, timestamp_range: u32, patience: usize) -> Vec<Relayed> {
    let filter = GossipTimestampFilter { chain_hash: ChainHash::REGTEST, first_timestamp, timestamp_range };
    let mut backlog = Backlog::new(filter);
    std::iter::from_fn(|| backlog.next(graph, patience)).flatten().collect()
}

#[test]
fn a_filter_lets_through_what_is_of_its_time() {
    let graph = graph([(scid(10, 1), 100), (scid(20, 2), 200)]);
    let types = |messages: &[Relayed]| messages.iter().map(|message| message.type_number).collect::<Vec<_>>();
    for patience in [1, 2, 100] {
        assert_eq!(types(&passed(&graph, 0, u32::MAX, patience)), [256, 258, 258, 257, 257, 256, 258, 258]);
        assert_eq!(types(&passed(&graph, 101, 99, patience)), [256, 258], "the later one of the first channel");
        assert_eq!(types(&passed(&graph, 101, 100, patience)), [256, 258, 256, 258]);
        assert_eq!(types(&passed(&graph, 60, 1, patience)), [257]);
        assert!(passed(&graph, u32::MAX, 0, patience).is_empty());
    }
}

proptest! {
    #[test]
    fn any_range_of_any_graph(
        channels in proptest::collection::vec((0..40_u32, 0..300_u32), 0..4_000),
        first in 0..45_u32,
        blocks in 0..60_u32,
    ) {
        // Thousands in one block, and few in others.
        let graph = graph(channels.into_iter().map(|(block, n)| (scid(if n > 100 { 20 } else { block }, n * 64 + block), n)));
        if blocks > 0 {
            check(&graph, range(first, blocks, Some(3)));
        }
    }
}
