//! What the tower writes down: each record is durable before anything that rests on it leaves the process (D8).
//!
//! One version byte, then the record by postcard. Every version that was released stays readable.

use bitcoin::OutPoint;
pub use millrace_channel::secrets::Secret;
use millrace_wire::{BlockHeight, CommitmentNumber};
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::registration::Registration;
use crate::sealed::Hint;
use crate::story::{Closing, Spending};
use crate::vault::{BlobRef, Catch, CatchSpent, Group, GroupId, Unopened};

/// The version that is written.
pub const VERSION: u8 = 1;

/// Names a channel between a client and its tower: short, so that an update is. It is given out once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Handle(pub u32);

impl std::fmt::Display for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "channel {}", self.0)
    }
}

/// One thing that has happened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// A client may have so many channels watched. One who may not any more keeps those that he has.
    ClientAllowed {
        /// The client's key.
        client: PublicKey,
        /// How many; 0 for a client who is not let in any more.
        channels_max: u32,
    },
    /// A channel is watched from now on.
    Registered {
        /// Its name from now on.
        handle: Handle,
        /// Whose it is.
        client: PublicKey,
        /// What the client said of it.
        registration: Registration,
    },
    /// The peer revoked one commitment more.
    Revealed {
        /// In which channel.
        handle: Handle,
        /// Which.
        number: CommitmentNumber,
        /// Its secret.
        secret: Secret,
        /// When the tower took it, in seconds of the Unix epoch.
        time_s: u64,
    },
    /// The peer revoked all commitments before one.
    Advanced {
        /// In which channel.
        handle: Handle,
        /// The first that is not known to be revoked.
        to: CommitmentNumber,
        /// The slots that change by it, the lowest first.
        changed: Vec<Secret>,
        /// When the tower took it, in seconds of the Unix epoch.
        time_s: u64,
    },
    /// A channel's funding output was spent.
    Closed {
        /// Which channel's.
        handle: Handle,
        /// In which block.
        height: BlockHeight,
        /// By what.
        closing: Closing,
    },
    /// Outputs that matter were spent.
    Spent {
        /// Of which channel.
        handle: Handle,
        /// In which block.
        height: BlockHeight,
        /// By what.
        spending: Spending,
    },
    /// A block has been looked through, and everything in it that matters was recorded.
    Connected {
        /// Its height.
        height: BlockHeight,
        /// Its hash.
        hash: [u8; 32],
    },
    /// The block at this height has left the chain.
    Disconnected {
        /// Its height.
        height: BlockHeight,
    },
    /// Nothing can happen in a channel any more: it is not watched from now on.
    Resolved {
        /// Which.
        handle: Handle,
    },
    /// The client has so many of the channel's preimages.
    PreimagesTaken {
        /// Of which channel.
        handle: Handle,
        /// How many, from the first on.
        count: u32,
    },
    /// A client has no need of a channel's name any more.
    Forgotten {
        /// Which.
        handle: Handle,
    },
    /// The blocks before a channel's registration were looked through to the end for it, or need not be.
    Checked {
        /// Which channel.
        handle: Handle,
    },
    /// Something of blob mode's.
    Blob(BlobRecord),
}

/// One thing that has happened in blob mode.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum BlobRecord {
    /// A client may hand over so many blobs. One who may not any more keeps those that he has.
    Allowed {
        /// The client's key.
        client: PublicKey,
        /// How many; 0 for a client whose blobs are not taken any more.
        blobs_max: u32,
    },
    /// A client began a group.
    Opened {
        /// The tower's name for it.
        id: GroupId,
        /// Whose it is.
        client: PublicKey,
        /// The client's name for it.
        group: Group,
    },
    /// A client handed over one blob more.
    Taken {
        /// Which.
        blob: BlobRef,
        /// When the tower took it, in seconds of the Unix epoch.
        time_s: u64,
        /// By what it is found.
        hint: Hint,
        /// What was sealed.
        bytes: Vec<u8>,
    },
    /// A client has no need of a group's blobs any more.
    Released {
        /// Which group.
        id: GroupId,
    },
    /// A revoked commitment is in the chain, and a blob has opened.
    Caught {
        /// Which, and what can be taken.
        catch: Box<Catch>,
    },
    /// A transaction in the chain has the hint of a blob that did not help.
    Unopened(Unopened),
    /// An output that was caught is spent.
    Spent {
        /// Which.
        outpoint: OutPoint,
        /// By whom.
        spent: CatchSpent,
    },
    /// That is buried: nothing can happen any more.
    Over {
        /// With which output.
        outpoint: OutPoint,
    },
}

/// Why bytes are no record.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum RecordError {
    /// From a newer build.
    #[error("record version {0}: this build knows version {VERSION}")]
    UnknownVersion(u8),
    /// Not what the version says.
    #[error("a record of version {VERSION} does not decode: {0}")]
    Malformed(String),
}

impl Record {
    /// Its encoding.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads one record, which must be all of `bytes`.
    ///
    /// # Errors
    /// [`RecordError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        decode(bytes)
    }
}

/// A version byte, and the value by postcard.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    postcard::to_extend(value, vec![VERSION]).expect("what is written holds nothing that postcard cannot write")
}

/// The counterpart of [`encode`].
pub(crate) fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Result<T, RecordError> {
    let malformed = |what: String| RecordError::Malformed(what);
    match bytes.split_first() {
        Some((&VERSION, body)) => {
            let (value, rest) = postcard::take_from_bytes(body).map_err(|error| malformed(error.to_string()))?;
            if rest.is_empty() { Ok(value) } else { Err(malformed(format!("{} bytes follow it", rest.len()))) }
        }
        Some((&version, _)) => Err(RecordError::UnknownVersion(version)),
        None => Err(malformed("it is empty".to_owned())),
    }
}

#[cfg(test)]
mod tests;
