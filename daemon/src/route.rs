//! The way that a payment's HTLC takes, as it is written down and shown.

use millrace_wire::{CltvExpiry, Msat, PublicKey, ShortChannelId};
use serde::{Deserialize, Serialize};

/// A way to the payee: its hops in the order of travel, the payee last; never empty.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Route {
    /// The hops.
    pub hops: Vec<RouteHop>,
}

/// One hop of a way.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RouteHop {
    /// The node at its end.
    pub node: PublicKey,
    /// The channel towards it: its alias, if it has no other name.
    pub scid: ShortChannelId,
    /// What the HTLC over that channel holds.
    pub amount: Msat,
    /// When that HTLC expires.
    pub cltv_expiry: CltvExpiry,
}

impl Route {
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
        Msat(self.sent().0.saturating_sub(self.received().0))
    }

    /// Who reads the onion's layers.
    #[must_use]
    pub fn nodes(&self) -> Vec<PublicKey> {
        self.hops.iter().map(|hop| hop.node).collect()
    }

    /// What a hop keeps: nothing, if it is the last.
    #[must_use]
    pub fn fee_of(&self, hop: usize) -> Msat {
        let [here, next] = [hop, hop + 1].map(|index| self.hops.get(index).map(|hop| hop.amount.0));
        here.zip(next).map_or(Msat::ZERO, |(here, next)| Msat(here.saturating_sub(next)))
    }
}

/// A way that a payment would take.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Estimate {
    /// It.
    pub route: Route,
    /// How likely an attempt over it is to arrive, by what payments have taught, in millionths.
    pub chance_ppm: u32,
}
