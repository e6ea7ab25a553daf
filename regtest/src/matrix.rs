//! `matrix`: every way in which a channel can end on a real chain, and what the rules give for it.
//!
//! Each cell is a channel of a real daemon's with a peer in this process, which may publish whatever it ever held. Cells
//! without a reorg are played side by side on one chain, those with one on another; the daemon is killed and started again
//! at every block at which what is claimed changes.

mod batch;
pub mod cell;
pub(crate) mod chain;
pub(crate) mod claimant;
mod judge;
mod link;
pub(crate) mod output;
mod pairwise;
mod payer;
mod peer;
pub mod report;
mod rules;
pub mod run;
mod scene;
mod setup;
mod story;

pub use batch::Plant;
pub use cell::Cell;
pub use report::Outcomes;
pub use run::{Arguments, run};
