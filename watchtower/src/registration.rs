//! What a tower is told of a channel, once: enough to punish every revoked commitment of the peer (BOLT 3 and 5), and of
//! no use for anything else, nor for any other channel.
//!
//! Encoded as one version byte and fixed fields in network order, about 150 bytes. A change of the encoding is a new
//! version; every released one stays readable.

use std::fmt;

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, ScriptBuf, Txid};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::side::Side;
use millrace_channel::terms::{CommitmentFormat, Terms};
use millrace_channel::tx::commitment::obscuring_factor;
use millrace_wire::{ChannelId, Sat};
use secp256k1::{PublicKey, SecretKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The encoding that is written.
const VERSION: u8 = 1;
/// Everything before the sweep script: version, outpoint, secret, point, delay, factor, format, capacity, length.
const FIXED_BYTES: usize = 1 + 32 + 4 + 32 + 33 + 2 + 6 + 1 + 8 + 1;
/// The shortest and the longest witness program's script.
const SWEEP_SCRIPT_BYTES: std::ops::RangeInclusive<usize> = 4..=42;
/// The most that an encoded registration takes.
pub const REGISTRATION_BYTES_MAX: usize = FIXED_BYTES + *SWEEP_SCRIPT_BYTES.end();
/// The bits of a commitment number, and of what obscures it.
const NUMBER_BITS: u32 = 48;

/// What a tower is told of a channel. Its `Debug` shows no secret, and the secret is wiped with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Registration {
    /// The output that every commitment spends.
    pub funding_outpoint: OutPoint,
    /// The secret of our `revocation_basepoint` in this channel: with a secret of the peer's it makes the key that punishes.
    revocation_secret: SecretKey,
    /// The peer's `delayed_payment_basepoint`.
    pub remote_delayed_payment: PublicKey,
    /// The blocks for which the peer's own outputs are delayed, as this side asked it to.
    pub to_self_delay: u16,
    /// What obscures commitment numbers: 48 bits.
    pub obscuring_factor: u64,
    /// How the commitments look.
    pub format: CommitmentFormat,
    /// The value of the funding output.
    pub capacity: Sat,
    /// Where whatever is taken from a cheater goes. Fixed: a tower cannot choose.
    pub sweep_script: ScriptBuf,
}

/// Why bytes are no registration, or one that makes no sense.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum BadRegistration {
    /// Not as long as such a registration is.
    #[error("{found} bytes where a registration has {expected}")]
    Length {
        /// Bytes that its own fields ask for.
        expected: usize,
        /// Bytes there were.
        found: usize,
    },
    /// From a newer build.
    #[error("registration version {0}: this build knows version {VERSION}")]
    UnknownVersion(u8),
    /// A field that cannot be what it says.
    #[error("{field} is not right: {reason}")]
    Field {
        /// Which.
        field: &'static str,
        /// Why.
        reason: String,
    },
}

fn wrong(field: &'static str, reason: impl fmt::Display) -> BadRegistration {
    BadRegistration::Field { field, reason: reason.to_string() }
}

impl Registration {
    /// Of the channel with these terms and keys of ours.
    ///
    /// # Errors
    /// [`BadRegistration::Field`] if the sweep script is no witness program.
    pub fn of(terms: &Terms, keys: &ChannelKeys, sweep_script: ScriptBuf) -> Result<Self, BadRegistration> {
        let registration = Self {
            funding_outpoint: terms.funding_outpoint,
            revocation_secret: *keys.revocation_basepoint_secret(),
            remote_delayed_payment: terms.party(Side::Remote).basepoints.delayed_payment,
            to_self_delay: terms.delay_of(Side::Remote),
            obscuring_factor: obscuring_factor(terms),
            format: terms.format(),
            capacity: terms.capacity,
            sweep_script,
        };
        registration.check()?;
        Ok(registration)
    }

    fn check(&self) -> Result<(), BadRegistration> {
        if self.to_self_delay == 0 {
            return Err(wrong("to_self_delay", "0 blocks leave no time to punish"));
        }
        if self.obscuring_factor >> NUMBER_BITS != 0 {
            return Err(wrong("obscuring_factor", "more than 48 bits"));
        }
        if self.capacity == Sat::ZERO || !self.capacity.is_money() {
            return Err(wrong("capacity", format!("{} is no channel's", self.capacity)));
        }
        if !self.sweep_script.is_witness_program() {
            return Err(wrong("sweep_script", "not a witness program"));
        }
        Ok(())
    }

    /// The channel's id.
    #[must_use]
    pub fn channel_id(&self) -> ChannelId {
        ChannelId::v1_from_funding(self.funding_outpoint)
    }

    /// The secret of our `revocation_basepoint`.
    pub(crate) const fn revocation_secret(&self) -> &SecretKey {
        &self.revocation_secret
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(self.funding_outpoint.txid.as_byte_array());
        out.extend_from_slice(&self.funding_outpoint.vout.to_be_bytes());
        out.extend_from_slice(&self.revocation_secret.secret_bytes());
        out.extend_from_slice(&self.remote_delayed_payment.serialize());
        out.extend_from_slice(&self.to_self_delay.to_be_bytes());
        out.extend_from_slice(&self.obscuring_factor.to_be_bytes()[2..]);
        out.push(match self.format {
            CommitmentFormat::StaticRemotekey => 0,
            CommitmentFormat::Anchors => 1,
        });
        out.extend_from_slice(&self.capacity.0.to_be_bytes());
        let length = u8::try_from(self.sweep_script.len()).expect("a witness program has at most 42 bytes");
        out.push(length);
        out.extend_from_slice(self.sweep_script.as_bytes());
    }

    /// Reads one registration, which must be all of `bytes`.
    ///
    /// # Errors
    /// [`BadRegistration`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BadRegistration> {
        let length = |expected| BadRegistration::Length { expected, found: bytes.len() };
        match bytes.first() {
            Some(&VERSION) => {}
            Some(&version) => return Err(BadRegistration::UnknownVersion(version)),
            None => return Err(length(FIXED_BYTES)),
        }
        let Some((fixed, script)) = bytes.split_at_checked(FIXED_BYTES) else { return Err(length(FIXED_BYTES)) };
        let script_bytes = usize::from(fixed[FIXED_BYTES - 1]);
        if !SWEEP_SCRIPT_BYTES.contains(&script_bytes) {
            return Err(wrong("sweep_script", format!("{script_bytes} bytes")));
        }
        if script.len() != script_bytes {
            return Err(length(FIXED_BYTES + script_bytes));
        }
        let registration = Self::decode_fixed(fixed, script)?;
        registration.check()?;
        Ok(registration)
    }

    fn decode_fixed(fixed: &[u8], script: &[u8]) -> Result<Self, BadRegistration> {
        let mut rest = &fixed[1..];
        let txid = Txid::from_byte_array(take(&mut rest));
        let vout = u32::from_be_bytes(take(&mut rest));
        let revocation_secret = SecretKey::from_slice(&take::<32>(&mut rest));
        let remote_delayed_payment = PublicKey::from_slice(&take::<33>(&mut rest));
        let to_self_delay = u16::from_be_bytes(take(&mut rest));
        let [a, b, c, d, e, f] = take::<6>(&mut rest);
        let format = match take::<1>(&mut rest) {
            [0] => CommitmentFormat::StaticRemotekey,
            [1] => CommitmentFormat::Anchors,
            [other] => return Err(wrong("format", format!("{other} is none"))),
        };
        Ok(Self {
            funding_outpoint: OutPoint { txid, vout },
            revocation_secret: revocation_secret.map_err(|error| wrong("revocation_secret", error))?,
            remote_delayed_payment: remote_delayed_payment.map_err(|error| wrong("delayed_payment", error))?,
            to_self_delay,
            obscuring_factor: u64::from_be_bytes([0, 0, a, b, c, d, e, f]),
            format,
            capacity: Sat(u64::from_be_bytes(take(&mut rest))),
            sweep_script: ScriptBuf::from_bytes(script.to_vec()),
        })
    }
}

impl From<Registration> for Vec<u8> {
    fn from(registration: Registration) -> Self {
        let mut bytes = Vec::with_capacity(REGISTRATION_BYTES_MAX);
        registration.encode(&mut bytes);
        bytes
    }
}

impl TryFrom<Vec<u8>> for Registration {
    type Error = BadRegistration;

    fn try_from(bytes: Vec<u8>) -> Result<Self, BadRegistration> {
        Self::decode(&bytes)
    }
}

/// The next bytes of a slice whose length was checked.
fn take<const N: usize>(rest: &mut &[u8]) -> [u8; N] {
    let (first, others) = rest.split_first_chunk().expect("the fields are the fixed length together");
    *rest = others;
    *first
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("funding_outpoint", &self.funding_outpoint)
            .field("to_self_delay", &self.to_self_delay)
            .field("format", &self.format)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.revocation_secret.non_secure_erase();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::samples::registration;

    #[test]
    fn encoded_in_about_150_bytes_and_read_back() {
        let mut bytes = Vec::new();
        registration(1).encode(&mut bytes);
        assert_eq!(bytes.len(), 142);
        assert!(bytes.len() <= REGISTRATION_BYTES_MAX && REGISTRATION_BYTES_MAX == 162);
        assert_eq!(Registration::decode(&bytes).unwrap(), registration(1));
    }

    #[test]
    fn cut_or_lengthened_anywhere_is_refused() {
        let mut bytes = Vec::new();
        registration(1).encode(&mut bytes);
        for length in 0..bytes.len() {
            assert!(Registration::decode(&bytes[..length]).is_err(), "{length} bytes");
        }
        bytes.push(0);
        let (expected, found) = (142, 143);
        assert_eq!(Registration::decode(&bytes), Err(BadRegistration::Length { expected, found }));
    }

    #[test]
    fn fields_that_make_no_sense_are_named() {
        let mut bytes = Vec::new();
        registration(1).encode(&mut bytes);
        let cases: [(usize, &[u8], &str); 8] = [
            (0, &[2], "version 2"),
            (37, &[0; 32], "revocation_secret"),
            (69, &[9], "delayed_payment"),
            (102, &[0, 0], "to_self_delay"),
            (110, &[2], "format"),
            (111, &[0; 8], "capacity"),
            (119, &[3], "sweep_script is not right: 3 bytes"),
            (120, &[0x76], "sweep_script is not right: not a witness program"),
        ];
        for (at, put, expected) in cases {
            let mut wrong = bytes.clone();
            wrong[at..at + put.len()].copy_from_slice(put);
            let error = Registration::decode(&wrong).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} instead of {expected}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!("{:?}", registration(1));
        let secret = registration(1).revocation_secret().secret_bytes();
        let shown: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
        assert!(!text.contains(&shown) && text.contains("funding_outpoint"));
    }
}
