//! Whatever the claims, fees, rivals and losses: nothing is mixed, forgotten, paid for too dearly, or bid for less.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{OutPoint, Weight};
use millrace_channel::tx::ClaimKind;
use millrace_wire::{BlockHeight, Sat};
use proptest::prelude::*;
use secp256k1::rand::rngs::StdRng;
use secp256k1::rand::{Rng, SeedableRng};

use super::fixture::{World, delayed, penalty, preimage, rates_of, timeout, to_remote};
use crate::claims::plan::{Plan, Wanted};

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn holds_through_any_story(seed in any::<u64>()) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut world = World::at(500);
        let mut bids: BTreeMap<OutPoint, u64> = BTreeMap::new();
        for _ in 0..12 {
            happens(&mut world, &mut rng);
            let plan = world.plan();
            check_whole(&world, &plan);
            for wanted in &plan.txs {
                check_like(wanted);
                check_bounded(wanted);
                check_monotone(&world, wanted, &mut bids);
                if rng.gen_bool(0.8) {
                    world.accept_one(wanted);
                }
            }
        }
    }
}

fn happens(world: &mut World, rng: &mut StdRng) {
    for _ in 0..rng.gen_range(0..5) {
        let channel = rng.gen_range(1..4);
        let value = 10_u64.pow(rng.gen_range(2..7)) * rng.gen_range(3..30);
        let deadline = rng.gen_range(50..60) * 10;
        match rng.gen_range(0..6) {
            0 => world.sweep(channel, to_remote(value), None),
            1 => world.sweep(channel, delayed(value), None),
            2 => world.sweep(channel, preimage(value), Some(deadline)),
            3 => world.sweep(channel, timeout(value, deadline - 20), None),
            4 => world.sweep(channel, penalty(value, rng.gen_bool(0.5)), Some(deadline)),
            _ => world.local_commitment(channel, 1, deadline),
        }
    }
    if rng.gen_bool(0.2) {
        world.commitment(rng.gen_range(5..8), 253, rng.gen_bool(0.5).then_some(560));
    }
    world.tip = BlockHeight(world.tip.0 + rng.gen_range(0..10));
    world.rates = rates_of(rng.gen_range(253..30_000));
    let outpoints = world.outpoints();
    if let Some(outpoint) = outpoints.get(rng.gen_range(0..100)).copied() {
        match rng.gen_range(0..4) {
            0 => {
                let fee = Sat(rng.gen_range(200..20_000));
                // What he replaces is gone.
                world.forget_mempool();
                world.rival(outpoint, fee, Weight::from_wu(600));
            }
            1 => {
                world.spent.insert(outpoint);
                world.forget_mempool();
            }
            2 => *world.refused.entry(outpoint).or_default() += 1,
            _ => world.forget_mempool(),
        }
    }
}

fn outpoints_of(wanted: &Wanted) -> Vec<OutPoint> {
    match wanted {
        Wanted::Keep(spending) => spending.claims.clone(),
        Wanted::Sweep(sweep) => sweep.inputs.iter().map(|input| input.claim.outpoint).collect(),
        Wanted::HtlcTx(tx) => tx.claims.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output).collect(),
        Wanted::Child(child) => vec![child.cpfp.anchor.outpoint],
    }
}

/// Every output is in exactly one transaction, or is said to wait.
fn check_whole(world: &World, plan: &Plan) {
    let mut seen: BTreeSet<OutPoint> = BTreeSet::new();
    let in_txs = plan.txs.iter().flat_map(outpoints_of);
    for outpoint in
        in_txs.chain(plan.waits.iter().map(|(outpoint, _)| *outpoint)).chain(plan.not_needed.iter().copied())
    {
        assert!(seen.insert(outpoint), "{outpoint} is planned for twice");
    }
    for claims in world.claims.values() {
        let sweeps = claims.sweeps.iter().map(|sweep| sweep.claim.outpoint);
        let htlc_txs = claims.htlc_txs.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output);
        let anchor = claims.parent.iter().map(|cpfp| cpfp.anchor.outpoint);
        for outpoint in sweeps.chain(htlc_txs).chain(anchor) {
            assert!(seen.contains(&outpoint) != world.spent.contains(&outpoint), "{outpoint} is forgotten, or spent");
        }
    }
}

/// Nothing contested goes with anything but its like.
fn check_like(wanted: &Wanted) {
    match wanted {
        Wanted::Keep(_) | Wanted::Child(_) => {}
        Wanted::Sweep(sweep) => {
            let likes: BTreeSet<_> = sweep
                .inputs
                .iter()
                .map(|input| match input.claim.kind {
                    ClaimKind::Delayed { .. } | ClaimKind::ToRemote => None,
                    ClaimKind::HtlcPreimage { .. } => Some((input.channel_id, false)),
                    ClaimKind::HtlcTimeout { .. } => Some((input.channel_id, true)),
                    ClaimKind::Penalty { is_htlc, .. } => Some((input.channel_id, is_htlc)),
                    ClaimKind::Anchor => panic!("an anchor in a sweep"),
                })
                .collect();
            assert_eq!(likes.len(), 1, "{sweep:?}");
        }
        Wanted::HtlcTx(tx) => {
            let kind = |claim: &millrace_channel::phase::on_chain::HtlcTxClaim| {
                (claim.htlc_tx.htlc.cltv_expiry, claim.preimage.is_some())
            };
            let likes: BTreeSet<_> = tx.claims.iter().map(kind).collect();
            assert_eq!(likes.len(), 1, "{tx:?}");
        }
    }
}

fn check_bounded(wanted: &Wanted) {
    match wanted {
        Wanted::Keep(_) => {}
        Wanted::Sweep(sweep) => {
            let value: u64 = sweep.inputs.iter().map(|input| input.claim.output.value.to_sat()).sum();
            assert!(sweep.fee.0 + 330 <= value, "{} of {value}", sweep.fee);
        }
        Wanted::HtlcTx(tx) => {
            let value: u64 = tx.claims.iter().map(|claim| claim.htlc_tx.prevout.value.to_sat()).sum();
            assert!(tx.fee_max.0 < value);
        }
        Wanted::Child(child) => {
            let cpfp = &child.cpfp;
            assert!(child.fee_max.0 <= cpfp.at_stake.0.max((cpfp.at_stake.0 + cpfp.balance.0) / 2));
        }
    }
}

/// While something is bid for an output, the next bid has no lower feerate; unless what is left of a batch cannot pay
/// that much: then it bids all that it has.
fn check_monotone(world: &World, wanted: &Wanted, bids: &mut BTreeMap<OutPoint, u64>) {
    let Wanted::Sweep(sweep) = wanted else { return };
    let rate = sweep.fee.0 * 1000 / world.weight_of(sweep).to_wu();
    for input in &sweep.inputs {
        let outpoint = input.claim.outpoint;
        if let Some(spending) = world.spends.get(&outpoint) {
            let before = bids.get(&outpoint).copied().unwrap_or(0).min(spending.fee.0 * 1000 / spending.weight.to_wu());
            let value: u64 = sweep.inputs.iter().map(|input| input.claim.output.value.to_sat()).sum();
            let is_all = sweep.fee.0 + 330 == value && spending.claims.len() != sweep.inputs.len();
            assert!(rate >= before || is_all, "{rate} after {before} for {outpoint}");
        }
        bids.insert(outpoint, rate);
    }
}
