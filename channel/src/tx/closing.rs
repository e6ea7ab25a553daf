//! The closing transaction, in the form of `closing_signed` and in that of `closing_complete` (BOLT 3, "Legacy
//! Closing Transaction" and "Closing Transaction").
//!
//! Which fee to offer and when to agree is the negotiation's business; so is checking the scripts
//! ([`super::check_shutdown_script`]).

use bitcoin::transaction::Version;
use bitcoin::{ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness, absolute};
use millrace_wire::{Msat, Sat};
use secp256k1::ecdsa::Signature;

use super::funding;
use super::shutdown::dust_threshold;
use crate::curve::{VerifyJob, is_valid, sign};
use crate::keys::ChannelKeys;
use crate::side::{Both, Side};
use crate::terms::Terms;

/// A closing transaction, not signed, with at least one output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClosingTx {
    /// The transaction with an empty witness.
    pub tx: Transaction,
    /// What it pays, everything that gets no output included.
    pub fee: Sat,
}

impl ClosingTx {
    /// BOLT 3, "Legacy Closing Transaction", as the side `signer` would sign it: the funder pays `fee`, and every
    /// output below the *signer's* dust limit is left out. `None` if the funder cannot pay or nothing is left.
    #[must_use]
    pub fn legacy(
        terms: &Terms,
        signer: Side,
        balances: &Both<Msat>,
        scripts: &Both<ScriptBuf>,
        fee: Sat,
    ) -> Option<Self> {
        let outputs = legacy_outputs(terms, signer, balances, scripts, fee)?;
        Self::build(terms, outputs, Sequence::MAX, 0)
    }

    /// As [`ClosingTx::legacy`], but with the signer's own output left out, as he may: the other variant that a
    /// received signature can be for. `None` also if it is not another one.
    #[must_use]
    pub fn legacy_without_signer(
        terms: &Terms,
        signer: Side,
        balances: &Both<Msat>,
        scripts: &Both<ScriptBuf>,
        fee: Sat,
    ) -> Option<Self> {
        let mut outputs = legacy_outputs(terms, signer, balances, scripts, fee)?;
        outputs.of_mut(signer).take()?;
        Self::build(terms, outputs, Sequence::MAX, 0)
    }

    /// As [`ClosingTx::legacy`], but with outputs of *exactly* the signer's dust limit left out as well: not BOLT 3's
    /// form, but LDK's. `None` also if it is not another one.
    #[must_use]
    pub fn legacy_above_limit(
        terms: &Terms,
        signer: Side,
        balances: &Both<Msat>,
        scripts: &Both<ScriptBuf>,
        fee: Sat,
    ) -> Option<Self> {
        let outputs = legacy_outputs(terms, signer, balances, scripts, fee)?;
        let limit = terms.party(signer).dust_limit.to_amount();
        let above = |side| outputs.of(side).clone().filter(|output| output.value > limit);
        let above = Both { local: above(Side::Local), remote: above(Side::Remote) };
        if above == outputs { None } else { Self::build(terms, above, Sequence::MAX, 0) }
    }

    fn build(terms: &Terms, outputs: Both<Option<TxOut>>, sequence: Sequence, lock_time: u32) -> Option<Self> {
        let mut output: Vec<TxOut> = [outputs.local, outputs.remote].into_iter().flatten().collect();
        if output.is_empty() {
            return None;
        }
        output.sort_by(|a, b| a.value.cmp(&b.value).then_with(|| a.script_pubkey.cmp(&b.script_pubkey)));
        let paid_out: Sat = output.iter().map(|output| Sat::from(output.value)).sum();
        let input = TxIn {
            previous_output: terms.funding_outpoint,
            script_sig: ScriptBuf::new(),
            sequence,
            witness: Witness::new(),
        };
        let lock_time = absolute::LockTime::from_consensus(lock_time);
        let tx = Transaction { version: Version::TWO, lock_time, input: vec![input], output };
        Some(Self { tx, fee: terms.capacity.checked_sub(paid_out)? })
    }

    /// Our signature.
    #[must_use]
    pub fn sign(&self, terms: &Terms, keys: &ChannelKeys) -> Signature {
        sign(&funding::digest(terms, &self.tx), keys.funding_key())
    }

    /// Whether this is the peer's signature for it, low-S included.
    #[must_use]
    pub fn is_signed_by_remote(&self, terms: &Terms, signature: &Signature) -> bool {
        let digest = funding::digest(terms, &self.tx);
        let key = *funding::funding_key(terms, Side::Remote);
        is_valid(&VerifyJob { digest, key, signature: *signature })
    }

    /// The transaction ready to be broadcast: `local` is the signature of this node, `remote` that of the peer.
    #[must_use]
    pub fn signed_tx(&self, terms: &Terms, local: &Signature, remote: &Signature) -> Transaction {
        let mut tx = self.tx.clone();
        tx.input[0].witness = funding::witness(terms, local, remote);
        tx
    }
}

/// Which outputs a `closing_complete` signature covers: the fields of `closing_tlvs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ClosingOutputs {
    /// `closer_output_only`.
    CloserOnly,
    /// `closee_output_only`.
    CloseeOnly,
    /// `closer_and_closee_outputs`.
    Both,
}

/// What one `closing_complete` proposes (BOLT 2, "Closing Negotiation: `closing_complete` and `closing_sig`").
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimpleClose<'a> {
    /// The sender of `closing_complete`, who pays the fee.
    pub closer: Side,
    /// What belongs to each side, before the fee.
    pub balances: &'a Both<Msat>,
    /// Where each side is paid to.
    pub scripts: &'a Both<ScriptBuf>,
    /// `fee_satoshis`.
    pub fee: Sat,
    /// `locktime`.
    pub lock_time: u32,
}

impl SimpleClose<'_> {
    /// The transaction with these outputs, or `None` if the closer cannot pay the fee.
    #[must_use]
    pub fn tx(&self, terms: &Terms, outputs: ClosingOutputs) -> Option<ClosingTx> {
        let (with_closer, with_closee) = match outputs {
            ClosingOutputs::CloserOnly => (true, false),
            ClosingOutputs::CloseeOnly => (false, true),
            ClosingOutputs::Both => (true, true),
        };
        let closer = self.output(self.closer)?;
        let closee = self.output(self.closer.other())?;
        let mut chosen = Both { local: None, remote: None };
        *chosen.of_mut(self.closer) = with_closer.then_some(closer);
        *chosen.of_mut(self.closer.other()) = with_closee.then_some(closee);
        ClosingTx::build(terms, chosen, Sequence::ENABLE_RBF_NO_LOCKTIME, self.lock_time)
    }

    /// The transactions that the closer has to sign: the lesser side's output goes if it is dust, and with it the
    /// choice.
    ///
    /// Empty if there is none to sign: the closer cannot pay the fee, or an output that may not be left out would be
    /// dust, so that no node would relay the transaction. A lower fee helps, or `OP_RETURN` for the closer.
    #[must_use]
    pub fn offers(&self) -> Vec<ClosingOutputs> {
        let (Some(closer_dust), Some(closee_dust)) = (self.is_dust(self.closer), self.is_dust(self.closer.other()))
        else {
            return Vec::new();
        };
        let is_lesser = self.balances.of(self.closer) < self.balances.of(self.closer.other());
        match (is_lesser, closer_dust, closee_dust) {
            (true, true, false) => vec![ClosingOutputs::CloseeOnly],
            (true, false, false) => vec![ClosingOutputs::Both],
            (false, false, true) => vec![ClosingOutputs::CloserOnly],
            (false, false, false) => vec![ClosingOutputs::CloserOnly, ClosingOutputs::Both],
            (true, _, true) | (false, true, _) => Vec::new(),
        }
    }

    /// Which of the offered signatures the closee has to use, or `None` if the one it has to use is not there.
    ///
    /// "Uneconomical" is nothing to this node: it keeps any output of its own that is not dust.
    #[must_use]
    pub fn select(&self, offered: &[ClosingOutputs]) -> Option<ClosingOutputs> {
        let wanted = if self.is_dust(self.closer.other())? {
            ClosingOutputs::CloserOnly
        } else if offered.contains(&ClosingOutputs::Both) {
            ClosingOutputs::Both
        } else {
            ClosingOutputs::CloseeOnly
        };
        offered.contains(&wanted).then_some(wanted)
    }

    /// BOLT 3, "Closing Transaction": the output of `side`, nothing if it goes to `OP_RETURN`. `None` if `side` is
    /// the closer and cannot pay the fee.
    fn output(&self, side: Side) -> Option<TxOut> {
        let fee = if side == self.closer { self.fee } else { Sat::ZERO };
        let rest = self.balances.of(side).floor_to_sat().checked_sub(fee)?;
        let script_pubkey = self.scripts.of(side).clone();
        let value = if script_pubkey.is_op_return() { Sat::ZERO } else { rest };
        Some(TxOut { value: value.to_amount(), script_pubkey })
    }

    fn is_dust(&self, side: Side) -> Option<bool> {
        let output = self.output(side)?;
        Some(Sat::from(output.value) < dust_threshold(&output.script_pubkey))
    }
}

fn legacy_outputs(
    terms: &Terms,
    signer: Side,
    balances: &Both<Msat>,
    scripts: &Both<ScriptBuf>,
    fee: Sat,
) -> Option<Both<Option<TxOut>>> {
    let dust_limit = terms.party(signer).dust_limit;
    let mut values = Both { local: balances.local.floor_to_sat(), remote: balances.remote.floor_to_sat() };
    let funder = values.of_mut(terms.funder);
    *funder = funder.checked_sub(fee)?;
    let output = |side: Side| {
        let value = *values.of(side);
        let script_pubkey = scripts.of(side).clone();
        (value >= dust_limit).then(|| TxOut { value: value.to_amount(), script_pubkey })
    };
    Some(Both { local: output(Side::Local), remote: output(Side::Remote) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ClosingOutputs::{Both as BothOutputs, CloseeOnly, CloserOnly};

    /// P2WPKH, dust below 294 sat.
    fn p2wpkh(byte: u8) -> ScriptBuf {
        ScriptBuf::from_bytes([&[0, 20], &[byte; 20][..]].concat())
    }

    fn op_return() -> ScriptBuf {
        ScriptBuf::from_bytes(vec![0x6a, 6, 1, 2, 3, 4, 5, 6])
    }

    /// What a local closer with a fee of 1000 sat offers.
    fn offers(closer_sat: u64, closee_sat: u64, scripts: &Both<ScriptBuf>) -> Vec<ClosingOutputs> {
        let balances = Both { local: Sat(closer_sat).to_msat(), remote: Sat(closee_sat).to_msat() };
        SimpleClose { closer: Side::Local, balances: &balances, scripts, fee: Sat(1000), lock_time: 0 }.offers()
    }

    #[test]
    fn offers_follow_bolt_2() {
        let scripts = Both { local: p2wpkh(1), remote: p2wpkh(2) };
        // The closer has less: it may not drop the closee.
        assert_eq!(offers(1294, 5000, &scripts), [BothOutputs]);
        assert_eq!(offers(1293, 5000, &scripts), [CloseeOnly]);
        assert_eq!(offers(1000, 5000, &scripts), [CloseeOnly]);
        // Not less: it may not drop itself.
        assert_eq!(offers(5000, 5000, &scripts), [CloserOnly, BothOutputs]);
        assert_eq!(offers(5000, 294, &scripts), [CloserOnly, BothOutputs]);
        assert_eq!(offers(5000, 293, &scripts), [CloserOnly]);
    }

    #[test]
    fn no_offer_that_nobody_would_relay_or_pay_for() {
        let scripts = Both { local: p2wpkh(1), remote: p2wpkh(2) };
        assert!(offers(999, 5000, &scripts).is_empty(), "cannot pay the fee");
        assert!(offers(1293, 1000, &scripts).is_empty(), "its own output is dust and may not be dropped");
        assert!(offers(1293, 200, &scripts).is_empty(), "both are dust");
        let to_op_return = Both { local: op_return(), ..scripts };
        assert_eq!(offers(1293, 1000, &to_op_return), [CloserOnly, BothOutputs]);
    }

    #[test]
    fn the_closee_selects_by_its_own_output() {
        let scripts = Both { local: p2wpkh(1), remote: p2wpkh(2) };
        let selected = |closee_sat: u64, scripts: &Both<ScriptBuf>, offered: &[ClosingOutputs]| {
            let balances = Both { local: Msat(9_000_000), remote: Sat(closee_sat).to_msat() };
            SimpleClose { closer: Side::Local, balances: &balances, scripts, fee: Sat(1000), lock_time: 0 }
                .select(offered)
        };
        assert_eq!(selected(294, &scripts, &[CloserOnly, BothOutputs]), Some(BothOutputs));
        assert_eq!(selected(294, &scripts, &[CloseeOnly]), Some(CloseeOnly));
        assert_eq!(selected(294, &scripts, &[CloserOnly]), None);
        assert_eq!(selected(293, &scripts, &[CloserOnly, BothOutputs]), Some(CloserOnly));
        assert_eq!(selected(293, &scripts, &[BothOutputs]), None);
        let to_op_return = Both { remote: op_return(), ..scripts };
        assert_eq!(selected(0, &to_op_return, &[CloserOnly, BothOutputs]), Some(BothOutputs));
    }
}
