//! `funding_created`, `funding_signed` and `channel_ready` (BOLT 2, "Channel Establishment v1").

use bitcoin::Txid;
use bitcoin::hashes::Hash as _;
use secp256k1::PublicKey;
use secp256k1::ecdsa::Signature;

use super::codec::{Put as _, Reader};
use super::error::DecodeError;
use super::payload::Payload;
use crate::id::{ChannelId, ShortChannelId};

/// The funder names the funding output and signs the fundee's first commitment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FundingCreated {
    /// The channel's name until now.
    pub temporary_channel_id: ChannelId,
    /// The funding transaction.
    pub funding_txid: Txid,
    /// Its output that funds the channel.
    pub funding_output_index: u16,
    /// On the fundee's first commitment.
    pub signature: Signature,
}

/// The fundee signs the funder's first commitment.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FundingSigned {
    /// The channel's name from now on.
    pub channel_id: ChannelId,
    /// On the funder's first commitment.
    pub signature: Signature,
}

/// The sender has seen the funding deep enough.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChannelReady {
    /// The channel.
    pub channel_id: ChannelId,
    /// Point of the sender's second commitment.
    pub next_per_commitment_point: PublicKey,
    /// A name under which the receiver may route to the sender.
    pub alias: Option<ShortChannelId>,
}

impl Payload for FundingCreated {
    const TYPE: u16 = 34;
    const NAME: &'static str = "funding_created";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.temporary_channel_id.0);
        out.put(&self.funding_txid.to_byte_array());
        out.put_u16(self.funding_output_index);
        out.put_signature(&self.signature);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let created = Self {
            temporary_channel_id: ChannelId(r.array("temporary_channel_id")?),
            funding_txid: Txid::from_byte_array(r.array("funding_txid")?),
            funding_output_index: r.u16("funding_output_index")?,
            signature: r.signature("signature")?,
        };
        r.unknown_extension()?;
        Ok(created)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.temporary_channel_id)
    }
}

impl Payload for FundingSigned {
    const TYPE: u16 = 35;
    const NAME: &'static str = "funding_signed";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_signature(&self.signature);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let signed = Self { channel_id: ChannelId(r.array("channel_id")?), signature: r.signature("signature")? };
        r.unknown_extension()?;
        Ok(signed)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for ChannelReady {
    const TYPE: u16 = 36;
    const NAME: &'static str = "channel_ready";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_point(&self.next_per_commitment_point);
        if let Some(alias) = self.alias {
            out.put_tlv(1, &alias.0.to_be_bytes());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut ready = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            next_per_commitment_point: r.point("second_per_commitment_point")?,
            alias: None,
        };
        r.tlv_stream(|kind, value| {
            if kind != 1 {
                return Ok(false);
            }
            ready.alias = Some(ShortChannelId(value.u64("short_channel_id")?));
            Ok(true)
        })?;
        Ok(ready)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}
