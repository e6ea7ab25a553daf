//! Commitments that are not ours and not in a block: what a node needs to help whichever of them the mempool has.
//!
//! Our anchor is the same output in every commitment of the channel, the revoked ones and those after our data
//! included, so a child of it pays for any of them (BOLT 3, "`to_local_anchor` and `to_remote_anchor` Output"). While the
//! mempool has one of the peer's, ours is refused there, and its child helps nobody.

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_wire::{BlockHeight, Sat};

use super::OnChain;
use super::claims::Cpfp;
use crate::channel::Channel;
use crate::ledger::Which;
use crate::side::Side;
use crate::terms::CommitmentFormat;
use crate::tx::claim::{self, Claim};
use crate::tx::commitment::Commitment;

/// What may spend the funding output instead of our commitment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OtherCommitments {
    /// The funding output. Only one of them can spend it.
    pub funding: OutPoint,
    /// What it holds: what a commitment does not pay out of it is its fee.
    pub capacity: Sat,
    /// Our anchor, but for its outpoint.
    pub anchor: Claim,
    /// What hangs on the peer's newest commitments, by their ids.
    pub known: Vec<(Txid, Stake)>,
    /// What hangs on any other, which is revoked, or comes after our data.
    pub unknown: Stake,
}

/// What this node has in a commitment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stake {
    /// The height by which it must be in a block, if an HTLC hangs on it.
    pub deadline: Option<BlockHeight>,
    /// The HTLCs that this node may lose if it is not.
    pub at_stake: Sat,
    /// Our own balance, which only comes later if it is not.
    pub balance: Sat,
}

impl OtherCommitments {
    /// How to help this transaction, if it is a commitment with our anchor in it. A mutual close has none.
    #[must_use]
    pub fn cpfp(&self, parent: &Transaction) -> Option<Cpfp> {
        let [input] = parent.input.as_slice() else { return None };
        if input.previous_output != self.funding {
            return None;
        }
        let vout = (0..).zip(&parent.output).find(|(_, output)| **output == self.anchor.output)?.0;
        let txid = parent.compute_txid();
        let known = self.known.iter().find(|(known, _)| *known == txid);
        let Stake { deadline, at_stake, balance } = known.map_or(self.unknown, |(_, stake)| *stake);
        let paid: Sat = parent.output.iter().map(|output| Sat::from(output.value)).sum();
        Some(Cpfp {
            parent: parent.clone(),
            parent_fee: self.capacity.checked_sub(paid)?,
            anchor: Claim { outpoint: OutPoint { txid, vout }, ..self.anchor.clone() },
            deadline,
            at_stake,
            balance,
        })
    }
}

impl Channel {
    /// As long as nothing that spends the funding output is in a block, of a channel that has anchors.
    pub(super) fn other_commitments(&self, on_chain: &OnChain) -> Option<OtherCommitments> {
        if on_chain.spend.is_some() || self.state.terms.format() != CommitmentFormat::Anchors {
            return None;
        }
        let known = [Which::RemoteUnrevoked, Which::Current(Side::Remote)].map(|which| {
            let commitment = self.commitment(which);
            (commitment.txid, self.stake_in(&commitment))
        });
        let terms = &self.state.terms;
        Some(OtherCommitments {
            funding: terms.funding_outpoint,
            capacity: terms.capacity,
            anchor: claim::anchor_at(terms, OutPoint::null()),
            known: known.to_vec(),
            unknown: self.stake_in(&self.commitment(Which::Current(Side::Local))),
        })
    }

    /// What this node has in it. Of HTLCs, those that it may lose to their expiry.
    pub(super) fn stake_in(&self, commitment: &Commitment) -> Stake {
        let htlcs = || commitment.htlcs.iter().filter(|htlc| self.is_at_stake(htlc));
        let ours = match commitment.side {
            Side::Local => commitment.to_local,
            Side::Remote => commitment.to_remote,
        };
        Stake {
            deadline: htlcs().map(|htlc| BlockHeight(htlc.cltv_expiry.0)).min(),
            at_stake: htlcs().map(|htlc| htlc.amount.floor_to_sat()).sum(),
            balance: ours.map_or(Sat::ZERO, |vout| Sat::from(commitment.output(vout).value)),
        }
    }
}
