//! Reads history in order, across files, while appends go on.

use std::sync::Arc;

use super::chunk::{self, Chunk, Valid};
use super::{History, HistoryFile};
use crate::corruption::Corruption;
use crate::disk::failed;
use crate::position::Position;
use crate::reader::ReadError;

/// A place in the history to read on from.
pub struct HistoryReader {
    history: Arc<History>,
    from: Position,
    home: Option<HistoryFile>,
    /// Where the next append stands, and the position it must cover from.
    offset: u64,
    next: Position,
    loaded: Option<(Valid, usize)>,
    buffer: Vec<u8>,
}

impl HistoryReader {
    pub(super) fn new(history: Arc<History>, from: Position) -> Result<HistoryReader, ReadError> {
        let (oldest, end) = (history.oldest(), history.covered_up_to());
        if from < oldest {
            return Err(ReadError::Gone { from, oldest });
        }
        if from > end {
            return Err(ReadError::Ahead { from, end });
        }
        Ok(HistoryReader { history, from, home: None, offset: 0, next: from, loaded: None, buffer: Vec::new() })
    }

    /// The next item; `None` when there is none yet, and then it may be asked again.
    pub fn next_item(&mut self) -> Result<Option<(Position, Vec<u8>)>, ReadError> {
        loop {
            let Some((_, at)) = &mut self.loaded else {
                if self.load()? {
                    continue;
                }
                return Ok(None);
            };
            match chunk::next_item(&self.buffer, at) {
                Some((position, bytes)) if position >= self.from => {
                    return Ok(Some((position, bytes.to_vec())));
                }
                Some(_) => {}
                None => self.loaded = None,
            }
        }
    }

    /// Reads the next append; `false` when there is none yet.
    fn load(&mut self) -> Result<bool, ReadError> {
        let Some((home, covered)) = self.find_home()? else {
            return Ok(false);
        };
        let read = chunk::read(&*home.file, self.history.index.id, self.offset, home.bytes, &mut self.buffer);
        match read.map_err(failed("read", &home.path))? {
            Chunk::End if self.next == covered => Ok(false),
            Chunk::Valid(valid) if valid.from == self.next => {
                self.offset += valid.span();
                self.next = valid.covers;
                self.loaded = Some((valid, chunk::first_item()));
                Ok(true)
            }
            found => {
                let what = format!("history from {} cannot be read back ({found:?})", self.next);
                Err(Corruption::new(&home.path, self.offset, self.next.frame, what).into())
            }
        }
    }

    /// The file that holds what is next, and how far the history goes with its length as it is.
    fn find_home(&mut self) -> Result<Option<(HistoryFile, Position)>, ReadError> {
        let state = self.history.lock();
        if state.files.is_empty() {
            return Ok(None);
        }
        let after = state.files.partition_point(|file| file.from <= self.next);
        let Some(index) = after.checked_sub(1) else {
            let oldest = state.files[0].from;
            return Err(ReadError::Gone { from: self.next, oldest });
        };
        let home = state.files[index].clone();
        let is_new = self.home.as_ref().is_none_or(|old| old.from != home.from);
        if is_new {
            self.offset = 0;
            self.next = home.from;
            self.home = Some(home.clone());
        }
        Ok(Some((home, state.covered)))
    }
}
