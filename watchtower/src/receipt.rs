//! What a tower signs when it has secrets of a channel on disk: it proves afterwards that it had them.

use bitcoin::OutPoint;
use bitcoin::hashes::{Hash, HashEngine, sha256};
use millrace_channel::curve::{VerifyJob, is_valid, sign};
use millrace_wire::CommitmentNumber;
use secp256k1::ecdsa::Signature;
use secp256k1::{PublicKey, SecretKey};

use crate::vault::Group;

/// Prefixed, so that no other signature of the tower's key can be taken for a receipt.
const DOMAIN: &[u8] = b"millrace/tower/receipt/1";
/// The same for blobs.
const BLOB_DOMAIN: &[u8] = b"millrace/tower/blob-receipt/1";

/// A tower had the secrets of all of a channel's commitments below one, at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Receipt {
    /// The channel's funding output.
    pub funding_outpoint: OutPoint,
    /// The lowest commitment whose secret it did not have.
    pub next: CommitmentNumber,
    /// When it took the newest one, in seconds of the Unix epoch.
    pub time_s: u64,
    /// By the tower's key.
    pub signature: Signature,
}

impl Receipt {
    /// Made by the tower with this key.
    #[must_use]
    pub fn sign(key: &SecretKey, funding_outpoint: OutPoint, next: CommitmentNumber, time_s: u64) -> Self {
        let signature = sign(&digest(funding_outpoint, next, time_s), key);
        Self { funding_outpoint, next, time_s, signature }
    }

    /// Whether the tower with this key made it.
    #[must_use]
    pub fn is_by(&self, tower: &PublicKey) -> bool {
        let digest = digest(self.funding_outpoint, self.next, self.time_s);
        is_valid(&VerifyJob { digest, key: *tower, signature: self.signature })
    }
}

/// A tower had all blobs of a group below one, at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BlobReceipt {
    /// The client's name for the group.
    pub group: Group,
    /// The lowest sequence number whose blob it did not have.
    pub next: u64,
    /// When it took the newest one, in seconds of the Unix epoch.
    pub time_s: u64,
    /// By the tower's key.
    pub signature: Signature,
}

impl BlobReceipt {
    /// Made by the tower with this key.
    #[must_use]
    pub fn sign(key: &SecretKey, group: Group, next: u64, time_s: u64) -> Self {
        let signature = sign(&blob_digest(group, next, time_s), key);
        Self { group, next, time_s, signature }
    }

    /// Whether the tower with this key made it.
    #[must_use]
    pub fn is_by(&self, tower: &PublicKey) -> bool {
        let digest = blob_digest(self.group, self.next, self.time_s);
        is_valid(&VerifyJob { digest, key: *tower, signature: self.signature })
    }
}

fn blob_digest(group: Group, next: u64, time_s: u64) -> [u8; 32] {
    let mut engine = sha256::Hash::engine();
    engine.input(BLOB_DOMAIN);
    engine.input(&group.0);
    engine.input(&next.to_be_bytes());
    engine.input(&time_s.to_be_bytes());
    sha256::Hash::from_engine(engine).to_byte_array()
}

fn digest(funding_outpoint: OutPoint, next: CommitmentNumber, time_s: u64) -> [u8; 32] {
    let mut engine = sha256::Hash::engine();
    engine.input(DOMAIN);
    engine.input(funding_outpoint.txid.as_byte_array());
    engine.input(&funding_outpoint.vout.to_be_bytes());
    engine.input(&next.0.to_be_bytes());
    engine.input(&time_s.to_be_bytes());
    sha256::Hash::from_engine(engine).to_byte_array()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use secp256k1::SECP256K1;

    #[test]
    fn holds_for_its_tower_channel_number_and_time_only() {
        let key = SecretKey::from_slice(&[5; 32]).unwrap();
        let tower = key.public_key(SECP256K1);
        let funding = crate::samples::registration(1).funding_outpoint;
        let receipt = Receipt::sign(&key, funding, CommitmentNumber(7), 1_700_000_000);
        assert!(receipt.is_by(&tower));
        let other = SecretKey::from_slice(&[6; 32]).unwrap().public_key(SECP256K1);
        assert!(!receipt.is_by(&other));
        let altered = [
            Receipt { next: CommitmentNumber(8), ..receipt },
            Receipt { time_s: 1_700_000_001, ..receipt },
            Receipt { funding_outpoint: crate::samples::registration(2).funding_outpoint, ..receipt },
        ];
        assert!(altered.iter().all(|receipt| !receipt.is_by(&tower)));
    }

    #[test]
    fn blob_receipt_holds_for_its_tower_group_number_and_time_only() {
        let key = SecretKey::from_slice(&[5; 32]).unwrap();
        let tower = key.public_key(SECP256K1);
        let receipt = BlobReceipt::sign(&key, Group([3; 16]), 7, 1_700_000_000);
        assert!(receipt.is_by(&tower));
        assert!(!receipt.is_by(&SecretKey::from_slice(&[6; 32]).unwrap().public_key(SECP256K1)));
        let altered = [
            BlobReceipt { group: Group([4; 16]), ..receipt },
            BlobReceipt { next: 8, ..receipt },
            BlobReceipt { time_s: 1_700_000_001, ..receipt },
        ];
        assert!(altered.iter().all(|receipt| !receipt.is_by(&tower)));
    }
}
