//! The coins that are kept back to get commitments confirmed by their anchors.
//!
//! A commitment with anchors pays only what the mempool demanded when it was signed. If the node cannot add a fee later,
//! a peer can let HTLCs run out. So each such channel has a coin of its own kept back. A child that spends the change of
//! another channel's child has unconfirmed ancestors, and is not taken together with its commitment: so the sum alone does
//! not do. Whatever the wallet sends leaves the coins divided like that, or divides them.

use millrace_wire::Sat;

use super::coin::{Coin, Reach};
use super::error::WalletError;
use super::ledger::Wallet;

/// The most coins that one transaction makes: an eighth of what is relayed.
pub(super) const PIECES_MAX: u32 = 250;

/// How much is kept back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ReservePolicy {
    /// For each channel with anchors, as a coin of at least this much.
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

    /// In how many coins.
    #[must_use]
    pub fn coins(&self, channels: u32) -> u32 {
        let coins = self.of(channels).0.checked_div(self.per_channel.0).unwrap_or(0);
        u32::try_from(coins).unwrap_or(u32::MAX)
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
    /// [`WalletError::Reserve`]; [`WalletError::ReserveCoins`] if there is enough, and not in enough coins: see
    /// [`Wallet::divide`].
    pub fn check_reserve_for(&self, more: u32) -> Result<(), WalletError> {
        let left: Vec<Sat> = self.coins_within(Reach::OwnChange).iter().map(Coin::value).collect();
        check(&self.reserve_policy, self.anchor_channels.saturating_add(more), &left)
    }
}

/// Whether enough is left, in enough coins.
pub(super) fn check(policy: &ReservePolicy, channels: u32, left: &[Sat]) -> Result<(), WalletError> {
    let (reserve, sum) = (policy.of(channels), left.iter().copied().sum());
    if let Some(short) = reserve.checked_sub(sum).filter(|short| *short > Sat::ZERO) {
        return Err(WalletError::Reserve { reserve, left: sum, short });
    }
    let (coins, each) = (policy.coins(channels), policy.per_channel);
    let found = u32::try_from(left.iter().filter(|value| **value >= each).count()).unwrap_or(u32::MAX);
    if found < coins { Err(WalletError::ReserveCoins { coins, left: found, each }) } else { Ok(()) }
}
