//! ldk-node's types in the words of `protocol`.

use ldk_node::bitcoin::OutPoint;
use ldk_node::graph::NetworkGraph;
use ldk_node::lightning::ln::channelmanager::PaymentId;
use ldk_node::logger::LogLevel;
use ldk_node::payment::{PaymentDetails, PaymentDirection, PaymentStatus};
use ldk_node::{BalanceDetails, ChannelDetails, Event, PendingSweepBalance};

use crate::protocol;

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// 32 bytes from hexadecimal.
pub(crate) fn bytes_32(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16).ok()?;
    }
    Some(bytes)
}

fn outpoint(outpoint: &OutPoint) -> String {
    format!("{}:{}", outpoint.txid, outpoint.vout)
}

fn payment_id(id: Option<PaymentId>) -> String {
    id.map(|id| hex(&id.0)).unwrap_or_default()
}

pub(crate) fn log_level(level: protocol::LogLevel) -> LogLevel {
    match level {
        protocol::LogLevel::Gossip => LogLevel::Gossip,
        protocol::LogLevel::Trace => LogLevel::Trace,
        protocol::LogLevel::Debug => LogLevel::Debug,
        protocol::LogLevel::Info => LogLevel::Info,
        protocol::LogLevel::Warn => LogLevel::Warn,
        protocol::LogLevel::Error => LogLevel::Error,
    }
}

pub(crate) fn balances(details: &BalanceDetails) -> protocol::Balances {
    protocol::Balances {
        onchain_sat: details.total_onchain_balance_sats,
        spendable_sat: details.spendable_onchain_balance_sats,
        anchor_reserve_sat: details.total_anchor_channels_reserve_sats,
        lightning_sat: details.total_lightning_balance_sats,
        claims: details.lightning_balances.iter().map(|claim| format!("{claim:?}")).collect(),
        sweeps: details
            .pending_balances_from_channel_closures
            .iter()
            .filter(|sweep| !matches!(sweep, PendingSweepBalance::AwaitingThresholdConfirmations { .. }))
            .map(|sweep| format!("{sweep:?}"))
            .collect(),
    }
}

pub(crate) fn channel(details: &ChannelDetails) -> protocol::Channel {
    protocol::Channel {
        channel_id: hex(&details.channel_id.0),
        user_channel_id: details.user_channel_id.0.to_string(),
        node_id: details.counterparty_node_id.to_string(),
        funding: details.funding_txo.as_ref().map(outpoint),
        value_sat: details.channel_value_sats,
        outbound_capacity_msat: details.outbound_capacity_msat,
        inbound_capacity_msat: details.inbound_capacity_msat,
        reserve_sat: details.unspendable_punishment_reserve.unwrap_or_default(),
        remote_reserve_sat: details.counterparty_unspendable_punishment_reserve,
        next_outbound_htlc_limit_msat: details.next_outbound_htlc_limit_msat,
        feerate_sat_per_kw: details.feerate_sat_per_1000_weight,
        is_funder: details.is_outbound,
        is_ready: details.is_channel_ready,
        is_usable: details.is_usable,
        confirmations: details.confirmations,
        to_self_delay_blocks: details.force_close_spend_delay,
        is_public: details.is_announced,
        remote_fee: details
            .counterparty_forwarding_info_fee_base_msat
            .zip(details.counterparty_forwarding_info_fee_proportional_millionths),
    }
}

pub(crate) fn graph(graph: &NetworkGraph) -> protocol::Graph {
    let channels = graph.list_channels();
    let is_usable = |id: &&u64| {
        graph.channel(**id).is_some_and(|channel| channel.one_to_two.is_some() && channel.two_to_one.is_some())
    };
    let usable_channels = channels.iter().filter(is_usable).count();
    protocol::Graph { channels: channels.len(), usable_channels, nodes: graph.list_nodes().len() }
}

pub(crate) fn payment(details: &PaymentDetails) -> protocol::Payment {
    protocol::Payment {
        payment_id: hex(&details.id.0),
        direction: match details.direction {
            PaymentDirection::Inbound => protocol::Direction::Inbound,
            PaymentDirection::Outbound => protocol::Direction::Outbound,
        },
        status: match details.status {
            PaymentStatus::Pending => protocol::PaymentStatus::Pending,
            PaymentStatus::Succeeded => protocol::PaymentStatus::Succeeded,
            PaymentStatus::Failed => protocol::PaymentStatus::Failed,
        },
        amount_msat: details.amount_msat,
        fee_msat: details.fee_paid_msat,
    }
}

pub(crate) fn event(event: &Event) -> protocol::Event {
    match event {
        Event::PaymentSuccessful { payment_id: id, fee_paid_msat, .. } => protocol::Event::PaymentSuccessful {
            payment_id: payment_id(*id),
            fee_msat: fee_paid_msat.unwrap_or_default(),
        },
        Event::PaymentFailed { payment_id: id, reason, .. } => {
            let reason = reason.map_or_else(String::new, |reason| format!("{reason:?}"));
            protocol::Event::PaymentFailed { payment_id: payment_id(*id), reason }
        }
        Event::PaymentReceived { payment_id: id, amount_msat, .. } => {
            protocol::Event::PaymentReceived { payment_id: payment_id(*id), amount_msat: *amount_msat }
        }
        Event::ChannelPending { channel_id, funding_txo, .. } => {
            protocol::Event::ChannelPending { channel_id: hex(&channel_id.0), funding: outpoint(funding_txo) }
        }
        Event::ChannelReady { channel_id, .. } => protocol::Event::ChannelReady { channel_id: hex(&channel_id.0) },
        Event::ChannelClosed { channel_id, reason, .. } => {
            let reason = reason.as_ref().map(ToString::to_string).unwrap_or_default();
            protocol::Event::ChannelClosed { channel_id: hex(&channel_id.0), reason }
        }
        Event::PaymentClaimable { payment_id, claimable_amount_msat, .. } => {
            protocol::Event::PaymentHeld { payment_id: hex(&payment_id.0), amount_msat: *claimable_amount_msat }
        }
        Event::PaymentForwarded { .. } | Event::SplicePending { .. } | Event::SpliceFailed { .. } => {
            protocol::Event::Other { text: format!("{event:?}") }
        }
    }
}
