//! Payments through the whole daemon: two nodes in one process, paying each other over TCP, asked by gRPC over TLS.

#![allow(clippy::unwrap_used)]

mod announce;
mod commitment;
mod fuzz;
mod receiving;
#[path = "../support/mod.rs"]
mod support;
mod towers;
mod ways;
mod world;

use std::collections::{HashMap, HashSet};

use millrace_rpc::v1::node_client::NodeClient;
use millrace_rpc::v1::peers_client::PeersClient;
use millrace_rpc::v1::{self, ErrorDetail, ErrorReason, event, stream_pay_response};
use millraced::readiness::Readiness;
use support::{FakeChain, copy_as_after_a_crash, eventually};
use tokio_stream::StreamExt;
use tonic::{Code, Status};
use world::{Bearer, World, open_between, pay_request, rand_bytes, start, start_unready};

fn reason(status: &Status) -> ErrorReason {
    let detail = ErrorDetail::from_status(status).expect("every error has its detail");
    assert!(!detail.hint.is_empty(), "{status:?}");
    detail.reason()
}

async fn pair(chain: &FakeChain, homes: [&std::path::Path; 2]) -> (World, World) {
    let (alice, bob) = (start(homes[0], chain).await, start(homes[1], chain).await);
    alice.connect(&bob).await;
    (alice, bob)
}

#[tokio::test(flavor = "multi_thread")]
async fn pay_both_ways_and_say_the_same_after_a_restart() {
    let (chain, a_home, b_home) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = pair(&chain, [a_home.path(), b_home.path()]).await;
    let channel_id = open_between(&alice, &bob, &chain, 1_000_000, 400_000_000).await;

    let to_bob = bob.invoice(50_000_000).await;
    let paid = alice.pay(v1::PayRequest { idempotency_key: "k1".to_owned(), ..pay_request(&to_bob) }).await.unwrap();
    assert_eq!(paid.status(), v1::PaymentStatus::Succeeded);
    assert_eq!((paid.amount_msat, paid.fee_msat, paid.attempts.len()), (50_000_000, 0, 1));
    assert_eq!(paid.payee_node_id, bob.node_id.serialize());
    let to_alice = alice.invoice(20_000_000).await;
    let back = bob.pay(pay_request(&to_alice)).await.unwrap();
    assert_eq!(back.status(), v1::PaymentStatus::Succeeded);

    // The same key, and the same invoice without a key: the same outcome. Other terms: refused.
    let again = alice.pay(v1::PayRequest { idempotency_key: "k1".to_owned(), ..pay_request(&to_bob) }).await.unwrap();
    assert_eq!(again, paid);
    assert_eq!(alice.pay(pay_request(&to_bob)).await.unwrap(), paid);
    let other = v1::PayRequest { idempotency_key: "k1".to_owned(), timeout_s: 5, ..pay_request(&to_bob) };
    let conflict = alice.pay(other).await.unwrap_err();
    assert_eq!((conflict.code(), reason(&conflict)), (Code::AlreadyExists, ErrorReason::IdempotencyConflict));

    // An invoice that leaves the amount open.
    let open_amount = v1::CreateInvoiceRequest {
        idempotency_key: "open".to_owned(),
        purpose: Some(v1::create_invoice_request::Purpose::Description("tea".to_owned())),
        ..v1::CreateInvoiceRequest::default()
    };
    let created = bob.invoices().await.create(open_amount.clone()).await.unwrap().into_inner().invoice.unwrap();
    let same = bob.invoices().await.create(open_amount.clone()).await.unwrap().into_inner().invoice.unwrap();
    assert_eq!(created, same, "the same key gives the same invoice");
    let another = v1::CreateInvoiceRequest { expiry_s: 5, ..open_amount };
    assert_eq!(bob.invoices().await.create(another).await.unwrap_err().code(), Code::AlreadyExists);
    let missing = alice.pay(pay_request(&created.bolt11)).await.unwrap_err();
    assert_eq!(reason(&missing), ErrorReason::AmountMissing);
    let chosen = v1::PayRequest { amount_msat: Some(7_000_000), ..pay_request(&created.bolt11) };
    assert_eq!(alice.pay(chosen).await.unwrap().amount_msat, 7_000_000);
    let get = v1::GetInvoiceRequest { payment_hash: created.payment_hash.clone() };
    let invoice = bob.invoices().await.get(get.clone()).await.unwrap().into_inner().invoice.unwrap();
    assert_eq!((invoice.status(), invoice.received_msat), (v1::InvoiceStatus::Paid, Some(7_000_000)));
    assert_eq!(invoice.preimage.len(), 32);
    assert_eq!(invoice.description, "tea");

    // Balances: 600,000 and 400,000 sat, then -50, +20, -7 million msat.
    for (node, local) in [(&alice, 563_000_000), (&bob, 437_000_000)] {
        node.wait_until(channel_id, "balances", |snapshot| snapshot.balances.local.0 == local).await;
    }
    eventually_shown(&alice, 57_000_000, 20_000_000).await;

    let (events, bob_events) = (alice.events().await, bob.events().await);
    let lists = lists_of(&alice).await;
    let bob_lists = lists_of(&bob).await;
    assert_eq!(names(&events)[..3], ["connected", "opening", "ready"]);
    assert_eq!(names(&events).iter().filter(|name| **name == "succeeded").count(), 2);
    assert_eq!(names(&bob_events).iter().filter(|name| **name == "paid").count(), 2);
    let mut cursors: Vec<_> = events.iter().map(|event| event.cursor.unwrap()).map(|c| (c.frame, c.index)).collect();
    let sorted = cursors.clone();
    cursors.sort_unstable();
    cursors.dedup();
    assert_eq!(cursors, sorted, "positions rise");

    // Stopped in good order: all of it is in the history. Without the view: it is made again.
    alice.stop().await;
    bob.stop().await;
    let view = b_home.path().join("view");
    assert!(view.exists());
    std::fs::remove_dir_all(view).unwrap();
    let (alice, bob) = (start(a_home.path(), &chain).await, start(b_home.path(), &chain).await);
    check_goes_on(&events, &alice.events().await);
    assert_eq!(lists_of(&alice).await, lists);
    check_goes_on(&bob_events, &bob.events().await);
    assert_eq!(lists_of(&bob).await, bob_lists);
    // Keys, too, are remembered.
    let again = alice.pay(v1::PayRequest { idempotency_key: "k1".to_owned(), ..pay_request(&to_bob) }).await.unwrap();
    assert_eq!(again, paid);
    alice.stop().await;
    bob.stop().await;
}

/// The same events, and after them nothing but connections that ended and came about.
fn check_goes_on(before: &[v1::Event], after: &[v1::Event]) {
    assert_eq!(after[..before.len()], *before);
    let new = names(&after[before.len()..]);
    assert!(new.iter().all(|name| ["connected", "disconnected"].contains(name)), "{new:?}");
}

/// Waits until the only channel's sums, as the API shows them, are these.
async fn eventually_shown(world: &World, sent: u64, received: u64) {
    for _ in 0..1200 {
        let request = v1::ListChannelsRequest::default();
        let channel = world.channels().await.list(request).await.unwrap().into_inner().channels.remove(0);
        let sums = (channel.total_sent_msat, channel.total_received_msat);
        // A payment is told at its preimage; its HTLC goes a little later.
        if (sums, channel.offered_msat + channel.received_msat) == ((sent, received), 0) {
            assert!(channel.available_to_send_msat > 0 && channel.available_to_receive_msat > 0);
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
    panic!("the channel is not at rest with the sums {sent} and {received}");
}

async fn lists_of(world: &World) -> (Vec<v1::Payment>, Vec<v1::Invoice>) {
    let payments = world.payments_client().await.list(v1::ListPaymentsRequest::default()).await.unwrap();
    let invoices = world.invoices().await.list(v1::ListInvoicesRequest::default()).await.unwrap();
    (payments.into_inner().payments, invoices.into_inner().invoices)
}

fn names(events: &[v1::Event]) -> Vec<&'static str> {
    let name = |event: &v1::Event| match event.event.as_ref().unwrap() {
        event::Event::ChannelOpening(_) => "opening",
        event::Event::ChannelReady(_) => "ready",
        event::Event::ChannelClosing(_) => "closing",
        event::Event::ChannelClosed(_) => "closed",
        event::Event::PaymentStarted(_) => "started",
        event::Event::PaymentSucceeded(_) => "succeeded",
        event::Event::PaymentFailed(_) => "failed",
        event::Event::InvoiceCreated(_) => "created",
        event::Event::InvoicePaid(_) => "paid",
        event::Event::InvoiceHeld(_) => "held",
        event::Event::InvoiceCancelled(_) => "cancelled",
        event::Event::WalletTransaction(_) => "wallet",
        event::Event::PeerConnected(_) => "connected",
        event::Event::PeerDisconnected(_) => "disconnected",
        event::Event::ForwardEnded(_) => "forwarded",
    };
    events.iter().map(name).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_refusal_is_clear_and_changes_nothing() {
    let (chain, a_home, b_home) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = pair(&chain, [a_home.path(), b_home.path()]).await;
    let invoice = bob.invoice(50_000_000).await;

    let no_channel = alice.pay(pay_request(&invoice)).await.unwrap_err();
    assert_eq!(reason(&no_channel), ErrorReason::NoRoute, "{no_channel}");
    let channel_id = open_between(&alice, &bob, &chain, 1_000_000, 0).await;
    let before = alice.node.registry().fresh_snapshot(channel_id).await.unwrap();

    let refusals: [(String, Option<u64>, Code, ErrorReason); 7] = [
        ("lnbcrt1nonsense".to_owned(), None, Code::InvalidArgument, ErrorReason::InvoiceInvalid),
        (MAINNET.to_owned(), None, Code::InvalidArgument, ErrorReason::WrongNetwork),
        (invoice.clone(), Some(50_000_001), Code::InvalidArgument, ErrorReason::AmountConflict),
        (alice.invoice(1_000).await, None, Code::FailedPrecondition, ErrorReason::SelfPayment),
        (bob.invoice(999_999_999).await, None, Code::FailedPrecondition, ErrorReason::InsufficientBalance),
        (bob.invoice(2_000_000_000).await, None, Code::FailedPrecondition, ErrorReason::AmountAboveMaximum),
        (expired(&bob).await, None, Code::FailedPrecondition, ErrorReason::InvoiceExpired),
    ];
    for (bolt11, amount_msat, code, expected) in refusals {
        let status = alice.pay(v1::PayRequest { amount_msat, ..pay_request(&bolt11) }).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (code, expected), "{status}");
    }
    let too_long = v1::PayRequest { idempotency_key: "k".repeat(65), ..pay_request(&invoice) };
    let status = alice.pay(too_long).await.unwrap_err();
    assert_eq!(reason(&status), ErrorReason::IdempotencyKeyInvalid);
    let empty = bob.invoices().await.create(v1::CreateInvoiceRequest::default()).await.unwrap_err();
    assert_eq!(reason(&empty), ErrorReason::IdempotencyKeyInvalid);

    let after = alice.node.registry().fresh_snapshot(channel_id).await.unwrap();
    assert_eq!((after.balances, after.commitment_numbers), (before.balances, before.commitment_numbers));
    assert!(lists_of(&alice).await.0.is_empty(), "no payment was left behind");

    // The payee away: said so.
    alice.node.peers().disconnect(bob.node_id, true).unwrap();
    alice.wait_until(channel_id, "offline", |snapshot| !snapshot.is_online).await;
    let away = alice.pay(pay_request(&invoice)).await.unwrap_err();
    assert_eq!(reason(&away), ErrorReason::PeerNotConnected);
    // A preimage is used once, even when its invoice is long gone from memory.
    let with = |key: &str| v1::CreateInvoiceRequest {
        idempotency_key: key.to_owned(),
        preimage: vec![9; 32],
        amount_msat: Some(1),
        ..v1::CreateInvoiceRequest::default()
    };
    bob.invoices().await.create(with("a")).await.unwrap();
    let reused = bob.invoices().await.create(with("b")).await.unwrap_err();
    assert_eq!((reused.code(), reason(&reused)), (Code::AlreadyExists, ErrorReason::PreimageReused));
    alice.stop().await;
    bob.stop().await;
}

const MAINNET: &str = "lnbc1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6twvus8g6rfwvs8qun0dfjkxaq9qrsgq357wnc5r2ueh7ck6q93dj32dlqnls087fxdwk8qakdyafkq3yap9us6v52vjjsrvywa6rt52cm9r9zqt8r2t7mlcwspyetp5h2tztugp9lfyql";

async fn expired(world: &World) -> String {
    let request = v1::CreateInvoiceRequest {
        idempotency_key: hex::encode(rand_bytes()),
        amount_msat: Some(5_000),
        expiry_s: 1,
        ..v1::CreateInvoiceRequest::default()
    };
    let invoice = world.invoices().await.create(request).await.unwrap().into_inner().invoice.unwrap();
    tokio::time::sleep(std::time::Duration::from_millis(2_100)).await;
    invoice.bolt11
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_payments_more_than_a_channel_takes_at_once() {
    const COUNT: u64 = 700;
    let (chain, a_home, b_home) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = pair(&chain, [a_home.path(), b_home.path()]).await;
    let channel_id = open_between(&alice, &bob, &chain, 10_000_000, 0).await;
    let mut invoices = Vec::new();
    for _ in 0..COUNT {
        invoices.push(bob.invoice(10_000_000).await);
    }
    let started = std::time::Instant::now();
    let mut requests: Vec<v1::StreamPayRequest> = (0..COUNT)
        .zip(&invoices)
        .map(|(request_id, bolt11)| v1::StreamPayRequest {
            request_id,
            bolt11: bolt11.clone(),
            idempotency_key: format!("s{request_id}"),
            ..v1::StreamPayRequest::default()
        })
        .collect();
    requests.push(v1::StreamPayRequest {
        request_id: COUNT,
        bolt11: "no".to_owned(),
        ..v1::StreamPayRequest::default()
    });
    let mut client = alice.payments_client().await;
    let mut answers = client.stream(tokio_stream::iter(requests)).await.unwrap().into_inner();
    let (mut paid, mut refused) = (HashSet::new(), 0);
    while let Some(answer) = answers.next().await {
        let answer = answer.unwrap();
        match answer.result.unwrap() {
            stream_pay_response::Result::Paid(_) => assert!(paid.insert(answer.request_id)),
            stream_pay_response::Result::Failed(failure) => panic!("{failure:?}"),
            stream_pay_response::Result::Refused(status) => {
                assert_eq!(answer.request_id, COUNT);
                assert_eq!(status.detail.unwrap().reason(), ErrorReason::InvoiceInvalid);
                refused += 1;
            }
        }
    }
    println!("{COUNT} payments in {:?}", started.elapsed());
    assert_eq!((paid.len() as u64, refused), (COUNT, 1));
    for (node, local) in [(&alice, 3_000_000_000), (&bob, 7_000_000_000)] {
        node.wait_until(channel_id, "everything is settled", |snapshot| {
            snapshot.balances.local.0 == local && snapshot.htlcs.is_empty()
        })
        .await;
    }
    let events = alice.events().await;
    let count = |name: &str| names(&events).iter().filter(|found| **found == name).count() as u64;
    assert_eq!((count("started"), count("succeeded")), (COUNT, COUNT));
    assert_eq!(names(&bob.events().await).iter().filter(|name| **name == "paid").count() as u64, COUNT);
    alice.stop().await;
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_what_was_promised_is_there() {
    let (chain, a_home, b_home) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (alice, bob) = pair(&chain, [a_home.path(), b_home.path()]).await;
    open_between(&alice, &bob, &chain, 10_000_000, 0).await;
    let copies = tempfile::tempdir().unwrap();
    let mut promised = Vec::new();
    let (mut accepted, mut succeeded, mut handed_out) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..6_usize {
        // Payments under way while the copy is made: what a client knows before it counts.
        let mut streams = Vec::new();
        for n in 0..8 {
            let bolt11 = bob.invoice(1_000_000).await;
            let request = v1::PayRequest { idempotency_key: format!("{round}-{n}"), ..pay_request(&bolt11) };
            streams.push(alice.payments_client().await.pay(request).await.unwrap().into_inner());
        }
        for stream in &mut streams {
            accepted.push(stream.message().await.unwrap().unwrap().payment_hash);
        }
        let own = v1::CreateInvoiceRequest {
            idempotency_key: format!("own-{round}"),
            amount_msat: Some(5),
            ..v1::CreateInvoiceRequest::default()
        };
        let made = alice.invoices().await.create(own).await.unwrap().into_inner().invoice.unwrap();
        handed_out.push(made.payment_hash);
        promised.push((accepted.clone(), succeeded.clone(), handed_out.clone()));
        copy_as_after_a_crash(a_home.path(), &copies.path().join(round.to_string()));
        for mut stream in streams {
            while let Some(message) = stream.message().await.unwrap() {
                if let Some(v1::pay_progress::Step::Outcome(payment)) = message.step {
                    assert_eq!(payment.status(), v1::PaymentStatus::Succeeded);
                    succeeded.push(payment.payment_hash);
                }
            }
        }
    }
    alice.stop().await;
    for (round, (accepted, succeeded, handed_out)) in promised.into_iter().enumerate() {
        let revived = start(&copies.path().join(round.to_string()), &chain).await;
        let list = v1::ListPaymentsRequest::default();
        let payments = revived.payments_client().await.list(list).await.unwrap().into_inner().payments;
        let by_hash: HashMap<_, _> = payments.iter().map(|p| (p.payment_hash.clone(), p.status())).collect();
        for hash in &accepted {
            assert!(by_hash.contains_key(hash), "round {round}: an accepted payment is gone (D6)");
        }
        for hash in &succeeded {
            assert_eq!(by_hash[hash], v1::PaymentStatus::Succeeded, "round {round}: a success is forgotten");
        }
        for hash in &handed_out {
            let get = v1::GetInvoiceRequest { payment_hash: hash.clone() };
            revived.invoices().await.get(get).await.expect("an invoice that was handed out is gone (D7)");
        }
        // D14: the keys stand for what they stood for.
        for key in (0..=round).map(|n| format!("own-{n}")) {
            let own = |msat| v1::CreateInvoiceRequest {
                idempotency_key: key.clone(),
                amount_msat: Some(msat),
                ..v1::CreateInvoiceRequest::default()
            };
            let made = revived.invoices().await.create(own(5)).await.unwrap().into_inner().invoice.unwrap();
            assert!(handed_out.contains(&made.payment_hash));
            assert_eq!(revived.invoices().await.create(own(6)).await.unwrap_err().code(), Code::AlreadyExists);
        }
        let before = revived.events().await;
        revived.stop().await;
        let again = start(&copies.path().join(round.to_string()), &chain).await;
        assert_eq!(again.events().await[..before.len()], before[..], "events keep their places");
        again.stop().await;
    }
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_without_the_token_and_nothing_before_it_is_ready() {
    let (chain, home) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let world = start_unready(home.path(), &chain).await;
    for bearer in [None, Some("Bearer wrong"), Some("nonsense")] {
        let bearer = Bearer(bearer.map(|text| text.parse().unwrap()));
        let mut client = NodeClient::with_interceptor(world.channel().await, bearer);
        let status = client.get_status(v1::GetStatusRequest {}).await.unwrap_err();
        assert_eq!((status.code(), reason(&status)), (Code::Unauthenticated, ErrorReason::TokenInvalid));
    }
    let mut client = NodeClient::new(world.link().await);
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.stage(), v1::StartStage::Journal);
    let refused = client.get_info(v1::GetInfoRequest {}).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unavailable, ErrorReason::NotReady));
    let list = world.payments_client().await.list(v1::ListPaymentsRequest::default()).await.unwrap_err();
    assert_eq!(list.code(), Code::Unavailable);
    world.readiness.send_replace(Readiness::CatchingUp { height: 3, headers: Some(9) });
    let refused = client.get_info(v1::GetInfoRequest {}).await.unwrap_err();
    assert_eq!(ErrorDetail::from_status(&refused).unwrap().facts["stage"], "chain");
    world.payments.start(world.node.registry().clone(), world.sync.subscribe(), world.serving.archive()).unwrap();
    world.readiness.send_replace(Readiness::Ready);
    let info = client.get_info(v1::GetInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.node_id, info.network.as_str()), (world.node_id.serialize().to_vec(), "regtest"));

    // A key of a call is one for all calls; stopping is a call like the others.
    let mut peers = PeersClient::new(world.link().await);
    let connect = v1::ConnectRequest {
        idempotency_key: "k".to_owned(),
        node_id: world.node_id.serialize().to_vec(),
        address: "127.0.0.1:1".to_owned(),
    };
    let first = peers.connect(connect.clone()).await.unwrap_err();
    let second = peers.connect(connect).await.unwrap_err();
    assert_eq!((first.code(), first.message()), (second.code(), second.message()), "a failure is a result too");
    let stop = v1::StopRequest { idempotency_key: "k".to_owned() };
    assert_eq!(client.stop(stop).await.unwrap_err().code(), Code::AlreadyExists);
    assert!(!world.shutdown.is_stopping());
    client.stop(v1::StopRequest { idempotency_key: "stop".to_owned() }).await.unwrap();
    eventually("it is told to stop", || world.shutdown.is_stopping().then_some(())).await;
    world.stop().await;
}

/// gRPC's own services: what there is, described whole, and how the node is.
#[tokio::test(flavor = "multi_thread")]
async fn reflection_and_health() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus;
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

    let (chain, home) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let world = start_unready(home.path(), &chain).await;
    let mut health = HealthClient::new(world.link().await);
    let check = HealthCheckRequest { service: String::new() };
    let answer = health.check(check.clone()).await.unwrap().into_inner();
    assert_eq!(answer.status(), ServingStatus::NotServing);
    let mut watched = health.watch(check.clone()).await.unwrap().into_inner();
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    world.readiness.send_replace(Readiness::Ready);
    assert_eq!(watched.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    assert_eq!(health.check(check.clone()).await.unwrap().into_inner().status(), ServingStatus::Serving);
    let stranger = HealthClient::with_interceptor(world.channel().await, Bearer(None)).check(check).await;
    assert_eq!(stranger.unwrap_err().code(), Code::Unauthenticated);

    let mut reflection = ServerReflectionClient::new(world.link().await);
    let ask = |message_request| ServerReflectionRequest { host: String::new(), message_request: Some(message_request) };
    let services = ["Node", "Wallet", "Peers", "Channels", "Invoices", "Payments", "Events"];
    let mut requests = vec![ask(MessageRequest::ListServices(String::new()))];
    requests
        .extend(services.map(|service| ask(MessageRequest::FileContainingSymbol(format!("millrace.v1.{service}")))));
    let mut answers =
        reflection.server_reflection_info(tokio_stream::iter(requests.clone())).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services")
    };
    let names: HashSet<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in services {
        assert!(names.contains(&format!("millrace.v1.{service}")), "{service} is not in {names:?}");
        let answer = answers.message().await.unwrap().unwrap().message_response;
        let Some(MessageResponse::FileDescriptorResponse(files)) = answer else { panic!("{service}: {answer:?}") };
        assert!(!files.file_descriptor_proto.is_empty(), "{service} is not described");
    }
    let mut stranger = ServerReflectionClient::with_interceptor(world.channel().await, Bearer(None));
    let refused = stranger.server_reflection_info(tokio_stream::iter(requests)).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::Unauthenticated, ErrorReason::TokenInvalid));
    // A connection that a client holds on to would outlive the server, in this process.
    drop((health, watched, reflection, answers, stranger));
    world.stop().await;
}
