//! Feerates as the channel protocol counts them: satoshis per thousand weight units (BOLT 3, "Fees").
//!
//! What a transaction weighs belongs to whoever builds it.

use core::fmt;

use bitcoin::Weight;
use serde::{Deserialize, Serialize};

use crate::amount::Sat;

/// A feerate in satoshis per 1000 weight units.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FeeratePerKw(pub u32);

impl FeeratePerKw {
    /// The lowest that bitcoind relays by default: 1 sat/vB, where bitcoind rounds a weight up to
    /// whole vbytes, so that 250 would fall short.
    pub const FLOOR: Self = Self(253);

    /// The fee for `weight`, rounded down as BOLT 3 has it for commitment and HTLC transactions.
    #[must_use]
    pub fn fee_floor(self, weight: Weight) -> Sat {
        let millis = u128::from(self.0) * u128::from(weight.to_wu());
        Sat(u64::try_from(millis / 1000).unwrap_or(u64::MAX))
    }

    /// The fee for `weight`, rounded up: never below the rate.
    #[must_use]
    pub fn fee_ceil(self, weight: Weight) -> Sat {
        let millis = u128::from(self.0) * u128::from(weight.to_wu());
        Sat(u64::try_from(millis.div_ceil(1000)).unwrap_or(u64::MAX))
    }

    /// From satoshis per virtual byte, never below [`FeeratePerKw::FLOOR`] for one or more: a vbyte is
    /// four weight units, and bitcoind rounds up to whole vbytes.
    #[must_use]
    pub const fn from_sat_per_vb_ceil(sat_per_vb: u32) -> Self {
        let exact = sat_per_vb.saturating_mul(250);
        if exact > 0 && exact < Self::FLOOR.0 {
            return Self::FLOOR;
        }
        Self(exact)
    }

    /// In satoshis per virtual byte, rounded up.
    #[must_use]
    pub const fn to_sat_per_vb_ceil(self) -> u32 {
        self.0.div_ceil(250)
    }
}

impl fmt::Display for FeeratePerKw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sat/kw", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fee_of_bolt_3s_example_rounds_down() {
        // BOLT 3, Appendix C: 724 weight units at 15,000 sat/kw without HTLCs.
        assert_eq!(FeeratePerKw(15_000).fee_floor(Weight::from_wu(724)), Sat(10_860));
        assert_eq!(FeeratePerKw(253).fee_floor(Weight::from_wu(703)), Sat(177));
        assert_eq!(FeeratePerKw(253).fee_ceil(Weight::from_wu(703)), Sat(178));
        assert_eq!(FeeratePerKw(1000).fee_ceil(Weight::from_wu(703)), Sat(703));
    }

    #[test]
    fn fee_of_the_impossible_saturates() {
        assert_eq!(FeeratePerKw(u32::MAX).fee_floor(Weight::MAX), Sat(u64::MAX));
        assert_eq!(FeeratePerKw(u32::MAX).fee_ceil(Weight::MAX), Sat(u64::MAX));
    }

    #[test]
    fn rates_per_vbyte() {
        assert_eq!(FeeratePerKw::from_sat_per_vb_ceil(0), FeeratePerKw(0));
        assert_eq!(FeeratePerKw::from_sat_per_vb_ceil(1), FeeratePerKw::FLOOR);
        assert_eq!(FeeratePerKw::from_sat_per_vb_ceil(10), FeeratePerKw(2500));
        assert_eq!(FeeratePerKw::from_sat_per_vb_ceil(u32::MAX), FeeratePerKw(u32::MAX));
        assert_eq!(FeeratePerKw(2501).to_sat_per_vb_ceil(), 11);
    }
}
