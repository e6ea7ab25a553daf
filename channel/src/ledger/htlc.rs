//! One HTLC: who offered it, how far its add has come, and how far its removal (BOLT 2, "Adding an HTLC",
//! "Removing an HTLC").

use millrace_wire::{
    AttributionData, ChannelId, CltvExpiry, CommitmentNumber, HtlcId, Msat, OnionPacket, PaymentHash, Preimage,
};
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::ledger::stage::{Stage, Step};
use crate::side::Side;
use crate::tx::commitment::CommitmentHtlc;

/// What an outgoing HTLC was offered for. Keyed by identity, never by payment hash.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Origin {
    /// A payment of this node: its id, and which attempt.
    Payment {
        /// The payment's id.
        id: [u8; 32],
        /// The attempt, counted from 0.
        attempt: u32,
    },
    /// A forward: the incoming channel and its HTLC.
    Forward {
        /// The channel the HTLC came in by.
        channel_id: ChannelId,
        /// Its id there.
        htlc_id: HtlcId,
    },
}

/// The data of an add, from either side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Add {
    /// Counted by the offering side from 0.
    pub id: HtlcId,
    /// Its amount.
    pub amount: Msat,
    /// The hash whose preimage claims it.
    pub payment_hash: PaymentHash,
    /// The height at which the offerer may take it back.
    pub cltv_expiry: CltvExpiry,
    /// The onion, for retransmission (offered) or peeling (received); boxed off the hot struct, dropped once
    /// nothing can need it.
    pub onion: Option<Box<OnionPacket>>,
    /// BOLT 4's blinded `path_key`, if the add carried one.
    pub path_key: Option<PublicKey>,
    /// What an offered HTLC was offered for; `None` on a received one.
    pub origin: Option<Origin>,
}

/// How an HTLC is removed. Always decided by the side that received it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Removal {
    /// `update_fulfill_htlc`.
    Fulfill {
        /// The preimage of the payment hash.
        preimage: Preimage,
        /// BOLT 4 attribution data. Not recorded with a removal: it goes with the preimage once, and is worth no more.
        attribution: Option<Box<AttributionData>>,
    },
    /// `update_fail_htlc`.
    Fail {
        /// The encrypted failure packet.
        reason: Vec<u8>,
        /// BOLT 4 attribution data, passed on as it came.
        attribution: Option<Box<AttributionData>>,
    },
    /// `update_fail_malformed_htlc`.
    Malformed {
        /// The hash of the onion that could not be read.
        sha256_of_onion: [u8; 32],
        /// The failure code, with `BADONION` set.
        failure_code: u16,
    },
}

impl Removal {
    /// Whether the money goes to the receiver.
    #[must_use]
    pub const fn is_fulfill(&self) -> bool {
        matches!(self, Self::Fulfill { .. })
    }

    /// What is written down of it.
    #[must_use]
    pub(crate) fn recorded(&self) -> Self {
        match self {
            Self::Fulfill { preimage, .. } => Self::Fulfill { preimage: preimage.clone(), attribution: None },
            Self::Fail { .. } | Self::Malformed { .. } => self.clone(),
        }
    }

    /// The preimage, if it is a fulfilment.
    #[must_use]
    pub const fn preimage(&self) -> Option<&Preimage> {
        match self {
            Self::Fulfill { preimage, .. } => Some(preimage),
            Self::Fail { .. } | Self::Malformed { .. } => None,
        }
    }
}

/// Where an HTLC is in its life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Status {
    /// Being added; at `Irrevocable` it is in both commitments for good.
    Adding(Stage),
    /// Irrevocably added, and its removal decided here but covered by no signature yet.
    Decided(Removal),
    /// Being removed.
    Removing(Stage, Removal),
}

/// One HTLC that some commitment holds, or is about to hold.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Htlc {
    /// Who offered it: the proposer of the add. The proposer of its removal is the other side.
    pub offered_by: Side,
    /// What the add said.
    pub add: Add,
    /// How far it is.
    pub status: Status,
    /// The preimage, recorded the moment the peer revealed it for an HTLC that we offered.
    pub known_preimage: Option<Preimage>,
    /// Whether it stood above the dust-exposure limit when it became irrevocable: to be failed back.
    pub over_dust_exposure: bool,
    /// The first commitment of the peer's that may hold it. In a snapshot it stands behind everything else.
    #[serde(skip)]
    pub since: CommitmentNumber,
    /// Volatile: the peer has proposed this removal of an HTLC that we offered, and signed nothing for it yet.
    #[serde(skip)]
    pub proposed_removal: Option<Removal>,
    /// Volatile: our `Decided` removal has been sent on this connection.
    #[serde(skip)]
    pub removal_sent: bool,
}

impl Htlc {
    /// A proposed HTLC, and the first commitment of the peer's that may hold it.
    #[must_use]
    pub const fn proposed(offered_by: Side, add: Add, since: CommitmentNumber) -> Self {
        Self {
            offered_by,
            add,
            status: Status::Adding(Stage::Proposed),
            known_preimage: None,
            over_dust_exposure: false,
            since,
            proposed_removal: None,
            removal_sent: false,
        }
    }

    /// The side that may remove it.
    #[must_use]
    pub const fn removed_by(&self) -> Side {
        self.offered_by.other()
    }

    /// Moves the add or the removal on, after `sender` has sent `step`. True if that changed something.
    pub fn advance(&mut self, step: Step, sender: Side) -> bool {
        let (stage, proposer) = match &mut self.status {
            Status::Adding(stage) => (stage, self.offered_by),
            Status::Removing(stage, _) => (stage, self.offered_by.other()),
            Status::Decided(_) => return false,
        };
        let next = stage.after(step, sender, proposer);
        let moved = next != *stage;
        *stage = next;
        moved
    }

    /// Irrevocably added, no removal under way or decided: may be forwarded, fulfilled or failed.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self.status, Status::Adding(Stage::Irrevocable))
    }

    /// How it stands in a commitment: `stands` says whether an update at a stage, by a proposer, is in it.
    pub(crate) fn standing(&self, stands: impl Fn(Stage, Side) -> bool) -> Standing<'_> {
        if !stands(self.add_stage(), self.offered_by) {
            return Standing::Absent;
        }
        match self.removal() {
            Some((stage, removal)) if stands(stage, self.removed_by()) => Standing::Removed(removal),
            Some(_) | None => Standing::Output,
        }
    }

    /// The removal under way and its stage, those merely proposed included.
    #[must_use]
    pub const fn removal(&self) -> Option<(Stage, &Removal)> {
        match (&self.status, &self.proposed_removal) {
            (Status::Removing(stage, removal), _) => Some((*stage, removal)),
            (Status::Decided(removal), _) if self.removal_sent => Some((Stage::Proposed, removal)),
            (Status::Adding(_), Some(removal)) => Some((Stage::Proposed, removal)),
            (Status::Adding(_) | Status::Decided(_), _) => None,
        }
    }

    /// The stage of the add: `Irrevocable` once a removal can be spoken of.
    #[must_use]
    pub const fn add_stage(&self) -> Stage {
        match self.status {
            Status::Adding(stage) => stage,
            Status::Decided(_) | Status::Removing(_, _) => Stage::Irrevocable,
        }
    }

    /// Forgets what only this connection knew. Returns whether that was anything.
    pub(crate) fn forget_proposals(&mut self) -> bool {
        let had = self.removal_sent || self.proposed_removal.is_some();
        self.removal_sent = false;
        self.proposed_removal = None;
        had
    }

    /// What a commitment transaction needs to know of it.
    #[must_use]
    pub const fn to_commitment(&self) -> CommitmentHtlc {
        CommitmentHtlc {
            id: self.add.id,
            offered_by: self.offered_by,
            amount: self.add.amount,
            payment_hash: self.add.payment_hash,
            cltv_expiry: self.add.cltv_expiry,
        }
    }
}

/// How an HTLC stands in one commitment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Standing<'a> {
    /// Not added yet: the offerer still has the money.
    Absent,
    /// An output (or trimmed).
    Output,
    /// Added and removed: the money is with the receiver (fulfilled) or back (failed).
    Removed(&'a Removal),
}
