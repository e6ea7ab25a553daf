#![allow(clippy::unwrap_used)]

use bitcoin::hashes::{Hash as _, sha256};
use millrace_wire::{BlockHeight, CltvExpiry, Msat, PaymentSecret, ShortChannelId};
use secp256k1::SECP256K1;

use super::*;
use crate::failure::FailureMessage;

const HASH: PaymentHash = PaymentHash([0x42; 32]);
const HEIGHT: BlockHeight = BlockHeight(800_000);
const AMOUNT: Msat = Msat(50_000);
const EXPIRY: CltvExpiry = CltvExpiry(800_042);

fn key(byte: u8) -> SecretKey {
    SecretKey::from_slice(&[byte; 32]).unwrap()
}

fn node(byte: u8) -> PublicKey {
    key(byte).public_key(SECP256K1)
}

fn final_payload() -> FinalPayload {
    FinalPayload::new(AMOUNT, EXPIRY, PaymentSecret::new([7; 32]), Some(vec![1, 2, 3]))
}

/// Node 1 alone.
fn one_hop() -> BuiltOnion {
    build_final(final_payload())
}

fn build_final(payload: FinalPayload) -> BuiltOnion {
    build(&key(0x41), &[Hop { node_id: node(1), payload: Payload::Final(payload) }], &HASH).unwrap()
}

/// Nodes 1, 2, 3 … up to `hops`.
fn route(hops: u8) -> Vec<Hop> {
    let forward = |index: u8| {
        Payload::Forward(ForwardPayload {
            next: ShortChannelId(u64::from(index)),
            amount: Msat(50_000 + u64::from(hops - index)),
            expiry: CltvExpiry(800_042 + u32::from(hops - index)),
        })
    };
    let payload = |index: u8| if index == hops { Payload::Final(final_payload()) } else { forward(index) };
    (1..=hops).map(|index| Hop { node_id: node(index), payload: payload(index) }).collect()
}

fn incoming(packet: &OnionPacket) -> Incoming<'_> {
    Incoming { packet, payment_hash: &HASH, amount: AMOUNT, cltv_expiry: EXPIRY, height: HEIGHT, path_key: None }
}

fn malformed_code(packet: &OnionPacket, incoming: &Incoming<'_>) -> u16 {
    let Err(PeelFault::Malformed { sha256_of_onion, failure_code }) = peel(&key(1), incoming) else {
        panic!("peeled");
    };
    assert_eq!(sha256_of_onion, sha256::Hash::hash(&packet.0).to_byte_array());
    failure_code
}

fn failure(incoming: &Incoming<'_>) -> FailureMessage {
    match peel(&key(1), incoming) {
        Err(PeelFault::Fail { failure, .. }) => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn one_hop_reads_what_was_sent() {
    let onion = one_hop();
    let peeled = peel(&key(1), &incoming(&onion.packet)).unwrap();
    assert_eq!(peeled.shared_secret, onion.shared_secrets[0]);
    let expected = Final {
        amount_to_forward: AMOUNT,
        outgoing_cltv: EXPIRY,
        total_msat: AMOUNT,
        payment_secret: Some(PaymentSecret::new([7; 32])),
        payment_metadata: Some(vec![1, 2, 3]),
        keysend_preimage: None,
        custom: Vec::new(),
    };
    assert_eq!(peeled.hop, PeeledHop::Final(expected));
}
