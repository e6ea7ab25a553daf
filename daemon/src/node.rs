//! The node: wires its parts together, starts them in their order and stops them. It decides nothing.
//!
//! The order of a start: the journal, the chain up to its tip, what the channels owe to the world, the peers; then the
//! API may serve. The order of a stop: no new work, no peers, a checkpoint, the shards, the journal.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use millrace_chain::fees::FeeEstimates;
use millrace_chain::{ChainEvent, SyncState, Trail};
use millrace_journal::{Journal, OpenError, Options};
use millrace_wire::ChannelId;
use secp256k1::SecretKey;
use tokio::sync::{mpsc, watch};

use crate::announce::Announcer;
use crate::chain_feed::{BlockFollower, Blocks, BroadcastOrder, ChainFeed, FeedState, MempoolNews, Watches};
use crate::channels::actor::Actor;
use crate::channels::curve_pool::CurvePool;
use crate::channels::directory::Directory;
use crate::channels::input::{Done, Input};
use crate::channels::keys::{FreshKeys, KeysOf};
use crate::channels::mailbox::Mailbox;
use crate::channels::shard::Shard;
use crate::channels::shared::Shared;
use crate::channels::{ChannelGuards, ChannelRules, ChannelWallet, Registry, shard_of};
use crate::checkpoint::{Checkpointer, NodeSection};
use crate::facts::{Fold, Folds};
use crate::feerate;
use crate::gossip::Gossip;
use crate::htlc_log::HtlcLog;
use crate::links;
use crate::peer::{PeerRules, Peers};
use crate::readiness::Readiness;
use crate::recovery::{RecoveryError, recover, trail_of};
use crate::steps::{JournalHandle, StepLog};

/// A checkpoint is due after a segment of journal; and after so long, if anything was written at all.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(15 * 60);
/// How often that is looked at.
const CHECKPOINT_LOOK: Duration = Duration::from_secs(1);
/// How long connections may take for their last words.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why the node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The journal.
    #[error(transparent)]
    Journal(#[from] OpenError),
    /// What is in it.
    #[error(transparent)]
    Recovery(#[from] RecoveryError),
    /// A thread.
    #[error("no thread for {what}: {error}")]
    Thread {
        /// What it is for.
        what: &'static str,
        /// Why not.
        error: std::io::Error,
    },
    /// Nobody can call us.
    #[error("cannot listen at {address}: {error}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
}

/// What is needed to read back what was written.
pub struct Origins<'a> {
    /// The journal's folder.
    pub journal: &'a Path,
    /// Its sizes.
    pub options: Options,
    /// What the owner decides about channels.
    pub rules: ChannelRules,
    /// The keys of a channel by their index.
    pub keys_of: KeysOf,
    /// All that fold the journal, in the order in which they are told.
    pub folds: Vec<Arc<dyn Fold>>,
    /// The state of the sync with bitcoind.
    pub sync: watch::Receiver<SyncState>,
}

/// The chain, as the node follows it.
pub struct ChainSource {
    /// Blocks from the trail on.
    pub events: mpsc::Receiver<ChainEvent>,
    /// What is in no block yet.
    pub mempool: mpsc::Receiver<MempoolNews>,
    /// What transactions pay.
    pub fees: watch::Receiver<FeeEstimates>,
    /// Whoever broadcasts.
    pub broadcasts: mpsc::UnboundedSender<BroadcastOrder>,
}

/// What the node runs with.
pub struct Surroundings {
    /// The key of its identity.
    pub node_key: SecretKey,
    /// What the owner decides about peers.
    pub peers: PeerRules,
    /// Where others call it; nobody can if absent.
    pub listen: Option<SocketAddr>,
    /// The wallet, for the channels.
    pub wallet: Arc<dyn ChannelWallet>,
    /// Those who keep watch while the node is off.
    pub guards: Arc<dyn ChannelGuards>,
    /// Whoever says what is to be said of the node and its channels; it is also among the folds.
    pub announcer: Option<Arc<Announcer>>,
    /// The public graph; without it, what peers say of it is passed over.
    pub gossip: Option<Gossip>,
    /// Who else follows the chain, besides the graph.
    pub followers: Vec<Arc<dyn BlockFollower>>,
    /// The chain, from these blocks on.
    pub chain: Box<dyn FnOnce(Trail) -> ChainSource + Send>,
}

/// Everything was read back, and nothing runs yet.
pub struct RecoveredNode {
    journal: Arc<Journal>,
    log: Arc<dyn StepLog>,
    rules: ChannelRules,
    keys_of: KeysOf,
    folds: Folds,
    htlc_log: Arc<HtlcLog>,
    registry: Registry,
    mailboxes: Vec<Mailbox<Input>>,
    actors: Vec<Actor>,
    blocks: Blocks,
    next_key: u64,
    addresses: std::collections::BTreeMap<millrace_wire::PublicKey, String>,
    pace: Pace,
}

/// When a checkpoint is due.
#[derive(Clone, Copy)]
struct Pace {
    /// After so many bytes of journal.
    due_after: u64,
    /// What was read back that no checkpoint holds: a node that never lives for long writes one too.
    behind: u64,
}

/// Opens the journal and reads everything back; the folds are told.
///
/// # Errors
/// [`StartError`]: what is on disk cannot be trusted, or not be read.
pub fn open(origins: Origins<'_>) -> Result<RecoveredNode, StartError> {
    let Origins { journal, options, rules, keys_of, mut folds, sync } = origins;
    let segment_bytes = options.segment_bytes;
    let (journal, recovered) = Journal::open(journal, options)?;
    let journal = Arc::new(journal);
    let htlc_log = HtlcLog::new();
    folds.push(Arc::clone(&htlc_log) as Arc<dyn Fold>);
    let folds = Folds::new(folds, journal.durable_up_to());
    let recovery = recover(recovered.checkpoint, recovered.tail, rules.policy, &keys_of, &folds)?;
    htlc_log.attach(&journal)?;
    let log: Arc<dyn StepLog> = Arc::clone(&journal) as Arc<dyn StepLog>;
    let mailboxes: Vec<_> = (0..rules.shards.max(1)).map(|_| Mailbox::new()).collect();
    let directory = Arc::new(Directory::new(rules.openings_per_peer_max, rules.openings_max));
    let registry = Registry::new(directory, mailboxes.clone(), Arc::clone(&log), sync);
    Ok(RecoveredNode {
        journal,
        log,
        rules,
        keys_of,
        folds,
        htlc_log,
        registry,
        mailboxes,
        actors: recovery.actors,
        blocks: recovery.blocks,
        next_key: recovery.next_key,
        addresses: recovery.addresses,
        pace: Pace { due_after: segment_bytes, behind: recovery.tail_bytes },
    })
}

impl RecoveredNode {
    /// The channels' handle; what is asked of it waits until the node runs.
    #[must_use]
    pub fn registry(&self) -> Registry {
        self.registry.clone()
    }

    /// The channels that were read back, and are not closed.
    #[must_use]
    pub fn channel_ids(&self) -> BTreeSet<ChannelId> {
        self.actors.iter().map(Actor::id).collect()
    }

    /// For owners of entries; what is written waits until the node runs.
    #[must_use]
    pub fn journal_handle(&self) -> JournalHandle {
        self.registry.journal()
    }

    /// The journal itself, for readers of steps and history.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// Lets everything run. The node is ready once it says so: see [`Node::readiness`]. Must be called on a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`StartError::Thread`].
    pub fn start(self, surroundings: Surroundings) -> Result<Node, StartError> {
        let Surroundings {
            node_key,
            peers: peer_rules,
            listen,
            wallet,
            guards,
            announcer,
            gossip,
            mut followers,
            chain,
        } = surroundings;
        followers.extend(gossip.clone().map(|gossip| Arc::new(gossip) as Arc<dyn BlockFollower>));
        let source = chain(Trail::new(trail_of(&self.blocks)));
        let (orders_sender, orders) = mpsc::unbounded_channel();
        let fresh_keys = Arc::new(FreshKeys::new(self.next_key));
        let (stop, stopping) = watch::channel(false);
        let shared = Arc::new(Shared {
            rules: self.rules.clone(),
            keys_of: Arc::clone(&self.keys_of),
            fresh_keys: Arc::clone(&fresh_keys),
            curve: CurvePool::new(self.rules.shards.saturating_sub(1)).map_err(thread("curve"))?,
            log: Arc::clone(&self.log),
            directory: Arc::clone(self.registry.directory()),
            folds: self.folds.clone(),
            wallet,
            guards,
            chain: orders_sender,
            fees: source.fees.clone(),
            registry: self.registry.clone(),
        });
        let shards = start_shards(&shared, &self.mailboxes, self.actors)?;
        let htlc_log = self.htlc_log.start(self.registry.clone());
        let peers = Peers::new(
            node_key,
            self.rules.chain_hash,
            peer_rules,
            self.registry.clone(),
            self.addresses,
            announcer.clone(),
            gossip.clone(),
            stopping.clone(),
        );
        if let Some(announcer) = announcer {
            announcer.start(self.registry.clone(), peers.clone(), stopping);
        }
        let blocks = Arc::new(Mutex::new(self.blocks));
        let (feed_state, feed_seen) = watch::channel(FeedState::default());
        let feed = ChainFeed {
            registry: self.registry.clone(),
            journal: self.registry.journal(),
            orders,
            broadcasts: source.broadcasts,
            blocks: Arc::clone(&blocks),
            state: feed_state,
            watches: Watches::default(),
            followers,
        };
        let checkpointer = Checkpointer {
            journal: Arc::clone(&self.journal),
            registry: self.registry.clone(),
            folds: self.folds,
            node: node_section(blocks, fresh_keys.clone(), peers.clone(), self.registry.clone()),
        };
        let checkpoints = start_checkpoints(checkpointer, self.pace)?;
        let (readiness, ready_seen) = watch::channel(Readiness::Recovering);
        let (listening, listening_seen) = watch::channel(None);
        let begin = Beginning {
            registry: self.registry.clone(),
            peers: peers.clone(),
            listen,
            listening,
            readiness: readiness.clone(),
            feed_seen,
            fresh_keys,
            fees: source.fees,
        };
        let main = tokio::spawn(begin.run(feed, source.events, source.mempool));
        Ok(Node {
            registry: self.registry,
            peers,
            journal: self.journal,
            readiness,
            ready_seen,
            listening: listening_seen,
            stop,
            main,
            shards,
            htlc_log,
            checkpoints,
            gossip,
        })
    }
}

/// A running node.
pub struct Node {
    registry: Registry,
    peers: Peers,
    journal: Arc<Journal>,
    readiness: watch::Sender<Readiness>,
    ready_seen: watch::Receiver<Readiness>,
    listening: watch::Receiver<Option<SocketAddr>>,
    stop: watch::Sender<bool>,
    main: tokio::task::JoinHandle<Result<(), StartError>>,
    shards: Vec<JoinHandle<()>>,
    htlc_log: Option<tokio::task::JoinHandle<()>>,
    checkpoints: Checkpoints,
    gossip: Option<Gossip>,
}

impl Node {
    /// The channels.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The peers.
    #[must_use]
    pub fn peers(&self) -> &Peers {
        &self.peers
    }

    /// The journal.
    #[must_use]
    pub fn journal(&self) -> &Arc<Journal> {
        &self.journal
    }

    /// How far it is.
    #[must_use]
    pub fn readiness(&self) -> watch::Receiver<Readiness> {
        self.ready_seen.clone()
    }

    /// Where others can call it, once it listens.
    #[must_use]
    pub fn listening(&self) -> watch::Receiver<Option<SocketAddr>> {
        self.listening.clone()
    }

    /// Waits until the node cannot go on: it cannot listen, or the chain cannot be followed. A healthy node never does.
    pub async fn failed(&mut self) -> Result<(), StartError> {
        match (&mut self.main).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    /// Stops it, in order. What was accepted is on disk when this returns.
    pub async fn stop(self) {
        self.stop_after(async {}).await;
    }

    /// The same, with something that is done once nothing more comes from peers, while the journal still takes entries.
    pub async fn stop_after(mut self, last: impl Future<Output = ()>) {
        // It holds the journal, too.
        if let Some(answers) = self.htlc_log.take() {
            answers.abort();
            let _ended = answers.await;
        }
        self.readiness.send_replace(Readiness::Stopping);
        self.registry.stop_new_work();
        self.stop.send_replace(true);
        self.peers.close_all("the node is shutting down");
        tokio::time::sleep(LAST_WORDS).await;
        self.main.abort();
        // One that has ended may have been asked for its result already.
        if !self.main.is_finished() {
            let _aborted = self.main.await;
        }
        last.await;
        let Self { registry, journal, shards, checkpoints, gossip, .. } = self;
        if let Some(gossip) = gossip {
            gossip.stop().await;
        }
        let ended = tokio::task::spawn_blocking(move || {
            checkpoints.end();
            registry.put_all(|| Input::Stop);
            for shard in shards {
                if shard.join().is_err() {
                    tracing::error!("a shard panicked");
                }
            }
            // Fails only if the journal has ended already.
            let _closed = journal.flush_barrier();
        });
        if ended.await.is_err() {
            tracing::error!("the last checkpoint was not written");
        }
    }
}

fn thread(what: &'static str) -> impl Fn(std::io::Error) -> StartError {
    move |error| StartError::Thread { what, error }
}

fn start_shards(
    shared: &Arc<Shared>,
    mailboxes: &[Mailbox<Input>],
    actors: Vec<Actor>,
) -> Result<Vec<JoinHandle<()>>, StartError> {
    let mut by_shard: Vec<Vec<Actor>> = mailboxes.iter().map(|_| Vec::new()).collect();
    for actor in actors {
        by_shard[shard_of(actor.id(), mailboxes.len())].push(actor);
    }
    let mut threads = Vec::new();
    for (index, (mailbox, actors)) in mailboxes.iter().zip(by_shard).enumerate() {
        let shard = Shard::new(index, Arc::clone(shared), mailbox.clone(), actors);
        let started = std::thread::Builder::new().name(format!("shard-{index}")).spawn(move || {
            // A shard that has panicked has lost track of money: nothing may go on beside it.
            let run = std::panic::AssertUnwindSafe(|| shard.run());
            if std::panic::catch_unwind(run).is_err() {
                tracing::error!(shard = index, "a shard panicked: the process ends");
                std::process::abort();
            }
        });
        threads.push(started.map_err(thread("a shard"))?);
    }
    Ok(threads)
}

fn node_section(
    blocks: Arc<Mutex<Blocks>>,
    fresh_keys: Arc<FreshKeys>,
    peers: Peers,
    registry: Registry,
) -> Box<dyn Fn() -> NodeSection + Send + Sync> {
    Box::new(move || NodeSection {
        blocks: blocks.lock().expect("nothing panics while the blocks are locked").to_entries(),
        next_key: fresh_keys.reserved(),
        addresses: peers.addresses(),
        closed: registry.directory().closed().into_iter().map(|id| id.0).collect(),
    })
}

/// The thread that writes checkpoints.
struct Checkpoints {
    stop: std_mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Checkpoints {
    /// Writes a last one, and ends.
    fn end(self) {
        // A thread that has ended has said why.
        let _ended = self.stop.send(());
        let _joined = self.thread.join();
    }
}

fn start_checkpoints(checkpointer: Checkpointer, pace: Pace) -> Result<Checkpoints, StartError> {
    let (stop, stopped) = std_mpsc::channel();
    let started = std::thread::Builder::new().name("checkpoints".to_owned()).spawn(move || {
        let mut last = (Instant::now(), checkpointer.journal.stats().bytes);
        let mut behind = pace.behind;
        loop {
            let is_last = stopped.recv_timeout(CHECKPOINT_LOOK) != Err(std_mpsc::RecvTimeoutError::Timeout);
            let written = checkpointer.journal.stats().bytes - last.1;
            let is_due = behind + written >= pace.due_after || (written > 0 && last.0.elapsed() >= CHECKPOINT_EVERY);
            if is_due || is_last {
                last = (Instant::now(), checkpointer.journal.stats().bytes);
                behind = 0;
                if let Err(error) = checkpointer.write() {
                    tracing::warn!(%error, "no checkpoint this time: the one before stands");
                }
            }
            if is_last {
                return;
            }
        }
    });
    Ok(Checkpoints { stop, thread: started.map_err(thread("checkpoints"))? })
}

/// The steps of a start that wait for one another.
struct Beginning {
    registry: Registry,
    peers: Peers,
    listen: Option<SocketAddr>,
    listening: watch::Sender<Option<SocketAddr>>,
    readiness: watch::Sender<Readiness>,
    feed_seen: watch::Receiver<FeedState>,
    fresh_keys: Arc<FreshKeys>,
    fees: watch::Receiver<FeeEstimates>,
}

impl Beginning {
    async fn run(
        self,
        mut feed: ChainFeed,
        events: mpsc::Receiver<ChainEvent>,
        mempool: mpsc::Receiver<MempoolNews>,
    ) -> Result<(), StartError> {
        self.fresh_keys.refill(&self.registry.journal()).await;
        feed.begin().await;
        let rest = async {
            self.catch_up().await;
            self.resume().await;
            let links = links::write_down(self.peers.events(), self.peers.clone(), self.registry.clone());
            self.open_doors().await?;
            self.readiness.send_replace(Readiness::Ready);
            let keys = self.fresh_keys.keep_up(self.registry.journal());
            let fees = feerate::follow(self.registry.clone(), self.fees.clone());
            tokio::join!(keys, fees, links);
            std::future::pending().await
        };
        tokio::select! {
            // Ends only if the chain cannot be followed any more.
            () = feed.run(events, mempool) => Ok(()),
            failed = rest => failed,
        }
    }

    async fn catch_up(&self) {
        let mut seen = self.feed_seen.clone();
        loop {
            let state = *seen.borrow_and_update();
            if state.has_been_at_tip {
                return;
            }
            let height = state.height.unwrap_or_default();
            self.readiness.send_replace(Readiness::CatchingUp { height, headers: None });
            if seen.changed().await.is_err() {
                // The feed is gone, and the whole start with it.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Everything that is still owed to the world.
    async fn resume(&self) {
        let (done, all_done) = Done::new();
        self.registry.put_all(|| Input::Resume { watches_only: false, done: done.clone() });
        drop(done);
        all_done.wait().await;
    }

    async fn open_doors(&self) -> Result<(), StartError> {
        if let Some(address) = self.listen {
            let listening = self.peers.listen(address).await;
            let listening = listening.map_err(|error| StartError::Listen { address, error })?;
            tracing::info!(address = %listening, "listening for other nodes");
            self.listening.send_replace(Some(listening));
        }
        self.peers.reconnect_all();
        Ok(())
    }
}
