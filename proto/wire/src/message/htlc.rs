//! `update_add_htlc` and the three ways in which an HTLC ends (BOLT 2, "Adding an HTLC" and "Removing an HTLC").
//!
//! The onion and the failure reason are opaque here: BOLT 4 gives them a meaning.

use core::fmt;

use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use super::codec::{Put as _, Reader, fixed_bytes};
use super::error::DecodeError;
use super::payload::Payload;
use crate::amount::Msat;
use crate::block::CltvExpiry;
use crate::id::{ChannelId, HtlcId, PaymentHash, Preimage};

/// A payment's route, wrapped for one hop after the other (BOLT 4): 1366 bytes of which nothing is known here.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OnionPacket(#[serde(with = "fixed_bytes")] pub [u8; 1366]);

/// Who held an HTLC for how long, each hop's word authenticated (BOLT 4, "Attribution data").
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AttributionData {
    /// Twenty times four bytes.
    #[serde(with = "fixed_bytes")]
    pub hold_times: [u8; 80],
    /// 210 truncated HMACs of four bytes.
    #[serde(with = "fixed_bytes")]
    pub hmacs: [u8; 840],
}

/// Offers an HTLC.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpdateAddHtlc {
    /// The channel.
    pub channel_id: ChannelId,
    /// The sender's count of HTLCs.
    pub id: HtlcId,
    /// What it is worth.
    pub amount: Msat,
    /// What it is locked to.
    pub payment_hash: PaymentHash,
    /// When it expires.
    pub cltv_expiry: CltvExpiry,
    /// Where it goes from here.
    pub onion: Box<OnionPacket>,
    /// The ephemeral key of a blinded route.
    pub path_key: Option<PublicKey>,
}

/// Claims an HTLC that the receiver of this message offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpdateFulfillHtlc {
    /// The channel.
    pub channel_id: ChannelId,
    /// The HTLC, by its offerer's count.
    pub id: HtlcId,
    /// What unlocks it.
    pub preimage: Preimage,
    /// Who held it for how long.
    pub attribution: Option<Box<AttributionData>>,
}

/// Gives up an HTLC that the receiver of this message offered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpdateFailHtlc {
    /// The channel.
    pub channel_id: ChannelId,
    /// The HTLC, by its offerer's count.
    pub id: HtlcId,
    /// Encrypted for the payer.
    pub reason: Vec<u8>,
    /// Who held it for how long.
    pub attribution: Option<Box<AttributionData>>,
}

/// Gives up an HTLC whose onion could not be read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpdateFailMalformedHtlc {
    /// The channel.
    pub channel_id: ChannelId,
    /// The HTLC, by its offerer's count.
    pub id: HtlcId,
    /// Of the onion that came.
    pub sha256_of_onion: [u8; 32],
    /// One of BOLT 4's codes with the BADONION bit.
    pub failure_code: u16,
}

/// The TLV type of attribution data in both messages that carry it.
const ATTRIBUTION: u64 = 1;

impl AttributionData {
    fn to_bytes(&self) -> Vec<u8> {
        [&self.hold_times[..], &self.hmacs[..]].concat()
    }

    fn read_extension(r: &mut Reader<'_>) -> Result<Option<Box<Self>>, DecodeError> {
        let mut attribution = None;
        r.tlv_stream(|kind, value| {
            if kind != ATTRIBUTION {
                return Ok(false);
            }
            let hold_times = value.array("htlc_hold_times")?;
            let hmacs = value.array("truncated_hmacs")?;
            attribution = Some(Box::new(Self { hold_times, hmacs }));
            Ok(true)
        })?;
        Ok(attribution)
    }
}

fn write_attribution(attribution: Option<&AttributionData>, out: &mut Vec<u8>) {
    if let Some(attribution) = attribution {
        out.put_tlv(ATTRIBUTION, &attribution.to_bytes());
    }
}

impl Payload for UpdateAddHtlc {
    const TYPE: u16 = 128;
    const NAME: &'static str = "update_add_htlc";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.id.0);
        out.put_u64(self.amount.0);
        out.put(&self.payment_hash.0);
        out.put_u32(self.cltv_expiry.0);
        out.put(&self.onion.0);
        if let Some(path_key) = &self.path_key {
            out.put_tlv(0, &path_key.serialize());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut add = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            id: HtlcId(r.u64("id")?),
            amount: Msat(r.u64("amount_msat")?),
            payment_hash: PaymentHash(r.array("payment_hash")?),
            cltv_expiry: CltvExpiry(r.u32("cltv_expiry")?),
            onion: Box::new(OnionPacket(r.array("onion_routing_packet")?)),
            path_key: None,
        };
        r.tlv_stream(|kind, value| {
            if kind != 0 {
                return Ok(false);
            }
            add.path_key = Some(value.point("path_key")?);
            Ok(true)
        })?;
        Ok(add)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for UpdateFulfillHtlc {
    const TYPE: u16 = 130;
    const NAME: &'static str = "update_fulfill_htlc";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.id.0);
        out.put(self.preimage.as_bytes());
        write_attribution(self.attribution.as_deref(), out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            channel_id: ChannelId(r.array("channel_id")?),
            id: HtlcId(r.u64("id")?),
            preimage: Preimage::new(r.array("payment_preimage")?),
            attribution: AttributionData::read_extension(r)?,
        })
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for UpdateFailHtlc {
    const TYPE: u16 = 131;
    const NAME: &'static str = "update_fail_htlc";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.id.0);
        out.put_counted(&self.reason);
        write_attribution(self.attribution.as_deref(), out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            channel_id: ChannelId(r.array("channel_id")?),
            id: HtlcId(r.u64("id")?),
            reason: r.counted("reason")?.to_vec(),
            attribution: AttributionData::read_extension(r)?,
        })
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for UpdateFailMalformedHtlc {
    const TYPE: u16 = 135;
    const NAME: &'static str = "update_fail_malformed_htlc";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.id.0);
        out.put(&self.sha256_of_onion);
        out.put_u16(self.failure_code);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let fail = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            id: HtlcId(r.u64("id")?),
            sha256_of_onion: r.array("sha256_of_onion")?,
            failure_code: r.u16("failure_code")?,
        };
        r.unknown_extension()?;
        Ok(fail)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl fmt::Debug for OnionPacket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnionPacket(…)")
    }
}

impl fmt::Debug for AttributionData {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AttributionData(…)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn onion_is_stored_as_its_bytes_and_only_at_its_length() {
        let onion = OnionPacket([7; 1366]);
        let stored = postcard::to_stdvec(&onion).unwrap();
        assert_eq!(stored.len(), 1366 + 2);
        assert_eq!(postcard::from_bytes::<OnionPacket>(&stored).unwrap(), onion);
        let short = postcard::to_stdvec(&vec![7u8; 1365]).unwrap();
        assert!(postcard::from_bytes::<OnionPacket>(&short).is_err());
        let text = serde_json::to_string(&onion).unwrap();
        assert_eq!(serde_json::from_str::<OnionPacket>(&text).unwrap(), onion);
        assert!(serde_json::from_str::<OnionPacket>("[1,2]").is_err());
    }

    #[test]
    fn attribution_is_stored_as_its_bytes() {
        let attribution = AttributionData { hold_times: [1; 80], hmacs: [2; 840] };
        let stored = postcard::to_stdvec(&attribution).unwrap();
        assert_eq!(stored.len(), 1 + 80 + 2 + 840);
        assert_eq!(postcard::from_bytes::<AttributionData>(&stored).unwrap(), attribution);
    }
}
