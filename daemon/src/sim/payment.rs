//! Payments that are made in a simulation.

use millrace_routing::invoice::{Description, NewInvoice};
use millrace_wire::{CltvDelta, Msat, PaymentHash, PaymentSecret, Preimage};
use tokio::sync::mpsc::UnboundedReceiver;

use super::world::World;
use crate::payments::{InvoiceOrder, Limits, Listener, PayRequest, Purpose, Taking, Target, Told};

/// One payment, as those see it who asked for it.
pub(super) struct Asked {
    pub(super) payer: usize,
    pub(super) payee: usize,
    pub(super) payment_hash: PaymentHash,
    pub(super) amount: Msat,
    told: UnboundedReceiver<(u64, Told)>,
    /// What the payer's client was told; a client of a node that died was told nothing more.
    pub(super) ends: Vec<Told>,
}

/// An invoice.
pub(super) struct Invoice {
    pub(super) payee: usize,
    pub(super) payment_hash: PaymentHash,
    pub(super) amount: Msat,
    bolt11: String,
}

impl World {
    /// An invoice of a node.
    pub(super) fn invoice(&mut self, payee: usize, amount: Msat, is_held: bool) -> Invoice {
        let order = InvoiceOrder {
            amount: Some(amount),
            purpose: Purpose::Text("tea".to_owned()),
            expiry_s: None,
            min_final_cltv: None,
            taking: if is_held { Taking::Hold(None) } else { Taking::AtOnce(None) },
            no_hints: true,
            idempotency_key: String::new(),
        };
        let payments = std::sync::Arc::clone(&self.nodes[payee].life().payments);
        let row = self.ask(payee, payments.make_invoice(order, |_| None)).unwrap();
        Invoice { payee, payment_hash: row.payment_hash, amount, bolt11: row.bolt11 }
    }

    /// An invoice that looks like a node's, and that the node does not know.
    pub(super) fn forged_invoice(&mut self, payee: usize, amount: Msat) -> Invoice {
        let payment_hash = Preimage::new(crate::channels::random()).hash();
        let invoice = NewInvoice {
            network: bitcoin::Network::Regtest,
            amount: Some(amount),
            payment_hash,
            payment_secret: PaymentSecret::new([1; 32]),
            description: Description::Text("no tea".to_owned()),
            timestamp: std::time::Duration::from_millis(crate::clock::unix_ms()),
            expiry: std::time::Duration::from_secs(86_400),
            min_final_cltv: CltvDelta(42),
            basic_mpp: true,
            payment_metadata: None,
            route_hints: Vec::new(),
        };
        let bolt11 = invoice.sign(self.nodes[payee].keys.node_key()).unwrap();
        Invoice { payee, payment_hash, amount, bolt11 }
    }

    /// Asks a node to pay; nothing of that has happened when this returns.
    pub(super) fn pay(&mut self, payer: usize, invoice: &Invoice, parts: u16) -> Asked {
        let (listener, told) = Listener::pair(0, false);
        let request = PayRequest {
            target: Target::Invoice(invoice.bolt11.clone()),
            amount: None,
            key: None,
            limits: Limits { fee: Some(Msat(invoice.amount.0 / 10 + 20_000)), parts, ..Limits::default() },
        };
        let life = self.nodes[payer].life();
        life.payments.pay([(request, listener)]);
        life.is_task_due = true;
        let Invoice { payee, payment_hash, amount, .. } = *invoice;
        Asked { payer, payee, payment_hash, amount, told, ends: Vec::new() }
    }

    /// Whether nothing is under way on any node.
    pub(super) fn is_idle(&mut self) -> bool {
        self.nodes.iter_mut().all(|node| {
            let life = node.life();
            let is_empty = |channel: &std::sync::Arc<crate::channels::ChannelSnapshot>| channel.htlcs.is_empty();
            life.task.busy_with() == (0, 0, 0) && life.registry.snapshots().iter().all(is_empty)
        })
    }
}

impl Asked {
    /// Takes in what its client was told.
    pub(super) fn listen(&mut self) {
        while let Ok((_, told)) = self.told.try_recv() {
            self.ends.push(told);
        }
    }
}
