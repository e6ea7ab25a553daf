//! The service `Graph`: the public graph.

use millrace_routing::graph::NodeId;
use millrace_rpc::v1::graph_server::Graph;
use millrace_rpc::v1::{self, GetGraphChannelResponse, GetGraphNodeResponse, GraphInfoResponse};
use millrace_wire::{Features, ShortChannelId};
use tonic::{Request, Response, Status};

use super::{Shared, fault, parse};
use crate::gossip::{ShownChannel, ShownNode, ShownTerms};

/// Channels of a node that are answered at most.
const CHANNELS_MAX: u32 = 1_000;

pub(super) struct GraphService(pub(super) Shared);

#[tonic::async_trait]
impl Graph for GraphService {
    async fn info(&self, _: Request<v1::GraphInfoRequest>) -> Result<Response<GraphInfoResponse>, Status> {
        self.0.ready()?;
        let info = self.0.api.gossip.info().await;
        Ok(Response::new(GraphInfoResponse {
            channels: count(info.channels),
            policies: count(info.directions),
            nodes: count(info.nodes),
            capacity_sat: info.capacity.0,
            spent_channels: count(info.spent),
            last_sync_ms: info.synced_ms.unwrap_or_default(),
            syncing_with: info.syncing.iter().map(|peer| peer.serialize().to_vec()).collect(),
            listening_to: count(info.flows),
        }))
    }

    async fn get_node(
        &self,
        request: Request<v1::GetGraphNodeRequest>,
    ) -> Result<Response<GetGraphNodeResponse>, Status> {
        self.0.ready()?;
        let v1::GetGraphNodeRequest { node_id, channels_max } = request.into_inner();
        let id = parse::node_id(&node_id)?;
        let most = if channels_max == 0 { CHANNELS_MAX } else { channels_max.min(CHANNELS_MAX) };
        let found = self.0.api.gossip.node(NodeId::from(id), most as usize).await;
        let node = found.ok_or_else(|| fault::not_in_graph("node", hex::encode(&node_id)))?;
        Ok(Response::new(GetGraphNodeResponse { node: Some(node_message(&node)) }))
    }

    async fn get_channel(
        &self,
        request: Request<v1::GetGraphChannelRequest>,
    ) -> Result<Response<GetGraphChannelResponse>, Status> {
        self.0.ready()?;
        let id = ShortChannelId(request.into_inner().scid);
        let found = self.0.api.gossip.channel(id).await;
        let channel = found.ok_or_else(|| fault::not_in_graph("channel", id))?;
        Ok(Response::new(GetGraphChannelResponse { channel: Some(channel_message(&channel)) }))
    }
}

fn node_message(node: &ShownNode) -> v1::GraphNode {
    let mut message = v1::GraphNode {
        node_id: node.id.0.to_vec(),
        channels: node.channels.iter().map(channel_message).collect(),
        channel_count: node.channel_count,
        ..v1::GraphNode::default()
    };
    if let Some(announcement) = &node.announcement {
        let contents = &announcement.parsed().contents;
        let features: Vec<u8> = contents.features.le_flags().iter().rev().copied().collect();
        let alias = contents.alias.0.split(|byte| *byte == 0).next().unwrap_or_default();
        message.announced = true;
        message.alias = String::from_utf8_lossy(alias).into_owned();
        message.color = contents.rgb.to_vec();
        message.addresses = contents.addresses.iter().map(ToString::to_string).collect();
        message.features = parse::features(&Features::from_be_bytes(&features));
        message.announced_ms = u64::from(contents.timestamp) * 1000;
    }
    message
}

fn channel_message(channel: &ShownChannel) -> v1::GraphChannel {
    let [node_id_1, node_id_2] = channel.nodes.map(|node| node.0.to_vec());
    let [policy_1, policy_2] = channel.terms.each_ref().map(|terms| terms.as_ref().map(policy_message));
    v1::GraphChannel {
        scid: parse::scid(channel.id),
        node_id_1,
        node_id_2,
        capacity_sat: channel.capacity.0,
        policy_1,
        policy_2,
        known_since_ms: u64::from(channel.known_since) * 1000,
        spent_height: channel.spent_at.map_or(0, |height| height.0),
    }
}

fn policy_message(terms: &ShownTerms) -> v1::GraphPolicy {
    let policy = &terms.policy;
    v1::GraphPolicy {
        disabled: policy.is_disabled,
        fee_base_msat: u64::from(policy.fee_base_msat),
        fee_ppm: policy.fee_proportional_millionths,
        cltv_delta: u32::from(policy.cltv_expiry_delta),
        htlc_minimum_msat: policy.htlc_minimum.0,
        htlc_maximum_msat: policy.htlc_maximum.0,
        updated_ms: u64::from(terms.timestamp) * 1000,
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
