//! HTLCs that wait for the other parts of their payment, or for their owner's decision (BOLT 4, "Basic Multi-Part
//! Payments").
//!
//! Nothing here is durable: after a restart the channels tell of each HTLC again, and what was incomplete is put
//! together anew. No HTLC is decided here either; a set says only what it lacks.

use std::collections::HashMap;
use std::time::Duration;

use millrace_channel::Millis;
use millrace_routing::SharedSecret;
use millrace_routing::failure::{HoldTime, fulfill};
use millrace_routing::onion::FINAL_EXPIRY_MARGIN;
use millrace_wire::{AttributionData, BlockHeight, Msat, PaymentHash};

use super::super::judge::Received;
use super::Place;
use crate::happened::ReceivedPart;

/// Parts that one payment may have: payers make tens of them at most, and one step of the journal names them all.
pub(crate) const PARTS_MAX: usize = 128;
/// HTLCs that are held at once: at 200 bytes each, some megabytes.
pub(crate) const HELD_MAX: usize = 20_000;

/// An HTLC that is held.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct HeldPart {
    /// It.
    pub(crate) received: Received,
    /// What it adds to its payment: `amt_to_forward`, which is at most what it carries.
    pub(crate) counts: Msat,
    /// What its failure is encrypted with.
    pub(crate) secret: SharedSecret,
    /// When it came, or was told again after a start.
    pub(crate) since: Millis,
}

impl HeldPart {
    pub(super) const fn place(&self) -> Place {
        (self.received.channel_id, self.received.id)
    }

    pub(super) fn held(&self, now: Millis) -> Duration {
        Duration::from_millis(now.0.saturating_sub(self.since.0))
    }

    /// What goes back with its preimage.
    pub(super) fn attribution(&self, now: Millis) -> Box<AttributionData> {
        fulfill(&self.secret, None, HoldTime::floor(self.held(now)))
    }

    /// The last block at which it may still be held: after it, it could not be settled in peace.
    fn deadline(&self) -> BlockHeight {
        BlockHeight(self.received.cltv_expiry.0.saturating_sub(FINAL_EXPIRY_MARGIN.0.into()))
    }
}

/// The HTLCs of one payment.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Set {
    total: Msat,
    /// When the first came.
    since: Millis,
    pub(crate) parts: Vec<HeldPart>,
    /// All is there, and its fate is decided elsewhere.
    is_complete: bool,
}

impl Set {
    fn counted(&self) -> Msat {
        sum(self.parts.iter().map(|part| part.counts))
    }

    /// What its HTLCs carry.
    fn carried(&self) -> Msat {
        sum(self.parts.iter().map(|part| part.received.amount))
    }

    /// Its HTLCs, in the order in which they came.
    pub(crate) fn received(&self) -> Vec<ReceivedPart> {
        let part = |part: &HeldPart| ReceivedPart {
            channel_id: part.received.channel_id,
            htlc_id: part.received.id,
            amount: part.received.amount,
        };
        self.parts.iter().map(part).collect()
    }

    /// The last block at which it may be held.
    pub(crate) fn deadline(&self) -> BlockHeight {
        self.parts.iter().map(HeldPart::deadline).min().unwrap_or(BlockHeight(0))
    }
}

fn sum(amounts: impl Iterator<Item = Msat>) -> Msat {
    amounts.fold(Msat::ZERO, |sum, amount| sum.checked_add(amount).unwrap_or(Msat(u64::MAX)))
}

/// What became of a part.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Added {
    /// More is to come.
    Waits,
    /// With it the payment is whole.
    Completes,
    /// It says another total than those before: all of them are to be failed, and it.
    Contradicts(Vec<HeldPart>),
    /// It is one too many, or takes the payment above what is taken: it alone is to be failed.
    TooMuch(HeldPart),
    /// This node holds as many as it can: it alone is to be failed.
    Full(HeldPart),
}

/// All that is held.
#[derive(Default)]
pub(crate) struct Assembly {
    sets: HashMap<PaymentHash, Set>,
    count: usize,
}

impl Assembly {
    /// A part of a payment of `total`, of which at most `most` is taken.
    pub(crate) fn add(&mut self, part: HeldPart, total: Msat, most: Option<Msat>, now: Millis) -> Added {
        let payment_hash = part.received.payment_hash;
        if self.count >= HELD_MAX {
            return Added::Full(part);
        }
        let set = self.sets.entry(payment_hash).or_insert_with(|| Set {
            total,
            since: now,
            parts: Vec::new(),
            is_complete: false,
        });
        if set.total != total {
            let mut all = self.take(&payment_hash);
            all.push(part);
            return Added::Contradicts(all);
        }
        let carried = set.carried().checked_add(part.received.amount).unwrap_or(Msat(u64::MAX));
        if set.is_complete || set.parts.len() >= PARTS_MAX || most.is_some_and(|most| carried > most) {
            if set.parts.is_empty() {
                self.sets.remove(&payment_hash);
            }
            return Added::TooMuch(part);
        }
        set.parts.push(part);
        self.count += 1;
        set.is_complete = set.counted() >= total;
        if set.is_complete { Added::Completes } else { Added::Waits }
    }

    /// A part of a payment that is durably held: its secret is known again after a restart.
    pub(crate) fn add_again(&mut self, part: HeldPart, now: Millis) {
        let payment_hash = part.received.payment_hash;
        let set = self.sets.entry(payment_hash).or_insert_with(|| Set {
            total: Msat::ZERO,
            since: now,
            parts: Vec::new(),
            is_complete: true,
        });
        if set.parts.iter().all(|known| known.place() != part.place()) {
            set.parts.push(part);
            self.count += 1;
        }
    }

    /// The parts with this hash.
    pub(crate) fn get(&self, payment_hash: &PaymentHash) -> Option<&Set> {
        self.sets.get(payment_hash)
    }

    /// Takes all parts with this hash out.
    pub(crate) fn take(&mut self, payment_hash: &PaymentHash) -> Vec<HeldPart> {
        let parts = self.sets.remove(payment_hash).map(|set| set.parts).unwrap_or_default();
        self.count -= parts.len();
        parts
    }

    /// Takes one part out, which its channel does not have any more: the others wait again.
    pub(crate) fn lose(&mut self, payment_hash: &PaymentHash, place: Place) {
        let Some(set) = self.sets.get_mut(payment_hash) else { return };
        let before = set.parts.len();
        set.parts.retain(|part| part.place() != place);
        set.is_complete = false;
        self.count -= before - set.parts.len();
        if set.parts.is_empty() {
            self.sets.remove(payment_hash);
        }
    }

    /// Takes out what has waited for its other parts too long, or until its expiry came too near.
    pub(crate) fn overdue(&mut self, now: Millis, timeout_ms: u64, height: Option<BlockHeight>) -> Vec<HeldPart> {
        let is_over = |set: &Set| {
            let is_late = now.0.saturating_sub(set.since.0) >= timeout_ms;
            !set.is_complete && (is_late || height.is_some_and(|height| height > set.deadline()))
        };
        let over: Vec<PaymentHash> = self.sets.iter().filter(|(_, set)| is_over(set)).map(|(hash, _)| *hash).collect();
        over.iter().flat_map(|hash| self.take(hash)).collect()
    }

    /// HTLCs that are held.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.count
    }
}
