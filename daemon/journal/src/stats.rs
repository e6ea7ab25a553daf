//! What the journal has done since it was opened, for metrics and benchmarks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts since the journal was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Flushes of frames: one `fdatasync` each.
    pub flushes: u64,
    /// Frames written.
    pub frames: u64,
    /// Bytes of frames, heads and padding included.
    pub bytes: u64,
    /// Steps in them.
    pub steps: u64,
    /// The longest flush, write and sync, in microseconds.
    pub flush_us_max: u64,
    /// All flushes together, in microseconds.
    pub flush_us_total: u64,
    /// Every sync of any kind: flushes, segments made ahead, checkpoints, history, folders.
    pub syncs: u64,
}

#[derive(Default)]
pub(crate) struct Counters {
    frames: AtomicU64,
    bytes: AtomicU64,
    steps: AtomicU64,
    flush_us_max: AtomicU64,
    flush_us_total: AtomicU64,
}

impl Counters {
    pub(crate) fn count(&self, steps: u64, bytes: u64, took: Duration) {
        let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.frames.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.steps.fetch_add(steps, Ordering::Relaxed);
        self.flush_us_max.fetch_max(took_us, Ordering::Relaxed);
        self.flush_us_total.fetch_add(took_us, Ordering::Relaxed);
    }

    pub(crate) fn stats(&self, syncs: u64) -> Stats {
        let frames = self.frames.load(Ordering::Relaxed);
        Stats {
            flushes: frames,
            frames,
            bytes: self.bytes.load(Ordering::Relaxed),
            steps: self.steps.load(Ordering::Relaxed),
            flush_us_max: self.flush_us_max.load(Ordering::Relaxed),
            flush_us_total: self.flush_us_total.load(Ordering::Relaxed),
            syncs,
        }
    }
}
