//! Two nodes and their channels: opened, paid through, killed, started again, closed.

#![allow(clippy::unwrap_used)]

mod support;

use millrace_channel::Fact;
use millrace_channel::input::CloseOrder;
use millrace_wire::{FeeratePerKw, Msat};
use millraced::channels::{ChannelSnapshot, CommandError, NoFunding, OpenFailure, OpenProgress};
use millraced::entry::{Entry, Kind};
use millraced::facts::Telling;
use support::{
    FakeChain, Setup, copy_as_after_a_crash, eventually, is_closed, offer_of, open_between, preimage, start,
};

fn script(n: u8) -> bitcoin::ScriptBuf {
    bitcoin::ScriptBuf::from_bytes([vec![0, 20], vec![n; 20]].concat())
}

#[tokio::test(flavor = "multi_thread")]
async fn open_pay_both_ways_restart_and_close() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (a_setup, mut b_setup) = (Setup::new(1), Setup::new(2));
    let a = start(&a_setup, &chain, a_dir.path()).await;
    let mut b = start(&b_setup, &chain, b_dir.path()).await;
    b_setup.listen = b.address;
    a.connect(&b).await;
    let id = open_between(&a, &b, &chain, 1_000_000).await;

    let first = preimage(1);
    let paid = Entry::new(Kind::Payment, b"paid".to_vec());
    a.offer(id, &first, 300_000_000, vec![paid.clone()]).await;
    b.fulfill(id, &first).await;
    a.wait_fulfilled(&first).await;
    assert_eq!(b.fresh(id).await.balances.local, Msat(300_000_000));
    let back = preimage(2);
    b.offer(id, &back, 100_000_000, vec![]).await;
    a.fulfill(id, &back).await;
    b.wait_fulfilled(&back).await;
    assert_eq!(a.fresh(id).await.balances.local, Msat(800_000_000));
    assert!(a.fold.entries(Telling::Live).contains(&paid));

    // Stopped and started again, everything is as before.
    let told = b.fold.durable_facts(Telling::Live);
    let before = b.fresh(id).await;
    b.node.stop().await;
    a.wait_until(id, "the peer is gone", |snapshot| !snapshot.is_online).await;
    let refused = a.node.registry().offer(id, offer_of(&preimage(3), 1_000_000, 1_000), vec![]).await.unwrap();
    assert!(matches!(refused, Err(CommandError::Refused(_))), "{refused:?}");
    b = start(&b_setup, &chain, b_dir.path()).await;
    assert!(b.fold.durable_facts(Telling::Replay).is_empty(), "the checkpoint holds it all");
    assert!(told.iter().any(|(_, fact)| matches!(fact, Fact::OfferResolved { .. })));
    for node in [&a, &b] {
        node.wait_until(id, "they have found each other", ChannelSnapshot::is_usable).await;
    }
    let after = b.fresh(id).await;
    assert_eq!((after.balances, after.commitment_numbers), (before.balances, before.commitment_numbers));
    assert_eq!(after.opened_ms, before.opened_ms);
    let again = preimage(4);
    a.offer(id, &again, 50_000_000, vec![]).await;
    b.fulfill(id, &again).await;
    a.wait_fulfilled(&again).await;

    // Together.
    let order = CloseOrder { script: script(1), feerate: FeeratePerKw(1000), feerate_max: FeeratePerKw(5000) };
    a.node.registry().close(id, order).await.unwrap();
    eventually("a close is broadcast", || (!chain.mempool().is_empty()).then_some(())).await;
    chain.mine(101);
    for node in [&a, &b] {
        node.wait_until(id, "closed and buried", is_closed).await;
    }
    let gone = a.node.registry().offer(id, offer_of(&preimage(5), 1_000_000, 1_000), vec![]).await.unwrap();
    assert_eq!(gone, Err(CommandError::UnknownChannel(id)));
    a.node.stop().await;
    b.node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_leaves_is_what_was_told() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (mut a_setup, b_setup) = (Setup::new(1), Setup::new(2));
    let a = start(&a_setup, &chain, a_dir.path()).await;
    let b = start(&b_setup, &chain, b_dir.path()).await;
    a.connect(&b).await;
    let id = open_between(&a, &b, &chain, 1_000_000).await;
    for n in 1..20 {
        a.offer(id, &preimage(n), 5_000_000, vec![Entry::new(Kind::Payment, vec![n])]).await;
    }
    for n in 1..10 {
        b.fulfill(id, &preimage(n)).await;
        a.wait_fulfilled(&preimage(n)).await;
    }

    // What was told by now is on disk by now.
    let told = a.fold.durable_facts(Telling::Live);
    let entries = a.fold.entries(Telling::Live);
    let shown = a.snapshot(id);
    let crashed = tempfile::tempdir().unwrap();
    copy_as_after_a_crash(&a.dir, crashed.path());
    a_setup.listen = a.address;
    a.node.stop().await;
    let a = start(&a_setup, &chain, crashed.path()).await;
    let replayed = a.fold.durable_facts(Telling::Replay);
    assert!(replayed.len() >= told.len() && replayed[..told.len()] == told[..], "{told:#?}\n{replayed:#?}");
    // What is said of channels is written by a task of its own: between it and a channel there is no order.
    let of_channels = |entries: Vec<Entry>| -> Vec<Entry> {
        entries.into_iter().filter(|entry| entry.kind != Kind::Announce).collect()
    };
    assert!(of_channels(a.fold.entries(Telling::Replay)).starts_with(&of_channels(entries)));
    let after = a.snapshot(id);
    assert!(after.balances.remote >= shown.balances.remote);

    // Nothing hangs, nothing is lost.
    a.node.peers().connect(b.id(), &b.address.to_string()).await.unwrap();
    for n in 10..20 {
        b.fulfill(id, &preimage(n)).await;
        a.wait_fulfilled(&preimage(n)).await;
    }
    let (a_shows, b_shows) = (a.fresh(id).await, b.fresh(id).await);
    assert_eq!(a_shows.balances.remote, Msat(19 * 5_000_000));
    assert_eq!(b_shows.balances.local, Msat(19 * 5_000_000));
    assert!(a_shows.htlcs.is_empty() && b_shows.htlcs.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wallet_without_coins_fails_the_opening_and_nothing_else() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = start(&Setup::new(1), &chain, a_dir.path()).await;
    let b = start(&Setup::new(2), &chain, b_dir.path()).await;
    let unconnected = a.node.registry().open_channel(a.order(b.id(), 1_000_000)).unwrap().recv().await.unwrap();
    assert_eq!(unconnected, OpenProgress::Failed(OpenFailure::NotConnected(b.id())));
    a.connect(&b).await;
    a.wallet.is_empty.store(true, std::sync::atomic::Ordering::Relaxed);
    let mut progress = a.node.registry().open_channel(a.order(b.id(), 1_000_000)).unwrap();
    assert!(matches!(progress.recv().await.unwrap(), OpenProgress::Negotiated { .. }));
    let failed = progress.recv().await.unwrap();
    assert_eq!(failed, OpenProgress::Failed(OpenFailure::Wallet(NoFunding::Other("there are no coins".to_owned()))));
    let too_small = a.node.registry().open_channel(a.order(b.id(), 1_000)).unwrap().recv().await.unwrap();
    assert!(matches!(too_small, OpenProgress::Failed(OpenFailure::Refused(_))), "{too_small:?}");
    a.wallet.is_empty.store(false, std::sync::atomic::Ordering::Relaxed);
    open_between(&a, &b, &chain, 1_000_000).await;
}

/// Saying that one will fund a channel costs nothing: it gives no rights, and only so many may be said.
#[tokio::test(flavor = "multi_thread")]
async fn channels_that_are_only_promised_are_few_and_give_no_rights() {
    let chain = FakeChain::new();
    let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    let mut setup = Setup::new(1);
    setup.peers.max_without_channels = 1;
    let a = start(&setup, &chain, dirs[0].path()).await;
    let b = start(&Setup::new(2), &chain, dirs[1].path()).await;
    let c = start(&Setup::new(3), &chain, dirs[2].path()).await;
    b.node.peers().connect(a.id(), &a.address.to_string()).await.unwrap();
    let mut promised = 0;
    let why = loop {
        let mut progress = b.node.registry().open_channel(b.order(a.id(), 100_000)).unwrap();
        let end = loop {
            match progress.recv().await.unwrap() {
                OpenProgress::Negotiated { .. } => {}
                end => break end,
            }
        };
        match end {
            OpenProgress::Opened { .. } => promised += 1,
            OpenProgress::Failed(OpenFailure::PeerRefused(why)) => break why,
            other => panic!("{other:?}"),
        }
        assert!(promised < 20, "any number may be promised");
    };
    assert_eq!(promised, 5, "{why}");
    assert!(why.contains("5 openings with this node are under way"), "{why}");
    // B is still a stranger, and the only one that may be here.
    let refused = c.node.peers().connect(a.id(), &a.address.to_string()).await;
    assert!(
        refused.is_err()
            || eventually("c is turned away", || (!a.node.peers().is_connected(&c.id())).then_some(true)).await
    );
    // Once its channels are in blocks, B is no stranger any more, and may open others.
    chain.mine(6);
    for snapshot in a.node.registry().snapshots() {
        a.wait_until(snapshot.channel_id, "ready", ChannelSnapshot::is_usable).await;
    }
    c.node.peers().connect(a.id(), &a.address.to_string()).await.unwrap();
    eventually("c is let in", || a.node.peers().is_connected(&c.id()).then_some(())).await;
    open_between(&b, &a, &chain, 100_000).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_close_goes_on_chain_after_a_restart_too() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = start(&Setup::new(1), &chain, a_dir.path()).await;
    let b = start(&Setup::new(2), &chain, b_dir.path()).await;
    a.connect(&b).await;
    let id = open_between(&a, &b, &chain, 1_000_000).await;
    a.node.registry().force_close(id, "the test wants it".to_owned()).await.unwrap();
    let commitment = eventually("the commitment is broadcast", || chain.mempool().first().cloned()).await;
    assert_eq!(commitment.input[0].previous_output, a.snapshot(id).terms.funding_outpoint);
    b.wait_until(id, "the peer is told", |snapshot| snapshot.state == millraced::channels::ChannelState::OnChain).await;
    a.node.stop().await;
    chain.mine(1);
    let a = start(&Setup::new(1), &chain, a_dir.path()).await;
    a.fold
        .wait_for("the spend is seen", |fact| match fact {
            Fact::FundingSpent { txid, .. } if *txid == commitment.compute_txid() => Some(()),
            _ => None,
        })
        .await;
    eventually("the wallet is asked to claim", || a.wallet.claims.lock().unwrap().contains_key(&id).then_some(()))
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reorganisation_takes_the_funding_out_and_in_again() {
    let (chain, a_dir, b_dir) = (FakeChain::new(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let a = start(&Setup::new(1), &chain, a_dir.path()).await;
    let b = start(&Setup::new(2), &chain, b_dir.path()).await;
    a.connect(&b).await;
    let id = open_between(&a, &b, &chain, 1_000_000).await;
    let scid = a.snapshot(id).short_channel_id.unwrap();
    assert_eq!(a.node.registry().channel_by_scid(scid), Some(id));
    chain.disconnect(3);
    a.wait_until(id, "unconfirmed", |snapshot| snapshot.short_channel_id.is_none()).await;
    chain.mine(1);
    for node in [&a, &b] {
        node.wait_until(id, "confirmed again", |snapshot| snapshot.short_channel_id.is_some()).await;
    }
    let alias = a.snapshot(id).local_alias;
    assert_eq!(a.node.registry().channel_by_scid(alias), Some(id));
}
