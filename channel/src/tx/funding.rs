//! The funding output, which every commitment and closing transaction spends (BOLT 3, "Funding Transaction
//! Output").
//!
//! The funding transaction itself is made by the wallet.

use bitcoin::{EcdsaSighashType, ScriptBuf, Transaction, TxOut, Witness};
use millrace_wire::Sat;
use secp256k1::PublicKey;
use secp256k1::ecdsa::Signature;

use super::script;
use super::sighash::{p2wsh_digest, witness_signature};
use crate::side::Side;
use crate::terms::Terms;

/// The output to fund: P2WSH of the 2-of-2 of both `funding_pubkey`s, in either order.
#[must_use]
pub fn output(one: &PublicKey, other: &PublicKey, capacity: Sat) -> TxOut {
    TxOut { value: capacity.to_amount(), script_pubkey: script::funding(one, other).to_p2wsh() }
}

/// The funding output of the channel with these terms.
#[must_use]
pub fn output_of(terms: &Terms) -> TxOut {
    TxOut { value: terms.capacity.to_amount(), script_pubkey: witness_script(terms).to_p2wsh() }
}

/// The 2-of-2 script of the channel with these terms.
#[must_use]
pub fn witness_script(terms: &Terms) -> ScriptBuf {
    script::funding(funding_key(terms, Side::Local), funding_key(terms, Side::Remote))
}

/// What both sides sign (`SIGHASH_ALL`) so that `tx`, whose only input spends the funding output, is valid.
///
/// # Panics
/// When `tx` has no input.
#[must_use]
pub fn digest(terms: &Terms, tx: &Transaction) -> [u8; 32] {
    p2wsh_digest(tx, 0, &witness_script(terms), terms.capacity, EcdsaSighashType::All)
}

/// The witness that spends the funding output: the signatures stand in the order of the keys in the script.
#[must_use]
pub fn witness(terms: &Terms, local: &Signature, remote: &Signature) -> Witness {
    let local_first = funding_key(terms, Side::Local).serialize() < funding_key(terms, Side::Remote).serialize();
    let (first, second) = if local_first { (local, remote) } else { (remote, local) };
    let mut witness = Witness::new();
    witness.push([]);
    witness.push(witness_signature(first, EcdsaSighashType::All));
    witness.push(witness_signature(second, EcdsaSighashType::All));
    witness.push(witness_script(terms));
    witness
}

/// The `funding_pubkey` of `side`.
pub(crate) const fn funding_key(terms: &Terms, side: Side) -> &PublicKey {
    &terms.party(side).basepoints.funding
}
