//! The first contact, and what is refused there.

use bitcoin::hashes::Hash;
use bitcoin::{Amount, BlockHash, Network, OutPoint, Txid};
use millrace_chain::{Auth, Bitcoind, ChainError, Config};
use serde_json::json;

use crate::support::{Proxy, config, connect, regtest};

#[tokio::test]
async fn fresh_regtest_counts_as_synced() {
    let regtest = regtest();
    let bitcoind = connect(&regtest).await;
    assert_eq!(bitcoind.check_synced().await.unwrap().blocks, 0);
}

#[tokio::test]
async fn wrong_network_names_both() {
    let regtest = regtest();
    let error = Bitcoind::connect(Config { network: Network::Signet, ..config(&regtest) }).await.unwrap_err();
    assert_eq!(error, ChainError::WrongNetwork { expected: Network::Signet, found: "regtest".to_owned() });
}

#[tokio::test]
async fn another_chain_under_the_same_name() {
    let regtest = regtest();
    let proxy = Proxy::start(&regtest).await;
    proxy.lie(|method, result| {
        if method == "getblockhash" {
            *result = json!(BlockHash::all_zeros());
        }
    });
    let error = Bitcoind::connect(proxy.config(&regtest)).await.unwrap_err();
    assert!(matches!(error, ChainError::WrongNetwork { .. }), "{error}");
}

#[tokio::test]
async fn too_old() {
    let regtest = regtest();
    let proxy = Proxy::start(&regtest).await;
    proxy.lie(|method, result| {
        if method == "getnetworkinfo" {
            result["version"] = json!(260_200);
        }
    });
    let error = Bitcoind::connect(proxy.config(&regtest)).await.unwrap_err();
    assert!(matches!(error, ChainError::TooOld { found: 260_200, min: 270_000, .. }), "{error}");
}

#[tokio::test]
async fn still_syncing() {
    let regtest = regtest();
    let proxy = Proxy::start(&regtest).await;
    proxy.lie(|method, result| {
        if method == "getblockchaininfo" {
            result["headers"] = json!(1000);
            result["verificationprogress"] = json!(0.25);
        }
    });
    let bitcoind = Bitcoind::connect(proxy.config(&regtest)).await.unwrap();
    let error = bitcoind.check_synced().await.unwrap_err();
    assert_eq!(error, ChainError::Syncing { blocks: 0, headers: 1000, progress: 0.25 });
}

#[tokio::test]
async fn nobody_there() {
    let mut regtest = regtest();
    let config = config(&regtest);
    let with_password = Auth::UserPass { user: "a".to_owned(), password: "b".to_owned() };
    regtest.stop().unwrap();
    for auth in [config.auth.clone(), with_password] {
        let error = Bitcoind::connect(Config { auth, ..config.clone() }).await.unwrap_err();
        assert!(matches!(error, ChainError::Away { .. }), "{error}");
    }
}

#[tokio::test]
async fn wrong_password() {
    let regtest = regtest();
    let auth = Auth::UserPass { user: "alice".to_owned(), password: "wrong".to_owned() };
    let error = Bitcoind::connect(Config { auth, ..config(&regtest) }).await.unwrap_err();
    assert!(matches!(error, ChainError::Auth { .. }), "{error}");
}

#[tokio::test]
async fn new_cookie_after_a_restart() {
    let mut regtest = regtest();
    let bitcoind = connect(&regtest).await;
    regtest.restart().unwrap();
    bitcoind.check().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn outputs_transactions_and_headers() {
    let regtest = regtest();
    regtest.mine_to_wallet(101).unwrap();
    let bitcoind = connect(&regtest).await;
    let address = regtest.new_address().unwrap();
    let value = Amount::from_sat(54_321);
    let txid = regtest.send_to(&address, value).unwrap();

    let transaction = bitcoind.transaction(&txid, None).await.unwrap().unwrap();
    let vout = transaction.output.iter().position(|output| output.value == value).unwrap();
    let outpoint = OutPoint { txid, vout: u32::try_from(vout).unwrap() };
    assert_eq!(bitcoind.utxo(&outpoint, false).await.unwrap(), None);
    assert_eq!(bitcoind.utxo(&outpoint, true).await.unwrap().unwrap().confirmations, 0);

    let hash = regtest.mine(1, &address).unwrap()[0];
    let utxo = bitcoind.utxo(&outpoint, true).await.unwrap().unwrap();
    assert_eq!((utxo.value, utxo.confirmations, utxo.is_coinbase), (value, 1, false));
    assert_eq!(utxo.script_pubkey, address.script_pubkey());
    assert_eq!(bitcoind.transaction(&txid, Some(&hash)).await.unwrap().unwrap(), transaction);
    // Without `txindex` a mined transaction is found only in the block that is named.
    assert_eq!(bitcoind.transaction(&txid, None).await.unwrap(), None);

    let info = bitcoind.header_at(102).await.unwrap().unwrap();
    assert_eq!((info.header.block_hash(), info.height, info.is_active), (hash, 102, true));
    assert_eq!(bitcoind.header_at(103).await.unwrap(), None);
    assert_eq!(bitcoind.header(&BlockHash::all_zeros()).await.unwrap(), None);
    assert_eq!(bitcoind.block_txids(&BlockHash::all_zeros()).await.unwrap(), None);
    let txids = bitcoind.block_txids(&hash).await.unwrap().unwrap();
    assert_eq!((txids.len(), txids[1]), (2, txid));
    let none = OutPoint { txid, vout: 99 };
    let both = bitcoind.utxos(&[none, outpoint]).await.unwrap();
    assert_eq!((&both[0], both[1].as_ref().map(|utxo| utxo.value)), (&None, Some(value)));
    assert_eq!(bitcoind.utxo(&OutPoint { txid: Txid::all_zeros(), vout: 0 }, true).await.unwrap(), None);
}
