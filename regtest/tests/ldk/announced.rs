//! What a real ldk-node and a real `millraced` say of a channel between them (BOLT 7): each takes the other's
//! `announcement_signatures` and `channel_update`.

use millrace_regtest::ldk::protocol::Channel;
use millrace_regtest::network::{SOON, wait_for};
use millrace_rpc::v1::AnnouncementStage;

use crate::mixed::{CAPACITY_SAT, Mixed, OURS};

const PUSH_MSAT: u64 = 4_000_000_000;
/// What we ask for forwarding: a base in msat, and millionths.
const OUR_FEE: (u32, u32) = (1_000, 100);

impl Mixed {
    /// LDK has our `channel_update`.
    async fn wait_until_ldk_knows_our_fee(&self, channel_id: &[u8]) -> Channel {
        let id = hex::encode(channel_id);
        let known = wait_for("LDK knows our fee", SOON, async || {
            let fee = self.ldk.channel(&id).await?.remote_fee;
            Ok(if fee == Some(OUR_FEE) { Ok(()) } else { Err(format!("it knows {fee:?}")) })
        });
        known.await.unwrap_or_else(|error| self.give_up(&error.to_string()));
        self.ldk.channel(&id).await.unwrap()
    }

    async fn wait_until_announced(&self, channel_id: &[u8]) -> u32 {
        let announced = wait_for("both have signed", SOON, async || {
            let announcement = self.network.channel(OURS, channel_id).await?.announcement;
            let stage = announcement.map(|announcement| announcement.stage());
            Ok(if stage == Some(AnnouncementStage::Announced) { Ok(()) } else { Err(format!("{stage:?}")) })
        });
        announced.await.unwrap_or_else(|error| self.give_up(&error.to_string()));
        self.network.channel(OURS, channel_id).await.unwrap().announcement.unwrap().height
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_channel_is_announced_by_both_and_stays_so() {
    let mut mixed = Mixed::start().await;
    mixed.connect_from_us().await;
    let channel_id = mixed.open_public_from_us(PUSH_MSAT).await;
    let height = mixed.wait_until_announced(&channel_id).await;
    assert!(mixed.wait_until_ldk_knows_our_fee(&channel_id).await.is_public);
    mixed.pay_from_us(20_000_000).await;
    mixed.pay_from_ldk(20_000_000).await;
    mixed.check_sums(&channel_id, CAPACITY_SAT * 1000 - PUSH_MSAT).await;
    // Neither wants anything more of the other on a new connection, whoever has forgotten what.
    mixed.network.nodes[OURS].kill9().unwrap();
    mixed.network.nodes[OURS].start().await.unwrap();
    mixed.connect_again(&channel_id).await;
    assert_eq!(mixed.wait_until_announced(&channel_id).await, height);
    mixed.ldk.restart().await.unwrap();
    mixed.connect_again(&channel_id).await;
    mixed.wait_until_ldk_knows_our_fee(&channel_id).await;
    mixed.pay_from_ldk(20_000_000).await;
    mixed.check_sums(&channel_id, CAPACITY_SAT * 1000 - PUSH_MSAT + 20_000_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_terms_of_a_private_channel_are_told_to_ldk_alone() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_ldk(PUSH_MSAT).await;
    assert!(!mixed.wait_until_ldk_knows_our_fee(&channel_id).await.is_public);
    assert_eq!(mixed.network.channel(OURS, &channel_id).await.unwrap().announcement, None);
    mixed.pay_from_ldk(20_000_000).await;
}
