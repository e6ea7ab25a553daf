//! Walking the frames of the tail to the last one, and judging what lies behind it.
//!
//! It reads only. Frames follow each other by number, ticket and the CRC of the one before; a
//! segment may end early, and a later one may be empty. Behind the last frame there may be its seal,
//! then zeros; whatever else is there is a torn tail, unless it proves that a flushed frame is damaged.

use crate::corruption::Corruption;
use crate::disk::failed;
use crate::frame::{self, Kind, PAGE, PAGE_BYTES, Place, Unit, Valid};
use crate::recovery::{OpenError, Report, TornTail};
use crate::segment::Segment;
use crate::writer::Last;

/// How much is looked through at a time for anything but zeros.
const SCAN_BYTES: usize = 64 * PAGE_BYTES;

/// What is not zero behind the last frame, in whole pages of one segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dirt {
    pub(super) at: usize,
    pub(super) first: u64,
    pub(super) end: u64,
}

/// Where the walk ended.
pub(super) struct Walked {
    /// The segment, as an index.
    pub(super) at: usize,
    /// Where the next frame goes.
    pub(super) offset: u64,
    pub(super) last: Last,
    /// Segment, offset and bytes of the last frame.
    pub(super) last_at: Option<(usize, u64, usize)>,
    pub(super) dirt: Vec<Dirt>,
    pub(super) report: Report,
}

/// The number of the frame each segment starts with; `None` where no whole frame is.
pub(super) fn first_frames(id: u64, segments: &[Segment]) -> Result<Vec<Option<u64>>, OpenError> {
    let mut buffer = Vec::new();
    let mut firsts = Vec::with_capacity(segments.len());
    for segment in segments {
        firsts.push(match read(id, segment, PAGE, &mut buffer)? {
            Unit::Valid(valid) if valid.head.kind == Kind::Frame => Some(valid.head.frame),
            Unit::Valid(_) | Unit::Empty | Unit::Bad | Unit::Newer(_) => None,
        });
    }
    Ok(firsts)
}

fn read(id: u64, segment: &Segment, offset: u64, out: &mut Vec<u8>) -> Result<Unit, OpenError> {
    let place = Place { id, segment: segment.number, offset, end: segment.bytes };
    let unit = frame::read(&*segment.file, place, out).map_err(failed("read", &segment.path))?;
    match unit {
        Unit::Newer(version) => Err(OpenError::Newer { file: segment.path.clone(), version }),
        Unit::Valid(_) | Unit::Empty | Unit::Bad => Ok(unit),
    }
}

pub(super) struct Walk<'a> {
    id: u64,
    segments: &'a [Segment],
    buffer: Vec<u8>,
    /// Of the frame before the tail, the number alone is known.
    is_linked: bool,
    walked: Walked,
}

impl<'a> Walk<'a> {
    /// A walk from the segment that has the frame `replay_from`, or would have it.
    pub(super) fn new(id: u64, segments: &'a [Segment], firsts: &[Option<u64>], replay_from: u64) -> Walk<'a> {
        let is_below = |first: &Option<u64>| first.is_some_and(|first| first <= replay_from);
        let at = firsts.iter().rposition(is_below).unwrap_or(0);
        let first = firsts[at].unwrap_or(1);
        Walk {
            id,
            segments,
            buffer: Vec::new(),
            is_linked: first == 1,
            walked: Walked {
                at,
                offset: PAGE,
                last: Last { frame: first - 1, crc: 0, next_ticket: 1 },
                last_at: None,
                dirt: Vec::new(),
                report: Report::default(),
            },
        }
    }

    pub(super) fn run(mut self) -> Result<Walked, OpenError> {
        loop {
            let (at, offset) = (self.walked.at, self.walked.offset);
            let unit = read(self.id, &self.segments[at], offset, &mut self.buffer)?;
            match unit {
                Unit::Valid(valid) if valid.head.kind == Kind::Frame => self.accept(&valid)?,
                Unit::Valid(_) | Unit::Empty | Unit::Bad | Unit::Newer(_) => {
                    let Some(next) = self.look_behind(unit)? else {
                        return Ok(self.walked);
                    };
                    self.walked.at = next;
                    self.walked.offset = PAGE;
                }
            }
        }
    }

    fn accept(&mut self, valid: &Valid) -> Result<(), OpenError> {
        let (head, last) = (valid.head, self.walked.last);
        let is_next = head.frame == last.frame + 1;
        let follows = head.first_ticket == last.next_ticket && head.previous_crc == last.crc;
        if !is_next || (self.is_linked && !follows) {
            let what = format!("frame {} stands here, and does not follow frame {}", head.frame, last.frame);
            return Err(self.corruption(what).into());
        }
        let bytes = usize::try_from(valid.span()).expect("a frame that was read fits into memory");
        let walked = &mut self.walked;
        walked.last =
            Last { frame: head.frame, crc: valid.crc, next_ticket: head.first_ticket + u64::from(valid.steps) };
        walked.last_at = Some((walked.at, walked.offset, bytes));
        walked.offset += valid.span();
        walked.report.frames += 1;
        walked.report.steps += u64::from(valid.steps);
        walked.report.bytes += valid.span();
        self.is_linked = true;
        Ok(())
    }

    /// Behind a frame no other follows: the segment in which the next one is, or `None` at the journal's end.
    fn look_behind(&mut self, unit: Unit) -> Result<Option<usize>, OpenError> {
        let at = self.walked.at;
        let mut rest = self.walked.offset;
        let mut is_continued = false;
        self.walked.report.is_sealed = false;
        if let Unit::Valid(seal) = unit {
            self.check_seal(&seal)?;
            is_continued = seal.head.kind == Kind::SealContinued;
            self.walked.report.is_sealed = true;
            rest += PAGE;
        }
        self.scan(at, rest)?;
        for later in at + 1..self.segments.len() {
            if self.walked.dirt.is_empty() && self.starts_with_next(later)? {
                return Ok(Some(later));
            }
            self.scan(later, PAGE)?;
        }
        if is_continued && at + 1 == self.segments.len() {
            let number = self.segments[at].number + 1;
            return Err(self.corruption(format!("the journal goes on in segment {number}, which is missing")).into());
        }
        self.report_torn();
        Ok(None)
    }

    fn check_seal(&self, seal: &Valid) -> Result<(), Corruption> {
        let (sealed, last) = (seal.head.frame, self.walked.last);
        if sealed != last.frame {
            let found = last.frame;
            return Err(self.corruption(format!("frame {sealed} was flushed, and frame {found} is the last here")));
        }
        if self.is_linked && seal.head.previous_crc != last.crc {
            return Err(self.corruption(format!("another frame {sealed} was flushed than the one that is here")));
        }
        Ok(())
    }

    fn starts_with_next(&mut self, at: usize) -> Result<bool, OpenError> {
        let unit = read(self.id, &self.segments[at], PAGE, &mut self.buffer)?;
        let next = self.walked.last.frame + 1;
        Ok(matches!(unit, Unit::Valid(valid) if valid.head.kind == Kind::Frame && valid.head.frame == next))
    }

    /// Looks through what should be zeros. Anything whole in it proves that a frame before it was flushed.
    fn scan(&mut self, at: usize, from: u64) -> Result<(), OpenError> {
        let segment = &self.segments[at];
        let mut window = vec![0; SCAN_BYTES];
        let mut offset = from;
        let mut dirt: Option<Dirt> = None;
        while offset < segment.bytes {
            let length = usize::try_from(segment.bytes - offset).map_or(SCAN_BYTES, |left| left.min(SCAN_BYTES));
            let window = &mut window[..length];
            segment.file.read_exact_at(window, offset).map_err(failed("read", &segment.path))?;
            for (page, bytes) in window.chunks(PAGE_BYTES).enumerate() {
                if *bytes == frame::ZEROS {
                    continue;
                }
                let found = offset + (page * PAGE_BYTES) as u64;
                if let Unit::Valid(valid) = read(self.id, segment, found, &mut self.buffer)? {
                    return Err(self.later(segment, found, &valid).into());
                }
                let first = dirt.map_or(found, |dirt| dirt.first);
                dirt = Some(Dirt { at, first, end: found + PAGE });
            }
            offset += length as u64;
        }
        self.walked.dirt.extend(dirt);
        Ok(())
    }

    fn later(&self, segment: &Segment, offset: u64, valid: &Valid) -> Corruption {
        let file = segment.path.display();
        self.corruption(match valid.head.kind {
            Kind::Frame => format!("damaged, and frame {} follows in {file} at byte {offset}", valid.head.frame),
            Kind::Seal | Kind::SealContinued => {
                format!("damaged, and {file} says at byte {offset} that frame {} was flushed", valid.head.frame)
            }
        })
    }

    fn corruption(&self, what: String) -> Corruption {
        let segment = &self.segments[self.walked.at];
        Corruption::new(&segment.path, self.walked.offset, self.walked.last.frame + 1, what)
    }

    fn report_torn(&mut self) {
        let Some(first) = self.walked.dirt.first() else {
            return;
        };
        let bytes = self.walked.dirt.iter().map(|dirt| dirt.end - dirt.first).sum();
        let frame = self.walked.last.frame + 1;
        let file = &self.segments[first.at].path;
        self.walked.report.torn = Some(TornTail::new(file, first.first, bytes, frame));
    }
}
