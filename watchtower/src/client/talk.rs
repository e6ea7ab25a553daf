//! What is said between a client and its own tower: secrets there, receipts and preimages back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bitcoin::OutPoint;
use millrace_wire::{ChannelId, CommitmentNumber};
use tokio::sync::mpsc;

use super::line::{Conversation, Due, Ended, Line, MESSAGES_MAX, REST};
use super::{Event, Shared};
use crate::message::{About, Message, Reason};
use crate::receipt::Receipt;
use crate::tower::Held;

/// Talks to the tower for ever.
pub(super) async fn run(shared: Arc<Shared>, events: mpsc::Sender<Event>) {
    let Shared { config, work, link, traffic, .. } = &*shared;
    Line { config, work, link, traffic }.run(&Talk { shared: &shared, events: &events }).await;
}

struct Talk<'a> {
    shared: &'a Shared,
    events: &'a mpsc::Sender<Event>,
}

impl Conversation for Talk<'_> {
    fn begin(&self) {
        self.shared.book.begin();
    }

    fn question(&self) -> Option<Message> {
        None
    }

    fn on_account(&self, message: Message) -> Result<bool, Ended> {
        match message {
            Message::Channels { is_last, held } => {
                held.iter().try_for_each(|held| self.on_held(held))?;
                Ok(is_last)
            }
            other => self.on_message(other).map(|()| false),
        }
    }

    fn due(&self) -> Due {
        self.shared.book.tell_caller(self.events);
        let config = &self.shared.config;
        self.shared.book.due(Instant::now(), config.linger, config.batch_max, MESSAGES_MAX)
    }

    fn on_put(&self, message: &Message, bytes: usize) {
        let counters = &self.shared.counters;
        if matches!(message, Message::Update { .. } | Message::Batch { .. }) {
            counters.messages.fetch_add(1, Ordering::Relaxed);
            counters.payload_bytes.fetch_add(bytes as u64 - 2, Ordering::Relaxed);
        }
    }

    fn on_message(&self, message: Message) -> Result<(), Ended> {
        let book = &self.shared.book;
        match message {
            Message::Ack { handle, next, time_s, signature } => {
                let tower = &self.shared.config.tower;
                let receipt = |funding_outpoint| Receipt { funding_outpoint, next, time_s, signature };
                let Some(updates) = book.on_ack(handle, receipt, |receipt| receipt.is_by(tower)) else {
                    return Err(Ended::Said(format!("a receipt for {handle} that is none")));
                };
                self.shared.counters.updates.fetch_add(updates, Ordering::Relaxed);
            }
            Message::Channel(held) => self.on_held(&held)?,
            Message::Refused { about, reason, next, text } => self.on_refused(about, reason, next, &text),
            Message::Preimages { handle, first, preimages } => {
                let count = first.saturating_add(u32::try_from(preimages.len()).unwrap_or(u32::MAX));
                book.on_preimages(handle, preimages, count);
            }
            Message::Forgotten(handle) => book.on_forgotten(handle),
            Message::Error(text) => return Err(Ended::Said(format!("the tower says: {text}"))),
            Message::Ping | Message::Pong => {}
            other @ (Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Channels { .. }
            | Message::Register(_)
            | Message::Update { .. }
            | Message::Batch { .. }
            | Message::PreimagesTaken { .. }
            | Message::Forget(_)
            | Message::ListGroups
            | Message::Groups { .. }
            | Message::Blob { .. }
            | Message::BlobAck { .. }
            | Message::AskReceipt(_)
            | Message::Release(_)
            | Message::Released(_)) => {
                return Err(Ended::Said(format!("a message of type {} is not for a client", other.kind())));
            }
        }
        Ok(())
    }
}

impl Talk<'_> {
    fn on_held(&self, held: &Held) -> Result<(), Ended> {
        let is_taken = self.shared.book.on_held(held);
        is_taken.then_some(()).ok_or_else(|| Ended::Said("the tower speaks of too many channels".to_owned()))
    }

    fn on_refused(&self, about: About, reason: Reason, next: CommitmentNumber, text: &str) {
        let channel_id = match about {
            About::Channel(handle) => self.shared.book.channel_of(handle),
            About::Registration(outpoint) => Some(channel_of(outpoint)),
            About::Group(_) => None,
        };
        let Some(channel_id) = channel_id else { return };
        let next = (reason == Reason::Gap).then_some(next);
        tracing::warn!(%channel_id, text, "the watchtower refuses");
        self.shared.book.on_refused(channel_id, text, next, REST);
    }
}

fn channel_of(funding_outpoint: OutPoint) -> ChannelId {
    ChannelId::v1_from_funding(funding_outpoint)
}
