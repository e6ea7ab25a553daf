//! Fee estimates of a bitcoind that has nothing to estimate from.

use millrace_chain::fees::{FALLBACK_TEST, FeeEstimates, SatPerKw};
use serde_json::json;

use crate::support::{Consumer, Proxy, connect, eventually, regtest, regtest_with};

#[tokio::test(flavor = "multi_thread")]
async fn regtest_falls_back() {
    let regtest = regtest();
    regtest.mine_to_wallet(1).unwrap();
    let fees = FeeEstimates::fetch(&connect(&regtest).await).await.unwrap();
    assert!(!fees.is_estimated());
    assert_eq!(fees.mutual_close(), FALLBACK_TEST);
    assert_eq!(fees.anchor_commitment(), SatPerKw(1_250));
}

#[tokio::test(flavor = "multi_thread")]
async fn mempool_minimum_raises_the_fallback() {
    let regtest = regtest_with(&["-minrelaytxfee=0.00020000"]);
    let fees = FeeEstimates::fetch(&connect(&regtest).await).await.unwrap();
    assert_eq!(fees.mempool_minimum(), SatPerKw(5_000));
    assert_eq!(fees.relay_minimum(), SatPerKw(5_000));
    assert_eq!(fees.anchor_commitment(), SatPerKw(5_000));
    assert_eq!(fees.mutual_close(), SatPerKw(5_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn followed_with_each_block() {
    let regtest = regtest();
    let proxy = Proxy::start(&regtest).await;
    let bitcoind = millrace_chain::Bitcoind::connect(proxy.config(&regtest)).await.unwrap();
    let mut consumer = Consumer::with_room(bitcoind.clone(), None, 100);
    consumer.until_tip(0).await;
    let fees = FeeEstimates::follow(bitcoind, consumer.sync.clone());
    eventually("asked at the start", || proxy.calls("getmempoolinfo") > 0).await;
    proxy.lie(|method, result| {
        if method == "estimatesmartfee" {
            *result = json!({ "feerate": 0.00012, "blocks": 2 });
        }
    });
    assert!(!fees.borrow().is_estimated());
    regtest.mine_to_wallet(1).unwrap();
    eventually("estimates of the new block", || fees.borrow().is_estimated()).await;
    assert_eq!(fees.borrow().within(2), SatPerKw(3_000));
}
