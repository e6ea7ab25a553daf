//! Every transaction of `tx/` before the real script interpreter: what is right passes, and with a wrong key, a
//! wrong preimage, or before its time it does not.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

#[path = "script/mutual_close.rs"]
mod mutual_close;
#[path = "support/pair.rs"]
mod pair;
#[path = "support/random.rs"]
mod random;
#[path = "support/script.rs"]
mod script;

use bitcoin::hashes::Hash;
use bitcoin::sighash::SighashCache;
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, EcdsaSighashType, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, WPubkeyHash, Witness,
    absolute,
};
use millrace_channel::curve::{Curve, Serial};
use millrace_channel::keys::{ChannelKeys, CommitmentKeys};
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::{
    Claim, ClosingOutputs, ClosingTx, Commitment, CommitmentHtlc, HtlcOutput, HtlcTx, HtlcTxKind, SimpleClose,
    SweepError, claim, commit_weight, commitment, funding, weight,
};
use millrace_wire::{CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, Sat};
use pair::{Pair, State};
use random::{Choices, preimage_of, random};
use script::verify_tx;
use secp256k1::ecdsa::Signature;
use secp256k1::{Message, SECP256K1, SecretKey};

const FORMATS: [CommitmentFormat; 2] = [CommitmentFormat::StaticRemotekey, CommitmentFormat::Anchors];
const FEERATE: FeeratePerKw = FeeratePerKw(500);

fn some_pair(format: CommitmentFormat) -> Pair {
    Pair::new(ChannelKeys::from_seed(&[1; 32]), ChannelKeys::from_seed(&[2; 32]), format, Side::Local)
}

/// Keys that have nothing to do with the channel.
fn strangers_keys() -> ChannelKeys {
    ChannelKeys::from_seed(&[3; 32])
}

/// Two HTLCs each way, and enough for both sides.
fn some_state(side: Side) -> State {
    let htlcs = [(Side::Local, 0), (Side::Local, 1), (Side::Remote, 0), (Side::Remote, 1)].map(|(offered_by, id)| {
        let hash = random::preimage_of(&first_hash()).hash();
        CommitmentHtlc {
            id: HtlcId(id),
            offered_by,
            amount: Msat(20_000_000 + id),
            payment_hash: hash,
            cltv_expiry: CltvExpiry(700_000 + id as u32),
        }
    });
    State {
        side,
        number: CommitmentNumber(5),
        feerate: FeeratePerKw(1000),
        balances: Both { local: Msat(6_000_000_000), remote: Msat(3_919_999_998) },
        htlcs: htlcs.to_vec(),
    }
}

fn first_hash() -> millrace_wire::PaymentHash {
    millrace_wire::Preimage::new([0; 32]).hash()
}

fn destination() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&WPubkeyHash::hash(&[9; 33]))
}

/// The peer's signatures for our commitment: its own first, then those of the HTLCs.
fn signed_by_the_peer(pair: &Pair, state: &State, keys: &CommitmentKeys) -> (Signature, Vec<Signature>) {
    let (pair, state) = (pair.mirrored(), state.mirrored());
    let commitment = Commitment::build(&pair.terms, keys, &state.spec());
    let (mut jobs, mut signatures) = (Vec::new(), Vec::new());
    commitment.sign_jobs(&pair.terms, &pair.local, keys, &mut jobs);
    Serial.sign_all(&jobs, &mut signatures);
    let htlc_signatures = signatures.split_off(1);
    (signatures[0], htlc_signatures)
}

fn prevouts_of(claims: &[Claim]) -> Vec<TxOut> {
    claims.iter().map(|claim| claim.output.clone()).collect()
}

/// Sweeps one claim alone and asks the interpreter. The weight promised must hold, and closely.
fn try_sweep(claim: &Claim, keys: &ChannelKeys) -> Result<Transaction, String> {
    let claims = [claim.clone()];
    let tx = claim::sweep_tx(&claims, destination(), FEERATE, keys).unwrap();
    let promised = claim::sweep_weight(&claims, &destination());
    assert!(tx.weight() <= promised && tx.weight() + bitcoin::Weight::from_wu(4) >= promised, "{:?}", claim.kind);
    let fee = claim.output.value - tx.output[0].value;
    assert!(fee.to_sat() * 1000 >= u64::from(FEERATE.0) * tx.weight().to_wu());
    verify_tx(&tx, &prevouts_of(&claims)).map(|()| tx)
}

/// With nobody else's keys, and not one block earlier by either clock.
fn only_in_time_and_by_the_owner(claim: &Claim, keys: &ChannelKeys) {
    try_sweep(claim, keys).unwrap();
    assert!(try_sweep(claim, &strangers_keys()).is_err(), "{:?}: a stranger", claim.kind);
    let relative = claim.sequence.to_consensus_u32();
    if relative != Sequence::ENABLE_RBF_NO_LOCKTIME.to_consensus_u32() && relative > 0 {
        let early = Claim { sequence: Sequence(relative - 1), ..claim.clone() };
        assert!(try_sweep(&early, keys).is_err(), "{:?}: a block before its delay", claim.kind);
        let disabled = Claim { sequence: Sequence::ENABLE_RBF_NO_LOCKTIME, ..claim.clone() };
        assert!(try_sweep(&disabled, keys).is_err(), "{:?}: with no relative lock time", claim.kind);
    }
    if claim.lock_time > 0 {
        let early = Claim { lock_time: claim.lock_time - 1, ..claim.clone() };
        assert!(try_sweep(&early, keys).is_err(), "{:?}: a block before its expiry", claim.kind);
        let final_sequence = Claim { sequence: Sequence::MAX, ..claim.clone() };
        assert!(try_sweep(&final_sequence, keys).is_err(), "{:?}: with lock time off", claim.kind);
    }
}

fn with_item(witness: &Witness, index: usize, item: &[u8]) -> Witness {
    let mut items = witness.to_vec();
    items[index] = item.to_vec();
    Witness::from_slice(&items)
}

/// Our commitment, its keys, and all that the peer signed.
struct Local {
    pair: Pair,
    keys: CommitmentKeys,
    commitment: Commitment,
    signature: Signature,
    htlc_signatures: Vec<Signature>,
}

impl Local {
    fn new(pair: Pair, state: &State) -> Self {
        let (commitment, keys) = pair.build(state);
        let (signature, htlc_signatures) = signed_by_the_peer(&pair, state, &keys);
        Self { pair, keys, commitment, signature, htlc_signatures }
    }

    fn htlc_key(&self) -> SecretKey {
        self.pair.local.htlc_key(&self.keys.per_commitment_point)
    }

    fn htlc_tx(&self, htlc: &HtlcOutput) -> HtlcTx {
        HtlcTx::build(&self.pair.terms, &self.keys, &self.commitment, htlc)
    }

    fn witness(&self, htlc_tx: &HtlcTx, tx: &Transaction, key: &SecretKey, remote: &Signature) -> Witness {
        match htlc_tx.kind {
            HtlcTxKind::Timeout => htlc_tx.timeout_witness(tx, 0, key, remote),
            HtlcTxKind::Success => {
                htlc_tx.success_witness(tx, 0, key, remote, &preimage_of(&htlc_tx.htlc.payment_hash))
            }
        }
    }

    fn htlcs(&self) -> impl Iterator<Item = (HtlcTx, &Signature)> {
        self.commitment.htlcs.iter().map(|htlc| self.htlc_tx(htlc)).zip(&self.htlc_signatures)
    }
}

mod our_commitment {
    use super::*;

    #[test]
    fn signed_by_both() {
        for format in FORMATS {
            let local = Local::new(some_pair(format), &some_state(Side::Local));
            let (terms, prevout) = (&local.pair.terms, funding::output_of(&local.pair.terms));
            let ours = local.commitment.sign(terms, &local.pair.local);
            let signed = local.commitment.signed_tx(terms, &ours, &local.signature);
            verify_tx(&signed, std::slice::from_ref(&prevout)).unwrap();
            assert_eq!(signed.compute_txid(), local.commitment.txid);
            assert_eq!(commitment::number_in(terms, &signed), Some(CommitmentNumber(5)));
            let expected = commit_weight(format, 4);
            // BOLT 3, Appendix A, counts three bytes for the number of outputs with anchors, and long signatures.
            let counted_too_much = if format == CommitmentFormat::Anchors { 8 } else { 0 } + 6;
            assert!(signed.weight() <= expected && signed.weight().to_wu() + counted_too_much >= expected.to_wu());

            let strangers = local.commitment.sign(terms, &strangers_keys());
            let wrong = local.commitment.signed_tx(terms, &strangers, &local.signature);
            assert!(verify_tx(&wrong, std::slice::from_ref(&prevout)).is_err());
            let swapped = local.commitment.signed_tx(terms, &local.signature, &ours);
            assert!(verify_tx(&swapped, std::slice::from_ref(&prevout)).is_err());
            let less = TxOut { value: prevout.value - Amount::ONE_SAT, ..prevout };
            assert!(verify_tx(&signed, &[less]).is_err());
        }
    }

    #[test]
    fn htlc_transactions() {
        for format in FORMATS {
            let local = Local::new(some_pair(format), &some_state(Side::Local));
            let mut kinds = [0; 2];
            for (htlc_tx, remote) in local.htlcs() {
                let prevouts = [htlc_tx.prevout.clone()];
                let mut tx = htlc_tx.tx.clone();
                let verify = |tx: &Transaction| verify_tx(tx, &prevouts);
                tx.input[0].witness = local.witness(&htlc_tx, &tx, &local.htlc_key(), remote);
                verify(&tx).unwrap();
                let expected = weight::htlc_tx_weight(format, htlc_tx.kind == HtlcTxKind::Timeout);
                assert!(tx.weight() <= expected && tx.weight().to_wu() + 8 >= expected.to_wu());
                kinds[htlc_tx.kind as usize] += 1;

                let right = tx.clone();
                tx.input[0].witness = local.witness(&htlc_tx, &tx, local.pair.local.payment_key(), remote);
                assert!(verify(&tx).is_err(), "{:?}: wrong key", htlc_tx.kind);
                tx.input[0].witness = local.witness(&htlc_tx, &tx, &local.htlc_key(), &local.signature);
                assert!(verify(&tx).is_err(), "{:?}: another signature of the peer", htlc_tx.kind);
                let wrong_preimage = with_item(&right.input[0].witness, 3, &[0xee; 32]);
                tx.input[0].witness = wrong_preimage;
                assert!(verify(&tx).is_err(), "{:?}: wrong preimage", htlc_tx.kind);
            }
            assert_eq!(kinds, [2, 2]);
        }
    }

    #[test]
    fn an_htlc_timeout_before_the_expiry_or_an_htlc_transaction_in_the_same_block() {
        for format in FORMATS {
            let local = Local::new(some_pair(format), &some_state(Side::Local));
            for (htlc_tx, remote) in local.htlcs() {
                let verify = |mut tx: Transaction| {
                    tx.input[0].witness = local.witness(&htlc_tx, &tx, &local.htlc_key(), remote);
                    verify_tx(&tx, std::slice::from_ref(&htlc_tx.prevout))
                };
                verify(htlc_tx.tx.clone()).unwrap();
                if htlc_tx.kind == HtlcTxKind::Timeout {
                    let expiry = htlc_tx.tx.lock_time.to_consensus_u32();
                    let lock_time = absolute::LockTime::from_consensus(expiry - 1);
                    assert!(verify(Transaction { lock_time, ..htlc_tx.tx.clone() }).is_err());
                }
                let mut same_block = htlc_tx.tx.clone();
                same_block.input[0].sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
                assert!(verify(same_block).is_err());
            }
        }
    }

    /// A wallet's coin: a key, and the P2WPKH output that it owns.
    fn coin(value: u64) -> (SecretKey, OutPoint, TxOut) {
        let key = SecretKey::from_slice(&[8; 32]).unwrap();
        let hash = WPubkeyHash::hash(&key.public_key(SECP256K1).serialize());
        let output = TxOut { value: Amount::from_sat(value), script_pubkey: ScriptBuf::new_p2wpkh(&hash) };
        (key, OutPoint { txid: Txid::from_byte_array([0xcc; 32]), vout: 3 }, output)
    }

    fn sign_coin(tx: &Transaction, input: usize, key: &SecretKey, output: &TxOut) -> Witness {
        let digest = SighashCache::new(tx)
            .p2wpkh_signature_hash(input, &output.script_pubkey, output.value, EcdsaSighashType::All)
            .unwrap();
        let signature = SECP256K1.sign_ecdsa(&Message::from_digest(digest.to_byte_array()), key);
        Witness::p2wpkh(&bitcoin::ecdsa::Signature::sighash_all(signature), &key.public_key(SECP256K1))
    }

    fn input_of(outpoint: OutPoint) -> TxIn {
        TxIn { previous_output: outpoint, sequence: Sequence::ENABLE_RBF_NO_LOCKTIME, ..TxIn::default() }
    }

    #[test]
    fn htlc_transactions_with_a_fee_input_and_change() {
        let local = Local::new(some_pair(CommitmentFormat::Anchors), &some_state(Side::Local));
        let (key, outpoint, output) = coin(50_000);
        for (htlc_tx, remote) in local.htlcs() {
            let mut tx = htlc_tx.tx.clone();
            tx.input.push(input_of(outpoint));
            tx.output.push(TxOut { value: Amount::from_sat(49_000), script_pubkey: destination() });
            let witness = local.witness(&htlc_tx, &tx, &local.htlc_key(), remote);
            tx.input[1].witness = sign_coin(&tx, 1, &key, &output);
            tx.input[0].witness = witness;
            let prevouts = [htlc_tx.prevout.clone(), output.clone()];
            verify_tx(&tx, &prevouts).unwrap();
            let input = bitcoin::Weight::from_wu(4 * 41 + tx.input[0].witness.size() as u64);
            assert!(input <= htlc_tx.input_weight() && input.to_wu() + 6 >= htlc_tx.input_weight().to_wu());

            let mut other_change = tx.clone();
            other_change.output[1].value = Amount::from_sat(48_999);
            assert!(verify_tx(&other_change, &prevouts).is_err(), "our signature covers the change");
            let mut other_payee = tx.clone();
            other_payee.output[0].script_pubkey = destination();
            other_payee.input[0].witness = local.witness(&htlc_tx, &other_payee, &local.htlc_key(), remote);
            assert!(verify_tx(&other_payee, &prevouts).is_err(), "the peer's signature covers our output");
        }
    }

    #[test]
    fn two_htlc_transactions_in_one() {
        let local = Local::new(some_pair(CommitmentFormat::Anchors), &some_state(Side::Local));
        let successes: Vec<_> = local.htlcs().filter(|(htlc_tx, _)| htlc_tx.kind == HtlcTxKind::Success).collect();
        let (key, outpoint, output) = coin(50_000);
        let mut tx = successes[0].0.tx.clone();
        tx.input.push(successes[1].0.tx.input[0].clone());
        tx.output.push(successes[1].0.tx.output[0].clone());
        tx.input.push(input_of(outpoint));
        let mut witnesses: Vec<_> = (0..)
            .zip(&successes)
            .map(|(input, (htlc_tx, remote))| {
                let preimage = preimage_of(&htlc_tx.htlc.payment_hash);
                htlc_tx.success_witness(&tx, input, &local.htlc_key(), remote, &preimage)
            })
            .collect();
        witnesses.push(sign_coin(&tx, 2, &key, &output));
        for (input, witness) in tx.input.iter_mut().zip(witnesses) {
            input.witness = witness;
        }
        verify_tx(&tx, &[successes[0].0.prevout.clone(), successes[1].0.prevout.clone(), output]).unwrap();
    }

    #[test]
    fn to_local_and_second_level_outputs_after_the_delay() {
        for format in FORMATS {
            let local = Local::new(some_pair(format), &some_state(Side::Local));
            let (terms, keys) = (&local.pair.terms, &local.keys);
            let to_local = claim::to_local(terms, keys, &local.commitment).unwrap();
            assert_eq!(to_local.sequence, Sequence::from_height(144));
            let mut claims = vec![to_local];
            for (htlc_tx, _) in local.htlcs() {
                let outpoint = OutPoint { txid: htlc_tx.tx.compute_txid(), vout: 0 };
                claims.push(claim::second_level(terms, keys, outpoint, htlc_tx.tx.output[0].clone()));
            }
            for claim in &claims {
                only_in_time_and_by_the_owner(claim, &local.pair.local);
                assert!(try_sweep(claim, &local.pair.remote).is_err());
            }
            let all = claim::sweep_tx(&claims, destination(), FEERATE, &local.pair.local).unwrap();
            verify_tx(&all, &prevouts_of(&claims)).unwrap();
        }
    }

    #[test]
    fn the_child_of_an_anchor() {
        for side in [Side::Local, Side::Remote] {
            let pair = some_pair(CommitmentFormat::Anchors);
            let (commitment, _) = pair.build(&some_state(side));
            let anchor = claim::anchor(&pair.terms, &commitment).unwrap();
            assert_eq!(Sat::from(anchor.output.value), weight::ANCHOR_VALUE);
            let (key, outpoint, output) = coin(50_000);
            let mut tx = Transaction {
                version: Version::TWO,
                lock_time: absolute::LockTime::ZERO,
                input: vec![anchor.input(), input_of(outpoint)],
                output: vec![TxOut { value: Amount::from_sat(40_000), script_pubkey: destination() }],
            };
            let prevouts = [anchor.output.clone(), output.clone()];
            let strangers = anchor.witness(&tx, 0, &strangers_keys());
            let witness = anchor.witness(&tx, 0, &pair.local);
            assert!(4 * 41 + witness.size() as u64 <= anchor.weight.to_wu());
            tx.input[1].witness = sign_coin(&tx, 1, &key, &output);
            tx.input[0].witness = witness;
            verify_tx(&tx, &prevouts).unwrap();
            tx.input[0].witness = strangers;
            assert!(verify_tx(&tx, &prevouts).is_err());
        }
    }

    #[test]
    fn anyone_takes_an_anchor_after_16_blocks_only() {
        let pair = some_pair(CommitmentFormat::Anchors);
        let (commitment, _) = pair.build(&some_state(Side::Local));
        let anchor = claim::anchor(&pair.terms, &commitment).unwrap();
        let take = |blocks| {
            let witness = Witness::from_slice(&[&[], anchor.witness_script.as_bytes()]);
            let input = TxIn { sequence: Sequence::from_height(blocks), witness, ..anchor.input() };
            let output = vec![TxOut { value: Amount::from_sat(300), script_pubkey: destination() }];
            let tx =
                Transaction { version: Version::TWO, lock_time: absolute::LockTime::ZERO, input: vec![input], output };
            verify_tx(&tx, std::slice::from_ref(&anchor.output))
        };
        take(16).unwrap();
        assert!(take(15).is_err());
    }
}

mod the_peers_commitment {
    use super::*;

    /// Every claim that this node has on the peer's commitment, HTLCs by preimage and by timeout.
    fn claims(pair: &Pair, commitment: &Commitment, keys: &CommitmentKeys) -> Vec<Claim> {
        let terms = &pair.terms;
        let htlc = |htlc: &HtlcOutput| match htlc.offered_by {
            Side::Local => claim::htlc_by_timeout(terms, keys, commitment, htlc),
            Side::Remote => claim::htlc_by_preimage(terms, keys, commitment, htlc, preimage_of(&htlc.payment_hash)),
        };
        let htlcs = commitment.htlcs.iter().map(htlc);
        claim::to_remote(terms, keys, commitment).into_iter().chain(htlcs).collect()
    }

    #[test]
    fn every_claim() {
        for format in FORMATS {
            let pair = some_pair(format);
            let (commitment, keys) = pair.build(&some_state(Side::Remote));
            let claims = claims(&pair, &commitment, &keys);
            assert_eq!(claims.len(), 5);
            for claim in &claims {
                only_in_time_and_by_the_owner(claim, &pair.local);
            }
            let all = claim::sweep_tx(&claims, destination(), FEERATE, &pair.local).unwrap();
            verify_tx(&all, &prevouts_of(&claims)).unwrap();
            assert_eq!(all.lock_time.to_consensus_u32(), 700_001);
        }
    }

    #[test]
    fn a_wrong_preimage_opens_nothing() {
        for format in FORMATS {
            let pair = some_pair(format);
            let (commitment, keys) = pair.build(&some_state(Side::Remote));
            let htlc = commitment.htlcs.iter().find(|htlc| htlc.offered_by == Side::Remote).unwrap();
            let preimage = preimage_of(&htlc.payment_hash);
            let claim = claim::htlc_by_preimage(&pair.terms, &keys, &commitment, htlc, preimage.clone());
            let mut tx = try_sweep(&claim, &pair.local).unwrap();
            assert_eq!(claim::revealed_preimage(&tx.input[0].witness, &htlc.payment_hash), Some(preimage));
            for wrong in [&[0xee; 32][..], &[], &[0; 31]] {
                tx.input[0].witness = with_item(&tx.input[0].witness, 1, wrong);
                assert!(verify_tx(&tx, std::slice::from_ref(&claim.output)).is_err());
                assert_eq!(claim::revealed_preimage(&tx.input[0].witness, &htlc.payment_hash), None);
            }
        }
    }

    #[test]
    fn the_peers_own_htlc_success_reveals_the_preimage() {
        let pair = some_pair(CommitmentFormat::Anchors);
        let local = Local::new(pair, &some_state(Side::Local));
        for (htlc_tx, remote) in local.htlcs() {
            let witness = local.witness(&htlc_tx, &htlc_tx.tx, &local.htlc_key(), remote);
            let hash = htlc_tx.htlc.payment_hash;
            let expected = (htlc_tx.kind == HtlcTxKind::Success).then(|| preimage_of(&hash));
            assert_eq!(claim::revealed_preimage(&witness, &hash), expected);
        }
    }

    #[test]
    fn a_sweep_that_is_not_worth_it() {
        let pair = some_pair(CommitmentFormat::Anchors);
        let (commitment, keys) = pair.build(&some_state(Side::Remote));
        let keys_of = &pair.local;
        assert_eq!(claim::sweep_tx(&[], destination(), FEERATE, keys_of), Err(SweepError::Nothing));
        let claims = [claim::to_remote(&pair.terms, &keys, &commitment).unwrap()];
        let value = Sat::from(claims[0].output.value);
        let dust = Sat(294);
        let least = claim::sweep_tx_for_fee(&claims, destination(), Sat(value.0 - dust.0), keys_of).unwrap();
        assert_eq!(Sat::from(least.output[0].value), dust);
        for fee in [Sat(value.0 - dust.0 + 1), Sat(value.0 + 1)] {
            let refused = claim::sweep_tx_for_fee(&claims, destination(), fee, keys_of);
            assert_eq!(refused, Err(SweepError::Dust { value, fee, dust }));
        }
    }

    /// The revocation key takes every output of a revoked commitment that is not the punisher's already.
    #[test]
    fn the_revocation_branches() {
        for format in FORMATS {
            let pair = some_pair(format);
            let (commitment, keys) = pair.build(&some_state(Side::Remote));
            let number = CommitmentNumber(5);
            let secret = SecretKey::from_slice(&pair.remote.commitment_secret(number)).unwrap();
            let wrong = SecretKey::from_slice(&pair.remote.commitment_secret(CommitmentNumber(4))).unwrap();
            let to_local = commitment.to_local.unwrap();
            let delay = pair.terms.delay_of(Side::Remote);
            let delayed = millrace_channel::tx::script::to_local(&keys.revocation, delay, &keys.broadcaster_delayed);
            let scripts = millrace_channel::tx::script::HtlcScripts::new(format, &keys);
            let mut outputs = vec![(to_local, delayed, vec![1])];
            for htlc in &commitment.htlcs {
                let script = match htlc.offered_by {
                    Side::Remote => scripts.offered(&htlc.payment_hash),
                    Side::Local => scripts.received(&htlc.payment_hash, htlc.cltv_expiry),
                };
                outputs.push((htlc.vout, script, keys.revocation.serialize().to_vec()));
            }
            for (vout, script, second) in outputs {
                let prevout = commitment.output(vout).clone();
                let punish = |secret: &SecretKey| {
                    let mut tx = Transaction {
                        version: Version::TWO,
                        lock_time: absolute::LockTime::ZERO,
                        input: vec![TxIn { previous_output: commitment.outpoint(vout), ..TxIn::default() }],
                        output: vec![TxOut { value: Amount::from_sat(1000), script_pubkey: destination() }],
                    };
                    let digest = SighashCache::new(&tx)
                        .p2wsh_signature_hash(0, &script, prevout.value, EcdsaSighashType::All)
                        .unwrap();
                    let key = pair.local.revocation_key(secret);
                    let signature = SECP256K1.sign_ecdsa(&Message::from_digest(digest.to_byte_array()), &key);
                    let signature = bitcoin::ecdsa::Signature::sighash_all(signature).to_vec();
                    tx.input[0].witness = Witness::from_slice(&[signature, second.clone(), script.to_bytes()]);
                    verify_tx(&tx, std::slice::from_ref(&prevout))
                };
                punish(&secret).unwrap();
                assert!(punish(&wrong).is_err());
            }
        }
    }

    #[test]
    fn random_commitments_of_both_sides_and_all_that_spends_them() {
        let (mut verified, mut skipped) = (0, 0);
        for seed in 0..150 {
            let (pair, state) = random(seed);
            // The same state as the commitment of each side.
            let ours = Local::new(pair.clone(), &State { side: Side::Local, ..state.clone() });
            let (theirs, their_keys) = pair.build(&State { side: Side::Remote, ..state.clone() });
            if ours.commitment.tx.output.is_empty() || theirs.tx.output.is_empty() {
                skipped += 1;
                continue;
            }
            let terms = &pair.terms;
            let mut jobs = Vec::new();
            let (signature, htlc_signatures) = (&ours.signature, &ours.htlc_signatures);
            ours.commitment.verify_jobs(terms, &ours.keys, signature, htlc_signatures, &mut jobs).unwrap();
            assert_eq!(Serial.verify_all(&jobs), Ok(()), "seed {seed}");
            let signed = ours.commitment.signed_tx(terms, &ours.commitment.sign(terms, &pair.local), signature);
            verify_tx(&signed, &[funding::output_of(terms)]).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            for (htlc_tx, remote) in ours.htlcs() {
                let mut tx = htlc_tx.tx.clone();
                tx.input[0].witness = ours.witness(&htlc_tx, &tx, &ours.htlc_key(), remote);
                verify_tx(&tx, std::slice::from_ref(&htlc_tx.prevout)).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                verified += 1;
            }
            let mut claims = claims(&pair, &theirs, &their_keys);
            claims.extend(claim::to_local(terms, &ours.keys, &ours.commitment));
            claims.extend(claim::anchor(terms, &theirs));
            if claims.is_empty() {
                continue;
            }
            let all = claim::sweep_tx_for_fee(&claims, destination(), Sat::ZERO, &pair.local).unwrap();
            verify_tx(&all, &prevouts_of(&claims)).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            verified += claims.len();
        }
        assert!(verified > 2000 && skipped < 10, "{verified} {skipped}");
    }
}

mod commitment_signed {
    use super::*;
    use millrace_channel::tx::CountMismatch;

    #[test]
    fn with_one_signature_too_few_or_too_many() {
        let local = Local::new(some_pair(CommitmentFormat::Anchors), &some_state(Side::Local));
        for found in [0, 3, 5] {
            let signatures = vec![local.signature; found];
            let mut jobs = Vec::new();
            let (terms, keys) = (&local.pair.terms, &local.keys);
            let refused = local.commitment.verify_jobs(terms, keys, &local.signature, &signatures, &mut jobs);
            assert_eq!(refused, Err(CountMismatch { expected: 4, found }));
            assert!(jobs.is_empty());
        }
    }

    #[test]
    fn with_two_htlc_signatures_in_the_wrong_order() {
        for format in FORMATS {
            let local = Local::new(some_pair(format), &some_state(Side::Local));
            let mut swapped = local.htlc_signatures.clone();
            swapped.swap(1, 2);
            let mut jobs = Vec::new();
            let (terms, keys) = (&local.pair.terms, &local.keys);
            local.commitment.verify_jobs(terms, keys, &local.signature, &swapped, &mut jobs).unwrap();
            assert_eq!(Serial.verify_all(&jobs), Err(2));
        }
    }
}
