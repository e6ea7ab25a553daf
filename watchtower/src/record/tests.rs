//! What was written once stays readable: a stored sample of each record, and of a checkpoint's channel.

#![allow(clippy::unwrap_used)]

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, Txid};
use millrace_wire::Sat;
use secp256k1::{SECP256K1, SecretKey};

use super::*;
use crate::samples::{Sample, registration};
use crate::sealed::{BadSealed, open, seal};
use crate::snapshot;
use crate::story::{NewOutput, OutputKind};
use crate::tower::Tower;
use crate::vault::{Loot, Why};
use millrace_channel::terms::CommitmentFormat;

/// One line each: the record's name, and its bytes.
const SAMPLES: &str = include_str!("samples.txt");

fn client() -> PublicKey {
    SecretKey::from_slice(&[1; 32]).unwrap().public_key(SECP256K1)
}

fn one_of_each() -> Vec<(&'static str, Record)> {
    let (handle, height) = (Handle(0), BlockHeight(800_000));
    let number = CommitmentNumber(0);
    let secret = |seed| Secret([seed; 32]);
    let txid = Txid::from_byte_array([0xaa; 32]);
    let output = |vout, kind| NewOutput { vout, value: Sat(123_456), kind };
    let outputs = vec![
        output(0, OutputKind::Revocable),
        output(1, OutputKind::Other),
        output(2, OutputKind::Unknown([0xbb; 32])),
    ];
    let closing = Closing { txid, number: Some(number), outputs };
    let spends = vec![OutPoint { txid, vout: 1 }];
    let by = Txid::from_byte_array([0xcc; 32]);
    let outputs = vec![output(0, OutputKind::Revocable)];
    let spending = Spending { txid: by, spends, to_sweep: true, outputs, preimages: vec![[0xdd; 32]] };
    let time_s = 1_700_000_000;
    vec![
        ("client_allowed", Record::ClientAllowed { client: client(), channels_max: 1_000 }),
        ("registered", Record::Registered { handle, client: client(), registration: registration(1) }),
        ("revealed", Record::Revealed { handle, number, secret: secret(1), time_s }),
        ("advanced", Record::Advanced { handle, to: CommitmentNumber(2), changed: vec![secret(2)], time_s }),
        ("closed", Record::Closed { handle, height, closing }),
        ("spent", Record::Spent { handle, height, spending }),
        ("connected", Record::Connected { height, hash: [0xee; 32] }),
        ("disconnected", Record::Disconnected { height }),
        ("resolved", Record::Resolved { handle }),
        ("preimages_taken", Record::PreimagesTaken { handle, count: 1 }),
        ("forgotten", Record::Forgotten { handle }),
        ("checked", Record::Checked { handle }),
    ]
    .into_iter()
    .chain(one_of_each_of_blob_mode().into_iter().map(|(name, record)| (name, Record::Blob(record))))
    .collect()
}

fn one_of_each_of_blob_mode() -> Vec<(&'static str, BlobRecord)> {
    let (id, blob) = (GroupId(0), BlobRef { group: GroupId(0), sequence: 0 });
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let commitment = sample.commitment(3, 2_000_000, 0, 0);
    let (vout, height) = (commitment.to_local.unwrap(), BlockHeight(800_000));
    let value = Sat::from(commitment.output(vout).value);
    let sealed = seal(&sample.registration(), &sample.secret(3), &commitment.txid, vout, value).unwrap();
    let opened = open(&commitment.tx, &sealed.bytes).unwrap();
    let outpoint = opened.outpoint;
    let catch = Catch { blob, loot: Loot { opened, height }, spent: None, is_over: false };
    let spent = CatchSpent { by: Txid::from_byte_array([0xcc; 32]), height, to_sweep: true };
    let unopened = Unopened { blob, txid: commitment.txid, height, why: Why::Bad(BadSealed::Signature(2)) };
    vec![
        ("blobs_allowed", BlobRecord::Allowed { client: client(), blobs_max: 1_000 }),
        ("group_opened", BlobRecord::Opened { id, client: client(), group: Group([7; 16]) }),
        ("blob_taken", BlobRecord::Taken { blob, time_s: 1_700_000_000, hint: sealed.hint, bytes: sealed.bytes }),
        ("blob_caught", BlobRecord::Caught { catch: Box::new(catch) }),
        ("blob_unopened", BlobRecord::Unopened(unopened)),
        ("catch_spent", BlobRecord::Spent { outpoint, spent }),
        ("catch_over", BlobRecord::Over { outpoint }),
        ("group_released", BlobRecord::Released { id }),
    ]
}

#[test]
fn stored_samples_of_version_1_are_read_and_written() {
    let stored: Vec<(&str, &str)> = SAMPLES.lines().filter_map(|line| line.split_once(' ')).collect();
    let made: Vec<(&str, String)> =
        one_of_each().iter().map(|(name, record)| (*name, hex::encode(record.encode()))).collect();
    let shown: Vec<String> = made.iter().map(|(name, bytes)| format!("{name} {bytes}")).collect();
    assert_eq!(stored.len(), made.len() + 2, "{}", shown.join("\n"));
    assert!(stored.iter().zip(&made).all(|(stored, made)| stored.1 == made.1), "{}", shown.join("\n"));
    for ((name, record), (stored_name, bytes)) in one_of_each().into_iter().zip(&stored) {
        assert_eq!(name, *stored_name);
        assert_eq!(Record::decode(&hex::decode(bytes).unwrap()).unwrap(), record, "{name}");
    }
}

#[test]
fn stored_checkpoint_of_version_1_is_read_and_written() {
    let mut tower = Tower::default();
    let told = ["client_allowed", "registered", "revealed", "connected", "closed", "spent"];
    for (name, record) in one_of_each() {
        if told.contains(&name) {
            tower.apply(record);
        }
    }
    let sections = snapshot::sections(&tower);
    let made: Vec<String> = sections.iter().map(|section| hex::encode(&section.bytes)).collect();
    let (_, stored) =
        SAMPLES.lines().find_map(|line| line.split_once(' ').filter(|(name, _)| *name == "checkpoint")).unwrap();
    assert_eq!(stored, made.join(","), "{}", made.join(","));
    let restored = snapshot::restore(&sections).unwrap();
    assert_eq!(restored.channel(Handle(0)), tower.channel(Handle(0)));
    assert_eq!(snapshot::sections(&restored), sections);
}

#[test]
fn stored_checkpoint_of_blob_mode_is_read_and_written() {
    let mut tower = Tower::default();
    let told = one_of_each_of_blob_mode().into_iter().filter(|(name, _)| *name != "group_released");
    told.for_each(|(_, record)| tower.apply(Record::Blob(record)));
    let sections = snapshot::sections(&tower);
    let made = hex::encode(&sections[1].bytes);
    let stored = SAMPLES.lines().find_map(|line| line.strip_prefix("vault "));
    assert_eq!((sections.len(), stored), (2, Some(made.as_str())), "{made}");
    let restored = snapshot::restore(&sections).unwrap();
    assert_eq!(snapshot::sections(&restored), sections);
}

#[test]
fn unknown_versions_and_what_is_cut_are_refused() {
    for (name, record) in one_of_each() {
        let mut bytes = record.encode();
        for length in 0..bytes.len() {
            assert!(Record::decode(&bytes[..length]).is_err(), "{name} cut to {length}");
        }
        bytes.push(0);
        assert!(matches!(Record::decode(&bytes), Err(RecordError::Malformed(_))), "{name}");
        bytes[0] = 2;
        assert_eq!(Record::decode(&bytes), Err(RecordError::UnknownVersion(2)));
    }
}
