//! The tower's state as sections of the journal's checkpoint: constant in size per channel, whatever the number of updates.

use std::collections::{BTreeMap, VecDeque};

use bitcoin::BlockHash;
use bitcoin::hashes::Hash;
use millrace_journal::Section;
use millrace_wire::BlockHeight;
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::record::{Handle, RecordError, VERSION, decode, encode};
use crate::tower::Tower;
use crate::vault::Vault;
use crate::watched::Watched;

const TOWER: &[u8] = b"tower";
const CHANNELS: &[u8] = b"channels/";
/// Only where there is blob mode.
const VAULT: &[u8] = b"vault";
/// Channels of one section: some megabytes, so that no section needs a copy of everything in memory.
const CHANNELS_PER_SECTION: usize = 4_096;

/// Why a checkpoint cannot be read.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum SnapshotError {
    /// A section that nobody has.
    #[error("section {0:?} is unknown to this build")]
    UnknownName(String),
    /// Not what it should be.
    #[error("section {name}: {error}")]
    Malformed {
        /// Which.
        name: String,
        /// Why.
        error: RecordError,
    },
}

/// What is not a channel.
#[derive(Serialize, Deserialize)]
struct Rest {
    clients: BTreeMap<PublicKey, u32>,
    next_handle: u32,
    /// The newest last.
    blocks: Vec<(BlockHeight, [u8; 32])>,
}

/// The sections of a tower's checkpoint.
#[must_use]
pub fn sections(tower: &Tower) -> Vec<Section> {
    let rest = Rest {
        clients: tower.clients().map(|(client, max)| (*client, max)).collect(),
        next_handle: tower.next_handle(),
        blocks: tower.blocks().map(|(height, hash)| (height, hash.to_byte_array())).collect(),
    };
    let mut sections = vec![Section { name: TOWER.to_vec(), bytes: encode(&rest) }];
    let mut current = Vec::new();
    for (index, channel) in tower.channels().enumerate() {
        if index.is_multiple_of(CHANNELS_PER_SECTION) && !current.is_empty() {
            sections.push(channels(sections.len(), std::mem::take(&mut current)));
        }
        if current.is_empty() {
            current.push(VERSION);
        }
        current = postcard::to_extend(&channel, current).expect("a channel holds nothing that postcard cannot write");
    }
    if !current.is_empty() {
        sections.push(channels(sections.len(), current));
    }
    let vault = tower.vault().store().map(|stored| Section { name: VAULT.to_vec(), bytes: encode(&stored) });
    sections.extend(vault);
    sections
}

fn channels(number: usize, bytes: Vec<u8>) -> Section {
    Section { name: [CHANNELS, number.to_string().as_bytes()].concat(), bytes }
}

/// Reads them back.
///
/// # Errors
/// [`SnapshotError`].
pub fn restore(sections: &[Section]) -> Result<Tower, SnapshotError> {
    let mut rest = Rest { clients: BTreeMap::new(), next_handle: 0, blocks: Vec::new() };
    let mut watched = BTreeMap::new();
    let mut vault = Vault::default();
    for Section { name, bytes } in sections {
        let shown = String::from_utf8_lossy(name).into_owned();
        let malformed = |error| SnapshotError::Malformed { name: shown.clone(), error };
        if name == TOWER {
            rest = decode(bytes).map_err(malformed)?;
        } else if name.starts_with(CHANNELS) {
            read_channels(bytes, &mut watched).map_err(malformed)?;
        } else if name == VAULT {
            vault = Vault::restore(decode(bytes).map_err(malformed)?);
        } else {
            return Err(SnapshotError::UnknownName(shown));
        }
    }
    let blocks: VecDeque<_> =
        rest.blocks.into_iter().map(|(height, hash)| (height, BlockHash::from_byte_array(hash))).collect();
    Ok(Tower::restore(rest.clients, watched, rest.next_handle, blocks, vault))
}

fn read_channels(bytes: &[u8], out: &mut BTreeMap<Handle, Watched>) -> Result<(), RecordError> {
    let mut left = match bytes.split_first() {
        Some((&VERSION, left)) => left,
        Some((&version, _)) => return Err(RecordError::UnknownVersion(version)),
        None => return Err(RecordError::Malformed("it is empty".to_owned())),
    };
    while !left.is_empty() {
        let ((handle, watched), after): ((Handle, Watched), _) =
            postcard::take_from_bytes(left).map_err(|error| RecordError::Malformed(error.to_string()))?;
        out.insert(handle, watched);
        left = after;
    }
    Ok(())
}
