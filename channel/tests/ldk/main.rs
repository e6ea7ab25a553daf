//! LDK in memory as the other half: one of our channels and one real LDK `ChannelManager`, joined by a link that
//! loses messages, by seed. It judges the state machine (BOLT 2) and both codecs.
//!
//! A seed decides everything: who opens and on which terms, every amount, every order of deliveries, every cut, every
//! restart, and how the channel ends. `MILLRACE_SEEDS=FROM..TO` runs that range of seeds, `TO` excluded; a failing
//! seed prints what was done in it, and the command that plays it again. LDK's hash maps are seeded by the system, so
//! the order of its own claims on chain may differ from run to run; no assertion depends on it.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod actions;
mod bites;
mod codec;
mod dice;
mod ending;
mod opening;
mod parts;
mod peer;
mod plan;
mod rest;
mod run;
mod tally;
mod world;
