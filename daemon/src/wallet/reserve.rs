//! The coins that are kept back to get commitments confirmed by their anchors.
//!
//! A commitment with anchors pays only what the mempool demanded when it was signed. If the node cannot add a fee later,
//! a peer can let HTLCs run out. So each such channel keeps some of the wallet back, up to a maximum that covers all of
//! them closing at once.

use millrace_wire::Sat;

use super::coin::Reach;
use super::error::WalletError;
use super::ledger::Wallet;

/// How much is kept back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservePolicy {
    /// For each channel with anchors.
    pub per_channel: Sat,
    /// In all.
    pub max: Sat,
}

impl ReservePolicy {
    /// What is kept back for so many channels.
    #[must_use]
    pub fn of(&self, channels: u32) -> Sat {
        self.per_channel.checked_mul(u64::from(channels)).unwrap_or(self.max).min(self.max)
    }
}

impl Wallet {
    /// Says how many channels with anchors are open, or opening, and not yet resolved on chain.
    pub fn set_anchor_channels(&mut self, channels: u32) {
        self.anchor_channels = channels;
    }

    /// What is kept back now.
    #[must_use]
    pub fn reserve(&self) -> Sat {
        self.reserve_policy.of(self.anchor_channels)
    }

    /// Whether the wallet could keep enough back for so many more channels with anchors, such as peers want to open.
    ///
    /// # Errors
    /// [`WalletError::Reserve`].
    pub fn check_reserve_for(&self, more: u32) -> Result<(), WalletError> {
        let left = self.spendable(Reach::OwnChange);
        check(self.reserve_policy.of(self.anchor_channels.saturating_add(more)), left)
    }
}

/// Whether enough is left.
pub(super) fn check(reserve: Sat, left: Sat) -> Result<(), WalletError> {
    match reserve.checked_sub(left) {
        Some(short) if short > Sat::ZERO => Err(WalletError::Reserve { reserve, left, short }),
        _ => Ok(()),
    }
}
