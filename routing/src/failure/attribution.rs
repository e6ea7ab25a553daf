//! Who held an HTLC for how long, and where a failure was garbled (BOLT 4, "Attribution data").
//!
//! Each hop on the way back adds its hold time and one HMAC for every place in the route that it may have, since
//! it does not know its place. The sender knows, and checks the one for that place. HMACs have four bytes: a hop
//! may guess one, so what comes of it is a penalty in path finding, never money.
//!
//! The HMACs form a triangle. Block 0 has 20 of the hop that wrote last, block 1 has 19 of the hop behind it, and
//! so on: a hop with another before it cannot have 19 behind it. In each block they are ordered from most hops
//! behind to none.

use core::time::Duration;

use millrace_wire::AttributionData;
use serde::{Deserialize, Serialize};

use super::FailureMessage;
use super::packet::{Decoded, PADDED, Undecodable, authenticate, decode_layers, wrap};
use crate::cipher::{Label, SharedSecret};

/// BOLT 4: hops from the twenty-first on cannot be attributed.
pub const MAX_ATTRIBUTED: usize = 20;

const TIME: usize = 4;
const MAC: usize = 4;

/// For how long a hop held an HTLC, in units of 100 milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HoldTime(pub u32);

impl HoldTime {
    /// The full units in `held`; what is beyond counting counts as the most.
    #[must_use]
    pub fn floor(held: Duration) -> Self {
        Self(u32::try_from(held.as_millis() / 100).unwrap_or(u32::MAX))
    }

    /// What it stands for.
    #[must_use]
    pub fn to_duration(self) -> Duration {
        Duration::from_millis(u64::from(self.0) * 100)
    }
}

/// What `update_fail_htlc` carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// Encrypted for the sender.
    pub reason: Vec<u8>,
    /// Who held it for how long.
    pub attribution: Box<AttributionData>,
}

/// The hold times that the sender could check.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct HoldTimes {
    /// Of the first hops, first hop first, for as long as each vouches for its own.
    pub hops: Vec<HoldTime>,
    /// The first hop that does not: it or the hop before it garbled the data or does not know of it. None when
    /// all do.
    pub broken_at: Option<usize>,
}

/// A failure with its attribution, as the sender understands it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attributed {
    /// Who failed and why.
    pub failure: Result<Decoded, Undecodable>,
    /// Up to the hop that failed, or to the end of the route when that is not known.
    pub hold_times: HoldTimes,
}

/// The failure at the node where it happens.
#[must_use]
pub fn fail(shared_secret: &SharedSecret, message: &FailureMessage, held: HoldTime) -> Failure {
    finish(shared_secret, authenticate(shared_secret, &message.encode(), PADDED), blank(), held)
}

/// A failure that came from the next hop, on to the one before. A next hop without attribution data does not keep
/// this one from adding its own.
#[must_use]
pub fn pass_back(
    shared_secret: &SharedSecret,
    reason: Vec<u8>,
    attribution: Option<&AttributionData>,
    held: HoldTime,
) -> Failure {
    finish(shared_secret, reason, attribution.map_or_else(blank, make_room), held)
}

/// The data for `update_fulfill_htlc`: of the last node, with nothing from downstream, or of a hop.
#[must_use]
pub fn fulfill(
    shared_secret: &SharedSecret,
    downstream: Option<&AttributionData>,
    held: HoldTime,
) -> Box<AttributionData> {
    let mut attribution = downstream.map_or_else(blank, make_room);
    sign(&mut attribution, shared_secret, &[], held);
    encrypt(&mut attribution, shared_secret);
    attribution
}

/// Reads a failure with its attribution at the sender, whose onion had these shared secrets, first hop first.
#[must_use]
pub fn decode_attributed(
    shared_secrets: &[SharedSecret],
    reason: &[u8],
    attribution: Option<&AttributionData>,
) -> Attributed {
    let mut reader = attribution.map(|attribution| HoldTimesReader::new(attribution, shared_secrets));
    let failure = decode_layers(shared_secrets, reason, |_, packet| {
        if let Some(reader) = &mut reader {
            reader.take(packet);
        }
    });
    let mut hold_times = reader.map(|reader| reader.found).unwrap_or_default();
    if let Ok(Decoded { hop, .. }) | Err(Undecodable::Garbage { hop, .. }) = failure {
        hold_times.hops.truncate(hop + 1);
        hold_times.broken_at = hold_times.broken_at.filter(|broken| *broken <= hop);
    }
    Attributed { failure, hold_times }
}

/// Reads the attribution of a fulfilled HTLC at the sender.
#[must_use]
pub fn hold_times(shared_secrets: &[SharedSecret], attribution: &AttributionData) -> HoldTimes {
    let mut reader = HoldTimesReader::new(attribution, shared_secrets);
    for _ in shared_secrets {
        reader.take(&[]);
    }
    reader.found
}

fn finish(
    shared_secret: &SharedSecret,
    reason: Vec<u8>,
    mut attribution: Box<AttributionData>,
    held: HoldTime,
) -> Failure {
    sign(&mut attribution, shared_secret, &reason, held);
    encrypt(&mut attribution, shared_secret);
    Failure { reason: wrap(shared_secret, reason), attribution }
}

fn blank() -> Box<AttributionData> {
    Box::new(AttributionData { hold_times: [0; MAX_ATTRIBUTED * TIME], hmacs: [0; 840] })
}

/// Encrypts, and decrypts.
fn encrypt(attribution: &mut AttributionData, shared_secret: &SharedSecret) {
    let AttributionData { hold_times, hmacs } = attribution;
    shared_secret.key(Label::AmmagExt).apply_stream_on_both(hold_times, hmacs);
}

/// Where an HMAC lies: `entry` of the hop that is `block` hops behind the first.
fn hmac_at(block: usize, entry: usize) -> core::ops::Range<usize> {
    let before: usize = (0..block).map(|earlier| MAX_ATTRIBUTED - earlier).sum();
    let at = (before + entry) * MAC;
    at..at + MAC
}

/// Writes the first hop's hold time and its HMACs for every place.
fn sign(attribution: &mut AttributionData, shared_secret: &SharedSecret, message: &[u8], held: HoldTime) {
    attribution.hold_times[..TIME].copy_from_slice(&held.0.to_be_bytes());
    for behind in 0..MAX_ATTRIBUTED {
        let mac = hmac(attribution, shared_secret, message, behind);
        attribution.hmacs[hmac_at(0, MAX_ATTRIBUTED - 1 - behind)].copy_from_slice(&mac);
    }
}

/// The first hop's HMAC if it has so many hops behind it: over the message, the hold times from it to the end,
/// and the HMACs that those hops made for the places they have then.
fn hmac(attribution: &AttributionData, shared_secret: &SharedSecret, message: &[u8], behind: usize) -> [u8; MAC] {
    let mut downstream = [0; (MAX_ATTRIBUTED - 1) * MAC];
    for block in 1..=behind {
        // A block is one shorter than the one before and its hop has one hop fewer behind it: the same entry.
        let mac = &attribution.hmacs[hmac_at(block, MAX_ATTRIBUTED - 1 - behind)];
        downstream[(block - 1) * MAC..block * MAC].copy_from_slice(mac);
    }
    let times = &attribution.hold_times[..(behind + 1) * TIME];
    let full = shared_secret.key(Label::Um).hmac(&[message, times, &downstream[..behind * MAC]]);
    *full.first_chunk().expect("an HMAC has 32 bytes")
}

/// Moves everything one hop back. What was made for the last place possible is not possible any more.
fn make_room(attribution: &AttributionData) -> Box<AttributionData> {
    let mut moved = blank();
    moved.hold_times[TIME..].copy_from_slice(&attribution.hold_times[..(MAX_ATTRIBUTED - 1) * TIME]);
    for block in 1..MAX_ATTRIBUTED {
        for entry in 0..MAX_ATTRIBUTED - block {
            moved.hmacs[hmac_at(block, entry)].copy_from_slice(&attribution.hmacs[hmac_at(block - 1, entry + 1)]);
        }
    }
    moved
}

/// The reverse. The entries that were lost come back as zeros: they are of places that no hop here can have.
fn take_room(attribution: &AttributionData) -> Box<AttributionData> {
    let mut moved = blank();
    moved.hold_times[..(MAX_ATTRIBUTED - 1) * TIME].copy_from_slice(&attribution.hold_times[TIME..]);
    for block in 1..MAX_ATTRIBUTED {
        for entry in 0..MAX_ATTRIBUTED - block {
            moved.hmacs[hmac_at(block - 1, entry + 1)].copy_from_slice(&attribution.hmacs[hmac_at(block, entry)]);
        }
    }
    moved
}

/// Goes down the route, one hop at a time.
struct HoldTimesReader<'a> {
    attribution: Box<AttributionData>,
    /// Of the hops not yet read.
    secrets: &'a [SharedSecret],
    found: HoldTimes,
}

impl<'a> HoldTimesReader<'a> {
    fn new(attribution: &AttributionData, shared_secrets: &'a [SharedSecret]) -> Self {
        Self { attribution: Box::new(attribution.clone()), secrets: shared_secrets, found: HoldTimes::default() }
    }

    /// Reads the next hop's, whose failure packet was `message`.
    fn take(&mut self, message: &[u8]) {
        let (None, Some((secret, rest))) = (self.found.broken_at, self.secrets.split_first()) else {
            return;
        };
        self.secrets = rest;
        encrypt(&mut self.attribution, secret);
        let behind = rest.len();
        let is_its = behind < MAX_ATTRIBUTED && {
            let claimed = &self.attribution.hmacs[hmac_at(0, MAX_ATTRIBUTED - 1 - behind)];
            hmac(&self.attribution, secret, message, behind) == claimed
        };
        if !is_its {
            self.found.broken_at = Some(self.found.hops.len());
            return;
        }
        let held = *self.attribution.hold_times.first_chunk().expect("20 hold times");
        self.found.hops.push(HoldTime(u32::from_be_bytes(held)));
        self.attribution = take_room(&self.attribution);
    }
}

#[cfg(test)]
mod tests;
