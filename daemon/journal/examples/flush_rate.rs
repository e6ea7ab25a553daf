//! Flushes and steps per second on this machine: `flush_rate [SECONDS] [THREADS] [STEP_BYTES] [OUTSTANDING]`.
//!
//! Each thread keeps so many steps outstanding and submits the next when one is durable, as channels
//! do. The journal is made in a new folder below the current one and removed afterwards.

use std::error::Error;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use millrace_journal::{Flush, Journal, Options, SubmitError, Ticket, Wake};

struct Outbox(mpsc::Sender<Flush>);

impl Wake for Outbox {
    fn durable(&self, flush: &Flush) {
        let _ended = self.0.send(*flush);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse());
    let (seconds, threads) = (next(3)?, next(2)?);
    let (step_bytes, outstanding) = (next(1500)?, next(50)?);
    let dir = format!("flush_rate.{}", std::process::id());
    let dir = Path::new(&dir);
    let (journal, _) = Journal::open(dir, Options::default())?;
    let began = Instant::now();
    let end = began + Duration::from_secs(seconds as u64);
    std::thread::scope(|scope| {
        let run = || load(&journal, end, step_bytes, outstanding);
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        running.into_iter().try_for_each(|one| one.join().expect("a load does not panic"))
    })?;
    journal.flush_barrier()?;
    report(&journal, began.elapsed());
    journal.close();
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

fn load(journal: &Journal, end: Instant, step_bytes: usize, outstanding: usize) -> Result<(), SubmitError> {
    let (sender, flushes) = mpsc::channel();
    let wake = Arc::new(Outbox(sender));
    let mut waiting: Vec<Ticket> = Vec::new();
    while Instant::now() < end {
        while waiting.len() < outstanding {
            waiting.push(journal.submit(vec![7; step_bytes], Some(wake.clone()))?);
        }
        let Ok(flush) = flushes.recv() else { break };
        waiting.retain(|ticket| *ticket > flush.up_to());
    }
    Ok(())
}

fn report(journal: &Journal, took: Duration) {
    let stats = journal.stats();
    let per_second = |count: u64| count as f64 / took.as_secs_f64();
    println!("flushes/s        {:>12.0}", per_second(stats.flushes));
    println!("steps/s          {:>12.0}", per_second(stats.steps));
    println!("steps per flush  {:>12.1}", stats.steps as f64 / stats.flushes.max(1) as f64);
    println!("MiB/s            {:>12.1}", per_second(stats.bytes) / f64::from(1 << 20));
    println!("flush µs, mean   {:>12}", stats.flush_us_total / stats.flushes.max(1));
    println!("flush µs, max    {:>12}", stats.flush_us_max);
    println!("other syncs      {:>12}", stats.syncs - stats.flushes);
}
