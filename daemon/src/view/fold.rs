//! Folding events into the view: a batch at a time, each row written once per batch, together with how far the batch goes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use millrace_journal::Position;
use millrace_wire::ChannelId;
use serde::{Deserialize, Serialize};
use sled::Transactional;
use sled::transaction::{ConflictableTransactionError, TransactionError};

use super::{ChannelRow, ForwardRow, ForwardTotals, RowKey, View, ViewError, decode, encode, key_of};
use crate::events::{EventLog, Subscription};
use crate::happened::{Happened, Happening};
use crate::payments::{InvoiceRow, PaymentRow};

/// Events of one batch: a batch is a transaction, and rows that change twice in it are written once.
const BATCH: usize = 4_096;

/// What a batch changes.
#[derive(Default)]
struct Changes {
    payments: Rows<PaymentRow>,
    invoices: Rows<InvoiceRow>,
    channels: Rows<ChannelRow>,
    payments_by_hash: BTreeMap<[u8; 32], RowKey>,
    /// Channels that have closed.
    closed: usize,
    forwards: BTreeMap<RowKey, ForwardRow>,
    /// With those of this batch; none if it has none.
    forward_totals: Option<ForwardTotals>,
}

struct Rows<T> {
    /// By the id that events name them by.
    keys: BTreeMap<[u8; 32], RowKey>,
    rows: BTreeMap<RowKey, T>,
}

impl<T> Default for Rows<T> {
    fn default() -> Self {
        Self { keys: BTreeMap::new(), rows: BTreeMap::new() }
    }
}

impl<T: for<'a> Deserialize<'a> + Serialize> Rows<T> {
    fn begin(&mut self, id: [u8; 32], key: RowKey, row: T) {
        self.keys.insert(id, key);
        self.rows.insert(key, row);
    }

    /// The row with this id, from this batch or from the tree.
    fn change(
        &mut self,
        id: &[u8; 32],
        index: &sled::Tree,
        tree: &sled::Tree,
        act: impl FnOnce(&mut T),
    ) -> Result<(), ViewError> {
        let key = match self.keys.get(id) {
            Some(key) => *key,
            None => match index.get(id)?.and_then(|key| RowKey::try_from(key.as_ref()).ok()) {
                Some(key) => key,
                // It began before the first event that is kept.
                None => return Ok(()),
            },
        };
        if let Some(row) = self.rows.get_mut(&key) {
            act(row);
        } else if let Some(bytes) = tree.get(key)? {
            let mut row = decode(&bytes)?;
            act(&mut row);
            self.rows.insert(key, row);
        }
        Ok(())
    }
}

impl View {
    /// Folds all events that there are, and says whether there were any.
    ///
    /// # Errors
    /// [`ViewError`].
    pub(crate) fn fold(&self, log: &Arc<EventLog>) -> Result<bool, ViewError> {
        let mut events = log.subscribe(Some(self.applied().max(log.oldest())))?;
        let mut any = false;
        while self.fold_batch(&mut events)? {
            any = true;
        }
        Ok(any)
    }

    fn fold_batch(&self, events: &mut Subscription) -> Result<bool, ViewError> {
        let batch = events.next_batch(BATCH)?;
        let up_to = events.next();
        if up_to <= self.applied() {
            return Ok(false);
        }
        let mut changes = Changes::default();
        for (at, happening) in &batch {
            self.take(*at, happening, &mut changes)?;
        }
        self.write(&changes, up_to)?;
        self.closed.fetch_add(changes.closed, Ordering::Relaxed);
        self.applied.send_replace(up_to);
        Ok(!batch.is_empty())
    }

    fn take(&self, at: Position, happening: &Happening, changes: &mut Changes) -> Result<(), ViewError> {
        let Happening { time_ms, what } = happening;
        let time = *time_ms;
        match what {
            Happened::PaymentStarted(started) => {
                let key = key_of(at);
                changes.payments.begin(started.id.0, key, PaymentRow::new(started, time));
                changes.payments_by_hash.insert(started.payment_hash.0, key);
                Ok(())
            }
            Happened::PaymentSucceeded { id, .. } => {
                let mut sent = Vec::new();
                let change = |row: &mut PaymentRow| {
                    row.apply(what, time);
                    sent = row.sent();
                };
                changes.payments.change(&id.0, &self.payments_by_id, &self.payments, change)?;
                for (channel_id, amount) in sent {
                    let add = |row: &mut ChannelRow| row.add_sent(amount);
                    changes.channels.change(&channel_id.0, &self.channels_by_id, &self.channels, add)?;
                }
                Ok(())
            }
            Happened::AttemptBegun { id, .. }
            | Happened::AttemptFailed { id, .. }
            | Happened::AttemptRouted { id, .. }
            | Happened::AttemptHeld { id, .. }
            | Happened::PaymentFailed { id, .. } => {
                let change = |row: &mut PaymentRow| row.apply(what, time);
                changes.payments.change(&id.0, &self.payments_by_id, &self.payments, change)
            }
            Happened::InvoiceCreated(created) => {
                changes.invoices.begin(created.payment_hash.0, key_of(at), InvoiceRow::new(created, false, time));
                Ok(())
            }
            Happened::HoldInvoiceCreated(created) => {
                changes.invoices.begin(created.payment_hash.0, key_of(at), InvoiceRow::new(created, true, time));
                Ok(())
            }
            Happened::KeysendReceived { payment_hash, preimage, part } => {
                let row = InvoiceRow::of_keysend(*payment_hash, preimage, *part, time);
                changes.invoices.begin(payment_hash.0, key_of(at), row);
                self.change_channel(part.channel_id, happening, changes)
            }
            Happened::InvoiceHeld { payment_hash, .. } | Happened::InvoiceCancelled { payment_hash, .. } => {
                let change = |row: &mut InvoiceRow| row.apply(what, time);
                changes.invoices.change(&payment_hash.0, &self.invoices_by_hash, &self.invoices, change)
            }
            Happened::InvoicePaidInParts { payment_hash, parts, .. } => {
                let change = |row: &mut InvoiceRow| row.apply(what, time);
                changes.invoices.change(&payment_hash.0, &self.invoices_by_hash, &self.invoices, change)?;
                let channels: std::collections::BTreeSet<ChannelId> =
                    parts.iter().map(|part| part.channel_id).collect();
                channels.into_iter().try_for_each(|channel_id| self.change_channel(channel_id, happening, changes))
            }
            Happened::InvoicePaid { payment_hash, channel_id, .. } => {
                let change = |row: &mut InvoiceRow| row.apply(what, time);
                changes.invoices.change(&payment_hash.0, &self.invoices_by_hash, &self.invoices, change)?;
                self.change_channel(*channel_id, happening, changes)
            }
            Happened::ChannelOpening(opening) => {
                changes.channels.begin(opening.channel_id.0, key_of(at), ChannelRow::new(opening, time));
                Ok(())
            }
            Happened::ChannelReady { channel_id, .. }
            | Happened::ChannelClosing { channel_id, .. }
            | Happened::ChannelClosed { channel_id, .. } => self.change_channel(*channel_id, happening, changes),
            Happened::Forwarded(forwarded) => {
                let totals = match changes.forward_totals {
                    Some(totals) => totals,
                    None => self.forward_totals()?,
                };
                changes.forward_totals.insert(totals).add(forwarded);
                let row = ForwardRow { forwarded: (**forwarded).clone(), ended_ms: time };
                changes.forwards.insert(key_of(at), row);
                Ok(())
            }
            // No list is made of these.
            Happened::WalletTransaction(_) | Happened::PeerConnected { .. } | Happened::PeerDisconnected { .. } => {
                Ok(())
            }
        }
    }

    fn change_channel(&self, id: ChannelId, happening: &Happening, changes: &mut Changes) -> Result<(), ViewError> {
        let mut has_closed = false;
        let change = |row: &mut ChannelRow| {
            let was_closed = row.closed_ms.is_some();
            row.apply(&happening.what, happening.time_ms);
            has_closed = !was_closed && row.closed_ms.is_some();
        };
        changes.channels.change(&id.0, &self.channels_by_id, &self.channels, change)?;
        changes.closed += usize::from(has_closed);
        Ok(())
    }

    fn write(&self, changes: &Changes, up_to: Position) -> Result<(), ViewError> {
        let trees = (
            &self.meta,
            &self.payments,
            &self.payments_by_id,
            &self.payments_by_hash,
            &self.invoices,
            &self.invoices_by_hash,
            &self.channels,
            &self.channels_by_id,
            &self.forwards,
        );
        let written =
            trees.transaction(|(meta, payments, by_id, by_hash, invoices, of_hash, channels, of_id, forwards)| {
                put(&changes.payments, payments, by_id)?;
                for (hash, key) in &changes.payments_by_hash {
                    by_hash.insert(&hash[..], &key[..])?;
                }
                put(&changes.invoices, invoices, of_hash)?;
                put(&changes.channels, channels, of_id)?;
                for (key, row) in &changes.forwards {
                    forwards.insert(&key[..], encode(row))?;
                }
                if let Some(totals) = &changes.forward_totals {
                    meta.insert("forwards", encode(totals))?;
                }
                meta.insert("applied", &key_of(up_to)[..])?;
                Ok::<(), ConflictableTransactionError<()>>(())
            });
        match written {
            Ok(()) => Ok(()),
            Err(TransactionError::Storage(error)) => Err(error.into()),
            Err(TransactionError::Abort(())) => unreachable!("nothing above aborts"),
        }
    }

    /// Lets sled write what it has. For an orderly end only: the journal is the truth.
    pub(crate) fn flush(&self) {
        if let Err(error) = self.db.flush() {
            tracing::warn!(%error, "the view was not flushed: it is folded again where it lacks something");
        }
    }
}

fn put<T: Serialize>(
    changed: &Rows<T>,
    rows: &sled::transaction::TransactionalTree,
    index: &sled::transaction::TransactionalTree,
) -> Result<(), sled::transaction::UnabortableTransactionError> {
    for (id, key) in &changed.keys {
        index.insert(&id[..], &key[..])?;
    }
    for (key, row) in &changed.rows {
        rows.insert(&key[..], encode(row))?;
    }
    Ok(())
}
