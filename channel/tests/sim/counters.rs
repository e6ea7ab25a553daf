//! How often each kind of fault, record and event happened. A run in which one never happened proves nothing of it.

use std::collections::BTreeMap;

use crate::kinds::kinds;

/// Everything that a long run must have seen, besides every kind of record.
pub const EXPECTED: &[&str] = &[
    // Faults.
    "fault: cut",
    "fault: crash, all kept",
    "fault: crash, some lost",
    "fault: crash while opening",
    "fault: flush held back",
    "fault: disk rolled back",
    "fault: reorg",
    "fault: crash amid a reorg",
    "fault: force close",
    "fault: a revoked commitment is published",
    "fault: a thief's HTLC transaction",
    // What people do.
    "act: pay direct",
    "act: pay by forward",
    "act: dust",
    "act: fulfil",
    "act: fail",
    "act: malformed",
    "act: update fee",
    "act: close together",
    // What must have been held against its rule.
    "checked: D1",
    "checked: D2",
    "checked: D3",
    "checked: D4",
    "checked: D5",
    "checked: D9",
    "checked: D11",
    "checked: D13",
    "checked: preimage ahead of its record",
    "checked: a thief has nothing",
    "a breach with HTLCs of the log",
    "checked: replay equals live",
];

/// Counts by name.
#[derive(Clone, Default, Debug)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    pub fn count(&mut self, what: &str) {
        *self.0.entry(what.to_owned()).or_default() += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what.clone()).or_default() += count;
        }
    }

    pub fn missing(&self) -> Vec<String> {
        let records = kinds().into_iter().map(|kind| format!("record: {kind}"));
        let expected = EXPECTED.iter().map(|what| (*what).to_owned()).chain(records);
        expected.filter(|what| !self.0.contains_key(what)).collect()
    }

    pub fn lines(&self) -> String {
        self.0.iter().map(|(what, count)| format!("  {count:>9}  {what}\n")).collect()
    }
}
