//! The channels of this node: one actor each, on shard threads.
//!
//! An actor feeds its inputs to the pure `millrace_channel::Channel`, and its outbox holds back what comes out until
//! the records before it are on disk. Nothing here waits for a socket, the journal, the wallet or another channel, and
//! channels never talk to each other.

pub(crate) mod actor;
pub(crate) mod curve_pool;
pub(crate) mod directory;
mod guard_seam;
pub(crate) mod input;
pub(crate) mod keys;
pub(crate) mod mailbox;
pub(crate) mod openings;
mod order;
mod outbox;
mod registry;
pub(crate) mod shard;
pub(crate) mod shared;
mod snapshot;
mod wallet_seam;

pub use guard_seam::{ChannelGuards, NoGuards, TowerBehind};
pub use input::AllDone;
pub use keys::KeysOf;
pub use order::{
    Accepted, ChannelRules, CommandError, CommandResult, NoNewWork, OpenFailure, OpenOrder, OpenProgress, WhenOpened,
};
pub use registry::{ORDERS_MAX, Registry};
pub(crate) use registry::{random, shard_of};
pub(crate) use shared::commitment_feerate;
pub use snapshot::{Announced, ChannelSnapshot, ChannelState, HtlcView};
pub use wallet_seam::{
    ChannelWallet, DestinationReply, Funded, FundingReply, FundingRequest, FundingTransaction, NoFunding, ReserveReply,
};
