//! The terms of either side as `open_channel` and `accept_channel` carry them.

use bitcoin::ScriptBuf;
use millrace_wire::message::{AcceptChannel, OpenChannel};
use millrace_wire::{ChannelId, CommitmentNumber};

use super::agreement::Agreement;
use super::limits::{Unacceptable, check_upfront};
use super::request::{OpenRequest, OpeningFeatures};
use crate::keys::Basepoints;
use crate::terms::PartyTerms;

/// BOLT 2: the only bit of `channel_flags` that means anything.
pub(super) const ANNOUNCE_CHANNEL: u8 = 1;

pub(super) fn open_channel(request: &OpenRequest) -> OpenChannel {
    let OpenRequest { chain_hash, temporary_channel_id, funding, push, feerate, announce, .. } = *request;
    let PartyTerms { basepoints, upfront_shutdown_script, .. } = request.local.to_party(&request.keys);
    OpenChannel {
        chain_hash,
        temporary_channel_id,
        funding,
        push,
        dust_limit: request.local.dust_limit,
        max_htlc_value_in_flight: request.local.max_htlc_value_in_flight,
        channel_reserve: request.local.channel_reserve,
        htlc_minimum: request.local.htlc_minimum,
        feerate,
        to_self_delay: request.local.to_self_delay,
        max_accepted_htlcs: request.local.max_accepted_htlcs,
        funding_pubkey: basepoints.funding,
        revocation_basepoint: basepoints.revocation,
        payment_basepoint: basepoints.payment,
        delayed_payment_basepoint: basepoints.delayed_payment,
        htlc_basepoint: basepoints.htlc,
        first_per_commitment_point: request.keys.commitment_point(CommitmentNumber(0)),
        channel_flags: if announce { ANNOUNCE_CHANNEL } else { 0 },
        upfront_shutdown_script: Some(upfront_shutdown_script.unwrap_or_default()),
        channel_type: Some(request.channel_type.to_features()),
    }
}

pub(super) fn accept_channel(temporary_channel_id: ChannelId, agreement: &Agreement) -> AcceptChannel {
    let local = agreement.parties.local.clone();
    AcceptChannel {
        temporary_channel_id,
        dust_limit: local.dust_limit,
        max_htlc_value_in_flight: local.max_htlc_value_in_flight,
        channel_reserve: local.channel_reserve,
        htlc_minimum: local.htlc_minimum,
        minimum_depth: agreement.minimum_depth,
        to_self_delay: local.to_self_delay,
        max_accepted_htlcs: local.max_accepted_htlcs,
        funding_pubkey: local.basepoints.funding,
        revocation_basepoint: local.basepoints.revocation,
        payment_basepoint: local.basepoints.payment,
        delayed_payment_basepoint: local.basepoints.delayed_payment,
        htlc_basepoint: local.basepoints.htlc,
        first_per_commitment_point: agreement.keys.commitment_point(CommitmentNumber(0)),
        upfront_shutdown_script: Some(local.upfront_shutdown_script.unwrap_or_default()),
        channel_type: Some(agreement.channel_type.to_features()),
    }
}

pub(super) fn remote_funder(open: OpenChannel, features: &OpeningFeatures) -> Result<PartyTerms, Unacceptable> {
    Ok(PartyTerms {
        dust_limit: open.dust_limit,
        max_htlc_value_in_flight: open.max_htlc_value_in_flight,
        channel_reserve: open.channel_reserve,
        htlc_minimum: open.htlc_minimum,
        to_self_delay: open.to_self_delay,
        max_accepted_htlcs: open.max_accepted_htlcs,
        basepoints: Basepoints {
            funding: open.funding_pubkey,
            revocation: open.revocation_basepoint,
            payment: open.payment_basepoint,
            delayed_payment: open.delayed_payment_basepoint,
            htlc: open.htlc_basepoint,
        },
        upfront_shutdown_script: remote_upfront(open.upfront_shutdown_script, features)?,
    })
}

pub(super) fn remote_fundee(accept: AcceptChannel, features: &OpeningFeatures) -> Result<PartyTerms, Unacceptable> {
    Ok(PartyTerms {
        dust_limit: accept.dust_limit,
        max_htlc_value_in_flight: accept.max_htlc_value_in_flight,
        channel_reserve: accept.channel_reserve,
        htlc_minimum: accept.htlc_minimum,
        to_self_delay: accept.to_self_delay,
        max_accepted_htlcs: accept.max_accepted_htlcs,
        basepoints: Basepoints {
            funding: accept.funding_pubkey,
            revocation: accept.revocation_basepoint,
            payment: accept.payment_basepoint,
            delayed_payment: accept.delayed_payment_basepoint,
            htlc: accept.htlc_basepoint,
        },
        upfront_shutdown_script: remote_upfront(accept.upfront_shutdown_script, features)?,
    })
}

/// BOLT 2: what the peer commits to binds it only if both advertised `option_upfront_shutdown_script`.
fn remote_upfront(script: Option<ScriptBuf>, features: &OpeningFeatures) -> Result<Option<ScriptBuf>, Unacceptable> {
    if features.upfront_shutdown_script { check_upfront(script, features) } else { Ok(None) }
}
