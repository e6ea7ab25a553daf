//! Which transactions should exist now: a pure function of the claims, the mempool, the height and the feerates.
//!
//! * Outputs that nobody else can take (`to_local`, `to_remote`, second-level outputs after their delay) are swept
//!   together, of all channels. They wait while fees would eat half of them.
//! * HTLCs, which the peer may take too, go alone or with those of the same channel, kind and deadline; close to the
//!   deadline, or once a rival spends one of them, each goes alone. So no rival can hold up more than he spends.
//! * An anchor is spent by a child of its own commitment alone, and only if the commitment pays too little by itself.
//! * What the mempool refuses for anything but its fee is made again, each output alone: one that cannot be spent now holds
//!   up no other, nor does a coin of the wallet's that is gone.
//!
//! A transaction that pays enough stays as it is. One that does not is made again from the same inputs, for more: what
//! an input has been bid for is never bid for less (BIP 125 would not let it). Nothing pays more than is at stake.

mod child;
mod group;
mod price;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bitcoin::{OutPoint, ScriptBuf, Txid, Weight};
use millrace_channel::phase::on_chain::{Claims, Cpfp, HtlcTxClaim};
use millrace_channel::tx::Claim;
use millrace_wire::{BlockHeight, ChannelId, FeeratePerKw, Sat};

use super::rates::Rates;

/// What the plan is worked out from.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The last block.
    pub tip: BlockHeight,
    /// What transactions should pay.
    pub rates: Rates,
    /// What each channel may claim.
    pub claims: &'a BTreeMap<ChannelId, Claims>,
    /// The commitment of each channel that is to be helped into a block: the one that the mempool has, or should have.
    pub helped: &'a BTreeMap<ChannelId, Cpfp>,
    /// What spends claimed outputs: in the mempool, or made here and not taken yet.
    pub spends: &'a BTreeMap<OutPoint, Arc<Spending>>,
    /// Outputs (of claims, and those that commitments spend) that are spent in a block.
    pub spent: &'a BTreeSet<OutPoint>,
    /// How often in a row a bid for an output was refused as too low.
    pub refused: &'a BTreeMap<OutPoint, u32>,
    /// Outputs that must not hold up others: what they were in was refused, and not for its fee; or the wallet could not
    /// pay for all of it.
    pub alone: &'a BTreeSet<OutPoint>,
}

/// A transaction that spends claimed outputs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spending {
    /// Its id.
    pub txid: Txid,
    /// The claimed outputs that it spends.
    pub claims: Vec<OutPoint>,
    /// Its fee.
    pub fee: Sat,
    /// What a replacement has to outbid: its fee and those of all that rest on it.
    pub to_replace: Sat,
    /// Its weight.
    pub weight: Weight,
    /// Whether this node made it.
    pub is_ours: bool,
    /// Whether the mempool has it.
    pub is_in_mempool: bool,
    /// Whether the mempool has refused it, and not for its fee: as it is, it may never be taken.
    pub is_stuck: bool,
    /// Where it pays to, if it is a sweep.
    pub destination: Option<ScriptBuf>,
}

/// What should be done.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// The transactions that should exist, but for those that are not mentioned: they are not needed any more.
    pub txs: Vec<Wanted>,
    /// Outputs that are not claimed now, and why.
    pub waits: Vec<(OutPoint, String)>,
    /// Anchors that need not be spent.
    pub not_needed: Vec<OutPoint>,
}

/// A transaction that should exist.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Wanted {
    /// One that does, as it is.
    Keep(Arc<Spending>),
    /// Outputs to the wallet.
    Sweep(SweepWanted),
    /// HTLC transactions in one, with a fee of the wallet's.
    HtlcTx(HtlcTxWanted),
    /// A child of a commitment.
    Child(Box<ChildWanted>),
}

/// One transaction to the wallet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SweepWanted {
    /// What it spends, in this order.
    pub inputs: Vec<SweepInput>,
    /// Its fee.
    pub fee: Sat,
    /// Where the one that it replaces paid to.
    pub destination: Option<ScriptBuf>,
}

/// An output to be swept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SweepInput {
    /// Of which channel.
    pub channel_id: ChannelId,
    /// Whose keys sign.
    pub keys_index: u64,
    /// All that spending it takes.
    pub claim: Claim,
}

/// HTLC transactions of one commitment with one kind and one deadline, to be made one transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HtlcTxWanted {
    /// Of which channel.
    pub channel_id: ChannelId,
    /// Whose keys sign.
    pub keys_index: u64,
    /// The HTLC transactions; each input keeps the index of its output.
    pub claims: Vec<HtlcTxClaim>,
    /// What the transaction should pay.
    pub feerate: FeeratePerKw,
    /// And at most.
    pub fee_max: Sat,
    /// The transaction of ours in the mempool that it replaces.
    pub replaces: Option<Txid>,
}

/// A child that pays for its commitment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChildWanted {
    /// Of which channel.
    pub channel_id: ChannelId,
    /// Whose keys sign.
    pub keys_index: u64,
    /// The commitment and its anchor.
    pub cpfp: Cpfp,
    /// What both together should pay.
    pub feerate: FeeratePerKw,
    /// What the child may cost at most.
    pub fee_max: Sat,
    /// The child of ours in the mempool that it replaces.
    pub replaces: Option<Txid>,
}

impl Spending {
    /// What it pays.
    #[must_use]
    pub fn feerate(&self) -> FeeratePerKw {
        price::feerate(self.fee, self.weight)
    }
}

/// Works it out.
#[must_use]
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut plan = Plan::default();
    for group in group::groups(situation, &mut plan) {
        group.decide(situation, &mut plan);
    }
    for (channel_id, cpfp) in situation.helped {
        if let Some(claims) = situation.claims.get(channel_id) {
            child::decide(situation, *channel_id, claims.keys_index, cpfp, &mut plan);
        }
    }
    plan
}
