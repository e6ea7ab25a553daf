//! `Events.Subscribe`: everything, once, in one order that never changes, whatever happens to the daemon.

use std::collections::BTreeMap;

use millrace_regtest::network::random_key;
use millrace_regtest::pay_stream::{PayStream, make_invoices};
use millrace_rpc::v1::{Cursor, Event, SubscribeRequest, event};
use tokio::time::timeout;

use super::support::{ALICE, BOB, LIMIT, Pair, events, invoices, pair, payments};

fn position(event: &Event) -> (u64, u32) {
    let cursor = event.cursor.unwrap();
    (cursor.frame, cursor.index)
}

fn kind(event: &Event) -> &'static str {
    match event.event.as_ref().unwrap() {
        event::Event::ChannelOpening(_) => "channel opening",
        event::Event::ChannelReady(_) => "channel ready",
        event::Event::ChannelClosing(_) => "channel closing",
        event::Event::ChannelClosed(_) => "channel closed",
        event::Event::PaymentStarted(_) => "payment started",
        event::Event::PaymentSucceeded(_) => "payment succeeded",
        event::Event::PaymentFailed(_) => "payment failed",
        event::Event::InvoiceCreated(_) => "invoice created",
        event::Event::InvoicePaid(_) => "invoice paid",
        event::Event::InvoiceHeld(_) => "invoice held",
        event::Event::InvoiceCancelled(_) => "invoice cancelled",
        event::Event::WalletTransaction(_) => "wallet transaction",
        event::Event::PeerConnected(_) => "peer connected",
        event::Event::PeerDisconnected(_) => "peer disconnected",
        event::Event::ForwardEnded(_) => "forward ended",
    }
}

fn counts(events: &[Event]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for event in events {
        *counts.entry(kind(event)).or_default() += 1;
    }
    counts
}

/// Positions only grow, and each fact that comes once per invoice or payment comes once.
fn check_order(events: &[Event]) {
    assert!(events.windows(2).all(|two| position(&two[0]) < position(&two[1])));
    let mut hashes = BTreeMap::new();
    for event in events {
        let hash = match event.event.as_ref().unwrap() {
            event::Event::PaymentSucceeded(paid) => ("payment", paid.payment_hash.clone()),
            event::Event::InvoicePaid(paid) => ("invoice", paid.payment_hash.clone()),
            event::Event::InvoiceCreated(made) => ("made", made.payment_hash.clone()),
            event::Event::PaymentStarted(begun) => ("begun", begun.payment_hash.clone()),
            _ => continue,
        };
        *hashes.entry(hash).or_insert(0) += 1;
    }
    assert!(hashes.values().all(|count| *count == 1), "{hashes:?}");
}

async fn pay_some(pair: &Pair, from: usize, to: usize, count: usize) {
    for _ in 0..count {
        let bolt11 = pair.invoice(to, 5_000).await;
        pair.pay(from, &bolt11).await.unwrap();
    }
}

/// What a subscription tells from a position on, until it has told so many.
async fn live(pair: &Pair, node: usize, from: Option<Cursor>, count: usize) -> tokio::task::JoinHandle<Vec<Event>> {
    let request = SubscribeRequest { from_cursor: from, stop_at_tip: false };
    let mut stream = pair.client(node).events.subscribe(request).await.unwrap().into_inner();
    tokio::spawn(async move {
        let mut events = Vec::new();
        while events.len() < count {
            let next = timeout(LIMIT, stream.message()).await;
            events.push(next.unwrap_or_else(|_| panic!("{} of {count} came", events.len())).unwrap().unwrap());
        }
        events
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_dropped_or_doubled_across_a_kill() {
    let mut pair = pair().await;
    let start = Cursor::default();
    pay_some(&pair, ALICE, BOB, 5).await;
    pay_some(&pair, BOB, ALICE, 3).await;
    pair.wait_until_at_rest().await;
    let before = events(&pair.client(BOB), start).await;
    check_order(&before);
    let counted = counts(&before);
    for (kind, count) in [
        ("channel opening", 1),
        ("channel ready", 1),
        ("invoice created", 5),
        ("invoice paid", 5),
        ("payment started", 3),
        ("payment succeeded", 3),
    ] {
        assert_eq!(counted.get(kind), Some(&count), "{kind} in {counted:?}");
    }
    // A deposit: in a block when it was first seen, or before.
    assert!((1..=2).contains(&counted["wallet transaction"]), "{counted:?}");
    // Bob was called by a stranger, and Alice has called.
    assert_eq!(counted.get("peer connected"), None, "{counted:?}");
    let counted = counts(&events(&pair.client(ALICE), start).await);
    assert_eq!(counted.get("peer connected"), Some(&1), "{counted:?}");
    assert!(counted["wallet transaction"] >= 3, "two deposits and a funding: {counted:?}");
    // The same again, and from every position in the middle what comes after it.
    assert_eq!(events(&pair.client(BOB), start).await, before);
    for at in (0..before.len()).step_by(3) {
        let cursor = before[at].cursor.unwrap();
        let after = Cursor { frame: cursor.frame, index: cursor.index + 1 };
        assert_eq!(events(&pair.client(BOB), after).await, before[at + 1..], "after {cursor:?}");
        assert_eq!(events(&pair.client(BOB), cursor).await, before[at..], "from {cursor:?}");
    }

    // New ones come to whoever listens: on top of the past, and only from now on.
    let from_now = live(&pair, BOB, None, 2).await;
    let from_start = live(&pair, BOB, Some(start), before.len() + 2).await;
    pay_some(&pair, ALICE, BOB, 1).await;
    let (from_now, from_start) = (from_now.await.unwrap(), from_start.await.unwrap());
    assert_eq!(from_now.iter().map(kind).collect::<Vec<_>>(), ["invoice created", "invoice paid"]);
    assert_eq!(from_start[..before.len()], before);
    assert_eq!(from_start[before.len()..], from_now);

    // Killed, the daemon tells the same, and goes on after it.
    let told = events(&pair.client(BOB), start).await;
    assert_eq!(told, from_start);
    pair.network.nodes[BOB].kill9().unwrap();
    pair.network.nodes[BOB].start().await.unwrap();
    pair.wait_until_usable().await;
    pay_some(&pair, ALICE, BOB, 2).await;
    pair.wait_until_at_rest().await;
    let after = events(&pair.client(BOB), start).await;
    assert_eq!(after[..told.len()], told);
    check_order(&after);
    let new = counts(&after[told.len()..]);
    assert_eq!((new.get("invoice created"), new.get("invoice paid")), (Some(&2), Some(&2)), "{new:?}");
    assert!(new.contains_key("peer connected"), "now they have a channel: {new:?}");
    assert_eq!(new.get("channel ready"), None, "a channel is ready once, not at each start: {new:?}");

    // Stopped in good order, the same.
    pair.network.nodes[BOB].stop().await.unwrap();
    pair.network.nodes[BOB].start().await.unwrap();
    let last = events(&pair.client(BOB), start).await;
    assert_eq!(last[..after.len()], after);
    pair.stop().await;
}

/// A kill in the middle of payments, with somebody listening: what was told stands, and the lists say the same.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_told_stands() {
    let mut pair = pair().await;
    let request = SubscribeRequest { from_cursor: Some(Cursor::default()), stop_at_tip: false };
    let mut stream = pair.client(BOB).events.subscribe(request).await.unwrap().into_inner();
    let listener = tokio::spawn(async move {
        let mut told = Vec::new();
        while let Ok(Some(event)) = stream.message().await {
            told.push(event);
        }
        told
    });
    let bolt11s = make_invoices(&pair.client(BOB), &[2_000; 300], "told").await.unwrap();
    let mut payments_stream = PayStream::open(&pair.network.nodes[ALICE]).await.unwrap();
    for (id, bolt11) in (0..).zip(bolt11s) {
        payments_stream.pay(id, bolt11, random_key()).await.unwrap();
    }
    for _ in 0..30 {
        payments_stream.next().await.unwrap();
    }
    pair.network.nodes[BOB].kill9().unwrap();
    let told = listener.await.unwrap();
    pair.network.nodes[BOB].start().await.unwrap();
    pair.wait_until_usable().await;
    while payments_stream.outstanding() > 0 {
        timeout(LIMIT, payments_stream.next()).await.expect("a payment without outcome").unwrap();
    }
    pair.wait_until_at_rest().await;

    let after = events(&pair.client(BOB), Cursor::default()).await;
    assert!(told.len() > 300, "only {} were told", told.len());
    assert_eq!(after[..told.len()], told);
    check_order(&after);
    let paid = invoices(&pair.client(BOB)).await.iter().filter(|invoice| invoice.received_msat.is_some()).count();
    assert_eq!(counts(&after).get("invoice paid"), Some(&paid));
    let sent = events(&pair.client(ALICE), Cursor::default()).await;
    check_order(&sent);
    let succeeded = payments(&pair.client(ALICE)).await.iter().filter(|payment| !payment.preimage.is_empty()).count();
    assert_eq!(counts(&sent).get("payment succeeded"), Some(&succeeded));
    assert_eq!(paid, succeeded);
    pair.stop().await;
}
