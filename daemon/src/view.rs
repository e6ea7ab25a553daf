//! The view: sled as an index over the events, for lists and look-ups.
//!
//! It is folded from the events by one thread that gives way to all others, each batch together with how far it goes, so
//! that a crash leaves it at the end of some batch. It is never the only copy of anything: removed, it is folded again
//! from the first event that is kept, and says the same. No payment on its way asks it.
//!
//! | tree | key | value |
//! |---|---|---|
//! | `meta` | `applied` | the position that it was folded up to |
//! | `payments` | where the payment's first event stands | [`PaymentRow`] |
//! | `payments-by-id` | payment id | key in `payments` |
//! | `payments-by-hash` | payment hash | key in `payments` of the newest |
//! | `invoices` | where the invoice's first event stands | [`InvoiceRow`] |
//! | `invoices-by-hash` | payment hash | key in `invoices` |
//! | `channels` | where its first event stands | [`ChannelRow`] |
//! | `channels-by-id` | channel id | key in `channels` |
//! | `forwards` | where the forward's end stands | [`ForwardRow`] |
//! | `meta` | `forwards` | [`ForwardTotals`] |

mod fold;
mod row;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millrace_journal::Position;
use millrace_wire::{ChannelId, PaymentHash};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

pub use row::{ChannelRow, ForwardRow, ForwardTotals};

use crate::events::{EventLog, EventsError};
use crate::happened::PaymentId;
use crate::payments::{InvoiceRow, PaymentRow};

/// Changes with the layout: an older view is removed and folded again.
const LAYOUT: &[u8] = b"3";
/// Bytes that sled may cache.
const CACHE_BYTES: u64 = 16 << 20;
/// Rows that one call of a list looks at, at most: a filter that hardly anything passes must not read for seconds.
const LOOKED_AT_MAX: usize = 20_000;
/// How long a reader waits until the view has what happened before the call.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a row stands in its list: the position of its first event. Rows are in the order in which they began.
pub type RowKey = [u8; 12];

/// The indexes.
pub struct View {
    db: sled::Db,
    meta: sled::Tree,
    payments: sled::Tree,
    payments_by_id: sled::Tree,
    payments_by_hash: sled::Tree,
    invoices: sled::Tree,
    invoices_by_hash: sled::Tree,
    channels: sled::Tree,
    channels_by_id: sled::Tree,
    forwards: sled::Tree,
    /// How many of the channels are closed.
    closed: AtomicUsize,
    applied: watch::Sender<Position>,
    /// Why it cannot follow the events any more, if so.
    stopped: OnceLock<String>,
}

/// Why the view cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// sled.
    #[error("the view: {0}; it can be deleted, and is then made again")]
    Sled(#[from] sled::Error),
    /// A row that this build cannot read.
    #[error("a row of the view does not decode: {0}; the view can be deleted, and is then made again")]
    Row(String),
    /// It could not follow the events: what it says would be old.
    #[error(
        "lists and look-ups stand still since the view failed: {0}; make room on the disk if it is full, and restart"
    )]
    Stopped(String),
    /// The events cannot be read.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// The folder cannot be removed.
    #[error("cannot remove the old view {path}: {error}")]
    Remove {
        /// The folder.
        path: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
}

/// One page of a list.
#[derive(Clone, PartialEq, Debug)]
pub struct Page<T> {
    /// The rows, the newest first.
    pub rows: Vec<T>,
    /// Where the next page begins; none if this is the last.
    pub next: Option<RowKey>,
}

impl View {
    /// Opens the view in a folder, or begins one there. One that cannot be opened, or is of another layout, or of another
    /// journal (it has seen more than there is), is removed.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn open(path: &Path, log: &EventLog) -> Result<Self, ViewError> {
        match Self::try_open(path) {
            Ok(view) if view.is_of(log)? => Ok(view),
            Ok(view) => {
                tracing::warn!(path = %path.display(), "the view belongs to other data: it is made again");
                drop(view);
                Self::begin_again(path)
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the view cannot be opened: it is made again");
                Self::begin_again(path)
            }
        }
    }

    fn begin_again(path: &Path) -> Result<Self, ViewError> {
        let removed = std::fs::remove_dir_all(path);
        removed.map_err(|error| ViewError::Remove { path: path.to_owned(), error })?;
        Self::try_open(path)
    }

    fn try_open(path: &Path) -> Result<Self, ViewError> {
        // The journal is the truth: nothing here needs to reach the disk at any time.
        let db = sled::Config::new().path(path).cache_capacity(CACHE_BYTES).flush_every_ms(Some(1_000)).open()?;
        let meta = db.open_tree("meta")?;
        let channels = db.open_tree("channels")?;
        let view = Self {
            payments: db.open_tree("payments")?,
            payments_by_id: db.open_tree("payments-by-id")?,
            payments_by_hash: db.open_tree("payments-by-hash")?,
            invoices: db.open_tree("invoices")?,
            invoices_by_hash: db.open_tree("invoices-by-hash")?,
            closed: AtomicUsize::new(count_closed(&channels)?),
            channels,
            channels_by_id: db.open_tree("channels-by-id")?,
            forwards: db.open_tree("forwards")?,
            applied: watch::channel(applied_in(&meta)?).0,
            stopped: OnceLock::new(),
            meta,
            db,
        };
        if view.meta.get("layout")?.is_none() && view.meta.is_empty() {
            view.meta.insert("layout", LAYOUT)?;
        }
        Ok(view)
    }

    /// What this start has written so far says nothing of whether the view, which is older, belongs to it.
    fn is_of(&self, log: &EventLog) -> Result<bool, ViewError> {
        let is_this_layout = self.meta.get("layout")?.is_some_and(|layout| layout == LAYOUT);
        let applied = self.applied();
        Ok(is_this_layout && applied <= log.begun() && (applied >= log.oldest() || applied == Position::START))
    }

    /// Everything below was folded.
    #[must_use]
    pub fn applied(&self) -> Position {
        *self.applied.borrow()
    }

    /// It cannot follow the events any more. From now on it refuses, rather than to say what is old.
    pub(crate) fn stop(&self, why: &ViewError) {
        // The first reason is the one that matters.
        let _earlier = self.stopped.set(why.to_string());
    }

    fn check_follows(&self) -> Result<(), ViewError> {
        self.stopped.get().map_or(Ok(()), |why| Err(ViewError::Stopped(why.clone())))
    }

    /// Waits until the view has all that anybody can have been told of before the call; not for ever.
    pub async fn catch_up(&self, log: &EventLog) {
        if self.stopped.get().is_some() {
            return;
        }
        let end = log.end();
        if !log.wait_settled(end, PATIENCE).await {
            return tracing::warn!(%end, "events are late: a list may lack the newest");
        }
        let mut applied = self.applied.subscribe();
        let waiting = applied.wait_for(|applied| *applied >= end);
        if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
            tracing::warn!(%end, "the view is late: a list may lack the newest");
        }
    }

    // --- looking up ---

    /// The payment with this id.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn payment(&self, id: &PaymentId) -> Result<Option<PaymentRow>, ViewError> {
        self.check_follows()?;
        lookup(&self.payments_by_id, &id.0, &self.payments)
    }

    /// The newest payment with this hash.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn payment_by_hash(&self, payment_hash: &PaymentHash) -> Result<Option<PaymentRow>, ViewError> {
        self.check_follows()?;
        lookup(&self.payments_by_hash, &payment_hash.0, &self.payments)
    }

    /// The invoice with this hash.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn invoice(&self, payment_hash: &PaymentHash) -> Result<Option<InvoiceRow>, ViewError> {
        self.check_follows()?;
        lookup(&self.invoices_by_hash, &payment_hash.0, &self.invoices)
    }

    /// A channel, open or closed.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn channel(&self, channel_id: &ChannelId) -> Result<Option<ChannelRow>, ViewError> {
        self.check_follows()?;
        lookup(&self.channels_by_id, &channel_id.0, &self.channels)
    }

    /// How many channels are closed.
    #[must_use]
    pub fn closed_channels(&self) -> usize {
        self.closed.load(Ordering::Relaxed)
    }

    // --- lists, the newest first ---

    /// Payments.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn payments(
        &self,
        from: Option<RowKey>,
        size: usize,
        wanted: impl Fn(&PaymentRow) -> bool,
    ) -> Result<Page<PaymentRow>, ViewError> {
        self.check_follows()?;
        page(&self.payments, from, size, wanted)
    }

    /// Invoices.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn invoices(
        &self,
        from: Option<RowKey>,
        size: usize,
        wanted: impl Fn(&InvoiceRow) -> bool,
    ) -> Result<Page<InvoiceRow>, ViewError> {
        self.check_follows()?;
        page(&self.invoices, from, size, wanted)
    }

    /// Channels, those that are closed included.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn channels(
        &self,
        from: Option<RowKey>,
        size: usize,
        wanted: impl Fn(&ChannelRow) -> bool,
    ) -> Result<Page<ChannelRow>, ViewError> {
        self.check_follows()?;
        page(&self.channels, from, size, wanted)
    }

    /// Forwards that have ended.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn forwards(
        &self,
        from: Option<RowKey>,
        size: usize,
        wanted: impl Fn(&ForwardRow) -> bool,
    ) -> Result<Page<ForwardRow>, ViewError> {
        self.check_follows()?;
        page(&self.forwards, from, size, wanted)
    }

    /// Sums over all of them.
    ///
    /// # Errors
    /// [`ViewError`].
    pub fn forward_totals(&self) -> Result<ForwardTotals, ViewError> {
        Ok(self.meta.get("forwards")?.map(|bytes| decode(&bytes)).transpose()?.unwrap_or_default())
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("View").field("applied", &self.applied()).finish_non_exhaustive()
    }
}

/// The key of a row that begins with this event.
fn key_of(position: Position) -> RowKey {
    let mut key = [0; 12];
    key[..8].copy_from_slice(&position.frame.to_be_bytes());
    key[8..].copy_from_slice(&position.index.to_be_bytes());
    key
}

fn position_of(key: &[u8]) -> Option<Position> {
    let (frame, index) = key.split_first_chunk::<8>()?;
    let index = index.try_into().ok()?;
    Some(Position { frame: u64::from_be_bytes(*frame), index: u32::from_be_bytes(index) })
}

fn applied_in(meta: &sled::Tree) -> Result<Position, ViewError> {
    let applied = meta.get("applied")?;
    Ok(applied.and_then(|bytes| position_of(&bytes)).unwrap_or(Position::START))
}

fn count_closed(channels: &sled::Tree) -> Result<usize, ViewError> {
    let mut closed = 0;
    for bytes in channels.iter().values() {
        closed += usize::from(decode::<ChannelRow>(&bytes?)?.closed_ms.is_some());
    }
    Ok(closed)
}

fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    postcard::to_stdvec(row).expect("plain data into memory: nothing can fail")
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, ViewError> {
    postcard::from_bytes(bytes).map_err(|error| ViewError::Row(error.to_string()))
}

fn lookup<T: for<'a> Deserialize<'a>>(
    index: &sled::Tree,
    key: &[u8],
    rows: &sled::Tree,
) -> Result<Option<T>, ViewError> {
    let Some(row) = index.get(key)? else { return Ok(None) };
    rows.get(row)?.map(|bytes| decode(&bytes)).transpose()
}

fn page<T: for<'a> Deserialize<'a>>(
    rows: &sled::Tree,
    from: Option<RowKey>,
    size: usize,
    wanted: impl Fn(&T) -> bool,
) -> Result<Page<T>, ViewError> {
    let mut found = Vec::new();
    let last = from.unwrap_or([0xff; 12]);
    for (looked_at, entry) in rows.range(..=last).rev().enumerate() {
        let (key, bytes) = entry?;
        if found.len() == size || looked_at == LOOKED_AT_MAX {
            let next = key.as_ref().try_into().map_err(|_| ViewError::Row("a key is not 12 bytes long".to_owned()))?;
            return Ok(Page { rows: found, next: Some(next) });
        }
        let row: T = decode(&bytes)?;
        if wanted(&row) {
            found.push(row);
        }
    }
    Ok(Page { rows: found, next: None })
}

/// The view, and the events that it is folded from: what answers those who ask for the past.
#[derive(Clone, Debug)]
pub struct Past {
    /// The indexes.
    pub view: Arc<View>,
    /// The events.
    pub log: Arc<EventLog>,
}

#[cfg(test)]
mod tests;
