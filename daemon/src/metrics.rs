//! Numbers for Prometheus, at an address of their own; off unless one is configured.
//!
//! Every name is here, so that they stay alike: `millrace_` first, then what is counted, then the base unit (seconds,
//! bytes, satoshis, millisatoshis) and for counters `_total`. Nothing secret and no payment hash is ever a label.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Unit, describe_counter, describe_gauge, describe_histogram, gauge};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder};
use thiserror::Error;

/// What kind of number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A spread of values.
    Histogram,
}

/// A metric: kind, name, unit, meaning.
type Row = (Kind, &'static str, Option<Unit>, &'static str);

/// 1, with the version as a label.
pub const BUILD_INFO: &str = "millrace_build_info";
/// When the process started.
pub const START_TIME: &str = "millrace_start_time_seconds";
/// The last block's height.
pub const BLOCK_HEIGHT: &str = "millrace_block_height";
/// Coins of the wallet, by `state`.
pub const WALLET_BALANCE: &str = "millrace_wallet_balance_satoshis";
/// Channels, by `state`.
pub const CHANNELS: &str = "millrace_channels";
/// Our balances in open channels.
pub const CHANNEL_LOCAL: &str = "millrace_channel_local_millisatoshis";
/// The peers' balances in open channels.
pub const CHANNEL_REMOTE: &str = "millrace_channel_remote_millisatoshis";
/// HTLCs in flight, by `direction`.
pub const HTLCS: &str = "millrace_htlcs";
/// Peers that are connected.
pub const PEERS: &str = "millrace_peers";
/// Payments sent, by `outcome`.
pub const PAYMENTS_SENT: &str = "millrace_payments_sent_total";
/// Payments received.
pub const PAYMENTS_RECEIVED: &str = "millrace_payments_received_total";
/// HTLCs of peers that asked to go on, by `outcome`.
pub const FORWARDS: &str = "millrace_forwards_total";
/// What forwarding has earned.
pub const FORWARD_FEES: &str = "millrace_forward_fees_millisatoshis_total";
/// From a payment's acceptance to its outcome.
pub const PAYMENT_DURATION: &str = "millrace_payment_duration_seconds";
/// Frames written to the journal.
pub const JOURNAL_FLUSHES: &str = "millrace_journal_flushes_total";
/// Bytes written to the journal.
pub const JOURNAL_BYTES: &str = "millrace_journal_written_bytes_total";
/// What a flush took lately, on average.
pub const JOURNAL_FLUSH_MEAN: &str = "millrace_journal_flush_mean_seconds";
/// What the longest flush took.
pub const JOURNAL_FLUSH_LONGEST: &str = "millrace_journal_flush_longest_seconds";
/// Messages with peers, by `direction`.
pub const PEER_MESSAGES: &str = "millrace_peer_messages_total";
/// Signatures of HTLC transactions that peers were sent.
pub const HTLC_SIGNATURES: &str = "millrace_htlc_signatures_total";
/// Channels of the public graph.
pub const GRAPH_CHANNELS: &str = "millrace_graph_channels";
/// Nodes of the public graph.
pub const GRAPH_NODES: &str = "millrace_graph_nodes";
/// Messages of gossip, by `outcome`.
pub const GOSSIP_MESSAGES: &str = "millrace_gossip_messages_total";

/// Watchtowers in use, by `state`.
pub const TOWERS: &str = "millrace_towers";
/// Revoked commitments that the tower furthest behind lacks of one channel.
pub const TOWER_LAG: &str = "millrace_tower_lag_commitments";

/// From 0.1 ms to a minute.
const DURATION_BUCKETS: &[f64] =
    &[0.0001, 0.0003, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0];

/// Every metric.
const ROWS: &[Row] = &[
    (Kind::Gauge, BUILD_INFO, None, "1, with the version as a label."),
    (Kind::Gauge, START_TIME, Some(Unit::Seconds), "Unix time at which the process started."),
    (Kind::Gauge, BLOCK_HEIGHT, None, "Height of the last block."),
    (Kind::Gauge, WALLET_BALANCE, None, "Coins of the wallet, in satoshi, by state."),
    (Kind::Gauge, CHANNELS, None, "Channels, by state."),
    (Kind::Gauge, CHANNEL_LOCAL, None, "Our balances in open channels, in millisatoshi."),
    (Kind::Gauge, CHANNEL_REMOTE, None, "The peers' balances in open channels, in millisatoshi."),
    (Kind::Gauge, HTLCS, None, "HTLCs in flight, by direction."),
    (Kind::Gauge, PEERS, None, "Peers that are connected."),
    (Kind::Counter, PAYMENTS_SENT, None, "Payments sent, by outcome."),
    (Kind::Counter, PAYMENTS_RECEIVED, None, "Payments received."),
    (Kind::Counter, FORWARDS, None, "HTLCs of peers that asked to go on, by outcome."),
    (Kind::Counter, FORWARD_FEES, None, "What forwarding has earned, in millisatoshi."),
    (Kind::Histogram, PAYMENT_DURATION, Some(Unit::Seconds), "From a payment's acceptance to its outcome."),
    (Kind::Counter, JOURNAL_FLUSHES, None, "Frames written to the journal."),
    (Kind::Counter, JOURNAL_BYTES, Some(Unit::Bytes), "Bytes written to the journal."),
    (Kind::Gauge, JOURNAL_FLUSH_MEAN, Some(Unit::Seconds), "What a flush of the journal took lately, on average."),
    (Kind::Gauge, JOURNAL_FLUSH_LONGEST, Some(Unit::Seconds), "What the longest flush since the start took."),
    (Kind::Counter, PEER_MESSAGES, None, "Messages with peers, by direction."),
    (Kind::Counter, HTLC_SIGNATURES, None, "Signatures of HTLC transactions that peers were sent."),
    (Kind::Gauge, GRAPH_CHANNELS, None, "Channels of the public graph."),
    (Kind::Gauge, GRAPH_NODES, None, "Nodes of the public graph that have a channel."),
    (Kind::Counter, GOSSIP_MESSAGES, None, "Messages of gossip, by what became of them."),
    (Kind::Gauge, TOWERS, None, "Watchtowers in use, by state: connected or away."),
    (Kind::Gauge, TOWER_LAG, None, "Revoked commitments of one channel that the tower furthest behind lacks."),
];

/// Why there are no metrics.
#[derive(Debug, Error)]
#[error("cannot serve metrics at {address}: {reason}; choose another metrics_listen, or none")]
pub struct MetricsError {
    address: SocketAddr,
    reason: String,
}

/// Begins to count, and to answer Prometheus at this address. Must be called on a tokio runtime.
///
/// # Errors
/// [`MetricsError`].
pub fn start(address: SocketAddr) -> Result<(), MetricsError> {
    let failed = |reason: String| MetricsError { address, reason };
    // The exporter binds later and only logs when it cannot: find out now.
    drop(std::net::TcpListener::bind(address).map_err(|error| failed(error.to_string()))?);
    PrometheusBuilder::new()
        .with_http_listener(address)
        .set_buckets_for_metric(Matcher::Suffix("_duration_seconds".to_owned()), DURATION_BUCKETS)
        .and_then(PrometheusBuilder::install)
        .map_err(|error| failed(error.to_string()))?;
    describe();
    gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    gauge!(START_TIME).set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64());
    Ok(())
}

fn describe() {
    for &(kind, name, unit, meaning) in ROWS {
        match (kind, unit) {
            (Kind::Counter, Some(unit)) => describe_counter!(name, unit, meaning),
            (Kind::Counter, None) => describe_counter!(name, meaning),
            (Kind::Gauge, Some(unit)) => describe_gauge!(name, unit, meaning),
            (Kind::Gauge, None) => describe_gauge!(name, meaning),
            (Kind::Histogram, Some(unit)) => describe_histogram!(name, unit, meaning),
            (Kind::Histogram, None) => describe_histogram!(name, meaning),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[test]
    fn names_follow_the_rules() {
        let mut names: Vec<_> = ROWS.iter().map(|(_, name, ..)| *name).collect();
        for &(kind, name, unit, _) in ROWS {
            assert!(
                name.starts_with("millrace_") && name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
                "{name}"
            );
            assert_eq!(kind == Kind::Counter, name.ends_with("_total"), "{name}");
            assert_eq!(unit == Some(Unit::Seconds), name.contains("_seconds"), "{name}");
            assert_eq!(unit == Some(Unit::Bytes), name.contains("_bytes"), "{name}");
            assert!(kind != Kind::Histogram || name.ends_with("_duration_seconds"), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ROWS.len());
    }

    /// The one test that installs the process's recorder.
    #[tokio::test]
    async fn prometheus_gets_what_was_counted_and_a_taken_address_is_named() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let error = start(taken.local_addr().unwrap()).unwrap_err().to_string();
        assert!(error.contains("choose another metrics_listen"), "{error}");
        let address = taken.local_addr().unwrap();
        drop(taken);
        start(address).unwrap();
        metrics::counter!(PAYMENTS_RECEIVED).increment(3);
        metrics::histogram!(PAYMENT_DURATION).record(0.004);
        let mut answer = String::new();
        for _ in 0..100 {
            if let Ok(mut stream) = tokio::net::TcpStream::connect(address).await {
                stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
                stream.read_to_string(&mut answer).await.unwrap();
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        assert!(answer.contains("millrace_payments_received_total 3"), "{answer}");
        assert!(answer.contains("millrace_payment_duration_seconds_bucket{le=\"0.005\"} 1"), "{answer}");
        assert!(answer.contains("# HELP millrace_payments_received_total Payments received."), "{answer}");
        assert!(answer.contains("millrace_build_info{version="), "{answer}");
    }
}
