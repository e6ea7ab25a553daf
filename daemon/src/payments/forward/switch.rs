//! Deciding: what becomes of a circuit, from its fold, its onion and how the channels are.
//!
//! Each circuit that something touched is looked at anew ([`Forwarding::go_on`]); what is to be done comes out as
//! [`Act`]s. Nothing here waits. An HTLC whose channel is too busy to take it waits in a queue of that channel, which is
//! short, for a short time, and fails after that: the sender may find another way.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use millrace_channel::ledger::htlc::{Origin, Removal};
use millrace_channel::{Fact, Offer};
use millrace_routing::SharedSecret;
use millrace_routing::failure::{Failure, FailureMessage, HoldTime, fail, fulfill, pass_back};
use millrace_routing::onion::Forward;
use millrace_wire::{AttributionData, BlockHeight, ChannelId, HtlcId, Preimage, ShortChannelId};

use super::check::Asked;
use super::choose::{Channels, NoWay, choose};
use super::{Circuits, CircuitsSection, Key};
use crate::channels::{ChannelState, CommandError, CommandResult, NoNewWork};
use crate::facts::ReceivedOnion;
use crate::happened::Happened;
use crate::payments::judge::Received;
use crate::policy::Policies;

/// HTLCs that may wait for one channel: a fraction of its slots, so that waiting stays short.
const QUEUE_MAX: usize = 64;
/// How long one may wait: senders who wait longer would rather try elsewhere.
const QUEUE_MS: u64 = 1_000;

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Act {
    /// Offer it onward; answered by [`Forwarding::answered`].
    Offer {
        /// What came in.
        key: Key,
        /// To which channel.
        channel_id: ChannelId,
        /// What goes out.
        offer: Box<Offer>,
    },
    /// Fulfil it upstream.
    Fulfill {
        /// What came in.
        key: Key,
        /// The proof.
        preimage: Preimage,
        /// Who held it for how long.
        attribution: Option<Box<AttributionData>>,
    },
    /// Fail it upstream.
    Fail {
        /// What came in.
        key: Key,
        /// For the sender.
        failure: Failure,
        /// It came back; or else it never went on.
        went_on: bool,
    },
    /// A channel may forget how an HTLC ended.
    Release(ChannelId, HtlcId),
}

/// What decisions depend on, besides the circuits.
pub(crate) struct Sight<'a> {
    /// The channels as they are.
    pub(crate) channels: &'a dyn Channels,
    /// On what terms is forwarded.
    pub(crate) policies: &'a Policies,
    /// What we announce of a channel, by the id that an onion used: a whole message, as failures carry it.
    pub(crate) update_of: &'a dyn Fn(ShortChannelId) -> Option<Vec<u8>>,
    /// Whether obligations may be taken on.
    pub(crate) new_work: Result<(), NoNewWork>,
    /// Where the chain is, if that is known well enough.
    pub(crate) height: Option<BlockHeight>,
    /// The part of a channel that one peer may hold.
    pub(crate) peer_share_percent: u8,
    /// Unix time.
    pub(crate) unix_ms: u64,
}

/// The switch.
#[derive(Default)]
pub(crate) struct Forwarding {
    pub(super) circuits: Circuits,
    /// What was peeled, and is undecided.
    pub(super) live: HashMap<Key, Live>,
    /// To be looked at.
    due: BTreeSet<Key>,
    queues: BTreeMap<ChannelId, VecDeque<(Key, u64)>>,
    /// The last block at which it was looked for what is about to expire.
    looked_at: Option<BlockHeight>,
}

/// An HTLC whose onion was peeled.
pub(super) struct Live {
    secret: SharedSecret,
    /// What the onion asks for, while it has not gone on.
    forward: Option<Box<Forward>>,
    begun_ms: u64,
    /// Channels that have refused it.
    tried: Vec<ChannelId>,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// To be offered.
    Ready,
    /// In a queue.
    Queued,
    /// A channel was asked, and nothing of it is durable.
    Ordered(ChannelId),
    /// A channel has it.
    Out,
}

impl Forwarding {
    // --- the fold ---

    /// A fact of a channel. On replay nothing follows from it.
    #[allow(clippy::too_many_arguments, reason = "a fact, its circumstances, and two places for what follows")]
    pub(crate) fn on_fact(
        &mut self,
        channel_id: ChannelId,
        fact: &Fact,
        received: Option<&ReceivedOnion>,
        time_ms: u64,
        is_replay: bool,
        out: &mut Vec<Act>,
        happened: &mut Vec<Happened>,
    ) {
        let touched = self.circuits.on_fact(channel_id, fact, received, time_ms, happened);
        if let Some((key, channel_id)) = touched.committed {
            self.leave(key, channel_id, Stage::Out);
        }
        if let Some((key, channel_id)) = touched.dropped
            && self.leave(key, channel_id, Stage::Ready)
        {
            self.refused(key, channel_id);
        }
        if !is_replay {
            self.due.extend(touched.keys);
            out.extend(touched.released.into_iter().map(|(channel_id, id)| Act::Release(channel_id, id)));
        }
    }

    /// For a checkpoint.
    pub(crate) fn section(&self) -> CircuitsSection {
        self.circuits.section()
    }

    /// Takes a section back.
    pub(crate) fn restore(&mut self, section: CircuitsSection) {
        self.circuits.restore(section);
    }

    // --- what came in ---

    /// Whether an HTLC is out downstream, or was: it must not be judged by itself any more.
    pub(crate) fn has_gone_on(&self, key: &Key) -> bool {
        self.circuits.circuits.get(key).is_some_and(|circuit| circuit.outgoing.is_some())
    }

    /// Takes an onion for an HTLC before it is peeled. False if it was used before: it must be refused.
    pub(crate) fn take_onion(&mut self, key: Key) -> bool {
        match self.circuits.circuits.get(&key) {
            // Its own, from before the last stop.
            Some(circuit) if circuit.outgoing.is_some() => true,
            Some(circuit) => self.circuits.onions.take(circuit.onion, key),
            None => true,
        }
    }

    /// An HTLC that asks to go on was peeled.
    pub(crate) fn begin(&mut self, received: &Received, secret: SharedSecret, forward: Forward, unix_ms: u64) {
        let key = (received.channel_id, received.id);
        let Some(circuit) = self.circuits.circuits.get(&key) else { return };
        if circuit.is_removed || self.live.contains_key(&key) {
            return;
        }
        let stage = if circuit.outgoing.is_some() { Stage::Out } else { Stage::Ready };
        let forward = (stage == Stage::Ready).then(|| Box::new(forward));
        self.live.insert(key, Live { secret, forward, begun_ms: unix_ms, tried: Vec::new(), stage });
        self.due.insert(key);
    }

    /// A channel has answered to an offer. Whether it is out there is for its facts to say.
    pub(crate) fn answered(&mut self, key: Key, channel_id: ChannelId, result: CommandResult, unix_ms: u64) {
        match result {
            Ok(_) => {}
            // It may be on its way to the disk, as far as anybody knows: the next start tells.
            Err(CommandError::NoNewWork(NoNewWork::Stopping)) => {}
            Err(CommandError::Busy { .. } | CommandError::NoNewWork(NoNewWork::DiskBehind(_))) => {
                if self.leave(key, channel_id, Stage::Ready) {
                    self.queue(key, channel_id, unix_ms);
                }
            }
            Err(error) => {
                if self.leave(key, channel_id, Stage::Ready) {
                    tracing::debug!(%channel_id, %error, "a channel does not take a forward");
                    self.refused(key, channel_id);
                }
            }
        }
    }

    /// Looks at all that something has touched; on a tick also at what waits.
    pub(crate) fn go_on(&mut self, sight: &Sight<'_>, is_tick: bool, out: &mut Vec<Act>) {
        if is_tick {
            self.leave_queues(sight.unix_ms);
            self.look_for_late(sight.height);
        }
        while let Some(key) = self.due.pop_first() {
            self.look_at(key, sight, out);
        }
    }

    /// After each block: what is out, and about to expire upstream.
    fn look_for_late(&mut self, height: Option<BlockHeight>) {
        if let Some(height) = height.filter(|height| self.looked_at != Some(*height)) {
            self.looked_at = Some(height);
            let late = self.circuits.circuits.iter().filter(|(_, circuit)| circuit.is_late(height));
            self.due.extend(late.map(|(key, _)| *key));
        }
    }

    /// Forgets what has expired.
    pub(crate) fn prune(&mut self, height: BlockHeight) {
        self.circuits.onions.prune(height);
    }

    /// How many HTLCs are on their way through this node.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.circuits.circuits.len()
    }

    // --- one circuit ---

    fn look_at(&mut self, key: Key, sight: &Sight<'_>, out: &mut Vec<Act>) {
        let Some(circuit) = self.circuits.circuits.get_mut(&key) else {
            self.live.remove(&key);
            return;
        };
        if circuit.is_removed {
            self.live.remove(&key);
            return;
        }
        if circuit.is_decided {
            return;
        }
        match &circuit.outgoing {
            Some(outgoing) => match &outgoing.preimage {
                Some(preimage) => {
                    let preimage = preimage.clone();
                    circuit.is_decided = true;
                    let behind = circuit.attribution.take();
                    let live = self.live.remove(&key);
                    let attribution = live.map(|live| fulfill(&live.secret, behind.as_deref(), live.held(sight)));
                    out.push(Act::Fulfill { key, preimage, attribution });
                }
                None if outgoing.is_over => {
                    // Until it is peeled, nobody could read a failure.
                    let Some(live) = self.live.remove(&key) else { return };
                    circuit.is_decided = true;
                    let failure = live.came_back(circuit.failed.take().map(|removal| *removal), sight);
                    out.push(Act::Fail { key, failure, went_on: true });
                }
                None if sight.height.is_some_and(|height| circuit.is_late(height)) => {
                    let is_on_chain = sight
                        .channels
                        .channel(outgoing.channel_id)
                        .is_none_or(|channel| matches!(channel.state, ChannelState::OnChain | ChannelState::Closed));
                    // While it is open, its own deadline comes first.
                    if !is_on_chain {
                        return;
                    }
                    let Some(live) = self.live.remove(&key) else { return };
                    let (channel_id, out_id, expiry) = (outgoing.channel_id, outgoing.id.0, circuit.cltv_expiry.0);
                    tracing::warn!(
                        incoming = %key.0, htlc_id = key.1.0, expiry, outgoing = %channel_id, outgoing_htlc_id = out_id,
                        "the outgoing channel is on chain and has not come to its end: the HTLC is failed before it expires"
                    );
                    circuit.is_decided = true;
                    let failure = fail(&live.secret, &FailureMessage::PermanentChannelFailure, live.held(sight));
                    out.push(Act::Fail { key, failure, went_on: true });
                }
                None => {}
            },
            None => self.try_on(key, sight, out),
        }
    }

    fn try_on(&mut self, key: Key, sight: &Sight<'_>, out: &mut Vec<Act>) {
        let Some(circuit) = self.circuits.circuits.get(&key) else { return };
        let Some(live) = self.live.get_mut(&key).filter(|live| live.stage == Stage::Ready) else { return };
        let Some(forward) = &live.forward else { return };
        let asked = Asked {
            amount_in: circuit.amount,
            expiry_in: circuit.cltv_expiry,
            amount_out: forward.amount,
            expiry_out: forward.expiry,
        };
        let (next, payment_hash) = (forward.next, circuit.payment_hash);
        let message = match (sight.height, &sight.new_work) {
            // Nothing is decided any more: the next start goes on with it.
            (_, Err(NoNewWork::Stopping)) => return,
            (None, _) | (_, Err(NoNewWork::DiskLow(_) | NoNewWork::Chain { .. })) => {
                FailureMessage::TemporaryNodeFailure
            }
            (Some(height), Ok(()) | Err(NoNewWork::DiskBehind(_))) => {
                match choose(&self.circuits, key.0, next, asked, &live.tried, height, sight) {
                    Ok(channel_id) => {
                        let offer = Box::new(Offer {
                            amount: asked.amount_out,
                            payment_hash,
                            cltv_expiry: asked.expiry_out,
                            onion: forward.packet.clone(),
                            path_key: None,
                            origin: Origin::Forward { channel_id: key.0, htlc_id: key.1 },
                        });
                        live.stage = Stage::Ordered(channel_id);
                        self.circuits.add_load(channel_id, key.0, asked.amount_out);
                        out.push(Act::Offer { key, channel_id, offer });
                        return;
                    }
                    Err(why) => {
                        tracing::debug!(channel_id = %key.0, htlc_id = key.1.0, %why, "an HTLC does not go on");
                        why.message(update(next, why, sight))
                    }
                }
            }
        };
        let failure = fail(&live.secret, &message, live.held(sight));
        self.decide(key);
        out.push(Act::Fail { key, failure, went_on: false });
    }

    fn decide(&mut self, key: Key) {
        self.live.remove(&key);
        if let Some(circuit) = self.circuits.circuits.get_mut(&key) {
            circuit.is_decided = true;
        }
    }

    /// It is no longer a mere order to this channel. False if it was none.
    fn leave(&mut self, key: Key, channel_id: ChannelId, to: Stage) -> bool {
        let Some(live) = self.live.get_mut(&key).filter(|live| live.stage == Stage::Ordered(channel_id)) else {
            return false;
        };
        live.stage = to;
        let amount = live.forward.as_ref().map(|forward| forward.amount);
        if to == Stage::Out {
            live.forward = None;
        }
        if let Some(amount) = amount {
            self.circuits.remove_load(channel_id, key.0, amount);
        }
        true
    }

    fn refused(&mut self, key: Key, channel_id: ChannelId) {
        if let Some(live) = self.live.get_mut(&key) {
            live.tried.push(channel_id);
            self.due.insert(key);
        }
    }

    // --- queues ---

    fn queue(&mut self, key: Key, channel_id: ChannelId, unix_ms: u64) {
        let Some(live) = self.live.get_mut(&key) else { return };
        let queue = self.queues.entry(channel_id).or_default();
        if queue.len() >= QUEUE_MAX || unix_ms >= live.begun_ms.saturating_add(QUEUE_MS) {
            return self.refused(key, channel_id);
        }
        live.stage = Stage::Queued;
        queue.push_back((key, live.begun_ms));
    }

    /// All of them are tried again: a channel that is still busy says so at once.
    fn leave_queues(&mut self, unix_ms: u64) {
        for (channel_id, queue) in std::mem::take(&mut self.queues) {
            for (key, begun_ms) in queue {
                let Some(live) = self.live.get_mut(&key).filter(|live| live.stage == Stage::Queued) else { continue };
                live.stage = Stage::Ready;
                if unix_ms >= begun_ms.saturating_add(QUEUE_MS) {
                    live.tried.push(channel_id);
                }
                self.due.insert(key);
            }
        }
    }
}

impl Live {
    fn held(&self, sight: &Sight<'_>) -> HoldTime {
        HoldTime::floor(std::time::Duration::from_millis(sight.unix_ms.saturating_sub(self.begun_ms)))
    }

    /// The failure of what has come back, on to whoever sent it.
    fn came_back(&self, removal: Option<Removal>, sight: &Sight<'_>) -> Failure {
        let held = self.held(sight);
        match removal {
            Some(Removal::Fail { reason, attribution }) => {
                pass_back(&self.secret, reason, attribution.as_deref(), held)
            }
            // BOLT 4: the next hop could not read it, so this one says so.
            Some(Removal::Malformed { sha256_of_onion, failure_code }) => {
                fail(&self.secret, &FailureMessage::from_malformed(failure_code, sha256_of_onion), held)
            }
            // It ended on chain, where nobody says why.
            Some(Removal::Fulfill { .. }) | None => fail(&self.secret, &FailureMessage::PermanentChannelFailure, held),
        }
    }
}

/// What belongs beside a failure: the channel's conditions, under the name that the onion used. lnd cannot read a
/// `fee_insufficient` without them, so they are sent whenever there are any.
fn update(next: ShortChannelId, why: NoWay, sight: &Sight<'_>) -> Vec<u8> {
    match why {
        NoWay::Unknown | NoWay::Gone => Vec::new(),
        NoWay::Disabled | NoWay::Unfit(_) | NoWay::ForNow => (sight.update_of)(next).unwrap_or_default(),
    }
}
