//! Idempotency keys: the same key with the same request gives the same result, also while the first is under way; with
//! another request it is refused (durability.md, D14).

use millrace_regtest::network::random_key;
use millrace_rpc::v1::{
    ChannelState, CloseChannelRequest, CreateInvoiceRequest, ErrorReason, NewAddressRequest, OpenChannelRequest,
    PayRequest, PaymentStatus, SendRequest, open_channel_progress, send_request,
};
use tokio::task::block_in_place;

use super::support::{ALICE, BOB, order, pair, pay, refused};

#[tokio::test(flavor = "multi_thread")]
async fn the_same_again_and_something_else() {
    let mut pair = pair().await;
    let key = random_key;
    let alice = pair.client(ALICE);

    // Addresses.
    let address = |idempotency_key: &str, address_type| NewAddressRequest {
        idempotency_key: idempotency_key.to_owned(),
        address_type,
    };
    let (mut wallet, k) = (alice.wallet.clone(), key());
    let first = wallet.new_address(address(&k, 1)).await.unwrap().into_inner();
    assert_eq!(wallet.new_address(address(&k, 1)).await.unwrap().into_inner(), first);
    assert_ne!(wallet.new_address(address(&key(), 1)).await.unwrap().into_inner(), first);

    // Coins: three calls at once, one transaction.
    let to = block_in_place(|| pair.network.bitcoind.new_address()).unwrap().to_string();
    let send_key = key();
    let send = |amount_sat| SendRequest {
        idempotency_key: send_key.clone(),
        address: to.clone(),
        amount: Some(send_request::Amount::AmountSat(amount_sat)),
        fee: None,
    };
    let (mut a, mut b, mut c) = (alice.wallet.clone(), alice.wallet.clone(), alice.wallet.clone());
    let sent = tokio::join!(a.send(send(30_000)), b.send(send(30_000)), c.send(send(30_000)));
    let sent = [sent.0, sent.1, sent.2].map(|answer| answer.unwrap().into_inner());
    assert!(sent[0] == sent[1] && sent[1] == sent[2], "{sent:?}");
    pair.network.wait_for_mempool(1).await.unwrap();
    assert_eq!(block_in_place(|| pair.network.bitcoind.mempool()).unwrap().len(), 1);

    // Invoices.
    let invoice_key = key();
    let create = |amount_msat| CreateInvoiceRequest {
        idempotency_key: invoice_key.clone(),
        amount_msat: Some(amount_msat),
        ..CreateInvoiceRequest::default()
    };
    let mut payee = pair.client(BOB).invoices;
    let invoice = payee.create(create(11_000)).await.unwrap().into_inner();
    assert_eq!(payee.create(create(11_000)).await.unwrap().into_inner(), invoice);
    let bolt11 = invoice.invoice.clone().unwrap().bolt11;
    let other = pair.invoice(BOB, 12_000).await;

    // Payments: both at once, one payment.
    let pay_key = key();
    let with_key = |bolt11: &str| PayRequest { idempotency_key: pay_key.clone(), ..order(bolt11) };
    let paid = tokio::join!(pay(&alice, with_key(&bolt11)), pay(&alice, with_key(&bolt11)));
    let paid = [paid.0.unwrap(), paid.1.unwrap()];
    assert_eq!(paid[0].status(), PaymentStatus::Succeeded);
    assert_eq!(paid[0].preimage, paid[1].preimage);

    // Something else by the same keys, of the same call or of another.
    let before = pair.standing().await;
    refused(wallet.new_address(address(&k, 2)).await, ErrorReason::IdempotencyConflict);
    refused(wallet.send(send(30_001)).await, ErrorReason::IdempotencyConflict);
    refused(payee.create(create(11_001)).await, ErrorReason::IdempotencyConflict);
    refused(pay(&alice, with_key(&other)).await, ErrorReason::IdempotencyConflict);
    refused(wallet.new_address(address(&send_key, 1)).await, ErrorReason::IdempotencyConflict);
    refused(wallet.new_address(address("", 1)).await, ErrorReason::IdempotencyKeyInvalid);
    refused(wallet.new_address(address(&"k".repeat(65), 1)).await, ErrorReason::IdempotencyKeyInvalid);
    assert_eq!(pair.standing().await, before);

    // A kill and a start later the keys stand for the same.
    pair.network.nodes[ALICE].kill9().unwrap();
    pair.network.nodes[ALICE].start().await.unwrap();
    pair.wait_until_usable().await;
    let alice = pair.client(ALICE);
    let mut wallet = alice.wallet.clone();
    assert_eq!(wallet.new_address(address(&k, 1)).await.unwrap().into_inner(), first);
    assert_eq!(wallet.send(send(30_000)).await.unwrap().into_inner(), sent[0]);
    assert_eq!(pay(&alice, with_key(&bolt11)).await.unwrap().preimage, paid[0].preimage);
    refused(wallet.send(send(30_001)).await, ErrorReason::IdempotencyConflict);
    refused(pay(&alice, with_key(&other)).await, ErrorReason::IdempotencyConflict);
    let after = pair.standing().await;
    assert_eq!(after.sides[ALICE].payments, before.sides[ALICE].payments);
    assert_eq!(after.sides[BOB].channels[0].local_msat, before.sides[BOB].channels[0].local_msat);
    assert_eq!(after.mempool, 1);
    pair.stop().await;
}

/// One opening, however often it is asked for by its key: while it is under way, when it is done, and after a kill.
#[tokio::test(flavor = "multi_thread")]
async fn an_opening_by_its_key() {
    let mut pair = pair().await;
    let request = OpenChannelRequest {
        idempotency_key: random_key(),
        node_id: pair.network.nodes[BOB].node_id().to_vec(),
        capacity_sat: 300_000,
        ..OpenChannelRequest::default()
    };
    let channel_of = async |pair: &super::support::Pair| {
        let mut progress = pair.client(ALICE).channels.open(request.clone()).await.unwrap().into_inner();
        loop {
            let step = progress.message().await.unwrap().unwrap();
            match step.stage.unwrap() {
                open_channel_progress::Stage::FundingBroadcast(_) => return step.channel_id,
                // Of an opening that has come to its end only the end is told.
                open_channel_progress::Stage::Ready(channel) => return channel.channel_id,
                open_channel_progress::Stage::Negotiated(_) | open_channel_progress::Stage::Confirmations(_) => {}
            }
        }
    };
    let (first, second) = tokio::join!(channel_of(&pair), channel_of(&pair));
    assert_eq!(first, second);
    pair.network.nodes[ALICE].kill9().unwrap();
    pair.network.nodes[ALICE].start().await.unwrap();
    assert_eq!(channel_of(&pair).await, first);
    pair.network.wait_for_mempool(1).await.unwrap();
    pair.network.mine(6).await.unwrap();
    pair.network.wait_until_usable(ALICE, &first).await.unwrap();
    assert_eq!(channel_of(&pair).await, first);
    assert_eq!(pair.network.channels(ALICE).await.unwrap().len(), 2);
    assert_eq!(pair.network.channels(BOB).await.unwrap().len(), 2);
    let mut other = request.clone();
    other.capacity_sat = 300_001;
    refused(pair.client(ALICE).channels.open(other).await, ErrorReason::IdempotencyConflict);

    // Long after it was closed again, it is still an opening that has succeeded.
    let close = CloseChannelRequest {
        idempotency_key: random_key(),
        channel_id: first.clone(),
        ..CloseChannelRequest::default()
    };
    let _progress = pair.client(ALICE).channels.close(close).await.unwrap();
    pair.network.wait_for_mempool(1).await.unwrap();
    assert_eq!(channel_of(&pair).await, first);
    pair.network.mine(110).await.unwrap();
    let closed = pair.network.wait("the channel closed", async || {
        let state = pair.network.channel(ALICE, &first).await?.state();
        Ok(if state == ChannelState::Closed { Ok(()) } else { Err(format!("it is {state:?}")) })
    });
    closed.await.unwrap();
    assert_eq!(channel_of(&pair).await, first);
    pair.network.nodes[ALICE].stop().await.unwrap();
    pair.network.nodes[ALICE].start().await.unwrap();
    assert_eq!(channel_of(&pair).await, first);
    pair.stop().await;
}
