//! A payment and an invoice as people are shown them: folded from what happened, by whoever needs it.

use millrace_wire::{BlockHeight, ChannelId, Msat, PaymentHash, Preimage, PublicKey};
use serde::{Deserialize, Serialize};

use crate::happened::{
    AttemptBegun, CancelReason, Failure, Happened, InvoiceCreated, PaymentId, PaymentStarted, ReceivedPart, sum_of,
};
use crate::route::Route;

/// A payment of ours.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PaymentRow {
    /// Which.
    pub id: PaymentId,
    /// Its hash.
    pub payment_hash: PaymentHash,
    /// What should arrive.
    pub amount: Msat,
    /// With whom.
    pub payee: PublicKey,
    /// Its invoice.
    pub bolt11: String,
    /// When it was accepted, as Unix time in milliseconds.
    pub created_ms: u64,
    /// When it was decided.
    pub decided_ms: Option<u64>,
    /// What became of it.
    pub status: PaymentStatus,
    /// What was tried, in order.
    pub attempts: Vec<AttemptRow>,
}

/// Where a payment, or an attempt, stands.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum PaymentStatus {
    /// Under way.
    InFlight,
    /// Paid.
    Succeeded {
        /// The proof.
        preimage: Preimage,
        /// What routing cost.
        fee: Msat,
    },
    /// Not paid, and nothing under way.
    Failed(Failure),
}

/// One attempt.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct AttemptRow {
    /// What it is.
    pub begun: AttemptBegun,
    /// When it began.
    pub started_ms: u64,
    /// When it ended.
    pub ended_ms: Option<u64>,
    /// What became of it.
    pub status: PaymentStatus,
    /// Its way; none if it carries the whole amount to a peer of ours.
    pub route: Option<Route>,
    /// For how long each hop says that it held the HTLC, in milliseconds.
    pub held_ms: Vec<u32>,
}

impl PaymentRow {
    /// As it begins.
    #[must_use]
    pub fn new(started: &PaymentStarted, time_ms: u64) -> Self {
        Self {
            id: started.id,
            payment_hash: started.payment_hash,
            amount: started.amount,
            payee: started.payee,
            bolt11: started.bolt11.clone(),
            created_ms: time_ms,
            decided_ms: None,
            status: PaymentStatus::InFlight,
            attempts: vec![AttemptRow::new(started.attempt, time_ms)],
        }
    }

    /// Goes on by what happened to it. What concerns others is ignored.
    pub fn apply(&mut self, what: &Happened, time_ms: u64) {
        match what {
            Happened::AttemptBegun { attempt, .. } => self.begin(AttemptRow::new(*attempt, time_ms)),
            Happened::AttemptRouted { attempt, route, .. } => {
                if let Some(row) = self.attempt_mut(*attempt) {
                    row.route = Some((**route).clone());
                }
            }
            Happened::AttemptHeld { attempt, held_ms, .. } => {
                if let Some(row) = self.attempt_mut(*attempt) {
                    row.held_ms.clone_from(held_ms);
                }
            }
            Happened::AttemptFailed { attempt, failure, .. } => {
                if let Some(row) = self.attempt_mut(*attempt) {
                    row.end(PaymentStatus::Failed(failure.clone()), time_ms);
                }
            }
            Happened::PaymentSucceeded { preimage, fee, .. } => {
                self.decide(PaymentStatus::Succeeded { preimage: preimage.clone(), fee: *fee }, time_ms);
            }
            Happened::PaymentFailed { failure, .. } => self.decide(PaymentStatus::Failed(failure.clone()), time_ms),
            Happened::ChannelOpening(_)
            | Happened::ChannelReady { .. }
            | Happened::ChannelClosing { .. }
            | Happened::ChannelClosed { .. }
            | Happened::PaymentStarted(_)
            | Happened::InvoiceCreated(_)
            | Happened::InvoicePaid { .. }
            | Happened::WalletTransaction(_)
            | Happened::PeerConnected { .. }
            | Happened::PeerDisconnected { .. }
            | Happened::HoldInvoiceCreated(_)
            | Happened::InvoiceHeld { .. }
            | Happened::InvoiceCancelled { .. }
            | Happened::InvoicePaidInParts { .. }
            | Happened::KeysendReceived { .. }
            | Happened::Forwarded(_) => {}
        }
    }

    /// Attempts over several channels are written in any order.
    fn begin(&mut self, row: AttemptRow) {
        let number = row.begun.attempt;
        let place = self.attempts.partition_point(|other| other.begun.attempt < number);
        self.attempts.insert(place, row);
    }

    /// An attempt by its number: one that a channel refused has left its number unused.
    #[must_use]
    pub fn attempt(&self, number: u32) -> Option<&AttemptRow> {
        let place = self.attempts.binary_search_by_key(&number, |row| row.begun.attempt).ok()?;
        self.attempts.get(place)
    }

    fn attempt_mut(&mut self, number: u32) -> Option<&mut AttemptRow> {
        let place = self.attempts.binary_search_by_key(&number, |row| row.begun.attempt).ok()?;
        self.attempts.get_mut(place)
    }

    /// What forwarding costs by all that is under way.
    #[must_use]
    pub fn fee_in_flight(&self) -> Msat {
        let fees = self.attempts.iter().filter(|row| row.ended_ms.is_none()).map(|row| row.fee().0);
        Msat(fees.fold(0, u64::saturating_add))
    }

    /// What each part of a payment that has succeeded has sent, and by which channel.
    #[must_use]
    pub fn sent(&self) -> Vec<(ChannelId, Msat)> {
        let paid = self.attempts.iter().filter(|row| matches!(row.status, PaymentStatus::Succeeded { .. }));
        paid.map(|row| (row.begun.channel_id, row.route.as_ref().map_or(self.amount, Route::sent))).collect()
    }

    /// A success is that of every part that is out; each has its own fee.
    fn decide(&mut self, status: PaymentStatus, time_ms: u64) {
        for row in self.attempts.iter_mut().filter(|row| row.ended_ms.is_none()) {
            let own = match &status {
                PaymentStatus::Succeeded { preimage, .. } => {
                    PaymentStatus::Succeeded { preimage: preimage.clone(), fee: row.fee() }
                }
                PaymentStatus::InFlight | PaymentStatus::Failed(_) => status.clone(),
            };
            row.end(own, time_ms);
        }
        self.decided_ms = Some(time_ms);
        self.status = status;
    }
}

impl AttemptRow {
    fn new(begun: AttemptBegun, started_ms: u64) -> Self {
        Self { begun, started_ms, ended_ms: None, status: PaymentStatus::InFlight, route: None, held_ms: Vec::new() }
    }

    /// What its way costs.
    #[must_use]
    pub fn fee(&self) -> Msat {
        self.route.as_ref().map_or(Msat::ZERO, Route::fee)
    }

    fn end(&mut self, status: PaymentStatus, time_ms: u64) {
        self.ended_ms = Some(time_ms);
        self.status = status;
    }
}

/// An invoice of ours.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct InvoiceRow {
    /// Its hash.
    pub payment_hash: PaymentHash,
    /// Its amount; absent if the payer chooses.
    pub amount: Option<Msat>,
    /// Itself.
    pub bolt11: String,
    /// When it was made, as Unix time in milliseconds.
    pub created_ms: u64,
    /// When it expires.
    pub expires_ms: u64,
    /// Its payment, if it was paid.
    pub paid: Option<PaidRow>,
    /// How it is paid.
    pub kind: InvoiceKind,
    /// What was held for it, if anything was.
    pub held: Option<HeldRow>,
    /// When it was cancelled, and why, if it was.
    pub cancelled: Option<(u64, CancelReason)>,
}

/// How an invoice is paid.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum InvoiceKind {
    /// At once.
    Plain,
    /// It is held until its owner decides.
    Hold,
    /// There is no invoice: somebody just paid.
    Keysend,
}

/// What was held for an invoice.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HeldRow {
    /// Since when, as Unix time in milliseconds.
    pub held_ms: u64,
    /// By which HTLCs.
    pub parts: Vec<ReceivedPart>,
    /// The last block at which it can be settled.
    pub deadline: BlockHeight,
}

/// How an invoice was paid.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct PaidRow {
    /// What was paid.
    pub received: Msat,
    /// When.
    pub paid_ms: u64,
    /// The payer's proof.
    pub preimage: Preimage,
    /// By which HTLCs.
    pub parts: Vec<ReceivedPart>,
}

impl InvoiceRow {
    /// As it is made.
    #[must_use]
    pub fn new(created: &InvoiceCreated, is_hold: bool, time_ms: u64) -> Self {
        Self {
            payment_hash: created.payment_hash,
            amount: created.amount,
            bolt11: created.bolt11.clone(),
            created_ms: time_ms,
            expires_ms: created.expires_ms,
            paid: None,
            kind: if is_hold { InvoiceKind::Hold } else { InvoiceKind::Plain },
            held: None,
            cancelled: None,
        }
    }

    /// As a spontaneous payment comes in.
    #[must_use]
    pub fn of_keysend(payment_hash: PaymentHash, preimage: &Preimage, part: ReceivedPart, time_ms: u64) -> Self {
        Self {
            payment_hash,
            amount: None,
            bolt11: String::new(),
            created_ms: time_ms,
            expires_ms: time_ms,
            paid: Some(PaidRow {
                received: part.amount,
                paid_ms: time_ms,
                preimage: preimage.clone(),
                parts: vec![part],
            }),
            kind: InvoiceKind::Keysend,
            held: None,
            cancelled: None,
        }
    }

    /// Goes on by what happened to it. What concerns others is ignored.
    pub fn apply(&mut self, what: &Happened, time_ms: u64) {
        match what {
            Happened::InvoicePaid { received, preimage, channel_id, htlc_id, .. } => {
                let part = ReceivedPart { channel_id: *channel_id, htlc_id: *htlc_id, amount: *received };
                self.pay(preimage, vec![part], time_ms);
            }
            Happened::InvoicePaidInParts { preimage, parts, .. } => self.pay(preimage, parts.clone(), time_ms),
            Happened::InvoiceHeld { parts, deadline, .. } => {
                self.held = Some(HeldRow { held_ms: time_ms, parts: parts.clone(), deadline: *deadline });
            }
            Happened::InvoiceCancelled { why, .. } => self.cancelled = Some((time_ms, *why)),
            _ => {}
        }
    }

    fn pay(&mut self, preimage: &Preimage, parts: Vec<ReceivedPart>, paid_ms: u64) {
        self.paid = Some(PaidRow { received: sum_of(&parts), paid_ms, preimage: preimage.clone(), parts });
    }
}
