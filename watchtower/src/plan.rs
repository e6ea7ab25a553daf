//! Which penalties should exist now, and what they pay: a pure function of what is to be taken, of what was made before,
//! of the height and of the feerates.
//!
//! * Only confirmed outputs are spent, so nobody but the holder of the revocation key can spend them before the delay is
//!   over. Until then they go together, of all channels; nobody can pin them.
//! * From [`SPLIT_BLOCKS`] before its deadline on, each goes alone: whoever then spends one holds up no other.
//! * The fee follows the estimates for the blocks that are left. In the last blocks it also rises by equal parts towards
//!   the whole value, whatever the estimates say: it is better spent than the cheater's.
//! * What an output was bid for is never bid for less, and a bid that pays enough stays as it is.
//!
//! The plan forgets nothing: a claim is in it until a block spends its output.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{OutPoint, ScriptBuf, Transaction, TxOut, Txid, Weight};
use millrace_chain::fees::FeeEstimates;
use millrace_channel::tx::weight::spend_weight;
use millrace_wire::{BlockHeight, FeeratePerKw, Sat};

use crate::revoked::unsigned_penalty;
use crate::tower::Claim;

/// From so many blocks before its deadline on, an output is taken by a transaction of its own: two hours.
pub const SPLIT_BLOCKS: u32 = 12;
/// Inputs of one transaction: far below what is relayed (400,000 weight units), and as many transactions as may be replaced
/// at once.
pub const BATCH_INPUTS_MAX: usize = 100;
/// From so many blocks before the deadline on, the estimates have been wrong already: each block adds half of the nearest.
pub(crate) const NEAR_BLOCKS: u32 = 6;
/// With so many blocks left, the estimate for a day will do: most of its transactions confirm long before.
const CALM_BLOCKS: u32 = 36;
/// 1,000 sat/vB: no estimate above is followed. The part of the value that is given in the end is bounded by the value.
const FEERATE_MAX: FeeratePerKw = FeeratePerKw(250_000);
/// 8,000 sat/vB: bitcoind's `sendrawtransaction` takes nothing above 10,000, and a raise that is refused is none.
const FEERATE_CEILING: FeeratePerKw = FeeratePerKw(2_000_000);
/// What a replacement has to pay more than what it replaces, for its own weight (BIP 125).
pub(crate) const INCREMENT: FeeratePerKw = FeeratePerKw::FLOOR;

/// What transactions should pay, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rates {
    /// From so many blocks left on; the fewest first.
    by_left: [(u32, FeeratePerKw); 4],
}

impl Rates {
    /// For 2, 6, 12 and 144 blocks.
    #[must_use]
    pub fn new(rates: [FeeratePerKw; 4]) -> Self {
        let [a, b, c, d] = rates.map(|rate| rate.clamp(FeeratePerKw::FLOOR, FEERATE_MAX));
        Self { by_left: [(2, a), (6, b), (12, c), (CALM_BLOCKS, d)] }
    }

    /// For an output that somebody else may take in so many blocks.
    #[must_use]
    pub fn urgent(&self, left: u32) -> FeeratePerKw {
        let nearest = self.by_left[0].1;
        let found = self.by_left.iter().rfind(|(blocks, _)| *blocks <= left);
        let estimate = found.map_or(nearest, |(_, rate)| *rate);
        let steps = u64::from(NEAR_BLOCKS.saturating_sub(left));
        let rate = u64::from(estimate.0) + u64::from(nearest.0) * steps / 2;
        FeeratePerKw(u32::try_from(rate).unwrap_or(u32::MAX)).min(FEERATE_MAX)
    }
}

impl From<&FeeEstimates> for Rates {
    fn from(estimates: &FeeEstimates) -> Self {
        Self::new([2, 6, 12, 144].map(|blocks| FeeratePerKw(estimates.within(blocks).0)))
    }
}

/// A penalty that was made, and may be in mempools.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bid {
    /// The transaction, signed.
    pub tx: Transaction,
    /// Its fee.
    pub fee: Sat,
    /// The most that it may weigh.
    pub weight: Weight,
}

impl Bid {
    /// The outputs that it takes.
    pub fn inputs(&self) -> impl Iterator<Item = OutPoint> {
        self.tx.input.iter().map(|input| input.previous_output)
    }
}

/// What the plan is worked out from.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The last block.
    pub tip: BlockHeight,
    /// What transactions should pay.
    pub rates: Rates,
    /// What is to be taken.
    pub claims: &'a [Claim],
    /// What was made before, and is not known to be replaced.
    pub bids: &'a BTreeMap<Txid, Bid>,
    /// Since which height each output has been bid for.
    pub since: &'a BTreeMap<OutPoint, BlockHeight>,
}

/// What should exist.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Bids that stay as they are: to be broadcast again.
    pub keep: Vec<Txid>,
    /// Penalties to be made.
    pub make: Vec<Penalty>,
    /// Outputs that are not bid for now, and why.
    pub waits: Vec<(OutPoint, &'static str)>,
}

/// A penalty to be made.
#[derive(Clone, Debug)]
pub struct Penalty {
    /// What it takes, in the order of its inputs.
    pub claims: Vec<Claim>,
    /// What each destination gets.
    pub outputs: Vec<TxOut>,
    /// Its fee.
    pub fee: Sat,
    /// The most that it may weigh.
    pub weight: Weight,
}

/// Works it out.
#[must_use]
pub fn plan(situation: &Situation<'_>) -> Plan {
    let mut planning = Planning { situation, plan: Plan::default(), outbid: BTreeSet::new() };
    for group in planning.groups() {
        planning.decide(group);
    }
    planning.plan
}

/// Claims that one transaction takes.
struct Group<'a> {
    claims: Vec<&'a Claim>,
    /// The bid with exactly these inputs.
    bid: Option<(Txid, &'a Bid)>,
}

struct Planning<'a> {
    situation: &'a Situation<'a>,
    plan: Plan,
    /// Bids that a penalty of this plan has outbid already.
    outbid: BTreeSet<Txid>,
}

impl<'a> Planning<'a> {
    fn left(&self, claim: &Claim) -> u32 {
        claim.deadline.0.saturating_sub(self.situation.tip.0)
    }

    /// Every claim in exactly one group. Those that go alone come first, the most valuable before others: it can best pay
    /// for what it replaces.
    fn groups(&mut self) -> Vec<Group<'a>> {
        let situation = self.situation;
        let open: BTreeMap<OutPoint, &Claim> = situation.claims.iter().map(|claim| (claim.outpoint, claim)).collect();
        let mut grouped: BTreeSet<OutPoint> = BTreeSet::new();
        let mut groups = Vec::new();
        for (txid, bid) in newest_first(situation.bids) {
            let claims: Vec<&Claim> = bid.inputs().filter_map(|outpoint| open.get(&outpoint).copied()).collect();
            let is_whole = claims.len() == bid.tx.input.len();
            let may_stay = claims.len() == 1 || claims.iter().all(|claim| self.left(claim) > SPLIT_BLOCKS);
            if is_whole && may_stay && claims.iter().all(|claim| !grouped.contains(&claim.outpoint)) {
                grouped.extend(claims.iter().map(|claim| claim.outpoint));
                groups.push(Group { claims, bid: Some((*txid, bid)) });
            }
        }
        let rest = situation.claims.iter().filter(|claim| !grouped.contains(&claim.outpoint));
        let (mut near, mut far): (Vec<&Claim>, Vec<&Claim>) = rest.partition(|claim| self.left(claim) <= SPLIT_BLOCKS);
        near.sort_by_key(|claim| std::cmp::Reverse((claim.value, claim.outpoint)));
        far.sort_by_key(|claim| (claim.deadline, claim.outpoint));
        groups.extend(near.into_iter().map(|claim| Group { claims: vec![claim], bid: None }));
        far.retain(|claim| self.is_worth_it(claim));
        groups.extend(far.chunks(BATCH_INPUTS_MAX).map(|claims| Group { claims: claims.to_vec(), bid: None }));
        groups
    }

    /// Far from its deadline an output waits while fees would eat half of it.
    fn is_worth_it(&mut self, claim: &Claim) -> bool {
        let alone = self.situation.rates.urgent(self.left(claim)).fee_ceil(weight_of(&[claim]));
        let dust = Sat::from(claim.sweep_script.minimal_non_dust());
        let is_worth_it = claim.value.saturating_sub(dust).0 / 2 >= alone.0;
        if !is_worth_it {
            self.plan.waits.push((claim.outpoint, "fees would eat half of it"));
        }
        is_worth_it
    }

    fn decide(&mut self, group: Group<'a>) {
        let weight = weight_of(&group.claims);
        let target = self.target(&group, weight);
        if let Some((txid, bid)) = group.bid
            && !self.is_raise(&group, bid.fee, target)
        {
            self.plan.keep.push(txid);
            return;
        }
        let least = self.least_to_replace(&group, weight);
        let most = most(&group.claims).min(FEERATE_CEILING.fee_floor(weight));
        let fee = target.max(least).min(most);
        let penalty = if fee < least || fee < FeeratePerKw::FLOOR.fee_ceil(weight) {
            None
        } else {
            outputs(&group.claims, fee).map(|outputs| Penalty {
                claims: group.claims.iter().copied().cloned().collect(),
                outputs,
                fee,
                weight,
            })
        };
        match (penalty, group.bid) {
            (Some(penalty), _) => {
                let rivals: Vec<Txid> = self.rivals(&group.claims).map(|(txid, _)| *txid).collect();
                self.outbid.extend(rivals);
                self.plan.make.push(penalty);
            }
            (None, Some((txid, _))) => self.plan.keep.push(txid),
            (None, None) => self.wait_or_keep_batch(&group),
        }
    }

    /// A claim that cannot pay alone for what it would replace stays where it is.
    fn wait_or_keep_batch(&mut self, group: &Group<'_>) {
        let rivals: Vec<Txid> = self.rivals(&group.claims).map(|(txid, _)| *txid).collect();
        for txid in rivals {
            if !self.plan.keep.contains(&txid) && !self.outbid.contains(&txid) {
                self.plan.keep.push(txid);
            }
        }
        let waits = group.claims.iter().map(|claim| (claim.outpoint, "it is worth less than taking it costs"));
        self.plan.waits.extend(waits);
    }

    /// What the claims should pay now.
    fn target(&self, group: &Group<'_>, weight: Weight) -> Sat {
        let left = group.claims.iter().map(|claim| self.left(claim)).min().unwrap_or(0);
        let by_rate = self.situation.rates.urgent(left).fee_ceil(weight);
        let by_value: Sat = group.claims.iter().map(|claim| self.part_of_value(claim)).sum();
        by_rate.max(by_value)
    }

    /// Equal steps towards the whole value, from the first bid or the last [`SPLIT_BLOCKS`] on.
    fn part_of_value(&self, claim: &Claim) -> Sat {
        let tip = self.situation.tip.0;
        let first_bid = self.situation.since.get(&claim.outpoint).map_or(tip, |height| height.0);
        let begin = claim.deadline.0.saturating_sub(SPLIT_BLOCKS).max(first_bid);
        // After its deadline, the same again in the shortest time.
        let whole = claim.deadline.0.saturating_sub(begin).max(NEAR_BLOCKS);
        let gone = tip.saturating_sub(begin).min(whole);
        let part = u128::from(claim.value.0) * u128::from(gone) / u128::from(whole);
        Sat(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// Whether it is enough more to be worth a replacement: a quarter, and close to the deadline anything that is relayed.
    fn is_raise(&self, group: &Group<'_>, fee: Sat, target: Sat) -> bool {
        let left = group.claims.iter().map(|claim| self.left(claim)).min().unwrap_or(0);
        let step = if left > NEAR_BLOCKS { Sat(fee.0 / 4) } else { Sat::ZERO };
        let increment = INCREMENT.fee_ceil(weight_of(&group.claims));
        target.0 >= fee.0.saturating_add(step.max(increment).0)
    }

    /// Bids with an input of these claims that this plan has not outbid.
    fn rivals(&self, claims: &[&Claim]) -> impl Iterator<Item = (&'a Txid, &'a Bid)> {
        let wanted: BTreeSet<OutPoint> = claims.iter().map(|claim| claim.outpoint).collect();
        let outbid = self.outbid.clone();
        let bids = self.situation.bids.iter().filter(move |(txid, _)| !outbid.contains(*txid));
        bids.filter(move |(_, bid)| bid.inputs().any(|input| wanted.contains(&input)))
    }

    /// BIP 125: more than all that it replaces together, and a higher feerate than each.
    fn least_to_replace(&self, group: &Group<'_>, weight: Weight) -> Sat {
        let (mut sum, mut by_rate) = (0_u64, 0_u64);
        for (_, bid) in self.rivals(&group.claims) {
            sum = sum.saturating_add(bid.fee.0);
            let scaled = u128::from(bid.fee.0) * u128::from(weight.to_wu()) / u128::from(bid.weight.to_wu().max(1));
            by_rate = by_rate.max(u64::try_from(scaled).unwrap_or(u64::MAX).saturating_add(1));
        }
        if sum == 0 {
            return Sat::ZERO;
        }
        Sat(sum.saturating_add(INCREMENT.fee_ceil(weight).0).max(by_rate))
    }
}

/// The one that pays most is the one that replaced the others.
fn newest_first(bids: &BTreeMap<Txid, Bid>) -> Vec<(&Txid, &Bid)> {
    let mut sorted: Vec<_> = bids.iter().collect();
    sorted.sort_by_key(|(txid, bid)| {
        let rate = u128::from(bid.fee.0) * 1_000_000 / u128::from(bid.weight.to_wu().max(1));
        std::cmp::Reverse((rate, **txid))
    });
    sorted
}

/// The destinations of these claims, each once.
fn destinations(claims: &[&Claim]) -> BTreeMap<ScriptBuf, Sat> {
    let mut destinations: BTreeMap<ScriptBuf, Sat> = BTreeMap::new();
    for claim in claims {
        let sum = destinations.entry(claim.sweep_script.clone()).or_default();
        *sum = Sat(sum.0.saturating_add(claim.value.0));
    }
    destinations
}

/// The most that a transaction which takes these weighs.
fn weight_of(claims: &[&Claim]) -> Weight {
    let destinations = destinations(claims);
    let inputs = claims.iter().map(|claim| claim.revoked.input_weight());
    spend_weight(inputs, destinations.keys().map(ScriptBuf::as_script).collect::<Vec<_>>().into_iter())
}

/// The most that they can pay.
fn most(claims: &[&Claim]) -> Sat {
    let each = destinations(claims)
        .into_iter()
        .map(|(script, value)| value.saturating_sub(Sat::from(script.minimal_non_dust())));
    each.sum()
}

/// What each destination gets after its part of the fee, by value. `None` if one of them would be dust.
fn outputs(claims: &[&Claim], fee: Sat) -> Option<Vec<TxOut>> {
    let destinations = destinations(claims);
    let whole: u128 = destinations.values().map(|value| u128::from(value.0)).sum();
    let mut left_to_pay = fee;
    let mut outputs = Vec::with_capacity(destinations.len());
    for (index, (script, value)) in destinations.iter().enumerate() {
        let is_last = index + 1 == destinations.len();
        let part = if is_last {
            left_to_pay
        } else {
            Sat(u64::try_from(u128::from(fee.0) * u128::from(value.0) / whole).ok()?)
        };
        left_to_pay = left_to_pay.checked_sub(part)?;
        let rest = value.checked_sub(part).filter(|rest| *rest >= Sat::from(script.minimal_non_dust()))?;
        outputs.push(TxOut { value: rest.to_amount(), script_pubkey: script.clone() });
    }
    Some(outputs)
}

impl Penalty {
    /// Two that take the same together, at the same feerate. `None` for a single output, or if one half is worth too little.
    #[must_use]
    pub fn halves(&self) -> Option<[Self; 2]> {
        let (one, other) = self.claims.split_at(self.claims.len() / 2);
        Some([self.only(one)?, self.only(other)?])
    }

    /// Another that takes these alone, at the same feerate. `None` for nothing, or if it is worth too little.
    #[must_use]
    pub fn only(&self, claims: &[Claim]) -> Option<Self> {
        if claims.is_empty() {
            return None;
        }
        let borrowed: Vec<&Claim> = claims.iter().collect();
        let weight = weight_of(&borrowed);
        let scaled = u128::from(self.fee.0) * u128::from(weight.to_wu()) / u128::from(self.weight.to_wu().max(1));
        let fee = Sat(u64::try_from(scaled).ok()?).max(FeeratePerKw::FLOOR.fee_ceil(weight));
        Some(Self { claims: claims.to_vec(), outputs: outputs(&borrowed, fee)?, fee, weight })
    }

    /// The transaction, signed.
    #[must_use]
    pub fn sign(&self) -> Bid {
        let inputs = self.claims.iter().map(|claim| claim.outpoint);
        let mut tx = unsigned_penalty(inputs, self.outputs.clone());
        let signed = self.claims.iter().enumerate();
        let witnesses: Vec<_> = signed.map(|(input, claim)| claim.revoked.witness(&tx, input, claim.value)).collect();
        for (input, witness) in tx.input.iter_mut().zip(witnesses) {
            input.witness = witness;
        }
        Bid { tx, fee: self.fee, weight: self.weight }
    }
}

#[cfg(test)]
mod tests;
