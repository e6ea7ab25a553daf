//! What may be added (BOLT 2, "Adding an HTLC", "Updating Fees"; interop.md's "what the receiver may refuse").
//!
//! Two different questions with two different answers. *May we offer it?* is answered carefully: every HTLC that
//! any commitment may still hold counts, credit only what the peer can no longer take back, keep the fee-spike
//! buffer and the dust limit. *May the peer offer it?* is answered exactly as BOLT 2 says, on the one
//! commitment that will hold it: a receiver that demands more would fault honest peers.

use millrace_wire::{CltvExpiry, FeeratePerKw, Msat, Sat};

use crate::fault::Refusal;
use crate::ledger::stage::Stage;
use crate::ledger::{Ledger, Which};
use crate::side::{Both, Side};
use crate::terms::{CommitmentFormat, Terms};
use crate::tx::commitment::CommitmentHtlc;
use crate::tx::weight::{commit_fee, is_trimmed};

/// BOLT 2's bound on `max_accepted_htlcs`: with it, two full sides still fit a commitment and its penalty into a
/// standard transaction.
pub const HTLCS_MAX: u16 = 483;

/// BOLT 2: from here on a `cltv_expiry` would be read as a time.
pub const CLTV_EXPIRY_LIMIT: u32 = 500_000_000;

/// How much the fee is assumed to rise while an HTLC is under way (BOLT 2's recommendation for the funder).
const FEE_SPIKE_MULTIPLE: u32 = 2;

/// So many HTLCs of the peer may cross an `update_fee` that raises the feerate, and be paid for all the same: about as
/// many as the fee-spike buffer carries at today's feerate. (LDK closes if we cannot pay for them.)
const CROSSING_ADDS: usize = 10;

/// Both anchors of a commitment, which the funder pays.
const ANCHORS: Sat = Sat(660);

/// Everything that any present or coming commitment may still hold, summed carefully.
struct Pending {
    balances: Both<i128>,
    count: Both<usize>,
    in_flight: Both<u128>,
    /// By whose commitment it is.
    untrimmed: Both<usize>,
    /// By whose commitment it is.
    dust: Both<u128>,
}

impl Pending {
    /// `feerate` decides what is trimmed when fees are counted, `dust_feerate` what counts as dust.
    fn of(ledger: &Ledger, terms: &Terms, feerate: FeeratePerKw, dust_feerate: FeeratePerKw) -> Self {
        let settled = ledger.settled();
        let mut pending = Self {
            balances: Both { local: i128::from(settled.local.0), remote: i128::from(settled.remote.0) },
            count: Both::default(),
            in_flight: Both::default(),
            untrimmed: Both::default(),
            dust: Both::default(),
        };
        for side in [Side::Local, Side::Remote] {
            for htlc in ledger.htlcs(side) {
                let amount = htlc.add.amount;
                match htlc.removal() {
                    Some((stage, removal)) if stage >= Stage::Acked => {
                        if removal.is_fulfill() {
                            *pending.balances.of_mut(side) -= i128::from(amount.0);
                            *pending.balances.of_mut(side.other()) += i128::from(amount.0);
                        }
                    }
                    Some(_) | None => pending.count_in(side, amount, terms, feerate, dust_feerate),
                }
            }
            for add in ledger.proposed(side) {
                pending.count_in(side, add.amount, terms, feerate, dust_feerate);
            }
        }
        pending
    }

    fn count_in(&mut self, side: Side, amount: Msat, terms: &Terms, feerate: FeeratePerKw, dust_feerate: FeeratePerKw) {
        *self.balances.of_mut(side) -= i128::from(amount.0);
        *self.count.of_mut(side) += 1;
        *self.in_flight.of_mut(side) += u128::from(amount.0);
        for broadcaster in [Side::Local, Side::Remote] {
            if !trimmed_in(terms, broadcaster, feerate, side, amount) {
                *self.untrimmed.of_mut(broadcaster) += 1;
            }
            if trimmed_in(terms, broadcaster, dust_feerate, side, amount) {
                *self.dust.of_mut(broadcaster) += u128::from(amount.0);
            }
        }
    }

    /// The highest fee of either side's commitment with `more` HTLCs on top, anchors included, in msat.
    fn funder_cost(&self, terms: &Terms, feerate: FeeratePerKw, more: usize) -> i128 {
        let untrimmed = self.untrimmed.local.max(self.untrimmed.remote) + more;
        funder_cost(terms.format(), feerate, untrimmed)
    }
}

/// What the funder pays for a commitment with this many HTLC outputs, in msat.
fn funder_cost(format: CommitmentFormat, feerate: FeeratePerKw, untrimmed: usize) -> i128 {
    let anchors = match format {
        CommitmentFormat::StaticRemotekey => Sat::ZERO,
        CommitmentFormat::Anchors => ANCHORS,
    };
    i128::from(commit_fee(format, feerate, untrimmed).to_msat().0) + i128::from(anchors.to_msat().0)
}

fn trimmed_in(terms: &Terms, broadcaster: Side, feerate: FeeratePerKw, offered_by: Side, amount: Msat) -> bool {
    let dust_limit = terms.party(broadcaster).dust_limit;
    is_trimmed(terms.format(), dust_limit, feerate, offered_by == broadcaster, amount)
}

/// The feerate at which HTLCs are counted as dust: without anchors a rising fee turns HTLCs into dust, so a
/// quarter is added; with anchors it plays no part.
fn dust_feerate(feerate: FeeratePerKw) -> FeeratePerKw {
    FeeratePerKw(feerate.0.saturating_add(feerate.0 / 4))
}

/// The first amount that is not trimmed in the broadcaster's commitment, for an HTLC offered by `offered_by`.
fn dust_threshold(terms: &Terms, broadcaster: Side, feerate: FeeratePerKw, offered_by: Side) -> Msat {
    let (mut low, mut high) = (0_u64, Sat::MAX_MONEY.to_msat().0);
    while low < high {
        let middle = low + (high - low) / 2;
        if trimmed_in(terms, broadcaster, feerate, offered_by, Msat(middle)) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    Msat(low)
}

/// The bounds on one more HTLC offered by this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct OfferBounds {
    slots_used: usize,
    slots: u16,
    minimum: Msat,
    in_flight_left: Msat,
    balance_left: Msat,
    funder_short: bool,
    /// By whose commitment: the threshold and what is left of the exposure.
    dust: Both<(Msat, Msat)>,
}

impl OfferBounds {
    /// The bounds as the ledger stands now.
    pub(crate) fn new(ledger: &Ledger, terms: &Terms, max_dust_exposure: Msat) -> Self {
        let feerate = ledger.feerate_max();
        let spike = FeeratePerKw(feerate.0.saturating_mul(FEE_SPIKE_MULTIPLE));
        let dust_rate = dust_feerate(feerate);
        let pending = Pending::of(ledger, terms, feerate, dust_rate);
        let remote = terms.party(Side::Remote);
        let reserve = i128::from(terms.reserve_of(Side::Local).to_msat().0);
        let mut balance = pending.balances.local - reserve;
        let mut funder_short = false;
        match terms.funder {
            // This HTLC and a further one, at twice the feerate.
            Side::Local => balance -= pending.funder_cost(terms, spike, 2),
            Side::Remote => {
                let left = pending.balances.remote - i128::from(terms.reserve_of(Side::Remote).to_msat().0);
                funder_short = left < pending.funder_cost(terms, feerate, 1);
            }
        }
        let left = |limit: Msat, used: u128| Msat(u64::try_from(u128::from(limit.0).saturating_sub(used)).unwrap_or(0));
        let dust = |side: Side| {
            (dust_threshold(terms, side, dust_rate, Side::Local), left(max_dust_exposure, *pending.dust.of(side)))
        };
        Self {
            slots_used: pending.count.local,
            // What we accept is bounded by what closing may cost, and so is what we offer.
            slots: remote.max_accepted_htlcs.min(terms.party(Side::Local).max_accepted_htlcs).min(HTLCS_MAX),
            minimum: Msat(remote.htlc_minimum.0.max(1)),
            in_flight_left: left(remote.max_htlc_value_in_flight, pending.in_flight.local),
            balance_left: Msat(u64::try_from(balance.max(0)).unwrap_or(0)),
            funder_short,
            dust: Both { local: dust(Side::Local), remote: dust(Side::Remote) },
        }
    }

    /// The most that one HTLC can carry now: exactly this much is accepted, one millisatoshi more is refused.
    pub(crate) fn available(&self) -> Msat {
        if self.slots_used >= usize::from(self.slots) || self.funder_short {
            return Msat::ZERO;
        }
        let bound = Msat(self.in_flight_left.0.min(self.balance_left.0));
        let largest = self.largest_within_dust(bound);
        if largest < self.minimum { Msat::ZERO } else { largest }
    }

    /// The largest amount up to `bound` that keeps the dust exposure: going down, first the amounts that are
    /// dust nowhere, then those that are dust in one commitment, then in both.
    fn largest_within_dust(&self, bound: Msat) -> Msat {
        let Both { local, remote } = self.dust;
        let (high, low) = if local.0 >= remote.0 { (local, remote) } else { (remote, local) };
        if bound >= high.0 {
            return bound;
        }
        let in_one = bound.min(high.1);
        if in_one >= low.0 {
            return in_one;
        }
        let below = Msat(low.0.0.saturating_sub(1));
        bound.min(below).min(high.1).min(low.1)
    }

    /// Whether an HTLC of `amount` may be offered.
    pub(crate) fn check(&self, amount: Msat) -> Result<(), Refusal> {
        if amount < self.minimum {
            return Err(Refusal::BelowMinimum { amount, minimum: self.minimum });
        }
        if self.slots_used >= usize::from(self.slots) {
            return Err(Refusal::TooManyHtlcs { max: self.slots });
        }
        if amount > self.in_flight_left {
            return Err(Refusal::TooMuchInFlight { amount, left: self.in_flight_left });
        }
        if self.funder_short {
            return Err(Refusal::FunderCannotPayFee);
        }
        if amount > self.balance_left {
            return Err(Refusal::InsufficientBalance { amount, available: self.balance_left });
        }
        for (threshold, left) in [self.dust.local, self.dust.remote] {
            if amount < threshold && amount > left {
                return Err(Refusal::DustExposure { amount, left });
            }
        }
        Ok(())
    }
}

/// Why the peer may not offer this HTLC.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddFault {
    /// Nothing, or less than we announced to take.
    #[error("{amount} is below htlc_minimum_msat {minimum}")]
    BelowMinimum {
        /// Of the add.
        amount: Msat,
        /// As announced.
        minimum: Msat,
    },
    /// One more than we announced to take.
    #[error("it would be the {count}th of max_accepted_htlcs {max}")]
    TooMany {
        /// With the add.
        count: usize,
        /// As announced.
        max: u16,
    },
    /// More than we announced to have in flight.
    #[error("{in_flight} in flight exceed max_htlc_value_in_flight_msat {max}")]
    TooMuchInFlight {
        /// With the add.
        in_flight: Msat,
        /// As announced.
        max: Msat,
    },
    /// The expiry is not a height.
    #[error("cltv_expiry {} is not below {CLTV_EXPIRY_LIMIT}", .0.0)]
    ExpiryIsATime(CltvExpiry),
    /// The peer does not have it.
    #[error("{amount} cannot be paid: {short_msat} msat short of amount, fee, anchors and reserve")]
    CannotAfford {
        /// Of the add.
        amount: Msat,
        /// What is missing, in msat.
        short_msat: u64,
    },
}

/// Whether the peer's `update_add_htlc` keeps to BOLT 2, on the commitment of ours that will hold it.
pub(crate) fn check_peer_add(
    ledger: &Ledger,
    terms: &Terms,
    amount: Msat,
    cltv_expiry: CltvExpiry,
) -> Result<(), AddFault> {
    let local = terms.party(Side::Local);
    if amount < local.htlc_minimum || amount == Msat::ZERO {
        return Err(AddFault::BelowMinimum { amount, minimum: local.htlc_minimum });
    }
    if cltv_expiry.0 >= CLTV_EXPIRY_LIMIT {
        return Err(AddFault::ExpiryIsATime(cltv_expiry));
    }
    let which = Which::Next(Side::Local);
    let cannot_afford =
        |short: i128| AddFault::CannotAfford { amount, short_msat: u64::try_from(short).unwrap_or(u64::MAX) };
    let view = ledger.view(which).map_err(|overdrawn| cannot_afford(i128::from(overdrawn.missing_msat)))?;
    let theirs = view.htlcs.iter().filter(|htlc| htlc.offered_by == Side::Remote);
    let (count, in_flight) =
        theirs.fold((1, u128::from(amount.0)), |(n, sum), htlc| (n + 1, sum + u128::from(htlc.amount.0)));
    if count > usize::from(local.max_accepted_htlcs) {
        return Err(AddFault::TooMany { count, max: local.max_accepted_htlcs });
    }
    if in_flight > u128::from(local.max_htlc_value_in_flight.0) {
        let in_flight = Msat(u64::try_from(in_flight).unwrap_or(u64::MAX));
        return Err(AddFault::TooMuchInFlight { in_flight, max: local.max_htlc_value_in_flight });
    }
    let mut needed = i128::from(amount.0) + i128::from(terms.reserve_of(Side::Remote).to_msat().0);
    if terms.funder == Side::Remote {
        let is_output = |offered_by, amount| !trimmed_in(terms, Side::Local, view.feerate, offered_by, amount);
        let outputs = view.htlcs.iter().filter(|htlc| is_output(htlc.offered_by, htlc.amount)).count();
        let untrimmed = outputs + usize::from(is_output(Side::Remote, amount));
        needed += funder_cost(terms.format(), view.feerate, untrimmed);
    }
    let short = needed - i128::from(view.balances.remote.0);
    if short > 0 { Err(cannot_afford(short)) } else { Ok(()) }
}

/// Whether the funder of the channel, this node, can pay a new feerate and keep its reserve, also for what the peer may
/// be offering just now.
pub(crate) fn check_update_fee(
    ledger: &Ledger,
    terms: &Terms,
    feerate: FeeratePerKw,
    max_dust_exposure: Msat,
) -> Result<(), Refusal> {
    let pending = Pending::of(ledger, terms, feerate, dust_feerate(feerate));
    let slots = usize::from(terms.party(Side::Local).max_accepted_htlcs).saturating_sub(pending.count.remote);
    let crossing = if feerate > ledger.feerate_max() { slots.min(CROSSING_ADDS) } else { 0 };
    let needed = pending.funder_cost(terms, feerate, crossing) + i128::from(terms.reserve_of(Side::Local).to_msat().0);
    if pending.balances.local < needed {
        return Err(Refusal::CannotAffordFeerate { feerate });
    }
    let exposed = pending.dust.local.max(pending.dust.remote);
    let before = Pending::of(ledger, terms, ledger.feerate_max(), dust_feerate(ledger.feerate_max()));
    let exposed_before = before.dust.local.max(before.dust.remote);
    if exposed > u128::from(max_dust_exposure.0) && exposed > exposed_before {
        return Err(Refusal::FeerateTurnsHtlcsIntoDust { feerate });
    }
    Ok(())
}

/// Whether the funder could still pay for what we have proposed if it were all sent again, after all that the peer has
/// proposed and we have acknowledged since. What is missing, in msat.
///
/// Adds and fees of both sides cross. The peer takes each as it comes, and the commitment that holds them all is built
/// with the fee clipped to what the funder has. But once our signature covers them they may have to be sent again, and
/// then they meet a commitment that holds the other side's already: BOLT 2 lets no funder offer or raise what it cannot
/// pay for there, and LDK closes also where it is the funder itself.
pub(crate) fn check_proposals(ledger: &Ledger, terms: &Terms) -> Result<(), u64> {
    let is_fee_ours = terms.funder == Side::Local && ledger.proposed_fee().is_some();
    if ledger.proposed(Side::Local).is_empty() && !is_fee_ours {
        return Ok(());
    }
    let view = ledger.view(Which::Next(Side::Remote)).map_err(|overdrawn| overdrawn.missing_msat)?;
    let outputs = |broadcaster| {
        let is_output =
            |htlc: &&CommitmentHtlc| !trimmed_in(terms, broadcaster, view.feerate, htlc.offered_by, htlc.amount);
        view.htlcs.iter().filter(is_output).count()
    };
    let cost = funder_cost(terms.format(), view.feerate, outputs(Side::Local).max(outputs(Side::Remote)));
    let needed = cost + i128::from(terms.reserve_of(terms.funder).to_msat().0);
    let short = needed - i128::from(view.balances.of(terms.funder).0);
    if short > 0 { Err(u64::try_from(short).unwrap_or(u64::MAX)) } else { Ok(()) }
}

/// Whether the peer, who funded, can pay the feerate that it proposes on our commitment. What is missing, in msat.
pub(crate) fn check_peer_fee(ledger: &Ledger, terms: &Terms, feerate: FeeratePerKw) -> Result<(), u64> {
    let Ok(view) = ledger.view(Which::Next(Side::Local)) else { return Err(u64::MAX) };
    let is_output = |offered_by, amount| !trimmed_in(terms, Side::Local, feerate, offered_by, amount);
    let untrimmed = view.htlcs.iter().filter(|htlc| is_output(htlc.offered_by, htlc.amount)).count();
    let short = funder_cost(terms.format(), feerate, untrimmed) - i128::from(view.balances.remote.0);
    if short > 0 { Err(u64::try_from(short).unwrap_or(u64::MAX)) } else { Ok(()) }
}

/// Whether the HTLCs in either commitment are worth more than the limit as dust.
pub(crate) fn is_dust_exposed(ledger: &Ledger, terms: &Terms, max_dust_exposure: Msat) -> bool {
    let feerate = ledger.feerate_max();
    let pending = Pending::of(ledger, terms, feerate, dust_feerate(feerate));
    pending.dust.local.max(pending.dust.remote) > u128::from(max_dust_exposure.0)
}

/// Whether an HTLC is dust in one of the two commitments.
pub(crate) fn is_dust_somewhere(ledger: &Ledger, terms: &Terms, offered_by: Side, amount: Msat) -> bool {
    let feerate = dust_feerate(ledger.feerate_max());
    [Side::Local, Side::Remote]
        .into_iter()
        .any(|broadcaster| trimmed_in(terms, broadcaster, feerate, offered_by, amount))
}
