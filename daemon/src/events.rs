//! The sequence of events: `history/` for what is old, memory for what happened since the last checkpoint.
//!
//! Events are a fold over the journal, so they are the same after a restart, at the same positions. A position is (frame,
//! index of the event in the frame). News come in the order of the journal, but a frame bit by bit; an event is shown only
//! once everything below its frame's end was told ([`EventLog::settle`]), so no reader that goes on after it can miss one. At a checkpoint the settled events go to `history/`, and only then may the journal's segments go: so
//! memory holds the events of one checkpoint's span.
//!
//! Nothing here knows gRPC: `api/events` makes public messages of this.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use millrace_journal::{History, HistoryError, HistoryReader, Position, ReadError};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::happened::{Happened, Happening};

/// Bytes of one append to the history: well below what it takes at most, so that a frame's events always fit.
const APPEND_BYTES: usize = 1 << 20;
const LOCK: &str = "nothing panics while the events are locked";

/// An event and where it stands.
pub type Placed = (Position, Arc<Happening>);

/// Where the durable steps end.
pub type End = Box<dyn Fn() -> Position + Send + Sync>;

/// The events of the node.
pub struct EventLog {
    history: OnceLock<Arc<History>>,
    inner: Mutex<Inner>,
    settled: watch::Sender<Position>,
    end: OnceLock<End>,
    /// Where the journal ended when the log was put on it: what was written before this start.
    begun: OnceLock<Position>,
    work: Mutex<Work>,
    arrived: Condvar,
}

struct Inner {
    /// By the step, in the order within it.
    unsettled: BTreeMap<Place, (u64, Vec<Happened>)>,
    /// What is settled and not in the history.
    tail: VecDeque<Placed>,
    /// Everything below was told.
    settled: Position,
    /// The highest step of which anything was told.
    newest: Position,
}

#[derive(Default)]
struct Work {
    is_due: bool,
    is_closed: bool,
}

/// A position, as it is stored.
type Place = (u64, u32);

/// Why events cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum EventsError {
    /// They are no longer kept.
    #[error("events from {from} are no longer kept: the oldest is {oldest}")]
    Gone {
        /// Asked for.
        from: Position,
        /// The lowest position that can be read.
        oldest: Position,
    },
    /// The history cannot be read.
    #[error(transparent)]
    Read(ReadError),
    /// What was read is none of ours.
    #[error("the event at {at} does not decode: {reason}")]
    Malformed {
        /// Where.
        at: Position,
        /// Why.
        reason: String,
    },
}

/// What is not in the history when a checkpoint is made.
#[derive(Serialize, Deserialize)]
pub(crate) struct EventsSection {
    unsettled: Vec<(Place, u64, Vec<Happened>)>,
    tail: Vec<(Place, Happening)>,
    settled: Place,
}

impl EventLog {
    /// An empty log, without its history.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let start = Position::START;
        let inner = Inner { unsettled: BTreeMap::new(), tail: VecDeque::new(), settled: start, newest: start };
        Arc::new(Self {
            history: OnceLock::new(),
            inner: Mutex::new(inner),
            settled: watch::channel(start).0,
            end: OnceLock::new(),
            begun: OnceLock::new(),
            work: Mutex::default(),
            arrived: Condvar::new(),
        })
    }

    /// Puts the log on top of its history, once everything was read back: what the history has already is left out.
    pub(crate) fn attach(&self, history: Arc<History>) {
        let covered = history.covered_up_to();
        // The first one stays: there is one journal.
        let _second = self.history.set(history);
        let mut inner = self.lock();
        inner.unsettled = inner.unsettled.split_off(&(covered.frame, covered.index));
        inner.tail.retain(|(at, _)| *at >= covered);
        inner.settled = inner.settled.max(covered);
        inner.newest = inner.newest.max(covered);
        let settled = inner.settled;
        drop(inner);
        self.settled.send_replace(settled);
    }

    /// Everything below is in the history.
    fn covered(&self) -> Position {
        self.history.get().map_or(Position::START, |history| history.covered_up_to())
    }

    /// Says where the journal's end is; without it the end is what was told. To be called before anything new is written.
    pub(crate) fn follow(&self, end: End) {
        // The first one stays: there is one journal.
        let _second = self.begun.set(end());
        let _second = self.end.set(end);
    }

    /// A position above everything that was written before this start.
    pub(crate) fn begun(&self) -> Position {
        self.begun.get().copied().unwrap_or_else(|| self.end())
    }

    // --- the fold ---

    /// Something happened at a step.
    pub(crate) fn told(&self, step: Position, time_ms: u64, what: Vec<Happened>) {
        let mut inner = self.lock();
        inner.newest = inner.newest.max(step);
        if step >= inner.settled && !what.is_empty() {
            inner.unsettled.entry((step.frame, step.index)).or_insert_with(|| (time_ms, Vec::new())).1.extend(what);
        }
        // Below it the history has what happened: an interrupted checkpoint.
        drop(inner);
        self.nudge();
    }

    /// Everything below the beginning of this position's frame was told.
    pub(crate) fn settle(&self, up_to: Position) {
        let mut inner = self.lock();
        let up_to = Position::start_of(up_to.frame);
        if up_to <= inner.settled {
            return;
        }
        let rest = inner.unsettled.split_off(&(up_to.frame, 0));
        let settled = std::mem::replace(&mut inner.unsettled, rest);
        let mut next = Position::start_of(0);
        for ((frame, _), (time_ms, what)) in settled {
            if frame != next.frame {
                next = Position::start_of(frame);
            }
            for what in what {
                inner.tail.push_back((next, Arc::new(Happening { time_ms, what })));
                next = next.after();
            }
        }
        inner.settled = up_to;
        drop(inner);
        self.settled.send_replace(up_to);
    }

    /// What is not in the history below `up_to`, for a checkpoint. To be taken together with the state of the fold.
    pub(crate) fn section(&self, up_to: Position) -> EventsSection {
        self.settle(up_to);
        let inner = self.lock();
        let tail = inner.tail.iter().filter(|(position, _)| *position >= up_to);
        EventsSection {
            unsettled: inner.unsettled.iter().map(|(place, (time, what))| (*place, *time, what.clone())).collect(),
            tail: tail.map(|(at, happening)| ((at.frame, at.index), (**happening).clone())).collect(),
            settled: (inner.settled.frame, inner.settled.index),
        }
    }

    /// Takes a section back.
    pub(crate) fn restore(&self, section: EventsSection) {
        let mut inner = self.lock();
        let at = |(frame, index): Place| Position { frame, index };
        inner.unsettled.extend(section.unsettled.into_iter().map(|(place, time, what)| (place, (time, what))));
        inner.tail.extend(section.tail.into_iter().map(|(place, happening)| (at(place), Arc::new(happening))));
        inner.settled = inner.settled.max(at(section.settled));
        inner.newest = inner.newest.max(inner.settled);
    }

    /// Puts everything settled below `up_to` into the history. Returns once it is durable; may take its time.
    pub(crate) fn to_history(&self, up_to: Position) -> Result<(), HistoryError> {
        let Some(history) = self.history.get() else { return Ok(()) };
        let up_to = Position::start_of(up_to.frame);
        loop {
            let (covers, batch) = self.batch_for_history(up_to);
            let bytes: Vec<(Position, Vec<u8>)> =
                batch.iter().map(|(at, happening)| (*at, happening.encode())).collect();
            let items: Vec<(Position, &[u8])> = bytes.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
            if covers <= history.covered_up_to() && items.is_empty() {
                return Ok(());
            }
            history.append(covers, &items)?;
            let mut inner = self.lock();
            while inner.tail.front().is_some_and(|(at, _)| *at < covers) {
                inner.tail.pop_front();
            }
            drop(inner);
            if covers >= up_to {
                return Ok(());
            }
        }
    }

    /// Whole frames, up to a size.
    fn batch_for_history(&self, up_to: Position) -> (Position, Vec<Placed>) {
        let inner = self.lock();
        let mut batch: Vec<Placed> = Vec::new();
        let mut bytes = 0;
        for (at, happening) in inner.tail.iter().take_while(|(at, _)| *at < up_to) {
            if bytes > APPEND_BYTES && batch.last().is_some_and(|(last, _)| last.frame != at.frame) {
                return (Position::start_of(at.frame), batch);
            }
            bytes += weight(&happening.what);
            batch.push((*at, Arc::clone(happening)));
        }
        (up_to, batch)
    }

    // --- reading ---

    /// Events from a position on. Absent: from now on.
    ///
    /// # Errors
    /// [`EventsError::Gone`] if they are no longer kept.
    pub fn subscribe(self: &Arc<Self>, from: Option<Position>) -> Result<Subscription, EventsError> {
        let next = from.map_or_else(|| self.settled(), |from| from.max(Position::START));
        let oldest = self.oldest();
        if next < oldest {
            return Err(EventsError::Gone { from: next, oldest });
        }
        Ok(Subscription { log: Arc::clone(self), next, settled: self.settled.subscribe() })
    }

    /// The lowest position that can be read.
    #[must_use]
    pub fn oldest(&self) -> Position {
        self.history.get().map_or(Position::START, |history| history.oldest())
    }

    /// Everything below was told.
    #[must_use]
    pub fn settled(&self) -> Position {
        self.lock().settled
    }

    /// A position above everything that anybody can have been told of so far.
    #[must_use]
    pub fn end(&self) -> Position {
        self.nudge();
        let told = Position::start_of(self.lock().newest.frame + 1);
        self.end.get().map_or(told, |end| end().max(told))
    }

    /// Waits until everything below a position was told; false if that takes longer than `patience`.
    pub async fn wait_settled(&self, up_to: Position, patience: Duration) -> bool {
        self.nudge();
        let mut settled = self.settled.subscribe();
        let waiting = settled.wait_for(|settled| *settled >= up_to);
        matches!(tokio::time::timeout(patience, waiting).await, Ok(Ok(_)))
    }

    // --- the thread that settles ---

    /// There is something to settle.
    pub(crate) fn nudge(&self) {
        let mut work = self.work.lock().expect(LOCK);
        if !work.is_due {
            work.is_due = true;
            self.arrived.notify_all();
        }
    }

    /// Nobody needs to settle anything any more.
    pub(crate) fn close(&self) {
        self.work.lock().expect(LOCK).is_closed = true;
        self.arrived.notify_all();
        self.settled.send_modify(|_| {});
    }

    /// Whether that was said.
    pub(crate) fn is_closed(&self) -> bool {
        self.work.lock().expect(LOCK).is_closed
    }

    /// Says when more is settled.
    pub(crate) fn watch_settled(&self) -> watch::Receiver<Position> {
        self.settled.subscribe()
    }

    /// Waits until there is something to settle; false if there never will be.
    pub(crate) fn wait_for_work(&self) -> bool {
        let mut work = self.work.lock().expect(LOCK);
        while !work.is_due && !work.is_closed {
            work = self.arrived.wait(work).expect(LOCK);
        }
        work.is_due = false;
        !work.is_closed
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().expect(LOCK)
    }
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventLog").field("settled", &self.settled()).finish_non_exhaustive()
    }
}

/// About what it takes in the history.
fn weight(what: &Happened) -> usize {
    200 + match what {
        Happened::PaymentStarted(started) => started.bolt11.len(),
        Happened::InvoiceCreated(created) | Happened::HoldInvoiceCreated(created) => created.bolt11.len(),
        Happened::InvoiceHeld { parts, .. } | Happened::InvoicePaidInParts { parts, .. } => parts.len() * 40,
        Happened::ChannelClosing { reason, .. } | Happened::PeerDisconnected { reason, .. } => reason.len(),
        Happened::AttemptFailed { failure, .. } | Happened::PaymentFailed { failure, .. } => failure.message.len(),
        Happened::AttemptRouted { route, .. } => route.hops.len() * 50,
        Happened::AttemptHeld { held_ms, .. } => held_ms.len() * 3,
        // Its terms, and an entry for each output.
        Happened::ChannelClosed { last, .. } => {
            700 + last.last.ending.as_ref().map_or(0, |end| end.outputs.len() * 120)
        }
        Happened::ChannelOpening(_)
        | Happened::ChannelReady { .. }
        | Happened::AttemptBegun { .. }
        | Happened::PaymentSucceeded { .. }
        | Happened::InvoicePaid { .. }
        | Happened::WalletTransaction(_)
        | Happened::PeerConnected { .. }
        | Happened::InvoiceCancelled { .. }
        | Happened::KeysendReceived { .. }
        | Happened::Forwarded(_) => 0,
    }
}

/// A place in the events to read on from.
pub struct Subscription {
    log: Arc<EventLog>,
    next: Position,
    settled: watch::Receiver<Position>,
}

impl Subscription {
    /// The next events, at most `max` and at least one, or none if there are none yet. Reads files: not for a task that
    /// must not wait.
    ///
    /// # Errors
    /// [`EventsError`].
    pub fn next_batch(&mut self, max: usize) -> Result<Vec<Placed>, EventsError> {
        loop {
            let covered = self.log.covered();
            if self.next >= covered
                && let Some(batch) = self.take_from_tail(max)
            {
                return Ok(batch);
            }
            let batch = self.take_from_history(covered, max)?;
            if !batch.is_empty() {
                return Ok(batch);
            }
        }
    }

    /// The position of what comes next.
    #[must_use]
    pub const fn next(&self) -> Position {
        self.next
    }

    /// Waits until there may be more. False if there never will be.
    pub async fn changed(&mut self) -> bool {
        loop {
            if *self.settled.borrow_and_update() > self.next {
                return true;
            }
            if self.settled.changed().await.is_err() {
                return false;
            }
        }
    }

    /// None if what is next has moved to the history meanwhile.
    fn take_from_tail(&mut self, max: usize) -> Option<Vec<Placed>> {
        let inner = self.log.lock();
        if self.next < self.log.covered() {
            return None;
        }
        let start = inner.tail.partition_point(|(at, _)| *at < self.next);
        let batch: Vec<Placed> = inner.tail.range(start..).take(max).cloned().collect();
        self.next = match batch.last() {
            Some((last, _)) if start + batch.len() < inner.tail.len() => last.after(),
            Some(_) | None => self.next.max(inner.settled),
        };
        Some(batch)
    }

    fn take_from_history(&mut self, covered: Position, max: usize) -> Result<Vec<Placed>, EventsError> {
        let mut batch = Vec::new();
        let Some(history) = self.log.history.get() else { return Ok(batch) };
        let mut reader: HistoryReader = history.reader(self.next).map_err(read_error)?;
        while batch.len() < max {
            match reader.next_item().map_err(read_error)? {
                Some((at, bytes)) => {
                    let happening = Happening::decode(&bytes);
                    let happening = happening.map_err(|reason| EventsError::Malformed { at, reason })?;
                    batch.push((at, Arc::new(happening)));
                    self.next = at.after();
                }
                None => {
                    self.next = self.next.max(covered);
                    break;
                }
            }
        }
        Ok(batch)
    }
}

fn read_error(error: ReadError) -> EventsError {
    match error {
        ReadError::Gone { from, oldest } => EventsError::Gone { from, oldest },
        other => EventsError::Read(other),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_journal::{Journal, Options};
    use millrace_wire::{Msat, PaymentHash, Preimage};

    use super::*;
    use crate::happened::PaymentId;

    fn paid(n: u8) -> Happened {
        Happened::PaymentSucceeded {
            id: PaymentId([n; 32]),
            payment_hash: PaymentHash([n; 32]),
            preimage: Preimage::new([n; 32]),
            amount: Msat(u64::from(n)),
            fee: Msat(0),
        }
    }

    fn at(frame: u64, index: u32) -> Position {
        Position { frame, index }
    }

    /// A journal with so many frames of one step each.
    fn journal(dir: &std::path::Path, frames: u64) -> Journal {
        let options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, ..Options::default() };
        let (journal, _) = Journal::open(dir, options).unwrap();
        while journal.durable_end().frame <= frames {
            journal.submit_and_wait(vec![1]).unwrap();
        }
        journal
    }

    fn log_on(journal: &Journal) -> Arc<EventLog> {
        let log = EventLog::new();
        log.attach(Arc::clone(journal.history()));
        log
    }

    fn read_all(log: &Arc<EventLog>, from: Position) -> Vec<(Position, u8)> {
        let mut subscription = log.subscribe(Some(from)).unwrap();
        let mut all = Vec::new();
        loop {
            let batch = subscription.next_batch(2).unwrap();
            if batch.is_empty() {
                return all;
            }
            for (position, happening) in batch {
                let Happened::PaymentSucceeded { amount, .. } = &happening.what else { panic!() };
                all.push((position, amount.0 as u8));
            }
        }
    }

    #[test]
    fn events_are_numbered_within_their_frame_whatever_the_order_in_which_they_were_told() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path(), 9);
        let log = log_on(&journal);
        log.told(at(2, 7), 5, vec![paid(3), paid(4)]);
        log.told(at(3, 0), 5, vec![paid(5)]);
        log.told(at(2, 1), 5, vec![paid(2)]);
        log.told(at(1, 9), 5, vec![paid(1)]);
        assert_eq!(read_all(&log, at(1, 0)), [], "nothing is shown before everything below it was told");
        log.settle(at(3, 0));
        assert_eq!(read_all(&log, at(0, 0)), [(at(1, 0), 1), (at(2, 0), 2), (at(2, 1), 3), (at(2, 2), 4)]);
        log.settle(at(4, 0));
        assert_eq!(read_all(&log, at(2, 2)), [(at(2, 2), 4), (at(3, 0), 5)]);
    }

    #[test]
    fn history_and_memory_are_one_sequence_and_a_restart_shows_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path(), 9);
        let log = log_on(&journal);
        for frame in 1..=8 {
            log.told(at(frame, 0), frame, vec![paid(frame as u8), paid(100 + frame as u8)]);
        }
        log.settle(at(9, 0));
        let before = read_all(&log, at(1, 0));
        assert_eq!(before.len(), 16);
        let section = log.section(at(5, 0));
        log.to_history(at(5, 0)).unwrap();
        assert_eq!(read_all(&log, at(1, 0)), before);
        assert_eq!(log.lock().tail.len(), 8);

        let restarted = EventLog::new();
        restarted.restore(section);
        // What the history has is told in vain.
        restarted.told(at(3, 0), 3, vec![paid(3)]);
        restarted.attach(Arc::clone(journal.history()));
        assert_eq!(read_all(&restarted, at(1, 0)), before);
        restarted.to_history(at(9, 0)).unwrap();
        assert_eq!(read_all(&restarted, at(1, 0)), before);
        assert!(restarted.lock().tail.is_empty());
    }

    #[test]
    fn a_crash_between_history_and_checkpoint_repeats_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path(), 9);
        let log = log_on(&journal);
        for frame in 1..=3 {
            log.told(at(frame, 0), frame, vec![paid(frame as u8)]);
        }
        let old_section = log.section(at(3, 0));
        for frame in 4..=6 {
            log.told(at(frame, 0), frame, vec![paid(frame as u8)]);
        }
        log.settle(at(7, 0));
        log.to_history(at(6, 0)).unwrap();
        let all = read_all(&log, at(1, 0));
        let restarted = EventLog::new();
        restarted.restore(old_section);
        // Replayed from the old checkpoint on.
        for frame in 4..=6 {
            restarted.told(at(frame, 0), frame, vec![paid(frame as u8)]);
        }
        restarted.attach(Arc::clone(journal.history()));
        restarted.settle(at(7, 0));
        assert_eq!(read_all(&restarted, at(1, 0)), all);
        assert_eq!(all.len(), 6);
    }

    #[tokio::test]
    async fn a_subscriber_is_woken_and_one_too_far_back_is_told_the_oldest() {
        let dir = tempfile::tempdir().unwrap();
        let journal = journal(dir.path(), 3);
        let log = log_on(&journal);
        let mut live = log.subscribe(None).unwrap();
        let other = Arc::clone(&log);
        let waiting = tokio::spawn(async move {
            assert!(live.changed().await);
            live.next_batch(9).unwrap().len()
        });
        other.told(at(2, 0), 1, vec![paid(1)]);
        other.settle(at(3, 0));
        assert_eq!(waiting.await.unwrap(), 1);
        assert!(log.subscribe(Some(at(0, 0))).is_ok());
        assert!(log.wait_settled(at(3, 0), Duration::from_millis(10)).await);
        assert!(!log.wait_settled(at(4, 0), Duration::from_millis(10)).await);
    }

    #[test]
    fn what_a_record_of_version_1_says_stays_readable() {
        let happening = Happening { time_ms: 7, what: paid(9) };
        let bytes = happening.encode();
        let nines = "09".repeat(32);
        assert_eq!(hex::encode(&bytes), format!("010707{nines}{nines}{nines}0900"));
        assert_eq!(Happening::decode(&bytes).unwrap(), happening);
        assert!(Happening::decode(&[2]).is_err() && Happening::decode(&[]).is_err());
        for cut in 1..bytes.len() {
            assert!(Happening::decode(&bytes[..cut]).is_err());
        }
    }

    /// One of each variant, written down by the first build: whoever changes an encoding breaks this.
    #[test]
    fn every_variant_of_version_1_stays_what_it_was() {
        for (what, bytes) in super::samples::all() {
            let happening = Happening { time_ms: 7, what };
            assert_eq!(hex::encode(happening.encode()), bytes, "{happening:?}");
            assert_eq!(Happening::decode(&hex::decode(bytes).unwrap()).unwrap(), happening);
        }
    }
}

#[cfg(test)]
mod samples;
