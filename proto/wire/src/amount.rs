//! Money: whole satoshis and millisatoshis, as BOLT 2 counts them.
//!
//! The two units are separate types without `+` and `-`: every sum is checked and every
//! rounding has a name. Parsing what a person types belongs to the command line, not here.

use core::fmt;
use core::iter::Sum;

use serde::{Deserialize, Serialize};

/// Millisatoshis in one satoshi.
const MSAT_PER_SAT: u64 = 1000;

/// An amount in whole satoshis.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sat(pub u64);

/// An amount in millisatoshis.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Msat(pub u64);

impl Sat {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All the bitcoin there can ever be: 21 million.
    pub const MAX_MONEY: Self = Self(21_000_000 * 100_000_000);

    /// The sum, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, or `None` when `other` is more.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// The difference, or zero when `other` is more.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The product, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_mul(self, factor: u64) -> Option<Self> {
        match self.0.checked_mul(factor) {
            Some(product) => Some(Self(product)),
            None => None,
        }
    }

    /// The same amount in millisatoshis.
    ///
    /// Exact for all the money there is ([`Sat::MAX_MONEY`] is 2.1 × 10¹⁸ msat, below 2⁶³). A number
    /// no money can be, such as a peer may send, gives the largest [`Msat`], so that it
    /// stays above every limit it is compared with.
    #[must_use]
    pub const fn to_msat(self) -> Msat {
        Msat(self.0.saturating_mul(MSAT_PER_SAT))
    }

    /// The same amount as rust-bitcoin's type.
    #[must_use]
    pub const fn to_amount(self) -> bitcoin::Amount {
        bitcoin::Amount::from_sat(self.0)
    }

    /// Whether so much bitcoin can exist.
    #[must_use]
    pub const fn is_money(self) -> bool {
        self.0 <= Self::MAX_MONEY.0
    }
}

impl Msat {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All the bitcoin there can ever be: 21 million.
    pub const MAX_MONEY: Self = Self(Sat::MAX_MONEY.0 * MSAT_PER_SAT);

    /// The sum, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_add(self, other: Self) -> Option<Self> {
        match self.0.checked_add(other.0) {
            Some(sum) => Some(Self(sum)),
            None => None,
        }
    }

    /// The difference, or `None` when `other` is more.
    #[must_use]
    pub const fn checked_sub(self, other: Self) -> Option<Self> {
        match self.0.checked_sub(other.0) {
            Some(rest) => Some(Self(rest)),
            None => None,
        }
    }

    /// The difference, or zero when `other` is more.
    #[must_use]
    pub const fn saturating_sub(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The product, or `None` when it does not fit.
    #[must_use]
    pub const fn checked_mul(self, factor: u64) -> Option<Self> {
        match self.0.checked_mul(factor) {
            Some(product) => Some(Self(product)),
            None => None,
        }
    }

    /// The whole satoshis in it; a fraction is dropped (BOLT 3 rounds outputs down).
    #[must_use]
    pub const fn floor_to_sat(self) -> Sat {
        Sat(self.0 / MSAT_PER_SAT)
    }

    /// The fewest whole satoshis that cover it.
    #[must_use]
    pub const fn ceil_to_sat(self) -> Sat {
        Sat(self.0.div_ceil(MSAT_PER_SAT))
    }

    /// Whether so much bitcoin can exist.
    #[must_use]
    pub const fn is_money(self) -> bool {
        self.0 <= Self::MAX_MONEY.0
    }
}

impl fmt::Display for Sat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} sat", self.0)
    }
}

impl fmt::Debug for Sat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Msat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} msat", self.0)
    }
}

impl fmt::Debug for Msat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<bitcoin::Amount> for Sat {
    fn from(amount: bitcoin::Amount) -> Self {
        Self(amount.to_sat())
    }
}

impl From<Sat> for bitcoin::Amount {
    fn from(sat: Sat) -> Self {
        sat.to_amount()
    }
}

/// # Panics
/// When the sum does not fit 64 bits: amounts that were checked on their way in cannot reach it.
impl Sum for Sat {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, |total, next| total.checked_add(next).expect("a sum of satoshis that exist fits 64 bits"))
    }
}

/// # Panics
/// As the sum of owned amounts does.
impl<'a> Sum<&'a Sat> for Sat {
    fn sum<I: Iterator<Item = &'a Sat>>(iter: I) -> Self {
        iter.copied().sum()
    }
}

/// # Panics
/// When the sum does not fit 64 bits: amounts that were checked on their way in cannot reach it.
impl Sum for Msat {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, |total, next| {
            total.checked_add(next).expect("a sum of millisatoshis that exist fits 64 bits")
        })
    }
}

/// # Panics
/// As the sum of owned amounts does.
impl<'a> Sum<&'a Msat> for Msat {
    fn sum<I: Iterator<Item = &'a Msat>>(iter: I) -> Self {
        iter.copied().sum()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rounding_at_every_edge_of_a_satoshi() {
        for (msat, floor, ceil) in [(0, 0, 0), (1, 0, 1), (999, 0, 1), (1000, 1, 1), (1001, 1, 2)] {
            assert_eq!(Msat(msat).floor_to_sat(), Sat(floor), "{msat}");
            assert_eq!(Msat(msat).ceil_to_sat(), Sat(ceil), "{msat}");
        }
        assert_eq!(Msat(u64::MAX).ceil_to_sat(), Sat(u64::MAX / 1000 + 1));
    }

    #[test]
    fn to_msat_of_all_money_is_exact_and_of_nonsense_is_the_largest() {
        assert_eq!(Sat::MAX_MONEY.to_msat(), Msat::MAX_MONEY);
        const { assert!(Msat::MAX_MONEY.0 < 1 << 63) };
        assert_eq!(Sat(u64::MAX).to_msat(), Msat(u64::MAX));
        assert!(!Sat(u64::MAX).to_msat().is_money());
        assert!(Sat::MAX_MONEY.is_money() && !Sat(Sat::MAX_MONEY.0 + 1).is_money());
    }

    #[test]
    fn arithmetic_says_when_it_does_not_fit() {
        assert_eq!(Sat(u64::MAX).checked_add(Sat(1)), None);
        assert_eq!(Sat(1).checked_sub(Sat(2)), None);
        assert_eq!(Sat(1).saturating_sub(Sat(2)), Sat::ZERO);
        assert_eq!(Msat(2).checked_mul(u64::MAX), None);
        assert_eq!(Msat(2).checked_mul(21), Some(Msat(42)));
    }

    #[test]
    fn sums_owned_and_borrowed() {
        let parts = [Msat(1), Msat(2), Msat(3)];
        assert_eq!(parts.iter().sum::<Msat>(), Msat(6));
        assert_eq!(parts.into_iter().sum::<Msat>(), Msat(6));
        assert_eq!([Sat(4), Sat(5)].iter().sum::<Sat>(), Sat(9));
    }

    #[test]
    #[should_panic(expected = "satoshis that exist")]
    fn sum_of_more_than_exists() {
        let _: Sat = [Sat(u64::MAX), Sat(1)].into_iter().sum();
    }

    #[test]
    fn display_names_the_unit() {
        assert_eq!(Sat(21).to_string(), "21 sat");
        assert_eq!(format!("{:?}", Msat(21_000)), "21000 msat");
    }

    #[test]
    fn stored_as_the_bare_number() {
        assert_eq!(postcard::to_stdvec(&Msat(300)).unwrap(), [0xac, 0x02]);
        assert_eq!(postcard::from_bytes::<Msat>(&[0xac, 0x02]).unwrap(), Msat(300));
    }
}
