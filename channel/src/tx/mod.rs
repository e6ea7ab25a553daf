//! Every transaction a channel makes, byte for byte (BOLT 3): built, signed and checked.
//!
//! Amounts, keys and scripts come in, transactions come out. Which commitment is current, what may be
//! broadcast and what fee a claim deserves is decided by the callers.

pub mod claim;
pub mod closing;
pub mod commitment;
pub mod funding;
pub mod htlc;
pub mod script;
pub mod shutdown;
pub mod sighash;
pub mod weight;

pub use claim::{Claim, ClaimKind, SweepError};
pub use closing::{ClosingOutputs, ClosingTx, SimpleClose};
pub use commitment::{Commitment, CommitmentHtlc, CommitmentSpec, CountMismatch, HtlcOutput};
pub use htlc::{HtlcTx, HtlcTxKind};
pub use shutdown::{BadShutdownScript, check_shutdown_script};
pub use weight::{ANCHOR_VALUE, anchors_value, commit_fee, commit_weight, is_trimmed};
