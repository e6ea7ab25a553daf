//! Setting on what terms is forwarded.

use millrace_rpc::v1;
use millrace_wire::{ChannelId, CltvDelta, Msat};
use tonic::Status;

use crate::api::channel_text::policy_message;
use crate::api::once::{Finished, Once};
use crate::api::{Shared, fault};
use crate::channels::ChannelState;
use crate::policy::{ForwardPolicy, Policies};

/// Sets the policy of one channel, or of all.
pub(super) async fn set(
    inner: &Shared,
    once: &Once,
    channel_id: Option<ChannelId>,
    request: &v1::SetPolicyRequest,
) -> Result<Finished, Status> {
    let policies = inner.api.payments.policies();
    // One change after the other: each begins with what the one before has left.
    let _turn = policies.turn().await;
    let mut wanted: Vec<(ChannelId, ForwardPolicy)> = Vec::new();
    for channel_id in channels(inner, channel_id)? {
        wanted.push((channel_id, changed(policies.of(&channel_id), request)?));
    }
    let answer = v1::SetPolicyResponse {
        policies: wanted
            .iter()
            .map(|(id, policy)| v1::ChannelPolicy { channel_id: id.0.to_vec(), policy: Some(policy_message(policy)) })
            .collect(),
    };
    let finished = Finished::answer(&answer);
    // In one step with its key: after a crash both are there, or neither.
    let mut entries: Vec<_> = wanted.into_iter().map(|(id, policy)| Policies::entry(id, policy)).collect();
    entries.push(once.entry(&finished.stored));
    inner.api.registry.journal().write(entries).await.map_err(|_| fault::stopping())?;
    // It is told by now; when this is answered, it holds.
    inner.api.payments.catch_up().await;
    Ok(Finished { is_durable: true, ..finished })
}

fn channels(inner: &Shared, channel_id: Option<ChannelId>) -> Result<Vec<ChannelId>, Status> {
    let registry = &inner.api.registry;
    let Some(channel_id) = channel_id else {
        let all = registry.snapshots();
        let open = all.iter().filter(|snapshot| snapshot.state != ChannelState::Closed);
        return Ok(open.map(|snapshot| snapshot.channel_id).collect());
    };
    match registry.snapshot(channel_id) {
        None => Err(fault::not_found("channel", channel_id)),
        Some(snapshot) if snapshot.state == ChannelState::Closed => {
            Err(fault::channel_state(snapshot.state, "have a policy"))
        }
        Some(_) => Ok(vec![channel_id]),
    }
}

fn changed(before: ForwardPolicy, request: &v1::SetPolicyRequest) -> Result<ForwardPolicy, Status> {
    let cltv_delta = match request.cltv_delta_blocks {
        None => before.cltv_delta,
        Some(blocks) => u16::try_from(blocks)
            .map(CltvDelta)
            .map_err(|_| fault::field("cltv_delta_blocks", format!("{blocks} is more than 65535")))?,
    };
    let policy = ForwardPolicy {
        fee_base: request.fee_base_msat.map_or(before.fee_base, Msat),
        fee_ppm: request.fee_ppm.unwrap_or(before.fee_ppm),
        cltv_delta,
        htlc_minimum: request.htlc_minimum_msat.map_or(before.htlc_minimum, Msat),
        htlc_maximum: match request.htlc_maximum_msat {
            None => before.htlc_maximum,
            Some(0) => None,
            Some(most) => Some(Msat(most)),
        },
    };
    policy.check().map_err(|(field, what)| fault::field(field, what))?;
    Ok(policy)
}
