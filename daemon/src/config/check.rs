//! Whether settings that are each well written make sense, alone and together.

use super::Config;
use crate::announce::node::{ADDRESSES_MAX, ALIAS_BYTES_MAX};
use crate::policy::CLTV_DELTA_MIN;
use bitcoin::Network;
use millrace_routing::onion::FINAL_EXPIRY_MARGIN;

/// The most that BOLT 2 lets a side accept at once.
const HTLCS_MAX: u16 = 483;
/// Two weeks: an output locked for longer is as good as lost to its owner.
const DELAY_BLOCKS_MAX: u16 = 2016;
/// The most blocks before the expiry of a received HTLC with known preimage at which the node may close: held HTLCs are failed
/// back 22 blocks before it, and one that is settled just before must not close its channel.
const RECEIVED_MARGIN_MAX: u16 = FINAL_EXPIRY_MARGIN.0 - 4;
/// Blocks in which our commitment, and the spend that takes an HTLC back or shows its preimage, are to be confirmed. BOLT 2,
/// "`cltv_expiry_delta` Selection", counts on 12 for each.
const CONFIRMING_BLOCKS: u16 = 24;
/// The smallest final delta with which an onion can be peeled at its end.
const FINAL_CLTV_DELTA_MIN: u16 = 42;
/// What a channel must be able to carry: anchors, fee, reserve and dust.
const FUNDING_SAT_MIN: u64 = 10_000;

/// The first thing wrong: the key, and why.
pub(super) fn check(config: &Config) -> Result<(), (&'static str, String)> {
    node(config)?;
    channel(config)?;
    payments(config)?;
    routing(config)?;
    peers(config)?;
    within("gossip.relay_interval_ms", config.gossip.relay_interval_ms, 10, 600_000)?;
    within("gossip.sync_peers", config.gossip.sync_peers, 0, 100)
}

fn within<T: PartialOrd + std::fmt::Display>(
    key: &'static str,
    value: T,
    min: T,
    max: T,
) -> Result<(), (&'static str, String)> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err((key, format!("{value} is not within {min} and {max}")))
}

fn node(config: &Config) -> Result<(), (&'static str, String)> {
    if config.alias.len() > ALIAS_BYTES_MAX {
        return Err(("alias", format!("{} bytes are more than {ALIAS_BYTES_MAX}", config.alias.len())));
    }
    let addresses = config.announced_addresses.len();
    if addresses > ADDRESSES_MAX {
        return Err(("announced_addresses", format!("{addresses} are more than {ADDRESSES_MAX}")));
    }
    if config.metrics_listen.is_some_and(|address| address.port() == 0) {
        return Err(("metrics_listen", "needs a port other than 0, so that Prometheus can find it".to_owned()));
    }
    match (&config.bitcoind.user, &config.bitcoind.password) {
        (Some(_), None) => return Err(("bitcoind.user", "needs bitcoind.password beside it".to_owned())),
        (None, Some(_)) => return Err(("bitcoind.password", "needs bitcoind.user beside it".to_owned())),
        (None, None) | (Some(_), Some(_)) => {}
    }
    if !config.bitcoind.url.starts_with("http://") {
        return Err(("bitcoind.url", "must begin with http:// (bitcoind's RPC has no TLS)".to_owned()));
    }
    // A step must fit into a segment: see `channels::actor`, and `wallet::codec`. Demo networks may have less to write, and tests
    // want a full disk soon.
    let segment_mib_min = if config.network == Network::Regtest { 1 } else { 8 };
    within("journal.segment_mib", config.journal.segment_mib, segment_mib_min, 1024)?;
    Ok(())
}

fn channel(config: &Config) -> Result<(), (&'static str, String)> {
    let channel = &config.channel;
    within("channel.max_funding_sat", channel.max_funding.0, FUNDING_SAT_MIN, millrace_wire::Sat::MAX_MONEY.0)?;
    within("channel.min_funding_sat", channel.min_funding.0, FUNDING_SAT_MIN, channel.max_funding.0)?;
    within("channel.reserve_ppm", channel.reserve_ppm, 0, 100_000)?;
    within("channel.max_to_self_delay_blocks", channel.max_to_self_delay_blocks, 1, DELAY_BLOCKS_MAX)?;
    within("channel.to_self_delay_blocks", channel.to_self_delay_blocks, 1, DELAY_BLOCKS_MAX)?;
    within("channel.max_accepted_htlcs", channel.max_accepted_htlcs, 1, HTLCS_MAX)?;
    within("channel.closing_cost_percent", channel.closing_cost_percent, 1, 100)?;
    within("channel.max_in_flight_percent", channel.max_in_flight_percent, 1, 100)?;
    within("channel.minimum_depth", channel.minimum_depth, 1, DELAY_BLOCKS_MAX)?;
    within("channel.minimum_depth_large", channel.minimum_depth_large, channel.minimum_depth, DELAY_BLOCKS_MAX)?;
    within("channel.received_margin_blocks", channel.received_margin_blocks, 6, RECEIVED_MARGIN_MAX)?;
    // What is left of the shortest delta between an outgoing HTLC's expiry and the incoming one's.
    let grace_max = CLTV_DELTA_MIN.0 - CONFIRMING_BLOCKS - channel.received_margin_blocks;
    within("channel.offered_grace_blocks", channel.offered_grace_blocks, 0, grace_max)
}

fn payments(config: &Config) -> Result<(), (&'static str, String)> {
    let payments = &config.payments;
    let furthest = payments.max_cltv_expiry_blocks;
    within("payments.max_cltv_expiry_blocks", furthest, 144, 2 * DELAY_BLOCKS_MAX)?;
    within("payments.final_cltv_delta_blocks", payments.final_cltv_delta.0, FINAL_CLTV_DELTA_MIN, furthest)?;
    within("payments.invoice_expiry_s", payments.invoice_expiry_s, 1, 31_536_000)?;
    within("payments.idempotency_hours", payments.idempotency_hours, 1, 8760)
}

fn routing(config: &Config) -> Result<(), (&'static str, String)> {
    config.routing.policy().check().map_err(|(field, what)| {
        let key = match field {
            "cltv_delta_blocks" => "routing.cltv_delta_blocks",
            "fee_base_msat" => "routing.fee_base_msat",
            _ => "routing.htlc_maximum_msat",
        };
        (key, what)
    })?;
    let furthest = config.payments.max_cltv_expiry_blocks;
    within("routing.cltv_delta_blocks", config.routing.cltv_delta.0, CLTV_DELTA_MIN.0, furthest)?;
    within("routing.peer_share_percent", config.routing.peer_share_percent, 1, 100)
}

fn peers(config: &Config) -> Result<(), (&'static str, String)> {
    let peers = &config.peers;
    within("peers.max_connections", peers.max_connections, 1, 10_000)?;
    within("peers.max_without_channels", peers.max_without_channels, 0, peers.max_connections)?;
    within("peers.max_openings_per_peer", peers.max_openings_per_peer, 1, 10_000)?;
    within("peers.handshake_timeout_s", peers.handshake_timeout_s, 1, 600)?;
    within("peers.ping_interval_s", peers.ping_interval_s, 1, 3600)?;
    within("peers.ping_timeout_s", peers.ping_timeout_s, 1, 600)?;
    // What waits for the tower of somebody else is bounded, see `towers::book`.
    within("tower.lag_max", config.tower.lag_max, 1, 16_000)?;
    within("wallet.anchor_reserve_max_sat", config.wallet.anchor_reserve_max.0, 0, 100_000_000_000)
}
