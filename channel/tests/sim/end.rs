//! One end of a channel in a node: the channel itself, the outbox in front of it, and a mirror that knows only
//! what is on the disk.

use std::collections::{BTreeSet, VecDeque};

use millrace_channel::channel::Policy;
use millrace_channel::keys::{ChannelKeys, Identity};
use millrace_channel::ledger::htlc::Origin;
use millrace_channel::ledger::past::PastHtlc;
use millrace_channel::phase::opening::Opening;
use millrace_channel::{Channel, Effect, Effects, Record};
use millrace_wire::{ChainHash, HtlcId, Msat};

use crate::world::node_key;

/// What there is of a channel at one end.
pub enum Slot {
    Empty,
    Opening(Box<Opening>),
    Channel(Box<Channel>),
}

/// An effect that waits for its record to be durable.
pub struct Parked {
    /// Steps of the disk that must be durable first.
    pub needs: usize,
    pub effect: Effect,
    /// The connection it was made on.
    pub epoch: u64,
}

/// A removal that the peer has proposed.
pub struct ArrivedRemoval {
    pub id: HtlcId,
    pub origin: Origin,
    pub is_fulfilled: bool,
    /// A `commitment_signed` came after it.
    pub is_covered: bool,
}

/// One end.
pub struct End {
    pub slot: Slot,
    pub keys: ChannelKeys,
    pub keys_index: u64,
    pub outbox: VecDeque<Parked>,
    /// Steps that everything parked from now on must wait for at least.
    pub needs: usize,
    /// What replaying the durable records gives, kept up as they become durable.
    pub mirror: Option<Box<Channel>>,
    /// The highest commitment whose secret has left, by anybody's memory but the node's.
    pub revealed: Option<u64>,
    /// Removals of HTLCs offered from here that have arrived and are not revoked for yet.
    pub arrived_removals: Vec<ArrivedRemoval>,
    /// The peer has proved to this end that its data is old.
    pub is_told_old: bool,
    /// HTLCs of the peer that the node holds back its decision on.
    pub held: BTreeSet<HtlcId>,
    /// What the node keeps of HTLCs that have left the channel.
    pub past: Vec<PastHtlc>,
    /// The peer wants to close together, and has had no answer: there may be no connection just then.
    pub is_close_asked: bool,
}

pub fn policy() -> Policy {
    Policy { burial_depth: 8, max_dust_exposure: Msat(5_000_000), ..Policy::default() }
}

impl End {
    pub fn new(keys_index: u64, side: u8) -> Self {
        let mut seed = [side; 32];
        seed[..8].copy_from_slice(&keys_index.to_le_bytes());
        Self {
            slot: Slot::Empty,
            keys: ChannelKeys::from_seed(&seed).of_node(Identity::new(node_key(usize::from(side)), ChainHash::REGTEST)),
            keys_index,
            outbox: VecDeque::new(),
            needs: 0,
            mirror: None,
            revealed: None,
            arrived_removals: Vec::new(),
            is_told_old: false,
            held: BTreeSet::new(),
            past: Vec::new(),
            is_close_asked: false,
        }
    }

    pub fn channel(&self) -> Option<&Channel> {
        match &self.slot {
            Slot::Channel(channel) => Some(channel),
            Slot::Empty | Slot::Opening(_) => None,
        }
    }

    pub fn channel_mut(&mut self) -> Option<&mut Channel> {
        match &mut self.slot {
            Slot::Channel(channel) => Some(channel),
            Slot::Empty | Slot::Opening(_) => None,
        }
    }

    /// The channel from its records, and the facts that replaying tells. Records of an earlier attempt to open, which
    /// was given up, may stand before the last `Opened`.
    pub fn restart(&mut self, records: Vec<Record>) -> (Option<Channel>, Effects) {
        let mut facts = Effects::default();
        let mut channel: Option<Channel> = None;
        self.mirror = None;
        for record in records {
            self.mirror_record(record.clone());
            match (record, &mut channel) {
                (Record::Opened(opened), channel) => {
                    facts.clear();
                    let keys = self.keys.clone();
                    *channel = Channel::from_opened(*opened, keys, policy()).ok();
                }
                (record, Some(channel)) => channel.replay(record, &mut facts).expect("only Opened is out of place"),
                (_, None) => {}
            }
        }
        (channel, facts)
    }

    /// A record has become durable.
    pub fn mirror_record(&mut self, record: Record) {
        match (record, &mut self.mirror) {
            (Record::Opened(opened), mirror) => {
                // An earlier attempt to open used other keys.
                *mirror = Channel::from_opened(*opened, self.keys.clone(), policy()).ok().map(Box::new);
            }
            (record, Some(mirror)) => {
                mirror.replay(record, &mut Effects::default()).expect("only Opened is out of place")
            }
            (_, None) => {}
        }
    }

    /// Whether the disk knows how the HTLC of this origin stands: in flight, ended and kept.
    pub fn mirror_has(&self, origin: Origin) -> bool {
        self.mirror.as_ref().is_some_and(|mirror| mirror.has_origin(origin))
    }
}
