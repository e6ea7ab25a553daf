//! Our `node_announcement` (BOLT 7): the node's name, colour and addresses.

use std::fmt;
use std::str::FromStr;

use lightning::ln::msgs::{NodeAnnouncement as LdkNode, UnsignedNodeAnnouncement};
use lightning::routing::gossip::{NodeAlias, NodeId};
use lightning::types::features::NodeFeatures;
use lightning::util::ser::Writeable;
use millrace_wire::{Decoded, Features, Message, NodeAnnouncement};
use serde::{Deserialize, Serialize};

use super::address::NodeAddress;
use super::update::{Signer, with_type};

/// BOLT 7: the bytes of an alias.
pub const ALIAS_BYTES_MAX: usize = 32;
/// Addresses of one node: more than anybody has, and few enough for one message.
pub const ADDRESSES_MAX: usize = 16;

/// The type number of `node_announcement`.
const TYPE: u16 = 257;

/// Red, green and blue.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Color(pub [u8; 3]);

impl FromStr for Color {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut color = [0; 3];
        hex::decode_to_slice(text.strip_prefix('#').ok_or(())?, &mut color).map_err(|_| ())?;
        Ok(Self(color))
    }
}

impl fmt::Display for Color {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", hex::encode(self.0))
    }
}

/// What the network is told of the node.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Face {
    /// Its name, at most [`ALIAS_BYTES_MAX`] bytes.
    pub alias: String,
    /// Its colour on maps.
    pub color: Color,
    /// Where it may be called.
    pub addresses: Vec<NodeAddress>,
}

/// What the owner has asked for since: it wins over the settings, also after a restart.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Wishes {
    /// Another name.
    pub alias: Option<String>,
    /// Another colour.
    pub color: Option<Color>,
    /// Other addresses.
    pub addresses: Option<Vec<NodeAddress>>,
}

impl Wishes {
    /// These, and what is not wished anew as it was.
    #[must_use]
    pub fn over(self, before: &Self) -> Self {
        Self {
            alias: self.alias.or_else(|| before.alias.clone()),
            color: self.color.or(before.color),
            addresses: self.addresses.or_else(|| before.addresses.clone()),
        }
    }

    /// A face that follows them where they say something.
    pub(super) fn on(&self, usual: &Face) -> Face {
        Face {
            alias: self.alias.clone().unwrap_or_else(|| usual.alias.clone()),
            color: self.color.unwrap_or(usual.color),
            addresses: self.addresses.clone().unwrap_or_else(|| usual.addresses.clone()),
        }
    }
}

impl Face {
    /// The message.
    pub(super) fn signed(&self, signer: &Signer, features: &Features, timestamp: u32) -> NodeAnnouncement {
        let mut addresses = self.addresses.clone();
        addresses.sort_by_key(NodeAddress::type_number);
        let mut alias = [0; ALIAS_BYTES_MAX];
        let name = self.alias.as_bytes();
        let length = name.len().min(ALIAS_BYTES_MAX);
        alias[..length].copy_from_slice(&name[..length]);
        let contents = UnsignedNodeAnnouncement {
            features: NodeFeatures::from_le_bytes(little_endian(features)),
            timestamp,
            node_id: NodeId::from_pubkey(&signer.node_id),
            rgb: self.color.0,
            alias: NodeAlias(alias),
            addresses: addresses.iter().map(|address| address.inner().clone()).collect(),
            excess_address_data: Vec::new(),
            excess_data: Vec::new(),
        };
        NodeAnnouncement::new(LdkNode { signature: signer.sign(&contents.encode()), contents })
    }

    /// Whether an announcement already says this.
    pub(super) fn is_said_by(&self, said: &NodeAnnouncement, signer: &Signer, features: &Features) -> bool {
        let anew = self.signed(signer, features, said.parsed().contents.timestamp);
        anew.signed_hash() == said.signed_hash()
    }
}

fn little_endian(features: &Features) -> Vec<u8> {
    let mut bytes = Vec::new();
    for bit in features.bits() {
        let bit = bit as usize;
        if bytes.len() <= bit / 8 {
            bytes.resize(bit / 8 + 1, 0);
        }
        bytes[bit / 8] |= 1 << (bit % 8);
    }
    bytes
}

/// An announcement by its stored bytes, which have no type.
pub(super) fn decode(bytes: &[u8]) -> Option<NodeAnnouncement> {
    match Message::decode(&message(bytes)) {
        Ok(Decoded::Message(Message::NodeAnnouncement(announcement))) => Some(*announcement),
        _ => None,
    }
}

/// A whole `node_announcement`.
pub(super) fn message(bytes: &[u8]) -> Vec<u8> {
    with_type(TYPE, bytes)
}
