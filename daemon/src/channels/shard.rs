//! A shard: one thread with its channels.
//!
//! Each turn takes what has arrived, feeds it to the channels, ends their batch with one `commit` each, and hands what
//! they ask for to their outboxes. A flush of the journal lets go what waited for it. The thread waits for its mailbox,
//! or for the next deadline, and for nothing else.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use millrace_channel::phase::on_chain::complete::CompleteCommitment;
use millrace_channel::{ChainEvent, Channel, Command, Effect, LinkEvent, LinkFeatures, Millis};
use millrace_journal::{Flush, Position, Ticket, WakeHandle};
use millrace_wire::{ChannelId, Error, Message, PublicKey};
use tokio::sync::oneshot;

use super::actor::{Actor, CloseAsked};
use super::guard_seam::ForGuards;
use super::input::{ChainNews, Done, Epoch, Input, LinkUp, PeerMessage};
use super::mailbox::{Mail, Mailbox};
use super::openings::{Begun, Openings};
use super::order::{Accepted, CommandError, OpenProgress, Reply};
use super::outbox::{Out, Outbox};
use super::shared::{ChainOrder, Shared};
use crate::clock;
use crate::entry::{Entry, StepBuilder};
use crate::facts::{Item, News, Source, Telling};

/// Inputs of one turn: enough for a full round of HTLCs in both directions, few enough that no other channel of the
/// shard waits for long.
const TURN_MAX: usize = 2 * 483;

/// One shard.
pub(crate) struct Shard {
    index: usize,
    shared: Arc<Shared>,
    mailbox: Mailbox<Input>,
    /// One handle for all steps: the journal calls it once per flush.
    wake: WakeHandle,
    actors: HashMap<ChannelId, Actor>,
    by_peer: HashMap<PublicKey, Vec<ChannelId>>,
    openings: Openings,
    links: HashMap<PublicKey, LinkUp>,
    /// Entries of other owners, in their order.
    node_outbox: Outbox,
    /// Whose step is in which ticket; none is the node's own.
    steps: VecDeque<(Ticket, Option<ChannelId>)>,
    clock: BinaryHeap<Reverse<(Millis, ChannelId)>>,
    /// Channels that are to be shown anew, and when; each waits equally long.
    late: VecDeque<(Millis, ChannelId)>,
    /// The channels of this turn.
    touched: Vec<ChannelId>,
    telling: Telling,
}

impl Shard {
    /// A shard with the channels that were recovered for it.
    pub(crate) fn new(index: usize, shared: Arc<Shared>, mailbox: Mailbox<Input>, actors: Vec<Actor>) -> Self {
        let mut shard = Self {
            index,
            shared,
            wake: Arc::new(mailbox.clone()),
            mailbox,
            actors: HashMap::new(),
            by_peer: HashMap::new(),
            openings: Openings::new(index),
            links: HashMap::new(),
            node_outbox: Outbox::default(),
            steps: VecDeque::new(),
            clock: BinaryHeap::new(),
            late: VecDeque::new(),
            touched: Vec::new(),
            telling: Telling::Live,
        };
        for actor in actors {
            shard.shared.directory.publish(actor.snapshot(), index);
            shard.keep(actor);
        }
        shard
    }

    fn keep(&mut self, actor: Actor) {
        self.by_peer.entry(actor.peer()).or_default().push(actor.id());
        self.actors.insert(actor.id(), actor);
    }

    /// The thread: until it is told to stop.
    pub(crate) fn run(mut self) {
        let mut mail = Mail::default();
        while self.turn(&mut mail) {}
    }

    fn turn(&mut self, mail: &mut Mail<Input>) -> bool {
        let mailbox = self.mailbox.clone();
        mailbox.take(TURN_MAX, self.patience(), mail);
        self.act(mail)
    }

    /// Takes in what has arrived, and does what is due. Waits for nothing.
    fn act(&mut self, mail: &mut Mail<Input>) -> bool {
        for flush in mail.flushes.drain(..) {
            self.on_flush(&flush);
        }
        let mut goes_on = true;
        for input in mail.inputs.drain(..) {
            if let Input::Stop = input {
                goes_on = false;
            } else {
                self.on_input(input);
            }
        }
        self.on_time();
        self.end_turn();
        goes_on
    }

    fn patience(&self) -> Option<Duration> {
        let channels = self.clock.peek().map(|Reverse((due, _))| *due);
        let late = self.late.front().map(|(due, _)| *due);
        let due = channels.into_iter().chain(late).chain(self.openings.deadline()).min()?;
        Some(Duration::from_millis(due.0.saturating_sub(clock::now().0)))
    }

    fn on_input(&mut self, input: Input) {
        match input {
            Input::LinkUp(link) => self.on_link_up(link),
            Input::LinkDown { peer, epoch } => self.on_link_down(peer, epoch),
            Input::Message(message) => self.on_message(message),
            Input::Open { order, temporary_channel_id, progress } => {
                let link = self.links.get(&order.peer);
                self.openings.open(order, temporary_channel_id, progress, link, clock::now(), &self.shared);
            }
            Input::Funded { peer, temporary_channel_id, funded } => {
                let link = self.links.get(&peer);
                self.openings.on_funded(peer, temporary_channel_id, funded, link, clock::now(), &self.shared);
            }
            Input::Reserve { peer, temporary_channel_id, answer } => {
                let link = self.links.get(&peer);
                self.openings.on_reserve(peer, temporary_channel_id, answer, link, clock::now(), &self.shared);
            }
            Input::Command { channel_id, command, entries, reply, waiting: _ } => {
                self.on_command(channel_id, command, entries, reply);
            }
            Input::Write { entries, reply } => self.write(entries, reply),
            Input::Chain { news, done } => self.on_chain(news, &done),
            Input::Snapshot { channel_id, reply } => self.show(channel_id, reply),
            Input::Commitment { channel_id, reply } => self.hand_out_commitment(channel_id, reply),
            Input::Destination { channel_id, script } => {
                if let Some(actor) = self.actors.get_mut(&channel_id) {
                    actor.close_asked = CloseAsked::Answer(script);
                    self.touch(channel_id);
                }
            }
            Input::Settle { done } => self.settle(&done),
            Input::Checkpoint { sections, done } => {
                self.node_outbox.push(Out::Done(done));
                self.each(|shard, id| {
                    shard.hand_over(id);
                    if let Some(actor) = shard.actors.get_mut(&id) {
                        actor.push_section(sections.clone());
                    }
                });
            }
            Input::Resume { watches_only, done } => self.resume(watches_only, &done),
            Input::Guard => self.each(Self::guard),
            Input::Stop => {}
        }
    }

    // --- the connections ---

    fn on_link_up(&mut self, link: LinkUp) {
        let (peer, epoch) = (link.peer, link.epoch);
        match self.links.get(&peer).map(|old| old.epoch) {
            Some(old) if old >= epoch => return,
            Some(old) => self.on_link_down(peer, old),
            None => {}
        }
        let features = LinkFeatures::negotiated(&link.ours, &link.theirs);
        self.links.insert(peer, link);
        for id in self.by_peer.get(&peer).cloned().unwrap_or_default() {
            let Some(actor) = self.actors.get_mut(&id) else { continue };
            actor.epoch = Some(epoch);
            actor.channel.on_link(LinkEvent::Up { features }, &mut actor.fx);
            self.touch(id);
        }
    }

    fn on_link_down(&mut self, peer: PublicKey, epoch: Epoch) {
        if self.links.get(&peer).is_none_or(|link| link.epoch != epoch) {
            return;
        }
        self.links.remove(&peer);
        self.openings.on_link_down(peer, &self.shared);
        for id in self.by_peer.get(&peer).cloned().unwrap_or_default() {
            // What this turn said so far was said on the old connection.
            self.hand_over(id);
            let Some(actor) = self.actors.get_mut(&id) else { continue };
            actor.epoch = None;
            actor.outbox.forget_sends(epoch);
            actor.channel.on_link(LinkEvent::Down, &mut actor.fx);
            self.touch(id);
        }
    }

    fn on_message(&mut self, message: PeerMessage) {
        let PeerMessage { peer, epoch, channel_id, message, credit: _credit } = message;
        let Some(link) = self.links.get(&peer).filter(|link| link.epoch == epoch) else { return };
        if let Message::OpenChannel(open) = message {
            return self.openings.on_open_channel(*open, link, &self.mailbox, clock::now(), &self.shared);
        }
        if self.actors.get(&channel_id).is_some_and(|actor| actor.peer() == peer) {
            return self.on_channel_message(channel_id, message);
        }
        if self.openings.is_pending(peer, channel_id) {
            return self.on_opening_message(peer, channel_id, message);
        }
        // It has just gone. A peer that still believes in it is told; anything else was on its way.
        if let Message::ChannelReestablish(_) = message {
            link.link.send(Box::new(Message::Error(Error::new(channel_id, "this channel is closed"))));
        }
    }

    fn on_channel_message(&mut self, id: ChannelId, message: Message) {
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let name = message.name();
        let revokes = matches!(message, Message::RevokeAndAck(_)) && self.shared.guards.wants_penalties();
        let revocable = if revokes { actor.channel.revocable() } else { None };
        if let Err(fault) = actor.channel.on_message(message, &self.shared.curve, &mut actor.fx) {
            let peer = actor.peer();
            tracing::warn!(channel_id = %id, %peer, message = name, %fault, reaction = ?fault.reaction, "the peer broke a rule");
        }
        if let Some(revocable) = revocable
            && let Some(secret) = actor.channel.revealed_secrets().get(revocable.number)
        {
            actor.add_entries(vec![self.shared.guards.penalty(&revocable, secret)]);
        }
        self.touch(id);
    }

    fn on_opening_message(&mut self, peer: PublicKey, id: ChannelId, message: Message) {
        let Some(link) = self.links.get(&peer) else { return };
        let mut fx = millrace_channel::Effects::default();
        let now = clock::now();
        let begun = self.openings.on_message(id, message, link, &self.mailbox, now, &self.shared, &mut fx);
        let Some(Begun { channel, temporary_channel_id, progress, entries }) = begun else { return };
        let (id, epoch) = (channel.id(), link.epoch);
        let funding_outpoint = channel.terms().funding_outpoint;
        tracing::info!(channel_id = %id, %peer, capacity = channel.terms().capacity.0, "a channel exists");
        let mut actor = Actor::begin(*channel);
        (actor.fx, actor.epoch) = (fx, Some(epoch));
        actor.add_entries(entries);
        self.keep(actor);
        self.hand_over(id);
        if let Some(actor) = self.actors.get_mut(&id) {
            // It is shown before whoever waits for it is told.
            actor.publish_or_wait(clock::now());
            if let Some(progress) = progress {
                let opened = OpenProgress::Opened { channel_id: id, funding_outpoint };
                actor.outbox.push(Out::Progress(progress, opened));
            }
        }
        self.guard(id);
        self.shared.directory.begin_channel(peer, temporary_channel_id, id);
        self.touch(id);
    }

    // --- orders ---

    fn on_command(&mut self, id: ChannelId, command: Command, entries: Vec<Entry>, reply: Option<Reply>) {
        let Some(actor) = self.actors.get_mut(&id) else {
            return answer(reply, Err(CommandError::UnknownChannel(id)));
        };
        if let Command::Offer(_) = command
            && let Err(behind) = self.shared.guards.may_add(id)
        {
            return answer(reply, Err(behind.into()));
        }
        let result = match command {
            Command::Offer(offer) => actor.channel.offer(offer, &mut actor.fx).map(Accepted::Offered),
            other => actor.channel.on_command(other, &mut actor.fx).map(|()| Accepted::Done),
        };
        match result {
            Ok(Accepted::Offered(htlc_id)) => {
                actor.add_entries(entries);
                answer(reply, Ok(Accepted::Offered(htlc_id)));
            }
            Ok(Accepted::Done) => {
                actor.add_entries(entries);
                actor.answers.extend(reply.map(|reply| (reply, Ok(Accepted::Done))));
            }
            Err(refusal) => return answer(reply, Err(CommandError::Refused(refusal))),
        }
        self.touch(id);
    }

    fn write(&mut self, entries: Vec<Entry>, reply: oneshot::Sender<Position>) {
        let time_ms = clock::unix_ms();
        let mut step = StepBuilder::new(time_ms);
        entries.iter().for_each(|entry| step.entry(entry));
        let Ok(ticket) = self.shared.log.submit(step.finish(), Arc::clone(&self.wake)) else { return };
        self.steps.push_back((ticket, None));
        self.node_outbox.wait_for(ticket);
        let items = entries.into_iter().map(Item::Entry).collect();
        let news = News {
            source: Source::Node,
            peer: None,
            terms: None,
            position: None,
            time_ms,
            telling: Telling::Live,
            items,
        };
        self.node_outbox.push(Out::Tell { ticket: Some(ticket), news, written: Some(reply) });
    }

    fn show(&mut self, id: ChannelId, reply: oneshot::Sender<Arc<super::snapshot::ChannelSnapshot>>) {
        self.hand_over(id);
        if let Some(actor) = self.actors.get_mut(&id) {
            let snapshot = actor.snapshot();
            actor.outbox.push(Out::Show(reply, snapshot));
            self.touch(id);
        }
    }

    fn hand_out_commitment(&mut self, id: ChannelId, reply: oneshot::Sender<Option<Box<CompleteCommitment>>>) {
        self.hand_over(id);
        if let Some(actor) = self.actors.get_mut(&id) {
            let commitment = actor.channel.complete_commitment().map(Box::new);
            actor.outbox.push(Out::Commitment(reply, commitment));
            self.touch(id);
        }
    }

    // --- the chain, and starts ---

    fn on_chain(&mut self, news: Vec<ChainNews>, done: &Done) {
        for one in news {
            match one {
                ChainNews::All(event) => {
                    match &event {
                        ChainEvent::Tip { height, .. } => self.openings.height = *height,
                        ChainEvent::Disconnected { height } => {
                            self.openings.height = millrace_wire::BlockHeight(height.0.saturating_sub(1));
                        }
                        ChainEvent::Confirmed { .. } | ChainEvent::Unconfirmed { .. } => {}
                    }
                    self.each(|shard, id| shard.on_chain_event(id, event.clone()));
                }
                ChainNews::One(id, event) => self.on_chain_event(id, event),
            }
        }
        self.mark_done(done);
    }

    fn on_chain_event(&mut self, id: ChannelId, event: ChainEvent) {
        if let Some(actor) = self.actors.get_mut(&id) {
            actor.channel.on_chain(event, &mut actor.fx);
            self.touch(id);
        }
    }

    fn resume(&mut self, watches_only: bool, done: &Done) {
        self.end_turn();
        self.telling = Telling::Resume;
        self.each(|shard, id| {
            let Some(actor) = shard.actors.get_mut(&id) else { return };
            actor.channel.resume(&mut actor.fx);
            let has_record = actor.fx.list.iter().any(|effect| matches!(effect, Effect::Journal(_)));
            if watches_only && !has_record {
                // The rest comes again, once the chain is known.
                actor.fx.list.retain(|effect| matches!(effect, Effect::Watch(_)));
            }
            shard.touch(id);
        });
        self.mark_done(done);
        self.end_turn();
        self.telling = Telling::Live;
        // All of it is durable: whoever keeps watch need not wait for the chain.
        self.each(Self::guard);
    }

    /// Has a channel watched by those who keep watch while the node is off, if anybody does.
    fn guard(&mut self, id: ChannelId) {
        if self.shared.guards.is_any() {
            self.hand_over(id);
            if let Some(actor) = self.actors.get_mut(&id) {
                actor.be_guarded();
            }
        }
    }

    /// `done` is dropped once everything that was asked for so far has left.
    fn mark_done(&mut self, done: &Done) {
        let touched = self.touched.clone();
        for id in touched {
            self.commit(id);
            self.hand_over(id);
            if let Some(actor) = self.actors.get_mut(&id) {
                actor.push_done(done.clone());
            }
        }
    }

    /// `done` is dropped once everything that is on its way to the disk was told.
    fn settle(&mut self, done: &Done) {
        self.node_outbox.push(Out::Done(done.clone()));
        for actor in self.actors.values_mut().filter(|actor| !actor.outbox.is_empty()) {
            actor.push_done(done.clone());
        }
    }

    // --- time ---

    fn on_time(&mut self) {
        let now = clock::now();
        while let Some(Reverse((due, id))) = self.clock.peek().copied().filter(|Reverse((due, _))| *due <= now) {
            self.clock.pop();
            let Some(actor) = self.actors.get_mut(&id) else { continue };
            if actor.deadline == Some(due) {
                actor.deadline = None;
                actor.channel.on_time(now, &mut actor.fx);
                self.touch(id);
            }
        }
        while let Some((_, id)) = self.late.front().copied().filter(|(due, _)| *due <= now) {
            self.late.pop_front();
            self.touch(id);
        }
        if self.openings.deadline().is_some_and(|due| due <= now) {
            self.openings.on_time(now, &self.links, &self.shared);
        }
    }

    fn set_clock(&mut self, id: ChannelId) {
        let Some(actor) = self.actors.get_mut(&id) else { return };
        let due = actor.channel.deadline();
        if due == actor.deadline {
            return;
        }
        actor.deadline = due;
        if let Some(due) = due {
            self.clock.push(Reverse((due, id)));
        }
    }

    // --- turns ---

    fn touch(&mut self, id: ChannelId) {
        if let Some(actor) = self.actors.get_mut(&id)
            && !actor.is_touched
        {
            actor.is_touched = true;
            self.touched.push(id);
        }
        if self.actors.get(&id).is_some_and(Actor::is_full) {
            self.hand_over(id);
        }
    }

    fn each(&mut self, mut act: impl FnMut(&mut Self, ChannelId)) {
        let mut ids: Vec<ChannelId> = self.actors.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            act(self, id);
            self.touch(id);
        }
    }

    fn end_turn(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for &id in &touched {
            self.commit(id);
            self.hand_over(id);
            if let Some(actor) = self.actors.get_mut(&id) {
                actor.is_touched = false;
                let due = actor.publish_or_wait(clock::now());
                self.late.extend(due.map(|due| (due, id)));
            }
            self.ask_destination(id);
            self.set_clock(id);
            self.release(id);
        }
        touched.clear();
        // What a release has touched is a turn's beginning, not this one's end.
        touched.append(&mut self.touched);
        self.touched = touched;
        self.release_node();
    }

    fn commit(&mut self, id: ChannelId) {
        if let Some(actor) = self.actors.get_mut(&id) {
            if actor.close_asked != CloseAsked::No {
                actor.answer_close(self.shared.close_feerate());
            }
            actor.channel.commit(clock::now(), &self.shared.curve, &mut actor.fx);
        }
    }

    /// The peer closes a channel: the wallet says where we are to be paid.
    fn ask_destination(&mut self, id: ChannelId) {
        let Some(actor) = self.actors.get_mut(&id) else { return };
        if actor.close_asked == CloseAsked::Yes {
            actor.close_asked = CloseAsked::WalletAsked;
            let mailbox = self.mailbox.clone();
            self.shared.wallet.destination(Box::new(move |script| {
                mailbox.put(Input::Destination { channel_id: id, script });
            }));
        }
    }

    fn hand_over(&mut self, id: ChannelId) {
        let Self { actors, steps, shared, wake, telling, .. } = self;
        let Some(actor) = actors.get_mut(&id) else { return };
        actor.hand_over(*telling, &mut |step| match shared.log.submit(step, Arc::clone(wake)) {
            Ok(ticket) => {
                steps.push_back((ticket, Some(id)));
                Some(ticket)
            }
            Err(error) => {
                tracing::error!(channel_id = %id, %error, "a step was not taken: nothing of it leaves");
                None
            }
        });
    }

    fn on_flush(&mut self, flush: &Flush) {
        let mut woken: Vec<ChannelId> = Vec::new();
        let mut is_node = false;
        while let Some((_, owner)) = self.steps.front().filter(|(step, _)| *step <= flush.up_to()).copied() {
            self.steps.pop_front();
            match owner {
                Some(id) if woken.last() != Some(&id) => woken.push(id),
                Some(_) => {}
                None => is_node = true,
            }
        }
        woken.sort_unstable();
        woken.dedup();
        for id in woken {
            if let Some(actor) = self.actors.get_mut(&id) {
                actor.outbox.on_flush(flush);
            }
            self.release(id);
        }
        if is_node {
            self.node_outbox.on_flush(flush);
            self.release_node();
        }
    }

    fn release(&mut self, id: ChannelId) {
        loop {
            let Some(actor) = self.actors.get_mut(&id) else { return };
            let Some(out) = actor.outbox.pop() else { return };
            match out {
                Out::Publish(snapshot) => {
                    actor.on_published();
                    self.shared.directory.publish(snapshot, self.index);
                }
                Out::Over => self.forget(id),
                out => self.let_go(id, out),
            }
        }
    }

    fn release_node(&mut self) {
        while let Some(out) = self.node_outbox.pop() {
            match out {
                Out::Tell { ticket, news, written } => self.tell(ticket, news, written),
                Out::Done(done) => drop(done),
                other => unreachable!("the node's own entries lead to no {other:?}"),
            }
        }
    }

    fn let_go(&self, id: ChannelId, out: Out) {
        match out {
            Out::Send { epoch, message } => {
                if let Some(link) = self.link_of(id, epoch) {
                    link.link.send(message);
                }
            }
            Out::Disconnect { epoch, reason } => {
                if let Some(link) = self.link_of(id, epoch) {
                    link.link.close(reason);
                }
            }
            Out::Broadcast(broadcast) => self.shared.tell_chain(ChainOrder::Broadcast(id, broadcast)),
            Out::Watch(watch) => self.shared.tell_chain(ChainOrder::Watch(id, watch)),
            Out::Claim(claims) => self.shared.wallet.claim(id, *claims),
            Out::Tell { ticket, news, written } => self.tell(ticket, news, written),
            Out::Show(reply, snapshot) => drop(reply.send(snapshot)),
            Out::Commitment(reply, commitment) => drop(reply.send(commitment)),
            Out::Answer(reply, result) => drop(reply.send(result)),
            Out::Progress(progress, what) => drop(progress.send(what)),
            Out::Section(to, section) => drop(to.send(section)),
            Out::Done(done) => drop(done),
            Out::Guards(what) => self.tell_guards(id, what),
            Out::Publish(_) | Out::Over => unreachable!("handled where it is released"),
        }
    }

    fn tell_guards(&self, id: ChannelId, what: ForGuards) {
        let guards = &self.shared.guards;
        match what {
            ForGuards::All { terms, keys_index, secrets } => {
                guards.watch(&terms, &(self.shared.keys_of)(keys_index), &secrets);
            }
            ForGuards::Revoked { number, secret } => guards.revoked(id, number, secret),
        }
    }

    fn tell(&self, ticket: Option<Ticket>, news: News, written: Option<oneshot::Sender<Position>>) {
        match ticket {
            Some(ticket) => self.shared.folds.tell_step(ticket, news, written),
            None => self.shared.folds.tell(news),
        }
    }

    fn link_of(&self, id: ChannelId, epoch: Epoch) -> Option<&LinkUp> {
        let peer = self.actors.get(&id)?.peer();
        self.links.get(&peer).filter(|link| link.epoch == epoch)
    }

    /// The channel is closed, and all that it had to say has left.
    fn forget(&mut self, id: ChannelId) {
        let Some(actor) = self.actors.remove(&id) else { return };
        if let Some(ids) = self.by_peer.get_mut(&actor.peer()) {
            ids.retain(|other| *other != id);
        }
        self.shared.directory.publish(actor.snapshot(), self.index);
        self.shared.tell_chain(ChainOrder::Forget(id));
        self.shared.guards.over(id);
        tracing::info!(channel_id = %id, "a channel is closed");
    }
}

fn answer(reply: Option<Reply>, result: super::order::CommandResult) {
    if let Some(reply) = reply {
        let _gone = reply.send(result);
    }
}

/// Whether a channel that was read back is over: it needs no actor.
pub(crate) fn is_over(channel: &Channel) -> bool {
    *channel.phase() == millrace_channel::phase::Phase::Closed
}

#[cfg(test)]
mod by_hand;
#[cfg(test)]
mod tests;
