//! The checkpoint: the state at a position, so that a start needs only the steps after it.
//!
//! One file, version 1, little-endian: `MRJCHKPT`, version (2 bytes), 2 zeros, number of sections (4), the journal's
//! id (8), `replay_from` (8 + 4), the last durable frame when it was written (8), how far `history/` was
//! written then (8 + 4); per section the bytes of its name (4), the name, the bytes of its content (8),
//! the content; CRC32C of everything before it (4). It is written beside the old one, synced and
//! renamed over it, so at every moment one whole checkpoint is there. Owners know what their
//! sections mean; this module does not.

use std::path::Path;
use std::sync::Arc;

use crate::corruption::Corruption;
use crate::disk::{Disk, DiskFile, FileError, failed};
use crate::frame::{number_u32, number_u64};
use crate::position::Position;
use crate::segment::unfinished;

/// Written in pieces of this size.
const BUFFER_BYTES: usize = 1 << 20;
/// Synced after so many bytes, so that a flush of frames beside a large checkpoint waits for one piece only.
const SYNC_EVERY_BYTES: u64 = 4 << 20;
/// The file.
pub(crate) const CHECKPOINT: &str = "checkpoint";

const MAGIC: [u8; 8] = *b"MRJCHKPT";
const VERSION: u16 = 1;
const HEAD_BYTES: usize = 56;

/// The state at a position.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The lowest position that some section still needs replayed.
    pub replay_from: Position,
    /// The state, each owner's under its name.
    pub sections: Vec<Section>,
}

/// One owner's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// Whose it is.
    pub name: Vec<u8>,
    /// What only its owner understands.
    pub bytes: Vec<u8>,
}

/// Why a checkpoint was not written. The one before still stands.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// It names steps that are not durable.
    #[error("a checkpoint that replays from {replay_from} is above the end, {end}")]
    Ahead {
        /// What the checkpoint says.
        replay_from: Position,
        /// The position above every durable step.
        end: Position,
    },
    /// It names steps that were removed.
    #[error("a checkpoint that replays from {replay_from}: the oldest kept is {oldest}")]
    Gone {
        /// What the checkpoint says.
        replay_from: Position,
        /// The lowest position that can be read.
        oldest: Position,
    },
    /// The disk would not take it.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A checkpoint with what it proves about the rest of the journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) id: u64,
    pub(crate) durable_frame: u64,
    pub(crate) history_covered: Position,
    pub(crate) checkpoint: Checkpoint,
}

/// Why a checkpoint cannot be read.
#[derive(Debug)]
pub(crate) enum LoadError {
    File(FileError),
    Corrupt(Corruption),
    Newer(u16),
}

/// What may be borrowed from its owner while it is written.
pub(crate) struct Proof {
    pub(crate) id: u64,
    pub(crate) durable_frame: u64,
    pub(crate) history_covered: Position,
}

/// Writes a checkpoint over the one before. A failed sync aborts the process (D10).
pub(crate) fn write(disk: &dyn Disk, dir: &Path, proof: &Proof, checkpoint: &Checkpoint) -> Result<(), FileError> {
    let path = dir.join(CHECKPOINT);
    let unfinished = unfinished(&path);
    if let Err(error) = write_file(disk, &unfinished, proof, checkpoint) {
        if let Err(error) = disk.remove(&unfinished) {
            tracing::debug!(%error, "no unfinished checkpoint to remove");
        }
        return Err(error);
    }
    disk.rename(&unfinished, &path).map_err(failed("rename", &unfinished))?;
    disk.sync_dir(dir).map_err(failed("sync", dir)).inspect_err(|error| disk.abort(&error.to_string()))
}

fn write_file(disk: &dyn Disk, path: &Path, proof: &Proof, checkpoint: &Checkpoint) -> Result<(), FileError> {
    let mut out = Out {
        disk,
        path,
        file: disk.create(path).map_err(failed("create", path))?,
        buffer: Vec::with_capacity(BUFFER_BYTES),
        written: 0,
        unsynced: 0,
        crc: 0,
    };
    out.put(&head(proof, checkpoint))?;
    for section in &checkpoint.sections {
        let name_bytes = u32::try_from(section.name.len()).expect("a section's name is short");
        out.put(&name_bytes.to_le_bytes())?;
        out.put(&section.name)?;
        out.put(&(section.bytes.len() as u64).to_le_bytes())?;
        out.put(&section.bytes)?;
    }
    out.put(&out.crc.to_le_bytes())?;
    out.write()?;
    out.sync()
}

fn head(proof: &Proof, checkpoint: &Checkpoint) -> [u8; HEAD_BYTES] {
    let sections = u32::try_from(checkpoint.sections.len()).expect("sections are few");
    let mut head = [0; HEAD_BYTES];
    head[0..8].copy_from_slice(&MAGIC);
    head[8..10].copy_from_slice(&VERSION.to_le_bytes());
    head[12..16].copy_from_slice(&sections.to_le_bytes());
    head[16..24].copy_from_slice(&proof.id.to_le_bytes());
    head[24..32].copy_from_slice(&checkpoint.replay_from.frame.to_le_bytes());
    head[32..36].copy_from_slice(&checkpoint.replay_from.index.to_le_bytes());
    head[36..44].copy_from_slice(&proof.durable_frame.to_le_bytes());
    head[44..52].copy_from_slice(&proof.history_covered.frame.to_le_bytes());
    head[52..56].copy_from_slice(&proof.history_covered.index.to_le_bytes());
    head
}

struct Out<'a> {
    disk: &'a dyn Disk,
    path: &'a Path,
    file: Arc<dyn DiskFile>,
    buffer: Vec<u8>,
    written: u64,
    unsynced: u64,
    crc: u32,
}

impl Out<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.crc = crc32c::crc32c_append(self.crc, bytes);
        for piece in bytes.chunks(BUFFER_BYTES) {
            if self.buffer.len() + piece.len() > BUFFER_BYTES {
                self.write()?;
            }
            self.buffer.extend_from_slice(piece);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), FileError> {
        let written = self.file.write_all_at(&self.buffer, self.written);
        written.map_err(failed("write", self.path))?;
        self.written += self.buffer.len() as u64;
        self.unsynced += self.buffer.len() as u64;
        self.buffer.clear();
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.sync()?;
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<(), FileError> {
        self.unsynced = 0;
        let synced = self.file.sync_data().map_err(failed("sync", self.path));
        synced.inspect_err(|error| {
            // Out of space only now: nothing depends on this file yet, and it is thrown away.
            if !error.is_out_of_space() {
                self.disk.abort(&error.to_string());
            }
        })
    }
}

/// Reads the checkpoint that is there. A damaged one is not skipped: what it replaced is gone.
pub(crate) fn load(disk: &dyn Disk, dir: &Path) -> Result<Stored, LoadError> {
    let path = dir.join(CHECKPOINT);
    let file = disk.open(&path).map_err(failed("open", &path)).map_err(LoadError::File)?;
    let length = file.bytes().map_err(failed("measure", &path)).map_err(LoadError::File)?;
    let mut input = In { path: &path, file, at: 0, end: length.saturating_sub(4), crc: 0 };
    let head = input.take(HEAD_BYTES as u64)?;
    if head[0..8] != MAGIC {
        return Err(input.corrupt("this is no checkpoint"));
    }
    let version = u16::from_le_bytes([head[8], head[9]]);
    if version != VERSION {
        return Err(LoadError::Newer(version));
    }
    // Nothing that a length says is believed beyond the file's own length, and no result before the CRC.
    let sections = input.sections(number_u32(&head, 12))?;
    let crc = input.crc;
    let at_end = input.at == input.end;
    input.end = length;
    if !at_end || number_u32(&input.take(4)?, 0) != crc {
        return Err(input.corrupt("the checkpoint's CRC is wrong"));
    }
    Ok(Stored {
        id: number_u64(&head, 16),
        durable_frame: number_u64(&head, 36),
        history_covered: Position { frame: number_u64(&head, 44), index: number_u32(&head, 52) },
        checkpoint: Checkpoint {
            replay_from: Position { frame: number_u64(&head, 24), index: number_u32(&head, 32) },
            sections,
        },
    })
}

struct In<'a> {
    path: &'a Path,
    file: Arc<dyn DiskFile>,
    at: u64,
    end: u64,
    crc: u32,
}

impl In<'_> {
    fn sections(&mut self, count: u32) -> Result<Vec<Section>, LoadError> {
        let mut sections = Vec::new();
        for _ in 0..count {
            let name_bytes = number_u32(&self.take(4)?, 0);
            let name = self.take(u64::from(name_bytes))?;
            let content_bytes = number_u64(&self.take(8)?, 0);
            let bytes = self.take(content_bytes)?;
            sections.push(Section { name, bytes });
        }
        Ok(sections)
    }

    fn take(&mut self, bytes: u64) -> Result<Vec<u8>, LoadError> {
        if bytes > self.end.saturating_sub(self.at) {
            return Err(self.corrupt("the checkpoint ends too early"));
        }
        let mut taken = vec![0; usize::try_from(bytes).expect("a file that was written from memory fits into it")];
        let read = self.file.read_exact_at(&mut taken, self.at);
        read.map_err(failed("read", self.path)).map_err(LoadError::File)?;
        self.crc = crc32c::crc32c_append(self.crc, &taken);
        self.at += bytes;
        Ok(taken)
    }

    fn corrupt(&self, what: &str) -> LoadError {
        LoadError::Corrupt(Corruption::new(self.path, self.at, 0, what))
    }
}
