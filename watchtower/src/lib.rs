//! The watchtower: it punishes revoked commitments while the node is off, HTLCs included, with data of constant size.
//!
//! * Pure: [`registration`] and [`revoked`] (what a tower knows of a channel, and the key that punishes), [`story`] and
//!   [`watched`] (how a channel ends), [`tower`] (the state machine), [`plan`] (which penalties should exist and what they
//!   pay), [`message`] and [`receipt`] (what is said, and signed).
//! * The tower: [`keeper`] (the state and its journal), [`server`] (its clients), [`guard`] (the chain).
//! * Blob mode, for a tower that is somebody else's: [`sealed`] (a penalty that nobody can read before its commitment is
//!   published), [`vault`] (what was handed over and what was caught with it) and [`ladder`] (what penalties pay) are pure;
//!   [`blob_log`] is where the blobs are kept.
//! * [`client`]: the kit for whoever uses a tower.
//!
//! What it deliberately does not do: it takes no HTLC output itself. A cheater can only get at one by a transaction whose
//! output the tower takes; what he leaves is stuck, not stolen, and the node's to take when it is back.

pub mod blob_log;
pub mod client;
pub mod guard;
pub mod keeper;
pub mod ladder;
pub mod message;
pub mod plan;
pub mod preimage;
pub mod receipt;
pub mod record;
pub mod registration;
pub mod revoked;
pub mod sealed;
pub mod server;
pub mod snapshot;
pub mod story;
pub mod tower;
pub mod transport;
pub mod vault;
pub mod watched;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod samples;
