//! The channel ends by a commitment transaction (BOLT 5).

use bitcoin::Transaction;
use millrace_wire::BlockHeight;
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::effect::Effects;
use crate::fault::Refusal;

/// What is known of the channel's end on chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OnChain {}

/// What happened on chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum ChainRecord {}

/// Outputs to be claimed with the wallet's help.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Claims {}

impl Channel {
    pub(crate) fn fail(&mut self, _reason: String, _fx: &mut Effects) {}
    pub(crate) fn peer_failed(&mut self, _text: &str, _fx: &mut Effects) {}
    pub(crate) fn force_close(&mut self, _reason: String, _fx: &mut Effects) -> Result<(), Refusal> {
        Ok(())
    }
    pub(crate) fn say_failed(&mut self, _fx: &mut Effects) {}
    pub(crate) fn apply_failed(&mut self, _reason: String, _broadcast: bool, _fx: &mut Effects) {}
    pub(crate) fn apply_data_lost(&mut self, _remote_point: PublicKey) {}
    pub(crate) fn apply_chain(&mut self, record: ChainRecord, _fx: &mut Effects) {
        match record {}
    }
    pub(crate) fn on_tip(&mut self, _fx: &mut Effects) {}
    pub(crate) fn on_spend_confirmed(&mut self, _tx: &Transaction, _fx: &mut Effects) {}
    pub(crate) fn on_unconfirmed(&mut self, _tx: &Transaction, _fx: &mut Effects) {}
    pub(crate) fn on_chain_disconnected(&mut self, _height: BlockHeight, _fx: &mut Effects) {}
    pub(crate) fn on_removal_decided_on_chain(&mut self, _fx: &mut Effects) {}
    pub(crate) fn resume_on_chain(&mut self, _fx: &mut Effects) {}
}
