//! Signatures made and checked on all cores at once.
//!
//! A batch is cut into chunks, which whoever is free takes: the shard that needs the result works on it as well, so it
//! never waits for a chunk that nobody has begun. Small batches stay where they are: handing one over costs more.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use millrace_channel::curve::{Curve, Serial, SignJob, VerifyJob, is_valid, sign};
use secp256k1::ecdsa::Signature;

/// From so many jobs on, a batch is shared: half a millisecond of work.
const SHARED_FROM: usize = 24;
/// Jobs that are taken at a time.
const CHUNK: usize = 8;

const LOCK: &str = "nothing panics while the pool is locked";

/// The pool. Clones are the same; its threads end with the last of them.
#[derive(Clone)]
pub(crate) struct CurvePool(Arc<Pool>);

struct Pool {
    queue: Arc<Queue>,
    helpers: usize,
}

#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    arrived: Condvar,
}

#[derive(Default)]
struct State {
    batches: VecDeque<Arc<dyn Work>>,
    is_over: bool,
}

/// A batch that may be worked on by anybody.
trait Work: Send + Sync {
    /// Works until no chunk is left to begin.
    fn work(&self);
}

impl CurvePool {
    /// A pool with so many threads beside those that ask.
    pub(crate) fn new(helpers: usize) -> std::io::Result<Self> {
        let pool = Self(Arc::new(Pool { queue: Arc::default(), helpers }));
        for number in 0..helpers {
            let queue = Arc::clone(&pool.0.queue);
            std::thread::Builder::new().name(format!("curve-{number}")).spawn(move || queue.help())?;
        }
        Ok(pool)
    }

    fn share<J, R>(&self, jobs: &[J], run: fn(&J) -> R) -> Vec<R>
    where
        J: Clone + Send + Sync + 'static,
        R: Send + 'static,
    {
        let batch = Arc::new(Batch {
            run,
            next: AtomicUsize::new(0),
            results: Mutex::new(Results { by_chunk: (0..jobs.len().div_ceil(CHUNK)).map(|_| None).collect(), done: 0 }),
            all_done: Condvar::new(),
            jobs: jobs.to_vec(),
        });
        if self.0.helpers > 0 {
            self.0.queue.put(Arc::clone(&batch) as Arc<dyn Work>);
        }
        batch.work();
        batch.wait()
    }
}

impl Curve for CurvePool {
    fn sign_all(&self, jobs: &[SignJob], out: &mut Vec<Signature>) {
        if jobs.len() < SHARED_FROM {
            return Serial.sign_all(jobs, out);
        }
        out.extend(self.share(jobs, |job: &SignJob| sign(&job.digest, &job.key)));
    }

    fn verify_all(&self, jobs: &[VerifyJob]) -> Result<(), usize> {
        if jobs.len() < SHARED_FROM {
            return Serial.verify_all(jobs);
        }
        match self.share(jobs, is_valid).iter().position(|is_valid| !is_valid) {
            Some(bad) => Err(bad),
            None => Ok(()),
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.state.lock().expect(LOCK).is_over = true;
        self.queue.arrived.notify_all();
    }
}

impl Queue {
    fn put(&self, batch: Arc<dyn Work>) {
        self.state.lock().expect(LOCK).batches.push_back(batch);
        self.arrived.notify_all();
    }

    fn help(&self) {
        while let Some(batch) = self.next() {
            batch.work();
            // Nothing is left to begin in it: nobody else needs to look.
            self.state.lock().expect(LOCK).batches.retain(|other| !Arc::ptr_eq(other, &batch));
        }
    }

    fn next(&self) -> Option<Arc<dyn Work>> {
        let mut state = self.state.lock().expect(LOCK);
        loop {
            if state.is_over {
                return None;
            }
            if let Some(batch) = state.batches.front() {
                return Some(Arc::clone(batch));
            }
            state = self.arrived.wait(state).expect(LOCK);
        }
    }
}

struct Batch<J, R> {
    jobs: Vec<J>,
    run: fn(&J) -> R,
    next: AtomicUsize,
    results: Mutex<Results<R>>,
    all_done: Condvar,
}

struct Results<R> {
    by_chunk: Vec<Option<Vec<R>>>,
    done: usize,
}

impl<J: Send + Sync, R: Send> Work for Batch<J, R> {
    fn work(&self) {
        loop {
            let chunk = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(jobs) = self.jobs.chunks(CHUNK).nth(chunk) else { return };
            let made = jobs.iter().map(self.run).collect();
            let mut results = self.results.lock().expect(LOCK);
            results.by_chunk[chunk] = Some(made);
            results.done += 1;
            if results.done == results.by_chunk.len() {
                self.all_done.notify_all();
            }
        }
    }
}

impl<J, R> Batch<J, R> {
    fn wait(&self) -> Vec<R> {
        let mut results = self.results.lock().expect(LOCK);
        while results.done < results.by_chunk.len() {
            results = self.all_done.wait(results).expect(LOCK);
        }
        results.by_chunk.iter_mut().flat_map(|made| made.take().expect("all chunks are done")).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use secp256k1::{SECP256K1, SecretKey};

    use super::*;

    fn jobs(count: u8) -> Vec<SignJob> {
        (0..count).map(|n| SignJob { digest: [n; 32], key: SecretKey::from_slice(&[n + 1; 32]).unwrap() }).collect()
    }

    #[test]
    fn signs_and_checks_as_the_serial_one_does() {
        let pool = CurvePool::new(2).unwrap();
        for count in [0, 1, 23, 24, 25, 100] {
            let jobs = jobs(count);
            let (mut shared, mut serial) = (Vec::new(), Vec::new());
            pool.sign_all(&jobs, &mut shared);
            Serial.sign_all(&jobs, &mut serial);
            assert_eq!(shared, serial, "{count} jobs");
            let mut checks: Vec<VerifyJob> = jobs
                .iter()
                .zip(&shared)
                .map(|(job, signature)| VerifyJob {
                    digest: job.digest,
                    key: job.key.public_key(SECP256K1),
                    signature: *signature,
                })
                .collect();
            assert_eq!(pool.verify_all(&checks), Ok(()));
            if count == 100 {
                checks[93].digest[0] ^= 1;
                assert_eq!(pool.verify_all(&checks), Err(93));
                checks[17].digest[0] ^= 1;
                assert_eq!(pool.verify_all(&checks), Err(17));
            }
        }
    }

    #[test]
    fn many_ask_at_once() {
        let pool = CurvePool::new(1).unwrap();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let pool = pool.clone();
                std::thread::spawn(move || {
                    let jobs = jobs(60);
                    let (mut shared, mut serial) = (Vec::new(), Vec::new());
                    pool.sign_all(&jobs, &mut shared);
                    Serial.sign_all(&jobs, &mut serial);
                    shared == serial
                })
            })
            .collect();
        for thread in threads {
            assert!(thread.join().unwrap());
        }
    }
}
