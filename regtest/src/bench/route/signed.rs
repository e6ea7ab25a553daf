//! The snapshot as signed announcements, of nodes with keys that are made up: what a node would have heard.

use std::path::Path;

use bitcoin::hashes::{Hash, sha256, sha256d};
use millrace_routing::graph::{Direction, Graph, VerifiedChannel, VerifiedNode, VerifiedUpdate};
use millrace_wire::{ChainHash, Decoded, Message, Sat};
use secp256k1::{SECP256K1, SecretKey};

use super::snapshot::{Channel, Side, channels};

/// When all terms were made, in seconds of Unix time; nothing here asks a clock.
pub(super) const TIMESTAMP: u32 = 1_618_500_000;
/// Updates that come while searches go on.
const UPDATES: usize = 20_000;

/// What is measured with.
pub(super) struct Prepared {
    /// The graph, saved.
    pub(super) graph: Vec<u8>,
    /// Later updates, each behind its length.
    pub(super) updates: Vec<u8>,
}

impl Prepared {
    pub(super) fn write(&self, folder: &Path) -> std::io::Result<()> {
        std::fs::write(folder.join("graph"), &self.graph)?;
        std::fs::write(folder.join("updates"), &self.updates)
    }
}

fn secret(salt: u8, number: u64) -> SecretKey {
    let hash = sha256::Hash::hash(&[&[salt][..], &number.to_be_bytes()].concat());
    SecretKey::from_slice(&hash.to_byte_array()).expect("a hash is no key once in 2^128")
}

fn public(secret: &SecretKey) -> [u8; 33] {
    secret.public_key(SECP256K1).serialize()
}

/// Puts signatures of everything behind them before it.
fn signed(body: &[u8], secrets: &[&SecretKey]) -> Vec<u8> {
    let message = secp256k1::Message::from_digest(sha256d::Hash::hash(body).to_byte_array());
    let signatures = secrets.iter().flat_map(|secret| SECP256K1.sign_ecdsa(&message, secret).serialize_compact());
    signatures.chain(body.iter().copied()).collect()
}

fn decode(type_number: u16, payload: &[u8]) -> Message {
    match Message::decode(&[&type_number.to_be_bytes(), payload].concat()) {
        Ok(Decoded::Message(message)) => message,
        other => panic!("a message of our own making: {other:?}"),
    }
}

/// The node at a side, and whether it is the second of the snapshot.
fn in_order(nodes: [u32; 2]) -> [(SecretKey, usize); 2] {
    let mut both = [0, 1].map(|side| (secret(1, u64::from(nodes[side])), side));
    both.sort_by_key(|(secret, _)| public(secret));
    both
}

fn announcement(channel: &Channel) -> VerifiedChannel {
    let [(one, _), (other, _)] = in_order(channel.nodes);
    let [funding_one, funding_other] = [0, 1].map(|side| secret(2, channel.scid << 1 | side));
    let mut body = vec![0, 0];
    body.extend(ChainHash::BITCOIN.as_bytes());
    body.extend(channel.scid.to_be_bytes());
    for secret in [&one, &other, &funding_one, &funding_other] {
        body.extend(public(secret));
    }
    match decode(256, &signed(&body, &[&one, &other, &funding_one, &funding_other])) {
        Message::ChannelAnnouncement(message) => VerifiedChannel::verify(*message).expect("signed by all four"),
        other => panic!("{other:?}"),
    }
}

/// A side's `channel_update`, with its signature.
fn update(channel: &Channel, direction: Direction, side: &Side, secret: &SecretKey, timestamp: u32) -> Vec<u8> {
    let mut body = ChainHash::BITCOIN.as_bytes().to_vec();
    body.extend(channel.scid.to_be_bytes());
    body.extend(timestamp.to_be_bytes());
    let direction_bit = u8::try_from(direction.index()).expect("0 or 1");
    body.extend([1, direction_bit | u8::from(side.is_disabled) << 1]);
    body.extend(side.cltv_delta.to_be_bytes());
    body.extend(side.htlc_minimum_msat.to_be_bytes());
    body.extend(side.fee_base_msat.to_be_bytes());
    body.extend(side.fee_ppm.to_be_bytes());
    body.extend(side.htlc_maximum_msat.to_be_bytes());
    signed(&body, &[secret])
}

fn node_announcement(number: u32) -> VerifiedNode {
    let secret = secret(1, u64::from(number));
    let mut body = vec![0, 0];
    body.extend(TIMESTAMP.to_be_bytes());
    body.extend(public(&secret));
    body.extend([1, 2, 3]);
    body.extend([b'm'; 32]);
    // One IPv4 address.
    body.extend([0, 7, 1, 127, 0, 0, 1, 0x26, 0x07]);
    match decode(257, &signed(&body, &[&secret])) {
        Message::NodeAnnouncement(message) => VerifiedNode::verify(*message).expect("signed by it"),
        other => panic!("{other:?}"),
    }
}

/// Reads updates, each behind its length.
pub(super) fn read_updates(bytes: &[u8]) -> Vec<Message> {
    let mut rest = bytes;
    let mut all = Vec::new();
    while let Some((len, behind)) = rest.split_first_chunk() {
        let (payload, behind) = behind.split_at(usize::from(u16::from_be_bytes(*len)));
        all.push(decode(258, payload));
        rest = behind;
    }
    all
}

/// Signs and verifies all of it, or so many channels, the oldest: some seconds of curve work, which nobody measures.
pub(super) fn prepare(channels_max: Option<usize>) -> Prepared {
    let mut graph = Graph::new(ChainHash::BITCOIN);
    let mut updates = Vec::new();
    let mut nodes = std::collections::BTreeSet::new();
    let mut channels = channels();
    channels.truncate(channels_max.unwrap_or(usize::MAX));
    let every = (channels.len() * 2 / UPDATES).max(1);
    let mut place = 0;
    for channel in &channels {
        graph.add_channel(&announcement(channel), Sat(channel.capacity_sat), TIMESTAMP).expect("each channel once");
        nodes.extend(channel.nodes);
        for (direction, (secret, side)) in Direction::BOTH.into_iter().zip(in_order(channel.nodes)) {
            let Some(terms) = &channel.sides[side] else { continue };
            let payload = update(channel, direction, terms, &secret, TIMESTAMP);
            let Message::ChannelUpdate(message) = decode(258, &payload) else { continue };
            let by = graph.sender_of(&message, TIMESTAMP).expect("the channel is there");
            let verified = VerifiedUpdate::verify(*message, by).expect("signed by its node");
            graph.apply_update(&verified, TIMESTAMP).expect("the first of its side");
            place += 1;
            if place % every == 0 {
                let dearer = Side { fee_base_msat: terms.fee_base_msat.saturating_add(1), ..*terms };
                let later = update(channel, direction, &dearer, &secret, TIMESTAMP + 60);
                updates.extend(u16::try_from(later.len()).expect("some 130 bytes").to_be_bytes());
                updates.extend(later);
            }
        }
    }
    for number in nodes {
        graph.apply_node(&node_announcement(number), TIMESTAMP).expect("it has a channel");
    }
    let mut saved = Vec::new();
    graph.save(&mut saved);
    Prepared { graph: saved, updates }
}
