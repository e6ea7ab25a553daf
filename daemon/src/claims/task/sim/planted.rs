//! Bugs put into the plan on purpose: each must be caught, and by the rule that forbids it.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::OutPoint;
use millrace_wire::{BlockHeight, Sat};

use super::story::play;
use crate::claims::plan::{Plan, Situation, Wanted, plan};
use crate::claims::task::Planner;

/// The bug is caught `times` times within `seeds` seeds, each time by one of the `signs`.
fn assert_caught(planner: Planner, times: usize, seeds: u64, signs: &[&str]) {
    let mut caught = 0;
    for seed in 0..seeds {
        if let Some(violation) = play(seed, planner).violation {
            assert!(signs.iter().any(|sign| violation.contains(sign)), "caught by another rule: {violation}");
            caught += 1;
        }
        if caught == times {
            return;
        }
    }
    panic!("it was caught {caught} times in {seeds} seeds, not {times} times");
}

fn outpoints_of(wanted: &Wanted) -> Vec<OutPoint> {
    match wanted {
        Wanted::Keep(spending) => spending.claims.clone(),
        Wanted::Sweep(sweep) => sweep.inputs.iter().map(|input| input.claim.outpoint).collect(),
        Wanted::HtlcTx(tx) => tx.claims.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output).collect(),
        Wanted::Child(child) => vec![child.cpfp.anchor.outpoint],
    }
}

/// Sweeps what anybody may take together with what nobody else can.
#[test]
fn contested_and_uncontested_in_one() {
    fn mixing(situation: &Situation<'_>) -> Plan {
        let mut plan = plan(situation);
        let mut whole: Option<usize> = None;
        for at in (0..plan.txs.len()).rev() {
            if !matches!(plan.txs[at], Wanted::Sweep(_)) {
                continue;
            }
            if let Some(into) = whole {
                let Wanted::Sweep(from) = plan.txs[into].clone() else { unreachable!("only sweeps are noted") };
                let Wanted::Sweep(sweep) = &mut plan.txs[at] else { unreachable!("it was just looked at") };
                sweep.inputs.extend(from.inputs);
                sweep.fee = Sat(sweep.fee.0 + from.fee.0);
                plan.txs.remove(into);
            }
            whole = Some(at);
        }
        plan
    }
    assert_caught(mixing, 1, 40, &["mixed:"]);
}

#[test]
fn a_deadline_that_is_not_looked_at() {
    fn timeless(situation: &Situation<'_>) -> Plan {
        plan(&Situation { tip: BlockHeight(0), ..*situation })
    }
    assert_caught(timeless, 1, 40, &["late:", "batched:", "forgotten:"]);
}

#[test]
fn what_is_refused_is_given_up() {
    fn discouraged(situation: &Situation<'_>) -> Plan {
        let mut plan = plan(situation);
        let is_lost = |outpoint: &OutPoint| {
            situation.spends.get(outpoint).is_some_and(|spending| spending.is_ours && !spending.is_in_mempool)
        };
        plan.txs.retain(|wanted| !outpoints_of(wanted).iter().any(is_lost));
        plan
    }
    // What was made is sent again by the broadcaster all the same; what is stuck, or pays too little by now, is lost.
    assert_caught(discouraged, 1, 40, &["forgotten:", "not helped", "no commitment", "not closed"]);
}

#[test]
fn a_bid_that_is_never_raised() {
    fn stubborn(situation: &Situation<'_>) -> Plan {
        let mut plan = plan(situation);
        for wanted in &mut plan.txs {
            let existing = outpoints_of(wanted).iter().find_map(|outpoint| situation.spends.get(outpoint)).cloned();
            if let Some(existing) = existing.filter(|existing| existing.is_ours) {
                *wanted = Wanted::Keep(existing);
            }
        }
        plan
    }
    assert_caught(stubborn, 1, 40, &["late:", "forgotten:", "not helped", "no commitment", "not closed"]);
}

#[test]
fn a_bid_that_begins_anew() {
    fn forgetful(situation: &Situation<'_>) -> Plan {
        let mut spends = situation.spends.clone();
        spends.retain(|_, spending| spending.is_in_mempool);
        plan(&Situation { spends: &spends, ..*situation })
    }
    assert_caught(forgetful, 1, 40, &["bid:", "forgotten:"]);
}

#[test]
fn more_than_is_at_stake() {
    fn spendthrift(situation: &Situation<'_>) -> Plan {
        let mut plan = plan(situation);
        for wanted in &mut plan.txs {
            if let Wanted::Sweep(sweep) = wanted {
                let value: u64 = sweep.inputs.iter().map(|input| input.claim.output.value.to_sat()).sum();
                sweep.fee = Sat(value - 400);
            }
        }
        plan
    }
    assert_caught(spendthrift, 1, 40, &["budget:"]);
}

#[test]
fn a_child_of_ours_while_the_mempool_has_theirs() {
    fn narrow(situation: &Situation<'_>) -> Plan {
        let ours = |claims: &millrace_channel::phase::on_chain::Claims| claims.parent.clone();
        let helped: BTreeMap<_, _> =
            situation.claims.iter().filter_map(|(id, claims)| ours(claims).map(|cpfp| (*id, cpfp))).collect();
        plan(&Situation { helped: &helped, ..*situation })
    }
    assert_caught(narrow, 1, 40, &["not helped", "not closed"]);
}

#[test]
fn a_transaction_that_can_never_be_taken_is_kept() {
    fn hopeful(situation: &Situation<'_>) -> Plan {
        let spends = situation.spends.iter().map(|(outpoint, spending)| {
            let spending = crate::claims::plan::Spending { is_stuck: false, ..(**spending).clone() };
            (*outpoint, std::sync::Arc::new(spending))
        });
        let (spends, nothing) = (spends.collect(), BTreeSet::new());
        plan(&Situation { spends: &spends, alone: &nothing, ..*situation })
    }
    assert_caught(hopeful, 1, 40, &["forgotten:", "not helped", "no commitment", "not closed"]);
}
