//! Sending coins that bitcoind will not take: said at once, and nothing is spent.

use millrace_regtest::client::Client;
use millrace_regtest::network::random_key;
use millrace_rpc::v1::{
    BumpFeeRequest, ErrorReason, ListTransactionsRequest, ListUtxosRequest, NewAddressRequest, SendRequest,
    SendResponse, Utxo, send_request,
};
use tokio::task::block_in_place;
use tonic::Status;

use super::support::{BOB, pair, refused};

/// Sends of one coin's change after another that no version of bitcoind lets wait in its mempool.
const TOO_LONG: usize = 200;

async fn send(client: &Client, address: &str) -> Result<SendResponse, Status> {
    let request = SendRequest {
        idempotency_key: random_key(),
        address: address.to_owned(),
        amount: Some(send_request::Amount::AmountSat(1_000)),
        fee: None,
    };
    client.clone().wallet.send(request).await.map(tonic::Response::into_inner)
}

async fn utxos(client: &Client) -> Vec<Utxo> {
    client.clone().wallet.list_utxos(ListUtxosRequest { page: None }).await.unwrap().into_inner().utxos
}

#[tokio::test(flavor = "multi_thread")]
async fn what_bitcoind_would_refuse_is_not_sent_and_costs_nothing() {
    let mut pair = pair().await;
    let client = pair.client(BOB);
    let request = NewAddressRequest { idempotency_key: random_key(), address_type: 0 };
    let address = client.clone().wallet.new_address(request).await.unwrap().into_inner().address;
    let mut sent = 0;
    let (answer, before) = loop {
        assert!(sent < TOO_LONG, "bitcoind takes any number of descendants");
        let before = (utxos(&client).await, block_in_place(|| pair.network.bitcoind.mempool()).unwrap());
        match send(&client, &address).await {
            Ok(answer) => assert_eq!(answer.waiting, "", "bitcoind has it"),
            Err(status) => break (Err::<(), _>(status), before),
        }
        sent += 1;
    };
    let detail = refused(answer, ErrorReason::BroadcastRefused);
    assert!(detail.facts.get("bitcoind_message").is_some_and(|words| words.contains("too")), "{detail:?}");
    assert!(sent >= 20, "{sent} were sent");
    let after = (utxos(&client).await, block_in_place(|| pair.network.bitcoind.mempool()).unwrap());
    assert_eq!(before, after, "coins are as free as before, and nothing has left");
    pair.network.mine(1).await.unwrap();
    assert_eq!(send(&client, &address).await.unwrap().waiting, "");
    pair.stop().await;
}

/// What was bumped stays bumped, however often the first transaction is asked for again by its key.
#[tokio::test(flavor = "multi_thread")]
async fn a_send_repeated_by_its_key_does_not_undo_its_bump() {
    let mut pair = pair().await;
    let client = pair.client(BOB);
    let address = block_in_place(|| pair.network.bitcoind.new_address()).unwrap().to_string();
    let request = SendRequest {
        idempotency_key: random_key(),
        address,
        amount: Some(send_request::Amount::AmountSat(50_000)),
        fee: None,
    };
    let first = client.clone().wallet.send(request.clone()).await.unwrap().into_inner();
    let bump = |txid: &[u8], sat_per_vb: u32| BumpFeeRequest {
        idempotency_key: random_key(),
        txid: txid.to_vec(),
        fee: Some(millrace_rpc::v1::FeeChoice {
            choice: Some(millrace_rpc::v1::fee_choice::Choice::FeerateSatPerKw(sat_per_vb * 250)),
        }),
    };
    let second = client.clone().wallet.bump_fee(bump(&first.txid, 20)).await.unwrap().into_inner();
    let unconfirmed = async || {
        let request = ListTransactionsRequest { page: None };
        let answer = client.clone().wallet.list_transactions(request).await.unwrap().into_inner();
        let waiting = answer.transactions.into_iter().filter(|tx| tx.height.is_none());
        waiting.map(|tx| tx.txid).collect::<Vec<_>>()
    };
    assert_eq!(unconfirmed().await, std::slice::from_ref(&second.txid));
    for _ in 0..2 {
        let again = client.clone().wallet.send(request.clone()).await.unwrap().into_inner();
        assert_eq!(again.txid, first.txid, "the same result");
        assert!(again.waiting.contains("replaced"), "{again:?}");
        assert_eq!(unconfirmed().await, std::slice::from_ref(&second.txid));
    }
    let third = client.clone().wallet.bump_fee(bump(&second.txid, 40)).await.unwrap().into_inner();
    assert_eq!(unconfirmed().await, std::slice::from_ref(&third.txid));
    pair.network.mine(1).await.unwrap();
    assert_eq!(client.clone().wallet.send(request).await.unwrap().into_inner().txid, first.txid);
    pair.stop().await;
}
