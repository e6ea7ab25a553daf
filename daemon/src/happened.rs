//! What happened, in the node's own words: what `history/` keeps for ever, what the view is folded from, and what public
//! events are made of.
//!
//! No secret is in here that the owner of the node is not shown anyway: no invoice's preimage before it is paid, no key.
//! The encoding is a version byte and then postcard; variants are only ever added at the end.

use bitcoin::{OutPoint, Txid};
use millrace_channel::Terms;
use millrace_channel::phase::on_chain::ending::LastState;
use millrace_wire::{
    BlockHeight, ChannelId, CltvExpiry, HtlcId, Msat, PaymentHash, Preimage, PublicKey, Sat, ShortChannelId,
};
use serde::{Deserialize, Serialize};

use crate::route::Route;
use crate::wallet::Label;

/// The version that this build writes.
const VERSION: u8 = 1;

/// A payment of ours, by a number that nobody else has: the same invoice may be tried again after a failure.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PaymentId(pub [u8; 32]);

impl std::fmt::Debug for PaymentId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(&self.0[..8]))
    }
}

/// One thing that happened, and when, as Unix time in milliseconds.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Happening {
    /// When.
    pub time_ms: u64,
    /// What.
    pub what: Happened,
}

/// What happened.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Happened {
    /// The funding of a channel was signed for.
    ChannelOpening(Box<ChannelOpening>),
    /// A channel can be used.
    ChannelReady {
        /// Which.
        channel_id: ChannelId,
        /// With whom.
        peer: PublicKey,
        /// Our balance.
        local: Msat,
        /// The peer's.
        remote: Msat,
    },
    /// A channel has begun to close, or what is known of that has grown.
    ChannelClosing {
        /// Which.
        channel_id: ChannelId,
        /// With whom.
        peer: PublicKey,
        /// How, as far as known.
        kind: CloseKind,
        /// Why, in words.
        reason: String,
        /// The closing transaction, if there is one yet.
        close: Option<ClosingTx>,
    },
    /// A channel is closed, and everything is resolved.
    ChannelClosed {
        /// Which.
        channel_id: ChannelId,
        /// With whom.
        peer: PublicKey,
        /// How.
        kind: CloseKind,
        /// The transaction that spent its funding, if any did.
        close: Option<ClosingTx>,
        /// What it was: nothing else remembers it.
        last: Box<ClosedChannel>,
    },
    /// A payment was accepted: it will be decided.
    PaymentStarted(Box<PaymentStarted>),
    /// A further attempt has begun; the first one begins with the payment.
    AttemptBegun {
        /// Of which payment.
        id: PaymentId,
        /// It.
        attempt: AttemptBegun,
    },
    /// An attempt has ended without success.
    AttemptFailed {
        /// Of which payment.
        id: PaymentId,
        /// Which, from 0.
        attempt: u32,
        /// Why.
        failure: Failure,
    },
    /// A payment has succeeded.
    PaymentSucceeded {
        /// Which.
        id: PaymentId,
        /// Its hash.
        payment_hash: PaymentHash,
        /// The proof.
        preimage: Preimage,
        /// What arrived.
        amount: Msat,
        /// What routing cost.
        fee: Msat,
    },
    /// A payment has failed: no money has left, nor can it any more.
    PaymentFailed {
        /// Which.
        id: PaymentId,
        /// Its hash.
        payment_hash: PaymentHash,
        /// Why.
        failure: Failure,
    },
    /// An invoice was made.
    InvoiceCreated(Box<InvoiceCreated>),
    /// An invoice was paid.
    InvoicePaid {
        /// Its hash.
        payment_hash: PaymentHash,
        /// What was paid.
        received: Msat,
        /// The payer's proof.
        preimage: Preimage,
        /// By which channel.
        channel_id: ChannelId,
        /// By which HTLC of it.
        htlc_id: HtlcId,
    },
    /// A transaction of the wallet appeared, was confirmed, or went.
    WalletTransaction(Box<WalletSeen>),
    /// A connection came about.
    PeerConnected {
        /// With whom.
        peer: PublicKey,
        /// Where it is.
        address: String,
        /// It called us.
        is_inbound: bool,
    },
    /// A connection has ended.
    PeerDisconnected {
        /// With whom.
        peer: PublicKey,
        /// Why, in words.
        reason: String,
    },
    /// An invoice was made whose payment is held until its owner decides.
    HoldInvoiceCreated(Box<InvoiceCreated>),
    /// All of a payment for a hold invoice is there, and is held.
    InvoiceHeld {
        /// Its hash.
        payment_hash: PaymentHash,
        /// By which HTLCs.
        parts: Vec<ReceivedPart>,
        /// The last block at which it can be settled: after it the HTLCs are failed back.
        deadline: BlockHeight,
    },
    /// An invoice was cancelled: what was held for it is failed back, and it can never be paid.
    InvoiceCancelled {
        /// Its hash.
        payment_hash: PaymentHash,
        /// Why.
        why: CancelReason,
    },
    /// An invoice was paid, by several HTLCs or after it was held.
    InvoicePaidInParts {
        /// Its hash.
        payment_hash: PaymentHash,
        /// The payer's proof.
        preimage: Preimage,
        /// By which HTLCs.
        parts: Vec<ReceivedPart>,
    },
    /// A spontaneous payment came in (keysend): no invoice asked for it.
    KeysendReceived {
        /// Its hash.
        payment_hash: PaymentHash,
        /// The preimage, which came with it.
        preimage: Preimage,
        /// By which HTLC.
        part: ReceivedPart,
    },
    /// An HTLC of a peer went on, and it is known how that ends.
    Forwarded(Box<Forwarded>),
    /// The way of an attempt that goes over other nodes, or carries a part; told together with its beginning.
    AttemptRouted {
        /// Of which payment.
        id: PaymentId,
        /// Which attempt, from 0.
        attempt: u32,
        /// Its way.
        route: Box<Route>,
    },
    /// For how long each hop says that it held the HTLC of an attempt that failed (BOLT 4, attribution data).
    AttemptHeld {
        /// Of which payment.
        id: PaymentId,
        /// Which attempt, from 0.
        attempt: u32,
        /// In milliseconds, first hop first, for as many hops as vouch for it.
        held_ms: Vec<u32>,
    },
}

/// An HTLC that pays an invoice, or a part of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ReceivedPart {
    /// Its channel.
    pub channel_id: ChannelId,
    /// It.
    pub htlc_id: HtlcId,
    /// What it carries.
    pub amount: Msat,
}

/// What HTLCs carry together.
#[must_use]
pub fn sum_of(parts: &[ReceivedPart]) -> Msat {
    // No channels hold so much: it cannot overflow.
    parts.iter().fold(Msat::ZERO, |sum, part| sum.checked_add(part.amount).unwrap_or(Msat(u64::MAX)))
}

/// Why an invoice was cancelled.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CancelReason {
    /// Its owner said so.
    Asked,
    /// What was held for it came too near to its expiry.
    Deadline,
    /// The channel of a part does not have it any more: what is left is not the whole payment.
    PartGone,
}

/// An HTLC of a peer that went on over another channel.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Forwarded {
    /// The channel that it came by.
    pub incoming_channel: ChannelId,
    /// Its id there.
    pub incoming_htlc: HtlcId,
    /// The channel that it went out by.
    pub outgoing_channel: ChannelId,
    /// Its id there.
    pub outgoing_htlc: HtlcId,
    /// Its hash.
    pub payment_hash: PaymentHash,
    /// What came in.
    pub amount_in: Msat,
    /// What went out.
    pub amount_out: Msat,
    /// When it was irrevocably there, as Unix time in milliseconds.
    pub received_ms: u64,
    /// How it ended.
    pub end: ForwardEnd,
}

impl Forwarded {
    /// What this node has earned by it.
    #[must_use]
    pub fn fee(&self) -> Msat {
        match self.end {
            ForwardEnd::Settled => self.amount_in.checked_sub(self.amount_out).unwrap_or(Msat::ZERO),
            ForwardEnd::Failed | ForwardEnd::TimedOut | ForwardEnd::Lost => Msat::ZERO,
        }
    }
}

/// How a forward ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub enum ForwardEnd {
    /// Its preimage is known.
    Settled,
    /// It was failed downstream.
    Failed,
    /// Its outgoing channel ended without it.
    TimedOut,
    /// Its preimage came when it was over upstream: what went out is lost.
    Lost,
}

/// A transaction of the wallet, as it stood.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct WalletSeen {
    /// Which.
    pub txid: Txid,
    /// What it pays the wallet.
    pub received: Sat,
    /// What it takes from the wallet.
    pub sent: Sat,
    /// What it pays the miners, if all of its inputs are known.
    pub fee: Option<Sat>,
    /// Its block, if it is in one.
    pub height: Option<u32>,
    /// When it was seen, or mined, in seconds of the Unix epoch.
    pub time_s: u64,
    /// What it is for.
    pub label: Label,
    /// Another took its place, or a reorganisation took it out of the chain.
    pub is_replaced: bool,
}

/// A channel that is being opened.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChannelOpening {
    /// It.
    pub channel_id: ChannelId,
    /// With whom.
    pub peer: PublicKey,
    /// Its size.
    pub capacity: Sat,
    /// Whether we opened it.
    pub is_funder: bool,
    /// Its output.
    pub funding_outpoint: OutPoint,
    /// What was given to the peer at the start.
    pub push: Msat,
}

/// A payment that was accepted.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PaymentStarted {
    /// It.
    pub id: PaymentId,
    /// Its hash.
    pub payment_hash: PaymentHash,
    /// What should arrive.
    pub amount: Msat,
    /// With whom it should arrive.
    pub payee: PublicKey,
    /// The invoice.
    pub bolt11: String,
    /// The key that the client gave; may be empty.
    pub idempotency_key: String,
    /// The first attempt.
    pub attempt: AttemptBegun,
}

/// An attempt at a payment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AttemptBegun {
    /// Which, from 0.
    pub attempt: u32,
    /// By which channel.
    pub channel_id: ChannelId,
    /// The channel as people write it: its alias, if it has no other.
    pub scid: ShortChannelId,
    /// When its HTLC expires.
    pub cltv_expiry: CltvExpiry,
}

/// An invoice that was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InvoiceCreated {
    /// Its hash.
    pub payment_hash: PaymentHash,
    /// Its amount; absent if the payer chooses.
    pub amount: Option<Msat>,
    /// When it expires, as Unix time in milliseconds.
    pub expires_ms: u64,
    /// Itself.
    pub bolt11: String,
    /// The key that the client gave.
    pub idempotency_key: String,
}

/// What is remembered of a channel that is closed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClosedChannel {
    /// What was agreed.
    pub terms: Terms,
    /// As it was when everything was resolved.
    pub last: LastState,
}

/// The transaction that closes a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ClosingTx {
    /// It.
    pub txid: Txid,
    /// What it pays the miners.
    pub fee: Sat,
    /// What it pays this node: our output of a close by agreement, our main output of a commitment.
    pub direct: Sat,
    /// Its block, once it is in one.
    pub height: Option<BlockHeight>,
}

/// How a channel closes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum CloseKind {
    /// Not known yet.
    Unknown,
    /// By agreement.
    Cooperative,
    /// By our commitment.
    LocalCommitment,
    /// By the peer's commitment.
    RemoteCommitment,
    /// By the peer's next commitment.
    RemoteNextCommitment,
    /// By a commitment that the peer had revoked.
    RevokedCommitment,
    /// By a commitment that is later than our data.
    FutureCommitment,
    /// Its funding never confirmed.
    NeverFunded,
}

/// Why a payment or an attempt failed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Failure {
    /// The reason.
    pub reason: FailureReason,
    /// In words.
    pub message: String,
    /// BOLT 4's code, or 0.
    pub code: u16,
    /// Where it came from: 0 is this node, 1 the first hop.
    pub hop: Option<u32>,
}

/// Reasons of failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum FailureReason {
    /// No way is left.
    NoRoute,
    /// Our channels cannot carry it now.
    InsufficientBalance,
    /// The payee refuses.
    PayeeRefused,
    /// The time for attempts is over.
    Timeout,
    /// Every route costs more than the limit.
    FeeLimit,
    /// The invoice expired meanwhile.
    InvoiceExpired,
    /// The channel closed, and the HTLC came back on chain.
    ChannelClosed,
    /// Not now.
    Temporary,
    /// Not at all.
    Permanent,
    /// The answer could not be read.
    Unreadable,
    /// The connection broke before the peer had the HTLC.
    PeerDisconnected,
}

impl Failure {
    /// A failure of this node's own.
    #[must_use]
    pub fn here(reason: FailureReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), code: 0, hop: Some(0) }
    }
}

impl Happening {
    /// Its bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        postcard::to_extend(self, vec![VERSION]).expect("plain data into memory: nothing can fail")
    }

    /// Reads it back.
    ///
    /// # Errors
    /// In words.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        match bytes.split_first() {
            Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
            Some((&version, _)) => Err(format!("version {version} of history: this build knows {VERSION}")),
            None => Err("it is empty".to_owned()),
        }
    }
}
