//! Opening a journal: the newest checkpoint, the whole frames after it, and where the next one goes.
//!
//! D12: a bad last frame is a torn tail, which is cut; a bad frame with any valid later frame, and
//! anything missing that something else proves, is corruption, which refuses to start. What proves
//! that a frame was flushed: a later frame, the seal behind it, a checkpoint or a history that
//! names it. A frame whose last byte was acknowledged and that is damaged *before* any of these
//! reached the disk cannot be told from a torn one, by anybody: it is cut, and the report says so.
//!
//! Walking the frames is `walk`'s; this module gathers, compares and repairs.

mod walk;

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::checkpoint::{self, CHECKPOINT, LoadError, Stored};
use crate::corruption::Corruption;
use crate::disk::{Disk, FileError, failed};
use crate::history::{HISTORY, History, HistoryOpenError};
use crate::index::{Index, Started};
use crate::journal::Options;
use crate::position::{Position, Ticket};
use crate::segment::{self, HeaderError, MakeError, Segment, UNFINISHED};
use crate::supply::{RESERVE, Stock};
use crate::writer::Last;
use walk::{Walk, Walked};

/// Why a journal was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the journal in {} is in use by another process", dir.display())]
    InUse {
        /// The journal's folder.
        dir: PathBuf,
    },
    /// Something acknowledged is missing or damaged (D12).
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// A later release wrote it.
    #[error("{} has version {version}, which this release does not know", file.display())]
    Newer {
        /// The file.
        file: PathBuf,
        /// Its version.
        version: u16,
    },
    /// The options contradict each other.
    #[error("{name} is {value}, below the {min} it needs")]
    Options {
        /// Which option.
        name: &'static str,
        /// Its value.
        value: u64,
        /// The lowest value that works.
        min: u64,
    },
    /// The disk would not.
    #[error(transparent)]
    File(#[from] FileError),
    /// No thread could be started.
    #[error("no thread for the journal: {0}")]
    Thread(std::io::Error),
}

/// A tail that was cut: an unfinished flush, which nobody was ever told of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// The file.
    pub file: PathBuf,
    /// Where the cut was made.
    pub offset: u64,
    /// How many bytes there were not zero, or were cut off.
    pub bytes: u64,
    /// The frame that was being written.
    pub frame: u64,
}

impl TornTail {
    pub(crate) fn new(file: &Path, offset: u64, bytes: u64, frame: u64) -> TornTail {
        TornTail { file: file.to_path_buf(), offset, bytes, frame }
    }
}

/// What was found on opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Frames that were read and checked: those of the segment in which the tail starts, and of all later ones.
    pub frames: u64,
    /// Steps in them.
    pub steps: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Whether a seal proved that the last frame was the last.
    pub is_sealed: bool,
    /// The torn tail that was cut.
    pub torn: Option<TornTail>,
    /// The torn tail of the history that was cut.
    pub history_torn: Option<TornTail>,
}

/// A journal as it lies on disk, whole.
pub(crate) struct Found {
    pub(crate) index: Arc<Index>,
    pub(crate) history: History,
    pub(crate) segment: Segment,
    pub(crate) offset: u64,
    pub(crate) last: Last,
    pub(crate) stock: Stock,
    pub(crate) checkpoint: Option<checkpoint::Checkpoint>,
    pub(crate) report: Report,
}

impl Found {
    /// Where replay starts.
    pub(crate) fn tail_from(&self) -> Position {
        self.checkpoint.as_ref().map_or(Position::START, |one| one.replay_from)
    }
}

/// Recovers the journal in a folder, or starts one.
pub(crate) fn recover(disk: &Arc<dyn Disk>, dir: &Path, options: &Options) -> Result<Found, OpenError> {
    let names = disk.list(dir).map_err(failed("list", dir))?;
    for name in names.iter().filter(|name| name.ends_with(UNFINISHED)) {
        let path = dir.join(name);
        disk.remove(&path).map_err(failed("remove", &path))?;
    }
    let (segments, id) = open_segments(&**disk, dir, &names)?;
    let stored = load_checkpoint(&**disk, dir, &names)?;
    let Some(id) = id else {
        return start(disk, dir, options, stored.as_ref());
    };
    check_id(dir, id, stored.as_ref())?;
    // A name that was only in memory must not be what segments are removed for.
    sync_dir(&**disk, dir)?;
    let gathered = Gathered { disk, dir, id, segments, stored };
    gathered.recover(options, names.iter().any(|name| name == RESERVE))
}

fn sync_dir(disk: &dyn Disk, dir: &Path) -> Result<(), FileError> {
    let synced = disk.sync_dir(dir).map_err(failed("sync", dir));
    synced.inspect_err(|error| disk.abort(&error.to_string()))
}

fn open_segments(disk: &dyn Disk, dir: &Path, names: &[String]) -> Result<(Vec<Segment>, Option<u64>), OpenError> {
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::number_in(name)).collect();
    numbers.sort_unstable();
    let mut segments = Vec::new();
    let mut journal = None;
    for number in numbers {
        let path = segment::path(dir, number);
        let (segment, id) = Segment::open(disk, dir, number).map_err(|error| match error {
            HeaderError::File(error) => OpenError::File(error),
            HeaderError::Corrupt(corruption) => OpenError::Corrupt(corruption),
            HeaderError::Newer(version) => OpenError::Newer { file: path.clone(), version },
        })?;
        if *journal.get_or_insert(id) != id {
            return Err(Corruption::new(&path, 0, 0, "the segment belongs to another journal").into());
        }
        segments.push(segment);
    }
    Ok((segments, journal))
}

fn load_checkpoint(disk: &dyn Disk, dir: &Path, names: &[String]) -> Result<Option<Stored>, OpenError> {
    if !names.iter().any(|name| name == CHECKPOINT) {
        return Ok(None);
    }
    checkpoint::load(disk, dir).map(Some).map_err(|error| match error {
        LoadError::File(error) => OpenError::File(error),
        LoadError::Corrupt(corruption) => OpenError::Corrupt(corruption),
        LoadError::Newer(version) => OpenError::Newer { file: dir.join(CHECKPOINT), version },
    })
}

fn check_id(dir: &Path, id: u64, stored: Option<&Stored>) -> Result<(), Corruption> {
    match stored {
        Some(stored) if stored.id != id => {
            let what = "the checkpoint belongs to another journal than the segments";
            Err(Corruption::new(&dir.join(CHECKPOINT), 0, 0, what))
        }
        _ => Ok(()),
    }
}

/// A journal's first opening.
fn start(disk: &Arc<dyn Disk>, dir: &Path, options: &Options, stored: Option<&Stored>) -> Result<Found, OpenError> {
    let id = random_id();
    let missing = |what: &str| OpenError::Corrupt(Corruption::new(&segment::path(dir, 1), 0, 1, what));
    if stored.is_some() {
        return Err(missing("there is a checkpoint, and no segment"));
    }
    let history_dir = dir.join(HISTORY);
    disk.create_dir(&history_dir).map_err(failed("create", &history_dir))?;
    if !disk.list(&history_dir).map_err(failed("list", &history_dir))?.is_empty() {
        return Err(missing("there is a history, and no segment"));
    }
    let made = Segment::make(&**disk, dir, id, 1, options.segment_bytes);
    let segment = made.map_err(|error| match error {
        MakeError::Refused(error) => error,
        MakeError::Sync(error) => {
            disk.abort(&error.to_string());
            error
        }
    })?;
    let gathered = Gathered { disk, dir, id, segments: vec![segment], stored: None };
    gathered.recover(options, false)
}

/// Random enough that nobody outside can write it into a payload: the keys of std's hasher come from the system.
fn random_id() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The files of a journal, opened.
struct Gathered<'a> {
    disk: &'a Arc<dyn Disk>,
    dir: &'a Path,
    id: u64,
    segments: Vec<Segment>,
    stored: Option<Stored>,
}

impl Gathered<'_> {
    fn recover(mut self, options: &Options, has_reserve: bool) -> Result<Found, OpenError> {
        let mut firsts = walk::first_frames(self.id, &self.segments)?;
        self.drop_leftovers(&mut firsts)?;
        self.check_oldest(&firsts)?;
        let replay_from = self.stored.as_ref().map_or(1, |one| one.checkpoint.replay_from.frame);
        let walked = Walk::new(self.id, &self.segments, &firsts, replay_from).run()?;
        self.check_end(&walked)?;
        self.repair(&walked)?;
        let index = Arc::new(self.index(&firsts, &walked));
        let history_dir = self.dir.join(HISTORY);
        let (history, history_torn) = open_history(self.disk, &history_dir, &index, options.history_file_bytes)?;
        check_covered(&history, &index, &history_dir, self.stored.as_ref().map(|stored| stored.history_covered))?;
        let ready: VecDeque<Segment> = self.segments.split_off(walked.at + 1).into();
        let current = self.segments.pop().expect("the walk ended in one of the segments");
        let highest = ready.back().map_or(current.number, |last| last.number);
        Ok(Found {
            index,
            history,
            segment: current,
            offset: walked.offset,
            last: walked.last,
            stock: Stock {
                ready,
                has_reserve: has_reserve && self.has_whole_reserve(options)?,
                next_number: highest + 1,
            },
            checkpoint: self.stored.map(|stored| stored.checkpoint),
            report: Report { history_torn, ..walked.report },
        })
    }

    /// Finishes an interrupted removal: segments below a gap, when nothing below the gap is needed.
    fn drop_leftovers(&mut self, firsts: &mut Vec<Option<u64>>) -> Result<(), OpenError> {
        let numbers: Vec<u64> = self.segments.iter().map(|segment| segment.number).collect();
        let Some(gap) = numbers.windows(2).rposition(|pair| pair[0] + 1 != pair[1]) else {
            return Ok(());
        };
        let kept = gap + 1;
        let first = firsts[kept..].iter().flatten().next();
        let is_finished = self.floor().is_some_and(|floor| first.is_some_and(|first| *first <= floor.frame));
        if !is_finished {
            return Err(self.missing(numbers[gap] + 1, "a segment is missing between others").into());
        }
        for segment in self.segments.drain(..kept) {
            self.disk.remove(&segment.path).map_err(failed("remove", &segment.path))?;
        }
        firsts.drain(..kept);
        Ok(())
    }

    /// The lowest position that must be there; `None` without a checkpoint: everything must.
    fn floor(&self) -> Option<Position> {
        let stored = self.stored.as_ref()?;
        Some(stored.checkpoint.replay_from.min(stored.history_covered))
    }

    fn check_oldest(&self, firsts: &[Option<u64>]) -> Result<(), Corruption> {
        let floor = self.floor().unwrap_or(Position::START).frame;
        let lowest = self.segments[0].number;
        match firsts.iter().flatten().next() {
            Some(first) if *first <= floor => Ok(()),
            None if lowest == 1 => Ok(()),
            Some(_) | None => {
                let what = format!("frame {floor} is still needed, and no segment has it");
                Err(self.missing(lowest.saturating_sub(1), &what))
            }
        }
    }

    fn missing(&self, number: u64, what: &str) -> Corruption {
        let frame = self.floor().unwrap_or(Position::START).frame;
        Corruption::new(&segment::path(self.dir, number), 0, frame, what)
    }

    /// What the checkpoint names must have been found.
    fn check_end(&self, walked: &Walked) -> Result<(), Corruption> {
        let Some(stored) = &self.stored else {
            return Ok(());
        };
        let (has, needs) = (walked.last.frame, stored.durable_frame);
        if has < needs {
            let segment = &self.segments[walked.at];
            let what = format!("frame {has} is the last, and the checkpoint was written after frame {needs}");
            return Err(Corruption::new(&segment.path, walked.offset, has + 1, what));
        }
        Ok(())
    }

    /// Writes zeros over a torn tail, and makes the last frame durable: it may have been read from memory only.
    ///
    /// After a failed sync the kernel may show bytes as clean that the disk never got, so the last
    /// frame is written again before it is synced, unless a seal proves that it was flushed.
    fn repair(&self, walked: &Walked) -> Result<(), FileError> {
        if let Some((at, offset, span)) = walked.last_at
            && !walked.report.is_sealed
        {
            let segment = &self.segments[at];
            let mut frame = vec![0; span];
            segment.file.read_exact_at(&mut frame, offset).map_err(failed("read", &segment.path))?;
            self.overwrite(segment, &frame, offset)?;
        }
        if let Some(torn) = &walked.report.torn {
            tracing::warn!(
                file = %torn.file.display(), offset = torn.offset, bytes = torn.bytes, frame = torn.frame,
                "torn tail of the journal cut: this flush had not returned"
            );
        }
        for dirt in &walked.dirt {
            let segment = &self.segments[dirt.at];
            let bytes = usize::try_from(dirt.end - dirt.first).expect("a segment fits into memory");
            self.overwrite(segment, &vec![0; bytes], dirt.first)?;
        }
        Ok(())
    }

    fn overwrite(&self, segment: &Segment, bytes: &[u8], offset: u64) -> Result<(), FileError> {
        let written = segment.file.write_all_at(bytes, offset);
        written.map_err(failed("write", &segment.path))?;
        let synced = segment.file.sync_data().map_err(failed("sync", &segment.path));
        synced.inspect_err(|error| self.disk.abort(&error.to_string()))
    }

    fn index(&self, firsts: &[Option<u64>], walked: &Walked) -> Index {
        let mut started: Vec<Started> = Vec::new();
        for (segment, first) in self.segments.iter().zip(firsts).take(walked.at + 1) {
            if let Some(first_frame) = *first {
                started.push(Started { segment: segment.clone(), first_frame });
            }
        }
        if started.is_empty() {
            started.push(Started { segment: self.segments[walked.at].clone(), first_frame: 1 });
        }
        let ticket = Ticket(walked.last.next_ticket - 1);
        Index::new(self.id, self.dir.to_path_buf(), started, walked.last.frame, ticket)
    }

    fn has_whole_reserve(&self, options: &Options) -> Result<bool, FileError> {
        let path = self.dir.join(RESERVE);
        let file = self.disk.open(&path).map_err(failed("open", &path))?;
        let bytes = file.bytes().map_err(failed("measure", &path))?;
        if bytes == options.reserve_bytes {
            return Ok(true);
        }
        self.disk.remove(&path).map_err(failed("remove", &path))?;
        Ok(false)
    }
}

/// Opens a history in a folder; a torn last append is cut, and told.
pub(crate) fn open_history(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    index: &Arc<Index>,
    file_bytes_max: u64,
) -> Result<(History, Option<TornTail>), OpenError> {
    History::open(disk.clone(), dir, index.clone(), file_bytes_max).map_err(|error| match error {
        HistoryOpenError::File(error) => OpenError::File(error),
        HistoryOpenError::Corrupt(corruption) => OpenError::Corrupt(corruption),
        HistoryOpenError::Newer(file, version) => OpenError::Newer { file, version },
    })
}

/// A history reaches as far as a checkpoint has counted on, and no further than the journal.
pub(crate) fn check_covered(
    history: &History,
    index: &Index,
    dir: &Path,
    needs: Option<Position>,
) -> Result<(), Corruption> {
    let (covered, end) = (history.covered_up_to(), index.durable_end());
    let frame = covered.frame;
    if covered > end {
        let what = format!("the history covers up to {covered}, the journal ends at {end}");
        return Err(Corruption::new(dir, 0, frame, what));
    }
    match needs {
        Some(needs) if covered < needs => {
            let what = format!("the history covers up to {covered}, and the checkpoint counted on {needs}");
            Err(Corruption::new(dir, 0, frame, what))
        }
        _ => Ok(()),
    }
}
