//! `announcement_signatures` (BOLT 7, "The `announcement_signatures` Message").

use secp256k1::ecdsa::Signature;

use super::codec::{Put as _, Reader};
use super::error::DecodeError;
use super::payload::Payload;
use crate::id::{ChannelId, ShortChannelId};

/// One end's signatures on the announcement of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AnnouncementSignatures {
    /// The channel.
    pub channel_id: ChannelId,
    /// Where its funding transaction stands, as the sender sees it.
    pub short_channel_id: ShortChannelId,
    /// By the sender's node key.
    pub node_signature: Signature,
    /// By the sender's `funding_pubkey`.
    pub bitcoin_signature: Signature,
}

impl Payload for AnnouncementSignatures {
    const TYPE: u16 = 259;
    const NAME: &'static str = "announcement_signatures";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.short_channel_id.0);
        out.put_signature(&self.node_signature);
        out.put_signature(&self.bitcoin_signature);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let signatures = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            short_channel_id: ShortChannelId(r.u64("short_channel_id")?),
            node_signature: r.signature("node_signature")?,
            bitcoin_signature: r.signature("bitcoin_signature")?,
        };
        r.unknown_extension()?;
        Ok(signatures)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}
