//! Stories on the simulated disk, and what must hold after each.

#![allow(clippy::unwrap_used)]

mod crash;
mod damage;
mod failure;
mod full;
mod live;
mod model;
mod samples;

use std::path::Path;
use std::sync::Arc;

use crate::disk::simulated::SimulatedDisk;
use crate::disk::{Disk, failed};
use crate::recovery::{self, Found};
use crate::*;

/// Where the journal is on every simulated disk.
fn dir() -> &'static Path {
    Path::new("/journal")
}

/// Segments of five pages for frames, so that stories cross them.
fn small() -> Options {
    Options { segment_bytes: 7 * 4096, reserve_bytes: 7 * 4096, history_file_bytes: 200 }
}

fn open(disk: &SimulatedDisk) -> Result<(Journal, Recovered), OpenError> {
    Journal::open_on(Arc::new(disk.clone()), dir(), small())
}

/// Recovery alone, without threads.
fn recover(disk: &SimulatedDisk) -> Result<Found, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    disk.create_dir(dir()).map_err(failed("create", dir()))?;
    recovery::recover(&disk, dir(), &small())
}

/// The step with a ticket: every step differs, in length too.
fn step(ticket: u64) -> Vec<u8> {
    const LENGTHS: [usize; 7] = [20, 3000, 9, 5000, 200, 9000, 4036];
    let length = LENGTHS[usize::try_from(ticket).unwrap() % LENGTHS.len()];
    let mut bytes = ticket.to_le_bytes().to_vec();
    bytes.resize(length, u8::try_from(ticket % 251).unwrap());
    bytes
}

/// A user of a journal that remembers what it was told.
struct Driver {
    journal: Journal,
    submitted: u64,
    acknowledged: u64,
    /// A durable ticket, and the position after it.
    mark: (u64, Position),
}

impl Driver {
    fn open(disk: &SimulatedDisk) -> Option<Driver> {
        open(disk).ok().map(|(journal, _)| Driver::new(journal))
    }

    fn new(journal: Journal) -> Driver {
        let durable = journal.durable_up_to().0;
        Driver { submitted: durable, acknowledged: durable, mark: (durable, journal.durable_end()), journal }
    }

    fn step(&mut self) -> Option<Position> {
        self.submitted += 1;
        let position = self.journal.submit_and_wait(step(self.submitted)).ok()?;
        self.acknowledged = self.submitted;
        self.mark = (self.acknowledged, position.after());
        Some(position)
    }

    fn submit(&mut self) -> Option<Ticket> {
        self.submitted += 1;
        let ticket = self.journal.submit(step(self.submitted), None).ok()?;
        assert_eq!(ticket, Ticket(self.submitted));
        Some(ticket)
    }

    fn barrier(&mut self) -> Option<()> {
        self.acknowledged = self.journal.flush_barrier().ok()?.0;
        Some(())
    }

    /// Moves every durable step's ticket into the history.
    fn archive(&mut self) -> Option<()> {
        let history = self.journal.history().clone();
        let mut reader = self.journal.reader(history.covered_up_to()).ok()?;
        let end = self.journal.durable_end();
        let mut items = Vec::new();
        while let Some(step) = reader.next_step().ok()? {
            if step.position < end {
                items.push((step.position, step.ticket.0.to_le_bytes()));
            }
        }
        let items: Vec<_> = items.iter().map(|(position, bytes)| (*position, bytes.as_slice())).collect();
        history.append(end, &items).ok()
    }

    /// A checkpoint at the mark, which may be below the end.
    fn checkpoint(&mut self) -> Option<()> {
        let (ticket, replay_from) = self.mark;
        let sections = vec![Section { name: b"tickets".to_vec(), bytes: ticket.to_le_bytes().to_vec() }];
        self.journal.write_checkpoint(&Checkpoint { replay_from, sections }).ok()
    }
}

/// What a story was told before its end.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    submitted: u64,
    acknowledged: u64,
}

/// Everything that can be read from a journal.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    checkpoint: Option<Checkpoint>,
    tail: Vec<DurableStep>,
    steps: Vec<DurableStep>,
    history: Vec<(Position, Vec<u8>)>,
}

fn read_all(found: Found) -> Result<Read, OpenError> {
    let index = found.index.clone();
    let tail = Tail::new(index.clone(), found.tail_from()).and_then(Iterator::collect);
    let steps = Reader::new(index.clone(), index.oldest()).and_then(steps_of);
    let history = Arc::new(found.history);
    Ok(Read {
        tail: tail.map_err(as_open_error)?,
        steps: steps.map_err(as_open_error)?,
        history: history.reader(history.oldest()).and_then(items_of).map_err(as_open_error)?,
        checkpoint: found.checkpoint,
    })
}

fn as_open_error(error: ReadError) -> OpenError {
    match error {
        ReadError::Corrupt(corruption) => OpenError::Corrupt(corruption),
        ReadError::File(error) => OpenError::File(error),
        ReadError::Gone { .. } | ReadError::Ahead { .. } => panic!("{error}"),
    }
}

fn steps_of(mut reader: Reader) -> Result<Vec<DurableStep>, ReadError> {
    let mut steps = Vec::new();
    while let Some(step) = reader.next_step()? {
        steps.push(step);
    }
    Ok(steps)
}

fn items_of(mut reader: HistoryReader) -> Result<Vec<(Position, Vec<u8>)>, ReadError> {
    let mut items = Vec::new();
    while let Some(item) = reader.next_item()? {
        items.push(item);
    }
    Ok(items)
}

/// Opens a journal after a crash and checks all it promises; returns the last ticket that is there.
fn check(disk: &SimulatedDisk, told: Told) -> u64 {
    let (journal, recovered) = open(disk).unwrap_or_else(|error| panic!("{told:?}: {error}"));
    let last = journal.durable_up_to().0;
    assert!(last >= told.acknowledged, "{last} lost of {told:?}");
    assert!(last <= told.submitted, "{last} made up, {told:?}");
    let covered = recovered
        .checkpoint
        .map_or(0, |checkpoint| u64::from_le_bytes(checkpoint.sections[0].bytes.clone().try_into().unwrap()));
    check_steps(recovered.tail.map(Result::unwrap), covered, last);

    let history = journal.history().clone();
    let mut archived = 0;
    for (_, bytes) in items_of(history.reader(history.oldest()).unwrap()).unwrap() {
        archived += 1;
        assert_eq!(bytes, u64::to_le_bytes(archived));
    }
    let rest = steps_of(journal.reader(history.covered_up_to()).unwrap()).unwrap();
    check_steps(rest.into_iter(), archived, last);
    last
}

fn check_steps(steps: impl Iterator<Item = DurableStep>, after: u64, last: u64) {
    let mut ticket = after;
    let mut position = None;
    for found in steps {
        ticket += 1;
        assert_eq!(found.ticket, Ticket(ticket));
        assert!(found.bytes == step(ticket), "step {ticket} differs");
        assert!(position < Some(found.position));
        position = Some(found.position);
    }
    assert_eq!(ticket, last);
}

/// As [`check`], and what was recovered stays through a loss of power right afterwards, and writing goes on.
fn check_and_go_on(disk: &SimulatedDisk, told: Told) {
    let last = check(disk, told);
    let told = Told { submitted: last, acknowledged: last };
    let disk = disk.after_power_loss(|| false);
    check(&disk, told);
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..3 {
        driver.step().unwrap();
    }
    drop(driver);
    check(&disk, Told { submitted: last + 3, acknowledged: last + 3 });
}

/// Random numbers for which pages and names survive (xorshift).
fn coin(seed: u64) -> impl FnMut() -> bool {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state & 0x100 != 0
    }
}
