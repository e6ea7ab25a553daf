//! What two nodes say of a channel between them and of themselves, over real sockets and journals (BOLT 7).
#![allow(clippy::unwrap_used, missing_docs)]

mod scripted;
#[path = "../support/mod.rs"]
mod support;

use lightning::ln::msgs::{self, SocketAddress};
use lightning::util::ser::LengthReadable;
use millrace_channel::Fact;
use millrace_routing::graph::{Direction, NodeId, Policy, VerifiedChannel, VerifiedNode, VerifiedUpdate};
use millrace_wire::{
    ChannelAnnouncement, ChannelId, ChannelUpdate, CltvDelta, Decoded, Message, Msat, NodeAnnouncement, ShortChannelId,
};
use millraced::announce::node::{Color, Face, Wishes};
use millraced::channels::ChannelSnapshot;
use millraced::facts::Telling;
use millraced::policy::ForwardPolicy;

use scripted::{Scripted, signed_update};
use support::{FakeChain, Setup, TestNode, eventually, open_between, start};

/// Two nodes with a channel; `is_public` says what was agreed.
struct Pair {
    chain: FakeChain,
    alice: TestNode,
    bob: TestNode,
    id: ChannelId,
    dirs: [tempfile::TempDir; 2],
}

fn setup(seed: u8) -> Setup {
    let face = Face {
        alias: format!("node {seed} ⚡"),
        color: Color([1, 2, seed]),
        addresses: vec!["node.example.org:9735".parse().unwrap(), "203.0.113.7:9735".parse().unwrap()],
    };
    Setup { face, ..Setup::new(seed) }
}

impl Pair {
    async fn new(is_public: bool) -> Self {
        let (chain, dirs) = (FakeChain::new(), [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()]);
        let alice = start(&setup(1), &chain, dirs[0].path()).await;
        let bob = start(&setup(2), &chain, dirs[1].path()).await;
        alice.connect(&bob).await;
        let id = match is_public {
            false => open_between(&alice, &bob, &chain, 1_000_000).await,
            true => support::open_public(&alice, &bob, &chain, 1_000_000).await,
        };
        Self { chain, alice, bob, id, dirs }
    }

    async fn announced() -> Self {
        let pair = Self::new(true).await;
        pair.chain.mine(3);
        pair.wait_announced().await;
        pair
    }

    async fn wait_announced(&self) {
        for node in [&self.alice, &self.bob] {
            node.wait_until(self.id, "the channel is announced", |snapshot| snapshot.announcement.is_some()).await;
        }
    }

    fn scid(&self) -> ShortChannelId {
        self.alice.snapshot(self.id).short_channel_id.expect("it is in a block")
    }

    async fn restart(self) -> Self {
        let Self { chain, alice, bob, id, dirs } = self;
        alice.end().await;
        bob.end().await;
        let bob = start(&setup(2), &chain, dirs[1].path()).await;
        let alice = start(&setup(1), &chain, dirs[0].path()).await;
        alice.connect(&bob).await;
        for node in [&alice, &bob] {
            node.wait_until(id, "the channel is usable", ChannelSnapshot::is_usable).await;
        }
        Self { chain, alice, bob, id, dirs }
    }

    async fn stop(self) {
        self.alice.node.stop().await;
        self.bob.node.stop().await;
    }
}

fn read(message: &[u8]) -> Message {
    match Message::decode(message).unwrap() {
        Decoded::Message(message) => message,
        Decoded::Ignored { type_number } => panic!("type {type_number}"),
    }
}

/// What a node gave to be passed on.
#[derive(Default)]
struct Heard {
    channels: Vec<ChannelAnnouncement>,
    updates: Vec<ChannelUpdate>,
    nodes: Vec<NodeAnnouncement>,
}

fn heard(node: &TestNode) -> Heard {
    let mut heard = Heard::default();
    for message in node.relayed.lock().unwrap().iter() {
        match read(message) {
            Message::ChannelAnnouncement(one) => heard.channels.push(*one),
            Message::ChannelUpdate(one) => heard.updates.push(*one),
            Message::NodeAnnouncement(one) => heard.nodes.push(*one),
            other => panic!("{} is nothing to pass on", other.name()),
        }
    }
    heard
}

/// The current update of a node for a channel by one of its names.
fn update(node: &TestNode, scid: ShortChannelId) -> Option<ChannelUpdate> {
    let Message::ChannelUpdate(update) = read(&node.announcer.update_of(scid)?) else { panic!("no channel_update") };
    Some(*update)
}

fn timestamp(update: &ChannelUpdate) -> u32 {
    update.parsed().contents.timestamp
}

/// What `node` is known to ask, at the other end.
async fn wait_for_terms(other: &TestNode, id: ChannelId, what: &str, is_so: impl Fn(&Policy) -> bool) -> Policy {
    eventually(what, || other.network.towards_us(&id).filter(|policy| is_so(policy))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn both_ends_of_a_public_channel_announce_the_same_and_it_holds() {
    let pair = Pair::new(true).await;
    // Not before six confirmations.
    pair.chain.mine(2);
    for node in [&pair.alice, &pair.bob] {
        node.wait_until(pair.id, "five confirmations", |snapshot| snapshot.funding_depth == 5).await;
        assert!(node.snapshot(pair.id).announcement.is_none() && node.relayed.lock().unwrap().is_empty());
    }
    pair.chain.mine(1);
    pair.wait_announced().await;
    let mut seen = Vec::new();
    for (node, other) in [(&pair.alice, &pair.bob), (&pair.bob, &pair.alice)] {
        eventually("everything is passed on", || (node.relayed.lock().unwrap().len() >= 3).then_some(())).await;
        let Heard { channels, updates, nodes } = heard(node);
        let [channel] = &channels[..] else { panic!("{} announcements", channels.len()) };
        let verified = VerifiedChannel::verify(channel.clone()).unwrap();
        let terms = &node.snapshot(pair.id).terms;
        assert_eq!(*verified.funding_script(), millrace_channel::tx::funding::output_of(terms).script_pubkey);
        assert_eq!(channel.parsed().contents.short_channel_id, pair.scid().0);
        let ldk = msgs::ChannelAnnouncement::read_from_fixed_length_buffer(&mut channel.bytes()).unwrap();
        assert_eq!(ldk.contents.chain_hash, millrace_wire::ChainHash::REGTEST);
        node.fold
            .wait_for("it was told of", |fact| match fact {
                Fact::Announced { announcement } => (announcement[..] == *channel.bytes()).then_some(()),
                _ => None,
            })
            .await;
        // The last update is for everybody, and by the node.
        let last = updates.last().expect("an update is passed on");
        VerifiedUpdate::verify(last.clone(), NodeId(node.id().serialize())).unwrap();
        let contents = &last.parsed().contents;
        let is_lesser = node.id().serialize() < other.id().serialize();
        assert_eq!(Direction::of_update(contents) == Direction::FromLesser, is_lesser);
        assert_eq!((contents.short_channel_id, contents.message_flags), (pair.scid().0, 1));
        let reserve = terms.reserve_of(millrace_channel::Side::Local).0;
        // Half of it: one incoming peer may hold no more.
        assert_eq!(contents.htlc_maximum_msat, (1_000_000 - reserve) * 500);
        let [said] = &nodes[..] else { panic!("{} node announcements", nodes.len()) };
        VerifiedNode::verify(said.clone()).unwrap();
        let said = &said.parsed().contents;
        assert_eq!(said.node_id.as_slice(), node.id().serialize());
        assert!(said.alias.to_string().starts_with("node "), "{}", said.alias);
        assert!(matches!(&said.addresses[..], [SocketAddress::TcpIpV4 { .. }, SocketAddress::Hostname { .. }]));
        assert!(said.features.supports_gossip_queries() && said.features.supports_basic_mpp());
        assert_eq!(node.announcer.shown().announced_s, Some(said.timestamp));
        seen.push(channel.bytes().to_vec());
    }
    assert_eq!(seen[0], seen[1]);
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_private_channel_is_told_to_the_peer_alone_and_by_the_alias_it_gave() {
    let pair = Pair::new(false).await;
    pair.chain.mine(6);
    for (node, other) in [(&pair.alice, &pair.bob), (&pair.bob, &pair.alice)] {
        wait_for_terms(other, pair.id, "the peer has heard the terms", |policy| policy.fee_base_msat == 1_000).await;
        let snapshot = node.snapshot(pair.id);
        let remote_alias = snapshot.remote_alias.expect("an alias was told");
        // Whatever name an onion has for the channel, that is the name in the failure, and the real one is told to nobody
        // who does not use it.
        for scid in [snapshot.local_alias, snapshot.short_channel_id.unwrap()] {
            let said = update(node, scid).expect("there is an update");
            assert_eq!((said.parsed().contents.short_channel_id, said.parsed().contents.message_flags), (scid.0, 3));
            VerifiedUpdate::verify(said, NodeId(node.id().serialize())).unwrap();
        }
        let said: Vec<_> = written(node, pair.id);
        assert_eq!(said.iter().map(|one| one.parsed().contents.short_channel_id).collect::<Vec<_>>(), [remote_alias.0]);
        assert_eq!(update(node, ShortChannelId(77)), None);
        assert!(node.relayed.lock().unwrap().is_empty(), "a private channel is passed on");
        assert_eq!(node.announcer.shown().announced_s, None);
    }
    pair.stop().await;
}

/// All updates of a node for a channel that are in its journal, in order.
fn written(node: &TestNode, id: ChannelId) -> Vec<ChannelUpdate> {
    let entries = [Telling::Replay, Telling::Live].into_iter().flat_map(|telling| node.fold.entries(telling));
    let ours = entries.filter(|entry| entry.kind == millraced::entry::Kind::Announce).filter_map(|entry| {
        // Version, variant, channel, length: then the message without its type.
        let [1, 0, rest @ ..] = &entry.bytes[..] else { return None };
        let (channel, rest) = rest.split_at_checked(32)?;
        (channel == id.0).then(|| {
            let (_, bytes) = rest.split_at(2);
            let message = [&258_u16.to_be_bytes()[..], bytes].concat();
            let Message::ChannelUpdate(update) = read(&message) else { panic!("no channel_update") };
            *update
        })
    });
    ours.collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn another_policy_is_told_to_the_peer_and_to_the_network_with_a_later_time() {
    let pair = Pair::announced().await;
    eventually("an update is passed on", || heard(&pair.alice).updates.pop()).await;
    let before = update(&pair.alice, pair.scid()).unwrap();
    let policy = ForwardPolicy {
        fee_base: Msat(7),
        fee_ppm: 8,
        cltv_delta: CltvDelta(90),
        htlc_minimum: Msat(1_000),
        htlc_maximum: Some(Msat(400_000_000)),
    };
    pair.alice.policies.set(pair.id, policy);
    let told = wait_for_terms(&pair.bob, pair.id, "Bob hears of it", |policy| policy.fee_base_msat == 7).await;
    assert_eq!((told.fee_proportional_millionths, told.cltv_expiry_delta), (8, 90));
    assert_eq!((told.htlc_minimum, told.htlc_maximum), (Msat(1_000), Msat(400_000_000)));
    let after = update(&pair.alice, pair.scid()).unwrap();
    assert!(timestamp(&after) > timestamp(&before));
    eventually("it is passed on", || heard(&pair.alice).updates.pop().filter(|last| *last == after)).await;
    // More than the channel can carry for one incoming peer is never promised.
    let all = ForwardPolicy { htlc_maximum: Some(Msat(u64::MAX)), ..policy };
    pair.alice.policies.set(pair.id, all);
    let most = 495_000_000;
    wait_for_terms(&pair.bob, pair.id, "it is bounded", |policy| policy.htlc_maximum == Msat(most)).await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_restart_says_nothing_new_and_passes_all_of_it_on_again() {
    let mut pair = Pair::announced().await;
    for node in [&pair.alice, &pair.bob] {
        eventually("all is passed on", || (!heard(node).nodes.is_empty()).then_some(())).await;
    }
    let terms = wait_for_terms(&pair.bob, pair.id, "Bob has the terms", |_| true).await;
    let before = [&pair.alice, &pair.bob].map(|node| (heard(node), update(node, pair.scid()).unwrap()));
    pair = pair.restart().await;
    for (node, (heard_before, update_before)) in [&pair.alice, &pair.bob].into_iter().zip(before) {
        eventually("all is passed on again", || (!heard(node).nodes.is_empty()).then_some(())).await;
        let now = heard(node);
        assert_eq!((&now.channels, now.updates.last()), (&heard_before.channels, Some(&update_before)));
        assert_eq!(now.nodes.last(), heard_before.nodes.last());
        assert_eq!(update(node, pair.scid()), Some(update_before));
    }
    assert_eq!(pair.bob.network.towards_us(&pair.id), Some(terms), "known before the peer says it again");
    // And what is said next is later.
    let before = update(&pair.alice, pair.scid()).unwrap();
    pair.alice.policies.set(pair.id, ForwardPolicy { fee_ppm: 9, ..ForwardPolicy::default() });
    wait_for_terms(&pair.bob, pair.id, "Bob hears of it", |policy| policy.fee_proportional_millionths == 9).await;
    assert!(timestamp(&update(&pair.alice, pair.scid()).unwrap()) > timestamp(&before));
    pair.stop().await;
}

/// One is away while the other sees the sixth block, and comes back; nothing was signed in between.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_node_that_was_away_signs_when_it_is_back() {
    let Pair { chain, alice, bob, id, dirs } = Pair::new(true).await;
    bob.end().await;
    chain.mine(3);
    alice.wait_until(id, "six confirmations", |snapshot| snapshot.funding_depth == 6).await;
    assert!(alice.snapshot(id).announcement.is_none());
    let bob = start(&setup(2), &chain, dirs[1].path()).await;
    alice.connect(&bob).await;
    let pair = Pair { chain, alice, bob, id, dirs };
    pair.wait_announced().await;
    let [alice, bob] = [&pair.alice, &pair.bob].map(|node| node.snapshot(pair.id).announcement.clone());
    assert_eq!(alice.map(|one| one.bytes), bob.map(|one| one.bytes));
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_reorganisation_takes_the_announcement_back_and_brings_another() {
    let pair = Pair::announced().await;
    let before = pair.alice.snapshot(pair.id);
    eventually("the first is passed on", || (heard(&pair.alice).channels.len() == 1).then_some(())).await;
    pair.chain.disconnect(6);
    for node in [&pair.alice, &pair.bob] {
        node.wait_until(pair.id, "it is taken back", |snapshot| snapshot.announcement.is_none()).await;
    }
    // Two blocks more than before: the funding is in a later one.
    pair.chain.mine_empty(2);
    pair.chain.mine(6);
    pair.wait_announced().await;
    let after = pair.alice.snapshot(pair.id);
    assert_ne!(after.short_channel_id, before.short_channel_id);
    assert_ne!(after.announcement, before.announcement);
    eventually("both were passed on", || (heard(&pair.alice).channels.len() == 2).then_some(())).await;
    let channels = heard(&pair.alice).channels;
    VerifiedChannel::verify(channels[1].clone()).unwrap();
    assert_eq!(channels[1].parsed().contents.short_channel_id, after.short_channel_id.unwrap().0);
    eventually("the update follows", || update(&pair.alice, after.short_channel_id.unwrap())).await;
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn wishes_win_over_the_settings_for_good() {
    let mut pair = Pair::announced().await;
    let first = eventually("the node is announced", || heard(&pair.alice).nodes.pop()).await;
    let wishes = Wishes { alias: Some("Corner Shop".to_owned()), color: Some(Color([9, 9, 9])), addresses: None };
    let (entry, face) = pair.alice.announcer.wish(wishes);
    assert_eq!((face.alias.as_str(), face.addresses.len()), ("Corner Shop", 2));
    pair.alice.node.registry().journal().write(vec![entry]).await.unwrap();
    let second = eventually("it is announced anew", || {
        heard(&pair.alice).nodes.pop().filter(|said| said.parsed().contents.alias.to_string() == "Corner Shop")
    })
    .await;
    assert!(second.parsed().contents.timestamp > first.parsed().contents.timestamp);
    VerifiedNode::verify(second).unwrap();
    pair = pair.restart().await;
    assert_eq!(pair.alice.announcer.shown().face, face);
    let (_, cleared) = pair.alice.announcer.wish(Wishes { addresses: Some(Vec::new()), ..Wishes::default() });
    assert_eq!((cleared.alias.as_str(), cleared.addresses.len()), ("Corner Shop", 0));
    pair.stop().await;
}

/// What a peer says of our channel counts only if it says so itself, and later than before.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn terms_that_are_not_the_peers_own_are_passed_over() {
    let Pair { chain, alice, bob, id, dirs } = Pair::new(false).await;
    let terms = wait_for_terms(&alice, id, "Alice has Bob's terms", |_| true).await;
    let scid = alice.snapshot(id).local_alias;
    let bob_key = bob.key;
    bob.end().await;
    // A scripted peer with Bob's key.
    let mut peer = Scripted::call(&alice, bob_key).await;
    let good = signed_update(&bob_key, &alice.id(), scid, |contents| {
        (contents.timestamp, contents.fee_base_msat) = (u32::MAX, 4_321);
    });
    let forged = signed_update(&alice.key, &alice.id(), scid, |contents| {
        contents.timestamp = u32::MAX;
        contents.channel_flags = good.parsed().contents.channel_flags;
    });
    let older = signed_update(&bob_key, &alice.id(), scid, |contents| contents.timestamp = 1);
    let elsewhere = signed_update(&bob_key, &alice.id(), scid, |contents| {
        (contents.timestamp, contents.chain_hash) = (u32::MAX, millrace_wire::ChainHash::BITCOIN);
    });
    let reversed = signed_update(&bob_key, &alice.id(), scid, |contents| {
        contents.timestamp = u32::MAX;
        contents.channel_flags ^= 1;
    });
    for bad in [forged, older, elsewhere, reversed] {
        peer.say(&Message::ChannelUpdate(Box::new(bad))).await;
    }
    peer.ping().await;
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    assert_eq!(alice.network.towards_us(&id), Some(terms));
    peer.say(&Message::ChannelUpdate(Box::new(good))).await;
    wait_for_terms(&alice, id, "the good one counts", |policy| policy.fee_base_msat == 4_321).await;
    drop((peer, dirs, chain));
    alice.node.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_channel_that_closes_is_disabled_and_then_forgotten() {
    let pair = Pair::announced().await;
    eventually("an update is passed on", || heard(&pair.alice).updates.pop()).await;
    let registry = pair.alice.node.registry();
    registry.force_close(pair.id, "a test".to_owned()).await.unwrap();
    eventually("it is disabled", || {
        heard(&pair.alice).updates.pop().filter(|last| Policy::of_update(&last.parsed().contents).is_disabled)
    })
    .await;
    pair.stop().await;
}
