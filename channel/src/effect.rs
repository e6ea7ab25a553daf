//! What a channel asks of the world: one list, in order.
//!
//! Nothing after a [`Effect::Journal`] may leave, be it a message, a broadcast or a fact, before that record is on
//! disk. The core may run ahead of the disk; the world never does.

use bitcoin::{OutPoint, ScriptBuf, Transaction, Txid};
use millrace_wire::{
    AttributionData, BlockHeight, ChannelId, CltvExpiry, CommitmentNumber, HtlcId, Message, Msat, PaymentHash,
    Preimage, Sat, ShortChannelId,
};

use crate::ledger::htlc::{Origin, Removal};
use crate::ledger::past::PastHtlc;
use crate::phase::on_chain::ending::LastState;
use crate::phase::on_chain::{Claims, SpendKind};
use crate::record::Record;

/// The effects of one or more inputs. The caller owns it and uses it again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Effects {
    /// In the order in which they must take place.
    pub list: Vec<Effect>,
    /// The encoded records, one after the other; see [`Effects::record`].
    pub journal: Vec<u8>,
}

/// One thing to be done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Write a record down: these bytes of [`Effects::journal`].
    Journal(std::ops::Range<usize>),
    /// Send a message on this connection; dropped if the connection is gone.
    Send(Box<Message>),
    /// Close the connection with the peer (and open it again).
    Disconnect(String),
    /// Broadcast a transaction, again and again until it, or a rival, is buried. Idempotent.
    Broadcast(Broadcast),
    /// Watch the chain. Idempotent.
    Watch(Watch),
    /// Claims that need a fee, or a destination, of the wallet's. Replaces what was asked for before; idempotent.
    Claim(Box<Claims>),
    /// What became true. The same facts come in the same order on replay.
    Fact(Fact),
}

/// A complete transaction, and why it goes out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Broadcast {
    /// The transaction.
    pub tx: Transaction,
    /// What it is.
    pub purpose: Purpose,
}

/// What a transaction is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Purpose {
    /// The funding transaction.
    Funding,
    /// Our own commitment.
    Commitment,
    /// A mutual close.
    MutualClose,
    /// A second-level HTLC transaction that pays its own fee.
    Htlc,
}

/// Something on the chain that the channel wants to be told of.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Watch {
    /// This transaction, confirmed (with the script of the output that matters).
    Confirmation {
        /// Its id.
        txid: Txid,
        /// A script that it pays.
        script: ScriptBuf,
    },
    /// Whatever spends this output, unconfirmed and confirmed.
    Spend {
        /// The output.
        outpoint: OutPoint,
        /// Its script.
        script: ScriptBuf,
    },
}

/// What became true of a channel, told in order, live and on replay alike unless it says otherwise. Payments,
/// invoices, forwards and events are folds over these.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fact {
    /// The channel exists.
    Opened {
        /// Its final id.
        channel_id: ChannelId,
    },
    /// The funding transaction is in a block.
    FundingConfirmed {
        /// Where.
        scid: ShortChannelId,
        /// The block's height.
        height: BlockHeight,
    },
    /// Both sides have said `channel_ready`.
    Ready,
    /// An HTLC of the peer is irrevocably there: may be forwarded, fulfilled or failed. Its onion is with the
    /// channel, see `Channel::htlc`. Told again by `resume` while undecided.
    HtlcReceived {
        /// Its id.
        id: HtlcId,
        /// Its amount.
        amount: Msat,
        /// Its hash.
        payment_hash: PaymentHash,
        /// Its expiry.
        cltv_expiry: CltvExpiry,
        /// Above the dust-exposure limit: must be failed.
        over_dust_exposure: bool,
    },
    /// An add of ours is covered by a signature: it may be out there, whatever happens.
    OfferCommitted {
        /// Its id.
        id: HtlcId,
        /// What for.
        origin: Origin,
        /// Its amount.
        amount: Msat,
    },
    /// An add of ours was forgotten before any signature covered it: it never was. Volatile: never on replay.
    OfferDropped {
        /// What for.
        origin: Origin,
    },
    /// The peer revealed the preimage of an HTLC of ours. Told once per HTLC.
    OfferFulfilled {
        /// Its id.
        id: HtlcId,
        /// What for.
        origin: Origin,
        /// The preimage.
        preimage: Preimage,
    },
    /// The removal of an HTLC of ours is irrevocable; kept until `Command::ReleaseOutcome`. Told again by `resume`
    /// until then.
    OfferResolved {
        /// Its id.
        id: HtlcId,
        /// What for.
        origin: Origin,
        /// How.
        removal: Removal,
    },
    /// An HTLC of ours was taken back on chain after its expiry, or never reached the chain: failed for good.
    OfferTimedOut {
        /// Its id.
        id: HtlcId,
        /// What for.
        origin: Origin,
    },
    /// The removal of an HTLC of the peer is irrevocable.
    RemovalIrrevocable {
        /// Its id.
        id: HtlcId,
        /// Whether it was fulfilled.
        fulfilled: bool,
    },
    /// One side has decided to close together with the other: nothing more is offered.
    ShuttingDown,
    /// The peer has said `shutdown` and we have not: `Command::Close` answers it, with where we are to be paid. Told
    /// again by `resume` until then.
    CloseAsked,
    /// A mutual close is signed.
    MutualCloseSigned {
        /// Its id.
        txid: Txid,
        /// What it pays the miners.
        fee: Sat,
        /// What it pays this node.
        direct: Sat,
    },
    /// The channel ends on chain.
    Failed {
        /// Why.
        reason: String,
    },
    /// The funding output is spent in a block.
    FundingSpent {
        /// By which transaction.
        txid: Txid,
        /// The block's height.
        height: BlockHeight,
        /// What that transaction is.
        what: SpendKind,
        /// What it pays the miners.
        fee: Sat,
        /// What it pays this node's shutdown script or main output.
        direct: Sat,
    },
    /// Everything is buried: what is to be remembered of the channel.
    Closed(Box<LastState>),
    /// The peer told us something in words.
    PeerSaid {
        /// An `error`, or a `warning`.
        is_error: bool,
        /// Printable text.
        text: String,
    },
    /// How long the hops behind an HTLC of ours have held it. Told before its [`Fact::OfferFulfilled`], if the peer said
    /// so; not told again by `resume`. For a payment of our own, which nothing depends on, volatile: never on replay.
    OfferAttributed {
        /// What for.
        origin: Origin,
        /// BOLT 4 attribution data, as it came.
        attribution: Box<AttributionData>,
    },
    /// An HTLC has left the ledger, and may still stand in commitments that the peer has revoked: to be kept until the
    /// channel is closed, for [`Fact::Breached`].
    HtlcPast(PastHtlc),
    /// The peer's commitment of this number is in a block, and revoked: [`Command::BreachHtlcs`] with what is kept of it
    /// is awaited. Told again by `resume`. Volatile: never on replay.
    ///
    /// [`Command::BreachHtlcs`]: crate::Command::BreachHtlcs
    Breached {
        /// Its number.
        number: CommitmentNumber,
    },
    /// Both have signed the channel's announcement. Told again by `resume`, unless a reorganisation took it back.
    Announced {
        /// The complete `channel_announcement`, without its type.
        announcement: Vec<u8>,
    },
}

impl Effect {
    /// Whether it is for the connection with the peer.
    const fn is_of_link(&self) -> bool {
        matches!(self, Self::Send(_) | Self::Disconnect(_))
    }
}

impl Effects {
    /// Writes a record down.
    pub fn record(&mut self, record: &Record) {
        let start = self.journal.len();
        record.encode(&mut self.journal);
        self.list.push(Effect::Journal(start..self.journal.len()));
    }

    /// Sends a message.
    pub fn send(&mut self, message: Message) {
        self.list.push(Effect::Send(Box::new(message)));
    }

    /// Where a message may stand that rests on none of these records: ahead of them all, but behind every message that
    /// was asked for before, for those keep their order.
    pub(crate) fn ahead_of_records(&self) -> usize {
        let behind_messages = self.list.iter().rposition(Effect::is_of_link).map_or(0, |last| last + 1);
        let records = self.list[behind_messages..].iter().position(|effect| matches!(effect, Effect::Journal(_)));
        records.map_or(self.list.len(), |first| behind_messages + first)
    }

    /// Sends a message from this place on.
    pub(crate) fn send_at(&mut self, place: usize, message: Message) {
        self.list.insert(place, Effect::Send(Box::new(message)));
    }

    /// Tells a fact.
    pub fn fact(&mut self, fact: Fact) {
        self.list.push(Effect::Fact(fact));
    }

    /// Empties it, and keeps its buffers.
    pub fn clear(&mut self) {
        self.list.clear();
        self.journal.clear();
    }

    /// True if there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }
}
