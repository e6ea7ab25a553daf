//! A story: channels that are closed, by whomever, and blocks until everything that is ours is in the wallet.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use bitcoin::transaction::Version;
use bitcoin::{Amount, Block, Network, OutPoint, Transaction, TxIn, TxOut, Txid, absolute};
use millrace_chain::broadcast::{Broadcaster, Submission};
use millrace_chain::fees::FeeEstimates;
use millrace_chain::{Bitcoind, SyncState};
use millrace_channel::effect::Effect;
use millrace_channel::phase::Phase;
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::{ChainEvent, Command, CommitmentFormat, Fact};
use millrace_wire::BlockHeight;
use secp256k1::rand::rngs::StdRng;
use secp256k1::rand::seq::SliceRandom;
use secp256k1::rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::checks::{Checks, is_cheap, package_rate};
use super::model::{Can, Model, Sent};
use super::rivals::prizes;
use super::scene::{Closing, Scene, funding_output};
use crate::claims::asks::Claimer;
use crate::claims::status::OutputState;
use crate::claims::task::{ClaimParts, Planner, Task, task};
use crate::clock;
use crate::keys::Keys;
use crate::seed::Seed;
use crate::wallet::{ReservePolicy, Wallet, WalletHandle};

/// Blocks in which anything may go wrong.
const WILD_BLOCKS: u32 = 60;
/// Blocks after that until nothing may be left.
const QUIET_BLOCKS: u32 = 120;
/// Without a fault for so many blocks, everything is expected to be where it belongs.
const SETTLED_BLOCKS: u32 = 3;
/// The most that the next block takes in a story, in sat per 1000 virtual bytes.
const FEERATE_MAX: u64 = 150_000;

/// How a story ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Outcome {
    pub(super) violation: Option<String>,
    /// The last block's hash: every transaction that was ever mined is in it.
    digest: String,
    /// What the wallet has.
    balance: u64,
}

/// What may happen in a story.
#[derive(Clone, Copy, Debug)]
struct Mood {
    rivals: bool,
    reorgs: bool,
    restarts: bool,
    empty_blocks: bool,
    faults_permille: u32,
}

/// A channel, and what it has asked for last.
struct Channel {
    scene: Scene,
    claims: Option<Claims>,
    ours: Option<Transaction>,
}

/// The process that may end and start again.
struct Process {
    wallet: WalletHandle,
    wallet_task: JoinHandle<Wallet>,
    broadcaster: Broadcaster,
    task: Task,
    claimer: Claimer,
}

struct Story {
    rng: StdRng,
    mood: Mood,
    planner: Planner,
    model: Arc<Model>,
    bitcoind: Bitcoind,
    keys: Keys,
    records: Arc<Mutex<Vec<Vec<u8>>>>,
    sync: watch::Sender<SyncState>,
    fees: watch::Sender<FeeEstimates>,
    process: Process,
    channels: Vec<Channel>,
    checks: Checks,
    /// What the wallet has been told of.
    mempool: BTreeSet<Txid>,
    /// Outputs that a rival has ever put a transaction out for.
    contested: BTreeSet<OutPoint>,
    /// The last block that something was wrong before.
    wrong_at: u32,
    is_quiet: bool,
}

/// Plays it.
pub(super) fn play(seed: u64, planner: Planner) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    crate::sim::draw_from(Some(seed));
    clock::simulated::set(Some(0));
    let outcome = runtime.block_on(async {
        let mut story = Story::begin(seed, planner).await;
        let violation = story.run().await.err();
        let violation = violation.map(|why| format!("seed {seed}, {:?}: {why}", story.mood));
        let digest = story.model.lock().blocks.last().unwrap().block_hash().to_string();
        let balance = story.process.wallet.balance().await.unwrap().confirmed.0;
        Outcome { violation, digest, balance }
    });
    crate::sim::draw_from(None);
    clock::simulated::set(None);
    outcome
}

/// Lets the tasks that have something to do come to their end.
async fn settle() {
    for _ in 0..200 {
        tokio::task::yield_now().await;
    }
}

impl Process {
    fn start(
        bitcoind: &Bitcoind,
        keys: &Keys,
        records: &Arc<Mutex<Vec<Vec<u8>>>>,
        planner: Planner,
        sync: &watch::Sender<SyncState>,
        fees: &watch::Sender<FeeEstimates>,
    ) -> Self {
        let known = records.lock().unwrap().clone();
        let none = ReservePolicy { per_channel: millrace_wire::Sat(0), max: millrace_wire::Sat(0) };
        let wallet = Wallet::load(known, keys.wallet().clone(), none).unwrap();
        let journal = Arc::clone(records);
        let (wallet, wallet_task) = crate::wallet::spawn(wallet, move |bytes| {
            journal.lock().unwrap().push(bytes);
            std::future::ready(())
        });
        let broadcaster = Broadcaster::start(bitcoind.clone(), sync.subscribe());
        let channel_keys = keys.clone();
        let parts = ClaimParts {
            bitcoind: bitcoind.clone(),
            broadcaster: broadcaster.clone(),
            wallet: wallet.clone(),
            keys_of: Arc::new(move |index| channel_keys.channel_keys(index)),
            fees: fees.subscribe(),
            sync: sync.subscribe(),
        };
        let (task, claimer, _woken) = task(parts, planner);
        Self { wallet, wallet_task, broadcaster, task, claimer }
    }
}

// --- the beginning ---

impl Story {
    async fn begin(seed: u64, planner: Planner) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let is_calm = rng.gen_bool(0.3);
        let mood = Mood {
            rivals: !is_calm && rng.gen_bool(0.6),
            reorgs: !is_calm && rng.gen_bool(0.5),
            restarts: !is_calm && rng.gen_bool(0.5),
            empty_blocks: !is_calm && rng.gen_bool(0.5),
            faults_permille: if is_calm { 0 } else { *[0, 20, 100, 300].choose(&mut rng).unwrap() },
        };
        let packages = is_calm || rng.gen_bool(0.85);
        let can = Can { packages, replace_packages: packages && rng.gen_bool(0.8) };
        let model = Model::new(StdRng::seed_from_u64(rng.r#gen()), can);
        let bitcoind = Bitcoind::within(Arc::clone(&model) as _, Network::Regtest);
        let keys = Keys::derive(&Seed::from_entropy(&[7; 32]), Network::Regtest);
        let records = Arc::default();
        let sync = watch::channel(SyncState::Away { reason: "not yet".to_owned() }).0;
        let fees = watch::channel(FeeEstimates::fallback(Network::Regtest)).0;
        let process = Process::start(&bitcoind, &keys, &records, planner, &sync, &fees);
        let mut story = Self {
            rng,
            mood,
            planner,
            model,
            bitcoind,
            keys,
            records,
            sync,
            fees,
            process,
            channels: Vec::new(),
            checks: Checks::default(),
            mempool: BTreeSet::new(),
            contested: BTreeSet::new(),
            wrong_at: 0,
            is_quiet: false,
        };
        story.block(&[]).await;
        story.fund().await;
        {
            let mut state = story.model.lock();
            state.next = story.rng.gen_range(2_000..40_000);
            state.estimate = state.next;
        }
        story.look_at_fees().await;
        story.close().await;
        story
    }

    /// Coins for the wallet, and funding outputs.
    async fn fund(&mut self) {
        let mut txs = Vec::new();
        for serial in 0..self.rng.gen_range(4..10) {
            let script = self.process.wallet.new_destination().await.unwrap();
            txs.push(gift(
                serial,
                TxOut { value: Amount::from_sat(self.rng.gen_range(30_000..400_000)), script_pubkey: script },
            ));
        }
        let mut fundings = Vec::new();
        for index in 0..self.rng.gen_range(1..4) {
            let is_old = self.rng.gen_bool(0.15);
            let format = if is_old { CommitmentFormat::StaticRemotekey } else { CommitmentFormat::Anchors };
            let tx = gift(100 + index, funding_output(&self.keys, u8::try_from(index).unwrap(), format));
            fundings.push((OutPoint { txid: tx.compute_txid(), vout: 0 }, format));
            txs.push(tx);
        }
        self.block(&txs).await;
        let height = BlockHeight(self.height());
        for (index, (funding, format)) in (0..).zip(fundings) {
            let scene = Scene::new(&mut self.rng, &self.keys, index, format, funding, height);
            self.channels.push(Channel { scene, claims: None, ours: None });
        }
    }

    /// Everybody closes as the scene says. Where it is the peer, we close too, or not yet.
    async fn close(&mut self) {
        let mut theirs = Vec::new();
        for at in 0..self.channels.len() {
            let closing = self.channels[at].scene.closing;
            if closing != Closing::Ours {
                theirs.push(self.channels[at].scene.theirs.clone());
            }
            let (before, close) = (self.rng.gen_bool(0.5), closing == Closing::Ours || self.rng.gen_bool(0.7));
            if before {
                self.broadcast(&theirs.split_off(0));
            }
            if close {
                let end = &mut self.channels[at].scene.ours;
                let order = Command::ForceClose { reason: "by hand".to_owned() };
                end.channel.on_command(order, &mut end.fx).unwrap();
                self.drain(at).await;
            }
        }
        self.broadcast(&theirs);
    }

    fn broadcast(&mut self, txs: &[Transaction]) {
        let mut state = self.model.lock();
        for tx in txs {
            let _may_be_refused = state.send(tx, false);
        }
    }

    fn height(&self) -> u32 {
        self.model.lock().height()
    }
}

/// A transaction out of nowhere.
fn gift(serial: u32, output: TxOut) -> Transaction {
    let txid = <Txid as bitcoin::hashes::Hash>::from_byte_array([0xee; 32]);
    Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::ZERO,
        input: vec![TxIn { previous_output: OutPoint { txid, vout: serial }, ..TxIn::default() }],
        output: vec![output],
    }
}

// --- what is told to whom ---

impl Story {
    /// What the channel wants, from the world.
    async fn drain(&mut self, at: usize) {
        while !self.channels[at].scene.ours.fx.list.is_empty() {
            self.drain_once(at).await;
        }
    }

    async fn drain_once(&mut self, at: usize) {
        let height = self.height();
        let channel = &mut self.channels[at];
        for effect in std::mem::take(&mut channel.scene.ours.fx).list {
            match effect {
                // The revoked commitments of these stories are the first ones, which hold no HTLC.
                Effect::Fact(Fact::Breached { .. }) => {
                    let end = &mut channel.scene.ours;
                    end.channel.on_command(Command::BreachHtlcs(Vec::new()), &mut end.fx).unwrap();
                }
                Effect::Broadcast(broadcast) => {
                    if broadcast.purpose == millrace_channel::effect::Purpose::Commitment {
                        channel.ours = Some(broadcast.tx.clone());
                    }
                    self.process.broadcaster.submit(Submission::Single(broadcast.tx)).await.unwrap();
                }
                Effect::Claim(claims) => {
                    self.checks.learn(&claims, height, &[&channel.scene.theirs]);
                    channel.claims = Some((*claims).clone());
                    self.process.claimer.claim(claims.channel_id, *claims);
                }
                Effect::Send(_) | Effect::Journal(_) | Effect::Watch(_) | Effect::Fact(_) | Effect::Disconnect(_) => {}
            }
        }
    }

    /// Mines, and tells everybody.
    async fn block(&mut self, txs: &[Transaction]) {
        let block = self.model.lock().mine(txs);
        self.connected(&block).await;
        self.tip().await;
    }

    async fn connected(&mut self, block: &Arc<Block>) {
        let height = self.height();
        clock::simulated::set(Some(u64::from(height) * 600_000));
        self.process.wallet.apply_block(height, Arc::clone(block)).await.unwrap().unwrap();
        for at in 0..self.channels.len() {
            let end = &mut self.channels[at].scene.ours;
            let event = ChainEvent::Tip { height: BlockHeight(height), block: block.block_hash() };
            end.channel.on_chain(event, &mut end.fx);
            for (index, tx) in (0..).zip(&block.txdata) {
                end.channel.on_chain(ChainEvent::Confirmed { tx: Arc::new(tx.clone()), index }, &mut end.fx);
            }
            self.drain(at).await;
        }
    }

    async fn tip(&mut self) {
        self.sync.send_replace(SyncState::Synced { height: self.height() });
        self.look_at_fees().await;
        settle().await;
    }

    async fn look_at_fees(&mut self) {
        if let Ok(estimates) = FeeEstimates::fetch(&self.bitcoind).await {
            self.fees.send_replace(estimates);
        }
    }

    /// Blocks are taken out, and at least as many others come in their place; with the peers' commitments if they can.
    async fn reorg(&mut self) {
        let depth = self.rng.gen_range(1..4).min(self.height().saturating_sub(104));
        for _ in 0..depth {
            let height = self.height();
            let gone = self.model.lock().unmine();
            self.process.wallet.disconnect_block(height, gone.block_hash()).await.unwrap().unwrap();
            for at in 0..self.channels.len() {
                let end = &mut self.channels[at].scene.ours;
                end.channel.on_chain(ChainEvent::Disconnected { height: BlockHeight(height) }, &mut end.fx);
                self.drain(at).await;
            }
        }
        let swap = self.rng.gen_bool(0.5);
        for index in 0..=depth {
            let theirs = |story: &Self| story.channels.iter().map(|channel| channel.scene.theirs.clone()).collect();
            let wanted: Vec<Transaction> = if swap && index == 0 { theirs(self) } else { Vec::new() };
            let txs = self.fitting(wanted);
            let block = self.model.lock().mine(&txs);
            self.connected(&block).await;
        }
        self.checks.forget_bids();
        self.tip().await;
    }

    /// Those that could stand in the next block.
    fn fitting(&self, txs: Vec<Transaction>) -> Vec<Transaction> {
        let state = self.model.lock();
        let is_there =
            |tx: &Transaction| tx.input.iter().all(|input| state.unspent.contains_key(&input.previous_output));
        let mut taken = BTreeSet::new();
        let mut fitting = txs;
        fitting.retain(|tx| {
            is_there(tx)
                && state.mempool.examine(&state.chain(), tx, None).is_ok()
                && tx.input.iter().all(|input| taken.insert(input.previous_output))
        });
        fitting
    }

    /// The wallet and the channels see what has come and gone.
    async fn look_at_mempool(&mut self) {
        let now: BTreeMap<Txid, Transaction> = {
            let state = self.model.lock();
            state.mempool.entries.iter().map(|(txid, entry)| (*txid, entry.tx.clone())).collect()
        };
        let gone: Vec<Txid> = self.mempool.iter().filter(|txid| !now.contains_key(*txid)).copied().collect();
        let arrived: Vec<Transaction> =
            now.iter().filter(|(txid, _)| !self.mempool.contains(*txid)).map(|(_, tx)| tx.clone()).collect();
        self.mempool = now.into_keys().collect();
        self.process.wallet.mempool(arrived.clone(), gone, clock::unix_ms() / 1000).await.unwrap();
        for at in 0..self.channels.len() {
            let end = &mut self.channels[at].scene.ours;
            for tx in &arrived {
                end.channel.on_chain(ChainEvent::Unconfirmed { tx: Arc::new(tx.clone()) }, &mut end.fx);
            }
            self.drain(at).await;
        }
    }

    async fn restart(&mut self) {
        let fresh = Process::start(&self.bitcoind, &self.keys, &Arc::default(), self.planner, &self.sync, &self.fees);
        let Process { wallet, wallet_task, broadcaster, task, claimer } = std::mem::replace(&mut self.process, fresh);
        drop((wallet, broadcaster, task, claimer));
        wallet_task.await.unwrap();
        self.process = Process::start(&self.bitcoind, &self.keys, &self.records, self.planner, &self.sync, &self.fees);
        self.mempool.clear();
        self.checks.forget_bids();
        let height = BlockHeight(self.height());
        for at in 0..self.channels.len() {
            let end = self.channels[at].scene.ours.restarted(height);
            self.channels[at].scene.ours = end;
            self.drain(at).await;
        }
        self.look_at_mempool().await;
    }
}

// --- block by block ---

impl Story {
    async fn run(&mut self) -> Result<(), String> {
        for _ in 0..WILD_BLOCKS {
            self.step().await?;
        }
        self.is_quiet = true;
        self.model.lock().faults.permille = 0;
        for _ in 0..QUIET_BLOCKS {
            self.step().await?;
            if self.channels.iter().all(|channel| *channel.scene.ours.channel.phase() == Phase::Closed) {
                return self.check_end().await;
            }
        }
        let left = |channel: &Channel| {
            let end = &channel.scene.ours.channel;
            format!("{:?} with {:?} of {:?}", end.phase(), end.unclaimed_outputs(), channel.scene.closing)
        };
        let left: Vec<String> = self.channels.iter().map(left).collect();
        Err(format!("not closed at {}: {left:#?}\n{:#?}", self.height(), self.process.claimer.status().borrow()))
    }

    async fn step(&mut self) -> Result<(), String> {
        self.weather();
        self.look_at_fees().await;
        for _ in 0..self.rng.gen_range(1..3) {
            self.rival();
            self.look_at_mempool().await;
            self.round().await?;
        }
        if !self.is_quiet && self.mood.restarts && self.rng.gen_bool(0.05) {
            self.restart().await;
            self.round().await?;
        }
        self.check_settled()?;
        if !self.is_quiet && self.mood.reorgs && self.rng.gen_bool(0.06) {
            self.wrong();
            self.reorg().await;
        } else {
            let is_empty = !self.is_quiet && self.mood.empty_blocks && self.rng.gen_bool(0.2);
            let txs = if is_empty { Vec::new() } else { self.next_block() };
            self.block(&txs).await;
        }
        self.look_at_mempool().await;
        self.round().await?;
        self.check_settled()?;
        self.check_deadlines()
    }

    fn wrong(&mut self) {
        self.wrong_at = self.height();
    }

    /// Fees and faults of the next block.
    fn weather(&mut self) {
        let (quiet, faults) = (self.is_quiet, self.mood.faults_permille);
        let is_faulty = !quiet && self.height() % 16 < 10;
        let calm = faults == 0 && !self.mood.rivals;
        let rng = &mut self.rng;
        let mut state = self.model.lock();
        let factor = rng.gen_range(70..140);
        let next = (state.next * factor / 100).clamp(1_000, 60_000);
        let spike = !quiet && rng.gen_bool(0.06);
        state.next = if quiet {
            1_000
        } else if spike {
            (next * rng.gen_range(2..6)).min(FEERATE_MAX)
        } else {
            next
        };
        let error = if quiet || calm { 100 } else { rng.gen_range(60..140) };
        state.estimate = (state.next * error / 100).max(1_000);
        let full = !quiet && rng.gen_bool(0.3);
        let share = rng.gen_range(20..90);
        state.minimum = if full { (state.next * share / 100).max(1_000) } else { 1_000 };
        let minimum = state.minimum;
        state.mempool.evict(minimum);
        state.faults.permille = if is_faulty { faults } else { 0 };
        drop(state);
        if is_faulty && faults > 0 {
            self.wrong();
        }
    }

    /// The peers take what they can, more or less often.
    fn rival(&mut self) {
        if self.is_quiet || !self.mood.rivals || !self.rng.gen_bool(0.4) {
            return;
        }
        let tip = BlockHeight(self.height());
        let mut all = Vec::new();
        for channel in &self.channels {
            if let Some(claims) = &channel.claims {
                all.extend(prizes(claims, tip, &channel.scene.preimages));
            }
        }
        let Some(prize) = all.choose(&mut self.rng) else { return };
        let next = self.model.lock().next;
        let Some(tx) = prize.take(next * self.rng.gen_range(20..250) / 100) else { return };
        self.contested.insert(prize.outpoint);
        self.broadcast(&[tx]);
        self.wrong();
    }

    /// What the miners take: what pays enough; now and then something that came by another way.
    fn next_block(&mut self) -> Vec<Transaction> {
        let mut wanted = Vec::new();
        if !self.is_quiet && self.mood.rivals && self.rng.gen_bool(0.1) {
            let tip = BlockHeight(self.height());
            for channel in &self.channels {
                let claims = channel.claims.iter();
                let found = claims.flat_map(|claims| prizes(claims, tip, &channel.scene.preimages));
                wanted.extend(found.filter_map(|prize| prize.take(2_000)).take(1));
            }
            wanted = self.fitting(wanted);
            self.contested.extend(wanted.iter().map(|tx| tx.input[0].previous_output));
            if !wanted.is_empty() {
                self.wrong();
            }
        }
        let state = self.model.lock();
        let mut spent: BTreeSet<OutPoint> = wanted.iter().map(|tx| tx.input[0].previous_output).collect();
        let mut left_out: BTreeSet<Txid> = BTreeSet::new();
        for tx in state.mempool.best(state.next) {
            let fits = |input: &TxIn| {
                !spent.contains(&input.previous_output) && !left_out.contains(&input.previous_output.txid)
            };
            if tx.input.iter().all(fits) {
                spent.extend(tx.input.iter().map(|input| input.previous_output));
                wanted.push(tx);
            } else {
                left_out.insert(tx.compute_txid());
            }
        }
        wanted
    }

    /// One round of the task; what it hands over is checked.
    async fn round(&mut self) -> Result<(), String> {
        // What bitcoind's absence ends is taken up by the next round.
        let _may_be_away = self.process.task.round().await;
        settle().await;
        let sent: Vec<Sent> = std::mem::take(&mut self.model.lock().sent);
        self.checks.sent(&self.model.lock(), &sent)
    }
}

// --- what is expected of it ---

impl Story {
    fn claimed(&self) -> BTreeSet<OutPoint> {
        let claims = || self.channels.iter().filter_map(|channel| channel.claims.as_ref());
        let sweeps = claims().flat_map(|claims| claims.sweeps.iter().map(|sweep| sweep.claim.outpoint));
        let htlc_txs = claims().flat_map(|claims| claims.htlc_txs.iter());
        sweeps.chain(htlc_txs.map(|claim| claim.htlc_tx.tx.input[0].previous_output)).collect()
    }

    /// Once nothing has gone wrong for some blocks.
    fn check_settled(&self) -> Result<(), String> {
        if self.height() < self.wrong_at + SETTLED_BLOCKS {
            return Ok(());
        }
        let state = self.model.lock();
        let mut claimed = self.claimed();
        // For want of coins of the wallet's: not the task's fault.
        let status = self.process.claimer.status();
        let is_poor = |outpoint: &OutPoint| {
            status.borrow().outputs.get(outpoint).is_some_and(
                |output| matches!(&output.state, OutputState::Waiting { reason } if reason.contains("the wallet")),
            )
        };
        claimed.retain(|outpoint| !self.contested.contains(outpoint) && !is_poor(outpoint));
        self.checks.whole(&state, &claimed).map_err(|(outpoint, why)| {
            format!(
                "{why}: {:?}; {} sat per kvB for the next block, of at least {}",
                status.borrow().outputs.get(&outpoint),
                state.next,
                state.minimum
            )
        })?;
        for channel in &self.channels {
            let Some((claims, others)) =
                channel.claims.as_ref().and_then(|claims| Some((claims, claims.others.as_ref()?)))
            else {
                continue;
            };
            let Some(spender) = state.mempool.spenders.get(&others.funding) else {
                let can_pay =
                    |cpfp| state.can.packages && is_cheap(cpfp, state.minimum) && !is_poor(&cpfp.anchor.outpoint);
                if claims.parent.as_ref().is_some_and(can_pay) {
                    return Err(format!("no commitment in the mempool at {}: {:#?}", state.height(), status.borrow()));
                }
                continue;
            };
            let tx = &state.mempool.entries[spender].tx;
            let Some(cpfp) = others.cpfp(tx) else { continue };
            let rate = package_rate(&state, tx, cpfp.anchor.outpoint).unwrap_or(0);
            // The estimate for a day.
            let wanted = state.minimum.max(state.estimate / 2) * 9 / 10;
            if rate < wanted && is_cheap(&cpfp, wanted) && !is_poor(&cpfp.anchor.outpoint) {
                return Err(format!(
                    "the commitment in the mempool is not helped at {}: {rate} of {wanted} for {:?}: {:#?}",
                    state.height(),
                    channel.scene.closing,
                    status.borrow()
                ));
            }
        }
        Ok(())
    }

    /// In a story in which nothing goes wrong, what can pay for itself is in a block by its deadline.
    fn check_deadlines(&self) -> Result<(), String> {
        let Mood { rivals, reorgs, restarts, empty_blocks, faults_permille } = self.mood;
        if rivals || reorgs || restarts || empty_blocks || faults_permille > 0 {
            return Ok(());
        }
        let state = self.model.lock();
        for (outpoint, item) in &self.checks.items {
            let Some(deadline) = item.deadline.filter(|deadline| *deadline == state.height()) else { continue };
            let has_time = item.since + 12 < deadline;
            let can_pay = 2 * FEERATE_MAX * (item.weight + 400) / 4_000 < item.value;
            if has_time && can_pay && state.unspent.contains_key(outpoint) && item.is_htlc() {
                return Err(format!("late: {outpoint} at {deadline}: {item:?}"));
            }
        }
        Ok(())
    }

    /// Everything that was ever claimed is spent in a block, but for what is not worth it; no coin is still promised.
    async fn check_end(&mut self) -> Result<(), String> {
        let balance = self.process.wallet.balance().await.unwrap();
        if balance.locked.0 > 0 {
            return Err(format!("{} are still promised", balance.locked));
        }
        let left: BTreeSet<OutPoint> = self
            .checks
            .items
            .keys()
            .filter(|outpoint| self.model.lock().unspent.contains_key(outpoint))
            .copied()
            .collect();
        self.checks.whole(&self.model.lock(), &left).map_err(|(_, why)| format!("at the end: {why}"))
    }
}
