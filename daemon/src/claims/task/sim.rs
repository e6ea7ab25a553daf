//! The claiming task over a model bitcoind, by seed: faults and refusals of every kind, fees that jump, rivals, reorgs,
//! restarts.
//!
//! Real are the task with its plan, the broadcaster, the client's verification, the wallet and the channels whose claims
//! these are; a model are bitcoind ([`model`], [`mempool`]) and the peers ([`scene`]). A story is played block by block
//! ([`story`]); after each round and each block it is checked against rules that know nothing of the plan ([`checks`]).
//! Everything runs on one thread, and what is random comes from the seed: the same seed plays the same story.
//! `MILLRACE_SEEDS=FROM..TO` runs those seeds, `TO` excluded.
#![allow(clippy::unwrap_used)]

mod checks;
mod mempool;
mod model;
mod planted;
mod rivals;
mod scene;
mod story;

use story::play;

use crate::claims::plan::plan;
use crate::sim::seeds;

#[test]
fn everything_that_can_be_claimed_is_claimed_whatever_bitcoind_and_the_peers_do() {
    for seed in seeds::seeds_or(0..SEEDS) {
        let outcome = play(seed, plan);
        if let Some(violation) = outcome.violation {
            panic!(
                "{violation}\nplay it again: MILLRACE_SEEDS={seed}..{} cargo test --lib claims::task::sim",
                seed + 1
            );
        }
    }
}

/// As many as take some seconds.
const SEEDS: u64 = 20;

#[test]
fn the_same_seed_plays_the_same_story() {
    for seed in 0..2 {
        assert_eq!(play(seed, plan), play(seed, plan), "seed {seed}");
    }
}
