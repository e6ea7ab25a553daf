//! Listening to one peer: its announcements in order and some at a time, and its answers to what it was asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use millrace_routing::graph::{AskFault, Asking, GossipFault, Next};
use millrace_wire::{ChannelId, Message, ReplyChannelRange, ReplyShortChannelIdsEnd, Warning};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::Inner;
use super::book::From;
use super::intake::{Heard, Said, Seated, count};
use super::verify::{Announcement, take};

/// Announcements that are verified together: some milliseconds of curve work.
const BATCH_MAX: usize = 64;
/// Channels without an output that a peer may name before it has to wait: there are honest ones that keep spent channels, and
/// others that make bitcoind look for nothing.
const UNFUNDED_MAX: usize = 200;
/// So long, after each batch with such a channel.
const UNFUNDED_PAUSE: Duration = Duration::from_millis(500);
/// How often is looked whether a peer that was asked still answers.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A peer is not warned more often.
const WARN_EVERY: Duration = Duration::from_secs(10);

pub(super) async fn listen(inner: Arc<Inner>, seated: Arc<Seated>, heard: mpsc::UnboundedReceiver<Heard>) {
    Listening { inner, seated, asked: None, warned_at: None, unfunded: 0 }.run(heard).await;
}

struct Listening {
    inner: Arc<Inner>,
    seated: Arc<Seated>,
    asked: Option<Asked>,
    warned_at: Option<Instant>,
    /// Channels that it named without an output.
    unfunded: usize,
}

/// The peer is being asked for the graph.
struct Asked {
    asking: Asking,
    heard_at: Instant,
    over: oneshot::Sender<bool>,
}

impl Listening {
    async fn run(mut self, mut heard: mpsc::UnboundedReceiver<Heard>) {
        loop {
            let first = tokio::select! {
                first = heard.recv() => first,
                () = tokio::time::sleep(LOOK_EVERY) => {
                    self.give_up_the_silent();
                    continue;
                }
            };
            let Some(first) = first else { return };
            let mut next = Some(first);
            while let Some(Heard { said, room }) = next.take() {
                if let Some(asked) = &mut self.asked {
                    asked.heard_at = Instant::now();
                }
                match said {
                    Said::Announcement(announcement) => {
                        let (mut batch, mut rooms) = (vec![announcement], vec![room]);
                        while batch.len() < BATCH_MAX {
                            match heard.try_recv() {
                                Ok(Heard { said: Said::Announcement(announcement), room }) => {
                                    batch.push(announcement);
                                    rooms.push(room);
                                }
                                Ok(other) => {
                                    next = Some(other);
                                    break;
                                }
                                Err(_) => break,
                            }
                        }
                        self.on_announcements(batch).await;
                        drop(rooms);
                    }
                    Said::Range(reply) => self.on_range(reply).await,
                    Said::End(end) => self.on_end(end),
                    Said::Ask(over) => self.ask(over),
                }
            }
        }
    }

    async fn on_announcements(&mut self, batch: Vec<Announcement>) {
        let refused = take(&self.inner, batch, From::Peer(self.seated.peer)).await;
        if let Some(fault) = refused.faults.first() {
            self.on_fault(fault);
        }
        self.unfunded = self.unfunded.saturating_add(refused.unfunded.len());
        if !refused.unfunded.is_empty() && self.unfunded > UNFUNDED_MAX {
            tokio::time::sleep(UNFUNDED_PAUSE).await;
        }
    }

    /// BOLT 7 lets the connection be closed. It stays: there may be channels, and what was refused has changed nothing.
    fn on_fault(&mut self, fault: &GossipFault) {
        self.warn(&format!("gossip that is not by whom it names: {fault}"));
    }

    fn warn(&mut self, words: &str) {
        if self.warned_at.is_some_and(|at| at.elapsed() < WARN_EVERY) {
            return;
        }
        self.warned_at = Some(Instant::now());
        tracing::debug!(peer = %self.seated.peer, words, "a peer's gossip is refused");
        self.seated.link.send(Box::new(Message::Warning(Warning::new(ChannelId::ALL, words))));
    }

    // --- asking ---

    fn ask(&mut self, over: oneshot::Sender<bool>) {
        if self.asked.is_some() {
            return;
        }
        let (asking, query) = Asking::begin(self.inner.chain_hash);
        tracing::debug!(peer = %self.seated.peer, "asking for the graph");
        self.seated.is_asking.store(true, Ordering::Relaxed);
        self.seated.has_dropped.store(false, Ordering::Relaxed);
        self.seated.link.send(Box::new(Message::QueryChannelRange(query)));
        self.asked = Some(Asked { asking, heard_at: Instant::now(), over });
    }

    async fn on_range(&mut self, reply: ReplyChannelRange) {
        let Some(mut asked) = self.asked.take() else { return count("unwanted") };
        let (asked, next) = self
            .inner
            .work(move |inner| {
                let next = asked.asking.on_range(&reply, &inner.read().graph, Inner::now());
                (asked, next)
            })
            .await;
        if next != Ok(Next::Wait) && !asked.asking.tells_times() {
            self.inner.ask_for_news(&self.seated, false);
        }
        self.go_on(asked, next);
    }

    fn on_end(&mut self, end: ReplyShortChannelIdsEnd) {
        let Some(mut asked) = self.asked.take() else { return count("unwanted") };
        let next = asked.asking.on_end(&end);
        self.go_on(asked, next);
    }

    fn go_on(&mut self, asked: Asked, next: Result<Next, AskFault>) {
        match next {
            Ok(Next::Wait) => self.asked = Some(asked),
            Ok(Next::Query(query)) => {
                self.seated.link.send(Box::new(Message::QueryShortChannelIds(query)));
                self.asked = Some(asked);
            }
            Ok(Next::Done) => self.end(asked, true),
            Err(fault) => {
                self.end(asked, false);
                self.warn(&fault.to_string());
            }
        }
    }

    fn give_up_the_silent(&mut self) {
        let patience = self.inner.rules.sync_patience;
        if let Some(asked) = self.asked.take_if(|asked| asked.heard_at.elapsed() > patience) {
            self.end(asked, false);
        }
    }

    fn end(&mut self, asked: Asked, is_whole: bool) {
        self.seated.is_asking.store(false, Ordering::Relaxed);
        // Not before, or what is new would come twice. One that does not answer may still tell it.
        self.inner.ask_for_news(&self.seated, true);
        let is_whole = is_whole && !self.seated.has_dropped.load(Ordering::Relaxed);
        tracing::debug!(peer = %self.seated.peer, is_whole, "no longer asking for the graph");
        if is_whole {
            self.inner.synced_ms.store(crate::clock::unix_ms(), Ordering::Relaxed);
        }
        // Whoever has asked may have turned to another peer meanwhile.
        let _nobody = asked.over.send(is_whole);
    }
}

#[cfg(test)]
mod tests {
    use millrace_wire::ShortChannelId;

    use super::super::made_up::{Outputs, channel, connect, start};
    use super::*;

    #[tokio::test]
    async fn a_peer_that_names_outputs_that_do_not_exist_has_to_wait_more_and_more() {
        const PAUSES: u32 = 5;
        let (outputs, _) = Outputs::none();
        let gossip = start(Arc::clone(&outputs));
        let (seat, _out) = connect(&gossip, 1);
        // There is room for all of it.
        let seated = gossip.inner.seats().values().next().cloned().expect("it is connected");
        gossip.inner.ask_for_news(&seated, true);
        let count = UNFUNDED_MAX + PAUSES as usize * BATCH_MAX;
        let absent: Vec<_> = (0..count as u64).map(|n| channel(ShortChannelId(n)).0).collect();
        let begun = Instant::now();
        for announcement in absent {
            seat.put(Message::ChannelAnnouncement(Box::new(announcement)));
        }
        while gossip.inner.waiting.load(Ordering::Relaxed) > 0 {
            assert!(begun.elapsed() < Duration::from_secs(60), "nobody handles it");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        // However slow the machine, it cannot be sooner.
        assert!(begun.elapsed() >= UNFUNDED_PAUSE * PAUSES, "{:?}", begun.elapsed());
        assert_eq!(outputs.asked(), count);
        gossip.stop().await;
    }
}
