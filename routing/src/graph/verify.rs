//! Whether an announcement was made by whom it names (BOLT 7): signatures, and what can be seen without a chain.
//!
//! Curve work is done here and nowhere else in the graph: whoever owns the threads may verify many at once, and hands in
//! what passed.

use bitcoin::ScriptBuf;
use bitcoin::opcodes::all::{OP_CHECKMULTISIG, OP_PUSHNUM_2};
use bitcoin::script::Builder;
use millrace_wire::{ChannelAnnouncement, ChannelUpdate, NodeAnnouncement, PublicKey, Signature};
use secp256k1::{Message, SECP256K1};
use thiserror::Error;

use super::NodeId;

/// What an honest node never sends, nor relays.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum GossipFault {
    /// A key is no point of the curve.
    #[error("{key} is no public key")]
    Key {
        /// Which field.
        key: &'static str,
    },
    /// The nodes are not in ascending order, or the same.
    #[error("the node ids are not in ascending order")]
    Order,
    /// A signature does not hold.
    #[error("{signature} does not hold")]
    Signature {
        /// Which field.
        signature: &'static str,
    },
}

fn key(id: &[u8], key: &'static str) -> Result<PublicKey, GossipFault> {
    PublicKey::from_slice(id).map_err(|_| GossipFault::Key { key })
}

fn check(hash: &Message, signature: &Signature, key: &PublicKey, name: &'static str) -> Result<(), GossipFault> {
    SECP256K1.verify_ecdsa(hash, signature, key).map_err(|_| GossipFault::Signature { signature: name })
}

/// A `channel_announcement` whose four signatures hold. The chain is still to be asked about its funding output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedChannel {
    pub(super) announcement: ChannelAnnouncement,
    funding_script: ScriptBuf,
}

impl VerifiedChannel {
    /// Verifies the four signatures, and the order of the nodes.
    ///
    /// # Errors
    /// [`GossipFault`]: the sender is to be told.
    pub fn verify(announcement: ChannelAnnouncement) -> Result<Self, GossipFault> {
        let message = announcement.parsed();
        let contents = &message.contents;
        let (node_1, node_2) = (contents.node_id_1.as_slice(), contents.node_id_2.as_slice());
        if node_1 >= node_2 {
            return Err(GossipFault::Order);
        }
        let (node_1, node_2) = (key(node_1, "node_id_1")?, key(node_2, "node_id_2")?);
        let bitcoin_1 = key(contents.bitcoin_key_1.as_slice(), "bitcoin_key_1")?;
        let bitcoin_2 = key(contents.bitcoin_key_2.as_slice(), "bitcoin_key_2")?;
        let hash = Message::from_digest(announcement.signed_hash());
        check(&hash, &message.node_signature_1, &node_1, "node_signature_1")?;
        check(&hash, &message.node_signature_2, &node_2, "node_signature_2")?;
        check(&hash, &message.bitcoin_signature_1, &bitcoin_1, "bitcoin_signature_1")?;
        check(&hash, &message.bitcoin_signature_2, &bitcoin_2, "bitcoin_signature_2")?;
        let funding_script = funding_script(&bitcoin_1, &bitcoin_2);
        Ok(Self { announcement, funding_script })
    }

    /// What the output that its short channel id names must pay to (BOLT 3, "Funding Transaction Output").
    #[must_use]
    pub const fn funding_script(&self) -> &ScriptBuf {
        &self.funding_script
    }

    /// The message.
    #[must_use]
    pub const fn announcement(&self) -> &ChannelAnnouncement {
        &self.announcement
    }
}

/// BOLT 3: two of two, the lesser key first, as P2WSH.
fn funding_script(one: &PublicKey, other: &PublicKey) -> ScriptBuf {
    let (one, other) = (one.serialize(), other.serialize());
    let (lesser, greater) = if one < other { (one, other) } else { (other, one) };
    Builder::new()
        .push_opcode(OP_PUSHNUM_2)
        .push_slice(lesser)
        .push_slice(greater)
        .push_opcode(OP_PUSHNUM_2)
        .push_opcode(OP_CHECKMULTISIG)
        .into_script()
        .to_p2wsh()
}

/// A `node_announcement` that is by the node it names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedNode(pub(super) NodeAnnouncement);

impl VerifiedNode {
    /// Verifies its signature.
    ///
    /// # Errors
    /// [`GossipFault`]: the sender is to be told.
    pub fn verify(announcement: NodeAnnouncement) -> Result<Self, GossipFault> {
        let message = announcement.parsed();
        let node = key(message.contents.node_id.as_slice(), "node_id")?;
        let hash = Message::from_digest(announcement.signed_hash());
        check(&hash, &message.signature, &node, "signature")?;
        Ok(Self(announcement))
    }

    /// The message.
    #[must_use]
    pub const fn announcement(&self) -> &NodeAnnouncement {
        &self.0
    }
}

/// A `channel_update` that is by the node it was held against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VerifiedUpdate {
    pub(super) update: ChannelUpdate,
    pub(super) by: NodeId,
}

impl VerifiedUpdate {
    /// Verifies its signature by the node whose terms it tells: [`super::Graph::sender_of`].
    ///
    /// # Errors
    /// [`GossipFault`]: the sender is to be told.
    pub fn verify(update: ChannelUpdate, by: NodeId) -> Result<Self, GossipFault> {
        let node = key(&by.0, "node_id")?;
        let hash = Message::from_digest(update.signed_hash());
        check(&hash, &update.parsed().signature, &node, "signature")?;
        Ok(Self { update, by })
    }

    /// The message.
    #[must_use]
    pub const fn update(&self) -> &ChannelUpdate {
        &self.update
    }
}
