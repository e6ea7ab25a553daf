//! What this node brings into an opening: what it proposes or accepts, and on which terms of its own.

use bitcoin::ScriptBuf;
use millrace_wire::{ChainHash, ChannelId, Feature, Features, FeeratePerKw, Msat, Sat, ShortChannelId};
use secp256k1::PublicKey;

use super::limits::{
    DUST_LIMIT_MAX, DUST_LIMIT_MIN, OpeningLimits, Unacceptable, check_affordable, check_announced, check_funding,
    check_negotiated, check_party, check_upfront,
};
use crate::input::LinkFeatures;
use crate::keys::ChannelKeys;
use crate::ledger::limits::HTLCS_MAX;
use crate::terms::{ChannelType, PartyTerms};

/// What this node announces of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LocalParams {
    /// Outputs of our own commitment below this are left out.
    pub dust_limit: Sat,
    /// The most that the peer may have in flight towards us.
    pub max_htlc_value_in_flight: Msat,
    /// What the peer must keep.
    pub channel_reserve: Sat,
    /// The smallest HTLC that we take.
    pub htlc_minimum: Msat,
    /// The blocks by which the peer's own money is delayed: the time we have to punish it.
    pub to_self_delay: u16,
    /// The most HTLCs that we take at once.
    pub max_accepted_htlcs: u16,
    /// Where a mutual close must pay us, if that is to be fixed now.
    pub upfront_shutdown_script: Option<ScriptBuf>,
}

impl LocalParams {
    /// What is usual for a channel of this size: a reserve of 1 % (and never below any peer's dust limit), everything
    /// may be in flight, five days to punish.
    #[must_use]
    pub fn usual_for(funding: Sat) -> Self {
        Self {
            dust_limit: DUST_LIMIT_MIN,
            max_htlc_value_in_flight: funding.to_msat(),
            channel_reserve: Sat(funding.0 / 100).max(DUST_LIMIT_MAX),
            htlc_minimum: Msat(1),
            to_self_delay: 720,
            max_accepted_htlcs: HTLCS_MAX,
            upfront_shutdown_script: None,
        }
    }

    pub(super) fn to_party(&self, keys: &ChannelKeys) -> PartyTerms {
        PartyTerms {
            dust_limit: self.dust_limit,
            max_htlc_value_in_flight: self.max_htlc_value_in_flight,
            channel_reserve: self.channel_reserve,
            htlc_minimum: self.htlc_minimum,
            to_self_delay: self.to_self_delay,
            max_accepted_htlcs: self.max_accepted_htlcs,
            basepoints: keys.basepoints().clone(),
            upfront_shutdown_script: self.upfront_shutdown_script.clone().filter(|script| !script.is_empty()),
        }
    }
}

/// What both sides' `init` allow, as far as an opening is concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpeningFeatures {
    /// What the channel goes on with once it exists.
    pub link: LinkFeatures,
    /// `option_support_large_channel` (bits 18/19).
    pub large_channel: bool,
    /// `option_upfront_shutdown_script` (bits 4/5): what the peer commits to then binds it.
    pub upfront_shutdown_script: bool,
    /// `option_anchors` (bits 22/23).
    pub anchors: bool,
    /// `option_scid_alias` (bits 46/47).
    pub scid_alias: bool,
    /// `option_zeroconf` (bits 50/51).
    pub zero_conf: bool,
}

impl OpeningFeatures {
    /// What both `init`s have.
    #[must_use]
    pub fn negotiated(ours: &Features, theirs: &Features) -> Self {
        let both = |feature| ours.supports(feature) && theirs.supports(feature);
        Self {
            link: LinkFeatures::negotiated(ours, theirs),
            large_channel: both(Feature::LargeChannel),
            upfront_shutdown_script: both(Feature::UpfrontShutdownScript),
            anchors: both(Feature::Anchors),
            scid_alias: both(Feature::ScidAlias),
            zero_conf: both(Feature::Zeroconf),
        }
    }
}

/// A channel that this node wants to fund.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The peer.
    pub remote_node: PublicKey,
    /// The chain that both are on.
    pub chain_hash: ChainHash,
    /// Random, not that of another opening with this peer.
    pub temporary_channel_id: ChannelId,
    /// The size of the channel.
    pub funding: Sat,
    /// What the peer is given.
    pub push: Msat,
    /// Of the first commitments.
    pub feerate: FeeratePerKw,
    /// The form of the channel.
    pub channel_type: ChannelType,
    /// Whether it is to be announced.
    pub announce: bool,
    /// Our own terms.
    pub local: LocalParams,
    /// What we take of the peer's.
    pub limits: OpeningLimits,
    /// What both sides can do.
    pub features: OpeningFeatures,
    /// The keys of the new channel, never used before.
    pub keys: ChannelKeys,
    /// Which of the node's channel keys these are.
    pub keys_index: u64,
    /// The alias for our `channel_ready`, never used before.
    pub local_alias: ShortChannelId,
}

impl OpenRequest {
    /// Whether the channel may be proposed.
    pub(super) fn check(&self) -> Result<(), Unacceptable> {
        let OpenRequest { temporary_channel_id, funding, push, feerate, channel_type, announce, .. } = *self;
        if temporary_channel_id.is_all() {
            return Err(Unacceptable::TemporaryIdTaken(temporary_channel_id));
        }
        check_funding(funding, push, &self.limits, self.features.large_channel)?;
        check_negotiated(channel_type, &self.features)?;
        check_announced(channel_type, announce)?;
        check_party(&self.local.to_party(&self.keys))?;
        check_upfront(self.local.upfront_shutdown_script.clone(), &self.features)?;
        check_affordable(channel_type.format, feerate, funding, push, self.local.channel_reserve)
    }
}

/// On which terms this node accepts a channel that the peer wants to fund.
#[derive(Clone, Debug)]
pub struct AcceptParams {
    /// The peer.
    pub remote_node: PublicKey,
    /// The chain this node is on.
    pub chain_hash: ChainHash,
    /// Our own terms.
    pub local: LocalParams,
    /// What we take of the peer's.
    pub limits: OpeningLimits,
    /// What both sides can do.
    pub features: OpeningFeatures,
    /// Confirmations to wait for. 0 counts only for a peer that is allowed zero-conf; any
    /// other gets 1.
    pub minimum_depth: u32,
    /// Whether this peer may open channels that need no confirmation.
    pub is_zero_conf_allowed: bool,
    /// The keys of the new channel, never used before.
    pub keys: ChannelKeys,
    /// Which of the node's channel keys these are.
    pub keys_index: u64,
    /// The alias for our `channel_ready`, never used before.
    pub local_alias: ShortChannelId,
}
