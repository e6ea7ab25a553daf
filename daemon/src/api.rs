//! gRPC: one file for each service of `millrace.v1`, and what they share.
//!
//! Handlers turn requests into types and types into answers; what happens is decided elsewhere. They read snapshots and
//! the view, hold no lock while they wait, and every call that changes something goes through an idempotency key
//! (`once`). `guard` asks for the access token and turns a panic into an answer; `fault` makes typed errors.

mod channel_story;
mod channel_text;
mod channels;
mod events;
mod fault;
mod forwards;
mod graph;
mod guard;
mod invoices;
mod node;
mod once;
mod parse;
mod payments;
mod peers;
mod towers;
mod wallet;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_chain::SyncState;
use millrace_chain::broadcast::Broadcaster;
use millrace_chain::fees::FeeEstimates;
use millrace_journal::Journal;
use millrace_rpc::v1;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

use crate::announce::Announcer;
use crate::channels::Registry;
use crate::claims::Claimer;
use crate::config::Config;
use crate::gossip::Gossip;
use crate::keeper::{self, Keeper};
use crate::keys::Keys;
use crate::payments::Payments;
use crate::peer::Peers;
use crate::readiness::Readiness;
use crate::shutdown::Trigger;
use crate::tls::Tls;
use crate::token::AccessToken;
use crate::towers::Towers;
use crate::view::{Past, View, ViewError};
use crate::wallet::WalletHandle;
use guard::Guarded;

/// The largest request. An invoice has at most 16 kB.
const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Calls that one connection may have under way.
const STREAMS_MAX: u32 = 1_024;
/// A silent connection is asked whether it still lives.
const KEEP_ALIVE: Duration = Duration::from_secs(30);
/// How long calls may take to end when the node stops.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the API works with.
pub struct Api {
    /// The settings.
    pub config: Config,
    /// Every key; the API shows the node id and signs nothing itself.
    pub keys: Keys,
    /// The channels.
    pub registry: Registry,
    /// The peers.
    pub peers: Peers,
    /// The watchtowers.
    pub towers: Arc<Towers>,
    /// Payments, invoices, keys, events.
    pub payments: Arc<Payments>,
    /// Whoever says what is to be said of the node and its channels.
    pub announcer: Arc<Announcer>,
    /// The wallet.
    pub wallet: WalletHandle,
    /// The public graph.
    pub gossip: Gossip,
    /// What is claimed on chain.
    pub claimer: Claimer,
    /// Whoever broadcasts.
    pub broadcaster: Broadcaster,
    /// What transactions pay.
    pub fees: watch::Receiver<FeeEstimates>,
    /// How far the chain is.
    pub sync: watch::Receiver<SyncState>,
    /// The journal.
    pub journal: Arc<Journal>,
    /// Where other nodes can call.
    pub listening: watch::Receiver<Option<SocketAddr>>,
    /// How far the node is.
    pub readiness: watch::Receiver<Readiness>,
    /// Stops the node.
    pub trigger: Trigger,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address.
    #[error("cannot serve gRPC at {address}: {error}; choose another rpc_listen")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why not.
        error: std::io::Error,
    },
    /// The certificate.
    #[error("cannot serve gRPC: {0}")]
    Tls(#[from] tonic::transport::Error),
    /// The view.
    #[error(transparent)]
    View(#[from] ViewError),
    /// The contract's own description.
    #[error("cannot describe the services: {0}")]
    Reflection(String),
    /// A thread.
    #[error("no thread for the events: {0}")]
    Thread(std::io::Error),
}

/// The API, being served.
pub struct Serving {
    /// Where.
    pub address: SocketAddr,
    past: Past,
    keeper: Keeper,
    stop: watch::Sender<bool>,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

/// What all services share.
struct Inner {
    api: Api,
    past: Past,
    stopping: watch::Receiver<bool>,
    started: Instant,
}

type Shared = Arc<Inner>;

impl Inner {
    /// Ends when the API is to end.
    async fn stopped(&self) {
        let mut stopping = self.stopping.clone();
        // An error means that nobody is left to stop it: then it is stopped.
        let _is_stopping = stopping.wait_for(|is_stopping| *is_stopping).await.is_ok();
    }
}

/// Serves the API, from the first moment on: until the node is ready, most calls answer how far it is. To be called on a
/// tokio runtime, after everything was read back and [`Payments::attach`].
///
/// # Errors
/// [`ServeError`].
pub async fn serve(
    api: Api,
    tls: &Tls,
    token: AccessToken,
    address: SocketAddr,
    view: PathBuf,
) -> Result<Serving, ServeError> {
    let log = Arc::clone(api.payments.log());
    let view = Arc::new(View::open(&view, &log)?);
    let past = Past { view, log };
    let keeper = keeper::start(past.clone(), Arc::clone(&api.payments), api.registry.clone(), Arc::clone(&api.journal));
    let keeper = keeper.map_err(ServeError::Thread)?;
    let incoming = TcpIncoming::bind(address).map_err(|error| ServeError::Listen { address, error })?;
    let bound = incoming.local_addr().map_err(|error| ServeError::Listen { address, error })?;
    let (stop, stopping) = watch::channel(false);
    let inner = Arc::new(Inner { api, past: past.clone(), stopping: stopping.clone(), started: Instant::now() });
    let identity = Identity::from_pem(&tls.certificate_pem, tls.key_pem.as_bytes());
    let server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))?
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .http2_keepalive_timeout(Some(KEEP_ALIVE));
    let router = routes(server, &inner, &Arc::new(token)).await?;
    let mut ended = stopping;
    let incoming = incoming.with_nodelay(Some(true));
    let server = tokio::spawn(router.serve_with_incoming_shutdown(incoming, async move {
        // An error means that nobody is left to stop it.
        let _stop = ended.wait_for(|is_stopping| *is_stopping).await;
    }));
    Ok(Serving { address: bound, past, keeper, stop, server })
}

async fn routes(
    mut server: Server,
    inner: &Shared,
    token: &Arc<AccessToken>,
) -> Result<tonic::transport::server::Router, ServeError> {
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| ServeError::Reflection(error.to_string()))?;
    let (reporter, health) = tonic_health::server::health_reporter();
    follow_health(reporter, inner.api.readiness.clone()).await;
    use v1::channels_server::ChannelsServer;
    use v1::events_server::EventsServer;
    use v1::forwards_server::ForwardsServer;
    use v1::graph_server::GraphServer;
    use v1::invoices_server::InvoicesServer;
    use v1::node_server::NodeServer;
    use v1::payments_server::PaymentsServer;
    use v1::peers_server::PeersServer;
    use v1::towers_server::TowersServer;
    use v1::wallet_server::WalletServer;
    macro_rules! guarded {
        ($server:ident, $service:expr) => {
            Guarded::new($server::new($service).max_decoding_message_size(REQUEST_BYTES_MAX), Arc::clone(token))
        };
    }
    Ok(server
        .add_service(guarded!(NodeServer, node::NodeService(Arc::clone(inner))))
        .add_service(guarded!(WalletServer, wallet::WalletService(Arc::clone(inner))))
        .add_service(guarded!(PeersServer, peers::PeersService(Arc::clone(inner))))
        .add_service(guarded!(ChannelsServer, channels::ChannelsService(Arc::clone(inner))))
        .add_service(guarded!(InvoicesServer, invoices::InvoicesService(Arc::clone(inner))))
        .add_service(guarded!(PaymentsServer, payments::PaymentsService(Arc::clone(inner))))
        .add_service(guarded!(EventsServer, events::EventsService(Arc::clone(inner))))
        .add_service(guarded!(ForwardsServer, forwards::ForwardsService(Arc::clone(inner))))
        .add_service(guarded!(TowersServer, towers::TowersService(Arc::clone(inner))))
        .add_service(guarded!(GraphServer, graph::GraphService(Arc::clone(inner))))
        .add_service(Guarded::new(reflection, Arc::clone(token)))
        .add_service(Guarded::new(health, Arc::clone(token))))
}

/// The health service says "serving" while the node is ready, for the server as a whole.
async fn follow_health(reporter: tonic_health::server::HealthReporter, mut readiness: watch::Receiver<Readiness>) {
    use tonic_health::ServingStatus::{NotServing, Serving};
    let status = |readiness: &Readiness| if readiness.is_ready() { Serving } else { NotServing };
    let now = status(&readiness.borrow_and_update());
    reporter.set_service_status("", now).await;
    tokio::spawn(async move {
        while readiness.changed().await.is_ok() {
            let now = status(&readiness.borrow_and_update());
            reporter.set_service_status("", now).await;
        }
    });
}

impl Serving {
    /// The past, for those who are asked about it.
    #[must_use]
    pub fn archive(&self) -> Past {
        self.past.clone()
    }

    /// Ends it: no new call, streams are closed, the view is written.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let mut server = self.server;
        if tokio::time::timeout(LAST_WORDS, &mut server).await.is_err() {
            server.abort();
        }
        let keeper = self.keeper;
        // It waits for its threads.
        if tokio::task::spawn_blocking(move || keeper.end()).await.is_err() {
            tracing::error!("the events' threads did not end well");
        }
    }
}
