//! How one setting is written: the types that settings have, from text and to text.
//!
//! Flags and the environment give text; a file gives a value of one of four [`Class`]es, which is turned into the same
//! text. So each type is parsed in one place.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use bitcoin::Network;
use millrace_wire::{CltvDelta, FeeratePerKw, Msat, Sat};
use secp256k1::PublicKey;
use zeroize::Zeroizing;

use super::network_name;
use crate::announce::address::NodeAddress;
use crate::announce::node::Color;

/// What a value looks like in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Class {
    /// A string.
    Text,
    /// A whole number.
    Integer,
    /// `true` or `false`.
    Bool,
    /// A list of strings.
    List,
}

/// A type that a setting can have.
pub(super) trait Setting: Sized {
    /// What it looks like in the file.
    const CLASS: Class;
    /// What a right value looks like, to finish "expected …".
    const EXPECTED: &'static str;

    /// From the text of a flag, a variable or a value of the file. Lists are separated by commas.
    fn parse(text: &str) -> Option<Self>;

    /// As [`Setting::parse`] takes it; `None` when there is no value.
    fn text(&self) -> Option<String>;
}

/// How log lines look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// A text that is never shown, and wiped when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Hides a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Zeroizing::new(text.to_owned()))
    }

    /// The text. Whoever calls this must not log it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Setting for String {
    const CLASS: Class = Class::Text;
    const EXPECTED: &'static str = "a text";

    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }

    fn text(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Setting for Secret {
    const CLASS: Class = Class::Text;
    const EXPECTED: &'static str = "a text";

    fn parse(text: &str) -> Option<Self> {
        Some(Self::new(text))
    }

    fn text(&self) -> Option<String> {
        Some(self.expose().to_owned())
    }
}

impl Setting for PathBuf {
    const CLASS: Class = Class::Text;
    const EXPECTED: &'static str = "a path";

    fn parse(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::from(text))
    }

    fn text(&self) -> Option<String> {
        Some(self.display().to_string())
    }
}

impl Setting for bool {
    const CLASS: Class = Class::Bool;
    const EXPECTED: &'static str = "true or false";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// Whole numbers, bare or in a unit.
macro_rules! integers {
    ($($type:ty: $number:ty, $expected:literal, $wrap:expr, $unwrap:expr;)*) => {$(
        impl Setting for $type {
            const CLASS: Class = Class::Integer;
            const EXPECTED: &'static str = $expected;

            fn parse(text: &str) -> Option<Self> {
                text.replace('_', "").parse::<$number>().ok().map($wrap)
            }

            fn text(&self) -> Option<String> {
                let unwrap: fn(&$type) -> $number = $unwrap;
                Some(unwrap(self).to_string())
            }
        }
    )*};
}

integers! {
    u8: u8, "a whole number from 0 to 255", |n| n, |n| *n;
    u16: u16, "a whole number from 0 to 65535", |n| n, |n| *n;
    u32: u32, "a whole number from 0 to 4294967295", |n| n, |n| *n;
    Sat: u64, "a whole number of satoshi", Sat, |n| n.0;
    Msat: u64, "a whole number of millisatoshi", Msat, |n| n.0;
    CltvDelta: u16, "a number of blocks from 0 to 65535", CltvDelta, |n| n.0;
    FeeratePerKw: u32, "a whole number of satoshi per 1000 weight units", FeeratePerKw, |n| n.0;
}

impl Setting for SocketAddr {
    const CLASS: Class = Class::Text;
    const EXPECTED: &'static str = "an address and a port, such as 127.0.0.1:9735 or [::1]:9735";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Setting for Network {
    const CLASS: Class = Class::Text;
    const EXPECTED: &'static str = "regtest, signet, testnet4 or bitcoin";

    fn parse(text: &str) -> Option<Self> {
        [Self::Regtest, Self::Signet, Self::Testnet4, Self::Bitcoin]
            .into_iter()
            .find(|network| network_name(*network) == text)
    }

    fn text(&self) -> Option<String> {
        Some(network_name(*self).to_owned())
    }
}

impl Setting for Color {
    const CLASS: Class = Class::Text;
    const EXPECTED: &'static str = "a colour, such as #3399ff";

    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }

    fn text(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Setting for Vec<NodeAddress> {
    const CLASS: Class = Class::List;
    const EXPECTED: &'static str = "a list of addresses and ports, such as 203.0.113.7:9735";

    fn parse(text: &str) -> Option<Self> {
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| part.parse().ok()).collect()
    }

    fn text(&self) -> Option<String> {
        let parts: Vec<String> = self.iter().map(ToString::to_string).collect();
        Some(parts.join(","))
    }
}

impl Setting for LogFormat {
    const CLASS: Class = Class::Text;
    const EXPECTED: &'static str = "text or json";

    fn parse(text: &str) -> Option<Self> {
        match text {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    fn text(&self) -> Option<String> {
        let name = match self {
            Self::Text => "text",
            Self::Json => "json",
        };
        Some(name.to_owned())
    }
}

impl Setting for Vec<PublicKey> {
    const CLASS: Class = Class::List;
    const EXPECTED: &'static str = "node ids of 66 hex digits each";

    fn parse(text: &str) -> Option<Self> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(|part| part.parse().ok()).collect()
    }

    fn text(&self) -> Option<String> {
        Some(self.iter().map(PublicKey::to_string).collect::<Vec<_>>().join(","))
    }
}

impl<T: Setting> Setting for Option<T> {
    const CLASS: Class = T::CLASS;
    const EXPECTED: &'static str = T::EXPECTED;

    fn parse(text: &str) -> Option<Self> {
        T::parse(text).map(Some)
    }

    fn text(&self) -> Option<String> {
        self.as_ref().and_then(T::text)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_type_reads_what_it_writes() {
        fn round<T: Setting + PartialEq + fmt::Debug>(text: &str) {
            let value = T::parse(text).unwrap();
            assert_eq!(T::parse(&value.text().unwrap()).unwrap(), value, "{text}");
        }
        round::<String>("hello");
        round::<Secret>("hidden");
        round::<PathBuf>("/var/lib/millrace");
        round::<bool>("true");
        round::<u8>("255");
        round::<u16>("1_000");
        round::<Sat>("21");
        round::<SocketAddr>("[::1]:0");
        round::<Network>("testnet4");
        round::<LogFormat>("json");
        let key = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
        round::<Vec<PublicKey>>(&format!("{key}, {key}"));
        round::<Vec<PublicKey>>("");
    }

    #[test]
    fn what_is_not_such_a_value_is_refused() {
        assert_eq!(u8::parse("256"), None);
        assert_eq!(u16::parse("-1"), None);
        assert_eq!(Sat::parse("1.5"), None);
        assert_eq!(Network::parse("testnet"), None);
        assert_eq!(Network::parse("mainnet"), None);
        assert_eq!(SocketAddr::parse("localhost:1"), None);
        assert_eq!(Vec::<PublicKey>::parse("02abc"), None);
        assert_eq!(PathBuf::parse(""), None);
    }

    #[test]
    fn a_secret_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new("hunter2")), "Secret(…)");
    }
}
