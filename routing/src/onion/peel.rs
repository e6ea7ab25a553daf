//! One layer off an incoming HTLC's onion, and what is wrong with it if something is (BOLT 4, "Onion Decryption",
//! "Payload for the Last Node" and "Returning Errors").
//!
//! The checks here need the HTLC and the onion alone. Fees, deltas, secrets, totals, replays: the caller's.

use bitcoin::hashes::{Hash as _, sha256};
use millrace_wire::{
    BlockHeight, CltvDelta, CltvExpiry, Msat, OnionPacket, PaymentHash, PaymentSecret, Preimage, PublicKey,
    ShortChannelId,
};
use secp256k1::SecretKey;

use super::payload::{FinalPayload, ForwardPayload, Payload, PayloadFault};
use super::sphinx::{self, LayerFault, PeeledLayer};
use crate::cipher::SharedSecret;
use crate::failure::{FailureMessage, code};

/// A final HTLC has to leave this many blocks at least: the 18 before its expiry at which a received HTLC goes on
/// chain, and 4 to be claimed in peace. Invoices ask for more, so that a payer may be some blocks behind.
pub const FINAL_EXPIRY_MARGIN: CltvDelta = CltvDelta(22);

/// An HTLC that came in, as far as its onion is concerned.
#[derive(Clone, Copy, Debug)]
pub struct Incoming<'a> {
    /// `onion_routing_packet`.
    pub packet: &'a OnionPacket,
    /// What the HTLC is locked to: the onion is bound to it.
    pub payment_hash: &'a PaymentHash,
    /// What the HTLC carries.
    pub amount: Msat,
    /// When the HTLC expires.
    pub cltv_expiry: CltvExpiry,
    /// Where the chain is.
    pub height: BlockHeight,
    /// `path_key`, which marks a hop inside a blinded path.
    pub path_key: Option<&'a PublicKey>,
}

/// A layer that was meant for us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Peeled {
    /// What a failure is encrypted with.
    pub shared_secret: SharedSecret,
    /// What to do.
    pub hop: PeeledHop,
}

/// Whether the HTLC ends here.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeeledHop {
    /// It does.
    Final(Final),
    /// It goes on.
    Forward(Forward),
}

/// What the sender tells the recipient. The HTLC has been held against amount and expiry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Final {
    /// `amt_to_forward`: at most what the HTLC carries.
    pub amount_to_forward: Msat,
    /// `outgoing_cltv_value`: at most when the HTLC expires.
    pub outgoing_cltv: CltvExpiry,
    /// What all parts carry together, as the sender says.
    pub total_msat: Msat,
    /// To be compared with the invoice's.
    pub payment_secret: Option<PaymentSecret>,
    /// What the invoice gave along.
    pub payment_metadata: Option<Vec<u8>>,
    /// Of a spontaneous payment. Whether it opens the payment hash is for the caller to look at.
    pub keysend_preimage: Option<Preimage>,
    /// Odd records of applications, from type 65536 on.
    pub custom: Vec<(u64, Vec<u8>)>,
}

/// What the sender asks a hop to pass on. Not yet held against fee, delta or channel.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Forward {
    /// Over which channel.
    pub next: ShortChannelId,
    /// What the next HTLC is to carry.
    pub amount: Msat,
    /// When the next HTLC is to expire.
    pub expiry: CltvExpiry,
    /// The next HTLC's onion.
    pub packet: Box<OnionPacket>,
}

/// Why an HTLC must be failed, and how.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PeelFault {
    /// By `update_fail_malformed_htlc`: without a genuine layer there is no secret to encrypt a failure with.
    #[error("the onion cannot be read: {}", code::name(*failure_code))]
    Malformed {
        /// Of the whole packet.
        sha256_of_onion: [u8; 32],
        /// Has the BADONION bit.
        failure_code: u16,
    },
    /// By `update_fail_htlc`, with this message encrypted.
    #[error("{failure}")]
    Fail {
        /// What the sender is to know.
        failure: FailureMessage,
        /// What to encrypt it with.
        shared_secret: SharedSecret,
    },
}

/// Takes our layer off.
///
/// One ECDH when the HTLC ends here, one more curve multiplication when it goes on.
///
/// # Errors
/// [`PeelFault`], which says how to answer the peer.
pub fn peel(node_secret: &SecretKey, incoming: &Incoming<'_>) -> Result<Peeled, PeelFault> {
    if incoming.path_key.is_some() {
        return Err(malformed(incoming.packet, code::INVALID_ONION_BLINDING));
    }
    let layer = sphinx::peel(node_secret, incoming.packet, &incoming.payment_hash.0)
        .map_err(|fault| layer_fault(incoming.packet, fault))?;
    let PeeledLayer { shared_secret, payload, prefix, next } = layer;
    match read(&payload, prefix, next, incoming) {
        Ok(hop) => Ok(Peeled { shared_secret, hop }),
        Err(failure) => Err(PeelFault::Fail { failure, shared_secret }),
    }
}

fn layer_fault(packet: &OnionPacket, fault: LayerFault) -> PeelFault {
    match fault {
        LayerFault::Version => malformed(packet, code::INVALID_ONION_VERSION),
        LayerFault::Key => malformed(packet, code::INVALID_ONION_KEY),
        LayerFault::Hmac => malformed(packet, code::INVALID_ONION_HMAC),
        LayerFault::Length(shared_secret) => {
            PeelFault::Fail { failure: FailureMessage::InvalidOnionPayload { kind: 0, offset: 0 }, shared_secret }
        }
    }
}

fn malformed(packet: &OnionPacket, failure_code: u16) -> PeelFault {
    PeelFault::Malformed { sha256_of_onion: sha256::Hash::hash(&packet.0).to_byte_array(), failure_code }
}

fn read(
    payload: &[u8],
    prefix: usize,
    next: Option<Box<OnionPacket>>,
    incoming: &Incoming<'_>,
) -> Result<PeeledHop, FailureMessage> {
    match (Payload::decode(payload, next.is_none()), next) {
        (Ok(Payload::Forward(ForwardPayload { next, amount, expiry })), Some(packet)) => {
            Ok(PeeledHop::Forward(Forward { next, amount, expiry, packet }))
        }
        (Ok(Payload::Final(payload)), _) => {
            check_final(&payload, incoming)?;
            Ok(PeeledHop::Final(payload.into()))
        }
        (Ok(Payload::Forward(_)), None) => unreachable!("decoded as final"),
        (Err(PayloadFault { kind, offset }), _) => {
            let offset = u16::try_from(prefix + offset).expect("1300 at most");
            Err(FailureMessage::InvalidOnionPayload { kind, offset })
        }
    }
}

/// BOLT 4, "Failure Messages": what the HTLC carries decides, so that no hop on the way can keep something back.
fn check_final(payload: &FinalPayload, incoming: &Incoming<'_>) -> Result<(), FailureMessage> {
    let Incoming { amount, cltv_expiry, height, .. } = *incoming;
    if amount < payload.amount {
        return Err(FailureMessage::FinalIncorrectHtlcAmount { incoming: amount });
    }
    if cltv_expiry < payload.expiry {
        return Err(FailureMessage::FinalIncorrectCltvExpiry { expiry: cltv_expiry });
    }
    if height.expiry_after(FINAL_EXPIRY_MARGIN).is_none_or(|earliest| cltv_expiry < earliest) {
        return Err(FailureMessage::IncorrectOrUnknownPaymentDetails { amount, height });
    }
    Ok(())
}

impl From<FinalPayload> for Final {
    fn from(payload: FinalPayload) -> Self {
        Self {
            amount_to_forward: payload.amount,
            outgoing_cltv: payload.expiry,
            total_msat: payload.total,
            payment_secret: payload.payment_secret,
            payment_metadata: payload.payment_metadata,
            keysend_preimage: payload.keysend_preimage,
            custom: payload.custom,
        }
    }
}
