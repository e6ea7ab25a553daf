//! Invoices of this node: which can be paid, by what, and which are.
//!
//! An invoice is durable before it is handed out (D7). It is paid by the entry `Claimed`, which is written in the same
//! step as the decision to fulfil the HTLC: so after any crash either both are there or neither, and a second HTLC with
//! the same hash is failed. Only invoices that can still be paid, or were paid and have not expired, are in memory.
//!
//! There are no hold invoices: every HTLC is decided at once, so none can come near its deadline undecided.

use std::collections::{BTreeSet, HashMap, HashSet};

use millrace_wire::{ChannelId, HtlcId, Msat, PaymentHash, Preimage};
use serde::{Deserialize, Serialize};

use super::entry::{InvoiceEntry, Made};
use crate::happened::Happened;

/// Invoices that may be open at once: each takes some 200 bytes of memory.
pub(crate) const OPEN_MAX: usize = 5_000_000;

/// An invoice, as far as paying it is concerned.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(crate) struct Invoice {
    preimage: Preimage,
    /// Absent if the payer chooses.
    pub(crate) amount: Option<Msat>,
    /// As Unix time in milliseconds.
    pub(crate) expires_ms: u64,
    /// Blocks that the last HTLC must leave.
    pub(crate) min_final_cltv: u16,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum State {
    Open,
    /// This HTLC is about to pay it; not yet durable.
    Claiming(ChannelId, HtlcId),
    /// This HTLC pays it.
    Paid(ChannelId, HtlcId),
}

impl Invoice {
    /// One that can be paid.
    pub(crate) const fn open(preimage: Preimage, amount: Option<Msat>, expires_ms: u64, min_final_cltv: u16) -> Self {
        Self { preimage, amount, expires_ms, min_final_cltv, state: State::Open }
    }

    /// Whether no other HTLC pays it.
    pub(crate) fn is_payable_by(&self, channel_id: ChannelId, htlc_id: HtlcId) -> bool {
        match self.state {
            State::Open => true,
            State::Claiming(by, id) | State::Paid(by, id) => (by, id) == (channel_id, htlc_id),
        }
    }

    /// This HTLC is about to pay it.
    pub(crate) fn claim(&mut self, channel_id: ChannelId, htlc_id: HtlcId) {
        if self.state == State::Open {
            self.state = State::Claiming(channel_id, htlc_id);
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

/// All invoices that matter to HTLCs.
#[derive(Default)]
pub(crate) struct Invoices {
    by_hash: HashMap<PaymentHash, Invoice>,
    by_expiry: BTreeSet<(u64, PaymentHash)>,
    /// On their way to the journal.
    making: HashSet<PaymentHash>,
}

impl Invoices {
    /// Takes a hash for an invoice that is about to be written.
    pub(crate) fn begin(&mut self, payment_hash: PaymentHash) -> Result<(), InvoiceRefusal> {
        if self.by_hash.len() + self.making.len() >= OPEN_MAX {
            return Err(InvoiceRefusal::TooMany(OPEN_MAX));
        }
        if self.by_hash.contains_key(&payment_hash) || !self.making.insert(payment_hash) {
            return Err(InvoiceRefusal::HashTaken(payment_hash));
        }
        Ok(())
    }

    /// It was not written after all.
    pub(crate) fn abandon(&mut self, payment_hash: PaymentHash) {
        self.making.remove(&payment_hash);
    }

    /// The invoice with this hash.
    pub(crate) fn get(&self, payment_hash: &PaymentHash) -> Option<&Invoice> {
        self.by_hash.get(payment_hash)
    }

    /// An HTLC is about to pay an invoice: no other one can. Gives what fulfils it, and what is written with that.
    pub(crate) fn claim(
        &mut self,
        payment_hash: PaymentHash,
        channel_id: ChannelId,
        htlc_id: HtlcId,
        amount: Msat,
    ) -> Option<(Preimage, InvoiceEntry)> {
        let invoice = self.by_hash.get_mut(&payment_hash)?;
        invoice.claim(channel_id, htlc_id);
        Some((invoice.preimage.clone(), InvoiceEntry::Claimed { payment_hash, channel_id, htlc_id, amount }))
    }

    /// The channel did not take the fulfilment, and never will: the invoice is as it was.
    pub(crate) fn unclaim(&mut self, payment_hash: PaymentHash, channel_id: ChannelId, htlc_id: HtlcId) {
        if let Some(invoice) = self.by_hash.get_mut(&payment_hash)
            && invoice.state == State::Claiming(channel_id, htlc_id)
        {
            invoice.state = State::Open;
        }
    }

    /// An entry of ours is durable.
    pub(crate) fn on_entry(&mut self, entry: InvoiceEntry, happened: &mut Vec<Happened>) {
        match entry {
            InvoiceEntry::Made(made) => {
                let Made { created, preimage, min_final_cltv } = *made;
                self.making.remove(&created.payment_hash);
                let invoice = Invoice::open(preimage, created.amount, created.expires_ms, min_final_cltv);
                self.insert(created.payment_hash, invoice);
                happened.push(Happened::InvoiceCreated(Box::new(created)));
            }
            InvoiceEntry::Claimed { payment_hash, channel_id, htlc_id, amount } => {
                let Some(invoice) = self.by_hash.get_mut(&payment_hash) else {
                    tracing::error!(%payment_hash, "an invoice was paid that is not known");
                    return;
                };
                invoice.state = State::Paid(channel_id, htlc_id);
                let preimage = invoice.preimage.clone();
                happened.push(Happened::InvoicePaid { payment_hash, received: amount, preimage, channel_id, htlc_id });
            }
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
            self.by_hash.remove(&payment_hash);
        }
    }

    /// For a checkpoint. A claim that is not durable is not in it: if it becomes so, its entry comes after.
    pub(crate) fn section(&self) -> Vec<(PaymentHash, Invoice)> {
        let durable = |invoice: &Invoice| match invoice.state {
            State::Claiming(_, _) => Invoice { state: State::Open, ..invoice.clone() },
            State::Open | State::Paid(_, _) => invoice.clone(),
        };
        self.by_expiry.iter().filter_map(|(_, hash)| Some((*hash, durable(self.by_hash.get(hash)?)))).collect()
    }

    /// Takes a section back.
    pub(crate) fn restore(&mut self, section: Vec<(PaymentHash, Invoice)>) {
        for (payment_hash, invoice) in section {
            self.insert(payment_hash, invoice);
        }
    }

    /// How many are in memory.
    pub(crate) fn len(&self) -> usize {
        self.by_hash.len()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::super::prepare::tests::hash;
    use super::*;
    use crate::happened::InvoiceCreated;

    fn made(n: u8, expires_ms: u64) -> InvoiceEntry {
        let created = InvoiceCreated {
            payment_hash: hash(n),
            amount: Some(Msat(5)),
            expires_ms,
            bolt11: "ln".to_owned(),
            idempotency_key: String::new(),
        };
        InvoiceEntry::Made(Box::new(Made { created, preimage: Preimage::new([n; 32]), min_final_cltv: 42 }))
    }

    fn with(n: u8, expires_ms: u64) -> Invoices {
        let mut invoices = Invoices::default();
        invoices.begin(hash(n)).unwrap();
        invoices.on_entry(made(n, expires_ms), &mut Vec::new());
        invoices
    }

    #[test]
    fn a_hash_is_taken_from_the_moment_it_is_being_made() {
        let mut invoices = Invoices::default();
        invoices.begin(hash(1)).unwrap();
        assert_eq!(invoices.begin(hash(1)), Err(InvoiceRefusal::HashTaken(hash(1))));
        invoices.abandon(hash(1));
        invoices.begin(hash(1)).unwrap();
        invoices.on_entry(made(1, 9), &mut Vec::new());
        assert_eq!(invoices.begin(hash(1)), Err(InvoiceRefusal::HashTaken(hash(1))));
    }

    /// The process may die before the claim is durable, and the HTLC may be failed: the invoice can be paid by another.
    #[test]
    fn a_checkpoint_holds_no_claim_that_is_not_durable() {
        let mut invoices = with(1, 9);
        let (first, second) = ((ChannelId([1; 32]), HtlcId(1)), (ChannelId([1; 32]), HtlcId(2)));
        let (_, entry) = invoices.claim(hash(1), first.0, first.1, Msat(5)).unwrap();
        let mut restarted = Invoices::default();
        restarted.restore(invoices.section());
        assert!(restarted.get(&hash(1)).unwrap().is_payable_by(second.0, second.1));
        // Once it is durable, its entry says so, before a checkpoint and in one.
        restarted.on_entry(entry, &mut Vec::new());
        let mut again = Invoices::default();
        again.restore(restarted.section());
        assert!(!again.get(&hash(1)).unwrap().is_payable_by(second.0, second.1));
    }

    #[test]
    fn one_htlc_pays_it_and_no_other() {
        let mut invoices = with(1, 9);
        let (first, second) = ((ChannelId([1; 32]), HtlcId(1)), (ChannelId([1; 32]), HtlcId(2)));
        let (preimage, entry) = invoices.claim(hash(1), first.0, first.1, Msat(5)).unwrap();
        assert_eq!(preimage.hash(), hash(1));
        assert!(!invoices.get(&hash(1)).unwrap().is_payable_by(second.0, second.1));
        invoices.unclaim(hash(1), second.0, second.1);
        assert!(!invoices.get(&hash(1)).unwrap().is_payable_by(second.0, second.1));
        let mut happened = Vec::new();
        invoices.on_entry(entry, &mut happened);
        assert!(matches!(&happened[..], [Happened::InvoicePaid { received: Msat(5), .. }]));
        invoices.unclaim(hash(1), first.0, first.1);
        let invoice = invoices.get(&hash(1)).unwrap();
        assert!(!invoice.is_payable_by(second.0, second.1), "what is durable is not undone");
    }

    #[test]
    fn a_claim_that_the_channel_refused_is_undone() {
        let mut invoices = with(1, 9);
        invoices.claim(hash(1), ChannelId([1; 32]), HtlcId(1), Msat(5)).unwrap();
        invoices.unclaim(hash(1), ChannelId([1; 32]), HtlcId(1));
        assert!(invoices.get(&hash(1)).unwrap().is_payable_by(ChannelId([2; 32]), HtlcId(7)));
    }

    #[test]
    fn a_section_keeps_who_paid_what() {
        let mut invoices = with(1, 9);
        let (_, entry) = invoices.claim(hash(1), ChannelId([1; 32]), HtlcId(1), Msat(5)).unwrap();
        invoices.on_entry(entry, &mut Vec::new());
        invoices.begin(hash(2)).unwrap();
        let mut restored = Invoices::default();
        restored.restore(invoices.section());
        assert_eq!(restored.section(), invoices.section());
        assert!(!restored.get(&hash(1)).unwrap().is_payable_by(ChannelId([2; 32]), HtlcId(1)));
        assert_eq!(restored.len(), 1, "what is only being made is not there yet");
    }

    #[test]
    fn expired_ones_are_forgotten_in_time() {
        let mut invoices = with(1, 1_000);
        invoices.prune(1_499, 500);
        assert_eq!(invoices.len(), 1);
        invoices.prune(1_500, 500);
        assert_eq!(invoices.len(), 0);
        assert!(invoices.section().is_empty());
    }
}
