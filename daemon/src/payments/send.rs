//! Payments of this node: which are under way, what becomes of them, and what is to be done next.
//!
//! The durable state is a fold over what the channels say and over decisions of our own ([`super::entry::PaymentEntry`]); it is the
//! same live and on replay. The first decision, `Accepted`, is handed to the channel together with the first HTLC and is
//! written in the same step: that one flush is D6, and D14 for the payment's key, and costs nothing of its own. A channel
//! that refuses writes nothing: then nothing was accepted. Whether an HTLC of ours can be out there is said by the
//! channel's record alone (`OfferCommitted`): what is not in it never left.
//!
//! A payment to a peer goes in one HTLC over one channel, without any search. For others, ways are looked for beside the
//! task (`search`), and an amount may be split into parts, each an attempt with its own channel, way and onion. The first
//! part goes alone until the payment is durable with it; so no part is ever out of a payment that a restart would not
//! know. At the first preimage it has succeeded, and it fails only when no part is out any more. After a restart no
//! further attempt is made: the parts that are out decide.
//!
//! Nothing here waits, and nothing touches the world: what is to be done comes out as [`Order`]s. A payment that finds
//! every slot taken waits in a line, without being accepted, until a slot is free or its time is over.

mod attempt;
mod fold;
mod lessons;
mod line;
mod memory;
mod payment;
mod rest;
mod search;
#[cfg(test)]
pub(crate) mod tests;
mod ways;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use millrace_channel::{Fact, Millis, Offer, Side};
use millrace_routing::map::Map;
use millrace_wire::{BlockHeight, ChannelId, HtlcId, PaymentHash, PublicKey};
use serde::{Deserialize, Serialize};

use self::payment::{Payment, Saved};
use self::search::check_payee;
use super::listener::Listener;
use super::pick::Load;
use super::prepare::{PayKey, PayerRules, Prepared};
use super::refusal::PayRefusal;
use crate::channels::{ChannelSnapshot, NoNewWork};
use crate::entry::Entry;
use crate::happened::PaymentId;
use crate::idempotency::{Idempotency, Reserved};

pub(crate) use self::memory::Memory;
pub use self::rest::FIRST_PAUSE_MS;
pub(crate) use self::search::{Found, Job, Part};

/// Payments that may be under way, or waiting, at once: some channels' worth of HTLCs.
pub(crate) const PAYMENTS_MAX: usize = 50_000;

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
    /// To be written by themselves, together.
    Write(Vec<Entry>),
    /// Ways to be looked for, away from the task; answered by [`Sending::found`].
    Search(Box<Job>),
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
    /// All of ours.
    pub(crate) channels: &'a dyn Fn() -> Vec<Arc<ChannelSnapshot>>,
    /// Those of others.
    pub(crate) map: Arc<Map>,
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
    /// Those that rest, by when they go on; also some that have been decided meanwhile.
    resting: BTreeSet<(Millis, PaymentId)>,
    load: Load,
    /// What payments have taught.
    pub(crate) memory: Memory,
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
        let payment_hash = prepared.plan.goal.payment_hash;
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
                Ok(false) => return free_key(prepared.key.as_ref(), world),
                Err(refusal) => refusal,
            },
            None if is_paid => {
                free_key(prepared.key.as_ref(), world);
                let Prepared { bolt11, plan, listener, .. } = prepared;
                let amount = plan.goal.amount;
                out.push(Order::LookUp(LookUp::Paid { payment_hash, bolt11, amount }, listener));
                return;
            }
            None => match self.check_new(&prepared, world) {
                Ok(()) => {
                    let id = prepared.id;
                    self.insert(Payment::begin(prepared));
                    return self.go_on(id, world, out);
                }
                Err(refusal) => refusal,
            },
        };
        free_key(prepared.key.as_ref(), world);
        prepared.listener.refuse(refusal);
    }

    fn check_new(&self, prepared: &Prepared, world: &World<'_>) -> Result<(), PayRefusal> {
        world.new_work.clone()?;
        let expired_at_ms = prepared.plan.goal.expires_ms;
        if expired_at_ms <= world.unix_ms {
            return Err(PayRefusal::Expired { expired_at_ms, now_ms: world.unix_ms });
        }
        check_payee(&prepared.plan.goal, &world.map)?;
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
        if payment.row.amount != prepared.plan.goal.amount || payment.row.bolt11 != prepared.bolt11 {
            return Err(PayRefusal::AlreadyPaid { payment_hash: payment.row.payment_hash });
        }
        payment.attach(prepared.listener.clone());
        Ok(payment.is_durable)
    }

    // --- starts and checkpoints ---

    /// After a start, when everything owed was told: payments whose HTLC never left, or whose last attempt has failed,
    /// are given up. None is tried again by itself: whoever asked is gone, and may ask again.
    pub(crate) fn sweep(&mut self, out: &mut Vec<Order>) {
        self.orphans.clear();
        for payment in self.payments.values_mut().filter(|payment| payment.plan.is_none()) {
            payment.forget_what_never_left();
        }
        let mut lost: Vec<PaymentId> = self.payments.values().filter(|p| p.is_lost()).map(|p| p.row.id).collect();
        lost.sort_unstable();
        for id in lost {
            let known = self.payments.get(&id).and_then(|payment| payment.last_failure.clone());
            self.close(id, known.unwrap_or_else(payment::never_left), out);
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
        for saved in section.payments {
            self.insert(Payment::restore(saved));
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
fn free_key(key: Option<&PayKey>, world: &World<'_>) {
    if let Some(key) = key {
        world.keys.unreserve(&key.hash);
    }
}
