//! A real ldk-node and a real `millraced` whose channel goes on chain with HTLCs in it: each is paid or not on both sides
//! alike, and the wallets hold what that comes to.

use crate::mixed::{GIVEN_SAT, Held, Mixed, OURS};

/// What the side that did not fund has at the start.
const PUSH_MSAT: u64 = 4_000_000_000;
/// So large that what is lost to fees could not hide one of them.
const EACH_MSAT: u64 = 100_000_000;
/// Without an output of its own.
const DUST_MSAT: u64 = 100_000;
/// Each way, in the middle of which the channel is closed.
const EACH_WAY: usize = 6;
/// What closing, claiming HTLCs and sweeping may cost a side. LDK claims at 20 sat/vB.
const FEES_SAT_MAX: u64 = 90_000;

/// Three payments that LDK holds: one it will claim, one it never will, and one of dust.
async fn hold_three(mixed: &Mixed) -> [Held; 3] {
    let mut stream = mixed.stream().await;
    [
        mixed.hold(&mut stream, 1, EACH_MSAT).await,
        mixed.hold(&mut stream, 2, EACH_MSAT).await,
        mixed.hold(&mut stream, 3, DUST_MSAT).await,
    ]
}

/// The first is claimed on chain, the second comes back to us, and the dust is a miner's.
async fn resolve_three(mixed: &mut Mixed, held: &[Held; 3], ours_sat: u64) {
    mixed.claim(&held[0]).await;
    mixed.mine_slowly().await;
    mixed.mine_until_resolved().await;
    let mut are_paid = Vec::new();
    for one in held {
        are_paid.push(mixed.is_paid(one).await);
    }
    assert_eq!(are_paid, [true, false, false]);
    mixed.check_wallets(ours_sat - EACH_MSAT / 1000, FEES_SAT_MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ldk_closes_alone_holding_our_htlcs() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_ldk(PUSH_MSAT).await;
    let held = hold_three(&mixed).await;
    mixed.ldk.force_close(&hex::encode(&channel_id)).await.unwrap();
    mixed.wait_for_closing_transaction().await;
    resolve_three(&mut mixed, &held, GIVEN_SAT + PUSH_MSAT / 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_close_alone_while_ldk_holds_our_htlcs() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_us(PUSH_MSAT).await;
    let held = hold_three(&mixed).await;
    mixed.close_from_us(&channel_id, true).await;
    resolve_three(&mut mixed, &held, GIVEN_SAT - PUSH_MSAT / 1000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn held_htlcs_outlive_restarts_and_are_claimed_and_failed() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_ldk(PUSH_MSAT).await;
    let held = hold_three(&mixed).await;
    mixed.network.nodes[OURS].kill9().unwrap();
    mixed.network.nodes[OURS].start().await.unwrap();
    mixed.connect_again(&channel_id).await;
    mixed.ldk.restart().await.unwrap();
    mixed.connect_again(&channel_id).await;
    mixed.claim(&held[0]).await;
    mixed.ldk.fail_held(&held[1].payment_hash).await.unwrap();
    mixed.claim(&held[2]).await;
    let mut are_paid = Vec::new();
    for one in &held {
        are_paid.push(mixed.is_paid(one).await);
    }
    assert_eq!(are_paid, [true, false, true]);
    mixed.check_sums(&channel_id, PUSH_MSAT - EACH_MSAT - DUST_MSAT).await;
    mixed.account_for_everything().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ldk_closes_alone_in_the_middle_of_payments_while_we_are_away() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_ldk(PUSH_MSAT).await;
    let mut stream = mixed.stream().await;
    let orders = mixed.begin(&mut stream, EACH_WAY, EACH_MSAT).await;
    mixed.network.nodes[OURS].kill9().unwrap();
    mixed.ldk.force_close(&hex::encode(&channel_id)).await.unwrap();
    mixed.wait_for_closing_transaction().await;
    mixed.mine(2).await;
    mixed.network.nodes[OURS].start().await.unwrap();
    mixed.mine_slowly().await;
    mixed.mine_until_resolved().await;
    let (net_msat, _) = mixed.settle(&orders).await;
    let ours_msat = (GIVEN_SAT * 1000 + PUSH_MSAT).checked_add_signed(net_msat).unwrap();
    mixed.check_wallets(ours_msat / 1000, FEES_SAT_MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_close_alone_in_the_middle_of_payments() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_us(PUSH_MSAT).await;
    let mut stream = mixed.stream().await;
    let orders = mixed.begin(&mut stream, EACH_WAY, EACH_MSAT).await;
    mixed.close_from_us(&channel_id, true).await;
    mixed.mine_slowly().await;
    mixed.mine_until_resolved().await;
    let (net_msat, _) = mixed.settle(&orders).await;
    let ours_msat = (GIVEN_SAT * 1000 - PUSH_MSAT).checked_add_signed(net_msat);
    mixed.check_wallets(ours_msat.unwrap() / 1000, FEES_SAT_MAX).await;
}
