//! Channels that end on a real chain: everything that is ours arrives in the wallet, whoever closes, whatever the form
//! of the commitment, with a mempool that refuses the commitment alone, across restarts and with blocks that pass by.
#![allow(clippy::unwrap_used)]

mod ends;
mod helped;
mod reserve;
mod world;

use bitcoin::Txid;
use ends::{CAPACITY, End, HALF, Owner, bids, disconnect, exchange, open, terms};
use millrace_chain::broadcast::Status;
use millrace_channel::phase::Phase;
use millrace_channel::{Command, CommitmentFormat};
use millrace_wire::{FeeratePerKw, HtlcId, Msat, Sat};
use world::World;

/// The coins of each wallet before the channel.
const COINS: [u64; 3] = [400_000, 300_000, 200_000];
const COINS_SUM: u64 = 900_000;
/// When the HTLCs expire, in blocks from the opening.
const EXPIRY: u32 = 30;

/// A channel with two HTLCs each way. Alice knows the preimage of Bob's first; Bob learns that of hers (the id is
/// returned) only once a commitment is in a block, lest he close as well.
async fn scene(world: &mut World, format: CommitmentFormat, feerate: FeeratePerKw) -> (End, End, u32, HtlcId) {
    let (alice, bob) = (Owner::new(1), Owner::new(2));
    world.follow(&[&alice, &bob], &mut []).await;
    for owner in [&alice, &bob] {
        for amount in COINS {
            let script = owner.wallet.new_destination().await.unwrap();
            world.pay(&script, Sat(amount), &[&alice, &bob]).await;
        }
    }
    let mut terms = terms(&alice, &bob, format);
    let output = millrace_channel::tx::funding::output_of(&terms);
    terms.funding_outpoint = world.pay(&output.script_pubkey, CAPACITY, &[&alice, &bob]).await;
    let (mut alice, mut bob) = open(world, alice, bob, &terms, feerate);
    let expiry = world.height().0 + EXPIRY;
    let mut offered = Vec::new();
    let mut received = Vec::new();
    for (index, amount) in (0_u8..).zip([60_000_000, 50_000_000]) {
        offered.push(alice.offer(Msat(amount), 1 + index, expiry));
        received.push(bob.offer(Msat(amount), 11 + index, expiry));
    }
    exchange(&mut alice, &mut bob);
    disconnect(&mut alice, &mut bob);
    alice.fulfill(received[0], 11);
    (alice, bob, expiry, offered[0])
}

fn close(end: &mut End) -> Txid {
    end.command(Command::ForceClose { reason: "by hand".to_owned() });
    end.commitment.as_ref().unwrap().compute_txid()
}

/// Mines and claims until both channels are closed for good.
async fn play_out(world: &mut World, alice: &mut End, bob: &mut End, until: u32) {
    while world.height().0 < until + 40 {
        alice.until_sent().await;
        bob.until_sent().await;
        world.mine(1, &mut [alice, bob]).await;
        if [&*alice, &*bob].iter().all(|end| *end.channel.phase() == Phase::Closed) {
            return;
        }
    }
    panic!("not closed: {:?} {:?}", alice.channel.unclaimed_outputs(), bob.channel.unclaimed_outputs());
}

/// Each has what was his, less fees: HTLCs went both ways in equal amounts.
async fn assert_settled(alice: &End, bob: &End) {
    for (name, end) in [("alice", alice), ("bob", bob)] {
        let gain = end.confirmed().await.0 - COINS_SUM;
        assert!((HALF.0 - 60_000..HALF.0).contains(&gain), "{name} got {gain}");
        assert_eq!(end.claimer.status().borrow().claimable(), Sat::ZERO);
        let balance = end.owner.wallet.balance().await.unwrap();
        assert_eq!(balance.locked, Sat::ZERO, "{name}: coins are still promised");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_and_a_commitment_that_the_mempool_refuses_alone() {
    let mut world = World::start(&["-maxmempool=5"]).await;
    let (mut alice, mut bob, expiry, first_offer) =
        scene(&mut world, CommitmentFormat::Anchors, FeeratePerKw::FLOOR).await;
    world.fill_mempool(400_000, 2_000_000, &mut [&mut alice, &mut bob]).await;
    // The estimates follow with the next block; the mempool stays full enough.
    world.mine_empty(&mut [&mut alice, &mut bob]).await;
    let commitment = close(&mut alice);
    let alone = world.bitcoind.test_accept(std::slice::from_ref(alice.commitment.as_ref().unwrap())).await.unwrap();
    assert!(alone[0].reason.as_ref().is_some_and(|reason| reason.contains("fee not met")), "{alone:?}");
    let status = alice.until_sent().await;
    let [(_, child, _)] = bids(&status)[..] else { panic!("{status:?}") };
    let mempool = world.regtest.mempool().unwrap();
    assert!(mempool.contains(&commitment) && mempool.contains(&child));

    // Restarted now, the task knows its child again and makes no other.
    let mut alice = alice.restart(&world).await;
    let status = alice.until_sent().await;
    assert_eq!(bids(&status)[0].1, child);

    for _ in 0..6 {
        world.mine(1, &mut [&mut alice, &mut bob]).await;
        if !world.regtest.mempool().unwrap().contains(&commitment) {
            break;
        }
    }
    assert!(matches!(alice.channel.phase(), Phase::OnChain(on_chain) if on_chain.spend.is_some()));
    bob.fulfill(first_offer, 1);
    let status = alice.until_sent().await;
    assert!(!bids(&status).is_empty(), "an HTLC transaction with a fee of the wallet's");
    let before = bids(&status);
    let mut alice = alice.restart(&world).await;
    assert_eq!(bids(&alice.until_sent().await), before, "what the mempool has is accepted");
    play_out(&mut world, &mut alice, &mut bob, expiry).await;
    assert_settled(&alice, &bob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn static_remotekey() {
    let mut world = World::start(&[]).await;
    let (mut alice, mut bob, expiry, first_offer) =
        scene(&mut world, CommitmentFormat::StaticRemotekey, FeeratePerKw(1_000)).await;
    let commitment = close(&mut alice);
    for _ in 0..100 {
        if alice.broadcaster.status(&commitment) == Some(Status::InMempool) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    world.mine(1, &mut [&mut alice, &mut bob]).await;
    bob.fulfill(first_offer, 1);
    let before = bids(&bob.until_sent().await);
    assert_eq!(before.len(), 2, "to_remote, and the HTLC whose preimage he knows: {before:?}");
    assert_ne!(before[0].1, before[1].1, "what is contested goes apart");
    let mut bob = bob.restart(&world).await;
    assert_eq!(bids(&bob.until_sent().await), before);
    play_out(&mut world, &mut alice, &mut bob, expiry).await;
    assert_settled(&alice, &bob).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bids_rise_while_blocks_pass_without_them() {
    let mut world = World::start(&[]).await;
    let (mut alice, mut bob, expiry, first_offer) =
        scene(&mut world, CommitmentFormat::Anchors, FeeratePerKw::FLOOR).await;
    let commitment = close(&mut alice);
    let first = bids(&alice.until_sent().await);
    assert_eq!(first.len(), 1, "a child: {first:?}");
    // All blocks are empty, up to five before the deadline.
    while world.height().0 < expiry - 5 {
        world.mine_empty(&mut [&mut alice, &mut bob]).await;
    }
    let risen = |old: Sat| {
        move |status: &millraced::claims::ClaimsStatus| bids(status).first().is_some_and(|(.., fee)| *fee > old)
    };
    let second = bids(&alice.until("a child that pays more", risen(first[0].2)).await);
    assert_ne!(first[0].1, second[0].1);
    let mempool = world.regtest.mempool().unwrap();
    assert!(mempool.contains(&commitment) && mempool.contains(&second[0].1) && !mempool.contains(&first[0].1));

    world.mine(1, &mut [&mut alice, &mut bob]).await;
    bob.fulfill(first_offer, 1);
    let (alices, bobs) = (bids(&alice.until_sent().await), bids(&bob.until_sent().await));
    let contested = alices[0].0;
    let of = |bids: &[(bitcoin::OutPoint, Txid, Sat)], wanted| {
        bids.iter().find(|(outpoint, ..)| *outpoint == wanted).map(|bid| bid.2)
    };
    let htlc_of_bob = bob.claims.as_ref().unwrap().sweeps.iter().find(|sweep| sweep.deadline.is_some()).unwrap();
    let htlc_of_bob = htlc_of_bob.claim.outpoint;
    let before = (of(&alices, contested).unwrap(), of(&bobs, htlc_of_bob).unwrap());
    for _ in 0..2 {
        world.mine_empty(&mut [&mut alice, &mut bob]).await;
    }
    alice.until("alice bids more", |status| of(&bids(status), contested).is_some_and(|fee| fee > before.0)).await;
    bob.until("bob bids more", |status| of(&bids(status), htlc_of_bob).is_some_and(|fee| fee > before.1)).await;
    play_out(&mut world, &mut alice, &mut bob, expiry).await;
    assert_settled(&alice, &bob).await;
}
