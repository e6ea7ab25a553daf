//! A channel as the contract shows it, from its actor's snapshot and from what was told of it.

use std::collections::BTreeMap;

use millrace_channel::phase::on_chain::Ending;
use millrace_channel::phase::on_chain::ending::{LastState, Output, OutputKind};
use millrace_channel::tx::weight::{anchors_value, commit_fee, is_trimmed};
use millrace_channel::{ANNOUNCE_DEPTH, Side, Terms};
use millrace_rpc::v1;
use millrace_wire::{BlockHeight, ChannelId, Msat, Sat, ShortChannelId};

use super::channel_story::{claim_fees, is_moved_on, note};
use super::events::close_kind;
use super::{Inner, parse};
use crate::channels::{ChannelSnapshot, ChannelState, HtlcView};
use crate::claims::{ClaimsStatus, OutputState, OutputStatus};
use crate::happened::{CloseKind, ClosedChannel};
use crate::policy::ForwardPolicy;
use crate::view::ChannelRow;

/// What came back to the wallet from closed channels.
pub(super) type Swept = BTreeMap<ChannelId, Sat>;

/// The state, as the contract names it.
pub(super) fn state_message(snapshot: &ChannelSnapshot) -> v1::ChannelState {
    match snapshot.state {
        ChannelState::Opening => v1::ChannelState::AwaitingConfirmations,
        ChannelState::Normal => v1::ChannelState::Normal,
        ChannelState::ShuttingDown => v1::ChannelState::ShuttingDown,
        ChannelState::Closing => v1::ChannelState::Closing,
        ChannelState::OnChain => v1::ChannelState::OnChain,
        ChannelState::Closed => v1::ChannelState::Closed,
    }
}

/// How much of a channel is shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Extent {
    /// Without HTLCs and outputs.
    Short,
    /// Everything.
    Whole,
}

/// A channel that has an actor, or had one since the start.
pub(super) fn message(inner: &Inner, snapshot: &ChannelSnapshot, extent: Extent, swept: &Swept) -> v1::Channel {
    // Lists must not fail over a detail: without the view's row, what it knows is left out.
    let row = inner.past.view.channel(&snapshot.channel_id).ok().flatten();
    if let Some(row) = row.as_ref().filter(|row| row.closed_ms.is_some()) {
        return closed_message(row, extent, swept);
    }
    let terms = &snapshot.terms;
    let untrimmed = snapshot.htlcs.iter().filter(|htlc| !is_dust(terms, snapshot, htlc)).count();
    let htlcs =
        snapshot.htlcs.iter().filter(|_| extent == Extent::Whole).map(|htlc| htlc_message(terms, snapshot, htlc));
    v1::Channel {
        channel_id: snapshot.channel_id.0.to_vec(),
        node_id: snapshot.peer.serialize().to_vec(),
        state: state_message(snapshot).into(),
        online: snapshot.is_online,
        funder: terms.funder == Side::Local,
        capacity_sat: terms.capacity.0,
        funding_outpoint: Some(parse::outpoint_message(&terms.funding_outpoint)),
        short_channel_id: snapshot.short_channel_id.map(parse::scid),
        local_alias: Some(parse::scid(snapshot.local_alias)),
        remote_alias: snapshot.remote_alias.map(parse::scid),
        channel_type: channel_type(terms),
        local_msat: snapshot.balances.local.0,
        remote_msat: snapshot.balances.remote.0,
        offered_msat: snapshot.in_flight.local.0,
        received_msat: snapshot.in_flight.remote.0,
        available_to_send_msat: if snapshot.is_usable() { snapshot.available_to_send.0 } else { 0 },
        available_to_receive_msat: if snapshot.is_usable() { receivable(snapshot, untrimmed).0 } else { 0 },
        offered_htlcs: number(snapshot.htlc_counts.local),
        received_htlcs: number(snapshot.htlc_counts.remote),
        local: Some(side(terms, Side::Local)),
        remote: Some(side(terms, Side::Remote)),
        feerate_sat_per_kw: snapshot.feerate.0,
        commitment_fee_sat: commit_fee(terms.format(), snapshot.feerate, untrimmed).0,
        anchors_sat: anchors_value(terms.format()).0,
        local_commitment_number: snapshot.commitment_numbers.local.0,
        remote_commitment_number: snapshot.commitment_numbers.remote.0,
        awaiting_revocation: snapshot.awaits_revocation,
        htlcs: htlcs.collect(),
        confirmations: snapshot.funding_depth.min(snapshot.required_depth),
        minimum_depth: snapshot.required_depth,
        opened_ms: snapshot.opened_ms,
        total_sent_msat: row.as_ref().map(|row| row.total_sent.0).unwrap_or_default(),
        total_received_msat: row.as_ref().map(|row| row.total_received.0).unwrap_or_default(),
        closing: closing(inner, snapshot, row.as_ref(), extent, swept),
        last_error: snapshot.last_error.clone().unwrap_or_default(),
        policy: Some(policy_message(&inner.api.payments.policies().of(&snapshot.channel_id))),
        announcement: announcement(snapshot),
    }
}

/// On what terms is forwarded.
pub(super) fn policy_message(policy: &ForwardPolicy) -> v1::ForwardPolicy {
    v1::ForwardPolicy {
        fee_base_msat: policy.fee_base.0,
        fee_ppm: policy.fee_ppm,
        cltv_delta_blocks: policy.cltv_delta.0.into(),
        htlc_minimum_msat: policy.htlc_minimum.0,
        htlc_maximum_msat: policy.htlc_maximum.map(|most| most.0),
    }
}

fn announcement(snapshot: &ChannelSnapshot) -> Option<v1::Announcement> {
    use v1::AnnouncementStage::{Announced, WaitsForConfirmations, WaitsForPeer};
    if !snapshot.terms.announce {
        return None;
    }
    let confirmations_left = ANNOUNCE_DEPTH.saturating_sub(snapshot.funding_depth);
    let (stage, height) = match &snapshot.announcement {
        Some(announced) => (Announced, announced.height.0),
        None if confirmations_left > 0 || snapshot.state == ChannelState::Opening => (WaitsForConfirmations, 0),
        None => (WaitsForPeer, 0),
    };
    Some(v1::Announcement { stage: stage.into(), confirmations_left, height })
}

/// A channel that is closed: what was told of it.
pub(super) fn closed_message(row: &ChannelRow, extent: Extent, swept: &Swept) -> v1::Channel {
    let mut shown = v1::Channel {
        channel_id: row.opening.channel_id.0.to_vec(),
        node_id: row.opening.peer.serialize().to_vec(),
        state: v1::ChannelState::Closed.into(),
        funder: row.opening.is_funder,
        capacity_sat: row.opening.capacity.0,
        funding_outpoint: Some(parse::outpoint_message(&row.opening.funding_outpoint)),
        opened_ms: row.opened_ms,
        total_sent_msat: row.total_sent.0,
        total_received_msat: row.total_received.0,
        closing: Some(closing_of_row(row, swept)),
        ..v1::Channel::default()
    };
    if let Some(closed) = &row.last {
        show_last(closed, extent, &mut shown);
    }
    shown
}

fn show_last(closed: &ClosedChannel, extent: Extent, shown: &mut v1::Channel) {
    let ClosedChannel { terms, last } = closed;
    shown.short_channel_id = last.short_channel_id.map(parse::scid);
    shown.local_alias = Some(parse::scid(last.local_alias));
    shown.remote_alias = last.remote_alias.map(parse::scid);
    shown.channel_type = channel_type(terms);
    (shown.local_msat, shown.remote_msat) = (last.balances.local.0, last.balances.remote.0);
    (shown.local, shown.remote) = (Some(side(terms, Side::Local)), Some(side(terms, Side::Remote)));
    shown.feerate_sat_per_kw = last.feerate.0;
    shown.local_commitment_number = last.commitment_numbers.local.0;
    shown.remote_commitment_number = last.commitment_numbers.remote.0;
    shown.minimum_depth = last.required_depth;
    shown.confirmations = if last.short_channel_id.is_some() { last.required_depth } else { 0 };
    if let (Some(info), Some(ending)) = (&mut shown.closing, &last.ending)
        && !ending.outputs.is_empty()
    {
        let claims = ClaimsStatus::default();
        info.claim_fees_sat = claim_fees(ending, &claims, Sat(info.recovered_sat)).0;
        info.on_chain = Some(resolution(ending, &claims, extent));
    }
}

/// Whether a closed channel is the one that is asked for by its short channel id or an alias.
pub(super) fn has_scid(row: &ChannelRow, scid: ShortChannelId) -> bool {
    let Some(closed) = &row.last else { return false };
    let LastState { short_channel_id, local_alias, remote_alias, .. } = &closed.last;
    *local_alias == scid || *short_channel_id == Some(scid) || *remote_alias == Some(scid)
}

/// What sweeps have brought back, by channel; nothing if the wallet has stopped.
pub(super) async fn swept(inner: &Inner) -> Swept {
    inner.api.wallet.ask(|wallet| wallet.swept()).await.unwrap_or_default()
}

fn closing_of_row(row: &ChannelRow, swept: &Swept) -> v1::ClosingInfo {
    let close = row.close.as_ref();
    // A close by agreement pays the wallet itself, as soon as it is in a block.
    let is_paid = row.kind == Some(CloseKind::Cooperative) && close.is_some_and(|close| close.height.is_some());
    let direct = close.filter(|_| is_paid).map_or(Sat::ZERO, |close| close.direct);
    let swept = swept.get(&row.opening.channel_id).copied().unwrap_or(Sat::ZERO);
    v1::ClosingInfo {
        kind: close_kind(row.kind.unwrap_or(CloseKind::Unknown)).into(),
        reason: row.reason.clone(),
        txid: close.map(|close| parse::txid_bytes(&close.txid)).unwrap_or_default(),
        height: close.and_then(|close| close.height).map(|height| height.0),
        fee_sat: close.map_or(0, |close| close.fee.0),
        on_chain: None,
        recovered_sat: direct.0.saturating_add(swept.0),
        claim_fees_sat: 0,
    }
}

fn closing(
    inner: &Inner,
    snapshot: &ChannelSnapshot,
    row: Option<&ChannelRow>,
    extent: Extent,
    swept: &Swept,
) -> Option<v1::ClosingInfo> {
    match snapshot.state {
        ChannelState::Opening | ChannelState::Normal => return None,
        ChannelState::ShuttingDown | ChannelState::Closing | ChannelState::OnChain | ChannelState::Closed => {}
    }
    let mut info = row.map(|row| closing_of_row(row, swept)).unwrap_or_default();
    if let Some(kind) = present_kind(snapshot) {
        info.kind = close_kind(kind).into();
    }
    if let Some(ending) = &snapshot.ending {
        info.txid = parse::txid_bytes(&ending.txid);
        info.height = ending.height.map(|height| height.0);
        info.fee_sat = ending.fee.0;
        if !ending.outputs.is_empty() {
            let claims = inner.api.claimer.status();
            let claims = claims.borrow();
            info.claim_fees_sat = claim_fees(ending, &claims, Sat(info.recovered_sat)).0;
            info.on_chain = Some(resolution(ending, &claims, extent));
        }
    }
    Some(info)
}

/// How a channel closes while nothing that closes it is in a block; from then on the view knows.
pub(super) fn present_kind(snapshot: &ChannelSnapshot) -> Option<CloseKind> {
    match (snapshot.state, &snapshot.ending) {
        (ChannelState::ShuttingDown | ChannelState::Closing, _) => Some(CloseKind::Cooperative),
        (ChannelState::OnChain, Some(ending)) if ending.height.is_none() => Some(CloseKind::LocalCommitment),
        _ => None,
    }
}

/// What the outputs of a channel's commitment wait for.
pub(super) fn resolution(ending: &Ending, claims: &ClaimsStatus, extent: Extent) -> v1::OnChainResolution {
    let ours = || ending.outputs.iter().filter(|output| output.is_ours() && output.spent.is_none());
    let heights = ours().flat_map(|output| [output.claimable, output.deadline]).flatten();
    let outputs = ending.outputs.iter().filter(|_| extent == Extent::Whole);
    v1::OnChainResolution {
        outputs: outputs.map(|output| output_message(output, ending, claims.outputs.get(&output.outpoint))).collect(),
        pending_sat: ours().map(|output| output.amount).sum::<Sat>().0,
        resolved_height: heights.max().unwrap_or(BlockHeight(0)).0,
    }
}

fn output_message(output: &Output, ending: &Ending, claim: Option<&OutputStatus>) -> v1::OnChainOutput {
    let underway = claim.and_then(|claim| match &claim.state {
        OutputState::InMempool { txid, .. } | OutputState::Sending { txid, .. } => Some(*txid),
        OutputState::Waiting { .. } | OutputState::NotNeeded | OutputState::Spent => None,
    });
    let claim_txid = output.spent.map(|(_, txid, _)| txid).or(underway);
    let (kind, payment_hash) = match output.kind {
        OutputKind::Balance(Side::Local) => (v1::OutputKind::ToLocal, None),
        OutputKind::Balance(Side::Remote) => (v1::OutputKind::ToRemote, None),
        OutputKind::Htlc { offered_by: Side::Local, payment_hash } => (v1::OutputKind::OfferedHtlc, Some(payment_hash)),
        OutputKind::Htlc { offered_by: Side::Remote, payment_hash } => {
            (v1::OutputKind::ReceivedHtlc, Some(payment_hash))
        }
        OutputKind::SecondLevel => (v1::OutputKind::SecondLevel, None),
        OutputKind::RevokedHtlc { offered_by: Side::Local } => (v1::OutputKind::OfferedHtlc, None),
        OutputKind::RevokedHtlc { offered_by: Side::Remote } => (v1::OutputKind::ReceivedHtlc, None),
        OutputKind::Unknown => (v1::OutputKind::Unspecified, None),
        OutputKind::Anchor(Side::Local) => (v1::OutputKind::LocalAnchor, None),
        OutputKind::Anchor(Side::Remote) => (v1::OutputKind::RemoteAnchor, None),
    };
    v1::OnChainOutput {
        outpoint: Some(parse::outpoint_message(&output.outpoint)),
        amount_sat: output.amount.0,
        kind: kind.into(),
        status: output_status(output, underway.is_some()).into(),
        claimable_height: output.claimable.unwrap_or(BlockHeight(0)).0,
        deadline_height: output.deadline.unwrap_or(BlockHeight(0)).0,
        claim_txid: claim_txid.as_ref().map(parse::txid_bytes).unwrap_or_default(),
        claim_height: output.spent.map(|(_, _, height)| height.0),
        payment_hash: payment_hash.map(|hash| hash.0.to_vec()).unwrap_or_default(),
        note: note(output, claim, is_moved_on(output, ending)),
    }
}

const fn output_status(output: &Output, is_claim_underway: bool) -> v1::OutputStatus {
    match (output.kind, output.spent) {
        (_, Some((Side::Local, ..))) => v1::OutputStatus::Claimed,
        // An output of an HTLC transaction of the peer's is told only if the peer had no right to it.
        (OutputKind::Htlc { .. } | OutputKind::SecondLevel, Some((Side::Remote, ..))) => v1::OutputStatus::LostToPeer,
        (_, Some((Side::Remote, ..))) => v1::OutputStatus::NotOurs,
        (_, None) if is_claim_underway => v1::OutputStatus::Claiming,
        (_, None) if output.is_ours() => v1::OutputStatus::Waiting,
        (OutputKind::Balance(Side::Remote) | OutputKind::Anchor(Side::Remote) | OutputKind::Unknown, None) => {
            v1::OutputStatus::NotOurs
        }
        (OutputKind::Anchor(Side::Local), None) => v1::OutputStatus::Abandoned,
        // Also an HTLC that the peer offered and whose preimage may still come.
        (
            OutputKind::Balance(Side::Local)
            | OutputKind::Htlc { .. }
            | OutputKind::RevokedHtlc { .. }
            | OutputKind::SecondLevel,
            None,
        ) => v1::OutputStatus::Waiting,
    }
}

fn channel_type(terms: &Terms) -> Vec<String> {
    let features = terms.channel_type.to_features();
    let name = |bit| millrace_wire::Feature::of_bit(bit).map_or_else(|| format!("bit {bit}"), |f| f.name().to_owned());
    features.bits().map(name).collect()
}

fn side(terms: &Terms, side: Side) -> v1::ChannelSide {
    let party = terms.party(side);
    v1::ChannelSide {
        reserve_sat: terms.reserve_of(side).0,
        dust_limit_sat: party.dust_limit.0,
        htlc_minimum_msat: party.htlc_minimum.0,
        max_in_flight_msat: party.max_htlc_value_in_flight.0,
        max_accepted_htlcs: party.max_accepted_htlcs.into(),
        to_self_delay_blocks: terms.delay_of(side).into(),
    }
}

fn is_dust(terms: &Terms, snapshot: &ChannelSnapshot, htlc: &HtlcView) -> bool {
    let dust_limit = terms.party(Side::Local).dust_limit;
    is_trimmed(terms.format(), dust_limit, snapshot.feerate, htlc.offered_by == Side::Local, htlc.amount)
}

fn htlc_message(terms: &Terms, snapshot: &ChannelSnapshot, htlc: &HtlcView) -> v1::Htlc {
    v1::Htlc {
        htlc_id: htlc.id.0,
        offered: htlc.offered_by == Side::Local,
        amount_msat: htlc.amount.0,
        payment_hash: htlc.payment_hash.0.to_vec(),
        cltv_expiry: htlc.cltv_expiry.0,
        stage: htlc.stage.clone(),
        dust: is_dust(terms, snapshot, htlc),
    }
}

/// What the peer can send: what it has, less its reserve and, if it pays for the commitment, the fee with one more HTLC
/// at twice the feerate; and no more than we let be in flight.
fn receivable(snapshot: &ChannelSnapshot, untrimmed: usize) -> Msat {
    let terms = &snapshot.terms;
    let local = terms.party(Side::Local);
    if snapshot.htlc_counts.remote >= usize::from(local.max_accepted_htlcs) {
        return Msat::ZERO;
    }
    let mut kept = terms.reserve_of(Side::Remote);
    if terms.funder == Side::Remote {
        let spike = millrace_wire::FeeratePerKw(snapshot.feerate.0.saturating_mul(2));
        let fee = commit_fee(terms.format(), spike, untrimmed + 2);
        let anchors = anchors_value(terms.format());
        kept = Sat(kept.0.saturating_add(fee.0).saturating_add(anchors.0));
    }
    let balance = snapshot.balances.remote.saturating_sub(kept.to_msat());
    let in_flight_left = local.max_htlc_value_in_flight.saturating_sub(snapshot.in_flight.remote);
    balance.min(in_flight_left)
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
