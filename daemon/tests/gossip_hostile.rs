//! Gossip of a peer that has two channels with the node, which carry payments all the while: a tap between both says in
//! the peer's name whatever could be refused.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use millrace_channel::Fact;
use millrace_wire::{
    BlockHeight, ChainHash, ChannelId, GossipTimestampFilter, Message, QueryChannelRange, QueryShortChannelIds,
    ReplyChannelRange, ReplyShortChannelIdsEnd, ShortChannelId,
};
use millraced::gossip::GossipRules;
use support::announced::{Announced, bytes, fund, node, node_secret, now};
use support::tap::{Tap, To};
use support::wild::{Wild, good_init, key};
use support::{FakeChain, Homes, PATIENCE, Setup, TestNode, open_between, preimage, start};

/// Asks to be told all that comes.
fn everything() -> Message {
    let chain_hash = ChainHash::REGTEST;
    Message::GossipTimestampFilter(GossipTimestampFilter { chain_hash, first_timestamp: 0, timestamp_range: u32::MAX })
}

struct Stage {
    chain: FakeChain,
    bob: TestNode,
    mallory: TestNode,
    tap: Tap,
    channels: [ChannelId; 2],
    paid: u8,
    _homes: Homes<2>,
}

impl Stage {
    async fn new() -> Self {
        let (chain, homes) = (FakeChain::new(), Homes::new());
        let mut setup = Setup::new(1);
        setup.gossip = Some(GossipRules {
            relay_every: Duration::from_millis(20),
            publish_every: Duration::from_millis(20),
            ..GossipRules::default()
        });
        let bob = start(&setup, &chain, homes[0].path()).await;
        let mallory = start(&Setup::new(66), &chain, homes[1].path()).await;
        let tap = Tap::between(bob.key, mallory.key, mallory.address).await;
        bob.node.peers().connect(tap.right_id(), &tap.address.to_string()).await.unwrap();
        let channels = [
            open_between(&bob, &mallory, &chain, 1_000_000).await,
            open_between(&bob, &mallory, &chain, 1_000_000).await,
        ];
        Self { chain, bob, mallory, tap, channels, paid: 0, _homes: homes }
    }

    async fn says(&self, messages: &[Message]) {
        for message in messages {
            self.tap.say(To::Left, message).await;
        }
    }

    /// A payment over each of the channels.
    async fn pay(&mut self) {
        for channel in self.channels {
            self.paid += 1;
            let proof = preimage(self.paid);
            self.bob.offer(channel, &proof, 1_000_000, Vec::new()).await;
            self.mallory.fulfill(channel, &proof).await;
            self.bob.wait_fulfilled(&proof).await;
        }
    }

    async fn knows(&self, channels: usize, directions: usize) -> bool {
        let info = self.bob.gossip.as_ref().unwrap().info().await;
        (info.channels, info.directions) == (channels, directions)
    }

    async fn wait_for_graph(&self, channels: usize, directions: usize) {
        let started = Instant::now();
        while !self.knows(channels, directions).await {
            assert!(started.elapsed() < PATIENCE, "{:?}", self.bob.gossip.as_ref().unwrap().info().await);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Neither a channel nor the connection has suffered: the channels have never been offline, and no `error` was said.
    fn is_untouched(&self) {
        for channel in self.channels {
            let snapshot = self.bob.snapshot(channel);
            assert!(snapshot.is_usable() && snapshot.is_online, "{snapshot:?}");
        }
        let said = self.tap.said(0);
        let inits = said.iter().filter(|(_, message)| matches!(message, Message::ChannelReestablish(_))).count();
        assert_eq!(inits, 0, "nobody has hung up");
        assert!(!said.iter().any(|(_, message)| matches!(message, Message::Error(_))));
        assert!(!self.bob.fold.news().iter().any(|news| {
            news.items.iter().any(|item| {
                matches!(
                    item,
                    millraced::facts::Item::Fact { fact: Fact::Failed { .. } | Fact::FundingSpent { .. }, .. }
                )
            })
        }));
    }

    async fn stop(self) {
        let Self { bob, mallory, tap, .. } = self;
        drop(tap);
        bob.node.stop().await;
        mallory.node.stop().await;
    }
}

/// Of the chain: other chains, outputs that are not there, keys that did not sign, times that have not come.
#[tokio::test(flavor = "multi_thread")]
async fn announcements_that_do_not_hold_leave_nothing_behind() {
    let mut stage = Stage::new().await;
    let channels = fund(&stage.chain, &[(1, 2), (3, 4)]);
    let [good, other] = channels[..] else { panic!("two channels") };
    let when = now() - 100;
    let elsewhere = [
        other.announcement_on(ChainHash::BITCOIN),
        good.update_on(ChainHash::BITCOIN, &node_secret(good.nodes[0]), 0, when),
    ];
    let absent = Announced { id: ShortChannelId::new(7, 7, 7).unwrap(), ..other };
    let ahead = [good.update(0, now() + 2 * 86_400), good.update(1, u32::MAX), node(good.nodes[0], u32::MAX)];
    let forged = [
        good.update_by(&node_secret(99), 0, when),
        // The other side's terms, by this one's key.
        good.update_by(&node_secret(good.nodes[0]), 1, when),
        node(77, when),
        absent.announcement(),
        Announced { id: other.id, ..good }.announcement(),
        Announced { nodes: [other.nodes[1], other.nodes[0]], ..other }.announcement(),
    ];
    stage.says(&[good.announcement()]).await;
    stage.wait_for_graph(1, 0).await;
    for round in 0..3 {
        stage.says(&elsewhere).await;
        stage.says(&ahead).await;
        stage.says(&forged).await;
        // Cut short at any place.
        for message in [good.announcement(), good.update(0, when), node(good.nodes[0], when)] {
            let whole = bytes(&message);
            for length in (2..whole.len()).step_by(37) {
                stage.tap.say_bytes(To::Left, &whole[..length]).await;
            }
        }
        stage.pay().await;
        assert!(stage.knows(1, 0).await, "round {round}: nothing of it is kept");
    }
    // What holds is taken from the same peer.
    stage.says(&[good.update(0, when), good.update(1, when), other.announcement()]).await;
    stage.wait_for_graph(2, 2).await;
    stage.pay().await;
    stage.is_untouched();
    stage.stop().await;
}

/// BOLT 7, "Rebroadcasting": valid updates without end are passed on a few times, and others' still are.
#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_valid_updates_is_passed_on_a_few_times_only() {
    let mut stage = Stage::new().await;
    let channels = fund(&stage.chain, &[(1, 2), (3, 4)]);
    let (loud, calm) = (channels[0], channels[1]);
    let mut honest = Wild::connect(&stage.bob, key(5)).await;
    honest.say(&everything()).await;
    honest.hear_until_pong().await;
    stage.says(&[loud.announcement(), calm.announcement()]).await;
    stage.wait_for_graph(2, 0).await;
    let begin = now() - 10_000;
    for later in 0..2_000 {
        stage.says(&[loud.update(0, begin + later)]).await;
        if later % 500 == 0 {
            stage.pay().await;
        }
    }
    let started = Instant::now();
    let (mut of_loud, mut of_calm) = (0, 0);
    while of_loud == 0 || of_calm == 0 {
        assert!(started.elapsed() < PATIENCE, "both are heard: {of_loud} and {of_calm}");
        // What was dropped for want of room may be said again.
        stage.says(&[calm.update(0, begin)]).await;
        for message in honest.hear_until_pong().await {
            if let Message::ChannelUpdate(update) = message {
                match update.parsed().contents.short_channel_id {
                    id if id == loud.id.0 => of_loud += 1,
                    _ => of_calm += 1,
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!((1..=12).contains(&of_loud), "{of_loud} of them were passed on");
    stage.pay().await;
    stage.is_untouched();
    stage.stop().await;
}

fn reply(first: u32, number_of_blocks: u32, sync_complete: bool, ids: Vec<ShortChannelId>) -> Message {
    Message::ReplyChannelRange(ReplyChannelRange {
        chain_hash: ChainHash::REGTEST,
        first_block: BlockHeight(first),
        number_of_blocks,
        sync_complete,
        short_channel_ids: ids,
        timestamps: None,
        checksums: None,
    })
}

/// Answers to what nobody asked, backwards, with ids out of order; questions for all there is and for nothing.
#[tokio::test(flavor = "multi_thread")]
async fn answers_out_of_order_and_questions_without_end() {
    let mut stage = Stage::new().await;
    let channel = fund(&stage.chain, &[(1, 2)])[0];
    let chain_hash = ChainHash::REGTEST;
    let id = |block: u32| ShortChannelId::new(block, 1, 0).unwrap();
    let end = || Message::ReplyShortChannelIdsEnd(ReplyShortChannelIdsEnd { chain_hash, full_information: false });
    let answers = [
        end(),
        reply(50, 10, false, vec![id(55), id(51), id(55)]),
        reply(0, 10, true, vec![id(5_000)]),
        reply(u32::MAX, u32::MAX, false, vec![id(1)]),
        reply(0, 0, false, Vec::new()),
        end(),
    ];
    for _ in 0..50 {
        stage.says(&answers).await;
    }
    stage.pay().await;
    let range = |first, number_of_blocks| {
        let first_block = BlockHeight(first);
        Message::QueryChannelRange(QueryChannelRange {
            chain_hash,
            first_block,
            number_of_blocks,
            query_options: Some(u64::MAX),
        })
    };
    let ids = |ids: Vec<ShortChannelId>, query_flags| {
        Message::QueryShortChannelIds(QueryShortChannelIds { chain_hash, short_channel_ids: ids, query_flags })
    };
    let questions = [
        range(0, u32::MAX),
        range(u32::MAX, u32::MAX),
        range(0, 0),
        ids((0..8_000).map(id).collect(), None),
        ids(vec![id(9); 4_000], None),
        ids(vec![id(9), id(9)], Some(vec![u64::MAX, u64::MAX])),
        ids(Vec::new(), None),
    ];
    for round in 0..20 {
        stage.says(&questions).await;
        if round % 5 == 0 {
            stage.pay().await;
        }
    }
    // Compressed, or with flags for other ids than there are.
    for message in &questions[3..6] {
        let mut whole = bytes(message);
        whole[2 + 32 + 2] = 1;
        stage.tap.say_bytes(To::Left, &whole).await;
    }
    stage.tap.say_bytes(To::Left, &bytes(&ids(vec![id(9)], Some(vec![1, 1, 1])))).await;
    stage.pay().await;
    // An honest peer is asked, and heard.
    let mut honest = Wild::connect(&stage.bob, key(5)).await;
    for message in channel.all(now() - 100) {
        honest.say(&message).await;
    }
    stage.wait_for_graph(1, 2).await;
    stage.pay().await;
    stage.is_untouched();
    stage.stop().await;
}

/// LDK #2842: connections whose handshake never ends are nobody that something is passed on to.
#[tokio::test(flavor = "multi_thread")]
async fn gossip_goes_on_beside_handshakes_that_never_end() {
    let mut stage = Stage::new().await;
    let channel = fund(&stage.chain, &[(1, 2)])[0];
    let mut half_open = Vec::new();
    for n in 0..200u8 {
        let mut socket = tokio::net::TcpStream::connect(stage.bob.address).await.unwrap();
        // Some say half of the first act, some nothing.
        if n % 2 == 0 {
            let _turned_away = tokio::io::AsyncWriteExt::write_all(&mut socket, &[0; 25]).await;
        }
        half_open.push(socket);
        if n % 50 == 0 {
            stage.pay().await;
        }
    }
    stage.says(&channel.all(now() - 100)).await;
    stage.wait_for_graph(1, 2).await;
    stage.pay().await;
    // Whoever ends theirs is told.
    drop(half_open);
    let mut honest = eventually_connects(&stage.bob).await;
    honest.say(&everything()).await;
    loop {
        if let Message::ChannelAnnouncement(_) = honest.hear().await.expect("connected") {
            break;
        }
    }
    stage.is_untouched();
    stage.stop().await;
}

/// The places of those who are gone are free in a moment.
async fn eventually_connects(node: &TestNode) -> Wild {
    let started = Instant::now();
    loop {
        if let Ok(mut wild) = Wild::try_call(node.address, node.id(), key(5)).await {
            wild.say(&good_init()).await;
            if let Some(Message::Init(_)) = wild.hear().await {
                return wild;
            }
        }
        assert!(started.elapsed() < PATIENCE, "nobody gets in any more");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
