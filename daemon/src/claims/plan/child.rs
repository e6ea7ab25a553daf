//! Whether a commitment needs a child, and what both together should pay.

use std::sync::Arc;

use bitcoin::{ScriptBuf, Weight};
use millrace_channel::phase::on_chain::Cpfp;
use millrace_channel::tx::weight;
use millrace_wire::{ChannelId, FeeratePerKw, Sat};

use super::group::COIN_WEIGHT;
use super::price::{Bid, Price, WORTH_PERCENT_CONTESTED, feerate, feerate_for};
use super::{ChildWanted, Plan, Situation, Spending, Wanted};

/// What a commitment should pay with its child, and what the child may cost.
struct Budget {
    rate: FeeratePerKw,
    fee_max: Sat,
}

/// Decides about the child of one commitment.
pub(super) fn decide(situation: &Situation<'_>, channel_id: ChannelId, keys_index: u64, cpfp: &Cpfp, plan: &mut Plan) {
    let anchor = cpfp.anchor.outpoint;
    let is_decided = cpfp.parent.input.iter().any(|input| situation.spent.contains(&input.previous_output));
    if is_decided {
        return plan.not_needed.push(anchor);
    }
    let spending = situation.spends.get(&anchor);
    let existing = spending.filter(|spending| !spending.is_stuck);
    let stuck: Vec<Arc<Spending>> = spending.filter(|spending| spending.is_stuck).cloned().into_iter().collect();
    let child_weight = child_weight(cpfp);
    let together = child_weight + cpfp.parent.weight();
    let budget = budget(situation, cpfp, together);
    if spending.is_none() && budget.rate <= feerate(cpfp.parent_fee, cpfp.parent.weight()) {
        return plan.not_needed.push(anchor);
    }
    let bid = Bid {
        rate: budget.rate,
        minimum: situation.rates.minimum(),
        weight: together,
        paid: cpfp.parent_fee,
        own_weight: child_weight,
        fee_max: budget.fee_max,
        existing,
        others: &stuck,
        refused: situation.refused.get(&anchor).copied().unwrap_or(0),
        worth_percent: WORTH_PERCENT_CONTESTED,
        bids_all: true,
    };
    match (bid.price(), existing) {
        (Price::Keep, Some(existing)) => plan.txs.push(Wanted::Keep(Arc::clone(existing))),
        (Price::Keep, None) => unreachable!("there is nothing to keep"),
        (Price::Pay(fee), _) => plan.txs.push(Wanted::Child(Box::new(ChildWanted {
            channel_id,
            keys_index,
            cpfp: cpfp.clone(),
            feerate: feerate_for(sum(fee, cpfp.parent_fee), together, sum(budget.fee_max, cpfp.parent_fee)),
            fee_max: budget.fee_max,
            replaces: existing
                .filter(|existing| existing.is_in_mempool && existing.is_ours)
                .map(|spending| spending.txid),
        }))),
        (Price::TooMuch(fee), _) => {
            let reason = format!(
                "a child for the commitment would cost {fee}, and no more than {} are spent on it",
                budget.fee_max
            );
            plan.waits.push((anchor, reason));
        }
    }
}

/// Without a deadline, what gets it confirmed in a day, for half of what is ours in it; with one, what its distance
/// demands, for what hangs on it.
fn budget(situation: &Situation<'_>, cpfp: &Cpfp, together: Weight) -> Budget {
    let calm_max = Sat(sum(cpfp.at_stake, cpfp.balance).0 / 2);
    let affordable = |fee: Sat| feerate(sum(fee, cpfp.parent_fee), together);
    let calm = situation.rates.calm().min(affordable(calm_max)).max(situation.rates.minimum());
    let Some(deadline) = cpfp.deadline else {
        return Budget { rate: calm, fee_max: calm_max };
    };
    let urgent = situation.rates.urgent(deadline, situation.tip).min(affordable(cpfp.at_stake));
    Budget { rate: urgent.max(calm), fee_max: if urgent > calm { cpfp.at_stake } else { calm_max.max(cpfp.at_stake) } }
}

/// Its anchor, one coin of the wallet's, and change.
fn child_weight(cpfp: &Cpfp) -> Weight {
    let script = ScriptBuf::from_bytes(vec![0; 34]);
    weight::spend_weight([cpfp.anchor.weight, COIN_WEIGHT].into_iter(), [script.as_script()].into_iter())
}

fn sum(one: Sat, other: Sat) -> Sat {
    one.checked_add(other).unwrap_or(Sat(u64::MAX))
}
