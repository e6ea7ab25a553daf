//! A real ldk-node and a real `millraced`: opened, paid over, cut, restarted and closed from either side, with the sums
//! of both compared.

use crate::mixed::{CAPACITY_SAT, GIVEN_SAT, Mixed, OURS};

/// What the side that did not fund has at the start.
const PUSH_MSAT: u64 = 4_000_000_000;
/// LDK takes this many HTLCs at once, no more.
const AT_ONCE: usize = 50;
/// Of each payment among many: an output of its own, or none.
const EACH_MSAT: u64 = 2_000_000;
const EACH_DUST_MSAT: u64 = 200_000;
/// From the smallest that is worth an invoice, over both sides of the dust limit, to nearly a tenth of the channel.
const AMOUNTS_MSAT: [u64; 7] = [1_000, 353_999, 354_000, 1_000_001, 20_000_000, 123_456_789, 999_999_999];
/// Nearly a third of the channel.
const LARGE_MSAT: u64 = 3_000_000_000;
/// All that LDK lets be in flight towards it on a channel that it did not open: a tenth of the channel.
const LARGE_TO_FUNDEE_MSAT: u64 = 1_000_000_000;
/// What a close by agreement may cost a side.
const CLOSING_FEE_SAT_MAX: u64 = 5_000;
/// What a unilateral close with its sweeps may cost a side, the anchors included.
const SWEEPING_FEE_SAT_MAX: u64 = 20_000;

/// Every amount both ways, then many at once both ways, at last the largest both ways. Returns what we have in the
/// channel afterwards.
async fn pay_both_ways(mixed: &Mixed, channel_id: &[u8], ours_msat: u64, largest_from_us_msat: u64) -> u64 {
    for amount in AMOUNTS_MSAT {
        mixed.pay_from_us(amount).await;
        mixed.check_sums(channel_id, ours_msat - amount).await;
        mixed.pay_from_ldk(amount).await;
        mixed.check_sums(channel_id, ours_msat).await;
    }
    for each in [EACH_MSAT, EACH_DUST_MSAT] {
        let mut stream = mixed.stream().await;
        let orders = mixed.begin(&mut stream, AT_ONCE, each).await;
        assert_eq!(mixed.settle(&orders).await, (0, 0), "of {AT_ONCE} each way none fails");
        mixed.check_sums(channel_id, ours_msat).await;
    }
    mixed.pay_from_us(largest_from_us_msat).await;
    mixed.check_sums(channel_id, ours_msat - largest_from_us_msat).await;
    mixed.pay_from_ldk(LARGE_MSAT).await;
    // One more that leaves the channel lopsided, so that a swapped balance would be seen.
    mixed.pay_from_us(77_000_123).await;
    let ours_msat = ours_msat - largest_from_us_msat + LARGE_MSAT - 77_000_123;
    mixed.check_sums(channel_id, ours_msat).await;
    ours_msat
}

#[tokio::test(flavor = "multi_thread")]
async fn ldk_opens_to_us_pays_both_ways_and_closes() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_ldk(PUSH_MSAT).await;
    mixed.check_sums(&channel_id, PUSH_MSAT).await;
    let ours_msat = pay_both_ways(&mixed, &channel_id, PUSH_MSAT, LARGE_MSAT).await;
    mixed.ldk.close_channel(&hex::encode(&channel_id)).await.unwrap();
    mixed.wait_for_closing_transaction().await;
    mixed.mine_until_resolved().await;
    mixed.check_wallets(GIVEN_SAT + ours_msat / 1000, CLOSING_FEE_SAT_MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_open_to_ldk_pay_both_ways_and_close() {
    let mut mixed = Mixed::start().await;
    mixed.connect_from_us().await;
    let channel_id = mixed.open_from_us(PUSH_MSAT).await;
    let ours_msat = CAPACITY_SAT * 1000 - PUSH_MSAT;
    mixed.check_sums(&channel_id, ours_msat).await;
    let ours_msat = pay_both_ways(&mixed, &channel_id, ours_msat, LARGE_TO_FUNDEE_MSAT).await;
    mixed.close_from_us(&channel_id, false).await;
    mixed.mine_until_resolved().await;
    // The fee of the funding is ours as well.
    mixed.check_wallets(GIVEN_SAT - CAPACITY_SAT + ours_msat / 1000, CLOSING_FEE_SAT_MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn cuts_and_restarts_in_the_middle_of_payments() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_ldk(PUSH_MSAT).await;
    let mut ours_msat = PUSH_MSAT;

    for round in 0..3 {
        let mut stream = mixed.stream().await;
        let orders = mixed.begin(&mut stream, 20, EACH_MSAT + round).await;
        // From either side, and called again by either.
        if round == 0 {
            mixed.disconnect_from_us().await;
            mixed.connect_from_us().await;
            mixed.wait_until_usable(&channel_id).await;
        } else {
            mixed.ldk.disconnect(&mixed.our_id()).await.unwrap();
            mixed.connect_again(&channel_id).await;
        }
        let (net_msat, _) = mixed.settle(&orders).await;
        ours_msat = ours_msat.checked_add_signed(net_msat).unwrap();
        mixed.check_sums(&channel_id, ours_msat).await;
    }

    let mut stream = mixed.stream().await;
    let orders = mixed.begin(&mut stream, 20, EACH_MSAT).await;
    mixed.network.nodes[OURS].kill9().unwrap();
    mixed.network.nodes[OURS].start().await.unwrap();
    mixed.connect_again(&channel_id).await;
    let (net_msat, _) = mixed.settle(&orders).await;
    ours_msat = ours_msat.checked_add_signed(net_msat).unwrap();
    mixed.check_sums(&channel_id, ours_msat).await;

    let mut stream = mixed.stream().await;
    let orders = mixed.begin(&mut stream, 20, EACH_MSAT).await;
    mixed.ldk.restart().await.unwrap();
    mixed.connect_again(&channel_id).await;
    let (net_msat, _) = mixed.settle(&orders).await;
    ours_msat = ours_msat.checked_add_signed(net_msat).unwrap();
    mixed.check_sums(&channel_id, ours_msat).await;

    // And it works as before.
    mixed.pay_from_us(EACH_MSAT).await;
    mixed.pay_from_ldk(EACH_MSAT).await;
    mixed.check_sums(&channel_id, ours_msat).await;
    mixed.account_for_everything().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ldk_closes_alone() {
    let mut mixed = Mixed::start().await;
    let channel_id = mixed.open_from_ldk(PUSH_MSAT).await;
    mixed.pay_from_us(50_000_000).await;
    mixed.check_sums(&channel_id, PUSH_MSAT - 50_000_000).await;
    mixed.ldk.force_close(&hex::encode(&channel_id)).await.unwrap();
    mixed.wait_for_closing_transaction().await;
    mixed.mine_until_resolved().await;
    mixed.check_wallets(GIVEN_SAT + PUSH_MSAT / 1000 - 50_000, SWEEPING_FEE_SAT_MAX).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn we_close_alone() {
    let mut mixed = Mixed::start().await;
    mixed.connect_from_us().await;
    let channel_id = mixed.open_from_us(PUSH_MSAT).await;
    mixed.pay_from_ldk(50_000_000).await;
    mixed.check_sums(&channel_id, CAPACITY_SAT * 1000 - PUSH_MSAT + 50_000_000).await;
    mixed.close_from_us(&channel_id, true).await;
    mixed.mine_until_resolved().await;
    mixed.check_wallets(GIVEN_SAT - PUSH_MSAT / 1000 + 50_000, SWEEPING_FEE_SAT_MAX).await;
}
