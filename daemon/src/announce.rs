//! What this node says of itself and of its channels (BOLT 7): its `channel_update`s, to the peer directly and to the network
//! once a channel is announced, and its `node_announcement`; and what the peers say of our channels with them.
//!
//! Nothing is said before it is written down, so whatever is said later bears a later time, also after a restart or with a
//! clock that was set back. The channels sign their announcements themselves; passing things on to others than the peer
//! is done by whoever keeps the graph.

pub mod address;
mod book;
pub mod node;
mod presence;
mod task;
mod update;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use millrace_channel::Fact;
use millrace_journal::Position;
use millrace_wire::{ChainHash, ChannelId, ChannelUpdate, Features, PublicKey, ShortChannelId};
use secp256k1::SecretKey;
use tokio::sync::{Notify, mpsc, watch};

use self::book::{AnnounceEntry, Book};
use self::node::{Face, Wishes};
use self::task::{Incoming, Task};
use self::update::{Said, Signer};
use crate::channels::Registry;
use crate::entry::Entry;
use crate::facts::{Fold, Item, News, Source, Telling};
use crate::network::Network;
use crate::peer::Peers;
use crate::policy::Policies;

const LOCK: &str = "nothing panics while the announcements are locked";

/// Updates of peers that may wait to be looked at; what is more is dropped, and said again on the next connection.
const WAITING_MAX: usize = 256;

/// Whoever passes our own announcements on: whole messages, with their types, in an order in which each needs only those
/// before it.
pub type Relay = Arc<dyn Fn(Vec<Vec<u8>>) + Send + Sync>;

/// What an announcer works with.
pub struct Parts {
    /// The node's key.
    pub node_key: SecretKey,
    /// The chain of its channels.
    pub chain_hash: ChainHash,
    /// What it can do.
    pub features: Features,
    /// What the settings say of it.
    pub face: Face,
    /// What it asks for forwarding.
    pub policies: Policies,
    /// The part of a channel that one incoming peer may hold, in percent.
    pub peer_share_percent: u8,
    /// Where the peers' terms are put down.
    pub network: Network,
}

/// Says what is to be said. Give it to the node among its folds, and again in its surroundings.
pub struct Announcer {
    signer: Signer,
    features: Features,
    usual: Face,
    policies: Policies,
    peer_share_percent: u8,
    network: Network,
    book: Mutex<Book>,
    /// Something else is to be said.
    nudges: Notify,
    /// Announced anew: whoever passes things on may have forgotten what was before a reorganisation.
    renewed: Mutex<BTreeSet<ChannelId>>,
    incoming: mpsc::Sender<(PublicKey, Box<ChannelUpdate>)>,
    waiting: Mutex<Option<Incoming>>,
    /// While it speaks.
    registry: Mutex<Option<Registry>>,
    relay: OnceLock<Relay>,
}

/// What is said of the node, for people.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shown {
    /// Its name, colour and addresses.
    pub face: Face,
    /// When that was last announced, in seconds of Unix time; never if absent.
    pub announced_s: Option<u32>,
}

impl Announcer {
    /// One that says nothing yet.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let (incoming, waiting) = mpsc::channel(WAITING_MAX);
        Arc::new(Self {
            signer: Signer::new(parts.node_key, parts.chain_hash),
            features: parts.features,
            usual: parts.face,
            policies: parts.policies,
            peer_share_percent: parts.peer_share_percent,
            network: parts.network,
            book: Mutex::default(),
            nudges: Notify::new(),
            renewed: Mutex::default(),
            incoming,
            waiting: Mutex::new(Some(waiting)),
            registry: Mutex::default(),
            relay: OnceLock::new(),
        })
    }

    /// Passes what the network may know on to others. Once; before that, it is told to the peers of the channels alone.
    pub fn relay_by(&self, relay: Relay) {
        // A second one would hear nothing.
        let _first = self.relay.set(relay);
        self.nudges.notify_one();
    }

    /// Lets it speak, once everything that the channels wrote down was told.
    pub(crate) fn start(self: &Arc<Self>, registry: Registry, peers: Peers, stopping: watch::Receiver<bool>) {
        let Some(waiting) = self.waiting.lock().expect(LOCK).take() else { return };
        let channels: BTreeSet<_> = registry.snapshots().iter().map(|snapshot| snapshot.channel_id).collect();
        self.book().keep_only(&channels);
        *self.registry.lock().expect(LOCK) = Some(registry.clone());
        tokio::spawn(Task::new(Arc::clone(self), registry, peers).run(waiting, stopping));
    }

    /// It speaks no more, and lets go of what it spoke with.
    fn fall_silent(&self) {
        *self.registry.lock().expect(LOCK) = None;
    }

    /// A `channel_update` has come from a peer.
    pub(crate) fn on_update(&self, peer: PublicKey, update: Box<ChannelUpdate>) {
        let _full = self.incoming.try_send((peer, update));
    }

    // --- what is said ---

    /// Our current `channel_update` for a channel by the name that an onion has for it, its real short channel id or an
    /// alias of it: a whole message, as failures carry it (BOLT 4). None before the channel is ready.
    #[must_use]
    pub fn update_of(&self, scid: ShortChannelId) -> Option<Vec<u8>> {
        let registry = self.registry.lock().expect(LOCK).clone()?;
        let snapshot = registry.snapshot(registry.channel_by_scid(scid)?)?;
        let bytes = self.book().ours.get(&snapshot.channel_id).cloned()?;
        let current = update::decode(&bytes)?;
        let contents = &current.parsed().contents;
        let said = Said::read(contents);
        if said.scid == scid {
            return Some(update::message(&bytes));
        }
        // Whoever does not know the channel by its real id must not learn it.
        let named = Said { scid, is_public: false, ..said };
        Some(update::message(named.signed(&self.signer, &snapshot.peer, contents.timestamp).bytes()))
    }

    /// What is said of the node.
    #[must_use]
    pub fn shown(&self) -> Shown {
        let book = self.book();
        let announced = book.node.as_deref().and_then(node::decode);
        Shown {
            face: book.wishes.on(&self.usual),
            announced_s: announced.map(|announcement| announcement.parsed().contents.timestamp),
        }
    }

    /// What makes wishes durable, and what the node's face is then; what they leave open stays as it was. Once it is
    /// written, it is also said.
    #[must_use]
    pub fn wish(&self, wishes: Wishes) -> (Entry, Face) {
        let wishes = wishes.over(&self.book().wishes);
        let face = wishes.on(&self.usual);
        (AnnounceEntry::Wishes(wishes).entry(), face)
    }

    fn face(&self) -> Face {
        self.book().wishes.on(&self.usual)
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().expect(LOCK)
    }
}

impl Fold for Announcer {
    fn name(&self) -> &'static str {
        "announce"
    }

    fn restore(&self, section: &[u8]) -> Result<(), String> {
        *self.book() = Book::restore(section)?;
        Ok(())
    }

    fn tell(&self, news: &News) {
        let is_ours = news.items.iter().any(|item| match item {
            Item::Entry(entry) => entry.kind == crate::entry::Kind::Announce,
            Item::Fact { fact, .. } => matches!(fact, Fact::Ready | Fact::Announced { .. } | Fact::Closed(_)),
        });
        if !is_ours {
            return;
        }
        let is_renewed = |item: &Item| matches!(item, Item::Fact { fact: Fact::Announced { .. }, .. });
        if let Source::Channel(id) = news.source
            && news.telling == Telling::Live
            && news.items.iter().any(is_renewed)
        {
            self.renewed.lock().expect(LOCK).insert(id);
        }
        if let Err(error) = self.book().tell(news) {
            // It was written by this very build: what it says can be said again.
            tracing::error!(error, "an announcement cannot be read back");
        }
        self.nudges.notify_one();
    }

    fn section(&self, _up_to: Position) -> Result<Vec<u8>, String> {
        Ok(self.book().section())
    }
}
