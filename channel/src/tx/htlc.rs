//! The HTLC-timeout and HTLC-success transactions, the second stage of a commitment's HTLCs (BOLT 3,
//! "HTLC-Timeout and HTLC-Success Transactions").
//!
//! Here are their sighashes by the hundred, for `commitment_signed`, and each one in full, for the side that
//! broadcasts its commitment. What spends an HTLC output of the *other* side's commitment is a claim.

use bitcoin::hashes::{Hash, HashEngine, sha256, sha256d};
use bitcoin::transaction::Version;
use bitcoin::{EcdsaSighashType, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Weight, Witness, absolute};
use millrace_wire::{FeeratePerKw, Preimage, Sat};
use secp256k1::SecretKey;
use secp256k1::ecdsa::Signature;

use super::commitment::{Commitment, HtlcOutput};
use super::script::{self, HtlcScripts};
use super::sighash::{countersigned_htlc_kind, p2wsh_digest, witness_signature};
use super::weight::{SIGNATURE_BYTES_MAX, htlc_tx_fee, input_weight};
use crate::curve::sign;
use crate::keys::CommitmentKeys;
use crate::side::Side;
use crate::terms::{CommitmentFormat, Terms};

/// Which of the two an HTLC transaction is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HtlcTxKind {
    /// Takes an HTLC that the broadcaster offered back after its expiry.
    Timeout,
    /// Takes an HTLC that the broadcaster received with its preimage.
    Success,
}

/// An HTLC transaction of one commitment, not signed, and what it takes to sign it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HtlcTx {
    /// The transaction as BOLT 3 has it: one input, one output. With anchors it pays no fee; whoever broadcasts
    /// it adds inputs and outputs to a copy, where this input and this output keep one and the same index.
    pub tx: Transaction,
    /// Which of the two it is.
    pub kind: HtlcTxKind,
    /// The HTLC whose output it spends.
    pub htlc: HtlcOutput,
    /// The output it spends.
    pub prevout: TxOut,
    /// The witness script of that output.
    pub witness_script: ScriptBuf,
    format: CommitmentFormat,
}

impl HtlcTx {
    /// The transaction for one HTLC output of `commitment`, whose keys these are.
    #[must_use]
    pub fn build(terms: &Terms, keys: &CommitmentKeys, commitment: &Commitment, htlc: &HtlcOutput) -> Self {
        let format = terms.format();
        let offered = htlc.offered_by == commitment.side;
        let scripts = HtlcScripts::new(format, keys);
        let (kind, witness_script) = if offered {
            (HtlcTxKind::Timeout, scripts.offered(&htlc.payment_hash))
        } else {
            (HtlcTxKind::Success, scripts.received(&htlc.payment_hash, htlc.cltv_expiry))
        };
        let input = TxIn {
            previous_output: commitment.outpoint(htlc.vout),
            script_sig: ScriptBuf::new(),
            sequence: input_sequence(format),
            witness: Witness::new(),
        };
        let output = TxOut {
            value: output_value(format, commitment.feerate, offered, htlc).to_amount(),
            script_pubkey: output_script(terms, keys, commitment.side).to_p2wsh(),
        };
        Self {
            tx: Transaction {
                version: Version::TWO,
                lock_time: absolute::LockTime::from_consensus(lock_time(offered, htlc)),
                input: vec![input],
                output: vec![output],
            },
            kind,
            htlc: *htlc,
            prevout: commitment.output(htlc.vout).clone(),
            witness_script,
            format,
        }
    }

    /// The witness of input `input` of `tx`, which is [`HtlcTx::tx`] or has been made from it by adding inputs and
    /// outputs: they are all covered (`SIGHASH_ALL`) by the signature made here with our HTLC `key`.
    ///
    /// # Panics
    /// For an HTLC-timeout transaction, for a preimage of another HTLC, or when `tx` does not spend the HTLC there.
    #[must_use]
    pub fn success_witness(
        &self,
        tx: &Transaction,
        input: usize,
        key: &SecretKey,
        remote: &Signature,
        preimage: &Preimage,
    ) -> Witness {
        assert_eq!(self.kind, HtlcTxKind::Success, "HTLC {} was offered by the broadcaster", self.htlc.id);
        assert_eq!(preimage.hash(), self.htlc.payment_hash, "the preimage of another HTLC");
        self.witness(tx, input, key, remote, preimage.as_bytes())
    }

    /// As [`HtlcTx::success_witness`], for an HTLC-timeout transaction.
    ///
    /// # Panics
    /// For an HTLC-success transaction, or when `tx` does not spend the HTLC there.
    #[must_use]
    pub fn timeout_witness(&self, tx: &Transaction, input: usize, key: &SecretKey, remote: &Signature) -> Witness {
        assert_eq!(self.kind, HtlcTxKind::Timeout, "HTLC {} was received by the broadcaster", self.htlc.id);
        self.witness(tx, input, key, remote, &[])
    }

    /// As [`HtlcTx::success_witness`], with 32 zero bytes where the preimage belongs: whoever learns it puts it there, as the
    /// fourth item.
    ///
    /// # Panics
    /// For an HTLC-timeout transaction, or when `tx` does not spend the HTLC there.
    #[must_use]
    pub fn witness_without_preimage(
        &self,
        tx: &Transaction,
        input: usize,
        key: &SecretKey,
        remote: &Signature,
    ) -> Witness {
        assert_eq!(self.kind, HtlcTxKind::Success, "HTLC {} was offered by the broadcaster", self.htlc.id);
        self.witness(tx, input, key, remote, &[0; 32])
    }

    /// The most that its input weighs, witness included, in whatever transaction it ends up.
    #[must_use]
    pub fn input_weight(&self) -> Weight {
        let preimage_or_nothing = match self.kind {
            HtlcTxKind::Timeout => 0,
            HtlcTxKind::Success => 32,
        };
        let script = self.witness_script.len() as u64;
        input_weight(&[0, SIGNATURE_BYTES_MAX, SIGNATURE_BYTES_MAX, preimage_or_nothing, script])
    }

    fn witness(
        &self,
        tx: &Transaction,
        input: usize,
        key: &SecretKey,
        remote: &Signature,
        preimage_or_nothing: &[u8],
    ) -> Witness {
        let spent = tx.input[input].previous_output;
        assert_eq!(spent, self.tx.input[0].previous_output, "input {input} spends another output");
        let value = Sat::from(self.prevout.value);
        let digest = p2wsh_digest(tx, input, &self.witness_script, value, EcdsaSighashType::All);
        let mut witness = Witness::new();
        witness.push([]);
        witness.push(witness_signature(remote, countersigned_htlc_kind(self.format)));
        witness.push(witness_signature(&sign(&digest, key), EcdsaSighashType::All));
        witness.push(preimage_or_nothing);
        witness.push(&self.witness_script);
        witness
    }
}

/// The sighashes of all HTLC transactions of one commitment, without building any of them.
///
/// What they share (output script, sequence, the first hashes of BIP 143) is hashed once.
pub(crate) struct HtlcDigests {
    txid: Txid,
    side: Side,
    feerate: FeeratePerKw,
    format: CommitmentFormat,
    kind: EcdsaSighashType,
    scripts: HtlcScripts,
    output_script: ScriptBuf,
    sequences_hash: [u8; 32],
    room: Vec<u8>,
}

impl HtlcDigests {
    pub(crate) fn new(terms: &Terms, keys: &CommitmentKeys, commitment: &Commitment, kind: EcdsaSighashType) -> Self {
        let format = terms.format();
        let sequences_hash = match kind {
            EcdsaSighashType::All => sha256d::Hash::hash(&input_sequence(format).0.to_le_bytes()).to_byte_array(),
            _ => [0; 32],
        };
        Self {
            txid: commitment.txid,
            side: commitment.side,
            feerate: commitment.feerate,
            format,
            kind,
            scripts: HtlcScripts::new(format, keys),
            output_script: output_script(terms, keys, commitment.side).to_p2wsh(),
            sequences_hash,
            room: Vec::with_capacity(script::HTLC_SCRIPT_BYTES_MAX),
        }
    }

    /// BIP 143, for the one input of the HTLC transaction of `htlc`.
    pub(crate) fn of(&mut self, htlc: &HtlcOutput) -> [u8; 32] {
        let offered = htlc.offered_by == self.side;
        let room = core::mem::take(&mut self.room);
        let script = self.scripts.write(offered, &htlc.payment_hash, htlc.cltv_expiry, room);
        let outpoint = self.outpoint(htlc.vout);
        let mut engine = sha256::Hash::engine();
        engine.input(&Version::TWO.0.to_le_bytes());
        engine.input(&self.prevouts_hash(&outpoint));
        engine.input(&self.sequences_hash);
        engine.input(&outpoint);
        engine.input(&[u8::try_from(script.len()).expect("an HTLC script has at most 143 bytes")]);
        engine.input(script.as_bytes());
        engine.input(&htlc.amount.floor_to_sat().0.to_le_bytes());
        engine.input(&input_sequence(self.format).0.to_le_bytes());
        engine.input(&self.output_hash(offered, htlc));
        engine.input(&lock_time(offered, htlc).to_le_bytes());
        engine.input(&self.kind.to_u32().to_le_bytes());
        self.room = script.into_bytes();
        sha256d::Hash::from_engine(engine).to_byte_array()
    }

    fn outpoint(&self, vout: u32) -> [u8; 36] {
        let mut outpoint = [0; 36];
        outpoint[..32].copy_from_slice(self.txid.as_byte_array());
        outpoint[32..].copy_from_slice(&vout.to_le_bytes());
        outpoint
    }

    fn prevouts_hash(&self, outpoint: &[u8; 36]) -> [u8; 32] {
        match self.kind {
            EcdsaSighashType::All => sha256d::Hash::hash(outpoint).to_byte_array(),
            _ => [0; 32],
        }
    }

    /// The one output is what `ALL` and `SINGLE` both cover.
    fn output_hash(&self, offered: bool, htlc: &HtlcOutput) -> [u8; 32] {
        let mut engine = sha256::Hash::engine();
        engine.input(&output_value(self.format, self.feerate, offered, htlc).0.to_le_bytes());
        engine.input(&[u8::try_from(self.output_script.len()).expect("P2WSH has 34 bytes")]);
        engine.input(self.output_script.as_bytes());
        sha256d::Hash::from_engine(engine).to_byte_array()
    }
}

const fn input_sequence(format: CommitmentFormat) -> Sequence {
    match format {
        CommitmentFormat::StaticRemotekey => Sequence(0),
        CommitmentFormat::Anchors => Sequence(1),
    }
}

const fn lock_time(offered: bool, htlc: &HtlcOutput) -> u32 {
    if offered { htlc.cltv_expiry.0 } else { 0 }
}

/// An HTLC that is not trimmed can pay the fee; one that could not would have no output to spend.
fn output_value(format: CommitmentFormat, feerate: FeeratePerKw, offered: bool, htlc: &HtlcOutput) -> Sat {
    htlc.amount.floor_to_sat().saturating_sub(htlc_tx_fee(format, feerate, offered))
}

fn output_script(terms: &Terms, keys: &CommitmentKeys, broadcaster: Side) -> ScriptBuf {
    script::to_local(&keys.revocation, terms.delay_of(broadcaster), &keys.broadcaster_delayed)
}
