//! Whether the output that a `short_channel_id` names is there, and what it holds: asked of bitcoind, some at a time.
//!
//! A block's list of transactions is fetched once for all of its channels, and the last lists are kept. What cannot be asked
//! now is asked later, and nothing is believed unasked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bitcoin::{BlockHash, OutPoint, ScriptBuf, Txid};
use futures::StreamExt;
use millrace_chain::{Bitcoind, ChainError};
use millrace_wire::{BlockHeight, Sat, ShortChannelId};
use tokio::sync::Semaphore;

use super::LOCK;
use super::book::outpoint_of;

/// Questions to bitcoind at once: it answers four by default, and blocks are not to wait.
const ASKED_MAX: usize = 2;
/// Transaction ids that are kept: those of some two hundred full blocks, 16 MB.
const KEPT_TXIDS_MAX: usize = 500_000;

/// An unspent output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Funding {
    /// Its transaction.
    pub txid: Txid,
    /// What it pays to.
    pub script: ScriptBuf,
    /// What it holds.
    pub amount: Sat,
}

/// It cannot be asked now.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Later(pub String);

/// What is being looked up.
pub type Looking<'a, T> = Pin<Box<dyn Future<Output = Result<T, Later>> + Send + 'a>>;

/// Who knows the chain's outputs.
pub trait FundingSource: Send + Sync {
    /// The output of each id, in their order; `None` if there is none, or it is spent.
    fn look_up(&self, ids: Vec<ShortChannelId>) -> Looking<'_, Vec<Option<Funding>>>;

    /// Which of these outputs are unspent, in their order.
    fn are_unspent(&self, outpoints: Vec<OutPoint>) -> Looking<'_, Vec<bool>>;

    /// The height of the last block.
    fn height(&self) -> Looking<'_, BlockHeight>;

    /// Blocks from this height on are no longer what they were.
    fn on_disconnected(&self, height: u32);
}

/// A bitcoind.
pub struct BitcoindFunding {
    bitcoind: Bitcoind,
    asked: Semaphore,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    blocks: BTreeMap<u32, Arc<[Txid]>>,
    /// The heights in the order in which they came.
    order: VecDeque<u32>,
    txids: usize,
    /// Grows with every reorg.
    reorgs: u64,
}

impl Kept {
    fn put(&mut self, height: u32, txids: &Arc<[Txid]>) {
        self.remove(height);
        self.txids += txids.len();
        self.blocks.insert(height, Arc::clone(txids));
        self.order.push_back(height);
        while self.txids > KEPT_TXIDS_MAX
            && let Some(oldest) = self.order.front().copied()
        {
            self.remove(oldest);
        }
    }

    fn remove(&mut self, height: u32) {
        if let Some(txids) = self.blocks.remove(&height) {
            self.txids -= txids.len();
            self.order.retain(|kept| *kept != height);
        }
    }
}

impl BitcoindFunding {
    /// Of a bitcoind.
    #[must_use]
    pub fn new(bitcoind: Bitcoind) -> Self {
        Self { bitcoind, asked: Semaphore::new(ASKED_MAX), kept: Mutex::default() }
    }

    /// The transactions of a block; none if there is no such block, or bitcoind has thrown it away.
    async fn txids(&self, height: u32) -> Result<Option<Arc<[Txid]>>, ChainError> {
        let reorgs = {
            let kept = self.kept.lock().expect(LOCK);
            if let Some(txids) = kept.blocks.get(&height) {
                return Ok(Some(Arc::clone(txids)));
            }
            kept.reorgs
        };
        let _asked = self.asked.acquire().await.expect("the semaphore is never closed");
        let Some(hash) = self.bitcoind.block_hash(height).await? else { return Ok(None) };
        let txids: Arc<[Txid]> = match self.fetch(&hash).await? {
            Some(txids) => txids.into(),
            None => return Ok(None),
        };
        let mut kept = self.kept.lock().expect(LOCK);
        if kept.reorgs == reorgs {
            kept.put(height, &txids);
        }
        Ok(Some(txids))
    }

    async fn fetch(&self, hash: &BlockHash) -> Result<Option<Vec<Txid>>, ChainError> {
        match self.bitcoind.block_txids(hash).await {
            // It cannot be asked for as long as this bitcoind runs. A channel that nobody can check is not taken.
            Err(error) if error.is_pruned_block() => Ok(None),
            other => other,
        }
    }

    async fn unspent(&self, outpoints: &[OutPoint]) -> Result<Vec<bool>, ChainError> {
        self.bitcoind.check_synced().await?;
        let _asked = self.asked.acquire().await.expect("the semaphore is never closed");
        Ok(self.bitcoind.utxos(outpoints).await?.iter().map(Option::is_some).collect())
    }

    async fn outpoints(&self, ids: &[ShortChannelId]) -> Result<Vec<Option<OutPoint>>, ChainError> {
        let heights: BTreeSet<u32> = ids.iter().map(|id| id.parts().0).collect();
        let lists = futures::stream::iter(heights)
            .map(|height| async move { self.txids(height).await.map(|txids| (height, txids)) })
            .buffer_unordered(ASKED_MAX)
            .collect::<Vec<_>>()
            .await;
        let lists: BTreeMap<u32, Option<Arc<[Txid]>>> = lists.into_iter().collect::<Result<_, _>>()?;
        let outpoint = |id: &ShortChannelId| {
            let (height, index, _) = id.parts();
            let txid = *lists.get(&height)?.as_ref()?.get(index as usize)?;
            Some(outpoint_of(*id, txid))
        };
        Ok(ids.iter().map(outpoint).collect())
    }

    async fn find(&self, ids: &[ShortChannelId]) -> Result<Vec<Option<Funding>>, ChainError> {
        // One that is behind does not know of everything that is there.
        self.bitcoind.check_synced().await?;
        let outpoints = self.outpoints(ids).await?;
        let named: Vec<OutPoint> = outpoints.iter().flatten().copied().collect();
        let _asked = self.asked.acquire().await.expect("the semaphore is never closed");
        let mut utxos = self.bitcoind.utxos(&named).await?.into_iter();
        let funding = |outpoint: Option<OutPoint>| {
            let outpoint = outpoint?;
            let utxo = utxos.next()??;
            Some(Funding { txid: outpoint.txid, script: utxo.script_pubkey, amount: Sat(utxo.value.to_sat()) })
        };
        Ok(outpoints.into_iter().map(funding).collect())
    }
}

impl FundingSource for BitcoindFunding {
    fn look_up(&self, ids: Vec<ShortChannelId>) -> Looking<'_, Vec<Option<Funding>>> {
        Box::pin(async move { self.find(&ids).await.map_err(|error| Later(error.to_string())) })
    }

    fn are_unspent(&self, outpoints: Vec<OutPoint>) -> Looking<'_, Vec<bool>> {
        Box::pin(async move { self.unspent(&outpoints).await.map_err(|error| Later(error.to_string())) })
    }

    fn height(&self) -> Looking<'_, BlockHeight> {
        Box::pin(async move {
            let info = self.bitcoind.check_synced().await.map_err(|error| Later(error.to_string()))?;
            Ok(BlockHeight(info.blocks))
        })
    }

    fn on_disconnected(&self, height: u32) {
        let mut kept = self.kept.lock().expect(LOCK);
        kept.reorgs += 1;
        let gone: Vec<u32> = kept.blocks.range(height..).map(|(height, _)| *height).collect();
        gone.into_iter().for_each(|height| kept.remove(height));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bitcoin::hashes::Hash;

    use super::*;

    #[test]
    fn the_last_lists_are_kept_and_no_more() {
        let list: Arc<[Txid]> = vec![Txid::all_zeros(); KEPT_TXIDS_MAX / 4].into();
        let mut kept = Kept::default();
        for height in 1..=6 {
            kept.put(height, &list);
        }
        assert_eq!(kept.blocks.keys().copied().collect::<Vec<_>>(), [3, 4, 5, 6]);
        kept.put(3, &list);
        kept.put(7, &list);
        assert_eq!(kept.blocks.keys().copied().collect::<Vec<_>>(), [3, 5, 6, 7]);
        assert_eq!((kept.order.len(), kept.txids), (4, KEPT_TXIDS_MAX));
    }
}
