//! Blob mode's state: who may hand over how many blobs, what was handed over, and what was caught with it. Pure.
//!
//! A client's blobs stand in groups, which it names at random; within a group they are numbered from 0 without gaps. What is
//! in memory of a blob is its hint and where its bytes are: in `recent` until the next checkpoint, then in a log beside the
//! journal. A hint is one client's: whoever squats on somebody's hint only has his own blob tried as well.
//!
//! The state changes by [`Vault::apply`] alone, live and on replay alike.

mod catch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt;

use bitcoin::{OutPoint, Transaction, Txid};
use millrace_wire::BlockHeight;
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::record::BlobRecord;
use crate::sealed::{Hint, SEALED_BYTES, hint_of};
use crate::tower::Refusal;
pub use catch::{Catch, CatchSpent, Loot, Unopened, Why};

/// Blobs of one client with one hint that are tried: a client that has lost its notes hands over again what it had.
pub const SAME_HINT_MAX: usize = 4;
/// Blobs that matched and did not open, as far as they are remembered.
pub const UNOPENED_MAX: usize = 1_000;

/// A client's name for blobs that belong together, such as one channel's: 16 random bytes, which tell nobody anything.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Group(pub [u8; 16]);

impl fmt::Display for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "group ")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The tower's own name for a group: short, and given out once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct GroupId(pub u32);

/// One blob, by its place in its group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BlobRef {
    /// Its group.
    pub group: GroupId,
    /// Its number there.
    pub sequence: u32,
}

/// What the tower has of a group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HeldGroup {
    /// The client's name for it.
    pub group: Group,
    /// The lowest sequence number whose blob the tower does not have.
    pub next: u64,
    /// When it took the newest, in seconds of the Unix epoch.
    pub time_s: u64,
}

/// A blob as it goes into the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredBlob {
    /// Which.
    pub blob: BlobRef,
    /// By what it is found.
    pub hint: Hint,
    /// What was sealed.
    pub bytes: Vec<u8>,
}

/// Where a blob's bytes are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Place {
    /// Not seen yet, after a start.
    Missing,
    /// In memory; the journal has them.
    Recent,
    /// In this part of the log.
    Logged(u32),
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    hint: Hint,
    place: Place,
}

/// A group and its blobs.
#[derive(Clone, Debug)]
struct Shelf {
    client: PublicKey,
    group: Group,
    time_s: u64,
    /// By sequence number.
    blobs: Vec<Entry>,
}

/// What a checkpoint holds of a group.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct StoredShelf {
    client: PublicKey,
    group: Group,
    time_s: u64,
    next: u32,
}

/// What a checkpoint holds of all this. The blobs themselves are in the log.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct StoredVault {
    quotas: BTreeMap<PublicKey, u32>,
    shelves: BTreeMap<GroupId, StoredShelf>,
    next_group: u32,
    catches: Vec<Catch>,
    unopened: VecDeque<Unopened>,
    covered: (u64, u32),
}

/// The state.
#[derive(Clone, Default, Debug)]
pub struct Vault {
    quotas: BTreeMap<PublicKey, u32>,
    shelves: BTreeMap<GroupId, Shelf>,
    next_group: u32,
    catches: BTreeMap<OutPoint, Catch>,
    unopened: VecDeque<Unopened>,
    /// How far the log reaches.
    covered: (u64, u32),
    /// Bytes that are not in the log yet.
    recent: BTreeMap<BlobRef, Vec<u8>>,
    /// Made from the rest, as all below.
    by_name: BTreeMap<(PublicKey, Group), GroupId>,
    counts: BTreeMap<PublicKey, u32>,
    by_hint: HashMap<Hint, BlobRef>,
    /// The others with a hint that `by_hint` has.
    same_hint: HashMap<Hint, Vec<BlobRef>>,
    /// Blobs in the log, those included that nobody needs any more; and those that are needed.
    logged: u64,
    logged_alive: u64,
}

impl Vault {
    // ---- What clients want ------------------------------------------------------------------------------------------

    /// How many blobs a client may have here.
    #[must_use]
    pub fn quota(&self, client: &PublicKey) -> u32 {
        self.quotas.get(client).copied().unwrap_or(0)
    }

    /// What is to be recorded when a client may have so many blobs.
    pub(crate) fn allow(&self, client: PublicKey, blobs_max: u32) -> Option<BlobRecord> {
        (self.quota(&client) != blobs_max).then_some(BlobRecord::Allowed { client, blobs_max })
    }

    /// What is to be recorded when a client hands over a blob; nothing if it has before.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn take(
        &self,
        client: &PublicKey,
        group: Group,
        sequence: u64,
        hint: Hint,
        bytes: Vec<u8>,
        now_s: u64,
    ) -> Result<Vec<BlobRecord>, Refusal> {
        let max = self.quota(client);
        if max == 0 {
            return Err(Refusal::NoBlobs(*client));
        }
        let found = self.by_name.get(&(*client, group)).map(|id| (*id, &self.shelves[id]));
        let next = found.map_or(0, |(_, shelf)| shelf.next());
        if sequence > next {
            return Err(Refusal::BlobGap { next, found: sequence });
        }
        if let Some((_, shelf)) = found.filter(|_| sequence < next) {
            let before = usize::try_from(sequence).ok().and_then(|index| shelf.blobs.get(index));
            let is_same = before.is_some_and(|entry| entry.hint == hint);
            return if is_same { Ok(Vec::new()) } else { Err(Refusal::OtherBlob { group, sequence }) };
        }
        if self.count(client) >= max {
            return Err(Refusal::TooManyBlobs { max });
        }
        let is_clients = |blob: &&BlobRef| self.shelves.get(&blob.group).is_some_and(|shelf| shelf.client == *client);
        if self.with_hint(&hint).filter(is_clients).count() >= SAME_HINT_MAX {
            return Err(Refusal::SameHint { group, sequence });
        }
        let blob_number = u32::try_from(sequence).map_err(|_| Refusal::TooManyBlobs { max })?;
        let (id, mut records) = match found {
            Some((id, _)) => (id, Vec::new()),
            None if self.next_group == u32::MAX => return Err(Refusal::NoNames),
            None => {
                let id = GroupId(self.next_group);
                (id, vec![BlobRecord::Opened { id, client: *client, group }])
            }
        };
        let time_s = now_s.max(found.map_or(0, |(_, shelf)| shelf.time_s));
        let blob = BlobRef { group: id, sequence: blob_number };
        records.push(BlobRecord::Taken { blob, time_s, hint, bytes });
        Ok(records)
    }

    /// What is to be recorded when a client lets a group go.
    ///
    /// # Errors
    /// [`Refusal::GroupAtRisk`], or if it is none of the client's.
    pub(crate) fn release(&self, client: &PublicKey, group: Group) -> Result<BlobRecord, Refusal> {
        let id = *self.by_name.get(&(*client, group)).ok_or(Refusal::UnknownGroup(group))?;
        if self.catches.values().any(|catch| catch.blob.group == id && !catch.is_over) {
            return Err(Refusal::GroupAtRisk(group));
        }
        Ok(BlobRecord::Released { id })
    }

    /// What the tower has of a group of a client's.
    #[must_use]
    pub fn held(&self, client: &PublicKey, group: Group) -> Option<HeldGroup> {
        self.by_name.get(&(*client, group)).map(|id| self.shelves[id].held())
    }

    /// What the tower has of all groups of a client.
    pub fn held_by(&self, client: &PublicKey) -> impl Iterator<Item = HeldGroup> {
        let client = *client;
        let of_client = self.by_name.range((client, Group([0; 16]))..);
        of_client.take_while(move |((owner, _), _)| *owner == client).map(|(_, id)| self.shelves[id].held())
    }

    /// How many blobs the tower has of a client.
    #[must_use]
    pub fn count(&self, client: &PublicKey) -> u32 {
        self.counts.get(client).copied().unwrap_or(0)
    }

    /// Who may hand over blobs, or has.
    pub fn clients(&self) -> impl Iterator<Item = (&PublicKey, u32)> {
        self.quotas.iter().map(|(client, max)| (client, *max))
    }

    /// Whose group this is, and the client's name for it.
    #[must_use]
    pub fn group(&self, id: GroupId) -> Option<(PublicKey, Group)> {
        self.shelves.get(&id).map(|shelf| (shelf.client, shelf.group))
    }

    // ---- What the chain does ----------------------------------------------------------------------------------------

    fn with_hint(&self, hint: &Hint) -> impl Iterator<Item = &BlobRef> {
        let first = self.by_hint.get(hint);
        first.into_iter().chain(self.same_hint.get(hint).into_iter().flatten())
    }

    /// Blobs for these transactions, by the transactions' place among them. One look for each.
    #[must_use]
    pub fn look_up(&self, txs: &[Transaction]) -> Vec<(usize, BlobRef)> {
        if self.by_hint.is_empty() {
            return Vec::new();
        }
        let with_hint = |(index, tx): (usize, &Transaction)| {
            let found: Vec<(usize, BlobRef)> =
                self.with_hint(&hint_of(&tx.compute_txid())).map(|blob| (index, *blob)).collect();
            found
        };
        txs.iter().enumerate().flat_map(with_hint).collect()
    }

    /// A blob's bytes, if they are in memory, and else in which part of the log.
    ///
    /// # Errors
    /// The place where they are.
    pub fn bytes_of(&self, blob: &BlobRef) -> Result<&[u8], Place> {
        match self.recent.get(blob) {
            Some(bytes) => Ok(bytes),
            None => Err(self.entry(blob).map_or(Place::Missing, |entry| entry.place)),
        }
    }

    // ---- The log ----------------------------------------------------------------------------------------------------

    /// What is not in the log yet.
    pub(crate) fn recent(&self) -> impl Iterator<Item = (BlobRef, Hint, &[u8])> {
        self.recent.iter().filter_map(|(blob, bytes)| Some((*blob, self.entry(blob)?.hint, bytes.as_slice())))
    }

    /// These are in this part of the log now: what was appended, or what was found there after a start.
    pub(crate) fn logged(&mut self, part: u32, blobs: impl IntoIterator<Item = (BlobRef, Hint)>) {
        for (blob, hint) in blobs {
            self.logged += 1;
            let is_it = |entry: &&mut Entry| entry.place == Place::Missing || entry.hint == hint;
            let Some(entry) = self.entry_mut(&blob).filter(is_it) else { continue };
            let before = std::mem::replace(entry, Entry { hint, place: Place::Logged(part) }).place;
            if !matches!(before, Place::Logged(_)) {
                self.logged_alive += 1;
            }
            if before == Place::Missing {
                self.index(hint, blob);
            }
            self.recent.remove(&blob);
        }
    }

    /// The log reaches so far.
    pub(crate) const fn set_covered(&mut self, covered: (u64, u32)) {
        self.covered = covered;
    }

    /// How far the log must reach.
    pub(crate) const fn covered(&self) -> (u64, u32) {
        self.covered
    }

    /// Everything that nobody needs is gone from the log.
    pub(crate) const fn log_was_swept(&mut self) {
        self.logged = self.logged_alive;
    }

    /// Blobs in the log that somebody needs, and those that nobody does.
    #[must_use]
    pub const fn log_use(&self) -> (u64, u64) {
        (self.logged_alive, self.logged.saturating_sub(self.logged_alive))
    }

    /// A blob that should be somewhere, and is not.
    pub(crate) fn missing(&self) -> Option<BlobRef> {
        self.shelves.iter().find_map(|(id, shelf)| {
            let index = shelf.blobs.iter().position(|entry| entry.place == Place::Missing)?;
            Some(BlobRef { group: *id, sequence: u32::try_from(index).ok()? })
        })
    }

    fn entry(&self, blob: &BlobRef) -> Option<&Entry> {
        self.shelves.get(&blob.group)?.blobs.get(blob.sequence as usize)
    }

    fn entry_mut(&mut self, blob: &BlobRef) -> Option<&mut Entry> {
        self.shelves.get_mut(&blob.group)?.blobs.get_mut(blob.sequence as usize)
    }

    // ---- How it changes ---------------------------------------------------------------------------------------------

    /// Changes the state as a record says.
    pub(crate) fn apply(&mut self, record: BlobRecord) {
        match record {
            BlobRecord::Allowed { client, blobs_max } => drop(self.quotas.insert(client, blobs_max)),
            BlobRecord::Opened { id, client, group } => {
                self.next_group = self.next_group.max(id.0.saturating_add(1));
                self.insert(id, Shelf { client, group, time_s: 0, blobs: Vec::new() });
            }
            BlobRecord::Taken { blob, time_s, hint, bytes } => self.apply_taken(blob, time_s, hint, bytes),
            BlobRecord::Released { id } => self.apply_released(id),
            BlobRecord::Caught { catch } => drop(self.catches.insert(catch.loot.outpoint(), *catch)),
            BlobRecord::Unopened(unopened) => {
                self.unopened.push_back(unopened);
                if self.unopened.len() > UNOPENED_MAX {
                    self.unopened.pop_front();
                }
            }
            BlobRecord::Spent { outpoint, spent } => {
                if let Some(catch) = self.catches.get_mut(&outpoint) {
                    catch.spent = Some(spent);
                }
            }
            BlobRecord::Over { outpoint } => {
                if let Some(catch) = self.catches.get_mut(&outpoint) {
                    catch.is_over = true;
                }
            }
        }
    }

    fn insert(&mut self, id: GroupId, shelf: Shelf) {
        self.by_name.insert((shelf.client, shelf.group), id);
        let count = self.counts.entry(shelf.client).or_default();
        *count = count.saturating_add(u32::try_from(shelf.blobs.len()).unwrap_or(u32::MAX));
        self.shelves.insert(id, shelf);
    }

    fn index(&mut self, hint: Hint, blob: BlobRef) {
        match self.by_hint.entry(hint) {
            std::collections::hash_map::Entry::Vacant(vacant) => _ = vacant.insert(blob),
            std::collections::hash_map::Entry::Occupied(_) => self.same_hint.entry(hint).or_default().push(blob),
        }
    }

    fn unindex(&mut self, hint: Hint, blob: BlobRef) {
        let others = self.same_hint.get_mut(&hint);
        match others {
            None if self.by_hint.get(&hint) == Some(&blob) => _ = self.by_hint.remove(&hint),
            None => {}
            Some(others) => {
                if self.by_hint.get(&hint) == Some(&blob) {
                    self.by_hint.insert(hint, others.swap_remove(0));
                } else {
                    others.retain(|other| *other != blob);
                }
                if others.is_empty() {
                    self.same_hint.remove(&hint);
                }
            }
        }
    }

    fn apply_taken(&mut self, blob: BlobRef, time_s: u64, hint: Hint, bytes: Vec<u8>) {
        let Some(shelf) = self.shelves.get_mut(&blob.group) else { return };
        assert_eq!(shelf.blobs.len(), blob.sequence as usize, "blobs are recorded in order");
        shelf.time_s = time_s;
        shelf.blobs.push(Entry { hint, place: Place::Recent });
        let count = self.counts.entry(shelf.client).or_default();
        *count = count.saturating_add(1);
        self.recent.insert(blob, bytes);
        self.index(hint, blob);
    }

    fn apply_released(&mut self, id: GroupId) {
        let Some(shelf) = self.shelves.remove(&id) else { return };
        self.by_name.remove(&(shelf.client, shelf.group));
        if let Some(count) = self.counts.get_mut(&shelf.client) {
            *count = count.saturating_sub(u32::try_from(shelf.blobs.len()).unwrap_or(u32::MAX));
        }
        for (sequence, entry) in (0..).zip(shelf.blobs) {
            let blob = BlobRef { group: id, sequence };
            match entry.place {
                Place::Missing => continue,
                Place::Recent => _ = self.recent.remove(&blob),
                Place::Logged(_) => self.logged_alive = self.logged_alive.saturating_sub(1),
            }
            self.unindex(entry.hint, blob);
        }
        self.catches.retain(|_, catch| catch.blob.group != id);
        self.unopened.retain(|unopened| unopened.blob.group != id);
    }

    /// What a checkpoint holds; nothing if there is nothing.
    pub(crate) fn store(&self) -> Option<StoredVault> {
        let stored = |shelf: &Shelf| StoredShelf {
            client: shelf.client,
            group: shelf.group,
            time_s: shelf.time_s,
            next: u32::try_from(shelf.blobs.len()).unwrap_or(u32::MAX),
        };
        let store = StoredVault {
            quotas: self.quotas.clone(),
            shelves: self.shelves.iter().map(|(id, shelf)| (*id, stored(shelf))).collect(),
            next_group: self.next_group,
            catches: self.catches.values().cloned().collect(),
            unopened: self.unopened.clone(),
            covered: self.covered,
        };
        (store != StoredVault::default()).then_some(store)
    }

    /// From what a checkpoint holds; where the blobs are is told by [`Vault::logged`].
    pub(crate) fn restore(stored: StoredVault) -> Self {
        let StoredVault { quotas, shelves, next_group, catches, unopened, covered } = stored;
        let catches = catches.into_iter().map(|catch| (catch.loot.outpoint(), catch)).collect();
        let mut vault = Self { quotas, next_group, catches, unopened, covered, ..Self::default() };
        for (id, StoredShelf { client, group, time_s, next }) in shelves {
            let unseen = Entry { hint: Hint([0; 16]), place: Place::Missing };
            vault.insert(id, Shelf { client, group, time_s, blobs: vec![unseen; next as usize] });
        }
        vault
    }
}

impl Shelf {
    const fn next(&self) -> u64 {
        self.blobs.len() as u64
    }

    const fn held(&self) -> HeldGroup {
        HeldGroup { group: self.group, next: self.next(), time_s: self.time_s }
    }
}

impl StoredBlob {
    /// Every one is so long.
    pub const BYTES: usize = 1 + 4 + 4 + 16 + SEALED_BYTES;
    const VERSION: u8 = 1;

    /// Its encoding.
    #[must_use]
    pub fn encode(blob: BlobRef, hint: Hint, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::with_capacity(Self::BYTES);
        out.push(Self::VERSION);
        out.extend_from_slice(&blob.group.0.to_be_bytes());
        out.extend_from_slice(&blob.sequence.to_be_bytes());
        out.extend_from_slice(&hint.0);
        out.extend_from_slice(bytes);
        out
    }

    /// Reads one. `None` for what is none.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (version, rest) = bytes.split_first()?;
        let (group, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let (hint, rest) = rest.split_first_chunk()?;
        let (group, sequence) = (GroupId(u32::from_be_bytes(*group)), u32::from_be_bytes(*sequence));
        let is_one = *version == Self::VERSION && rest.len() == SEALED_BYTES;
        is_one.then(|| Self { blob: BlobRef { group, sequence }, hint: Hint(*hint), bytes: rest.to_vec() })
    }
}

/// What is told of a transaction by which a caught output was spent.
pub(crate) fn spent_by(tx: &Transaction, txid: Txid, height: BlockHeight, catch: &Catch) -> CatchSpent {
    let to_sweep = tx.output.iter().any(|output| output.script_pubkey == *catch.loot.opened.sweep_script());
    CatchSpent { by: txid, height, to_sweep }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use secp256k1::{SECP256K1, SecretKey};

    const BLOB: BlobRef = BlobRef { group: GroupId(0), sequence: 0 };

    fn vault() -> Vault {
        let client = SecretKey::from_slice(&[1; 32]).unwrap().public_key(SECP256K1);
        let mut vault = Vault::default();
        vault.apply(BlobRecord::Opened { id: GroupId(0), client, group: Group([7; 16]) });
        vault.apply(BlobRecord::Taken { blob: BLOB, time_s: 1, hint: Hint([1; 16]), bytes: vec![2; SEALED_BYTES] });
        vault
    }

    #[test]
    fn blob_takes_so_much_memory_beside_its_bytes() {
        assert_eq!((size_of::<Entry>(), size_of::<(Hint, BlobRef)>()), (24, 24));
    }

    #[test]
    fn log_of_another_life_takes_no_blobs_place() {
        let mut vault = vault();
        vault.logged(0, [(BLOB, Hint([9; 16]))]);
        assert_eq!((vault.bytes_of(&BLOB), vault.log_use()), (Ok(&[2; SEALED_BYTES][..]), (0, 1)));
        vault.logged(1, [(BLOB, Hint([1; 16]))]);
        assert_eq!((vault.bytes_of(&BLOB), vault.log_use()), (Err(Place::Logged(1)), (1, 1)));
    }

    #[test]
    fn stored_blob_is_read_back_and_nothing_else_is_one() {
        let bytes = StoredBlob::encode(BLOB, Hint([3; 16]), &[4; SEALED_BYTES]);
        assert_eq!(bytes.len(), StoredBlob::BYTES);
        let stored = StoredBlob::decode(&bytes).unwrap();
        assert_eq!(stored, StoredBlob { blob: BLOB, hint: Hint([3; 16]), bytes: vec![4; SEALED_BYTES] });
        assert!((0..bytes.len()).all(|length| StoredBlob::decode(&bytes[..length]).is_none()));
        assert_eq!(StoredBlob::decode(&[&bytes[..], &[0]].concat()), None);
        assert_eq!(StoredBlob::decode(&[&[2], &bytes[1..]].concat()), None);
    }
}
