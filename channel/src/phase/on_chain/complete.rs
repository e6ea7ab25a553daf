//! A commitment of our own with everything that it takes to publish it by hand, for demonstrations and tests of cheating: on
//! networks on which nothing is at stake.

use bitcoin::Transaction;
use millrace_wire::{CommitmentNumber, PaymentHash};

use crate::channel::Channel;
use crate::ledger::Which;
use crate::phase::Phase;
use crate::side::Side;
use crate::tx::htlc::{HtlcTx, HtlcTxKind};

/// Our newest commitment, as it can be broadcast. Whoever does so after the next update has cheated, and loses the channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CompleteCommitment {
    /// Signed by both sides.
    pub transaction: Transaction,
    /// Its number.
    pub number: CommitmentNumber,
    /// Of each HTLC in it, by output.
    pub htlcs: Vec<CompleteHtlc>,
}

/// The second-level transaction of an HTLC, as BOLT 3 has it: with anchors it pays no fee.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CompleteHtlc {
    /// Signed by both sides. The fourth item of the witness is the preimage; while that is not known, an HTLC-success
    /// transaction has 32 zero bytes there.
    pub transaction: Transaction,
    /// The HTLC's hash.
    pub payment_hash: PaymentHash,
    /// Whether it is an HTLC-success transaction, of an HTLC that the peer has offered.
    pub is_success: bool,
}

impl Channel {
    /// Our newest commitment, complete. `None` once the channel is closed, or while its data is known to be old (D11).
    #[must_use]
    pub fn complete_commitment(&self) -> Option<CompleteCommitment> {
        let is_over = matches!(self.state.phase, Phase::Closed) || self.state.is_data_lost;
        (!is_over).then(|| CompleteCommitment {
            transaction: self.signed_commitment(),
            number: self.state.local.number,
            htlcs: self.complete_htlcs(),
        })
    }

    fn complete_htlcs(&self) -> Vec<CompleteHtlc> {
        let terms = &self.state.terms;
        let keys = self.local_keys(self.state.local.number);
        let commitment = self.commitment(Which::Current(Side::Local));
        let key = self.keys.htlc_key(&keys.per_commitment_point);
        let signed = commitment.htlcs.iter().zip(&self.state.local.htlc_signatures).map(|(htlc, signature)| {
            let second = HtlcTx::build(terms, &keys, &commitment, htlc);
            let mut transaction = second.tx.clone();
            transaction.input[0].witness = match (second.kind, self.preimage_of(htlc)) {
                (HtlcTxKind::Timeout, _) => second.timeout_witness(&second.tx, 0, &key, &signature.0),
                (HtlcTxKind::Success, Some(preimage)) => {
                    second.success_witness(&second.tx, 0, &key, &signature.0, &preimage)
                }
                (HtlcTxKind::Success, None) => second.witness_without_preimage(&second.tx, 0, &key, &signature.0),
            };
            let is_success = second.kind == HtlcTxKind::Success;
            CompleteHtlc { transaction, payment_hash: htlc.payment_hash, is_success }
        });
        signed.collect()
    }
}
