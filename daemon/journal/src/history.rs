//! `history/`: what outlives the segments. Append-only files of items at the positions of their steps.
//!
//! An append says how far it covers the journal, also where nothing was worth keeping; segments may
//! go once they are covered. Files are named by the position they start from, and are the only index.
//! What items mean, and which are kept how long, is the daemon's.

mod chunk;
mod reader;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use crate::corruption::Corruption;
use crate::disk::{Disk, DiskFile, FileError, failed};
use crate::index::Index;
use crate::position::Position;
use crate::recovery::TornTail;
use chunk::Chunk;
pub use reader::HistoryReader;

/// The most one append takes: what a reader holds in memory at once.
pub const APPEND_BYTES_MAX: usize = 16 << 20;
/// The folder, inside the journal's.
pub(crate) const HISTORY: &str = "history";

const PREFIX: &str = "from-";
const LOCK: &str = "nothing panics while the history is locked";

/// Why items were not appended. Nothing changed.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    /// Items or the end of the append are out of order, or below what is already covered.
    #[error("history covers up to {covered}: it cannot take {position} before {covers}")]
    Order {
        /// The position that is out of order.
        position: Position,
        /// How far history covers.
        covered: Position,
        /// How far this append would cover.
        covers: Position,
    },
    /// It covers steps that are not durable.
    #[error("history up to {covers} is above the end, {end}")]
    Ahead {
        /// How far this append would cover.
        covers: Position,
        /// The position above every durable step.
        end: Position,
    },
    /// Too much at once.
    #[error("an append of {bytes} bytes is above {APPEND_BYTES_MAX}")]
    TooLarge {
        /// Bytes of the append.
        bytes: usize,
    },
    /// The disk would not take it.
    #[error(transparent)]
    File(#[from] FileError),
}

#[derive(Clone)]
struct HistoryFile {
    from: Position,
    path: PathBuf,
    file: Arc<dyn DiskFile>,
    bytes: u64,
}

struct State {
    files: Vec<HistoryFile>,
    covered: Position,
}

/// The history of a journal.
pub struct History {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    index: Arc<Index>,
    file_bytes_max: u64,
    state: Mutex<State>,
    appending: Mutex<()>,
}

/// What an open found: the history, or where it is damaged.
#[derive(Debug)]
pub(crate) enum HistoryOpenError {
    File(FileError),
    Corrupt(Corruption),
    Newer(PathBuf, u16),
}

impl From<FileError> for HistoryOpenError {
    fn from(error: FileError) -> Self {
        HistoryOpenError::File(error)
    }
}

impl History {
    /// Takes items, in order, and says that everything below `covers` is now in the history; returns once it is durable.
    ///
    /// All items of one position go into one append. A failed sync aborts the process (D10).
    pub fn append(&self, covers: Position, items: &[(Position, &[u8])]) -> Result<(), HistoryError> {
        let _one_at_a_time = self.appending.lock().expect(LOCK);
        let from = self.covered_up_to();
        self.check(from, covers, items)?;
        if covers == from {
            return Ok(());
        }
        let bytes = chunk::encode(self.index.id, from, covers, items);
        if bytes.len() > APPEND_BYTES_MAX {
            return Err(HistoryError::TooLarge { bytes: bytes.len() });
        }
        let (file, is_new) = self.file_for(from)?;
        self.write(&file, &bytes)?;
        if is_new {
            self.sync(self.disk.sync_dir(&self.dir), &self.dir)?;
        }
        let mut state = self.lock();
        if is_new {
            state.files.push(file);
        }
        let last = state.files.last_mut().expect("the file that was just written is among them");
        last.bytes += bytes.len() as u64;
        state.covered = covers;
        Ok(())
    }

    /// The position below which everything is in the history, whether or not there was anything to keep.
    #[must_use]
    pub fn covered_up_to(&self) -> Position {
        self.lock().covered
    }

    /// The lowest position that can be read.
    #[must_use]
    pub fn oldest(&self) -> Position {
        let state = self.lock();
        state.files.first().map_or(state.covered, |file| file.from)
    }

    /// Reads the items from a position on.
    pub fn reader(self: &Arc<Self>, from: Position) -> Result<HistoryReader, crate::ReadError> {
        HistoryReader::new(self.clone(), from)
    }

    /// Removes files all of whose items are below a position. The newest file stays.
    pub fn forget_below(&self, position: Position) -> Result<(), FileError> {
        let _one_at_a_time = self.appending.lock().expect(LOCK);
        loop {
            let lowest = {
                let state = self.lock();
                match state.files.as_slice() {
                    [lowest, next, ..] if next.from <= position => lowest.path.clone(),
                    _ => return Ok(()),
                }
            };
            self.disk.remove(&lowest).map_err(failed("remove", &lowest))?;
            self.lock().files.remove(0);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    fn check(&self, from: Position, covers: Position, items: &[(Position, &[u8])]) -> Result<(), HistoryError> {
        let end = self.index.durable_end();
        if covers > end {
            return Err(HistoryError::Ahead { covers, end });
        }
        let mut lowest = from;
        let positions = items.iter().map(|(position, _)| *position);
        for position in positions {
            if position < lowest || position >= covers {
                return Err(HistoryError::Order { position, covered: from, covers });
            }
            lowest = position;
        }
        if covers < from {
            return Err(HistoryError::Order { position: covers, covered: from, covers });
        }
        Ok(())
    }

    fn file_for(&self, from: Position) -> Result<(HistoryFile, bool), FileError> {
        if let Some(last) = self.lock().files.last()
            && last.bytes < self.file_bytes_max
        {
            return Ok((last.clone(), false));
        }
        let path = path(&self.dir, from);
        let file = self.disk.create(&path).map_err(failed("create", &path))?;
        Ok((HistoryFile { from, path, file, bytes: 0 }, true))
    }

    fn write(&self, file: &HistoryFile, bytes: &[u8]) -> Result<(), FileError> {
        if let Err(error) = file.file.write_all_at(bytes, file.bytes) {
            // What is left of it would be cut as a torn tail; the next append overwrites it.
            if let Err(error) = file.file.truncate(file.bytes) {
                tracing::warn!(%error, "half an append stays behind the history's end");
            }
            return Err(failed("write", &file.path)(error));
        }
        self.sync(file.file.sync_data(), &file.path)
    }

    fn sync(&self, synced: std::io::Result<()>, path: &Path) -> Result<(), FileError> {
        let synced = synced.map_err(failed("sync", path));
        synced.inspect_err(|error| self.disk.abort(&error.to_string()))
    }

    /// Opens the history in a folder; a torn last append is cut.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        index: Arc<Index>,
        file_bytes_max: u64,
    ) -> Result<(History, Option<TornTail>), HistoryOpenError> {
        let history = History {
            disk,
            dir: dir.to_path_buf(),
            index,
            file_bytes_max,
            state: Mutex::new(State { files: Vec::new(), covered: Position::START }),
            appending: Mutex::new(()),
        };
        let torn = history.recover()?;
        Ok((history, torn))
    }

    fn recover(&self) -> Result<Option<TornTail>, HistoryOpenError> {
        self.disk.create_dir(&self.dir).map_err(failed("create", &self.dir))?;
        let mut files = self.open_files()?;
        let mut torn = None;
        while let Some(mut last) = files.pop() {
            let end = self.scan(&last)?;
            let length = last.file.bytes().map_err(failed("measure", &last.path))?;
            if end.bytes < length {
                let cut = TornTail::new(&last.path, end.bytes, length - end.bytes, end.covered.frame);
                if torn.is_some() {
                    return Err(HistoryOpenError::Corrupt(Corruption::new(
                        &last.path,
                        end.bytes,
                        end.covered.frame,
                        "the history is damaged, and goes on in a later file",
                    )));
                }
                tracing::warn!(file = %cut.file.display(), offset = cut.offset, bytes = cut.bytes, "torn tail of the history cut");
                torn = Some(cut);
            }
            if end.bytes == 0 {
                // Its first append never returned: there is no such file.
                self.disk.remove(&last.path).map_err(failed("remove", &last.path))?;
                continue;
            }
            self.settle(&last, &end, length)?;
            last.bytes = end.bytes;
            self.lock().covered = end.covered;
            files.push(last);
            break;
        }
        self.lock().files = files;
        Ok(torn)
    }

    /// Cuts what is torn and makes the last append durable: it may have been read from memory only.
    fn settle(&self, last: &HistoryFile, end: &End, length: u64) -> Result<(), FileError> {
        if end.bytes < length {
            last.file.truncate(end.bytes).map_err(failed("truncate", &last.path))?;
        }
        let written = last.file.write_all_at(&end.last_chunk, end.last_at);
        written.map_err(failed("write", &last.path))?;
        self.sync(last.file.sync_data(), &last.path)?;
        self.sync(self.disk.sync_dir(&self.dir), &self.dir)
    }

    fn open_files(&self) -> Result<Vec<HistoryFile>, FileError> {
        let names = self.disk.list(&self.dir).map_err(failed("list", &self.dir))?;
        let mut files = Vec::new();
        for from in names.iter().filter_map(|name| position_in(name)) {
            let path = path(&self.dir, from);
            let file = self.disk.open(&path).map_err(failed("open", &path))?;
            let bytes = file.bytes().map_err(failed("measure", &path))?;
            files.push(HistoryFile { from, path, file, bytes });
        }
        files.sort_by_key(|file| file.from);
        Ok(files)
    }

    /// Reads a whole file and finds where its last whole append ends.
    fn scan(&self, last: &HistoryFile) -> Result<End, HistoryOpenError> {
        let mut end = End { bytes: 0, covered: last.from, last_at: 0, last_chunk: Vec::new() };
        let mut buffer = Vec::new();
        loop {
            let read = chunk::read(&*last.file, self.index.id, end.bytes, last.bytes, &mut buffer);
            match read.map_err(failed("read", &last.path))? {
                Chunk::End => return Ok(end),
                Chunk::Newer(version) => return Err(HistoryOpenError::Newer(last.path.clone(), version)),
                Chunk::Valid(valid) if valid.from == end.covered => {
                    end.last_at = end.bytes;
                    end.bytes += valid.span();
                    end.covered = valid.covers;
                    std::mem::swap(&mut end.last_chunk, &mut buffer);
                }
                Chunk::Valid(_) => return Err(self.damaged(last, &end, end.bytes)),
                Chunk::Bad => return self.check_torn(last, end),
            }
        }
    }

    /// A bad append is torn only if no whole one follows.
    fn check_torn(&self, last: &HistoryFile, end: End) -> Result<End, HistoryOpenError> {
        let id = self.index.id;
        let later = chunk::find(&*last.file, id, end.bytes + 1, last.bytes);
        match later.map_err(failed("read", &last.path))? {
            None => Ok(end),
            Some(at) => Err(self.damaged(last, &end, at)),
        }
    }

    fn damaged(&self, last: &HistoryFile, end: &End, later: u64) -> HistoryOpenError {
        let what = format!("history from {} is damaged: a whole append follows at byte {later}", end.covered);
        HistoryOpenError::Corrupt(Corruption::new(&last.path, end.bytes, end.covered.frame, what))
    }
}

struct End {
    bytes: u64,
    covered: Position,
    last_at: u64,
    last_chunk: Vec<u8>,
}

fn path(dir: &Path, from: Position) -> PathBuf {
    dir.join(format!("{PREFIX}{:020}-{:010}", from.frame, from.index))
}

fn position_in(name: &str) -> Option<Position> {
    let (frame, index) = name.strip_prefix(PREFIX)?.split_once('-')?;
    Some(Position { frame: frame.parse().ok()?, index: index.parse().ok()? })
}

#[cfg(test)]
pub(crate) mod tests;
