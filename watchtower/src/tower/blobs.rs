//! What clients and blocks do to the tower in blob mode: checks and records, as for channels.

use std::collections::BTreeMap;

use bitcoin::Transaction;
use millrace_wire::BlockHeight;
use secp256k1::PublicKey;

use super::{CLIENTS_MAX, Refusal, Tower};
use crate::record::{BlobRecord, Record};
use crate::sealed::Sealed;
use crate::vault::{BlobRef, Group, HeldGroup, Vault};

impl Tower {
    /// What was handed over in blob mode.
    #[must_use]
    pub const fn vault(&self) -> &Vault {
        &self.vault
    }

    /// The same for whoever keeps the blobs' bytes.
    pub(crate) const fn vault_mut(&mut self) -> &mut Vault {
        &mut self.vault
    }

    fn record_all(&mut self, records: impl IntoIterator<Item = BlobRecord>, out: &mut Vec<Record>) {
        records.into_iter().for_each(|record| self.record(Record::Blob(record), out));
    }

    pub(super) fn check_place_for(&self, client: &PublicKey) -> Result<(), Refusal> {
        let is_known = |client: &PublicKey| self.clients.contains_key(client);
        let of_blobs_alone = self.vault.clients().filter(|(client, _)| !is_known(client));
        if is_known(client) || self.vault.clients().any(|(other, _)| other == client) {
            return Ok(());
        }
        let count = self.clients.len() + of_blobs_alone.count();
        if count < CLIENTS_MAX { Ok(()) } else { Err(Refusal::TooManyClients) }
    }

    /// Lets a client hand over so many blobs; 0 takes no more of them.
    ///
    /// # Errors
    /// [`Refusal::TooManyClients`].
    pub fn allow_blobs(&mut self, client: PublicKey, blobs_max: u32, out: &mut Vec<Record>) -> Result<(), Refusal> {
        self.check_place_for(&client)?;
        self.record_all(self.vault.allow(client, blobs_max), out);
        Ok(())
    }

    /// Takes a blob. One that it has already changes nothing.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn take_blob(
        &mut self,
        client: &PublicKey,
        group: Group,
        sequence: u64,
        Sealed { hint, bytes }: Sealed,
        now_s: u64,
        out: &mut Vec<Record>,
    ) -> Result<HeldGroup, Refusal> {
        let records = self.vault.take(client, group, sequence, hint, bytes, now_s)?;
        self.record_all(records, out);
        self.vault.held(client, group).ok_or(Refusal::UnknownGroup(group))
    }

    /// Lets the blobs of a group go, if nothing can be lost by that.
    ///
    /// # Errors
    /// [`Refusal::GroupAtRisk`], or if it is none of the client's.
    pub fn release(&mut self, client: &PublicKey, group: Group, out: &mut Vec<Record>) -> Result<(), Refusal> {
        let record = self.vault.release(client, group)?;
        self.record_all([record], out);
        Ok(())
    }

    /// Looks through the next block for what blobs match and for spends of what they have caught. Before [`Tower::connect`].
    pub(crate) fn look_for_blobs(
        &mut self,
        height: BlockHeight,
        txs: &[Transaction],
        matches: &[(usize, BlobRef)],
        bytes: &BTreeMap<BlobRef, Vec<u8>>,
        out: &mut Vec<Record>,
    ) {
        for (index, blob) in matches {
            let bytes = bytes.get(blob).map(Vec::as_slice);
            self.record_all(self.vault.on_match(height, &txs[*index], *blob, bytes), out);
        }
        self.record_all(self.vault.spends_in(height, txs), out);
    }
}
