//! The service `Node`: who the node is, how far it is, and how to stop it.

use millrace_chain::SyncState;
use millrace_rpc::v1::node_server::Node;
use millrace_rpc::v1::{
    self, AnnounceRequest, AnnounceResponse, ChannelCounts, GetInfoResponse, GetStatusResponse, NodeFace, StartStage,
    StopResponse,
};
use millrace_wire::Features;
use tonic::{Request, Response, Status};

use super::once::{self, Finished, once};
use super::{Shared, fault, parse};
use crate::announce::address::{AddressError, NodeAddress};
use crate::announce::node::{ADDRESSES_MAX, ALIAS_BYTES_MAX, Face, Wishes};
use crate::channels::ChannelState;
use crate::config::network_name;
use crate::readiness::Readiness;

pub(super) struct NodeService(pub(super) Shared);

#[tonic::async_trait]
impl Node for NodeService {
    async fn get_info(&self, _: Request<v1::GetInfoRequest>) -> Result<Response<GetInfoResponse>, Status> {
        let inner = &self.0;
        inner.ready()?;
        let api = &inner.api;
        let (tip_height, tip_hash) = api.wallet.tip().await.map_err(|_| fault::stopping())?;
        let sync = api.sync.borrow().clone();
        let (sync_state, chain_height) = match sync {
            SyncState::Synced { height } | SyncState::Stalled { height, .. } => (v1::SyncState::Synced, height),
            SyncState::Syncing { blocks, .. } => (v1::SyncState::Syncing, blocks),
            SyncState::Away { .. } => (v1::SyncState::ChainAway, 0),
        };
        let peers = api.peers.list();
        let features = Features::ours(!api.config.channel.zero_conf_peers.is_empty());
        let shown = api.announcer.shown();
        Ok(Response::new(GetInfoResponse {
            node_id: api.keys.node_id().serialize().to_vec(),
            alias: shown.face.alias.clone(),
            network: network_name(api.config.network).to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tip_height,
            tip_hash: parse::block_hash_bytes(&tip_hash),
            sync_state: sync_state.into(),
            chain_height,
            channels: Some(counts(inner)),
            peers_connected: count(peers.iter().filter(|peer| peer.is_connected)),
            uptime_s: inner.started.elapsed().as_secs(),
            features: parse::features(&features),
            listen_addresses: api.listening.borrow().iter().map(ToString::to_string).collect(),
            face: Some(face_message(&shown.face)),
            announced_s: shown.announced_s.unwrap_or_default(),
        }))
    }

    async fn get_status(&self, _: Request<v1::GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let api = &self.0.api;
        let readiness = api.readiness.borrow().clone();
        let (stage, done, total, message) = match readiness {
            Readiness::Recovering => (StartStage::Journal, 0, 0, "Reading the journal.".to_owned()),
            Readiness::CatchingUp { height, headers } => {
                let message = match &*api.sync.borrow() {
                    SyncState::Away { reason } => format!("Waiting for bitcoind: {reason}"),
                    SyncState::Syncing { blocks, headers, .. } => {
                        format!("Following the chain: {blocks} of {headers} blocks.")
                    }
                    SyncState::Synced { .. } | SyncState::Stalled { .. } => {
                        format!("Following the chain, at height {height}.")
                    }
                };
                (StartStage::Chain, u64::from(height), u64::from(headers.unwrap_or_default()), message)
            }
            Readiness::Ready => (StartStage::Ready, 0, 0, "Ready.".to_owned()),
            Readiness::Stopping => (StartStage::Stopping, 0, 0, "Shutting down.".to_owned()),
        };
        let network = network_name(api.config.network).to_owned();
        Ok(Response::new(GetStatusResponse { stage: stage.into(), done, total, message, network }))
    }

    async fn stop(&self, request: Request<v1::StopRequest>) -> Result<Response<StopResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let stored = once(&self.0, "Node.Stop", &key, &request, |inner, once| async move {
            let finished = Finished { is_durable: true, ..Finished::answer(&StopResponse {}) };
            let written = once.write_result(&finished.stored).await;
            if written.is_ok() {
                inner.api.trigger.stop();
            }
            (once, written.map(|()| finished))
        });
        Ok(Response::new(once::answer(&stored.await?)?))
    }

    async fn announce(&self, request: Request<AnnounceRequest>) -> Result<Response<AnnounceResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let wishes = wishes(&request)?;
        let stored = once(&self.0, "Node.Announce", &key, &request, |inner, once| async move {
            let announcer = &inner.api.announcer;
            let (entry, face) = announcer.wish(wishes);
            let registry = &inner.api.registry;
            let answer = AnnounceResponse {
                face: Some(face_message(&face)),
                has_announced_channel: registry.snapshots().iter().any(|one| one.announcement.is_some()),
            };
            let finished = Finished { is_durable: true, ..Finished::answer(&answer) };
            let written = registry.journal().write(vec![entry, once.entry(&finished.stored)]).await;
            (once, written.map(|_| finished).map_err(|_| fault::stopping()))
        });
        Ok(Response::new(once::answer(&stored.await?)?))
    }
}

fn wishes(request: &AnnounceRequest) -> Result<Wishes, Status> {
    if let Some(alias) = request.alias.as_ref().filter(|alias| alias.len() > ALIAS_BYTES_MAX) {
        return Err(fault::field("alias", format!("{} bytes are more than {ALIAS_BYTES_MAX}", alias.len())));
    }
    let color = request.color.as_ref().map(|color| color.parse());
    let color = color.transpose().map_err(|()| fault::field("color", "expected a colour, such as #3399ff"))?;
    let addresses = request.addresses.as_ref().map(|list| addresses(&list.addresses)).transpose()?;
    Ok(Wishes { alias: request.alias.clone(), color, addresses })
}

fn addresses(texts: &[String]) -> Result<Vec<NodeAddress>, Status> {
    if texts.len() > ADDRESSES_MAX {
        return Err(fault::field("addresses", format!("{} are more than {ADDRESSES_MAX}", texts.len())));
    }
    let one = |text: &String| text.parse().map_err(|error: AddressError| fault::field("addresses", error.to_string()));
    texts.iter().map(one).collect()
}

fn face_message(face: &Face) -> NodeFace {
    let addresses = face.addresses.iter().map(ToString::to_string).collect();
    NodeFace { alias: face.alias.clone(), color: face.color.to_string(), addresses }
}

fn counts(inner: &Shared) -> ChannelCounts {
    let snapshots = inner.api.registry.snapshots();
    let of = |wanted: &dyn Fn(&crate::channels::ChannelSnapshot) -> bool| {
        count(snapshots.iter().filter(|snapshot| wanted(snapshot)))
    };
    ChannelCounts {
        opening: of(&|snapshot| snapshot.state == ChannelState::Opening),
        usable: of(&|snapshot| snapshot.is_usable()),
        offline: of(&|snapshot| snapshot.state == ChannelState::Normal && !snapshot.is_online),
        closing: of(&|snapshot| {
            matches!(snapshot.state, ChannelState::ShuttingDown | ChannelState::Closing | ChannelState::OnChain)
        }),
        closed: u32::try_from(inner.past.view.closed_channels()).unwrap_or(u32::MAX),
    }
}

fn count<T>(all: impl Iterator<Item = T>) -> u32 {
    u32::try_from(all.count()).unwrap_or(u32::MAX)
}
