//! Bits flipped and files missing: correct or refused, never silently wrong.

use super::*;
use crate::frame::{self, Head, Kind};
use crate::history::HISTORY;
use crate::segment;

/// A closed journal with a checkpoint below its end, a history further below, and a removed first segment.
fn rich() -> SimulatedDisk {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..12 {
        driver.step().unwrap();
    }
    driver.archive().unwrap();
    for _ in 0..6 {
        driver.step().unwrap();
    }
    driver.checkpoint().unwrap();
    for _ in 0..4 {
        driver.step().unwrap();
    }
    drop(driver);
    assert!(!disk.paths().contains(&segment::path(dir(), 1)));
    disk
}

fn read_disk(disk: &SimulatedDisk) -> Result<Read, OpenError> {
    recover(disk).and_then(read_all)
}

#[test]
fn flip_any_byte_of_a_closed_journal() {
    let disk = rich();
    let whole = read_disk(&disk.after_kill()).unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for path in disk.paths() {
        for at in 0..disk.content(&path).len() {
            let damaged = disk.after_kill();
            damaged.alter(&path, |bytes| bytes[at] ^= 1 << (at % 8));
            match read_disk(&damaged) {
                Ok(read) => {
                    harmless += 1;
                    assert!(read == whole, "{} byte {at}: silently wrong", path.display());
                }
                Err(OpenError::Corrupt(_) | OpenError::Newer { .. }) => refused += 1,
                Err(error) => panic!("{} byte {at}: {error}", path.display()),
            }
        }
    }
    // The bytes of the frames that are still there are the bulk of what is refused.
    assert!(refused > 30_000, "{refused} refused, {harmless} harmless");
}

/// A journal of one segment whose last frame was acknowledged a moment ago: no seal yet.
fn unsealed() -> SimulatedDisk {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..4 {
        driver.step().unwrap();
    }
    drop(driver);
    let found = recover(&disk.after_kill()).unwrap();
    disk.alter(&found.segment.path, |bytes| {
        bytes[usize::try_from(found.offset).unwrap()..].fill(0);
    });
    assert!(!recover(&disk.after_kill()).unwrap().report.is_sealed);
    disk
}

#[test]
fn flip_any_byte_before_the_seal_is_written() {
    let disk = unsealed();
    let whole = read_disk(&disk.after_kill()).unwrap();
    let mut cut = 0;
    let path = segment::path(dir(), 1);
    for at in 0..disk.content(&path).len() {
        let damaged = disk.after_kill();
        damaged.alter(&path, |bytes| bytes[at] ^= 1 << (at % 8));
        let Ok(found) = recover(&damaged) else { continue };
        let torn = found.report.torn.clone();
        let read = read_all(found).unwrap();
        if read == whole {
            continue;
        }
        // What cannot be told from a torn tail, as the crate's page says: the last frame only, and loudly.
        assert_eq!(read.steps, whole.steps[..3], "byte {at}");
        assert_eq!(torn.unwrap().frame, 4, "byte {at}");
        cut += 1;
    }
    assert_eq!(cut, step(4).len() + 4 + frame::HEAD_BYTES);
}

fn corruption(disk: &SimulatedDisk) -> Corruption {
    match read_disk(&disk.after_kill()) {
        Err(OpenError::Corrupt(corruption)) => corruption,
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("not refused"),
    }
}

#[test]
fn bad_frame_with_a_valid_later_frame() {
    let disk = unsealed();
    let path = segment::path(dir(), 1);
    // Frames 1 and 2 take a page each, so frame 3 is at the third page after the header.
    disk.alter(&path, |bytes| bytes[3 * 4096 + 60] ^= 4);
    let found = corruption(&disk);
    assert_eq!((found.file, found.offset, found.frame), (path, 3 * 4096, 3));
    assert!(found.what.contains("frame 4 follows"), "{}", found.what);
}

/// Frames 1 to 4 fill the first segment, up to the page that is kept for its seal; 5 and 6 are in the second.
fn two_segments() -> SimulatedDisk {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..6 {
        driver.step().unwrap();
    }
    drop(driver);
    assert_eq!(last_segment(&disk), 2);
    disk
}

#[test]
fn bad_or_missing_frame_with_a_valid_later_frame_in_the_next_segment() {
    let path = segment::path(dir(), 1);
    for is_missing in [false, true] {
        let disk = two_segments();
        disk.alter(&path, |bytes| {
            bytes[5 * 4096 + 60] ^= 4;
            let zeros_from = if is_missing { 5 } else { 6 };
            bytes[zeros_from * 4096..].fill(0);
        });
        let found = corruption(&disk);
        assert_eq!((found.file, found.offset, found.frame), (path.clone(), 5 * 4096, 4));
        assert!(found.what.contains("frame 5 follows"), "{}", found.what);
    }
}

#[test]
fn bad_seal_with_a_valid_later_frame_in_the_next_segment() {
    let disk = two_segments();
    let path = segment::path(dir(), 1);
    disk.alter(&path, |bytes| bytes[6 * 4096 + 30] ^= 4);
    let found = corruption(&disk);
    assert_eq!((found.file, found.offset, found.frame), (path, 6 * 4096, 5));
    assert!(found.what.contains("frame 5 follows"), "{}", found.what);
}

#[test]
fn bad_frame_that_a_seal_names() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    driver.step().unwrap();
    drop(driver);
    let path = segment::path(dir(), 1);
    disk.alter(&path, |bytes| bytes[2 * 4096..3 * 4096].fill(0));
    let found = corruption(&disk);
    assert_eq!((found.file, found.offset, found.frame), (path, 2 * 4096, 2));
    assert!(found.what.contains("frame 2 was flushed"), "{}", found.what);
}

#[test]
fn bad_last_frame_that_only_the_checkpoint_names() {
    let disk = unsealed();
    let base = disk.after_kill();
    let mut driver = Driver::open(&disk).unwrap();
    driver.checkpoint().unwrap();
    drop(driver);
    // The segment as it was before the seal, its last frame torn or damaged.
    let path = segment::path(dir(), 1);
    let mut content = base.content(&path);
    let at = usize::try_from(recover(&base).unwrap().offset).unwrap() - 4096;
    content[at + 60] ^= 1;
    disk.alter(&path, |bytes| *bytes = content);
    let found = corruption(&disk);
    assert_eq!((found.file, found.offset, found.frame), (path, at as u64, 4));
    assert!(found.what.contains("the checkpoint was written after frame 4"), "{}", found.what);
}

#[test]
fn missing_last_frame_that_only_the_history_covers() {
    let disk = unsealed();
    let base = disk.after_kill();
    Driver::open(&disk).unwrap().archive().unwrap();
    // The segment as it was before the seal, and without its last frame.
    let path = segment::path(dir(), 1);
    let mut content = base.content(&path);
    let at = usize::try_from(recover(&base).unwrap().offset).unwrap() - 4096;
    content[at..at + 4096].fill(0);
    disk.alter(&path, |bytes| *bytes = content);
    let found = corruption(&disk);
    assert_eq!((found.file, found.frame), (dir().join(HISTORY), 5));
    assert!(found.what.contains("covers up to 5/0, the journal ends at 4/0"), "{}", found.what);
}

/// Twice the same journal up to frame 1; their frames 2 differ, and so all that follows them.
fn courses() -> [SimulatedDisk; 2] {
    let base = SimulatedDisk::default();
    Driver::open(&base).unwrap().step().unwrap();
    [7, 8].map(|byte| {
        let disk = base.after_kill();
        let (journal, _) = open(&disk).unwrap();
        journal.submit_and_wait(vec![byte; 100]).unwrap();
        journal.submit_and_wait(vec![9; 100]).unwrap();
        drop(journal);
        disk
    })
}

/// The page of one course of events in the place of the other's.
fn with_page_of_the_other(page: usize) -> SimulatedDisk {
    let path = segment::path(dir(), 1);
    let [disk, other] = courses();
    let place = page * 4096..(page + 1) * 4096;
    let other = other.content(&path)[place.clone()].to_vec();
    disk.alter(&path, |bytes| bytes[place].copy_from_slice(&other));
    disk
}

#[test]
fn frame_of_another_course_of_events() {
    // Right in number, segment and CRC: only the frame after it knows better.
    let found = corruption(&with_page_of_the_other(2));
    assert_eq!((found.offset, found.frame), (3 * 4096, 3));
    assert!(found.what.contains("does not follow"), "{}", found.what);
}

/// A frame of one step behind the last one, right but for what is done to its head.
fn with_one_more_frame(disk: &SimulatedDisk, change: fn(&mut Head)) -> SimulatedDisk {
    let found = recover(&disk.after_kill()).unwrap();
    let mut head = Head {
        kind: Kind::Frame,
        id: found.index.id,
        segment: found.segment.number,
        frame: found.last.frame + 1,
        first_ticket: found.last.next_ticket,
        previous_crc: found.last.crc,
    };
    change(&mut head);
    let mut frame = Vec::new();
    frame::encode(&head, [b"one more".as_slice()].into_iter(), &mut frame);
    let disk = disk.after_kill();
    let at = usize::try_from(found.offset).unwrap();
    disk.alter(&found.segment.path, |bytes| bytes[at..at + frame.len()].copy_from_slice(&frame));
    disk
}

#[test]
fn frame_that_follows_in_all_but_one_number() {
    let [empty, short] = [0, 2].map(|steps| {
        let disk = SimulatedDisk::default();
        let mut driver = Driver::open(&disk).unwrap();
        for _ in 0..steps {
            driver.step().unwrap();
        }
        disk
    });
    // The last is read from a frame on whose predecessor is gone.
    for disk in [empty, short, rich()] {
        let last = recover(&disk.after_kill()).unwrap().last;
        let whole = recover(&with_one_more_frame(&disk, |_| ())).unwrap().last;
        assert_eq!((whole.frame, whole.next_ticket), (last.frame + 1, last.next_ticket + 1));
        let changes: [fn(&mut Head); 3] =
            [|head| head.frame += 1, |head| head.first_ticket += 1, |head| head.previous_crc ^= 1];
        for change in changes {
            let refused = recover(&with_one_more_frame(&disk, change)).map(|_| ()).unwrap_err();
            assert!(matches!(refused, OpenError::Corrupt(_)), "{refused}");
        }
    }
}

#[test]
fn seal_of_another_course_of_events() {
    let found = corruption(&with_page_of_the_other(4));
    assert_eq!((found.file, found.offset), (segment::path(dir(), 1), 4 * 4096));
    assert!(found.what.contains("another frame 3 was flushed"), "{}", found.what);
}

#[test]
fn seal_in_the_place_of_the_frame_it_names() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    driver.step().unwrap();
    drop(driver);
    let path = segment::path(dir(), 1);
    disk.alter(&path, |bytes| {
        bytes.copy_within(3 * 4096..4 * 4096, 2 * 4096);
        bytes[3 * 4096..4 * 4096].fill(0);
    });
    let found = corruption(&disk);
    assert_eq!((found.offset, found.frame), (2 * 4096, 2));
    assert!(found.what.contains("frame 1 is the last here"), "{}", found.what);
}

fn last_segment(disk: &SimulatedDisk) -> u64 {
    recover(&disk.after_kill()).unwrap().segment.number
}

#[test]
fn missing_segments() {
    let disk = rich();
    let last = last_segment(&disk);
    let numbers: Vec<u64> = (1..=last).filter(|n| disk.paths().contains(&segment::path(dir(), *n))).collect();
    assert!(numbers.len() > 3, "{numbers:?}");
    for number in numbers {
        let path = segment::path(dir(), number);
        let damaged = disk.after_kill();
        damaged.lose(&path);
        assert_eq!(recover(&disk.after_kill()).unwrap().segment.number, last);
        let left = damaged.paths();
        let refused = recover(&damaged).map(|_| ()).unwrap_err();
        assert!(matches!(refused, OpenError::Corrupt(_)), "segment {number}: {refused}");
        assert_eq!(damaged.paths(), left, "a journal that is refused is left as it is");
    }
}

#[test]
fn missing_segments_before_an_empty_one() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    drop(driver);
    disk.lose(&segment::path(dir(), 1));
    let found = corruption(&disk);
    assert_eq!(found.file, segment::path(dir(), 1));
    assert!(found.what.contains("frame 1 is still needed"), "{}", found.what);
}

#[test]
fn missing_segment_that_the_checkpoint_needs_and_the_history_does_not() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    let replay_from = driver.step().unwrap().after();
    for _ in 0..11 {
        driver.step().unwrap();
    }
    driver.archive().unwrap();
    driver.mark = (1, replay_from);
    driver.checkpoint().unwrap();
    drop(driver);
    check(&disk.after_kill(), Told { submitted: 12, acknowledged: 12 });
    disk.lose(&segment::path(dir(), 1));
    assert!(corruption(&disk).what.contains("frame 1 is still needed"));
}

#[test]
fn every_segment_missing_and_one_thing_that_speaks_of_them() {
    let disk = rich();
    for (kept, says) in [("checkpoint", "there is a checkpoint"), (HISTORY, "there is a history")] {
        let damaged = disk.after_kill();
        for path in disk.paths().iter().filter(|path| !path.starts_with(dir().join(kept))) {
            damaged.lose(path);
        }
        assert!(corruption(&damaged).what.contains(says), "{kept}");
    }
}

#[test]
fn segment_of_another_number_or_length() {
    let disk = two_segments();
    let [first, second] = [1, 2].map(|number| segment::path(dir(), number));
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let damaged = disk.after_kill();
        damaged.alter(&first, |bytes| change(bytes));
        let found = corruption(&damaged);
        assert_eq!((&found.file, found.offset), (&first, 0));
        found.what
    };
    let moved = disk.content(&second);
    let what = refused(&|bytes| bytes.clone_from(&moved));
    assert!(what.contains("speaks of segment 2"), "{what}");
    let what = refused(&|bytes| bytes.truncate(6 * 4096));
    assert!(what.contains("with 28672 bytes, the file is segment 1 with 24576"), "{what}");
    for length in [0, 43, 4096, 7 * 4096 - 1] {
        let what = refused(&|bytes| bytes.truncate(length));
        assert_eq!(what, format!("the segment has {length} bytes"));
    }
}

#[test]
fn unfinished_files_are_removed() {
    let disk = unsealed();
    for name in ["checkpoint.new", "segment-0000000000000009.new"] {
        disk.create(&dir().join(name)).unwrap();
    }
    check(&disk, Told { submitted: 4, acknowledged: 4 });
    assert!(disk.paths().iter().all(|path| path.extension().is_none()), "{:?}", disk.paths());
}

#[test]
fn every_segment_from_some_number_on_missing() {
    let disk = rich();
    let (last, whole) = (last_segment(&disk), disk.paths());
    for from in 1..=last {
        let damaged = disk.after_kill();
        for path in whole.iter().filter(|path| is_segment_from(path, from)) {
            damaged.lose(path);
        }
        let found = corruption(&damaged);
        assert!(!found.what.is_empty(), "from {from}");
    }
}

fn is_segment_from(path: &Path, from: u64) -> bool {
    let name = path.file_name().unwrap().to_str().unwrap();
    segment::number_in(name).is_some_and(|number| number >= from)
}

#[test]
fn missing_checkpoint_or_history() {
    let disk = rich();
    let damaged = disk.after_kill();
    damaged.lose(&dir().join("checkpoint"));
    assert!(corruption(&damaged).what.contains("still needed"));

    let history = dir().join(HISTORY);
    let files: Vec<_> = disk.paths().into_iter().filter(|path| path.starts_with(&history)).collect();
    let damaged = disk.after_kill();
    damaged.lose(files.last().unwrap());
    assert!(corruption(&damaged).what.contains("counted on"));
}

#[test]
fn removal_that_a_crash_interrupted() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    for _ in 0..12 {
        driver.step().unwrap();
    }
    let first = segment::path(dir(), 1);
    let kept = disk.content(&first);
    driver.archive().unwrap();
    driver.checkpoint().unwrap();
    drop(driver);
    assert!(disk.paths().iter().all(|path| !is_segment_from(path, 1) || is_segment_from(path, 3)));
    // The removal of the second segment reached the disk, that of the first did not.
    let file = disk.create(&first).unwrap();
    file.write_all_at(&kept, 0).unwrap();
    check(&disk, Told { submitted: 12, acknowledged: 12 });
    assert!(!disk.paths().contains(&first));
}

#[test]
fn segment_of_another_journal() {
    let (disk, other) = (rich(), rich());
    let last = segment::path(dir(), last_segment(&disk));
    let foreign = other.content(&segment::path(dir(), last_segment(&other)));
    disk.alter(&last, |bytes| *bytes = foreign);
    assert!(corruption(&disk).what.contains("another journal"));
}

#[test]
fn checkpoint_of_another_journal() {
    let (disk, other) = (rich(), rich());
    let path = dir().join("checkpoint");
    let foreign = other.content(&path);
    disk.alter(&path, |bytes| *bytes = foreign);
    let found = corruption(&disk);
    assert_eq!(found.file, path);
    assert!(found.what.contains("another journal"), "{}", found.what);
}

#[test]
fn history_of_another_journal() {
    let (disk, other) = (rich(), rich());
    let history = dir().join(HISTORY);
    let files: Vec<_> = disk.paths().into_iter().filter(|path| path.starts_with(&history)).collect();
    for path in &files {
        let foreign = other.content(path);
        disk.alter(path, |bytes| *bytes = foreign);
    }
    assert!(corruption(&disk).what.contains("counted on"));
}

/// Sets a number of two bytes to a version that there is not yet, and the CRC over all else.
fn make_newer(bytes: &mut [u8], version_at: usize, crc_at: usize) {
    bytes[version_at] = 2;
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..crc_at]), &bytes[crc_at + 4..]);
    bytes[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn frame_of_a_later_version() {
    let disk = unsealed();
    let path = segment::path(dir(), 1);
    let at = usize::try_from(recover(&disk.after_kill()).unwrap().offset).unwrap() - 4096;
    disk.alter(&path, |bytes| {
        let body = u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap()) as usize;
        make_newer(&mut bytes[at..at + frame::HEAD_BYTES + body], 4, 52);
    });
    let refused = recover(&disk).map(|_| ()).unwrap_err();
    assert!(matches!(refused, OpenError::Newer { version: 2, .. }), "{refused}");
}

#[test]
fn segment_checkpoint_or_history_of_a_later_version() {
    let disk = rich();
    let last = segment::path(dir(), last_segment(&disk));
    let checkpoint = dir().join("checkpoint");
    let history = disk.paths().into_iter().find(|path| path.starts_with(dir().join(HISTORY))).unwrap();
    let crc_of_checkpoint = disk.content(&checkpoint).len() - 4;
    for (path, whole, version_at, crc_at) in [
        (&last, 44, 8, 40),
        (&checkpoint, crc_of_checkpoint + 4, 8, crc_of_checkpoint),
        (&history, disk.content(&history).len(), 4, 48),
    ] {
        let newer = disk.after_kill();
        newer.alter(path, |bytes| make_newer(&mut bytes[..whole], version_at, crc_at));
        let refused = recover(&newer).map(|_| ()).unwrap_err();
        assert!(matches!(&refused, OpenError::Newer { file, version: 2 } if file == path), "{refused}");
    }
}

#[test]
fn payload_that_looks_like_a_frame_of_another_journal() {
    // A peer who records frames of his own journal and sends them as an onion changes nothing.
    let other = unsealed();
    let frames = other.content(&segment::path(dir(), 1))[4096..3 * 4096].to_vec();
    let disk = SimulatedDisk::default();
    let (journal, _) = open(&disk).unwrap();
    let mut payload = vec![0; 4096 - 60];
    payload.extend_from_slice(&frames);
    journal.submit_and_wait(payload).unwrap();
    drop(journal);
    // Torn, its first page lost: the pages left over must not count as later frames.
    let path = segment::path(dir(), 1);
    disk.alter(&path, |bytes| {
        bytes[4096..8192].fill(0);
        bytes[4 * 4096..].fill(0);
    });
    let found = recover(&disk).unwrap();
    assert_eq!((found.last.frame, found.report.torn.unwrap().frame), (0, 1));
}

#[test]
fn checkpoint_cut_short_or_with_bytes_behind_it() {
    let disk = rich();
    let path = dir().join("checkpoint");
    let bytes = disk.content(&path).len();
    for length in (0..=bytes + 8).filter(|length| *length != bytes) {
        let damaged = disk.after_kill();
        damaged.alter(&path, |content| content.resize(length, 0));
        assert_eq!(corruption(&damaged).file, path, "{length} bytes");
    }
}

#[test]
fn frame_read_back_in_the_place_of_another() {
    let disk = SimulatedDisk::default();
    let mut driver = Driver::open(&disk).unwrap();
    driver.step().unwrap();
    driver.step().unwrap();
    disk.alter(&segment::path(dir(), 1), |bytes| bytes.copy_within(4096..2 * 4096, 2 * 4096));
    let mut reader = driver.journal.reader(Position::START).unwrap();
    assert_eq!(reader.next_step().unwrap().unwrap().bytes, step(1));
    let refused = reader.next_step().unwrap_err();
    assert!(matches!(&refused, ReadError::Corrupt(found) if found.frame == 2), "{refused}");
}

#[test]
fn open_a_second_time() {
    let disk = SimulatedDisk::default();
    let first = open(&disk).unwrap();
    assert!(matches!(open(&disk), Err(OpenError::InUse { .. })));
    drop(first);
    assert!(open(&disk).is_ok());
}
