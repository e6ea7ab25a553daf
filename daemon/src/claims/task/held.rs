//! A transaction of ours that spends what is claimed, and how the mempool sees it.

use bitcoin::{OutPoint, ScriptBuf, Transaction};
use millrace_chain::broadcast::{Status, Submission};
use millrace_wire::{BlockHeight, Sat};

use crate::claims::plan::Spending;
use crate::wallet::Label;

/// A transaction of ours.
#[derive(Clone)]
pub(super) struct Held {
    pub(super) tx: Transaction,
    /// The commitment that it pays for.
    pub(super) parent: Option<Transaction>,
    /// The claimed outputs that it spends.
    pub(super) claims: Vec<OutPoint>,
    pub(super) label: Label,
    pub(super) fee: Sat,
    /// Whether the wallet counts it.
    pub(super) is_marked: bool,
    /// Whether the mempool had it when it was last looked at.
    pub(super) is_seen: bool,
    /// Why the mempool did not take it.
    pub(super) refusal: Option<Refusal>,
}

/// Why the mempool did not take a transaction.
#[derive(Clone)]
pub(super) struct Refusal {
    /// bitcoind's words, or why it could not be asked.
    pub(super) reason: String,
    /// What they mean.
    pub(super) kind: RefusalKind,
    /// The height at which this was seen.
    at: BlockHeight,
}

/// What a refusal means.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum RefusalKind {
    /// It pays too little: for the mempool, or for a replacement.
    TooLow,
    /// It may never be taken as it is: an input is gone, or not there yet.
    Stuck,
    /// bitcoind could not be asked.
    Unasked,
}

impl Held {
    pub(super) const fn new(
        tx: Transaction,
        parent: Option<Transaction>,
        claims: Vec<OutPoint>,
        label: Label,
        fee: Sat,
    ) -> Self {
        Self { tx, parent, claims, label, fee, is_marked: false, is_seen: false, refusal: None }
    }

    pub(super) fn submission(&self) -> Submission {
        match &self.parent {
            Some(parent) => Submission::Package { parent: parent.clone(), child: self.tx.clone() },
            None => Submission::Single(self.tx.clone()),
        }
    }

    pub(super) fn destination(&self) -> Option<ScriptBuf> {
        match self.tx.output.as_slice() {
            [output] if self.tx.input.len() == self.claims.len() => Some(output.script_pubkey.clone()),
            _ => None,
        }
    }

    /// What else it spends: the wallet's.
    pub(super) fn coins(&self) -> Vec<OutPoint> {
        let inputs = self.tx.input.iter().map(|input| input.previous_output);
        inputs.filter(|outpoint| !self.claims.contains(outpoint)).collect()
    }

    /// Whether the mempool was asked, and did not want it.
    pub(super) fn is_refused(&self) -> bool {
        self.refusal.as_ref().is_some_and(|refusal| refusal.kind != RefusalKind::Unasked)
    }

    /// A coin in it is gone: whatever was said, it is of no use any more.
    pub(super) fn set_stuck(&mut self) {
        if let Some(refusal) = &mut self.refusal {
            refusal.kind = RefusalKind::Stuck;
        }
    }

    pub(super) fn spends(&self, outpoints: &[OutPoint]) -> bool {
        self.claims.iter().any(|outpoint| outpoints.contains(outpoint))
    }

    /// Takes down what the mempool said at this height. What is refused with the same words at the same height is no news: it
    /// was not tried again.
    pub(super) fn note(&mut self, status: &Status, at: BlockHeight) -> Option<RefusalKind> {
        let (reason, kind) = match status {
            Status::InMempool | Status::Confirmed => {
                self.refusal = None;
                return None;
            }
            Status::Waiting { reason } => (reason, RefusalKind::Unasked),
            Status::Refused { reason, .. } if is_too_low(reason) => (reason, RefusalKind::TooLow),
            Status::Refused { reason, .. } => (reason, RefusalKind::Stuck),
        };
        let is_news = self.refusal.as_ref().is_none_or(|before| before.at != at || before.reason != *reason);
        self.refusal = Some(Refusal { reason: reason.clone(), kind, at });
        is_news.then_some(kind)
    }

    /// As the plan sees it; with the fees that the mempool says, if it is there.
    pub(super) fn spending(&self, in_mempool: Option<(Sat, Sat)>) -> Spending {
        let (fee, to_replace) = in_mempool.unwrap_or((self.fee, self.fee));
        let is_refused = self.refusal.as_ref().is_some_and(|refusal| refusal.kind == RefusalKind::Stuck);
        Spending {
            txid: self.tx.compute_txid(),
            claims: self.claims.clone(),
            fee,
            to_replace,
            weight: self.tx.weight(),
            is_ours: true,
            is_in_mempool: in_mempool.is_some(),
            is_stuck: is_refused && in_mempool.is_none(),
            destination: self.destination(),
        }
    }
}

/// Whether a refusal is about the fee: the mempool's minimum, or a replacement that pays too little.
fn is_too_low(reason: &str) -> bool {
    reason.to_lowercase().contains("fee")
}
