//! What the channels need of the wallet. Nothing here waits: the wallet answers when it can.

use bitcoin::{ScriptBuf, Transaction};
use millrace_channel::phase::on_chain::Claims;
use millrace_wire::{ChannelId, FeeratePerKw, Sat};

/// The wallet, as the channels see it. Every call returns at once: it is made on a shard thread.
pub trait ChannelWallet: Send + Sync {
    /// Makes and signs a transaction with exactly this output, keeps its coins from other uses, and answers. It is not
    /// broadcast: the channel does that once the peer has signed.
    fn fund(&self, request: FundingRequest);

    /// Answers whether the wallet can keep back what it takes to close one more channel with anchors, which a peer wants
    /// to open; `others` are being opened as well.
    fn reserve(&self, others: usize, reply: ReserveReply);

    /// The transaction will not be broadcast: its coins are free again.
    fn release(&self, transaction: &Transaction);

    /// Answers with a fresh script of the wallet's: the peer closes a channel, and asks where we are to be paid.
    fn destination(&self, reply: DestinationReply);

    /// Takes over outputs that need a fee or a destination. Replaces what was asked for this channel before.
    fn claim(&self, channel_id: ChannelId, claims: Claims);
}

/// Where a script of the wallet's goes.
pub type DestinationReply = Box<dyn FnOnce(ScriptBuf) + Send>;

/// Where it goes whether there is a reserve for one more channel: why not, for the owner.
pub type ReserveReply = Box<dyn FnOnce(Result<(), NoFunding>) + Send>;

/// The output of a channel that is to be paid for.
#[derive(Debug)]
pub struct FundingRequest {
    /// To pay to.
    pub script_pubkey: ScriptBuf,
    /// To be paid.
    pub amount: Sat,
    /// What the transaction pays.
    pub feerate: FeeratePerKw,
    /// Whether the channel has anchors, for which coins must be kept.
    pub has_anchors: bool,
    /// Where the answer goes.
    pub reply: FundingReply,
}

/// The answer of the wallet.
pub type Funded = Result<FundingTransaction, NoFunding>;

/// Why there is no funding transaction, in the wallet's words.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NoFunding {
    /// There is too little.
    #[error("{needed} are needed, fee included, and {available} can be spent")]
    Funds {
        /// What is needed, fee included.
        needed: Sat,
        /// What can be spent.
        available: Sat,
    },
    /// There would be, but not without the reserve for closing channels.
    #[error("{available} would be left, and {reserve} are kept back to get the commitments of channels confirmed")]
    Reserve {
        /// What is kept back, the new channel's part included.
        reserve: Sat,
        /// What would be left.
        available: Sat,
    },
    /// It cannot be made, for another reason.
    #[error("{0}")]
    Other(String),
    /// bitcoind would not take the transaction.
    #[error("bitcoind would refuse the funding transaction: {0}")]
    Refused(String),
    /// The wallet has stopped.
    #[error("the wallet is gone")]
    Gone,
}

/// A signed transaction.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FundingTransaction {
    /// Complete, and not broadcast.
    pub transaction: Transaction,
    /// Which of its outputs is the channel's.
    pub vout: u32,
}

/// Where the answer of the wallet goes. Dropped without one, the opening fails.
pub struct FundingReply(Option<Box<dyn FnOnce(Funded) + Send>>);

impl FundingReply {
    /// Calls this with the answer.
    #[must_use]
    pub fn new(answer: impl FnOnce(Funded) + Send + 'static) -> Self {
        Self(Some(Box::new(answer)))
    }

    /// Answers.
    pub fn answer(mut self, funded: Funded) {
        if let Some(answer) = self.0.take() {
            answer(funded);
        }
    }
}

impl Drop for FundingReply {
    fn drop(&mut self) {
        if let Some(answer) = self.0.take() {
            answer(Err(NoFunding::Gone));
        }
    }
}

impl std::fmt::Debug for FundingReply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FundingReply(…)")
    }
}
