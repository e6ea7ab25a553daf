//! Where a peer was reached: written down, so that it can be called again after a restart.

use millrace_wire::PublicKey;
use serde::{Deserialize, Serialize};

/// The version of the entries that are written here.
const VERSION: u8 = 1;

/// A node and where it listens.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PeerAddress {
    node_id: PublicKey,
    address: String,
}

impl PeerAddress {
    /// A node, and its `host:port`.
    #[must_use]
    pub const fn new(node_id: PublicKey, address: String) -> Self {
        Self { node_id, address }
    }

    /// The entry for the journal.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("a key and a string")
    }

    /// Reads an entry.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        match bytes.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).ok(),
            Some(_) | None => None,
        }
    }

    /// Both parts; none if there is nothing to call.
    #[must_use]
    pub fn into_parts(self) -> Option<(PublicKey, String)> {
        (!self.address.is_empty()).then_some((self.node_id, self.address))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use secp256k1::{SECP256K1, SecretKey};

    use super::*;

    #[test]
    fn version_1_stays_what_it_was() {
        let node_id = SecretKey::from_slice(&[1; 32]).unwrap().public_key(SECP256K1);
        let entry = PeerAddress::new(node_id, "h:1".to_owned());
        let stored = "01031b84c5567b126440995d3ed5aaba0565d71e1834604819ff9c17f5e9d5dd078f03683a31";
        assert_eq!(hex::encode(entry.encode()), stored);
        assert_eq!(PeerAddress::decode(&hex::decode(stored).unwrap()), Some(entry));
        assert_eq!(PeerAddress::decode(&[2]), None);
    }
}
