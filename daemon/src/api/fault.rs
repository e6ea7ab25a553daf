//! Typed errors: every refusal with its reason, its facts and what a person can do about it.

use millrace_rpc::v1::{ErrorDetail, ErrorReason};
use tonic::Status;

use crate::channels::{ChannelState, CommandError, NoFunding, NoNewWork, OpenFailure};
use crate::config::network_name;
use crate::events::EventsError;
use crate::happened::CancelReason;
use crate::idempotency::KeyError;
use crate::payments::{HoldRefusal, InvoiceRefusal, MakeError, PayRefusal};
use crate::peer::{ConnectError, DisconnectError, HandshakeFailure};
use crate::readiness::Readiness;
use crate::view::ViewError;
use crate::wallet::WalletError;
use millrace_channel::Refusal;
use millrace_channel::phase::opening::Unacceptable;
use millrace_routing::invoice::InvoiceError;
use millrace_routing::path::NoPath;
use millrace_wire::{PaymentHash, PublicKey};

/// A field of the request cannot be right.
pub(super) fn field(name: &str, what: impl Into<String>) -> Status {
    let what = what.into();
    ErrorDetail::new(ErrorReason::InvalidField)
        .fact("field", name)
        .hint(format!("Correct the field `{name}` and call again."))
        .into_status(format!("{name}: {what}"))
}

/// There is no such thing.
pub(super) fn not_found(kind: &str, which: impl std::fmt::Display) -> Status {
    ErrorDetail::new(ErrorReason::NotFound)
        .fact("kind", kind)
        .hint(format!("List what there is, and check which {kind} you mean."))
        .into_status(format!("there is no {kind} {which}"))
}

/// The public graph holds no such thing.
pub(super) fn not_in_graph(noun: &str, which: impl std::fmt::Display) -> Status {
    ErrorDetail::new(ErrorReason::NotFound)
        .fact("kind", format!("graph_{noun}"))
        .hint("Check the name; what was announced lately may not be known here yet, and what is private never is.")
        .into_status(format!("there is no {noun} {which} in the public graph"))
}

/// The node broke one of its own rules.
pub(super) fn internal(what: impl std::fmt::Display) -> Status {
    tracing::error!(%what, "a call failed for a reason of our own");
    ErrorDetail::new(ErrorReason::Internal)
        .hint("Please report it, with the daemon's log.")
        .into_status(what.to_string())
}

/// The node is stopping.
pub(super) fn stopping() -> Status {
    ErrorDetail::new(ErrorReason::ShuttingDown)
        .hint("Start the daemon again, and call again with the same idempotency key.")
        .into_status("the node is shutting down")
}

/// The node is not ready.
pub(super) fn not_ready(readiness: &Readiness) -> Status {
    let (stage, done, total, message) = match readiness {
        Readiness::Recovering => ("journal", 0, 0, "the node reads what it has written".to_owned()),
        Readiness::CatchingUp { height, headers } => {
            let total = headers.unwrap_or(0);
            ("chain", *height, total, format!("the node follows the chain, and is at height {height}"))
        }
        Readiness::Ready => ("ready", 0, 0, "the node is ready".to_owned()),
        Readiness::Stopping => return stopping(),
    };
    ErrorDetail::new(ErrorReason::NotReady)
        .fact("stage", stage)
        .fact("done", done)
        .fact("total", total)
        .hint("Wait until the node has started: Node.GetStatus tells how far it is.")
        .into_status(format!("the node is starting: {message}"))
}

pub(super) fn key(error: KeyError) -> Status {
    let (reason, hint) = match error {
        KeyError::Empty => {
            (ErrorReason::IdempotencyKeyInvalid, "Send a random text of 1 to 64 bytes as idempotency_key.")
        }
        KeyError::TooLong { .. } => (ErrorReason::IdempotencyKeyInvalid, "Send a text of 1 to 64 bytes."),
        KeyError::Conflict => (ErrorReason::IdempotencyConflict, "Choose a new key for a new request."),
    };
    ErrorDetail::new(reason).fact("field", "idempotency_key").hint(hint).into_status(error.to_string())
}

fn with_heights(detail: ErrorDetail, heights: Option<(u32, u32)>) -> ErrorDetail {
    match heights {
        Some((height, target)) => detail.fact("height", height).fact("target_height", target),
        None => detail,
    }
}

pub(super) fn no_new_work(why: &NoNewWork) -> Status {
    let message = why.to_string();
    match why {
        NoNewWork::DiskLow(_) => ErrorDetail::new(ErrorReason::DiskFull)
            .hint("Make room on the disk; nothing that was accepted is lost.")
            .into_status(message),
        NoNewWork::DiskBehind(bytes) => ErrorDetail::new(ErrorReason::TooManyRequests)
            .fact("limit", millrace_journal::QUEUED_BYTES_BUSY)
            .fact("queued_bytes", bytes)
            .hint("Call again in a moment.")
            .into_status(message),
        NoNewWork::Chain { is_away: true, .. } => ErrorDetail::new(ErrorReason::ChainAway)
            .hint("See that bitcoind runs and can be reached; the node goes on by itself.")
            .into_status(message),
        NoNewWork::Chain { heights, .. } => with_heights(ErrorDetail::new(ErrorReason::ChainSyncing), *heights)
            .hint("Wait until bitcoind and the node are at the chain's tip.")
            .into_status(message),
        NoNewWork::Stopping => stopping(),
    }
}

pub(super) fn view(error: &ViewError) -> Status {
    internal(error)
}

pub(super) fn events(error: &EventsError) -> Status {
    match error {
        EventsError::Gone { oldest, .. } => ErrorDetail::new(ErrorReason::CursorTooOld)
            .fact("oldest_frame", oldest.frame)
            .fact("oldest_index", oldest.index)
            .hint("Subscribe from the oldest position that is kept, and read lists for what is older.")
            .into_status(error.to_string()),
        EventsError::Read(_) | EventsError::Malformed { .. } => internal(error),
    }
}

fn invoice(error: &InvoiceError) -> Status {
    let message = error.to_string();
    match error {
        InvoiceError::Features { bits } => ErrorDetail::new(ErrorReason::InvoiceFeatureUnknown)
            .fact("bit", bits.first().copied().unwrap_or_default())
            .hint("Ask the payee for an invoice without that feature, or update this node.")
            .into_status(message),
        InvoiceError::Network(_) => ErrorDetail::new(ErrorReason::WrongNetwork)
            .fact("found", "simnet")
            .hint("Ask the payee for an invoice of this node's network.")
            .into_status(message),
        InvoiceError::Malformed(_)
        | InvoiceError::TooLong { .. }
        | InvoiceError::Amount { .. }
        | InvoiceError::Field { .. }
        | InvoiceError::MinFinalCltv { .. }
        | InvoiceError::Signature => ErrorDetail::new(ErrorReason::InvoiceInvalid)
            .hint("Check that the invoice was copied whole.")
            .into_status(message),
    }
}

/// An invoice that cannot be read.
pub(super) fn decode(error: &InvoiceError) -> Status {
    invoice(error)
}

pub(super) fn pay(refusal: &PayRefusal) -> Status {
    let message = refusal.to_string();
    let (detail, hint) = match refusal {
        PayRefusal::Invoice(error) => return invoice(error),
        PayRefusal::Field { field: name, what } => return field(name, what.clone()),
        PayRefusal::Key(error) => return key(*error),
        PayRefusal::NoNewWork(why) => return no_new_work(why),
        PayRefusal::Internal(what) => return internal(what),
        PayRefusal::WrongNetwork { expected, found } => (
            ErrorDetail::new(ErrorReason::WrongNetwork)
                .fact("expected", network_name(*expected))
                .fact("found", network_name(*found)),
            "Ask the payee for an invoice of this node's network.",
        ),
        PayRefusal::Expired { expired_at_ms, now_ms } => (
            ErrorDetail::new(ErrorReason::InvoiceExpired).fact("expired_at_ms", expired_at_ms).fact("now_ms", now_ms),
            "Ask the payee for a new invoice.",
        ),
        PayRefusal::AmountMissing => {
            (ErrorDetail::new(ErrorReason::AmountMissing), "Say how much to pay: this invoice leaves it to you.")
        }
        PayRefusal::AmountConflict { invoice, asked } => (
            ErrorDetail::new(ErrorReason::AmountConflict).fact("invoice_msat", invoice.0).fact("amount_msat", asked.0),
            "Leave the amount out: the invoice says it.",
        ),
        PayRefusal::SelfPayment => {
            (ErrorDetail::new(ErrorReason::SelfPayment), "There is nothing to pay: the invoice is this node's own.")
        }
        PayRefusal::ExpiryTooFar { blocks, max } => (
            ErrorDetail::new(ErrorReason::AmountAboveMaximum).fact("blocks", blocks).fact("blocks_max", max),
            "Ask the payee for a smaller min_final_cltv_expiry_delta, or raise max_cltv_expiry_blocks.",
        ),
        PayRefusal::NoChannel { payee } => (
            ErrorDetail::new(ErrorReason::NoRoute).fact("payee_node_id", payee),
            "Open a channel with the payee, or with a node that has a way to it.",
        ),
        PayRefusal::NoRoute { payee, why } => no_route(payee, why),
        PayRefusal::PayeeDemands { payee } => (
            ErrorDetail::new(ErrorReason::NoRoute).fact("payee_node_id", payee),
            "Ask the payee for an invoice, or update this node.",
        ),
        PayRefusal::TimedOut => (ErrorDetail::new(ErrorReason::NoRoute), "Call again, and grant more time."),
        PayRefusal::PeerAway { payee } => (
            ErrorDetail::new(ErrorReason::PeerNotConnected).fact("payee_node_id", payee),
            "Connect to the payee and call again.",
        ),
        PayRefusal::NotUsable { state } => (
            ErrorDetail::new(ErrorReason::ChannelNotUsable).fact("state", state),
            "Wait until the channel can be used, or open another.",
        ),
        PayRefusal::BelowMinimum { amount, minimum } => (
            ErrorDetail::new(ErrorReason::AmountBelowMinimum)
                .fact("amount_msat", amount.0)
                .fact("htlc_minimum_msat", minimum.0),
            "Pay at least the minimum.",
        ),
        PayRefusal::AboveMaximum { amount, maximum } => (
            ErrorDetail::new(ErrorReason::AmountAboveMaximum)
                .fact("amount_msat", amount.0)
                .fact("max_in_flight_msat", maximum.0),
            "Pay less at a time.",
        ),
        PayRefusal::InsufficientBalance { amount, available } => (
            ErrorDetail::new(ErrorReason::InsufficientBalance)
                .fact("amount_msat", amount.0)
                .fact("needed_msat", amount.0)
                .fact("available_msat", available.0),
            "Pay less, receive first, or open a larger channel with the payee.",
        ),
        PayRefusal::TooManyHtlcs { limit } => {
            (ErrorDetail::new(ErrorReason::TooManyHtlcs).fact("limit", limit), "Call again when payments have ended.")
        }
        PayRefusal::DustExposure { amount, left } => (
            ErrorDetail::new(ErrorReason::DustExposure).fact("amount_msat", amount.0).fact("left_msat", left.0),
            "Wait until other small payments have ended, or pay a larger amount.",
        ),
        PayRefusal::AlreadyPaid { payment_hash } => (
            ErrorDetail::new(ErrorReason::InvoiceAlreadyPaid).fact("payment_hash", payment_hash),
            "Look the payment up by its hash; ask the payee for a new invoice to pay again.",
        ),
        PayRefusal::TooManyPayments { limit } => (
            ErrorDetail::new(ErrorReason::TooManyRequests).fact("limit", limit),
            "Call again when payments have ended.",
        ),
        PayRefusal::Channel(_) => {
            (ErrorDetail::new(ErrorReason::ChannelNotUsable).fact("state", &message), "Call again in a moment.")
        }
    };
    detail.hint(hint).into_status(message)
}

fn no_route(payee: &PublicKey, why: &NoPath) -> (ErrorDetail, &'static str) {
    let detail = |reason| ErrorDetail::new(reason).fact("payee_node_id", payee);
    match why {
        NoPath::Ourselves => (detail(ErrorReason::SelfPayment), "There is nothing to pay: the payee is this node."),
        NoPath::NoChannel => {
            (detail(ErrorReason::InsufficientBalance), "Open a channel, or wait until one can be used again.")
        }
        NoPath::Balance { most } => {
            (detail(ErrorReason::InsufficientBalance).fact("available_msat", most.0), "Pay less, or receive first.")
        }
        NoPath::NoWay => {
            (detail(ErrorReason::NoRoute), "Open a channel with the payee, or with a node that has a way to it.")
        }
        NoPath::FeeLimit { fee_limit } => {
            (detail(ErrorReason::NoRoute).fact("fee_limit_msat", fee_limit.0), "Raise the fee limit.")
        }
        NoPath::DeltaLimit { delta_limit, needed } => (
            detail(ErrorReason::NoRoute).fact("blocks", needed).fact("blocks_max", delta_limit),
            "Raise the limit of blocks, as far as the node's own lets you.",
        ),
    }
}

pub(super) fn make_invoice(error: &MakeError) -> Status {
    match error {
        MakeError::Invoice(InvoiceError::Amount { .. }) => field("amount_msat", error.to_string()),
        MakeError::Invoice(error) => field("description", error.to_string()),
        MakeError::FinalDelta { .. } => field("min_final_cltv_expiry_delta", error.to_string()),
        MakeError::NoNewWork(why) => no_new_work(why),
        MakeError::Refused(InvoiceRefusal::HashTaken(hash)) => ErrorDetail::new(ErrorReason::PreimageReused)
            .fact("payment_hash", hash)
            .hint("Let the node draw the preimage, or draw a new one.")
            .into_status(error.to_string()),
        MakeError::Refused(InvoiceRefusal::TooMany(limit)) => ErrorDetail::new(ErrorReason::TooManyRequests)
            .fact("limit", limit)
            .hint("Wait until invoices have expired, or give new ones a shorter life.")
            .into_status(error.to_string()),
    }
}

/// What was given as a preimage is an invoice's payment hash.
pub(super) fn hash_as_preimage(payment_hash: PaymentHash) -> Status {
    ErrorDetail::new(ErrorReason::InvalidField)
        .fact("field", "preimage")
        .hint(
            "Give the preimage; or, if the node drew it, give the hash as payment_hash: \
             `millrace invoice settle --hash HASH`.",
        )
        .into_status(format!("preimage: {payment_hash} is the payment hash of an invoice, not its preimage"))
}

/// An invoice is not settled, or not cancelled.
pub(super) fn decide_invoice(refusal: &HoldRefusal) -> Status {
    let message = refusal.to_string();
    match refusal {
        HoldRefusal::Unknown(hash) => not_found("invoice", hash),
        HoldRefusal::NotHold(_) | HoldRefusal::NotHeld(_) => ErrorDetail::new(ErrorReason::InvoiceNotHeld)
            .hint("Wait for the event invoice_held, or see how the invoice stands.")
            .into_status(message),
        HoldRefusal::PreimageMissing(_) => field("payment_hash", format!("{message}: give the preimage itself")),
        HoldRefusal::Cancelled { why, .. } => ErrorDetail::new(ErrorReason::InvoiceCancelled)
            .fact(
                "why",
                match why {
                    CancelReason::Asked => "ASKED",
                    CancelReason::Deadline => "DEADLINE",
                    CancelReason::PartGone => "PART_GONE",
                },
            )
            .hint("Nothing was received for it: make a new invoice.")
            .into_status(message),
        HoldRefusal::Paid(hash) => ErrorDetail::new(ErrorReason::InvoiceAlreadyPaid)
            .fact("payment_hash", hash)
            .hint("It cannot be taken back: pay the amount back another way.")
            .into_status(message),
    }
}

pub(super) fn connect(error: &ConnectError) -> Status {
    let message = error.to_string();
    match error {
        ConnectError::Unreachable { address, .. } => ErrorDetail::new(ErrorReason::PeerUnreachable)
            .fact("address", address)
            .hint("Check the address, and that the node runs there.")
            .into_status(message),
        ConnectError::Handshake { address, failure: HandshakeFailure::HungUp } => {
            ErrorDetail::new(ErrorReason::PeerHandshakeFailed)
                .fact("address", address)
                .hint(
                    "It is the right node, but it does not talk to us now: call again in a while, its log may say why.",
                )
                .into_status(message)
        }
        ConnectError::Handshake { address, .. } => ErrorDetail::new(ErrorReason::PeerHandshakeFailed)
            .fact("address", address)
            .hint("Check the node id: who answers there must hold its key and speak for the same network.")
            .into_status(message),
        ConnectError::TooMany { max, .. } => ErrorDetail::new(ErrorReason::TooManyRequests)
            .fact("limit", max)
            .hint("Disconnect a peer that is not needed.")
            .into_status(message),
        ConnectError::DiskFull(reason) => no_new_work(&NoNewWork::DiskLow(reason.clone())),
        ConnectError::Ourselves => field("node_id", message),
        ConnectError::Stopping => stopping(),
    }
}

pub(super) fn disconnect(error: &DisconnectError) -> Status {
    let message = error.to_string();
    match error {
        DisconnectError::NotConnected(peer) => ErrorDetail::new(ErrorReason::PeerNotConnected)
            .fact("node_id", peer)
            .hint("There is nothing to do: it is not connected.")
            .into_status(message),
        DisconnectError::HasChannels { peer, channels } => ErrorDetail::new(ErrorReason::PeerHasChannels)
            .fact("node_id", peer)
            .fact("channels", channels)
            .hint("Disconnect with `force` if the channels may be out of use meanwhile.")
            .into_status(message),
    }
}

pub(super) fn wallet(error: &WalletError) -> Status {
    let message = error.to_string();
    match error {
        WalletError::InsufficientFunds { needed, available } => ErrorDetail::new(ErrorReason::InsufficientBalance)
            .fact("needed_sat", needed.0)
            .fact("available_sat", available.0)
            .hint("Send less, or receive coins first.")
            .into_status(message),
        WalletError::Reserve { reserve, left, .. } => ErrorDetail::new(ErrorReason::AnchorReserve)
            .fact("reserve_sat", reserve.0)
            .fact("available_sat", left.0)
            .hint("Send less: the rest is kept to get channels' commitments confirmed.")
            .into_status(message),
        WalletError::ReserveCoins { coins, left, each } => ErrorDetail::new(ErrorReason::AnchorReserve)
            .fact("reserve_sat", each.0.saturating_mul(u64::from(*coins)))
            .fact("available_sat", each.0.saturating_mul(u64::from(*left)))
            .hint("Send less: each channel keeps a coin of its own to get its commitment confirmed.")
            .into_status(message),
        WalletError::Address { .. } => ErrorDetail::new(ErrorReason::AddressInvalid)
            .fact("field", "address")
            .hint("Check that the address was copied whole.")
            .into_status(message),
        WalletError::WrongNetwork { network, .. } => ErrorDetail::new(ErrorReason::WrongNetwork)
            .fact("expected", network_name(*network))
            .fact("found", "another")
            .hint("Use an address of this node's network.")
            .into_status(message),
        WalletError::Dust { amount, dust } => ErrorDetail::new(ErrorReason::AmountBelowMinimum)
            .fact("amount_sat", amount.0)
            .fact("dust_sat", dust.0)
            .hint("Send at least the dust limit.")
            .into_status(message),
        WalletError::Feerate { feerate, min, max } => ErrorDetail::new(ErrorReason::FeerateOutOfRange)
            .fact("feerate_sat_per_kw", feerate.0)
            .fact("min_sat_per_kw", min.0)
            .fact("max_sat_per_kw", max.0)
            .hint("Choose a feerate within the limits; 250 sat per 1000 weight units are 1 sat/vB.")
            .into_status(message),
        WalletError::TooHeavy { weight_wu, max_wu } => ErrorDetail::new(ErrorReason::AmountAboveMaximum)
            .fact("weight_wu", weight_wu)
            .fact("max_wu", max_wu)
            .hint("Send less at a time.")
            .into_status(message),
        WalletError::UnknownTransaction(txid) => not_found("transaction", txid),
        WalletError::NotReplaceable { .. } => ErrorDetail::new(ErrorReason::NotReplaceable)
            .hint("Only an unconfirmed transaction of the wallet's own can be replaced.")
            .into_status(message),
        WalletError::Input { .. } | WalletError::OutOfOrder { .. } => internal(error),
    }
}

/// bitcoind would not take a transaction of the wallet's.
pub(super) fn broadcast_refused(reason: &str) -> Status {
    ErrorDetail::new(ErrorReason::BroadcastRefused)
        .fact("bitcoind_message", reason)
        .hint("Nothing was spent. If it is about the fee, choose a higher one.")
        .into_status(format!("bitcoind would refuse the transaction: {reason}"))
}

/// What is for demonstrations, where nothing is at stake.
pub(super) fn only_on_regtest(network: bitcoin::Network) -> Status {
    let network = network_name(network);
    ErrorDetail::new(ErrorReason::WrongNetwork)
        .fact("network", network)
        .hint("Try it on a demo network: `millrace-regtest up`.")
        .into_status(format!("this is for regtest alone, and the node is on {network}: it could cost a whole channel"))
}

pub(super) fn open(failure: &OpenFailure) -> Status {
    let message = failure.to_string();
    match failure {
        OpenFailure::NotConnected(peer) => ErrorDetail::new(ErrorReason::PeerNotConnected)
            .fact("node_id", peer)
            .hint("Connect to the peer first.")
            .into_status(message),
        OpenFailure::NoNewWork(why) => no_new_work(why),
        OpenFailure::TooMany { max, .. } => ErrorDetail::new(ErrorReason::TooManyRequests)
            .fact("limit", max)
            .hint("Wait until the openings that are under way have ended.")
            .into_status(message),
        OpenFailure::Refused(refusal) => refused(refusal),
        OpenFailure::PeerRefused(words) | OpenFailure::PeerFault(words) => ErrorDetail::new(ErrorReason::PeerRefused)
            .fact("peer_message", words)
            .hint("Ask for what the peer accepts; nothing was spent.")
            .into_status(message),
        OpenFailure::Wallet(NoFunding::Gone) => stopping(),
        OpenFailure::Wallet(NoFunding::Refused(reason)) => broadcast_refused(reason),
        OpenFailure::Wallet(NoFunding::Reserve { reserve, available }) => ErrorDetail::new(ErrorReason::AnchorReserve)
            .fact("reserve_sat", reserve.0)
            .fact("available_sat", available.0)
            .hint("Open a smaller channel, or receive coins first; nothing was spent.")
            .into_status(message),
        OpenFailure::Wallet(NoFunding::Other(_)) => ErrorDetail::new(ErrorReason::OpenFailed)
            .hint("Open with another amount or feerate, by a new idempotency key; nothing was spent.")
            .into_status(message),
        OpenFailure::Wallet(NoFunding::Funds { needed, available }) => {
            ErrorDetail::new(ErrorReason::InsufficientBalance)
                .fact("needed_sat", needed.0)
                .fact("available_sat", available.0)
                .hint("Open a smaller channel, or receive coins first; nothing was spent.")
                .into_status(message)
        }
        OpenFailure::Disconnected | OpenFailure::TimedOut(_) => ErrorDetail::new(ErrorReason::OpenFailed)
            .hint("Connect again and open with a new idempotency key; nothing was spent.")
            .into_status(message),
    }
}

/// An order for a channel that it does not take.
pub(super) fn command(error: &CommandError) -> Status {
    match error {
        CommandError::UnknownChannel(id) => not_found("channel", id),
        CommandError::Busy { waiting } => ErrorDetail::new(ErrorReason::TooManyRequests)
            .fact("limit", waiting)
            .hint("Call again in a moment.")
            .into_status(error.to_string()),
        CommandError::NoNewWork(why) => no_new_work(why),
        CommandError::TowerBehind(behind) => ErrorDetail::new(ErrorReason::ChannelNotUsable)
            .fact("lag", behind.lag)
            .fact("lag_max", behind.max)
            .hint("See `tower status`; remove a watchtower that does not come back.")
            .into_status(error.to_string()),
        CommandError::Refused(refusal) => refused(refusal),
    }
}

fn refused(refusal: &Refusal) -> Status {
    let message = refusal.to_string();
    if let Refusal::CannotOpen(why) = refusal
        && let Unacceptable::NotNegotiated(feature) = &**why
    {
        return ErrorDetail::new(ErrorReason::PeerFeatureMissing)
            .fact("feature", feature)
            .hint("Ask for a channel without it, or open one with another peer; nothing was spent.")
            .into_status(message);
    }
    let detail = match refusal {
        Refusal::BelowMinimum { amount, minimum } => ErrorDetail::new(ErrorReason::AmountBelowMinimum)
            .fact("amount_msat", amount.0)
            .fact("htlc_minimum_msat", minimum.0),
        Refusal::TooManyHtlcs { max } => ErrorDetail::new(ErrorReason::TooManyHtlcs).fact("limit", max),
        Refusal::InsufficientBalance { amount, available } => ErrorDetail::new(ErrorReason::InsufficientBalance)
            .fact("needed_msat", amount.0)
            .fact("available_msat", available.0),
        Refusal::BadShutdownScript(_) => ErrorDetail::new(ErrorReason::AddressInvalid).fact("field", "address"),
        Refusal::CannotOpen(why) => ErrorDetail::new(ErrorReason::InvalidField).fact("field", field_of(why)),
        _ => ErrorDetail::new(ErrorReason::ChannelNotUsable).fact("state", &message),
    };
    detail.hint("See the channel's state and limits; nothing has changed.").into_status(message)
}

/// Which field of `OpenChannelRequest` a limit of an opening is about.
const fn field_of(why: &Unacceptable) -> &'static str {
    match why {
        Unacceptable::PushTooLarge { .. }
        | Unacceptable::CannotPayFee { .. }
        | Unacceptable::BothBelowReserve { .. } => "push_msat",
        Unacceptable::DelayTooLong { .. } => "to_self_delay_blocks",
        Unacceptable::HtlcMinimumTooLarge { .. } => "htlc_minimum_msat",
        Unacceptable::InFlightTooSmall { .. } => "max_in_flight_msat",
        _ => "capacity_sat",
    }
}

/// A channel that is in no state for this.
pub(super) fn channel_state(state: ChannelState, what: &str) -> Status {
    ErrorDetail::new(ErrorReason::ChannelNotUsable)
        .fact("state", format!("{state:?}"))
        .hint("See the channel's state.")
        .into_status(format!("the channel is {state}: it cannot {what}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_wire::Msat;
    use tonic::Code;

    use super::*;

    fn detail(status: &Status) -> ErrorDetail {
        ErrorDetail::from_status(status).unwrap()
    }

    #[test]
    fn every_refusal_of_a_payment_has_a_reason_and_a_hint() {
        let hash = PaymentHash([1; 32]);
        let peer = millrace_wire::PublicKey::from_slice(&[2; 33]).unwrap();
        let (amount, other) = (Msat(1), Msat(2));
        let all = [
            PayRefusal::Invoice(InvoiceError::Signature),
            PayRefusal::Invoice(InvoiceError::Features { bits: vec![100] }),
            PayRefusal::WrongNetwork { expected: bitcoin::Network::Regtest, found: bitcoin::Network::Bitcoin },
            PayRefusal::Expired { expired_at_ms: 1, now_ms: 2 },
            PayRefusal::AmountMissing,
            PayRefusal::AmountConflict { invoice: amount, asked: other },
            PayRefusal::SelfPayment,
            PayRefusal::ExpiryTooFar { blocks: 1, max: 2 },
            PayRefusal::NoChannel { payee: peer },
            PayRefusal::NoRoute { payee: peer, why: NoPath::Ourselves },
            PayRefusal::NoRoute { payee: peer, why: NoPath::NoChannel },
            PayRefusal::NoRoute { payee: peer, why: NoPath::Balance { most: amount } },
            PayRefusal::NoRoute { payee: peer, why: NoPath::NoWay },
            PayRefusal::NoRoute { payee: peer, why: NoPath::FeeLimit { fee_limit: amount } },
            PayRefusal::NoRoute { payee: peer, why: NoPath::DeltaLimit { delta_limit: 1, needed: 2 } },
            PayRefusal::PayeeDemands { payee: peer },
            PayRefusal::TimedOut,
            PayRefusal::PeerAway { payee: peer },
            PayRefusal::NotUsable { state: "x".to_owned() },
            PayRefusal::BelowMinimum { amount, minimum: other },
            PayRefusal::AboveMaximum { amount, maximum: other },
            PayRefusal::InsufficientBalance { amount, available: other },
            PayRefusal::TooManyHtlcs { limit: 1 },
            PayRefusal::DustExposure { amount, left: other },
            PayRefusal::AlreadyPaid { payment_hash: hash },
            PayRefusal::Field { field: "timeout_s", what: "x".to_owned() },
            PayRefusal::Key(KeyError::Conflict),
            PayRefusal::NoNewWork(NoNewWork::DiskLow("x".to_owned())),
            PayRefusal::NoNewWork(NoNewWork::Chain { reason: "x".to_owned(), is_away: true, heights: None }),
            PayRefusal::NoNewWork(NoNewWork::Chain { reason: "x".to_owned(), is_away: false, heights: Some((3, 5)) }),
            PayRefusal::NoNewWork(NoNewWork::Stopping),
            PayRefusal::TooManyPayments { limit: 1 },
            PayRefusal::Channel("x".to_owned()),
            PayRefusal::Internal("x".to_owned()),
        ];
        for refusal in all {
            let status = pay(&refusal);
            let detail = detail(&status);
            assert_ne!(detail.reason(), ErrorReason::Unspecified, "{refusal:?}");
            assert!(!detail.hint.is_empty(), "{refusal:?}");
            assert_eq!(status.code(), detail.reason().code());
            assert!(!status.message().is_empty());
        }
    }

    #[test]
    fn what_the_graph_does_not_hold_is_told_in_words() {
        for noun in ["channel", "node"] {
            let status = not_in_graph(noun, "1x1x1");
            assert_eq!(status.message(), format!("there is no {noun} 1x1x1 in the public graph"));
            let detail = detail(&status);
            assert_eq!(detail.facts["kind"], format!("graph_{noun}"), "the contract's word, for programs");
            assert!(!detail.hint.contains('_'), "{}", detail.hint);
        }
    }

    #[test]
    fn the_state_of_a_channel_is_told_in_words() {
        let status = channel_state(ChannelState::ShuttingDown, "have a policy");
        assert_eq!(status.message(), "the channel is shutting down: it cannot have a policy");
        assert_eq!(detail(&status).facts["state"], "ShuttingDown", "as programs know it");
    }

    #[test]
    fn the_codes_that_clients_act_on() {
        assert_eq!(key(KeyError::Conflict).code(), Code::AlreadyExists);
        assert_eq!(key(KeyError::Empty).code(), Code::InvalidArgument);
        assert_eq!(not_ready(&Readiness::Recovering).code(), Code::Unavailable);
        assert_eq!(not_ready(&Readiness::Stopping).code(), Code::Unavailable);
        let catching_up = not_ready(&Readiness::CatchingUp { height: 5, headers: Some(9) });
        let facts = detail(&catching_up).facts;
        assert_eq!((facts["stage"].as_str(), facts["done"].as_str(), facts["total"].as_str()), ("chain", "5", "9"));
        let oldest = millrace_journal::Position { frame: 7, index: 3 };
        let gone = events(&EventsError::Gone { from: millrace_journal::Position::START, oldest });
        assert_eq!(gone.code(), Code::OutOfRange);
        assert_eq!(detail(&gone).facts["oldest_frame"], "7");
    }
}
