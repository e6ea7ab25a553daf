//! Which outputs go together, and what their transaction pays.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::{OutPoint, ScriptBuf, Txid, Weight};
use millrace_channel::phase::on_chain::{HtlcTxClaim, Sweep};
use millrace_channel::tx::htlc::HtlcTxKind;
use millrace_channel::tx::{Claim, ClaimKind, weight};
use millrace_wire::{BlockHeight, ChannelId, FeeratePerKw, Sat};

use super::price::{Bid, Price, WORTH_PERCENT_CONTESTED, WORTH_PERCENT_FREE, feerate_for};
use super::{HtlcTxWanted, Plan, Situation, Spending, SweepInput, SweepWanted, Wanted};
use crate::claims::rates::NEAR_BLOCKS;

/// An HTLC that we take back should be back within so many blocks after its expiry: whoever gave it to us wants to know.
const TAKE_BACK_BLOCKS: u32 = 12;
/// Outputs that nobody contests, in one transaction: a quarter of what is relayed.
const FREE_MAX: usize = 150;
/// HTLCs in one transaction: a rival who spends one of them costs us the bid for so many.
const CONTESTED_MAX: usize = 10;
/// Less than this is not relayed as an output to the wallet (P2TR).
const DUST: Sat = Sat(330);
/// What a coin of the wallet weighs as an input (taproot), and change as an output.
pub(super) const COIN_WEIGHT: Weight = Weight::from_wu(4 * 41 + 66);

/// What may share a transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Class {
    /// Nobody else can take it.
    Free,
    /// The peer may take it too, or soon.
    Contested(Contest),
    /// An HTLC transaction that needs a fee.
    SecondLevel(Contest),
}

/// HTLCs of one channel with one deadline.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Contest {
    channel_id: ChannelId,
    takes_back: bool,
    deadline: BlockHeight,
}

/// One output to be claimed.
#[derive(Clone)]
struct Unit<'a> {
    outpoint: OutPoint,
    channel_id: ChannelId,
    keys_index: u64,
    class: Class,
    value: Sat,
    weight: Weight,
    what: What<'a>,
}

#[derive(Clone, Copy)]
enum What<'a> {
    Sweep(&'a Claim),
    HtlcTx(&'a HtlcTxClaim),
}

/// Outputs that share a transaction.
pub(super) struct Group<'a> {
    class: Class,
    units: Vec<Unit<'a>>,
    /// The transaction of ours that has exactly these inputs.
    existing: Option<Arc<Spending>>,
}

/// Puts the outputs that may be claimed into groups.
pub(super) fn groups<'a>(situation: &Situation<'a>, plan: &mut Plan) -> Vec<Group<'a>> {
    let units = units(situation);
    let (mut groups, rest) = existing_groups(situation, units);
    let mut by_class: BTreeMap<Class, Vec<Unit<'a>>> = BTreeMap::new();
    for unit in rest {
        if unit.class == Class::Free && situation.rates.calm().fee_ceil(unit.weight).0 > unit.value.0 / 2 {
            let reason = format!(
                "its {} are not worth a fee of {} for its input now; it waits for lower fees",
                unit.value,
                situation.rates.calm().fee_ceil(unit.weight)
            );
            plan.waits.push((unit.outpoint, reason));
        } else if unit.goes_alone(situation) {
            groups.push(Group { class: unit.class, units: vec![unit], existing: None });
        } else {
            by_class.entry(unit.class).or_default().push(unit);
        }
    }
    for (class, units) in by_class {
        let max = if class == Class::Free { FREE_MAX } else { CONTESTED_MAX };
        groups.extend(units.chunks(max).map(|units| Group { class, units: units.to_vec(), existing: None }));
    }
    groups
}

fn units<'a>(situation: &Situation<'a>) -> Vec<Unit<'a>> {
    let mut units = Vec::new();
    for (channel_id, claims) in situation.claims {
        let sweeps = claims.sweeps.iter().map(|sweep| Unit::of_sweep(*channel_id, claims.keys_index, sweep));
        let htlc_txs = claims.htlc_txs.iter().map(|claim| Unit::of_htlc_tx(*channel_id, claims.keys_index, claim));
        units.extend(sweeps.chain(htlc_txs).filter(|unit| !situation.spent.contains(&unit.outpoint)));
    }
    units
}

/// Groups that a transaction of ours holds together already, whole; and the units that are in none.
fn existing_groups<'a>(situation: &Situation<'a>, units: Vec<Unit<'a>>) -> (Vec<Group<'a>>, Vec<Unit<'a>>) {
    let mut by_txid: BTreeMap<Txid, Vec<Unit<'a>>> = BTreeMap::new();
    let mut rest = Vec::new();
    for unit in units {
        match situation.spends.get(&unit.outpoint).filter(|spending| spending.is_ours) {
            Some(spending) => by_txid.entry(spending.txid).or_default().push(unit),
            None => rest.push(unit),
        }
    }
    let mut groups = Vec::new();
    for units in by_txid.into_values() {
        let spending = &situation.spends[&units[0].outpoint];
        let class = units[0].class;
        let is_whole = units.len() == spending.claims.len() && units.iter().all(|unit| unit.class == class);
        if is_whole {
            groups.push(Group { class, units, existing: Some(Arc::clone(spending)) });
        } else {
            rest.extend(units);
        }
    }
    (groups, rest)
}

impl<'a> Unit<'a> {
    fn of_sweep(channel_id: ChannelId, keys_index: u64, sweep: &'a Sweep) -> Self {
        let claim = &sweep.claim;
        let contest = |takes_back, deadline| Class::Contested(Contest { channel_id, takes_back, deadline });
        let class = match (&claim.kind, sweep.deadline) {
            (ClaimKind::HtlcTimeout { .. }, deadline) => {
                contest(true, deadline.unwrap_or_else(|| taken_back_by(claim.lock_time)))
            }
            // Never with anything else: the peer may move an HTLC at once, and the rest once its delay is over.
            (ClaimKind::Penalty { is_htlc, .. }, deadline) => contest(*is_htlc, deadline.unwrap_or(BlockHeight(0))),
            (_, Some(deadline)) => contest(false, deadline),
            // The core gives one to each of these; one without has no time to lose either.
            (ClaimKind::HtlcPreimage { .. } | ClaimKind::Anchor, None) => contest(false, BlockHeight(0)),
            (ClaimKind::Delayed { .. } | ClaimKind::ToRemote, None) => Class::Free,
        };
        let value = Sat::from(claim.output.value);
        Self {
            outpoint: claim.outpoint,
            channel_id,
            keys_index,
            class,
            value,
            weight: claim.weight,
            what: What::Sweep(claim),
        }
    }

    fn of_htlc_tx(channel_id: ChannelId, keys_index: u64, claim: &'a HtlcTxClaim) -> Self {
        let htlc_tx = &claim.htlc_tx;
        let takes_back = htlc_tx.kind == HtlcTxKind::Timeout;
        let by_itself = || match htlc_tx.kind {
            HtlcTxKind::Timeout => taken_back_by(htlc_tx.htlc.cltv_expiry.0),
            HtlcTxKind::Success => BlockHeight(htlc_tx.htlc.cltv_expiry.0),
        };
        let deadline = claim.deadline.unwrap_or_else(by_itself);
        Self {
            outpoint: htlc_tx.tx.input[0].previous_output,
            channel_id,
            keys_index,
            class: Class::SecondLevel(Contest { channel_id, takes_back, deadline }),
            value: Sat::from(htlc_tx.prevout.value),
            weight: htlc_tx.input_weight(),
            what: What::HtlcTx(claim),
        }
    }

    /// Whether it must not be held up by others, or not hold up others.
    fn goes_alone(&self, situation: &Situation<'_>) -> bool {
        let contest = match self.class {
            Class::Free => return false,
            Class::Contested(contest) | Class::SecondLevel(contest) => contest,
        };
        let is_near = contest.deadline.0.saturating_sub(situation.tip.0) <= NEAR_BLOCKS;
        let has_rival = situation.spends.get(&self.outpoint).is_some_and(|spending| !spending.is_ours);
        let is_small = self.class.rate(situation).fee_ceil(self.weight) >= self.value;
        is_near || has_rival || is_small
    }
}

/// By when an HTLC with this expiry should have been taken back.
const fn taken_back_by(cltv_expiry: u32) -> BlockHeight {
    BlockHeight(cltv_expiry.saturating_add(TAKE_BACK_BLOCKS))
}

impl Class {
    fn rate(&self, situation: &Situation<'_>) -> FeeratePerKw {
        match self {
            Self::Free => situation.rates.calm(),
            Self::Contested(contest) | Self::SecondLevel(contest) => {
                situation.rates.urgent(contest.deadline, situation.tip)
            }
        }
    }
}

impl Group<'_> {
    /// What is to be done for it.
    pub(super) fn decide(self, situation: &Situation<'_>, plan: &mut Plan) {
        let weight = self.weight();
        let others = self.others(situation);
        let bid = Bid {
            rate: self.class.rate(situation),
            minimum: situation.rates.minimum(),
            weight,
            paid: Sat::ZERO,
            own_weight: weight,
            fee_max: self.fee_max(),
            existing: self.existing.as_ref(),
            others: &others,
            refused: self
                .units
                .iter()
                .filter_map(|unit| situation.refused.get(&unit.outpoint))
                .copied()
                .max()
                .unwrap_or(0),
            worth_percent: if self.class == Class::Free { WORTH_PERCENT_FREE } else { WORTH_PERCENT_CONTESTED },
            bids_all: self.class != Class::Free,
        };
        match (bid.price(), &self.existing) {
            (Price::Keep, Some(existing)) => plan.txs.push(Wanted::Keep(Arc::clone(existing))),
            (Price::Keep, None) => unreachable!("there is nothing to keep"),
            (Price::Pay(fee), _) => plan.txs.push(self.wanted(fee, weight)),
            (Price::TooMuch(fee), _) => {
                let reason =
                    format!("it would take a fee of {fee}, and no more than {} are spent on it", self.fee_max());
                plan.waits.extend(self.units.iter().map(|unit| (unit.outpoint, reason.clone())));
            }
        }
    }

    fn wanted(&self, fee: Sat, weight: Weight) -> Wanted {
        let first = &self.units[0];
        match first.what {
            What::Sweep(_) => Wanted::Sweep(SweepWanted {
                inputs: self.units.iter().filter_map(Unit::sweep_input).collect(),
                fee,
                destination: self.existing.as_ref().and_then(|existing| existing.destination.clone()),
            }),
            What::HtlcTx(_) => Wanted::HtlcTx(HtlcTxWanted {
                channel_id: first.channel_id,
                keys_index: first.keys_index,
                claims: self.units.iter().filter_map(Unit::htlc_tx_claim).collect(),
                feerate: feerate_for(fee, weight, self.fee_max()),
                fee_max: self.fee_max(),
                replaces: self
                    .existing
                    .as_ref()
                    .filter(|existing| existing.is_in_mempool)
                    .map(|existing| existing.txid),
            }),
        }
    }

    /// The others that spend some of the outputs, or tried to.
    fn others(&self, situation: &Situation<'_>) -> Vec<Arc<Spending>> {
        let existing = self.existing.as_ref().map(|existing| existing.txid);
        let mut others: BTreeMap<Txid, &Arc<Spending>> = BTreeMap::new();
        for unit in &self.units {
            if let Some(spending) = situation.spends.get(&unit.outpoint).filter(|other| Some(other.txid) != existing) {
                others.insert(spending.txid, spending);
            }
        }
        others.into_values().cloned().collect()
    }

    /// The most that the transaction weighs; for HTLC transactions with one coin of the wallet's, and change.
    fn weight(&self) -> Weight {
        let inputs = self.units.iter().map(|unit| unit.weight);
        // The script of a P2TR and of a P2WSH output have the same length.
        let script = ScriptBuf::from_bytes(vec![0; 34]);
        match self.class {
            Class::Free | Class::Contested(_) => weight::spend_weight(inputs, [script.as_script()].into_iter()),
            Class::SecondLevel(_) => {
                let inputs: Vec<Weight> = inputs.chain([COIN_WEIGHT]).collect();
                let outputs = vec![script.as_script(); inputs.len()];
                weight::spend_weight(inputs.into_iter(), outputs.into_iter())
            }
        }
    }

    fn value(&self) -> Sat {
        self.units.iter().map(|unit| unit.value).sum()
    }

    /// The most that the transaction may cost.
    fn fee_max(&self) -> Sat {
        match self.class {
            Class::Free => Sat(self.value().0 / 2).min(self.value().saturating_sub(DUST)),
            // What is left is still more than nothing, and the peer does not get it.
            Class::Contested(_) | Class::SecondLevel(_) => self.value().saturating_sub(DUST),
        }
    }
}

impl Unit<'_> {
    fn sweep_input(&self) -> Option<SweepInput> {
        match self.what {
            What::Sweep(claim) => {
                Some(SweepInput { channel_id: self.channel_id, keys_index: self.keys_index, claim: claim.clone() })
            }
            What::HtlcTx(_) => None,
        }
    }

    fn htlc_tx_claim(&self) -> Option<HtlcTxClaim> {
        match self.what {
            What::Sweep(_) => None,
            What::HtlcTx(claim) => Some(claim.clone()),
        }
    }
}
