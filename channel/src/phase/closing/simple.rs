//! Each side proposes a close that it pays for itself (BOLT 2, "Closing Negotiation: `closing_complete` and
//! `closing_sig`").

use bitcoin::{Script, ScriptBuf};
use millrace_wire::message::{ClosingComplete, ClosingSig, ClosingSignatures};
use millrace_wire::{FeeratePerKw, Message, Sat, Signature};

use super::broadcast;
use crate::channel::Channel;
use crate::effect::Effects;
use crate::fault::PeerFault;
use crate::side::{Both, Side};
use crate::tx::weight::closing_weight;
use crate::tx::{ClosingOutputs, SimpleClose};

const RULE: &str = "BOLT 2, \"Closing Negotiation: `closing_complete` and `closing_sig`\"";

/// So many `closing_complete` are signed on one connection: each is a record and a broadcast of ours.
const COMPLETES_MAX: u32 = 32;

/// What was said on this connection.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Simple {
    /// Our last `closing_complete`.
    sent: Option<Offered>,
    /// The peer has not answered it.
    is_awaited: bool,
    /// How many the peer has sent.
    received: u32,
}

/// What a `closing_complete` of ours said.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Offered {
    scripts: Both<ScriptBuf>,
    fee: Sat,
    lock_time: u32,
    outputs: Vec<ClosingOutputs>,
}

impl Channel {
    /// Whether a `closing_complete` of ours waits for its answer: BOLT 2 allows no other before.
    pub(crate) fn is_closing_sig_awaited(&self) -> bool {
        self.link.negotiation.simple.is_awaited
    }

    /// Offers a close at the fee of the last order, and a better one after a better order.
    pub(super) fn offer_simple_close(&mut self, fx: &mut Effects) {
        // After a restart, with no order, what was signed before is good enough.
        let is_needless = self.close_fees.is_none() && self.is_close_complete();
        if is_needless || self.is_closing_sig_awaited() {
            return;
        }
        let Some(offered) = self.next_offer() else { return };
        let is_better = |before: &Offered| offered.fee > before.fee || offered.scripts.local != before.scripts.local;
        if self.link.negotiation.simple.sent.as_ref().is_none_or(is_better) {
            self.send_closing_complete(offered, fx);
        }
    }

    /// What can be offered: at the feerate of the order or, failing that, at the lowest that is relayed. Nothing if
    /// we cannot pay it and keep an output: then the peer's own offer is what gives us our money.
    fn next_offer(&self) -> Option<Offered> {
        let scripts = self.closing_scripts()?;
        let weight = closing_weight([&scripts.local, &scripts.remote].map(|script| -> &Script { script }));
        let balances = self.state.ledger.settled();
        let feerates = [self.close_fees().feerate, FeeratePerKw::FLOOR];
        let lock_time = 0;
        feerates.into_iter().map(|feerate| feerate.fee_ceil(weight)).find_map(|fee| {
            let close = SimpleClose { closer: Side::Local, balances: &balances, scripts: &scripts, fee, lock_time };
            let outputs = close.offers();
            let is_ours_kept = outputs.iter().any(|outputs| *outputs != ClosingOutputs::CloseeOnly);
            is_ours_kept.then(|| Offered { scripts: scripts.clone(), fee, lock_time, outputs })
        })
    }

    fn send_closing_complete(&mut self, offered: Offered, fx: &mut Effects) {
        let balances = self.state.ledger.settled();
        let mut signatures = ClosingSignatures::default();
        for outputs in &offered.outputs {
            let close = offered.simple_close(Side::Local, &balances).tx(&self.state.terms, *outputs);
            let close = close.expect("only what the closer can pay is offered");
            *field_mut(&mut signatures, *outputs) = Some(self.sign_close(&close, fx));
        }
        fx.send(Message::ClosingComplete(ClosingComplete {
            channel_id: self.id(),
            closer_script: offered.scripts.local.clone(),
            closee_script: offered.scripts.remote.clone(),
            fee: offered.fee,
            locktime: offered.lock_time,
            signatures,
        }));
        let negotiation = &mut self.link.negotiation;
        negotiation.told_script = Some(offered.scripts.local.clone());
        negotiation.simple.is_awaited = true;
        negotiation.simple.sent = Some(offered);
    }

    /// The peer pays for a close: we sign it, and broadcast it ourselves.
    pub(crate) fn on_closing_complete(&mut self, message: ClosingComplete, fx: &mut Effects) -> Result<(), PeerFault> {
        self.check_closing_due(RULE, "closing_complete", true)?;
        let received = &mut self.link.negotiation.simple.received;
        *received = received.saturating_add(1);
        if *received > COMPLETES_MAX {
            return Err(PeerFault::disconnect(RULE, format!("more than {COMPLETES_MAX} closing_complete")));
        }
        if self.link.negotiation.told_script.as_ref() != Some(&message.closee_script) {
            return Err(PeerFault::disconnect(RULE, "closee_scriptpubkey is not the script that was sent last"));
        }
        self.check_remote_script(RULE, &message.closer_script)?;
        let ClosingComplete { channel_id, closer_script, closee_script, fee, locktime, signatures } = message;
        let scripts = Both { local: closee_script, remote: closer_script };
        let offered = Offered { scripts, fee, lock_time: locktime, outputs: fields(&signatures) };
        let (outputs, close) = self.selected(&offered)?;
        let signature = field(&signatures, outputs).expect("selected among the fields that are there");
        if !close.is_signed_by_remote(&self.state.terms, signature) {
            return Err(PeerFault::disconnect(RULE, format!("the signature for {outputs:?} is not valid")));
        }
        self.note_remote_script(offered.scripts.remote.clone(), fx);
        let (tx, ours) = self.complete_close(&close, signature, fx);
        let mut signatures = ClosingSignatures::default();
        *field_mut(&mut signatures, outputs) = Some(ours);
        let Both { local: closee_script, remote: closer_script } = offered.scripts;
        let answer = ClosingSig { channel_id, closer_script, closee_script, fee, locktime, signatures };
        fx.send(Message::ClosingSig(answer));
        broadcast(tx, fx);
        Ok(())
    }

    /// The variant that BOLT 2 has us sign, and its transaction: our own output is in it, to the satoshi, unless it is
    /// dust.
    fn selected(&self, offered: &Offered) -> Result<(ClosingOutputs, crate::tx::ClosingTx), PeerFault> {
        let balances = self.state.ledger.settled();
        let close = offered.simple_close(Side::Remote, &balances);
        let balance = balances.remote.floor_to_sat();
        if offered.fee > balance {
            return Err(PeerFault::disconnect(RULE, format!("fee {} exceeds the closer's {balance}", offered.fee)));
        }
        let missing = || PeerFault::disconnect(RULE, "the signature that is to be used is not there".to_owned());
        let outputs = close.select(&offered.outputs).ok_or_else(missing)?;
        let tx = close.tx(&self.state.terms, outputs).ok_or_else(missing)?;
        Ok((outputs, tx))
    }

    /// The peer has signed what we pay for.
    pub(crate) fn on_closing_sig(&mut self, message: ClosingSig, fx: &mut Effects) -> Result<(), PeerFault> {
        self.check_closing_due(RULE, "closing_sig", true)?;
        let simple = &self.link.negotiation.simple;
        let Some(offered) = simple.sent.clone().filter(|_| simple.is_awaited) else {
            return Err(PeerFault::disconnect(RULE, "a closing_sig that no closing_complete of ours asked for"));
        };
        if !offered.is_answered_by(&message) {
            return Err(PeerFault::disconnect(RULE, "a closing_sig for another transaction than was offered"));
        }
        let [outputs] = fields(&message.signatures)[..] else {
            let what = format!("closing_sig with {} signatures", message.signatures.count());
            return Err(PeerFault::disconnect(RULE, what));
        };
        if !offered.outputs.contains(&outputs) {
            return Err(PeerFault::disconnect(RULE, format!("a signature for {outputs:?}, which was not offered")));
        }
        let balances = self.state.ledger.settled();
        let close = offered.simple_close(Side::Local, &balances).tx(&self.state.terms, outputs);
        let close = close.expect("it was built to be offered");
        let signature = field(&message.signatures, outputs).expect("it is the one that is there");
        if !close.is_signed_by_remote(&self.state.terms, signature) {
            return Err(PeerFault::disconnect(RULE, format!("the signature for {outputs:?} is not valid")));
        }
        self.link.negotiation.simple.is_awaited = false;
        let (tx, _) = self.complete_close(&close, signature, fx);
        broadcast(tx, fx);
        Ok(())
    }
}

impl Offered {
    fn simple_close<'a>(&'a self, closer: Side, balances: &'a Both<millrace_wire::Msat>) -> SimpleClose<'a> {
        SimpleClose { closer, balances, scripts: &self.scripts, fee: self.fee, lock_time: self.lock_time }
    }

    fn is_answered_by(&self, message: &ClosingSig) -> bool {
        self.scripts.local == message.closer_script
            && self.scripts.remote == message.closee_script
            && self.fee == message.fee
            && self.lock_time == message.locktime
    }
}

const ALL: [ClosingOutputs; 3] = [ClosingOutputs::CloserOnly, ClosingOutputs::CloseeOnly, ClosingOutputs::Both];

/// Which signatures are there.
fn fields(signatures: &ClosingSignatures) -> Vec<ClosingOutputs> {
    ALL.into_iter().filter(|outputs| field(signatures, *outputs).is_some()).collect()
}

const fn field(signatures: &ClosingSignatures, outputs: ClosingOutputs) -> Option<&Signature> {
    match outputs {
        ClosingOutputs::CloserOnly => signatures.closer_output_only.as_ref(),
        ClosingOutputs::CloseeOnly => signatures.closee_output_only.as_ref(),
        ClosingOutputs::Both => signatures.closer_and_closee_outputs.as_ref(),
    }
}

const fn field_mut(signatures: &mut ClosingSignatures, outputs: ClosingOutputs) -> &mut Option<Signature> {
    match outputs {
        ClosingOutputs::CloserOnly => &mut signatures.closer_output_only,
        ClosingOutputs::CloseeOnly => &mut signatures.closee_output_only,
        ClosingOutputs::Both => &mut signatures.closer_and_closee_outputs,
    }
}
