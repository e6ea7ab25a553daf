#![allow(clippy::unwrap_used)]
//! The plan, step by step and under random mempools.

mod fixture;
mod property;

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::Weight;
use fixture::{World, delayed, penalty, preimage, rates, rates_of, timeout, to_remote};
use millrace_wire::{BlockHeight, FeeratePerKw, Sat};

use super::*;

fn sweeps(plan: &Plan) -> Vec<&SweepWanted> {
    plan.txs.iter().filter_map(|wanted| if let Wanted::Sweep(sweep) = wanted { Some(sweep) } else { None }).collect()
}

fn children(plan: &Plan) -> Vec<&ChildWanted> {
    plan.txs.iter().filter_map(|wanted| if let Wanted::Child(child) = wanted { Some(&**child) } else { None }).collect()
}

fn htlc_txs(plan: &Plan) -> Vec<&HtlcTxWanted> {
    plan.txs.iter().filter_map(|wanted| if let Wanted::HtlcTx(tx) = wanted { Some(tx) } else { None }).collect()
}

mod batching {
    use super::*;

    #[test]
    fn what_nobody_else_can_take_goes_together_whatever_the_channel() {
        let mut world = World::at(500);
        world.sweep(1, to_remote(100_000), None);
        world.sweep(2, delayed(200_000), None);
        world.sweep(2, delayed(300_000), None);
        let plan = world.plan();
        let [sweep] = sweeps(&plan)[..] else { panic!("{plan:?}") };
        assert_eq!(sweep.inputs.len(), 3);
        assert_eq!(plan.waits, []);
    }

    #[test]
    fn htlcs_go_only_with_their_like() {
        let mut world = World::at(500);
        world.sweep(1, to_remote(100_000), None);
        for _ in 0..2 {
            world.sweep(1, preimage(50_000), Some(540));
            world.sweep(1, preimage(50_000), Some(550));
            world.sweep(1, timeout(50_000, 499), None);
            world.sweep(2, preimage(50_000), Some(540));
        }
        let sizes: Vec<usize> = sweeps(&world.plan()).iter().map(|sweep| sweep.inputs.len()).collect();
        assert_eq!(sizes, [1, 2, 2, 2, 2]);
    }

    /// The cheater may move an HTLC at once; the rest is nobody's but ours until his delay is over.
    #[test]
    fn penalties_go_by_channel_and_htlcs_apart_from_the_rest() {
        let mut world = World::at(500);
        world.sweep(1, to_remote(100_000), None);
        for channel in 1..3 {
            for is_htlc in [false, false, true, true] {
                world.sweep(channel, penalty(50_000, is_htlc), Some(644));
            }
        }
        let plan = world.plan();
        let sizes: Vec<usize> = sweeps(&plan).iter().map(|sweep| sweep.inputs.len()).collect();
        assert_eq!(sizes, [1, 2, 2, 2, 2]);
        world.tip = BlockHeight(638);
        assert_eq!(sweeps(&world.plan()).len(), 9, "near the deadline each goes alone");
    }

    #[test]
    fn near_the_deadline_each_goes_alone() {
        let mut world = World::at(534);
        (0..3).for_each(|_| world.sweep(1, preimage(50_000), Some(540)));
        assert_eq!(sweeps(&world.plan()).len(), 3);
    }

    #[test]
    fn an_htlc_that_a_rival_spends_goes_alone_and_outbids_him() {
        let mut world = World::at(500);
        (0..3).for_each(|_| world.sweep(1, preimage(50_000), Some(540)));
        let contested = world.outpoints()[0];
        world.rival(contested, Sat(3_000), Weight::from_wu(600));
        let plan = world.plan();
        let [first, second] = sweeps(&plan)[..] else { panic!("{plan:?}") };
        assert_eq!((first.inputs.len(), second.inputs.len()), (1, 2));
        assert_eq!(first.inputs[0].claim.outpoint, contested);
        assert!(first.fee > Sat(3_000), "{:?}", first.fee);
        assert!(second.fee < Sat(3_000), "{:?}", second.fee);
    }

    #[test]
    fn a_batch_that_lost_one_input_is_made_again_without_it_and_pays_no_less() {
        let mut world = World::at(500);
        (0..3).for_each(|_| world.sweep(1, preimage(50_000), Some(540)));
        world.rates = rates_of(8_000);
        world.accept(&world.plan());
        let before = world.spends.values().next().unwrap().feerate();
        // One is spent in a block by a rival, so the batch is out of the mempool; and fees have fallen.
        let lost = world.outpoints()[1];
        world.spent.insert(lost);
        world.forget_mempool();
        world.rates = rates_of(300);
        let plan = world.plan();
        let [sweep] = sweeps(&plan)[..] else { panic!("{plan:?}") };
        assert_eq!(sweep.inputs.len(), 2);
        assert!(sweep.inputs.iter().all(|input| input.claim.outpoint != lost));
        let weight = world.weight_of(sweep);
        assert!(price::feerate(sweep.fee, weight) >= before, "{:?} for {weight}", sweep.fee);
    }

    #[test]
    fn the_rest_of_a_batch_that_cannot_pay_its_feerate_bids_all_it_has() {
        let mut world = World::at(500);
        world.sweep(1, preimage(50_000), Some(540));
        world.sweep(1, preimage(2_000), Some(540));
        world.rates = rates_of(4_000);
        world.accept(&world.plan());
        world.spent.insert(world.outpoints()[0]);
        world.forget_mempool();
        let plan = world.plan();
        let [sweep] = sweeps(&plan)[..] else { panic!("{plan:?}") };
        assert_eq!((sweep.inputs.len(), sweep.fee), (1, Sat(2_000 - 330)));
    }

    #[test]
    fn htlc_transactions_of_one_kind_and_deadline_share_the_wallets_fee() {
        let mut world = World::at(500);
        world.local_commitment(1, 3, 540);
        let plan = world.plan();
        let [success, timeouts] = htlc_txs(&plan)[..] else { panic!("{plan:?}") };
        assert_eq!((success.claims.len(), timeouts.claims.len()), (3, 3));
        for wanted in [success, timeouts] {
            let kinds: BTreeSet<bool> = wanted.claims.iter().map(|claim| claim.preimage.is_some()).collect();
            assert_eq!(kinds.len(), 1);
            assert!(wanted.fee_max < Sat(3 * 50_000));
        }
    }
}

mod fees {
    use super::*;

    #[test]
    fn what_pays_enough_is_kept() {
        let mut world = World::at(500);
        world.sweep(1, to_remote(100_000), None);
        world.accept(&world.plan());
        assert!(matches!(world.plan().txs[..], [Wanted::Keep(_)]));
        // A little more is not worth a replacement.
        world.rates = rates_of(1_150);
        assert!(matches!(world.plan().txs[..], [Wanted::Keep(_)]));
        // Nor is less a reason for one.
        world.rates = rates_of(300);
        assert!(matches!(world.plan().txs[..], [Wanted::Keep(_)]));
    }

    #[test]
    fn a_sweep_is_replaced_with_the_same_inputs_and_destination_when_fees_rise() {
        let mut world = World::at(500);
        world.sweep(1, to_remote(100_000), None);
        world.accept(&world.plan());
        let before = world.spends.values().next().unwrap().clone();
        // Something new does not join what is under way.
        world.sweep(1, delayed(100_000), None);
        world.rates = rates_of(2_000);
        let plan = world.plan();
        let [replacement, new] = sweeps(&plan)[..] else { panic!("{plan:?}") };
        assert_eq!(replacement.destination, before.destination);
        assert_eq!((replacement.inputs.len(), new.inputs.len()), (1, 1));
        assert!(replacement.fee >= Sat(before.fee.0 + FeeratePerKw::FLOOR.fee_ceil(before.weight).0));
        assert_eq!(new.destination, None);
    }

    #[test]
    fn rise_with_every_block_before_the_deadline() {
        let mut world = World::at(500);
        world.sweep(1, preimage(1_000_000), Some(540));
        let mut paid = Sat::ZERO;
        let mut replacements = 0;
        for height in 500..=545 {
            world.tip = BlockHeight(height);
            let plan = world.plan();
            if let [sweep] = sweeps(&plan)[..] {
                assert!(sweep.fee > paid, "at {height}");
                paid = sweep.fee;
                replacements += 1;
            }
            world.accept(&plan);
        }
        assert!(replacements > 5, "{replacements}");
    }

    #[test]
    fn never_more_than_is_at_stake() {
        let mut world = World::at(545);
        world.sweep(1, preimage(2_000), Some(540));
        world.rates = rates_of(20_000);
        let plan = world.plan();
        let [sweep] = sweeps(&plan)[..] else { panic!("{plan:?}") };
        assert_eq!(sweep.fee, Sat(2_000 - 330), "all of it, since the peer would get it otherwise");
        world.accept(&plan);
        assert!(matches!(world.plan().txs[..], [Wanted::Keep(_)]), "and it stays there");
    }

    #[test]
    fn a_refusal_as_too_low_raises_the_next_bid() {
        let mut world = World::at(500);
        world.sweep(1, preimage(100_000), Some(540));
        let first = sweeps(&world.plan())[0].fee;
        let outpoint = world.outpoints()[0];
        world.refused.insert(outpoint, 1);
        let second = sweeps(&world.plan())[0].fee;
        world.refused.insert(outpoint, 2);
        let third = sweeps(&world.plan())[0].fee;
        assert!(first < second && second < third, "{first} {second} {third}");
    }

    #[test]
    fn what_rests_on_the_replaced_one_is_outbid_too() {
        let mut world = World::at(500);
        world.sweep(1, to_remote(1_000_000), None);
        world.accept(&world.plan());
        let outpoint = world.outpoints()[0];
        let mut spending = (*world.spends[&outpoint]).clone();
        spending.to_replace = Sat(50_000);
        world.spends.insert(outpoint, Arc::new(spending));
        world.rates = rates_of(2_000);
        assert!(sweeps(&world.plan())[0].fee > Sat(50_000));
    }
}

mod dust {
    use super::*;

    #[test]
    fn waits_for_lower_fees_and_says_so() {
        let mut world = World::at(500);
        world.sweep(1, delayed(900), None);
        world.sweep(1, delayed(90_000), None);
        world.rates = rates_of(5_000);
        let plan = world.plan();
        assert_eq!(sweeps(&plan)[0].inputs.len(), 1);
        let [(outpoint, reason)] = &plan.waits[..] else { panic!("{plan:?}") };
        assert_eq!(*outpoint, world.outpoints()[0]);
        assert!(reason.contains("900 sat") && reason.contains("waits"), "{reason}");
        world.rates = rates_of(253);
        assert_eq!(world.plan().waits, []);
    }

    #[test]
    fn an_htlc_that_cannot_pay_for_itself_waits_and_holds_up_no_other() {
        let mut world = World::at(500);
        world.sweep(1, preimage(400), Some(540));
        world.sweep(1, preimage(90_000), Some(540));
        let plan = world.plan();
        assert_eq!(sweeps(&plan).len(), 1);
        assert_eq!(sweeps(&plan)[0].inputs.len(), 1);
        assert_eq!(plan.waits.len(), 1);
        assert!(plan.waits[0].1.contains("no more than 70 sat"), "{}", plan.waits[0].1);
    }
}

mod spent_in_a_block {
    use super::*;

    #[test]
    fn is_left_out() {
        let mut world = World::at(500);
        world.sweep(1, to_remote(100_000), None);
        world.spent.extend(world.outpoints());
        assert_eq!(world.plan(), Plan::default());
    }
}

mod child {
    use super::*;

    #[test]
    fn none_for_a_commitment_that_pays_enough() {
        let mut world = World::at(500);
        world.commitment(1, 1_000, None);
        let plan = world.plan();
        assert_eq!((plan.txs.len(), plan.not_needed.len()), (0, 1));
    }

    #[test]
    fn one_for_a_commitment_that_pays_too_little() {
        let mut world = World::at(500);
        world.commitment(1, 253, None);
        let plan = world.plan();
        let [child] = children(&plan)[..] else { panic!("{plan:?}") };
        assert!(child.feerate >= FeeratePerKw(1_000) && child.feerate < FeeratePerKw(1_100), "{:?}", child.feerate);
        world.accept(&plan);
        assert!(matches!(world.plan().txs[..], [Wanted::Keep(_)]));
    }

    #[test]
    fn one_for_each_commitment_alone() {
        let mut world = World::at(500);
        (1..=3).for_each(|channel| world.commitment(channel, 253, None));
        world.sweep(4, to_remote(100_000), None);
        let plan = world.plan();
        assert_eq!((children(&plan).len(), sweeps(&plan).len()), (3, 1));
    }

    #[test]
    fn as_a_deadline_nears_even_if_it_pays_what_is_usual() {
        let mut world = World::at(500);
        world.commitment(1, 1_000, Some(540));
        assert!(children(&world.plan()).is_empty());
        world.tip = BlockHeight(537);
        let plan = world.plan();
        let first = children(&plan)[0].feerate;
        assert!(first > FeeratePerKw(2_000), "{first}");
        world.accept(&plan);
        world.tip = BlockHeight(539);
        let plan = world.plan();
        let second = children(&plan)[0];
        assert!(second.feerate > first && second.replaces.is_some(), "{:?}", second.feerate);
    }

    #[test]
    fn never_for_more_than_hangs_on_it() {
        let mut world = World::at(545);
        world.commitment(1, 253, Some(540));
        world.rates = rates_of(60_000);
        let at_stake = world.claims.values().next().unwrap().parent.as_ref().unwrap().at_stake;
        let plan = world.plan();
        let [child] = children(&plan)[..] else { panic!("{plan:?}") };
        assert_eq!(child.fee_max, at_stake);
        world.accept(&plan);
        let fee = world.spends.values().next().unwrap().fee;
        assert!(fee <= at_stake && fee.0 > at_stake.0 - 100, "{fee}: all that hangs on it, as fees would take more");
    }

    #[test]
    fn none_once_the_funding_output_is_spent_in_a_block() {
        let mut world = World::at(500);
        world.commitment(1, 253, None);
        let funding = world.claims.values().next().unwrap().parent.as_ref().unwrap().parent.input[0].previous_output;
        world.spent.insert(funding);
        let plan = world.plan();
        assert!(plan.txs.is_empty() && plan.not_needed.len() == 1);
    }
}

#[test]
fn the_order_of_channels_and_outputs_changes_nothing() {
    let mut world = World::at(500);
    (0..4).for_each(|_| world.sweep(1, preimage(50_000), Some(540)));
    world.commitment(2, 253, None);
    assert_eq!(world.plan(), world.plan());
    assert_eq!(rates(), rates_of(1_000));
}

#[test]
fn nothing_for_nothing() {
    let (claims, spends, none, refused) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
    let situation = Situation {
        tip: BlockHeight(1),
        rates: rates(),
        claims: &claims,
        spends: &spends,
        spent: &none,
        refused: &refused,
    };
    assert_eq!(plan(&situation), Plan::default());
}
