//! What the daemon cannot do, it refuses clearly, and nothing changes.

use std::time::Duration;

use millrace_regtest::network::random_key;
use millrace_regtest::pay_stream::make_invoices;
use millrace_rpc::v1::{
    CloseChannelRequest, ConnectRequest, CreateInvoiceRequest, ErrorReason, GetChannelRequest, GetInvoiceRequest,
    GetPaymentRequest, OpenChannelRequest, PayRequest, PaymentStatus, SendRequest, StreamPayRequest,
    get_channel_request, send_request, stream_pay_response,
};
use tonic::Status;

use super::support::{ALICE, BOB, CAPACITY_SAT, Pair, check_refusal, order, pair, pair_with, pay, refused};

/// BOLT 11's own example of a donation, on the network bitcoin.
const MAINNET_INVOICE: &str = "lnbc1pvjluezsp5zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zyg3zygspp5qqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqqqsyqcyq5rqwzqfqypqdpl2pkx2ctnv5sxxmmwwd5kgetjypeh2ursdae8g6twvus8g6rfwvs8qun0dfjkxaq9qrsgq357wnc5r2ueh7ck6q93dj32dlqnls087fxdwk8qakdyafkq3yap9us6v52vjjsrvywa6rt52cm9r9zqt8r2t7mlcwspyetp5h2tztugp9lfyql";
/// The address that pays to nobody, of BIP 173, on the network bitcoin.
const MAINNET_ADDRESS: &str = "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4";
const SIGNET_ADDRESS: &str = "tb1qw508d6qejxtdg4y5r3zarvary0c5xw7kxpjzsx";

/// What Alice lets be in flight towards her, and the least that she takes: limits on what Bob can pay.
const IN_FLIGHT_MAX_MSAT: u64 = 200_000_000;
const HTLC_MINIMUM_MSAT: u64 = 1000;

/// A payment by Bob to which he names the amount.
fn with_amount(bolt11: &str, amount_msat: u64) -> PayRequest {
    PayRequest { amount_msat: Some(amount_msat), ..order(bolt11) }
}

/// An invoice that leaves the amount open.
async fn open_invoice(pair: &Pair, node: usize) -> String {
    let request = CreateInvoiceRequest { idempotency_key: random_key(), ..CreateInvoiceRequest::default() };
    pair.client(node).invoices.create(request).await.unwrap().into_inner().invoice.unwrap().bolt11
}

/// An invoice whose time is over.
async fn expired_invoice(pair: &Pair, node: usize) -> String {
    let request = CreateInvoiceRequest {
        idempotency_key: random_key(),
        amount_msat: Some(21_000),
        expiry_s: 1,
        ..CreateInvoiceRequest::default()
    };
    let invoice = pair.client(node).invoices.create(request).await.unwrap().into_inner().invoice.unwrap();
    // An invoice counts in whole seconds.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    invoice.bolt11
}

/// The same with one character of its data changed.
fn damaged(bolt11: &str) -> String {
    let mut text = bolt11.to_owned().into_bytes();
    let at = text.len() - 20;
    text[at] = if text[at] == b'q' { b'p' } else { b'q' };
    String::from_utf8(text).unwrap()
}

/// Refusals of payments, each in a call of its own; nothing changes by any of them.
#[tokio::test(flavor = "multi_thread")]
async fn payments_that_cannot_be_tried() {
    let pair = pair_with(
        |_| {},
        |open| {
            open.max_in_flight_msat = Some(IN_FLIGHT_MAX_MSAT);
            open.htlc_minimum_msat = Some(HTLC_MINIMUM_MSAT);
        },
    )
    .await;
    let fixed = pair.invoice(ALICE, 21_000).await;
    let open = open_invoice(&pair, ALICE).await;
    let own = pair.invoice(BOB, 21_000).await;
    let expired = expired_invoice(&pair, ALICE).await;
    let too_much_for_alice = pair.invoice(BOB, CAPACITY_SAT * 1000).await;
    let before = pair.standing().await;
    let bob = pair.client(BOB);

    let wrong_network = refused(pay(&bob, order(MAINNET_INVOICE)).await, ErrorReason::WrongNetwork);
    assert_eq!(
        (wrong_network.facts["expected"].as_str(), wrong_network.facts["found"].as_str()),
        ("regtest", "bitcoin")
    );
    for text in ["", "lnbcrt", "not an invoice", &damaged(&fixed), &fixed[..fixed.len() - 1]] {
        refused(pay(&bob, order(text)).await, ErrorReason::InvoiceInvalid);
    }
    let over = refused(pay(&bob, order(&expired)).await, ErrorReason::InvoiceExpired);
    let fact = |name: &str| over.facts[name].parse::<u64>().unwrap();
    assert!(fact("expired_at_ms") <= fact("now_ms"), "{over:?}");
    refused(pay(&bob, order(&open)).await, ErrorReason::AmountMissing);
    let conflict = refused(pay(&bob, with_amount(&fixed, 22_000)).await, ErrorReason::AmountConflict);
    assert_eq!((conflict.facts["invoice_msat"].as_str(), conflict.facts["amount_msat"].as_str()), ("21000", "22000"));
    for amount in [0, 1, HTLC_MINIMUM_MSAT - 1] {
        let below = refused(pay(&bob, with_amount(&open, amount)).await, ErrorReason::AmountBelowMinimum);
        assert_eq!(below.facts["amount_msat"], amount.to_string(), "{below:?}");
    }
    for amount in [IN_FLIGHT_MAX_MSAT + 1, u64::MAX] {
        let above = refused(pay(&bob, with_amount(&open, amount)).await, ErrorReason::AmountAboveMaximum);
        assert_eq!(above.facts["amount_msat"], amount.to_string(), "{above:?}");
    }
    let alice = pair.client(ALICE);
    let poor = refused(pay(&alice, order(&too_much_for_alice)).await, ErrorReason::InsufficientBalance);
    assert!(poor.facts.keys().any(|name| name.starts_with("available")), "{poor:?}");
    refused(pay(&bob, order(&own)).await, ErrorReason::SelfPayment);
    refused(
        pay(&bob, PayRequest { idempotency_key: "k".repeat(65), ..order(&fixed) }).await,
        ErrorReason::IdempotencyKeyInvalid,
    );

    assert_eq!(pair.standing().await, before);
    // Nor has any of it spoilt the invoices: at the limits themselves they are paid.
    let least = pay(&bob, with_amount(&open, HTLC_MINIMUM_MSAT)).await.unwrap();
    assert_eq!((least.status(), least.amount_msat), (PaymentStatus::Succeeded, HTLC_MINIMUM_MSAT));
    let most = open_invoice(&pair, ALICE).await;
    let most = pay(&bob, with_amount(&most, IN_FLIGHT_MAX_MSAT)).await.unwrap();
    assert_eq!((most.status(), most.amount_msat), (PaymentStatus::Succeeded, IN_FLIGHT_MAX_MSAT));
    assert_eq!(pay(&bob, order(&fixed)).await.unwrap().status(), PaymentStatus::Succeeded);
    pair.stop().await;
}

/// On a stream a refusal is an answer like any other, with the details that a call of its own would have.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_on_a_stream_end_nothing() {
    let pair = pair().await;
    let good = pair.invoice(BOB, 21_000).await;
    let (requests, queue) = tokio::sync::mpsc::channel(8);
    let stream = tokio_stream::wrappers::ReceiverStream::new(queue);
    let mut answers = pair.client(ALICE).payments.stream(stream).await.unwrap().into_inner();
    for (request_id, bolt11) in [(7, MAINNET_INVOICE), (8, "nothing"), (9, &good)] {
        let bolt11 = bolt11.to_owned();
        requests.send(StreamPayRequest { request_id, bolt11, ..StreamPayRequest::default() }).await.unwrap();
    }
    drop(requests);
    let mut seen = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        seen.push(answer.request_id);
        match (answer.request_id, answer.result.unwrap()) {
            (7, stream_pay_response::Result::Refused(refused)) => {
                check_refusal(&Status::from(refused), ErrorReason::WrongNetwork);
            }
            (8, stream_pay_response::Result::Refused(refused)) => {
                check_refusal(&Status::from(refused), ErrorReason::InvoiceInvalid);
            }
            (9, stream_pay_response::Result::Paid(paid)) => assert_eq!(paid.preimage.len(), 32),
            other => panic!("{other:?}"),
        }
    }
    seen.sort_unstable();
    assert_eq!(seen, [7, 8, 9], "each request has exactly one answer, and then the stream ends");
    pair.stop().await;
}

/// An invoice is paid once, whatever the keys.
#[tokio::test(flavor = "multi_thread")]
async fn paying_twice() {
    let pair = pair().await;
    let alice = pair.client(ALICE);
    let fixed = pair.invoice(BOB, 50_000).await;
    let open = open_invoice(&pair, BOB).await;
    // Both at once, with keys of their own: one payment, and both are told its outcome.
    let (first, second) = tokio::join!(pay(&alice, order(&fixed)), pay(&alice, order(&fixed)));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.status(), PaymentStatus::Succeeded);
    assert_eq!((&first.preimage, first.created_ms), (&second.preimage, second.created_ms));
    pay(&alice, with_amount(&open, 7_000)).await.unwrap();
    let before = pair.standing().await;
    assert_eq!(before.sides[ALICE].payments, 2);
    assert_eq!(before.sides[ALICE].channels[0].local_msat, CAPACITY_SAT / 2 * 1000 - 57_000);

    let again = pay(&alice, order(&fixed)).await.unwrap();
    assert_eq!((again.status(), &again.preimage), (PaymentStatus::Succeeded, &first.preimage));
    refused(pay(&alice, with_amount(&open, 8_000)).await, ErrorReason::InvoiceAlreadyPaid);
    assert_eq!(pair.standing().await, before);
    pair.stop().await;
}

/// Refusals by the wallet, by channels and by peers; nothing changes by any of them.
#[tokio::test(flavor = "multi_thread")]
async fn wallet_channels_and_peers() {
    let pair = pair().await;
    let before = pair.standing().await;
    let mut alice = pair.client(ALICE);
    let own = pair.network.bitcoind.new_address().unwrap().to_string();

    let send = |address: &str, amount| SendRequest {
        idempotency_key: random_key(),
        address: address.to_owned(),
        amount: Some(amount),
        fee: None,
    };
    let exactly = send_request::Amount::AmountSat;
    for address in [MAINNET_ADDRESS, SIGNET_ADDRESS] {
        refused(alice.wallet.send(send(address, exactly(50_000))).await, ErrorReason::WrongNetwork);
    }
    for address in ["", "bcrt1qnothing", "02ab"] {
        refused(alice.wallet.send(send(address, exactly(50_000))).await, ErrorReason::AddressInvalid);
    }
    for amount in [0, 1, 200] {
        refused(alice.wallet.send(send(&own, exactly(amount))).await, ErrorReason::AmountBelowMinimum);
    }
    refused(alice.wallet.send(send(&own, exactly(4_000_000_000))).await, ErrorReason::InsufficientBalance);
    let all_but_fee = before.sides[ALICE].wallet.confirmed_sat - 1_000;
    refused(alice.wallet.send(send(&own, exactly(all_but_fee))).await, ErrorReason::AnchorReserve);

    let bob_id = pair.network.nodes[BOB].node_id().to_vec();
    let stranger = hex::decode("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798").unwrap();
    let open = |node_id: &[u8], capacity_sat, push_msat| OpenChannelRequest {
        idempotency_key: random_key(),
        node_id: node_id.to_vec(),
        capacity_sat,
        push_msat,
        ..OpenChannelRequest::default()
    };
    let zero_conf = OpenChannelRequest { zero_conf: true, ..open(&bob_id, 100_000, 0) };
    for (request, reason) in [
        (zero_conf, ErrorReason::PeerFeatureMissing),
        (open(&stranger, 100_000, 0), ErrorReason::PeerNotConnected),
        (open(&[5; 33], 100_000, 0), ErrorReason::InvalidField),
        (open(&[], 100_000, 0), ErrorReason::InvalidField),
        (open(&bob_id, 4_000_000_000, 0), ErrorReason::AmountAboveMaximum),
        (open(&bob_id, 100_000_000, 0), ErrorReason::InsufficientBalance),
        (open(&bob_id, 1_000, 0), ErrorReason::AmountBelowMinimum),
        (open(&bob_id, 100_000, 100_000_001), ErrorReason::AmountAboveMaximum),
    ] {
        let case = format!("{} sat to {}", request.capacity_sat, hex::encode(&request.node_id));
        let outcome = async {
            let mut progress = alice.channels.open(request).await?.into_inner();
            while let Some(step) = progress.message().await? {
                eprintln!("{case}: {step:?}");
            }
            Ok(())
        };
        let outcome: Result<(), Status> = outcome.await;
        eprintln!("{case}: {:?}", outcome.as_ref().err().map(Status::message));
        refused(outcome, reason);
    }
    let close = CloseChannelRequest {
        idempotency_key: random_key(),
        channel_id: vec![7; 32],
        ..CloseChannelRequest::default()
    };
    refused(alice.channels.close(close).await, ErrorReason::NotFound);

    let connect = |node_id: &[u8], address: &str| ConnectRequest {
        idempotency_key: random_key(),
        node_id: node_id.to_vec(),
        address: address.to_owned(),
    };
    let bob_address = pair.network.nodes[BOB].lightning_address().unwrap();
    refused(alice.peers.connect(connect(&stranger, "127.0.0.1:1")).await, ErrorReason::PeerUnreachable);
    refused(alice.peers.connect(connect(&stranger, &bob_address)).await, ErrorReason::PeerHandshakeFailed);
    refused(alice.peers.connect(connect(&[7; 5], &bob_address)).await, ErrorReason::InvalidField);

    let by_id = Some(get_channel_request::Channel::ChannelId(vec![9; 32]));
    refused(alice.channels.get(GetChannelRequest { channel: by_id }).await, ErrorReason::NotFound);
    refused(alice.invoices.get(GetInvoiceRequest { payment_hash: vec![9; 32] }).await, ErrorReason::NotFound);
    refused(alice.payments.get(GetPaymentRequest { payment_hash: vec![9; 32] }).await, ErrorReason::NotFound);

    assert_eq!(pair.standing().await, before);
    pair.stop().await;
}

/// What an invoice cannot be, and a preimage that was used before.
#[tokio::test(flavor = "multi_thread")]
async fn invoices_that_cannot_be_made() {
    let pair = pair().await;
    let mut bob = pair.client(BOB);
    let request = |preimage: &[u8], amount_msat| CreateInvoiceRequest {
        idempotency_key: random_key(),
        amount_msat,
        preimage: preimage.to_vec(),
        ..CreateInvoiceRequest::default()
    };
    bob.invoices.create(request(&[5; 32], Some(1))).await.unwrap();
    make_invoices(&bob, &[2_000], "a description").await.unwrap();
    let before = pair.standing().await;
    refused(bob.invoices.create(request(&[5; 32], Some(2))).await, ErrorReason::PreimageReused);
    refused(bob.invoices.create(request(&[5; 31], None)).await, ErrorReason::InvalidField);
    refused(bob.invoices.create(request(&[], Some(0))).await, ErrorReason::InvalidField);
    refused(bob.invoices.create(request(&[], Some(u64::MAX))).await, ErrorReason::InvalidField);
    let unnamed = CreateInvoiceRequest { idempotency_key: String::new(), ..request(&[], Some(1)) };
    refused(bob.invoices.create(unnamed).await, ErrorReason::IdempotencyKeyInvalid);
    assert_eq!(pair.standing().await, before);
    pair.stop().await;
}
