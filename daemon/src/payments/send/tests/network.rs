//! A small network behind our channels, and payments over it.
//!
//! We are node 1. Node 3 and node 5 are peers; node 4 is behind them, and behind node 6 as well, which is behind node 3.

use millrace_routing::failure::{HoldTime, fail, pass_back, wrap};
use millrace_routing::graph::{Direction, NodeId, Policy};
use millrace_routing::map::Usable;
use millrace_routing::onion::{Incoming, PeeledHop, peel};
use millrace_wire::{CltvDelta, CltvExpiry};

use super::last_resort::after_pause;
use super::*;
use crate::payments::prepare::{Limits, Target};
use crate::payments::send::Job;
use crate::route::{Route, RouteHop};

pub(super) const C: ChannelId = ChannelId([0xc; 32]);
pub(super) const D: ChannelId = ChannelId([0xd; 32]);
/// Peers of ours, by channel.
pub(super) const PEERS: [(ChannelId, u8); 2] = [(C, 3), (D, 5)];

pub(super) fn scid(from: u8, to: u8) -> ShortChannelId {
    ShortChannelId(u64::from(from.min(to)) * 1_000 + u64::from(from.max(to)))
}

pub(super) fn policy(base: u32) -> Policy {
    Policy {
        is_disabled: false,
        cltv_expiry_delta: 40,
        htlc_minimum: Msat(1),
        htlc_maximum: Msat(900_000_000),
        fee_base_msat: base,
        fee_proportional_millionths: 0,
    }
}

pub(super) fn usable(from: u8, to: u8, base: u32) -> Usable {
    let [from_id, to_id] = [from, to].map(|n| NodeId::from(node(n)));
    Usable {
        short_channel_id: scid(from, to),
        direction: if from_id < to_id { Direction::FromLesser } else { Direction::FromGreater },
        from: from_id,
        to: to_id,
        policy: policy(base),
        capacity: Msat(1_000_000_000),
    }
}

/// Over node 3 it costs 1 sat, over node 5 it costs 2 sat, over nodes 3 and 6 it costs 3.5 sat.
pub(crate) fn map() -> Map {
    Map::of_channels(vec![usable(3, 4, 1_000), usable(5, 4, 2_000), usable(3, 6, 1_500), usable(6, 4, 2_000)])
}

/// A way over these nodes, on which everybody keeps 1 sat.
pub(crate) fn over(nodes: &[u8], amount: u64) -> Route {
    let hops = nodes.iter().enumerate().map(|(index, n)| {
        let behind = (nodes.len() - 1 - index) as u64;
        let from = index.checked_sub(1).map_or(1, |before| nodes[before]);
        RouteHop {
            node: node(*n),
            scid: scid(from, *n),
            amount: Msat(amount + behind * 1_000),
            cltv_expiry: CltvExpiry(145 + 40 * behind as u32),
        }
    });
    Route { hops: hops.collect() }
}

/// A channel with another peer, which can carry so much.
pub(super) fn with_peer(id: ChannelId, peer: u8, most: u64) -> Arc<ChannelSnapshot> {
    channel(id, |snapshot, terms| {
        snapshot.peer = node(peer);
        terms.remote_node = node(peer);
        snapshot.available_to_send = Msat(most);
    })
}

pub(super) fn payer() -> Payer {
    let channels = PEERS.map(|(id, peer)| with_peer(id, peer, 800_000_000));
    Payer { map: Arc::new(map()), ..Payer::new(channels.to_vec()) }
}

/// An invoice of node 4, which takes parts.
pub(super) fn invoice(n: u8, msat: u64) -> String {
    NewInvoice { amount: Some(Msat(msat)), basic_mpp: true, ..new_invoice(n) }.sign(&key(4)).unwrap()
}

/// The nodes of an offer's way, in order of travel, as its onion tells them; and what the last one is told to get.
pub(super) fn peeled(offer: &Offer, peer: u8) -> (Vec<u8>, Msat, Msat) {
    let (mut at, mut nodes) = (peer, Vec::new());
    let (mut packet, mut amount, mut expiry) = (offer.onion.clone(), offer.amount, offer.cltv_expiry);
    loop {
        nodes.push(at);
        let incoming = Incoming {
            packet: &packet,
            payment_hash: &offer.payment_hash,
            amount,
            cltv_expiry: expiry,
            height: BlockHeight(100),
            path_key: None,
        };
        match peel(&key(at), &incoming).unwrap().hop {
            PeeledHop::Final(last) => return (nodes, last.amount_to_forward, last.total_msat),
            PeeledHop::Forward(forward) => {
                at = (2..10).find(|n| scid(at, *n) == forward.next && *n != at).unwrap();
                (packet, amount, expiry) = (forward.packet, forward.amount, forward.expiry);
            }
        }
    }
}

/// A failure of the hop with this index on the way of an attempt.
pub(super) fn failed_at(
    (id, attempt, htlc): (PaymentId, u32, u64),
    nodes: &[u8],
    hop: usize,
    message: &FailureMessage,
) -> Fact {
    let nodes: Vec<PublicKey> = nodes.iter().map(|n| node(*n)).collect();
    let secrets = secrets_of(&key(1), &nodes, id, attempt);
    let reason =
        secrets[..hop].iter().rev().fold(encrypt(&secrets[hop], message), |reason, secret| wrap(secret, reason));
    let removal = Removal::Fail { reason, attribution: None };
    Fact::OfferResolved { id: HtlcId(htlc), origin: origin(id, attempt), removal }
}

/// Accepted and out there, over these nodes.
pub(super) fn first(payer: &mut Payer, bolt11: String) -> (PaymentId, ChannelId, Vec<u8>, Ear) {
    first_of(payer, request(bolt11))
}

pub(super) type Ear = UnboundedReceiver<(u64, Told)>;

pub(super) fn first_of(payer: &mut Payer, request: PayRequest) -> (PaymentId, ChannelId, Vec<u8>, Ear) {
    let told = payer.pay(request);
    payer.search();
    let (id, attempt, channel_id, offer, entry) = payer.offer();
    let peer = PEERS.iter().find(|(id, _)| *id == channel_id).unwrap().1;
    let (nodes, ..) = peeled(&offer, peer);
    payer.entry(&entry);
    payer.fact(channel_id, committed(id, attempt, 0));
    (id, channel_id, nodes, told)
}

/// What follows a failure: the offer over other nodes, and why the one before has ended.
fn next(payer: &mut Payer) -> (u32, ChannelId, Vec<u8>, Box<Offer>) {
    payer.search();
    let place = payer.orders.iter().position(|order| matches!(order, Order::Write(_))).unwrap();
    let Order::Write(ended) = payer.orders.remove(place) else { unreachable!() };
    let (id, attempt, channel_id, offer, entry) = payer.offer();
    ended.iter().for_each(|entry| payer.entry(entry));
    assert!(matches!(payer.orders[..], [Order::Release(..)]), "{:?}", payer.orders);
    payer.orders.clear();
    payer.entry(&entry);
    payer.fact(channel_id, committed(id, attempt, attempt.into()));
    let peer = PEERS.iter().find(|(id, _)| *id == channel_id).unwrap().1;
    (attempt, channel_id, peeled(&offer, peer).0, offer)
}

#[test]
fn the_cheapest_way_is_taken_and_its_fee_told() {
    let mut payer = payer();
    let mut told = payer.pay(keyed_to(4, 9, 500_000));
    payer.search();
    let (id, attempt, channel_id, offer, entry) = payer.offer();
    assert_eq!((attempt, channel_id, offer.amount), (0, C, Msat(501_000)));
    assert_eq!(offer.cltv_expiry, CltvExpiry(100 + 45 + 40));
    assert_eq!(peeled(&offer, 3), (vec![3, 4], Msat(500_000), Msat(500_000)));
    assert!(matches!(PaymentEntry::decode(&entry.bytes).unwrap(), PaymentEntry::AcceptedOver(_)));
    payer.entry(&entry);
    payer.fact(C, committed(id, 0, 0));
    payer.fact(C, fulfilled(id, 0, 0, 9));
    let told = drain(&mut told);
    let Some(Told::Paid { fee, row: Some(row), .. }) = told.last() else { panic!("{told:?}") };
    assert_eq!((*fee, row.attempts[0].fee(), row.sent()), (Msat(1_000), Msat(1_000), vec![(C, Msat(501_000))]));
    let Some(Happened::PaymentSucceeded { amount, fee, .. }) = payer.happened.last() else { panic!() };
    assert_eq!((*amount, *fee), (Msat(500_000), Msat(1_000)));
}

fn keyed_to(payee: u8, n: u8, msat: u64) -> PayRequest {
    let bolt11 = NewInvoice { amount: Some(Msat(msat)), ..new_invoice(n) }.sign(&key(payee)).unwrap();
    let request_hash = RequestHash::of("pay", bolt11.as_bytes());
    let key = PayKey { text: "k".to_owned(), hash: KeyHash::of("k").unwrap(), request: request_hash };
    PayRequest { key: Some(key), ..request(bolt11) }
}

#[test]
fn a_peer_is_paid_without_a_search() {
    let mut payer = payer();
    payer.channels.push(usual(A));
    payer.pay(request(bolt11(9)));
    let (_, _, channel_id, offer, _) = payer.offer();
    assert_eq!((channel_id, offer.amount), (A, Msat(21_000)));
}

#[test]
fn a_channel_that_refuses_an_amount_is_gone_around_and_remembered_for_other_payments() {
    let mut payer = payer();
    let (id, channel_id, nodes, _) = first(&mut payer, invoice(9, 500_000));
    assert_eq!((channel_id, &nodes[..]), (C, &[3, 4][..]));
    payer.fact(C, failed_at((id, 0, 0), &nodes, 0, &BUSY));
    let (attempt, channel_id, nodes, offer) = next(&mut payer);
    assert_eq!((attempt, channel_id, &nodes[..], offer.amount), (1, D, &[5, 4][..], Msat(502_000)));
    let row = &payer.sending.payments[&id].row;
    let PaymentStatus::Failed(failure) = &row.attempts[0].status else { panic!("{row:?}") };
    assert_eq!((failure.reason, failure.hop), (FailureReason::Temporary, Some(1)));
    assert!(failure.message.contains("hop 1 of 2") && failure.message.contains("temporary_channel_failure"));
    assert_eq!(payer.sending.memory.liquidity().len(), 1);
    payer.fact(D, fulfilled(id, 1, 1, 9));
    payer.orders.clear();
    let (_, _, nodes, _) = first(&mut payer, invoice(8, 500_000));
    assert_eq!(nodes, [5, 4], "another payment knows it, too");
    assert!(payer.sending.memory.in_flight().len() == 1, "and only its own is in flight");
}

#[test]
fn a_node_that_fails_is_gone_around_by_this_payment_alone() {
    let mut payer = payer();
    let (id, _, nodes, _) = first(&mut payer, invoice(9, 500_000));
    payer.fact(C, failed_at((id, 0, 0), &nodes, 0, &FailureMessage::TemporaryNodeFailure));
    let (_, channel_id, nodes, _) = next(&mut payer);
    assert_eq!((channel_id, &nodes[..]), (D, &[5, 4][..]), "node 3 is left out, with all of its channels");
    payer.fact(D, failed_at((id, 1, 1), &nodes, 0, &FailureMessage::PermanentNodeFailure));
    // There is no other way than node 3: after a pause it is asked again, which node 5 is not.
    let (_, _, nodes) = after_pause(&mut payer, 1_000).unwrap();
    assert_eq!(nodes, [3, 4]);
    payer.fact(C, failed_at((id, 2, 2), &nodes, 0, &FailureMessage::PermanentNodeFailure));
    payer.search();
    let (_, failure) = payer.given_up();
    assert_eq!((failure.reason, failure.hop), (FailureReason::Permanent, Some(1)));
    let (_, _, nodes, _) = first(&mut payer, invoice(8, 500_000));
    assert_eq!(nodes, [3, 4]);
}

#[test]
fn every_failure_of_a_hop_on_the_way_leads_to_another_way_and_none_of_them_ends_the_payment() {
    let expiry = CltvExpiry(5);
    let sha256_of_onion = [7; 32];
    let update = Vec::new;
    let messages = [
        FailureMessage::TemporaryNodeFailure,
        FailureMessage::PermanentNodeFailure,
        FailureMessage::RequiredNodeFeatureMissing,
        FailureMessage::InvalidOnionVersion { sha256_of_onion },
        FailureMessage::InvalidOnionHmac { sha256_of_onion },
        FailureMessage::InvalidOnionKey { sha256_of_onion },
        BUSY,
        FailureMessage::PermanentChannelFailure,
        FailureMessage::RequiredChannelFeatureMissing,
        FailureMessage::UnknownNextPeer,
        FailureMessage::AmountBelowMinimum { amount: Msat(1), channel_update: update() },
        FailureMessage::FeeInsufficient { amount: Msat(1), channel_update: update() },
        FailureMessage::IncorrectCltvExpiry { expiry, channel_update: update() },
        FailureMessage::ExpiryTooSoon { channel_update: update() },
        UNKNOWN,
        FailureMessage::FinalIncorrectCltvExpiry { expiry },
        FailureMessage::FinalIncorrectHtlcAmount { incoming: Msat(1) },
        FailureMessage::ChannelDisabled { flags: 0, channel_update: update() },
        FailureMessage::ExpiryTooFar,
        FailureMessage::InvalidOnionPayload { kind: 2, offset: 1 },
        FailureMessage::MppTimeout,
        FailureMessage::InvalidOnionBlinding { sha256_of_onion },
        FailureMessage::Unknown { code: 0x4abc, data: vec![1] },
    ];
    for message in messages {
        let mut payer = payer();
        let (id, _, nodes, _) = first(&mut payer, invoice(9, 500_000));
        payer.fact(C, failed_at((id, 0, 0), &nodes, 0, &message));
        let (_, _, other, _) = next(&mut payer);
        assert_ne!(nodes, other, "{message:?}");
        let row = &payer.sending.payments[&id].row.attempts[0];
        let PaymentStatus::Failed(failure) = &row.status else { panic!("{row:?}") };
        assert_eq!((failure.code, failure.hop), (message.code(), Some(1)), "{message:?}");
        assert_ne!(failure.reason, FailureReason::PayeeRefused, "{message:?}");
    }
}

#[test]
fn the_payees_refusal_ends_it_whatever_other_ways_there_are() {
    for (message, ends) in [
        (UNKNOWN, true),
        (FailureMessage::InvalidOnionPayload { kind: 2, offset: 1 }, true),
        (FailureMessage::TemporaryNodeFailure, false),
        (FailureMessage::FinalIncorrectHtlcAmount { incoming: Msat(1) }, false),
        (FailureMessage::MppTimeout, false),
    ] {
        let mut payer = payer();
        let (id, _, nodes, _) = first(&mut payer, invoice(9, 500_000));
        payer.fact(C, failed_at((id, 0, 0), &nodes, 1, &message));
        payer.search();
        let is_over = !payer.orders.iter().any(|order| matches!(order, Order::Offer { .. }));
        assert_eq!(is_over, ends, "{message:?}");
    }
}

#[test]
fn an_answer_that_nobody_vouches_for_leads_around_the_whole_way() {
    let mut payer = payer();
    let (id, ..) = first(&mut payer, invoice(9, 500_000));
    let removal = Removal::Fail { reason: vec![9; 292], attribution: None };
    payer.fact(C, Fact::OfferResolved { id: HtlcId(0), origin: origin(id, 0), removal });
    assert_eq!(next(&mut payer).2, [5, 4]);
}

#[test]
fn hold_times_are_shown_if_the_hops_tell_them() {
    let mut payer = payer();
    let (id, _, nodes, _) = first(&mut payer, invoice(9, 500_000));
    let keys: Vec<PublicKey> = nodes.iter().map(|n| node(*n)).collect();
    let secrets = secrets_of(&key(1), &keys, id, 0);
    let failed = fail(&secrets[1], &FailureMessage::TemporaryNodeFailure, HoldTime(3));
    let back = pass_back(&secrets[0], failed.reason, Some(&failed.attribution), HoldTime(5));
    let removal = Removal::Fail { reason: back.reason, attribution: Some(back.attribution) };
    payer.fact(C, Fact::OfferResolved { id: HtlcId(0), origin: origin(id, 0), removal });
    next(&mut payer);
    assert_eq!(payer.sending.payments[&id].row.attempts[0].held_ms, [500, 300]);
}

#[test]
fn limits_of_fee_and_time_are_kept() {
    let refused = |limits: Limits, bolt11: String| {
        let mut payer = payer();
        let mut told = payer.pay(PayRequest { limits, ..request(bolt11) });
        payer.search();
        payer.orders.is_empty().then(|| refusal(&mut told))
    };
    let limits = |fee: u64| Limits { fee: Some(Msat(fee)), ..Limits::default() };
    assert_eq!(refused(limits(1_000), invoice(9, 500_000)), None);
    let Some(PayRefusal::NoRoute { why, .. }) = refused(limits(999), invoice(9, 500_000)) else { panic!() };
    assert_eq!(why, millrace_routing::path::NoPath::FeeLimit { fee_limit: Msat(999) });
    let near = |blocks| Limits { blocks: Some(blocks), ..Limits::default() };
    assert_eq!(refused(near(85), invoice(9, 500_000)), None);
    let Some(PayRefusal::NoRoute { why, .. }) = refused(near(84), invoice(9, 500_000)) else { panic!() };
    assert_eq!(why, millrace_routing::path::NoPath::DeltaLimit { delta_limit: 84, needed: 85 });
    let to_nobody = NewInvoice { amount: Some(Msat(500_000)), ..new_invoice(9) }.sign(&key(7)).unwrap();
    assert!(
        matches!(refused(Limits::default(), to_nobody), Some(PayRefusal::NoRoute { payee, .. }) if payee == node(7))
    );
}

#[test]
fn the_hints_of_an_invoice_lead_to_a_payee_whom_nobody_knows() {
    let hint = millrace_routing::invoice::HintHop {
        node_id: node(4),
        short_channel_id: scid(4, 7),
        fee_base: Msat(300),
        fee_proportional_millionths: 0,
        cltv_expiry_delta: CltvDelta(20),
    };
    let mut payer = payer();
    let new = NewInvoice { amount: Some(Msat(500_000)), route_hints: vec![vec![hint]], ..new_invoice(9) };
    let (id, _, nodes, _) = first(&mut payer, new.sign(&key(7)).unwrap());
    assert_eq!(nodes, [3, 4, 7]);
    payer.fact(C, failed_at((id, 0, 0), &nodes, 1, &BUSY));
    // It is the only way.
    assert_eq!(after_pause(&mut payer, 1_000).unwrap().2, [3, 4, 7]);
    payer.fact(C, failed_at((id, 1, 1), &nodes, 1, &FailureMessage::UnknownNextPeer));
    payer.search();
    let (_, failure) = payer.given_up();
    assert_eq!((failure.reason, failure.hop), (FailureReason::Permanent, Some(2)));
}

#[test]
fn a_node_is_paid_that_has_not_asked() {
    let mut payer = payer();
    let to_node = PayRequest { target: Target::Node(node(4)), amount: Some(Msat(70_000)), ..request(String::new()) };
    let mut told = payer.pay(to_node);
    payer.search();
    let (id, _, channel_id, offer, entry) = payer.offer();
    assert_eq!(peeled(&offer, 3).0, [3, 4]);
    payer.entry(&entry);
    let goal = Arc::clone(&payer.sending.payments[&id].plan.as_ref().unwrap().goal);
    payer.fact(channel_id, committed(id, 0, 0));
    let preimage = goal.keysend_preimage.clone().unwrap();
    payer.fact(channel_id, Fact::OfferFulfilled { id: HtlcId(0), origin: origin(id, 0), preimage });
    assert!(matches!(drain(&mut told).last(), Some(Told::Paid { .. })));
}

#[test]
fn a_node_that_demands_what_is_unknown_is_paid_by_its_invoice_alone() {
    let demanding = |n: u8| Arc::new(Map::of(vec![usable(3, 4, 1_000)], vec![node(n).into()]));
    // Node 3 is a peer, and node 4 behind it.
    for n in [3, 4] {
        let mut payer = Payer { map: demanding(n), ..payer() };
        let to_node =
            PayRequest { target: Target::Node(node(n)), amount: Some(Msat(70_000)), ..request(String::new()) };
        let mut told = payer.pay(to_node);
        assert!(payer.orders.is_empty());
        let refused = refusal(&mut told);
        assert_eq!(refused, PayRefusal::PayeeDemands { payee: node(n) });
        assert!(refused.to_string().contains("demands features"));
        let invoice = NewInvoice { amount: Some(Msat(70_000)), ..new_invoice(9) }.sign(&key(n)).unwrap();
        let _told = payer.pay(request(invoice));
        payer.search();
        let (_, _, _, offer, _) = payer.offer();
        assert_eq!(peeled(&offer, 3).0.last(), Some(&n));
    }
    // It becomes known between two attempts.
    let mut payer = payer();
    let to_node = PayRequest { target: Target::Node(node(4)), amount: Some(Msat(70_000)), ..request(String::new()) };
    let mut told = payer.pay(to_node);
    let Some(Order::Search(job)) = payer.orders.pop() else { panic!() };
    assert!(matches!(Job { map: demanding(4), ..*job }.run(), Err(PayRefusal::PayeeDemands { .. })));
    assert!(drain(&mut told).is_empty());
}

#[test]
fn after_a_restart_a_failure_on_the_way_is_read_and_shown() {
    let mut payer = payer();
    let (id, _, nodes, _) = first(&mut payer, invoice(9, 500_000));
    let mut restarted = payer.restarted();
    restarted.fact(C, failed_at((id, 0, 0), &nodes, 0, &BUSY));
    let (given_up, failure) = restarted.given_up();
    assert_eq!((given_up, failure.code, failure.hop), (id, 0x1007, Some(1)));
    assert!(restarted.orders.is_empty(), "nobody is there any more to try it again for");
}

/// A channel shows what has come back to it a moment later: until then, nothing is given up for want of it.
#[test]
fn a_balance_that_has_just_come_back_is_waited_for() {
    let with = |msat: u64| vec![with_peer(C, 3, msat)];
    let is_given_up = |payer: &Payer| {
        let entries = payer.orders.iter().flat_map(|order| match order {
            Order::Write(entries) => entries.clone(),
            _ => Vec::new(),
        });
        let mut decided = entries.map(|entry| PaymentEntry::decode(&entry.bytes).unwrap());
        decided.any(|entry| matches!(entry, PaymentEntry::GivenUp { .. }))
    };
    for comes_back in [true, false] {
        let mut payer = Payer { channels: with(700_000_000), ..payer() };
        let (id, channel_id, nodes, _told) = first(&mut payer, invoice(9, 500_000_000));
        assert_eq!((channel_id, &nodes[..]), (C, &[3, 4][..]));
        payer.channels = with(199_000_000);
        let busy = FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() };
        payer.fact(C, failed_at((id, 0, 0), &nodes, 0, &busy));
        payer.search();
        assert!(!is_given_up(&payer), "{:?}", payer.orders);
        payer.orders.clear();
        if comes_back {
            payer.channels = with(700_000_000);
        }
        payer.now = payer.now.plus(100);
        payer.with(|sending, world, out| sending.retry(world, true, out));
        payer.search();
        let offers = payer.orders.iter().filter(|order| matches!(order, Order::Offer { .. })).count();
        assert_eq!((offers > 0, is_given_up(&payer)), (comes_back, !comes_back), "{:?}", payer.orders);
    }
}

/// Parts would fail as the whole did, hundreds of them.
#[test]
fn a_payee_that_takes_nothing_for_now_is_offered_no_parts() {
    let mut payer = Payer { channels: vec![with_peer(C, 4, 800_000_000)], ..payer() };
    let (id, _, nodes, _told) = {
        let told = payer.pay(request(invoice(9, 500_000)));
        let (id, attempt, channel_id, offer, entry) = payer.offer();
        payer.entry(&entry);
        payer.fact(channel_id, committed(id, attempt, 0));
        (id, channel_id, peeled(&offer, 4).0, told)
    };
    payer.fact(C, failed_at((id, 0, 0), &nodes, 0, &FailureMessage::TemporaryNodeFailure));
    payer.search();
    let (given_up, failure) = payer.given_up();
    assert_eq!((given_up, failure.reason), (id, FailureReason::Temporary));
}
