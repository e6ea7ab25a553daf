//! The switch: HTLCs of peers that go on over another channel (BOLT 2, "Forwarding HTLCs"; BOLT 4, "Returning Errors").
//!
//! Its durable state is a fold over the channels' facts ([`Circuits`]), keyed by the incoming channel and its HTLC's id,
//! never by a hash. What a circuit needs to go on is decided in one place (`switch`), whenever news, an answer or a tick
//! touches it, from nothing but that fold and what the onion said: so it does not matter in which order the news of two
//! channels come. The durable part of each leg is in its channel:
//!
//! | what | says so |
//! |---|---|
//! | the incoming HTLC is there, and undecided | `HtlcReceived`, told again at each start |
//! | it went on | `OfferCommitted`, which names the incoming one |
//! | it succeeded | `OfferFulfilled`: upstream at once, without waiting for the removal |
//! | it cannot succeed any more | `OfferResolved`, `OfferTimedOut`, or the channel `Closed`: only then it fails upstream, but for the next row |
//! | its channel is on chain, and does not come to its end | the incoming HTLC is about to expire: it fails upstream, or that channel would be lost as well |
//! | it is over upstream | `RemovalIrrevocable`, or the channel `Closed`: only then the outcome is released |
//!
//! A preimage comes from the downstream channel alone; invoices are not looked at (CVE-2020-26896).

mod check;
mod choose;
mod hand;
mod onions;
mod switch;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};

use millrace_channel::Fact;
use millrace_channel::ledger::htlc::{Origin, Removal};
use millrace_wire::{AttributionData, BlockHeight, ChannelId, CltvExpiry, HtlcId, Msat, PaymentHash, Preimage};
use serde::{Deserialize, Serialize};

pub(crate) use hand::{Answered, Hand};
pub(crate) use switch::{Act, Forwarding, Sight};

use self::onions::{OnionId, Onions, OnionsSection};
use crate::facts::ReceivedOnion;
use crate::happened::{ForwardEnd, Forwarded, Happened};

/// So many blocks before it expires, an HTLC is failed upstream whose channel downstream is on chain and does not come to its
/// end: by then that channel has had the whole `cltv_expiry_delta`. Few, for a preimage may still come; enough for a peer
/// to agree to the removal before it has to close.
const FAIL_BACK_BLOCKS: u32 = 3;

/// An HTLC of a peer: the channel that it came by, and its id there.
pub(crate) type Key = (ChannelId, HtlcId);

/// An HTLC of a peer from the time at which it is irrevocably there, until nothing of it is left on either side.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Circuit {
    amount: Msat,
    payment_hash: PaymentHash,
    cltv_expiry: CltvExpiry,
    onion: OnionId,
    since_ms: u64,
    /// It is over upstream.
    is_removed: bool,
    /// Where it went on, if it did.
    outgoing: Option<Outgoing>,
    /// Volatile: how it is to end upstream was handed to its channel.
    #[serde(skip)]
    is_decided: bool,
    /// Volatile: how it was failed downstream. Told again at a start, as long as it is needed.
    #[serde(skip)]
    failed: Option<Box<Removal>>,
    /// Volatile: how long the hops behind have held it, if it succeeded and they have told. Worth no byte on the disk.
    #[serde(skip)]
    attribution: Option<Box<AttributionData>>,
}

/// The HTLC that we offered for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Outgoing {
    channel_id: ChannelId,
    id: HtlcId,
    amount: Msat,
    /// Once it is known: it succeeds, whatever else.
    preimage: Option<Preimage>,
    /// It is over downstream: without a preimage it has failed.
    is_over: bool,
}

/// HTLCs that one channel has put into another.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Load {
    htlcs: usize,
    amount: Msat,
}

/// The fold.
#[derive(Default)]
pub(crate) struct Circuits {
    circuits: BTreeMap<Key, Circuit>,
    onions: Onions,
    /// By the outgoing channel, and the incoming one. Follows from the circuits, and from what is being offered.
    load: HashMap<(ChannelId, ChannelId), Load>,
}

/// The circuits in a checkpoint.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct CircuitsSection {
    circuits: Vec<(Key, Circuit)>,
    onions: OnionsSection,
}

/// What a fact means to the switch.
#[derive(Default)]
struct Touched {
    /// Circuits that may go on.
    keys: Vec<Key>,
    /// Outcomes that their channel may forget.
    released: Vec<(ChannelId, HtlcId)>,
    /// An offer that its channel has dropped before it was signed for.
    dropped: Option<(Key, ChannelId)>,
    /// An offer that is signed for.
    committed: Option<(Key, ChannelId)>,
}

impl Circuits {
    fn on_fact(
        &mut self,
        channel_id: ChannelId,
        fact: &Fact,
        received: Option<&ReceivedOnion>,
        time_ms: u64,
        happened: &mut Vec<Happened>,
    ) -> Touched {
        let mut touched = Touched::default();
        match fact {
            Fact::HtlcReceived { id, amount, payment_hash, cltv_expiry, .. } => {
                let onion = received.map(|received| OnionId::of(&received.onion)).unwrap_or_default();
                self.circuits.entry((channel_id, *id)).or_insert_with(|| Circuit {
                    amount: *amount,
                    payment_hash: *payment_hash,
                    cltv_expiry: *cltv_expiry,
                    onion,
                    since_ms: time_ms,
                    is_removed: false,
                    outgoing: None,
                    is_decided: false,
                    failed: None,
                    attribution: None,
                });
            }
            Fact::OfferDropped { origin } => touched.dropped = key_of(origin).map(|key| (key, channel_id)),
            Fact::OfferCommitted { id, origin, amount } => {
                let Some(key) = key_of(origin) else { return touched };
                touched.committed = Some((key, channel_id));
                self.on_committed(key, channel_id, *id, *amount);
            }
            Fact::OfferFulfilled { origin, preimage, .. } => {
                let Some(key) = key_of(origin) else { return touched };
                self.on_fulfilled(key, preimage, happened);
                touched.keys.push(key);
            }
            Fact::OfferAttributed { origin, attribution } => {
                if let Some(circuit) = key_of(origin).and_then(|key| self.circuits.get_mut(&key)) {
                    circuit.attribution = Some(attribution.clone());
                }
            }
            Fact::OfferResolved { id, origin, removal } => {
                let Some(key) = key_of(origin) else { return touched };
                if let Removal::Fulfill { preimage, attribution } = removal {
                    self.on_fulfilled(key, preimage, happened);
                    if let (Some(circuit), Some(attribution)) = (self.circuits.get_mut(&key), attribution) {
                        circuit.attribution = Some(attribution.clone());
                    }
                } else if let Some(circuit) = self.circuits.get_mut(&key) {
                    circuit.failed = Some(Box::new(removal.clone()));
                }
                self.on_over(key, ForwardEnd::Failed, happened);
                if !self.circuits.contains_key(&key) {
                    // It was taken over before the last stop.
                    touched.released.push((channel_id, *id));
                }
                touched.keys.push(key);
            }
            Fact::OfferTimedOut { origin, .. } => {
                let Some(key) = key_of(origin) else { return touched };
                self.on_over(key, ForwardEnd::TimedOut, happened);
                touched.keys.push(key);
            }
            Fact::RemovalIrrevocable { id, fulfilled } => {
                self.on_removed((channel_id, *id), *fulfilled, happened);
                touched.keys.push((channel_id, *id));
            }
            Fact::Closed(_) => self.on_closed(channel_id, happened, &mut touched.keys),
            Fact::Opened { .. }
            | Fact::FundingConfirmed { .. }
            | Fact::Ready
            | Fact::ShuttingDown
            | Fact::CloseAsked
            | Fact::MutualCloseSigned { .. }
            | Fact::Failed { .. }
            | Fact::FundingSpent { .. }
            | Fact::PeerSaid { .. }
            | Fact::HtlcPast(_)
            | Fact::Breached { .. }
            | Fact::Announced { .. } => {}
        }
        for key in &touched.keys {
            touched.released.extend(self.end(*key));
        }
        touched
    }

    fn on_committed(&mut self, key: Key, channel_id: ChannelId, id: HtlcId, amount: Msat) {
        let Some(circuit) = self.circuits.get_mut(&key) else {
            tracing::error!(%channel_id, htlc_id = id.0, "an HTLC goes on that never came in");
            return;
        };
        if circuit.outgoing.is_none() {
            self.onions.used(circuit.onion, circuit.cltv_expiry);
            circuit.outgoing = Some(Outgoing { channel_id, id, amount, preimage: None, is_over: false });
            self.add_load(channel_id, key.0, amount);
        }
    }

    fn on_fulfilled(&mut self, key: Key, preimage: &Preimage, happened: &mut Vec<Happened>) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        let Some(outgoing) = &mut circuit.outgoing else { return };
        if outgoing.preimage.is_none() {
            outgoing.preimage = Some(preimage.clone());
            let end = if circuit.is_removed { ForwardEnd::Lost } else { ForwardEnd::Settled };
            happened.extend(circuit.told(key, end));
        }
    }

    fn on_over(&mut self, key: Key, end: ForwardEnd, happened: &mut Vec<Happened>) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        let Some(outgoing) = circuit.outgoing.as_mut().filter(|outgoing| !outgoing.is_over) else { return };
        outgoing.is_over = true;
        let (channel_id, amount) = (outgoing.channel_id, outgoing.amount);
        if outgoing.preimage.is_none() {
            happened.extend(circuit.told(key, end));
        }
        self.remove_load(channel_id, key.0, amount);
    }

    fn on_removed(&mut self, key: Key, fulfilled: bool, happened: &mut Vec<Happened>) {
        let Some(circuit) = self.circuits.get_mut(&key) else { return };
        circuit.is_removed = true;
        let Some(outgoing) = circuit.outgoing.as_ref().filter(|_| !fulfilled) else { return };
        let (channel_id, htlc_id) = key;
        if outgoing.preimage.is_some() {
            // It came between the decision and the peer's word to it.
            tracing::error!(%channel_id, htlc_id = htlc_id.0, amount = %outgoing.amount, "the preimage of an HTLC came too late");
            happened.extend(circuit.told(key, ForwardEnd::Lost));
        } else if !outgoing.is_over {
            tracing::warn!(%channel_id, htlc_id = htlc_id.0, "an HTLC failed that may still succeed downstream");
        }
    }

    /// What is not resolved on a closed channel never will be: nothing of it can be learnt any more.
    fn on_closed(&mut self, channel_id: ChannelId, happened: &mut Vec<Happened>, keys: &mut Vec<Key>) {
        let went_on = |circuit: &Circuit| circuit.outgoing.as_ref().is_some_and(|out| out.channel_id == channel_id);
        let concerned: Vec<(Key, bool)> = self
            .circuits
            .iter()
            .filter(|(key, circuit)| key.0 == channel_id || went_on(circuit))
            .map(|(key, circuit)| (*key, went_on(circuit)))
            .collect();
        for (key, is_outgoing) in concerned {
            if is_outgoing {
                self.on_over(key, ForwardEnd::TimedOut, happened);
            }
            if key.0 == channel_id
                && let Some(circuit) = self.circuits.get_mut(&key)
            {
                circuit.is_removed = true;
            }
            keys.push(key);
        }
    }

    /// Forgets a circuit that is over on both sides, and gives the outcome that need not be kept for it.
    fn end(&mut self, key: Key) -> Option<(ChannelId, HtlcId)> {
        let circuit = self.circuits.get(&key)?;
        if !circuit.is_removed || circuit.outgoing.as_ref().is_some_and(|outgoing| !outgoing.is_over) {
            return None;
        }
        let ended = self.circuits.remove(&key)?;
        self.onions.forget(ended.onion, key);
        ended.outgoing.map(|outgoing| (outgoing.channel_id, outgoing.id))
    }

    fn add_load(&mut self, outgoing: ChannelId, incoming: ChannelId, amount: Msat) {
        let load = self.load.entry((outgoing, incoming)).or_default();
        load.htlcs += 1;
        load.amount = Msat(load.amount.0.saturating_add(amount.0));
    }

    fn remove_load(&mut self, outgoing: ChannelId, incoming: ChannelId, amount: Msat) {
        let Some(load) = self.load.get_mut(&(outgoing, incoming)) else { return };
        load.htlcs = load.htlcs.saturating_sub(1);
        load.amount = Msat(load.amount.0.saturating_sub(amount.0));
        if load.htlcs == 0 {
            self.load.remove(&(outgoing, incoming));
        }
    }

    fn load_of(&self, outgoing: ChannelId, incoming: ChannelId) -> Load {
        self.load.get(&(outgoing, incoming)).copied().unwrap_or_default()
    }

    /// For a checkpoint.
    fn section(&self) -> CircuitsSection {
        let circuits = self.circuits.iter().map(|(key, circuit)| (*key, circuit.clone())).collect();
        CircuitsSection { circuits, onions: self.onions.section() }
    }

    /// Takes a section back.
    fn restore(&mut self, section: CircuitsSection) {
        self.onions.restore(section.onions);
        for (key, circuit) in section.circuits {
            if let Some(outgoing) = circuit.outgoing.as_ref().filter(|outgoing| !outgoing.is_over) {
                self.add_load(outgoing.channel_id, key.0, outgoing.amount);
            }
            self.circuits.insert(key, circuit);
        }
    }
}

impl Circuit {
    /// It is out, and its incoming side is about to expire. BOLT 2 lets whoever offered it close the channel then.
    fn is_late(&self, height: BlockHeight) -> bool {
        let is_out = self.outgoing.as_ref().is_some_and(|outgoing| !outgoing.is_over && outgoing.preimage.is_none());
        is_out && !self.is_removed && self.cltv_expiry.0 <= height.0.saturating_add(FAIL_BACK_BLOCKS)
    }

    fn told(&self, (incoming_channel, incoming_htlc): Key, end: ForwardEnd) -> Option<Happened> {
        let outgoing = self.outgoing.as_ref()?;
        Some(Happened::Forwarded(Box::new(Forwarded {
            incoming_channel,
            incoming_htlc,
            outgoing_channel: outgoing.channel_id,
            outgoing_htlc: outgoing.id,
            payment_hash: self.payment_hash,
            amount_in: self.amount,
            amount_out: outgoing.amount,
            received_ms: self.since_ms,
            end,
        })))
    }
}

fn key_of(origin: &Origin) -> Option<Key> {
    match *origin {
        Origin::Forward { channel_id, htlc_id } => Some((channel_id, htlc_id)),
        Origin::Payment { .. } => None,
    }
}
