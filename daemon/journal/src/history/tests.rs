//! Appending, reading and reopening, apart from the journal's own stories.

#![allow(clippy::unwrap_used)]

use super::*;
use crate::ReadError;
use crate::disk::simulated::{SimulatedDisk, Stop};
use crate::position::Ticket;

/// An append as [`encode_sample`] makes it: what it covers from and to, and its items.
type Sample = (Position, Position, Vec<(Position, Vec<u8>)>);

/// One append in bytes, for the stored samples.
pub(crate) fn encode_sample(id: u64, from: Position, covers: Position, items: &[(Position, &[u8])]) -> Vec<u8> {
    chunk::encode(id, from, covers, items)
}

/// And back.
pub(crate) fn decode_sample(id: u64, bytes: &[u8]) -> Option<Sample> {
    let disk = SimulatedDisk::default();
    let file = disk.create(Path::new("/sample")).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    let mut buffer = Vec::new();
    let Chunk::Valid(valid) = chunk::read(&*file, id, 0, bytes.len() as u64, &mut buffer).unwrap() else {
        return None;
    };
    let mut at = chunk::first_item();
    let items =
        std::iter::from_fn(|| chunk::next_item(&buffer, &mut at)).map(|(position, bytes)| (position, bytes.to_vec()));
    Some((valid.from, valid.covers, items.collect()))
}

fn dir() -> &'static Path {
    Path::new("/journal/history")
}

/// A history of a journal with 100 durable frames.
fn open(disk: &SimulatedDisk) -> Result<(Arc<History>, Option<TornTail>), HistoryOpenError> {
    let index = Index::new(5, PathBuf::from("/journal"), Vec::new(), 100, Ticket(100));
    let (history, torn) = History::open(Arc::new(disk.clone()), dir(), Arc::new(index), 250)?;
    Ok((Arc::new(history), torn))
}

fn at(frame: u64, index: u32) -> Position {
    Position { frame, index }
}

/// Appends one item per frame, up to a frame excluded.
fn append_up_to(history: &History, frame: u64) -> Result<(), HistoryError> {
    for next in history.covered_up_to().frame..frame {
        history.append(at(next + 1, 0), &[(at(next, 3), &next.to_le_bytes())])?;
    }
    Ok(())
}

fn frames_from(history: &Arc<History>, from: Position) -> Vec<u64> {
    let mut reader = history.reader(from).unwrap();
    let items = std::iter::from_fn(|| reader.next_item().unwrap());
    items.map(|(position, _)| position.frame).collect()
}

#[test]
fn read_from_a_position_across_files() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    append_up_to(&history, 20).unwrap();
    assert!(disk.paths().len() > 3);
    assert_eq!(frames_from(&history, Position::START), (1..20).collect::<Vec<_>>());
    assert_eq!(frames_from(&history, at(7, 3)), (7..20).collect::<Vec<_>>());
    assert_eq!(frames_from(&history, at(7, 4)), (8..20).collect::<Vec<_>>());
    assert_eq!(frames_from(&history, at(20, 0)), []);
    assert!(matches!(history.reader(at(20, 1)), Err(ReadError::Ahead { .. })));
}

#[test]
fn reader_at_the_end_is_asked_again() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    let mut reader = history.reader(Position::START).unwrap();
    for frame in 1..30 {
        assert_eq!(reader.next_item().unwrap(), None);
        append_up_to(&history, frame + 1).unwrap();
        assert_eq!(reader.next_item().unwrap().unwrap().0, at(frame, 3));
    }
}

#[test]
fn append_out_of_order_or_ahead() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    append_up_to(&history, 10).unwrap();
    let item: &[u8] = b"x";
    let is_order = |result| matches!(result, Err(HistoryError::Order { .. }));
    assert!(is_order(history.append(at(12, 0), &[(at(9, 9), item)])), "below what is covered");
    assert!(is_order(history.append(at(12, 0), &[(at(12, 0), item)])), "not below what it covers");
    assert!(is_order(history.append(at(12, 0), &[(at(11, 1), item), (at(11, 0), item)])));
    assert!(is_order(history.append(at(9, 0), &[])), "back");
    assert!(matches!(history.append(at(101, 1), &[]), Err(HistoryError::Ahead { .. })));
    let large = vec![0; APPEND_BYTES_MAX];
    let refused = history.append(at(12, 0), &[(at(10, 0), large.as_slice())]);
    assert!(matches!(refused, Err(HistoryError::TooLarge { .. })));
    assert_eq!(history.covered_up_to(), at(10, 0));
    // Several items of one step, and none for a while.
    history.append(at(12, 0), &[(at(11, 1), item), (at(11, 1), item)]).unwrap();
    history.append(at(101, 0), &[]).unwrap();
    assert_eq!(frames_from(&history, at(10, 0)), [11, 11]);
}

#[test]
fn forget_below_a_position() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    append_up_to(&history, 20).unwrap();
    history.forget_below(at(9, 0)).unwrap();
    let oldest = history.oldest();
    assert!(oldest > at(3, 0) && oldest <= at(9, 0), "{oldest}");
    assert!(matches!(history.reader(Position::START), Err(ReadError::Gone { .. })));
    assert_eq!(frames_from(&history, oldest), (oldest.frame..20).collect::<Vec<_>>());
    history.forget_below(at(101, 0)).unwrap();
    assert!(history.oldest() < history.covered_up_to(), "the newest file stays");
    drop(history);
    let (history, _) = open(&disk).unwrap();
    assert_eq!(history.covered_up_to(), at(20, 0));
}

#[test]
fn last_append_torn_at_every_byte() {
    for appends in [7_u64, 11] {
        let disk = SimulatedDisk::default();
        let (history, _) = open(&disk).unwrap();
        append_up_to(&history, appends).unwrap();
        let last = history.lock().files.last().unwrap().clone();
        let before = disk.content(&last.path).len();
        append_up_to(&history, appends + 1).unwrap();
        let now = history.lock().files.last().unwrap().clone();
        let start = if now.path == last.path { before } else { 0 };
        for bytes in start..disk.content(&now.path).len() {
            let torn = disk.after_kill();
            torn.alter(&now.path, |content| content.truncate(bytes));
            let (history, cut) = open(&torn).unwrap();
            assert_eq!(history.covered_up_to(), at(appends, 0), "torn at {bytes}");
            assert_eq!(cut.is_some(), bytes > start);
            append_up_to(&history, appends + 3).unwrap();
            assert_eq!(frames_from(&history, Position::START), (1..appends + 3).collect::<Vec<_>>());
            drop(history);
            assert!(open(&torn).unwrap().1.is_none());
        }
    }
}

#[test]
fn damage_with_a_whole_append_behind_it() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    append_up_to(&history, 3).unwrap();
    let path = history.lock().files.last().unwrap().path.clone();
    for byte in 0..76 {
        let damaged = disk.after_kill();
        damaged.alter(&path, |content| content[byte] ^= 2);
        assert!(
            matches!(open(&damaged), Err(HistoryOpenError::Corrupt(_) | HistoryOpenError::Newer(..))),
            "byte {byte}"
        );
    }
}

#[test]
fn append_missing_between_two_others() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    append_up_to(&history, 4).unwrap();
    let path = history.lock().files.last().unwrap().path.clone();
    // Each of the three has 76 bytes.
    disk.alter(&path, |content| drop(content.drain(76..152)));
    let Err(HistoryOpenError::Corrupt(found)) = open(&disk) else { panic!("not refused") };
    assert_eq!((found.file, found.offset, found.frame), (path, 76, 2));
}

#[test]
fn torn_append_with_a_later_file() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    append_up_to(&history, 6).unwrap();
    let files: Vec<_> = history.lock().files.iter().map(|file| file.path.clone()).collect();
    assert_eq!(files.len(), 2);
    // A crash tears one append, and there is no second before the first has returned.
    for path in &files {
        disk.alter(path, |content| content.truncate(content.len() - 1));
    }
    let Err(HistoryOpenError::Corrupt(found)) = open(&disk) else { panic!("not refused") };
    assert_eq!(found.file, files[0]);
    assert!(found.what.contains("goes on in a later file"), "{}", found.what);
}

#[test]
fn name_of_a_file_that_was_seen_in_memory_is_made_durable() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    // Killed when the first append was made and synced, and its file's name was not.
    disk.stop_at(Stop { at: disk.operations() + 3, write_bytes: 0 });
    assert!(append_up_to(&history, 2).is_err());
    let restarted = disk.after_kill();
    let (history, _) = open(&restarted).unwrap();
    assert_eq!(history.covered_up_to(), at(2, 0));
    let (history, _) = open(&restarted.after_power_loss(|| false)).unwrap();
    assert_eq!(history.covered_up_to(), at(2, 0));
}

#[test]
fn damage_in_an_older_file_is_found_when_it_is_read() {
    let disk = SimulatedDisk::default();
    let (history, _) = open(&disk).unwrap();
    append_up_to(&history, 20).unwrap();
    let files: Vec<_> = history.lock().files.iter().map(|file| file.path.clone()).collect();
    disk.alter(&files[1], |content| content[30] ^= 1);
    let mut reader = history.reader(Position::START).unwrap();
    let read = std::iter::from_fn(|| reader.next_item().transpose()).collect::<Result<Vec<_>, _>>();
    assert!(matches!(read, Err(ReadError::Corrupt(_))));
    disk.lose(&files[1]);
    let (history, _) = open(&disk.after_kill()).unwrap();
    let mut reader = history.reader(Position::START).unwrap();
    let read = std::iter::from_fn(|| reader.next_item().transpose()).collect::<Result<Vec<_>, _>>();
    assert!(matches!(read, Err(ReadError::Corrupt(_))));
}

#[test]
fn crash_at_every_operation_of_appends() {
    let mut at_operation = 0;
    loop {
        let disk = SimulatedDisk::default();
        disk.stop_at(Stop { at: at_operation, write_bytes: 60 });
        let mut covered = Position::START;
        if let Ok((history, _)) = open(&disk) {
            let done = append_up_to(&history, 12);
            covered = history.covered_up_to();
            if done.is_ok() {
                break;
            }
        }
        for keeps in [false, true] {
            let (history, _) = open(&disk.after_power_loss(|| keeps)).unwrap();
            let found = history.covered_up_to();
            assert!(found >= covered && found <= at(covered.frame + 1, 0), "{found} of {covered}");
            assert_eq!(frames_from(&history, Position::START), (1..found.frame).collect::<Vec<_>>());
        }
        at_operation += 1;
    }
    assert!(at_operation > 25, "{at_operation}");
}

#[test]
fn append_read_from_memory_is_made_durable() {
    for is_failing in [true, false] {
        let disk = SimulatedDisk::default();
        let (history, _) = open(&disk).unwrap();
        append_up_to(&history, 3).unwrap();
        if is_failing {
            // The kernel then takes the pages for clean, though the disk never got them.
            disk.fail_syncs(Some("from-"));
        } else {
            // Killed between the write and the sync.
            disk.stop_at(Stop { at: disk.operations() + 1, write_bytes: 0 });
        }
        assert!(append_up_to(&history, 4).is_err());
        let restarted = disk.after_kill();
        let (history, _) = open(&restarted).unwrap();
        assert_eq!(history.covered_up_to(), at(4, 0));
        let (history, _) = open(&restarted.after_power_loss(|| false)).unwrap();
        assert_eq!(history.covered_up_to(), at(4, 0), "is_failing {is_failing}");
    }
}
