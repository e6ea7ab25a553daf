//! Seeds, many at a time: each is played, failures are told with what was done, and everything is counted.
#![allow(clippy::disallowed_methods, reason = "a test reads its environment, prints, and has threads of its own")]

use std::io::Write as _;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::bites::Tamper;
use crate::support::seeds::seeds_or;
use crate::tally::Tally;
use crate::world::{Story, World};

/// The seeds of the ordinary suite.
const SEEDS: Range<u64> = 0..1_000;

/// From so many seeds on, every kind of thing must have been done.
const SEEDS_FOR_ALL_KINDS: u64 = 200;

/// The last lines of a story that are shown.
const STORY_LINES: usize = 400;

/// What went wrong in a seed.
pub(crate) struct Failure {
    pub(crate) what: String,
    story: Vec<String>,
    ldk_log: Vec<String>,
}

/// Plays one seed to its end.
pub(crate) fn play(seed: u64, tamper: Tamper) -> Result<Tally, Failure> {
    let story = Story::default();
    let mut log = None;
    let result = catch_unwind(AssertUnwindSafe(|| {
        let mut world = World::open(seed, &story, tamper)?;
        log = Some(Arc::clone(&world.ldk.parts.log));
        world.play().map(|()| world.tally)
    }));
    let what = match result {
        Ok(Ok(tally)) => return Ok(tally),
        Ok(Err(what)) => what,
        Err(panic) => format!("panic: {}", panic_text(&*panic)),
    };
    let story = story.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).clone();
    Err(Failure { what, story, ldk_log: log.map(|log| log.lines()).unwrap_or_default() })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of another kind").to_owned()
}

impl World {
    /// A whole life.
    fn play(&mut self) -> Result<(), String> {
        self.confirm()?;
        if self.plan.is_full {
            self.fill()?;
        }
        for _ in 0..self.plan.actions {
            self.act()?;
            if self.dice.chance(50) {
                self.connect();
            }
            let steps = self.dice.below(16);
            self.let_talk(steps)?;
        }
        self.end()
    }
}

/// To the real standard output, past the test harness.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).unwrap();
    out.flush().unwrap();
}

fn tell(seed: u64, failure: &Failure) {
    let from = failure.story.len().saturating_sub(STORY_LINES);
    let mut text = format!("\n--- seed {seed} ---\n");
    failure.story[from..].iter().for_each(|line| text += &format!("  {line}\n"));
    if !failure.ldk_log.is_empty() {
        text += "the end of LDK's log:\n";
        failure.ldk_log.iter().for_each(|line| text += &format!("  {line}\n"));
    }
    text += &format!("seed {seed} failed: {}\n", failure.what);
    let next = seed + 1;
    text += &format!("MILLRACE_SEEDS={seed}..{next} cargo test -p millrace-channel --release --test ldk\n");
    print(&text);
}

#[test]
fn seeds_against_ldk() {
    let seeds = seeds_or(SEEDS);
    let next = AtomicU64::new(seeds.start);
    let tally = Mutex::new(Tally::default());
    let failed = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    match play(seed, Tamper::None) {
                        Ok(counts) => tally.lock().unwrap().merge(&counts),
                        Err(failure) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            tell(seed, &failure);
                        }
                    }
                }
            });
        }
    });
    let (run, failed) = (seeds.end - seeds.start, failed.into_inner());
    let tally = tally.into_inner().unwrap();
    let missing = if run >= SEEDS_FOR_ALL_KINDS { tally.missing() } else { Vec::new() };
    if !missing.is_empty() {
        print(&format!("never done: {missing:?}\n"));
    }
    if std::env::var_os("MILLRACE_TALLY").is_some() {
        print(&format!("{tally}"));
    }
    print(&format!("seeds run: {run}, failed: {failed}\n"));
    assert_eq!(failed, 0, "{failed} seeds failed");
    assert!(missing.is_empty(), "never done: {missing:?}");
}
