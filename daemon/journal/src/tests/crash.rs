//! Every crash point of a story, and every way in which a last frame can be torn.

use super::*;
use crate::disk::simulated::Stop;
use crate::segment;

/// Steps across segments, bursts, history, checkpoints below the end and at it, a close, a second opening.
fn story(disk: &SimulatedDisk) -> Told {
    let mut told = Told::default();
    tell(disk, &mut told);
    told
}

fn tell(disk: &SimulatedDisk, told: &mut Told) -> Option<()> {
    for _ in 0..2 {
        let mut driver = Driver::open(disk)?;
        let ended = act(&mut driver);
        told.submitted = told.submitted.max(driver.submitted);
        told.acknowledged = told.acknowledged.max(driver.acknowledged);
        ended?;
    }
    Some(())
}

fn act(driver: &mut Driver) -> Option<()> {
    driver.step()?;
    driver.step()?;
    for _ in 0..3 {
        driver.submit()?;
    }
    driver.barrier()?;
    driver.archive()?;
    driver.checkpoint()?;
    for _ in 0..3 {
        driver.step()?;
    }
    driver.archive()?;
    driver.checkpoint()?;
    driver.submit()?;
    driver.step()?;
    driver.checkpoint()
}

#[test]
fn crash_at_every_operation_of_a_story() {
    let whole = SimulatedDisk::default();
    let told = story(&whole);
    assert_eq!(told.submitted, told.acknowledged);
    assert_eq!(told.submitted, 20);
    let operations = whole.operations();
    assert!(operations > 100, "{operations} operations");
    let mut stopped = 0;
    for at in 0..operations {
        for write_bytes in [0, 1, 4096, 6000, usize::MAX] {
            let disk = SimulatedDisk::default();
            disk.stop_at(Stop { at, write_bytes });
            let told = story(&disk);
            stopped += u64::from(disk.is_stopped());
            check_and_go_on(&disk.after_kill(), told);
            check_and_go_on(&disk.after_power_loss(|| false), told);
            check_and_go_on(&disk.after_power_loss(|| true), told);
            for seed in 0..3 {
                let keeps = coin(seed + 31 * at);
                check_and_go_on(&disk.after_power_loss(keeps), told);
            }
        }
    }
    assert!(stopped > operations * 4, "only {stopped} stories were cut short");
}

#[test]
fn crash_at_every_operation_of_a_recovery() {
    let disk = SimulatedDisk::default();
    let told = story(&disk);
    let torn = torn_frame(&disk.after_kill());
    let disk = torn.with(|page| page != 1);
    let whole = disk.after_kill();
    let before = whole.operations();
    assert!(recover(&whole).unwrap().report.torn.is_some());
    let after = whole.operations();
    assert!(after > before + 3);
    for at in before..after {
        for seed in 0..8 {
            let crashed = disk.after_kill();
            crashed.stop_at(Stop { at, write_bytes: 5000 });
            assert!(recover(&crashed).is_err());
            check_and_go_on(&crashed.after_power_loss(coin(seed)), told);
        }
    }
}

#[test]
fn crash_at_every_operation_of_a_checkpoint() {
    let base = SimulatedDisk::default();
    let mut driver = Driver::open(&base).unwrap();
    for _ in 0..6 {
        driver.step().unwrap();
    }
    driver.archive().unwrap();
    driver.checkpoint().unwrap();
    for _ in 0..6 {
        driver.step().unwrap();
    }
    drop(driver);
    let opened = base.after_kill();
    let driver = Driver::open(&opened).unwrap();
    let before = opened.operations();
    drop(driver);
    for at in before..before + 12 {
        for seed in 0..8 {
            let disk = base.after_kill();
            let mut driver = Driver::open(&disk).unwrap();
            disk.stop_at(Stop { at, write_bytes: 30 });
            let written = driver.archive().and_then(|()| driver.checkpoint()).is_some();
            drop(driver);
            let after = disk.after_power_loss(coin(seed));
            let found = recover(&after).unwrap();
            let section = &found.checkpoint.as_ref().unwrap().sections[0].bytes;
            let ticket = u64::from_le_bytes(section.clone().try_into().unwrap());
            assert!(ticket == 12 || (ticket == 6 && !written), "{ticket} at {at}");
            check_and_go_on(&after, Told { submitted: 12, acknowledged: 12 });
        }
    }
}

/// A journal, and the frame that a crash has torn.
struct Torn {
    before: SimulatedDisk,
    segment: std::path::PathBuf,
    offset: usize,
    frame: Vec<u8>,
}

/// Adds a frame of three pages, and takes it out again.
fn torn_frame(disk: &SimulatedDisk) -> Torn {
    let found = recover(&disk.after_kill()).unwrap();
    let last = found.last.next_ticket - 1;
    let after = disk.after_kill();
    let (journal, _) = open(&after).unwrap();
    // A large step goes to a new segment when it does not fit.
    journal.submit_and_wait(large(last + 1)).unwrap();
    journal.close();
    let found = recover(&after).unwrap();
    let end = usize::try_from(found.offset).unwrap();
    let offset = end - 3 * 4096;
    let frame = after.content(&found.segment.path)[offset..end].to_vec();
    let before = after.after_kill();
    before.alter(&found.segment.path, |bytes| bytes[offset..].fill(0));
    Torn { before, segment: found.segment.path, offset, frame }
}

fn large(ticket: u64) -> Vec<u8> {
    let mut bytes = ticket.to_le_bytes().to_vec();
    bytes.resize(2 * 4096 + 900, 0xab);
    bytes
}

impl Torn {
    /// The journal with those pages of the frame that are kept.
    fn with(&self, keeps: impl Fn(usize) -> bool) -> SimulatedDisk {
        let disk = self.before.after_kill();
        disk.alter(&self.segment, |bytes| {
            for (page, content) in self.frame.chunks(4096).enumerate() {
                if keeps(page) {
                    let start = self.offset + page * 4096;
                    bytes[start..start + 4096].copy_from_slice(content);
                }
            }
        });
        disk
    }
}

/// A closed journal with so many steps of one frame each. After two, a frame of three pages fits into
/// the first segment; after three it is the first of the second.
fn closed_after(steps: u64) -> SimulatedDisk {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..steps {
        driver.step().unwrap();
    }
    drop(driver);
    disk
}

#[test]
fn last_frame_torn_at_every_byte() {
    for steps in [2, 3] {
        let torn = torn_frame(&closed_after(steps));
        assert_eq!(torn.segment, segment::path(dir(), steps - 1));
        for bytes in 0..=torn.frame.len() {
            check_torn_at(&torn, steps, bytes);
        }
    }
}

fn check_torn_at(torn: &Torn, steps: u64, bytes: usize) {
    let needed = crate::frame::HEAD_BYTES + 4 + large(0).len();
    let is_whole = bytes >= needed;
    let disk = torn.before.after_kill();
    let end = torn.offset + bytes;
    disk.alter(&torn.segment, |content| {
        content[torn.offset..end].copy_from_slice(&torn.frame[..bytes]);
    });
    let found = recover(&disk).unwrap();
    assert_eq!(found.last.frame, steps + u64::from(is_whole), "torn at {bytes}");
    assert_eq!(found.report.torn.is_some(), bytes > 0 && !is_whole, "torn at {bytes}");
    let read = read_all(found).unwrap().steps;
    check_steps(read.into_iter().take(steps as usize), 0, steps);
    if is_whole {
        return;
    }
    assert!(disk.content(&torn.segment)[torn.offset..].iter().all(|byte| *byte == 0));
    assert!(recover(&disk).unwrap().report.torn.is_none());
    if bytes.is_multiple_of(1021) {
        check_and_go_on(&disk, Told { submitted: steps, acknowledged: steps });
    }
}

#[test]
fn any_subset_of_the_last_frames_pages_lost() {
    for (steps, kept, has_seal) in [2, 3]
        .into_iter()
        .flat_map(|steps| (0..8_u32).map(move |kept| (steps, kept)))
        .flat_map(|(steps, kept)| [false, true].map(|has_seal| (steps, kept, has_seal)))
    {
        let base = closed_after(steps);
        let torn = torn_frame(&base);
        let disk = torn.with(|page| kept & (1 << page) != 0);
        let first = torn.offset..torn.offset + 4096;
        let is_first_lost = kept & 1 == 0;
        if has_seal && is_first_lost {
            // What stood there before: in the first segment, the seal of the frame before.
            let seal = base.content(&torn.segment)[first.clone()].to_vec();
            disk.alter(&torn.segment, |bytes| bytes[first].copy_from_slice(&seal));
        }
        let found = recover(&disk).unwrap();
        let is_whole = kept == 7;
        let is_in_second = steps == 3;
        let case = format!("{steps} steps, pages {kept:b} kept, seal {has_seal}");
        assert_eq!(found.last.frame, steps + u64::from(is_whole), "{case}");
        assert_eq!(found.report.torn.is_some(), kept != 0 && !is_whole, "{case}");
        let is_sealed = !is_whole && (is_in_second || (has_seal && is_first_lost));
        assert_eq!(found.report.is_sealed, is_sealed, "{case}");
        let read = read_all(found).unwrap().steps;
        check_steps(read.into_iter().take(steps as usize), 0, steps);
    }
}

#[test]
fn torn_frame_first_in_its_segment() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..4 {
        driver.step().unwrap();
    }
    let told = Told { submitted: driver.submitted, acknowledged: driver.acknowledged };
    drop(driver);
    // An opening makes sure that a segment is ready.
    drop(Driver::open(&disk).unwrap());
    let found = recover(&disk.after_kill()).unwrap();
    let next = found.stock.ready[0].path.clone();
    for page in [1, 3, 5] {
        let torn = disk.after_kill();
        torn.alter(&next, |bytes| bytes[page * 4096 + 17] = 1);
        let found = recover(&torn.after_kill()).unwrap();
        let cut = found.report.torn.unwrap();
        assert_eq!((cut.file, cut.offset), (next.clone(), page as u64 * 4096));
        check_and_go_on(&torn, told);
    }
}

#[test]
fn frame_read_from_memory_after_a_failed_sync_is_made_durable() {
    let disk = closed_after(3);
    let mut driver = Driver::open(&disk).unwrap();
    disk.fail_syncs(Some("segment"));
    assert!(driver.step().is_none());
    drop(driver);
    assert!(disk.aborted().unwrap().contains("frame 4"));
    // The kernel shows the frame and takes it for clean. Whoever reads it must not lose it again.
    let restarted = disk.after_kill();
    let found = recover(&restarted).unwrap();
    assert_eq!(found.last.frame, 4);
    let found = recover(&restarted.after_power_loss(|| false)).unwrap();
    assert_eq!(found.last.frame, 4);
}

#[test]
fn names_that_a_recovery_has_seen_are_made_durable() {
    let whole = closed_after(8);
    let mut undurable = 0;
    for at in 0..whole.operations() {
        let disk = SimulatedDisk::default();
        disk.stop_at(Stop { at, write_bytes: 0 });
        let _stopped = Driver::open(&disk).map(|mut driver| (0..8).try_for_each(|_| driver.step().map(|_| ())));
        let restarted = disk.after_kill();
        undurable += usize::from(restarted.after_power_loss(|| false).paths() != restarted.paths());
        recover(&restarted).unwrap();
        // The reserve's name may be lost with it: it holds nothing.
        let is_kept = |path: &std::path::PathBuf| !path.ends_with(crate::supply::RESERVE);
        let seen: Vec<_> = restarted.paths().into_iter().filter(is_kept).collect();
        let left: Vec<_> = restarted.after_power_loss(|| false).paths().into_iter().filter(is_kept).collect();
        assert_eq!(seen, left, "stopped at {at}");
    }
    assert!(undurable > 3, "only {undurable} stops left a name that was not durable");
}
