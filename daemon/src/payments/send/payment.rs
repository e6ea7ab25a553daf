//! One payment that is under way.

use super::*;

impl Payment {
    /// Its invoice's time is over: no further attempt is made.
    pub(super) fn expired(&self, world: &World<'_>) -> Option<PayRefusal> {
        let (expired_at_ms, now_ms) = (self.expires_ms, world.unix_ms);
        (expired_at_ms <= now_ms).then_some(PayRefusal::Expired { expired_at_ms, now_ms })
    }

    pub(super) fn recovered(
        row: PaymentRow,
        expires_ms: u64,
        key: Option<PayKey>,
        attempts: Vec<Attempt>,
        last_failure: Option<Failure>,
    ) -> Self {
        Self {
            row,
            expires_ms,
            key,
            is_durable: true,
            is_given_up: false,
            plan: None,
            attempts,
            onion: None,
            tried: Vec::new(),
            may_wait: false,
            last_refusal: None,
            last_failure,
            owed: Vec::new(),
            listeners: Vec::new(),
        }
    }

    /// No HTLC of it is out there, and nothing is under way that would decide it.
    pub(super) fn is_lost(&self) -> bool {
        let is_out = self.attempts.last().is_some_and(|last| last.state == AttemptState::Committed);
        self.is_durable && !is_out && !self.is_given_up && self.plan.is_none()
    }

    pub(super) fn save(&self) -> Saved {
        let attempts = self.attempts.iter().take(self.row.attempts.len()).cloned().collect();
        Saved {
            row: self.row.clone(),
            expires_ms: self.expires_ms,
            key: self.key.as_ref().map(|key| (key.text.clone(), key.hash, key.request)),
            attempts,
            last_failure: self.last_failure.clone(),
        }
    }

    /// What is written with the next attempt.
    pub(super) fn entry(&self, begun: AttemptBegun) -> PaymentEntry {
        let id = self.row.id;
        if begun.attempt > 0 {
            let previous = self.last_failure.clone();
            let previous = previous.unwrap_or_else(|| Failure::here(FailureReason::Temporary, "it was tried before"));
            return PaymentEntry::Tried { id, attempt: begun, previous };
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
        PaymentEntry::Accepted(Box::new(Accepted { started, expires_ms: self.expires_ms, key }))
    }

    /// The onion of the next attempt; the same for each channel that is asked, since those that refuse have not seen it.
    pub(super) fn build(&mut self, world: &World<'_>) -> Result<BuiltAttempt, PayRefusal> {
        if let Some(built) = self.onion.take() {
            return Ok(built);
        }
        if self.attempts.is_empty()
            && let Some(refusal) = self.last_refusal.take()
        {
            return Err(refusal);
        }
        let plan = self.plan.as_ref().ok_or_else(|| PayRefusal::Internal("the payment has no plan".to_owned()))?;
        let attempt = u32::try_from(self.attempts.len()).expect("a payment has a few attempts");
        build_attempt(&plan.invoice, self.row.amount, self.row.id, attempt, world.rules, world.height)
    }

    pub(super) fn happen(&mut self, what: Happened, time_ms: u64, happened: &mut Vec<Happened>) {
        self.row.apply(&what, time_ms);
        happened.push(what);
    }

    pub(super) fn release(&mut self, out: &mut Vec<Order>) {
        out.extend(self.owed.drain(..).map(|(channel_id, htlc_id)| Order::Release(channel_id, htlc_id)));
    }

    pub(super) fn attach(&mut self, listener: Listener) {
        self.listeners.push(listener);
        if self.is_durable {
            let listener = &self.listeners[self.listeners.len() - 1];
            listener.step(|| self.accepted());
            for attempt in &self.row.attempts {
                listener.step(|| Told::Attempt(Box::new(attempt.clone())));
            }
        }
    }

    pub(super) fn accepted(&self) -> Told {
        let PaymentRow { payment_hash, amount, payee, .. } = &self.row;
        Told::Accepted { payment_hash: *payment_hash, amount: *amount, payee: *payee }
    }

    pub(super) fn tell_accepted(&self) {
        self.listeners.iter().for_each(|listener| listener.step(|| self.accepted()));
    }

    /// The newest attempt, and the one before if it has just ended.
    pub(super) fn tell_attempt(&self) {
        let rows = &self.row.attempts;
        for row in &rows[rows.len().saturating_sub(2)..] {
            self.listeners.iter().for_each(|listener| listener.step(|| Told::Attempt(Box::new(row.clone()))));
        }
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
