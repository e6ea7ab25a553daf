//! The announcements that peers pass on: `channel_announcement`, `node_announcement`, `channel_update` (BOLT 7).
//!
//! Their signatures cover bytes that this node may not understand, so each keeps the bytes it came as, and those are
//! what is relayed. Neither signatures nor the chain are checked here.

use core::fmt;

use bitcoin::hashes::{Hash as _, sha256d};
use lightning::ln::msgs;
use lightning::util::ser::{LengthReadable, Writeable};

use super::codec::Reader;
use super::error::DecodeError;
use super::payload::{Payload, read_foreign_part};

/// The names of all messages of BOLT 7 but `announcement_signatures`, which belongs to a channel.
pub(crate) const NAMES: [&str; 8] = [
    "channel_announcement",
    "node_announcement",
    "channel_update",
    "query_short_channel_ids",
    "reply_short_channel_ids_end",
    "query_channel_range",
    "reply_channel_range",
    "gossip_timestamp_filter",
];

/// Those of them that want an answer.
pub(crate) const QUESTIONS: [&str; 2] = ["query_short_channel_ids", "query_channel_range"];

/// LDK's struct together with the bytes it was read from.
#[derive(Clone, PartialEq, Eq)]
pub struct Verbatim<T> {
    parsed: T,
    bytes: Box<[u8]>,
}

/// A [`channel_announcement`](msgs::ChannelAnnouncement) with its bytes.
pub type ChannelAnnouncement = Verbatim<msgs::ChannelAnnouncement>;
/// A [`node_announcement`](msgs::NodeAnnouncement) with its bytes.
pub type NodeAnnouncement = Verbatim<msgs::NodeAnnouncement>;
/// A [`channel_update`](msgs::ChannelUpdate) with its bytes.
pub type ChannelUpdate = Verbatim<msgs::ChannelUpdate>;

impl<T: Writeable> Verbatim<T> {
    /// One of our own making.
    #[must_use]
    pub fn new(message: T) -> Self {
        let bytes = message.encode().into();
        Self { parsed: message, bytes }
    }
}

impl<T> Verbatim<T> {
    /// The fields.
    #[must_use]
    pub const fn parsed(&self) -> &T {
        &self.parsed
    }

    /// The bytes behind the type number, exactly as they came: what to store and to relay.
    #[must_use]
    pub const fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The fields alone.
    #[must_use]
    pub fn into_parsed(self) -> T {
        self.parsed
    }
}

impl<T> Verbatim<T>
where
    Self: Signed,
{
    /// What the signatures sign: the double SHA-256 of everything behind them.
    #[must_use]
    pub fn signed_hash(&self) -> [u8; 32] {
        let signed = self.bytes.get(Self::SIGNATURES * 64..).unwrap_or_default();
        sha256d::Hash::hash(signed).to_byte_array()
    }
}

/// How many signatures stand at a message's beginning. Implemented by the three announcements only.
pub trait Signed: sealed::Sealed {
    /// The number of signatures.
    const SIGNATURES: usize;
}

mod sealed {
    pub trait Sealed {}
    impl<T> Sealed for super::Verbatim<T> {}
}

impl Signed for ChannelAnnouncement {
    const SIGNATURES: usize = 4;
}

impl Signed for NodeAnnouncement {
    const SIGNATURES: usize = 1;
}

impl Signed for ChannelUpdate {
    const SIGNATURES: usize = 1;
}

/// What LDK does not understand it keeps as excess data, so nothing is left behind its struct. It reserves memory by
/// the lengths it reads, so those are checked first.
fn read_verbatim<T: LengthReadable>(r: &mut Reader<'_>) -> Result<Verbatim<T>, DecodeError> {
    let bytes = r.peek().into();
    let parsed = read_foreign_part(r)?;
    Ok(Verbatim { parsed, bytes })
}

impl Payload for ChannelAnnouncement {
    const TYPE: u16 = 256;
    const NAME: &'static str = "channel_announcement";

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut ahead = r.fork();
        ahead.take("signatures", Self::SIGNATURES * 64)?;
        ahead.counted("features")?;
        read_verbatim(r)
    }
}

impl Payload for NodeAnnouncement {
    const TYPE: u16 = 257;
    const NAME: &'static str = "node_announcement";

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut ahead = r.fork();
        ahead.take("signature", Self::SIGNATURES * 64)?;
        ahead.counted("features")?;
        ahead.take("timestamp, node_id, rgb_color, alias", 4 + 33 + 3 + 32)?;
        ahead.counted("addresses")?;
        read_verbatim(r)
    }
}

impl Payload for ChannelUpdate {
    const TYPE: u16 = 258;
    const NAME: &'static str = "channel_update";

    fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        read_verbatim(r)
    }
}

impl<T: fmt::Debug> fmt::Debug for Verbatim<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.parsed.fmt(f)
    }
}
