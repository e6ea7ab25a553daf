//! The journal as its users see it: open, submit, read, checkpoint.
//!
//! It wires the queue, the writer, the supply and the history, and decides which segments may go.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::checkpoint::{self, CHECKPOINT, Checkpoint, CheckpointError, Proof};
use crate::disk::{Disk, FileError, LocalDisk, Lock, failed};
use crate::frame::PAGE;
use crate::history::History;
use crate::position::{Position, Ticket};
use crate::queue::{Arrival, Queue, SubmitError, WakeHandle};
use crate::reader::{ReadError, Reader, Tail};
use crate::recovery::{self, Found, OpenError, Report};
use crate::segment::{self, SEGMENT_BYTES_MIN};
use crate::stats::{Counters, Stats};
use crate::supply::{Sizes, Space, Supply};
use crate::writer::{Parts, Writer};

/// Held from before anything is read until the last thread has ended.
const LOCK_FILE: &str = "lock";

/// Sizes of the journal's files. They may differ from one opening to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a new segment, at least four pages of 4,096; a step must fit into one.
    pub segment_bytes: u64,
    /// Bytes of the reserve for a full disk, at least one segment.
    pub reserve_bytes: u64,
    /// A history file that has reached this is followed by a new one.
    pub history_file_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { segment_bytes: 16 << 20, reserve_bytes: 16 << 20, history_file_bytes: 16 << 20 }
    }
}

impl Options {
    fn check(self) -> Result<Options, OpenError> {
        let options = Options {
            segment_bytes: self.segment_bytes.next_multiple_of(PAGE),
            reserve_bytes: self.reserve_bytes.next_multiple_of(PAGE),
            ..self
        };
        let check_min = |name, value, min| {
            if value < min { Err(OpenError::Options { name, value, min }) } else { Ok(()) }
        };
        check_min("segment_bytes", options.segment_bytes, SEGMENT_BYTES_MIN)?;
        check_min("reserve_bytes", options.reserve_bytes, options.segment_bytes)?;
        Ok(options)
    }
}

/// What an opening found.
pub struct Recovered {
    /// The newest checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// The durable steps from its `replay_from` on; without a checkpoint, all.
    pub tail: Tail,
    /// What was read, and what was cut.
    pub report: Report,
}

/// An append-only log of opaque steps; the one place that makes anything durable.
///
/// All methods take `&self` and may be called from any thread. Dropping it writes what was
/// submitted, and a seal that proves a clean end.
pub struct Journal {
    parts: Parts,
    history: Arc<History>,
    log_file_bytes: u64,
    checkpointing: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
    /// Also held by the threads.
    _lock: Arc<Lock>,
}

impl Journal {
    /// Opens the journal in a folder, or starts one there.
    ///
    /// Refuses when another process has it, and when anything acknowledged is missing or damaged.
    pub fn open(dir: &Path, options: Options) -> Result<(Journal, Recovered), OpenError> {
        Journal::open_on(Arc::new(LocalDisk::default()), dir, options)
    }

    pub(crate) fn open_on(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
    ) -> Result<(Journal, Recovered), OpenError> {
        let options = options.check()?;
        disk.create_dir(dir).map_err(failed("create", dir))?;
        let lock_file = dir.join(LOCK_FILE);
        let lock = disk.lock(&lock_file).map_err(failed("lock", &lock_file))?;
        let Some(lock) = lock.map(Arc::new) else {
            return Err(OpenError::InUse { dir: dir.to_path_buf() });
        };
        let found = recovery::recover(&disk, dir, &options)?;
        Journal::start(disk, dir, options, found, lock)
    }

    fn start(
        disk: Arc<dyn Disk>,
        dir: &Path,
        options: Options,
        found: Found,
        lock: Arc<Lock>,
    ) -> Result<(Journal, Recovered), OpenError> {
        let tail = Tail::new(found.index.clone(), found.tail_from()).map_err(from_read)?;
        let sizes = Sizes { segment_bytes: options.segment_bytes, reserve_bytes: options.reserve_bytes };
        let step_bytes_max = segment::step_bytes_max(options.segment_bytes);
        let parts = Parts {
            queue: Arc::new(Queue::new(Ticket(found.last.next_ticket), step_bytes_max)),
            supply: Arc::new(Supply::new(disk.clone(), dir, found.index.id, sizes, found.stock)),
            index: found.index,
            counters: Arc::new(Counters::default()),
            disk,
        };
        parts.supply.fill().inspect_err(|error| parts.disk.abort(&error.to_string()))?;
        let writer = Writer::new(parts.clone(), found.segment, found.offset, found.last);
        let supply = parts.supply.clone();
        let threads = vec![
            spawn("journal-writer", &lock, move || writer.run())?,
            spawn("journal-supply", &lock, move || supply.run())?,
        ];
        let report = found.report;
        tracing::info!(frames = report.frames, steps = report.steps, bytes = report.bytes, end = %parts.index.durable_end(), "journal open");
        let journal = Journal {
            parts,
            history: Arc::new(found.history),
            log_file_bytes: options.history_file_bytes,
            checkpointing: Mutex::new(()),
            threads,
            _lock: lock,
        };
        let checkpoint = found.checkpoint;
        Ok((journal, Recovered { checkpoint, tail, report }))
    }

    /// Takes one step, and gives its ticket. It never waits for the disk.
    ///
    /// Once the flush with this step has returned, `wake` is called. It takes any number of steps:
    /// whoever brings in new work from outside must stop while [`Journal::queued_bytes`] is high.
    pub fn submit(&self, step: Vec<u8>, wake: Option<WakeHandle>) -> Result<Ticket, SubmitError> {
        self.parts.queue.submit(step, wake)
    }

    /// Ends the process: something has happened that cannot be written down. What was submitted before may still become
    /// durable, and nothing that comes after.
    pub fn abort(&self, reason: &str) {
        self.parts.queue.stop();
        self.parts.disk.abort(reason);
    }

    /// Takes one step and waits until it is durable; for start-up and tests, never for an actor.
    pub fn submit_and_wait(&self, step: Vec<u8>) -> Result<Position, SubmitError> {
        let arrival = Arc::new(Arrival::default());
        let ticket = self.parts.queue.submit(step, Some(arrival.clone()))?;
        self.parts.queue.wait_durable(ticket)?;
        let position = arrival.position(ticket);
        Ok(position.expect("handles are called before the flush is told to those who wait"))
    }

    /// Waits until everything submitted so far is durable, and returns the last ticket.
    pub fn flush_barrier(&self) -> Result<Ticket, SubmitError> {
        let ticket = self.parts.queue.last_ticket();
        self.parts.queue.wait_durable(ticket)?;
        Ok(ticket)
    }

    /// The highest ticket that is durable: every lower one is too.
    #[must_use]
    pub fn durable_up_to(&self) -> Ticket {
        self.parts.index.durable_ticket()
    }

    /// The position above every durable step.
    #[must_use]
    pub fn durable_end(&self) -> Position {
        self.parts.index.durable_end()
    }

    /// The lowest position that [`Journal::reader`] can read; below it there is [`Journal::history`].
    #[must_use]
    pub fn oldest(&self) -> Position {
        self.parts.index.oldest()
    }

    /// Bytes that were submitted and are not yet durable. Above [`crate::QUEUED_BYTES_BUSY`], take no new work.
    #[must_use]
    pub fn queued_bytes(&self) -> u64 {
        self.parts.queue.bytes()
    }

    /// Reads durable steps from a position on, while writing goes on.
    pub fn reader(&self, from: Position) -> Result<Reader, ReadError> {
        Reader::new(self.parts.index.clone(), from)
    }

    /// What outlives the segments.
    #[must_use]
    pub fn history(&self) -> &Arc<History> {
        &self.history
    }

    /// Opens another history beside [`Journal::history`], in a folder of this name inside the journal's: for what is kept
    /// by other rules. To be opened once. `needs` is how far it must reach, by what its owner has in the checkpoint.
    ///
    /// No segment waits for it: its owner appends before a checkpoint what that checkpoint makes needless.
    ///
    /// # Errors
    /// [`OpenError`] if it cannot be read, is damaged, reaches above the journal's end, or not as far as it must.
    pub fn open_log(&self, name: &str, needs: Position) -> Result<Arc<History>, OpenError> {
        let Parts { disk, index, .. } = &self.parts;
        let dir = index.dir.join(name);
        let (log, _torn) = recovery::open_history(disk, &dir, index, self.log_file_bytes)?;
        recovery::check_covered(&log, index, &dir, Some(needs))?;
        Ok(Arc::new(log))
    }

    /// Whether there is room for work that adds obligations.
    #[must_use]
    pub fn space(&self) -> Space {
        self.parts.supply.space()
    }

    /// Counts since the opening.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.parts.counters.stats(self.parts.disk.syncs())
    }

    /// Makes a checkpoint durable in place of the one before, then removes the segments that neither it nor the history needs.
    ///
    /// A segment goes once it lies wholly below both `replay_from` and what the history covers. An
    /// error leaves the checkpoint before in place; a failed sync aborts the process (D10).
    pub fn write_checkpoint(&self, checkpoint: &Checkpoint) -> Result<(), CheckpointError> {
        let _one_at_a_time = self.checkpointing.lock().expect("writing a checkpoint does not panic");
        let Parts { disk, index, .. } = &self.parts;
        let replay_from = checkpoint.replay_from;
        let (oldest, end) = (index.oldest(), index.durable_end());
        if replay_from > end {
            return Err(CheckpointError::Ahead { replay_from, end });
        }
        if replay_from < oldest {
            return Err(CheckpointError::Gone { replay_from, oldest });
        }
        let proof = Proof { id: index.id, durable_frame: end.frame - 1, history_covered: self.history.covered_up_to() };
        checkpoint::write(&**disk, &index.dir, &proof, checkpoint)?;
        tracing::debug!(%replay_from, file = CHECKPOINT, "checkpoint written");
        self.remove_below(replay_from.min(proof.history_covered));
        Ok(())
    }

    fn remove_below(&self, position: Position) {
        let kept = self.parts.index.forget_below(position.frame);
        match self.remove_segments(kept) {
            Ok(()) => self.parts.supply.hurry(),
            // They are in nobody's way but the disk's; the next checkpoint tries again.
            Err(error) => tracing::warn!(%error, "segments below the checkpoint stay"),
        }
    }

    fn remove_segments(&self, kept: u64) -> Result<(), FileError> {
        let Parts { disk, index, .. } = &self.parts;
        let names = disk.list(&index.dir).map_err(failed("list", &index.dir))?;
        for number in names.iter().filter_map(|name| segment::number_in(name)) {
            if number < kept {
                let path = segment::path(&index.dir, number);
                disk.remove(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(())
    }

    /// Writes everything submitted, seals the journal and gives the folder free. Dropping does the same.
    pub fn close(self) {}
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.parts.queue.close();
        for thread in self.threads.drain(..) {
            // A handle may hold the last reference: then this is the writer's own thread, which goes on to its end.
            let is_this = thread.thread().id() == std::thread::current().id();
            if is_this {
                return;
            }
            if thread.join().is_err() {
                tracing::error!("a thread of the journal panicked");
            }
        }
    }
}

fn spawn(name: &str, lock: &Arc<Lock>, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, OpenError> {
    let lock = lock.clone();
    let thread = std::thread::Builder::new().name(name.into());
    let started = thread.spawn(move || {
        work();
        drop(lock);
    });
    started.map_err(OpenError::Thread)
}

fn from_read(error: ReadError) -> OpenError {
    match error {
        ReadError::Corrupt(corruption) => OpenError::Corrupt(corruption),
        ReadError::File(error) => OpenError::File(error),
        ReadError::Gone { .. } | ReadError::Ahead { .. } => {
            unreachable!("recovery has compared the checkpoint with what is there")
        }
    }
}
