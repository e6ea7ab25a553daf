//! What keeps the rules of BOLT 2, and is meant badly.

use millrace_channel::ledger::htlc::Removal;
use millrace_channel::tx::claim::ClaimKind;
use millrace_routing::failure::{Undecodable, code, decode_attributed};
use millrace_routing::invoice::Invoice;
use millrace_wire::{ChannelId, Message, PaymentHash};
use millraced::channels::{Accepted, ChannelState};

use super::{AMOUNT, Stage, attribution, came, resolved, secret};
use crate::line::{DELTA, Outcome, Plan, Sent, alias, at_rest, fee, open, plain};
use crate::support::tap::To;
use crate::support::{Homes, TestNode, eventually};

/// CVE-2020-26896: whoever is asked to forward is not thereby paid.
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
    stage.silence_mallory();
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

/// The transaction that would end it does not come into a block: the channel that the HTLC came by must not be lost as well.
#[tokio::test(flavor = "multi_thread")]
async fn a_close_that_does_not_confirm_costs_no_other_channel() {
    let stage = Stage::new().await;
    let prey = stage.open(true).await;
    let held = stage.hold(prey).await;
    stage.silence_mallory();
    let expires = held.sent.offer.cltv_expiry.0;
    stage.mine_empty(expires - DELTA - stage.line.chain.height() + 20);
    stage.bobs(prey, "Bob waits for him no longer", |snapshot| snapshot.state == ChannelState::OnChain).await;
    stage.tap.pass();
    stage.mine_empty(expires - stage.line.chain.height() - 4);
    stage.others_go_on().await;
    assert!(stage.line.removal(&held.sent).is_none(), "Mallory may still have the preimage");
    stage.mine_empty(1);
    let outcome = stage.line.outcome(&held.sent).await;
    let Outcome::Failed(decoded, _) = outcome else { panic!("{outcome:?}") };
    assert_eq!((decoded.hop, decoded.message.code()), (0, code::PERMANENT_CHANNEL_FAILURE));
    stage.mine_empty(10);
    eventually("Alice's channel holds nothing, and can be used", || {
        let alices = stage.line.alice.node.registry().snapshot(stage.line.first)?;
        assert_eq!(alices.state, ChannelState::Normal, "{:?}", alices.last_error);
        (alices.is_usable() && alices.htlc_counts.local == 0).then_some(())
    })
    .await;
    stage.others_go_on().await;
    stage.stop().await;
}

/// An onion that was used comes by the other channel, before it has been used up, and after that.
#[tokio::test(flavor = "multi_thread")]
async fn an_onion_is_taken_once_whichever_channel_it_comes_by() {
    let stage = Stage::new().await;
    let ways = [stage.open(false).await, stage.open(false).await];
    let registry = stage.mallory.node.registry();
    for _ in 0..5 {
        let proof = secret();
        let sent = stage.plan(stage.steady).to(&proof).build();
        // All at once: only one can be the first.
        let copies: Vec<Sent> = std::iter::once(sent.clone()).chain((0..5).map(|_| sent.again())).collect();
        for (number, copy) in copies.iter().enumerate() {
            drop(registry.offer(ways[number % 2], copy.offer.clone(), Vec::new()));
        }
        let (channel_id, id) = stage.came(&proof.hash()).await;
        eventually("the others are refused", || (refused(&stage, &copies) == 5).then_some(())).await;
        // Once more while it is held, and when it is paid.
        let late = [sent.again(), sent.again()];
        registry.offer(ways[0], late[0].offer.clone(), Vec::new()).await.unwrap().unwrap();
        eventually("it is refused", || (refused(&stage, &late) == 1).then_some(())).await;
        registry.fulfill(channel_id, id, proof, None, Vec::new()).await.unwrap().unwrap();
        let paid = |one: &Sent| resolved(&stage.mallory, one).is_some_and(|removal| removal.preimage().is_some());
        eventually("one is paid", || (copies.iter().filter(|copy| paid(copy)).count() == 1).then_some(())).await;
        registry.offer(ways[1], late[1].offer.clone(), Vec::new()).await.unwrap().unwrap();
        eventually("it is refused", || (refused(&stage, &late) == 2).then_some(())).await;
    }
    stage.others_go_on().await;
    stage.stop().await;
}

/// How many were refused as BOLT 4 wants it of an onion that was used.
fn refused(stage: &Stage, sent: &[Sent]) -> usize {
    let is_refused = |removal: Removal| match removal {
        Removal::Malformed { failure_code, .. } => failure_code == code::INVALID_ONION_HMAC,
        Removal::Fail { .. } | Removal::Fulfill { .. } => false,
    };
    sent.iter().filter(|one| resolved(&stage.mallory, one).is_some_and(is_refused)).count()
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
    // All of it comes back; then the other half of what the channel holds. What the others have paid may still be on its way
    // out of the channel.
    let is_mallorys = |hash: &PaymentHash| sent.iter().any(|one| one.offer.payment_hash == *hash);
    let snapshot = charlie.node.registry().snapshot(target).unwrap();
    for htlc in snapshot.htlcs.iter().filter(|htlc| is_mallorys(&htlc.payment_hash)) {
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
