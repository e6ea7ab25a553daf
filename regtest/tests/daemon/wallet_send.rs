//! Sending coins that bitcoind will not take: said at once, and nothing is spent.

use millrace_regtest::client::Client;
use millrace_regtest::network::random_key;
use millrace_rpc::v1::{
    ErrorReason, ListUtxosRequest, NewAddressRequest, SendRequest, SendResponse, Utxo, send_request,
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
