//! What is written down of the watchtowers: which there are, which of them the node relies on, where what they take is paid,
//! and the newest receipt of each for each channel.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::{OutPoint, ScriptBuf};
use millrace_channel::Fact;
use millrace_watchtower::receipt::Receipt;
use millrace_wire::{ChannelId, CommitmentNumber, PublicKey};
use secp256k1::ecdsa::Signature;
use serde::{Deserialize, Serialize};

use crate::entry::{Entry, Kind};
use crate::facts::{Applied, Item, News, Source};

/// The version that this build writes, of entries and of the section.
const VERSION: u8 = 1;

/// One thing that is written down.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) enum TowerEntry {
    /// Where whatever a tower takes is paid. Once: it is the same for all, also for one that is removed and comes back.
    SweepScript(ScriptBuf),
    /// A tower is used, or has moved.
    Added { tower: PublicKey, address: String, time_ms: u64 },
    /// It is not used any more.
    Removed { tower: PublicKey },
    /// It has had all that there was: from here on HTLCs wait for it.
    ReliedOn { tower: PublicKey },
    /// What it has signed.
    Receipts { tower: PublicKey, receipts: Vec<StoredReceipt> },
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
    pub(super) added_ms: u64,
    pub(super) is_relied_on: bool,
    receipts: BTreeMap<ChannelId, StoredReceipt>,
}

impl Kept {
    /// The newest receipt for a channel.
    pub(super) fn receipt(&self, channel_id: ChannelId) -> Option<Receipt> {
        self.receipts.get(&channel_id)?.receipt()
    }
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(super) struct Book {
    applied: Applied,
    pub(super) sweep_script: Option<ScriptBuf>,
    pub(super) towers: BTreeMap<PublicKey, Kept>,
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
                Item::Entry(Entry { kind: Kind::Tower, bytes }) => self.apply(TowerEntry::decode(bytes)?),
                Item::Fact { fact: Fact::Closed(_), .. } => {
                    if let Source::Channel(id) = news.source {
                        self.applied.forget(id);
                        self.towers.values_mut().for_each(|kept| drop(kept.receipts.remove(&id)));
                    }
                }
                Item::Entry(_) | Item::Fact { .. } => {}
            }
        }
        Ok(())
    }

    fn apply(&mut self, entry: TowerEntry) {
        match entry {
            TowerEntry::SweepScript(script) => {
                self.sweep_script.get_or_insert(script);
            }
            TowerEntry::Added { tower, address, time_ms } => {
                let kept = Kept {
                    address: address.clone(),
                    added_ms: time_ms,
                    is_relied_on: false,
                    receipts: BTreeMap::new(),
                };
                self.towers.entry(tower).or_insert(kept).address = address;
            }
            TowerEntry::Removed { tower } => {
                self.towers.remove(&tower);
            }
            TowerEntry::ReliedOn { tower } => {
                if let Some(kept) = self.towers.get_mut(&tower) {
                    kept.is_relied_on = true;
                }
            }
            TowerEntry::Receipts { tower, receipts } => {
                let Some(kept) = self.towers.get_mut(&tower) else { return };
                let by_channel =
                    receipts.into_iter().map(|one| (ChannelId::v1_from_funding(one.funding_outpoint), one));
                kept.receipts.extend(by_channel);
            }
        }
    }

    /// An entry may have been written after its channel was closed.
    pub(super) fn keep_only(&mut self, channels: &BTreeSet<ChannelId>) {
        self.towers.values_mut().for_each(|kept| kept.receipts.retain(|id, _| channels.contains(id)));
    }
}
