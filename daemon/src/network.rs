//! What is known of the network beyond our own channels, for those who look for ways through it: read by many, written by
//! gossip alone, and never locked for longer than it takes to copy a pointer.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use millrace_routing::graph::Policy;
use millrace_routing::map::Map;
use millrace_wire::ChannelId;

const LOCK: &str = "nothing panics while the network is locked";

/// The public graph as searches read it, and on what terms our peers forward to us. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    map: RwLock<Arc<Map>>,
    towards_us: RwLock<HashMap<ChannelId, Policy>>,
}

impl Network {
    /// The usable channels of the public graph, as of a short while ago.
    #[must_use]
    pub fn map(&self) -> Arc<Map> {
        Arc::clone(&self.inner.map.read().expect(LOCK))
    }

    /// Replaces it.
    pub fn publish(&self, map: Arc<Map>) {
        *self.inner.map.write().expect(LOCK) = map;
    }

    /// On what terms the peer forwards over this channel to us, if it has said so: what invoices tell as route hints.
    #[must_use]
    pub fn towards_us(&self, channel_id: &ChannelId) -> Option<Policy> {
        self.inner.towards_us.read().expect(LOCK).get(channel_id).copied()
    }

    /// The peer's own terms for this channel.
    pub fn set_towards_us(&self, channel_id: ChannelId, policy: Policy) {
        self.inner.towards_us.write().expect(LOCK).insert(channel_id, policy);
    }

    /// The channel is gone.
    pub fn forget(&self, channel_id: &ChannelId) {
        self.inner.towards_us.write().expect(LOCK).remove(channel_id);
    }
}

#[cfg(test)]
mod tests {
    use millrace_wire::Msat;

    use super::*;

    #[test]
    fn what_a_search_holds_does_not_change_under_it() {
        let network = Network::default();
        let before = network.map();
        network.publish(Arc::new(Map::default()));
        assert!(!Arc::ptr_eq(&before, &network.map()));
    }

    #[test]
    fn a_peers_terms_are_kept_until_the_channel_is_gone() {
        let network = Network::default();
        let policy = Policy {
            is_disabled: false,
            cltv_expiry_delta: 40,
            htlc_minimum: Msat(1),
            htlc_maximum: Msat(2),
            fee_base_msat: 3,
            fee_proportional_millionths: 4,
        };
        let id = ChannelId([1; 32]);
        network.set_towards_us(id, policy);
        assert_eq!(network.towards_us(&id), Some(policy));
        network.forget(&id);
        assert_eq!(network.towards_us(&id), None);
    }
}
