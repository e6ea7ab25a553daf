//! What may be offered, to the millisatoshi; and what the other side may refuse.

use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::{Command, Policy, Reaction, Refusal};
use millrace_wire::{CltvExpiry, FeeratePerKw, HtlcId, Message, Msat, Sat};
use proptest::prelude::*;

use crate::support::node::{HEIGHT, Node, Options, exchange, normal_pair, offer, pair_with};

/// `available` is accepted; one millisatoshi more is refused. Nothing is left proposed.
fn assert_available_is_exact(node: &mut Node, other: &mut Node) -> Msat {
    let available = node.available();
    let refused = node.try_offer(Msat(available.0 + 1), 200);
    assert!(refused.is_err(), "available {available}, and one more was accepted");
    if available > Msat::ZERO {
        node.try_offer(available, 201).unwrap_or_else(|refusal| panic!("available {available}: {refusal}"));
        exchange(node, other);
    }
    available
}

#[test]
fn a_fresh_channel_offers_all_but_reserve_anchors_and_spike() {
    let (mut alice, mut bob) = normal_pair();
    // 5,000,000 sat, less the reserve 10,000, anchors 660 and 2 HTLCs at twice 1,000 sat/kw: (1124 + 344) × 2.
    let expected = 5_000_000 - 10_000 - 660 - (1_124 + 2 * 172) * 2;
    assert_eq!(assert_available_is_exact(&mut alice, &mut bob), Msat(expected * 1_000));
}

#[test]
fn the_fundee_keeps_only_its_reserve() {
    let (mut alice, mut bob) = normal_pair();
    assert_eq!(assert_available_is_exact(&mut bob, &mut alice), Msat((5_000_000 - 10_000) * 1_000));
}

#[test]
fn the_fundee_does_not_offer_what_the_funder_cannot_carry() {
    let options = Options { push: Msat(9_985_000_000), ..Options::default() };
    let (mut alice, mut bob) = pair_with(options, |_| {});
    // Alice has 15,000 sat: 10,000 reserve, 660 anchors, 1,124 fee. One HTLC more is affordable…
    bob.offer(Msat(1_000_000), 1);
    exchange(&mut alice, &mut bob);
    // … and at 3,000 sat/kw it is not.
    let options = Options { feerate: FeeratePerKw(3_500), ..options };
    let (_, mut bob) = pair_with(options, |_| {});
    assert_eq!(bob.available(), Msat::ZERO);
    assert_eq!(bob.try_offer(Msat(1_000_000), 1), Err(Refusal::FunderCannotPayFee));
}

#[test]
fn in_flight_counts_against_the_peers_limit() {
    let (mut alice, mut bob) =
        pair_with(Options::default(), |terms| terms.parties.remote.max_htlc_value_in_flight = Msat(70_000_000));
    alice.offer(Msat(50_000_000), 1);
    assert_eq!(alice.available(), Msat(20_000_000));
    assert_available_is_exact(&mut alice, &mut bob);
    assert_eq!(alice.available(), Msat::ZERO);
}

#[test]
fn below_the_peers_minimum_is_refused() {
    let (mut alice, _bob) = pair_with(Options::default(), |terms| terms.parties.remote.htlc_minimum = Msat(1_000));
    let refused = alice.try_offer(Msat(999), 1);
    assert_eq!(refused, Err(Refusal::BelowMinimum { amount: Msat(999), minimum: Msat(1_000) }));
}

#[test]
fn an_expiry_that_is_past_or_a_time_is_refused() {
    let (mut alice, _bob) = normal_pair();
    for expiry in [HEIGHT.0, 500_000_000] {
        let mut wrong = offer(Msat(1_000_000), 1);
        wrong.cltv_expiry = CltvExpiry(expiry);
        let refused = alice.channel.offer(wrong, &mut alice.fx);
        assert!(matches!(refused, Err(Refusal::BadExpiry { .. })));
    }
}

mod dust {
    use super::*;

    fn exposed(max: Msat) -> Options {
        Options { policy: Policy { max_dust_exposure: max, ..Policy::default() }, ..Options::default() }
    }

    #[test]
    fn is_refused_above_the_limit_and_what_is_not_dust_goes_on() {
        let (mut alice, _bob) = pair_with(exposed(Msat(1_000_000)), |_| {});
        alice.offer(Msat(500_000), 1);
        alice.offer(Msat(500_000), 2);
        assert!(matches!(alice.try_offer(Msat(1_000), 3), Err(Refusal::DustExposure { .. })));
        alice.offer(Msat(600_000), 4);
    }

    /// Without anchors whoever claims an HTLC pays the commitment's feerate for it, and that feerate may rise.
    #[test]
    fn without_anchors_is_whatever_a_quarter_more_fee_would_eat() {
        // 546 sat, and what 703 weight units cost at 1,250 sat/kw.
        let options = Options { format: CommitmentFormat::StaticRemotekey, ..exposed(Msat::ZERO) };
        let (mut alice, mut bob) = pair_with(options, |_| {});
        let below = alice.try_offer(Msat(1_423_999), 1);
        assert!(matches!(below, Err(Refusal::DustExposure { .. })), "{below:?}");
        alice.offer(Msat(1_424_000), 1);
        exchange(&mut alice, &mut bob);
        // With anchors the wallet pays for the claim: 546 sat are no dust.
        let (mut alice, _bob) = pair_with(exposed(Msat::ZERO), |_| {});
        assert!(matches!(alice.try_offer(Msat(545_999), 1), Err(Refusal::DustExposure { .. })));
        alice.offer(Msat(546_000), 1);
    }

    #[test]
    fn from_the_peer_is_taken_and_marked_to_be_failed() {
        let (mut alice, mut bob) = normal_pair();
        bob.policy.max_dust_exposure = Msat(700_000);
        let mut strict = bob.replayed(bob.journal.len());
        std::mem::swap(&mut strict, &mut bob.channel);
        crate::support::node::disconnect(&mut alice, &mut bob);
        crate::support::node::connect(&mut alice, &mut bob);
        for seed in 0..3 {
            alice.offer(Msat(300_000), seed);
        }
        exchange(&mut alice, &mut bob);
        let marked = bob.channel.ledger().htlcs(Side::Remote).iter().filter(|htlc| htlc.over_dust_exposure).count();
        assert_eq!(marked, 3, "all three became irrevocable together, above the limit");
        bob.restart();
    }
}

mod the_receiver {
    use super::*;

    /// The receiving side asked directly, past the sender's own care.
    fn receive(bob: &mut Node, amount: Msat, expiry: u32) -> Option<Reaction> {
        let (mut alice, _) = normal_pair();
        alice.offer(Msat(1_000_000), 1);
        let Some(Message::UpdateAddHtlc(mut add)) = alice.outbox.pop_front() else { panic!("no add") };
        add.amount = amount;
        add.cltv_expiry = CltvExpiry(expiry);
        bob.receive(Message::UpdateAddHtlc(add)).err().map(|fault| fault.reaction)
    }

    #[test]
    fn takes_all_that_bolt_2_lets_the_funder_offer_and_not_one_msat_more() {
        // No fee-spike buffer: reserve, anchors and the fee of this one HTLC are all that must stay.
        let most = (5_000_000 - 10_000 - 660 - (1_124 + 172)) * 1_000;
        let (_, mut bob) = normal_pair();
        assert_eq!(receive(&mut bob, Msat(most), 140), None);
        let (_, mut bob) = normal_pair();
        assert_eq!(receive(&mut bob, Msat(most + 1), 140), Some(Reaction::FailChannel));
    }

    #[test]
    fn refuses_nothing_below_minimum_and_times() {
        for (amount, expiry, refused) in
            [(1, 140, false), (0, 140, true), (5_000, 499_999_999, false), (5_000, 500_000_000, true)]
        {
            let (_, mut bob) = normal_pair();
            assert_eq!(receive(&mut bob, Msat(amount), expiry).is_some(), refused, "{amount} {expiry}");
        }
    }

    #[test]
    fn refuses_one_over_its_in_flight_limit() {
        for (amount, refused) in [(70_000_000, false), (70_000_001, true)] {
            let (_, mut bob) =
                pair_with(Options::default(), |terms| terms.parties.remote.max_htlc_value_in_flight = Msat(70_000_000));
            assert_eq!(receive(&mut bob, Msat(amount), 140).is_some(), refused);
        }
    }
}

/// What the peer can still take back is not spent: an HTLC that we fulfilled counts once the peer has revoked for it.
#[test]
fn credit_counts_once_the_peer_has_acknowledged_it() {
    let (mut alice, mut bob) = normal_pair();
    bob.offer(Msat(1_000_000_000), 1);
    exchange(&mut alice, &mut bob);
    let before = alice.available();
    alice.fulfill(HtlcId(0), 1);
    alice.commit();
    assert_eq!(alice.available(), before, "our signature is out, and the peer has revoked nothing");
    for message in std::mem::take(&mut alice.outbox) {
        bob.receive(message).unwrap();
    }
    assert!(matches!(bob.outbox.front(), Some(Message::RevokeAndAck(_))));
    alice.receive(bob.outbox.pop_front().unwrap()).unwrap();
    assert!(alice.available() >= before.checked_add(Msat(1_000_000_000)).unwrap());
}

#[test]
fn a_feerate_that_turns_htlcs_into_too_much_dust_is_refused() {
    let policy = Policy { max_dust_exposure: Msat(1_000_000), ..Policy::default() };
    let options = Options { format: CommitmentFormat::StaticRemotekey, policy, ..Options::default() };
    let (mut alice, mut bob) = pair_with(options, |_| {});
    alice.offer(Msat(2_000_000), 1);
    exchange(&mut alice, &mut bob);
    let feerate = FeeratePerKw(5_000);
    let refusal = alice.command(Command::UpdateFee(feerate)).unwrap_err();
    assert_eq!(refusal, Refusal::FeerateTurnsHtlcsIntoDust { feerate });
    bob.fulfill(HtlcId(0), 1);
    exchange(&mut alice, &mut bob);
    alice.command(Command::UpdateFee(feerate)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    /// In every state that random payments and fees lead to, for both sides.
    #[test]
    fn available_is_exactly_what_is_accepted(
        anchors in any::<bool>(),
        funder_is_alice in any::<bool>(),
        push in 0_u64..9_900_000,
        feerate in 253_u32..8_000,
        dust_exposure in 0_u64..3_000_000,
        dust_limits in (354_u64..=546, 354_u64..=546),
        minimum in 0_u64..3_000,
        steps in proptest::collection::vec((any::<bool>(), 1_u64..600_000, 0_u8..4), 0..24),
    ) {
        let format = if anchors { CommitmentFormat::Anchors } else { CommitmentFormat::StaticRemotekey };
        let funder = if funder_is_alice { Side::Local } else { Side::Remote };
        let policy = Policy { max_dust_exposure: Msat(dust_exposure), ..Policy::default() };
        let options = Options { format, funder, feerate: FeeratePerKw(feerate), push: Msat(push * 1_000), policy };
        let (mut alice, mut bob) = pair_with(options, |terms| {
            terms.parties.local.dust_limit = Sat(dust_limits.0);
            terms.parties.remote.dust_limit = Sat(dust_limits.1);
            terms.parties.local.htlc_minimum = Msat(minimum);
            terms.parties.remote.htlc_minimum = Msat(minimum);
        });
        for (index, (from_alice, amount, then)) in steps.into_iter().enumerate() {
            let (from, to) = if from_alice { (&mut alice, &mut bob) } else { (&mut bob, &mut alice) };
            let seed = index as u8;
            if let Ok(id) = from.try_offer(Msat(amount * 1_000 + u64::from(seed)), seed) {
                match then {
                    // Left proposed, or signed once.
                    0 => {}
                    1 => from.commit(),
                    _ => {
                        exchange(from, to);
                        if then == 2 { to.fulfill(id, seed) } else { to.fail(id) }
                    }
                }
            }
        }
        assert_available_is_exact(&mut alice, &mut bob);
        assert_available_is_exact(&mut bob, &mut alice);
        exchange(&mut alice, &mut bob);
    }
}
