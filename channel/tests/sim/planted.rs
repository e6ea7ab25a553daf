//! Bugs put in on purpose: each must be caught, and by the rule that forbids it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::run::run;
use crate::world::Bug;

/// The first violation within `seeds` seeds.
fn caught(bug: Bug, seeds: u64) -> String {
    for seed in 0..seeds {
        match catch_unwind(AssertUnwindSafe(|| run(seed, Some(bug)))) {
            Ok(outcome) => {
                if let Some(violation) = outcome.violation {
                    return violation;
                }
            }
            Err(_) => return "panic".to_owned(),
        }
    }
    panic!("{bug:?} was not caught in {seeds} seeds");
}

#[test]
fn a_send_before_its_flush() {
    let violation = caught(Bug::SendBeforeFlush, 40);
    assert!(
        ["D1", "D2", "D3", "D5", "its disk has not decided it"].iter().any(|rule| violation.contains(rule)),
        "{violation}"
    );
}

#[test]
fn a_forward_at_acked() {
    let violation = caught(Bug::ForwardAtAcked, 40);
    assert!(violation.contains("D3"), "{violation}");
}

#[test]
fn a_revoked_broadcast() {
    let violation = caught(Bug::BroadcastRevoked, 60);
    assert!(violation.contains("D9"), "{violation}");
}

#[test]
fn an_outcome_released_early() {
    let violation = caught(Bug::ReleaseEarly, 60);
    assert!(violation.contains("D13"), "{violation}");
}

mod a_record_skipped {
    use super::*;

    #[test]
    fn each_kind_of_the_dance() {
        for name in [
            "funding_confirmed",
            "ready_sent",
            "ready_received",
            "commitment_sent",
            "commitment_received",
            "revocation_received",
            "removal_decided",
            "preimage_received",
            "outcome_released",
        ] {
            let violation = caught(Bug::SkipRecord(name), 80);
            assert!(!violation.is_empty(), "{name}");
        }
    }
}
