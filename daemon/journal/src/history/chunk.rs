//! One append to the history, as it is on disk.
//!
//! Version 1, little-endian: `MRJH`, version (2 bytes), 2 zeros, the journal's id (8), bytes of the body (4), number of
//! items (4), from which position on it covers (8 + 4) and up to which (8 + 4), CRC32C of all this and
//! the body (4); the body: per item its position (8 + 4), its length (4) and its bytes. Appends
//! follow each other without gaps, in bytes and in positions.

use std::io;

use crate::disk::DiskFile;
use crate::frame::{number_u32, number_u64};
use crate::position::Position;

/// Bytes before the body.
const HEAD_BYTES: usize = 52;
const CRC_AT: usize = 48;
const ITEM_HEAD_BYTES: usize = 16;
const MAGIC: [u8; 4] = *b"MRJH";
const VERSION: u16 = 1;
/// How much is searched at a time for a whole append behind a bad one.
const FIND_BYTES: usize = 64 << 10;

/// An append whose CRC is right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Valid {
    pub(super) from: Position,
    pub(super) covers: Position,
    pub(super) items: u32,
    bytes: usize,
}

impl Valid {
    /// Bytes on disk.
    pub(super) fn span(&self) -> u64 {
        self.bytes as u64
    }
}

/// What stands at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Chunk {
    /// The file ends.
    End,
    /// An append.
    Valid(Valid),
    /// A whole append of a version this code does not know.
    Newer(u16),
    /// Anything else.
    Bad,
}

/// One append in bytes.
pub(super) fn encode(id: u64, from: Position, covers: Position, items: &[(Position, &[u8])]) -> Vec<u8> {
    let body: usize = items.iter().map(|(_, bytes)| ITEM_HEAD_BYTES + bytes.len()).sum();
    let mut out = vec![0; HEAD_BYTES];
    out.reserve(body);
    for (position, bytes) in items {
        put_position(&mut out, *position);
        // A length beyond 4 bytes makes the whole larger than an append may be, which is refused.
        out.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(bytes);
    }
    let mut head = Vec::with_capacity(HEAD_BYTES);
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&[0, 0]);
    head.extend_from_slice(&id.to_le_bytes());
    head.extend_from_slice(&u32::try_from(body).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&u32::try_from(items.len()).unwrap_or(u32::MAX).to_le_bytes());
    put_position(&mut head, from);
    put_position(&mut head, covers);
    out[..CRC_AT].copy_from_slice(&head);
    let crc = crc(&out);
    out[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    out
}

fn put_position(out: &mut Vec<u8>, position: Position) {
    out.extend_from_slice(&position.frame.to_le_bytes());
    out.extend_from_slice(&position.index.to_le_bytes());
}

fn position_at(bytes: &[u8], at: usize) -> Position {
    Position { frame: number_u64(bytes, at), index: number_u32(bytes, at + 8) }
}

fn crc(chunk: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&chunk[..CRC_AT]), &chunk[HEAD_BYTES..])
}

/// Reads what stands at an offset of a file of `end` bytes; a valid append is then in `out`.
pub(super) fn read(file: &dyn DiskFile, id: u64, offset: u64, end: u64, out: &mut Vec<u8>) -> io::Result<Chunk> {
    out.clear();
    let left = end - offset;
    if left == 0 {
        return Ok(Chunk::End);
    }
    if left < HEAD_BYTES as u64 {
        return Ok(Chunk::Bad);
    }
    out.resize(HEAD_BYTES, 0);
    file.read_exact_at(out, offset)?;
    let bytes = HEAD_BYTES + number_u32(out, 16) as usize;
    if out[0..4] != MAGIC || number_u64(out, 8) != id || bytes as u64 > left {
        return Ok(Chunk::Bad);
    }
    out.resize(bytes, 0);
    file.read_exact_at(&mut out[HEAD_BYTES..], offset + HEAD_BYTES as u64)?;
    Ok(check(out))
}

fn check(chunk: &[u8]) -> Chunk {
    if crc(chunk) != number_u32(chunk, CRC_AT) {
        return Chunk::Bad;
    }
    let version = u16::from_le_bytes([chunk[4], chunk[5]]);
    if version != VERSION {
        return Chunk::Newer(version);
    }
    let valid = Valid {
        from: position_at(chunk, 24),
        covers: position_at(chunk, 36),
        items: number_u32(chunk, 20),
        bytes: chunk.len(),
    };
    let mut at = first_item();
    let mut items = 0;
    while next_item(chunk, &mut at).is_some() {
        items += 1;
    }
    if at == chunk.len() && items == valid.items && valid.from < valid.covers {
        Chunk::Valid(valid)
    } else {
        Chunk::Bad
    }
}

/// Where the first item of an append is.
pub(super) fn first_item() -> usize {
    HEAD_BYTES
}

/// The item at `at`, which then points after it.
pub(super) fn next_item<'a>(chunk: &'a [u8], at: &mut usize) -> Option<(Position, &'a [u8])> {
    let start = at.checked_add(ITEM_HEAD_BYTES)?;
    let head = chunk.get(*at..start)?;
    let end = start.checked_add(number_u32(head, 12) as usize)?;
    let bytes = chunk.get(start..end)?;
    *at = end;
    Some((position_at(head, 0), bytes))
}

/// The offset of the first whole append at or after an offset.
pub(super) fn find(file: &dyn DiskFile, id: u64, from: u64, end: u64) -> io::Result<Option<u64>> {
    let mut window = Vec::new();
    let mut chunk = Vec::new();
    let mut at = from;
    while at + (HEAD_BYTES as u64) <= end {
        let length = usize::try_from(end - at).map_or(FIND_BYTES, |left| left.min(FIND_BYTES));
        window.resize(length, 0);
        file.read_exact_at(&mut window, at)?;
        for start in 0..=length - MAGIC.len() {
            let found = at + start as u64;
            if window[start..].starts_with(&MAGIC)
                && matches!(read(file, id, found, end, &mut chunk)?, Chunk::Valid(_) | Chunk::Newer(_))
            {
                return Ok(Some(found));
            }
        }
        at += (length - MAGIC.len() + 1) as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::*;
    use crate::disk::Disk;
    use crate::disk::simulated::SimulatedDisk;

    const ID: u64 = 5;

    fn at(frame: u64) -> Position {
        Position::start_of(frame)
    }

    fn two_items() -> Vec<u8> {
        encode(ID, at(4), at(9), &[(at(4), b"one".as_slice()), (at(7), b"another".as_slice())])
    }

    /// What an append is taken for after a change that its CRC agrees with.
    fn changed(mut chunk: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Chunk {
        change(&mut chunk);
        let crc = crc(&chunk);
        chunk[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        check(&chunk)
    }

    #[test]
    fn append_that_is_not_so_many_whole_items() {
        assert!(matches!(changed(two_items(), |_| ()), Chunk::Valid(_)));
        assert_eq!(changed(two_items(), |chunk| chunk[20] = 1), Chunk::Bad, "it says one item");
        assert_eq!(changed(two_items(), |chunk| chunk[20] = 3), Chunk::Bad, "it says three");
        assert_eq!(changed(two_items(), |chunk| chunk.push(0)), Chunk::Bad, "a byte behind the last item");
        assert_eq!(changed(two_items(), |chunk| chunk.truncate(chunk.len() - 1)), Chunk::Bad, "the last is cut short");
    }

    #[test]
    fn append_that_covers_nothing() {
        assert!(matches!(check(&encode(ID, at(4), at(5), &[])), Chunk::Valid(_)));
        assert_eq!(check(&encode(ID, at(4), at(4), &[])), Chunk::Bad);
        assert_eq!(check(&encode(ID, at(5), at(4), &[])), Chunk::Bad);
    }

    #[test]
    fn append_is_found_where_two_windows_meet() {
        let chunk = two_items();
        let disk = SimulatedDisk::default();
        for start in FIND_BYTES - 8..FIND_BYTES + 8 {
            let file = disk.create(Path::new("/history")).unwrap();
            file.write_all_at(&vec![7; start], 0).unwrap();
            file.write_all_at(&chunk, start as u64).unwrap();
            let end = (start + chunk.len()) as u64;
            assert_eq!(find(&*file, ID, 1, end).unwrap(), Some(start as u64));
            assert_eq!(find(&*file, ID, start as u64 + 1, end).unwrap(), None);
        }
    }
}
