//! `closing_signed`: one fee for both, paid by the funder.

use millrace_channel::side::Both;
use millrace_channel::tx::ClosingTx;
use millrace_wire::{ClosingSigned, FeeRange};

use super::*;

/// Both have closed: the transaction, the same for both.
fn agreed(alice: &Node, bob: &Node) -> Transaction {
    let (of_alice, of_bob) = (complete(alice), complete(bob));
    assert_eq!(of_alice, of_bob);
    let [tx] = &of_alice[..] else { panic!("{of_alice:?}") };
    tx.clone()
}

#[test]
fn every_format_and_funder() {
    for format in [CommitmentFormat::StaticRemotekey, CommitmentFormat::Anchors] {
        for funder in [Side::Local, Side::Remote] {
            let (mut alice, mut bob) = pair(Options { format, funder, ..Options::default() }, LEGACY);
            close(&mut alice, &mut bob, 1000, 1000);
            let tx = agreed(&alice, &bob);
            let (of_alice, of_bob) = if funder == Side::Local { (fee(1000), 0) } else { (0, fee(1000)) };
            assert_eq!(paid(&tx, &to_alice()), Some(5_000_000 - of_alice));
            assert_eq!(paid(&tx, &to_bob()), Some(5_000_000 - of_bob));
        }
    }
}

#[test]
fn feerates_that_differ_meet_in_what_the_funder_allows() {
    // The funder pays up to twice of what it proposes.
    for (of_funder, of_other, agreed_on) in [(500, 800, 800), (500, 300, 500), (500, 5000, 1000), (500, 1000, 1000)] {
        for funder in [Side::Local, Side::Remote] {
            let (mut alice, mut bob) = pair(Options { funder, ..Options::default() }, LEGACY);
            let (of_alice, of_bob) = if funder == Side::Local { (of_funder, of_other) } else { (of_other, of_funder) };
            close(&mut alice, &mut bob, of_alice, of_bob);
            let tx = agreed(&alice, &bob);
            let (payer, other) = if funder == Side::Local { (to_alice(), to_bob()) } else { (to_bob(), to_alice()) };
            assert_eq!(paid(&tx, &payer), Some(5_000_000 - fee(agreed_on)), "{of_funder} {of_other}");
            assert_eq!(paid(&tx, &other), Some(5_000_000));
        }
    }
}

#[test]
fn dust_and_fractions_go_to_the_fee() {
    for (push, to_bob_sat) in [(545_999, None), (546_000, Some(546)), (546_999, Some(546)), (0, None)] {
        let (mut alice, mut bob) = pair(Options { push: Msat(push), ..Options::default() }, LEGACY);
        close(&mut alice, &mut bob, 1000, 1000);
        let tx = agreed(&alice, &bob);
        assert_eq!(paid(&tx, &to_bob()), to_bob_sat);
        let of_alice = (10_000_000_000 - push) / 1000;
        assert_eq!(paid(&tx, &to_alice()), Some(of_alice - fee(1000)));
    }
}

#[test]
fn a_funder_who_has_almost_nothing_pays_what_it_has() {
    let push = Msat(10_000_000_000 - 2_000_000);
    let (mut alice, mut bob) = pair(Options { push, feerate: FeeratePerKw(253), ..Options::default() }, LEGACY);
    close(&mut alice, &mut bob, 50_000, 253);
    let tx = agreed(&alice, &bob);
    assert_eq!((paid(&tx, &to_bob()), paid(&tx, &to_alice())), (Some(9_998_000), None));
}

/// What Bob would send at this fee.
fn closing_signed(bob: &Node, fee: u64, fee_range: Option<(u64, u64)>) -> Message {
    let Message::ClosingSigned(message) = closing_signed_for(bob, [to_bob(), to_alice()], fee) else { unreachable!() };
    let fee_range = fee_range.map(|(min, max)| FeeRange { min: Sat(min), max: Sat(max) });
    Message::ClosingSigned(ClosingSigned { fee_range, ..message })
}

/// The same for a close to these scripts, his own first.
pub(super) fn closing_signed_for(bob: &Node, scripts: [ScriptBuf; 2], fee: u64) -> Message {
    let [local, remote] = scripts;
    let scripts = Both { local, remote };
    let close = ClosingTx::legacy(bob.channel.terms(), Side::Local, &bob.balances(), &scripts, Sat(fee)).unwrap();
    Message::ClosingSigned(ClosingSigned {
        channel_id: bob.channel.id(),
        fee: Sat(fee),
        signature: close.sign(bob.channel.terms(), &bob.keys),
        fee_range: None,
    })
}

/// Alice, the funder, has proposed; Bob's answers are made by hand.
fn proposed(feerate: u32) -> (Node, Node) {
    let (mut alice, mut bob) = pair(Options::default(), LEGACY);
    try_close(&mut alice, to_alice(), feerate).unwrap();
    alice.commit();
    let asked = alice.outbox.pop_front().unwrap();
    bob.receive(asked).unwrap();
    try_close(&mut bob, to_bob(), feerate).unwrap();
    bob.commit();
    let answer = bob.outbox.pop_front().unwrap();
    alice.receive(answer).unwrap();
    alice.commit();
    assert_eq!(names(&alice), ["closing_signed"]);
    alice.outbox.clear();
    (alice, bob)
}

#[test]
fn ranges_without_overlap_are_a_warning_and_a_better_order_begins_anew() {
    let (mut alice, mut bob) = proposed(500);
    let answer = closing_signed(&bob, fee(3000), Some((fee(3000), fee(9000))));
    let fault = alice.receive(answer).unwrap_err();
    assert_eq!(fault.reaction, Reaction::Warn);
    assert!(complete(&alice).is_empty() && alice.disconnects.is_empty());
    assert!(matches!(alice.channel.phase(), Phase::Closing(_)), "nobody closes alone");
    try_close(&mut alice, to_alice(), 3000).unwrap();
    assert_eq!(alice.disconnects.len(), 1);
    reconnect(&mut alice, &mut bob, LEGACY);
    let tx = agreed(&alice, &bob);
    assert_eq!(paid(&tx, &to_alice()), Some(5_000_000 - fee(3000)));
    let late = try_close(&mut alice, to_alice(), 5000).unwrap_err();
    assert!(matches!(late, Refusal::NotUsable(_)), "{late}");
}

#[test]
fn an_answer_outside_of_the_overlap() {
    let (mut alice, bob) = proposed(500);
    let answer = closing_signed(&bob, fee(1000) + 1, Some((fee(300), fee(9000))));
    let result = alice.receive(answer);
    assert_disconnects(result, &alice);
    assert!(complete(&alice).is_empty());
}

#[test]
fn a_peer_without_fee_range_is_met_halfway() {
    let (mut alice, bob) = proposed(500);
    let limit = fee(1000);
    let answer = closing_signed(&bob, limit + 400, None);
    alice.receive(answer).unwrap();
    let Some(Message::ClosingSigned(ours)) = alice.outbox.pop_back() else { panic!("no answer") };
    assert_eq!(ours.fee.0, fee(500).midpoint(limit + 400).min(limit));
    assert!(ours.fee_range.is_some());
    let answer = closing_signed(&bob, limit, None);
    alice.receive(answer).unwrap();
    let [tx] = &complete(&alice)[..] else { panic!("no agreement") };
    assert_eq!(paid(tx, &to_alice()), Some(5_000_000 - limit));
}

#[test]
fn a_peer_without_fee_range_that_moves_away() {
    let (mut alice, bob) = proposed(500);
    let answers = [fee(1000) + 400, fee(1000) + 401].map(|fee| closing_signed(&bob, fee, None));
    let [first, second] = answers;
    alice.receive(first).unwrap();
    let result = alice.receive(second);
    assert_disconnects(result, &alice);
}

#[test]
fn a_signature_that_is_not_of_the_closing_transaction() {
    let (mut alice, bob) = proposed(500);
    let records = alice.journal.len();
    let Message::ClosingSigned(right) = closing_signed(&bob, fee(500), None) else { panic!("not it") };
    let wrong = [
        ClosingSigned { signature: other_signature(&bob), ..right.clone() },
        ClosingSigned { fee: Sat(right.fee.0 + 1), ..right.clone() },
        ClosingSigned { fee: Sat(5_000_001), ..right.clone() },
        ClosingSigned { fee: Sat(u64::MAX), ..right.clone() },
    ];
    for message in wrong {
        let result = alice.receive(Message::ClosingSigned(message));
        assert_disconnects(result, &alice);
    }
    assert_eq!(alice.journal.len(), records);
    alice.receive(Message::ClosingSigned(right)).unwrap();
    assert_eq!(complete(&alice).len(), 1);
}

#[test]
fn the_peer_may_leave_out_its_own_output() {
    let (mut alice, bob) = proposed(500);
    let scripts = Both { local: to_bob(), remote: to_alice() };
    let (terms, fee) = (bob.channel.terms(), Sat(fee(500)));
    let close = ClosingTx::legacy_without_signer(terms, Side::Local, &bob.balances(), &scripts, fee).unwrap();
    let signature = close.sign(terms, &bob.keys);
    let message = ClosingSigned { channel_id: bob.channel.id(), fee, signature, fee_range: None };
    alice.receive(Message::ClosingSigned(message)).unwrap();
    let [tx] = &complete(&alice)[..] else { panic!("no agreement") };
    assert_eq!((paid(tx, &to_alice()), paid(tx, &to_bob())), (Some(5_000_000 - fee.0), None));
}

/// Both with LDK's dust limit, and asked to close; `push` is what the side that did not fund has.
fn shut_down_at_ldks_limit(funder: Side, push: Msat) -> (Node, Node) {
    let (mut alice, mut bob) = pair_with(Options { funder, push, ..Options::default() }, |terms| {
        terms.parties.local.dust_limit = Sat(354);
        terms.parties.remote.dust_limit = Sat(354);
    });
    reconnect(&mut alice, &mut bob, LEGACY);
    try_close(&mut alice, to_alice(), 500).unwrap();
    alice.commit();
    let asked = alice.outbox.pop_front().unwrap();
    bob.receive(asked).unwrap();
    try_close(&mut bob, to_bob(), 500).unwrap();
    bob.commit();
    let answer = bob.outbox.pop_front().unwrap();
    alice.receive(answer).unwrap();
    bob.outbox.clear();
    alice.commit();
    (alice, bob)
}

/// What LDK in Bob's place would sign at this fee, where it is not BOLT 3's form.
fn ldks_close(bob: &Node, fee: u64) -> ClosingTx {
    let scripts = Both { local: to_bob(), remote: to_alice() };
    let (terms, balances) = (bob.channel.terms(), bob.balances());
    ClosingTx::legacy_above_limit(terms, Side::Local, &balances, &scripts, Sat(fee)).expect("another form")
}

fn closing_signed_by_ldk(bob: &Node, fee: u64, close: &ClosingTx) -> Message {
    let signature = close.sign(bob.channel.terms(), &bob.keys);
    let fee_range = Some(FeeRange { min: Sat(100), max: Sat(9_000_000) });
    Message::ClosingSigned(ClosingSigned { channel_id: bob.channel.id(), fee: Sat(fee), signature, fee_range })
}

#[test]
fn an_output_of_ldk_of_exactly_its_dust_limit() {
    for push in [354_000, 354_999] {
        let (mut alice, bob) = shut_down_at_ldks_limit(Side::Local, Msat(push));
        let Some(Message::ClosingSigned(ours)) = alice.outbox.pop_front() else { panic!("nothing proposed") };
        let without = ldks_close(&bob, fee(500));
        assert!(without.is_signed_by_remote(bob.channel.terms(), &ours.signature), "LDK would close alone over it");
        let answer = closing_signed_by_ldk(&bob, fee(1000), &ldks_close(&bob, fee(1000)));
        alice.receive(answer).unwrap();
        let [tx] = &complete(&alice)[..] else { panic!("no agreement") };
        assert_eq!(
            (paid(tx, &to_bob()), paid(tx, &to_alice())),
            (None, Some((10_000_000_000 - push) / 1_000 - fee(1000)))
        );
    }
}

#[test]
fn one_satoshi_above_or_below_ldks_dust_limit() {
    for (push, to_bob_sat) in [(353_999, None), (355_000, Some(355))] {
        let (mut alice, bob) = shut_down_at_ldks_limit(Side::Local, Msat(push));
        let answer = closing_signed(&bob, fee(500), Some((100, 9_000_000)));
        alice.receive(answer).unwrap();
        let [tx] = &complete(&alice)[..] else { panic!("no agreement") };
        assert_eq!(paid(tx, &to_bob()), to_bob_sat);
    }
}

#[test]
fn our_output_of_exactly_the_dust_limit_that_ldk_leaves_out() {
    let (mut alice, bob) = shut_down_at_ldks_limit(Side::Remote, Msat(354_000));
    let proposal = closing_signed_by_ldk(&bob, fee(500), &ldks_close(&bob, fee(500)));
    alice.receive(proposal).unwrap();
    let [tx] = &complete(&alice)[..] else { panic!("no agreement") };
    assert_eq!((paid(tx, &to_alice()), paid(tx, &to_bob())), (None, Some(9_999_646 - fee(500))));
}

#[test]
fn the_rest_of_a_funder_that_is_exactly_the_dust_limit() {
    // What our own order proposes leaves us 354 sat, and so does the fee that LDK picks.
    let rest = 354 + fee(1000);
    let (mut alice, bob) = shut_down_at_ldks_limit(Side::Local, Msat((10_000_000 - rest) * 1_000));
    alice.outbox.clear();
    let answer = closing_signed_by_ldk(&bob, fee(1000), &ldks_close(&bob, fee(1000)));
    alice.receive(answer).unwrap();
    let [tx] = &complete(&alice)[..] else { panic!("no agreement") };
    assert_eq!((paid(tx, &to_alice()), paid(tx, &to_bob())), (None, Some(10_000_000 - rest)));
}

#[test]
fn rounds_are_bounded() {
    let (mut alice, bob) = proposed(500);
    let records = alice.journal.len();
    for round in 0..10_000 {
        let answer = closing_signed(&bob, 100_000 + round, Some((100_000, 200_000)));
        alice.receive(answer).unwrap_err();
    }
    assert_eq!(alice.journal.len(), records);
    assert!(!alice.disconnects.is_empty());
}

#[test]
fn our_signature_leaves_after_its_record() {
    let (mut alice, mut bob) = pair(Options::default(), LEGACY);
    try_close(&mut alice, to_alice(), 1000).unwrap();
    exchange(&mut alice, &mut bob);
    try_close(&mut bob, to_bob(), 1000).unwrap();
    bob.commit();
    let answer = bob.outbox.pop_front().unwrap();
    alice.receive(answer).unwrap();
    let mut fx = millrace_channel::Effects::default();
    let curve = millrace_channel::curve::Serial;
    alice.channel.commit(alice.now, &curve, &mut fx);
    super::simple::assert_recorded_first(&fx, &["closing_signed"], 1);
    let message = super::simple::sent(&fx).remove(0);
    let mut fx = millrace_channel::Effects::default();
    bob.channel.on_message(message, &curve, &mut fx).unwrap();
    super::simple::assert_recorded_first(&fx, &["closing_signed", "broadcast"], 1);
}
