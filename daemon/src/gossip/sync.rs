//! Which peers are asked (BOLT 7, "Initial Sync"): some for all that is new, and one after the other for the whole graph, a
//! few in a while and each in its turn: one peer alone could keep silent about what it does not like.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_wire::{GossipTimestampFilter, Message};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::intake::{Said, Seated};
use super::{Inner, LOCK, store};

/// Peers that are asked for what is new: enough that something honest is among them, few enough to be read.
const FLOWS_MAX: usize = 8;
/// The next peer is asked after so long, even if this one still answers.
const TURN_MAX: Duration = Duration::from_secs(600);
/// How often is looked whether somebody is to be asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(inner: Arc<Inner>) {
    let mut asked_to_the_end: VecDeque<Instant> = VecDeque::new();
    loop {
        let is_past = |at: &Instant| at.elapsed() > inner.rules.sync_every;
        while asked_to_the_end.front().is_some_and(is_past) {
            asked_to_the_end.pop_front();
        }
        inner.keep_flows();
        let next = if asked_to_the_end.len() < inner.rules.sync_peers { inner.next_to_ask() } else { None };
        let Some(seated) = next else {
            tokio::select! {
                () = inner.seats_changed.notified() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
            continue;
        };
        if inner.ask(&seated).await {
            asked_to_the_end.push_back(Instant::now());
            // What a sync has brought is not to be asked for again after a crash.
            inner.work(store::save).await;
        }
    }
}

impl Inner {
    /// Asks some peers for what is new from now on.
    fn keep_flows(&self) {
        let seats = self.seats();
        let flows = |seated: &&Arc<Seated>| seated.flows.load(Ordering::Relaxed);
        let missing = FLOWS_MAX.saturating_sub(seats.values().filter(flows).count());
        for seated in seats.values().filter(|seated| seated.has_queries && !flows(seated)).take(missing) {
            seated.flows.store(true, Ordering::Relaxed);
            seated.is_asked.store(true, Ordering::Relaxed);
            let filter = GossipTimestampFilter {
                chain_hash: self.chain_hash,
                first_timestamp: Self::now(),
                timestamp_range: u32::MAX,
            };
            seated.link.send(Box::new(Message::GossipTimestampFilter(filter)));
        }
    }

    /// The peer that was never asked, or not for the longest time.
    fn next_to_ask(&self) -> Option<Arc<Seated>> {
        let seats = self.seats();
        let due = seats.values().filter_map(|seated| {
            let asked_at = *seated.asked_at.lock().expect(LOCK);
            let is_due = asked_at.is_none_or(|at| at.elapsed() > self.rules.sync_every);
            (seated.has_queries && is_due).then_some((asked_at, seated))
        });
        due.min_by_key(|(asked_at, _)| *asked_at).map(|(_, seated)| Arc::clone(seated))
    }

    /// True if it has told all that it knows.
    async fn ask(self: &Arc<Self>, seated: &Arc<Seated>) -> bool {
        *seated.asked_at.lock().expect(LOCK) = Some(Instant::now());
        seated.is_asked.store(true, Ordering::Relaxed);
        let (over, is_over) = oneshot::channel();
        seated.put(self, Said::Ask(over), 0);
        matches!(timeout(TURN_MAX, is_over).await, Ok(Ok(true)))
    }
}
