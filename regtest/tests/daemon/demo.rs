//! `cargo demo`'s story.

use millrace_regtest::books::{Books, FEERATE_MAX_PER_KW, Node};
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
    "start five daemons: a line and a diamond",
    "pay over three hops",
    "pay in several parts",
    "kill -9 bob in the middle of forwards",
    "account for every millisatoshi",
    "start two daemons and a watchtower",
    "bob keeps a commitment, two payments in flight",
    "the payments arrive, and bob pays more",
    "switch alice off",
    "bob publishes what he has revoked",
    "the watchtower takes it all from him",
    "alice comes back",
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
    check_books(demo.books().unwrap(), sat("wallets_sat"));
    assert!(demo.figures()["most_htlcs_seen"].as_u64().unwrap() > 50, "{:?}", demo.figures());
    let figure = |name: &str| demo.figures()[name].as_u64().unwrap();
    assert!(figure("parts") >= 2 && figure("forwards_in_flight_at_kill") > 0, "{:?}", demo.figures());
    assert!(figure("routed_msat") > 4_250_000_000 && figure("routing_fees_msat") > 0, "{:?}", demo.figures());
    // His balance in what he kept, and both HTLCs.
    assert_eq!(figure("punished_sat"), 4_800_000 + 300_000 + 200_000, "{:?}", demo.figures());
    assert!((1_000..20_000).contains(&figure("punished_fees_sat")), "{:?}", demo.figures());
    for node in &mut demo.into_network().nodes {
        node.stop().await.unwrap();
    }
}

/// What the last step has compared is there, and is compared to the satoshi.
fn check_books(books: &Books, wallets_sat: u64) {
    let [alice, bob] = &books.nodes;
    assert_eq!((alice.given_sat, bob.given_sat), (20_000_000, 20_000_000), "{books:#?}");
    assert_eq!(alice.wallet_sat + bob.wallet_sat, wallets_sat, "{books:#?}");
    assert_eq!((alice.fees.len(), bob.fees.len()), (3, 1), "two fundings, and a sweep of each: {books:#?}");
    assert_eq!(books.channels.len(), 2, "{books:#?}");
    assert_eq!(books.transactions.len(), 6, "these and two that close: {books:#?}");
    let is_fair = |fee_sat: u64, weight: u64| fee_sat > 0 && fee_sat * 1000 <= FEERATE_MAX_PER_KW * weight;
    assert!(books.transactions.iter().all(|tx| is_fair(tx.fee_sat, tx.weight)), "{books:#?}");
    assert_eq!(books.check(), Ok(()));

    let wrong = |change: &dyn Fn(&mut Books)| {
        let mut books = books.clone();
        change(&mut books);
        books.check().unwrap_err()
    };
    for (node, Node { name, .. }) in books.nodes.iter().enumerate() {
        let in_wallet = wrong(&|books| books.nodes[node].wallet_sat -= 1);
        assert!(in_wallet.starts_with(&format!("{name} was given 20000000 sat")), "{in_wallet}");
        let in_fee = wrong(&|books| books.nodes[node].fees[0].sat += 1);
        assert!(in_fee.starts_with(&format!("{name} says that")), "{in_fee}");
    }
    let moved = wrong(&|books| {
        books.nodes[0].wallet_sat -= 1;
        books.nodes[1].wallet_sat += 1;
    });
    assert!(moved.starts_with("alice was given"), "{moved}");
}
