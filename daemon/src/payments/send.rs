//! Payments of this node: which are under way, what becomes of them, and what is to be done next.
//!
//! The durable state is a fold over what the channels say and over three decisions of our own ([`PaymentEntry`]); it is
//! the same live and on replay. The first decision, `Accepted`, is handed to the channel together with the first HTLC
//! and is written in the same step: that one flush is D6, and D14 for the payment's key, and costs nothing of its own. A
//! channel that refuses writes nothing: then nothing was accepted. Whether an HTLC of ours can be out there is said by
//! the channel's record alone (`OfferCommitted`): what is not in it never left.
//!
//! Nothing here waits, and nothing touches the world: what is to be done comes out as [`Order`]s. A payment that finds
//! every slot taken waits in a line, without being accepted, until a slot is free or its time is over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use millrace_channel::ledger::htlc::{Origin, Removal};
use millrace_channel::{Fact, Millis, Offer, Refusal, Side};
use millrace_wire::{BlockHeight, ChannelId, HtlcId, PaymentHash, Preimage, PublicKey, ShortChannelId};
use serde::{Deserialize, Serialize};

use super::entry::{Accepted, PaymentEntry};
use super::failure;
use super::listener::{Listener, Told};
use super::pick::{Load, Pick, pick};
use super::prepare::{BuiltAttempt, PayKey, PayerRules, Plan, Prepared, build_attempt, secrets_of};
use super::refusal::PayRefusal;
use super::row::{PaymentRow, PaymentStatus};
use crate::channels::{ChannelSnapshot, CommandError, NoNewWork};
use crate::entry::Entry;
use crate::happened::{AttemptBegun, Failure, FailureReason, Happened, PaymentId, PaymentStarted};
use crate::idempotency::{Idempotency, KeyHash, RequestHash, Reserved};
use crate::metrics;

/// Payments that may be under way, or waiting, at once: some channels' worth of HTLCs.
pub(crate) const PAYMENTS_MAX: usize = 50_000;
/// Payments of the waiting line that are tried at a tick, in case a slot became free unnoticed.
const PROBES: usize = 4;

/// What is to be done.
#[derive(Debug)]
pub(crate) enum Order {
    /// To a channel; answered by [`Sending::answered`].
    Offer {
        /// Of which payment.
        id: PaymentId,
        /// Which attempt.
        attempt: u32,
        /// To which channel.
        channel_id: ChannelId,
        /// The HTLC.
        offer: Box<Offer>,
        /// What is written with it.
        entry: Entry,
    },
    /// A channel may forget how an HTLC ended.
    Release(ChannelId, HtlcId),
    /// To be written by itself.
    Write(Entry),
    /// To be answered from what is stored.
    LookUp(LookUp, Listener),
}

/// What is looked up for somebody who asks again.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum LookUp {
    /// The payment that a key stands for.
    Id(PaymentId),
    /// The payment of a paid invoice, if it was asked for on these terms.
    Paid {
        /// Its hash.
        payment_hash: PaymentHash,
        /// The invoice as text.
        bolt11: String,
        /// The amount.
        amount: millrace_wire::Msat,
    },
}

/// What decisions depend on, besides the payments themselves.
pub(crate) struct World<'a> {
    pub(crate) rules: &'a PayerRules,
    pub(crate) keys: &'a Idempotency,
    pub(crate) channels_with: &'a dyn Fn(&PublicKey) -> Vec<Arc<ChannelSnapshot>>,
    pub(crate) new_work: Result<(), NoNewWork>,
    pub(crate) now: Millis,
    pub(crate) unix_ms: u64,
    pub(crate) height: Option<BlockHeight>,
}

/// All payments.
#[derive(Default)]
pub(crate) struct Sending {
    payments: HashMap<PaymentId, Payment>,
    by_hash: HashMap<PaymentHash, PaymentId>,
    /// Paid, and when their invoices expire: until then they are not paid again.
    paid: HashMap<PaymentHash, u64>,
    /// Facts of payments whose acceptance another source is yet to tell of. Only on replay.
    orphans: HashMap<PaymentId, Vec<(ChannelId, Fact, u64)>>,
    waiting: VecDeque<PaymentId>,
    load: Load,
}

struct Payment {
    row: PaymentRow,
    expires_ms: u64,
    key: Option<PayKey>,
    /// `Accepted` is in the journal.
    is_durable: bool,
    /// `GivenUp` is on its way there.
    is_given_up: bool,
    /// What further attempts are made of; none after a restart.
    plan: Option<Plan>,
    attempts: Vec<Attempt>,
    /// Built, and not yet taken by a channel.
    onion: Option<BuiltAttempt>,
    /// Channels that have refused the coming attempt, and whether one of them may take it later.
    tried: Vec<ChannelId>,
    may_wait: bool,
    last_refusal: Option<PayRefusal>,
    /// Why the last attempt failed.
    last_failure: Option<Failure>,
    /// Outcomes that may be forgotten once the next decision is durable.
    owed: Vec<(ChannelId, HtlcId)>,
    listeners: Vec<Listener>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Attempt {
    begun: AttemptBegun,
    state: AttemptState,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum AttemptState {
    /// A channel was asked.
    Ordered,
    /// It may be out there.
    Committed,
    /// It is over, without success.
    Ended,
}

/// A payment in a checkpoint.
#[derive(Serialize, Deserialize)]
struct Saved {
    row: PaymentRow,
    expires_ms: u64,
    key: Option<(String, KeyHash, RequestHash)>,
    attempts: Vec<Attempt>,
    last_failure: Option<Failure>,
}

/// The payments in a checkpoint.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct SendingSection {
    payments: Vec<Saved>,
    paid: Vec<(PaymentHash, u64)>,
}

impl Sending {
    // --- asked by a client ---

    /// Begins a payment, or attaches to the one that there is.
    pub(crate) fn pay(&mut self, prepared: Prepared, world: &World<'_>, out: &mut Vec<Order>) {
        let payment_hash = prepared.plan.invoice.payment_hash;
        let known = self.by_hash.get(&payment_hash).copied();
        if let Some(key) = &prepared.key {
            let stands_for = known.unwrap_or(prepared.id);
            match world.keys.reserve(key.hash, key.request, &stands_for.0, world.unix_ms) {
                Ok(Reserved::New) => {}
                Ok(Reserved::Same(result)) => return self.repeat(&result, prepared.listener, out),
                Err(error) => return prepared.listener.refuse(error.into()),
            }
        }
        let is_paid = self.paid.contains_key(&payment_hash);
        let refusal = match known {
            Some(id) => match self.attach(id, &prepared) {
                Ok(true) => return,
                // It may yet be refused: then the key stands for nothing.
                Ok(false) => return free_key(&prepared.key, world),
                Err(refusal) => refusal,
            },
            None if is_paid => {
                free_key(&prepared.key, world);
                let Prepared { bolt11, amount, listener, .. } = prepared;
                out.push(Order::LookUp(LookUp::Paid { payment_hash, bolt11, amount }, listener));
                return;
            }
            None => match self.check_new(&prepared, world) {
                Ok(()) => {
                    let id = prepared.id;
                    self.enter(prepared);
                    return self.go_on(id, world, out);
                }
                Err(refusal) => refusal,
            },
        };
        free_key(&prepared.key, world);
        prepared.listener.refuse(refusal);
    }

    fn check_new(&self, prepared: &Prepared, world: &World<'_>) -> Result<(), PayRefusal> {
        world.new_work.clone()?;
        let expired_at_ms = expires_ms(prepared);
        if expired_at_ms <= world.unix_ms {
            return Err(PayRefusal::Expired { expired_at_ms, now_ms: world.unix_ms });
        }
        if self.payments.len() >= PAYMENTS_MAX {
            return Err(PayRefusal::TooManyPayments { limit: PAYMENTS_MAX });
        }
        Ok(())
    }

    fn repeat(&mut self, result: &[u8], listener: Listener, out: &mut Vec<Order>) {
        let Ok(id) = result.try_into().map(PaymentId) else {
            let internal = "an idempotency key stands for no payment".to_owned();
            return listener.refuse(PayRefusal::Internal(internal));
        };
        match self.payments.get_mut(&id) {
            Some(payment) => payment.attach(listener),
            None => out.push(Order::LookUp(LookUp::Id(id), listener)),
        }
    }

    /// Says whether the payment is durable.
    fn attach(&mut self, id: PaymentId, prepared: &Prepared) -> Result<bool, PayRefusal> {
        let payment = self.payments.get_mut(&id).expect("by_hash names payments that are there");
        if payment.row.amount != prepared.amount || payment.row.bolt11 != prepared.bolt11 {
            return Err(PayRefusal::AlreadyPaid { payment_hash: payment.row.payment_hash });
        }
        payment.attach(prepared.listener.clone());
        Ok(payment.is_durable)
    }

    fn enter(&mut self, prepared: Prepared) {
        let expires_ms = expires_ms(&prepared);
        let Prepared { id, bolt11, amount, key, plan, onion, listener } = prepared;
        let row = PaymentRow {
            id,
            payment_hash: plan.invoice.payment_hash,
            amount,
            payee: plan.invoice.payee,
            bolt11,
            created_ms: 0,
            decided_ms: None,
            status: PaymentStatus::InFlight,
            attempts: Vec::new(),
        };
        let (onion, last_refusal) = match onion {
            Ok(onion) => (Some(onion), None),
            Err(refusal) => (None, Some(refusal)),
        };
        self.by_hash.insert(row.payment_hash, id);
        let payment = Payment {
            row,
            expires_ms,
            key,
            is_durable: false,
            is_given_up: false,
            plan: Some(plan),
            attempts: Vec::new(),
            onion,
            tried: Vec::new(),
            may_wait: false,
            last_refusal,
            last_failure: None,
            owed: Vec::new(),
            listeners: vec![listener],
        };
        self.payments.insert(id, payment);
    }

    // --- attempts ---

    /// Offers the next attempt, lets it wait, or ends the payment.
    fn go_on(&mut self, id: PaymentId, world: &World<'_>, out: &mut Vec<Order>) {
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

    fn wait(&mut self, id: PaymentId) {
        if let Some(payment) = self.payments.get_mut(&id) {
            payment.tried.clear();
            payment.may_wait = false;
            self.waiting.push_back(id);
        }
    }

    fn offer(&mut self, id: PaymentId, built: BuiltAttempt, channel: &ChannelSnapshot, out: &mut Vec<Order>) {
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
    fn end(&mut self, id: PaymentId, refusal: PayRefusal, world: &World<'_>, out: &mut Vec<Order>) {
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

    fn give_up(&mut self, id: PaymentId, failure: Failure, out: &mut Vec<Order>) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if !payment.is_given_up {
            payment.is_given_up = true;
            out.push(Order::Write(PaymentEntry::GivenUp { id, failure }.entry()));
        }
    }

    /// An attempt is over without success: another channel, or the end.
    fn after_failure(&mut self, id: PaymentId, failure: Failure, world: &World<'_>, out: &mut Vec<Order>) {
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

    fn is_late(&self, id: PaymentId, world: &World<'_>) -> bool {
        self.payments.get(&id).is_none_or(|payment| {
            let is_timed_out = payment.plan.as_ref().is_none_or(|plan| plan.deadline <= world.now);
            is_timed_out || payment.expired(world).is_some()
        })
    }

    // --- the fold ---

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

    fn on_accepted(
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

    fn on_committed(&mut self, id: PaymentId, attempt: u32) {
        let Some(payment) = self.payments.get_mut(&id) else { return };
        if let Some(known) = payment.attempts.get_mut(attempt as usize)
            && known.state == AttemptState::Ordered
        {
            known.state = AttemptState::Committed;
            // Nobody needs it any more: the channel has it.
            payment.onion = None;
        }
    }

    fn on_fulfilled(&mut self, id: PaymentId, preimage: Preimage, time_ms: u64, happened: &mut Vec<Happened>) {
        let Some(mut payment) = self.payments.remove(&id) else { return };
        let (payment_hash, amount) = (payment.row.payment_hash, payment.row.amount);
        self.by_hash.remove(&payment_hash);
        self.paid.insert(payment_hash, payment.expires_ms);
        let fee = millrace_wire::Msat::ZERO;
        payment.happen(Happened::PaymentSucceeded { id, payment_hash, preimage, amount, fee }, time_ms, happened);
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

    fn on_ended(
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

    // --- starts and checkpoints ---

    /// After a start, when everything owed was told: payments whose HTLC never left, or whose last attempt has failed,
    /// are given up. None is tried again by itself: whoever asked is gone, and may ask again.
    pub(crate) fn sweep(&mut self, out: &mut Vec<Order>) {
        self.orphans.clear();
        let mut lost: Vec<PaymentId> = self.payments.values().filter(|p| p.is_lost()).map(|p| p.row.id).collect();
        lost.sort_unstable();
        for id in lost {
            let known = self.payments.get(&id).and_then(|payment| payment.last_failure.clone());
            let failure = known.unwrap_or_else(|| {
                let message = "the node was restarted before the payee had taken the HTLC";
                Failure::here(FailureReason::PeerDisconnected, message)
            });
            self.give_up(id, failure, out);
        }
    }

    /// HTLCs that a channel holds already count against its slots.
    pub(crate) fn count_load(&mut self, channels: &[Arc<ChannelSnapshot>]) {
        for channel in channels {
            self.load.set(channel.channel_id, *channel.htlc_counts.of(Side::Local));
        }
    }

    /// Forgets what is no longer needed.
    pub(crate) fn prune(&mut self, unix_ms: u64) {
        self.paid.retain(|_, expires_ms| *expires_ms > unix_ms);
    }

    /// For a checkpoint.
    pub(crate) fn section(&self) -> SendingSection {
        let durable = self.payments.values().filter(|payment| payment.is_durable);
        let mut payments: Vec<Saved> = durable.map(Payment::save).collect();
        payments.sort_unstable_by_key(|saved| saved.row.id);
        let mut paid: Vec<_> = self.paid.iter().map(|(hash, expires_ms)| (*hash, *expires_ms)).collect();
        paid.sort_unstable();
        SendingSection { payments, paid }
    }

    /// Takes a section back.
    pub(crate) fn restore(&mut self, section: SendingSection) {
        self.paid = section.paid.into_iter().collect();
        for Saved { row, expires_ms, key, attempts, last_failure } in section.payments {
            let key = key.map(|(text, hash, request)| PayKey { text, hash, request });
            self.insert(Payment::recovered(row, expires_ms, key, attempts, last_failure));
        }
    }

    fn insert(&mut self, payment: Payment) {
        self.by_hash.insert(payment.row.payment_hash, payment.row.id);
        self.payments.insert(payment.row.id, payment);
    }

    /// Payments under way or waiting.
    pub(crate) fn len(&self) -> usize {
        self.payments.len()
    }
}

impl Payment {
    /// Its invoice's time is over: no further attempt is made.
    fn expired(&self, world: &World<'_>) -> Option<PayRefusal> {
        let (expired_at_ms, now_ms) = (self.expires_ms, world.unix_ms);
        (expired_at_ms <= now_ms).then_some(PayRefusal::Expired { expired_at_ms, now_ms })
    }

    fn recovered(
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
    fn is_lost(&self) -> bool {
        let is_out = self.attempts.last().is_some_and(|last| last.state == AttemptState::Committed);
        self.is_durable && !is_out && !self.is_given_up && self.plan.is_none()
    }

    fn save(&self) -> Saved {
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
    fn entry(&self, begun: AttemptBegun) -> PaymentEntry {
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
    fn build(&mut self, world: &World<'_>) -> Result<BuiltAttempt, PayRefusal> {
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

    fn happen(&mut self, what: Happened, time_ms: u64, happened: &mut Vec<Happened>) {
        self.row.apply(&what, time_ms);
        happened.push(what);
    }

    fn release(&mut self, out: &mut Vec<Order>) {
        out.extend(self.owed.drain(..).map(|(channel_id, htlc_id)| Order::Release(channel_id, htlc_id)));
    }

    fn attach(&mut self, listener: Listener) {
        self.listeners.push(listener);
        if self.is_durable {
            let listener = &self.listeners[self.listeners.len() - 1];
            listener.step(|| self.accepted());
            for attempt in &self.row.attempts {
                listener.step(|| Told::Attempt(Box::new(attempt.clone())));
            }
        }
    }

    fn accepted(&self) -> Told {
        let PaymentRow { payment_hash, amount, payee, .. } = &self.row;
        Told::Accepted { payment_hash: *payment_hash, amount: *amount, payee: *payee }
    }

    fn tell_accepted(&self) {
        self.listeners.iter().for_each(|listener| listener.step(|| self.accepted()));
    }

    /// The newest attempt, and the one before if it has just ended.
    fn tell_attempt(&self) {
        let rows = &self.row.attempts;
        for row in &rows[rows.len().saturating_sub(2)..] {
            self.listeners.iter().for_each(|listener| listener.step(|| Told::Attempt(Box::new(row.clone()))));
        }
    }

    fn tell_outcome(&self) {
        // Counted where it was made, not where it is read back.
        if let Some(plan) = &self.plan {
            let outcome = if matches!(self.row.status, PaymentStatus::Succeeded { .. }) { "paid" } else { "failed" };
            ::metrics::counter!(metrics::PAYMENTS_SENT, "outcome" => outcome).increment(1);
            ::metrics::histogram!(metrics::PAYMENT_DURATION).record(plan.begun.elapsed().as_secs_f64());
        }
        self.listeners.iter().for_each(|listener| listener.outcome(&self.row));
    }
}

/// A key that stands for a payment that never was is free again.
fn free_key(key: &Option<PayKey>, world: &World<'_>) {
    if let Some(key) = key {
        world.keys.unreserve(&key.hash);
    }
}

fn expires_ms(prepared: &Prepared) -> u64 {
    let at = prepared.plan.invoice.expires_at();
    at.and_then(|at| u64::try_from(at.as_millis()).ok()).unwrap_or(u64::MAX)
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

fn refusal_of(error: CommandError, amount: millrace_wire::Msat) -> PayRefusal {
    match error {
        CommandError::NoNewWork(why) => PayRefusal::NoNewWork(why),
        CommandError::Refused(refusal) => match refusal {
            Refusal::BelowMinimum { amount, minimum } => PayRefusal::BelowMinimum { amount, minimum },
            Refusal::TooManyHtlcs { max } => PayRefusal::TooManyHtlcs { limit: max.into() },
            Refusal::InsufficientBalance { amount, available } => PayRefusal::InsufficientBalance { amount, available },
            Refusal::TooMuchInFlight { amount, left } => PayRefusal::InsufficientBalance { amount, available: left },
            Refusal::DustExposure { amount, left } => PayRefusal::DustExposure { amount, left },
            Refusal::FunderCannotPayFee => {
                PayRefusal::InsufficientBalance { amount, available: millrace_wire::Msat::ZERO }
            }
            Refusal::NotUsable(state) => PayRefusal::NotUsable { state: state.to_owned() },
            other => PayRefusal::Channel(other.to_string()),
        },
        CommandError::UnknownChannel(_) => PayRefusal::NotUsable { state: "it is closed".to_owned() },
        CommandError::Busy { .. } => PayRefusal::Channel(error.to_string()),
    }
}

/// The same, for a payment that was accepted.
fn failure_of(refusal: &PayRefusal) -> Failure {
    let reason = match refusal {
        PayRefusal::NoChannel { .. } => FailureReason::NoRoute,
        PayRefusal::InsufficientBalance { .. } => FailureReason::InsufficientBalance,
        PayRefusal::TooManyHtlcs { .. } => FailureReason::Timeout,
        PayRefusal::PeerAway { .. } => FailureReason::PeerDisconnected,
        PayRefusal::Expired { .. } => FailureReason::InvoiceExpired,
        _ => FailureReason::Temporary,
    };
    Failure::here(reason, refusal.to_string())
}

#[cfg(test)]
mod tests;
