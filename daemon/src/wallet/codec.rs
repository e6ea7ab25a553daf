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

/// A record that would be larger is written as several, since a step of the journal has its limit, and everybody may pay to
/// the wallet as often as he likes.
const PIECE_BYTES: usize = 1 << 20;
/// What an entry of each kind takes as JSON, or a little less.
const ANCHOR_BYTES: usize = 300;
const SEEN_BYTES: usize = 500;
const MAP_ENTRY_BYTES: usize = 120;
/// JSON of a transaction without witnesses, to its bytes on the wire: an input of 41 bytes has 160 characters.
const JSON_TO_WIRE: usize = 4;

/// Fills pieces, one after the other.
struct Pieces {
    full: Vec<Change>,
    last: Change,
    bytes: usize,
}

impl Pieces {
    fn add(&mut self, bytes: usize, put: impl FnOnce(&mut Change)) {
        if self.bytes + bytes > PIECE_BYTES && self.bytes > 0 {
            self.full.push(std::mem::take(&mut self.last));
            self.bytes = 0;
        }
        put(&mut self.last);
        self.bytes += bytes;
    }

    /// What grows with the number of transactions.
    fn add_graph(
        &mut self,
        graph: bdk_wallet::chain::tx_graph::ChangeSet<bdk_wallet::chain::ConfirmationBlockTime>,
        of: fn(&mut Change) -> &mut ChangeSet,
    ) {
        for tx in graph.txs {
            self.add(tx.total_size() * JSON_TO_WIRE + MAP_ENTRY_BYTES, |piece| {
                of(piece).tx_graph.txs.insert(tx);
            });
        }
        for (outpoint, output) in graph.txouts {
            self.add(output.size() * JSON_TO_WIRE + MAP_ENTRY_BYTES, |piece| {
                of(piece).tx_graph.txouts.insert(outpoint, output);
            });
        }
        for anchor in graph.anchors {
            self.add(ANCHOR_BYTES, |piece| {
                of(piece).tx_graph.anchors.insert(anchor);
            });
        }
        self.add_times(graph.first_seen, |piece| &mut of(piece).tx_graph.first_seen);
        self.add_times(graph.last_seen, |piece| &mut of(piece).tx_graph.last_seen);
        self.add_times(graph.last_evicted, |piece| &mut of(piece).tx_graph.last_evicted);
    }

    fn add_times(&mut self, times: BTreeMap<Txid, u64>, place: impl Fn(&mut Change) -> &mut BTreeMap<Txid, u64>) {
        for (txid, time) in times {
            self.add(MAP_ENTRY_BYTES, |piece| {
                place(piece).insert(txid, time);
            });
        }
    }
}

impl Change {
    /// The same in pieces, each of which is a record. Those that are written mean what they say if the others are lost: blocks
    /// come last, and are asked for again.
    pub(super) fn into_pieces(self) -> Vec<Self> {
        let Self { mut taproot, mut segwit, labels, seen } = self;
        let mut pieces = Pieces { full: Vec::new(), last: Self::default(), bytes: 0 };
        pieces.add_graph(std::mem::take(&mut taproot.tx_graph), |change| &mut change.taproot);
        pieces.add_graph(std::mem::take(&mut segwit.tx_graph), |change| &mut change.segwit);
        for one in seen {
            pieces.add(SEEN_BYTES, |piece| piece.seen.push(one));
        }
        // Labels are this node's own, and few.
        pieces.add(labels.len() * ANCHOR_BYTES, |piece| piece.labels.extend(labels));
        pieces.last.taproot.merge(taproot);
        pieces.last.segwit.merge(segwit);
        pieces.full.push(pieces.last);
        pieces.full
    }

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
