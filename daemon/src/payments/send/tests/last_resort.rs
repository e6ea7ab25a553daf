//! Ways that have refused, and are tried again where there is no other.

use std::time::Duration;

use super::network::{C, D, Ear, PEERS, failed_at, first, first_of, invoice, payer, peeled, usable, with_peer};
use super::parts::offers;
use super::*;
use crate::happened::Failure;
use crate::payments::prepare::Limits;
use crate::payments::send::tests::network::over;

/// What is written is durable.
pub(super) fn settle(payer: &mut Payer) {
    while let Some(place) = payer.orders.iter().position(|order| matches!(order, Order::Write(_))) {
        let Order::Write(entries) = payer.orders.remove(place) else { unreachable!() };
        entries.iter().for_each(|entry| payer.entry(entry));
    }
    payer.orders.retain(|order| !matches!(order, Order::Release(..)));
}

/// Some time passes.
pub(super) fn pass(payer: &mut Payer, ms: u64) {
    payer.search();
    settle(payer);
    payer.now = payer.now.plus(ms);
    payer.unix_ms += ms;
    payer.with(|sending, world, out| sending.retry(world, true, out));
    payer.search();
}

/// The attempt that follows the pause after a failure, and not before its end; none if none follows.
pub(super) fn after_pause(payer: &mut Payer, ms: u64) -> Option<(u32, ChannelId, Vec<u8>)> {
    pass(payer, ms - 1);
    assert!(payer.orders.is_empty(), "it does not wait for {ms} ms: {:?}", payer.orders);
    pass(payer, 1);
    let (id, attempt, channel_id, offer, entry) = offers(payer).pop()?;
    payer.entry(&entry);
    payer.fact(channel_id, committed(id, attempt, attempt.into()));
    let peer = PEERS.iter().find(|(id, _)| *id == channel_id).unwrap().1;
    Some((attempt, channel_id, peeled(&offer, peer).0))
}

/// There is but one way, over node 3 to node 4.
fn only_way() -> Payer {
    Payer { map: Arc::new(Map::of_channels(vec![usable(3, 4, 1_000)])), ..payer() }
}

fn within(timeout_ms: u64, bolt11: String) -> PayRequest {
    let limits = Limits { timeout: Duration::from_millis(timeout_ms), ..Limits::default() };
    PayRequest { limits, ..request(bolt11) }
}

/// Node 3 says that its channel to node 4 cannot carry it.
fn refuse(payer: &mut Payer, id: PaymentId, attempt: u32) {
    payer.fact(C, failed_at((id, attempt, attempt.into()), &[3, 4], 0, &BUSY));
}

/// A payment that has failed on the only way, and is over.
fn taught(payer: &mut Payer, n: u8, msat: u64) -> Failure {
    let (id, _, nodes, _) = first_of(payer, within(1_000, invoice(n, msat)));
    assert_eq!(nodes, [3, 4]);
    refuse(payer, id, 0);
    payer.search();
    let orders = std::mem::take(&mut payer.orders);
    let entries: Vec<Entry> = orders
        .into_iter()
        .flat_map(|order| match order {
            Order::Write(entries) => entries,
            other => panic!("{other:?}"),
        })
        .collect();
    entries.iter().for_each(|entry| payer.entry(entry));
    payer.orders.clear();
    match PaymentEntry::decode(&entries.last().unwrap().bytes).unwrap() {
        PaymentEntry::GivenUp { failure, .. } => failure,
        other => panic!("{other:?}"),
    }
}

fn is_given_up(payer: &Payer, id: PaymentId) -> bool {
    payer.sending.payments.get(&id).is_none_or(|payment| payment.is_given_up)
}

#[test]
fn a_new_payment_of_as_much_or_more_tries_the_only_way_that_has_just_refused() {
    for msat in [500_000, 900_000] {
        let mut payer = only_way();
        let failure = taught(&mut payer, 9, 500_000);
        assert_eq!((failure.code, failure.hop), (0x1007, Some(1)), "why it failed is what the hop said");
        let (id, _, nodes, mut told) = first(&mut payer, invoice(8, msat));
        assert_eq!(nodes, [3, 4]);
        payer.fact(C, fulfilled(id, 0, 0, 8));
        assert!(matches!(drain(&mut told).last(), Some(Told::Paid { .. })));
    }
}

#[test]
fn what_cannot_be_is_refused_as_before() {
    let mut payer = only_way();
    taught(&mut payer, 9, 500_000);
    let mut ask = |limits, msat| {
        let mut told = payer.pay(PayRequest { limits, ..request(invoice(8, msat)) });
        payer.search();
        assert!(payer.orders.is_empty(), "{:?}", payer.orders);
        refusal(&mut told)
    };
    // Dearer than is wanted.
    let refused = ask(Limits { fee: Some(Msat(999)), ..Limits::default() }, 500_000);
    assert!(matches!(refused, PayRefusal::NoRoute { why: NoPath::FeeLimit { .. }, .. }), "{refused:?}");
    // More than our channels have, and more than the channel behind them takes at once.
    let refused = ask(Limits { parts: 1, ..Limits::default() }, 800_000_001);
    assert!(matches!(refused, PayRefusal::NoRoute { why: NoPath::Balance { .. }, .. }), "{refused:?}");
    payer.channels = vec![with_peer(C, 3, 2_000_000_000)];
    let mut told = payer.pay(request(invoice(8, 1_000_000_001)));
    payer.search();
    assert!(matches!(refusal(&mut told), PayRefusal::NoRoute { .. }), "more than the channel holds, in parts or not");
}

/// It is not hammered: four attempts, and then the reason.
#[test]
fn one_payment_is_tried_again_after_growing_pauses_and_then_given_up_for_the_reason_of_the_last() {
    // Memory rules the way out from the first attempt on, or from the second.
    for is_known in [false, true] {
        let mut payer = only_way();
        if is_known {
            taught(&mut payer, 8, 700_000_000);
        }
        // Most of the channel, so that some seconds make it no likelier by what is known.
        let (id, ..) = first(&mut payer, invoice(9, 700_000_000));
        for (attempt, pause) in (0..).zip([1_000, 2_000, 4_000]) {
            refuse(&mut payer, id, attempt);
            let (next, _, nodes) = after_pause(&mut payer, pause).unwrap();
            assert_eq!((next, &nodes[..]), (attempt + 1, &[3, 4][..]));
        }
        refuse(&mut payer, id, 3);
        payer.search();
        let (given_up, failure) = payer.given_up();
        assert_eq!((given_up, failure.code, failure.hop), (id, 0x1007, Some(1)), "at once, not after its time");
        pass(&mut payer, 60_000);
        assert!(payer.orders.is_empty(), "{:?}", payer.orders);
    }
}

#[test]
fn a_pause_that_ends_the_refusal_is_enough() {
    let mut payer = only_way();
    let (id, _, _, mut told) = first(&mut payer, invoice(9, 500_000));
    refuse(&mut payer, id, 0);
    pass(&mut payer, 0);
    assert!(matches!(drain(&mut told)[..], [Told::Accepted { .. }, Told::Attempt(_), Told::Attempt(_)]), "it is seen");
    after_pause(&mut payer, 1_000).unwrap();
    payer.fact(C, fulfilled(id, 1, 1, 9));
    assert!(matches!(drain(&mut told).last(), Some(Told::Paid { .. })));
    pass(&mut payer, 60_000);
    assert!(payer.orders.is_empty() && payer.sending.resting.is_empty());
}

#[test]
fn no_pause_is_begun_that_ends_after_the_time_of_the_payment_or_of_its_invoice() {
    for (limit_ms, expires_in_ms, attempts) in [(1_000, 3_600_000, 1), (3_000, 3_600_000, 2), (60_000, 1_000, 1)] {
        let mut payer = only_way();
        let (id, ..) = first_of(&mut payer, within(limit_ms, invoice(9, 500_000)));
        payer.sending.payments.get_mut(&id).unwrap().expires_ms = payer.unix_ms + expires_in_ms;
        for attempt in 0..attempts - 1 {
            refuse(&mut payer, id, attempt);
            after_pause(&mut payer, 1_000).unwrap();
        }
        refuse(&mut payer, id, attempts - 1);
        payer.search();
        let (_, failure) = payer.given_up();
        assert_eq!(failure.code, 0x1007, "{limit_ms} {expires_in_ms}: {failure:?}");
    }
}

#[test]
fn a_node_that_forwards_nothing_for_now_is_asked_again_if_there_is_no_other() {
    // Also if that leaves no channel of ours to begin with, or none that is wide enough.
    let narrow = with_peer(D, 5, 400_000);
    for others in [vec![with_peer(D, 5, 800_000_000)], vec![narrow], vec![]] {
        let mut payer = only_way();
        payer.channels = [vec![with_peer(C, 3, 800_000_000)], others].concat();
        let (id, ..) = first(&mut payer, invoice(9, 500_000));
        payer.fact(C, failed_at((id, 0, 0), &[3, 4], 0, &FailureMessage::TemporaryNodeFailure));
        pass(&mut payer, 500);
        assert!(payer.orders.is_empty(), "{:?}", payer.orders);
        assert_eq!(after_pause(&mut payer, 500).unwrap().2, [3, 4]);
    }
}

#[test]
fn what_fails_for_good_ends_it_at_once() {
    for message in [FailureMessage::UnknownNextPeer, FailureMessage::PermanentNodeFailure] {
        let mut payer = only_way();
        let (id, ..) = first(&mut payer, invoice(9, 500_000));
        payer.fact(C, failed_at((id, 0, 0), &[3, 4], 0, &message));
        payer.search();
        assert_eq!(payer.given_up().1.code, message.code());
    }
}

/// Six ways, of which payments before have learned that none carries it.
#[test]
fn many_ways_that_have_refused_are_not_all_tried() {
    let mut channels = vec![usable(3, 4, 1_000), usable(5, 4, 1_000)];
    channels.extend([6, 7, 8, 9].into_iter().flat_map(|n| [usable(3, n, 500), usable(n, 4, 500)]));
    let mut payer = Payer { map: Arc::new(Map::of_channels(channels)), ..payer() };
    let last_hops: [&[u8]; 6] = [&[3, 4], &[5, 4], &[3, 6, 4], &[3, 7, 4], &[3, 8, 4], &[3, 9, 4]];
    for nodes in last_hops {
        let (map, now_s) = (Arc::clone(&payer.map), u32::try_from(payer.unix_ms / 1_000).unwrap());
        payer.sending.memory.refused(&over(nodes, 400_000), nodes.len() - 1, &map, now_s);
    }
    let in_one = Limits { parts: 1, ..Limits::default() };
    let whole = PayRequest { limits: in_one, ..request(invoice(9, 500_000)) };
    let (id, mut channel_id, mut nodes, _told) = first_of(&mut payer, whole);
    let mut tried = vec![nodes.clone()];
    for attempt in 0.. {
        payer.fact(channel_id, failed_at((id, attempt, attempt.into()), &nodes, nodes.len() - 2, &BUSY));
        if is_given_up(&payer, id) {
            break;
        }
        payer.search();
        settle(&mut payer);
        let Some((_, number, next_channel, offer, entry)) = offers(&mut payer).pop() else { break };
        payer.entry(&entry);
        payer.fact(next_channel, committed(id, number, number.into()));
        channel_id = next_channel;
        nodes = peeled(&offer, PEERS.iter().find(|(id, _)| *id == channel_id).unwrap().1).0;
        tried.push(nodes.clone());
    }
    assert_eq!(tried.len(), 4, "{tried:?}");
    tried.sort();
    tried.dedup();
    assert_eq!(tried.len(), 4, "one after the other: {tried:?}");
    pass(&mut payer, 60_000);
    assert!(is_given_up(&payer, id) && payer.orders.is_empty(), "{:?}", payer.orders);
}

// --- in parts ---

/// Two parts of 300 sat that are out over node 3 and node 5, each over the only channel there.
fn two_parts() -> (Payer, PaymentId, Ear) {
    let map = Map::of_channels(vec![usable(3, 4, 1_000), usable(5, 4, 2_000)]);
    let channels = PEERS.map(|(id, peer)| with_peer(id, peer, 400_000)).to_vec();
    let mut payer = Payer { map: Arc::new(map), channels, ..payer() };
    let told = payer.pay(request(invoice(9, 600_000)));
    payer.search();
    let (id, _, _, _, entry) = offers(&mut payer).remove(0);
    payer.entry(&entry);
    let (_, _, _, _, entry) = offers(&mut payer).remove(0);
    payer.entry(&entry);
    payer.fact(C, committed(id, 0, 0));
    payer.fact(D, committed(id, 1, 0));
    // What is out is not there twice.
    payer.channels = PEERS.map(|(id, peer)| with_peer(id, peer, 5_000)).to_vec();
    (payer, id, told)
}

#[test]
fn a_part_rests_while_the_others_stay_out() {
    let (mut payer, id, _told) = two_parts();
    payer.channels = vec![with_peer(C, 3, 5_000), with_peer(D, 5, 400_000)];
    payer.fact(D, failed_at((id, 1, 0), &[5, 4], 0, &BUSY));
    assert_eq!(after_pause(&mut payer, 1_000), Some((2, D, vec![5, 4])));
    payer.fact(C, fulfilled(id, 0, 0, 9));
    assert!(matches!(payer.happened.last(), Some(Happened::PaymentSucceeded { .. })));
}

#[test]
fn each_refusal_has_its_whole_pause() {
    let (mut payer, id, _told) = two_parts();
    payer.channels = vec![with_peer(C, 3, 5_000), with_peer(D, 5, 400_000)];
    payer.fact(D, failed_at((id, 1, 0), &[5, 4], 0, &BUSY));
    pass(&mut payer, 600);
    payer.channels = PEERS.map(|(id, peer)| with_peer(id, peer, 400_000)).to_vec();
    payer.fact(C, failed_at((id, 0, 0), &[3, 4], 0, &BUSY));
    pass(&mut payer, 999);
    assert!(offers(&mut payer).is_empty(), "the second one has refused less than a second ago");
    pass(&mut payer, 1);
    assert_eq!(offers(&mut payer).len(), 2);
}

#[test]
fn a_payment_that_rests_ends_when_its_payee_refuses_it_or_takes_it() {
    for is_taken in [false, true] {
        let (mut payer, id, _told) = two_parts();
        payer.channels = vec![with_peer(C, 3, 5_000), with_peer(D, 5, 400_000)];
        payer.fact(D, failed_at((id, 1, 0), &[5, 4], 0, &BUSY));
        pass(&mut payer, 500);
        if is_taken {
            payer.fact(C, fulfilled(id, 0, 0, 9));
            assert!(matches!(payer.happened.last(), Some(Happened::PaymentSucceeded { .. })));
        } else {
            payer.fact(C, failed_at((id, 0, 0), &[3, 4], 1, &UNKNOWN));
            let (given_up, failure) = payer.given_up();
            assert_eq!((given_up, failure.reason), (id, FailureReason::PayeeRefused));
        }
        payer.orders.clear();
        pass(&mut payer, 60_000);
        assert!(payer.orders.is_empty() && payer.sending.resting.is_empty(), "{:?}", payer.orders);
    }
}

// --- and besides ---

#[test]
fn after_a_restart_a_payment_that_rested_is_given_up() {
    let mut payer = only_way();
    let (id, ..) = first(&mut payer, invoice(9, 500_000));
    refuse(&mut payer, id, 0);
    pass(&mut payer, 500);
    let mut restarted = payer.restarted();
    let mut out = Vec::new();
    restarted.sending.sweep(&mut out);
    restarted.orders = out;
    let (given_up, failure) = restarted.given_up();
    assert_eq!((given_up, failure.code), (id, 0x1007));
}

/// Those that rest do not stand in the line, where they would hold up who waits for a slot.
#[test]
fn a_payment_that_rests_holds_up_nobody() {
    let mut payer = only_way();
    let narrow = channel(A, |_, terms| terms.parties.remote.max_accepted_htlcs = 1);
    payer.channels.push(narrow);
    let (id, ..) = first(&mut payer, invoice(9, 500_000));
    refuse(&mut payer, id, 0);
    pass(&mut payer, 0);
    let (other, ..) = under_way(&mut payer, 7);
    payer.pay(request(bolt11(8)));
    assert!(payer.orders.is_empty(), "it waits for the slot");
    payer.fact(A, failed(other, 0, 0, &UNKNOWN));
    settle(&mut payer);
    pass(&mut payer, 10);
    let (_, _, channel_id, offer, _) = payer.offer();
    assert_eq!((channel_id, offer.payment_hash), (A, hash(8)));
}

#[test]
fn an_estimate_shows_the_last_resort_and_how_unlikely_it_is() {
    let estimate = |payer: &mut Payer, n: u8| {
        let (listener, _told) = Listener::pair(7, false);
        let at = moment(payer.now, payer.unix_ms);
        let prepared = prepare(request(invoice(n, 500_000)), &payer.rules, at, |_| false, listener).unwrap();
        payer.with(|sending, world, _| sending.estimate(&prepared, world)).run().unwrap()
    };
    let mut payer = only_way();
    let found = estimate(&mut payer, 7);
    assert_eq!((found.parts.len(), found.is_last_resort, found.parts[0].chance_ppm), (1, false, 999_500));
    taught(&mut payer, 9, 500_000);
    let found = estimate(&mut payer, 7);
    assert_eq!((found.parts.len(), found.is_last_resort, found.parts[0].chance_ppm), (1, true, 1_000));
    assert_eq!(found.parts[0].route.nodes(), [node(3), node(4)]);
}
