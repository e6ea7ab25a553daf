//! The chain as a node follows it, from a bitcoind.
//!
//! Blocks come from the watcher, transactions go out by the broadcaster, and the mempool is looked at now and then: a
//! spend that is not in a block yet may hold a preimage. A bitcoind that is away is waited for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bitcoin::Txid;
use millrace_chain::broadcast::{Broadcaster, Submission};
use millrace_chain::fees::FeeEstimates;
use millrace_chain::watch::EVENTS_MAX;
use millrace_chain::{Bitcoind, ChainError, SyncState, Trail, Watcher};
use millrace_wire::ChannelId;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::chain_feed::{BroadcastOrder, MempoolNews};
use crate::node::ChainSource;

/// How often the mempool is looked at.
const MEMPOOL_EVERY: Duration = Duration::from_secs(2);
/// Transactions that are fetched from it at a time.
const MEMPOOL_MAX: usize = 500;
/// Transactions of the mempool that are remembered; beyond that, all of it is forgotten and looked at anew.
const MEMPOOL_KNOWN_MAX: usize = 1_000_000;

/// One bitcoind and how far it is.
pub struct BitcoindSource {
    bitcoind: Bitcoind,
    watcher: Watcher,
    sync: watch::Receiver<SyncState>,
    broadcaster: Broadcaster,
    fees: watch::Receiver<FeeEstimates>,
}

impl BitcoindSource {
    /// A source that is not followed yet. Must be called on a tokio runtime.
    #[must_use]
    pub fn new(bitcoind: Bitcoind) -> Self {
        let (watcher, sync) = Watcher::new(bitcoind.clone());
        let broadcaster = Broadcaster::start(bitcoind.clone(), sync.clone());
        let fees = FeeEstimates::follow(bitcoind.clone(), sync.clone());
        Self { bitcoind, watcher, sync, broadcaster, fees }
    }

    /// Lets a node that has seen nothing begin at this height: for a wallet that is older than the node.
    #[must_use]
    pub fn beginning_at(self, height: Option<u32>) -> Self {
        Self { watcher: self.watcher.beginning_at(height), ..self }
    }

    /// How far it is.
    #[must_use]
    pub fn sync(&self) -> watch::Receiver<SyncState> {
        self.sync.clone()
    }

    /// What transactions pay.
    #[must_use]
    pub fn fees(&self) -> watch::Receiver<FeeEstimates> {
        self.fees.clone()
    }

    /// Whoever broadcasts.
    #[must_use]
    pub fn broadcaster(&self) -> Broadcaster {
        self.broadcaster.clone()
    }

    /// Follows the chain from these blocks on. `failed` is told what waiting cannot mend.
    #[must_use]
    pub fn follow(self, trail: Trail, failed: mpsc::UnboundedSender<ChainError>) -> ChainSource {
        let (events, events_seen) = mpsc::channel(EVENTS_MAX);
        let (mempool, mempool_seen) = mpsc::channel(1);
        let (broadcasts, orders) = mpsc::unbounded_channel();
        let Self { bitcoind, watcher, sync, broadcaster, fees } = self;
        tokio::spawn(async move {
            if let Err(error) = watcher.run(trail, events).await {
                // Whoever listens has ended the node already otherwise.
                let _gone = failed.send(error);
            }
        });
        tokio::spawn(look_at_mempool(bitcoind, sync, mempool));
        tokio::spawn(broadcast(broadcaster, orders));
        ChainSource { events: events_seen, mempool: mempool_seen, fees, broadcasts }
    }
}

/// Hands orders on, and ends those of a channel that needs nothing more.
async fn broadcast(broadcaster: Broadcaster, mut orders: mpsc::UnboundedReceiver<BroadcastOrder>) {
    let mut by_channel: BTreeMap<ChannelId, BTreeSet<Txid>> = BTreeMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            BroadcastOrder::Submit(channel_id, broadcast) => {
                let txid = broadcast.tx.compute_txid();
                by_channel.entry(channel_id).or_default().insert(txid);
                match broadcaster.submit(Submission::Single(broadcast.tx)).await {
                    Ok(status) => {
                        tracing::debug!(%channel_id, %txid, purpose = ?broadcast.purpose, ?status, "broadcast");
                    }
                    Err(error) => {
                        tracing::error!(%channel_id, %txid, purpose = ?broadcast.purpose, %error, "not broadcast");
                    }
                }
            }
            BroadcastOrder::Forget(channel_id) => {
                for txid in by_channel.remove(&channel_id).into_iter().flatten() {
                    broadcaster.done(txid).await;
                }
            }
        }
    }
}

async fn look_at_mempool(bitcoind: Bitcoind, sync: watch::Receiver<SyncState>, news: mpsc::Sender<MempoolNews>) {
    let mut ticks = interval(MEMPOOL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: HashSet<Txid> = HashSet::new();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = news.closed() => return,
        }
        if sync.borrow().height().is_none() {
            continue;
        }
        // One that is away has been noticed by the watcher.
        let Ok(diff) = bitcoind.mempool_txs(&known, MEMPOOL_MAX).await else { continue };
        if diff.has_more {
            ticks.reset_immediately();
        }
        for txid in &diff.gone {
            known.remove(txid);
        }
        known.extend(diff.arrived.iter().map(bitcoin::Transaction::compute_txid));
        if known.len() > MEMPOOL_KNOWN_MAX {
            known.clear();
        }
        if diff.arrived.is_empty() && diff.gone.is_empty() {
            continue;
        }
        let arrived = diff.arrived.into_iter().map(Arc::new).collect();
        if news.send(MempoolNews { arrived, gone: diff.gone }).await.is_err() {
            return;
        }
    }
}
