//! The packet that carries a failure back (BOLT 4, "Returning Errors").
//!
//! Authenticated once by the node that failed, encrypted by it and by each hop before it. Attribution data, by
//! which the sender learns who garbled a packet, is another matter.

use super::FailureMessage;
use crate::cipher::{Label, SharedSecret};

/// BOLT 4: no onion has more hops, and the sender looks for the failing one so many times whatever the route.
pub const MAX_HOPS: usize = 27;

const HMAC: usize = 32;
/// BOLT 4: message and padding are this long together if the message allows, so that the length does not tell the
/// failure.
pub(super) const PADDED: usize = 256;

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
    wrap(shared_secret, authenticate(shared_secret, &message.encode(), PADDED))
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
    decode_layers(shared_secrets, reason, |_, _| {})
}

/// [`decode`], which shows each hop's index and the packet as that hop had it before its own encryption.
pub(super) fn decode_layers(
    shared_secrets: &[SharedSecret],
    reason: &[u8],
    mut on_layer: impl FnMut(usize, &[u8]),
) -> Result<Decoded, Undecodable> {
    let (hops, bytes) = (shared_secrets.len(), reason.len());
    let mut packet = reason.to_vec();
    let mut found = None;
    let nobody = SharedSecret::new([0; 32]);
    for hop in 0..hops.max(MAX_HOPS) {
        let secret = shared_secrets.get(hop).unwrap_or(&nobody);
        secret.key(Label::Ammag).apply_stream(&mut packet);
        if hop < hops {
            on_layer(hop, &packet);
        }
        let is_its = is_authentic(secret, &packet);
        if is_its && found.is_none() && hop < hops {
            found = Some((hop, packet.get(HMAC..).and_then(failure_message)));
        }
    }
    let (hop, message) = found.ok_or(Undecodable::Nobodys { hops, bytes })?;
    let message = message.ok_or(Undecodable::Garbage { hop, bytes })?;
    Ok(Decoded { hop, message })
}

fn is_authentic(shared_secret: &SharedSecret, packet: &[u8]) -> bool {
    packet.split_first_chunk::<HMAC>().is_some_and(|(mac, body)| shared_secret.key(Label::Um).is_hmac(&[body], mac))
}

/// The packet before it is encrypted.
pub(super) fn authenticate(shared_secret: &SharedSecret, message: &[u8], padded: usize) -> Vec<u8> {
    let length = u16::try_from(message.len()).expect("a failure message has 8 KiB and some bytes at most");
    let padding = padded.saturating_sub(message.len());
    let mut packet = vec![0; HMAC];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(message);
    packet.extend_from_slice(&u16::try_from(padding).expect("no more than is asked for").to_be_bytes());
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use millrace_wire::{BlockHeight, Msat};
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    const VECTOR: &str = include_str!("../../tests/vectors/onion-error-test.json");

    fn secrets(vector: &Value) -> Vec<SharedSecret> {
        let hops = vector["generate"]["hops"].as_array().unwrap().iter();
        let secret = |hop: &Value| hex::decode(hop["hop_shared_secret"].as_str().unwrap()).unwrap().try_into().unwrap();
        hops.map(|hop| SharedSecret::new(secret(hop))).collect()
    }

    fn some_secrets(count: u8) -> Vec<SharedSecret> {
        (1..=count).map(|byte| SharedSecret::new([byte; 32])).collect()
    }

    /// The failure of the hop `from`, passed back by all before it.
    fn sent_back(secrets: &[SharedSecret], from: usize, message: &FailureMessage) -> Vec<u8> {
        let reason = encrypt(&secrets[from], message);
        secrets[..from].iter().rev().fold(reason, |reason, secret| wrap(secret, reason))
    }

    fn details() -> FailureMessage {
        FailureMessage::IncorrectOrUnknownPaymentDetails { amount: Msat(1), height: BlockHeight(2) }
    }

    #[test]
    fn the_vector_of_bolt_4_byte_for_byte() {
        let vector: Value = serde_json::from_str(VECTOR).unwrap();
        let secrets = secrets(&vector);
        let message = FailureMessage::TemporaryNodeFailure;
        assert_eq!(hex::encode(message.encode()), vector["generate"]["failure_message"].as_str().unwrap());
        let last = secrets.last().unwrap();
        let payload = vector["generate"]["hops"][4]["payload"].as_str().unwrap();
        assert_eq!(hex::encode(&authenticate(last, &message.encode(), PADDED)[HMAC..]), payload);

        let reason = sent_back(&secrets, 4, &message);
        assert_eq!(hex::encode(&reason), vector["errorpacket"].as_str().unwrap());
        assert_eq!(decode(&secrets, &reason), Ok(Decoded { hop: 4, message }));
    }

    #[test]
    fn every_hop_of_every_route_is_found() {
        for hops in 1..=27 {
            let secrets = some_secrets(hops);
            for from in 0..usize::from(hops) {
                let reason = sent_back(&secrets, from, &details());
                assert_eq!(decode(&secrets, &reason), Ok(Decoded { hop: from, message: details() }));
            }
        }
    }

    #[test]
    fn a_failure_from_beyond_the_route_names_nobody() {
        let secrets = some_secrets(5);
        let reason = sent_back(&secrets, 4, &details());
        assert_eq!(decode(&secrets[..4], &reason), Err(Undecodable::Nobodys { hops: 4, bytes: 292 }));
        assert_eq!(decode(&[], &reason), Err(Undecodable::Nobodys { hops: 0, bytes: 292 }));
        // The secret that stands in for hops beyond the route names nobody either.
        let stand_in = [SharedSecret::new([0; 32])];
        let reason = sent_back(&stand_in, 0, &details());
        assert_eq!(decode(&[], &reason), Err(Undecodable::Nobodys { hops: 0, bytes: 292 }));
    }

    #[test]
    fn one_changed_bit_names_nobody() {
        let secrets = some_secrets(3);
        let reason = sent_back(&secrets, 2, &details());
        for at in 0..reason.len() {
            let mut changed = reason.clone();
            changed[at] ^= 1;
            assert_eq!(decode(&secrets, &changed), Err(Undecodable::Nobodys { hops: 3, bytes: 292 }));
        }
    }

    #[test]
    fn a_hop_that_vouches_for_garbage_is_named() {
        let secrets = some_secrets(2);
        for body in [&[][..], &[0], &[0, 0], &[0, 1, 0x20], &[0xff, 0xff, 0x20, 0x02]] {
            let mut packet = secrets[1].key(Label::Um).hmac(&[body]).to_vec();
            packet.extend_from_slice(body);
            let reason = wrap(&secrets[0], wrap(&secrets[1], packet));
            let bytes = reason.len();
            assert_eq!(decode(&secrets, &reason), Err(Undecodable::Garbage { hop: 1, bytes }));
        }
    }

    #[test]
    fn every_packet_has_292_bytes_unless_its_message_is_longer() {
        let secret = SharedSecret::new([1; 32]);
        let of = |bytes: usize| FailureMessage::TemporaryChannelFailure { channel_update: vec![7; bytes] };
        assert_eq!(encrypt(&secret, &FailureMessage::MppTimeout).len(), 292);
        assert_eq!(encrypt(&secret, &of(252)).len(), 292);
        assert_eq!(encrypt(&secret, &of(253)).len(), 293);
        // Too long a channel_update stays at home.
        assert_eq!(encrypt(&secret, &of(70_000)), encrypt(&secret, &of(0)));
    }

    proptest! {
        #[test]
        fn arbitrary_reasons_never_panic(hops in 0u8..40, reason in prop::collection::vec(any::<u8>(), 0..600)) {
            let secrets = some_secrets(hops);
            let bytes = reason.len();
            prop_assert_eq!(decode(&secrets, &reason), Err(Undecodable::Nobodys { hops: usize::from(hops), bytes }));
        }

        #[test]
        fn arbitrary_vouched_bodies_never_panic(body in prop::collection::vec(any::<u8>(), 0..600)) {
            let secrets = some_secrets(1);
            let mut packet = secrets[0].key(Label::Um).hmac(&[&body]).to_vec();
            packet.extend_from_slice(&body);
            match decode(&secrets, &wrap(&secrets[0], packet)) {
                Ok(Decoded { hop, .. }) | Err(Undecodable::Garbage { hop, .. }) => prop_assert_eq!(hop, 0),
                Err(fault @ Undecodable::Nobodys { .. }) => prop_assert!(false, "{}", fault),
            }
        }
    }
}
