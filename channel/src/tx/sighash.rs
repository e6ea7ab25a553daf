//! What is signed: segwit version 0 sighashes (BIP 143), and the bytes of a signature in a witness.

use bitcoin::hashes::Hash;
use bitcoin::sighash::SighashCache;
use bitcoin::{EcdsaSighashType, Script, Transaction};
use millrace_wire::Sat;
use secp256k1::ecdsa::Signature;

use crate::terms::CommitmentFormat;

/// The sighash of `input` of `tx`, which spends a P2WSH output of `value` with this witness script.
///
/// # Panics
/// When `tx` has no such input.
#[must_use]
pub fn p2wsh_digest(
    tx: &Transaction,
    input: usize,
    witness_script: &Script,
    value: Sat,
    kind: EcdsaSighashType,
) -> [u8; 32] {
    SighashCache::new(tx)
        .p2wsh_signature_hash(input, witness_script, value.to_amount(), kind)
        .expect("the transaction has the input that it is asked to sign")
        .to_byte_array()
}

/// The sighash (`SIGHASH_ALL`) of `input` of `tx`, which spends a P2WPKH output of `value`.
///
/// # Panics
/// When `tx` has no such input, or `script_pubkey` is not P2WPKH.
#[must_use]
pub fn p2wpkh_digest(tx: &Transaction, input: usize, script_pubkey: &Script, value: Sat) -> [u8; 32] {
    SighashCache::new(tx)
        .p2wpkh_signature_hash(input, script_pubkey, value.to_amount(), EcdsaSighashType::All)
        .expect("the transaction has the input, which spends a P2WPKH output")
        .to_byte_array()
}

/// How the countersignatory signs HTLC transactions (BOLT 3, "HTLC-Timeout and HTLC-Success Transactions"):
/// with anchors so that the broadcaster may add inputs and outputs.
#[must_use]
pub const fn countersigned_htlc_kind(format: CommitmentFormat) -> EcdsaSighashType {
    match format {
        CommitmentFormat::StaticRemotekey => EcdsaSighashType::All,
        CommitmentFormat::Anchors => EcdsaSighashType::SinglePlusAnyoneCanPay,
    }
}

/// DER with the sighash type behind it, as witnesses carry it.
pub(crate) fn witness_signature(signature: &Signature, kind: EcdsaSighashType) -> Vec<u8> {
    bitcoin::ecdsa::Signature { signature: *signature, sighash_type: kind }.to_vec()
}
