//! The one thread that writes frames: it takes all that waits, writes one frame, syncs once, and only then says so.
//!
//! The next frame is written after the flush before it has returned, so at most the last frame can be
//! torn (D12). A write or a sync that fails ends the process and is never tried again (D10). Once
//! nothing has come for a moment, the writer leaves a seal behind the last frame: proof for
//! recovery that this frame was flushed. The seal's page becomes the next frame's first.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::disk::{Disk, FileError, failed};
use crate::frame::{Head, Kind, PAGE, encode};
use crate::index::Index;
use crate::position::{Flush, Ticket};
use crate::queue::{Queue, Waiting, Work};
use crate::segment::Segment;
use crate::stats::Counters;
use crate::supply::Supply;

/// How long nothing must come before the seal is written: under load no seal costs anything.
const SEAL_AFTER: Duration = Duration::from_millis(2);
/// A buffer that one large flush has grown beyond this is given back.
const BUFFER_BYTES_KEPT: usize = 1 << 20;

/// What ends the process.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fatal {
    #[error("frame {frame}: {error}")]
    Disk { frame: u64, error: FileError },
    #[error("frame {frame} of {bytes} bytes has no room, and the reserve is used up: {reason}")]
    Full { frame: u64, bytes: usize, reason: String },
    #[error("the journal's writer panicked, or a handle that it called")]
    Panic,
}

/// The last frame, as the next one continues it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Last {
    pub(crate) frame: u64,
    pub(crate) crc: u32,
    pub(crate) next_ticket: u64,
}

/// What the writer shares with the journal's other parts.
#[derive(Clone)]
pub(crate) struct Parts {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) index: Arc<Index>,
    pub(crate) queue: Arc<Queue>,
    pub(crate) supply: Arc<Supply>,
    pub(crate) counters: Arc<Counters>,
}

/// Writes frames.
pub(crate) struct Writer {
    parts: Parts,
    segment: Segment,
    offset: u64,
    /// What the supply was told of this segment.
    is_half_written: bool,
    last: Last,
    batch: Vec<Waiting>,
    buffer: Vec<u8>,
}

impl Writer {
    pub(crate) fn new(parts: Parts, segment: Segment, offset: u64, last: Last) -> Writer {
        let (batch, buffer) = (Vec::new(), Vec::new());
        let mut writer = Writer { parts, segment, offset, is_half_written: false, last, batch, buffer };
        writer.note_half_written();
        writer
    }

    fn note_half_written(&mut self) {
        let is_half_written = self.offset > self.segment.bytes / 2;
        if is_half_written != self.is_half_written {
            self.is_half_written = is_half_written;
            self.parts.supply.note_half_written(is_half_written);
        }
    }

    /// The thread: until the journal is closed, or the process ends.
    pub(crate) fn run(mut self) {
        let Parts { disk, queue, supply, .. } = self.parts.clone();
        let worked = std::panic::AssertUnwindSafe(|| self.work());
        let ended = std::panic::catch_unwind(worked).unwrap_or(Err(Fatal::Panic));
        if let Err(fatal) = ended {
            disk.abort(&fatal.to_string());
        }
        queue.stop();
        supply.stop();
    }

    fn work(&mut self) -> Result<(), Fatal> {
        let mut is_sealed = false;
        loop {
            let patience = (!is_sealed).then_some(SEAL_AFTER);
            match self.parts.queue.wait(patience) {
                Work::Steps(first_bytes) => {
                    self.make_room(first_bytes)?;
                    self.flush()?;
                    is_sealed = false;
                }
                Work::Idle => {
                    self.seal(Kind::Seal)?;
                    is_sealed = true;
                }
                Work::Closed => {
                    self.seal(Kind::Seal)?;
                    return self.sync();
                }
            }
        }
    }

    /// Goes on to the next segment when not even the first step fits into this one.
    fn make_room(&mut self, first_bytes: usize) -> Result<(), Fatal> {
        while self.segment.room(self.offset) < first_bytes {
            let next = self.parts.supply.take().map_err(|reason| Fatal::Full {
                frame: self.last.frame + 1,
                bytes: first_bytes,
                reason,
            })?;
            if next.room(PAGE) < first_bytes {
                // Made when segments were configured smaller. It stays empty, which recovery allows.
                continue;
            }
            self.seal(Kind::SealContinued)?;
            self.parts.index.start(next.clone(), self.last.frame + 1);
            self.segment = next;
            self.offset = PAGE;
            self.note_half_written();
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Fatal> {
        let room = self.segment.room(self.offset);
        let first = self.parts.queue.take(room, &mut self.batch);
        let head = Head { frame: self.last.frame + 1, ..self.head(Kind::Frame) };
        debug_assert_eq!(first.0, head.first_ticket);
        let steps = self.batch.iter().map(|step| step.bytes.as_slice());
        let crc = encode(&head, steps, &mut self.buffer);
        let began = Instant::now();
        self.write()?;
        self.sync()?;
        self.offset += self.buffer.len() as u64;
        self.note_half_written();
        self.last = Last { frame: head.frame, crc, next_ticket: first.0 + self.batch.len() as u64 };
        self.tell(first, began.elapsed());
        Ok(())
    }

    /// Publishes, then wakes: each handle once, and none that had no step in this flush.
    fn tell(&mut self, first: Ticket, took: Duration) {
        let flush = Flush {
            frame: self.last.frame,
            first,
            steps: u32::try_from(self.batch.len()).expect("each step has at least 5 of FLUSH_BYTES_MAX bytes"),
        };
        let steps_bytes = self.batch.iter().map(|step| step.bytes.len() as u64).sum();
        self.parts.counters.count(u64::from(flush.steps), self.buffer.len() as u64, took);
        self.parts.index.publish(flush.frame, flush.up_to());
        let mut woken = HashSet::new();
        for wake in self.batch.drain(..).filter_map(|step| step.wake) {
            if woken.insert(Arc::as_ptr(&wake).cast::<()>()) {
                wake.durable(&flush);
            }
        }
        self.parts.queue.finish(flush.up_to(), steps_bytes);
        if self.buffer.capacity() > BUFFER_BYTES_KEPT {
            self.buffer = Vec::new();
        }
    }

    /// Says behind the last frame that it was flushed. Not synced: it proves what is already so.
    fn seal(&mut self, kind: Kind) -> Result<(), Fatal> {
        if self.last.frame == 0 {
            return Ok(());
        }
        let head = self.head(kind);
        encode(&head, std::iter::empty(), &mut self.buffer);
        self.write()
    }

    fn head(&self, kind: Kind) -> Head {
        Head {
            kind,
            id: self.parts.index.id,
            segment: self.segment.number,
            frame: self.last.frame,
            first_ticket: self.last.next_ticket,
            previous_crc: self.last.crc,
        }
    }

    fn write(&self) -> Result<(), Fatal> {
        let written = self.segment.file.write_all_at(&self.buffer, self.offset);
        written.map_err(self.fatal("write"))
    }

    fn sync(&self) -> Result<(), Fatal> {
        self.segment.file.sync_data().map_err(self.fatal("sync"))
    }

    fn fatal(&self, action: &'static str) -> impl FnOnce(std::io::Error) -> Fatal {
        let frame = self.last.frame + 1;
        let failed = failed(action, &self.segment.path);
        move |error| Fatal::Disk { frame, error: failed(error) }
    }
}
