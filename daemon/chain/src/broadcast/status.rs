//! What became of an attempt, from bitcoind's words.
//!
//! The words are bitcoind's reject reasons; they have changed between versions, so all of 27 to 30
//! are here.

use crate::bitcoind::{PackageOutcome, TestAccept};
use crate::{ChainError, Result};

/// bitcoind's code for a transaction whose outputs are in the chain.
const RPC_VERIFY_ALREADY_IN_UTXO_SET: i32 = -27;

/// Reasons that mean: the mempool has it. One with other signatures is as good: its id is the same.
const IN_MEMPOOL: [&str; 2] = ["txn-already-in-mempool", "txn-same-nonwitness-data-in-mempool"];
/// Reasons that mean: the chain has it.
const IN_CHAIN: [&str; 3] = ["txn-already-known", "already in block chain", "already in utxo set"];

/// How it stands with a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// bitcoind's mempool has it (a package: both).
    InMempool,
    /// It is in the chain already. bitcoind sees that only while an output of it is unspent; after
    /// that it refuses it, for its inputs are spent.
    Confirmed,
    /// The mempool does not want it now. It is tried again.
    Refused {
        /// bitcoind's error code, 0 for a package's transaction.
        code: i32,
        /// bitcoind's reason.
        reason: String,
    },
    /// bitcoind could not be asked. It is tried again.
    Waiting {
        /// What was seen.
        reason: String,
    },
}

impl Status {
    /// Whether the mempool or the chain has it.
    #[must_use]
    pub fn is_known(&self) -> bool {
        match self {
            Self::InMempool | Self::Confirmed => true,
            Self::Refused { .. } | Self::Waiting { .. } => false,
        }
    }

    /// From the answer to a single transaction.
    pub(super) fn of_send(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::InMempool,
            Err(ChainError::Rpc { code: RPC_VERIFY_ALREADY_IN_UTXO_SET, .. }) => Self::Confirmed,
            Err(ChainError::Rpc { code, message, .. }) => Self::of_reason(code, &message),
            Err(error) => Self::Waiting { reason: error.to_string() },
        }
    }

    /// From the answer to `testmempoolaccept` for one transaction.
    pub(super) fn of_test(result: Result<Vec<TestAccept>>) -> Self {
        match result.as_deref() {
            Ok([TestAccept { allowed: Some(true), .. }]) => Self::InMempool,
            Ok([TestAccept { reason, .. }]) => {
                Self::of_reason(0, reason.as_deref().unwrap_or("bitcoind says nothing about it"))
            }
            Ok(answers) => Self::Waiting { reason: format!("bitcoind gives {} answers about one", answers.len()) },
            Err(error) => Self::Waiting { reason: error.to_string() },
        }
    }

    /// From the outcomes of a package, the child last.
    pub(super) fn of_package(outcomes: &[PackageOutcome]) -> Self {
        let mut last = Self::Refused { code: 0, reason: "bitcoind says nothing about it".to_owned() };
        for outcome in outcomes {
            last = match outcome {
                Ok(()) => Self::InMempool,
                Err(reason) => Self::of_reason(0, reason),
            };
            if !last.is_known() {
                return last;
            }
        }
        last
    }

    fn of_reason(code: i32, reason: &str) -> Self {
        let lower = reason.to_lowercase();
        let says = |words: &&str| lower.contains(*words);
        if IN_MEMPOOL.iter().any(says) {
            Self::InMempool
        } else if IN_CHAIN.iter().any(says) {
            Self::Confirmed
        } else {
            Self::Refused { code, reason: reason.to_owned() }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: i32, message: &str) -> Result<()> {
        Err(ChainError::Rpc { method: "sendrawtransaction".to_owned(), code, message: message.to_owned() })
    }

    mod of_send {
        use super::*;

        #[test]
        fn known_by_any_version() {
            assert_eq!(Status::of_send(Ok(())), Status::InMempool);
            assert_eq!(Status::of_send(refusal(-27, "Transaction outputs already in utxo set")), Status::Confirmed);
            assert_eq!(Status::of_send(refusal(-26, "txn-already-known")), Status::Confirmed);
            assert_eq!(Status::of_send(refusal(-26, "txn-already-in-mempool")), Status::InMempool);
        }

        #[test]
        fn refused_with_the_reason() {
            let status = Status::of_send(refusal(-26, "min relay fee not met, 0 < 110"));
            assert_eq!(status, Status::Refused { code: -26, reason: "min relay fee not met, 0 < 110".to_owned() });
            assert!(!status.is_known());
        }

        #[test]
        fn away() {
            let status = Status::of_send(Err(ChainError::Away { reason: "gone".to_owned() }));
            assert_eq!(status, Status::Waiting { reason: "bitcoind is away: gone".to_owned() });
        }
    }

    mod of_package {
        use super::*;

        #[test]
        fn parent_known_child_new() {
            let outcomes = [Err("txn-already-known".to_owned()), Ok(())];
            assert_eq!(Status::of_package(&outcomes), Status::InMempool);
        }

        #[test]
        fn child_refused() {
            let outcomes = [Ok(()), Err("insufficient fee".to_owned())];
            let refused = Status::Refused { code: 0, reason: "insufficient fee".to_owned() };
            assert_eq!(Status::of_package(&outcomes), refused);
        }

        #[test]
        fn nothing_said() {
            assert!(!Status::of_package(&[]).is_known());
        }
    }
}
