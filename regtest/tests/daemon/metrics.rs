//! What Prometheus is told is how things stand.

use std::collections::BTreeMap;

use millrace_rpc::v1::{BalanceRequest, PaymentStatus};
use tokio::task::block_in_place;

use super::support::{ALICE, BOB, CAPACITY_SAT, metrics_page, pair_with, turn_metrics_on};

/// Every number of the page, by its name and labels.
fn numbers(page: &str) -> BTreeMap<String, f64> {
    let is_number = |line: &&str| line.starts_with("millrace_");
    let lines = page.lines().filter(is_number).filter_map(|line| line.rsplit_once(' '));
    lines.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_how_things_stand() {
    let mut pair = pair_with(
        |node| {
            if node.name == "alice" {
                turn_metrics_on(node);
            }
        },
        |_| {},
    )
    .await;
    for (from, to, amount) in [(ALICE, BOB, 30_000), (ALICE, BOB, 30_000), (BOB, ALICE, 10_000)] {
        let bolt11 = pair.invoice(to, amount).await;
        assert_eq!(pair.pay(from, &bolt11).await.unwrap().status(), PaymentStatus::Succeeded);
    }
    pair.network.mine(1).await.unwrap();
    pair.wait_until_at_rest().await;
    let height = block_in_place(|| pair.network.bitcoind.height()).unwrap();
    let balance = pair.client(ALICE).wallet.balance(BalanceRequest {}).await.unwrap().into_inner();
    let half = CAPACITY_SAT / 2 * 1000;
    let exactly = [
        ("millrace_block_height", u64::from(height)),
        ("millrace_wallet_balance_satoshis{state=\"confirmed\"}", balance.confirmed_sat),
        ("millrace_wallet_balance_satoshis{state=\"unconfirmed\"}", 0),
        ("millrace_channels{state=\"normal\"}", 1),
        ("millrace_channels{state=\"closed\"}", 0),
        ("millrace_channel_local_millisatoshis", half - 50_000),
        ("millrace_channel_remote_millisatoshis", half + 50_000),
        ("millrace_htlcs{direction=\"offered\"}", 0),
        ("millrace_htlcs{direction=\"received\"}", 0),
        ("millrace_peers", 1),
        ("millrace_payments_sent_total{outcome=\"paid\"}", 2),
        ("millrace_payments_received_total", 1),
        ("millrace_payment_duration_seconds_count", 2),
    ];
    let told = pair.network.wait("the numbers as things stand", async || {
        let found = numbers(&metrics_page(&pair.network.nodes[ALICE]).await);
        let differ = exactly.iter().filter(|(name, value)| found.get(*name) != Some(&(*value as f64)));
        let differ: Vec<_> = differ.map(|(name, value)| (name, value, found.get(*name))).collect();
        Ok(if differ.is_empty() { Ok(()) } else { Err(format!("{differ:?}")) })
    });
    told.await.unwrap();
    let found = numbers(&metrics_page(&pair.network.nodes[ALICE]).await);
    for name in [
        "millrace_start_time_seconds",
        "millrace_journal_flushes_total",
        "millrace_journal_written_bytes_total",
        "millrace_journal_flush_mean_seconds",
        "millrace_journal_flush_longest_seconds",
        "millrace_peer_messages_total{direction=\"sent\"}",
        "millrace_peer_messages_total{direction=\"received\"}",
    ] {
        assert!(found.get(name).is_some_and(|value| *value > 0.0), "{name}: {:?}", found.get(name));
    }
    pair.stop().await;
}
