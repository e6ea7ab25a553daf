//! The same, by a tower that knows nothing but sealed penalties: blob mode.

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{OutPoint, Txid};
use millrace_channel::terms::CommitmentFormat;
use millrace_regtest::bitcoind::Options;
use millrace_watchtower::client::blob::{BlobClient, BlobConfig};
use millrace_watchtower::sealed::{LADDER, Sealed, seal};
use millrace_watchtower::vault::Group;
use millrace_wire::{CommitmentNumber, Sat};
use serde_json::{Value, json};

use crate::cheat::{Channel, Cheat, DELAY};
use crate::program::{LIMIT, eventually};
use crate::story::{Scene, config, node_key, tell};

/// What the peer has in each of its commitments beside HTLCs.
const TO_LOCAL: u64 = 300_000;
/// The channel's group.
const GROUP: Group = Group([7; 16]);

fn blob_client(scene: &Scene) -> BlobClient {
    let millrace_watchtower::client::Config { tower, address, key, chain_hash, .. } = config(&scene.tower);
    BlobClient::start(BlobConfig::new(tower, address, key, chain_hash))
}

fn scene_with(arguments: &[&str]) -> Scene {
    let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let scene = Scene::with(Options { arguments, ..Options::default() });
    let client = node_key().public_key(secp256k1::SECP256K1).to_string();
    let allowed = scene.tower.ask(&["allow", &client, "--channels", "0", "--blobs", "100"]);
    assert!(allowed.status.success());
    scene
}

fn sealed(channel: &Channel, number: u64) -> Sealed {
    let Cheat { commitment, .. } = channel.cheat(number);
    let vout = commitment.to_local.unwrap();
    let value = Sat::from(commitment.output(vout).value);
    let secret = channel.remote.commitment_secret(CommitmentNumber(number));
    seal(&channel.registration(), &secret, &commitment.txid, vout, value).unwrap()
}

/// A node hands over a penalty for each of five revoked commitments, waits until the tower has all, and is off.
async fn handed_over(arguments: &[&str], format: CommitmentFormat) -> (Scene, Channel) {
    const REVOKED: u64 = 5;
    let scene = scene_with(arguments);
    let channel = Channel::open(&scene.bitcoind, 1, format);
    let client = blob_client(&scene);
    let mut progress = client.register(GROUP, 0, 0);
    for number in 0..REVOKED {
        client.hand_over(GROUP, number, sealed(&channel, number)).unwrap();
    }
    let all = progress.wait_for(|progress| progress.acknowledged == REVOKED);
    let told = tokio::time::timeout(LIMIT, all).await.expect("all in time").unwrap().clone();
    assert!(told.receipt.unwrap().is_by(&client.tower()));
    (scene, channel)
}

fn found(scene: &Scene) -> Value {
    scene.tower.status()["matches"][0].clone()
}

/// The only penalty in the mempool, and its fee.
fn penalty_fee(scene: &Scene) -> Option<(Txid, u64)> {
    let mempool = scene.bitcoind.mempool().unwrap();
    let [txid] = mempool.as_slice() else { return None };
    let entry = scene.bitcoind.call("getmempoolentry", &json!([txid])).ok()?;
    Some((*txid, (entry["fees"]["base"].as_f64().unwrap() * 1e8).round() as u64))
}

async fn play(format: CommitmentFormat, kills: &[&str]) {
    let (mut scene, channel) = handed_over(&[], format).await;
    let kill = |scene: &mut Scene, at| {
        if kills.contains(&at) {
            scene.restart();
        }
    };
    kill(&mut scene, "acknowledged");
    let breach = scene.send(&channel.cheat(3).tx);
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
    let status = found(&scene);
    assert_eq!((&status["txid"], &status["is_opened"]), (&breach.to_string().into(), &true.into()), "{status}");
    assert_eq!((&status["sequence"], &status["group"]), (&3.into(), &"07".repeat(16).into()), "{status}");
    kill(&mut scene, "penalty broadcast");
    scene.penalties(&[breach], 1);
    let (txid, fee) = eventually("the penalty", || penalty_fee(&scene));
    scene.mine();
    eventually("taken", || (found(&scene)["taken_sat"] == TO_LOCAL).then_some(()));
    kill(&mut scene, "penalty mined");
    let status = found(&scene);
    assert!(status["state"].as_str().unwrap().contains(&txid.to_string()), "{status}");
    assert_eq!((scene.taken(), &status["lost_sat"]), (TO_LOCAL - fee, &0.into()), "{}", scene.tower.log());
    // The second step is what would suffice in a hurry; there is none here.
    assert!(fee < 16 * 160, "{fee}");
    check_release(&scene).await;
}

/// The channel is over: its blobs are let go, once nothing can happen any more.
async fn check_release(scene: &Scene) {
    let client = blob_client(scene);
    let mut progress = client.register(GROUP, 5, 5);
    client.release(GROUP);
    let refused = progress.wait_for(|progress| progress.refused.is_some());
    let refused = tokio::time::timeout(LIMIT, refused).await.unwrap().unwrap().refused.clone().unwrap();
    assert!(refused.contains("not buried"), "{refused}");
    scene.bitcoind.mine_to_wallet(100).unwrap();
    eventually("so many blocks", || (scene.tower.status()["height"] == scene.bitcoind.height().unwrap()).then_some(()));
    client.release(GROUP);
    eventually("let go", || client.progress(GROUP).is_none().then_some(()));
    let status = scene.tower.status();
    assert_eq!((&status["clients"][0]["blobs"], &status["matches"]), (&0.into(), &json!([])), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn breach_that_only_a_blob_knows_of_without_a_kill() {
    play(CommitmentFormat::Anchors, &[]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn breach_that_only_a_blob_knows_of_killed_at_every_turn() {
    let kills = ["acknowledged", "breach seen", "penalty broadcast", "penalty mined"];
    play(CommitmentFormat::Anchors, &kills).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn plain_channel_and_a_tower_of_blobs_that_is_down_during_the_breach() {
    play(CommitmentFormat::StaticRemotekey, &["down during the breach", "penalty mined"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn breach_of_a_blob_that_a_reorg_takes_out_and_brings_back() {
    let (scene, channel) = handed_over(&[], CommitmentFormat::Anchors).await;
    let breach = scene.send(&channel.cheat(4).tx);
    scene.mine();
    scene.penalties(&[breach], 1);
    scene.mine();
    eventually("the penalty in a block", || (found(&scene)["taken_sat"] == TO_LOCAL).then_some(()));
    // Both blocks go, and for a while nothing is in their place.
    let address = scene.bitcoind.new_address().unwrap();
    scene.bitcoind.reorg(2, &address).unwrap();
    scene.mine();
    eventually("the penalty in a block again", || {
        scene.mine();
        let is_taken = found(&scene)["taken_sat"] == TO_LOCAL;
        (scene.taken() > TO_LOCAL * 9 / 10 && is_taken).then_some(())
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn mempool_that_demands_more_than_the_lowest_step_gets_a_higher_one() {
    // 10 sat/vB: between 4 and 16.
    let (scene, channel) = handed_over(&["-minrelaytxfee=0.0001"], CommitmentFormat::Anchors).await;
    // The commitment pays too little for that mempool; a miner takes it all the same.
    let cheat = channel.cheat(3);
    let address = scene.bitcoind.new_address().unwrap().to_string();
    scene.bitcoind.call("generateblock", &json!([address, [serialize_hex(&cheat.tx)]])).unwrap();
    scene.penalties(&[cheat.tx.compute_txid()], 1);
    let (_, fee) = penalty_fee(&scene).unwrap();
    assert_eq!(step_of(fee), 1, "{fee}\n{}", scene.tower.log());
    scene.mine();
    eventually("taken", || (found(&scene)["taken_sat"] == TO_LOCAL).then_some(()));
}

/// The step of the ladder that pays so much, for a penalty of at most 160 vbytes.
fn step_of(fee: u64) -> usize {
    let pays = |rate: u64| fee <= rate * 160 / 250;
    LADDER.iter().position(|rate| pays(u64::from(rate.0))).unwrap_or(LADDER.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn penalty_of_a_blob_that_does_not_confirm_climbs_the_ladder_over_a_restart() {
    let (mut scene, channel) = handed_over(&[], CommitmentFormat::Anchors).await;
    let breach = scene.send(&channel.cheat(2).tx);
    scene.mine();
    let breached_at = scene.bitcoind.height().unwrap();
    scene.penalties(&[breach], 1);
    let address = scene.bitcoind.new_address().unwrap().to_string();
    let deadline = breached_at + u32::from(DELAY);
    let mut steps = vec![step_of(eventually("the penalty", || penalty_fee(&scene)).1)];
    for height in breached_at + 1..deadline {
        scene.bitcoind.call("generateblock", &json!([address, []])).unwrap();
        eventually("the block", || (scene.tower.status()["height"] == height).then_some(()));
        if height + 7 == deadline {
            scene.restart();
        }
        let left = deadline - height;
        let expected = steps.last().copied().unwrap_or(0).max(if left <= 2 { LADDER.len() - 1 } else { 0 });
        let step = eventually("the penalty", || {
            penalty_fee(&scene).map(|(_, fee)| step_of(fee)).filter(|step| *step >= expected)
        });
        steps.push(step);
    }
    assert!(steps.is_sorted() && steps.first() == Some(&0), "{steps:?}");
    assert!(steps.contains(&1) && steps.last() == Some(&3), "{steps:?}");
    scene.mine();
    eventually("taken", || (found(&scene)["taken_sat"] == TO_LOCAL).then_some(()));
    let fee = TO_LOCAL - scene.taken();
    assert!(fee > 256 * 115 && fee < 256 * 130, "{fee}");
}

#[tokio::test(flavor = "multi_thread")]
async fn channel_that_is_watched_too_is_punished_by_the_key_alone() {
    let (scene, channel) = handed_over(&[], CommitmentFormat::Anchors).await;
    let client = node_key().public_key(secp256k1::SECP256K1).to_string();
    assert!(scene.tower.ask(&["allow", &client, "--channels", "3"]).status.success());
    tell(&scene.tower, std::slice::from_ref(&channel), 5).await;
    let cheat = channel.cheat(3);
    let breach = scene.send(&cheat.tx);
    scene.mine();
    scene.penalties(&[breach], 1);
    let penalties = scene.tower.status()["penalties"].as_array().unwrap().len();
    assert_eq!((penalties, scene.bitcoind.mempool().unwrap().len()), (1, 1));
    let outpoint = OutPoint { txid: breach, vout: cheat.commitment.to_local.unwrap() };
    assert_eq!(scene.tower.status()["to_take"], 1, "{outpoint} is one output");
    scene.mine();
    eventually("taken", || (found(&scene)["taken_sat"] == TO_LOCAL).then_some(()));
    assert!(scene.taken() > TO_LOCAL * 9 / 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_blobs_and_what_did_not_open() {
    let scene = scene_with(&[]);
    let channel = Channel::open(&scene.bitcoind, 1, CommitmentFormat::Anchors);
    let client = blob_client(&scene);
    let mut progress = client.register(GROUP, 0, 0);
    let mut junk = sealed(&channel, 0);
    junk.bytes[50] ^= 1;
    client.hand_over(GROUP, 0, junk).unwrap();
    let one = progress.wait_for(|progress| progress.acknowledged == 1);
    tokio::time::timeout(LIMIT, one).await.expect("in time").unwrap();
    let status = scene.tower.status();
    let numbers = ["channels", "channels_max", "blobs", "blobs_max"].map(|name| status["clients"][0][name].clone());
    assert_eq!(numbers, [0, 0, 1, 100].map(Value::from));
    let breach = scene.send(&channel.cheat(0).tx);
    scene.mine();
    let status = eventually("the match", || Some(found(&scene)).filter(|found| !found.is_null()));
    assert_eq!((&status["txid"], &status["is_opened"]), (&breach.to_string().into(), &false.into()), "{status}");
    let text = String::from_utf8(scene.tower.ask(&["status"]).stdout).unwrap();
    assert!(text.contains("1 of 100 blobs") && text.contains("for another transaction, or damaged"), "{text}");
    assert!(scene.bitcoind.mempool().unwrap().is_empty());
}
