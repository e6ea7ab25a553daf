//! One run of the daemon, from its settings to its end: makes every part, in the order in which they need one another,
//! and takes them down again. `node` wires the channels; here everything else is put around it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_chain::{Auth, Bitcoind, ChainError, SyncState, Timeouts};
use millrace_channel::Policy;
use millrace_channel::keys::Identity;
use millrace_channel::phase::opening::OpeningLimits;
use millrace_journal::Options;
use millrace_wire::{ChainHash, Features};
use tokio::sync::{mpsc, watch};

use crate::announce::node::Face;
use crate::announce::{Announcer, Parts};
use crate::api::{self, Api, Serving};
use crate::chain_source::BitcoindSource;
use crate::channels::{ChannelRules, KeysOf};
use crate::coins::{self, Coins, WalletRecords};
use crate::config::Config;
use crate::data_dir::{DataDir, DataDirError};
use crate::gauges::Watched;
use crate::gossip::{BitcoindFunding, Gossip, GossipRules};
use crate::keys::Keys;
use crate::network::Network;
use crate::node::{self, Node, Origins, RecoveredNode, StartError, Surroundings};
use crate::payments::{EXPIRED_KEPT_MS, FIRST_PAUSE_MS, ForwardRules, MPP_TIMEOUT_MS, PaymentRules, Payments};
use crate::peer::PeerRules;
use crate::policy::Policies;
use crate::prepare::Prepared;
use crate::readiness::Readiness;
use crate::shutdown::{Shutdown, Trigger};
use crate::towers::Towers;
use crate::wallet::{ReservePolicy, Wallet};
use crate::{claims, metrics, wallet};

/// What ends a run with a message.
pub type Fault = Box<dyn std::error::Error + Send + Sync>;

/// How long bitcoind may take to answer the first question.
const FIRST_CHECK: Duration = Duration::from_secs(10);
/// How long the end waits for watchtowers to have the last of it.
const TOWERS_SETTLE: Duration = Duration::from_secs(3);
/// How long the main task may take to say why it has ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Runs until `shutdown`, or until the node cannot go on.
///
/// # Errors
/// In words that say what to do.
pub async fn run(prepared: Prepared, trigger: Trigger, mut shutdown: Shutdown) -> Result<(), Fault> {
    let mut running = Running::begin(prepared, trigger).await?;
    let ended = tokio::select! {
        result = running.until_it_fails() => result,
        () = shutdown.wait() => Ok(()),
    };
    running.stop().await;
    ended
}

/// A daemon that runs, as far as its parts are needed until its end.
struct Running {
    doors: Doors,
    node: Node,
    payments: Arc<Payments>,
    towers: Arc<Towers>,
    coins: Arc<Coins>,
    sync: watch::Receiver<SyncState>,
    rpc: Serving,
    readiness: watch::Sender<Readiness>,
    /// Hears why the chain cannot be followed.
    chain_failure: mpsc::UnboundedReceiver<ChainError>,
}

/// Where clients are served, and the file that says so.
struct Doors {
    data_dir: DataDir,
    rpc: SocketAddr,
    metrics: Option<SocketAddr>,
    network: bitcoin::Network,
}

/// What has been read back, and what will be told of what happens next.
struct Ledgers {
    recovered: RecoveredNode,
    payments: Arc<Payments>,
    announcer: Arc<Announcer>,
    towers: Arc<Towers>,
    records: Arc<WalletRecords>,
    network: Network,
}

impl Ledgers {
    fn read(
        config: &Config,
        data_dir: &DataDir,
        keys: &Keys,
        sync: watch::Receiver<SyncState>,
    ) -> Result<Self, StartError> {
        let network = Network::default();
        let payments = Payments::new(keys.clone(), payment_rules(config));
        let announcer = Announcer::new(announcing(config, keys, payments.policies().clone(), network.clone()));
        let announced = Arc::clone(&announcer);
        payments.announce_by(Box::new(move |scid| announced.update_of(scid)));
        payments.find_ways(network.clone(), data_dir.liquidity());
        let records = Arc::new(WalletRecords::default());
        let chain_hash = ChainHash::using_genesis_block_const(config.network);
        let towers = Towers::new(keys.clone(), chain_hash, config.tower.lag_max.into());
        let recovered = node::open(Origins {
            journal: &data_dir.journal(),
            options: journal_options(config),
            rules: channel_rules(config),
            keys_of: keys_of(keys, config),
            folds: vec![
                Arc::clone(&records) as _,
                Arc::clone(&payments) as _,
                Arc::clone(&announcer) as _,
                Arc::clone(&towers) as _,
            ],
            sync,
        })?;
        payments.attach(recovered.journal());
        Ok(Self { recovered, payments, announcer, towers, records, network })
    }
}

impl Running {
    /// Puts everything together and serves clients; the node may still be catching up.
    async fn begin(prepared: Prepared, trigger: Trigger) -> Result<Self, Fault> {
        let Prepared { config, data_dir, keys, tls, token, new_seed: _ } = prepared;
        let metrics = start_metrics(&config)?;
        let bitcoind = connect(&config).await?;
        let source = BitcoindSource::new(bitcoind.clone()).beginning_at(data_dir.restore_from()?);
        let (sync, fees, broadcaster) = (source.sync(), source.fees(), source.broadcaster());
        let Ledgers { recovered, payments, announcer, towers, records, network } =
            Ledgers::read(&config, &data_dir, &keys, sync.clone())?;
        let registry = recovered.registry();

        let loaded = Wallet::load(records.take(), keys.wallet().clone(), reserve_policy(&config))?;
        let (wallet, _wallet_task) = wallet::spawn(loaded, coins::sink(recovered.journal_handle()));
        records.run_by(wallet.clone());
        let (claimer, _claims_task) = claims::start(claims::ClaimParts {
            bitcoind: bitcoind.clone(),
            broadcaster: broadcaster.clone(),
            wallet: wallet.clone(),
            keys_of: keys_of(&keys, &config),
            fees: fees.clone(),
            sync: sync.clone(),
        });
        let coins = Coins::new(wallet.clone(), claimer.clone(), registry.clone(), broadcaster.clone(), fees.clone());

        let gossip = Gossip::start(
            ChainHash::using_genesis_block_const(config.network),
            gossip_rules(&config, &data_dir),
            Arc::new(BitcoindFunding::new(bitcoind)),
            network,
        );
        let passed_on = gossip.clone();
        announcer.relay_by(Arc::new(move |messages| passed_on.put_own(messages)));

        towers.start(&registry, &recovered.channel_ids());
        let (chain_failed, chain_failure) = mpsc::unbounded_channel::<ChainError>();
        let coins_of_chain = Arc::clone(&coins);
        let wallet_of_chain = wallet.clone();
        let node = recovered.start(Surroundings {
            node_key: *keys.node_key(),
            peers: peer_rules(&config),
            listen: Some(config.listen),
            wallet: Arc::clone(&coins) as _,
            guards: Arc::clone(&towers) as _,
            announcer: Some(Arc::clone(&announcer)),
            gossip: Some(gossip.clone()),
            followers: vec![Arc::clone(&coins) as _],
            chain: Box::new(move |trail| {
                let mut source = source.follow(trail, chain_failed, wallet_of_chain);
                source.broadcasts = coins_of_chain.watch_broadcasts(source.broadcasts);
                source
            }),
        })?;

        let (readiness, served) = watch::channel(Readiness::Recovering);
        let (network, listen) = (config.network, config.listen);
        let (peers, journal) = (node.peers().clone(), Arc::clone(node.journal()));
        let api = Api {
            config: config.clone(),
            keys,
            registry: registry.clone(),
            peers: peers.clone(),
            towers: Arc::clone(&towers),
            payments: Arc::clone(&payments),
            announcer,
            wallet: wallet.clone(),
            gossip: gossip.clone(),
            claimer,
            broadcaster,
            fees,
            sync: sync.clone(),
            journal: Arc::clone(&journal),
            listening: node.listening(),
            readiness: served,
            trigger,
        };
        let rpc = api::serve(api, &tls, token, config.rpc_listen, data_dir.view()).await?;
        let doors = Doors { data_dir, rpc: rpc.address, metrics, network };
        doors.say(listen)?;
        tracing::info!(address = %rpc.address, "serving gRPC");
        if metrics.is_some() {
            let view = rpc.archive().view;
            let towers = Arc::clone(&towers);
            tokio::spawn(Watched { registry, peers, wallet, journal, view, gossip, towers }.tell());
        }
        Ok(Self { doors, node, payments, towers, coins, sync, rpc, readiness, chain_failure })
    }

    /// A healthy daemon never returns from here.
    async fn until_it_fails(&mut self) -> Result<(), Fault> {
        tokio::select! {
            ready = self.doors.open(&self.node, &self.coins, &self.readiness) => ready?,
            error = self.chain_failure.recv() => return Err(why_it_ended(error, &mut self.node).await),
        }
        self.payments.start(self.node.registry().clone(), self.sync.clone(), self.rpc.archive())?;
        self.readiness.send_replace(Readiness::Ready);
        tracing::info!("ready");
        tokio::select! {
            failed = self.node.failed() => failed.map_err(Fault::from),
            error = self.chain_failure.recv() => Err(why_it_ended(error, &mut self.node).await),
        }
    }

    async fn stop(self) {
        self.readiness.send_replace(Readiness::Stopping);
        tracing::info!("stopping");
        self.doors.data_dir.remove_rpc_info();
        self.rpc.stop().await;
        self.payments.remember().await;
        self.node.stop_after(self.towers.settle(TOWERS_SETTLE)).await;
        self.towers.stop();
    }
}

impl Doors {
    fn say(&self, lightning: SocketAddr) -> Result<(), DataDirError> {
        self.data_dir.write_rpc_info(self.rpc, lightning, self.metrics, self.network).map(|_| ())
    }

    /// Follows the node's start until the reserve is kept and clients can find it.
    async fn open(&self, node: &Node, coins: &Coins, readiness: &watch::Sender<Readiness>) -> Result<(), Fault> {
        let mut seen = node.readiness();
        loop {
            let now = seen.borrow_and_update().clone();
            if now.is_ready() {
                break;
            }
            readiness.send_replace(now);
            seen.changed().await?;
        }
        coins.keep_reserve().await;
        if let Some(lightning) = *node.listening().borrow() {
            self.say(lightning)?;
        }
        Ok(())
    }
}

/// If the chain is not followed any more and does not say why, it went with the node's main task, which does.
async fn why_it_ended(error: Option<ChainError>, node: &mut Node) -> Fault {
    if let Some(error) = error {
        return error.into();
    }
    match tokio::time::timeout(LAST_WORDS, node.failed()).await {
        Ok(Err(error)) => error.into(),
        Ok(Ok(())) | Err(_) => "the chain is not followed any more".into(),
    }
}

/// Metrics, if they are asked for. Port 0 takes a free one.
fn start_metrics(config: &Config) -> Result<Option<SocketAddr>, Fault> {
    let Some(mut address) = config.metrics_listen else { return Ok(None) };
    if address.port() == 0 {
        address = std::net::TcpListener::bind(address)?.local_addr()?;
    }
    metrics::start(address)?;
    Ok(Some(address))
}

/// bitcoind, asked once: what waiting cannot mend ends the start; one that is away is waited for.
async fn connect(config: &Config) -> Result<Bitcoind, Fault> {
    let auth = match (&config.bitcoind.user, &config.bitcoind.password) {
        (Some(user), Some(password)) => Auth::UserPass { user: user.clone(), password: password.expose().to_owned() },
        _ => Auth::Cookie(config.bitcoind.cookie.clone()),
    };
    let url = config.bitcoind.url.clone();
    let settings = millrace_chain::Config { url, auth, network: config.network, timeouts: Timeouts::default() };
    let bitcoind = Bitcoind::new(settings)?;
    match tokio::time::timeout(FIRST_CHECK, bitcoind.check()).await {
        Ok(Err(error)) if error.is_fatal() => return Err(error.into()),
        Ok(Err(error)) => tracing::warn!(%error, "waiting for bitcoind"),
        Err(_) => tracing::warn!("waiting for bitcoind, which does not answer"),
        Ok(Ok(_)) => {}
    }
    Ok(bitcoind)
}

fn keys_of(keys: &Keys, config: &Config) -> KeysOf {
    let keys = keys.clone();
    let chain_hash = ChainHash::using_genesis_block_const(config.network);
    Arc::new(move |index| keys.channel_keys(index).of_node(Identity::new(*keys.node_key(), chain_hash)))
}

fn announcing(config: &Config, keys: &Keys, policies: Policies, network: Network) -> Parts {
    Parts {
        node_key: *keys.node_key(),
        chain_hash: ChainHash::using_genesis_block_const(config.network),
        features: Features::ours(!config.channel.zero_conf_peers.is_empty()),
        face: Face { alias: config.alias.clone(), color: config.color, addresses: config.announced_addresses.clone() },
        policies,
        peer_share_percent: config.routing.peer_share_percent,
        network,
    }
}

fn channel_rules(config: &Config) -> ChannelRules {
    let channel = &config.channel;
    let policy = Policy {
        max_dust_exposure: channel.max_dust_exposure,
        offered_grace: u32::from(channel.offered_grace_blocks),
        received_margin: u32::from(channel.received_margin_blocks),
        ..Policy::default()
    };
    let limits = OpeningLimits {
        funding_min: channel.min_funding,
        funding_max: channel.max_funding,
        to_self_delay_max: channel.max_to_self_delay_blocks,
        ..OpeningLimits::default()
    };
    ChannelRules {
        policy,
        limits,
        zero_conf_peers: channel.zero_conf_peers.clone(),
        openings_per_peer_max: usize::from(config.peers.max_openings_per_peer),
        to_self_delay: channel.to_self_delay_blocks,
        htlc_minimum: channel.htlc_minimum,
        reserve_ppm: channel.reserve_ppm,
        max_accepted_htlcs: channel.max_accepted_htlcs,
        closing_cost_percent: channel.closing_cost_percent,
        max_in_flight_percent: channel.max_in_flight_percent,
        minimum_depth: u32::from(channel.minimum_depth),
        minimum_depth_large: u32::from(channel.minimum_depth_large),
        large_channel: channel.large_channel,
        shards: config.shard_count(),
        ..ChannelRules::usual(ChainHash::using_genesis_block_const(config.network))
    }
}

fn peer_rules(config: &Config) -> PeerRules {
    let peers = &config.peers;
    PeerRules {
        max_connections: usize::from(peers.max_connections),
        max_without_channels: usize::from(peers.max_without_channels),
        handshake_timeout: Duration::from_secs(u64::from(peers.handshake_timeout_s)),
        ping_after: Duration::from_secs(u64::from(peers.ping_interval_s)),
        ping_timeout: Duration::from_secs(u64::from(peers.ping_timeout_s)),
        zero_conf_peers: config.channel.zero_conf_peers.clone(),
        ..PeerRules::default()
    }
}

fn gossip_rules(config: &Config, data_dir: &DataDir) -> GossipRules {
    GossipRules {
        relay_every: Duration::from_millis(u64::from(config.gossip.relay_interval_ms)),
        sync_peers: usize::from(config.gossip.sync_peers),
        file: Some(data_dir.graph()),
        ..GossipRules::default()
    }
}

fn payment_rules(config: &Config) -> PaymentRules {
    let payments = &config.payments;
    PaymentRules {
        network: config.network,
        max_cltv_expiry_blocks: payments.max_cltv_expiry_blocks,
        final_cltv_delta: payments.final_cltv_delta.0,
        invoice_expiry_s: payments.invoice_expiry_s,
        keys_kept_ms: u64::from(payments.idempotency_hours) * 3_600_000,
        accepts_keysend: payments.accept_keysend,
        mpp_timeout_ms: MPP_TIMEOUT_MS,
        first_pause_ms: FIRST_PAUSE_MS,
        expired_kept_ms: EXPIRED_KEPT_MS,
        forwards: ForwardRules {
            usual: config.routing.policy(),
            peer_share_percent: config.routing.peer_share_percent,
        },
    }
}

fn reserve_policy(config: &Config) -> ReservePolicy {
    ReservePolicy { per_channel: config.wallet.anchor_reserve, max: config.wallet.anchor_reserve_max }
}

fn journal_options(config: &Config) -> Options {
    let segment_bytes = u64::from(config.journal.segment_mib) << 20;
    Options { segment_bytes, reserve_bytes: segment_bytes, ..Options::default() }
}
