//! What the graph takes, refuses, keeps and forgets.

#![allow(clippy::unwrap_used)]

use lightning::ln::msgs::{self, UnsignedChannelAnnouncement, UnsignedChannelUpdate, UnsignedNodeAnnouncement};
use lightning::routing::gossip::NodeAlias;
use lightning::types::features::{ChannelFeatures, NodeFeatures};
use millrace_wire::{ChannelAnnouncement, ChannelUpdate, Msat, NodeAnnouncement, Signature, Verbatim};
use proptest::prelude::*;
use secp256k1::{Message, SECP256K1, SecretKey};

use super::*;

mod nodes;

const NOW: u32 = 1_700_000_000;
const SCID: ShortChannelId = ShortChannelId(700_000 << 40 | 5 << 16 | 1);
const CAPACITY: Sat = Sat(1_000_000);

fn chain() -> ChainHash {
    ChainHash::REGTEST
}

fn secret(seed: u8) -> SecretKey {
    SecretKey::from_slice(&[seed; 32]).unwrap()
}

fn id_of(seed: u8) -> lightning::routing::gossip::NodeId {
    lightning::routing::gossip::NodeId::from_pubkey(&secret(seed).public_key(SECP256K1))
}

fn node_id(seed: u8) -> NodeId {
    NodeId::from(secret(seed).public_key(SECP256K1))
}

/// Two nodes in ascending order.
fn ordered(one: u8, other: u8) -> (u8, u8) {
    if id_of(one) < id_of(other) { (one, other) } else { (other, one) }
}

fn sign<T>(verbatim: &Verbatim<T>, seed: u8) -> Signature
where
    Verbatim<T>: millrace_wire::message::Signed,
{
    SECP256K1.sign_ecdsa(&Message::from_digest(verbatim.signed_hash()), &secret(seed))
}

fn no_signature() -> Signature {
    Signature::from_compact(&[1; 64]).unwrap()
}

/// The channel of two nodes, signed by both and by their funding keys, whose seeds are 100 more.
fn channel_with(
    one: u8,
    other: u8,
    scid: ShortChannelId,
    change: impl FnOnce(&mut UnsignedChannelAnnouncement),
) -> ChannelAnnouncement {
    let (lesser, greater) = ordered(one, other);
    let mut contents = UnsignedChannelAnnouncement {
        features: ChannelFeatures::empty(),
        chain_hash: chain(),
        short_channel_id: scid.0,
        node_id_1: id_of(lesser),
        node_id_2: id_of(greater),
        bitcoin_key_1: id_of(lesser + 100),
        bitcoin_key_2: id_of(greater + 100),
        excess_data: vec![7, 7],
    };
    change(&mut contents);
    let no = no_signature();
    let unsigned = msgs::ChannelAnnouncement {
        node_signature_1: no,
        node_signature_2: no,
        bitcoin_signature_1: no,
        bitcoin_signature_2: no,
        contents,
    };
    let by = |seed| sign(&Verbatim::new(unsigned.clone()), seed);
    Verbatim::new(msgs::ChannelAnnouncement {
        node_signature_1: by(lesser),
        node_signature_2: by(greater),
        bitcoin_signature_1: by(lesser + 100),
        bitcoin_signature_2: by(greater + 100),
        ..unsigned.clone()
    })
}

fn channel(one: u8, other: u8, scid: ShortChannelId) -> ChannelAnnouncement {
    channel_with(one, other, scid, |_| {})
}

fn update_with(
    signer: u8,
    scid: ShortChannelId,
    direction: Direction,
    timestamp: u32,
    change: impl FnOnce(&mut UnsignedChannelUpdate),
) -> ChannelUpdate {
    let mut contents = UnsignedChannelUpdate {
        chain_hash: chain(),
        short_channel_id: scid.0,
        timestamp,
        message_flags: 1,
        channel_flags: direction.index() as u8,
        cltv_expiry_delta: 40,
        htlc_minimum_msat: 1,
        htlc_maximum_msat: 500_000_000,
        fee_base_msat: 1_000,
        fee_proportional_millionths: 100,
        excess_data: vec![9],
    };
    change(&mut contents);
    let unsigned = msgs::ChannelUpdate { signature: no_signature(), contents };
    let signature = sign(&Verbatim::new(unsigned.clone()), signer);
    Verbatim::new(msgs::ChannelUpdate { signature, ..unsigned })
}

fn update(signer: u8, direction: Direction, timestamp: u32) -> ChannelUpdate {
    update_with(signer, SCID, direction, timestamp, |_| {})
}

fn node(seed: u8, timestamp: u32) -> NodeAnnouncement {
    node_with(seed, timestamp, NodeFeatures::empty())
}

fn node_with(seed: u8, timestamp: u32, features: NodeFeatures) -> NodeAnnouncement {
    let contents = UnsignedNodeAnnouncement {
        features,
        timestamp,
        node_id: id_of(seed),
        rgb: [1, 2, 3],
        alias: NodeAlias([b'a'; 32]),
        addresses: Vec::new(),
        excess_address_data: Vec::new(),
        excess_data: vec![4],
    };
    let unsigned = msgs::NodeAnnouncement { signature: no_signature(), contents };
    let signature = sign(&Verbatim::new(unsigned.clone()), seed);
    Verbatim::new(msgs::NodeAnnouncement { signature, ..unsigned })
}

impl Graph {
    fn learn(&mut self, update: ChannelUpdate, now: u32) -> Result<(), Unwanted> {
        let by = self.sender_of(&update, now)?;
        self.apply_update(&VerifiedUpdate::verify(update, by).unwrap(), now)
    }

    fn hear(&mut self, announcement: NodeAnnouncement) -> Result<(), Unwanted> {
        self.hear_at(announcement, NOW)
    }

    fn hear_at(&mut self, announcement: NodeAnnouncement, now: u32) -> Result<(), Unwanted> {
        self.check_node(&announcement, now)?;
        self.apply_node(&VerifiedNode::verify(announcement).unwrap(), now)
    }
}

/// The channel of nodes 1 and 2.
fn graph() -> Graph {
    let mut graph = Graph::new(chain());
    graph.add_channel(&VerifiedChannel::verify(channel(1, 2, SCID)).unwrap(), CAPACITY, NOW).unwrap();
    graph
}

fn lesser() -> u8 {
    ordered(1, 2).0
}

#[test]
fn a_channel_is_known_with_its_nodes_and_its_funding_script() {
    let announcement = channel(1, 2, SCID);
    let verified = VerifiedChannel::verify(announcement.clone()).unwrap();
    let keys = [101, 102].map(|seed| secret(seed).public_key(SECP256K1));
    let script = lightning::ln::chan_utils::make_funding_redeemscript(&keys[0], &keys[1]).to_p2wsh();
    assert_eq!(*verified.funding_script(), script, "LDK's is the same");
    let graph = graph();
    let known = &graph.channels()[&SCID];
    assert_eq!((known.capacity, &*known.announcement), (CAPACITY, announcement.bytes()));
    assert_eq!(known.nodes, [node_id(lesser()), node_id(3 - lesser())]);
    assert!(known.nodes.iter().all(|id| graph.nodes()[id].channels == 1));
    assert!(known.is_understood && Direction::BOTH.iter().all(|way| known.usable(*way).is_none()), "no terms yet");
}

#[test]
fn a_channel_with_a_signature_that_does_not_hold() {
    let good = channel(1, 2, SCID).into_parsed();
    type Field = fn(&mut msgs::ChannelAnnouncement) -> &mut Signature;
    let fields: [(&str, Field); 4] = [
        ("node_signature_1", |message| &mut message.node_signature_1),
        ("node_signature_2", |message| &mut message.node_signature_2),
        ("bitcoin_signature_1", |message| &mut message.bitcoin_signature_1),
        ("bitcoin_signature_2", |message| &mut message.bitcoin_signature_2),
    ];
    for (name, field) in fields {
        let mut bad = good.clone();
        *field(&mut bad) = no_signature();
        assert_eq!(VerifiedChannel::verify(Verbatim::new(bad)), Err(GossipFault::Signature { signature: name }));
    }
    let mut changed = good.clone();
    changed.contents.short_channel_id += 1;
    assert!(VerifiedChannel::verify(Verbatim::new(changed)).is_err(), "what is signed was changed");
}

#[test]
fn a_channel_whose_nodes_are_out_of_order_or_no_keys() {
    let swapped = channel_with(1, 2, SCID, |contents| {
        std::mem::swap(&mut contents.node_id_1, &mut contents.node_id_2);
    });
    assert_eq!(VerifiedChannel::verify(swapped), Err(GossipFault::Order));
    let same = channel_with(1, 2, SCID, |contents| contents.node_id_2 = contents.node_id_1);
    assert_eq!(VerifiedChannel::verify(same), Err(GossipFault::Order));
    let no_key = channel_with(1, 2, SCID, |contents| {
        contents.bitcoin_key_1 = lightning::routing::gossip::NodeId::from_slice(&[5; 33]).unwrap();
    });
    assert_eq!(VerifiedChannel::verify(no_key), Err(GossipFault::Key { key: "bitcoin_key_1" }));
}

#[test]
fn a_channel_that_is_not_wanted() {
    let graph = graph();
    assert_eq!(graph.check_channel(&channel(1, 2, SCID)), Err(Unwanted::Known));
    assert_eq!(graph.check_channel(&channel(1, 3, SCID)), Err(Unwanted::Conflict));
    let elsewhere = channel_with(1, 3, ShortChannelId(9), |contents| contents.chain_hash = ChainHash::BITCOIN);
    assert_eq!(graph.check_channel(&elsewhere), Err(Unwanted::OtherChain));
    assert_eq!(graph.check_channel(&channel(1, 3, ShortChannelId(9))), Ok(()));
}

#[test]
fn a_channel_that_demands_what_is_unknown_is_kept_and_not_used() {
    let mut graph = Graph::new(chain());
    let odd =
        channel_with(1, 2, SCID, |contents| contents.features = ChannelFeatures::from_le_bytes(vec![0, 0, 0, 0, 1]));
    graph.add_channel(&VerifiedChannel::verify(odd).unwrap(), CAPACITY, NOW).unwrap();
    graph.learn(update(lesser(), Direction::FromLesser, NOW), NOW).unwrap();
    let known = &graph.channels()[&SCID];
    assert!(known.terms_of(Direction::FromLesser).is_some() && known.usable(Direction::FromLesser).is_none());
}

#[test]
fn terms_are_each_sides_own_and_replaced_by_later_ones_only() {
    let mut graph = graph();
    let (one, other) = ordered(1, 2);
    assert_eq!(graph.learn(update(one, Direction::FromLesser, NOW), NOW), Ok(()));
    assert_eq!(graph.learn(update(other, Direction::FromGreater, NOW - 5), NOW), Ok(()));
    for (timestamp, wanted) in [(NOW - 1, Err(Unwanted::Known)), (NOW, Err(Unwanted::Known)), (NOW + 1, Ok(()))] {
        let dearer =
            update_with(one, SCID, Direction::FromLesser, timestamp, |contents| contents.fee_base_msat = timestamp);
        assert_eq!(graph.learn(dearer, NOW), wanted);
    }
    let known = &graph.channels()[&SCID];
    assert_eq!(known.usable(Direction::FromLesser).unwrap().fee_base_msat, NOW + 1);
    assert_eq!(known.usable(Direction::FromGreater).unwrap().fee_base_msat, 1_000);
    // By the other side, it is no update of this direction.
    let forged = update(other, Direction::FromLesser, NOW + 2);
    let by = graph.sender_of(&forged, NOW).unwrap();
    assert_eq!(by, node_id(one));
    assert_eq!(VerifiedUpdate::verify(forged, by), Err(GossipFault::Signature { signature: "signature" }));
}

#[test]
fn terms_that_are_not_wanted() {
    let graph = graph();
    let one = lesser();
    let asked = |change: fn(&mut UnsignedChannelUpdate)| {
        graph.sender_of(&update_with(one, SCID, Direction::FromLesser, NOW, change), NOW)
    };
    assert_eq!(asked(|_| {}), Ok(node_id(one)));
    assert_eq!(asked(|contents| contents.chain_hash = ChainHash::BITCOIN), Err(Unwanted::OtherChain));
    assert_eq!(asked(|contents| contents.short_channel_id += 1), Err(Unwanted::UnknownChannel));
    assert_eq!(asked(|contents| contents.message_flags = 3), Err(Unwanted::NotPublic));
    assert_eq!(asked(|contents| contents.timestamp = NOW + 86_400), Ok(node_id(one)));
    assert_eq!(asked(|contents| contents.timestamp = NOW + 86_401), Err(Unwanted::Ahead));
    assert_eq!(asked(|contents| contents.timestamp = NOW - STALE_AFTER_SECONDS), Ok(node_id(one)));
    assert_eq!(asked(|contents| contents.timestamp = NOW - STALE_AFTER_SECONDS - 1), Err(Unwanted::Stale));
}

#[test]
fn a_direction_that_is_disabled_is_not_used() {
    let mut graph = graph();
    let off = update_with(lesser(), SCID, Direction::FromLesser, NOW, |contents| contents.channel_flags |= 2);
    graph.learn(off, NOW).unwrap();
    assert!(graph.channels()[&SCID].usable(Direction::FromLesser).is_none());
}

#[test]
fn terms_that_change_too_often_are_refused_until_some_time_has_passed() {
    let mut graph = graph();
    let one = lesser();
    for second in 0..12 {
        assert_eq!(graph.learn(update(one, Direction::FromLesser, NOW + second), NOW), Ok(()), "{second}");
    }
    assert_eq!(graph.learn(update(one, Direction::FromLesser, NOW + 12), NOW), Err(Unwanted::TooOften));
    let later = NOW + 4 * 3600;
    assert_eq!(graph.learn(update(one, Direction::FromLesser, NOW + 12), later - 1), Err(Unwanted::TooOften));
    assert_eq!(graph.learn(update(one, Direction::FromLesser, NOW + 12), later), Ok(()));
    assert_eq!(graph.learn(update(one, Direction::FromLesser, NOW + 13), later), Err(Unwanted::TooOften));
    // This node's own are never too many.
    let own = update(one, Direction::FromLesser, NOW + 13);
    let verified = VerifiedUpdate::verify(own, node_id(one)).unwrap();
    assert_eq!(graph.apply_own_update(&verified, later), Ok(()));
    assert_eq!(graph.apply_own_update(&verified, later), Err(Unwanted::Known));
    // The other side's are its own.
    assert_eq!(graph.learn(update(3 - one, Direction::FromGreater, NOW), later), Ok(()));
}

#[test]
fn a_channel_of_which_a_side_promises_more_than_it_holds_is_not_used() {
    let (one, other) = ordered(1, 2);
    for (htlc_maximum_msat, is_usable) in [(CAPACITY.0 * 1_000, true), (CAPACITY.0 * 1_000 + 1, false)] {
        let mut graph = graph();
        let change = |contents: &mut UnsignedChannelUpdate| contents.htlc_maximum_msat = htlc_maximum_msat;
        graph.learn(update_with(one, SCID, Direction::FromLesser, NOW, change), NOW).unwrap();
        graph.learn(update(other, Direction::FromGreater, NOW), NOW).unwrap();
        let usable = Direction::BOTH.map(|way| graph.channels()[&SCID].usable(way).is_some());
        assert_eq!(usable, [is_usable; 2]);
    }
}

#[test]
fn a_channel_is_not_used_once_it_is_spent_and_forgotten_72_blocks_later() {
    let mut graph = graph();
    graph.learn(update(lesser(), Direction::FromLesser, NOW), NOW).unwrap();
    assert!(graph.mark_spent(SCID, BlockHeight(800_000)));
    assert!(!graph.mark_spent(SCID, BlockHeight(800_000)) && !graph.mark_spent(ShortChannelId(1), BlockHeight(1)));
    assert!(graph.channels()[&SCID].usable(Direction::FromLesser).is_none());
    // A reorg takes the spend back.
    graph.on_disconnected(BlockHeight(800_001));
    assert!(graph.channels()[&SCID].usable(Direction::FromLesser).is_none());
    graph.on_disconnected(BlockHeight(800_000));
    assert!(graph.channels()[&SCID].usable(Direction::FromLesser).is_some());
    graph.mark_spent(SCID, BlockHeight(800_000));
    assert_eq!(graph.prune(NOW, BlockHeight(800_071)), []);
    assert_eq!(graph.prune(NOW, BlockHeight(800_072)), [SCID]);
    assert!(graph.channels().is_empty() && graph.nodes().is_empty());
}

#[test]
fn a_reorg_takes_channels_with_their_blocks() {
    let mut graph = graph();
    graph.on_disconnected(BlockHeight(700_001));
    assert_eq!(graph.channels().len(), 1);
    graph.on_disconnected(BlockHeight(700_000));
    assert!(graph.channels().is_empty() && graph.nodes().is_empty());
}

#[test]
fn what_is_not_repeated_for_two_weeks_is_forgotten() {
    let mut graph = graph();
    let (one, other) = ordered(1, 2);
    graph.add_channel(&VerifiedChannel::verify(channel(1, 3, ShortChannelId(9))).unwrap(), CAPACITY, NOW).unwrap();
    graph.learn(update(one, Direction::FromLesser, NOW), NOW).unwrap();
    graph.learn(update(other, Direction::FromGreater, NOW + 100), NOW).unwrap();
    let height = BlockHeight(800_000);
    assert_eq!(graph.prune(NOW + STALE_AFTER_SECONDS, height), []);
    // The one that never had terms was first heard of at NOW.
    assert_eq!(graph.prune(NOW + STALE_AFTER_SECONDS + 1, height), [ShortChannelId(9)]);
    assert!(graph.channels()[&SCID].terms_of(Direction::FromLesser).is_none());
    assert!(graph.channels()[&SCID].terms_of(Direction::FromGreater).is_some());
    assert!(!graph.nodes().contains_key(&node_id(3)) && graph.nodes()[&node_id(1)].channels == 1);
    assert_eq!(graph.prune(NOW + STALE_AFTER_SECONDS + 101, height), [SCID]);
    assert!(graph.nodes().is_empty());
}

#[test]
fn the_checksum_leaves_out_signature_and_timestamp_alone() {
    let mut graph = graph();
    let one = lesser();
    let checksum = |graph: &Graph| graph.channels()[&SCID].terms_of(Direction::FromLesser).unwrap().checksum;
    graph.learn(update(one, Direction::FromLesser, NOW), NOW).unwrap();
    let first = checksum(&graph);
    graph.learn(update(one, Direction::FromLesser, NOW + 1), NOW).unwrap();
    assert_eq!(checksum(&graph), first);
    let changes: [fn(&mut UnsignedChannelUpdate); 3] = [
        |contents| contents.fee_base_msat += 1,
        |contents| contents.message_flags = 1 | 4,
        |contents| contents.excess_data = vec![8],
    ];
    for (change, later) in changes.into_iter().zip(2..) {
        graph.learn(update_with(one, SCID, Direction::FromLesser, NOW + later, change), NOW).unwrap();
        assert_ne!(checksum(&graph), first);
    }
}

fn saved() -> (Graph, Vec<u8>) {
    let mut graph = graph();
    let (one, other) = ordered(1, 2);
    graph.add_channel(&VerifiedChannel::verify(channel(1, 3, ShortChannelId(9))).unwrap(), Sat(5), NOW - 3).unwrap();
    graph.learn(update(one, Direction::FromLesser, NOW), NOW).unwrap();
    graph.learn(update(other, Direction::FromGreater, NOW), NOW).unwrap();
    graph.hear(node(1, 7)).unwrap();
    graph.mark_spent(ShortChannelId(9), BlockHeight(800_000));
    let mut bytes = Vec::new();
    graph.save(&mut bytes);
    (graph, bytes)
}

#[test]
fn what_is_saved_is_loaded() {
    let (graph, bytes) = saved();
    let loaded = Graph::load(&bytes, chain(), NOW).unwrap();
    let mut again = Vec::new();
    loaded.save(&mut again);
    assert_eq!(again, bytes);
    assert_eq!((loaded.nodes().len(), loaded.channels().len()), (3, 2));
    for (id, node) in graph.nodes() {
        let other = &loaded.nodes()[id];
        let said = |node: &Node| node.announcement.as_ref().map(|said| (said.timestamp, said.bytes.clone()));
        assert_eq!((other.channels, said(other)), (node.channels, said(node)));
    }
    for (id, channel) in graph.channels() {
        let other = &loaded.channels()[id];
        assert_eq!((other.nodes, other.capacity, other.spent_at), (channel.nodes, channel.capacity, channel.spent_at));
        for way in Direction::BOTH {
            let of =
                |channel: &Channel| channel.terms_of(way).map(|terms| (terms.policy, terms.timestamp, terms.checksum));
            assert_eq!(of(other), of(channel));
        }
    }
}

#[test]
fn what_is_damaged_is_not_loaded() {
    let (_, bytes) = saved();
    assert_eq!(Graph::load(&bytes, ChainHash::BITCOIN, NOW), Err(LoadError::OtherChain));
    assert_eq!(Graph::load(b"something else", chain(), NOW), Err(LoadError::Version));
    for end in 0..bytes.len() {
        assert!(Graph::load(&bytes[..end], chain(), NOW).is_err(), "cut at {end}");
    }
    for place in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[place] ^= 1;
        assert!(Graph::load(&damaged, chain(), NOW).is_err(), "bit flipped at {place}");
    }
}

proptest! {
    /// Whatever the bytes: no panic, and no memory for a number that is only said.
    #[test]
    fn loading_never_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut whole = b"mr-graph\x01\0\0\0".to_vec();
        whole.append(&mut bytes);
        let crc = crc32c::crc32c(&whole);
        whole.extend_from_slice(&crc.to_le_bytes());
        let _ = Graph::load(&whole, chain(), NOW);
    }

    /// BOLT 7's formula, in whole numbers.
    #[test]
    fn fees_are_bolt_7s(amount in 0..2_100_000_000_000_000_u64, base in any::<u32>(), share in any::<u32>()) {
        let policy = Policy {
            is_disabled: false,
            cltv_expiry_delta: 1,
            htlc_minimum: Msat(0),
            htlc_maximum: Msat(u64::MAX),
            fee_base_msat: base,
            fee_proportional_millionths: share,
        };
        let expected = u128::from(base) + u128::from(amount) * u128::from(share) / 1_000_000;
        prop_assert_eq!(policy.fee(Msat(amount)).map(|fee| u128::from(fee.0)), u64::try_from(expected).ok().map(u128::from));
    }
}
