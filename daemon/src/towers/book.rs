//! What is written down of the watchtowers: which there are, which of them the node relies on, where what they take is paid,
//! what each has signed; and what somebody else's tower does not have yet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bitcoin::hashes::Hash;
use bitcoin::{OutPoint, ScriptBuf, Txid};
use millrace_channel::Fact;
use millrace_channel::revocable::Revocable;
use millrace_watchtower::receipt::{BlobReceipt, Receipt};
use millrace_watchtower::vault::Group;
use millrace_wire::{ChannelId, CommitmentNumber, PublicKey, Sat};
use secp256k1::ecdsa::Signature;
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::Mode;
use crate::entry::{Entry, Kind};
use crate::facts::{Applied, Item, News, Source};

/// The version that this build writes, of entries and of the section.
const VERSION: u8 = 1;
/// Revoked commitments of one channel that are kept for the towers of others: 2 MB. What is older is given up.
const WAITING_MAX: usize = 16_384;
/// The same of all channels, where one has more than [`WAITING_MUCH`]: 32 MB.
const WAITING_ALL_MAX: usize = 262_144;
/// So many of one channel may always wait: more than may be missing at a tower, unless the owner wants it otherwise.
const WAITING_MUCH: usize = 1_024;

/// One thing that is written down.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum TowerEntry {
    /// Where whatever a tower takes is paid. Once: it is the same for all, also for one that is removed and comes back.
    SweepScript(ScriptBuf),
    /// A tower is used, or has moved.
    Added { tower: PublicKey, address: String, mode: Mode, time_ms: u64 },
    /// It is not used any more.
    Removed { tower: PublicKey },
    /// It has had all that there was: from here on HTLCs wait for it.
    ReliedOn { tower: PublicKey },
    /// What it has signed.
    Receipts { tower: PublicKey, receipts: Vec<StoredReceipt> },
    /// The peer has revoked this commitment: in the step that says so, while there is somebody else's tower.
    Revoked(ToSeal),
    /// From this commitment on, somebody else's tower gets the channel's penalties in this group.
    Group { tower: PublicKey, channel_id: ChannelId, group: Group, base: u64 },
    /// What somebody else's tower has signed.
    BlobReceipts { tower: PublicKey, receipts: Vec<(ChannelId, StoredBlobReceipt)> },
    /// Somebody else's tower was reached: from here on what is revoked is kept for it.
    Reached { tower: PublicKey },
    /// It has let go of these channels, which are over.
    Forgotten { tower: PublicKey, channels: Vec<ChannelId> },
}

/// A [`Receipt`], as it is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct StoredReceipt {
    funding_outpoint: OutPoint,
    next: u64,
    time_s: u64,
    signature: Vec<u8>,
}

impl From<&Receipt> for StoredReceipt {
    fn from(receipt: &Receipt) -> Self {
        Self {
            funding_outpoint: receipt.funding_outpoint,
            next: receipt.next.0,
            time_s: receipt.time_s,
            signature: receipt.signature.serialize_compact().to_vec(),
        }
    }
}

impl StoredReceipt {
    fn receipt(&self) -> Option<Receipt> {
        let signature = Signature::from_compact(&self.signature).ok()?;
        let Self { funding_outpoint, next, time_s, .. } = *self;
        Some(Receipt { funding_outpoint, next: CommitmentNumber(next), time_s, signature })
    }
}

/// A [`BlobReceipt`], as it is written.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct StoredBlobReceipt {
    group: Group,
    next: u64,
    time_s: u64,
    signature: Vec<u8>,
}

impl From<&BlobReceipt> for StoredBlobReceipt {
    fn from(receipt: &BlobReceipt) -> Self {
        let signature = receipt.signature.serialize_compact().to_vec();
        Self { group: receipt.group, next: receipt.next, time_s: receipt.time_s, signature }
    }
}

impl StoredBlobReceipt {
    fn receipt(&self) -> Option<BlobReceipt> {
        let signature = Signature::from_compact(&self.signature).ok()?;
        let Self { group, next, time_s, .. } = *self;
        Some(BlobReceipt { group, next, time_s, signature })
    }
}

impl KeptGroup {
    /// The newest receipt.
    pub(super) fn receipt(&self) -> Option<BlobReceipt> {
        self.receipt.as_ref()?.receipt()
    }
}

/// A revoked commitment of which a penalty can be made. Its `Debug` does not show the secret, which is wiped with it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ToSeal {
    pub(super) number: u64,
    pub(super) secret: [u8; 32],
    txid: [u8; 32],
    to_local: Option<(u32, u64)>,
}

impl Drop for ToSeal {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

impl std::fmt::Debug for ToSeal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ToSeal").field("number", &self.number).field("txid", &self.txid()).finish_non_exhaustive()
    }
}

impl ToSeal {
    pub(super) fn new(revoked: &Revocable, secret: [u8; 32]) -> Self {
        Self {
            number: revoked.number.0,
            secret,
            txid: revoked.txid.to_byte_array(),
            to_local: revoked.to_local.map(|(vout, value)| (vout, value.0)),
        }
    }

    pub(super) fn txid(&self) -> Txid {
        Txid::from_byte_array(self.txid)
    }

    pub(super) fn to_local(&self) -> Option<(u32, Sat)> {
        self.to_local.map(|(vout, value)| (vout, Sat(value)))
    }
}

impl TowerEntry {
    pub(super) fn entry(&self) -> Entry {
        let bytes = postcard::to_extend(self, vec![VERSION]).expect("plain data into memory: nothing can fail");
        Entry::new(Kind::Tower, bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        decode(bytes, "a watchtower's entry")
    }
}

fn decode<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| format!("{what}: {error}")),
        Some((version, _)) => Err(format!("version {version} of {what}: this build knows version {VERSION}")),
        None => Err(format!("{what} is empty")),
    }
}

/// What is kept of one tower.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) address: String,
    pub(super) mode: Mode,
    pub(super) added_ms: u64,
    pub(super) is_relied_on: bool,
    /// Whether it was ever reached: nothing is kept for one that was not.
    pub(super) is_reached: bool,
    receipts: BTreeMap<ChannelId, StoredReceipt>,
    pub(super) groups: BTreeMap<ChannelId, KeptGroup>,
    /// Channels that are over, until it has let go of them; and its groups of each.
    pub(super) over: BTreeMap<ChannelId, Vec<Group>>,
}

/// How somebody else's tower stands with a channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct KeptGroup {
    /// The tower's name for what it has. Drawn anew whenever something begins anew: a name of old may be in use there.
    pub(super) group: Group,
    /// Those before: a tower that has lost what it had gets another one, and perhaps still has some of it. With what it has
    /// signed for them, which proves the loss.
    earlier: Vec<(Group, Option<StoredBlobReceipt>)>,
    /// The commitment whose penalty is the group's first.
    pub(super) base: u64,
    /// The lowest commitment whose penalty the tower is not known to have.
    pub(super) acknowledged: u64,
    receipt: Option<StoredBlobReceipt>,
}

impl Kept {
    /// The newest receipt for a channel.
    pub(super) fn receipt(&self, channel_id: ChannelId) -> Option<Receipt> {
        self.receipts.get(&channel_id)?.receipt()
    }

    /// The channel is over: the tower is to let go of it.
    fn end(&mut self, channel_id: ChannelId) {
        self.receipts.remove(&channel_id);
        let groups = self.groups.remove(&channel_id).map(|kept| {
            let earlier = kept.earlier.iter().map(|(group, _)| *group);
            earlier.chain([kept.group]).collect::<Vec<Group>>()
        });
        self.over.entry(channel_id).or_default().extend(groups.unwrap_or_default());
    }
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Book {
    applied: Applied,
    pub(super) sweep_script: Option<ScriptBuf>,
    pub(super) towers: BTreeMap<PublicKey, Kept>,
    /// What somebody else's tower does not have yet, by number and without a gap.
    waiting: BTreeMap<ChannelId, VecDeque<ToSeal>>,
}

impl Book {
    pub(super) fn restore(section: &[u8]) -> Result<Self, String> {
        decode(section, "the watchtowers")
    }

    pub(super) fn section(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("plain data into memory: nothing can fail")
    }

    /// Whether news can be of any interest.
    pub(super) fn concerns(news: &News) -> bool {
        news.items.iter().any(|item| match item {
            Item::Entry(entry) => entry.kind == Kind::Tower,
            Item::Fact { fact, .. } => matches!(fact, Fact::Closed(_)),
        })
    }

    pub(super) fn tell(&mut self, news: &News) -> Result<(), String> {
        if !self.applied.take(news.source, news.position) {
            return Ok(());
        }
        for item in &news.items {
            match item {
                Item::Entry(Entry { kind: Kind::Tower, bytes }) => self.apply(news.source, TowerEntry::decode(bytes)?),
                Item::Fact { fact: Fact::Closed(_), .. } => {
                    if let Source::Channel(id) = news.source {
                        self.applied.forget(id);
                        self.waiting.remove(&id);
                        self.towers.values_mut().for_each(|kept| kept.end(id));
                    }
                }
                Item::Entry(_) | Item::Fact { .. } => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, source: Source, entry: TowerEntry) {
        match entry {
            TowerEntry::SweepScript(script) => {
                self.sweep_script.get_or_insert(script);
            }
            TowerEntry::Added { tower, address, mode, time_ms } => self.add(tower, address, mode, time_ms),
            TowerEntry::Removed { tower } => {
                self.towers.remove(&tower);
                self.let_go();
            }
            TowerEntry::ReliedOn { tower } => {
                if let Some(kept) = self.towers.get_mut(&tower) {
                    kept.is_relied_on = true;
                }
            }
            TowerEntry::Receipts { tower, receipts } => {
                let Some(kept) = self.towers.get_mut(&tower) else { return };
                for receipt in receipts {
                    let id = ChannelId::v1_from_funding(receipt.funding_outpoint);
                    // The highest proves the most, whatever the tower has lost since.
                    if kept.receipts.get(&id).is_none_or(|before| before.next <= receipt.next) {
                        kept.receipts.insert(id, receipt);
                    }
                }
            }
            TowerEntry::Revoked(revoked) => {
                if let Source::Channel(channel_id) = source {
                    self.wait(channel_id, revoked);
                }
            }
            TowerEntry::Group { tower, channel_id, group, base } => {
                if let Some(kept) = self.towers.get_mut(&tower) {
                    let before = kept.groups.remove(&channel_id);
                    let earlier = before.map(|kept| [kept.earlier, vec![(kept.group, kept.receipt)]].concat());
                    let earlier = earlier.unwrap_or_default();
                    let group = KeptGroup { group, earlier, base, acknowledged: base, receipt: None };
                    kept.groups.insert(channel_id, group);
                }
            }
            TowerEntry::BlobReceipts { tower, receipts } => self.on_blob_receipts(tower, receipts),
            TowerEntry::Reached { tower } => {
                if let Some(kept) = self.towers.get_mut(&tower) {
                    kept.is_reached = true;
                }
            }
            TowerEntry::Forgotten { tower, channels } => {
                if let Some(kept) = self.towers.get_mut(&tower) {
                    channels.iter().for_each(|id| drop(kept.over.remove(id)));
                }
            }
        }
    }

    fn add(&mut self, tower: PublicKey, address: String, mode: Mode, time_ms: u64) {
        let kept = Kept {
            address: address.clone(),
            mode,
            added_ms: time_ms,
            is_relied_on: false,
            is_reached: false,
            receipts: BTreeMap::new(),
            groups: BTreeMap::new(),
            over: BTreeMap::new(),
        };
        self.towers.entry(tower).or_insert(kept).address = address;
    }

    fn wait(&mut self, channel_id: ChannelId, revoked: ToSeal) {
        if !self.wants_penalties() {
            return;
        }
        let is_much = self.waiting.get(&channel_id).is_some_and(|waiting| waiting.len() > WAITING_MUCH);
        let all: usize = if is_much { self.waiting.values().map(VecDeque::len).sum() } else { 0 };
        let waiting = self.waiting.entry(channel_id).or_default();
        if waiting.back().is_some_and(|last| last.number + 1 != revoked.number) {
            // There was nobody to keep it for meanwhile.
            waiting.clear();
        }
        waiting.push_back(revoked);
        if waiting.len() > WAITING_MAX || (all >= WAITING_ALL_MAX && waiting.len() > WAITING_MUCH) {
            waiting.pop_front();
        }
    }

    fn on_blob_receipts(&mut self, tower: PublicKey, receipts: Vec<(ChannelId, StoredBlobReceipt)>) {
        let Some(kept) = self.towers.get_mut(&tower) else { return };
        for (channel_id, receipt) in receipts {
            let Some(group) = kept.groups.get_mut(&channel_id).filter(|group| group.group == receipt.group) else {
                continue;
            };
            group.acknowledged = group.acknowledged.max(group.base.saturating_add(receipt.next));
            if group.receipt.as_ref().is_none_or(|before| before.next <= receipt.next) {
                group.receipt = Some(receipt);
            }
        }
        self.let_go();
    }

    /// What every tower has that takes penalties needs to be kept no longer.
    fn let_go(&mut self) {
        let Self { towers, waiting, .. } = self;
        waiting.retain(|channel_id, waiting| {
            let takers = towers.values().filter(|kept| kept.mode == Mode::Blob && kept.is_reached);
            let acknowledged = takers.map(|kept| kept.groups.get(channel_id).map_or(0, |group| group.acknowledged));
            let needed_from = acknowledged.min().unwrap_or(u64::MAX);
            while waiting.front().is_some_and(|first| first.number < needed_from) {
                waiting.pop_front();
            }
            !waiting.is_empty()
        });
    }

    /// Whether what is revoked is kept for anybody.
    pub(super) fn wants_penalties(&self) -> bool {
        self.towers.values().any(|kept| kept.mode == Mode::Blob && kept.is_reached)
    }

    /// Channels of which something is kept for the towers of others.
    pub(super) fn waiting_channels(&self) -> BTreeSet<ChannelId> {
        self.waiting.keys().copied().collect()
    }

    /// The lowest commitment of a channel that is kept for the towers of others, and the one after the last.
    pub(super) fn waiting_range(&self, channel_id: ChannelId) -> Option<(u64, u64)> {
        let waiting = self.waiting.get(&channel_id)?;
        Some((waiting.front()?.number, waiting.back()?.number + 1))
    }

    /// At most so many of them, from this one on.
    pub(super) fn waiting_from(&self, channel_id: ChannelId, from: u64, max: usize) -> Vec<ToSeal> {
        let Some((first, _)) = self.waiting_range(channel_id).filter(|(first, _)| *first <= from) else {
            return Vec::new();
        };
        let skipped = usize::try_from(from - first).unwrap_or(usize::MAX);
        self.waiting[&channel_id].iter().skip(skipped).take(max).cloned().collect()
    }

    /// An entry may have been written after its channel was closed.
    pub(super) fn keep_only(&mut self, channels: &BTreeSet<ChannelId>) {
        for kept in self.towers.values_mut() {
            kept.receipts.retain(|id, _| channels.contains(id));
            kept.groups.retain(|id, _| channels.contains(id));
            kept.over.retain(|id, _| !channels.contains(id));
        }
        self.waiting.retain(|id, _| channels.contains(id));
    }
}
