//! The mempool's news.

use std::collections::HashSet;

use bitcoin::{Amount, Txid};

use crate::support::{connect, regtest};

#[tokio::test(flavor = "multi_thread")]
async fn arrivals_departures_and_a_limit() {
    let regtest = regtest();
    regtest.mine_to_wallet(103).unwrap();
    let bitcoind = connect(&regtest).await;
    let address = regtest.new_address().unwrap();
    let sent: Vec<Txid> = (1..=3).map(|n| regtest.send_to(&address, Amount::from_sat(100_000 * n)).unwrap()).collect();

    let mut known: HashSet<Txid> = HashSet::new();
    let diff = bitcoind.mempool_txs(&known, 2).await.unwrap();
    assert_eq!((diff.arrived.len(), diff.gone.len(), diff.has_more), (2, 0, true));
    known.extend(diff.arrived.iter().map(bitcoin::Transaction::compute_txid));
    let diff = bitcoind.mempool_txs(&known, 2).await.unwrap();
    assert_eq!((diff.arrived.len(), diff.gone.len(), diff.has_more), (1, 0, false));
    known.extend(diff.arrived.iter().map(bitcoin::Transaction::compute_txid));
    assert_eq!(known, sent.iter().copied().collect());

    regtest.mine(1, &address).unwrap();
    let diff = bitcoind.mempool_txs(&known, 2).await.unwrap();
    assert!(diff.arrived.is_empty());
    assert_eq!(diff.gone.into_iter().collect::<HashSet<_>>(), known);
}
