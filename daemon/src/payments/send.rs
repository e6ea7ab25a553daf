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

mod attempts;
mod fold;
mod payment;
#[cfg(test)]
mod tests;
