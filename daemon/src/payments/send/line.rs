//! The line of those who wait for a slot.

use std::collections::VecDeque;

use super::{Order, Sending, World};
use crate::happened::PaymentId;

/// Payments of the line that are tried at a tick, in case a slot became free unnoticed.
const PROBES: usize = 4;

impl Sending {
    /// Puts a payment at the end of the line: whatever was full may be free when its turn comes.
    pub(super) fn wait(&mut self, id: PaymentId) {
        if let Some(payment) = self.payments.get_mut(&id)
            && !payment.is_waiting
        {
            payment.tried.clear();
            payment.full.clear();
            payment.is_waiting = true;
            self.waiting.push_back(id);
        }
    }

    /// Some time has passed, or slots have become free: those that wait go on.
    pub(crate) fn retry(&mut self, world: &World<'_>, is_tick: bool, out: &mut Vec<Order>) {
        let freed = self.load.take_freed();
        let mut tries = if is_tick { freed.max(PROBES) } else { freed };
        if is_tick {
            self.wake(world, out);
            // Whoever has waited too long is told, wherever he stands.
            let waiting = std::mem::take(&mut self.waiting);
            let (late, rest): (VecDeque<_>, _) = waiting.into_iter().partition(|id| self.is_late(*id, world));
            self.waiting = rest;
            for id in late {
                self.resume(id, world, out);
            }
            self.load.forget_fullness();
        }
        let mut before = self.waiting.len();
        while tries > 0 && before > 0 {
            let Some(id) = self.waiting.pop_front() else { return };
            let asked = out.len();
            self.resume(id, world, out);
            if out.len() == asked && self.payments.get(&id).is_some_and(|payment| payment.is_waiting) {
                // Full again: keep its place.
                if let Some(back) = self.waiting.pop_back() {
                    self.waiting.push_front(back);
                }
                return;
            }
            tries -= 1;
            before -= 1;
        }
    }

    fn resume(&mut self, id: PaymentId, world: &World<'_>, out: &mut Vec<Order>) {
        if let Some(payment) = self.payments.get_mut(&id) {
            payment.is_waiting = false;
            self.go_on(id, world, out);
        }
    }

    fn is_late(&self, id: PaymentId, world: &World<'_>) -> bool {
        let payment = self.payments.get(&id);
        payment.is_none_or(|payment| payment.is_late(world) || payment.expired(world).is_some())
    }
}
