//! How often each kind of thing was done: a run in which one never happens proves nothing about it.

use std::collections::BTreeMap;

/// Everything that a run of many seeds must have done.
pub(crate) const KINDS: &[&str] = &[
    "opened by us",
    "opened by ldk",
    "opened with anchors",
    "opened with static_remotekey",
    "opened with scid_alias",
    "opened with zero-conf",
    "opened with a full dance",
    "opening cut",
    "offer",
    "offer of 1 msat",
    "offer around the dust limit",
    "offer of all available",
    "offer refused above available",
    "offer of many",
    "ldk offer",
    "ldk offer of 1 msat",
    "ldk offer around the dust limit",
    "ldk offer of all available",
    "ldk offer of many",
    "483 offered by us at once",
    "483 offered by ldk at once",
    "fulfil",
    "fail",
    "malformed",
    "ldk claim",
    "ldk fail",
    "ldk fail of a bad onion",
    "update_fee",
    "ldk update_fee",
    "cut",
    "cut with messages lost",
    "restart",
    "ldk restart",
    "ldk restart that forgets",
    "block",
    "rest",
    "announced alike",
    "all available taken by ldk",
    "ldk's limit taken by us",
    "mutual close by us",
    "mutual close by ldk",
    "mutual close with htlcs",
    "mutual close cut",
    "mutual close at ldk's dust edge",
    "unilateral close by us",
    "unilateral close by ldk",
    "unilateral close with htlcs",
    "ldk's commitment confirmed",
    "our commitment confirmed",
];

/// Counts by kind.
#[derive(Clone, Default, Debug)]
pub(crate) struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    pub(crate) fn count(&mut self, kind: &'static str) {
        assert!(KINDS.contains(&kind), "{kind} is not in the list");
        *self.0.entry(kind).or_default() += 1;
    }

    pub(crate) fn of(&self, kind: &str) -> u64 {
        self.0.get(kind).copied().unwrap_or(0)
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (kind, count) in &other.0 {
            *self.0.entry(kind).or_default() += count;
        }
    }

    /// The kinds that never happened.
    pub(crate) fn missing(&self) -> Vec<&'static str> {
        KINDS.iter().copied().filter(|kind| self.of(kind) == 0).collect()
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for kind in KINDS {
            writeln!(f, "{:>8}  {kind}", self.of(kind))?;
        }
        Ok(())
    }
}
