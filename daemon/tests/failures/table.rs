//! The failures of BOLT 4, "Failure Messages": which hops may raise each, and how each of these is brought to it.

use millrace_routing::failure::code;

use crate::four::{B, C, D};

/// Who may raise a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Who {
    /// "An erring node".
    Any,
    /// "A forwarding node".
    Forwarding,
    /// "The final node".
    Final,
}

impl Who {
    pub(crate) const fn hops(self) -> &'static [usize] {
        match self {
            Self::Any => &[B, C, D],
            Self::Forwarding => &[B, C],
            Self::Final => &[D],
        }
    }
}

/// A failure that BOLT 4 defines.
pub(crate) struct Code {
    pub(crate) code: u16,
    pub(crate) name: &'static str,
    pub(crate) who: Who,
}

const fn code(code: u16, name: &'static str, who: Who) -> Code {
    Code { code, name, who }
}

/// All that BOLT 4 lists. PERM|16 and 17 are gone from it: they told too much of the payee. What is said of an onion that
/// cannot be read is for forwarders, says BOLT 4; but who cannot read it does not know whether it was the last.
pub(crate) const BOLT_4: [Code; 23] = [
    code(code::INVALID_REALM, "invalid_realm", Who::Any),
    code(code::TEMPORARY_NODE_FAILURE, "temporary_node_failure", Who::Any),
    code(code::PERMANENT_NODE_FAILURE, "permanent_node_failure", Who::Any),
    code(code::REQUIRED_NODE_FEATURE_MISSING, "required_node_feature_missing", Who::Any),
    code(code::INVALID_ONION_VERSION, "invalid_onion_version", Who::Any),
    code(code::INVALID_ONION_HMAC, "invalid_onion_hmac", Who::Any),
    code(code::INVALID_ONION_KEY, "invalid_onion_key", Who::Any),
    code(code::TEMPORARY_CHANNEL_FAILURE, "temporary_channel_failure", Who::Forwarding),
    code(code::PERMANENT_CHANNEL_FAILURE, "permanent_channel_failure", Who::Forwarding),
    code(code::REQUIRED_CHANNEL_FEATURE_MISSING, "required_channel_feature_missing", Who::Forwarding),
    code(code::UNKNOWN_NEXT_PEER, "unknown_next_peer", Who::Forwarding),
    code(code::AMOUNT_BELOW_MINIMUM, "amount_below_minimum", Who::Forwarding),
    code(code::FEE_INSUFFICIENT, "fee_insufficient", Who::Forwarding),
    code(code::INCORRECT_CLTV_EXPIRY, "incorrect_cltv_expiry", Who::Forwarding),
    code(code::EXPIRY_TOO_SOON, "expiry_too_soon", Who::Forwarding),
    code(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, "incorrect_or_unknown_payment_details", Who::Final),
    code(code::FINAL_INCORRECT_CLTV_EXPIRY, "final_incorrect_cltv_expiry", Who::Final),
    code(code::FINAL_INCORRECT_HTLC_AMOUNT, "final_incorrect_htlc_amount", Who::Final),
    code(code::CHANNEL_DISABLED, "channel_disabled", Who::Forwarding),
    code(code::EXPIRY_TOO_FAR, "expiry_too_far", Who::Forwarding),
    code(code::INVALID_ONION_PAYLOAD, "invalid_onion_payload", Who::Any),
    code(code::MPP_TIMEOUT, "mpp_timeout", Who::Final),
    code(code::INVALID_ONION_BLINDING, "invalid_onion_blinding", Who::Any),
];

/// What this node never raises, and why. That it reads it when another one does is in the table nevertheless.
pub(crate) const NEVER_RAISED: [(u16, &str); 4] = [
    (code::INVALID_REALM, "the realm byte went with the payloads that it began: now a length stands there"),
    (code::PERMANENT_NODE_FAILURE, "nothing that keeps this node from forwarding is for good"),
    (code::REQUIRED_NODE_FEATURE_MISSING, "it asks of onions nothing that BOLT 4 does not ask of all"),
    (code::REQUIRED_CHANNEL_FEATURE_MISSING, "its channels are announced without any requirement"),
];

/// How a hop is brought to fail an HTLC.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Cause {
    // What Alice's map has wrong of the hop's channel:
    UnknownChannel,
    LowFee,
    ShortDelta,
    /// The node at the hop has another key.
    WrongNode,
    // How the hop's chain or channel is:
    NoChain,
    /// For so many blocks, the hop's chain is ahead of Alice's.
    ChainAhead(u32),
    ChainBehind,
    TooMuch,
    BelowMinimum,
    AboveMaximum,
    PeerAway,
    ShuttingDown,
    Closed,
    // What becomes of the onion, or of the HTLC, on its way to the hop:
    /// This byte of the onion is changed.
    Spoiled(usize),
    PathKey,
    // What the onion says that Alice made by hand:
    /// The hop is in a blinded path, which this node does not understand.
    BlindedPayload,
    /// A record of an even type that nobody knows.
    UnknownRecord,
    FinalAmount,
    FinalExpiry,
    /// Of a payment in two parts.
    LonePart,
    AlreadyPaid,
    // What an invoice says that is not in Dave's books:
    UnknownHash,
    WrongSecret,
    TooLittle,
    MoreThanTwice,
    TooLate,
    Cancelled,
    Expired,
    /// A node of another make raises it: the tap before it says so with that node's key.
    Foreign,
}

/// Rows that need the same nodes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Group {
    Forwarding,
    Wire,
    Payee,
    Endings,
}

impl Cause {
    pub(crate) const fn group(self) -> Group {
        match self {
            Self::UnknownChannel
            | Self::LowFee
            | Self::ShortDelta
            | Self::NoChain
            | Self::ChainAhead(_)
            | Self::ChainBehind
            | Self::TooMuch
            | Self::BelowMinimum
            | Self::AboveMaximum
            | Self::PeerAway => Group::Forwarding,
            Self::WrongNode | Self::Spoiled(_) | Self::PathKey | Self::BlindedPayload | Self::Foreign => Group::Wire,
            Self::UnknownRecord
            | Self::FinalAmount
            | Self::FinalExpiry
            | Self::LonePart
            | Self::AlreadyPaid
            | Self::UnknownHash
            | Self::WrongSecret
            | Self::TooLittle
            | Self::MoreThanTwice
            | Self::TooLate
            | Self::Cancelled
            | Self::Expired => Group::Payee,
            Self::ShuttingDown | Self::Closed => Group::Endings,
        }
    }
}

/// A failure, the hops that raise it, and what makes them.
pub(crate) struct Row {
    pub(crate) code: u16,
    pub(crate) at: &'static [usize],
    pub(crate) cause: Cause,
}

const fn row(code: u16, at: &'static [usize], cause: Cause) -> Row {
    Row { code, at, cause }
}

const FORWARDERS: &[usize] = &[B, C];
const ALL: &[usize] = &[B, C, D];
const PAYEE: &[usize] = &[D];

/// Where in an onion the ephemeral key stands, and something that only its HMAC covers.
const KEY_AT: usize = 1;
const INFO_AT: usize = 200;

pub(crate) const TABLE: &[Row] = &[
    row(code::UNKNOWN_NEXT_PEER, FORWARDERS, Cause::UnknownChannel),
    row(code::FEE_INSUFFICIENT, FORWARDERS, Cause::LowFee),
    row(code::INCORRECT_CLTV_EXPIRY, FORWARDERS, Cause::ShortDelta),
    row(code::TEMPORARY_NODE_FAILURE, ALL, Cause::NoChain),
    // The HTLC to Dave expires 45 blocks from Alice's height, the one to Carol 80 later.
    row(code::EXPIRY_TOO_SOON, &[B], Cause::ChainAhead(118)),
    row(code::EXPIRY_TOO_SOON, &[C], Cause::ChainAhead(38)),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::ChainAhead(4)),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::ChainAhead(40)),
    row(code::EXPIRY_TOO_FAR, FORWARDERS, Cause::ChainBehind),
    row(code::TEMPORARY_CHANNEL_FAILURE, FORWARDERS, Cause::TooMuch),
    row(code::TEMPORARY_CHANNEL_FAILURE, FORWARDERS, Cause::AboveMaximum),
    row(code::TEMPORARY_CHANNEL_FAILURE, FORWARDERS, Cause::PeerAway),
    row(code::AMOUNT_BELOW_MINIMUM, FORWARDERS, Cause::BelowMinimum),
    row(code::INVALID_ONION_VERSION, ALL, Cause::Spoiled(0)),
    row(code::INVALID_ONION_KEY, ALL, Cause::Spoiled(KEY_AT)),
    row(code::INVALID_ONION_HMAC, ALL, Cause::Spoiled(INFO_AT)),
    row(code::INVALID_ONION_HMAC, &[C], Cause::WrongNode),
    row(code::INVALID_ONION_BLINDING, ALL, Cause::PathKey),
    row(code::INVALID_ONION_PAYLOAD, FORWARDERS, Cause::BlindedPayload),
    row(code::INVALID_ONION_PAYLOAD, PAYEE, Cause::UnknownRecord),
    row(code::FINAL_INCORRECT_HTLC_AMOUNT, PAYEE, Cause::FinalAmount),
    row(code::FINAL_INCORRECT_CLTV_EXPIRY, PAYEE, Cause::FinalExpiry),
    row(code::MPP_TIMEOUT, PAYEE, Cause::LonePart),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::AlreadyPaid),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::UnknownHash),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::WrongSecret),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::TooLittle),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::MoreThanTwice),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::TooLate),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::Cancelled),
    row(code::INCORRECT_OR_UNKNOWN_PAYMENT_DETAILS, PAYEE, Cause::Expired),
    row(code::CHANNEL_DISABLED, FORWARDERS, Cause::ShuttingDown),
    row(code::PERMANENT_CHANNEL_FAILURE, FORWARDERS, Cause::Closed),
    // Never raised here; and what an onion of our own cannot bring about, so that its words are seen as well.
    row(code::INVALID_REALM, ALL, Cause::Foreign),
    row(code::PERMANENT_NODE_FAILURE, ALL, Cause::Foreign),
    row(code::REQUIRED_NODE_FEATURE_MISSING, ALL, Cause::Foreign),
    row(code::REQUIRED_CHANNEL_FEATURE_MISSING, FORWARDERS, Cause::Foreign),
    row(code::INVALID_ONION_PAYLOAD, ALL, Cause::Foreign),
    row(code::FINAL_INCORRECT_HTLC_AMOUNT, PAYEE, Cause::Foreign),
    row(code::FINAL_INCORRECT_CLTV_EXPIRY, PAYEE, Cause::Foreign),
    row(code::MPP_TIMEOUT, PAYEE, Cause::Foreign),
];

/// BOLT 4's list as it was read, against what the node can name; and the table against the list.
#[test]
fn every_failure_of_bolt_4_stands_in_the_table_for_every_hop_that_may_raise_it() {
    let unnamed = code::name(0);
    let named: Vec<u16> = (0..=u16::MAX).filter(|code| code::name(*code) != unnamed).collect();
    let mut listed: Vec<u16> = BOLT_4.iter().map(|one| one.code).collect();
    listed.sort_unstable();
    assert_eq!(named, listed, "what is named, and what BOLT 4 lists");
    for Code { code, name, who } in &BOLT_4 {
        assert_eq!(code::name(*code), *name);
        let never = NEVER_RAISED.iter().find(|(never, _)| never == code);
        for at in who.hops() {
            let has = |is_foreign: bool| {
                let is_it = |row: &&Row| row.code == *code && row.at.contains(at);
                TABLE.iter().filter(is_it).any(|row| (row.cause == Cause::Foreign) == is_foreign)
            };
            match never {
                Some((_, reason)) => assert!(has(true) && !has(false) && !reason.is_empty(), "{name} at {at}"),
                None => assert!(has(false), "{name} is not raised at {at}"),
            }
        }
        let elsewhere = TABLE.iter().filter(|row| row.code == *code).flat_map(|row| row.at);
        assert!(elsewhere.clone().all(|at| who.hops().contains(at)), "{name} is raised where it must not be");
    }
}
