//! The channel ends: together by `closing_signed`, or alone by a commitment, on a chain that runs every script.

mod mutual;
mod unilateral;

use bitcoin::{OutPoint, ScriptBuf, Transaction};

use crate::plan::Ending;
use crate::world::World;

/// Where our own wallet is paid.
pub(crate) fn our_wallet() -> ScriptBuf {
    ScriptBuf::new_p2wpkh(&bitcoin::hashes::Hash::from_byte_array([0x0a; 20]))
}

impl World {
    /// The ending that the plan wants.
    pub(crate) fn end(&mut self) -> Result<(), String> {
        if self.plan.ending == Ending::Open || !self.plan.is_ending_early {
            self.settle()?;
        }
        match self.plan.ending {
            Ending::Open => self.offer_all_alone(),
            Ending::Mutual(by) => self.close_together(by),
            Ending::Unilateral(by) => self.close_alone(by),
        }
    }

    /// Those that the next block can hold, the first of rivals.
    fn minable(&self, candidates: Vec<Transaction>) -> Vec<Transaction> {
        let mut taken: Vec<OutPoint> = Vec::new();
        let mut block = Vec::new();
        for tx in candidates {
            let spends: Vec<OutPoint> = tx.input.iter().map(|input| input.previous_output).collect();
            let is_free = spends.iter().all(|outpoint| self.chain.is_unspent(*outpoint) && !taken.contains(outpoint));
            if is_free && self.chain.refusal(&tx).is_none() {
                taken.extend(spends);
                block.push(tx);
            }
        }
        block
    }

    fn has_htlcs(&self) -> bool {
        !self.node.channel.ledger().is_empty()
    }
}
