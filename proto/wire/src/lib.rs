//! Every byte that crosses the Lightning network: units, messages, features, the BOLT 8 transport.
//!
//! The crate is pure. It opens no socket, reads no clock and draws no randomness; keys, time and random
//! bytes are arguments.

pub mod amount;
pub mod block;
pub mod feature;
pub mod fee;
pub mod id;
pub mod message;
pub mod noise;

pub use amount::{Msat, Sat};
pub use block::{BlockHeight, CltvDelta, CltvExpiry};
pub use feature::{Feature, Features, MissingDependency};
pub use fee::FeeratePerKw;
pub use id::{
    ChainHash, ChannelId, CommitmentNumber, HtlcId, IdError, PaymentHash, PaymentSecret, Preimage, ShortChannelId,
};
pub use message::{
    AcceptChannel, AnnouncementSignatures, AttributionData, ChannelAnnouncement, ChannelReady, ChannelReestablish,
    ChannelUpdate, ClosingComplete, ClosingSig, ClosingSignatures, ClosingSigned, CommitmentSigned, Custom,
    DecodeError, Decoded, EncodeError, Error, FeeRange, FieldFault, FundingCreated, FundingSigned,
    GossipTimestampFilter, Init, Message, NodeAnnouncement, OnionPacket, OpenChannel, PeerStorage,
    PeerStorageRetrieval, PerDirection, Ping, Pong, QueryChannelRange, QueryShortChannelIds, ReplyChannelRange,
    ReplyShortChannelIdsEnd, RevokeAndAck, Shutdown, TxAbort, TxAddInput, TxAddOutput, TxSignatures, UpdateAddHtlc,
    UpdateFailHtlc, UpdateFailMalformedHtlc, UpdateFee, UpdateFulfillHtlc, Verbatim, Warning,
};
pub use secp256k1::PublicKey;
pub use secp256k1::ecdsa::Signature;
