//! Rules that hold for every message: it comes back as it went, half of it is an error, and what is appended is
//! an extension.

use std::collections::BTreeSet;

use millrace_wire::message::{FIRST_CUSTOM_TYPE, MESSAGE_BYTES_MAX};
use millrace_wire::{ChannelId, Custom, DecodeError, Decoded, EncodeError, Error, Init, Message, Ping, Shutdown};
use proptest::prelude::*;

use crate::samples::every_message;

pub(crate) fn encode(message: &Message) -> Vec<u8> {
    let mut out = Vec::new();
    message.encode(&mut out).unwrap();
    out
}

pub(crate) fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    match Message::decode_with(bytes, |_| true)? {
        Decoded::Message(message) => Ok(message),
        Decoded::Ignored { type_number } => panic!("type {type_number} was ignored"),
    }
}

/// Whatever is understood is given back bit for bit.
fn assert_error_or_canonical(bytes: &[u8]) {
    if let Ok(message) = decode(bytes) {
        assert_eq!(encode(&message), bytes, "{message:?}");
    }
}

fn is_verbatim(message: &Message) -> bool {
    use Message::{ChannelAnnouncement, ChannelUpdate, NodeAnnouncement};
    matches!(message, ChannelAnnouncement(_) | NodeAnnouncement(_) | ChannelUpdate(_))
}

proptest! {
    #[test]
    fn every_message_comes_back_as_it_went(seed: u64) {
        for message in every_message(seed) {
            let bytes = encode(&message);
            prop_assert_eq!(decode(&bytes).unwrap(), message);
        }
    }
}

#[test]
fn samples_hold_every_kind_once() {
    let all = every_message(0);
    let types: BTreeSet<u16> = all.iter().map(Message::type_number).collect();
    let names: BTreeSet<&str> = all.iter().map(Message::name).collect();
    assert_eq!((all.len(), types.len(), names.len()), (51, 51, 51));
    let known = (0..FIRST_CUSTOM_TYPE).filter(|number| {
        let read = Message::decode(&number.to_be_bytes());
        matches!(read, Err(DecodeError::Field { .. }))
    });
    assert_eq!(known.count(), 50);
}

#[test]
fn a_message_cut_at_any_byte_is_an_error_or_a_shorter_message() {
    for seed in 0..12 {
        for message in every_message(seed) {
            let bytes = encode(&message);
            for cut in 0..bytes.len() {
                assert_error_or_canonical(&bytes[..cut]);
            }
            assert_eq!(Message::decode(&bytes[..1]), Err(DecodeError::NoType { len: 1 }));
        }
    }
}

/// BOLT 1: behind the known fields of any message stands a TLV stream, odd types of which are passed over.
#[test]
fn what_is_appended_is_an_extension() {
    for seed in 0..12 {
        for message in every_message(seed) {
            if matches!(message, Message::Custom(_)) || is_verbatim(&message) {
                continue;
            }
            let bytes = encode(&message);
            let with = |extension: &[u8]| decode(&[&bytes[..], extension].concat());
            let name = message.name();
            assert_eq!(with(&[0xfd, 0xff, 0xf1, 2, 9, 9]).as_ref(), Ok(&message), "odd, {name}");
            assert!(with(&[0xfd, 0xff, 0xf0, 0]).is_err(), "even, {name}");
            assert!(with(&[0xfd, 0xff, 0xf1, 2, 9]).is_err(), "cut, {name}");
            assert!(with(&[0xfd, 0xff]).is_err(), "cut in the type, {name}");
            assert!(with(&[0xfd, 0xff, 0xf1, 0, 0xfd, 0xff, 0xf1, 0]).is_err(), "twice, {name}");
            assert!(with(&[0xfd, 0x00, 0xf1, 0]).is_err(), "not minimal, {name}");
        }
    }
}

/// BOLT 1, "Type-Length-Value Format": a value is as long as its record's type has it. Records of a fixed length that are known
/// are given one byte more and one less.
#[test]
fn a_known_record_of_another_length_is_refused() {
    let point = hex::decode("0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798").unwrap();
    let records: [(&str, u8, Vec<u8>); 9] = [
        ("update_add_htlc", 0, point),
        ("update_fulfill_htlc", 1, vec![1; 920]),
        ("update_fail_htlc", 1, vec![1; 920]),
        ("channel_ready", 1, vec![1; 8]),
        ("closing_signed", 1, vec![1; 16]),
        ("closing_complete", 3, vec![1; 64]),
        ("closing_sig", 1, vec![1; 64]),
        ("tx_signatures", 0, vec![1; 64]),
        ("query_channel_range", 1, vec![1]),
    ];
    for (name, kind, value) in records {
        let with = |bytes: &[u8], value: &[u8]| decode(&[bytes, &record(kind, value)].concat());
        let samples = (0..100).flat_map(every_message).filter(|message| message.name() == name);
        // Chance gives some of them the record already.
        let bytes = samples.map(|message| encode(&message)).find(|bytes| with(bytes, &value).is_ok()).unwrap();
        let longer = with(&bytes, &[&value[..], &[1]].concat()).unwrap_err();
        assert!(longer.to_string().ends_with("1 bytes too many"), "{name}: {longer}");
        let shorter = with(&bytes, &value[1..]).unwrap_err();
        assert!(shorter.to_string().contains("are left"), "{name}: {shorter}");
    }
}

fn record(kind: u8, value: &[u8]) -> Vec<u8> {
    let len = u16::try_from(value.len()).unwrap();
    let head = if len < 0xfd { vec![kind, len as u8] } else { [&[kind, 0xfd][..], &len.to_be_bytes()].concat() };
    [&head, value].concat()
}

#[test]
fn gossip_keeps_what_it_does_not_understand() {
    for message in every_message(3).into_iter().filter(is_verbatim) {
        let mut bytes = encode(&message);
        bytes.extend_from_slice(&[0x02, 0x01, 0xff, 0x00]);
        let read = decode(&bytes).unwrap();
        assert_eq!(encode(&read), bytes);
        assert_ne!(read, message);
    }
}

/// A bit that LDK's struct would write differently (`must_be_one` stands in `message_flags`) stays as it came.
#[test]
fn channel_update_with_unknown_flags_is_relayed_unchanged() {
    let is_update = |message: &Message| matches!(message, Message::ChannelUpdate(_));
    let mut bytes = encode(&every_message(0).into_iter().find(is_update).unwrap());
    let message_flags = 2 + 64 + 32 + 8 + 4;
    bytes[message_flags] = 0b1111_0101;
    bytes[message_flags + 1] = 0b1010_1000;
    let Message::ChannelUpdate(update) = decode(&bytes).unwrap() else { panic!("another kind") };
    assert_eq!(update.bytes(), &bytes[2..]);
    assert_eq!(update.parsed().contents.message_flags, 0b1111_0101);
    let hash = bitcoin::hashes::Hash::hash(&bytes[2 + 64..]);
    let hash: bitcoin::hashes::sha256d::Hash = hash;
    assert_eq!(update.signed_hash(), *AsRef::<[u8; 32]>::as_ref(&hash));
}

#[test]
fn unknown_types_are_ignored_when_odd_and_refused_when_even() {
    assert_eq!(Message::decode(&[0x01, 0x0b]), Ok(Decoded::Ignored { type_number: 267 }));
    let refused = Message::decode(&[0x01, 0x0a]).unwrap_err();
    assert_eq!(refused, DecodeError::UnknownEven { type_number: 266 });
    assert_eq!(refused.to_string(), "message type 266 is unknown and even, so it may not be ignored");
}

#[test]
fn custom_types_are_read_when_wanted_only() {
    let custom: Message = Custom { type_number: 40_001, bytes: vec![1, 2, 3] }.into();
    let bytes = encode(&custom);
    assert_eq!(Message::decode(&bytes), Ok(Decoded::Ignored { type_number: 40_001 }));
    let wanted = Message::decode_with(&bytes, |number| number == 40_001);
    assert_eq!(wanted, Ok(Decoded::Message(custom)));
    let even = Message::decode(&[0x80, 0x00]);
    assert_eq!(even, Err(DecodeError::UnknownEven { type_number: 32_768 }));

    let mut out = vec![7];
    let low: Message = Custom { type_number: 128, bytes: Vec::new() }.into();
    assert_eq!(low.encode(&mut out), Err(EncodeError::NotCustom { type_number: 128 }));
    assert_eq!(out, [7]);
}

#[test]
fn custom_types_begin_at_32768() {
    let custom = |type_number| Message::from(Custom { type_number, bytes: vec![9] });
    let bytes = encode(&custom(32_768));
    assert_eq!(decode(&bytes), Ok(custom(32_768)));
    let mut out = Vec::new();
    assert_eq!(custom(32_767).encode(&mut out), Err(EncodeError::NotCustom { type_number: 32_767 }));
    // Wanted or not, those below are the BOLTs'.
    let below = Message::decode_with(&[0x7f, 0xff, 9], |_| true);
    assert_eq!(below, Ok(Decoded::Ignored { type_number: 32_767 }));
}

#[test]
fn a_message_of_65535_bytes_goes_and_one_more_does_not() {
    let script = |len: usize| bitcoin::ScriptBuf::from_bytes(vec![0x6a; len]);
    let shutdown = |len| Message::from(Shutdown { channel_id: ChannelId([1; 32]), script: script(len) });
    let most = MESSAGE_BYTES_MAX - 2 - 32 - 2;
    let bytes = encode(&shutdown(most));
    assert_eq!(bytes.len(), MESSAGE_BYTES_MAX);
    assert_eq!(decode(&bytes), Ok(shutdown(most)));
    for more in [1, 40_000, 70_000] {
        let mut out = vec![7];
        let len = MESSAGE_BYTES_MAX + more;
        let refused = shutdown(most + more).encode(&mut out);
        assert_eq!(refused, Err(EncodeError::TooLong { message: "shutdown", len }));
        assert_eq!(out, [7]);
    }
    let len = MESSAGE_BYTES_MAX + 1;
    assert_eq!(Message::decode(&vec![0; len]), Err(DecodeError::TooLong { len }));
}

#[test]
fn init_joins_both_feature_vectors() {
    let bytes = hex::decode("00100002020000030800010105aabbccddee").unwrap();
    assert!(decode(&bytes).unwrap_err().to_string().contains("whole number of 32-byte"));
    let Message::Init(init) = decode(&hex::decode("0010000202000003080001").unwrap()).unwrap() else {
        panic!("another kind")
    };
    assert_eq!(init.features.bits().collect::<Vec<_>>(), [0, 9, 19]);
}

/// A node that sees us through a kind of address that we do not know is no reason to hang up.
#[test]
fn init_with_an_address_of_unknown_kind() {
    let read = decode(&hex::decode("00100000000003039900aa").unwrap());
    assert_eq!(read, Ok(Init::default().into()));
    let cut = decode(&hex::decode("001000000000030301aabb").unwrap());
    assert!(cut.unwrap_err().to_string().starts_with("init, remote_addr at byte 8"));
}

#[test]
fn messages_about_no_channel_or_all_have_no_channel_id() {
    let ping: Message = Ping { num_pong_bytes: 1, ignored_len: 0 }.into();
    assert_eq!(ping.channel_id(), None);
    assert_eq!(Message::from(Error::new(ChannelId::ALL, "x")).channel_id(), None);
    let without = ["init", "warning", "ping", "pong", "peer_storage", "peer_storage_retrieval"];
    for message in every_message(5) {
        let gossip = (256..=265).contains(&message.type_number()) && message.type_number() != 259;
        let none = gossip || without.contains(&message.name()) || ["onion_message", "custom"].contains(&message.name());
        assert_eq!(message.channel_id().is_none(), none, "{}", message.name());
    }
}

#[test]
fn gossip_errors_are_told_from_others() {
    for message in every_message(0) {
        if matches!(message, Message::Custom(_)) {
            continue;
        }
        let fault = Message::decode(&message.type_number().to_be_bytes()).unwrap_err();
        let gossip = (256..=265).contains(&message.type_number()) && message.type_number() != 259;
        assert_eq!(fault.is_gossip(), gossip, "{fault}");
        assert!(fault.to_string().starts_with(message.name()), "{fault}");
    }
}
