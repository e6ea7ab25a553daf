#![allow(clippy::unwrap_used)]

use bitcoin::consensus;
use millrace_channel::terms::CommitmentFormat;
use millrace_channel::tx::Commitment;

use super::*;
use crate::samples::{Sample, wallet};

const FORMATS: [CommitmentFormat; 2] = [CommitmentFormat::Anchors, CommitmentFormat::StaticRemotekey];

fn sealed(sample: &Sample, commitment: &Commitment) -> Sealed {
    let vout = commitment.to_local.unwrap();
    let value = Sat::from(commitment.output(vout).value);
    let secret = sample.secret(commitment.number.0);
    seal(&sample.registration(), &secret, &commitment.txid, vout, value).unwrap()
}

#[test]
fn opened_with_its_commitment_every_step_is_valid_and_pays_more() {
    for format in FORMATS {
        let sample = Sample::new(1, format);
        let commitment = sample.commitment(3, 2_000_000, 2, 2);
        let Sealed { hint, bytes } = sealed(&sample, &commitment);
        assert_eq!(hint, hint_of(&commitment.txid));
        assert_eq!(hint.0, commitment.txid.as_byte_array()[..16]);
        let opened = open(&commitment.tx, &bytes).unwrap();
        let to_local = commitment.output(commitment.to_local.unwrap());
        let mut fees = Vec::new();
        for step in 0..LADDER.len() {
            let tx = opened.penalty(step).unwrap();
            let raw = consensus::serialize(&tx);
            let value = to_local.value.to_sat();
            bitcoinconsensus::verify(to_local.script_pubkey.as_bytes(), value, &raw, 0).unwrap();
            assert_eq!(tx.output[0].script_pubkey, wallet(7));
            fees.push(value - tx.output[0].value.to_sat());
            assert!(fees[step] >= LADDER[step].fee_floor(tx.weight()).0);
        }
        assert!(fees.windows(2).all(|pair| pair[0] * 3 < pair[1]), "{fees:?}");
        assert_eq!(opened.penalty(LADDER.len()), None);
    }
}

#[test]
fn all_are_of_one_size_and_none_holds_anything_readable() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    for (number, to_local) in [(0, 5_000), (1, 2_000_000), (2, 9_000_000)] {
        let commitment = sample.commitment(number, to_local, 0, 0);
        let Sealed { bytes, .. } = sealed(&sample, &commitment);
        assert_eq!(bytes.len(), SEALED_BYTES);
        let sweep = wallet(7);
        let shows = |needle: &[u8]| bytes.windows(needle.len()).any(|window| window == needle);
        assert!(!shows(&sweep.as_bytes()[2..]) && !shows(&[0; 16]));
    }
}

#[test]
fn another_commitment_or_any_flipped_bit_opens_nothing() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let commitment = sample.commitment(3, 2_000_000, 0, 0);
    let Sealed { bytes, .. } = sealed(&sample, &commitment);
    let other = sample.commitment(2, 2_000_000, 0, 0);
    assert_eq!(open(&other.tx, &bytes), Err(BadSealed::Cipher));
    for at in 0..SEALED_BYTES {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        assert_eq!(open(&commitment.tx, &damaged), Err(BadSealed::Cipher), "byte {at}");
    }
    for length in [0, SEALED_BYTES - 1, SEALED_BYTES + 1] {
        assert_eq!(open(&commitment.tx, &vec![0; length]), Err(BadSealed::Length(length)));
    }
}

#[test]
fn whatever_a_client_seals_is_checked_when_it_is_opened() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let commitment = sample.commitment(3, 2_000_000, 0, 0);
    let (txid, hint) = (commitment.txid, hint_of(&commitment.txid));
    // Content that is well sealed, and nonsense.
    for (content, expected) in [
        (vec![0; CONTENT_BYTES], BadSealed::Content),
        (vec![0xff; CONTENT_BYTES], BadSealed::Content),
        ([vec![1], vec![0xff; CONTENT_BYTES - 1]].concat(), BadSealed::Content),
    ] {
        assert_eq!(open(&commitment.tx, &encrypt(&txid, hint, &content)), Err(expected));
    }
    // A penalty for another value: its signatures do not fit.
    let vout = commitment.to_local.unwrap();
    let wrong = seal(&sample.registration(), &sample.secret(3), &txid, vout, Sat(1_999_000)).unwrap();
    assert_eq!(open(&commitment.tx, &wrong.bytes), Err(BadSealed::Signature(0)));
    // With the secret of another commitment it takes no output.
    let wrong = seal(&sample.registration(), &sample.secret(2), &txid, vout, Sat(2_000_000)).unwrap();
    assert_eq!(open(&commitment.tx, &wrong.bytes), Err(BadSealed::NoOutput));
}

#[test]
fn too_little_to_take_is_not_sealed() {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let txid = sample.commitment(3, 2_000_000, 0, 0).txid;
    let of = |value| seal(&sample.registration(), &sample.secret(3), &txid, 0, Sat(value));
    assert_eq!(of(0), None);
    assert_eq!(of(294 + 400), None);
    assert!(of(2_000).is_some());
    assert_eq!(seal(&sample.registration(), &[0; 32], &txid, 0, Sat(2_000_000)), None);
}

/// Opens what somebody has sealed by hand: a penalty for an output with this script, signed by its key.
fn by_hand(found: &Script, sweep: &ScriptBuf) -> Result<Opened, BadSealed> {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let mut tx = sample.commitment(3, 2_000_000, 0, 0).tx;
    let value = Sat(1_000_000);
    tx.output.push(TxOut { value: value.to_amount(), script_pubkey: found.to_p2wsh() });
    let txid = tx.compute_txid();
    let outpoint = OutPoint { txid, vout: u32::try_from(tx.output.len() - 1).unwrap() };
    let mut content = vec![VERSION];
    put_script(&mut content, found, SCRIPT_BYTES_MAX);
    put_script(&mut content, sweep, SWEEP_BYTES_MAX);
    for feerate in LADDER {
        let penalty = unsigned(outpoint, value, found, sweep, feerate).unwrap();
        let digest = p2wsh_digest(&penalty, 0, found, value, EcdsaSighashType::All);
        content.extend_from_slice(&millrace_channel::curve::sign(&digest, &key()).serialize_compact());
    }
    content.resize(CONTENT_BYTES, 0);
    open(&tx, &encrypt(&txid, hint_of(&txid), &content))
}

fn key() -> secp256k1::SecretKey {
    secp256k1::SecretKey::from_slice(&[3; 32]).unwrap()
}

#[test]
fn delay_is_read_from_every_script_that_is_to_local_to_the_byte() {
    let (revocation, delayed) = (key().public_key(secp256k1::SECP256K1), Sample::new(1, CommitmentFormat::Anchors));
    let delayed = delayed.remote.basepoints().delayed_payment;
    for delay in [0, 1, 16, 17, 127, 128, 144, 255, 256, 2_016, 32_767, 32_768, 65_535] {
        let found = script::to_local(&revocation, delay, &delayed);
        assert_eq!(by_hand(&found, &wallet(7)).unwrap().delay(), delay);
        let last = ScriptBuf::from_bytes([&found.as_bytes()[..found.len() - 1], &[0x51]].concat());
        assert_eq!(by_hand(&last, &wallet(7)), Err(BadSealed::Content), "{delay}");
        assert_eq!(by_hand(&found, &ScriptBuf::from_bytes(vec![0x6a; 22])), Err(BadSealed::Content), "{delay}");
    }
}
