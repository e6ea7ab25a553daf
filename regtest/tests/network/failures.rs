//! Failures from every place of routes that mix LDK and us: whoever raises one, and whoever passes it back, the payer reads
//! which hop it is by and what it says (BOLT 4, "Returning Errors").

use millrace_regtest::mesh::Mesh;
use millrace_regtest::pay_stream::Outcome;
use millrace_regtest::plan::{ChannelPlan, Kind, Plan};
use millrace_rpc::v1::PaymentFailureReason;

use crate::routes::{check_paid, started};
use crate::tried::{
    Expected, begin_from_us, cancel, check_decoded, check_failed, fails_at_ldk, held_invoice, ldk, ours,
    outcome_at_ldk, pay_from_us, wait_until_held,
};

const AMOUNT_MSAT: u64 = 100_000_000;
/// More than the one in the middle has, and less than the payer has, and than is announced of the channel between.
const TOO_MUCH_MSAT: u64 = 450_000_000;

const UNKNOWN: u16 = 0x400f;
const NO_LIQUIDITY: u16 = 0x1007;

/// Three in a line. The one in the middle opens the second channel and keeps little of it; the payer has half of the first.
fn line(ldk: &[usize]) -> Plan {
    let mut plan = Plan::nodes(3).with_kind(ldk, Kind::Ldk);
    // LDK lets but a tenth of a channel be in flight towards it if it did not open it.
    let is_ldk_first = ldk.contains(&0);
    let (from, to) = if is_ldk_first { (0, 1) } else { (1, 0) };
    plan.channels.push(ChannelPlan { from, to, ..ChannelPlan::halves(0, 1) });
    plan.channels.push(ChannelPlan { push_sat: 9_600_000, ..ChannelPlan::halves(1, 2) });
    plan
}

fn expected(hop: u32, node: usize, code: u16, name: &'static str) -> Expected {
    Expected { hop, node, code: code.into(), name }
}

/// A payment that one of LDK's holds, and then refuses.
fn random_hash() -> String {
    let mut bytes = [0; 32];
    getrandom(&mut bytes);
    hex::encode(bytes)
}

fn getrandom(bytes: &mut [u8; 32]) {
    for half in bytes.chunks_mut(16) {
        half.copy_from_slice(&hex::decode(millrace_regtest::network::random_key()).unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn we_read_what_ldk_says_and_passes_back() {
    let mut mesh = started(line(&[1])).await;
    let (payer, payee) = (ours(&mesh, 0), ours(&mesh, 2));

    // The payee, over LDK: it never knew the invoice, or takes it back while it holds the payment.
    let (invoice, hash) = held_invoice(payee, AMOUNT_MSAT).await;
    cancel(payee, &hash).await;
    let by_payee = expected(2, 2, UNKNOWN, "incorrect_or_unknown_payment_details");
    check_failed(&mesh, 0, &pay_from_us(payer, &invoice).await, &by_payee).await;
    let (invoice, hash) = held_invoice(payee, AMOUNT_MSAT).await;
    let paying = begin_from_us(payer, &invoice);
    wait_until_held(payee, &hash).await;
    cancel(payee, &hash).await;
    let failed = paying.await.unwrap();
    check_failed(&mesh, 0, &failed, &by_payee).await;
    assert_eq!(failed.failure.unwrap().reason(), PaymentFailureReason::PayeeRefused);

    // LDK as the payee.
    let (middle, hash) = (ldk(&mesh, 1), random_hash());
    let invoice = middle.receive_held(&hash, AMOUNT_MSAT).await.unwrap();
    let paying = begin_from_us(payer, &invoice);
    middle.wait_until_held(&hash).await.unwrap();
    middle.fail_held(&hash).await.unwrap();
    let by_ldk = expected(1, 1, UNKNOWN, "incorrect_or_unknown_payment_details");
    check_failed(&mesh, 0, &paying.await.unwrap(), &by_ldk).await;

    // LDK in the middle, which has not that much in the next channel.
    let invoice = mesh.invoice(2, TOO_MUCH_MSAT).await.unwrap();
    let no_liquidity = expected(1, 1, NO_LIQUIDITY, "temporary_channel_failure");
    check_failed(&mesh, 0, &pay_from_us(payer, &invoice).await, &no_liquidity).await;

    // And whose peer is away.
    let invoice = mesh.invoice(2, AMOUNT_MSAT).await.unwrap();
    mesh.ours(2).unwrap().kill9().unwrap();
    wait_until_away(&mesh, 1, 1).await;
    check_failed(&mesh, 0, &pay_from_us(ours(&mesh, 0), &invoice).await, &no_liquidity).await;

    // All is as it was.
    mesh.ours(2).unwrap().start().await.unwrap();
    mesh.connect(2, 1).await.unwrap();
    mesh.wait_until_usable().await.unwrap();
    // Less than what has just failed: that much is thought too much for a while.
    check_paid(&mesh, 0, 2, AMOUNT_MSAT / 2).await;

    // Our own first hop is away: it is said before anything is begun.
    let invoice = mesh.invoice(2, AMOUNT_MSAT).await.unwrap();
    mesh.ldk(1).unwrap().kill9().unwrap();
    wait_until_away(&mesh, 0, 0).await;
    let Outcome::Refused(why) = mesh.pay(0, &invoice).await.unwrap() else { panic!("it was begun") };
    assert!(why.contains("no way"), "{why}");
}

/// Waits until a node knows that its peer in a channel is away.
async fn wait_until_away(mesh: &Mesh, node: usize, channel: usize) {
    let away = mesh.network.wait("the peer away", async || {
        let sides = mesh.sides(node).await?;
        let side = sides.iter().find(|side| side.channel_id == mesh.channel_id(channel));
        Ok(if side.is_some_and(|side| !side.is_usable) { Ok(()) } else { Err(format!("{side:?}")) })
    });
    away.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn ldk_reads_what_we_say_and_pass_back() {
    let mut mesh = started(line(&[0, 2])).await;
    let (payer, middle, payee) = (ldk(&mesh, 0), ours(&mesh, 1), ldk(&mesh, 2));

    // The payee, over us.
    let hash = random_hash();
    let invoice = payee.receive_held(&hash, AMOUNT_MSAT).await.unwrap();
    let payment_id = payer.pay(&invoice, None).await.unwrap();
    payee.wait_until_held(&hash).await.unwrap();
    payee.fail_held(&hash).await.unwrap();
    assert_eq!(outcome_at_ldk(payer, &payment_id).await, Err("RecipientRejected".to_owned()));
    check_decoded(&mesh, 0, 0, 2, UNKNOWN).await;

    // We as the payee: the invoice taken back before, and while the payment is held.
    let (invoice, hash) = held_invoice(middle, AMOUNT_MSAT).await;
    cancel(middle, &hash).await;
    let (before, reason) = fails_at_ldk(payer, &invoice).await;
    check_decoded(&mesh, 0, before, 1, UNKNOWN).await;
    assert_eq!(reason, "RecipientRejected");
    let (invoice, hash) = held_invoice(middle, AMOUNT_MSAT).await;
    let before = payer.decoded_failures().len();
    let payment_id = payer.pay(&invoice, None).await.unwrap();
    wait_until_held(middle, &hash).await;
    cancel(middle, &hash).await;
    assert_eq!(outcome_at_ldk(payer, &payment_id).await, Err("RecipientRejected".to_owned()));
    check_decoded(&mesh, 0, before, 1, UNKNOWN).await;

    // We in the middle, without that much in the next channel.
    let invoice = mesh.invoice(2, TOO_MUCH_MSAT).await.unwrap();
    let (before, _) = fails_at_ldk(payer, &invoice).await;
    check_decoded(&mesh, 0, before, 1, NO_LIQUIDITY).await;

    // And with the next one away.
    let invoice = mesh.invoice(2, AMOUNT_MSAT).await.unwrap();
    mesh.ldk(2).unwrap().kill9().unwrap();
    wait_until_away(&mesh, 1, 1).await;
    let (before, _) = fails_at_ldk(ldk(&mesh, 0), &invoice).await;
    check_decoded(&mesh, 0, before, 1, NO_LIQUIDITY).await;

    // LDK's own first hop is away: it sends nothing, and so nothing comes back.
    let invoice = mesh.invoice(1, AMOUNT_MSAT).await.unwrap();
    mesh.ours(1).unwrap().kill9().unwrap();
    wait_until_away(&mesh, 0, 0).await;
    let (before, _) = fails_at_ldk(ldk(&mesh, 0), &invoice).await;
    assert_eq!(ldk(&mesh, 0).decoded_failures().len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn over_two_in_the_middle_each_place_is_told_apart() {
    let mesh = started(Plan::line(4).with_kind(&[0, 2], Kind::Ldk)).await;
    let (first, last) = (ldk(&mesh, 0), ours(&mesh, 3));
    // From the far end, to LDK over LDK and us.
    let (invoice, hash) = held_invoice(last, AMOUNT_MSAT).await;
    cancel(last, &hash).await;
    let (before, reason) = fails_at_ldk(first, &invoice).await;
    check_decoded(&mesh, 0, before, 3, UNKNOWN).await;
    assert_eq!(reason, "RecipientRejected");
    // And to us over both of them.
    let hash = random_hash();
    let invoice = first.receive_held(&hash, AMOUNT_MSAT).await.unwrap();
    let paying = begin_from_us(last, &invoice);
    first.wait_until_held(&hash).await.unwrap();
    first.fail_held(&hash).await.unwrap();
    let by_first = expected(3, 0, UNKNOWN, "incorrect_or_unknown_payment_details");
    check_failed(&mesh, 3, &paying.await.unwrap(), &by_first).await;
}
