//! One fee for both, paid by the funder (BOLT 2, "Legacy Closing Negotiation: `closing_signed`").

use bitcoin::{Script, ScriptBuf};
use millrace_wire::message::{ClosingSigned, FeeRange};
use millrace_wire::{FeeratePerKw, Message, Sat, Signature};

use super::broadcast;
use crate::channel::Channel;
use crate::effect::Effects;
use crate::fault::PeerFault;
use crate::side::{Both, Side};
use crate::tx::ClosingTx;
use crate::tx::weight::closing_weight;

const RULE: &str = "BOLT 2, \"Legacy Closing Negotiation: `closing_signed`\"";

/// So many `closing_signed` may come on one connection: halving the distance takes fewer than 50, and a peer with
/// `fee_range` needs two.
const ROUNDS_MAX: u32 = 64;

/// LDK's dust limit, in every channel; also ours, as a rule.
const LDK_DUST_LIMIT: Sat = Sat(354);

/// What was said on this connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Legacy {
    /// Our last fee, and the range that went with it.
    sent: Option<(Sat, FeeRange)>,
    /// The peer's last fee.
    received: Option<Sat>,
    rounds: u32,
}

/// What we would pay, or have the peer pay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Terms {
    is_funder: bool,
    ideal: Sat,
    range: FeeRange,
}

/// What we say to a fee.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Answer {
    /// Yes; the peer needs our signature for it still.
    Agree,
    /// Yes; the peer has our signature already.
    AgreedBefore,
    /// Another one.
    Propose(Sat),
}

impl Channel {
    /// The funder speaks first.
    pub(super) fn begin_legacy_close(&mut self, fx: &mut Effects) {
        let terms = self.legacy_terms();
        if let Some(terms) = terms.filter(|terms| terms.is_funder && self.link.negotiation.legacy.sent.is_none()) {
            self.propose_legacy_close(terms.ideal, terms.range, fx);
        }
    }

    /// Whether a new order comes too late for this connection's negotiation, which has not ended.
    pub(crate) fn is_legacy_stuck(&self) -> bool {
        self.link.negotiation.legacy.sent.is_some() && !self.is_close_complete()
    }

    /// Where both are paid. Not to `OP_RETURN`, which another connection may have allowed: here it would burn money.
    fn legacy_scripts(&self) -> Option<Both<ScriptBuf>> {
        self.closing_scripts().filter(|scripts| !scripts.local.is_op_return() && !scripts.remote.is_op_return())
    }

    /// The fees between the relay minimum and what the order allows; what the peer funds, it may pay as it likes.
    fn legacy_terms(&self) -> Option<Terms> {
        let scripts = self.legacy_scripts()?;
        let weight = closing_weight([&scripts.local, &scripts.remote].map(|script| -> &Script { script }));
        let funder = self.state.terms.funder;
        let balance = self.state.ledger.settled().of(funder).floor_to_sat();
        let fees = self.close_fees();
        let max = if funder == Side::Local { fees.max.fee_ceil(weight).min(balance) } else { balance };
        let min = FeeratePerKw::FLOOR.fee_ceil(weight).min(max);
        let ideal = fees.feerate.fee_ceil(weight).clamp(min, max);
        Some(Terms { is_funder: funder == Side::Local, ideal, range: FeeRange { min, max } })
    }

    /// What `signer` would sign at this fee.
    fn legacy_close(&self, signer: Side, fee: Sat) -> Option<ClosingTx> {
        let (balances, scripts) = (self.state.ledger.settled(), self.legacy_scripts()?);
        ClosingTx::legacy(&self.state.terms, signer, &balances, &scripts, fee)
    }

    /// What `signer` would sign if it were LDK, where that is something else.
    ///
    /// BOLT 3 leaves out outputs *below* the signer's dust limit, LDK also those of exactly the limit. LDK takes no
    /// signature for a transaction that has them, and closes alone over it; its own is for one that has not. Nothing
    /// that is signed there is right by both, and another peer with a limit of 354 sat that keeps to BOLT 3 will not
    /// take LDK's form: but it does not close alone.
    fn ldks_close(&self, signer: Side, fee: Sat) -> Option<ClosingTx> {
        let terms = &self.state.terms;
        if [Side::Local, Side::Remote].iter().any(|side| terms.party(*side).dust_limit != LDK_DUST_LIMIT) {
            return None;
        }
        let (balances, scripts) = (self.state.ledger.settled(), self.legacy_scripts()?);
        ClosingTx::legacy_above_limit(terms, signer, &balances, &scripts, fee)
    }

    fn propose_legacy_close(&mut self, fee: Sat, range: FeeRange, fx: &mut Effects) {
        let close = self.ldks_close(Side::Local, fee).or_else(|| self.legacy_close(Side::Local, fee));
        let Some(close) = close else { return };
        let signature = self.sign_close(&close, fx);
        self.send_closing_signed(fee, range, signature, fx);
    }

    fn send_closing_signed(&mut self, fee: Sat, range: FeeRange, signature: Signature, fx: &mut Effects) {
        self.link.negotiation.legacy.sent = Some((fee, range));
        let fee_range = Some(range);
        fx.send(Message::ClosingSigned(ClosingSigned { channel_id: self.id(), fee, signature, fee_range }));
    }

    pub(crate) fn on_closing_signed(&mut self, message: &ClosingSigned, fx: &mut Effects) -> Result<(), PeerFault> {
        self.check_closing_due(RULE, "closing_signed", false)?;
        let legacy = &mut self.link.negotiation.legacy;
        legacy.rounds += 1;
        if legacy.rounds > ROUNDS_MAX {
            return Err(PeerFault::disconnect(
                RULE,
                format!("more than {ROUNDS_MAX} closing_signed without agreement"),
            ));
        }
        let Some(terms) = self.legacy_terms() else {
            return Err(PeerFault::warn(RULE, "a shutdown script is OP_RETURN, and option_simple_close is missing"));
        };
        let close = self.signed_by_remote(message)?;
        let answer = terms.answer(&self.link.negotiation.legacy, message.fee, message.fee_range)?;
        self.link.negotiation.legacy.received = Some(message.fee);
        if let Answer::Propose(fee) = answer {
            self.propose_legacy_close(fee, terms.range, fx);
            return Ok(());
        }
        let (tx, signature) = self.complete_close(&close, &message.signature, fx);
        if answer == Answer::Agree {
            self.send_closing_signed(message.fee, terms.range, signature, fx);
        }
        broadcast(tx, fx);
        Ok(())
    }

    /// The transaction that the peer signed: the one it builds, that without its own output, the one we build, or LDK's.
    ///
    /// Each has our output to the satoshi, unless that is below a dust limit: ours or, as BOLT 3 has it, the signer's,
    /// which was held to 546 sat at opening. (LDK's may be without it at 354 sat.)
    fn signed_by_remote(&self, message: &ClosingSigned) -> Result<ClosingTx, PeerFault> {
        let fee = message.fee;
        let (balances, scripts) = (self.state.ledger.settled(), self.legacy_scripts());
        let without = scripts.and_then(|scripts| {
            ClosingTx::legacy_without_signer(&self.state.terms, Side::Remote, &balances, &scripts, fee)
        });
        let (theirs, ours) = (self.legacy_close(Side::Remote, fee), self.legacy_close(Side::Local, fee));
        let candidates = [theirs, without, ours, self.ldks_close(Side::Remote, fee)];
        let is_signed = |close: &ClosingTx| close.is_signed_by_remote(&self.state.terms, &message.signature);
        candidates.into_iter().flatten().find(is_signed).ok_or_else(|| {
            PeerFault::disconnect(
                RULE,
                format!("the signature is not one of a closing transaction with a fee of {fee}"),
            )
        })
    }
}

impl Terms {
    fn answer(&self, legacy: &Legacy, fee: Sat, theirs: Option<FeeRange>) -> Result<Answer, PeerFault> {
        match legacy.sent {
            Some((sent, _)) if sent == fee => return Ok(Answer::AgreedBefore),
            Some((_, range)) if contains(&range, fee) => return Ok(Answer::Agree),
            Some(_) | None => {}
        }
        match theirs {
            Some(theirs) => self.answer_to_range(legacy, fee, &theirs),
            None => self.answer_without_range(legacy, fee),
        }
    }

    fn answer_to_range(&self, legacy: &Legacy, fee: Sat, theirs: &FeeRange) -> Result<Answer, PeerFault> {
        let overlap = FeeRange { min: self.range.min.max(theirs.min), max: self.range.max.min(theirs.max) };
        if overlap.min > overlap.max {
            let what = format!(
                "fee_range {} to {} has nothing in common with {} to {}",
                theirs.min, theirs.max, self.range.min, self.range.max
            );
            return Err(PeerFault::warn(RULE, what));
        }
        let is_fine = contains(&overlap, fee);
        match (legacy.sent.is_some(), self.is_funder) {
            (false, true) if is_fine => Ok(Answer::Agree),
            (false, false) if is_fine && fee >= self.ideal => Ok(Answer::Agree),
            (false, false) => {
                let wanted = self.ideal.clamp(overlap.min, overlap.max);
                Ok(if wanted == fee { Answer::Agree } else { Answer::Propose(wanted) })
            }
            (true, _) | (false, true) => {
                let what = format!("fee {fee} is not between {} and {}", overlap.min, overlap.max);
                Err(PeerFault::disconnect(RULE, what))
            }
        }
    }

    /// BOLT 2: each fee stands strictly between the two before it.
    fn answer_without_range(&self, legacy: &Legacy, fee: Sat) -> Result<Answer, PeerFault> {
        let Some((sent, _)) = legacy.sent else {
            return Ok(if contains(&self.range, fee) { Answer::Agree } else { Answer::Propose(self.ideal) });
        };
        if let Some(received) = legacy.received
            && !is_strictly_between(fee, sent, received)
        {
            let what = format!("fee {fee} is not strictly between {sent} and {received}");
            return Err(PeerFault::disconnect(RULE, what));
        }
        let middle = Sat(sent.0.midpoint(fee.0)).clamp(self.range.min, self.range.max);
        if is_strictly_between(middle, sent, fee) {
            return Ok(Answer::Propose(middle));
        }
        let (min, max) = (self.range.min, self.range.max);
        Err(PeerFault::warn(RULE, format!("fee {fee}: this node takes {min} to {max}, and has said {sent}")))
    }
}

fn contains(range: &FeeRange, fee: Sat) -> bool {
    (range.min..=range.max).contains(&fee)
}

fn is_strictly_between(fee: Sat, one: Sat, other: Sat) -> bool {
    one.min(other) < fee && fee < one.max(other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fault::Reaction;

    const fn range(min: u64, max: u64) -> FeeRange {
        FeeRange { min: Sat(min), max: Sat(max) }
    }

    const fn terms(is_funder: bool) -> Terms {
        Terms { is_funder, ideal: Sat(500), range: range(200, 1000) }
    }

    fn said(sent: Option<u64>, received: Option<u64>) -> Legacy {
        Legacy { sent: sent.map(|fee| (Sat(fee), range(200, 1000))), received: received.map(Sat), rounds: 1 }
    }

    fn answer(is_funder: bool, legacy: &Legacy, fee: u64, theirs: Option<FeeRange>) -> Result<Answer, Reaction> {
        terms(is_funder).answer(legacy, Sat(fee), theirs).map_err(|fault| fault.reaction)
    }

    #[test]
    fn our_own_fee_or_one_in_our_range_ends_it() {
        for is_funder in [true, false] {
            for theirs in [None, Some(range(1, 5000))] {
                let legacy = said(Some(500), None);
                assert_eq!(answer(is_funder, &legacy, 500, theirs), Ok(Answer::AgreedBefore));
                assert_eq!(answer(is_funder, &legacy, 200, theirs), Ok(Answer::Agree));
                assert_eq!(answer(is_funder, &legacy, 1000, theirs), Ok(Answer::Agree));
            }
        }
    }

    #[test]
    fn outside_of_our_range_with_a_range_of_theirs() {
        for is_funder in [true, false] {
            let legacy = said(Some(500), None);
            assert_eq!(answer(is_funder, &legacy, 199, Some(range(1, 5000))), Err(Reaction::Disconnect));
            assert_eq!(answer(is_funder, &legacy, 1001, Some(range(1, 5000))), Err(Reaction::Disconnect));
            assert_eq!(answer(is_funder, &legacy, 1001, Some(range(1001, 5000))), Err(Reaction::Warn));
            assert_eq!(answer(is_funder, &legacy, 199, Some(range(1, 199))), Err(Reaction::Warn));
        }
    }

    #[test]
    fn the_side_that_does_not_fund_answers_within_the_overlap() {
        let nothing = said(None, None);
        let proposed = |fee, theirs| answer(false, &nothing, fee, Some(theirs));
        assert_eq!(proposed(500, range(100, 900)), Ok(Answer::Agree));
        assert_eq!(proposed(900, range(100, 900)), Ok(Answer::Agree), "more than it wants is paid by the other");
        assert_eq!(proposed(300, range(100, 900)), Ok(Answer::Propose(Sat(500))));
        assert_eq!(proposed(300, range(100, 400)), Ok(Answer::Propose(Sat(400))));
        assert_eq!(proposed(400, range(100, 400)), Ok(Answer::Agree));
        assert_eq!(proposed(2000, range(100, 3000)), Ok(Answer::Propose(Sat(500))));
        assert_eq!(proposed(1500, range(1001, 3000)), Err(Reaction::Warn));
    }

    #[test]
    fn a_funder_that_was_spoken_to_first() {
        let nothing = said(None, None);
        assert_eq!(answer(true, &nothing, 1000, Some(range(100, 1000))), Ok(Answer::Agree));
        assert_eq!(answer(true, &nothing, 1001, Some(range(100, 2000))), Err(Reaction::Disconnect));
        assert_eq!(answer(true, &nothing, 1000, None), Ok(Answer::Agree));
        assert_eq!(answer(true, &nothing, 1001, None), Ok(Answer::Propose(Sat(500))));
    }

    #[test]
    fn without_a_range_each_fee_is_strictly_between_the_two_before() {
        let none = None;
        assert_eq!(answer(true, &said(Some(500), None), 2000, none), Ok(Answer::Propose(Sat(1000))));
        assert_eq!(answer(true, &said(Some(500), None), 1100, none), Ok(Answer::Propose(Sat(800))));
        assert_eq!(answer(true, &said(Some(500), Some(2000)), 1100, none), Ok(Answer::Propose(Sat(800))));
        for fee in [2000, 2001, 100] {
            assert_eq!(answer(true, &said(Some(500), Some(2000)), fee, none), Err(Reaction::Disconnect));
        }
        assert_eq!(answer(true, &said(Some(1000), Some(2000)), 1100, none), Err(Reaction::Warn), "no more can be paid");
        assert_eq!(answer(false, &said(Some(200), Some(50)), 100, none), Err(Reaction::Warn), "no less is relayed");
    }

    #[test]
    fn without_a_range_it_always_ends() {
        // The peer comes nearer by one satoshi at a time.
        let mut legacy = said(Some(500), None);
        let mut rounds = 0;
        for fee in (0..3000).rev() {
            rounds += 1;
            match terms(true).answer(&legacy, Sat(fee), None) {
                Ok(Answer::Propose(ours)) => {
                    legacy = Legacy { sent: Some((ours, range(200, 1000))), received: Some(Sat(fee)), rounds };
                }
                Ok(Answer::Agree | Answer::AgreedBefore) => break,
                Err(fault) => {
                    assert_eq!(fault.reaction, Reaction::Warn);
                    break;
                }
            }
        }
        assert!(rounds < ROUNDS_MAX, "{rounds}");
    }
}
