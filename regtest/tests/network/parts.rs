//! Payments in parts between LDK and us: over two channels with the same peer, and over a node of each kind in the middle.

use std::collections::BTreeSet;

use millrace_regtest::mesh::Mesh;
use millrace_regtest::plan::{ChannelPlan, Kind, Plan};
use millrace_rpc::v1::{DecodeInvoiceRequest, GetInvoiceRequest, GetPaymentRequest, PaymentStatus};

use crate::routes::{check_paid_by, started};
use crate::tried::ours;

/// Of each of two channels with the same peer.
const SMALL_SAT: u64 = 5_000_000;
/// More than one of them.
const MORE_MSAT: u64 = 8_000_000_000;
/// More than LDK lets be in flight towards it on one of them: a tenth of it, as of every announced channel.
const MORE_BACK_MSAT: u64 = 800_000_000;
/// More than a way of the diamond can carry: of the channels, which each side has half of, LDK lets a tenth be in flight
/// towards it, and ours lets one peer hold half of what it has in the next.
const LARGE_MSAT: u64 = 3_000_000_000;
/// The same on the way back, when ours in the middle has more.
const LARGE_BACK_MSAT: u64 = 3_900_000_000;
/// Of the channel with ours in the middle, all that LDK has as the payer; and what is more than that, and more than a tenth of
/// its other channel.
const LDK_HAS_SAT: u64 = 1_200_000;
const LARGE_FOR_LDK_MSAT: u64 = 1_800_000_000;

async fn payment_hash(mesh: &Mesh, reader: usize, bolt11: &str) -> Vec<u8> {
    let request = DecodeInvoiceRequest { bolt11: bolt11.to_owned() };
    ours(mesh, reader).client().unwrap().invoices.decode(request).await.unwrap().into_inner().payment_hash
}

/// Pays one of ours; by how many of its channels that came in.
async fn channels_in(mesh: &Mesh, payer: usize, payee: usize, amount_msat: u64) -> usize {
    let invoice = mesh.invoice(payee, amount_msat).await.unwrap();
    check_paid_by(mesh, payer, payee, amount_msat, &invoice).await;
    let request = GetInvoiceRequest { payment_hash: payment_hash(mesh, payee, &invoice).await };
    let answer = ours(mesh, payee).client().unwrap().invoices.get(request).await.unwrap();
    let parts = answer.into_inner().invoice.unwrap().parts;
    assert_eq!(parts.iter().map(|part| part.amount_msat).sum::<u64>(), amount_msat, "{parts:?}");
    parts.iter().map(|part| &part.channel_id).collect::<BTreeSet<_>>().len()
}

/// One of ours pays; by how many of its channels that went out.
async fn channels_out(mesh: &Mesh, payer: usize, payee: usize, amount_msat: u64) -> usize {
    let invoice = mesh.invoice(payee, amount_msat).await.unwrap();
    check_paid_by(mesh, payer, payee, amount_msat, &invoice).await;
    let request = GetPaymentRequest { payment_hash: payment_hash(mesh, payer, &invoice).await };
    let answer = ours(mesh, payer).client().unwrap().payments.get(request).await.unwrap();
    let attempts = answer.into_inner().payment.unwrap().attempts;
    let paid = attempts.iter().filter(|attempt| attempt.status() == PaymentStatus::Succeeded);
    paid.map(|attempt| attempt.hops[0].short_channel_id).collect::<BTreeSet<_>>().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn over_two_channels_with_the_same_peer() {
    let mut plan = Plan::nodes(2).with_kind(&[0], Kind::Ldk);
    let small = ChannelPlan { capacity_sat: SMALL_SAT, push_sat: 0, ..ChannelPlan::halves(0, 1) };
    plan.channels = vec![small.clone(), small];
    let mesh = started(plan).await;
    assert_eq!(channels_in(&mesh, 0, 1, MORE_MSAT).await, 2);
    assert_eq!(channels_out(&mesh, 1, 0, MORE_BACK_MSAT).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_us_over_one_of_ldk_and_one_of_ours() {
    let plan = Plan::nodes(4).with_channels(&[(1, 0), (0, 2), (1, 3), (2, 3)]).with_kind(&[1], Kind::Ldk);
    let mesh = started(plan).await;
    assert_eq!(channels_in(&mesh, 0, 3, LARGE_MSAT).await, 2);
    assert_eq!(channels_out(&mesh, 3, 0, LARGE_BACK_MSAT).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn from_ldk_over_one_of_ldk_and_one_of_ours() {
    let mut plan = Plan::nodes(4).with_channels(&[(1, 0), (1, 3), (2, 3)]).with_kind(&[0, 1], Kind::Ldk);
    let halves = ChannelPlan::halves(0, 2);
    plan.channels.push(ChannelPlan { push_sat: halves.capacity_sat - LDK_HAS_SAT, ..halves });
    let mesh = started(plan).await;
    assert_eq!(channels_in(&mesh, 0, 3, LARGE_FOR_LDK_MSAT).await, 2);
}
