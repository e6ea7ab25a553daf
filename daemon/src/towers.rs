//! The watchtowers that this node uses: which there are, what each is told, and how far it is.
//!
//! Channels hand over what their peers revoke, once it is durable ([`ChannelGuards`]); a client for each tower
//! ([`millrace_watchtower::client`]) tells it, apart from the payments: its own tower the secrets ([`tower`]), somebody else's
//! sealed penalties ([`blobs`]). Only a tower that was once relied on, because it had all that there was, and is then too far
//! behind stops HTLCs from being added in a channel.

mod blobs;
mod book;
mod shown;
mod tower;

use std::collections::{BTreeSet, HashMap};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::Duration;

use bitcoin::ScriptBuf;
use millrace_channel::keys::ChannelKeys;
use millrace_channel::revocable::Revocable;
use millrace_channel::secrets::RevealedSecrets;
use millrace_channel::terms::Terms;
use millrace_journal::Position;
use millrace_watchtower::client::blob::BlobConfig;
use millrace_watchtower::client::{Config, Link, Sent};
use millrace_watchtower::receipt::Receipt;
use millrace_watchtower::registration::Registration;
use millrace_wire::{ChainHash, ChannelId, CommitmentNumber, PublicKey};
use secp256k1::SECP256K1;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use self::blobs::BlobTower;
use self::book::{Book, ToSeal, TowerEntry};
pub use self::shown::{Shown, ShownReceipt, WatchedChannel};
use self::tower::{Tower, registration};
use crate::channels::{ChannelGuards, Registry, TowerBehind};
use crate::entry::Entry;
use crate::facts::{Fold, News};
use crate::keys::Keys;

const LOCK: &str = "nothing panics while the watchtowers are locked";
/// How long the last receipts may take to be written.
const WRITE_LIMIT: Duration = Duration::from_secs(2);
/// Watchtowers that one node may use: each is told everything.
pub const TOWERS_MAX: usize = 8;

/// How a tower is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Mode {
    /// It gets the secrets, takes HTLCs too, and is one's own.
    Compact,
    /// It gets a sealed penalty for each revoked commitment, takes `to_local` alone, and may be anybody's.
    Blob,
}

/// The watchtowers. A fold, and what the channels tell.
pub struct Towers {
    keys: Keys,
    chain_hash: ChainHash,
    lag_max: u64,
    book: Arc<Mutex<Book>>,
    running: RwLock<Vec<Used>>,
    /// As the book says it, which is changed before any step that rests on it.
    wants_penalties: AtomicBool,
    /// Held by whoever adds or removes a tower, from what is read to what is done.
    changing: tokio::sync::Mutex<()>,
}

/// A tower that is talked to.
enum Used {
    Own(Tower),
    Foreign(BlobTower),
}

impl Used {
    const fn id(&self) -> PublicKey {
        match self {
            Self::Own(tower) => tower.id,
            Self::Foreign(tower) => tower.id,
        }
    }

    fn address(&self) -> &str {
        match self {
            Self::Own(tower) => &tower.address,
            Self::Foreign(tower) => &tower.address,
        }
    }

    const fn mode(&self) -> Mode {
        match self {
            Self::Own(_) => Mode::Compact,
            Self::Foreign(_) => Mode::Blob,
        }
    }

    fn link(&self) -> watch::Receiver<Link> {
        match self {
            Self::Own(tower) => tower.client.link(),
            Self::Foreign(tower) => tower.client.link(),
        }
    }

    fn sent(&self) -> Sent {
        match self {
            Self::Own(tower) => tower.client.sent(),
            Self::Foreign(tower) => tower.client.sent(),
        }
    }

    fn is_relied_on(&self) -> bool {
        match self {
            Self::Own(tower) => tower.is_relied_on(),
            Self::Foreign(tower) => tower.is_relied_on(),
        }
    }

    fn may_add(&self, channel_id: ChannelId) -> Result<(), TowerBehind> {
        match self {
            Self::Own(tower) => tower.may_add(channel_id),
            Self::Foreign(tower) => tower.may_add(channel_id),
        }
    }

    fn over(&self, channel_id: ChannelId) {
        match self {
            // It is asked again by and by, until it agrees.
            Self::Own(tower) => tower.client.forget(channel_id),
            Self::Foreign(tower) => tower.over(channel_id),
        }
    }

    fn channels(&self) -> Vec<WatchedChannel> {
        match self {
            Self::Own(tower) => {
                tower.client.all_progress().iter().map(|(id, _, progress)| WatchedChannel::own(*id, progress)).collect()
            }
            Self::Foreign(tower) => tower
                .progress()
                .iter()
                .map(|(id, base, progress)| WatchedChannel::foreign(*id, *base, progress))
                .collect(),
        }
    }
}

/// Why a tower is not added.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum AddError {
    /// There are too many.
    #[error("{TOWERS_MAX} watchtowers are in use already")]
    TooMany,
    /// It is used, and otherwise.
    #[error("watchtower {0} is used in the other mode: remove it first")]
    OtherMode(PublicKey),
}

impl Towers {
    /// None so far. `lag_max`: so many revoked commitments of a channel may a tower not have, before no HTLC is added in it.
    #[must_use]
    pub fn new(keys: Keys, chain_hash: ChainHash, lag_max: u64) -> Arc<Self> {
        Arc::new(Self {
            keys,
            chain_hash,
            lag_max,
            book: Arc::default(),
            running: RwLock::default(),
            wants_penalties: AtomicBool::new(false),
            changing: tokio::sync::Mutex::default(),
        })
    }

    /// Begins to talk to the towers that were read back. On a tokio runtime, before the channels run, which are these.
    pub fn start(&self, registry: &Registry, channels: &BTreeSet<ChannelId>) {
        let towers: Vec<PublicKey> = {
            let mut book = self.book();
            book.keep_only(channels);
            book.towers.keys().copied().collect()
        };
        towers.into_iter().for_each(|tower| self.run(tower, registry));
    }

    /// Begins to talk to a tower that was added, or has moved.
    fn run(&self, tower: PublicKey, registry: &Registry) {
        let kept = self.book().towers.get(&tower).map(|kept| (kept.address.clone(), kept.mode, kept.is_relied_on));
        let Some((address, mode, is_relied_on)) = kept else { return };
        let mut running = self.running.write().expect(LOCK);
        if running.iter().any(|one| one.id() == tower && one.address() == address) {
            return;
        }
        running.retain(|one| one.id() != tower);
        let (key, chain_hash, lag_max) = (self.keys.tower_key(&tower), self.chain_hash, self.lag_max);
        running.push(match mode {
            Mode::Compact => {
                let config = Config { lag_max, ..Config::new(tower, address, key, chain_hash) };
                Used::Own(Tower::start(config, Arc::clone(&self.book), is_relied_on, registry.clone()))
            }
            Mode::Blob => {
                let config = BlobConfig { lag_max, ..BlobConfig::new(tower, address, key, chain_hash) };
                Used::Foreign(BlobTower::start(config, Arc::clone(&self.book), is_relied_on, registry.clone()))
            }
        });
    }

    /// For whoever adds or removes a tower: one after the other.
    pub async fn changing(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.changing.lock().await
    }

    /// Waits, for so long at most, until the towers that are there have everything, and writes down what they have signed. For
    /// the end, when nothing more is revoked and the journal still takes entries.
    pub async fn settle(&self, limit: Duration) {
        let all: Vec<_> = {
            let running = self.running.read().expect(LOCK);
            let settle = |used: &Used| -> Pin<Box<dyn Future<Output = ()> + Send>> {
                match used {
                    Used::Own(tower) => Box::pin(tower.settle(limit)),
                    Used::Foreign(tower) => Box::pin(tower.settle(limit)),
                }
            };
            running.iter().map(settle).collect()
        };
        // If the journal has ended already, nobody answers those that write.
        if tokio::time::timeout(limit + WRITE_LIMIT, futures::future::join_all(all)).await.is_err() {
            tracing::warn!("what watchtowers have signed last is not written down");
        }
    }

    /// Talks to nobody any more. After the channels have stopped.
    pub fn stop(&self) {
        self.running.write().expect(LOCK).clear();
    }

    /// What makes a tower, at `HOST:PORT`, durable; `sweep_script` is where all that towers take is paid, if none was named
    /// before. Once it is written: [`Towers::added`].
    ///
    /// # Errors
    /// [`AddError`].
    pub fn add(
        &self,
        tower: PublicKey,
        address: String,
        mode: Mode,
        sweep_script: ScriptBuf,
        time_ms: u64,
    ) -> Result<Vec<Entry>, AddError> {
        let book = self.book();
        if book.towers.get(&tower).is_some_and(|kept| kept.mode != mode) {
            return Err(AddError::OtherMode(tower));
        }
        if !book.towers.contains_key(&tower) && book.towers.len() >= TOWERS_MAX {
            return Err(AddError::TooMany);
        }
        let script = book.sweep_script.is_none().then(|| TowerEntry::SweepScript(sweep_script).entry());
        let added = TowerEntry::Added { tower, address, mode, time_ms }.entry();
        Ok(script.into_iter().chain([added]).collect())
    }

    /// Where all that towers take is paid, once that was named.
    #[must_use]
    pub fn sweep_script(&self) -> Option<ScriptBuf> {
        self.book().sweep_script.clone()
    }

    /// A tower is written down: it is called, and told of every channel.
    pub fn added(&self, tower: PublicKey, registry: &Registry) {
        self.run(tower, registry);
        registry.tell_guards();
    }

    /// What makes it durable that a tower is not used any more; nothing if it is none of ours. Once it is written:
    /// [`Towers::removed`].
    #[must_use]
    pub fn remove(&self, tower: &PublicKey) -> Option<Entry> {
        self.book().towers.contains_key(tower).then(|| TowerEntry::Removed { tower: *tower }.entry())
    }

    /// A tower is not used any more. It goes on watching what it has.
    pub fn removed(&self, tower: &PublicKey) {
        self.running.write().expect(LOCK).retain(|one| one.id() != *tower);
    }

    /// The key by which a tower knows this node.
    #[must_use]
    pub fn client_key(&self, tower: &PublicKey) -> PublicKey {
        self.keys.tower_key(tower).public_key(SECP256K1)
    }

    /// The news of the connection with a tower.
    #[must_use]
    pub fn link(&self, tower: &PublicKey) -> Option<watch::Receiver<Link>> {
        let running = self.running.read().expect(LOCK);
        running.iter().find(|one| one.id() == *tower).map(Used::link)
    }

    /// All towers, by key.
    #[must_use]
    pub fn shown(&self) -> Vec<Shown> {
        let added: HashMap<PublicKey, u64> = self.book().towers.iter().map(|(id, kept)| (*id, kept.added_ms)).collect();
        let running = self.running.read().expect(LOCK);
        let mut shown: Vec<Shown> = running
            .iter()
            .map(|one| Shown {
                tower: one.id(),
                address: one.address().to_owned(),
                mode: one.mode(),
                client_key: self.client_key(&one.id()),
                added_ms: added.get(&one.id()).copied().unwrap_or_default(),
                link: one.link().borrow().clone(),
                is_relied_on: one.is_relied_on(),
                sent: one.sent(),
                channels: one.channels(),
            })
            .collect();
        shown.sort_unstable_by_key(|one| one.tower);
        shown
    }

    /// How far a tower was with a channel, by its newest receipt that is written down: the lowest commitment that it did not
    /// have.
    #[must_use]
    pub fn written(&self, tower: &PublicKey, channel_id: ChannelId) -> Option<u64> {
        let book = self.book();
        let kept = book.towers.get(tower)?;
        let of_group = || kept.groups.get(&channel_id).map(|group| group.acknowledged);
        kept.receipt(channel_id).map(|receipt| receipt.next.0).or_else(of_group)
    }

    /// So many revoked commitments of a channel may a tower not have, before no HTLC is added in it.
    #[must_use]
    pub const fn lag_max(&self) -> u64 {
        self.lag_max
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect(LOCK)
    }

    fn receipts_of(&self, channel_id: ChannelId) -> HashMap<PublicKey, Receipt> {
        let book = self.book();
        let of_tower = |(tower, kept): (&PublicKey, &book::Kept)| Some((*tower, kept.receipt(channel_id)?));
        book.towers.iter().filter_map(of_tower).collect()
    }

    fn registration(&self, terms: &Terms, keys: &ChannelKeys) -> Option<Registration> {
        let sweep_script = self.book().sweep_script.clone()?;
        registration(terms, keys, sweep_script)
    }
}

impl ChannelGuards for Towers {
    fn is_any(&self) -> bool {
        !self.running.read().expect(LOCK).is_empty()
    }

    fn wants_penalties(&self) -> bool {
        self.wants_penalties.load(Ordering::Relaxed)
    }

    fn watch(&self, terms: &Terms, keys: &ChannelKeys, secrets: &RevealedSecrets) {
        let Some(registration) = self.registration(terms, keys) else { return };
        let receipts = self.receipts_of(registration.channel_id());
        for used in self.running.read().expect(LOCK).iter() {
            match used {
                Used::Own(tower) => {
                    tower.watch(registration.clone(), secrets.clone(), receipts.get(&tower.id).copied());
                }
                Used::Foreign(tower) => tower.watch(registration.clone(), secrets.next()),
            }
        }
    }

    fn revoked(&self, channel_id: ChannelId, number: CommitmentNumber, secret: [u8; 32]) {
        for used in self.running.read().expect(LOCK).iter() {
            match used {
                Used::Own(tower) => tower.revoked(channel_id, number, secret),
                // It is in the step that revokes, and told by the book.
                Used::Foreign(_) => {}
            }
        }
    }

    fn penalty(&self, revoked: &Revocable, secret: [u8; 32]) -> Entry {
        TowerEntry::Revoked(ToSeal::new(revoked, secret)).entry()
    }

    fn over(&self, channel_id: ChannelId) {
        self.running.read().expect(LOCK).iter().for_each(|used| used.over(channel_id));
    }

    fn may_add(&self, channel_id: ChannelId) -> Result<(), TowerBehind> {
        self.running.read().expect(LOCK).iter().try_for_each(|used| used.may_add(channel_id))
    }
}

impl Fold for Towers {
    fn name(&self) -> &'static str {
        "towers"
    }

    fn restore(&self, section: &[u8]) -> Result<(), String> {
        let mut book = self.book();
        *book = Book::restore(section)?;
        self.wants_penalties.store(book.wants_penalties(), Ordering::Relaxed);
        Ok(())
    }

    fn tell(&self, news: &News) {
        if !Book::concerns(news) {
            return;
        }
        let mut book = self.book();
        if let Err(error) = book.tell(news) {
            // It was written by this very build; the towers say again what they have.
            tracing::error!(error, "what is written of a watchtower cannot be read back");
        }
        self.wants_penalties.store(book.wants_penalties(), Ordering::Relaxed);
        drop(book);
        for used in self.running.read().expect(LOCK).iter() {
            if let Used::Foreign(tower) = used {
                tower.has_work();
            }
        }
    }

    fn section(&self, _up_to: Position) -> Result<Vec<u8>, String> {
        // Whoever tells must not wait for it to be encoded.
        let book = self.book().clone();
        Ok(book.section())
    }
}

impl std::fmt::Debug for Towers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Towers").field("running", &self.running.read().expect(LOCK).len()).finish_non_exhaustive()
    }
}
