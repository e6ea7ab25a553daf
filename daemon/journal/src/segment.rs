//! A segment: one preallocated, zeroed file of the journal. A page of header, then frames.
//!
//! The header, version 1, little-endian: `MRJSEGMT`, version (2 bytes), 6 zeros, the journal's id (8), the
//! segment's number (8), the file's length (8), CRC32C of these 40 bytes (4). A segment gets its
//! name only after its zeros and header are durable, so one with a bad header is damaged, never
//! torn. The last page is kept free of frames: the seal that says "continued" always fits.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::corruption::Corruption;
use crate::disk::{Disk, DiskFile, FileError, failed};
use crate::frame::{HEAD_BYTES, PAGE, PAGE_BYTES, STEP_HEAD_BYTES, number_u32, number_u64};

/// Zeros are synced in pieces of this size, so that a flush of frames beside them waits for one piece only.
const ZEROS_BYTES_MAX: usize = 2 << 20;
/// Header, one page of frames and the kept page make a segment; a fourth so that rolling is not constant.
pub(crate) const SEGMENT_BYTES_MIN: u64 = 4 * PAGE;

const MAGIC: [u8; 8] = *b"MRJSEGMT";
const VERSION: u16 = 1;
const PREFIX: &str = "segment-";
/// The ending of every file that is not yet what it will be.
pub(crate) const UNFINISHED: &str = ".new";

/// An open segment.
#[derive(Clone)]
pub(crate) struct Segment {
    pub(crate) number: u64,
    pub(crate) bytes: u64,
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn DiskFile>,
}

/// Why no new file could be had.
#[derive(Debug)]
pub(crate) enum MakeError {
    /// It could not be written; nothing is lost. Most often: no space.
    Refused(FileError),
    /// A sync failed: D10.
    Sync(FileError),
}

/// Why a segment cannot be used.
#[derive(Debug)]
pub(crate) enum HeaderError {
    File(FileError),
    Corrupt(Corruption),
    Newer(u16),
}

impl Segment {
    /// The first offset at which no frame may stand any more.
    pub(crate) fn frames_end(&self) -> u64 {
        self.bytes - PAGE
    }

    /// How many bytes of body a frame at `offset` may have.
    pub(crate) fn room(&self, offset: u64) -> usize {
        let free = self.frames_end().saturating_sub(offset);
        usize::try_from(free).map_or(usize::MAX, |free| free.saturating_sub(HEAD_BYTES))
    }

    /// Opens a segment and checks its header; returns the journal's id too.
    pub(crate) fn open(disk: &dyn Disk, dir: &Path, number: u64) -> Result<(Segment, u64), HeaderError> {
        let path = path(dir, number);
        let file = disk.open(&path).map_err(failed("open", &path)).map_err(HeaderError::File)?;
        let bytes = file.bytes().map_err(failed("measure", &path)).map_err(HeaderError::File)?;
        let corrupt = |what: String| HeaderError::Corrupt(Corruption::new(&path, 0, 0, what));
        if bytes < SEGMENT_BYTES_MIN || bytes % PAGE != 0 {
            return Err(corrupt(format!("the segment has {bytes} bytes")));
        }
        let mut header = [0; 44];
        file.read_exact_at(&mut header, 0).map_err(failed("read", &path)).map_err(HeaderError::File)?;
        if header[0..8] != MAGIC || number_u32(&header, 40) != crc32c::crc32c(&header[..40]) {
            return Err(corrupt("the segment's header is damaged".into()));
        }
        let version = u16::from_le_bytes([header[8], header[9]]);
        if version != VERSION {
            return Err(HeaderError::Newer(version));
        }
        let (found, stated) = (number_u64(&header, 24), number_u64(&header, 32));
        if found != number || stated != bytes {
            return Err(corrupt(format!(
                "its header speaks of segment {found} with {stated} bytes, the file is segment {number} with {bytes}"
            )));
        }
        let id = number_u64(&header, 16);
        Ok((Segment { number, bytes, path, file }, id))
    }

    /// Makes a segment: zeroed, its header and its name durable.
    pub(crate) fn make(disk: &dyn Disk, dir: &Path, id: u64, number: u64, bytes: u64) -> Result<Segment, MakeError> {
        let unfinished = unfinished(&path(dir, number));
        make_zeros(disk, &unfinished, bytes)?;
        Segment::name_zeros(disk, dir, id, number, &unfinished)
    }

    /// Makes a segment of a zeroed file: its header, then its name.
    pub(crate) fn name_zeros(
        disk: &dyn Disk,
        dir: &Path,
        id: u64,
        number: u64,
        zeros: &Path,
    ) -> Result<Segment, MakeError> {
        let path = path(dir, number);
        let file = disk.open(zeros).map_err(failed("open", zeros)).map_err(MakeError::Refused)?;
        let bytes = file.bytes().map_err(failed("measure", zeros)).map_err(MakeError::Refused)?;
        file.write_all_at(&header(id, number, bytes), 0).map_err(failed("write", zeros)).map_err(MakeError::Refused)?;
        file.sync_data().map_err(failed("sync", zeros)).map_err(MakeError::Sync)?;
        disk.rename(zeros, &path).map_err(failed("rename", zeros)).map_err(MakeError::Refused)?;
        disk.sync_dir(dir).map_err(failed("sync", dir)).map_err(MakeError::Sync)?;
        Ok(Segment { number, bytes, path, file })
    }
}

fn header(id: u64, number: u64, bytes: u64) -> [u8; 44] {
    let mut header = [0; 44];
    header[0..8].copy_from_slice(&MAGIC);
    header[8..10].copy_from_slice(&VERSION.to_le_bytes());
    header[16..24].copy_from_slice(&id.to_le_bytes());
    header[24..32].copy_from_slice(&number.to_le_bytes());
    header[32..40].copy_from_slice(&bytes.to_le_bytes());
    let crc = crc32c::crc32c(&header[..40]);
    header[40..44].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Makes a file of durable zeros. One that cannot be had leaves nothing behind.
pub(crate) fn make_zeros(disk: &dyn Disk, path: &Path, bytes: u64) -> Result<(), MakeError> {
    let made = write_zeros(disk, path, bytes);
    if made.is_err()
        && let Err(error) = disk.remove(path)
    {
        tracing::debug!(path = %path.display(), %error, "no unfinished file to remove");
    }
    made
}

fn write_zeros(disk: &dyn Disk, path: &Path, bytes: u64) -> Result<(), MakeError> {
    let file = disk.create(path).map_err(failed("create", path)).map_err(MakeError::Refused)?;
    file.allocate(bytes).map_err(failed("allocate", path)).map_err(MakeError::Refused)?;
    let zeros = vec![0; ZEROS_BYTES_MAX];
    let mut offset = 0;
    while offset < bytes {
        let piece = usize::try_from(bytes - offset).map_or(zeros.len(), |rest| rest.min(zeros.len()));
        file.write_all_at(&zeros[..piece], offset).map_err(failed("write", path)).map_err(MakeError::Refused)?;
        // Nothing depends on this file yet: out of space only at the sync is still a refusal.
        file.sync_data().map_err(failed("sync", path)).map_err(|error| {
            if error.is_out_of_space() { MakeError::Refused(error) } else { MakeError::Sync(error) }
        })?;
        offset += piece as u64;
    }
    Ok(())
}

/// The file of a segment.
pub(crate) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{PREFIX}{number:016}"))
}

/// The name a file has until it is finished.
pub(crate) fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_os_string();
    name.push(UNFINISHED);
    PathBuf::from(name)
}

/// The number in a segment's name.
pub(crate) fn number_in(name: &str) -> Option<u64> {
    let digits = name.strip_prefix(PREFIX)?;
    (digits.len() == 16).then(|| digits.parse().ok()).flatten()
}

/// How many bytes a step may have that must fit into one frame of a segment of `bytes`.
pub(crate) fn step_bytes_max(bytes: u64) -> usize {
    let body = usize::try_from(bytes - 2 * PAGE).unwrap_or(usize::MAX) - HEAD_BYTES;
    body - STEP_HEAD_BYTES
}

const _: () = assert!(PAGE as usize == PAGE_BYTES);
