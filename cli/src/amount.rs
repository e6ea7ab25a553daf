//! Amounts as a person writes and reads them: `21sat`, `21000msat`, `0.001btc`.
//!
//! A number without a unit is refused: a wallet that guesses is wrong by a factor of 1000 one day. All
//! arithmetic is on whole millisatoshi; nothing is rounded, nothing is floating.

use std::fmt;
use std::str::FromStr;

/// Most that can exist: 21 million bitcoin.
const MSAT_MAX: u64 = 21_000_000 * MSAT_PER_BTC;
const MSAT_PER_BTC: u64 = 100_000_000 * MSAT_PER_SAT;
const MSAT_PER_SAT: u64 = 1000;

/// An amount of money in whole millisatoshi.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Amount {
    msat: u64,
}

/// Why a text is no amount.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AmountError {
    #[error("`{0}` has no unit: write {0}sat, {0}msat or {0}btc")]
    NoUnit(String),
    #[error("`{0}` is no amount: write it like 21sat, 21000msat or 0.001btc")]
    NotAnAmount(String),
    #[error("unknown unit `{unit}` in `{text}`: use sat, msat or btc")]
    UnknownUnit { text: String, unit: String },
    #[error("`{text}` has {digits} decimals; {unit} has at most {max}")]
    TooFine { text: String, digits: usize, unit: &'static str, max: usize },
    #[error("`{0}` is more than the 21 million bitcoin that can exist")]
    TooLarge(String),
    #[error("{0} msat is not a whole number of satoshi, which this needs")]
    NotWholeSat(u64),
}

impl Amount {
    /// An amount of this many millisatoshi.
    pub(crate) fn from_msat(msat: u64) -> Self {
        Self { msat }
    }

    /// In millisatoshi.
    pub(crate) fn msat(self) -> u64 {
        self.msat
    }

    /// In satoshi, if it is a whole number of them.
    pub(crate) fn whole_sat(self) -> Result<u64, AmountError> {
        if self.msat.is_multiple_of(MSAT_PER_SAT) {
            Ok(self.msat / MSAT_PER_SAT)
        } else {
            Err(AmountError::NotWholeSat(self.msat))
        }
    }
}

/// As satoshi with thousands marked, and the millisatoshi after the point if there are any.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let thousands = with_thousands(self.msat / MSAT_PER_SAT);
        match self.msat % MSAT_PER_SAT {
            0 => write!(f, "{thousands} sat"),
            rest => write!(f, "{thousands}.{rest:03} sat"),
        }
    }
}

impl FromStr for Amount {
    type Err = AmountError;

    fn from_str(text: &str) -> Result<Self, AmountError> {
        let text = text.trim();
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        if number.is_empty() {
            return Err(AmountError::NotAnAmount(text.to_owned()));
        }
        let Decimal { whole, fraction } = Decimal::parse(number, text)?;
        let (unit, decimals) = decimals_of(unit.trim(), text)?;
        if fraction.len() > decimals {
            return Err(AmountError::TooFine { text: text.to_owned(), digits: fraction.len(), unit, max: decimals });
        }
        // Shifting the point: the digits, and zeros up to the unit's last decimal, are the millisatoshi.
        let mut msat: u64 = 0;
        let zeros = std::iter::repeat_n('0', decimals - fraction.len());
        for digit in whole.chars().chain(fraction.chars()).chain(zeros) {
            let digit = u64::from(digit) - u64::from('0');
            msat = msat
                .checked_mul(10)
                .and_then(|tens| tens.checked_add(digit))
                .filter(|msat| *msat <= MSAT_MAX)
                .ok_or_else(|| AmountError::TooLarge(text.to_owned()))?;
        }
        Ok(Self { msat })
    }
}

/// A decimal number as its digits before and after the point.
struct Decimal<'a> {
    whole: &'a str,
    fraction: &'a str,
}

impl<'a> Decimal<'a> {
    fn parse(number: &'a str, text: &str) -> Result<Self, AmountError> {
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let point_without_digits = number.contains('.') && fraction.is_empty();
        if whole.is_empty() || point_without_digits || fraction.contains('.') {
            return Err(AmountError::NotAnAmount(text.to_owned()));
        }
        Ok(Self { whole, fraction })
    }
}

/// The unit's name, and how many decimals it has down to the millisatoshi.
fn decimals_of(unit: &str, text: &str) -> Result<(&'static str, usize), AmountError> {
    match unit.to_ascii_lowercase().as_str() {
        "" => Err(AmountError::NoUnit(text.to_owned())),
        "msat" => Ok(("msat", 0)),
        "sat" => Ok(("sat", 3)),
        "btc" => Ok(("btc", 11)),
        _ => Err(AmountError::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() }),
    }
}

/// A number with a comma between every three digits.
fn with_thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    fn msat(text: &str) -> Result<u64, AmountError> {
        text.parse::<Amount>().map(Amount::msat)
    }

    #[test]
    fn units() {
        assert_eq!(msat("21sat"), Ok(21_000));
        assert_eq!(msat("21000msat"), Ok(21_000));
        assert_eq!(msat("0.001btc"), Ok(100_000_000));
        assert_eq!(msat("0.001 BTC"), Ok(100_000_000));
        assert_eq!(msat("1.5sat"), Ok(1_500));
        assert_eq!(msat("0.00000000001btc"), Ok(1));
        assert_eq!(msat("0sat"), Ok(0));
        assert_eq!(msat("21000000btc"), Ok(MSAT_MAX));
    }

    #[test]
    fn a_plain_number_is_refused_and_says_what_to_write() {
        let error = msat("21").unwrap_err();
        assert_eq!(error, AmountError::NoUnit("21".to_owned()));
        assert!(error.to_string().contains("21sat, 21msat or 21btc"));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "sat", ".5sat", "5.sat", "1.2.3sat", "-1sat", "+1sat", "1e3sat", "1,000sat"] {
            assert!(msat(text).is_err(), "{text}");
        }
        assert!(matches!(msat("1eur"), Err(AmountError::UnknownUnit { .. })));
    }

    #[test]
    fn finer_than_a_millisatoshi_is_refused() {
        assert!(matches!(msat("0.5msat"), Err(AmountError::TooFine { .. })));
        assert!(matches!(msat("0.0001sat"), Err(AmountError::TooFine { .. })));
        assert!(matches!(msat("0.000000000001btc"), Err(AmountError::TooFine { .. })));
    }

    #[test]
    fn more_than_can_exist_is_refused() {
        assert!(matches!(msat("21000000.00000000001btc"), Err(AmountError::TooLarge(_))));
        assert!(matches!(msat("99999999999999999999999sat"), Err(AmountError::TooLarge(_))));
    }

    #[test]
    fn whole_satoshi_only_where_asked() {
        assert_eq!(Amount::from_msat(21_000).whole_sat(), Ok(21));
        assert_eq!(Amount::from_msat(21_001).whole_sat(), Err(AmountError::NotWholeSat(21_001)));
    }

    #[test]
    fn shown_in_satoshi() {
        assert_eq!(Amount::from_msat(0).to_string(), "0 sat");
        assert_eq!(Amount::from_msat(999).to_string(), "0.999 sat");
        assert_eq!(Amount::from_msat(1_234_567_005).to_string(), "1,234,567.005 sat");
    }

    proptest! {
        /// However it is written, the same amount comes out.
        #[test]
        fn every_way_of_writing_gives_the_same(amount in 0..=MSAT_MAX) {
            let sat = format!("{}.{:03}sat", amount / 1000, amount % 1000);
            let btc = format!("{}.{:011}btc", amount / MSAT_PER_BTC, amount % MSAT_PER_BTC);
            prop_assert_eq!(msat(&format!("{amount}msat")), Ok(amount));
            prop_assert_eq!(msat(&sat), Ok(amount));
            prop_assert_eq!(msat(&btc), Ok(amount));
        }

        /// What is shown can be read back once the commas are gone.
        #[test]
        fn shown_and_read_back(amount in 0..=MSAT_MAX) {
            let shown = Amount::from_msat(amount).to_string().replace(',', "");
            prop_assert_eq!(msat(&shown), Ok(amount));
        }

        /// No text makes it panic, and none without a unit is taken.
        #[test]
        fn any_text(text in ".{0,24}") {
            let _ = msat(&text);
        }

        /// Digits alone are never an amount.
        #[test]
        fn digits_alone(text in "[0-9]{1,20}(\\.[0-9]{1,12})?") {
            prop_assert!(msat(&text).is_err());
        }
    }
}
