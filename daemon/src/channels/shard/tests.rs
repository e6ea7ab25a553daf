//! A shard whose journal is held back, and a peer that is played by the pure channel crate: what leaves before a flush,
//! what after, and what never.

#![allow(clippy::unwrap_used)]

mod bench;
mod written;

use millrace_channel::{Effects, Fact};
use millrace_wire::{Msat, Preimage};
use tokio::sync::mpsc;

use self::bench::{Bench, PeerChannel, QUIET, bench, both_features, is_offered, offer, sends};
use super::*;
use crate::entry::{Kind, Step};

// --- what is held back ---

#[test]
fn opening_broadcasts_and_tells_nothing_before_its_record() {
    let mut bench = bench();
    let (mut progress, signed) = bench.open_up_to_signed();
    assert!(matches!(progress.blocking_recv(), Some(OpenProgress::Negotiated { .. })));
    bench.log.hold();
    bench.say(signed);
    bench.is_quiet();
    assert!(progress.try_recv().is_err());
    assert!(bench.registry.snapshots().is_empty(), "a channel is shown before it is durable");
    bench.log.let_go();
    let Some(OpenProgress::Opened { channel_id, .. }) = progress.blocking_recv() else { panic!("not opened") };
    let orders: Vec<ChainOrder> = (0..3).map(|_| bench.chain_order()).collect();
    assert!(orders.iter().any(|order| matches!(order, ChainOrder::Broadcast(..))), "{orders:?}");
    assert!(bench.told.has(|item| matches!(item, Item::Entry(entry) if entry.bytes == channel_id.0)));
    assert!(bench.told.has_fact(|fact| *fact == Fact::Opened { channel_id }));
    bench.eventually("the channel is shown", |bench| bench.registry.snapshot(channel_id).is_some());
}

/// What is shown of a channel while it is open, and what is read back of it, agree.
#[test]
fn a_channel_was_opened_when_its_first_step_says() {
    let mut bench = bench();
    bench.open();
    let PeerChannel::Channel(channel) = std::mem::replace(&mut bench.peer, PeerChannel::None) else { panic!() };
    let mut actor = Actor::begin(*channel);
    std::thread::sleep(Duration::from_millis(3));
    actor.add_entries(vec![Entry::new(Kind::Idempotency, vec![1])]);
    let mut written = Vec::new();
    actor.hand_over(Telling::Live, &mut |step| {
        written = step;
        Some(Ticket(1))
    });
    assert_eq!(actor.snapshot().opened_ms, Step::decode(&written).unwrap().time_ms);
}

#[test]
fn offer_without_entries_is_proposed_at_once_and_signed_after_its_flush() {
    let mut bench = bench();
    let id = bench.open();
    bench.log.hold();
    let answer = bench.registry.offer(id, offer(&Preimage::new([1; 32])), Vec::new()).blocking_recv().unwrap();
    assert!(is_offered(&answer), "{answer:?}");
    assert!(matches!(bench.next(), Message::UpdateAddHtlc(_)));
    bench.is_quiet();
    assert!(bench.snapshot(id).htlcs.is_empty(), "an HTLC is shown before it is durable");
    bench.log.let_go();
    assert!(matches!(bench.next(), Message::CommitmentSigned(_)));
    bench.eventually("the HTLC is shown", |bench| !bench.snapshot(id).htlcs.is_empty());
}

#[test]
fn offer_with_entries_leaves_only_with_them_on_disk() {
    let mut bench = bench();
    let id = bench.open();
    bench.log.hold();
    let entries = vec![Entry::new(Kind::Payment, b"pay".to_vec())];
    let answer = bench.registry.offer(id, offer(&Preimage::new([1; 32])), entries).blocking_recv().unwrap();
    assert!(is_offered(&answer), "{answer:?}");
    bench.is_quiet();
    bench.log.let_go();
    assert!(matches!(bench.next(), Message::UpdateAddHtlc(_)));
    assert!(matches!(bench.next(), Message::CommitmentSigned(_)));
    assert!(bench.told.has(|item| matches!(item, Item::Entry(entry) if entry.bytes == b"pay")));
    assert!(bench.told.has_fact(|fact| matches!(fact, Fact::OfferCommitted { .. })));
}

#[test]
fn refused_offer_writes_no_entry() {
    let mut bench = bench();
    let id = bench.open();
    let mut too_much = offer(&Preimage::new([1; 32]));
    too_much.amount = Msat(999_000_000);
    let entries = vec![Entry::new(Kind::Payment, b"never".to_vec())];
    let answer = bench.registry.offer(id, too_much, entries).blocking_recv().unwrap();
    assert!(matches!(answer, Err(CommandError::Refused(_))), "{answer:?}");
    bench.is_quiet();
    assert!(!bench.told.has(|item| matches!(item, Item::Entry(entry) if entry.bytes == b"never")));
}

#[test]
fn revocation_waits_for_the_new_commitment() {
    let mut bench = bench();
    let id = bench.open();
    let preimage = Preimage::new([2; 32]);
    let messages = bench.peer_does(|channel, fx| {
        channel.offer(offer(&preimage), fx).unwrap();
    });
    assert_eq!(messages.len(), 2);
    bench.log.hold();
    messages.into_iter().for_each(|message| bench.say(message));
    bench.is_quiet();
    bench.log.let_go();
    assert!(matches!(bench.next(), Message::RevokeAndAck(_)));
    let signed = bench.next();
    assert!(matches!(signed, Message::CommitmentSigned(_)));
    assert!(!bench.told.has_fact(|fact| matches!(fact, Fact::HtlcReceived { .. })), "told before it is irrevocable");
    bench.eventually("it is shown", |bench| bench.snapshot(id).htlc_counts.remote == 1);
}

#[test]
fn preimage_is_told_after_its_flush() {
    let mut bench = bench();
    let id = bench.open();
    let preimage = Preimage::new([3; 32]);
    bench.registry.offer(id, offer(&preimage), Vec::new()).blocking_recv().unwrap().unwrap();
    bench.exchange();
    let command = Command::Fulfill { id: millrace_wire::HtlcId(0), preimage, attribution: None, is_durable: false };
    let messages = bench.peer_does(|channel, fx| channel.on_command(command, fx).unwrap());
    bench.log.hold();
    messages.into_iter().for_each(|message| bench.say(message));
    bench.is_quiet();
    let is_fulfilled = |fact: &Fact| matches!(fact, Fact::OfferFulfilled { .. });
    assert!(!bench.told.has_fact(is_fulfilled));
    bench.log.let_go();
    bench.eventually("the preimage is told", |bench| bench.told.has_fact(is_fulfilled));
    bench.exchange();
    bench.eventually("and resolved", |bench| bench.told.has_fact(|fact| matches!(fact, Fact::OfferResolved { .. })));
    bench.eventually("and paid", |bench| bench.snapshot(id).balances.remote == Msat(450_000_000));
}

#[test]
fn preimage_of_a_forward_leaves_ahead_of_its_record_and_its_signature_does_not() {
    for is_forward in [true, false] {
        let mut bench = bench();
        let id = bench.open();
        let preimage = Preimage::new([4; 32]);
        let messages = bench.peer_does(|channel, fx| {
            channel.offer(offer(&preimage), fx).unwrap();
        });
        messages.into_iter().for_each(|message| bench.say(message));
        bench.exchange();
        bench.log.hold();
        let htlc_id = millrace_wire::HtlcId(0);
        let answer = if is_forward {
            bench.registry.fulfill_forward(id, htlc_id, preimage, None)
        } else {
            bench.registry.fulfill(id, htlc_id, preimage, None, Vec::new())
        };
        if is_forward {
            assert!(matches!(bench.next(), Message::UpdateFulfillHtlc(_)));
        }
        bench.is_quiet();
        bench.log.let_go();
        answer.blocking_recv().unwrap().unwrap();
        if !is_forward {
            assert!(matches!(bench.next(), Message::UpdateFulfillHtlc(_)));
        }
        assert!(matches!(bench.next(), Message::CommitmentSigned(_)));
    }
}

#[test]
fn answers_wait_for_the_flush_too() {
    let mut bench = bench();
    let id = bench.open();
    bench.log.hold();
    let registry = bench.registry.clone();
    let closing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(registry.force_close(id, "enough".to_owned()))
    });
    let registry = bench.registry.clone();
    let fresh = std::thread::spawn(move || {
        std::thread::sleep(QUIET / 2);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(registry.fresh_snapshot(id)).unwrap()
    });
    bench.is_quiet();
    assert!(!closing.is_finished() && !fresh.is_finished());
    assert_eq!(bench.snapshot(id).state, crate::channels::ChannelState::Normal);
    bench.log.let_go();
    assert_eq!(closing.join().unwrap(), Ok(Accepted::Done));
    assert_eq!(fresh.join().unwrap().state, crate::channels::ChannelState::OnChain);
}

// --- epochs ---

#[test]
fn what_was_parked_for_an_old_connection_never_leaves() {
    let mut bench = bench();
    let id = bench.open();
    bench.log.hold();
    let entries = vec![Entry::new(Kind::Payment, b"pay".to_vec())];
    bench.registry.offer(id, offer(&Preimage::new([1; 32])), entries).blocking_recv().unwrap().unwrap();
    bench.is_quiet();
    bench.link_down();
    let mut old = std::mem::replace(&mut bench.outgoing, mpsc::unbounded_channel().1);
    bench.link_up();
    // Flushes overtake inputs: only a shard that knows of the new connection is what this is about. Its openings wait
    // for no record.
    let _opening = bench.registry.open_channel(bench.order()).unwrap();
    assert!(matches!(bench.next(), Message::OpenChannel(_)));
    bench.log.let_go();
    assert!(matches!(bench.next(), Message::ChannelReestablish(_)), "anything else comes after channel_reestablish");
    assert!(old.try_recv().is_err(), "a message left on a connection that is gone");
    // What the record holds is told all the same, and sent again only when the peer has said what it lacks.
    bench.eventually("committed", |bench| bench.told.has_fact(|fact| matches!(fact, Fact::OfferCommitted { .. })));
    let mut fx = Effects::default();
    let PeerChannel::Channel(channel) = &mut bench.peer else { panic!("no channel") };
    channel.on_link(LinkEvent::Down, &mut fx);
    let features = LinkFeatures::negotiated(&both_features(), &both_features());
    channel.on_link(LinkEvent::Up { features }, &mut fx);
    sends(fx).into_iter().for_each(|message| bench.say(message));
    assert!(matches!(bench.next(), Message::ChannelReady(_)), "both are at their first commitment");
    assert!(matches!(bench.next(), Message::UpdateAddHtlc(_)));
    assert!(matches!(bench.next(), Message::CommitmentSigned(_)));
}

#[test]
fn messages_of_an_old_connection_are_not_heard() {
    let mut bench = bench();
    let id = bench.open();
    let old = bench.epoch;
    bench.link_up();
    assert!(matches!(bench.next(), Message::ChannelReestablish(_)));
    let fatal = Message::Error(Error::new(id, "from the past"));
    bench.say_on(old, fatal.clone());
    bench.is_quiet();
    assert_eq!(bench.snapshot(id).state, crate::channels::ChannelState::Normal);
    bench.say(fatal);
    bench.eventually("the same, now", |bench| bench.snapshot(id).state == crate::channels::ChannelState::OnChain);
}

#[test]
fn proposals_that_no_signature_covered_come_back_when_the_link_goes() {
    let mut bench = bench();
    let id = bench.open();
    // The first takes the signature; while its revocation is outstanding the second is only proposed.
    bench.registry.offer(id, offer(&Preimage::new([1; 32])), Vec::new()).blocking_recv().unwrap().unwrap();
    bench.eventually("committed", |bench| bench.told.has_fact(|fact| matches!(fact, Fact::OfferCommitted { .. })));
    bench.registry.offer(id, offer(&Preimage::new([2; 32])), Vec::new()).blocking_recv().unwrap().unwrap();
    bench.link_down();
    let is_dropped = |fact: &Fact| matches!(fact, Fact::OfferDropped { .. });
    bench.eventually("dropped", |bench| bench.told.has_fact(is_dropped));
    bench.eventually("one is left", |bench| bench.snapshot(id).htlc_counts.local == 1);
}

// --- entries of others ---

#[test]
fn write_is_answered_and_told_after_its_flush_with_its_position() {
    let bench = bench();
    bench.log.hold();
    let journal = bench.registry.journal();
    let writing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(journal.write(vec![Entry::new(Kind::Invoice, b"made".to_vec())])).unwrap()
    });
    std::thread::sleep(QUIET);
    assert!(!writing.is_finished());
    assert!(!bench.told.has(|item| matches!(item, Item::Entry(entry) if entry.bytes == b"made")));
    bench.log.let_go();
    let position = writing.join().unwrap();
    let told = bench.told.0.lock().unwrap();
    let news = told.iter().find(|news| news.items == [Item::Entry(Entry::new(Kind::Invoice, b"made".to_vec()))]);
    let news = news.unwrap();
    assert_eq!((news.source, news.position, news.telling), (Source::Node, Some(position), Telling::Live));
}

#[test]
fn all_told_waits_for_what_is_on_its_way() {
    let mut bench = bench();
    let id = bench.open();
    bench.log.hold();
    bench.registry.offer(id, offer(&Preimage::new([1; 32])), Vec::new()).blocking_recv().unwrap().unwrap();
    assert!(matches!(bench.next(), Message::UpdateAddHtlc(_)));
    let all_told = bench.registry.all_told();
    let waiting = std::thread::spawn(move || all_told.wait_blocking());
    std::thread::sleep(QUIET);
    assert!(!waiting.is_finished());
    bench.log.let_go();
    waiting.join().unwrap();
    assert!(bench.told.has_fact(|fact| matches!(fact, Fact::OfferCommitted { .. })));
}
