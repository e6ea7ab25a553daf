#![allow(clippy::unwrap_used)]

use super::*;
use crate::receipt::{BlobReceipt, Receipt};
use crate::samples::registration;
use crate::sealed::{Hint, SEALED_BYTES};
use proptest::prelude::*;
use secp256k1::SecretKey;

fn one_of_each() -> Vec<Message> {
    let handle = Handle(7);
    let number = CommitmentNumber(0x0102_0304_0506);
    let outpoint = registration(1).funding_outpoint;
    let held = Held { handle, funding_outpoint: outpoint, next: number, time_s: 0, is_resolved: true };
    let key = SecretKey::from_slice(&[5; 32]).unwrap();
    let group = Group([7; 16]);
    let held_group = HeldGroup { group, next: 1 << 40, time_s: 0 };
    let refused = |about| Message::Refused { about, reason: Reason::Gap, next: number, text: "a gap".to_owned() };
    vec![
        Message::Hello { version: 1, chain_hash: ChainHash::from([3; 32]) },
        Message::Welcome { version: 1, channels_max: 1_000 },
        Message::Channels { is_last: true, held: vec![held, held] },
        Message::Channels { is_last: false, held: Vec::new() },
        Message::Register(Box::new(registration(1))),
        Message::Channel(held),
        Message::Update { handle, number, secret: Secret([9; 32]) },
        Message::Batch {
            handle,
            from: CommitmentNumber(1),
            to: number,
            changed: vec![Secret([1; 32]), Secret([2; 32])],
        },
        Message::Ack { handle, next: number, time_s: 8, signature: Receipt::sign(&key, outpoint, number, 8).signature },
        refused(About::Channel(handle)),
        refused(About::Registration(outpoint)),
        Message::Preimages { handle, first: 3, preimages: vec![[4; 32]] },
        Message::PreimagesTaken { handle, count: 4 },
        Message::Forget(handle),
        Message::Forgotten(handle),
        Message::ListGroups,
        Message::Groups { is_last: true, blobs_max: 9, held: vec![held_group, held_group] },
        Message::Groups { is_last: false, blobs_max: 0, held: Vec::new() },
        Message::Blob {
            group,
            sequence: 1 << 40,
            sealed: Sealed { hint: Hint([6; 16]), bytes: vec![8; SEALED_BYTES] },
        },
        Message::BlobAck { group, next: 1 << 40, time_s: 8, signature: BlobReceipt::sign(&key, group, 3, 8).signature },
        refused(About::Group(group)),
        Message::AskReceipt(group),
        Message::Release(group),
        Message::Released(group),
        Message::Ping,
        Message::Pong,
        Message::Error("enough".to_owned()),
    ]
}

fn encoded(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes);
    bytes
}

#[test]
fn each_message_is_read_back() {
    for message in one_of_each() {
        assert_eq!(Message::decode(&encoded(&message)).as_ref(), Ok(&message));
    }
    for reason in REASONS {
        let refused = Message::Refused {
            about: About::Channel(Handle(0)),
            reason,
            next: CommitmentNumber(0),
            text: String::new(),
        };
        assert_eq!(Message::decode(&encoded(&refused)), Ok(refused));
    }
}

#[test]
fn update_has_42_bytes_of_payload() {
    let update = Message::Update { handle: Handle(7), number: CommitmentNumber(9), secret: Secret([1; 32]) };
    assert_eq!(encoded(&update).len(), 2 + 42);
}

#[test]
fn blob_has_468_bytes_of_payload() {
    let blob = one_of_each().into_iter().find(|message| matches!(message, Message::Blob { .. })).unwrap();
    assert_eq!(encoded(&blob).len(), 2 + 16 + 8 + 16 + SEALED_BYTES);
}

#[test]
fn cut_anywhere_or_lengthened_is_refused_or_another_whole_message() {
    for message in one_of_each() {
        let mut bytes = encoded(&message);
        for length in 0..bytes.len() {
            // Lists and texts may end earlier; nothing else may.
            if let Ok(shorter) = Message::decode(&bytes[..length]) {
                assert_eq!(encoded(&shorter), bytes[..length]);
                assert_eq!(shorter.kind(), message.kind());
            }
        }
        bytes.extend_from_slice(&[0xff; 3]);
        assert!(Message::decode(&bytes).is_err(), "{message:?}");
    }
}

#[test]
fn more_than_the_maxima() {
    let too_many = Message::Batch {
        handle: Handle(0),
        from: CommitmentNumber(0),
        to: CommitmentNumber(1),
        changed: vec![Secret([0; 32]); SECRETS_MAX + 1],
    };
    let too_many_preimages =
        Message::Preimages { handle: Handle(0), first: 0, preimages: vec![[0; 32]; PREIMAGES_MAX + 1] };
    let held = HeldGroup { group: Group([0; 16]), next: 0, time_s: 0 };
    let too_many_groups = Message::Groups { is_last: true, blobs_max: 0, held: vec![held; GROUPS_MAX + 1] };
    for message in [too_many, too_many_preimages, too_many_groups] {
        assert!(matches!(Message::decode(&encoded(&message)), Err(DecodeError::Field { .. })));
    }
    let mut text = encoded(&Message::Error("é".repeat(400)));
    assert_eq!(text.len(), 2 + TEXT_BYTES_MAX);
    text.push(b'x');
    assert!(matches!(Message::decode(&text), Err(DecodeError::Field { .. })));
}

#[test]
fn debug_shows_no_secret() {
    for message in one_of_each() {
        let text = format!("{message:?}");
        assert!(!text.contains("9, 9, 9") && !text.contains("1, 1, 1"), "{text}");
    }
}

proptest! {
    #[test]
    fn whatever_comes_is_read_whole_or_refused(kind in 0_u16..25, body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let bytes = [&kind.to_be_bytes()[..], &body].concat();
        if let Ok(message) = Message::decode(&bytes) {
            prop_assert_eq!(encoded(&message), bytes);
        }
    }
}
