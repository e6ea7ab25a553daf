//! Taking what a confirmed commitment owes this node: a description of each output it may spend, and the
//! transactions that spend them (BOLT 5, "Unilateral Close Handling", with the witnesses of BOLT 3).
//!
//! When to claim, with which fee and together with what, is decided by the callers. HTLC outputs of our own commitment
//! go through [`super::HtlcTx`].

use bitcoin::hashes::{Hash, sha256};
use bitcoin::transaction::Version;
use bitcoin::{EcdsaSighashType, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Weight, Witness, absolute};
use millrace_wire::{FeeratePerKw, PaymentHash, Preimage, Sat};
use secp256k1::{PublicKey, SECP256K1, SecretKey};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::commitment::{Commitment, HtlcOutput};
use super::funding;
use super::script::{self, HtlcScripts};
use super::sighash::{p2wpkh_digest, p2wsh_digest, witness_signature};
use super::weight::{SIGNATURE_BYTES_MAX, input_weight, spend_weight};
use crate::curve::sign;
use crate::keys::{ChannelKeys, CommitmentKeys};
use crate::secrets::Secret;
use crate::side::Side;
use crate::terms::{CommitmentFormat, Terms};

/// The bytes of a compressed public key.
const PUBLIC_KEY_BYTES: u64 = 33;

/// An output that this node can spend, and all that spending it takes but the keys.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Claim {
    /// The output.
    pub outpoint: OutPoint,
    /// Its value and script.
    pub output: TxOut,
    /// What it is, which decides the key and the witness.
    pub kind: ClaimKind,
    /// Its witness script; empty for a P2WPKH output.
    pub witness_script: ScriptBuf,
    /// The sequence that the input must have. A relative lock time is in it.
    pub sequence: Sequence,
    /// The height that the transaction's lock time must have reached; 0 if none.
    pub lock_time: u32,
    /// The most that the input weighs, witness included.
    pub weight: Weight,
}

/// What a claimed output is. The points are those of the commitment the output comes from.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ClaimKind {
    /// `to_local` of our commitment, or the output of one of our HTLC transactions.
    Delayed {
        /// The `per_commitment_point`.
        point: PublicKey,
    },
    /// `to_remote` of the peer's commitment.
    ToRemote,
    /// An HTLC that the peer offered, in the peer's commitment.
    HtlcPreimage {
        /// The `per_commitment_point`.
        point: PublicKey,
        /// The preimage that opens it.
        preimage: Preimage,
    },
    /// An HTLC that we offered, in the peer's commitment.
    HtlcTimeout {
        /// The `per_commitment_point`.
        point: PublicKey,
    },
    /// Our anchor, in either commitment.
    Anchor,
    /// An output of a commitment that the peer has revoked, or of an HTLC transaction of it.
    Penalty {
        /// The `per_commitment_secret` that the peer revealed for the commitment.
        secret: Secret,
        /// Whether it is an HTLC: the peer may move it at once. Everything else is ours alone until the delay is over.
        is_htlc: bool,
    },
}

/// Why there is no sweep of these claims.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum SweepError {
    /// There is nothing to sweep.
    #[error("no output to sweep")]
    Nothing,
    /// What is left after the fee would not be relayed.
    #[error("{value} less a fee of {fee} leaves less than the {dust} below which an output is dust")]
    Dust {
        /// The sum of the claimed outputs.
        value: Sat,
        /// The fee.
        fee: Sat,
        /// The least that the destination may get.
        dust: Sat,
    },
}

/// `to_local` of our own `commitment` with these keys, after the delay that the peer asked for. `None` if it has
/// no such output.
///
/// # Panics
/// For the peer's commitment.
#[must_use]
pub fn to_local(terms: &Terms, keys: &CommitmentKeys, commitment: &Commitment) -> Option<Claim> {
    assert_eq!(commitment.side, Side::Local, "to_local of the peer's commitment is the peer's");
    let vout = commitment.to_local?;
    Some(delayed(terms, keys, commitment.outpoint(vout), commitment.output(vout).clone()))
}

/// The output of an HTLC transaction of our own commitment with these keys, wherever it ended up: its index is
/// that of the HTLC's input.
#[must_use]
pub fn second_level(terms: &Terms, keys: &CommitmentKeys, outpoint: OutPoint, output: TxOut) -> Claim {
    delayed(terms, keys, outpoint, output)
}

fn delayed(terms: &Terms, keys: &CommitmentKeys, outpoint: OutPoint, output: TxOut) -> Claim {
    let delay = terms.delay_of(Side::Local);
    let witness_script = script::to_local(&keys.revocation, delay, &keys.broadcaster_delayed);
    assert_eq!(output.script_pubkey, witness_script.to_p2wsh(), "not a delayed output of this commitment");
    Claim {
        outpoint,
        output,
        kind: ClaimKind::Delayed { point: keys.per_commitment_point },
        sequence: Sequence::from_height(delay),
        lock_time: 0,
        weight: input_weight(&[SIGNATURE_BYTES_MAX, 0, witness_script.len() as u64]),
        witness_script,
    }
}

/// `to_remote` of the peer's `commitment` with these keys: at once, or with anchors one block later. `None` if it
/// has no such output.
///
/// # Panics
/// For our own commitment.
#[must_use]
pub fn to_remote(terms: &Terms, keys: &CommitmentKeys, commitment: &Commitment) -> Option<Claim> {
    assert_eq!(commitment.side, Side::Remote, "to_remote of our commitment is the peer's");
    let vout = commitment.to_remote?;
    let (witness_script, second_item) = match terms.format() {
        CommitmentFormat::StaticRemotekey => (ScriptBuf::new(), PUBLIC_KEY_BYTES),
        CommitmentFormat::Anchors => {
            let script = script::to_remote_anchors(&keys.countersignatory_payment);
            let bytes = script.len() as u64;
            (script, bytes)
        }
    };
    Some(Claim {
        outpoint: commitment.outpoint(vout),
        output: commitment.output(vout).clone(),
        kind: ClaimKind::ToRemote,
        sequence: undelayed(terms.format()),
        lock_time: 0,
        weight: input_weight(&[SIGNATURE_BYTES_MAX, second_item]),
        witness_script,
    })
}

/// An HTLC that the peer offered, out of the peer's `commitment` with these keys, with its preimage.
///
/// # Panics
/// For our own commitment, an HTLC that we offered, or a preimage of another HTLC.
#[must_use]
pub fn htlc_by_preimage(
    terms: &Terms,
    keys: &CommitmentKeys,
    commitment: &Commitment,
    htlc: &HtlcOutput,
    preimage: Preimage,
) -> Claim {
    assert_eq!(htlc.offered_by, Side::Remote, "HTLC {} pays the peer", htlc.id);
    assert_eq!(preimage.hash(), htlc.payment_hash, "the preimage of another HTLC");
    let witness_script = HtlcScripts::new(terms.format(), keys).offered(&htlc.payment_hash);
    let weight = input_weight(&[SIGNATURE_BYTES_MAX, 32, witness_script.len() as u64]);
    let kind = ClaimKind::HtlcPreimage { point: keys.per_commitment_point, preimage };
    htlc_claim(terms, commitment, htlc, kind, witness_script, weight, 0)
}

/// An HTLC that we offered, out of the peer's `commitment` with these keys, after its expiry.
///
/// # Panics
/// For our own commitment, or an HTLC that the peer offered.
#[must_use]
pub fn htlc_by_timeout(terms: &Terms, keys: &CommitmentKeys, commitment: &Commitment, htlc: &HtlcOutput) -> Claim {
    assert_eq!(htlc.offered_by, Side::Local, "HTLC {} goes back to the peer", htlc.id);
    let witness_script = HtlcScripts::new(terms.format(), keys).received(&htlc.payment_hash, htlc.cltv_expiry);
    let weight = input_weight(&[SIGNATURE_BYTES_MAX, 0, witness_script.len() as u64]);
    let kind = ClaimKind::HtlcTimeout { point: keys.per_commitment_point };
    htlc_claim(terms, commitment, htlc, kind, witness_script, weight, htlc.cltv_expiry.0)
}

fn htlc_claim(
    terms: &Terms,
    commitment: &Commitment,
    htlc: &HtlcOutput,
    kind: ClaimKind,
    witness_script: ScriptBuf,
    weight: Weight,
    lock_time: u32,
) -> Claim {
    assert_eq!(commitment.side, Side::Remote, "HTLC {} of our commitment needs an HTLC transaction", htlc.id);
    Claim {
        outpoint: commitment.outpoint(htlc.vout),
        output: commitment.output(htlc.vout).clone(),
        kind,
        witness_script,
        sequence: undelayed(terms.format()),
        lock_time,
        weight,
    }
}

/// `to_local` of a commitment that the peer has revoked, or the output of one of its HTLC transactions, wherever that
/// ended up: with the revocation key, at once (BOLT 5, "Penalty Transactions").
///
/// # Panics
/// If the output is not one of those.
#[must_use]
pub fn penalty_of_delayed(
    terms: &Terms,
    keys: &CommitmentKeys,
    secret: Secret,
    outpoint: OutPoint,
    output: TxOut,
) -> Claim {
    let delay = terms.delay_of(Side::Remote);
    let witness_script = script::to_local(&keys.revocation, delay, &keys.broadcaster_delayed);
    assert_eq!(output.script_pubkey, witness_script.to_p2wsh(), "not a delayed output of this commitment");
    let weight = input_weight(&[SIGNATURE_BYTES_MAX, 1, witness_script.len() as u64]);
    penalty(ClaimKind::Penalty { secret, is_htlc: false }, outpoint, output, witness_script, weight)
}

/// An HTLC output of a commitment that the peer has revoked, whoever offered it, with its script: with the revocation
/// key, at once (BOLT 5, "Penalty Transactions").
///
/// # Panics
/// If the output does not carry the script.
#[must_use]
pub fn penalty_of_htlc(secret: Secret, outpoint: OutPoint, output: TxOut, witness_script: ScriptBuf) -> Claim {
    assert_eq!(output.script_pubkey, witness_script.to_p2wsh(), "not the output of this HTLC");
    let weight = input_weight(&[SIGNATURE_BYTES_MAX, PUBLIC_KEY_BYTES, witness_script.len() as u64]);
    penalty(ClaimKind::Penalty { secret, is_htlc: true }, outpoint, output, witness_script, weight)
}

const fn penalty(
    kind: ClaimKind,
    outpoint: OutPoint,
    output: TxOut,
    witness_script: ScriptBuf,
    weight: Weight,
) -> Claim {
    let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
    Claim { outpoint, output, kind, witness_script, sequence, lock_time: 0, weight }
}

/// Our anchor in `commitment` of either side, to be spent by a child that pays for it. `None` if it has none.
#[must_use]
pub fn anchor(terms: &Terms, commitment: &Commitment) -> Option<Claim> {
    let vout = commitment.anchors.local?;
    let witness_script = script::anchor(funding::funding_key(terms, Side::Local));
    Some(Claim {
        outpoint: commitment.outpoint(vout),
        output: commitment.output(vout).clone(),
        kind: ClaimKind::Anchor,
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        lock_time: 0,
        weight: input_weight(&[SIGNATURE_BYTES_MAX, witness_script.len() as u64]),
        witness_script,
    })
}

/// With anchors, every output but the anchors themselves waits one block. Without, the sequence only has to allow
/// a lock time and a replacement.
const fn undelayed(format: CommitmentFormat) -> Sequence {
    match format {
        CommitmentFormat::StaticRemotekey => Sequence::ENABLE_RBF_NO_LOCKTIME,
        CommitmentFormat::Anchors => Sequence(1),
    }
}

impl Claim {
    /// The input that spends it, its witness still empty.
    #[must_use]
    pub fn input(&self) -> TxIn {
        TxIn {
            previous_output: self.outpoint,
            script_sig: ScriptBuf::new(),
            sequence: self.sequence,
            witness: Witness::new(),
        }
    }

    /// The witness of input `input` of `tx`, which is otherwise complete: the signature covers all of it. A wallet
    /// that has added inputs and outputs, as to the child of an anchor, signs its own inputs before or after.
    ///
    /// # Panics
    /// When `tx` does not spend this output there.
    #[must_use]
    pub fn witness(&self, tx: &Transaction, input: usize, keys: &ChannelKeys) -> Witness {
        assert_eq!(tx.input[input].previous_output, self.outpoint, "input {input} spends another output");
        let revocation_pubkey;
        let (key, after_signature): (_, Option<&[u8]>) = match &self.kind {
            ClaimKind::Delayed { point } => (keys.delayed_payment_key(point), Some(&[])),
            ClaimKind::ToRemote => (*keys.payment_key(), None),
            ClaimKind::HtlcPreimage { point, preimage } => (keys.htlc_key(point), Some(preimage.as_bytes())),
            ClaimKind::HtlcTimeout { point } => (keys.htlc_key(point), Some(&[])),
            ClaimKind::Anchor => (*keys.funding_key(), None),
            ClaimKind::Penalty { secret, is_htlc } => {
                let secret = SecretKey::from_slice(&secret.0).expect("it was checked when it was revealed");
                let key = keys.revocation_key(&secret);
                revocation_pubkey = key.public_key(SECP256K1).serialize();
                (key, Some(if *is_htlc { &revocation_pubkey } else { &[1] }))
            }
        };
        let signature = sign(&self.digest(tx, input), &key);
        let mut witness = Witness::new();
        witness.push(witness_signature(&signature, EcdsaSighashType::All));
        if let Some(item) = after_signature {
            witness.push(item);
        }
        if self.witness_script.is_empty() {
            witness.push(keys.basepoints().payment.serialize());
        } else {
            witness.push(&self.witness_script);
        }
        witness
    }

    fn digest(&self, tx: &Transaction, input: usize) -> [u8; 32] {
        let value = Sat::from(self.output.value);
        if self.witness_script.is_empty() {
            return p2wpkh_digest(tx, input, &self.output.script_pubkey, value);
        }
        p2wsh_digest(tx, input, &self.witness_script, value, EcdsaSighashType::All)
    }
}

/// The most that a [`sweep_tx`] of these claims weighs.
#[must_use]
pub fn sweep_weight(claims: &[Claim], destination: &ScriptBuf) -> Weight {
    spend_weight(claims.iter().map(|claim| claim.weight), [destination.as_script()].into_iter())
}

/// One signed transaction that pays all claims to `destination`, less the fee at `feerate`.
///
/// # Errors
/// [`SweepError`].
pub fn sweep_tx(
    claims: &[Claim],
    destination: ScriptBuf,
    feerate: FeeratePerKw,
    keys: &ChannelKeys,
) -> Result<Transaction, SweepError> {
    let fee = feerate.fee_ceil(sweep_weight(claims, &destination));
    sweep_tx_for_fee(claims, destination, fee, keys)
}

/// As [`sweep_tx`], for a fee that the caller has worked out.
///
/// # Errors
/// [`SweepError`].
pub fn sweep_tx_for_fee(
    claims: &[Claim],
    destination: ScriptBuf,
    fee: Sat,
    keys: &ChannelKeys,
) -> Result<Transaction, SweepError> {
    let lock_time = claims.iter().map(|claim| claim.lock_time).max().ok_or(SweepError::Nothing)?;
    let value: Sat = claims.iter().map(|claim| Sat::from(claim.output.value)).sum();
    let dust = Sat::from(destination.minimal_non_dust());
    let Some(rest) = value.checked_sub(fee).filter(|rest| *rest >= dust) else {
        return Err(SweepError::Dust { value, fee, dust });
    };
    let mut tx = Transaction {
        version: Version::TWO,
        lock_time: absolute::LockTime::from_consensus(lock_time),
        input: claims.iter().map(Claim::input).collect(),
        output: vec![TxOut { value: rest.to_amount(), script_pubkey: destination }],
    };
    let witnesses: Vec<Witness> =
        claims.iter().enumerate().map(|(input, claim)| claim.witness(&tx, input, keys)).collect();
    for (input, witness) in tx.input.iter_mut().zip(witnesses) {
        input.witness = witness;
    }
    Ok(tx)
}

/// The preimage of `payment_hash`, if a transaction that spends an HTLC output shows it in this witness: the peer's
/// HTLC-success transaction, or his claim from our commitment.
#[must_use]
pub fn revealed_preimage(witness: &Witness, payment_hash: &PaymentHash) -> Option<Preimage> {
    witness.iter().find_map(|item| {
        let bytes = <[u8; 32]>::try_from(item).ok()?;
        (sha256::Hash::hash(&bytes).to_byte_array() == payment_hash.0).then(|| Preimage::new(bytes))
    })
}
