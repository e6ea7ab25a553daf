//! The transactions of the plan, signed with the keys of their channels.

use bitcoin::transaction::Version;
use bitcoin::{ScriptBuf, Transaction, TxOut, absolute};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::phase::on_chain::{Cpfp, HtlcTxClaim};
use millrace_wire::{FeeratePerKw, Sat};

use super::plan::{ChildWanted, HtlcTxWanted, SweepWanted};
use crate::wallet::{self, AttachFee, InputToAdd, Made};

/// One transaction that pays all of it to `destination`, less the fee; of any number of channels.
///
/// # Panics
/// If the fee is more than there is: the plan bounds it.
pub(super) fn sweep(wanted: &SweepWanted, destination: ScriptBuf, keys_of: impl Fn(u64) -> ChannelKeys) -> Transaction {
    let claims = || wanted.inputs.iter().map(|input| &input.claim);
    let lock_time = claims().map(|claim| claim.lock_time).max().unwrap_or(0);
    let value: Sat = claims().map(|claim| Sat::from(claim.output.value)).sum();
    let rest = value.checked_sub(wanted.fee).expect("the plan never pays more than is claimed");
    let mut tx = Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::from_consensus(lock_time),
        input: claims().map(millrace_channel::tx::Claim::input).collect(),
        output: vec![TxOut { value: rest.to_amount(), script_pubkey: destination }],
    };
    let sign =
        |(index, input): (usize, &super::plan::SweepInput)| input.claim.witness(&tx, index, &keys_of(input.keys_index));
    let witnesses: Vec<_> = wanted.inputs.iter().enumerate().map(sign).collect();
    for (input, witness) in tx.input.iter_mut().zip(witnesses) {
        input.witness = witness;
    }
    tx
}

/// The HTLC transactions in one, without a fee: each input stands where its output does.
pub(super) fn htlc_txs(claims: &[HtlcTxClaim]) -> (Transaction, Vec<InputToAdd>) {
    let parts = || claims.iter().map(|claim| &claim.htlc_tx);
    let lock_time = parts().map(|part| part.tx.lock_time.to_consensus_u32()).max().unwrap_or(0);
    let tx = Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::from_consensus(lock_time),
        input: parts().map(|part| part.tx.input[0].clone()).collect(),
        output: parts().map(|part| part.tx.output[0].clone()).collect(),
    };
    let inputs = parts().map(|part| InputToAdd {
        outpoint: part.tx.input[0].previous_output,
        output: part.prevout.clone(),
        sequence: part.tx.input[0].sequence,
        weight: part.input_weight(),
    });
    (tx, inputs.collect())
}

/// What the wallet is to do for HTLC transactions.
pub(super) fn attach_fee(wanted: &HtlcTxWanted, feerate: FeeratePerKw) -> AttachFee {
    let (tx, inputs) = htlc_txs(&wanted.claims);
    AttachFee { tx, inputs, feerate, replaces: wanted.replaces }
}

/// What the wallet is to do for a commitment.
pub(super) fn cpfp(wanted: &ChildWanted, feerate: FeeratePerKw) -> wallet::Cpfp {
    let Cpfp { parent, parent_fee, anchor, .. } = &wanted.cpfp;
    let anchor = InputToAdd {
        outpoint: anchor.outpoint,
        output: anchor.output.clone(),
        sequence: anchor.sequence,
        weight: anchor.weight,
    };
    wallet::Cpfp { parent: parent.clone(), parent_fee: *parent_fee, anchor, feerate, replaces: wanted.replaces }
}

/// Signs the HTLC inputs, now that the wallet has added its own.
pub(super) fn sign_htlc_txs(made: &mut Made, claims: &[HtlcTxClaim], keys: &ChannelKeys) {
    let witnesses: Vec<_> =
        claims.iter().enumerate().map(|(index, claim)| claim.witness(&made.tx, index, keys)).collect();
    for (input, witness) in made.tx.input.iter_mut().zip(witnesses) {
        input.witness = witness;
    }
}

/// Signs the anchor's input.
pub(super) fn sign_child(made: &mut Made, cpfp: &Cpfp, keys: &ChannelKeys) {
    let witness = cpfp.anchor.witness(&made.tx, 0, keys);
    made.tx.input[0].witness = witness;
}
