//! Receiving: what is done with the HTLCs that end here (BOLT 4, "Basic Multi-Part Payments"; BOLT 11).
//!
//! The parts of a payment are held ([`assembly`]) until they are whole. Then an invoice is paid: the first part is
//! fulfilled in the step that holds the decision, and the others once that is durable, for the decision names them all.
//! For a hold invoice it is first written down that all is there, and then its owner decides, or the nearest expiry does.
//! Of settling, cancelling and the deadline one wins: whichever is on its way to the journal first. Whoever asked for
//! another one is told which it was, once it is durable.
//!
//! Nothing here waits, and nothing touches the world: what is to be done comes out as [`Receipt`]s.

mod assembly;
mod invoices;
mod owner;

use std::collections::HashMap;

use millrace_channel::Millis;
use millrace_routing::onion::Final;
use millrace_wire::{AttributionData, BlockHeight, ChannelId, HtlcId, Msat, PaymentHash, PaymentSecret, Preimage};

pub(crate) use assembly::HeldPart;
pub use invoices::InvoiceRefusal;
pub(crate) use invoices::{Invoice, Invoices};
pub use owner::HoldRefusal;
pub(crate) use owner::HoldReply;

use self::assembly::{Added, Assembly};
use self::invoices::{Became, Busy};
use self::owner::Waiter;
use super::entry::InvoiceEntry;
use super::judge::{self, OVERPAYMENT_MAX, Received, Removing, Unpaid};
use crate::entry::Entry;
use crate::happened::{CancelReason, Happened, ReceivedPart};

/// An HTLC of a peer.
pub(crate) type Place = (ChannelId, HtlcId);

/// BOLT 4: how long parts wait for the others, at least.
pub const MPP_TIMEOUT_MS: u64 = 60_000;

/// What is to be done.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Receipt {
    /// To a channel; if it refuses, [`Receiving::on_refused`] is told.
    Fulfill(Fulfilment),
    /// To a channel.
    Fail(Place, Removing),
    /// To be written by itself.
    Write(Entry),
}

/// An HTLC that is to be fulfilled.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Fulfilment {
    pub(crate) place: Place,
    pub(crate) payment_hash: PaymentHash,
    pub(crate) preimage: Preimage,
    /// For how long it was held, if its onion's secret is known: after a restart it need not be.
    pub(crate) attribution: Option<Box<AttributionData>>,
    /// The decision, if it is made with this HTLC.
    pub(crate) entry: Option<InvoiceEntry>,
}

/// When something is decided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) now: Millis,
    pub(crate) unix_ms: u64,
    pub(crate) height: BlockHeight,
}

/// Everything about payments to this node.
pub(crate) struct Receiving {
    pub(crate) invoices: Invoices,
    assembly: Assembly,
    /// The last block that was looked at...
    height: BlockHeight,
    /// ...and when something was.
    now: Millis,
    /// Who wants to know how an invoice is decided.
    waiting: HashMap<PaymentHash, Vec<Waiter>>,
}

impl Default for Receiving {
    fn default() -> Self {
        Self {
            invoices: Invoices::default(),
            assembly: Assembly::default(),
            height: BlockHeight(0),
            now: Millis(0),
            waiting: HashMap::new(),
        }
    }
}

impl Receiving {
    // --- HTLCs ---

    /// What fulfils an HTLC that a decision named, if it is one: nothing else about it is looked at any more.
    pub(crate) fn owed(&self, place: Place) -> Option<Fulfilment> {
        let (payment_hash, preimage) = self.invoices.owed(place)?;
        Some(Fulfilment { place, payment_hash, preimage: preimage.clone(), attribution: None, entry: None })
    }

    /// Whether an HTLC is durably held: then it was judged before.
    pub(crate) fn is_held(&self, payment_hash: &PaymentHash, place: Place) -> bool {
        self.invoices.holds(payment_hash, place)
    }

    /// An HTLC that ends here. If it is neither held nor decided now, it is said why.
    pub(crate) fn on_htlc(
        &mut self,
        part: HeldPart,
        last: &Final,
        secret: &PaymentSecret,
        accepts_keysend: bool,
        moment: Moment,
        out: &mut Vec<Receipt>,
    ) -> Result<(), Unpaid> {
        (self.height, self.now) = (moment.height, moment.now);
        let (payment_hash, place) = (part.received.payment_hash, part.place());
        if self.is_held(&payment_hash, place) {
            // The owner, or the deadline, decides about it with the others.
            self.assembly.add_again(part, moment.now);
            return Ok(());
        }
        if let Some(preimage) = keysend(&part.received, last)
            && self.invoices.get(&payment_hash).is_none()
        {
            return self.on_keysend(&part, preimage, last, accepts_keysend, out);
        }
        let invoice = self.invoices.get(&payment_hash);
        judge::judge(&part.received, last, invoice, secret, moment.height, moment.unix_ms)?;
        let asked = invoice.and_then(|invoice| invoice.amount);
        let most = asked.map(|asked| asked.checked_mul(OVERPAYMENT_MAX).unwrap_or(Msat(u64::MAX)));
        match self.assembly.add(part, last.total_msat, most, moment.now) {
            Added::Waits => Ok(()),
            Added::Completes => {
                self.on_complete(payment_hash, out);
                Ok(())
            }
            Added::Contradicts(parts) => {
                tracing::info!(%payment_hash, parts = parts.len(), "parts of a payment name different totals");
                fail_all(&parts, moment.height, moment.now, out);
                Ok(())
            }
            Added::TooMuch(part) => {
                fail_all(&[part], moment.height, moment.now, out);
                Ok(())
            }
            Added::Full(part) => {
                out.push(Receipt::Fail(part.place(), judge::refuse_for_now(&part.secret)));
                Ok(())
            }
        }
    }

    fn on_keysend(
        &mut self,
        part: &HeldPart,
        preimage: &Preimage,
        last: &Final,
        is_accepted: bool,
        out: &mut Vec<Receipt>,
    ) -> Result<(), Unpaid> {
        let Received { payment_hash, amount, channel_id, id, .. } = part.received;
        if last.total_msat > amount {
            return Err(Unpaid::Part { amount, total: last.total_msat });
        }
        if !is_accepted {
            return Err(Unpaid::Keysend);
        }
        if !self.invoices.take(payment_hash, part.place()) {
            return Err(Unpaid::AlreadyPaid);
        }
        let received = ReceivedPart { channel_id, htlc_id: id, amount };
        let entry = InvoiceEntry::Keysend { payment_hash, preimage: preimage.clone(), part: received };
        out.push(Receipt::Fulfill(Fulfilment {
            place: part.place(),
            payment_hash,
            preimage: preimage.clone(),
            attribution: Some(part.attribution(self.now)),
            entry: Some(entry),
        }));
        Ok(())
    }

    /// All of a payment is there.
    fn on_complete(&mut self, payment_hash: PaymentHash, out: &mut Vec<Receipt>) {
        let Self { invoices, assembly, .. } = self;
        let (Some(invoice), Some(set)) = (invoices.get_mut(&payment_hash), assembly.get(&payment_hash)) else { return };
        let parts = set.received();
        if invoice.is_hold {
            invoice.busy = Busy::Holding;
            let deadline = set.deadline();
            return out.push(Receipt::Write(InvoiceEntry::Held { payment_hash, parts, deadline }.entry()));
        }
        if let Some(preimage) = invoice.preimage().cloned() {
            self.claim(payment_hash, preimage, parts, out);
        }
    }

    fn claim(
        &mut self,
        payment_hash: PaymentHash,
        preimage: Preimage,
        parts: Vec<ReceivedPart>,
        out: &mut Vec<Receipt>,
    ) {
        let Some(&ReceivedPart { channel_id, htlc_id, amount }) = parts.first() else { return };
        let place = (channel_id, htlc_id);
        let held = self.assembly.get(&payment_hash).and_then(|set| attribution_of(&set.parts, place, self.now));
        let Some(invoice) = self.invoices.get_mut(&payment_hash) else { return };
        invoice.busy = Busy::Claiming(place);
        let entry = if parts.len() == 1 && !invoice.is_hold {
            InvoiceEntry::Claimed { payment_hash, channel_id, htlc_id, amount }
        } else {
            InvoiceEntry::ClaimedParts { payment_hash, preimage: preimage.clone(), parts }
        };
        out.push(Receipt::Fulfill(Fulfilment { place, payment_hash, preimage, attribution: held, entry: Some(entry) }));
    }

    /// A channel did not take a fulfilment. Unless the node is stopping, it never will.
    pub(crate) fn on_refused(&mut self, fulfilment: &Fulfilment, is_stopping: bool, out: &mut Vec<Receipt>) {
        let Fulfilment { place, payment_hash, .. } = *fulfilment;
        if self.invoices.untake(payment_hash, place) {
            return;
        }
        let Some(invoice) = self.invoices.get_mut(&payment_hash) else { return };
        if invoice.busy != Busy::Claiming(place) {
            return;
        }
        invoice.busy = Busy::Free;
        let is_held = invoice.held().is_some();
        if is_stopping {
            // At the next start everything is as it was.
            self.waiting.remove(&payment_hash);
            return;
        }
        self.assembly.lose(&payment_hash, place);
        if is_held {
            self.begin_cancel(payment_hash, CancelReason::PartGone, out);
        } else if self.waiting.contains_key(&payment_hash) {
            self.begin_cancel(payment_hash, CancelReason::Asked, out);
        }
    }

    /// Time has passed, or blocks have come: what is held too long is failed back.
    pub(crate) fn on_time(
        &mut self,
        now: Millis,
        timeout_ms: u64,
        height: Option<BlockHeight>,
        out: &mut Vec<Receipt>,
    ) {
        self.now = now;
        for part in self.assembly.overdue(now, timeout_ms, height) {
            let Received { channel_id, id, payment_hash, .. } = part.received;
            tracing::info!(%channel_id, htlc_id = id.0, %payment_hash, "the other parts of a payment did not come");
            out.push(Receipt::Fail(part.place(), judge::refuse_alone(&part.secret, part.held(now))));
        }
        let Some(height) = height else { return };
        self.height = height;
        for payment_hash in self.invoices.past_deadline(height) {
            tracing::warn!(%payment_hash, "a payment that is held came too near to its expiry: it is failed back");
            self.begin_cancel(payment_hash, CancelReason::Deadline, out);
        }
    }

    // --- the fold ---

    /// An entry of ours is durable. What follows is for live news only.
    pub(crate) fn on_entry(
        &mut self,
        entry: InvoiceEntry,
        time_ms: u64,
        out: &mut Vec<Receipt>,
        happened: &mut Vec<Happened>,
    ) {
        match self.invoices.on_entry(entry, time_ms, happened) {
            Became::Known | Became::Held(_) => {}
            Became::Paid { payment_hash, preimage, owed } => {
                let parts = self.assembly.take(&payment_hash);
                for place in owed {
                    let (preimage, attribution) = (preimage.clone(), attribution_of(&parts, place, self.now));
                    out.push(Receipt::Fulfill(Fulfilment { place, payment_hash, preimage, attribution, entry: None }));
                }
                self.answer(payment_hash, Ok(()), Err(HoldRefusal::Paid(payment_hash)));
            }
            Became::Cancelled(payment_hash) => {
                let parts = self.assembly.take(&payment_hash);
                fail_all(&parts, self.height, self.now, out);
                let why = self.invoices.get(&payment_hash).and_then(Invoice::cancelled);
                let why = why.unwrap_or(CancelReason::Asked);
                self.answer(payment_hash, Err(HoldRefusal::Cancelled { payment_hash, why }), Ok(()));
            }
        }
    }
}

/// The preimage that an HTLC brings along, if it is its own.
pub(crate) fn keysend<'a>(received: &Received, last: &'a Final) -> Option<&'a Preimage> {
    last.keysend_preimage.as_ref().filter(|preimage| preimage.hash() == received.payment_hash)
}

fn attribution_of(parts: &[HeldPart], place: Place, now: Millis) -> Option<Box<AttributionData>> {
    parts.iter().find(|part| part.place() == place).map(|part| part.attribution(now))
}

fn fail_all(parts: &[HeldPart], height: BlockHeight, now: Millis, out: &mut Vec<Receipt>) {
    let refuse = |part: &HeldPart| judge::refuse_held(&part.received, &part.secret, height, part.held(now));
    out.extend(parts.iter().map(|part| Receipt::Fail(part.place(), refuse(part))));
}

#[cfg(test)]
mod tests;
