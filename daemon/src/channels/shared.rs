//! What all shards have in common.

use std::sync::Arc;

use bitcoin::Transaction;
use millrace_chain::fees::FeeEstimates;
use millrace_channel::effect::{Broadcast, Watch};
use millrace_wire::{ChannelId, FeeratePerKw, ShortChannelId};
use tokio::sync::{mpsc, watch};

use super::curve_pool::CurvePool;
use super::directory::Directory;
use super::guard_seam::ChannelGuards;
use super::keys::{FreshKeys, KeysOf};
use super::order::{ChannelRules, NoNewWork};
use super::registry::{Registry, random};
use super::wallet_seam::ChannelWallet;
use crate::facts::Folds;
use crate::steps::StepLog;

/// What a channel asks of the chain.
#[derive(Clone, Debug)]
pub(crate) enum ChainOrder {
    /// To be told of.
    Watch(ChannelId, Watch),
    /// To be sent, again and again.
    Broadcast(ChannelId, Broadcast),
    /// The channel is closed: it needs nothing more.
    Forget(ChannelId),
}

/// What all shards have in common.
pub(crate) struct Shared {
    pub(crate) rules: ChannelRules,
    pub(crate) keys_of: KeysOf,
    pub(crate) fresh_keys: Arc<FreshKeys>,
    pub(crate) curve: CurvePool,
    pub(crate) log: Arc<dyn StepLog>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) folds: Folds,
    pub(crate) wallet: Arc<dyn ChannelWallet>,
    pub(crate) guards: Arc<dyn ChannelGuards>,
    /// Not bounded: a channel asks for each thing once, and again only at a start.
    pub(crate) chain: mpsc::UnboundedSender<ChainOrder>,
    pub(crate) fees: watch::Receiver<FeeEstimates>,
    pub(crate) registry: Registry,
}

impl Shared {
    /// An alias that no channel has.
    pub(crate) fn fresh_alias(&self) -> ShortChannelId {
        loop {
            let alias = ShortChannelId(u64::from_be_bytes(random()));
            if !self.directory.is_alias_taken(alias) {
                return alias;
            }
        }
    }

    /// What a new commitment pays.
    pub(crate) fn commitment_feerate(&self, has_anchors: bool) -> FeeratePerKw {
        commitment_feerate(&self.fees.borrow(), has_anchors)
    }

    /// What a close that both agree to pays.
    pub(crate) fn close_feerate(&self) -> FeeratePerKw {
        FeeratePerKw(self.fees.borrow().mutual_close().0)
    }

    pub(crate) fn check_new_work(&self) -> Result<(), NoNewWork> {
        self.registry.check_new_work()
    }

    /// Says something to the chain task; it ends only with the node.
    pub(crate) fn tell_chain(&self, order: ChainOrder) {
        let _gone = self.chain.send(order);
    }

    /// The wallet may use its coins again.
    pub(crate) fn release_coins(&self, transaction: &Transaction) {
        self.wallet.release(transaction);
    }
}

/// What a commitment pays, by its form.
pub(crate) fn commitment_feerate(fees: &FeeEstimates, has_anchors: bool) -> FeeratePerKw {
    let rate = if has_anchors { fees.anchor_commitment() } else { fees.plain_commitment() };
    FeeratePerKw(rate.0)
}
