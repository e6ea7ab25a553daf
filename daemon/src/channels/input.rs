//! Everything that a shard thread is told.

use std::sync::Arc;

use bitcoin::ScriptBuf;
use millrace_channel::phase::on_chain::complete::CompleteCommitment;
use millrace_channel::{ChainEvent, Command};
use millrace_journal::Position;
use millrace_wire::{ChannelId, Features, Message, PublicKey};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::order::{OpenOrder, ProgressSender, Reply};
use super::snapshot::ChannelSnapshot;
use super::wallet_seam::{Funded, NoFunding};
use crate::entry::Entry;
use crate::peer::link::Link;

/// One input of a shard.
#[derive(Debug)]
pub(crate) enum Input {
    /// `init` was exchanged on a new connection. Replaces an older one with the same peer.
    LinkUp(LinkUp),
    /// A connection is gone.
    LinkDown {
        /// Which.
        peer: PublicKey,
        /// Which of its connections.
        epoch: Epoch,
    },
    /// A message for one channel, or for one opening.
    Message(PeerMessage),
    /// Opens a channel.
    Open {
        /// What is wanted.
        order: OpenOrder,
        /// Its temporary id, drawn by the registry.
        temporary_channel_id: ChannelId,
        /// Who wants to know how it goes on.
        progress: ProgressSender,
    },
    /// The wallet has answered.
    Funded {
        /// The peer of the opening.
        peer: PublicKey,
        /// Its temporary id.
        temporary_channel_id: ChannelId,
        /// The answer.
        funded: Funded,
    },
    /// The wallet has answered whether it can keep back what closing one more channel takes.
    Reserve {
        /// The peer of the opening.
        peer: PublicKey,
        /// Its temporary id.
        temporary_channel_id: ChannelId,
        /// Why not.
        answer: Result<(), NoFunding>,
    },
    /// An order for a channel.
    Command {
        /// Which.
        channel_id: ChannelId,
        /// The order.
        command: Command,
        /// What must be durable with it, and before anything of it leaves.
        entries: Vec<Entry>,
        /// Who wants to know.
        reply: Option<Reply>,
        /// Counts the channel's waiting orders; dropped when this one is handled.
        #[allow(dead_code, reason = "it works by being dropped")]
        waiting: Waiting,
    },
    /// Entries of an owner.
    Write {
        /// What to write.
        entries: Vec<Entry>,
        /// Told the position once it is durable.
        reply: oneshot::Sender<Position>,
    },
    /// News of the chain, for every channel or for some.
    Chain {
        /// In order.
        news: Vec<ChainNews>,
        /// Dropped once all of it is durable and handed on.
        done: Done,
    },
    /// What is to be shown of a channel, as it is now.
    Snapshot {
        /// Which.
        channel_id: ChannelId,
        /// Answered once it is durable.
        reply: oneshot::Sender<Arc<ChannelSnapshot>>,
    },
    /// Our newest commitment in a channel, complete. For networks on which nothing is at stake.
    Commitment {
        /// Which channel.
        channel_id: ChannelId,
        /// Answered once that commitment is durable; nothing if the channel has none to give.
        reply: oneshot::Sender<Option<Box<CompleteCommitment>>>,
    },
    /// The wallet says where a channel that the peer closes is to pay us.
    Destination {
        /// Which.
        channel_id: ChannelId,
        /// Where.
        script: ScriptBuf,
    },
    /// Nothing but to say when all that is durable by now was told.
    Settle {
        /// Dropped once it was.
        done: Done,
    },
    /// Of all channels of the shard, for a checkpoint.
    Checkpoint {
        /// Where the sections go, one for each channel, once its records are durable.
        sections: std::sync::mpsc::Sender<ChannelSection>,
        /// Dropped once all that is durable by now was told.
        done: Done,
    },
    /// All channels tell again what they owe to the world.
    Resume {
        /// Only what they watch on the chain, before it is followed.
        watches_only: bool,
        /// Dropped once it was handed on.
        done: Done,
    },
    /// All channels hand what their peers have revoked to those who keep watch.
    Guard,
    /// No turn after this one.
    Stop,
}

/// Tells one connection of a peer from the next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Epoch(pub(crate) u64);

/// A new connection.
#[derive(Clone, Debug)]
pub(crate) struct LinkUp {
    /// With whom.
    pub(crate) peer: PublicKey,
    /// Which of its connections.
    pub(crate) epoch: Epoch,
    /// What we said in `init`.
    pub(crate) ours: Arc<Features>,
    /// What the peer said.
    pub(crate) theirs: Arc<Features>,
    /// Where messages for it go.
    pub(crate) link: Link,
}

/// A message of a peer.
#[derive(Debug)]
pub(crate) struct PeerMessage {
    /// Whose.
    pub(crate) peer: PublicKey,
    /// By which connection.
    pub(crate) epoch: Epoch,
    /// The channel, or the temporary id of the opening.
    pub(crate) channel_id: ChannelId,
    /// The message.
    pub(crate) message: Message,
    /// Given back to the connection once the message was handled.
    pub(crate) credit: Option<OwnedSemaphorePermit>,
}

/// News of the chain for the channels.
#[derive(Clone, Debug)]
pub(crate) enum ChainNews {
    /// For all.
    All(ChainEvent),
    /// For one.
    One(ChannelId, ChainEvent),
}

/// Tells, by being dropped everywhere, that everything before it was handed on.
#[derive(Clone, Debug)]
pub(crate) struct Done(#[allow(dead_code, reason = "it works by being dropped")] mpsc::Sender<()>);

impl Done {
    /// One, and what waits for it.
    pub(crate) fn new() -> (Self, AllDone) {
        let (sender, receiver) = mpsc::channel(1);
        (Self(sender), AllDone(receiver))
    }
}

/// Waits until something is done everywhere.
#[derive(Debug)]
pub struct AllDone(mpsc::Receiver<()>);

impl AllDone {
    /// Waits.
    pub async fn wait(mut self) {
        while self.0.recv().await.is_some() {}
    }

    /// Waits, on a thread that may.
    pub fn wait_blocking(mut self) {
        while self.0.blocking_recv().is_some() {}
    }
}

/// Counts one waiting order of a channel while it lives.
#[derive(Debug)]
pub(crate) struct Waiting(Arc<std::sync::atomic::AtomicUsize>);

impl Waiting {
    /// Counts one more, unless `max` wait already.
    pub(crate) fn enter(counter: &Arc<std::sync::atomic::AtomicUsize>, max: usize) -> Result<Self, usize> {
        use std::sync::atomic::Ordering::Relaxed;
        let waiting = counter.fetch_add(1, Relaxed);
        let entered = Self(Arc::clone(counter));
        if waiting >= max { Err(waiting) } else { Ok(entered) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A channel's section of a checkpoint.
#[derive(Debug)]
pub(crate) struct ChannelSection {
    /// Which channel.
    pub(crate) channel_id: ChannelId,
    /// The step whose effects are the last in it.
    pub(crate) position: Option<Position>,
    /// When it was opened.
    pub(crate) opened_ms: u64,
    /// What `Channel::snapshot` gave.
    pub(crate) snapshot: Vec<u8>,
}
