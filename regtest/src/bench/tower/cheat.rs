//! The peer of one channel after the fact: it publishes a commitment that it has revoked, goes for the HTLCs in it as soon as it
//! may, and takes whatever is not taken from it when the delay is over.

use std::sync::Arc;

use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};
use millrace_channel::keys::CommitmentKeys;
use millrace_channel::side::Side;
use millrace_channel::tx::script;

use super::pair::{DELAY, Pair, Past};
use crate::matrix::cell::Conduct;
use crate::matrix::claimant::{Claimant, Coin};
use crate::matrix::output::{self, Htlc, Role};
use crate::network::Error;
use crate::random::Random;

/// A peer that cheats.
pub(super) struct Cheat {
    claimant: Claimant,
    conduct: Conduct,
    /// The HTLCs of ours whose preimages it has.
    learns: Vec<Htlc>,
    pub(super) accused: Accused,
    pub(super) commitment: Transaction,
    /// The last of its HTLCs may be taken back in the block after this one.
    pub(super) last_expiry: u32,
}

/// What the judge knows of a channel, by BOLT 3 and the keys of both sides.
#[derive(Clone, Debug)]
pub(super) struct Accused {
    pub(super) commitment: Txid,
    /// What every delayed output of this commitment pays to, its second level included.
    pub(super) delayed: ScriptBuf,
    /// Where the tower may bring what it takes.
    pub(super) sweep: ScriptBuf,
    /// The delayed output of the commitment itself, and its HTLCs.
    pub(super) main: Option<(OutPoint, u64)>,
    pub(super) htlcs: Vec<(OutPoint, u64)>,
}

impl Cheat {
    /// With what the peer kept of a channel.
    pub(super) fn of(pair: &Pair, past: Past, sweep: ScriptBuf, random: &mut Random) -> Result<Self, Error> {
        let mut claimant = Claimant::of(&past.snapshot, pair.their_keys())?;
        let commitment = claimant.commitment()?;
        let terms = pair.channel(Side::Remote)?.terms();
        let point = pair.their_keys().commitment_point(claimant.commitment_numbers().local);
        let keys = CommitmentKeys::of(terms, Side::Local, &point);
        let delayed = script::to_local(&keys.revocation, DELAY, &keys.broadcaster_delayed).to_p2wsh();
        let outputs = output::outputs(&commitment, terms, Side::Local, &point, &past.htlcs, |_| true);
        let outputs = outputs.map_err(Error::Wrong)?;
        let of = |is_wanted: fn(Role) -> bool| {
            let wanted = outputs.iter().filter(move |output| is_wanted(output.role));
            wanted.map(|output| (output.outpoint, output.sat))
        };
        let accused = Accused {
            commitment: commitment.compute_txid(),
            delayed,
            sweep,
            main: of(|role| role == Role::TheirMain).next(),
            htlcs: of(|role| matches!(role, Role::Htlc(_))).collect(),
        };
        let last_expiry = past.htlcs.iter().map(|htlc| htlc.cltv_expiry.0).max().unwrap_or_default();
        // It does not have every preimage.
        let learns = past.htlcs.into_iter().filter(|htlc| htlc.is_offered && random.below(4) != 0).collect();
        let conduct = if random.below(2) == 0 { Conduct::Claims } else { Conduct::Aggregates };
        Ok(Self { claimant, conduct, learns, accused, commitment, last_expiry })
    }

    /// A block, and what of it is of interest. Once the commitment is in one, the preimages are used.
    pub(super) fn on_block(&mut self, height: u32, txs: &[(u32, Arc<Transaction>)]) -> Result<(), Error> {
        self.claimant.on_block(height, txs);
        if txs.iter().any(|(_, tx)| tx.compute_txid() == self.accused.commitment) {
            for htlc in std::mem::take(&mut self.learns) {
                self.claimant.learn(htlc.id, htlc.preimage)?;
            }
        }
        Ok(())
    }

    /// What it wants in the next block.
    pub(super) fn transactions(
        &mut self,
        is_spent: impl Fn(&OutPoint) -> bool,
        coin: impl FnMut() -> Option<Coin>,
    ) -> Vec<Transaction> {
        self.claimant.transactions(self.conduct, is_spent, coin)
    }
}
