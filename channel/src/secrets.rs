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

/// Why several revealed secrets are not accepted at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum BadAdvance {
    /// Secrets are not taken back, and there are no more than 2^48.
    #[error("secrets up to commitment {to} after those up to {from}")]
    Backwards {
        /// The commitment whose secret comes next.
        from: CommitmentNumber,
        /// The one that was to come next.
        to: CommitmentNumber,
    },
    /// As many slots change as these commitments change.
    #[error("{found} slots for the secrets of commitments {from} up to {to}, and {expected} change")]
    Count {
        /// The first commitment.
        from: CommitmentNumber,
        /// The one after the last.
        to: CommitmentNumber,
        /// How many slots change.
        expected: usize,
        /// How many were given.
        found: usize,
    },
    /// They do not come from one seed, or not from that of the earlier ones.
    #[error("the secrets up to commitment {to} do not derive that of commitment {earlier}")]
    DoesNotDerive {
        /// The commitment after the last whose secret was given.
        to: CommitmentNumber,
        /// The one that should derive.
        earlier: CommitmentNumber,
    },
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

impl RevealedSecrets {
    /// What somebody lacks who has every secret before that of commitment `from`: the slots that have changed since, the
    /// lowest first. For n commitments they are at most ⌊log2 n⌋ + 2; none, if nothing was revealed since.
    #[must_use]
    pub fn since(&self, from: CommitmentNumber) -> Vec<[u8; 32]> {
        changed_slots(from.0, self.revealed).map(|slot| self.slots[slot as usize]).collect()
    }

    /// Takes all secrets up to, but without, that of commitment `to` at once: what [`since`](Self::since) gives of them. Every
    /// slot must derive what it covers of the others, and all that was known. A slot that covers none of these could be
    /// anything, as the last secret of [`insert`](Self::insert) could.
    ///
    /// # Errors
    /// [`BadAdvance`]; nothing has changed then.
    pub fn advance(&mut self, to: CommitmentNumber, changed: &[[u8; 32]]) -> Result<(), BadAdvance> {
        if to < self.next() || to.0 > CommitmentNumber::MAX.0 + 1 {
            return Err(BadAdvance::Backwards { from: self.next(), to });
        }
        let expected = changed_slots(self.revealed, to.0).count();
        if changed.len() != expected {
            return Err(BadAdvance::Count { from: self.next(), to, expected, found: changed.len() });
        }
        let mut after = Self { revealed: to.0, slots: self.slots.clone() };
        after.slots.resize(slots_after(to.0), [0; 32]);
        for (slot, secret) in changed_slots(self.revealed, to.0).zip(changed) {
            after.slots[slot as usize] = *secret;
        }
        after.check_slots()?;
        let lowest = CommitmentNumber::MAX.0 + 1 - self.revealed;
        for (slot, secret) in (0..).zip(&self.slots) {
            let earlier = CommitmentNumber(CommitmentNumber::MAX.0 - index_in_slot(slot, lowest));
            if after.get(earlier) != Some(*secret) {
                return Err(BadAdvance::DoesNotDerive { to, earlier });
            }
        }
        *self = after;
        Ok(())
    }

    /// Each slot must derive from the next higher one whose secret covers it; what is higher still then does so too.
    fn check_slots(&self) -> Result<(), BadAdvance> {
        let lowest = CommitmentNumber::MAX.0 + 1 - self.revealed;
        for (slot, secret) in (0..).zip(&self.slots) {
            let index = index_in_slot(slot, lowest);
            let above = (slot + 1..).zip(&self.slots[slot as usize + 1..]);
            let cover = above.into_iter().find(|(bits, _)| index >> bits << bits == index_in_slot(*bits, lowest));
            if cover.is_some_and(|(bits, covering)| derive_secret(*covering, bits, index) != *secret) {
                let earlier = CommitmentNumber(CommitmentNumber::MAX.0 - index);
                return Err(BadAdvance::DoesNotDerive { to: self.next(), earlier });
            }
        }
        Ok(())
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

/// The slots whose content differs after `to` secrets from that after `from`, the lowest first.
fn changed_slots(from: u64, to: u64) -> impl Iterator<Item = u32> {
    let first_index = |revealed: u64| (CommitmentNumber::MAX.0 + 1).saturating_sub(revealed);
    let (before, after) = (first_index(from), first_index(to));
    let is_new = move |slot: &u32| *slot as usize >= slots_after(from);
    let slots = if to > from { slots_after(to) as u32 } else { 0 };
    (0..slots).filter(move |slot| is_new(slot) || index_in_slot(*slot, before) != index_in_slot(*slot, after))
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

    fn secret_of(seed: u8, number: u64) -> [u8; 32] {
        derive_secret([seed; 32], 48, index_of(CommitmentNumber(number)))
    }

    fn revealed(seed: u8, count: u64) -> RevealedSecrets {
        let mut secrets = RevealedSecrets::new();
        for number in 0..count {
            secrets.insert(CommitmentNumber(number), secret_of(seed, number)).unwrap();
        }
        secrets
    }

    #[test]
    fn since_any_commitment_brings_another_store_to_the_same() {
        let all: Vec<RevealedSecrets> = (0..=140).map(|count| revealed(7, count)).collect();
        for (from, before) in all.iter().enumerate() {
            for (to, after) in all.iter().enumerate().skip(from) {
                let changed = after.since(CommitmentNumber(from as u64));
                let count = to - from;
                assert!(changed.len() <= if count == 0 { 0 } else { count.ilog2() as usize + 2 }, "{from} to {to}");
                let mut advanced = before.clone();
                advanced.advance(CommitmentNumber(to as u64), &changed).unwrap();
                assert_eq!(advanced, *after, "{from} to {to}");
            }
        }
    }

    #[test]
    fn advance_by_1024_takes_at_most_twelve_slots() {
        let mut after = revealed(3, 5000);
        for number in 5000..6024 {
            after.insert(CommitmentNumber(number), secret_of(3, number)).unwrap();
        }
        assert!(after.since(CommitmentNumber(5000)).len() <= 12);
    }

    #[test]
    fn advance_with_one_wrong_bit_anywhere_changes_nothing() {
        // After a power of two the highest slot derives all others.
        let (before, after) = (revealed(7, 77), revealed(7, 1024));
        let changed = after.since(before.next());
        let mut refused = 0;
        for slot in 0..changed.len() {
            let mut wrong = changed.clone();
            wrong[slot][31] ^= 1;
            let mut secrets = before.clone();
            let result = secrets.advance(CommitmentNumber(1024), &wrong);
            assert!(matches!(result, Err(BadAdvance::DoesNotDerive { .. })), "slot {slot}: {result:?}");
            assert_eq!(secrets, before);
            refused += 1;
        }
        assert!(refused > 8);
    }

    #[test]
    fn advance_from_another_seed_is_refused_by_what_was_known() {
        let mut secrets = revealed(7, 77);
        let foreign = revealed(8, 128).since(CommitmentNumber(77));
        let result = secrets.advance(CommitmentNumber(128), &foreign);
        assert!(matches!(result, Err(BadAdvance::DoesNotDerive { .. })), "{result:?}");
        assert_eq!(secrets, revealed(7, 77));
    }

    #[test]
    fn advance_backwards_too_far_or_with_another_count() {
        let mut secrets = revealed(7, 77);
        let (from, back) = (CommitmentNumber(77), CommitmentNumber(76));
        assert_eq!(secrets.advance(back, &[]), Err(BadAdvance::Backwards { from, to: back }));
        let beyond = CommitmentNumber(CommitmentNumber::MAX.0 + 2);
        assert_eq!(secrets.advance(beyond, &[]), Err(BadAdvance::Backwards { from, to: beyond }));
        let to = CommitmentNumber(78);
        let expected = revealed(7, 78).since(from).len();
        assert_eq!(secrets.advance(to, &[]), Err(BadAdvance::Count { from, to, expected, found: 0 }));
        assert_eq!(secrets.advance(from, &[]), Ok(()));
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
