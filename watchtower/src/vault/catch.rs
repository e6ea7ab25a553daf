//! What blobs have caught: outputs of revoked commitments in the chain, until they are spent and buried.

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_wire::BlockHeight;
use serde::{Deserialize, Serialize};

use super::{BlobRef, Vault, spent_by};
use crate::record::BlobRecord;
use crate::sealed::{BadSealed, Opened, open};
use crate::story::BURIED_BLOCKS;

/// An output that can be taken by a penalty that was opened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Loot {
    /// The penalty.
    pub opened: Opened,
    /// The height of its block.
    pub height: BlockHeight,
}

impl Loot {
    /// The output.
    #[must_use]
    pub const fn outpoint(&self) -> OutPoint {
        self.opened.outpoint
    }

    /// The first height of a block in which the cheater may spend it.
    #[must_use]
    pub fn deadline(&self) -> BlockHeight {
        BlockHeight(self.height.0.saturating_add(u32::from(self.opened.delay())))
    }
}

/// A revoked commitment in the chain whose penalty a blob holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Catch {
    /// Which blob.
    pub blob: BlobRef,
    /// What can be taken.
    pub loot: Loot,
    /// Who spent it.
    pub spent: Option<CatchSpent>,
    /// Whether that is buried: nothing can happen any more.
    pub is_over: bool,
}

/// A confirmed spend of a caught output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CatchSpent {
    /// The transaction.
    pub by: Txid,
    /// The height of its block.
    pub height: BlockHeight,
    /// Whether it pays to the sweep script.
    pub to_sweep: bool,
}

impl Catch {
    /// Whether it was taken, not lost: before the delay is over only the revocation key can.
    #[must_use]
    pub fn is_taken(&self) -> bool {
        self.spent.is_some_and(|spent| spent.to_sweep || spent.height < self.loot.deadline())
    }
}

/// Why a blob did not help, although its hint was that of a transaction in the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
pub enum Why {
    /// It did not open.
    #[error("{0}")]
    Bad(BadSealed),
    /// The disk did not give it back.
    #[error("the tower could not read it back")]
    Unreadable,
}

/// A blob that matched and did not help.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Unopened {
    /// Which.
    pub blob: BlobRef,
    /// The transaction with its hint.
    pub txid: Txid,
    /// The height of its block.
    pub height: BlockHeight,
    /// Why.
    pub why: Why,
}

impl Vault {
    /// What is to be recorded of a blob that has the hint of this transaction. `bytes` is what was sealed, if it could be read.
    pub(crate) fn on_match(
        &self,
        height: BlockHeight,
        tx: &Transaction,
        blob: BlobRef,
        bytes: Option<&[u8]>,
    ) -> Option<BlobRecord> {
        let opened = bytes.ok_or(Why::Unreadable).and_then(|bytes| open(tx, bytes).map_err(Why::Bad));
        match opened {
            // Another blob takes the same output: whoever made it had the same key.
            Ok(opened) if self.catches.contains_key(&opened.outpoint) => None,
            Ok(opened) => {
                let catch = Catch { blob, loot: Loot { opened, height }, spent: None, is_over: false };
                Some(BlobRecord::Caught { catch: Box::new(catch) })
            }
            Err(why) => Some(BlobRecord::Unopened(Unopened { blob, txid: tx.compute_txid(), height, why })),
        }
    }

    /// What is to be recorded of spends of what was caught.
    pub(crate) fn spends_in(&self, height: BlockHeight, txs: &[Transaction]) -> Vec<BlobRecord> {
        if self.catches.is_empty() {
            return Vec::new();
        }
        let mut records = Vec::new();
        for tx in txs {
            for input in &tx.input {
                let outpoint = input.previous_output;
                if let Some(catch) = self.catches.get(&outpoint).filter(|catch| !catch.is_over) {
                    let spent = spent_by(tx, tx.compute_txid(), height, catch);
                    records.push(BlobRecord::Spent { outpoint, spent });
                }
            }
        }
        records
    }

    /// What is to be recorded after a block: spends that it buries.
    pub(crate) fn buried(&self, tip: BlockHeight) -> Vec<BlobRecord> {
        let is_buried = |catch: &Catch| {
            let depth = catch.spent.and_then(|spent| tip.blocks_since(spent.height));
            depth.is_some_and(|depth| depth >= BURIED_BLOCKS)
        };
        let over = self.catches.iter().filter(|(_, catch)| !catch.is_over && is_buried(catch));
        over.map(|(outpoint, _)| BlobRecord::Over { outpoint: *outpoint }).collect()
    }

    /// Forgets what blocks from this height on have told.
    pub(crate) fn take_back(&mut self, from: BlockHeight) {
        self.catches.retain(|_, catch| catch.is_over || catch.loot.height < from);
        for catch in self.catches.values_mut().filter(|catch| !catch.is_over) {
            catch.spent = catch.spent.filter(|spent| spent.height < from);
        }
        self.unopened.retain(|unopened| unopened.height < from);
    }

    /// What can be taken and is not spent in any block.
    #[must_use]
    pub fn to_take(&self) -> Vec<Loot> {
        let open = self.catches.values().filter(|catch| catch.spent.is_none() && !catch.is_over);
        open.map(|catch| catch.loot.clone()).collect()
    }

    /// What was caught.
    pub fn catches(&self) -> impl Iterator<Item = &Catch> {
        self.catches.values()
    }

    /// Blobs that matched and did not open, the newest last.
    pub fn unopened(&self) -> impl DoubleEndedIterator<Item = &Unopened> {
        self.unopened.iter()
    }
}
