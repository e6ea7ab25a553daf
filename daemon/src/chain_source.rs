//! The chain as a node follows it, from a bitcoind.
//!
//! Blocks come from the watcher, transactions go out by the broadcaster, and the mempool is looked at now and then: a
//! spend that is not in a block yet may hold a preimage. A bitcoind that is away is waited for.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
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
use crate::wallet::WalletHandle;

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

    /// Follows the chain from these blocks on. `failed` is told what waiting cannot mend; what this wallet waits for and the
    /// mempool does not have is told to be gone.
    #[must_use]
    pub fn follow(self, trail: Trail, failed: mpsc::UnboundedSender<ChainError>, wallet: WalletHandle) -> ChainSource {
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
        tokio::spawn(look_at_mempool(bitcoind, sync, wallet, mempool));
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

/// What is waited for, and was not in the mempool the last time.
#[derive(Default)]
struct Awaited(HashMap<Txid, bool>);

impl Awaited {
    /// Those that have gone without a word: in a block that a reorg took out, or while this node was away. One that is missing
    /// for the first time may be on its way there.
    fn gone(&mut self, awaited: impl IntoIterator<Item = Txid>, present: &HashSet<Txid>) -> Vec<Txid> {
        let before = std::mem::take(&mut self.0);
        let mut gone = Vec::new();
        for txid in awaited.into_iter().filter(|txid| !present.contains(txid)) {
            if before.get(&txid) == Some(&false) {
                gone.push(txid);
            }
            self.0.insert(txid, before.contains_key(&txid));
        }
        gone
    }
}

async fn look_at_mempool(
    bitcoind: Bitcoind,
    sync: watch::Receiver<SyncState>,
    wallet: WalletHandle,
    news: mpsc::Sender<MempoolNews>,
) {
    let mut ticks = interval(MEMPOOL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut known: HashSet<Txid> = HashSet::new();
    let mut missing = Awaited::default();
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            () = news.closed() => return,
        }
        if sync.borrow().height().is_none() {
            continue;
        }
        // Asked before the mempool: what is broadcast in between is not missing. A wallet that has stopped waits for nothing.
        let awaited = wallet.unconfirmed_txids().await.unwrap_or_default();
        // One that is away has been noticed by the watcher.
        let Ok(diff) = bitcoind.mempool_txs(&known, MEMPOOL_MAX).await else { continue };
        if diff.has_more {
            ticks.reset_immediately();
        }
        for txid in &diff.gone {
            known.remove(txid);
        }
        known.extend(diff.arrived.iter().map(bitcoin::Transaction::compute_txid));
        let mut gone = diff.gone;
        if !diff.has_more {
            gone.extend(missing.gone(awaited, &known));
        }
        if known.len() > MEMPOOL_KNOWN_MAX {
            known.clear();
        }
        if diff.arrived.is_empty() && gone.is_empty() {
            continue;
        }
        let arrived = diff.arrived.into_iter().map(Arc::new).collect();
        if news.send(MempoolNews { arrived, gone }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use bitcoin::hashes::Hash;

    use super::*;

    fn txid(n: u8) -> Txid {
        Txid::from_byte_array([n; 32])
    }

    #[test]
    fn what_is_awaited_and_missing_twice_in_a_row_is_gone_once() {
        let mut missing = Awaited::default();
        let present = HashSet::from([txid(1)]);
        let awaited = [txid(1), txid(2)];
        assert_eq!(missing.gone(awaited, &present), [], "it may be on its way");
        assert_eq!(missing.gone(awaited, &present), [txid(2)]);
        assert_eq!(missing.gone(awaited, &present), [], "told once");
    }

    #[test]
    fn what_comes_in_between_is_not_gone() {
        let mut missing = Awaited::default();
        let nothing = HashSet::new();
        assert_eq!(missing.gone([txid(1)], &nothing), []);
        assert_eq!(missing.gone([txid(1)], &HashSet::from([txid(1)])), []);
        assert_eq!(missing.gone([txid(1)], &nothing), [], "counted anew");
        assert_eq!(missing.gone([txid(1)], &nothing), [txid(1)]);
    }
}
