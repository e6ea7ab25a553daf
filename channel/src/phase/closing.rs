//! Agreeing on a closing transaction (BOLT 2, "Closing Negotiation").

use bitcoin::Transaction;
use millrace_wire::Sat;
use millrace_wire::message::{ClosingComplete, ClosingSig, ClosingSigned};
use serde::{Deserialize, Serialize};

use crate::channel::Channel;
use crate::effect::Effects;
use crate::fault::PeerFault;

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
pub(crate) struct Negotiation {}

impl Channel {
    pub(crate) fn begin_closing(&mut self, _fx: &mut Effects) {}
    pub(crate) fn on_closing_signed(&mut self, _message: &ClosingSigned, _fx: &mut Effects) -> Result<(), PeerFault> {
        Ok(())
    }
    pub(crate) fn on_closing_complete(
        &mut self,
        _message: ClosingComplete,
        _fx: &mut Effects,
    ) -> Result<(), PeerFault> {
        Ok(())
    }
    pub(crate) fn on_closing_sig(&mut self, _message: ClosingSig, _fx: &mut Effects) -> Result<(), PeerFault> {
        Ok(())
    }
    pub(crate) fn apply_mutual_close(&mut self, _tx: Transaction, _fee: Sat, _complete: bool, _fx: &mut Effects) {}
    pub(crate) fn is_mutual_close(&self, _tx: &Transaction) -> bool {
        false
    }
    pub(crate) fn resume_closing(&mut self, _fx: &mut Effects) {}
}
