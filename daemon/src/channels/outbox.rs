//! What waits for the disk: the first-in-first-out queue between a channel and the world.
//!
//! A step goes to the journal at once. Whatever the channel asked for after it stays here until the flush with that
//! step has returned, and then leaves in its order. What a turn asked for *before* its first record waits only for the
//! steps of earlier turns. The outbox is filled by its channel, whose inputs are bounded, and it is emptied by the
//! journal, which waits for nobody.

use std::collections::VecDeque;
use std::sync::Arc;

use millrace_channel::effect::{Broadcast, Watch};
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::phase::on_chain::complete::CompleteCommitment;
use millrace_journal::{Flush, Position, Ticket};
use millrace_wire::Message;
use tokio::sync::oneshot;

use super::guard_seam::ForGuards;
use super::input::{ChannelSection, Done, Epoch};
use super::order::{CommandResult, OpenProgress, ProgressSender, Reply};
use super::snapshot::ChannelSnapshot;
use crate::facts::News;

/// One thing that leaves.
#[derive(Debug)]
pub(crate) enum Out {
    /// A message, for one connection only.
    Send {
        /// Which.
        epoch: Epoch,
        /// The message.
        message: Box<Message>,
    },
    /// That connection is to be closed.
    Disconnect {
        /// Which.
        epoch: Epoch,
        /// Why.
        reason: String,
    },
    /// To the chain.
    Broadcast(Broadcast),
    /// To the chain.
    Watch(Watch),
    /// To the wallet.
    Claim(Box<Claims>),
    /// To the folds. With a ticket, the position is that of its step; each step is told of, if it holds news or not.
    Tell {
        /// The step.
        ticket: Option<Ticket>,
        /// Without the position.
        news: News,
        /// To whoever wrote the step.
        written: Option<oneshot::Sender<Position>>,
    },
    /// To everybody who reads.
    Publish(Arc<ChannelSnapshot>),
    /// To one who asked.
    Show(oneshot::Sender<Arc<ChannelSnapshot>>, Arc<ChannelSnapshot>),
    /// To one who asked for it.
    Commitment(oneshot::Sender<Option<Box<CompleteCommitment>>>, Option<Box<CompleteCommitment>>),
    /// To whoever gave an order.
    Answer(Reply, CommandResult),
    /// To whoever opens a channel.
    Progress(ProgressSender, OpenProgress),
    /// To the checkpoint; the position is the outbox's.
    Section(std::sync::mpsc::Sender<ChannelSection>, ChannelSection),
    /// To those who keep watch while the node is off.
    Guards(ForGuards),
    /// Says, by being dropped, that everything before it has left.
    Done(#[allow(dead_code, reason = "it works by being dropped")] Done),
    /// The channel is closed, and this was the last of it.
    Over,
}

/// One channel's outbox.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    parked: VecDeque<(Option<Ticket>, Out)>,
    /// Steps whose flush has not returned.
    steps: VecDeque<Ticket>,
    flush: Option<Flush>,
    /// The journal took a step no more: nothing leaves from here on.
    is_shut: bool,
    position: Option<Position>,
}

impl Outbox {
    /// The outbox of a channel whose last step stands here.
    pub(crate) fn new(position: Option<Position>) -> Self {
        Self { position, ..Self::default() }
    }

    /// A step was submitted: whatever is pushed from here on waits for it.
    pub(crate) fn wait_for(&mut self, step: Ticket) {
        debug_assert!(self.steps.back().is_none_or(|last| *last < step));
        self.steps.push_back(step);
    }

    /// The journal did not take a step: what rests on it must never leave, nor what comes after.
    pub(crate) fn shut(&mut self) {
        self.is_shut = true;
        self.parked.clear();
    }

    /// Something that is to leave after everything before it.
    pub(crate) fn push(&mut self, out: Out) {
        if self.is_shut {
            return;
        }
        self.parked.push_back((self.steps.back().copied(), out));
    }

    /// A flush has returned.
    pub(crate) fn on_flush(&mut self, flush: &Flush) {
        while let Some(step) = self.steps.front().filter(|step| **step <= flush.up_to()) {
            self.position = flush.position(*step).or(self.position);
            self.steps.pop_front();
        }
        self.flush = Some(*flush);
    }

    /// The next thing that may leave, with the position of its step if it asks for one.
    pub(crate) fn pop(&mut self) -> Option<Out> {
        let (waits_for, _) = self.parked.front()?;
        let is_durable = match (waits_for, self.steps.front()) {
            (None, _) | (Some(_), None) => true,
            (Some(step), Some(not_durable)) => step < not_durable,
        };
        if !is_durable {
            return None;
        }
        let (waited_for, mut out) = self.parked.pop_front()?;
        match &mut out {
            Out::Tell { ticket: Some(ticket), news, .. } => news.position = Some(self.position_of(*ticket)),
            Out::Section(_, section) => {
                // The flush that lets it go may hold later steps of the channel, and those are not in it.
                section.position = waited_for.map_or(self.position, |step| Some(self.position_of(step)));
            }
            Out::Send { .. }
            | Out::Disconnect { .. }
            | Out::Broadcast(_)
            | Out::Watch(_)
            | Out::Claim(_)
            | Out::Tell { ticket: None, .. }
            | Out::Publish(_)
            | Out::Show(..)
            | Out::Commitment(..)
            | Out::Answer(..)
            | Out::Progress(..)
            | Out::Guards(_)
            | Out::Done(_)
            | Out::Over => {}
        }
        Some(out)
    }

    /// The position of a step in the last flush.
    fn position_of(&self, step: Ticket) -> Position {
        let position = self.flush.as_ref().and_then(|flush| flush.position(step));
        position
            .expect("whoever has a step in a flush is told of that flush, and everything that waits for it leaves then")
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.parked.is_empty() && self.steps.is_empty()
    }

    /// A connection is gone: what was parked for it is, too.
    pub(crate) fn forget_sends(&mut self, gone: Epoch) {
        self.parked.retain(|(_, out)| match out {
            Out::Send { epoch, .. } | Out::Disconnect { epoch, .. } => *epoch != gone,
            Out::Broadcast(_)
            | Out::Watch(_)
            | Out::Claim(_)
            | Out::Tell { .. }
            | Out::Publish(_)
            | Out::Show(..)
            | Out::Commitment(..)
            | Out::Answer(..)
            | Out::Progress(..)
            | Out::Section(..)
            | Out::Guards(_)
            | Out::Done(_)
            | Out::Over => true,
        });
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_wire::ChannelId;

    use super::*;

    fn section() -> ChannelSection {
        ChannelSection { channel_id: ChannelId([1; 32]), position: None, opened_ms: 0, snapshot: Vec::new() }
    }

    /// Or the step after it would be passed over at a start, and what it says be lost.
    #[test]
    fn section_between_two_steps_of_one_flush() {
        let mut outbox = Outbox::new(None);
        let (to, _sections) = std::sync::mpsc::channel();
        outbox.wait_for(Ticket(5));
        outbox.push(Out::Section(to.clone(), section()));
        outbox.wait_for(Ticket(6));
        outbox.push(Out::Section(to.clone(), section()));
        assert!(outbox.pop().is_none());
        outbox.on_flush(&Flush::new(3, Ticket(4), 3));
        for index in [1, 2] {
            let Some(Out::Section(_, section)) = outbox.pop() else { panic!("it has not left") };
            assert_eq!(section.position, Some(Position { frame: 3, index }));
        }
        outbox.push(Out::Section(to, section()));
        let Some(Out::Section(_, section)) = outbox.pop() else { panic!("it has nothing to wait for") };
        assert_eq!(section.position, Some(Position { frame: 3, index: 2 }));
    }
}
