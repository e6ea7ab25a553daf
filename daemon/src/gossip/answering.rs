//! Answering a peer's questions (BOLT 7, "Query Messages" and "Initial Sync"): one at a time, piece by piece, and the next
//! piece only when the last has nearly left, so that nothing else on the connection waits long behind it.

use std::sync::Arc;
use std::time::Duration;

use millrace_routing::graph::{Backlog, IdsAnswer, RangeAnswer, Relayed};
use millrace_wire::{GossipTimestampFilter, Message, QueryChannelRange, QueryShortChannelIds};
use tokio::sync::mpsc;

use super::Inner;
use super::book::whole;
use super::intake::Seated;

/// Questions that may wait: one of each kind.
pub(super) const QUESTIONS_MAX: usize = 3;
/// While so much waits for the socket, no more of an answer is put before it: some milliseconds, for an HTLC behind it.
const QUEUED_BYTES_MAX: usize = 64 << 10;
/// How often that is looked at: no peer is answered faster than 3 MB a second.
const PAUSE: Duration = Duration::from_millis(20);
/// A piece of an answer about channels ends with the one that reaches this.
const PIECE_BYTES: usize = 32 << 10;
/// Channels that one piece looks at.
const PIECE_CHANNELS: usize = 2_000;

/// What a peer wants to know.
pub(super) enum Question {
    Range(QueryChannelRange),
    Ids(QueryShortChannelIds),
    /// What a filter lets through of what is known.
    Backlog(GossipTimestampFilter),
}

pub(super) async fn answer(inner: Arc<Inner>, seated: Arc<Seated>, mut asked: mpsc::Receiver<Question>) {
    let answering = Answering { inner, seated };
    while let Some(question) = asked.recv().await {
        match question {
            Question::Range(query) => answering.range(query).await,
            Question::Ids(query) => answering.ids(query).await,
            Question::Backlog(filter) => answering.backlog(filter).await,
        }
    }
}

struct Answering {
    inner: Arc<Inner>,
    seated: Arc<Seated>,
}

impl Answering {
    async fn range(&self, query: QueryChannelRange) {
        let mut answer = RangeAnswer::new(query);
        loop {
            self.room().await;
            let (same, reply) = self
                .inner
                .work(move |inner| {
                    let reply = answer.next(&inner.read().graph);
                    (answer, reply)
                })
                .await;
            answer = same;
            let Some(reply) = reply else { return };
            self.seated.link.send(Box::new(Message::ReplyChannelRange(reply)));
        }
    }

    async fn ids(&self, query: QueryShortChannelIds) {
        let mut answer = IdsAnswer::new(query);
        loop {
            self.room().await;
            let (same, piece, end) = self
                .inner
                .work(move |inner| {
                    let book = inner.read();
                    let (piece, is_end) = gather(|| answer.next(&book.graph));
                    let end = is_end.then(|| answer.end(&book.graph));
                    (answer, piece, end)
                })
                .await;
            answer = same;
            self.send(&piece);
            if let Some(end) = end {
                self.seated.link.send(Box::new(Message::ReplyShortChannelIdsEnd(end)));
                return;
            }
        }
    }

    async fn backlog(&self, filter: GossipTimestampFilter) {
        let mut backlog = Backlog::new(filter);
        loop {
            self.room().await;
            let (same, piece, is_end) = self
                .inner
                .work(move |inner| {
                    let book = inner.read();
                    let (piece, is_end) = gather(|| backlog.next(&book.graph, PIECE_CHANNELS));
                    (backlog, piece, is_end)
                })
                .await;
            backlog = same;
            self.send(&piece);
            // Another filter has another backlog.
            if is_end || self.seated.filter() != Some(filter) {
                return;
            }
        }
    }

    fn send(&self, piece: &[Relayed]) {
        for message in piece {
            self.seated.link.send_bytes(whole(message.type_number, &message.bytes));
        }
    }

    async fn room(&self) {
        while self.seated.link.queued_bytes() > QUEUED_BYTES_MAX && !self.seated.link.is_closed() {
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Some steps of an answer, and whether they are the last.
fn gather(mut next: impl FnMut() -> Option<Vec<Relayed>>) -> (Vec<Relayed>, bool) {
    let (mut piece, mut bytes) = (Vec::new(), 0);
    for _ in 0..PIECE_CHANNELS {
        let Some(some) = next() else { return (piece, true) };
        bytes += some.iter().map(|message| message.bytes.len()).sum::<usize>();
        let is_idle = some.is_empty();
        piece.extend(some);
        if bytes >= PIECE_BYTES || (is_idle && !piece.is_empty()) {
            break;
        }
    }
    (piece, false)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bitcoin::Txid;
    use bitcoin::hashes::Hash;
    use millrace_routing::graph::VerifiedChannel;
    use millrace_wire::{ChainHash, Features, Sat, ShortChannelId};
    use tokio::time::{Instant, timeout};

    use super::super::made_up::{Outputs, channel, peer, start};
    use super::*;
    use crate::peer::link::{Link, Outgoing, weight};

    const ID: ShortChannelId = ShortChannelId(1 << 40);

    /// 200 questions, of which each has an answer of half a megabyte; and for a while nothing is taken from the queue.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_spam_of_questions_waits_for_the_socket_and_fills_no_memory() {
        let gossip = start(Outputs::none().0);
        let verified = VerifiedChannel::verify(channel(ID).0).unwrap();
        gossip.inner.write().add_channel(&verified, Txid::all_zeros(), Sat(1), 0).unwrap();
        let (link, mut outgoing, queued) = Link::new();
        let seat = gossip.connected(peer(3), &Features::ours(false), link);
        let query = QueryShortChannelIds {
            chain_hash: ChainHash::REGTEST,
            short_channel_ids: vec![ID; 1_000],
            query_flags: None,
        };
        for _ in 0..200 {
            seat.put(Message::QueryShortChannelIds(query.clone()));
        }
        let begun = Instant::now();
        while queued.bytes() <= 64 << 10 {
            assert!(begun.elapsed() < Duration::from_secs(30), "{}", queued.bytes());
            tokio::time::sleep(PAUSE).await;
        }
        tokio::time::sleep(PAUSE * 10).await;
        let (mut most, mut answered) = (0, 0);
        let begun = Instant::now();
        // Until nothing comes any more.
        loop {
            let out = match timeout(Duration::from_secs(3), outgoing.recv()).await {
                Ok(out) => out.unwrap(),
                Err(_) if answered > 0 => break,
                Err(_) => {
                    assert!(begun.elapsed() < Duration::from_secs(60), "no question is answered");
                    continue;
                }
            };
            most = most.max(queued.bytes());
            let bytes = match &out {
                Outgoing::Message(message) => {
                    answered += usize::from(matches!(**message, Message::ReplyShortChannelIdsEnd(_)));
                    weight(message)
                }
                Outgoing::Bytes(bytes) => 100 + bytes.len(),
                Outgoing::Close(why) => panic!("{why}"),
            };
            queued.written(bytes);
        }
        assert!(most < 256 << 10, "{most} bytes were put into the queue");
        // One that is being answered, and three that wait.
        assert!((1..=4).contains(&answered), "{answered} questions were kept");
        drop(seat);
        gossip.stop().await;
    }
}
