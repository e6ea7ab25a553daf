//! One payment that is under way.

use millrace_channel::ledger::htlc::Origin;
use millrace_channel::{Millis, Offer};
use millrace_wire::{ChannelId, Msat, OnionPacket};
use serde::{Deserialize, Serialize};

use super::attempt::{Attempt, AttemptState, End, SavedAttempt};
use super::lessons::{Lessons, ROUNDS_MAX};
use super::rest::Patience;
use super::search::Part;
use super::{Order, World};
use crate::entry::Entry;
use crate::happened::{AttemptBegun, Failure, FailureReason, Happened, PaymentId, PaymentStarted};
use crate::idempotency::{KeyHash, RequestHash};
use crate::metrics;
use crate::payments::entry::{Accepted, AcceptedOver, PaymentEntry};
use crate::payments::failure::Read;
use crate::payments::listener::{Listener, Told};
use crate::payments::prepare::{BuiltAttempt, PayKey, Plan, Prepared, build_attempt};
use crate::payments::refusal::PayRefusal;
use crate::payments::row::{PaymentRow, PaymentStatus};
use crate::route::Route;

/// A payment that is under way.
pub(super) struct Payment {
    pub(super) row: PaymentRow,
    pub(super) expires_ms: u64,
    pub(super) key: Option<PayKey>,
    /// That it is accepted is in the journal.
    pub(super) is_durable: bool,
    /// `GivenUp` is on its way there.
    pub(super) is_given_up: bool,
    /// What further attempts are made of; none after a restart.
    pub(super) plan: Option<Plan>,
    /// By their numbers, ascending.
    pub(super) attempts: Vec<Attempt>,
    /// The number of the next attempt.
    pub(super) next_attempt: u32,
    /// Built for a peer, and not yet taken by a channel.
    pub(super) onion: Option<BuiltAttempt>,
    /// Why none could be built.
    pub(super) not_built: Option<PayRefusal>,
    /// Found, and to be offered once the payment is durable.
    pub(super) ready: Vec<Part>,
    /// Ways are being looked for.
    pub(super) is_searching: bool,
    /// It stands in the line.
    pub(super) is_waiting: bool,
    /// How often it may still be tried where it has failed.
    pub(super) patience: Patience,
    /// When a part of it last failed.
    pub(super) failed_at: Option<Millis>,
    /// No further attempt is made, for this reason: it ends when no part is out any more.
    pub(super) closing: Option<Failure>,
    /// Channels that have refused the coming attempt...
    pub(super) tried: Vec<ChannelId>,
    /// ...and those of them that may take it in a moment.
    pub(super) full: Vec<ChannelId>,
    pub(super) last_refusal: Option<PayRefusal>,
    /// Why the last attempt failed.
    pub(super) last_failure: Option<Failure>,
    pub(super) lessons: Lessons,
    pub(super) listeners: Vec<Listener>,
}

/// A payment in a checkpoint.
#[derive(Serialize, Deserialize)]
pub(crate) struct Saved {
    pub(super) row: PaymentRow,
    expires_ms: u64,
    key: Option<(String, KeyHash, RequestHash)>,
    pub(super) attempts: Vec<SavedAttempt>,
    last_failure: Option<Failure>,
}

impl Payment {
    /// As it is asked for.
    pub(super) fn begin(prepared: Prepared) -> Self {
        let Prepared { id, bolt11, key, plan, onion, listener } = prepared;
        let goal = &plan.goal;
        let row = PaymentRow {
            id,
            payment_hash: goal.payment_hash,
            amount: goal.amount,
            payee: goal.payee,
            bolt11,
            created_ms: 0,
            decided_ms: None,
            status: PaymentStatus::InFlight,
            attempts: Vec::new(),
        };
        let expires_ms = goal.expires_ms;
        let (onion, not_built) = match onion {
            Ok(onion) => (onion, None),
            Err(refusal) => (None, Some(refusal)),
        };
        let begun = Self::new(row, expires_ms, key);
        Self { is_durable: false, plan: Some(plan), onion, not_built, listeners: vec![listener], ..begun }
    }

    /// As it is read back.
    pub(super) fn recovered(row: PaymentRow, expires_ms: u64, key: Option<PayKey>, attempts: Vec<Attempt>) -> Self {
        let next_attempt = attempts.last().map_or(0, |last| last.begun.attempt + 1);
        Self { attempts, next_attempt, ..Self::new(row, expires_ms, key) }
    }

    const fn new(row: PaymentRow, expires_ms: u64, key: Option<PayKey>) -> Self {
        Self {
            row,
            expires_ms,
            key,
            is_durable: true,
            is_given_up: false,
            plan: None,
            attempts: Vec::new(),
            next_attempt: 0,
            onion: None,
            not_built: None,
            ready: Vec::new(),
            is_searching: false,
            is_waiting: false,
            patience: Patience::new(),
            failed_at: None,
            closing: None,
            tried: Vec::new(),
            full: Vec::new(),
            last_refusal: None,
            last_failure: None,
            lessons: Lessons::none(),
            listeners: Vec::new(),
        }
    }

    pub(super) fn save(&self) -> Saved {
        let is_told = |attempt: &&Attempt| self.row.attempt(attempt.begun.attempt).is_some();
        Saved {
            row: self.row.clone(),
            expires_ms: self.expires_ms,
            key: self.key.as_ref().map(|key| (key.text.clone(), key.hash, key.request)),
            attempts: self.attempts.iter().filter(is_told).map(Attempt::save).collect(),
            last_failure: self.last_failure.clone(),
        }
    }

    pub(super) fn restore(saved: Saved) -> Self {
        let Saved { row, expires_ms, key, attempts, last_failure } = saved;
        let key = key.map(|(text, hash, request)| PayKey { text, hash, request });
        let attempts = attempts.into_iter().map(Attempt::from).collect();
        Self { last_failure, ..Self::recovered(row, expires_ms, key, attempts) }
    }

    // --- what is out ---

    pub(super) fn live(&self) -> impl Iterator<Item = &Attempt> {
        self.attempts.iter().filter(|attempt| attempt.is_live())
    }

    pub(super) fn has_live(&self) -> bool {
        self.live().next().is_some()
    }

    pub(super) fn attempt_mut(&mut self, number: u32) -> Option<&mut Attempt> {
        let place = self.attempts.binary_search_by_key(&number, |attempt| attempt.begun.attempt).ok()?;
        self.attempts.get_mut(place)
    }

    /// Attempts over several channels are written in any order.
    pub(super) fn add_attempt(&mut self, attempt: Attempt) {
        let number = attempt.begun.attempt;
        let place = self.attempts.partition_point(|other| other.begun.attempt < number);
        self.attempts.insert(place, attempt);
        self.next_attempt = self.next_attempt.max(number + 1);
    }

    /// What no attempt is bringing, and none that is about to be offered.
    pub(super) fn missing(&self) -> Msat {
        let brought = self.live().map(|attempt| attempt.brings(self.row.amount));
        let to_come = self.ready.iter().map(|part| part.route.received());
        self.row.amount.saturating_sub(sum(brought.chain(to_come)))
    }

    /// What may still be paid for forwarding: all parts together keep the limit, at every moment.
    pub(super) fn fee_left(&self, plan: &Plan) -> Msat {
        let to_come = self.ready.iter().map(|part| part.route.fee());
        plan.fee_limit.saturating_sub(sum(self.live().map(Attempt::fee).chain(to_come)))
    }

    /// Its invoice's time is over: no further attempt is made.
    pub(super) fn expired(&self, world: &World<'_>) -> Option<PayRefusal> {
        let (expired_at_ms, now_ms) = (self.expires_ms, world.unix_ms);
        (expired_at_ms <= now_ms).then_some(PayRefusal::Expired { expired_at_ms, now_ms })
    }

    /// Attempts that are not out, and of which no entry says so yet.
    pub(super) fn overtaken(&self) -> Vec<u32> {
        let is_open = |number: &u32| self.row.attempt(*number).is_some_and(|row| row.ended_ms.is_none());
        let not_out = self.attempts.iter().filter(|attempt| attempt.state != AttemptState::Committed);
        not_out.map(|attempt| attempt.begun.attempt).filter(is_open).collect()
    }

    /// The time in which attempts are begun is over.
    pub(super) fn is_late(&self, world: &World<'_>) -> bool {
        self.plan.as_ref().is_none_or(|plan| plan.deadline <= world.now)
    }

    /// Why no further attempt follows after one that has failed like this.
    pub(super) fn why_ended(&self, read: &Read) -> Failure {
        let failure = read.failure.clone();
        if !self.lessons.is_in_vain(self.row.amount) {
            return failure;
        }
        let words =
            format!("the payee did not accept the parts in time, though all of them were sent {ROUNDS_MAX} times");
        let message = format!("{words}: {}", failure.message);
        Failure { message, ..failure }
    }

    /// Nothing of it is out there, and nothing is under way that would decide it.
    pub(super) fn is_lost(&self) -> bool {
        let is_out = |attempt: &Attempt| attempt.state == AttemptState::Committed;
        self.is_durable && !self.is_given_up && self.plan.is_none() && !self.attempts.iter().any(is_out)
    }

    /// After a restart, what no channel has committed to never was.
    pub(super) fn forget_what_never_left(&mut self) {
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.state == AttemptState::Ordered) {
            attempt.end(Read::here(never_left()));
        }
    }

    // --- what is offered ---

    /// The onion of the next attempt over one hop; the same for each channel that is asked, since those that refuse have
    /// not seen it.
    pub(super) fn build(&mut self, world: &World<'_>) -> Result<BuiltAttempt, PayRefusal> {
        if let Some(built) = self.onion.take() {
            return Ok(built);
        }
        if let Some(refusal) = self.not_built.take() {
            return Err(refusal);
        }
        let plan = self.plan.as_ref().ok_or_else(|| PayRefusal::Internal("the payment has no plan".to_owned()))?;
        build_attempt(&plan.goal, self.row.id, self.next_attempt, &world.rules.node_key, world.height)
    }

    /// An HTLC to a channel, with what is written for it.
    pub(super) fn offer(&mut self, begun: AttemptBegun, route: Option<Route>, onion: Box<OnionPacket>) -> Order {
        let (id, attempt, channel_id) = (self.row.id, begun.attempt, begun.channel_id);
        let entry = self.entry(begun, route.as_ref());
        let offer = Offer {
            amount: route.as_ref().map_or(self.row.amount, Route::sent),
            payment_hash: self.row.payment_hash,
            cltv_expiry: begun.cltv_expiry,
            onion,
            path_key: None,
            origin: Origin::Payment { id: id.0, attempt },
        };
        self.add_attempt(Attempt::new(begun, route));
        Order::Offer { id, attempt, channel_id, offer: Box::new(offer), entry }
    }

    fn entry(&self, begun: AttemptBegun, route: Option<&Route>) -> Entry {
        let id = self.row.id;
        if self.is_durable {
            let route = route.cloned();
            let attempt = Attempt::new(begun, route);
            let route = Box::new(attempt.whole_route(self.row.payee, self.row.amount));
            return PaymentEntry::Offered { id, attempt: begun, route }.entry();
        }
        let started = PaymentStarted {
            id,
            payment_hash: self.row.payment_hash,
            amount: self.row.amount,
            payee: self.row.payee,
            bolt11: self.row.bolt11.clone(),
            idempotency_key: self.key.as_ref().map(|key| key.text.clone()).unwrap_or_default(),
            attempt: begun,
        };
        let key = self.key.as_ref().map(|key| (key.hash, key.request));
        let accepted = Accepted { started, expires_ms: self.expires_ms, key };
        match route {
            Some(route) => PaymentEntry::AcceptedOver(Box::new(AcceptedOver { accepted, route: route.clone() })),
            None => PaymentEntry::Accepted(Box::new(accepted)),
        }
        .entry()
    }

    // --- what is written ---

    /// Why attempts have ended, as far as that is not on its way to the journal.
    pub(super) fn ends_to_write(&mut self) -> Vec<Entry> {
        let id = self.row.id;
        let ends = self.attempts.iter_mut().filter_map(|attempt| {
            let number = attempt.begun.attempt;
            let end = attempt.end.as_mut().filter(|end| !end.is_written)?;
            end.is_written = true;
            let End { failure, held_ms, .. } = end.clone();
            Some(PaymentEntry::Ended { id, attempt: number, failure, held_ms }.entry())
        });
        ends.collect()
    }

    /// The same at the very end, which says why for every attempt that does not say it itself.
    pub(super) fn last_entries(&mut self, failure: &Failure) -> Vec<Entry> {
        let mut unsaid =
            self.attempts.iter_mut().filter_map(|attempt| attempt.end.as_mut()).filter(|end| !end.is_written);
        if let (Some(end), None) = (unsaid.next(), unsaid.next())
            && end.failure == *failure
            && end.held_ms.is_empty()
        {
            end.is_written = true;
        }
        let mut entries = self.ends_to_write();
        entries.push(PaymentEntry::GivenUp { id: self.row.id, failure: failure.clone() }.entry());
        entries
    }

    pub(super) fn happen(&mut self, what: Happened, time_ms: u64, happened: &mut Vec<Happened>) {
        self.row.apply(&what, time_ms);
        happened.push(what);
    }

    /// A further attempt is durable.
    pub(super) fn on_offered(
        &mut self,
        begun: AttemptBegun,
        route: Option<Route>,
        time_ms: u64,
        out: &mut Vec<Happened>,
    ) {
        let id: PaymentId = self.row.id;
        self.happen(Happened::AttemptBegun { id, attempt: begun }, time_ms, out);
        if let Some(route) = &route {
            let route = Box::new(route.clone());
            self.happen(Happened::AttemptRouted { id, attempt: begun.attempt, route }, time_ms, out);
        }
        if self.attempt_mut(begun.attempt).is_none() {
            // On replay; live it was ordered.
            self.add_attempt(Attempt::new(begun, route));
        }
        self.tell_attempt(begun.attempt);
    }

    /// Outcomes of all attempts may be forgotten: it is decided.
    pub(super) fn release_all(&mut self, out: &mut Vec<Order>) {
        let outcomes = self.attempts.iter_mut().filter_map(|attempt| attempt.outcome.take());
        out.extend(outcomes.map(|(channel_id, htlc_id)| Order::Release(channel_id, htlc_id)));
    }

    // --- who is told ---

    pub(super) fn attach(&mut self, listener: Listener) {
        if self.is_durable {
            listener.step(|| self.accepted());
            for attempt in &self.row.attempts {
                listener.step(|| Told::Attempt(Box::new(attempt.clone())));
            }
        }
        self.listeners.push(listener);
    }

    fn accepted(&self) -> Told {
        let PaymentRow { payment_hash, amount, payee, .. } = &self.row;
        Told::Accepted { payment_hash: *payment_hash, amount: *amount, payee: *payee }
    }

    pub(super) fn tell_accepted(&self) {
        self.listeners.iter().for_each(|listener| listener.step(|| self.accepted()));
    }

    /// An attempt has begun, or ended.
    pub(super) fn tell_attempt(&self, number: u32) {
        let Some(row) = self.row.attempt(number) else { return };
        self.listeners.iter().for_each(|listener| listener.step(|| Told::Attempt(Box::new(row.clone()))));
    }

    pub(super) fn tell_outcome(&self) {
        // Counted where it was made, not where it is read back.
        if let Some(plan) = &self.plan {
            let outcome = if matches!(self.row.status, PaymentStatus::Succeeded { .. }) { "paid" } else { "failed" };
            ::metrics::counter!(metrics::PAYMENTS_SENT, "outcome" => outcome).increment(1);
            ::metrics::histogram!(metrics::PAYMENT_DURATION).record(plan.begun.elapsed().as_secs_f64());
        }
        self.listeners.iter().for_each(|listener| listener.outcome(&self.row));
    }
}

/// Why an attempt has ended that a restart has overtaken.
pub(super) fn never_left() -> Failure {
    Failure::here(FailureReason::PeerDisconnected, "the node was restarted before the peer had taken the HTLC")
}

fn sum(amounts: impl Iterator<Item = Msat>) -> Msat {
    Msat(amounts.map(|amount| amount.0).fold(0, u64::saturating_add))
}
