//! What becomes of our HTLCs, and of the channel, once what decides it is buried (BOLT 5, "HTLC Output Handling").

use bitcoin::OutPoint;
use millrace_wire::HtlcId;

use super::{ChainRecord, OnChain};
use crate::channel::Channel;
use crate::effect::Effects;
use crate::ledger::htlc::Htlc;
use crate::phase::Phase;
use crate::record::Record;
use crate::side::Side;
use crate::tx::commitment::{Commitment, HtlcOutput};

/// Confirmations after which a failed HTLC is told to be failed.
const TIMED_OUT_DEPTH: u32 = 6;

impl Channel {
    /// Tells of HTLCs of ours that cannot succeed any more: without an output in the commitment that is buried, or
    /// with their output taken back in a transaction that is buried.
    pub(super) fn tell_timed_out(&mut self, fx: &mut Effects) {
        let Phase::OnChain(on_chain) = &self.state.phase else { return };
        let Some(spend) = &on_chain.spend else { return };
        if self.depth_of(spend.height) < TIMED_OUT_DEPTH || spend.what.is_unresolved() {
            return;
        }
        let commitment = self.confirmed_commitment();
        let breach = on_chain.breach().map(|breach| (breach, self.breach_scripts(breach)));
        let is_over = |htlc: &&Htlc| {
            let is_gone = |outpoint| {
                on_chain.spend_of(outpoint).is_some_and(|spent| self.depth_of(spent.height) >= TIMED_OUT_DEPTH)
            };
            match (&commitment, &breach) {
                (Some(commitment), _) => output_of(commitment, htlc.add.id).is_none_or(is_gone),
                (None, Some((breach, scripts))) => {
                    let is_lost = || breach.holder == Side::Local && self.is_long_expired(htlc);
                    breach.outputs_of(spend, scripts, htlc).into_iter().all(is_gone) || is_lost()
                }
                (None, None) => true,
            }
        };
        let ids: Vec<HtlcId> = self
            .state
            .ledger
            .htlcs(Side::Local)
            .iter()
            .filter(|htlc| htlc.known_preimage.is_none() && !on_chain.timed_out.contains(&htlc.add.id))
            .filter(is_over)
            .map(|htlc| htlc.add.id)
            .collect();
        for id in ids {
            self.record(Record::Chain(ChainRecord::OfferTimedOut { id }), fx);
        }
    }

    /// In our own revoked commitment an HTLC of ours is the peer's to take, now or ever: it is waited for until everything
    /// is buried.
    const fn is_long_expired(&self, htlc: &Htlc) -> bool {
        htlc.add.cltv_expiry.0.saturating_add(self.policy.burial_depth) <= self.tip.0
    }

    /// Nothing is left to claim, and everything that decided it is buried.
    pub(super) fn close_when_buried(&mut self, fx: &mut Effects) {
        let Phase::OnChain(on_chain) = &self.state.phase else { return };
        let Some(spend) = &on_chain.spend else { return };
        let is_buried = |height| self.depth_of(height) >= self.policy.burial_depth;
        if is_buried(spend.height)
            && on_chain.spent.iter().all(|spent| is_buried(spent.height))
            && self.unclaimed_outputs().is_empty()
            && self.are_offers_told(on_chain)
        {
            self.record(Record::Closed, fx);
        }
    }

    /// Whether it is told of every HTLC of ours in a breach how it ended. Elsewhere it follows from the claims.
    fn are_offers_told(&self, on_chain: &OnChain) -> bool {
        let is_told = |htlc: &Htlc| htlc.known_preimage.is_some() || on_chain.timed_out.contains(&htlc.add.id);
        on_chain.breach().is_none() || self.state.ledger.htlcs(Side::Local).iter().all(is_told)
    }
}

/// The output of an HTLC of ours in a commitment that we know.
fn output_of(commitment: &Commitment, id: HtlcId) -> Option<OutPoint> {
    let is_its = |output: &&HtlcOutput| output.offered_by == Side::Local && output.id == id;
    commitment.htlcs.iter().find(is_its).map(|output| commitment.outpoint(output.vout))
}
