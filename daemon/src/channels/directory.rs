//! The node-wide table of channel ids: whose each one is, and on which shard it lives.
//!
//! Final ids are unique over the whole node, whoever the peer is, and are reserved before anything is signed for them;
//! a temporary id is unique with its peer, and is none of that peer's final ids. Openings are counted before anybody
//! looks at what they ask for.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use millrace_wire::{ChannelId, PublicKey, ShortChannelId};
use tokio::sync::watch;

use super::snapshot::{ChannelSnapshot, ChannelState};

const LOCK: &str = "nothing panics while the directory is locked";

/// Where the actor of an id is.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    /// The peer.
    pub(crate) peer: PublicKey,
    /// The shard.
    pub(crate) shard: usize,
    /// Orders that wait for it.
    pub(crate) waiting: Arc<AtomicUsize>,
    /// The channel exists, though it may not be shown yet.
    is_begun: bool,
    /// What is shown of it; none while the id is merely reserved.
    snapshots: Option<Arc<watch::Sender<Arc<ChannelSnapshot>>>>,
}

/// Why an opening is not begun.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(crate) enum NoOpening {
    /// The id is in use with this peer, or means all channels.
    #[error("temporary_channel_id {0} is taken")]
    IdTaken(ChannelId),
    /// Too many with this peer.
    #[error("{under_way} openings with this node are under way, and no more than {max} may be")]
    TooManyOfPeer {
        /// How many.
        under_way: usize,
        /// How many may be.
        max: usize,
    },
    /// Too many altogether.
    #[error("this node has {under_way} openings under way, and takes no more than {max}")]
    TooMany {
        /// How many.
        under_way: usize,
        /// How many may be.
        max: usize,
    },
}

#[derive(Debug, Default)]
struct Tables {
    channels: HashMap<ChannelId, Place>,
    openings: HashMap<(PublicKey, ChannelId), usize>,
    by_peer: HashMap<PublicKey, BTreeSet<ChannelId>>,
    by_scid: HashMap<ShortChannelId, ChannelId>,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Directory {
    tables: RwLock<Tables>,
    openings_per_peer_max: usize,
    openings_max: usize,
}

impl Directory {
    /// An empty one.
    pub(crate) fn new(openings_per_peer_max: usize, openings_max: usize) -> Self {
        Self { tables: RwLock::default(), openings_per_peer_max, openings_max }
    }

    // --- openings ---

    /// Counts an opening that the peer asks for (or that we do), and gives it to a shard.
    pub(crate) fn begin_opening(&self, peer: PublicKey, id: ChannelId, shard: usize) -> Result<(), NoOpening> {
        let mut tables = self.write();
        let is_final = tables.channels.get(&id).is_some_and(|place| place.peer == peer);
        if id.is_all() || is_final || tables.openings.contains_key(&(peer, id)) {
            return Err(NoOpening::IdTaken(id));
        }
        let under_way = tables.under_way_with(&peer);
        if under_way >= self.openings_per_peer_max {
            return Err(NoOpening::TooManyOfPeer { under_way, max: self.openings_per_peer_max });
        }
        let under_way = tables.openings.len();
        if under_way >= self.openings_max {
            return Err(NoOpening::TooMany { under_way, max: self.openings_max });
        }
        tables.openings.insert((peer, id), shard);
        Ok(())
    }

    /// Whether a peer may ask for one more channel: what it has promised to fund counts until it is in a block.
    pub(crate) fn check_promised(&self, peer: &PublicKey) -> Result<(), NoOpening> {
        let tables = self.read();
        let snapshots = tables.channels.values().filter_map(Place::snapshot);
        let (mut under_way, mut of_peer) = (0, 0);
        for snapshot in snapshots.filter(|snapshot| snapshot.is_only_promised()) {
            under_way += 1;
            of_peer += usize::from(snapshot.peer == *peer);
        }
        if of_peer >= self.openings_per_peer_max {
            return Err(NoOpening::TooManyOfPeer { under_way: of_peer, max: self.openings_per_peer_max });
        }
        if under_way >= self.openings_max {
            return Err(NoOpening::TooMany { under_way, max: self.openings_max });
        }
        Ok(())
    }

    /// The opening is over, whatever came of it.
    pub(crate) fn end_opening(&self, peer: PublicKey, id: ChannelId) {
        self.write().openings.remove(&(peer, id));
    }

    /// The opening has become a channel: from here on it counts by its final id.
    pub(crate) fn begin_channel(&self, peer: PublicKey, temporary_id: ChannelId, id: ChannelId) {
        let mut tables = self.write();
        tables.openings.remove(&(peer, temporary_id));
        tables.by_peer.entry(peer).or_default().insert(id);
        if let Some(place) = tables.channels.get_mut(&id) {
            place.is_begun = true;
        }
    }

    /// Takes a final id for a peer's opening. False if any channel of the node has it, or had it.
    pub(crate) fn reserve(&self, peer: PublicKey, id: ChannelId, shard: usize) -> bool {
        let mut tables = self.write();
        if id.is_all() || tables.channels.contains_key(&id) || tables.openings.contains_key(&(peer, id)) {
            return false;
        }
        tables.channels.insert(id, Place { peer, shard, waiting: Arc::default(), is_begun: false, snapshots: None });
        true
    }

    /// Gives a reserved id back: nothing was signed for it, or what was is void.
    pub(crate) fn unreserve(&self, id: ChannelId) {
        let mut tables = self.write();
        if tables.channels.get(&id).is_some_and(|place| place.snapshots.is_none()) {
            tables.channels.remove(&id);
        }
    }

    // --- channels ---

    /// Shows a channel, for the first time or as it has become.
    pub(crate) fn publish(&self, snapshot: Arc<ChannelSnapshot>, shard: usize) {
        let known = self.read().channels.get(&snapshot.channel_id).and_then(|place| place.snapshots.clone());
        if let Some(known) = &known {
            let before = known.send_replace(Arc::clone(&snapshot));
            let is_same = before.short_channel_id == snapshot.short_channel_id;
            if is_same {
                return;
            }
        }
        let mut tables = self.write();
        let id = snapshot.channel_id;
        tables.by_peer.entry(snapshot.peer).or_default().insert(id);
        // Every alias that was ever told stays valid; the real one counts until a reorganisation takes it.
        tables.by_scid.retain(|scid, known| *known != id || *scid == snapshot.local_alias);
        tables.by_scid.insert(snapshot.local_alias, id);
        if let Some(scid) = snapshot.short_channel_id {
            tables.by_scid.insert(scid, id);
        }
        if known.is_none() {
            let place = tables.channels.entry(id).or_insert_with(|| Place {
                peer: snapshot.peer,
                shard,
                waiting: Arc::default(),
                is_begun: true,
                snapshots: None,
            });
            place.shard = shard;
            place.snapshots = Some(Arc::new(watch::channel(snapshot).0));
        }
    }

    /// Where a channel's actor is.
    pub(crate) fn place(&self, id: ChannelId) -> Option<Place> {
        self.read().channels.get(&id).cloned()
    }

    /// Which shard handles a peer's messages with this id: a channel's, or an opening's.
    pub(crate) fn shard_for(&self, peer: &PublicKey, id: ChannelId) -> Option<usize> {
        let tables = self.read();
        match tables.channels.get(&id) {
            Some(place) if place.peer == *peer => Some(place.shard),
            Some(_) | None => tables.openings.get(&(*peer, id)).copied(),
        }
    }

    /// Whether an alias is in use already.
    pub(crate) fn is_alias_taken(&self, alias: ShortChannelId) -> bool {
        self.read().by_scid.contains_key(&alias)
    }

    /// The channel with this short channel id, real or told by us.
    pub(crate) fn by_scid(&self, scid: ShortChannelId) -> Option<ChannelId> {
        self.read().by_scid.get(&scid).copied()
    }

    /// A channel as it was last published.
    pub(crate) fn snapshot(&self, id: ChannelId) -> Option<Arc<ChannelSnapshot>> {
        let tables = self.read();
        tables.channels.get(&id)?.snapshots.as_ref().map(|snapshots| Arc::clone(&snapshots.borrow()))
    }

    /// The news of a channel.
    pub(crate) fn watch(&self, id: ChannelId) -> Option<watch::Receiver<Arc<ChannelSnapshot>>> {
        self.read().channels.get(&id)?.snapshots.as_ref().map(|snapshots| snapshots.subscribe())
    }

    /// All channels, by id.
    pub(crate) fn snapshots(&self) -> Vec<Arc<ChannelSnapshot>> {
        let tables = self.read();
        let mut all: Vec<_> = tables.channels.values().filter_map(Place::snapshot).collect();
        all.sort_unstable_by_key(|snapshot| snapshot.channel_id);
        all
    }

    /// The channels with a peer, by id.
    pub(crate) fn snapshots_with(&self, peer: &PublicKey) -> Vec<Arc<ChannelSnapshot>> {
        self.read().snapshots_with(peer)
    }

    /// Channels that have closed since the start.
    pub(crate) fn closed(&self) -> Vec<ChannelId> {
        let is_closed = |snapshot: &Arc<ChannelSnapshot>| snapshot.state == ChannelState::Closed;
        self.snapshots().iter().filter(|snapshot| is_closed(snapshot)).map(|snapshot| snapshot.channel_id).collect()
    }

    /// Peers with a channel that is not closed.
    pub(crate) fn peers(&self) -> BTreeSet<PublicKey> {
        self.peers_with(|snapshot| snapshot.state != ChannelState::Closed)
    }

    /// Those whose channel is more than promised.
    pub(crate) fn established_peers(&self) -> BTreeSet<PublicKey> {
        self.peers_with(|snapshot| snapshot.state != ChannelState::Closed && !snapshot.is_only_promised())
    }

    fn peers_with(&self, counts: impl Fn(&ChannelSnapshot) -> bool) -> BTreeSet<PublicKey> {
        let is_open = |place: &Place| place.snapshot().is_some_and(|snapshot| counts(&snapshot));
        self.read().channels.values().filter(|place| is_open(place)).map(|place| place.peer).collect()
    }

    fn read(&self) -> RwLockReadGuard<'_, Tables> {
        self.tables.read().expect(LOCK)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tables> {
        self.tables.write().expect(LOCK)
    }
}

impl Place {
    fn snapshot(&self) -> Option<Arc<ChannelSnapshot>> {
        self.snapshots.as_ref().map(|snapshots| Arc::clone(&snapshots.borrow()))
    }
}

impl Tables {
    fn snapshots_with(&self, peer: &PublicKey) -> Vec<Arc<ChannelSnapshot>> {
        let ids = self.by_peer.get(peer).into_iter().flatten();
        ids.filter_map(|id| self.channels.get(id)?.snapshot()).collect()
    }

    /// Openings with a peer, and its channels that wait for a first confirmation: these cost it nothing yet.
    fn under_way_with(&self, peer: &PublicKey) -> usize {
        let negotiating = self.openings.keys().filter(|(other, _)| other == peer).count();
        let is_unfunded = |id: &&ChannelId| match self.channels.get(*id) {
            Some(place) => place.snapshot().map_or(place.is_begun, |snapshot| {
                snapshot.state == ChannelState::Opening
                    && snapshot.short_channel_id.is_none()
                    && snapshot.terms.funder == millrace_channel::Side::Remote
            }),
            None => false,
        };
        negotiating + self.by_peer.get(peer).into_iter().flatten().filter(is_unfunded).count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use secp256k1::{SECP256K1, SecretKey};

    use super::*;

    fn peer(n: u8) -> PublicKey {
        SecretKey::from_slice(&[n; 32]).unwrap().public_key(SECP256K1)
    }

    fn id(n: u8) -> ChannelId {
        ChannelId([n; 32])
    }

    #[test]
    fn openings_are_counted_by_peer_and_altogether() {
        let directory = Directory::new(2, 3);
        assert_eq!(directory.begin_opening(peer(1), id(1), 0), Ok(()));
        assert_eq!(directory.begin_opening(peer(1), id(1), 0), Err(NoOpening::IdTaken(id(1))));
        assert_eq!(directory.begin_opening(peer(1), id(2), 1), Ok(()));
        let too_many = NoOpening::TooManyOfPeer { under_way: 2, max: 2 };
        assert_eq!(directory.begin_opening(peer(1), id(3), 0), Err(too_many));
        assert_eq!(directory.begin_opening(peer(2), id(1), 0), Ok(()));
        assert_eq!(directory.begin_opening(peer(3), id(1), 0), Err(NoOpening::TooMany { under_way: 3, max: 3 }));
        directory.end_opening(peer(1), id(1));
        assert_eq!(directory.begin_opening(peer(3), id(1), 0), Ok(()));
    }

    #[test]
    fn a_final_id_is_taken_once_for_the_whole_node() {
        let directory = Directory::new(9, 9);
        assert!(directory.reserve(peer(1), id(7), 0));
        assert!(!directory.reserve(peer(1), id(7), 0));
        assert!(!directory.reserve(peer(2), id(7), 1));
        assert!(!directory.reserve(peer(2), ChannelId::ALL, 1));
        assert_eq!(directory.shard_for(&peer(1), id(7)), Some(0));
        assert_eq!(directory.shard_for(&peer(2), id(7)), None);
        directory.unreserve(id(7));
        assert!(directory.reserve(peer(2), id(7), 1));
    }

    #[test]
    fn a_temporary_id_is_none_of_the_peers_final_ids() {
        let directory = Directory::new(9, 9);
        assert!(directory.reserve(peer(1), id(7), 0));
        assert_eq!(directory.begin_opening(peer(1), id(7), 0), Err(NoOpening::IdTaken(id(7))));
        assert_eq!(directory.begin_opening(peer(2), id(7), 0), Ok(()));
        assert_eq!(directory.shard_for(&peer(2), id(7)), Some(0));
        assert_eq!(directory.begin_opening(peer(1), ChannelId::ALL, 0), Err(NoOpening::IdTaken(ChannelId::ALL)));
    }
}
