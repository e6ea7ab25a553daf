//! Which step of the ladder of fees the penalty from a blob is broadcast at: a pure function of height, feerates and what
//! was broadcast before.
//!
//! The lowest step that suffices by the estimate for the blocks that are left; in the last blocks one step after the other up
//! to the top, whatever the estimates say, and whether or not this tower has lived all the while. What was bid is never bid for
//! less.

use std::collections::BTreeMap;

use bitcoin::Txid;
use millrace_wire::{BlockHeight, Sat};

use crate::plan::{Bid, INCREMENT, NEAR_BLOCKS, Rates, SPLIT_BLOCKS};
use crate::sealed::LADDER;
use crate::vault::Loot;

/// With so few blocks left, the top is taken at once.
const LAST_BLOCKS: u32 = 2;

/// The step for an output that is in block `begun`, and that somebody else may take from `deadline` on.
#[must_use]
pub fn step(begun: BlockHeight, deadline: BlockHeight, tip: BlockHeight, rates: &Rates) -> usize {
    let top = LADDER.len() - 1;
    let left = deadline.0.saturating_sub(tip.0);
    if left <= LAST_BLOCKS {
        return top;
    }
    let wanted = rates.urgent(left);
    let by_rate = LADDER.iter().position(|rate| *rate >= wanted).unwrap_or(top);
    let begin = deadline.0.saturating_sub(SPLIT_BLOCKS).max(begun.0);
    let whole = deadline.0.saturating_sub(begin).max(NEAR_BLOCKS) as usize;
    let gone = tip.0.saturating_sub(begin) as usize;
    let by_time = (gone * LADDER.len() / whole).min(top);
    by_rate.max(by_time)
}

/// The penalties that should be made now, among those that could be for what was caught.
#[must_use]
pub fn bids(loot: &[Loot], tip: BlockHeight, rates: &Rates, bids: &BTreeMap<Txid, Bid>) -> Vec<Bid> {
    loot.iter()
        .filter_map(|loot| {
            let outpoint = loot.outpoint();
            let before = bids.values().filter(|bid| bid.inputs().any(|input| input == outpoint));
            let paid = before.map(|bid| bid.fee).max();
            let step = step(loot.height, loot.deadline(), tip, rates);
            let Some(paid) = paid else { return bid(loot, step) };
            // At the end of its value, or after a restart, a higher step may pay hardly more: it would not replace anything.
            let wanted = bid(loot, step).filter(|wanted| wanted.fee > paid)?;
            let least = Sat(paid.0.saturating_add(INCREMENT.fee_ceil(wanted.weight).0));
            (step..LADDER.len()).filter_map(|step| bid(loot, step)).find(|bid| bid.fee >= least)
        })
        .collect()
}

fn bid(loot: &Loot, step: usize) -> Option<Bid> {
    let tx = loot.opened.penalty(step)?;
    let paid_out: Sat = tx.output.iter().map(|output| Sat::from(output.value)).sum();
    let (fee, weight) = (loot.opened.value.checked_sub(paid_out)?, tx.weight());
    Some(Bid { tx, fee, weight })
}

#[cfg(test)]
mod tests;
