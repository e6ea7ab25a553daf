//! What can go wrong between us and bitcoind, by what to do about it.

use bitcoin::{BlockHash, Network};

/// A failure of bitcoind, of the way to it, or of its fitness for us.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChainError {
    /// It cannot be reached, or is starting or stopping. It may be back any moment.
    #[error("bitcoind is away: {reason}")]
    Away {
        /// What was seen.
        reason: String,
    },
    /// It refuses our login.
    #[error("bitcoind refuses the login: {reason}")]
    Auth {
        /// What was tried.
        reason: String,
    },
    /// It follows another chain.
    #[error("this node is for the network {expected}, but bitcoind is on {found}")]
    WrongNetwork {
        /// What we are configured for.
        expected: Network,
        /// What bitcoind says, in its own words.
        found: String,
    },
    /// It is older than what we work with.
    #[error("bitcoind {found} ({subversion}) is too old: {min} or newer is needed")]
    TooOld {
        /// Its version number, such as 260200.
        found: u32,
        /// Its name for itself.
        subversion: String,
        /// The oldest that will do.
        min: u32,
    },
    /// It has not caught up with the chain yet.
    #[error("bitcoind is still syncing: {blocks} of {headers} blocks ({:.1} %)", progress * 100.0)]
    Syncing {
        /// Blocks it has verified.
        blocks: u32,
        /// Headers it knows.
        headers: u32,
        /// Its own estimate, from 0 to 1.
        progress: f64,
    },
    /// It has thrown away a block that we have not seen.
    #[error(
        "bitcoind is pruned: block {wanted} is needed and it keeps blocks from {kept_from} on; it has to fetch the \
         chain anew (-reindex), with a larger -prune"
    )]
    Pruned {
        /// The height of the block we need.
        wanted: u32,
        /// The lowest height it still has.
        kept_from: u32,
    },
    /// The last block we know is not in its chain, nor is it known there as a stale one.
    #[error(
        "bitcoind (chain of {blocks} blocks) does not know the block at height {height} where this node stopped, \
         {hash}: is it another chain, or one that was deleted?"
    )]
    UnknownCursor {
        /// The height of our last block.
        height: u32,
        /// Its hash.
        hash: BlockHash,
        /// The height of bitcoind's chain.
        blocks: u32,
    },
    /// It answers something that cannot be true.
    #[error("bitcoind's answer to {method} cannot be right: {reason}")]
    Odd {
        /// The call.
        method: String,
        /// What does not fit.
        reason: String,
    },
    /// It refuses one call.
    #[error("bitcoind refuses {method}: {message} (code {code})")]
    Rpc {
        /// The call.
        method: String,
        /// bitcoind's error code.
        code: i32,
        /// bitcoind's words.
        message: String,
    },
    /// The address of its RPC cannot be used.
    #[error("bitcoind's address {url:?}: {reason}")]
    Url {
        /// The address.
        url: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl ChainError {
    /// Whether waiting cannot help: somebody has to change something first.
    #[must_use]
    pub fn is_fatal(&self) -> bool {
        match self {
            Self::WrongNetwork { .. }
            | Self::TooOld { .. }
            | Self::Pruned { .. }
            | Self::UnknownCursor { .. }
            | Self::Url { .. } => true,
            // A login is refused for a moment when bitcoind restarts and has a new cookie.
            Self::Away { .. } | Self::Auth { .. } | Self::Syncing { .. } | Self::Odd { .. } | Self::Rpc { .. } => false,
        }
    }

    /// Whether a call was refused because bitcoind has thrown the block away.
    #[must_use]
    pub fn is_pruned_block(&self) -> bool {
        crate::bitcoind::is_pruned(self)
    }

    pub(crate) fn odd(method: &str, reason: impl Into<String>) -> Self {
        Self::Odd { method: method.to_owned(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_network_names_both() {
        let error = ChainError::WrongNetwork { expected: Network::Signet, found: "regtest".to_owned() };
        assert_eq!(error.to_string(), "this node is for the network signet, but bitcoind is on regtest");
        assert!(error.is_fatal());
    }

    #[test]
    fn syncing_shows_per_cent() {
        let error = ChainError::Syncing { blocks: 250, headers: 1000, progress: 0.251 };
        assert_eq!(error.to_string(), "bitcoind is still syncing: 250 of 1000 blocks (25.1 %)");
        assert!(!error.is_fatal());
    }
}
