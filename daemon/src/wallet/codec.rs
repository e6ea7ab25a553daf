//! The wallet's record in the journal: what changed, as JSON behind a version byte.
//!
//! JSON and not the channels' compact form because BDK promises to read older records of its types only in a format
//! that names its fields. These records are rare: one for each block, transaction and new address.

use std::collections::BTreeMap;

use bdk_wallet::ChangeSet;
use bdk_wallet::chain::Merge;
use bitcoin::Txid;
use millrace_wire::ChannelId;
use serde::{Deserialize, Serialize};

use super::error::LoadError;
use crate::happened::WalletSeen;

/// The version of the records that are written.
const VERSION: u8 = 1;
/// Blocks below the tip whose hashes stay in a snapshot, for reorgs.
const BLOCKS_KEPT: usize = 288;

/// What a transaction is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum TxKind {
    /// Coins from outside.
    Deposit,
    /// Sent on demand.
    Withdrawal,
    /// Funds a channel.
    Funding,
    /// Closes a channel by agreement.
    CooperativeClose,
    /// A commitment.
    Commitment,
    /// Claims outputs of a commitment.
    Sweep,
    /// Pays for another transaction's confirmation.
    FeeBump,
}

/// What is known of a transaction beyond itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Label {
    /// What it is for.
    pub kind: TxKind,
    /// The channel that it belongs to.
    pub channel: Option<ChannelId>,
}

/// What changed. Applying a change again, or an old one before newer ones, does no harm.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Change {
    /// Of the taproot account.
    #[serde(default)]
    pub(super) taproot: ChangeSet,
    /// Of the segwit account.
    #[serde(default)]
    pub(super) segwit: ChangeSet,
    /// Labels that were given.
    #[serde(default)]
    pub(super) labels: BTreeMap<Txid, Label>,
    /// Transactions that appeared, were confirmed or went, as they stood then: for the events, not for the wallet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) seen: Vec<WalletSeen>,
}

/// What the events take from a record.
#[derive(Deserialize)]
struct Seen {
    #[serde(default)]
    seen: Vec<WalletSeen>,
}

/// The transactions that a record of the wallet tells of.
///
/// # Errors
/// In words, if it is no record of the wallet.
pub(crate) fn seen_in_record(bytes: &[u8]) -> Result<Vec<WalletSeen>, String> {
    match bytes.split_first() {
        Some((&VERSION, json)) => {
            let record: Result<Seen, _> = serde_json::from_slice(json);
            record.map(|record| record.seen).map_err(|error| error.to_string())
        }
        Some((version, _)) => Err(format!("version {version} of the wallet's records")),
        None => Err("an empty record".to_owned()),
    }
}

impl Change {
    pub(super) fn is_empty(&self) -> bool {
        self.taproot.is_empty() && self.segwit.is_empty() && self.labels.is_empty()
    }

    /// What was seen is not merged: it was told when it was recorded.
    pub(super) fn merge(&mut self, other: Self) {
        self.taproot.merge(other.taproot);
        self.segwit.merge(other.segwit);
        self.labels.extend(other.labels);
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        serde_json::to_writer(&mut bytes, self).expect("maps with text keys into memory: nothing can fail");
        bytes
    }

    pub(super) fn decode(index: usize, bytes: &[u8]) -> Result<Self, LoadError> {
        let (version, json) = bytes.split_first().unwrap_or((&0, &[]));
        if *version != VERSION {
            return Err(LoadError::Version { index, version: *version, known: VERSION });
        }
        serde_json::from_slice(json).map_err(|error| LoadError::Record { index, reason: error.to_string() })
    }

    /// Leaves out the hashes of old blocks in which nothing of ours is, so that a snapshot does not grow with time.
    pub(super) fn pruned(&self) -> Self {
        let mut pruned = self.clone();
        prune_blocks(&mut pruned.taproot);
        prune_blocks(&mut pruned.segwit);
        pruned
    }
}

fn prune_blocks(changes: &mut ChangeSet) {
    let blocks = &mut changes.local_chain.blocks;
    blocks.retain(|_, hash| hash.is_some());
    let Some(oldest_kept) = blocks.keys().rev().nth(BLOCKS_KEPT - 1).copied() else { return };
    let anchors: std::collections::BTreeSet<u32> =
        changes.tx_graph.anchors.iter().map(|(anchor, _)| anchor.block_id.height).collect();
    blocks.retain(|height, _| *height == 0 || *height >= oldest_kept || anchors.contains(height));
}
