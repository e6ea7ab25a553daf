//! Group commit, handles and readers while the journal is being written.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;

#[derive(Default)]
struct Woken(Mutex<Vec<Flush>>);

impl Wake for Woken {
    fn durable(&self, flush: &Flush) {
        self.0.lock().unwrap().push(*flush);
    }
}

impl Woken {
    fn flushes(&self) -> Vec<Flush> {
        self.0.lock().unwrap().clone()
    }
}

fn roomy() -> (SimulatedDisk, Journal) {
    let disk = SimulatedDisk::default();
    let options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, ..small() };
    let (journal, _) = Journal::open_on(Arc::new(disk.clone()), dir(), options).unwrap();
    (disk, journal)
}

/// A journal whose first flush, of one step, is under way and does not return.
fn held(wake: Option<WakeHandle>) -> (SimulatedDisk, Journal) {
    let (disk, journal) = roomy();
    disk.hold_syncs(Some("segment"));
    journal.submit(vec![1], wake).unwrap();
    disk.wait_for_held_sync();
    (disk, journal)
}

#[test]
fn many_submit_while_one_flush_is_under_way() {
    let (disk, journal) = held(None);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let journal = &journal;
            scope.spawn(move || {
                for _ in 0..100 {
                    journal.submit(vec![thread; 50], None).unwrap();
                }
            });
        }
    });
    assert_eq!(journal.queued_bytes(), 1 + 800 * 50);
    assert_eq!(journal.durable_up_to(), Ticket(0));
    disk.hold_syncs(None);
    assert_eq!(journal.flush_barrier(), Ok(Ticket(801)));
    let stats = journal.stats();
    assert_eq!((stats.flushes, stats.frames, stats.steps), (2, 2, 801));
    assert_eq!(journal.queued_bytes(), 0);
}

#[test]
fn handles_are_called_once_per_flush_that_has_their_steps() {
    let (first, often, never) = (Arc::new(Woken::default()), Arc::new(Woken::default()), Arc::new(Woken::default()));
    let (disk, journal) = held(Some(first.clone()));
    let mut tickets = Vec::new();
    for _ in 0..3 {
        tickets.push(journal.submit(vec![2], Some(often.clone())).unwrap());
        journal.submit(vec![3], None).unwrap();
    }
    assert!(first.flushes().is_empty());
    disk.hold_syncs(None);
    journal.flush_barrier().unwrap();
    journal.submit_and_wait(vec![4]).unwrap();
    assert_eq!((first.flushes().len(), often.flushes().len(), never.flushes().len()), (1, 1, 0));
    let flush = often.flushes()[0];
    assert_eq!((flush.first(), flush.up_to()), (Ticket(2), Ticket(7)));
    let positions: Vec<_> = tickets.iter().map(|ticket| flush.position(*ticket).unwrap()).collect();
    assert_eq!(positions, [0, 2, 4].map(|index| Position { frame: 2, index }));
    let mut reader = journal.reader(positions[1]).unwrap();
    let found = reader.next_step().unwrap().unwrap();
    assert_eq!((found.ticket, found.position, found.bytes), (tickets[1], positions[1], vec![2]));
}

#[test]
fn reader_before_the_flush_has_returned() {
    let (disk, journal) = held(None);
    let mut reader = journal.reader(Position::START).unwrap();
    assert_eq!(reader.next_step().unwrap(), None);
    assert_eq!(journal.durable_end(), Position::START);
    assert!(matches!(journal.reader(Position { frame: 1, index: 1 }), Err(ReadError::Ahead { .. })));
    disk.hold_syncs(None);
    journal.flush_barrier().unwrap();
    assert_eq!(reader.next_step().unwrap().unwrap().bytes, [1]);
    assert_eq!(reader.next_step().unwrap(), None);
}

#[test]
fn readers_follow_the_writer_across_segments() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    let is_done = AtomicBool::new(false);
    let (journal, done) = (&driver.journal, &is_done);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| follow(journal, done))).collect();
        for ticket in 1..=600 {
            journal.submit(step(ticket), None).unwrap();
            if ticket % 5 == 0 {
                journal.flush_barrier().unwrap();
            }
        }
        journal.flush_barrier().unwrap();
        is_done.store(true, Ordering::Release);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), 600);
        }
    });
    driver.barrier().unwrap();
    assert!(disk.paths().len() > 50, "it crossed many segments");
}

/// Reads until the end of the writing; every step must have been durable before it was seen.
fn follow(journal: &Journal, is_done: &AtomicBool) -> u64 {
    let mut reader = journal.reader(Position::START).unwrap();
    let mut ticket = 0;
    loop {
        let is_last_round = is_done.load(Ordering::Acquire);
        while let Some(found) = reader.next_step().unwrap() {
            ticket += 1;
            assert_eq!(found.ticket, Ticket(ticket));
            assert!(found.position < journal.durable_end());
            assert!(found.bytes == step(ticket));
        }
        if is_last_round {
            return ticket;
        }
        std::thread::yield_now();
    }
}

#[test]
fn reader_below_what_was_removed() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    let mut slow = driver.journal.reader(Position::START).unwrap();
    for _ in 0..12 {
        driver.step().unwrap();
    }
    driver.checkpoint().unwrap();
    assert_eq!(driver.journal.oldest(), Position::START, "the history does not have it yet");
    driver.archive().unwrap();
    driver.checkpoint().unwrap();
    let oldest = driver.journal.oldest();
    assert!(oldest > Position::START);
    let is_gone = |error| matches!(error, ReadError::Gone { oldest: told, .. } if told == oldest);
    assert!(is_gone(slow.next_step().unwrap_err()));
    assert!(is_gone(driver.journal.reader(Position::START).map(|_| ()).unwrap_err()));
    let found = driver.journal.reader(oldest).unwrap().next_step().unwrap().unwrap();
    assert_eq!(found.position, oldest);
    assert_eq!(driver.journal.history().oldest(), Position::START);
}

#[test]
fn checkpoint_while_the_first_frame_of_a_segment_is_being_flushed() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..4 {
        driver.step().unwrap();
    }
    driver.archive().unwrap();
    driver.mark = (4, driver.journal.durable_end());
    disk.hold_syncs(Some("segment-0000000000000002"));
    // It does not fit into the first segment any more.
    driver.submit().unwrap();
    disk.wait_for_held_sync();
    driver.checkpoint().unwrap();
    // Were the first segment removed, nothing would say what the torn frame follows.
    disk.sync_dir(dir()).unwrap();
    let told = Told { submitted: driver.submitted, acknowledged: driver.acknowledged };
    check_and_go_on(&disk.after_power_loss(|| false), told);
    check_and_go_on(&disk.after_power_loss(|| true), told);
    disk.hold_syncs(None);
    driver.barrier().unwrap();
    driver.checkpoint().unwrap();
    drop(driver);
    check(&disk, Told { submitted: 5, acknowledged: 5 });
}

#[test]
fn checkpoint_beyond_either_end() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..12 {
        driver.step().unwrap();
    }
    driver.archive().unwrap();
    driver.checkpoint().unwrap();
    let at = |replay_from| driver.journal.write_checkpoint(&Checkpoint { replay_from, sections: vec![] });
    assert!(matches!(at(Position::START), Err(CheckpointError::Gone { .. })));
    let above = driver.journal.durable_end().after();
    assert!(matches!(at(above), Err(CheckpointError::Ahead { .. })));
}

#[test]
fn seal_is_written_when_nothing_more_comes() {
    let (disk, journal) = roomy();
    journal.submit_and_wait(vec![1]).unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while !recover(&disk.after_kill()).unwrap().report.is_sealed {
        assert!(Instant::now() < end, "no seal");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn close_with_steps_waiting() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..9 {
        driver.submit().unwrap();
    }
    driver.journal.close();
    let found = recover(&disk.after_power_loss(|| false)).unwrap();
    assert!(found.report.is_sealed);
    check(&disk, Told { submitted: 9, acknowledged: 9 });
}

struct Owner(Mutex<Option<Arc<Journal>>>);

impl Wake for Owner {
    fn durable(&self, _: &Flush) {
        self.0.lock().unwrap().take();
    }
}

#[test]
fn last_reference_dropped_by_a_handle() {
    let (disk, journal) = held(None);
    let journal = Arc::new(journal);
    let owner = Owner(Mutex::new(Some(journal.clone())));
    journal.submit(vec![2], Some(Arc::new(owner))).unwrap();
    journal.submit(vec![3], None).unwrap();
    drop(journal);
    disk.hold_syncs(None);
    // The writer goes on to its end by itself, and only then is the folder free.
    let end = Instant::now() + Duration::from_secs(20);
    while matches!(open(&disk), Err(OpenError::InUse { .. })) {
        assert!(Instant::now() < end, "never closed");
        std::thread::yield_now();
    }
    let found = recover(&disk.after_power_loss(|| false)).unwrap();
    assert_eq!(found.report.steps, 3);
}

#[test]
fn step_as_large_as_a_segment_takes() {
    let disk = SimulatedDisk::default();
    let (journal, _) = open(&disk).unwrap();
    let max = 5 * 4096 - 60;
    let refused = SubmitError::TooLarge { bytes: max + 1, max };
    assert_eq!(journal.submit(vec![5; max + 1], None), Err(refused));
    for _ in 0..3 {
        journal.submit_and_wait(vec![5; max]).unwrap();
    }
    drop(journal);
    assert_eq!(recover(&disk).unwrap().report.frames, 3);
}

#[test]
fn segments_of_another_size_than_before() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    drop(driver);
    let large = Options { segment_bytes: 20 * 4096, reserve_bytes: 20 * 4096, ..small() };
    let (journal, _) = Journal::open_on(Arc::new(disk.clone()), dir(), large).unwrap();
    assert_eq!(disk.content(&dir().join(crate::supply::RESERVE)).len(), 20 * 4096, "the reserve is made anew");
    for _ in 0..2 {
        // More than the old segments take: the one that was ready stays empty.
        journal.submit_and_wait(vec![6; 15 * 4096]).unwrap();
    }
    let steps = steps_of(journal.reader(Position::START).unwrap()).unwrap();
    assert_eq!(steps.len(), 3);
    drop(journal);
    assert_eq!(recover(&disk).unwrap().report.steps, 3);
    let refused = Journal::open_on(Arc::new(disk), dir(), Options { reserve_bytes: 4096, ..large });
    assert!(matches!(refused, Err(OpenError::Options { name: "reserve_bytes", .. })));
}
