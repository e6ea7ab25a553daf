//! Bugs put in on purpose: each must be caught, and by the rule that forbids it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::run::run;
use crate::world::Bug;

/// What catches a planted bug, by words of its message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sign {
    /// A rule that a checker of the simulator holds.
    Rule(&'static str),
    /// The core finds that the record it replays does not fit the state it has.
    Replay(&'static str),
}

use Sign::{Replay, Rule};

/// What a seed came to, if it came to grief.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Catch {
    Violation(String),
    Panic(String),
}

impl Sign {
    fn is_of(self, catch: &Catch) -> bool {
        match (self, catch) {
            (Rule(words), Catch::Violation(text)) | (Replay(words), Catch::Panic(text)) => text.contains(words),
            (Rule(_), Catch::Panic(_)) | (Replay(_), Catch::Violation(_)) => false,
        }
    }
}

fn play(seed: u64, bug: Bug) -> Option<Catch> {
    match catch_unwind(AssertUnwindSafe(|| run(seed, Some(bug)))) {
        Ok(outcome) => outcome.violation.map(Catch::Violation),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Some(Catch::Panic(text.expect("panics of this crate say something")))
        }
    }
}

/// The bug is caught `times` times within `seeds` seeds, and each time by one of the `signs`.
fn assert_caught(bug: Bug, times: usize, seeds: u64, signs: &[Sign]) {
    let mut caught = 0;
    for seed in 0..seeds {
        if let Some(catch) = play(seed, bug) {
            assert!(signs.iter().any(|sign| sign.is_of(&catch)), "{bug:?} in seed {seed}: {catch:?}");
            caught += 1;
        }
        if caught == times {
            return;
        }
    }
    panic!("{bug:?} was caught {caught} times in {seeds} seeds, not {times} times");
}

#[test]
fn a_send_before_its_flush() {
    let signs = [Rule("D1:"), Rule("D2:"), Rule("D3:"), Rule("D5:"), Rule("its disk has not decided it")];
    assert_caught(Bug::SendBeforeFlush, 3, 40, &signs);
}

#[test]
fn a_forward_at_acked() {
    assert_caught(Bug::ForwardAtAcked, 3, 40, &[Rule("D3:")]);
}

#[test]
fn a_revoked_broadcast() {
    assert_caught(Bug::BroadcastRevoked, 3, 60, &[Rule("D9:")]);
}

#[test]
fn an_outcome_released_early() {
    assert_caught(Bug::ReleaseEarly, 3, 60, &[Rule("D13:")]);
}

#[test]
fn a_preimage_that_only_the_payee_knows_ahead_of_its_record() {
    assert_caught(Bug::FulfillEarly, 3, 60, &[Rule("its disk has not decided it")]);
}

#[test]
fn a_preimage_passed_on_before_it_is_durable() {
    assert_caught(Bug::PassOnEarly, 3, 60, &[Rule("its disk has not decided it")]);
}

#[test]
fn a_log_of_past_htlcs_that_is_lost() {
    assert_caught(Bug::LoseHtlcLog, 3, 200, &[Rule("was cheated, and has")]);
}

mod a_record_skipped {
    use super::*;
    use crate::kinds::kinds;

    /// The disk has everything, and gives another channel than the one that lives.
    const NOT_LIVE: Sign = Rule("replaying the records differs from the live channel");

    /// What may catch the loss of each kind. Where a message leaves on the strength of a record, its own rule does.
    const SIGNS: [(&str, &[Sign]); 21] = [
        ("opened", &[Rule("D5:")]),
        ("funding_confirmed", &[NOT_LIVE]),
        ("funding_unconfirmed", &[NOT_LIVE]),
        ("ready_sent", &[NOT_LIVE]),
        ("ready_received", &[NOT_LIVE]),
        ("commitment_sent", &[Rule("D1:")]),
        ("commitment_received", &[Rule("D2:")]),
        ("revocation_received", &[NOT_LIVE]),
        (
            "removal_decided",
            &[
                Rule("its disk has not decided it"),
                // Decided while the peer was away: nothing left that a rule could have seen.
                NOT_LIVE,
                Replay("cannot enter its removal from Adding(Irrevocable)"),
            ],
        ),
        ("preimage_received", &[NOT_LIVE]),
        ("outcome_released", &[NOT_LIVE]),
        ("shutdown_sent", &[NOT_LIVE]),
        ("shutdown_received", &[NOT_LIVE]),
        ("mutual_close_signed", &[NOT_LIVE]),
        ("local_data_lost", &[NOT_LIVE]),
        ("failed", &[NOT_LIVE]),
        ("chain", &[NOT_LIVE]),
        ("closed", &[NOT_LIVE]),
        // Nothing is kept of it: it is passed on, and its loss costs the sender a hold time.
        ("attribution_received", &[]),
        ("announcement_signed", &[NOT_LIVE]),
        ("announced", &[NOT_LIVE]),
    ];

    #[test]
    fn of_each_kind_that_there_is() {
        assert_eq!(kinds(), SIGNS.map(|(kind, _)| kind), "a kind of record without an entry, or the other way round");
        for (kind, signs) in SIGNS.into_iter().filter(|(_, signs)| !signs.is_empty()) {
            assert_caught(Bug::SkipRecord(kind), 3, 120, signs);
        }
    }
}
