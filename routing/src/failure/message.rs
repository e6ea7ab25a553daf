//! What a failure says (BOLT 4, "Failure Messages").
//!
//! A `channel_update` inside a failure is carried unread: BOLT 4 made it optional and forbids applying it to
//! the graph. Records behind the fields that BOLT 4 names are skipped.

use core::fmt;

use millrace_wire::{BlockHeight, CltvExpiry, Msat};
use serde::{Deserialize, Serialize};

use super::code;
use crate::onion::{put_bigsize, take_bigsize};

/// A `channel_update` has some 140 bytes. What is longer than this is not sent: a failure has to fit into a message
/// at every hop, and its length into two bytes.
const DATA_MAX: usize = 8192;

/// One failure with its data. Fields named `channel_update` hold that message with its two bytes of type, or
/// nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FailureMessage {
    /// The node cannot for now.
    TemporaryNodeFailure,
    /// The node cannot.
    PermanentNodeFailure,
    /// The node wants a feature that the onion does not use.
    RequiredNodeFeatureMissing,
    /// The onion's version is not known.
    InvalidOnionVersion {
        /// Of the onion that came.
        sha256_of_onion: [u8; 32],
    },
    /// The onion is not genuine.
    InvalidOnionHmac {
        /// Of the onion that came.
        sha256_of_onion: [u8; 32],
    },
    /// The onion's ephemeral key is not a key.
    InvalidOnionKey {
        /// Of the onion that came.
        sha256_of_onion: [u8; 32],
    },
    /// The channel cannot for now: no balance, no slot, or the peer is away.
    TemporaryChannelFailure {
        /// The channel's conditions.
        channel_update: Vec<u8>,
    },
    /// The channel cannot.
    PermanentChannelFailure,
    /// The channel wants a feature that the onion does not use.
    RequiredChannelFeatureMissing,
    /// The onion names a channel that there is not.
    UnknownNextPeer,
    /// The HTLC is smaller than the channel takes.
    AmountBelowMinimum {
        /// What was to go out.
        amount: Msat,
        /// The channel's conditions.
        channel_update: Vec<u8>,
    },
    /// What the sender left for the hop is too little.
    FeeInsufficient {
        /// What came in.
        amount: Msat,
        /// The channel's conditions.
        channel_update: Vec<u8>,
    },
    /// The blocks that the sender left for the hop are too few.
    IncorrectCltvExpiry {
        /// Of the HTLC that was to go out.
        expiry: CltvExpiry,
        /// The channel's conditions.
        channel_update: Vec<u8>,
    },
    /// The HTLC expires too soon to be passed on.
    ExpiryTooSoon {
        /// The channel's conditions.
        channel_update: Vec<u8>,
    },
    /// The recipient does not take it: hash, secret, amount or expiry. It does not say which.
    IncorrectOrUnknownPaymentDetails {
        /// What came in.
        amount: Msat,
        /// Where the recipient's chain was.
        height: BlockHeight,
    },
    /// The last HTLC expires before the onion says.
    FinalIncorrectCltvExpiry {
        /// Of the HTLC that came in.
        expiry: CltvExpiry,
    },
    /// The last HTLC carries less than the onion says.
    FinalIncorrectHtlcAmount {
        /// What came in.
        incoming: Msat,
    },
    /// The channel is switched off.
    ChannelDisabled {
        /// None are defined.
        flags: u16,
        /// The channel's conditions.
        channel_update: Vec<u8>,
    },
    /// The HTLC would be locked for longer than the hop likes.
    ExpiryTooFar,
    /// The layer's payload is wrong or not understood.
    InvalidOnionPayload {
        /// The type of the field, 0 when there is none.
        kind: u64,
        /// Where in the layer.
        offset: u16,
    },
    /// The other parts of the payment did not come in time.
    MppTimeout,
    /// Something inside a blinded path.
    InvalidOnionBlinding {
        /// Of the onion that came.
        sha256_of_onion: [u8; 32],
    },
    /// A code that BOLT 4 does not name, or one whose data is cut short.
    Unknown {
        /// The code.
        code: u16,
        /// All that came behind it.
        data: Vec<u8>,
    },
}

impl FailureMessage {
    /// What an `update_fail_malformed_htlc` means: it comes unencrypted, from the next hop.
    #[must_use]
    pub fn from_malformed(failure_code: u16, sha256_of_onion: [u8; 32]) -> Self {
        match failure_code {
            code::INVALID_ONION_VERSION => Self::InvalidOnionVersion { sha256_of_onion },
            code::INVALID_ONION_HMAC => Self::InvalidOnionHmac { sha256_of_onion },
            code::INVALID_ONION_KEY => Self::InvalidOnionKey { sha256_of_onion },
            code::INVALID_ONION_BLINDING => Self::InvalidOnionBlinding { sha256_of_onion },
            other => Self::Unknown { code: other, data: sha256_of_onion.to_vec() },
        }
    }

    /// BOLT 4's `failure_code`.
    #[must_use]
    pub const fn code(&self) -> u16 {
        match self {
            Self::TemporaryNodeFailure => code::TEMPORARY_NODE_FAILURE,
            Self::PermanentNodeFailure => code::PERMANENT_NODE_FAILURE,
            Self::RequiredNodeFeatureMissing => code::REQUIRED_NODE_FEATURE_MISSING,
            Self::InvalidOnionVersion { .. } => code::INVALID_ONION_VERSION,
            Self::InvalidOnionHmac { .. } => code::INVALID_ONION_HMAC,
            Self::InvalidOnionKey { .. } => code::INVALID_ONION_KEY,
            Self::TemporaryChannelFailure { .. } => code::TEMPORARY_CHANNEL_FAILURE,
            Self::PermanentChannelFailure => code::PERMANENT_CHANNEL_FAILURE,
            Self::RequiredChannelFeatureMissing => code::REQUIRED_CHANNEL_FEATURE_MISSING,
            Self::UnknownNextPeer => code::UNKNOWN_NEXT_PEER,
            Self::AmountBelowMinimum { .. } => code::AMOUNT_BELOW_MINIMUM,
            Self::FeeInsufficient { .. } => code::FEE_INSUFFICIENT,
            Self::IncorrectCltvExpiry { .. } => code::INCORRECT_CLTV_EXPIRY,
            Self::ExpiryTooSoon { .. } => code::EXPIRY_TOO_SOON,
            Self::IncorrectOrUnknownPaymentDetails { .. } => code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS,
            Self::FinalIncorrectCltvExpiry { .. } => code::FINAL_INCORRECT_CLTV_EXPIRY,
            Self::FinalIncorrectHtlcAmount { .. } => code::FINAL_INCORRECT_HTLC_AMOUNT,
            Self::ChannelDisabled { .. } => code::CHANNEL_DISABLED,
            Self::ExpiryTooFar => code::EXPIRY_TOO_FAR,
            Self::InvalidOnionPayload { .. } => code::INVALID_ONION_PAYLOAD,
            Self::MppTimeout => code::MPP_TIMEOUT,
            Self::InvalidOnionBlinding { .. } => code::INVALID_ONION_BLINDING,
            Self::Unknown { code, .. } => *code,
        }
    }

    /// Whether the same attempt would fail again.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        self.code() & code::PERM != 0
    }

    /// The `channel_update` that came along, with its two bytes of type as a rule; empty when there is none.
    #[must_use]
    pub fn channel_update(&self) -> &[u8] {
        match self {
            Self::TemporaryChannelFailure { channel_update }
            | Self::AmountBelowMinimum { channel_update, .. }
            | Self::FeeInsufficient { channel_update, .. }
            | Self::IncorrectCltvExpiry { channel_update, .. }
            | Self::ExpiryTooSoon { channel_update }
            | Self::ChannelDisabled { channel_update, .. } => channel_update,
            Self::TemporaryNodeFailure
            | Self::PermanentNodeFailure
            | Self::RequiredNodeFeatureMissing
            | Self::InvalidOnionVersion { .. }
            | Self::InvalidOnionHmac { .. }
            | Self::InvalidOnionKey { .. }
            | Self::PermanentChannelFailure
            | Self::RequiredChannelFeatureMissing
            | Self::UnknownNextPeer
            | Self::IncorrectOrUnknownPaymentDetails { .. }
            | Self::FinalIncorrectCltvExpiry { .. }
            | Self::FinalIncorrectHtlcAmount { .. }
            | Self::ExpiryTooFar
            | Self::InvalidOnionPayload { .. }
            | Self::MppTimeout
            | Self::InvalidOnionBlinding { .. }
            | Self::Unknown { .. } => &[],
        }
    }

    /// `failuremsg`: the code and its data.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.code().to_be_bytes().to_vec();
        match self {
            Self::TemporaryNodeFailure
            | Self::PermanentNodeFailure
            | Self::RequiredNodeFeatureMissing
            | Self::PermanentChannelFailure
            | Self::RequiredChannelFeatureMissing
            | Self::UnknownNextPeer
            | Self::ExpiryTooFar
            | Self::MppTimeout => {}
            Self::InvalidOnionVersion { sha256_of_onion }
            | Self::InvalidOnionHmac { sha256_of_onion }
            | Self::InvalidOnionKey { sha256_of_onion }
            | Self::InvalidOnionBlinding { sha256_of_onion } => out.extend_from_slice(sha256_of_onion),
            Self::TemporaryChannelFailure { channel_update } | Self::ExpiryTooSoon { channel_update } => {
                put_update(channel_update, &mut out);
            }
            Self::AmountBelowMinimum { amount, channel_update } | Self::FeeInsufficient { amount, channel_update } => {
                out.extend_from_slice(&amount.0.to_be_bytes());
                put_update(channel_update, &mut out);
            }
            Self::IncorrectCltvExpiry { expiry, channel_update } => {
                out.extend_from_slice(&expiry.0.to_be_bytes());
                put_update(channel_update, &mut out);
            }
            Self::IncorrectOrUnknownPaymentDetails { amount, height } => {
                out.extend_from_slice(&amount.0.to_be_bytes());
                out.extend_from_slice(&height.0.to_be_bytes());
            }
            Self::FinalIncorrectCltvExpiry { expiry } => out.extend_from_slice(&expiry.0.to_be_bytes()),
            Self::FinalIncorrectHtlcAmount { incoming } => out.extend_from_slice(&incoming.0.to_be_bytes()),
            Self::ChannelDisabled { flags, channel_update } => {
                out.extend_from_slice(&flags.to_be_bytes());
                put_update(channel_update, &mut out);
            }
            Self::InvalidOnionPayload { kind, offset } => {
                put_bigsize(*kind, &mut out);
                out.extend_from_slice(&offset.to_be_bytes());
            }
            Self::Unknown { data, .. } => out.extend_from_slice(&data[..data.len().min(DATA_MAX)]),
        }
        out
    }

    /// Reads a `failuremsg`, or `None` when there is not even a code.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (code, data) = bytes.split_first_chunk()?;
        let code = u16::from_be_bytes(*code);
        Some(Self::decode_data(code, data).unwrap_or_else(|| Self::Unknown { code, data: data.to_vec() }))
    }

    fn decode_data(code: u16, mut data: &[u8]) -> Option<Self> {
        let data = &mut data;
        Some(match code {
            code::TEMPORARY_NODE_FAILURE => Self::TemporaryNodeFailure,
            code::PERMANENT_NODE_FAILURE => Self::PermanentNodeFailure,
            code::REQUIRED_NODE_FEATURE_MISSING => Self::RequiredNodeFeatureMissing,
            code::INVALID_ONION_VERSION => Self::InvalidOnionVersion { sha256_of_onion: take(data)? },
            code::INVALID_ONION_HMAC => Self::InvalidOnionHmac { sha256_of_onion: take(data)? },
            code::INVALID_ONION_KEY => Self::InvalidOnionKey { sha256_of_onion: take(data)? },
            code::TEMPORARY_CHANNEL_FAILURE => Self::TemporaryChannelFailure { channel_update: take_update(data)? },
            code::PERMANENT_CHANNEL_FAILURE => Self::PermanentChannelFailure,
            code::REQUIRED_CHANNEL_FEATURE_MISSING => Self::RequiredChannelFeatureMissing,
            code::UNKNOWN_NEXT_PEER => Self::UnknownNextPeer,
            code::AMOUNT_BELOW_MINIMUM => {
                Self::AmountBelowMinimum { amount: take_msat(data)?, channel_update: take_update(data)? }
            }
            code::FEE_INSUFFICIENT => {
                Self::FeeInsufficient { amount: take_msat(data)?, channel_update: take_update(data)? }
            }
            code::INCORRECT_CLTV_EXPIRY => {
                Self::IncorrectCltvExpiry { expiry: CltvExpiry(take_u32(data)?), channel_update: take_update(data)? }
            }
            code::EXPIRY_TOO_SOON => Self::ExpiryTooSoon { channel_update: take_update(data)? },
            code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS => Self::IncorrectOrUnknownPaymentDetails {
                amount: take_msat(data)?,
                height: BlockHeight(take_u32(data)?),
            },
            code::FINAL_INCORRECT_CLTV_EXPIRY => Self::FinalIncorrectCltvExpiry { expiry: CltvExpiry(take_u32(data)?) },
            code::FINAL_INCORRECT_HTLC_AMOUNT => Self::FinalIncorrectHtlcAmount { incoming: take_msat(data)? },
            code::CHANNEL_DISABLED => {
                Self::ChannelDisabled { flags: take_u16(data)?, channel_update: take_update(data)? }
            }
            code::EXPIRY_TOO_FAR => Self::ExpiryTooFar,
            code::INVALID_ONION_PAYLOAD => {
                Self::InvalidOnionPayload { kind: take_bigsize(data)?, offset: take_u16(data)? }
            }
            code::MPP_TIMEOUT => Self::MppTimeout,
            code::INVALID_ONION_BLINDING => Self::InvalidOnionBlinding { sha256_of_onion: take(data)? },
            _unnamed => return None,
        })
    }
}

/// Words for the person whose payment it was.
impl fmt::Display for FailureMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TemporaryNodeFailure => f.write_str("the node cannot pass payments on for now"),
            Self::PermanentNodeFailure => f.write_str("the node does not pass payments on"),
            Self::RequiredNodeFeatureMissing => f.write_str("the node requires a feature that was not used"),
            Self::InvalidOnionVersion { .. } => f.write_str("the node does not know this version of onion"),
            Self::InvalidOnionHmac { .. } => f.write_str("the onion did not arrive as it was sent"),
            Self::InvalidOnionKey { .. } => f.write_str("the onion's key is invalid"),
            Self::TemporaryChannelFailure { .. } => {
                f.write_str("the channel cannot carry the payment for now: too little balance, or its peer is away")
            }
            Self::PermanentChannelFailure => f.write_str("the channel is gone"),
            Self::RequiredChannelFeatureMissing => f.write_str("the channel requires a feature that was not used"),
            Self::UnknownNextPeer => f.write_str("the node does not know the next channel of the route"),
            Self::AmountBelowMinimum { amount, .. } => write!(f, "{amount} is below what the channel carries"),
            Self::FeeInsufficient { amount, .. } => write!(f, "the fee left from {amount} is too small for the node"),
            Self::IncorrectCltvExpiry { expiry, .. } => {
                write!(f, "expiry {expiry} leaves fewer blocks than the node asks for")
            }
            Self::ExpiryTooSoon { .. } => f.write_str("the payment would expire too soon to be passed on"),
            Self::IncorrectOrUnknownPaymentDetails { amount, height } => write!(
                f,
                "the recipient does not accept it: no such invoice, already paid or expired, wrong amount or too \
                 little time left ({amount} at height {height})"
            ),
            Self::FinalIncorrectCltvExpiry { expiry } => {
                write!(f, "the recipient's HTLC expires at {expiry}, earlier than agreed")
            }
            Self::FinalIncorrectHtlcAmount { incoming } => {
                write!(f, "the recipient was offered {incoming}, less than agreed")
            }
            Self::ChannelDisabled { .. } => f.write_str("the channel is switched off"),
            Self::ExpiryTooFar => f.write_str("the payment would stay locked for longer than the node allows"),
            Self::InvalidOnionPayload { kind, offset } => {
                write!(f, "the node does not understand field {kind} at byte {offset} of its instructions")
            }
            Self::MppTimeout => f.write_str("the other parts of the payment did not reach the recipient in time"),
            Self::InvalidOnionBlinding { .. } => f.write_str("it failed inside a blinded path"),
            Self::Unknown { code, data } => {
                write!(f, "{} (code 0x{code:04x}, {} bytes of data)", code::name(*code), data.len())
            }
        }
    }
}

/// BOLT 4: a length of two bytes, 0 for none.
fn put_update(update: &[u8], out: &mut Vec<u8>) {
    let update = if update.len() > DATA_MAX { &[] } else { update };
    let length = u16::try_from(update.len()).expect("at most DATA_MAX");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(update);
}

fn take<const N: usize>(data: &mut &[u8]) -> Option<[u8; N]> {
    let (value, rest) = data.split_first_chunk()?;
    *data = rest;
    Some(*value)
}

fn take_u16(data: &mut &[u8]) -> Option<u16> {
    take(data).map(u16::from_be_bytes)
}

fn take_u32(data: &mut &[u8]) -> Option<u32> {
    take(data).map(u32::from_be_bytes)
}

fn take_msat(data: &mut &[u8]) -> Option<Msat> {
    take(data).map(u64::from_be_bytes).map(Msat)
}

fn take_update(data: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(take_u16(data)?);
    let (update, rest) = data.split_at_checked(length)?;
    *data = rest;
    Some(update.to_vec())
}

#[cfg(test)]
mod tests;
