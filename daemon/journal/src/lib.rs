//! The journal: the truth of a node, and the only fsync of the product.
//!
//! Bytes in, bytes out: what a step means is its owner's. One writer thread takes all the steps that
//! wait, writes them as one frame, calls `fdatasync` once, and then wakes those who had a step in it.
//! `durability.md`'s D10 and D12 are kept here; D1 to D9 are kept by whoever holds back what must not leave
//! before [`Flush`] says so.
//!
//! ```
//! use std::sync::{Arc, mpsc};
//! use millrace_journal::{Checkpoint, Flush, Journal, Options, Position, Section, Wake};
//!
//! /// An actor's outbox: it lets effects go once the step before them is durable.
//! struct Outbox(mpsc::Sender<Flush>);
//!
//! impl Wake for Outbox {
//!     fn durable(&self, flush: &Flush) {
//!         // Never wait here: this is the writer's thread. An outbox that is gone needs nothing.
//!         let _gone = self.0.send(*flush);
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! # let dir = folder.path().join("journal");
//! # let options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, ..Options::default() };
//! let (journal, recovered) = Journal::open(&dir, options)?;
//! assert!(recovered.checkpoint.is_none());
//!
//! let (outbox, flushes) = mpsc::channel();
//! let wake = Arc::new(Outbox(outbox));
//! let ticket = journal.submit(b"an HTLC was added".to_vec(), Some(wake))?;
//! let flush = flushes.recv()?;
//! assert!(journal.durable_up_to() >= ticket);
//! let cursor = flush.position(ticket).expect("the outbox had one step, and was woken for it");
//!
//! // What subscribers see: durable steps only.
//! let mut reader = journal.reader(cursor)?;
//! assert_eq!(reader.next_step()?.expect("it is durable").bytes, b"an HTLC was added");
//! assert!(reader.next_step()?.is_none(), "and may be asked again");
//!
//! // First the events that must outlive the segments, then the checkpoint that lets segments go.
//! journal.history().append(journal.durable_end(), &[(cursor, b"htlc added".as_slice())])?;
//! journal.write_checkpoint(&Checkpoint {
//!     replay_from: journal.durable_end(),
//!     sections: vec![Section { name: b"channels".to_vec(), bytes: b"one HTLC".to_vec() }],
//! })?;
//! journal.submit_and_wait(b"the HTLC was removed".to_vec())?;
//! journal.close();
//!
//! let (_journal, recovered) = Journal::open(&dir, options)?;
//! let checkpoint = recovered.checkpoint.expect("one was written");
//! assert_eq!(checkpoint.sections[0].bytes, b"one HTLC");
//! let tail: Result<Vec<_>, _> = recovered.tail.collect();
//! assert_eq!(tail?[0].bytes, b"the HTLC was removed");
//! # Ok(())
//! # }
//! ```
//!
//! # What is detected, and what is not
//!
//! - A damaged or missing byte in a frame, a segment's header, the checkpoint or the history is found when it is
//!   read (CRC32C), and refused with file, offset and frame. Frames below the checkpoint are read only when
//!   somebody asks for them.
//! - A frame that was flushed and is damaged afterwards is told from a torn one by what was written after it: the
//!   next frame (which holds its CRC), the seal (written 2 ms after the last frame, and on closing), the checkpoint or the
//!   history. Until one of these has reached the disk, damage to the very last frame looks like a torn write:
//!   it is cut, with a warning and [`Report::torn`].
//! - The last segment missing as a whole is found if the segment before it says that it goes on, or if a checkpoint or
//!   the history names a frame in it. A whole folder put back from an older copy is not found here (D11 is the channels').
//! - CRC32C finds accidents, not forgery: whoever can write to the folder can write a valid journal.
//! - A disk that says it has flushed and has not is beyond anything done here.

mod checkpoint;
mod corruption;
mod disk;
mod frame;
mod history;
mod index;
mod journal;
mod position;
mod queue;
mod reader;
mod recovery;
mod segment;
mod stats;
mod supply;
mod writer;

#[cfg(test)]
mod tests;

pub use checkpoint::{Checkpoint, CheckpointError, Section};
pub use corruption::Corruption;
pub use disk::FileError;
pub use history::{APPEND_BYTES_MAX, History, HistoryError, HistoryReader};
pub use journal::{Journal, Options, Recovered};
pub use position::{DurableStep, Flush, Position, Ticket};
pub use queue::{FLUSH_BYTES_MAX, QUEUED_BYTES_BUSY, SubmitError, Wake, WakeHandle};
pub use reader::{ReadError, Reader, Tail};
pub use recovery::{OpenError, Report, TornTail};
pub use stats::Stats;
pub use supply::Space;
