//! The packet that carries a failure back (BOLT 4, "Returning Errors").
//!
//! Authenticated once by the node that failed, encrypted by it and by each hop before it. Attribution data, by
//! which the sender learns who garbled a packet, is another matter.

use super::FailureMessage;
use crate::cipher::{Label, SharedSecret};

/// BOLT 4: no onion has more hops, and the sender looks for the failing one so many times whatever the route.
pub const MAX_HOPS: usize = 27;

const HMAC: usize = 32;
/// BOLT 4: message and padding are at least this long together, so that the length does not tell the failure.
const PADDED: usize = 256;

/// A failure that the sender of the payment could read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decoded {
    /// Which hop of the route failed, from 0: always an index into the shared secrets.
    pub hop: usize,
    /// What it says.
    pub message: FailureMessage,
}

/// Why the sender learns nothing from a failure packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Undecodable {
    /// None of the hops made this packet, or another hop garbled it.
    #[error("none of the {hops} hops vouches for a failure of {bytes} bytes")]
    Nobodys {
        /// How many hops the route has.
        hops: usize,
        /// How long the packet is.
        bytes: usize,
    },
    /// A hop vouches for what is not a failure message.
    #[error("hop {hop} vouches for a failure of {bytes} bytes that is not well formed")]
    Garbage {
        /// Its index, from 0.
        hop: usize,
        /// How long the packet is.
        bytes: usize,
    },
}

/// `reason` for `update_fail_htlc`, at the node where the HTLC fails.
#[must_use]
pub fn encrypt(shared_secret: &SharedSecret, message: &FailureMessage) -> Vec<u8> {
    encrypt_encoded(shared_secret, &message.encode())
}

/// `reason` for `update_fail_htlc`, at a hop that got `reason` from the next one.
#[must_use]
pub fn wrap(shared_secret: &SharedSecret, mut reason: Vec<u8>) -> Vec<u8> {
    shared_secret.key(Label::Ammag).apply_stream(&mut reason);
    reason
}

/// Reads `reason` at the sender, whose onion had these shared secrets, first hop first.
///
/// Takes the same time whichever hop failed and however long the route is, as BOLT 4 wants.
///
/// # Errors
/// [`Undecodable`] when nobody or nothing can be made out.
pub fn decode(shared_secrets: &[SharedSecret], reason: &[u8]) -> Result<Decoded, Undecodable> {
    let unknown = Undecodable::Nobodys { hops: shared_secrets.len(), bytes: reason.len() };
    let mut packet = reason.to_vec();
    let mut found = None;
    let nobody = SharedSecret::new([0; 32]);
    for hop in 0..shared_secrets.len().max(MAX_HOPS) {
        let secret = shared_secrets.get(hop).unwrap_or(&nobody);
        secret.key(Label::Ammag).apply_stream(&mut packet);
        let Some((mac, body)) = packet.split_first_chunk::<HMAC>() else {
            return Err(unknown);
        };
        let is_its = secret.key(Label::Um).is_hmac(&[body], mac);
        if is_its && found.is_none() && hop < shared_secrets.len() {
            found = Some((hop, failure_message(body)));
        }
    }
    let (hop, message) = found.ok_or(unknown)?;
    let message = message.ok_or(Undecodable::Garbage { hop, bytes: reason.len() })?;
    Ok(Decoded { hop, message })
}

fn encrypt_encoded(shared_secret: &SharedSecret, message: &[u8]) -> Vec<u8> {
    wrap(shared_secret, authenticate(shared_secret, message))
}

/// The packet before it is encrypted.
fn authenticate(shared_secret: &SharedSecret, message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a failure message has 8 KiB and some bytes at most");
    let padding = PADDED.saturating_sub(message.len());
    let mut packet = vec![0; HMAC];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(message);
    packet.extend_from_slice(&u16::try_from(padding).expect("256 at most").to_be_bytes());
    packet.resize(packet.len() + padding, 0);
    let mac = shared_secret.key(Label::Um).hmac(&[&packet[HMAC..]]);
    packet[..HMAC].copy_from_slice(&mac);
    packet
}

/// The message in a packet without its HMAC. What the padding is nobody asks.
fn failure_message(body: &[u8]) -> Option<FailureMessage> {
    let (length, rest) = body.split_first_chunk()?;
    let message = rest.get(..usize::from(u16::from_be_bytes(*length)))?;
    FailureMessage::decode(message)
}
