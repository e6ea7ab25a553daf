//! An HTLC that has left the ledger, as far as it still matters: the peer may have revoked commitments in which it
//! stands, and could publish one of them (BOLT 5, "Revoked Transaction Close Handling").
//!
//! Written once for each HTLC, when it leaves. Which commitments hold it is known by two numbers, which may name a few too
//! many: an output is recognised by its script, never by what is said here.

use millrace_wire::{CltvExpiry, CommitmentNumber};
use serde::{Deserialize, Serialize};

use crate::ledger::htlc::Htlc;
use crate::side::Side;
use crate::tx::script::preimage_hash160;

/// All that it takes to recognise and to take an HTLC's output in a commitment that the peer has revoked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct PastHtlc {
    /// Who offered it.
    pub offered_by: Side,
    /// `RIPEMD160(payment_hash)`: what the output's script holds.
    pub hash160: [u8; 20],
    /// Its expiry.
    pub cltv_expiry: CltvExpiry,
    /// The first commitment of the peer's that may hold it.
    pub first: CommitmentNumber,
    /// The last one.
    pub last: CommitmentNumber,
}

impl PastHtlc {
    /// An HTLC that is leaving the ledger, or may be in a revoked commitment while it still stands there; `last` is the
    /// newest commitment that was signed for the peer.
    #[must_use]
    pub fn of(htlc: &Htlc, last: CommitmentNumber) -> Self {
        Self {
            offered_by: htlc.offered_by,
            hash160: preimage_hash160(&htlc.add.payment_hash),
            cltv_expiry: htlc.add.cltv_expiry,
            first: htlc.since,
            last,
        }
    }

    /// Whether commitment `number` of the peer may hold it.
    #[must_use]
    pub fn may_stand_in(&self, number: CommitmentNumber) -> bool {
        (self.first..=self.last).contains(&number)
    }
}
