//! The disk: the journal, and beside it the blobs, in a history of its own. No blob is written a third time, unless most of
//! what is there is of no use any more.
//!
//! Blobs are appended in parts, which are numbered anew at each start. What a blob means, and whether anybody needs it, is
//! the vault's to say.

use std::sync::{Arc, Mutex};

use millrace_journal::{
    Checkpoint, History, Journal, OpenError, Position, QUEUED_BYTES_BUSY, Section, Space, SubmitError, Ticket,
    WakeHandle,
};

use crate::keeper::{Log, LogError, Part};

/// The folder of the blobs, inside the journal's.
const FOLDER: &str = "blobs";
const LOCK: &str = "nothing panics while the parts are locked";

/// The journal, and the blobs beside it.
pub struct Disk {
    journal: Journal,
    blobs: Arc<History>,
    /// Where each part begins.
    parts: Mutex<Vec<Position>>,
}

impl Disk {
    /// With a journal that was read back. `covered` is how far the blobs must reach.
    ///
    /// # Errors
    /// [`OpenError`] if they are damaged, or do not.
    pub fn open(journal: Journal, (frame, index): (u64, u32)) -> Result<Self, OpenError> {
        let blobs = journal.open_log(FOLDER, Position { frame, index })?;
        Ok(Self { journal, blobs, parts: Mutex::new(Vec::new()) })
    }

    fn number_of(&self, position: Position) -> Part {
        let mut parts = self.parts.lock().expect(LOCK);
        let found = parts.binary_search(&position);
        let index = found.unwrap_or_else(|at| {
            parts.insert(at, position);
            at
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    fn position_of(&self, part: Part) -> Position {
        let parts = self.parts.lock().expect(LOCK);
        parts.get(part as usize).copied().unwrap_or_else(|| self.blobs.oldest()).max(self.blobs.oldest())
    }
}

impl Log for Disk {
    fn submit(&self, step: Vec<u8>, wake: WakeHandle) -> Result<Ticket, SubmitError> {
        let result = self.journal.submit(step, Some(wake));
        if let Err(error @ (SubmitError::TooLarge { .. } | SubmitError::Empty)) = result {
            // To go on without it would be to forget what has happened.
            self.journal.abort(&error.to_string());
        }
        result
    }

    fn write_checkpoint(&self, sections: Vec<Section>) -> Result<(), LogError> {
        self.journal.flush_barrier()?;
        let replay_from = self.journal.durable_end();
        // Nothing of the tower's is for the journal's own history.
        self.journal.history().append(replay_from, &[])?;
        Ok(self.journal.write_checkpoint(&Checkpoint { replay_from, sections })?)
    }

    fn has_room(&self) -> bool {
        self.journal.space() == Space::Enough
    }

    fn is_busy(&self) -> bool {
        self.journal.queued_bytes() > QUEUED_BYTES_BUSY
    }

    /// The places in the log are its own: they have nothing to do with those of the journal, but for being below its end.
    fn append_blobs(&self, blobs: &[Vec<u8>]) -> Result<(Part, (u64, u32)), LogError> {
        self.journal.flush_barrier()?;
        let from = self.blobs.covered_up_to();
        let covers = from.after();
        let items: Vec<(Position, &[u8])> = blobs.iter().map(|bytes| (from, bytes.as_slice())).collect();
        self.blobs.append(covers, &items)?;
        Ok((self.number_of(from), (covers.frame, covers.index)))
    }

    fn read_blobs(&self, from: Part, each: &mut dyn FnMut(Part, &[u8]) -> bool) -> Result<(), LogError> {
        let mut reader = self.blobs.reader(self.position_of(from))?;
        while let Some((position, bytes)) = reader.next_item()? {
            if !each(self.number_of(position), &bytes) {
                break;
            }
        }
        Ok(())
    }

    fn forget_blobs_below(&self, part: Part) {
        if let Err(error) = self.blobs.forget_below(self.position_of(part)) {
            tracing::warn!(%error, "files of blobs that nobody needs stay");
        }
    }
}
