//! What this node may claim now, and with what (BOLT 5, "Unilateral Close Handling").
//!
//! The list is worked out anew from the state each time: nothing is remembered that could get stuck. An output is
//! named only once the next block may hold its spend, and no longer once it is spent in a block.

use bitcoin::{OutPoint, Transaction};
use millrace_wire::{BlockHeight, ChannelId, Preimage, Sat, Signature};

use super::others::{OtherCommitments, Stake};
use super::{OnChain, SpendKind, claimable_preimage, is_expired, second_level_outpoint};
use crate::channel::Channel;
use crate::ledger::Which;
use crate::phase::Phase;
use crate::side::Side;
use crate::terms::CommitmentFormat;
use crate::tx::claim::{self, Claim, ClaimKind};
use crate::tx::commitment::{Commitment, HtlcOutput};
use crate::tx::htlc::{HtlcTx, HtlcTxKind};
use crate::tx::{script, weight};

/// What the wallet is to help with, all of a channel at once.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {
    /// The channel.
    pub channel_id: ChannelId,
    /// Which of the node's channel keys sign.
    pub keys_index: u64,
    /// Our commitment, to be helped into a block by a child of its anchor.
    pub parent: Option<Cpfp>,
    /// How to help any other that the mempool has in its place.
    pub others: Option<OtherCommitments>,
    /// Outputs to be sent to the wallet.
    pub sweeps: Vec<Sweep>,
    /// HTLC transactions of our commitment, which pay no fee of their own: the wallet adds one.
    pub htlc_txs: Vec<HtlcTxClaim>,
}

/// A commitment that is not in a block, and the anchor that a child may spend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cpfp {
    /// The commitment, complete.
    pub parent: Transaction,
    /// What it pays itself.
    pub parent_fee: Sat,
    /// Our anchor in it.
    pub anchor: Claim,
    /// The height by which it must be in a block, if an HTLC hangs on it.
    pub deadline: Option<BlockHeight>,
    /// The HTLCs that this node may lose if it is not.
    pub at_stake: Sat,
    /// Our own balance in it, which only comes later if it is not.
    pub balance: Sat,
}

/// An output that only waits to be swept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sweep {
    /// The output, and all that spending it takes but the keys.
    pub claim: Claim,
    /// The height from which the peer may take it too; `None` if nobody else ever can.
    pub deadline: Option<BlockHeight>,
}

/// An HTLC transaction without a fee.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HtlcTxClaim {
    /// The transaction.
    pub htlc_tx: HtlcTx,
    /// The peer's signature for it.
    pub remote_signature: Signature,
    /// The preimage, for an HTLC that we received.
    pub preimage: Option<Preimage>,
    /// The per-commitment point of our commitment, for the HTLC key.
    pub point: secp256k1::PublicKey,
    /// The height from which the peer may take the output too; `None` if only the peer's preimage could.
    pub deadline: Option<BlockHeight>,
}

/// An output of the confirmed commitment, or of an HTLC transaction, that is still to be claimed: when the
/// next block may hold its spend, or not yet.
pub(super) enum Due {
    Sweep(Sweep, BlockHeight),
    HtlcTx(HtlcTxClaim, BlockHeight),
}

impl Due {
    /// The first height whose block may hold the spend.
    pub(super) const fn height(&self) -> BlockHeight {
        match self {
            Self::Sweep(_, height) | Self::HtlcTx(_, height) => *height,
        }
    }

    /// The height from which the peer may spend it too.
    pub(super) const fn deadline(&self) -> Option<BlockHeight> {
        match self {
            Self::Sweep(sweep, _) => sweep.deadline,
            Self::HtlcTx(claim, _) => claim.deadline,
        }
    }

    pub(super) fn outpoint(&self) -> OutPoint {
        match self {
            Self::Sweep(sweep, _) => sweep.claim.outpoint,
            Self::HtlcTx(claim, _) => claim.htlc_tx.tx.input[0].previous_output,
        }
    }
}

impl Channel {
    /// Builds our own commitment.
    pub(crate) fn build_local(&self, which: Which) -> Commitment {
        let view = self.checked_view(which);
        let number = self.number_of(which);
        let spec = crate::tx::commitment::CommitmentSpec {
            side: Side::Local,
            number,
            feerate: view.feerate,
            balances: view.balances,
            htlcs: &view.htlcs,
        };
        Commitment::build(&self.state.terms, &self.local_keys(number), &spec)
    }

    /// Everything that the wallet can help with now.
    pub(crate) fn claims(&self) -> Claims {
        let mut claims = Claims {
            channel_id: self.id(),
            keys_index: self.state.keys_index,
            parent: None,
            others: None,
            sweeps: Vec::new(),
            htlc_txs: Vec::new(),
        };
        let Phase::OnChain(on_chain) = &self.state.phase else { return claims };
        claims.parent = self.cpfp(on_chain);
        claims.others = self.other_commitments(on_chain);
        for due in self.due(on_chain) {
            if due.height().0 > self.tip.0 + 1 {
                continue;
            }
            match due {
                Due::Sweep(sweep, _) => claims.sweeps.push(sweep),
                // Those of an older channel pay for themselves: see `due_htlc_txs`.
                Due::HtlcTx(claim, _) if self.state.terms.format() == CommitmentFormat::Anchors => {
                    claims.htlc_txs.push(claim);
                }
                Due::HtlcTx(_, _) => {}
            }
        }
        claims
    }

    /// HTLC transactions that pay their own fee, complete, and due.
    pub(crate) fn due_htlc_txs(&self) -> Vec<Transaction> {
        let Phase::OnChain(on_chain) = &self.state.phase else { return Vec::new() };
        if self.state.terms.format() == CommitmentFormat::Anchors {
            return Vec::new();
        }
        let due = self.due(on_chain).into_iter().filter(|due| due.height().0 <= self.tip.0 + 1);
        due.filter_map(|due| match due {
            Due::HtlcTx(claim, _) => Some(self.complete_htlc_tx(&claim)),
            Due::Sweep(_, _) => None,
        })
        .collect()
    }

    fn complete_htlc_tx(&self, claim: &HtlcTxClaim) -> Transaction {
        let mut tx = claim.htlc_tx.tx.clone();
        tx.input[0].witness = claim.witness(&tx, 0, &self.keys);
        tx
    }

    /// Outputs that this node may still claim, due or not.
    #[must_use]
    pub fn unclaimed_outputs(&self) -> Vec<OutPoint> {
        let Phase::OnChain(on_chain) = &self.state.phase else { return Vec::new() };
        let pending = self.pending_received(on_chain);
        self.due(on_chain).iter().map(Due::outpoint).chain(pending).collect()
    }

    /// HTLCs of the peer whose preimage may still come.
    fn pending_received(&self, on_chain: &OnChain) -> Vec<OutPoint> {
        let Some(commitment) = self.confirmed_commitment() else { return Vec::new() };
        let is_open = |htlc: &&HtlcOutput| {
            htlc.offered_by == Side::Remote
                && !is_expired(htlc.cltv_expiry, self.tip)
                && on_chain.spend_of(commitment.outpoint(htlc.vout)).is_none()
        };
        commitment.htlcs.iter().filter(is_open).map(|htlc| commitment.outpoint(htlc.vout)).collect()
    }

    fn cpfp(&self, on_chain: &OnChain) -> Option<Cpfp> {
        if !on_chain.broadcast || on_chain.spend.is_some() || self.state.is_data_lost {
            return None;
        }
        let commitment = self.commitment(Which::Current(Side::Local));
        let anchor = claim::anchor(&self.state.terms, &commitment)?;
        let local = commitment.sign(&self.state.terms, &self.keys);
        let parent = commitment.signed_tx(&self.state.terms, &local, &self.state.local.signature.0);
        let Stake { deadline, at_stake, balance } = self.stake_in(&commitment);
        Some(Cpfp { parent, parent_fee: commitment.fee, anchor, deadline, at_stake, balance })
    }

    /// Whether this node may lose the HTLC to its expiry.
    pub(super) fn is_at_stake(&self, htlc: &HtlcOutput) -> bool {
        match htlc.offered_by {
            Side::Local => true,
            Side::Remote => self.preimage_of(htlc).is_some(),
        }
    }

    /// The preimage of an HTLC that the peer offered. Ids are counted by each side for itself.
    pub(super) fn preimage_of(&self, htlc: &HtlcOutput) -> Option<Preimage> {
        if htlc.offered_by == Side::Local {
            return None;
        }
        self.state.ledger.htlc(Side::Remote, htlc.id).and_then(claimable_preimage).cloned()
    }

    /// Every output that is ours to claim and not spent in a block.
    pub(super) fn due(&self, on_chain: &OnChain) -> Vec<Due> {
        let mut due = Vec::new();
        let Some(spend) = &on_chain.spend else { return due };
        match &spend.what {
            SpendKind::MutualClose => {}
            SpendKind::Revoked { .. } | SpendKind::Future { .. } => {
                due.extend(spend.what.unresolved_to_remote().map(|(vout, output)| {
                    let outpoint = OutPoint { txid: spend.txid, vout: *vout };
                    sweep_after(self.unresolved_to_remote(outpoint, output.clone()), spend.height)
                }))
            }
            SpendKind::Local => self.due_of_local(on_chain, spend.height, &mut due),
            SpendKind::RemoteUnrevoked => self.due_of_remote(Which::RemoteUnrevoked, spend.height, &mut due),
            SpendKind::RemoteNext => self.due_of_remote(Which::Current(Side::Remote), spend.height, &mut due),
            SpendKind::Breach(breach) => self.due_of_breach(on_chain, spend, breach, &mut due),
        }
        due.retain(|due| on_chain.spend_of(due.outpoint()).is_none());
        due
    }

    pub(super) fn due_of_local(&self, on_chain: &OnChain, confirmed: BlockHeight, due: &mut Vec<Due>) {
        let terms = &self.state.terms;
        let keys = self.local_keys(self.state.local.number);
        let commitment = self.commitment(Which::Current(Side::Local));
        due.extend(claim::to_local(terms, &keys, &commitment).map(|claim| sweep_after(claim, confirmed)));
        let signatures = &self.state.local.htlc_signatures;
        for (htlc, signature) in commitment.htlcs.iter().zip(signatures) {
            let preimage = self.preimage_of(htlc);
            if htlc.offered_by == Side::Remote && preimage.is_none() {
                continue;
            }
            let htlc_tx = HtlcTx::build(terms, &keys, &commitment, htlc);
            let (from, deadline) = match htlc_tx.kind {
                // A block may hold a lock time that is below its height; with anchors, one block after the commitment.
                HtlcTxKind::Timeout => (htlc.cltv_expiry.0 + 1, None),
                HtlcTxKind::Success => (0, Some(BlockHeight(htlc.cltv_expiry.0))),
            };
            let point = keys.per_commitment_point;
            let claim = HtlcTxClaim { htlc_tx, remote_signature: signature.0, preimage, point, deadline };
            due.push(Due::HtlcTx(claim, BlockHeight(from.max(confirmed.0 + 1))));
        }
        for spent in &on_chain.spent {
            if let (Some(outpoint), Some((_, output))) = (second_level_outpoint(spent), &spent.second_level) {
                due.push(sweep_after(claim::second_level(terms, &keys, outpoint, output.clone()), spent.height));
            }
        }
    }

    fn due_of_remote(&self, which: Which, confirmed: BlockHeight, due: &mut Vec<Due>) {
        let terms = &self.state.terms;
        let keys = self.remote_keys(&self.remote_point(which));
        let commitment = self.commitment(which);
        due.extend(claim::to_remote(terms, &keys, &commitment).map(|claim| sweep_after(claim, confirmed)));
        for htlc in &commitment.htlcs {
            let (claim, deadline) = match htlc.offered_by {
                Side::Local => (claim::htlc_by_timeout(terms, &keys, &commitment, htlc), None),
                Side::Remote => {
                    let Some(preimage) = self.preimage_of(htlc) else { continue };
                    let claim = claim::htlc_by_preimage(terms, &keys, &commitment, htlc, preimage);
                    (claim, Some(BlockHeight(htlc.cltv_expiry.0)))
                }
            };
            due.push(with_deadline(sweep_after(claim, confirmed), deadline));
        }
    }

    /// `to_remote` of a commitment that we cannot build again: its script is ours in every commitment of the peer's.
    pub(super) fn unresolved_to_remote(&self, outpoint: OutPoint, output: bitcoin::TxOut) -> Claim {
        let payment = self.state.terms.party(Side::Local).basepoints.payment;
        let (witness_script, sequence) = match self.state.terms.format() {
            CommitmentFormat::StaticRemotekey => (bitcoin::ScriptBuf::new(), bitcoin::Sequence::ENABLE_RBF_NO_LOCKTIME),
            CommitmentFormat::Anchors => (script::to_remote_anchors(&payment), bitcoin::Sequence(1)),
        };
        let item = if witness_script.is_empty() { 33 } else { witness_script.len() as u64 };
        Claim {
            outpoint,
            output,
            kind: ClaimKind::ToRemote,
            witness_script,
            sequence,
            lock_time: 0,
            weight: weight::input_weight(&[weight::SIGNATURE_BYTES_MAX, item]),
        }
    }
}

impl HtlcTxClaim {
    /// The witness of input `input` of `tx`, which is the HTLC transaction with whatever the wallet has added.
    #[must_use]
    pub fn witness(&self, tx: &Transaction, input: usize, keys: &crate::keys::ChannelKeys) -> bitcoin::Witness {
        let key = keys.htlc_key(&self.point);
        match &self.preimage {
            Some(preimage) => self.htlc_tx.success_witness(tx, input, &key, &self.remote_signature, preimage),
            None => self.htlc_tx.timeout_witness(tx, input, &key, &self.remote_signature),
        }
    }
}

/// When the claim's own sequence and lock time let it into a block.
pub(super) fn sweep_after(claim: Claim, confirmed: BlockHeight) -> Due {
    let delay = match claim.sequence.to_relative_lock_time() {
        Some(bitcoin::relative::LockTime::Blocks(blocks)) => u32::from(blocks.value()),
        Some(bitcoin::relative::LockTime::Time(_)) | None => 0,
    };
    let by_sequence = confirmed.0 + delay.max(1);
    let by_lock_time = if claim.lock_time == 0 { 0 } else { claim.lock_time + 1 };
    Due::Sweep(Sweep { claim, deadline: None }, BlockHeight(by_sequence.max(by_lock_time)))
}

pub(super) fn with_deadline(due: Due, deadline: Option<BlockHeight>) -> Due {
    match due {
        Due::Sweep(sweep, height) => Due::Sweep(Sweep { deadline, ..sweep }, height),
        due @ Due::HtlcTx(_, _) => due,
    }
}
