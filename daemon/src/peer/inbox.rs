//! What becomes of a message that came in: it goes to its channel's shard or to gossip, is answered here, or is dropped.
//!
//! The connection waits (and with it the peer) while too many bytes of its messages are unhandled, while too much waits
//! for its socket, and while the disk is behind; on a disk whose last room is being used it ends. No message makes more
//! than one, and those about channels that do not exist are answered only so often.

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_journal::{QUEUED_BYTES_BUSY, Space};
use millrace_wire::message::OpenChannel;
use millrace_wire::{
    ChannelId, ChannelUpdate, DecodeError, Decoded, Error, Message, Ping, PublicKey, ShortChannelId, Warning,
};
use tokio::sync::Semaphore;

use super::link::{Link, Queued, weight};
use crate::announce::Announcer;
use crate::channels::Registry;
use crate::channels::input::{Epoch, Input, PeerMessage};
use crate::channels::openings::turn_down;
use crate::gossip::Seat;

/// Bytes of one peer's messages that may be unhandled: more than a full round of 483 adds, so that a round never waits.
const UNHANDLED_BYTES_MAX: usize = 4 << 20;
/// How often the disk is asked whether it has caught up.
const DISK_PAUSE: Duration = Duration::from_millis(2);
/// Answers about unknown channels that may be given at once; one more each second.
const ANSWERS_MAX: f64 = 32.0;

/// Why a connection must end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct MustEnd(pub(super) String);

/// What handles the messages of one connection.
pub(super) struct Inbox {
    pub(super) registry: Registry,
    pub(super) peer: PublicKey,
    pub(super) epoch: Epoch,
    pub(super) link: Link,
    announcer: Option<Arc<Announcer>>,
    /// Where gossip goes; without one it is passed over.
    seat: Option<Seat>,
    queued: Arc<Queued>,
    credits: Arc<Semaphore>,
    answers: f64,
    answered: Instant,
}

impl Inbox {
    pub(super) fn new(
        registry: Registry,
        announcer: Option<Arc<Announcer>>,
        peer: PublicKey,
        epoch: Epoch,
        link: Link,
        seat: Option<Seat>,
        queued: Arc<Queued>,
    ) -> Self {
        let credits = Arc::new(Semaphore::new(UNHANDLED_BYTES_MAX));
        let (answers, answered) = (ANSWERS_MAX, Instant::now());
        Self { registry, peer, epoch, link, announcer, seat, queued, credits, answers, answered }
    }

    /// Waits until the peer may be read from.
    pub(super) async fn may_read(&self) -> Result<(), MustEnd> {
        self.queued.sink().await;
        while self.registry.log().queued_bytes() > QUEUED_BYTES_BUSY {
            tokio::time::sleep(DISK_PAUSE).await;
        }
        match self.registry.log().space() {
            // Whatever it says may have to be written down. Nothing of it is lost: it says it again on a new connection.
            Space::Last { reason } => Err(MustEnd(format!("the disk is full: {reason}"))),
            Space::Enough | Space::Low { .. } => Ok(()),
        }
    }

    /// Handles one message.
    pub(super) async fn on_bytes(&mut self, bytes: &[u8]) -> Result<(), MustEnd> {
        match Message::decode(bytes) {
            Ok(Decoded::Message(message)) => self.on_message(message).await,
            Ok(Decoded::Ignored { .. }) => Ok(()),
            Err(error) => self.on_undecodable(&error),
        }
    }

    /// What cannot be read is not passed over in silence, and changes nothing (gossip apart: no channel depends on it).
    fn on_undecodable(&mut self, error: &DecodeError) -> Result<(), MustEnd> {
        if error.is_gossip() {
            // Whoever asks, in the encoding that BOLT 7 has given up for instance, would wait for an answer.
            if error.is_gossip_question() && self.may_answer() {
                self.send(Message::Warning(Warning::new(ChannelId::ALL, &error.to_string())));
            }
            return Ok(());
        }
        self.send(Message::Warning(Warning::new(ChannelId::ALL, &error.to_string())));
        Err(MustEnd(error.to_string()))
    }

    async fn on_message(&mut self, message: Message) -> Result<(), MustEnd> {
        match message {
            Message::Ping(ping) => self.on_ping(&ping),
            // That something came is what counts; see the writer.
            Message::Pong(_) => {}
            Message::Init(_) => {
                self.send(Message::Warning(Warning::new(ChannelId::ALL, "init was said already")));
            }
            Message::Error(error) if error.is_for_all() => self.on_error_for_all(&error).await,
            Message::Warning(warning) if warning.is_for_all() => {
                tracing::info!(peer = %self.peer, text = warning.text(), "the peer warns");
            }
            Message::OpenChannel(open) => self.on_open_channel(open).await,
            // Never waits: what follows it on this connection may be an HTLC.
            gossip @ (Message::ChannelAnnouncement(_)
            | Message::NodeAnnouncement(_)
            | Message::ChannelUpdate(_)
            | Message::QueryShortChannelIds(_)
            | Message::ReplyShortChannelIdsEnd(_)
            | Message::QueryChannelRange(_)
            | Message::ReplyChannelRange(_)
            | Message::GossipTimestampFilter(_)) => {
                if let Message::ChannelUpdate(update) = &gossip {
                    self.on_channel_update(update);
                }
                if let Some(seat) = &self.seat {
                    seat.put(gossip);
                }
            }
            // Without a channel: onion messages, peer storage. Not yet.
            other => {
                if let Some(id) = other.channel_id() {
                    self.on_channel_message(id, other).await;
                }
            }
        }
        Ok(())
    }

    /// On what terms the peer forwards over a channel with us.
    fn on_channel_update(&self, update: &ChannelUpdate) {
        let scid = ShortChannelId(update.parsed().contents.short_channel_id);
        if let Some(announcer) = &self.announcer
            && self.registry.channel_by_scid(scid).is_some()
        {
            announcer.on_update(self.peer, Box::new(update.clone()));
        }
    }

    /// BOLT 1: 65532 and above are ignored.
    fn on_ping(&self, ping: &Ping) {
        if let Some(pong) = ping.pong() {
            self.send(Message::Pong(pong));
        }
    }

    /// BOLT 1: the channel id zero means every channel with the sender.
    async fn on_error_for_all(&mut self, error: &Error) {
        tracing::warn!(peer = %self.peer, text = error.text(), "the peer fails all its channels");
        for snapshot in self.registry.snapshots_with(&self.peer) {
            let message = Message::Error(Error { channel_id: snapshot.channel_id, data: error.data.clone() });
            self.on_channel_message(snapshot.channel_id, message).await;
        }
    }

    /// Counted before anything of it is looked at.
    async fn on_open_channel(&mut self, open: Box<OpenChannel>) {
        let id = open.temporary_channel_id;
        let shard = self.registry.shard_of(id);
        let directory = self.registry.directory();
        let begun = directory.check_promised(&self.peer).and_then(|()| directory.begin_opening(self.peer, id, shard));
        match begun {
            Ok(()) => self.put(shard, id, Message::OpenChannel(open)).await,
            Err(why) if self.may_answer() => self.send(turn_down(id, &why)),
            Err(_) => {}
        }
    }

    async fn on_channel_message(&mut self, id: ChannelId, message: Message) {
        match self.registry.directory().shard_for(&self.peer, id) {
            Some(shard) => self.put(shard, id, message).await,
            None => self.on_unknown_channel(id, &message),
        }
    }

    /// BOLT 2: whoever speaks of a channel that does not exist is told; an `error` is never answered.
    fn on_unknown_channel(&mut self, id: ChannelId, message: &Message) {
        let wants_answer = !matches!(message, Message::Error(_) | Message::Warning(_));
        if wants_answer && !id.is_all() && self.may_answer() {
            self.send(Message::Error(Error::new(id, &format!("{}: no such channel here", message.name()))));
        }
    }

    async fn put(&self, shard: usize, channel_id: ChannelId, message: Message) {
        let bytes = u32::try_from(weight(&message).min(UNHANDLED_BYTES_MAX)).expect("a few megabytes");
        let credit = Arc::clone(&self.credits).acquire_many_owned(bytes).await;
        let credit = Some(credit.expect("the semaphore is never closed"));
        let (peer, epoch) = (self.peer, self.epoch);
        self.registry.put(shard, Input::Message(PeerMessage { peer, epoch, channel_id, message, credit }));
    }

    fn send(&self, message: Message) {
        self.link.send(Box::new(message));
    }

    /// Takes one of the answers about unknown channels.
    fn may_answer(&mut self) -> bool {
        let now = Instant::now();
        let more = now.duration_since(self.answered).as_secs_f64();
        self.answers = (self.answers + more).min(ANSWERS_MAX);
        self.answered = now;
        let may = self.answers >= 1.0;
        if may {
            self.answers -= 1.0;
        }
        may
    }
}
