//! The layers of an onion, whatever they say (BOLT 4, "Onion Construction" and "Onion Decryption").
//!
//! A layer's payload is bytes here, its length in front. What they mean is `payload`'s.

use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use millrace_wire::OnionPacket;
use secp256k1::{PublicKey, SECP256K1, Scalar, SecretKey};

use super::bigsize::{put_bigsize, take_bigsize};
use super::{BuiltOnion, OnionError};
use crate::cipher::{Key, Label, SharedSecret};

/// The bytes that hold all layers.
const ROUTING_INFO: usize = 1300;
const HMAC: usize = 32;
/// Where version, ephemeral key, routing info and HMAC begin.
const KEY_AT: usize = 1;
const INFO_AT: usize = 34;
const HMAC_AT: usize = INFO_AT + ROUTING_INFO;

/// What one hop is to read.
pub(super) struct Layer {
    pub(super) node_id: PublicKey,
    /// The TLV stream without its length.
    pub(super) payload: Vec<u8>,
}

/// One layer off.
#[derive(Debug)]
pub(super) struct PeeledLayer {
    pub(super) shared_secret: SharedSecret,
    /// The TLV stream without its length.
    pub(super) payload: Vec<u8>,
    /// How many bytes the length took.
    pub(super) prefix: usize,
    /// What is left for the next hop; none when this was the last.
    pub(super) next: Option<Box<OnionPacket>>,
}

/// Why a layer does not come off.
#[derive(Debug)]
pub(super) enum LayerFault {
    Version,
    Key,
    Hmac,
    /// The packet is genuine, and the payload's length is not possible.
    Length(SharedSecret),
}

/// Wraps the layers, innermost first.
pub(super) fn build(session_key: &SecretKey, layers: &[Layer], associated: &[u8]) -> Result<BuiltOnion, OnionError> {
    if layers.is_empty() {
        return Err(OnionError::NoHops);
    }
    let framed: Vec<Vec<u8>> = layers.iter().map(Layer::framed).collect();
    let bytes = framed.iter().map(|layer| layer.len() + HMAC).sum();
    if bytes > ROUTING_INFO {
        return Err(OnionError::TooLong { hops: layers.len(), bytes });
    }
    let (first_key, shared_secrets) = share(session_key, layers.iter().map(|layer| layer.node_id))?;
    let rhos: Vec<Key> = shared_secrets.iter().map(|secret| secret.key(Label::Rho)).collect();

    let mut info = [0; ROUTING_INFO];
    Key::derive(Label::Pad, &session_key.secret_bytes()).apply_stream(&mut info);
    let filler = filler(&rhos, &framed);
    let mut hmac = [0; HMAC];
    for (index, layer) in framed.iter().enumerate().rev() {
        let size = layer.len() + HMAC;
        info.copy_within(..ROUTING_INFO - size, size);
        info[..layer.len()].copy_from_slice(layer);
        info[layer.len()..size].copy_from_slice(&hmac);
        rhos[index].apply_stream(&mut info);
        if index + 1 == framed.len() {
            info[ROUTING_INFO - filler.len()..].copy_from_slice(&filler);
        }
        hmac = shared_secrets[index].key(Label::Mu).hmac(&[&info, associated]);
    }
    Ok(BuiltOnion { packet: assemble(&first_key, &info, &hmac), shared_secrets })
}

/// The first ephemeral key, and the secret shared with each node.
pub(super) fn share(
    session_key: &SecretKey,
    nodes: impl ExactSizeIterator<Item = PublicKey>,
) -> Result<(PublicKey, Vec<SharedSecret>), OnionError> {
    let first = session_key.public_key(SECP256K1);
    let mut shared_secrets = Vec::with_capacity(nodes.len());
    let (mut secret, mut public) = (*session_key, first);
    let last = nodes.len().saturating_sub(1);
    for (hop, node) in nodes.enumerate() {
        let shared = SharedSecret::between(&node, &secret);
        if hop < last {
            let factor = blinding_factor(&public, &shared).ok_or(OnionError::Key { hop })?;
            secret = secret.mul_tweak(&factor).map_err(|_| OnionError::Key { hop })?;
            public = secret.public_key(SECP256K1);
        }
        shared_secrets.push(shared);
    }
    secret.non_secure_erase();
    Ok((first, shared_secrets))
}

/// Takes off the layer meant for `node_secret`.
pub(super) fn peel(
    node_secret: &SecretKey,
    packet: &OnionPacket,
    associated: &[u8],
) -> Result<PeeledLayer, LayerFault> {
    let bytes = &packet.0;
    if bytes[0] != 0 {
        return Err(LayerFault::Version);
    }
    let ephemeral = PublicKey::from_slice(&bytes[KEY_AT..INFO_AT]).map_err(|_| LayerFault::Key)?;
    let shared_secret = SharedSecret::between(&ephemeral, node_secret);
    let info = &bytes[INFO_AT..HMAC_AT];
    if !shared_secret.key(Label::Mu).is_hmac(&[info, associated], &bytes[HMAC_AT..]) {
        return Err(LayerFault::Hmac);
    }

    // The stream goes on over as many zeros as the next hop will see after what is taken here.
    let mut clear = [0; 2 * ROUTING_INFO];
    clear[..ROUTING_INFO].copy_from_slice(info);
    shared_secret.key(Label::Rho).apply_stream(&mut clear);
    let Some((prefix, end)) = frame(&clear[..ROUTING_INFO]) else {
        return Err(LayerFault::Length(shared_secret));
    };
    let payload = clear[prefix..end].to_vec();
    let hmac = &clear[end..end + HMAC];
    let next = if hmac == [0; HMAC] {
        None
    } else {
        let key = next_key(&ephemeral, &shared_secret).ok_or(LayerFault::Key)?;
        Some(assemble(&key, &clear[end + HMAC..][..ROUTING_INFO], hmac))
    };
    Ok(PeeledLayer { shared_secret, payload, prefix, next })
}

impl Layer {
    fn framed(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.payload.len() + 3);
        put_bigsize(self.payload.len() as u64, &mut out);
        out.extend_from_slice(&self.payload);
        out
    }
}

/// Where the payload begins and ends, or `None` when it leaves no room for the HMAC behind it. Lengths 0 and 1
/// meant an older format and are nothing today.
fn frame(clear: &[u8]) -> Option<(usize, usize)> {
    let mut rest = clear;
    let length = usize::try_from(take_bigsize(&mut rest)?).ok()?;
    let prefix = clear.len() - rest.len();
    let end = prefix.checked_add(length)?;
    (length >= 2 && end.checked_add(HMAC)? <= clear.len()).then_some((prefix, end))
}

/// BOLT 4, "Filler Generation": what the hops' zeros will have become at the last one.
fn filler(rhos: &[Key], framed: &[Vec<u8>]) -> Vec<u8> {
    let mut filler = Vec::new();
    for (rho, layer) in rhos.iter().zip(&framed[..framed.len() - 1]) {
        let from = ROUTING_INFO - filler.len();
        filler.resize(filler.len() + layer.len() + HMAC, 0);
        rho.apply_stream_from(from, &mut filler);
    }
    filler
}

fn assemble(key: &PublicKey, info: &[u8], hmac: &[u8]) -> Box<OnionPacket> {
    let mut packet = Box::new(OnionPacket([0; 1366]));
    packet.0[KEY_AT..INFO_AT].copy_from_slice(&key.serialize());
    packet.0[INFO_AT..HMAC_AT].copy_from_slice(info);
    packet.0[HMAC_AT..].copy_from_slice(hmac);
    packet
}

fn next_key(ephemeral: &PublicKey, shared: &SharedSecret) -> Option<PublicKey> {
    ephemeral.mul_tweak(SECP256K1, &blinding_factor(ephemeral, shared)?).ok()
}

/// BOLT 4, "Blinding Ephemeral Onion Keys".
fn blinding_factor(ephemeral: &PublicKey, shared: &SharedSecret) -> Option<Scalar> {
    let mut engine = sha256::Hash::engine();
    engine.input(&ephemeral.serialize());
    engine.input(shared.as_bytes());
    Scalar::from_be_bytes(sha256::Hash::from_engine(engine).to_byte_array()).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::Value;

    use super::*;

    const VECTOR: &str = include_str!("../../tests/vectors/onion-test.json");

    fn hex(value: &Value) -> Vec<u8> {
        hex::decode(value.as_str().unwrap()).unwrap()
    }

    fn secret(value: &Value) -> SecretKey {
        SecretKey::from_slice(&hex(value)).unwrap()
    }

    /// The vector's payloads have their length in front.
    fn layers(vector: &Value) -> Vec<Layer> {
        let hops = vector["generate"]["hops"].as_array().unwrap();
        let layer = |hop: &Value| {
            let framed = hex(&hop["payload"]);
            let mut payload = framed.as_slice();
            assert_eq!(take_bigsize(&mut payload), Some(payload.len() as u64));
            Layer { node_id: PublicKey::from_slice(&hex(&hop["pubkey"])).unwrap(), payload: payload.to_vec() }
        };
        hops.iter().map(layer).collect()
    }

    fn built() -> (Value, BuiltOnion) {
        let vector: Value = serde_json::from_str(VECTOR).unwrap();
        let generate = &vector["generate"];
        let onion =
            build(&secret(&generate["session_key"]), &layers(&vector), &hex(&generate["associated_data"])).unwrap();
        (vector, onion)
    }

    #[test]
    fn build_is_byte_equal_to_the_vector() {
        let (vector, onion) = built();
        assert_eq!(hex::encode(onion.packet.0), vector["onion"].as_str().unwrap());
    }

    #[test]
    fn peel_reads_every_layer_of_the_vector() {
        let (vector, onion) = built();
        let expected = layers(&vector);
        let associated = hex(&vector["generate"]["associated_data"]);
        let mut packet = Some(Box::new(OnionPacket(hex(&vector["onion"]).try_into().unwrap())));
        for (index, key) in vector["decode"].as_array().unwrap().iter().enumerate() {
            let layer = peel(&secret(key), &packet.take().unwrap(), &associated).unwrap();
            assert_eq!(layer.payload, expected[index].payload, "hop {index}");
            assert_eq!(layer.shared_secret, onion.shared_secrets[index], "hop {index}");
            packet = layer.next;
        }
        assert!(packet.is_none());
    }
}
