//! How a payment goes on: which channel with the payee is asked, what a search is given, and what follows when a channel
//! says no, an attempt fails, or no way is left.

use millrace_channel::Refusal;
use millrace_routing::path::NoPath;
use millrace_wire::{ChannelId, Msat};

use super::attempt::AttemptState;
use super::lessons::Lesson;
use super::search::{Found, Part, scid_of};
use super::{Order, Sending, World, free_key};
use crate::channels::{ChannelSnapshot, CommandError};
use crate::happened::{AttemptBegun, Failure, FailureReason, PaymentId};
use crate::payments::failure::Read;
use crate::payments::pick::{Pick, pick};
use crate::payments::prepare::BuiltAttempt;
use crate::payments::refusal::{PayRefusal, failure_of, refusal_of};

/// Attempts of one payment: by then, something is wrong that no further one mends.
const ATTEMPTS_MAX: u32 = 256;

/// After so long, a channel shows what an HTLC that failed has given back: some times what it takes while payments flow.
const SHOWN_AFTER_MS: u64 = 100;

impl Sending {
    /// Offers what is missing to a channel with the payee, looks for ways, lets it wait, or ends the payment.
    pub(super) fn go_on(&mut self, id: PaymentId, world: &World<'_>, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let is_busy = payment.is_searching || payment.is_waiting || payment.patience.is_resting;
        if payment.is_given_up || is_busy || payment.closing.is_some() {
            return;
        }
        let missing = payment.missing();
        if missing == Msat::ZERO {
            return;
        }
        if let Some(expired) = payment.expired(world) {
            return self.end(id, expired, world, out);
        }
        if missing < payment.row.amount {
            return self.search(id, None, usize::MAX, world, out);
        }
        let candidates = (world.channels_with)(&payment.row.payee);
        let picked = pick(&candidates, missing, payment.row.payee, &payment.tried, &self.load);
        match picked {
            Ok(Pick::Channel(channel)) => match payment.build(world) {
                Ok(built) => self.offer(id, built, &channel, out),
                Err(refusal) => self.end(id, refusal, world, out),
            },
            Ok(Pick::AllFull { limit }) if payment.is_late(world) => {
                self.end(id, PayRefusal::TooManyHtlcs { limit }, world, out);
            }
            Ok(Pick::AllFull { .. }) => self.wait(id),
            Ok(Pick::AllTried) => {
                let away = PayRefusal::PeerAway { payee: payment.row.payee };
                let refusal = payment.last_refusal.clone().unwrap_or(away);
                self.search(id, Some(refusal), candidates.len(), world, out);
            }
            Err(refusal) => self.search(id, Some(refusal), candidates.len(), world, out),
        }
    }

    fn offer(&mut self, id: PaymentId, built: BuiltAttempt, channel: &ChannelSnapshot, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let begun = AttemptBegun {
            attempt: payment.next_attempt,
            channel_id: channel.channel_id,
            scid: scid_of(channel),
            cltv_expiry: built.cltv_expiry,
        };
        self.load.add(channel.channel_id);
        payment.onion = Some(built.clone());
        out.push(payment.offer(begun, None, built.onion));
    }

    // --- looking for ways ---

    /// Has ways looked for. `direct` says why no channel with the payee carries it, of which there are so many.
    fn search(
        &mut self,
        id: PaymentId,
        direct: Option<PayRefusal>,
        channels: usize,
        world: &World<'_>,
        out: &mut Vec<Order>,
    ) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if payment.last_refusal.is_none() && channels > 0 {
            payment.last_refusal.clone_from(&direct);
        }
        let no_way = direct.unwrap_or(PayRefusal::NoChannel { payee: payment.row.payee });
        let Some(plan) = payment.plan.clone() else { return self.end(id, no_way, world, out) };
        let may_help =
            world.map.edge_count() > 0 || !plan.goal.hints.is_empty() || (plan.parts_max > 1 && channels > 1);
        if !may_help {
            return self.end_or_wait(id, no_way, world, out);
        }
        if payment.next_attempt >= ATTEMPTS_MAX {
            let failure = Failure::here(FailureReason::Timeout, format!("it was tried {ATTEMPTS_MAX} times"));
            return self.close(id, failure, out);
        }
        let job = self.job(id, &plan, world);
        let Some(payment) = self.payments.get_mut(&id) else { return };
        match job {
            Some(job) => {
                payment.is_searching = true;
                out.push(Order::Search(Box::new(job)));
            }
            None => self.end_or_wait(id, no_way, world, out),
        }
    }

    /// A search has ended.
    pub(crate) fn found(
        &mut self,
        id: PaymentId,
        result: Result<Found, PayRefusal>,
        world: &World<'_>,
        out: &mut Vec<Order>,
    ) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        payment.is_searching = false;
        if payment.closing.is_some() {
            return self.conclude(id, out);
        }
        if let Some(expired) = payment.expired(world) {
            return self.end(id, expired, world, out);
        }
        if payment.is_late(world) {
            let message = "no further attempt was begun in time";
            return self.close_or_refuse(id, Failure::here(FailureReason::Timeout, message), world, out);
        }
        match result {
            Ok(Found { parts, is_last_resort }) => {
                payment.patience.resorts += u32::from(is_last_resort);
                payment.ready = parts;
                self.offer_ready(id, out);
                // Another part may have failed meanwhile.
                self.go_on(id, world, out);
            }
            Err(no_way) => {
                // What a channel with the payee said tells more than that there is no other way.
                let direct = payment.last_refusal.clone().filter(|_| payment.attempts.is_empty());
                self.end_or_wait(id, direct.unwrap_or(no_way), world, out);
            }
        }
    }

    /// Offers what was found: the first part alone until the payment is durable with it, then the others.
    pub(super) fn offer_ready(&mut self, id: PaymentId, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let now = match (payment.is_durable, payment.attempts.is_empty()) {
            (true, _) => payment.ready.len(),
            (false, true) => payment.ready.len().min(1),
            (false, false) => 0,
        };
        let rest = payment.ready.split_off(now);
        for Part { attempt, channel_id, route, onion, .. } in std::mem::replace(&mut payment.ready, rest) {
            let (Some(plan), Some(first)) = (&payment.plan, route.hops.first()) else { continue };
            // Holds by the search's own limits, and is never to be broken: more than was approved is never sent.
            assert!(route.received() <= payment.missing(), "a part brings more than is missing");
            assert!(route.fee() <= payment.fee_left(plan), "a part costs more than may be paid");
            let begun = AttemptBegun { attempt, channel_id, scid: first.scid, cltv_expiry: first.cltv_expiry };
            self.load.add(channel_id);
            self.memory.hold(&route);
            out.push(payment.offer(begun, Some(route), onion));
        }
    }

    // --- what follows ---

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
        let is_it = |one: &super::attempt::Attempt| one.begun.attempt == attempt && one.state == AttemptState::Ordered;
        let Some(place) = payment.attempts.iter().position(is_it) else { return };
        let refused = payment.attempts.remove(place);
        let channel_id = refused.begun.channel_id;
        if payment.attempts.len() == place {
            // Nobody has seen it: its number and its onion are as good as new.
            payment.next_attempt = attempt;
        }
        let amount = refused.route.as_ref().map_or(payment.row.amount, crate::route::Route::sent);
        self.load.remove(channel_id);
        if let Some(route) = &refused.route {
            self.memory.free(route);
        }
        payment.tried.push(channel_id);
        if is_passing(&error) {
            payment.full.push(channel_id);
        } else {
            payment.lessons.cap(channel_id, left_by(&error, amount));
        }
        if !payment.is_durable {
            payment.ready.clear();
        }
        payment.last_refusal = Some(refusal_of(error, amount));
        if payment.closing.is_some() {
            return self.conclude(id, out);
        }
        self.go_on(id, world, out);
    }

    /// No way now: it rests or waits, if there may be one in a moment; else it ends.
    fn end_or_wait(&mut self, id: PaymentId, refusal: PayRefusal, world: &World<'_>, out: &mut Vec<Order>) {
        if self.rest(id, &refusal, world) {
            return;
        }
        let Some(payment) = self.payments.get(&id) else { return };
        // What has just come back may not be seen yet in what its channel shows of itself.
        let lacks_balance = matches!(refusal, PayRefusal::NoRoute { why: NoPath::Balance { .. }, .. });
        let is_unseen = lacks_balance && payment.failed_at.is_some_and(|at| world.now < at.plus(SHOWN_AFTER_MS));
        if (is_unseen || !payment.full.is_empty()) && !payment.is_late(world) {
            return self.wait(id);
        }
        self.end(id, refusal, world, out);
    }

    /// No attempt can be made: the payment is refused if it was never accepted, and closed otherwise.
    pub(super) fn end(&mut self, id: PaymentId, refusal: PayRefusal, world: &World<'_>, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if payment.is_durable || !payment.attempts.is_empty() {
            let ours = failure_of(&refusal);
            // What a channel or the payee said tells more than that there is no other way; an end of its time does not.
            let is_time_over = ours.reason == FailureReason::InvoiceExpired;
            let failure = payment.last_failure.clone().filter(|_| !is_time_over).unwrap_or(ours);
            return self.close(id, failure, out);
        }
        let Some(payment) = self.payments.remove(&id) else { return };
        self.by_hash.remove(&payment.row.payment_hash);
        free_key(payment.key.as_ref(), world);
        for listener in payment.listeners {
            listener.refuse(refusal.clone());
        }
    }

    /// Its time is over: as [`Sending::end`], with what is known of why.
    fn close_or_refuse(&mut self, id: PaymentId, failure: Failure, world: &World<'_>, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get(&id) else { return };
        if payment.is_durable || !payment.attempts.is_empty() {
            let failure = payment.last_failure.clone().unwrap_or(failure);
            return self.close(id, failure, out);
        }
        self.end(id, PayRefusal::TimedOut, world, out);
    }

    /// No further attempt is made. It fails when no part is out any more.
    pub(super) fn close(&mut self, id: PaymentId, failure: Failure, out: &mut Vec<Order>) {
        if let Some(payment) = self.payments.get_mut(&id) {
            payment.closing.get_or_insert(failure);
            payment.ready.clear();
            self.conclude(id, out);
        }
    }

    /// Gives a payment up that is closing, once nothing of it is out.
    pub(super) fn conclude(&mut self, id: PaymentId, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let Some(failure) = payment.closing.clone() else { return };
        if !payment.has_live() && !payment.is_given_up && payment.is_durable {
            payment.is_given_up = true;
            out.push(Order::Write(payment.last_entries(&failure)));
            return;
        }
        let ends = payment.ends_to_write();
        if !ends.is_empty() {
            out.push(Order::Write(ends));
        }
    }

    /// An attempt is over without success: other ways for what it brought, or the end.
    pub(super) fn after_failure(
        &mut self,
        id: PaymentId,
        attempt: u32,
        read: &Read,
        world: &World<'_>,
        out: &mut Vec<Order>,
    ) {
        let may_succeed = self.learn(id, attempt, read, world);
        let Some(payment) = self.payments.get_mut(&id) else { return };
        payment.last_failure = Some(read.failure.clone());
        payment.last_refusal = None;
        payment.onion = None;
        payment.failed_at = Some(world.now);
        if !may_succeed || payment.is_late(world) || payment.closing.is_some() {
            let failure = payment.why_ended(read);
            return self.close(id, failure, out);
        }
        self.go_on(id, world, out);
        if let Some(payment) = self.payments.get_mut(&id).filter(|payment| !payment.is_given_up) {
            let ends = payment.ends_to_write();
            if !ends.is_empty() {
                out.push(Order::Write(ends));
            }
        }
    }

    /// Takes in what a failure teaches. Whether another attempt may succeed.
    fn learn(&mut self, id: PaymentId, attempt: u32, read: &Read, world: &World<'_>) -> bool {
        let Self { payments, memory, .. } = self;
        let Some(payment) = payments.get_mut(&id) else { return false };
        let (payee, amount) = (payment.row.payee, payment.row.amount);
        let Some(failed) = payment.attempt_mut(attempt) else { return false };
        let channel_id: ChannelId = failed.begun.channel_id;
        let route = failed.whole_route(payee, amount);
        payment.tried.push(channel_id);
        match read.failure.reason {
            FailureReason::PeerDisconnected => {
                payment.lessons.cap(channel_id, Msat::ZERO);
                true
            }
            FailureReason::ChannelClosed => false,
            _ => {
                let now_s = seconds(world.unix_ms);
                let at = Lesson { route: &route, channel_id, all: amount, map: &world.map, now_s };
                payment.lessons.learn(read, &at, memory)
            }
        }
    }
}

pub(super) fn seconds(unix_ms: u64) -> u32 {
    u32::try_from(unix_ms / 1_000).unwrap_or(u32::MAX)
}

/// Whether the same channel may take it in a moment.
const fn is_passing(error: &CommandError) -> bool {
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

/// What a channel that has refused an amount may still take.
fn left_by(error: &CommandError, amount: Msat) -> Msat {
    let less = Msat(amount.0.saturating_sub(1));
    match error {
        CommandError::Refused(Refusal::InsufficientBalance { available, .. }) => less.min(*available),
        CommandError::Refused(_)
        | CommandError::NoNewWork(_)
        | CommandError::TowerBehind(_)
        | CommandError::UnknownChannel(_)
        | CommandError::Busy { .. } => Msat::ZERO,
    }
}
