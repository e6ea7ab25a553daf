//! The kit for whoever uses somebody else's tower: one [`BlobClient`] per tower. It hands over sealed penalties
//! ([`crate::sealed::seal`]), in groups of the caller's and in order.
//!
//! A client never makes its caller wait, and keeps no more than [`BlobConfig::waiting_max`] blobs: whoever calls has copies of
//! his own, hands over from [`BlobProgress::wanted`] on until the client is full, and goes on when the progress changes. What
//! [`BlobProgress::acknowledged`] is above he need not keep any more: it is on the tower's disk.
//!
//! After any interruption the tower says what it has of each group, and gets what it lacks.

mod queue;
mod talk;

use std::sync::Arc;
use std::time::Duration;

use millrace_wire::ChainHash;
use secp256k1::{PublicKey, SecretKey};
use thiserror::Error;
use tokio::sync::{Notify, watch};

use super::{Config, Counters, EndOnDrop, Link, Sent};
use crate::receipt::BlobReceipt;
use crate::sealed::Sealed;
use crate::transport::Traffic;
use crate::vault::Group;
use queue::Queue;

/// Which tower, and how to use it.
#[derive(Clone, Debug)]
pub struct BlobConfig {
    /// The tower's key.
    pub tower: PublicKey,
    /// Its address, `HOST:PORT`.
    pub address: String,
    /// The key by which the tower knows this client.
    pub key: SecretKey,
    /// The chain of the channels.
    pub chain_hash: ChainHash,
    /// So many blobs of a group may be missing at the tower, before [`BlobClient::may_add`] says no.
    pub lag_max: u64,
    /// So many blobs are kept here, of all groups together: about half a kilobyte each.
    pub waiting_max: usize,
}

impl BlobConfig {
    /// With a bound on lag of 1,000, and 2 MB of blobs.
    #[must_use]
    pub const fn new(tower: PublicKey, address: String, key: SecretKey, chain_hash: ChainHash) -> Self {
        Self { tower, address, key, chain_hash, lag_max: 1_000, waiting_max: 4_096 }
    }
}

/// How far the tower is with one group.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct BlobProgress {
    /// The lowest sequence number that the caller has not spoken of.
    pub noted: u64,
    /// The one that is to be handed over next.
    pub wanted: u64,
    /// The lowest one whose blob the tower is not known to have on disk.
    pub acknowledged: u64,
    /// The newest receipt of those for the most.
    pub receipt: Option<BlobReceipt>,
    /// What the tower refuses, in its words.
    pub refused: Option<String>,
    /// Whether the tower has more than the caller has spoken of: this node's data is old (D11).
    pub is_tower_ahead: bool,
    /// Whether the tower has less than it once had acknowledged: the receipt proves it. Without copies from `wanted` on, another group must go on.
    pub is_tower_behind: bool,
}

impl BlobProgress {
    /// Blobs that the tower is not known to have.
    #[must_use]
    pub const fn lag(&self) -> u64 {
        self.noted.saturating_sub(self.acknowledged)
    }
}

/// Why a blob was not taken. Nothing has changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum HandOverError {
    /// The group was not registered.
    #[error("{0} is not registered with this tower")]
    Unknown(Group),
    /// Another one comes first.
    #[error("blob {wanted} of the group comes first")]
    OutOfOrder {
        /// Which.
        wanted: u64,
    },
    /// The tower has other blobs under this number and more: what the caller knows is old.
    #[error("the tower has all blobs below {next} of the group: this node's data is old")]
    TowerAhead {
        /// What the tower has.
        next: u64,
    },
    /// There is no room; the progress changes once there is.
    #[error("{max} blobs wait for the tower already")]
    Full {
        /// As many as may.
        max: usize,
    },
}

/// What the caller and the task share.
struct Shared {
    /// As the line wants it.
    config: Config,
    queue: Queue,
    work: Notify,
    link: watch::Sender<Link>,
    traffic: Arc<Traffic>,
    counters: Counters,
}

/// Somebody else's tower, as seen from a node. It ends with its last handle.
#[derive(Clone)]
pub struct BlobClient {
    shared: Arc<Shared>,
    _task: Arc<EndOnDrop>,
}

impl BlobClient {
    /// Starts to talk to a tower, and goes on trying while it is away.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(config: BlobConfig) -> Self {
        let BlobConfig { tower, address, key, chain_hash, lag_max, waiting_max } = config;
        let shared = Arc::new(Shared {
            config: Config { tower, address, key, chain_hash, lag_max, linger: Duration::ZERO, batch_max: 0 },
            queue: Queue::new(waiting_max),
            work: Notify::new(),
            link: watch::Sender::new(Link::Down("not called yet".to_owned())),
            traffic: Arc::default(),
            counters: Counters::default(),
        });
        let task = tokio::spawn(talk::run(Arc::clone(&shared)));
        Self { shared, _task: Arc::new(EndOnDrop(task)) }
    }

    /// The tower's key.
    #[must_use]
    pub fn tower(&self) -> PublicKey {
        self.shared.config.tower
    }

    /// There is such a group. `acknowledged` is the lowest blob that the caller does not know to be on the tower's disk, and
    /// `noted` the first that does not exist yet: 0 and 0 for a group that is new. Again it only changes `noted`.
    pub fn register(&self, group: Group, acknowledged: u64, noted: u64) -> watch::Receiver<BlobProgress> {
        let progress = self.shared.queue.register(group, acknowledged, noted);
        self.shared.work.notify_one();
        progress
    }

    /// A blob of a group, in order. One that was handed over before changes nothing. Never waits.
    ///
    /// # Errors
    /// [`HandOverError`].
    pub fn hand_over(&self, group: Group, sequence: u64, sealed: Sealed) -> Result<(), HandOverError> {
        self.shared.queue.hand_over(group, sequence, sealed)?;
        self.shared.work.notify_one();
        Ok(())
    }

    /// Nobody needs the group's blobs any more. The tower may refuse ([`BlobProgress::refused`]): then it keeps them, until
    /// this is asked again. Once it has agreed, the group has no progress any more.
    pub fn release(&self, group: Group) {
        self.shared.queue.release(group);
        self.shared.work.notify_one();
    }

    /// How far the tower is with a group, and the news of it. `None` if it is not registered.
    #[must_use]
    pub fn progress(&self, group: Group) -> Option<watch::Receiver<BlobProgress>> {
        self.shared.queue.progress(group)
    }

    /// How far the tower is with each group.
    #[must_use]
    pub fn all_progress(&self) -> Vec<(Group, BlobProgress)> {
        self.shared.queue.all_progress()
    }

    /// Groups that the tower has and nobody has registered here, by what it said last: perhaps of a channel that is over.
    #[must_use]
    pub fn strangers(&self) -> Vec<Group> {
        self.shared.queue.strangers()
    }

    /// Whether HTLCs may be added in the channel of this group: the tower is not too far behind. A group that is not
    /// registered is no matter of its.
    #[must_use]
    pub fn may_add(&self, group: Group) -> bool {
        self.shared.queue.lag(group) <= self.shared.config.lag_max
    }

    /// How it stands with the connection, and the news of it.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    /// What was sent, since the start: `updates` are blobs that the tower has acknowledged.
    #[must_use]
    pub fn sent(&self) -> Sent {
        self.shared.counters.sent(&self.shared.traffic)
    }
}

#[cfg(test)]
mod tests;
