//! The switch's hand: gives orders to the channels and brings their answers. A removal that a channel was too busy for is
//! handed in again; one that a channel refuses was decided before.

use std::collections::HashMap;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures::stream::{FuturesUnordered, StreamExt};
use millrace_wire::ChannelId;
use tokio::sync::oneshot;

use super::{Act, Key};
use crate::channels::{CommandError, CommandResult, NoNewWork, Registry};
use crate::metrics;

/// What was asked of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Question {
    Offer(Key, ChannelId),
    Remove(Key),
}

struct Waiting {
    question: Question,
    answer: oneshot::Receiver<CommandResult>,
}

impl Future for Waiting {
    type Output = (Question, CommandResult);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let stopping = Err(CommandError::NoNewWork(NoNewWork::Stopping));
        Pin::new(&mut self.answer).poll(context).map(|answer| (self.question, answer.unwrap_or(stopping)))
    }
}

/// The answer to an offer.
pub(crate) type Answered = (Key, ChannelId, CommandResult);

/// Orders under way.
#[derive(Default)]
pub(crate) struct Hand {
    waiting: FuturesUnordered<Waiting>,
    /// Removals that are not answered.
    removals: HashMap<Key, Act>,
    /// Those whose channel was too busy.
    again: Vec<Key>,
}

impl Hand {
    /// Hands acts to their channels. Never waits.
    pub(crate) fn carry_out(&mut self, acts: Vec<Act>, registry: &Registry) {
        for act in acts {
            self.act(act, registry);
        }
    }

    fn act(&mut self, act: Act, registry: &Registry) {
        let (question, answer) = match &act {
            Act::Release(channel_id, htlc_id) => return registry.release_outcome(*channel_id, *htlc_id),
            Act::Offer { key, channel_id, offer } => {
                let answer = registry.offer(*channel_id, (**offer).clone(), Vec::new());
                (Question::Offer(*key, *channel_id), answer)
            }
            Act::Fulfill { key, preimage, attribution } => {
                let answer = registry.fulfill_forward(key.0, key.1, preimage.clone(), attribution.clone());
                (Question::Remove(*key), answer)
            }
            Act::Fail { key, failure, .. } => {
                let (reason, attribution) = (failure.reason.clone(), failure.attribution.clone());
                let answer = registry.fail(key.0, key.1, reason, Some(attribution), Vec::new());
                (Question::Remove(*key), answer)
            }
        };
        if let Question::Remove(key) = question {
            self.removals.insert(key, act);
        }
        self.waiting.push(Waiting { question, answer });
    }

    /// Whether nothing is waited for.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The next answer; to an offer, it is the switch's.
    pub(crate) async fn next(&mut self) -> Option<Option<Answered>> {
        let (question, result) = self.waiting.next().await?;
        Some(match question {
            Question::Offer(key, channel_id) => Some((key, channel_id, result)),
            Question::Remove(key) => {
                self.on_removed(key, result);
                None
            }
        })
    }

    fn on_removed(&mut self, key: Key, result: CommandResult) {
        if let Err(CommandError::Busy { .. }) = result {
            return self.again.push(key);
        }
        let act = self.removals.remove(&key);
        match result {
            Ok(_) => {
                // What went on is counted by what was told of it.
                if matches!(act, Some(Act::Fail { went_on: false, .. })) {
                    ::metrics::counter!(metrics::FORWARDS, "outcome" => "refused").increment(1);
                }
            }
            // Decided before the last stop, or its channel is gone; or the node stops, and the next start goes on.
            Err(error) => {
                tracing::debug!(channel_id = %key.0, htlc_id = key.1.0, %error, "a channel did not take a removal");
            }
        }
    }

    /// Hands in again what a channel was too busy for.
    pub(crate) fn on_tick(&mut self, registry: &Registry) {
        for key in std::mem::take(&mut self.again) {
            if let Some(act) = self.removals.remove(&key) {
                self.act(act, registry);
            }
        }
    }
}
