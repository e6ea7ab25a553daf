//! What payments have taught about channels of others: how much they can carry, roughly, and since when that is known.
//!
//! Of each direction a lower and an upper bound of the liquidity is kept. A part that passed a channel, or failed behind it,
//! shows the lower one; a part that a channel refused shows the upper one. Bounds loosen with time, by half in every
//! [`HALF_LIFE_SECONDS`], since the payments of others move the liquidity. Between the bounds every amount is thought to be as
//! likely as any other: so the chance that an amount passes is known, and that is what a search weighs.

use std::collections::BTreeMap;

use millrace_wire::{Msat, ShortChannelId};
use serde::{Deserialize, Serialize};

use crate::graph::Direction;

/// After so long, a bound is worth half.
pub const HALF_LIFE_SECONDS: u32 = 6 * 3600;
/// What is known of so many half-lives ago says nothing any more.
const FORGOTTEN_HALF_LIVES: u32 = 24;

/// One direction of a channel.
pub type Way = (ShortChannelId, Direction);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Known {
    /// It could carry this.
    at_least: u64,
    /// It could not carry this much, counted down from the capacity.
    lacks: u64,
    /// When that was known, in seconds of Unix time.
    at: u32,
}

/// What is known of all channels.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Liquidity {
    known: BTreeMap<Way, Known>,
}

/// Between what bounds a channel's liquidity is, in millisatoshi.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// It can carry this.
    pub least: Msat,
    /// It cannot carry more than this.
    pub most: Msat,
}

impl Bounds {
    /// How likely it is that an amount passes: from 0 to 1.
    #[must_use]
    pub fn chance(&self, amount: Msat) -> f64 {
        if amount <= self.least {
            return 1.0;
        }
        if amount > self.most {
            return 0.0;
        }
        let (left, all) = ((self.most.0 - amount.0) as f64 + 1.0, (self.most.0 - self.least.0) as f64 + 1.0);
        left / all
    }
}

impl Liquidity {
    /// What is known of a direction now. `now` in seconds of Unix time.
    #[must_use]
    pub fn bounds(&self, way: Way, capacity: Msat, now: u32) -> Bounds {
        let Some(known) = self.known.get(&way) else { return Bounds { least: Msat::ZERO, most: capacity } };
        let age = now.saturating_sub(known.at);
        let least = decayed(known.at_least, age).min(capacity.0);
        let most = capacity.0 - decayed(known.lacks, age).min(capacity.0);
        // They may have crossed: then the newer knowledge has been put down last, and both are close to it.
        Bounds { least: Msat(least.min(most)), most: Msat(most.max(least)) }
    }

    /// A part has passed: it has arrived, or failed further on.
    pub fn passed(&mut self, way: Way, amount: Msat, capacity: Msat, now: u32) {
        let Bounds { least, most } = self.bounds(way, capacity, now);
        let least = least.max(amount).min(capacity);
        self.set(way, Bounds { least, most: most.max(least) }, capacity, now);
    }

    /// A part was paid for good: so much less is left there, and so much more the other way.
    pub fn moved(&mut self, way: Way, amount: Msat, capacity: Msat, now: u32) {
        let Bounds { least, most } = self.bounds(way, capacity, now);
        let less = |bound: Msat| Msat(bound.0.saturating_sub(amount.0));
        self.set(way, Bounds { least: less(least), most: less(most) }, capacity, now);
        let back = (way.0, way.1.reversed());
        let Bounds { least, most } = self.bounds(back, capacity, now);
        let more = |bound: Msat| Msat(bound.0.saturating_add(amount.0).min(capacity.0));
        self.set(back, Bounds { least: more(least), most: more(most) }, capacity, now);
    }

    /// A channel could not carry a part.
    pub fn refused(&mut self, way: Way, amount: Msat, capacity: Msat, now: u32) {
        let Bounds { least, most } = self.bounds(way, capacity, now);
        let most = most.min(Msat(amount.0.saturating_sub(1)));
        self.set(way, Bounds { least: least.min(most), most }, capacity, now);
    }

    fn set(&mut self, way: Way, bounds: Bounds, capacity: Msat, now: u32) {
        let known = Known { at_least: bounds.least.0, lacks: capacity.0.saturating_sub(bounds.most.0), at: now };
        self.known.insert(way, known);
    }

    /// Forgets what says nothing any more.
    pub fn prune(&mut self, now: u32) {
        let oldest = now.saturating_sub(HALF_LIFE_SECONDS * FORGOTTEN_HALF_LIVES);
        self.known.retain(|_, known| known.at >= oldest);
    }

    /// How many directions something is known of.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// All of it, to be kept over a restart.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        self.known
            .iter()
            .map(|((id, direction), known)| Row(id.0, *direction == Direction::FromGreater, *known))
            .collect()
    }

    /// What was kept.
    #[must_use]
    pub fn from_rows(rows: Vec<Row>) -> Self {
        let direction = |is_greater| if is_greater { Direction::FromGreater } else { Direction::FromLesser };
        let known =
            rows.into_iter().map(|Row(id, is_greater, known)| ((ShortChannelId(id), direction(is_greater)), known));
        Self { known: known.collect() }
    }
}

/// What is known of one direction, to be kept over a restart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Row(u64, bool, Known);

fn decayed(bound: u64, age: u32) -> u64 {
    let halves = f64::from(age) / f64::from(HALF_LIFE_SECONDS);
    (bound as f64 * (-halves).exp2()) as u64
}
