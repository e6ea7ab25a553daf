#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

/// One of each, with its encoding.
fn all() -> Vec<(FailureMessage, String)> {
    use FailureMessage as F;
    let hash = [0xab; 32];
    let hashed = |code: &str| format!("{code}{}", "ab".repeat(32));
    let update = || vec![1, 2, 2];
    vec![
        (F::TemporaryNodeFailure, "2002".into()),
        (F::PermanentNodeFailure, "6002".into()),
        (F::RequiredNodeFeatureMissing, "6003".into()),
        (F::InvalidOnionVersion { sha256_of_onion: hash }, hashed("c004")),
        (F::InvalidOnionHmac { sha256_of_onion: hash }, hashed("c005")),
        (F::InvalidOnionKey { sha256_of_onion: hash }, hashed("c006")),
        (F::TemporaryChannelFailure { channel_update: update() }, "10070003010202".into()),
        (F::PermanentChannelFailure, "4008".into()),
        (F::RequiredChannelFeatureMissing, "4009".into()),
        (F::UnknownNextPeer, "400a".into()),
        (
            F::AmountBelowMinimum { amount: Msat(0x0102), channel_update: update() },
            "100b00000000000001020003010202".into(),
        ),
        (F::FeeInsufficient { amount: Msat(0x0102), channel_update: vec![] }, "100c00000000000001020000".into()),
        (F::IncorrectCltvExpiry { expiry: CltvExpiry(0x0304), channel_update: vec![] }, "100d000003040000".into()),
        (F::ExpiryTooSoon { channel_update: vec![] }, "100e0000".into()),
        (
            F::IncorrectOrUnknownPaymentDetails { amount: Msat(100), height: BlockHeight(800_000) },
            "400f0000000000000064000c3500".into(),
        ),
        (F::FinalIncorrectCltvExpiry { expiry: CltvExpiry(0x0304) }, "001200000304".into()),
        (F::FinalIncorrectHtlcAmount { incoming: Msat(0x0102) }, "00130000000000000102".into()),
        (F::ChannelDisabled { flags: 0x0506, channel_update: update() }, "101405060003010202".into()),
        (F::ExpiryTooFar, "0015".into()),
        (F::InvalidOnionPayload { kind: 0xfd, offset: 9 }, "4016fd00fd0009".into()),
        (F::MppTimeout, "0017".into()),
        (F::InvalidOnionBlinding { sha256_of_onion: hash }, hashed("c018")),
        (F::Unknown { code: 0x1234, data: vec![5, 6] }, "12340506".into()),
    ]
}

#[test]
fn every_message_has_bolt_4s_bytes_and_comes_back() {
    for (message, bytes) in all() {
        assert_eq!(hex::encode(message.encode()), bytes, "{message:?}");
        assert_eq!(FailureMessage::decode(&message.encode()), Some(message));
    }
}

#[test]
fn records_behind_the_fields_are_skipped() {
    for (message, _) in all() {
        if matches!(message, FailureMessage::Unknown { .. }) {
            continue;
        }
        let mut bytes = message.encode();
        bytes.extend_from_slice(&[0xfd, 0x84, 0xd1, 1, 7]);
        assert_eq!(FailureMessage::decode(&bytes), Some(message));
    }
}

#[test]
fn data_cut_short_keeps_the_code() {
    for (message, _) in all() {
        let bytes = message.encode();
        for cut in 2..bytes.len() {
            let decoded = FailureMessage::decode(&bytes[..cut]).unwrap();
            assert_eq!(decoded, FailureMessage::Unknown { code: message.code(), data: bytes[2..cut].to_vec() });
            assert_eq!(decoded.is_permanent(), message.is_permanent());
        }
        assert_eq!(FailureMessage::decode(&bytes[..1]), None);
    }
    assert_eq!(FailureMessage::decode(&[]), None);
}

#[test]
fn malformed_codes_become_their_messages() {
    let hash = [3; 32];
    for code in [
        code::INVALID_ONION_VERSION,
        code::INVALID_ONION_HMAC,
        code::INVALID_ONION_KEY,
        code::INVALID_ONION_BLINDING,
        code::BADONION | 99,
    ] {
        let message = FailureMessage::from_malformed(code, hash);
        assert_eq!(message.code(), code);
        assert_eq!(message.encode()[2..], hash);
    }
}

#[test]
fn only_messages_of_channels_carry_an_update() {
    for (message, bytes) in all() {
        assert_eq!(message.channel_update().is_empty(), !bytes.ends_with("010202"), "{message:?}");
    }
}

#[test]
fn words_are_for_people() {
    for (message, _) in all() {
        let words = message.to_string();
        assert!(words.len() > 12, "{words}");
        assert!(!words.contains('_') || matches!(message, FailureMessage::Unknown { .. }), "{words}");
        assert_eq!(code::name(message.code()).contains("does not name"), message.code() == 0x1234);
    }
}

#[test]
fn stored_messages_come_back() {
    for (message, _) in all() {
        let stored = postcard::to_stdvec(&message).unwrap();
        assert_eq!(postcard::from_bytes::<FailureMessage>(&stored).unwrap(), message);
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        if let Some(message) = FailureMessage::decode(&bytes) {
            let again = FailureMessage::decode(&message.encode());
            prop_assert_eq!(again, Some(message));
        }
    }
}
