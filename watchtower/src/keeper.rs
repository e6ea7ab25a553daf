//! The owner of the tower's state, on a thread of its own: takes orders, writes what they change into the journal, and
//! promises answers for when that is durable (D8).
//!
//! The keeper never waits for a socket or a client; it waits for the disk only to write a checkpoint, and to read a blob
//! whose commitment is in the chain. Whoever has a
//! [`Promised`] answer lets it out once [`Durability`] has reached its ticket, and never before.

mod blobs;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;

use bitcoin::{BlockHash, Transaction};
use millrace_journal::{
    CheckpointError, Flush, HistoryError, Journal, OpenError, Options, ReadError, Section, SubmitError, Ticket, Wake,
    WakeHandle,
};
use millrace_wire::{BlockHeight, CommitmentNumber};
use secp256k1::PublicKey;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot, watch};

use crate::blob_log::Disk;
use crate::record::{Handle, Record, RecordError};
use crate::registration::Registration;
use crate::sealed::Sealed;
use crate::snapshot::{self, SnapshotError};
use crate::tower::{Held, Refusal, Tower};
use crate::vault::{BlobRef, Group, HeldGroup, StoredBlob};

/// Orders that wait for the keeper. Who has one more waits, and with him the socket that it came from.
const ORDERS_MAX: usize = 256;
/// A checkpoint is written after so many bytes of records: a start reads no more than that.
const CHECKPOINT_BYTES: u64 = 32 << 20;

/// What the keeper writes to. The journal is one; tests have another, which dies between any two steps.
pub trait Log: Send + Sync {
    /// Takes a step. Never waits.
    ///
    /// # Errors
    /// If nothing can be written any more.
    fn submit(&self, step: Vec<u8>, wake: WakeHandle) -> Result<Ticket, SubmitError>;

    /// Makes a checkpoint of the state after all that was submitted. Waits for the disk.
    ///
    /// # Errors
    /// If the one before still stands.
    fn write_checkpoint(&self, sections: Vec<Section>) -> Result<(), LogError>;

    /// Whether there is room for work that adds obligations.
    fn has_room(&self) -> bool;

    /// Whether so much waits for the disk that no new work should be taken.
    fn is_busy(&self) -> bool;

    /// Appends blobs to those beside the journal, as one part, after all that was submitted; says how far they now reach.
    /// Waits for the disk.
    ///
    /// # Errors
    /// If nothing was appended.
    fn append_blobs(&self, blobs: &[Vec<u8>]) -> Result<(Part, (u64, u32)), LogError>;

    /// Reads the blobs beside the journal from this part on, the oldest first, until `each` says `false`.
    ///
    /// # Errors
    /// If one cannot be read.
    fn read_blobs(&self, from: Part, each: &mut dyn FnMut(Part, &[u8]) -> bool) -> Result<(), LogError>;

    /// Nobody needs what is below this part.
    fn forget_blobs_below(&self, part: Part);
}

/// A part of the blobs beside the journal, numbered since the start.
pub type Part = u32;

/// Why the disk did not do something.
#[derive(Debug, Error)]
pub enum LogError {
    /// The journal takes nothing more.
    #[error(transparent)]
    Submit(#[from] SubmitError),
    /// A history.
    #[error(transparent)]
    History(#[from] HistoryError),
    /// The checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// What was written cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

/// How far the journal is durable.
#[derive(Clone, Debug)]
pub struct Durability(watch::Receiver<Ticket>);

impl Durability {
    /// Waits until a ticket is durable. `false` if it never will be: the tower is stopping.
    pub async fn wait(&mut self, ticket: Ticket) -> bool {
        self.0.wait_for(|durable| *durable >= ticket).await.is_ok()
    }

    /// Whether a ticket is durable.
    #[must_use]
    pub fn has(&self, ticket: Ticket) -> bool {
        *self.0.borrow() >= ticket
    }
}

struct Told(watch::Sender<Ticket>);

impl Wake for Told {
    fn durable(&self, flush: &Flush) {
        self.0.send_replace(flush.up_to());
    }
}

/// An answer that must not leave before a ticket is durable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Promised<T> {
    /// The answer.
    pub answer: T,
    /// The ticket.
    pub ticket: Ticket,
}

/// The state and its journal.
pub struct Keeper {
    tower: Tower,
    log: Arc<dyn Log>,
    wake: WakeHandle,
    /// The last ticket: everything that was answered rests on it or on one before it.
    last: Ticket,
    /// Bytes of records since the last checkpoint, and how many bring the next one.
    bytes: u64,
    bytes_max: u64,
    /// So many blobs that nobody needs are left where they are.
    sweep_slack: u64,
    /// Counts what clients might want to know: preimages, ended channels.
    news: watch::Sender<u64>,
    records: Vec<Record>,
}

impl Keeper {
    /// With the state as it was read back, and a log whose last step has this ticket.
    #[must_use]
    pub fn new(tower: Tower, log: Arc<dyn Log>, last: Ticket) -> (Self, Durability) {
        let (durable, receiver) = watch::channel(last);
        let wake: WakeHandle = Arc::new(Told(durable));
        let news = watch::Sender::new(0);
        let (bytes_max, sweep_slack) = (CHECKPOINT_BYTES, blobs::SWEEP_SLACK);
        let mut keeper = Self { tower, log, wake, last, bytes: 0, bytes_max, sweep_slack, news, records: Vec::new() };
        keeper.tower.drop_unfinished_block(&mut keeper.records);
        let Promised { answer: (), .. } = keeper.write(());
        (keeper, Durability(receiver))
    }

    /// The state.
    #[must_use]
    pub const fn tower(&self) -> &Tower {
        &self.tower
    }

    /// Hears of what clients might want to know.
    #[must_use]
    pub fn news(&self) -> watch::Receiver<u64> {
        self.news.subscribe()
    }

    /// What was recorded is written, and the answer promised.
    fn write<T>(&mut self, answer: T) -> Promised<T> {
        for record in std::mem::take(&mut self.records) {
            let step = record.encode();
            self.bytes += step.len() as u64;
            // Without a journal nothing is durable any more: what rests on this never leaves.
            self.last = self.log.submit(step, Arc::clone(&self.wake)).unwrap_or(Ticket(u64::MAX));
        }
        if self.bytes > self.bytes_max {
            self.checkpoint();
        }
        Promised { answer, ticket: self.last }
    }

    fn check_room(&self) -> Result<(), Fault> {
        if self.log.has_room() && !self.log.is_busy() { Ok(()) } else { Err(Fault::Full) }
    }

    /// Lets a client in. See [`Tower::allow`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn allow(&mut self, client: PublicKey, channels_max: u32) -> Result<Promised<()>, Fault> {
        self.tower.allow(client, channels_max, &mut self.records)?;
        Ok(self.write(()))
    }

    /// Watches a channel. See [`Tower::register`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn register(&mut self, client: PublicKey, registration: Registration) -> Result<Promised<Held>, Fault> {
        self.check_room()?;
        let held = self.tower.register(client, registration, &mut self.records)?;
        Ok(self.write(held))
    }

    /// Takes one secret. See [`Tower::reveal`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn reveal(
        &mut self,
        client: &PublicKey,
        handle: Handle,
        number: CommitmentNumber,
        secret: [u8; 32],
        now_s: u64,
    ) -> Result<Promised<Held>, Fault> {
        self.check_room()?;
        let held = self.tower.reveal(client, handle, number, secret, now_s, &mut self.records)?;
        Ok(self.write(held))
    }

    /// Takes many secrets. See [`Tower::advance`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn advance(
        &mut self,
        client: &PublicKey,
        handle: Handle,
        range: std::ops::Range<CommitmentNumber>,
        changed: Vec<[u8; 32]>,
        now_s: u64,
    ) -> Result<Promised<Held>, Fault> {
        self.check_room()?;
        let held = self.tower.advance(client, handle, range, changed, now_s, &mut self.records)?;
        Ok(self.write(held))
    }

    /// Forgets a channel. See [`Tower::forget`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn forget(&mut self, client: &PublicKey, handle: Handle) -> Result<Promised<()>, Fault> {
        self.tower.forget(client, handle, &mut self.records)?;
        Ok(self.write(()))
    }

    /// The client has so many preimages. See [`Tower::preimages_taken`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn preimages_taken(&mut self, client: &PublicKey, handle: Handle, count: u32) -> Result<Promised<()>, Fault> {
        self.tower.preimages_taken(client, handle, count, &mut self.records)?;
        // There may be more than one message takes.
        self.news.send_modify(|news| *news += 1);
        Ok(self.write(()))
    }

    /// A block is looked through. The answer is for those who broadcast.
    pub fn connect(&mut self, height: BlockHeight, hash: BlockHash, txs: &[Transaction]) -> Promised<()> {
        self.look_for_blobs(height, txs);
        self.tower.connect(height, hash, txs, &mut self.records);
        if self.records.len() > 1 {
            self.news.send_modify(|news| *news += 1);
        }
        self.write(())
    }

    /// Nothing of before is to be looked for any more in these channels. See [`Tower::checked`].
    pub fn checked(&mut self, handles: impl IntoIterator<Item = Handle>) -> Promised<()> {
        self.tower.checked(handles, &mut self.records);
        self.write(())
    }

    /// A block of before is looked through for these channels. See [`Tower::look_back`].
    pub fn look_back(&mut self, height: BlockHeight, txs: &[Transaction], only: &BTreeSet<Handle>) -> Promised<()> {
        self.tower.look_back(height, txs, only, &mut self.records);
        self.write(())
    }

    /// A block has left the chain.
    pub fn disconnect(&mut self, height: BlockHeight) -> Promised<()> {
        self.tower.disconnect(height, &mut self.records);
        self.write(())
    }

    /// The ticket on which everything so far rests.
    pub fn promised(&self) -> Promised<()> {
        Promised { answer: (), ticket: self.last }
    }

    /// Makes a checkpoint. Waits for the disk.
    pub fn checkpoint(&mut self) {
        self.bytes = 0;
        let written = self.log_blobs().and_then(|()| {
            let swept = self.sweep_blobs();
            self.log.write_checkpoint(snapshot::sections(&self.tower))?;
            Ok(swept)
        });
        match written {
            Ok(Some(part)) => self.log.forget_blobs_below(part),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "no checkpoint was written; the one before still stands"),
        }
    }
}

/// Why an order was not carried out.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Fault {
    /// The one who gave it may not, or it makes no sense.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The disk has no room, or is far behind.
    #[error("the tower's disk is full or far behind")]
    Full,
    /// The tower is stopping.
    #[error("the tower is stopping")]
    Stopping,
}

/// Why the tower's data cannot be opened.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The journal.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The journal's tail.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its checkpoint.
    #[error("the checkpoint: {0}")]
    Snapshot(#[from] SnapshotError),
    /// One of its records.
    #[error("a record: {0}")]
    Record(#[from] RecordError),
    /// A blob that was acknowledged is not there.
    #[error("blob {} of the group with the number {} is neither in the journal nor beside it", .0.sequence, .0.group.0)]
    Blob(BlobRef),
    /// The blobs cannot be read.
    #[error("the blobs: {0}")]
    Blobs(#[from] LogError),
    /// No thread could be started.
    #[error("no thread for the tower: {0}")]
    Thread(std::io::Error),
}

/// Opens the journal in a folder and reads the state back.
///
/// # Errors
/// [`StoreError`].
pub fn open(folder: &std::path::Path, options: Options) -> Result<(Keeper, Durability), StoreError> {
    let (journal, recovered) = Journal::open(folder, options)?;
    let mut tower = match &recovered.checkpoint {
        Some(checkpoint) => snapshot::restore(&checkpoint.sections)?,
        None => Tower::default(),
    };
    for step in recovered.tail {
        tower.apply(Record::decode(&step?.bytes)?);
    }
    let last = journal.durable_up_to();
    let disk = Disk::open(journal, tower.vault().covered())?;
    blobs::find(&disk, &mut tower)?;
    Ok(Keeper::new(tower, Arc::new(disk), last))
}

type Order = Box<dyn FnOnce(&mut Keeper) + Send>;

/// Where orders for the keeper are given.
#[derive(Clone)]
pub struct Desk(mpsc::Sender<Order>);

impl Desk {
    /// Starts the keeper's thread. It ends with the last desk, after a checkpoint.
    ///
    /// # Errors
    /// [`StoreError::Thread`].
    pub fn open(mut keeper: Keeper) -> Result<(Self, JoinHandle<()>), StoreError> {
        let (sender, mut orders) = mpsc::channel::<Order>(ORDERS_MAX);
        let work = move || {
            while let Some(order) = orders.blocking_recv() {
                order(&mut keeper);
            }
            keeper.checkpoint();
        };
        let thread = std::thread::Builder::new().name("keeper".to_owned()).spawn(work).map_err(StoreError::Thread)?;
        Ok((Self(sender), thread))
    }

    /// Has the keeper do something, and gives what came of it.
    ///
    /// # Errors
    /// [`Fault::Stopping`].
    pub async fn ask<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut Keeper) -> T + Send + 'static,
    ) -> Result<T, Fault> {
        let (reply, answer) = oneshot::channel();
        let order = Box::new(move |keeper: &mut Keeper| {
            // Who does not wait for the answer any more is served all the same.
            let _gone = reply.send(order(keeper));
        });
        self.0.send(order).await.map_err(|_| Fault::Stopping)?;
        answer.await.map_err(|_| Fault::Stopping)
    }
}

#[cfg(test)]
pub(crate) mod tests;
