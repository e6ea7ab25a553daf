//! The task: looks at bitcoind, works the plan out, and carries it out with the wallet and the broadcaster.
//!
//! It waits for bitcoind, the wallet and the broadcaster; none of them waits for it, and neither does whoever asks: there
//! is no cycle. What it holds are the transactions that it has made and that are still wanted: losing them, as a restart
//! does, loses nothing, for the mempool has them and the wallet knows which are its own.

mod held;
mod help;
mod look;
mod make;
#[cfg(test)]
mod sim;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_chain::broadcast::{Broadcaster, Status};
use millrace_chain::fees::FeeEstimates;
use millrace_chain::{Bitcoind, ChainError, SyncState};
use millrace_channel::phase::on_chain::{Claims, Cpfp};
use millrace_wire::{BlockHeight, ChannelId, Sat};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::asks::{self, Claimer, NewClaims};
use super::plan::{self, Plan, Situation, Spending, Wanted};
use super::rates::Rates;
use super::status::{ClaimsStatus, OutputState, OutputStatus};
use crate::channels::KeysOf;
use crate::clock;
use crate::wallet::{Closed, WalletHandle};
use held::{Held, RefusalKind};

/// A block changes many channels' claims: so long is waited for all of them.
const SETTLE: Duration = Duration::from_millis(200);
/// Between blocks, the mempool and the wallet's coins are looked at so often.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// While bitcoind is away.
const AWAY_AGAIN: Duration = Duration::from_secs(5);

/// What the task works with.
pub struct ClaimParts {
    /// To see what the mempool and the chain have.
    pub bitcoind: Bitcoind,
    /// To send.
    pub broadcaster: Broadcaster,
    /// For destinations and fees.
    pub wallet: WalletHandle,
    /// The keys of a channel by their index.
    pub keys_of: KeysOf,
    /// What transactions pay.
    pub fees: watch::Receiver<FeeEstimates>,
    /// The height, and whether it is known.
    pub sync: watch::Receiver<SyncState>,
}

/// Starts the task, which ends with the last [`Claimer`] or with the wallet. Must be called on a tokio runtime.
#[must_use]
pub fn start(parts: ClaimParts) -> (Claimer, JoinHandle<()>) {
    let (task, claimer, woken) = task(parts, plan::plan);
    (claimer, tokio::spawn(task.run(woken)))
}

/// What works a plan out.
type Planner = fn(&Situation<'_>) -> Plan;

/// The task, how it is asked, and how it is woken.
fn task(parts: ClaimParts, planner: Planner) -> (Task, Claimer, mpsc::Receiver<()>) {
    let new: NewClaims = Arc::new(Mutex::new(BTreeMap::new()));
    let (wake, woken) = mpsc::channel(1);
    let (publish, status) = watch::channel(ClaimsStatus::default());
    let task = Task {
        parts,
        planner,
        new: Arc::clone(&new),
        claims: BTreeMap::new(),
        seen: BTreeMap::new(),
        helped: BTreeMap::new(),
        held: BTreeMap::new(),
        refused: BTreeMap::new(),
        alone: BTreeSet::new(),
        height: BlockHeight(0),
        status: publish,
    };
    (task, Claimer { new, wake, status }, woken)
}

struct Task {
    parts: ClaimParts,
    planner: Planner,
    new: NewClaims,
    claims: BTreeMap<ChannelId, Claims>,
    /// What the mempool has, or had, in the place of our commitment.
    seen: BTreeMap<ChannelId, Transaction>,
    /// The commitments to be helped into a block.
    helped: BTreeMap<ChannelId, Cpfp>,
    /// Transactions of ours that spend what is claimed.
    held: BTreeMap<Txid, Held>,
    /// How often in a row a bid for an output was refused as too low.
    refused: BTreeMap<OutPoint, u32>,
    /// Outputs that must not hold up others, until they are in the mempool.
    alone: BTreeSet<OutPoint>,
    /// Of this round.
    height: BlockHeight,
    status: watch::Sender<ClaimsStatus>,
}

/// Why a round ends early.
#[derive(Debug, thiserror::Error)]
enum Interrupted {
    #[error(transparent)]
    Wallet(#[from] Closed),
    #[error(transparent)]
    Chain(#[from] ChainError),
}

impl Task {
    async fn run(mut self, mut woken: mpsc::Receiver<()>) {
        let mut ticks = interval(LOOK_AGAIN);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut height = None;
        let (mut sync, mut fees) = (self.parts.sync.clone(), self.parts.fees.clone());
        let mut is_away = false;
        loop {
            let is_due = tokio::select! {
                awake = woken.recv() => match awake {
                    Some(()) => true,
                    None => return,
                },
                Ok(()) = sync.changed() => {
                    let before = height;
                    height = sync.borrow_and_update().height();
                    height.is_some() && height != before
                }
                Ok(()) = fees.changed() => {
                    fees.borrow_and_update();
                    true
                }
                () = sleep(AWAY_AGAIN), if is_away => true,
                _ = ticks.tick() => true,
            };
            if !is_due {
                continue;
            }
            sleep(SETTLE).await;
            match self.round().await {
                Ok(()) => is_away = false,
                Err(Interrupted::Wallet(Closed)) => return,
                Err(Interrupted::Chain(error)) => {
                    // Nothing is lost: what was sent is sent again by the broadcaster, and the rest is planned anew.
                    tracing::debug!(%error, "claims wait for bitcoind");
                    is_away = true;
                }
            }
        }
    }

    /// Looks, plans, acts, tells.
    async fn round(&mut self) -> Result<(), Interrupted> {
        self.claims.extend(asks::take(&self.new));
        self.claims.retain(|_, claims| !is_empty(claims));
        let Some(height) = self.parts.sync.borrow().height() else { return Ok(()) };
        self.height = BlockHeight(height);
        self.help().await?;
        self.note_attempts();
        self.withdraw().await?;
        let outpoints = self.outpoints();
        self.refused.retain(|outpoint, _| outpoints.contains(outpoint));
        self.alone.retain(|outpoint| outpoints.contains(outpoint));
        let spends = self.spends(&outpoints).await?;
        let spent = self.spent(&outpoints, &spends).await?;
        let plan = (self.planner)(&Situation {
            tip: self.height,
            rates: Rates::from(&*self.parts.fees.borrow()),
            claims: &self.claims,
            helped: &self.helped,
            spends: &spends,
            spent: &spent,
            refused: &self.refused,
            alone: &self.alone,
        });
        let mut states = self.carry_out(plan).await?;
        states.extend(spent.into_iter().map(|outpoint| (outpoint, OutputState::Spent)));
        self.publish(states);
        Ok(())
    }

    /// Every output that is claimed, anchors included.
    fn outpoints(&self) -> BTreeSet<OutPoint> {
        let anchors = self.helped.values().map(|cpfp| cpfp.anchor.outpoint);
        self.claims.values().flat_map(outpoints_of).map(|(outpoint, ..)| outpoint).chain(anchors).collect()
    }

    // --- acting ---

    /// Takes down what the broadcaster was told of what the mempool did not have. That it was taken then is no sign that it
    /// is there now: the wallet is told by [`Task::spends`].
    fn note_attempts(&mut self) {
        let open: Vec<Txid> = self.held.iter().filter(|(_, held)| !held.is_seen).map(|(txid, _)| *txid).collect();
        for txid in open {
            if let Some(status) = self.parts.broadcaster.status(&txid) {
                self.note(txid, &status);
            }
        }
    }

    /// Says to the wallet that the mempool has it: its coins are spent.
    async fn mark(&mut self, txid: Txid) -> Result<(), Closed> {
        let Some(held) = self.held.get_mut(&txid) else { return Ok(()) };
        held.is_marked = true;
        let (tx, label) = (held.tx.clone(), held.label);
        self.parts.wallet.mark_broadcast(tx, label, now_s()).await
    }

    /// Takes down how the mempool sees a transaction.
    fn note(&mut self, txid: Txid, status: &Status) {
        let Some(held) = self.held.get_mut(&txid) else { return };
        let kind = held.note(status, self.height);
        let claims = held.claims.clone();
        if status.is_known() {
            self.refused.retain(|outpoint, _| !claims.contains(outpoint));
            self.alone.retain(|outpoint| !claims.contains(outpoint));
        }
        match kind {
            Some(RefusalKind::TooLow) => count(&mut self.refused, &claims),
            Some(RefusalKind::Stuck) => self.set_apart(&claims),
            Some(RefusalKind::Unasked) | None => {}
        }
    }

    /// From here on these hold up nobody but themselves.
    fn set_apart(&mut self, claims: &[OutPoint]) {
        if claims.len() > 1 {
            self.alone.extend(claims);
        }
    }

    /// Gives up what no channel claims any more.
    async fn withdraw(&mut self) -> Result<(), Closed> {
        let outpoints = self.outpoints();
        let is_idle = |held: &Held| held.claims.iter().all(|outpoint| !outpoints.contains(outpoint));
        let idle: Vec<Txid> = self.held.iter().filter(|(_, held)| is_idle(held)).map(|(txid, _)| *txid).collect();
        for txid in idle {
            self.give_up(txid).await?;
        }
        Ok(())
    }

    /// Stops sending a transaction. Its coins are free again, unless it is in a block or still in the mempool.
    async fn give_up(&mut self, txid: Txid) -> Result<(), Closed> {
        let Some(held) = self.held.remove(&txid) else { return Ok(()) };
        self.parts.broadcaster.done(txid).await;
        if !held.is_marked {
            return self.parts.wallet.release(txid).await;
        }
        // Unsure means that it stays: the mempool's news settle it.
        if matches!(self.parts.bitcoind.mempool_entry(&txid).await, Ok(None)) {
            let now = now_s();
            let abandon = move |wallet: &mut crate::wallet::Wallet| {
                if wallet.transaction(&txid).is_some_and(|tx| tx.height.is_none()) {
                    wallet.abandon(&txid, now);
                }
            };
            self.parts.wallet.ask(abandon).await?;
        }
        Ok(())
    }

    async fn carry_out(&mut self, plan: Plan) -> Result<BTreeMap<OutPoint, OutputState>, Interrupted> {
        let mut states = BTreeMap::new();
        for (outpoint, reason) in plan.waits {
            states.insert(outpoint, OutputState::Waiting { reason });
        }
        states.extend(plan.not_needed.into_iter().map(|outpoint| (outpoint, OutputState::NotNeeded)));
        for wanted in plan.txs {
            let claimed = claimed_by(&wanted);
            let failure = match wanted {
                Wanted::Keep(existing) => self.keep(&existing).await?,
                Wanted::Sweep(wanted) => self.sweep(wanted).await?,
                Wanted::HtlcTx(wanted) => self.htlc_tx(wanted).await?,
                Wanted::Child(wanted) => self.child(*wanted).await?,
            };
            for outpoint in claimed {
                let state = self.state_of(outpoint).or_else(|| {
                    let reason = failure.clone().unwrap_or_else(|| "it was not sent".to_owned());
                    Some(OutputState::Waiting { reason })
                });
                states.extend(state.map(|state| (outpoint, state)));
            }
        }
        Ok(states)
    }

    /// Sends again at once what the mempool does not have any more: the broadcaster would wait for the next block.
    async fn keep(&mut self, existing: &Spending) -> Result<Option<String>, Closed> {
        let txid = existing.txid;
        let Some(held) = self.held.get(&txid).filter(|_| !existing.is_in_mempool) else { return Ok(None) };
        let Ok(status) = self.parts.broadcaster.submit(held.submission()).await else { return Ok(None) };
        self.note(txid, &status);
        if status.is_known() {
            // The wallet was told that it had gone, and would spend its coins once more.
            self.mark(txid).await?;
            self.held.entry(txid).and_modify(|held| held.is_seen = true);
        }
        Ok(None)
    }

    fn state_of(&self, outpoint: OutPoint) -> Option<OutputState> {
        let all = self.held.iter().filter(|(_, held)| held.claims.contains(&outpoint));
        let (txid, held) = all.max_by_key(|(_, held)| (held.is_seen, held.fee))?;
        if held.is_seen {
            return Some(OutputState::InMempool { txid: *txid, fee: held.fee });
        }
        let refusal = held.refusal.as_ref().map(|refusal| refusal.reason.clone());
        let reason = refusal.unwrap_or_else(|| "the mempool has dropped it".to_owned());
        Some(OutputState::Sending { txid: *txid, reason })
    }

    // --- telling ---

    fn publish(&self, mut states: BTreeMap<OutPoint, OutputState>) {
        let mut outputs = BTreeMap::new();
        for (channel_id, claims) in &self.claims {
            let anchor = self.helped.get(channel_id).map(anchor_of);
            for (outpoint, amount, deadline, pays_wallet) in anchor.into_iter().chain(outpoints_of(claims)) {
                let unknown = || OutputState::Waiting { reason: "it is looked at with the next block".to_owned() };
                let state = states.remove(&outpoint).unwrap_or_else(unknown);
                let status = OutputStatus { channel_id: *channel_id, amount, deadline, pays_wallet, state };
                outputs.insert(outpoint, status);
            }
        }
        let new = ClaimsStatus { outputs };
        self.status.send_if_modified(|old| {
            for (outpoint, output) in &new.outputs {
                if let OutputState::Waiting { reason } = &output.state
                    && old.outputs.get(outpoint).map(|old| &old.state) != Some(&output.state)
                {
                    tracing::warn!(channel_id = %output.channel_id, %outpoint, reason, "an output is not claimed now");
                }
            }
            *old != new && {
                *old = new;
                true
            }
        });
    }
}

fn is_empty(claims: &Claims) -> bool {
    claims.parent.is_none() && claims.others.is_none() && claims.sweeps.is_empty() && claims.htlc_txs.is_empty()
}

/// An output with what it holds, its deadline, and whether a claim pays the wallet at once.
type Output = (OutPoint, Sat, Option<BlockHeight>, bool);

const fn anchor_of(cpfp: &Cpfp) -> Output {
    (cpfp.anchor.outpoint, Sat::ZERO, cpfp.deadline, true)
}

/// But for the anchors.
fn outpoints_of(claims: &Claims) -> impl Iterator<Item = Output> + '_ {
    let sweeps = claims
        .sweeps
        .iter()
        .map(|sweep| (sweep.claim.outpoint, Sat::from(sweep.claim.output.value), sweep.deadline, true));
    let htlc_txs = claims.htlc_txs.iter().map(|claim| {
        let outpoint = claim.htlc_tx.tx.input[0].previous_output;
        (outpoint, Sat::from(claim.htlc_tx.prevout.value), claim.deadline, false)
    });
    sweeps.chain(htlc_txs)
}

fn claimed_by(wanted: &Wanted) -> Vec<OutPoint> {
    match wanted {
        Wanted::Keep(spending) => spending.claims.clone(),
        Wanted::Sweep(wanted) => wanted.inputs.iter().map(|input| input.claim.outpoint).collect(),
        Wanted::HtlcTx(wanted) => wanted.claims.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output).collect(),
        Wanted::Child(wanted) => vec![wanted.cpfp.anchor.outpoint],
    }
}

fn count(refused: &mut BTreeMap<OutPoint, u32>, claims: &[OutPoint]) {
    for outpoint in claims {
        let times = refused.entry(*outpoint).or_default();
        *times = times.saturating_add(1);
    }
}

fn now_s() -> u64 {
    clock::unix_ms() / 1000
}
