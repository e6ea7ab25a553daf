//! Many cells on one daemon and one chain, block by block: all that can be done in a block is done for all of them, and one
//! restart serves all.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_rpc::v1::{
    CloseChannelRequest, GetInfoRequest, GetInvoiceRequest, InvoiceStatus, SettleInvoiceRequest, settle_invoice_request,
};
use millrace_wire::{HtlcId, PaymentHash, PublicKey};

use super::cell::{Cell, Known, Reorg, Stands};
use super::chain::{Chain, Made};
use super::claimant::Coin;
use super::payer::Payer;
use super::scene::Scene;
use crate::network::{Error, Network, SOON, random_key, wait_for};
use crate::node::Node;
use crate::random::Random;
use crate::report::Report;

/// The settings of the daemon under test.
const SETTINGS: [(&str, &str); 11] = [
    ("channel-minimum-depth", "1"),
    ("channel-minimum-depth-large", "1"),
    ("channel-to-self-delay-blocks", "6"),
    ("peers-max-connections", "1000"),
    ("peers-max-without-channels", "1000"),
    // Its peers say nothing for minutes.
    ("peers-ping-interval-s", "3600"),
    ("routing-cltv-delta-blocks", "48"),
    ("routing-fee-base-msat", "0"),
    ("routing-fee-ppm", "0"),
    ("routing-peer-share-percent", "100"),
    ("log-level", "info,millraced=debug"),
];
/// How many blocks a reorg takes out, at most: the one with the commitment and those on it.
const BURIED_MAX: u32 = 4;
/// The block, counted from the last one before the commitments, after which late preimages are known.
const LATE: u32 = 5;
/// Blocks after the last expiry: the block of what takes it back, the delay of its output, six for a failure to be final.
const AFTER_EXPIRY: u32 = 16;
/// How long is waited for a claim that is due, while others come.
const CLAIM_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(25);

/// What is done wrong on purpose, so that the matrix is seen to notice.
#[derive(Clone, Copy, Debug)]
pub enum Plant {
    /// No block holds the daemon's claims of HTLCs in this cell.
    KeptOut(Cell),
}

/// Cells that are played together.
pub(super) struct Batch {
    pub(super) network: Network,
    pub(super) scenes: Vec<Scene>,
    pub(super) payer: Payer,
    /// Forwards of the payer's: into which scene, the id in the payer's channel, the hash.
    pub(super) forwards: Vec<(usize, HtlcId, PaymentHash)>,
    pub(super) coins: Vec<Coin>,
    /// What the daemon's wallet was given.
    pub(super) given_sat: u64,
    /// The coins of that.
    pub(super) given: Vec<OutPoint>,
    /// What the transactions in blocks pay the miners.
    pub(super) fees: HashMap<Txid, u64>,
    /// The transactions that have spent something of a scene's.
    pub(super) txs: HashMap<Txid, Transaction>,
    pub(super) restarts: u32,
    chain: Chain,
    random: Random,
    plant: Option<Plant>,
    due_before: Vec<HashSet<OutPoint>>,
}

impl Batch {
    /// Starts a bitcoind and a daemon. All cells have a reorg, or none has.
    pub(super) async fn start(cells: &[Cell], seed: u64, plant: Option<Plant>) -> Result<Self, Error> {
        let mut network = tokio::task::block_in_place(Network::start)?;
        let daemon = network.add("daemon");
        for (flag, value) in SETTINGS {
            network.nodes[daemon].argument(&format!("--{flag}"));
            network.nodes[daemon].argument(value);
        }
        network.nodes[daemon].start().await?;
        let chain = tokio::task::block_in_place(|| Chain::new(&network.bitcoind))?;
        Ok(Self {
            network,
            scenes: cells.iter().map(|cell| Scene::new(*cell)).collect(),
            payer: Payer::new(),
            forwards: Vec::new(),
            coins: Vec::new(),
            given_sat: 0,
            given: Vec::new(),
            fees: HashMap::new(),
            txs: HashMap::new(),
            restarts: 0,
            chain,
            random: Random(seed),
            plant,
            due_before: cells.iter().map(|_| HashSet::new()).collect(),
        })
    }

    pub(super) fn daemon(&self) -> &Node {
        &self.network.nodes[0]
    }

    pub(super) fn daemon_id(&self) -> Result<PublicKey, Error> {
        PublicKey::from_slice(self.daemon().node_id()).map_err(|error| Error::Wrong(format!("a node id: {error}")))
    }

    pub(super) fn height(&self) -> Result<u32, Error> {
        Ok(tokio::task::block_in_place(|| self.network.bitcoind.height())?)
    }

    /// A transaction that was in the mempool once.
    pub(super) fn seen(&self, txid: &Txid) -> Option<&Transaction> {
        self.chain.seen(txid)
    }

    /// Those of them that spend this.
    pub(super) fn spenders(&self, outpoint: &OutPoint) -> Vec<Txid> {
        self.chain.spenders(outpoint)
    }

    /// From the first commitment to the last claim's burial.
    pub(super) async fn play(&mut self, report: &Report) -> Result<(), Error> {
        let base = self.height()?;
        self.close_ours(base).await?;
        let is_swapped = self.scenes.iter().any(|scene| scene.cell.reorg == Reorg::Swaps);
        if is_swapped {
            self.publish(base, |cell| cell.first().unwrap_or(cell.stands)).await?;
            self.tell_late(base + 1, Cell::is_told_before_swap).await?;
            let buried = 1 + u32::try_from(self.random.below(BURIED_MAX.into())).unwrap_or_default();
            for _ in 1..buried {
                self.step().await?;
            }
            self.swap(base, buried).await?;
        } else {
            self.publish(base, |cell| cell.stands).await?;
        }
        let expiries = self.scenes.iter().flat_map(|scene| &scene.htlcs).map(|htlc| htlc.cltv_expiry.0);
        let end = expiries.max().unwrap_or(base + 2).max(base + LATE) + AFTER_EXPIRY;
        let mut is_late_told = false;
        while self.height()? < end {
            let height = self.height()?;
            if height >= base + LATE && !is_late_told {
                is_late_told = true;
                self.tell_late(height, |_| true).await?;
            }
            report.progress(&format!("block {} of {}, {} restarts", height - base, end - base, self.restarts));
            self.step().await?;
        }
        Ok(())
    }

    // --- commitments ---

    /// The daemon closes where its commitment is to be in a block, now or after a reorg.
    async fn close_ours(&mut self, base: u32) -> Result<(), Error> {
        for index in 0..self.scenes.len() {
            if !self.scenes[index].is_on() || !self.scenes[index].cell.has(Stands::Ours) {
                continue;
            }
            let closed = self.close(index).await;
            match closed {
                Ok(tx) => {
                    self.scenes[index].story.tell(base, format!("the daemon closes by {}", tx.compute_txid()));
                    self.scenes[index].ours = Some(tx);
                }
                Err(error) => self.scenes[index].fail(base, format!("the daemon does not close: {error}")),
            }
        }
        Ok(())
    }

    async fn close(&mut self, index: usize) -> Result<Transaction, Error> {
        let (channel_id, funding) = (self.scenes[index].peer.channel()?.id(), self.scenes[index].funding()?);
        let request = CloseChannelRequest {
            idempotency_key: random_key(),
            channel_id: channel_id.0.to_vec(),
            force: true,
            ..CloseChannelRequest::default()
        };
        let node = &self.network.nodes[0];
        let answer = node.client()?.channels.close(request).await;
        drop(answer.map_err(|status| node.call_failed(&status))?);
        let found = std::cell::RefCell::new(None);
        let chain = std::cell::RefCell::new(&mut self.chain);
        wait_for("the daemon's commitment in the mempool", SOON, async || {
            let spends = tokio::task::block_in_place(|| chain.borrow_mut().spends(&self.network.bitcoind))?;
            *found.borrow_mut() = spends.get(&funding).map(|tx| Transaction::clone(tx));
            Ok(if found.borrow().is_some() { Ok(()) } else { Err("it is not there".to_owned()) })
        })
        .await?;
        found.into_inner().ok_or_else(|| Error::Wrong("the commitment is gone again".to_owned()))
    }

    /// A commitment of every scene, in one block.
    async fn publish(&mut self, base: u32, which: impl Fn(&Cell) -> Stands) -> Result<(), Error> {
        let made = self.publish_in_block(base, &which)?;
        self.after_block(&made, true).await
    }

    fn publish_in_block(&mut self, base: u32, which: &impl Fn(&Cell) -> Stands) -> Result<Made, Error> {
        let mut forced = Vec::new();
        for scene in self.scenes.iter_mut().filter(|scene| scene.failures.is_empty()) {
            match scene.commitment(which(&scene.cell)) {
                Ok(tx) => forced.push(tx),
                Err(error) => scene.fail(base, error.to_string()),
            }
        }
        let made = self.make(&forced)?;
        for scene in self.scenes.iter_mut().filter(|scene| scene.failures.is_empty()) {
            let funding = scene.funding()?;
            let found = made.txs.iter().find(|(_, tx)| tx.input[0].previous_output == funding);
            let stood = match found {
                Some((place, tx)) => scene.stand(which(&scene.cell), made.height, *place, tx),
                None => Err(Error::Wrong("the block does not hold the commitment".to_owned())),
            };
            if let Err(error) = stood {
                scene.fail(made.height, error.to_string());
            }
        }
        self.note(&made);
        Ok(made)
    }

    /// A reorg: other blocks, one more, with the commitment that is to stand. The daemon sees it happen, or is away.
    async fn swap(&mut self, base: u32, buried: u32) -> Result<(), Error> {
        let is_away = self.random.below(2) == 0;
        if is_away {
            self.network.nodes[0].kill9()?;
        }
        let gone = tokio::task::block_in_place(|| self.network.bitcoind.block_hash(base + 1))?;
        tokio::task::block_in_place(|| self.network.bitcoind.invalidate_block(&gone))?;
        for scene in &mut self.scenes {
            scene.disconnect(base + 1);
        }
        self.txs.clear();
        // What is in the mempool again of the old chain contradicts the new one: none of it is mined.
        self.publish_in_block(base, &|cell| cell.stands)?;
        for _ in 0..buried {
            let made = self.make(&[])?;
            self.note(&made);
        }
        if !is_away {
            if self.random.below(2) == 0 {
                self.until_followed().await?;
            }
            self.network.nodes[0].kill9()?;
        }
        self.bring_up().await?;
        self.until_followed().await?;
        self.await_claims().await
    }

    // --- preimages ---

    /// The daemon's owner settles what was received.
    pub(super) async fn settle(&mut self, index: usize) -> Result<(), Error> {
        let received = self.scenes[index].of_direction(false).next();
        let preimage = received.map(|htlc| htlc.preimage.clone());
        if let Some(preimage) = preimage {
            let node = &self.network.nodes[0];
            let request = SettleInvoiceRequest {
                idempotency_key: random_key(),
                which: Some(settle_invoice_request::Which::Preimage(preimage.as_bytes().to_vec())),
            };
            let answer = node.client()?.invoices.settle(request).await;
            answer.map_err(|status| node.call_failed(&status))?;
        }
        self.scenes[index].is_settled = true;
        Ok(())
    }

    /// Late preimages are known now, in those cells in which they were not before.
    async fn tell_late(&mut self, height: u32, is_meant: impl Fn(&Cell) -> bool) -> Result<(), Error> {
        for index in 0..self.scenes.len() {
            let scene = &self.scenes[index];
            if scene.cell.known != Known::Late || scene.is_told || !scene.is_on() || !is_meant(&scene.cell) {
                continue;
            }
            let told = match self.settle(index).await {
                Ok(()) => self.scenes[index].tell_peer(height),
                Err(error) => Err(error),
            };
            self.scenes[index].story.tell(height, "late preimages are known now");
            if let Err(error) = told {
                self.scenes[index].fail(height, format!("a late preimage is refused: {error}"));
            }
        }
        self.kill_and_start().await?;
        self.await_claims().await
    }

    /// How an invoice of the daemon's stands.
    pub(super) async fn invoice_status(&self, payment_hash: PaymentHash) -> Result<Option<InvoiceStatus>, Error> {
        let request = GetInvoiceRequest { payment_hash: payment_hash.0.to_vec() };
        let answer = self.daemon().client()?.invoices.get(request).await;
        let found = answer.map_err(|status| self.daemon().call_failed(&status))?.into_inner().invoice;
        Ok(found.map(|invoice| invoice.status()))
    }

    pub(super) async fn until_invoice(&self, hash: PaymentHash, wanted: InvoiceStatus) -> Result<(), Error> {
        wait_for(&format!("an invoice that is {wanted:?}"), SOON, async || {
            let status = self.invoice_status(hash).await?;
            Ok(if status == Some(wanted) { Ok(()) } else { Err(format!("it is {status:?}")) })
        })
        .await
    }

    // --- blocks ---

    /// One block with what everybody wants in it, a restart if claims changed by it, and the claims that are due then.
    async fn step(&mut self) -> Result<(), Error> {
        let forced = self.wanted_by_peers();
        let made = self.make(&forced)?;
        let is_news = self.note(&made);
        self.after_block(&made, is_news).await
    }

    fn wanted_by_peers(&mut self) -> Vec<Transaction> {
        let height = self.height().unwrap_or_default();
        let (coins, bitcoind, chain) = (&mut self.coins, &self.network.bitcoind, &self.chain);
        let mut forced = Vec::new();
        for scene in &mut self.scenes {
            for tx in scene.peer_transactions(|| coins.pop()) {
                match tokio::task::block_in_place(|| chain.check(bitcoind, std::slice::from_ref(&tx))) {
                    Ok(()) => forced.push(tx),
                    Err(why) => {
                        scene.fail(height, format!("no block may hold the peer's {}: {why}", tx.compute_txid()))
                    }
                }
            }
        }
        forced
    }

    fn make(&mut self, forced: &[Transaction]) -> Result<Made, Error> {
        let (scenes, plant) = (&self.scenes, self.plant);
        let kept_out = |tx: &Transaction| {
            let Some(Plant::KeptOut(cell)) = plant else { return false };
            scenes.iter().any(|scene| scene.cell == cell && scene.is_our_htlc_claim(tx))
        };
        let (chain, bitcoind) = (&mut self.chain, &self.network.bitcoind);
        let made = tokio::task::block_in_place(|| chain.make(bitcoind, forced, kept_out))?;
        self.fees.extend(made.fees.iter());
        Ok(made)
    }

    /// Tells the scenes of a block; whether it changed anything for one of them.
    fn note(&mut self, made: &Made) -> bool {
        let mut is_news = false;
        for scene in &mut self.scenes {
            is_news |= scene.on_block(made.height, &made.txs);
        }
        for (_, tx) in &made.txs {
            self.txs.insert(tx.compute_txid(), Transaction::clone(tx));
        }
        is_news
    }

    /// A restart, if what is claimed has changed by the block: after the daemon has seen it, or before.
    async fn after_block(&mut self, made: &Made, is_news: bool) -> Result<(), Error> {
        let due: Vec<HashSet<OutPoint>> =
            self.scenes.iter().map(|scene| scene.due(made.height).into_iter().collect()).collect();
        let is_changed = is_news || due != self.due_before;
        self.due_before = due;
        if is_changed {
            if self.random.below(2) == 0 {
                self.until_followed().await?;
            }
            self.kill_and_start().await?;
            for scene in &mut self.scenes {
                scene.story.tell(made.height, "the daemon was killed and started again");
            }
        }
        self.until_followed().await?;
        self.await_claims().await
    }

    async fn kill_and_start(&mut self) -> Result<(), Error> {
        self.network.nodes[0].kill9()?;
        self.bring_up().await
    }

    async fn bring_up(&mut self) -> Result<(), Error> {
        if !self.network.nodes[0].is_running() {
            self.restarts += 1;
            self.network.nodes[0].start().await?;
        }
        Ok(())
    }

    /// The daemon knows the tip.
    async fn until_followed(&self) -> Result<(), Error> {
        let tip = tokio::task::block_in_place(|| self.network.bitcoind.tip())?.to_string();
        wait_for("the daemon at the tip", SOON, async || {
            let info = self.daemon().client()?.node.get_info(GetInfoRequest {}).await;
            let info = info.map_err(|status| self.daemon().call_failed(&status))?.into_inner();
            let at = hex::encode(&info.tip_hash);
            Ok(if at == tip { Ok(()) } else { Err(format!("it is at {at}, block {}", info.tip_height)) })
        })
        .await
    }

    /// Waits until everything that the rules give to the daemon by the next block is on its way there. What does not come
    /// is noted, and not waited for again: the blocks go on.
    async fn await_claims(&mut self) -> Result<(), Error> {
        let tip = self.height()?;
        let mut until = Instant::now() + CLAIM_PATIENCE;
        let mut missing_before = usize::MAX;
        loop {
            let spends = {
                let (chain, bitcoind) = (&mut self.chain, &self.network.bitcoind);
                tokio::task::block_in_place(|| chain.spends(bitcoind))?
            };
            let missing = |scene: &Scene| -> Vec<OutPoint> {
                let due = scene.due(tip).into_iter();
                due.filter(|outpoint| !spends.contains_key(outpoint) && !scene.late.contains(outpoint)).collect()
            };
            let lacking: usize = self.scenes.iter().map(|scene| missing(scene).len()).sum();
            if lacking == 0 {
                return Ok(());
            }
            if lacking < missing_before {
                missing_before = lacking;
                until = Instant::now() + CLAIM_PATIENCE;
            }
            if Instant::now() > until {
                for scene in &mut self.scenes {
                    for outpoint in missing(scene) {
                        scene.story.tell(tip, format!("our claim of {outpoint} is due, and not in the mempool"));
                        scene.late.insert(outpoint);
                    }
                }
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}
