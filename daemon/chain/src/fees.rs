//! What a transaction should pay: bitcoind's estimates, refreshed with each block, and the rules for
//! each kind of transaction on top of them.
//!
//! Feerates are in satoshi per 1000 weight units, as in BOLT 3. Where bitcoind has nothing to
//! estimate from (regtest always, any node in its first hours), the stated fallbacks take its place,
//! and [`FeeEstimates::is_estimated`] says so.

mod rate;

use std::time::Duration;

use bitcoin::{Amount, Network};
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tracing::warn;

pub use rate::SatPerKw;

use crate::bitcoind::MempoolInfo;
use crate::{Bitcoind, Result, SyncState};

/// The targets that are asked for, in blocks.
pub const TARGETS: [u16; 5] = [2, 6, 12, 144, 1008];
/// What stands in on regtest, signet and the test networks: 4 sat/vB for every target.
pub const FALLBACK_TEST: SatPerKw = SatPerKw(1_000);
/// What stands in on the main network, by target: 20, 15, 10, 4 and 2 sat/vB. Enough in nearly all
/// weeks of the past years, and the mempool's minimum still raises it.
pub const FALLBACK_MAIN: [SatPerKw; 5] =
    [SatPerKw(5_000), SatPerKw(3_750), SatPerKw(2_500), SatPerKw(1_000), SatPerKw(500)];
/// Nothing below is relayed: 1 sat/vB, rounded up so that a transaction's last byte does not fail it.
pub const FLOOR: SatPerKw = SatPerKw(253);
/// No estimate above is believed: 2000 sat/vB. bitcoind's own highest bucket is half of it.
pub const CEILING: SatPerKw = SatPerKw(500_000);
/// What an anchor commitment pays at most, unless the floor is higher: 10 sat/vB. Its anchors pay
/// the rest when it matters, and others refuse more.
pub const ANCHOR_MAX: SatPerKw = SatPerKw(2_500);
/// How often the mempool's minimum is looked at between blocks.
const REFRESH: Duration = Duration::from_secs(60);

/// bitcoind's estimates at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeeEstimates {
    /// By [`TARGETS`]; a nearer target never pays less than a farther one.
    by_target: [SatPerKw; 5],
    mempool_minimum: SatPerKw,
    relay_minimum: SatPerKw,
    is_estimated: bool,
}

impl FeeEstimates {
    /// What stands in until bitcoind has been asked, or if it knows nothing.
    #[must_use]
    pub fn fallback(network: Network) -> Self {
        Self::new(network, [None; 5], FLOOR, FLOOR)
    }

    /// Asks bitcoind.
    ///
    /// # Errors
    /// If it cannot be asked.
    pub async fn fetch(bitcoind: &Bitcoind) -> Result<Self> {
        let MempoolInfo { minimum, relay_minimum } = bitcoind.mempool_info().await?;
        let mut estimates = [None; 5];
        for (estimate, target) in estimates.iter_mut().zip(TARGETS) {
            // Conservative where a deadline is near, economical where there is time.
            *estimate = bitcoind.estimate_fee(target, target <= 6).await?;
        }
        let [minimum, relay_minimum] = [minimum, relay_minimum].map(SatPerKw::from_per_kvb);
        Ok(Self::new(bitcoind.network(), estimates.map(|rate| rate.map(believable)), minimum, relay_minimum))
    }

    fn new(
        network: Network,
        estimates: [Option<SatPerKw>; 5],
        mempool_minimum: SatPerKw,
        relay_minimum: SatPerKw,
    ) -> Self {
        let fallback = if network == Network::Bitcoin { FALLBACK_MAIN } else { [FALLBACK_TEST; 5] };
        let mempool_minimum = mempool_minimum.max(relay_minimum).min(CEILING);
        let mut by_target = [FLOOR; 5];
        let mut at_least = mempool_minimum.max(FLOOR);
        for (index, rate) in by_target.iter_mut().enumerate().rev() {
            at_least = at_least.max(estimates[index].unwrap_or(fallback[index]));
            *rate = at_least;
        }
        let is_estimated = estimates.iter().all(Option::is_some);
        Self { by_target, mempool_minimum, relay_minimum: relay_minimum.min(CEILING), is_estimated }
    }

    /// Whether every target is bitcoind's own estimate. If not, a fallback stands in for some.
    #[must_use]
    pub fn is_estimated(&self) -> bool {
        self.is_estimated
    }

    /// What the mempool demands now.
    #[must_use]
    pub fn mempool_minimum(&self) -> SatPerKw {
        self.mempool_minimum
    }

    /// What is relayed at all.
    #[must_use]
    pub fn relay_minimum(&self) -> SatPerKw {
        self.relay_minimum
    }

    /// To be mined within this many blocks: the farthest of [`TARGETS`] that is not later.
    #[must_use]
    pub fn within(&self, blocks: u32) -> SatPerKw {
        let index = TARGETS.iter().rposition(|&target| u32::from(target) <= blocks).unwrap_or(0);
        self.by_target[index]
    }

    /// For a commitment with anchors. LDK closes on less than its own 1008-block estimate, lnd and
    /// eclair pay at most 10 sat/vB: so the floor is the largest of that estimate, the mempool's
    /// minimum and 253, a quarter is added against its rise, and the sum is capped at
    /// [`ANCHOR_MAX`] unless the floor itself is higher.
    #[must_use]
    pub fn anchor_commitment(&self) -> SatPerKw {
        let floor = self.within(1008).max(self.mempool_minimum).max(FLOOR);
        floor.max(floor.plus_quarter().min(ANCHOR_MAX))
    }

    /// For a commitment without anchors, whose fee cannot be raised later.
    #[must_use]
    pub fn plain_commitment(&self) -> SatPerKw {
        self.within(6)
    }

    /// For a close that both sides agree to.
    #[must_use]
    pub fn mutual_close(&self) -> SatPerKw {
        self.within(12)
    }

    /// Asks bitcoind after each block and each minute, until every receiver is gone. While bitcoind
    /// is away the last answer stands.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn follow(bitcoind: Bitcoind, sync: watch::Receiver<SyncState>) -> watch::Receiver<Self> {
        let (sender, receiver) = watch::channel(Self::fallback(bitcoind.network()));
        tokio::spawn(refresh(bitcoind, sync, sender));
        receiver
    }
}

async fn refresh(bitcoind: Bitcoind, mut sync: watch::Receiver<SyncState>, estimates: watch::Sender<FeeEstimates>) {
    let mut ticks = interval(REFRESH);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut height = None;
    let mut is_watched = true;
    loop {
        let is_due = tokio::select! {
            () = estimates.closed() => return,
            changed = sync.changed(), if is_watched => {
                is_watched = changed.is_ok();
                let before = height;
                height = sync.borrow_and_update().height();
                height.is_some() && height != before
            }
            _ = ticks.tick() => true,
        };
        if !is_due {
            continue;
        }
        match FeeEstimates::fetch(&bitcoind).await {
            Ok(new) => {
                estimates.send_if_modified(|old| {
                    *old != new && {
                        *old = new;
                        true
                    }
                });
            }
            Err(error) => warn!(%error, "no new fee estimates"),
        }
    }
}

/// An estimate, unless it is beyond belief.
fn believable(per_kvb: Amount) -> SatPerKw {
    let rate = SatPerKw::from_per_kvb(per_kvb);
    if rate > CEILING {
        warn!(%rate, ceiling = %CEILING, "bitcoind's fee estimate is not believed");
    }
    rate.min(CEILING)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn estimates(rates: [u32; 5], minimum: u32) -> FeeEstimates {
        let minimum = SatPerKw(minimum);
        FeeEstimates::new(Network::Bitcoin, rates.map(|rate| Some(SatPerKw(rate))), minimum, FLOOR)
    }

    const ORDINARY: [u32; 5] = [6_000, 4_000, 3_000, 1_500, 400];

    mod within {
        use super::*;

        #[test]
        fn farthest_target_that_is_not_later() {
            let fees = estimates(ORDINARY, 253);
            let expected = [(0, 6_000), (1, 6_000), (2, 6_000), (5, 6_000), (6, 4_000), (11, 4_000), (12, 3_000)];
            for (blocks, rate) in expected {
                assert_eq!(fees.within(blocks), SatPerKw(rate), "within {blocks}");
            }
            assert_eq!(fees.within(143), SatPerKw(3_000));
            assert_eq!(fees.within(1007), SatPerKw(1_500));
            assert_eq!(fees.within(u32::MAX), SatPerKw(400));
        }

        #[test]
        fn nearer_never_pays_less() {
            let fees = estimates([300, 700, 500, 900, 260], 253);
            assert_eq!(fees.by_target.map(|rate| rate.0), [900, 900, 900, 900, 260]);
        }

        #[test]
        fn never_below_the_mempool_minimum() {
            let fees = estimates(ORDINARY, 3_500);
            assert_eq!(fees.by_target.map(|rate| rate.0), [6_000, 4_000, 3_500, 3_500, 3_500]);
        }
    }

    mod fallback {
        use super::*;

        #[test]
        fn on_regtest() {
            let fees = FeeEstimates::fallback(Network::Regtest);
            assert!(!fees.is_estimated());
            assert_eq!(fees.by_target, [FALLBACK_TEST; 5]);
            assert_eq!(fees.anchor_commitment(), SatPerKw(1_250));
        }

        #[test]
        fn on_the_main_network() {
            assert_eq!(FeeEstimates::fallback(Network::Bitcoin).by_target, FALLBACK_MAIN);
        }

        #[test]
        fn for_one_missing_target() {
            let mut rates = ORDINARY.map(|rate| Some(SatPerKw(rate)));
            rates[1] = None;
            let fees = FeeEstimates::new(Network::Bitcoin, rates, FLOOR, FLOOR);
            assert_eq!(fees.by_target.map(|rate| rate.0), [6_000, 3_750, 3_000, 1_500, 400]);
            assert!(!fees.is_estimated());
        }
    }

    mod anchor_commitment {
        use super::*;

        #[test]
        fn a_quarter_above_the_week() {
            assert_eq!(estimates(ORDINARY, 253).anchor_commitment(), SatPerKw(500));
        }

        #[test]
        fn margin_capped_at_the_maximum() {
            let fees = estimates([9_000, 9_000, 9_000, 9_000, 2_400], 253);
            assert_eq!(fees.anchor_commitment(), ANCHOR_MAX);
        }

        #[test]
        fn floor_above_the_maximum() {
            assert_eq!(estimates(ORDINARY, 7_000).anchor_commitment(), SatPerKw(7_000));
        }

        #[test]
        fn estimate_below_what_is_relayed() {
            assert_eq!(estimates([1; 5], 1).anchor_commitment(), SatPerKw(317));
        }
    }

    mod kinds {
        use super::*;

        #[test]
        fn close_and_plain_commitment() {
            let fees = estimates(ORDINARY, 253);
            assert_eq!((fees.mutual_close(), fees.plain_commitment()), (SatPerKw(3_000), SatPerKw(4_000)));
        }
    }

    #[test]
    fn absurd_estimate_is_capped() {
        assert_eq!(believable(Amount::from_int_btc(20)), CEILING);
        assert_eq!(believable(Amount::from_sat(4_000)), SatPerKw(1_000));
    }
}
