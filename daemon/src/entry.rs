//! The envelope of a journal step: when it was taken, and what it holds for whom.
//!
//! One step holds everything that one turn of one actor wrote down: the records of its channel, and the entries of
//! other owners that must be on disk with them. The layout is `version (1) | Unix time in ms (8, little-endian) | parts`;
//! a part is `kind (1)` and then, for a channel, `channel id (32) | count | count × (length | bytes)`, for every other
//! owner `length | bytes`. Counts and lengths are LEB128. What the bytes mean is their owner's; every version that was
//! ever released stays decodable.

use millrace_wire::ChannelId;

/// The version that this build writes.
pub const VERSION: u8 = 1;

/// Marks the records of a channel.
const CHANNEL: u8 = 1;

/// Whose entry it is, but for the channels' own records.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Kind {
    /// Payments of this node: accepted, given up.
    Payment,
    /// Invoices: made, cancelled, released.
    Invoice,
    /// The wallet: revealed addresses, transactions made.
    Wallet,
    /// Idempotency keys and what they stand for (D14).
    Idempotency,
    /// Blocks that every channel has handled.
    ChainCursor,
    /// Addresses of peers.
    Peer,
    /// Channel keys that may have been shown to somebody.
    Keys,
    /// Connections that came about and ended.
    Link,
    /// On what terms is forwarded over a channel.
    Policy,
    /// What this node and its peers say of their channels, and of the node.
    Announce,
    /// Watchtowers that keep watch for this node.
    Tower,
}

impl Kind {
    /// Every kind, by its number.
    pub const ALL: [Self; 11] = [
        Self::Payment,
        Self::Invoice,
        Self::Wallet,
        Self::Idempotency,
        Self::ChainCursor,
        Self::Peer,
        Self::Keys,
        Self::Link,
        Self::Policy,
        Self::Announce,
        Self::Tower,
    ];

    /// The number on disk; it never changes.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Payment => 2,
            Self::Invoice => 3,
            Self::Wallet => 4,
            Self::Idempotency => 5,
            Self::ChainCursor => 6,
            Self::Peer => 7,
            Self::Keys => 8,
            Self::Link => 9,
            Self::Policy => 10,
            Self::Announce => 11,
            Self::Tower => 12,
        }
    }

    fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

/// What an owner other than a channel writes down.
/// Its `Debug` does not show the bytes: some hold secrets.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose it is.
    pub kind: Kind,
    /// What only its owner understands; the owner versions it.
    pub bytes: Vec<u8>,
}

impl Entry {
    /// An entry of an owner.
    #[must_use]
    pub const fn new(kind: Kind, bytes: Vec<u8>) -> Self {
        Self { kind, bytes }
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("kind", &self.kind).field("bytes", &self.bytes.len()).finish()
    }
}

/// A step that is being put together.
#[derive(Debug)]
pub struct StepBuilder {
    bytes: Vec<u8>,
}

impl StepBuilder {
    /// An empty step, taken at this Unix time.
    #[must_use]
    pub fn new(time_ms: u64) -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(VERSION);
        bytes.extend_from_slice(&time_ms.to_le_bytes());
        Self { bytes }
    }

    /// Adds the entry of an owner.
    pub fn entry(&mut self, entry: &Entry) {
        self.bytes.push(entry.kind.number());
        put_bytes(&entry.bytes, &mut self.bytes);
    }

    /// Adds records of a channel, in their order.
    pub fn records<'a>(&mut self, channel_id: ChannelId, records: impl ExactSizeIterator<Item = &'a [u8]>) {
        self.bytes.push(CHANNEL);
        self.bytes.extend_from_slice(&channel_id.0);
        put_number(records.len() as u64, &mut self.bytes);
        for record in records {
            put_bytes(record, &mut self.bytes);
        }
    }

    /// The step's bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// One part of a step that is read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part<'a> {
    /// Records of a channel, in their order.
    Records {
        /// The channel.
        channel_id: ChannelId,
        /// Each one's encoding.
        records: Vec<&'a [u8]>,
    },
    /// The entry of another owner.
    Entry {
        /// Whose it is.
        kind: Kind,
        /// What only its owner understands.
        bytes: &'a [u8],
    },
}

/// A step, read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step<'a> {
    /// When it was taken, as Unix time in milliseconds.
    pub time_ms: u64,
    /// What it holds, in order.
    pub parts: Vec<Part<'a>>,
}

/// Why bytes are not a step.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StepError {
    /// From a newer build.
    #[error("step version {0}: this build knows versions up to {VERSION}")]
    UnknownVersion(u8),
    /// From a newer build, too.
    #[error("byte {at}: entry kind {kind} is unknown to this build")]
    UnknownKind {
        /// The kind's number.
        kind: u8,
        /// Where it stands.
        at: usize,
    },
    /// It ends inside something.
    #[error("byte {at}: {needed} bytes are due, {left} are left")]
    Short {
        /// Where.
        at: usize,
        /// Bytes that are due.
        needed: u64,
        /// Bytes that are there.
        left: usize,
    },
    /// A number that is longer than it can be.
    #[error("byte {at}: not a number")]
    NotANumber {
        /// Where.
        at: usize,
    },
}

impl<'a> Step<'a> {
    /// Reads a step.
    ///
    /// # Errors
    /// [`StepError`] says where the bytes stop being one.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, StepError> {
        let mut input = Input { bytes, at: 0 };
        let version = input.byte()?;
        if version != VERSION {
            return Err(StepError::UnknownVersion(version));
        }
        let time_ms = u64::from_le_bytes(input.take(8)?.try_into().expect("eight bytes were taken"));
        let mut parts = Vec::new();
        while input.at < bytes.len() {
            parts.push(input.part()?);
        }
        Ok(Self { time_ms, parts })
    }
}

struct Input<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Input<'a> {
    fn part(&mut self) -> Result<Part<'a>, StepError> {
        let at = self.at;
        let number = self.byte()?;
        if number == CHANNEL {
            return self.records();
        }
        let kind = Kind::from_number(number).ok_or(StepError::UnknownKind { kind: number, at })?;
        Ok(Part::Entry { kind, bytes: self.counted()? })
    }

    fn records(&mut self) -> Result<Part<'a>, StepError> {
        let channel_id = ChannelId(self.take(32)?.try_into().expect("32 bytes were taken"));
        let count = self.number()?;
        // Each record takes a byte at least: no length is believed beyond the step's own.
        let left = self.bytes.len() - self.at;
        if count > left as u64 {
            return Err(StepError::Short { at: self.at, needed: count, left });
        }
        let mut records = Vec::new();
        for _ in 0..count {
            records.push(self.counted()?);
        }
        Ok(Part::Records { channel_id, records })
    }

    fn byte(&mut self) -> Result<u8, StepError> {
        Ok(self.take(1)?[0])
    }

    fn take(&mut self, count: u64) -> Result<&'a [u8], StepError> {
        let rest = &self.bytes[self.at..];
        let short = StepError::Short { at: self.at, needed: count, left: rest.len() };
        let count = usize::try_from(count).map_err(|_| short.clone())?;
        let taken = rest.get(..count).ok_or(short)?;
        self.at += count;
        Ok(taken)
    }

    fn counted(&mut self) -> Result<&'a [u8], StepError> {
        let length = self.number()?;
        self.take(length)
    }

    fn number(&mut self) -> Result<u64, StepError> {
        let at = self.at;
        let mut value: u64 = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(StepError::NotANumber { at })
    }
}

fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    put_number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push((value as u8 & 0x7f) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A step as version 1 wrote it on its first day: it must be read for ever.
    const SAMPLE_V1: &str = concat!(
        "01",
        "8877665544332211", // version, time
        "01",
        "0505050505050505050505050505050505050505050505050505050505050505",
        "02",
        "03aabbcc",
        "00", // a channel
        "02",
        "0170",
        "03",
        "0169",
        "04",
        "0177",
        "05",
        "016b",
        "06",
        "0163",
        "07",
        "0170",
        "08",
        "8001", // the others
    );

    fn sample() -> Vec<u8> {
        let mut step = StepBuilder::new(0x1122_3344_5566_7788);
        let records: [&[u8]; 2] = [&[0xaa, 0xbb, 0xcc], &[]];
        step.records(ChannelId([5; 32]), records.into_iter());
        for (kind, byte) in Kind::ALL.into_iter().zip(*b"piwkcp") {
            step.entry(&Entry::new(kind, vec![byte]));
        }
        step.entry(&Entry::new(Kind::Keys, vec![7; 128]));
        step.finish()
    }

    #[test]
    fn version_1_stays_what_it_was() {
        let bytes = sample();
        let (head, tail) = bytes.split_at(bytes.len() - 128);
        assert_eq!(hex::encode(head), SAMPLE_V1);
        assert_eq!(tail, [7; 128]);
        let stored = [hex::decode(SAMPLE_V1).unwrap(), vec![7; 128]].concat();
        let step = Step::decode(&stored).unwrap();
        assert_eq!(step.time_ms, 0x1122_3344_5566_7788);
        assert_eq!(step.parts.len(), 8);
        let records = vec![&[0xaa, 0xbb, 0xcc][..], &[]];
        assert_eq!(step.parts[0], Part::Records { channel_id: ChannelId([5; 32]), records });
        assert_eq!(step.parts[1], Part::Entry { kind: Kind::Payment, bytes: b"p" });
        assert_eq!(step.parts[7], Part::Entry { kind: Kind::Keys, bytes: &[7; 128] });
    }

    #[test]
    fn cut_anywhere_it_is_an_error_or_a_shorter_step() {
        let bytes = sample();
        let whole = Step::decode(&bytes).unwrap();
        let mut refused = 0;
        for cut in 0..bytes.len() {
            match Step::decode(&bytes[..cut]) {
                Ok(step) => assert!(whole.parts.starts_with(&step.parts) && step.parts.len() < whole.parts.len()),
                Err(_) => refused += 1,
            }
        }
        assert_eq!(refused, bytes.len() - 8, "a cut between two parts cannot be told from an end");
    }

    #[test]
    fn what_a_later_build_wrote_is_named() {
        assert_eq!(Step::decode(&[2]), Err(StepError::UnknownVersion(2)));
        let mut bytes = StepBuilder::new(0).finish();
        bytes.push(200);
        assert_eq!(Step::decode(&bytes), Err(StepError::UnknownKind { kind: 200, at: 9 }));
    }

    #[test]
    fn lengths_are_not_believed() {
        let mut bytes = StepBuilder::new(0).finish();
        bytes.extend([2, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(Step::decode(&bytes), Err(StepError::Short { at: 20, needed: u64::MAX, left: 0 }));
        bytes.truncate(10);
        bytes.extend([0xff; 11]);
        assert_eq!(Step::decode(&bytes), Err(StepError::NotANumber { at: 10 }));
        let mut bytes = StepBuilder::new(0).finish();
        bytes.push(1);
        bytes.extend([0; 32]);
        bytes.extend([0xff, 0xff, 0x7f]);
        assert_eq!(Step::decode(&bytes), Err(StepError::Short { at: 45, needed: 2_097_151, left: 0 }));
    }
}
