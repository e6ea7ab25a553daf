//! What the daemon does not offer yet: announced channels, policies, the graph. Each is one function here, called where
//! it belongs, so that only this file changes when the daemon can do it.

use millrace_rpc::v1::OpenChannelRequest;

use crate::network::Error;
use crate::node::Node;
use crate::plan::PolicyPlan;

/// Whether a `millraced` announces channels.
pub(super) const CAN_ANNOUNCE: bool = false;

/// Asks for a channel to be announced. `Channels.Open` has no field for it yet: the channel stays between the two.
pub(super) fn ask_to_announce(request: &mut OpenChannelRequest, public: bool) {
    let _ = (request, public);
}

/// Sets what a `millraced` asks for forwarding over a channel, and says whether it did. There is no call for it yet: its
/// defaults stay.
#[expect(clippy::unused_async, reason = "the call will be one")]
pub(super) async fn set_policy(node: &Node, channel_id: &[u8], policy: &PolicyPlan) -> Result<bool, Error> {
    let _ = (node, channel_id, policy);
    Ok(false)
}

/// How many channels a `millraced` knows of the public graph. There is no call for it yet: it is taken to know those that
/// are wanted.
#[expect(clippy::unused_async, reason = "the call will be one")]
pub(super) async fn graph_channels(node: &Node, wanted: usize) -> Result<usize, Error> {
    let _ = node;
    Ok(wanted)
}
