//! The commitment transaction of either side: built from balances and HTLCs, signed, checked and completed
//! (BOLT 3, "Commitment Transaction" and "Commitment Transaction Construction").
//!
//! Which updates stand in it is the ledger's business; whether the fee and the reserve can be paid is checked
//! there too.

use bitcoin::hashes::{Hash, HashEngine, sha256};
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness, absolute};
use millrace_wire::{CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, PaymentHash, Sat};
use secp256k1::ecdsa::Signature;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::funding;
use super::htlc::HtlcDigests;
use super::script::{self, HtlcScripts};
use super::sighash::countersigned_htlc_kind;
use super::weight::{ANCHOR_VALUE, anchors_value, commit_fee, is_trimmed};
use crate::curve::{SignJob, VerifyJob, sign};
use crate::keys::{ChannelKeys, CommitmentKeys};
use crate::side::{Both, Side};
use crate::terms::{CommitmentFormat, Terms};

/// The low 24 bits, of which lock time and sequence each carry one half of the obscured number.
const LOW_24_BITS: u32 = 0x00ff_ffff;

/// An HTLC that stands in a commitment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommitmentHtlc {
    /// Its id among those of the side that offered it.
    pub id: HtlcId,
    /// The side that offered it.
    pub offered_by: Side,
    /// Its amount.
    pub amount: Msat,
    /// What it is locked to.
    pub payment_hash: PaymentHash,
    /// When it expires.
    pub cltv_expiry: CltvExpiry,
}

/// What a commitment is to say.
#[derive(Clone, Copy, Debug)]
pub struct CommitmentSpec<'a> {
    /// Whose commitment: the side that can broadcast it.
    pub side: Side,
    /// Its number, counted up from 0 for each side.
    pub number: CommitmentNumber,
    /// The feerate in force in it.
    pub feerate: FeeratePerKw,
    /// What belongs to each side, HTLCs already subtracted, before commitment fee and anchors.
    pub balances: Both<Msat>,
    /// All its HTLCs, trimmed ones included, in any order.
    pub htlcs: &'a [CommitmentHtlc],
}

/// An HTLC that has an output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct HtlcOutput {
    /// The index of its output.
    pub vout: u32,
    /// Its id among those of the side that offered it.
    pub id: HtlcId,
    /// The side that offered it.
    pub offered_by: Side,
    /// Its amount; the output has the whole satoshis of it.
    pub amount: Msat,
    /// What it is locked to.
    pub payment_hash: PaymentHash,
    /// When it expires.
    pub cltv_expiry: CltvExpiry,
}

/// A commitment transaction, not signed, and what its outputs are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Commitment {
    /// The transaction with an empty witness.
    pub tx: Transaction,
    /// Its id, which the witness does not change.
    pub txid: Txid,
    /// Whose commitment it is.
    pub side: Side,
    /// Its number.
    pub number: CommitmentNumber,
    /// The feerate it was built with.
    pub feerate: FeeratePerKw,
    /// The HTLCs that are not trimmed, in the order of their outputs, which is that of their signatures.
    pub htlcs: Vec<HtlcOutput>,
    /// The output with each side's anchor.
    pub anchors: Both<Option<u32>>,
    /// The output with the broadcaster's balance.
    pub to_local: Option<u32>,
    /// The output with the countersignatory's balance.
    pub to_remote: Option<u32>,
    /// What the transaction pays: the base fee, and all that is trimmed or a fraction of a satoshi.
    pub fee: Sat,
}

/// The number of HTLC signatures is not that of the HTLC outputs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("{found} HTLC signatures for {expected} HTLC outputs")]
pub struct CountMismatch {
    /// HTLC outputs in the commitment.
    pub expected: usize,
    /// Signatures that came.
    pub found: usize,
}

/// What an output is, while outputs are put in order.
#[derive(Clone, Copy)]
enum Purpose {
    ToLocal,
    ToRemote,
    Anchor(Side),
    Htlc(CommitmentHtlc),
}

impl Commitment {
    /// BOLT 3, "Commitment Transaction Construction".
    ///
    /// The funder pays the base fee and both anchors as far as his balance goes: if an `update_fee` races an
    /// HTLC, the fee is clipped to what is there. A funder who has less than the two anchors would make
    /// the outputs exceed the capacity; the ledger never lets it come to that.
    ///
    /// # Panics
    /// For a number of more than 48 bits: no commitment has one.
    #[must_use]
    pub fn build(terms: &Terms, keys: &CommitmentKeys, spec: &CommitmentSpec<'_>) -> Self {
        let mut outputs = htlc_outputs(terms, keys, spec);
        push_balances_and_anchors(terms, keys, spec, &mut outputs);
        outputs.sort_unstable_by(|(a, a_purpose), (b, b_purpose)| {
            let by_output = a.value.cmp(&b.value).then_with(|| a.script_pubkey.cmp(&b.script_pubkey));
            by_output.then_with(|| expiry_of(a_purpose).cmp(&expiry_of(b_purpose)))
        });
        let mut commitment = Self::without_outputs(terms, spec);
        commitment.tx.output.reserve_exact(outputs.len());
        for (vout, (output, purpose)) in (0..).zip(outputs) {
            commitment.tx.output.push(output);
            commitment.note(vout, purpose);
        }
        let paid_out: Sat = commitment.tx.output.iter().map(|output| Sat::from(output.value)).sum();
        commitment.fee = terms.capacity.saturating_sub(paid_out);
        commitment.txid = commitment.tx.compute_txid();
        commitment
    }

    fn without_outputs(terms: &Terms, spec: &CommitmentSpec<'_>) -> Self {
        let obscured = obscured(terms, spec.number);
        let [low, high] = [obscured, obscured >> 24].map(|half| half as u32 & LOW_24_BITS);
        let input = TxIn {
            previous_output: terms.funding_outpoint,
            script_sig: ScriptBuf::new(),
            sequence: Sequence(0x80 << 24 | high),
            witness: Witness::new(),
        };
        let lock_time = absolute::LockTime::from_consensus(0x20 << 24 | low);
        Self {
            tx: Transaction { version: Version::TWO, lock_time, input: vec![input], output: Vec::new() },
            txid: Txid::all_zeros(),
            side: spec.side,
            number: spec.number,
            feerate: spec.feerate,
            htlcs: Vec::with_capacity(spec.htlcs.len()),
            anchors: Both { local: None, remote: None },
            to_local: None,
            to_remote: None,
            fee: Sat::ZERO,
        }
    }

    fn note(&mut self, vout: u32, purpose: Purpose) {
        match purpose {
            Purpose::ToLocal => self.to_local = Some(vout),
            Purpose::ToRemote => self.to_remote = Some(vout),
            Purpose::Anchor(side) => *self.anchors.of_mut(side) = Some(vout),
            Purpose::Htlc(CommitmentHtlc { id, offered_by, amount, payment_hash, cltv_expiry }) => {
                self.htlcs.push(HtlcOutput { vout, id, offered_by, amount, payment_hash, cltv_expiry });
            }
        }
    }

    /// The outpoint of output `vout`.
    #[must_use]
    pub const fn outpoint(&self, vout: u32) -> OutPoint {
        OutPoint { txid: self.txid, vout }
    }

    /// Output `vout`.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn output(&self, vout: u32) -> &TxOut {
        &self.tx.output[vout as usize]
    }

    /// What both sides sign with their funding keys.
    #[must_use]
    pub fn funding_sighash(&self, terms: &Terms) -> [u8; 32] {
        funding::digest(terms, &self.tx)
    }

    /// Appends what `commitment_signed` needs for the peer's commitment: its own signature first, then one for
    /// each HTLC transaction in the order of the outputs.
    ///
    /// # Panics
    /// For our own commitment, whose HTLC transactions we sign only when we broadcast them.
    pub fn sign_jobs(
        &self,
        terms: &Terms,
        keys: &ChannelKeys,
        commitment_keys: &CommitmentKeys,
        jobs: &mut Vec<SignJob>,
    ) {
        assert_eq!(self.side, Side::Remote, "commitment_signed is for the peer's commitment");
        jobs.reserve(1 + self.htlcs.len());
        jobs.push(SignJob { digest: self.funding_sighash(terms), key: *keys.funding_key() });
        if self.htlcs.is_empty() {
            return;
        }
        let key = keys.htlc_key(&commitment_keys.per_commitment_point);
        let kind = countersigned_htlc_kind(terms.format());
        let mut digests = HtlcDigests::new(terms, commitment_keys, self, kind);
        jobs.extend(self.htlcs.iter().map(|htlc| SignJob { digest: digests.of(htlc), key }));
    }

    /// Appends what there is to check about a received `commitment_signed` for our own commitment, in the order
    /// of [`Commitment::sign_jobs`].
    ///
    /// # Errors
    /// When there is not one signature for each HTLC output; nothing was appended then.
    ///
    /// # Panics
    /// For the peer's commitment, which he does not send us signatures for.
    pub fn verify_jobs(
        &self,
        terms: &Terms,
        commitment_keys: &CommitmentKeys,
        signature: &Signature,
        htlc_signatures: &[Signature],
        jobs: &mut Vec<VerifyJob>,
    ) -> Result<(), CountMismatch> {
        assert_eq!(self.side, Side::Local, "the peer signs our commitment");
        if htlc_signatures.len() != self.htlcs.len() {
            return Err(CountMismatch { expected: self.htlcs.len(), found: htlc_signatures.len() });
        }
        jobs.reserve(1 + self.htlcs.len());
        let key = *funding::funding_key(terms, Side::Remote);
        jobs.push(VerifyJob { digest: self.funding_sighash(terms), key, signature: *signature });
        let key = commitment_keys.countersignatory_htlc;
        let kind = countersigned_htlc_kind(terms.format());
        let mut digests = HtlcDigests::new(terms, commitment_keys, self, kind);
        let signed = self.htlcs.iter().zip(htlc_signatures);
        jobs.extend(signed.map(|(htlc, signature)| VerifyJob { digest: digests.of(htlc), key, signature: *signature }));
        Ok(())
    }

    /// Our own signature, which completes a commitment of ours that the peer has signed.
    #[must_use]
    pub fn sign(&self, terms: &Terms, keys: &ChannelKeys) -> Signature {
        sign(&self.funding_sighash(terms), keys.funding_key())
    }

    /// The transaction ready to be broadcast: `local` is the signature of this node, `remote` that of the peer.
    #[must_use]
    pub fn signed_tx(&self, terms: &Terms, local: &Signature, remote: &Signature) -> Transaction {
        let mut tx = self.tx.clone();
        tx.input[0].witness = funding::witness(terms, local, remote);
        tx
    }
}

/// The number of the commitment that `tx` looks like, or `None` if sequence or lock time say it is not one.
///
/// Only a transaction that spends the funding output should be asked about. What it says is not proof: a
/// commitment is known by its txid.
#[must_use]
pub fn number_in(terms: &Terms, tx: &Transaction) -> Option<CommitmentNumber> {
    number_behind(obscuring_factor(terms), tx)
}

/// As [`number_in`], for whoever knows of the channel's terms only its [`obscuring_factor`].
#[must_use]
pub fn number_behind(obscuring_factor: u64, tx: &Transaction) -> Option<CommitmentNumber> {
    let [input] = &tx.input[..] else { return None };
    let (sequence, lock_time) = (input.sequence.0, tx.lock_time.to_consensus_u32());
    if sequence >> 24 != 0x80 || lock_time >> 24 != 0x20 {
        return None;
    }
    let bits = u64::from(sequence & LOW_24_BITS) << 24 | u64::from(lock_time & LOW_24_BITS);
    Some(CommitmentNumber(bits ^ obscuring_factor))
}

/// BOLT 3, "Commitment Transaction": the lower 48 bits of
/// `SHA256(payment_basepoint from open_channel || payment_basepoint from accept_channel)`.
#[must_use]
pub fn obscuring_factor(terms: &Terms) -> u64 {
    let mut engine = sha256::Hash::engine();
    engine.input(&terms.party(terms.funder).basepoints.payment.serialize());
    engine.input(&terms.party(terms.funder.other()).basepoints.payment.serialize());
    let hash = sha256::Hash::from_engine(engine).to_byte_array();
    hash[26..].iter().fold(0, |factor, byte| factor << 8 | u64::from(*byte))
}

fn obscured(terms: &Terms, number: CommitmentNumber) -> u64 {
    assert!(number <= CommitmentNumber::MAX, "commitment number {number} has more than 48 bits");
    number.0 ^ obscuring_factor(terms)
}

/// BOLT 3, "Transaction Output Ordering": HTLC outputs that are the same go by expiry. Whatever is equal in that too
/// goes by id, so that the order does not depend on how the HTLCs came in.
fn expiry_of(purpose: &Purpose) -> Option<(CltvExpiry, HtlcId)> {
    match purpose {
        Purpose::Htlc(htlc) => Some((htlc.cltv_expiry, htlc.id)),
        Purpose::ToLocal | Purpose::ToRemote | Purpose::Anchor(_) => None,
    }
}

/// The outputs of the HTLCs that are not trimmed, with room for the four others.
fn htlc_outputs(terms: &Terms, keys: &CommitmentKeys, spec: &CommitmentSpec<'_>) -> Vec<(TxOut, Purpose)> {
    let format = terms.format();
    let dust_limit = terms.party(spec.side).dust_limit;
    let scripts = HtlcScripts::new(format, keys);
    let mut room = Vec::with_capacity(script::HTLC_SCRIPT_BYTES_MAX);
    let mut outputs = Vec::with_capacity(spec.htlcs.len() + 4);
    for htlc in spec.htlcs {
        let offered = htlc.offered_by == spec.side;
        if is_trimmed(format, dust_limit, spec.feerate, offered, htlc.amount) {
            continue;
        }
        let script = scripts.write(offered, &htlc.payment_hash, htlc.cltv_expiry, room);
        let value = htlc.amount.floor_to_sat().to_amount();
        outputs.push((TxOut { value, script_pubkey: script.to_p2wsh() }, Purpose::Htlc(*htlc)));
        room = script.into_bytes();
    }
    outputs
}

/// BOLT 3, "Commitment Transaction Construction", steps 2, 3, 6, 7 and 8.
fn push_balances_and_anchors(
    terms: &Terms,
    keys: &CommitmentKeys,
    spec: &CommitmentSpec<'_>,
    outputs: &mut Vec<(TxOut, Purpose)>,
) {
    let untrimmed = outputs.len();
    let balances = balances_after_fee(terms, spec, untrimmed);
    let dust_limit = terms.party(spec.side).dust_limit;
    let mut push = |value: Sat, script_pubkey: ScriptBuf, purpose: Purpose| {
        outputs.push((TxOut { value: value.to_amount(), script_pubkey }, purpose));
    };
    let to_local = *balances.of(spec.side);
    if to_local >= dust_limit {
        let script = script::to_local(&keys.revocation, terms.delay_of(spec.side), &keys.broadcaster_delayed);
        push(to_local, script.to_p2wsh(), Purpose::ToLocal);
    }
    let to_remote = *balances.of(spec.side.other());
    if to_remote >= dust_limit {
        let script = script::to_remote_pubkey(terms.format(), &keys.countersignatory_payment);
        push(to_remote, script, Purpose::ToRemote);
    }
    if terms.format() != CommitmentFormat::Anchors {
        return;
    }
    for (side, balance) in [(spec.side, to_local), (spec.side.other(), to_remote)] {
        if balance >= dust_limit || untrimmed > 0 {
            let script = script::anchor(funding::funding_key(terms, side)).to_p2wsh();
            push(ANCHOR_VALUE, script, Purpose::Anchor(side));
        }
    }
}

/// The whole satoshis of each side, after the funder has paid the base fee and the anchors as far as he can.
fn balances_after_fee(terms: &Terms, spec: &CommitmentSpec<'_>, untrimmed_htlcs: usize) -> Both<Sat> {
    let mut balances = Both { local: spec.balances.local.floor_to_sat(), remote: spec.balances.remote.floor_to_sat() };
    let funder = balances.of_mut(terms.funder);
    *funder = funder.saturating_sub(anchors_value(terms.format())).saturating_sub(commit_fee(
        terms.format(),
        spec.feerate,
        untrimmed_htlcs,
    ));
    balances
}
