//! What a transaction should bid for its inputs: enough, more than what it replaces, never more than is at stake.

use std::sync::Arc;

use bitcoin::Weight;
use millrace_wire::{FeeratePerKw, Sat};

use super::Spending;
use crate::claims::rates::FEERATE_MAX;

/// What a replacement pays for its own weight on top of what it replaces (BIP 125, rule 4, by bitcoind's default).
const INCREMENTAL: FeeratePerKw = FeeratePerKw::FLOOR;
/// A replacement is worth its trouble from so many percent more on.
pub(super) const WORTH_PERCENT_CONTESTED: u64 = 110;
/// And where nobody else can take the output.
pub(super) const WORTH_PERCENT_FREE: u64 = 125;
/// Refusals beyond these add no more.
const REFUSALS_MAX: u32 = 30;

/// All that decides about a bid.
pub(super) struct Bid<'a> {
    /// What should be paid now.
    pub(super) rate: FeeratePerKw,
    /// The least that the mempool takes.
    pub(super) minimum: FeeratePerKw,
    /// The most that the transaction weighs, with what it pays for.
    pub(super) weight: Weight,
    /// What else pays for that weight: a parent's own fee.
    pub(super) paid: Sat,
    /// The weight that a replacement pays for: without the parent's.
    pub(super) own_weight: Weight,
    /// The most that may be paid.
    pub(super) fee_max: Sat,
    /// The transaction of ours that has exactly these inputs.
    pub(super) existing: Option<&'a Arc<Spending>>,
    /// Others that spend some of them, or did.
    pub(super) others: &'a [Arc<Spending>],
    /// How often bids were refused as too low.
    pub(super) refused: u32,
    /// From so many percent more on a replacement is worth it.
    pub(super) worth_percent: u64,
    /// Whether to bid all that is at stake rather than not at all.
    pub(super) bids_all: bool,
}

/// What to do.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Price {
    /// Leave the existing one as it is.
    Keep,
    /// Make one that pays this fee.
    Pay(Sat),
    /// Nothing can be done for what is at stake: it would take this fee.
    TooMuch(Sat),
}

impl Bid<'_> {
    pub(super) fn price(&self) -> Price {
        let existing = self.existing.filter(|existing| existing.is_ours);
        if let Some(existing) = existing
            && self.is_enough(existing)
            && (self.refused == 0 || existing.is_in_mempool)
        {
            return Price::Keep;
        }
        let fee = self.fee();
        let is_bid = |fee: &Sat| existing.is_none_or(|existing| *fee > existing.fee);
        if fee <= self.fee_max {
            return if is_bid(&fee) { Price::Pay(fee) } else { Price::Keep };
        }
        let least = self.minimum.fee_ceil(self.weight).saturating_sub(self.paid).max(self.to_outbid());
        if self.bids_all && least <= self.fee_max && is_bid(&self.fee_max) {
            return Price::Pay(self.fee_max);
        }
        match existing {
            Some(existing) if existing.fee <= self.fee_max => Price::Keep,
            _ => Price::TooMuch(fee),
        }
    }

    /// One that the mempool has thrown out for its fee is not: its minimum has risen.
    fn is_enough(&self, existing: &Spending) -> bool {
        let weight = existing.weight + self.weight - self.own_weight;
        let present = feerate(add(existing.fee, self.paid), weight);
        let is_above = existing.is_in_mempool || present >= self.minimum;
        is_above && u64::from(self.rate.0) * 100 < u64::from(present.0) * self.worth_percent
    }

    /// What should be paid, and more than was paid before.
    fn fee(&self) -> Sat {
        let wanted = self.rate.fee_ceil(self.weight).saturating_sub(self.paid);
        let wanted = raised(wanted, self.refused);
        let before = self.existing.into_iter().chain(self.others);
        let never_less = before.map(|spending| spending.feerate().fee_ceil(self.own_weight)).max();
        wanted.max(never_less.unwrap_or(Sat::ZERO)).max(self.to_outbid())
    }

    /// What the mempool demands of a replacement: more than all that goes, at a higher feerate than each.
    fn to_outbid(&self) -> Sat {
        let present = || self.existing.into_iter().chain(self.others).filter(|spending| spending.is_in_mempool);
        let Some(highest) = present().map(|spending| spending.feerate()).max() else { return Sat::ZERO };
        let gone: Sat = present().map(|spending| spending.to_replace).sum();
        let step = INCREMENTAL.fee_ceil(self.own_weight);
        let steps = step.checked_mul(u64::from(self.refused.min(REFUSALS_MAX)) + 1).unwrap_or(Sat(u64::MAX));
        let higher = FeeratePerKw(highest.0.saturating_add(1)).fee_ceil(self.own_weight);
        add(gone, steps).max(higher)
    }
}

/// What so much for so heavy a transaction makes, rounded down.
pub(super) fn feerate(fee: Sat, weight: Weight) -> FeeratePerKw {
    let rate = u128::from(fee.0) * 1000 / u128::from(weight.to_wu().max(1));
    FeeratePerKw(u32::try_from(rate).unwrap_or(u32::MAX))
}

/// The same, rounded up.
fn feerate_ceil(fee: Sat, weight: Weight) -> FeeratePerKw {
    let rate = (u128::from(fee.0) * 1000).div_ceil(u128::from(weight.to_wu().max(1)));
    FeeratePerKw(u32::try_from(rate).unwrap_or(u32::MAX))
}

/// The rate to ask for, so that the fee is reached, and the most that may be paid is not passed by rounding.
pub(super) fn feerate_for(fee: Sat, weight: Weight, fee_max: Sat) -> FeeratePerKw {
    let up = feerate_ceil(fee, weight);
    let rate = if up.fee_ceil(weight) <= fee_max { up } else { feerate(fee, weight) };
    rate.max(FeeratePerKw::FLOOR).min(FEERATE_MAX)
}

/// A tenth more for each refusal.
fn raised(fee: Sat, refused: u32) -> Sat {
    let tenths = u128::from(refused.min(REFUSALS_MAX)) + 10;
    Sat(u64::try_from(u128::from(fee.0) * tenths / 10).unwrap_or(u64::MAX))
}

fn add(one: Sat, other: Sat) -> Sat {
    one.checked_add(other).unwrap_or(Sat(u64::MAX))
}
