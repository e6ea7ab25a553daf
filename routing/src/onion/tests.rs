#![allow(clippy::unwrap_used)]

use bitcoin::hashes::{Hash as _, sha256};
use millrace_wire::{BlockHeight, CltvExpiry, Msat, PaymentSecret, Preimage, ShortChannelId};
use proptest::prelude::*;
use secp256k1::SECP256K1;

use super::*;
use crate::cipher::SharedSecret;
use crate::failure::{FailureMessage, code};

const HASH: PaymentHash = PaymentHash([0x42; 32]);
const HEIGHT: BlockHeight = BlockHeight(800_000);
const AMOUNT: Msat = Msat(50_000);
const EXPIRY: CltvExpiry = CltvExpiry(800_042);

fn key(byte: u8) -> SecretKey {
    SecretKey::from_slice(&[byte; 32]).unwrap()
}

fn node(byte: u8) -> PublicKey {
    key(byte).public_key(SECP256K1)
}

fn final_payload() -> FinalPayload {
    FinalPayload::new(AMOUNT, EXPIRY, PaymentSecret::new([7; 32]), Some(vec![1, 2, 3]))
}

/// Node 1 alone.
fn one_hop() -> BuiltOnion {
    build_final(final_payload())
}

fn build_final(payload: FinalPayload) -> BuiltOnion {
    build(&key(0x41), &[Hop { node_id: node(1), payload: Payload::Final(payload) }], &HASH).unwrap()
}

/// Nodes 1, 2, 3 … up to `hops`.
fn route(hops: u8) -> Vec<Hop> {
    let forward = |index: u8| {
        Payload::Forward(ForwardPayload {
            next: ShortChannelId(u64::from(index)),
            amount: Msat(50_000 + u64::from(hops - index)),
            expiry: CltvExpiry(800_042 + u32::from(hops - index)),
        })
    };
    let payload = |index: u8| if index == hops { Payload::Final(final_payload()) } else { forward(index) };
    (1..=hops).map(|index| Hop { node_id: node(index), payload: payload(index) }).collect()
}

fn incoming(packet: &OnionPacket) -> Incoming<'_> {
    Incoming { packet, payment_hash: &HASH, amount: AMOUNT, cltv_expiry: EXPIRY, height: HEIGHT, path_key: None }
}

fn malformed_code(packet: &OnionPacket, incoming: &Incoming<'_>) -> u16 {
    let Err(PeelFault::Malformed { sha256_of_onion, failure_code }) = peel(&key(1), incoming) else {
        panic!("peeled");
    };
    assert_eq!(sha256_of_onion, sha256::Hash::hash(&packet.0).to_byte_array());
    failure_code
}

fn failure(incoming: &Incoming<'_>) -> FailureMessage {
    match peel(&key(1), incoming) {
        Err(PeelFault::Fail { failure, .. }) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_hop_reads_what_was_sent() {
    let onion = one_hop();
    let peeled = peel(&key(1), &incoming(&onion.packet)).unwrap();
    assert_eq!(peeled.shared_secret, onion.shared_secrets[0]);
    let expected = Final {
        amount_to_forward: AMOUNT,
        outgoing_cltv: EXPIRY,
        total_msat: AMOUNT,
        payment_secret: Some(PaymentSecret::new([7; 32])),
        payment_metadata: Some(vec![1, 2, 3]),
        keysend_preimage: None,
        custom: Vec::new(),
    };
    assert_eq!(peeled.hop, PeeledHop::Final(expected));
}

#[test]
fn every_hop_of_a_route_reads_its_own() {
    let hops = route(5);
    let onion = build(&key(0x41), &hops, &HASH).unwrap();
    let mut packet = onion.packet;
    for (index, hop) in (1u8..=5).zip(&hops) {
        let peeled = peel(&key(index), &incoming(&packet)).unwrap();
        assert_eq!(peeled.shared_secret, onion.shared_secrets[usize::from(index) - 1]);
        match (peeled.hop, hop.payload.clone()) {
            (PeeledHop::Forward(forward), Payload::Forward(expected)) => {
                let ForwardPayload { next, amount, expiry } = expected;
                assert_eq!((forward.next, forward.amount, forward.expiry), (next, amount, expiry));
                packet = forward.packet;
            }
            (PeeledHop::Final(last), Payload::Final(expected)) => assert_eq!(last, Final::from(expected)),
            (peeled, _) => panic!("hop {index}: {peeled:?}"),
        }
    }
    let nodes: Vec<PublicKey> = hops.iter().map(|hop| hop.node_id).collect();
    assert_eq!(shared_secrets(&key(0x41), &nodes).unwrap(), onion.shared_secrets);
}

mod building {
    use super::*;

    #[test]
    fn twenty_hops_and_more_until_1300_bytes_are_full() {
        let mut most = 0;
        for hops in 1..=40 {
            match build(&key(0x41), &route(hops), &HASH) {
                Ok(onion) => {
                    assert_eq!(onion.shared_secrets.len(), usize::from(hops));
                    most = hops;
                }
                Err(OnionError::TooLong { hops: found, bytes }) => {
                    assert!(bytes > 1300);
                    assert_eq!(found, usize::from(hops));
                }
                Err(fault) => panic!("{fault}"),
            }
        }
        assert!((20..27).contains(&most), "{most}");
    }

    #[test]
    fn a_payload_that_fills_the_onion_to_the_last_byte() {
        let with = |bytes: usize| {
            let payload = FinalPayload { payment_metadata: Some(vec![5; bytes]), ..final_payload() };
            build(&key(0x41), &[Hop { node_id: node(1), payload: Payload::Final(payload) }], &HASH)
        };
        let fits = (0..1300).rev().find(|bytes| with(*bytes).is_ok()).unwrap();
        assert_eq!(with(fits + 1), Err(OnionError::TooLong { hops: 1, bytes: 1301 }));
        let PeeledHop::Final(last) = peel(&key(1), &incoming(&with(fits).unwrap().packet)).unwrap().hop else {
            panic!("not final");
        };
        assert_eq!(last.payment_metadata, Some(vec![5; fits]));
    }

    #[test]
    fn refuses_no_hops_and_misplaced_payloads() {
        assert_eq!(build(&key(0x41), &[], &HASH), Err(OnionError::NoHops));
        let mut hops = route(3);
        hops.swap(1, 2);
        assert_eq!(build(&key(0x41), &hops, &HASH), Err(OnionError::Misplaced { hop: 1, hops: 3 }));
        hops.swap(1, 2);
        hops.pop();
        assert_eq!(build(&key(0x41), &hops, &HASH), Err(OnionError::Misplaced { hop: 1, hops: 2 }));
    }

    #[test]
    fn refuses_custom_types_that_are_reserved_or_repeated() {
        let with = |types: &[u64], keysend: bool| {
            let custom = types.iter().map(|kind| (*kind, vec![1])).collect();
            let keysend_preimage = keysend.then(|| Preimage::new([1; 32]));
            let payload = Payload::Final(FinalPayload { custom, keysend_preimage, ..final_payload() });
            build(&key(0x41), &[Hop { node_id: node(1), payload }], &HASH).map(|_| ())
        };
        assert_eq!(with(&[65_537, 65_536], false), Ok(()));
        assert_eq!(with(&[65_535], false), Err(OnionError::CustomType { kind: 65_535 }));
        assert_eq!(with(&[70_001, 70_001], false), Err(OnionError::CustomType { kind: 70_001 }));
        assert_eq!(with(&[5_482_373_484], true), Err(OnionError::CustomType { kind: 5_482_373_484 }));
    }
}

mod peeling {
    use super::*;

    #[test]
    fn keysend_and_odd_custom_records_arrive() {
        let onion = build_final(FinalPayload {
            payment_secret: None,
            keysend_preimage: Some(Preimage::new([9; 32])),
            custom: vec![(5_482_373_487, vec![2]), (65_537, vec![1])],
            ..final_payload()
        });
        let PeeledHop::Final(last) = peel(&key(1), &incoming(&onion.packet)).unwrap().hop else {
            panic!("not final");
        };
        assert_eq!(last.keysend_preimage, Some(Preimage::new([9; 32])));
        assert_eq!(last.custom, [(65_537, vec![1]), (5_482_373_487, vec![2])]);
        assert_eq!((last.payment_secret, last.total_msat), (None, AMOUNT));
    }

    #[test]
    fn an_even_custom_record_is_not_understood() {
        let onion = build_final(FinalPayload { custom: vec![(65_536, vec![1])], ..final_payload() });
        let FailureMessage::InvalidOnionPayload { kind, offset } = failure(&incoming(&onion.packet)) else {
            panic!("another failure");
        };
        assert_eq!(kind, 65_536);
        assert!(offset > 40);
    }

    #[test]
    fn a_version_that_is_not_0() {
        let mut packet = one_hop().packet;
        packet.0[0] = 1;
        assert_eq!(malformed_code(&packet, &incoming(&packet)), code::INVALID_ONION_VERSION);
    }

    #[test]
    fn an_ephemeral_key_that_is_no_key() {
        let mut packet = one_hop().packet;
        packet.0[1] = 5;
        assert_eq!(malformed_code(&packet, &incoming(&packet)), code::INVALID_ONION_KEY);
        packet.0[1..34].fill(0);
        assert_eq!(malformed_code(&packet, &incoming(&packet)), code::INVALID_ONION_KEY);
    }

    #[test]
    fn one_changed_bit_anywhere_behind_the_key() {
        let onion = one_hop();
        for at in (34..1366).step_by(61).chain([1365]) {
            let mut packet = onion.packet.clone();
            packet.0[at] ^= 1;
            assert_eq!(malformed_code(&packet, &incoming(&packet)), code::INVALID_ONION_HMAC, "byte {at}");
        }
    }

    #[test]
    fn an_onion_of_another_payment_or_for_another_node() {
        let onion = one_hop();
        let other = Incoming { payment_hash: &PaymentHash([0x43; 32]), ..incoming(&onion.packet) };
        assert_eq!(malformed_code(&onion.packet, &other), code::INVALID_ONION_HMAC);
        let fault = peel(&key(2), &incoming(&onion.packet)).unwrap_err();
        assert!(matches!(fault, PeelFault::Malformed { failure_code: code::INVALID_ONION_HMAC, .. }));
    }

    #[test]
    fn a_path_key_means_blinding_which_is_not_understood() {
        let onion = one_hop();
        let path_key = node(9);
        let blinded = Incoming { path_key: Some(&path_key), ..incoming(&onion.packet) };
        assert_eq!(malformed_code(&onion.packet, &blinded), code::INVALID_ONION_BLINDING);
    }

    #[test]
    fn one_msat_less_than_the_onion_says() {
        let onion = one_hop();
        let short = Incoming { amount: Msat(AMOUNT.0 - 1), ..incoming(&onion.packet) };
        assert_eq!(failure(&short), FailureMessage::FinalIncorrectHtlcAmount { incoming: Msat(AMOUNT.0 - 1) });
        let more = Incoming { amount: Msat(AMOUNT.0 + 1), ..incoming(&onion.packet) };
        assert!(peel(&key(1), &more).is_ok());
    }

    #[test]
    fn one_block_less_than_the_onion_says() {
        let onion = one_hop();
        let soon = CltvExpiry(EXPIRY.0 - 1);
        let short = Incoming { cltv_expiry: soon, ..incoming(&onion.packet) };
        assert_eq!(failure(&short), FailureMessage::FinalIncorrectCltvExpiry { expiry: soon });
        let later = Incoming { cltv_expiry: CltvExpiry(EXPIRY.0 + 1), ..incoming(&onion.packet) };
        assert!(peel(&key(1), &later).is_ok());
    }

    #[test]
    fn a_final_expiry_too_near_to_be_claimed() {
        let onion = one_hop();
        let at = |left: u32| Incoming { height: BlockHeight(EXPIRY.0 - left), ..incoming(&onion.packet) };
        assert!(peel(&key(1), &at(22)).is_ok());
        let expected =
            FailureMessage::IncorrectOrUnknownPaymentDetails { amount: AMOUNT, height: BlockHeight(EXPIRY.0 - 21) };
        assert_eq!(failure(&at(21)), expected);
        let never = Incoming { height: BlockHeight(u32::MAX), ..incoming(&onion.packet) };
        assert!(matches!(failure(&never), FailureMessage::IncorrectOrUnknownPaymentDetails { .. }));
    }

    #[test]
    fn a_failure_can_be_answered_and_the_sender_reads_it() {
        let onion = one_hop();
        let short = Incoming { amount: Msat(1), ..incoming(&onion.packet) };
        let Err(PeelFault::Fail { failure, shared_secret }) = peel(&key(1), &short) else {
            panic!("no failure");
        };
        let reason = crate::failure::encrypt(&shared_secret, &failure);
        let decoded = crate::failure::decode(&onion.shared_secrets, &reason).unwrap();
        assert_eq!((decoded.hop, decoded.message), (0, failure));
    }
}

/// Payloads that no sender of ours writes, inside genuine onions.
mod payloads {
    use super::*;

    fn onion_of(payloads: &[&str]) -> Box<OnionPacket> {
        let layers: Vec<sphinx::Layer> = (1..)
            .zip(payloads)
            .map(|(index, payload)| sphinx::Layer { node_id: node(index), payload: hex::decode(payload).unwrap() })
            .collect();
        sphinx::build(&key(0x41), &layers, &HASH.0).unwrap().packet
    }

    fn fault(payloads: &[&str]) -> (u64, u16) {
        match failure(&incoming(&onion_of(payloads))) {
            FailureMessage::InvalidOnionPayload { kind, offset } => (kind, offset),
            other => panic!("{other:?}"),
        }
    }

    /// `payment_data`: 32 bytes of secret and the total.
    fn data() -> String {
        format!("0822{}c350", "07".repeat(32))
    }

    #[test]
    fn final_with_everything_it_needs() {
        let payload = format!("0202c35004030c352a{}", data());
        assert!(peel(&key(1), &incoming(&onion_of(&[&payload]))).is_ok());
    }

    #[test]
    fn final_without_amount_or_expiry() {
        assert_eq!(fault(&[&format!("04030c352a{}", data())]), (2, 42));
        assert_eq!(fault(&[&format!("0202c350{}", data())]), (4, 41));
    }

    #[test]
    fn final_that_names_a_channel_is_somebody_elses() {
        assert_eq!(fault(&["0202c35004030c352a06080000000000000001"]), (6, 10));
    }

    /// A forward that lacks nothing, 19 bytes long.
    const FORWARD: &str = "0202c35004030c352a06080000000000000001";

    #[test]
    fn forward_without_amount_expiry_or_channel() {
        assert_eq!(fault(&["04030c352a06080000000000000001", "0202c350"]), (2, 16));
        assert_eq!(fault(&["0202c35006080000000000000001", "0202c350"]), (4, 15));
        assert_eq!(fault(&["0202c35004030c352a", "0202c350"]), (6, 10));
    }

    #[test]
    fn forward_with_what_only_a_recipient_is_told() {
        assert!(peel(&key(1), &incoming(&onion_of(&[FORWARD, "0202c350"]))).is_ok());
        let metadata = "1003010203".to_string();
        for (kind, record) in [(8, data()), (16, metadata), (5_482_373_484, preimage(32))] {
            assert_eq!(fault(&[&format!("{FORWARD}{record}"), "0202c350"]), (kind, 20));
        }
    }

    /// `keysend_preimage`, of any length.
    fn preimage(length: usize) -> String {
        format!("ff0000000146c6616c{length:02x}{}", "09".repeat(length))
    }

    #[test]
    fn values_longer_or_shorter_than_their_type() {
        let of_final = |record: &str| fault(&[&format!("0202c35004030c352a{record}")]);
        for length in [31, 33] {
            assert_eq!(of_final(&preimage(length)), (5_482_373_484, 10));
        }
        let secret = "07".repeat(32);
        assert_eq!(of_final(&format!("081f{}", "07".repeat(31))), (8, 10));
        assert_eq!(of_final(&format!("0823{secret}00c350")), (8, 10), "a total that is not minimal");
        assert_eq!(of_final(&format!("0829{secret}{}", "01".repeat(9))), (8, 10), "a total of nine bytes");
        let of_forward = |record: &str| fault(&[&format!("0202c35004030c352a{record}"), "0202c350"]);
        assert_eq!(of_forward("060700000000000001"), (6, 10));
        assert_eq!(of_forward("0609000000000000000100"), (6, 10));
    }

    #[test]
    fn types_that_do_not_ascend_or_come_twice() {
        assert_eq!(fault(&["04030c352a0202c350"]), (2, 6));
        assert_eq!(fault(&["0202c3500202c350"]), (2, 5));
    }

    #[test]
    fn unknown_even_types_and_those_of_blinded_routes() {
        assert_eq!(fault(&["0202c35004030c352a0a0101"]), (10, 10));
        assert_eq!(fault(&["0202c35004030c352a0c0101"]), (12, 10));
        assert_eq!(fault(&["0202c35004030c352a1e00"]), (30, 10));
    }

    #[test]
    fn unknown_odd_types_are_skipped_and_kept_from_65536_on() {
        let onion = onion_of(&["0202c35004030c352a1f0101fdffff0102fe000100010103"]);
        let PeeledHop::Final(last) = peel(&key(1), &incoming(&onion)).unwrap().hop else { panic!("not final") };
        assert_eq!(last.custom, [(65_537, vec![3])]);
    }

    #[test]
    fn numbers_that_are_not_minimal_or_too_long() {
        assert_eq!(fault(&["020300c35004030c352a"]), (2, 1));
        assert_eq!(fault(&["0202c35004050101010101"]), (4, 5));
        assert_eq!(fault(&["0209010101010101010101"]), (2, 1));
        assert_eq!(fault(&["fd000202c350"]), (0, 1));
    }

    #[test]
    fn records_cut_short() {
        assert_eq!(fault(&["0205c350"]), (2, 1));
        assert_eq!(fault(&["0202c35004"]), (4, 5));
        assert_eq!(fault(&["02ffffffffffffffffff"]), (2, 1));
    }

    #[test]
    fn lengths_of_the_older_format_or_beyond_the_onion() {
        for length in [&[0][..], &[1], &[0xfd, 0x04, 0xf2], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]] {
            let onion = build_raw(length);
            assert_eq!(
                failure(&incoming(&onion)),
                FailureMessage::InvalidOnionPayload { kind: 0, offset: 0 },
                "{length:?}"
            );
        }
    }

    /// An onion for node 1 whose routing info begins with `clear` and is otherwise zeros.
    fn build_raw(clear: &[u8]) -> Box<OnionPacket> {
        use crate::cipher::Label;
        let secret = SharedSecret::between(&node(1), &key(0x41));
        let mut packet = Box::new(OnionPacket([0; 1366]));
        packet.0[1..34].copy_from_slice(&node(0x41).serialize());
        packet.0[34..34 + clear.len()].copy_from_slice(clear);
        secret.key(Label::Rho).apply_stream(&mut packet.0[34..1334]);
        let mac = secret.key(Label::Mu).hmac(&[&packet.0[34..1334], &HASH.0]);
        packet.0[1334..].copy_from_slice(&mac);
        packet
    }

    proptest! {
        #[test]
        fn arbitrary_clear_text_never_panics(clear in prop::collection::vec(any::<u8>(), 1300)) {
            let onion = build_raw(&clear);
            let _ = peel(&key(1), &incoming(&onion));
        }

        #[test]
        fn arbitrary_records_never_panic(
            records in prop::collection::vec((0u64..40, prop::collection::vec(any::<u8>(), 0..40)), 0..12)
        ) {
            let mut stream = Vec::new();
            for (kind, value) in &records {
                put_bigsize(*kind, &mut stream);
                put_bigsize(value.len() as u64, &mut stream);
                stream.extend_from_slice(value);
            }
            let mut clear = Vec::new();
            put_bigsize(stream.len() as u64, &mut clear);
            clear.extend_from_slice(&stream);
            let onion = build_raw(&clear);
            let _ = peel(&key(1), &incoming(&onion));
        }
    }
}

proptest! {
    #[test]
    fn arbitrary_packets_never_panic(noise in prop::collection::vec(any::<u8>(), 1366), version in 0u8..2) {
        let mut packet = OnionPacket(noise.try_into().unwrap());
        packet.0[0] = version;
        let _ = malformed_code(&packet, &incoming(&packet));
        packet.0[1..34].copy_from_slice(&node(7).serialize());
        let expected = if version == 0 { code::INVALID_ONION_HMAC } else { code::INVALID_ONION_VERSION };
        prop_assert_eq!(malformed_code(&packet, &incoming(&packet)), expected);
    }
}
