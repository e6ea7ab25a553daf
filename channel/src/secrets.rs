//! The commitment secrets: how they derive from one seed, and the peer's revealed ones in at most 49 slots
//! (BOLT 3, "Per-commitment Secret Requirements" and "Efficient Per-commitment Secret Storage").
//!
//! BOLT 3 counts secrets down from 2^48 − 1 by an *index*; everywhere else in Millrace a commitment has a
//! *number* counting up from 0. Nothing outside this module sees an index.

use core::fmt;

use bitcoin::hashes::{Hash, sha256};
use millrace_wire::CommitmentNumber;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Bits of an index.
const INDEX_BITS: u32 = 48;

/// The most slots there can be: one for each count of trailing zero bits, and one for index 0.
const SLOTS_MAX: usize = 49;

/// The index that BOLT 3 gives the secret of commitment `number`.
///
/// # Panics
/// For a number of more than 48 bits: no commitment has one.
pub(crate) fn index_of(number: CommitmentNumber) -> u64 {
    CommitmentNumber::MAX.0.checked_sub(number.0).expect("a commitment number has at most 48 bits")
}

/// From the secret of an index whose low `bits` bits are zero, the secret of `index`, which shares the others.
/// With 48 bits it is the seed that stands for "index 0" (BOLT 3, `generate_from_seed`).
pub(crate) fn derive_secret(secret: [u8; 32], bits: u32, index: u64) -> [u8; 32] {
    let mut value = secret;
    for bit in (0..bits).rev() {
        if index >> bit & 1 == 1 {
            value[(bit / 8) as usize] ^= 1 << (bit % 8);
            value = sha256::Hash::hash(&value).to_byte_array();
        }
    }
    value
}

/// Why a revealed secret is not accepted. The peer is at fault: BOLT 2 has the channel fail.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadSecret {
    /// Secrets are revealed one after the other.
    #[error("secret of commitment {found} while that of {expected} is the next")]
    OutOfOrder {
        /// The commitment whose secret comes next.
        expected: CommitmentNumber,
        /// The one that was given.
        found: CommitmentNumber,
    },
    /// The peer's secrets do not come from one seed, so they could not be stored compactly.
    #[error("secret of commitment {number} does not derive that of commitment {earlier}")]
    DoesNotDerive {
        /// The commitment whose secret was given.
        number: CommitmentNumber,
        /// The earlier one that should derive from it.
        earlier: CommitmentNumber,
    },
}

/// A revealed per-commitment secret. Its `Debug` shows nothing.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret(pub [u8; 32]);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Every secret that the peer has revealed, from that of commitment 0 on without a gap, in at most 49 × 32 bytes.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct RevealedSecrets {
    /// How many commitments are revoked, which is also the number of the next one to be.
    revealed: u64,
    /// Slot `b` holds the secret of the lowest revealed index with exactly `b` trailing zero bits.
    slots: Vec<[u8; 32]>,
}

impl RevealedSecrets {
    /// No secret yet.
    #[must_use]
    pub const fn new() -> Self {
        Self { revealed: 0, slots: Vec::new() }
    }

    /// The commitment whose secret comes next; all before it are revoked.
    #[must_use]
    pub const fn next(&self) -> CommitmentNumber {
        CommitmentNumber(self.revealed)
    }

    /// Takes the secret of the [next](Self::next) commitment, if it derives all that it should (BOLT 3,
    /// `insert_secret`). That it belongs to the commitment's point is for the caller to check.
    ///
    /// # Errors
    /// [`BadSecret`]; nothing has changed then.
    pub fn insert(&mut self, number: CommitmentNumber, secret: [u8; 32]) -> Result<(), BadSecret> {
        if number.0 != self.revealed || number > CommitmentNumber::MAX {
            return Err(BadSecret::OutOfOrder { expected: self.next(), found: number });
        }
        let index = index_of(number);
        let slot = index.trailing_zeros().min(INDEX_BITS);
        for (bit, known) in (0..slot).zip(&self.slots) {
            let below = index | 1 << bit;
            if derive_secret(secret, slot, below) != *known {
                let earlier = CommitmentNumber(CommitmentNumber::MAX.0 - below);
                return Err(BadSecret::DoesNotDerive { number, earlier });
            }
        }
        match self.slots.get_mut(slot as usize) {
            Some(held) => *held = secret,
            None => self.slots.push(secret),
        }
        self.revealed += 1;
        Ok(())
    }

    /// The secret of commitment `number`, or `None` while it is not revoked.
    #[must_use]
    pub fn get(&self, number: CommitmentNumber) -> Option<[u8; 32]> {
        if number.0 >= self.revealed {
            return None;
        }
        let index = index_of(number);
        let lowest = CommitmentNumber::MAX.0 + 1 - self.revealed;
        (0..).zip(&self.slots).find_map(|(slot, secret)| {
            let covers = index >> slot << slot == index_in_slot(slot, lowest);
            covers.then(|| derive_secret(*secret, slot, index))
        })
    }
}

impl fmt::Debug for RevealedSecrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevealedSecrets").field("revealed", &self.revealed).finish_non_exhaustive()
    }
}

/// The lowest index that is at least `lowest` and has exactly `slot` trailing zero bits.
fn index_in_slot(slot: u32, lowest: u64) -> u64 {
    if slot == INDEX_BITS {
        return 0;
    }
    let steps = lowest.div_ceil(1 << slot);
    (steps | 1) << slot
}

/// How many slots are in use after so many secrets: one more at each power of two.
const fn slots_after(revealed: u64) -> usize {
    (u64::BITS - revealed.leading_zeros()) as usize
}

/// [`RevealedSecrets`] as read back, before its two halves are held against each other.
#[derive(Deserialize)]
struct Stored {
    revealed: u64,
    slots: Vec<[u8; 32]>,
}

/// Why stored secrets cannot be what was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{revealed} revealed secrets stored in {slots} slots")]
pub struct BadStore {
    revealed: u64,
    slots: usize,
}

impl TryFrom<Stored> for RevealedSecrets {
    type Error = BadStore;

    fn try_from(Stored { revealed, slots }: Stored) -> Result<Self, BadStore> {
        if revealed > CommitmentNumber::MAX.0 + 1 || slots.len() > SLOTS_MAX || slots.len() != slots_after(revealed) {
            return Err(BadStore { revealed, slots: slots.len() });
        }
        Ok(Self { revealed, slots })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bytes(hex: &str) -> [u8; 32] {
        hex::decode(hex.trim_start_matches("0x")).unwrap().try_into().unwrap()
    }

    fn integer(text: &str) -> u64 {
        text.strip_prefix("0x").map_or_else(|| text.parse().unwrap(), |hex| u64::from_str_radix(hex, 16).unwrap())
    }

    /// The lines `key: value` of Appendix D, one list for each `name:`.
    fn cases() -> Vec<(&'static str, Vec<(&'static str, &'static str)>)> {
        let mut cases = Vec::new();
        for line in include_str!("../tests/vectors/shachain-appendixD.txt").lines() {
            let Some((key, value)) = line.trim().split_once(": ") else { continue };
            match key {
                "name" => cases.push((value, Vec::new())),
                "seed" | "I" | "secret" | "output" => cases.last_mut().unwrap().1.push((key, value)),
                _ => {}
            }
        }
        cases
    }

    #[test]
    fn appendix_d_generation() {
        let mut generated = 0;
        for (name, fields) in cases().into_iter().filter(|(name, _)| name.starts_with("generate_from_seed")) {
            let [("seed", seed), ("I", index), ("output", output)] = fields[..] else { panic!("{name}") };
            assert_eq!(derive_secret(bytes(seed), 48, integer(index)), bytes(output), "{name}");
            generated += 1;
        }
        assert_eq!(generated, 5);
    }

    #[test]
    fn appendix_d_storage() {
        let (mut stored, mut refused) = (0, 0);
        for (name, fields) in cases().into_iter().filter(|(name, _)| name.starts_with("insert_secret")) {
            let mut secrets = RevealedSecrets::new();
            for step in fields.chunks(3) {
                let [("I", index), ("secret", secret), ("output", output)] = *step else { panic!("{name}") };
                let number = CommitmentNumber(CommitmentNumber::MAX.0 - integer(index));
                let before = secrets.clone();
                match (secrets.insert(number, bytes(secret)), output) {
                    (Ok(()), "OK") => stored += 1,
                    (Err(BadSecret::DoesNotDerive { number: found, .. }), "ERROR") if found == number => {
                        assert_eq!(secrets, before, "{name}");
                        refused += 1;
                    }
                    (result, _) => panic!("{name}, {index}: {result:?} instead of {output}"),
                }
            }
        }
        assert_eq!((stored, refused), (8 + 1 + 3 + 3 + 7 + 5 + 7 + 7 + 7, 8));
    }

    #[test]
    fn every_revealed_secret_can_be_had_again() {
        let seed = [0x5e; 32];
        let mut secrets = RevealedSecrets::new();
        for number in 0..1100 {
            let number = CommitmentNumber(number);
            assert_eq!(secrets.next(), number);
            assert_eq!(secrets.get(number), None);
            secrets.insert(number, derive_secret(seed, 48, index_of(number))).unwrap();
            for earlier in (0..=number.0).map(CommitmentNumber) {
                assert_eq!(secrets.get(earlier), Some(derive_secret(seed, 48, index_of(earlier))));
            }
        }
        assert_eq!(secrets.slots.len(), 11);
        assert_eq!(secrets.get(CommitmentNumber(u64::MAX)), None);
    }

    #[test]
    fn the_last_secrets_of_a_channel_derive_all_others() {
        // As if all but four of 2^48 had been revealed: every slot that BOLT 3 would hold by then.
        let seed = [0x17; 32];
        let revealed = CommitmentNumber::MAX.0 - 3;
        let slots = (0..48).map(|slot| derive_secret(seed, 48, index_in_slot(slot, 4))).collect();
        let mut secrets = RevealedSecrets { revealed, slots };
        for number in revealed..=CommitmentNumber::MAX.0 {
            let number = CommitmentNumber(number);
            secrets.insert(number, derive_secret(seed, 48, index_of(number))).unwrap();
        }
        assert_eq!(secrets.slots.len(), SLOTS_MAX);
        for number in [0, 1, 2, 3, 1 << 40, (1 << 47) + 12345, revealed, CommitmentNumber::MAX.0] {
            let number = CommitmentNumber(number);
            assert_eq!(secrets.get(number), Some(derive_secret(seed, 48, index_of(number))), "{number}");
        }
        let after = CommitmentNumber(CommitmentNumber::MAX.0 + 1);
        assert_eq!(secrets.insert(after, seed), Err(BadSecret::OutOfOrder { expected: after, found: after }));
        let back: RevealedSecrets = postcard::from_bytes(&postcard::to_stdvec(&secrets).unwrap()).unwrap();
        assert_eq!(back, secrets);
    }

    #[test]
    fn out_of_order_changes_nothing() {
        let mut secrets = RevealedSecrets::new();
        let refused = secrets.insert(CommitmentNumber(1), [1; 32]);
        assert_eq!(refused, Err(BadSecret::OutOfOrder { expected: CommitmentNumber(0), found: CommitmentNumber(1) }));
        assert_eq!(secrets, RevealedSecrets::new());
    }

    #[test]
    fn stored_compactly_and_read_back() {
        let mut secrets = RevealedSecrets::new();
        for number in (0..300).map(CommitmentNumber) {
            secrets.insert(number, derive_secret([9; 32], 48, index_of(number))).unwrap();
        }
        let stored = postcard::to_stdvec(&secrets).unwrap();
        assert_eq!(stored.len(), 2 + 1 + 9 * 32);
        assert_eq!(postcard::from_bytes::<RevealedSecrets>(&stored).unwrap(), secrets);
        let (count_too_high, slots_missing) = ((512_u64, secrets.slots.clone()), (300_u64, &secrets.slots[..8]));
        for damaged in [postcard::to_stdvec(&count_too_high), postcard::to_stdvec(&slots_missing)] {
            assert!(postcard::from_bytes::<RevealedSecrets>(&damaged.unwrap()).is_err());
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let mut secrets = RevealedSecrets::new();
        secrets.insert(CommitmentNumber(0), [0xab; 32]).unwrap();
        assert_eq!(format!("{secrets:?}"), "RevealedSecrets { revealed: 1, .. }");
    }
}
