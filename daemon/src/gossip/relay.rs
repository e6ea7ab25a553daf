//! Passing on what is new (BOLT 7, "Rebroadcasting"): some at a time, byte for byte, to each peer that has asked for it by
//! `gossip_timestamp_filter`, and never back to whom it came from.

use std::sync::Arc;

use millrace_routing::graph::Backlog;
use millrace_wire::{GossipTimestampFilter, PublicKey};
use tokio::time::{MissedTickBehavior, interval};

use super::{Inner, LOCK};
use crate::metrics;
use crate::peer::link::Link;

/// What may wait to be passed on of others: some seconds of the fastest that can be verified.
const PASSED_MAX: usize = 50_000;
/// A peer for whose socket so much waits is passed nothing more of others: half of what makes us stop reading from it.
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

/// What leaves with the next round, in the order in which it came: a channel before what is about it, whoever has sent which.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    messages: Vec<Passed>,
    /// How many of them are others'.
    of_others: usize,
}

impl Waiting {
    /// Takes what is new. This node's own is taken whatever else there is: nobody else can make it, and so nobody can make it
    /// too much. Of others' the rest is cut off when there is enough; whoever needs that asks for it.
    fn put(&mut self, news: Vec<Passed>) {
        for message in news {
            if message.from.is_some() {
                if self.of_others >= PASSED_MAX {
                    continue;
                }
                self.of_others += 1;
            }
            self.messages.push(message);
        }
    }
}

/// Passes on to one peer what it wants, and nothing that it has sent. When its socket does not take more, this node's own still
/// goes out: there is little of it, and the peer may be the only one to tell it to the network.
fn send(messages: &[Passed], to: &PublicKey, filter: &GossipTimestampFilter, link: &Link) -> u64 {
    let mut sent = 0;
    for message in messages {
        let is_own = message.from.is_none();
        if message.from.as_ref() == Some(to) || !Backlog::passes(filter, message.timestamp) {
            continue;
        }
        if !is_own && link.queued_bytes() > QUEUED_BYTES_MAX {
            continue;
        }
        link.send_bytes(Arc::clone(&message.bytes));
        sent += 1;
    }
    sent
}

impl Inner {
    /// Puts down what is new; it leaves with the next round.
    pub(super) fn pass_on(&self, news: Vec<Passed>) {
        if !news.is_empty() {
            self.passed.lock().expect(LOCK).put(news);
        }
    }

    fn send_round(&self) {
        let Waiting { messages, .. } = std::mem::take(&mut *self.passed.lock().expect(LOCK));
        if messages.is_empty() {
            return;
        }
        let mut sent = 0;
        for seated in self.seats().values() {
            let Some(filter) = seated.filter() else { continue };
            sent += send(&messages, &seated.peer, &filter, &seated.link);
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use millrace_wire::ChainHash;

    use super::*;
    use crate::peer::link::Outgoing;

    fn peer(n: u8) -> PublicKey {
        secp256k1::SecretKey::from_slice(&[n; 32]).unwrap().public_key(secp256k1::SECP256K1)
    }

    fn message(from: Option<PublicKey>, first_byte: u8, len: usize) -> Passed {
        Passed { bytes: [vec![first_byte], vec![0; len - 1]].concat().into(), timestamp: 5, from }
    }

    const ALL: GossipTimestampFilter =
        GossipTimestampFilter { chain_hash: ChainHash::REGTEST, first_timestamp: 0, timestamp_range: u32::MAX };

    #[test]
    fn in_a_flood_of_others_our_own_is_kept_and_in_its_place() {
        let mut waiting = Waiting::default();
        let flood = |count| vec![message(Some(peer(1)), 1, 1); count];
        waiting.put(vec![message(Some(peer(1)), 1, 1), message(None, 2, 1)]);
        for _ in 0..70 {
            waiting.put(flood(1_000));
        }
        waiting.put([vec![message(None, 3, 1)], flood(10), vec![message(None, 4, 1)]].concat());
        assert_eq!(waiting.messages.len(), 50_000 + 3);
        let own: Vec<u8> =
            waiting.messages.iter().filter(|message| message.from.is_none()).map(|message| message.bytes[0]).collect();
        assert_eq!((own, waiting.messages[1].bytes[0]), (vec![2, 3, 4], 2));
    }

    #[test]
    fn a_peer_whose_socket_is_full_is_told_our_own_alone() {
        let news: Vec<Passed> =
            (0..100).flat_map(|n| [message(Some(peer(1)), 1, 60_000), message(None, n, 1)]).collect();
        let (link, mut outgoing, _queued) = Link::new();
        let sent = send(&news, &peer(2), &ALL, &link);
        drop(link);
        let mut told = (0, 0);
        while let Some(Outgoing::Bytes(bytes)) = outgoing.blocking_recv() {
            *(if bytes.len() == 1 { &mut told.0 } else { &mut told.1 }) += 1;
        }
        // Half a megabyte of others'.
        assert_eq!((told, sent), ((100, 9), 109));
        let (link, ..) = Link::new();
        assert_eq!(send(&news, &peer(1), &ALL, &link), 100, "and who has sent it is not told it again");
    }
}
