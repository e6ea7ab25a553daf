//! What is to be told to a tower, and what it is known to have: one entry per channel, of constant size.
//!
//! Between the callers, who note, and the task, which tells. The lock is held for a look or a change, never while anything
//! is awaited.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bitcoin::OutPoint;
use millrace_channel::secrets::RevealedSecrets;
use millrace_wire::{ChannelId, CommitmentNumber, Preimage};
use tokio::sync::{mpsc, watch};

use super::line::Due;
use super::{Event, NoteError, Progress};
use crate::message::Message;
use crate::receipt::Receipt;
use crate::record::{Handle, Secret};
use crate::registration::Registration;
use crate::tower::Held;

const LOCK: &str = "nothing panics while the book is locked";

#[derive(Default)]
pub(crate) struct Book(Mutex<State>);

#[derive(Default)]
struct State {
    entries: BTreeMap<ChannelId, Entry>,
    /// Channels with something to tell.
    dirty: BTreeSet<ChannelId>,
    /// What the tower has said of channels on this connection, of those too that were not registered here yet.
    at_tower: BTreeMap<ChannelId, AtTower>,
    /// The tower's names, for this connection.
    by_handle: BTreeMap<Handle, ChannelId>,
    /// Channels of which the caller is to be told something.
    news: BTreeSet<ChannelId>,
    /// Channels that are not watched here any more, and that the tower is to forget; whether it was told on this connection.
    orphans: BTreeMap<ChannelId, bool>,
}

/// What the tower has said of a channel.
struct AtTower {
    held: Held,
    /// Whether the caller is to be told of the channel's end.
    owes_end: bool,
    /// Preimages that the caller is to be told of, and how many there are with them.
    preimages: Option<(Vec<[u8; 32]>, u32)>,
}

/// Channels that a tower may speak of: many more than a node has.
const AT_TOWER_MAX: usize = 100_000;

struct Entry {
    registration: Registration,
    secrets: RevealedSecrets,
    progress: watch::Sender<Progress>,
    /// When the oldest secret was noted that was not told.
    waiting_since: Option<Instant>,
    forget: bool,
    preimages_taken: u32,
    // For this connection.
    handle: Option<Handle>,
    under_way: UnderWay,
    /// Not before then, after a refusal.
    rests_until: Option<Instant>,
    told_taken: u32,
}

/// What was told and is not answered: one thing at a time.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UnderWay {
    Nothing,
    Registration,
    Secrets,
    Forgetting,
}

impl Book {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect(LOCK)
    }

    pub(crate) fn register(&self, channel_id: ChannelId, registration: Registration, secrets: RevealedSecrets) {
        let mut state = self.lock();
        state.dirty.insert(channel_id);
        let noted = secrets.next().0;
        if let Some(entry) = state.entries.get_mut(&channel_id) {
            if noted > entry.secrets.next().0 {
                entry.secrets = secrets;
                entry.waiting_since.get_or_insert_with(Instant::now);
                entry.progress.send_modify(|progress| progress.noted = noted);
            }
            return;
        }
        let progress = watch::Sender::new(Progress { noted, ..Progress::default() });
        let entry = Entry {
            registration,
            secrets,
            progress,
            waiting_since: Some(Instant::now()),
            forget: false,
            preimages_taken: 0,
            handle: None,
            under_way: UnderWay::Nothing,
            rests_until: None,
            told_taken: 0,
        };
        state.entries.insert(channel_id, entry);
        state.adopt(channel_id);
    }

    pub(crate) fn recall(&self, channel_id: ChannelId, receipt: Receipt) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&channel_id) else { return };
        let is_news = entry.progress.borrow().receipt.is_none();
        if is_news && entry.handle.is_none() && receipt.funding_outpoint == entry.registration.funding_outpoint {
            entry.has_acknowledged(receipt.next, Some(receipt));
        }
    }

    pub(crate) fn note(
        &self,
        channel_id: ChannelId,
        number: CommitmentNumber,
        secret: [u8; 32],
    ) -> Result<(), NoteError> {
        let mut state = self.lock();
        let entry = state.entries.get_mut(&channel_id).ok_or(NoteError::Unknown(channel_id))?;
        entry.secrets.insert(number, secret)?;
        entry.waiting_since.get_or_insert_with(Instant::now);
        let noted = entry.secrets.next().0;
        entry.progress.send_modify(|progress| progress.noted = noted);
        state.dirty.insert(channel_id);
        Ok(())
    }

    pub(crate) fn forget(&self, channel_id: ChannelId) {
        let mut state = self.lock();
        if !state.entries.contains_key(&channel_id) {
            // One that was refused is asked for again.
            state.orphans.insert(channel_id, false);
        }
        if let Some(entry) = state.entries.get_mut(&channel_id) {
            entry.forget = true;
            state.dirty.insert(channel_id);
        }
    }

    pub(crate) fn preimages_taken(&self, channel_id: ChannelId, count: u32) {
        let mut state = self.lock();
        if let Some(entry) = state.entries.get_mut(&channel_id) {
            entry.preimages_taken = entry.preimages_taken.max(count);
            state.dirty.insert(channel_id);
        }
    }

    pub(crate) fn progress(&self, channel_id: ChannelId) -> Option<watch::Receiver<Progress>> {
        self.lock().entries.get(&channel_id).map(|entry| entry.progress.subscribe())
    }

    pub(crate) fn all_progress(&self) -> Vec<(ChannelId, OutPoint, Progress)> {
        let state = self.lock();
        let entries = state.entries.iter();
        entries.map(|(id, entry)| (*id, entry.registration.funding_outpoint, entry.progress.borrow().clone())).collect()
    }

    pub(crate) fn lag(&self, channel_id: ChannelId) -> u64 {
        self.lock().entries.get(&channel_id).map_or(0, |entry| entry.progress.borrow().lag())
    }

    /// A connection begins: the tower's names and what was under way mean nothing any more.
    pub(crate) fn begin(&self) {
        let mut state = self.lock();
        let State { entries, dirty, at_tower, by_handle, news, orphans } = &mut *state;
        orphans.values_mut().for_each(|is_told| *is_told = false);
        at_tower.clear();
        by_handle.clear();
        news.clear();
        for (channel_id, entry) in entries {
            entry.handle = None;
            entry.under_way = UnderWay::Nothing;
            entry.rests_until = None;
            entry.told_taken = 0;
            dirty.insert(*channel_id);
        }
    }

    /// What the tower has of a channel. `false` if it speaks of more than anybody has.
    pub(crate) fn on_held(&self, held: &Held) -> bool {
        let mut state = self.lock();
        let channel_id = ChannelId::v1_from_funding(held.funding_outpoint);
        if state.at_tower.len() >= AT_TOWER_MAX && !state.at_tower.contains_key(&channel_id) {
            return false;
        }
        state.by_handle.insert(held.handle, channel_id);
        let preimages = state.at_tower.remove(&channel_id).and_then(|before| before.preimages);
        state.at_tower.insert(channel_id, AtTower { held: *held, owes_end: held.is_resolved, preimages });
        state.adopt(channel_id);
        true
    }

    /// Preimages of a channel, and how many there are with them.
    pub(crate) fn on_preimages(&self, handle: Handle, preimages: Vec<[u8; 32]>, count: u32) {
        let mut state = self.lock();
        let Some(channel_id) = state.by_handle.get(&handle).copied() else { return };
        if let Some(at_tower) = state.at_tower.get_mut(&channel_id) {
            at_tower.preimages = Some((preimages, count));
        }
        state.adopt(channel_id);
    }

    /// Tells the caller what he is to be told; what finds no room is told later.
    pub(crate) fn tell_caller(&self, events: &mpsc::Sender<Event>) {
        let mut state = self.lock();
        let State { at_tower, news, .. } = &mut *state;
        news.retain(|channel_id| {
            let Some(at_tower) = at_tower.get_mut(channel_id) else { return false };
            if let Some((preimages, count)) = &at_tower.preimages {
                let preimages = preimages.iter().copied().map(Preimage::new).collect();
                let event = Event::Preimages { channel_id: *channel_id, preimages, count: *count };
                if events.try_send(event).is_err() {
                    return true;
                }
                at_tower.preimages = None;
            }
            if at_tower.owes_end {
                if events.try_send(Event::Resolved { channel_id: *channel_id }).is_err() {
                    return true;
                }
                at_tower.owes_end = false;
            }
            false
        });
    }

    /// A receipt. Gives by how many secrets the tower is further, or nothing if the receipt is for no channel of ours.
    pub(crate) fn on_ack(
        &self,
        handle: Handle,
        receipt: impl FnOnce(OutPoint) -> Receipt,
        is_right: impl FnOnce(&Receipt) -> bool,
    ) -> Option<u64> {
        let mut state = self.lock();
        let channel_id = *state.by_handle.get(&handle)?;
        let entry = state.entries.get_mut(&channel_id)?;
        let receipt = receipt(entry.registration.funding_outpoint);
        if !is_right(&receipt) {
            return None;
        }
        let before = entry.progress.borrow().acknowledged;
        entry.under_way = UnderWay::Nothing;
        entry.has_acknowledged(receipt.next, Some(receipt));
        state.dirty.insert(channel_id);
        Some(receipt.next.0.saturating_sub(before))
    }

    /// A refusal about a channel: it rests, unless the tower only names what comes next.
    pub(crate) fn on_refused(&self, channel_id: ChannelId, text: &str, next: Option<CommitmentNumber>, rest: Duration) {
        let mut state = self.lock();
        let Some(entry) = state.entries.get_mut(&channel_id) else { return };
        let was_forgetting = entry.under_way == UnderWay::Forgetting;
        entry.under_way = UnderWay::Nothing;
        // A tower that only repeats what it has said is not asked again at once.
        let next = next.filter(|next| entry.progress.borrow().acknowledged != next.0);
        match next {
            Some(next) => entry.has_acknowledged(next, None),
            None => entry.progress.send_modify(|progress| progress.refused = Some(text.to_owned())),
        }
        if was_forgetting {
            // It stays watched, secrets and all, until the caller asks again.
            entry.forget = false;
        } else if next.is_none() {
            entry.rests_until = Some(Instant::now() + rest);
        }
        state.dirty.insert(channel_id);
    }

    pub(crate) fn channel_of(&self, handle: Handle) -> Option<ChannelId> {
        self.lock().by_handle.get(&handle).copied()
    }

    pub(crate) fn on_forgotten(&self, handle: Handle) {
        let mut state = self.lock();
        if let Some(channel_id) = state.by_handle.remove(&handle) {
            state.at_tower.remove(&channel_id);
            state.entries.remove(&channel_id);
            state.dirty.remove(&channel_id);
            state.orphans.remove(&channel_id);
        }
    }

    /// Whether there is anything of a channel here, were it only that it is to be forgotten.
    pub(crate) fn knows(&self, channel_id: ChannelId) -> bool {
        let state = self.lock();
        state.entries.contains_key(&channel_id) || state.orphans.contains_key(&channel_id)
    }

    /// What is to be told now, at most `max` messages.
    pub(crate) fn due(&self, now: Instant, linger: Duration, batch_max: u64, max: usize) -> Due {
        let mut state = self.lock();
        let State { entries, dirty, at_tower, orphans, .. } = &mut *state;
        let mut due = Due { messages: Vec::new(), next: None };
        orphans.retain(|channel_id, is_told| match at_tower.get(channel_id) {
            Some(at_tower) if !*is_told && due.messages.len() < max => {
                *is_told = true;
                let handle = at_tower.held.handle;
                // Nobody waits for them any more.
                let taken = at_tower.preimages.as_ref().map(|(_, count)| *count);
                due.messages.extend(taken.map(|count| Message::PreimagesTaken { handle, count }));
                due.messages.push(Message::Forget(handle));
                true
            }
            Some(_) => true,
            // What the tower does not know needs no forgetting there.
            None => false,
        });
        let mut done = Vec::new();
        for channel_id in dirty.iter() {
            if due.messages.len() >= max {
                due.next = Some(now);
                break;
            }
            let Some(entry) = entries.get_mut(channel_id) else { continue };
            match entry.due(now, linger, batch_max, &mut due.messages) {
                Some(later) => due.next = Some(due.next.map_or(later, |next| next.min(later))),
                None => done.push(*channel_id),
            }
        }
        for channel_id in done {
            dirty.remove(&channel_id);
            // What the tower does not know needs no forgetting there.
            if entries.get(&channel_id).is_some_and(|entry| entry.forget && entry.handle.is_none()) {
                entries.remove(&channel_id);
            }
        }
        due
    }
}

impl State {
    /// Brings together what the tower has said of a channel and what is noted here, once there is both.
    fn adopt(&mut self, channel_id: ChannelId) {
        let (Some(entry), Some(at_tower)) = (self.entries.get_mut(&channel_id), self.at_tower.get(&channel_id)) else {
            return;
        };
        if entry.handle != Some(at_tower.held.handle) || at_tower.held.is_resolved {
            entry.handle = Some(at_tower.held.handle);
            if entry.under_way == UnderWay::Registration {
                entry.under_way = UnderWay::Nothing;
            }
            entry.has_acknowledged(at_tower.held.next, None);
            entry.progress.send_modify(|progress| progress.is_resolved |= at_tower.held.is_resolved);
        }
        self.dirty.insert(channel_id);
        if at_tower.owes_end || at_tower.preimages.is_some() {
            self.news.insert(channel_id);
        }
    }
}

impl Entry {
    fn has_acknowledged(&mut self, next: CommitmentNumber, receipt: Option<Receipt>) {
        let noted = self.secrets.next().0;
        self.progress.send_modify(|progress| {
            progress.acknowledged = next.0.min(noted);
            progress.is_tower_ahead = next.0 > noted;
            progress.refused = None;
            progress.receipt = receipt.or(progress.receipt);
        });
    }

    /// Adds what is to be told now. `Some` if there is more to be told later, by itself.
    fn due(&mut self, now: Instant, linger: Duration, batch_max: u64, out: &mut Vec<Message>) -> Option<Instant> {
        if let Some(handle) = self.handle
            && self.preimages_taken > self.told_taken
        {
            self.told_taken = self.preimages_taken;
            out.push(Message::PreimagesTaken { handle, count: self.preimages_taken });
        }
        if self.under_way != UnderWay::Nothing {
            // Its answer brings it up again.
            return None;
        }
        if let Some(until) = self.rests_until.filter(|until| *until > now) {
            return Some(until);
        }
        self.rests_until = None;
        let Some(handle) = self.handle else {
            if !self.forget {
                self.under_way = UnderWay::Registration;
                out.push(Message::Register(Box::new(self.registration.clone())));
            }
            return None;
        };
        if self.forget {
            self.under_way = UnderWay::Forgetting;
            out.push(Message::Forget(handle));
            return None;
        }
        self.secrets_due(handle, now, linger, batch_max, out)
    }

    fn secrets_due(
        &mut self,
        handle: Handle,
        now: Instant,
        linger: Duration,
        batch_max: u64,
        out: &mut Vec<Message>,
    ) -> Option<Instant> {
        let (from, lag, is_resolved) = {
            let progress = self.progress.borrow();
            (CommitmentNumber(progress.acknowledged), progress.lag(), progress.is_resolved)
        };
        if lag == 0 || is_resolved {
            self.waiting_since = None;
            return None;
        }
        let ready_at = *self.waiting_since.get_or_insert(now) + linger;
        if ready_at > now && lag < batch_max {
            return Some(ready_at);
        }
        self.waiting_since = None;
        self.under_way = UnderWay::Secrets;
        let to = self.secrets.next();
        out.push(match self.secrets.get(from).filter(|_| lag == 1) {
            Some(secret) => Message::Update { handle, number: from, secret: Secret(secret) },
            None => {
                let changed = self.secrets.since(from).into_iter().map(Secret).collect();
                Message::Batch { handle, from, to, changed }
            }
        });
        None
    }
}
