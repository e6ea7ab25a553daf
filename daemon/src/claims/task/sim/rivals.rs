//! What a peer may try against our claims: its own transactions for the same outputs.

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::tx::ClaimKind;
use millrace_wire::BlockHeight;

/// An output that the peer may take now, and how.
pub(super) struct Prize {
    pub(super) outpoint: OutPoint,
    value: u64,
    witness: Witness,
    lock_time: u32,
}

fn witness(items: &[&[u8]]) -> Witness {
    Witness::from_slice(items)
}

/// What the peer may take of what we claim, at this height. Where it takes a preimage, it has it.
pub(super) fn prizes(claims: &Claims, tip: BlockHeight, preimages: &[[u8; 32]]) -> Vec<Prize> {
    let (signature, script) = ([1; 72], [2; 130]);
    let mut prizes = Vec::new();
    for sweep in &claims.sweeps {
        let claim = &sweep.claim;
        // Of its own commitment by an HTLC transaction, which has two signatures.
        let (by_preimage, expiry) = match (&claim.kind, sweep.deadline) {
            (ClaimKind::HtlcTimeout { .. }, _) => (true, 0),
            (ClaimKind::HtlcPreimage { .. }, Some(deadline)) => (false, deadline.0),
            (ClaimKind::HtlcPreimage { .. } | ClaimKind::Delayed { .. } | ClaimKind::ToRemote, _)
            | (ClaimKind::Anchor | ClaimKind::Penalty { .. }, _) => continue,
        };
        let last: &[u8] = if by_preimage { &[9; 32] } else { &[] };
        let witness = witness(&[&[], &signature, &signature, last, &script]);
        let value = claim.output.value.to_sat();
        prizes.push(Prize { outpoint: claim.outpoint, value, witness, lock_time: expiry });
    }
    for claim in &claims.htlc_txs {
        let htlc = &claim.htlc_tx.htlc;
        let is_ours = claim.preimage.is_none();
        let of_hash = |preimage: &&[u8; 32]| millrace_wire::Preimage::new(**preimage).hash() == htlc.payment_hash;
        let (last, lock_time): (&[u8], u32) = match preimages.iter().find(of_hash) {
            Some(preimage) if is_ours => (preimage, 0),
            _ if is_ours => continue,
            _ => (&[], htlc.cltv_expiry.0),
        };
        let outpoint = claim.htlc_tx.tx.input[0].previous_output;
        let value = claim.htlc_tx.prevout.value.to_sat();
        prizes.push(Prize { outpoint, value, witness: witness(&[&signature, last, &script]), lock_time });
    }
    prizes.retain(|prize| prize.lock_time <= tip.0);
    prizes
}

impl Prize {
    /// Taken, for this many sat per 1000 virtual bytes; none if nothing would be left.
    pub(super) fn take(&self, rate: u64) -> Option<Transaction> {
        let mut tx = Transaction {
            version: Version::TWO,
            lock_time: LockTime::from_consensus(self.lock_time),
            input: vec![TxIn {
                previous_output: self.outpoint,
                script_sig: ScriptBuf::new(),
                sequence: Sequence(1),
                witness: self.witness.clone(),
            }],
            output: vec![TxOut { value: Amount::ZERO, script_pubkey: stranger() }],
        };
        let left = self.value.checked_sub(rate * tx.vsize() as u64 / 1_000 + 1).filter(|left| *left >= 330)?;
        tx.output[0].value = Amount::from_sat(left);
        Some(tx)
    }
}

/// A script of somebody else's.
pub(super) fn stranger() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::hashes::Hash::from_byte_array([0x5a; 20]))
}
