//! One watchtower that this node uses: the client that talks to it, and what becomes of what it says.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bitcoin::OutPoint;
use millrace_channel::keys::ChannelKeys;
use millrace_channel::secrets::RevealedSecrets;
use millrace_channel::terms::Terms;
use millrace_watchtower::client::{Client, Config, Event, Link, NoteError, Progress};
use millrace_watchtower::receipt::Receipt;
use millrace_watchtower::registration::Registration;
use millrace_wire::{ChannelId, CommitmentNumber, Preimage, PublicKey};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};

use super::book::{Book, StoredReceipt, TowerEntry};
use crate::channels::{CommandError, Registry, TowerBehind};
use crate::steps::WriteError;

/// How often new receipts are written down, and it is looked whether a tower has all that there is.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// A tower that does not forget a channel that is over, because it sees something left to watch, is asked again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(10 * 60);
/// How soon it is looked again whether a tower has everything, before the node stops.
const SETTLE_AGAIN: Duration = Duration::from_millis(20);
/// How long a channel that has too much to do is left alone.
const AGAIN: Duration = Duration::from_millis(200);

const LOCK: &str = "nothing panics while a watchtower's news are locked";

/// One tower.
pub(super) struct Tower {
    pub(super) id: PublicKey,
    pub(super) address: String,
    pub(super) client: Client,
    task_of: Arc<Task>,
    task: JoinHandle<()>,
}

impl Drop for Tower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Tower {
    /// Begins to use it. On a tokio runtime.
    pub(super) fn start(config: Config, book: Arc<Mutex<Book>>, is_relied_on: bool, registry: Registry) -> Self {
        let (id, address, lag_max) = (config.tower, config.address.clone(), config.lag_max);
        let (client, events) = Client::start(config);
        let is_relied_on = AtomicBool::new(is_relied_on);
        let seen = Mutex::default();
        let task_of = Arc::new(Task { id, lag_max, client: client.clone(), book, is_relied_on, registry, seen });
        let task = tokio::spawn(Arc::clone(&task_of).run(events));
        Self { id, address, client, task_of, task }
    }

    /// Has a channel watched, with what the tower is known to have of it.
    pub(super) fn watch(&self, registration: Registration, secrets: RevealedSecrets, receipt: Option<Receipt>) {
        let channel_id = self.client.register(registration, secrets);
        if let Some(receipt) = receipt {
            self.client.recall(channel_id, receipt);
        }
    }

    /// The peer has revoked a commitment.
    pub(super) fn revoked(&self, channel_id: ChannelId, number: CommitmentNumber, secret: [u8; 32]) {
        match self.client.note_revoked(channel_id, number, secret) {
            // All of it comes when the channel is watched.
            Ok(()) | Err(NoteError::Unknown(_)) => {}
            Err(NoteError::BadSecret(error)) => {
                tracing::error!(%channel_id, %number, %error, tower = %self.id, "a secret is not for the watchtower");
            }
        }
    }

    /// Whether HTLCs may be added in a channel.
    pub(super) fn may_add(&self, channel_id: ChannelId) -> Result<(), TowerBehind> {
        if !self.is_relied_on() || self.client.may_add(channel_id) {
            return Ok(());
        }
        let lag = self.client.progress(channel_id).map_or(0, |progress| progress.borrow().lag());
        Err(TowerBehind { tower: self.id, lag, max: self.task_of.lag_max })
    }

    /// Whether it has once had all that there was.
    pub(super) fn is_relied_on(&self) -> bool {
        self.task_of.is_relied_on.load(Ordering::Relaxed)
    }

    /// Waits, for so long at most, until the tower has what there is, if it is there, and writes down what it has signed.
    pub(super) fn settle(&self, limit: Duration) -> impl Future<Output = ()> + Send + 'static {
        let task = Arc::clone(&self.task_of);
        async move {
            let until = Instant::now() + limit;
            while *task.client.link().borrow() == Link::Up && !task.has_all(0) && Instant::now() < until {
                tokio::time::sleep(SETTLE_AGAIN).await;
            }
            // Or the node has stopped already.
            let _written = task.look().await;
        }
    }
}

/// What was written down and said already.
#[derive(Default)]
struct Seen {
    /// The newest receipts that are written down.
    receipts: BTreeMap<ChannelId, CommitmentNumber>,
    /// Channels of which the tower knows more than this node.
    ahead: BTreeSet<ChannelId>,
    /// Channels that it was asked to forget since the start, and when last.
    asked: BTreeMap<ChannelId, Instant>,
}

/// Hears what a tower says.
struct Task {
    id: PublicKey,
    lag_max: u64,
    client: Client,
    book: Arc<Mutex<Book>>,
    is_relied_on: AtomicBool,
    registry: Registry,
    seen: Mutex<Seen>,
}

impl Task {
    async fn run(self: Arc<Self>, mut events: mpsc::Receiver<Event>) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                event = events.recv() => match event {
                    Some(Event::Preimages { channel_id, preimages, count }) => {
                        self.on_preimages(channel_id, preimages, count).await;
                    }
                    Some(Event::Resolved { channel_id }) => {
                        tracing::info!(%channel_id, tower = %self.id, "the watchtower sees nothing left to watch");
                        // It may have refused before.
                        self.seen.lock().expect(LOCK).asked.remove(&channel_id);
                    }
                    None => return,
                },
                _ = ticks.tick() => {
                    if self.look().await.is_err() {
                        // The node stops.
                        return;
                    }
                }
            }
        }
    }

    /// Preimages that the tower has seen on chain go where the channel's own would go.
    async fn on_preimages(&self, channel_id: ChannelId, preimages: Vec<Preimage>, count: u32) {
        tracing::info!(%channel_id, tower = %self.id, preimages = preimages.len(), "the watchtower hands over preimages");
        loop {
            match self.registry.preimages(channel_id, preimages.clone()).await {
                // A channel that is over has no use for them.
                Ok(_) | Err(CommandError::UnknownChannel(_)) => break,
                Err(CommandError::Busy { .. }) => tokio::time::sleep(AGAIN).await,
                // They come again with the next connection.
                Err(error) => {
                    return tracing::warn!(%channel_id, %error, "a channel does not take the watchtower's preimages");
                }
            }
        }
        self.client.preimages_taken(channel_id, count);
    }

    /// Writes down what is new. Fails only when the node stops.
    async fn look(&self) -> Result<(), WriteError> {
        let over = self.over();
        let mut all = self.client.all_progress();
        all.retain(|(id, _, _)| !over.contains(id));
        self.raise_alarm(&all);
        let mut entries = Vec::new();
        let is_up = *self.client.link().borrow() == Link::Up;
        let begins = !self.is_relied_on.load(Ordering::Relaxed) && is_up && self.has_all(self.lag_max);
        if begins {
            entries.push(TowerEntry::ReliedOn { tower: self.id }.entry());
        }
        let receipts: Vec<(ChannelId, Receipt)> = {
            let seen = self.seen.lock().expect(LOCK);
            let is_new = |(channel_id, receipt): &(ChannelId, Receipt)| {
                seen.receipts.get(channel_id).is_none_or(|before| *before < receipt.next)
            };
            let receipts = all.iter().filter_map(|(id, _, progress)| Some((*id, progress.receipt?)));
            receipts.filter(is_new).collect()
        };
        if !receipts.is_empty() {
            let stored = receipts.iter().map(|(_, receipt)| StoredReceipt::from(receipt)).collect();
            entries.push(TowerEntry::Receipts { tower: self.id, receipts: stored }.entry());
        }
        let forgotten = if is_up { self.forget(over) } else { Vec::new() };
        if !forgotten.is_empty() {
            entries.push(TowerEntry::Forgotten { tower: self.id, channels: forgotten }.entry());
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.registry.journal().write(entries).await?;
        let written = receipts.iter().map(|(id, receipt)| (*id, receipt.next));
        self.seen.lock().expect(LOCK).receipts.extend(written);
        if begins {
            tracing::info!(tower = %self.id, "the watchtower has every channel: from here on the node relies on it");
            self.is_relied_on.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Channels that are over, and that the tower has not let go of.
    fn over(&self) -> BTreeSet<ChannelId> {
        let book = self.book.lock().expect(LOCK);
        book.towers.get(&self.id).map(|kept| kept.over.keys().copied().collect()).unwrap_or_default()
    }

    /// Asks again that these be let go: a tower whose chain is a block behind refuses. Gives those that it does not have any more.
    fn forget(&self, over: BTreeSet<ChannelId>) -> Vec<ChannelId> {
        let mut seen = self.seen.lock().expect(LOCK);
        let mut forgotten = Vec::new();
        for channel_id in over {
            match seen.asked.get(&channel_id) {
                Some(_) if !self.client.knows(channel_id) => {
                    seen.asked.remove(&channel_id);
                    forgotten.push(channel_id);
                }
                Some(asked) if asked.elapsed() < ASK_AGAIN => {}
                Some(_) | None => {
                    seen.asked.insert(channel_id, Instant::now());
                    self.client.forget(channel_id);
                }
            }
        }
        forgotten
    }

    /// A tower that knows of more than this node shows that this node's data is old (durability.md, D11).
    fn raise_alarm(&self, all: &[(ChannelId, OutPoint, Progress)]) {
        let mut seen = self.seen.lock().expect(LOCK);
        for (channel_id, _, progress) in all {
            if progress.is_tower_ahead && seen.ahead.insert(*channel_id) {
                tracing::error!(
                    %channel_id, tower = %self.id, ours = progress.noted,
                    "the watchtower knows of more revoked commitments than this node: the data folder is an old copy. \
                     Do not close this channel: let the peer do it."
                );
            }
        }
    }

    /// Whether the tower is not too far behind in any channel that is not over.
    fn has_all(&self, lag_max: u64) -> bool {
        let over = self.over();
        let is_near = |progress: &Progress| progress.lag() <= lag_max && progress.refused.is_none();
        let all = self.client.all_progress();
        all.iter().all(|(id, _, progress)| over.contains(id) || is_near(progress))
    }
}

/// What a tower is told of a channel.
pub(super) fn registration(
    terms: &Terms,
    keys: &ChannelKeys,
    sweep_script: bitcoin::ScriptBuf,
) -> Option<Registration> {
    Registration::of(terms, keys, sweep_script)
        .inspect_err(|error| tracing::error!(%error, "a channel cannot be watched by a watchtower"))
        .ok()
}
