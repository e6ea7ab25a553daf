//! The owner's decisions: to take what is held for an invoice, or to take the invoice back.
//!
//! Whoever asks is told once it is durable, and what it was: another decision may have been first.

use millrace_wire::{BlockHeight, PaymentHash, Preimage};
use tokio::sync::oneshot;

use super::super::entry::InvoiceEntry;
use super::invoices::Busy;
use super::{Receipt, Receiving};
use crate::happened::{CancelReason, ReceivedPart};

/// Why an invoice is not settled, or not cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HoldRefusal {
    /// There is none, or it is over and no longer in memory.
    #[error("no invoice with the payment hash {0} can be decided")]
    Unknown(PaymentHash),
    /// Its payment is never held.
    #[error("the invoice {0} is no hold invoice: a payment of it is taken at once")]
    NotHold(PaymentHash),
    /// There is nothing to take.
    #[error("no whole payment is held for the invoice {0}")]
    NotHeld(PaymentHash),
    /// Only the client knows its preimage.
    #[error("this node does not know the preimage of the invoice {0}")]
    PreimageMissing(PaymentHash),
    /// It was cancelled first.
    #[error("the invoice {payment_hash} is cancelled: {}", in_words(*.why))]
    Cancelled {
        /// Which.
        payment_hash: PaymentHash,
        /// Why.
        why: CancelReason,
    },
    /// It was paid first.
    #[error("the invoice {0} is paid")]
    Paid(PaymentHash),
}

/// Why an invoice was cancelled.
const fn in_words(why: CancelReason) -> &'static str {
    match why {
        CancelReason::Asked => "its owner said so",
        CancelReason::Deadline => "what was held for it came too near to its expiry",
        CancelReason::PartGone => "the channel of a part was closed",
    }
}

/// The answer to whoever settles or cancels.
pub(crate) type HoldReply = oneshot::Sender<Result<(), HoldRefusal>>;

pub(super) enum Waiter {
    Settle(HoldReply),
    Cancel(HoldReply),
}

impl Receiving {
    /// Takes the payment that is held for an invoice. Without a preimage, this node's own.
    pub(crate) fn settle(
        &mut self,
        payment_hash: PaymentHash,
        preimage: Option<Preimage>,
        height: Option<BlockHeight>,
        reply: HoldReply,
        out: &mut Vec<Receipt>,
    ) {
        if let Some(height) = height {
            // A block that nobody has looked at yet decides first.
            if self.invoices.past_deadline(height).contains(&payment_hash) {
                self.begin_cancel(payment_hash, CancelReason::Deadline, out);
            }
        }
        let answer = match self.check_settle(payment_hash, preimage) {
            Ok(Settle::Claim(preimage, parts)) => {
                self.claim(payment_hash, preimage, parts, out);
                None
            }
            Ok(Settle::Wait) => None,
            Ok(Settle::Done) => Some(Ok(())),
            Err(refusal) => Some(Err(refusal)),
        };
        match answer {
            // Whoever asked and is gone needs no answer.
            Some(answer) => drop(reply.send(answer)),
            None => self.waiting.entry(payment_hash).or_default().push(Waiter::Settle(reply)),
        }
    }

    fn check_settle(&self, payment_hash: PaymentHash, preimage: Option<Preimage>) -> Result<Settle, HoldRefusal> {
        let invoice = self.invoices.get(&payment_hash).ok_or(HoldRefusal::Unknown(payment_hash))?;
        if !invoice.is_hold {
            return Err(HoldRefusal::NotHold(payment_hash));
        }
        if let Some(why) = invoice.cancelled() {
            return Err(HoldRefusal::Cancelled { payment_hash, why });
        }
        if invoice.is_paid() {
            return Ok(Settle::Done);
        }
        if matches!(invoice.busy, Busy::Claiming(_) | Busy::Cancelling) {
            return Ok(Settle::Wait);
        }
        let parts = invoice.held().ok_or(HoldRefusal::NotHeld(payment_hash))?;
        let preimage = preimage.or_else(|| invoice.preimage().cloned());
        let preimage = preimage.ok_or(HoldRefusal::PreimageMissing(payment_hash))?;
        Ok(Settle::Claim(preimage, parts.to_vec()))
    }

    /// Takes back an invoice that is not paid.
    pub(crate) fn cancel(&mut self, payment_hash: PaymentHash, reply: HoldReply, out: &mut Vec<Receipt>) {
        let answer = match self.invoices.get(&payment_hash) {
            None => Some(Err(HoldRefusal::Unknown(payment_hash))),
            Some(invoice) if invoice.is_paid() => Some(Err(HoldRefusal::Paid(payment_hash))),
            Some(invoice) if invoice.cancelled().is_some() => Some(Ok(())),
            Some(_) => None,
        };
        match answer {
            // Whoever asked and is gone needs no answer.
            Some(answer) => drop(reply.send(answer)),
            None => {
                self.waiting.entry(payment_hash).or_default().push(Waiter::Cancel(reply));
                self.begin_cancel(payment_hash, CancelReason::Asked, out);
            }
        }
    }

    /// Unless something else is decided already.
    pub(super) fn begin_cancel(&mut self, payment_hash: PaymentHash, why: CancelReason, out: &mut Vec<Receipt>) {
        let Some(invoice) = self.invoices.get_mut(&payment_hash) else { return };
        match invoice.busy {
            Busy::Free | Busy::Holding => {
                invoice.busy = Busy::Cancelling;
                out.push(Receipt::Write(InvoiceEntry::Cancelled { payment_hash, why }.entry()));
            }
            Busy::Claiming(_) | Busy::Cancelling => {}
        }
    }

    /// Tells everybody who waits.
    pub(super) fn answer(
        &mut self,
        payment_hash: PaymentHash,
        to_settle: Result<(), HoldRefusal>,
        to_cancel: Result<(), HoldRefusal>,
    ) {
        for waiter in self.waiting.remove(&payment_hash).unwrap_or_default() {
            // Whoever asked and is gone needs no answer.
            match waiter {
                Waiter::Settle(reply) => drop(reply.send(to_settle)),
                Waiter::Cancel(reply) => drop(reply.send(to_cancel)),
            }
        }
    }
}

enum Settle {
    Claim(Preimage, Vec<ReceivedPart>),
    Wait,
    Done,
}
