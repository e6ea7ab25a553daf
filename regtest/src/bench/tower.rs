//! `bench tower`: what a watchtower costs, and whether it takes everything when all of its channels are breached at once.
//!
//! A real `millrace-tower` on a real bitcoind. First updates are streamed to it by the client kit, and what it keeps of them is
//! read off its files. Then real channels, whose both sides are pure state machines in this process, are breached in one
//! block; the cheaters go for every HTLC as soon as they may, and for every delayed output when its delay is over. The chain
//! is the judge.

mod breach;
mod cheat;
mod judge;
mod pair;
mod upload;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bitcoin::consensus::encode::serialize_hex;
use bitcoin::{Amount, OutPoint, Transaction, TxOut, Txid};
use millrace_channel::secrets::RevealedSecrets;
use millrace_channel::side::Side;
use millrace_channel::terms::CommitmentFormat;
use millrace_watchtower::client::Client;
use millrace_watchtower::registration::Registration;
use millrace_wire::CommitmentNumber;
use secp256k1::SECP256K1;
use serde::Serialize;
use serde_json::json;

use self::breach::{Breach, Played};
use self::cheat::Cheat;
use self::pair::{DELAY, Kind, Pair};
use self::upload::{Uploaded, config, sweep_script, until_acknowledged};
use crate::bitcoind::{Bitcoind, Options};
use crate::matrix::chain::signed;
use crate::matrix::claimant::{Coin, anyones_script};
use crate::network::Error;
use crate::programs::find_tower;
use crate::random::{Random, seed_of_now};
use crate::report::Report;
use crate::tower::Tower;

/// What a channel may take of the tower's disk, and an update of the upload: in bytes.
const STORED_BYTES_MAX: f64 = 1_800.0;
const UPLOAD_BYTES_MAX: f64 = 42.0;
const UPLOAD_BYTES_BATCHED_MAX: f64 = 1.0;
/// Blocks whose rewards pay for it all.
const BLOCKS_FIRST: u32 = 130;
/// Channels that one transaction funds: what is relayed has at most 400,000 weight units.
const CHANNELS_PER_TX: usize = 250;
/// At least one block before the deadline has to hold penalties.
const HOLD_END: i64 = DELAY as i64 - 1;
/// Coins for what the cheaters aggregate.
const COIN: Amount = Amount::from_sat(20_000);
const COINS_PER_CHANNEL: usize = 3;

/// What to run.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Channels: so many that the tower keeps updates of, and so many that are breached
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(1..=20_000))]
    pub channels: u64,
    /// Updates of each channel whose upload and room are measured: a batch and one at least
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1_025..=10_000_000))]
    pub updates: u64,
    /// What keys, histories, cheaters and kills are drawn from; the present time unless given
    #[arg(long)]
    pub seed: Option<u64>,
    /// Kill the tower again and again during the breach (kill -9)
    #[arg(long)]
    pub kill: bool,
    /// So many blocks after the breach hold nothing of the tower's, as if fees had risen
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..HOLD_END), value_name = "BLOCKS")]
    pub hold: u32,
    /// What is done wrong on purpose.
    #[arg(skip)]
    pub plant: Option<Plant>,
}

/// What is done wrong on purpose, so that the benchmark is seen to notice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plant {
    /// The tower is off during the breach.
    Off,
    /// It was not told of the last of the channels.
    Untold,
}

/// What it came to.
#[derive(Clone, Debug, Serialize)]
pub struct Outcomes {
    /// Whether nothing was missed.
    pub ok: bool,
    /// What was missed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub missed: Vec<String>,
    /// By which it can be run again.
    pub seed: u64,
    /// Channels that the tower kept updates of, and channels that were to be breached.
    pub channels: u64,
    /// Updates of each of the former.
    pub updates: u64,
    /// Payload of an update, each acknowledged before the next.
    pub upload_bytes_per_update: f64,
    /// The same in batches of 1,024.
    pub upload_bytes_per_update_batched: f64,
    /// What the socket took for it, framing and encryption with it.
    pub socket_bytes_per_update: f64,
    /// The same in batches.
    pub socket_bytes_per_update_batched: f64,
    /// Updates that were acknowledged, each before the next.
    pub updates_per_s: f64,
    /// The same in batches.
    pub updates_per_s_batched: f64,
    /// CPU time of the tower for an update alone, in µs.
    pub cpu_us_per_update: f64,
    /// Its checkpoint's bytes, divided by the channels.
    pub stored_bytes_per_channel: f64,
    /// Channels whose revoked commitment was in the block.
    pub breached: usize,
    /// Those of them with HTLC outputs in it.
    pub breached_with_htlcs: usize,
    /// Outputs that were the tower's to take.
    pub outputs: usize,
    /// What they held.
    pub outputs_sat: u64,
    /// Outputs that it took in time.
    pub taken: usize,
    /// What arrived of them.
    pub taken_sat: u64,
    /// What it paid the miners.
    pub fees_sat: u64,
    /// Outputs that it did not take in time.
    pub lost: usize,
    /// What they held.
    pub lost_sat: u64,
    /// Those of them that the cheaters have.
    pub stolen: usize,
    /// HTLC outputs that the cheaters did not touch: the node's, once it is back.
    pub untouched: usize,
    /// Blocks between the breach and the last that the tower took.
    pub blocks_needed: u32,
    /// Blocks that each output had.
    pub delay: u16,
    /// Penalties that were not in the mempool in time for the next block.
    pub late: usize,
    /// How often the tower was killed.
    pub kills: u32,
    /// From the breach to the end, all blocks and the cheaters' work included.
    pub breach_s: f64,
    /// The longest that the tower took for one block, restarts included.
    pub block_s_max: f64,
    /// CPU time of the tower during the breach and before it, in s.
    pub cpu_s: f64,
    /// The most memory that it held at any time.
    pub rss_mib_peak: u64,
    /// All of it.
    pub seconds: f64,
}

/// Runs it.
///
/// # Errors
/// If something fails that is not the tower's to do; what the tower misses is in the outcomes.
pub async fn run(arguments: Arguments, report: &mut Report) -> Result<Outcomes, Error> {
    let begun = Instant::now();
    let seed = arguments.seed.unwrap_or_else(seed_of_now);
    report.begin("start a bitcoind");
    let started = tokio::task::block_in_place(start);
    report.end(&started.as_ref().map(|_| String::new()).map_err(ToString::to_string));
    let (bitcoind, program, home) = started?;

    report.begin("stream updates to a tower");
    let (channels, updates) = (arguments.channels, arguments.updates);
    let uploaded = upload::measure(&program, home.path(), &bitcoind, channels, updates, seed).await;
    let note = |uploaded: &Uploaded| format!("{:.0} bytes per channel", uploaded.stored_bytes_per_channel);
    report.end(&uploaded.as_ref().map(note).map_err(ToString::to_string));
    let uploaded = uploaded?;

    report.begin("open channels, update them, and tell the tower");
    let set = Setting::new(&arguments, seed, &bitcoind, &program, home.path()).await;
    report.end(&set.as_ref().map(|set| format!("{} channels", set.cheats.len())).map_err(ToString::to_string));
    let Setting { mut tower, cheats, coins } = set?;
    let breached_with_htlcs = cheats.iter().filter(|cheat| !cheat.accused.htlcs.is_empty()).count();

    report.begin("breach all of them in one block");
    if arguments.plant == Some(Plant::Off) {
        tower.kill()?;
    }
    let breach = Breach {
        bitcoind: &bitcoind,
        tower: &mut tower,
        cheats,
        coins,
        random: Random(seed),
        is_killed: arguments.kill,
        held_blocks: arguments.hold,
    };
    let played = breach.play(report).await;
    let note = |played: &Played| format!("{} of {} outputs taken", played.sums.taken, played.sums.outputs);
    report.end(&played.as_ref().map(note).map_err(ToString::to_string));
    let played = played?;
    let (cpu_us, rss_mib) = tower.costs();
    if tower.is_running() {
        tower.stop()?;
    }
    let costs = (cpu_us, rss_mib.max(uploaded.rss_mib_peak));
    Ok(Outcomes::of(&arguments, seed, &uploaded, &played, breached_with_htlcs, costs, begun.elapsed().as_secs_f64()))
}

fn start() -> Result<(Bitcoind, PathBuf, tempfile::TempDir), Error> {
    let program = find_tower()?;
    let bitcoind = Bitcoind::start(Options::default())?;
    bitcoind.mine_to_wallet(BLOCKS_FIRST)?;
    let home = tempfile::Builder::new().prefix("millrace-bench-tower-").tempdir();
    let home = home.map_err(|source| Error::io("make a folder in", &std::env::temp_dir(), source))?;
    Ok((bitcoind, program, home))
}

/// Everything before the breach.
struct Setting {
    tower: Tower,
    cheats: Vec<Cheat>,
    coins: Vec<Coin>,
}

impl Setting {
    async fn new(
        arguments: &Arguments,
        seed: u64,
        bitcoind: &Bitcoind,
        program: &Path,
        home: &Path,
    ) -> Result<Self, Error> {
        let mut tower = Tower::new(program, home.join("breach"), bitcoind)?;
        tower.start().await?;
        let client = pair::secret_key(seed, 0, "client").public_key(SECP256K1);
        tower.allow(&client, u32::try_from(arguments.channels).unwrap_or(u32::MAX)).await?;
        let funded = tokio::task::block_in_place(|| fund(arguments.channels, seed, bitcoind));
        let (pairs, coins, height) = funded?;
        let mut random = Random(seed);
        let (client, _events) = Client::start(config(&tower, seed)?);
        let mut cheats = Vec::new();
        let mut told = Vec::new();
        for (index, mut pair) in (0..).zip(pairs) {
            let past = pair.live(height)?;
            let sweep = sweep_script(seed, index);
            let registration = Registration::of(pair.terms()?, pair.our_keys(), sweep.clone());
            let registration = registration.map_err(|error| Error::Wrong(error.to_string()))?;
            cheats.push(Cheat::of(&pair, past, sweep, &mut random)?);
            if arguments.plant == Some(Plant::Untold) && index + 1 == arguments.channels {
                continue;
            }
            let id = client.register(registration, RevealedSecrets::new());
            for (number, secret) in (0..).map(CommitmentNumber).zip(pair.secrets()) {
                let noted = client.note_revoked(id, number, *secret);
                noted.map_err(|error| Error::Wrong(error.to_string()))?;
            }
            told.push((id, pair.secrets().len() as u64));
        }
        for (id, updates) in told {
            until_acknowledged(&client, id, updates).await?;
        }
        // From here on the node is off.
        drop(client);
        Ok(Self { tower, cheats, coins })
    }
}

/// Channels of every kind in turn.
const fn kind(index: u64) -> Kind {
    Kind {
        has_htlcs: index & 1 == 0,
        format: if index & 2 == 0 { CommitmentFormat::Anchors } else { CommitmentFormat::StaticRemotekey },
        funder: if index & 4 == 0 { Side::Local } else { Side::Remote },
    }
}

/// Opens the channels, and mines what funds them: few transactions, in one block. The height of it.
fn fund(channels: u64, seed: u64, bitcoind: &Bitcoind) -> Result<(Vec<Pair>, Vec<Coin>, u32), Error> {
    let height = bitcoind.height()?;
    let opened: Vec<(Pair, TxOut)> =
        (0..channels).map(|index| Pair::open(seed, index, kind(index), height)).collect::<Result<_, _>>()?;
    let (mut pairs, outputs): (Vec<Pair>, Vec<TxOut>) = opened.into_iter().unzip();
    let mut txs = Vec::new();
    for (some, outputs) in pairs.chunks_mut(CHANNELS_PER_TX).zip(outputs.chunks(CHANNELS_PER_TX)) {
        let tx = send(bitcoind, outputs.to_vec())?;
        for (vout, pair) in (0..).zip(some) {
            pair.fund(&tx, vout, height)?;
        }
        txs.push(Arc::new(tx));
    }
    let coins = coins(channels, bitcoind)?;
    let block = bitcoind.mine_to_wallet(1)?;
    let told = bitcoind.call("getblock", &json!([block[0]]))?;
    let in_block: Vec<Txid> = serde_json::from_value(told["tx"].clone()).unwrap_or_default();
    let height = height + 1;
    for (some, tx) in pairs.chunks_mut(CHANNELS_PER_TX).zip(&txs) {
        let txid = tx.compute_txid();
        let place = (0..).zip(&in_block).find(|(_, other)| **other == txid).map(|(place, _)| place);
        let place = place.ok_or_else(|| Error::Wrong(format!("{txid} is not in the block after it was sent")))?;
        for pair in some {
            pair.funded(tx, place, height)?;
        }
    }
    Ok((pairs, coins, height))
}

/// Coins that anyone can spend.
fn coins(channels: u64, bitcoind: &Bitcoind) -> Result<Vec<Coin>, Error> {
    let output = TxOut { value: COIN, script_pubkey: anyones_script().to_p2wsh() };
    let mut coins = Vec::new();
    for _ in (0..channels).step_by(CHANNELS_PER_TX) {
        let count = CHANNELS_PER_TX * COINS_PER_CHANNEL;
        let txid = send(bitcoind, vec![output.clone(); count])?.compute_txid();
        coins.extend((0..).take(count).map(|vout| Coin { outpoint: OutPoint { txid, vout }, sat: COIN.to_sat() }));
    }
    Ok(coins)
}

fn send(bitcoind: &Bitcoind, outputs: Vec<TxOut>) -> Result<Transaction, Error> {
    let tx = signed(bitcoind, outputs)?;
    bitcoind.call("sendrawtransaction", &json!([serialize_hex(&tx)]))?;
    Ok(tx)
}

impl Outcomes {
    fn of(
        arguments: &Arguments,
        seed: u64,
        uploaded: &Uploaded,
        played: &Played,
        breached_with_htlcs: usize,
        (cpu_us, rss_mib_peak): (u64, u64),
        seconds: f64,
    ) -> Self {
        let sums = played.sums;
        let mut outcomes = Self {
            ok: false,
            missed: Vec::new(),
            seed,
            channels: arguments.channels,
            updates: arguments.updates,
            upload_bytes_per_update: uploaded.bytes_per_update,
            upload_bytes_per_update_batched: uploaded.bytes_per_update_batched,
            socket_bytes_per_update: uploaded.socket_bytes_per_update,
            socket_bytes_per_update_batched: uploaded.socket_bytes_per_update_batched,
            updates_per_s: uploaded.updates_per_s,
            updates_per_s_batched: uploaded.updates_per_s_batched,
            cpu_us_per_update: uploaded.cpu_us_per_update,
            stored_bytes_per_channel: uploaded.stored_bytes_per_channel,
            breached: sums.breached,
            breached_with_htlcs,
            outputs: sums.outputs,
            outputs_sat: sums.outputs_sat,
            taken: sums.taken,
            taken_sat: sums.taken_sat,
            fees_sat: sums.fees_sat,
            lost: sums.lost,
            lost_sat: sums.lost_sat,
            stolen: sums.stolen,
            untouched: sums.untouched,
            blocks_needed: played.blocks_needed,
            delay: DELAY,
            late: played.late,
            kills: played.kills,
            breach_s: played.seconds,
            block_s_max: played.seconds_block_max,
            cpu_s: cpu_us as f64 / 1e6,
            rss_mib_peak,
            seconds,
        };
        outcomes.missed = outcomes.misses();
        outcomes.ok = outcomes.missed.is_empty();
        outcomes
    }

    /// What is not as it must be.
    fn misses(&self) -> Vec<String> {
        let mut missed = Vec::new();
        let mut check = |is_right: bool, what: String| missed.extend((!is_right).then_some(what));
        check(self.lost == 0, format!("{} outputs of {} sat were not taken in time", self.lost, self.lost_sat));
        let (breached, channels) = (self.breached, self.channels);
        check(breached as u64 == channels, format!("of {channels} channels {breached} were breached"));
        check(self.outputs >= breached, format!("{breached} breaches have {} outputs", self.outputs));
        // Or nobody has gone for an HTLC.
        let second = self.breached_with_htlcs == 0 || self.outputs != breached;
        check(second, format!("{} breaches with HTLCs have no second-level output", self.breached_with_htlcs));
        let (arrived, paid) = (self.taken_sat, self.fees_sat);
        let held = self.outputs_sat - self.lost_sat;
        check(arrived + paid == held, format!("{arrived} sat arrived and {paid} were paid of {held}"));
        let bounds = [
            ("a channel", self.stored_bytes_per_channel, STORED_BYTES_MAX),
            ("an update", self.upload_bytes_per_update, UPLOAD_BYTES_MAX),
            ("an update in a batch", self.upload_bytes_per_update_batched, UPLOAD_BYTES_BATCHED_MAX),
        ];
        for (what, bytes, most) in bounds {
            check(bytes > 0.0 && bytes <= most, format!("{what} takes {bytes:.2} bytes, {most} at most"));
        }
        missed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Outcomes {
        Outcomes {
            ok: true,
            missed: Vec::new(),
            seed: 1,
            channels: 10,
            updates: 2_000,
            upload_bytes_per_update: 42.0,
            upload_bytes_per_update_batched: 1.0,
            socket_bytes_per_update: 78.0,
            socket_bytes_per_update_batched: 1.1,
            updates_per_s: 1.0,
            updates_per_s_batched: 1.0,
            cpu_us_per_update: 1.0,
            stored_bytes_per_channel: 1_800.0,
            breached: 10,
            breached_with_htlcs: 5,
            outputs: 20,
            outputs_sat: 1_000,
            taken: 20,
            taken_sat: 990,
            fees_sat: 10,
            lost: 0,
            lost_sat: 0,
            stolen: 0,
            untouched: 3,
            blocks_needed: 2,
            delay: DELAY,
            late: 1,
            kills: 4,
            breach_s: 1.0,
            block_s_max: 1.0,
            cpu_s: 1.0,
            rss_mib_peak: 1,
            seconds: 1.0,
        }
    }

    type Change = fn(&mut Outcomes);

    #[test]
    fn every_bound_is_held_and_named() {
        assert!(good().misses().is_empty());
        let cases: [(Change, &str); 9] = [
            (|it| it.lost = 1, "1 outputs of 0 sat were not taken in time"),
            (|it| it.breached = 9, "of 10 channels 9 were breached"),
            (|it| it.outputs = 9, "10 breaches have 9 outputs"),
            (|it| it.outputs = 10, "5 breaches with HTLCs have no second-level output"),
            (|it| it.taken_sat = 980, "980 sat arrived and 10 were paid of 1000"),
            (|it| it.stored_bytes_per_channel = 1_800.1, "a channel takes 1800.10 bytes"),
            (|it| it.stored_bytes_per_channel = 0.0, "a channel takes 0.00 bytes"),
            (|it| it.upload_bytes_per_update = 42.1, "an update takes 42.10 bytes"),
            (|it| it.upload_bytes_per_update_batched = 1.01, "an update in a batch takes 1.01 bytes"),
        ];
        for (change, expected) in cases {
            let mut outcomes = good();
            change(&mut outcomes);
            let missed = outcomes.misses();
            assert!(missed.len() == 1 && missed[0].starts_with(expected), "{missed:?} instead of {expected}");
        }
    }
}
