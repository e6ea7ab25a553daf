//! The public graph of a node: what peers say of it, on the wire itself; a chain that is mined by hand.

#![allow(clippy::unwrap_used)]

mod questions;
mod restart;
#[path = "../support/mod.rs"]
mod support;
mod sync;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bitcoin::{Amount, Network, OutPoint, ScriptBuf, TxOut};
use millrace_chain::{Auth, Bitcoind, Config, Timeouts};
use millrace_regtest::bitcoind::{Bitcoind as Regtest, Options};
use millrace_routing::graph::NodeId;
use millrace_wire::{
    BlockHeight, ChainHash, GossipTimestampFilter, Message, QueryChannelRange, QueryShortChannelIds, ReplyChannelRange,
    ReplyShortChannelIdsEnd, Sat, ShortChannelId,
};
use millraced::channels::ChannelSnapshot;
use millraced::gossip::{BitcoindFunding, Funding, FundingSource, GossipRules};
use secp256k1::SECP256K1;
use support::announced::{
    Announced, CAPACITY, bytes, fund, node as node_announcement, node_key, now, secret, spending,
};
use support::wild::{Wild, key};
use support::{FakeChain, PATIENCE, Setup, TestNode, eventually, open_between, preimage, start};

/// A node that passes on at once, and keeps its graph in its folder.
fn setup(seed: u8, dir: &tempfile::TempDir) -> Setup {
    let mut setup = Setup::new(seed);
    setup.gossip = Some(GossipRules {
        relay_every: Duration::from_millis(20),
        publish_every: Duration::from_millis(20),
        file: Some(dir.path().join("graph")),
        ..GossipRules::default()
    });
    setup
}

/// Its journal stands beside its graph.
async fn start_in(seed: u8, chain: &FakeChain, dir: &tempfile::TempDir) -> TestNode {
    start(&setup(seed, dir), chain, &dir.path().join("journal")).await
}

async fn node() -> (TestNode, FakeChain, tempfile::TempDir) {
    let (chain, dir) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let node = start_in(1, &chain, &dir).await;
    (node, chain, dir)
}

fn filter(first_timestamp: u32) -> Message {
    let chain_hash = ChainHash::REGTEST;
    Message::GossipTimestampFilter(GossipTimestampFilter { chain_hash, first_timestamp, timestamp_range: u32::MAX })
}

fn is_announcement(message: &Message) -> bool {
    matches!(message, Message::ChannelAnnouncement(_) | Message::NodeAnnouncement(_) | Message::ChannelUpdate(_))
}

impl TestNode {
    fn graph(&self) -> &millraced::gossip::Gossip {
        self.gossip.as_ref().unwrap()
    }

    async fn wait_for_graph(&self, what: &str, channels: usize, policies: usize) {
        let started = Instant::now();
        loop {
            let info = self.graph().info().await;
            if (info.channels, info.directions) == (channels, policies) {
                return;
            }
            assert!(started.elapsed() < PATIENCE, "{what}: {info:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Waits until these nodes have said what they are.
    async fn wait_for_nodes(&self, numbers: &[u32]) {
        let started = Instant::now();
        for number in numbers {
            let id = NodeId::from(node_key(*number));
            while self.graph().node(id, 1).await.is_none_or(|node| node.announcement.is_none()) {
                assert!(started.elapsed() < PATIENCE, "node {number}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn has(&self, id: ShortChannelId) -> bool {
        self.graph().channel(id).await.is_some()
    }
}

/// Says all of it, and then waits until the node has read it.
async fn say_all(wild: &mut Wild, messages: &[Message]) {
    for message in messages {
        wild.say(message).await;
    }
    wild.hear_until_pong().await;
}

/// What it is told of others' announcements, until so many have come.
async fn hear_announcements(wild: &mut Wild, count: usize) -> Vec<Vec<u8>> {
    let mut heard = Vec::new();
    while heard.len() < count {
        let message = wild.hear().await.expect("connected");
        if is_announcement(&message) {
            heard.push(bytes(&message));
        }
    }
    heard
}
/// The node's own question.
async fn asked_range(wild: &mut Wild) -> QueryChannelRange {
    loop {
        if let Message::QueryChannelRange(query) = wild.hear().await.expect("connected") {
            return query;
        }
    }
}

fn reply(first: u32, blocks: u32, ids: Vec<ShortChannelId>) -> Message {
    Message::ReplyChannelRange(ReplyChannelRange {
        chain_hash: ChainHash::REGTEST,
        first_block: BlockHeight(first),
        number_of_blocks: blocks,
        sync_complete: false,
        short_channel_ids: ids,
        timestamps: None,
        checksums: None,
    })
}

/// Answers the node's question with one channel, to the end.
async fn tell_graph(wild: &mut Wild, channel: &Announced) {
    wild.say(&reply(0, u32::MAX, vec![channel.id])).await;
    loop {
        if let Message::QueryShortChannelIds(query) = wild.hear().await.unwrap() {
            assert_eq!(query.short_channel_ids, [channel.id]);
            break;
        }
    }
    for message in channel.all(now()) {
        wild.say(&message).await;
    }
    let end = ReplyShortChannelIdsEnd { chain_hash: ChainHash::REGTEST, full_information: true };
    wild.say(&Message::ReplyShortChannelIdsEnd(end)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_peer_announces_is_kept_and_passed_on_byte_for_byte_and_never_back() {
    let (node, chain, _dir) = node().await;
    let channel = fund(&chain, &[(1, 2)])[0];
    let (mut alice, mut bob) = (Wild::connect(&node, key(5)).await, Wild::connect(&node, key(6)).await);
    for wild in [&mut alice, &mut bob] {
        wild.say(&filter(0)).await;
        wild.hear_until_pong().await;
    }
    let mut late = Wild::connect(&node, key(7)).await;
    late.say(&filter(now() + 1_000)).await;
    late.hear_until_pong().await;
    let all = channel.all(now() - 100);
    say_all(&mut alice, &all).await;
    let mut heard = hear_announcements(&mut bob, 5).await;
    // Unknown flags and excess data are in them all.
    assert_eq!(heard[0], bytes(&all[0]), "the channel comes before what is about it");
    let mut said: Vec<Vec<u8>> = all.iter().map(bytes).collect();
    heard.sort();
    said.sort();
    assert_eq!(heard, said);
    // Passed on again: it is no news, and nobody is told.
    say_all(&mut bob, &all).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    for wild in [&mut alice, &mut bob, &mut late] {
        let told = wild.hear_until_pong().await;
        assert!(!told.iter().any(is_announcement), "{told:?}");
    }
    let shown = node.graph().channel(channel.id).await.unwrap();
    assert_eq!((shown.capacity, shown.nodes), (CAPACITY, channel.nodes.map(|number| NodeId::from(node_key(number)))));
    assert!(shown.terms.iter().all(Option::is_some));
    let node_shown = node.graph().node(NodeId::from(node_key(1)), 10).await.unwrap();
    assert!(node_shown.announcement.is_some() && node_shown.channels.len() == 1);
    eventually("searches see it", || (node.network.map().edge_count() == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_invalid_signatures_and_then_a_valid_update() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (start_in(1, &chain, &a_dir).await, start_in(2, &chain, &b_dir).await);
    a.connect(&b).await;
    let own = open_between(&a, &b, &chain, 1_000_000).await;
    let channel = fund(&chain, &[(1, 2)])[0];
    let mut wild = Wild::connect(&a, key(5)).await;
    say_all(&mut wild, &[channel.announcement()]).await;
    a.wait_for_graph("the channel", 1, 0).await;
    let forger = secret(9, 9);
    let mut warnings = 0;
    for n in 0..3_000 {
        wild.say(&channel.update_by(&forger, 0, now() - 4_000 + n)).await;
        if n % 500 == 0 {
            // Meanwhile payments go on.
            let paid = preimage(u8::try_from(n / 500).unwrap() + 1);
            a.offer(own, &paid, 1_000_000, vec![]).await;
            b.fulfill(own, &paid).await;
            a.wait_fulfilled(&paid).await;
        }
        if n % 100 == 0 {
            let heard = wild.hear_until_pong().await;
            warnings += heard.iter().filter(|message| matches!(message, Message::Warning(_))).count();
        }
    }
    let started = Instant::now();
    // What was dropped for want of room may be said again; nothing that the forger said counts against its owner.
    while a.graph().info().await.directions == 0 {
        assert!(started.elapsed() < PATIENCE, "the valid update is taken");
        wild.say(&channel.update(0, now() - 4_000)).await;
        let heard = wild.hear_until_pong().await;
        warnings += heard.iter().filter(|message| matches!(message, Message::Warning(_))).count();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!((1..=4).contains(&warnings), "{warnings} warnings");
    assert!(a.snapshot(own).is_usable() && b.snapshot(own).is_usable());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_says_a_thousand_times_what_it_is_is_passed_on_a_few_times() {
    let (node, chain, _dir) = node().await;
    let channel = fund(&chain, &[(1, 2)])[0];
    let mut alice = Wild::connect(&node, key(5)).await;
    // From now on there is room for all that she says.
    asked_range(&mut alice).await;
    let mut bob = Wild::connect(&node, key(6)).await;
    bob.say(&filter(0)).await;
    bob.hear_until_pong().await;
    let when = now() - 5_000;
    say_all(&mut alice, &channel.all(when)).await;
    hear_announcements(&mut bob, 5).await;
    // If this were taken, nothing that node 2 says later would be.
    alice.say(&node_announcement(2, u32::MAX)).await;
    for n in 1..=1_000 {
        alice.say(&node_announcement(1, when + n)).await;
    }
    let last = node_announcement(2, when + 1);
    say_all(&mut alice, std::slice::from_ref(&last)).await;
    let mut heard = Vec::new();
    while heard.last() != Some(&bytes(&last)) {
        heard.extend(hear_announcements(&mut bob, 1).await);
    }
    // Twelve at once, of which the first has come before.
    assert_eq!(heard.len(), 11 + 1, "and node 2's own");
    let known = node.graph().node(NodeId::from(node_key(1)), 0).await.unwrap().announcement.unwrap();
    assert_eq!(known.parsed().contents.timestamp, when + 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn announcements_of_outputs_that_do_not_exist() {
    let (node, chain, _dir) = node().await;
    let channels = fund(&chain, &[(1, 2), (3, 4), (5, 6)]);
    let [good, spent, other] = channels[..] else { panic!("three channels") };
    chain.submit(spending(spent.outpoint, vec![TxOut { value: Amount::ONE_SAT, script_pubkey: ScriptBuf::new() }]));
    chain.mine(1);
    let (height, index, _) = good.id.parts();
    let at = |height, index, output| Announced { id: ShortChannelId::new(height, index, output).unwrap(), ..good };
    let mut wild = Wild::connect(&node, key(5)).await;
    let absent = [
        at(height + 1_000, 0, 0),
        at(height, index + 1, 0),
        at(height, index, 3),
        // Another channel's output: the script is of other keys.
        Announced { id: other.id, ..good },
        spent,
    ];
    for channel in &absent {
        say_all(&mut wild, &channel.all(now())).await;
    }
    say_all(&mut wild, &good.all(now())).await;
    node.wait_for_graph("the good one alone", 1, 2).await;
    assert!(node.has(good.id).await);
    // The block that is not there yet was not asked for.
    let asked = node.funding.asked_ids.lock().unwrap().clone();
    let expected = absent[1..].iter().chain([&good]).map(|channel| channel.id).collect();
    assert_eq!(asked, expected);
    wild.hear_until_pong().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_taken_unchecked_while_the_chain_cannot_be_asked() {
    let (node, chain, _dir) = node().await;
    let channel = fund(&chain, &[(1, 2)])[0];
    node.funding.is_away.store(true, Ordering::Relaxed);
    let mut wild = Wild::connect(&node, key(5)).await;
    say_all(&mut wild, &channel.all(now())).await;
    eventually("it is tried", || (node.funding.asked.load(Ordering::Relaxed) > 1).then_some(())).await;
    assert!(!node.has(channel.id).await);
    // The connection does not wait for it.
    wild.hear_until_pong().await;
    node.funding.is_away.store(false, Ordering::Relaxed);
    node.wait_for_graph("all of it, later", 1, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spent_channel_is_not_used_and_leaves_72_blocks_later() {
    let (node, chain, _dir) = node().await;
    let channels = fund(&chain, &[(1, 2), (3, 4)]);
    let mut wild = Wild::connect(&node, key(5)).await;
    for channel in &channels {
        say_all(&mut wild, &channel.all(now())).await;
    }
    node.wait_for_graph("both", 2, 4).await;
    let edges = |count| move |node: &TestNode| (node.network.map().edge_count() == count).then_some(());
    eventually("both are usable", || edges(4)(&node)).await;
    chain.submit(spending(
        channels[0].outpoint,
        vec![TxOut { value: Amount::ONE_SAT, script_pubkey: ScriptBuf::new() }],
    ));
    chain.mine(1);
    eventually("one is not", || edges(2)(&node)).await;
    let spent_at = chain.height();
    assert_eq!(node.graph().channel(channels[0].id).await.unwrap().spent_at, Some(BlockHeight(spent_at)));
    // A reorg takes the spend back, and another block brings it again.
    chain.disconnect(1);
    eventually("it is usable again", || edges(4)(&node)).await;
    chain.mine(1);
    eventually("and not again", || edges(2)(&node)).await;
    chain.mine(71);
    tokio::time::sleep(Duration::from_millis(300)).await;
    node.wait_for_graph("71 blocks", 2, 4).await;
    assert!(node.has(channels[0].id).await);
    chain.mine(1);
    node.wait_for_graph("72 blocks", 1, 2).await;
    assert!(node.has(channels[1].id).await);
    // A reorg takes channels with their blocks.
    chain.disconnect(chain.height() - channels[1].id.parts().0 + 1);
    node.wait_for_graph("the block of the other one is gone", 0, 0).await;
}
#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_channels_go_from_node_to_node_while_payments_go_on() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a, b) = (start_in(1, &chain, &a_dir).await, start_in(2, &chain, &b_dir).await);
    let pairs: Vec<(u32, u32)> = (0..10_000).map(|n| (n % 1_500, 1_500 + n % 1_499)).collect();
    let channels = fund(&chain, &pairs);
    let messages: Vec<Vec<u8>> = tokio::task::spawn_blocking(move || {
        channels
            .iter()
            .flat_map(|channel| [channel.announcement(), channel.update(0, now())])
            .map(|m| bytes(&m))
            .collect()
    })
    .await
    .unwrap();
    // One that says everything at once, asked or not: what does not fit is dropped, and comes when it is asked for.
    let mut wild = Wild::connect(&a, key(5)).await;
    asked_range(&mut wild).await;
    let started = Instant::now();
    for (n, message) in messages.iter().enumerate() {
        wild.say_bytes(message).await;
        if n % 2_000 == 1_999 {
            wild.hear_until_pong().await;
        }
    }
    for _ in 0..20 {
        let known = a.graph().info().await.channels;
        if known == 10_000 && a.graph().info().await.directions == 10_000 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
        for message in &messages {
            wild.say_bytes(message).await;
        }
        wild.hear_until_pong().await;
        assert!(started.elapsed() < PATIENCE * 6, "{known} channels");
    }
    a.wait_for_graph("all", 10_000, 10_000).await;
    // B asks A for all of it, while both pay.
    b.connect(&a).await;
    let own = open_between(&a, &b, &chain, 1_000_000).await;
    let mut longest = Duration::ZERO;
    for n in 1..=50 {
        let begun = Instant::now();
        let paid = preimage(n);
        a.offer(own, &paid, 1_000_000, vec![]).await;
        b.fulfill(own, &paid).await;
        a.wait_fulfilled(&paid).await;
        longest = longest.max(begun.elapsed());
    }
    assert!(longest < Duration::from_secs(5), "a payment took {longest:?}");
    b.wait_for_graph("B has all of it", 10_000, 10_000).await;
    assert!(a.snapshot(own).is_usable() && b.snapshot(own).is_usable());
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_messages_are_checked_as_others_are_and_passed_on_however_many() {
    let (node, chain, _dir) = node().await;
    let channels = fund(&chain, &[(1, 2), (3, 4)]);
    let mut wild = Wild::connect(&node, key(5)).await;
    wild.say(&filter(0)).await;
    wild.hear_until_pong().await;
    let (own, absent) = (channels[0], Announced { id: channels[1].id, ..channels[0] });
    let [first, rest @ ..] = &own.all(now() - 100)[..] else { panic!("some messages") };
    node.graph().put_own(absent.all(now() - 100).iter().map(bytes).collect());
    node.graph().put_own(vec![vec![1, 2, 3], bytes(first)]);
    node.graph().put_own(rest.iter().map(bytes).collect());
    assert_eq!(hear_announcements(&mut wild, 5).await[0], bytes(first));
    for later in 1..=30 {
        let update = own.update(0, now() - 100 + later);
        node.graph().put_own(vec![bytes(&update)]);
        assert_eq!(hear_announcements(&mut wild, 1).await, [bytes(&update)], "{later}");
    }
    assert!(node.has(own.id).await && !node.has(absent.id).await);
    node.graph().put_own(vec![bytes(&node_announcement(1, now()))]);
    assert_eq!(hear_announcements(&mut wild, 1).await, [bytes(&node_announcement(1, now()))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_with_a_hostile_peer_stay_as_they_are() {
    // The hostile peer's own channel: `b` is one that has a channel with `a`, and then floods it from its own identity.
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = start_in(1, &chain, &a_dir).await;
    let b = start_in(2, &chain, &b_dir).await;
    a.connect(&b).await;
    let own = open_between(&a, &b, &chain, 1_000_000).await;
    let b_key = b.key;
    b.node.stop().await;
    a.wait_until(own, "offline", |snapshot| !snapshot.is_online).await;
    let before = a.fresh(own).await;
    let mut wild = Wild::connect(&a, b_key).await;
    let channel = fund(&chain, &[(1, 2)])[0];
    let forger = secret(9, 9);
    for n in 0..500 {
        wild.say(&channel.update_by(&forger, 0, now() - n)).await;
        wild.say(&Announced { id: ShortChannelId(u64::from(n)), ..channel }.announcement()).await;
        wild.say(&questions::range(0, 0)).await;
        wild.say_bytes(&[1, 0, 9, 9]).await;
        wild.say_bytes(&[1, 5, 9, 9]).await;
    }
    wild.hear_until_pong().await;
    let after = a.fresh(own).await;
    assert_eq!((after.state, after.balances, after.htlcs.len()), (before.state, before.balances, 0));
    drop(wild);
    let b = start_in(2, &chain, &b_dir).await;
    a.connect(&b).await;
    a.wait_until(own, "usable again", ChannelSnapshot::is_usable).await;
    let paid = preimage(3);
    a.offer(own, &paid, 1_000_000, vec![]).await;
    b.fulfill(own, &paid).await;
    a.wait_fulfilled(&paid).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_bitcoind_is_asked_for_outputs() {
    let regtest = Regtest::start(Options::default()).unwrap();
    regtest.mine_to_wallet(105).unwrap();
    let config = Config {
        url: regtest.rpc_url(),
        auth: Auth::Cookie(regtest.cookie_path()),
        network: Network::Regtest,
        timeouts: Timeouts::default(),
    };
    let bitcoind = Bitcoind::connect(config).await.unwrap();
    let address = regtest.new_address().unwrap();
    let value = Amount::from_sat(54_321);
    let txid = regtest.send_to(&address, value).unwrap();
    let transaction = bitcoind.transaction(&txid, None).await.unwrap().unwrap();
    let vout = transaction.output.iter().position(|output| output.value == value).unwrap();
    let vout = u16::try_from(vout).unwrap();
    regtest.mine(1, &address).unwrap();
    let height = regtest.height().unwrap();
    let funding = BitcoindFunding::new(bitcoind);
    let at = |height, index, output| ShortChannelId::new(height, index, output).unwrap();
    let ids =
        vec![at(height, 1, 9), at(height, 1, vout), at(height, 2, 0), at(height + 50, 1, 0), at(height - 1, 7, 0)];
    // Twice: the second time the block's list is known.
    for _ in 0..2 {
        let found = funding.look_up(ids.clone()).await.unwrap();
        let there = Funding { txid, script: address.script_pubkey(), amount: Sat(54_321) };
        assert_eq!(found, [None, Some(there), None, None, None]);
    }
    let outpoint = OutPoint { txid, vout: u32::from(vout) };
    let absent = OutPoint { vout: 9, ..outpoint };
    assert_eq!(funding.are_unspent(vec![absent, outpoint]).await.unwrap(), [false, true]);
    drop(regtest);
    assert!(funding.look_up(ids).await.is_err() && funding.are_unspent(vec![outpoint]).await.is_err());
}
