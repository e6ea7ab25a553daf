//! The graph as bytes, to be kept over a restart: every message as it came, so nothing is verified again.
//!
//! A magic number and a version; for each channel its capacity, when it was first heard of, the block that spends it (or
//! 0), its announcement and two updates (or nothing); then the nodes' announcements; then the CRC32C of it all. Numbers are
//! little-endian, and each message stands behind its length. The owner of the file may lose it: it can be asked for again.

use millrace_wire::{BlockHeight, ChainHash, Decoded, Message, Sat, ShortChannelId};
use thiserror::Error;

use super::allowance::Allowance;
use super::judge::AHEAD_SECONDS_MAX;
use super::{Announced, Channel, Direction, Graph, NodeId, Terms};

const MAGIC: &[u8; 8] = b"mr-graph";
const VERSION: u32 = 1;
/// No message is longer (BOLT 1).
const MESSAGE_BYTES_MAX: usize = 65_535;

/// Why bytes are no graph.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LoadError {
    /// They are of another program, or another version of this one.
    #[error("it is no graph of version {VERSION}")]
    Version,
    /// They are of another chain.
    #[error("it is of another chain")]
    OtherChain,
    /// They are damaged.
    #[error("it is damaged at byte {offset} of {len}: {what}")]
    Damaged {
        /// Where.
        offset: usize,
        /// Of how many bytes.
        len: usize,
        /// What is wrong.
        what: &'static str,
    },
}

impl Graph {
    /// Appends the whole graph.
    pub fn save(&self, out: &mut Vec<u8>) {
        let begin = out.len();
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(self.chain_hash.as_bytes());
        put_count(self.channels.len(), out);
        for channel in self.channels.values() {
            out.extend_from_slice(&channel.capacity.0.to_le_bytes());
            out.extend_from_slice(&channel.known_since.to_le_bytes());
            out.extend_from_slice(&channel.spent_at.map_or(0, |height| height.0).to_le_bytes());
            put_message(&channel.announcement, out);
            for terms in &channel.terms {
                put_message(terms.as_ref().map_or(&[], |terms| &terms.bytes), out);
            }
        }
        let announced: Vec<_> = self.nodes.values().filter_map(|node| node.announcement.as_ref()).collect();
        put_count(announced.len(), out);
        announced.iter().for_each(|announced| put_message(&announced.bytes, out));
        let crc = crc32c::crc32c(&out[begin..]);
        out.extend_from_slice(&crc.to_le_bytes());
    }

    /// Reads what [`Graph::save`] wrote. `now`, in seconds of Unix time, is when all allowances begin anew.
    ///
    /// # Errors
    /// [`LoadError`]: then there is nothing for it but to ask peers again.
    pub fn load(bytes: &[u8], chain_hash: ChainHash, now: u32) -> Result<Self, LoadError> {
        let mut from = From { bytes, at: 0 };
        if from.take(MAGIC.len()) != Ok(MAGIC.as_slice()) || from.u32() != Ok(VERSION) {
            return Err(LoadError::Version);
        }
        from.check_crc()?;
        if from.take(32)? != chain_hash.as_bytes() {
            return Err(LoadError::OtherChain);
        }
        let mut graph = Self::new(chain_hash);
        for _ in 0..from.u32()? {
            let (id, channel) = from.channel(now)?;
            graph.insert(id, channel);
        }
        for _ in 0..from.u32()? {
            let Message::NodeAnnouncement(announcement) = from.message(257)? else {
                return Err(from.damaged("no node_announcement"));
            };
            let contents = &announcement.parsed().contents;
            // Earlier versions took any time: one far ahead would keep out everything that the node says from now on.
            let is_ahead = contents.timestamp > now.saturating_add(AHEAD_SECONDS_MAX);
            if let Some(node) = graph.nodes.get_mut(&NodeId(*contents.node_id.as_array())).filter(|_| !is_ahead) {
                node.announcement = Some(Announced::new(&announcement, Allowance::full(now)));
            }
        }
        if from.at + CRC_BYTES == bytes.len() { Ok(graph) } else { Err(from.damaged("something behind its end")) }
    }
}

const CRC_BYTES: usize = 4;

fn put_count(count: usize, out: &mut Vec<u8>) {
    let count = u32::try_from(count).expect("a chain has fewer than 2^32 outputs");
    out.extend_from_slice(&count.to_le_bytes());
}

fn put_message(bytes: &[u8], out: &mut Vec<u8>) {
    let len = u16::try_from(bytes.len()).expect("a message has at most 65535 bytes");
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(bytes);
}

struct From<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> From<'a> {
    const fn damaged(&self, what: &'static str) -> LoadError {
        LoadError::Damaged { offset: self.at, len: self.bytes.len(), what }
    }

    fn check_crc(&self) -> Result<(), LoadError> {
        let Some((covered, crc)) = self.bytes.split_last_chunk::<CRC_BYTES>() else {
            return Err(self.damaged("it ends here"));
        };
        if crc32c::crc32c(covered) == u32::from_le_bytes(*crc) {
            Ok(())
        } else {
            Err(self.damaged("the checksum differs"))
        }
    }

    fn take(&mut self, len: usize) -> Result<&'a [u8], LoadError> {
        let end = self.at.checked_add(len).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| self.damaged("it ends here"))?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn number<const N: usize>(&mut self) -> Result<[u8; N], LoadError> {
        let taken = self.take(N)?;
        taken.try_into().map_err(|_| self.damaged("it ends here"))
    }

    fn u16(&mut self) -> Result<u16, LoadError> {
        self.number().map(u16::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, LoadError> {
        self.number().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, LoadError> {
        self.number().map(u64::from_le_bytes)
    }

    fn channel(&mut self, now: u32) -> Result<(ShortChannelId, Channel), LoadError> {
        let capacity = Sat(self.u64()?);
        let known_since = self.u32()?;
        let spent_at = Some(self.u32()?).filter(|height| *height > 0).map(BlockHeight);
        let Message::ChannelAnnouncement(announcement) = self.message(256)? else {
            return Err(self.damaged("no channel_announcement"));
        };
        let contents = &announcement.parsed().contents;
        let nodes = [contents.node_id_1, contents.node_id_2].map(|id| NodeId(*id.as_array()));
        let mut channel = Channel {
            nodes,
            capacity,
            announcement: announcement.bytes().into(),
            known_since,
            is_understood: !contents.features.requires_unknown_bits(),
            terms: [None, None],
            spent_at,
        };
        for direction in Direction::BOTH {
            if self.bytes.get(self.at..self.at + 2) == Some(&[0, 0]) {
                self.at += 2;
                continue;
            }
            let Message::ChannelUpdate(update) = self.message(258)? else {
                return Err(self.damaged("no channel_update"));
            };
            if Direction::of_update(&update.parsed().contents) != direction {
                return Err(self.damaged("the other side's channel_update"));
            }
            channel.terms[direction.index()] = Some(Terms::new(&update, Allowance::full(now)));
        }
        Ok((ShortChannelId(contents.short_channel_id), channel))
    }

    fn message(&mut self, type_number: u16) -> Result<Message, LoadError> {
        let len = usize::from(self.u16()?).min(MESSAGE_BYTES_MAX);
        let payload = self.take(len)?;
        let bytes = [&type_number.to_be_bytes(), payload].concat();
        match Message::decode(&bytes) {
            Ok(Decoded::Message(message)) => Ok(message),
            Ok(Decoded::Ignored { .. }) | Err(_) => Err(self.damaged("a message that does not decode")),
        }
    }
}
