//! How often each kind of fault, record and event happened. A run in which one never happened proves nothing of it.

use std::collections::BTreeMap;

/// Everything that a long run must have seen.
pub const EXPECTED: &[&str] = &[
    // Faults.
    "fault: cut",
    "fault: crash, all kept",
    "fault: crash, some lost",
    "fault: crash while opening",
    "fault: flush held back",
    "fault: disk rolled back",
    "fault: reorg",
    "fault: force close",
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
    "checked: replay equals live",
    // Records.
    "record: opened",
    "record: funding_confirmed",
    "record: funding_unconfirmed",
    "record: ready_sent",
    "record: ready_received",
    "record: commitment_sent",
    "record: commitment_received",
    "record: revocation_received",
    "record: removal_decided",
    "record: preimage_received",
    "record: outcome_released",
    "record: shutdown_sent",
    "record: shutdown_received",
    "record: mutual_close_signed",
    "record: local_data_lost",
    "record: failed",
    "record: chain",
    "record: closed",
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

    pub fn missing(&self) -> Vec<&'static str> {
        EXPECTED.iter().copied().filter(|what| !self.0.contains_key(*what)).collect()
    }

    pub fn lines(&self) -> String {
        self.0.iter().map(|(what, count)| format!("  {count:>9}  {what}\n")).collect()
    }
}
