//! The tower towards the chain: it hands blocks to the keeper, and sees to it that every penalty that should exist does.
//!
//! Nothing is broadcast before the journal has the blocks it rests on. What was made is remembered in memory alone: after
//! a start everything is worked out anew from what is recorded, made again and broadcast again. A refusal by bitcoind is
//! never a reason to drop a claim: what is to be taken follows from the blocks alone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_chain::broadcast::{Broadcaster, Status, Submission};
use millrace_chain::fees::FeeEstimates;
use millrace_chain::watch::EVENTS_MAX;
use millrace_chain::{Bitcoind, ChainError, ChainEvent, Cursor, SyncState, Trail, Watcher};
use millrace_wire::{BlockHeight, Sat};
use thiserror::Error;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::keeper::{Desk, Durability, Fault, Keeper};
use crate::ladder;
use crate::plan::{Bid, Penalty, Plan, Rates, Situation, plan};
use crate::record::Handle;
use crate::tower::Claim;
use crate::vault::Loot;

/// How often it is worked out anew between blocks: a secret may come late, and fees change.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Blocks that are looked through for a channel whose funding output is not to be found: two days. Whoever cheated before has
/// mostly taken it by now.
const LOOK_BACK_BLOCKS: u32 = 288;

/// Why the tower cannot go on.
#[derive(Debug, Error)]
pub enum GuardError {
    /// The chain cannot be followed, and waiting does not mend it.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// The keeper has ended.
    #[error(transparent)]
    Keeper(#[from] Fault),
}

/// What is to be told of the chain.
#[derive(Clone, PartialEq, Debug)]
pub struct View {
    /// How far bitcoind is.
    pub sync: SyncState,
    /// The last block that was looked through.
    pub height: Option<BlockHeight>,
    /// Outputs to be taken, and the sum of them.
    pub to_take: usize,
    /// Their sum.
    pub to_take_sum: Sat,
    /// Penalties that are being broadcast.
    pub penalties: Vec<PenaltyView>,
}

/// A penalty that is being broadcast.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PenaltyView {
    /// Its id.
    pub txid: Txid,
    /// How many outputs it takes.
    pub inputs: usize,
    /// Its fee.
    pub fee: Sat,
    /// What bitcoind says of it.
    pub status: String,
}

/// Follows the chain and punishes, until `stop` says so.
///
/// # Errors
/// [`GuardError`].
pub async fn run(
    bitcoind: Bitcoind,
    desk: Desk,
    durability: Durability,
    view: watch::Sender<View>,
    mut stop: watch::Receiver<bool>,
) -> Result<(), GuardError> {
    let blocks = desk.ask(|keeper| keeper.tower().blocks().collect::<Vec<_>>()).await?;
    let trail = Trail::new(blocks.into_iter().map(|(height, hash)| Cursor { height: height.0, hash }));
    let (watcher, sync) = Watcher::new(bitcoind.clone());
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    let mut watching = tokio::spawn(watcher.run(trail, sender));
    let mut guard = Guard {
        bitcoind: bitcoind.clone(),
        desk,
        durability,
        broadcaster: Broadcaster::start(bitcoind.clone(), sync.clone()),
        fees: FeeEstimates::follow(bitcoind, sync.clone()),
        sync,
        view,
        bids: BTreeMap::new(),
        since: BTreeMap::new(),
        is_at_tip: false,
    };
    let mut ticks = interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stopped(&mut stop) => break,
            ended = &mut watching => match ended {
                Ok(result) => return Ok(result?),
                Err(error) => return Err(ChainError::Away { reason: error.to_string() }.into()),
            },
            Some(event) = events.recv() => guard.on_event(event).await?,
            _ = ticks.tick() => guard.act().await?,
        }
    }
    watching.abort();
    Ok(())
}

async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could say so.
    let _gone = stop.wait_for(|stopped| *stopped).await;
}

/// What became of a bid.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Submitted {
    /// It is out, or waits for bitcoind, or what it would have replaced stays.
    AsFarAsCanBe,
    /// Something in the mempool takes some of it, and nothing is known that does.
    Conflict,
}

/// Whether bitcoind refuses a transaction for what others spend.
fn is_conflict(reason: &str) -> bool {
    ["rejecting replacement", "txn-mempool-conflict", "missingorspent"].iter().any(|word| reason.contains(word))
}

struct Guard {
    bitcoind: Bitcoind,
    desk: Desk,
    durability: Durability,
    broadcaster: Broadcaster,
    fees: watch::Receiver<FeeEstimates>,
    sync: watch::Receiver<SyncState>,
    view: watch::Sender<View>,
    bids: BTreeMap<Txid, Bid>,
    /// Since which height each output has been bid for.
    since: BTreeMap<OutPoint, BlockHeight>,
    /// Whether every block there is has been looked through: before that, outputs may seem to be unspent that are not.
    is_at_tip: bool,
}

impl Guard {
    async fn on_event(&mut self, event: ChainEvent) -> Result<(), GuardError> {
        match event {
            ChainEvent::Connected { height, hash, block } => {
                self.is_at_tip = false;
                let order = move |keeper: &mut Keeper| keeper.connect(BlockHeight(height), hash, &block.txdata).ticket;
                self.desk.ask(order).await?;
            }
            ChainEvent::Disconnected { height, .. } => {
                self.is_at_tip = false;
                self.desk.ask(move |keeper| keeper.disconnect(BlockHeight(height)).ticket).await?;
            }
            ChainEvent::Tip { height, .. } => {
                self.is_at_tip = true;
                tracing::debug!(height, "at the tip");
                self.act().await?;
            }
            ChainEvent::Away { reason } => tracing::warn!(reason, "bitcoind is away: nothing is seen"),
            ChainEvent::Back => tracing::info!("bitcoind is back"),
        }
        Ok(())
    }

    /// Works out what should exist, and makes it so.
    async fn act(&mut self) -> Result<(), GuardError> {
        if self.is_at_tip {
            self.look_for_new().await?;
        }
        let asked = self.desk.ask(|keeper| {
            let tower = keeper.tower();
            let tip = tower.tip().map(|(height, _)| height);
            (tip, ToTake::new(tower.claims(), tower.vault().to_take()), keeper.promised().ticket)
        });
        let (tip, to_take, ticket) = asked.await?;
        let Some(tip) = tip.filter(|_| self.is_at_tip) else {
            self.tell(tip, &to_take);
            return Ok(());
        };
        // A breach is on disk before the first broadcast for it.
        if !self.durability.wait(ticket).await {
            return Ok(());
        }
        self.drop_spent(&to_take).await;
        let rates = Rates::from(&*self.fees.borrow());
        let ToTake { claims, loot } = &to_take;
        let situation = Situation { tip, rates, claims, bids: &self.bids, since: &self.since };
        let Plan { make, waits, .. } = plan(&situation);
        for (outpoint, why) in waits {
            tracing::debug!(%outpoint, why, "not taken now");
        }
        for penalty in make {
            self.submit_or_divide(tip, penalty).await;
        }
        for bid in ladder::bids(loot, tip, &rates, &self.bids) {
            self.submit(tip, bid).await;
        }
        self.tell(Some(tip), &to_take);
        Ok(())
    }

    /// Channels may be told of after they were closed: whose funding output is not there is looked for in the last blocks.
    async fn look_for_new(&self) -> Result<(), GuardError> {
        let unchecked = self.desk.ask(|keeper| keeper.tower().unchecked().collect::<Vec<_>>()).await?;
        if unchecked.is_empty() {
            return Ok(());
        }
        let looked = match self.missing(&unchecked).await {
            Ok(missing) if missing.is_empty() => Ok(()),
            Ok(missing) => self.look_back(missing).await,
            Err(error) => Err(error.into()),
        };
        match looked {
            Ok(()) => {
                let handles = unchecked.into_iter().map(|(handle, _)| handle);
                self.desk.ask(move |keeper| keeper.checked(handles).ticket).await?;
                Ok(())
            }
            Err(GuardError::Chain(error)) => {
                tracing::warn!(%error, "channels that are new are looked for later");
                Ok(())
            }
            Err(error @ GuardError::Keeper(_)) => Err(error),
        }
    }

    /// Those whose funding output neither the chain nor the mempool has.
    async fn missing(&self, unchecked: &[(Handle, OutPoint)]) -> Result<BTreeSet<Handle>, ChainError> {
        let outpoints: Vec<OutPoint> = unchecked.iter().map(|(_, outpoint)| *outpoint).collect();
        let found = self.bitcoind.utxos(&outpoints).await?;
        let mut missing = BTreeSet::new();
        for ((handle, outpoint), found) in unchecked.iter().zip(found) {
            if found.is_none() && self.bitcoind.utxo(outpoint, true).await?.is_none() {
                missing.insert(*handle);
            }
        }
        Ok(missing)
    }

    async fn look_back(&self, only: BTreeSet<Handle>) -> Result<(), GuardError> {
        let tip = self.desk.ask(|keeper| keeper.tower().tip().map_or(0, |(height, _)| height.0)).await?;
        tracing::info!(channels = only.len(), "funding outputs are not to be found: looking through the last blocks");
        for height in tip.saturating_sub(LOOK_BACK_BLOCKS - 1)..=tip {
            let Some(hash) = self.bitcoind.block_hash(height).await? else { break };
            let block = match self.bitcoind.block(&hash).await {
                Ok(block) => block,
                Err(error) if error.is_pruned_block() => continue,
                Err(error) => return Err(error.into()),
            };
            let only = only.clone();
            let order = move |keeper: &mut Keeper| keeper.look_back(BlockHeight(height), &block.txdata, &only).ticket;
            self.desk.ask(order).await?;
        }
        Ok(())
    }

    /// Bids for outputs that a block has spent are over.
    async fn drop_spent(&mut self, to_take: &ToTake) {
        let open: BTreeSet<OutPoint> = to_take.outputs().map(|(outpoint, _)| outpoint).collect();
        let is_over = |bid: &Bid| bid.inputs().any(|input| !open.contains(&input));
        let over: Vec<Txid> = self.bids.iter().filter(|(_, bid)| is_over(bid)).map(|(txid, _)| *txid).collect();
        for txid in over {
            self.bids.remove(&txid);
            self.broadcaster.done(txid).await;
        }
        self.since.retain(|outpoint, _| open.contains(outpoint));
    }

    /// One output of a batch may be spent in the mempool by what was made before a start, and is not remembered: then the
    /// others go without it. What is refused in the end stays one bid: together they can outbid what they conflict with.
    async fn submit_or_divide(&mut self, tip: BlockHeight, whole: Penalty) {
        let bid = whole.sign();
        let txid = bid.tx.compute_txid();
        let submitted = self.submit(tip, bid).await;
        let Some(halves) = whole.halves().filter(|_| submitted == Submitted::Conflict) else { return };
        let mut waiting = Vec::from(halves);
        let mut refused: Vec<Claim> = Vec::new();
        while let Some(part) = waiting.pop() {
            let bid = part.sign();
            let part_txid = bid.tx.compute_txid();
            // It would count as a rival of its parts.
            self.bids.remove(&txid);
            if self.submit(tip, bid).await != Submitted::Conflict {
                continue;
            }
            self.bids.remove(&part_txid);
            self.broadcaster.done(part_txid).await;
            match part.halves() {
                Some(halves) => waiting.extend(halves),
                None => refused.extend(part.claims.clone()),
            }
        }
        self.broadcaster.done(txid).await;
        if let Some(rest) = whole.only(&refused) {
            self.submit(tip, rest.sign()).await;
        }
    }

    async fn submit(&mut self, tip: BlockHeight, bid: Bid) -> Submitted {
        let txid = bid.tx.compute_txid();
        let rivals: Vec<Txid> = rivals(&self.bids, &bid.tx).filter(|rival| *rival != txid).collect();
        let status = self.broadcaster.submit(Submission::Single(bid.tx.clone())).await;
        tracing::info!(%txid, inputs = bid.tx.input.len(), fee = %bid.fee, ?status, "penalty");
        bid.inputs().for_each(|input| _ = self.since.entry(input).or_insert(tip));
        match status {
            Ok(status) if status.is_known() => {
                for rival in rivals {
                    self.bids.remove(&rival);
                    self.broadcaster.done(rival).await;
                }
                self.bids.insert(txid, bid);
            }
            // What there was is still bid; the next look tries again.
            Ok(Status::Refused { .. }) if !rivals.is_empty() => self.broadcaster.done(txid).await,
            Ok(status) => {
                self.bids.insert(txid, bid);
                if matches!(&status, Status::Refused { reason, .. } if is_conflict(reason)) {
                    return Submitted::Conflict;
                }
            }
            Err(error) => tracing::warn!(%txid, %error, "a penalty is not broadcast now"),
        }
        Submitted::AsFarAsCanBe
    }

    fn tell(&self, height: Option<BlockHeight>, to_take: &ToTake) {
        let penalties = self.bids.iter().map(|(txid, bid)| PenaltyView {
            txid: *txid,
            inputs: bid.tx.input.len(),
            fee: bid.fee,
            status: self.broadcaster.status(txid).map_or_else(String::new, |status| words(&status)),
        });
        let view = View {
            sync: self.sync.borrow().clone(),
            height,
            to_take: to_take.outputs().count(),
            to_take_sum: to_take.outputs().map(|(_, value)| value).sum(),
            penalties: penalties.collect(),
        };
        self.view.send_if_modified(|old| {
            let is_new = *old != view;
            *old = view;
            is_new
        });
    }
}

/// Outputs that can be taken, each once.
struct ToTake {
    /// By the key.
    claims: Vec<Claim>,
    /// By a penalty that a blob held, and not by the key, which can do better.
    loot: Vec<Loot>,
}

impl ToTake {
    fn new(claims: Vec<Claim>, mut loot: Vec<Loot>) -> Self {
        let by_key: BTreeSet<OutPoint> = claims.iter().map(|claim| claim.outpoint).collect();
        loot.retain(|loot| !by_key.contains(&loot.outpoint()));
        Self { claims, loot }
    }

    fn outputs(&self) -> impl Iterator<Item = (OutPoint, Sat)> {
        let by_key = self.claims.iter().map(|claim| (claim.outpoint, claim.value));
        by_key.chain(self.loot.iter().map(|loot| (loot.outpoint(), loot.opened.value)))
    }
}

/// Bids that spend what a transaction spends.
fn rivals<'a>(bids: &'a BTreeMap<Txid, Bid>, tx: &'a Transaction) -> impl Iterator<Item = Txid> + 'a {
    let spends = |input: OutPoint| tx.input.iter().any(|other| other.previous_output == input);
    bids.iter().filter(move |(_, bid)| bid.inputs().any(spends)).map(|(txid, _)| *txid)
}

fn words(status: &Status) -> String {
    match status {
        Status::InMempool => "in the mempool".to_owned(),
        Status::Confirmed => "in a block".to_owned(),
        Status::Refused { reason, .. } => format!("refused by bitcoind: {reason}"),
        Status::Waiting { reason } => reason.clone(),
    }
}

/// What is to be told before anything was asked.
#[must_use]
pub fn first_view() -> View {
    let sync = SyncState::Away { reason: "not asked yet".to_owned() };
    View { sync, height: None, to_take: 0, to_take_sum: Sat::ZERO, penalties: Vec::new() }
}

#[cfg(test)]
mod tests;
