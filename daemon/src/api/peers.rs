//! The service `Peers`: connections to other nodes.

use millrace_rpc::v1::peers_server::Peers;
use millrace_rpc::v1::{self, ConnectResponse, DisconnectResponse, ListPeersResponse};
use tonic::{Request, Response, Status};

use super::once::{self, Finished, once};
use super::{Shared, fault, parse};
use crate::channels::ChannelState;
use crate::peer::PeerInfo;

pub(super) struct PeersService(pub(super) Shared);

#[tonic::async_trait]
impl Peers for PeersService {
    async fn connect(&self, request: Request<v1::ConnectRequest>) -> Result<Response<ConnectResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let node_id = parse::node_id(&request.node_id)?;
        parse::check_address(&request.address)?;
        let address = request.address.clone();
        let stored = once(&self.0, "Peers.Connect", &key, &request, move |inner, mut once| async move {
            let result = async {
                once.begin().await?;
                let info = inner.api.peers.connect(node_id, &address).await.map_err(|error| fault::connect(&error))?;
                Ok(Finished::answer(&ConnectResponse { peer: Some(message(&inner, info)) }))
            };
            let result = result.await;
            (once, result)
        });
        Ok(Response::new(once::answer(&stored.await?)?))
    }

    async fn disconnect(
        &self,
        request: Request<v1::DisconnectRequest>,
    ) -> Result<Response<DisconnectResponse>, Status> {
        let mut request = request.into_inner();
        let key = std::mem::take(&mut request.idempotency_key);
        self.0.ready()?;
        let node_id = parse::node_id(&request.node_id)?;
        let force = request.force;
        let stored = once(&self.0, "Peers.Disconnect", &key, &request, move |inner, mut once| async move {
            let result = async {
                once.begin().await?;
                inner.api.peers.disconnect(node_id, force).map_err(|error| fault::disconnect(&error))?;
                Ok(Finished::answer(&DisconnectResponse {}))
            };
            let result = result.await;
            (once, result)
        });
        Ok(Response::new(once::answer(&stored.await?)?))
    }

    async fn list(&self, _: Request<v1::ListPeersRequest>) -> Result<Response<ListPeersResponse>, Status> {
        self.0.ready()?;
        let inner = &self.0;
        let is_shown = |info: &PeerInfo| info.is_connected || open_channels(inner, info) > 0;
        let peers = inner.api.peers.list().into_iter().filter(is_shown);
        Ok(Response::new(ListPeersResponse { peers: peers.map(|info| message(inner, info)).collect() }))
    }
}

fn open_channels(inner: &Shared, info: &PeerInfo) -> u32 {
    let snapshots = inner.api.registry.snapshots_with(&info.node_id);
    let open = snapshots.iter().filter(|snapshot| snapshot.state != ChannelState::Closed).count();
    u32::try_from(open).unwrap_or(u32::MAX)
}

fn message(inner: &Shared, info: PeerInfo) -> v1::Peer {
    let channels = open_channels(inner, &info);
    v1::Peer {
        node_id: info.node_id.serialize().to_vec(),
        address: info.address.unwrap_or_default(),
        connected: info.is_connected,
        inbound: info.is_inbound,
        features: info.features.as_ref().map(parse::features).unwrap_or_default(),
        channels,
        since_ms: info.since_ms.unwrap_or_default(),
        ping_us: info.ping_us,
        last_error: info.last_error.unwrap_or_default(),
    }
}
