//! Peers that break the rules of forwarding, or use them. Mallory has two channels with Bob, and between them is a tap, so
//! that he says what the test wants. What he does costs him one channel at most: by the other one, and over Bob's other
//! peers, payments go on.

use millrace_channel::Fact;
use millrace_channel::ledger::htlc::Removal;
use millrace_channel::tx::claim::ClaimKind;
use millrace_routing::failure::{Undecodable, code, decode_attributed};
use millrace_routing::invoice::Invoice;
use millrace_wire::message::{
    AttributionData, CommitmentSigned, OnionPacket, RevokeAndAck, UpdateAddHtlc, UpdateFailHtlc,
    UpdateFailMalformedHtlc, UpdateFulfillHtlc,
};
use millrace_wire::{ChannelId, CltvExpiry, HtlcId, Message, Msat, PaymentHash, Preimage, PublicKey, Signature};
use millraced::channels::{Accepted, ChannelSnapshot, ChannelState};

use crate::line::{DELTA, Line, Outcome, Plan, Sent, alias, at_rest, fee, find, open, plain, usable};
use crate::support::tap::{Tap, To};
use crate::support::{FakeChain, Homes, TestNode, eventually};
use crate::world::{World, rand_bytes, start};
use crate::{homes, tell_height};

const AMOUNT: u64 = 5_000_000;

/// Alice, Bob and Mallory. Bob has opened one channel with Mallory that is to stay.
struct Stage {
    line: Line,
    bob: World,
    mallory: TestNode,
    tap: Tap,
    steady: ChannelId,
    homes: Homes<3>,
}

/// An HTLC that has come to Mallory over a channel that he may lose.
struct Held {
    channel_id: ChannelId,
    id: HtlcId,
    proof: Preimage,
    sent: Sent,
}

fn secret() -> Preimage {
    Preimage::new([rand_bytes(), rand_bytes()].concat().try_into().unwrap())
}

impl Stage {
    async fn new() -> Self {
        let (chain, homes) = (FakeChain::new(), homes());
        let (alice, mallory) = (plain(1, &chain, homes[0].path()).await, plain(66, &chain, homes[2].path()).await);
        let bob = start(homes[1].path(), &chain).await;
        let line = Line::new(alice, &bob, chain).await;
        let tap = Tap::between(bob.node_key, mallory.key, mallory.address).await;
        bob.node.peers().connect(mallory.id(), &tap.address.to_string()).await.unwrap();
        let steady = open(&bob.node, &mallory.node, mallory.id(), &line.chain, 2_000_000).await;
        let stage = Self { line, bob, mallory, tap, steady, homes };
        stage.tell_height();
        stage
    }

    fn tell_height(&self) {
        tell_height(&self.line, &[&self.bob]);
    }

    fn mine(&self, blocks: u32) {
        self.line.chain.mine(blocks);
        self.tell_height();
    }

    /// One more channel, from Bob or from Mallory.
    async fn open(&self, is_bobs: bool) -> ChannelId {
        let (bob, mallory) = (&self.bob, &self.mallory);
        let chain = &self.line.chain;
        let channel_id = match is_bobs {
            true => open(&bob.node, &mallory.node, mallory.id(), chain, 1_000_000).await,
            false => open(&mallory.node, &bob.node, bob.node_id, chain, 1_000_000).await,
        };
        self.tell_height();
        channel_id
    }

    /// From Alice over Bob to Mallory.
    fn plan(&self, over: ChannelId) -> Plan {
        let height = self.line.chain.height();
        Plan::new(self.bob.node_id, self.mallory.id(), alias(&self.bob, over), AMOUNT, height)
    }

    async fn hold(&self, over: ChannelId) -> Held {
        let proof = secret();
        let sent = self.plan(over).to(&proof).build();
        self.line.offer(&sent).await;
        let (channel_id, id) = self.came(&proof.hash()).await;
        assert_eq!(channel_id, over);
        Held { channel_id, id, proof, sent }
    }

    /// An HTLC that is irrevocably with Mallory.
    async fn came(&self, hash: &PaymentHash) -> (ChannelId, HtlcId) {
        eventually("it comes to Mallory", || came(&self.mallory, hash)).await
    }

    /// Nobody but the channel in question has lost anything.
    async fn others_go_on(&self) {
        for node in [&self.bob.node, &self.mallory.node] {
            usable(node, self.steady).await;
        }
        self.pay_over(self.steady).await;
    }

    async fn pay_over(&self, over: ChannelId) {
        let held = self.hold(over).await;
        self.fulfill(&held).await;
        assert!(matches!(self.line.outcome(&held.sent).await, Outcome::Paid(paid, _) if paid == held.proof));
    }

    async fn fulfill(&self, held: &Held) {
        let registry = self.mallory.node.registry();
        registry.fulfill(held.channel_id, held.id, held.proof.clone(), None, Vec::new()).await.unwrap().unwrap();
    }

    async fn bobs(&self, channel_id: ChannelId, what: &str, is_so: impl Fn(&ChannelSnapshot) -> bool) {
        self.bob.wait_until(channel_id, what, is_so).await;
    }

    /// What Bob has told Mallory of what is wrong.
    fn complaints(&self, since: usize) -> Vec<Message> {
        let told = self.tap.said(since).into_iter().filter(|(to, _)| *to == To::Right).map(|(_, message)| message);
        told.filter(|message| matches!(message, Message::Error(_) | Message::Warning(_))).collect()
    }

    /// Both have found each other again.
    async fn reconnected(&self, since: usize, channels: [ChannelId; 2]) {
        eventually("both say where they stand", || {
            let said = self.tap.said(since);
            let has_said = |to: To, id: ChannelId| {
                said.iter().any(|(whom, message)| {
                    *whom == to && matches!(message, Message::ChannelReestablish(one) if one.channel_id == id)
                })
            };
            channels.iter().all(|id| has_said(To::Left, *id) && has_said(To::Right, *id)).then_some(())
        })
        .await;
        for id in channels {
            usable(&self.bob.node, id).await;
            usable(&self.mallory.node, id).await;
        }
    }

    async fn stop(self) {
        let Self { line, bob, mallory, tap, homes, .. } = self;
        drop(tap);
        bob.stop().await;
        line.alice.node.stop().await;
        mallory.node.stop().await;
        drop(homes);
    }
}

fn came(node: &TestNode, hash: &PaymentHash) -> Option<(ChannelId, HtlcId)> {
    node.fold.news().iter().find_map(|news| {
        let millraced::facts::Source::Channel(channel_id) = news.source else { return None };
        news.items.iter().find_map(|item| match item {
            millraced::facts::Item::Fact { fact: Fact::HtlcReceived { id, payment_hash, .. }, .. }
                if payment_hash == hash =>
            {
                Some((channel_id, *id))
            }
            _ => None,
        })
    })
}

/// What becomes of the channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// It is failed.
    Fails,
    /// Bob hangs up, and takes nothing of it.
    HangsUp,
}

/// What Mallory says of an HTLC that he holds.
struct Attack {
    name: &'static str,
    says: fn(&Held) -> Vec<Vec<u8>>,
    then: Then,
    /// Whether Alice is paid by it nevertheless.
    pays: bool,
}

const fn attack(name: &'static str, then: Then, says: fn(&Held) -> Vec<Vec<u8>>) -> Attack {
    Attack { name, says, then, pays: false }
}

fn bytes(message: impl Into<Message>) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.into().encode(&mut bytes).unwrap();
    bytes
}

fn fulfill(held: &Held, id: HtlcId, preimage: Preimage) -> Vec<u8> {
    bytes(UpdateFulfillHtlc { channel_id: held.channel_id, id, preimage, attribution: None })
}

fn fail(held: &Held, id: HtlcId, attribution: Option<Box<AttributionData>>) -> Vec<u8> {
    bytes(UpdateFailHtlc { channel_id: held.channel_id, id, reason: vec![1; 292], attribution })
}

fn malformed(held: &Held, failure_code: u16) -> Vec<u8> {
    let (channel_id, id) = (held.channel_id, held.id);
    bytes(UpdateFailMalformedHtlc { channel_id, id, sha256_of_onion: [0; 32], failure_code })
}

fn add(held: &Held, change: impl FnOnce(&mut UpdateAddHtlc)) -> Vec<Vec<u8>> {
    let mut add = UpdateAddHtlc {
        channel_id: held.channel_id,
        id: HtlcId(0),
        amount: Msat(1),
        payment_hash: held.proof.hash(),
        cltv_expiry: CltvExpiry(500),
        onion: Box::new(OnionPacket([2; 1366])),
        path_key: None,
    };
    change(&mut add);
    vec![bytes(add)]
}

fn attribution() -> Option<Box<AttributionData>> {
    Some(Box::new(AttributionData { hold_times: [0xff; 80], hmacs: [0xff; 840] }))
}

/// Takes bytes off the TLV of a message that ends with attribution data, and says so in its length, which has three bytes.
fn with_attribution_of(mut message: Vec<u8>, length: usize) -> Vec<u8> {
    let begins = message.len() - 920;
    message.truncate(begins + length);
    message.splice(begins - 3..begins, [vec![0xfd], u16::try_from(length).unwrap().to_be_bytes().to_vec()].concat());
    message
}

const UNKNOWN: HtlcId = HtlcId(7_000);

/// Core Lightning, eclair and LDK have all been taken in by one of these once.
const ATTACKS: [Attack; 16] = [
    attack("fulfils with another preimage", Then::Fails, |held| vec![fulfill(held, held.id, secret())]),
    attack("fulfils what was never added", Then::Fails, |held| vec![fulfill(held, UNKNOWN, held.proof.clone())]),
    attack("fails what was never added", Then::Fails, |held| vec![fail(held, UNKNOWN, None)]),
    attack("fails as malformed with a code of another kind", Then::Fails, |held| {
        vec![malformed(held, code::TEMPORARY_NODE_FAILURE)]
    }),
    attack("fails as malformed with no code", Then::Fails, |held| vec![malformed(held, 0)]),
    attack("fails it twice", Then::HangsUp, |held| vec![fail(held, held.id, None), fail(held, held.id, None)]),
    attack("fails it, and then with the preimage fulfils it", Then::HangsUp, |held| {
        vec![fail(held, held.id, None), fulfill(held, held.id, held.proof.clone())]
    }),
    Attack {
        pays: true,
        ..attack("fulfils it, and then fails it", Then::HangsUp, |held| {
            vec![fulfill(held, held.id, held.proof.clone()), fail(held, held.id, None)]
        })
    },
    attack("adds one with an id that is not next", Then::Fails, |held| add(held, |add| add.id = HtlcId(5))),
    attack("adds nothing", Then::Fails, |held| add(held, |add| add.amount = Msat(0))),
    attack("adds more than he has", Then::Fails, |held| add(held, |add| add.amount = Msat(900_000_000))),
    attack("adds one that expires in seconds", Then::Fails, |held| {
        add(held, |add| add.cltv_expiry = CltvExpiry(500_000_000))
    }),
    attack("reveals a secret that is none", Then::Fails, |held| {
        let next_per_commitment_point = point();
        let channel_id = held.channel_id;
        vec![bytes(RevokeAndAck { channel_id, per_commitment_secret: [5; 32], next_per_commitment_point })]
    }),
    attack("signs anything", Then::Fails, |held| {
        let signature = Signature::from_compact(&[1; 64]).unwrap();
        let signed = CommitmentSigned { channel_id: held.channel_id, signature, htlc_signatures: Vec::new() };
        vec![fail(held, held.id, None), bytes(signed)]
    }),
    attack("cuts a removal short", Then::HangsUp, |held| {
        let whole = fulfill(held, held.id, held.proof.clone());
        vec![whole[..whole.len() - 1].to_vec()]
    }),
    attack("tells hold times of another length", Then::HangsUp, |held| {
        vec![with_attribution_of(fail(held, held.id, attribution()), 919)]
    }),
];

fn point() -> PublicKey {
    crate::support::wild::key(5).public_key(secp256k1::SECP256K1)
}

/// BOLT 2, "Removing an HTLC" and "Adding an HTLC".
#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_rules_costs_one_channel_or_one_connection() {
    let stage = Stage::new().await;
    for Attack { name, says, then, pays } in &ATTACKS {
        println!("Mallory {name}");
        let prey = stage.open(true).await;
        let held = stage.hold(prey).await;
        let (_, since) = stage.tap.mark();
        for message in says(&held) {
            stage.tap.say_bytes(To::Left, &message).await;
        }
        match then {
            Then::Fails => {
                let told = eventually(name, || stage.complaints(since).first().cloned()).await;
                let Message::Error(error) = &told else { panic!("{name}: {told:?}") };
                assert_eq!(error.channel_id, prey, "{name}: of this channel alone");
                stage.bobs(prey, name, |snapshot| snapshot.state == ChannelState::OnChain).await;
                eventually("its commitment is broadcast", || (!stage.line.chain.mempool().is_empty()).then_some(()))
                    .await;
                stage.mine(1);
            }
            Then::HangsUp => {
                let told = eventually(name, || stage.complaints(since).first().cloned()).await;
                assert!(matches!(told, Message::Warning(_)), "{name}: {told:?}");
                stage.reconnected(since, [prey, stage.steady]).await;
            }
        }
        if *pays {
            let paid = stage.line.outcome(&held.sent).await;
            assert!(matches!(paid, Outcome::Paid(ref proof, _) if *proof == held.proof), "{name}: {paid:?}");
        } else {
            assert!(stage.line.removal(&held.sent).is_none(), "{name}: Alice is told nothing of it");
        }
        stage.others_go_on().await;
        if *then == Then::HangsUp {
            // As it should have been said at once; and the channel goes on as well.
            stage.fulfill(&held).await;
            assert!(matches!(stage.line.outcome(&held.sent).await, Outcome::Paid(..)), "{name}");
            stage.pay_over(prey).await;
            at_rest(&stage.bob.node, prey).await;
        }
        usable(&stage.bob.node, stage.line.first).await;
    }
    stage.stop().await;
}

/// LDK, CVE-2020-26896 of lnd: whoever is paid need not be whoever is asked to forward.
#[tokio::test(flavor = "multi_thread")]
async fn an_invoices_preimage_is_not_revealed_for_a_forward_even_on_chain() {
    let stage = Stage::new().await;
    let prey = stage.open(false).await;
    let invoice = Invoice::parse(&stage.bob.invoice(AMOUNT).await).unwrap();
    let mut plan = stage.plan(stage.steady);
    (plan.hash, plan.secret) = (invoice.payment_hash, invoice.payment_secret.clone());
    let sent = plan.build();
    let offered = stage.mallory.node.registry().offer(prey, sent.offer.clone(), Vec::new()).await.unwrap();
    assert!(matches!(offered, Ok(Accepted::Offered(_))));
    // It has gone round; now Mallory goes on chain with what he has offered, and waits.
    assert_eq!(stage.came(&invoice.payment_hash).await.0, stage.steady);
    stage.mallory.node.registry().force_close(prey, "to see what Bob claims".to_owned()).await.unwrap();
    eventually("the commitment is broadcast", || (!stage.line.chain.mempool().is_empty()).then_some(())).await;
    stage.mine(6);
    stage.bobs(prey, "it is on chain", |snapshot| snapshot.state == ChannelState::OnChain).await;
    stage.mine(6);
    // By then, a received HTLC with a known preimage would be claimed.
    let is_preimage = |kind: &ClaimKind| matches!(kind, ClaimKind::HtlcPreimage { .. });
    if let Some(claims) = stage.bob.coins.claims.lock().unwrap().get(&prey) {
        assert!(!claims.sweeps.iter().any(|sweep| is_preimage(&sweep.claim.kind)), "{claims:?}");
        assert!(claims.htlc_txs.iter().all(|claim| claim.preimage.is_none()), "{claims:?}");
    }
    let reveals = |(to, message): &(To, Message)| *to == To::Right && matches!(message, Message::UpdateFulfillHtlc(_));
    assert!(!stage.tap.said(0).iter().any(reveals));
    // The other channel, over which it still is under way, is untouched.
    stage.others_go_on().await;
    // And the invoice can be paid by whoever is to pay it.
    let mut direct = stage.plan(stage.steady);
    (direct.amount_in, direct.expiry_in) = (AMOUNT, direct.expiry_out);
    (direct.hash, direct.secret) = (invoice.payment_hash, invoice.payment_secret.clone());
    let paid = stage.line.pay(&direct.build_direct()).await;
    assert!(matches!(paid, Outcome::Paid(proof, _) if proof.hash() == invoice.payment_hash));
    stage.stop().await;
}

/// In over one channel and out over another, or over the same one: nothing is gained by it but the fee, by Bob.
#[tokio::test(flavor = "multi_thread")]
async fn what_goes_round_in_a_circle_is_paid_once_and_costs_the_fee() {
    let stage = Stage::new().await;
    let circle = stage.open(false).await;
    let sums = async || {
        let mut sum = 0;
        for id in [circle, stage.steady, stage.line.first] {
            sum += at_rest(&stage.bob.node, id).await.balances.local.0;
        }
        sum
    };
    let steady = stage.steady;
    for (round, out) in [circle, steady, steady, steady, steady, circle].into_iter().enumerate() {
        let before = sums().await;
        let proof = secret();
        let sent = stage.plan(out).to(&proof).build();
        let registry = stage.mallory.node.registry();
        registry.offer(circle, sent.offer.clone(), Vec::new()).await.unwrap().unwrap();
        let arrived = eventually("it comes back to Mallory, or is failed", || {
            came(&stage.mallory, &proof.hash()).map(Some).or_else(|| resolved(&stage.mallory, &sent).map(|_| None))
        })
        .await;
        let Some((channel_id, id)) = arrived else {
            assert_eq!((sums().await, round), (before, 0), "Bob has nothing in it, at first");
            continue;
        };
        registry.fulfill(channel_id, id, proof.clone(), None, Vec::new()).await.unwrap().unwrap();
        let removal = eventually("it is over", || resolved(&stage.mallory, &sent)).await;
        assert!(removal.preimage().is_some());
        assert_eq!(sums().await, before + fee(AMOUNT));
    }
    stage.others_go_on().await;
    stage.stop().await;
}

fn resolved(node: &TestNode, sent: &Sent) -> Option<Removal> {
    find(&node.fold, |fact| match fact {
        Fact::OfferResolved { origin, removal, .. } if *origin == sent.offer.origin => Some(removal.clone()),
        _ => None,
    })
}

/// What the last hop gives back is any bytes of any length, with any attribution.
#[tokio::test(flavor = "multi_thread")]
async fn failures_that_nobody_can_read_go_back_and_name_nobody() {
    let stage = Stage::new().await;
    let prey = stage.open(true).await;
    for length in [0, 1, 31, 32, 33, 292, 1_024, 1_025, 30_000, 65_000] {
        for attribution in [None, attribution()] {
            // Both do not fit into one message.
            if length == 65_000 && attribution.is_some() {
                continue;
            }
            let held = stage.hold(prey).await;
            let registry = stage.mallory.node.registry();
            let reason = vec![7; length];
            registry.fail(held.channel_id, held.id, reason, attribution, Vec::new()).await.unwrap().unwrap();
            let removal = eventually("Alice is told", || stage.line.removal(&held.sent)).await;
            let Removal::Fail { reason, attribution } = removal else { panic!("{length}: {removal:?}") };
            assert_eq!(reason.len(), length.min(1_024), "as much as could be a failure");
            let read = decode_attributed(&held.sent.secrets, &reason, attribution.as_deref());
            assert!(matches!(read.failure, Err(Undecodable::Nobodys { .. })), "{length}: {read:?}");
            assert_eq!((read.hold_times.hops.len(), read.hold_times.broken_at), (1, Some(1)), "Bob's holds");
        }
    }
    at_rest(&stage.bob.node, prey).await;
    stage.others_go_on().await;
    stage.stop().await;
}

/// Downstream, an HTLC is neither fulfilled nor failed, and nothing is said any more.
#[tokio::test(flavor = "multi_thread")]
async fn a_silent_peer_loses_the_channel_with_the_htlc_and_nobody_else_does() {
    let stage = Stage::new().await;
    let prey = stage.open(true).await;
    let held = stage.hold(prey).await;
    stage.tap.rewrite(|to, message| {
        // He still listens, and answers pings.
        let is_dumb = to == To::Left && message.channel_id().is_some();
        if is_dumb { Vec::new() } else { vec![(to, message)] }
    });
    let expires = held.sent.offer.cltv_expiry.0 - DELTA;
    // Some blocks more, in which Mallory could still fulfil it.
    stage.mine(expires - stage.line.chain.height() + 20);
    stage.bobs(prey, "Bob waits for him no longer", |snapshot| snapshot.state == ChannelState::OnChain).await;
    stage.tap.pass();
    stage.mine(1);
    assert!(stage.line.removal(&held.sent).is_none(), "Mallory may still have the preimage");
    stage.others_go_on().await;
    eventually("Alice's channel holds nothing but this, for which there is time left", || {
        let alices = stage.line.alice.node.registry().snapshot(stage.line.first)?;
        (alices.is_usable() && alices.htlc_counts.local == 1).then_some(())
    })
    .await;
    stage.stop().await;
}

/// An onion that was used comes by the other channel, and again after it has been used.
#[tokio::test(flavor = "multi_thread")]
async fn an_onion_is_taken_once_whichever_channel_it_comes_by() {
    let stage = Stage::new().await;
    let [one, other] = [stage.open(false).await, stage.open(false).await];
    let proof = secret();
    let sent = stage.plan(stage.steady).to(&proof).build();
    let registry = stage.mallory.node.registry();
    registry.offer(one, sent.offer.clone(), Vec::new()).await.unwrap().unwrap();
    let (channel_id, id) = stage.came(&proof.hash()).await;
    let refused = async |over: ChannelId| {
        let again = sent.again();
        registry.offer(over, again.offer.clone(), Vec::new()).await.unwrap().unwrap();
        let removal = eventually("it is refused", || resolved(&stage.mallory, &again)).await;
        assert!(matches!(removal, Removal::Malformed { failure_code: code::INVALID_ONION_HMAC, .. }), "{removal:?}");
    };
    refused(other).await;
    refused(one).await;
    registry.fulfill(channel_id, id, proof, None, Vec::new()).await.unwrap().unwrap();
    eventually("the first one is paid", || resolved(&stage.mallory, &sent)?.preimage().map(|_| ())).await;
    refused(other).await;
    stage.others_go_on().await;
    stage.stop().await;
}

/// Mallory pays to Charlie, who is his, and never lets it end. Bob's channel with Charlie is for others, too.
#[tokio::test(flavor = "multi_thread")]
async fn one_peer_cannot_fill_a_channel_by_all_of_its_own() {
    let stage = Stage::new().await;
    let charlies_home = Homes::<1>::new();
    let charlie = plain(4, &stage.line.chain, charlies_home[0].path()).await;
    stage.bob.node.peers().connect(charlie.id(), &charlie.address.to_string()).await.unwrap();
    let target = open(&stage.bob.node, &charlie.node, charlie.id(), &stage.line.chain, 2_000_000).await;
    let ways = [stage.open(false).await, stage.open(false).await];
    let plan = |msat: u64| {
        let height = stage.line.chain.height();
        Plan::new(stage.bob.node_id, charlie.id(), alias(&stage.bob, target), msat, height)
    };
    // Slots: half of 483, whichever of his channels they come by.
    let registry = stage.mallory.node.registry();
    let sent: Vec<Sent> = (0..260).map(|_| plan(1_000_000).to(&secret()).build()).collect();
    for (number, one) in sent.iter().enumerate() {
        registry.offer(ways[number % 2], one.offer.clone(), Vec::new()).await.unwrap().unwrap();
    }
    let refused = || sent.iter().filter(|one| resolved(&stage.mallory, one).is_some()).count();
    let arrived = || charlie.node.registry().snapshot(target).map_or(0, |snapshot| snapshot.htlc_counts.remote);
    eventually("each is refused or held", || (refused() + arrived() == 260).then_some(())).await;
    assert_eq!((arrived(), refused()), (241, 19));
    for one in sent.iter().filter(|one| resolved(&stage.mallory, one).is_some()) {
        let Some(Removal::Fail { reason, attribution }) = resolved(&stage.mallory, one) else { panic!("no failure") };
        let read = decode_attributed(&one.secrets, &reason, attribution.as_deref()).failure.unwrap();
        assert_eq!((read.hop, read.message.code()), (0, code::TEMPORARY_CHANNEL_FAILURE));
    }
    pay_charlie(&stage, &charlie, target, plan(1_000_000)).await;
    stage.others_go_on().await;
    // All of it comes back; then the other half of what the channel holds.
    for htlc in charlie.node.registry().snapshot(target).unwrap().htlcs.iter() {
        let registry = charlie.node.registry();
        registry.fail(target, htlc.id, vec![0; 292], None, Vec::new()).await.unwrap().unwrap();
    }
    for id in ways {
        at_rest(&stage.mallory.node, id).await;
    }
    at_rest(&stage.bob.node, target).await;
    let large: Vec<Sent> = (0..3).map(|_| plan(400_000_000).to(&secret()).build()).collect();
    for (one, way) in large.iter().zip([ways[0], ways[1], ways[0]]) {
        registry.offer(way, one.offer.clone(), Vec::new()).await.unwrap().unwrap();
        eventually("it is refused or held", || {
            let came = came(&charlie, &one.offer.payment_hash).is_some();
            (came || resolved(&stage.mallory, one).is_some()).then_some(())
        })
        .await;
    }
    let held: Vec<bool> = large.iter().map(|one| came(&charlie, &one.offer.payment_hash).is_some()).collect();
    assert_eq!(held, [true, true, false], "two of them are less than half, three are more");
    pay_charlie(&stage, &charlie, target, plan(400_000_000)).await;
    stage.others_go_on().await;
    charlie.node.stop().await;
    stage.stop().await;
    drop(charlies_home);
}

async fn pay_charlie(stage: &Stage, charlie: &TestNode, target: ChannelId, plan: Plan) {
    let proof = secret();
    let sent = plan.to(&proof).build();
    stage.line.offer(&sent).await;
    charlie.fulfill(target, &proof).await;
    assert!(matches!(stage.line.outcome(&sent).await, Outcome::Paid(..)), "others have their share");
}
