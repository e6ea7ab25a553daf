//! Blobs that are on their way to a tower, and what it is known to have of each group.
//!
//! Between the callers, who hand over, and the task, which tells. The lock is held for a look or a change, never while anything
//! is awaited.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{BlobProgress, HandOverError};
use crate::client::line::Due;
use crate::message::Message;
use crate::receipt::BlobReceipt;
use crate::sealed::Sealed;
use crate::vault::{Group, HeldGroup};

const LOCK: &str = "nothing panics while the queue is locked";

/// Blobs that were told and are not acknowledged, of all groups: the tower answers at its disk's pace, and has room for so many
/// answers.
const IN_FLIGHT_MAX: u64 = 512;
/// No tower has more of one group: it counts them in 32 bits.
const NEXT_MAX: u64 = u32::MAX as u64;
/// Groups that a tower may speak of: many more than a node has channels.
const AT_TOWER_MAX: usize = 100_000;

pub(super) struct Queue {
    state: Mutex<State>,
    waiting_max: usize,
}

#[derive(Default)]
struct State {
    entries: BTreeMap<Group, Entry>,
    /// Groups with something to tell.
    dirty: BTreeSet<Group>,
    /// The one that had to wait, and is the first next time.
    first: Option<Group>,
    /// Groups whose caller found no room.
    hungry: BTreeSet<Group>,
    /// Blobs that are kept here.
    waiting: usize,
    /// Blobs that were told on this connection and are not answered.
    in_flight: u64,
    /// What the tower has said that it has.
    at_tower: BTreeMap<Group, u64>,
}

struct Entry {
    progress: watch::Sender<BlobProgress>,
    /// From the number that is acknowledged on.
    waiting: VecDeque<Sealed>,
    /// The most that the tower has ever acknowledged.
    acknowledged_max: u64,
    /// The most that there is a receipt for, here or with the caller.
    receipted: u64,
    /// Whether the tower has said that it has more.
    asks: bool,
    release: bool,
    // For this connection.
    /// The lowest number that was not told.
    told: u64,
    is_releasing: bool,
    /// Not before then, after a refusal.
    rests_until: Option<Instant>,
}

impl Queue {
    pub(super) fn new(waiting_max: usize) -> Self {
        Self { state: Mutex::default(), waiting_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCK)
    }

    // ---- The caller -------------------------------------------------------------------------------------------------

    pub(super) fn register(&self, group: Group, acknowledged: u64, noted: u64) -> watch::Receiver<BlobProgress> {
        let mut state = self.lock();
        let at_tower = state.at_tower.get(&group).copied();
        let entry = state.entries.entry(group).or_insert_with(|| {
            let progress = BlobProgress { noted, wanted: acknowledged, acknowledged, ..BlobProgress::default() };
            Entry {
                progress: watch::Sender::new(progress),
                waiting: VecDeque::new(),
                acknowledged_max: acknowledged,
                receipted: acknowledged,
                asks: false,
                release: false,
                told: acknowledged,
                is_releasing: false,
                rests_until: None,
            }
        });
        entry.note(noted);
        let progress = entry.progress.subscribe();
        if let Some(next) = at_tower.filter(|_| entry.waiting.is_empty()) {
            state.change(group, |entry| entry.has_acknowledged(next, None));
        }
        state.dirty.insert(group);
        progress
    }

    pub(super) fn hand_over(&self, group: Group, sequence: u64, sealed: Sealed) -> Result<(), HandOverError> {
        let mut state = self.lock();
        let is_full = state.waiting >= self.waiting_max;
        let entry = state.entries.get_mut(&group).ok_or(HandOverError::Unknown(group))?;
        if entry.progress.borrow().is_tower_ahead {
            return Err(HandOverError::TowerAhead { next: entry.acknowledged() });
        }
        entry.note(sequence.saturating_add(1));
        let wanted = entry.wanted();
        if sequence < wanted {
            return Ok(());
        }
        if sequence > wanted {
            return Err(HandOverError::OutOfOrder { wanted });
        }
        if is_full {
            state.hungry.insert(group);
            return Err(HandOverError::Full { max: self.waiting_max });
        }
        state.change(group, |entry| {
            entry.waiting.push_back(sealed);
            entry.progress.send_modify(|progress| progress.wanted = sequence.saturating_add(1));
        });
        state.dirty.insert(group);
        Ok(())
    }

    pub(super) fn release(&self, group: Group) {
        let mut state = self.lock();
        let State { entries, dirty, .. } = &mut *state;
        if let Some(entry) = entries.get_mut(&group) {
            entry.release = true;
            dirty.insert(group);
        }
    }

    pub(super) fn progress(&self, group: Group) -> Option<watch::Receiver<BlobProgress>> {
        self.lock().entries.get(&group).map(|entry| entry.progress.subscribe())
    }

    pub(super) fn all_progress(&self) -> Vec<(Group, BlobProgress)> {
        self.lock().entries.iter().map(|(group, entry)| (*group, entry.progress.borrow().clone())).collect()
    }

    pub(super) fn strangers(&self) -> Vec<Group> {
        let state = self.lock();
        state.at_tower.keys().filter(|group| !state.entries.contains_key(group)).copied().collect()
    }

    pub(super) fn lag(&self, group: Group) -> u64 {
        self.lock().entries.get(&group).map_or(0, |entry| entry.progress.borrow().lag())
    }

    // ---- The tower --------------------------------------------------------------------------------------------------

    pub(super) fn begin(&self) {
        let mut state = self.lock();
        let State { entries, dirty, in_flight, at_tower, .. } = &mut *state;
        *in_flight = 0;
        at_tower.clear();
        for (group, entry) in entries {
            entry.told = entry.acknowledged();
            entry.is_releasing = false;
            entry.rests_until = None;
            // What it refuses still, it says again.
            entry.progress.send_if_modified(|progress| progress.refused.take().is_some());
            dirty.insert(*group);
        }
    }

    /// What the tower has. `false` if it speaks of more than anybody has.
    pub(super) fn on_account(&self, held: &[HeldGroup]) -> bool {
        if held.iter().any(|held| held.next > NEXT_MAX) {
            return false;
        }
        let mut state = self.lock();
        state.at_tower.extend(held.iter().map(|held| (held.group, held.next)));
        state.at_tower.len() <= AT_TOWER_MAX
    }

    /// The account is whole: of a group that is not in it, the tower has nothing.
    pub(super) fn settle_account(&self) {
        let mut state = self.lock();
        let groups: Vec<Group> = state.entries.keys().copied().collect();
        for group in groups {
            let next = state.at_tower.get(&group).copied().unwrap_or(0);
            state.change(group, |entry| entry.has_acknowledged(next, None));
        }
        state.wake_hungry();
    }

    /// A receipt. `count` is told how many blobs more the tower has, before the caller is. `false` if the receipt is for what was
    /// never told.
    pub(super) fn on_ack(&self, receipt: BlobReceipt, count: impl FnOnce(u64)) -> bool {
        let BlobReceipt { group, next, .. } = receipt;
        let mut state = self.lock();
        let Some(entry) = state.entries.get(&group) else { return false };
        let before = entry.acknowledged();
        if next > entry.wanted() {
            return false;
        }
        // One that was on its way when the tower was asked for all it has says nothing new.
        if next < before {
            return true;
        }
        count(next - before);
        state.change(group, |entry| entry.has_acknowledged(next, Some(receipt)));
        state.at_tower.insert(group, next);
        state.dirty.insert(group);
        state.wake_hungry();
        true
    }

    /// A refusal about a group: it rests, unless the tower names another one than was told that comes next.
    pub(super) fn on_refused(&self, group: Group, text: &str, next: Option<u64>, rest: Duration) {
        let mut state = self.lock();
        state.change(group, |entry| entry.on_refused(text, next, rest));
        state.dirty.insert(group);
        state.wake_hungry();
    }

    pub(super) fn on_released(&self, group: Group) {
        let mut state = self.lock();
        state.at_tower.remove(&group);
        if state.entries.get(&group).is_some_and(|entry| entry.release) {
            state.change(group, Entry::clear);
            state.entries.remove(&group);
            state.dirty.remove(&group);
            state.hungry.remove(&group);
            state.wake_hungry();
        }
    }

    /// What is to be told now, at most `max` messages.
    pub(super) fn due(&self, now: Instant, max: usize) -> Due {
        let mut state = self.lock();
        let mut due = Due { messages: Vec::new(), next: None };
        let begin = state.first.take().unwrap_or(Group([0; 16]));
        let order: Vec<Group> = state.dirty.range(begin..).chain(state.dirty.range(..begin)).copied().collect();
        for group in order {
            let room = max.saturating_sub(due.messages.len());
            let window = usize::try_from(IN_FLIGHT_MAX.saturating_sub(state.in_flight)).unwrap_or(0);
            if room.min(window) == 0 {
                due.next = if room == 0 { Some(now) } else { due.next };
                state.first = Some(group);
                break;
            }
            let messages = &mut due.messages;
            match state.change(group, |entry| entry.due(group, now, room.min(window), messages)) {
                Some(Next::Later(until)) => due.next = Some(due.next.map_or(until, |next| next.min(until))),
                // With no window left, an answer brings it up again.
                Some(Next::More) if room <= window => due.next = Some(now),
                Some(Next::More) => {}
                Some(Next::Done) | None => _ = state.dirty.remove(&group),
            }
        }
        due
    }
}

/// What is left to be told of a group.
enum Next {
    /// Nothing.
    Done,
    /// Something, as soon as there is room for it.
    More,
    /// Something, but not before then.
    Later(Instant),
}

impl State {
    /// Changes an entry, and the sums with it.
    fn change<T>(&mut self, group: Group, change: impl FnOnce(&mut Entry) -> T) -> Option<T> {
        let entry = self.entries.get_mut(&group)?;
        let (waiting, under_way) = (entry.waiting.len(), entry.under_way());
        let result = change(entry);
        self.waiting = (self.waiting + entry.waiting.len()).saturating_sub(waiting);
        self.in_flight = (self.in_flight + entry.under_way()).saturating_sub(under_way);
        Some(result)
    }

    /// There may be room: whoever found none looks again.
    fn wake_hungry(&mut self) {
        for group in std::mem::take(&mut self.hungry) {
            if let Some(entry) = self.entries.get(&group) {
                entry.progress.send_modify(|_| {});
            }
        }
    }
}

impl Entry {
    fn acknowledged(&self) -> u64 {
        self.progress.borrow().acknowledged
    }

    fn wanted(&self) -> u64 {
        self.acknowledged().saturating_add(self.waiting.len() as u64)
    }

    /// Blobs that were told and are not answered.
    fn under_way(&self) -> u64 {
        self.told.saturating_sub(self.acknowledged())
    }

    fn clear(&mut self) {
        self.waiting.clear();
        self.told = self.acknowledged();
    }

    fn on_refused(&mut self, text: &str, next: Option<u64>, rest: Duration) {
        self.told = self.acknowledged();
        if std::mem::take(&mut self.is_releasing) {
            // It is kept, until the caller asks again.
            self.release = false;
        }
        if let Some(next) = next.filter(|next| *next != self.acknowledged()) {
            return self.has_acknowledged(next, None);
        }
        // Those that were told after the first that was refused only say that there is a gap.
        if next.is_none() {
            self.progress.send_modify(|progress| progress.refused = Some(text.to_owned()));
        }
        self.rests_until = Some(Instant::now() + rest);
    }

    fn note(&self, noted: u64) {
        self.progress.send_if_modified(|progress| {
            let is_new = noted > progress.noted;
            progress.noted = progress.noted.max(noted);
            is_new
        });
    }

    /// The tower has all below `next`, by its own words: what it lacks is wanted, what it has is not.
    fn has_acknowledged(&mut self, next: u64, receipt: Option<BlobReceipt>) {
        let before = self.acknowledged();
        match next.checked_sub(before).and_then(|more| usize::try_from(more).ok()) {
            Some(more) => _ = self.waiting.drain(..more.min(self.waiting.len())),
            None => self.waiting.clear(),
        }
        self.told = self.told.clamp(next, next.saturating_add(self.waiting.len() as u64));
        self.acknowledged_max = self.acknowledged_max.max(next);
        self.receipted = self.receipted.max(receipt.map_or(0, |receipt| receipt.next));
        // More than there is to know of is the tower's to explain.
        self.asks = next > self.receipted && next <= self.progress.borrow().noted;
        let (wanted, is_tower_behind) = (next.saturating_add(self.waiting.len() as u64), next < self.acknowledged_max);
        self.progress.send_modify(|progress| {
            progress.is_tower_behind = is_tower_behind;
            progress.is_tower_ahead = next > progress.noted;
            (progress.acknowledged, progress.wanted) = (next, wanted);
            if let Some(receipt) = receipt {
                progress.refused = None;
                // What proves that the tower had more is not given up.
                if progress.receipt.is_none_or(|before| before.next <= receipt.next) {
                    progress.receipt = Some(receipt);
                }
            }
        });
    }

    /// Adds at most `max` of what is to be told.
    fn due(&mut self, group: Group, now: Instant, max: usize, out: &mut Vec<Message>) -> Next {
        if let Some(until) = self.rests_until.filter(|until| *until > now) {
            return Next::Later(until);
        }
        self.rests_until = None;
        if self.release {
            if !std::mem::replace(&mut self.is_releasing, true) {
                out.push(Message::Release(group));
            }
            return Next::Done;
        }
        let acknowledged = self.acknowledged();
        let skip = usize::try_from(self.told.saturating_sub(acknowledged)).unwrap_or(usize::MAX);
        let waiting = self.waiting.iter().skip(skip);
        for (sealed, sequence) in waiting.take(max).zip(self.told..) {
            out.push(Message::Blob { group, sequence, sealed: sealed.clone() });
            self.told = sequence.saturating_add(1);
        }
        if self.told < self.wanted() {
            return Next::More;
        }
        // What is under way is answered by a receipt.
        if std::mem::take(&mut self.asks) && self.under_way() == 0 {
            out.push(Message::AskReceipt(group));
        }
        Next::Done
    }
}

#[cfg(test)]
mod tests;
