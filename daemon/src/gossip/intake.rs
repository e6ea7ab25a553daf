//! From a peer's inbox to gossip: what was said waits here, bounded by bytes, and whoever puts it in never waits.
//!
//! When a peer's place is full, or that of all peers together, what comes is dropped and counted. The alternative, not to
//! read on, would hold up the HTLCs on the same connection. What is lost comes again: from other peers, and when the peer is
//! asked the next time. A peer that was asked for something has room for a whole answer.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use millrace_wire::{
    Feature, Features, GossipTimestampFilter, Message, PublicKey, ReplyChannelRange, ReplyShortChannelIdsEnd,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::answering::{QUESTIONS_MAX, Question, answer};
use super::listening::listen;
use super::verify::Announcement;
use super::{Gossip, Inner, LOCK};
use crate::metrics;
use crate::peer::link::Link;

/// Bytes of a peer that was asked for nothing: what is new in the network in some minutes.
const UNASKED_BYTES_MAX: usize = 256 << 10;
/// Bytes of one that was: the answer for a thousand channels, which is what is asked for at once, counts for five megabytes.
const ASKED_BYTES_MAX: usize = 8 << 20;
/// Bytes of all peers together.
const ALL_BYTES_MAX: usize = 96 << 20;
/// What a message has in memory beside its bytes, about.
const OVERHEAD_BYTES: usize = 800;

/// What a peer said.
pub(super) enum Said {
    Announcement(Announcement),
    Range(ReplyChannelRange),
    End(ReplyShortChannelIdsEnd),
    /// Not by the peer: it is to be asked for the graph. Told when that is over, and whether to the end.
    Ask(oneshot::Sender<bool>),
}

/// What a peer said, and the room that it has.
pub(super) struct Heard {
    pub(super) said: Said,
    pub(super) room: Room,
}

/// Room in the queue, given back when it is dropped.
pub(super) struct Room {
    inner: Arc<Inner>,
    seated: Arc<Seated>,
    bytes: usize,
}

impl Drop for Room {
    fn drop(&mut self) {
        self.seated.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
        self.inner.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// One connection, as gossip knows it.
pub(super) struct Seated {
    pub(super) id: u64,
    pub(super) peer: PublicKey,
    pub(super) link: Link,
    /// It answers questions.
    pub(super) has_queries: bool,
    /// When it came.
    pub(super) since: Instant,
    /// It was asked for something.
    pub(super) is_asked: AtomicBool,
    /// It was asked for what is new.
    pub(super) flows: AtomicBool,
    /// When it was last asked for the whole graph.
    pub(super) asked_at: Mutex<Option<Instant>>,
    /// It is being asked for it.
    pub(super) is_asking: AtomicBool,
    /// Something of what it said since was dropped.
    pub(super) has_dropped: AtomicBool,
    filter: Mutex<Option<GossipTimestampFilter>>,
    waiting: AtomicUsize,
    heard: mpsc::UnboundedSender<Heard>,
}

impl Seated {
    /// What it wants to be passed on.
    pub(super) fn filter(&self) -> Option<GossipTimestampFilter> {
        *self.filter.lock().expect(LOCK)
    }

    /// Puts something in, if there is room.
    pub(super) fn put(self: &Arc<Self>, inner: &Arc<Inner>, said: Said, bytes: usize) {
        let max = if self.is_asked.load(Ordering::Relaxed) { ASKED_BYTES_MAX } else { UNASKED_BYTES_MAX };
        let bytes = bytes + OVERHEAD_BYTES;
        let mine = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = inner.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let heard = Heard { said, room: Room { inner: Arc::clone(inner), seated: Arc::clone(self), bytes } };
        if mine > max || all > ALL_BYTES_MAX {
            self.has_dropped.store(true, Ordering::Relaxed);
            return count("dropped");
        }
        // Fails only when the connection has ended.
        let _gone = self.heard.send(heard);
    }
}

/// Counts a message by what became of it.
pub(super) fn count(outcome: &'static str) {
    ::metrics::counter!(metrics::GOSSIP_MESSAGES, "outcome" => outcome).increment(1);
}

/// The place of one connection, for its inbox. Gossip with the peer ends when it is dropped.
pub(crate) struct Seat {
    inner: Arc<Inner>,
    seated: Arc<Seated>,
    questions: mpsc::Sender<Question>,
    tasks: [JoinHandle<()>; 2],
}

impl Gossip {
    /// A connection has come about.
    pub(crate) fn connected(&self, peer: PublicKey, theirs: &Features, link: Link) -> Seat {
        let inner = Arc::clone(&self.inner);
        let (heard, hearing) = mpsc::unbounded_channel();
        let (questions, asked) = mpsc::channel(QUESTIONS_MAX);
        let seated = Arc::new(Seated {
            id: inner.seats_made.fetch_add(1, Ordering::Relaxed),
            peer,
            link,
            has_queries: theirs.supports(Feature::GossipQueries),
            since: Instant::now(),
            is_asked: AtomicBool::new(false),
            flows: AtomicBool::new(false),
            asked_at: Mutex::new(None),
            is_asking: AtomicBool::new(false),
            has_dropped: AtomicBool::new(false),
            filter: Mutex::new(None),
            waiting: AtomicUsize::new(0),
            heard,
        });
        let tasks = [
            tokio::spawn(listen(Arc::clone(&inner), Arc::clone(&seated), hearing)),
            tokio::spawn(answer(Arc::clone(&inner), Arc::clone(&seated), asked)),
        ];
        inner.seats().insert(seated.id, Arc::clone(&seated));
        inner.seats_changed.notify_one();
        Seat { inner, seated, questions, tasks }
    }
}

impl Seat {
    /// Takes a message of gossip, and never waits. Whatever else is left alone.
    pub(crate) fn put(&self, message: Message) {
        let (said, bytes) = match message {
            Message::ChannelAnnouncement(m) => {
                let bytes = m.bytes().len();
                (Said::Announcement(Announcement::Channel(m)), bytes)
            }
            Message::NodeAnnouncement(m) => {
                let bytes = m.bytes().len();
                (Said::Announcement(Announcement::Node(m)), bytes)
            }
            Message::ChannelUpdate(m) => {
                let bytes = m.bytes().len();
                (Said::Announcement(Announcement::Update(m)), bytes)
            }
            Message::ReplyChannelRange(reply) => {
                let bytes = 24 * reply.short_channel_ids.len();
                (Said::Range(reply), bytes)
            }
            Message::ReplyShortChannelIdsEnd(end) => (Said::End(end), 0),
            Message::QueryChannelRange(query) => return self.ask(Question::Range(query)),
            Message::QueryShortChannelIds(query) => return self.ask(Question::Ids(query)),
            Message::GossipTimestampFilter(filter) => return self.set_filter(filter),
            _ => return,
        };
        self.seated.put(&self.inner, said, bytes);
    }

    /// BOLT 7: a question is to be asked when the one before was answered. One that asks more is not answered more.
    fn ask(&self, question: Question) {
        if self.questions.try_send(question).is_err() {
            count("unanswered");
        }
    }

    fn set_filter(&self, filter: GossipTimestampFilter) {
        let is_ours = filter.chain_hash == self.inner.chain_hash;
        *self.seated.filter.lock().expect(LOCK) = is_ours.then_some(filter);
        if is_ours {
            self.ask(Question::Backlog(filter));
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.inner.seats().remove(&self.seated.id);
        self.inner.seats_changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use millrace_wire::{BlockHeight, ChainHash, ShortChannelId};

    use super::super::made_up::{Outputs, connect, start};
    use super::*;

    const IDS: usize = 1_000;
    /// What [`message`] counts for.
    const WEIGHT: usize = 24 * IDS + OVERHEAD_BYTES;

    fn message() -> Message {
        Message::ReplyChannelRange(ReplyChannelRange {
            chain_hash: ChainHash::REGTEST,
            first_block: BlockHeight(0),
            number_of_blocks: 1,
            sync_complete: false,
            short_channel_ids: vec![ShortChannelId(1); IDS],
            timestamps: None,
            checksums: None,
        })
    }

    /// Says more than there is room for. Nobody handles it before the test waits: it has the runtime's only thread.
    fn flood(seat: &Seat) {
        (0..=ASKED_BYTES_MAX / WEIGHT).for_each(|_| seat.put(message()));
    }

    fn waiting(seat: &Seat) -> usize {
        seat.seated.waiting.load(Ordering::Relaxed)
    }

    /// What fits, of what [`message`] makes.
    const fn full(bytes_max: usize) -> usize {
        bytes_max / WEIGHT * WEIGHT
    }

    async fn wait_until_handled(inner: &Inner) {
        let begun = Instant::now();
        while inner.waiting.load(Ordering::Relaxed) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(30), "nobody handles it");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn one_peer_has_its_own_room_and_gets_it_back() {
        let gossip = start(Outputs::none().0);
        let ((seat, _out), (other, _others_out)) = (connect(&gossip, 1), connect(&gossip, 2));
        flood(&seat);
        assert_eq!(waiting(&seat), full(UNASKED_BYTES_MAX));
        assert!(seat.seated.has_dropped.load(Ordering::Relaxed));
        other.put(message());
        assert_eq!(waiting(&other), WEIGHT, "nobody else has less for it");
        assert!(!other.seated.has_dropped.load(Ordering::Relaxed));
        // Asked, it has room for an answer.
        gossip.inner.ask_for_news(&seat.seated, true);
        flood(&seat);
        assert_eq!(waiting(&seat), full(ASKED_BYTES_MAX));
        wait_until_handled(&gossip.inner).await;
        seat.put(message());
        assert_eq!(waiting(&seat), WEIGHT);
        gossip.stop().await;
    }

    #[tokio::test]
    async fn all_peers_together_have_room_for_so_much() {
        let gossip = start(Outputs::none().0);
        let seats: Vec<_> = (1..=14).map(|number| connect(&gossip, number)).collect();
        for (seat, _out) in &seats {
            gossip.inner.ask_for_news(&seat.seated, true);
            flood(seat);
        }
        let all = || gossip.inner.waiting.load(Ordering::Relaxed);
        assert_eq!(all(), full(ALL_BYTES_MAX));
        let rooms: Vec<usize> = seats.iter().map(|(seat, _out)| waiting(seat)).collect();
        assert_eq!((rooms[0], rooms[11], rooms[13]), (full(ASKED_BYTES_MAX), full(ASKED_BYTES_MAX), 0));
        // Connections that end leave theirs behind.
        drop(seats);
        wait_until_handled(&gossip.inner).await;
        gossip.stop().await;
    }
}
