//! What a client asks to be told to the network, and what it is shown of that.

use millrace_rpc::v1::node_client::NodeClient;
use millrace_rpc::v1::{self, AnnouncementStage, ErrorReason, get_channel_request};

use crate::support::{FakeChain, PATIENCE, eventually};
use crate::world::{World, start};
use crate::{pair, reason};

fn wanted(key: &str) -> v1::AnnounceRequest {
    let addresses = vec!["node.example.org:9735".to_owned(), "203.0.113.7:9735".to_owned()];
    v1::AnnounceRequest {
        idempotency_key: key.to_owned(),
        alias: Some("Corner Shop ⚡".to_owned()),
        color: Some("#3399ff".to_owned()),
        addresses: Some(v1::NodeAddresses { addresses }),
    }
}

async fn announcement(world: &World, channel_id: &[u8]) -> Option<v1::Announcement> {
    let channel = Some(get_channel_request::Channel::ChannelId(channel_id.to_vec()));
    let answer = world.channels().await.get(v1::GetChannelRequest { channel }).await.unwrap();
    answer.into_inner().channel.unwrap().announcement
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_is_told_what_to_say_of_itself_for_good() {
    let (chain, home) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let world = start(home.path(), &chain).await;
    let mut node = NodeClient::new(world.link().await);
    let answer = node.announce(wanted("k")).await.unwrap().into_inner();
    let face = answer.face.clone().unwrap();
    assert_eq!((face.alias.as_str(), face.color.as_str()), ("Corner Shop ⚡", "#3399ff"));
    assert_eq!(face.addresses, ["node.example.org:9735", "203.0.113.7:9735"]);
    assert!(!answer.has_announced_channel);
    assert_eq!(node.announce(wanted("k")).await.unwrap().into_inner(), answer, "the same key says the same");
    let address = |text: &str| Some(v1::NodeAddresses { addresses: vec![text.to_owned()] });
    for bad in [
        v1::AnnounceRequest { alias: Some("ä".repeat(17)), ..wanted("") },
        v1::AnnounceRequest { color: Some("blue".to_owned()), ..wanted("") },
        v1::AnnounceRequest { addresses: address("203.0.113.7:0"), ..wanted("") },
        v1::AnnounceRequest { addresses: address("nowhere"), ..wanted("") },
        v1::AnnounceRequest {
            addresses: Some(v1::NodeAddresses { addresses: vec!["203.0.113.7:1".to_owned(); 17] }),
            ..wanted("")
        },
    ] {
        let status = node.announce(v1::AnnounceRequest { idempotency_key: "bad".to_owned(), ..bad }).await.unwrap_err();
        assert_eq!(reason(&status), ErrorReason::InvalidField);
    }
    world.stop().await;
    let world = start(home.path(), &chain).await;
    let info = NodeClient::new(world.link().await).get_info(v1::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.alias.as_str(), info.face, info.announced_s), ("Corner Shop ⚡", Some(face), 0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_opening_asks_for_a_public_channel_and_its_stages_are_shown() {
    let (chain, a_home, b_home) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = pair(&chain, [a_home.path(), b_home.path()]).await;
    let request = v1::OpenChannelRequest {
        idempotency_key: "open".to_owned(),
        node_id: bob.node_id.serialize().to_vec(),
        capacity_sat: 1_000_000,
        public: Some(true),
        ..v1::OpenChannelRequest::default()
    };
    let mut progress = alice.channels().await.open(request).await.unwrap().into_inner();
    let channel_id = loop {
        let step = tokio::time::timeout(PATIENCE, progress.message()).await.unwrap().unwrap().unwrap();
        if let Some(v1::open_channel_progress::Stage::FundingBroadcast(_)) = step.stage {
            break step.channel_id;
        }
    };
    eventually("the funding is broadcast", || (!chain.mempool().is_empty()).then_some(())).await;
    let shown = announcement(&alice, &channel_id).await.expect("it is public");
    assert_eq!((shown.stage(), shown.confirmations_left), (AnnouncementStage::WaitsForConfirmations, 6));
    chain.mine(4);
    let id = millrace_wire::ChannelId(channel_id.clone().try_into().unwrap());
    for world in [&alice, &bob] {
        world.wait_until(id, "four confirmations", |snapshot| snapshot.funding_depth == 4).await;
        let shown = announcement(world, &channel_id).await.expect("it is public on both sides");
        assert_eq!((shown.stage(), shown.confirmations_left), (AnnouncementStage::WaitsForConfirmations, 2));
    }
    chain.mine(2);
    for world in [&alice, &bob] {
        world.wait_until(id, "announced", |snapshot| snapshot.announcement.is_some()).await;
        let shown = announcement(world, &channel_id).await.unwrap();
        assert_eq!((shown.stage(), shown.confirmations_left), (AnnouncementStage::Announced, 0));
        assert_eq!(shown.height, chain.height());
    }
    alice.stop().await;
    bob.stop().await;
}
