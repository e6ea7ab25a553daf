//! What the peer's next `revoke_and_ack` revokes: what it takes to make a penalty for it beforehand, for somebody who does not
//! get to know more.

use bitcoin::Txid;
use millrace_wire::{CommitmentNumber, Sat};

use crate::channel::Channel;
use crate::ledger::Which;

/// A commitment of the peer that it is about to revoke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Revocable {
    /// Its number.
    pub number: CommitmentNumber,
    /// Its id.
    pub txid: Txid,
    /// The index and value of the peer's delayed output, if it has one (BOLT 3, "`to_local` Output").
    pub to_local: Option<(u32, Sat)>,
}

impl Channel {
    /// What the peer's next `revoke_and_ack` revokes. `None` if none is due. Builds the whole commitment.
    #[must_use]
    pub fn revocable(&self) -> Option<Revocable> {
        self.state.remote.is_revoke_outstanding().then(|| {
            let commitment = self.commitment(Which::RemoteUnrevoked);
            let value = |vout: u32| Sat::from(commitment.output(vout).value);
            let to_local = commitment.to_local.map(|vout| (vout, value(vout)));
            Revocable { number: self.state.remote.unrevoked, txid: commitment.txid, to_local }
        })
    }
}
