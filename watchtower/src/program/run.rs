//! `millrace-tower run`: wires the parts, and decides nothing.

use millrace_chain::{Bitcoind, Config, Timeouts};
use millrace_journal::Options;
use millrace_watchtower::keeper::{self, Desk};
use millrace_watchtower::{guard, server};
use millrace_wire::ChainHash;
use secp256k1::SECP256K1;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tracing_subscriber::EnvFilter;

use super::admin::{self, Admin};
use super::settings::{Settings, network_name};
use super::{Failure, identity, print};

fn failed(error: impl std::fmt::Display) -> Failure {
    Failure::Failed(error.to_string())
}

/// Runs the tower until a signal ends it.
pub(crate) async fn run(settings: Settings) -> Result<(), Failure> {
    log(&settings)?;
    identity::open_folder(&settings.data_dir)?;
    let (keeper, durability) = keeper::open(&settings.journal(), Options::default()).map_err(failed)?;
    check_network(&settings)?;
    // The journal's lock keeps a second tower out; only then may the key be made.
    let key = identity::open(&settings.key_file())?;
    let bitcoind = connect(&settings).await?;
    let listener = TcpListener::bind(&settings.listen).await;
    let listener =
        listener.map_err(|error| Failure::Failed(format!("cannot listen at {}: {error}", settings.listen)))?;
    let local = listener.local_addr().map_err(failed)?.to_string();
    let address = format!("{}@{}", key.public_key(SECP256K1), settings.external_address.clone().unwrap_or(local));
    let socket = admin::listen(&settings.socket());
    let socket = socket.map_err(|error| Failure::Failed(format!("{}: {error}", settings.socket().display())))?;

    let (desk, thread) = Desk::open(keeper).map_err(failed)?;
    let (stop, stopped) = watch::channel(false);
    let (view, views) = watch::channel(guard::first_view());
    let admin = Admin {
        desk: desk.clone(),
        durability: durability.clone(),
        view: views,
        tower: key.public_key(SECP256K1),
        address: address.clone(),
        network: network_name(settings.network),
    };
    let context = server::Context {
        desk: desk.clone(),
        durability: durability.clone(),
        key,
        chain_hash: ChainHash::using_genesis_block_const(settings.network),
    };
    let serving = tokio::spawn(server::serve(listener, context, stopped.clone()));
    let administering = tokio::spawn(admin::serve(socket, admin, stopped.clone()));
    let mut guarding = tokio::spawn(guard::run(bitcoind, desk, durability, view, stopped));
    // Whoever has read the address may stop it.
    let signals = (signal(SignalKind::interrupt()).map_err(failed)?, signal(SignalKind::terminate()).map_err(failed)?);
    tracing::info!(address, network = network_name(settings.network), "the tower is up");
    print(&address)?;

    let ended = tokio::select! {
        () = on_signal(signals) => Ok(()),
        ended = &mut guarding => Err(ended.map_or_else(failed, |result| match result {
            Ok(()) => Failure::Failed("the chain is not followed any more".to_owned()),
            Err(error) => failed(error),
        })),
    };
    stop.send_replace(true);
    // What was acknowledged is on disk; who still talks is hung up on. The keeper ends with the last who gives it orders.
    let _ended = serving.await;
    let _ended = administering.await;
    if !guarding.is_finished() {
        let _ended = guarding.await;
    }
    let joined = tokio::task::spawn_blocking(move || thread.join()).await;
    let _removed = std::fs::remove_file(settings.socket());
    match joined {
        Ok(Ok(())) => ended,
        Ok(Err(_)) | Err(_) => Err(Failure::Failed("the keeper panicked".to_owned())),
    }
}

async fn on_signal((mut interrupt, mut terminate): (Signal, Signal)) {
    let name = tokio::select! {
        _ = interrupt.recv() => "SIGINT",
        _ = terminate.recv() => "SIGTERM",
    };
    tracing::info!(signal = name, "stopping");
}

fn log(settings: &Settings) -> Result<(), Failure> {
    let filter = EnvFilter::builder().parse(&settings.log_level);
    let filter = filter.map_err(|error| Failure::Failed(format!("log_level `{}`: {error}", settings.log_level)))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).finish();
    tracing::subscriber::set_global_default(subscriber).map_err(failed)
}

/// A folder is for one network: blocks of another would say that nothing was ever spent.
fn check_network(settings: &Settings) -> Result<(), Failure> {
    let path = settings.data_dir.join("network");
    let name = network_name(settings.network);
    match std::fs::read_to_string(&path) {
        Ok(found) if found.trim() == name => Ok(()),
        Ok(found) => {
            let (folder, found) = (settings.data_dir.display(), found.trim());
            Err(Failure::Failed(format!("the folder {folder} is for the network {found}, not for {name}")))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::write(&path, format!("{name}\n")).map_err(|error| Failure::Failed(error.to_string()))
        }
        Err(error) => Err(Failure::Failed(format!("{}: {error}", path.display()))),
    }
}

/// One that is away is waited for by the guard; one that is wrong is told at once.
async fn connect(settings: &Settings) -> Result<Bitcoind, Failure> {
    let config = Config {
        url: settings.bitcoind_url.clone(),
        auth: settings.bitcoind_auth.clone(),
        network: settings.network,
        timeouts: Timeouts::default(),
    };
    let bitcoind = Bitcoind::new(config).map_err(failed)?;
    match bitcoind.check().await {
        Err(error) if error.is_fatal() => Err(failed(error)),
        Err(error) => {
            tracing::warn!(%error, "bitcoind is waited for");
            Ok(bitcoind)
        }
        Ok(_) => Ok(bitcoind),
    }
}
