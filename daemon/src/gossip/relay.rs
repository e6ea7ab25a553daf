//! Passing on what is new (BOLT 7, "Rebroadcasting"): some at a time, byte for byte, to each peer that has asked for it by
//! `gossip_timestamp_filter`, and never back to whom it came from.

use std::sync::Arc;

use millrace_routing::graph::Backlog;
use millrace_wire::PublicKey;
use tokio::time::{MissedTickBehavior, interval};

use super::{Inner, LOCK};
use crate::metrics;

/// What may wait to be passed on: some seconds of the fastest that can be verified.
const PASSED_MAX: usize = 50_000;
/// A peer for whose socket so much waits is passed nothing more: half of what makes us stop reading from it.
const QUEUED_BYTES_MAX: usize = crate::peer::link::QUEUED_BYTES_SLOW / 2;

/// One new message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Passed {
    /// All of it, its type included.
    pub(super) bytes: Arc<[u8]>,
    /// Its time; an announced channel's is that of its first update.
    pub(super) timestamp: u32,
    /// Who has sent it, unless it is ours.
    pub(super) from: Option<PublicKey>,
}

impl Inner {
    /// Puts down what is new; it leaves with the next round.
    pub(super) fn pass_on(&self, mut news: Vec<Passed>) {
        if news.is_empty() {
            return;
        }
        let mut waiting = self.passed.lock().expect(LOCK);
        let room = PASSED_MAX.saturating_sub(waiting.len());
        // Whoever needs what is cut off asks for it.
        news.truncate(room);
        waiting.append(&mut news);
    }

    fn send_round(&self) {
        let news = std::mem::take(&mut *self.passed.lock().expect(LOCK));
        if news.is_empty() {
            return;
        }
        let mut sent = 0;
        for seated in self.seats().values() {
            let Some(filter) = seated.filter() else { continue };
            for message in &news {
                if message.from == Some(seated.peer) || !Backlog::passes(&filter, message.timestamp) {
                    continue;
                }
                if seated.link.queued_bytes() > QUEUED_BYTES_MAX {
                    break;
                }
                seated.link.send_bytes(Arc::clone(&message.bytes));
                sent += 1;
            }
        }
        ::metrics::counter!(metrics::GOSSIP_MESSAGES, "outcome" => "relayed").increment(sent);
    }
}

pub(super) async fn run(inner: Arc<Inner>) {
    let mut ticks = interval(inner.rules.relay_every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        inner.send_round();
    }
}
