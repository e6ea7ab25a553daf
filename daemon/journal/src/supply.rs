//! Room on disk ahead of need: the next segment, and the reserve.
//!
//! A thread keeps one segment ready, made and zeroed before the writer needs it, and one reserve of
//! zeros. When a segment cannot be made, the reserve becomes it, and callers are told to refuse new
//! adds, opens and sends; removals, closes and chain work go on. Once the reserve is being written and
//! half of it is used, they are told to take in nothing at all from peers, who would otherwise decide how long the
//! rest lasts: it is for chain work. When the reserve is gone too and the
//! writer needs room, the process aborts: nothing is dropped in silence. Attempts go on with
//! backoff; there is enough space again only once a segment is ready *and* the reserve is back.
//!
//! The writer waits here only when it has outrun the thread, for the one attempt under way; the
//! thread waits for nothing but the disk and its own clock. This module decides nothing about frames.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::disk::{Disk, FileError};
use crate::segment::{MakeError, Segment, make_zeros, unfinished};

/// The first pause after a failed attempt: space often comes back at once, when a checkpoint removes segments.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(100);
/// The longest pause: an operator who has made room does not wait long for the node to see it.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(10);
/// The reserve's file.
pub(crate) const RESERVE: &str = "reserve";

const LOCK: &str = "nothing panics while the supply is locked";

/// Whether there is room for new work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Space {
    /// A segment is ready, or being made without trouble, and the reserve is there.
    Enough,
    /// The next segment or the reserve could not be had: refuse whatever adds obligations.
    Low {
        /// The last attempt's error.
        reason: String,
    },
    /// As [`Space::Low`], and the last segment that could be had, the reserve, is more than half full: take in nothing.
    Last {
        /// The last attempt's error.
        reason: String,
    },
}

impl Space {
    /// Why nothing new may be taken on, if so.
    #[must_use]
    pub fn shortage(self) -> Option<String> {
        match self {
            Self::Enough => None,
            Self::Low { reason } | Self::Last { reason } => Some(reason),
        }
    }
}

struct State {
    ready: VecDeque<Segment>,
    has_reserve: bool,
    next_number: u64,
    low: Option<String>,
    failures: u64,
    /// The segment that is being written is more than half full.
    is_half_written: bool,
    is_hurried: bool,
    is_stopping: bool,
}

enum Job {
    Segment(u64),
    Reserve,
}

/// Sizes of what is made.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) segment_bytes: u64,
    pub(crate) reserve_bytes: u64,
}

/// What recovery found.
pub(crate) struct Stock {
    pub(crate) ready: VecDeque<Segment>,
    pub(crate) has_reserve: bool,
    pub(crate) next_number: u64,
}

/// Makes segments ahead of the writer.
pub(crate) struct Supply {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    id: u64,
    sizes: Sizes,
    state: Mutex<State>,
    changed: Condvar,
}

impl Supply {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: &Path, id: u64, sizes: Sizes, stock: Stock) -> Supply {
        Supply {
            disk,
            dir: dir.to_path_buf(),
            id,
            sizes,
            state: Mutex::new(State {
                ready: stock.ready,
                has_reserve: stock.has_reserve,
                next_number: stock.next_number,
                low: None,
                failures: 0,
                is_half_written: false,
                is_hurried: false,
                is_stopping: false,
            }),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    /// Whether there is room for new work.
    pub(crate) fn space(&self) -> Space {
        let state = self.lock();
        match state.low.clone() {
            None => Space::Enough,
            Some(reason) if state.is_half_written && state.is_at_the_last() => Space::Last { reason },
            Some(reason) => Space::Low { reason },
        }
    }

    /// The writer says whether the segment it writes is more than half full.
    pub(crate) fn note_half_written(&self, is_half_written: bool) {
        self.lock().is_half_written = is_half_written;
    }

    /// The next segment, for the writer; fails with the reason when neither a new one nor the reserve is left.
    pub(crate) fn take(&self) -> Result<Segment, String> {
        let mut state = self.lock();
        let failures = state.failures;
        loop {
            if let Some(segment) = state.ready.pop_front() {
                self.changed.notify_all();
                return Ok(segment);
            }
            if state.is_stopping || (state.failures > failures && !state.has_reserve) {
                let reason = state.low.clone();
                return Err(reason.unwrap_or_else(|| "the journal is closing".into()));
            }
            state.is_hurried = true;
            self.changed.notify_all();
            state = self.changed.wait(state).expect(LOCK);
        }
    }

    /// Tries again at once: room was made.
    pub(crate) fn hurry(&self) {
        self.lock().is_hurried = true;
        self.changed.notify_all();
    }

    /// Ends the thread.
    pub(crate) fn stop(&self) {
        self.lock().is_stopping = true;
        self.changed.notify_all();
    }

    /// Makes what is missing, once; for the start, before there is a thread.
    pub(crate) fn fill(&self) -> Result<(), FileError> {
        while let Some(job) = self.next_job() {
            if !self.attempt(job)? {
                break;
            }
        }
        Ok(())
    }

    /// The thread: makes what is missing until it is stopped.
    pub(crate) fn run(&self) {
        let mut pause = None;
        while let Some(job) = self.wait_for_job(pause) {
            match self.attempt(job) {
                Ok(true) => pause = None,
                Ok(false) => pause = Some(longer(pause)),
                Err(error) => {
                    self.disk.abort(&error.to_string());
                    self.stop();
                }
            }
        }
    }

    fn next_job(&self) -> Option<Job> {
        self.lock().job()
    }

    fn wait_for_job(&self, mut pause: Option<Duration>) -> Option<Job> {
        let mut state = self.lock();
        loop {
            if state.is_stopping {
                return None;
            }
            let may_try = pause.is_none() || state.is_hurried;
            match state.job() {
                Some(job) if may_try => {
                    state.is_hurried = false;
                    return Some(job);
                }
                Some(_) => {
                    let patience = pause.unwrap_or_default();
                    let (again, waited) = self.changed.wait_timeout(state, patience).expect(LOCK);
                    state = again;
                    if waited.timed_out() {
                        pause = None;
                    }
                }
                None => {
                    state.is_hurried = false;
                    state = self.changed.wait(state).expect(LOCK);
                }
            }
        }
    }

    /// Does one job. `false`: there is no room; an error: a sync failed.
    fn attempt(&self, job: Job) -> Result<bool, FileError> {
        let made = match job {
            Job::Segment(number) => {
                Segment::make(&*self.disk, &self.dir, self.id, number, self.sizes.segment_bytes).map(Some)
            }
            Job::Reserve => self.make_reserve().map(|()| None),
        };
        match made {
            Ok(Some(segment)) => self.lock().add(segment),
            Ok(None) => self.lock().has_reserve = true,
            Err(MakeError::Sync(error)) => return Err(error),
            Err(MakeError::Refused(error)) => {
                self.give_up_reserve(&error)?;
                return Ok(false);
            }
        }
        self.lock().settle();
        self.changed.notify_all();
        Ok(true)
    }

    fn make_reserve(&self) -> Result<(), MakeError> {
        let path = self.dir.join(RESERVE);
        let zeros = unfinished(&path);
        make_zeros(&*self.disk, &zeros, self.sizes.reserve_bytes)?;
        let renamed = self.disk.rename(&zeros, &path);
        renamed.map_err(crate::disk::failed("rename", &zeros)).map_err(MakeError::Refused)?;
        let synced = self.disk.sync_dir(&self.dir);
        synced.map_err(crate::disk::failed("sync", &self.dir)).map_err(MakeError::Sync)
    }

    /// An attempt failed: without a segment ready, the reserve becomes the next one.
    fn give_up_reserve(&self, error: &FileError) -> Result<(), FileError> {
        let (needed, number) = {
            let mut state = self.lock();
            state.note_low(error);
            (state.ready.is_empty() && state.has_reserve, state.next_number)
        };
        if needed {
            let path = self.dir.join(RESERVE);
            match Segment::name_zeros(&*self.disk, &self.dir, self.id, number, &path) {
                Ok(segment) => {
                    let mut state = self.lock();
                    state.has_reserve = false;
                    state.add(segment);
                    tracing::warn!(segment = number, "the disk is full: the reserve is now the next segment");
                }
                Err(MakeError::Sync(error)) => return Err(error),
                Err(MakeError::Refused(error)) => {
                    let mut state = self.lock();
                    state.has_reserve = false;
                    state.note_low(&error);
                }
            }
        }
        self.lock().failures += 1;
        self.changed.notify_all();
        Ok(())
    }
}

impl State {
    fn job(&self) -> Option<Job> {
        if self.ready.is_empty() {
            Some(Job::Segment(self.next_number))
        } else if !self.has_reserve {
            Some(Job::Reserve)
        } else {
            None
        }
    }

    /// Nothing is left but the segment that is being written.
    fn is_at_the_last(&self) -> bool {
        self.ready.is_empty() && !self.has_reserve
    }

    fn add(&mut self, segment: Segment) {
        self.next_number = segment.number + 1;
        self.ready.push_back(segment);
    }

    fn note_low(&mut self, error: &FileError) {
        if self.low.is_none() {
            tracing::warn!(%error, "no room for the journal's next segment: new work must be refused");
        }
        self.low = Some(error.to_string());
    }

    fn settle(&mut self) {
        if self.job().is_none() && self.low.take().is_some() {
            tracing::info!("there is room for the journal again");
        }
    }
}

fn longer(pause: Option<Duration>) -> Duration {
    pause.map_or(RETRY_AFTER_MIN, |pause| (pause * 2).min(RETRY_AFTER_MAX))
}
