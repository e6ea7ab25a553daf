//! `shutdown`, `closing_signed`, `closing_complete` and `closing_sig` (BOLT 2, "Channel Close").

use bitcoin::ScriptBuf;
use secp256k1::ecdsa::Signature;

use super::codec::{Put as _, Reader};
use super::error::DecodeError;
use super::payload::Payload;
use crate::amount::Sat;
use crate::id::ChannelId;

/// No new HTLCs; when the last has gone, close to this script.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shutdown {
    /// The channel.
    pub channel_id: ChannelId,
    /// Where the sender wants to be paid.
    pub script: ScriptBuf,
}

/// One step of the older fee negotiation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosingSigned {
    /// The channel.
    pub channel_id: ChannelId,
    /// The fee proposed.
    pub fee: Sat,
    /// On the closing transaction with that fee.
    pub signature: Signature,
    /// The fees that the sender accepts.
    pub fee_range: Option<FeeRange>,
}

/// Fees that the sender of [`ClosingSigned`] accepts, ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FeeRange {
    /// The lowest.
    pub min: Sat,
    /// The highest.
    pub max: Sat,
}

/// The closer pays the fee and offers transactions to sign (`option_simple_close`).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosingComplete {
    /// The channel.
    pub channel_id: ChannelId,
    /// Where the sender of this message is paid.
    pub closer_script: ScriptBuf,
    /// Where its receiver is paid.
    pub closee_script: ScriptBuf,
    /// Taken from the closer's output.
    pub fee: Sat,
    /// The transaction's lock time.
    pub locktime: u32,
    /// One for each transaction offered.
    pub signatures: ClosingSignatures,
}

/// The closee's answer, about the same transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosingSig {
    /// The channel.
    pub channel_id: ChannelId,
    /// Where the sender of `closing_complete` is paid.
    pub closer_script: ScriptBuf,
    /// Where the sender of this message is paid.
    pub closee_script: ScriptBuf,
    /// Taken from the closer's output.
    pub fee: Sat,
    /// The transaction's lock time.
    pub locktime: u32,
    /// Exactly one, by BOLT 2.
    pub signatures: ClosingSignatures,
}

/// Signatures on the variants of one closing transaction.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClosingSignatures {
    /// On the transaction that pays the closer only.
    pub closer_output_only: Option<Signature>,
    /// On the transaction that pays the closee only.
    pub closee_output_only: Option<Signature>,
    /// On the transaction that pays both.
    pub closer_and_closee_outputs: Option<Signature>,
}

impl ClosingSignatures {
    /// How many there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_type().iter().flatten().count()
    }

    fn by_type(&self) -> [Option<&Signature>; 3] {
        [self.closer_output_only.as_ref(), self.closee_output_only.as_ref(), self.closer_and_closee_outputs.as_ref()]
    }

    fn write(&self, out: &mut Vec<u8>) {
        for (kind, signature) in (1..).zip(self.by_type()) {
            if let Some(signature) = signature {
                out.put_tlv(kind, &signature.serialize_compact());
            }
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut signatures = Self::default();
        r.tlv_stream(|kind, value| {
            let (slot, field) = match kind {
                1 => (&mut signatures.closer_output_only, "closer_output_only"),
                2 => (&mut signatures.closee_output_only, "closee_output_only"),
                3 => (&mut signatures.closer_and_closee_outputs, "closer_and_closee_outputs"),
                _ => return Ok(false),
            };
            *slot = Some(value.signature(field)?);
            Ok(true)
        })?;
        Ok(signatures)
    }
}

fn read_script(r: &mut Reader<'_>, field: &'static str) -> Result<ScriptBuf, DecodeError> {
    r.counted(field).map(|bytes| ScriptBuf::from_bytes(bytes.to_vec()))
}

impl Payload for Shutdown {
    const TYPE: u16 = 38;
    const NAME: &'static str = "shutdown";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_counted(self.script.as_bytes());
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let shutdown = Self { channel_id: ChannelId(r.array("channel_id")?), script: read_script(r, "scriptpubkey")? };
        r.unknown_extension()?;
        Ok(shutdown)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for ClosingSigned {
    const TYPE: u16 = 39;
    const NAME: &'static str = "closing_signed";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.fee.0);
        out.put_signature(&self.signature);
        if let Some(range) = self.fee_range {
            out.put_tlv(1, &[range.min.0.to_be_bytes(), range.max.0.to_be_bytes()].concat());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut signed = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            fee: Sat(r.u64("fee_satoshis")?),
            signature: r.signature("signature")?,
            fee_range: None,
        };
        r.tlv_stream(|kind, value| {
            if kind != 1 {
                return Ok(false);
            }
            let min = Sat(value.u64("min_fee_satoshis")?);
            let max = Sat(value.u64("max_fee_satoshis")?);
            signed.fee_range = Some(FeeRange { min, max });
            Ok(true)
        })?;
        Ok(signed)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for ClosingComplete {
    const TYPE: u16 = 40;
    const NAME: &'static str = "closing_complete";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_counted(self.closer_script.as_bytes());
        out.put_counted(self.closee_script.as_bytes());
        out.put_u64(self.fee.0);
        out.put_u32(self.locktime);
        self.signatures.write(out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            channel_id: ChannelId(r.array("channel_id")?),
            closer_script: read_script(r, "closer_scriptpubkey")?,
            closee_script: read_script(r, "closee_scriptpubkey")?,
            fee: Sat(r.u64("fee_satoshis")?),
            locktime: r.u32("locktime")?,
            signatures: ClosingSignatures::read(r)?,
        })
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for ClosingSig {
    const TYPE: u16 = 41;
    const NAME: &'static str = "closing_sig";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_counted(self.closer_script.as_bytes());
        out.put_counted(self.closee_script.as_bytes());
        out.put_u64(self.fee.0);
        out.put_u32(self.locktime);
        self.signatures.write(out);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            channel_id: ChannelId(r.array("channel_id")?),
            closer_script: read_script(r, "closer_scriptpubkey")?,
            closee_script: read_script(r, "closee_scriptpubkey")?,
            fee: Sat(r.u64("fee_satoshis")?),
            locktime: r.u32("locktime")?,
            signatures: ClosingSignatures::read(r)?,
        })
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}
