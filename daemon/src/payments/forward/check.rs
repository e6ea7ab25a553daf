//! Whether an HTLC may go on, by the terms of the channel that its onion names (BOLT 4, "Failure Messages"; BOLT 7,
//! "HTLC Fees"). What came in is judged by the HTLC itself, never by what the onion says of it.

use millrace_routing::failure::FailureMessage;
use millrace_wire::{BlockHeight, CltvExpiry, Msat};

use crate::policy::{Accepted, ForwardPolicy};

/// An HTLC that expires within so many blocks is not passed on: the peer would have no time for it, and we would have to
/// go on chain.
pub(super) const EXPIRY_MARGIN: u32 = 12;

/// BOLT 4, `max_htlc_cltv`: nothing is locked for longer than two weeks.
const BLOCKS_MAX: u32 = 2_016;

/// What comes in, and what is to go out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Asked {
    pub(super) amount_in: Msat,
    pub(super) expiry_in: CltvExpiry,
    pub(super) amount_out: Msat,
    pub(super) expiry_out: CltvExpiry,
}

/// Why it may not. Becomes a failure once the channel's conditions are put beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Unfit {
    #[error("{amount} is less than is forwarded")]
    BelowMinimum { amount: Msat },
    #[error("{amount} is more than is forwarded")]
    AboveMaximum { amount: Msat },
    #[error("{amount_in} pays too little for {amount_out}")]
    Fee { amount_in: Msat, amount_out: Msat },
    #[error("expiry {} is too close to {}", expiry_out.0, expiry_in.0)]
    Delta { expiry_in: CltvExpiry, expiry_out: CltvExpiry },
    #[error("expiry {} is too close to now", expiry_out.0)]
    TooSoon { expiry_out: CltvExpiry },
    #[error("expiry {} is too far away", expiry_in.0)]
    TooFar { expiry_in: CltvExpiry },
}

impl Unfit {
    /// As the sender is told.
    pub(super) fn message(self, channel_update: Vec<u8>) -> FailureMessage {
        match self {
            Self::BelowMinimum { amount } => FailureMessage::AmountBelowMinimum { amount, channel_update },
            Self::AboveMaximum { .. } => FailureMessage::TemporaryChannelFailure { channel_update },
            Self::Fee { amount_in, .. } => FailureMessage::FeeInsufficient { amount: amount_in, channel_update },
            Self::Delta { expiry_out, .. } => {
                FailureMessage::IncorrectCltvExpiry { expiry: expiry_out, channel_update }
            }
            Self::TooSoon { .. } => FailureMessage::ExpiryTooSoon { channel_update },
            Self::TooFar { .. } => FailureMessage::ExpiryTooFar,
        }
    }
}

/// Holds it against what is asked for now, or what was until a short while ago; and against the least that the peer takes,
/// which is announced too.
pub(super) fn check(asked: Asked, accepted: &Accepted, least: Msat, height: BlockHeight) -> Result<(), Unfit> {
    if asked.amount_out < least {
        return Err(Unfit::BelowMinimum { amount: asked.amount_out });
    }
    against(asked, &accepted.policy).or_else(|unfit| {
        let fits = accepted.earlier.iter().any(|policy| against(asked, policy).is_ok());
        if fits { Ok(()) } else { Err(unfit) }
    })?;
    if asked.expiry_out.0 <= height.0.saturating_add(EXPIRY_MARGIN) {
        return Err(Unfit::TooSoon { expiry_out: asked.expiry_out });
    }
    if asked.expiry_in.0 > height.0.saturating_add(BLOCKS_MAX) {
        return Err(Unfit::TooFar { expiry_in: asked.expiry_in });
    }
    Ok(())
}

fn against(asked: Asked, policy: &ForwardPolicy) -> Result<(), Unfit> {
    let Asked { amount_in, expiry_in, amount_out, expiry_out } = asked;
    if amount_out < policy.htlc_minimum {
        return Err(Unfit::BelowMinimum { amount: amount_out });
    }
    if policy.htlc_maximum.is_some_and(|most| amount_out > most) {
        return Err(Unfit::AboveMaximum { amount: amount_out });
    }
    let due = policy.fee(amount_out).and_then(|fee| amount_out.checked_add(fee));
    if due.is_none_or(|due| amount_in < due) {
        return Err(Unfit::Fee { amount_in, amount_out });
    }
    let earliest = expiry_out.0.checked_add(policy.cltv_delta.0.into());
    if earliest.is_none_or(|earliest| expiry_in.0 < earliest) {
        return Err(Unfit::Delta { expiry_in, expiry_out });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEIGHT: BlockHeight = BlockHeight(1_000);

    /// By the usual terms, 1,000 msat, 100 millionths and 80 blocks, with nothing to spare.
    const JUST: Asked = Asked {
        amount_in: Msat(10_002_000),
        expiry_in: CltvExpiry(1_180),
        amount_out: Msat(10_000_000),
        expiry_out: CltvExpiry(1_100),
    };

    fn told(asked: Asked, previous: Option<ForwardPolicy>) -> Result<(), Unfit> {
        let policy = ForwardPolicy {
            htlc_minimum: Msat(1_000),
            htlc_maximum: Some(Msat(10_000_000)),
            ..ForwardPolicy::default()
        };
        check(asked, &Accepted { policy, earlier: previous.into_iter().collect() }, Msat(1), HEIGHT)
    }

    #[test]
    fn what_pays_and_leaves_just_enough() {
        assert_eq!(told(JUST, None), Ok(()));
    }

    #[test]
    fn one_too_little_or_too_much_of_each() {
        let short = Asked { amount_in: Msat(10_001_999), ..JUST };
        assert_eq!(told(short, None), Err(Unfit::Fee { amount_in: short.amount_in, amount_out: JUST.amount_out }));
        let hasty = Asked { expiry_in: CltvExpiry(1_179), ..JUST };
        assert_eq!(told(hasty, None), Err(Unfit::Delta { expiry_in: CltvExpiry(1_179), expiry_out: JUST.expiry_out }));
        let small = Asked { amount_out: Msat(999), ..JUST };
        assert_eq!(told(small, None), Err(Unfit::BelowMinimum { amount: Msat(999) }));
        let big = Asked { amount_out: Msat(10_000_001), amount_in: Msat(u64::MAX), ..JUST };
        assert_eq!(told(big, None), Err(Unfit::AboveMaximum { amount: Msat(10_000_001) }));
        let soon = Asked { expiry_out: CltvExpiry(1_012), ..JUST };
        assert_eq!(told(soon, None), Err(Unfit::TooSoon { expiry_out: CltvExpiry(1_012) }));
        assert_eq!(told(Asked { expiry_out: CltvExpiry(1_013), ..JUST }, None), Ok(()));
        let far = Asked { expiry_in: CltvExpiry(3_017), ..JUST };
        assert_eq!(told(far, None), Err(Unfit::TooFar { expiry_in: CltvExpiry(3_017) }));
        assert_eq!(told(Asked { expiry_in: CltvExpiry(3_016), ..JUST }, None), Ok(()));
    }

    #[test]
    fn numbers_without_end() {
        let asked = Asked { amount_out: Msat(u64::MAX), amount_in: Msat(u64::MAX), ..JUST };
        let policy = ForwardPolicy::default();
        let endless = Accepted { policy, earlier: Vec::new() };
        assert!(matches!(check(asked, &endless, Msat(1), HEIGHT), Err(Unfit::Fee { .. })));
        let late = Asked { expiry_out: CltvExpiry(u32::MAX), expiry_in: CltvExpiry(u32::MAX), ..JUST };
        assert!(matches!(check(late, &endless, Msat(1), HEIGHT), Err(Unfit::Delta { .. })));
    }

    #[test]
    fn the_terms_before_are_taken_whole_or_not_at_all() {
        let cheap = ForwardPolicy { fee_base: Msat(0), fee_ppm: 0, ..ForwardPolicy::default() };
        let gift = Asked { amount_in: JUST.amount_out, ..JUST };
        assert_eq!(told(gift, Some(cheap)), Ok(()));
        assert!(told(gift, None).is_err());
        let slow = ForwardPolicy { cltv_delta: millrace_wire::CltvDelta(200), ..cheap };
        assert!(matches!(told(gift, Some(slow)), Err(Unfit::Fee { .. })), "not one number from each");
    }
}
