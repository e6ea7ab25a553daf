//! `commitment_signed`, `revoke_and_ack`, `update_fee` and `channel_reestablish` (BOLT 2, "Normal Operation" and
//! "Message Retransmission").

use core::fmt;

use secp256k1::PublicKey;
use secp256k1::ecdsa::Signature;

use super::codec::{Put as _, Reader};
use super::error::{DecodeError, FieldFault};
use super::payload::Payload;
use crate::fee::FeeratePerKw;
use crate::id::ChannelId;

/// Signs the receiver's next commitment, with every update sent so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommitmentSigned {
    /// The channel.
    pub channel_id: ChannelId,
    /// On the commitment transaction.
    pub signature: Signature,
    /// On its HTLC transactions, in the order of its outputs.
    pub htlc_signatures: Vec<Signature>,
}

/// Gives up the sender's previous commitment.
#[derive(Clone, PartialEq, Eq)]
pub struct RevokeAndAck {
    /// The channel.
    pub channel_id: ChannelId,
    /// The secret of the commitment given up.
    pub per_commitment_secret: [u8; 32],
    /// Point of the commitment after the current one.
    pub next_per_commitment_point: PublicKey,
}

/// The funder changes the commitments' feerate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UpdateFee {
    /// The channel.
    pub channel_id: ChannelId,
    /// The new feerate.
    pub feerate: FeeratePerKw,
}

/// What each side expects next, after a reconnection.
#[derive(Clone, PartialEq, Eq)]
pub struct ChannelReestablish {
    /// The channel.
    pub channel_id: ChannelId,
    /// Number of the `commitment_signed` that the sender expects next.
    pub next_commitment_number: u64,
    /// Number of the `revoke_and_ack` that the sender expects next.
    pub next_revocation_number: u64,
    /// The last secret that the sender got; zero when none.
    pub your_last_per_commitment_secret: [u8; 32],
    /// Point of the sender's newest commitment; of no use with static remote keys, but a valid point.
    pub my_current_per_commitment_point: PublicKey,
}

impl Payload for CommitmentSigned {
    const TYPE: u16 = 132;
    const NAME: &'static str = "commitment_signed";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_signature(&self.signature);
        out.put_count(self.htlc_signatures.len());
        for signature in &self.htlc_signatures {
            out.put_signature(signature);
        }
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let signed = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            signature: r.signature("signature")?,
            htlc_signatures: read_signatures(r)?,
        };
        r.unknown_extension()?;
        Ok(signed)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

/// The count is checked against the bytes left before anything is allocated for it.
fn read_signatures(r: &mut Reader<'_>) -> Result<Vec<Signature>, DecodeError> {
    let count = usize::from(r.u16("num_htlcs")?);
    let needed = count * 64;
    if needed > r.remaining() {
        let left = r.remaining();
        return Err(r.fault("htlc_signature", FieldFault::Short { needed: needed as u64, left }));
    }
    let mut signatures = Vec::with_capacity(count);
    for _ in 0..count {
        signatures.push(r.signature("htlc_signature")?);
    }
    Ok(signatures)
}

impl Payload for RevokeAndAck {
    const TYPE: u16 = 133;
    const NAME: &'static str = "revoke_and_ack";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put(&self.per_commitment_secret);
        out.put_point(&self.next_per_commitment_point);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let revoke = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            per_commitment_secret: r.array("per_commitment_secret")?,
            next_per_commitment_point: r.point("next_per_commitment_point")?,
        };
        r.unknown_extension()?;
        Ok(revoke)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for UpdateFee {
    const TYPE: u16 = 134;
    const NAME: &'static str = "update_fee";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u32(self.feerate.0);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let update =
            Self { channel_id: ChannelId(r.array("channel_id")?), feerate: FeeratePerKw(r.u32("feerate_per_kw")?) };
        r.unknown_extension()?;
        Ok(update)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl Payload for ChannelReestablish {
    const TYPE: u16 = 136;
    const NAME: &'static str = "channel_reestablish";

    fn write(&self, out: &mut Vec<u8>) {
        out.put(&self.channel_id.0);
        out.put_u64(self.next_commitment_number);
        out.put_u64(self.next_revocation_number);
        out.put(&self.your_last_per_commitment_secret);
        out.put_point(&self.my_current_per_commitment_point);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let reestablish = Self {
            channel_id: ChannelId(r.array("channel_id")?),
            next_commitment_number: r.u64("next_commitment_number")?,
            next_revocation_number: r.u64("next_revocation_number")?,
            your_last_per_commitment_secret: r.array("your_last_per_commitment_secret")?,
            my_current_per_commitment_point: r.point("my_current_per_commitment_point")?,
        };
        r.unknown_extension()?;
        Ok(reestablish)
    }

    fn channel_id(&self) -> Option<ChannelId> {
        Some(self.channel_id)
    }
}

impl fmt::Debug for RevokeAndAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevokeAndAck")
            .field("channel_id", &self.channel_id)
            .field("next_per_commitment_point", &self.next_per_commitment_point)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ChannelReestablish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChannelReestablish")
            .field("channel_id", &self.channel_id)
            .field("next_commitment_number", &self.next_commitment_number)
            .field("next_revocation_number", &self.next_revocation_number)
            .field("my_current_per_commitment_point", &self.my_current_per_commitment_point)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use secp256k1::{SECP256K1, SecretKey};

    #[test]
    fn secrets_do_not_show_in_debug() {
        let secret = SecretKey::from_slice(&[0xa7; 32]).expect("a valid key");
        let point = secret.public_key(SECP256K1);
        let channel_id = ChannelId([1; 32]);
        let revoke = RevokeAndAck { channel_id, per_commitment_secret: [0xa7; 32], next_per_commitment_point: point };
        let reestablish = ChannelReestablish {
            channel_id,
            next_commitment_number: 1,
            next_revocation_number: 0,
            your_last_per_commitment_secret: [0xa7; 32],
            my_current_per_commitment_point: point,
        };
        let shown = format!("{revoke:?} {revoke:#?} {reestablish:?} {reestablish:#?}");
        for hidden in ["a7a7", "167, 167", "a7, a7", "per_commitment_secret"] {
            assert!(!shown.contains(hidden), "{shown}");
        }
        assert!(shown.contains("next_commitment_number: 1"));
    }
}
