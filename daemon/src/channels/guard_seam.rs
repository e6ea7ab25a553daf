//! What the channels tell whoever keeps watch while this node is off. Nothing here waits.

use std::fmt;
use std::sync::Arc;

use millrace_channel::keys::ChannelKeys;
use millrace_channel::revocable::Revocable;
use millrace_channel::secrets::RevealedSecrets;
use millrace_channel::terms::Terms;
use millrace_wire::{ChannelId, CommitmentNumber};

use crate::entry::Entry;

/// Those who keep watch, as the channels see them. Every call returns at once: it is made on a shard thread. Whatever they
/// are told is durable, and told in its order.
pub trait ChannelGuards: Send + Sync {
    /// Whether there is anybody. If not, nothing needs to be told.
    fn is_any(&self) -> bool;

    /// A channel is to be watched, with all that its peer has revoked so far. Told at each start, and whenever somebody new
    /// keeps watch.
    fn watch(&self, terms: &Terms, keys: &ChannelKeys, secrets: &RevealedSecrets);

    /// The peer has revoked its commitment of this number.
    fn revoked(&self, channel_id: ChannelId, number: CommitmentNumber, secret: [u8; 32]);

    /// Whether somebody wants a penalty made of each revoked commitment: then [`ChannelGuards::penalty`] is written in the step
    /// that revokes it.
    fn wants_penalties(&self) -> bool;

    /// What it takes to make the penalty for a commitment that the peer has revoked.
    fn penalty(&self, revoked: &Revocable, secret: [u8; 32]) -> Entry;

    /// The channel is closed, and all of it buried.
    fn over(&self, channel_id: ChannelId);

    /// Whether HTLCs may be added in the channel.
    ///
    /// # Errors
    /// [`TowerBehind`]: somebody lacks too many secrets.
    fn may_add(&self, channel_id: ChannelId) -> Result<(), TowerBehind>;
}

/// A watchtower does not have the secrets of so many revoked commitments of a channel that no HTLC is added in it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("watchtower {tower} lacks {lag} revoked commitments of the channel, more than the {max} of `tower.lag_max`")]
pub struct TowerBehind {
    /// Which tower.
    pub tower: millrace_wire::PublicKey,
    /// Revoked commitments whose secrets it does not have.
    pub lag: u64,
    /// So many may be.
    pub max: u64,
}

/// Nobody keeps watch.
#[derive(Clone, Copy, Debug)]
pub struct NoGuards;

impl ChannelGuards for NoGuards {
    fn is_any(&self) -> bool {
        false
    }

    fn watch(&self, _: &Terms, _: &ChannelKeys, _: &RevealedSecrets) {}

    fn revoked(&self, _: ChannelId, _: CommitmentNumber, _: [u8; 32]) {}

    fn wants_penalties(&self) -> bool {
        false
    }

    fn penalty(&self, _: &Revocable, _: [u8; 32]) -> Entry {
        unreachable!("nobody wants it")
    }

    fn over(&self, _: ChannelId) {}

    fn may_add(&self, _: ChannelId) -> Result<(), TowerBehind> {
        Ok(())
    }
}

/// What a channel has for those who keep watch.
pub(crate) enum ForGuards {
    /// All that there is.
    All {
        /// What was agreed.
        terms: Arc<Terms>,
        /// Which keys are ours in it.
        keys_index: u64,
        /// What the peer has revealed.
        secrets: RevealedSecrets,
    },
    /// One more revoked commitment.
    Revoked {
        /// Its number.
        number: CommitmentNumber,
        /// Its secret.
        secret: [u8; 32],
    },
}

impl fmt::Debug for ForGuards {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All { secrets, .. } => f.debug_tuple("All").field(secrets).finish(),
            Self::Revoked { number, .. } => f.debug_tuple("Revoked").field(number).finish(),
        }
    }
}
