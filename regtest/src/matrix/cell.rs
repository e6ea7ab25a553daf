//! One cell: which commitment stands in the end, what was in flight, who knew which preimage when, what the peer does on
//! chain, and whether another commitment stood there first.

use std::fmt;
use std::str::FromStr;

use super::pairwise::pairwise;

/// Which commitment stands in the end. "Ours" is the daemon's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stands {
    /// The daemon's newest.
    Ours,
    /// The peer's, whose revocation nobody has asked for.
    Theirs,
    /// The peer's next one: the daemon has signed it, and its predecessor is not revoked.
    TheirNext,
    /// One that the peer has revoked.
    Revoked,
}

/// What is in flight.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum InFlight {
    /// Nothing.
    None,
    /// An HTLC that the daemon offered.
    Offered,
    /// An HTLC that the daemon received.
    Received,
    /// One of each.
    Both,
    /// Two of each, all with the same hash and the same amount.
    Equal,
}

/// When the one whom an HTLC pays learns its preimage: the daemon's owner of what the daemon received, the peer of what
/// the daemon offered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Known {
    /// Before any commitment is in a block.
    Early,
    /// Once the commitment is in a block, and before the HTLC expires.
    Late,
    /// Never.
    Never,
}

/// What the peer does on chain, besides publishing what it publishes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Conduct {
    /// Nothing.
    Silent,
    /// Claims what it can as soon as it can, each output by a transaction of its own.
    Claims,
    /// The same, with as much in one transaction as will go, and that in another order.
    Aggregates,
}

/// Whether the chain changes its mind.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Reorg {
    /// It does not.
    None,
    /// Another commitment was some blocks deep before the one that stands.
    Swaps,
}

/// The form of the commitments.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Form {
    /// With anchors.
    Anchors,
    /// `option_static_remotekey` alone.
    Static,
}

/// What brings about the next commitment of the peer, which revokes none for it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Next {
    /// `update_fee`.
    Fee,
    /// One more HTLC of the daemon's.
    Adds,
    /// The peer fulfils an HTLC that the daemon offered.
    Fulfills,
    /// The peer fails one.
    Fails,
    /// The daemon fulfils what it received.
    Settles,
}

/// A cell.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Cell {
    /// Which commitment stands in the end.
    pub stands: Stands,
    /// What is in flight.
    pub in_flight: InFlight,
    /// When preimages become known.
    pub known: Known,
    /// What the peer does.
    pub conduct: Conduct,
    /// Whether another commitment stood there first.
    pub reorg: Reorg,
    /// The form of the commitments.
    pub form: Form,
}

/// The values of each dimension and their names.
const STANDS: [(Stands, &str); 4] = [
    (Stands::Ours, "ours"),
    (Stands::Theirs, "theirs"),
    (Stands::TheirNext, "their-next"),
    (Stands::Revoked, "revoked"),
];
const IN_FLIGHT: [(InFlight, &str); 5] = [
    (InFlight::None, "nothing"),
    (InFlight::Offered, "offered"),
    (InFlight::Received, "received"),
    (InFlight::Both, "both"),
    (InFlight::Equal, "equal"),
];
const KNOWN: [(Known, &str); 3] = [(Known::Early, "early"), (Known::Late, "late"), (Known::Never, "never")];
const CONDUCT: [(Conduct, &str); 3] =
    [(Conduct::Silent, "silent"), (Conduct::Claims, "claims"), (Conduct::Aggregates, "aggregates")];
const REORG: [(Reorg, &str); 2] = [(Reorg::None, "no-reorg"), (Reorg::Swaps, "swap")];
const FORM: [(Form, &str); 2] = [(Form::Anchors, "anchors"), (Form::Static, "static")];

fn name_of<T: PartialEq + Copy, const N: usize>(names: &[(T, &'static str); N], value: T) -> &'static str {
    names.iter().find(|(other, _)| *other == value).map_or("", |(_, name)| name)
}

fn by_name<T: Copy, const N: usize>(names: &[(T, &'static str); N], name: &str) -> Result<T, String> {
    let found = names.iter().find(|(_, other)| *other == name).map(|(value, _)| *value);
    found.ok_or_else(|| {
        let known: Vec<&str> = names.iter().map(|(_, name)| *name).collect();
        format!("`{name}` is none of {}", known.join(", "))
    })
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            name_of(&STANDS, self.stands),
            name_of(&IN_FLIGHT, self.in_flight),
            name_of(&KNOWN, self.known),
            name_of(&CONDUCT, self.conduct),
            name_of(&REORG, self.reorg),
        ];
        f.write_str(&names.join("/"))?;
        match self.form {
            Form::Anchors => Ok(()),
            Form::Static => write!(f, "/{}", name_of(&FORM, self.form)),
        }
    }
}

impl FromStr for Cell {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let words: Vec<&str> = text.split('/').collect();
        let (stands, in_flight, known, conduct, reorg, form) = match words[..] {
            [stands, in_flight, known, conduct, reorg] => (stands, in_flight, known, conduct, reorg, "anchors"),
            [stands, in_flight, known, conduct, reorg, form] => (stands, in_flight, known, conduct, reorg, form),
            _ => return Err(format!("`{text}` is no cell: one is ours/both/late/claims/no-reorg, for example")),
        };
        Ok(Self {
            stands: by_name(&STANDS, stands)?,
            in_flight: by_name(&IN_FLIGHT, in_flight)?,
            known: by_name(&KNOWN, known)?,
            conduct: by_name(&CONDUCT, conduct)?,
            reorg: by_name(&REORG, reorg)?,
            form: by_name(&FORM, form)?,
        })
    }
}

impl Cell {
    /// Why nothing can be played in this cell, if nothing can.
    #[must_use]
    pub fn impossible(&self) -> Option<&'static str> {
        if self.in_flight != InFlight::None {
            return None;
        }
        if self.known != Known::Never {
            return Some("nothing is in flight, so there is no preimage to be known");
        }
        (self.conduct == Conduct::Aggregates)
            .then_some("nothing is in flight, so the peer has one output to claim, and nothing to put beside it")
    }

    /// The commitment that stood there before the reorg, if there is one: every one of the others comes before each.
    #[must_use]
    pub fn first(&self) -> Option<Stands> {
        if self.reorg == Reorg::None {
            return None;
        }
        let others: Vec<Stands> =
            STANDS.iter().map(|(other, _)| *other).filter(|other| *other != self.stands).collect();
        let turn = self.in_flight as usize + self.known as usize + self.conduct as usize;
        Some(others[turn % others.len()])
    }

    /// What brings about the peer's next commitment, where there is one.
    pub(super) const fn next_by(&self) -> Next {
        if matches!((self.conduct, self.reorg), (Conduct::Silent, Reorg::None)) {
            return Next::Fee;
        }
        // What was in flight is settled by then, and in no present commitment any more.
        let is_resolved = matches!((self.stands, self.known), (Stands::Revoked, Known::Early));
        match (self.in_flight, self.known) {
            (InFlight::None, _) => Next::Fee,
            (_, Known::Early) if is_resolved => Next::Adds,
            (InFlight::Received, Known::Early) => Next::Settles,
            (InFlight::Offered | InFlight::Both | InFlight::Equal, Known::Early) => Next::Fulfills,
            (InFlight::Offered | InFlight::Both | InFlight::Equal, Known::Never) => Next::Fails,
            (InFlight::Received, Known::Never) => Next::Adds,
            (InFlight::Offered | InFlight::Received | InFlight::Both | InFlight::Equal, Known::Late) => Next::Adds,
        }
    }

    /// Whether preimages that are known late are so while the commitment stands that a reorg takes out: in every other cell.
    /// Not where the daemon's own claim would show the peer's preimage too, in a block or not, and the one that stands in the
    /// end is revoked: then both ends would be right.
    pub(super) fn is_told_before_swap(&self) -> bool {
        let is_ambiguous = self.stands == Stands::Revoked && self.in_flight == InFlight::Equal;
        let turn = self.in_flight as usize + self.conduct as usize + self.stands as usize;
        self.reorg == Reorg::Swaps && self.known == Known::Late && !is_ambiguous && turn.is_multiple_of(2)
    }

    /// Whether a commitment of this cell is one of the daemon's.
    #[must_use]
    pub fn has(&self, stands: Stands) -> bool {
        self.stands == stands || self.first() == Some(stands)
    }
}

/// Every cell of the matrix, those in which nothing can be played too; and those of the channels without anchors: each
/// commitment with everything in flight, claimed by the peer.
#[must_use]
pub fn all() -> Vec<Cell> {
    let mut cells = Vec::new();
    for (form, _) in FORM {
        for (stands, _) in STANDS {
            for (in_flight, _) in IN_FLIGHT {
                for (known, _) in KNOWN {
                    for (conduct, _) in CONDUCT {
                        for (reorg, _) in REORG {
                            cells.push(Cell { stands, in_flight, known, conduct, reorg, form });
                        }
                    }
                }
            }
        }
    }
    cells.retain(|cell| cell.form == Form::Anchors || (cell.conduct == Conduct::Claims && cell.reorg == Reorg::None));
    cells
}

/// A subset with every pair of values of two dimensions that some cell has: drawn by the seed, small.
#[must_use]
pub fn subset(seed: u64) -> Vec<Cell> {
    let possible: Vec<Cell> =
        all().into_iter().filter(|cell| cell.form == Form::Anchors && cell.impossible().is_none()).collect();
    let values =
        |cell: &Cell| [cell.stands as u8, cell.in_flight as u8, cell.known as u8, cell.conduct as u8, cell.reorg as u8];
    pairwise(&possible, values, seed)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn all_are_360_and_those_without_anchors() {
        let cells = all();
        let anchors: Vec<_> = cells.iter().filter(|cell| cell.form == Form::Anchors).collect();
        assert_eq!(anchors.len(), 4 * 5 * 3 * 3 * 2);
        assert_eq!(anchors.iter().filter(|cell| cell.impossible().is_some()).count(), 4 * (2 * 3 * 2 + 2));
        assert_eq!(cells.len() - anchors.len(), 4 * 5 * 3);
    }

    #[test]
    fn a_name_is_read_as_the_cell_that_has_it() {
        let cells = all();
        let names: std::collections::BTreeSet<String> = cells.iter().map(ToString::to_string).collect();
        assert_eq!(names.len(), cells.len());
        for cell in cells {
            assert_eq!(cell.to_string().parse::<Cell>().unwrap(), cell);
        }
        assert!("ours/both/late/claims".parse::<Cell>().unwrap_err().contains("is no cell"));
        assert!("ours/both/late/claims/maybe".parse::<Cell>().unwrap_err().contains("none of no-reorg, swap"));
    }

    #[test]
    fn every_commitment_is_swapped_for_every_other() {
        let possible = all().into_iter().filter(|cell| cell.impossible().is_none());
        let swaps: std::collections::BTreeSet<_> =
            possible.filter_map(|cell| Some((cell.first()?, cell.stands))).collect();
        assert_eq!(swaps.len(), 4 * 3);
    }

    #[test]
    fn the_peers_next_commitment_is_brought_about_in_every_way() {
        let cells = all().into_iter().filter(|cell| cell.impossible().is_none() && cell.has(Stands::TheirNext));
        let mut ways = std::collections::BTreeMap::new();
        for cell in cells {
            *ways.entry((cell.next_by(), cell.stands == Stands::TheirNext)).or_insert(0) += 1;
        }
        // To stand in the end, and to be taken out by a reorg.
        assert_eq!(ways.len(), 5 * 2, "{ways:?}");
    }

    #[test]
    fn late_preimages_are_known_before_and_after_the_swap_with_every_commitment() {
        let cells = all().into_iter().filter(|cell| cell.impossible().is_none() && cell.reorg == Reorg::Swaps);
        let late = cells.filter(|cell| cell.known == Known::Late);
        let kinds: std::collections::BTreeSet<_> = late.map(|cell| (cell.stands, cell.is_told_before_swap())).collect();
        assert_eq!(kinds.len(), 4 * 2, "{kinds:?}");
    }

    #[test]
    fn the_subset_has_every_pair_and_is_small() {
        let values = |cell: &Cell| {
            [cell.stands as u8, cell.in_flight as u8, cell.known as u8, cell.conduct as u8, cell.reorg as u8]
        };
        let pairs_of = |cells: &[Cell]| {
            let mut pairs = std::collections::BTreeSet::new();
            for cell in cells {
                let values = values(cell);
                for (i, one) in values.iter().enumerate() {
                    for (j, other) in values.iter().enumerate().skip(i + 1) {
                        pairs.insert((i, *one, j, *other));
                    }
                }
            }
            pairs
        };
        let possible: Vec<Cell> =
            all().into_iter().filter(|cell| cell.form == Form::Anchors && cell.impossible().is_none()).collect();
        for seed in 0..50 {
            let chosen = subset(seed);
            assert!(chosen.len() <= 40, "{} cells", chosen.len());
            assert_eq!(pairs_of(&chosen), pairs_of(&possible), "seed {seed}");
        }
    }
}
