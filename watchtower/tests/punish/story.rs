//! A peer publishes a revoked commitment while the node is off. The tower alone punishes him.

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Network, Transaction, Txid};
use millrace_channel::terms::CommitmentFormat;
use millrace_regtest::bitcoind::{Bitcoind, Options};
use millrace_watchtower::client::{Client, Config, Event};
use millrace_wire::{ChainHash, Preimage};
use secp256k1::{SECP256K1, SecretKey};
use serde_json::json;

use crate::cheat::{Channel, Cheat, DELAY, sweep_script};
use crate::program::{LIMIT, Tower, eventually};

pub(crate) fn node_key() -> SecretKey {
    SecretKey::from_slice(&[9; 32]).unwrap()
}

pub(crate) fn config(tower: &Tower) -> Config {
    let (key, address) = tower.address.split_once('@').unwrap();
    let chain_hash = ChainHash::using_genesis_block_const(Network::Regtest);
    Config::new(key.parse().unwrap(), address.to_owned(), node_key(), chain_hash)
}

/// The node tells its tower of the channels, waits until it has everything, and is off.
pub(crate) async fn tell(tower: &Tower, channels: &[Channel], revealed: u64) {
    let (client, _events) = Client::start(config(tower));
    for channel in channels {
        let id = client.register(channel.registration(), channel.secrets(revealed));
        let mut progress = client.progress(id).unwrap();
        let all = progress.wait_for(|progress| progress.acknowledged == revealed);
        tokio::time::timeout(LIMIT, all).await.expect("all in time").unwrap();
    }
}

pub(crate) struct Scene {
    pub(crate) bitcoind: Bitcoind,
    pub(crate) tower: Tower,
    _home: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let scene = Self::with(Options::default());
        let client = node_key().public_key(SECP256K1).to_string();
        assert!(scene.tower.ask(&["allow", &client]).status.success());
        scene
    }

    /// With a channel whose first five secrets the tower has.
    async fn told(format: CommitmentFormat) -> (Self, Channel) {
        let scene = Self::new();
        let channel = Channel::open(&scene.bitcoind, 1, format);
        tell(&scene.tower, std::slice::from_ref(&channel), 5).await;
        (scene, channel)
    }

    /// On such a bitcoind, with nobody let in.
    pub(crate) fn with(options: Options) -> Self {
        let bitcoind = Bitcoind::start(options).unwrap();
        bitcoind.mine_to_wallet(110).unwrap();
        let home = tempfile::tempdir().unwrap();
        let tower = Tower::start(home.path(), &bitcoind);
        Self { bitcoind, tower, _home: home }
    }

    pub(crate) fn send(&self, tx: &Transaction) -> Txid {
        self.bitcoind.call("sendrawtransaction", &json!([serialize_hex(tx)])).unwrap();
        tx.compute_txid()
    }

    pub(crate) fn mine(&self) {
        self.bitcoind.mine_to_wallet(1).unwrap();
    }

    pub(crate) fn restart(&mut self) {
        self.tower.kill();
        self.tower.run();
    }

    /// Waits until penalties that spend so many outputs of these transactions are in the mempool.
    pub(crate) fn penalties(&self, of: &[Txid], inputs: usize) {
        let spends = || {
            let mempool = self.bitcoind.mempool().unwrap();
            let count = mempool.iter().map(|txid| {
                let tx = self.bitcoind.call("getrawtransaction", &json!([txid, true])).ok();
                let inputs = tx.map(|tx| tx["vin"].as_array().unwrap().clone()).unwrap_or_default();
                let is_of = |input: &serde_json::Value| of.iter().any(|txid| input["txid"] == txid.to_string());
                inputs.iter().filter(|input| is_of(input)).count()
            });
            count.sum::<usize>()
        };
        eventually("the penalties in the mempool", || {
            let found = spends();
            assert!(found <= inputs, "{found} inputs where {inputs} are expected");
            (found == inputs).then_some(())
        });
    }

    /// What the sweep script has in the chain.
    pub(crate) fn taken(&self) -> u64 {
        let descriptor = format!("raw({})", sweep_script().to_hex_string());
        let found = self.bitcoind.call("scantxoutset", &json!(["start", [descriptor]])).unwrap();
        (found["total_amount"].as_f64().unwrap() * 1e8).round() as u64
    }
}

/// Plays the whole story, killing the tower wherever `kills` says.
async fn play(format: CommitmentFormat, kills: &[&str]) {
    let (mut scene, channel) = Scene::told(format).await;
    let kill = |scene: &mut Scene, at| {
        if kills.contains(&at) {
            scene.restart();
        }
    };
    kill(&mut scene, "acknowledged");
    let cheat = channel.cheat(3);
    let breach = scene.send(&cheat.tx);
    if kills.contains(&"down during the breach") {
        scene.tower.kill();
        scene.mine();
        scene.mine();
        scene.tower.run();
    } else {
        scene.mine();
    }
    kill(&mut scene, "breach seen");
    scene.penalties(&[breach], 1);
    kill(&mut scene, "penalty broadcast");
    scene.penalties(&[breach], 1);
    scene.mine();
    // The cheater goes for the HTLCs.
    let second: Vec<Txid> = cheat.second_level(&scene.bitcoind).iter().map(|tx| scene.send(tx)).collect();
    scene.mine();
    kill(&mut scene, "second level seen");
    scene.penalties(&second, 2);
    scene.mine();
    check(&scene, &cheat, format);
    // The preimage that the cheater had to show is there for the node.
    let (client, mut events) = Client::start(config(&scene.tower));
    let id = client.register(channel.registration(), channel.secrets(5));
    let found = tokio::time::timeout(LIMIT, events.recv()).await.unwrap().unwrap();
    let expected = Event::Preimages { channel_id: id, preimages: vec![Preimage::new([0xa2; 32])], count: 1 };
    assert_eq!(found, expected);
}

/// Everything that was at stake is the node's, less bounded fees.
fn check(scene: &Scene, cheat: &Cheat, format: CommitmentFormat) {
    let (taken, stake) = (scene.taken(), cheat.stake());
    // Plain HTLC transactions pay their fee out of the HTLC, twice; each penalty pays at most 4 sat/vB here.
    let second_level_fees = if format == CommitmentFormat::StaticRemotekey { 2 * 703 } else { 0 };
    let fees_max = second_level_fees + 3 * 160 * 8;
    assert!(taken <= stake && taken + fees_max >= stake, "{taken} of {stake} taken\n{}", scene.tower.log());
    let status = eventually("the tower's account", || {
        let status = scene.tower.status();
        (status["to_take"] == 0 && status["channels"][0]["taken_sat"].as_u64() >= Some(taken)).then_some(status)
    });
    let channel = &status["channels"][0];
    assert_eq!((&channel["is_breach"], &channel["lost_sat"]), (&true.into(), &0.into()), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_without_a_kill() {
    play(CommitmentFormat::Anchors, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn anchors_killed_at_every_turn() {
    let kills = ["acknowledged", "breach seen", "penalty broadcast", "second level seen"];
    play(CommitmentFormat::Anchors, &kills).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_channel_and_a_tower_that_is_down_during_the_breach() {
    play(CommitmentFormat::StaticRemotekey, &["down during the breach", "second level seen"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn breach_that_a_reorg_takes_out_and_brings_back() {
    let (scene, channel) = Scene::told(CommitmentFormat::Anchors).await;
    let breach = scene.send(&channel.cheat(4).tx);
    scene.mine();
    scene.penalties(&[breach], 1);
    scene.mine();
    eventually("the penalty in a block", || (scene.tower.status()["to_take"] == 0).then_some(()));
    // Both blocks go; bitcoind puts their transactions back into its mempool and mines them again.
    let address = scene.bitcoind.new_address().unwrap();
    scene.bitcoind.reorg(2, &address).unwrap();
    scene.mine();
    eventually("the penalty in a block again", || {
        scene.mine();
        (scene.taken() > 290_000 && scene.tower.status()["to_take"] == 0).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_that_the_tower_is_told_of_after_the_breach() {
    let scene = Scene::new();
    let channel = Channel::open(&scene.bitcoind, 1, CommitmentFormat::Anchors);
    let breach = scene.send(&channel.cheat(3).tx);
    scene.mine();
    scene.mine();
    let height = scene.bitcoind.height().unwrap();
    eventually("the block", || (scene.tower.status()["height"] == height).then_some(()));
    tell(&scene.tower, std::slice::from_ref(&channel), 5).await;
    scene.penalties(&[breach], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn penalty_that_does_not_confirm_is_raised_and_split_before_the_deadline() {
    const CHANNELS: u8 = 3;
    let scene = Scene::new();
    let channels: Vec<Channel> =
        (0..CHANNELS).map(|n| Channel::open(&scene.bitcoind, n + 1, CommitmentFormat::Anchors)).collect();
    tell(&scene.tower, &channels, 5).await;
    let breaches: Vec<Txid> = channels.iter().map(|channel| scene.send(&channel.cheat(2).tx)).collect();
    scene.mine();
    let breached_at = scene.bitcoind.height().unwrap();
    scene.penalties(&breaches, usize::from(CHANNELS));
    let fees = || -> Vec<u64> {
        let mempool = scene.bitcoind.mempool().unwrap();
        // One that was replaced meanwhile pays nothing.
        let entries = mempool.iter().filter_map(|txid| scene.bitcoind.call("getmempoolentry", &json!([txid])).ok());
        entries.map(|entry| (entry["fees"]["base"].as_f64().unwrap() * 1e8).round() as u64).collect()
    };
    let first = fees();
    assert_eq!(first.len(), 1);
    // Blocks that leave the mempool alone.
    let address = scene.bitcoind.new_address().unwrap();
    let deadline = breached_at + u32::from(DELAY);
    for height in breached_at + 1..deadline {
        scene.bitcoind.call("generateblock", &json!([address.to_string(), []])).unwrap();
        eventually("the block", || (scene.tower.status()["height"] == height).then_some(()));
        if height + 12 == deadline {
            eventually("each alone", || (fees().len() == usize::from(CHANNELS)).then_some(()));
            scene.penalties(&breaches, usize::from(CHANNELS));
        }
    }
    let last = fees();
    assert_eq!(last.len(), usize::from(CHANNELS));
    let stake = channels[0].cheat(2).stake();
    assert!(last.iter().all(|fee| *fee > 50 * first[0] && *fee < stake), "{first:?}, {last:?}\n{}", scene.tower.log());
    scene.mine();
    eventually("all taken", || (scene.tower.status()["to_take"] == 0).then_some(()));
    assert!(scene.taken() > 3 * 294);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_channels_breached_in_one_block_are_taken_together() {
    const CHANNELS: u8 = 12;
    let scene = Scene::new();
    let channels: Vec<Channel> =
        (0..CHANNELS).map(|n| Channel::open(&scene.bitcoind, n + 1, CommitmentFormat::Anchors)).collect();
    tell(&scene.tower, &channels, 5).await;
    let breaches: Vec<Txid> = channels.iter().map(|channel| scene.send(&channel.cheat(2).tx)).collect();
    scene.mine();
    scene.penalties(&breaches, usize::from(CHANNELS));
    let mempool = scene.bitcoind.mempool().unwrap();
    assert_eq!(mempool.len(), 1, "far from the deadline ({DELAY} blocks) they go together");
    scene.mine();
    eventually("all taken", || (scene.tower.status()["to_take"] == 0).then_some(()));
    assert!(scene.taken() > u64::from(CHANNELS) * 299_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_secret_is_in_the_log_or_readable_by_others() {
    let (scene, channel) = Scene::told(CommitmentFormat::Anchors).await;
    let breach = scene.send(&channel.cheat(3).tx);
    scene.mine();
    scene.penalties(&[breach], 1);
    let log = scene.tower.log();
    assert!(log.contains("penalty") && log.contains("client"), "{log}");
    let secrets = (0..5).map(|n| channel.remote.commitment_secret(millrace_wire::CommitmentNumber(n)));
    let all = secrets.chain([channel.local.revocation_basepoint_secret().secret_bytes()]);
    let key = std::fs::read_to_string(scene.tower.folder.join("tower.key")).unwrap();
    for secret in all.map(hex::encode).chain([key.trim().to_owned()]) {
        assert!(!log.contains(&secret), "a secret is in the log");
    }
}
