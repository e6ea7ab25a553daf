#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, consensus};
use millrace_channel::terms::CommitmentFormat;

use super::*;
use crate::record::Handle;
use crate::revoked::Revoked;
use crate::samples::{Sample, wallet};
use crate::tower::Tower;
use millrace_wire::CommitmentNumber;
use secp256k1::{SECP256K1, SecretKey};

const TIP: u32 = 1_000;

fn rates(nearest: u32) -> Rates {
    Rates::new([nearest, nearest / 2, nearest / 4, nearest / 8].map(FeeratePerKw))
}

/// An output of channel `number` that the cheater may spend in `left` blocks.
fn claim(number: u32, value: u64, left: u32) -> Claim {
    let sample = Sample::new(number, CommitmentFormat::Anchors);
    let revoked = Revoked::of(&sample.registration(), &sample.secret(0)).unwrap();
    let mut txid = [0xcc; 32];
    txid[..4].copy_from_slice(&number.to_be_bytes());
    Claim {
        handle: Handle(number),
        outpoint: OutPoint { txid: Txid::from_byte_array(txid), vout: 0 },
        value: Sat(value),
        deadline: BlockHeight(TIP + left),
        sweep_script: wallet(7),
        revoked: Arc::new(revoked),
    }
}

/// What is known at one block, and what was made before.
struct Scene {
    tip: u32,
    rates: Rates,
    claims: Vec<Claim>,
    bids: BTreeMap<Txid, Bid>,
    since: BTreeMap<OutPoint, BlockHeight>,
}

impl Scene {
    fn new(claims: Vec<Claim>) -> Self {
        Self { tip: TIP, rates: rates(8_000), claims, bids: BTreeMap::new(), since: BTreeMap::new() }
    }

    fn plan(&self) -> Plan {
        plan(&Situation {
            tip: BlockHeight(self.tip),
            rates: self.rates,
            claims: &self.claims,
            bids: &self.bids,
            since: &self.since,
        })
    }

    /// Makes what is planned, which must be valid, and counts what it replaces as gone. Returns what was made.
    fn act(&mut self) -> Vec<Bid> {
        let plan = self.plan();
        let made: Vec<Bid> = plan.make.iter().map(Penalty::sign).collect();
        for bid in &made {
            self.check(bid);
            let taken: BTreeSet<OutPoint> = bid.inputs().collect();
            self.bids.retain(|_, old| !old.inputs().any(|input| taken.contains(&input)));
        }
        for bid in &made {
            for input in bid.inputs() {
                self.since.entry(input).or_insert(BlockHeight(self.tip));
            }
            self.bids.insert(bid.tx.compute_txid(), bid.clone());
        }
        made
    }

    /// The real interpreter runs every input; the fee is what it says; the weight is not more than it was taken for; it
    /// replaces what it conflicts with by BIP 125.
    fn check(&self, bid: &Bid) {
        let bytes = consensus::serialize(&bid.tx);
        let mut value = 0;
        for (index, input) in bid.inputs().enumerate() {
            let claim = self.claims.iter().find(|claim| claim.outpoint == input).unwrap();
            let script = claim.revoked.script_pubkey();
            bitcoinconsensus::verify(script.as_bytes(), claim.value.0, &bytes, index).unwrap();
            value += claim.value.0;
        }
        let paid: u64 = bid.tx.output.iter().map(|output| output.value.to_sat()).sum();
        assert_eq!(value - paid, bid.fee.0);
        assert!(bid.tx.weight() <= bid.weight && bid.weight.to_wu() < bid.tx.weight().to_wu() + 4 * 100);
        assert!(bid.tx.output.iter().all(|output| output.value >= output.script_pubkey.minimal_non_dust()));
        let replaced: Vec<&Bid> =
            self.bids.values().filter(|old| old.inputs().any(|i| bid.inputs().any(|j| i == j))).collect();
        if !replaced.is_empty() {
            let sum: u64 = replaced.iter().map(|old| old.fee.0).sum();
            assert!(bid.fee.0 >= sum + bid.tx.weight().to_wu() / 4, "{} replaces {sum}", bid.fee);
        }
    }
}

#[test]
fn far_from_the_deadline_outputs_of_many_channels_go_together() {
    let mut scene = Scene::new((0..250).map(|number| claim(number, 50_000, 144)).collect());
    let made = scene.act();
    let inputs: Vec<usize> = made.iter().map(|bid| bid.tx.input.len()).collect();
    assert_eq!(inputs, [100, 100, 50]);
    assert!(made.iter().all(|bid| bid.tx.output.len() == 1));
    assert_eq!(made[0].fee, FeeratePerKw(1_000).fee_ceil(made[0].weight));
}

#[test]
fn each_channel_gets_its_own_destination_and_bears_its_part_of_the_fee() {
    let mut claims: Vec<Claim> = (0..3).map(|number| claim(number, 50_000 * (1 + u64::from(number)), 144)).collect();
    claims[1].sweep_script = wallet(8);
    let mut scene = Scene::new(claims);
    let made = scene.act();
    let (first, second) = (wallet(7), wallet(8));
    let got = |script: &ScriptBuf| {
        let outputs = made[0].tx.output.iter().filter(|output| output.script_pubkey == *script);
        outputs.map(|output| output.value.to_sat()).sum::<u64>()
    };
    assert_eq!((made.len(), made[0].tx.output.len()), (1, 2));
    let (paid_by_first, paid_by_second) = (200_000 - got(&first), 100_000 - got(&second));
    assert!(paid_by_second * 19 < paid_by_first * 10 && paid_by_first * 10 < paid_by_second * 21);
}

#[test]
fn near_the_deadline_each_goes_alone() {
    let mut scene = Scene::new((0..3).map(|number| claim(number, 50_000, SPLIT_BLOCKS)).collect());
    let made = scene.act();
    assert_eq!(made.iter().map(|bid| bid.tx.input.len()).collect::<Vec<_>>(), [1, 1, 1]);
    // One that is far does not come along.
    let mut scene = Scene::new(vec![claim(1, 50_000, 3), claim(2, 50_000, 144), claim(3, 50_000, 13)]);
    assert_eq!(scene.act().len(), 2);
}

#[test]
fn batch_that_comes_near_is_split_and_the_most_valuable_pays_for_what_is_replaced() {
    let mut scene = Scene::new((0..5).map(|number| claim(number, 50_000 + u64::from(number), 144)).collect());
    let batch = scene.act().remove(0);
    scene.tip += 144 - SPLIT_BLOCKS;
    let made = scene.act();
    assert_eq!(made.len(), 5);
    assert_eq!(made[0].inputs().next().unwrap(), scene.claims[4].outpoint);
    assert!(made[0].fee > batch.fee);
    assert!(made[1..].iter().all(|bid| bid.fee < batch.fee));
    assert_eq!(scene.bids.len(), 5);
}

#[test]
fn bid_that_pays_enough_stays_and_is_raised_when_the_rates_rise() {
    let mut scene = Scene::new(vec![claim(1, 500_000, 144), claim(2, 500_000, 144)]);
    let first = scene.act().remove(0);
    scene.tip += 1;
    let plan = scene.plan();
    assert_eq!((plan.keep, plan.make.len()), (vec![first.tx.compute_txid()], 0));
    scene.rates = rates(10_000);
    assert_eq!(scene.act().len(), 0, "by less than a quarter");
    scene.rates = rates(16_000);
    let second = scene.act().remove(0);
    assert!(second.fee.0 >= 2 * first.fee.0 - 2);
    scene.rates = rates(4_000);
    assert_eq!(scene.act().len(), 0, "never for less");
}

#[test]
fn new_claims_do_not_disturb_what_is_under_way() {
    let mut scene = Scene::new(vec![claim(1, 500_000, 144), claim(2, 500_000, 144)]);
    let first = scene.act().remove(0);
    scene.claims.push(claim(3, 500_000, 144));
    let made = scene.act();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].inputs().collect::<Vec<_>>(), [scene.claims[2].outpoint]);
    assert!(scene.plan().keep.contains(&first.tx.compute_txid()));
}

#[test]
fn batch_of_which_one_output_is_spent_is_made_again_without_it() {
    let mut scene = Scene::new((0..3).map(|number| claim(number, 500_000, 144)).collect());
    scene.act();
    scene.claims.remove(1);
    // Its bid cannot confirm any more; the mempool may not know yet.
    let made = scene.act();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].tx.input.len(), 2);
}

#[test]
fn fee_rises_block_by_block_to_the_whole_value_and_never_above() {
    for left in [1, 6, 12, 144] {
        let mut scene = Scene::new(vec![claim(1, 100_000, left)]);
        let mut last = Sat::ZERO;
        for block in 0..left + 10 {
            scene.tip = TIP + block;
            for bid in scene.act() {
                assert!(bid.fee > last && bid.fee.0 <= 100_000 - 294);
                last = bid.fee;
            }
        }
        assert!(last.0 > 90_000, "{left} blocks: only {last} in the end");
    }
}

#[test]
fn valuable_output_never_pays_more_than_bitcoind_takes() {
    let mut scene = Scene::new(vec![claim(1, 10_000_000_000, 12)]);
    let mut last = Sat::ZERO;
    for block in 0..20 {
        scene.tip = TIP + block;
        for bid in scene.act() {
            assert!(bid.fee > last && bid.fee.0 <= bid.tx.weight().to_wu() * 2_100);
            last = bid.fee;
        }
    }
    assert!(last.0 > 900_000, "{last}");
}

#[test]
fn half_way_to_the_deadline_only_the_estimates_count() {
    let mut scene = Scene::new(vec![claim(1, 10_000_000, 144)]);
    scene.act();
    scene.tip += 100;
    let fee = scene.act().first().map_or(Sat::ZERO, |bid| bid.fee);
    assert!(fee.0 < 2_000, "{fee}");
}

#[test]
fn output_that_fees_would_eat_waits_and_is_bid_for_when_it_is_near_or_rates_fall() {
    let mut scene = Scene::new(vec![claim(1, 1_200, 144)]);
    let waits = scene.plan().waits;
    assert_eq!(waits, [(scene.claims[0].outpoint, "fees would eat half of it")]);
    scene.rates = rates(2_000);
    assert_eq!(scene.act().len(), 1);
    let mut scene = Scene::new(vec![claim(1, 1_200, 5)]);
    let made = scene.act();
    assert_eq!((made.len(), made[0].fee), (1, Sat(1_200 - 294)));
}

#[test]
fn output_that_is_not_worth_the_least_fee_is_no_reason_to_panic() {
    for value in [0, 1, 293, 294, 295, 400] {
        let scene = Scene::new(vec![claim(1, value, 3), claim(2, value, 144)]);
        let plan = scene.plan();
        assert_eq!((plan.make.len(), plan.waits.len()), (0, 2), "{value} sat");
    }
}

#[test]
fn deadline_that_is_past_is_bid_for_all_the_same() {
    let mut scene = Scene::new(vec![claim(1, 100_000, 0)]);
    scene.tip += 50;
    assert_eq!(scene.act().len(), 1);
}

#[test]
fn single_that_cannot_pay_for_the_batch_it_would_replace_leaves_it_where_it_is() {
    let mut scene = Scene::new((0..100).map(|number| claim(number, 3_000, 144)).collect());
    let batch = scene.act().remove(0);
    assert!(batch.fee.0 > 3_000);
    scene.tip += 140;
    let plan = scene.plan();
    assert_eq!((plan.make.len(), plan.keep), (0, vec![batch.tx.compute_txid()]));
}

/// 1,000 channels, half of them with HTLCs whose second level is in the same block: all of it is bid for at once, far below the
/// limits, in a few seconds.
#[test]
fn thousand_channels_breached_in_one_block() {
    const CHANNELS: u32 = 1_000;
    let (mut tower, mut records) = (Tower::default(), Vec::new());
    let client = SecretKey::from_slice(&[1; 32]).unwrap().public_key(SECP256K1);
    tower.allow(client, CHANNELS, &mut records).unwrap();
    let mut block = Vec::new();
    let mut at_stake = 0;
    for number in 0..CHANNELS {
        let sample = Sample::new(number, CommitmentFormat::Anchors);
        let handle = tower.register(client, sample.registration(), &mut records).unwrap().handle;
        let secret = sample.secret(0);
        tower.reveal(&client, handle, CommitmentNumber(0), secret, 0, &mut records).unwrap();
        let htlcs = if number % 2 == 0 { 1 } else { 0 };
        let commitment = sample.commitment(0, 2_000_000, htlcs, htlcs);
        at_stake += commitment.output(commitment.to_local.unwrap()).value.to_sat();
        block.push(commitment.tx.clone());
        for tx in sample.htlc_txs(&commitment) {
            at_stake += tx.output[0].value.to_sat();
            block.push(tx);
        }
    }
    tower.connect(BlockHeight(TIP), BlockHash::all_zeros(), &block, &mut records);
    let mut scene = Scene::new(tower.claims());
    assert_eq!(scene.claims.len(), 2_000);
    let made = scene.act();
    assert_eq!(made.len(), 20);
    let (taken, fees): (u64, u64) = (
        made.iter().flat_map(|bid| &bid.tx.output).map(|output| output.value.to_sat()).sum(),
        made.iter().map(|bid| bid.fee.0).sum(),
    );
    assert_eq!(taken + fees, at_stake);
    assert!(fees * 100 < at_stake);
}
