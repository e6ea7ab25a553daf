//! The channels of this node: one actor each, on shard threads.
//!
//! An actor feeds its inputs to the pure `millrace_channel::Channel`, and its outbox holds back what comes out until
//! the records before it are on disk. Nothing here waits for a socket, the journal, the wallet or another channel, and
//! channels never talk to each other.

pub(crate) mod directory;
pub(crate) mod input;
pub(crate) mod mailbox;
mod order;
mod registry;
mod snapshot;
mod wallet_seam;

pub use order::{
    Accepted, ChannelRules, CommandError, CommandResult, NoNewWork, OpenFailure, OpenOrder, OpenProgress, WhenOpened,
};
pub use registry::Registry;
pub use snapshot::{ChannelSnapshot, ChannelState, HtlcView};
pub use wallet_seam::{ChannelWallet, Funded, FundingReply, FundingRequest, FundingTransaction};
