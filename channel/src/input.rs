//! What a channel reacts to, besides the peer's messages: orders of our node, the link, the chain, time.

use std::sync::Arc;

use bitcoin::{BlockHash, ScriptBuf, Transaction};
use millrace_wire::{
    AttributionData, BlockHeight, CltvExpiry, Feature, Features, FeeratePerKw, HtlcId, Msat, OnionPacket, PaymentHash,
    Preimage,
};
use secp256k1::PublicKey;

use crate::ledger::htlc::Origin;
use crate::ledger::past::PastHtlc;

/// Milliseconds on a clock that only goes forward. The core never reads it: it is told.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Millis(pub u64);

impl Millis {
    /// `self` and `ms` more.
    #[must_use]
    pub const fn plus(self, ms: u64) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

/// An HTLC to offer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Offer {
    /// Its amount.
    pub amount: Msat,
    /// The hash whose preimage claims it.
    pub payment_hash: PaymentHash,
    /// The height from which we may take it back.
    pub cltv_expiry: CltvExpiry,
    /// For the peer to peel.
    pub onion: Box<OnionPacket>,
    /// BOLT 4's blinded `path_key`.
    pub path_key: Option<PublicKey>,
    /// What for.
    pub origin: Origin,
}

/// A mutual close: where we are to be paid, and what it may cost.
///
/// With `option_simple_close` each side pays for the close that it proposes: we pay `feerate`, and the peer's proposal
/// costs us nothing. Without it the funder pays: if we fund, we propose `feerate` and pay whatever the peer asks for up
/// to `feerate_max`; if the peer funds, we ask for `feerate` within what the peer allows, and take more.
///
/// Feerates are brought between 253 and 250,000 sat per 1000 weight, and `feerate_max` up to `feerate`. They are not
/// kept over a restart: without an order since then, the commitment's feerate takes their place, and up to twice that.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CloseOrder {
    /// Where we are to be paid. Refused if another one was committed to at opening; a later order may name another one
    /// only with `option_simple_close`.
    pub script: ScriptBuf,
    /// The feerate that we propose, of the closing transaction.
    pub feerate: FeeratePerKw,
    /// The most that we pay, when the peer proposes.
    pub feerate_max: FeeratePerKw,
}

/// An order from our own node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// `update_add_htlc`.
    Offer(Offer),
    /// `update_fulfill_htlc`.
    Fulfill {
        /// An irrevocable HTLC of the peer.
        id: HtlcId,
        /// The preimage of its hash.
        preimage: Preimage,
        /// BOLT 4 attribution data. It is not recorded: after a new connection the preimage goes without it.
        attribution: Option<Box<AttributionData>>,
        /// Whether what makes this node give the order is durable, so that it gives it again after any crash: a forward's
        /// preimage, in the record of the channel downstream. Then `update_fulfill_htlc` need not wait for the record of
        /// this channel, which says the same.
        is_durable: bool,
    },
    /// `update_fail_htlc`.
    Fail {
        /// An irrevocable HTLC of the peer.
        id: HtlcId,
        /// The encrypted failure packet.
        reason: Vec<u8>,
        /// BOLT 4 attribution data.
        attribution: Option<Box<AttributionData>>,
    },
    /// `update_fail_malformed_htlc`.
    FailMalformed {
        /// An irrevocable HTLC of the peer.
        id: HtlcId,
        /// The hash of the onion that could not be read.
        sha256_of_onion: [u8; 32],
        /// The failure code; `BADONION` is set in it.
        failure_code: u16,
    },
    /// `update_fee`.
    UpdateFee(FeeratePerKw),
    /// The outcome of this HTLC of ours has been taken over: forget it.
    ReleaseOutcome(HtlcId),
    /// Close together with the peer, who must be connected; also answers the peer's wish to close. A further order
    /// raises the fee: at once with `option_simple_close`, and without it by a new connection, until a close is signed.
    Close(CloseOrder),
    /// What the node has kept ([`Fact::HtlcPast`](crate::Fact::HtlcPast)) of the HTLCs in the revoked commitment of
    /// [`Fact::Breached`](crate::Fact::Breached): all that may stand in it, or more.
    BreachHtlcs(Vec<PastHtlc>),
    /// Preimages that somebody else has seen on chain, a watchtower while this node was off: HTLCs of ours with their
    /// hashes are fulfilled. Others mean nothing.
    Preimages(Vec<Preimage>),
    /// Close alone, now.
    ForceClose {
        /// Why, in words for the user.
        reason: String,
    },
}

/// What happened to the connection with the peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LinkEvent {
    /// `init` was exchanged on a new connection.
    Up {
        /// What both sides' `init` allow.
        features: LinkFeatures,
    },
    /// The connection is gone, and with it everything parked for it.
    Down,
}

/// What both sides' `init` allow on this connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkFeatures {
    /// `option_simple_close` (bits 60/61).
    pub simple_close: bool,
    /// `option_shutdown_anysegwit` (bits 26/27).
    pub shutdown_anysegwit: bool,
}

impl LinkFeatures {
    /// What both `init`s have.
    #[must_use]
    pub fn negotiated(ours: &Features, theirs: &Features) -> Self {
        let both = |feature| ours.supports(feature) && theirs.supports(feature);
        Self { simple_close: both(Feature::SimpleClose), shutdown_anysegwit: both(Feature::ShutdownAnysegwit) }
    }
}

/// What happened on the chain.
#[derive(Clone, Debug)]
pub enum ChainEvent {
    /// A block was added: given first for each block, before what it holds.
    Tip {
        /// Its height.
        height: BlockHeight,
        /// Its hash.
        block: BlockHash,
    },
    /// A watched transaction, or one that spends a watched output, is in the block of the last `Tip`.
    Confirmed {
        /// The transaction.
        tx: Arc<Transaction>,
        /// Its position in the block.
        index: u32,
    },
    /// A spend of a watched output was seen in the mempool.
    Unconfirmed {
        /// The transaction.
        tx: Arc<Transaction>,
    },
    /// The block at this height was taken out of the chain.
    Disconnected {
        /// Its height: the tip is now one below.
        height: BlockHeight,
    },
}
