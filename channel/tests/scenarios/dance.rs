//! The commit/revoke dance on a good link.

use millrace_channel::curve::Serial;
use millrace_channel::ledger::htlc::Removal;
use millrace_channel::side::Side;
use millrace_channel::{Command, Effect, Effects, Fact, Refusal};
use millrace_wire::{FeeratePerKw, HtlcId, Message, Msat};

use crate::support::node::{Options, exchange, normal_pair, pair_with, preimage_of};

mod one_htlc {
    use super::*;

    #[test]
    fn fulfilled_moves_its_amount() {
        let (mut alice, mut bob) = normal_pair();
        let before = alice.balances();
        let id = alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        let received =
            bob.facts.iter().filter(|fact| matches!(fact, Fact::HtlcReceived { id: told, .. } if *told == id));
        assert_eq!(received.count(), 1, "told once, when irrevocable");
        bob.fulfill(id, 1);
        exchange(&mut alice, &mut bob);
        assert_eq!(alice.balances().local.0, before.local.0 - 50_000_000);
        assert_eq!(alice.balances().remote.0, before.remote.0 + 50_000_000);
        assert_eq!(bob.balances().local, alice.balances().remote);
        assert!(alice.channel.is_at_rest() && bob.channel.is_at_rest());
        assert!(
            alice
                .facts
                .iter()
                .any(|fact| matches!(fact, Fact::OfferFulfilled { preimage, .. } if *preimage == preimage_of(1)))
        );
        alice.restart();
        bob.restart();
    }

    #[test]
    fn failed_moves_nothing() {
        let (mut alice, mut bob) = normal_pair();
        let before = alice.balances();
        let id = alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        bob.fail(id);
        exchange(&mut alice, &mut bob);
        assert_eq!(alice.balances(), before);
        assert!(
            alice.facts.iter().any(|fact| matches!(fact, Fact::OfferResolved { removal: Removal::Fail { .. }, .. }))
        );
        assert!(alice.channel.is_at_rest() && bob.channel.is_at_rest());
    }

    #[test]
    fn malformed_moves_nothing() {
        let (mut alice, mut bob) = normal_pair();
        let before = alice.balances();
        let id = alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        bob.command(Command::FailMalformed { id, sha256_of_onion: [3; 32], failure_code: 0x8000 | 5 }).unwrap();
        exchange(&mut alice, &mut bob);
        assert_eq!(alice.balances(), before);
        assert!(
            alice
                .facts
                .iter()
                .any(|fact| matches!(fact, Fact::OfferResolved { removal: Removal::Malformed { .. }, .. }))
        );
    }

    #[test]
    fn told_irrevocable_only_after_both_revocations() {
        let (mut alice, mut bob) = normal_pair();
        alice.offer(Msat(50_000_000), 1);
        alice.commit();
        let is_told =
            |bob: &crate::support::node::Node| bob.facts.iter().any(|fact| matches!(fact, Fact::HtlcReceived { .. }));
        // add, commitment_signed → revoke_and_ack; then bob's commitment_signed → alice's revoke_and_ack.
        for message in alice.outbox.drain(..).collect::<Vec<_>>() {
            bob.receive(message).unwrap();
        }
        bob.commit();
        assert!(!is_told(&bob), "forwarded at Acked");
        for message in bob.outbox.drain(..).collect::<Vec<_>>() {
            alice.receive(message).unwrap();
        }
        assert!(!is_told(&bob), "forwarded at CrossCommitted");
        for message in alice.outbox.drain(..).collect::<Vec<_>>() {
            bob.receive(message).unwrap();
        }
        assert!(is_told(&bob));
    }
}

mod many {
    use super::*;

    #[test]
    fn both_ways_to_the_limit_and_one_more_is_refused() {
        for dust in [false, true] {
            let (mut alice, mut bob) = pair_with(Options::default(), |terms| {
                for side in [Side::Local, Side::Remote] {
                    terms.parties.of_mut(side).max_accepted_htlcs = 483;
                }
            });
            let amount = if dust { Msat(100_000) } else { Msat(1_000_000) };
            let mut ids = Vec::new();
            for index in 0..483_u32 {
                let seed = (index % 250) as u8;
                ids.push((alice.offer(amount, seed), bob.offer(amount, seed), seed));
            }
            assert_eq!(alice.try_offer(amount, 9), Err(Refusal::TooManyHtlcs { max: 483 }));
            exchange(&mut alice, &mut bob);
            assert_eq!(alice.channel.ledger().htlcs(Side::Local).len(), 483);
            assert_eq!(alice.channel.ledger().htlcs(Side::Remote).len(), 483);
            for (offered, received, seed) in ids {
                bob.fulfill(offered, seed);
                alice.fail(received);
            }
            exchange(&mut alice, &mut bob);
            assert!(alice.channel.is_at_rest() && bob.channel.is_at_rest());
            assert_eq!(alice.balances().local.0, 5_000_000_000 - 483 * amount.0);
            alice.restart();
            bob.restart();
        }
    }

    /// A forward's preimage, which the channel downstream has on the disk, does not wait for this channel's record. Its
    /// signature does, and behind messages of the same turn it stays.
    #[test]
    fn a_preimage_that_is_durable_goes_ahead_of_the_record() {
        let (mut alice, mut bob) = normal_pair();
        let ids: Vec<HtlcId> = (0..3).map(|seed| alice.offer(Msat(1_000_000), seed)).collect();
        exchange(&mut alice, &mut bob);
        let order = |index: usize, is_durable| {
            let preimage = preimage_of(index as u8);
            Command::Fulfill { id: ids[index], preimage, attribution: None, is_durable }
        };
        let mut fx = Effects::default();
        bob.channel.on_command(order(0, false), &mut fx).unwrap();
        bob.channel.on_command(order(1, true), &mut fx).unwrap();
        bob.channel.commit(bob.now, &Serial, &mut fx);
        assert_eq!(shape(&fx), ["record", "fulfil 0", "fulfil 1", "record", "record", "commitment_signed"]);
        let mut fx = Effects::default();
        let mut refused = Effects::default();
        let wrong = Command::Fulfill { id: ids[2], preimage: preimage_of(9), attribution: None, is_durable: true };
        assert_eq!(bob.channel.on_command(wrong, &mut refused), Err(Refusal::WrongPreimage { id: ids[2] }));
        assert!(refused.is_empty());
        bob.channel.on_command(Command::ReleaseOutcome(HtlcId(9)), &mut fx).unwrap();
        bob.channel.on_command(order(2, true), &mut fx).unwrap();
        assert_eq!(shape(&fx), ["fulfil 2", "record"]);
    }

    /// What was asked for, in its order, by short names.
    fn shape(fx: &Effects) -> Vec<String> {
        let name = |effect: &Effect| match effect {
            Effect::Journal(_) => "record".to_owned(),
            Effect::Send(message) => match &**message {
                Message::UpdateFulfillHtlc(fulfill) => format!("fulfil {}", fulfill.id.0),
                other => other.name().to_owned(),
            },
            other => format!("{other:?}"),
        };
        fx.list.iter().map(name).collect()
    }

    #[test]
    fn one_commitment_signed_covers_a_batch() {
        let (mut alice, mut bob) = normal_pair();
        for seed in 0..50 {
            alice.offer(Msat(1_000_000), seed);
        }
        alice.commit();
        let signed = alice.outbox.iter().filter(|message| matches!(message, Message::CommitmentSigned(_))).count();
        assert_eq!((signed, alice.outbox.len()), (1, 51));
        exchange(&mut alice, &mut bob);
    }
}

mod update_fee {
    use super::*;

    #[test]
    fn reaches_both_commitments() {
        let (mut alice, mut bob) = normal_pair();
        alice.command(Command::UpdateFee(FeeratePerKw(1_500))).unwrap();
        alice.command(Command::UpdateFee(FeeratePerKw(2_000))).unwrap();
        exchange(&mut alice, &mut bob);
        for node in [&alice, &bob] {
            for side in [Side::Local, Side::Remote] {
                let which = millrace_channel::ledger::Which::Current(side);
                assert_eq!(node.channel.ledger().feerate(which), FeeratePerKw(2_000));
            }
            assert!(node.channel.is_at_rest());
        }
        alice.restart();
    }

    /// LDK keeps one update only: a second one makes it forget the first, and its signature then fits neither.
    #[test]
    fn the_next_one_waits_until_the_one_before_is_irrevocable() {
        let (mut alice, mut bob) = normal_pair();
        alice.command(Command::UpdateFee(FeeratePerKw(1_500))).unwrap();
        alice.commit();
        let under_way = Err(Refusal::FeeUpdateUnderWay { before: FeeratePerKw(1_500) });
        assert_eq!(alice.command(Command::UpdateFee(FeeratePerKw(2_000))), under_way);
        // Bob's revoke_and_ack, then his commitment_signed, which Alice answers with her own revoke_and_ack.
        for message in std::mem::take(&mut alice.outbox) {
            bob.receive(message).unwrap();
        }
        bob.commit();
        alice.receive(bob.outbox.pop_front().unwrap()).unwrap();
        assert_eq!(alice.command(Command::UpdateFee(FeeratePerKw(2_000))), under_way);
        alice.receive(bob.outbox.pop_front().unwrap()).unwrap();
        alice.command(Command::UpdateFee(FeeratePerKw(2_000))).unwrap();
        exchange(&mut alice, &mut bob);
        assert!(alice.channel.is_at_rest() && bob.channel.is_at_rest());
        assert_eq!(bob.channel.ledger().feerate_max(), FeeratePerKw(2_000));
    }

    #[test]
    fn is_the_funders_alone() {
        let (_alice, mut bob) = normal_pair();
        assert_eq!(bob.command(Command::UpdateFee(FeeratePerKw(1_500))), Err(Refusal::NotFunder));
    }

    #[test]
    fn beyond_the_funders_means_is_refused() {
        let (mut alice, _bob) = normal_pair();
        let refused = alice.command(Command::UpdateFee(FeeratePerKw(50_000_000)));
        assert!(matches!(refused, Err(Refusal::CannotAffordFeerate { .. })), "{refused:?}");
    }

    /// The peer has offered HTLCs that were affordable at the feerate that it knew.
    #[test]
    fn a_higher_one_leaves_room_for_ten_adds_that_cross_it() {
        // 15,000 sat less the reserve of 10,000 and the anchors: 4,340 sat are left for (1124 + 10 × 172) weight.
        let options = Options { push: Msat(9_985_000_000), ..Options::default() };
        let (mut alice, mut bob) = pair_with(options, |_| {});
        let refused = alice.command(Command::UpdateFee(FeeratePerKw(1_527)));
        assert_eq!(refused, Err(Refusal::CannotAffordFeerate { feerate: FeeratePerKw(1_527) }));
        for seed in 0..10 {
            bob.offer(Msat(1_000_000), seed);
        }
        alice.command(Command::UpdateFee(FeeratePerKw(1_526))).unwrap();
        exchange(&mut alice, &mut bob);
        assert_eq!(alice.channel.ledger().htlcs(Side::Remote).len(), 10);
        let left = alice.channel.ledger().view(millrace_channel::ledger::Which::Current(Side::Local)).unwrap();
        assert!(left.balances.local >= Msat(10_000_000 + 660_000 + 1_526 * (1_124 + 1_720)));
    }

    #[test]
    fn and_an_add_cross() {
        let (mut alice, mut bob) = normal_pair();
        alice.command(Command::UpdateFee(FeeratePerKw(3_000))).unwrap();
        let id = bob.offer(Msat(10_000_000), 4);
        exchange(&mut alice, &mut bob);
        alice.fulfill(id, 4);
        exchange(&mut alice, &mut bob);
        assert!(alice.channel.is_at_rest() && bob.channel.is_at_rest());
    }
}

/// Both sides propose what each could pay for, and together it is too much: the funder would be below its reserve.
mod proposals_that_cross {
    use super::*;
    use crate::support::node::{Node, connect, disconnect};

    /// Alice funds, and has 20,000 sat besides reserve and anchors: at 1,000 sat/kw she offers all but 2,936 of them,
    /// and can carry 10 HTLCs. Whatever `propose` brings to Bob crosses that.
    fn crossed(propose: impl FnOnce(&mut Node)) -> (Node, Node) {
        let options = Options { push: Msat(9_969_340_000), ..Options::default() };
        let (mut alice, mut bob) = pair_with(options, |_| {});
        propose(&mut bob);
        let available = alice.available();
        assert_eq!(available, Msat(20_000_000 - 2_936_000));
        alice.offer(available, 100);
        (alice, bob)
    }

    fn offer_many(bob: &mut Node, count: u8) {
        for seed in 0..count {
            bob.offer(Msat(1_000_000), seed);
        }
    }

    fn dropped(node: &Node) -> usize {
        node.facts.iter().filter(|fact| matches!(fact, Fact::OfferDropped { .. })).count()
    }

    fn hand_over(from: &mut Node, to: &mut Node) {
        for message in std::mem::take(&mut from.outbox) {
            to.receive(message).unwrap();
        }
    }

    fn begin_anew(alice: &mut Node, bob: &mut Node) {
        disconnect(alice, bob);
        bob.restart();
        connect(alice, bob);
        exchange(alice, bob);
    }

    #[test]
    fn as_many_adds_as_the_funder_can_carry_are_signed() {
        let (mut alice, mut bob) = crossed(|bob| offer_many(bob, 9));
        exchange(&mut alice, &mut bob);
        assert_eq!((alice.channel.ledger().htlcs(Side::Remote).len(), dropped(&bob)), (9, 0));
    }

    #[test]
    fn one_add_more_is_withdrawn_with_all_others() {
        let (mut alice, mut bob) = crossed(|bob| offer_many(bob, 10));
        alice.commit();
        hand_over(&mut alice, &mut bob);
        let records = bob.journal.len();
        bob.commit();
        assert_eq!((bob.disconnects.len(), bob.journal.len(), dropped(&bob)), (1, records, 10));
        begin_anew(&mut alice, &mut bob);
        assert_eq!(alice.channel.ledger().htlcs(Side::Local).len(), 1);
        assert_eq!(bob.try_offer(Msat(1_000_000), 1), Ok(HtlcId(0)), "its id is used again");
    }

    #[test]
    fn the_funders_own_add_is_withdrawn() {
        let (mut alice, mut bob) = crossed(|bob| offer_many(bob, 10));
        bob.commit();
        hand_over(&mut bob, &mut alice);
        alice.commit();
        assert_eq!((alice.disconnects.len(), dropped(&alice)), (1, 1));
        begin_anew(&mut alice, &mut bob);
        assert_eq!(alice.channel.ledger().htlcs(Side::Remote).len(), 10);
    }

    #[test]
    fn a_feerate_that_the_funder_cannot_pay_any_more_is_withdrawn() {
        // 4,340 sat for (1124 + 10 × 172) weight at 1,526 sat/kw.
        let options = Options { push: Msat(9_985_000_000), ..Options::default() };
        let (mut alice, mut bob) = pair_with(options, |_| {});
        alice.command(Command::UpdateFee(FeeratePerKw(1_526))).unwrap();
        offer_many(&mut bob, 11);
        bob.commit();
        hand_over(&mut bob, &mut alice);
        alice.commit();
        assert_eq!(alice.disconnects.len(), 1);
        begin_anew(&mut alice, &mut bob);
        assert_eq!(alice.channel.ledger().htlcs(Side::Remote).len(), 11);
        assert_eq!(alice.channel.ledger().feerate_max(), FeeratePerKw(1_000));
    }

    #[test]
    fn what_removes_and_acknowledges_is_signed_all_the_same() {
        let (mut alice, mut bob) = crossed(|_| ());
        exchange(&mut alice, &mut bob);
        bob.fulfill(HtlcId(0), 100);
        exchange(&mut alice, &mut bob);
        assert!(alice.channel.is_at_rest() && bob.channel.is_at_rest());
    }
}

mod faults {
    use super::*;
    use millrace_channel::Reaction;

    #[test]
    fn a_removal_said_twice_is_answered_by_a_disconnect_and_changes_nothing() {
        let (mut alice, mut bob) = normal_pair();
        let id = alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        bob.fulfill(id, 1);
        let fulfill = bob.outbox[0].clone();
        alice.receive(fulfill.clone()).unwrap();
        let fault = alice.receive(fulfill).unwrap_err();
        assert_eq!(fault.reaction, Reaction::Disconnect);
        let told = alice.facts.iter().filter(|fact| matches!(fact, Fact::OfferFulfilled { .. })).count();
        assert_eq!(told, 1);
        crate::support::node::disconnect(&mut alice, &mut bob);
        crate::support::node::connect(&mut alice, &mut bob);
        assert!(alice.channel.is_at_rest() && bob.channel.is_at_rest());
    }

    #[test]
    fn a_wrong_preimage_fails_the_channel() {
        let (mut alice, mut bob) = normal_pair();
        let id = alice.offer(Msat(50_000_000), 1);
        exchange(&mut alice, &mut bob);
        bob.fulfill(id, 1);
        let Some(Message::UpdateFulfillHtlc(mut fulfill)) = bob.outbox.pop_front() else { panic!("no fulfil") };
        fulfill.preimage = preimage_of(2);
        let fault = alice.receive(Message::UpdateFulfillHtlc(fulfill)).unwrap_err();
        assert_eq!(fault.reaction, Reaction::FailChannel);
    }

    #[test]
    fn a_skipped_id_fails_the_channel() {
        let (mut alice, mut bob) = normal_pair();
        alice.offer(Msat(50_000_000), 1);
        let Some(Message::UpdateAddHtlc(mut add)) = alice.outbox.pop_front() else { panic!("no add") };
        add.id = HtlcId(1);
        assert_eq!(bob.receive(Message::UpdateAddHtlc(add)).unwrap_err().reaction, Reaction::FailChannel);
    }

    #[test]
    fn a_bad_signature_fails_the_channel() {
        for htlc in [false, true] {
            let (mut alice, mut bob) = normal_pair();
            alice.offer(Msat(50_000_000), 1);
            alice.commit();
            bob.receive(alice.outbox.pop_front().unwrap()).unwrap();
            let Some(Message::CommitmentSigned(mut signed)) = alice.outbox.pop_front() else { panic!("no signature") };
            if htlc {
                signed.htlc_signatures[0] = signed.signature;
            } else {
                signed.signature = signed.htlc_signatures[0];
            }
            let fault = bob.receive(Message::CommitmentSigned(signed)).unwrap_err();
            assert_eq!(fault.reaction, Reaction::FailChannel);
        }
    }

    #[test]
    fn a_revocation_out_of_turn_or_with_a_wrong_secret_fails_the_channel() {
        let (mut alice, mut bob) = normal_pair();
        alice.offer(Msat(50_000_000), 1);
        alice.commit();
        for message in alice.outbox.drain(..).collect::<Vec<_>>() {
            bob.receive(message).unwrap();
        }
        let Some(Message::RevokeAndAck(revoke)) = bob.outbox.pop_front() else { panic!("no revocation") };
        let mut wrong = revoke.clone();
        wrong.per_commitment_secret[5] ^= 1;
        assert_eq!(alice.receive(Message::RevokeAndAck(wrong)).unwrap_err().reaction, Reaction::FailChannel);
        let (mut alice, _bob) = normal_pair();
        assert_eq!(alice.receive(Message::RevokeAndAck(revoke)).unwrap_err().reaction, Reaction::FailChannel);
    }
}

/// No failure packet is so long. What is cut off was nobody's to read; and the record stays small, however many there are.
#[test]
fn a_reason_that_is_too_long_is_cut() {
    let (mut alice, mut bob) = normal_pair();
    let id = alice.offer(Msat(50_000_000), 1);
    exchange(&mut alice, &mut bob);
    let before = alice.journal.len();
    bob.command(Command::Fail { id, reason: (0..65_000_u32).map(|byte| byte as u8).collect(), attribution: None })
        .unwrap();
    exchange(&mut alice, &mut bob);
    assert!(alice.journal[before..].iter().all(|record| record.len() < 2_000));
    let told = alice.facts.iter().find_map(|fact| match fact {
        Fact::OfferResolved { removal: Removal::Fail { reason, .. }, .. } => Some(reason.clone()),
        _ => None,
    });
    assert_eq!(told.unwrap(), (0..1_024_u32).map(|byte| byte as u8).collect::<Vec<u8>>());
    alice.restart();
}
