//! The seeded simulator: two channels over three nodes, links that are cut, disks that lose what was not flushed, a
//! chain that is reorganised, and checkers that stand outside.
//!
//! `MILLRACE_SEEDS=FROM..TO` runs that range of seeds, `TO` excluded:
//! `MILLRACE_SEEDS=0..1000 cargo test -p millrace-channel --release --test sim`.
#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../support/mod.rs"]
mod support;

mod blocks;
mod checks;
mod counters;
mod disk;
mod end;
mod kinds;
mod payments;
mod planted;
mod run;
mod seeds;
mod thief;
mod world;
