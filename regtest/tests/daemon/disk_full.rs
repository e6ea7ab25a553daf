//! A disk on which the journal's next segment cannot be had: new work is refused and says why, what was begun comes to
//! its end, channels close, and nothing that was accepted is lost.
//!
//! The disk is not really full: the daemon may not write a file of the size of a new segment (`ulimit -f`). What it has
//! already, segments of half that size from its first start, it goes on writing, as it would on a full disk.

use std::fs;
use std::time::Duration;

use bitcoin::Amount;
use millrace_regtest::network::{random_key, wait_for};
use millrace_regtest::node::Node;
use millrace_regtest::pay_stream::{Outcome, PayStream, make_invoices};
use millrace_rpc::v1::{
    ChannelState, CloseChannelRequest, ConnectRequest, CreateInvoiceRequest, Cursor, ErrorDetail, ErrorReason,
    InvoiceStatus, ListPeersRequest, OpenChannelRequest, PaymentStatus, SendRequest, StreamPayRequest,
    close_channel_progress, send_request, stream_pay_response,
};
use tokio::task::block_in_place;
use tokio::time::timeout;
use tonic::Status;

use super::process::signal;
use super::support::{
    ALICE, BOB, CAPACITY_SAT, LIMIT, Pair, check_refusal, events, invoices, order, pair_with, pay, payments, refused,
};

/// Lets no file grow beyond 1.5 MiB, in blocks of 512 bytes. A write beyond it then fails, instead of ending the process.
const LIMITED: &[&str] = &["/bin/sh", "-c", "trap '' XFSZ; ulimit -S -f 3072; exec \"$@\"", "limited"];

fn set_segment_mib(node: &Node, mib: u32) {
    fs::create_dir_all(node.data_dir()).unwrap();
    fs::write(node.data_dir().join("millrace.toml"), format!("[journal]\nsegment_mib = {mib}\n")).unwrap();
}

/// A channel between two, of whom one begins with segments of 1 MiB.
async fn pair_with_small_segments(name: &str) -> Pair {
    let prepare = |node: &mut Node| {
        if node.name == name {
            set_segment_mib(node, 1);
        }
    };
    pair_with(prepare, |_| {}).await
}

/// Bob starts again, and can have no segment more.
async fn start_bob_without_room(pair: &mut Pair) {
    pair.network.nodes[BOB].stop().await.unwrap();
    set_segment_mib(&pair.network.nodes[BOB], 2);
    pair.network.nodes[BOB].start_by(LIMITED);
    pair.network.nodes[BOB].start().await.unwrap();
    pair.wait_until_usable().await;
    no_room(pair.client(BOB).invoices.create(bare_invoice()).await);
}

/// That it is refused for want of room, with the file that could not be made.
#[track_caller]
fn no_room<T>(answer: Result<T, Status>) -> ErrorDetail {
    let Err(status) = answer else { panic!("it was done on a full disk") };
    assert!(status.message().contains("journal/") && status.message().contains("File too large"), "{status:?}");
    check_refusal(&status, ErrorReason::DiskFull)
}

fn to_bob(pair: &Pair) -> OpenChannelRequest {
    OpenChannelRequest {
        idempotency_key: random_key(),
        node_id: pair.network.nodes[BOB].node_id().to_vec(),
        capacity_sat: 200_000,
        ..OpenChannelRequest::default()
    }
}

fn bare_invoice() -> CreateInvoiceRequest {
    CreateInvoiceRequest { idempotency_key: random_key(), amount_msat: Some(3_000), ..CreateInvoiceRequest::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn new_work_is_refused_and_the_rest_comes_to_its_end() {
    let mut pair = pair_with_small_segments("alice").await;
    pair.network.fund(ALICE, Amount::from_sat(500_000)).await.unwrap();
    let first = pair.invoice(BOB, 10_000).await;
    assert_eq!(pair.pay(ALICE, &first).await.unwrap().status(), PaymentStatus::Succeeded);

    pair.wait_until_at_rest().await;

    // A payment is under way when the daemon starts again, without room.
    let second = pair.invoice(BOB, 20_000).await;
    let bob_pid = pair.network.nodes[BOB].rpc_info().unwrap().pid;
    signal("STOP", bob_pid).await;
    let client = pair.client(ALICE);
    let begun = order(&second);
    let under_way = tokio::spawn(async move { pay(&client, begun).await });
    let offered = wait_for("an HTLC in flight", LIMIT, async || {
        let channel = pair.network.channel(ALICE, &pair.channel_id).await?;
        Ok(if channel.offered_htlcs == 1 { Ok(()) } else { Err("there is none".to_owned()) })
    });
    offered.await.unwrap();
    pair.network.nodes[ALICE].kill9().unwrap();
    assert!(under_way.await.unwrap().is_err());
    set_segment_mib(&pair.network.nodes[ALICE], 2);
    pair.network.nodes[ALICE].start_by(LIMITED);
    pair.network.nodes[ALICE].start().await.unwrap();
    signal("CONT", bob_pid).await;
    pair.wait_until_usable().await;
    pair.wait_until_at_rest().await;
    let made = payments(&pair.client(ALICE)).await;
    let statuses: Vec<_> = made.iter().map(|payment| payment.status()).collect();
    assert_eq!(statuses, [PaymentStatus::Succeeded; 2], "what was accepted has not come to its end: {made:?}");

    // New work.
    let third = pair.invoice(BOB, 30_000).await;
    let to = block_in_place(|| pair.network.bitcoind.new_address()).unwrap().to_string();
    let before = pair.standing().await;
    let mut alice = pair.client(ALICE);
    no_room(pay(&alice, order(&third)).await);
    let request = StreamPayRequest { request_id: 1, bolt11: third.clone(), ..StreamPayRequest::default() };
    let mut answers = alice.payments.stream(tokio_stream::once(request)).await.unwrap().into_inner();
    match answers.message().await.unwrap().unwrap().result.unwrap() {
        stream_pay_response::Result::Refused(refused) => no_room::<()>(Err(refused.into())),
        other => panic!("{other:?}"),
    };
    no_room(alice.channels.open(to_bob(&pair)).await);
    let send = SendRequest {
        idempotency_key: random_key(),
        address: to,
        amount: Some(send_request::Amount::AmountSat(50_000)),
        fee: None,
    };
    no_room(alice.wallet.send(send.clone()).await);
    no_room(alice.invoices.create(bare_invoice()).await);
    // Nor does she take part in an opening by somebody else, who is told why.
    let mut from_bob = to_bob(&pair);
    from_bob.node_id = pair.network.nodes[ALICE].node_id().to_vec();
    let opening = async {
        let mut progress = pair.client(BOB).channels.open(from_bob).await?.into_inner();
        while progress.message().await?.is_some() {}
        Ok::<(), Status>(())
    };
    let told = refused(opening.await, ErrorReason::PeerRefused);
    assert!(told.facts["peer_message"].contains("no new channel now"), "{told:?}");
    assert_eq!(pair.standing().await, before);

    // A kill loses nothing of it; it is refused again, by the same key as well.
    let told = events(&pair.client(ALICE), Cursor::default()).await;
    pair.network.nodes[ALICE].kill9().unwrap();
    pair.network.nodes[ALICE].start().await.unwrap();
    pair.wait_until_usable().await;
    let mut alice = pair.client(ALICE);
    no_room(alice.wallet.send(send.clone()).await);
    assert_eq!(events(&alice, Cursor::default()).await[..told.len()], told);
    assert_eq!(payments(&alice).await.len(), 2);

    // The channel closes.
    let request = CloseChannelRequest {
        idempotency_key: random_key(),
        channel_id: pair.channel_id.clone(),
        ..CloseChannelRequest::default()
    };
    let mut progress = alice.channels.close(request).await.unwrap().into_inner();
    loop {
        let step = timeout(LIMIT, progress.message()).await.unwrap().unwrap().expect("closing ended without a word");
        if let Some(close_channel_progress::Stage::Broadcast(_)) = step.stage {
            break;
        }
    }
    pair.network.wait_for_mempool(1).await.unwrap();
    pair.network.mine(110).await.unwrap();
    let closed = pair.network.wait("the channel closed", async || {
        let state = pair.network.channel(ALICE, &pair.channel_id).await?.state();
        Ok(if state == ChannelState::Closed { Ok(()) } else { Err(format!("it is {state:?}")) })
    });
    closed.await.unwrap();
    let paid = (30_000, CAPACITY_SAT / 2 * 1000 + 30_000);
    let received = invoices(&pair.client(BOB)).await.iter().filter_map(|invoice| invoice.received_msat).sum::<u64>();
    let channel = pair.network.channel(BOB, &pair.channel_id).await.unwrap();
    assert_eq!((received, channel.state()), (paid.0, ChannelState::Closed));
    let open: Vec<_> = invoices(&pair.client(BOB)).await;
    assert_eq!(open.iter().filter(|invoice| invoice.status() == InvoiceStatus::Open).count(), 1, "{open:?}");

    // With room again, the daemon takes what it refused, by the same key.
    pair.network.nodes[ALICE].stop().await.unwrap();
    pair.network.nodes[ALICE].start_by(&[]);
    pair.network.nodes[ALICE].start().await.unwrap();
    let mut alice = pair.client(ALICE);
    assert_eq!(events(&alice, Cursor::default()).await[..told.len()], told);
    alice.wallet.send(send).await.unwrap();
    alice.invoices.create(bare_invoice()).await.unwrap();
    pair.network.wait_for_mempool(1).await.unwrap();
    pair.stop().await;
}

/// The payee's disk is full: the payer is told to try again later, and the HTLC goes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_payee_without_room_turns_payments_away() {
    let mut pair = pair_with_small_segments("bob").await;
    let (first, second) = (pair.invoice(BOB, 10_000).await, pair.invoice(BOB, 20_000).await);
    assert_eq!(pair.pay(ALICE, &first).await.unwrap().status(), PaymentStatus::Succeeded);
    pair.wait_until_at_rest().await;
    start_bob_without_room(&mut pair).await;

    let request = millrace_rpc::v1::PayRequest { timeout_s: 2, ..order(&second) };
    let failed = pay(&pair.client(ALICE), request).await.unwrap();
    assert_eq!(failed.status(), PaymentStatus::Failed, "{failed:?}");
    pair.wait_until_at_rest().await;
    let channel = pair.network.channel(BOB, &pair.channel_id).await.unwrap();
    assert_eq!((channel.local_msat, channel.state()), (CAPACITY_SAT / 2 * 1000 + 10_000, ChannelState::Normal));

    // With room again, the same invoice can be paid.
    pair.network.nodes[BOB].stop().await.unwrap();
    pair.network.nodes[BOB].start_by(&[]);
    pair.network.nodes[BOB].start().await.unwrap();
    pair.wait_until_usable().await;
    assert_eq!(pair.pay(ALICE, &second).await.unwrap().status(), PaymentStatus::Succeeded);
    pair.stop().await;
}

/// A peer goes on paying a payee whose disk is full. What is left of the disk is for the chain: the peer is not listened
/// to any more, and nothing ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_peer_does_not_use_up_what_is_kept_for_the_chain() {
    let mut pair = pair_with_small_segments("bob").await;
    let bolt11s = make_invoices(&pair.client(BOB), &[20_000; 200], "paid too late").await.unwrap();
    pair.wait_until_at_rest().await;
    start_bob_without_room(&mut pair).await;

    // Each payment fails, and is tried again at once.
    let mut stream = PayStream::open(&pair.network.nodes[ALICE]).await.unwrap();
    let flood = async {
        for (id, bolt11) in (0..).zip(&bolt11s) {
            stream.pay(id, bolt11.clone(), String::new()).await.unwrap();
        }
        loop {
            let (id, outcome, _) = stream.next().await.unwrap().expect("it goes on");
            assert!(matches!(outcome, Outcome::Failed(_) | Outcome::Refused(_)), "{outcome:?}");
            if matches!(outcome, Outcome::Refused(_)) {
                break;
            }
            stream.pay(id, bolt11s[usize::try_from(id).unwrap()].clone(), String::new()).await.unwrap();
        }
    };
    let alice_id = pair.network.nodes[ALICE].node_id().to_vec();
    let turned_away = pair.network.wait("alice turned away", async || {
        let peers = pair.client(BOB).peers.list(ListPeersRequest {}).await.unwrap().into_inner().peers;
        let alice = peers.into_iter().find(|peer| peer.node_id == alice_id).unwrap();
        let is_told = alice.last_error.contains("the disk is full") && alice.last_error.contains("File too large");
        Ok(if is_told && !alice.connected { Ok(()) } else { Err(format!("{alice:?}")) })
    });
    // It ends when she has nobody to pay to any more, or waits for what is under way.
    async {
        tokio::pin!(turned_away);
        tokio::select! {
            told = &mut turned_away => told.unwrap(),
            () = flood => turned_away.await.unwrap(),
        }
    }
    .await;

    // She calls again and again, and he does not call her.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let address = pair.network.nodes[ALICE].lightning_address().unwrap();
    let call_her = ConnectRequest { idempotency_key: random_key(), node_id: alice_id.clone(), address };
    no_room(pair.client(BOB).peers.connect(call_her).await);
    // He goes on with the chain.
    pair.network.mine(3).await.unwrap();
    let channel = pair.network.channel(BOB, &pair.channel_id).await.unwrap();
    assert_eq!((channel.state(), channel.local_msat), (ChannelState::Normal, CAPACITY_SAT / 2 * 1000));

    // With room again, all comes to its end, and nothing is lost.
    pair.network.nodes[BOB].stop().await.unwrap();
    pair.network.nodes[BOB].start_by(&[]);
    pair.network.nodes[BOB].start().await.unwrap();
    pair.wait_until_usable().await;
    pair.wait_until_at_rest().await;
    pair.pay(ALICE, &bolt11s[0]).await.unwrap();
    pair.wait_until_at_rest().await;
    let received = invoices(&pair.client(BOB)).await.iter().filter_map(|invoice| invoice.received_msat).sum::<u64>();
    assert!(received >= 20_000);
    let channel = pair.network.channel(BOB, &pair.channel_id).await.unwrap();
    assert_eq!(channel.local_msat, CAPACITY_SAT / 2 * 1000 + received);
    pair.stop().await;
}
