//! How what became true reaches those who fold it: payments, invoices, forwards, events, the view.
//!
//! A [`Fold`] is told everything that is durable, and nothing that is not: the facts of the channels and the entries of
//! the owners, live and on replay alike, and in the order of the journal. Shards release their steps side by side; what
//! comes early waits for the others ([`Folds::tell_step`]), so that a state that is folded from several channels is the
//! same whoever was faster, and the same after a restart.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use millrace_channel::{Fact, Terms};
use millrace_journal::{Position, Ticket};
use millrace_wire::{ChannelId, OnionPacket, PublicKey};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::entry::Entry;

const LOCK: &str = "no fold panics while it is told";

/// Whose news it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum Source {
    /// A channel, with the entries that were handed in with its commands.
    Channel(ChannelId),
    /// Entries that were written by themselves, see `JournalHandle::write`.
    Node,
}

/// When news is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Telling {
    /// It has just become durable.
    Live,
    /// It was read back from the journal at the start. The same news in the same order as live, but for facts that
    /// were never durable (`Fact::OfferDropped`, `Fact::PeerSaid`).
    Replay,
    /// After all of the replay, once per start: what is still owed by the channel, told again (`Channel::resume`).
    /// It comes again if the start is interrupted: it must be handled idempotently.
    Resume,
}

/// One thing to know.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// A fact of the source channel.
    Fact {
        /// What became true.
        fact: Fact,
        /// With `Fact::HtlcReceived`: what is to be peeled.
        received: Option<Box<ReceivedOnion>>,
    },
    /// An owner's own entry.
    Entry(Entry),
}

/// The sealed part of an HTLC that was received.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReceivedOnion {
    /// To be peeled.
    pub onion: Box<OnionPacket>,
    /// BOLT 4's blinded `path_key`, if the add carried one.
    pub path_key: Option<PublicKey>,
}

/// What became durable by one journal step (or what is told beside the journal).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct News {
    /// Whose it is.
    pub source: Source,
    /// The peer of the channel; absent for the node's own entries.
    pub peer: Option<PublicKey>,
    /// What was agreed when the channel was opened; absent for the node's own entries. Events say some of it, live and
    /// on replay alike, also when the channel itself is closed and gone.
    pub terms: Option<Arc<Terms>>,
    /// Where the step stands; absent for what no step holds (`Fact::OfferDropped`, `Fact::PeerSaid`, and all that is
    /// told on [`Telling::Resume`]). A step is told of in one piece.
    pub position: Option<Position>,
    /// When the step was taken, as Unix time in milliseconds.
    pub time_ms: u64,
    /// Live, or at a start.
    pub telling: Telling,
    /// In order.
    pub items: Vec<Item>,
}

/// Somebody whose state is a fold over the journal.
///
/// At a start: [`Fold::restore`] with each section of the checkpoint that bears the fold's name, then [`Fold::tell`]
/// with all that followed it, then `tell` with [`Telling::Resume`], then [`Telling::Live`].
pub trait Fold: Send + Sync {
    /// The name of its section in the checkpoint; it never changes.
    fn name(&self) -> &'static str;

    /// Takes its state back from a checkpoint.
    ///
    /// # Errors
    /// In words, if the bytes are not a state that this build knows: the daemon then refuses to start.
    fn restore(&self, section: &[u8]) -> Result<(), String>;

    /// Is told news. Called from shard threads, by one at a time, and at the start: it must not wait for anything, and tell
    /// nothing itself. One call is one step: [`Fold::section`] must never see half of it.
    ///
    /// A replay may tell what the restored section holds already: whatever [`Applied::take`] says is not new.
    fn tell(&self, news: &News);

    /// Its state for a checkpoint, with everything in it that was told before the call. Called from the checkpoint's
    /// own thread; it may take its time. Everything below `up_to` was told; what must outlive the journal's segments
    /// is to be in `history/` when this returns.
    ///
    /// # Errors
    /// In words: there is then no checkpoint this time.
    fn section(&self, up_to: Position) -> Result<Vec<u8>, String>;
}

/// How far a fold has applied each source: what makes telling something twice harmless.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Applied {
    by_source: HashMap<Source, (u64, u32)>,
}

impl Applied {
    /// Whether the news is new; if so, it counts as applied from now on. News without a position is always new.
    pub fn take(&mut self, source: Source, position: Option<Position>) -> bool {
        let Some(position) = position else { return true };
        let position = (position.frame, position.index);
        match self.by_source.get_mut(&source) {
            Some(last) if *last >= position => false,
            Some(last) => {
                *last = position;
                true
            }
            None => {
                self.by_source.insert(source, position);
                true
            }
        }
    }

    /// Forgets a channel that is closed, once a checkpoint without it was written.
    pub fn forget(&mut self, channel_id: ChannelId) {
        self.by_source.remove(&Source::Channel(channel_id));
    }
}

/// Several folds, told one after the other.
#[derive(Clone)]
pub struct Folds {
    folds: Arc<[Arc<dyn Fold>]>,
    order: Arc<Mutex<Order>>,
}

/// What was released by its shard and is not told yet.
struct Order {
    /// The step that is told next.
    next: Ticket,
    /// By the step that must be told first.
    waiting: BTreeMap<Ticket, Vec<Waiting>>,
}

struct Waiting {
    news: News,
    written: Option<oneshot::Sender<Position>>,
}

impl Folds {
    /// All of them. Steps up to this ticket are told by a replay, if at all.
    #[must_use]
    pub fn new(folds: Vec<Arc<dyn Fold>>, replayed: Ticket) -> Self {
        let order = Order { next: Ticket(replayed.0 + 1), waiting: BTreeMap::new() };
        Self { folds: folds.into(), order: Arc::new(Mutex::new(order)) }
    }

    /// Tells every one what no step of this run holds: after all that was released before it.
    pub fn tell(&self, news: News) {
        let mut order = self.order.lock().expect(LOCK);
        match order.waiting.last_entry() {
            Some(mut last) => last.get_mut().push(Waiting { news, written: None }),
            None => self.tell_all(&news),
        }
    }

    /// Tells every one of a step, once those before it were told. To be called for each step, also for those that hold no
    /// news; then says to whoever wrote it where it stands.
    pub(crate) fn tell_step(&self, ticket: Ticket, news: News, written: Option<oneshot::Sender<Position>>) {
        let mut order = self.order.lock().expect(LOCK);
        let step = Waiting { news, written };
        if ticket != order.next {
            order.waiting.insert(ticket, vec![step]);
            return;
        }
        self.tell_one(step);
        let mut next = Ticket(ticket.0 + 1);
        while let Some(ready) = order.waiting.remove(&next) {
            ready.into_iter().for_each(|one| self.tell_one(one));
            next = Ticket(next.0 + 1);
        }
        order.next = next;
    }

    fn tell_one(&self, Waiting { news, written }: Waiting) {
        let position = news.position;
        self.tell_all(&news);
        if let Some((written, position)) = written.zip(position) {
            let _gone = written.send(position);
        }
    }

    fn tell_all(&self, news: &News) {
        if !news.items.is_empty() {
            self.folds.iter().for_each(|fold| fold.tell(news));
        }
    }

    /// Each one.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<dyn Fold>> {
        self.folds.iter()
    }
}

impl std::fmt::Debug for Folds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.folds.iter().map(|fold| fold.name())).finish()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Keeps the first part of what it is told.
    #[derive(Default)]
    struct Kept(Mutex<Vec<u8>>);

    impl Fold for Kept {
        fn name(&self) -> &'static str {
            "kept"
        }

        fn restore(&self, _section: &[u8]) -> Result<(), String> {
            Ok(())
        }

        fn tell(&self, news: &News) {
            let Some(Item::Entry(entry)) = news.items.first() else { panic!("nothing is told") };
            self.0.lock().unwrap().push(entry.bytes[0]);
        }

        fn section(&self, _up_to: Position) -> Result<Vec<u8>, String> {
            Ok(Vec::new())
        }
    }

    fn news(said: Option<u8>, position: Option<Position>) -> News {
        let items = said.map(|byte| Item::Entry(Entry::new(crate::entry::Kind::Link, vec![byte])));
        let (source, telling) = (Source::Node, Telling::Live);
        News { source, peer: None, terms: None, position, time_ms: 0, telling, items: items.into_iter().collect() }
    }

    #[test]
    fn steps_are_told_in_the_order_of_the_journal_whoever_is_faster() {
        let kept = Arc::new(Kept::default());
        let folds = Folds::new(vec![Arc::clone(&kept) as Arc<dyn Fold>], Ticket(6));
        let step = |ticket, said| {
            let (written, answer) = oneshot::channel();
            folds.tell_step(Ticket(ticket), news(said, Some(Position { frame: ticket, index: 0 })), Some(written));
            answer
        };
        let told = || kept.0.lock().unwrap().clone();
        folds.tell(news(Some(0), None));
        let mut ninth = step(9, Some(9));
        folds.tell(news(Some(10), None));
        assert_eq!(told(), [0], "nothing that came before it waits");
        let mut seventh = step(7, Some(7));
        assert_eq!(told(), [0, 7]);
        assert_eq!(seventh.try_recv().unwrap(), Position { frame: 7, index: 0 });
        assert!(ninth.try_recv().is_err(), "who wrote is answered when it is told");
        let _nothing = step(8, None);
        assert_eq!(told(), [0, 7, 9, 10], "a step without news lets the others go");
        assert_eq!(ninth.try_recv().unwrap(), Position { frame: 9, index: 0 });
        folds.tell(news(Some(11), None));
        assert_eq!(told().last(), Some(&11));
    }

    #[test]
    fn news_of_one_source_is_new_once_and_in_order() {
        let mut applied = Applied::default();
        let (a, b) = (Source::Channel(ChannelId([1; 32])), Source::Channel(ChannelId([2; 32])));
        let at = |frame, index| Some(Position { frame, index });
        assert!(applied.take(a, at(7, 1)));
        assert!(!applied.take(a, at(7, 1)));
        assert!(!applied.take(a, at(6, 9)));
        assert!(applied.take(b, at(6, 9)));
        assert!(applied.take(a, at(7, 2)));
        assert!(applied.take(a, None) && applied.take(a, None));
        applied.forget(ChannelId([1; 32]));
        assert!(applied.take(a, at(1, 0)));
    }
}
