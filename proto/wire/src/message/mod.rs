//! Every message by its type number (BOLT 1, 2, 7).
//!
//! The messages of BOLT 1 and of the channel are structs of our own, a departure from LDK's: their fields carry
//! units, what a channel stores of them is stored in a form of our own, the onion stays opaque, and LDK hides some fields
//! (`update_fail_htlc`) and reserves memory by lengths that it has not checked. The tests hold each to LDK's encoding. What no channel
//! reads yet, and has a fixed length, keeps LDK's struct.
//!
//! Nothing here judges a value: a message that decodes is well-formed, no more.

mod announcement;
mod closing;
mod codec;
mod commitment;
mod control;
mod error;
mod funding;
mod gossip;
mod htlc;
mod interactive;
mod open;
mod payload;
mod query;
mod storage;

pub use announcement::AnnouncementSignatures;
pub use closing::{ClosingComplete, ClosingSig, ClosingSignatures, ClosingSigned, FeeRange, Shutdown};
pub use commitment::{ChannelReestablish, CommitmentSigned, RevokeAndAck, UpdateFee};
pub use control::{Error, Init, Ping, Pong, Warning, printable_text};
pub use error::{DecodeError, EncodeError, FieldFault};
pub use funding::{ChannelReady, FundingCreated, FundingSigned};
pub use gossip::{ChannelAnnouncement, ChannelUpdate, NodeAnnouncement, Signed, Verbatim};
pub use htlc::{
    AttributionData, OnionPacket, UpdateAddHtlc, UpdateFailHtlc, UpdateFailMalformedHtlc, UpdateFulfillHtlc,
};
pub use interactive::{TxAbort, TxAddInput, TxAddOutput, TxSignatures};
pub use open::{AcceptChannel, OpenChannel};
pub use query::{
    GossipTimestampFilter, PerDirection, QueryChannelRange, QueryShortChannelIds, ReplyChannelRange,
    ReplyShortChannelIdsEnd,
};
pub use storage::{PeerStorage, PeerStorageRetrieval};

use lightning::ln::msgs;

use self::codec::{Put as _, Reader};
use self::payload::Payload;
use crate::id::ChannelId;

/// The longest message, its type included (BOLT 8).
pub const MESSAGE_BYTES_MAX: usize = 65_535;

/// The first type number that is free for anyone's use (BOLT 1, "Lightning Message Format").
pub const FIRST_CUSTOM_TYPE: u16 = 32_768;

/// A message outside the BOLTs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Custom {
    /// [`FIRST_CUSTOM_TYPE`] or above.
    pub type_number: u16,
    /// Everything behind the type.
    pub bytes: Vec<u8>,
}

/// What came in.
#[expect(clippy::large_enum_variant, reason = "short-lived; a box would allocate for every message")]
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decoded {
    /// A message.
    Message(Message),
    /// One of an unknown odd type, which BOLT 1 lets pass.
    Ignored {
        /// Its type.
        type_number: u16,
    },
}

/// The one table of messages: the enum, and everything that goes by the kind of message.
macro_rules! messages {
    ($($(#[$doc:meta])* $variant:ident($payload:ty),)*) => {
        /// Any message of BOLT 1, 2 and 7, or a custom one.
        #[derive(Clone, PartialEq, Eq, Debug)]
        pub enum Message {
            $($(#[$doc])* $variant($payload),)*
            /// A message outside the BOLTs.
            Custom(Custom),
        }

        impl Message {
            /// The number at its beginning.
            #[must_use]
            pub const fn type_number(&self) -> u16 {
                match self {
                    $(Self::$variant(_) => <$payload as Payload>::TYPE,)*
                    Self::Custom(custom) => custom.type_number,
                }
            }

            /// Its name in the BOLTs.
            #[must_use]
            pub const fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => <$payload as Payload>::NAME,)*
                    Self::Custom(_) => "custom",
                }
            }

            /// The channel it speaks of, by its temporary id while it has no other. None when it
            /// speaks of no channel, or of all of them.
            #[must_use]
            pub fn channel_id(&self) -> Option<ChannelId> {
                match self {
                    $(Self::$variant(message) => message.channel_id(),)*
                    Self::Custom(_) => None,
                }
            }

            fn write_payload(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(message) => message.write(out),)*
                    Self::Custom(custom) => out.put(&custom.bytes),
                }
            }

            /// `None` when no message has this type.
            fn read_payload(type_number: u16, bytes: &[u8]) -> Option<Result<Self, DecodeError>> {
                match type_number {
                    $(<$payload as Payload>::TYPE => {
                        let mut r = Reader::new(<$payload as Payload>::NAME, bytes, TYPE_BYTES);
                        Some(<$payload as Payload>::read(&mut r).map(Self::$variant))
                    })*
                    _ => None,
                }
            }
        }

        $(impl From<$payload> for Message {
            fn from(message: $payload) -> Self {
                Self::$variant(message)
            }
        })*
    };
}

messages! {
    /// Complains.
    Warning(Warning),
    /// Asks for a pause of updates.
    Stfu(msgs::Stfu),
    /// Gives a backup to keep.
    PeerStorage(PeerStorage),
    /// Gives a backup back.
    PeerStorageRetrieval(PeerStorageRetrieval),
    /// Begins a connection.
    Init(Init),
    /// Fails a channel.
    Error(Error),
    /// Asks for a sign of life.
    Ping(Ping),
    /// Gives it.
    Pong(Pong),
    /// Proposes a channel.
    OpenChannel(Box<OpenChannel>),
    /// Agrees to it.
    AcceptChannel(Box<AcceptChannel>),
    /// Names the funding output.
    FundingCreated(FundingCreated),
    /// Signs the funder's first commitment.
    FundingSigned(FundingSigned),
    /// The funding is deep enough.
    ChannelReady(ChannelReady),
    /// Begins a cooperative close.
    Shutdown(Shutdown),
    /// Negotiates its fee.
    ClosingSigned(ClosingSigned),
    /// Offers closing transactions.
    ClosingComplete(ClosingComplete),
    /// Signs one of them.
    ClosingSig(ClosingSig),
    /// Proposes a channel that both may fund.
    OpenChannel2(Box<msgs::OpenChannelV2>),
    /// Agrees to it.
    AcceptChannel2(Box<msgs::AcceptChannelV2>),
    /// Adds an input to a transaction built together.
    TxAddInput(TxAddInput),
    /// Adds an output.
    TxAddOutput(TxAddOutput),
    /// Takes an input out.
    TxRemoveInput(msgs::TxRemoveInput),
    /// Takes an output out.
    TxRemoveOutput(msgs::TxRemoveOutput),
    /// Has nothing to add.
    TxComplete(msgs::TxComplete),
    /// Signs the inputs.
    TxSignatures(TxSignatures),
    /// Wants a higher fee.
    TxInitRbf(msgs::TxInitRbf),
    /// Agrees to it.
    TxAckRbf(msgs::TxAckRbf),
    /// Gives the transaction up.
    TxAbort(TxAbort),
    /// The new funding is deep enough.
    SpliceLocked(msgs::SpliceLocked),
    /// Proposes a new funding.
    SpliceInit(msgs::SpliceInit),
    /// Agrees to it.
    SpliceAck(msgs::SpliceAck),
    /// Announces several messages that belong together.
    StartBatch(msgs::StartBatch),
    /// Offers an HTLC.
    UpdateAddHtlc(UpdateAddHtlc),
    /// Claims one.
    UpdateFulfillHtlc(UpdateFulfillHtlc),
    /// Gives one up.
    UpdateFailHtlc(UpdateFailHtlc),
    /// Signs the next commitment.
    CommitmentSigned(CommitmentSigned),
    /// Gives up the previous one.
    RevokeAndAck(RevokeAndAck),
    /// Changes the feerate.
    UpdateFee(UpdateFee),
    /// Gives up an HTLC whose onion is broken.
    UpdateFailMalformedHtlc(UpdateFailMalformedHtlc),
    /// Resumes a channel.
    ChannelReestablish(ChannelReestablish),
    /// A channel and its four owners.
    ChannelAnnouncement(Box<ChannelAnnouncement>),
    /// A node and its addresses.
    NodeAnnouncement(Box<NodeAnnouncement>),
    /// One direction's fees and limits.
    ChannelUpdate(Box<ChannelUpdate>),
    /// Signs an announcement of the channel.
    AnnouncementSignatures(AnnouncementSignatures),
    /// Asks for announcements.
    QueryShortChannelIds(QueryShortChannelIds),
    /// Ends the answer.
    ReplyShortChannelIdsEnd(ReplyShortChannelIdsEnd),
    /// Asks for channels by block.
    QueryChannelRange(QueryChannelRange),
    /// Answers.
    ReplyChannelRange(ReplyChannelRange),
    /// Opens the flow of gossip.
    GossipTimestampFilter(GossipTimestampFilter),
    /// A message along a route of its own.
    OnionMessage(Box<msgs::OnionMessage>),
}

/// The type number's length.
const TYPE_BYTES: usize = 2;

impl Message {
    /// Appends the type and the message to `out`.
    ///
    /// # Errors
    /// When it is longer than [`MESSAGE_BYTES_MAX`], or a custom message with a type of the BOLTs.
    /// `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        if let Self::Custom(Custom { type_number, .. }) = *self
            && type_number < FIRST_CUSTOM_TYPE
        {
            return Err(EncodeError::NotCustom { type_number });
        }
        let start = out.len();
        out.put_u16(self.type_number());
        self.write_payload(out);
        let len = out.len() - start;
        if len > MESSAGE_BYTES_MAX {
            out.truncate(start);
            return Err(EncodeError::TooLong { message: self.name(), len });
        }
        Ok(())
    }

    /// Reads one whole message, its type included. No custom type is known.
    ///
    /// # Errors
    /// When the bytes are no message, or one of an unknown even type.
    pub fn decode(bytes: &[u8]) -> Result<Decoded, DecodeError> {
        Self::decode_with(bytes, |_| false)
    }

    /// Reads one whole message, its type included; `is_known` says which custom types are wanted.
    ///
    /// # Errors
    /// When the bytes are no message, or one of an unknown even type.
    pub fn decode_with(bytes: &[u8], is_known: impl FnOnce(u16) -> bool) -> Result<Decoded, DecodeError> {
        let len = bytes.len();
        if len > MESSAGE_BYTES_MAX {
            return Err(DecodeError::TooLong { len });
        }
        let (head, payload) = bytes.split_first_chunk().ok_or(DecodeError::NoType { len })?;
        let type_number = u16::from_be_bytes(*head);
        if let Some(read) = Self::read_payload(type_number, payload) {
            return read.map(Decoded::Message);
        }
        if type_number >= FIRST_CUSTOM_TYPE && is_known(type_number) {
            let custom = Custom { type_number, bytes: payload.to_vec() };
            return Ok(Decoded::Message(Self::Custom(custom)));
        }
        if type_number.is_multiple_of(2) {
            return Err(DecodeError::UnknownEven { type_number });
        }
        Ok(Decoded::Ignored { type_number })
    }
}

impl From<OpenChannel> for Message {
    fn from(message: OpenChannel) -> Self {
        Self::OpenChannel(Box::new(message))
    }
}

impl From<AcceptChannel> for Message {
    fn from(message: AcceptChannel) -> Self {
        Self::AcceptChannel(Box::new(message))
    }
}

impl From<Custom> for Message {
    fn from(message: Custom) -> Self {
        Self::Custom(message)
    }
}
