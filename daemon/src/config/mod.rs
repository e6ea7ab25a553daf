//! What the operator decides: the settings, their defaults, and where each came from.
//!
//! A flag wins over the environment (`MILLRACE_*`), the environment over the file, the file over the default.
//! [`load`] reads the three; [`table`] has one row for each setting, from which flags, variables, file keys, help and
//! the example file all follow. Nothing is started or created here.

mod check;
mod load;
mod render;
mod setting;
mod table;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use bitcoin::Network;
use millrace_wire::{CltvDelta, Msat, Sat};
use secp256k1::PublicKey;

use crate::announce::address::NodeAddress;
use crate::announce::node::Color;

pub use load::{Action, ConfigError, Loaded, Source, Surroundings, load};
pub use setting::{LogFormat, Secret};

use crate::policy::ForwardPolicy;

/// All settings of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    /// The network. Default: regtest.
    pub network: Network,
    /// Where the node keeps everything. Default: `~/.millrace/NETWORK`.
    pub data_dir: PathBuf,
    /// Where peers connect to. Port 0 takes a free one. Default: `127.0.0.1:9735`.
    pub listen: SocketAddr,
    /// Where gRPC is served. Port 0 takes a free one. Default: `127.0.0.1:9737`.
    pub rpc_listen: SocketAddr,
    /// Where Prometheus may ask for metrics. Default: nowhere.
    pub metrics_listen: Option<SocketAddr>,
    /// How log lines look. Default: text.
    pub log: LogFormat,
    /// Which log lines there are, as `tracing`'s filters have it. Default: `info`.
    pub log_level: String,
    /// The node's name, at most 32 bytes. Default: empty.
    pub alias: String,
    /// The node's colour on maps. Default: black.
    pub color: Color,
    /// Where the network is told that the node may be called. Default: nowhere.
    pub announced_addresses: Vec<NodeAddress>,
    /// Consent to run with real money. Default: no.
    pub accepts_risk: bool,
    /// Threads that channels run on; 0 is one for each core. Default: 0.
    pub shards: u16,
    /// The bitcoind to use.
    pub bitcoind: BitcoindConfig,
    /// What is asked of channels.
    pub channel: ChannelConfig,
    /// What is asked of payments.
    pub payments: PaymentsConfig,
    /// What is asked of those who want something forwarded.
    pub routing: RoutingConfig,
    /// The on-chain wallet.
    pub wallet: WalletConfig,
    /// The journal.
    pub journal: JournalConfig,
    /// Limits on peers.
    pub peers: PeersConfig,
    /// The public graph.
    pub gossip: GossipConfig,
    /// Watchtowers.
    pub tower: TowerConfig,
}

/// How to reach bitcoind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BitcoindConfig {
    /// Its RPC. Default: `http://127.0.0.1:PORT` with the network's usual port.
    pub url: String,
    /// Its cookie file; used unless a user is named. Default: bitcoind's usual place.
    pub cookie: PathBuf,
    /// User name, with a password. Default: none.
    pub user: Option<String>,
    /// Password; from the environment or the file only. Default: none.
    pub password: Option<Secret>,
}

/// What this node asks of its channels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChannelConfig {
    /// Tell the network of channels that this node opens, unless the opening says otherwise. Default: no.
    pub announce: bool,
    /// Smallest channel. Default: 20,000 sat.
    pub min_funding: Sat,
    /// Largest channel. Default: 10 BTC.
    pub max_funding: Sat,
    /// The part of a channel that the peer must keep as its own, in millionths. Default: 10,000 (1 %).
    pub reserve_ppm: u32,
    /// The delay that we ask of the peer's own outputs. Default: 144 blocks.
    pub to_self_delay_blocks: u16,
    /// The longest delay that we accept. Default: 2,016 blocks.
    pub max_to_self_delay_blocks: u16,
    /// Smallest HTLC that we accept. Default: 1 msat.
    pub htlc_minimum: Msat,
    /// Most HTLCs that we accept at once. Default: 483.
    pub max_accepted_htlcs: u16,
    /// The part of a channel that it may cost to close it at 100 sat/vB when it is full of HTLCs, in percent: so many fewer
    /// are accepted on a small one, but 10 on each. Default: 50.
    pub closing_cost_percent: u8,
    /// The part of a channel that may be in flight towards us, in percent. Default: 100.
    pub max_in_flight_percent: u8,
    /// The most that dust HTLCs may put at risk in one channel. Default: 50,000,000 msat.
    pub max_dust_exposure: Msat,
    /// Confirmations before a channel is used. Default: 3.
    pub minimum_depth: u16,
    /// Confirmations for a large channel. Default: 6.
    pub minimum_depth_large: u16,
    /// From this size on a channel is large. Default: 16,777,216 sat.
    pub large_channel: Sat,
    /// Peers whose channels may be used at once, unconfirmed. Default: none.
    pub zero_conf_peers: Vec<PublicKey>,
    /// Blocks after the expiry of an unresolved offered HTLC at which the node closes. Default: 2.
    pub offered_grace_blocks: u16,
    /// Blocks before the expiry of a received HTLC, whose preimage we hold, at which the node closes. Default: 18.
    pub received_margin_blocks: u16,
}

/// What this node asks of payments.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PaymentsConfig {
    /// Blocks that our invoices ask of the last hop. Default: 42.
    pub final_cltv_delta: CltvDelta,
    /// The furthest expiry of an HTLC that pays for us, in blocks from now. Default: 2,016.
    pub max_cltv_expiry_blocks: u16,
    /// Life of an invoice that does not say. Default: 3,600 s.
    pub invoice_expiry_s: u32,
    /// How long idempotency keys are remembered. Default: 24 hours.
    pub idempotency_hours: u16,
    /// Whether payments are taken that no invoice asked for. Default: true.
    pub accept_keysend: bool,
}

/// What this node asks of those who want something forwarded, over channels that have no policy of their own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RoutingConfig {
    /// Charged for each HTLC. Default: 1,000 msat.
    pub fee_base: Msat,
    /// Charged in proportion, in millionths. Default: 100.
    pub fee_ppm: u32,
    /// Blocks between the incoming expiry and the outgoing one. Default: 80.
    pub cltv_delta: CltvDelta,
    /// The least that is forwarded. Default: 1 msat.
    pub htlc_minimum: Msat,
    /// The most that is forwarded; 0: all that a channel can carry. Default: 0.
    pub htlc_maximum: Msat,
    /// The part of a channel's slots and liquidity that one incoming peer may hold, in percent. Default: 50.
    pub peer_share_percent: u8,
}

impl RoutingConfig {
    /// The same, as it is held against HTLCs.
    #[must_use]
    pub fn policy(&self) -> ForwardPolicy {
        ForwardPolicy {
            fee_base: self.fee_base,
            fee_ppm: self.fee_ppm,
            cltv_delta: self.cltv_delta,
            htlc_minimum: self.htlc_minimum,
            htlc_maximum: Some(self.htlc_maximum).filter(|most| *most > Msat::ZERO),
        }
    }
}

/// The on-chain wallet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalletConfig {
    /// Kept back for each anchor channel, as a coin of its own. Default: 50,000 sat, which gets a commitment confirmed at
    /// 100 sat/vB; each HTLC in it costs 4,300 sat more at that rate.
    pub anchor_reserve: Sat,
    /// The most that is kept back. Default: 1,000 BTC, which is no limit: with less, not all channels can close at once.
    pub anchor_reserve_max: Sat,
}

/// The journal.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JournalConfig {
    /// Size of a segment file. Default: 64 MiB.
    pub segment_mib: u32,
}

/// Limits on peers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeersConfig {
    /// Most connections. Default: 500.
    pub max_connections: u16,
    /// Most connections with peers that have no channel with us. Default: 100.
    pub max_without_channels: u16,
    /// Most openings under way with one peer, its unconfirmed channels included. Default: 20.
    pub max_openings_per_peer: u16,
    /// Time for the handshake and `init`. Default: 10 s.
    pub handshake_timeout_s: u16,
    /// Silence after which a ping is sent. Default: 60 s.
    pub ping_interval_s: u16,
    /// Time for the pong. Default: 30 s.
    pub ping_timeout_s: u16,
}

/// The public graph.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GossipConfig {
    /// How often new messages are passed on. Default: 1,000 ms.
    pub relay_interval_ms: u32,
    /// Peers that are asked for the whole graph in an hour, each after the other. Default: 3.
    pub sync_peers: u16,
}

/// Watchtowers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TowerConfig {
    /// So many revoked commitments of a channel may a watchtower lack, before no HTLC is added in it. Default: 1,000.
    pub lag_max: u32,
}

impl Config {
    /// The defaults for a network, of a user with this home folder.
    #[must_use]
    pub fn defaults(network: Network, home: &Path) -> Self {
        Self {
            network,
            data_dir: home.join(".millrace").join(network_name(network)),
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9735)),
            rpc_listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 9737)),
            metrics_listen: None,
            log: LogFormat::Text,
            log_level: "info".to_owned(),
            alias: String::new(),
            color: Color::default(),
            announced_addresses: Vec::new(),
            accepts_risk: false,
            shards: 0,
            bitcoind: BitcoindConfig::defaults(network, home),
            channel: ChannelConfig::default(),
            payments: PaymentsConfig::default(),
            routing: RoutingConfig::default(),
            wallet: WalletConfig::default(),
            journal: JournalConfig { segment_mib: 64 },
            peers: PeersConfig::default(),
            gossip: GossipConfig { relay_interval_ms: 1_000, sync_peers: 3 },
            tower: TowerConfig { lag_max: 1_000 },
        }
    }

    /// Threads that channels run on, at least one.
    #[must_use]
    pub fn shard_count(&self) -> usize {
        match self.shards {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get),
            shards => usize::from(shards),
        }
    }
}

impl BitcoindConfig {
    fn defaults(network: Network, home: &Path) -> Self {
        let (port, folder) = match network {
            Network::Bitcoin => (8332, ""),
            Network::Testnet4 => (48332, "testnet4"),
            Network::Signet => (38332, "signet"),
            _ => (18443, "regtest"),
        };
        Self {
            url: format!("http://127.0.0.1:{port}"),
            cookie: home.join(".bitcoin").join(folder).join(".cookie"),
            user: None,
            password: None,
        }
    }
}

impl Default for ChannelConfig {
    fn default() -> Self {
        Self {
            announce: false,
            min_funding: Sat(20_000),
            max_funding: Sat(1_000_000_000),
            reserve_ppm: 10_000,
            to_self_delay_blocks: 144,
            max_to_self_delay_blocks: 2016,
            htlc_minimum: Msat(1),
            max_accepted_htlcs: 483,
            closing_cost_percent: 50,
            max_in_flight_percent: 100,
            max_dust_exposure: Msat(50_000_000),
            minimum_depth: 3,
            minimum_depth_large: 6,
            large_channel: Sat(16_777_216),
            zero_conf_peers: Vec::new(),
            offered_grace_blocks: 2,
            received_margin_blocks: 18,
        }
    }
}

impl Default for PaymentsConfig {
    fn default() -> Self {
        Self {
            final_cltv_delta: CltvDelta(42),
            max_cltv_expiry_blocks: 2016,
            invoice_expiry_s: 3600,
            idempotency_hours: 24,
            accept_keysend: true,
        }
    }
}

impl Default for RoutingConfig {
    fn default() -> Self {
        let ForwardPolicy { fee_base, fee_ppm, cltv_delta, htlc_minimum, htlc_maximum } = ForwardPolicy::default();
        let htlc_maximum = htlc_maximum.unwrap_or(Msat::ZERO);
        Self { fee_base, fee_ppm, cltv_delta, htlc_minimum, htlc_maximum, peer_share_percent: 50 }
    }
}

impl Default for WalletConfig {
    fn default() -> Self {
        Self { anchor_reserve: Sat(50_000), anchor_reserve_max: Sat(100_000_000_000) }
    }
}

impl Default for PeersConfig {
    fn default() -> Self {
        Self {
            max_connections: 500,
            max_without_channels: 100,
            max_openings_per_peer: 20,
            handshake_timeout_s: 10,
            ping_interval_s: 60,
            ping_timeout_s: 30,
        }
    }
}

/// The name of a network as flags, files and folders write it.
#[must_use]
pub fn network_name(network: Network) -> &'static str {
    match network {
        Network::Bitcoin => "bitcoin",
        Network::Testnet4 => "testnet4",
        Network::Signet => "signet",
        Network::Regtest => "regtest",
        _ => "testnet",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_follow_the_cores_unless_told() {
        let mut config = Config::defaults(Network::Regtest, Path::new("/home/alice"));
        assert!(config.shard_count() >= 1);
        config.shards = 7;
        assert_eq!(config.shard_count(), 7);
    }
}
