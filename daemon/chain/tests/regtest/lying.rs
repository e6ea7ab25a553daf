//! A bitcoind, or something in its place, that answers what cannot be true: nothing of it gets
//! through, and the truth does once it comes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millrace_chain::{Bitcoind, ChainError, ChainEvent, SyncState};
use millrace_regtest::bitcoind::Bitcoind as Regtest;
use serde_json::{Value, json};

use crate::support::{Consumer, Proxy, Short, cursor, regtest, ups};

/// Five blocks and a lie about them: the watcher says that bitcoind is away, and why; then the truth.
async fn is_refused(why: &str, make_lie: impl FnOnce(&Regtest) -> Box<dyn FnMut(&str, &mut Value) + Send>) {
    let regtest = regtest();
    regtest.mine_to_wallet(5).unwrap();
    let proxy = Proxy::start(&regtest).await;
    let bitcoind = Bitcoind::connect(proxy.config(&regtest)).await.unwrap();
    proxy.lie(make_lie(&regtest));
    let mut consumer = Consumer::start(bitcoind, Some(cursor(&regtest, 3)));
    let ChainEvent::Away { reason } = consumer.next().await else { panic!("the lie got through") };
    assert!(reason.contains(why), "{reason}");
    consumer.until_state(|state| matches!(state, SyncState::Away { reason } if reason.contains(why))).await;
    proxy.be_honest();
    let expected = [vec![Short::Back], ups(&regtest, 4..=5)].concat();
    assert_eq!(consumer.until_tip(5).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_block() {
    is_refused("was asked for", |regtest| {
        let hash = regtest.block_hash(1).unwrap();
        let other = regtest.call("getblock", &json!([hash, 0])).unwrap();
        Box::new(move |method, result| {
            if method == "getblock" {
                *result = other.clone();
            }
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_changed() {
    is_refused("cannot be right", |_| {
        Box::new(|method, result| {
            if let (true, Some(hex)) = (method == "getblock", result.as_str()) {
                // The coinbase's value, just before its script: the header stays as it is.
                let place = hex.len() - 120;
                let digit = if hex.as_bytes()[place] == b'0' { "1" } else { "0" };
                *result = json!(format!("{}{digit}{}", &hex[..place], &hex[place + 1..]));
            }
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_that_does_not_follow() {
    is_refused("does not follow", |regtest| {
        let below = regtest.block_hash(2).unwrap();
        let next = regtest.block_hash(4).unwrap();
        Box::new(move |method, result| {
            if method == "getblockhash" && *result == json!(next) {
                *result = json!(below);
            }
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_an_answer() {
    is_refused("getblock", |_| {
        Box::new(|method, result| {
            if let (true, Some(hex)) = (method == "getblock", result.as_str()) {
                *result = json!(&hex[..hex.len() / 2]);
            }
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_said_to_be_stale() {
    let regtest = regtest();
    regtest.mine_to_wallet(5).unwrap();
    let proxy = Proxy::start(&regtest).await;
    let bitcoind = Bitcoind::connect(proxy.config(&regtest)).await.unwrap();
    let was_asked = Arc::new(AtomicBool::new(false));
    let (asked, below) = (Arc::clone(&was_asked), regtest.block_hash(2).unwrap());
    let next = regtest.block_hash(4).unwrap();
    proxy.lie(move |method, result| match method {
        "getblockheader" => {
            asked.store(true, Ordering::Relaxed);
            result["confirmations"] = json!(-1);
        }
        "getblockhash" if *result == json!(next) => *result = json!(below),
        _ => {}
    });
    let mut consumer = Consumer::start(bitcoind, Some(cursor(&regtest, 3)));
    let event = consumer.next().await;
    assert!(matches!(event, ChainEvent::Away { .. }), "{event:?}");
    assert!(was_asked.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_header_or_transaction() {
    let regtest = regtest();
    regtest.mine_to_wallet(101).unwrap();
    let address = regtest.new_address().unwrap();
    let [a, b] = [1_000_000, 2_000_000].map(|sat| regtest.send_to(&address, bitcoin::Amount::from_sat(sat)).unwrap());
    let other = regtest.call("getrawtransaction", &json!([b])).unwrap();
    let proxy = Proxy::start(&regtest).await;
    let bitcoind = Bitcoind::connect(proxy.config(&regtest)).await.unwrap();
    proxy.lie(move |method, result| match method {
        "getblockheader" => result["nonce"] = json!(77),
        "getrawtransaction" => *result = other.clone(),
        _ => {}
    });
    let error = bitcoind.transaction(&a, None).await.unwrap_err();
    assert!(matches!(error, ChainError::Odd { .. }), "{error}");
    let error = bitcoind.header_at(3).await.unwrap_err();
    assert!(matches!(error, ChainError::Odd { .. }), "{error}");
}
