//! Finding ways to a payee (BOLT 7, "Recommendations for Routing"): over our own channels, whose balances are known; over the
//! public graph; and over the private channels that an invoice tells of.

mod field;
mod frontier;
mod parts;
mod search;
#[cfg(test)]
mod tests;
mod weight;

use millrace_wire::{Msat, ShortChannelId};
use thiserror::Error;

use crate::graph::{Direction, NodeId, Policy};
use crate::liquidity::Way;

pub use parts::{Parts, chances, find_parts};
pub use search::Search;
pub use weight::{Caps, InFlight, Weights};

/// A channel of our own that can take an HTLC now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FirstHop {
    /// With whom.
    pub peer: NodeId,
    /// The channel, or the name by which we know it.
    pub short_channel_id: ShortChannelId,
    /// The least it takes.
    pub least: Msat,
    /// The most it takes.
    pub most: Msat,
}

/// A channel that is not announced, as an invoice tells of it (BOLT 11, field `r`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hint {
    /// Who forwards.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// The channel.
    pub short_channel_id: ShortChannelId,
    /// On what terms.
    pub policy: Policy,
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// This node.
    pub source: NodeId,
    /// Who is paid.
    pub payee: NodeId,
    /// What is to arrive.
    pub amount: Msat,
    /// Blocks that the payee wants between the next block and the HTLC's expiry.
    pub final_delta: u32,
    /// The most to pay for forwarding.
    pub fee_limit: Msat,
    /// The most blocks that our own HTLC may be away from its expiry.
    pub delta_limit: u32,
    /// The most hops, the payee's counted.
    pub hops_limit: usize,
    /// Our own channels.
    pub first_hops: &'a [FirstHop],
    /// What the invoice tells.
    pub hints: &'a [Hint],
}

/// BOLT 4: an onion of 1,300 bytes holds so many hops in any case.
pub const HOPS_MAX: usize = 19;
/// BOLT 7 recommends it: HTLCs further from their expiry are refused by others.
pub const DELTA_MAX: u32 = 2016;

/// One hop of a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hop {
    /// The node at its end.
    pub node: NodeId,
    /// The channel towards it.
    pub short_channel_id: ShortChannelId,
    /// What the HTLC over that channel holds.
    pub amount: Msat,
    /// Blocks between the next block and that HTLC's expiry.
    pub delta: u32,
}

/// A way to the payee.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    /// Its hops, in the order of travel; never empty.
    pub hops: Vec<Hop>,
}

impl Path {
    /// What leaves this node.
    #[must_use]
    pub fn sent(&self) -> Msat {
        self.hops.first().map_or(Msat::ZERO, |hop| hop.amount)
    }

    /// What arrives.
    #[must_use]
    pub fn received(&self) -> Msat {
        self.hops.last().map_or(Msat::ZERO, |hop| hop.amount)
    }

    /// What forwarding costs.
    #[must_use]
    pub fn fee(&self) -> Msat {
        Msat(self.sent().0 - self.received().0)
    }

    /// Blocks between the next block and the expiry of what leaves this node.
    #[must_use]
    pub fn delta(&self) -> u32 {
        self.hops.first().map_or(0, |hop| hop.delta)
    }

    /// The channels behind our own. Whoever has the lesser id sends from it; of a channel that is in no map, that does not
    /// matter.
    fn ways(&self) -> impl Iterator<Item = (Way, &Hop)> {
        self.hops.iter().zip(self.hops.iter().skip(1)).map(|(before, hop)| {
            let is_from_lesser = before.node < hop.node;
            let direction = if is_from_lesser { Direction::FromLesser } else { Direction::FromGreater };
            ((hop.short_channel_id, direction), hop)
        })
    }
}

/// Why there is no way. What stands first is told, if several are true.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NoPath {
    /// The payee is this node.
    #[error("the payee is this node")]
    Ourselves,
    /// There is no channel of ours that can be used.
    #[error("no channel of this node can be used")]
    NoChannel,
    /// Our channels together cannot carry it.
    #[error("the channels of this node can carry {most} now")]
    Balance {
        /// What they can carry in one part, or together if it may be split.
        most: Msat,
    },
    /// Nothing leads to the payee.
    #[error("no way leads to the payee")]
    NoWay,
    /// Some ways do, and all of them cost more.
    #[error("every way costs more than {fee_limit}")]
    FeeLimit {
        /// The most to pay.
        fee_limit: Msat,
    },
    /// Some do and are cheap enough, and all of them keep our HTLC for more blocks.
    #[error("every way takes more than {delta_limit} blocks, the cheapest {needed}")]
    DeltaLimit {
        /// The most blocks.
        delta_limit: u32,
        /// What the way takes that costs the least.
        needed: u32,
    },
}
