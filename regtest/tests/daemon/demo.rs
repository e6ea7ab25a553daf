//! `cargo demo`'s story.

use millrace_regtest::demo;
use millrace_regtest::report::Report;

/// The steps that issue and README promise, in their order.
const STEPS: &[&str] = &[
    "start bitcoind and two daemons",
    "fund wallets",
    "connect",
    "open a channel",
    "pay one invoice each way",
    "pay 250 each way at once, 50 of them dust",
    "kill -9 bob in the middle of payments",
    "close together",
    "open again",
    "pay on the new channel",
    "close alone and sweep",
    "account for every satoshi",
];

#[tokio::test(flavor = "multi_thread")]
async fn every_step_is_played_and_every_satoshi_accounted_for() {
    let mut report = Report::new();
    let demo = demo::play(&mut report).await;
    assert!(report.is_ok(), "{:#?}", report.steps());
    let names: Vec<&str> = report.steps().iter().map(|step| step.name.as_str()).collect();
    assert_eq!(names, STEPS);

    let demo = demo.unwrap();
    let accounts = &demo.figures()["accounts"];
    let sat = |name: &str| accounts[name].as_u64().unwrap();
    let parts = ["wallets_sat", "channels_sat", "fees_sat", "anchors_sat"].map(sat);
    assert_eq!(sat("given_sat"), 40_000_000, "{accounts}");
    assert_eq!(parts.iter().sum::<u64>() + sat("trimmed_msat") / 1000, sat("given_sat"), "{accounts}");
    assert!(
        [1_000, 2_000].contains(&sat("trimmed_msat")),
        "the second channel ended with fractions of a satoshi: {accounts}"
    );
    assert!(demo.figures()["most_htlcs_seen"].as_u64().unwrap() > 50, "{:?}", demo.figures());
    for node in &mut demo.into_network().nodes {
        node.stop().await.unwrap();
    }
}
