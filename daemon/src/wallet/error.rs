//! Why the wallet refuses, with the numbers.

use bitcoin::{BlockHash, Network, OutPoint, Txid};
use millrace_wire::{FeeratePerKw, Sat};
use thiserror::Error;

use crate::config::network_name;

/// A refusal: nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum WalletError {
    /// There are not enough coins.
    #[error("{needed} are needed, fee included, and {available} can be spent")]
    InsufficientFunds {
        /// What it would take.
        needed: Sat,
        /// What there is.
        available: Sat,
    },
    /// There are enough coins, but some are kept back for anchors.
    #[error(
        "{left} would be left, and {reserve} are kept back to get the commitments of channels confirmed; {short} less would do"
    )]
    Reserve {
        /// What must stay.
        reserve: Sat,
        /// What would stay.
        left: Sat,
        /// The difference.
        short: Sat,
    },
    /// There is enough for anchors, but in too few coins: each channel that closes at the same time needs one of its own.
    #[error(
        "{coins} coins of at least {each} are kept back, one for each channel to get its commitment confirmed; {left} would be left"
    )]
    ReserveCoins {
        /// How many must stay.
        coins: u32,
        /// How many would stay.
        left: u32,
        /// What each must hold.
        each: Sat,
    },
    /// The address is none.
    #[error("`{address}` is not a Bitcoin address: {reason}")]
    Address {
        /// What was given.
        address: String,
        /// What is wrong.
        reason: String,
    },
    /// The address is of another network.
    #[error("`{address}` is not an address of the network {}", network_name(*network))]
    WrongNetwork {
        /// What was given.
        address: String,
        /// This node's network.
        network: Network,
    },
    /// The amount is dust there.
    #[error("{amount} is less than the {dust} below which such an output is not relayed")]
    Dust {
        /// The amount.
        amount: Sat,
        /// The least.
        dust: Sat,
    },
    /// The feerate is outside of what makes sense.
    #[error("a feerate of {feerate} is not within {min} and {max}")]
    Feerate {
        /// The feerate.
        feerate: FeeratePerKw,
        /// The least that is relayed.
        min: FeeratePerKw,
        /// The most that is no mistake.
        max: FeeratePerKw,
    },
    /// So many inputs make a transaction that is not relayed.
    #[error(
        "the transaction would weigh {weight_wu} weight units, more than the {max_wu} that are relayed; send less at a time"
    )]
    TooHeavy {
        /// Its weight.
        weight_wu: u64,
        /// The limit.
        max_wu: u64,
    },
    /// The wallet does not have such a transaction.
    #[error("the wallet has no transaction {0}")]
    UnknownTransaction(Txid),
    /// It cannot be replaced.
    #[error("transaction {txid} cannot be replaced: {reason}")]
    NotReplaceable {
        /// The transaction.
        txid: Txid,
        /// Why not.
        reason: String,
    },
    /// An input that was handed in is not right.
    #[error("the input {outpoint}: {reason}")]
    Input {
        /// What it spends.
        outpoint: OutPoint,
        /// What is wrong.
        reason: &'static str,
    },
    /// A block that does not follow on the last one.
    #[error("block {hash} of height {height} does not follow on the wallet's last block, of height {last}")]
    OutOfOrder {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: BlockHash,
        /// The wallet's last height.
        last: u32,
    },
}

/// Why the wallet cannot be brought back from what the journal kept.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LoadError {
    /// Bytes of a version that this program does not know.
    #[error("the wallet's record {index} has version {version}, this program knows {known}")]
    Version {
        /// Which one, from 0.
        index: usize,
        /// Its version.
        version: u8,
        /// Ours.
        known: u8,
    },
    /// Bytes that are no record.
    #[error("the wallet's record {index} cannot be read: {reason}")]
    Record {
        /// Which one, from 0.
        index: usize,
        /// Why.
        reason: String,
    },
    /// A record of another seed or another network.
    #[error("the wallet's records do not belong to this seed and network: {0}")]
    Foreign(String),
}
