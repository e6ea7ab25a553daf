//! The start: the checkpoint, and the steps of the journal after it.
//!
//! A channel's section says which step was the last in it: its records up to there are skipped, and the rest are
//! replayed. Every fold is told what the channels and the owners write, as it was told live. Nothing else is read.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use millrace_chain::Cursor;
use millrace_channel::record::RecordError;
use millrace_channel::{Channel, Effect, Effects, Fact, Policy, Record, ReplayError};
use millrace_journal::{Checkpoint, DurableStep, Position, ReadError};
use millrace_wire::{ChannelId, PublicKey};

use crate::chain_feed::{Blocks, CursorEntry};
use crate::channels::actor::{Actor, item_of};
use crate::channels::keys::{FreshKeys, KeysOf};
use crate::channels::shard::is_over;
use crate::checkpoint::{NodeSection, SectionError, read_channel, section_of};
use crate::entry::{Entry, Kind, Part, Step, StepError};
use crate::facts::{Folds, Item, News, Source, Telling};
use crate::peer::PeerAddress;

/// What was read back.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// The channels that are not closed.
    pub(crate) actors: Vec<Actor>,
    /// The last blocks that every channel has handled.
    pub(crate) blocks: Blocks,
    /// The first channel key that nobody can have seen.
    pub(crate) next_key: u64,
    /// Where peers were reached.
    pub(crate) addresses: BTreeMap<PublicKey, String>,
    /// How much was read that the checkpoint does not hold.
    pub(crate) tail_bytes: u64,
}

/// Why the daemon does not start: what is on disk is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The journal cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A section of the checkpoint is not what it should be.
    #[error("the checkpoint's section {name}: {error}")]
    Section {
        /// Its name.
        name: String,
        /// What is wrong.
        error: SectionError,
    },
    /// A fold does not take its section.
    #[error("the checkpoint's section of {fold}: {reason}")]
    Fold {
        /// Whose it is.
        fold: String,
        /// Why not.
        reason: String,
    },
    /// A step is not one.
    #[error("step {position}: {error}")]
    Step {
        /// Where it stands.
        position: Position,
        /// What is wrong.
        error: StepError,
    },
    /// A record is not one.
    #[error("step {position}, channel {channel_id}: {error}")]
    Record {
        /// Where it stands.
        position: Position,
        /// Whose it is.
        channel_id: ChannelId,
        /// What is wrong.
        error: RecordError,
    },
    /// A record cannot stand where it does.
    #[error("step {position}, channel {channel_id}: {error}")]
    Replay {
        /// Where it stands.
        position: Position,
        /// Whose it is.
        channel_id: ChannelId,
        /// What is wrong.
        error: ReplayError,
    },
    /// A channel's records without its first.
    #[error("step {position}: a record of channel {channel_id}, which is not known")]
    UnknownChannel {
        /// Where it stands.
        position: Position,
        /// Whose it is.
        channel_id: ChannelId,
    },
    /// An entry of the node's own is not one.
    #[error("step {position}: an entry of kind {kind:?} does not decode")]
    Entry {
        /// Where it stands.
        position: Position,
        /// Whose it is.
        kind: Kind,
    },
}

/// Reads everything back, and tells the folds.
pub(crate) fn recover(
    checkpoint: Option<Checkpoint>,
    tail: impl Iterator<Item = Result<DurableStep, ReadError>>,
    policy: Policy,
    keys_of: &KeysOf,
    folds: &Folds,
) -> Result<Recovery, RecoveryError> {
    let mut replay = Replay {
        policy,
        keys_of,
        folds,
        channels: HashMap::new(),
        closed: BTreeSet::new(),
        blocks: Blocks::default(),
        next_key: 0,
        addresses: BTreeMap::new(),
        fx: Effects::default(),
    };
    if let Some(checkpoint) = checkpoint {
        for section in &checkpoint.sections {
            replay.take_section(&section.name, &section.bytes)?;
        }
        // One that closed while the checkpoint was written has a section, and its end is in the steps.
        let Replay { closed, channels, .. } = &mut replay;
        closed.retain(|id| !channels.contains_key(id));
    }
    let mut tail_bytes = 0;
    for step in tail {
        let step = step?;
        tail_bytes += step.bytes.len() as u64;
        replay.step(step.position, &step.bytes)?;
    }
    Ok(replay.finish(tail_bytes))
}

struct Replay<'a> {
    policy: Policy,
    keys_of: &'a KeysOf,
    folds: &'a Folds,
    channels: HashMap<ChannelId, Known>,
    closed: BTreeSet<ChannelId>,
    blocks: Blocks,
    next_key: u64,
    addresses: BTreeMap<PublicKey, String>,
    fx: Effects,
}

struct Known {
    channel: Channel,
    opened_ms: u64,
    position: Option<Position>,
}

impl Replay<'_> {
    // --- the checkpoint ---

    fn take_section(&mut self, name: &[u8], bytes: &[u8]) -> Result<(), RecoveryError> {
        let fault = |error| RecoveryError::Section { name: String::from_utf8_lossy(name).into_owned(), error };
        match section_of(name).map_err(fault)? {
            crate::checkpoint::SectionOf::Node => {
                let node = NodeSection::decode(bytes).map_err(fault)?;
                self.closed.extend(node.closed.into_iter().map(ChannelId));
                self.blocks = Blocks::new(node.blocks.iter().filter_map(CursorEntry::cursor_of));
                self.next_key = node.next_key;
                self.addresses.extend(node.addresses.into_iter().filter_map(PeerAddress::into_parts));
            }
            crate::checkpoint::SectionOf::Channel(channel_id) => {
                let section = read_channel(channel_id, bytes).map_err(fault)?;
                let keys_of = |index| (self.keys_of)(index);
                let channel = Channel::restore(&section.snapshot, self.policy, keys_of)
                    .map_err(|error| fault(SectionError::Channel(error)))?;
                self.next_key = self.next_key.max(channel.keys_index() + 1);
                let known = Known { channel, opened_ms: section.opened_ms, position: section.position };
                self.channels.insert(channel_id, known);
            }
            crate::checkpoint::SectionOf::Fold(fold) => {
                // A fold that is gone needs nothing.
                if let Some(known) = self.folds.iter().find(|known| known.name() == fold) {
                    let restored = known.restore(bytes);
                    restored.map_err(|reason| RecoveryError::Fold { fold: fold.to_owned(), reason })?;
                }
            }
        }
        Ok(())
    }

    // --- the steps after it ---

    fn step(&mut self, position: Position, bytes: &[u8]) -> Result<(), RecoveryError> {
        let step = Step::decode(bytes).map_err(|error| RecoveryError::Step { position, error })?;
        let mut items = Vec::new();
        let (mut source, mut peer) = (Source::Node, None);
        for part in step.parts {
            match part {
                Part::Entry { kind, bytes } => {
                    self.on_entry(position, kind, bytes)?;
                    items.push(Item::Entry(Entry::new(kind, bytes.to_vec())));
                }
                Part::Records { channel_id, records } => {
                    source = Source::Channel(channel_id);
                    peer = self.on_records(position, channel_id, &records, step.time_ms, &mut items)?;
                }
            }
        }
        if !items.is_empty() {
            let telling = Telling::Replay;
            let terms = match source {
                Source::Channel(id) => self.channels.get(&id).map(|known| Arc::new(known.channel.terms().clone())),
                Source::Node => None,
            };
            let position = Some(position);
            self.folds.tell(News { source, peer, terms, position, time_ms: step.time_ms, telling, items });
        }
        Ok(())
    }

    fn on_entry(&mut self, position: Position, kind: Kind, bytes: &[u8]) -> Result<(), RecoveryError> {
        let fault = || RecoveryError::Entry { position, kind };
        match kind {
            Kind::ChainCursor => self.blocks.apply(&CursorEntry::decode(bytes).ok_or_else(fault)?),
            Kind::Keys => self.next_key = self.next_key.max(FreshKeys::next_after(bytes).ok_or_else(fault)?),
            Kind::Peer => {
                let address = PeerAddress::decode(bytes).ok_or_else(fault)?;
                self.addresses.extend(address.into_parts());
            }
            Kind::Payment
            | Kind::Invoice
            | Kind::Wallet
            | Kind::Idempotency
            | Kind::Link
            | Kind::Policy
            | Kind::Announce
            | Kind::Tower => {}
        }
        Ok(())
    }

    fn on_records(
        &mut self,
        position: Position,
        channel_id: ChannelId,
        records: &[&[u8]],
        time_ms: u64,
        items: &mut Vec<Item>,
    ) -> Result<Option<PublicKey>, RecoveryError> {
        if self.closed.contains(&channel_id) {
            return Ok(None);
        }
        if self.channels.get(&channel_id).is_some_and(|known| known.position >= Some(position)) {
            // The section holds it, and so do those of the folds.
            return Ok(Some(self.channels[&channel_id].channel.terms().remote_node));
        }
        for bytes in records {
            let fault = |error| RecoveryError::Record { position, channel_id, error };
            let record = Record::decode(bytes).map_err(fault)?;
            self.on_record(position, channel_id, record, time_ms, items)?;
        }
        let known = self.channels.get_mut(&channel_id);
        let known = known.ok_or(RecoveryError::UnknownChannel { position, channel_id })?;
        known.position = Some(position);
        Ok(Some(known.channel.terms().remote_node))
    }

    fn on_record(
        &mut self,
        position: Position,
        channel_id: ChannelId,
        record: Record,
        time_ms: u64,
        items: &mut Vec<Item>,
    ) -> Result<(), RecoveryError> {
        let fault = |error| RecoveryError::Replay { position, channel_id, error };
        let Some(known) = self.channels.get_mut(&channel_id) else {
            let Record::Opened(opened) = record else {
                return Err(RecoveryError::UnknownChannel { position, channel_id });
            };
            let keys = (self.keys_of)(opened.keys_index);
            self.next_key = self.next_key.max(opened.keys_index + 1);
            let channel = Channel::from_opened(*opened, keys, self.policy).map_err(fault)?;
            items.push(Item::Fact { fact: Fact::Opened { channel_id }, received: None });
            self.channels.insert(channel_id, Known { channel, opened_ms: time_ms, position: None });
            return Ok(());
        };
        self.fx.clear();
        known.channel.replay(record, &mut self.fx).map_err(fault)?;
        for effect in self.fx.list.drain(..) {
            if let Effect::Fact(fact) = effect {
                items.push(item_of(&known.channel, fact));
            }
        }
        Ok(())
    }

    fn finish(self, tail_bytes: u64) -> Recovery {
        let mut known: Vec<Known> = self.channels.into_values().filter(|known| !is_over(&known.channel)).collect();
        known.sort_unstable_by_key(|known| known.channel.id());
        let actors =
            known.into_iter().map(|known| Actor::new(known.channel, known.opened_ms, known.position)).collect();
        Recovery { actors, blocks: self.blocks, next_key: self.next_key, addresses: self.addresses, tail_bytes }
    }
}

/// The blocks as the chain's watcher takes them.
pub(crate) fn trail_of(blocks: &Blocks) -> Vec<Cursor> {
    blocks.iter().copied().collect()
}
