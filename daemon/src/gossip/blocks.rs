//! What blocks do to the graph: they spend funding outputs, and when they go, channels go with them.

use std::sync::Arc;
use std::time::Duration;

use bitcoin::{Block, BlockHash, OutPoint};
use millrace_wire::{BlockHeight, ShortChannelId};

use super::funding::{Later, Looking};
use super::{Gossip, Inner};
use crate::chain_feed::{BlockFollower, Following, MempoolNews};

/// Outputs that are asked for at once.
const CHECKED_MAX: usize = 200;
/// Before they are asked for again, when they could not be.
const PAUSE: Duration = Duration::from_secs(5);

impl BlockFollower for Gossip {
    fn on_connected(&self, height: u32, block: Arc<Block>) -> Following<'_> {
        Box::pin(async move {
            self.inner.work_now(move |inner| inner.on_block(BlockHeight(height), &block)).await;
            self.inner.changed.notify_one();
        })
    }

    fn on_disconnected(&self, height: u32, _hash: BlockHash) -> Following<'_> {
        Box::pin(async move {
            self.inner.funding.on_disconnected(height);
            self.inner.work_now(move |inner| inner.write().on_disconnected(BlockHeight(height))).await;
            self.inner.changed.notify_one();
        })
    }

    fn on_mempool(&self, _news: MempoolNews) -> Following<'_> {
        Box::pin(async {})
    }
}

impl Inner {
    fn on_block(&self, height: BlockHeight, block: &Block) {
        // In one: a channel that comes between the look at the block and its being noted would have been looked up before it.
        let mut book = self.write();
        let inputs = block.txdata.iter().flat_map(|tx| &tx.input);
        let spent: Vec<ShortChannelId> =
            inputs.filter_map(|input| book.outpoints.get(&input.previous_output).copied()).collect();
        book.on_connected(height, &spent, Self::now());
    }
}

/// After a start: blocks may have come and gone that were never seen here, since the graph is saved only now and then. Each
/// output is asked for; a channel whose output is gone leaves as if it had been spent now.
pub(super) async fn check_all(inner: Arc<Inner>) {
    let all: Vec<(OutPoint, ShortChannelId)> =
        inner.work(|inner| inner.read().outpoints.iter().map(|(outpoint, id)| (*outpoint, *id)).collect()).await;
    let mut spent = 0;
    for part in all.chunks(CHECKED_MAX) {
        let outpoints: Vec<OutPoint> = part.iter().map(|(outpoint, _)| *outpoint).collect();
        let are_unspent = insist(|| inner.funding.are_unspent(outpoints.clone())).await;
        let gone: Vec<ShortChannelId> =
            part.iter().zip(are_unspent).filter(|(_, is_unspent)| !is_unspent).map(|((_, id), _)| *id).collect();
        if gone.is_empty() {
            continue;
        }
        spent += gone.len();
        let height = insist(|| inner.funding.height()).await;
        inner.work(move |inner| inner.write().mark_spent_unseen(&gone, height)).await;
    }
    inner.changed.notify_one();
    tracing::info!(channels = all.len(), spent, "the graph's outputs were looked up");
}

/// Asks until there is an answer.
async fn insist<'a, T>(ask: impl Fn() -> Looking<'a, T>) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(Later(reason)) => {
                tracing::debug!(reason, "the graph's outputs cannot be looked up now");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
