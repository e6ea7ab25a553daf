//! A revoked commitment is on chain (BOLT 5, "Revoked Transaction Close Handling").
//!
//! Of the peer's, everything is taken: `to_remote`, and with the revocation key `to_local`, every HTLC output, and the
//! output of every HTLC transaction that the peer still gets into a block. Of our own, the peer may take everything, and
//! this node signs nothing for it: it only looks on, so that its HTLCs come to an end.
//!
//! Outputs are known by their scripts. Those of HTLCs that have left the ledger need the log that the node keeps of
//! them ([`PastHtlc`]); it is asked for by [`Fact::Breached`], and what fits is recorded.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, ScriptBuf, Transaction, TxOut, Witness};
use millrace_wire::{BlockHeight, CommitmentNumber};
use secp256k1::{SECP256K1, SecretKey};
use serde::{Deserialize, Serialize};

use super::claims::{Due, sweep_after, with_deadline};
use super::{ChainRecord, HTLC_TX_WITNESS_ITEMS, OnChain, Spend, SpendKind, second_level_outpoint};
use crate::channel::Channel;
use crate::effect::{Effects, Fact};
use crate::fault::Refusal;
use crate::keys::CommitmentKeys;
use crate::ledger::htlc::Htlc;
use crate::ledger::past::PastHtlc;
use crate::phase::Phase;
use crate::record::Record;
use crate::secrets::Secret;
use crate::side::Side;
use crate::tx::claim;
use crate::tx::commitment;
use crate::tx::script::{self, HtlcScripts};

/// A commitment that its holder has revoked, in a block.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Breach {
    /// Whose commitment it is.
    pub holder: Side,
    /// Its number.
    pub number: CommitmentNumber,
    /// Its outputs.
    pub outputs: Vec<TxOut>,
    /// The HTLCs of the node's log that have an output in it.
    pub htlcs: Vec<PastHtlc>,
}

/// What an output of a revoked commitment is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum BreachOutput {
    /// A side's main output; with its script if it is the holder's.
    Balance(Side, ScriptBuf),
    /// An HTLC, with its script.
    Htlc(Side, ScriptBuf),
    /// A side's anchor.
    Anchor(Side),
    /// Nothing that is known.
    Unknown,
}

impl Breach {
    /// What happened, in words for the user.
    #[must_use]
    pub fn reason(&self) -> String {
        let number = self.number;
        match self.holder {
            Side::Remote => format!("the peer published its commitment {number}, which it had revoked"),
            Side::Local => format!("our commitment {number}, which we had revoked, is on chain: the peer may take all"),
        }
    }

    /// The index, the output and where it is, of each.
    fn outputs(&self, spend: &Spend) -> impl Iterator<Item = (OutPoint, &TxOut)> {
        let txid = spend.txid;
        (0..).zip(&self.outputs).map(move |(vout, output)| (OutPoint { txid, vout }, output))
    }

    /// The outputs that an HTLC may have in it. Equal HTLCs share theirs.
    pub(super) fn outputs_of(&self, spend: &Spend, scripts: &HtlcScripts, htlc: &Htlc) -> Vec<OutPoint> {
        let past = PastHtlc::of(htlc, self.number);
        let script = scripts.of_hash160(htlc.offered_by == self.holder, past.hash160, past.cltv_expiry).to_p2wsh();
        let is_its = |(_, output): &(OutPoint, &TxOut)| output.script_pubkey == script;
        self.outputs(spend).filter(is_its).map(|(outpoint, _)| outpoint).collect()
    }
}

impl Channel {
    /// Which side has revoked the commitment that `tx` is, if that is what it is, and its number.
    ///
    /// What its number makes a revoked one of both, and its outputs leave open, is taken for the peer's: what then fits
    /// no script of ours is left alone. What neither tells counts as signed after all that this node knows.
    pub(super) fn revoked_in(&self, tx: &Transaction) -> Option<(Side, CommitmentNumber)> {
        let number = commitment::number_in(&self.state.terms, tx)?;
        let pays = |script: &ScriptBuf| tx.output.iter().any(|output| output.script_pubkey == *script);
        let may_be = |holder: Side| match holder {
            Side::Local => number < self.state.local.number,
            Side::Remote => number < self.state.remote.unrevoked,
        };
        let has_outputs_of = |holder: Side| {
            let keys = self.revoked_keys(holder, number);
            pays(&self.delayed_script(holder, &keys).to_p2wsh())
                || self.htlc_scripts(holder, &keys, &[]).keys().any(pays)
        };
        let is_of =
            |holder: Side| pays(&self.to_remote_script(holder.other())) || (may_be(holder) && has_outputs_of(holder));
        if let Some(holder) = [Side::Remote, Side::Local].into_iter().find(|holder| is_of(*holder)) {
            return may_be(holder).then_some((holder, number));
        }
        (may_be(Side::Remote) && may_be(Side::Local)).then_some((Side::Remote, number))
    }

    /// The keys of a commitment that is revoked.
    fn revoked_keys(&self, holder: Side, number: CommitmentNumber) -> CommitmentKeys {
        match holder {
            Side::Local => self.local_keys(number),
            Side::Remote => self.remote_keys(&self.revealed(number).public_key(SECP256K1)),
        }
    }

    fn revealed(&self, number: CommitmentNumber) -> SecretKey {
        let secret = self.state.remote.secrets.get(number).expect("only a revoked commitment is a breach");
        SecretKey::from_slice(&secret).expect("it was checked against its point when it was revealed")
    }

    /// The script of `to_local`, and of every output of an HTLC transaction, of a commitment with these keys.
    fn delayed_script(&self, holder: Side, keys: &CommitmentKeys) -> ScriptBuf {
        script::to_local(&keys.revocation, self.state.terms.delay_of(holder), &keys.broadcaster_delayed)
    }

    /// What each output of the commitment is.
    pub(super) fn breach_outputs(&self, breach: &Breach) -> Vec<BreachOutput> {
        let keys = self.revoked_keys(breach.holder, breach.number);
        let htlcs = self.htlc_scripts(breach.holder, &keys, &breach.htlcs);
        let to_local = self.delayed_script(breach.holder, &keys);
        let to_remote = self.to_remote_script(breach.holder.other());
        let funding_key = |side| crate::tx::funding::funding_key(&self.state.terms, side);
        let anchor = |side| script::anchor(funding_key(side)).to_p2wsh();
        let anchors = [Side::Local, Side::Remote].map(|side| (anchor(side), side));
        let is_of = |output: &TxOut| {
            let found = &output.script_pubkey;
            if *found == to_local.to_p2wsh() {
                return BreachOutput::Balance(breach.holder, to_local.clone());
            }
            if *found == to_remote {
                return BreachOutput::Balance(breach.holder.other(), ScriptBuf::new());
            }
            if let Some((_, side)) = anchors.iter().find(|(script, _)| script == found) {
                return BreachOutput::Anchor(*side);
            }
            match htlcs.get(found) {
                Some((offered_by, script)) => BreachOutput::Htlc(*offered_by, script.clone()),
                None => BreachOutput::Unknown,
            }
        };
        breach.outputs.iter().map(is_of).collect()
    }

    /// The scripts of the HTLCs that may stand in it: those of the ledger, and those of the log.
    fn htlc_scripts(
        &self,
        holder: Side,
        keys: &CommitmentKeys,
        log: &[PastHtlc],
    ) -> BTreeMap<ScriptBuf, (Side, ScriptBuf)> {
        let scripts = HtlcScripts::new(self.state.terms.format(), keys);
        let ledger = &self.state.ledger;
        let present = ledger.htlcs(Side::Local).iter().chain(ledger.htlcs(Side::Remote));
        let present = present.map(|htlc| PastHtlc::of(htlc, self.state.remote.number));
        let script_of = |htlc: PastHtlc| {
            let script = scripts.of_hash160(htlc.offered_by == holder, htlc.hash160, htlc.cltv_expiry);
            (script.to_p2wsh(), (htlc.offered_by, script))
        };
        present.chain(log.iter().copied()).map(script_of).collect()
    }

    /// The scripts of the HTLCs in it.
    pub(super) fn breach_scripts(&self, breach: &Breach) -> HtlcScripts {
        HtlcScripts::new(self.state.terms.format(), &self.revoked_keys(breach.holder, breach.number))
    }

    /// All that is ours of it, less what is spent.
    pub(super) fn due_of_breach(&self, on_chain: &OnChain, spend: &Spend, breach: &Breach, due: &mut Vec<Due>) {
        if breach.holder == Side::Local {
            return;
        }
        let keys = self.revoked_keys(breach.holder, breach.number);
        let secret = Secret(self.revealed(breach.number).secret_bytes());
        let terms = &self.state.terms;
        let delay = u32::from(terms.delay_of(Side::Remote));
        let penalize = |claim, confirmed: BlockHeight| {
            with_deadline(sweep_after(claim, confirmed), Some(BlockHeight(confirmed.0 + delay)))
        };
        for ((outpoint, output), what) in breach.outputs(spend).zip(self.breach_outputs(breach)) {
            let output = output.clone();
            match what {
                BreachOutput::Balance(Side::Remote, _) => {
                    let penalty = claim::penalty_of_delayed(terms, &keys, secret, outpoint, output);
                    due.push(penalize(penalty, spend.height));
                }
                BreachOutput::Htlc(_, script) => {
                    let penalty = claim::penalty_of_htlc(secret, outpoint, output, script);
                    due.push(penalize(penalty, spend.height));
                }
                BreachOutput::Balance(Side::Local, _) => {
                    due.push(sweep_after(self.unresolved_to_remote(outpoint, output), spend.height));
                }
                BreachOutput::Anchor(_) | BreachOutput::Unknown => {}
            }
        }
        for spent in &on_chain.spent {
            if let (Some(outpoint), Some((_, output))) = (second_level_outpoint(spent), &spent.second_level) {
                let penalty = claim::penalty_of_delayed(terms, &keys, secret, outpoint, output.clone());
                due.push(penalize(penalty, spent.height));
            }
        }
    }

    /// The output of an HTLC transaction of the peer's: the peer's signature of ours binds it to the index of its input.
    pub(super) fn second_level_of_breach(
        &self,
        breach: &Breach,
        tx: &Transaction,
        input: usize,
    ) -> Option<(u32, TxOut)> {
        let keys = self.revoked_keys(breach.holder, breach.number);
        let script = self.delayed_script(breach.holder, &keys).to_p2wsh();
        let output = tx.output.get(input).filter(|output| output.script_pubkey == script)?;
        Some((u32::try_from(input).ok()?, output.clone()))
    }

    /// Who spent an output of it, or of an HTLC transaction of its holder, by the branch of the script that was taken.
    pub(super) fn breach_spender(&self, spend: &Spend, breach: &Breach, outpoint: OutPoint, witness: &Witness) -> Side {
        let (holder, other) = (breach.holder, breach.holder.other());
        let by_revocation = || witness.nth(1).is_some_and(is_true);
        if outpoint.txid != spend.txid {
            return if by_revocation() { other } else { holder };
        }
        let what = self.breach_outputs(breach).into_iter().nth(outpoint.vout as usize);
        match what {
            Some(BreachOutput::Balance(side, _)) if side == holder => {
                if by_revocation() {
                    other
                } else {
                    holder
                }
            }
            Some(BreachOutput::Balance(side, _) | BreachOutput::Anchor(side)) => side,
            Some(BreachOutput::Htlc(..) | BreachOutput::Unknown) | None => {
                if witness.len() == HTLC_TX_WITNESS_ITEMS {
                    holder
                } else {
                    other
                }
            }
        }
    }

    /// Asks the node for the HTLCs that the peer's revoked commitment may hold.
    pub(super) fn ask_for_past_htlcs(&self, fx: &mut Effects) {
        let Phase::OnChain(on_chain) = &self.state.phase else { return };
        if let Some(Breach { holder: Side::Remote, number, .. }) = on_chain.breach() {
            fx.fact(Fact::Breached { number: *number });
        }
    }

    /// The node's log has told: what has an output in the commitment, and is not known from the ledger, is recorded.
    ///
    /// # Errors
    /// [`Refusal::NotUsable`] if no revoked commitment of the peer's is on chain.
    pub(crate) fn take_past_htlcs(&mut self, told: &[PastHtlc], fx: &mut Effects) -> Result<(), Refusal> {
        let none = Refusal::NotUsable("no revoked commitment of the peer's is on chain");
        let Phase::OnChain(on_chain) = &self.state.phase else { return Err(none) };
        let Some(breach) = on_chain.breach().filter(|breach| breach.holder == Side::Remote) else { return Err(none) };
        let keys = self.revoked_keys(breach.holder, breach.number);
        let scripts = HtlcScripts::new(self.state.terms.format(), &keys);
        let mut known: Vec<ScriptBuf> = self.htlc_scripts(breach.holder, &keys, &breach.htlcs).into_keys().collect();
        let mut htlcs = Vec::new();
        for htlc in told.iter().filter(|htlc| htlc.may_stand_in(breach.number)) {
            let offered_by_holder = htlc.offered_by == breach.holder;
            let script = scripts.of_hash160(offered_by_holder, htlc.hash160, htlc.cltv_expiry).to_p2wsh();
            let is_there = breach.outputs.iter().any(|output| output.script_pubkey == script);
            if is_there && !known.contains(&script) {
                known.push(script);
                htlcs.push(*htlc);
            }
        }
        if !htlcs.is_empty() {
            self.record(Record::Chain(ChainRecord::BreachHtlcs(htlcs)), fx);
            self.update_claims(fx);
        }
        Ok(())
    }
}

impl OnChain {
    /// The revoked commitment that is in a block, if it is one.
    #[must_use]
    pub fn breach(&self) -> Option<&Breach> {
        match &self.spend.as_ref()?.what {
            SpendKind::Breach(breach) => Some(breach),
            SpendKind::MutualClose
            | SpendKind::Local
            | SpendKind::RemoteUnrevoked
            | SpendKind::RemoteNext
            | SpendKind::Revoked { .. }
            | SpendKind::Future { .. } => None,
        }
    }

    pub(super) fn breach_mut(&mut self) -> Option<&mut Breach> {
        match &mut self.spend.as_mut()?.what {
            SpendKind::Breach(breach) => Some(breach),
            SpendKind::MutualClose
            | SpendKind::Local
            | SpendKind::RemoteUnrevoked
            | SpendKind::RemoteNext
            | SpendKind::Revoked { .. }
            | SpendKind::Future { .. } => None,
        }
    }
}

/// Whether the interpreter takes a stack item for true: a block may hold other forms of it than the shortest one.
fn is_true(item: &[u8]) -> bool {
    match item.split_last() {
        None => false,
        Some((last, rest)) => rest.iter().any(|byte| *byte != 0) || !matches!(last, 0 | 0x80),
    }
}
