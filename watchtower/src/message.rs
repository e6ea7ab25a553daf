//! What a client and its tower say to each other: a type of two bytes and fixed fields in network order, one message in
//! each BOLT 8 message. `docs/watchtower.md` has them as tables.
//!
//! No length on the wire is trusted: a message is exactly as long as its fields, and counts have named maxima.

mod fields;

use bitcoin::OutPoint;
use bitcoin::hashes::Hash;
use millrace_wire::{ChainHash, CommitmentNumber};
use secp256k1::ecdsa::Signature;
use thiserror::Error;

use crate::record::{Handle, Secret};
use crate::registration::Registration;
use crate::sealed::Sealed;
use crate::tower::Held;
use crate::vault::{Group, HeldGroup};
use fields::Fields;

/// The protocol's version.
pub const PROTOCOL: u16 = 1;
/// Channels of one `channels` message: 48 bytes each.
pub const CHANNELS_MAX: usize = 1_000;
/// Groups of one `groups` message: 24 bytes each.
pub const GROUPS_MAX: usize = 1_000;
/// Secrets of one `batch`: as many as there are slots.
pub const SECRETS_MAX: usize = 49;
/// Preimages of one message.
pub const PREIMAGES_MAX: usize = 1_000;
/// Bytes of a text for people.
pub const TEXT_BYTES_MAX: usize = 512;

/// One message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// Client, first: which version, which chain.
    Hello {
        /// The client's version.
        version: u16,
        /// The chain that its channels are on.
        chain_hash: ChainHash,
    },
    /// Tower, in answer. `channels` follow.
    Welcome {
        /// The version that is spoken.
        version: u16,
        /// How many channels the client may have.
        channels_max: u32,
    },
    /// Tower: what it has of the client's channels.
    Channels {
        /// Whether no more of them follow.
        is_last: bool,
        /// What it has.
        held: Vec<Held>,
    },
    /// Client: watch this channel.
    Register(Box<Registration>),
    /// Tower: what it has of one channel: after its registration, and when it has ended.
    Channel(Held),
    /// Client: the secret of the next commitment.
    Update {
        /// In which channel.
        handle: Handle,
        /// Of which commitment.
        number: CommitmentNumber,
        /// The secret.
        secret: Secret,
    },
    /// Client: the secrets of many commitments.
    Batch {
        /// In which channel.
        handle: Handle,
        /// The first commitment.
        from: CommitmentNumber,
        /// The one after the last.
        to: CommitmentNumber,
        /// The slots that change, the lowest first.
        changed: Vec<Secret>,
    },
    /// Tower: it has all secrets below `next`, on disk. A receipt.
    Ack {
        /// In which channel.
        handle: Handle,
        /// The lowest commitment whose secret it does not have.
        next: CommitmentNumber,
        /// When it took the newest, in seconds of the Unix epoch.
        time_s: u64,
        /// By the tower's key; see [`crate::receipt::Receipt`].
        signature: Signature,
    },
    /// Tower: it did not do what the client wanted.
    Refused {
        /// About what.
        about: About,
        /// Why.
        reason: Reason,
        /// The lowest commitment whose secret it does not have; 0 where that means nothing.
        next: CommitmentNumber,
        /// The same for people.
        text: String,
    },
    /// Tower: preimages that it has seen on chain.
    Preimages {
        /// In which channel.
        handle: Handle,
        /// How many came before these.
        first: u32,
        /// The preimages.
        preimages: Vec<[u8; 32]>,
    },
    /// Client: it has so many of the channel's preimages, for good.
    PreimagesTaken {
        /// In which channel.
        handle: Handle,
        /// How many, from the first on.
        count: u32,
    },
    /// Client: the channel is of no concern any more.
    Forget(Handle),
    /// Tower: its name means nothing any more.
    Forgotten(Handle),
    /// Client: say what you have of my groups of blobs.
    ListGroups,
    /// Tower: what it has of the client's groups.
    Groups {
        /// Whether no more of them follow.
        is_last: bool,
        /// How many blobs the client may have.
        blobs_max: u32,
        /// What it has.
        held: Vec<HeldGroup>,
    },
    /// Client: the next blob of a group.
    Blob {
        /// In which group.
        group: Group,
        /// Its number there.
        sequence: u64,
        /// What is to be kept.
        sealed: Sealed,
    },
    /// Tower: it has all blobs below `next`, on disk. A receipt.
    BlobAck {
        /// In which group.
        group: Group,
        /// The lowest sequence number whose blob it does not have.
        next: u64,
        /// When it took the newest, in seconds of the Unix epoch.
        time_s: u64,
        /// By the tower's key; see [`crate::receipt::BlobReceipt`].
        signature: Signature,
    },
    /// Client: sign for what you have of a group. `blob_ack` is the answer.
    AskReceipt(Group),
    /// Client: nobody needs a group's blobs any more.
    Release(Group),
    /// Tower: they are gone.
    Released(Group),
    /// Either: are you there?
    Ping,
    /// Either: yes.
    Pong,
    /// Either, last: why the connection ends.
    Error(String),
}

/// What a refusal is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// A channel by its name.
    Channel(Handle),
    /// A registration, by its funding output.
    Registration(OutPoint),
    /// A group of blobs.
    Group(Group),
}

/// Why the tower did not do what the client wanted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Reason {
    /// The client may not.
    NotAllowed = 1,
    /// The client has too many channels.
    TooMany = 2,
    /// Another registration of the same channel is there.
    OtherRegistration = 3,
    /// There is no such channel.
    UnknownChannel = 4,
    /// Secrets between are missing, or are there already; `next` says which comes next.
    Gap = 5,
    /// The secret is wrong.
    BadSecret = 6,
    /// The channel has ended.
    Ended = 7,
    /// It could lose something by it.
    AtRisk = 8,
    /// The tower's disk is full or far behind: later, perhaps.
    Full = 9,
    /// Another blob is there under this number, or too many are for the same transaction.
    BadBlob = 10,
    /// There is no such group.
    UnknownGroup = 11,
}

const REASONS: [Reason; 11] = [
    Reason::NotAllowed,
    Reason::TooMany,
    Reason::OtherRegistration,
    Reason::UnknownChannel,
    Reason::Gap,
    Reason::BadSecret,
    Reason::Ended,
    Reason::AtRisk,
    Reason::Full,
    Reason::BadBlob,
    Reason::UnknownGroup,
];

/// Why bytes are no message.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum DecodeError {
    /// It ends before its fields do.
    #[error("a message of type {kind} ends after {bytes} bytes")]
    TooShort {
        /// Its type.
        kind: u16,
        /// Bytes there were.
        bytes: usize,
    },
    /// It goes on after its fields.
    #[error("a message of type {kind} has {bytes} bytes too many")]
    TooLong {
        /// Its type.
        kind: u16,
        /// Bytes too many.
        bytes: usize,
    },
    /// Nobody knows it.
    #[error("a message of the unknown type {0}")]
    UnknownType(u16),
    /// A field that cannot be what it says.
    #[error("a message of type {kind}: {what}")]
    Field {
        /// Its type.
        kind: u16,
        /// What is wrong.
        what: String,
    },
}

const HELLO: u16 = 1;
const WELCOME: u16 = 2;
const CHANNELS: u16 = 3;
const REGISTER: u16 = 4;
const CHANNEL: u16 = 5;
const UPDATE: u16 = 6;
const BATCH: u16 = 7;
const ACK: u16 = 8;
const REFUSED: u16 = 9;
const PREIMAGES: u16 = 10;
const PREIMAGES_TAKEN: u16 = 11;
const FORGET: u16 = 12;
const FORGOTTEN: u16 = 13;
const PING: u16 = 14;
const PONG: u16 = 15;
const ERROR: u16 = 16;
const LIST_GROUPS: u16 = 17;
const GROUPS: u16 = 18;
const BLOB: u16 = 19;
const BLOB_ACK: u16 = 20;
const RELEASE: u16 = 21;
const RELEASED: u16 = 22;
const ASK_RECEIPT: u16 = 23;

impl Message {
    /// Its type.
    #[must_use]
    pub const fn kind(&self) -> u16 {
        match self {
            Self::Hello { .. } => HELLO,
            Self::Welcome { .. } => WELCOME,
            Self::Channels { .. } => CHANNELS,
            Self::Register(_) => REGISTER,
            Self::Channel(_) => CHANNEL,
            Self::Update { .. } => UPDATE,
            Self::Batch { .. } => BATCH,
            Self::Ack { .. } => ACK,
            Self::Refused { .. } => REFUSED,
            Self::Preimages { .. } => PREIMAGES,
            Self::PreimagesTaken { .. } => PREIMAGES_TAKEN,
            Self::Forget(_) => FORGET,
            Self::Forgotten(_) => FORGOTTEN,
            Self::Ping => PING,
            Self::Pong => PONG,
            Self::Error(_) => ERROR,
            Self::ListGroups => LIST_GROUPS,
            Self::Groups { .. } => GROUPS,
            Self::Blob { .. } => BLOB,
            Self::BlobAck { .. } => BLOB_ACK,
            Self::Release(_) => RELEASE,
            Self::Released(_) => RELEASED,
            Self::AskReceipt(_) => ASK_RECEIPT,
        }
    }

    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.kind().to_be_bytes());
        match self {
            Self::Hello { version, chain_hash } => {
                out.extend_from_slice(&version.to_be_bytes());
                out.extend_from_slice(&chain_hash.to_bytes());
            }
            Self::Welcome { version, channels_max } => {
                out.extend_from_slice(&version.to_be_bytes());
                out.extend_from_slice(&channels_max.to_be_bytes());
            }
            Self::Channels { is_last, held } => {
                out.push(u8::from(*is_last));
                held.iter().for_each(|held| put_held(out, held));
            }
            Self::Register(registration) => registration.encode(out),
            Self::Channel(held) => put_held(out, held),
            Self::Update { handle, number, secret } => {
                put_handle(out, *handle);
                put_number(out, *number);
                out.extend_from_slice(&secret.0);
            }
            Self::Batch { handle, from, to, changed } => {
                put_handle(out, *handle);
                put_number(out, *from);
                put_number(out, *to);
                changed.iter().for_each(|secret| out.extend_from_slice(&secret.0));
            }
            Self::Ack { handle, next, time_s, signature } => {
                put_handle(out, *handle);
                put_number(out, *next);
                out.extend_from_slice(&time_s.to_be_bytes());
                out.extend_from_slice(&signature.serialize_compact());
            }
            Self::Refused { about, reason, next, text } => {
                put_about(out, about);
                out.extend_from_slice(&(*reason as u16).to_be_bytes());
                put_number(out, *next);
                out.extend_from_slice(cut(text).as_bytes());
            }
            Self::Preimages { handle, first, preimages } => {
                put_handle(out, *handle);
                out.extend_from_slice(&first.to_be_bytes());
                preimages.iter().for_each(|preimage| out.extend_from_slice(preimage));
            }
            Self::PreimagesTaken { handle, count } => {
                put_handle(out, *handle);
                out.extend_from_slice(&count.to_be_bytes());
            }
            Self::Forget(handle) | Self::Forgotten(handle) => put_handle(out, *handle),
            Self::Groups { is_last, blobs_max, held } => {
                out.push(u8::from(*is_last));
                out.extend_from_slice(&blobs_max.to_be_bytes());
                held.iter().for_each(|held| put_held_group(out, held));
            }
            Self::Blob { group, sequence, sealed } => {
                out.extend_from_slice(&group.0);
                out.extend_from_slice(&sequence.to_be_bytes());
                out.extend_from_slice(&sealed.hint.0);
                out.extend_from_slice(&sealed.bytes);
            }
            Self::BlobAck { group, next, time_s, signature } => {
                out.extend_from_slice(&group.0);
                out.extend_from_slice(&next.to_be_bytes());
                out.extend_from_slice(&time_s.to_be_bytes());
                out.extend_from_slice(&signature.serialize_compact());
            }
            Self::AskReceipt(group) | Self::Release(group) | Self::Released(group) => out.extend_from_slice(&group.0),
            Self::Ping | Self::Pong | Self::ListGroups => {}
            Self::Error(text) => out.extend_from_slice(cut(text).as_bytes()),
        }
    }

    /// Reads one message, which must be all of `bytes`.
    ///
    /// # Errors
    /// [`DecodeError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let short = DecodeError::TooShort { kind: 0, bytes: bytes.len() };
        let (kind, rest) = bytes.split_first_chunk().ok_or(short)?;
        Fields::new(u16::from_be_bytes(*kind), bytes.len(), rest).message()
    }
}

fn put_handle(out: &mut Vec<u8>, handle: Handle) {
    out.extend_from_slice(&handle.0.to_be_bytes());
}

/// Six bytes: a number has at most 48 bits, and the one after the last is never sent.
fn put_number(out: &mut Vec<u8>, number: CommitmentNumber) {
    out.extend_from_slice(&number.0.min(CommitmentNumber::MAX.0).to_be_bytes()[2..]);
}

fn put_outpoint(out: &mut Vec<u8>, outpoint: &OutPoint) {
    out.extend_from_slice(outpoint.txid.as_byte_array());
    out.extend_from_slice(&outpoint.vout.to_be_bytes());
}

fn put_held(out: &mut Vec<u8>, held: &Held) {
    put_handle(out, held.handle);
    put_outpoint(out, &held.funding_outpoint);
    put_number(out, held.next);
    out.push(u8::from(held.is_resolved));
}

fn put_held_group(out: &mut Vec<u8>, held: &HeldGroup) {
    out.extend_from_slice(&held.group.0);
    out.extend_from_slice(&held.next.to_be_bytes());
}

fn put_about(out: &mut Vec<u8>, about: &About) {
    match about {
        About::Channel(handle) => {
            out.push(0);
            put_handle(out, *handle);
        }
        About::Registration(outpoint) => {
            out.push(1);
            put_outpoint(out, outpoint);
        }
        About::Group(group) => {
            out.push(2);
            out.extend_from_slice(&group.0);
        }
    }
}

/// As much of a text as may be sent.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests;
