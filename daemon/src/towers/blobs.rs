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
use millrace_watchtower::receipt::BlobReceipt;
use millrace_watchtower::registration::Registration;
use millrace_watchtower::sealed::{Hint, SEALED_BYTES, Sealed, seal};
use millrace_watchtower::vault::Group;
use millrace_wire::{ChannelId, CommitmentNumber, PublicKey};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use super::book::{Book, KeptGroup, StoredBlobReceipt, ToSeal, TowerEntry};
use crate::channels::{Registry, TowerBehind, random};
use crate::steps::WriteError;

/// How often new receipts are written down, and it is looked whether a tower has all that there is.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How soon it goes on where the tower has enough to do.
const AGAIN: Duration = Duration::from_millis(50);
/// Penalties that are sealed at once.
const SEAL_AT_ONCE: usize = 64;
/// Penalties of one channel that are on their way at once: no channel takes the room of all.
const ON_THE_WAY_MAX: u64 = 512;

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
    client: BlobClient,
    book: Arc<Mutex<Book>>,
    registry: Registry,
    channels: Mutex<BTreeMap<ChannelId, Fed>>,
    is_relied_on: AtomicBool,
    seen: Mutex<Seen>,
    work: Notify,
}

/// What was written down and said already.
#[derive(Default)]
struct Seen {
    /// The newest receipts that are written down.
    receipts: BTreeMap<Group, u64>,
    /// Groups of which the tower knows more than this node.
    ahead: BTreeSet<Group>,
}

/// A channel of which penalties are made.
#[derive(Clone)]
struct Fed {
    registration: Registration,
    /// What the peer had revoked when it was told of, after the tower was first reached.
    revoked: Option<u64>,
    /// Its group, once that is written down, and the commitment with which it begins.
    group: Option<(Group, u64)>,
}

impl BlobTower {
    /// Begins to use it. On a tokio runtime.
    pub(super) fn start(config: BlobConfig, book: Arc<Mutex<Book>>, is_relied_on: bool, registry: Registry) -> Self {
        let (id, address, lag_max) = (config.tower, config.address.clone(), config.lag_max);
        let client = BlobClient::start(config);
        let feed = Arc::new(Feed {
            id,
            lag_max,
            client: client.clone(),
            book,
            registry,
            channels: Mutex::default(),
            is_relied_on: AtomicBool::new(is_relied_on),
            seen: Mutex::default(),
            work: Notify::new(),
        });
        let task = tokio::spawn(Arc::clone(&feed).run());
        Self { id, address, client, feed, task }
    }

    /// Has a channel watched from here on: the peer has revoked all commitments below this one.
    pub(super) fn watch(&self, registration: Registration, revoked: CommitmentNumber) {
        let channel_id = registration.channel_id();
        let is_reached = self.feed.book().towers.get(&self.id).is_some_and(|kept| kept.is_reached);
        let mut channels = self.feed.channels();
        let fed = channels.entry(channel_id).or_insert(Fed { registration, revoked: None, group: None });
        if is_reached && fed.revoked.is_none() {
            fed.revoked = Some(revoked.0);
        }
        drop(channels);
        self.feed.take_up(channel_id);
        self.feed.work.notify_one();
    }

    /// There is more to be told.
    pub(super) fn has_work(&self) {
        self.feed.work.notify_one();
    }

    /// The channel is over: its groups are let go by and by.
    pub(super) fn over(&self, channel_id: ChannelId) {
        self.feed.channels().remove(&channel_id);
        self.feed.work.notify_one();
    }

    /// Whether HTLCs may be added in a channel.
    pub(super) fn may_add(&self, channel_id: ChannelId) -> Result<(), TowerBehind> {
        if !self.is_relied_on() {
            return Ok(());
        }
        let (lag, max) = (self.feed.lag(channel_id), self.feed.lag_max);
        if lag <= max { Ok(()) } else { Err(TowerBehind { tower: self.id, lag, max }) }
    }

    /// Whether it has once had all that there was.
    pub(super) fn is_relied_on(&self) -> bool {
        self.feed.is_relied_on.load(Ordering::Relaxed)
    }

    /// How far it is with each channel, and the commitment with which its group begins.
    pub(super) fn progress(&self) -> Vec<(ChannelId, u64, BlobProgress)> {
        self.feed.progress().into_iter().map(|(id, _, base, progress)| (id, base, progress)).collect()
    }

    /// Waits, for so long at most, until the tower has what there is, if it is there, and writes down what it has signed.
    pub(super) fn settle(&self, limit: Duration) -> impl Future<Output = ()> + Send + 'static {
        let feed = Arc::clone(&self.feed);
        async move {
            let until = Instant::now() + limit;
            while *feed.client.link().borrow() == Link::Up && !feed.has_all(0) && Instant::now() < until {
                tokio::time::sleep(AGAIN).await;
            }
            // Or the node has stopped already.
            let _written = feed.look().await;
        }
    }
}

/// What a look at a channel has come to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Nothing is to be told now.
    Done,
    /// There is more, at once.
    More,
    /// There is more, when the tower has answered.
    Busy,
}

impl Feed {
    fn channels(&self) -> MutexGuard<'_, BTreeMap<ChannelId, Fed>> {
        self.channels.lock().expect(LOCK)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect(LOCK)
    }

    async fn run(self: Arc<Self>) {
        let mut next_look = Instant::now() + LOOK_EVERY;
        let mut link = self.client.link();
        // What a tower has may be something else after each new connection.
        let mut is_new = true;
        // It fails only when the node stops.
        while let Ok(standing) = self.feed_all(is_new || Instant::now() >= next_look).await {
            is_new = false;
            if Instant::now() >= next_look {
                next_look = Instant::now() + LOOK_EVERY;
                if self.look().await.is_err() {
                    return;
                }
            }
            let until = match standing {
                Standing::More => {
                    tokio::task::yield_now().await;
                    continue;
                }
                Standing::Busy => Instant::now() + AGAIN,
                Standing::Done => next_look,
            };
            tokio::select! {
                () = self.work.notified() => {}
                () = sleep_until(until) => {}
                // It may have come back.
                _ = link.changed() => is_new = true,
            }
        }
    }

    /// Looks at every channel, or only at those with something to tell: most are idle.
    async fn feed_all(&self, is_whole: bool) -> Result<Standing, WriteError> {
        // While it is away nothing is made: it would only wait.
        if *self.client.link().borrow() != Link::Up {
            return Ok(Standing::Done);
        }
        self.note_reached().await?;
        let waiting = self.book().waiting_channels();
        let is_due = |(id, fed): &(&ChannelId, &Fed)| is_whole || fed.group.is_none() || waiting.contains(*id);
        let ids: Vec<ChannelId> = self.channels().iter().filter(is_due).map(|(id, _)| *id).collect();
        let mut all = Standing::Done;
        for id in ids {
            all = match (all, self.feed(id).await?) {
                (Standing::More, _) | (_, Standing::More) => Standing::More,
                (Standing::Busy, _) | (_, Standing::Busy) => Standing::Busy,
                (Standing::Done, Standing::Done) => Standing::Done,
            };
        }
        Ok(all)
    }

    /// From the first connection on, what is revoked is kept for it.
    async fn note_reached(&self) -> Result<(), WriteError> {
        if self.book().towers.get(&self.id).is_none_or(|kept| kept.is_reached) {
            return Ok(());
        }
        self.registry.journal().write(vec![TowerEntry::Reached { tower: self.id }.entry()]).await?;
        // Each channel says from where on.
        self.registry.tell_guards();
        Ok(())
    }

    /// Hands over what the tower lacks of a channel, as far as there is room.
    async fn feed(&self, channel_id: ChannelId) -> Result<Standing, WriteError> {
        let Some((registration, group, base)) = self.group_of(channel_id).await? else { return Ok(Standing::Done) };
        let Some(kept) = self.kept_group(channel_id) else { return Ok(Standing::Done) };
        let (first, end) = self.book().waiting_range(channel_id).unwrap_or((kept.acknowledged, kept.acknowledged));
        let progress = self.client.progress(group).map(|progress| progress.borrow().clone()).unwrap_or_default();
        let wanted = base.saturating_add(progress.wanted);
        if wanted < first {
            // What comes next is gone here: the tower has lost it, or was away for too long.
            tracing::warn!(
                %channel_id, tower = %self.id, wanted, first,
                "the watchtower lacks penalties that are not kept any more: it goes on from here"
            );
            self.begin_group(channel_id, first).await?;
            return Ok(Standing::More);
        }
        // What it has refused is tried again by itself.
        if wanted >= end || progress.is_tower_ahead || progress.refused.is_some() {
            return Ok(Standing::Done);
        }
        if progress.wanted.saturating_sub(progress.acknowledged) >= ON_THE_WAY_MAX {
            return Ok(Standing::Busy);
        }
        self.client.register(group, progress.acknowledged, end.saturating_sub(base));
        let items = self.book().waiting_from(channel_id, wanted, SEAL_AT_ONCE);
        let sealed = tokio::task::spawn_blocking(move || sealed(&registration, &items)).await.unwrap_or_default();
        if sealed.is_empty() {
            return Ok(Standing::Busy);
        }
        for (number, sealed) in sealed {
            match self.client.hand_over(group, number - base, sealed) {
                Ok(()) => {}
                Err(HandOverError::Full { .. } | HandOverError::OutOfOrder { .. }) => return Ok(Standing::Busy),
                Err(HandOverError::Unknown(_) | HandOverError::TowerAhead { .. }) => return Ok(Standing::Done),
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
            let Some(revoked) = fed.revoked else { return Ok(None) };
            let first = self.book().waiting_range(channel_id).map(|(first, _)| first);
            self.begin_group(channel_id, first.unwrap_or(revoked)).await?;
        }
        self.take_up(channel_id);
        let taken = self.channels().get(&channel_id).cloned();
        Ok(taken.and_then(|fed| fed.group.map(|(group, base)| (fed.registration, group, base))))
    }

    /// Tells the client of a channel's group that is written down.
    fn take_up(&self, channel_id: ChannelId) {
        let Some(kept) = self.kept_group(channel_id) else { return };
        let mut channels = self.channels();
        let Some(fed) = channels.get_mut(&channel_id).filter(|fed| fed.group.is_none()) else { return };
        let acknowledged = kept.acknowledged.saturating_sub(kept.base);
        self.client.register(kept.group, acknowledged, acknowledged);
        fed.group = Some((kept.group, kept.base));
    }

    /// Revoked commitments of a channel that the tower is not known to have, whether it was told of them or not.
    fn lag(&self, channel_id: ChannelId) -> u64 {
        let group = self.channels().get(&channel_id).and_then(|fed| fed.group);
        let progress = group.and_then(|(group, base)| Some((base, self.client.progress(group)?.borrow().acknowledged)));
        let book = self.book();
        let Some((first, end)) = book.waiting_range(channel_id) else { return 0 };
        let kept = || Some(book.towers.get(&self.id)?.groups.get(&channel_id)?.acknowledged);
        let acknowledged = progress.map(|(base, acknowledged)| base.saturating_add(acknowledged)).or_else(kept);
        end.saturating_sub(acknowledged.unwrap_or(first))
    }

    async fn begin_group(&self, channel_id: ChannelId, base: u64) -> Result<(), WriteError> {
        let group = Group(random());
        let entry = TowerEntry::Group { tower: self.id, channel_id, group, base }.entry();
        self.registry.journal().write(vec![entry]).await?;
        if let Some(fed) = self.channels().get_mut(&channel_id) {
            fed.group = None;
        }
        Ok(())
    }

    fn progress(&self) -> Vec<(ChannelId, Group, u64, BlobProgress)> {
        let by_group: BTreeMap<Group, BlobProgress> = self.client.all_progress().into_iter().collect();
        let channels: Vec<_> = self.channels().iter().filter_map(|(id, fed)| Some((*id, fed.group?))).collect();
        let book = self.book();
        let of = |(id, (group, base)): (ChannelId, (Group, u64))| {
            let mut progress = by_group.get(&group)?.clone();
            // What waits here was revoked, too.
            let end = book.waiting_range(id).map_or(0, |(_, end)| end.saturating_sub(base));
            progress.noted = progress.noted.max(end);
            let kept = || book.towers.get(&self.id)?.groups.get(&id)?.receipt();
            progress.receipt = progress.receipt.or_else(kept);
            Some((id, group, base, progress))
        };
        channels.into_iter().filter_map(of).collect()
    }

    /// Writes down what is new. Fails only when the node stops.
    async fn look(&self) -> Result<(), WriteError> {
        let all = self.progress();
        self.raise_alarm(&all);
        let mut entries = Vec::new();
        let begins = !self.is_relied_on.load(Ordering::Relaxed)
            && *self.client.link().borrow() == Link::Up
            && self.has_all(self.lag_max);
        if begins {
            entries.push(TowerEntry::ReliedOn { tower: self.id }.entry());
        }
        let newest: Vec<(ChannelId, BlobReceipt)> = {
            let seen = self.seen.lock().expect(LOCK);
            let receipts = all.iter().filter_map(|(id, _, _, progress)| Some((*id, progress.receipt?)));
            let is_new =
                |receipt: &BlobReceipt| seen.receipts.get(&receipt.group).is_none_or(|before| *before < receipt.next);
            receipts.filter(|(_, receipt)| is_new(receipt)).collect()
        };
        if !newest.is_empty() {
            let stored = newest.iter().map(|(id, receipt)| (*id, StoredBlobReceipt::from(receipt))).collect();
            entries.push(TowerEntry::BlobReceipts { tower: self.id, receipts: stored }.entry());
        }
        let forgotten = self.forget_over();
        if !forgotten.is_empty() {
            entries.push(TowerEntry::Forgotten { tower: self.id, channels: forgotten }.entry());
        }
        if entries.is_empty() {
            return Ok(());
        }
        self.registry.journal().write(entries).await?;
        let written = newest.iter().map(|(_, receipt)| (receipt.group, receipt.next));
        self.seen.lock().expect(LOCK).receipts.extend(written);
        if begins {
            self.is_relied_on.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    fn raise_alarm(&self, all: &[(ChannelId, Group, u64, BlobProgress)]) {
        let mut seen = self.seen.lock().expect(LOCK);
        for (channel_id, group, _, progress) in all {
            if progress.is_tower_ahead && seen.ahead.insert(*group) {
                tracing::error!(
                    %channel_id, %group, tower = %self.id,
                    "the watchtower has penalties that this node knows nothing of: the data folder is an old copy"
                );
            }
        }
    }

    /// Asks again that the groups of channels that are over be let go. Gives the channels of which none is there any more.
    fn forget_over(&self) -> Vec<ChannelId> {
        if *self.client.link().borrow() != Link::Up {
            return Vec::new();
        }
        let over = self.book().towers.get(&self.id).map(|kept| kept.over.clone()).unwrap_or_default();
        let strangers: BTreeSet<Group> = self.client.strangers().into_iter().collect();
        let mut forgotten = Vec::new();
        for (channel_id, groups) in over {
            let is_there = |group: &&Group| self.client.progress(**group).is_some() || strangers.contains(*group);
            let there: Vec<&Group> = groups.iter().filter(is_there).collect();
            for group in &there {
                self.client.register(**group, 0, 0);
                self.client.release(**group);
            }
            if there.is_empty() {
                forgotten.push(channel_id);
            }
        }
        forgotten
    }

    /// Whether the tower lacks no more than this of any channel, of what it was told and of what it is to be told.
    fn has_all(&self, lag_max: u64) -> bool {
        let is_near = |progress: &BlobProgress| progress.lag() <= lag_max && progress.refused.is_none();
        self.progress().iter().all(|(_, _, _, progress)| is_near(progress))
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
    let bytes: [u8; SEALED_BYTES] = random();
    Sealed { hint: Hint(random()), bytes: bytes.to_vec() }
}
