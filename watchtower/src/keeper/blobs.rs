//! The keeper in blob mode: orders, and where the bytes are.

use std::collections::{BTreeMap, BTreeSet};

use bitcoin::Transaction;
use millrace_wire::BlockHeight;
use secp256k1::PublicKey;

use super::{BlobRef, Fault, Group, HeldGroup, Keeper, Log, LogError, Part, Promised, Sealed, StoreError, StoredBlob};
use crate::tower::{Refusal, Tower};
use crate::vault::{Place, Vault};

/// Blobs that are appended at once: below 4 MB.
const PART_BLOBS: usize = 8_192;
/// Once more blobs than this, and than those that are needed, are of no use, the log is written anew: below 8 MB.
pub(super) const SWEEP_SLACK: u64 = 16_384;

impl Keeper {
    /// Lets a client hand over blobs. See [`Tower::allow_blobs`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn allow_blobs(&mut self, client: PublicKey, blobs_max: u32) -> Result<Promised<()>, Fault> {
        self.tower.allow_blobs(client, blobs_max, &mut self.records)?;
        Ok(self.write(()))
    }

    /// Takes a blob. See [`Tower::take_blob`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn take_blob(
        &mut self,
        client: &PublicKey,
        group: Group,
        sequence: u64,
        sealed: Sealed,
        now_s: u64,
    ) -> Result<Promised<HeldGroup>, Fault> {
        self.check_room()?;
        let held = self.tower.take_blob(client, group, sequence, sealed, now_s, &mut self.records)?;
        Ok(self.write(held))
    }

    /// What the tower has of a group of a client's.
    ///
    /// # Errors
    /// [`Fault`] if it is none of the client's.
    pub fn held_group(&self, client: &PublicKey, group: Group) -> Result<Promised<HeldGroup>, Fault> {
        let held = self.tower.vault().held(client, group).ok_or(Refusal::UnknownGroup(group))?;
        Ok(Promised { answer: held, ticket: self.last })
    }

    /// Lets a group's blobs go. See [`Tower::release`].
    ///
    /// # Errors
    /// [`Fault`].
    pub fn release(&mut self, client: &PublicKey, group: Group) -> Result<Promised<()>, Fault> {
        self.tower.release(client, group, &mut self.records)?;
        Ok(self.write(()))
    }

    /// Looks through a block for commitments whose penalties are here, before it is recorded.
    pub(super) fn look_for_blobs(&mut self, height: BlockHeight, txs: &[Transaction]) {
        let matches = self.tower.vault().look_up(txs);
        let bytes = self.read(matches.iter().map(|(_, blob)| *blob));
        self.tower.look_for_blobs(height, txs, &matches, &bytes, &mut self.records);
    }

    /// The bytes of these blobs. What cannot be read is left out: it concerns nobody else.
    fn read(&self, blobs: impl Iterator<Item = BlobRef>) -> BTreeMap<BlobRef, Vec<u8>> {
        let mut found = BTreeMap::new();
        let (mut wanted, mut parts) = (BTreeSet::new(), BTreeSet::new());
        for blob in blobs {
            match self.tower.vault().bytes_of(&blob) {
                Ok(bytes) => _ = found.insert(blob, bytes.to_vec()),
                Err(Place::Logged(part)) => {
                    wanted.insert(blob);
                    parts.insert(part);
                }
                Err(Place::Missing | Place::Recent) => {}
            }
        }
        let (Some(first), Some(last)) = (parts.first().copied(), parts.last().copied()) else { return found };
        // One pass, however many match.
        let read = self.log.read_blobs(first, &mut |part, bytes| {
            if let Some(StoredBlob { blob, bytes, .. }) = StoredBlob::decode(bytes)
                && wanted.remove(&blob)
            {
                found.insert(blob, bytes);
            }
            part <= last && !wanted.is_empty()
        });
        if let Err(error) = read {
            tracing::error!(%error, "blobs whose commitments are in the chain cannot be read");
        }
        found
    }

    /// Before a checkpoint: what only the journal has goes into the log.
    pub(super) fn log_blobs(&mut self) -> Result<(), LogError> {
        loop {
            let part: Vec<_> = self.tower.vault().recent().take(PART_BLOBS).map(to_log).collect();
            if part.is_empty() {
                return Ok(());
            }
            append(&*self.log, self.tower.vault_mut(), part)?;
        }
    }

    /// Writes the log anew once most of it is of no use. Gives the part below which nobody needs anything, once there is a
    /// checkpoint.
    pub(super) fn sweep_blobs(&mut self) -> Option<Part> {
        let (alive, dead) = self.tower.vault().log_use();
        if dead <= alive.saturating_add(self.sweep_slack) {
            return None;
        }
        match self.write_anew() {
            Ok(first) => Some(first),
            Err(error) => {
                // Both copies are good.
                tracing::warn!(%error, "blobs that nobody needs stay on the disk");
                None
            }
        }
    }

    fn write_anew(&mut self) -> Result<Part, LogError> {
        let Self { tower, log, .. } = self;
        let (mut first, mut failed) = (None, None);
        let mut waiting = Vec::new();
        log.read_blobs(0, &mut |part, bytes| {
            // What is appended here is not read again.
            if first.is_some_and(|first| part >= first) || failed.is_some() {
                return false;
            }
            let Some(StoredBlob { blob, hint, bytes }) = StoredBlob::decode(bytes) else { return true };
            if tower.vault().bytes_of(&blob) == Err(Place::Logged(part)) {
                waiting.push(to_log((blob, hint, &bytes)));
            }
            if waiting.len() >= PART_BLOBS {
                match append(&**log, tower.vault_mut(), std::mem::take(&mut waiting)) {
                    Ok(part) => _ = first.get_or_insert(part),
                    Err(error) => failed = Some(error),
                }
            }
            true
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
        // An empty part, too, says below what there is nothing that anybody needs.
        let last = append(&**log, tower.vault_mut(), waiting)?;
        tower.vault_mut().log_was_swept();
        Ok(first.unwrap_or(last))
    }
}

type ToLog = (BlobRef, crate::sealed::Hint, Vec<u8>);

fn to_log((blob, hint, bytes): (BlobRef, crate::sealed::Hint, &[u8])) -> ToLog {
    (blob, hint, StoredBlob::encode(blob, hint, bytes))
}

fn append(log: &dyn Log, vault: &mut Vault, blobs: Vec<ToLog>) -> Result<Part, LogError> {
    let (names, bytes): (Vec<_>, Vec<_>) = blobs.into_iter().map(|(blob, hint, bytes)| ((blob, hint), bytes)).unzip();
    let (part, covered) = log.append_blobs(&bytes)?;
    vault.logged(part, names);
    vault.set_covered(covered);
    Ok(part)
}

/// After a start: finds every blob there is in the log.
pub(super) fn find(log: &dyn Log, tower: &mut Tower) -> Result<(), StoreError> {
    let vault = tower.vault_mut();
    log.read_blobs(0, &mut |part, bytes| {
        let found = StoredBlob::decode(bytes);
        vault.logged(part, found.map(|found| (found.blob, found.hint)));
        true
    })?;
    vault.missing().map_or(Ok(()), |blob| Err(StoreError::Blob(blob)))
}
