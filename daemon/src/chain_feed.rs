//! From the chain to the channels: each block's height to all, each transaction that somebody watches to them.
//!
//! A block is over only when every channel has handled it and its records are on disk; then the cursor is written down.
//! What a channel begins to watch because of a block is looked for in the same block again. This task waits for the
//! shards; they never wait for it. Their orders come by a queue that is not bounded, as each channel asks
//! for each thing once.

mod blocks;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use bitcoin::{Block, BlockHash, OutPoint, Transaction, Txid};
use millrace_chain::watch::{Match, Watched, find_matches};
use millrace_chain::{ChainEvent, Cursor};
use millrace_channel::ChainEvent as ChannelEvent;
use millrace_channel::effect::{Broadcast, Watch};
use millrace_wire::{BlockHeight, ChannelId};
use tokio::sync::{mpsc, watch};

pub(crate) use blocks::{Blocks, CursorEntry};

use crate::channels::Registry;
use crate::channels::input::{ChainNews, Done, Input};
use crate::channels::shared::ChainOrder;
use crate::entry::{Entry, Kind};
use crate::steps::JournalHandle;

/// What a channel wants to be broadcast, for whoever does that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum BroadcastOrder {
    /// Again and again.
    Submit(ChannelId, Broadcast),
    /// Nothing of this channel any more.
    Forget(ChannelId),
}

/// Somebody besides the channels who follows the chain: the wallet. A block is over only when everybody has it.
pub trait BlockFollower: Send + Sync {
    /// A block on top. One that is known already is no news. Returns when what follows from it is on disk.
    fn on_connected(&self, height: u32, block: Arc<Block>) -> Following<'_>;

    /// The last block was taken off. Returns when what follows from it is on disk.
    fn on_disconnected(&self, height: u32, hash: BlockHash) -> Following<'_>;

    /// What has come into the mempool, and what has gone from it.
    fn on_mempool(&self, news: MempoolNews) -> Following<'_>;
}

/// What a follower does.
pub type Following<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// What has changed in the mempool.
#[derive(Clone, Debug, Default)]
pub struct MempoolNews {
    /// Now there.
    pub arrived: Vec<Arc<Transaction>>,
    /// No longer there: mined, replaced or evicted.
    pub gone: Vec<Txid>,
}

/// How far the channels have followed the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct FeedState {
    /// The last block that every channel has handled.
    pub(crate) height: Option<u32>,
    /// It was the tip when it was handled, once since the start at least.
    pub(crate) has_been_at_tip: bool,
}

/// The task between the chain and the channels.
pub(crate) struct ChainFeed {
    pub(crate) registry: Registry,
    pub(crate) journal: JournalHandle,
    pub(crate) orders: mpsc::UnboundedReceiver<ChainOrder>,
    pub(crate) broadcasts: mpsc::UnboundedSender<BroadcastOrder>,
    /// Shared with the checkpoint, which reads it.
    pub(crate) blocks: Arc<Mutex<Blocks>>,
    pub(crate) state: watch::Sender<FeedState>,
    pub(crate) watches: Watches,
    pub(crate) followers: Vec<Arc<dyn BlockFollower>>,
}

/// What is watched, and by whom.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    watched: Watched,
    by_txid: HashMap<Txid, BTreeSet<ChannelId>>,
    by_outpoint: HashMap<OutPoint, BTreeSet<ChannelId>>,
    last_block: Option<Arc<Block>>,
}

impl Watches {
    /// Takes a watch. True if it is new for the channel.
    fn add(&mut self, id: ChannelId, watch: &Watch) -> bool {
        match watch {
            Watch::Confirmation { txid, .. } => {
                self.watched.txids.insert(*txid);
                self.by_txid.entry(*txid).or_default().insert(id)
            }
            Watch::Spend { outpoint, .. } => {
                self.watched.outpoints.insert(*outpoint);
                self.by_outpoint.entry(*outpoint).or_default().insert(id)
            }
        }
    }

    fn forget(&mut self, id: ChannelId) {
        self.by_txid.retain(|txid, ids| {
            ids.remove(&id);
            if ids.is_empty() {
                self.watched.txids.remove(txid);
            }
            !ids.is_empty()
        });
        self.by_outpoint.retain(|outpoint, ids| {
            ids.remove(&id);
            if ids.is_empty() {
                self.watched.outpoints.remove(outpoint);
            }
            !ids.is_empty()
        });
    }

    /// Transactions of a block with who watches them, in the order of the block, but for those told already.
    fn find(&self, block: &Block, told: &mut HashSet<(ChannelId, usize)>) -> Vec<(ChannelId, usize)> {
        let mut found = Vec::new();
        for one in find_matches(block, &self.watched) {
            let (ids, index) = match one {
                Match::Confirmed { txid, tx_index } => (self.by_txid.get(&txid), tx_index),
                Match::Spent { outpoint, tx_index, .. } => (self.by_outpoint.get(&outpoint), tx_index),
                Match::Created { .. } => continue,
            };
            for id in ids.into_iter().flatten() {
                if told.insert((*id, index)) {
                    found.push((*id, index));
                }
            }
        }
        found
    }

    /// Who watches an output that this transaction spends.
    fn spenders(&self, tx: &Transaction) -> BTreeSet<ChannelId> {
        let spent = tx.input.iter().filter_map(|input| self.by_outpoint.get(&input.previous_output));
        spent.flatten().copied().collect()
    }
}

impl ChainFeed {
    /// Until the chain's watcher hangs up.
    ///
    /// Beside the blocks, `mempool` brings what is in none yet.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::Receiver<ChainEvent>,
        mut mempool: mpsc::Receiver<MempoolNews>,
    ) {
        let mut has_mempool = true;
        loop {
            tokio::select! {
                biased;
                Some(order) = self.orders.recv() => self.on_order(order).await,
                event = events.recv() => match event {
                    Some(event) => self.on_event(event).await,
                    None => return,
                },
                news = mempool.recv(), if has_mempool => match news {
                    Some(news) => self.on_mempool(news).await,
                    None => has_mempool = false,
                },
            }
        }
    }

    /// At a start: everything that the channels watch, before any block; and the height that they know.
    pub(crate) async fn begin(&mut self) {
        let newest = self.blocks().newest();
        if let Some(Cursor { height, hash }) = newest {
            self.tell(vec![ChainNews::All(tip(height, hash))]).await;
            self.state.send_modify(|state| state.height = Some(height));
        }
        let (done, all_done) = Done::new();
        self.registry.put_all(|| Input::Resume { watches_only: true, done: done.clone() });
        drop(done);
        all_done.wait().await;
        while let Ok(order) = self.orders.try_recv() {
            self.take(order);
        }
    }

    async fn on_event(&mut self, event: ChainEvent) {
        match event {
            ChainEvent::Connected { height, hash, block } => self.on_block(height, hash, block).await,
            ChainEvent::Disconnected { height, hash } => {
                self.watches.last_block = None;
                for follower in &self.followers {
                    follower.on_disconnected(height, hash).await;
                }
                let event = ChannelEvent::Disconnected { height: BlockHeight(height) };
                self.tell(vec![ChainNews::All(event)]).await;
                self.write_cursor(CursorEntry::Disconnected { height }).await;
                self.state.send_modify(|state| state.height = height.checked_sub(1));
            }
            ChainEvent::Tip { height, .. } => {
                self.state.send_modify(|state| *state = FeedState { height: Some(height), has_been_at_tip: true });
            }
            ChainEvent::Away { .. } | ChainEvent::Back => {}
        }
    }

    async fn on_block(&mut self, height: u32, hash: BlockHash, block: Arc<Block>) {
        for follower in &self.followers {
            follower.on_connected(height, Arc::clone(&block)).await;
        }
        let mut told = HashSet::new();
        let mut news = vec![ChainNews::All(tip(height, hash))];
        news.extend(confirmed(&block, self.watches.find(&block, &mut told)));
        // Ends: there are only so many transactions in a block, and each is told to a channel once.
        while !news.is_empty() {
            self.tell(std::mem::take(&mut news)).await;
            let mut is_new = false;
            while let Ok(order) = self.orders.try_recv() {
                is_new |= self.take(order);
            }
            if is_new {
                news.extend(confirmed(&block, self.watches.find(&block, &mut told)));
            }
        }
        self.watches.last_block = Some(block);
        self.write_cursor(CursorEntry::Connected { height, hash: hash_bytes(hash) }).await;
        self.state.send_modify(|state| state.height = Some(height));
    }

    /// Between two blocks: what is watched only now may stand in the last one.
    async fn on_order(&mut self, order: ChainOrder) {
        let watch = match &order {
            ChainOrder::Watch(id, watch) => Some((*id, watch.clone())),
            ChainOrder::Broadcast(..) | ChainOrder::Forget(_) => None,
        };
        if !self.take(order) {
            return;
        }
        let (Some((id, watch)), Some(block)) = (watch, self.watches.last_block.clone()) else { return };
        let mut alone = Watches::default();
        alone.add(id, &watch);
        let news: Vec<_> = confirmed(&block, alone.find(&block, &mut HashSet::new())).collect();
        if !news.is_empty() {
            self.tell(news).await;
        }
    }

    async fn on_mempool(&mut self, mempool: MempoolNews) {
        let mut news = Vec::new();
        for tx in &mempool.arrived {
            let event = || ChannelEvent::Unconfirmed { tx: Arc::clone(tx) };
            news.extend(self.watches.spenders(tx).into_iter().map(|id| ChainNews::One(id, event())));
        }
        if !news.is_empty() {
            self.tell(news).await;
        }
        for follower in &self.followers {
            follower.on_mempool(mempool.clone()).await;
        }
    }

    /// True if it is something new to watch.
    fn take(&mut self, order: ChainOrder) -> bool {
        let broadcast = match order {
            ChainOrder::Watch(id, watch) => return self.watches.add(id, &watch),
            ChainOrder::Broadcast(id, broadcast) => BroadcastOrder::Submit(id, broadcast),
            ChainOrder::Forget(id) => {
                self.watches.forget(id);
                BroadcastOrder::Forget(id)
            }
        };
        // Whoever broadcasts ends with the node.
        let _gone = self.broadcasts.send(broadcast);
        false
    }

    /// Tells the shards, and waits until all of it is handled, durable, and its effects have left.
    async fn tell(&self, news: Vec<ChainNews>) {
        let (done, all_done) = Done::new();
        for shard in 0..self.registry.shards() {
            let is_for = |one: &&ChainNews| match one {
                ChainNews::All(_) => true,
                ChainNews::One(id, _) => self.registry.directory().place(*id).is_some_and(|place| place.shard == shard),
            };
            let news: Vec<ChainNews> = news.iter().filter(is_for).cloned().collect();
            if !news.is_empty() {
                self.registry.put(shard, Input::Chain { news, done: done.clone() });
            }
        }
        drop(done);
        all_done.wait().await;
    }

    async fn write_cursor(&self, entry: CursorEntry) {
        self.blocks().apply(&entry);
        // A journal that takes nothing more belongs to a node that is about to end: the block comes again.
        let _stopping = self.journal.write(vec![Entry::new(Kind::ChainCursor, entry.encode())]).await;
    }

    fn blocks(&self) -> std::sync::MutexGuard<'_, Blocks> {
        self.blocks.lock().expect("nothing panics while the blocks are locked")
    }
}

fn tip(height: u32, block: BlockHash) -> ChannelEvent {
    ChannelEvent::Tip { height: BlockHeight(height), block }
}

fn hash_bytes(hash: BlockHash) -> [u8; 32] {
    use bitcoin::hashes::Hash;
    hash.to_byte_array()
}

fn confirmed(block: &Block, found: Vec<(ChannelId, usize)>) -> impl Iterator<Item = ChainNews> + '_ {
    found.into_iter().map(|(id, index)| {
        let tx = Arc::new(block.txdata[index].clone());
        let index = u32::try_from(index).expect("a block of 4 MB has fewer transactions");
        ChainNews::One(id, ChannelEvent::Confirmed { tx, index })
    })
}
