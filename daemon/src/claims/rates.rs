//! What a claim should pay, by its deadline.
//!
//! Far from the deadline bitcoind's estimate for that many blocks counts. Close to it the estimate has been wrong
//! already: each block adds half of the next block's estimate.

use millrace_chain::fees::{FeeEstimates, SatPerKw, TARGETS};
use millrace_wire::{BlockHeight, FeeratePerKw};

/// Without a deadline: a day.
const CALM_BLOCKS: u32 = 144;
/// From so many blocks before the deadline on, each block adds to the estimate.
pub(super) const NEAR_BLOCKS: u32 = 6;
/// A deadline that is so many blocks past is as near as one that is now: a channel gives its peer some blocks of grace
/// before it closes over an HTLC that has expired.
const GRACE_BLOCKS: u32 = 2;
/// The most that is added: three times the next block's estimate.
const STEPS_MAX: u32 = 6;
/// 1,000 sat/vB: nothing pays more (the wallet refuses it).
pub(super) const FEERATE_MAX: FeeratePerKw = FeeratePerKw(250_000);

/// bitcoind's estimates at one moment, as the plan needs them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rates {
    by_target: [(u32, FeeratePerKw); TARGETS.len()],
    minimum: FeeratePerKw,
}

impl From<&FeeEstimates> for Rates {
    fn from(estimates: &FeeEstimates) -> Self {
        let rate = |rate: SatPerKw| FeeratePerKw(rate.0);
        Self::new(
            TARGETS.map(|target| rate(estimates.within(u32::from(target)))),
            rate(estimates.mempool_minimum().max(estimates.relay_minimum())),
        )
    }
}

impl Rates {
    /// From the estimates for `TARGETS`, and the least that the mempool takes.
    #[must_use]
    pub fn new(by_target: [FeeratePerKw; TARGETS.len()], minimum: FeeratePerKw) -> Self {
        let mut index = 0;
        let minimum = with_margin(minimum).max(FeeratePerKw::FLOOR).min(FEERATE_MAX);
        let by_target = by_target.map(|rate| {
            let target = u32::from(TARGETS[index]);
            index += 1;
            (target, rate.max(minimum).min(FEERATE_MAX))
        });
        Self { by_target, minimum }
    }

    /// The least that the mempool takes.
    #[must_use]
    pub const fn minimum(&self) -> FeeratePerKw {
        self.minimum
    }

    /// For what nobody else can take.
    #[must_use]
    pub fn calm(&self) -> FeeratePerKw {
        self.within(CALM_BLOCKS)
    }

    /// For what somebody else may take from this height on.
    #[must_use]
    pub fn urgent(&self, deadline: BlockHeight, tip: BlockHeight) -> FeeratePerKw {
        let left = deadline.0.saturating_sub(tip.0);
        let steps =
            if left > 0 { NEAR_BLOCKS.saturating_sub(left) } else { (tip.0 - deadline.0).saturating_sub(GRACE_BLOCKS) };
        let added = u64::from(self.within(0).0) * u64::from(steps.min(STEPS_MAX)) / 2;
        let rate = u64::from(self.within(left).0).saturating_add(added);
        FeeratePerKw(u32::try_from(rate).unwrap_or(u32::MAX)).min(FEERATE_MAX)
    }

    /// The farthest target that is not later; the nearest if all are.
    fn within(&self, blocks: u32) -> FeeratePerKw {
        let found = self.by_target.iter().rfind(|(target, _)| *target <= blocks);
        found.unwrap_or(&self.by_target[0]).1
    }
}

/// bitcoind counts whole virtual bytes, so a transaction of 100 of them needs up to 0.75 % more than its weight says: as much
/// as [`FeeratePerKw::FLOOR`] has on top of 1 sat/vB.
fn with_margin(minimum: FeeratePerKw) -> FeeratePerKw {
    let raised = (u64::from(minimum.0) * 253).div_ceil(250);
    FeeratePerKw(u32::try_from(raised).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates() -> Rates {
        Rates::new([6_000, 4_000, 3_000, 1_500, 400].map(FeeratePerKw), FeeratePerKw(300))
    }

    #[test]
    fn calm_is_a_day() {
        assert_eq!(rates().calm(), FeeratePerKw(1_500));
    }

    #[test]
    fn urgent_rises_towards_the_deadline() {
        let at = |tip| rates().urgent(BlockHeight(100), BlockHeight(tip)).0;
        assert_eq!([at(60), at(85), at(92), at(94)], [3_000, 3_000, 4_000, 4_000]);
        assert_eq!([at(95), at(97), at(99)], [6_000 + 3_000, 6_000 + 9_000, 6_000 + 15_000]);
    }

    #[test]
    fn a_deadline_that_is_past_begins_at_the_next_block_and_rises() {
        let at = |tip| rates().urgent(BlockHeight(100), BlockHeight(tip)).0;
        assert_eq!([at(100), at(102), at(103), at(120)], [6_000, 6_000, 9_000, 24_000]);
    }

    /// Of each weight, what it pays is enough for its virtual bytes.
    #[test]
    fn the_least_is_enough_for_whole_virtual_bytes() {
        for per_kvb in [1_000_u64, 1_001, 14_730, 40_803, 99_999] {
            let per_kw = FeeratePerKw(u32::try_from(per_kvb.div_ceil(4)).unwrap_or(u32::MAX));
            let minimum = Rates::new([FeeratePerKw(1); 5], per_kw).minimum();
            for weight in 400..4_000 {
                let (fee, vsize) = (minimum.fee_ceil(bitcoin::Weight::from_wu(weight)).0, weight.div_ceil(4));
                assert!(fee * 1_000 >= per_kvb * vsize, "{fee} for {weight} at {per_kvb}");
            }
        }
    }

    #[test]
    fn nothing_below_the_mempool_or_above_reason() {
        let low = Rates::new([FeeratePerKw(1); 5], FeeratePerKw(700));
        assert_eq!((low.calm(), low.minimum()), (FeeratePerKw(709), FeeratePerKw(709)));
        let high = Rates::new([FeeratePerKw(u32::MAX); 5], FeeratePerKw(1));
        assert_eq!(high.urgent(BlockHeight(1), BlockHeight(9)), FEERATE_MAX);
    }
}
