//! What must hold of every transaction that the task hands over, and of every block: rules that know nothing of the plan.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_channel::phase::on_chain::{Claims, Cpfp};
use millrace_channel::tx::ClaimKind;
use millrace_wire::{BlockHeight, ChannelId, Sat};

use super::model::{Sent, State};

/// Less is not relayed as an output to the wallet.
const DUST: u64 = 330;
/// From here on nothing contested is put together.
const NEAR: u32 = 6;

/// What kind of output it is, and with what it may go.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Class {
    Free,
    Contested { channel: ChannelId, takes_back: bool, height: u32 },
    SecondLevel { channel: ChannelId, takes_back: bool, height: u32 },
    Anchor,
}

/// An output that was claimed at some time.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) class: Class,
    pub(super) value: u64,
    /// What the input weighs.
    pub(super) weight: u64,
    /// What a child may cost; of anchors.
    budget: u64,
    /// From when on the peer may take it.
    pub(super) deadline: Option<u32>,
    /// When it was first claimed.
    pub(super) since: u32,
}

impl Item {
    pub(super) const fn is_htlc(&self) -> bool {
        matches!(self.class, Class::Contested { .. } | Class::SecondLevel { .. })
    }
}

/// All that is remembered.
#[derive(Default)]
pub(super) struct Checks {
    pub(super) items: BTreeMap<OutPoint, Item>,
    /// The weight and fee of each commitment.
    parents: BTreeMap<Txid, (u64, u64)>,
    /// The last bid that the mempool took, in sat per million weight units; for a child with its parent.
    bids: BTreeMap<OutPoint, u64>,
    /// The sets of outputs that were ever spent together.
    together: BTreeSet<Vec<OutPoint>>,
    known: BTreeSet<Txid>,
}

impl Checks {
    /// A channel asks for this.
    pub(super) fn learn(&mut self, claims: &Claims, height: u32, commitments: &[&Transaction]) {
        let channel = claims.channel_id;
        for sweep in &claims.sweeps {
            let claim = &sweep.claim;
            let class = match claim.kind {
                ClaimKind::Delayed { .. } | ClaimKind::ToRemote => Class::Free,
                ClaimKind::HtlcPreimage { .. } => {
                    Class::Contested { channel, takes_back: false, height: sweep.deadline.unwrap().0 }
                }
                ClaimKind::HtlcTimeout { .. } => {
                    Class::Contested { channel, takes_back: true, height: claim.lock_time }
                }
                ClaimKind::Penalty { is_htlc, .. } => {
                    Class::Contested { channel, takes_back: is_htlc, height: sweep.deadline.map_or(0, |at| at.0) }
                }
                ClaimKind::Anchor => panic!("an anchor is not swept"),
            };
            let (value, weight) = (claim.output.value.to_sat(), claim.weight.to_wu());
            self.add(claim.outpoint, class, value, weight, sweep.deadline, height);
        }
        for claim in &claims.htlc_txs {
            let htlc_tx = &claim.htlc_tx;
            let (takes_back, expiry) = (claim.preimage.is_none(), htlc_tx.htlc.cltv_expiry.0);
            let class = Class::SecondLevel { channel, takes_back, height: expiry };
            let outpoint = htlc_tx.tx.input[0].previous_output;
            let (value, weight) = (htlc_tx.prevout.value.to_sat(), htlc_tx.input_weight().to_wu());
            self.add(outpoint, class, value, weight, claim.deadline, height);
        }
        let others = commitments.iter().filter_map(|tx| claims.others.as_ref()?.cpfp(tx));
        for cpfp in claims.parent.iter().cloned().chain(others) {
            self.learn_anchor(&cpfp, height);
        }
    }

    fn learn_anchor(&mut self, cpfp: &Cpfp, height: u32) {
        let outpoint = cpfp.anchor.outpoint;
        self.add(outpoint, Class::Anchor, DUST, cpfp.anchor.weight.to_wu(), cpfp.deadline, height);
        let item = self.items.get_mut(&outpoint).expect("it was just added");
        item.budget = item.budget.max(cpfp.at_stake.0).max((cpfp.at_stake.0 + cpfp.balance.0) / 2);
        self.parents.insert(outpoint.txid, (cpfp.parent.weight().to_wu(), cpfp.parent_fee.0));
    }

    fn add(
        &mut self,
        outpoint: OutPoint,
        class: Class,
        value: u64,
        weight: u64,
        deadline: Option<BlockHeight>,
        height: u32,
    ) {
        let deadline = deadline.map(|deadline| deadline.0);
        self.items.entry(outpoint).or_insert(Item { class, value, weight, budget: 0, deadline, since: height });
    }

    /// A restart forgets bids that the mempool does not have; a reorg gives all of them back to the mempool, or to nobody.
    pub(super) fn forget_bids(&mut self) {
        self.bids.clear();
    }

    /// What the task has handed over since the last time.
    pub(super) fn sent(&mut self, state: &State, sent: &[Sent]) -> Result<(), String> {
        for Sent { tx, is_taken } in sent {
            let outpoints: Vec<OutPoint> =
                tx.input.iter().map(|input| input.previous_output).filter(|o| self.items.contains_key(o)).collect();
            let Some(fee) = state.fee_of(tx).filter(|_| !outpoints.is_empty()) else { continue };
            let is_new = self.known.insert(tx.compute_txid());
            let what = format!("{} at {}: {outpoints:?} for {fee} sat", tx.compute_txid(), state.height());
            self.check_likes(&outpoints).map_err(|why| format!("mixed: {why}: {what}"))?;
            self.check_budget(&outpoints, fee).map_err(|why| format!("budget: {why}: {what}"))?;
            if is_new {
                self.check_near(&outpoints, state.height()).map_err(|why| format!("batched: {why}: {what}"))?;
                self.check_bid(&outpoints, tx, fee).map_err(|why| format!("bid: {why}: {what}"))?;
            }
            self.together.insert(outpoints.clone());
            if *is_taken {
                let rate = self.rate(&outpoints, tx, fee);
                self.bids.extend(outpoints.into_iter().map(|outpoint| (outpoint, rate)));
            }
        }
        Ok(())
    }

    fn items<'a>(&'a self, outpoints: &'a [OutPoint]) -> impl Iterator<Item = &'a Item> {
        outpoints.iter().map(|outpoint| &self.items[outpoint])
    }

    fn check_likes(&self, outpoints: &[OutPoint]) -> Result<(), String> {
        let classes: BTreeSet<Class> = self.items(outpoints).map(|item| item.class).collect();
        if classes.len() > 1 {
            return Err(format!("{classes:?}"));
        }
        if classes.contains(&Class::Anchor) && outpoints.len() > 1 {
            return Err("two anchors".to_owned());
        }
        Ok(())
    }

    fn check_budget(&self, outpoints: &[OutPoint], fee: u64) -> Result<(), String> {
        let value: u64 = self.items(outpoints).map(|item| item.value).sum();
        let budget = match self.items[&outpoints[0]].class {
            Class::Free => value / 2,
            Class::Contested { .. } | Class::SecondLevel { .. } => value,
            Class::Anchor => self.items[&outpoints[0]].budget,
        };
        if fee <= budget { Ok(()) } else { Err(format!("{fee} of {budget}")) }
    }

    fn check_near(&self, outpoints: &[OutPoint], height: u32) -> Result<(), String> {
        let is_near = |item: &Item| item.deadline.is_some_and(|deadline| deadline.saturating_sub(height) <= NEAR);
        if outpoints.len() > 1 && !self.together.contains(outpoints) && self.items(outpoints).any(is_near) {
            return Err("near their deadline they go alone".to_owned());
        }
        Ok(())
    }

    /// In sat per million weight units.
    fn rate(&self, outpoints: &[OutPoint], tx: &Transaction, fee: u64) -> u64 {
        let (weight, paid) = match self.items[&outpoints[0]].class {
            Class::Anchor => self.parents[&outpoints[0].txid],
            Class::Free | Class::Contested { .. } | Class::SecondLevel { .. } => (0, 0),
        };
        (fee + paid) * 1_000_000 / (weight + tx.weight().to_wu())
    }

    /// Never less than before; unless it is all that may be spent on it.
    fn check_bid(&self, outpoints: &[OutPoint], tx: &Transaction, fee: u64) -> Result<(), String> {
        let rate = self.rate(outpoints, tx, fee);
        let before = outpoints.iter().filter_map(|outpoint| self.bids.get(outpoint)).max().copied().unwrap_or(0);
        let is_all = self.check_budget(outpoints, fee + fee / 8 + DUST).is_err();
        // Signatures differ by some bytes in length.
        if rate + rate / 50 >= before || is_all {
            return Ok(());
        }
        Err(format!("{rate} after {before} sat per million weight units"))
    }

    /// All that is claimed and worth its fee is in the mempool, if nothing has gone wrong for some blocks.
    pub(super) fn whole(&self, state: &State, claimed: &BTreeSet<OutPoint>) -> Result<(), (OutPoint, String)> {
        for outpoint in claimed {
            let item = &self.items[outpoint];
            let is_there = state.mempool.spenders.contains_key(outpoint) || !state.unspent.contains_key(outpoint);
            if item.class != Class::Anchor && !is_there && is_worth_it(item, state) {
                return Err((*outpoint, format!("forgotten: {outpoint} at {}: {item:?}", state.height())));
            }
        }
        Ok(())
    }
}

/// Whether there is no doubt that its fee can be paid out of it.
fn is_worth_it(item: &Item, state: &State) -> bool {
    let fee = |rate: u64, weight: u64| rate * weight / 4_000;
    let frame = 42 + 172;
    match item.class {
        Class::Free => 3 * fee(state.estimate.max(state.minimum), item.weight + frame) < item.value / 2,
        Class::Contested { .. } => 2 * fee(state.minimum, item.weight + frame) < item.value - DUST,
        // And an input, an output and change of the wallet's.
        Class::SecondLevel { .. } => 2 * fee(state.minimum, item.weight + frame + 230 + 172) < item.value - DUST,
        Class::Anchor => false,
    }
}

/// What a commitment in the mempool pays together with the child of our anchor, if that is there, in sat per 1000 virtual
/// bytes.
pub(super) fn package_rate(state: &State, commitment: &Transaction, anchor: OutPoint) -> Option<u64> {
    let parent = state.mempool.entries.get(&commitment.compute_txid())?;
    let child = state.mempool.spenders.get(&anchor).and_then(|txid| state.mempool.entries.get(txid));
    let (fee, vsize) = child.map_or((0, 0), |child| (child.fee, child.vsize));
    Some((parent.fee + fee) * 1_000 / (parent.vsize + vsize))
}

/// Whether the help for a commitment costs so little that nothing speaks against it.
pub(super) fn is_cheap(cpfp: &Cpfp, rate: u64) -> bool {
    let vsize = cpfp.parent.vsize() as u64 + 250;
    let budget = Sat((cpfp.at_stake.0 + cpfp.balance.0) / 2);
    2 * rate * vsize / 1_000 < budget.0
}
