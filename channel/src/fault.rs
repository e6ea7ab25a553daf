//! Whose fault it was: the peer's, with BOLT's reaction, or the caller's, with nothing changed.

use millrace_wire::{FeeratePerKw, HtlcId, Msat};

use crate::ledger::limits::AddFault;
use crate::phase::opening::Unacceptable;

/// What BOLT 2 asks of us when the peer breaks a rule.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reaction {
    /// Send a `warning` and go on.
    Warn,
    /// Send a `warning` and close the connection; the channel stays.
    Disconnect,
    /// Send an `error` and fail the channel.
    FailChannel,
}

/// A rule of the BOLTs that the peer broke. The core has already done what the reaction says to the channel; the
/// shell does what it says to the connection.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{rule}: {what}")]
pub struct PeerFault {
    /// The section whose rule it is.
    pub rule: &'static str,
    /// What was wrong, with the numbers.
    pub what: String,
    /// What it leads to.
    pub reaction: Reaction,
}

impl PeerFault {
    /// The channel cannot go on.
    pub fn fail(rule: &'static str, what: impl Into<String>) -> Self {
        Self { rule, what: what.into(), reaction: Reaction::FailChannel }
    }

    /// The connection cannot go on; the channel can.
    pub fn disconnect(rule: &'static str, what: impl Into<String>) -> Self {
        Self { rule, what: what.into(), reaction: Reaction::Disconnect }
    }

    /// To be told, and no more.
    pub fn warn(rule: &'static str, what: impl Into<String>) -> Self {
        Self { rule, what: what.into(), reaction: Reaction::Warn }
    }

    pub(crate) fn add(id: HtlcId, fault: &AddFault) -> Self {
        Self::fail("BOLT 2, \"Adding an HTLC\"", format!("htlc {}: {fault}", id.0))
    }
}

/// Why an order of our own node is not carried out. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The peer is not there, or the channel is not ready, shutting down, or closed.
    #[error("the channel is not usable now: {0}")]
    NotUsable(&'static str),
    /// Below what the peer takes.
    #[error("{amount} is below the peer's htlc_minimum_msat {minimum}")]
    BelowMinimum {
        /// Asked for.
        amount: Msat,
        /// The peer's minimum.
        minimum: Msat,
    },
    /// No slot is free.
    #[error("all {max} HTLC slots are taken")]
    TooManyHtlcs {
        /// Of the peer's `max_accepted_htlcs`.
        max: u16,
    },
    /// The peer's in-flight limit.
    #[error("{amount} exceeds the {left} that the peer still takes in flight")]
    TooMuchInFlight {
        /// Asked for.
        amount: Msat,
        /// What is left of it.
        left: Msat,
    },
    /// Not enough after reserve, fee, anchors and fee-spike buffer.
    #[error("{amount} exceeds the available {available}, which leaves out reserve, fee, anchors and fee-spike buffer")]
    InsufficientBalance {
        /// Asked for.
        amount: Msat,
        /// What could be sent.
        available: Msat,
    },
    /// The peer funded the channel and could not pay the fee of one more HTLC.
    #[error("the peer funded the channel and cannot pay the fee of one more HTLC")]
    FunderCannotPayFee,
    /// Too much would be lost as dust if the channel closed now.
    #[error("{amount} would be dust, and only {left} more may be at stake as dust")]
    DustExposure {
        /// Asked for.
        amount: Msat,
        /// What is left of the limit.
        left: Msat,
    },
    /// The expiry is already past, or not a height.
    #[error("cltv_expiry {expiry} is not between the current height {height} and 500000000")]
    BadExpiry {
        /// Asked for.
        expiry: u32,
        /// The height of the chain.
        height: u32,
    },
    /// Only the funder sends `update_fee`.
    #[error("the peer funded the channel: only it can change the feerate")]
    NotFunder,
    /// The feerate that was proposed before is signed and not irrevocable yet.
    #[error("the feerate of {} sat per 1000 weight is not settled yet: try again when the peer has answered", before.0)]
    FeeUpdateUnderWay {
        /// The one before.
        before: FeeratePerKw,
    },
    /// The funder could not pay it.
    #[error("this node cannot pay a feerate of {} sat per 1000 weight and keep its reserve", feerate.0)]
    CannotAffordFeerate {
        /// Asked for.
        feerate: FeeratePerKw,
    },
    /// HTLCs in flight would become dust.
    #[error("at {} sat per 1000 weight too many HTLCs in flight would become dust", feerate.0)]
    FeerateTurnsHtlcsIntoDust {
        /// Asked for.
        feerate: FeeratePerKw,
    },
    /// No such HTLC, or it is already decided or not yet irrevocable.
    #[error("htlc {} cannot be {what} now", id.0)]
    NotThere {
        /// Asked for.
        id: HtlcId,
        /// What was to be done to it.
        what: &'static str,
    },
    /// The preimage does not hash to the payment hash.
    #[error("the preimage does not belong to htlc {}", id.0)]
    WrongPreimage {
        /// The HTLC.
        id: HtlcId,
    },
    /// BOLT 2 does not allow the script, or another was committed to at opening.
    #[error("the shutdown script cannot be used: {0}")]
    BadShutdownScript(String),
    /// The peer's parameters, or ours, do not allow the channel.
    #[error("the channel cannot be opened: {0}")]
    CannotOpen(Box<Unacceptable>),
    /// Our data is older than the peer's: only the peer may close.
    #[error("this node's data is older than the peer's: only the peer may close the channel")]
    DataLost,
    /// Too much waits already.
    #[error("{waiting} updates wait for a signature already: try again when the peer has answered")]
    TooManyWaiting {
        /// How many.
        waiting: usize,
    },
}
