//! A channel as the view knows it: what was told of it, from its opening to its close.

use millrace_wire::Msat;
use serde::{Deserialize, Serialize};

use crate::happened::{ChannelOpening, CloseKind, ClosedChannel, ClosingTx, ForwardEnd, Forwarded, Happened};

/// A channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelRow {
    /// How it began.
    pub opening: ChannelOpening,
    /// When, as Unix time in milliseconds.
    pub opened_ms: u64,
    /// It could be used once.
    pub was_ready: bool,
    /// How it closes, if it does.
    pub kind: Option<CloseKind>,
    /// Why, in words.
    pub reason: String,
    /// The transaction that spends its funding.
    pub close: Option<ClosingTx>,
    /// When everything was resolved.
    pub closed_ms: Option<u64>,
    /// What it then was.
    pub last: Option<Box<ClosedChannel>>,
    /// What payments of ours have sent through it.
    pub total_sent: Msat,
    /// What came through it for invoices of ours.
    pub total_received: Msat,
}

impl ChannelRow {
    /// As it begins.
    #[must_use]
    pub fn new(opening: &ChannelOpening, time_ms: u64) -> Self {
        Self {
            opening: opening.clone(),
            opened_ms: time_ms,
            was_ready: false,
            kind: None,
            reason: String::new(),
            close: None,
            closed_ms: None,
            last: None,
            total_sent: Msat::ZERO,
            total_received: Msat::ZERO,
        }
    }

    /// A payment of ours that has succeeded has sent this through it.
    pub(super) fn add_sent(&mut self, amount: Msat) {
        self.total_sent = sum(self.total_sent, amount);
    }

    /// Goes on by what happened to it. What concerns others is ignored.
    pub fn apply(&mut self, what: &Happened, time_ms: u64) {
        match what {
            Happened::ChannelReady { .. } => self.was_ready = true,
            Happened::ChannelClosing { kind, reason, close, .. } => {
                self.kind = Some(*kind);
                self.reason.clone_from(reason);
                self.close = close.or(self.close);
            }
            Happened::ChannelClosed { kind, close, last, .. } => {
                self.last = Some(last.clone());
                self.kind = Some(*kind);
                self.close = close.or(self.close);
                self.closed_ms = Some(time_ms);
            }
            Happened::InvoicePaid { received, .. } => self.total_received = sum(self.total_received, *received),
            Happened::InvoicePaidInParts { parts, .. } => {
                let own = parts.iter().filter(|part| part.channel_id == self.opening.channel_id);
                self.total_received = own.fold(self.total_received, |total, part| sum(total, part.amount));
            }
            Happened::KeysendReceived { part, .. } => self.total_received = sum(self.total_received, part.amount),
            Happened::ChannelOpening(_)
            | Happened::PaymentStarted(_)
            | Happened::PaymentSucceeded { .. }
            | Happened::AttemptRouted { .. }
            | Happened::AttemptHeld { .. }
            | Happened::AttemptBegun { .. }
            | Happened::AttemptFailed { .. }
            | Happened::PaymentFailed { .. }
            | Happened::InvoiceCreated(_)
            | Happened::WalletTransaction(_)
            | Happened::PeerConnected { .. }
            | Happened::PeerDisconnected { .. }
            | Happened::HoldInvoiceCreated(_)
            | Happened::InvoiceHeld { .. }
            | Happened::InvoiceCancelled { .. }
            | Happened::Forwarded(_) => {}
        }
    }
}

/// A forward that has ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ForwardRow {
    /// It.
    pub forwarded: Forwarded,
    /// When its end was known, as Unix time in milliseconds.
    pub ended_ms: u64,
}

/// Sums over all forwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ForwardTotals {
    /// How many are settled.
    pub settled: u64,
    /// How many are not.
    pub failed: u64,
    /// What the settled ones have brought out.
    pub forwarded: Msat,
    /// What they have earned.
    pub fees: Msat,
}

impl ForwardTotals {
    /// With one more.
    pub(super) fn add(&mut self, forwarded: &Forwarded) {
        if forwarded.end == ForwardEnd::Settled {
            self.settled += 1;
            self.forwarded = sum(self.forwarded, forwarded.amount_out);
            self.fees = sum(self.fees, forwarded.fee());
        } else {
            self.failed += 1;
        }
    }
}

fn sum(a: Msat, b: Msat) -> Msat {
    a.checked_add(b).unwrap_or(Msat(u64::MAX))
}
