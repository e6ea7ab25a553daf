//! What is said between a client and somebody else's tower: blobs there, receipts back.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Shared;
use crate::client::line::{Conversation, Due, Ended, Line, MESSAGES_MAX, REST};
use crate::message::{About, Message, Reason};
use crate::receipt::BlobReceipt;

/// Talks to the tower for ever.
pub(super) async fn run(shared: Arc<Shared>) {
    let Shared { config, work, link, traffic, .. } = &*shared;
    Line { config, work, link, traffic }.run(&Talk { shared: &shared }).await;
}

struct Talk<'a> {
    shared: &'a Shared,
}

impl Conversation for Talk<'_> {
    fn begin(&self) {
        self.shared.queue.begin();
    }

    fn question(&self) -> Option<Message> {
        Some(Message::ListGroups)
    }

    fn on_account(&self, message: Message) -> Result<bool, Ended> {
        match message {
            Message::Groups { is_last, held, .. } => {
                if !self.shared.queue.on_account(&held) {
                    return Err(Ended::Said("the tower speaks of too many groups".to_owned()));
                }
                if is_last {
                    self.shared.queue.settle_account();
                }
                Ok(is_last)
            }
            other => self.on_message(other).map(|()| false),
        }
    }

    fn on_message(&self, message: Message) -> Result<(), Ended> {
        let queue = &self.shared.queue;
        match message {
            Message::BlobAck { group, next, time_s, signature } => {
                let receipt = BlobReceipt { group, next, time_s, signature };
                let count = |blobs| _ = self.shared.counters.updates.fetch_add(blobs, Ordering::Relaxed);
                if !receipt.is_by(&self.shared.config.tower) || !queue.on_ack(receipt, count) {
                    return Err(Ended::Said(format!("a receipt for {group} that is none")));
                }
            }
            Message::Refused { about: About::Group(group), reason, next, text } => {
                tracing::warn!(%group, text, "the watchtower refuses");
                let next = (reason == Reason::Gap).then_some(next.0);
                match reason {
                    Reason::UnknownGroup => queue.on_released(group),
                    _ => queue.on_refused(group, &text, next, REST),
                }
            }
            Message::Released(group) => queue.on_released(group),
            Message::Error(text) => return Err(Ended::Said(format!("the tower says: {text}"))),
            Message::Ping | Message::Pong => {}
            // The same key may have channels watched; they are another client's business.
            Message::Channels { .. }
            | Message::Channel(_)
            | Message::Ack { .. }
            | Message::Refused { about: About::Channel(_) | About::Registration(_), .. }
            | Message::Preimages { .. }
            | Message::Forgotten(_) => {}
            other @ (Message::Hello { .. }
            | Message::Welcome { .. }
            | Message::Register(_)
            | Message::Update { .. }
            | Message::Batch { .. }
            | Message::PreimagesTaken { .. }
            | Message::Forget(_)
            | Message::ListGroups
            | Message::Groups { .. }
            | Message::Blob { .. }
            | Message::AskReceipt(_)
            | Message::Release(_)) => {
                return Err(Ended::Said(format!("a message of type {} is not for a client", other.kind())));
            }
        }
        Ok(())
    }

    fn due(&self) -> Due {
        self.shared.queue.due(Instant::now(), MESSAGES_MAX)
    }

    fn on_put(&self, message: &Message, bytes: usize) {
        let counters = &self.shared.counters;
        if matches!(message, Message::Blob { .. }) {
            counters.messages.fetch_add(1, Ordering::Relaxed);
            counters.payload_bytes.fetch_add(bytes as u64 - 2, Ordering::Relaxed);
        }
    }
}
