//! `open_channel` and `accept_channel` (BOLT 2, "Channel Establishment v1").
//!
//! Whether the terms are acceptable is decided by the channel.

use bitcoin::ScriptBuf;
use secp256k1::PublicKey;

use super::codec::{Put as _, Reader};
use super::error::DecodeError;
use super::payload::Payload;
use crate::amount::{Msat, Sat};
use crate::feature::Features;
use crate::fee::FeeratePerKw;
use crate::id::{ChainHash, ChannelId};

/// The funder's terms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenChannel {
    /// The chain that the channel will be on.
    pub chain_hash: ChainHash,
    /// The channel's name until it is funded.
    pub temporary_channel_id: ChannelId,
    /// The channel's capacity.
    pub funding: Sat,
    /// How much of it the funder gives away at once.
    pub push: Msat,
    /// The funder's commitment has no output below this.
    pub dust_limit: Sat,
    /// The most that may be offered to the funder and unresolved at one time.
    pub max_htlc_value_in_flight: Msat,
    /// What the fundee must keep for itself.
    pub channel_reserve: Sat,
    /// The smallest HTLC that the funder accepts.
    pub htlc_minimum: Msat,
    /// The first commitment's feerate.
    pub feerate: FeeratePerKw,
    /// How many blocks the fundee's own main output is delayed.
    pub to_self_delay: u16,
    /// The most HTLCs that may be offered to the funder at one time.
    pub max_accepted_htlcs: u16,
    /// The funder's key in the funding output.
    pub funding_pubkey: PublicKey,
    /// Basepoint of the keys that revoked commitments give to the other side.
    pub revocation_basepoint: PublicKey,
    /// The key of the funder's main output in the fundee's commitment.
    pub payment_basepoint: PublicKey,
    /// Basepoint of the funder's delayed outputs.
    pub delayed_payment_basepoint: PublicKey,
    /// Basepoint of the funder's HTLC keys.
    pub htlc_basepoint: PublicKey,
    /// Point of the funder's first commitment.
    pub first_per_commitment_point: PublicKey,
    /// Bit 0: the channel may be announced.
    pub channel_flags: u8,
    /// Where a cooperative close must pay the funder. Present and empty means that it is left open.
    pub upfront_shutdown_script: Option<ScriptBuf>,
    /// The features that make the channel's type.
    pub channel_type: Option<Features>,
}

/// The fundee's terms.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AcceptChannel {
    /// The channel's name until it is funded.
    pub temporary_channel_id: ChannelId,
    /// The fundee's commitment has no output below this.
    pub dust_limit: Sat,
    /// The most that may be offered to the fundee and unresolved at one time.
    pub max_htlc_value_in_flight: Msat,
    /// What the funder must keep for itself.
    pub channel_reserve: Sat,
    /// The smallest HTLC that the fundee accepts.
    pub htlc_minimum: Msat,
    /// Confirmations of the funding transaction before `channel_ready`; 0 with zero-conf.
    pub minimum_depth: u32,
    /// How many blocks the funder's own main output is delayed.
    pub to_self_delay: u16,
    /// The most HTLCs that may be offered to the fundee at one time.
    pub max_accepted_htlcs: u16,
    /// The fundee's key in the funding output.
    pub funding_pubkey: PublicKey,
    /// Basepoint of the keys that revoked commitments give to the other side.
    pub revocation_basepoint: PublicKey,
    /// The key of the fundee's main output in the funder's commitment.
    pub payment_basepoint: PublicKey,
    /// Basepoint of the fundee's delayed outputs.
    pub delayed_payment_basepoint: PublicKey,
    /// Basepoint of the fundee's HTLC keys.
    pub htlc_basepoint: PublicKey,
    /// Point of the fundee's first commitment.
    pub first_per_commitment_point: PublicKey,
    /// Where a cooperative close must pay the fundee. Present and empty means that it is left open.
    pub upfront_shutdown_script: Option<ScriptBuf>,
    /// The features that make the channel's type.
    pub channel_type: Option<Features>,
}

/// The extension that both messages share.
#[derive(Default)]
struct Extension {
    upfront_shutdown_script: Option<ScriptBuf>,
    channel_type: Option<Features>,
}

impl Extension {
    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut extension = Self::default();
        r.tlv_stream(|kind, value| {
            match kind {
                0 => {
                    let script = ScriptBuf::from_bytes(value.rest().to_vec());
                    extension.upfront_shutdown_script = Some(script);
                }
                1 => extension.channel_type = Some(Features::from_be_bytes(value.rest())),
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        Ok(extension)
    }
}

fn write_extension(script: Option<&ScriptBuf>, channel_type: Option<&Features>, out: &mut Vec<u8>) {
    if let Some(script) = script {
        out.put_tlv(0, script.as_bytes());
    }
    if let Some(channel_type) = channel_type {
        out.put_tlv(1, &channel_type.to_be_bytes());
    }
}

impl Payload for OpenChannel {
    const TYPE: u16 = 32;
    const NAME: &'static str = "open_channel";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(self.chain_hash.as_bytes());
        out.put(&self.temporary_channel_id.0);
        out.put_u64(self.funding.0);
        out.put_u64(self.push.0);
        out.put_u64(self.dust_limit.0);
        out.put_u64(self.max_htlc_value_in_flight.0);
        out.put_u64(self.channel_reserve.0);
        out.put_u64(self.htlc_minimum.0);
        out.put_u32(self.feerate.0);
        out.put_u16(self.to_self_delay);
        out.put_u16(self.max_accepted_htlcs);
        out.put_point(&self.funding_pubkey);
        out.put_point(&self.revocation_basepoint);
        out.put_point(&self.payment_basepoint);
        out.put_point(&self.delayed_payment_basepoint);
        out.put_point(&self.htlc_basepoint);
        out.put_point(&self.first_per_commitment_point);
        out.put_u8(self.channel_flags);
        write_extension(self.upfront_shutdown_script.as_ref(), self.channel_type.as_ref(), out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut open = Self {
            chain_hash: ChainHash::from(r.array("chain_hash")?),
            temporary_channel_id: ChannelId(r.array("temporary_channel_id")?),
            funding: Sat(r.u64("funding_satoshis")?),
            push: Msat(r.u64("push_msat")?),
            dust_limit: Sat(r.u64("dust_limit_satoshis")?),
            max_htlc_value_in_flight: Msat(r.u64("max_htlc_value_in_flight_msat")?),
            channel_reserve: Sat(r.u64("channel_reserve_satoshis")?),
            htlc_minimum: Msat(r.u64("htlc_minimum_msat")?),
            feerate: FeeratePerKw(r.u32("feerate_per_kw")?),
            to_self_delay: r.u16("to_self_delay")?,
            max_accepted_htlcs: r.u16("max_accepted_htlcs")?,
            funding_pubkey: r.point("funding_pubkey")?,
            revocation_basepoint: r.point("revocation_basepoint")?,
            payment_basepoint: r.point("payment_basepoint")?,
            delayed_payment_basepoint: r.point("delayed_payment_basepoint")?,
            htlc_basepoint: r.point("htlc_basepoint")?,
            first_per_commitment_point: r.point("first_per_commitment_point")?,
            channel_flags: r.u8("channel_flags")?,
            upfront_shutdown_script: None,
            channel_type: None,
        };
        let extension = Extension::read(r)?;
        open.upfront_shutdown_script = extension.upfront_shutdown_script;
        open.channel_type = extension.channel_type;
        Ok(open)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.temporary_channel_id)
    }
}

impl Payload for AcceptChannel {
    const TYPE: u16 = 33;
    const NAME: &'static str = "accept_channel";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.temporary_channel_id.0);
        out.put_u64(self.dust_limit.0);
        out.put_u64(self.max_htlc_value_in_flight.0);
        out.put_u64(self.channel_reserve.0);
        out.put_u64(self.htlc_minimum.0);
        out.put_u32(self.minimum_depth);
        out.put_u16(self.to_self_delay);
        out.put_u16(self.max_accepted_htlcs);
        out.put_point(&self.funding_pubkey);
        out.put_point(&self.revocation_basepoint);
        out.put_point(&self.payment_basepoint);
        out.put_point(&self.delayed_payment_basepoint);
        out.put_point(&self.htlc_basepoint);
        out.put_point(&self.first_per_commitment_point);
        write_extension(self.upfront_shutdown_script.as_ref(), self.channel_type.as_ref(), out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut accept = Self {
            temporary_channel_id: ChannelId(r.array("temporary_channel_id")?),
            dust_limit: Sat(r.u64("dust_limit_satoshis")?),
            max_htlc_value_in_flight: Msat(r.u64("max_htlc_value_in_flight_msat")?),
            channel_reserve: Sat(r.u64("channel_reserve_satoshis")?),
            htlc_minimum: Msat(r.u64("htlc_minimum_msat")?),
            minimum_depth: r.u32("minimum_depth")?,
            to_self_delay: r.u16("to_self_delay")?,
            max_accepted_htlcs: r.u16("max_accepted_htlcs")?,
            funding_pubkey: r.point("funding_pubkey")?,
            revocation_basepoint: r.point("revocation_basepoint")?,
            payment_basepoint: r.point("payment_basepoint")?,
            delayed_payment_basepoint: r.point("delayed_payment_basepoint")?,
            htlc_basepoint: r.point("htlc_basepoint")?,
            first_per_commitment_point: r.point("first_per_commitment_point")?,
            upfront_shutdown_script: None,
            channel_type: None,
        };
        let extension = Extension::read(r)?;
        accept.upfront_shutdown_script = extension.upfront_shutdown_script;
        accept.channel_type = extension.channel_type;
        Ok(accept)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.temporary_channel_id)
    }
}
