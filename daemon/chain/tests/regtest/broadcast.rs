//! Broadcasting: refused, waiting, accepted, confirmed, in a package.

use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::transaction::Version;
use bitcoin::{Address, Amount, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use millrace_chain::Bitcoind;
use millrace_chain::broadcast::{Broadcaster, Status, Submission};
use millrace_regtest::bitcoind::{Bitcoind as Regtest, Options};
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Consumer, connect, eventually, regtest};

const COIN: Amount = Amount::from_sat(1_000_000);

/// A script that anybody can spend, so that the tests need no keys.
fn open_script() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51])
}

fn open_address() -> Address {
    Address::p2wsh(&open_script(), Network::Regtest)
}

/// A confirmed coin under the open script.
fn fund(regtest: &Regtest) -> OutPoint {
    let txid = regtest.send_to(&open_address(), COIN).unwrap();
    regtest.mine_to_wallet(1).unwrap();
    let wallet = regtest.wallet().unwrap();
    let hex = wallet.call("gettransaction", &json!([txid])).unwrap()["hex"].clone();
    let transaction: Transaction = deserialize_hex(hex.as_str().unwrap()).unwrap();
    let script = open_address().script_pubkey();
    let vout = transaction.output.iter().position(|output| output.script_pubkey == script).unwrap();
    OutPoint { txid, vout: u32::try_from(vout).unwrap() }
}

/// Spends a coin under the open script to another such, less the fee.
fn spend(coin: OutPoint, value: Amount, fee: u64, version: Version) -> Transaction {
    Transaction {
        version,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: coin,
            script_sig: ScriptBuf::new(),
            sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
            witness: Witness::from_slice(&[open_script().to_bytes()]),
        }],
        output: vec![TxOut { value: value - Amount::from_sat(fee), script_pubkey: open_address().script_pubkey() }],
    }
}

fn only_output(transaction: &Transaction) -> (OutPoint, Amount) {
    (OutPoint { txid: transaction.compute_txid(), vout: 0 }, transaction.output[0].value)
}

struct Scene {
    regtest: Regtest,
    bitcoind: Bitcoind,
    consumer: Consumer,
    broadcaster: Broadcaster,
}

/// A bitcoind with coins, followed, and a broadcaster that hears of its blocks.
async fn scene() -> Scene {
    scene_on(regtest()).await
}

/// The same on a bitcoind that lets a version 3 transaction pay nothing if its child pays for it.
/// Core does; Knots wants to be told, which Core takes from the file only: with a mere warning.
async fn scene_with_free_parents() -> (Scene, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bitcoin.conf"), "mempooltruc=enforce\n").unwrap();
    let options = Options { data_folder: Some(folder.path().to_owned()), ..Options::default() };
    (scene_on(Regtest::start(options).unwrap()).await, folder)
}

async fn scene_on(regtest: Regtest) -> Scene {
    regtest.mine_to_wallet(101).unwrap();
    let bitcoind = connect(&regtest).await;
    let mut consumer = Consumer::with_room(bitcoind.clone(), None, 100);
    consumer.until_tip(101).await;
    let broadcaster = Broadcaster::start(bitcoind.clone(), consumer.sync.clone());
    Scene { regtest, bitcoind, consumer, broadcaster }
}

#[tokio::test(flavor = "multi_thread")]
async fn accepted_then_confirmed_then_done() {
    let Scene { regtest, broadcaster, consumer: _consumer, .. } = scene().await;
    let transaction = spend(fund(&regtest), COIN, 500, Version::TWO);
    let txid = transaction.compute_txid();
    let submission = Submission::Single(transaction);
    for _ in 0..2 {
        assert_eq!(broadcaster.submit(submission.clone()).await.unwrap(), Status::InMempool);
    }
    assert_eq!(regtest.mempool().unwrap(), [txid]);

    regtest.mine_to_wallet(1).unwrap();
    eventually("confirmed", || broadcaster.status(&txid) == Some(Status::Confirmed)).await;
    assert_eq!(broadcaster.submit(submission).await.unwrap(), Status::Confirmed);
    broadcaster.done(txid).await;
    eventually("forgotten", || broadcaster.status(&txid).is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_is_tried_again_after_each_block() {
    let Scene { regtest, broadcaster, consumer: _consumer, .. } = scene().await;
    let parent = spend(fund(&regtest), COIN, 500, Version::TWO);
    let (coin, value) = only_output(&parent);
    let child = spend(coin, value, 500, Version::TWO);
    let txid = child.compute_txid();
    let status = broadcaster.submit(Submission::Single(child)).await.unwrap();
    assert!(matches!(&status, Status::Refused { reason, .. } if reason.contains("missing")), "{status:?}");

    assert_eq!(broadcaster.submit(Submission::Single(parent)).await.unwrap(), Status::InMempool);
    regtest.mine_to_wallet(1).unwrap();
    eventually("accepted", || broadcaster.status(&txid) == Some(Status::InMempool)).await;
    assert_eq!(regtest.mempool().unwrap(), [txid]);
}

#[tokio::test(flavor = "multi_thread")]
async fn evicted_is_sent_again() {
    let Scene { mut regtest, broadcaster, consumer: _consumer, .. } = scene().await;
    let transaction = spend(fund(&regtest), COIN, 500, Version::TWO);
    let txid = transaction.compute_txid();
    broadcaster.submit(Submission::Single(transaction)).await.unwrap();
    // A restart without the file loses the mempool.
    regtest.stop().unwrap();
    std::fs::remove_file(regtest.data_folder().join("regtest").join("mempool.dat")).unwrap();
    regtest.start_again().unwrap();
    eventually("in the mempool again", || regtest.mempool().unwrap() == [txid]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn waits_for_a_bitcoind_that_is_away() {
    let Scene { mut regtest, broadcaster, consumer: _consumer, .. } = scene().await;
    let transaction = spend(fund(&regtest), COIN, 500, Version::TWO);
    let txid = transaction.compute_txid();
    regtest.stop().unwrap();
    let status = broadcaster.submit(Submission::Single(transaction)).await.unwrap();
    assert!(matches!(status, Status::Waiting { .. }), "{status:?}");
    regtest.start_again().unwrap();
    eventually("accepted", || broadcaster.status(&txid) == Some(Status::InMempool)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn package_whose_parent_pays_nothing() {
    let (Scene { regtest, bitcoind, broadcaster, consumer: _consumer }, _folder) = scene_with_free_parents().await;
    let parent = spend(fund(&regtest), COIN, 0, Version(3));
    let (coin, value) = only_output(&parent);
    let child = spend(coin, value, 2_000, Version(3));
    let alone = bitcoind.test_accept(std::slice::from_ref(&parent)).await.unwrap();
    assert_eq!(alone[0].allowed, Some(false), "{alone:?}");
    let reason = alone[0].reason.clone().unwrap();
    assert!(reason.contains("fee not met"), "{reason}");

    let txids = [parent.compute_txid(), child.compute_txid()];
    let package = Submission::Package { parent, child };
    assert_eq!(package.txid(), txids[1]);
    for _ in 0..2 {
        assert_eq!(broadcaster.submit(package.clone()).await.unwrap(), Status::InMempool);
    }
    let mempool = regtest.mempool().unwrap();
    assert!(txids.iter().all(|txid| mempool.contains(txid)), "{mempool:?}");
    regtest.mine_to_wallet(1).unwrap();
    eventually("confirmed", || broadcaster.status(&txids[1]) == Some(Status::Confirmed)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn package_whose_parent_is_confirmed() {
    let Scene { regtest, broadcaster, consumer: _consumer, .. } = scene().await;
    let parent = spend(fund(&regtest), COIN, 500, Version::TWO);
    let (coin, value) = only_output(&parent);
    let child = spend(coin, value, 2_000, Version::TWO);
    broadcaster.submit(Submission::Single(parent.clone())).await.unwrap();
    regtest.mine_to_wallet(1).unwrap();
    let txid = child.compute_txid();
    let status = broadcaster.submit(Submission::Package { parent, child }).await.unwrap();
    assert_eq!(status, Status::InMempool);
    assert_eq!(regtest.mempool().unwrap(), [txid]);
}

#[tokio::test(flavor = "multi_thread")]
async fn package_whose_child_pays_too_little() {
    let (Scene { regtest, broadcaster, consumer: _consumer, .. }, _folder) = scene_with_free_parents().await;
    let parent = spend(fund(&regtest), COIN, 0, Version(3));
    let (coin, value) = only_output(&parent);
    let child = spend(coin, value, 1, Version(3));
    let status = broadcaster.submit(Submission::Package { parent, child }).await.unwrap();
    assert!(matches!(&status, Status::Refused { .. }), "{status:?}");
    assert!(regtest.mempool().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn test_accept_of_a_good_one_sends_nothing() {
    let Scene { regtest, bitcoind, .. } = scene().await;
    let transaction = spend(fund(&regtest), COIN, 500, Version::TWO);
    let answer = bitcoind.test_accept(&[transaction]).await.unwrap();
    assert_eq!((answer[0].allowed, &answer[0].reason), (Some(true), &None));
    assert!(regtest.mempool().unwrap().is_empty());
}
