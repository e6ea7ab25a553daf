//! Payments and invoices: the way of a payment from a client's order to a channel, and from a channel to an invoice.
//!
//! [`Payments`] is the handle. It is a [`Fold`] over the journal, and after a start the door to the one task that decides
//! (`actor`). `prepare` and `judge` hold the curve work, `send` and `receive` the state, `core` puts the states together.
//! `forward` is the switch between channels.

mod actor;
mod channel_news;
mod core;
mod entry;
mod failure;
mod forward;
mod hints;
mod hold;
mod judge;
mod listener;
mod make;
mod pick;
mod prepare;
mod receive;
mod refusal;
mod row;
mod send;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock};

use millrace_chain::SyncState;
use millrace_journal::{Journal, Position};
use millrace_wire::{PaymentHash, ShortChannelId};
use tokio::sync::{mpsc, oneshot, watch};

pub use hold::HoldError;
pub use listener::{Listener, Told};
pub use make::{InvoiceOrder, MakeError, Purpose, Taking};
pub use prepare::{Limits, PARTS_MAX, PayKey, PayRequest, PayerRules, TIMEOUT_DEFAULT, Target};
pub use receive::{HoldRefusal, InvoiceRefusal, MPP_TIMEOUT_MS};
pub use refusal::PayRefusal;
pub use row::{AttemptRow, HeldRow, InvoiceKind, InvoiceRow, PaidRow, PaymentRow, PaymentStatus};

pub(crate) use self::actor::Actor as Task;
#[cfg(test)]
pub(crate) use self::actor::by_hand::Heard;
use self::actor::workers::{RuntimeWorkers, Workers};
use self::actor::{Input, ReceivingRules, Surroundings};
use self::core::Core;
use self::prepare::Moment;
pub use self::send::FIRST_PAUSE_MS;
use self::send::{Found, LookUp, Part};
use crate::channels::Registry;
use crate::clock;
use crate::events::EventLog;
use crate::facts::{Fold, News, Telling};
use crate::idempotency::Idempotency;
use crate::keys::Keys;
use crate::network::Network;
use crate::policy::{ForwardPolicy, Policies};
use crate::route::Estimate;
use crate::steps::JournalHandle;
use crate::view::Past;

const LOCK: &str = "nothing panics while payments are read back";

/// An expired invoice stays in memory so long: a claim decided just before may be on its way to the disk.
pub const EXPIRED_KEPT_MS: u64 = 600_000;

/// What the owner decides about payments.
#[derive(Clone)]
pub struct PaymentRules {
    /// The network.
    pub network: bitcoin::Network,
    /// The furthest expiry that is offered, in blocks from now.
    pub max_cltv_expiry_blocks: u16,
    /// Blocks that our invoices ask of the last hop.
    pub final_cltv_delta: u16,
    /// Life of an invoice that does not say, in seconds.
    pub invoice_expiry_s: u32,
    /// How long idempotency keys are remembered, in milliseconds.
    pub keys_kept_ms: u64,
    /// Whether payments are taken that no invoice asked for.
    pub accepts_keysend: bool,
    /// How long a part of a payment waits for the others, in milliseconds; [`MPP_TIMEOUT_MS`] by BOLT 4.
    pub mpp_timeout_ms: u64,
    /// How long a payment rests at first that finds no way but one that has refused it, in milliseconds; usually
    /// [`FIRST_PAUSE_MS`].
    pub first_pause_ms: u64,
    /// How long an invoice that has expired is in memory, in milliseconds; usually [`EXPIRED_KEPT_MS`].
    pub expired_kept_ms: u64,
    /// What is asked of those who want something forwarded.
    pub forwards: ForwardRules,
}

/// What the owner decides about forwarding.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ForwardRules {
    /// On what terms, over channels that have none of their own.
    pub usual: ForwardPolicy,
    /// The part of a channel's slots and liquidity that one incoming peer may hold, in percent.
    pub peer_share_percent: u8,
}

impl Default for ForwardRules {
    fn default() -> Self {
        Self { usual: ForwardPolicy::default(), peer_share_percent: 50 }
    }
}

/// Tells what is announced of a channel (our `channel_update`, a whole message as failures carry it), by the short channel
/// id or alias that a sender used.
pub type UpdateOf = Box<dyn Fn(ShortChannelId) -> Option<Vec<u8>> + Send + Sync>;

/// Absent while nothing is announced.
type Updates = Arc<RwLock<Option<UpdateOf>>>;

/// Payments and invoices. Shared by all who need them.
pub struct Payments {
    /// Until the start; then the task has it.
    core: Mutex<Option<Core>>,
    inputs: mpsc::UnboundedSender<Input>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Input>>>,
    running: std::sync::OnceLock<Running>,
    rules: PaymentRules,
    payer: PayerRules,
    keys: Keys,
    idempotency: Idempotency,
    policies: Policies,
    updates: Updates,
    log: Arc<EventLog>,
    /// Where ways are looked for; nowhere if it was not said.
    network: std::sync::OnceLock<Network>,
}

struct Running {
    sync: watch::Receiver<SyncState>,
    registry: Registry,
    journal: JournalHandle,
}

/// Why payments cannot begin.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PaymentsError {
    /// The journal holds what this build cannot read.
    #[error("what was written about payments and invoices cannot be read: {0}")]
    Unreadable(String),
    /// They were started before.
    #[error("payments were started before")]
    Started,
}

impl Payments {
    /// Payments as they are before anything was read back.
    #[must_use]
    pub fn new(keys: Keys, rules: PaymentRules) -> Arc<Self> {
        let idempotency = Idempotency::new(rules.keys_kept_ms);
        let log = EventLog::new();
        let policies = Policies::new(rules.forwards.usual);
        let (inputs, receiver) = mpsc::unbounded_channel();
        let payer = PayerRules {
            network: rules.network,
            node_key: *keys.node_key(),
            node_id: keys.node_id(),
            max_cltv_expiry_blocks: rules.max_cltv_expiry_blocks,
            first_pause_ms: rules.first_pause_ms,
        };
        Arc::new(Self {
            core: Mutex::new(Some(Core::new(idempotency.clone(), policies.clone(), Arc::clone(&log)))),
            inputs,
            receiver: Mutex::new(Some(receiver)),
            running: std::sync::OnceLock::new(),
            rules,
            payer,
            keys,
            idempotency,
            policies,
            updates: Updates::default(),
            log,
            network: std::sync::OnceLock::new(),
        })
    }

    /// Says where ways are looked for, and in which file is kept what payments teach. To be called before the start.
    pub fn find_ways(&self, network: Network, memory: PathBuf) {
        // The first one stays.
        let _second = self.network.set(network);
        if let Some(core) = self.core.lock().expect(LOCK).as_mut() {
            core.sending.memory = send::Memory::load(memory);
        }
    }

    /// Puts the events on top of the journal's history, once everything was read back.
    pub fn attach(&self, journal: &Arc<Journal>) {
        self.log.attach(Arc::clone(journal.history()));
        let journal = Arc::downgrade(journal);
        self.log.follow(Box::new(move || journal.upgrade().map_or(Position::START, |journal| journal.durable_end())));
    }

    /// Lets the task run. To be called on a tokio runtime, after everything that the channels owe was told
    /// ([`Telling::Resume`]) and before any client is served.
    ///
    /// # Errors
    /// [`PaymentsError`].
    pub fn start(&self, registry: Registry, sync: watch::Receiver<SyncState>, past: Past) -> Result<(), PaymentsError> {
        let is_known = {
            let past = past.clone();
            Arc::new(move |payment_hash: &PaymentHash| is_known(&past, payment_hash))
        };
        let actor = self.task(registry, sync, archive_of(past), is_known, Arc::new(RuntimeWorkers::new()))?;
        let task = tokio::spawn(actor.run());
        self.log.nudge();
        tokio::spawn(async move {
            if let Err(error) = task.await
                && error.is_panic()
            {
                // It has lost track of money: nothing may go on beside it.
                tracing::error!("the payments' task panicked: the process ends");
                std::process::abort();
            }
        });
        Ok(())
    }

    /// The task, which does not run yet; there is only one.
    pub(crate) fn task(
        &self,
        registry: Registry,
        sync: watch::Receiver<SyncState>,
        archive: actor::Archive,
        is_known: actor::IsKnown,
        workers: Arc<dyn Workers>,
    ) -> Result<Task, PaymentsError> {
        let journal = registry.journal();
        let core = self.core.lock().expect(LOCK).take().ok_or(PaymentsError::Started)?;
        if let Some(fault) = core.fault() {
            return Err(PaymentsError::Unreadable(fault.to_owned()));
        }
        let receiver = self.receiver.lock().expect(LOCK).take().ok_or(PaymentsError::Started)?;
        let running = Running { sync: sync.clone(), registry: registry.clone(), journal: journal.clone() };
        self.running.set(running).map_err(|_| PaymentsError::Started)?;
        let receiving = ReceivingRules {
            accepts_keysend: self.rules.accepts_keysend,
            mpp_timeout_ms: self.rules.mpp_timeout_ms,
            expired_kept_ms: self.rules.expired_kept_ms,
            is_known,
        };
        let around = Surroundings {
            registry,
            journal,
            sync,
            keys: self.keys.clone(),
            rules: self.payer.clone(),
            archive,
            receiving,
            forwards: self.rules.forwards,
            updates: Arc::clone(&self.updates),
            network: self.network.get().cloned().unwrap_or_default(),
            workers,
        };
        Ok(Task::new(core, around, receiver, self.inputs.downgrade()))
    }

    /// Makes payments. Each listener is told what becomes of its own; nothing here waits, but the curve work of all of
    /// them is done on the caller's thread.
    pub fn pay(&self, payments: impl IntoIterator<Item = (PayRequest, Listener)>) {
        let moment = self.moment();
        let mut prepared = Vec::new();
        for (request, listener) in payments {
            match prepare::prepare(request, &self.payer, moment, |payee| self.is_peer(payee), listener) {
                Ok(payment) => prepared.push(payment),
                Err((refusal, listener)) => listener.refuse(refusal),
            }
        }
        if let Err(mpsc::error::SendError(Input::Pay(prepared))) = self.inputs.send(Input::Pay(prepared)) {
            for payment in prepared {
                payment.listener.refuse(crate::channels::NoNewWork::Stopping.into());
            }
        }
    }

    /// The ways that a payment would take now, and nothing is sent.
    ///
    /// # Errors
    /// [`PayRefusal`] as for the payment itself.
    pub async fn estimate(&self, request: PayRequest) -> Result<Vec<Estimate>, PayRefusal> {
        let (listener, _) = Listener::pair(0, false);
        let prepared = prepare::prepare(request, &self.payer, self.moment(), |_| false, listener);
        let prepared = prepared.map_err(|(refusal, _)| refusal)?;
        let (expired_at_ms, now_ms) = (prepared.plan.goal.expires_ms, clock::unix_ms());
        if expired_at_ms <= now_ms {
            return Err(PayRefusal::Expired { expired_at_ms, now_ms });
        }
        let (reply, answer) = oneshot::channel();
        let stopping = || PayRefusal::from(crate::channels::NoNewWork::Stopping);
        self.inputs.send(Input::Estimate(Box::new(prepared), reply)).map_err(|_| stopping())?;
        let Found { parts, .. } = answer.await.map_err(|_| stopping())??;
        Ok(parts.into_iter().map(|Part { route, chance_ppm, .. }| Estimate { route, chance_ppm }).collect())
    }

    /// Writes what payments have taught, for an orderly end: it may also be lost.
    pub async fn remember(&self) {
        let (reply, answer) = oneshot::channel();
        if self.is_running() && self.inputs.send(Input::Remember(reply)).is_ok() {
            // No answer comes when the task has ended.
            let _written = answer.await.is_ok();
        }
    }

    fn moment(&self) -> Moment {
        let height = self.running.get().and_then(|running| running.sync.borrow().height());
        Moment { now: clock::now(), unix_ms: clock::unix_ms(), height: height.map(millrace_wire::BlockHeight) }
    }

    fn is_peer(&self, node: &millrace_wire::PublicKey) -> bool {
        self.running.get().is_some_and(|running| !running.registry.snapshots_with(node).is_empty())
    }

    /// What happens, in order.
    #[must_use]
    pub fn log(&self) -> &Arc<EventLog> {
        &self.log
    }

    /// The idempotency keys of all calls.
    #[must_use]
    pub fn idempotency(&self) -> &Idempotency {
        &self.idempotency
    }

    /// On what terms this node forwards.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Says who knows what is announced of our channels: failures carry it.
    pub fn announce_by(&self, update_of: UpdateOf) {
        *self.updates.write().expect(LOCK) = Some(update_of);
    }

    /// Payments under way, and invoices in memory.
    pub async fn counts(&self) -> Option<(usize, usize)> {
        let (reply, answer) = oneshot::channel();
        self.inputs.send(Input::Count(reply)).ok()?;
        answer.await.ok()
    }

    /// Waits until everything told so far was handled, or nobody handles anything any more.
    pub(crate) async fn catch_up(&self) {
        let _counts = self.counts().await;
    }

    /// Whether the task runs: before, what is told live waits for it.
    pub(crate) fn is_running(&self) -> bool {
        self.running.get().is_some()
    }

    /// Waits until everything told so far was handled. False if nobody handles anything any more. Not for tasks.
    pub(crate) fn barrier(&self) -> bool {
        let (reply, answer) = std::sync::mpsc::channel();
        self.inputs.send(Input::Barrier(reply)).is_ok() && answer.recv().is_ok()
    }
}

/// Answers from the view, on a task of its own: this is for those who ask again, not for those who pay.
fn archive_of(past: Past) -> actor::Archive {
    Arc::new(move |look_up, listener| {
        let past = past.clone();
        tokio::spawn(async move {
            past.view.catch_up(&past.log).await;
            match find(&past, &look_up) {
                Ok(row) => listener.outcome(&row),
                Err(refusal) => listener.refuse(refusal),
            }
        });
    })
}

/// Whether there ever was an invoice or a spontaneous payment with this hash.
fn is_known(past: &Past, payment_hash: &PaymentHash) -> bool {
    let found = past.view.invoice(payment_hash);
    found.map_or_else(
        |error| {
            tracing::error!(%error, "the view cannot be asked: a spontaneous payment is not taken");
            true
        },
        |row| row.is_some(),
    )
}

fn find(past: &Past, look_up: &LookUp) -> Result<PaymentRow, PayRefusal> {
    let found = match look_up {
        LookUp::Id(id) => past.view.payment(id),
        LookUp::Paid { payment_hash, .. } => past.view.payment_by_hash(payment_hash),
    };
    let found = found.map_err(|error| PayRefusal::Internal(error.to_string()))?;
    match look_up {
        LookUp::Id(_) => {
            let unknown = || PayRefusal::Internal("the payment of this key is no longer kept".to_owned());
            found.filter(|row| row.status != PaymentStatus::InFlight).ok_or_else(unknown)
        }
        LookUp::Paid { payment_hash, bolt11, amount } => found
            .filter(|row| row.bolt11 == *bolt11 && row.amount == *amount)
            .filter(|row| row.status != PaymentStatus::InFlight)
            .ok_or(PayRefusal::AlreadyPaid { payment_hash: *payment_hash }),
    }
}

impl Fold for Payments {
    fn name(&self) -> &'static str {
        "payments"
    }

    fn restore(&self, section: &[u8]) -> Result<(), String> {
        let mut core = self.core.lock().expect(LOCK);
        core.as_mut().ok_or("payments run already")?.restore(section)
    }

    fn tell(&self, news: &News) {
        if news.telling == Telling::Replay {
            let mut core = self.core.lock().expect(LOCK);
            if let Some(core) = core.as_mut() {
                core.tell(news.clone(), None, &mut self::core::Consequences::default());
            }
            return;
        }
        // Nobody hears it any more only when the node has stopped.
        let _gone = self.inputs.send(Input::News(Box::new(news.clone())));
    }

    fn section(&self, up_to: Position) -> Result<Vec<u8>, String> {
        let section = {
            let mut core = self.core.lock().expect(LOCK);
            core.as_mut().map(|core| core.section(up_to))
        };
        let section = match section {
            Some(section) => section,
            None => {
                let (reply, answer) = std::sync::mpsc::channel();
                let sent = self.inputs.send(Input::Section(up_to, reply));
                sent.map_err(|_| "the payments' task has ended")?;
                answer.recv().map_err(|_| "the payments' task has ended")?
            }
        };
        self.log.to_history(up_to).map_err(|error| error.to_string())?;
        Ok(section)
    }
}

impl std::fmt::Debug for Payments {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Payments")
    }
}
