//! Looks at the channels now and then, and says what has not been said.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use millrace_channel::Millis;
use millrace_journal::Space;
use millrace_routing::graph::{Direction, NodeId, Policy, VerifiedUpdate};
use millrace_wire::{ChannelId, ChannelUpdate, Message, PublicKey, ShortChannelId};
use tokio::sync::{mpsc, watch};

use super::book::AnnounceEntry;
use super::node;
use super::presence::Presence;
use super::update::{self, Said};
use super::{Announcer, LOCK};
use crate::channels::input::Epoch;
use crate::channels::{ChannelSnapshot, ChannelState, Registry};
use crate::clock;
use crate::entry::Entry;
use crate::peer::Peers;

/// How often the channels are looked at, if nothing asks for it earlier.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// BOLT 7: what was not repeated for two weeks may be forgotten. Repeated long before that, for those who are away.
const REPEAT_AFTER_S: u32 = 7 * 24 * 3600;
/// Updates of one peer for one channel that are written down at once, and after how long one more may be.
const THEIRS_MAX: u32 = 5;
const THEIRS_ONE_MORE_MS: u64 = 10 * 60 * 1_000;
/// Entries of one step: each has 200 bytes at most but for the node's own, so a step is far below what a segment holds.
const ENTRIES_MAX: usize = 1_000;

/// What peers say of channels with us.
pub(super) type Incoming = mpsc::Receiver<(PublicKey, Box<ChannelUpdate>)>;

/// The task, and what it alone remembers.
pub(super) struct Task {
    announcer: Arc<Announcer>,
    registry: Registry,
    peers: Peers,
    presences: HashMap<ChannelId, Presence>,
    /// By which connection a peer was told which of our updates.
    told: HashMap<ChannelId, (Epoch, u32)>,
    relayed: Relayed,
    theirs: HashMap<ChannelId, Theirs>,
}

/// What was given to whoever passes it on: all of it again after a start.
#[derive(Debug, Default)]
struct Relayed {
    /// Under which name, and the update's time.
    channels: BTreeMap<ChannelId, (ShortChannelId, u32)>,
    node: Option<u32>,
}

/// The updates of a peer that were not written down yet.
#[derive(Debug)]
struct Theirs {
    left: u32,
    since: Millis,
    waiting: Option<Box<ChannelUpdate>>,
}

impl Task {
    pub(super) fn new(announcer: Arc<Announcer>, registry: Registry, peers: Peers) -> Self {
        Self {
            announcer,
            registry,
            peers,
            presences: HashMap::new(),
            told: HashMap::new(),
            relayed: Relayed::default(),
            theirs: HashMap::new(),
        }
    }

    /// Until the node stops, in the middle of anything: what was being written is said after the next start.
    pub(super) async fn run(self, incoming: Incoming, mut stopping: watch::Receiver<bool>) {
        let announcer = Arc::clone(&self.announcer);
        tokio::select! {
            _ = stopping.wait_for(|is_stopping| *is_stopping) => {}
            () = self.work(incoming) => {}
        }
        announcer.fall_silent();
    }

    async fn work(mut self, mut incoming: Incoming) {
        let announcer = Arc::clone(&self.announcer);
        let mut policies = announcer.policies.changes();
        self.put_down_theirs();
        loop {
            tokio::select! {
                () = announcer.nudges.notified() => {}
                Ok(()) = policies.changed() => {}
                Some((peer, update)) = incoming.recv() => self.on_update(peer, update),
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            if self.look().await.is_err() {
                return;
            }
        }
    }

    /// Says what is to be said now.
    async fn look(&mut self) -> Result<(), ()> {
        let snapshots = self.registry.snapshots();
        self.write_theirs().await?;
        self.write_ours(&snapshots).await?;
        self.tell_peers(&snapshots);
        self.relay(&snapshots);
        self.forget(&snapshots);
        Ok(())
    }

    // --- ours ---

    async fn write_ours(&mut self, snapshots: &[Arc<ChannelSnapshot>]) -> Result<(), ()> {
        let (now, unix_s) = (clock::now(), unix_s());
        let mut entries: Vec<Entry> =
            snapshots.iter().filter_map(|snapshot| self.news_of(snapshot, now, unix_s)).collect();
        entries.extend(self.news_of_node(snapshots, unix_s));
        self.write(entries).await
    }

    /// The update that a channel lacks.
    fn news_of(&mut self, snapshot: &ChannelSnapshot, now: Millis, unix_s: u32) -> Option<Entry> {
        let announcer = &self.announcer;
        let channel_id = snapshot.channel_id;
        let before = announcer.book().ours.get(&channel_id).and_then(|bytes| update::decode(bytes));
        let before = before.map(|before| (Said::read(&before.parsed().contents), before.parsed().contents.timestamp));
        let presence = self.presences.entry(channel_id).or_insert_with(|| Presence::new(snapshot.is_online, now));
        let was_away = before.is_some_and(|(said, _)| said.is_disabled);
        // Only the network has to be told; the peer of a private channel knows that it is there.
        let is_away = presence.look(snapshot.is_online, was_away, now) && is_announced(snapshot);
        let said = Said::of(snapshot, &announcer.policies.of(&channel_id), announcer.peer_share_percent, is_away)?;
        // Nobody has to be told that a channel is gone which they never heard of.
        if before.is_none() && snapshot.state != ChannelState::Normal {
            return None;
        }
        if !is_due(before, &said, unix_s) {
            return None;
        }
        let timestamp = later_than(before.map(|(_, timestamp)| timestamp), unix_s);
        let update = said.signed(&announcer.signer, &snapshot.peer, timestamp).bytes().to_vec();
        Some(AnnounceEntry::Ours { channel_id, update }.entry())
    }

    /// BOLT 7: nobody takes what a node without announced channels says of itself.
    fn news_of_node(&self, snapshots: &[Arc<ChannelSnapshot>], unix_s: u32) -> Option<Entry> {
        if !snapshots.iter().any(|snapshot| is_announced(snapshot)) {
            return None;
        }
        let Announcer { signer, features, .. } = &*self.announcer;
        let before = self.announcer.book().node.as_deref().and_then(node::decode);
        let face = self.announcer.face();
        let timestamp = before.as_ref().map(|before| before.parsed().contents.timestamp);
        let is_said = before.as_ref().is_some_and(|before| face.is_said_by(before, signer, features));
        if is_said && timestamp.is_some_and(|timestamp| !is_old(timestamp, unix_s)) {
            return None;
        }
        let announcement = face.signed(signer, features, later_than(timestamp, unix_s)).bytes().to_vec();
        Some(AnnounceEntry::Node { announcement }.entry())
    }

    /// Directly to the peer, on each connection and whenever it changes, whether the network may know it or not.
    fn tell_peers(&mut self, snapshots: &[Arc<ChannelSnapshot>]) {
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.is_online) {
            let Some(epoch) = self.peers.epoch_of(&snapshot.peer) else { continue };
            let bytes = self.announcer.book().ours.get(&snapshot.channel_id).cloned();
            let Some(update) = bytes.and_then(|bytes| update::decode(&bytes)) else { continue };
            let telling = (epoch, update.parsed().contents.timestamp);
            if self.told.insert(snapshot.channel_id, telling) != Some(telling) {
                self.peers.send(&snapshot.peer, epoch, Message::ChannelUpdate(Box::new(update)));
            }
        }
    }

    /// What is new, to whoever passes it on.
    fn relay(&mut self, snapshots: &[Arc<ChannelSnapshot>]) {
        let Some(relay) = self.announcer.relay.get().map(Arc::clone) else { return };
        for id in std::mem::take(&mut *self.announcer.renewed.lock().expect(LOCK)) {
            self.relayed.channels.remove(&id);
        }
        let mut messages = Vec::new();
        for snapshot in snapshots {
            let Some(announcement) = &snapshot.announcement else {
                // A reorganisation may have taken it.
                self.relayed.channels.remove(&snapshot.channel_id);
                continue;
            };
            let bytes = self.announcer.book().ours.get(&snapshot.channel_id).cloned();
            let Some(update) = bytes.as_deref().and_then(update::decode) else { continue };
            let contents = &update.parsed().contents;
            if !Said::read(contents).is_public {
                continue;
            }
            let now = (ShortChannelId(contents.short_channel_id), contents.timestamp);
            let before = self.relayed.channels.insert(snapshot.channel_id, now);
            if before.is_none_or(|(name, _)| name != now.0) {
                messages.push(update::with_type(256, &announcement.bytes));
                messages.extend(self.theirs_of(snapshot.channel_id, now.0));
            }
            if before != Some(now) {
                messages.push(update::message(update.bytes()));
            }
        }
        let node = self.announcer.book().node.clone();
        if let Some((bytes, said)) = node.and_then(|bytes| node::decode(&bytes).map(|said| (bytes, said)))
            && snapshots.iter().any(|snapshot| is_announced(snapshot))
            && self.relayed.node.replace(said.parsed().contents.timestamp) != Some(said.parsed().contents.timestamp)
        {
            messages.push(node::message(&bytes));
        }
        if !messages.is_empty() {
            relay(messages);
        }
    }

    /// The peer's terms for a channel that has just been announced. It may have told them before the network knew the channel,
    /// and not tell them again (LDK does not).
    fn theirs_of(&self, channel_id: ChannelId, name: ShortChannelId) -> Option<Vec<u8>> {
        let bytes = self.announcer.book().theirs.get(&channel_id).cloned()?;
        let update = update::decode(&bytes)?;
        let said = Said::read(&update.parsed().contents);
        (said.scid == name && said.is_public).then(|| update::message(&bytes))
    }

    // --- theirs ---

    /// A peer's terms for a channel of ours: what does not hold, or is no news, is passed over.
    fn on_update(&mut self, peer: PublicKey, update: Box<ChannelUpdate>) {
        let contents = &update.parsed().contents;
        let scid = ShortChannelId(contents.short_channel_id);
        let Some(channel_id) = self.registry.channel_by_scid(scid) else { return };
        let ours = self.registry.snapshot(channel_id).filter(|snapshot| snapshot.peer == peer);
        let signer = &self.announcer.signer;
        let is_theirs = Direction::of_update(contents) == direction_of(&peer, &signer.node_id);
        if ours.is_none() || contents.chain_hash != signer.chain_hash || !is_theirs {
            return;
        }
        let known = self.announcer.book().theirs.get(&channel_id).and_then(|bytes| update::decode(bytes));
        let theirs = self.theirs.entry(channel_id).or_insert_with(Theirs::new);
        let newest = theirs.waiting.as_deref().or(known.as_ref());
        if newest.is_some_and(|newest| newest.parsed().contents.timestamp >= contents.timestamp) {
            return;
        }
        match VerifiedUpdate::verify((*update).clone(), NodeId(peer.serialize())) {
            Ok(_) => theirs.waiting = Some(update),
            Err(fault) => tracing::warn!(%peer, %channel_id, %fault, "a channel_update of the peer is not its own"),
        }
    }

    async fn write_theirs(&mut self) -> Result<(), ()> {
        let now = clock::now();
        let due = self.theirs.iter_mut().filter_map(|(id, theirs)| Some((*id, theirs.take(now)?)));
        let entries: Vec<Entry> = due
            .map(|(channel_id, update)| AnnounceEntry::Theirs { channel_id, update: update.bytes().to_vec() }.entry())
            .collect();
        if !entries.is_empty() {
            self.write(entries).await?;
            self.put_down_theirs();
        }
        Ok(())
    }

    fn put_down_theirs(&self) {
        for (channel_id, bytes) in &self.announcer.book().theirs {
            if let Some(update) = update::decode(bytes) {
                self.announcer.network.set_towards_us(*channel_id, Policy::of_update(&update.parsed().contents));
            }
        }
    }

    // --- both ---

    /// Written and told, or not said at all: on a disk that is nearly full, this has to wait.
    async fn write(&self, entries: Vec<Entry>) -> Result<(), ()> {
        let journal = self.registry.journal();
        if entries.is_empty() || journal.space() != Space::Enough {
            return Ok(());
        }
        let mut entries = entries.into_iter().peekable();
        while entries.peek().is_some() {
            let step: Vec<Entry> = entries.by_ref().take(ENTRIES_MAX).collect();
            journal.write(step).await.map_err(|_| ())?;
        }
        Ok(())
    }

    fn forget(&mut self, snapshots: &[Arc<ChannelSnapshot>]) {
        let open = |snapshot: &&Arc<ChannelSnapshot>| snapshot.state != ChannelState::Closed;
        let open: BTreeSet<_> = snapshots.iter().filter(open).map(|snapshot| snapshot.channel_id).collect();
        self.presences.retain(|id, _| open.contains(id));
        self.told.retain(|id, _| open.contains(id));
        self.theirs.retain(|id, _| open.contains(id));
        self.relayed.channels.retain(|id, _| open.contains(id));
        for snapshot in snapshots.iter().filter(|snapshot| snapshot.state == ChannelState::Closed) {
            self.announcer.network.forget(&snapshot.channel_id);
        }
    }
}

impl Theirs {
    const fn new() -> Self {
        Self { left: THEIRS_MAX, since: Millis(0), waiting: None }
    }

    /// What may be written down now. A peer that says something new all the time is heard only so often, its last word in
    /// the end.
    fn take(&mut self, now: Millis) -> Option<Box<ChannelUpdate>> {
        self.waiting.as_ref()?;
        if self.since.plus(THEIRS_ONE_MORE_MS) <= now && self.left < THEIRS_MAX {
            (self.left, self.since) = (self.left + 1, now);
        }
        if self.left == 0 {
            return None;
        }
        if self.left == THEIRS_MAX {
            self.since = now;
        }
        self.left -= 1;
        self.waiting.take()
    }
}

fn is_announced(snapshot: &ChannelSnapshot) -> bool {
    snapshot.announcement.is_some() && snapshot.state != ChannelState::Closed
}

fn direction_of(by: &PublicKey, other: &PublicKey) -> Direction {
    if by.serialize() < other.serialize() { Direction::FromLesser } else { Direction::FromGreater }
}

/// Whether an update is to be made: nothing was said yet, or something else, or it is old.
fn is_due(before: Option<(Said, u32)>, said: &Said, unix_s: u32) -> bool {
    before.is_none_or(|(before, timestamp)| before != *said || is_old(timestamp, unix_s))
}

const fn is_old(timestamp: u32, unix_s: u32) -> bool {
    timestamp.saturating_add(REPEAT_AFTER_S) <= unix_s
}

/// BOLT 7: greater than any before, whatever the clock says.
fn later_than(before: Option<u32>, unix_s: u32) -> u32 {
    before.map_or(unix_s, |before| unix_s.max(before.saturating_add(1)))
}

fn unix_s() -> u32 {
    u32::try_from(clock::unix_ms() / 1_000).unwrap_or(u32::MAX)
}
