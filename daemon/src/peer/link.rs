//! The way from the channels to a connection.
//!
//! Putting a message in never waits, since a shard thread must not. What bounds the queue: while more than
//! [`QUEUED_BYTES_SLOW`] wait for the socket nothing more is read from that peer, so that it cannot make us answer; and
//! a connection whose queue has grown beyond [`QUEUED_BYTES_MAX`] all the same is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use millrace_wire::Message;
use tokio::sync::{Notify, mpsc};

/// Above this, the peer is not read from.
pub(crate) const QUEUED_BYTES_SLOW: usize = 1 << 20;
/// Above this, the connection is given up: the peer does not read. A full round of 483 HTLCs with their onions has
/// 0.7 MB, and there may be some channels.
pub(crate) const QUEUED_BYTES_MAX: usize = 64 << 20;

/// What the writer of a connection is told.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// To be sent.
    Message(Box<Message>),
    /// A whole message, to be sent as it is: gossip is relayed byte for byte.
    Bytes(Arc<[u8]>),
    /// Nothing more is to be sent, and the connection closed.
    Close(String),
}

impl Outgoing {
    /// What it counts for in the queue.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Message(message) => weight(message),
            Self::Bytes(bytes) => 100 + bytes.len(),
            Self::Close(_) => 0,
        }
    }
}

/// One connection, for whoever sends on it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    outgoing: mpsc::UnboundedSender<Outgoing>,
    queued: Arc<Queued>,
    /// It has been given up: what is sent now would only fill memory.
    is_given_up: Arc<AtomicBool>,
}

/// How much waits for the socket.
#[derive(Debug, Default)]
pub(crate) struct Queued {
    bytes: AtomicUsize,
    sunk: Notify,
}

impl Queued {
    /// Bytes that wait.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// So many were written.
    pub(crate) fn written(&self, bytes: usize) {
        let before = self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        if before > QUEUED_BYTES_SLOW && before - bytes <= QUEUED_BYTES_SLOW {
            self.sunk.notify_waiters();
        }
    }

    /// Waits until the peer may be read from.
    pub(crate) async fn sink(&self) {
        loop {
            let sunk = self.sunk.notified();
            if self.bytes() <= QUEUED_BYTES_SLOW {
                return;
            }
            sunk.await;
        }
    }
}

impl Link {
    /// A link, and what its connection writes.
    pub(crate) fn new() -> (Self, mpsc::UnboundedReceiver<Outgoing>, Arc<Queued>) {
        let (outgoing, receiver) = mpsc::unbounded_channel();
        let queued = Arc::new(Queued::default());
        let link = Self { outgoing, queued: Arc::clone(&queued), is_given_up: Arc::default() };
        (link, receiver, queued)
    }

    /// Sends a message; lost if the connection is gone.
    pub(crate) fn send(&self, message: Box<Message>) {
        self.put(Outgoing::Message(message));
    }

    /// Sends a message that is bytes already, its type included; lost if the connection is gone.
    pub(crate) fn send_bytes(&self, bytes: Arc<[u8]>) {
        self.put(Outgoing::Bytes(bytes));
    }

    /// Bytes that wait for the socket.
    pub(crate) fn queued_bytes(&self) -> usize {
        self.queued.bytes()
    }

    /// The connection is gone: whatever is sent is lost.
    pub(crate) fn is_closed(&self) -> bool {
        self.outgoing.is_closed()
    }

    fn put(&self, outgoing: Outgoing) {
        let bytes = outgoing.weight();
        let queued = self.queued.bytes() + bytes;
        if queued > QUEUED_BYTES_MAX {
            if !self.is_given_up.swap(true, Ordering::Relaxed) {
                self.close(format!("{queued} bytes wait for a peer that does not read"));
            }
            return;
        }
        if self.is_given_up.load(Ordering::Relaxed) {
            return;
        }
        self.queued.bytes.fetch_add(bytes, Ordering::Relaxed);
        // A connection that is gone needs nothing.
        let _gone = self.outgoing.send(outgoing);
    }

    /// Closes the connection, after what was sent before.
    pub(crate) fn close(&self, reason: String) {
        let _gone = self.outgoing.send(Outgoing::Close(reason));
    }
}

/// What a message counts for in a queue: about its length, and never nothing.
pub(crate) fn weight(message: &Message) -> usize {
    match message {
        Message::UpdateAddHtlc(_) => 1_500,
        Message::CommitmentSigned(m) => 200 + 64 * m.htlc_signatures.len(),
        Message::UpdateFailHtlc(m) => 200 + m.reason.len(),
        Message::Custom(m) => 100 + m.bytes.len(),
        Message::Error(m) => 100 + m.data.len(),
        Message::Warning(m) => 100 + m.data.len(),
        Message::Ping(m) => 100 + usize::from(m.ignored_len),
        Message::Pong(m) => 100 + usize::from(m.ignored_len),
        Message::ReplyChannelRange(m) => 200 + 24 * m.short_channel_ids.len(),
        Message::QueryShortChannelIds(m) => 200 + 9 * m.short_channel_ids.len(),
        Message::ChannelAnnouncement(m) => 100 + m.bytes().len(),
        Message::NodeAnnouncement(m) => 100 + m.bytes().len(),
        Message::ChannelUpdate(m) => 100 + m.bytes().len(),
        _ => 500,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_wire::Pong;

    use super::*;

    fn large() -> Box<Message> {
        Box::new(Message::Pong(Pong { ignored_len: u16::MAX }))
    }

    #[test]
    fn a_peer_that_does_not_read_is_given_up_and_fills_no_memory() {
        let (link, mut outgoing, queued) = Link::new();
        for _ in 0..10_000 {
            link.send(large());
        }
        assert!(queued.bytes() <= QUEUED_BYTES_MAX);
        outgoing.close();
        let mut messages = 0;
        let mut closes = 0;
        while let Some(out) = outgoing.blocking_recv() {
            match out {
                Outgoing::Message(_) | Outgoing::Bytes(_) => messages += 1,
                Outgoing::Close(why) => {
                    closes += 1;
                    assert!(why.contains("does not read"));
                }
            }
        }
        assert_eq!((messages, closes), (QUEUED_BYTES_MAX / weight(&large()), 1));
    }

    #[tokio::test]
    async fn reading_goes_on_once_the_queue_has_sunk() {
        let (link, mut outgoing, queued) = Link::new();
        while queued.bytes() <= QUEUED_BYTES_SLOW {
            link.send(large());
        }
        let waiting = tokio::spawn({
            let queued = Arc::clone(&queued);
            async move { queued.sink().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let Some(Outgoing::Message(message)) = outgoing.recv().await else { panic!("nothing was sent") };
        queued.written(weight(&message));
        waiting.await.unwrap();
    }
}
