//! Who has got what of the cheaters' commitments, by the blocks alone: outputs are told by BOLT 3's scripts, spends by where they
//! pay to. It knows nothing of how the tower does it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};

use super::cheat::Accused;
use super::pair::DELAY;
use crate::matrix::chain::Made;

/// An output that is the tower's to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stake {
    sat: u64,
    /// The first block that may hold the cheater's spend of it.
    deadline: u32,
    end: Option<End>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum End {
    /// The block that holds the tower's spend.
    Taken(u32),
    /// Spent by somebody else, or to somewhere else.
    Lost,
}

/// The judge.
pub(super) struct Judge {
    accused: Vec<Accused>,
    by_commitment: HashMap<Txid, usize>,
    sweeps: HashSet<ScriptBuf>,
    breached: usize,
    /// HTLC outputs of commitments in the chain, while they are there: whose, and how much.
    htlcs: HashMap<OutPoint, (usize, u64)>,
    stakes: HashMap<OutPoint, Stake>,
    of: HashMap<OutPoint, usize>,
    fees_sat: u64,
    taken_sat: u64,
}

/// What it came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sums {
    pub(super) breached: usize,
    /// Outputs that were the tower's to take, and what they held.
    pub(super) outputs: usize,
    pub(super) outputs_sat: u64,
    pub(super) taken: usize,
    /// What arrived.
    pub(super) taken_sat: u64,
    pub(super) fees_sat: u64,
    /// Outputs that the tower did not take in time, and what they held.
    pub(super) lost: usize,
    pub(super) lost_sat: u64,
    /// Those of them that somebody else has.
    pub(super) stolen: usize,
    /// HTLC outputs that the cheaters left where they are.
    pub(super) untouched: usize,
    /// The last block in which something was taken.
    pub(super) last_taken: Option<u32>,
}

/// The transactions of a block that concern a channel.
pub(super) type OfChannel = HashMap<usize, Vec<(u32, Arc<Transaction>)>>;

impl Judge {
    pub(super) fn new(accused: Vec<Accused>) -> Self {
        let by_commitment = (0..).zip(&accused).map(|(index, one)| (one.commitment, index)).collect();
        let sweeps = accused.iter().map(|one| one.sweep.clone()).collect();
        Self {
            accused,
            by_commitment,
            sweeps,
            breached: 0,
            htlcs: HashMap::new(),
            stakes: HashMap::new(),
            of: HashMap::new(),
            fees_sat: 0,
            taken_sat: 0,
        }
    }

    /// Looks through a block.
    pub(super) fn on_block(&mut self, made: &Made) -> OfChannel {
        let mut concerned: OfChannel = HashMap::new();
        for (index, tx) in &made.txs {
            let txid = tx.compute_txid();
            let mut channels: HashSet<usize> = HashSet::new();
            if let Some(channel) = self.by_commitment.get(&txid).copied() {
                self.on_breach(channel, made.height);
                channels.insert(channel);
            }
            let spent: Vec<usize> =
                tx.input.iter().filter_map(|input| self.on_spend(&input.previous_output, tx, made.height)).collect();
            if !spent.is_empty() && self.is_the_towers(tx) {
                self.fees_sat += made.fees.get(&txid).copied().unwrap_or_default();
                self.taken_sat += tx.output.iter().map(|output| output.value.to_sat()).sum::<u64>();
            }
            channels.extend(spent);
            for channel in channels {
                concerned.entry(channel).or_default().push((*index, Arc::clone(tx)));
            }
        }
        concerned
    }

    fn on_breach(&mut self, channel: usize, height: u32) {
        self.breached += 1;
        let Accused { main, htlcs, .. } = self.accused[channel].clone();
        if let Some((outpoint, sat)) = main {
            self.stake(channel, outpoint, sat, height);
        }
        self.htlcs.extend(htlcs.into_iter().map(|(outpoint, sat)| (outpoint, (channel, sat))));
    }

    fn stake(&mut self, channel: usize, outpoint: OutPoint, sat: u64, height: u32) {
        self.of.insert(outpoint, channel);
        self.stakes.insert(outpoint, Stake { sat, deadline: height + u32::from(DELAY), end: None });
    }

    /// Whose output it is that is spent, if it is anybody's.
    fn on_spend(&mut self, outpoint: &OutPoint, tx: &Transaction, height: u32) -> Option<usize> {
        if let Some((channel, _)) = self.htlcs.remove(outpoint) {
            self.on_second_level(channel, tx, height);
            return Some(channel);
        }
        let channel = *self.of.get(outpoint)?;
        let is_right = self.is_the_towers(tx)
            && tx.output.iter().any(|output| output.script_pubkey == self.accused[channel].sweep);
        let stake = self.stakes.get_mut(outpoint)?;
        stake.end = Some(if is_right && height < stake.deadline { End::Taken(height) } else { End::Lost });
        Some(channel)
    }

    /// A transaction that spends an HTLC: whatever of it carries the script is the tower's to take, wherever it stands.
    fn on_second_level(&mut self, channel: usize, tx: &Transaction, height: u32) {
        let txid = tx.compute_txid();
        let delayed = self.accused[channel].delayed.clone();
        for (vout, output) in (0..).zip(&tx.output).filter(|(_, output)| output.script_pubkey == delayed) {
            self.stake(channel, OutPoint { txid, vout }, output.value.to_sat(), height);
        }
    }

    /// Whether it pays to where the tower may pay to, and nowhere else.
    pub(super) fn is_the_towers(&self, tx: &Transaction) -> bool {
        tx.output.iter().all(|output| self.sweeps.contains(&output.script_pubkey))
    }

    /// Whether an output is spent, by a cheater's view.
    pub(super) fn is_spent(&self, outpoint: &OutPoint) -> bool {
        let is_taken = self.stakes.get(outpoint).is_some_and(|stake| stake.end.is_some());
        // An HTLC that is not there any more, or not yet.
        let is_htlc = |channel: &usize| self.accused[*channel].htlcs.iter().any(|(htlc, _)| htlc == outpoint);
        let is_gone = self.by_commitment.get(&outpoint.txid).is_some_and(is_htlc) && !self.htlcs.contains_key(outpoint);
        is_taken || is_gone
    }

    /// What is the tower's to take, and not spent in a block.
    pub(super) fn open(&self) -> impl Iterator<Item = &OutPoint> {
        self.stakes.iter().filter(|(_, stake)| stake.end.is_none()).map(|(outpoint, _)| outpoint)
    }

    /// All of it, after the last block. What is still there was not taken either.
    pub(super) fn sums(&self) -> Sums {
        let is_taken = |stake: &&Stake| matches!(stake.end, Some(End::Taken(_)));
        let sat = |stakes: Vec<&Stake>| stakes.iter().map(|stake| stake.sat).sum();
        let (taken, lost): (Vec<&Stake>, Vec<&Stake>) = self.stakes.values().partition(is_taken);
        let heights = taken.iter().filter_map(|stake| match stake.end {
            Some(End::Taken(height)) => Some(height),
            Some(End::Lost) | None => None,
        });
        Sums {
            breached: self.breached,
            outputs: self.stakes.len(),
            outputs_sat: self.stakes.values().map(|stake| stake.sat).sum(),
            last_taken: heights.max(),
            taken: taken.len(),
            taken_sat: self.taken_sat,
            fees_sat: self.fees_sat,
            lost: lost.len(),
            stolen: lost.iter().filter(|stake| stake.end.is_some()).count(),
            lost_sat: sat(lost),
            untouched: self.htlcs.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::absolute::LockTime;
    use bitcoin::hashes::Hash;
    use bitcoin::transaction::Version;
    use bitcoin::{Amount, TxIn, TxOut};

    const BREACH: u32 = 100;

    fn script(seed: u8) -> ScriptBuf {
        ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([seed; 20]))
    }

    fn tx(spends: &[OutPoint], pays: &[(u64, &ScriptBuf)]) -> Transaction {
        let input = spends.iter().map(|outpoint| TxIn { previous_output: *outpoint, ..TxIn::default() }).collect();
        let output = pays
            .iter()
            .map(|(sat, script)| TxOut { value: Amount::from_sat(*sat), script_pubkey: ScriptBuf::clone(script) });
        Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input, output: output.collect() }
    }

    /// One channel, whose commitment has a delayed output of 700 sat and an HTLC of 300, in a block.
    fn breached() -> (Judge, OutPoint, OutPoint) {
        let commitment = tx(&[OutPoint::null()], &[(700, &script(1)), (300, &script(2))]);
        let txid = commitment.compute_txid();
        let (main, htlc) = (OutPoint { txid, vout: 0 }, OutPoint { txid, vout: 1 });
        let accused = Accused {
            commitment: txid,
            delayed: script(1),
            sweep: script(9),
            main: Some((main, 700)),
            htlcs: vec![(htlc, 300)],
        };
        let mut judge = Judge::new(vec![accused]);
        assert_eq!(block(&mut judge, BREACH, commitment), 1);
        (judge, main, htlc)
    }

    /// Whether the block concerned the channel.
    fn block(judge: &mut Judge, height: u32, tx: Transaction) -> usize {
        let fees = HashMap::from([(tx.compute_txid(), 10)]);
        judge.on_block(&Made { height, txs: vec![(1, Arc::new(tx))], fees }).len()
    }

    fn lost_and_taken(judge: &Judge) -> (usize, usize) {
        let sums = judge.sums();
        assert_eq!(sums.lost + sums.taken, sums.outputs);
        (sums.lost, sums.taken)
    }

    #[test]
    fn output_that_the_tower_brings_home_before_the_deadline_is_taken() {
        let (mut judge, main, htlc) = breached();
        assert!(!judge.is_spent(&main) && !judge.is_spent(&htlc));
        let last = BREACH + u32::from(DELAY) - 1;
        block(&mut judge, last, tx(&[main], &[(690, &script(9))]));
        assert_eq!(lost_and_taken(&judge), (0, 1));
        let sums = judge.sums();
        assert_eq!((sums.taken_sat, sums.fees_sat, sums.last_taken, sums.untouched), (690, 10, Some(last), 1));
    }

    #[test]
    fn output_that_goes_elsewhere_or_comes_late_or_stays_is_lost() {
        let elsewhere: [&[(u64, &ScriptBuf)]; 3] = [&[(690, &script(8))], &[(300, &script(9)), (390, &script(8))], &[]];
        for pays in elsewhere {
            let (mut judge, main, _) = breached();
            block(&mut judge, BREACH + 1, tx(&[main], pays));
            assert_eq!((lost_and_taken(&judge), judge.sums().stolen), ((1, 0), 1), "{pays:?}");
        }
        let (mut judge, main, _) = breached();
        assert_eq!((lost_and_taken(&judge), judge.sums().stolen), ((1, 0), 0));
        block(&mut judge, BREACH + u32::from(DELAY), tx(&[main], &[(690, &script(9))]));
        assert_eq!(lost_and_taken(&judge), (1, 0));
    }

    #[test]
    fn second_level_output_is_found_wherever_it_stands() {
        let (mut judge, _, htlc) = breached();
        let second = tx(&[OutPoint::null(), htlc], &[(5, &script(7)), (6, &script(7)), (290, &script(1))]);
        let outpoint = OutPoint { txid: second.compute_txid(), vout: 2 };
        assert_eq!(block(&mut judge, BREACH + 3, second), 1);
        assert!(judge.is_spent(&htlc) && judge.open().any(|open| *open == outpoint));
        block(&mut judge, BREACH + 2 + u32::from(DELAY), tx(&[outpoint], &[(280, &script(9))]));
        assert_eq!(lost_and_taken(&judge), (1, 1), "its own deadline is later than that of the commitment's output");
    }
}
