//! Which seeds run, on all cores, and what is said of them.

use std::io::Write;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::counters::Counters;
use crate::run::run;
use crate::support::seeds::seeds_or;

/// How many seeds the ordinary suite runs.
const SUITE: Range<u64> = 0..400;

/// A run of fewer seeds need not have seen everything.
const ENOUGH: u64 = 200;

/// One seed; a panic of the core is a failure like any other.
fn verdict(seed: u64) -> (Option<String>, Counters, Vec<String>) {
    match catch_unwind(AssertUnwindSafe(|| run(seed, None))) {
        Ok(outcome) => (outcome.violation, outcome.counters, outcome.log),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            (Some(format!("panic: {}", text.unwrap_or_default())), Counters::default(), Vec::new())
        }
    }
}

#[test]
fn every_seed_keeps_every_rule() {
    let range = seeds_or(SUITE);
    let next = AtomicU64::new(range.start);
    let total = Mutex::new((Counters::default(), Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= range.end {
                        return;
                    }
                    let (violation, counters, log) = verdict(seed);
                    let mut total = total.lock().unwrap();
                    total.0.add(&counters);
                    if let Some(violation) = violation {
                        total.1.push((seed, violation, log));
                    }
                }
            });
        }
    });
    let (counters, mut failures) = total.into_inner().unwrap();
    failures.sort_by_key(|failure| failure.0);
    let mut out = std::io::stdout().lock();
    for (seed, violation, log) in failures.iter().take(5) {
        let lines = std::env::var("MILLRACE_LOG_LINES").ok().and_then(|text| text.parse().ok()).unwrap_or(12);
        let tail = log.iter().rev().take(lines).rev().map(|line| format!("    {line}\n")).collect::<String>();
        let command =
            format!("MILLRACE_SEEDS={seed}..{} cargo test -p millrace-channel --release --test sim", seed + 1);
        writeln!(out, "seed {seed}: {violation}\n{tail}  again: {command}").unwrap();
    }
    let run = range.end - range.start;
    let missing = if run >= ENOUGH { counters.missing() } else { Vec::new() };
    if !missing.is_empty() {
        writeln!(out, "{}never happened in {run} seeds: {missing:?}", counters.lines()).unwrap();
    }
    writeln!(out, "seeds run: {run}, failed: {}", failures.len()).unwrap();
    assert!(
        failures.is_empty() && missing.is_empty(),
        "{} seeds failed, {} things never happened",
        failures.len(),
        missing.len()
    );
}
