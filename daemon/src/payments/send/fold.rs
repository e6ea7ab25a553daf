//! The fold: what the journal says of payments, live and on replay alike.

use super::*;

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
            PaymentEntry::Accepted(accepted) => self.on_accepted(*accepted, time_ms, keys, out, happened),
            PaymentEntry::Tried { id, attempt, previous } => {
                let Some(payment) = self.payments.get_mut(&id) else { return };
                let failed = attempt.attempt.saturating_sub(1);
                payment.happen(
                    Happened::AttemptFailed { id, attempt: failed, failure: previous.clone() },
                    time_ms,
                    happened,
                );
                payment.happen(Happened::AttemptBegun { id, attempt }, time_ms, happened);
                payment.last_failure = Some(previous);
                if payment.attempts.len() == attempt.attempt as usize {
                    // On replay; live it was ordered.
                    payment.attempts.push(Attempt { begun: attempt, state: AttemptState::Ordered });
                }
                payment.release(out);
                payment.tell_attempt();
            }
            PaymentEntry::GivenUp { id, failure } => {
                let Some(mut payment) = self.payments.remove(&id) else { return };
                self.by_hash.remove(&payment.row.payment_hash);
                let payment_hash = payment.row.payment_hash;
                payment.happen(Happened::PaymentFailed { id, payment_hash, failure }, time_ms, happened);
                payment.release(out);
                payment.tell_outcome();
            }
        }
    }

    pub(super) fn on_accepted(
        &mut self,
        accepted: Accepted,
        time_ms: u64,
        keys: &Idempotency,
        out: &mut Vec<Order>,
        happened: &mut Vec<Happened>,
    ) {
        let Accepted { started, expires_ms, key } = accepted;
        let id = started.id;
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
                let attempt = Attempt { begun: started.attempt, state: AttemptState::Ordered };
                let text = started.idempotency_key.clone();
                let key = key.map(|(hash, request)| PayKey { text, hash, request });
                self.insert(Payment::recovered(row, expires_ms, key, vec![attempt], None));
            }
        }
        happened.push(Happened::PaymentStarted(Box::new(started)));
        if let Some(payment) = self.payments.get(&id) {
            payment.tell_accepted();
            payment.tell_attempt();
        }
        for (channel_id, fact, time_ms) in self.orphans.remove(&id).unwrap_or_default() {
            self.on_fact(channel_id, fact, time_ms, true, None, out, happened);
        }
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
            Fact::OfferFulfilled { preimage, .. } => self.on_fulfilled(id, preimage, time_ms, happened),
            Fact::OfferResolved { id: htlc_id, removal, .. } => {
                self.load.remove(channel_id);
                if let Some(preimage) = removal.preimage() {
                    self.on_fulfilled(id, preimage.clone(), time_ms, happened);
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
                self.on_ended(id, attempt, failure, world, out);
            }
            Fact::OfferDropped { .. } => {
                self.load.remove(channel_id);
                let failure = Failure::here(
                    FailureReason::PeerDisconnected,
                    "the connection with the payee broke before it had taken the HTLC",
                );
                self.on_ended(id, attempt, failure, world, out);
            }
            _ => {}
        }
    }

    pub(super) fn on_committed(&mut self, id: PaymentId, attempt: u32) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if let Some(known) = payment.attempts.get_mut(attempt as usize)
            && known.state == AttemptState::Ordered
        {
            known.state = AttemptState::Committed;
            // Nobody needs it any more: the channel has it.
            payment.onion = None;
        }
    }

    pub(super) fn on_fulfilled(
        &mut self,
        id: PaymentId,
        preimage: Preimage,
        time_ms: u64,
        happened: &mut Vec<Happened>,
    ) {
        let Some(mut payment) = self.payments.remove(&id) else { return };
        let (payment_hash, amount) = (payment.row.payment_hash, payment.row.amount);
        self.by_hash.remove(&payment_hash);
        self.paid.insert(payment_hash, payment.expires_ms);
        let fee = millrace_wire::Msat::ZERO;
        payment.happen(Happened::PaymentSucceeded { id, payment_hash, preimage, amount, fee }, time_ms, happened);
        payment.tell_outcome();
    }

    pub(super) fn on_failed(
        &mut self,
        id: PaymentId,
        attempt: u32,
        outcome: (ChannelId, HtlcId),
        removal: &Removal,
        world: Option<&World<'_>>,
        out: &mut Vec<Order>,
    ) {
        let Some(payment) = self.payments.get_mut(&id) else {
            // Decided long ago.
            return out.push(Order::Release(outcome.0, outcome.1));
        };
        let is_last = payment.attempts.len() == attempt as usize + 1;
        if !is_last {
            return out.push(Order::Release(outcome.0, outcome.1));
        }
        if !payment.owed.contains(&outcome) {
            payment.owed.push(outcome);
        }
        let Some(world) = world else {
            payment.attempts[attempt as usize].state = AttemptState::Ended;
            return;
        };
        let secrets = secrets_of(&world.rules.node_key, payment.row.payee, id, attempt);
        if let Some(failure) = failure::read(removal, &secrets) {
            self.on_ended(id, attempt, failure, Some(world), out);
        }
    }

    pub(super) fn on_ended(
        &mut self,
        id: PaymentId,
        attempt: u32,
        failure: Failure,
        world: Option<&World<'_>>,
        out: &mut Vec<Order>,
    ) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        let is_last = payment.attempts.len() == attempt as usize + 1;
        let Some(known) = payment.attempts.get_mut(attempt as usize).filter(|_| is_last) else { return };
        known.state = AttemptState::Ended;
        payment.last_failure = Some(failure.clone());
        if let Some(world) = world
            && !payment.is_given_up
        {
            self.after_failure(id, failure, world, out);
        }
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
