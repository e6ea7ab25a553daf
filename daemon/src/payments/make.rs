//! Making an invoice: drawn, signed, written down, and only then handed out (D7).

use std::time::Duration;

use millrace_routing::invoice::{Description, HintHop, InvoiceError, NewInvoice};
use millrace_routing::onion::FINAL_EXPIRY_MARGIN;
use millrace_wire::{CltvDelta, Msat, PaymentHash, PaymentSecret, Preimage};
use tokio::sync::oneshot;

use super::Payments;
use super::actor::Input;
use super::entry::{InvoiceEntry, Made, MadeHold};
use super::hints::hints;
use super::receive::InvoiceRefusal;
use super::row::InvoiceRow;
use crate::channels::{NoNewWork, random};
use crate::clock;
use crate::entry::Entry;
use crate::happened::InvoiceCreated;

/// What an invoice is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// In words.
    Text(String),
    /// The SHA-256 of words that are elsewhere.
    Hash([u8; 32]),
}

/// Whether a payment is taken at once, or held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taking {
    /// At once, by this preimage; absent: one is drawn.
    AtOnce(Option<Preimage>),
    /// Held until its owner decides; the preimage as before.
    Hold(Option<Preimage>),
    /// Held until its owner brings the preimage of this hash.
    HoldHash(PaymentHash),
}

/// An invoice to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InvoiceOrder {
    /// What it asks for; absent if the payer chooses.
    pub amount: Option<Msat>,
    /// What it is for.
    pub purpose: Purpose,
    /// How long it can be paid, in seconds; absent: what is usual.
    pub expiry_s: Option<u32>,
    /// Blocks that the last HTLC must leave; absent: what is usual.
    pub min_final_cltv: Option<u16>,
    /// How it is taken.
    pub taking: Taking,
    /// Tell no ways over channels that are not announced.
    pub no_hints: bool,
    /// The key that the client gave.
    pub idempotency_key: String,
}

/// Why an invoice is not made.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum MakeError {
    /// BOLT 11 cannot say it.
    #[error(transparent)]
    Invoice(#[from] InvoiceError),
    /// Its hash is taken, or there are too many.
    #[error(transparent)]
    Refused(#[from] InvoiceRefusal),
    /// An HTLC that leaves so little could not be claimed in peace.
    #[error("min_final_cltv_expiry_delta {asked} is below the {least} blocks that this node needs")]
    FinalDelta {
        /// Asked for.
        asked: u16,
        /// The least.
        least: u16,
    },
    /// The node takes no new work.
    #[error(transparent)]
    NoNewWork(#[from] NoNewWork),
}

impl Payments {
    /// Makes an invoice. `entry`, given its hash, makes what is written in the same step. To be run to its end: dropped
    /// half-way, the hash stays taken.
    ///
    /// # Errors
    /// [`MakeError`]; nothing was made.
    pub async fn make_invoice(
        &self,
        order: InvoiceOrder,
        entry: impl FnOnce(&[u8; 32]) -> Option<Entry> + Send,
    ) -> Result<InvoiceRow, MakeError> {
        let stopping = || MakeError::NoNewWork(NoNewWork::Stopping);
        let journal = self.running.get().ok_or_else(stopping)?.journal.clone();
        if let Some(reason) = journal.space().shortage() {
            // The reserve is for what was begun: a client that makes invoices must not use it up.
            return Err(NoNewWork::DiskLow(reason).into());
        }
        let unix_ms = clock::unix_ms();
        let made = self.draw(order, unix_ms)?;
        let Drawn { created, entry: made, is_hold } = made;
        let payment_hash = created.payment_hash;
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::BeginInvoice(payment_hash, reply)).map_err(|_| stopping())?;
        answer.await.map_err(|_| stopping())??;
        let row = InvoiceRow::new(&created, is_hold, unix_ms);
        let mut entries = vec![made.entry()];
        entries.extend(entry(&payment_hash.0));
        if journal.write(entries).await.is_err() {
            // Nobody hears it any more only when the node has stopped.
            let _gone = self.inputs.send(Input::AbandonInvoice(payment_hash));
            return Err(stopping());
        }
        Ok(row)
    }

    fn draw(&self, order: InvoiceOrder, unix_ms: u64) -> Result<Drawn, MakeError> {
        let InvoiceOrder { amount, purpose, expiry_s, min_final_cltv, taking, no_hints, idempotency_key } = order;
        let least = FINAL_EXPIRY_MARGIN.0;
        let min_final_cltv = min_final_cltv.unwrap_or(self.rules.final_cltv_delta.max(least));
        if min_final_cltv < least {
            return Err(MakeError::FinalDelta { asked: min_final_cltv, least });
        }
        let drawn = |preimage: Option<Preimage>| preimage.unwrap_or_else(|| Preimage::new(random()));
        let is_hold = !matches!(taking, Taking::AtOnce(_));
        let (payment_hash, preimage) = match taking {
            Taking::AtOnce(preimage) | Taking::Hold(preimage) => {
                let preimage = drawn(preimage);
                (preimage.hash(), Some(preimage))
            }
            Taking::HoldHash(payment_hash) => (payment_hash, None),
        };
        // BOLT 11 counts seconds.
        let timestamp = Duration::from_secs(unix_ms / 1000);
        let expiry = Duration::from_secs(expiry_s.unwrap_or(self.rules.invoice_expiry_s).into());
        let invoice = NewInvoice {
            network: self.rules.network,
            amount,
            payment_hash,
            payment_secret: PaymentSecret::new(*self.keys.payment_secret(&payment_hash.0)),
            description: match purpose {
                Purpose::Text(text) => Description::Text(text),
                Purpose::Hash(hash) => Description::Hash(hash),
            },
            timestamp,
            expiry,
            min_final_cltv: CltvDelta(min_final_cltv),
            basic_mpp: true,
            payment_metadata: None,
            route_hints: if no_hints { Vec::new() } else { self.hints() },
        };
        let bolt11 = invoice.sign(self.keys.node_key())?;
        let expires_ms = (timestamp + expiry).as_millis();
        let expires_ms = u64::try_from(expires_ms).unwrap_or(u64::MAX);
        let created = InvoiceCreated { payment_hash, amount, expires_ms, bolt11, idempotency_key };
        let entry = match preimage {
            Some(preimage) if !is_hold => {
                InvoiceEntry::Made(Box::new(Made { created: created.clone(), preimage, min_final_cltv }))
            }
            preimage => {
                InvoiceEntry::MadeHold(Box::new(MadeHold { created: created.clone(), preimage, min_final_cltv }))
            }
        };
        Ok(Drawn { created, entry, is_hold })
    }

    fn hints(&self) -> Vec<Vec<HintHop>> {
        let (Some(running), Some(network)) = (self.running.get(), self.network.get()) else { return Vec::new() };
        let channels = running.registry.snapshots();
        hints(channels.iter().map(AsRef::as_ref), network)
    }
}

/// An invoice that is signed, and not yet written down.
struct Drawn {
    created: InvoiceCreated,
    entry: InvoiceEntry,
    is_hold: bool,
}
