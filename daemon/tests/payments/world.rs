//! Whole nodes with their API in one process: real journals, sockets and certificates; a chain and coins that are made up.

#![allow(dead_code, reason = "each test file uses its part of it")]

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millrace_chain::broadcast::Broadcaster;
use millrace_chain::fees::FeeEstimates;
use millrace_chain::{Auth, Bitcoind, SyncState, Timeouts};
use millrace_channel::keys::Identity;
use millrace_journal::Options;
use millrace_rpc::v1;
use millrace_rpc::v1::channels_client::ChannelsClient;
use millrace_rpc::v1::events_client::EventsClient;
use millrace_rpc::v1::invoices_client::InvoicesClient;
use millrace_rpc::v1::payments_client::PaymentsClient;
use millrace_wire::{ChainHash, ChannelId, FeeratePerKw, Msat, PublicKey, Sat};
use millraced::announce::node::Face;
use millraced::announce::{Announcer, Parts};
use millraced::api::{self, Api, Serving};
use millraced::channels::{ChannelGuards, ChannelRules, ChannelSnapshot, ChannelWallet, OpenOrder, OpenProgress};
use millraced::claims::{self, ClaimParts};
use millraced::config::Config;
use millraced::data_dir::DataDir;
use millraced::facts::Fold;
use millraced::gossip::{BitcoindFunding, Gossip, GossipRules};
use millraced::network::Network;
use millraced::node::{Node, Origins, Surroundings, open};
use millraced::payments::{EXPIRED_KEPT_MS, FIRST_PAUSE_MS, ForwardRules, MPP_TIMEOUT_MS, PaymentRules, Payments};
use millraced::peer::PeerRules;
use millraced::prepare::prepare;
use millraced::readiness::Readiness;
use millraced::shutdown::Shutdown;
use millraced::towers::Towers;
use millraced::wallet::{self, ReservePolicy, Wallet};
use secp256k1::SecretKey;
use tokio::sync::watch;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::support::{FakeChain, FakeWallet, PATIENCE, eventually};

/// Puts the token on every call; with none, a client that has none.
#[derive(Clone)]
pub(crate) struct Bearer(pub(crate) Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

pub(crate) type Link = InterceptedService<Channel, Bearer>;

/// A node with its API.
pub(crate) struct World {
    pub(crate) node: Node,
    pub(crate) network: Network,
    pub(crate) payments: Arc<Payments>,
    pub(crate) serving: Serving,
    pub(crate) readiness: watch::Sender<Readiness>,
    pub(crate) sync: watch::Sender<SyncState>,
    pub(crate) node_id: PublicKey,
    pub(crate) node_key: SecretKey,
    pub(crate) announcer: Arc<Announcer>,
    pub(crate) towers: Arc<Towers>,
    pub(crate) coins: Arc<FakeWallet>,
    pub(crate) lightning: SocketAddr,
    pub(crate) shutdown: Shutdown,
    pub(crate) certificate: String,
    pub(crate) token: String,
    data_dir: DataDir,
}

/// Starts a node on what is in a folder, and waits until it serves.
pub(crate) async fn start(home: &Path, chain: &FakeChain) -> World {
    start_with(home, chain, Differences::default()).await
}

/// What one test's node has otherwise than another's.
#[derive(Clone, Copy)]
pub(crate) struct Differences {
    /// The network that its owner has chosen, by its settings.
    pub(crate) network: bitcoin::Network,
    /// How long a part of a payment waits for the others.
    pub(crate) mpp_timeout_ms: u64,
    /// How long a payment waits before it is tried again where it has failed.
    pub(crate) first_pause_ms: u64,
    /// How long an expired invoice stays in memory.
    pub(crate) expired_kept_ms: u64,
    /// Revoked commitments that a watchtower may lack.
    pub(crate) lag_max: u32,
}

impl Default for Differences {
    fn default() -> Self {
        let network = bitcoin::Network::Regtest;
        Self {
            network,
            mpp_timeout_ms: MPP_TIMEOUT_MS,
            first_pause_ms: FIRST_PAUSE_MS,
            expired_kept_ms: EXPIRED_KEPT_MS,
            lag_max: 1_000,
        }
    }
}

/// The same with another setup.
pub(crate) async fn start_with(home: &Path, chain: &FakeChain, differences: Differences) -> World {
    let world = start_unready_with(home, chain, differences).await;
    world.payments.start(world.node.registry().clone(), world.sync.subscribe(), world.serving.archive()).unwrap();
    world.readiness.send_replace(Readiness::Ready);
    world
}

/// The same, but its API has not heard yet that it is ready.
pub(crate) async fn start_unready(home: &Path, chain: &FakeChain) -> World {
    start_unready_with(home, chain, Differences::default()).await
}

async fn start_unready_with(home: &Path, chain: &FakeChain, differences: Differences) -> World {
    let mut config = Config::defaults(bitcoin::Network::Regtest, home);
    config.data_dir = home.to_path_buf();
    let prepared = prepare(config.clone()).unwrap();
    let (keys, data_dir) = (prepared.keys, prepared.data_dir);
    let token = std::fs::read_to_string(data_dir.access_token()).unwrap().trim().to_owned();
    let (sync, synced) = watch::channel(SyncState::Synced { height: chain.height() });
    let rules = PaymentRules {
        network: bitcoin::Network::Regtest,
        max_cltv_expiry_blocks: 2016,
        final_cltv_delta: 42,
        invoice_expiry_s: 3600,
        keys_kept_ms: 86_400_000,
        accepts_keysend: true,
        mpp_timeout_ms: differences.mpp_timeout_ms,
        first_pause_ms: differences.first_pause_ms,
        expired_kept_ms: differences.expired_kept_ms,
        forwards: ForwardRules::default(),
    };
    let payments = Payments::new(keys.clone(), rules);
    let network = Network::default();
    payments.find_ways(network.clone(), data_dir.liquidity());
    let mut channel_rules = ChannelRules::usual(ChainHash::REGTEST);
    channel_rules.closing_cost_percent = u8::MAX;
    channel_rules.shards = 2;
    let channel_keys = keys.clone();
    let keys_of: millraced::channels::KeysOf = Arc::new(move |index| {
        let identity = Identity::new(*channel_keys.node_key(), ChainHash::REGTEST);
        channel_keys.channel_keys(index).of_node(identity)
    });
    let announcer = Announcer::new(Parts {
        node_key: *keys.node_key(),
        chain_hash: ChainHash::REGTEST,
        features: millrace_wire::Features::ours(false),
        face: Face::default(),
        policies: payments.policies().clone(),
        peer_share_percent: 50,
        network: network.clone(),
    });
    let announced = Arc::clone(&announcer);
    payments.announce_by(Box::new(move |scid| announced.update_of(scid)));
    let towers = Towers::new(keys.clone(), ChainHash::REGTEST, differences.lag_max.into());
    let recovered = open(Origins {
        journal: &data_dir.journal(),
        options: Options { segment_bytes: 4 << 20, reserve_bytes: 4 << 20, ..Options::default() },
        rules: channel_rules,
        keys_of: Arc::clone(&keys_of),
        folds: vec![
            Arc::clone(&payments) as Arc<dyn Fold>,
            Arc::clone(&announcer) as Arc<dyn Fold>,
            Arc::clone(&towers) as Arc<dyn Fold>,
        ],
        sync: synced.clone(),
    })
    .unwrap();
    payments.attach(recovered.journal());
    towers.start(&recovered.registry(), &recovered.channel_ids());
    let follow = chain.clone();
    let coins = Arc::new(FakeWallet::default());
    let node = recovered
        .start(Surroundings {
            node_key: *keys.node_key(),
            peers: PeerRules {
                reconnect_min: Duration::from_millis(50),
                reconnect_max: Duration::from_millis(400),
                ..PeerRules::default()
            },
            listen: Some("127.0.0.1:0".parse().unwrap()),
            wallet: Arc::clone(&coins) as Arc<dyn ChannelWallet>,
            guards: Arc::clone(&towers) as Arc<dyn ChannelGuards>,
            announcer: Some(Arc::clone(&announcer)),
            gossip: None,
            followers: Vec::new(),
            chain: Box::new(move |trail| follow.source(&trail)),
        })
        .unwrap();
    let mut ready = node.readiness();
    drop(tokio::time::timeout(PATIENCE, ready.wait_for(Readiness::is_ready)).await.unwrap().unwrap());
    let lightning = node.listening().borrow().unwrap();

    let settings = millrace_chain::Config {
        url: "http://127.0.0.1:1".to_owned(),
        auth: Auth::UserPass { user: String::new(), password: String::new() },
        network: bitcoin::Network::Regtest,
        timeouts: Timeouts::default(),
    };
    let bitcoind = Bitcoind::new(settings).unwrap();
    let unfunded = Arc::new(BitcoindFunding::new(bitcoind.clone()));
    let gossip = Gossip::start(ChainHash::REGTEST, GossipRules::default(), unfunded, Default::default());
    let broadcaster = Broadcaster::start(bitcoind.clone(), synced.clone());
    let reserve = ReservePolicy { per_channel: Sat(25_000), max: Sat(1_000_000) };
    let loaded = Wallet::load([], keys.wallet().clone(), reserve).unwrap();
    let (wallet, _task) = wallet::spawn(loaded, |_| async {});
    let fees = watch::channel(FeeEstimates::fallback(bitcoin::Network::Regtest)).1;
    let (claimer, _task) = claims::start(ClaimParts {
        bitcoind,
        broadcaster: broadcaster.clone(),
        wallet: wallet.clone(),
        keys_of,
        fees: fees.clone(),
        sync: synced.clone(),
    });
    let (trigger, shutdown) = millraced::shutdown::pair();
    let (readiness, served) = watch::channel(Readiness::Recovering);
    let api = Api {
        gossip,
        config: Config { network: differences.network, ..config },
        keys: keys.clone(),
        registry: node.registry().clone(),
        peers: node.peers().clone(),
        towers: Arc::clone(&towers),
        payments: Arc::clone(&payments),
        announcer: Arc::clone(&announcer),
        wallet,
        claimer,
        broadcaster,
        fees,
        sync: synced,
        journal: Arc::clone(node.journal()),
        listening: node.listening(),
        readiness: served,
        trigger,
    };
    let address = "127.0.0.1:0".parse().unwrap();
    let serving = api::serve(api, &prepared.tls, prepared.token, address, data_dir.view()).await.unwrap();
    World {
        node,
        network,
        payments,
        serving,
        readiness,
        sync,
        node_id: keys.node_id(),
        node_key: *keys.node_key(),
        announcer,
        towers,
        coins,
        lightning,
        shutdown,
        certificate: prepared.tls.certificate_pem,
        token,
        data_dir,
    }
}

impl World {
    /// Stops it, and waits until its last task has let go of the journal: a process would simply have ended.
    pub(crate) async fn stop(self) {
        self.readiness.send_replace(Readiness::Stopping);
        let Self { node, serving, payments, announcer, towers, data_dir, .. } = self;
        node.stop_after(towers.settle(Duration::from_secs(3))).await;
        towers.stop();
        serving.stop().await;
        drop((payments, announcer, towers));
        let lock = File::open(data_dir.journal().join("lock")).unwrap();
        eventually("the journal is free", || lock.try_lock().ok()).await;
    }

    pub(crate) fn bearer(&self) -> Bearer {
        Bearer(Some(format!("Bearer {}", self.token).parse().unwrap()))
    }

    pub(crate) async fn channel(&self) -> Channel {
        let tls =
            ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&self.certificate)).domain_name("localhost");
        let endpoint = Endpoint::from_shared(format!("https://{}", self.serving.address)).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn link(&self) -> Link {
        InterceptedService::new(self.channel().await, self.bearer())
    }

    pub(crate) async fn invoices(&self) -> InvoicesClient<Link> {
        InvoicesClient::new(self.link().await)
    }

    pub(crate) async fn payments_client(&self) -> PaymentsClient<Link> {
        PaymentsClient::new(self.link().await)
    }

    pub(crate) async fn channels(&self) -> ChannelsClient<Link> {
        ChannelsClient::new(self.link().await)
    }

    /// All events so far.
    pub(crate) async fn events(&self) -> Vec<v1::Event> {
        let mut client = EventsClient::new(self.link().await);
        let request = v1::SubscribeRequest { from_cursor: Some(v1::Cursor::default()), stop_at_tip: true };
        let mut stream = client.subscribe(request).await.unwrap().into_inner();
        let mut events = Vec::new();
        while let Some(event) = stream.message().await.unwrap() {
            events.push(event);
        }
        events
    }

    /// A new invoice as text.
    pub(crate) async fn invoice(&self, msat: u64) -> String {
        let request = v1::CreateInvoiceRequest {
            idempotency_key: hex::encode(rand_bytes()),
            amount_msat: Some(msat),
            ..v1::CreateInvoiceRequest::default()
        };
        self.invoices().await.create(request).await.unwrap().into_inner().invoice.unwrap().bolt11
    }

    /// Pays, and gives the outcome.
    pub(crate) async fn pay(&self, request: v1::PayRequest) -> Result<v1::Payment, Status> {
        let mut stream = self.payments_client().await.pay(request).await?.into_inner();
        let mut is_accepted = false;
        while let Some(message) = stream.message().await? {
            match message.step.unwrap() {
                v1::pay_progress::Step::Accepted(_) => is_accepted = true,
                v1::pay_progress::Step::Attempt(_) => {}
                v1::pay_progress::Step::Outcome(payment) => {
                    assert!(is_accepted, "`accepted` is the first message");
                    return Ok(payment);
                }
            }
        }
        panic!("the stream ended without an outcome");
    }

    pub(crate) async fn connect(&self, other: &World) {
        self.node.peers().connect(other.node_id, &other.lightning.to_string()).await.unwrap();
    }

    pub(crate) async fn wait_until(&self, id: ChannelId, what: &str, is_so: impl Fn(&ChannelSnapshot) -> bool) {
        let registry = self.node.registry();
        eventually(what, || registry.snapshot(id).filter(|snapshot| is_so(snapshot)).map(|_| ())).await;
    }
}

/// Opens a channel from `a` to `b` and waits until both can use it.
pub(crate) async fn open_between(a: &World, b: &World, chain: &FakeChain, capacity: u64, push: u64) -> ChannelId {
    let order = OpenOrder {
        peer: b.node_id,
        capacity: Sat(capacity),
        push: Msat(push),
        funding_feerate: FeeratePerKw(1000),
        zero_conf: false,
        announce: false,
        to_self_delay: None,
        htlc_minimum: None,
        max_in_flight: None,
        upfront_shutdown_script: None,
        when_opened: None,
    };
    // Who was called may not have noticed yet.
    eventually("the peer is there", || a.node.peers().is_connected(&b.node_id).then_some(())).await;
    let mut progress = a.node.registry().open_channel(order).unwrap();
    let channel_id = loop {
        match tokio::time::timeout(PATIENCE, progress.recv()).await.unwrap().unwrap() {
            OpenProgress::Negotiated { .. } => {}
            OpenProgress::Opened { channel_id, .. } => break channel_id,
            OpenProgress::Failed(failure) => panic!("{failure}"),
        }
    };
    eventually("the funding is broadcast", || (!chain.mempool().is_empty()).then_some(())).await;
    chain.mine(3);
    for node in [a, b] {
        node.sync.send_replace(SyncState::Synced { height: chain.height() });
        node.wait_until(channel_id, "the channel is usable", ChannelSnapshot::is_usable).await;
    }
    channel_id
}

pub(crate) fn rand_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

pub(crate) fn pay_request(bolt11: &str) -> v1::PayRequest {
    v1::PayRequest { bolt11: bolt11.to_owned(), ..v1::PayRequest::default() }
}
