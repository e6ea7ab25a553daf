//! Our `channel_update`s (BOLT 7, "The `channel_update` Message"): what one has to say of a channel, and how it is made
//! and read.

use bitcoin::hashes::{Hash, sha256d};
use lightning::ln::msgs::{ChannelUpdate as LdkUpdate, UnsignedChannelUpdate};
use lightning::util::ser::Writeable;
use millrace_channel::Side;
use millrace_wire::{ChainHash, ChannelUpdate, Decoded, Message, Msat, PublicKey, ShortChannelId};
use secp256k1::{SECP256K1, SecretKey};

use crate::channels::{ChannelSnapshot, ChannelState};
use crate::policy::ForwardPolicy;

/// Bit 0 of `message_flags`, which BOLT 7 wants set.
const MUST_BE_ONE: u8 = 1;
/// Bit 1 of `message_flags`: for the peer alone.
const DONT_FORWARD: u8 = 2;
/// Bit 0 of `channel_flags`: by the node with the greater id.
const DIRECTION: u8 = 1;
/// Bit 1 of `channel_flags`.
const DISABLED: u8 = 2;

/// The type number of `channel_update`.
const TYPE: u16 = 258;

/// Who signs.
#[derive(Clone)]
pub(super) struct Signer {
    pub(super) key: SecretKey,
    pub(super) node_id: PublicKey,
    pub(super) chain_hash: ChainHash,
}

impl Signer {
    pub(super) fn new(key: SecretKey, chain_hash: ChainHash) -> Self {
        Self { node_id: key.public_key(SECP256K1), key, chain_hash }
    }

    pub(super) fn sign(&self, contents: &[u8]) -> secp256k1::ecdsa::Signature {
        let digest = sha256d::Hash::hash(contents).to_byte_array();
        SECP256K1.sign_ecdsa(&secp256k1::Message::from_digest(digest), &self.key)
    }
}

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("node_id", &self.node_id).finish_non_exhaustive()
    }
}

/// What an update says, but for who says it and when.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Said {
    pub(super) scid: ShortChannelId,
    /// The network may know it.
    pub(super) is_public: bool,
    pub(super) is_disabled: bool,
    pub(super) cltv_expiry_delta: u16,
    pub(super) htlc_minimum: Msat,
    pub(super) htlc_maximum: Msat,
    pub(super) fee_base_msat: u32,
    pub(super) fee_ppm: u32,
}

impl Said {
    /// What is to be said of a channel now; nothing before both are ready, nor once it is closed.
    pub(super) fn of(
        snapshot: &ChannelSnapshot,
        policy: &ForwardPolicy,
        peer_share_percent: u8,
        is_away: bool,
    ) -> Option<Self> {
        let is_disabled = match snapshot.state {
            ChannelState::Opening | ChannelState::Closed => return None,
            ChannelState::Normal => is_away,
            ChannelState::ShuttingDown | ChannelState::Closing | ChannelState::OnChain => true,
        };
        let most = forwards_at_most(snapshot, peer_share_percent);
        let remote = snapshot.terms.party(Side::Remote);
        Some(Self {
            scid: name(snapshot)?,
            is_public: snapshot.announcement.is_some(),
            is_disabled,
            cltv_expiry_delta: policy.cltv_delta.0,
            htlc_minimum: policy.htlc_minimum.max(remote.htlc_minimum).min(most),
            htlc_maximum: policy.htlc_maximum.unwrap_or(most).min(most),
            fee_base_msat: u32::try_from(policy.fee_base.0).unwrap_or(u32::MAX),
            fee_ppm: policy.fee_ppm,
        })
    }

    /// What an update of ours said.
    pub(super) fn read(update: &UnsignedChannelUpdate) -> Self {
        Self {
            scid: ShortChannelId(update.short_channel_id),
            is_public: update.message_flags & DONT_FORWARD == 0,
            is_disabled: update.channel_flags & DISABLED != 0,
            cltv_expiry_delta: update.cltv_expiry_delta,
            htlc_minimum: Msat(update.htlc_minimum_msat),
            htlc_maximum: Msat(update.htlc_maximum_msat),
            fee_base_msat: update.fee_base_msat,
            fee_ppm: update.fee_proportional_millionths,
        }
    }

    /// The message, of a channel with `peer`.
    pub(super) fn signed(&self, signer: &Signer, peer: &PublicKey, timestamp: u32) -> ChannelUpdate {
        let direction = if signer.node_id.serialize() < peer.serialize() { 0 } else { DIRECTION };
        let contents = UnsignedChannelUpdate {
            chain_hash: signer.chain_hash,
            short_channel_id: self.scid.0,
            timestamp,
            message_flags: MUST_BE_ONE | if self.is_public { 0 } else { DONT_FORWARD },
            channel_flags: direction | if self.is_disabled { DISABLED } else { 0 },
            cltv_expiry_delta: self.cltv_expiry_delta,
            htlc_minimum_msat: self.htlc_minimum.0,
            htlc_maximum_msat: self.htlc_maximum.0,
            fee_base_msat: self.fee_base_msat,
            fee_proportional_millionths: self.fee_ppm,
            excess_data: Vec::new(),
        };
        ChannelUpdate::new(LdkUpdate { signature: signer.sign(&contents.encode()), contents })
    }
}

/// By which id the update names the channel. A public one has its real id. BOLT 7: any other goes by the alias that the
/// peer told, and one with `option_scid_alias` by nothing else.
fn name(snapshot: &ChannelSnapshot) -> Option<ShortChannelId> {
    let terms = &snapshot.terms;
    let real = snapshot.short_channel_id;
    match (terms.announce, terms.channel_type.scid_alias) {
        (true, _) => real.or(snapshot.remote_alias),
        (false, true) => snapshot.remote_alias,
        (false, false) => snapshot.remote_alias.or(real),
    }
}

/// BOLT 7: no more than the peer lets be in flight, nor than the channel holds beside our reserve; and of that no more than
/// one incoming peer may hold, or payers would learn it by failures.
fn forwards_at_most(snapshot: &ChannelSnapshot, peer_share_percent: u8) -> Msat {
    let terms = &snapshot.terms;
    let spendable = terms.capacity.0.saturating_sub(terms.reserve_of(Side::Local).0);
    let spendable = Msat(spendable.saturating_mul(1_000));
    let carries = terms.party(Side::Remote).max_htlc_value_in_flight.min(spendable);
    let most = u128::from(carries.0) * u128::from(peer_share_percent) / 100;
    Msat(u64::try_from(most).unwrap_or(carries.0))
}

/// An update by its stored bytes, which have no type.
pub(super) fn decode(bytes: &[u8]) -> Option<ChannelUpdate> {
    match Message::decode(&with_type(TYPE, bytes)) {
        Ok(Decoded::Message(Message::ChannelUpdate(update))) => Some(*update),
        _ => None,
    }
}

/// A whole message from its stored bytes.
pub(super) fn with_type(type_number: u16, bytes: &[u8]) -> Vec<u8> {
    [&type_number.to_be_bytes()[..], bytes].concat()
}

/// A whole `channel_update`.
pub(super) fn message(bytes: &[u8]) -> Vec<u8> {
    with_type(TYPE, bytes)
}
