//! `closing_complete` and `closing_sig`: each side pays for the close that it proposes.

use millrace_channel::side::Both;
use millrace_channel::tx::{ClosingOutputs, SimpleClose};
use millrace_channel::{Effect, Effects, Record};
use millrace_wire::{ClosingComplete, ClosingSig, ClosingSignatures};

use super::*;

pub(super) fn sent(fx: &Effects) -> Vec<Message> {
    fx.list.iter().filter_map(|effect| if let Effect::Send(m) = effect { Some((**m).clone()) } else { None }).collect()
}

/// Exactly so many closes are recorded, before any of what leaves.
pub(super) fn assert_recorded_first(fx: &Effects, leaving: &[&str], records: usize) {
    let mut seen = (0, Vec::new());
    for effect in &fx.list {
        match effect {
            Effect::Journal(range) => {
                let record = Record::decode(&fx.journal[range.clone()]).unwrap();
                assert!(seen.1.is_empty(), "{} after {:?}", record.name(), seen.1);
                seen.0 += usize::from(matches!(record, Record::MutualCloseSigned { .. }));
            }
            Effect::Send(message) => seen.1.push(message.name()),
            Effect::Broadcast(_) => seen.1.push("broadcast"),
            Effect::Fact(_) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(seen, (records, leaving.to_vec()));
}

#[test]
fn each_side_pays_for_its_own_and_both_hold_both() {
    for format in [CommitmentFormat::StaticRemotekey, CommitmentFormat::Anchors] {
        for funder in [Side::Local, Side::Remote] {
            let (mut alice, mut bob) = pair(Options { format, funder, ..Options::default() }, SIMPLE);
            close(&mut alice, &mut bob, 1000, 600);
            for node in [&alice, &bob] {
                let txs = complete(node);
                assert_eq!(txs.len(), 2);
                for (tx, of_alice, of_bob) in [
                    (txs.iter().find(|tx| paid(tx, &to_bob()) == Some(5_000_000)), fee(1000), 0),
                    (txs.iter().find(|tx| paid(tx, &to_alice()) == Some(5_000_000)), 0, fee(600)),
                ] {
                    let tx = tx.unwrap();
                    assert_eq!(paid(tx, &to_alice()), Some(5_000_000 - of_alice));
                    assert_eq!(paid(tx, &to_bob()), Some(5_000_000 - of_bob));
                }
            }
        }
    }
}

#[test]
fn a_better_order_raises_the_fee_and_a_worse_one_does_nothing() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    close(&mut alice, &mut bob, 1000, 600);
    try_close(&mut alice, to_alice(), 900).unwrap();
    exchange(&mut alice, &mut bob);
    assert_eq!(complete(&alice).len(), 2);
    try_close(&mut alice, to_alice(), 2000).unwrap();
    exchange(&mut alice, &mut bob);
    for node in [&alice, &bob] {
        assert_eq!(complete(node).len(), 3);
        assert_eq!(paid(complete(node).last().unwrap(), &to_alice()), Some(5_000_000 - fee(2000)));
    }
}

#[test]
fn a_better_order_waits_for_the_answer_to_the_one_before() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    try_close(&mut alice, to_alice(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    try_close(&mut bob, to_bob(), 600).unwrap();
    bob.commit();
    let answer = bob.outbox.pop_front().unwrap();
    alice.receive(answer).unwrap();
    alice.commit();
    assert_eq!(names(&alice), ["closing_complete"]);
    try_close(&mut alice, to_alice(), 2000).unwrap();
    alice.commit();
    assert_eq!(names(&alice), ["closing_complete"]);
    let other = try_close(&mut alice, p2wpkh(9), 3000);
    assert!(matches!(other, Err(Refusal::BadShutdownScript(_))));
    exchange(&mut alice, &mut bob);
    assert_eq!(paid(complete(&bob).last().unwrap(), &to_alice()), Some(5_000_000 - fee(2000)));
}

#[test]
fn a_later_order_may_pay_to_another_script() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    close(&mut alice, &mut bob, 1000, 600);
    let elsewhere = p2wpkh(9);
    try_close(&mut alice, elsewhere.clone(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    for node in [&alice, &bob] {
        assert_eq!(paid(complete(node).last().unwrap(), &elsewhere), Some(5_000_000 - fee(1000)));
    }
    // Bob goes on with it, also on the next connection.
    try_close(&mut bob, to_bob(), 700).unwrap();
    exchange(&mut alice, &mut bob);
    assert_eq!(paid(complete(&alice).last().unwrap(), &elsewhere), Some(5_000_000));
    alice.restart();
    bob.restart();
    reconnect(&mut alice, &mut bob, SIMPLE);
    try_close(&mut bob, to_bob(), 900).unwrap();
    exchange(&mut alice, &mut bob);
    assert_eq!(paid(complete(&alice).last().unwrap(), &elsewhere), Some(5_000_000));
}

#[test]
fn both_change_their_script_at_once_and_a_reconnect_resolves_it() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    close(&mut alice, &mut bob, 1000, 600);
    try_close(&mut alice, p2wpkh(9), 1100).unwrap();
    try_close(&mut bob, p2wpkh(8), 700).unwrap();
    alice.commit();
    bob.commit();
    let (from_alice, from_bob) = (alice.outbox.pop_front().unwrap(), bob.outbox.pop_front().unwrap());
    let result = alice.receive(from_bob);
    assert_disconnects(result, &alice);
    let result = bob.receive(from_alice);
    assert_disconnects(result, &bob);
    reconnect(&mut alice, &mut bob, SIMPLE);
    for node in [&alice, &bob] {
        let last: Vec<_> = complete(node).into_iter().filter(|tx| paid(tx, &p2wpkh(9)).is_some()).collect();
        assert_eq!(last.len(), 2);
        assert!(last.iter().all(|tx| paid(tx, &p2wpkh(8)).is_some()));
    }
}

#[test]
fn a_side_with_nothing_to_give_offers_nothing_and_gets_what_is_its() {
    // Bob's output goes to taproot: below 354 sat it is dust.
    for (push, to_bob_sat) in [(0, None), (353_999, None), (354_000, Some(354)), (499_000, Some(499))] {
        let (mut alice, mut bob) = pair(Options { push: Msat(push), ..Options::default() }, SIMPLE);
        close(&mut alice, &mut bob, 1000, 1000);
        for node in [&alice, &bob] {
            let [tx] = &complete(node)[..] else { panic!("{:?}", complete(node)) };
            assert_eq!(paid(tx, &to_bob()), to_bob_sat);
            assert_eq!(paid(tx, &to_alice()), Some((10_000_000_000 - push) / 1000 - fee(1000)));
        }
    }
}

#[test]
fn all_to_fees_by_op_return() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    try_close(&mut alice, op_return(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    try_close(&mut bob, to_bob(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    let txs = complete(&bob);
    assert!(!txs.is_empty());
    for tx in &txs {
        assert!(paid(tx, &op_return()).is_none_or(|value| value == 0));
        assert!(paid(tx, &to_bob()).unwrap() >= 5_000_000 - fee(1000));
    }
}

#[test]
fn op_return_without_simple_close_would_burn_the_money_and_is_not_signed() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    try_close(&mut alice, op_return(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    disconnect(&mut alice, &mut bob);
    bob.link(LinkEvent::Up { features: SIMPLE });
    try_close(&mut bob, to_bob(), 1000).unwrap();
    disconnect(&mut alice, &mut bob);
    for node in [&mut alice, &mut bob] {
        node.link(LinkEvent::Up { features: LEGACY });
    }
    // Bob does not hear of the script, which he would refuse.
    let reestablish = alice.outbox.pop_front().unwrap();
    bob.receive(reestablish).unwrap();
    assert_eq!(names(&bob), ["channel_reestablish", "channel_ready", "shutdown"]);
    for message in bob.outbox.drain(..).collect::<Vec<_>>() {
        alice.receive(message).unwrap();
    }
    let records = alice.journal.len();
    alice.commit();
    assert_eq!((names(&alice), alice.journal.len()), (vec!["channel_ready", "shutdown"], records));
    let message = super::legacy::closing_signed_for(&bob, [to_bob(), op_return()], 1000);
    assert_eq!(alice.receive(message).unwrap_err().reaction, Reaction::Warn);
    assert_eq!((complete(&alice).len(), alice.journal.len()), (0, records));
    // Another script goes on.
    try_close(&mut alice, to_alice(), 1000).unwrap();
    reconnect(&mut alice, &mut bob, LEGACY);
    assert_eq!(complete(&alice).len(), 1);
}

/// Both have said `shutdown`, and Alice has offered: her `closing_complete`.
fn offered() -> (Node, Node, ClosingComplete) {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    try_close(&mut alice, to_alice(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    try_close(&mut bob, to_bob(), 600).unwrap();
    bob.commit();
    let answer = bob.outbox.pop_front().unwrap();
    alice.receive(answer).unwrap();
    alice.commit();
    let Some(Message::ClosingComplete(complete)) = alice.outbox.pop_front() else { panic!("no closing_complete") };
    (alice, bob, complete)
}

/// What Alice would send at this fee.
fn closing_complete(alice: &Node, fee: u64) -> ClosingComplete {
    let (scripts, balances) = (Both { local: to_alice(), remote: to_bob() }, alice.balances());
    let close =
        SimpleClose { closer: Side::Local, balances: &balances, scripts: &scripts, fee: Sat(fee), lock_time: 7 };
    let sign = |outputs| Some(close.tx(alice.channel.terms(), outputs)?.sign(alice.channel.terms(), &alice.keys));
    ClosingComplete {
        channel_id: alice.channel.id(),
        closer_script: to_alice(),
        closee_script: to_bob(),
        fee: Sat(fee),
        locktime: 7,
        signatures: ClosingSignatures {
            closer_output_only: sign(ClosingOutputs::CloserOnly),
            closee_output_only: None,
            closer_and_closee_outputs: sign(ClosingOutputs::Both),
        },
    }
}

#[test]
fn the_closee_uses_fee_and_lock_time_as_they_come() {
    let (alice, mut bob, _) = offered();
    bob.receive(Message::ClosingComplete(closing_complete(&alice, 123_456))).unwrap();
    let [tx] = &complete(&bob)[..] else { panic!("not signed") };
    assert_eq!((paid(tx, &to_alice()), tx.lock_time.to_consensus_u32()), (Some(5_000_000 - 123_456), 7));
}

#[test]
fn closing_complete_that_bolt_2_refuses() {
    let (alice, mut bob, right) = offered();
    let records = bob.journal.len();
    let change = |change: &dyn Fn(&mut ClosingComplete)| {
        let mut message = right.clone();
        change(&mut message);
        message
    };
    let wrong = [
        change(&|m| m.fee.0 += 1),
        change(&|m| m.fee = Sat(5_000_001)),
        change(&|m| m.fee = Sat(u64::MAX)),
        change(&|m| m.locktime += 1),
        change(&|m| m.closee_script = p2wpkh(7)),
        change(&|m| m.closer_script = p2wpkh(7)),
        change(&|m| m.closer_script = p2pkh()),
        change(&|m| m.signatures = ClosingSignatures::default()),
        // Bob's output is not dust: it may not be left out.
        change(&|m| m.signatures.closer_and_closee_outputs = None),
        change(&|m| m.signatures.closer_and_closee_outputs = Some(other_signature(&alice))),
        change(&|m| m.signatures.closer_and_closee_outputs = m.signatures.closer_output_only),
        closing_complete(&bob, 1000),
    ];
    for (index, message) in wrong.into_iter().enumerate() {
        let result = bob.receive(Message::ClosingComplete(message));
        assert_disconnects(result, &bob);
        assert_eq!((bob.journal.len(), complete(&bob).len()), (records, 0), "{index}");
    }
    bob.receive(Message::ClosingComplete(right)).unwrap();
    assert_eq!(complete(&bob).len(), 1);
}

#[test]
fn closing_sig_that_bolt_2_refuses() {
    let (mut alice, mut bob, offer) = offered();
    bob.receive(Message::ClosingComplete(offer)).unwrap();
    let Some(Message::ClosingSig(right)) = bob.outbox.pop_back() else { panic!("no closing_sig") };
    let records = alice.journal.len();
    let change = |change: &dyn Fn(&mut ClosingSig)| {
        let mut message = right.clone();
        change(&mut message);
        message
    };
    let wrong = [
        change(&|m| m.fee.0 += 1),
        change(&|m| m.locktime += 1),
        change(&|m| m.closee_script = p2wpkh(7)),
        change(&|m| m.closer_script = p2wpkh(7)),
        change(&|m| m.signatures = ClosingSignatures::default()),
        change(&|m| m.signatures.closer_output_only = m.signatures.closer_and_closee_outputs),
        change(&|m| m.signatures.closee_output_only = m.signatures.closer_and_closee_outputs.take()),
        change(&|m| m.signatures.closer_output_only = m.signatures.closer_and_closee_outputs.take()),
        change(&|m| m.signatures.closer_and_closee_outputs = Some(other_signature(&bob))),
    ];
    for (index, message) in wrong.into_iter().enumerate() {
        let result = alice.receive(Message::ClosingSig(message));
        assert_disconnects(result, &alice);
        assert_eq!((alice.journal.len(), complete(&alice).len()), (records, 0), "{index}");
    }
    alice.receive(Message::ClosingSig(right.clone())).unwrap();
    assert_eq!(complete(&alice).len(), 1);
    let again = alice.receive(Message::ClosingSig(right));
    assert_disconnects(again, &alice);
}

#[test]
fn ten_thousand_closing_complete_on_one_connection() {
    let (alice, mut bob, _) = offered();
    let records = bob.journal.len();
    let signed = (0..10_000)
        .filter(|round| bob.receive(Message::ClosingComplete(closing_complete(&alice, 1000 + round))).is_ok())
        .count();
    assert_eq!((signed, bob.journal.len() - records), (32, 32));
    assert!(closes(&bob).len() <= 32 && !bob.disconnects.is_empty());
}

#[test]
fn many_closing_complete_on_many_connections() {
    let (mut alice, mut bob, _) = offered();
    for connection in 0..20 {
        reconnect(&mut alice, &mut bob, SIMPLE);
        for round in 0..10 {
            let message = closing_complete(&alice, 1000 + connection * 10 + round);
            bob.receive(Message::ClosingComplete(message)).unwrap();
        }
        bob.restart();
    }
    assert_eq!(closes(&bob).len(), 32);
    let records = bob.journal.len();
    reconnect(&mut alice, &mut bob, SIMPLE);
    let before = bob.journal.len();
    for _ in 0..5 {
        bob.receive(Message::ClosingComplete(closing_complete(&alice, 1199))).unwrap();
    }
    assert_eq!(bob.journal.len(), before, "what is known is not written down again ({records})");
}

#[test]
fn a_flood_of_cheap_closes_does_not_push_out_our_own() {
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    close(&mut alice, &mut bob, 1000, 600);
    let good = complete(&bob);
    for connection in 0..3 {
        reconnect(&mut alice, &mut bob, SIMPLE);
        for round in 0..30 {
            let message = closing_complete(&alice, connection * 30 + round);
            bob.receive(Message::ClosingComplete(message)).unwrap();
        }
        bob.restart();
    }
    let kept = complete(&bob);
    assert_eq!(kept.len(), 32);
    assert!(good.iter().all(|tx| kept.contains(tx)));
}

#[test]
fn our_signatures_leave_after_their_records() {
    let curve = millrace_channel::curve::Serial;
    let (mut alice, mut bob) = pair(Options::default(), SIMPLE);
    try_close(&mut alice, to_alice(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    try_close(&mut bob, to_bob(), 600).unwrap();
    bob.commit();
    let answer = bob.outbox.pop_front().unwrap();
    alice.receive(answer).unwrap();
    let mut fx = Effects::default();
    alice.channel.commit(alice.now, &curve, &mut fx);
    assert_recorded_first(&fx, &["closing_complete"], 2);
    let offer = sent(&fx).remove(0);
    let mut fx = Effects::default();
    bob.channel.on_message(offer, &curve, &mut fx).unwrap();
    assert_recorded_first(&fx, &["closing_sig", "broadcast"], 1);
    let answer = sent(&fx).remove(0);
    let mut fx = Effects::default();
    alice.channel.on_message(answer, &curve, &mut fx).unwrap();
    assert_recorded_first(&fx, &["broadcast"], 1);
}
