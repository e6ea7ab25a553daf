//! Forwarding through whole nodes: real journals and sockets, a chain that is made up.

#![allow(clippy::unwrap_used)]

mod hostile;
mod line;
mod stale;
#[path = "../support/mod.rs"]
mod support;
#[path = "../payments/world.rs"]
mod world;

use std::time::Duration;

use line::{Line, Outcome, Plan, alias, at_rest, fee, find, forwards, open, plain, usable};
use millrace_chain::SyncState;
use millrace_channel::Fact;
use millrace_channel::ledger::htlc::Removal;
use millrace_routing::failure::{FailureMessage, code};
use millrace_rpc::v1::{self, event};
use millrace_wire::{Msat, PaymentSecret, ShortChannelId};
use support::{FakeChain, Homes, TestNode, copy_as_after_a_crash, eventually, preimage};
use world::{World, start};

/// Alice, Bob and Carol, with a channel between each two neighbours; the second one's id.
async fn line_to_carol(homes: &Homes<3>) -> (Line, World, World, millrace_wire::ChannelId) {
    let chain = FakeChain::new();
    let alice = plain(1, &chain, homes[0].path()).await;
    let (bob, carol) = (start(homes[1].path(), &chain).await, start(homes[2].path(), &chain).await);
    let line = Line::new(alice, &bob, chain).await;
    bob.connect(&carol).await;
    let second = open(&bob.node, &carol.node, carol.node_id, &line.chain, 2_000_000).await;
    tell_height(&line, &[&bob, &carol]);
    (line, bob, carol, second)
}

/// Alice and Bob, and Charlie, who only has channels.
async fn line_to_charlie(homes: &Homes<3>) -> (Line, World, TestNode, millrace_wire::ChannelId) {
    let chain = FakeChain::new();
    let (alice, charlie) = (plain(1, &chain, homes[0].path()).await, plain(3, &chain, homes[2].path()).await);
    let bob = start(homes[1].path(), &chain).await;
    let line = Line::new(alice, &bob, chain).await;
    bob.node.peers().connect(charlie.id(), &charlie.address.to_string()).await.unwrap();
    let second = open(&bob.node, &charlie.node, charlie.id(), &line.chain, 2_000_000).await;
    tell_height(&line, &[&bob]);
    charlie.sync.send_replace(SyncState::Synced { height: line.chain.height() });
    (line, bob, charlie, second)
}

fn tell_height(line: &Line, worlds: &[&World]) {
    let height = line.chain.height();
    line.alice.sync.send_replace(SyncState::Synced { height });
    for world in worlds {
        world.sync.send_replace(SyncState::Synced { height });
    }
}

fn homes() -> Homes<3> {
    Homes::new()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_payment_over_bob_pays_carol_and_earns_him_his_fee() {
    let homes = homes();
    let (line, bob, carol, second) = line_to_carol(&homes).await;
    let height = line.chain.height();
    let plan = Plan::new(bob.node_id, carol.node_id, alias(&bob, second), 50_000_000, height);
    let sent = plan.clone().of(&carol.invoice(50_000_000).await).build();
    let Outcome::Paid(paid, times) = line.pay(&sent).await else { panic!("not paid") };
    assert_eq!(paid.hash(), sent.offer.payment_hash);
    let times = times.unwrap();
    assert_eq!((times.hops.len(), times.broken_at), (2, None), "Bob and Carol tell how long they held it");
    assert_eq!(at_rest(&bob.node, line.first).await.balances.local, Msat(50_000_000 + fee(50_000_000)));
    assert_eq!(at_rest(&bob.node, second).await.balances.remote, Msat(50_000_000));

    let refused = plan.of(&carol.invoice(60_000_000).await).build();
    let (hop, message) = line.failure(&refused).await;
    assert_eq!((hop, message.code()), (1, code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));

    let told = forwards(&bob).await;
    assert_eq!(told.forwards.len(), 2);
    assert_eq!(
        [told.forwards[0].outcome(), told.forwards[1].outcome()],
        [v1::ForwardOutcome::Failed, v1::ForwardOutcome::Settled]
    );
    let settled = &told.forwards[1];
    assert_eq!((settled.amount_out_msat, settled.fee_msat), (50_000_000, fee(50_000_000)));
    assert_eq!(
        (&settled.incoming_channel_id[..], &settled.outgoing_channel_id[..]),
        (&line.first.0[..], &second.0[..])
    );
    let totals = told.totals.unwrap();
    assert_eq!((totals.settled, totals.failed, totals.fees_msat), (1, 1, fee(50_000_000)));
    assert_eq!(ended(&bob).await, told.forwards.iter().rev().cloned().collect::<Vec<_>>());

    // Stopped in good order, without its view: it says the same.
    bob.stop().await;
    std::fs::remove_dir_all(homes[1].path().join("view")).unwrap();
    let bob = start(homes[1].path(), &line.chain).await;
    assert_eq!(forwards(&bob).await, told);
    bob.stop().await;
    carol.stop().await;
}

async fn ended(bob: &World) -> Vec<v1::Forward> {
    let events = bob.events().await.into_iter();
    let forward = |event: v1::Event| match event.event.unwrap() {
        event::Event::ForwardEnded(forward) => Some(forward),
        _ => None,
    };
    events.filter_map(forward).collect()
}

/// BOLT 4, "Failure Messages": what a hop on the way can raise, and what the last one can, as Alice reads it.
#[tokio::test(flavor = "multi_thread")]
async fn each_failure_is_read_by_the_sender() {
    let homes = homes();
    let (line, bob, carol, second) = line_to_carol(&homes).await;
    let height = line.chain.height();
    let usual = Plan::new(bob.node_id, carol.node_id, alias(&bob, second), 50_000_000, height);
    type Change = fn(&mut Plan, u32);
    let table: [(Change, usize, u16); 12] = [
        (|plan, _| plan.next = ShortChannelId(77), 0, code::UNKNOWN_NEXT_PEER),
        (|plan, _| plan.amount_in -= 1, 0, code::FEE_INSUFFICIENT),
        (|plan, _| plan.amount_in = 40_000_000, 0, code::FEE_INSUFFICIENT),
        (|plan, _| plan.expiry_in -= 1, 0, code::INCORRECT_CLTV_EXPIRY),
        (|plan, height| plan.expiry_out = height + 12, 0, code::EXPIRY_TOO_SOON),
        (|plan, height| plan.expiry_in = height + 2_017, 0, code::EXPIRY_TOO_FAR),
        (
            |plan, _| (plan.amount_in, plan.amount_out) = (1_900_000_000, 1_890_000_000),
            0,
            code::TEMPORARY_CHANNEL_FAILURE,
        ),
        (|plan, _| plan.final_amount += 1, 1, code::FINAL_INCORRECT_HTLC_AMOUNT),
        (|plan, _| plan.final_expiry += 1, 1, code::FINAL_INCORRECT_CLTV_EXPIRY),
        (|plan, _| plan.secret = PaymentSecret::new([1; 32]), 1, code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS),
        (|plan, _| plan.hash.0[0] ^= 1, 1, code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS),
        // Carol cannot read it: Bob says so, since she has no secret to say it with.
        (|plan, _| plan.hops[1] = plan.hops[0], 0, code::INVALID_ONION_HMAC),
    ];
    for (number, (change, hop, expected)) in table.into_iter().enumerate() {
        let mut plan = usual.clone().of(&carol.invoice(50_000_000).await);
        change(&mut plan, height);
        let (at, message) = line.failure(&plan.build()).await;
        assert_eq!((at, message.code()), (hop, expected), "row {number}: {message:?}");
        match message {
            FailureMessage::FeeInsufficient { amount, .. } => assert_eq!(amount, Msat(plan.amount_in)),
            FailureMessage::IncorrectCltvExpiry { expiry, .. } => assert_eq!(expiry.0, plan.expiry_out),
            _ => {}
        }
    }

    // What Bob himself cannot read.
    let garbled = |version: u8, key: u8| {
        let mut sent = usual.clone().to(&preimage(1)).build();
        sent.offer.onion.0[0] = version;
        if key != 0 {
            sent.offer.onion.0[1] = key;
        }
        sent
    };
    for (version, key, expected) in
        [(1, 0, code::INVALID_ONION_VERSION), (0, 9, code::INVALID_ONION_KEY), (0, 0, code::INVALID_ONION_HMAC)]
    {
        let mut sent = garbled(version, key);
        sent.offer.onion.0[200] ^= 1;
        let outcome = line.pay(&sent).await;
        assert!(matches!(outcome, Outcome::Malformed(code) if code == expected), "{outcome:?}");
    }

    // A preimage of Bob's own is nothing that a forward can have.
    let bobs = usual.clone().of(&bob.invoice(50_000_000).await).build();
    let (hop, message) = line.failure(&bobs).await;
    assert_eq!((hop, message.code()), (1, code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS));

    // Other terms; then no chain, and nobody there.
    let dear = v1::SetPolicyRequest {
        idempotency_key: "dear".to_owned(),
        channel_id: second.0.to_vec(),
        htlc_minimum_msat: Some(50_000_001),
        ..v1::SetPolicyRequest::default()
    };
    bob.channels().await.set_policy(dear).await.unwrap();
    let graced = usual.clone().of(&carol.invoice(50_000_000).await).build();
    assert!(matches!(line.pay(&graced).await, Outcome::Paid(..)), "the terms before are taken for ten minutes");
    bob.payments.policies().set(second, bob.payments.policies().of(&second));
    let small = usual.clone().of(&carol.invoice(50_000_000).await).build();
    let (hop, message) = line.failure(&small).await;
    assert!(matches!(message, FailureMessage::AmountBelowMinimum { amount: Msat(50_000_000), .. }) && hop == 0);

    bob.sync.send_replace(SyncState::Away { reason: "gone".to_owned() });
    let (hop, message) = line.failure(&usual.clone().of(&carol.invoice(50_000_000).await).build()).await;
    assert_eq!((hop, message.code()), (0, code::TEMPORARY_NODE_FAILURE));
    tell_height(&line, &[&bob]);

    bob.payments.policies().set(second, millraced::policy::ForwardPolicy::default());
    let invoice = carol.invoice(50_000_000).await;
    carol.stop().await;
    eventually("Carol is gone", || {
        bob.node.registry().snapshot(second).filter(|snapshot| !snapshot.is_online).map(|_| ())
    })
    .await;
    let (hop, message) = line.failure(&usual.of(&invoice).build()).await;
    assert_eq!((hop, message.code()), (0, code::TEMPORARY_CHANNEL_FAILURE));
    at_rest(&line.alice.node, line.first).await;
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn by_an_alias_and_by_the_other_channel_with_the_same_peer() {
    let homes = homes();
    let (line, bob, carol, narrow) = line_to_carol(&homes).await;
    let wide = open(&bob.node, &carol.node, carol.node_id, &line.chain, 5_000_000).await;
    tell_height(&line, &[&bob, &carol]);
    let height = line.chain.height();
    let snapshot = bob.node.registry().snapshot(narrow).unwrap();

    let real = Plan::new(bob.node_id, carol.node_id, snapshot.short_channel_id.unwrap(), 10_000_000, height);
    let sent = real.of(&carol.invoice(10_000_000).await).build();
    if snapshot.terms.channel_type.scid_alias {
        assert_eq!(line.failure(&sent).await, (0, FailureMessage::UnknownNextPeer));
    } else {
        assert!(matches!(line.pay(&sent).await, Outcome::Paid(..)));
    }
    // More than the narrow one may carry for one peer, which is half: it goes by the wide one.
    let much = Plan::new(bob.node_id, carol.node_id, alias(&bob, narrow), 1_200_000_000, height);
    let sent = much.of(&carol.invoice(1_200_000_000).await).build();
    let outcome = line.pay(&sent).await;
    assert!(matches!(outcome, Outcome::Paid(..)), "{outcome:?}");
    assert_eq!(at_rest(&bob.node, wide).await.balances.remote, Msat(1_200_000_000));
    bob.stop().await;
    carol.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_onion_is_taken_once_also_after_a_restart() {
    let homes = homes();
    let (line, bob, charlie, second) = line_to_charlie(&homes).await;
    let plan = Plan::new(bob.node_id, charlie.id(), alias(&bob, second), 5_000_000, line.chain.height());
    let sent = plan.to(&preimage(7)).build();
    line.offer(&sent).await;
    charlie.fulfill(second, &preimage(7)).await;
    assert!(matches!(line.outcome(&sent).await, Outcome::Paid(..)));
    let code = code::INVALID_ONION_HMAC;
    assert!(matches!(line.pay(&sent.again()).await, Outcome::Malformed(found) if found == code));
    bob.stop().await;
    let bob = start(homes[1].path(), &line.chain).await;
    usable(&bob.node, line.first).await;
    usable(&line.alice.node, line.first).await;
    assert!(matches!(line.pay(&sent.again()).await, Outcome::Malformed(found) if found == code));
    bob.stop().await;
}

/// Bob's connections break at some moment of a forward; what is on his disk then is all that he wakes up with.
#[tokio::test(flavor = "multi_thread")]
async fn killed_in_the_middle_of_a_forward_it_ends_once_and_well() {
    let homes = homes();
    let (line, mut bob, charlie, second) = line_to_charlie(&homes).await;
    let mut scenes: Vec<tempfile::TempDir> = Vec::new();
    let (mut paid, mut failed) = (0, 0);
    for round in 0..14u8 {
        let before = at_rest(&bob.node, line.first).await;
        at_rest(&bob.node, second).await;
        let proof = preimage(100 + round);
        let plan = Plan::new(bob.node_id, charlie.id(), alias(&bob, second), 5_000_000, line.chain.height());
        let sent = plan.to(&proof).build();
        line.offer(&sent).await;
        // Charlie fulfils early, late, or after the restart.
        let waits = round.is_multiple_of(3);
        let come = || {
            find(&charlie.fold, |fact| match fact {
                Fact::HtlcReceived { id, payment_hash, .. } if *payment_hash == proof.hash() => Some(*id),
                _ => None,
            })
        };
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 2)).await;
        if !waits && let Some(id) = come() {
            drop(charlie.node.registry().fulfill(second, id, proof.clone(), None, Vec::new()));
            tokio::time::sleep(Duration::from_millis(u64::from(round) / 2)).await;
        }
        for peer in [line.alice.id(), charlie.id()] {
            // One that is gone already needs no goodbye.
            let _gone = bob.node.peers().disconnect(peer, true);
        }
        let scene = tempfile::tempdir().unwrap();
        let from = scenes.last().map_or(homes[1].path(), tempfile::TempDir::path).to_owned();
        tokio::time::sleep(Duration::from_millis(30)).await;
        copy_as_after_a_crash(&from, scene.path());
        bob.stop().await;
        let _unlocked = std::fs::remove_file(scene.path().join("journal").join("lock"));
        bob = start(scene.path(), &line.chain).await;
        scenes.push(scene);
        for (node, channel) in [(&line.alice.node, line.first), (&charlie.node, second), (&bob.node, second)] {
            usable(node, channel).await;
        }
        // Whatever has come to Charlie by now is fulfilled.
        let removal = eventually("the forward ends", || {
            if let Some(id) = come() {
                drop(charlie.node.registry().fulfill(second, id, proof.clone(), None, Vec::new()));
            }
            line.removal(&sent)
        })
        .await;
        let after = at_rest(&bob.node, line.first).await;
        let earned = after.balances.local.0 - before.balances.local.0;
        let charlies = at_rest(&charlie.node, second).await;
        if let Removal::Fulfill { preimage, .. } = removal {
            paid += 1;
            assert_eq!((preimage, earned), (proof, 5_000_000 + fee(5_000_000)));
        } else {
            failed += 1;
            assert_eq!(earned, 0);
        }
        assert_eq!(charlies.balances.local, Msat(paid * 5_000_000), "round {round}");
        let carried = find(&charlie.fold, |fact| match fact {
            Fact::HtlcReceived { payment_hash, .. } if *payment_hash == sent.offer.payment_hash => Some(()),
            _ => None,
        });
        assert_eq!(carried.is_some(), matches!(line.removal(&sent), Some(Removal::Fulfill { .. })));
    }
    assert!(paid > 0, "{paid} paid, {failed} failed");
    let totals = forwards(&bob).await.totals.unwrap();
    assert_eq!((totals.settled, totals.fees_msat), (paid, paid * fee(5_000_000)));
    bob.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_changes_of_a_policy_at_the_same_time_none_is_lost() {
    let homes = homes();
    let (line, bob, charlie, second) = line_to_charlie(&homes).await;
    for round in 1..=20 {
        let change = |key: &str, change: fn(&mut v1::SetPolicyRequest, u32)| {
            let (idempotency_key, channel_id) = (format!("{key} {round}"), second.0.to_vec());
            let mut request = v1::SetPolicyRequest { idempotency_key, channel_id, ..v1::SetPolicyRequest::default() };
            change(&mut request, round);
            let bob = &bob;
            async move { bob.channels().await.set_policy(request).await.unwrap() }
        };
        tokio::join!(
            change("base", |request, round| request.fee_base_msat = Some(round.into())),
            change("ppm", |request, round| request.fee_ppm = Some(round)),
        );
        let policy = bob.payments.policies().of(&second);
        assert_eq!((policy.fee_base, policy.fee_ppm), (Msat(round.into()), round));
    }
    bob.stop().await;
    drop((charlie, line.alice));
}

#[tokio::test(flavor = "multi_thread")]
async fn policies_are_set_once_by_their_key_and_outlive_a_restart() {
    let homes = homes();
    let (line, bob, charlie, second) = line_to_charlie(&homes).await;
    let request = v1::SetPolicyRequest {
        idempotency_key: "k".to_owned(),
        channel_id: second.0.to_vec(),
        fee_base_msat: Some(5),
        htlc_maximum_msat: Some(9_000_000),
        ..v1::SetPolicyRequest::default()
    };
    let answer = bob.channels().await.set_policy(request.clone()).await.unwrap().into_inner();
    let policy = answer.policies[0].policy.unwrap();
    assert_eq!((policy.fee_base_msat, policy.fee_ppm, policy.htlc_maximum_msat), (5, 100, Some(9_000_000)));
    let all = v1::SetPolicyRequest {
        idempotency_key: "all".to_owned(),
        fee_ppm: Some(7),
        htlc_maximum_msat: Some(0),
        ..v1::SetPolicyRequest::default()
    };
    let answer = bob.channels().await.set_policy(all).await.unwrap().into_inner();
    assert_eq!(answer.policies.len(), 2);
    assert!(answer.policies.iter().all(|one| one.policy.unwrap().fee_ppm == 7));
    let wrong = v1::SetPolicyRequest {
        idempotency_key: "wrong".to_owned(),
        cltv_delta_blocks: Some(47),
        ..v1::SetPolicyRequest::default()
    };
    let refused = bob.channels().await.set_policy(wrong).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{refused}");
    // The same key changes nothing any more.
    let again = bob.channels().await.set_policy(request.clone()).await.unwrap().into_inner();
    assert_eq!(again.policies[0].policy.unwrap().fee_ppm, 100, "what was answered then");

    // Killed: from the journal. Stopped: from a checkpoint.
    let scene = tempfile::tempdir().unwrap();
    copy_as_after_a_crash(homes[1].path(), scene.path());
    bob.stop().await;
    let _unlocked = std::fs::remove_file(scene.path().join("journal").join("lock"));
    for _ in 0..2 {
        let bob = start(scene.path(), &line.chain).await;
        let get =
            v1::GetChannelRequest { channel: Some(v1::get_channel_request::Channel::ChannelId(second.0.to_vec())) };
        let shown = bob.channels().await.get(get).await.unwrap().into_inner().channel.unwrap().policy.unwrap();
        assert_eq!((shown.fee_base_msat, shown.fee_ppm, shown.htlc_maximum_msat), (5, 7, None));
        let again = bob.channels().await.set_policy(request.clone()).await.unwrap().into_inner();
        assert_eq!(again.policies[0].policy.unwrap().fee_ppm, 100);
        bob.stop().await;
    }
    drop((charlie, line.alice));
}
