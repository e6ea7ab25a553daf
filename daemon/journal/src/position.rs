//! Names of steps: the ticket a caller gets at once, and the position the step has on disk.
//!
//! A position is the public cursor of the event stream. This module does no I/O.

use std::fmt;

/// The number of a step in the order of submission, counted from 1 over the whole life of the journal.
///
/// A ticket whose step was never durable is given out again after a crash: that step never happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ticket {}", self.0)
    }
}

/// Where a durable step stands: the frame (counted from 1) and the step's index in it (from 0).
///
/// Positions order steps as they were submitted. A position may also stand between two steps: it
/// then means "the first step that is not below".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The number of the frame, from 1.
    pub frame: u64,
    /// The index of the step in its frame, from 0.
    pub index: u32,
}

impl Position {
    /// The position of the first step of a journal.
    pub const START: Position = Position { frame: 1, index: 0 };

    /// The lowest position above this one: where somebody who has seen this step reads on.
    #[must_use]
    pub fn after(self) -> Position {
        match self.index.checked_add(1) {
            Some(index) => Position { index, ..self },
            None => Position::start_of(self.frame + 1),
        }
    }

    /// The position of the first step of a frame.
    #[must_use]
    pub fn start_of(frame: u64) -> Position {
        Position { frame, index: 0 }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.frame, self.index)
    }
}

/// One flush that has returned: which tickets are durable by it, and at which positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flush {
    pub(crate) frame: u64,
    pub(crate) first: Ticket,
    pub(crate) steps: u32,
}

impl Flush {
    /// A flush of another log than this crate's: so many steps, at least one, of which this is the first.
    #[must_use]
    pub const fn new(frame: u64, first: Ticket, steps: u32) -> Self {
        Self { frame, first, steps }
    }

    /// The first ticket of this flush.
    #[must_use]
    pub fn first(&self) -> Ticket {
        self.first
    }

    /// The last ticket of this flush: it and every lower one are durable.
    #[must_use]
    pub fn up_to(&self) -> Ticket {
        Ticket(self.first.0 + u64::from(self.steps) - 1)
    }

    /// The position of a ticket, if its step is in this flush.
    #[must_use]
    pub fn position(&self, ticket: Ticket) -> Option<Position> {
        let index = u32::try_from(ticket.0.checked_sub(self.first.0)?).ok()?;
        (index < self.steps).then_some(Position { frame: self.frame, index })
    }

    /// The position above every step of this flush.
    #[must_use]
    pub fn end(&self) -> Position {
        Position::start_of(self.frame + 1)
    }
}

/// A step as it was read back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DurableStep {
    /// The ticket under which it was submitted.
    pub ticket: Ticket,
    /// Where it stands.
    pub position: Position,
    /// What was submitted.
    pub bytes: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flush_knows_the_positions_of_its_own_tickets_only() {
        let flush = Flush { frame: 7, first: Ticket(40), steps: 3 };
        assert_eq!(flush.up_to(), Ticket(42));
        assert_eq!(flush.position(Ticket(39)), None);
        assert_eq!(flush.position(Ticket(40)), Some(Position { frame: 7, index: 0 }));
        assert_eq!(flush.position(Ticket(42)), Some(Position { frame: 7, index: 2 }));
        assert_eq!(flush.position(Ticket(43)), None);
        assert_eq!(flush.end(), Position::start_of(8));
    }

    #[test]
    fn after_the_highest_index_comes_the_next_frame() {
        let last = Position { frame: 3, index: u32::MAX };
        assert_eq!(last.after(), Position::start_of(4));
        assert_eq!(Position::START.after(), Position { frame: 1, index: 1 });
    }
}
