//! What single failures teach.
#![allow(clippy::unwrap_used)]

use millrace_routing::failure::FailureMessage;
use millrace_routing::graph::Policy;
use millrace_wire::ShortChannelId;

use super::*;
use crate::happened::{Failure, FailureReason};
use crate::payments::prepare::tests::node;
use crate::payments::send::tests::network::{map, over};

const OWN: ChannelId = ChannelId([1; 32]);
const NOW: u32 = 1_700_000_000;

fn read(hop: usize, message: FailureMessage) -> Read {
    let failure = Failure::here(FailureReason::Temporary, "x");
    Read { failure, message: Some(message), hop: Some(hop), is_malformed: false, held_ms: Vec::new() }
}

fn learned(route: &Route, hop: usize, message: FailureMessage) -> (Lessons, Memory, bool) {
    learned_of(route.received(), route, hop, message)
}

/// Of a part of a payment.
fn learned_of(all: Msat, route: &Route, hop: usize, message: FailureMessage) -> (Lessons, Memory, bool) {
    learned_from(&read(hop, message), all, route)
}

fn learned_from(read: &Read, all: Msat, route: &Route) -> (Lessons, Memory, bool) {
    let (mut lessons, mut memory) = (Lessons::none(), Memory::default());
    let map = map();
    let at = Lesson { route, channel_id: OWN, all, map: &map, now_s: NOW };
    let may_succeed = lessons.learn(read, &at, &mut memory);
    (lessons, memory, may_succeed)
}

#[test]
fn a_refused_amount_is_a_bound_for_all_and_the_channels_before_have_carried_it() {
    let route = over(&[3, 6, 4], 500_000);
    let busy = FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() };
    let (_, memory, may_succeed) = learned(&route, 1, busy);
    assert!(may_succeed);
    let capacity = Msat(1_000_000_000);
    let liquidity = memory.liquidity();
    let first = liquidity.bounds(way_of(&route, 1), capacity, NOW);
    let second = liquidity.bounds(way_of(&route, 2), capacity, NOW);
    assert!(first.least >= Msat(500_900) && first.least <= Msat(501_000), "{first:?}");
    assert_eq!(second.most, Msat(499_999));
}

#[test]
fn what_is_left_out_is_given_nothing_and_what_has_refused_less() {
    let map = map();
    let (payee, route) = (NodeId::from(node(4)), over(&[3, 4], 500_000));
    let limits = |message: FailureMessage| learned(&route, 0, message).0.limits(&map, payee);
    assert_eq!(limits(FailureMessage::UnknownNextPeer), Caps::from([(way_of(&route, 1), Msat::ZERO)]));
    let busy = FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() };
    assert_eq!(limits(busy), Caps::from([(way_of(&route, 1), Msat(499_999))]));
    // Node 6, with the one channel that leads to it.
    for message in [FailureMessage::TemporaryNodeFailure, FailureMessage::PermanentNodeFailure] {
        let (lessons, ..) = learned(&over(&[3, 6, 4], 500_000), 1, message);
        assert_eq!(lessons.limits(&map, payee), Caps::from([(way_of(&over(&[3, 6], 1), 1), Msat::ZERO)]));
    }
}

#[test]
fn what_was_refused_for_the_moment_is_forgotten_after_a_pause_and_nothing_else_is() {
    let payee = NodeId::from(node(4));
    let (map, route) = (map(), over(&[3, 6, 4], 500_000));
    let busy = FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() };
    for (message, is_passing) in [
        (busy, true),
        (FailureMessage::TemporaryNodeFailure, true),
        (FailureMessage::PermanentNodeFailure, false),
        (FailureMessage::UnknownNextPeer, false),
    ] {
        let (mut lessons, ..) = learned(&route, 1, message.clone());
        assert_eq!(lessons.has_refusals(), is_passing, "{message:?}");
        lessons.forget_refusals();
        assert!(!lessons.has_refusals());
        assert_eq!(lessons.limits(&map, payee).is_empty(), is_passing, "{message:?}");
    }
}

/// A peer that cannot read the onion is not tried again, over whichever channel; where it says that the next hop could not,
/// it is the channel to that one.
#[test]
fn who_cannot_read_an_onion_is_left_out() {
    let route = over(&[3, 6, 4], 500_000);
    let message = FailureMessage::InvalidOnionHmac { sha256_of_onion: [1; 32] };
    let doors = [OWN, ChannelId([2; 32])].map(|channel_id| {
        let peer = NodeId::from(node(3));
        let scid = ShortChannelId(channel_id.0[0].into());
        Door { channel_id, hop: FirstHop { peer, short_channel_id: scid, least: Msat(1), most: Msat(900_000) } }
    });
    let (of_itself, _, may_succeed) =
        learned_from(&Read { is_malformed: true, ..read(0, message.clone()) }, route.received(), &route);
    assert!(may_succeed && of_itself.shut.is_empty());
    assert_eq!(of_itself.doors(&doors, node(4).into()), []);
    let (of_the_next, _, may_succeed) = learned(&route, 0, message.clone());
    assert!(may_succeed && of_the_next.shut.contains(&way_of(&route, 1)));
    assert_eq!(of_the_next.doors(&doors, node(4).into()).len(), 2);
    // A payee that cannot is not asked again.
    let alone = over(&[4], 500_000);
    let (.., may_succeed) = learned_from(&Read { is_malformed: true, ..read(0, message) }, alone.received(), &alone);
    assert!(!may_succeed);
}

#[test]
fn of_two_amounts_that_were_refused_the_smaller_one_counts() {
    let (mut lessons, mut memory) = (Lessons::none(), Memory::default());
    let map = map();
    for amount in [300_000, 500_000] {
        let route = over(&[3, 4], amount);
        let at = Lesson { route: &route, channel_id: OWN, all: Msat(800_000), map: &map, now_s: NOW };
        let busy = FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() };
        lessons.learn(&read(0, busy), &at, &mut memory);
    }
    let way = way_of(&over(&[3, 4], 1), 1);
    assert_eq!(lessons.limits(&map, NodeId::from(node(4)))[&way], Msat(299_999));
}

#[test]
fn a_hint_takes_less_after_it_has_refused_and_nothing_once_it_is_shut() {
    let policy = Policy {
        is_disabled: false,
        cltv_expiry_delta: 20,
        htlc_minimum: Msat(0),
        htlc_maximum: Msat(u64::MAX),
        fee_base_msat: 1_000,
        fee_proportional_millionths: 0,
    };
    let route = over(&[3, 7], 500_000);
    let (from, to) = (NodeId::from(node(3)), NodeId::from(node(7)));
    let hint = Hint { from, to, short_channel_id: route.hops[1].scid, policy };
    let busy = FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() };
    let (lessons, ..) = learned(&route, 0, busy);
    assert_eq!(lessons.hints(&[hint], to)[0].policy.htlc_maximum, Msat(499_999));
    let (lessons, ..) = learned(&route, 0, FailureMessage::PermanentChannelFailure);
    assert!(lessons.hints(&[hint], to).is_empty());
    let (lessons, ..) = learned(&route, 0, FailureMessage::TemporaryNodeFailure);
    assert!(lessons.hints(&[hint], to).is_empty());
}

#[test]
fn parts_that_waited_in_vain_are_sent_again_and_what_was_all_of_it_is_not_by_the_same_way() {
    let route = over(&[3, 4], 500_000);
    let (lessons, _, may_succeed) = learned_of(Msat(500_001), &route, 1, FailureMessage::MppTimeout);
    assert!(may_succeed && lessons.shut.is_empty());
    let (lessons, _, may_succeed) = learned_of(Msat(500_000), &route, 1, FailureMessage::MppTimeout);
    assert!(may_succeed && lessons.shut.contains(&way_of(&route, 1)), "another way may be tried");
    let (_, _, may_succeed) = learned_of(Msat(500_000), &over(&[4], 500_000), 0, FailureMessage::MppTimeout);
    assert!(!may_succeed, "a payee that is a peer is not asked again");
}

#[test]
fn all_of_it_waits_in_vain_three_times_however_it_is_divided() {
    let (mut lessons, mut memory) = (Lessons::none(), Memory::default());
    let map = map();
    let mut send_back = |amount: u64, mut lessons: Lessons| {
        let route = over(&[3, 4], amount);
        let at = Lesson { route: &route, channel_id: OWN, all: Msat(500_000), map: &map, now_s: NOW };
        let may_succeed = lessons.learn(&read(1, FailureMessage::MppTimeout), &at, &mut memory);
        assert_eq!(may_succeed, !lessons.is_in_vain(Msat(500_000)));
        (lessons, may_succeed)
    };
    for amount in [300_000, 200_000, 499_999, 1, 250_000, 249_999] {
        let (next, may_succeed) = send_back(amount, lessons);
        assert!(may_succeed);
        lessons = next;
    }
    assert!(!send_back(1, lessons).1);
}

mod terms {
    use lightning::ln::msgs::{self, UnsignedChannelUpdate};
    use millrace_wire::ChannelUpdate;
    use secp256k1::SECP256K1;

    use super::*;
    use crate::payments::prepare::tests::key;

    fn update(by: u8, scid: ShortChannelId, base: u32, delta: u16) -> Vec<u8> {
        let (from, to) = (NodeId::from(node(3)), NodeId::from(node(4)));
        let contents = UnsignedChannelUpdate {
            chain_hash: millrace_wire::ChainHash::REGTEST,
            short_channel_id: scid.0,
            timestamp: 5,
            message_flags: 1,
            channel_flags: u8::from(from > to),
            cltv_expiry_delta: delta,
            htlc_minimum_msat: 1,
            htlc_maximum_msat: 900_000_000,
            fee_base_msat: base,
            fee_proportional_millionths: 0,
            excess_data: Vec::new(),
        };
        let unsigned = |signature| ChannelUpdate::new(msgs::ChannelUpdate { signature, contents: contents.clone() });
        let none = secp256k1::ecdsa::Signature::from_compact(&[1; 64]).unwrap();
        let digest = secp256k1::Message::from_digest(unsigned(none).signed_hash());
        let signed = unsigned(SECP256K1.sign_ecdsa(&digest, &key(by)));
        [&CHANNEL_UPDATE, signed.bytes()].concat()
    }

    fn told(channel_update: Vec<u8>) -> Lessons {
        let message = FailureMessage::FeeInsufficient { amount: Msat(501_000), channel_update };
        learned(&over(&[3, 4], 500_000), 0, message).0
    }

    #[test]
    fn terms_that_the_hop_has_signed_take_the_place_of_those_on_the_map() {
        let scid = over(&[3, 4], 1).hops[1].scid;
        for update in [update(3, scid, 7_000, 40), update(3, scid, 7_000, 40)[2..].to_vec()] {
            let lessons = told(update);
            let hints = lessons.hints(&[], NodeId::from(node(4)));
            assert_eq!(hints.len(), 1);
            assert_eq!((hints[0].policy.fee_base_msat, hints[0].short_channel_id), (7_000, scid));
            let limits = lessons.limits(&map(), NodeId::from(node(4)));
            assert_eq!(limits, Caps::from([(way_of(&over(&[3, 4], 1), 1), Msat::ZERO)]));
        }
    }

    #[test]
    fn terms_of_another_or_of_another_channel_or_that_were_kept_shut_the_channel() {
        let scid = over(&[3, 4], 1).hops[1].scid;
        let bad = [
            update(5, scid, 7_000, 40),
            update(3, ShortChannelId(scid.0 + 1), 7_000, 40),
            update(3, scid, 1_000, 40),
            Vec::new(),
            vec![1, 2, 3],
        ];
        for update in bad {
            let lessons = told(update);
            assert!(lessons.hints(&[], NodeId::from(node(4))).is_empty());
            assert_eq!(lessons.shut.len(), 1);
        }
    }

    #[test]
    fn terms_that_are_told_twice_shut_the_channel() {
        let scid = over(&[3, 4], 1).hops[1].scid;
        let (mut lessons, mut memory) = (Lessons::none(), Memory::default());
        let (map, route) = (map(), over(&[3, 4], 500_000));
        let at = Lesson { route: &route, channel_id: OWN, all: route.received(), map: &map, now_s: NOW };
        for base in [7_000, 8_000] {
            let channel_update = update(3, scid, base, 40);
            let message = FailureMessage::FeeInsufficient { amount: Msat(501_000), channel_update };
            assert!(lessons.learn(&read(0, message), &at, &mut memory));
        }
        assert!(lessons.hints(&[], NodeId::from(node(4))).is_empty());
    }
}
