//! From the first record to `channel_ready` from both sides (BOLT 2, "The `channel_ready` Message").

use std::sync::Arc;

use bitcoin::Transaction;
use millrace_wire::message::ChannelReady;
use millrace_wire::{BlockHeight, CommitmentNumber, Message, ShortChannelId};

use crate::channel::Channel;
use crate::effect::{Effect, Effects, Fact};
use crate::fault::PeerFault;
use crate::phase::Phase;
use crate::record::Record;
use crate::side::Side;

const RULE: &str = "BOLT 2, \"The `channel_ready` Message\"";

/// BOLT 2: the side that did not fund forgets a channel whose funding transaction does not confirm.
pub const FORGET_AFTER_BLOCKS: u32 = 2016;

/// A coinbase may be spent from here on, and reorganised away before.
const COINBASE_DEPTH: u32 = 100;

impl Channel {
    /// Confirmations that `channel_ready` waits for.
    #[must_use]
    pub fn required_depth(&self) -> u32 {
        let agreed = self.state.terms.minimum_depth;
        if self.state.funding.is_coinbase { agreed.max(COINBASE_DEPTH) } else { agreed }
    }

    /// The funding transaction is in the block of the last tip: checked to be what was agreed, before anything
    /// relies on it.
    pub(crate) fn on_funding_confirmed(&mut self, tx: &Arc<Transaction>, index: u32, fx: &mut Effects) {
        let outpoint = self.state.terms.funding_outpoint;
        if self.state.funding.confirmed.is_some() || self.state.phase == Phase::Closed {
            return;
        }
        if tx.output.get(outpoint.vout as usize) != Some(&self.funding_txout()) {
            let what = format!(
                "output {} of the funding transaction is not {} sat to the agreed script",
                outpoint.vout, self.state.terms.capacity.0
            );
            return self.fail(what, fx);
        }
        let scid = u16::try_from(outpoint.vout).ok().and_then(|vout| ShortChannelId::new(self.tip.0, index, vout));
        let Some(scid) = scid else {
            let place = format!("{}x{index}x{}", self.tip.0, outpoint.vout);
            return self
                .fail(format!("the funding transaction stands at {place}, which no short channel id can say"), fx);
        };
        let record = Record::FundingConfirmed { height: self.tip, scid, is_coinbase: tx.is_coinbase() };
        self.record(record, fx);
        self.on_depth(fx);
    }

    /// The chain has grown, or the link has come: say `channel_ready` or announce the channel if it is time, or forget it.
    pub(crate) fn on_depth(&mut self, fx: &mut Effects) {
        self.say_ready_or_forget(fx);
        self.announce(fx);
    }

    fn say_ready_or_forget(&mut self, fx: &mut Effects) {
        if matches!(self.state.phase, Phase::OnChain(_) | Phase::Closed) {
            return;
        }
        let funding = &self.state.funding;
        if !funding.is_ready_sent && self.funding_depth() >= self.required_depth() {
            self.record(Record::ReadySent, fx);
            if self.link.is_up() {
                fx.send(self.channel_ready());
            }
            return;
        }
        let waited = self.tip.0.saturating_sub(funding.opened_at.0);
        let is_forgotten = self.state.terms.funder == Side::Remote
            && funding.confirmed.is_none()
            && !funding.is_ready_sent
            && waited >= FORGET_AFTER_BLOCKS;
        if is_forgotten {
            fx.fact(Fact::Failed { reason: format!("the funding transaction did not confirm within {waited} blocks") });
            self.record(Record::Closed, fx);
        }
    }

    /// Our `channel_ready`: the same each time it is sent.
    pub(crate) fn channel_ready(&self) -> Message {
        Message::ChannelReady(ChannelReady {
            channel_id: self.id(),
            next_per_commitment_point: self.keys.commitment_point(CommitmentNumber(1)),
            alias: Some(self.state.funding.local_alias),
        })
    }

    /// `channel_ready` of the peer. A second one may bring another alias (BOLT 2), and changes nothing else.
    pub(crate) fn on_channel_ready(&mut self, message: &ChannelReady, fx: &mut Effects) -> Result<(), PeerFault> {
        if matches!(self.state.phase, Phase::OnChain(_) | Phase::Closed) {
            return Ok(());
        }
        if self.link.state == crate::link::LinkState::Down {
            return Err(PeerFault::disconnect(RULE, "channel_ready on no connection"));
        }
        let next_point = message.next_per_commitment_point;
        let funding = &self.state.funding;
        if !funding.is_ready_received {
            self.record(Record::ReadyReceived { next_point, alias: message.alias }, fx);
            self.announce(fx);
            return Ok(());
        }
        let is_at_start = self.state.remote.unrevoked == CommitmentNumber(0);
        if is_at_start && self.state.remote.next_point != Some(next_point) {
            return Err(PeerFault::fail(RULE, "a second channel_ready with another next_per_commitment_point"));
        }
        if is_at_start && message.alias.is_some() && message.alias != funding.remote_alias {
            self.record(Record::ReadyReceived { next_point, alias: message.alias }, fx);
        }
        Ok(())
    }

    /// A block was taken out of the chain.
    pub(crate) fn on_disconnected(&mut self, height: BlockHeight, fx: &mut Effects) {
        if let Some((confirmed, _)) = self.state.funding.confirmed
            && confirmed >= height
        {
            self.record(Record::FundingUnconfirmed, fx);
            self.forget_sent_announcement();
            if let Some(tx) = &self.state.funding.tx {
                let purpose = crate::effect::Purpose::Funding;
                fx.list.push(Effect::Broadcast(crate::effect::Broadcast { tx: tx.clone(), purpose }));
            }
        }
        self.on_chain_disconnected(height, fx);
    }
}
