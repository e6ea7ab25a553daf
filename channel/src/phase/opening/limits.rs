//! What may be agreed on at opening, and every reason why something may not (BOLT 2, "The `open_channel` Message",
//! "The `accept_channel` Message").
//!
//! What BOLT 2 demands of everyone is fixed here; what it leaves to each node is in [`OpeningLimits`].

use millrace_wire::{ChainHash, ChannelId, Feature, Features, FeeratePerKw, Msat, Sat};

use super::request::OpeningFeatures;
use crate::ledger::limits::HTLCS_MAX;
use crate::phase::normal::FEERATE_MAX;
use crate::side::{Both, Side};
use crate::terms::{ChannelType, CommitmentFormat, PartyTerms};
use crate::tx::weight::{anchors_value, commit_fee};
use crate::tx::{BadShutdownScript, check_shutdown_script};

/// BOLT 3, "Dust Limits": with less, an output to a later segwit version would not be relayed.
pub const DUST_LIMIT_MIN: Sat = Sat(354);

/// The dust threshold of the costliest output: more would only let the peer burn HTLCs as fees.
pub const DUST_LIMIT_MAX: Sat = Sat(546);

/// BOLT 2: from here on a channel needs `option_support_large_channel`.
pub const LARGE_CHANNEL: Sat = Sat(1 << 24);

/// A reserve up to this is never too large: other implementations ask for it however small the channel is.
const RESERVE_ALWAYS_FINE: Sat = Sat(1_000);

/// What this node takes of a peer, where BOLT 2 leaves it the choice.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpeningLimits {
    /// The smallest channel.
    pub funding_min: Sat,
    /// The largest channel.
    pub funding_max: Sat,
    /// The longest that our own money may be delayed, in blocks.
    pub to_self_delay_max: u16,
    /// The most that the peer may ask us to keep, in percent of the channel (and at least 1,000 sat).
    pub reserve_percent_max: u64,
    /// The largest HTLC that may be the peer's smallest.
    pub htlc_minimum_max: Msat,
    /// The least that we must be able to have in flight.
    pub in_flight_min: Msat,
    /// The fewest HTLCs that we must be able to offer at once.
    pub accepted_htlcs_min: u16,
    /// The most confirmations that the peer may wait for before `channel_ready`.
    pub minimum_depth_max: u32,
}

impl Default for OpeningLimits {
    fn default() -> Self {
        Self {
            funding_min: Sat(20_000),
            funding_max: Sat::MAX_MONEY,
            to_self_delay_max: 2016,
            reserve_percent_max: 5,
            htlc_minimum_max: Msat(1_000_000),
            in_flight_min: Msat(1_000_000),
            accepted_htlcs_min: 1,
            minimum_depth_max: 144,
        }
    }
}

/// Why a channel cannot be opened as it was proposed, by either side.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unacceptable {
    /// Another chain.
    #[error("chain_hash {theirs}: this node is on chain {ours}")]
    WrongChain {
        /// In `open_channel`.
        theirs: ChainHash,
        /// Of this node.
        ours: ChainHash,
    },
    /// It names every channel with the peer, or one that exists.
    #[error("temporary_channel_id {0} is taken")]
    TemporaryIdTaken(ChannelId),
    /// The channel would be too small.
    #[error("funding_satoshis {funding} is below the minimum of {min}")]
    FundingTooSmall {
        /// Proposed.
        funding: Sat,
        /// Of the node that refuses.
        min: Sat,
    },
    /// The channel would be too large.
    #[error("funding_satoshis {funding} is above the maximum of {max}")]
    FundingTooLarge {
        /// Proposed.
        funding: Sat,
        /// Of the node that refuses.
        max: Sat,
    },
    /// 2^24 sat and more need a feature on both sides.
    #[error("funding_satoshis {funding} is not below {LARGE_CHANNEL} without option_support_large_channel")]
    NotLargeChannel {
        /// Proposed.
        funding: Sat,
    },
    /// More is given away than there is.
    #[error("push_msat {push} exceeds funding_satoshis {funding}")]
    PushTooLarge {
        /// Proposed.
        push: Msat,
        /// Proposed.
        funding: Sat,
    },
    /// Not what BOLT 3 and this node allow.
    #[error("dust_limit_satoshis {dust_limit} is not between {DUST_LIMIT_MIN} and {DUST_LIMIT_MAX}")]
    DustLimit {
        /// Announced.
        dust_limit: Sat,
    },
    /// Cheating would be free if a reserve could be dust.
    #[error("channel_reserve_satoshis {reserve} is below dust_limit_satoshis {dust_limit}")]
    ReserveBelowDust {
        /// Announced by either side.
        reserve: Sat,
        /// Announced by the same side or the other.
        dust_limit: Sat,
    },
    /// Too much could never be spent.
    #[error("channel_reserve_satoshis {reserve} is above the maximum of {max}")]
    ReserveTooLarge {
        /// Announced.
        reserve: Sat,
        /// Of the node that refuses.
        max: Sat,
    },
    /// Our own money would be locked up for too long.
    #[error("to_self_delay {delay} is above the maximum of {max} blocks")]
    DelayTooLong {
        /// Announced.
        delay: u16,
        /// Of the node that refuses.
        max: u16,
    },
    /// More than fit a transaction, or too few.
    #[error("max_accepted_htlcs {count} is not between {min} and {HTLCS_MAX}")]
    AcceptedHtlcs {
        /// Announced.
        count: u16,
        /// Of the node that refuses.
        min: u16,
    },
    /// Ordinary payments would be too small.
    #[error("htlc_minimum_msat {minimum} is above the maximum of {max}")]
    HtlcMinimumTooLarge {
        /// Announced.
        minimum: Msat,
        /// Of the node that refuses.
        max: Msat,
    },
    /// Ordinary payments would be too large.
    #[error("max_htlc_value_in_flight_msat {in_flight} is below the minimum of {min}")]
    InFlightTooSmall {
        /// Announced.
        in_flight: Msat,
        /// Of the node that refuses.
        min: Msat,
    },
    /// The commitment would not be relayed, or costs absurdly much.
    #[error("feerate_per_kw {} is not between {} and {}", feerate.0, FeeratePerKw::FLOOR.0, FEERATE_MAX.0)]
    Feerate {
        /// Proposed.
        feerate: FeeratePerKw,
    },
    /// The funder would owe more than it has.
    #[error("the funder has {funder} and cannot pay {cost} for the first commitment")]
    CannotPayFee {
        /// The funder's balance.
        funder: Sat,
        /// Fee and anchors.
        cost: Sat,
    },
    /// Nobody would have anything to spend.
    #[error("neither {funder} of the funder nor {other} of the other side exceeds channel_reserve_satoshis {reserve}")]
    BothBelowReserve {
        /// After fee and anchors.
        funder: Sat,
        /// What is pushed.
        other: Sat,
        /// The reserve that neither exceeds.
        reserve: Sat,
    },
    /// The channel would be usable too late.
    #[error("minimum_depth {depth} is above the maximum of {max}")]
    DepthTooLarge {
        /// Announced.
        depth: u32,
        /// Of the node that refuses.
        max: u32,
    },
    /// BOLT 2: a zero-conf channel waits for no confirmation.
    #[error("minimum_depth {depth} for a channel_type with option_zeroconf, which has 0")]
    DepthOfZeroConf {
        /// Announced.
        depth: u32,
    },
    /// The peer is not trusted with it.
    #[error("channel_type has option_zeroconf, which this peer is not allowed")]
    ZeroConfNotAllowed,
    /// BOLT 2: there must be one.
    #[error("there is no channel_type")]
    NoChannelType,
    /// Nothing this node knows.
    #[error("channel_type {0} is not known")]
    UnknownChannelType(Features),
    /// BOLT 2: it is the same in both messages.
    #[error("channel_type {theirs} in accept_channel where {ours} was proposed")]
    OtherChannelType {
        /// Proposed.
        ours: Features,
        /// Accepted.
        theirs: Features,
    },
    /// The peer did not say that it has the feature.
    #[error("the channel_type needs {0}, which the peer does not have")]
    NotNegotiated(Feature),
    /// BOLT 2: an announced channel tells its real short channel id.
    #[error("an announced channel cannot have option_scid_alias")]
    AnnouncedAlias,
    /// Not a script that a mutual close may pay to.
    #[error("upfront_shutdown_script: {0}")]
    ShutdownScript(#[from] BadShutdownScript),
    /// Another channel spends the same output, or is called the same.
    #[error("channel {0} exists already")]
    ChannelIdTaken(ChannelId),
    /// The transaction does not pay for the channel.
    #[error("output {vout} of the funding transaction is not exactly {amount} to the agreed script")]
    WrongFundingOutput {
        /// Where it should be.
        vout: u32,
        /// What it should hold.
        amount: Sat,
    },
    /// The transaction's id could be changed by others, or is not final.
    #[error("input {input} of the funding transaction is not a signed native segwit one")]
    MalleableInput {
        /// Which.
        input: usize,
    },
    /// A transaction spends something.
    #[error("the funding transaction has no input")]
    NoInput,
}

/// The largest reserve that the peer may ask for.
fn reserve_max(limits: &OpeningLimits, funding: Sat) -> Sat {
    let share = u128::from(funding.0) * u128::from(limits.reserve_percent_max) / 100;
    RESERVE_ALWAYS_FINE.max(Sat(u64::try_from(share).unwrap_or(u64::MAX)))
}

/// What must hold of anybody's announcement.
pub(super) fn check_party(party: &PartyTerms) -> Result<(), Unacceptable> {
    let PartyTerms { dust_limit, channel_reserve: reserve, max_accepted_htlcs: count, .. } = *party;
    if !(DUST_LIMIT_MIN..=DUST_LIMIT_MAX).contains(&dust_limit) {
        return Err(Unacceptable::DustLimit { dust_limit });
    }
    if reserve < dust_limit {
        return Err(Unacceptable::ReserveBelowDust { reserve, dust_limit });
    }
    if !(1..=HTLCS_MAX).contains(&count) {
        return Err(Unacceptable::AcceptedHtlcs { count, min: 1 });
    }
    Ok(())
}

/// What must hold of the peer's announcement, as this node likes it.
pub(super) fn check_remote(party: &PartyTerms, limits: &OpeningLimits, funding: Sat) -> Result<(), Unacceptable> {
    check_party(party)?;
    let max = reserve_max(limits, funding);
    if party.channel_reserve > max {
        return Err(Unacceptable::ReserveTooLarge { reserve: party.channel_reserve, max });
    }
    if party.to_self_delay > limits.to_self_delay_max {
        return Err(Unacceptable::DelayTooLong { delay: party.to_self_delay, max: limits.to_self_delay_max });
    }
    if party.max_accepted_htlcs < limits.accepted_htlcs_min {
        let (count, min) = (party.max_accepted_htlcs, limits.accepted_htlcs_min);
        return Err(Unacceptable::AcceptedHtlcs { count, min });
    }
    if party.htlc_minimum > limits.htlc_minimum_max {
        let (minimum, max) = (party.htlc_minimum, limits.htlc_minimum_max);
        return Err(Unacceptable::HtlcMinimumTooLarge { minimum, max });
    }
    if party.max_htlc_value_in_flight < limits.in_flight_min {
        let (in_flight, min) = (party.max_htlc_value_in_flight, limits.in_flight_min);
        return Err(Unacceptable::InFlightTooSmall { in_flight, min });
    }
    Ok(())
}

/// BOLT 2: neither side's dust limit is above the reserve that the other asks for.
pub(super) fn check_reserves(parties: &Both<PartyTerms>) -> Result<(), Unacceptable> {
    for side in [Side::Local, Side::Remote] {
        let (reserve, dust_limit) = (parties.of(side).channel_reserve, parties.of(side.other()).dust_limit);
        if reserve < dust_limit {
            return Err(Unacceptable::ReserveBelowDust { reserve, dust_limit });
        }
    }
    Ok(())
}

/// The size of the channel.
pub(super) fn check_funding(
    funding: Sat,
    push: Msat,
    limits: &OpeningLimits,
    is_large_allowed: bool,
) -> Result<(), Unacceptable> {
    let max = limits.funding_max.min(Sat::MAX_MONEY);
    if funding > max {
        return Err(Unacceptable::FundingTooLarge { funding, max });
    }
    if funding >= LARGE_CHANNEL && !is_large_allowed {
        return Err(Unacceptable::NotLargeChannel { funding });
    }
    if funding < limits.funding_min {
        return Err(Unacceptable::FundingTooSmall { funding, min: limits.funding_min });
    }
    if push > funding.to_msat() {
        return Err(Unacceptable::PushTooLarge { push, funding });
    }
    Ok(())
}

/// What the first commitment costs the funder, and whether anybody then has something to spend. `push` was checked.
pub(super) fn check_affordable(
    format: CommitmentFormat,
    feerate: FeeratePerKw,
    funding: Sat,
    push: Msat,
    reserve: Sat,
) -> Result<(), Unacceptable> {
    if !(FeeratePerKw::FLOOR..=FEERATE_MAX).contains(&feerate) {
        return Err(Unacceptable::Feerate { feerate });
    }
    let cost = commit_fee(format, feerate, 0);
    let cost = cost.checked_add(anchors_value(format)).expect("a bounded feerate has a bounded fee");
    let funder = funding.to_msat().saturating_sub(push).floor_to_sat();
    let Some(rest) = funder.checked_sub(cost) else {
        return Err(Unacceptable::CannotPayFee { funder, cost });
    };
    let other = push.floor_to_sat();
    if rest <= reserve && other <= reserve {
        return Err(Unacceptable::BothBelowReserve { funder: rest, other, reserve });
    }
    Ok(())
}

/// The type that the peer names.
pub(super) fn channel_type_of(features: Option<&Features>) -> Result<ChannelType, Unacceptable> {
    let features = features.ok_or(Unacceptable::NoChannelType)?;
    ChannelType::from_features(features).ok_or_else(|| Unacceptable::UnknownChannelType(features.clone()))
}

/// BOLT 2: what goes together with an announced channel.
pub(super) fn check_announced(channel_type: ChannelType, announce: bool) -> Result<(), Unacceptable> {
    if announce && channel_type.scid_alias { Err(Unacceptable::AnnouncedAlias) } else { Ok(()) }
}

/// BOLT 2: this node proposes no type with a feature that the peer does not have.
pub(super) fn check_negotiated(channel_type: ChannelType, features: &OpeningFeatures) -> Result<(), Unacceptable> {
    let needed = [
        (channel_type.format == CommitmentFormat::Anchors, features.anchors, Feature::Anchors),
        (channel_type.scid_alias, features.scid_alias, Feature::ScidAlias),
        (channel_type.zero_conf, features.zero_conf, Feature::Zeroconf),
    ];
    match needed.into_iter().find(|(is_needed, is_there, _)| *is_needed && !is_there) {
        Some((_, _, feature)) => Err(Unacceptable::NotNegotiated(feature)),
        None => Ok(()),
    }
}

/// The script that a side commits to; an empty one is none.
pub(super) fn check_upfront(
    script: Option<bitcoin::ScriptBuf>,
    features: &OpeningFeatures,
) -> Result<Option<bitcoin::ScriptBuf>, Unacceptable> {
    let script = script.filter(|script| !script.is_empty());
    if let Some(script) = &script {
        check_shutdown_script(script, features.link.shutdown_anysegwit, features.link.simple_close)?;
    }
    Ok(script)
}
