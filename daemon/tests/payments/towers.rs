//! Watchtowers: what they are told, what waits for them, and what does not. The tower is a real one, in this process.

use std::path::Path;
use std::time::Duration;

use bitcoin::consensus::encode::deserialize;
use bitcoin::{BlockHash, Network, OutPoint, Transaction};
use millrace_channel::Side;
use millrace_journal::Options;
use millrace_rpc::v1::towers_client::TowersClient;
use millrace_rpc::v1::{self, ErrorReason};
use millrace_watchtower::keeper::{self, Desk};
use millrace_watchtower::server::{self, Context};
use millrace_wire::{BlockHeight, ChainHash, ChannelId};
use secp256k1::{PublicKey, SECP256K1, SecretKey};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::reason;
use crate::support::{FakeChain, PATIENCE, eventually};
use crate::world::{Differences, Link, World, open_between, pay_request, rand_bytes, start, start_with};

/// A tower that listens.
struct Site {
    desk: Desk,
    address: String,
    stop: watch::Sender<bool>,
    serving: tokio::task::JoinHandle<()>,
    keeper: std::thread::JoinHandle<()>,
}

fn tower_key() -> SecretKey {
    SecretKey::from_slice(&[5; 32]).unwrap()
}

fn tower_id() -> PublicKey {
    tower_key().public_key(SECP256K1)
}

impl Site {
    /// In this folder, at this address if it is one it had before.
    async fn start(folder: &Path, address: &str) -> Self {
        Self::with_key(folder, address, tower_key()).await
    }

    async fn with_key(folder: &Path, address: &str, key: SecretKey) -> Self {
        let options = Options { segment_bytes: 1 << 20, reserve_bytes: 1 << 20, ..Options::default() };
        let (keeper, durability) = keeper::open(&folder.join("journal"), options).unwrap();
        let (desk, keeper) = Desk::open(keeper).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = watch::channel(false);
        let chain_hash = ChainHash::using_genesis_block_const(Network::Regtest);
        let context = Context { desk: desk.clone(), durability, key, chain_hash };
        let serving = tokio::spawn(server::serve(listener, context, stopped));
        Self { desk, address, stop, serving, keeper }
    }

    async fn allow(&self, client: PublicKey) {
        let _allowed = self.desk.ask(move |keeper| keeper.allow(client, 100)).await.unwrap().unwrap();
    }

    async fn allow_blobs(&self, client: PublicKey) {
        let _allowed = self.desk.ask(move |keeper| keeper.allow_blobs(client, 10_000)).await.unwrap().unwrap();
    }

    /// What it takes by penalties of others once these are in a block.
    async fn takes(&self, txs: Vec<Transaction>) -> Vec<OutPoint> {
        let hash: BlockHash = bitcoin::hashes::Hash::hash(b"a block");
        let found = self.desk.ask(move |keeper| {
            let _connected = keeper.connect(BlockHeight(1_000), hash, &txs);
            keeper.tower().vault().to_take().iter().map(|loot| loot.outpoint()).collect()
        });
        found.await.unwrap()
    }

    /// The lowest commitment of each channel whose secret it does not have.
    async fn next(&self) -> Vec<(ChannelId, u64)> {
        let all = self.desk.ask(|keeper| {
            let channels = keeper.tower().channels();
            channels.map(|(_, watched)| (watched.registration.channel_id(), watched.next().0)).collect()
        });
        all.await.unwrap()
    }

    async fn stop(self) -> String {
        let Self { desk, address, stop, serving, keeper } = self;
        stop.send_replace(true);
        serving.await.unwrap();
        drop(desk);
        tokio::task::spawn_blocking(move || keeper.join().unwrap()).await.unwrap();
        address
    }
}

async fn client(world: &World) -> TowersClient<Link> {
    TowersClient::new(world.link().await)
}

async fn add(world: &World, address: &str) -> v1::Tower {
    add_as(world, address, v1::TowerMode::Compact).await.unwrap()
}

async fn add_as(world: &World, address: &str, mode: v1::TowerMode) -> Result<v1::Tower, tonic::Status> {
    add_one(world, &tower_id(), address, mode).await
}

async fn add_one(
    world: &World,
    tower: &PublicKey,
    address: &str,
    mode: v1::TowerMode,
) -> Result<v1::Tower, tonic::Status> {
    let request = v1::AddTowerRequest {
        idempotency_key: hex::encode(rand_bytes()),
        tower: tower.serialize().to_vec(),
        address: address.to_owned(),
        mode: mode.into(),
    };
    Ok(client(world).await.add(request).await?.into_inner().tower.unwrap())
}

async fn remove(world: &World) -> Result<(), tonic::Status> {
    let request =
        v1::RemoveTowerRequest { idempotency_key: hex::encode(rand_bytes()), tower: tower_id().serialize().to_vec() };
    client(world).await.remove(request).await.map(drop)
}

async fn shown(world: &World) -> v1::TowerStatus {
    let request = v1::GetTowerStatusRequest::default();
    client(world).await.get_status(request).await.unwrap().into_inner().towers.remove(0)
}

/// Waits until the tower is as it is to be.
async fn until(world: &World, what: &str, is_so: impl Fn(&v1::TowerStatus) -> bool) -> v1::TowerStatus {
    let wait = async {
        loop {
            let status = shown(world).await;
            if is_so(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

async fn until_relied_on(world: &World) -> v1::TowerStatus {
    until(world, "it is relied on", |status| status.tower.as_ref().is_some_and(|tower| tower.relied_on)).await
}

fn has_all(status: &v1::TowerStatus, id: ChannelId) -> bool {
    let of = status.channels.iter().find(|channel| channel.channel_id == id.0);
    of.is_some_and(|channel| channel.revoked > 0 && channel.acknowledged == channel.revoked)
}

async fn pay(from: &World, to: &World) -> Result<(), tonic::Status> {
    let invoice = to.invoice(10_000_000).await;
    let paid = from.pay(pay_request(&invoice)).await?;
    assert_eq!(paid.status(), v1::PaymentStatus::Succeeded, "{paid:?}");
    Ok(())
}

/// Pays until it is refused; how often that went well.
async fn pay_until_refused(from: &World, to: &World) -> (usize, tonic::Status) {
    for paid in 0..50 {
        if let Err(refused) = pay(from, to).await {
            return (paid, refused);
        }
    }
    panic!("nothing was refused");
}

/// How many of the peer's commitments are revoked, by the node itself.
async fn revoked(world: &World, id: ChannelId) -> u64 {
    let shown = world.node.registry().fresh_snapshot(id).await.unwrap();
    shown.commitment_numbers.of(Side::Remote).0
}

fn with_bound(lag_max: u32) -> Differences {
    Differences { lag_max, ..Differences::default() }
}

struct Stage {
    chain: FakeChain,
    alice: World,
    bob: World,
    homes: [tempfile::TempDir; 3],
    site: Site,
    id: ChannelId,
}

/// Two nodes with a channel, and a tower that Alice may use.
async fn stage(lag_max: u32) -> Stage {
    let homes = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let chain = FakeChain::new();
    let alice = start_with(homes[0].path(), &chain, with_bound(lag_max)).await;
    let bob = start(homes[1].path(), &chain).await;
    alice.connect(&bob).await;
    let id = open_between(&alice, &bob, &chain, 10_000_000, 2_000_000_000).await;
    let site = Site::start(homes[2].path(), "127.0.0.1:0").await;
    site.allow(alice.towers.client_key(&tower_id())).await;
    site.allow_blobs(alice.towers.client_key(&tower_id())).await;
    Stage { chain, alice, bob, homes, site, id }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tower_gets_every_revoked_commitment_of_every_channel() {
    let Stage { chain, alice, bob, homes: _homes, site, id } = stage(1_000).await;
    pay(&alice, &bob).await.unwrap();
    let added = add(&alice, &site.address).await;
    assert!(added.connected, "{added:?}");
    assert_eq!(added.client_key, alice.towers.client_key(&tower_id()).serialize());
    // What was revoked before it was there.
    until(&alice, "it has what there was", |status| has_all(status, id)).await;
    pay(&alice, &bob).await.unwrap();
    let later = open_between(&alice, &bob, &chain, 15_000_000, 5_000_000_000).await;
    for _ in 0..3 {
        pay(&alice, &bob).await.unwrap();
        pay(&bob, &alice).await.unwrap();
    }
    let everything = [(id, revoked(&alice, id).await), (later, revoked(&alice, later).await)];
    for (channel, number) in everything {
        assert!(number > 0, "both were paid over");
        let is_so = |status: &v1::TowerStatus| {
            let of = status.channels.iter().find(|one| one.channel_id == channel.0);
            of.is_some_and(|one| one.revoked >= number && one.acknowledged == one.revoked)
        };
        let status = until(&alice, "it has everything", is_so).await;
        let channel = status.channels.iter().find(|one| one.channel_id == channel.0).unwrap();
        let receipt = channel.receipt.as_ref().expect("it has signed for that");
        assert_eq!(receipt.next, channel.acknowledged);
    }
    let at_tower = site.next().await;
    for (channel, number) in everything {
        let (_, next) = at_tower.iter().find(|(at, _)| *at == channel).unwrap();
        assert!(*next >= number, "it has {next} of {number}");
    }
    until_relied_on(&alice).await;
    alice.stop().await;
    bob.stop().await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_go_on_without_a_tower_below_the_bound_and_wait_above_it() {
    below_and_above_the_bound(v1::TowerMode::Compact).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn payments_go_on_without_somebody_elses_tower_below_the_bound_and_wait_above_it() {
    below_and_above_the_bound(v1::TowerMode::Blob).await;
}

async fn below_and_above_the_bound(mode: v1::TowerMode) {
    let Stage { chain: _chain, alice, bob, homes, site, id } = stage(6).await;
    add_as(&alice, &site.address, mode).await.unwrap();
    pay(&alice, &bob).await.unwrap();
    until_relied_on(&alice).await;
    until(&alice, "it has everything", |status| has_all(status, id)).await;
    let address = site.stop().await;
    let (paid, refused) = pay_until_refused(&alice, &bob).await;
    assert!(paid >= 2, "{paid} payments below the bound");
    assert_eq!(reason(&refused), ErrorReason::ChannelNotUsable, "{refused}");
    assert!(refused.message().contains("lacks"), "{refused}");
    let lag = shown(&alice).await.tower.unwrap().lag;
    assert!((7..=9).contains(&lag), "{lag}: one more than the bound, or what one payment takes");
    // The other side may pay all the same.
    pay(&bob, &alice).await.unwrap();
    let site = Site::start(homes[2].path(), &address).await;
    until(&alice, "it has caught up", |status| has_all(status, id)).await;
    pay(&alice, &bob).await.unwrap();
    alice.stop().await;
    bob.stop().await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_the_tower_remembers_what_it_had() {
    restart_without(v1::TowerMode::Compact).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_without_somebody_elses_tower_remembers_what_it_had() {
    restart_without(v1::TowerMode::Blob).await;
}

async fn restart_without(mode: v1::TowerMode) {
    let Stage { chain, alice, bob, homes, site, id } = stage(6).await;
    add_as(&alice, &site.address, mode).await.unwrap();
    until(&alice, "it is there", |status| !status.channels.is_empty()).await;
    for _ in 0..6 {
        pay(&alice, &bob).await.unwrap();
    }
    until(&alice, "it has everything", |status| has_all(status, id)).await;
    until_relied_on(&alice).await;
    // Its receipts are written down now and then.
    let number = revoked(&alice, id).await;
    eventually("the receipt is written", || alice.towers.written(&tower_id(), id).filter(|next| *next >= number)).await;
    alice.stop().await;
    let address = site.stop().await;
    let alice = start_with(homes[0].path(), &chain, with_bound(6)).await;
    alice.connect(&bob).await;
    alice.wait_until(id, "the channel is usable", millraced::channels::ChannelSnapshot::is_usable).await;
    let (paid, refused) = pay_until_refused(&alice, &bob).await;
    assert!(paid >= 2, "{number} commitments were acknowledged before: {paid} payments, then {refused}");
    let site = Site::start(homes[2].path(), &address).await;
    until(&alice, "it has caught up", |status| has_all(status, id)).await;
    pay(&alice, &bob).await.unwrap();
    alice.stop().await;
    bob.stop().await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_tower_gets_a_penalty_for_each_revoked_commitment() {
    let Stage { chain, alice, bob, homes, site, id } = stage(1_000).await;
    let take = || v1::TakeCommitmentRequest { channel_id: id.0.to_vec() };
    let mut taken = Vec::new();
    // Before there is a tower, and what comes later.
    pay(&alice, &bob).await.unwrap();
    let missed: Transaction =
        deserialize(&bob.channels().await.take_commitment(take()).await.unwrap().into_inner().transaction).unwrap();
    pay(&alice, &bob).await.unwrap();
    add_as(&alice, &site.address, v1::TowerMode::Blob).await.unwrap();
    let other = add_as(&alice, &site.address, v1::TowerMode::Compact).await.unwrap_err();
    assert_eq!(reason(&other), ErrorReason::InvalidField, "{other}");
    until_relied_on(&alice).await;
    for _ in 0..3 {
        let answer = bob.channels().await.take_commitment(take()).await.unwrap().into_inner();
        taken.push(deserialize::<Transaction>(&answer.transaction).unwrap());
        pay(&alice, &bob).await.unwrap();
    }
    until(&alice, "it has everything", |status| has_all(status, id)).await;
    // What is revoked while it is away outlives a restart.
    let address = site.stop().await;
    for _ in 0..2 {
        let answer = bob.channels().await.take_commitment(take()).await.unwrap().into_inner();
        taken.push(deserialize(&answer.transaction).unwrap());
        pay(&bob, &alice).await.unwrap();
    }
    let number = revoked(&alice, id).await;
    alice.stop().await;
    let alice = start_with(homes[0].path(), &chain, with_bound(1_000)).await;
    let site = Site::start(homes[2].path(), &address).await;
    let status = until(&alice, "it has what was revoked meanwhile", |status| {
        has_all(status, id) && status.channels[0].revoked >= number
    });
    let channel = status.await.channels.remove(0);
    assert!(channel.from > 0 && channel.receipt.is_some(), "{channel:?}");
    assert_eq!(channel.receipt.unwrap().next, channel.acknowledged - channel.from);
    // Each opens with its commitment, and takes what is the peer's there.
    let takes = site.takes(taken.clone()).await;
    for commitment in &taken {
        let of_it = takes.iter().find(|outpoint| outpoint.txid == commitment.compute_txid());
        let output = &commitment.output[of_it.expect("there is a penalty").vout as usize];
        // The largest is alice's, and the two anchors are small.
        assert!((1_900_000..5_000_000).contains(&output.value.to_sat()), "{output:?}");
    }
    assert!(takes.iter().all(|outpoint| outpoint.txid != missed.compute_txid()), "it was revoked before");
    alice.stop().await;
    bob.stop().await;
    site.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tower_that_was_never_reached_stops_nothing() {
    let Stage { chain, alice, bob, homes, site, id } = stage(2).await;
    let address = site.stop().await;
    let added = add(&alice, &address).await;
    assert!(!added.connected && !added.last_error.is_empty(), "{added:?}");
    for _ in 0..5 {
        pay(&alice, &bob).await.unwrap();
    }
    assert!(shown(&alice).await.tower.unwrap().lag > 2);
    // Removed, it stays so.
    remove(&alice).await.unwrap();
    assert_eq!(reason(&remove(&alice).await.unwrap_err()), ErrorReason::NotFound);
    alice.stop().await;
    let alice = start_with(homes[0].path(), &chain, with_bound(2)).await;
    let listed = client(&alice).await.list(v1::ListTowersRequest {}).await.unwrap().into_inner();
    assert_eq!(listed.towers, []);
    // And may come back.
    let site = Site::start(homes[2].path(), &address).await;
    assert!(add(&alice, &address).await.connected);
    until(&alice, "it has everything", |status| has_all(status, id)).await;
    alice.stop().await;
    bob.stop().await;
    site.stop().await;
}

/// Two of one's own and one of somebody else's; each is told everything, one that is away holds up none of the others.
#[tokio::test(flavor = "multi_thread")]
async fn several_towers_are_each_told_everything() {
    let Stage { chain: _chain, alice, bob, homes: _homes, site, id } = stage(1_000).await;
    let keys = [6, 7, 8].map(|seed| SecretKey::from_slice(&[seed; 32]).unwrap());
    let ids = keys.map(|key| key.public_key(SECP256K1));
    let folders = [(); 3].map(|()| tempfile::tempdir().unwrap());
    let second = Site::with_key(folders[0].path(), "127.0.0.1:0", keys[0]).await;
    let foreign = Site::with_key(folders[1].path(), "127.0.0.1:0", keys[1]).await;
    second.allow(alice.towers.client_key(&ids[0])).await;
    foreign.allow_blobs(alice.towers.client_key(&ids[1])).await;
    assert!(add(&alice, &site.address).await.connected);
    assert!(add_one(&alice, &ids[0], &second.address, v1::TowerMode::Compact).await.unwrap().connected);
    assert!(add_one(&alice, &ids[1], &foreign.address, v1::TowerMode::Blob).await.unwrap().connected);
    let away = add_one(&alice, &ids[2], "127.0.0.1:1", v1::TowerMode::Compact).await.unwrap();
    assert!(!away.connected);
    let clients: std::collections::BTreeSet<PublicKey> = ids.iter().map(|id| alice.towers.client_key(id)).collect();
    assert_eq!(clients.len(), 3, "each knows the node by another key");
    let status = |world| async move {
        client(world).await.get_status(v1::GetTowerStatusRequest::default()).await.unwrap().into_inner().towers
    };
    let wait = async {
        loop {
            pay(&alice, &bob).await.unwrap();
            let towers = status(&alice).await;
            assert_eq!(towers.len(), 4);
            let has_all = |one: &&v1::TowerStatus| has_all(one, id);
            if towers.iter().filter(has_all).count() == 3 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("all three have it in time");
    alice.stop().await;
    bob.stop().await;
    for site in [site, second, foreign] {
        site.stop().await;
    }
}

/// The last word of a node that stops: what was revoked until then is with the tower, which is to keep watch from then on.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_leaves_its_towers_with_everything() {
    for mode in [v1::TowerMode::Compact, v1::TowerMode::Blob] {
        let Stage { chain: _chain, alice, bob, homes, site, id } = stage(1_000).await;
        add_as(&alice, &site.address, mode).await.unwrap();
        until_relied_on(&alice).await;
        let address = site.stop().await;
        // Much is to be told when it comes back, and at once the node stops.
        let mut kept = None;
        for _ in 0..60 {
            kept = Some({
                let mut channels = bob.channels().await;
                let request = v1::TakeCommitmentRequest { channel_id: id.0.to_vec() };
                channels.take_commitment(request).await.unwrap().into_inner()
            });
            pay(&alice, &bob).await.unwrap();
        }
        let number = revoked(&alice, id).await;
        eventually("the newest is revoked", || {
            let shown = alice.node.registry().snapshot(id)?;
            (*shown.htlc_counts.of(Side::Local) == 0).then_some(())
        })
        .await;
        let mut link = alice.towers.link(&tower_id()).unwrap();
        let site = Site::start(homes[2].path(), &address).await;
        let is_up = |link: &millrace_watchtower::client::Link| *link == millrace_watchtower::client::Link::Up;
        tokio::time::timeout(PATIENCE, link.wait_for(is_up)).await.expect("it is back in time").unwrap();
        drop(link);
        alice.stop().await;
        match mode {
            v1::TowerMode::Blob => {
                // The one that the last payment revoked.
                let commitment: Transaction = deserialize(&kept.unwrap().transaction).unwrap();
                assert_eq!(site.takes(vec![commitment]).await.len(), 1);
            }
            _ => {
                let next = site.next().await;
                // The newest may not have been revoked when the connection ended.
                assert!(next.iter().any(|(at, next)| *at == id && *next + 1 >= number), "{next:?} of {number}");
            }
        }
        bob.stop().await;
        site.stop().await;
    }
}

/// While a tower answers the first, the next ones gather: they are told before the node ends, too.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_stops_waits_for_a_slow_tower() {
    let Stage { chain: _chain, alice, bob, homes: _homes, site, id } = stage(1_000).await;
    add(&alice, &site.address).await;
    pay(&alice, &bob).await.unwrap();
    until(&alice, "it has everything", |status| has_all(status, id)).await;
    // Its disk takes its time.
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let desk = site.desk.clone();
    let slow = tokio::spawn(async move { desk.ask(move |_| wait.recv()).await });
    for _ in 0..5 {
        pay(&alice, &bob).await.unwrap();
    }
    let lag = shown(&alice).await.tower.unwrap().lag;
    assert!(lag >= 2, "{lag}: more gathers than is under way");
    let number = revoked(&alice, id).await;
    let stopping = tokio::spawn(alice.stop());
    // Longer than connections have for their last words.
    tokio::time::sleep(Duration::from_secs(1)).await;
    go_on.send(()).unwrap();
    slow.await.unwrap().unwrap().unwrap();
    stopping.await.unwrap();
    let next = site.next().await;
    assert!(next.iter().any(|(at, next)| *at == id && *next + 1 >= number), "{next:?} of {number}");
    bob.stop().await;
    site.stop().await;
}

/// Somebody else's tower that was removed and comes back, and one that has lost its disk: a new beginning, from there on.
#[tokio::test(flavor = "multi_thread")]
async fn somebody_elses_tower_begins_anew_where_it_must() {
    let Stage { chain: _chain, alice, bob, homes: _homes, site, id } = stage(6).await;
    add_as(&alice, &site.address, v1::TowerMode::Blob).await.unwrap();
    until_relied_on(&alice).await;
    for _ in 0..3 {
        pay(&alice, &bob).await.unwrap();
    }
    until(&alice, "it has everything", |status| has_all(status, id)).await;
    remove(&alice).await.unwrap();
    pay(&alice, &bob).await.unwrap();
    add_as(&alice, &site.address, v1::TowerMode::Blob).await.unwrap();
    until(&alice, "it is told of the channel again", |status| !status.channels.is_empty()).await;
    let again = until_relied_on(&alice).await.channels.remove(0);
    assert!(!again.tower_ahead && again.from >= 3, "{again:?}");
    for _ in 0..8 {
        pay(&alice, &bob).await.unwrap();
        until(&alice, "it has everything", |status| has_all(status, id)).await;
    }
    // Its receipts are written down: what it had is not kept here any more.
    let number = revoked(&alice, id).await - 1;
    eventually("the receipt is written", || alice.towers.written(&tower_id(), id).filter(|next| *next >= number)).await;
    let address = site.stop().await;
    let folder = tempfile::tempdir().unwrap();
    let empty = Site::start(folder.path(), &address).await;
    empty.allow_blobs(alice.towers.client_key(&tower_id())).await;
    until(&alice, "it begins anew", |status| status.channels.iter().any(|one| one.from >= number)).await;
    // It would lack more than it may, if what is lost counted.
    for _ in 0..4 {
        pay(&alice, &bob).await.unwrap();
        until(&alice, "it has everything", |status| has_all(status, id)).await;
    }
    alice.stop().await;
    bob.stop().await;
    empty.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tower_that_does_not_know_the_node_says_so_and_may_be_moved() {
    let Stage { chain: _chain, alice, bob, homes: _homes, site, id } = stage(1_000).await;
    let folder = tempfile::tempdir().unwrap();
    let stranger = Site::start(folder.path(), "127.0.0.1:0").await;
    let added = add(&alice, &stranger.address).await;
    assert!(!added.connected, "{added:?}");
    assert!(added.last_error.contains("allow"), "{added:?}");
    // The same tower at another address.
    let moved = add(&alice, &site.address).await;
    assert!(moved.connected && moved.address == site.address, "{moved:?}");
    pay(&alice, &bob).await.unwrap();
    until(&alice, "it has everything", |status| has_all(status, id)).await;
    assert_eq!(stranger.next().await, []);
    alice.stop().await;
    bob.stop().await;
    site.stop().await;
    stranger.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nonsense_is_no_tower() {
    let (chain, home) = (FakeChain::new(), tempfile::tempdir().unwrap());
    let alice = start(home.path(), &chain).await;
    let good = tower_id().serialize().to_vec();
    let cases: [(&[u8], &str); 5] =
        [(&good[1..], "127.0.0.1:1"), (&[7; 33], "127.0.0.1:1"), (&good, "127.0.0.1"), (&good, ":1"), (&good, "h:0")];
    for (tower, address) in cases {
        let request = v1::AddTowerRequest {
            idempotency_key: hex::encode(rand_bytes()),
            tower: tower.to_vec(),
            address: address.to_owned(),
            ..v1::AddTowerRequest::default()
        };
        let status = client(&alice).await.add(request).await.unwrap_err();
        assert_eq!(reason(&status), ErrorReason::InvalidField, "{address}: {status}");
    }
    let unknown = v1::AddTowerRequest {
        idempotency_key: hex::encode(rand_bytes()),
        tower: good.clone(),
        address: "127.0.0.1:1".to_owned(),
        mode: 77,
    };
    let status = client(&alice).await.add(unknown).await.unwrap_err();
    assert_eq!(reason(&status), ErrorReason::InvalidField, "it must not be taken for one's own: {status}");
    let unknown = v1::GetTowerStatusRequest { tower: good };
    assert_eq!(reason(&client(&alice).await.get_status(unknown).await.unwrap_err()), ErrorReason::NotFound);
    alice.stop().await;
}
