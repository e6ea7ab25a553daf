//! Attempts: which channel is asked next, and what follows when it says no or fails.

use std::collections::VecDeque;

use super::*;
use crate::payments::refusal::{failure_of, refusal_of};

impl Sending {
    /// Offers the next attempt, lets it wait, or ends the payment.
    pub(super) fn go_on(&mut self, id: PaymentId, world: &World<'_>, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if let Some(expired) = payment.expired(world) {
            return self.end(id, expired, world, out);
        }
        let candidates = (world.channels_with)(&payment.row.payee);
        let picked = pick(&candidates, payment.row.amount, payment.row.payee, &payment.tried, &self.load);
        let is_late = payment.plan.as_ref().is_none_or(|plan| plan.deadline <= world.now);
        match picked {
            Ok(Pick::Channel(channel)) => match payment.build(world) {
                Ok(built) => self.offer(id, built, &channel, out),
                Err(refusal) => self.end(id, refusal, world, out),
            },
            Ok(Pick::AllFull { limit }) if is_late => {
                self.end(id, PayRefusal::TooManyHtlcs { limit }, world, out);
            }
            Ok(Pick::AllFull { .. }) => self.wait(id),
            Ok(Pick::AllTried) => {
                let refusal = payment.last_refusal.clone();
                if payment.may_wait && !is_late {
                    return self.wait(id);
                }
                let refusal = refusal.unwrap_or(PayRefusal::PeerAway { payee: payment.row.payee });
                self.end(id, refusal, world, out);
            }
            Err(refusal) => self.end(id, refusal, world, out),
        }
    }

    pub(super) fn wait(&mut self, id: PaymentId) {
        if let Some(payment) = self.payments.get_mut(&id) {
            payment.tried.clear();
            payment.may_wait = false;
            self.waiting.push_back(id);
        }
    }

    pub(super) fn offer(
        &mut self,
        id: PaymentId,
        built: BuiltAttempt,
        channel: &ChannelSnapshot,
        out: &mut Vec<Order>,
    ) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let attempt = u32::try_from(payment.attempts.len()).expect("a payment has a few attempts");
        let begun = AttemptBegun {
            attempt,
            channel_id: channel.channel_id,
            scid: scid_of(channel),
            cltv_expiry: built.cltv_expiry,
        };
        let entry = payment.entry(begun).entry();
        payment.onion = Some(built.clone());
        payment.attempts.push(Attempt { begun, state: AttemptState::Ordered });
        self.load.add(channel.channel_id);
        let offer = Offer {
            amount: payment.row.amount,
            payment_hash: payment.row.payment_hash,
            cltv_expiry: built.cltv_expiry,
            onion: built.onion,
            path_key: None,
            origin: Origin::Payment { id: id.0, attempt },
        };
        out.push(Order::Offer { id, attempt, channel_id: channel.channel_id, offer: Box::new(offer), entry });
    }

    /// A channel has answered. Taken: the facts tell how it goes on. Refused: nothing was written.
    pub(crate) fn answered(
        &mut self,
        id: PaymentId,
        attempt: u32,
        result: Result<(), CommandError>,
        world: &World<'_>,
        out: &mut Vec<Order>,
    ) {
        let Err(error) = result else { return };
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let is_refused = |last: &Attempt| last.begun.attempt == attempt && last.state == AttemptState::Ordered;
        let Some(refused) = payment.attempts.pop_if(|last| is_refused(last)) else { return };
        let channel_id = refused.begun.channel_id;
        self.load.remove(channel_id);
        payment.may_wait |= is_passing(&error);
        payment.tried.push(channel_id);
        payment.last_refusal = Some(refusal_of(error, payment.row.amount));
        self.go_on(id, world, out);
    }

    /// No attempt can be made: the payment is refused if it was never accepted, and given up otherwise.
    pub(super) fn end(&mut self, id: PaymentId, refusal: PayRefusal, world: &World<'_>, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if payment.is_durable || !payment.attempts.is_empty() {
            let ours = failure_of(&refusal);
            // What a channel or the payee said tells more than that there is no other way; an end of its time does not.
            let is_time_over = ours.reason == FailureReason::InvoiceExpired;
            let failure = payment.last_failure.clone().filter(|_| !is_time_over).unwrap_or(ours);
            return self.give_up(id, failure, out);
        }
        let Some(payment) = self.payments.remove(&id) else { return };
        self.by_hash.remove(&payment.row.payment_hash);
        free_key(&payment.key, world);
        for listener in payment.listeners {
            listener.refuse(refusal.clone());
        }
    }

    pub(super) fn give_up(&mut self, id: PaymentId, failure: Failure, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if !payment.is_given_up {
            payment.is_given_up = true;
            out.push(Order::Write(PaymentEntry::GivenUp { id, failure }.entry()));
        }
    }

    /// An attempt is over without success: another channel, or the end.
    pub(super) fn after_failure(&mut self, id: PaymentId, failure: Failure, world: &World<'_>, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let may_go_on =
            failure::may_try_again(&failure) && payment.plan.as_ref().is_some_and(|plan| plan.deadline > world.now);
        if let Some(Attempt { begun, .. }) = payment.attempts.last() {
            payment.tried.push(begun.channel_id);
        }
        payment.last_failure = Some(failure.clone());
        payment.last_refusal = None;
        payment.onion = None;
        if may_go_on {
            self.go_on(id, world, out);
        } else {
            self.give_up(id, failure, out);
        }
    }

    /// Some time has passed, or slots have become free: those that wait go on.
    pub(crate) fn retry(&mut self, world: &World<'_>, is_tick: bool, out: &mut Vec<Order>) {
        let freed = self.load.take_freed();
        let mut tries = if is_tick { freed.max(PROBES) } else { freed };
        if is_tick {
            // Whoever has waited too long is told, wherever he stands.
            let waiting = std::mem::take(&mut self.waiting);
            let (late, rest): (VecDeque<_>, _) = waiting.into_iter().partition(|id| self.is_late(*id, world));
            self.waiting = rest;
            for id in late {
                self.go_on(id, world, out);
            }
            self.load.forget_fullness();
        }
        let mut before = self.waiting.len();
        while tries > 0 && before > 0 {
            let Some(id) = self.waiting.pop_front() else { return };
            let asked = out.len();
            self.go_on(id, world, out);
            if out.len() == asked && self.payments.contains_key(&id) {
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

    pub(super) fn is_late(&self, id: PaymentId, world: &World<'_>) -> bool {
        self.payments.get(&id).is_none_or(|payment| {
            let is_timed_out = payment.plan.as_ref().is_none_or(|plan| plan.deadline <= world.now);
            is_timed_out || payment.expired(world).is_some()
        })
    }
}

fn scid_of(channel: &ChannelSnapshot) -> ShortChannelId {
    channel.short_channel_id.filter(|_| !channel.terms.channel_type.scid_alias).unwrap_or(channel.local_alias)
}

/// Whether the same channel may take it in a moment.
fn is_passing(error: &CommandError) -> bool {
    matches!(
        error,
        CommandError::Busy { .. }
            | CommandError::Refused(
                Refusal::TooManyHtlcs { .. }
                    | Refusal::TooManyWaiting { .. }
                    | Refusal::TooMuchInFlight { .. }
                    | Refusal::DustExposure { .. }
            )
    )
}
