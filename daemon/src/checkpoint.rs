//! The checkpoint: what makes the steps before it needless.
//!
//! Each channel's section passes through its outbox, so it holds only what is on disk, and says which step was its last.
//! The folds are asked after that: they have been told of at least as much. Steps from the end of the journal at the
//! beginning of all this on are read again at a start.

use std::sync::{Arc, mpsc};

use millrace_channel::ReplayError;
use millrace_journal::{Checkpoint, CheckpointError as JournalError, Journal, Position, Section};
use millrace_wire::ChannelId;
use serde::{Deserialize, Serialize};

use crate::chain_feed::CursorEntry;
use crate::channels::Registry;
use crate::channels::input::{AllDone, ChannelSection, Done, Input};
use crate::facts::Folds;
use crate::peer::PeerAddress;

const NODE: &[u8] = b"node";
const CHANNEL: &[u8] = b"channel/";
const FOLD: &[u8] = b"fold/";

/// The version of the sections that are written here.
const VERSION: u8 = 1;

/// Why a section is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum SectionError {
    /// A name that nobody has.
    #[error("its name is unknown to this build")]
    UnknownName,
    /// From a newer build.
    #[error("version {0}: this build knows version {VERSION}")]
    UnknownVersion(u8),
    /// Not what the version says.
    #[error("it does not decode: {0}")]
    Malformed(String),
    /// The channel does not take it.
    #[error(transparent)]
    Channel(ReplayError),
}

/// Whose a section is.
pub(crate) enum SectionOf<'a> {
    Node,
    Channel(ChannelId),
    Fold(&'a str),
}

/// Whose a section with this name is.
pub(crate) fn section_of(name: &[u8]) -> Result<SectionOf<'_>, SectionError> {
    if name == NODE {
        return Ok(SectionOf::Node);
    }
    if let Some(id) = name.strip_prefix(CHANNEL) {
        let id = id.try_into().map_err(|_| SectionError::UnknownName)?;
        return Ok(SectionOf::Channel(ChannelId(id)));
    }
    let fold = name.strip_prefix(FOLD).and_then(|fold| std::str::from_utf8(fold).ok());
    fold.map(SectionOf::Fold).ok_or(SectionError::UnknownName)
}

/// What the node itself keeps.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub(crate) struct NodeSection {
    /// The last blocks that every channel has handled, the newest first.
    pub(crate) blocks: Vec<CursorEntry>,
    /// The first channel key that nobody can have seen.
    pub(crate) next_key: u64,
    /// Where peers were reached.
    pub(crate) addresses: Vec<PeerAddress>,
    /// Channels that have closed: their records in the steps that are read again mean nothing.
    pub(crate) closed: Vec<[u8; 32]>,
}

impl NodeSection {
    pub(crate) fn section(&self) -> Section {
        Section { name: NODE.to_vec(), bytes: self.encode() }
    }

    fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("the node's section holds nothing that postcard cannot write")
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SectionError> {
        let body = body_of(bytes)?;
        postcard::from_bytes(body).map_err(|error| SectionError::Malformed(error.to_string()))
    }
}

fn body_of(bytes: &[u8]) -> Result<&[u8], SectionError> {
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(body),
        Some((&version, _)) => Err(SectionError::UnknownVersion(version)),
        None => Err(SectionError::Malformed("it is empty".to_owned())),
    }
}

#[derive(Serialize, Deserialize)]
struct ChannelHead {
    position: Option<(u64, u32)>,
    opened_ms: u64,
}

fn write_channel(section: &ChannelSection) -> Section {
    let position = section.position.map(|position| (position.frame, position.index));
    let head = ChannelHead { position, opened_ms: section.opened_ms };
    let mut bytes = postcard::to_extend(&head, vec![VERSION]).expect("three numbers");
    bytes.extend_from_slice(&section.snapshot);
    Section { name: [CHANNEL, &section.channel_id.0].concat(), bytes }
}

/// Reads a channel's section.
pub(crate) fn read_channel(channel_id: ChannelId, bytes: &[u8]) -> Result<ChannelSection, SectionError> {
    let body = body_of(bytes)?;
    let (head, snapshot): (ChannelHead, _) =
        postcard::take_from_bytes(body).map_err(|error| SectionError::Malformed(error.to_string()))?;
    let position = head.position.map(|(frame, index)| Position { frame, index });
    Ok(ChannelSection { channel_id, position, opened_ms: head.opened_ms, snapshot: snapshot.to_vec() })
}

/// Why there is no checkpoint this time. The one before still stands.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CheckpointError {
    /// The journal did not take it.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A fold had none.
    #[error("{fold} has no section: {reason}")]
    Fold {
        /// Which.
        fold: &'static str,
        /// Why.
        reason: String,
    },
}

/// The sections of all channels, on their way through the outboxes.
pub(crate) struct ChannelSections {
    receiver: mpsc::Receiver<ChannelSection>,
    all_done: AllDone,
}

impl ChannelSections {
    /// From here on, whatever is replayed from the journal's end on goes with them.
    pub(crate) fn ask(registry: &Registry) -> Self {
        let (sender, receiver) = mpsc::channel();
        let (done, all_done) = Done::new();
        registry.put_all(|| Input::Checkpoint { sections: sender.clone(), done: done.clone() });
        Self { receiver, all_done }
    }

    /// Waits until every channel's section has left its outbox, and everything before it was told.
    pub(crate) fn wait(self) -> Vec<Section> {
        let mut sections: Vec<Section> = self.receiver.iter().map(|section| write_channel(&section)).collect();
        self.all_done.wait_blocking();
        sections.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        sections
    }
}

/// A fold's section.
pub(crate) fn of_fold(name: &str, bytes: Vec<u8>) -> Section {
    Section { name: [FOLD, name.as_bytes()].concat(), bytes }
}

/// Writes checkpoints.
pub(crate) struct Checkpointer {
    pub(crate) journal: Arc<Journal>,
    pub(crate) registry: Registry,
    pub(crate) folds: Folds,
    /// What the node itself keeps, now.
    pub(crate) node: Box<dyn Fn() -> NodeSection + Send + Sync>,
}

impl Checkpointer {
    /// Writes one. Takes its time; to be called on a thread that may wait.
    ///
    /// # Errors
    /// [`CheckpointError`]; the checkpoint before still stands.
    pub(crate) fn write(&self) -> Result<(), CheckpointError> {
        let replay_from = self.journal.durable_end();
        let mut sections = ChannelSections::ask(&self.registry).wait();
        for fold in self.folds.iter() {
            let bytes = fold.section(replay_from);
            let bytes = bytes.map_err(|reason| CheckpointError::Fold { fold: fold.name(), reason })?;
            sections.push(of_fold(fold.name(), bytes));
        }
        sections.push((self.node)().section());
        let count = sections.len();
        self.journal.write_checkpoint(&Checkpoint { replay_from, sections })?;
        tracing::info!(%replay_from, sections = count, "checkpoint written");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_channels_section_comes_back() {
        let section = ChannelSection {
            channel_id: ChannelId([3; 32]),
            position: Some(Position { frame: 9, index: 2 }),
            opened_ms: 77,
            snapshot: vec![1, 2, 3],
        };
        let Section { name, bytes } = write_channel(&section);
        assert!(matches!(section_of(&name), Ok(SectionOf::Channel(id)) if id == section.channel_id));
        let read = read_channel(section.channel_id, &bytes).unwrap();
        assert_eq!((read.position, read.opened_ms, read.snapshot), (section.position, 77, vec![1, 2, 3]));
        assert!(matches!(read_channel(section.channel_id, &[2]), Err(SectionError::UnknownVersion(2))));
        assert!(matches!(section_of(b"channel/short"), Err(SectionError::UnknownName)));
    }
}
