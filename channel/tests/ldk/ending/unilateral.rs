//! Alone: a commitment of either side confirms, and everyone claims what is his until nothing is left.

use std::collections::BTreeSet;

use bitcoin::{OutPoint, Transaction};
use lightning::chain::channelmonitor::Balance;
use millrace_channel::input::Command;
use millrace_channel::phase::Phase;
use millrace_channel::phase::on_chain::SpendKind;
use millrace_channel::side::Side;
use millrace_wire::CltvExpiry;

use super::our_wallet;
use crate::world::{MayEnd, World};

/// What a sweep of one output at the lowest fee may not be worth.
const WORTHLESS_SAT: u64 = 700;

/// Every HTLC has expired by then, and every delay is over.
const BLOCKS_MAX: u32 = 700;

impl World {
    pub(super) fn close_alone(&mut self, by: Side) -> Result<(), String> {
        if self.has_htlcs() {
            self.tally.count("unilateral close with htlcs");
        }
        self.may_end = MayEnd::Alone;
        match by {
            Side::Local => {
                self.say("we close alone");
                self.tally.count("unilateral close by us");
                let reason = "the user wants it".to_owned();
                self.node.command(Command::ForceClose { reason }).map_err(|refusal| refusal.to_string())?;
            }
            Side::Remote => {
                self.say("LDK closes alone");
                self.tally.count("unilateral close by ldk");
                self.ldk.force_close(self.ldk_channel_id())?;
            }
        }
        // The other may hear of it, or see it on chain.
        let steps = self.dice.below(20);
        self.let_talk(steps)?;
        self.cut();
        self.check_replay()?;
        self.play_out()
    }

    fn play_out(&mut self) -> Result<(), String> {
        let ours_first = self.dice.chance(50);
        let mut over = 0;
        for _ in 0..BLOCKS_MAX {
            if self.dice.chance(10) {
                self.decide_one_on_chain();
            }
            self.flush()?;
            self.ldk.outbox.clear();
            let candidates = self.candidates(ours_first);
            let block = self.minable(candidates);
            if !block.is_empty() {
                let ids: Vec<String> = block.iter().map(|tx| tx.compute_txid().to_string()[..8].to_owned()).collect();
                self.say(format!("block {} with {}", self.chain.height.0 + 1, ids.join(" ")));
            }
            self.mine(&block);
            self.check_known(&block)?;
            // What LDK says is matured is swept in the block after.
            over = if block.is_empty() && self.is_over() { over + 1 } else { 0 };
            if over > 2 {
                self.check_replay()?;
                return self.check_nothing_left();
            }
        }
        Err(format!(
            "after {BLOCKS_MAX} blocks we are {} with {:?} unclaimed, LDK has {:?}",
            self.node.channel.phase().name(),
            self.node.channel.unclaimed_outputs(),
            self.ldk.claimable_balances()
        ))
    }

    fn decide_one_on_chain(&mut self) {
        self.ldk.think();
        if self.dice.chance(50) {
            self.decide_all();
        } else if self.may_ldk_claim() {
            self.ldk_decide_all();
        }
    }

    /// Once its commitment has confirmed, LDK 0.2.7 asks for *all* of that commitment's claims again when it learns a
    /// preimage. Claims that wait for the same expiry have been put together by then; it compares them with single ones,
    /// takes them for new, and at their expiry a debug build asserts that no claim is made twice. Nothing of ours has a
    /// part in it: LDK's user is then too late, and the HTLC goes back to us.
    fn may_ldk_claim(&self) -> bool {
        let is_ldks = match self.node.channel.phase() {
            Phase::OnChain(on_chain) => on_chain.spend.as_ref().is_some_and(|spend| spend.what != SpendKind::Local),
            _ => false,
        };
        let offered = self.node.channel.ledger().htlcs(Side::Remote);
        let expiries: BTreeSet<CltvExpiry> = offered.iter().map(|htlc| htlc.add.cltv_expiry).collect();
        !is_ldks || expiries.len() == offered.len()
    }

    /// What either wallet would broadcast.
    fn candidates(&mut self, ours_first: bool) -> Vec<Transaction> {
        let mut ours: Vec<Transaction> = self.node.broadcasts.iter().map(|broadcast| broadcast.tx.clone()).collect();
        if let Some(claims) = self.node.claims.clone() {
            ours.extend(self.chain.claim(&claims, &self.node.keys, &our_wallet()));
        }
        let mut seen = std::collections::BTreeSet::new();
        self.ldk.mempool.retain(|tx| seen.insert(tx.compute_txid()));
        let theirs = self.ldk.mempool.iter().cloned();
        if ours_first { ours.into_iter().chain(theirs).collect() } else { theirs.chain(ours).collect() }
    }

    /// We know what spends the funding output.
    fn check_known(&mut self, block: &[Transaction]) -> Result<(), String> {
        let funding = self.node.channel.terms().funding_outpoint;
        if !block.iter().any(|tx| tx.input[0].previous_output == funding) {
            return Ok(());
        }
        let Phase::OnChain(on_chain) = self.node.channel.phase() else {
            return Err(format!("the funding output is spent, and we are {}", self.node.channel.phase().name()));
        };
        let what = on_chain.spend.as_ref().map(|spend| spend.what.clone());
        match what {
            Some(SpendKind::Local) => self.tally.count("our commitment confirmed"),
            Some(SpendKind::RemoteUnrevoked | SpendKind::RemoteNext) => self.tally.count("ldk's commitment confirmed"),
            other => return Err(format!("a commitment confirmed, and we take it for {other:?}")),
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        let left = |balance: &Balance| match balance {
            // LDK counts it as nothing, since we may take it: until one of the two has.
            Balance::MaybeTimeoutClaimableHTLC { amount_satoshis, .. } => *amount_satoshis,
            other => other.claimable_amount_satoshis(),
        };
        if self.ldk.claimable_balances().iter().any(|balance| left(balance) > WORTHLESS_SAT) {
            return false;
        }
        let is_worthless = |outpoint: &OutPoint| self.chain.value_of(*outpoint).is_none_or(|sat| sat <= WORTHLESS_SAT);
        match self.node.channel.phase() {
            Phase::Closed => true,
            Phase::OnChain(on_chain) => {
                on_chain.spend.is_some() && self.node.channel.unclaimed_outputs().iter().all(is_worthless)
            }
            _ => false,
        }
    }

    /// Of the commitment and of what spent it, nothing is left but anchors and what is not worth a sweep.
    fn check_nothing_left(&self) -> Result<(), String> {
        let funding = self.node.channel.terms().funding_outpoint;
        let commitment = self.chain.confirmed.iter().find(|tx| tx.input[0].previous_output == funding);
        let txid = commitment.ok_or("nothing has spent the funding output")?.compute_txid();
        for output in self.chain.unspent_of(txid) {
            if output.value.to_sat() > WORTHLESS_SAT {
                return Err(format!("{} of the commitment are left behind", output.value));
            }
        }
        let is_htlc_tx = |tx: &&Transaction| tx.input[0].previous_output.txid == txid;
        for tx in self.chain.confirmed.iter().filter(is_htlc_tx) {
            let left = self.chain.unspent_of(tx.compute_txid());
            let is_a_wallets = |script: &bitcoin::ScriptBuf| *script == our_wallet() || self.ldk.is_wallets(script);
            if let Some(output) =
                left.iter().find(|output| output.value.to_sat() > WORTHLESS_SAT && !is_a_wallets(&output.script_pubkey))
            {
                return Err(format!("{} of an HTLC transaction are left behind", output.value));
            }
        }
        Ok(())
    }
}
