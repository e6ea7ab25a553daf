//! Questions about gossip and their answers (BOLT 7, "Query Messages" and "Initial Sync").
//!
//! Only the uncompressed encoding is spoken: the compressed one is out of BOLT 7, and a few bytes of it could unpack to
//! very many. Unlike LDK's structs these keep the extensions (`gossip_queries_ex`); they convert to LDK's
//! and back.

use lightning::ln::msgs;

use super::codec::{Put as _, Reader};
use super::error::{DecodeError, FieldFault};
use super::payload::Payload;
use crate::block::BlockHeight;
use crate::id::{ChainHash, ShortChannelId};

/// Asks for the announcements of some channels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QueryShortChannelIds {
    /// The chain.
    pub chain_hash: ChainHash,
    /// The channels.
    pub short_channel_ids: Vec<ShortChannelId>,
    /// What is wanted of each channel, one set of bits for each.
    pub query_flags: Option<Vec<u64>>,
}

/// Ends the answer to [`QueryShortChannelIds`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReplyShortChannelIdsEnd {
    /// The chain.
    pub chain_hash: ChainHash,
    /// Whether the sender keeps up-to-date gossip of this chain.
    pub full_information: bool,
}

/// Asks which channels were opened in some blocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct QueryChannelRange {
    /// The chain.
    pub chain_hash: ChainHash,
    /// The first block.
    pub first_block: BlockHeight,
    /// How many blocks.
    pub number_of_blocks: u32,
    /// Bit 0: timestamps are wanted; bit 1: checksums.
    pub query_options: Option<u64>,
}

/// One part of the answer to [`QueryChannelRange`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReplyChannelRange {
    /// The chain.
    pub chain_hash: ChainHash,
    /// The first block that this part is about.
    pub first_block: BlockHeight,
    /// How many blocks.
    pub number_of_blocks: u32,
    /// Whether the sender keeps up-to-date gossip of this chain.
    pub sync_complete: bool,
    /// The channels.
    pub short_channel_ids: Vec<ShortChannelId>,
    /// When each channel's two updates were made.
    pub timestamps: Option<Vec<PerDirection>>,
    /// CRC32C of each channel's two updates.
    pub checksums: Option<Vec<PerDirection>>,
}

/// A number for each of a channel's two `channel_update`s; zero when there is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PerDirection {
    /// For the update of the node with the lesser key.
    pub node_1: u32,
    /// For the other's.
    pub node_2: u32,
}

/// Starts the flow of gossip and narrows it by time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GossipTimestampFilter {
    /// The chain.
    pub chain_hash: ChainHash,
    /// From this time on, in seconds of Unix time.
    pub first_timestamp: u32,
    /// For so many seconds.
    pub timestamp_range: u32,
}

impl QueryChannelRange {
    /// The last block asked about; `None` when no block is.
    #[must_use]
    pub fn last_block(&self) -> Option<BlockHeight> {
        last_block(self.first_block, self.number_of_blocks)
    }
}

impl ReplyChannelRange {
    /// The last block that this part is about; `None` when it is about none.
    #[must_use]
    pub fn last_block(&self) -> Option<BlockHeight> {
        last_block(self.first_block, self.number_of_blocks)
    }
}

/// A range that runs past the last possible height ends there.
fn last_block(first: BlockHeight, count: u32) -> Option<BlockHeight> {
    let further = count.checked_sub(1)?;
    Some(BlockHeight(first.0.saturating_add(further)))
}

/// The only encoding type of lists: plain.
const UNCOMPRESSED: u8 = 0;

fn read_encoding(r: &mut Reader<'_>, field: &'static str) -> Result<(), DecodeError> {
    let found = r.u8(field)?;
    if found != UNCOMPRESSED {
        let expected = "encoding type 0 (uncompressed)";
        return Err(r.fault(field, FieldFault::Value { expected, found: u64::from(found) }));
    }
    Ok(())
}

/// How many items of `size` bytes are left, when they are whole.
fn count_items(r: &Reader<'_>, field: &'static str, size: usize) -> Result<usize, DecodeError> {
    let found = r.remaining();
    if !found.is_multiple_of(size) {
        let expected = "a length of whole items";
        return Err(r.fault(field, FieldFault::Value { expected, found: found as u64 }));
    }
    Ok(found / size)
}

fn read_short_channel_ids(r: &mut Reader<'_>) -> Result<Vec<ShortChannelId>, DecodeError> {
    const FIELD: &str = "encoded_short_ids";
    let mut list = r.counted_reader(FIELD)?;
    read_encoding(&mut list, FIELD)?;
    let mut ids = Vec::with_capacity(count_items(&list, FIELD, 8)?);
    while list.remaining() > 0 {
        ids.push(ShortChannelId(list.u64(FIELD)?));
    }
    Ok(ids)
}

fn put_short_channel_ids(ids: &[ShortChannelId], out: &mut Vec<u8>) {
    out.put_count(1 + 8 * ids.len());
    out.put_u8(UNCOMPRESSED);
    for id in ids {
        out.put_u64(id.0);
    }
}

fn read_pairs(r: &mut Reader<'_>, field: &'static str) -> Result<Vec<PerDirection>, DecodeError> {
    let mut pairs = Vec::with_capacity(count_items(r, field, 8)?);
    while r.remaining() > 0 {
        pairs.push(PerDirection { node_1: r.u32(field)?, node_2: r.u32(field)? });
    }
    Ok(pairs)
}

fn put_pairs(pairs: &[PerDirection], out: &mut Vec<u8>) {
    for pair in pairs {
        out.put_u32(pair.node_1);
        out.put_u32(pair.node_2);
    }
}

impl Payload for QueryShortChannelIds {
    const TYPE: u16 = 261;
    const NAME: &'static str = "query_short_channel_ids";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(self.chain_hash.as_bytes());
        put_short_channel_ids(&self.short_channel_ids, out);
        if let Some(flags) = &self.query_flags {
            let mut value = vec![UNCOMPRESSED];
            flags.iter().for_each(|flag| value.put_big_size(*flag));
            out.put_tlv(1, &value);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut query = Self {
            chain_hash: ChainHash::from(r.array("chain_hash")?),
            short_channel_ids: read_short_channel_ids(r)?,
            query_flags: None,
        };
        r.tlv_stream(|kind, value| {
            if kind != 1 {
                return Ok(false);
            }
            read_encoding(value, "query_flags")?;
            let mut flags = Vec::with_capacity(query.short_channel_ids.len().min(value.remaining()));
            while value.remaining() > 0 {
                flags.push(value.big_size("query_flags")?);
            }
            query.query_flags = Some(flags);
            Ok(true)
        })?;
        Ok(query)
    }
}

impl Payload for ReplyShortChannelIdsEnd {
    const TYPE: u16 = 262;
    const NAME: &'static str = "reply_short_channel_ids_end";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(self.chain_hash.as_bytes());
        out.put_u8(u8::from(self.full_information));
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let reply = Self {
            chain_hash: ChainHash::from(r.array("chain_hash")?),
            full_information: r.u8("full_information")? != 0,
        };
        r.unknown_extension()?;
        Ok(reply)
    }
}

impl Payload for QueryChannelRange {
    const TYPE: u16 = 263;
    const NAME: &'static str = "query_channel_range";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(self.chain_hash.as_bytes());
        out.put_u32(self.first_block.0);
        out.put_u32(self.number_of_blocks);
        if let Some(options) = self.query_options {
            let mut value = Vec::new();
            value.put_big_size(options);
            out.put_tlv(1, &value);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut query = Self {
            chain_hash: ChainHash::from(r.array("chain_hash")?),
            first_block: BlockHeight(r.u32("first_blocknum")?),
            number_of_blocks: r.u32("number_of_blocks")?,
            query_options: None,
        };
        r.tlv_stream(|kind, value| {
            if kind != 1 {
                return Ok(false);
            }
            query.query_options = Some(value.big_size("query_option_flags")?);
            Ok(true)
        })?;
        Ok(query)
    }
}

impl Payload for ReplyChannelRange {
    const TYPE: u16 = 264;
    const NAME: &'static str = "reply_channel_range";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(self.chain_hash.as_bytes());
        out.put_u32(self.first_block.0);
        out.put_u32(self.number_of_blocks);
        out.put_u8(u8::from(self.sync_complete));
        put_short_channel_ids(&self.short_channel_ids, out);
        if let Some(timestamps) = &self.timestamps {
            let mut value = vec![UNCOMPRESSED];
            put_pairs(timestamps, &mut value);
            out.put_tlv(1, &value);
        }
        if let Some(checksums) = &self.checksums {
            let mut value = Vec::new();
            put_pairs(checksums, &mut value);
            out.put_tlv(3, &value);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut reply = Self {
            chain_hash: ChainHash::from(r.array("chain_hash")?),
            first_block: BlockHeight(r.u32("first_blocknum")?),
            number_of_blocks: r.u32("number_of_blocks")?,
            sync_complete: r.u8("sync_complete")? != 0,
            short_channel_ids: read_short_channel_ids(r)?,
            timestamps: None,
            checksums: None,
        };
        r.tlv_stream(|kind, value| {
            match kind {
                1 => {
                    read_encoding(value, "timestamps")?;
                    reply.timestamps = Some(read_pairs(value, "timestamps")?);
                }
                3 => reply.checksums = Some(read_pairs(value, "checksums")?),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(reply)
    }
}

impl Payload for GossipTimestampFilter {
    const TYPE: u16 = 265;
    const NAME: &'static str = "gossip_timestamp_filter";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(self.chain_hash.as_bytes());
        out.put_u32(self.first_timestamp);
        out.put_u32(self.timestamp_range);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let filter = Self {
            chain_hash: ChainHash::from(r.array("chain_hash")?),
            first_timestamp: r.u32("first_timestamp")?,
            timestamp_range: r.u32("timestamp_range")?,
        };
        r.unknown_extension()?;
        Ok(filter)
    }
}

fn from_raw(ids: Vec<u64>) -> Vec<ShortChannelId> {
    ids.into_iter().map(ShortChannelId).collect()
}

fn to_raw(ids: Vec<ShortChannelId>) -> Vec<u64> {
    ids.into_iter().map(|id| id.0).collect()
}

impl From<msgs::QueryShortChannelIds> for QueryShortChannelIds {
    fn from(query: msgs::QueryShortChannelIds) -> Self {
        let msgs::QueryShortChannelIds { chain_hash, short_channel_ids } = query;
        let short_channel_ids = from_raw(short_channel_ids);
        Self { chain_hash, short_channel_ids, query_flags: None }
    }
}

impl From<QueryShortChannelIds> for msgs::QueryShortChannelIds {
    fn from(query: QueryShortChannelIds) -> Self {
        let QueryShortChannelIds { chain_hash, short_channel_ids, query_flags: _ } = query;
        Self { chain_hash, short_channel_ids: to_raw(short_channel_ids) }
    }
}

impl From<msgs::ReplyShortChannelIdsEnd> for ReplyShortChannelIdsEnd {
    fn from(reply: msgs::ReplyShortChannelIdsEnd) -> Self {
        let msgs::ReplyShortChannelIdsEnd { chain_hash, full_information } = reply;
        Self { chain_hash, full_information }
    }
}

impl From<ReplyShortChannelIdsEnd> for msgs::ReplyShortChannelIdsEnd {
    fn from(reply: ReplyShortChannelIdsEnd) -> Self {
        let ReplyShortChannelIdsEnd { chain_hash, full_information } = reply;
        Self { chain_hash, full_information }
    }
}

impl From<msgs::QueryChannelRange> for QueryChannelRange {
    fn from(query: msgs::QueryChannelRange) -> Self {
        let msgs::QueryChannelRange { chain_hash, first_blocknum, number_of_blocks } = query;
        let first_block = BlockHeight(first_blocknum);
        Self { chain_hash, first_block, number_of_blocks, query_options: None }
    }
}

impl From<QueryChannelRange> for msgs::QueryChannelRange {
    fn from(query: QueryChannelRange) -> Self {
        let QueryChannelRange { chain_hash, first_block, number_of_blocks, query_options: _ } = query;
        Self { chain_hash, first_blocknum: first_block.0, number_of_blocks }
    }
}

impl From<msgs::ReplyChannelRange> for ReplyChannelRange {
    fn from(reply: msgs::ReplyChannelRange) -> Self {
        Self {
            chain_hash: reply.chain_hash,
            first_block: BlockHeight(reply.first_blocknum),
            number_of_blocks: reply.number_of_blocks,
            sync_complete: reply.sync_complete,
            short_channel_ids: from_raw(reply.short_channel_ids),
            timestamps: None,
            checksums: None,
        }
    }
}

impl From<ReplyChannelRange> for msgs::ReplyChannelRange {
    fn from(reply: ReplyChannelRange) -> Self {
        Self {
            chain_hash: reply.chain_hash,
            first_blocknum: reply.first_block.0,
            number_of_blocks: reply.number_of_blocks,
            sync_complete: reply.sync_complete,
            short_channel_ids: to_raw(reply.short_channel_ids),
        }
    }
}

impl From<msgs::GossipTimestampFilter> for GossipTimestampFilter {
    fn from(filter: msgs::GossipTimestampFilter) -> Self {
        let msgs::GossipTimestampFilter { chain_hash, first_timestamp, timestamp_range } = filter;
        Self { chain_hash, first_timestamp, timestamp_range }
    }
}

impl From<GossipTimestampFilter> for msgs::GossipTimestampFilter {
    fn from(filter: GossipTimestampFilter) -> Self {
        let GossipTimestampFilter { chain_hash, first_timestamp, timestamp_range } = filter;
        Self { chain_hash, first_timestamp, timestamp_range }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_of_no_blocks_and_range_past_the_end_do_not_wrap() {
        let chain_hash = ChainHash::REGTEST;
        let range = |first, number_of_blocks| {
            let first_block = BlockHeight(first);
            QueryChannelRange { chain_hash, first_block, number_of_blocks, query_options: None }
        };
        assert_eq!(range(5, 0).last_block(), None);
        assert_eq!(range(0, 0).last_block(), None);
        assert_eq!(range(5, 1).last_block(), Some(BlockHeight(5)));
        assert_eq!(range(5, u32::MAX).last_block(), Some(BlockHeight(u32::MAX)));
        assert_eq!(range(0, u32::MAX).last_block(), Some(BlockHeight(u32::MAX - 1)));
    }
}
