//! Where a channel is in its life. Being offline is no phase: it is the link.

pub mod closing;
pub mod normal;
pub mod on_chain;
pub mod opening;
pub mod ready;
pub mod shutting_down;

use serde::{Deserialize, Serialize};

use crate::phase::closing::SignedClose;
use crate::phase::on_chain::OnChain;

/// The phases of a channel that exists. Before its first record it is an [`opening::Opening`].
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Phase {
    /// Waiting for the funding transaction, or for the peer's `channel_ready`.
    Opening,
    /// Both sides have said `channel_ready`: HTLCs flow.
    Normal,
    /// A `shutdown` was sent or received: no new HTLCs, those in flight end.
    ShuttingDown,
    /// Mutual closes that are signed: any of them may confirm.
    Closing(Vec<SignedClose>),
    /// The channel ends by a commitment transaction.
    OnChain(Box<OnChain>),
    /// Everything is buried, or the channel never came to be.
    Closed,
}

impl Phase {
    /// Its name, for messages and lists.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Opening => "opening",
            Self::Normal => "normal",
            Self::ShuttingDown => "shutting_down",
            Self::Closing(_) => "closing",
            Self::OnChain(_) => "on_chain",
            Self::Closed => "closed",
        }
    }

    /// Whether commitments may still be signed and revoked.
    #[must_use]
    pub const fn may_dance(&self) -> bool {
        matches!(self, Self::Normal | Self::ShuttingDown)
    }
}
