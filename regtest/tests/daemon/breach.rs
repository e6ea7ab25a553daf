//! Bob publishes what he has revoked: Alice takes everything, HTLCs long past included, and says so. His own daemon meets
//! it, says what happened, and goes on.

use bitcoin::consensus::encode::deserialize;
use bitcoin::{Amount, Transaction};
use millrace_regtest::network::random_key;
use millrace_rpc::v1::{
    CancelInvoiceRequest, Channel, ChannelState, CloseKind, CreateInvoiceRequest, GetInvoiceRequest, InvoiceStatus,
    OnChainOutput, OutputKind, OutputStatus, SettleInvoiceRequest, TakeCommitmentRequest, settle_invoice_request,
};
use serde_json::json;
use tokio::task::{JoinHandle, block_in_place};

use super::support::{ALICE, BOB, Pair, order, pair, pay};

/// An anchor, in satoshi.
const ANCHOR_SAT: u64 = 330;
/// The most that all claims together may cost, in satoshi.
const FEES_SAT_MAX: u64 = 20_000;
/// What each of the two HTLCs holds, in satoshi.
const HTLC_SAT: u64 = 70_000;

/// A payment that its payee holds, and the payment's end.
struct Held {
    payee: usize,
    payment_hash: Vec<u8>,
    paying: JoinHandle<()>,
}

async fn hold(pair: &Pair, from: usize, to: usize) -> Held {
    let request = CreateInvoiceRequest {
        idempotency_key: random_key(),
        amount_msat: Some(HTLC_SAT * 1000),
        hold: true,
        ..CreateInvoiceRequest::default()
    };
    let invoice = pair.client(to).invoices.create(request).await.unwrap().into_inner().invoice.unwrap();
    let payer = pair.client(from);
    let bolt11 = invoice.bolt11.clone();
    let paying = tokio::spawn(async move {
        let _ended = pay(&payer, order(&bolt11)).await.unwrap();
    });
    let held = pair.network.wait("a payment that is held", async || {
        let request = GetInvoiceRequest { payment_hash: invoice.payment_hash.clone() };
        let shown = pair.client(to).invoices.get(request).await.unwrap().into_inner().invoice.unwrap();
        Ok(if shown.status() == InvoiceStatus::Held { Ok(()) } else { Err(format!("{:?}", shown.status())) })
    });
    held.await.unwrap();
    Held { payee: to, payment_hash: invoice.payment_hash, paying }
}

impl Held {
    async fn settle(self, pair: &Pair) {
        let which = Some(settle_invoice_request::Which::PaymentHash(self.payment_hash));
        let request = SettleInvoiceRequest { idempotency_key: random_key(), which };
        pair.client(self.payee).invoices.settle(request).await.unwrap();
        self.paying.await.unwrap();
    }

    async fn cancel(self, pair: &Pair) {
        let request = CancelInvoiceRequest { idempotency_key: random_key(), payment_hash: self.payment_hash };
        pair.client(self.payee).invoices.cancel(request).await.unwrap();
        self.paying.await.unwrap();
    }
}

/// Bob's present commitment.
async fn take_commitment(pair: &Pair) -> Vec<u8> {
    let request = TakeCommitmentRequest { channel_id: pair.channel_id.clone() };
    pair.client(BOB).channels.take_commitment(request).await.unwrap().into_inner().transaction
}

fn outputs(channel: &Channel) -> Vec<OnChainOutput> {
    let closing = channel.closing.clone().unwrap_or_default();
    closing.on_chain.unwrap_or_default().outputs
}

fn is_anchor(output: &OnChainOutput) -> bool {
    matches!(output.kind(), OutputKind::LocalAnchor | OutputKind::RemoteAnchor)
}

/// Mines until Alice has taken everything.
async fn mine_until_taken(pair: &mut Pair) -> Channel {
    for _ in 0..30 {
        pair.network.mine(1).await.unwrap();
        let channel = pair.network.channel(ALICE, &pair.channel_id).await.unwrap();
        let outputs = outputs(&channel);
        let is_taken = |output: &OnChainOutput| output.status() == OutputStatus::Claimed || is_anchor(output);
        if outputs.len() >= 6 && outputs.iter().all(is_taken) {
            return channel;
        }
        // Her claims reach the mempool in their own time.
        let _none = pair.network.wait_for_mempool(1).await;
    }
    panic!("{:#?}", pair.network.channel(ALICE, &pair.channel_id).await.unwrap().closing);
}

async fn mine_until_closed(pair: &mut Pair) {
    for _ in 0..30 {
        pair.network.mine(15).await.unwrap();
        let mut is_over = true;
        for node in [ALICE, BOB] {
            let channel = pair.network.channel(node, &pair.channel_id).await.unwrap();
            is_over &= channel.state() == ChannelState::Closed;
        }
        if is_over {
            return;
        }
    }
    panic!("the channel is never closed");
}

/// Alice's daemon ends and starts in one of two ways: with a checkpoint, or with nothing but its journal.
async fn restart_alice(pair: &mut Pair, by_kill: bool) {
    let alice = &mut pair.network.nodes[ALICE];
    if by_kill {
        alice.kill9().unwrap();
    } else {
        alice.stop().await.unwrap();
    }
    alice.start().await.unwrap();
}

async fn a_cheater_loses_everything(by_kill: bool) {
    let mut pair = pair().await;
    let offered = hold(&pair, ALICE, BOB).await;
    let received = hold(&pair, BOB, ALICE).await;
    let old = take_commitment(&pair).await;
    offered.cancel(&pair).await;
    received.settle(&pair).await;
    pair.wait_until_at_rest().await;
    assert_ne!(take_commitment(&pair).await, old, "it is not revoked");
    restart_alice(&mut pair, by_kill).await;
    pair.network.nodes[BOB].stop().await.unwrap();

    let commitment: Transaction = deserialize(&old).unwrap();
    let ours: u64 = commitment.output.iter().map(|output| output.value.to_sat()).filter(|sat| *sat != ANCHOR_SAT).sum();
    assert_eq!(commitment.output.len(), 6, "two main outputs, two HTLCs, two anchors");
    let sent = block_in_place(|| pair.network.bitcoind.call("sendrawtransaction", &json!([hex::encode(&old)])));
    assert_eq!(sent.unwrap().as_str().unwrap(), commitment.compute_txid().to_string());

    let channel = mine_until_taken(&mut pair).await;
    let closing = channel.closing.clone().unwrap();
    assert_eq!(closing.kind(), CloseKind::RevokedCommitment);
    assert!(closing.reason.contains("which it had revoked"), "{}", closing.reason);
    assert!(closing.recovered_sat <= ours && ours <= closing.recovered_sat + FEES_SAT_MAX, "{closing:?} of {ours} sat");
    assert_eq!(closing.claim_fees_sat, ours - closing.recovered_sat);
    assert!(outputs(&channel).iter().filter(|output| output.amount_sat == HTLC_SAT).count() == 2);
    for output in outputs(&channel).iter().filter(|output| !is_anchor(output)) {
        assert!(output.note.starts_with("claimed by us, in block "), "{output:?}");
    }

    // Bob's daemon finds what he has done.
    pair.network.nodes[BOB].start().await.unwrap();
    mine_until_closed(&mut pair).await;
    let bobs = pair.network.channel(BOB, &pair.channel_id).await.unwrap().closing.unwrap();
    assert_eq!((bobs.kind(), bobs.recovered_sat), (CloseKind::RevokedCommitment, 0));
    assert!(bobs.reason.starts_with("our commitment ") && bobs.reason.contains("the peer may take all"), "{bobs:?}");
    let alices = pair.network.balance(ALICE).await.unwrap();
    let before = Amount::from_sat(closing.recovered_sat);
    assert!(alices.confirmed_sat > before.to_sat(), "{alices:?}");
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cheater_loses_everything_to_a_node_that_was_stopped_in_between() {
    a_cheater_loses_everything(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cheater_loses_everything_to_a_node_that_was_killed_in_between() {
    a_cheater_loses_everything(true).await;
}
