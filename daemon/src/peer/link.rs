//! The way from the channels to a connection.
//!
//! Putting a message in never waits, since a shard thread must not. What bounds the queue: while more than
//! [`QUEUED_BYTES_SLOW`] wait for the socket nothing more is read from that peer, so that it cannot make us answer; and
//! a connection whose queue has grown beyond [`QUEUED_BYTES_MAX`] all the same is given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
    /// Nothing more is to be sent, and the connection closed.
    Close(String),
}

/// One connection, for whoever sends on it.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    outgoing: mpsc::UnboundedSender<Outgoing>,
    queued: Arc<Queued>,
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
        (Self { outgoing, queued: Arc::clone(&queued) }, receiver, queued)
    }

    /// Sends a message; lost if the connection is gone.
    pub(crate) fn send(&self, message: Box<Message>) {
        let bytes = weight(&message);
        let queued = self.queued.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if queued > QUEUED_BYTES_MAX {
            self.close(format!("{queued} bytes wait for a peer that does not read"));
        }
        // A connection that is gone needs nothing.
        let _gone = self.outgoing.send(Outgoing::Message(message));
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
        _ => 500,
    }
}
