//! How a channel ends, for those who look on: the transaction that closes it, and what becomes of each of its outputs.
//!
//! Worked out from the state whenever somebody asks; nothing here is remembered and nothing depends on it.

use bitcoin::{OutPoint, TxOut, Txid};
use millrace_wire::{BlockHeight, CommitmentNumber, FeeratePerKw, Msat, PaymentHash, Sat, ShortChannelId};
use serde::{Deserialize, Serialize};

use super::breach::{Breach, BreachOutput};
use super::claims::Due;
use super::{OnChain, Spend, second_level_outpoint};
use crate::channel::Channel;
use crate::ledger::Which;
use crate::phase::Phase;
use crate::side::{Both, Side};
use crate::tx::commitment::Commitment;

/// The end of a channel, as far as it is known.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ending {
    /// What it is closed by: in a block, or what this node broadcasts.
    pub txid: Txid,
    /// Its block.
    pub height: Option<BlockHeight>,
    /// What it pays the miners, HTLCs too small for an output included.
    pub fee: Sat,
    /// What it pays this node without further ado: our output of a mutual close, our main output of a commitment.
    pub direct: Sat,
    /// The outputs of a commitment, and of HTLC transactions of ours. Empty for a mutual close.
    pub outputs: Vec<Output>,
}

/// One output.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Output {
    /// Which.
    pub outpoint: OutPoint,
    /// What it holds.
    pub amount: Sat,
    /// What it is.
    pub kind: OutputKind,
    /// The height of the first block that may hold our claim, if we have one.
    pub claimable: Option<BlockHeight>,
    /// The height from which the peer may take it too.
    pub deadline: Option<BlockHeight>,
    /// Who spent it in a block, in which transaction, at which height.
    pub spent: Option<(Side, Txid, BlockHeight)>,
}

/// What an output is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OutputKind {
    /// A side's main output.
    Balance(Side),
    /// An HTLC.
    Htlc {
        /// By whom it was offered.
        offered_by: Side,
        /// Its hash.
        payment_hash: PaymentHash,
    },
    /// Of an HTLC transaction: its maker's after the delay.
    SecondLevel,
    /// A side's anchor.
    Anchor(Side),
    /// An HTLC in a commitment that its holder has revoked. Which one it was is not told.
    RevokedHtlc {
        /// By whom it was offered.
        offered_by: Side,
    },
    /// An output of a revoked commitment that this node knows nothing of.
    Unknown,
}

/// What a channel was when everything was resolved: told once, with [`Fact::Closed`](crate::Fact::Closed), as the
/// channel itself is then forgotten.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastState {
    /// Where its funding was, if it was ever in a block.
    pub short_channel_id: Option<ShortChannelId>,
    /// The alias that we gave the peer.
    pub local_alias: ShortChannelId,
    /// The alias that the peer gave us.
    pub remote_alias: Option<ShortChannelId>,
    /// Confirmations after which it could be used.
    pub required_depth: u32,
    /// What each side owned by the last state. HTLCs that were in flight are their offerer's.
    pub balances: Both<Msat>,
    /// What our last commitment paid.
    pub feerate: FeeratePerKw,
    /// Numbers of our last commitment, and of the last that we signed for the peer.
    pub commitment_numbers: Both<CommitmentNumber>,
    /// How it ended; nothing if its funding was never spent.
    pub ending: Option<Ending>,
}

impl Output {
    /// Whether this node may claim it now or later, as far as is known; anchors are not worth it.
    #[must_use]
    pub const fn is_ours(&self) -> bool {
        self.claimable.is_some()
    }

    fn take(&mut self, on_chain: &OnChain, due: &[Due]) {
        self.take_due(due);
        self.spent = on_chain.spend_of(self.outpoint).map(|spend| (spend.by, spend.txid, spend.height));
    }

    fn take_due(&mut self, due: &[Due]) {
        if let Some(due) = due.iter().find(|due| due.outpoint() == self.outpoint) {
            (self.claimable, self.deadline) = (Some(due.height()), due.deadline());
        }
    }
}

impl Channel {
    /// What is to be remembered of the channel, while its end is still known.
    pub(crate) fn last_state(&self) -> LastState {
        let (local_alias, remote_alias) = self.aliases();
        LastState {
            short_channel_id: self.short_channel_id(),
            local_alias,
            remote_alias,
            required_depth: self.required_depth(),
            balances: self.ledger().settled(),
            feerate: self.ledger().feerate(Which::Current(Side::Local)),
            commitment_numbers: self.commitment_numbers(),
            ending: self.ending(),
        }
    }

    /// How the channel ends. `None` while it does not, and once it is over: it is then in the [`LastState`] that was told.
    #[must_use]
    pub fn ending(&self) -> Option<Ending> {
        match &self.state.phase {
            Phase::Closing(closes) => closes.last().map(|close| Ending {
                txid: close.tx.compute_txid(),
                height: None,
                fee: close.fee,
                direct: self.paid_directly(&close.tx.output),
                outputs: Vec::new(),
            }),
            Phase::OnChain(on_chain) => match &on_chain.spend {
                Some(spend) => Some(self.ending_in_block(on_chain, spend)),
                None if on_chain.broadcast => Some(self.ending_alone(on_chain)),
                None => None,
            },
            Phase::Opening | Phase::Normal | Phase::ShuttingDown | Phase::Closed => None,
        }
    }

    /// What a closing transaction pays the script that this node named for it, in satoshi.
    pub(in crate::phase) fn paid_directly(&self, outputs: &[TxOut]) -> Sat {
        let script = self.state.shutdown.local.as_ref();
        let ours = outputs.iter().filter(|output| Some(&output.script_pubkey) == script);
        ours.map(|output| Sat::from(output.value)).sum()
    }

    fn ending_in_block(&self, on_chain: &OnChain, spend: &Spend) -> Ending {
        let mut outputs = Vec::new();
        if let Some(commitment) = self.confirmed_commitment() {
            let due = self.due(on_chain);
            outputs = outputs_of(&commitment);
            outputs.extend(second_level_outputs(on_chain));
            outputs.iter_mut().for_each(|output| output.take(on_chain, &due));
        } else if let Some(breach) = on_chain.breach() {
            self.list_breach(on_chain, spend, breach, &mut outputs);
        } else if let Some((vout, output)) = spend.what.unresolved_to_remote() {
            let outpoint = OutPoint { txid: spend.txid, vout: *vout };
            let due = self.due(on_chain);
            let spent = on_chain.spend_of(outpoint);
            outputs.push(Output {
                claimable: due.first().map(Due::height),
                spent: spent.map(|spend| (spend.by, spend.txid, spend.height)),
                ..unspent(outpoint, output, OutputKind::Balance(Side::Local))
            });
        }
        Ending { txid: spend.txid, height: Some(spend.height), fee: spend.fee, direct: spend.direct, outputs }
    }

    fn list_breach(&self, on_chain: &OnChain, spend: &Spend, breach: &Breach, outputs: &mut Vec<Output>) {
        for ((vout, output), what) in (0..).zip(&breach.outputs).zip(self.breach_outputs(breach)) {
            let kind = match what {
                BreachOutput::Balance(side, _) => OutputKind::Balance(side),
                BreachOutput::Htlc(offered_by, _) => OutputKind::RevokedHtlc { offered_by },
                BreachOutput::Anchor(side) => OutputKind::Anchor(side),
                BreachOutput::Unknown => OutputKind::Unknown,
            };
            outputs.push(unspent(OutPoint { txid: spend.txid, vout }, output, kind));
        }
        outputs.extend(second_level_outputs(on_chain));
        let due = self.due(on_chain);
        outputs.iter_mut().for_each(|output| output.take(on_chain, &due));
    }

    /// Our own commitment is on its way. Heights are those that hold if the next block has it.
    fn ending_alone(&self, on_chain: &OnChain) -> Ending {
        let commitment = self.commitment(Which::Current(Side::Local));
        let direct = balance_of(&commitment, Side::Local);
        let mut outputs = outputs_of(&commitment);
        let mut due = Vec::new();
        self.due_of_local(on_chain, BlockHeight(self.tip.0 + 1), &mut due);
        outputs.iter_mut().for_each(|output| output.take_due(&due));
        Ending { txid: commitment.txid, height: None, fee: commitment.fee, direct, outputs }
    }
}

/// What a commitment pays a side's main output.
pub(super) fn balance_of(commitment: &Commitment, side: Side) -> Sat {
    let vout = if commitment.side == side { commitment.to_local } else { commitment.to_remote };
    vout.map_or(Sat::ZERO, |vout| Sat::from(commitment.output(vout).value))
}

/// The outputs of HTLC transactions, spent or not.
fn second_level_outputs(on_chain: &OnChain) -> impl Iterator<Item = Output> {
    on_chain.spent.iter().filter_map(|spent| {
        let (_, output) = spent.second_level.as_ref()?;
        Some(unspent(second_level_outpoint(spent)?, output, OutputKind::SecondLevel))
    })
}

fn unspent(outpoint: OutPoint, output: &TxOut, kind: OutputKind) -> Output {
    Output { outpoint, amount: Sat::from(output.value), kind, claimable: None, deadline: None, spent: None }
}

/// Every output, in its order in the transaction.
fn outputs_of(commitment: &Commitment) -> Vec<Output> {
    let holder = commitment.side;
    let kind_of = |vout: u32| {
        if commitment.to_local == Some(vout) {
            return Some(OutputKind::Balance(holder));
        }
        if commitment.to_remote == Some(vout) {
            return Some(OutputKind::Balance(holder.other()));
        }
        if let Some(side) = [Side::Local, Side::Remote].into_iter().find(|s| *commitment.anchors.of(*s) == Some(vout)) {
            return Some(OutputKind::Anchor(side));
        }
        let htlc = commitment.htlcs.iter().find(|htlc| htlc.vout == vout)?;
        Some(OutputKind::Htlc { offered_by: htlc.offered_by, payment_hash: htlc.payment_hash })
    };
    let described = |(vout, output): (u32, &TxOut)| Some(unspent(commitment.outpoint(vout), output, kind_of(vout)?));
    (0..).zip(&commitment.tx.output).filter_map(described).collect()
}
