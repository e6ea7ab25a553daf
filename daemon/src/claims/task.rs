//! The task: looks at bitcoind, works the plan out, and carries it out with the wallet and the broadcaster.
//!
//! It waits for bitcoind, the wallet and the broadcaster; none of them waits for it, and neither does whoever asks: there
//! is no cycle. What it holds are the transactions that it has made and that are still wanted: losing them, as a restart
//! does, loses nothing, for the mempool has them and the wallet knows which are its own.

mod look;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};
use millrace_chain::broadcast::{Broadcaster, Status, Submission};
use millrace_chain::fees::FeeEstimates;
use millrace_chain::{Bitcoind, ChainError, SyncState};
use millrace_channel::phase::on_chain::Claims;
use millrace_wire::{BlockHeight, ChannelId, FeeratePerKw, Sat};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, sleep};

use super::asks::{self, Claimer, NewClaims};
use super::plan::{self, ChildWanted, HtlcTxWanted, Situation, Spending, SweepWanted, Wanted};
use super::rates::Rates;
use super::status::{ClaimsStatus, OutputState, OutputStatus};
use super::{build, plan::Plan};
use crate::channels::KeysOf;
use crate::clock;
use crate::wallet::{Closed, Label, Made, TxKind, WalletError, WalletHandle};

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
    let new: NewClaims = Arc::new(Mutex::new(BTreeMap::new()));
    let (wake, woken) = mpsc::channel(1);
    let (publish, status) = watch::channel(ClaimsStatus::default());
    let task = Task {
        parts,
        new: Arc::clone(&new),
        claims: BTreeMap::new(),
        held: BTreeMap::new(),
        refused: BTreeMap::new(),
        status: publish,
    };
    (Claimer { new, wake, status }, tokio::spawn(task.run(woken)))
}

struct Task {
    parts: ClaimParts,
    new: NewClaims,
    claims: BTreeMap<ChannelId, Claims>,
    /// Transactions of ours that spend what is claimed.
    held: BTreeMap<Txid, Held>,
    /// How often in a row a bid for an output was refused as too low.
    refused: BTreeMap<OutPoint, u32>,
    status: watch::Sender<ClaimsStatus>,
}

/// A transaction of ours.
#[derive(Clone)]
struct Held {
    tx: Transaction,
    /// The commitment that it pays for.
    parent: Option<Transaction>,
    /// The claimed outputs that it spends.
    claims: Vec<OutPoint>,
    label: Label,
    fee: Sat,
    /// Whether the wallet counts it.
    is_marked: bool,
    /// Whether the mempool had it when it was last looked at.
    is_seen: bool,
    /// Why the mempool did not take it.
    refusal: Option<String>,
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
        self.mark_accepted().await?;
        self.withdraw().await?;
        let outpoints = self.outpoints();
        self.refused.retain(|outpoint, _| outpoints.contains(outpoint));
        let spends = self.spends(&outpoints).await?;
        let spent = self.spent(&outpoints, &spends).await?;
        let plan = plan::plan(&Situation {
            tip: BlockHeight(height),
            rates: Rates::from(&*self.parts.fees.borrow()),
            claims: &self.claims,
            spends: &spends,
            spent: &spent,
            refused: &self.refused,
        });
        let mut states = self.carry_out(plan).await?;
        states.extend(spent.into_iter().map(|outpoint| (outpoint, OutputState::Spent)));
        self.publish(states);
        Ok(())
    }

    /// Every output that is claimed, anchors included.
    fn outpoints(&self) -> BTreeSet<OutPoint> {
        self.claims.values().flat_map(outpoints_of).map(|(outpoint, ..)| outpoint).collect()
    }

    // --- acting ---

    /// Says to the wallet what the broadcaster has brought into the mempool by itself.
    async fn mark_accepted(&mut self) -> Result<(), Closed> {
        let unmarked: Vec<Txid> = self.held.iter().filter(|(_, held)| !held.is_marked).map(|(txid, _)| *txid).collect();
        for txid in unmarked {
            let Some(status) = self.parts.broadcaster.status(&txid) else { continue };
            self.note(txid, &status);
            if status.is_known() {
                self.mark(txid).await?;
            }
        }
        Ok(())
    }

    async fn mark(&mut self, txid: Txid) -> Result<(), Closed> {
        let Some(held) = self.held.get_mut(&txid) else { return Ok(()) };
        held.is_marked = true;
        let (tx, label) = (held.tx.clone(), held.label);
        self.parts.wallet.mark_broadcast(tx, label, now_s()).await
    }

    /// Takes down how the mempool sees a transaction.
    fn note(&mut self, txid: Txid, status: &Status) {
        let Some(held) = self.held.get_mut(&txid) else { return };
        match status {
            Status::InMempool | Status::Confirmed => {
                held.refusal = None;
                self.refused.retain(|outpoint, _| !held.claims.contains(outpoint));
            }
            Status::Waiting { reason } => held.refusal = Some(reason.clone()),
            Status::Refused { reason, .. } => {
                if is_too_low(reason) {
                    count(&mut self.refused, &held.claims);
                }
                held.refusal = Some(reason.clone());
            }
        }
    }

    /// Gives up what no channel claims any more.
    async fn withdraw(&mut self) -> Result<(), Closed> {
        let outpoints = self.outpoints();
        let is_idle = |held: &Held| !held.claims.iter().any(|outpoint| outpoints.contains(outpoint));
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
                Wanted::Keep(_) => None,
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

    fn state_of(&self, outpoint: OutPoint) -> Option<OutputState> {
        let (txid, held) = self.held.iter().find(|(_, held)| held.claims.contains(&outpoint))?;
        if held.is_seen {
            return Some(OutputState::InMempool { txid: *txid, fee: held.fee });
        }
        let reason = held.refusal.clone().unwrap_or_else(|| "the mempool has dropped it".to_owned());
        Some(OutputState::Sending { txid: *txid, reason })
    }

    /// The reason if nothing was made.
    async fn sweep(&mut self, wanted: SweepWanted) -> Result<Option<String>, Interrupted> {
        let claims: Vec<OutPoint> = wanted.inputs.iter().map(|input| input.claim.outpoint).collect();
        let destination = match wanted.destination.clone().or_else(|| self.destination_of(&claims)) {
            Some(destination) => destination,
            None => self.parts.wallet.new_destination().await?,
        };
        let tx = build::sweep(&wanted, destination, |index| (self.parts.keys_of)(index));
        let first = wanted.inputs[0].channel_id;
        let is_of_one = wanted.inputs.iter().all(|input| input.channel_id == first);
        let label = Label { kind: TxKind::Sweep, channel: is_of_one.then_some(first) };
        let held =
            Held { tx, parent: None, claims, label, fee: wanted.fee, is_marked: false, is_seen: false, refusal: None };
        self.put(held).await?;
        Ok(None)
    }

    /// Where an earlier sweep of these outputs paid to, so that trying again uses up no more addresses.
    fn destination_of(&self, claims: &[OutPoint]) -> Option<ScriptBuf> {
        let earlier = self.held.values().find(|held| held.claims.iter().any(|outpoint| claims.contains(outpoint)))?;
        earlier.destination()
    }

    async fn htlc_tx(&mut self, wanted: HtlcTxWanted) -> Result<Option<String>, Interrupted> {
        let claims: Vec<OutPoint> =
            wanted.claims.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output).collect();
        self.release_unsent(&claims).await?;
        let mut answer = self.attach_fee(&wanted, wanted.feerate).await?;
        if let Some(made) = answer.as_ref().ok().filter(|made| made.fee > wanted.fee_max) {
            self.parts.wallet.release(made.tx.compute_txid()).await?;
            answer = self.attach_fee(&wanted, lowered(wanted.feerate, wanted.fee_max, made.fee)).await?;
        }
        let mut made = match self.affordable(answer, wanted.fee_max).await? {
            Ok(made) => made,
            Err(reason) => return Ok(Some(reason)),
        };
        build::sign_htlc_txs(&mut made, &wanted.claims, &(self.parts.keys_of)(wanted.keys_index));
        let label = Label { kind: TxKind::Sweep, channel: Some(wanted.channel_id) };
        let held = Held {
            tx: made.tx,
            parent: None,
            claims,
            label,
            fee: made.fee,
            is_marked: false,
            is_seen: false,
            refusal: None,
        };
        self.put(held).await?;
        Ok(None)
    }

    async fn child(&mut self, wanted: ChildWanted) -> Result<Option<String>, Interrupted> {
        let claims = vec![wanted.cpfp.anchor.outpoint];
        self.release_unsent(&claims).await?;
        let mut answer = self.cpfp(&wanted, wanted.feerate).await?;
        if let Some(made) = answer.as_ref().ok().filter(|made| made.fee > wanted.fee_max) {
            self.parts.wallet.release(made.tx.compute_txid()).await?;
            let with_parent = |fee: Sat| fee.checked_add(wanted.cpfp.parent_fee).unwrap_or(fee);
            let feerate = lowered(wanted.feerate, with_parent(wanted.fee_max), with_parent(made.fee));
            answer = self.cpfp(&wanted, feerate).await?;
        }
        let mut made = match self.affordable(answer, wanted.fee_max).await? {
            Ok(made) => made,
            Err(reason) => return Ok(Some(reason)),
        };
        build::sign_child(&mut made, &wanted.cpfp, &(self.parts.keys_of)(wanted.keys_index));
        let label = Label { kind: TxKind::FeeBump, channel: Some(wanted.channel_id) };
        let parent = Some(wanted.cpfp.parent);
        let held =
            Held { tx: made.tx, parent, claims, label, fee: made.fee, is_marked: false, is_seen: false, refusal: None };
        self.put(held).await?;
        Ok(None)
    }

    /// Asks the wallet; if it does not know what is to be replaced, without that.
    async fn attach_fee(
        &self,
        wanted: &HtlcTxWanted,
        feerate: FeeratePerKw,
    ) -> Result<Result<Made, WalletError>, Closed> {
        let mut request = build::attach_fee(wanted, feerate);
        let answer = self.parts.wallet.attach_fee(request.clone()).await?;
        if !is_unknown(&answer) {
            return Ok(answer);
        }
        request.replaces = None;
        self.parts.wallet.attach_fee(request).await
    }

    /// As [`Task::attach_fee`].
    async fn cpfp(&self, wanted: &ChildWanted, feerate: FeeratePerKw) -> Result<Result<Made, WalletError>, Closed> {
        let mut request = build::cpfp(wanted, feerate);
        let answer = self.parts.wallet.cpfp(request.clone()).await?;
        if !is_unknown(&answer) {
            return Ok(answer);
        }
        request.replaces = None;
        self.parts.wallet.cpfp(request).await
    }

    /// What the wallet made, unless it made nothing, or something that costs too much.
    async fn affordable(
        &self,
        answer: Result<Made, WalletError>,
        fee_max: Sat,
    ) -> Result<Result<Made, String>, Closed> {
        match answer {
            Ok(made) if made.fee <= fee_max => Ok(Ok(made)),
            Ok(made) => {
                self.parts.wallet.release(made.tx.compute_txid()).await?;
                let fee = made.fee;
                Ok(Err(format!(
                    "with the wallet's coins it would cost {fee}, and no more than {fee_max} are spent on it"
                )))
            }
            Err(error) => {
                tracing::warn!(%error, "the wallet cannot pay for a claim, which is tried again");
                Ok(Err(format!("the wallet cannot pay for it: {error}")))
            }
        }
    }

    /// Frees the coins of transactions for these outputs that the mempool does not have: new ones take their place,
    /// and must not rest on their change.
    async fn release_unsent(&mut self, claims: &[OutPoint]) -> Result<(), Closed> {
        let is_in_the_way = |held: &Held| !held.is_seen && held.claims.iter().any(|outpoint| claims.contains(outpoint));
        let unsent: Vec<Txid> =
            self.held.iter().filter(|(_, held)| is_in_the_way(held)).map(|(txid, _)| *txid).collect();
        for txid in unsent {
            self.give_up(txid).await?;
        }
        Ok(())
    }

    /// Sends a new transaction. If the mempool would rather keep the one that it was to replace, that one stays.
    async fn put(&mut self, held: Held) -> Result<(), Interrupted> {
        let txid = held.tx.compute_txid();
        if self.held.contains_key(&txid) {
            return Ok(());
        }
        // Written down before it is out: so it is known as ours after a crash.
        self.parts.wallet.set_label(txid, held.label).await?;
        let overlaps = |other: &Held| other.claims.iter().any(|outpoint| held.claims.contains(outpoint));
        let before: Vec<Txid> = self.held.iter().filter(|(_, other)| overlaps(other)).map(|(txid, _)| *txid).collect();
        let submitted = self.parts.broadcaster.submit(held.submission()).await;
        let status = submitted.unwrap_or_else(|error| Status::Waiting { reason: error.to_string() });
        tracing::info!(%txid, fee = held.fee.0, inputs = held.claims.len(), ?status, "claim sent");
        let is_kept_before = before.iter().any(|txid| self.held[txid].is_seen);
        if !status.is_known() && is_kept_before {
            if matches!(&status, Status::Refused { reason, .. } if is_too_low(reason)) {
                count(&mut self.refused, &held.claims);
            }
            self.parts.broadcaster.done(txid).await;
            self.parts.wallet.release(txid).await?;
            return Ok(());
        }
        self.held.insert(txid, held);
        self.note(txid, &status);
        if status.is_known() {
            self.mark(txid).await?;
            self.held.entry(txid).and_modify(|held| held.is_seen = true);
        }
        for before in before {
            self.give_up(before).await?;
        }
        Ok(())
    }

    // --- telling ---

    fn publish(&self, mut states: BTreeMap<OutPoint, OutputState>) {
        let mut outputs = BTreeMap::new();
        for (channel_id, claims) in &self.claims {
            for (outpoint, amount, deadline, pays_wallet) in outpoints_of(claims) {
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

impl Held {
    fn submission(&self) -> Submission {
        match &self.parent {
            Some(parent) => Submission::Package { parent: parent.clone(), child: self.tx.clone() },
            None => Submission::Single(self.tx.clone()),
        }
    }

    fn destination(&self) -> Option<ScriptBuf> {
        match self.tx.output.as_slice() {
            [output] if self.tx.input.len() == self.claims.len() => Some(output.script_pubkey.clone()),
            _ => None,
        }
    }

    /// As the plan sees it; with the fees that the mempool says, if it is there.
    fn spending(&self, in_mempool: Option<(Sat, Sat)>) -> Spending {
        let (fee, to_replace) = in_mempool.unwrap_or((self.fee, self.fee));
        Spending {
            txid: self.tx.compute_txid(),
            claims: self.claims.clone(),
            fee,
            to_replace,
            weight: self.tx.weight(),
            is_ours: true,
            is_in_mempool: in_mempool.is_some(),
            destination: self.destination(),
        }
    }
}

fn is_empty(claims: &Claims) -> bool {
    claims.parent.is_none() && claims.sweeps.is_empty() && claims.htlc_txs.is_empty()
}

/// Each output with what it holds, its deadline, and whether a claim pays the wallet at once.
fn outpoints_of(claims: &Claims) -> impl Iterator<Item = (OutPoint, Sat, Option<BlockHeight>, bool)> + '_ {
    let anchor = claims.parent.iter().map(|cpfp| (cpfp.anchor.outpoint, Sat::ZERO, cpfp.deadline, true));
    let sweeps = claims
        .sweeps
        .iter()
        .map(|sweep| (sweep.claim.outpoint, Sat::from(sweep.claim.output.value), sweep.deadline, true));
    let htlc_txs = claims.htlc_txs.iter().map(|claim| {
        let outpoint = claim.htlc_tx.tx.input[0].previous_output;
        (outpoint, Sat::from(claim.htlc_tx.prevout.value), claim.deadline, false)
    });
    anchor.chain(sweeps).chain(htlc_txs)
}

fn claimed_by(wanted: &Wanted) -> Vec<OutPoint> {
    match wanted {
        Wanted::Keep(spending) => spending.claims.clone(),
        Wanted::Sweep(wanted) => wanted.inputs.iter().map(|input| input.claim.outpoint).collect(),
        Wanted::HtlcTx(wanted) => wanted.claims.iter().map(|claim| claim.htlc_tx.tx.input[0].previous_output).collect(),
        Wanted::Child(wanted) => vec![wanted.cpfp.anchor.outpoint],
    }
}

/// Whether the wallet does not know, or will not replace, the transaction that was named.
const fn is_unknown(answer: &Result<Made, WalletError>) -> bool {
    matches!(answer, Err(WalletError::UnknownTransaction(_) | WalletError::NotReplaceable { .. }))
}

/// The rate at which what cost `fee` costs `fee_max`: the wallet's coins weigh more than the plan thought.
fn lowered(feerate: FeeratePerKw, fee_max: Sat, fee: Sat) -> FeeratePerKw {
    let rate = u128::from(feerate.0) * u128::from(fee_max.0) / u128::from(fee.0.max(1));
    FeeratePerKw(u32::try_from(rate).unwrap_or(u32::MAX)).max(FeeratePerKw::FLOOR)
}

/// Whether a refusal is about the fee: the mempool's minimum, or a replacement that pays too little.
fn is_too_low(reason: &str) -> bool {
    reason.to_lowercase().contains("fee")
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
