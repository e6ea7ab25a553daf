//! A channel that is closed is remembered whole: by every name, in lists, counts and metrics, after any kind of restart.

use std::time::{Duration, Instant};

use millrace_regtest::client::Client;
use millrace_regtest::network::{random_key, whole_page};
use millrace_rpc::v1::get_channel_request::Channel as By;
use millrace_rpc::v1::{
    Channel, ChannelState, CloseChannelRequest, CloseKind, ErrorReason, GetChannelRequest, GetInfoRequest,
    ListChannelsRequest, OutputKind, OutputStatus, close_channel_progress,
};
use tokio::time::timeout;

use super::support::{ALICE, BOB, CAPACITY_SAT, Pair, metrics_page, pair_with, refused, turn_metrics_on};

/// Blocks that are mined before it is looked again whether the channel is closed.
const BLOCKS_AT_A_TIME: u32 = 15;
/// All of a closing, its delay and its burial.
const PATIENCE: Duration = Duration::from_secs(180);

async fn get(client: &Client, by: By) -> Channel {
    let request = GetChannelRequest { channel: Some(by) };
    client.clone().channels.get(request).await.unwrap().into_inner().channel.unwrap()
}

async fn closed_in_list(client: &Client) -> Vec<Channel> {
    let request = ListChannelsRequest { page: Some(whole_page()), node_id: Vec::new(), include_closed: true };
    client.clone().channels.list(request).await.unwrap().into_inner().channels
}

/// The same channel by each of its names.
async fn by_every_name(client: &Client, channel_id: &[u8]) -> Channel {
    let channel = get(client, By::ChannelId(channel_id.to_vec())).await;
    let names = [
        By::ShortChannelId(channel.short_channel_id.unwrap()),
        By::ShortChannelId(channel.local_alias.unwrap()),
        By::FundingOutpoint(channel.funding_outpoint.clone().unwrap()),
    ];
    for name in names {
        assert_eq!(get(client, name).await, channel);
    }
    channel
}

fn by_force(pair: &Pair) -> CloseChannelRequest {
    CloseChannelRequest {
        idempotency_key: random_key(),
        channel_id: pair.channel_id.clone(),
        force: true,
        ..CloseChannelRequest::default()
    }
}

/// The order is done: by its key its end is told again, by another it is refused.
async fn order_again(pair: &Pair, done: &CloseChannelRequest, closed: &Channel) {
    let mut client = pair.client(ALICE);
    let mut progress = client.channels.close(done.clone()).await.unwrap().into_inner();
    let mut told = Vec::new();
    while let Some(step) = timeout(PATIENCE, progress.message()).await.unwrap().unwrap() {
        told.push(step.stage.unwrap());
    }
    let ours = closed.closing.clone().unwrap().txid;
    let [close_channel_progress::Stage::Broadcast(broadcast), .., close_channel_progress::Stage::Closed(last)] =
        &told[..]
    else {
        panic!("{told:?}")
    };
    assert_eq!((&broadcast.txid, broadcast.kind()), (&ours, CloseKind::LocalCommitment));
    assert_eq!((&last.channel_id, last.state()), (&closed.channel_id, ChannelState::Closed));
    let refusal = client.channels.close(by_force(pair)).await.map(|_| ());
    refused(refusal, ErrorReason::ChannelNotUsable);
}

/// Closes by force, mines until it is over, and gives the confirmations that were told on the way.
async fn close_by_force(pair: &mut Pair, request: CloseChannelRequest) -> Vec<(u32, u32)> {
    let mut progress = pair.client(ALICE).channels.close(request).await.unwrap().into_inner();
    let follow = tokio::spawn(async move {
        let mut told = Vec::new();
        loop {
            let step = timeout(PATIENCE, progress.message()).await.unwrap().unwrap().unwrap();
            match step.stage.unwrap() {
                close_channel_progress::Stage::Confirmations(depth) => told.push((depth.have, depth.need)),
                close_channel_progress::Stage::Closed(_) => return told,
                _ => {}
            }
        }
    });
    pair.network.wait_for_mempool(1).await.unwrap();
    // The commitment; the sweep of what is delayed, whenever it comes after its delay; and the burial of both.
    let begun = Instant::now();
    for node in [ALICE, BOB] {
        while pair.network.channel(node, &pair.channel_id).await.unwrap().state() != ChannelState::Closed {
            assert!(begun.elapsed() < PATIENCE, "the channel is never closed");
            pair.network.mine(BLOCKS_AT_A_TIME).await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    follow.await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_channel_is_remembered_whole_whatever_happens_to_the_daemon() {
    let mut pair = pair_with(turn_metrics_on, |request| request.to_self_delay_blocks = Some(144)).await;
    let bolt11 = pair.invoice(BOB, 30_000_000).await;
    pair.pay(ALICE, &bolt11).await.unwrap();
    pair.wait_until_at_rest().await;
    let id = pair.channel_id.clone();
    let open = [by_every_name(&pair.client(ALICE), &id).await, by_every_name(&pair.client(BOB), &id).await];

    let order = by_force(&pair);
    let told = close_by_force(&mut pair, order.clone()).await;
    assert!(told.len() >= 2 && told.is_sorted(), "confirmations as they come: {told:?}");
    assert!(told.iter().all(|(have, need)| (1..=100).contains(have) && *need == 100), "{told:?}");

    let before = [by_every_name(&pair.client(ALICE), &id).await, by_every_name(&pair.client(BOB), &id).await];
    for (node, (open, closed)) in open.iter().zip(&before).enumerate() {
        check_is_remembered(node, open, closed);
    }
    order_again(&pair, &order, &before[ALICE]).await;
    for way in ["a stop", "a stop, and the view is gone", "a kill"] {
        for node in &mut pair.network.nodes {
            match way {
                "a kill" => node.kill9().unwrap(),
                _ => node.stop().await.unwrap(),
            }
            if way.ends_with("gone") {
                std::fs::remove_dir_all(node.data_dir().join("view")).unwrap();
            }
            node.start().await.unwrap();
        }
        for (node, before) in before.iter().enumerate() {
            let client = pair.client(node);
            assert_eq!(&by_every_name(&client, &id).await, before, "{way}");
            if node == ALICE {
                order_again(&pair, &order, before).await;
            }
            let listed = closed_in_list(&client).await;
            assert_eq!(listed.len(), 1, "{way}");
            assert_eq!((listed[0].channel_id.clone(), listed[0].state()), (id.clone(), ChannelState::Closed), "{way}");
            let info = client.clone().node.get_info(GetInfoRequest {}).await.unwrap().into_inner();
            assert_eq!(info.channels.unwrap().closed, 1, "{way}");
            let told = pair.network.wait("the metrics count it", async || {
                let page = metrics_page(&pair.network.nodes[node]).await;
                let is_counted = page.lines().any(|line| line == "millrace_channels{state=\"closed\"} 1");
                Ok(if is_counted { Ok(()) } else { Err("they do not".to_owned()) })
            });
            told.await.unwrap();
        }
    }
    pair.stop().await;
}

fn check_is_remembered(node: usize, open: &Channel, closed: &Channel) {
    assert_eq!(closed.state(), ChannelState::Closed);
    let lasting = |channel: &Channel| Channel {
        channel_id: channel.channel_id.clone(),
        node_id: channel.node_id.clone(),
        funder: channel.funder,
        capacity_sat: channel.capacity_sat,
        funding_outpoint: channel.funding_outpoint.clone(),
        short_channel_id: channel.short_channel_id,
        local_alias: channel.local_alias,
        remote_alias: channel.remote_alias,
        channel_type: channel.channel_type.clone(),
        local_msat: channel.local_msat,
        remote_msat: channel.remote_msat,
        local: channel.local,
        remote: channel.remote,
        feerate_sat_per_kw: channel.feerate_sat_per_kw,
        local_commitment_number: channel.local_commitment_number,
        remote_commitment_number: channel.remote_commitment_number,
        confirmations: channel.confirmations,
        minimum_depth: channel.minimum_depth,
        opened_ms: channel.opened_ms,
        total_sent_msat: channel.total_sent_msat,
        total_received_msat: channel.total_received_msat,
        ..Channel::default()
    };
    assert_eq!(lasting(closed), lasting(open));
    assert_eq!(closed.local_msat + closed.remote_msat, CAPACITY_SAT * 1000);
    let closing = closed.closing.as_ref().unwrap();
    let kind = if node == ALICE { CloseKind::LocalCommitment } else { CloseKind::RemoteCommitment };
    assert_eq!(closing.kind(), kind);
    assert!(closing.height.is_some() && closing.txid.len() == 32 && closing.fee_sat > 0, "{closing:?}");
    let outputs = &closing.on_chain.as_ref().unwrap().outputs;
    let is_claimed = |output: &&millrace_rpc::v1::OnChainOutput| output.status() == OutputStatus::Claimed;
    let balance = outputs.iter().filter(is_claimed).find(|output| output.kind() == OutputKind::ToLocal).unwrap();
    assert!(balance.claim_height > closing.height && balance.claim_txid.len() == 32, "{outputs:?}");
    assert!(outputs.len() >= 4, "two balances and two anchors: {outputs:?}");
    assert!(closing.recovered_sat > 0 && closing.recovered_sat < balance.amount_sat, "{closing:?}");
}
