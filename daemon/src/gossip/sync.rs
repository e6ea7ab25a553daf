//! Which peers are asked (BOLT 7, "Initial Sync"): some for all that is new, and one after the other for the whole graph, a
//! few in a while and each in its turn: one peer alone could keep silent about what it does not like.
//!
//! Who is to be asked for the whole graph is asked for what is new only after that. LDK answers no `query_short_channel_ids`;
//! it says all that it knows after the first `gossip_timestamp_filter`, if that goes far enough back, and heeds no second one.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_routing::graph::STALE_AFTER_SECONDS;
use millrace_wire::{GossipTimestampFilter, Message};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use super::intake::{Said, Seated};
use super::{Inner, LOCK, store};

/// Peers that are asked for what is new: enough that something honest is among them, few enough to be read.
const FLOWS_MAX: usize = 8;
/// The next peer is asked after so long, even if this one still answers.
const TURN_MAX: Duration = Duration::from_secs(600);
/// A peer that has not had its turn after so long is asked for what is new all the same.
const TURN_WAIT_MAX: Duration = Duration::from_secs(10);
/// What is new begins so long ago, in seconds: clocks differ, and LDK dates what it says by the last block.
const NEWS_SECONDS: u32 = 3_600;
/// How often is looked whether somebody is to be asked.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(super) async fn run(inner: Arc<Inner>) {
    let mut asked_to_the_end: VecDeque<Instant> = VecDeque::new();
    loop {
        let is_past = |at: &Instant| at.elapsed() > inner.rules.sync_every;
        while asked_to_the_end.front().is_some_and(is_past) {
            asked_to_the_end.pop_front();
        }
        let may_ask = asked_to_the_end.len() < inner.rules.sync_peers;
        inner.keep_flows(may_ask);
        let Some(seated) = may_ask.then(|| inner.next_to_ask()).flatten() else {
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
    /// Asks some peers for what is new. Those that will be asked for the whole graph have time until their turn.
    fn keep_flows(&self, may_ask: bool) {
        let seats = self.seats();
        let flows = |seated: &Seated| seated.flows.load(Ordering::Relaxed);
        let waits = |seated: &Seated| {
            let is_asked = seated.asked_at.lock().expect(LOCK).is_some();
            may_ask && !is_asked && seated.since.elapsed() < TURN_WAIT_MAX
        };
        let missing = FLOWS_MAX.saturating_sub(seats.values().filter(|seated| flows(seated)).count());
        let next = seats.values().filter(|seated| {
            let is_asking = seated.is_asking.load(Ordering::Relaxed);
            seated.has_queries && !flows(seated) && !is_asking && !waits(seated)
        });
        next.take(missing).for_each(|seated| self.ask_for_news(seated, true));
    }

    /// Asks a peer for what is new, once; with all that is not stale if its answers leave open what it knows.
    pub(super) fn ask_for_news(&self, seated: &Seated, tells_times: bool) {
        if seated.flows.swap(true, Ordering::Relaxed) {
            return;
        }
        seated.is_asked.store(true, Ordering::Relaxed);
        let seconds = if tells_times { NEWS_SECONDS } else { STALE_AFTER_SECONDS };
        let filter = GossipTimestampFilter {
            chain_hash: self.chain_hash,
            first_timestamp: Self::now().saturating_sub(seconds),
            timestamp_range: u32::MAX,
        };
        seated.link.send(Box::new(Message::GossipTimestampFilter(filter)));
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
        seated.is_asking.store(true, Ordering::Relaxed);
        let (over, mut is_over) = oneshot::channel();
        seated.put(self, Said::Ask(over), 0);
        let turn = async {
            loop {
                tokio::select! {
                    is_whole = &mut is_over => return is_whole,
                    () = tokio::time::sleep(LOOK_EVERY) => self.keep_flows(true),
                }
            }
        };
        match timeout(TURN_MAX, turn).await {
            Ok(Ok(is_whole)) => is_whole,
            // There was no room for the question, or the connection has ended.
            Ok(Err(_)) => {
                seated.is_asking.store(false, Ordering::Relaxed);
                false
            }
            Err(_) => false,
        }
    }
}
