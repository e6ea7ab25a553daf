//! A stored sample of each thing on disk: whatever a release wrote stays readable.

use super::*;
use crate::disk::DiskFile;
use crate::frame::{self, Head, Kind, Place, Unit};
use crate::segment::Segment;
use crate::{checkpoint, history};

/// A frame of version 1 with two steps, without its padding.
const FRAME_V1: &str = "4d524a460100010012000000020000000807060504030201030000000000000009000000000000002900000000000000efbeaddef02d8fe3030000006f6e6507000000616e642074776f";
/// The seal behind it.
const SEAL_V1: &str =
    "4d524a460100020000000000000000000807060504030201030000000000000009000000000000002900000000000000efbeaddecf32e81b";
/// The header of a segment of version 1 with five pages.
const SEGMENT_V1: &str = "4d524a5345474d54010000000000000008070605040302010300000000000000005000000000000031fe3ae7";
/// A checkpoint of version 1 with two sections.
const CHECKPOINT_V1: &str = "4d524a43484b5054010000000200000008070605040302010700000000000000020000000900000000000000060000000000000001000000080000006368616e6e656c730500000000000000737461746505000000656d7074790000000000000000b8d12e1a";
/// An append of version 1 with two items.
const HISTORY_V1: &str = "4d524a4801000000080706050403020128000000020000000400000000000000010000000600000000000000000000003c94199204000000000000000100000008000000616e206576656e7405000000000000000300000000000000";

const ID: u64 = 0x0102_0304_0506_0708;

fn from_hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
    pairs.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file with a sample, filled up to whole pages.
fn file(disk: &SimulatedDisk, name: &str, bytes: &[u8], pages: usize) -> Arc<dyn DiskFile> {
    let file = disk.create(&dir().join(name)).unwrap();
    let mut content = bytes.to_vec();
    content.resize(content.len().max(pages * 4096), 0);
    file.write_all_at(&content, 0).unwrap();
    file
}

fn head(kind: Kind) -> Head {
    Head { kind, id: ID, segment: 3, frame: 9, first_ticket: 41, previous_crc: 0xdead_beef }
}

#[test]
fn frame_and_seal() {
    let place = Place { id: ID, segment: 3, offset: 0, end: 4096 };
    let steps: [&[u8]; 2] = [b"one", b"and two"];
    for (kind, sample, steps) in [(Kind::Frame, FRAME_V1, &steps[..]), (Kind::Seal, SEAL_V1, &[])] {
        let mut out = Vec::new();
        frame::encode(&head(kind), steps.iter().copied(), &mut out);
        let used = frame::HEAD_BYTES + steps.iter().map(|step| 4 + step.len()).sum::<usize>();
        assert_eq!(to_hex(&out[..used]), sample);
        let disk = SimulatedDisk::default();
        let file = file(&disk, "frame", &from_hex(sample), 1);
        let Unit::Valid(valid) = frame::read(&*file, place, &mut out).unwrap() else {
            panic!("{kind:?} is not readable");
        };
        assert_eq!(valid.head, head(kind));
        let (body, mut at) = (&out[valid.body()], 0);
        for step in steps {
            assert_eq!(&body[frame::next_step(body, &mut at).unwrap()], *step);
        }
        assert_eq!(frame::next_step(body, &mut at), None);
    }
}

#[test]
fn segment_header() {
    let disk = SimulatedDisk::default();
    let made = Segment::make(&disk, dir(), ID, 3, 5 * 4096).unwrap();
    assert_eq!(to_hex(&disk.content(&made.path)[..44]), SEGMENT_V1);
    let disk = SimulatedDisk::default();
    file(&disk, "segment-0000000000000003", &from_hex(SEGMENT_V1), 5);
    let (segment, id) = Segment::open(&disk, dir(), 3).map_err(|_| "refused").unwrap();
    assert_eq!((segment.number, segment.bytes, id), (3, 5 * 4096, ID));
}

#[test]
fn checkpoint_with_two_sections() {
    let section = |name: &[u8], bytes: &[u8]| Section { name: name.to_vec(), bytes: bytes.to_vec() };
    let checkpoint = Checkpoint {
        replay_from: Position { frame: 7, index: 2 },
        sections: vec![section(b"channels", b"state"), section(b"empty", b"")],
    };
    let history_covered = Position { frame: 6, index: 1 };
    let proof = checkpoint::Proof { id: ID, durable_frame: 9, history_covered };
    let disk = SimulatedDisk::default();
    checkpoint::write(&disk, dir(), &proof, &checkpoint).unwrap();
    assert_eq!(to_hex(&disk.content(&dir().join("checkpoint"))), CHECKPOINT_V1);
    let disk = SimulatedDisk::default();
    file(&disk, "checkpoint", &from_hex(CHECKPOINT_V1), 0);
    let stored = checkpoint::load(&disk, dir()).map_err(|_| "refused").unwrap();
    assert_eq!((stored.id, stored.durable_frame, stored.history_covered), (ID, 9, history_covered));
    assert_eq!(stored.checkpoint, checkpoint);
}

#[test]
fn append_to_the_history() {
    let (from, covers) = (Position { frame: 4, index: 1 }, Position { frame: 6, index: 0 });
    let at = |frame, index| Position { frame, index };
    let items: [(Position, &[u8]); 2] = [(at(4, 1), b"an event"), (at(5, 3), b"")];
    assert_eq!(to_hex(&history::tests::encode_sample(ID, from, covers, &items)), HISTORY_V1);
    let read = history::tests::decode_sample(ID, &from_hex(HISTORY_V1)).unwrap();
    assert_eq!(read, (from, covers, items.map(|(position, bytes)| (position, bytes.to_vec())).to_vec()));
}
