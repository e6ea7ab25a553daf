//! The parts of BOLT 2's "Interactive Transaction Construction" whose length the peer chooses: `tx_add_input`,
//! `tx_add_output`, `tx_signatures`, `tx_abort`.
//!
//! Transactions and witnesses stay bytes: a parser reserves memory by the counts in them, before it has seen what is
//! counted. The messages of fixed length keep LDK's structs.

use bitcoin::hashes::Hash as _;
use bitcoin::{ScriptBuf, Txid};
use secp256k1::ecdsa::Signature;

use super::codec::{Put as _, Reader};
use super::control::printable_text;
use super::error::{DecodeError, FieldFault};
use super::payload::Payload;
use crate::amount::Sat;
use crate::id::ChannelId;

/// Adds an input to the transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxAddInput {
    /// The channel.
    pub channel_id: ChannelId,
    /// Names the input in this negotiation.
    pub serial_id: u64,
    /// The whole transaction that it spends from, in Bitcoin's encoding; empty for the shared input of a splice.
    pub prevtx: Vec<u8>,
    /// The output spent.
    pub prevtx_vout: u32,
    /// The input's sequence.
    pub sequence: u32,
    /// The funding transaction that a splice spends.
    pub shared_input_txid: Option<Txid>,
}

/// Adds an output to the transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxAddOutput {
    /// The channel.
    pub channel_id: ChannelId,
    /// Names the output in this negotiation.
    pub serial_id: u64,
    /// What it is worth.
    pub amount: Sat,
    /// Whom it pays.
    pub script: ScriptBuf,
}

/// The witnesses of the sender's inputs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxSignatures {
    /// The channel.
    pub channel_id: ChannelId,
    /// The transaction.
    pub txid: Txid,
    /// One witness for each of the sender's inputs, in Bitcoin's encoding.
    pub witnesses: Vec<Vec<u8>>,
    /// On the shared input of a splice.
    pub shared_input_signature: Option<Signature>,
}

/// Gives the negotiation up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TxAbort {
    /// The channel.
    pub channel_id: ChannelId,
    /// Usually text, but any bytes: show it through [`TxAbort::text`] only.
    pub data: Vec<u8>,
}

impl TxAbort {
    /// What it says, safe to print.
    #[must_use]
    pub fn text(&self) -> String {
        printable_text(&self.data)
    }
}

impl Payload for TxAddInput {
    const TYPE: u16 = 66;
    const NAME: &'static str = "tx_add_input";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.serial_id);
        out.put_counted(&self.prevtx);
        out.put_u32(self.prevtx_vout);
        out.put_u32(self.sequence);
        if let Some(txid) = self.shared_input_txid {
            out.put_tlv(0, &txid.to_byte_array());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut add = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            serial_id: r.u64("serial_id")?,
            prevtx: r.counted("prevtx")?.to_vec(),
            prevtx_vout: r.u32("prevtx_vout")?,
            sequence: r.u32("sequence")?,
            shared_input_txid: None,
        };
        r.tlv_stream(|kind, value| {
            if kind != 0 {
                return Ok(false);
            }
            let txid = Txid::from_byte_array(value.array("shared_input_txid")?);
            add.shared_input_txid = Some(txid);
            Ok(true)
        })?;
        Ok(add)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for TxAddOutput {
    const TYPE: u16 = 67;
    const NAME: &'static str = "tx_add_output";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.serial_id);
        out.put_u64(self.amount.0);
        out.put_counted(self.script.as_bytes());
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let add = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            serial_id: r.u64("serial_id")?,
            amount: Sat(r.u64("sats")?),
            script: ScriptBuf::from_bytes(r.counted("script")?.to_vec()),
        };
        r.unknown_extension()?;
        Ok(add)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for TxSignatures {
    const TYPE: u16 = 71;
    const NAME: &'static str = "tx_signatures";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put(&self.txid.to_byte_array());
        out.put_count(self.witnesses.len());
        for witness in &self.witnesses {
            out.put_counted(witness);
        }
        if let Some(signature) = &self.shared_input_signature {
            out.put_tlv(0, &signature.serialize_compact());
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let mut signatures = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            txid: Txid::from_byte_array(r.array("txid")?),
            witnesses: read_witnesses(r)?,
            shared_input_signature: None,
        };
        r.tlv_stream(|kind, value| {
            if kind != 0 {
                return Ok(false);
            }
            signatures.shared_input_signature = Some(value.signature("shared_input_signature")?);
            Ok(true)
        })?;
        Ok(signatures)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

/// A witness has at least its own length and the count of its elements.
const WITNESS_BYTES_MIN: usize = 3;

/// The count is checked against the bytes left before anything is allocated for it.
fn read_witnesses(r: &mut Reader<'_>) -> Result<Vec<Vec<u8>>, DecodeError> {
    let count = usize::from(r.u16("num_witnesses")?);
    let (needed, left) = (count * WITNESS_BYTES_MIN, r.remaining());
    if needed > left {
        return Err(r.fault("witnesses", FieldFault::Short { needed: needed as u64, left }));
    }
    let mut witnesses = Vec::with_capacity(count);
    for _ in 0..count {
        witnesses.push(r.counted("witness_data")?.to_vec());
    }
    Ok(witnesses)
}

impl Payload for TxAbort {
    const TYPE: u16 = 74;
    const NAME: &'static str = "tx_abort";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_counted(&self.data);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let abort = Self { channel_id: ChannelId(r.array("channel_id")?), data: r.counted("data")?.to_vec() };
        r.unknown_extension()?;
        Ok(abort)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}
