//! LDK's `CommitmentTransaction` as the oracle: for random states, commitment, HTLC order, HTLC transactions and every
//! sighash are the same as ours, byte for byte. And a comparison that cannot fail proves nothing: one satoshi
//! or one swapped key makes it fail.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

#[path = "support/pair.rs"]
mod pair;
#[path = "support/random.rs"]
mod random;

use bitcoin::consensus::serialize;
use bitcoin::hashes::Hash;
use bitcoin::sighash::SighashCache;
use bitcoin::{Amount, EcdsaSighashType, ScriptBuf};
use lightning::chain::transaction::OutPoint;
use lightning::ln::chan_utils::{
    ChannelPublicKeys, ChannelTransactionParameters, CommitmentTransaction, CounterpartyChannelTransactionParameters,
    HTLCOutputInCommitment, build_htlc_transaction, get_htlc_redeemscript, htlc_success_tx_weight,
    htlc_timeout_tx_weight, make_funding_redeemscript,
};
use lightning::types::features::ChannelTypeFeatures;
use millrace_channel::keys::{Basepoints, CommitmentKeys};
use millrace_channel::side::Side;
use millrace_channel::terms::{CommitmentFormat, PartyTerms};
use millrace_channel::tx::{Commitment, HtlcTx};
use millrace_wire::CommitmentNumber;
use pair::{Pair, State};
use random::{Choices, random};
use secp256k1::SECP256K1;
use secp256k1::ecdsa::Signature;

const SEEDS: u64 = 800;

/// What both builders say about one state.
#[derive(PartialEq, Eq, Debug)]
struct Observed {
    commitment: Vec<u8>,
    /// Output, offered by the broadcaster, amount, hash and expiry of each HTLC, in output order.
    htlcs: Vec<(u32, bool, u64, [u8; 32], u32)>,
    htlc_txs: Vec<Vec<u8>>,
    /// What `commitment_signed` signs.
    digests: Vec<[u8; 32]>,
}

fn ours(pair: &Pair, state: &State) -> Observed {
    let (commitment, keys) = pair.build(state);
    let htlcs = commitment.htlcs.iter().map(|htlc| {
        let offered = htlc.offered_by == commitment.side;
        (htlc.vout, offered, htlc.amount.0, htlc.payment_hash.0, htlc.cltv_expiry.0)
    });
    let htlc_txs =
        commitment.htlcs.iter().map(|htlc| serialize(&HtlcTx::build(&pair.terms, &keys, &commitment, htlc).tx));
    Observed {
        commitment: serialize(&commitment.tx),
        htlcs: htlcs.collect(),
        htlc_txs: htlc_txs.collect(),
        digests: our_digests(pair, &commitment, &keys),
    }
}

/// Of the peer's commitment what we sign, of ours what we check.
fn our_digests(pair: &Pair, commitment: &Commitment, keys: &CommitmentKeys) -> Vec<[u8; 32]> {
    match commitment.side {
        Side::Remote => {
            let mut jobs = Vec::new();
            commitment.sign_jobs(&pair.terms, &pair.local, keys, &mut jobs);
            jobs.iter().map(|job| job.digest).collect()
        }
        Side::Local => {
            let mut jobs = Vec::new();
            let any = Signature::from_compact(&[1; 64]).unwrap();
            let htlc_signatures = vec![any; commitment.htlcs.len()];
            commitment.verify_jobs(&pair.terms, keys, &any, &htlc_signatures, &mut jobs).unwrap();
            jobs.iter().map(|job| job.digest).collect()
        }
    }
}

fn ldk_features(format: CommitmentFormat) -> ChannelTypeFeatures {
    match format {
        CommitmentFormat::StaticRemotekey => ChannelTypeFeatures::only_static_remote_key(),
        CommitmentFormat::Anchors => ChannelTypeFeatures::anchors_zero_htlc_fee_and_dependencies(),
    }
}

fn ldk_keys(basepoints: &Basepoints) -> ChannelPublicKeys {
    ChannelPublicKeys {
        funding_pubkey: basepoints.funding,
        revocation_basepoint: basepoints.revocation.into(),
        payment_point: basepoints.payment,
        delayed_payment_basepoint: basepoints.delayed_payment.into(),
        htlc_basepoint: basepoints.htlc.into(),
    }
}

fn ldk_parameters(pair: &Pair) -> ChannelTransactionParameters {
    let terms = &pair.terms;
    let (local, remote) = (&terms.parties.local, &terms.parties.remote);
    ChannelTransactionParameters {
        holder_pubkeys: ldk_keys(&local.basepoints),
        holder_selected_contest_delay: local.to_self_delay,
        is_outbound_from_holder: terms.funder == Side::Local,
        counterparty_parameters: Some(CounterpartyChannelTransactionParameters {
            pubkeys: ldk_keys(&remote.basepoints),
            selected_contest_delay: remote.to_self_delay,
        }),
        funding_outpoint: Some(OutPoint {
            txid: terms.funding_outpoint.txid,
            index: u16::try_from(terms.funding_outpoint.vout).unwrap(),
        }),
        splice_parent_funding_txid: None,
        channel_type_features: ldk_features(terms.format()),
        channel_value_satoshis: terms.capacity.0,
    }
}

/// The arithmetic that LDK does around its builder: dust, fee, anchors.
struct LdkAmounts {
    to_broadcaster: u64,
    to_countersignatory: u64,
    htlcs: Vec<HTLCOutputInCommitment>,
}

fn ldk_amounts(pair: &Pair, state: &State) -> LdkAmounts {
    let terms = &pair.terms;
    let features = ldk_features(terms.format());
    let zero_fee_htlcs = features.supports_anchors_zero_fee_htlc_tx();
    let feerate = u64::from(state.feerate.0);
    let dust_limit = terms.party(state.side).dust_limit.0;
    let is_kept = |htlc: &HTLCOutputInCommitment| {
        let weight = if htlc.offered { htlc_timeout_tx_weight(&features) } else { htlc_success_tx_weight(&features) };
        let fee = if zero_fee_htlcs { 0 } else { feerate * weight / 1000 };
        htlc.amount_msat / 1000 >= dust_limit + fee
    };
    let htlcs: Vec<_> = state
        .htlcs
        .iter()
        .map(|htlc| HTLCOutputInCommitment {
            offered: htlc.offered_by == state.side,
            amount_msat: htlc.amount.0,
            cltv_expiry: htlc.cltv_expiry.0,
            payment_hash: htlc.payment_hash.into(),
            transaction_output_index: None,
        })
        .filter(is_kept)
        .collect();
    let (anchors, base_weight) = if zero_fee_htlcs { (660, 1124) } else { (0, 724) };
    let fee = feerate * (base_weight + 172 * htlcs.len() as u64) / 1000;
    let after_fee = |side: Side| {
        let due = if side == terms.funder { fee + anchors } else { 0 };
        let rest = (state.balances.of(side).0 / 1000).saturating_sub(due);
        if rest >= dust_limit { rest } else { 0 }
    };
    LdkAmounts { to_broadcaster: after_fee(state.side), to_countersignatory: after_fee(state.side.other()), htlcs }
}

fn ldk(pair: &Pair, state: &State) -> Observed {
    let parameters = ldk_parameters(pair);
    let directed = match state.side {
        Side::Local => parameters.as_holder_broadcastable(),
        Side::Remote => parameters.as_counterparty_broadcastable(),
    };
    let broadcaster = if state.side == Side::Local { &pair.local } else { &pair.remote };
    let point = broadcaster.commitment_point(state.number);
    let LdkAmounts { to_broadcaster, to_countersignatory, htlcs } = ldk_amounts(pair, state);
    let commitment = CommitmentTransaction::new(
        CommitmentNumber::MAX.0 - state.number.0,
        &point,
        to_broadcaster,
        to_countersignatory,
        state.feerate.0,
        htlcs,
        &directed,
        SECP256K1,
    );
    let funding_script = make_funding_redeemscript(
        &pair.terms.parties.local.basepoints.funding,
        &pair.terms.parties.remote.basepoints.funding,
    );
    let trusted = commitment.trust();
    let (features, keys) = (trusted.channel_type_features(), trusted.keys());
    let built = trusted.built_transaction();
    let kind = match pair.terms.format() {
        CommitmentFormat::StaticRemotekey => EcdsaSighashType::All,
        CommitmentFormat::Anchors => EcdsaSighashType::SinglePlusAnyoneCanPay,
    };
    let mut digests = vec![*built.get_sighash_all(&funding_script, pair.terms.capacity.0).as_ref()];
    let (mut listed, mut htlc_txs) = (Vec::new(), Vec::new());
    for htlc in commitment.nondust_htlcs() {
        let tx = build_htlc_transaction(
            &trusted.txid(),
            state.feerate.0,
            directed.contest_delay(),
            htlc,
            features,
            &keys.broadcaster_delayed_payment_key,
            &keys.revocation_key,
        );
        let script: ScriptBuf = get_htlc_redeemscript(htlc, features, keys);
        let value = Amount::from_sat(htlc.amount_msat / 1000);
        let digest = SighashCache::new(&tx).p2wsh_signature_hash(0, &script, value, kind).unwrap();
        digests.push(digest.to_byte_array());
        htlc_txs.push(serialize(&tx));
        let vout = htlc.transaction_output_index.unwrap();
        listed.push((vout, htlc.offered, htlc.amount_msat, htlc.payment_hash.0, htlc.cltv_expiry));
    }
    Observed { commitment: serialize(&built.transaction), htlcs: listed, htlc_txs, digests }
}

#[test]
fn random_states_are_built_as_ldk_builds_them() {
    let (mut formats, mut funders, mut sides) = ([0; 2], [0; 2], [0; 2]);
    let (mut kept, mut trimmed, mut same_output, mut clipped, mut without_to_local) = (0, 0, 0, 0, 0);
    for seed in 0..SEEDS {
        let (pair, state) = random(seed);
        let observed = ours(&pair, &state);
        assert_eq!(observed, ldk(&pair, &state), "seed {seed}");

        let (commitment, _) = pair.build(&state);
        formats[usize::from(pair.terms.format() == CommitmentFormat::Anchors)] += 1;
        funders[usize::from(pair.terms.funder == Side::Local)] += 1;
        sides[usize::from(state.side == Side::Local)] += 1;
        kept += commitment.htlcs.len();
        trimmed += state.htlcs.len() - commitment.htlcs.len();
        without_to_local += usize::from(commitment.to_local.is_none());
        let same = |pair: &[bitcoin::TxOut]| pair[0] == pair[1];
        same_output += commitment.tx.output.windows(2).filter(|pair| same(pair)).count();
        let base_fee = millrace_channel::tx::commit_fee(pair.terms.format(), state.feerate, commitment.htlcs.len());
        clipped += usize::from(commitment.fee < base_fee);
    }
    // The seeds reach what they are for.
    assert!(formats.into_iter().chain(funders).chain(sides).all(|count| count > 300));
    assert!(kept > 5000 && trimmed > 2000 && same_output > 500, "{kept} {trimmed} {same_output}");
    assert!(clipped > 10 && without_to_local > 100, "{clipped} {without_to_local}");
}

#[test]
fn both_sides_build_the_same_commitment() {
    for seed in 0..SEEDS {
        let (pair, state) = random(seed);
        let (theirs, their_state) = (pair.mirrored(), state.mirrored());
        assert_eq!(ours(&pair, &state), ours(&theirs, &their_state), "seed {seed}");
    }
}

/// One small thing done wrong. Says whether it had to show in the transactions.
type Mutation = fn(&mut Choices, &mut Pair, &mut State) -> bool;

fn one_satoshi_of_a_balance(choices: &mut Choices, pair: &mut Pair, state: &mut State) -> bool {
    let side = choices.one_of(&[Side::Local, Side::Remote]);
    let (commitment, _) = pair.build(state);
    let output = if side == state.side { commitment.to_local } else { commitment.to_remote };
    state.balances.of_mut(side).0 += 1000;
    output.is_some()
}

fn one_satoshi_of_an_htlc(choices: &mut Choices, pair: &mut Pair, state: &mut State) -> bool {
    let (commitment, _) = pair.build(state);
    if commitment.htlcs.is_empty() {
        return false;
    }
    let kept = commitment.htlcs[choices.below(commitment.htlcs.len() as u64) as usize];
    let htlc = state.htlcs.iter_mut().find(|htlc| htlc.id == kept.id).unwrap();
    htlc.amount.0 += 1000;
    true
}

fn one_block_of_an_expiry(choices: &mut Choices, pair: &mut Pair, state: &mut State) -> bool {
    let (commitment, _) = pair.build(state);
    if commitment.htlcs.is_empty() {
        return false;
    }
    let kept = commitment.htlcs[choices.below(commitment.htlcs.len() as u64) as usize];
    let htlc = state.htlcs.iter_mut().find(|htlc| htlc.id == kept.id).unwrap();
    htlc.cltv_expiry.0 += 1;
    true
}

fn swap_of(parties: &mut Pair, pick: fn(&mut PartyTerms) -> &mut secp256k1::PublicKey) {
    let (local, remote) = (&mut parties.terms.parties.local, &mut parties.terms.parties.remote);
    core::mem::swap(pick(local), pick(remote));
}

fn swapped_htlc_keys(_: &mut Choices, pair: &mut Pair, state: &mut State) -> bool {
    let (commitment, _) = pair.build(state);
    swap_of(pair, |party| &mut party.basepoints.htlc);
    !commitment.htlcs.is_empty()
}

fn swapped_revocation_keys(_: &mut Choices, pair: &mut Pair, state: &mut State) -> bool {
    let (commitment, _) = pair.build(state);
    swap_of(pair, |party| &mut party.basepoints.revocation);
    commitment.to_local.is_some() || !commitment.htlcs.is_empty()
}

fn swapped_delayed_keys(_: &mut Choices, pair: &mut Pair, state: &mut State) -> bool {
    let (commitment, _) = pair.build(state);
    swap_of(pair, |party| &mut party.basepoints.delayed_payment);
    commitment.to_local.is_some() || !commitment.htlcs.is_empty()
}

fn swapped_payment_keys(_: &mut Choices, pair: &mut Pair, _: &mut State) -> bool {
    // They also obscure the number.
    swap_of(pair, |party| &mut party.basepoints.payment);
    true
}

fn next_number(_: &mut Choices, _: &mut Pair, state: &mut State) -> bool {
    state.number = state.number.next().unwrap_or(CommitmentNumber(0));
    true
}

fn delay_of_one_block_more(_: &mut Choices, pair: &mut Pair, state: &mut State) -> bool {
    let (commitment, _) = pair.build(state);
    let party = pair.terms.parties.of_mut(state.side.other());
    party.to_self_delay = party.to_self_delay.wrapping_add(1);
    commitment.to_local.is_some() || !commitment.htlcs.is_empty()
}

fn other_funder(_: &mut Choices, pair: &mut Pair, _: &mut State) -> bool {
    pair.terms.funder = pair.terms.funder.other();
    true
}

#[test]
fn one_satoshi_or_one_swapped_key_is_seen() {
    let mutations: [(&str, Mutation); 10] = [
        ("one satoshi of a balance", one_satoshi_of_a_balance),
        ("one satoshi of an HTLC", one_satoshi_of_an_htlc),
        ("one block of an expiry", one_block_of_an_expiry),
        ("HTLC keys", swapped_htlc_keys),
        ("revocation keys", swapped_revocation_keys),
        ("delayed keys", swapped_delayed_keys),
        ("payment keys", swapped_payment_keys),
        ("number", next_number),
        ("delay", delay_of_one_block_more),
        ("funder", other_funder),
    ];
    for (name, mutate) in mutations {
        let mut seen = 0;
        for seed in 0..40 {
            let (pair, state) = random(seed);
            let (mut wrong_pair, mut wrong_state) = (pair.clone(), state.clone());
            if mutate(&mut Choices::new(seed), &mut wrong_pair, &mut wrong_state) {
                assert_ne!(ours(&wrong_pair, &wrong_state), ldk(&pair, &state), "{name}, seed {seed}");
                seen += 1;
            }
        }
        assert!(seen >= 20, "{name}: {seen}");
    }
}
