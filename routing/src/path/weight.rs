//! What a hop costs besides its fee: the risk that it cannot carry the amount, the time for which money may be locked, and
//! being a hop at all. All of it is in millisatoshi, so that it can be held against fees.

use std::collections::BTreeMap;

use millrace_wire::{Msat, ShortChannelId};

use crate::graph::Direction;
use crate::liquidity::{Liquidity, Way};

/// What parts under way hold of each channel.
pub type InFlight = BTreeMap<Way, Msat>;

/// Every hop may fail for reasons of its own.
const PER_HOP_MSAT: u64 = 500;
/// An attempt that fails costs the user about a second, and this much of his patience...
const FAILURE_MSAT: f64 = 20_000.0;
/// ...and for larger amounts, so much of the amount.
const FAILURE_SHARE: f64 = 0.001;
/// A chance below this is none.
const CHANCE_MIN: f64 = 0.01;
/// Money that may be locked for a block costs this part of it: about a tenth in a year.
const BLOCK_SHARE: u64 = 525_600;

/// How ways are weighed.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// What is known of channels.
    pub liquidity: &'a Liquidity,
    /// What parts of ours hold already.
    pub in_flight: &'a InFlight,
    /// Seconds of Unix time.
    pub now: u32,
}

impl Weights<'_> {
    /// What a hop costs besides its fee. `None`: it cannot carry the amount.
    pub(super) fn of_hop(
        &self,
        short_channel_id: ShortChannelId,
        direction: Direction,
        capacity: Msat,
        amount: Msat,
        delta: u32,
    ) -> Option<u64> {
        let way = (short_channel_id, direction);
        let bounds = self.liquidity.bounds(way, capacity, self.now);
        let held = self.in_flight.get(&way).copied().unwrap_or(Msat::ZERO);
        let chance = bounds.chance(Msat(amount.0.checked_add(held.0)?));
        if chance < CHANCE_MIN {
            return None;
        }
        Some(PER_HOP_MSAT + risk(chance, amount) + of_time(amount, delta))
    }

    /// The same for a channel that an invoice tells of: it is there to be paid over.
    pub(super) const fn of_hint(amount: Msat, delta: u32) -> u64 {
        PER_HOP_MSAT + of_time(amount, delta)
    }
}

/// Chances multiply along a way, and costs add up: so the logarithm.
fn risk(chance: f64, amount: Msat) -> u64 {
    let failure = FAILURE_MSAT + FAILURE_SHARE * amount.0 as f64;
    (-chance.log2() * failure) as u64
}

const fn of_time(amount: Msat, delta: u32) -> u64 {
    (amount.0 / BLOCK_SHARE).saturating_mul(delta as u64)
}
