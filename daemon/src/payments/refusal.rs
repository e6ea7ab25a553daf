//! Why a payment is not even tried: nothing has changed, and nothing is left behind.

use bitcoin::Network;
use millrace_channel::Refusal;
use millrace_routing::invoice::InvoiceError;
use millrace_routing::path::NoPath;
use millrace_wire::{Msat, PaymentHash, PublicKey};

use crate::channels::{CommandError, NoNewWork};
use crate::happened::{Failure, FailureReason};
use crate::idempotency::KeyError;

/// Why a payment is refused.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum PayRefusal {
    /// It is no invoice, or its signature is wrong.
    #[error(transparent)]
    Invoice(#[from] InvoiceError),
    /// It is for another network.
    #[error("the invoice is for the network {found:?}, this node is on {expected:?}")]
    WrongNetwork {
        /// Ours.
        expected: Network,
        /// The invoice's.
        found: Network,
    },
    /// Its time is over.
    #[error("the invoice has expired")]
    Expired {
        /// When, as Unix time in milliseconds.
        expired_at_ms: u64,
        /// Now.
        now_ms: u64,
    },
    /// It leaves the amount open, and so does the request.
    #[error("the invoice leaves the amount to the payer, and the request names none")]
    AmountMissing,
    /// It names another amount than the request.
    #[error("the invoice asks for {invoice}, the request names {asked}")]
    AmountConflict {
        /// The invoice's.
        invoice: Msat,
        /// The request's.
        asked: Msat,
    },
    /// It is this node's own invoice.
    #[error("the invoice is this node's own")]
    SelfPayment,
    /// The payee wants a lock that is longer than this node grants.
    #[error("the invoice asks for {blocks} blocks at the last hop, and this node locks money for {max} at most")]
    ExpiryTooFar {
        /// Asked for.
        blocks: u32,
        /// Granted.
        max: u32,
    },
    /// There is no channel with the payee, and nothing is known of the network.
    #[error("there is no channel with the payee {payee}, and no way to it over others is known")]
    NoChannel {
        /// Whom the invoice pays.
        payee: PublicKey,
    },
    /// Ways were looked for, and there is none.
    #[error("no way to the payee {payee}: {why}")]
    NoRoute {
        /// Whom the invoice pays.
        payee: PublicKey,
        /// Why not.
        why: NoPath,
    },
    /// Its announcement demands what this node does not know (BOLT 7), and no invoice says that it is not needed.
    #[error(
        "the node {payee} demands features that this node does not know: only an invoice of its own can say how it is paid"
    )]
    PayeeDemands {
        /// Who was to be paid.
        payee: PublicKey,
    },
    /// No way was found before its time was over.
    #[error("no way was found in the time that the request grants")]
    TimedOut,
    /// The payee is not connected.
    #[error("the payee {payee} is not connected")]
    PeerAway {
        /// Whom the invoice pays.
        payee: PublicKey,
    },
    /// No channel with the payee can carry anything now.
    #[error("the channel with the payee cannot be used now: {state}")]
    NotUsable {
        /// What it is doing.
        state: String,
    },
    /// Below what the payee takes.
    #[error("{amount} is below htlc_minimum_msat {minimum}")]
    BelowMinimum {
        /// To be paid.
        amount: Msat,
        /// The least.
        minimum: Msat,
    },
    /// Above what the payee lets be in flight.
    #[error("{amount} is above max_htlc_value_in_flight_msat {maximum}")]
    AboveMaximum {
        /// To be paid.
        amount: Msat,
        /// The most.
        maximum: Msat,
    },
    /// Not enough.
    #[error("{amount} is more than the {available} that can be sent to the payee now")]
    InsufficientBalance {
        /// To be paid.
        amount: Msat,
        /// The most.
        available: Msat,
    },
    /// Every slot was taken for as long as the request waited.
    #[error("all {limit} HTLC slots of the channels with the payee are taken")]
    TooManyHtlcs {
        /// How many there are.
        limit: u32,
    },
    /// Too much would be lost as dust if the channel closed now.
    #[error("{amount} would be dust, and only {left} more may be at stake as dust")]
    DustExposure {
        /// To be paid.
        amount: Msat,
        /// What is left.
        left: Msat,
    },
    /// It is paid, or a payment of it with other terms is under way.
    #[error("the invoice {payment_hash} is paid, or its payment is under way on other terms")]
    AlreadyPaid {
        /// Its hash.
        payment_hash: PaymentHash,
    },
    /// A field of the request that cannot be right.
    #[error("{field}: {what}")]
    Field {
        /// Which.
        field: &'static str,
        /// Why.
        what: String,
    },
    /// The idempotency key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The node takes no new work.
    #[error(transparent)]
    NoNewWork(#[from] NoNewWork),
    /// Too many payments are under way.
    #[error("{limit} payments are under way already")]
    TooManyPayments {
        /// The most.
        limit: usize,
    },
    /// The channel refused for a reason that has no name here.
    #[error("the channel refused: {0}")]
    Channel(String),
    /// The node broke one of its own rules.
    #[error("the node cannot do it: {0}")]
    Internal(String),
}

/// What the refusal of a channel means to a payment of this amount.
pub(super) fn refusal_of(error: CommandError, amount: Msat) -> PayRefusal {
    match error {
        CommandError::NoNewWork(why) => PayRefusal::NoNewWork(why),
        CommandError::Refused(refusal) => match refusal {
            Refusal::BelowMinimum { amount, minimum } => PayRefusal::BelowMinimum { amount, minimum },
            Refusal::TooManyHtlcs { max } => PayRefusal::TooManyHtlcs { limit: max.into() },
            Refusal::InsufficientBalance { amount, available } => PayRefusal::InsufficientBalance { amount, available },
            Refusal::TooMuchInFlight { amount, left } => PayRefusal::InsufficientBalance { amount, available: left },
            Refusal::DustExposure { amount, left } => PayRefusal::DustExposure { amount, left },
            Refusal::FunderCannotPayFee => PayRefusal::InsufficientBalance { amount, available: Msat::ZERO },
            Refusal::NotUsable(state) => PayRefusal::NotUsable { state: state.to_owned() },
            other => PayRefusal::Channel(other.to_string()),
        },
        CommandError::UnknownChannel(_) => PayRefusal::NotUsable { state: "it is closed".to_owned() },
        CommandError::TowerBehind(behind) => PayRefusal::NotUsable { state: format!("it waits: {behind}") },
        CommandError::Busy { .. } => PayRefusal::Channel(error.to_string()),
    }
}

/// Why a payment has failed that was accepted, and then finds no way on.
pub(super) fn failure_of(refusal: &PayRefusal) -> Failure {
    let reason = match refusal {
        PayRefusal::NoRoute { why: NoPath::FeeLimit { .. }, .. } => FailureReason::FeeLimit,
        PayRefusal::NoRoute { why: NoPath::Balance { .. } | NoPath::NoChannel, .. } => {
            FailureReason::InsufficientBalance
        }
        PayRefusal::NoChannel { .. }
        | PayRefusal::PayeeDemands { .. }
        | PayRefusal::NoRoute { why: NoPath::NoWay | NoPath::Ourselves | NoPath::DeltaLimit { .. }, .. } => {
            FailureReason::NoRoute
        }
        PayRefusal::InsufficientBalance { .. } => FailureReason::InsufficientBalance,
        PayRefusal::TooManyHtlcs { .. } | PayRefusal::TimedOut => FailureReason::Timeout,
        PayRefusal::PeerAway { .. } => FailureReason::PeerDisconnected,
        PayRefusal::Expired { .. } => FailureReason::InvoiceExpired,
        _ => FailureReason::Temporary,
    };
    Failure::here(reason, refusal.to_string())
}
