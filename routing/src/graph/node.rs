//! Nodes of the public graph (BOLT 7, "The `node_announcement` Message").

use core::fmt;

use bitcoin::hex::DisplayHex as _;
use millrace_wire::{NodeAnnouncement, PublicKey};

use super::allowance::Allowance;

/// A node's public key as gossip carries it: 33 bytes that were not yet held against the curve.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 33]);

impl NodeId {
    /// The key, if the bytes are one.
    #[must_use]
    pub fn public_key(&self) -> Option<PublicKey> {
        PublicKey::from_slice(&self.0).ok()
    }
}

impl From<PublicKey> for NodeId {
    fn from(key: PublicKey) -> Self {
        Self(key.serialize())
    }
}

impl From<&PublicKey> for NodeId {
    fn from(key: &PublicKey) -> Self {
        Self(key.serialize())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hex().fmt(f)
    }
}

/// A node that has an announced channel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Node {
    /// How many announced channels it has.
    pub channels: u32,
    /// What it has said of itself, if anything.
    pub announcement: Option<Announced>,
}

/// What a node says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// Seconds of Unix time, or whatever the node counts by: only a greater one replaces it.
    pub timestamp: u32,
    /// Nothing that it demands is unknown here.
    pub is_understood: bool,
    /// The message, to be relayed as it came.
    pub bytes: Box<[u8]>,
    /// How many more changes are taken at once.
    pub(super) allowance: Allowance,
}

impl Announced {
    pub(super) fn new(announcement: &NodeAnnouncement, allowance: Allowance) -> Self {
        let contents = &announcement.parsed().contents;
        Self {
            timestamp: contents.timestamp,
            is_understood: !contents.features.requires_unknown_bits(),
            bytes: announcement.bytes().into(),
            allowance,
        }
    }
}
