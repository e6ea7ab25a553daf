//! On what terms this node forwards over each of its channels (BOLT 7, "The `channel_update` Message").
//!
//! One table for all who need it: what is announced, what forwards are held against, and what people are shown.

use std::collections::BTreeMap;
use std::sync::{Arc, RwLock, RwLockReadGuard};

use millrace_wire::{ChannelId, CltvDelta, Msat};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::entry::{Entry, Kind};

/// The least that may lie between an incoming and an outgoing expiry: LDK refuses to peel an onion for less, and it must
/// leave time to settle on chain.
pub const CLTV_DELTA_MIN: CltvDelta = CltvDelta(48);
/// BOLT 7 lets a fee be this much, and no more.
pub const FEE_BASE_MAX: Msat = Msat(u32::MAX as u64);

/// How long HTLCs that satisfy the policy before a change are still taken: senders learn of it by gossip.
const GRACE_MS: u64 = 600_000;
/// The version that this build writes.
const VERSION: u8 = 1;
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

    /// Whether it can be announced and forwarded by.
    ///
    /// # Errors
    /// The field by its name in the API and the configuration, and what is wrong with it.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if self.cltv_delta < CLTV_DELTA_MIN {
            let (asked, least) = (self.cltv_delta.0, CLTV_DELTA_MIN.0);
            return Err(("cltv_delta_blocks", format!("{asked} is below the {least} blocks that it takes to be safe")));
        }
        if self.fee_base > FEE_BASE_MAX {
            return Err((
                "fee_base_msat",
                format!("{} is above the {FEE_BASE_MAX} that can be announced", self.fee_base),
            ));
        }
        if let Some(most) = self.htlc_maximum.filter(|most| *most < self.htlc_minimum.max(Msat(1))) {
            return Err(("htlc_maximum_msat", format!("{most} is below the least, {}", self.htlc_minimum)));
        }
        Ok(())
    }
}

/// The policies of all channels. Clones are the same.
///
/// What the owner has set is a fold over entries of its own ([`Kind::Policy`]), the same live and on replay; it is told
/// of together with payments, which are held against it.
#[derive(Clone, Debug)]
pub struct Policies {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    usual: ForwardPolicy,
    own: RwLock<BTreeMap<ChannelId, Own>>,
    changes: watch::Sender<u64>,
}

/// What was set for a channel.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Own {
    policy: ForwardPolicy,
    /// What held before.
    previous: ForwardPolicy,
    /// When it changed, as Unix time in milliseconds.
    since_ms: u64,
}

/// What is written down. Variants are only ever added at the end.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
enum PolicyEntry {
    /// The owner has set the policy of a channel.
    Set {
        /// Which.
        channel_id: ChannelId,
        /// What holds from now on.
        policy: ForwardPolicy,
    },
}

/// What HTLCs over a channel may be held against: what holds, and what held until a short while ago.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Accepted {
    /// What holds.
    pub(crate) policy: ForwardPolicy,
    /// What senders may still know.
    pub(crate) previous: Option<ForwardPolicy>,
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
        self.read().get(channel_id).map_or(self.inner.usual, |own| own.policy)
    }

    /// What an HTLC may satisfy.
    pub(crate) fn accepted(&self, channel_id: &ChannelId, unix_ms: u64) -> Accepted {
        match self.read().get(channel_id) {
            None => Accepted { policy: self.inner.usual, previous: None },
            Some(own) => {
                let is_fresh = unix_ms < own.since_ms.saturating_add(GRACE_MS);
                Accepted { policy: own.policy, previous: is_fresh.then_some(own.previous) }
            }
        }
    }

    /// Puts down what holds for a channel from now on. What is to outlive a restart goes through [`Policies::entry`].
    pub fn set(&self, channel_id: ChannelId, policy: ForwardPolicy) {
        self.put(channel_id, policy, crate::clock::unix_ms());
    }

    /// What makes a policy durable; it holds once that is told.
    #[must_use]
    pub fn entry(channel_id: ChannelId, policy: ForwardPolicy) -> Entry {
        let entry = PolicyEntry::Set { channel_id, policy };
        let bytes = postcard::to_extend(&entry, vec![VERSION]).expect("plain data into memory: nothing can fail");
        Entry::new(Kind::Policy, bytes)
    }

    /// Counts the changes: whoever announces policies waits for it.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    // --- the fold ---

    /// An entry is durable.
    pub(crate) fn apply(&self, bytes: &[u8], time_ms: u64) -> Result<(), String> {
        let PolicyEntry::Set { channel_id, policy } = decode(bytes)?;
        self.put(channel_id, policy, time_ms);
        Ok(())
    }

    /// The channel is closed.
    pub(crate) fn forget(&self, channel_id: &ChannelId) {
        self.inner.own.write().expect(LOCK).remove(channel_id);
    }

    /// For a checkpoint.
    pub(crate) fn section(&self) -> Vec<u8> {
        let own: Vec<(ChannelId, Own)> = self.read().iter().map(|(id, own)| (*id, *own)).collect();
        postcard::to_extend(&own, vec![VERSION]).expect("plain data into memory: nothing can fail")
    }

    /// Takes a section back.
    pub(crate) fn restore(&self, section: &[u8]) -> Result<(), String> {
        let own: Vec<(ChannelId, Own)> = decode(section)?;
        *self.inner.own.write().expect(LOCK) = own.into_iter().collect();
        Ok(())
    }

    fn put(&self, channel_id: ChannelId, policy: ForwardPolicy, since_ms: u64) {
        let mut all = self.inner.own.write().expect(LOCK);
        let previous = all.get(&channel_id).map_or(self.inner.usual, |own| own.policy);
        all.insert(channel_id, Own { policy, previous, since_ms });
        drop(all);
        self.inner.changes.send_modify(|count| *count += 1);
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ChannelId, Own>> {
        self.inner.own.read().expect(LOCK)
    }
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    match bytes.split_first() {
        Some((&VERSION, body)) => postcard::from_bytes(body).map_err(|error| error.to_string()),
        Some((&version, _)) => Err(format!("version {version}: this build knows version {VERSION}")),
        None => Err("it is empty".to_owned()),
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

    /// As version 1 wrote it on its first day: it must be read for ever.
    #[test]
    fn an_entry_of_version_1() {
        let policy = ForwardPolicy { htlc_maximum: Some(Msat(9)), ..ForwardPolicy::default() };
        let stored = format!("0100{}e807645001 0109", hex::encode([1; 32])).replace(' ', "");
        let entry = Policies::entry(ChannelId([1; 32]), policy);
        assert_eq!((entry.kind, hex::encode(&entry.bytes)), (Kind::Policy, stored));
        let policies = Policies::new(ForwardPolicy::default());
        assert_eq!(policies.apply(&entry.bytes, 5), Ok(()));
        assert_eq!(policies.of(&ChannelId([1; 32])), policy);
        assert!(policies.apply(&[2, 0], 5).is_err_and(|error| error.contains("version 2")));
    }

    #[test]
    fn what_held_before_is_taken_for_ten_minutes_also_after_a_restart() {
        let (usual, id) = (ForwardPolicy::default(), ChannelId([1; 32]));
        let dear = ForwardPolicy { fee_ppm: 5_000, ..usual };
        let policies = Policies::new(usual);
        assert_eq!(policies.accepted(&id, 0), Accepted { policy: usual, previous: None });
        assert_eq!(policies.apply(&Policies::entry(id, dear).bytes, 1_000), Ok(()));
        let restarted = Policies::new(usual);
        assert_eq!(restarted.restore(&policies.section()), Ok(()));
        for policies in [policies, restarted] {
            assert_eq!(policies.accepted(&id, 600_999), Accepted { policy: dear, previous: Some(usual) });
            assert_eq!(policies.accepted(&id, 601_000), Accepted { policy: dear, previous: None });
            policies.forget(&id);
            assert_eq!(policies.of(&id), usual);
        }
    }

    #[test]
    fn a_policy_that_would_lose_money_or_cannot_be_announced() {
        let wrong = |change: fn(&mut ForwardPolicy)| {
            let mut policy = ForwardPolicy::default();
            change(&mut policy);
            policy.check().err().map(|(field, _)| field)
        };
        assert_eq!(wrong(|_| {}), None);
        assert_eq!(wrong(|policy| policy.cltv_delta = CltvDelta(47)), Some("cltv_delta_blocks"));
        assert_eq!(wrong(|policy| policy.cltv_delta = CltvDelta(48)), None);
        assert_eq!(wrong(|policy| policy.fee_base = Msat(1 << 32)), Some("fee_base_msat"));
        assert_eq!(wrong(|policy| policy.htlc_maximum = Some(Msat(0))), Some("htlc_maximum_msat"));
    }
}
