//! The task that owns payments and invoices: it is told news, given orders, and does what follows.
//!
//! One task, so that nothing needs a lock; it takes what has arrived in batches and waits for nothing else. Curve work is
//! done before (`prepare`) and beside it (peeling, in chunks on the runtime's workers). Its queue is not bounded here:
//! clients are bounded by what they may have under way, and news by what channels may have in flight.

#[cfg(test)]
pub(crate) mod by_hand;
mod receiving;
pub(super) mod workers;

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use millrace_chain::SyncState;
use millrace_journal::Position;
use millrace_wire::{BlockHeight, ChannelId, HtlcId, PaymentHash, Preimage};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use self::workers::{Finder, Workers};
use super::core::{Consequences, Core, ToPeel};
use super::entry::InvoiceEntry;
use super::forward::{Answered, Hand, Sight};
use super::judge::{self, Opened, Received, Removing};
use super::listener::Listener;
use super::prepare::{PayerRules, Prepared};
use super::receive::{Fulfilment, HoldReply, InvoiceRefusal};
use super::refusal::PayRefusal;
use super::send::{Found, LookUp, Order, World};
use super::{ForwardRules, Updates};
use crate::channels::{CommandError, CommandResult, NoNewWork, Registry};
use crate::clock;
use crate::entry::Entry;
use crate::facts::News;
use crate::keys::Keys;
use crate::metrics;
use crate::network::Network;
use crate::steps::JournalHandle;

/// Inputs of one turn.
const TURN_MAX: usize = 512;
/// HTLCs that one worker peels at a time: half a millisecond.
const PEEL_CHUNK: usize = 12;
/// How often those are looked at who wait for a slot, or for a channel that was busy.
const TICK: Duration = Duration::from_millis(10);
/// How often what is old is forgotten.
const PRUNE_EVERY_MS: u64 = 30_000;
/// How often what payments have taught is written to its file.
const REMEMBER_EVERY_MS: u64 = 300_000;
/// An expired invoice stays so long: a claim decided just before may be on its way to the disk.
const EXPIRY_SLACK_MS: u64 = 600_000;

/// What the task is told.
pub(crate) enum Input {
    /// Something is durable, or told again.
    News(Box<News>),
    /// Payments to be made.
    Pay(Vec<Prepared>),
    /// A hash is wanted for an invoice.
    BeginInvoice(PaymentHash, oneshot::Sender<Result<(), InvoiceRefusal>>),
    /// It was not written after all.
    AbandonInvoice(PaymentHash),
    /// What a search has found.
    Found(crate::happened::PaymentId, Result<Found, PayRefusal>),
    /// What ways a payment would take.
    Estimate(Box<Prepared>, oneshot::Sender<Result<Found, PayRefusal>>),
    /// What payments have taught is to be written, if that is anything new.
    Remember(oneshot::Sender<()>),
    /// HTLCs that were peeled.
    Peeled(Vec<(Received, Opened)>),
    /// A section for a checkpoint.
    Section(Position, std::sync::mpsc::Sender<Vec<u8>>),
    /// Answered when everything before it was handled.
    Barrier(std::sync::mpsc::Sender<()>),
    /// How many payments are under way, and how many invoices in memory.
    Count(oneshot::Sender<(usize, usize)>),
    /// Takes what is held for an invoice; without a preimage, by the one that this node has.
    Settle(PaymentHash, Option<Preimage>, HoldReply),
    /// Takes an invoice back.
    Cancel(PaymentHash, HoldReply),
}

/// Answers those who ask again for what is no longer in memory.
pub(crate) type Archive = Arc<dyn Fn(LookUp, Listener) + Send + Sync>;

/// Whether an invoice or a spontaneous payment with this hash was ever there. May read files.
pub(crate) type IsKnown = Arc<dyn Fn(&PaymentHash) -> bool + Send + Sync>;

/// What the task works with.
pub(crate) struct Surroundings {
    pub(crate) registry: Registry,
    pub(crate) journal: JournalHandle,
    pub(crate) sync: watch::Receiver<SyncState>,
    pub(crate) keys: Keys,
    pub(crate) rules: PayerRules,
    pub(crate) archive: Archive,
    pub(crate) receiving: ReceivingRules,
    pub(crate) forwards: ForwardRules,
    pub(crate) updates: Updates,
    pub(crate) network: Network,
    pub(crate) workers: Arc<dyn Workers>,
}

/// What the owner decides about receiving.
#[derive(Clone)]
pub(crate) struct ReceivingRules {
    pub(crate) accepts_keysend: bool,
    pub(crate) mpp_timeout_ms: u64,
    pub(crate) is_known: IsKnown,
}

/// The task.
pub(crate) struct Actor {
    core: Core,
    around: Surroundings,
    inputs: mpsc::UnboundedReceiver<Input>,
    this: mpsc::WeakUnboundedSender<Input>,
    offers: FuturesUnordered<Tagged<(crate::happened::PaymentId, u32)>>,
    decisions: FuturesUnordered<Tagged<(ChannelId, HtlcId)>>,
    writes: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>,
    /// HTLCs of peers that are being decided, and what was decided.
    deciding: HashMap<(ChannelId, HtlcId), Option<Decision>>,
    /// Those whose channel was too busy to take the decision.
    again: Vec<(ChannelId, HtlcId)>,
    /// The switch's orders.
    hand: Hand,
    pruned_ms: u64,
    remembered_ms: u64,
}

/// What the task wakes up for.
enum Call<'a> {
    Inputs(std::vec::Drain<'a, Input>),
    Offered((crate::happened::PaymentId, u32), CommandResult),
    Decided((ChannelId, HtlcId), CommandResult),
    Forwarded(Option<Answered>),
    /// Something that was to be written by itself is.
    Written,
    Tick,
}

/// What was decided about an HTLC of a peer.
#[derive(Clone)]
enum Decision {
    Fulfill(Box<Fulfilment>),
    Remove(Removing),
}

/// An answer of a channel, with what it is about.
struct Tagged<T> {
    tag: T,
    answer: oneshot::Receiver<CommandResult>,
}

impl<T: Copy + Unpin> Future for Tagged<T> {
    type Output = (T, CommandResult);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let stopping = Err(CommandError::NoNewWork(NoNewWork::Stopping));
        Pin::new(&mut self.answer).poll(context).map(|answer| (self.tag, answer.unwrap_or(stopping)))
    }
}

impl Actor {
    pub(crate) fn new(
        core: Core,
        around: Surroundings,
        inputs: mpsc::UnboundedReceiver<Input>,
        this: mpsc::WeakUnboundedSender<Input>,
    ) -> Self {
        Self {
            core,
            around,
            inputs,
            this,
            offers: FuturesUnordered::new(),
            decisions: FuturesUnordered::new(),
            writes: FuturesUnordered::new(),
            deciding: HashMap::new(),
            again: Vec::new(),
            hand: Hand::default(),
            pruned_ms: 0,
            remembered_ms: clock::unix_ms(),
        }
    }

    /// Until nobody can give it orders any more.
    pub(crate) async fn run(mut self) {
        self.begin();
        let mut batch = Vec::with_capacity(TURN_MAX);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let call = tokio::select! {
                count = self.inputs.recv_many(&mut batch, TURN_MAX) => {
                    if count == 0 {
                        return;
                    }
                    Call::Inputs(batch.drain(..))
                }
                Some((tag, result)) = self.offers.next(), if !self.offers.is_empty() => Call::Offered(tag, result),
                Some((tag, result)) = self.decisions.next(), if !self.decisions.is_empty() => {
                    Call::Decided(tag, result)
                }
                Some(answered) = self.hand.next(), if !self.hand.is_idle() => Call::Forwarded(answered),
                Some(()) = self.writes.next(), if !self.writes.is_empty() => Call::Written,
                _ = tick.tick() => Call::Tick,
            };
            self.turn(call);
        }
    }

    /// Takes it in, and does what follows. Waits for nothing.
    fn turn(&mut self, call: Call<'_>) {
        let mut out = Consequences::default();
        let is_tick = matches!(call, Call::Tick);
        match call {
            Call::Inputs(inputs) => inputs.for_each(|input| self.on_input(input, &mut out)),
            Call::Offered(tag, result) => self.on_offered(tag, result, &mut out),
            Call::Decided(tag, result) => self.on_decided(tag, result, &mut out),
            Call::Forwarded(answered) => self.on_forwarded(answered),
            Call::Written => {}
            Call::Tick => {
                self.on_tick();
                self.look_at_held(&mut out);
            }
        }
        self.with_world(|core, world| core.sending.retry(world, is_tick, &mut out.orders));
        self.forward_on(is_tick, &mut out);
        self.carry_out(out);
    }

    /// After everything owed was told, before anything new.
    fn begin(&mut self) {
        self.core.sending.count_load(&self.around.registry.snapshots());
        let mut out = Consequences::default();
        while let Ok(input) = self.inputs.try_recv() {
            self.on_input(input, &mut out);
        }
        self.core.sending.sweep(&mut out.orders);
        self.forward_on(false, &mut out);
        self.carry_out(out);
    }

    fn on_input(&mut self, input: Input, out: &mut Consequences) {
        match input {
            Input::News(news) => self.with_world(|core, world| core.tell(*news, Some(world), out)),
            Input::Pay(payments) => self.with_world(|core, world| {
                for prepared in payments {
                    core.sending.pay(prepared, world, &mut out.orders);
                }
            }),
            Input::Found(id, result) => {
                self.with_world(|core, world| core.sending.found(id, result, world, &mut out.orders));
            }
            Input::Estimate(prepared, reply) => {
                let job = self.with_world(|core, world| core.sending.estimate(&prepared, world));
                // Whoever asked and is gone needs no answer.
                self.around.workers.search(job, Box::new(move |result| drop(reply.send(result))));
            }
            Input::Remember(reply) => self.remember(move || {
                let _gone = reply.send(());
            }),
            Input::BeginInvoice(payment_hash, reply) => {
                if let Err(Ok(())) = reply.send(self.core.receiving.invoices.begin(payment_hash)) {
                    self.core.receiving.invoices.abandon(payment_hash);
                }
            }
            Input::AbandonInvoice(payment_hash) => self.core.receiving.invoices.abandon(payment_hash),
            Input::Peeled(peeled) => {
                for (received, opened) in peeled {
                    self.decide(received, opened, out);
                }
            }
            // Whoever asked and is gone needs no answer.
            Input::Section(up_to, reply) => drop(reply.send(self.core.section(up_to))),
            Input::Barrier(reply) => drop(reply.send(())),
            Input::Settle(payment_hash, preimage, reply) => self.settle(payment_hash, preimage, reply, out),
            Input::Cancel(payment_hash, reply) => {
                self.core.receiving.cancel(payment_hash, reply, &mut out.receipts);
            }
            Input::Count(reply) => drop(reply.send((self.core.sending.len(), self.core.receiving.invoices.len()))),
        }
    }

    fn with_world<T>(&mut self, act: impl FnOnce(&mut Core, &World<'_>) -> T) -> T {
        let Self { core, around, .. } = self;
        let height = around.sync.borrow().height().map(BlockHeight);
        let keys = core.keys.clone();
        let world = World {
            rules: &around.rules,
            keys: &keys,
            channels_with: &|payee| around.registry.snapshots_with(payee),
            channels: &|| around.registry.snapshots(),
            map: around.network.map(),
            new_work: around.registry.check_new_work(),
            now: clock::now(),
            unix_ms: clock::unix_ms(),
            height,
        };
        act(core, &world)
    }

    // --- what follows ---

    fn carry_out(&mut self, out: Consequences) {
        let Consequences { orders, to_peel, receipts, acts } = out;
        for order in orders {
            match order {
                Order::Offer { id, attempt, channel_id, offer, entry } => {
                    let answer = self.around.registry.offer(channel_id, *offer, vec![entry]);
                    self.offers.push(Tagged { tag: (id, attempt), answer });
                }
                Order::Release(channel_id, htlc_id) => self.around.registry.release_outcome(channel_id, htlc_id),
                Order::Write(entries) => self.write(entries),
                Order::Search(job) => {
                    let (id, this) = (job.id, self.this.clone());
                    let then: Finder = Box::new(move |result| {
                        if let Some(this) = this.upgrade() {
                            // Fails only when the node has stopped.
                            let _gone = this.send(Input::Found(id, result));
                        }
                    });
                    self.around.workers.search(*job, then);
                }
                Order::LookUp(look_up, listener) => (self.around.archive)(look_up, listener),
            }
        }
        self.carry_out_receipts(receipts);
        self.hand.carry_out(acts, &self.around.registry);
        self.peel(to_peel);
    }

    /// Writes what payments have taught, on another thread.
    fn remember(&mut self, then: impl FnOnce() + Send + 'static) {
        self.remembered_ms = clock::unix_ms();
        let now_s = u32::try_from(self.remembered_ms / 1_000).unwrap_or(u32::MAX);
        let saved = self.core.sending.memory.unsaved(now_s);
        self.around.workers.write(Box::new(move || {
            if let Some(saved) = saved {
                saved.write();
            }
            then();
        }));
    }

    fn write(&self, entries: Vec<Entry>) {
        let journal = self.around.journal.clone();
        self.writes.push(Box::pin(async move {
            if let Err(error) = journal.write(entries).await {
                tracing::warn!(%error, "a decision was not written: it is made again at the next start");
            }
        }));
    }

    fn on_offered(
        &mut self,
        (id, attempt): (crate::happened::PaymentId, u32),
        result: CommandResult,
        out: &mut Consequences,
    ) {
        let result = result.map(|_| ());
        self.with_world(|core, world| core.sending.answered(id, attempt, result, world, &mut out.orders));
    }

    fn on_tick(&mut self) {
        for place in std::mem::take(&mut self.again) {
            if let Some(Some(decision)) = self.deciding.get(&place).cloned() {
                self.order(place, decision);
            }
        }
        self.hand.on_tick(&self.around.registry);
        let unix_ms = clock::unix_ms();
        if unix_ms >= self.pruned_ms + PRUNE_EVERY_MS {
            self.pruned_ms = unix_ms;
            self.core.receiving.invoices.prune(unix_ms, EXPIRY_SLACK_MS);
            self.core.sending.prune(unix_ms);
            self.core.keys.prune(unix_ms);
            if let Some(height) = self.synced_height() {
                self.core.forwarding.prune(height);
            }
        }
        if unix_ms >= self.remembered_ms + REMEMBER_EVERY_MS {
            self.remember(|| {});
        }
    }

    // --- HTLCs that came in ---

    fn peel(&mut self, to_peel: Vec<ToPeel>) {
        let mut fresh: Vec<ToPeel> = Vec::with_capacity(to_peel.len());
        for (received, onion) in to_peel {
            let place = (received.channel_id, received.id);
            // Told twice at a start: once is enough.
            if let std::collections::hash_map::Entry::Vacant(vacant) = self.deciding.entry(place) {
                vacant.insert(None);
                if self.fulfill_owed(place) {
                    continue;
                }
                if self.core.forwarding.take_onion(place) {
                    fresh.push((received, onion));
                } else {
                    let opened = judge::used_onion(&onion);
                    self.decide(received, opened, &mut Consequences::default());
                }
            }
        }
        let height = self.synced_height();
        while !fresh.is_empty() {
            let chunk: Vec<ToPeel> = fresh.drain(..fresh.len().min(PEEL_CHUNK)).collect();
            let open = self.opener(&chunk, height);
            let Some(this) = self.this.upgrade() else { return };
            self.around.workers.peel(Box::new(move || {
                let opened = chunk.into_iter().map(|(received, onion)| {
                    let opened = open(&received, &onion);
                    (received, opened)
                });
                // Fails only when the node has stopped.
                let _gone = this.send(Input::Peeled(opened.collect()));
            }));
        }
    }

    fn synced_height(&self) -> Option<BlockHeight> {
        let sync = self.around.sync.borrow();
        sync.height().filter(|_| sync.is_synced()).map(BlockHeight)
    }

    fn decide(&mut self, received: Received, opened: Opened, out: &mut Consequences) {
        let place = (received.channel_id, received.id);
        match opened {
            // Only what is downstream decides about it.
            Opened::Refused(_) if self.core.forwarding.has_gone_on(&place) => {
                let (channel_id, htlc_id) = place;
                tracing::error!(%channel_id, htlc_id = htlc_id.0, "an HTLC that has gone on is not peeled again");
                self.deciding.remove(&place);
            }
            Opened::Refused(removing) => self.order(place, Decision::Remove(removing)),
            Opened::Final(secret, last) => self.receive(received, secret, &last, &mut out.receipts),
            Opened::Forward(secret, forward) => {
                // From here on it is the switch's.
                self.deciding.remove(&place);
                self.core.forwarding.begin(&received, secret, *forward, clock::unix_ms());
            }
        }
    }

    /// Lets the switch go on with whatever something has touched.
    fn forward_on(&mut self, is_tick: bool, out: &mut Consequences) {
        let height = self.synced_height();
        let Self { core, around, .. } = self;
        let updates = around.updates.read().expect(super::LOCK);
        let sight = Sight {
            channels: &around.registry,
            policies: &core.policies,
            update_of: &|scid| updates.as_ref().and_then(|update_of| update_of(scid)),
            new_work: around.registry.check_new_work(),
            height,
            peer_share_percent: around.forwards.peer_share_percent,
            unix_ms: clock::unix_ms(),
        };
        core.forwarding.go_on(&sight, is_tick, &mut out.acts);
    }

    fn on_forwarded(&mut self, answered: Option<Answered>) {
        if let Some((key, channel_id, result)) = answered {
            self.core.forwarding.answered(key, channel_id, result, clock::unix_ms());
        }
    }

    fn order(&mut self, place: (ChannelId, HtlcId), decision: Decision) {
        let (channel_id, id) = place;
        self.deciding.insert(place, Some(decision.clone()));
        let registry = &self.around.registry;
        let answer = match decision {
            Decision::Fulfill(fulfilment) => {
                let entries = fulfilment.entry.iter().map(InvoiceEntry::entry).collect();
                registry.fulfill(channel_id, id, fulfilment.preimage.clone(), fulfilment.attribution.clone(), entries)
            }
            Decision::Remove(Removing::Fail(reason, attribution)) => {
                registry.fail(channel_id, id, reason, Some(attribution), Vec::new())
            }
            Decision::Remove(Removing::Malformed { sha256_of_onion, failure_code }) => {
                registry.fail_malformed(channel_id, id, sha256_of_onion, failure_code)
            }
        };
        self.decisions.push(Tagged { tag: place, answer });
    }

    fn on_decided(&mut self, place: (ChannelId, HtlcId), result: CommandResult, out: &mut Consequences) {
        if let Err(CommandError::Busy { .. }) = result {
            return self.again.push(place);
        }
        let decision = self.deciding.remove(&place).flatten();
        let (channel_id, htlc_id) = place;
        match result {
            Ok(_) => {
                if let Some(Decision::Fulfill(fulfilment)) = decision
                    && fulfilment.entry.is_some()
                {
                    ::metrics::counter!(metrics::PAYMENTS_RECEIVED).increment(1);
                }
            }
            Err(error) => {
                tracing::warn!(%channel_id, htlc_id = htlc_id.0, %error, "a channel did not take a decision");
                if let Some(Decision::Fulfill(fulfilment)) = decision {
                    let is_stopping = matches!(error, CommandError::NoNewWork(_));
                    self.core.receiving.on_refused(&fulfilment, is_stopping, &mut out.receipts);
                }
            }
        }
    }
}
