//! On what terms this node forwards over each of its channels (BOLT 7, "The `channel_update` Message").
//!
//! One table for all who need it: what is announced, what forwards are held against, and what people are shown.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use millrace_wire::{ChannelId, CltvDelta, Msat};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

const LOCK: &str = "nothing panics while the policies are locked";

/// What this node asks of those who want an HTLC forwarded over a channel.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
pub struct ForwardPolicy {
    /// Charged for each HTLC.
    pub fee_base: Msat,
    /// Charged in proportion to what is forwarded, in millionths.
    pub fee_ppm: u32,
    /// Blocks between the incoming HTLC's expiry and the outgoing one's.
    pub cltv_delta: CltvDelta,
    /// The least that is forwarded.
    pub htlc_minimum: Msat,
    /// The most that is forwarded; absent: all that the channel can carry.
    pub htlc_maximum: Option<Msat>,
}

impl Default for ForwardPolicy {
    fn default() -> Self {
        Self {
            fee_base: Msat(1_000),
            fee_ppm: 100,
            cltv_delta: CltvDelta(80),
            htlc_minimum: Msat(1),
            htlc_maximum: None,
        }
    }
}

impl ForwardPolicy {
    /// BOLT 7, "HTLC Fees": what is charged for forwarding `amount`, the fraction of a millisatoshi dropped. `None` if it
    /// is more than there can be.
    #[must_use]
    pub fn fee(&self, amount: Msat) -> Option<Msat> {
        let proportional = u128::from(amount.0) * u128::from(self.fee_ppm) / 1_000_000;
        u64::try_from(proportional + u128::from(self.fee_base.0)).ok().map(Msat)
    }
}

/// The policies of all channels. Clones are the same.
#[derive(Clone, Debug)]
pub struct Policies {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    usual: ForwardPolicy,
    own: RwLock<HashMap<ChannelId, ForwardPolicy>>,
    changes: watch::Sender<u64>,
}

impl Policies {
    /// With what holds for channels that have none of their own.
    #[must_use]
    pub fn new(usual: ForwardPolicy) -> Self {
        Self { inner: Arc::new(Inner { usual, own: RwLock::default(), changes: watch::channel(0).0 }) }
    }

    /// What holds for a channel.
    #[must_use]
    pub fn of(&self, channel_id: &ChannelId) -> ForwardPolicy {
        self.inner.own.read().expect(LOCK).get(channel_id).copied().unwrap_or(self.inner.usual)
    }

    /// Puts down what holds for a channel from now on.
    pub fn set(&self, channel_id: ChannelId, policy: ForwardPolicy) {
        self.inner.own.write().expect(LOCK).insert(channel_id, policy);
        self.inner.changes.send_modify(|count| *count += 1);
    }

    /// Counts the changes: whoever announces policies waits for it.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fee_is_a_base_and_a_share_rounded_down() {
        let policy = ForwardPolicy { fee_base: Msat(1_000), fee_ppm: 100, ..ForwardPolicy::default() };
        assert_eq!(policy.fee(Msat(0)), Some(Msat(1_000)));
        assert_eq!(policy.fee(Msat(19_999)), Some(Msat(1_001)));
        assert_eq!(policy.fee(Msat(20_000)), Some(Msat(1_002)));
        let dear = ForwardPolicy { fee_ppm: u32::MAX, ..policy };
        assert_eq!(dear.fee(Msat(u64::MAX)), None);
    }

    #[test]
    fn a_channel_has_the_usual_policy_until_it_has_its_own() {
        let policies = Policies::new(ForwardPolicy::default());
        let changes = policies.changes();
        let own = ForwardPolicy { fee_ppm: 7, ..ForwardPolicy::default() };
        policies.set(ChannelId([1; 32]), own);
        assert_eq!(policies.of(&ChannelId([1; 32])), own);
        assert_eq!(policies.of(&ChannelId([2; 32])), ForwardPolicy::default());
        assert!(changes.has_changed().is_ok_and(|has| has));
    }
}
