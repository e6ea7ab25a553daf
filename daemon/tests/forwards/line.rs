//! Three nodes in a line: Alice, who only has channels; Bob, who is a whole node; and at the end either Carol, who is one
//! too, or Charlie, who does with an HTLC what the test says.

use std::path::Path;
use std::sync::Arc;

use millrace_chain::SyncState;
use millrace_channel::Fact;
use millrace_channel::Offer;
use millrace_channel::ledger::htlc::{Origin, Removal};
use millrace_routing::SharedSecret;
use millrace_routing::failure::{Decoded, FailureMessage, HoldTimes, decode_attributed, hold_times};
use millrace_routing::invoice::Invoice;
use millrace_routing::onion::{FinalPayload, ForwardPayload, Hop, Payload, build};
use millrace_rpc::v1::forwards_client::ForwardsClient;
use millrace_rpc::v1::{self};
use millrace_wire::{
    ChannelId, CltvExpiry, FeeratePerKw, Msat, OnionPacket, PaymentHash, PaymentSecret, Preimage, PublicKey, Sat,
    ShortChannelId,
};
use millraced::channels::{ChannelSnapshot, OpenOrder, OpenProgress};
use millraced::node::Node;
use secp256k1::SecretKey;

use crate::support::{FakeChain, PATIENCE, TestNode, Witnessing, eventually};
use crate::world::{World, rand_bytes};

/// What Bob asks for by default: 1,000 msat, 100 millionths, 80 blocks.
pub(crate) const DELTA: u32 = 80;
/// Blocks that Carol's invoices ask for.
pub(crate) const FINAL: u32 = 42;

/// What Bob charges for so much.
pub(crate) const fn fee(msat: u64) -> u64 {
    1_000 + msat / 10_000
}

pub(crate) struct Line {
    pub(crate) chain: FakeChain,
    pub(crate) alice: TestNode,
    pub(crate) first: ChannelId,
}

/// What Alice sends.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) offer: Offer,
    pub(crate) secrets: Vec<SharedSecret>,
}

/// What becomes of it.
#[derive(Debug)]
pub(crate) enum Outcome {
    Paid(Preimage, Option<HoldTimes>),
    Failed(Decoded, HoldTimes),
    Malformed(u16),
}

/// A payment over Bob, as Alice would make it: to be changed before it is sent.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) hops: Vec<PublicKey>,
    pub(crate) next: ShortChannelId,
    pub(crate) hash: PaymentHash,
    pub(crate) secret: PaymentSecret,
    pub(crate) amount_in: u64,
    pub(crate) expiry_in: u32,
    pub(crate) amount_out: u64,
    pub(crate) expiry_out: u32,
    pub(crate) final_amount: u64,
    pub(crate) final_expiry: u32,
}

impl Plan {
    /// On Bob's usual terms, with nothing to spare.
    pub(crate) fn new(bob: PublicKey, last: PublicKey, next: ShortChannelId, msat: u64, height: u32) -> Self {
        let expiry = height + FINAL;
        Self {
            hops: vec![bob, last],
            next,
            hash: PaymentHash([0; 32]),
            secret: PaymentSecret::new([0; 32]),
            amount_in: msat + fee(msat),
            expiry_in: expiry + DELTA,
            amount_out: msat,
            expiry_out: expiry,
            final_amount: msat,
            final_expiry: expiry,
        }
    }

    pub(crate) fn of(mut self, bolt11: &str) -> Self {
        let invoice = Invoice::parse(bolt11).unwrap();
        self.hash = invoice.payment_hash;
        self.secret = invoice.payment_secret;
        self
    }

    pub(crate) fn to(mut self, preimage: &Preimage) -> Self {
        self.hash = preimage.hash();
        self
    }

    pub(crate) fn build(&self) -> Sent {
        let session = SecretKey::from_slice(&[rand_bytes(), rand_bytes()].concat()).unwrap();
        let (amount, expiry) = (Msat(self.amount_out), CltvExpiry(self.expiry_out));
        let last = FinalPayload::new(
            Msat(self.final_amount),
            CltvExpiry(self.final_expiry),
            PaymentSecret::new(*self.secret.as_bytes()),
            None,
        );
        let hops = [
            Hop {
                node_id: self.hops[0],
                payload: Payload::Forward(ForwardPayload { next: self.next, amount, expiry }),
            },
            Hop { node_id: self.hops[1], payload: Payload::Final(last) },
        ];
        let built = build(&session, &hops, &self.hash).unwrap();
        self.with(built.packet, built.shared_secrets)
    }

    /// To Bob himself.
    pub(crate) fn build_direct(&self) -> Sent {
        let session = SecretKey::from_slice(&[rand_bytes(), rand_bytes()].concat()).unwrap();
        let secret = PaymentSecret::new(*self.secret.as_bytes());
        let last = FinalPayload::new(Msat(self.amount_in), CltvExpiry(self.expiry_in), secret, None);
        let built =
            build(&session, &[Hop { node_id: self.hops[0], payload: Payload::Final(last) }], &self.hash).unwrap();
        self.with(built.packet, built.shared_secrets)
    }

    /// With this onion.
    pub(crate) fn with(&self, onion: Box<OnionPacket>, secrets: Vec<SharedSecret>) -> Sent {
        let id = [rand_bytes(), rand_bytes()].concat().try_into().unwrap();
        let offer = Offer {
            amount: Msat(self.amount_in),
            payment_hash: self.hash,
            cltv_expiry: CltvExpiry(self.expiry_in),
            onion,
            path_key: None,
            origin: Origin::Payment { id, attempt: 0 },
        };
        Sent { offer, secrets }
    }
}

impl Sent {
    /// The same once more: the same onion, another HTLC.
    pub(crate) fn again(&self) -> Self {
        let id = [rand_bytes(), rand_bytes()].concat().try_into().unwrap();
        let offer = Offer { origin: Origin::Payment { id, attempt: 0 }, ..self.offer.clone() };
        Self { offer, secrets: self.secrets.clone() }
    }
}

impl Line {
    /// Alice with a channel to Bob. Bob calls her, so that he finds her again.
    pub(crate) async fn new(alice: TestNode, bob: &World, chain: FakeChain) -> Self {
        bob.node.peers().connect(alice.id(), &alice.address.to_string()).await.unwrap();
        let first = open(&alice.node, &bob.node, bob.node_id, &chain, 2_000_000).await;
        bob.sync.send_replace(SyncState::Synced { height: chain.height() });
        alice.sync.send_replace(SyncState::Synced { height: chain.height() });
        Self { chain, alice, first }
    }

    /// Sends, and waits for the end.
    pub(crate) async fn pay(&self, sent: &Sent) -> Outcome {
        self.offer(sent).await;
        self.outcome(sent).await
    }

    pub(crate) async fn offer(&self, sent: &Sent) {
        let registry = self.alice.node.registry();
        registry.offer(self.first, sent.offer.clone(), Vec::new()).await.unwrap().unwrap();
    }

    pub(crate) async fn outcome(&self, sent: &Sent) -> Outcome {
        let removal = eventually("Alice's HTLC is resolved", || self.removal(sent)).await;
        match removal {
            Removal::Fulfill { preimage, .. } => {
                let attribution = find(&self.alice.fold, |fact| match fact {
                    Fact::OfferAttributed { origin, attribution } if *origin == sent.offer.origin => {
                        Some(attribution.clone())
                    }
                    _ => None,
                });
                Outcome::Paid(preimage, attribution.map(|data| hold_times(&sent.secrets, &data)))
            }
            Removal::Fail { reason, attribution } => {
                let read = decode_attributed(&sent.secrets, &reason, attribution.as_deref());
                Outcome::Failed(read.failure.unwrap(), read.hold_times)
            }
            Removal::Malformed { failure_code, .. } => Outcome::Malformed(failure_code),
        }
    }

    pub(crate) fn removal(&self, sent: &Sent) -> Option<Removal> {
        find(&self.alice.fold, |fact| match fact {
            Fact::OfferResolved { origin, removal, .. } if *origin == sent.offer.origin => Some(removal.clone()),
            _ => None,
        })
    }

    /// Which hop fails, and why.
    pub(crate) async fn failure(&self, sent: &Sent) -> (usize, FailureMessage) {
        match self.pay(sent).await {
            Outcome::Failed(Decoded { hop, message }, times) => {
                assert_eq!(times.broken_at.filter(|broken| *broken == 0), None, "Bob vouches for his time");
                (hop, message)
            }
            other => panic!("{other:?}"),
        }
    }
}

pub(crate) fn find<T>(fold: &Arc<Witnessing>, pick: impl Fn(&Fact) -> Option<T>) -> Option<T> {
    let news = fold.news();
    news.iter().flat_map(|news| &news.items).find_map(|item| match item {
        millraced::facts::Item::Fact { fact, .. } => pick(fact),
        millraced::facts::Item::Entry(_) => None,
    })
}

/// Opens a channel from `a` to `b`.
pub(crate) async fn open(a: &Node, b: &Node, b_id: PublicKey, chain: &FakeChain, capacity: u64) -> ChannelId {
    let order = OpenOrder {
        peer: b_id,
        capacity: Sat(capacity),
        push: Msat(0),
        funding_feerate: FeeratePerKw(1000),
        zero_conf: false,
        announce: false,
        to_self_delay: None,
        htlc_minimum: None,
        max_in_flight: None,
        upfront_shutdown_script: None,
        when_opened: None,
    };
    // Who was called may not have noticed yet.
    eventually("the peer is there", || a.peers().is_connected(&b_id).then_some(())).await;
    let mut progress = a.registry().open_channel(order).unwrap();
    let channel_id = loop {
        match tokio::time::timeout(PATIENCE, progress.recv()).await.unwrap().unwrap() {
            OpenProgress::Negotiated { .. } => {}
            OpenProgress::Opened { channel_id, .. } => break channel_id,
            OpenProgress::Failed(failure) => panic!("{failure}"),
        }
    };
    eventually("the funding is broadcast", || (!chain.mempool().is_empty()).then_some(())).await;
    chain.mine(3);
    for node in [a, b] {
        usable(node, channel_id).await;
    }
    channel_id
}

pub(crate) async fn usable(node: &Node, channel_id: ChannelId) {
    eventually("the channel is usable", || {
        node.registry().snapshot(channel_id).filter(|snapshot| snapshot.is_usable()).map(|_| ())
    })
    .await;
}

/// What Bob calls a channel.
pub(crate) fn alias(bob: &World, channel_id: ChannelId) -> ShortChannelId {
    bob.node.registry().snapshot(channel_id).unwrap().local_alias
}

/// Waits until nothing is in flight over a channel.
pub(crate) async fn at_rest(node: &Node, channel_id: ChannelId) -> Arc<ChannelSnapshot> {
    eventually("nothing is in flight", || {
        let snapshot = node.registry().snapshot(channel_id)?;
        (snapshot.htlc_counts.local + snapshot.htlc_counts.remote == 0 && snapshot.is_usable()).then_some(snapshot)
    })
    .await
}

/// Bob's forwards, as he tells them.
pub(crate) async fn forwards(bob: &World) -> v1::ListForwardsResponse {
    let mut client = ForwardsClient::new(bob.link().await);
    client.list(v1::ListForwardsRequest::default()).await.unwrap().into_inner()
}

/// A node that does nothing by itself.
pub(crate) async fn plain(seed: u8, chain: &FakeChain, dir: &Path) -> TestNode {
    crate::support::start(&crate::support::Setup::new(seed), chain, dir).await
}
