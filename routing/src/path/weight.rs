//! What a hop costs besides its fee: the risk that it cannot carry the amount, the time for which money may be locked, and
//! being a hop at all. All of it is in millisatoshi, so that it can be held against fees.

use std::collections::BTreeMap;

use millrace_wire::{Msat, ShortChannelId};

use crate::graph::Direction;
use crate::liquidity::{Liquidity, Way};

/// What parts under way hold of each channel.
pub type InFlight = BTreeMap<Way, Msat>;
/// The most that channels may be given, with what they hold already.
pub type Caps = BTreeMap<Way, Msat>;

/// Every hop may fail for reasons of its own.
const PER_HOP_MSAT: u64 = 500;
/// An attempt that fails costs the user about a second, and this much of his patience...
const FAILURE_MSAT: f64 = 20_000.0;
/// ...and for larger amounts, so much of the amount.
const FAILURE_SHARE: f64 = 0.001;
/// A chance below this is none...
const CHANCE_MIN: f64 = 0.01;
/// ...but as a last resort, no chance is thought to be less: what a channel has refused it may carry now, since it was
/// filled up again, or had refused for the moment alone.
const CHANCE_LEAST: f64 = 0.001;
/// Money that may be locked for a block costs this part of it: about a tenth in a year.
const BLOCK_SHARE: u64 = 525_600;

/// How ways are weighed.
#[derive(Clone, Copy, Debug)]
pub struct Weights<'a> {
    /// What is known of channels.
    pub liquidity: &'a Liquidity,
    /// What parts of ours hold already.
    pub in_flight: &'a InFlight,
    /// What is not to be tried, whatever is known of it.
    pub caps: &'a Caps,
    /// Seconds of Unix time.
    pub now: u32,
    /// What is known rules nothing out, and only weighs: for a search after one that has found no way.
    pub is_last_resort: bool,
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
        let all = self.with_held(way, amount);
        // No channel carries more than it holds: that is no matter of chance.
        let most = self.caps.get(&way).map_or(capacity, |cap| capacity.min(*cap));
        let chance = self.liquidity.bounds(way, capacity, self.now).chance(all);
        if all > most || (chance < CHANCE_MIN && !self.is_last_resort) {
            return None;
        }
        Some(PER_HOP_MSAT + risk(chance.max(CHANCE_LEAST), amount) + of_time(amount, delta))
    }

    /// How likely a channel is to carry an amount beside what it holds of ours; never quite impossible.
    pub(super) fn chance(&self, way: Way, capacity: Msat, amount: Msat) -> f64 {
        let bounds = self.liquidity.bounds(way, capacity, self.now);
        bounds.chance(self.with_held(way, amount)).max(CHANCE_LEAST)
    }

    fn with_held(&self, way: Way, amount: Msat) -> Msat {
        let held = self.in_flight.get(&way).copied().unwrap_or(Msat::ZERO);
        Msat(amount.0.saturating_add(held.0))
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
