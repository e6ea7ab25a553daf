//! One channel on its shard: the pure state machine, its outbox, and what is told of it.

use std::sync::Arc;

use bitcoin::ScriptBuf;
use millrace_channel::input::CloseOrder;
use millrace_channel::{Channel, Command, Effect, Effects, Fact, Millis, Refusal, Side, Terms};
use millrace_journal::{Position, Ticket};
use millrace_wire::{ChannelId, CommitmentNumber, FeeratePerKw, PublicKey};

use super::guard_seam::ForGuards;
use super::input::{ChannelSection, Done, Epoch};
use super::order::{CommandResult, Reply};
use super::outbox::{Out, Outbox};
use super::snapshot::{ChannelSnapshot, ChannelState};
use crate::clock;
use crate::entry::{Entry, StepBuilder};
use crate::facts::{Item, News, ReceivedOnion, Source, Telling};

/// Where the peer proposes the fee of a close, we pay up to so many times what we would propose.
const CLOSE_FEERATE_FACTOR: u32 = 3;

/// While payments flow, a channel is shown anew so often.
const PUBLISH_EVERY_MS: u64 = 10;

/// One channel.
#[derive(Debug)]
pub(crate) struct Actor {
    pub(crate) channel: Channel,
    pub(crate) outbox: Outbox,
    /// What the present turn has asked for so far.
    pub(crate) fx: Effects,
    /// What must be durable with this turn.
    entries: Vec<Entry>,
    entry_bytes: usize,
    /// To be answered once this turn is durable.
    pub(crate) answers: Vec<(Reply, CommandResult)>,
    /// The connection that is up.
    pub(crate) epoch: Option<Epoch>,
    /// Which deadline the shard's clock has been set to.
    pub(crate) deadline: Option<Millis>,
    /// In the present turn's list.
    pub(crate) is_touched: bool,
    /// The peer closes the channel, and we owe it our `shutdown`.
    pub(crate) close_asked: CloseAsked,
    /// The time of its first step, once that was handed over.
    opened_ms: Option<u64>,
    terms: Arc<Terms>,
    last_error: Option<String>,
    publishing: Publishing,
    published: Option<(ChannelState, bool)>,
    published_at: Option<Millis>,
    is_publish_planned: bool,
    /// The lowest of the peer's commitments whose secret was not handed to those who keep watch; absent if nobody does.
    guarded_up_to: Option<CommitmentNumber>,
}

/// Our answer to the peer's `shutdown`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum CloseAsked {
    /// None is owed.
    No,
    /// The wallet is to be asked where we are to be paid.
    Yes,
    /// It has been asked.
    WalletAsked,
    /// To be said as soon as the peer listens.
    Answer(ScriptBuf),
}

/// At most one snapshot is on its way through the outbox.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Publishing {
    /// What was published last is what there is.
    Done,
    /// One is parked, and nothing has changed since.
    Parked,
    /// One is parked, and is old already.
    Stale,
}

/// A turn that has gathered so much is handed over at once, and goes on: with what one more input can add, a step is well
/// below what the smallest segment holds (see `config::check`). What a peer can put into one input is bounded: 483 adds and
/// 483 removals in one `commitment_signed` make less than 2 MiB, since the core cuts long reasons.
const STEP_BYTES_SOON: usize = 1 << 20;

/// Takes a step, or says that the journal is closed.
pub(crate) type Submit<'a> = &'a mut dyn FnMut(Vec<u8>) -> Option<Ticket>;

impl Actor {
    /// An actor around a channel that has no step yet.
    pub(crate) fn begin(channel: Channel) -> Self {
        Self::around(channel, None, None)
    }

    /// An actor around a channel whose last step stands here.
    pub(crate) fn new(channel: Channel, opened_ms: u64, position: Option<Position>) -> Self {
        Self::around(channel, Some(opened_ms), position)
    }

    fn around(channel: Channel, opened_ms: Option<u64>, position: Option<Position>) -> Self {
        let terms = Arc::new(channel.terms().clone());
        Self {
            channel,
            outbox: Outbox::new(position),
            fx: Effects::default(),
            entries: Vec::new(),
            entry_bytes: 0,
            answers: Vec::new(),
            epoch: None,
            deadline: None,
            is_touched: false,
            close_asked: CloseAsked::No,
            opened_ms,
            terms,
            last_error: None,
            publishing: Publishing::Done,
            published: None,
            published_at: None,
            is_publish_planned: false,
            guarded_up_to: None,
        }
    }

    pub(crate) const fn id(&self) -> ChannelId {
        self.channel.id()
    }

    pub(crate) fn peer(&self) -> PublicKey {
        self.terms.remote_node
    }

    /// It is shown and kept only after its first step.
    fn opened_ms(&self) -> u64 {
        self.opened_ms.unwrap_or_default()
    }

    /// More to be written in the same step.
    pub(crate) fn add_entries(&mut self, entries: Vec<Entry>) {
        self.entry_bytes += entries.iter().map(|entry| entry.bytes.len()).sum::<usize>();
        self.entries.extend(entries);
    }

    /// Whether so much is gathered that it should not wait for the end of the turn.
    pub(crate) fn is_full(&self) -> bool {
        self.fx.journal.len() + self.entry_bytes > STEP_BYTES_SOON
    }

    /// Puts everything that the turn asked for so far into the outbox; its records and entries become one step.
    ///
    /// If the journal takes no more, nothing of it will ever leave: the node is about to end.
    pub(crate) fn hand_over(&mut self, telling: Telling, submit: Submit<'_>) {
        let mut fx = std::mem::take(&mut self.fx);
        let entries = std::mem::take(&mut self.entries);
        self.entry_bytes = 0;
        let time_ms = clock::unix_ms();
        let has_record = fx.list.iter().any(|effect| matches!(effect, Effect::Journal(_)));
        let step = if !has_record && entries.is_empty() {
            None
        } else {
            let Some(ticket) = submit(self.step(&fx, &entries, time_ms)) else {
                self.answers.clear();
                return self.outbox.shut();
            };
            // The time that is read back, too.
            self.opened_ms.get_or_insert(time_ms);
            Some(ticket)
        };
        self.park(&mut fx, step, entries, telling, time_ms);
        self.tell_guards();
        for (reply, result) in self.answers.drain(..) {
            self.outbox.push(Out::Answer(reply, result));
        }
        if *self.channel.phase() == millrace_channel::phase::Phase::Closed {
            self.outbox.push(Out::Over);
        }
        fx.clear();
        self.fx = fx;
    }

    fn step(&self, fx: &Effects, entries: &[Entry], time_ms: u64) -> Vec<u8> {
        let mut step = StepBuilder::new(time_ms);
        for entry in entries {
            step.entry(entry);
        }
        let bytes: Vec<&[u8]> = fx.list.iter().filter_map(|effect| record_of(effect, fx)).collect();
        // Also without a record: the entries are then this channel's news all the same.
        step.records(self.id(), bytes.into_iter());
        step.finish()
    }

    /// What was asked for before the first record waits for earlier steps only; entries make all of it wait.
    fn park(&mut self, fx: &mut Effects, step: Option<Ticket>, entries: Vec<Entry>, telling: Telling, time_ms: u64) {
        let mut items: Vec<Item> = Vec::new();
        let mut outs: Vec<Out> = Vec::new();
        let mut current = None;
        if !entries.is_empty() {
            current = step;
            items.extend(entries.into_iter().map(Item::Entry));
        }
        if let Some(ticket) = current {
            self.outbox.wait_for(ticket);
        }
        for effect in fx.list.drain(..) {
            match effect {
                Effect::Journal(_) if current.is_none() => {
                    self.flush_part(None, &mut items, &mut outs, telling, time_ms);
                    current = step;
                    self.outbox.wait_for(step.expect("a turn with a record is a step"));
                }
                Effect::Journal(_) => {}
                Effect::Fact(fact) => items.push(self.item(fact)),
                Effect::Send(message) => {
                    outs.extend(self.epoch.map(|epoch| Out::Send { epoch, message }));
                }
                Effect::Disconnect(reason) => {
                    outs.extend(self.epoch.map(|epoch| Out::Disconnect { epoch, reason }));
                }
                Effect::Broadcast(broadcast) => outs.push(Out::Broadcast(broadcast)),
                Effect::Watch(watch) => outs.push(Out::Watch(watch)),
                Effect::Claim(claims) => outs.push(Out::Claim(claims)),
            }
        }
        self.flush_part(current, &mut items, &mut outs, telling, time_ms);
    }

    /// The facts go first: whoever waits for them has waited longest.
    fn flush_part(
        &mut self,
        ticket: Option<Ticket>,
        items: &mut Vec<Item>,
        outs: &mut Vec<Out>,
        telling: Telling,
        time_ms: u64,
    ) {
        if !items.is_empty() || ticket.is_some() {
            let items = std::mem::take(items);
            let (source, peer) = (Source::Channel(self.id()), Some(self.peer()));
            let terms = Some(Arc::clone(&self.terms));
            let news = News { source, peer, terms, position: None, time_ms, telling, items };
            self.outbox.push(Out::Tell { ticket, news, written: None });
        }
        for out in outs.drain(..) {
            self.outbox.push(out);
        }
    }

    fn item(&mut self, fact: Fact) -> Item {
        match &fact {
            Fact::PeerSaid { text, .. } | Fact::Failed { reason: text } => self.last_error = Some(text.clone()),
            Fact::CloseAsked if self.close_asked == CloseAsked::No => self.close_asked = CloseAsked::Yes,
            _ => {}
        }
        item_of(&self.channel, fact)
    }

    /// Says our `shutdown`, if it is owed and the peer listens.
    pub(crate) fn answer_close(&mut self, feerate: FeeratePerKw) {
        let CloseAsked::Answer(script) = &self.close_asked else { return };
        if !self.channel.is_link_up() {
            return;
        }
        let upfront = self.terms.party(Side::Local).upfront_shutdown_script.clone();
        let script = upfront.unwrap_or_else(|| script.clone());
        let feerate_max = FeeratePerKw(feerate.0.saturating_mul(CLOSE_FEERATE_FACTOR));
        let order = CloseOrder { script, feerate, feerate_max };
        match self.channel.on_command(Command::Close(order), &mut self.fx) {
            Ok(()) => self.close_asked = CloseAsked::No,
            // On the next connection, then.
            Err(Refusal::NotUsable(_)) => {}
            Err(refusal) => {
                tracing::warn!(channel_id = %self.id(), %refusal, "the peer's shutdown cannot be answered");
                self.close_asked = CloseAsked::No;
            }
        }
    }

    // --- who keeps watch ---

    /// Everything that the peer has revoked goes to those who keep watch, and from here on whatever it revokes. What this
    /// turn has changed so far must have been handed over.
    pub(crate) fn be_guarded(&mut self) {
        let secrets = self.channel.revealed_secrets().clone();
        self.guarded_up_to = Some(secrets.next());
        let (terms, keys_index) = (Arc::clone(&self.terms), self.channel.keys_index());
        self.outbox.push(Out::Guards(ForGuards::All { terms, keys_index, secrets }));
    }

    /// What the peer has revoked since.
    fn tell_guards(&mut self) {
        let Some(next) = &mut self.guarded_up_to else { return };
        let secrets = self.channel.revealed_secrets();
        while let Some(secret) = secrets.get(*next) {
            self.outbox.push(Out::Guards(ForGuards::Revoked { number: *next, secret }));
            next.0 += 1;
        }
    }

    // --- what is shown ---

    /// As the channel is now. Not to be shown before all steps so far are durable.
    pub(crate) fn snapshot(&self) -> Arc<ChannelSnapshot> {
        Arc::new(ChannelSnapshot::of(&self.channel, &self.terms, self.opened_ms(), self.last_error.as_ref()))
    }

    /// Something may have changed. A snapshot costs more than a payment, so while payments flow only one now and then is
    /// made; a change of state is shown at once. Gives when to come back, if that is not planned yet.
    pub(crate) fn publish_or_wait(&mut self, now: Millis) -> Option<Millis> {
        let seen = (self.channel.phase().into(), self.channel.is_link_up());
        let is_due = self.published_at.is_none_or(|at| at.plus(PUBLISH_EVERY_MS) <= now);
        if self.published != Some(seen) || is_due {
            (self.published, self.published_at) = (Some(seen), Some(now));
            self.is_publish_planned = false;
            self.publish();
            return None;
        }
        let is_planned = std::mem::replace(&mut self.is_publish_planned, true);
        (!is_planned).then(|| now.plus(PUBLISH_EVERY_MS))
    }

    /// Publishes, unless a snapshot is on its way, which is then followed by another.
    fn publish(&mut self) {
        match self.publishing {
            Publishing::Done => {
                self.publishing = Publishing::Parked;
                let snapshot = self.snapshot();
                self.outbox.push(Out::Publish(snapshot));
            }
            Publishing::Parked | Publishing::Stale => self.publishing = Publishing::Stale,
        }
    }

    /// The parked snapshot has left.
    pub(crate) fn on_published(&mut self) {
        let was = std::mem::replace(&mut self.publishing, Publishing::Done);
        if was == Publishing::Stale {
            self.publish();
        }
    }

    /// A section of the checkpoint, as the channel is now.
    pub(crate) fn push_section(&mut self, to: std::sync::mpsc::Sender<ChannelSection>) {
        let mut snapshot = Vec::new();
        self.channel.snapshot(&mut snapshot);
        let section = ChannelSection { channel_id: self.id(), position: None, opened_ms: self.opened_ms(), snapshot };
        self.outbox.push(Out::Section(to, section));
    }

    pub(crate) fn push_done(&mut self, done: Done) {
        self.outbox.push(Out::Done(done));
    }
}

fn record_of<'a>(effect: &Effect, fx: &'a Effects) -> Option<&'a [u8]> {
    match effect {
        Effect::Journal(range) => Some(&fx.journal[range.clone()]),
        Effect::Send(_)
        | Effect::Disconnect(_)
        | Effect::Broadcast(_)
        | Effect::Watch(_)
        | Effect::Claim(_)
        | Effect::Fact(_) => None,
    }
}

/// A fact with what belongs to it.
pub(crate) fn item_of(channel: &Channel, fact: Fact) -> Item {
    let received = match &fact {
        Fact::HtlcReceived { id, .. } => channel.htlc(Side::Remote, *id).and_then(|htlc| {
            let onion = htlc.add.onion.clone()?;
            Some(Box::new(ReceivedOnion { onion, path_key: htlc.add.path_key }))
        }),
        _ => None,
    };
    Item::Fact { fact, received }
}
