//! Payments in parts, payments that are held, payments that nobody asked for: sent by a bare node with onions made by
//! hand, received by a whole one.

use std::collections::HashMap;

use millrace_chain::SyncState;
use millrace_channel::ledger::htlc::{Origin, Removal};
use millrace_channel::{Fact, Offer};
use millrace_routing::SharedSecret;
use millrace_routing::failure::{code, decode};
use millrace_routing::invoice::Invoice;
use millrace_routing::onion::{FinalPayload, Hop, Payload, build};
use millrace_rpc::v1::{self, ErrorReason, event, settle_invoice_request::Which};
use millrace_wire::{ChannelId, CltvExpiry, HtlcId, Msat, PaymentHash, PaymentSecret, Preimage};
use millraced::channels::{Accepted, ChannelSnapshot, OpenProgress};
use millraced::facts::Telling;
use secp256k1::SecretKey;

use crate::support::{self, FakeChain, PATIENCE, Setup, TestNode, copy_as_after_a_crash, eventually};
use crate::world::{Differences, World, rand_bytes, start, start_with};
use crate::{names, reason};

const ASKED: u64 = 90_000_000;

/// A payer that sends what it is told to, and a payee.
struct Pair {
    payer: TestNode,
    payee: World,
    chain: FakeChain,
    channels: [ChannelId; 2],
    /// By HTLC, what its failure is read with.
    secrets: HashMap<(ChannelId, HtlcId), Vec<SharedSecret>>,
    _payer_home: tempfile::TempDir,
    payee_home: tempfile::TempDir,
    sent: u64,
}

/// What a payer puts into an onion.
#[derive(Clone)]
struct Terms {
    payment_hash: PaymentHash,
    secret: Option<PaymentSecret>,
    total: u64,
    keysend: Option<Preimage>,
}

impl Pair {
    async fn new(mpp_timeout_ms: u64) -> Self {
        Self::with(Differences { mpp_timeout_ms, ..Differences::default() }).await
    }

    async fn with(differences: Differences) -> Self {
        let (chain, payer_home, payee_home) =
            (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let payer = support::start(&Setup::new(3), &chain, payer_home.path()).await;
        let payee = start_with(payee_home.path(), &chain, differences).await;
        payer.node.peers().connect(payee.node_id, &payee.lightning.to_string()).await.unwrap();
        let channels = [open(&payer, &payee, &chain).await, open(&payer, &payee, &chain).await];
        let secrets = HashMap::new();
        Self { payer, payee, chain, channels, secrets, _payer_home: payer_home, payee_home, sent: 0 }
    }

    async fn invoice(&self, change: impl FnOnce(&mut v1::CreateInvoiceRequest)) -> (v1::Invoice, Terms) {
        let mut request = v1::CreateInvoiceRequest {
            idempotency_key: hex::encode(rand_bytes()),
            amount_msat: Some(ASKED),
            ..v1::CreateInvoiceRequest::default()
        };
        change(&mut request);
        let made = self.payee.invoices().await.create(request).await.unwrap().into_inner().invoice.unwrap();
        let read = Invoice::parse(&made.bolt11).unwrap();
        let secret = Some(read.payment_secret);
        (made, Terms { payment_hash: read.payment_hash, secret, total: ASKED, keysend: None })
    }

    /// Offers one part over one of the channels.
    async fn send(&mut self, over: usize, amount: u64, terms: &Terms) -> (ChannelId, HtlcId) {
        self.sent += 1;
        let channel_id = self.channels[over];
        let cltv_expiry = CltvExpiry(self.chain.height() + 50);
        let payload = FinalPayload {
            amount: Msat(amount),
            expiry: cltv_expiry,
            total: Msat(terms.total),
            payment_secret: terms.secret.clone(),
            payment_metadata: None,
            keysend_preimage: terms.keysend.clone(),
            custom: Vec::new(),
        };
        let session_key = SecretKey::from_slice(&[[7; 16], rand_bytes()].concat()).unwrap();
        let hops = [Hop { node_id: self.payee.node_id, payload: Payload::Final(payload) }];
        let built = build(&session_key, &hops, &terms.payment_hash).unwrap();
        let mut id = [0; 32];
        id[..8].copy_from_slice(&self.sent.to_be_bytes());
        let offer = Offer {
            amount: Msat(amount),
            payment_hash: terms.payment_hash,
            cltv_expiry,
            onion: built.packet,
            path_key: None,
            origin: Origin::Payment { id, attempt: 0 },
        };
        let answer = self.payer.node.registry().offer(channel_id, offer, Vec::new()).await.unwrap().unwrap();
        let Accepted::Offered(htlc_id) = answer else { panic!("an offer is answered with its id") };
        self.secrets.insert((channel_id, htlc_id), built.shared_secrets);
        (channel_id, htlc_id)
    }

    /// How an HTLC ended: nothing if it was fulfilled, else BOLT 4's code.
    async fn outcome(&self, part: (ChannelId, HtlcId)) -> Option<u16> {
        let find = || {
            self.payer.fold.durable_facts(Telling::Live).into_iter().find_map(|(channel_id, fact)| match fact {
                Fact::OfferResolved { id, removal, .. } if (channel_id, id) == part => Some(removal),
                _ => None,
            })
        };
        match eventually("the payer knows", find).await {
            Removal::Fulfill { .. } => None,
            Removal::Fail { reason, .. } => Some(decode(&self.secrets[&part], &reason).unwrap().message.code()),
            Removal::Malformed { failure_code, .. } => Some(failure_code),
        }
    }

    /// Waits until an HTLC is irrevocably with the payee.
    async fn arrived(&self, count: usize) {
        let registry = self.payee.node.registry();
        let committed = || {
            let htlcs = self
                .channels
                .iter()
                .filter_map(|id| registry.snapshot(*id))
                .flat_map(|snapshot| snapshot.htlcs.iter().map(|htlc| htlc.stage.clone()).collect::<Vec<_>>());
            let all: Vec<String> = htlcs.collect();
            (all.len() == count && all.iter().all(|stage| stage == "adding: irrevocable")).then_some(())
        };
        eventually("the HTLCs are with the payee", committed).await;
    }

    async fn shown(&self, payment_hash: PaymentHash) -> v1::Invoice {
        let get = v1::GetInvoiceRequest { payment_hash: payment_hash.0.to_vec() };
        self.payee.invoices().await.get(get).await.unwrap().into_inner().invoice.unwrap()
    }

    async fn wait_for(&self, payment_hash: PaymentHash, status: v1::InvoiceStatus) -> v1::Invoice {
        for _ in 0..1200 {
            let invoice = self.shown(payment_hash).await;
            if invoice.status() == status {
                return invoice;
            }
            tokio::time::sleep(std::time::Duration::from_millis(25)).await;
        }
        panic!("the invoice is {:?}", self.shown(payment_hash).await.status());
    }

    async fn settle(&self, which: Which) -> Result<v1::Invoice, tonic::Status> {
        let request = v1::SettleInvoiceRequest { idempotency_key: hex::encode(rand_bytes()), which: Some(which) };
        Ok(self.payee.invoices().await.settle(request).await?.into_inner().invoice.unwrap())
    }

    async fn cancel(&self, payment_hash: PaymentHash) -> Result<v1::Invoice, tonic::Status> {
        let idempotency_key = hex::encode(rand_bytes());
        let request = v1::CancelInvoiceRequest { idempotency_key, payment_hash: payment_hash.0.to_vec() };
        Ok(self.payee.invoices().await.cancel(request).await?.into_inner().invoice.unwrap())
    }

    /// Blocks that both know of.
    fn mine(&self, blocks: u32) {
        self.chain.mine(blocks);
        for sync in [&self.payer.sync, &self.payee.sync] {
            sync.send_replace(SyncState::Synced { height: self.chain.height() });
        }
    }

    /// The payee stops and starts again, and the payer finds it.
    async fn restart_payee(self) -> Self {
        let Self { payer, payee, chain, channels, secrets, _payer_home, payee_home, sent } = self;
        payee.stop().await;
        for channel_id in channels {
            payer.wait_until(channel_id, "the payer has noticed", |snapshot| !snapshot.is_usable()).await;
        }
        let payee = start(payee_home.path(), &chain).await;
        payer.node.peers().connect(payee.node_id, &payee.lightning.to_string()).await.unwrap();
        // Each side may use it once it has heard the other's `channel_reestablish`: the one does before the other.
        for channel_id in channels {
            payee.wait_until(channel_id, "the channel is usable again", ChannelSnapshot::is_usable).await;
            payer.wait_until(channel_id, "the channel is usable again", ChannelSnapshot::is_usable).await;
        }
        Self { payer, payee, chain, channels, secrets, _payer_home, payee_home, sent }
    }

    async fn stop(self) {
        self.payer.node.stop().await;
        self.payee.stop().await;
    }
}

async fn open(payer: &TestNode, payee: &World, chain: &FakeChain) -> ChannelId {
    let mut progress = payer.node.registry().open_channel(payer.order(payee.node_id, 1_000_000)).unwrap();
    let channel_id = loop {
        match tokio::time::timeout(PATIENCE, progress.recv()).await.unwrap().unwrap() {
            OpenProgress::Negotiated { .. } => {}
            OpenProgress::Opened { channel_id, .. } => break channel_id,
            OpenProgress::Failed(failure) => panic!("{failure}"),
        }
    };
    eventually("the funding is broadcast", || (!chain.mempool().is_empty()).then_some(())).await;
    chain.mine(3);
    for sync in [&payer.sync, &payee.sync] {
        sync.send_replace(SyncState::Synced { height: chain.height() });
    }
    payer.wait_until(channel_id, "the channel is usable", ChannelSnapshot::is_usable).await;
    payee.wait_until(channel_id, "the channel is usable", ChannelSnapshot::is_usable).await;
    channel_id
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_over_two_channels_are_taken_together() {
    let mut pair = Pair::new(60_000).await;
    let (made, terms) = pair.invoice(|_| {}).await;
    assert!(made.bolt11.len() > 100);
    let read = Invoice::parse(&made.bolt11).unwrap();
    assert!(read.features.bits().any(|bit| bit == 17), "the invoice says that it may be paid in parts");
    let first = pair.send(0, 40_000_000, &terms).await;
    let second = pair.send(1, 30_000_000, &terms).await;
    pair.arrived(2).await;
    assert_eq!(pair.shown(terms.payment_hash).await.status(), v1::InvoiceStatus::Open);
    let third = pair.send(0, 20_000_000, &terms).await;
    for part in [first, second, third] {
        assert_eq!(pair.outcome(part).await, None);
    }
    let paid = pair.wait_for(terms.payment_hash, v1::InvoiceStatus::Paid).await;
    assert_eq!((paid.received_msat, paid.parts.len()), (Some(ASKED), 3));
    for (channel_id, local) in pair.channels.into_iter().zip([60_000_000, 30_000_000]) {
        pair.payee.wait_until(channel_id, "balances", |snapshot| snapshot.balances.local.0 == local).await;
    }
    let list = pair.payee.channels().await.list(v1::ListChannelsRequest::default()).await.unwrap().into_inner();
    let received: u64 = list.channels.iter().map(|channel| channel.total_received_msat).sum();
    assert_eq!(received, ASKED);
    let late = pair.send(1, ASKED, &terms).await;
    assert_eq!(pair.outcome(late).await, Some(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));
    let events = pair.payee.events().await;
    let paid = events.iter().filter_map(|event| match event.event.as_ref().unwrap() {
        event::Event::InvoicePaid(paid) => Some(paid),
        _ => None,
    });
    let paid: Vec<_> = paid.collect();
    assert_eq!(paid.len(), 1);
    assert_eq!((paid[0].received_msat, paid[0].parts.len(), paid[0].keysend), (ASKED, 3, false));
    let pair = pair.restart_payee().await;
    let again = pair.payee.events().await;
    assert_eq!(again[..events.len()], events[..]);
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_stay_alone_or_contradict_each_other() {
    let mut pair = Pair::new(400).await;
    let (_, terms) = pair.invoice(|_| {}).await;
    let alone = pair.send(0, 40_000_000, &terms).await;
    assert_eq!(pair.outcome(alone).await, Some(code::MPP_TIMEOUT));
    pair.stop().await;

    let mut pair = Pair::new(60_000).await;
    let (_, terms) = pair.invoice(|_| {}).await;
    let first = pair.send(0, 40_000_000, &terms).await;
    pair.arrived(1).await;
    let other = pair.send(1, 40_000_000, &Terms { total: ASKED + 1, ..terms.clone() }).await;
    for part in [first, other] {
        assert_eq!(pair.outcome(part).await, Some(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));
    }
    // One without the secret is no part of it, and does the others no harm.
    let first = pair.send(0, 40_000_000, &terms).await;
    let probe = pair.send(1, 50_000_000, &Terms { secret: Some(PaymentSecret::new([1; 32])), ..terms.clone() }).await;
    assert_eq!(pair.outcome(probe).await, Some(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));
    let second = pair.send(1, 50_000_000, &terms).await;
    for part in [first, second] {
        assert_eq!(pair.outcome(part).await, None);
    }
    pair.stop().await;
}

/// Parts over a restart: what is not whole waits anew, and their time begins again.
#[tokio::test(flavor = "multi_thread")]
async fn parts_before_and_after_a_restart() {
    let mut pair = Pair::new(60_000).await;
    let (_, terms) = pair.invoice(|_| {}).await;
    let first = pair.send(0, 40_000_000, &terms).await;
    pair.arrived(1).await;
    let mut pair = pair.restart_payee().await;
    let second = pair.send(1, 50_000_000, &terms).await;
    for part in [first, second] {
        assert_eq!(pair.outcome(part).await, None);
    }
    pair.stop().await;
}

/// Copies of the payee's disk, made while it takes a payment in two parts, are started again, far from the payer: each
/// has taken both parts, or none.
#[tokio::test(flavor = "multi_thread")]
async fn killed_while_parts_are_taken() {
    let mut pair = Pair::new(60_000).await;
    let (made, terms) = pair.invoice(|request| request.hold = true).await;
    let parts = [pair.send(0, 40_000_000, &terms).await, pair.send(1, 50_000_000, &terms).await];
    pair.wait_for(terms.payment_hash, v1::InvoiceStatus::Held).await;
    let copies = tempfile::tempdir().unwrap();
    let (from, to) = (pair.payee_home.path().to_owned(), copies.path().to_owned());
    let is_over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let told = std::sync::Arc::clone(&is_over);
    let copier = std::thread::spawn(move || {
        let mut count = 0;
        while count < 2 || !told.load(std::sync::atomic::Ordering::Relaxed) {
            copy_as_after_a_crash(&from, &to.join(count.to_string()));
            count += 1;
        }
        count
    });
    let by_hash = Which::PaymentHash(made.payment_hash.clone());
    assert_eq!(pair.settle(by_hash).await.unwrap().status(), v1::InvoiceStatus::Paid);
    for part in parts {
        assert_eq!(pair.outcome(part).await, None);
    }
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    let count = copier.join().unwrap();
    let (chain, channels) = (pair.chain.clone(), pair.channels);
    pair.stop().await;
    for copy in 0..count {
        let revived = start(&copies.path().join(copy.to_string()), &chain).await;
        let get = v1::GetInvoiceRequest { payment_hash: made.payment_hash.clone() };
        let invoice = revived.invoices().await.get(get).await.unwrap().into_inner().invoice.unwrap();
        let registry = revived.node.registry();
        let open = || {
            let snapshots = channels.iter().filter_map(|id| registry.snapshot(*id));
            snapshots
                .flat_map(|snapshot| snapshot.htlcs.clone())
                .filter(|htlc| htlc.stage == "adding: irrevocable")
                .count()
        };
        match invoice.status() {
            v1::InvoiceStatus::Held => assert_eq!(open(), 2, "copy {copy}: nothing is decided"),
            v1::InvoiceStatus::Paid => {
                eventually("what is owed is fulfilled", || (open() == 0).then_some(())).await;
            }
            other => panic!("copy {copy}: {other:?}"),
        }
        revived.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hold_invoices_are_settled_or_cancelled_over_restarts() {
    let mut pair = Pair::new(60_000).await;
    let preimage = Preimage::new([0x55; 32]);
    let own = preimage.hash().0.to_vec();
    let (_, by_client) = pair.invoice(|request| (request.hold, request.payment_hash) = (true, own.clone())).await;
    let (_, by_node) = pair.invoice(|request| request.hold = true).await;
    let open = pair.settle(Which::Preimage(vec![0x55; 32])).await.unwrap_err();
    assert_eq!(reason(&open), ErrorReason::InvoiceNotHeld);
    // The hash where the preimage is due; and what is neither.
    let mistaken = pair.settle(Which::Preimage(by_node.payment_hash.0.to_vec())).await.unwrap_err();
    assert_eq!(reason(&mistaken), ErrorReason::InvalidField);
    assert!(mistaken.message().contains(&format!("{} is the payment hash", by_node.payment_hash)), "{mistaken:?}");
    let hint = v1::ErrorDetail::from_status(&mistaken).unwrap().hint;
    assert!(hint.contains("`millrace invoice settle --hash HASH`"), "{hint}");
    let unknown = pair.settle(Which::Preimage(vec![0x56; 32])).await.unwrap_err();
    assert_eq!(reason(&unknown), ErrorReason::NotFound);

    let first = [pair.send(0, 40_000_000, &by_client).await, pair.send(1, 50_000_000, &by_client).await];
    let second = pair.send(0, ASKED, &by_node).await;
    for terms in [&by_client, &by_node] {
        let held = pair.wait_for(terms.payment_hash, v1::InvoiceStatus::Held).await;
        assert_eq!(held.held_msat, Some(ASKED));
        assert_eq!((held.kind(), held.preimage.len()), (v1::InvoiceKind::Hold, 0));
        assert_eq!(held.settle_by_height, Some(pair.chain.height() + 50 - 22));
    }
    let pair = pair.restart_payee().await;
    pair.arrived(3).await;
    let none = pair.settle(Which::PaymentHash(own.clone())).await.unwrap_err();
    assert_eq!(reason(&none), ErrorReason::InvalidField, "the node does not know the preimage");
    let settled = pair.settle(Which::Preimage(vec![0x55; 32])).await.unwrap();
    assert_eq!((settled.received_msat, settled.parts.len()), (Some(ASKED), 2));
    for part in first {
        assert_eq!(pair.outcome(part).await, None);
    }
    let late = pair.cancel(by_client.payment_hash).await.unwrap_err();
    assert_eq!(reason(&late), ErrorReason::InvoiceAlreadyPaid);
    let cancelled = pair.cancel(by_node.payment_hash).await.unwrap();
    assert_eq!(cancelled.cancel_reason(), v1::InvoiceCancelReason::Asked);
    assert_eq!(pair.outcome(second).await, Some(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));
    let pair = pair.restart_payee().await;
    assert_eq!(pair.cancel(by_node.payment_hash).await.unwrap().status(), v1::InvoiceStatus::Cancelled, "again");
    assert_eq!(pair.settle(Which::Preimage(vec![0x55; 32])).await.unwrap(), settled, "again");
    let refused = pair.settle(Which::PaymentHash(by_node.payment_hash.0.to_vec())).await.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::InvoiceCancelled);
    let events = pair.payee.events().await;
    let told: Vec<_> = names(&events).into_iter().filter(|name| ["held", "paid", "cancelled"].contains(name)).collect();
    assert_eq!(told, ["held", "held", "paid", "cancelled"]);
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_held_goes_back_before_its_expiry() {
    let mut pair = Pair::new(60_000).await;
    let (_, terms) = pair.invoice(|request| request.hold = true).await;
    let parts = [pair.send(0, 40_000_000, &terms).await, pair.send(1, 50_000_000, &terms).await];
    let held = pair.wait_for(terms.payment_hash, v1::InvoiceStatus::Held).await;
    pair.mine(held.settle_by_height.unwrap() - pair.chain.height());
    // Nothing happens at the last block: settling is possible until the next one.
    assert_eq!(pair.shown(terms.payment_hash).await.status(), v1::InvoiceStatus::Held);
    pair.mine(1);
    let cancelled = pair.wait_for(terms.payment_hash, v1::InvoiceStatus::Cancelled).await;
    assert_eq!(cancelled.cancel_reason(), v1::InvoiceCancelReason::Deadline);
    for part in parts {
        assert_eq!(pair.outcome(part).await, Some(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));
    }
    let late = pair.settle(Which::PaymentHash(terms.payment_hash.0.to_vec())).await.unwrap_err();
    assert_eq!(reason(&late), ErrorReason::InvoiceCancelled);
    for channel_id in pair.channels {
        pair.payee.wait_until(channel_id, "the channel goes on", ChannelSnapshot::is_usable).await;
    }
    pair.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keysend_is_taken_once_for_each_hash() {
    let mut pair = Pair::new(60_000).await;
    let preimage = Preimage::new([0x66; 32]);
    let terms =
        Terms { payment_hash: preimage.hash(), secret: None, total: 5_000_000, keysend: Some(preimage.clone()) };
    let taken = pair.send(0, 5_000_000, &terms).await;
    assert_eq!(pair.outcome(taken).await, None);
    let row = pair.wait_for(terms.payment_hash, v1::InvoiceStatus::Paid).await;
    assert_eq!((row.kind(), row.received_msat, row.bolt11.as_str()), (v1::InvoiceKind::Keysend, Some(5_000_000), ""));
    let mut pair = pair.restart_payee().await;
    let again = pair.send(1, 5_000_000, &terms).await;
    assert_eq!(pair.outcome(again).await, Some(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));
    let wrong = Terms { payment_hash: Preimage::new([0x67; 32]).hash(), ..terms.clone() };
    let wrong = pair.send(1, 5_000_000, &wrong).await;
    assert_eq!(pair.outcome(wrong).await, Some(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));
    let events = pair.payee.events().await;
    let paid = events.iter().filter(|event| match event.event.as_ref().unwrap() {
        event::Event::InvoicePaid(paid) => paid.keysend,
        _ => false,
    });
    assert_eq!(paid.count(), 1);
    pair.stop().await;
}

/// Its hash stays its own, whatever the payer, or a hop of that payment, sends later: the shop would count it twice.
#[tokio::test(flavor = "multi_thread")]
async fn a_paid_invoice_that_is_out_of_memory_is_not_paid_again_by_its_preimage() {
    let mut pair = Pair::with(Differences { expired_kept_ms: 1, ..Differences::default() }).await;
    let (made, terms) = pair.invoice(|request| request.expiry_s = 2).await;
    let paid = pair.send(0, ASKED, &terms).await;
    assert_eq!(pair.outcome(paid).await, None);
    let row = pair.wait_for(terms.payment_hash, v1::InvoiceStatus::Paid).await;
    let preimage = Preimage::new(row.preimage.clone().try_into().unwrap());
    assert_eq!(preimage.hash(), terms.payment_hash);
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    for secret in [None, Some(PaymentSecret::new([9; 32])), terms.secret.clone()] {
        let keysend = Some(preimage.clone());
        let again = Terms { payment_hash: terms.payment_hash, secret, total: 2_000, keysend };
        let again = pair.send(1, 2_000, &again).await;
        assert_eq!(pair.outcome(again).await, Some(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));
    }
    let kept = pair.wait_for(terms.payment_hash, v1::InvoiceStatus::Paid).await;
    assert_eq!((kept.received_msat, &kept.bolt11), (Some(ASKED), &made.bolt11));
    let events = pair.payee.events().await;
    let paid = events.iter().filter(|event| matches!(event.event, Some(event::Event::InvoicePaid(_))));
    assert_eq!(paid.count(), 1);
    pair.stop().await;
}
