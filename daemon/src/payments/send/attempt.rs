//! One HTLC of a payment: an attempt to bring all of it, or a part.

use millrace_wire::{ChannelId, HtlcId, Msat, PublicKey};
use serde::{Deserialize, Serialize};

use crate::happened::{AttemptBegun, Failure};
use crate::payments::failure::Read;
use crate::route::{Route, RouteHop};

/// An attempt.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    pub(super) begun: AttemptBegun,
    /// None: the whole amount, to a peer.
    pub(super) route: Option<Route>,
    pub(super) state: AttemptState,
    /// Why it has ended, until that is durable.
    pub(super) end: Option<End>,
    /// How its HTLC has ended: may be forgotten once what follows is durable.
    pub(super) outcome: Option<(ChannelId, HtlcId)>,
}

/// Where an attempt stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum AttemptState {
    /// A channel was asked.
    Ordered,
    /// It may be out there.
    Committed,
    /// It is over, without success.
    Ended,
    /// And why is durable.
    Recorded,
}

/// Why an attempt has ended.
#[derive(Clone, Debug)]
pub(super) struct End {
    pub(super) failure: Failure,
    pub(super) held_ms: Vec<u32>,
    /// It is on its way to the journal.
    pub(super) is_written: bool,
}

/// An attempt in a checkpoint.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct SavedAttempt {
    begun: AttemptBegun,
    route: Option<Route>,
    pub(super) state: AttemptState,
}

impl Attempt {
    pub(super) const fn new(begun: AttemptBegun, route: Option<Route>) -> Self {
        Self { begun, route, state: AttemptState::Ordered, end: None, outcome: None }
    }

    /// It may still succeed.
    pub(super) const fn is_live(&self) -> bool {
        matches!(self.state, AttemptState::Ordered | AttemptState::Committed)
    }

    /// What is to arrive by it, of a payment of `all`.
    pub(super) fn brings(&self, all: Msat) -> Msat {
        self.route.as_ref().map_or(all, Route::received)
    }

    pub(super) fn fee(&self) -> Msat {
        self.route.as_ref().map_or(Msat::ZERO, Route::fee)
    }

    /// Its way, also if it is but one hop to the payee.
    pub(super) fn whole_route(&self, payee: PublicKey, all: Msat) -> Route {
        self.route.clone().unwrap_or_else(|| {
            let AttemptBegun { scid, cltv_expiry, .. } = self.begun;
            Route { hops: vec![RouteHop { node: payee, scid, amount: all, cltv_expiry }] }
        })
    }

    /// It has ended. False if that was known already.
    pub(super) fn end(&mut self, read: Read) -> bool {
        if self.end.is_some() || self.state == AttemptState::Recorded {
            return false;
        }
        self.state = AttemptState::Ended;
        self.end = Some(End { failure: read.failure, held_ms: read.held_ms, is_written: false });
        true
    }

    pub(super) fn save(&self) -> SavedAttempt {
        SavedAttempt { begun: self.begun, route: self.route.clone(), state: self.state }
    }
}

impl From<SavedAttempt> for Attempt {
    fn from(saved: SavedAttempt) -> Self {
        let SavedAttempt { begun, route, state } = saved;
        Self { state, ..Self::new(begun, route) }
    }
}
