//! The on-chain matrix, as far as a suite has time for it: few cells with every pair of values, and one that is to fail.

#![allow(clippy::unwrap_used, missing_docs)]

use millrace_regtest::matrix::{Arguments, Cell, Plant, run};
use millrace_regtest::report::Report;

/// All of it is `millrace-regtest matrix`.
#[tokio::test(flavor = "multi_thread")]
async fn cells_with_every_pair_of_values_give_everybody_what_the_rules_give() {
    let arguments = Arguments { pairwise: true, seed: Some(1), ..Arguments::default() };
    let mut report = Report::new();
    let outcomes = run(arguments, &mut report).await.unwrap();
    assert!(outcomes.ok && outcomes.failed == 0, "{outcomes:?}: their stories are above");
    assert!((20..=40).contains(&outcomes.cases), "{outcomes:?}");
    // Its claims change more often, in every cell.
    assert!(outcomes.restarts > 20, "{outcomes:?}");
}

/// The peer takes an HTLC whose preimage we had, because no block would hold our claim of it.
#[tokio::test(flavor = "multi_thread")]
async fn an_htlc_of_ours_that_the_peer_takes_fails_its_cell_and_no_other() {
    let robbed: Cell = "theirs/received/early/claims/no-reorg".parse().unwrap();
    let other: Cell = "theirs/received/never/claims/no-reorg".parse().unwrap();
    let plant = Some(Plant::KeptOut(robbed));
    let arguments = Arguments { cell: vec![robbed, other], seed: Some(1), plant, ..Arguments::default() };
    let outcomes = run(arguments, &mut Report::new()).await.unwrap();
    assert!(!outcomes.ok, "{outcomes:?}");
    assert_eq!((outcomes.cases, outcomes.failed_cells), (2, vec![robbed.to_string()]));
}
