//! The program `millrace-tower` on a real bitcoind: it punishes alone, HTLCs included, whenever it is killed.

#![allow(clippy::unwrap_used, missing_docs)]

mod blobs;
mod cheat;
mod commands;
mod program;
mod story;
