//! One step along bitcoind's chain: forward by a block, back by one, or a wait.
//!
//! Two rules keep an unfit bitcoind from misleading the node. A block goes up only if its own header
//! names our last block as its parent. A block goes down only for a chain with at least as much work:
//! a bitcoind that is behind (restored from a copy, reindexing) is waited for, not followed down.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bitcoin::Network;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use super::{ChainEvent, Cursor, SyncState, Trail};
use crate::bitcoind::{ChainInfo, HeaderInfo, is_pruned};
use crate::{Bitcoind, ChainError, Result};

/// A node this far behind says that it is syncing; less is the ordinary arrival of a block.
const BEHIND_MAX: u32 = 2;
/// While catching up, how many blocks go by between two looks at how many there are.
const LOOK_EVERY_BLOCKS: u32 = 64;
/// A chain that changes between two calls explains this many contradictions in a row; more do not
/// come from chance.
const CONTRADICTIONS_MAX: u32 = 3;
/// The pause after one.
const CONTRADICTION_PAUSE: Duration = Duration::from_millis(50);
/// How often a bitcoind that is behind is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);
/// How long a bitcoind that does not know our last block, and is shorter than it, may take to fetch
/// it again. Killed, it loses what it had not written down, and gets it back from its peers.
const UNKNOWN_GRACE: Duration = Duration::from_secs(10 * 60);
/// A reorg this deep is worth a warning.
const DEEP_REORG: u32 = 3;

/// How a step ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Done,
    ConsumerGone,
}

/// Where we are along the chain.
pub(super) struct Follower<'a> {
    bitcoind: &'a Bitcoind,
    state: &'a watch::Sender<SyncState>,
    consumer: &'a mpsc::Sender<ChainEvent>,
    trail: Trail,
    /// Where a node that has seen nothing begins, instead of the tip.
    from: Option<u32>,
    is_away: bool,
    /// Whether blocks went by since the last `Tip`.
    owes_tip: bool,
    /// The last tip's time, to tell its age without asking.
    tip_time: u32,
    contradictions: u32,
    blocks_since_look: u32,
    depth: u32,
    unknown_since: Option<Instant>,
}

impl<'a> Follower<'a> {
    pub(super) fn new(
        bitcoind: &'a Bitcoind,
        state: &'a watch::Sender<SyncState>,
        trail: Trail,
        from: Option<u32>,
        consumer: &'a mpsc::Sender<ChainEvent>,
    ) -> Self {
        Self {
            bitcoind,
            state,
            consumer,
            trail,
            from,
            is_away: false,
            owes_tip: true,
            tip_time: 0,
            contradictions: 0,
            // A look at once, so that a long catching up is seen from its beginning.
            blocks_since_look: LOOK_EVERY_BLOCKS,
            depth: 0,
            unknown_since: None,
        }
    }

    /// One step. An error leaves everything as it was: the step can be made again.
    pub(super) async fn step(&mut self) -> Result<Step> {
        let Some(last) = self.trail.newest() else { return self.begin().await };
        let next =
            last.height.checked_add(1).ok_or_else(|| ChainError::odd("getblockhash", "the chain is too high"))?;
        match self.bitcoind.block_hash(next).await? {
            Some(hash) => self.go_up(last, Cursor { height: next, hash }).await,
            None => self.rest(last).await,
        }
    }

    /// The first step of a node that has seen nothing: the tip of a synced bitcoind, or where it was told to begin.
    async fn begin(&mut self) -> Result<Step> {
        let info = self.bitcoind.chain_info().await?;
        if !info.is_synced(self.bitcoind.network()) {
            return self.wait_for(&info).await;
        }
        let Ok(permit) = self.consumer.reserve().await else { return Ok(Step::ConsumerGone) };
        let (height, hash) = match self.from.filter(|from| *from < info.blocks) {
            Some(from) => {
                let hash = self.bitcoind.block_hash(from).await?;
                (from, hash.ok_or_else(|| ChainError::odd("getblockhash", format!("no block at height {from}")))?)
            }
            None => (info.blocks, info.best),
        };
        let block = Arc::new(self.bitcoind.block(&hash).await?);
        // Nothing below links to it: its place is taken from a header that bitcoind gives for it.
        let header = self.bitcoind.header(&hash).await?;
        if header.is_none_or(|header| header.height != height) {
            return Err(ChainError::odd("getblockheader", format!("the tip {hash} is not at height {height}")));
        }
        self.tip_time = block.header.time;
        self.trail.push(Cursor { height, hash });
        // A first step cannot come after `Away` twice: `Back` takes the permit, the block waits.
        if self.is_away {
            self.is_away = false;
            permit.send(ChainEvent::Back);
            return Ok(self.say(ChainEvent::Connected { height, hash, block }).await);
        }
        permit.send(ChainEvent::Connected { height, hash, block });
        Ok(Step::Done)
    }

    async fn go_up(&mut self, last: Cursor, next: Cursor) -> Result<Step> {
        self.show_progress(last).await?;
        let Ok(permit) = self.consumer.reserve().await else { return Ok(Step::ConsumerGone) };
        let block = match self.bitcoind.block(&next.hash).await {
            Ok(block) => Arc::new(block),
            Err(error) if is_pruned(&error) => return Err(self.pruned(next.height).await),
            Err(error) => return Err(error),
        };
        if block.header.prev_blockhash != last.hash {
            drop(permit);
            return self.go_down(last).await;
        }
        let Cursor { height, hash } = next;
        let event = ChainEvent::Connected { height, hash, block: Arc::clone(&block) };
        if self.is_away {
            self.is_away = false;
            permit.send(ChainEvent::Back);
            if self.say(event).await == Step::ConsumerGone {
                return Ok(Step::ConsumerGone);
            }
        } else {
            permit.send(event);
        }
        self.tip_time = block.header.time;
        self.trail.push(next);
        self.settled();
        self.owes_tip = true;
        Ok(Step::Done)
    }

    /// There is nothing above our last block: either it is the tip, or the chain has changed.
    async fn rest(&mut self, last: Cursor) -> Result<Step> {
        let info = self.bitcoind.chain_info().await?;
        if info.best != last.hash {
            return self.go_down(last).await;
        }
        self.settled();
        if !info.is_synced(self.bitcoind.network()) {
            self.publish(SyncState::Syncing { blocks: info.blocks, headers: info.headers, progress: info.progress });
            return self.wait_above(last).await;
        }
        if self.owes_tip {
            if self.tip_time == 0 {
                let header = self.bitcoind.header(&last.hash).await?;
                self.tip_time = header.map_or(0, |info| info.header.time);
            }
            let Cursor { height, hash } = last;
            if self.say(ChainEvent::Tip { height, hash, time: self.tip_time }).await == Step::ConsumerGone {
                return Ok(Step::ConsumerGone);
            }
            self.owes_tip = false;
        }
        if self.come_back().await == Step::ConsumerGone {
            return Ok(Step::ConsumerGone);
        }
        let state = SyncState::at_tip(self.bitcoind.network(), last.height, self.tip_time, SystemTime::now());
        self.publish(state);
        self.wait_above(last).await
    }

    /// Takes our last block off, if bitcoind's chain is one to follow down to.
    async fn go_down(&mut self, last: Cursor) -> Result<Step> {
        let Some(head) = self.bitcoind.header(&last.hash).await? else { return self.unknown(last).await };
        self.unknown_since = None;
        if head.height != last.height {
            let reason = format!("block {} is at {}, and was at {}", last.hash, head.height, last.height);
            return Err(ChainError::odd("getblockheader", reason));
        }
        // Two answers have to agree before a block goes.
        if head.is_active || self.bitcoind.block_hash(last.height).await? == Some(last.hash) {
            return self.contradiction(last).await;
        }
        let info = self.bitcoind.chain_info().await?;
        let tip = self.bitcoind.header(&info.best).await?;
        if tip.is_none_or(|tip| tip.work < head.work) {
            return self.wait_for(&info).await;
        }
        let below = self.parent(last, &head)?;
        self.take_off(last, below).await
    }

    fn parent(&self, last: Cursor, head: &HeaderInfo) -> Result<Cursor> {
        let below = last.height.checked_sub(1).map(|height| Cursor { height, hash: head.header.prev_blockhash });
        below.ok_or_else(|| ChainError::odd("getblockheader", "the first block of the chain is said to be stale"))
    }

    async fn take_off(&mut self, last: Cursor, below: Cursor) -> Result<Step> {
        let Cursor { height, hash } = last;
        self.depth = self.depth.saturating_add(1);
        if self.depth >= DEEP_REORG {
            warn!(height, %hash, depth = self.depth, "a deep reorg: block disconnected");
        } else {
            info!(height, %hash, "block disconnected");
        }
        if self.say(ChainEvent::Disconnected { height, hash }).await == Step::ConsumerGone {
            return Ok(Step::ConsumerGone);
        }
        self.trail.pop(Some(below));
        self.tip_time = 0;
        self.owes_tip = true;
        Ok(Step::Done)
    }

    /// bitcoind does not know our last block. The trail may hold one that it does know.
    async fn unknown(&mut self, last: Cursor) -> Result<Step> {
        let info = self.bitcoind.chain_info().await?;
        let since = *self.unknown_since.get_or_insert_with(Instant::now);
        let may_come =
            info.blocks < last.height && self.bitcoind.network() != Network::Regtest && since.elapsed() < UNKNOWN_GRACE;
        if may_come || !info.is_synced(self.bitcoind.network()) {
            return self.wait_for(&info).await;
        }
        let Some(fork) = self.fork_in_trail().await? else {
            return Err(ChainError::UnknownCursor { height: last.height, hash: last.hash, blocks: info.blocks });
        };
        warn!(height = last.height, hash = %last.hash, fork = fork.height, "bitcoind has forgotten our last blocks");
        let above: Vec<Cursor> = self.trail.iter().take_while(|cursor| **cursor != fork).copied().collect();
        let below = above.iter().skip(1).copied().chain([fork]);
        for (cursor, below) in above.iter().zip(below) {
            if self.take_off(*cursor, below).await? == Step::ConsumerGone {
                return Ok(Step::ConsumerGone);
            }
        }
        self.unknown_since = None;
        Ok(Step::Done)
    }

    /// The newest block of the trail that is in bitcoind's chain.
    async fn fork_in_trail(&self) -> Result<Option<Cursor>> {
        for cursor in self.trail.iter() {
            let header = self.bitcoind.header(&cursor.hash).await?;
            if header.is_some_and(|header| header.is_active && header.height == cursor.height) {
                return Ok(Some(*cursor));
            }
        }
        Ok(None)
    }

    /// Our last block is in the chain, and yet the next one does not follow it: the chain changed
    /// between two calls, or it is a lie.
    async fn contradiction(&mut self, last: Cursor) -> Result<Step> {
        self.contradictions = self.contradictions.saturating_add(1);
        if self.contradictions > CONTRADICTIONS_MAX {
            let reason = format!("the block after {} at height {} does not follow it", last.hash, last.height);
            return Err(ChainError::odd("getblock", reason));
        }
        self.pause(CONTRADICTION_PAUSE).await
    }

    fn settled(&mut self) {
        self.contradictions = 0;
        self.depth = 0;
        self.unknown_since = None;
    }

    /// Publishes how far behind we are, now and then.
    async fn show_progress(&mut self, last: Cursor) -> Result<()> {
        self.blocks_since_look = self.blocks_since_look.saturating_add(1);
        let is_catching_up = matches!(*self.state.borrow(), SyncState::Syncing { .. });
        if self.blocks_since_look < LOOK_EVERY_BLOCKS && is_catching_up {
            return Ok(());
        }
        self.blocks_since_look = 0;
        let info = self.bitcoind.chain_info().await?;
        let headers = info.headers.max(info.blocks);
        if headers.saturating_sub(last.height) > BEHIND_MAX {
            let progress = f64::from(last.height) / f64::from(headers);
            self.publish(SyncState::Syncing { blocks: last.height, headers, progress });
        }
        Ok(())
    }

    async fn pruned(&self, wanted: u32) -> ChainError {
        match self.bitcoind.chain_info().await {
            Ok(info) => ChainError::Pruned { wanted, kept_from: info.kept_from.unwrap_or(info.blocks) },
            Err(error) => error,
        }
    }

    /// Waits for a bitcoind that is not where we are yet.
    async fn wait_for(&mut self, info: &ChainInfo) -> Result<Step> {
        if self.come_back().await == Step::ConsumerGone {
            return Ok(Step::ConsumerGone);
        }
        // What we have seen is there as well, even if this bitcoind knows nothing of it (any more).
        let seen = self.trail.newest().map_or(0, |last| last.height);
        let (blocks, headers) = (info.blocks, info.headers.max(seen));
        self.publish(SyncState::Syncing { blocks, headers, progress: info.progress });
        self.pause(ASK_AGAIN).await
    }

    async fn wait_above(&self, last: Cursor) -> Result<Step> {
        tokio::select! {
            waited = self.bitcoind.wait_for_height(last.height.saturating_add(1)) => waited.map(|_| Step::Done),
            () = self.consumer.closed() => Ok(Step::ConsumerGone),
        }
    }

    async fn pause(&self, time: Duration) -> Result<Step> {
        tokio::select! {
            () = sleep(time) => Ok(Step::Done),
            () = self.consumer.closed() => Ok(Step::ConsumerGone),
        }
    }

    /// Tells the consumer; that bitcoind is back, first, if it was told that it is away.
    async fn say(&mut self, event: ChainEvent) -> Step {
        if self.come_back().await == Step::ConsumerGone {
            return Step::ConsumerGone;
        }
        self.send(event).await
    }

    async fn come_back(&mut self) -> Step {
        if !self.is_away {
            return Step::Done;
        }
        self.is_away = false;
        info!("bitcoind is back");
        self.send(ChainEvent::Back).await
    }

    async fn send(&self, event: ChainEvent) -> Step {
        match self.consumer.send(event).await {
            Ok(()) => Step::Done,
            Err(_) => Step::ConsumerGone,
        }
    }

    /// Tells everybody that bitcoind is away, once.
    pub(super) async fn go_away(&mut self, error: &ChainError) -> Step {
        self.still_away(error);
        if self.is_away {
            return Step::Done;
        }
        self.is_away = true;
        warn!(%error, "bitcoind is away");
        self.send(ChainEvent::Away { reason: error.to_string() }).await
    }

    pub(super) fn still_away(&self, error: &ChainError) {
        self.publish(SyncState::Away { reason: error.to_string() });
    }

    fn publish(&self, state: SyncState) {
        self.state.send_if_modified(|current| {
            if *current == state {
                return false;
            }
            if let SyncState::Stalled { height, tip_time } = state {
                warn!(height, tip_time, "the last block is more than two hours old: is bitcoind cut off?");
            }
            *current = state;
            true
        });
    }
}
