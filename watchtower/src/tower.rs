//! The tower as a pure state machine: clients, channels, blocks. No I/O, no clock.
//!
//! Inputs are methods that check, record, and apply; they append to `out` what must be durable before anybody is told, and
//! before anything is broadcast. The state changes by [`Tower::apply`] alone, live and on replay alike.

mod apply;
mod blobs;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, OutPoint, ScriptBuf, Transaction, Txid};
use millrace_channel::secrets::{BadAdvance, BadSecret};
use millrace_wire::{BlockHeight, CommitmentNumber, Sat};
use secp256k1::{PublicKey, SecretKey};
use thiserror::Error;

use crate::record::{Handle, Record, Secret};
use crate::registration::Registration;
use crate::revoked::Revoked;
use crate::story::{Closing, Spending};
use crate::vault::{Group, SAME_HINT_MAX, Vault};
use crate::watched::{Phase, Watched};

/// Blocks that are remembered, to find the way back after a reorg: two days of them.
pub const BLOCKS_KEPT: usize = 288;
/// Clients that are let in: a household's, or a company's, nodes. A tower for the whole world is another program.
pub const CLIENTS_MAX: usize = 1_000;
/// Preimages that are kept of one channel: twice all the HTLCs of a commitment, for a reorg may bring another commitment.
pub const PREIMAGES_MAX: usize = 2 * 966;

/// Why a client's wish is not fulfilled. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// Nobody let this client in.
    #[error("this tower does not know the client {0}; its owner lets it in by `millrace-tower allow {0}`")]
    UnknownClient(PublicKey),
    /// The client has as many channels as it may.
    #[error("the client has {max} channels already, as many as it may")]
    TooManyChannels {
        /// How many it may have.
        max: u32,
    },
    /// There are as many clients as there can be.
    #[error("there are {CLIENTS_MAX} clients already")]
    TooManyClients,
    /// All names are used up.
    #[error("this tower has given out every channel name there is")]
    NoNames,
    /// No channel of the client's has this name.
    #[error("{0} is none of this client's")]
    UnknownChannel(Handle),
    /// The channel is registered, and with something else.
    #[error("{0} was registered with other data, and a registration never changes")]
    OtherRegistration(Handle),
    /// A secret that does not come next.
    #[error("commitment {found} while that of {next} is the next")]
    Gap {
        /// The next.
        next: CommitmentNumber,
        /// The one that was given.
        found: CommitmentNumber,
    },
    /// A secret that is none, or that contradicts the earlier ones.
    #[error("{0}")]
    BadSecret(String),
    /// The channel has ended.
    #[error("{0} has ended")]
    Ended(Handle),
    /// The channel still has something to take, or may have.
    #[error("{0} is not forgotten: {1}")]
    AtRisk(Handle, &'static str),
    /// The client may have channels watched, but hand over no blobs.
    #[error("this tower takes no blobs from {0}; its owner lets it by `millrace-tower allow {0} --blobs N`")]
    NoBlobs(PublicKey),
    /// The client has as many blobs as it may.
    #[error("the client has {max} blobs already, as many as it may")]
    TooManyBlobs {
        /// How many it may have.
        max: u32,
    },
    /// A blob that does not come next.
    #[error("blob {found} while {next} is the next of its group")]
    BlobGap {
        /// The next.
        next: u64,
        /// The one that was given.
        found: u64,
    },
    /// There is another blob under this number.
    #[error("{group} has another blob {sequence} than this")]
    OtherBlob {
        /// In which group.
        group: Group,
        /// Its number.
        sequence: u64,
    },
    /// Too many blobs of the client's are for one transaction.
    #[error("blob {sequence} of {group}: there are {SAME_HINT_MAX} for the same transaction already")]
    SameHint {
        /// In which group.
        group: Group,
        /// Its number.
        sequence: u64,
    },
    /// No group of the client's has this name.
    #[error("{0} is none of this client's")]
    UnknownGroup(Group),
    /// A blob of the group has caught something that is not buried yet.
    #[error("{0} is not let go: what it has caught is not buried by 100 blocks yet")]
    GroupAtRisk(Group),
}

/// What the tower has of a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    /// The channel's name.
    pub handle: Handle,
    /// Its funding output.
    pub funding_outpoint: OutPoint,
    /// The lowest commitment whose secret the tower does not have.
    pub next: CommitmentNumber,
    /// When it took the newest, in seconds of the Unix epoch.
    pub time_s: u64,
    /// Whether the channel has ended.
    pub is_resolved: bool,
}

/// An output to be taken from a cheater: confirmed, not spent in any block, and nobody else's before the delay.
#[derive(Clone, Debug)]
pub struct Claim {
    /// Of which channel.
    pub handle: Handle,
    /// The output.
    pub outpoint: OutPoint,
    /// Its value.
    pub value: Sat,
    /// The first height of a block in which the cheater may spend it.
    pub deadline: BlockHeight,
    /// Where it goes.
    pub sweep_script: ScriptBuf,
    /// How it is taken.
    pub revoked: Arc<Revoked>,
}

/// The whole state of a tower.
#[derive(Clone, Default, Debug)]
pub struct Tower {
    /// How many channels each client may have.
    clients: BTreeMap<PublicKey, u32>,
    channels: BTreeMap<Handle, Watched>,
    next_handle: u32,
    /// The last blocks that were looked through, the newest last.
    blocks: VecDeque<(BlockHeight, BlockHash)>,
    /// What was handed over in blob mode.
    vault: Vault,
    /// How many channels each client has. Made from the rest.
    counts: BTreeMap<PublicKey, u32>,
    /// By client, then by funding output. Made from the rest.
    by_funding: BTreeMap<(PublicKey, OutPoint), Handle>,
    /// Which channels an output matters to: both ends of a channel may have the same tower. Made from the rest.
    watching: HashMap<OutPoint, Vec<Handle>>,
    /// Channels that may have been closed before they were registered. Made from the rest.
    unchecked: BTreeSet<Handle>,
    /// Channels whose funding output is spent, and which are not resolved. Made from the rest.
    closing: BTreeSet<Handle>,
}

impl Tower {
    /// From what a checkpoint holds.
    pub(crate) fn restore(
        clients: BTreeMap<PublicKey, u32>,
        channels: BTreeMap<Handle, Watched>,
        next_handle: u32,
        blocks: VecDeque<(BlockHeight, BlockHash)>,
        vault: Vault,
    ) -> Self {
        let mut tower = Self { clients, next_handle, blocks, vault, ..Self::default() };
        for (handle, mut watched) in channels {
            watched.judge();
            tower.insert(handle, watched);
        }
        tower
    }

    fn insert(&mut self, handle: Handle, watched: Watched) {
        let funding = watched.registration.funding_outpoint;
        self.by_funding.insert((watched.client, funding), handle);
        *self.counts.entry(watched.client).or_default() += 1;
        if !watched.is_checked {
            self.unchecked.insert(handle);
        }
        match &watched.phase {
            Phase::Open => self.watch(funding, handle),
            Phase::Closing(story) => {
                let outpoints: Vec<OutPoint> = story.outputs.keys().copied().chain([funding]).collect();
                outpoints.into_iter().for_each(|outpoint| self.watch(outpoint, handle));
                self.closing.insert(handle);
            }
            Phase::Resolved(_) => {}
        }
        self.channels.insert(handle, watched);
    }

    fn watch(&mut self, outpoint: OutPoint, handle: Handle) {
        let handles = self.watching.entry(outpoint).or_default();
        if !handles.contains(&handle) {
            handles.push(handle);
        }
    }

    fn unwatch(&mut self, outpoint: &OutPoint, handle: Handle) {
        if let Some(handles) = self.watching.get_mut(outpoint) {
            handles.retain(|other| *other != handle);
            if handles.is_empty() {
                self.watching.remove(outpoint);
            }
        }
    }

    // ---- What clients want ------------------------------------------------------------------------------------------

    /// Lets a client have so many channels watched; 0 lets it in no more.
    ///
    /// # Errors
    /// [`Refusal::TooManyClients`].
    pub fn allow(&mut self, client: PublicKey, channels_max: u32, out: &mut Vec<Record>) -> Result<(), Refusal> {
        self.check_place_for(&client)?;
        if self.clients.get(&client) != Some(&channels_max) {
            self.record(Record::ClientAllowed { client, channels_max }, out);
        }
        Ok(())
    }

    /// Whether a client is let in, and how many channels it may have: none, if only its blobs are taken.
    ///
    /// # Errors
    /// [`Refusal::UnknownClient`].
    pub fn check_client(&self, client: &PublicKey) -> Result<u32, Refusal> {
        match (self.check_has_channels(client), self.vault.quota(client)) {
            (Err(refusal), 0) => Err(refusal),
            (Err(_), _) => Ok(0),
            (Ok(max), _) => Ok(max),
        }
    }

    fn check_has_channels(&self, client: &PublicKey) -> Result<u32, Refusal> {
        let max = self.clients.get(client).copied().filter(|max| *max > 0);
        max.ok_or(Refusal::UnknownClient(*client))
    }

    /// Watches a channel. The same registration again changes nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn register(
        &mut self,
        client: PublicKey,
        registration: Registration,
        out: &mut Vec<Record>,
    ) -> Result<Held, Refusal> {
        let max = self.check_has_channels(&client)?;
        if let Some(handle) = self.by_funding.get(&(client, registration.funding_outpoint)).copied() {
            let is_same = self.channels[&handle].registration == registration;
            return if is_same { Ok(self.held(handle)) } else { Err(Refusal::OtherRegistration(handle)) };
        }
        if self.counts.get(&client).is_some_and(|count| *count >= max) {
            return Err(Refusal::TooManyChannels { max });
        }
        let handle = Handle(self.next_handle);
        if self.next_handle == u32::MAX {
            return Err(Refusal::NoNames);
        }
        self.record(Record::Registered { handle, client, registration }, out);
        Ok(self.held(handle))
    }

    /// Takes one secret. One that it has already changes nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn reveal(
        &mut self,
        client: &PublicKey,
        handle: Handle,
        number: CommitmentNumber,
        secret: [u8; 32],
        now_s: u64,
        out: &mut Vec<Record>,
    ) -> Result<Held, Refusal> {
        let watched = self.of_client_alive(client, handle)?;
        let next = watched.next();
        if number > next {
            return Err(Refusal::Gap { next, found: number });
        }
        if number < next {
            return match watched.secrets.get(number) == Some(secret) {
                true => Ok(self.held(handle)),
                false => Err(Refusal::BadSecret(format!("another secret of commitment {number} than before"))),
            };
        }
        let bad = |error: BadSecret| Refusal::BadSecret(error.to_string());
        watched.secrets.clone().insert(number, secret).map_err(bad)?;
        // Nothing derives it that could have been looked at: a later secret will, or another seed is found out then.
        SecretKey::from_slice(&secret).map_err(|_| Refusal::BadSecret(format!("that of {number} is no key")))?;
        let time_s = now_s.max(watched.time_s);
        self.record(Record::Revealed { handle, number, secret: Secret(secret), time_s }, out);
        Ok(self.held(handle))
    }

    /// Takes all secrets of a range, the end not included: the slots that change. An empty range only asks what the tower has.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn advance(
        &mut self,
        client: &PublicKey,
        handle: Handle,
        Range { start: from, end: to }: Range<CommitmentNumber>,
        changed: Vec<[u8; 32]>,
        now_s: u64,
        out: &mut Vec<Record>,
    ) -> Result<Held, Refusal> {
        let watched = self.of_client_alive(client, handle)?;
        let next = watched.next();
        if from != next {
            return Err(Refusal::Gap { next, found: from });
        }
        if to == from && changed.is_empty() {
            return Ok(self.held(handle));
        }
        let bad = |error: BadAdvance| Refusal::BadSecret(error.to_string());
        watched.secrets.clone().advance(to, &changed).map_err(bad)?;
        let time_s = now_s.max(watched.time_s);
        let changed = changed.into_iter().map(Secret).collect();
        self.record(Record::Advanced { handle, to, changed, time_s }, out);
        Ok(self.held(handle))
    }

    /// Forgets a channel, if nothing of it can be lost by that.
    ///
    /// # Errors
    /// [`Refusal::AtRisk`], or if it is none of the client's.
    pub fn forget(&mut self, client: &PublicKey, handle: Handle, out: &mut Vec<Record>) -> Result<(), Refusal> {
        let watched = self.of_client(client, handle)?;
        let tip = self.tip().map_or(BlockHeight(0), |(height, _)| height);
        let risk = match &watched.phase {
            _ if !watched.preimages_left().is_empty() => Some("there are preimages that the client has not taken"),
            Phase::Resolved(_) => None,
            Phase::Open if watched.next() == CommitmentNumber(0) => None,
            Phase::Open => Some("its funding output is not spent"),
            Phase::Closing(story) if story.may_be_forgotten(tip) => None,
            Phase::Closing(_) => Some("its end is not buried by 100 blocks yet"),
        };
        if let Some(risk) = risk {
            return Err(Refusal::AtRisk(handle, risk));
        }
        self.record(Record::Forgotten { handle }, out);
        Ok(())
    }

    /// The client has so many of a channel's preimages.
    ///
    /// # Errors
    /// If the channel is none of the client's.
    pub fn preimages_taken(
        &mut self,
        client: &PublicKey,
        handle: Handle,
        count: u32,
        out: &mut Vec<Record>,
    ) -> Result<(), Refusal> {
        let watched = self.of_client(client, handle)?;
        let count = count.min(u32::try_from(watched.preimages.len()).unwrap_or(u32::MAX));
        if count > watched.preimages_taken {
            self.record(Record::PreimagesTaken { handle, count }, out);
        }
        Ok(())
    }

    fn of_client(&self, client: &PublicKey, handle: Handle) -> Result<&Watched, Refusal> {
        let watched = self.channels.get(&handle).filter(|watched| watched.client == *client);
        watched.ok_or(Refusal::UnknownChannel(handle))
    }

    fn of_client_alive(&self, client: &PublicKey, handle: Handle) -> Result<&Watched, Refusal> {
        self.check_has_channels(client)?;
        let watched = self.of_client(client, handle)?;
        match watched.phase {
            Phase::Open | Phase::Closing(_) => Ok(watched),
            Phase::Resolved(_) => Err(Refusal::Ended(handle)),
        }
    }

    fn held(&self, handle: Handle) -> Held {
        let watched = &self.channels[&handle];
        Held {
            handle,
            funding_outpoint: watched.registration.funding_outpoint,
            next: watched.next(),
            time_s: watched.time_s,
            is_resolved: matches!(watched.phase, Phase::Resolved(_)),
        }
    }

    // ---- What the chain does ----------------------------------------------------------------------------------------

    /// Looks through the next block. Before the block's own record, `out` has everything in it that matters; a block whose
    /// own record is not durable is looked through again after a start.
    pub fn connect(&mut self, height: BlockHeight, hash: BlockHash, txs: &[Transaction], out: &mut Vec<Record>) {
        for tx in txs {
            self.look_at(height, tx, None, out);
        }
        self.record(Record::Connected { height, hash: hash.to_byte_array() }, out);
        let is_over = |handle: &&Handle| {
            let watched = &self.channels[handle];
            watched.story().is_some_and(|story| story.is_over(height, watched.registration.to_self_delay))
        };
        let over: Vec<Handle> = self.closing.iter().filter(is_over).copied().collect();
        for handle in over {
            self.record(Record::Resolved { handle }, out);
        }
        for record in self.vault.buried(height) {
            self.record(Record::Blob(record), out);
        }
    }

    /// Looks through a block of before for channels that were registered after it. From the oldest such block to the newest,
    /// without another one between.
    pub fn look_back(
        &mut self,
        height: BlockHeight,
        txs: &[Transaction],
        only: &BTreeSet<Handle>,
        out: &mut Vec<Record>,
    ) {
        txs.iter().for_each(|tx| self.look_at(height, tx, Some(only), out));
    }

    /// Nothing of before is to be looked for any more in these channels. What was looked through without this being said is
    /// looked through again.
    pub fn checked(&mut self, handles: impl IntoIterator<Item = Handle>, out: &mut Vec<Record>) {
        for handle in handles {
            self.record(Record::Checked { handle }, out);
        }
    }

    fn look_at(
        &mut self,
        height: BlockHeight,
        tx: &Transaction,
        only: Option<&BTreeSet<Handle>>,
        out: &mut Vec<Record>,
    ) {
        let mut touched: BTreeMap<Handle, Vec<OutPoint>> = BTreeMap::new();
        for input in &tx.input {
            let handles = self.watching.get(&input.previous_output).into_iter().flatten();
            for handle in handles.filter(|handle| only.is_none_or(|only| only.contains(handle))) {
                touched.entry(*handle).or_default().push(input.previous_output);
            }
        }
        for (handle, outpoints) in touched {
            let watched = &self.channels[&handle];
            let registration = &watched.registration;
            let record = if outpoints.contains(&registration.funding_outpoint) {
                let closing = Closing::read(registration, tx, |number| watched.secrets.get(number));
                Record::Closed { handle, height, closing }
            } else {
                let story = watched.story().expect("only a closing channel has other outputs watched");
                Record::Spent { handle, height, spending: Spending::read(registration, story, tx, outpoints) }
            };
            self.record(record, out);
        }
    }

    /// The last block has left the chain.
    pub fn disconnect(&mut self, height: BlockHeight, out: &mut Vec<Record>) {
        self.record(Record::Disconnected { height }, out);
    }

    /// After a start: forgets what was recorded of a block that was not looked through to its end. The chain may have another
    /// one in its place by now.
    pub fn drop_unfinished_block(&mut self, out: &mut Vec<Record>) {
        let next = self.tip().map_or(0, |(height, _)| height.0.saturating_add(1));
        self.record(Record::Disconnected { height: BlockHeight(next) }, out);
    }

    fn take_back(&mut self, from: BlockHeight) {
        for handle in self.closing.clone() {
            let Some(Watched { phase, registration, .. }) = self.channels.get_mut(&handle) else { continue };
            let Phase::Closing(story) = phase else { continue };
            let before: Vec<OutPoint> = story.outputs.keys().copied().collect();
            let stays = story.take_back(from);
            let gone: Vec<OutPoint> = match stays {
                true => before.into_iter().filter(|outpoint| !story.outputs.contains_key(outpoint)).collect(),
                false => before,
            };
            let funding = registration.funding_outpoint;
            if !stays {
                *phase = Phase::Open;
                self.closing.remove(&handle);
            }
            gone.iter().filter(|outpoint| **outpoint != funding).for_each(|outpoint| self.unwatch(outpoint, handle));
        }
    }

    // ---- What may be asked ------------------------------------------------------------------------------------------

    /// What the tower has of all channels of a client.
    pub fn held_by(&self, client: &PublicKey) -> impl Iterator<Item = Held> {
        let client = *client;
        let lowest = OutPoint { txid: Txid::all_zeros(), vout: 0 };
        let of_client = self.by_funding.range((client, lowest)..);
        of_client.take_while(move |((owner, _), _)| *owner == client).map(|(_, handle)| self.held(*handle))
    }

    /// All channels.
    pub fn channels(&self) -> impl Iterator<Item = (Handle, &Watched)> {
        self.channels.iter().map(|(handle, watched)| (*handle, watched))
    }

    /// Channels that may have been closed before they were registered: by name, with their funding outputs.
    pub fn unchecked(&self) -> impl Iterator<Item = (Handle, OutPoint)> {
        self.unchecked.iter().map(|handle| (*handle, self.channels[handle].registration.funding_outpoint))
    }

    /// A channel.
    #[must_use]
    pub fn channel(&self, handle: Handle) -> Option<&Watched> {
        self.channels.get(&handle)
    }

    /// All clients, and how many channels each may have.
    pub fn clients(&self) -> impl Iterator<Item = (&PublicKey, u32)> {
        self.clients.iter().map(|(client, max)| (client, *max))
    }

    /// The first name that is not given out.
    pub(crate) const fn next_handle(&self) -> u32 {
        self.next_handle
    }

    /// The last blocks that were looked through, the newest last.
    pub fn blocks(&self) -> impl DoubleEndedIterator<Item = (BlockHeight, BlockHash)> {
        self.blocks.iter().copied()
    }

    /// The last block that was looked through.
    #[must_use]
    pub fn tip(&self) -> Option<(BlockHeight, BlockHash)> {
        self.blocks.back().copied()
    }

    /// The preimages that a client does not have yet: by channel, how many it has, and the rest.
    pub fn preimages_for(&self, client: &PublicKey) -> impl Iterator<Item = (Handle, u32, &[[u8; 32]])> {
        self.held_by(client).filter_map(|held| {
            let watched = &self.channels[&held.handle];
            let left = watched.preimages_left();
            (!left.is_empty()).then_some((held.handle, watched.preimages_taken, left))
        })
    }

    /// Everything that is to be taken now.
    #[must_use]
    pub fn claims(&self) -> Vec<Claim> {
        let mut claims = Vec::new();
        for handle in &self.closing {
            let Watched { registration, phase: Phase::Closing(story), .. } = &self.channels[handle] else { continue };
            let Some(revoked) = story.revoked() else { continue };
            claims.extend(story.to_take().map(|(outpoint, output)| Claim {
                handle: *handle,
                outpoint: *outpoint,
                value: output.value,
                deadline: BlockHeight(output.confirmed.0.saturating_add(u32::from(registration.to_self_delay))),
                sweep_script: registration.sweep_script.clone(),
                revoked: Arc::clone(revoked),
            }));
        }
        claims
    }
}

#[cfg(test)]
mod tests;
