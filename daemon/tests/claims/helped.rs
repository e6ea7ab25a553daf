//! The mempool has the peer's commitment, and ours is refused as a rival of it: a child of our anchor gets theirs confirmed.

use bitcoin::Transaction;
use millrace_channel::{Channel, Command, CommitmentFormat, Effect, Effects};
use millrace_wire::FeeratePerKw;

use crate::ends::{End, POLICY, bids};
use crate::world::World;
use crate::{assert_settled, close, play_out, scene};

/// The commitment that an end would broadcast as it stands.
fn commitment_of(end: &End) -> Transaction {
    let mut bytes = Vec::new();
    end.channel.snapshot(&mut bytes);
    let mut copy = Channel::restore(&bytes, POLICY, |_| end.owner.channel_keys()).unwrap();
    let mut fx = Effects::default();
    copy.on_command(Command::ForceClose { reason: "a copy".to_owned() }, &mut fx).unwrap();
    let tx = |effect: Effect| if let Effect::Broadcast(found) = effect { Some(found.tx) } else { None };
    fx.list.into_iter().find_map(tx).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_peers_current_commitment() {
    let mut world = World::start(&[]).await;
    let (mut alice, mut bob, expiry, first_offer) =
        scene(&mut world, CommitmentFormat::Anchors, FeeratePerKw::FLOOR).await;
    let theirs = commitment_of(&bob);
    world.bitcoind.send(&theirs).await.unwrap();
    let ours = close(&mut alice);
    let status = alice.until_sent().await;
    let [(anchor, child, fee)] = bids(&status)[..] else { panic!("{status:?}") };
    assert_eq!(anchor.txid, theirs.compute_txid());
    assert!(fee.0 > 0);
    let mempool = world.regtest.mempool().unwrap();
    assert!(mempool.contains(&theirs.compute_txid()) && mempool.contains(&child) && !mempool.contains(&ours));

    // Restarted now, the task knows its child again and makes no other.
    let mut alice = alice.restart(&world).await;
    assert_eq!(bids(&alice.until_sent().await)[0].1, child);

    world.mine(1, &mut [&mut alice, &mut bob]).await;
    assert!(!world.regtest.mempool().unwrap().contains(&theirs.compute_txid()), "it is in a block");
    bob.fulfill(first_offer, 1);
    play_out(&mut world, &mut alice, &mut bob, expiry).await;
    assert_settled(&alice, &bob).await;
}
