//! Whole nodes, played by hand: the daemon's own shards, channels, payments and reading back; in place of threads,
//! sockets, disks and clocks stand queues, which a seed empties in some order.
//!
//! What is simulated: the disk keeps the steps that were written, and no others ([`disk`]); messages between nodes wait in
//! queues that can be cut ([`world`]); what leaves a node by a flush is counted, and can be cut off between any two pieces
//! ([`gate`]). Channels are opened as always, but their funding is in a block because the simulation says so.
//!
//! The same seed plays the same story, to the byte: the tests hold that too. `MILLRACE_SEEDS=FROM..TO` runs those seeds, `TO`
//! excluded.
#![allow(clippy::unwrap_used)]

mod books;
mod disk;
mod gate;
mod line;
mod networks;
mod node;
mod payment;
mod scene;
#[path = "../../channel/tests/support/seeds.rs"]
#[allow(unreachable_pub, reason = "the tests of the channel crate share it")]
pub(crate) mod seeds;
mod world;

use std::cell::RefCell;

use secp256k1::rand::rngs::StdRng;
use secp256k1::rand::{RngCore, SeedableRng};

thread_local! {
    static DRAWN: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// What nobody could guess, if this thread plays a simulation: the seed's.
pub(crate) fn draw(bytes: &mut [u8]) -> bool {
    DRAWN.with_borrow_mut(|drawn| drawn.as_mut().map(|drawn| drawn.fill_bytes(bytes)).is_some())
}

/// From here on, until the end of the world, this thread draws from a seed.
pub(crate) fn draw_from(seed: Option<u64>) {
    DRAWN.set(seed.map(StdRng::seed_from_u64));
}
