//! The kit for whoever uses a tower: one [`Client`] per tower, several towers are several clients.
//!
//! A client never makes its caller wait. What the caller notes goes into the same compact store of secrets that the tower
//! has, so that a backlog of any length takes no more room than none; a task of its own tells the tower, one message per
//! channel at a time: while one is under way, the next ones gather and go together. What the tower has acknowledged is to
//! be seen at any time, and with [`Client::may_add`] the caller stops adding HTLCs where the tower is too far behind.
//!
//! After any interruption the tower says what it has, and gets what it lacks.
//!
//! All this is for one's own tower; [`blob`] is for somebody else's.

pub mod blob;
mod book;
mod line;
mod talk;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bitcoin::OutPoint;
use millrace_channel::secrets::{BadSecret, RevealedSecrets};
use millrace_wire::{ChainHash, ChannelId, CommitmentNumber, Preimage};
use secp256k1::{PublicKey, SecretKey};
use thiserror::Error;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinHandle;

use crate::receipt::Receipt;
use crate::registration::Registration;
use crate::transport::Traffic;
use book::Book;

/// Events that wait for the caller. One that finds no room comes again with the next connection.
const EVENTS_MAX: usize = 256;

/// Which tower, and how to use it.
#[derive(Clone, Debug)]
pub struct Config {
    /// The tower's key.
    pub tower: PublicKey,
    /// Its address, `HOST:PORT`.
    pub address: String,
    /// The key by which the tower knows this client.
    pub key: SecretKey,
    /// The chain of the channels.
    pub chain_hash: ChainHash,
    /// So many commitments may be revoked without the tower having their secrets, before [`Client::may_add`] says no.
    pub lag_max: u64,
    /// How long a secret may wait for others, to go with them. With none, it waits only for the answer to those before it.
    pub linger: Duration,
    /// So many secrets of one channel do not wait any longer.
    pub batch_max: u64,
}

impl Config {
    /// With a bound on lag of 1,000, and nothing waiting.
    #[must_use]
    pub const fn new(tower: PublicKey, address: String, key: SecretKey, chain_hash: ChainHash) -> Self {
        Self { tower, address, key, chain_hash, lag_max: 1_000, linger: Duration::ZERO, batch_max: 1_024 }
    }
}

/// How far the tower is with one channel.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    /// The lowest commitment whose secret was not noted here.
    pub noted: u64,
    /// The lowest commitment whose secret the tower is not known to have on disk.
    pub acknowledged: u64,
    /// The newest receipt.
    pub receipt: Option<Receipt>,
    /// What the tower refuses, in its words.
    pub refused: Option<String>,
    /// Whether the tower knows of more secrets than were noted here: this node's data is old (D11).
    pub is_tower_ahead: bool,
    /// Whether the tower has seen the channel's end.
    pub is_resolved: bool,
}

impl Progress {
    /// Revoked commitments whose secrets the tower is not known to have.
    #[must_use]
    pub const fn lag(&self) -> u64 {
        self.noted.saturating_sub(self.acknowledged)
    }
}

/// How it stands with the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Link {
    /// There is none. The reason is for people.
    Down(String),
    /// There is one, and the tower has said what it has.
    Up,
}

impl Link {
    /// As it is at first.
    #[must_use]
    pub fn not_called() -> Self {
        Self::Down("not called yet".to_owned())
    }
}

/// What the caller should know, and would not ask for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The tower has seen preimages on chain. Once they are safe, say [`Client::preimages_taken`] with `count`.
    Preimages {
        /// In which channel.
        channel_id: ChannelId,
        /// The preimages.
        preimages: Vec<Preimage>,
        /// How many there are of the channel, these included.
        count: u32,
    },
    /// Nothing can happen in the channel any more, says the tower.
    Resolved {
        /// Which channel.
        channel_id: ChannelId,
    },
}

/// Why something was not noted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum NoteError {
    /// The channel is not watched.
    #[error("the channel {0} is not registered with this tower")]
    Unknown(ChannelId),
    /// The secret does not come next, or contradicts the earlier ones.
    #[error(transparent)]
    BadSecret(#[from] BadSecret),
}

/// What was sent, since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sent {
    /// Updates: secrets that the tower has acknowledged.
    pub updates: u64,
    /// Messages with secrets.
    pub messages: u64,
    /// Bytes of payload of those messages, their types not counted.
    pub payload_bytes: u64,
    /// Bytes that were written to sockets, of whatever kind.
    pub socket_bytes_sent: u64,
    /// Bytes that were read from sockets.
    pub socket_bytes_received: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) updates: AtomicU64,
    pub(crate) messages: AtomicU64,
    pub(crate) payload_bytes: AtomicU64,
}

impl Counters {
    fn sent(&self, traffic: &Traffic) -> Sent {
        Sent {
            updates: self.updates.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
            payload_bytes: self.payload_bytes.load(Ordering::Relaxed),
            socket_bytes_sent: traffic.sent(),
            socket_bytes_received: traffic.received(),
        }
    }
}

/// What the caller and the task share.
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) book: Book,
    /// There is something to tell.
    pub(crate) work: Notify,
    pub(crate) link: watch::Sender<Link>,
    pub(crate) traffic: Arc<Traffic>,
    pub(crate) counters: Counters,
}

/// A tower, as seen from a node. It ends with its last handle.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
    _task: Arc<EndOnDrop>,
}

struct EndOnDrop(JoinHandle<()>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Client {
    /// Starts to talk to a tower, and goes on trying while it is away.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(config: Config) -> (Self, mpsc::Receiver<Event>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let shared = Arc::new(Shared {
            config,
            book: Book::default(),
            work: Notify::new(),
            link: watch::Sender::new(Link::not_called()),
            traffic: Arc::default(),
            counters: Counters::default(),
        });
        let task = tokio::spawn(talk::run(Arc::clone(&shared), events));
        (Self { shared, _task: Arc::new(EndOnDrop(task)) }, receiver)
    }

    /// The tower's key.
    #[must_use]
    pub fn tower(&self) -> PublicKey {
        self.shared.config.tower
    }

    /// Has a channel watched, with all secrets that the peer has revealed so far. Again it changes nothing, but for secrets
    /// that are new.
    pub fn register(&self, registration: Registration, secrets: RevealedSecrets) -> ChannelId {
        let channel_id = registration.channel_id();
        self.shared.book.register(channel_id, registration, secrets);
        self.shared.work.notify_one();
        channel_id
    }

    /// The tower once signed this receipt: until it says itself what it has, it counts as having that much. One of another
    /// tower's changes nothing.
    pub fn recall(&self, channel_id: ChannelId, receipt: Receipt) {
        if receipt.is_by(&self.shared.config.tower) {
            self.shared.book.recall(channel_id, receipt);
        }
    }

    /// The peer has revoked its commitment `number`. Never waits.
    ///
    /// # Errors
    /// [`NoteError`]; nothing has changed then.
    pub fn note_revoked(
        &self,
        channel_id: ChannelId,
        number: CommitmentNumber,
        secret: [u8; 32],
    ) -> Result<(), NoteError> {
        self.shared.book.note(channel_id, number, secret)?;
        self.shared.work.notify_one();
        Ok(())
    }

    /// The channel is of no concern any more, also one that is not watched here, but was before a restart. The tower may refuse
    /// ([`Progress::refused`]): then it stays watched there, until this is asked again. [`Client::knows`] says when it is done.
    pub fn forget(&self, channel_id: ChannelId) {
        self.shared.book.forget(channel_id);
        self.shared.work.notify_one();
    }

    /// Whether the channel is watched, or the tower has not forgotten it yet.
    #[must_use]
    pub fn knows(&self, channel_id: ChannelId) -> bool {
        self.shared.book.knows(channel_id)
    }

    /// So many of the channel's preimages are safe here.
    pub fn preimages_taken(&self, channel_id: ChannelId, count: u32) {
        self.shared.book.preimages_taken(channel_id, count);
        self.shared.work.notify_one();
    }

    /// How far the tower is with a channel, and the news of it. `None` if it is not watched.
    #[must_use]
    pub fn progress(&self, channel_id: ChannelId) -> Option<watch::Receiver<Progress>> {
        self.shared.book.progress(channel_id)
    }

    /// How far the tower is with each channel.
    #[must_use]
    pub fn all_progress(&self) -> Vec<(ChannelId, OutPoint, Progress)> {
        self.shared.book.all_progress()
    }

    /// Whether HTLCs may be added in a channel: the tower is not too far behind. A channel that it does not watch is no
    /// matter of its.
    #[must_use]
    pub fn may_add(&self, channel_id: ChannelId) -> bool {
        self.shared.book.lag(channel_id) <= self.shared.config.lag_max
    }

    /// How it stands with the connection, and the news of it.
    #[must_use]
    pub fn link(&self) -> watch::Receiver<Link> {
        self.shared.link.subscribe()
    }

    /// What was sent, since the start.
    #[must_use]
    pub fn sent(&self) -> Sent {
        self.shared.counters.sent(&self.shared.traffic)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod site;
#[cfg(test)]
mod tests;
