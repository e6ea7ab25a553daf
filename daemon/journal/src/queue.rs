//! The steps that wait for their flush, and who is called when it has returned.
//!
//! Submitting never waits: an actor that waited for the journal could hold up the very thread that
//! must empty an outbox. So the queue takes everything, and `queued_bytes` tells the edges (peer
//! reads, API calls) to stop taking new work above [`QUEUED_BYTES_BUSY`]. There is no cycle: the writer
//! waits for the disk only, and nobody whom the writer or an actor needs waits for the queue.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use crate::frame::STEP_HEAD_BYTES;
use crate::position::{Flush, Position, Ticket};

/// The most one flush takes: some milliseconds of disk, so that nobody waits much longer than that.
pub const FLUSH_BYTES_MAX: usize = 8 << 20;
/// Above this many bytes in the queue, callers take no new work. Four full flushes: the disk is behind, not busy.
pub const QUEUED_BYTES_BUSY: u64 = 32 << 20;

const LOCK: &str = "nothing panics while the queue is locked";

/// Somebody with steps in the journal.
pub trait Wake: Send + Sync {
    /// A flush with at least one step of this handle has returned.
    ///
    /// It is called once per flush, however many steps of it carried this handle, from the writer's
    /// own thread: it must not wait for anything, least of all for the journal. A panic aborts the process.
    fn durable(&self, flush: &Flush);
}

/// A handle: two steps with clones of one `Arc` share one call.
pub type WakeHandle = Arc<dyn Wake>;

/// Why a step was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// A step says what was done; an empty one says nothing.
    #[error("a step of 0 bytes")]
    Empty,
    /// A step must fit into one frame.
    #[error("a step of {bytes} bytes is above the {max} that fit into one frame")]
    TooLarge {
        /// Bytes of the step.
        bytes: usize,
        /// The most a step may have.
        max: usize,
    },
    /// The journal was closed, or is about to abort the process.
    #[error("the journal is closed")]
    Closed,
}

/// One step in the queue.
pub(crate) struct Waiting {
    pub(crate) bytes: Vec<u8>,
    pub(crate) wake: Option<WakeHandle>,
}

struct State {
    steps: VecDeque<Waiting>,
    next: Ticket,
    durable: Ticket,
    is_closing: bool,
    is_stopped: bool,
}

/// What the writer finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Steps; the first one takes so many bytes of a body.
    Steps(usize),
    /// Nothing came in time.
    Idle,
    /// Closed, and nothing is left.
    Closed,
}

/// The queue between all actors and the one writer.
pub(crate) struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
    flushed: Condvar,
    bytes: AtomicU64,
    step_bytes_max: usize,
}

impl Queue {
    pub(crate) fn new(next: Ticket, step_bytes_max: usize) -> Queue {
        Queue {
            state: Mutex::new(State {
                steps: VecDeque::new(),
                next,
                durable: Ticket(next.0 - 1),
                is_closing: false,
                is_stopped: false,
            }),
            arrived: Condvar::new(),
            flushed: Condvar::new(),
            bytes: AtomicU64::new(0),
            step_bytes_max: step_bytes_max.min(FLUSH_BYTES_MAX - STEP_HEAD_BYTES),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    /// Takes a step and gives its ticket.
    pub(crate) fn submit(&self, bytes: Vec<u8>, wake: Option<WakeHandle>) -> Result<Ticket, SubmitError> {
        self.check_step(&bytes)?;
        let length = bytes.len() as u64;
        let mut state = self.lock();
        if state.is_closing || state.is_stopped {
            return Err(SubmitError::Closed);
        }
        let ticket = state.next;
        state.next = Ticket(ticket.0 + 1);
        state.steps.push_back(Waiting { bytes, wake });
        let is_first = state.steps.len() == 1;
        self.bytes.fetch_add(length, Ordering::Relaxed);
        drop(state);
        if is_first {
            self.arrived.notify_one();
        }
        Ok(ticket)
    }

    fn check_step(&self, bytes: &[u8]) -> Result<(), SubmitError> {
        if bytes.is_empty() {
            return Err(SubmitError::Empty);
        }
        if bytes.len() > self.step_bytes_max {
            return Err(SubmitError::TooLarge { bytes: bytes.len(), max: self.step_bytes_max });
        }
        Ok(())
    }

    /// Bytes whose flush has not returned.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Waits for steps: for ever, or for a time.
    pub(crate) fn wait(&self, patience: Option<Duration>) -> Work {
        let mut state = self.lock();
        loop {
            if let Some(first) = state.steps.front() {
                return Work::Steps(first.bytes.len() + STEP_HEAD_BYTES);
            }
            if state.is_closing {
                return Work::Closed;
            }
            match patience {
                None => state = self.arrived.wait(state).expect(LOCK),
                Some(patience) => {
                    let (again, waited) = self.arrived.wait_timeout(state, patience).expect(LOCK);
                    state = again;
                    if waited.timed_out() && state.steps.is_empty() && !state.is_closing {
                        return Work::Idle;
                    }
                }
            }
        }
    }

    /// Moves all that waits into `out`, up to `room` bytes of body, and returns its first ticket.
    pub(crate) fn take(&self, room: usize, out: &mut Vec<Waiting>) -> Ticket {
        let mut room = room.min(FLUSH_BYTES_MAX);
        let mut state = self.lock();
        let first = Ticket(state.next.0 - state.steps.len() as u64);
        while let Some(step) = state.steps.front() {
            let Some(rest) = room.checked_sub(step.bytes.len() + STEP_HEAD_BYTES) else {
                break;
            };
            room = rest;
            out.extend(state.steps.pop_front());
        }
        first
    }

    /// Says that everything up to a ticket is durable, and that so many bytes of steps left the queue.
    pub(crate) fn finish(&self, up_to: Ticket, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.lock().durable = up_to;
        self.flushed.notify_all();
    }

    /// Waits until a ticket is durable.
    pub(crate) fn wait_durable(&self, ticket: Ticket) -> Result<(), SubmitError> {
        let mut state = self.lock();
        while state.durable < ticket {
            if state.is_stopped {
                return Err(SubmitError::Closed);
            }
            state = self.flushed.wait(state).expect(LOCK);
        }
        Ok(())
    }

    /// The last ticket given out.
    pub(crate) fn last_ticket(&self) -> Ticket {
        Ticket(self.lock().next.0 - 1)
    }

    /// Takes no more steps; what waits is still written.
    pub(crate) fn close(&self) {
        self.lock().is_closing = true;
        self.arrived.notify_one();
    }

    /// Says that the writer is gone.
    pub(crate) fn stop(&self) {
        self.lock().is_stopped = true;
        self.flushed.notify_all();
    }
}

/// Remembers the one flush it is called for: how a caller that waits learns its position.
#[derive(Default)]
pub(crate) struct Arrival(Mutex<Option<Flush>>);

impl Arrival {
    /// The position of a ticket whose flush has returned.
    pub(crate) fn position(&self, ticket: Ticket) -> Option<Position> {
        let flush = *self.0.lock().expect(LOCK);
        flush.and_then(|flush| flush.position(ticket))
    }
}

impl Wake for Arrival {
    fn durable(&self, flush: &Flush) {
        *self.0.lock().expect(LOCK) = Some(*flush);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn submit_empty_or_too_large() {
        let queue = Queue::new(Ticket(1), 10);
        assert_eq!(queue.submit(vec![], None), Err(SubmitError::Empty));
        let refused = Err(SubmitError::TooLarge { bytes: 11, max: 10 });
        assert_eq!(queue.submit(vec![0; 11], None), refused);
        assert_eq!(queue.submit(vec![0; 10], None), Ok(Ticket(1)));
        assert_eq!(queue.submit(vec![0; 1], None), Ok(Ticket(2)));
        assert_eq!(queue.bytes(), 11);
    }

    #[test]
    fn take_more_than_there_is_room_for() {
        let queue = Queue::new(Ticket(5), 100);
        for _ in 0..3 {
            queue.submit(vec![1; 6], None).unwrap();
        }
        let mut out = Vec::new();
        assert_eq!(queue.take(29, &mut out), Ticket(5));
        assert_eq!(out.len(), 2);
        out.clear();
        assert_eq!(queue.take(29, &mut out), Ticket(7));
        assert_eq!(out.len(), 1);
        assert_eq!(queue.wait(Some(Duration::from_millis(1))), Work::Idle);
    }

    #[test]
    fn close_with_steps_waiting() {
        let queue = Queue::new(Ticket(1), 100);
        queue.submit(vec![1], None).unwrap();
        queue.close();
        assert_eq!(queue.submit(vec![1], None), Err(SubmitError::Closed));
        assert_eq!(queue.wait(None), Work::Steps(5));
        queue.take(100, &mut Vec::new());
        assert_eq!(queue.wait(None), Work::Closed);
    }
}
