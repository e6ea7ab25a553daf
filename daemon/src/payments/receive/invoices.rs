//! Invoices of this node as the journal has them: which can be paid, what is held for them, and which are paid.
//!
//! An invoice is durable before it is handed out (D7). It is paid by an entry that is written in the same step as the
//! decision to fulfil its (first) HTLC: so after any crash either both are there or neither, and no further HTLC can pay
//! it. If several HTLCs pay it, that entry names them all: those that are not fulfilled yet are owed, whatever happens.
//! Only invoices that matter to HTLCs are in memory: those that can still be paid, for which something is held or owed,
//! or whose time is not over.
//!
//! What is about to be decided ([`Busy`]) stands beside the state and is in no checkpoint: its entry decides.

use std::collections::{BTreeSet, HashMap, HashSet};

use millrace_wire::{BlockHeight, ChannelId, HtlcId, Msat, PaymentHash, Preimage};
use serde::{Deserialize, Serialize};

use super::super::entry::{InvoiceEntry, Made, MadeHold};
use super::Place;
use crate::happened::{CancelReason, Happened, ReceivedPart};

/// Invoices that may be open at once: each takes some 200 bytes of memory.
pub(crate) const OPEN_MAX: usize = 5_000_000;
/// How long a spontaneous payment is in memory, in milliseconds: whether its hash is known is then for the view to say.
const KEYSEND_KEPT_MS: u64 = 86_400_000;
/// When an invoice that has expired, and for which something is held or owed, is looked at again, in milliseconds.
const LOOK_AGAIN_MS: u64 = 600_000;

/// An invoice, as far as paying it is concerned.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Invoice {
    /// Absent if only the client knows it.
    preimage: Option<Preimage>,
    /// Absent if the payer chooses.
    pub(crate) amount: Option<Msat>,
    /// As Unix time in milliseconds.
    pub(crate) expires_ms: u64,
    /// Blocks that the last HTLC must leave.
    pub(crate) min_final_cltv: u16,
    /// Its payment is held until its owner decides.
    pub(crate) is_hold: bool,
    state: State,
    #[serde(skip)]
    pub(super) busy: Busy,
}

/// What is durable.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum State {
    Open,
    /// All of a payment is there, and held.
    Held {
        parts: Vec<ReceivedPart>,
        deadline: BlockHeight,
    },
    /// It is paid. Those HTLCs are to be fulfilled whose removal is not irrevocable yet; of those that are fulfilled in
    /// the step that says so, nothing is owed.
    Paid {
        owed: Vec<Place>,
    },
    Cancelled(CancelReason),
}

/// What is on its way to the journal.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) enum Busy {
    /// Nothing.
    #[default]
    Free,
    /// It is paid, in the step that decides this HTLC.
    Claiming(Place),
    /// Its payment is held.
    Holding,
    /// It is cancelled.
    Cancelling,
}

impl Invoice {
    /// One that can be paid.
    pub(crate) const fn open(preimage: Preimage, amount: Option<Msat>, expires_ms: u64, min_final_cltv: u16) -> Self {
        let state = State::Open;
        Self { preimage: Some(preimage), amount, expires_ms, min_final_cltv, is_hold: false, state, busy: Busy::Free }
    }

    /// Is about to be paid by another HTLC.
    #[cfg(test)]
    pub(crate) fn claim_for_tests(&mut self) {
        self.busy = Busy::Claiming((ChannelId([9; 32]), HtlcId(9)));
    }

    /// Whether HTLCs can still join to pay it.
    pub(crate) fn is_open(&self) -> bool {
        self.state == State::Open && self.busy == Busy::Free
    }

    /// What fulfils its HTLCs, if this node knows it.
    pub(super) const fn preimage(&self) -> Option<&Preimage> {
        self.preimage.as_ref()
    }

    /// What is held for it.
    pub(super) fn held(&self) -> Option<&[ReceivedPart]> {
        match &self.state {
            State::Held { parts, .. } => Some(parts),
            State::Open | State::Paid { .. } | State::Cancelled(_) => None,
        }
    }

    /// Whether it is paid, durably.
    pub(super) const fn is_paid(&self) -> bool {
        matches!(self.state, State::Paid { .. })
    }

    /// Why it was cancelled, if it was.
    pub(super) const fn cancelled(&self) -> Option<CancelReason> {
        match self.state {
            State::Cancelled(why) => Some(why),
            State::Open | State::Held { .. } | State::Paid { .. } => None,
        }
    }

    /// Whether HTLCs depend on it, however old it is.
    fn is_needed(&self) -> bool {
        match &self.state {
            State::Held { .. } => true,
            State::Paid { owed } => !owed.is_empty(),
            State::Open | State::Cancelled(_) => self.busy != Busy::Free,
        }
    }
}

/// Why an invoice is not made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InvoiceRefusal {
    /// There is one with its hash.
    #[error("an invoice with the payment hash {0} exists")]
    HashTaken(PaymentHash),
    /// Too many are open.
    #[error("{0} invoices are open, and no more may be")]
    TooMany(usize),
}

/// What an entry of ours made true.
#[derive(Clone, PartialEq, Debug)]
pub(super) enum Became {
    /// Nothing that HTLCs wait for.
    Known,
    /// What is held for it, is.
    Held(PaymentHash),
    /// It is paid, and these HTLCs are to be fulfilled.
    Paid { payment_hash: PaymentHash, preimage: Preimage, owed: Vec<Place> },
    /// It is cancelled, and what was held for it is to be failed.
    Cancelled(PaymentHash),
}

/// All invoices that matter to HTLCs.
#[derive(Default)]
pub(crate) struct Invoices {
    by_hash: HashMap<PaymentHash, Invoice>,
    by_expiry: BTreeSet<(u64, PaymentHash)>,
    /// On their way to the journal.
    making: HashSet<PaymentHash>,
    /// Those for which something is held.
    held: HashSet<PaymentHash>,
    /// HTLCs that are to be fulfilled, and for which invoice.
    owed: HashMap<Place, PaymentHash>,
    /// Spontaneous payments on their way to the journal.
    taking: HashMap<PaymentHash, Place>,
}

impl Invoices {
    // --- making ---

    /// Takes a hash for an invoice that is about to be written.
    pub(crate) fn begin(&mut self, payment_hash: PaymentHash) -> Result<(), InvoiceRefusal> {
        if self.by_hash.len() + self.making.len() >= OPEN_MAX {
            return Err(InvoiceRefusal::TooMany(OPEN_MAX));
        }
        if self.is_known(&payment_hash) || !self.making.insert(payment_hash) {
            return Err(InvoiceRefusal::HashTaken(payment_hash));
        }
        Ok(())
    }

    /// It was not written after all.
    pub(crate) fn abandon(&mut self, payment_hash: PaymentHash) {
        self.making.remove(&payment_hash);
    }

    // --- looking ---

    /// The invoice with this hash.
    pub(crate) fn get(&self, payment_hash: &PaymentHash) -> Option<&Invoice> {
        self.by_hash.get(payment_hash)
    }

    pub(super) fn get_mut(&mut self, payment_hash: &PaymentHash) -> Option<&mut Invoice> {
        self.by_hash.get_mut(payment_hash)
    }

    /// Whether there is something with this hash, or about to be.
    pub(super) fn is_known(&self, payment_hash: &PaymentHash) -> bool {
        self.by_hash.contains_key(payment_hash)
            || self.making.contains(payment_hash)
            || self.taking.contains_key(payment_hash)
    }

    /// What fulfils an HTLC that is owed its fulfilment.
    pub(super) fn owed(&self, place: Place) -> Option<(PaymentHash, &Preimage)> {
        let payment_hash = self.owed.get(&place)?;
        Some((*payment_hash, self.by_hash.get(payment_hash)?.preimage.as_ref()?))
    }

    /// Whether an HTLC is one of those that are durably held for the invoice with this hash.
    pub(super) fn holds(&self, payment_hash: &PaymentHash, place: Place) -> bool {
        let held = self.by_hash.get(payment_hash).and_then(Invoice::held);
        held.is_some_and(|parts| parts.iter().any(|part| (part.channel_id, part.htlc_id) == place))
    }

    /// Invoices whose held HTLCs must be failed back now, so that the last does not come too near to its expiry.
    pub(super) fn past_deadline(&self, height: BlockHeight) -> Vec<PaymentHash> {
        let is_past = |hash: &&PaymentHash| match self.by_hash.get(hash).map(|invoice| (&invoice.state, invoice.busy)) {
            Some((State::Held { deadline, .. }, Busy::Free)) => height > *deadline,
            _ => false,
        };
        self.held.iter().filter(is_past).copied().collect()
    }

    /// A spontaneous payment is about to be taken. False if its hash is known.
    pub(super) fn take(&mut self, payment_hash: PaymentHash, place: Place) -> bool {
        if self.is_known(&payment_hash) {
            return false;
        }
        self.taking.insert(payment_hash, place);
        true
    }

    /// It was not taken after all.
    pub(super) fn untake(&mut self, payment_hash: PaymentHash, place: Place) -> bool {
        let is_this = self.taking.get(&payment_hash) == Some(&place);
        if is_this {
            self.taking.remove(&payment_hash);
        }
        is_this
    }

    // --- the fold ---

    /// An entry of ours is durable.
    pub(super) fn on_entry(&mut self, entry: InvoiceEntry, time_ms: u64, happened: &mut Vec<Happened>) -> Became {
        match entry {
            InvoiceEntry::Made(made) => {
                let Made { created, preimage, min_final_cltv } = *made;
                self.making.remove(&created.payment_hash);
                let invoice = Invoice::open(preimage, created.amount, created.expires_ms, min_final_cltv);
                self.insert(created.payment_hash, invoice);
                happened.push(Happened::InvoiceCreated(Box::new(created)));
                Became::Known
            }
            InvoiceEntry::MadeHold(made) => {
                let MadeHold { created, preimage, min_final_cltv } = *made;
                self.making.remove(&created.payment_hash);
                let (amount, expires_ms) = (created.amount, created.expires_ms);
                let (state, busy) = (State::Open, Busy::Free);
                let invoice = Invoice { preimage, amount, expires_ms, min_final_cltv, is_hold: true, state, busy };
                self.insert(created.payment_hash, invoice);
                happened.push(Happened::HoldInvoiceCreated(Box::new(created)));
                Became::Known
            }
            InvoiceEntry::Held { payment_hash, parts, deadline } => {
                let Some(invoice) = self.known(&payment_hash, "is held for") else { return Became::Known };
                if invoice.busy == Busy::Holding {
                    invoice.busy = Busy::Free;
                }
                invoice.state = State::Held { parts: parts.clone(), deadline };
                self.held.insert(payment_hash);
                happened.push(Happened::InvoiceHeld { payment_hash, parts, deadline });
                Became::Held(payment_hash)
            }
            InvoiceEntry::Claimed { payment_hash, channel_id, htlc_id, amount } => {
                let Some(invoice) = self.known(&payment_hash, "pays") else { return Became::Known };
                let Some(preimage) = invoice.preimage.clone() else {
                    tracing::error!(%payment_hash, "a preimage that is not known pays an invoice");
                    return Became::Known;
                };
                happened.push(Happened::InvoicePaid {
                    payment_hash,
                    received: amount,
                    preimage: preimage.clone(),
                    channel_id,
                    htlc_id,
                });
                self.on_paid(payment_hash, preimage, Vec::new())
            }
            InvoiceEntry::ClaimedParts { payment_hash, preimage, parts } => {
                let Some(invoice) = self.known(&payment_hash, "pays") else { return Became::Known };
                invoice.preimage = Some(preimage.clone());
                let owed = parts.iter().skip(1).map(|part| (part.channel_id, part.htlc_id)).collect();
                happened.push(Happened::InvoicePaidInParts { payment_hash, preimage: preimage.clone(), parts });
                self.on_paid(payment_hash, preimage, owed)
            }
            InvoiceEntry::Cancelled { payment_hash, why } => {
                let Some(invoice) = self.known(&payment_hash, "cancels") else { return Became::Known };
                invoice.busy = Busy::Free;
                invoice.state = State::Cancelled(why);
                self.held.remove(&payment_hash);
                happened.push(Happened::InvoiceCancelled { payment_hash, why });
                Became::Cancelled(payment_hash)
            }
            InvoiceEntry::Keysend { payment_hash, preimage, part } => {
                self.taking.remove(&payment_hash);
                let expires_ms = time_ms.saturating_add(KEYSEND_KEPT_MS);
                let mut invoice = Invoice::open(preimage.clone(), Some(part.amount), expires_ms, 0);
                invoice.state = State::Paid { owed: Vec::new() };
                self.insert(payment_hash, invoice);
                happened.push(Happened::KeysendReceived { payment_hash, preimage, part });
                Became::Known
            }
        }
    }

    fn known(&mut self, payment_hash: &PaymentHash, what: &'static str) -> Option<&mut Invoice> {
        let invoice = self.by_hash.get_mut(payment_hash);
        if invoice.is_none() {
            tracing::error!(%payment_hash, "an entry {what} an invoice that is not known");
        }
        invoice
    }

    fn on_paid(&mut self, payment_hash: PaymentHash, preimage: Preimage, owed: Vec<Place>) -> Became {
        self.held.remove(&payment_hash);
        self.owed.extend(owed.iter().map(|place| (*place, payment_hash)));
        if let Some(invoice) = self.by_hash.get_mut(&payment_hash) {
            invoice.busy = Busy::Free;
            invoice.state = State::Paid { owed: owed.clone() };
        }
        Became::Paid { payment_hash, preimage, owed }
    }

    /// The removal of an HTLC of a peer is irrevocable: nothing is owed to it any more.
    pub(crate) fn on_removed(&mut self, channel_id: ChannelId, htlc_id: HtlcId) {
        let place = (channel_id, htlc_id);
        let Some(payment_hash) = self.owed.remove(&place) else { return };
        if let Some(Invoice { state: State::Paid { owed }, .. }) = self.by_hash.get_mut(&payment_hash) {
            owed.retain(|other| *other != place);
        }
    }

    /// A channel is closed, and everything in it resolved.
    pub(crate) fn on_closed(&mut self, channel_id: ChannelId) {
        let of_it: Vec<Place> = self.owed.keys().filter(|(of, _)| *of == channel_id).copied().collect();
        for (channel_id, htlc_id) in of_it {
            self.on_removed(channel_id, htlc_id);
        }
    }

    fn insert(&mut self, payment_hash: PaymentHash, invoice: Invoice) {
        self.by_expiry.insert((invoice.expires_ms, payment_hash));
        self.by_hash.insert(payment_hash, invoice);
    }

    /// Forgets what has expired: whatever comes for it is failed, as for any hash that is not ours. `slack_ms` keeps an
    /// invoice while a claim that was decided just before may be on its way to the disk.
    pub(crate) fn prune(&mut self, unix_ms: u64, slack_ms: u64) {
        while let Some((expires_ms, payment_hash)) = self.by_expiry.first().copied() {
            if expires_ms.saturating_add(slack_ms) > unix_ms {
                return;
            }
            self.by_expiry.remove(&(expires_ms, payment_hash));
            if self.by_hash.get(&payment_hash).is_some_and(Invoice::is_needed) {
                self.by_expiry.insert((unix_ms.saturating_add(LOOK_AGAIN_MS), payment_hash));
            } else {
                self.by_hash.remove(&payment_hash);
            }
        }
    }

    /// For a checkpoint. What is not durable is not in it: if it becomes so, its entry comes after.
    pub(crate) fn section(&self) -> Vec<(PaymentHash, Invoice)> {
        let durable = |invoice: &Invoice| Invoice { busy: Busy::Free, ..invoice.clone() };
        self.by_expiry.iter().filter_map(|(_, hash)| Some((*hash, durable(self.by_hash.get(hash)?)))).collect()
    }

    /// Takes a section back.
    pub(crate) fn restore(&mut self, section: Vec<(PaymentHash, Invoice)>) {
        for (payment_hash, invoice) in section {
            match &invoice.state {
                State::Held { .. } => drop(self.held.insert(payment_hash)),
                State::Paid { owed } => self.owed.extend(owed.iter().map(|place| (*place, payment_hash))),
                State::Open | State::Cancelled(_) => {}
            }
            self.insert(payment_hash, invoice);
        }
    }

    /// How many are in memory.
    pub(crate) fn len(&self) -> usize {
        self.by_hash.len()
    }
}
