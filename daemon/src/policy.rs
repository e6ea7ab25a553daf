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
/// Earlier policies of a channel that are kept, at most.
const PAST_MAX: usize = 32;
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
    /// Held by whoever makes one policy of another.
    turn: tokio::sync::Mutex<()>,
}

/// What was set for a channel.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Own {
    policy: ForwardPolicy,
    /// What held before, the newest last, as far as it was not long over at the last change.
    past: Vec<Past>,
}

/// What held once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Past {
    policy: ForwardPolicy,
    /// As Unix time in milliseconds.
    until_ms: u64,
}

impl Past {
    const fn is_fresh(&self, unix_ms: u64) -> bool {
        unix_ms < self.until_ms.saturating_add(GRACE_MS)
    }
}

/// The same in a checkpoint: the last of what held before, and apart from it (and after all of these, which is how version 1
/// began) what held before that.
#[derive(Serialize, Deserialize)]
struct Saved {
    policy: ForwardPolicy,
    previous: ForwardPolicy,
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
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Accepted {
    /// What holds.
    pub(crate) policy: ForwardPolicy,
    /// What senders may still know.
    pub(crate) earlier: Vec<ForwardPolicy>,
}

impl Policies {
    /// With what holds for channels that have none of their own.
    #[must_use]
    pub fn new(usual: ForwardPolicy) -> Self {
        let (own, changes, turn) = (RwLock::default(), watch::channel(0).0, tokio::sync::Mutex::default());
        Self { inner: Arc::new(Inner { usual, own, changes, turn }) }
    }

    /// What holds for a channel.
    #[must_use]
    pub fn of(&self, channel_id: &ChannelId) -> ForwardPolicy {
        self.read().get(channel_id).map_or(self.inner.usual, |own| own.policy)
    }

    /// What an HTLC may satisfy.
    pub(crate) fn accepted(&self, channel_id: &ChannelId, unix_ms: u64) -> Accepted {
        match self.read().get(channel_id) {
            None => Accepted { policy: self.inner.usual, earlier: Vec::new() },
            Some(own) => {
                let fresh = own.past.iter().filter(|past| past.is_fresh(unix_ms));
                Accepted { policy: own.policy, earlier: fresh.map(|past| past.policy).collect() }
            }
        }
    }

    /// Puts down what alone holds for a channel from now on: what held before is not taken any more. What is to outlive a
    /// restart, and give senders time, goes through [`Policies::entry`].
    pub fn set(&self, channel_id: ChannelId, policy: ForwardPolicy) {
        self.inner.own.write().expect(LOCK).insert(channel_id, Own { policy, past: Vec::new() });
        self.inner.changes.send_modify(|count| *count += 1);
    }

    /// What makes a policy durable; it holds once that is told.
    #[must_use]
    pub fn entry(channel_id: ChannelId, policy: ForwardPolicy) -> Entry {
        let entry = PolicyEntry::Set { channel_id, policy };
        let bytes = postcard::to_extend(&entry, vec![VERSION]).expect("plain data into memory: nothing can fail");
        Entry::new(Kind::Policy, bytes)
    }

    /// Whoever reads a policy to change it does so in his turn, which lasts until the change holds: or of two changes at the
    /// same time one would be lost.
    pub(crate) async fn turn(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.inner.turn.lock().await
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
        let own = self.read();
        let mut saved: Vec<(ChannelId, Saved)> = Vec::new();
        let mut earlier: Vec<(ChannelId, Vec<Past>)> = Vec::new();
        for (id, Own { policy, past }) in own.iter() {
            let none = Past { policy: *policy, until_ms: 0 };
            let (last, before) = past.split_last().unwrap_or((&none, &[]));
            saved.push((*id, Saved { policy: *policy, previous: last.policy, since_ms: last.until_ms }));
            if !before.is_empty() {
                earlier.push((*id, before.to_vec()));
            }
        }
        let bytes = postcard::to_extend(&saved, vec![VERSION]).expect("plain data into memory: nothing can fail");
        postcard::to_extend(&earlier, bytes).expect("plain data into memory: nothing can fail")
    }

    /// Takes a section back.
    pub(crate) fn restore(&self, section: &[u8]) -> Result<(), String> {
        let (saved, rest): (Vec<(ChannelId, Saved)>, _) =
            postcard::take_from_bytes(body(section)?).map_err(|error| error.to_string())?;
        let earlier: Vec<(ChannelId, Vec<Past>)> = match rest {
            [] => Vec::new(),
            rest => postcard::from_bytes(rest).map_err(|error| error.to_string())?,
        };
        let mut earlier: BTreeMap<ChannelId, Vec<Past>> = earlier.into_iter().collect();
        let own = saved.into_iter().map(|(id, Saved { policy, previous, since_ms })| {
            let mut past = earlier.remove(&id).unwrap_or_default();
            past.push(Past { policy: previous, until_ms: since_ms });
            (id, Own { policy, past })
        });
        *self.inner.own.write().expect(LOCK) = own.collect();
        Ok(())
    }

    fn put(&self, channel_id: ChannelId, policy: ForwardPolicy, since_ms: u64) {
        let mut all = self.inner.own.write().expect(LOCK);
        let usual = self.inner.usual;
        let own = all.entry(channel_id).or_insert_with(|| Own { policy: usual, past: Vec::new() });
        own.past.retain(|past| past.is_fresh(since_ms));
        if own.past.len() == PAST_MAX {
            own.past.remove(0);
        }
        own.past.push(Past { policy: own.policy, until_ms: since_ms });
        own.policy = policy;
        drop(all);
        self.inner.changes.send_modify(|count| *count += 1);
    }

    fn read(&self) -> RwLockReadGuard<'_, BTreeMap<ChannelId, Own>> {
        self.inner.own.read().expect(LOCK)
    }
}

fn decode<T: for<'a> Deserialize<'a>>(bytes: &[u8]) -> Result<T, String> {
    postcard::from_bytes(body(bytes)?).map_err(|error| error.to_string())
}

fn body(bytes: &[u8]) -> Result<&[u8], String> {
    match bytes.split_first() {
        Some((&VERSION, body)) => Ok(body),
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
        let slow = ForwardPolicy { cltv_delta: CltvDelta(200), ..dear };
        assert_eq!(policies.accepted(&id, 0), Accepted { policy: usual, earlier: Vec::new() });
        for (policy, time_ms) in [(dear, 1_000), (slow, 3_000), (slow, 5_000)] {
            assert_eq!(policies.apply(&Policies::entry(id, policy).bytes, time_ms), Ok(()));
        }
        let restarted = Policies::new(usual);
        assert_eq!(restarted.restore(&policies.section()), Ok(()));
        for policies in [policies, restarted] {
            let earlier = |unix_ms| policies.accepted(&id, unix_ms).earlier;
            assert_eq!(policies.of(&id), slow);
            assert_eq!(earlier(600_999), [usual, dear, slow], "each for its own ten minutes");
            assert_eq!(earlier(601_000), [dear, slow]);
            assert_eq!(earlier(603_000), [slow]);
            assert_eq!(earlier(605_000), []);
            policies.forget(&id);
            assert_eq!(policies.of(&id), usual);
        }
    }

    /// As it was written before more than one earlier policy was kept.
    #[test]
    fn a_section_of_version_1() {
        let (policy, dear) = (ForwardPolicy::default(), ForwardPolicy { fee_ppm: 5_000, ..ForwardPolicy::default() });
        let id = ChannelId([1; 32]);
        let saved = vec![(id, Saved { policy: dear, previous: policy, since_ms: 7 })];
        let section = postcard::to_extend(&saved, vec![VERSION]).expect("it can be written");
        let policies = Policies::new(policy);
        assert_eq!(policies.restore(&section), Ok(()));
        assert_eq!(policies.accepted(&id, 8), Accepted { policy: dear, earlier: vec![policy] });
    }

    #[test]
    fn whoever_changes_a_policy_again_and_again_fills_no_memory() {
        let policies = Policies::new(ForwardPolicy::default());
        for _ in 0..1_000 {
            policies.put(ChannelId([1; 32]), ForwardPolicy::default(), 5);
        }
        assert_eq!(policies.accepted(&ChannelId([1; 32]), 6).earlier.len(), PAST_MAX);
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
