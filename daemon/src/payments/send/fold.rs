//! The fold: what the journal says of payments, live and on replay alike.

use millrace_channel::Fact;
use millrace_channel::ledger::htlc::{Origin, Removal};
use millrace_wire::{ChannelId, HtlcId, Preimage};

use super::attempt::{Attempt, AttemptState};
use super::payment::Payment;
use super::ways::seconds;
use super::{Order, Sending, World};
use crate::happened::{Failure, FailureReason, Happened, PaymentId};
use crate::idempotency::Idempotency;
use crate::payments::entry::{Accepted, AcceptedOver, PaymentEntry};
use crate::payments::failure::{self, Read};
use crate::payments::prepare::{PayKey, secrets_of};
use crate::payments::row::PaymentRow;
use crate::route::Route;

impl Sending {
    /// An entry of ours is durable.
    pub(crate) fn on_entry(
        &mut self,
        entry: PaymentEntry,
        time_ms: u64,
        keys: &Idempotency,
        out: &mut Vec<Order>,
        happened: &mut Vec<Happened>,
    ) {
        match entry {
            PaymentEntry::Accepted(accepted) => self.on_accepted(*accepted, None, time_ms, keys, out, happened),
            PaymentEntry::AcceptedOver(over) => {
                let AcceptedOver { accepted, route } = *over;
                self.on_accepted(accepted, Some(route), time_ms, keys, out, happened);
            }
            PaymentEntry::Tried { id, attempt, previous } => {
                // As older builds wrote it: one attempt after the other, each with the whole amount.
                let failed = attempt.attempt.saturating_sub(1);
                self.on_ended_entry(id, failed, previous, Vec::new(), time_ms, out, happened);
                if let Some(payment) = self.payments.get_mut(&id) {
                    payment.on_offered(attempt, None, time_ms, happened);
                }
            }
            PaymentEntry::Offered { id, attempt, route } => {
                if let Some(payment) = self.payments.get_mut(&id) {
                    payment.on_offered(attempt, Some(*route), time_ms, happened);
                }
            }
            PaymentEntry::Ended { id, attempt, failure, held_ms } => {
                self.on_ended_entry(id, attempt, failure, held_ms, time_ms, out, happened);
            }
            PaymentEntry::GivenUp { id, failure } => {
                let Some(mut payment) = self.payments.remove(&id) else { return };
                self.by_hash.remove(&payment.row.payment_hash);
                let payment_hash = payment.row.payment_hash;
                payment.happen(Happened::PaymentFailed { id, payment_hash, failure }, time_ms, happened);
                payment.release_all(out);
                payment.tell_outcome();
            }
        }
    }

    #[allow(clippy::too_many_arguments, reason = "an entry's fields, and three places for what follows")]
    fn on_accepted(
        &mut self,
        accepted: Accepted,
        route: Option<Route>,
        time_ms: u64,
        keys: &Idempotency,
        out: &mut Vec<Order>,
        happened: &mut Vec<Happened>,
    ) {
        let Accepted { started, expires_ms, key } = accepted;
        let (id, begun) = (started.id, started.attempt);
        if let Some((hash, request)) = key {
            keys.note(hash, request, Some(&id.0), time_ms);
        }
        let row = PaymentRow::new(&started, time_ms);
        match self.payments.get_mut(&id) {
            Some(payment) => {
                payment.row = row;
                payment.is_durable = true;
            }
            None => {
                let text = started.idempotency_key.clone();
                let key = key.map(|(hash, request)| PayKey { text, hash, request });
                let attempts = vec![Attempt::new(begun, route.clone())];
                self.insert(Payment::recovered(row, expires_ms, key, attempts));
            }
        }
        happened.push(Happened::PaymentStarted(Box::new(started)));
        if let Some(payment) = self.payments.get_mut(&id) {
            if let Some(route) = route {
                let routed = Happened::AttemptRouted { id, attempt: begun.attempt, route: Box::new(route) };
                payment.happen(routed, time_ms, happened);
            }
            payment.tell_accepted();
            payment.tell_attempt(begun.attempt);
        }
        for (channel_id, fact, time_ms) in self.orphans.remove(&id).unwrap_or_default() {
            self.on_fact(channel_id, fact, time_ms, true, None, out, happened);
        }
        self.offer_ready(id, out);
        self.conclude(id, out);
    }

    #[allow(clippy::too_many_arguments, reason = "an entry's fields, and two places for what follows")]
    fn on_ended_entry(
        &mut self,
        id: PaymentId,
        attempt: u32,
        failure: Failure,
        held_ms: Vec<u32>,
        time_ms: u64,
        out: &mut Vec<Order>,
        happened: &mut Vec<Happened>,
    ) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if !held_ms.is_empty() {
            payment.happen(Happened::AttemptHeld { id, attempt, held_ms }, time_ms, happened);
        }
        payment.last_failure = Some(failure.clone());
        payment.happen(Happened::AttemptFailed { id, attempt, failure }, time_ms, happened);
        if let Some(ended) = payment.attempt_mut(attempt) {
            ended.state = AttemptState::Recorded;
            ended.end = None;
            if let Some((channel_id, htlc_id)) = ended.outcome.take() {
                out.push(Order::Release(channel_id, htlc_id));
            }
        }
        payment.tell_attempt(attempt);
    }

    /// A channel has said something about an HTLC of ours. Without a world (on replay) nothing is decided.
    #[allow(clippy::too_many_arguments, reason = "a fact, its circumstances, and three places for what follows")]
    pub(crate) fn on_fact(
        &mut self,
        channel_id: ChannelId,
        fact: Fact,
        time_ms: u64,
        is_replay: bool,
        world: Option<&World<'_>>,
        out: &mut Vec<Order>,
        happened: &mut Vec<Happened>,
    ) {
        let Some((id, attempt)) = payment_of(&fact) else { return };
        if is_replay && !self.payments.contains_key(&id) {
            self.orphans.entry(id).or_default().push((channel_id, fact, time_ms));
            return;
        }
        match fact {
            Fact::OfferCommitted { .. } => self.on_committed(id, attempt),
            Fact::OfferFulfilled { preimage, .. } => {
                self.on_fulfilled((id, attempt), preimage, time_ms, world, out, happened);
            }
            Fact::OfferResolved { id: htlc_id, removal, .. } => {
                self.load.remove(channel_id);
                if let Some(preimage) = removal.preimage() {
                    self.on_fulfilled((id, attempt), preimage.clone(), time_ms, world, out, happened);
                    out.push(Order::Release(channel_id, htlc_id));
                } else {
                    self.on_failed(id, attempt, (channel_id, htlc_id), &removal, world, out);
                }
            }
            Fact::OfferTimedOut { .. } => {
                self.load.remove(channel_id);
                let failure = Failure::here(
                    FailureReason::ChannelClosed,
                    "the channel closed, and the HTLC came back on chain after its expiry",
                );
                self.on_ended(id, attempt, Read::here(failure), world, out);
            }
            Fact::OfferDropped { .. } => {
                self.load.remove(channel_id);
                let failure = Failure::here(
                    FailureReason::PeerDisconnected,
                    "the connection with the peer broke before it had taken the HTLC",
                );
                self.on_ended(id, attempt, Read::here(failure), world, out);
            }
            _ => {}
        }
    }

    fn on_committed(&mut self, id: PaymentId, attempt: u32) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if let Some(known) = payment.attempt_mut(attempt)
            && known.state == AttemptState::Ordered
        {
            known.state = AttemptState::Committed;
            // Nobody needs it any more: the channel has it.
            payment.onion = None;
        }
    }

    /// The first preimage is the success of the whole: the payee gives it only for all parts. What becomes of the other
    /// parts is released as it is told.
    fn on_fulfilled(
        &mut self,
        (id, attempt): (PaymentId, u32),
        preimage: Preimage,
        time_ms: u64,
        world: Option<&World<'_>>,
        out: &mut Vec<Order>,
        happened: &mut Vec<Happened>,
    ) {
        self.on_committed(id, attempt);
        let Some(mut payment) = self.payments.remove(&id) else { return };
        let (payment_hash, amount) = (payment.row.payment_hash, payment.row.amount);
        self.by_hash.remove(&payment_hash);
        self.paid.insert(payment_hash, payment.expires_ms);
        if payment.plan.is_some() {
            for route in payment.live().filter_map(|attempt| attempt.route.as_ref()) {
                self.memory.free(route);
                if let Some(world) = world {
                    self.memory.moved(route, &world.map, seconds(world.unix_ms));
                }
            }
        }
        for attempt in payment.overtaken() {
            // In words that are the same on replay, where the answer is not read.
            let failure = Failure::here(FailureReason::Temporary, "it had failed when the others succeeded");
            payment.happen(Happened::AttemptFailed { id, attempt, failure }, time_ms, happened);
        }
        let fee = payment.row.fee_in_flight();
        payment.happen(Happened::PaymentSucceeded { id, payment_hash, preimage, amount, fee }, time_ms, happened);
        payment.release_all(out);
        payment.tell_outcome();
    }

    fn on_failed(
        &mut self,
        id: PaymentId,
        attempt: u32,
        outcome: (ChannelId, HtlcId),
        removal: &Removal,
        world: Option<&World<'_>>,
        out: &mut Vec<Order>,
    ) {
        let release = Order::Release(outcome.0, outcome.1);
        // Decided long ago.
        let Some(payment) = self.payments.get_mut(&id) else { return out.push(release) };
        let (payee, amount) = (payment.row.payee, payment.row.amount);
        let known = payment.attempt_mut(attempt).filter(|known| known.state != AttemptState::Recorded);
        let Some(known) = known else { return out.push(release) };
        known.outcome = Some(outcome);
        let Some(world) = world else {
            known.state = AttemptState::Ended;
            return;
        };
        let nodes = known.whole_route(payee, amount).nodes();
        let secrets = secrets_of(&world.rules.node_key, &nodes, id, attempt);
        if let Some(read) = failure::read(removal, &secrets, &nodes) {
            self.on_ended(id, attempt, read, Some(world), out);
        }
    }

    fn on_ended(&mut self, id: PaymentId, attempt: u32, read: Read, world: Option<&World<'_>>, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let has_plan = payment.plan.is_some();
        let Some(known) = payment.attempt_mut(attempt) else { return };
        let was_live = known.is_live();
        let Some(world) = world else {
            if was_live {
                known.state = AttemptState::Ended;
                payment.last_failure = Some(read.failure);
            }
            return;
        };
        if !known.end(read.clone()) {
            return;
        }
        if let Some(route) = known.route.as_ref().filter(|_| has_plan && was_live) {
            self.memory.free(route);
        }
        self.after_failure(id, attempt, &read, world, out);
    }
}

/// The payment and the attempt that a fact is about.
fn payment_of(fact: &Fact) -> Option<(PaymentId, u32)> {
    let origin = match fact {
        Fact::OfferCommitted { origin, .. }
        | Fact::OfferDropped { origin }
        | Fact::OfferFulfilled { origin, .. }
        | Fact::OfferResolved { origin, .. }
        | Fact::OfferTimedOut { origin, .. } => *origin,
        _ => return None,
    };
    match origin {
        Origin::Payment { id, attempt } => Some((PaymentId(id), attempt)),
        Origin::Forward { .. } => None,
    }
}
