//! The two threads behind the events: one says what is settled, the other folds it into the view.
//!
//! A step is told to the folds by the shard that wrote it, and shards do not know of each other. To know that all of a
//! frame was told, one asks: first the journal, whether everything submitted so far is flushed and handed to the shards;
//! then each shard, which answers after the flushes it was handed; then the payments' task, which answers after the news
//! it was told. Nobody whom this asks ever waits for these threads.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use millrace_journal::Journal;

use crate::channels::Registry;
use crate::payments::Payments;
use crate::view::Past;

/// Between two rounds: events come in batches, and neither a person nor a list needs them sooner.
const PAUSE: Duration = Duration::from_millis(1);
/// How long the shards may take to answer; they end without answering when the node stops.
const PATIENCE: Duration = Duration::from_secs(2);
/// The view gives way to all others.
const NICENESS: i32 = 10;

/// The threads.
pub(crate) struct Keeper {
    past: Past,
    settler: JoinHandle<()>,
    folder: JoinHandle<()>,
}

/// Starts them. To be called on a tokio runtime.
///
/// # Errors
/// If there are no threads to be had.
pub(crate) fn start(
    past: Past,
    payments: Arc<Payments>,
    registry: Registry,
    journal: Arc<Journal>,
) -> io::Result<Keeper> {
    let settling = past.clone();
    let settling_on = tokio::runtime::Handle::current();
    let settler = std::thread::Builder::new().name("events".to_owned()).spawn(move || {
        while settling.log.wait_for_work() {
            if !settle(&settling, &payments, &registry, &journal, &settling_on) {
                break;
            }
            std::thread::sleep(PAUSE);
        }
    })?;
    let folding = past.clone();
    let runtime = tokio::runtime::Handle::current();
    let folder = std::thread::Builder::new().name("view".to_owned()).spawn(move || fold(&folding, &runtime))?;
    Ok(Keeper { past, settler, folder })
}

impl Keeper {
    /// Ends them, after what there is to do.
    pub(crate) fn end(self) {
        self.past.log.close();
        for thread in [self.settler, self.folder] {
            if thread.join().is_err() {
                tracing::error!("a thread of the events panicked");
            }
        }
        self.past.view.flush();
    }
}

/// False when the node has stopped.
fn settle(
    past: &Past,
    payments: &Payments,
    registry: &Registry,
    journal: &Journal,
    runtime: &tokio::runtime::Handle,
) -> bool {
    let end = journal.durable_end();
    if end <= past.log.settled() || !payments.is_running() {
        return true;
    }
    if journal.flush_barrier().is_err() {
        return false;
    }
    let told = async { tokio::time::timeout(PATIENCE, registry.all_told().wait()).await };
    if runtime.block_on(told).is_err() {
        // Shards that answer nobody have ended, or are about to.
        return !past.log.is_closed();
    }
    if !payments.barrier() {
        return false;
    }
    past.log.settle(end);
    true
}

fn fold(past: &Past, runtime: &tokio::runtime::Handle) {
    // A thread that may not be nice is only a little less polite.
    let _nice = rustix::process::nice(NICENESS);
    let mut settled = past.log.watch_settled();
    loop {
        if let Err(error) = past.view.fold(&past.log) {
            tracing::error!(%error, "the view cannot be folded: lists and look-ups are refused until the next start");
            past.view.stop(&error);
            return;
        }
        if past.log.is_closed() {
            return;
        }
        if runtime.block_on(settled.changed()).is_err() {
            return;
        }
    }
}
