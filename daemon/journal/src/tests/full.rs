//! A full disk: told in time, carried by the reserve, and recovered from.

use std::time::{Duration, Instant};

use super::*;
use crate::segment;
use crate::supply::RESERVE;

/// Only what is there fits, and nothing more.
fn fill(disk: &SimulatedDisk) {
    disk.set_capacity(Some(disk.used_bytes()));
}

fn wait_for(journal: &Journal, wanted: impl Fn(&Space) -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !wanted(&journal.space()) {
        assert!(Instant::now() < end, "still {:?}", journal.space());
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn is_low(space: &Space) -> bool {
    matches!(space, Space::Low { reason } if reason.contains("No space left"))
}

/// A journal on a full disk: the writer has gone on to the last segment that was ready, with its fifth step.
fn low() -> (SimulatedDisk, Driver) {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    assert_eq!(driver.journal.space(), Space::Enough);
    fill(&disk);
    for _ in 0..5 {
        driver.step().unwrap();
    }
    wait_for(&driver.journal, is_low);
    (disk, driver)
}

#[test]
fn next_segment_cannot_be_had() {
    let (disk, driver) = low();
    assert!(is_low(&driver.journal.space()));
    let reserve = dir().join(RESERVE);
    let end = Instant::now() + Duration::from_secs(20);
    while disk.paths().contains(&reserve) {
        assert!(Instant::now() < end, "the reserve was not given up");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(disk.paths().contains(&segment::path(dir(), 3)), "it is the third segment now");
}

#[test]
fn half_of_the_reserve_is_told_of_in_time_and_until_there_is_room() {
    let (disk, mut driver) = low();
    let at_last = |journal: &Journal| matches!(journal.space(), Space::Last { .. });
    let mut steps_told = Vec::new();
    for step in 6..=11 {
        driver.step().unwrap();
        if at_last(&driver.journal) {
            steps_told.push(step);
        }
    }
    // The reserve's five pages take steps 9 to 11; behind its header and step 9 is its half.
    assert_eq!(steps_told, [10, 11]);
    let reason = driver.journal.space().shortage().unwrap();
    assert!(reason.contains("No space left"), "{reason}");
    let told = Told { submitted: driver.submitted, acknowledged: driver.acknowledged };
    drop(driver);

    // Said again from the start on, and no longer once there is room.
    let disk = disk.after_kill();
    fill(&disk);
    let driver = Driver::open(&disk).unwrap();
    assert!(at_last(&driver.journal));
    disk.set_capacity(None);
    wait_for(&driver.journal, |space| *space == Space::Enough);
    drop(driver);
    check(&disk, told);
}

#[test]
fn reserve_carries_work_and_then_the_process_aborts() {
    let (disk, mut driver) = low();
    while driver.step().is_some() {}
    // Three pages of the second segment were left, and the reserve's five take steps 9 to 11.
    assert_eq!(driver.acknowledged, 11);
    let reason = disk.aborted().unwrap();
    assert!(reason.contains("reserve is used up") && reason.contains("No space left"), "{reason}");
    let told = Told { submitted: driver.submitted, acknowledged: driver.acknowledged };
    drop(driver);
    check_and_go_on(&disk.after_power_loss(|| false), told);
}

/// Whoever cannot write down what has happened ends the process: what was durable stays, and nothing is taken any more.
#[test]
fn abort_from_outside_takes_nothing_more() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    driver.journal.abort("a step that does not fit");
    assert_eq!(disk.aborted().as_deref(), Some("a step that does not fit"));
    assert_eq!(driver.journal.submit(vec![1], None), Err(SubmitError::Closed));
    let told = Told { submitted: driver.submitted, acknowledged: driver.acknowledged };
    drop(driver);
    check_and_go_on(&disk.after_power_loss(|| false), told);
}

#[test]
fn space_comes_back() {
    let (disk, mut driver) = low();
    disk.set_capacity(None);
    wait_for(&driver.journal, |space| *space == Space::Enough);
    assert!(disk.paths().contains(&dir().join(RESERVE)));
    for _ in 0..20 {
        driver.step().unwrap();
    }
    let told = Told { submitted: driver.submitted, acknowledged: driver.acknowledged };
    drop(driver);
    check(&disk, told);
}

#[test]
fn segment_comes_back_before_the_reserve() {
    let (disk, mut driver) = low();
    // The last of these is the first in what was the reserve, so that a segment is wanted first.
    for _ in 0..3 {
        driver.step().unwrap();
    }
    disk.hold_syncs(Some(RESERVE));
    disk.set_capacity(None);
    disk.wait_for_held_sync();
    assert!(disk.paths().contains(&segment::path(dir(), 4)));
    let space = driver.journal.space();
    disk.hold_syncs(None);
    assert!(is_low(&space), "new work would take what removals need");
    wait_for(&driver.journal, |space| *space == Space::Enough);
}

#[test]
fn segment_refused_only_when_it_is_synced() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    disk.fail_syncs_for_space("segment-0000000000000003.new");
    // Once there is a new reserve, space is no longer low.
    disk.hold_syncs(Some("reserve.new"));
    for _ in 0..8 {
        driver.step().unwrap();
    }
    let space = driver.journal.space();
    disk.hold_syncs(None);
    assert!(is_low(&space));
    assert_eq!(disk.aborted(), None);
    let told = Told { submitted: 8, acknowledged: 8 };
    drop(driver);
    check_and_go_on(&disk.after_power_loss(|| false), told);
}

#[test]
fn checkpoint_refused_only_when_it_is_synced() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    driver.checkpoint().unwrap();
    driver.step().unwrap();
    disk.fail_syncs_for_space("checkpoint");
    assert!(driver.checkpoint().is_none());
    assert_eq!(disk.aborted(), None);
    driver.step().unwrap();
    check(&disk.after_power_loss(|| false), Told { submitted: 3, acknowledged: 3 });
}

#[test]
fn checkpoint_makes_the_space() {
    let (disk, mut driver) = low();
    // Room for history and checkpoint, none for a segment; then the removed segments' room is enough.
    disk.set_capacity(Some(disk.used_bytes() + 4096));
    for _ in 0..3 {
        driver.step().unwrap();
    }
    assert!(is_low(&driver.journal.space()));
    driver.archive().unwrap();
    driver.checkpoint().unwrap();
    wait_for(&driver.journal, |space| *space == Space::Enough);
}

#[test]
fn opened_on_a_full_disk() {
    let (disk, driver) = low();
    let told = Told { submitted: driver.submitted, acknowledged: driver.acknowledged };
    drop(driver);
    let disk = disk.after_kill();
    fill(&disk);
    let driver = Driver::open(&disk).unwrap();
    assert!(is_low(&driver.journal.space()));
    drop(driver);
    disk.set_capacity(None);
    check(&disk, told);
}

#[test]
fn first_opening_on_a_full_disk() {
    let disk = SimulatedDisk::default();
    disk.set_capacity(Some(4096));
    assert!(matches!(open(&disk), Err(OpenError::File(error)) if error.is_out_of_space()));
    disk.set_capacity(None);
    check_and_go_on(&disk, Told::default());
}

#[test]
fn checkpoint_and_history_on_a_full_disk_change_nothing() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..3 {
        driver.step().unwrap();
    }
    driver.archive().unwrap();
    driver.checkpoint().unwrap();
    driver.step().unwrap();
    fill(&disk);
    let covered = driver.journal.history().covered_up_to();
    assert!(driver.archive().is_none());
    assert!(driver.checkpoint().is_none());
    assert_eq!(driver.journal.history().covered_up_to(), covered);
    assert_eq!(disk.aborted(), None);
    let told = Told { submitted: 4, acknowledged: 4 };
    check(&disk.after_kill(), told);
    disk.set_capacity(None);
    driver.archive().unwrap();
    driver.checkpoint().unwrap();
    drop(driver);
    check(&disk, told);
    assert!(disk.paths().iter().all(|path| path.extension().is_none()), "nothing unfinished is left");
}
