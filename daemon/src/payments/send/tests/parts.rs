//! Payments in several parts.

use super::network::{C, D, PEERS, failed_at, invoice, payer, peeled, with_peer};
use super::*;
use crate::payments::prepare::Limits;

/// Two channels of which neither carries 600 sat alone.
fn narrow() -> Payer {
    Payer { channels: PEERS.map(|(id, peer)| with_peer(id, peer, 400_000)).to_vec(), ..payer() }
}

pub(super) fn offers(payer: &mut Payer) -> Vec<(PaymentId, u32, ChannelId, Box<Offer>, Entry)> {
    let (offers, rest) = std::mem::take(&mut payer.orders).into_iter().partition(|o| matches!(o, Order::Offer { .. }));
    payer.orders = rest;
    let offers: Vec<Order> = offers;
    let taken = offers.into_iter().map(|order| match order {
        Order::Offer { id, attempt, channel_id, offer, entry } => (id, attempt, channel_id, offer, entry),
        other => panic!("{other:?}"),
    });
    taken.collect()
}

/// Two parts of 300 sat that are out: over node 3 and over node 5.
fn two_out(payer: &mut Payer) -> (PaymentId, UnboundedReceiver<(u64, Told)>) {
    let told = payer.pay(request(invoice(9, 600_000)));
    payer.search();
    let mut first = offers(payer);
    assert_eq!(first.len(), 1, "the others wait until the payment is durable");
    let (id, attempt, channel_id, offer, entry) = first.remove(0);
    assert_eq!((attempt, channel_id), (0, C));
    assert_eq!(peeled(&offer, 3), (vec![3, 4], Msat(300_000), Msat(600_000)));
    payer.entry(&entry);
    let mut second = offers(payer);
    let (_, attempt, channel_id, offer, entry) = second.remove(0);
    assert!(second.is_empty());
    assert_eq!((attempt, channel_id), (1, D));
    assert_eq!(peeled(&offer, 5), (vec![5, 4], Msat(300_000), Msat(600_000)));
    payer.entry(&entry);
    payer.fact(C, committed(id, 0, 0));
    payer.fact(D, committed(id, 1, 0));
    (id, told)
}

#[test]
fn what_no_channel_carries_alone_goes_in_parts_and_the_first_preimage_is_its_success() {
    let mut payer = narrow();
    let (id, mut told) = two_out(&mut payer);
    payer.fact(D, fulfilled(id, 1, 0, 9));
    let told = drain(&mut told);
    let Some(Told::Paid { fee, row: Some(row), .. }) = told.last() else { panic!("{told:?}") };
    assert_eq!((*fee, row.sent()), (Msat(3_000), vec![(C, Msat(301_000)), (D, Msat(302_000))]));
    assert_eq!(payer.sending.len(), 0);
    assert!(payer.sending.memory.in_flight().is_empty());
    // The other part's outcome is released as it comes, and is no second success.
    for (channel_id, attempt) in [(D, 1), (C, 0)] {
        let removal = Removal::Fulfill { preimage: Preimage::new([9; 32]), attribution: None };
        payer.fact(channel_id, fulfilled(id, attempt, 0, 9));
        payer.fact(channel_id, Fact::OfferResolved { id: HtlcId(0), origin: origin(id, attempt), removal });
    }
    assert!(matches!(payer.orders[..], [Order::Release(D, HtlcId(0)), Order::Release(C, HtlcId(0))]));
    let successes = payer.happened.iter().filter(|what| matches!(what, Happened::PaymentSucceeded { .. }));
    assert_eq!(successes.count(), 1);
}

#[test]
fn a_payee_that_takes_no_parts_gets_none() {
    let mut payer = narrow();
    let bolt11 = NewInvoice { amount: Some(Msat(600_000)), ..new_invoice(9) }.sign(&key(4)).unwrap();
    let mut told = payer.pay(request(bolt11));
    payer.search();
    assert!(payer.orders.is_empty());
    assert!(matches!(refusal(&mut told), PayRefusal::NoRoute { .. }));
    let limits = Limits { parts: 1, ..Limits::default() };
    let mut told = payer.pay(PayRequest { limits, ..request(invoice(9, 600_000)) });
    payer.search();
    assert!(matches!(refusal(&mut told), PayRefusal::NoRoute { .. }), "nor does a payer that wants none");
}

#[test]
fn a_part_that_fails_is_tried_again_while_the_others_stay_out() {
    let mut payer = narrow();
    let (id, _told) = two_out(&mut payer);
    payer.channels = vec![with_peer(C, 3, 90_000), with_peer(D, 5, 800_000), with_peer(B, 3, 900_000)];
    payer.fact(D, failed_at((id, 1, 0), &[5, 4], 0, &BUSY));
    payer.search();
    let mut again = offers(&mut payer);
    let (_, attempt, channel_id, offer, entry) = again.remove(0);
    assert_eq!((attempt, channel_id), (2, B));
    assert_eq!(peeled(&offer, 3), (vec![3, 4], Msat(300_000), Msat(600_000)));
    for entry in payer.write() {
        payer.entry(&entry);
    }
    payer.entry(&entry);
    payer.fact(B, committed(id, 2, 0));
    payer.fact(C, fulfilled(id, 0, 0, 9));
    let Some(Happened::PaymentSucceeded { fee, .. }) = payer.happened.last() else { panic!() };
    assert_eq!(*fee, Msat(2_000), "the part that failed costs nothing");
}

#[test]
fn it_fails_only_when_no_part_is_out_any_more() {
    let mut payer = narrow();
    let (id, mut told) = two_out(&mut payer);
    drain(&mut told);
    payer.fact(D, failed_at((id, 1, 0), &[5, 4], 1, &UNKNOWN));
    let ended = payer.write();
    assert!(matches!(PaymentEntry::decode(&ended[0].bytes).unwrap(), PaymentEntry::Ended { attempt: 1, .. }));
    payer.entry(&ended[0]);
    assert!(matches!(payer.orders[..], [Order::Release(D, _)]));
    payer.orders.clear();
    assert!(!drain(&mut told).iter().any(|told| matches!(told, Told::Failed { .. })), "a part is out");
    payer.fact(C, failed_at((id, 0, 0), &[3, 4], 1, &FailureMessage::MppTimeout));
    let last = payer.write();
    assert_eq!(last.len(), 2, "why this part has ended, and why the payment has: {last:?}");
    last.iter().for_each(|entry| payer.entry(entry));
    let told = drain(&mut told);
    let Some(Told::Failed { failure, row: Some(row) }) = told.last() else { panic!("{told:?}") };
    assert_eq!((failure.reason, failure.code), (FailureReason::PayeeRefused, 0x400f));
    let PaymentStatus::Failed(of_part) = &row.attempts[0].status else { panic!("{row:?}") };
    assert_eq!(of_part.code, 23);
    assert!(matches!(payer.orders[..], [Order::Release(C, _)]));
}

#[test]
fn a_payee_may_still_give_the_preimage_after_a_part_has_failed_for_good() {
    let mut payer = narrow();
    let (id, _told) = two_out(&mut payer);
    payer.fact(D, failed_at((id, 1, 0), &[5, 4], 1, &UNKNOWN));
    payer.orders.clear();
    payer.fact(C, fulfilled(id, 0, 0, 9));
    assert!(matches!(payer.happened.last(), Some(Happened::PaymentSucceeded { .. })));
    assert!(matches!(payer.orders[..], [Order::Release(D, _)]), "what was owed is released: {:?}", payer.orders);
}

#[test]
fn the_fee_limit_holds_for_all_parts_together() {
    let limits = |fee| Limits { fee: Some(Msat(fee)), ..Limits::default() };
    let mut payer = narrow();
    let mut told = payer.pay(PayRequest { limits: limits(2_999), ..request(invoice(9, 600_000)) });
    payer.search();
    assert!(matches!(refusal(&mut told), PayRefusal::NoRoute { .. }));
    let mut payer = narrow();
    payer.pay(PayRequest { limits: limits(4_000), ..request(invoice(8, 600_000)) });
    payer.search();
    assert_eq!(offers(&mut payer).len(), 1);
}

#[test]
fn a_first_part_that_is_refused_takes_the_others_with_it_and_leaves_nothing_behind() {
    let mut payer = narrow();
    let mut told = payer.pay(request(invoice(9, 600_000)));
    payer.search();
    let (id, ..) = offers(&mut payer).remove(0);
    payer.refuse(id, 0, Refusal::InsufficientBalance { amount: Msat(301_000), available: Msat(5) });
    payer.search();
    assert!(offers(&mut payer).is_empty());
    assert!(matches!(refusal(&mut told), PayRefusal::InsufficientBalance { .. }));
    assert_eq!(payer.sending.len(), 0);
    assert!(payer.sending.memory.in_flight().is_empty());
}

#[test]
fn parts_go_over_two_channels_with_the_payee_itself() {
    let mut payer = Payer::new(vec![with_peer(A, 4, 400_000), with_peer(B, 4, 400_000)]);
    payer.pay(request(invoice(9, 600_000)));
    let (id, _, asked, _, _) = payer.offer();
    payer.refuse(id, 0, Refusal::InsufficientBalance { amount: Msat(600_000), available: Msat(400_000) });
    let (_, _, other, _, _) = payer.offer();
    assert_ne!(asked, other);
    payer.refuse(id, 0, Refusal::InsufficientBalance { amount: Msat(600_000), available: Msat(400_000) });
    payer.search();
    let (_, _, first, offer, entry) = offers(&mut payer).remove(0);
    assert_eq!(peeled(&offer, 4), (vec![4], Msat(300_000), Msat(600_000)));
    payer.entry(&entry);
    let (_, _, second, offer, _) = offers(&mut payer).remove(0);
    assert_eq!(peeled(&offer, 4), (vec![4], Msat(300_000), Msat(600_000)));
    assert_ne!(first, second);
}

#[test]
fn after_a_restart_the_parts_that_are_out_decide() {
    for paid in [true, false] {
        let mut payer = narrow();
        let (id, _told) = two_out(&mut payer);
        let mut restarted = payer.restarted();
        let mut out = Vec::new();
        restarted.sending.sweep(&mut out);
        assert!(out.is_empty());
        restarted.pay(request(invoice(9, 600_000)));
        assert!(restarted.orders.is_empty(), "no second payment of the invoice");
        restarted.fact(D, failed_at((id, 1, 0), &[5, 4], 0, &BUSY));
        let ended = restarted.write();
        ended.iter().for_each(|entry| restarted.entry(entry));
        restarted.orders.clear();
        if paid {
            restarted.fact(C, fulfilled(id, 0, 0, 9));
            let Some(Happened::PaymentSucceeded { fee, .. }) = restarted.happened.last() else { panic!() };
            assert_eq!(*fee, Msat(1_000));
        } else {
            restarted.fact(C, failed_at((id, 0, 0), &[3, 4], 1, &FailureMessage::MppTimeout));
            let (_, failure) = restarted.given_up();
            assert_eq!(failure.code, 0x1007, "the first reason is told: it is why the others had to fail");
        }
    }
}

/// A payee that sends everything back at once, as if the other parts had been late: three times are enough.
#[test]
fn parts_that_the_payee_does_not_put_together_are_sent_three_times() {
    let mut payer = narrow();
    let (id, mut told) = two_out(&mut payer);
    let mut out = std::collections::VecDeque::from([(0, C, 0), (1, D, 0)]);
    let mut attempts = 2;
    while let Some((attempt, channel_id, htlc)) = out.pop_front() {
        let peer = PEERS.iter().find(|(id, _)| *id == channel_id).unwrap().1;
        payer.fact(channel_id, failed_at((id, attempt, htlc), &[peer, 4], 1, &FailureMessage::MppTimeout));
        payer.search();
        for (_, attempt, channel_id, offer, entry) in offers(&mut payer) {
            let peer = PEERS.iter().find(|(id, _)| *id == channel_id).unwrap().1;
            assert_eq!(peeled(&offer, peer), (vec![peer, 4], Msat(300_000), Msat(600_000)));
            payer.entry(&entry);
            payer.fact(channel_id, committed(id, attempt, attempt.into()));
            out.push_back((attempt, channel_id, attempt.into()));
            attempts += 1;
        }
        super::last_resort::settle(&mut payer);
    }
    assert_eq!(attempts, 7, "three times two, and the one that was under way when the last of them came back");
    let told = drain(&mut told);
    let Some(Told::Failed { failure, row: Some(row) }) = told.last() else { panic!("{told:?}") };
    assert_eq!((failure.reason, failure.code), (FailureReason::PayeeRefused, 23));
    assert!(failure.message.contains("did not accept the parts in time"), "{}", failure.message);
    assert!(row.attempts.iter().all(|attempt| matches!(&attempt.status, PaymentStatus::Failed(why) if why.code == 23)));
}
