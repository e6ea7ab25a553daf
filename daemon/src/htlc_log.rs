//! The HTLCs that have left their channels and may still stand in commitments that a peer has revoked: what it takes to
//! punish one (BOLT 5, "Revoked Transaction Close Handling").
//!
//! Each is written once, when it leaves, into a history of its own ([`FOLDER`]), many at a time; until then it is in the
//! journal's steps or the checkpoint, and, here, in memory. When a channel finds a revoked commitment in a block, it is told what is kept of
//! its HTLCs. What is kept of a channel is let go with the channel, as far as whole files can.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use millrace_channel::Fact;
use millrace_channel::ledger::past::PastHtlc;
use millrace_journal::{History, HistoryError, Journal, OpenError, Position, ReadError};
use millrace_wire::{ChannelId, CommitmentNumber};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::channels::{CommandError, Registry};
use crate::facts::{Applied, Fold, Item, News, Source, Telling};

/// The folder of the log, inside the journal's.
pub const FOLDER: &str = "htlcs";
/// The version of an item of the log, and of the section in the checkpoint.
const VERSION: u8 = 1;
/// HTLCs that are appended at once: about 4 MB.
const BATCH: usize = 50_000;
/// How long a channel that has too much to do is left alone.
const AGAIN: Duration = Duration::from_millis(200);
/// HTLCs that the checkpoint keeps, before they are worth an append: about 200 kB.
const RECENT_MAX: usize = 4_096;
/// HTLCs in one item of the log.
const ITEM: usize = 4_096;

const LOCK: &str = "nothing panics while the HTLC log is locked";

/// A place in the journal, as it is written down.
type Place = (u64, u32);

/// HTLCs of one channel: one item of the log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Kept {
    channel_id: ChannelId,
    htlcs: Vec<PastHtlc>,
}

/// What is in memory.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
struct State {
    applied: Applied,
    /// Not in the log yet, by where it stands in the journal.
    recent: VecDeque<(Place, ChannelId, PastHtlc)>,
    /// From where on the log has something of a channel that is not closed.
    open_since: BTreeMap<ChannelId, Place>,
    /// How far the log reached at the last checkpoint.
    covered: Place,
}

/// The log.
pub struct HtlcLog {
    state: Mutex<State>,
    log: OnceLock<Arc<History>>,
    recent_max: usize,
    asked: mpsc::UnboundedSender<(ChannelId, CommitmentNumber)>,
    questions: Mutex<Option<mpsc::UnboundedReceiver<(ChannelId, CommitmentNumber)>>>,
}

impl HtlcLog {
    /// The log, before anything was read back.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Self::keeping(RECENT_MAX)
    }

    fn keeping(recent_max: usize) -> Arc<Self> {
        // One question for each breach and start.
        let (asked, questions) = mpsc::unbounded_channel();
        Arc::new(Self {
            state: Mutex::new(State::default()),
            log: OnceLock::new(),
            recent_max,
            asked,
            questions: Mutex::new(Some(questions)),
        })
    }

    /// Opens the log's own history, once everything was read back.
    ///
    /// # Errors
    /// [`OpenError`] if it is damaged, or does not reach as far as the checkpoint says.
    pub fn attach(&self, journal: &Arc<Journal>) -> Result<(), OpenError> {
        let mut state = self.state.lock().expect(LOCK);
        let log = journal.open_log(FOLDER, at(state.covered))?;
        let covered = log.covered_up_to();
        // Appended for a checkpoint that was never finished.
        state.recent.retain(|(place, ..)| at(*place) >= covered);
        drop(state);
        // It is attached once.
        let _second = self.log.set(log);
        Ok(())
    }

    /// Answers what channels ask from here on, and what they have asked. On a tokio runtime, after
    /// [`HtlcLog::attach`]. Ends with the node.
    pub fn start(self: &Arc<Self>, registry: Registry) -> Option<tokio::task::JoinHandle<()>> {
        let mut questions = self.questions.lock().expect(LOCK).take()?;
        let log = Arc::downgrade(self);
        Some(tokio::spawn(async move {
            while let Some((channel_id, number)) = questions.recv().await {
                let Some(log) = log.upgrade() else { return };
                // Reading the whole log may take seconds.
                let found = tokio::task::spawn_blocking(move || log.find(channel_id, number)).await;
                match found {
                    Ok(Ok(htlcs)) => {
                        tracing::warn!(%channel_id, %number, htlcs = htlcs.len(), "a revoked commitment is on chain");
                        tell(&registry, channel_id, htlcs).await;
                    }
                    Ok(Err(error)) => tracing::error!(
                        %channel_id, %number, %error,
                        "the HTLC log cannot be read: HTLCs of this revoked commitment that have ended are not claimed"
                    ),
                    Err(error) => tracing::error!(%channel_id, %error, "reading the HTLC log failed"),
                }
            }
        }))
    }

    /// What is kept of a channel's HTLCs that may stand in this commitment of the peer's. Reads the whole log.
    ///
    /// # Errors
    /// [`ReadError`] if the log cannot be read.
    pub fn find(&self, channel_id: ChannelId, number: CommitmentNumber) -> Result<Vec<PastHtlc>, FindError> {
        // First what is recent: from there it only goes into the log.
        let mut found: Vec<PastHtlc> = {
            let state = self.state.lock().expect(LOCK);
            let own = state.recent.iter().filter(|(_, of, _)| *of == channel_id);
            own.map(|(.., htlc)| *htlc).filter(|htlc| htlc.may_stand_in(number)).collect()
        };
        let Some(log) = self.log.get() else { return Ok(found) };
        let mut reader = log.reader(log.oldest())?;
        while let Some((_, bytes)) = reader.next_item()? {
            let kept = Kept::decode(&bytes)?;
            if kept.channel_id == channel_id {
                found.extend(kept.htlcs.into_iter().filter(|htlc| htlc.may_stand_in(number)));
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn append(&self, log: &History, up_to: Position) -> Result<(), HistoryError> {
        loop {
            let (covers, batch) = self.batch(up_to);
            if batch.len() <= self.recent_max {
                return Ok(());
            }
            let items = items_of(&batch);
            let borrowed: Vec<(Position, &[u8])> = items.iter().map(|(at, bytes)| (*at, bytes.as_slice())).collect();
            if covers > log.covered_up_to() {
                log.append(covers, &borrowed)?;
            }
            let mut state = self.state.lock().expect(LOCK);
            state.recent.retain(|(place, ..)| at(*place) >= covers);
            if covers >= up_to {
                return Ok(());
            }
        }
    }

    /// What is appended next, in order, and how far the log then reaches: all of one step, and no more than is read at once.
    fn batch(&self, up_to: Position) -> (Position, Vec<(Position, ChannelId, PastHtlc)>) {
        let state = self.state.lock().expect(LOCK);
        let mut ready: Vec<(Position, ChannelId, PastHtlc)> = Vec::new();
        let below = state.recent.iter().map(|(place, of, htlc)| (at(*place), *of, *htlc));
        for (position, of, htlc) in below.filter(|(position, ..)| *position < up_to) {
            if ready.len() >= BATCH && ready.last().is_some_and(|(last, ..)| *last != position) {
                return (position, ready);
            }
            ready.push((position, of, htlc));
        }
        (up_to, ready)
    }

    /// Lets go of files in which no channel that is open has anything.
    fn forget(&self, log: &History, up_to: Position) {
        let oldest = self.state.lock().expect(LOCK).open_since.values().copied().map(at).min();
        if let Err(error) = log.forget_below(oldest.unwrap_or(up_to).min(up_to)) {
            tracing::warn!(%error, "files of the HTLC log that nobody needs stay");
        }
    }
}

/// Tells the channel, however busy it is.
async fn tell(registry: &Registry, channel_id: ChannelId, htlcs: Vec<PastHtlc>) {
    loop {
        match registry.breach_htlcs(channel_id, htlcs.clone()).await {
            Ok(_) => return,
            Err(CommandError::Busy { .. }) => tokio::time::sleep(AGAIN).await,
            // A reorg may have taken the commitment back; the channel asks again when it needs to.
            Err(error) => return tracing::info!(%channel_id, %error, "the channel does not take its past HTLCs"),
        }
    }
}

/// Why the log was not read.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    /// The files.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// What is in them.
    #[error(transparent)]
    Item(#[from] BadItem),
}

/// Bytes that are not what was written.
#[derive(Debug, thiserror::Error)]
pub enum BadItem {
    /// From a newer build.
    #[error("version {0} of the HTLC log: this build knows version {VERSION}")]
    UnknownVersion(u8),
    /// Not what the version says.
    #[error("what is in the HTLC log does not decode: {0}")]
    Malformed(String),
}

impl Kept {
    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("HTLCs hold nothing that postcard cannot write")
    }

    fn decode(bytes: &[u8]) -> Result<Self, BadItem> {
        decode(bytes)
    }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, BadItem> {
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            postcard::from_bytes(body).map_err(|error: postcard::Error| BadItem::Malformed(error.to_string()))
        }
        Some((&version, _)) => Err(BadItem::UnknownVersion(version)),
        None => Err(BadItem::Malformed("it is empty".to_owned())),
    }
}

/// One item for each channel of so many HTLCs, at the place of the last of these.
fn items_of(batch: &[(Position, ChannelId, PastHtlc)]) -> Vec<(Position, Vec<u8>)> {
    let mut items = Vec::new();
    for part in batch.chunks(ITEM) {
        let Some((last, ..)) = part.last() else { continue };
        let mut by_channel: BTreeMap<ChannelId, Vec<PastHtlc>> = BTreeMap::new();
        for (_, channel_id, htlc) in part {
            by_channel.entry(*channel_id).or_default().push(*htlc);
        }
        let kept = by_channel.into_iter().map(|(channel_id, htlcs)| Kept { channel_id, htlcs });
        items.extend(kept.map(|kept| (*last, kept.encode())));
    }
    items
}

const fn at((frame, index): Place) -> Position {
    Position { frame, index }
}

const fn place(position: Position) -> Place {
    (position.frame, position.index)
}

impl State {
    /// Takes what a step says of HTLCs that have left, and of channels that begin and end.
    fn take(&mut self, channel_id: ChannelId, position: Position, items: &[Item]) {
        for item in items {
            let Item::Fact { fact, .. } = item else { continue };
            if let Fact::Opened { .. } = fact {
                self.open_since.insert(channel_id, place(position));
            }
            if let Fact::Closed(_) = fact {
                self.open_since.remove(&channel_id);
                self.recent.retain(|(_, of, _)| *of != channel_id);
            }
            if let Fact::HtlcPast(htlc) = fact {
                // One that was opened before there was a log may have nothing in it yet.
                self.open_since.entry(channel_id).or_insert_with(|| place(position));
                self.recent.push_back((place(position), channel_id, *htlc));
            }
        }
    }
}

impl Fold for HtlcLog {
    fn name(&self) -> &'static str {
        "htlc_log"
    }

    fn restore(&self, section: &[u8]) -> Result<(), String> {
        *self.state.lock().expect(LOCK) = decode(section).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn tell(&self, news: &News) {
        let Source::Channel(channel_id) = news.source else { return };
        let mut state = self.state.lock().expect(LOCK);
        if let Some(position) = news.position
            && state.applied.take(news.source, Some(position))
        {
            state.take(channel_id, position, &news.items);
            if news.items.iter().any(|item| matches!(item, Item::Fact { fact: Fact::Closed(_), .. })) {
                state.applied.forget(channel_id);
            }
        }
        drop(state);
        if news.telling == Telling::Replay {
            return;
        }
        for item in &news.items {
            if let Item::Fact { fact: Fact::Breached { number }, .. } = item {
                // Nobody answers any more only when the node has stopped.
                let _gone = self.asked.send((channel_id, *number));
            }
        }
    }

    fn section(&self, up_to: Position) -> Result<Vec<u8>, String> {
        if let Some(log) = self.log.get() {
            self.append(log, up_to).map_err(|error| error.to_string())?;
            self.forget(log, up_to);
        }
        let mut state = self.state.lock().expect(LOCK);
        state.covered = self.log.get().map_or(state.covered, |log| place(log.covered_up_to()));
        Ok(postcard::to_extend(&*state, vec![VERSION])
            .expect("the log's state holds nothing that postcard cannot write"))
    }
}

impl std::fmt::Debug for HtlcLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HtlcLog")
    }
}

#[cfg(test)]
mod tests;
