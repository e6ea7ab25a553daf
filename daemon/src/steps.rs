//! Writing to the journal, as the rest of the daemon does it.
//!
//! The channels hand in whole steps and are told of each flush; every other owner calls [`JournalHandle::write`] and
//! waits. Both go through shard threads, so that the folds are told of an entry exactly when it is durable.

use std::sync::Arc;

use millrace_journal::{Journal, Position, Space, SubmitError, Ticket, WakeHandle};
use tokio::sync::oneshot;

use crate::channels::input::Input;
use crate::channels::mailbox::Mailbox;
use crate::entry::Entry;

/// Takes steps, and calls the handle of each once it is durable. The journal is one; tests hold back another.
pub trait StepLog: Send + Sync {
    /// Takes a step. Never waits.
    ///
    /// # Errors
    /// If the journal is closed. A step that cannot fit ends the process.
    fn submit(&self, step: Vec<u8>, wake: WakeHandle) -> Result<Ticket, SubmitError>;

    /// Bytes that were submitted and are not durable.
    fn queued_bytes(&self) -> u64;

    /// Whether there is room for work that adds obligations.
    fn space(&self) -> Space;
}

impl StepLog for Journal {
    fn submit(&self, step: Vec<u8>, wake: WakeHandle) -> Result<Ticket, SubmitError> {
        let result = self.submit(step, Some(wake));
        if let Err(error @ SubmitError::TooLarge { .. }) = result {
            // Whoever makes steps keeps them small. To go on without one would be to forget what has happened.
            self.abort(&error.to_string());
        }
        result
    }

    fn queued_bytes(&self) -> u64 {
        self.queued_bytes()
    }

    fn space(&self) -> Space {
        self.space()
    }
}

/// Why entries were not written. The node is stopping, or about to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the journal takes nothing more: the node is shutting down")]
pub struct WriteError;

/// For the owners of entries: payments, invoices, the wallet, idempotency keys.
#[derive(Clone)]
pub struct JournalHandle {
    mailbox: Mailbox<Input>,
    log: Arc<dyn StepLog>,
}

impl JournalHandle {
    pub(crate) fn new(mailbox: Mailbox<Input>, log: Arc<dyn StepLog>) -> Self {
        Self { mailbox, log }
    }

    /// Writes entries as one step, and returns its position once it is durable and every fold has been told
    /// (`Source::Node`). Calls that wait at the same time share one flush.
    ///
    /// # Errors
    /// [`WriteError`] if the node is stopping.
    pub async fn write(&self, entries: Vec<Entry>) -> Result<Position, WriteError> {
        let (reply, answer) = oneshot::channel();
        self.mailbox.put(Input::Write { entries, reply });
        answer.await.map_err(|_| WriteError)
    }

    /// Whether there is room for work that adds obligations: if not, refuse it with the reason.
    #[must_use]
    pub fn space(&self) -> Space {
        self.log.space()
    }

    /// Bytes that wait for the disk. Above [`millrace_journal::QUEUED_BYTES_BUSY`], take no new work.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.log.queued_bytes()
    }
}

impl std::fmt::Debug for JournalHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JournalHandle")
    }
}
