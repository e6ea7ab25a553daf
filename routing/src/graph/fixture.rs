//! What the tests of answers and questions share: terms and channels without signatures.

use millrace_wire::{Msat, Sat};

use super::allowance::Allowance;
use super::{Announced, Channel, NodeId, Policy, Terms};

/// Terms that say nothing but when they were made.
pub(super) fn terms(timestamp: u32, checksum: u32) -> Terms {
    let policy = Policy {
        is_disabled: false,
        cltv_expiry_delta: 1,
        htlc_minimum: Msat(0),
        htlc_maximum: Msat(1),
        fee_base_msat: 0,
        fee_proportional_millionths: 0,
    };
    Terms { policy, timestamp, checksum, bytes: timestamp.to_be_bytes().into(), allowance: Allowance::full(0) }
}

/// What a node says, of which nothing matters but when it was said.
pub(super) fn announced(timestamp: u32) -> Announced {
    let bytes = timestamp.to_be_bytes().into();
    Announced { timestamp, is_understood: true, bytes, allowance: Allowance::full(0) }
}

/// A channel of the nodes 1 and 2.
pub(super) fn channel(announcement: &[u8], terms: [Option<Terms>; 2]) -> Channel {
    Channel {
        nodes: [NodeId([1; 33]), NodeId([2; 33])],
        capacity: Sat(1),
        announcement: announcement.into(),
        known_since: 0,
        is_understood: true,
        terms,
        spent_at: None,
    }
}
