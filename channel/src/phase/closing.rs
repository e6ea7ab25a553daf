//! Agreeing on a closing transaction (BOLT 2, "Closing Negotiation: `closing_complete` and `closing_sig`", "Legacy
//! Closing Negotiation: `closing_signed`").
//!
//! Here is what both protocols share: when they begin, and what becomes of a signature. No signature of ours leaves
//! before the transaction is recorded, since the peer can complete it from then on. Negotiation belongs to a
//! connection and begins anew on the next; disagreement never closes the channel alone: that is the user's decision.

mod legacy;
mod simple;

use bitcoin::{ScriptBuf, Sequence, Transaction};
use millrace_wire::{Sat, Signature};
use serde::{Deserialize, Serialize};

use self::legacy::Legacy;
use self::simple::Simple;
use crate::channel::Channel;
use crate::effect::{Broadcast, Effect, Effects, Fact, Purpose};
use crate::fault::PeerFault;
use crate::ledger::Which;
use crate::phase::Phase;
use crate::phase::shutting_down::CloseFees;
use crate::record::Record;
use crate::side::{Both, Side};
use crate::tx::ClosingTx;

/// So many signed closes are kept, to be broadcast again: far more than two honest sides make.
const CLOSES_MAX: usize = 32;

/// A mutual close that may confirm.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SignedClose {
    /// The transaction.
    pub tx: Transaction,
    /// What it pays.
    pub fee: Sat,
    /// Whether we hold every signature.
    pub complete: bool,
}

/// What this connection has offered so far.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Negotiation {
    /// The script that we told last, by `shutdown` or `closing_complete`.
    pub(crate) told_script: Option<ScriptBuf>,
    /// The peer's `shutdown` has come.
    pub(crate) is_shutdown_received: bool,
    legacy: Legacy,
    simple: Simple,
}

impl Channel {
    // --- when ---

    /// The end of a batch: `shutdown` if it is time, then whatever the negotiation waits for from us.
    pub(crate) fn begin_closing(&mut self, fx: &mut Effects) {
        self.send_shutdown_if_clean(fx);
        if !self.is_closing_due() {
            return;
        }
        if self.link.features.simple_close {
            self.offer_simple_close(fx);
        } else {
            self.begin_legacy_close(fx);
        }
    }

    /// Both have said `shutdown` on this connection, and nothing is left that an update could change.
    fn is_closing_due(&self) -> bool {
        let negotiation = &self.link.negotiation;
        matches!(self.state.phase, Phase::ShuttingDown | Phase::Closing(_))
            && self.link.is_up()
            && negotiation.told_script.is_some()
            && negotiation.is_shutdown_received
            && self.is_at_rest()
    }

    /// Whether a message of the negotiation may come now; `is_simple`: of `option_simple_close`.
    fn check_closing_due(&self, rule: &'static str, name: &str, is_simple: bool) -> Result<(), PeerFault> {
        if !self.is_closing_due() {
            return Err(PeerFault::disconnect(rule, format!("{name} before the channel is empty and shut down")));
        }
        if self.link.features.simple_close != is_simple {
            let not = if is_simple { "not " } else { "" };
            return Err(PeerFault::disconnect(rule, format!("{name}, but option_simple_close is {not}negotiated")));
        }
        Ok(())
    }

    /// Whether a mutual close can be broadcast.
    pub(crate) fn is_close_complete(&self) -> bool {
        self.closes().iter().any(|close| close.complete)
    }

    fn closes(&self) -> &[SignedClose] {
        if let Phase::Closing(closes) = &self.state.phase { closes } else { &[] }
    }

    // --- what ---

    fn close_fees(&self) -> CloseFees {
        let commitment = self.state.ledger.feerate(Which::Current(Side::Local));
        self.close_fees.unwrap_or_else(|| CloseFees::usual(commitment))
    }

    /// Where both are paid, as far as both have said so.
    fn closing_scripts(&self) -> Option<Both<ScriptBuf>> {
        let Both { local, remote } = &self.state.shutdown;
        Some(Both { local: local.clone()?, remote: remote.clone()? })
    }

    /// Signs for the peer, who can complete it from then on.
    fn sign_close(&mut self, close: &ClosingTx, fx: &mut Effects) -> Signature {
        self.record_close(close.tx.clone(), close.fee, false, fx);
        close.sign(&self.state.terms, &self.keys)
    }

    /// Both signatures are there: recorded. The transaction, and our own signature.
    fn complete_close(&mut self, close: &ClosingTx, remote: &Signature, fx: &mut Effects) -> (Transaction, Signature) {
        let local = close.sign(&self.state.terms, &self.keys);
        let tx = close.signed_tx(&self.state.terms, &local, remote);
        self.record_close(tx.clone(), close.fee, true, fx);
        (tx, local)
    }

    /// Records it, unless as much of it is known already.
    fn record_close(&mut self, tx: Transaction, fee: Sat, complete: bool, fx: &mut Effects) {
        let txid = tx.compute_txid();
        let is_known = |known: &SignedClose| known.complete >= complete && known.tx.compute_txid() == txid;
        if !self.closes().iter().any(is_known) {
            self.record(Record::MutualCloseSigned { tx, fee, complete }, fx);
        }
    }

    /// A close is in a block, so it is complete, also if only the peer could complete it: kept, should a reorg take it
    /// back.
    pub(super) fn record_close_in_block(&mut self, tx: &Transaction, fee: Sat, fx: &mut Effects) {
        if matches!(self.state.phase, Phase::ShuttingDown | Phase::Closing(_)) {
            self.record_close(tx.clone(), fee, true, fx);
        }
    }

    pub(crate) fn apply_mutual_close(&mut self, tx: Transaction, fee: Sat, complete: bool, fx: &mut Effects) {
        let txid = tx.compute_txid();
        let mut closes = match std::mem::replace(&mut self.state.phase, Phase::ShuttingDown) {
            Phase::ShuttingDown => Vec::new(),
            Phase::Closing(closes) => closes,
            phase @ (Phase::Opening | Phase::Normal | Phase::OnChain(_) | Phase::Closed) => {
                unreachable!("a mutual close is signed while {}", phase.name())
            }
        };
        closes.retain(|close| close.tx.compute_txid() != txid);
        let direct = self.paid_directly(&tx.output);
        closes.push(SignedClose { tx, fee, complete });
        if closes.len() > CLOSES_MAX {
            closes.remove(least_useful(&closes));
        }
        self.state.phase = Phase::Closing(closes);
        if complete {
            fx.fact(Fact::MutualCloseSigned { txid, fee, direct });
        }
    }

    /// Whether this spend of the funding output is a mutual close.
    ///
    /// Both sides sign nothing but commitments and closes, and these two sequences are of closes only: so this holds
    /// also for a close that is older than what we remember.
    pub(crate) fn is_mutual_close(&self, tx: &Transaction) -> bool {
        let [input] = &tx.input[..] else { return false };
        input.previous_output == self.state.terms.funding_outpoint
            && matches!(input.sequence, Sequence::MAX | Sequence::ENABLE_RBF_NO_LOCKTIME)
    }

    /// After a restart: the closes that may confirm go out again, and a `shutdown` that waits for an answer is told of.
    pub(crate) fn resume_closing(&mut self, fx: &mut Effects) {
        if matches!(self.state.phase, Phase::ShuttingDown) && self.state.shutdown.local.is_none() {
            fx.fact(Fact::CloseAsked);
        }
        broadcast_complete(self.closes(), fx);
    }
}

/// Broadcasts those that we hold every signature of.
pub(super) fn broadcast_complete(closes: &[SignedClose], fx: &mut Effects) {
    for close in closes.iter().filter(|close| close.complete) {
        broadcast(close.tx.clone(), fx);
    }
}

/// What to forget: it may confirm all the same, and `is_mutual_close` does not need it. What only the peer can complete
/// goes first, then whatever pays the least: a peer that floods us must pay more than our own closes to push them out.
fn least_useful(closes: &[SignedClose]) -> usize {
    let incomplete = closes.iter().position(|close| !close.complete);
    let cheapest = || (0..closes.len()).min_by_key(|index| closes[*index].fee).unwrap_or(0);
    incomplete.unwrap_or_else(cheapest)
}

fn broadcast(tx: Transaction, fx: &mut Effects) {
    fx.list.push(Effect::Broadcast(Broadcast { tx, purpose: Purpose::MutualClose }));
}
