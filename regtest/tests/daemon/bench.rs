//! `millrace-regtest bench payments` on a small load: every field that it promises is there, and the sums are right. What
//! the figures are is not judged: this is no measurement.

use millrace_regtest::bench::payments::{Arguments, run};
use millrace_regtest::report::Report;
use serde_json::Value;

/// The fields of the benchmark, besides those that say what was asked for.
const FIGURES: &[&str] = &[
    "payments_per_s",
    "cpu_us_per_payment",
    "htlc_signatures_per_payment",
    "flushes_per_payment",
    "journal_bytes_per_payment",
    "rss_mib_peak",
    "floor_per_s",
    "share_of_floor",
];

#[tokio::test(flavor = "multi_thread")]
async fn payments_are_measured_and_their_sums_hold_after_a_restart() {
    let arguments = Arguments { channels: 2, outstanding: 40, payments: 200, amount: 10_000, implementation: None };
    let mut report = Report::new();
    let outcomes = run(arguments, &mut report).await.unwrap();
    assert!(report.is_ok() && outcomes.ok, "{:#?}", report.steps());
    let told: Value = serde_json::to_value(&outcomes).unwrap();
    let asked = ["channels", "outstanding", "payments", "amount_sat"].map(|field| told[field].as_u64().unwrap());
    assert_eq!(asked, [2, 40, 200, 10_000]);
    for field in FIGURES {
        assert!(told[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}: {told}");
    }
    // In ticks of the system's clock: on so small a load it may be none.
    assert!(told["driver_cpu_share"].as_f64().is_some_and(|share| (0.0..1.0).contains(&share)), "{told}");
    let latency = ["p50", "p95", "p99"].map(|field| told["latency_ms"][field].as_f64().unwrap());
    assert!(latency[0] > 0.0 && latency.is_sorted(), "{latency:?}");
    // Each is offered and taken away again on two commitments, and signed for on each side's: never less.
    assert!(told["htlc_signatures_per_payment"].as_f64().unwrap() >= 1.0, "{told}");
    assert!(told["unary"]["payments_per_s"].as_f64().is_some_and(|figure| figure > 0.0), "{told}");
}
