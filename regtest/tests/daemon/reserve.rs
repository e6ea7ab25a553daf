//! The coins that are kept back to close channels with: who has none takes no channel from a peer.

use bitcoin::Amount;
use millrace_regtest::network::{random_key, whole_page};
use millrace_rpc::v1::{
    BalanceRequest, CloseChannelRequest, ErrorReason, ListChannelsRequest, ListUtxosRequest, OpenChannelRequest,
    open_channel_progress,
};
use tonic::Status;

use super::support::{ALICE, BOB, network, refused};

/// What is kept back for one channel.
const RESERVE_SAT: u64 = 50_000;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_coins_to_close_with_takes_no_channel() {
    let mut network = network(&["alice", "bob"]);
    for node in &mut network.nodes {
        node.start().await.unwrap();
    }
    network.fund(ALICE, Amount::from_sat(1_000_000)).await.unwrap();
    network.fund(BOB, Amount::from_sat(RESERVE_SAT - 1)).await.unwrap();
    network.connect(ALICE, BOB).await.unwrap();
    let bob_id = network.nodes[BOB].node_id().to_vec();
    let mut alice = network.nodes[ALICE].client().unwrap();
    let mut open = async || {
        let request = OpenChannelRequest {
            idempotency_key: random_key(),
            node_id: bob_id.clone(),
            capacity_sat: 200_000,
            ..OpenChannelRequest::default()
        };
        let mut progress = alice.channels.open(request).await?.into_inner();
        while let Some(step) = progress.message().await? {
            if let Some(open_channel_progress::Stage::FundingBroadcast(_)) = step.stage {
                return Ok::<(), Status>(());
            }
        }
        panic!("the opening ended without a word")
    };
    let told = refused(open().await, ErrorReason::PeerRefused);
    let peer_message = &told.facts["peer_message"];
    assert!(peer_message.contains("lacks coins to close it with") && !peer_message.contains("999"), "{peer_message}");
    for node in &network.nodes {
        let request = ListChannelsRequest { include_closed: true, ..ListChannelsRequest::default() };
        assert!(node.client().unwrap().channels.list(request).await.unwrap().into_inner().channels.is_empty());
        let log = std::fs::read_to_string(node.log_path()).unwrap();
        let says_how_much = log.contains("49,999") || log.contains("49999");
        assert_eq!(says_how_much, node.name == "bob", "the owner is told the numbers:\n{log}");
    }
    let balance = network.nodes[ALICE].client().unwrap().wallet.balance(BalanceRequest {}).await.unwrap().into_inner();
    assert_eq!((balance.confirmed_sat, balance.spendable_sat), (1_000_000, 1_000_000), "her coins are free again");

    // One sat more, and he takes one; for a second there is too little again.
    network.fund(BOB, Amount::from_sat(1_000)).await.unwrap();
    open().await.unwrap();
    refused(open().await, ErrorReason::PeerRefused);
    for node in &mut network.nodes {
        node.stop().await.unwrap();
    }
}

/// Bob has one coin, and takes two channels: once they are in a block, each has a coin of its own to be closed with.
#[tokio::test(flavor = "multi_thread")]
async fn one_coin_is_divided_for_two_channels() {
    let mut network = network(&["alice", "bob"]);
    for node in &mut network.nodes {
        node.start().await.unwrap();
    }
    for node in [ALICE, BOB] {
        network.fund(node, Amount::from_sat(1_000_000)).await.unwrap();
    }
    network.connect(ALICE, BOB).await.unwrap();
    let bob = network.nodes[BOB].client().unwrap();
    let coins = async || {
        let request = ListUtxosRequest { page: Some(whole_page()) };
        let coins = bob.clone().wallet.list_utxos(request).await.unwrap().into_inner().utxos;
        coins.iter().filter(|coin| coin.amount_sat >= RESERVE_SAT).count()
    };
    network.open(ALICE, BOB, 200_000, 0).await.unwrap();
    assert_eq!(coins().await, 1, "one channel, one coin");
    network.open(ALICE, BOB, 200_000, 0).await.unwrap();
    let divided = network.wait("a coin for each channel", async || {
        let coins = coins().await;
        Ok(if coins == 2 { Ok(()) } else { Err(format!("{coins} coins")) })
    });
    divided.await.unwrap();
    network.mine(6).await.unwrap();
    assert_eq!(coins().await, 2, "and no more than that");
    for node in &mut network.nodes {
        node.stop().await.unwrap();
    }
}

/// Bob closes a channel before it is in any block: Alice, who waits for it, is told that it never came into use.
#[tokio::test(flavor = "multi_thread")]
async fn an_opening_that_is_closed_before_its_use_says_so() {
    let mut network = network(&["alice", "bob"]);
    for node in &mut network.nodes {
        node.start().await.unwrap();
    }
    for node in [ALICE, BOB] {
        network.fund(node, Amount::from_sat(1_000_000)).await.unwrap();
    }
    network.connect(ALICE, BOB).await.unwrap();
    let [alice, bob] = [ALICE, BOB].map(|node| network.nodes[node].client().unwrap());
    let open = OpenChannelRequest {
        idempotency_key: random_key(),
        node_id: network.nodes[BOB].node_id().to_vec(),
        capacity_sat: 200_000,
        ..OpenChannelRequest::default()
    };
    let too_much = |capacity_sat| OpenChannelRequest { idempotency_key: random_key(), capacity_sat, ..open.clone() };
    let ended = async |request: OpenChannelRequest| {
        let mut progress = alice.clone().channels.open(request).await?.into_inner();
        while let Some(step) = progress.message().await? {
            assert!(!matches!(step.stage, Some(open_channel_progress::Stage::Ready(_))), "{step:?}");
        }
        Ok::<(), Status>(())
    };
    let told = refused(ended(too_much(5_000_000)).await, ErrorReason::InsufficientBalance);
    assert_eq!(told.facts["available_sat"], "1000000", "{told:?}");
    assert!(told.facts["needed_sat"].parse::<u64>().unwrap() > 5_000_000, "{told:?}");
    let told = refused(ended(too_much(990_000)).await, ErrorReason::AnchorReserve);
    assert_eq!(told.facts["reserve_sat"], "50000", "{told:?}");
    let told = refused(
        ended(OpenChannelRequest { push_msat: 200_000_000, ..too_much(200_000) }).await,
        ErrorReason::InvalidField,
    );
    assert_eq!(told.facts["field"], "push_msat", "{told:?}");

    let mut progress = alice.clone().channels.open(open.clone()).await.unwrap().into_inner();
    let channel_id = loop {
        let step = progress.message().await.unwrap().unwrap();
        if let Some(open_channel_progress::Stage::FundingBroadcast(funding)) = step.stage {
            assert!(funding.fee_sat > 0, "{funding:?}");
            break step.channel_id;
        }
    };
    let close = CloseChannelRequest {
        idempotency_key: random_key(),
        channel_id,
        force: true,
        ..CloseChannelRequest::default()
    };
    let _following = bob.clone().channels.close(close).await.unwrap();
    let rest = async {
        while let Some(step) = progress.message().await? {
            assert!(!matches!(step.stage, Some(open_channel_progress::Stage::Ready(_))), "{step:?}");
        }
        Ok::<(), Status>(())
    };
    refused(rest.await, ErrorReason::ChannelNotUsable);
    let told = refused(ended(open).await, ErrorReason::ChannelNotUsable);
    assert!(told.facts.contains_key("channel_id"), "{told:?}");
    for node in &mut network.nodes {
        node.stop().await.unwrap();
    }
}
