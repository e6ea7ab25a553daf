//! What a mesh asks of one of our daemons, beside what every network asks: its policies, and how much of the graph it knows.

use millrace_rpc::v1::{GraphInfoRequest, SetPolicyRequest};

use crate::network::{Error, random_key};
use crate::node::Node;
use crate::plan::PolicyPlan;

/// Sets what it asks for forwarding over a channel.
pub(super) async fn set_policy(node: &Node, channel_id: &[u8], policy: &PolicyPlan) -> Result<(), Error> {
    let request = SetPolicyRequest {
        idempotency_key: random_key(),
        channel_id: channel_id.to_vec(),
        fee_base_msat: policy.fee_base_msat,
        fee_ppm: policy.fee_ppm,
        cltv_delta_blocks: policy.cltv_delta.map(u32::from),
        htlc_minimum_msat: policy.htlc_minimum_msat,
        htlc_maximum_msat: policy.htlc_maximum_msat,
    };
    let answer = node.client()?.channels.set_policy(request).await;
    answer.map(drop).map_err(|status| node.call_failed(&status))
}

/// How many channels of the public graph it knows with the terms of both sides.
pub(super) async fn graph_channels(node: &Node) -> Result<usize, Error> {
    let answer = node.client()?.graph.info(GraphInfoRequest {}).await;
    let info = answer.map_err(|status| node.call_failed(&status))?.into_inner();
    Ok(info.policies as usize / 2)
}
