//! Somebody else's watchtower: it gets a sealed penalty for each commitment that a peer revokes, and learns nothing from it
//! before that commitment is published.
//!
//! What it takes to make a penalty is in the journal, in the step that revokes, until every such tower has signed for it. Sealing
//! costs four signatures each, and is done here, apart from the payments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use millrace_watchtower::client::Link;
use millrace_watchtower::client::blob::{BlobClient, BlobConfig, BlobProgress, HandOverError};
use millrace_watchtower::registration::Registration;
use millrace_watchtower::sealed::{Hint, SEALED_BYTES, Sealed, seal};
use millrace_watchtower::vault::Group;
use millrace_wire::{ChannelId, CommitmentNumber, PublicKey};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::book::{Book, KeptGroup, StoredBlobReceipt, ToSeal, TowerEntry};
use crate::channels::{Registry, TowerBehind};
use crate::keys::Keys;
use crate::steps::WriteError;

/// How often new receipts are written down, and it is looked whether a tower has all that there is.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How soon it goes on where the client had no room.
const AGAIN: Duration = Duration::from_millis(20);
/// Penalties that are sealed at once.
const SEAL_AT_ONCE: usize = 64;

const LOCK: &str = "nothing panics while a watchtower's channels are locked";

/// One tower.
pub(super) struct BlobTower {
    pub(super) id: PublicKey,
    pub(super) address: String,
    pub(super) client: BlobClient,
    feed: Arc<Feed>,
    task: JoinHandle<()>,
}

impl Drop for BlobTower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What its task works on.
struct Feed {
    id: PublicKey,
    lag_max: u64,
    keys: Keys,
    client: BlobClient,
    book: Arc<Mutex<Book>>,
    registry: Registry,
    channels: Mutex<BTreeMap<ChannelId, Fed>>,
    is_relied_on: AtomicBool,
    work: Notify,
}

/// A channel of which penalties are made.
#[derive(Clone)]
struct Fed {
    registration: Registration,
    /// What the peer had revoked when it was told of.
    revoked: u64,
    /// Its group, once that is written down.
    group: Option<(Group, u64)>,
}

impl BlobTower {
    /// Begins to use it. On a tokio runtime.
    pub(super) fn start(
        config: BlobConfig,
        keys: Keys,
        book: Arc<Mutex<Book>>,
        is_relied_on: bool,
        registry: Registry,
    ) -> Self {
        let (id, address, lag_max) = (config.tower, config.address.clone(), config.lag_max);
        let client = BlobClient::start(config);
        let feed = Arc::new(Feed {
            id,
            lag_max,
            keys,
            client: client.clone(),
            book,
            registry,
            channels: Mutex::default(),
            is_relied_on: AtomicBool::new(is_relied_on),
            work: Notify::new(),
        });
        let task = tokio::spawn(Arc::clone(&feed).run());
        Self { id, address, client, feed, task }
    }

    /// Has a channel watched from here on: the peer has revoked all commitments below this one.
    pub(super) fn watch(&self, registration: Registration, revoked: CommitmentNumber) {
        let channel_id = registration.channel_id();
        let fed = Fed { registration, revoked: revoked.0, group: None };
        self.feed.channels().entry(channel_id).or_insert(fed);
        self.feed.work.notify_one();
    }

    /// There is more to be told.
    pub(super) fn has_work(&self) {
        self.feed.work.notify_one();
    }

    /// The channel is over.
    pub(super) fn over(&self, channel_id: ChannelId) {
        let fed = self.feed.channels().remove(&channel_id);
        if let Some((group, _)) = fed.and_then(|fed| fed.group) {
            self.client.release(group);
        }
    }

    /// Whether HTLCs may be added in a channel.
    pub(super) fn may_add(&self, channel_id: ChannelId) -> Result<(), TowerBehind> {
        let Some((group, _)) = self.feed.channels().get(&channel_id).and_then(|fed| fed.group) else { return Ok(()) };
        if !self.is_relied_on() || self.client.may_add(group) {
            return Ok(());
        }
        let lag = self.client.progress(group).map_or(0, |progress| progress.borrow().lag());
        Err(TowerBehind { tower: self.id, lag, max: self.feed.lag_max })
    }

    /// Whether it has once had all that there was.
    pub(super) fn is_relied_on(&self) -> bool {
        self.feed.is_relied_on.load(Ordering::Relaxed)
    }

    /// How far it is with each channel, and the commitment with which its group begins.
    pub(super) fn progress(&self) -> Vec<(ChannelId, u64, BlobProgress)> {
        let by_group: BTreeMap<Group, BlobProgress> = self.client.all_progress().into_iter().collect();
        let channels = self.feed.channels();
        let of = |(id, fed): (&ChannelId, &Fed)| {
            let (group, base) = fed.group?;
            Some((*id, base, by_group.get(&group)?.clone()))
        };
        channels.iter().filter_map(of).collect()
    }
}

/// What a look at a channel has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// The tower has, or is about to get, all that there is.
    All,
    /// There is more.
    More,
}

impl Feed {
    fn channels(&self) -> MutexGuard<'_, BTreeMap<ChannelId, Fed>> {
        self.channels.lock().expect(LOCK)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect(LOCK)
    }

    async fn run(self: Arc<Self>) {
        let mut written = BTreeMap::new();
        let mut alarmed = BTreeSet::new();
        let mut next_look = Instant::now() + LOOK_EVERY;
        loop {
            let ids: Vec<ChannelId> = self.channels().keys().copied().collect();
            let mut has_more = false;
            for id in ids {
                match self.feed(id).await {
                    Ok(fed) => has_more |= fed == Standing::More,
                    // The node stops.
                    Err(WriteError) => return,
                }
            }
            if Instant::now() >= next_look {
                next_look = Instant::now() + LOOK_EVERY;
                if self.look(&mut written, &mut alarmed).await.is_err() {
                    return;
                }
            }
            let until = if has_more { Instant::now() + AGAIN } else { next_look };
            tokio::select! {
                () = self.work.notified() => {}
                () = sleep_until(until) => {}
            }
        }
    }

    /// Hands over what the tower lacks of a channel, as far as there is room.
    async fn feed(&self, channel_id: ChannelId) -> Result<Standing, WriteError> {
        let Some((registration, group, base)) = self.group_of(channel_id).await? else { return Ok(Standing::All) };
        let (first, noted) = self.book().waiting_range(channel_id).unwrap_or((base, base));
        let progress = self.client.progress(group).map(|progress| progress.borrow().clone()).unwrap_or_default();
        let wanted = base + progress.wanted;
        if progress.is_tower_ahead || wanted >= noted {
            return Ok(Standing::All);
        }
        if wanted < first {
            // What comes next is gone here: the tower has lost it, or was away for too long.
            tracing::warn!(%channel_id, tower = %self.id, wanted, first, "the watchtower lacks penalties that are not kept any more");
            let generation = self.kept_group(channel_id).map_or(0, |kept| kept.generation + 1);
            self.begin_group(channel_id, generation, first).await?;
            return Ok(Standing::More);
        }
        self.client.register(group, progress.acknowledged, noted - base);
        let items = self.book().waiting_from(channel_id, wanted, SEAL_AT_ONCE);
        let sealed = tokio::task::spawn_blocking(move || sealed(&registration, &items)).await.unwrap_or_default();
        for (number, sealed) in sealed {
            match self.client.hand_over(group, number - base, sealed) {
                Ok(()) => {}
                Err(HandOverError::Full { .. } | HandOverError::OutOfOrder { .. }) => return Ok(Standing::More),
                Err(HandOverError::Unknown(_) | HandOverError::TowerAhead { .. }) => return Ok(Standing::All),
            }
        }
        Ok(Standing::More)
    }

    fn kept_group(&self, channel_id: ChannelId) -> Option<KeptGroup> {
        self.book().towers.get(&self.id)?.groups.get(&channel_id).cloned()
    }

    /// The channel's group, written down before anything is told in it.
    async fn group_of(&self, channel_id: ChannelId) -> Result<Option<(Registration, Group, u64)>, WriteError> {
        let Some(fed) = self.channels().get(&channel_id).cloned() else { return Ok(None) };
        if let Some((group, base)) = fed.group {
            return Ok(Some((fed.registration, group, base)));
        }
        if self.kept_group(channel_id).is_none() {
            let first = self.book().waiting_range(channel_id).map(|(first, _)| first);
            self.begin_group(channel_id, 0, first.unwrap_or(fed.revoked)).await?;
        }
        let Some(kept) = self.kept_group(channel_id) else { return Ok(None) };
        let group = Group(self.keys.tower_group(&self.id, channel_id, kept.generation));
        let noted = self.book().waiting_range(channel_id).map_or(kept.acknowledged, |(_, end)| end);
        let acknowledged = kept.acknowledged - kept.base;
        self.client.register(group, acknowledged, noted.max(kept.acknowledged) - kept.base);
        if let Some(fed) = self.channels().get_mut(&channel_id) {
            fed.group = Some((group, kept.base));
        }
        Ok(Some((fed.registration, group, kept.base)))
    }

    async fn begin_group(&self, channel_id: ChannelId, generation: u32, base: u64) -> Result<(), WriteError> {
        let entry = TowerEntry::Group { tower: self.id, channel_id, generation, base }.entry();
        self.registry.journal().write(vec![entry]).await?;
        if let Some(fed) = self.channels().get_mut(&channel_id) {
            fed.group = None;
        }
        Ok(())
    }

    /// Writes down what is new. Fails only when the node stops.
    async fn look(&self, written: &mut BTreeMap<Group, u64>, alarmed: &mut BTreeSet<Group>) -> Result<(), WriteError> {
        let all = self.client.all_progress();
        for (group, progress) in &all {
            if progress.is_tower_ahead && alarmed.insert(*group) {
                tracing::error!(
                    %group, tower = %self.id,
                    "the watchtower has penalties that this node knows nothing of: the data folder is an old copy"
                );
            }
        }
        let of_group: BTreeMap<Group, ChannelId> =
            self.channels().iter().filter_map(|(id, fed)| Some((fed.group?.0, *id))).collect();
        let receipts: Vec<_> = all.iter().filter_map(|(group, progress)| Some((*group, progress.receipt?))).collect();
        let newest: Vec<_> = receipts
            .iter()
            .filter(|(group, receipt)| written.get(group).is_none_or(|before| *before < receipt.next))
            .filter_map(|(group, receipt)| Some((*of_group.get(group)?, receipt)))
            .collect();
        let mut entries = Vec::new();
        let begins = !self.is_relied_on.load(Ordering::Relaxed) && self.has_all(&all);
        if begins {
            entries.push(TowerEntry::ReliedOn { tower: self.id }.entry());
        }
        if !newest.is_empty() {
            let stored = newest.iter().map(|(id, receipt)| (*id, StoredBlobReceipt::from(*receipt))).collect();
            entries.push(TowerEntry::BlobReceipts { tower: self.id, receipts: stored }.entry());
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.registry.journal().write(entries).await?;
        written.extend(newest.iter().map(|(_, receipt)| (receipt.group, receipt.next)));
        if begins {
            self.is_relied_on.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn has_all(&self, all: &[(Group, BlobProgress)]) -> bool {
        let is_near = |progress: &BlobProgress| progress.lag() <= self.lag_max && progress.refused.is_none();
        *self.client.link().borrow() == Link::Up && all.iter().all(|(_, progress)| is_near(progress))
    }
}

/// The penalties of these commitments. Where there is nothing to take, what looks like one stands in its place: the tower
/// counts, and cannot tell.
fn sealed(registration: &Registration, items: &[ToSeal]) -> Vec<(u64, Sealed)> {
    let of = |item: &ToSeal| {
        let penalty =
            item.to_local().and_then(|(vout, value)| seal(registration, &item.secret, &item.txid(), vout, value));
        (item.number, penalty.unwrap_or_else(nothing))
    };
    items.iter().map(of).collect()
}

fn nothing() -> Sealed {
    let mut hint = [0; 16];
    let mut bytes = vec![0; SEALED_BYTES];
    getrandom::fill(&mut hint).expect("the system has randomness");
    getrandom::fill(&mut bytes).expect("the system has randomness");
    Sealed { hint: Hint(hint), bytes }
}
