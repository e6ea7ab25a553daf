//! The administration: gRPC on a Unix socket in the data folder. Whoever may open the socket is the tower's owner.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use millrace_chain::SyncState;
use millrace_rpc::tower::v1::tower_server::{Tower, TowerServer};
use millrace_rpc::tower::v1::{
    AllowRequest, AllowResponse, Channel, Client, GetStatusRequest, GetStatusResponse, Penalty,
};
use millrace_watchtower::guard::{PenaltyView, View};
use millrace_watchtower::keeper::{Desk, Durability, Fault};
use millrace_watchtower::tower::{Refusal, Tower as State};
use millrace_watchtower::watched::{Phase, Watched};
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
        let client = PublicKey::from_slice(&client)
            .map_err(|_| Status::invalid_argument(format!("{} bytes are no public key", client.len())))?;
        let asked = self.desk.ask(move |keeper| keeper.allow(client, channels_max)).await;
        let promised = asked.and_then(|result| result).map_err(|fault| status_of(&fault))?;
        if !self.durability.clone().wait(promised.ticket).await {
            return Err(status_of(&Fault::Stopping));
        }
        tracing::info!(%client, channels_max, "client allowed");
        Ok(Response::new(AllowResponse {}))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let asked = self.desk.ask(|keeper| (clients(keeper.tower()), channels(keeper.tower()))).await;
        let (clients, channels) = asked.map_err(|fault| status_of(&fault))?;
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
        }))
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
    let client = |(client, channels_max): (&PublicKey, u32)| Client {
        client: client.serialize().to_vec(),
        channels_max,
        channels: u32::try_from(tower.held_by(client).count()).unwrap_or(u32::MAX),
    };
    tower.clients().map(client).collect()
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
