//! Channels that are being negotiated, on their shard (BOLT 2, "Channel Establishment v1").
//!
//! An opening lives by (peer, temporary id) until it becomes a channel, its connection ends, or its time is over. What
//! it asks for in messages may leave at once: nothing of it is durable before the channel's first record.

use std::cell::Cell;
use std::collections::HashMap;

use bitcoin::Transaction;
use millrace_channel::phase::opening::{
    AcceptParams, LocalParams, OpenRequest, Opening, OpeningEvent, OpeningFeatures, Surroundings,
};
use millrace_channel::{Channel, ChannelType, CommitmentFormat, Effect, Effects, Millis, PeerFault, Refusal};
use millrace_wire::message::OpenChannel;
use millrace_wire::{BlockHeight, ChannelId, Error, FeeratePerKw, Message, PublicKey, Sat, Warning};

use super::input::LinkUp;
use super::mailbox::Mailbox;
use super::order::{OpenFailure, OpenOrder, OpenProgress, ProgressSender, WhenOpened};
use super::shared::Shared;
use super::wallet_seam::{Funded, FundingReply, FundingRequest, FundingTransaction, NoFunding};
use crate::channels::input::Input;

/// How long an opening may take from one message to the next, the wallet included.
pub(crate) const PATIENCE_MS: u64 = 60_000;

/// One opening.
#[derive(Debug)]
struct Pending {
    opening: Opening,
    due: Millis,
    /// The final id that was taken for it.
    reserved: Option<ChannelId>,
    ours: Option<Ours>,
    /// Our `accept_channel`, while the wallet is asked whether it can keep back what closing the channel takes.
    held: Option<Message>,
}

/// What only an opening of our own has.
struct Ours {
    progress: ProgressSender,
    when_opened: Option<WhenOpened>,
    funding_feerate: FeeratePerKw,
    has_anchors: bool,
    local_reserve_asked: Sat,
    transaction: Option<Transaction>,
}

impl std::fmt::Debug for Ours {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ours").field("is_funded", &self.transaction.is_some()).finish_non_exhaustive()
    }
}

/// A channel that has just come to be, and the effects of its first turn.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) channel: Box<Channel>,
    pub(crate) temporary_channel_id: ChannelId,
    pub(crate) progress: Option<ProgressSender>,
    pub(crate) entries: Vec<crate::entry::Entry>,
}

/// All openings of a shard.
#[derive(Debug)]
pub(crate) struct Openings {
    shard: usize,
    pending: HashMap<(PublicKey, ChannelId), Pending>,
    /// Final ids under which the peer speaks of an opening.
    by_final: HashMap<ChannelId, ChannelId>,
    pub(crate) height: BlockHeight,
}

impl Openings {
    pub(crate) fn new(shard: usize) -> Self {
        Self { shard, pending: HashMap::new(), by_final: HashMap::new(), height: BlockHeight(0) }
    }

    /// The next moment at which one of them is over its time.
    pub(crate) fn deadline(&self) -> Option<Millis> {
        self.pending.values().map(|pending| pending.due).min()
    }

    // --- we fund ---

    /// Proposes a channel.
    pub(crate) fn open(
        &mut self,
        order: OpenOrder,
        temporary_channel_id: ChannelId,
        progress: ProgressSender,
        link: Option<&LinkUp>,
        now: Millis,
        shared: &Shared,
    ) {
        let peer = order.peer;
        if let Err(failure) = self.propose(order, temporary_channel_id, progress.clone(), link, now, shared) {
            shared.directory.end_opening(peer, temporary_channel_id);
            say(&progress, OpenProgress::Failed(failure));
        }
    }

    fn propose(
        &mut self,
        order: OpenOrder,
        temporary_channel_id: ChannelId,
        progress: ProgressSender,
        link: Option<&LinkUp>,
        now: Millis,
        shared: &Shared,
    ) -> Result<(), OpenFailure> {
        let link = link.ok_or(OpenFailure::NotConnected(order.peer))?;
        let features = OpeningFeatures::negotiated(&link.ours, &link.theirs);
        let request = request_of(&order, temporary_channel_id, features, shared)?;
        let local_reserve_asked = request.local.channel_reserve;
        let has_anchors = request.channel_type.format == CommitmentFormat::Anchors;
        let (opening, message) = Opening::propose(request)?;
        link.link.send(Box::new(message));
        let OpenOrder { when_opened, funding_feerate, .. } = order;
        let ours = Ours { progress, when_opened, funding_feerate, has_anchors, local_reserve_asked, transaction: None };
        let pending = Pending { opening, due: now.plus(PATIENCE_MS), reserved: None, ours: Some(ours), held: None };
        self.pending.insert((order.peer, temporary_channel_id), pending);
        Ok(())
    }

    /// The wallet has answered.
    pub(crate) fn on_funded(
        &mut self,
        peer: PublicKey,
        id: ChannelId,
        funded: Funded,
        link: Option<&LinkUp>,
        now: Millis,
        shared: &Shared,
    ) {
        let Some(pending) = self.pending.get_mut(&(peer, id)) else {
            // It ended while the wallet was at it.
            if let Ok(funding) = funded {
                shared.release_coins(&funding.transaction);
            }
            return;
        };
        let mut fx = Effects::default();
        let reserving = Reserving::new(shared, peer, self.shard);
        let result = match funded {
            Ok(FundingTransaction { transaction, vout }) => {
                if let Some(ours) = &mut pending.ours {
                    ours.transaction = Some(transaction.clone());
                }
                let is_taken = |id| reserving.is_taken(id);
                let around = surroundings(self.height, shared, &is_taken);
                pending.opening.fund(transaction, vout, &around, &mut fx).map_err(OpenFailure::Refused)
            }
            Err(reason) => Err(OpenFailure::Wallet(reason)),
        };
        pending.due = now.plus(PATIENCE_MS);
        pending.reserved = reserving.taken.get().or(pending.reserved);
        if let Some(reserved) = pending.reserved {
            self.by_final.insert(reserved, id);
        }
        match result {
            Ok(()) => send_all(&mut fx, link),
            Err(failure) => {
                pending.opening.cancel("the funding transaction could not be made", &mut fx);
                send_all(&mut fx, link);
                self.fail(peer, id, failure, shared);
            }
        }
    }

    // --- the peer funds ---

    /// `open_channel`: it has been counted in the directory.
    pub(crate) fn on_open_channel(
        &mut self,
        open: OpenChannel,
        link: &LinkUp,
        mailbox: &Mailbox<Input>,
        now: Millis,
        shared: &Shared,
    ) {
        let (peer, id) = (link.peer, open.temporary_channel_id);
        match self.accept(open, link, shared) {
            Ok((opening, message)) => {
                let mut pending =
                    Pending { opening, due: now.plus(PATIENCE_MS), reserved: None, ours: None, held: None };
                if has_anchors(&message) {
                    pending.held = Some(message);
                    let others = self.pending.values().filter(|other| other.ours.is_none()).count();
                    ask_reserve(shared, mailbox, (peer, id), others);
                } else {
                    link.link.send(Box::new(message));
                }
                self.pending.insert((peer, id), pending);
            }
            Err(reply) => {
                shared.directory.end_opening(peer, id);
                link.link.send(reply);
            }
        }
    }

    /// The wallet has answered whether it can keep back what closing the channel takes.
    pub(crate) fn on_reserve(
        &mut self,
        peer: PublicKey,
        id: ChannelId,
        answer: Result<(), NoFunding>,
        link: Option<&LinkUp>,
        now: Millis,
        shared: &Shared,
    ) {
        let Some(pending) = self.pending.get_mut(&(peer, id)) else { return };
        let (Some(accept), Some(link)) = (pending.held.take(), link) else { return };
        match answer {
            Ok(()) => {
                pending.due = now.plus(PATIENCE_MS);
                link.link.send(Box::new(accept));
            }
            Err(why) => {
                let mut fx = Effects::default();
                // How much there is, is not the peer's business.
                pending.opening.cancel("no new channel now: this node lacks coins to close it with", &mut fx);
                send_all(&mut fx, Some(link));
                self.fail(peer, id, OpenFailure::Wallet(why), shared);
            }
        }
    }

    fn accept(&self, open: OpenChannel, link: &LinkUp, shared: &Shared) -> Result<(Opening, Message), Box<Message>> {
        let id = open.temporary_channel_id;
        let refuse = |text: String| Box::new(Message::Error(Error::new(id, &text)));
        shared.check_new_work().map_err(|why| refuse(format!("no new channel now: {why}")))?;
        let keys_index = shared.fresh_keys.take().ok_or_else(|| refuse("too many channels at once".to_owned()))?;
        let is_zero_conf_allowed = shared.rules.zero_conf_peers.contains(&link.peer);
        let depth = shared.rules.depth_of(open.funding);
        let params = AcceptParams {
            remote_node: link.peer,
            chain_hash: shared.rules.chain_hash,
            local: shared.rules.local_params(open.funding),
            limits: shared.rules.limits,
            features: OpeningFeatures::negotiated(&link.ours, &link.theirs),
            minimum_depth: if is_zero_conf_allowed { 0 } else { depth },
            is_zero_conf_allowed,
            keys: (shared.keys_of)(keys_index),
            keys_index,
            local_alias: shared.fresh_alias(),
        };
        let is_taken = |id| shared.directory.place(id).is_some();
        Opening::accept(open, params, &surroundings(self.height, shared, &is_taken)).map_err(|refused| refused.reply)
    }

    // --- both ---

    /// Whether a message with this id is for an opening.
    pub(crate) fn is_pending(&self, peer: PublicKey, id: ChannelId) -> bool {
        self.pending.contains_key(&(peer, self.temporary(id)))
    }

    fn temporary(&self, id: ChannelId) -> ChannelId {
        self.by_final.get(&id).copied().unwrap_or(id)
    }

    /// A message for an opening. A channel that comes out has its first effects in `fx`; otherwise `fx` stays empty.
    #[expect(clippy::too_many_arguments, reason = "what the message is, and what the shard lends for it")]
    pub(crate) fn on_message(
        &mut self,
        id: ChannelId,
        message: Message,
        link: &LinkUp,
        mailbox: &Mailbox<Input>,
        now: Millis,
        shared: &Shared,
        fx: &mut Effects,
    ) -> Option<Begun> {
        let peer = link.peer;
        let id = self.temporary(id);
        let pending = self.pending.get_mut(&(peer, id))?;
        let negotiated = negotiated(&message, pending.ours.as_ref());
        let reserving = Reserving::new(shared, peer, self.shard);
        let is_taken = |id| reserving.is_taken(id);
        // A funder's own id was reserved when it funded: nobody else can have it.
        let around = surroundings(self.height, shared, &is_taken);
        let result = pending.opening.on_message(message, &around, &shared.curve, fx);
        pending.due = now.plus(PATIENCE_MS);
        pending.reserved = reserving.taken.get().or(pending.reserved);
        match result {
            Ok(Some(OpeningEvent::Opened(channel))) => return self.begin(peer, id, channel),
            Ok(Some(OpeningEvent::FundingNeeded { script_pubkey, amount })) => {
                if let (Some(ours), Some(negotiated)) = (&pending.ours, negotiated) {
                    say(&ours.progress, negotiated);
                    ask_wallet(shared, mailbox, (peer, id), ours, script_pubkey, amount);
                }
                send_all(fx, Some(link));
            }
            Ok(Some(OpeningEvent::Refused { text })) => {
                send_all(fx, Some(link));
                self.fail(peer, id, OpenFailure::PeerRefused(text), shared);
            }
            Ok(None) => send_all(fx, Some(link)),
            Err(PeerFault { rule, what, .. }) => {
                send_all(fx, Some(link));
                self.fail(peer, id, OpenFailure::PeerFault(format!("{rule}: {what}")), shared);
            }
        }
        None
    }

    fn begin(&mut self, peer: PublicKey, id: ChannelId, channel: Box<Channel>) -> Option<Begun> {
        let pending = self.pending.remove(&(peer, id))?;
        self.by_final.remove(&channel.id());
        let (progress, entries) = match pending.ours {
            Some(ours) => {
                let entries = ours.when_opened.map(|when_opened| when_opened(channel.id()));
                (Some(ours.progress), entries.unwrap_or_default())
            }
            None => (None, Vec::new()),
        };
        Some(Begun { channel, temporary_channel_id: id, progress, entries })
    }

    /// The connection is gone, and its openings with it.
    pub(crate) fn on_link_down(&mut self, peer: PublicKey, shared: &Shared) {
        let gone: Vec<ChannelId> = self.pending.keys().filter(|(other, _)| *other == peer).map(|(_, id)| *id).collect();
        for id in gone {
            self.fail(peer, id, OpenFailure::Disconnected, shared);
        }
    }

    /// Ends those that are over their time.
    pub(crate) fn on_time(&mut self, now: Millis, links: &HashMap<PublicKey, LinkUp>, shared: &Shared) {
        let late: Vec<_> = self.pending.iter().filter(|(_, pending)| pending.due <= now).map(|(key, _)| *key).collect();
        for (peer, id) in late {
            let mut fx = Effects::default();
            if let Some(pending) = self.pending.get_mut(&(peer, id)) {
                pending.opening.cancel("the opening took too long", &mut fx);
            }
            send_all(&mut fx, links.get(&peer));
            self.fail(peer, id, OpenFailure::TimedOut(PATIENCE_MS / 1000), shared);
        }
    }

    fn fail(&mut self, peer: PublicKey, id: ChannelId, failure: OpenFailure, shared: &Shared) {
        let Some(pending) = self.pending.remove(&(peer, id)) else { return };
        shared.directory.end_opening(peer, id);
        if let Some(reserved) = pending.reserved {
            self.by_final.remove(&reserved);
            shared.directory.unreserve(reserved);
        }
        tracing::info!(%peer, temporary_channel_id = %id, %failure, "an opening has ended");
        if let Some(ours) = pending.ours {
            // The peer's half of the commitment never came: nothing can ever spend what was to be funded.
            if let Some(transaction) = &ours.transaction {
                shared.release_coins(transaction);
            }
            say(&ours.progress, OpenProgress::Failed(failure));
        }
    }
}

/// Reserves the final id when the opening asks whether it is taken.
struct Reserving<'a> {
    shared: &'a Shared,
    peer: PublicKey,
    shard: usize,
    taken: Cell<Option<ChannelId>>,
}

impl<'a> Reserving<'a> {
    fn new(shared: &'a Shared, peer: PublicKey, shard: usize) -> Self {
        Self { shared, peer, shard, taken: Cell::new(None) }
    }

    fn is_taken(&self, id: ChannelId) -> bool {
        if self.taken.get() == Some(id) {
            return false;
        }
        let is_reserved = self.shared.directory.reserve(self.peer, id, self.shard);
        if is_reserved {
            self.taken.set(Some(id));
        }
        !is_reserved
    }
}

fn surroundings<'a>(height: BlockHeight, shared: &Shared, is_taken: &'a dyn Fn(ChannelId) -> bool) -> Surroundings<'a> {
    Surroundings { height, policy: shared.rules.policy, is_taken }
}

fn request_of(
    order: &OpenOrder,
    temporary_channel_id: ChannelId,
    features: OpeningFeatures,
    shared: &Shared,
) -> Result<OpenRequest, OpenFailure> {
    shared.check_new_work()?;
    let usual = shared.rules.local_params(order.capacity);
    let busy = Refusal::NotUsable("too many channels are being opened at once");
    let keys_index = shared.fresh_keys.take().ok_or(busy)?;
    let format = if features.anchors { CommitmentFormat::Anchors } else { CommitmentFormat::StaticRemotekey };
    Ok(OpenRequest {
        remote_node: order.peer,
        chain_hash: shared.rules.chain_hash,
        temporary_channel_id,
        funding: order.capacity,
        push: order.push,
        feerate: shared.commitment_feerate(format == CommitmentFormat::Anchors),
        // BOLT 2: an announced channel tells its real short channel id.
        channel_type: ChannelType {
            format,
            scid_alias: features.scid_alias && !order.announce,
            zero_conf: order.zero_conf,
        },
        announce: order.announce,
        local: LocalParams {
            to_self_delay: order.to_self_delay.unwrap_or(usual.to_self_delay),
            htlc_minimum: order.htlc_minimum.unwrap_or(usual.htlc_minimum),
            max_htlc_value_in_flight: order.max_in_flight.unwrap_or(usual.max_htlc_value_in_flight),
            upfront_shutdown_script: order.upfront_shutdown_script.clone(),
            ..usual
        },
        limits: shared.rules.limits,
        features,
        keys: (shared.keys_of)(keys_index),
        keys_index,
        local_alias: shared.fresh_alias(),
    })
}

/// What is told of an `accept_channel`, should it be good.
fn negotiated(message: &Message, ours: Option<&Ours>) -> Option<OpenProgress> {
    let (Message::AcceptChannel(accept), Some(ours)) = (message, ours) else { return None };
    Some(OpenProgress::Negotiated {
        temporary_channel_id: accept.temporary_channel_id,
        minimum_depth: accept.minimum_depth,
        remote_reserve: ours.local_reserve_asked,
        local_reserve: accept.channel_reserve,
    })
}

fn ask_wallet(
    shared: &Shared,
    mailbox: &Mailbox<Input>,
    (peer, temporary_channel_id): (PublicKey, ChannelId),
    ours: &Ours,
    script_pubkey: bitcoin::ScriptBuf,
    amount: Sat,
) {
    let mailbox = mailbox.clone();
    let reply = FundingReply::new(move |funded| mailbox.put(Input::Funded { peer, temporary_channel_id, funded }));
    let (feerate, has_anchors) = (ours.funding_feerate, ours.has_anchors);
    shared.wallet.fund(FundingRequest { script_pubkey, amount, feerate, has_anchors, reply });
}

/// Whether an `accept_channel` is for a channel with anchors, which pays its closing fees later.
fn has_anchors(accept: &Message) -> bool {
    let Message::AcceptChannel(accept) = accept else { return false };
    let channel_type = accept.channel_type.as_ref().and_then(ChannelType::from_features);
    channel_type.is_some_and(|channel_type| channel_type.format == CommitmentFormat::Anchors)
}

fn ask_reserve(
    shared: &Shared,
    mailbox: &Mailbox<Input>,
    (peer, temporary_channel_id): (PublicKey, ChannelId),
    others: usize,
) {
    let mailbox = mailbox.clone();
    let reply = move |answer| mailbox.put(Input::Reserve { peer, temporary_channel_id, answer });
    shared.wallet.reserve(others, Box::new(reply));
}

/// Sends what an opening wants to say. It has no record, so it waits for nothing.
fn send_all(fx: &mut Effects, link: Option<&LinkUp>) {
    for effect in fx.list.drain(..) {
        match (effect, link) {
            (Effect::Send(message), Some(link)) => link.link.send(message),
            (Effect::Send(_) | Effect::Fact(_), _) => {}
            (other, _) => unreachable!("an opening that is no channel asks for no {other:?}"),
        }
    }
    fx.clear();
}

fn say(progress: &ProgressSender, what: OpenProgress) {
    // Whoever stopped listening does not stop the opening.
    let _gone = progress.send(what);
}

/// The answer to an `open_channel` that is not even looked at.
pub(crate) fn turn_down(id: ChannelId, why: &super::directory::NoOpening) -> Message {
    let text = why.to_string();
    if id.is_all() { Message::Warning(Warning::new(id, &text)) } else { Message::Error(Error::new(id, &text)) }
}
