//! What the cells came to: a line each, the story of those that failed, and the counts.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use serde::Serialize;

use super::cell::Cell;
use super::judge::Sums;

/// How one cell ended.
#[derive(Clone, Debug)]
pub enum Ended {
    /// As the rules say: in words, and its story if that was asked for.
    Covered(String, Option<String>),
    /// Otherwise: why, and its story.
    Failed(String),
}

/// What a run came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// Whether every cell that can be played was, and ended as the rules say.
    pub ok: bool,
    /// Cells that were played.
    pub cases: usize,
    /// Cells in which nothing can be played.
    pub impossible: usize,
    /// Cells that ended otherwise, or were not played.
    pub failed: usize,
    /// Their names.
    pub failed_cells: Vec<String>,
    /// What everything that is drawn was drawn from.
    pub seed: u64,
    /// Starts of the daemon after a kill.
    pub restarts: u32,
    /// How long it took.
    pub seconds: u64,
}

impl Outcomes {
    /// Of all that was asked for: an empty cell counts as failed.
    #[must_use]
    pub fn of(asked: &[Cell], ended: &BTreeMap<Cell, Ended>, seed: u64, restarts: u32, took: Duration) -> Self {
        let possible = asked.iter().filter(|cell| cell.impossible().is_none());
        let is_covered = |cell: &Cell| matches!(ended.get(cell), Some(Ended::Covered(..)));
        let failed_cells: Vec<String> =
            possible.clone().filter(|cell| !is_covered(cell)).map(ToString::to_string).collect();
        Self {
            ok: failed_cells.is_empty() && possible.count() > 0,
            cases: asked.iter().filter(|cell| ended.contains_key(cell)).count(),
            impossible: asked.iter().filter(|cell| cell.impossible().is_some()).count(),
            failed: failed_cells.len(),
            failed_cells,
            seed,
            restarts,
            seconds: took.as_secs(),
        }
    }
}

/// The line of a cell that ended as it should.
pub(super) fn covered(sums: &Sums) -> String {
    format!("{} sat ours, {} sat fees of {} at most", sums.due_sat, sums.fees_sat, sums.fees_sat_max)
}

/// Tells of one cell. A closed standard error is no reason to stop.
pub(super) fn tell(cell: &Cell, ended: &Ended, took: Duration, seed: u64) {
    let mut out = std::io::stderr();
    let seconds = took.as_secs();
    let _ = match ended {
        Ended::Covered(words, story) => {
            write!(out, "✓ {cell}  {words}  ({seconds} s)\n{}", story.as_deref().unwrap_or_default())
        }
        Ended::Failed(story) => {
            let again = format!("millrace-regtest matrix --seed {seed} --cell {cell}");
            writeln!(out, "✗ {cell}  ({seconds} s)\n{story}    again: {again}")
        }
    };
}

/// Tells of a cell in which nothing can be played.
pub(super) fn tell_impossible(cell: &Cell, why: &str) {
    let _ = writeln!(std::io::stderr(), "– {cell}  impossible: {why}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn cells() -> Vec<Cell> {
        let names = [
            "ours/nothing/never/silent/no-reorg",
            "ours/nothing/early/silent/no-reorg",
            "theirs/both/late/claims/swap",
        ];
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    fn of(ended: &[(Cell, Ended)]) -> Outcomes {
        Outcomes::of(&cells(), &ended.iter().cloned().collect(), 1, 0, Duration::ZERO)
    }

    #[test]
    fn every_cell_covered() {
        let done = Ended::Covered(String::new(), None);
        let outcomes = of(&[(cells()[0], done.clone()), (cells()[2], done)]);
        assert_eq!((outcomes.ok, outcomes.cases, outcomes.impossible, outcomes.failed), (true, 2, 1, 0));
    }

    #[test]
    fn an_empty_cell_fails() {
        let outcomes = of(&[(cells()[0], Ended::Covered(String::new(), None))]);
        assert_eq!((outcomes.ok, outcomes.cases, outcomes.impossible, outcomes.failed), (false, 1, 1, 1));
        assert_eq!(outcomes.failed_cells, ["theirs/both/late/claims/swap"]);
        assert!(!Outcomes::of(&[], &BTreeMap::new(), 1, 0, Duration::ZERO).ok, "nothing asked for is nothing shown");
    }

    #[test]
    fn one_that_fails() {
        let ended = [(cells()[0], Ended::Covered(String::new(), None)), (cells()[2], Ended::Failed("why".to_owned()))];
        let outcomes = of(&ended);
        assert_eq!((outcomes.ok, outcomes.cases, outcomes.failed), (false, 2, 1));
    }
}
