//! A bitcoind that is away, or behind: at the start the daemon waits and says so; later, what needs the chain is refused
//! clearly; and when bitcoind is back, with another cookie, everything goes on.

use std::time::Duration;

use millrace_regtest::client::Client;
use millrace_regtest::network::random_key;
use millrace_regtest::network::wait_for;
use millrace_regtest::node::{Node, RpcInfo};
use millrace_rpc::v1::{
    ErrorReason, GetInfoRequest, GetStatusRequest, NewAddressRequest, OpenChannelRequest, PaymentStatus, SendRequest,
    StartStage, SyncState, send_request,
};
use tokio::task::block_in_place;

use super::support::{ALICE, BOB, LIMIT, Pair, check_refusal, network, pair, payments, refused};

/// A connection with a daemon that is not ready.
async fn early_client(node: &Node) -> Option<Client> {
    let text = std::fs::read_to_string(node.data_dir().join("rpc.json")).ok()?;
    let info: RpcInfo = serde_json::from_str(&text).unwrap();
    let certificate = std::fs::read_to_string(&info.cert).unwrap();
    let token = std::fs::read_to_string(&info.token).unwrap();
    Client::connect(&info.rpc, &certificate, &token).await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_start() {
    let mut pair = Pair { network: network(&["alice"]), channel_id: Vec::new() };
    block_in_place(|| pair.network.bitcoind.stop()).unwrap();
    pair.network.nodes[ALICE].launch().unwrap();
    let node = &pair.network.nodes[ALICE];
    let mut seen = None;
    wait_for("a status that says what is missing", LIMIT, async || {
        let Some(mut client) = early_client(node).await else { return Ok(Err("no gRPC yet".to_owned())) };
        let status = client.node.get_status(GetStatusRequest {}).await.unwrap().into_inner();
        let says_so = status.stage() == StartStage::Chain && status.message.contains("bitcoind is away");
        let state = format!("{status:?}");
        seen = Some((client, status));
        Ok(if says_so { Ok(()) } else { Err(state) })
    })
    .await
    .unwrap();
    let (mut client, status) = seen.unwrap();
    assert_eq!(status.network, "regtest");
    let early = refused(client.node.get_info(GetInfoRequest {}).await, ErrorReason::NotReady);
    assert!(early.facts.contains_key("stage"), "{early:?}");
    let address = NewAddressRequest { idempotency_key: random_key(), address_type: 0 };
    refused(client.wallet.new_address(address).await, ErrorReason::NotReady);
    let log = std::fs::read_to_string(pair.network.nodes[ALICE].log_path()).unwrap();
    assert!(log.contains("waiting for bitcoind"), "{log}");

    block_in_place(|| pair.network.bitcoind.start_again()).unwrap();
    pair.network.nodes[ALICE].wait_until_ready().await.unwrap();
    pair.network.mine(1).await.unwrap();
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn in_the_middle() {
    let mut pair = pair().await;
    let to = block_in_place(|| pair.network.bitcoind.new_address()).unwrap().to_string();
    let before = [pair.invoice(BOB, 10_000).await, pair.invoice(BOB, 10_000).await];
    let cookie = std::fs::read(pair.network.bitcoind.cookie_path()).unwrap();
    pair.pay(ALICE, &before[0]).await.unwrap();
    block_in_place(|| pair.network.bitcoind.stop()).unwrap();

    for node in [ALICE, BOB] {
        let mut client = pair.client(node).node;
        let said = pair.network.wait("the node says that bitcoind is away", async || {
            let info = client.get_info(GetInfoRequest {}).await.unwrap().into_inner();
            Ok(if info.sync_state() == SyncState::ChainAway { Ok(()) } else { Err(format!("{info:?}")) })
        });
        said.await.unwrap();
    }
    let standing = pair.standing_without_chain().await;
    let answer = pair.pay(ALICE, &before[1]).await;
    refused(answer, ErrorReason::ChainAway);
    let send = SendRequest {
        idempotency_key: random_key(),
        address: to,
        amount: Some(send_request::Amount::AmountSat(50_000)),
        fee: None,
    };
    refused(pair.client(ALICE).wallet.send(send.clone()).await, ErrorReason::ChainAway);
    assert_eq!(pair.standing_without_chain().await, standing);

    tokio::time::sleep(Duration::from_secs(1)).await;
    block_in_place(|| pair.network.bitcoind.start_again()).unwrap();
    assert_ne!(std::fs::read(pair.network.bitcoind.cookie_path()).unwrap(), cookie);
    pair.network.mine(2).await.unwrap();
    pair.wait_until_usable().await;
    // What was refused can be asked for again, by the same key as well.
    let paid = pair.network.wait("the payment that was refused is made", async || {
        Ok(match pair.pay(ALICE, &before[1]).await {
            Ok(payment) => {
                assert_eq!(payment.status(), PaymentStatus::Succeeded, "{payment:?}");
                Ok(())
            }
            Err(status) => {
                check_refusal(&status, ErrorReason::ChainAway);
                Err(status.message().to_owned())
            }
        })
    });
    paid.await.unwrap();
    assert_eq!(payments(&pair.client(ALICE)).await.len(), 2);
    pair.client(ALICE).wallet.send(send).await.unwrap();
    pair.network.wait_for_mempool(1).await.unwrap();
    pair.stop().await;
}

/// A bitcoind that lacks blocks which the daemons have seen: it is waited for, not followed down.
#[tokio::test(flavor = "multi_thread")]
async fn still_syncing() {
    let mut pair = pair().await;
    let bolt11 = pair.invoice(BOB, 10_000).await;
    let to = block_in_place(|| pair.network.bitcoind.new_address()).unwrap().to_string();
    let height = block_in_place(|| pair.network.bitcoind.height()).unwrap();
    let lacking = block_in_place(|| pair.network.bitcoind.block_hash(height - 1)).unwrap();
    block_in_place(|| pair.network.bitcoind.invalidate_block(&lacking)).unwrap();
    for node in [ALICE, BOB] {
        let mut client = pair.client(node).node;
        let said = pair.network.wait("the node says that bitcoind is syncing", async || {
            let info = client.get_info(GetInfoRequest {}).await.unwrap().into_inner();
            let says_so = info.sync_state() == SyncState::Syncing && info.chain_height == height - 2;
            Ok(if says_so { Ok(()) } else { Err(format!("{info:?}")) })
        });
        said.await.unwrap();
    }
    let standing = pair.standing().await;
    let refusal = pair.pay(ALICE, &bolt11).await.unwrap_err();
    check_refusal(&refusal, ErrorReason::ChainSyncing);
    assert!(refusal.message().contains(&format!("{} of {height} blocks", height - 2)), "{}", refusal.message());
    let send = SendRequest {
        idempotency_key: random_key(),
        address: to,
        amount: Some(send_request::Amount::AmountSat(50_000)),
        fee: None,
    };
    refused(pair.client(ALICE).wallet.send(send.clone()).await, ErrorReason::ChainSyncing);
    let open = OpenChannelRequest {
        idempotency_key: random_key(),
        node_id: pair.network.nodes[BOB].node_id().to_vec(),
        capacity_sat: 100_000,
        ..OpenChannelRequest::default()
    };
    refused(pair.client(ALICE).channels.open(open).await, ErrorReason::ChainSyncing);
    assert_eq!(pair.standing().await, standing);

    // Started now, the daemon waits for bitcoind and says how far it is.
    pair.network.nodes[ALICE].stop().await.unwrap();
    pair.network.nodes[ALICE].launch().unwrap();
    let node = &pair.network.nodes[ALICE];
    let waits = wait_for("a status that says how far it is", LIMIT, async || {
        let Some(mut client) = early_client(node).await else { return Ok(Err("no gRPC yet".to_owned())) };
        let status = client.node.get_status(GetStatusRequest {}).await.unwrap().into_inner();
        let blocks = format!("{} of {height} blocks", height - 2);
        let says_so = status.stage() == StartStage::Chain && status.message.contains(&blocks);
        Ok(if says_so { Ok(()) } else { Err(format!("{status:?}")) })
    });
    waits.await.unwrap();
    let mut early = early_client(node).await.unwrap();
    refused(early.wallet.send(send.clone()).await, ErrorReason::NotReady);

    block_in_place(|| pair.network.bitcoind.reconsider_block(&lacking)).unwrap();
    pair.network.nodes[ALICE].wait_until_ready().await.unwrap();
    pair.network.mine(1).await.unwrap();
    pair.wait_until_usable().await;
    assert_eq!(pair.pay(ALICE, &bolt11).await.unwrap().status(), PaymentStatus::Succeeded);
    pair.client(ALICE).wallet.send(send).await.unwrap();
    pair.stop().await;
}
