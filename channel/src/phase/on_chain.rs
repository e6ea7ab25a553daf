//! The channel ends on chain (BOLT 5): a mutual close, or a commitment of either side, is in a block.
//!
//! The current commitment of this node, and the current and the next one of the peer, are resolved to the last
//! output that this node may claim, and a revoked one in [`breach`]. What each output needs is worked out in [`claims`];
//! fees, destinations and the choice of the moment are the wallet's.

pub mod breach;
pub mod claims;
pub mod complete;
pub mod ending;
pub mod others;
mod outcome;

use std::collections::BTreeMap;

use bitcoin::{OutPoint, ScriptBuf, Transaction, TxOut, Txid, Witness};
use millrace_wire::message::Error;
use millrace_wire::{BlockHeight, CltvExpiry, HtlcId, Message, Preimage, Sat};
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::effect::{Broadcast, Effect, Effects, Fact, Purpose, Watch};
use crate::fault::Refusal;
use crate::ledger::Which;
use crate::ledger::htlc::{Htlc, Removal, Status};
use crate::ledger::past::PastHtlc;
use crate::link::LinkState;
use crate::phase::Phase;
use crate::phase::closing::{self, SignedClose};
use crate::record::Record;
use crate::side::Side;
use crate::tx::claim::revealed_preimage;
use crate::tx::commitment::Commitment;
use crate::tx::script;

pub use breach::Breach;
pub use claims::{Claims, Cpfp, HtlcTxClaim, Sweep};
pub use ending::Ending;
pub use others::{OtherCommitments, Stake};

/// What is known of the channel's end on chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OnChain {
    /// Why, in words for the user.
    pub reason: String,
    /// Whether our own commitment is to be broadcast while nothing else spends the funding output.
    pub broadcast: bool,
    /// What spends the funding output, once it is in a block.
    pub spend: Option<Spend>,
    /// The outputs of that transaction (and of our HTLC transactions) that are spent in a block.
    pub spent: Vec<OutputSpend>,
    /// HTLCs of ours whose failure is final and has been told.
    pub timed_out: Vec<HtlcId>,
    /// The mutual closes that both have signed: good again if a reorg takes out of the chain what spends the funding
    /// output, unless our own commitment is to be broadcast.
    pub closes: Vec<SignedClose>,
}

/// What spends the funding output.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Spend {
    /// Its id.
    pub txid: Txid,
    /// The block it is in.
    pub height: BlockHeight,
    /// What it is.
    pub what: SpendKind,
    /// What it pays the miners.
    pub fee: Sat,
    /// What it pays this node's shutdown script or main output.
    pub direct: Sat,
}

/// What a transaction that spends the funding output is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum SpendKind {
    /// Both sides signed it for this.
    MutualClose,
    /// Our newest commitment.
    Local,
    /// The peer's commitment that it has not revoked.
    RemoteUnrevoked,
    /// The peer's newest commitment, whose predecessor it has not revoked yet.
    RemoteNext,
    /// A commitment that its holder has revoked, as it was recorded before revoked commitments were punished. Only
    /// `to_remote` is claimed.
    Revoked {
        /// Our balance in it.
        to_remote: Option<(u32, TxOut)>,
    },
    /// Signed by both sides, and this node remembers nothing of it: our data is old (D11). Only `to_remote` is claimed.
    Future {
        /// Our balance in it.
        to_remote: Option<(u32, TxOut)>,
    },
    /// A commitment that its holder has revoked.
    Breach(Box<Breach>),
}

impl SpendKind {
    /// Our balance in a commitment of which nothing else is claimed: which output, and what it holds.
    #[must_use]
    pub const fn unresolved_to_remote(&self) -> Option<&(u32, TxOut)> {
        match self {
            Self::Revoked { to_remote } | Self::Future { to_remote } => to_remote.as_ref(),
            Self::MutualClose | Self::Local | Self::RemoteUnrevoked | Self::RemoteNext | Self::Breach(_) => None,
        }
    }

    /// Whether the HTLCs in it are not told apart: none of them may be called failed over it.
    #[must_use]
    pub const fn is_unresolved(&self) -> bool {
        matches!(self, Self::Revoked { .. } | Self::Future { .. })
    }
}

/// A spent output that concerned us.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OutputSpend {
    /// The output.
    pub outpoint: OutPoint,
    /// The transaction that spends it.
    pub txid: Txid,
    /// The block that is in.
    pub height: BlockHeight,
    /// Who did.
    pub by: Side,
    /// If it is one of our HTLC transactions: its output, which is ours after the delay.
    pub second_level: Option<(u32, TxOut)>,
}

/// What happened on chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ChainRecord {
    /// The funding output is spent in a block.
    FundingSpent(Spend),
    /// An output of the spending transaction, or of an HTLC transaction of ours, is spent in a block.
    OutputSpent(OutputSpend),
    /// Blocks from this height on are no longer in the chain.
    Disconnected {
        /// The lowest of them.
        height: BlockHeight,
    },
    /// An HTLC of ours cannot succeed any more, and what shows it is buried.
    OfferTimedOut {
        /// The HTLC.
        id: HtlcId,
    },
    /// HTLCs of the node's log that have an output in the peer's revoked commitment.
    BreachHtlcs(Vec<PastHtlc>),
}

/// BOLT 3, "HTLC-Timeout and HTLC-Success Transactions": a zero, two signatures, the preimage or nothing, the script.
const HTLC_TX_WITNESS_ITEMS: usize = 5;

impl OnChain {
    const fn new(reason: String, broadcast: bool) -> Self {
        Self { reason, broadcast, spend: None, spent: Vec::new(), timed_out: Vec::new(), closes: Vec::new() }
    }

    /// How an output was spent, if it was.
    #[must_use]
    pub fn spend_of(&self, outpoint: OutPoint) -> Option<&OutputSpend> {
        self.spent.iter().find(|spend| spend.outpoint == outpoint)
    }
}

// --- the channel fails ---

impl Channel {
    /// The channel cannot go on, by our own word or by a fault of the peer: `error`, and our commitment goes out. A mutual
    /// close that both have signed stays what it is: a commitment would only compete with it.
    pub(crate) fn fail(&mut self, reason: String, fx: &mut Effects) {
        if self.is_close_complete() {
            return self.say_error(&reason, fx);
        }
        if !matches!(self.state.phase, Phase::OnChain(_) | Phase::Closed) {
            let broadcast = !self.state.is_data_lost;
            self.record(Record::Failed { reason, broadcast }, fx);
            self.drop_proposals(fx);
            self.broadcast_spend(fx);
        }
        self.say_failed(fx);
    }

    /// The peer said `error` (BOLT 1): the channel fails, without an `error` in return.
    pub(crate) fn peer_failed(&mut self, text: &str, fx: &mut Effects) {
        if matches!(self.state.phase, Phase::OnChain(_) | Phase::Closed) || self.is_close_complete() {
            return;
        }
        let broadcast = !self.state.is_data_lost;
        self.record(Record::Failed { reason: format!("the peer said: {text}"), broadcast }, fx);
        self.drop_proposals(fx);
        self.broadcast_spend(fx);
    }

    /// Closes alone. On a channel that is ending already, says everything that is owed again.
    pub(crate) fn force_close(&mut self, reason: String, fx: &mut Effects) -> Result<(), Refusal> {
        if self.state.is_data_lost {
            return Err(Refusal::DataLost);
        }
        match &self.state.phase {
            Phase::Closed => Err(Refusal::NotUsable("it is closed")),
            Phase::OnChain(on_chain) if on_chain.broadcast || on_chain.spend.is_some() => {
                self.resume_on_chain(fx);
                Ok(())
            }
            // On chain and neither: a reorg took a mutual close back, and it may never be in a block again.
            Phase::OnChain(_) | Phase::Opening | Phase::Normal | Phase::ShuttingDown | Phase::Closing(_) => {
                self.record(Record::Failed { reason, broadcast: true }, fx);
                self.drop_proposals(fx);
                self.broadcast_spend(fx);
                self.say_failed(fx);
                Ok(())
            }
        }
    }

    /// Tells the peer that the channel has failed, if it can be told.
    pub(crate) fn say_failed(&self, fx: &mut Effects) {
        let reason = match &self.state.phase {
            Phase::OnChain(on_chain) => on_chain.reason.as_str(),
            Phase::Closed => "the channel is closed",
            _ if self.state.is_data_lost => "this node has lost data: close the channel",
            _ => "the channel has failed",
        };
        self.say_error(reason, fx);
    }

    fn say_error(&self, reason: &str, fx: &mut Effects) {
        if self.link.state != LinkState::Down {
            fx.send(Message::Error(Error { channel_id: self.id(), data: reason.as_bytes().to_vec() }));
        }
    }

    pub(crate) fn apply_failed(&mut self, reason: String, broadcast: bool, fx: &mut Effects) {
        fx.fact(Fact::Failed { reason: reason.clone() });
        self.state.phase = Phase::OnChain(Box::new(OnChain::new(reason, broadcast)));
    }

    /// D11: from here on nothing of ours is broadcast; the peer's commitment is waited for.
    pub(crate) fn apply_data_lost(&mut self, _remote_point: PublicKey) {
        self.state.is_data_lost = true;
    }

    /// While nothing else spends the funding output: broadcasts our newest commitment (never another: D9), or else the
    /// mutual closes that a reorg took back.
    fn broadcast_spend(&mut self, fx: &mut Effects) {
        let Phase::OnChain(on_chain) = &self.state.phase else { return };
        match &on_chain.spend {
            None if on_chain.broadcast => {
                let tx = self.signed_commitment();
                fx.list.push(Effect::Broadcast(Broadcast { tx, purpose: Purpose::Commitment }));
            }
            None => closing::broadcast_complete(&on_chain.closes, fx),
            Some(_) => {}
        }
        self.update_claims(fx);
    }

    /// Our newest commitment, complete.
    pub(crate) fn signed_commitment(&self) -> Transaction {
        assert!(!self.state.is_data_lost, "D11: a commitment of old data is never broadcast");
        let commitment = self.commitment(Which::Current(Side::Local));
        let local = commitment.sign(&self.state.terms, &self.keys);
        commitment.signed_tx(&self.state.terms, &local, &self.state.local.signature.0)
    }

    /// Builds a commitment of either side.
    pub(crate) fn commitment(&self, which: Which) -> Commitment {
        match which.side() {
            Side::Remote => self.build_remote(which),
            Side::Local => self.build_local(which),
        }
    }
}

// --- the chain speaks ---

impl Channel {
    /// A block has come: deadlines of HTLCs, and what has become mature or buried.
    pub(crate) fn on_tip(&mut self, fx: &mut Effects) {
        match self.state.phase {
            Phase::Opening | Phase::Normal | Phase::ShuttingDown | Phase::Closing(_) => {
                if let Some(reason) = self.overdue_htlc() {
                    self.fail(reason, fx);
                }
            }
            Phase::OnChain(_) => {
                self.tell_timed_out(fx);
                self.close_when_buried(fx);
                self.update_claims(fx);
            }
            Phase::Closed => {}
        }
    }

    /// BOLT 2, "`cltv_expiry_delta` Selection": an HTLC that must be settled on chain now, in words.
    fn overdue_htlc(&self) -> Option<String> {
        let tip = self.tip.0;
        let (grace, margin) = (self.policy.offered_grace, self.policy.received_margin);
        let ledger = &self.state.ledger;
        let offered = ledger
            .htlcs(Side::Local)
            .iter()
            .find(|htlc| htlc.known_preimage.is_none() && htlc.add.cltv_expiry.0.saturating_add(grace) <= tip);
        if let Some(htlc) = offered {
            let (id, expiry) = (htlc.add.id.0, htlc.add.cltv_expiry.0);
            return Some(format!(
                "htlc {id} that we offered expired at {expiry}, and at {tip} the peer has not removed it"
            ));
        }
        let is_due =
            |htlc: &&Htlc| claimable_preimage(htlc).is_some() && htlc.add.cltv_expiry.0 <= tip.saturating_add(margin);
        let received = ledger.htlcs(Side::Remote).iter().find(is_due)?;
        let (id, expiry) = (received.add.id.0, received.add.cltv_expiry.0);
        Some(format!(
            "htlc {id}, whose preimage we have, expires at {expiry}, and at {tip} the peer has not removed it"
        ))
    }

    /// A transaction in the block of the last tip that concerns us: it may spend the funding output, or
    /// outputs of what spent it, any number of them.
    pub(crate) fn on_spend_confirmed(&mut self, tx: &Transaction, fx: &mut Effects) {
        if self.state.phase == Phase::Closed {
            return;
        }
        let funding = self.state.terms.funding_outpoint;
        let is_spent = matches!(&self.state.phase, Phase::OnChain(on_chain) if on_chain.spend.is_some());
        if !is_spent && tx.input.iter().any(|input| input.previous_output == funding) {
            self.on_funding_spent(tx, fx);
        }
        self.learn_preimages(tx, fx);
        let mut is_news = false;
        for (index, input) in tx.input.iter().enumerate() {
            if let Some(spend) = self.output_spend(tx, index, input.previous_output) {
                self.record(Record::Chain(ChainRecord::OutputSpent(spend)), fx);
                is_news = true;
            }
        }
        if is_news {
            self.watch_outputs(fx);
            self.update_claims(fx);
        }
    }

    fn on_funding_spent(&mut self, tx: &Transaction, fx: &mut Effects) {
        let txid = tx.compute_txid();
        let what = self.spend_kind(tx, txid);
        let value_out: Sat = tx.output.iter().map(|output| Sat::from(output.value)).sum();
        let fee = self.state.terms.capacity.checked_sub(value_out).unwrap_or(Sat::ZERO);
        let direct = self.direct_of(&what, tx);
        if what == SpendKind::MutualClose {
            self.record_close_in_block(tx, fee, fx);
        }
        let spend = Spend { txid, height: self.tip, what, fee, direct };
        self.record(Record::Chain(ChainRecord::FundingSpent(spend)), fx);
        self.drop_proposals(fx);
        self.ask_for_past_htlcs(fx);
        self.watch_outputs(fx);
        self.say_failed_unless_mutual(fx);
        self.update_claims(fx);
    }

    fn say_failed_unless_mutual(&self, fx: &mut Effects) {
        let Phase::OnChain(on_chain) = &self.state.phase else { return };
        if !matches!(&on_chain.spend, Some(Spend { what: SpendKind::MutualClose, .. })) {
            self.say_failed(fx);
        }
    }

    fn spend_kind(&self, tx: &Transaction, txid: Txid) -> SpendKind {
        if self.is_mutual_close(tx) {
            return SpendKind::MutualClose;
        }
        let known = [
            (Which::Current(Side::Local), SpendKind::Local),
            (Which::RemoteUnrevoked, SpendKind::RemoteUnrevoked),
            (Which::Current(Side::Remote), SpendKind::RemoteNext),
        ];
        for (which, kind) in known {
            if self.commitment(which).txid == txid {
                return kind;
            }
        }
        if let Some((holder, number)) = self.revoked_in(tx) {
            let breach = Breach { holder, number, outputs: tx.output.clone(), htlcs: Vec::new() };
            return SpendKind::Breach(Box::new(breach));
        }
        let ours = self.to_remote_script(Side::Local);
        let found = tx.output.iter().position(|output| output.script_pubkey == ours);
        let to_remote = found.map(|vout| (vout as u32, tx.output[vout].clone()));
        SpendKind::Future { to_remote }
    }

    /// Whether it was signed by this node after all that it remembers (D11). No close is signed before `shutdown`.
    fn is_after_our_data(&self, what: &SpendKind) -> bool {
        match what {
            SpendKind::Future { .. } => true,
            SpendKind::MutualClose => self.state.shutdown.local.is_none(),
            SpendKind::Local
            | SpendKind::RemoteUnrevoked
            | SpendKind::RemoteNext
            | SpendKind::Revoked { .. }
            | SpendKind::Breach(_) => false,
        }
    }

    /// What `to_remote` pays to in the commitments of the other side.
    fn to_remote_script(&self, owner: Side) -> ScriptBuf {
        let payment = self.state.terms.party(owner).basepoints.payment;
        script::to_remote_pubkey(self.state.terms.format(), &payment)
    }

    fn direct_of(&self, what: &SpendKind, tx: &Transaction) -> Sat {
        let known = |which| ending::balance_of(&self.commitment(which), Side::Local);
        match what {
            SpendKind::MutualClose => self.paid_directly(&tx.output),
            SpendKind::Local => known(Which::Current(Side::Local)),
            SpendKind::RemoteUnrevoked => known(Which::RemoteUnrevoked),
            SpendKind::RemoteNext => known(Which::Current(Side::Remote)),
            SpendKind::Revoked { to_remote } | SpendKind::Future { to_remote } => {
                to_remote.as_ref().map_or(Sat::ZERO, |(_, output)| Sat::from(output.value))
            }
            SpendKind::Breach(breach) => {
                let ours = self.to_remote_script(Side::Local);
                let to_remote = breach.outputs.iter().filter(|output| output.script_pubkey == ours);
                to_remote.map(|output| Sat::from(output.value)).sum()
            }
        }
    }

    /// A spend that is not in a block yet: only what it reveals counts.
    pub(crate) fn on_unconfirmed(&mut self, tx: &Transaction, fx: &mut Effects) {
        if self.state.phase != Phase::Closed {
            self.learn_preimages(tx, fx);
        }
    }

    /// Whatever spends an HTLC output with a preimage of ours tells it: looked for among all HTLCs that we
    /// offered, whichever commitment they stand in.
    fn learn_preimages(&mut self, tx: &Transaction, fx: &mut Effects) {
        let mut found: Vec<(HtlcId, Preimage)> = Vec::new();
        for htlc in self.state.ledger.htlcs(Side::Local).iter().filter(|htlc| htlc.known_preimage.is_none()) {
            let revealed = tx.input.iter().find_map(|input| revealed_preimage(&input.witness, &htlc.add.payment_hash));
            found.extend(revealed.map(|preimage| (htlc.add.id, preimage)));
        }
        for (id, preimage) in found {
            self.record(Record::PreimageReceived { id, preimage }, fx);
        }
    }

    /// Preimages that somebody else has seen on chain. One may be of several HTLCs.
    pub(crate) fn take_preimages(&mut self, preimages: &[Preimage], fx: &mut Effects) {
        if self.state.phase == Phase::Closed {
            return;
        }
        let by_hash: BTreeMap<_, _> = preimages.iter().map(|preimage| (preimage.hash(), preimage)).collect();
        let unknown = self.state.ledger.htlcs(Side::Local).iter().filter(|htlc| htlc.known_preimage.is_none());
        let found = unknown.filter_map(|htlc| Some((htlc.add.id, (*by_hash.get(&htlc.add.payment_hash)?).clone())));
        let found: Vec<(HtlcId, Preimage)> = found.collect();
        for (id, preimage) in found {
            self.record(Record::PreimageReceived { id, preimage }, fx);
        }
    }

    /// A preimage that came as a message after the channel had ended.
    pub(crate) fn learn_preimage(&mut self, id: HtlcId, preimage: Preimage, fx: &mut Effects) {
        let is_news = |htlc: &&Htlc| htlc.known_preimage.is_none() && preimage.hash() == htlc.add.payment_hash;
        if self.state.ledger.htlc(Side::Local, id).filter(is_news).is_some() {
            self.record(Record::PreimageReceived { id, preimage }, fx);
        }
    }

    /// What this input means to us: `None` if its output is not one we follow, or known to be spent.
    fn output_spend(&self, tx: &Transaction, input: usize, outpoint: OutPoint) -> Option<OutputSpend> {
        let Phase::OnChain(on_chain) = &self.state.phase else { return None };
        let spend = on_chain.spend.as_ref()?;
        let is_second_level = on_chain.spent.iter().any(|spent| second_level_outpoint(spent) == Some(outpoint));
        if (outpoint.txid != spend.txid && !is_second_level) || on_chain.spend_of(outpoint).is_some() {
            return None;
        }
        let second_level = if is_second_level { None } else { self.second_level_in(spend, tx, input) };
        let by = self.spender(&tx.input[input].witness, outpoint, spend, is_second_level);
        Some(OutputSpend { outpoint, txid: tx.compute_txid(), height: self.tip, by, second_level })
    }

    /// Who spent an output, by what only this side can do: BOLT 3 gives each main output to one side, and HTLC
    /// transactions, which are the broadcaster's, have a witness of five items; the other side's claims have three.
    fn spender(&self, witness: &Witness, outpoint: OutPoint, spend: &Spend, is_second_level: bool) -> Side {
        if let SpendKind::Breach(breach) = &spend.what {
            return self.breach_spender(spend, breach, outpoint, witness);
        }
        let Some(commitment) = self.confirmed_commitment().filter(|_| !is_second_level) else { return Side::Local };
        let holder = commitment.side;
        let vout = Some(outpoint.vout).filter(|_| outpoint.txid == spend.txid);
        let is_holders = if commitment.htlcs.iter().any(|htlc| Some(htlc.vout) == vout) {
            witness.len() == HTLC_TX_WITNESS_ITEMS
        } else {
            vout == commitment.to_local || vout == *commitment.anchors.of(holder)
        };
        if is_holders { holder } else { holder.other() }
    }

    /// The output that is the broadcaster's after the delay, if the input is that of an HTLC transaction which matters.
    fn second_level_in(&self, spend: &Spend, tx: &Transaction, input: usize) -> Option<(u32, TxOut)> {
        match &spend.what {
            SpendKind::Local => self.second_level_of(tx, input),
            SpendKind::Breach(breach) => self.second_level_of_breach(breach, tx, input),
            SpendKind::MutualClose
            | SpendKind::RemoteUnrevoked
            | SpendKind::RemoteNext
            | SpendKind::Revoked { .. }
            | SpendKind::Future { .. } => None,
        }
    }

    /// The output of our HTLC transaction: at the index of its input, with the script that only we can make.
    fn second_level_of(&self, tx: &Transaction, input: usize) -> Option<(u32, TxOut)> {
        let keys = self.local_keys(self.state.local.number);
        let delay = self.state.terms.delay_of(Side::Local);
        let ours = script::to_local(&keys.revocation, delay, &keys.broadcaster_delayed).to_p2wsh();
        let output = tx.output.get(input).filter(|output| output.script_pubkey == ours)?;
        Some((u32::try_from(input).ok()?, output.clone()))
    }

    pub(crate) fn apply_chain(&mut self, record: ChainRecord, fx: &mut Effects) {
        match record {
            ChainRecord::FundingSpent(spend) => {
                fx.fact(Fact::FundingSpent {
                    txid: spend.txid,
                    height: spend.height,
                    what: spend.what.clone(),
                    fee: spend.fee,
                    direct: spend.direct,
                });
                let reason = closing_reason(&spend.what);
                match &mut self.state.phase {
                    // Whatever was under way before it: this is what matters.
                    Phase::OnChain(on_chain) if matches!(spend.what, SpendKind::Breach(_)) => on_chain.reason = reason,
                    Phase::OnChain(_) => {}
                    Phase::Closing(closes) => {
                        let closes = std::mem::take(closes);
                        self.state.phase = Phase::OnChain(Box::new(OnChain { closes, ..OnChain::new(reason, false) }));
                    }
                    _ => self.state.phase = Phase::OnChain(Box::new(OnChain::new(reason, false))),
                }
                if self.is_after_our_data(&spend.what) {
                    self.state.is_data_lost = true;
                    self.on_chain_mut().broadcast = false;
                }
                self.on_chain_mut().spend = Some(spend);
            }
            ChainRecord::OutputSpent(spend) => self.on_chain_mut().spent.push(spend),
            ChainRecord::Disconnected { height } => {
                let is_data_lost = self.state.is_data_lost;
                let on_chain = self.on_chain_mut();
                on_chain.spent.retain(|spend| spend.height < height);
                if on_chain.spend.as_ref().is_some_and(|spend| spend.height >= height) {
                    let was_mutual = matches!(&on_chain.spend, Some(Spend { what: SpendKind::MutualClose, .. }));
                    on_chain.spend = None;
                    // Whatever it was, it may never confirm again: our own commitment is good as well.
                    on_chain.broadcast |= !is_data_lost && !was_mutual;
                }
            }
            ChainRecord::OfferTimedOut { id } => {
                self.on_chain_mut().timed_out.push(id);
                let origin = self.state.ledger.htlc(Side::Local, id).and_then(|htlc| htlc.add.origin);
                if let Some(origin) = origin {
                    fx.fact(Fact::OfferTimedOut { id, origin });
                }
            }
            ChainRecord::BreachHtlcs(htlcs) => {
                let breach = self.on_chain_mut().breach_mut().expect("recorded for a breach that is in a block");
                breach.htlcs.extend(htlcs);
            }
        }
    }

    fn on_chain_mut(&mut self) -> &mut OnChain {
        match &mut self.state.phase {
            Phase::OnChain(on_chain) => on_chain,
            phase => unreachable!("a chain record while {}", phase.name()),
        }
    }

    /// Blocks were taken out of the chain.
    pub(crate) fn on_chain_disconnected(&mut self, height: BlockHeight, fx: &mut Effects) {
        let Phase::OnChain(on_chain) = &self.state.phase else { return };
        let is_spend_gone = on_chain.spend.as_ref().is_some_and(|spend| spend.height >= height);
        if is_spend_gone || on_chain.spent.iter().any(|spend| spend.height >= height) {
            self.record(Record::Chain(ChainRecord::Disconnected { height }), fx);
            self.broadcast_spend(fx);
        }
    }

    pub(crate) fn on_removal_decided_on_chain(&mut self, fx: &mut Effects) {
        self.update_claims(fx);
    }

    /// After a restart: what is to be broadcast, watched and claimed.
    pub(crate) fn resume_on_chain(&mut self, fx: &mut Effects) {
        self.last_claims = None;
        self.ask_for_past_htlcs(fx);
        self.watch_outputs(fx);
        self.broadcast_spend(fx);
    }

    /// Watches every output that may concern us of what spends the funding output.
    fn watch_outputs(&self, fx: &mut Effects) {
        let Phase::OnChain(on_chain) = &self.state.phase else { return };
        let mut watch = |outpoint, script: &ScriptBuf| {
            if on_chain.spend_of(outpoint).is_none() {
                fx.list.push(Effect::Watch(Watch::Spend { outpoint, script: script.clone() }));
            }
        };
        for spent in &on_chain.spent {
            if let (Some(outpoint), Some((_, output))) = (second_level_outpoint(spent), &spent.second_level) {
                watch(outpoint, &output.script_pubkey);
            }
        }
        let Some(spend) = &on_chain.spend else { return };
        if let Some((vout, output)) = spend.what.unresolved_to_remote() {
            watch(OutPoint { txid: spend.txid, vout: *vout }, &output.script_pubkey);
        }
        for (vout, output) in (0..).zip(on_chain.breach().map_or(&[][..], |breach| &breach.outputs)) {
            watch(OutPoint { txid: spend.txid, vout }, &output.script_pubkey);
        }
        if let Some(commitment) = self.confirmed_commitment() {
            for (vout, output) in (0..).zip(&commitment.tx.output) {
                watch(commitment.outpoint(vout), &output.script_pubkey);
            }
        }
    }

    /// The commitment that is in a block, if it is one that we know.
    pub(crate) fn confirmed_commitment(&self) -> Option<Commitment> {
        let Phase::OnChain(on_chain) = &self.state.phase else { return None };
        match on_chain.spend.as_ref()?.what {
            SpendKind::Local => Some(self.commitment(Which::Current(Side::Local))),
            SpendKind::RemoteUnrevoked => Some(self.commitment(Which::RemoteUnrevoked)),
            SpendKind::RemoteNext => Some(self.commitment(Which::Current(Side::Remote))),
            SpendKind::MutualClose | SpendKind::Revoked { .. } | SpendKind::Future { .. } | SpendKind::Breach(_) => {
                None
            }
        }
    }

    const fn depth_of(&self, height: BlockHeight) -> u32 {
        (self.tip.0 + 1).saturating_sub(height.0)
    }

    /// Asks for the claims, if they differ from what was asked for before.
    fn update_claims(&mut self, fx: &mut Effects) {
        let Phase::OnChain(_) = &self.state.phase else { return };
        for tx in self.due_htlc_txs() {
            fx.list.push(Effect::Broadcast(Broadcast { tx, purpose: Purpose::Htlc }));
        }
        let claims = self.claims();
        if self.last_claims.as_ref() != Some(&claims) {
            fx.list.push(Effect::Claim(Box::new(claims.clone())));
            self.last_claims = Some(claims);
        }
    }
}

/// Where the output of our HTLC transaction is.
pub(crate) fn second_level_outpoint(spent: &OutputSpend) -> Option<OutPoint> {
    spent.second_level.as_ref().map(|(vout, _)| OutPoint { txid: spent.txid, vout: *vout })
}

/// The preimage with which we may claim an HTLC of the peer.
pub(crate) const fn claimable_preimage(htlc: &Htlc) -> Option<&Preimage> {
    match &htlc.status {
        Status::Decided(Removal::Fulfill { preimage, .. }) | Status::Removing(_, Removal::Fulfill { preimage, .. }) => {
            Some(preimage)
        }
        Status::Decided(_) | Status::Removing(_, _) | Status::Adding(_) => None,
    }
}

/// Whether a block that comes next may hold a transaction with this lock time.
pub(crate) const fn is_expired(expiry: CltvExpiry, tip: BlockHeight) -> bool {
    expiry.0 <= tip.0
}

fn closing_reason(what: &SpendKind) -> String {
    let reason = match what {
        SpendKind::MutualClose => "both sides agreed to close",
        SpendKind::Local => "our commitment is on chain",
        SpendKind::RemoteUnrevoked | SpendKind::RemoteNext => "the peer's commitment is on chain",
        SpendKind::Revoked { .. } => "a revoked commitment is on chain",
        SpendKind::Future { .. } => "what is on chain was signed after all that this node knows of: its data is old",
        SpendKind::Breach(breach) => return breach.reason(),
    };
    reason.to_owned()
}
