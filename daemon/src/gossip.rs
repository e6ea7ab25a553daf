//! The public graph in the daemon (BOLT 7): what peers say is verified, held against the chain, kept, passed on and saved.
//! What the graph is and what it takes stands in `millrace-routing`; channels of our own are announced elsewhere, which
//! hands their messages in by [`Gossip::put_own`].
//!
//! ```text
//! peer's inbox ─► intake ─► listening ─► book (the graph) ─► relay ─► links of other peers
//!                  │           └──► funding (bitcoind)└─► map for searches, file
//!                  └─► answering ─► the peer's link
//! blocks ─► spends ─► book
//! ```
//!
//! Each connection has one task that takes what the peer says, in order and some at a time, and one that answers its
//! questions, piece by piece. Everything that reads or changes the graph, and all curve work, runs on a few blocking threads
//! ([`Inner::work`]), given out fairly; no task holds the graph while it waits.
//!
//! What a peer says and nobody has handled yet is bounded by bytes. When it is full, what comes is dropped, and reading goes
//! on: on the same connection there may be HTLCs, and pausing would hold them up for the sake of something that comes again
//! (from other peers, and with the next round of questions). See `intake`.

mod answering;
mod blocks;
mod book;
mod funding;
mod intake;
mod listening;
#[cfg(test)]
mod made_up;
mod own;
mod relay;
mod shown;
mod store;
mod sync;
mod verify;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use millrace_routing::map::Map;
use millrace_wire::ChainHash;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;

pub use funding::{BitcoindFunding, Funding, FundingSource, Later, Looking};
pub(crate) use intake::Seat;
pub use shown::{GraphInfo, ShownChannel, ShownNode, ShownTerms};

use crate::network::Network;
use book::Book;
use intake::Seated;
use relay::Waiting;

const LOCK: &str = "nothing panics while gossip is locked";
/// The graph is looked through for what is stale so often, beside at each block.
const PRUNE_EVERY: Duration = Duration::from_secs(3600);

/// What the owner decides about gossip.
#[derive(Clone, Debug)]
pub struct GossipRules {
    /// How often new messages are passed on.
    pub relay_every: Duration,
    /// How often a changed graph is saved, beside at the end of each sync and at a stop.
    pub save_every: Duration,
    /// How often a changed graph is given to searches.
    pub publish_every: Duration,
    /// Peers that are asked for the whole graph, each after the other, within `sync_every`.
    pub sync_peers: usize,
    /// After so long it is asked for again, from other peers if there are any.
    pub sync_every: Duration,
    /// How long a peer that was asked may say nothing.
    pub sync_patience: Duration,
    /// Where the graph is saved; nowhere if absent.
    pub file: Option<PathBuf>,
}

impl Default for GossipRules {
    fn default() -> Self {
        Self {
            relay_every: Duration::from_secs(1),
            save_every: Duration::from_secs(300),
            publish_every: Duration::from_secs(1),
            sync_peers: 3,
            sync_every: Duration::from_secs(3600),
            sync_patience: Duration::from_secs(60),
            file: None,
        }
    }
}

/// The handle of the public graph. Clones are the same.
#[derive(Clone)]
pub struct Gossip {
    inner: Arc<Inner>,
}

struct Inner {
    rules: GossipRules,
    chain_hash: ChainHash,
    book: RwLock<Book>,
    /// Who may work on blocking threads.
    workers: Arc<Semaphore>,
    funding: Arc<dyn FundingSource>,
    network: Network,
    seats: Mutex<BTreeMap<u64, Arc<Seated>>>,
    seats_made: AtomicU64,
    /// A connection has come, gone, or was asked to the end.
    seats_changed: Notify,
    /// Bytes that peers have said and nobody has handled.
    waiting: AtomicUsize,
    /// What is to be passed on.
    passed: Mutex<Waiting>,
    own: mpsc::UnboundedSender<Vec<Vec<u8>>>,
    /// Held while the graph is written down.
    saving: Mutex<()>,
    changed: Notify,
    /// When a peer was last asked to the end, as Unix time in milliseconds; 0 if never.
    synced_ms: AtomicU64,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Gossip {
    /// Reads what was saved, and begins. To be called on a tokio runtime.
    #[must_use]
    pub fn start(chain_hash: ChainHash, rules: GossipRules, funding: Arc<dyn FundingSource>, network: Network) -> Self {
        let book = store::load(rules.file.as_deref(), chain_hash);
        network.publish(Arc::new(Map::new(&book.graph)));
        let has_unchecked = !book.outpoints.is_empty();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let (own, own_messages) = mpsc::unbounded_channel();
        let inner = Arc::new(Inner {
            rules,
            chain_hash,
            book: RwLock::new(book),
            // Half of the cores at most: payments come first.
            workers: Arc::new(Semaphore::new((cores / 2).max(1))),
            funding,
            network,
            seats: Mutex::default(),
            seats_made: AtomicU64::new(0),
            seats_changed: Notify::new(),
            waiting: AtomicUsize::new(0),
            passed: Mutex::default(),
            own,
            saving: Mutex::default(),
            changed: Notify::new(),
            synced_ms: AtomicU64::new(0),
            tasks: Mutex::default(),
        });
        let mut tasks = vec![
            tokio::spawn(own::take(Arc::clone(&inner), own_messages)),
            tokio::spawn(relay::run(Arc::clone(&inner))),
            tokio::spawn(sync::run(Arc::clone(&inner))),
            tokio::spawn(publish(Arc::clone(&inner))),
            tokio::spawn(save(Arc::clone(&inner))),
            tokio::spawn(prune(Arc::clone(&inner))),
        ];
        if has_unchecked {
            tasks.push(tokio::spawn(blocks::check_all(Arc::clone(&inner))));
        }
        inner.tasks.lock().expect(LOCK).extend(tasks);
        Self { inner }
    }

    /// Takes announcements and updates of this node's own channels, and of itself: each a whole message, its type included. They
    /// are verified as others' are, their funding output too, but never too many; what is new is passed on to all peers. In
    /// order: a channel before its updates. Returns at once; what is refused is logged.
    pub fn put_own(&self, messages: Vec<Vec<u8>>) {
        // Fails only after `stop`.
        let _stopped = self.inner.own.send(messages);
    }

    /// Ends all of it, and saves the graph.
    pub async fn stop(&self) {
        let tasks = std::mem::take(&mut *self.inner.tasks.lock().expect(LOCK));
        for task in tasks {
            task.abort();
            // An aborted one has nothing to say.
            let _aborted = task.await;
        }
        self.inner.work(store::save).await;
    }
}

impl std::fmt::Debug for Gossip {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gossip").field("rules", &self.inner.rules).finish_non_exhaustive()
    }
}

impl Inner {
    /// Does something on a blocking thread, when it is its turn.
    async fn work<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let permit = Arc::clone(&self.workers).acquire_owned().await.expect("the semaphore is never closed");
        // Whoever waits for it may be gone before it is done: the place is free only then.
        self.work_now(move |inner| {
            let done = work(inner);
            drop(permit);
            done
        })
        .await
    }

    /// The same at once: for blocks, which channels wait for as well.
    async fn work_now<T: Send + 'static>(self: &Arc<Self>, work: impl FnOnce(&Self) -> T + Send + 'static) -> T {
        let inner = Arc::clone(self);
        match tokio::task::spawn_blocking(move || work(&inner)).await {
            Ok(done) => done,
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // The runtime ends, and this task with it.
            Err(_) => std::future::pending().await,
        }
    }

    /// The graph. On blocking threads only.
    fn read(&self) -> RwLockReadGuard<'_, Book> {
        self.book.read().expect(LOCK)
    }

    /// The graph, to be changed. On blocking threads only.
    fn write(&self) -> RwLockWriteGuard<'_, Book> {
        self.book.write().expect(LOCK)
    }

    fn seats(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Seated>>> {
        self.seats.lock().expect(LOCK)
    }

    /// Seconds of Unix time.
    fn now() -> u32 {
        u32::try_from(crate::clock::unix_ms() / 1000).unwrap_or(u32::MAX)
    }

    fn is_saved(&self) -> bool {
        let book = self.read();
        book.changes == book.saved.load(Ordering::Relaxed)
    }
}

/// Gives searches a new map whenever something has changed, but not all the time.
async fn publish(inner: Arc<Inner>) {
    let mut published = 0;
    loop {
        inner.changed.notified().await;
        let (map, changes) = inner
            .work(|inner| {
                let book = inner.read();
                (Map::new(&book.graph), book.changes)
            })
            .await;
        if changes != published {
            inner.network.publish(Arc::new(map));
            published = changes;
        }
        tokio::time::sleep(inner.rules.publish_every).await;
    }
}

async fn save(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(inner.rules.save_every).await;
        inner.work(store::save).await;
    }
}

async fn prune(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(PRUNE_EVERY).await;
        inner.work(|inner| inner.write().prune(Inner::now())).await;
        inner.changed.notify_one();
    }
}
