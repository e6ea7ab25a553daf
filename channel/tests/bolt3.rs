//! BOLT 3, Appendices B, C and F: funding, commitment and HTLC transactions byte for byte, signatures included.
//!
//! Every commitment of the appendices is built and checked by the local node and signed by its peer, who
//! builds the same one from his point of view. (Appendix D is with `secrets`, Appendix E with `keys`.)
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used)]

#[path = "support/pair.rs"]
mod pair;
#[path = "support/script.rs"]
mod script;

use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use bitcoin::{OutPoint, ScriptBuf, Transaction};
use millrace_channel::curve::{Curve, Serial};
use millrace_channel::keys::{ChannelKeys, ChannelSecrets, CommitmentKeys};
use millrace_channel::side::{Both, Side};
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::{Commitment, CommitmentHtlc, HtlcTx, HtlcTxKind, commit_fee, commitment, funding};
use millrace_wire::{CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId, Msat, Preimage, Sat};
use pair::{Pair, State};
use script::verify_tx;
use secp256k1::ecdsa::Signature;
use secp256k1::{PublicKey, SecretKey};

const COMMITMENT_POINT: &str = "025f7117a78150fe2ef97db7cfc83bd57b2e2c0d0dd25eaf467a4a1c2a45ce1486";
const NUMBER: CommitmentNumber = CommitmentNumber(42);

/// One case of Appendix C or F.
#[derive(Default)]
struct Case {
    name: String,
    balances: Both<Msat>,
    dust_limit: Sat,
    feerate: FeeratePerKw,
    base_fee: Option<Sat>,
    actual_fee: Option<Sat>,
    remote_signature: String,
    local_signature: Option<String>,
    commit_tx: String,
    htlcs: Vec<HtlcCase>,
}

#[derive(Default)]
struct HtlcCase {
    id: Option<HtlcId>,
    remote_signature: String,
    local_signature: Option<String>,
    tx: String,
}

fn secret(hex: &str) -> SecretKey {
    hex.parse().unwrap()
}

/// Appendix C's channel; what it does not use (the peer's delayed key) is arbitrary.
fn channel(format: CommitmentFormat, dust_limit: Sat) -> Pair {
    let local = ChannelKeys::from_parts(ChannelSecrets {
        funding: secret("30ff4956bbdd3222d44cc5e8a1261dab1e07957bdac5ae88fe3261ef321f3749"),
        revocation: secret(&"0a".repeat(32)),
        payment: secret(&"11".repeat(32)),
        delayed_payment: secret(&"33".repeat(32)),
        htlc: secret(&"11".repeat(32)),
        commitment_seed: [0; 32],
    });
    let remote = ChannelKeys::from_parts(ChannelSecrets {
        funding: secret("1552dfba4f6cf29a62a0af13c8d6981d36d0ef8d61ba10fb0fe90da7634d7e13"),
        revocation: secret(&"22".repeat(32)),
        payment: secret(&"44".repeat(32)),
        delayed_payment: secret(&"0b".repeat(32)),
        htlc: secret(&"44".repeat(32)),
        commitment_seed: [0; 32],
    });
    let mut pair = Pair::new(local, remote, format, Side::Local);
    let txid = "8984484a580b825b9972d7adb15050b3ab624ccd731946b3eeddb92f4e7ef6be".parse().unwrap();
    pair.terms.funding_outpoint = OutPoint { txid, vout: 0 };
    pair.terms.parties.local.dust_limit = dust_limit;
    pair.terms.parties.remote.to_self_delay = 144;
    pair
}

fn preimage(id: HtlcId) -> Preimage {
    // HTLCs 5 and 6 have the same one.
    Preimage::new([u8::try_from(id.0.min(5)).unwrap(); 32])
}

/// The HTLCs that Appendix C numbers 0 to 6.
fn appendix_htlc(id: u64) -> CommitmentHtlc {
    let (offered_by, amount, expiry) = match id {
        0 => (Side::Remote, 1_000_000, 500),
        1 => (Side::Remote, 2_000_000, 501),
        2 => (Side::Local, 2_000_000, 502),
        3 => (Side::Local, 3_000_000, 503),
        4 => (Side::Remote, 4_000_000, 504),
        5 => (Side::Local, 5_000_000, 506),
        6 => (Side::Local, 5_000_001, 505),
        _ => panic!("no HTLC {id}"),
    };
    CommitmentHtlc {
        id: HtlcId(id),
        offered_by,
        amount: Msat(amount),
        payment_hash: preimage(HtlcId(id)).hash(),
        cltv_expiry: CltvExpiry(expiry),
    }
}

fn state(case: &Case) -> State {
    let ids: &[u64] = match &case.name {
        name if name.contains("same amount and preimage") => &[1, 5, 6],
        name if name.starts_with("simple commitment tx with no HTLCs") => &[],
        _ => &[0, 1, 2, 3, 4],
    };
    State {
        side: Side::Local,
        number: NUMBER,
        feerate: case.feerate,
        balances: case.balances,
        htlcs: ids.iter().map(|id| appendix_htlc(*id)).collect(),
    }
}

fn der(signature: &Signature) -> String {
    hex::encode(signature.serialize_der())
}

/// The peer builds the same commitment and signs it and its HTLC transactions.
fn sign_as_the_peer(pair: &Pair, state: &State, keys: &CommitmentKeys, expected: &Commitment) -> Vec<Signature> {
    let (pair, state) = (pair.mirrored(), state.mirrored());
    let commitment = Commitment::build(&pair.terms, keys, &state.spec());
    assert_eq!(commitment.tx, expected.tx);
    let (mut jobs, mut signatures) = (Vec::new(), Vec::new());
    commitment.sign_jobs(&pair.terms, &pair.local, keys, &mut jobs);
    Serial.sign_all(&jobs, &mut signatures);
    signatures
}

fn check(format: CommitmentFormat, case: &Case) {
    let name = &case.name;
    let pair = channel(format, case.dust_limit);
    let terms = &pair.terms;
    let point: PublicKey = COMMITMENT_POINT.parse().unwrap();
    let keys = CommitmentKeys::of(terms, Side::Local, &point);
    let state = state(case);
    let commitment = Commitment::build(terms, &keys, &state.spec());

    assert_eq!(commitment.htlcs.len(), case.htlcs.len(), "{name}");
    assert_eq!(commitment::number_in(terms, &commitment.tx), Some(NUMBER), "{name}");
    if let Some(base_fee) = case.base_fee {
        assert_eq!(commit_fee(format, case.feerate, case.htlcs.len()), base_fee, "{name}");
    }
    if let Some(actual_fee) = case.actual_fee {
        assert_eq!(commitment.fee, actual_fee, "{name}");
    }

    let signatures = sign_as_the_peer(&pair, &state, &keys, &commitment);
    let (remote, remote_htlcs) = signatures.split_first().unwrap();
    assert_eq!(der(remote), case.remote_signature, "{name}");
    let mut jobs = Vec::new();
    commitment.verify_jobs(terms, &keys, remote, remote_htlcs, &mut jobs).unwrap();
    assert_eq!(Serial.verify_all(&jobs), Ok(()), "{name}");

    let local = commitment.sign(terms, &pair.local);
    if let Some(expected) = &case.local_signature {
        assert_eq!(der(&local), *expected, "{name}");
    }
    let signed = commitment.signed_tx(terms, &local, remote);
    assert_eq!(serialize_hex(&signed), case.commit_tx, "{name}");
    verify_tx(&signed, &[funding::output_of(terms)]).unwrap();

    let htlc_key = pair.local.htlc_key(&point);
    for ((htlc, signature), expected) in commitment.htlcs.iter().zip(remote_htlcs).zip(&case.htlcs) {
        assert_eq!(der(signature), expected.remote_signature, "{name}: HTLC {}", htlc.id);
        if let Some(id) = expected.id {
            assert_eq!(htlc.id, id, "{name}");
        }
        let htlc_tx = HtlcTx::build(terms, &keys, &commitment, htlc);
        let witness = match htlc_tx.kind {
            HtlcTxKind::Timeout => htlc_tx.timeout_witness(&htlc_tx.tx, 0, &htlc_key, signature),
            HtlcTxKind::Success => htlc_tx.success_witness(&htlc_tx.tx, 0, &htlc_key, signature, &preimage(htlc.id)),
        };
        if let Some(local) = &expected.local_signature {
            assert_eq!(hex::encode(&witness.to_vec()[2]), format!("{local}01"), "{name}: HTLC {}", htlc.id);
        }
        let mut tx = htlc_tx.tx.clone();
        tx.input[0].witness = witness;
        assert_eq!(serialize_hex(&tx), expected.tx, "{name}: HTLC {}", htlc.id);
        verify_tx(&tx, &[htlc_tx.prevout]).unwrap();
    }
}

/// The cases of Appendix C, from its lines `key: value` and `key = value`.
fn appendix_c() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for line in include_str!("vectors/commitment-appendixC.txt").lines() {
        let line = line.trim();
        if let Some(name) = line.strip_prefix("name: ") {
            cases.push(Case { name: name.to_owned(), dust_limit: Sat(546), ..Case::default() });
        }
        let Some(case) = cases.last_mut() else { continue };
        let Some((key, value)) = line.split_once(": ").or_else(|| line.split_once(" = ")) else { continue };
        match key {
            "to_local_msat" => case.balances.local = Msat(value.parse().unwrap()),
            "to_remote_msat" => case.balances.remote = Msat(value.parse().unwrap()),
            "local_feerate_per_kw" => case.feerate = FeeratePerKw(value.parse().unwrap()),
            "# base commitment transaction fee" => case.base_fee = Some(Sat(value.parse().unwrap())),
            "# actual commitment transaction fee" => case.actual_fee = Some(Sat(value.parse().unwrap())),
            "remote_signature" => case.remote_signature = value.to_owned(),
            "# local_signature" => case.local_signature = Some(value.to_owned()),
            "output commit_tx" => case.commit_tx = value.to_owned(),
            "remote_htlc_signature" => {
                case.htlcs.push(HtlcCase { remote_signature: value.to_owned(), ..HtlcCase::default() });
            }
            "# local_htlc_signature" => case.htlcs.last_mut().unwrap().local_signature = Some(value.to_owned()),
            _ if key.starts_with("htlc_success_tx") || key.starts_with("htlc_timeout_tx") => {
                let htlc = case.htlcs.last_mut().unwrap();
                let id = key.split(['#', ')']).nth(1).unwrap();
                htlc.id = Some(HtlcId(id.parse().unwrap()));
                htlc.tx = value.to_owned();
            }
            _ => {}
        }
    }
    cases
}

/// The cases of Appendix F. Its JSON has one `"key": value` a line, an HTLC's signature before its transaction and
/// the commitment's signature last, when the list of HTLCs is closed.
fn appendix_f() -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    let mut in_htlcs = false;
    for line in include_str!("vectors/anchors-appendixF.json").lines() {
        in_htlcs &= !line.trim().starts_with(']');
        let Some((key, value)) = line.trim().trim_end_matches(',').split_once(": ") else { continue };
        let value = value.trim_matches('"');
        if key == "\"Name\"" {
            cases.push(Case { name: value.to_owned(), ..Case::default() });
        }
        let case = cases.last_mut().unwrap();
        match key.trim_matches('"') {
            "LocalBalance" => case.balances.local = Msat(value.parse().unwrap()),
            "RemoteBalance" => case.balances.remote = Msat(value.parse().unwrap()),
            "DustLimitSatoshis" => case.dust_limit = Sat(value.parse().unwrap()),
            "FeePerKw" => case.feerate = FeeratePerKw(value.parse().unwrap()),
            "HtlcDescs" => in_htlcs = value == "[",
            "RemoteSigHex" if in_htlcs => {
                case.htlcs.push(HtlcCase { remote_signature: value.to_owned(), ..HtlcCase::default() });
            }
            "ResolutionTxHex" => case.htlcs.last_mut().unwrap().tx = value.to_owned(),
            "ExpectedCommitmentTxHex" => case.commit_tx = value.to_owned(),
            "RemoteSigHex" => case.remote_signature = value.to_owned(),
            _ => {}
        }
    }
    cases
}

#[test]
fn appendix_b_funding_output() {
    let pair = channel(CommitmentFormat::StaticRemotekey, Sat(546));
    let text = include_str!("vectors/funding-appendixB.txt");
    let value = |key: &str| text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap().trim();
    let key = |side: Side| pair.terms.party(side).basepoints.funding;
    assert_eq!(key(Side::Local).to_string(), value("local_funding_pubkey:"));
    assert_eq!(key(Side::Remote).to_string(), value("remote_funding_pubkey:"));
    let script = ScriptBuf::from_hex(value("# funding witness script =")).unwrap();
    assert_eq!(funding::witness_script(&pair.terms), script);

    let tx: Transaction = deserialize_hex(value("funding tx:")).unwrap();
    assert_eq!(tx.compute_txid().to_string(), value("# txid:"));
    let vout: usize = value("funding output:").parse().unwrap();
    let satoshis = Sat(value("funding satoshis:").parse().unwrap());
    assert_eq!(tx.output[vout], funding::output(&key(Side::Remote), &key(Side::Local), satoshis));
    assert_eq!(tx.output[vout], funding::output_of(&pair.terms));
}

#[test]
fn appendix_c_static_remotekey() {
    let cases = appendix_c();
    for case in &cases {
        check(CommitmentFormat::StaticRemotekey, case);
    }
    assert_eq!(cases.len(), 16);
    assert_eq!(cases.iter().map(|case| case.htlcs.len()).sum::<usize>(), 5 + 5 + 4 + 4 + 3 + 3 + 2 + 2 + 1 + 1 + 3);
    let compared = cases.iter().filter(|case| case.local_signature.is_some() && case.actual_fee.is_some()).count();
    assert_eq!(compared, 15);
}

#[test]
fn appendix_f_anchors() {
    let cases = appendix_f();
    for case in &cases {
        check(CommitmentFormat::Anchors, case);
    }
    assert_eq!(cases.len(), 9);
    assert_eq!(cases.iter().map(|case| case.htlcs.len()).sum::<usize>(), 5 + 4 + 2 + 1 + 3);
}

#[test]
fn appendix_c_with_one_satoshi_more_is_another_transaction() {
    let case = &appendix_c()[1];
    let pair = channel(CommitmentFormat::StaticRemotekey, case.dust_limit);
    let keys = CommitmentKeys::of(&pair.terms, Side::Local, &COMMITMENT_POINT.parse().unwrap());
    let mut state = state(case);
    let right = Commitment::build(&pair.terms, &keys, &state.spec());
    state.balances.local.0 += 1000;
    let wrong = Commitment::build(&pair.terms, &keys, &state.spec());
    assert_ne!(right.tx, wrong.tx);
    let signatures = sign_as_the_peer(&pair, &state, &keys, &wrong);
    let mut jobs = Vec::new();
    right.verify_jobs(&pair.terms, &keys, &signatures[0], &signatures[1..], &mut jobs).unwrap();
    assert_eq!(Serial.verify_all(&jobs), Err(0));
}
