//! A feerate in satoshi per 1000 weight units, and where it comes from.

use std::fmt;

use bitcoin::Amount;

/// Satoshi per 1000 weight units, as in BOLT 2 and 3 (`feerate_per_kw`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SatPerKw(pub u32);

impl SatPerKw {
    /// From an amount per 1000 virtual bytes (4000 weight units), as bitcoind states feerates;
    /// rounded up. More than fits is the largest there is.
    #[must_use]
    pub fn from_per_kvb(amount: Amount) -> Self {
        Self(u32::try_from(amount.to_sat().div_ceil(4)).unwrap_or(u32::MAX))
    }

    /// The fee of a transaction of this weight, rounded up; `None` if it does not fit.
    #[must_use]
    pub fn fee(self, weight: bitcoin::Weight) -> Option<Amount> {
        let per_thousand = weight.to_wu().checked_mul(self.0.into())?;
        Some(Amount::from_sat(per_thousand.div_ceil(1000)))
    }

    /// A quarter more, rounded up.
    pub(super) fn plus_quarter(self) -> Self {
        Self(self.0.saturating_add(self.0.div_ceil(4)))
    }
}

impl fmt::Display for SatPerKw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sat/kw", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Weight;

    #[test]
    fn from_per_kvb_rounds_up() {
        for (sat, rate) in [(0, 0), (1, 1), (1_000, 250), (1_001, 251), (u64::MAX, u32::MAX)] {
            assert_eq!(SatPerKw::from_per_kvb(Amount::from_sat(sat)), SatPerKw(rate), "{sat} sat/kvB");
        }
    }

    #[test]
    fn fee_rounds_up() {
        assert_eq!(SatPerKw(253).fee(Weight::from_wu(1_000)), Some(Amount::from_sat(253)));
        assert_eq!(SatPerKw(253).fee(Weight::from_wu(1_001)), Some(Amount::from_sat(254)));
        assert_eq!(SatPerKw(2).fee(Weight::MAX), None);
    }

    #[test]
    fn plus_quarter_rounds_up() {
        assert_eq!(SatPerKw(253).plus_quarter(), SatPerKw(317));
        assert_eq!(SatPerKw(u32::MAX).plus_quarter(), SatPerKw(u32::MAX));
    }
}
