//! Reads durable steps in order, across segments, while the writer goes on.
//!
//! A reader never shows a step whose flush has not returned, and does not keep segments from being
//! removed: one that falls behind is told what is left, and goes on from `history/`.

use std::path::PathBuf;
use std::sync::Arc;

use crate::corruption::Corruption;
use crate::disk::{FileError, failed};
use crate::frame::{self, Kind, PAGE, Place, Unit, Valid};
use crate::index::{Index, Started};
use crate::position::{DurableStep, Position, Ticket};

/// Why there is nothing to read at a position.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was removed.
    #[error("position {from} is gone: the oldest kept is {oldest}")]
    Gone {
        /// What was asked for.
        from: Position,
        /// The lowest position that can be read.
        oldest: Position,
    },
    /// It has not been reached.
    #[error("position {from} is above the end, {end}")]
    Ahead {
        /// What was asked for.
        from: Position,
        /// The position above every durable step.
        end: Position,
    },
    /// What was durable is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corruption),
    /// The disk would not give it.
    #[error(transparent)]
    File(#[from] FileError),
}

/// A place in the journal to read on from.
pub struct Reader {
    index: Arc<Index>,
    home: Started,
    offset: u64,
    next_frame: u64,
    from: Position,
    loaded: Option<Loaded>,
    buffer: Vec<u8>,
}

struct Loaded {
    valid: Valid,
    at: usize,
    steps: u32,
}

impl Reader {
    pub(crate) fn new(index: Arc<Index>, from: Position) -> Result<Reader, ReadError> {
        let end = index.durable_end();
        if from.frame > end.frame || (from.frame == end.frame && from.index > 0) {
            return Err(ReadError::Ahead { from, end });
        }
        let oldest = index.oldest();
        let Some(home) = index.find(from.frame) else {
            return Err(ReadError::Gone { from, oldest });
        };
        Ok(Reader { next_frame: home.first_frame, home, index, offset: PAGE, from, loaded: None, buffer: Vec::new() })
    }

    /// The next durable step; `None` when there is none yet, and then it may be asked again.
    pub fn next_step(&mut self) -> Result<Option<DurableStep>, ReadError> {
        loop {
            if let Some(step) = self.step_of_loaded() {
                if step.position >= self.from {
                    return Ok(Some(step));
                }
            } else if !self.load()? {
                return Ok(None);
            }
        }
    }

    fn step_of_loaded(&mut self) -> Option<DurableStep> {
        let loaded = self.loaded.as_mut()?;
        let body = &self.buffer[loaded.valid.body()];
        let Some(range) = frame::next_step(body, &mut loaded.at) else {
            self.loaded = None;
            return None;
        };
        let index = loaded.steps;
        loaded.steps += 1;
        let head = loaded.valid.head;
        Some(DurableStep {
            ticket: Ticket(head.first_ticket + u64::from(index)),
            position: Position { frame: head.frame, index },
            bytes: body[range].to_vec(),
        })
    }

    /// Reads the next frame; `false` when its flush has not returned.
    fn load(&mut self) -> Result<bool, ReadError> {
        if self.next_frame > self.index.durable_frame() {
            return Ok(false);
        }
        self.go_to_home()?;
        let place = Place {
            id: self.index.id,
            segment: self.home.segment.number,
            offset: self.offset,
            end: self.home.segment.bytes,
        };
        let unit = frame::read(&*self.home.segment.file, place, &mut self.buffer);
        match unit.map_err(failed("read", &self.home.segment.path))? {
            Unit::Valid(valid) if valid.head.kind == Kind::Frame && valid.head.frame == self.next_frame => {
                self.offset += valid.span();
                self.next_frame += 1;
                self.loaded = Some(Loaded { valid, at: 0, steps: 0 });
                Ok(true)
            }
            unit => Err(self.corruption(unit).into()),
        }
    }

    fn go_to_home(&mut self) -> Result<(), ReadError> {
        let Some(home) = self.index.find(self.next_frame) else {
            return Err(ReadError::Gone {
                from: self.from.max(Position::start_of(self.next_frame)),
                oldest: self.index.oldest(),
            });
        };
        if home.segment.number != self.home.segment.number {
            self.next_frame = home.first_frame;
            self.offset = PAGE;
            self.home = home;
        }
        Ok(())
    }

    fn corruption(&self, unit: Unit) -> Corruption {
        let path: &PathBuf = &self.home.segment.path;
        let what = format!("a durable frame cannot be read back ({unit:?})");
        Corruption::new(path, self.offset, self.next_frame, what)
    }
}

/// The steps that were durable when the journal was opened, from the checkpoint's `replay_from` on.
///
/// It reads one frame at a time and ends where the journal ended at its opening, whatever is submitted meanwhile.
pub struct Tail {
    reader: Reader,
    end: Position,
}

impl Tail {
    pub(crate) fn new(index: Arc<Index>, from: Position) -> Result<Tail, ReadError> {
        let end = index.durable_end();
        Ok(Tail { reader: Reader::new(index, from)?, end })
    }
}

impl Iterator for Tail {
    type Item = Result<DurableStep, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.reader.loaded.is_none() && self.reader.next_frame >= self.end.frame {
            return None;
        }
        match self.reader.next_step() {
            Ok(Some(step)) if step.position < self.end => Some(Ok(step)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        }
    }
}
