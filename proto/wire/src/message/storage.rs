//! `peer_storage` and `peer_storage_retrieval` (BOLT 1, "Peer storage"): a small encrypted backup that one node keeps for
//! another.

use super::codec::{Put as _, Reader};
use super::error::DecodeError;
use super::payload::Payload;

/// Gives a backup to keep, in place of the one before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStorage {
    /// Encrypted by its owner.
    pub blob: Vec<u8>,
}

/// Gives the backup back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerStorageRetrieval {
    /// As it was given.
    pub blob: Vec<u8>,
}

fn read_blob(r: &mut Reader<'_>) -> Result<Vec<u8>, DecodeError> {
    let blob = r.counted("blob")?.to_vec();
    r.unknown_extension()?;
    Ok(blob)
}

impl Payload for PeerStorage {
    const TYPE: u16 = 7;
    const NAME: &'static str = "peer_storage";

    fn write(&self, out: &mut Vec<u8>) {
        out.put_counted(&self.blob);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        read_blob(r).map(|blob| Self { blob })
    }
}

impl Payload for PeerStorageRetrieval {
    const TYPE: u16 = 9;
    const NAME: &'static str = "peer_storage_retrieval";

    fn write(&self, out: &mut Vec<u8>) {
        out.put_counted(&self.blob);
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        read_blob(r).map(|blob| Self { blob })
    }
}
