//! Transactions on their way into a block: sent, and sent again until they are no longer needed.
//!
//! A mempool forgets, and its minimum fee rises and falls, so a refusal is never the end: every
//! transaction that was submitted is sent again after each block and, if the mempool does not have
//! it, each minute, until its owner says [`Broadcaster::done`]. Nothing is kept on disk: after a
//! restart the owners submit again what they still owe to the world.
//!
//! It does not bump fees and does not look for confirmations; the blocks tell their owners.

mod status;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bitcoin::{Transaction, Txid};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tracing::{debug, info, warn};

pub use status::Status;

use crate::{Bitcoind, ChainError, SyncState};

/// How many submissions may be under way: all channels of a large node closing at once, with all
/// their HTLCs, stay below; a runaway caller does not.
pub const PENDING_MAX: usize = 20_000;
/// Orders that wait for the task: callers wait beyond that.
const ORDERS_MAX: usize = 256;
/// How often what the mempool does not have is sent again, between blocks.
const TRY_AGAIN: Duration = Duration::from_secs(60);

/// What is to be broadcast.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Submission {
    /// A transaction that pays for itself.
    Single(Transaction),
    /// A transaction and a child that pays for both.
    Package {
        /// The parent, such as a commitment.
        parent: Transaction,
        /// The child, which spends an output of it.
        child: Transaction,
    },
}

impl Submission {
    /// Its name: the transaction's id, for a package the child's.
    #[must_use]
    pub fn txid(&self) -> Txid {
        match self {
            Self::Single(transaction) => transaction.compute_txid(),
            Self::Package { child, .. } => child.compute_txid(),
        }
    }
}

/// Why a submission was not even tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// There are too many already.
    #[error("{PENDING_MAX} transactions are being broadcast already")]
    Full,
    /// The node is shutting down.
    #[error("the broadcaster has ended")]
    Ended,
}

/// The handle of the broadcasting task, which ends with its last handle.
#[derive(Debug, Clone)]
pub struct Broadcaster {
    bitcoind: Bitcoind,
    orders: mpsc::Sender<Order>,
    statuses: watch::Receiver<BTreeMap<Txid, Status>>,
}

#[derive(Debug)]
enum Order {
    Submit(Box<Submission>, oneshot::Sender<Result<Status, SubmitError>>),
    Done(Txid),
}

impl Broadcaster {
    /// Starts the task. `sync` tells it of new blocks and of a bitcoind that is back.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    #[must_use]
    pub fn start(bitcoind: Bitcoind, sync: watch::Receiver<SyncState>) -> Self {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let (sender, statuses) = watch::channel(BTreeMap::new());
        let task = Task {
            bitcoind: bitcoind.clone(),
            orders: receiver,
            statuses: sender,
            pending: BTreeMap::new(),
            places: BTreeMap::new(),
            next_place: 0,
            due: VecDeque::new(),
        };
        tokio::spawn(task.run(sync));
        Self { bitcoind, orders, statuses }
    }

    /// What would become of a transaction, without sending it: [`Status::InMempool`] if the mempool would take it.
    pub async fn try_out(&self, transaction: &Transaction) -> Status {
        Status::of_test(self.bitcoind.test_accept(std::slice::from_ref(transaction)).await)
    }

    /// Broadcasts, and keeps at it. The status is that of the first attempt; submitting the same
    /// again is an attempt more.
    ///
    /// # Errors
    /// [`SubmitError`] if it is not even tried. A refusal by bitcoind is a status.
    pub async fn submit(&self, submission: Submission) -> Result<Status, SubmitError> {
        let (reply, answer) = oneshot::channel();
        let order = Order::Submit(Box::new(submission), reply);
        self.orders.send(order).await.map_err(|_| SubmitError::Ended)?;
        answer.await.map_err(|_| SubmitError::Ended)?
    }

    /// Stops broadcasting: it is buried in the chain, or no longer wanted. A package goes by its
    /// child's id.
    pub async fn done(&self, txid: Txid) {
        // A task that has ended broadcasts nothing.
        let _ = self.orders.send(Order::Done(txid)).await;
    }

    /// How it stands with one submission, by its last attempt.
    #[must_use]
    pub fn status(&self, txid: &Txid) -> Option<Status> {
        self.statuses.borrow().get(txid).cloned()
    }

    /// How it stands with all, and the news of them.
    #[must_use]
    pub fn statuses(&self) -> watch::Receiver<BTreeMap<Txid, Status>> {
        self.statuses.clone()
    }
}

struct Task {
    bitcoind: Bitcoind,
    orders: mpsc::Receiver<Order>,
    statuses: watch::Sender<BTreeMap<Txid, Status>>,
    /// In the order of their submission, which puts parents before children.
    pending: BTreeMap<u64, Submission>,
    places: BTreeMap<Txid, u64>,
    next_place: u64,
    /// What is to be sent now. Orders go between.
    due: VecDeque<u64>,
}

impl Task {
    async fn run(mut self, mut sync: watch::Receiver<SyncState>) {
        let mut ticks = ticks();
        let mut height = sync.borrow_and_update().height();
        let mut is_watched = true;
        loop {
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(order).await,
                    None => return,
                },
                changed = sync.changed(), if is_watched => {
                    is_watched = changed.is_ok();
                    let now = sync.borrow_and_update().height();
                    // A bitcoind that was away may have lost its mempool.
                    if now.is_some() && now != height {
                        self.due = self.pending.keys().copied().collect();
                    }
                    height = now;
                }
                _ = ticks.tick() => self.due = self.not_accepted(),
                () = std::future::ready(()), if !self.due.is_empty() => self.send_next().await,
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Submit(submission, reply) => {
                let result = self.submit(*submission).await;
                // A caller who does not wait for the first attempt is served all the same.
                let _ = reply.send(result);
            }
            Order::Done(txid) => {
                if let Some(place) = self.places.remove(&txid) {
                    self.pending.remove(&place);
                    self.statuses.send_modify(|statuses| drop(statuses.remove(&txid)));
                }
            }
        }
    }

    async fn submit(&mut self, submission: Submission) -> Result<Status, SubmitError> {
        let txid = submission.txid();
        if !self.places.contains_key(&txid) && self.places.len() >= PENDING_MAX {
            return Err(SubmitError::Full);
        }
        let place = *self.places.entry(txid).or_insert(self.next_place);
        self.next_place = self.next_place.max(place.saturating_add(1));
        let status = attempt(&self.bitcoind, &submission).await;
        self.pending.insert(place, submission);
        self.publish(txid, status.clone());
        Ok(status)
    }

    async fn send_next(&mut self) {
        let Some(place) = self.due.pop_front() else { return };
        let Some(submission) = self.pending.get(&place) else { return };
        let txid = submission.txid();
        let status = attempt(&self.bitcoind, submission).await;
        if matches!(status, Status::Waiting { .. }) {
            // bitcoind is away: the others need not find that out one by one.
            self.due.clear();
        }
        self.publish(txid, status);
    }

    fn not_accepted(&self) -> VecDeque<u64> {
        let statuses = self.statuses.borrow();
        let is_due = |txid: &Txid| !statuses.get(txid).is_some_and(Status::is_known);
        self.pending.iter().filter(|(_, submission)| is_due(&submission.txid())).map(|(place, _)| *place).collect()
    }

    fn publish(&self, txid: Txid, status: Status) {
        self.statuses.send_if_modified(|statuses| {
            if statuses.get(&txid) == Some(&status) {
                return false;
            }
            match &status {
                Status::InMempool | Status::Confirmed => info!(%txid, ?status, "transaction broadcast"),
                Status::Refused { reason, .. } => warn!(%txid, reason, "transaction refused, will be tried again"),
                Status::Waiting { reason } => debug!(%txid, reason, "transaction waits for bitcoind"),
            }
            statuses.insert(txid, status);
            true
        });
    }
}

fn ticks() -> Interval {
    let mut ticks = interval(TRY_AGAIN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Sends it once.
async fn attempt(bitcoind: &Bitcoind, submission: &Submission) -> Status {
    match submission {
        Submission::Single(transaction) => Status::of_send(bitcoind.send(transaction).await),
        Submission::Package { parent, child } => attempt_package(bitcoind, parent, child).await,
    }
}

async fn attempt_package(bitcoind: &Bitcoind, parent: &Transaction, child: &Transaction) -> Status {
    let outcomes = bitcoind.send_package(&[parent.clone(), child.clone()]).await;
    let together = match &outcomes {
        Ok(outcomes) => Status::of_package(outcomes),
        Err(error @ ChainError::Rpc { .. }) => Status::of_send(Err(error.clone())),
        Err(error) => return Status::Waiting { reason: error.to_string() },
    };
    if together.is_known() {
        return together;
    }
    // A parent that pays enough by itself goes alone. One that is in the chain already is refused, for
    // its inputs are spent, and leaves only the child, which may be in the chain too.
    let parent = Status::of_send(bitcoind.send(parent).await);
    let child = Status::of_send(bitcoind.send(child).await);
    if parent.is_known() || child.is_known() {
        return child;
    }
    together
}
