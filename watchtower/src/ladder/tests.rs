#![allow(clippy::unwrap_used)]

use millrace_channel::terms::CommitmentFormat;
use millrace_wire::FeeratePerKw;

use super::*;
use crate::samples::{DELAY, Sample};
use crate::sealed::{open, seal};

const TOP: usize = LADDER.len() - 1;

fn rates(rate: u32) -> Rates {
    Rates::new([FeeratePerKw(rate); 4])
}

/// The step with so many blocks left, of an output that is there for so many.
fn step_with(left: u32, ago: u32, rate: u32) -> usize {
    let tip = BlockHeight(1_000);
    step(BlockHeight(tip.0 - ago), BlockHeight(tip.0 + left), tip, &rates(rate))
}

#[test]
fn lowest_step_that_suffices_by_the_estimate() {
    for (rate, expected) in [(253, 0), (1_000, 0), (1_001, 1), (4_000, 1), (4_001, 2), (16_001, 3), (200_000, 3)] {
        assert_eq!(step_with(100, 0, rate), expected, "{rate}");
    }
}

#[test]
fn last_blocks_bring_it_to_the_top_one_step_after_the_other() {
    let steps: Vec<usize> = (0..=14).rev().map(|left| step_with(left, 50, 253)).collect();
    assert_eq!(steps, [0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]);
    // A short delay has shorter steps.
    assert_eq!([5, 4, 3].map(|left| step_with(left, 6 - left, 253)), [0, 1, 2]);
    assert_eq!([step_with(2, 0, 253), step_with(1, 0, 253), step_with(0, 0, 253)], [TOP; 3]);
    // After the deadline it is a race.
    assert_eq!(step(BlockHeight(800), BlockHeight(900), BlockHeight(1_000), &rates(253)), TOP);
}

fn loot(value: u64) -> Loot {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let commitment = sample.commitment(3, value, 0, 0);
    let value = Sat::from(commitment.output(commitment.to_local.unwrap()).value);
    let vout = commitment.to_local.unwrap();
    let sealed = seal(&sample.registration(), &sample.secret(3), &commitment.txid, vout, value).unwrap();
    Loot { opened: open(&commitment.tx, &sealed.bytes).unwrap(), height: BlockHeight(500) }
}

/// The bids of a tip, with those of before, of which the last stays.
fn bid_at(loot: &Loot, tip: u32, rate: u32, before: &mut BTreeMap<Txid, Bid>) -> Option<Bid> {
    let made = bids(std::slice::from_ref(loot), BlockHeight(tip), &rates(rate), before);
    assert!(made.len() <= 1);
    let made = made.into_iter().next()?;
    *before = BTreeMap::from([(made.tx.compute_txid(), made.clone())]);
    Some(made)
}

#[test]
fn bid_that_pays_enough_stays_and_none_goes_back() {
    let loot = loot(2_000_000);
    assert_eq!(loot.deadline(), BlockHeight(500 + u32::from(DELAY)));
    let mut before = BTreeMap::new();
    let first = bid_at(&loot, 500, 253, &mut before).unwrap();
    assert_eq!(first.tx, loot.opened.penalty(0).unwrap());
    assert!(first.fee >= LADDER[0].fee_floor(first.weight));
    assert_eq!(bid_at(&loot, 510, 253, &mut before), None);
    assert_eq!(bid_at(&loot, 520, 5_000, &mut before).unwrap().tx, loot.opened.penalty(2).unwrap());
    assert_eq!(bid_at(&loot, 530, 253, &mut before), None);
    assert_eq!(bid_at(&loot, 641, 253, &mut before).unwrap().tx, loot.opened.penalty(3).unwrap());
    assert_eq!(bid_at(&loot, 700, 253, &mut before), None);
}

#[test]
fn small_output_is_bid_for_up_to_all_it_is_worth_and_no_replacement_pays_too_little() {
    // Above the second step's fee by less than a replacement costs: the third is no better than that.
    let probe = loot(2_000_000);
    let second = bid(&probe, 1).unwrap();
    let loot = loot(second.fee.0 + 330 + 50);
    let mut before = BTreeMap::new();
    let first = bid_at(&loot, 500, 1_001, &mut before).unwrap();
    assert_eq!(first.fee, second.fee);
    assert!(bid(&loot, TOP).unwrap().fee > first.fee);
    assert_eq!(bid_at(&loot, 643, 1_001, &mut before), None);
}
