//! How it stands with the outputs that this node claims: for the API, and for a person who wonders.

use std::collections::BTreeMap;

use bitcoin::{OutPoint, Txid};
use millrace_wire::{BlockHeight, ChannelId, Sat};

/// All of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClaimsStatus {
    /// Each output that a channel has asked for, anchors included.
    pub outputs: BTreeMap<OutPoint, OutputStatus>,
}

/// One output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputStatus {
    /// Of which channel.
    pub channel_id: ChannelId,
    /// What it holds; nothing for an anchor, which is a means and not an end.
    pub amount: Sat,
    /// The height from which the peer may take it too.
    pub deadline: Option<BlockHeight>,
    /// Whether the claim pays the wallet at once, and not into a second stage that has to be swept later.
    pub pays_wallet: bool,
    /// How it stands.
    pub state: OutputState,
}

/// How it stands with an output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OutputState {
    /// A transaction of ours that spends it is in the mempool.
    InMempool {
        /// Which.
        txid: Txid,
        /// What that transaction pays.
        fee: Sat,
    },
    /// A transaction of ours spends it, and the mempool has not taken it yet. It is tried again.
    Sending {
        /// Which.
        txid: Txid,
        /// Why it is not taken.
        reason: String,
    },
    /// It is not claimed now, and this is looked at again with each block.
    Waiting {
        /// Why.
        reason: String,
    },
    /// It is spent in a block; the channel will hear of it.
    Spent,
    /// Nothing needs to be done: a commitment that pays enough by itself.
    NotNeeded,
}

impl ClaimsStatus {
    /// What is ours, may be claimed, and is not yet in the wallet.
    #[must_use]
    pub fn claimable(&self) -> Sat {
        self.outputs.values().filter(|output| !output.is_in_wallet()).map(|output| output.amount).sum()
    }
}

impl OutputStatus {
    /// Whether the wallet counts it already.
    fn is_in_wallet(&self) -> bool {
        match self.state {
            OutputState::InMempool { .. } | OutputState::Spent => self.pays_wallet,
            OutputState::Sending { .. } | OutputState::Waiting { .. } | OutputState::NotNeeded => false,
        }
    }
}
