//! The administration: gRPC on a Unix socket in the data folder. Whoever may open the socket is the tower's owner.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use bitcoin::Txid;
use millrace_chain::SyncState;
use millrace_rpc::tower::v1::tower_server::{Tower, TowerServer};
use millrace_rpc::tower::v1::{
    AllowBlobsRequest, AllowBlobsResponse, AllowRequest, AllowResponse, Channel, Client, GetStatusRequest,
    GetStatusResponse, Match, Penalty,
};
use millrace_watchtower::guard::{PenaltyView, View};
use millrace_watchtower::keeper::{Desk, Durability, Fault, Keeper, Promised};
use millrace_watchtower::tower::{Refusal, Tower as State};
use millrace_watchtower::vault::{BlobRef, Catch, Unopened, Vault};
use millrace_watchtower::watched::{Phase, Watched};
use millrace_wire::Sat;
use secp256k1::PublicKey;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// What is shown of channels that end: enough for everybody but an attacker's target, who sees the first of them.
const CHANNELS_SHOWN_MAX: usize = 10_000;

/// The service.
pub(crate) struct Admin {
    pub(crate) desk: Desk,
    pub(crate) durability: Durability,
    pub(crate) view: watch::Receiver<View>,
    pub(crate) tower: PublicKey,
    pub(crate) address: String,
    pub(crate) network: &'static str,
}

/// Listens on the socket, in place of one that a crash has left.
pub(crate) fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Serves until `stop` says so.
pub(crate) async fn serve(
    listener: UnixListener,
    admin: Admin,
    mut stop: watch::Receiver<bool>,
) -> Result<(), tonic::transport::Error> {
    let stopped = async move { _ = stop.wait_for(|stopped| *stopped).await };
    tonic::transport::Server::builder()
        .add_service(TowerServer::new(admin))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), stopped)
        .await
}

#[tonic::async_trait]
impl Tower for Admin {
    async fn allow(&self, request: Request<AllowRequest>) -> Result<Response<AllowResponse>, Status> {
        let AllowRequest { client, channels_max } = request.into_inner();
        let client = key(&client)?;
        self.done(move |keeper| keeper.allow(client, channels_max)).await?;
        tracing::info!(%client, channels_max, "client allowed");
        Ok(Response::new(AllowResponse {}))
    }

    async fn allow_blobs(&self, request: Request<AllowBlobsRequest>) -> Result<Response<AllowBlobsResponse>, Status> {
        let AllowBlobsRequest { client, blobs_max } = request.into_inner();
        let client = key(&client)?;
        self.done(move |keeper| keeper.allow_blobs(client, blobs_max)).await?;
        tracing::info!(%client, blobs_max, "client's blobs allowed");
        Ok(Response::new(AllowBlobsResponse {}))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let asked = self.desk.ask(|keeper| {
            let tower = keeper.tower();
            (clients(tower), channels(tower), matches(tower.vault()))
        });
        let (clients, channels, matches) = asked.await.map_err(|fault| status_of(&fault))?;
        let View { sync, height, to_take, to_take_sum, penalties } = self.view.borrow().clone();
        Ok(Response::new(GetStatusResponse {
            tower: self.tower.serialize().to_vec(),
            address: self.address.clone(),
            network: self.network.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            height: height.map_or(0, |height| height.0),
            chain: words(&sync),
            is_synced: sync.height().is_some() && sync.height() == height.map(|height| height.0),
            clients,
            channels,
            penalties: penalties.into_iter().map(penalty).collect(),
            to_take: u32::try_from(to_take).unwrap_or(u32::MAX),
            to_take_sat: to_take_sum.0,
            matches,
        }))
    }
}

fn key(bytes: &[u8]) -> Result<PublicKey, Status> {
    let no_key = |_| Status::invalid_argument(format!("{} bytes are no public key", bytes.len()));
    PublicKey::from_slice(bytes).map_err(no_key)
}

impl Admin {
    /// Has the keeper do something, and waits until it is durable.
    async fn done(
        &self,
        order: impl FnOnce(&mut Keeper) -> Result<Promised<()>, Fault> + Send + 'static,
    ) -> Result<(), Status> {
        let asked = self.desk.ask(order).await;
        let promised = asked.and_then(|result| result).map_err(|fault| status_of(&fault))?;
        match self.durability.clone().wait(promised.ticket).await {
            true => Ok(()),
            false => Err(status_of(&Fault::Stopping)),
        }
    }
}

fn status_of(fault: &Fault) -> Status {
    let text = fault.to_string();
    match fault {
        Fault::Stopping => Status::unavailable(text),
        Fault::Full | Fault::Refused(Refusal::TooManyClients) => Status::resource_exhausted(text),
        Fault::Refused(_) => Status::failed_precondition(text),
    }
}

fn clients(tower: &State) -> Vec<Client> {
    let vault = tower.vault();
    let mut channels_max: BTreeMap<&PublicKey, u32> = vault.clients().map(|(client, _)| (client, 0)).collect();
    channels_max.extend(tower.clients());
    let client = |(client, channels_max): (&PublicKey, u32)| Client {
        client: client.serialize().to_vec(),
        channels_max,
        channels: u32::try_from(tower.held_by(client).count()).unwrap_or(u32::MAX),
        blobs_max: vault.quota(client),
        blobs: vault.count(client),
    };
    channels_max.into_iter().map(client).collect()
}

fn matches(vault: &Vault) -> Vec<Match> {
    let caught = vault.catches().filter_map(|catch| {
        let (taken, lost) = match (catch.spent.is_some(), catch.is_taken()) {
            (false, _) => (Sat::ZERO, Sat::ZERO),
            (true, true) => (catch.loot.opened.value, Sat::ZERO),
            (true, false) => (Sat::ZERO, catch.loot.opened.value),
        };
        let state = caught(catch);
        let found = a_match(vault, catch.blob, catch.loot.outpoint().txid, state)?;
        let (value_sat, taken_sat, lost_sat) = (catch.loot.opened.value.0, taken.0, lost.0);
        Some(Match { is_opened: true, value_sat, taken_sat, lost_sat, ..found })
    });
    let unopened = vault.unopened().rev().filter_map(|Unopened { blob, txid, height, why }| {
        a_match(vault, *blob, *txid, format!("its transaction is in block {height}: {why}"))
    });
    caught.chain(unopened).take(CHANNELS_SHOWN_MAX).collect()
}

fn caught(catch: &Catch) -> String {
    let (height, deadline) = (catch.loot.height, catch.loot.deadline());
    let begun = format!("a revoked commitment in block {height}");
    match catch.spent {
        None => format!("{begun}: to be taken before block {deadline}"),
        Some(spent) if catch.is_taken() => format!("{begun}: taken by {} in block {}", spent.by, spent.height),
        Some(spent) => format!("{begun}: lost to {} in block {}", spent.by, spent.height),
    }
}

fn a_match(vault: &Vault, blob: BlobRef, txid: Txid, state: String) -> Option<Match> {
    let (client, group) = vault.group(blob.group)?;
    Some(Match {
        client: client.serialize().to_vec(),
        group: group.0.to_vec(),
        sequence: u64::from(blob.sequence),
        txid: txid.to_string(),
        state,
        ..Match::default()
    })
}

fn channels(tower: &State) -> Vec<Channel> {
    tower.channels().filter_map(|(_, watched)| channel(watched)).take(CHANNELS_SHOWN_MAX).collect()
}

fn channel(watched: &Watched) -> Option<Channel> {
    let delay = watched.registration.to_self_delay;
    let (state, is_breach, (taken, lost)) = match &watched.phase {
        Phase::Open => return None,
        Phase::Resolved(ended) => ("ended".to_owned(), ended.was_breach, (ended.taken, ended.lost)),
        Phase::Closing(story) => {
            let height = story.height;
            let state = match (story.number, story.is_breach(), story.revoked().is_some()) {
                (None, _, _) => format!("closed by both sides in block {height}"),
                (Some(number), true, _) => {
                    format!("the peer published its revoked commitment {number} in block {height}")
                }
                (Some(number), false, true) => {
                    format!("a commitment {number} without a delayed output, in block {height}")
                }
                (Some(number), false, false) => format!("closed by commitment {number} in block {height}, not revoked"),
            };
            (state, story.is_breach(), story.taken_and_lost(delay))
        }
    };
    Some(Channel {
        funding_outpoint: watched.registration.funding_outpoint.to_string(),
        client: watched.client.serialize().to_vec(),
        state,
        is_breach,
        taken_sat: taken.0,
        lost_sat: lost.0,
    })
}

fn penalty(PenaltyView { txid, inputs, fee, status }: PenaltyView) -> Penalty {
    let inputs = u32::try_from(inputs).unwrap_or(u32::MAX);
    Penalty { txid: txid.to_string(), inputs, fee_sat: fee.0, status }
}

fn words(sync: &SyncState) -> String {
    match sync {
        SyncState::Away { reason } => format!("bitcoind is away: {reason}"),
        SyncState::Syncing { blocks, headers, .. } => format!("{blocks} of {headers} blocks"),
        SyncState::Synced { height } => format!("at the tip, {height}"),
        SyncState::Stalled { height, .. } => format!("at the tip, {height}, which is suspiciously old"),
    }
}
