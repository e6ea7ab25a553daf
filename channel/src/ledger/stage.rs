//! How far an update has come through the commit/revoke dance (BOLT 2, "Normal Operation").
//!
//! Every update, be it an add, a removal or a fee, takes the same five steps. The table below is the
//! whole rule; nothing else in the crate decides when an update moves on.

use serde::{Deserialize, Serialize};

use crate::side::Side;

/// The five steps of an update, seen from the side that proposed it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Stage {
    /// Sent as an `update_…` message, covered by no signature.
    Proposed,
    /// In the other side's commitment: the proposer signed it there.
    Committed,
    /// The other side has revoked its commitment without the update.
    Acked,
    /// In the proposer's commitment too: the other side signed it there.
    CrossCommitted,
    /// The proposer has revoked its commitment without the update: it is in both, for good.
    Irrevocable,
}

/// The two messages that move updates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    /// `commitment_signed`.
    Commit,
    /// `revoke_and_ack`.
    Revoke,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 5] = [Self::Proposed, Self::Committed, Self::Acked, Self::CrossCommitted, Self::Irrevocable];

    /// Where an update proposed by `proposer` stands after `sender` has sent `step`.
    #[must_use]
    pub const fn after(self, step: Step, sender: Side, proposer: Side) -> Self {
        let by_proposer = matches!((sender, proposer), (Side::Local, Side::Local) | (Side::Remote, Side::Remote));
        match (self, step, by_proposer) {
            (Self::Proposed, Step::Commit, true) => Self::Committed,
            (Self::Committed, Step::Revoke, false) => Self::Acked,
            (Self::Acked, Step::Commit, false) => Self::CrossCommitted,
            (Self::CrossCommitted, Step::Revoke, true) => Self::Irrevocable,
            (stage, Step::Commit | Step::Revoke, _) => stage,
        }
    }

    /// Whether an update at this stage, proposed by `proposer`, stands in the commitment of `side`: in the
    /// other side's from `Committed`, in the proposer's from `CrossCommitted`.
    #[must_use]
    pub fn stands_in(self, side: Side, proposer: Side) -> bool {
        self >= if side == proposer { Self::CrossCommitted } else { Self::Committed }
    }

    /// Whether an update at this stage, proposed by `proposer`, will stand in the *next* commitment that is
    /// signed for `side`: whatever its signer has proposed, and whatever its signer has acknowledged.
    #[must_use]
    pub fn stands_in_next(self, side: Side, proposer: Side) -> bool {
        self >= if side == proposer { Self::Acked } else { Self::Proposed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDES: [Side; 2] = [Side::Local, Side::Remote];
    const STEPS: [Step; 2] = [Step::Commit, Step::Revoke];

    mod after {
        use super::*;

        /// The four rows of the table, as data of its own; every other combination must stay where it is.
        const ROWS: [(Stage, Step, bool, Stage); 4] = [
            (Stage::Proposed, Step::Commit, true, Stage::Committed),
            (Stage::Committed, Step::Revoke, false, Stage::Acked),
            (Stage::Acked, Step::Commit, false, Stage::CrossCommitted),
            (Stage::CrossCommitted, Step::Revoke, true, Stage::Irrevocable),
        ];

        #[test]
        fn every_combination_follows_the_four_rows_or_stays() {
            for stage in Stage::ALL {
                for step in STEPS {
                    for sender in SIDES {
                        for proposer in SIDES {
                            let row =
                                ROWS.iter().find(|row| (row.0, row.1, row.2) == (stage, step, sender == proposer));
                            let expected = row.map_or(stage, |row| row.3);
                            assert_eq!(
                                stage.after(step, sender, proposer),
                                expected,
                                "{stage:?} {step:?} {sender:?} {proposer:?}"
                            );
                        }
                    }
                }
            }
        }

        #[test]
        fn the_bolt_order_reaches_irrevocable_in_exactly_four_steps() {
            for proposer in SIDES {
                let mut stage = Stage::Proposed;
                let dance = [
                    (Step::Commit, proposer),
                    (Step::Revoke, proposer.other()),
                    (Step::Commit, proposer.other()),
                    (Step::Revoke, proposer),
                ];
                for (index, (step, sender)) in dance.into_iter().enumerate() {
                    stage = stage.after(step, sender, proposer);
                    assert_eq!(stage, Stage::ALL[index + 1]);
                }
            }
        }
    }

    mod stands_in {
        use super::*;

        #[test]
        fn the_other_side_first_and_the_proposer_later() {
            let in_other: Vec<bool> = Stage::ALL.iter().map(|s| s.stands_in(Side::Remote, Side::Local)).collect();
            let in_own: Vec<bool> = Stage::ALL.iter().map(|s| s.stands_in(Side::Local, Side::Local)).collect();
            assert_eq!(in_other, [false, true, true, true, true]);
            assert_eq!(in_own, [false, false, false, true, true]);
        }

        #[test]
        fn the_next_commitment_holds_what_a_commit_would_bring_in() {
            for stage in Stage::ALL {
                for side in SIDES {
                    for proposer in SIDES {
                        let signed = stage.after(Step::Commit, side.other(), proposer);
                        assert_eq!(stage.stands_in_next(side, proposer), signed.stands_in(side, proposer));
                    }
                }
            }
        }
    }
}
