//! One graph asks another.

#![allow(clippy::unwrap_used)]

use super::super::fixture::{channel, terms};
use super::super::{IdsAnswer, RangeAnswer};
use super::*;

const NOW: u32 = 1_700_000_000;

fn scid(block: u32) -> ShortChannelId {
    ShortChannelId::new(block, 1, 0).unwrap()
}

/// Channels by block, each with the timestamp and the checksum of both sides' terms.
fn graph(channels: impl IntoIterator<Item = (u32, [(u32, u32); 2])>) -> Graph {
    let mut graph = Graph::new(ChainHash::REGTEST);
    for (block, sides) in channels {
        let sides = sides.map(|(timestamp, checksum)| (timestamp > 0).then(|| terms(timestamp, checksum)));
        graph.insert(scid(block), channel(&[], sides));
    }
    graph
}

/// The whole conversation: what is asked for, query by query.
fn talk(ours: &Graph, theirs: &Graph) -> Vec<QueryShortChannelIds> {
    let (mut asking, query) = Asking::begin(ChainHash::REGTEST);
    let mut answer = RangeAnswer::new(query);
    let mut next = Next::Wait;
    while let Some(reply) = answer.next(theirs) {
        assert_eq!(next, Next::Wait);
        next = asking.on_range(&reply, ours, NOW).unwrap();
    }
    let mut asked = Vec::new();
    while let Next::Query(query) = next {
        asked.push(query.clone());
        assert!(!asking.is_done());
        next = asking.on_end(&IdsAnswer::new(query).end(theirs)).unwrap();
    }
    assert_eq!(next, Next::Done);
    assert!(asking.is_done());
    asked
}

#[test]
fn what_is_unknown_or_newer_there_is_asked_for_and_nothing_else() {
    let fresh = NOW - 100;
    let old = NOW - STALE_AFTER_SECONDS / 2 - 1;
    let ours = graph([
        (1, [(fresh, 5), (fresh, 6)]),
        (2, [(fresh, 5), (fresh, 6)]),
        (3, [(fresh, 5), (0, 0)]),
        (4, [(fresh, 5), (fresh, 6)]),
        (5, [(old, 5), (fresh, 6)]),
    ]);
    let theirs = graph([
        (1, [(fresh, 5), (fresh, 6)]),
        (2, [(fresh + 1, 7), (fresh - 1, 8)]),
        (3, [(fresh, 5), (fresh, 6)]),
        // The same terms, said again: not worth asking for.
        (4, [(fresh + 1, 5), (fresh + 1, 6)]),
        // Unless ours are half-way to being forgotten.
        (5, [(fresh, 5), (fresh, 6)]),
        (6, [(fresh, 1), (fresh, 2)]),
        (7, [(0, 0), (0, 0)]),
        // Would be forgotten at once.
        (8, [(NOW - STALE_AFTER_SECONDS - 1, 1), (0, 0)]),
    ]);
    let asked = talk(&ours, &theirs);
    assert_eq!(asked.len(), 1);
    let wanted: Vec<_> =
        asked[0].short_channel_ids.iter().copied().zip(asked[0].query_flags.clone().unwrap()).collect();
    assert_eq!(wanted, [(scid(2), 2), (scid(3), 4), (scid(5), 2), (scid(6), 31), (scid(7), 31)]);
    assert!(talk(&theirs, &theirs).is_empty());
}

#[test]
fn many_channels_are_asked_for_some_at_a_time() {
    let theirs = graph((1..=2_500).map(|block| (block, [(NOW, 1), (NOW, 2)])));
    let asked = talk(&graph([]), &theirs);
    assert_eq!(asked.iter().map(|query| query.short_channel_ids.len()).collect::<Vec<_>>(), [1_000, 1_000, 500]);
    let all: Vec<_> = asked.iter().flat_map(|query| query.short_channel_ids.clone()).collect();
    assert_eq!(all, (1..=2_500).map(scid).collect::<Vec<_>>());
}

fn reply(first: u32, blocks: u32, ids: &[u32]) -> ReplyChannelRange {
    ReplyChannelRange {
        chain_hash: ChainHash::REGTEST,
        first_block: BlockHeight(first),
        number_of_blocks: blocks,
        sync_complete: false,
        short_channel_ids: ids.iter().map(|block| scid(*block)).collect(),
        timestamps: None,
        checksums: None,
    }
}

/// What the second of two replies leads to, after one about the blocks 0 to 99.
#[test]
fn whoever_names_channels_without_times_leaves_open_what_is_new() {
    let empty = graph([]);
    let (mut asking, _) = Asking::begin(ChainHash::REGTEST);
    asking.on_range(&reply(0, 100, &[]), &empty, NOW).unwrap();
    assert!(asking.tells_times());
    asking.on_range(&reply(100, u32::MAX - 100, &[100]), &empty, NOW).unwrap();
    assert!(!asking.tells_times());
    let (mut asking, query) = Asking::begin(ChainHash::REGTEST);
    let told = RangeAnswer::new(query).next(&graph([(1, [(NOW, 5), (NOW, 6)])])).unwrap();
    asking.on_range(&told, &empty, NOW).unwrap();
    assert!(asking.tells_times());
}

fn second(reply_two: &ReplyChannelRange) -> Result<Next, AskFault> {
    let (mut asking, _) = Asking::begin(ChainHash::REGTEST);
    let empty = graph([]);
    assert_eq!(asking.on_range(&reply(0, 100, &[5]), &empty, NOW), Ok(Next::Wait));
    let result = asking.on_range(reply_two, &empty, NOW);
    if result.is_err() {
        assert!(asking.is_done());
        assert_eq!(asking.on_range(&reply(100, 1, &[]), &empty, NOW), Err(AskFault::NotAsked), "the job is over");
    }
    result
}

#[test]
fn replies_go_on_where_the_last_has_ended() {
    assert_eq!(second(&reply(100, 50, &[100, 149])), Ok(Next::Wait));
    // The same block again: it had more channels than a reply holds.
    assert_eq!(second(&reply(99, 1, &[99])), Ok(Next::Wait));
    // But not the same channels again and again.
    for again in [reply(0, 100, &[5]), reply(5, 95, &[5]), reply(99, 1, &[])] {
        assert!(matches!(second(&again), Err(AskFault::Range { expected: 100, .. })), "{again:?}");
    }
    assert_eq!(second(&reply(0, 100, &[5, 99])), Ok(Next::Wait));
    assert!(matches!(second(&reply(100, u32::MAX - 100, &[200])), Ok(Next::Query(_))));
    for wrong in
        [reply(101, 50, &[101]), reply(0, 50, &[7]), reply(100, 50, &[99]), reply(100, 50, &[150]), reply(100, 0, &[])]
    {
        assert!(matches!(second(&wrong), Err(AskFault::Range { expected: 100, .. })), "{wrong:?}");
    }
    for unordered in [reply(100, 50, &[120, 110]), reply(100, 50, &[110, 110])] {
        assert!(second(&unordered).is_err());
    }
    let short = ReplyChannelRange { timestamps: Some(Vec::new()), ..reply(100, 50, &[110]) };
    assert_eq!(second(&short), Err(AskFault::Numbers { channels: 1, numbers: 0 }));
    let elsewhere = ReplyChannelRange { chain_hash: ChainHash::BITCOIN, ..reply(100, 50, &[]) };
    assert_eq!(second(&elsewhere), Err(AskFault::NotAsked));
}

#[test]
fn answers_to_nothing_end_the_job_and_a_peer_that_knows_nothing_is_left_alone() {
    let (mut asking, _) = Asking::begin(ChainHash::REGTEST);
    let end = ReplyShortChannelIdsEnd { chain_hash: ChainHash::REGTEST, full_information: true };
    assert_eq!(asking.on_end(&end), Err(AskFault::NotAsked));
    assert!(asking.is_done());

    let (mut asking, _) = Asking::begin(ChainHash::REGTEST);
    let all: Vec<u32> = (1..=2_500).collect();
    assert!(matches!(asking.on_range(&reply(0, u32::MAX, &all), &graph([]), NOW), Ok(Next::Query(_))));
    let ignorant = ReplyShortChannelIdsEnd { full_information: false, ..end };
    assert_eq!(asking.on_end(&ignorant), Ok(Next::Done));
}
