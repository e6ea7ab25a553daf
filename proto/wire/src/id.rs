//! Names of things on the wire: channels, HTLCs, commitments, payment hashes and their secrets (BOLT 2, 7).
//!
//! Secrets do not show themselves in `Debug` and are wiped when dropped.

use core::fmt;
use core::str::FromStr;

use bitcoin::OutPoint;
use bitcoin::hashes::{Hash as _, sha256};
use bitcoin::hex::{DisplayHex as _, FromHex as _};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zeroize::{Zeroize, ZeroizeOnDrop};

pub use bitcoin::constants::ChainHash;

/// A text that names nothing.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum IdError {
    /// Not 64 hexadecimal digits.
    #[error("{what}: expected 64 hexadecimal digits, found {found} characters")]
    Hex {
        /// What was to be read.
        what: &'static str,
        /// How long the text is.
        found: usize,
    },
    /// Not `BLOCKxTXxOUTPUT` with numbers that fit.
    #[error("short channel id {text:?}: expected block x transaction x output, as in 539268x845x1")]
    ShortChannelId {
        /// The text, cut to 32 characters.
        text: String,
    },
}

/// The 32 bytes that name a channel between two peers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ChannelId(pub [u8; 32]);

impl ChannelId {
    /// The id that means "every channel with this peer" in `error` and `warning` (BOLT 1).
    pub const ALL: Self = Self([0; 32]);

    /// BOLT 2, "Definition of `channel_id`": the funding transaction's id with its last two
    /// bytes XORed with the output index.
    ///
    /// Only the low 16 bits of the index count: the protocol cannot name a higher one.
    #[must_use]
    pub fn v1_from_funding(outpoint: OutPoint) -> Self {
        let mut bytes = outpoint.txid.to_byte_array();
        let [.., high, low] = outpoint.vout.to_be_bytes();
        bytes[30] ^= high;
        bytes[31] ^= low;
        Self(bytes)
    }

    /// Whether this names every channel with the peer.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Self::ALL
    }
}

/// Where a channel's funding output stands in the chain, or an alias that looks like it (BOLT 7).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShortChannelId(pub u64);

impl ShortChannelId {
    /// From block height (24 bits), index in the block (24 bits) and output; `None` when one of them does not fit.
    #[must_use]
    pub const fn new(block: u32, transaction: u32, output: u16) -> Option<Self> {
        if block >> 24 != 0 || transaction >> 24 != 0 {
            return None;
        }
        Some(Self((block as u64) << 40 | (transaction as u64) << 16 | output as u64))
    }

    /// Block height, index in the block, output.
    #[must_use]
    pub const fn parts(self) -> (u32, u32, u16) {
        ((self.0 >> 40) as u32, (self.0 >> 16) as u32 & 0x00ff_ffff, self.0 as u16)
    }
}

/// Counts the HTLCs that one side offers in one channel, from zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HtlcId(pub u64);

/// Counts one side's commitment transactions, from zero.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CommitmentNumber(pub u64);

impl HtlcId {
    /// The id of the next HTLC, or `None` after the last there can be.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        match self.0.checked_add(1) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }
}

impl CommitmentNumber {
    /// The last that the 48 bits in a commitment transaction can carry (BOLT 3).
    pub const MAX: Self = Self((1 << 48) - 1);

    /// The next commitment, or `None` after the last there can be.
    #[must_use]
    pub const fn next(self) -> Option<Self> {
        if self.0 >= Self::MAX.0 {
            return None;
        }
        Some(Self(self.0 + 1))
    }

    /// The commitment before, or `None` before the first.
    #[must_use]
    pub const fn previous(self) -> Option<Self> {
        match self.0.checked_sub(1) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }
}

/// SHA-256 of a [`Preimage`]: what an HTLC is locked to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PaymentHash(pub [u8; 32]);

/// What unlocks an HTLC. Whoever knows it can claim the money.
#[derive(Clone, PartialEq, Eq, Hash, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct Preimage([u8; 32]);

impl Preimage {
    /// From its 32 bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The payment hash it opens.
    #[must_use]
    pub fn hash(&self) -> PaymentHash {
        PaymentHash(sha256::Hash::hash(&self.0).to_byte_array())
    }
}

/// What an invoice gives its payer, so that nobody between can pose as him (BOLT 4, 11).
#[derive(Clone, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
pub struct PaymentSecret([u8; 32]);

impl PaymentSecret {
    /// From its 32 bytes.
    #[must_use]
    pub const fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Its 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Looks at every byte, whatever the first difference: a payer must not learn it by timing.
impl PartialEq for PaymentSecret {
    fn eq(&self, other: &Self) -> bool {
        let differing = self.0.iter().zip(&other.0).fold(0, |bits, (a, b)| bits | (a ^ b));
        core::hint::black_box(differing) == 0
    }
}

impl Eq for PaymentSecret {}

fn read_hex_32(what: &'static str, text: &str) -> Result<[u8; 32], IdError> {
    <[u8; 32]>::from_hex(text).map_err(|_| IdError::Hex { what, found: text.chars().count() })
}

impl fmt::Display for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hex(), f)
    }
}

impl fmt::Debug for ChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChannelId({self})")
    }
}

impl FromStr for ChannelId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        read_hex_32("channel id", text).map(Self)
    }
}

impl fmt::Display for PaymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0.as_hex(), f)
    }
}

impl fmt::Debug for PaymentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PaymentHash({self})")
    }
}

impl FromStr for PaymentHash {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        read_hex_32("payment hash", text).map(Self)
    }
}

impl fmt::Display for ShortChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (block, transaction, output) = self.parts();
        write!(f, "{block}x{transaction}x{output}")
    }
}

impl fmt::Debug for ShortChannelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShortChannelId({self})")
    }
}

impl FromStr for ShortChannelId {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        parse_short_channel_id(text).ok_or_else(|| IdError::ShortChannelId { text: text.chars().take(32).collect() })
    }
}

fn parse_short_channel_id(text: &str) -> Option<ShortChannelId> {
    let mut parts = text.split('x');
    let block = parse_digits(parts.next()?)?;
    let transaction = parse_digits(parts.next()?)?;
    let output = parse_digits(parts.next()?)?;
    if parts.next().is_some() {
        return None;
    }
    ShortChannelId::new(block, transaction, u16::try_from(output).ok()?)
}

/// A number without sign or leading zeros, so that each id has one spelling.
fn parse_digits(text: &str) -> Option<u32> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    (canonical && digits).then(|| text.parse().ok())?
}

impl fmt::Display for HtlcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Display for CommitmentNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Preimage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Preimage(…)")
    }
}

impl fmt::Debug for PaymentSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PaymentSecret(…)")
    }
}

impl From<lightning::ln::types::ChannelId> for ChannelId {
    fn from(id: lightning::ln::types::ChannelId) -> Self {
        Self(id.0)
    }
}

impl From<ChannelId> for lightning::ln::types::ChannelId {
    fn from(id: ChannelId) -> Self {
        Self(id.0)
    }
}

impl From<lightning::types::payment::PaymentHash> for PaymentHash {
    fn from(hash: lightning::types::payment::PaymentHash) -> Self {
        Self(hash.0)
    }
}

impl From<PaymentHash> for lightning::types::payment::PaymentHash {
    fn from(hash: PaymentHash) -> Self {
        Self(hash.0)
    }
}

impl From<lightning::types::payment::PaymentPreimage> for Preimage {
    fn from(preimage: lightning::types::payment::PaymentPreimage) -> Self {
        Self(preimage.0)
    }
}

impl From<&Preimage> for lightning::types::payment::PaymentPreimage {
    fn from(preimage: &Preimage) -> Self {
        Self(preimage.0)
    }
}

impl From<Preimage> for lightning::types::payment::PaymentPreimage {
    fn from(preimage: Preimage) -> Self {
        Self(preimage.0)
    }
}

impl From<lightning::types::payment::PaymentSecret> for PaymentSecret {
    fn from(secret: lightning::types::payment::PaymentSecret) -> Self {
        Self(secret.0)
    }
}

impl From<&PaymentSecret> for lightning::types::payment::PaymentSecret {
    fn from(secret: &PaymentSecret) -> Self {
        Self(secret.0)
    }
}

impl From<PaymentSecret> for lightning::types::payment::PaymentSecret {
    fn from(secret: PaymentSecret) -> Self {
        Self(secret.0)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bitcoin::Txid;

    #[test]
    fn channel_id_of_a_funding_output_is_the_xor_and_agrees_with_ldk() {
        let txid = Txid::from_byte_array([0xab; 32]);
        for vout in [0, 1, 255, 256, 65_535] {
            let ours = ChannelId::v1_from_funding(OutPoint { txid, vout });
            let index = u16::try_from(vout).unwrap();
            let ldk = lightning::ln::types::ChannelId::v1_from_funding_txid(txid.as_ref(), index);
            assert_eq!(ours, ldk.into());
            assert_eq!(lightning::ln::types::ChannelId::from(ours), ldk);
        }
        let id = ChannelId::v1_from_funding(OutPoint { txid, vout: 0x0102 });
        assert_eq!(&id.0[28..], [0xab, 0xab, 0xaa, 0xa9]);
    }

    #[test]
    fn channel_id_as_text_and_back() {
        let id = ChannelId([0x5a; 32]);
        assert_eq!(id.to_string(), "5a".repeat(32));
        assert_eq!(id.to_string().parse(), Ok(id));
        assert!("5a".parse::<ChannelId>().is_err());
        assert!("zz".repeat(32).parse::<ChannelId>().is_err());
        assert!(ChannelId([0; 32]).is_all() && !id.is_all());
    }

    #[test]
    fn short_channel_id_of_bolt_7s_example() {
        let id = ShortChannelId::new(539_268, 845, 1).unwrap();
        assert_eq!(id.to_string(), "539268x845x1");
        assert_eq!("539268x845x1".parse(), Ok(id));
        assert_eq!(id.parts(), (539_268, 845, 1));
        let top = ShortChannelId(u64::MAX);
        assert_eq!(top.to_string(), "16777215x16777215x65535");
        assert_eq!(top.to_string().parse(), Ok(top));
    }

    #[test]
    fn short_channel_id_that_is_none() {
        assert_eq!(ShortChannelId::new(1 << 24, 0, 0), None);
        assert_eq!(ShortChannelId::new(0, 1 << 24, 0), None);
        for text in ["", "1", "1x2", "1x2x3x4", "1x2x65536", "16777216x0x0", "+1x2x3", "01x2x3", "1x-2x3", "1xx3", "ä"]
        {
            assert!(text.parse::<ShortChannelId>().is_err(), "{text}");
        }
    }

    #[test]
    fn preimage_hashes_as_sha256_and_hides_itself() {
        let preimage = Preimage::new([0; 32]);
        assert_eq!(preimage.hash().to_string(), "66687aadf862bd776c8fc18b8e9f8e20089714856ee233b3902a591d0d5f2925");
        assert_eq!(format!("{:?}", Preimage::new([0x41; 32])), "Preimage(…)");
        assert_eq!(format!("{:?}", PaymentSecret::new([0x41; 32])), "PaymentSecret(…)");
        assert_ne!(PaymentSecret::new([1; 32]), PaymentSecret::new([2; 32]));
        assert_eq!(PaymentSecret::new([1; 32]), PaymentSecret::new([1; 32]));
    }

    #[test]
    fn ids_are_stored_without_overhead() {
        assert_eq!(postcard::to_stdvec(&ChannelId([7; 32])).unwrap(), [7; 32]);
        assert_eq!(postcard::to_stdvec(&Preimage::new([7; 32])).unwrap(), [7; 32]);
        assert_eq!(postcard::to_stdvec(&HtlcId(5)).unwrap(), [5]);
    }

    #[test]
    fn counters_end() {
        assert_eq!(CommitmentNumber(0).previous(), None);
        assert_eq!(CommitmentNumber(0).next(), Some(CommitmentNumber(1)));
        assert_eq!(CommitmentNumber::MAX.next(), None);
        assert_eq!(HtlcId(u64::MAX).next(), None);
    }
}
