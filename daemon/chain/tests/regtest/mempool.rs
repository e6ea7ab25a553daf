//! The mempool's news.

use std::collections::HashSet;

use bitcoin::{Amount, OutPoint, Txid};

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

#[tokio::test(flavor = "multi_thread")]
async fn spenders_and_what_they_pay() {
    let regtest = regtest();
    regtest.mine_to_wallet(102).unwrap();
    let bitcoind = connect(&regtest).await;
    let address = regtest.new_address().unwrap();
    let spender = regtest.send_to(&address, Amount::from_sat(100_000)).unwrap();
    let spent = bitcoind.transaction(&spender, None).await.unwrap().unwrap().input[0].previous_output;
    let unspent = OutPoint { txid: spender, vout: 0 };
    assert_eq!(bitcoind.mempool_spenders(&[unspent, spent]).await.unwrap(), [None, Some(spender)]);
    assert_eq!(bitcoind.mempool_spenders(&[]).await.unwrap(), []);

    let entry = bitcoind.mempool_entry(&spender).await.unwrap().unwrap();
    assert!(entry.fee > Amount::ZERO);
    assert_eq!(entry.fee, entry.fee_with_descendants);
    regtest.mine_to_wallet(1).unwrap();
    assert_eq!(bitcoind.mempool_entry(&spender).await.unwrap(), None);
    assert_eq!(bitcoind.mempool_spenders(&[spent]).await.unwrap(), [None]);
}
