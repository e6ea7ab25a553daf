//! The rests of payments that have failed on the only way.
//!
//! Whoever pays wants the payment to be made, or to know soon why it cannot be. What a hop refuses it may refuse for a moment
//! alone: no slot was free, or its peer was just coming back. So a payment that finds no way but those that have refused it is
//! tried again after a pause, and then after longer ones, as long as its own time lasts; and since a channel that is empty
//! stays so for longer than anybody looks on, a few tries are enough to tell the one from the other. Then it ends with what the
//! last hop said. Parts that have arrived meanwhile are held by the payee: all pauses together are far less than the minute that
//! it grants the others (BOLT 4, "Basic Multi-Part Payments").

use millrace_channel::Millis;
use millrace_routing::path::NoPath;

use super::payment::Payment;
use super::{Order, Sending, World};
use crate::happened::PaymentId;
use crate::payments::refusal::PayRefusal;

/// The first pause of a payment, in milliseconds.
pub const FIRST_PAUSE_MS: u64 = 1_000;
/// All of its pauses, against the first.
const PAUSES: [u64; 3] = [1, 2, 4];
/// So often one payment is tried on ways that cannot carry it by what is known: once at first, and once after each pause.
const RESORTS_MAX: u32 = PAUSES.len() as u32 + 1;

/// How often a payment was tried on ways that have failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    pauses: usize,
    /// Searches that have found a last resort.
    pub(super) resorts: u32,
    /// Its pause is not over.
    pub(super) is_resting: bool,
}

impl Patience {
    pub(super) const fn new() -> Self {
        Self { pauses: 0, resorts: 0, is_resting: false }
    }

    pub(super) const fn may_resort(&self) -> bool {
        self.resorts < RESORTS_MAX
    }
}

impl Payment {
    /// When the pause is over that follows the last failure; none if there is no further one.
    fn pause_over(&self, world: &World<'_>) -> Option<Millis> {
        let Patience { pauses, .. } = self.patience;
        let pause = PAUSES.get(pauses).filter(|_| self.patience.may_resort())?;
        self.failed_at.map(|failed_at| failed_at.plus(pause * world.rules.first_pause_ms))
    }

    /// Whether an attempt may still be begun then.
    fn may_begin_at(&self, then: Millis, world: &World<'_>) -> bool {
        let wait_ms = then.0.saturating_sub(world.now.0);
        self.plan.as_ref().is_some_and(|plan| then < plan.deadline)
            && world.unix_ms.saturating_add(wait_ms) < self.expires_ms
    }
}

impl Sending {
    /// Lets a payment rest that finds no way but those that have refused it. False if it is not to be tried on them again.
    pub(super) fn rest(&mut self, id: PaymentId, refusal: &PayRefusal, world: &World<'_>) -> bool {
        let Some(payment) = self.payments.get_mut(&id) else { return false };
        let PayRefusal::NoRoute { why, .. } = refusal else { return false };
        let may_help = match why {
            NoPath::NoWay | NoPath::FeeLimit { .. } | NoPath::DeltaLimit { .. } => payment.lessons.has_refusals(),
            // A peer of ours that forwards nothing for now takes its channels with it.
            NoPath::NoChannel | NoPath::Balance { .. } => payment.lessons.has_busy_nodes(),
            NoPath::Ourselves => false,
        };
        if !may_help {
            return false;
        }
        let over = payment.pause_over(world).filter(|over| payment.may_begin_at(*over, world));
        let Some(over) = over else { return false };
        payment.patience.is_resting = true;
        self.resting.insert((over, id));
        true
    }

    /// Some time has passed: those whose pause is over go on.
    pub(super) fn wake(&mut self, world: &World<'_>, out: &mut Vec<Order>) {
        while let Some((_, id)) = self.resting.first().copied().filter(|(over, _)| *over <= world.now) {
            self.resting.pop_first();
            let Some(payment) = self.payments.get_mut(&id) else { continue };
            // Another part may have failed meanwhile: who refused it has its pause, too.
            if let Some(over) = payment.pause_over(world).filter(|over| *over > world.now) {
                self.resting.insert((over, id));
                continue;
            }
            payment.patience.is_resting = false;
            payment.patience.pauses += 1;
            payment.full.clear();
            payment.lessons.forget_refusals();
            self.go_on(id, world, out);
        }
    }
}
