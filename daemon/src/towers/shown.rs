//! What is shown of the watchtowers.

use millrace_watchtower::client::blob::BlobProgress;
use millrace_watchtower::client::{Link, Progress, Sent};
use millrace_wire::{ChannelId, PublicKey};

use super::Mode;

/// One tower, for people.
#[derive(Clone, Debug)]
pub struct Shown {
    /// Its key.
    pub tower: PublicKey,
    /// Its address.
    pub address: String,
    /// How it is used.
    pub mode: Mode,
    /// The key by which it knows this node: its owner allows it.
    pub client_key: PublicKey,
    /// Since when it is used, in ms of Unix time.
    pub added_ms: u64,
    /// How it stands with the connection.
    pub link: Link,
    /// Whether it had all that there was, once.
    pub is_relied_on: bool,
    /// What was sent to it since the start.
    pub sent: Sent,
    /// How far it is with each channel.
    pub channels: Vec<WatchedChannel>,
}

impl Shown {
    /// The largest lag of all channels, in commitments.
    #[must_use]
    pub fn lag(&self) -> u64 {
        self.channels.iter().map(WatchedChannel::lag).max().unwrap_or_default()
    }
}

/// How far a tower is with a channel, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WatchedChannel {
    /// Which channel.
    pub channel_id: ChannelId,
    /// The first commitment that it is told of.
    pub from: u64,
    /// The lowest commitment that the peer has not revoked.
    pub revoked: u64,
    /// The lowest one that the tower is not known to have on disk.
    pub acknowledged: u64,
    /// What it has signed last.
    pub receipt: Option<ShownReceipt>,
    /// What it refuses, in its words.
    pub refused: Option<String>,
    /// Whether it knows of more than this node.
    pub is_tower_ahead: bool,
    /// Whether it has seen the channel's end.
    pub is_resolved: bool,
}

/// What a tower has signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShownReceipt {
    /// The lowest commitment, or number in the group, that it did not have.
    pub next: u64,
    /// When, in seconds of Unix time.
    pub time_s: u64,
    /// The signature, in 64 bytes.
    pub signature: [u8; 64],
    /// The group that it is for, of somebody else's tower.
    pub group: Option<[u8; 16]>,
}

impl WatchedChannel {
    pub(super) fn own(channel_id: ChannelId, progress: &Progress) -> Self {
        let receipt = progress.receipt.map(|receipt| ShownReceipt {
            next: receipt.next.0,
            time_s: receipt.time_s,
            signature: receipt.signature.serialize_compact(),
            group: None,
        });
        Self {
            channel_id,
            from: 0,
            revoked: progress.noted,
            acknowledged: progress.acknowledged,
            receipt,
            refused: progress.refused.clone(),
            is_tower_ahead: progress.is_tower_ahead,
            is_resolved: progress.is_resolved,
        }
    }

    pub(super) fn foreign(channel_id: ChannelId, base: u64, progress: &BlobProgress) -> Self {
        let receipt = progress.receipt.map(|receipt| ShownReceipt {
            next: receipt.next,
            time_s: receipt.time_s,
            signature: receipt.signature.serialize_compact(),
            group: Some(receipt.group.0),
        });
        Self {
            channel_id,
            from: base,
            revoked: base.saturating_add(progress.noted),
            acknowledged: base.saturating_add(progress.acknowledged),
            receipt,
            refused: progress.refused.clone(),
            is_tower_ahead: progress.is_tower_ahead,
            is_resolved: false,
        }
    }

    /// Revoked commitments that the tower is not known to have.
    #[must_use]
    pub const fn lag(&self) -> u64 {
        self.revoked.saturating_sub(self.acknowledged)
    }
}
