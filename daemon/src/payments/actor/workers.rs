//! Those who do for the payments' task what would hold it up: curve work, searches, files.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::super::refusal::PayRefusal;
use super::super::send::{Found, Job};

/// Something to be done.
pub(crate) type Work = Box<dyn FnOnce() + Send>;
/// Who is told what a search has found.
pub(crate) type Finder = Box<dyn FnOnce(Result<Found, PayRefusal>) + Send>;

/// The workers. Each call returns at once or after the work, as it likes; the task is told by its queue.
pub(crate) trait Workers: Send + Sync {
    /// Opens onions, for half a millisecond.
    fn peel(&self, work: Work);

    /// Looks for ways, and tells what it has found.
    fn search(&self, job: Job, then: Finder);

    /// Works with files.
    fn write(&self, work: Work);
}

/// The runtime's.
pub(crate) struct RuntimeWorkers {
    /// Searches that are done at the same time: one for each core. The others wait; each payment has one at most.
    searches: Arc<Semaphore>,
}

impl RuntimeWorkers {
    /// To be used on a runtime only.
    pub(crate) fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self { searches: Arc::new(Semaphore::new(cores)) }
    }
}

impl Workers for RuntimeWorkers {
    fn peel(&self, work: Work) {
        tokio::spawn(async move { work() });
    }

    fn search(&self, job: Job, then: Finder) {
        let searches = Arc::clone(&self.searches);
        tokio::spawn(async move {
            let turn = searches.acquire_owned().await;
            let found = tokio::task::spawn_blocking(move || job.run()).await;
            drop(turn);
            then(found.unwrap_or_else(|error| Err(PayRefusal::Internal(error.to_string()))));
        });
    }

    fn write(&self, work: Work) {
        tokio::task::spawn_blocking(work);
    }
}
