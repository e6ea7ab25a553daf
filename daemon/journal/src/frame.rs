//! The unit on disk: a frame of whole steps, or the seal that says that the frame before it was flushed.
//!
//! Version 1, all numbers little-endian, always at a multiple of [`PAGE`]:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `MRJF` |
//! | 4 | 2 | version |
//! | 6 | 2 | kind: 1 a frame, 2 a seal, 3 a seal after which the next frame is in a later segment |
//! | 8 | 4 | bytes of the body |
//! | 12 | 4 | steps in the body |
//! | 16 | 8 | id of the journal |
//! | 24 | 8 | number of the segment |
//! | 32 | 8 | number of the frame (a seal: of the frame that was flushed) |
//! | 40 | 8 | first ticket (a seal: the next one) |
//! | 48 | 4 | CRC32C of the frame before (a seal: of the frame that was flushed) |
//! | 52 | 4 | CRC32C of bytes 0..52 and the body |
//! | 56 | | the body: per step its length in 4 bytes, never 0, and its bytes; then zeros up to the page |
//!
//! Frames start on pages of their own so that no write ever touches a page that holds an
//! acknowledged step. The journal's id is random: what a peer sends lands in a body and cannot be
//! made to look like a frame. This module knows neither order nor files' names.

use std::io;
use std::ops::Range;

use crate::disk::DiskFile;

/// What frames are aligned to: the unit in which the kernel and the disk write.
pub(crate) const PAGE: u64 = 4096;
/// [`PAGE`] as a length in memory.
pub(crate) const PAGE_BYTES: usize = 4096;
/// Bytes before the body.
pub(crate) const HEAD_BYTES: usize = 56;
/// Bytes before each step in the body.
pub(crate) const STEP_HEAD_BYTES: usize = 4;
/// The version this code writes.
pub(crate) const VERSION: u16 = 1;

/// A page that was never written.
pub(crate) static ZEROS: [u8; PAGE_BYTES] = [0; PAGE_BYTES];

const MAGIC: [u8; 4] = *b"MRJF";
const CRC_AT: usize = 52;

/// What a page-aligned unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Steps.
    Frame,
    /// The frame before was flushed.
    Seal,
    /// The same, and the next frame is in a later segment, which exists.
    SealContinued,
}

impl Kind {
    fn code(self) -> u16 {
        match self {
            Kind::Frame => 1,
            Kind::Seal => 2,
            Kind::SealContinued => 3,
        }
    }

    fn from_code(code: u16) -> Option<Kind> {
        [Kind::Frame, Kind::Seal, Kind::SealContinued].into_iter().find(|kind| kind.code() == code)
    }
}

/// What stands before the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) kind: Kind,
    pub(crate) id: u64,
    pub(crate) segment: u64,
    pub(crate) frame: u64,
    pub(crate) first_ticket: u64,
    pub(crate) previous_crc: u32,
}

/// Writes one unit into `out`, padded to whole pages, and returns its CRC.
pub(crate) fn encode<'a>(head: &Head, steps: impl Iterator<Item = &'a [u8]>, out: &mut Vec<u8>) -> u32 {
    out.clear();
    out.resize(HEAD_BYTES, 0);
    let mut count: u32 = 0;
    for step in steps {
        let bytes = u32::try_from(step.len()).expect("submit refuses steps above FLUSH_BYTES_MAX");
        out.extend_from_slice(&bytes.to_le_bytes());
        out.extend_from_slice(step);
        count += 1;
    }
    let body = u32::try_from(out.len() - HEAD_BYTES).expect("a flush is at most FLUSH_BYTES_MAX");
    out[0..4].copy_from_slice(&MAGIC);
    out[4..6].copy_from_slice(&VERSION.to_le_bytes());
    out[6..8].copy_from_slice(&head.kind.code().to_le_bytes());
    out[8..12].copy_from_slice(&body.to_le_bytes());
    out[12..16].copy_from_slice(&count.to_le_bytes());
    out[16..24].copy_from_slice(&head.id.to_le_bytes());
    out[24..32].copy_from_slice(&head.segment.to_le_bytes());
    out[32..40].copy_from_slice(&head.frame.to_le_bytes());
    out[40..48].copy_from_slice(&head.first_ticket.to_le_bytes());
    out[48..52].copy_from_slice(&head.previous_crc.to_le_bytes());
    let crc = crc(out);
    out[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
    out.resize(out.len().next_multiple_of(PAGE_BYTES), 0);
    crc
}

fn crc(unit: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&unit[..CRC_AT]), &unit[HEAD_BYTES..])
}

/// A unit whose CRC is right and whose journal and segment are the expected ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Valid {
    pub(crate) head: Head,
    pub(crate) steps: u32,
    pub(crate) body_bytes: usize,
    pub(crate) crc: u32,
}

impl Valid {
    /// Where the body is in the buffer that [`read`] filled.
    pub(crate) fn body(&self) -> Range<usize> {
        HEAD_BYTES..HEAD_BYTES + self.body_bytes
    }

    /// Bytes on disk, padding included.
    pub(crate) fn span(&self) -> u64 {
        ((HEAD_BYTES + self.body_bytes) as u64).next_multiple_of(PAGE)
    }
}

/// What stands at a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// A page of zeros: never written.
    Empty,
    /// A frame, a seal.
    Valid(Valid),
    /// Whole, and of a version this code does not know.
    Newer(u16),
    /// Anything else.
    Bad,
}

/// Where a unit is expected.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) id: u64,
    pub(crate) segment: u64,
    pub(crate) offset: u64,
    /// The end of the segment's file.
    pub(crate) end: u64,
}

/// Reads what stands at a place; a valid unit is then in `out` from its first byte.
pub(crate) fn read(file: &dyn DiskFile, place: Place, out: &mut Vec<u8>) -> io::Result<Unit> {
    out.clear();
    out.resize(PAGE_BYTES, 0);
    file.read_exact_at(out, place.offset)?;
    if out[..] == ZEROS {
        return Ok(Unit::Empty);
    }
    if out[0..4] != MAGIC {
        return Ok(Unit::Bad);
    }
    let bytes = HEAD_BYTES + number_u32(out, 8) as usize;
    if bytes as u64 > place.end - place.offset {
        return Ok(Unit::Bad);
    }
    if bytes > PAGE_BYTES {
        out.resize(bytes, 0);
        file.read_exact_at(&mut out[PAGE_BYTES..], place.offset + PAGE)?;
    }
    out.truncate(bytes);
    Ok(check(out, place))
}

fn check(unit: &[u8], place: Place) -> Unit {
    let found = number_u32(unit, CRC_AT);
    let is_ours = number_u64(unit, 16) == place.id && number_u64(unit, 24) == place.segment;
    if crc(unit) != found || !is_ours {
        return Unit::Bad;
    }
    let version = u16::from_le_bytes([unit[4], unit[5]]);
    if version != VERSION {
        return Unit::Newer(version);
    }
    let Some(kind) = Kind::from_code(u16::from_le_bytes([unit[6], unit[7]])) else {
        return Unit::Bad;
    };
    let valid = Valid {
        head: Head {
            kind,
            id: place.id,
            segment: place.segment,
            frame: number_u64(unit, 32),
            first_ticket: number_u64(unit, 40),
            previous_crc: number_u32(unit, 48),
        },
        steps: number_u32(unit, 12),
        body_bytes: unit.len() - HEAD_BYTES,
        crc: found,
    };
    if has_whole_steps(&valid, unit) { Unit::Valid(valid) } else { Unit::Bad }
}

fn has_whole_steps(valid: &Valid, unit: &[u8]) -> bool {
    let body = &unit[valid.body()];
    let mut at = 0;
    let mut steps: u32 = 0;
    while next_step(body, &mut at).is_some() {
        steps += 1;
    }
    let is_frame = valid.head.kind == Kind::Frame;
    at == body.len() && steps == valid.steps && is_frame == (steps > 0)
}

/// The step at `at`, which then points after it; `None` at the end or when no whole step is there.
pub(crate) fn next_step(body: &[u8], at: &mut usize) -> Option<Range<usize>> {
    let start = at.checked_add(STEP_HEAD_BYTES)?;
    let bytes = u32::from_le_bytes(body.get(*at..start)?.try_into().ok()?) as usize;
    let end = start.checked_add(bytes)?;
    if bytes == 0 || end > body.len() {
        return None;
    }
    *at = end;
    Some(start..end)
}

pub(crate) fn number_u32(bytes: &[u8], at: usize) -> u32 {
    let field = bytes[at..at + 4].try_into();
    u32::from_le_bytes(field.expect("four bytes were taken"))
}

pub(crate) fn number_u64(bytes: &[u8], at: usize) -> u64 {
    let field = bytes[at..at + 8].try_into();
    u64::from_le_bytes(field.expect("eight bytes were taken"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place { id: 7, segment: 3, offset: PAGE, end: 8 * PAGE };
    const STEPS: [&[u8]; 2] = [b"one", b"and two"];

    /// A unit without its padding.
    fn unit(kind: Kind, steps: &[&[u8]]) -> Vec<u8> {
        let head =
            Head { kind, id: PLACE.id, segment: PLACE.segment, frame: 9, first_ticket: 41, previous_crc: 0xdead_beef };
        let mut unit = Vec::new();
        encode(&head, steps.iter().copied(), &mut unit);
        unit.truncate(HEAD_BYTES + steps.iter().map(|step| STEP_HEAD_BYTES + step.len()).sum::<usize>());
        unit
    }

    /// What a unit is taken for after a change that its CRC agrees with.
    fn changed(mut unit: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Unit {
        change(&mut unit);
        let crc = crc(&unit);
        unit[CRC_AT..HEAD_BYTES].copy_from_slice(&crc.to_le_bytes());
        check(&unit, PLACE)
    }

    #[test]
    fn body_that_is_not_so_many_whole_steps() {
        let frame = || unit(Kind::Frame, &STEPS);
        let Unit::Valid(valid) = changed(frame(), |_| ()) else { panic!("it is whole") };
        assert_eq!((valid.steps, valid.body_bytes), (2, 2 * STEP_HEAD_BYTES + 10));
        assert_eq!(changed(frame(), |unit| unit[12] = 1), Unit::Bad, "it says one step");
        assert_eq!(changed(frame(), |unit| unit[12] = 3), Unit::Bad, "it says three");
        assert_eq!(changed(frame(), |unit| unit.push(0)), Unit::Bad, "a byte behind the last step");
        assert_eq!(changed(frame(), |unit| unit.truncate(unit.len() - 1)), Unit::Bad, "the last step is cut short");
        assert_eq!(changed(unit(Kind::Frame, &[b"one", b""]), |_| ()), Unit::Bad, "a step of no bytes");
    }

    #[test]
    fn frame_without_steps_and_seal_with_some() {
        assert_eq!(changed(unit(Kind::Frame, &[]), |_| ()), Unit::Bad);
        for kind in [Kind::Seal, Kind::SealContinued] {
            assert!(matches!(changed(unit(kind, &[]), |_| ()), Unit::Valid(_)));
            assert_eq!(changed(unit(kind, &STEPS), |_| ()), Unit::Bad);
        }
        assert_eq!(changed(unit(Kind::Frame, &STEPS), |unit| unit[6] = 4), Unit::Bad, "no kind that there is");
    }

    #[test]
    fn unit_in_another_journal_or_segment() {
        let unit = unit(Kind::Frame, &STEPS);
        assert!(matches!(check(&unit, PLACE), Unit::Valid(_)));
        assert_eq!(check(&unit, Place { id: 8, ..PLACE }), Unit::Bad);
        assert_eq!(check(&unit, Place { segment: 4, ..PLACE }), Unit::Bad);
    }
}
