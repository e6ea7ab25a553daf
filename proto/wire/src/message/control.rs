//! The messages about the connection itself: `init`, `error`, `warning`, `ping`, `pong` (BOLT 1).
//!
//! What to do about them is the connection's business.

use core::fmt::Write as _;

use lightning::ln::msgs::SocketAddress;
use lightning::util::ser::{Readable as _, Writeable as _};

use super::codec::{Put as _, Reader};
use super::error::{DecodeError, FieldFault};
use super::payload::Payload;
use crate::feature::Features;
use crate::id::{ChainHash, ChannelId};

/// The first message on a connection: what each side can do and wants.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Init {
    /// The union of `globalfeatures` and `features`.
    pub features: Features,
    /// The chains that the sender is interested in; empty when it did not say.
    pub networks: Vec<ChainHash>,
    /// The address under which the sender sees the receiver. One of a kind unknown to us reads as none.
    pub remote_address: Option<SocketAddress>,
}

/// BOLT 1, "The `init` Message": `globalfeatures` should not set bits above 13.
const GLOBAL_FEATURE_BITS: u32 = 14;

impl Payload for Init {
    const TYPE: u16 = 16;
    const NAME: &'static str = "init";

    fn write(&self, out: &mut Vec<u8>) {
        let low: Vec<u32> = self.features.bits().filter(|bit| *bit < GLOBAL_FEATURE_BITS).collect();
        out.put_counted(&Features::from_bits(&low).to_be_bytes());
        out.put_counted(&self.features.to_be_bytes());
        if !self.networks.is_empty() {
            let hashes: Vec<&[u8]> = self.networks.iter().map(|hash| &hash.as_bytes()[..]).collect();
            out.put_tlv(1, &hashes.concat());
        }
        if let Some(address) = &self.remote_address {
            out.put_tlv(3, &address.encode());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let global = Features::from_be_bytes(r.counted("globalfeatures")?);
        let local = Features::from_be_bytes(r.counted("features")?);
        let mut init = Self { features: global.union(&local), ..Self::default() };
        r.tlv_stream(|kind, value| {
            match kind {
                1 => init.networks = read_networks(value)?,
                3 => init.remote_address = read_address(value)?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(init)
    }
}

fn read_networks(value: &mut Reader<'_>) -> Result<Vec<ChainHash>, DecodeError> {
    let found = value.remaining();
    if !found.is_multiple_of(32) {
        let expected = "a whole number of 32-byte chain hashes";
        return Err(value.fault("networks", FieldFault::Value { expected, found: found as u64 }));
    }
    let mut networks = Vec::with_capacity(found / 32);
    while value.remaining() > 0 {
        networks.push(ChainHash::from(value.array("networks")?));
    }
    Ok(networks)
}

fn read_address(value: &mut Reader<'_>) -> Result<Option<SocketAddress>, DecodeError> {
    let mut rest = value.peek();
    let before = rest.len();
    let read: Result<Result<SocketAddress, u8>, _> = Result::read(&mut rest);
    match read {
        Ok(Ok(address)) => {
            value.skip(before - rest.len());
            Ok(Some(address))
        }
        Ok(Err(_unknown_descriptor)) => {
            value.rest();
            Ok(None)
        }
        Err(fault) => {
            let reason = format!("{fault:?}");
            Err(value.fault("remote_addr", FieldFault::Refused { reason }))
        }
    }
}

/// The sender fails a channel, or all of them when the id is all zero.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Error {
    /// The channel, or [`ChannelId::ALL`].
    pub channel_id: ChannelId,
    /// Usually text, but any bytes: show it through [`Error::text`] only.
    pub data: Vec<u8>,
}

/// The sender dislikes something and keeps its channels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// The channel, or [`ChannelId::ALL`].
    pub channel_id: ChannelId,
    /// Usually text, but any bytes: show it through [`Warning::text`] only.
    pub data: Vec<u8>,
}

impl Error {
    /// About one channel.
    #[must_use]
    pub fn new(channel_id: ChannelId, text: &str) -> Self {
        Self { channel_id, data: text.as_bytes().to_vec() }
    }

    /// Whether it fails every channel with the sender.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        self.channel_id.is_all()
    }

    /// What it says, safe to print.
    #[must_use]
    pub fn text(&self) -> String {
        printable_text(&self.data)
    }
}

impl Warning {
    /// About one channel.
    #[must_use]
    pub fn new(channel_id: ChannelId, text: &str) -> Self {
        Self { channel_id, data: text.as_bytes().to_vec() }
    }

    /// Whether it speaks of every channel with the sender, or of the connection.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        self.channel_id.is_all()
    }

    /// What it says, safe to print.
    #[must_use]
    pub fn text(&self) -> String {
        printable_text(&self.data)
    }
}

/// So much of a peer's words goes into a log.
const PRINTABLE_BYTES_MAX: usize = 512;

/// A peer's bytes as text that is safe to print: everything but printable ASCII as `\xNN`,
/// and no more than 512 of them.
///
/// BOLT 1: data that is not all printable ASCII should not be printed as it is. A backslash is written twice, so that
/// the text is unambiguous.
#[must_use]
pub fn printable_text(data: &[u8]) -> String {
    let mut text = String::with_capacity(data.len().min(PRINTABLE_BYTES_MAX));
    for byte in data.iter().take(PRINTABLE_BYTES_MAX) {
        match byte {
            b'\\' => text.push_str("\\\\"),
            b' '..=b'~' => text.push(char::from(*byte)),
            _ => write!(text, "\\x{byte:02x}").expect("a String takes every write"),
        }
    }
    if data.len() > PRINTABLE_BYTES_MAX {
        let more = data.len() - PRINTABLE_BYTES_MAX;
        write!(text, "… ({more} bytes more)").expect("a String takes every write");
    }
    text
}

fn write_complaint(channel_id: ChannelId, data: &[u8], out: &mut Vec<u8>) {
    out.put(&channel_id.0);
    out.put_counted(data);
}

fn read_complaint(r: &mut Reader<'_>) -> Result<(ChannelId, Vec<u8>), DecodeError> {
    let channel_id = ChannelId(r.array("channel_id")?);
    let data = r.counted("data")?.to_vec();
    r.unknown_extension()?;
    Ok((channel_id, data))
}

fn one_channel(channel_id: ChannelId) -> Option<ChannelId> {
    (!channel_id.is_all()).then_some(channel_id)
}

impl Payload for Error {
    const TYPE: u16 = 17;
    const NAME: &'static str = "error";

    fn write(&self, out: &mut Vec<u8>) {
        write_complaint(self.channel_id, &self.data, out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        read_complaint(r).map(|(channel_id, data)| Self { channel_id, data })
    }

    fn channel_id(&self) -> Option<ChannelId> {
        one_channel(self.channel_id)
    }
}

impl Payload for Warning {
    const TYPE: u16 = 1;
    const NAME: &'static str = "warning";

    fn write(&self, out: &mut Vec<u8>) {
        write_complaint(self.channel_id, &self.data, out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        read_complaint(r).map(|(channel_id, data)| Self { channel_id, data })
    }

    fn channel_id(&self) -> Option<ChannelId> {
        one_channel(self.channel_id)
    }
}

/// Asks whether the peer is still there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ping {
    /// How many bytes the answer should have.
    pub num_pong_bytes: u16,
    /// How many bytes without meaning follow.
    pub ignored_len: u16,
}

/// Answers a [`Ping`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pong {
    /// How many bytes without meaning follow.
    pub ignored_len: u16,
}

impl Ping {
    /// From this number of bytes on, a ping wants no answer: a `pong` could not carry so many.
    pub const NUM_PONG_BYTES_SILENT: u16 = 65_532;

    /// The answer owed. BOLT 1: a ping that asks for 65532 bytes or more is ignored; it is no error.
    #[must_use]
    pub const fn pong(&self) -> Option<Pong> {
        if self.num_pong_bytes >= Self::NUM_PONG_BYTES_SILENT {
            return None;
        }
        Some(Pong { ignored_len: self.num_pong_bytes })
    }
}

fn put_ignored(len: u16, out: &mut Vec<u8>) {
    out.put_u16(len);
    out.resize(out.len() + usize::from(len), 0);
}

fn read_ignored(r: &mut Reader<'_>) -> Result<u16, DecodeError> {
    let ignored = r.counted("ignored")?;
    let len = u16::try_from(ignored.len()).expect("its count has two bytes");
    r.unknown_extension()?;
    Ok(len)
}

impl Payload for Ping {
    const TYPE: u16 = 18;
    const NAME: &'static str = "ping";

    fn write(&self, out: &mut Vec<u8>) {
        out.put_u16(self.num_pong_bytes);
        put_ignored(self.ignored_len, out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let num_pong_bytes = r.u16("num_pong_bytes")?;
        Ok(Self { num_pong_bytes, ignored_len: read_ignored(r)? })
    }
}

impl Payload for Pong {
    const TYPE: u16 = 19;
    const NAME: &'static str = "pong";

    fn write(&self, out: &mut Vec<u8>) {
        put_ignored(self.ignored_len, out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { ignored_len: read_ignored(r)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_that_asks_for_too_much_is_not_answered() {
        for (asked, answered) in [(0, true), (65_531, true), (65_532, false), (65_535, false)] {
            let pong = Ping { num_pong_bytes: asked, ignored_len: 0 }.pong();
            assert_eq!(pong, answered.then_some(Pong { ignored_len: asked }), "{asked}");
        }
    }

    #[test]
    fn text_of_a_peer_is_safe_to_print() {
        assert_eq!(printable_text(b"bad sig: a\\b"), "bad sig: a\\\\b");
        assert_eq!(printable_text(b"\x1b[31m\n\xff\0"), "\\x1b[31m\\x0a\\xff\\x00");
        let long = printable_text(&[b'a'; 600]);
        assert_eq!(long, format!("{}… (88 bytes more)", "a".repeat(512)));
    }

    #[test]
    fn all_zero_channel_id_means_all_channels() {
        let all = Error::new(ChannelId::ALL, "internal error");
        assert!(all.is_for_all() && Payload::channel_id(&all).is_none());
        let one = Warning::new(ChannelId([1; 32]), "late");
        assert!(!one.is_for_all() && Payload::channel_id(&one) == Some(ChannelId([1; 32])));
        assert_eq!(one.text(), "late");
    }
}
