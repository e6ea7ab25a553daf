//! Which segment starts with which frame, and how far the journal is durable.
//!
//! The writer appends and publishes; readers and the checkpoint look up. It reads no files.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::position::{Position, Ticket};
use crate::segment::Segment;

const LOCK: &str = "nothing panics while the index is locked";

/// A segment that has frames, or is about to have its first.
#[derive(Clone)]
pub(crate) struct Started {
    pub(crate) segment: Segment,
    pub(crate) first_frame: u64,
}

/// The journal as its readers see it.
pub(crate) struct Index {
    pub(crate) id: u64,
    pub(crate) dir: PathBuf,
    started: Mutex<Vec<Started>>,
    durable_frame: AtomicU64,
    durable_ticket: AtomicU64,
}

impl Index {
    pub(crate) fn new(id: u64, dir: PathBuf, started: Vec<Started>, frame: u64, ticket: Ticket) -> Index {
        Index {
            id,
            dir,
            started: Mutex::new(started),
            durable_frame: AtomicU64::new(frame),
            durable_ticket: AtomicU64::new(ticket.0),
        }
    }

    /// The last frame whose flush has returned; 0 before the first.
    pub(crate) fn durable_frame(&self) -> u64 {
        self.durable_frame.load(Ordering::Acquire)
    }

    /// The last ticket whose flush has returned; 0 before the first.
    pub(crate) fn durable_ticket(&self) -> Ticket {
        Ticket(self.durable_ticket.load(Ordering::Acquire))
    }

    /// The position above every durable step.
    pub(crate) fn durable_end(&self) -> Position {
        Position::start_of(self.durable_frame() + 1)
    }

    /// Says that a flush has returned.
    pub(crate) fn publish(&self, frame: u64, ticket: Ticket) {
        self.durable_frame.store(frame, Ordering::Release);
        self.durable_ticket.store(ticket.0, Ordering::Release);
    }

    /// Says that the writer goes on in a new segment.
    pub(crate) fn start(&self, segment: Segment, first_frame: u64) {
        let mut started = self.started.lock().expect(LOCK);
        started.push(Started { segment, first_frame });
    }

    /// The segment that holds a frame, or would.
    pub(crate) fn find(&self, frame: u64) -> Option<Started> {
        let started = self.started.lock().expect(LOCK);
        let after = started.partition_point(|one| one.first_frame <= frame);
        Some(started[after.checked_sub(1)?].clone())
    }

    /// The lowest position that can still be read.
    pub(crate) fn oldest(&self) -> Position {
        let started = self.started.lock().expect(LOCK);
        Position::start_of(started.first().map_or(1, |one| one.first_frame))
    }

    /// Forgets every segment that lies wholly below a frame, and returns the lowest number that is kept.
    ///
    /// A segment is kept until a later one has a durable frame: else nothing would say which frame is next.
    pub(crate) fn forget_below(&self, frame: u64) -> u64 {
        let below = frame.min(self.durable_frame());
        let mut started = self.started.lock().expect(LOCK);
        let after = started.partition_point(|one| one.first_frame <= below);
        started.drain(..after.saturating_sub(1));
        started.first().map_or(0, |one| one.segment.number)
    }
}
