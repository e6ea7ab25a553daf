//! `shutdown` (BOLT 2, "Closing Initiation: `shutdown`").
//!
//! That the channel closes is a record, and from it on nothing more is offered. The message leaves at the end of the
//! batch in which everything proposed is signed, and again on every connection. What is then agreed on, and how,
//! stands in [`super::closing`].

use bitcoin::{Script, ScriptBuf};
use millrace_wire::message::Shutdown;
use millrace_wire::{FeeratePerKw, Message};

use crate::channel::Channel;
use crate::effect::{Effect, Effects, Fact};
use crate::fault::{PeerFault, Refusal};
use crate::input::CloseOrder;
use crate::link::LinkState;
use crate::phase::Phase;
use crate::phase::normal::FEERATE_MAX;
use crate::record::Record;
use crate::side::Side;
use crate::tx::check_shutdown_script;

const RULE: &str = "BOLT 2, \"Closing Initiation: `shutdown`\"";

/// What a mutual close may cost, by the last order. Volatile: feerates grow old.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CloseFees {
    /// What we propose.
    pub(crate) feerate: FeeratePerKw,
    /// The most that we pay where the peer proposes.
    pub(crate) max: FeeratePerKw,
}

impl CloseFees {
    fn of(order: &CloseOrder) -> Self {
        let feerate = order.feerate.clamp(FeeratePerKw::FLOOR, FEERATE_MAX);
        Self { feerate, max: order.feerate_max.clamp(feerate, FEERATE_MAX) }
    }

    /// Without an order, as after a restart: what the commitment would pay, and up to twice that.
    pub(crate) fn usual(commitment: FeeratePerKw) -> Self {
        let feerate = commitment.clamp(FeeratePerKw::FLOOR, FEERATE_MAX);
        Self { feerate, max: FeeratePerKw(feerate.0.saturating_mul(2)).min(FEERATE_MAX) }
    }
}

impl Channel {
    /// Whether updates may be signed and revoked: never before both have said `channel_ready`, which a channel may
    /// begin to shut down without.
    pub(crate) const fn may_dance(&self) -> bool {
        self.state.phase.may_dance() && self.state.funding.is_ready_sent && self.state.funding.is_ready_received
    }

    /// Closes together with the peer, answers the peer's `shutdown`, or (again) changes what a close may cost.
    pub(crate) fn close(&mut self, order: CloseOrder, fx: &mut Effects) -> Result<(), Refusal> {
        self.check_may_close()?;
        self.check_own_script(&order.script)?;
        self.close_fees = Some(CloseFees::of(&order));
        if self.state.shutdown.local.as_ref() != Some(&order.script) {
            self.record(Record::ShutdownSent { script: order.script }, fx);
        }
        if self.is_legacy_stuck() {
            fx.list.push(Effect::Disconnect("the closing negotiation begins anew, with other fees".to_owned()));
        }
        Ok(())
    }

    fn check_may_close(&self) -> Result<(), Refusal> {
        match self.state.phase {
            Phase::Opening | Phase::Normal | Phase::ShuttingDown => {}
            Phase::Closing(_) if self.link.features.simple_close || !self.is_close_complete() => {}
            Phase::Closing(_) => {
                return Err(Refusal::NotUsable(
                    "a mutual close is signed, and without option_simple_close its fee cannot be raised",
                ));
            }
            Phase::OnChain(_) | Phase::Closed => return Err(Refusal::NotUsable("it is closed")),
        }
        if self.state.is_data_lost {
            return Err(Refusal::DataLost);
        }
        match self.link.state {
            LinkState::Reestablishing | LinkState::Up => Ok(()),
            LinkState::Down => Err(Refusal::NotUsable("the peer is not connected")),
            LinkState::PeerBehind => Err(Refusal::NotUsable("the peer has lost data")),
        }
    }

    /// BOLT 2: the form, what was committed to upfront, and that only `closing_complete` can change it later.
    fn check_own_script(&self, script: &Script) -> Result<(), Refusal> {
        let features = self.link.features;
        check_shutdown_script(script, features.shutdown_anysegwit, features.simple_close)
            .map_err(|bad| Refusal::BadShutdownScript(bad.to_string()))?;
        let upfront = &self.state.terms.party(Side::Local).upfront_shutdown_script;
        if upfront.as_ref().is_some_and(|upfront| upfront != script) {
            return Err(Refusal::BadShutdownScript("another one was committed to at opening".to_owned()));
        }
        match &self.state.shutdown.local {
            Some(told) if told != script && !features.simple_close && !told.is_op_return() => {
                Err(Refusal::BadShutdownScript("another one was sent, and option_simple_close is missing".to_owned()))
            }
            Some(told) if told != script && self.is_closing_sig_awaited() => Err(Refusal::BadShutdownScript(
                "the peer has not answered closing_complete with another one".to_owned(),
            )),
            Some(_) | None => Ok(()),
        }
    }

    /// BOLT 2: not while an update waits for our signature; so also on a new connection. (LDK, as the funder, takes its
    /// `update_fee` to be settled before we have signed it back, and would answer with `closing_signed`.)
    pub(crate) fn send_shutdown_if_clean(&mut self, fx: &mut Effects) {
        let ledger = &self.state.ledger;
        let is_clean = !ledger.has_proposals(Side::Local) && !ledger.owes_cross_commit();
        if is_clean && self.link.is_up() && self.link.negotiation.told_script.is_none() {
            self.send_shutdown(fx);
        }
    }

    fn send_shutdown(&mut self, fx: &mut Effects) {
        if let (Phase::ShuttingDown | Phase::Closing(_), Some(script)) = (&self.state.phase, &self.state.shutdown.local)
        {
            self.link.negotiation.told_script = Some(script.clone());
            fx.send(Message::Shutdown(Shutdown { channel_id: self.id(), script: script.clone() }));
        }
    }

    /// `shutdown` of the peer, who may name another script on another connection. Ours follows once
    /// [`crate::Command::Close`] has said where we are to be paid.
    pub(crate) fn on_shutdown(&mut self, message: Shutdown, fx: &mut Effects) -> Result<(), PeerFault> {
        if !self.link.is_up() {
            return Err(PeerFault::disconnect(RULE, "shutdown before channel_reestablish"));
        }
        self.check_remote_script(RULE, &message.script)?;
        let is_changed = self.state.shutdown.remote.as_ref().is_some_and(|known| *known != message.script);
        if is_changed && self.link.negotiation.is_shutdown_received {
            return Err(PeerFault::disconnect(RULE, "a second shutdown with another script"));
        }
        self.link.negotiation.is_shutdown_received = true;
        self.note_remote_script(message.script, fx);
        Ok(())
    }

    /// Whether the peer may be paid there.
    pub(crate) fn check_remote_script(&self, rule: &'static str, script: &Script) -> Result<(), PeerFault> {
        let features = self.link.features;
        check_shutdown_script(script, features.shutdown_anysegwit, features.simple_close)
            .map_err(|bad| PeerFault::disconnect(rule, bad.to_string()))?;
        match &self.state.terms.party(Side::Remote).upfront_shutdown_script {
            Some(upfront) if upfront != script => {
                Err(PeerFault::disconnect(rule, "not the script that was committed to at opening"))
            }
            Some(_) | None => Ok(()),
        }
    }

    pub(crate) fn note_remote_script(&mut self, script: ScriptBuf, fx: &mut Effects) {
        if self.state.shutdown.remote.as_ref() != Some(&script) {
            self.record(Record::ShutdownReceived { script }, fx);
        }
    }

    pub(crate) fn apply_shutdown(&mut self, side: Side, script: ScriptBuf, fx: &mut Effects) {
        let shutdown = &mut self.state.shutdown;
        let (is_first, is_asked) = (shutdown.local.is_none() && shutdown.remote.is_none(), shutdown.remote.is_some());
        *shutdown.of_mut(side) = Some(script);
        let is_unanswered = shutdown.local.is_none();
        if let Phase::Opening | Phase::Normal = self.state.phase {
            self.state.phase = Phase::ShuttingDown;
        }
        if is_first {
            fx.fact(Fact::ShuttingDown);
        }
        if is_unanswered && !is_asked {
            fx.fact(Fact::CloseAsked);
        }
    }
}
