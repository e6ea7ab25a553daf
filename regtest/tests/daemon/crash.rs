//! Kill -9 under payment load: the short run of `millrace-regtest crash`.

use millrace_regtest::crash;
use millrace_regtest::report::Report;

#[tokio::test(flavor = "multi_thread")]
async fn six_kills_lose_double_and_stick_nothing() {
    let mut report = Report::new();
    let outcomes = crash::run(6, 1, &mut report).await.unwrap();
    assert_eq!((outcomes.cycles, outcomes.seed), (6, 1));
    assert_eq!(outcomes.msat_lost, 0, "{outcomes:?}");
    assert_eq!(outcomes.stuck_htlcs, 0, "{outcomes:?}");
    assert_eq!(outcomes.channels_closed, 0, "{outcomes:?}");
    assert_eq!(outcomes.mismatched, 0, "{outcomes:?}");
    assert!(outcomes.paid > 0, "{outcomes:?}");
    // At least 50 in flight at the median kill, or the run does not count.
    assert!(outcomes.ok && outcomes.in_flight_median >= 50, "{outcomes:?}");
}
