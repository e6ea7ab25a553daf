//! A channel as JSON, as a row of a list, and as everything there is to know about it.

use millrace_rpc::v1::{
    Announcement, AnnouncementStage, Channel, ChannelSide, ChannelState, CloseKind, ClosingInfo, Htlc, OnChainOutput,
    OnChainResolution,
};
use serde_json::{Value, json};

use super::policy;
use crate::output::{Column, balance_bar, facts, list};
use crate::wallet::{msat, outpoint, sat};
use crate::words;

/// A channel for a program.
pub(super) fn json(channel: &Channel) -> Value {
    json!({
        "channel_id": hex::encode(&channel.channel_id),
        "node_id": hex::encode(&channel.node_id),
        "state": state(channel),
        "online": channel.online,
        "funder": channel.funder,
        "capacity_sat": channel.capacity_sat,
        "funding_outpoint": outpoint(channel.funding_outpoint.as_ref()),
        "short_channel_id": channel.short_channel_id.map(words::scid),
        "local_alias": channel.local_alias.map(words::scid),
        "remote_alias": channel.remote_alias.map(words::scid),
        "channel_type": channel.channel_type,
        "local_msat": channel.local_msat,
        "remote_msat": channel.remote_msat,
        "offered_msat": channel.offered_msat,
        "received_msat": channel.received_msat,
        "available_to_send_msat": channel.available_to_send_msat,
        "available_to_receive_msat": channel.available_to_receive_msat,
        "offered_htlcs": channel.offered_htlcs,
        "received_htlcs": channel.received_htlcs,
        "local": channel.local.as_ref().map(side_json),
        "remote": channel.remote.as_ref().map(side_json),
        "feerate_sat_per_kw": channel.feerate_sat_per_kw,
        "commitment_fee_sat": channel.commitment_fee_sat,
        "anchors_sat": channel.anchors_sat,
        "local_commitment_number": channel.local_commitment_number,
        "remote_commitment_number": channel.remote_commitment_number,
        "awaiting_revocation": channel.awaiting_revocation,
        "htlcs": channel.htlcs.iter().map(htlc_json).collect::<Vec<_>>(),
        "confirmations": channel.confirmations,
        "minimum_depth": channel.minimum_depth,
        "opened_ms": channel.opened_ms,
        "total_sent_msat": channel.total_sent_msat,
        "total_received_msat": channel.total_received_msat,
        "closing": channel.closing.as_ref().map(closing_json),
        "last_error": channel.last_error,
        "policy": channel.policy.as_ref().map(policy::json),
        "announcement": channel.announcement.as_ref().map(announcement_json),
    })
}

fn announcement_json(announcement: &Announcement) -> Value {
    json!({
        "stage": words::value(announcement.stage().as_str_name(), "ANNOUNCEMENT_STAGE_"),
        "confirmations_left": announcement.confirmations_left,
        "height": announcement.height,
    })
}

/// The same in a word.
fn publicity_short(channel: &Channel) -> &'static str {
    match channel.announcement.as_ref().map(Announcement::stage) {
        Some(AnnouncementStage::Announced) => "announced",
        Some(_) => "public",
        None if channel.state() == ChannelState::Closed => "",
        None => "private",
    }
}

/// Whether the network is told of a channel, in words.
fn publicity(channel: &Channel) -> String {
    let Some(announcement) = &channel.announcement else {
        return if channel.state() == ChannelState::Closed { String::new() } else { "private".to_owned() };
    };
    match announcement.stage() {
        AnnouncementStage::Announced => format!("public, announced at block {}", announcement.height),
        AnnouncementStage::WaitsForPeer => "public, waits for the peer's signatures".to_owned(),
        AnnouncementStage::WaitsForConfirmations | AnnouncementStage::Unspecified => {
            match announcement.confirmations_left {
                0 => "public, waits until both are ready".to_owned(),
                1 => "public, waits for 1 more confirmation".to_owned(),
                left => format!("public, waits for {left} more confirmations"),
            }
        }
    }
}

fn side_json(side: &ChannelSide) -> Value {
    json!({
        "reserve_sat": side.reserve_sat,
        "dust_limit_sat": side.dust_limit_sat,
        "htlc_minimum_msat": side.htlc_minimum_msat,
        "max_in_flight_msat": side.max_in_flight_msat,
        "max_accepted_htlcs": side.max_accepted_htlcs,
        "to_self_delay_blocks": side.to_self_delay_blocks,
    })
}

fn htlc_json(htlc: &Htlc) -> Value {
    json!({
        "htlc_id": htlc.htlc_id,
        "offered": htlc.offered,
        "amount_msat": htlc.amount_msat,
        "payment_hash": hex::encode(&htlc.payment_hash),
        "cltv_expiry": htlc.cltv_expiry,
        "stage": htlc.stage,
        "dust": htlc.dust,
    })
}

fn closing_json(closing: &ClosingInfo) -> Value {
    json!({
        "kind": close_kind(closing.kind()),
        "reason": closing.reason,
        "txid": words::hex_or_none(&closing.txid),
        "height": closing.height,
        "fee_sat": closing.fee_sat,
        "recovered_sat": closing.recovered_sat,
        "claim_fees_sat": closing.claim_fees_sat,
        "on_chain": closing.on_chain.as_ref().map(on_chain_json),
    })
}

/// What a commitment's outputs wait for, for a program.
pub(super) fn on_chain_json(on_chain: &OnChainResolution) -> Value {
    json!({
        "pending_sat": on_chain.pending_sat,
        "resolved_height": on_chain.resolved_height,
        "outputs": on_chain.outputs.iter().map(output_json).collect::<Vec<_>>(),
    })
}

fn output_json(output: &OnChainOutput) -> Value {
    json!({
        "outpoint": outpoint(output.outpoint.as_ref()),
        "amount_sat": output.amount_sat,
        "kind": words::value(output.kind().as_str_name(), "OUTPUT_KIND_"),
        "status": words::value(output.status().as_str_name(), "OUTPUT_STATUS_"),
        "claimable_height": output.claimable_height,
        "deadline_height": output.deadline_height,
        "claim_txid": words::hex_or_none(&output.claim_txid),
        "claim_height": output.claim_height,
        "payment_hash": words::hex_or_none(&output.payment_hash),
        "note": output.note,
    })
}

fn state(channel: &Channel) -> String {
    words::value(channel.state().as_str_name(), "CHANNEL_STATE_")
}

fn state_text(channel: &Channel) -> String {
    let state = state(channel).replace('_', " ");
    match state.as_str() {
        "normal" if channel.online => "open".to_owned(),
        "normal" => "open, peer away".to_owned(),
        _ => state,
    }
}

/// How a channel closes, in one word.
pub(crate) fn close_kind(kind: CloseKind) -> String {
    words::value(kind.as_str_name(), "CLOSE_KIND_")
}

fn bar(channel: &Channel) -> String {
    let in_flight = channel.offered_msat.saturating_add(channel.received_msat);
    balance_bar(channel.local_msat, in_flight, channel.remote_msat)
}

/// Channels as a list for a person.
pub(super) fn table(channels: &[Channel]) -> String {
    let columns = [
        Column::Text("CHANNEL"),
        Column::Text("PEER"),
        Column::Text("STATE"),
        Column::Text("NETWORK"),
        Column::Number("OURS"),
        Column::Text("█ ours ▒ moving ░ theirs"),
        Column::Number("THEIRS"),
        Column::Number("CAN SEND"),
        Column::Number("CAN RECEIVE"),
    ];
    let rows = channels
        .iter()
        .map(|channel| {
            vec![
                words::short(&channel.channel_id),
                words::short(&channel.node_id),
                state_text(channel),
                publicity_short(channel).to_owned(),
                msat(channel.local_msat),
                bar(channel),
                msat(channel.remote_msat),
                msat(channel.available_to_send_msat),
                msat(channel.available_to_receive_msat),
            ]
        })
        .collect();
    list(&columns, rows, "No channels.")
}

/// Everything about a channel for a person.
pub(super) fn text(channel: &Channel) -> String {
    let mut sections = vec![identity(channel), balances(channel), terms(channel)];
    if !channel.htlcs.is_empty() {
        sections.push(htlcs(&channel.htlcs));
    }
    if let Some(closing) = &channel.closing {
        sections.push(closing_text(closing));
    }
    sections.retain(|section| !section.is_empty());
    sections.join("\n\n")
}

fn identity(channel: &Channel) -> String {
    let scid = |number: Option<u64>| number.map(words::scid).unwrap_or_default();
    let confirmations = match channel.minimum_depth {
        0 => String::new(),
        need => format!("{} of {need}", channel.confirmations),
    };
    let funder = if channel.funder { "us" } else { "the peer" };
    facts([
        ("Channel", hex::encode(&channel.channel_id)),
        ("Peer", hex::encode(&channel.node_id)),
        ("State", state_text(channel)),
        ("Opened", format!("{} by {funder}", words::time(channel.opened_ms))),
        ("Funding", outpoint(channel.funding_outpoint.as_ref()).unwrap_or_default()),
        ("Confirmations", confirmations),
        ("Short channel id", scid(channel.short_channel_id)),
        ("Alias, ours", scid(channel.local_alias)),
        ("Alias, theirs", scid(channel.remote_alias)),
        ("Network", publicity(channel)),
        ("Type", channel.channel_type.join(", ")),
        ("Last error", channel.last_error.clone()),
    ])
}

fn balances(channel: &Channel) -> String {
    let moving = |count: u32, amount: u64| match count {
        0 => String::new(),
        1 => format!("{} in 1 HTLC", msat(amount)),
        count => format!("{} in {count} HTLCs", msat(amount)),
    };
    facts([
        ("Capacity", sat(channel.capacity_sat)),
        ("Balance", bar(channel)),
        ("Ours", msat(channel.local_msat)),
        ("Theirs", msat(channel.remote_msat)),
        ("On its way out", moving(channel.offered_htlcs, channel.offered_msat)),
        ("On its way in", moving(channel.received_htlcs, channel.received_msat)),
        ("Can send", msat(channel.available_to_send_msat)),
        ("Can receive", msat(channel.available_to_receive_msat)),
        ("Ever sent", msat(channel.total_sent_msat)),
        ("Ever received", msat(channel.total_received_msat)),
    ])
}

fn terms(channel: &Channel) -> String {
    let revocation = if channel.awaiting_revocation { ", awaits revoke_and_ack" } else { "" };
    let commitment = facts([
        (
            "Commitments",
            format!(
                "ours {}, theirs {}{revocation}",
                channel.local_commitment_number, channel.remote_commitment_number
            ),
        ),
        ("Feerate", words::feerate(channel.feerate_sat_per_kw)),
        ("Commitment fee", sat(channel.commitment_fee_sat)),
        ("Anchors", sat(channel.anchors_sat)),
        ("Forwarding", channel.policy.as_ref().map(policy::text).unwrap_or_default()),
    ]);
    let (Some(local), Some(remote)) = (&channel.local, &channel.remote) else {
        return commitment;
    };
    let columns = [Column::Text("TERMS"), Column::Number("OURS"), Column::Number("THEIRS")];
    let row = |name: &str, of: &dyn Fn(&ChannelSide) -> String| vec![name.to_owned(), of(local), of(remote)];
    let rows = vec![
        row("Reserve", &|side| sat(side.reserve_sat)),
        row("Dust limit", &|side| sat(side.dust_limit_sat)),
        row("Smallest HTLC", &|side| msat(side.htlc_minimum_msat)),
        row("Most in flight", &|side| msat(side.max_in_flight_msat)),
        row("Most HTLCs", &|side| side.max_accepted_htlcs.to_string()),
        row("Own delay", &|side| format!("{} blocks", side.to_self_delay_blocks)),
    ];
    format!("{commitment}\n\n{}", list(&columns, rows, ""))
}

fn htlcs(htlcs: &[Htlc]) -> String {
    let columns = [
        Column::Text("HTLC"),
        Column::Number("ID"),
        Column::Number("AMOUNT"),
        Column::Number("EXPIRES AT"),
        Column::Text("STAGE"),
        Column::Text("PAYMENT HASH"),
    ];
    let rows = htlcs
        .iter()
        .map(|htlc| {
            let direction = if htlc.offered { "offered" } else { "received" };
            let dust = if htlc.dust { ", dust" } else { "" };
            vec![
                format!("{direction}{dust}"),
                htlc.htlc_id.to_string(),
                msat(htlc.amount_msat),
                htlc.cltv_expiry.to_string(),
                htlc.stage.clone(),
                hex::encode(&htlc.payment_hash),
            ]
        })
        .collect();
    list(&columns, rows, "")
}

fn closing_text(closing: &ClosingInfo) -> String {
    let height = closing.height.map_or("unconfirmed".to_owned(), |height| format!("block {height}"));
    let story = facts([
        ("Closes by", close_kind(closing.kind()).replace('_', " ")),
        ("Because", closing.reason.clone()),
        ("Transaction", words::hex_or_none(&closing.txid).unwrap_or_default()),
        ("Confirmed", height),
        ("Fee", sat(closing.fee_sat)),
        ("Back in the wallet", sat(closing.recovered_sat)),
        ("Fees of claims", sat(closing.claim_fees_sat)),
    ]);
    let Some(on_chain) = &closing.on_chain else {
        return story;
    };
    let pending = facts([
        ("Still to come", sat(on_chain.pending_sat)),
        ("Settled by block", on_chain.resolved_height.to_string()),
    ]);
    format!("{story}\n{pending}\n\n{}", outputs(&on_chain.outputs))
}

fn outputs(outputs: &[OnChainOutput]) -> String {
    let columns = [
        Column::Text("OUTPUT"),
        Column::Number("AMOUNT"),
        Column::Text("STATUS"),
        Column::Number("FROM BLOCK"),
        Column::Number("BEFORE BLOCK"),
        Column::Text("WHAT HAPPENS"),
    ];
    let height = |height: u32| if height == 0 { String::new() } else { height.to_string() };
    let rows = outputs
        .iter()
        .map(|output| {
            vec![
                words::value(output.kind().as_str_name(), "OUTPUT_KIND_").replace('_', " "),
                sat(output.amount_sat),
                words::value(output.status().as_str_name(), "OUTPUT_STATUS_").replace('_', " "),
                height(output.claimable_height),
                height(output.deadline_height),
                output.note.clone(),
            ]
        })
        .collect();
    list(&columns, rows, "No outputs told.")
}
