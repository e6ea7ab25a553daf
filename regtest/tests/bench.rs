//! `millrace-regtest bench` on small loads: every field that it promises is there, and sums and ways are right. What the
//! figures are is not judged: this is no measurement.

#![allow(clippy::unwrap_used, missing_docs)]

use std::process::Command;

use millrace_regtest::bench::payments::{Arguments, run};
use millrace_regtest::bench::{forward, tower, watched};
use millrace_regtest::report::Report;
use serde_json::{Value, json};

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

#[tokio::test(flavor = "multi_thread")]
async fn payments_over_a_node_in_the_middle_are_measured_and_it_earns_of_each() {
    let arguments = forward::Arguments { outstanding: 20, payments: 60, amount: 10_000 };
    let mut report = Report::new();
    let outcomes = forward::run(arguments, &mut report).await.unwrap();
    assert!(report.is_ok() && outcomes.payments.ok, "{outcomes:#?} {:#?}", report.steps());
    let told: Value = serde_json::to_value(&outcomes).unwrap();
    let asked = ["outstanding", "payments", "amount_sat", "hops"].map(|field| told[field].as_u64().unwrap());
    assert_eq!(asked, [20, 60, 10_000, 2]);
    for field in FIGURES.iter().chain(&["cores"]) {
        assert!(told[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}: {told}");
    }
    assert_eq!((&told["target_per_s"], told["target_not_judged"].is_string()), (&json!(500.0), cfg!(debug_assertions)));
    // Of so few payments on a busy machine, a hop more may seem to take less time.
    assert!(told["added_latency_ms_per_hop"].is_f64(), "{told}");
    // These, and those that went alone over two hops: the same fee of each.
    let forwarded = 60 + 100;
    assert!(outcomes.fees_msat > 0 && outcomes.fees_msat % forwarded == 0, "{told}");
}

/// What the program prints as its last line, and whether it calls that a success.
fn bench_route(words: &[&str]) -> (Value, bool) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millrace-regtest"));
    let output = command.args(["bench", "route", "--json"]).args(words).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let told = serde_json::from_str(text.lines().last().unwrap_or_default());
    let told = told.unwrap_or_else(|error| panic!("{error}: {text} {}", String::from_utf8_lossy(&output.stderr)));
    (told, output.status.success())
}

#[test]
fn ways_through_a_part_of_the_public_graph_are_found_while_gossip_goes_on() {
    let (told, is_success) = bench_route(&["--channels", "2000", "--pairs", "300", "--seed", "3"]);
    assert!(is_success && told["ok"] == true && told["missed"].is_null(), "{told:#}");
    let count = |field: &str| told[field].as_u64().unwrap();
    assert_eq!((count("pairs"), count("amount_sat"), count("channels")), (300, 100_000, 2_000));
    assert!(count("searches") >= 300 && count("updates_taken") > 0 && count("maps_made") > 0, "{told:#}");
    assert!(count("searches_on_new_maps") > 0 && count("ways_learned") > 0, "{told:#}");
    // Balances are drawn: some carry it, some do not.
    assert!(told["arrived_share"].as_f64().is_some_and(|share| share > 0.0 && share < 1.0), "{told:#}");
    assert!(told["targets_not_judged"].is_string() && told["left_out"].is_string(), "{told:#}");
}

/// More than any of its channels holds: nothing is found, and that is no success.
#[test]
fn searches_that_find_nothing_are_no_success() {
    let (told, is_success) = bench_route(&["--channels", "500", "--pairs", "10", "--amount", "2000000000"]);
    assert!(!is_success && told["ok"] == false, "{told:#}");
    assert!(told["missed"].as_array().is_some_and(|missed| !missed.is_empty()), "{told:#}");
}

/// So few channels and updates are no measurement; the bounds are those of the real one all the same.
fn tower_arguments(plant: Option<tower::Plant>) -> tower::Arguments {
    tower::Arguments { channels: 20, updates: 2_000, seed: Some(11), kill: plant.is_none(), hold: 0, plant }
}

#[tokio::test(flavor = "multi_thread")]
async fn tower_that_is_killed_again_and_again_takes_everything_of_breaches_in_one_block() {
    let mut report = Report::new();
    let outcomes = tower::run(tower_arguments(None), &mut report).await.unwrap();
    assert!(report.is_ok() && outcomes.ok, "{outcomes:#?}");
    assert_eq!(
        (outcomes.channels, outcomes.breached, outcomes.breached_with_htlcs, outcomes.updates),
        (20, 20, 10, 2_000)
    );
    assert_eq!((outcomes.lost, outcomes.stolen, outcomes.taken), (0, 0, outcomes.outputs), "{outcomes:#?}");
    // Each has a delayed output; the HTLC transactions' come on top of these.
    assert!(outcomes.outputs > 30 && outcomes.kills > 2, "{outcomes:#?}");
    let told: Value = serde_json::to_value(&outcomes).unwrap();
    for field in [
        "upload_bytes_per_update",
        "upload_bytes_per_update_batched",
        "socket_bytes_per_update",
        "socket_bytes_per_update_batched",
        "updates_per_s",
        "updates_per_s_batched",
        "stored_bytes_per_channel",
        "blocks_needed",
        "fees_sat",
        "taken_sat",
        "breach_s",
        "seconds",
        "cpu_s",
        "rss_mib_peak",
    ] {
        assert!(told[field].as_f64().is_some_and(|figure| figure > 0.0), "{field}: {told}");
    }
    assert!(told["missed"].is_null(), "{told}");
}

/// As long as no block has room, penalties pay ever more, each by itself in the end.
#[tokio::test(flavor = "multi_thread")]
async fn tower_whose_penalties_no_block_holds_for_long_takes_everything_and_pays_for_it() {
    let arguments = tower::Arguments { hold: 26, kill: false, ..tower_arguments(None) };
    let outcomes = tower::run(arguments, &mut Report::new()).await.unwrap();
    assert!(outcomes.ok && outcomes.taken == outcomes.outputs, "{outcomes:#?}");
    assert!((27..30).contains(&outcomes.blocks_needed), "{outcomes:#?}");
    // Otherwise it would be some hundreds of sat for each.
    assert!(outcomes.fees_sat > 10_000 * outcomes.outputs as u64, "{outcomes:#?}");
}

/// Without the tower the cheaters get it all: the chain says so.
#[tokio::test(flavor = "multi_thread")]
async fn tower_that_is_off_during_the_breach_loses_everything_and_is_no_success() {
    let outcomes = tower::run(tower_arguments(Some(tower::Plant::Off)), &mut Report::new()).await.unwrap();
    assert!(!outcomes.ok && outcomes.breached == 20, "{outcomes:#?}");
    // They really take it, each at its deadline.
    assert_eq!((outcomes.taken, outcomes.lost, outcomes.stolen), (0, outcomes.outputs, outcomes.outputs));
    assert!(outcomes.missed.iter().any(|missed| missed.contains("not taken in time")), "{outcomes:#?}");
}

/// One channel among many that the tower does not know is noticed.
#[tokio::test(flavor = "multi_thread")]
async fn channel_that_the_tower_was_not_told_of_is_lost_and_no_success() {
    let outcomes = tower::run(tower_arguments(Some(tower::Plant::Untold)), &mut Report::new()).await.unwrap();
    assert!(!outcomes.ok && outcomes.lost > 0 && outcomes.stolen == outcomes.lost, "{outcomes:#?}");
    assert_eq!(outcomes.taken, outcomes.outputs - outcomes.lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_beside_watchtowers_of_every_kind_are_measured() {
    let arguments = watched::Arguments { outstanding: 20, payments: 60, turns: 2 };
    let mut report = Report::new();
    let outcomes = watched::run(arguments, &mut report).await.unwrap();
    assert!(report.is_ok() && outcomes.ok, "{outcomes:#?} {:#?}", report.steps());
    let told: Value = serde_json::to_value(&outcomes).unwrap();
    for kind in ["none", "live", "silent", "full", "sealed"] {
        for field in ["payments_per_s", "p50_ms", "p99_ms", "ratio"] {
            assert!(told[kind][field].as_f64().is_some_and(|figure| figure > 0.0), "{kind} {field}: {told}");
        }
        assert_eq!(told[kind]["turns_per_s"].as_array().unwrap().len(), 2, "{told}");
    }
    // Nothing of a turn has reached a tower that says nothing.
    assert!(told["silent"]["lag"].as_u64().is_some_and(|lag| lag >= 2), "{told}");
}
