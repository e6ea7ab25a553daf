//! What a peer can do on chain with a commitment: its own channel as it was at some moment, told of the blocks, and the
//! transactions that it would send.

use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::transaction::Version;
use bitcoin::{OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Witness};
use millrace_channel::channel::{Channel, Policy};
use millrace_channel::effect::{Effect, Effects, Purpose};
use millrace_channel::input::{ChainEvent, Command};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::ledger::htlc::Status;
use millrace_channel::phase::on_chain::{Claims, HtlcTxClaim};
use millrace_channel::side::{Both, Side};
use millrace_channel::tx::Claim;
use millrace_channel::tx::claim::sweep_tx;
use millrace_wire::{BlockHeight, CommitmentNumber, FeeratePerKw, HtlcId, Preimage};

use super::cell::Conduct;
use crate::network::Error;

/// What a peer's sweeps pay.
const FEERATE: FeeratePerKw = FeeratePerKw(1_000);

/// A peer's channel after the fact.
pub(crate) struct Claimant {
    channel: Channel,
    keys: ChannelKeys,
    fx: Effects,
    claims: Option<Claims>,
    /// HTLC transactions that pay their own fee.
    complete: Vec<Transaction>,
    commitment: Option<Transaction>,
    destination: ScriptBuf,
}

/// A coin that anyone can spend, for what an aggregated transaction has besides HTLCs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Coin {
    pub(crate) outpoint: OutPoint,
    pub(crate) sat: u64,
}

/// What such a coin pays to.
pub(crate) fn anyones_script() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51])
}

impl Claimant {
    /// As of a snapshot.
    pub(crate) fn of(snapshot: &[u8], keys: &ChannelKeys) -> Result<Self, Error> {
        let channel = Channel::restore(snapshot, Policy::default(), |_| keys.clone());
        let channel = channel.map_err(|error| Error::Wrong(format!("a peer's own snapshot: {error}")))?;
        let destination = ScriptBuf::new_p2wpkh(&bitcoin::hashes::Hash::hash(&keys.basepoints().payment.serialize()));
        Ok(Self {
            channel,
            keys: keys.clone(),
            fx: Effects::default(),
            claims: None,
            complete: Vec::new(),
            commitment: None,
            destination,
        })
    }

    /// The commitment that it held, complete.
    pub(crate) fn commitment(&mut self) -> Result<Transaction, Error> {
        let closed = self.channel.on_command(Command::ForceClose { reason: "the matrix".to_owned() }, &mut self.fx);
        closed.map_err(|refusal| Error::Wrong(format!("a peer cannot close: {refusal}")))?;
        self.drain();
        self.commitment.clone().ok_or_else(|| Error::Wrong("a peer that closes has no commitment".to_owned()))
    }

    /// The numbers of the newest commitments that it knows.
    pub(crate) const fn commitment_numbers(&self) -> Both<CommitmentNumber> {
        self.channel.commitment_numbers()
    }

    /// It learns a preimage of what the daemon offered, if it knows the HTLC.
    pub(crate) fn learn(&mut self, id: HtlcId, preimage: Preimage) -> Result<bool, Error> {
        // What it has removed already it knows, if it can be known.
        if self.channel.htlc(Side::Remote, id).is_none_or(|htlc| !matches!(htlc.status, Status::Adding(_))) {
            return Ok(false);
        }
        let command = Command::Fulfill { id, preimage, attribution: None, is_durable: false };
        let learned = self.channel.on_command(command, &mut self.fx);
        learned.map_err(|refusal| Error::Wrong(format!("a peer cannot use its preimage: {refusal}")))?;
        self.drain();
        Ok(true)
    }

    /// A block.
    pub(crate) fn on_block(&mut self, height: u32, txs: &[(u32, Arc<Transaction>)]) {
        let block = bitcoin::hashes::Hash::all_zeros();
        self.channel.on_chain(ChainEvent::Tip { height: BlockHeight(height), block }, &mut self.fx);
        for (index, tx) in txs {
            let event = ChainEvent::Confirmed { tx: Arc::clone(tx), index: *index };
            self.channel.on_chain(event, &mut self.fx);
        }
        self.drain();
    }

    fn drain(&mut self) {
        for effect in std::mem::take(&mut self.fx).list {
            match effect {
                Effect::Broadcast(broadcast) => match broadcast.purpose {
                    Purpose::Commitment => self.commitment = Some(broadcast.tx),
                    Purpose::Htlc => self.complete.push(broadcast.tx),
                    Purpose::Funding | Purpose::MutualClose => {}
                },
                Effect::Claim(claims) => self.claims = Some(*claims),
                Effect::Journal(_) | Effect::Send(_) | Effect::Disconnect(_) | Effect::Watch(_) | Effect::Fact(_) => {}
            }
        }
    }

    /// The transactions that the next block may hold, each of its outputs once; `is_spent` tells those that are gone,
    /// `coin` brings coins while there are any.
    pub(crate) fn transactions(
        &mut self,
        conduct: Conduct,
        is_spent: impl Fn(&OutPoint) -> bool,
        coin: impl FnMut() -> Option<Coin>,
    ) -> Vec<Transaction> {
        let mut complete = std::mem::take(&mut self.complete);
        // They are broadcast again and again.
        complete.sort_by_key(Transaction::compute_txid);
        complete.dedup();
        let Some(claims) = self.claims.clone() else { return Vec::new() };
        let sweeps: Vec<Claim> = claims.sweeps.into_iter().map(|sweep| sweep.claim).collect();
        let sweeps: Vec<Claim> = sweeps.into_iter().filter(|claim| !is_spent(&claim.outpoint)).collect();
        let spends = |claim: &HtlcTxClaim| claim.htlc_tx.tx.input[0].previous_output;
        let htlcs: Vec<HtlcTxClaim> = claims.htlc_txs.into_iter().filter(|claim| !is_spent(&spends(claim))).collect();
        let mut txs: Vec<Transaction> =
            complete.into_iter().filter(|tx| tx.input.iter().all(|input| !is_spent(&input.previous_output))).collect();
        match conduct {
            Conduct::Silent => txs.clear(),
            Conduct::Claims => {
                let alone = |claim: &Claim| self.sweep(std::slice::from_ref(claim));
                txs.extend(sweeps.iter().filter_map(alone));
                txs.extend(htlcs.iter().map(|claim| self.htlc_tx(&[claim], None)));
            }
            Conduct::Aggregates => {
                txs.extend(self.sweep(&reversed(&sweeps)));
                txs.extend(self.aggregated(&htlcs, coin));
            }
        }
        txs
    }

    fn sweep(&self, claims: &[Claim]) -> Option<Transaction> {
        sweep_tx(claims, self.destination.clone(), FEERATE, &self.keys).ok()
    }

    /// As much in one as will go: what the daemon has signed covers the lock time.
    fn aggregated(&self, htlcs: &[HtlcTxClaim], mut coin: impl FnMut() -> Option<Coin>) -> Vec<Transaction> {
        let mut lock_times: Vec<LockTime> = htlcs.iter().map(|claim| claim.htlc_tx.tx.lock_time).collect();
        lock_times.sort_by_key(|lock_time| lock_time.to_consensus_u32());
        lock_times.dedup();
        let of = |lock_time: LockTime| {
            let group: Vec<&HtlcTxClaim> =
                htlcs.iter().rev().filter(|claim| claim.htlc_tx.tx.lock_time == lock_time).collect();
            self.htlc_tx(&group, coin())
        };
        lock_times.into_iter().map(of).collect()
    }

    /// HTLC transactions in one, behind the coin and its change if there is one: each input keeps the index of its
    /// output, which is another one than BOLT 3's.
    fn htlc_tx(&self, claims: &[&HtlcTxClaim], coin: Option<Coin>) -> Transaction {
        let lock_time = claims.first().map_or(LockTime::ZERO, |claim| claim.htlc_tx.tx.lock_time);
        let mut tx = Transaction { version: Version::TWO, lock_time, input: Vec::new(), output: Vec::new() };
        if let Some(coin) = coin {
            let witness = Witness::from_slice(&[anyones_script().as_bytes()]);
            let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
            tx.input.push(TxIn { previous_output: coin.outpoint, sequence, witness, ..TxIn::default() });
            let value = bitcoin::Amount::from_sat(coin.sat / 2);
            tx.output.push(TxOut { value, script_pubkey: self.destination.clone() });
        }
        let first = tx.input.len();
        for claim in claims {
            tx.input.push(claim.htlc_tx.tx.input[0].clone());
            tx.output.push(claim.htlc_tx.tx.output[0].clone());
        }
        for (index, claim) in (first..).zip(claims) {
            tx.input[index].witness = claim.witness(&tx, index, &self.keys);
        }
        tx
    }
}

fn reversed(claims: &[Claim]) -> Vec<Claim> {
    claims.iter().rev().cloned().collect()
}
