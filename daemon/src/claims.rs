//! From what a channel may claim on chain to transactions that confirm (BOLT 5, "Unilateral Close Handling").
//!
//! A channel says what it may claim now ([`Claims`](millrace_channel::phase::on_chain::Claims)), and by when. Here that
//! becomes sweeps to the wallet, HTLC transactions with a fee of the wallet's, and children that pay for a commitment;
//! each is made again with a higher fee as its deadline nears, and never pays more than is at stake.
//!
//! * [`plan`]: which transactions should exist now, out of the claims, the mempool, the height and the feerates. Pure.
//! * `build`: the transactions themselves, signed.
//! * `task`: asks bitcoind and the wallet, carries the plan out, and says how it stands.
//!
//! Nothing that could get stuck is remembered: the plan is worked out anew for each block and for each new claim, and
//! after a restart the mempool tells what was sent before. Commitments and HTLC transactions that pay for themselves are
//! broadcast as they are by `chain_source`; here are only those that need the wallet.

mod asks;
mod build;
pub mod plan;
mod rates;
mod status;
mod task;

pub use asks::Claimer;
pub use rates::Rates;
pub use status::{ClaimsStatus, OutputState, OutputStatus};
pub use task::{ClaimParts, start};
