//! The service `Towers`: watchtowers that keep watch while the node is off.

use std::time::Duration;

use millrace_rpc::v1::towers_server::Towers;
use millrace_rpc::v1::{
    self, AddTowerResponse, ErrorDetail, ErrorReason, GetTowerStatusResponse, ListTowersResponse, RemoveTowerResponse,
};
use millrace_watchtower::client::Link;
use millrace_wire::PublicKey;
use tonic::{Request, Response, Status};

use super::once::{self, Finished, once};
use super::{Shared, fault, parse};
use crate::clock;
use crate::towers::{AddError, Mode, Shown, WatchedChannel};

/// How long the answer to `Add` waits for the first try to reach the tower.
const FIRST_TRY: Duration = Duration::from_secs(5);

pub(super) struct TowersService(pub(super) Shared);

#[tonic::async_trait]
impl Towers for TowersService {
    async fn add(&self, request: Request<v1::AddTowerRequest>) -> Result<Response<AddTowerResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let tower = parse::tower(&request.tower)?;
        parse::check_address(&request.address)?;
        let (address, mode) = (request.address.clone(), mode(request.mode)?);
        let stored = once(&self.0, "Towers.Add", &key, &request, move |inner, once| async move {
            let result = async {
                let (towers, registry) = (&inner.api.towers, &inner.api.registry);
                let _changing = towers.changing().await;
                let sweep_script = match towers.sweep_script() {
                    Some(script) => script,
                    None => inner.api.wallet.new_destination().await.map_err(|_| fault::stopping())?,
                };
                let entries = towers.add(tower, address, mode, sweep_script, clock::unix_ms());
                let mut entries = entries.map_err(|error| add_failed(&error))?;
                let stored = once::Stored::Reference(tower.serialize().to_vec());
                entries.push(once.entry(&stored));
                registry.journal().write(entries).await.map_err(|_| fault::stopping())?;
                towers.added(tower, registry);
                Ok(Finished { stored, is_durable: true })
            };
            let result = result.await;
            (once, result)
        });
        let stored = stored.await?;
        if let Some(refusal) = stored.status() {
            return Err(refusal);
        }
        self.first_try(&tower).await;
        let shown = self.0.api.towers.shown().into_iter().find(|one| one.tower == tower);
        Ok(Response::new(AddTowerResponse { tower: shown.map(|shown| message(&shown)) }))
    }

    async fn remove(&self, request: Request<v1::RemoveTowerRequest>) -> Result<Response<RemoveTowerResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let tower = parse::tower(&request.tower)?;
        let stored = once(&self.0, "Towers.Remove", &key, &request, move |inner, once| async move {
            let result = async {
                let towers = &inner.api.towers;
                let _changing = towers.changing().await;
                let entry = towers.remove(&tower).ok_or_else(|| fault::not_found("watchtower", tower))?;
                let finished = Finished { is_durable: true, ..Finished::answer(&RemoveTowerResponse {}) };
                let entries = vec![entry, once.entry(&finished.stored)];
                inner.api.registry.journal().write(entries).await.map_err(|_| fault::stopping())?;
                towers.removed(&tower);
                Ok(finished)
            };
            let result = result.await;
            (once, result)
        });
        Ok(Response::new(once::answer(&stored.await?)?))
    }

    async fn list(&self, _: Request<v1::ListTowersRequest>) -> Result<Response<ListTowersResponse>, Status> {
        self.0.ready()?;
        let towers = self.0.api.towers.shown();
        Ok(Response::new(ListTowersResponse { towers: towers.iter().map(message).collect() }))
    }

    async fn get_status(
        &self,
        request: Request<v1::GetTowerStatusRequest>,
    ) -> Result<Response<GetTowerStatusResponse>, Status> {
        self.0.ready()?;
        let wanted = request.into_inner().tower;
        let wanted = if wanted.is_empty() { None } else { Some(parse::tower(&wanted)?) };
        let mut towers = self.0.api.towers.shown();
        if let Some(wanted) = wanted {
            towers.retain(|one| one.tower == wanted);
            if towers.is_empty() {
                return Err(fault::not_found("watchtower", wanted));
            }
        }
        let lag_max = self.0.api.towers.lag_max();
        let towers = towers.iter().map(|shown| v1::TowerStatus {
            tower: Some(message(shown)),
            channels: shown.channels.iter().map(channel).collect(),
        });
        Ok(Response::new(GetTowerStatusResponse { towers: towers.collect(), lag_max }))
    }
}

impl TowersService {
    /// Waits until the tower is reached, or the first try has failed.
    async fn first_try(&self, tower: &PublicKey) {
        let Some(mut link) = self.0.api.towers.link(tower) else { return };
        let is_tried = |link: &Link| *link == Link::Up || *link != Link::not_called();
        // If it takes longer, the answer says so.
        let _late = tokio::time::timeout(FIRST_TRY, link.wait_for(is_tried)).await;
    }
}

fn add_failed(error: &AddError) -> Status {
    match error {
        AddError::TooMany => ErrorDetail::new(ErrorReason::TooManyRequests).hint("Remove one that is not needed."),
        AddError::OtherMode(_) => {
            ErrorDetail::new(ErrorReason::InvalidField).fact("field", "mode").hint("Remove it, and add it again.")
        }
    }
    .into_status(error.to_string())
}

fn message(shown: &Shown) -> v1::Tower {
    let last_error = match &shown.link {
        Link::Up => String::new(),
        Link::Down(why) => why.clone(),
    };
    v1::Tower {
        tower: shown.tower.serialize().to_vec(),
        address: shown.address.clone(),
        client_key: shown.client_key.serialize().to_vec(),
        connected: shown.link == Link::Up,
        last_error,
        added_ms: shown.added_ms,
        relied_on: shown.is_relied_on,
        channels: u32::try_from(shown.channels.len()).unwrap_or(u32::MAX),
        lag: shown.lag(),
        updates: shown.sent.updates,
        payload_bytes: shown.sent.payload_bytes,
        socket_bytes_sent: shown.sent.socket_bytes_sent,
        mode: match shown.mode {
            Mode::Compact => v1::TowerMode::Compact,
            Mode::Blob => v1::TowerMode::Blob,
        }
        .into(),
    }
}

fn channel(watched: &WatchedChannel) -> v1::TowerChannel {
    v1::TowerChannel {
        channel_id: watched.channel_id.0.to_vec(),
        revoked: watched.revoked,
        acknowledged: watched.acknowledged,
        receipt: watched.receipt.map(|receipt| v1::TowerReceipt {
            next: receipt.next,
            time_s: receipt.time_s,
            signature: receipt.signature.to_vec(),
            group: receipt.group.map(Vec::from).unwrap_or_default(),
        }),
        refused: watched.refused.clone().unwrap_or_default(),
        tower_ahead: watched.is_tower_ahead,
        resolved: watched.is_resolved,
        from: watched.from,
    }
}

fn mode(wanted: i32) -> Result<Mode, Status> {
    match v1::TowerMode::try_from(wanted) {
        Ok(v1::TowerMode::Unspecified | v1::TowerMode::Compact) => Ok(Mode::Compact),
        Ok(v1::TowerMode::Blob) => Ok(Mode::Blob),
        // It must not be told more than was meant for it.
        Err(_) => Err(fault::field("mode", format!("{wanted} is none that this node knows"))),
    }
}
