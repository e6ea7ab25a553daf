//! What a channel writes down. Durable state changes only by applying a record, live and on replay alike.
//!
//! Records are deltas: their size does not depend on how many HTLCs are in flight, but for the peer's
//! signatures over them. The encoding is a version byte and then postcard; every version that was ever released
//! stays decodable.

use bitcoin::{ScriptBuf, Transaction};
use millrace_wire::{
    AttributionData, BlockHeight, FeeratePerKw, HtlcId, Msat, Preimage, Sat, ShortChannelId, Signature,
};
use secp256k1::PublicKey;
use serde::{Deserialize, Serialize};

use crate::ledger::htlc::{Add, Removal};
use crate::phase::on_chain::ChainRecord;
use crate::secrets::Secret;
use crate::terms::Terms;

/// The version byte that this build writes.
pub const VERSION: u8 = 1;

/// One durable fact of a channel's life.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Record {
    /// The channel exists: the peer's signature over our first commitment is here. Before `funding_signed` or the
    /// funding transaction leaves (D5).
    Opened(Box<Opened>),
    /// The funding transaction is in a block.
    FundingConfirmed {
        /// The block's height.
        height: BlockHeight,
        /// Where exactly.
        scid: ShortChannelId,
        /// A coinbase needs 100 confirmations, whatever was agreed.
        is_coinbase: bool,
    },
    /// The block that held the funding transaction is no longer in the chain.
    FundingUnconfirmed,
    /// `channel_ready` is sent, with our alias.
    ReadySent,
    /// The peer's `channel_ready`.
    ReadyReceived {
        /// The point of the peer's commitment 1.
        next_point: PublicKey,
        /// The peer's alias.
        alias: Option<ShortChannelId>,
    },
    /// We sign the peer's next commitment (D1): what it brings in.
    CommitmentSent {
        /// Our adds that no earlier signature covered.
        adds: Vec<Add>,
        /// HTLCs of the peer whose recorded removal this signature covers first.
        removals: Vec<HtlcId>,
        /// Our fee update.
        feerate: Option<FeeratePerKw>,
        /// How many of the adds left before our last `revoke_and_ack`: they are sent again before it, too.
        early_adds: u16,
    },
    /// The peer signed our next commitment, and we revoke the one before (D2).
    CommitmentReceived(Box<CommitmentReceived>),
    /// The peer revoked.
    RevocationReceived {
        /// The secret of the revoked commitment.
        secret: Secret,
        /// The point of the commitment after the next.
        next_point: PublicKey,
        /// HTLCs that become irrevocable by this and stand above the dust-exposure limit.
        over_dust_exposure: Vec<HtlcId>,
    },
    /// We decided how an HTLC of the peer ends.
    RemovalDecided {
        /// The HTLC.
        id: HtlcId,
        /// How.
        removal: Removal,
    },
    /// The peer revealed the preimage of an HTLC that we offered: goes upstream by this flush (D4).
    PreimageReceived {
        /// The HTLC.
        id: HtlcId,
        /// Its preimage.
        preimage: Preimage,
    },
    /// Nobody needs the outcome of this HTLC of ours any more (D13).
    OutcomeReleased {
        /// The HTLC.
        id: HtlcId,
    },
    /// `shutdown` is sent.
    ShutdownSent {
        /// Where we are to be paid.
        script: ScriptBuf,
    },
    /// The peer's `shutdown`.
    ShutdownReceived {
        /// Where the peer is to be paid.
        script: ScriptBuf,
    },
    /// A mutual close is fully signed (or may be by the peer at any time): it may confirm.
    MutualCloseSigned {
        /// The transaction; without our counterparty's witness if only the peer can complete it.
        tx: Transaction,
        /// What it pays.
        fee: Sat,
        /// Whether we hold every signature and broadcast it.
        complete: bool,
    },
    /// The peer proved that it knows more than we do (D11): this data is old, and our commitment is never broadcast.
    LocalDataLost {
        /// The point of the peer's commitment that we wait for.
        remote_point: PublicKey,
    },
    /// The channel has failed: it ends on chain.
    Failed {
        /// Why, in words for the user.
        reason: String,
        /// Whether our own commitment is to be broadcast.
        broadcast: bool,
    },
    /// What happened on chain.
    Chain(ChainRecord),
    /// Everything is buried: nothing can happen any more.
    Closed,
    /// With the preimage of a forward came how long each hop behind it has held it: to be passed on with the preimage,
    /// which does not wait for the removal. Stands before its `PreimageReceived`.
    AttributionReceived {
        /// The HTLC that we offered.
        id: HtlcId,
        /// BOLT 4 attribution data, as it came.
        attribution: Box<AttributionData>,
    },
    /// The peer's `announcement_signatures`, for where the funding transaction stands now.
    AnnouncementSigned {
        /// By the peer's node key.
        node_signature: Signature64,
        /// By the peer's `funding_pubkey`.
        bitcoin_signature: Signature64,
    },
    /// Both have signed the `channel_announcement`, and it may be passed on.
    Announced {
        /// The height of the chain.
        height: BlockHeight,
        /// The message, without its type.
        announcement: Vec<u8>,
    },
}

/// The first record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// What was agreed.
    pub terms: Terms,
    /// Which of the node's channel keys this channel uses.
    pub keys_index: u64,
    /// The feerate of the first commitments.
    pub feerate: FeeratePerKw,
    /// The peer's signature over our commitment 0.
    pub signature: Signature64,
    /// The point of the peer's commitment 0.
    pub remote_first_point: PublicKey,
    /// The funding transaction, if this node funds the channel: broadcast until it confirms.
    pub funding_tx: Option<Transaction>,
    /// The height at which it was opened.
    pub opened_at: BlockHeight,
    /// The alias for the real short channel id that our `channel_ready` tells.
    pub local_alias: ShortChannelId,
}

impl Opened {
    /// The balances at commitment 0.
    #[must_use]
    pub fn balances(&self) -> crate::side::Both<Msat> {
        self.terms.first_balances()
    }
}

/// What the peer's `commitment_signed` covers.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CommitmentReceived {
    /// The peer's adds that no earlier signature covered.
    pub adds: Vec<Add>,
    /// Removals of our HTLCs that the peer proposed.
    pub removals: Vec<(HtlcId, Removal)>,
    /// The peer's fee update.
    pub feerate: Option<FeeratePerKw>,
    /// Over our new commitment.
    pub signature: Signature64,
    /// Over its HTLC transactions, in output order.
    pub htlc_signatures: Vec<Signature64>,
}

/// An ECDSA signature, as its 64 compact bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Signature64(pub Signature);

impl Serialize for Signature64 {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let bytes = self.0.serialize_compact();
        let (r, s) = bytes.split_at(32);
        let halves: (&[u8; 32], &[u8; 32]) =
            (r.try_into().expect("half of 64 bytes"), s.try_into().expect("half of 64 bytes"));
        halves.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Signature64 {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (r, s) = <([u8; 32], [u8; 32])>::deserialize(deserializer)?;
        let mut bytes = [0; 64];
        bytes[..32].copy_from_slice(&r);
        bytes[32..].copy_from_slice(&s);
        Signature::from_compact(&bytes).map(Self).map_err(serde::de::Error::custom)
    }
}

/// Why bytes are not a record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecordError {
    /// Nothing there.
    #[error("an empty record")]
    Empty,
    /// From a newer build.
    #[error("record version {0}: this build knows versions up to {VERSION}")]
    UnknownVersion(u8),
    /// Not what the version says.
    #[error("a record of version {VERSION} does not decode: {0}")]
    Malformed(String),
}

impl Record {
    /// Appends the encoding.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        let taken = std::mem::take(out);
        *out = postcard::to_extend(self, taken).expect("a record holds nothing that postcard cannot write");
    }

    /// Reads one record, which must be all of `bytes`.
    ///
    /// # Errors
    /// [`RecordError`] if the version is unknown or the bytes are not one record of it.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        match bytes.split_first() {
            None => Err(RecordError::Empty),
            Some((&VERSION, body)) => {
                let (record, rest) =
                    postcard::take_from_bytes(body).map_err(|error| RecordError::Malformed(error.to_string()))?;
                if rest.is_empty() {
                    Ok(record)
                } else {
                    Err(RecordError::Malformed(format!("{} bytes follow it", rest.len())))
                }
            }
            Some((&version, _)) => Err(RecordError::UnknownVersion(version)),
        }
    }

    /// Its name, for counters and messages.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Opened(_) => "opened",
            Self::FundingConfirmed { .. } => "funding_confirmed",
            Self::FundingUnconfirmed => "funding_unconfirmed",
            Self::ReadySent => "ready_sent",
            Self::ReadyReceived { .. } => "ready_received",
            Self::CommitmentSent { .. } => "commitment_sent",
            Self::CommitmentReceived(_) => "commitment_received",
            Self::RevocationReceived { .. } => "revocation_received",
            Self::RemovalDecided { .. } => "removal_decided",
            Self::PreimageReceived { .. } => "preimage_received",
            Self::OutcomeReleased { .. } => "outcome_released",
            Self::ShutdownSent { .. } => "shutdown_sent",
            Self::ShutdownReceived { .. } => "shutdown_received",
            Self::MutualCloseSigned { .. } => "mutual_close_signed",
            Self::LocalDataLost { .. } => "local_data_lost",
            Self::Failed { .. } => "failed",
            Self::Chain(_) => "chain",
            Self::Closed => "closed",
            Self::AttributionReceived { .. } => "attribution_received",
            Self::AnnouncementSigned { .. } => "announcement_signed",
            Self::Announced { .. } => "announced",
        }
    }
}
