#![allow(clippy::unwrap_used)]
mod last_resort;
pub(crate) mod network;
mod parts;
mod property;

use std::collections::HashMap;
use std::sync::Arc;

use millrace_channel::keys::ChannelKeys;
use millrace_channel::ledger::htlc::{Origin, Removal};
use millrace_channel::{Both, ChannelType, Fact, Millis, Offer, PartyTerms, Refusal, Side, Terms};
use millrace_routing::SharedSecret;
use millrace_routing::failure::{FailureMessage, encrypt};
use millrace_routing::invoice::NewInvoice;
use millrace_routing::map::Map;
use millrace_routing::path::NoPath;
use millrace_wire::{
    BlockHeight, ChannelId, CommitmentNumber, FeeratePerKw, HtlcId, Msat, Preimage, PublicKey, Sat, ShortChannelId,
};
use tokio::sync::mpsc::UnboundedReceiver;

use super::payment::Saved;
use super::{LookUp, Order, Sending, SendingSection, World};
use crate::channels::{ChannelSnapshot, ChannelState, CommandError};
use crate::entry::Entry;
use crate::happened::{FailureReason, Happened, PaymentId};
use crate::idempotency::{Idempotency, KeyHash, RequestHash, Reserved};
use crate::payments::entry::PaymentEntry;
use crate::payments::listener::{Listener, Told};
use crate::payments::prepare::tests::{hash, key, moment, new_invoice, node, request, rules};
use crate::payments::prepare::{PayKey, PayRequest, PayerRules, prepare, secrets_of};
use crate::payments::refusal::PayRefusal;
use crate::payments::row::PaymentStatus;

const A: ChannelId = ChannelId([0xa; 32]);
const B: ChannelId = ChannelId([0xb; 32]);

fn channel(id: ChannelId, change: impl FnOnce(&mut ChannelSnapshot, &mut Terms)) -> Arc<ChannelSnapshot> {
    let party = || PartyTerms {
        dust_limit: Sat(354),
        max_htlc_value_in_flight: Msat(900_000_000),
        channel_reserve: Sat(10_000),
        htlc_minimum: Msat(1_000),
        to_self_delay: 144,
        max_accepted_htlcs: 483,
        basepoints: ChannelKeys::from_seed(&[id.0[0]; 32]).basepoints().clone(),
        upfront_shutdown_script: None,
    };
    let mut terms = Terms {
        channel_id: id,
        remote_node: node(2),
        funder: Side::Local,
        channel_type: ChannelType::ANCHORS,
        funding_outpoint: bitcoin::OutPoint::null(),
        capacity: Sat(1_000_000),
        push: Msat(0),
        minimum_depth: 3,
        announce: false,
        parties: Both { local: party(), remote: party() },
    };
    let mut snapshot = ChannelSnapshot {
        channel_id: id,
        peer: node(2),
        terms: Arc::new(terms.clone()),
        state: ChannelState::Normal,
        is_online: true,
        opened_ms: 0,
        short_channel_id: None,
        local_alias: ShortChannelId(u64::from(id.0[0])),
        remote_alias: None,
        funding_depth: 3,
        required_depth: 3,
        balances: Both { local: Msat(900_000_000), remote: Msat(0) },
        in_flight: Both::default(),
        htlc_counts: Both::default(),
        available_to_send: Msat(800_000_000),
        feerate: FeeratePerKw(1000),
        commitment_numbers: Both { local: CommitmentNumber(0), remote: CommitmentNumber(0) },
        htlcs: Vec::new(),
        awaits_revocation: false,
        ending: None,
        announcement: None,
        last_error: None,
    };
    change(&mut snapshot, &mut terms);
    snapshot.terms = Arc::new(terms);
    Arc::new(snapshot)
}

fn usual(id: ChannelId) -> Arc<ChannelSnapshot> {
    channel(id, |_, _| {})
}

/// One payer and what surrounds it.
struct Payer {
    sending: Sending,
    keys: Idempotency,
    rules: PayerRules,
    channels: Vec<Arc<ChannelSnapshot>>,
    map: Arc<Map>,
    now: Millis,
    unix_ms: u64,
    orders: Vec<Order>,
    happened: Vec<Happened>,
}

impl Payer {
    fn new(channels: Vec<Arc<ChannelSnapshot>>) -> Self {
        Self {
            sending: Sending::default(),
            keys: Idempotency::new(86_400_000),
            rules: rules(),
            channels,
            map: Arc::default(),
            now: Millis(0),
            unix_ms: 1_000_000,
            orders: Vec::new(),
            happened: Vec::new(),
        }
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Sending, &World<'_>, &mut Vec<Order>) -> T) -> T {
        let Self { sending, keys, rules, channels, map, now, unix_ms, orders, .. } = self;
        let world = World {
            rules,
            keys,
            channels: &|| channels.clone(),
            map: Arc::clone(map),
            channels_with: &|payee| channels.iter().filter(|channel| channel.peer == *payee).cloned().collect(),
            new_work: Ok(()),
            now: *now,
            unix_ms: *unix_ms,
            height: Some(BlockHeight(100)),
        };
        act(sending, &world, orders)
    }

    fn pay(&mut self, request: PayRequest) -> UnboundedReceiver<(u64, Told)> {
        let (listener, told) = Listener::pair(7, true);
        let is_peer = |node: &PublicKey| self.channels.iter().any(|channel| channel.peer == *node);
        match prepare(request, &self.rules, moment(self.now, self.unix_ms), is_peer, listener) {
            Ok(prepared) => self.with(|sending, world, out| sending.pay(prepared, world, out)),
            Err((refusal, listener)) => listener.refuse(refusal),
        }
        told
    }

    /// Does the searches that were ordered, until there are none.
    fn search(&mut self) {
        while let Some(place) = self.orders.iter().position(|order| matches!(order, Order::Search(_))) {
            let Order::Search(job) = self.orders.remove(place) else { unreachable!() };
            let found = job.run();
            self.with(|sending, world, out| sending.found(job.id, found, world, out));
        }
    }

    /// The one write that was ordered.
    fn write(&mut self) -> Vec<Entry> {
        let mut orders = std::mem::take(&mut self.orders);
        assert_eq!(orders.len(), 1, "{orders:?}");
        match orders.remove(0) {
            Order::Write(entries) => entries,
            other => panic!("{other:?}"),
        }
    }

    /// Why it is given up, which is the last of the writes, and nothing but writes was ordered.
    fn given_up(&mut self) -> (PaymentId, crate::happened::Failure) {
        let orders = std::mem::take(&mut self.orders);
        let entries = orders.iter().flat_map(|order| match order {
            Order::Write(entries) => entries.clone(),
            other => panic!("{other:?}"),
        });
        match PaymentEntry::decode(&entries.last().unwrap().bytes).unwrap() {
            PaymentEntry::GivenUp { id, failure } => (id, failure),
            other => panic!("{other:?}"),
        }
    }

    /// The one offer that was ordered.
    fn offer(&mut self) -> (PaymentId, u32, ChannelId, Box<Offer>, Entry) {
        let mut orders = std::mem::take(&mut self.orders);
        assert_eq!(orders.len(), 1, "{orders:?}");
        match orders.remove(0) {
            Order::Offer { id, attempt, channel_id, offer, entry } => (id, attempt, channel_id, offer, entry),
            other => panic!("{other:?}"),
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let Self { sending, keys, orders, happened, unix_ms, .. } = self;
        sending.on_entry(PaymentEntry::decode(&entry.bytes).unwrap(), *unix_ms, keys, orders, happened);
    }

    fn fact(&mut self, channel_id: ChannelId, fact: Fact) {
        let mut happened = std::mem::take(&mut self.happened);
        let time = self.unix_ms;
        self.with(|sending, world, out| {
            sending.on_fact(channel_id, fact, time, false, Some(world), out, &mut happened);
        });
        self.happened = happened;
    }

    fn refuse(&mut self, id: PaymentId, attempt: u32, refusal: Refusal) {
        self.with(|sending, world, out| {
            sending.answered(id, attempt, Err(CommandError::Refused(refusal)), world, out);
        });
    }

    /// The whole state that a restart would find.
    fn restarted(&self) -> Self {
        let bytes = postcard::to_stdvec(&self.sending.section()).unwrap();
        let mut other = Self::new(self.channels.clone());
        other.map = Arc::clone(&self.map);
        other.sending.restore(postcard::from_bytes(&bytes).unwrap());
        other.keys.restore(&self.keys.section()).unwrap();
        other.unix_ms = self.unix_ms;
        other
    }
}

fn bolt11(n: u8) -> String {
    new_invoice(n).sign(&key(2)).unwrap()
}

fn keyed(n: u8, key: &str) -> PayRequest {
    let bolt11 = bolt11(n);
    let stands_for = RequestHash::of("pay", bolt11.as_bytes());
    let key = PayKey { text: key.to_owned(), hash: KeyHash::of(key).unwrap(), request: stands_for };
    PayRequest { key: Some(key), ..request(bolt11) }
}

fn origin(id: PaymentId, attempt: u32) -> Origin {
    Origin::Payment { id: id.0, attempt }
}

fn committed(id: PaymentId, attempt: u32, htlc: u64) -> Fact {
    Fact::OfferCommitted { id: HtlcId(htlc), origin: origin(id, attempt), amount: Msat(21_000) }
}

fn fulfilled(id: PaymentId, attempt: u32, htlc: u64, n: u8) -> Fact {
    Fact::OfferFulfilled { id: HtlcId(htlc), origin: origin(id, attempt), preimage: Preimage::new([n; 32]) }
}

fn failed(id: PaymentId, attempt: u32, htlc: u64, message: &FailureMessage) -> Fact {
    let secrets: Vec<SharedSecret> = secrets_of(&key(1), &[node(2)], id, attempt);
    let removal = Removal::Fail { reason: encrypt(&secrets[0], message), attribution: None };
    Fact::OfferResolved { id: HtlcId(htlc), origin: origin(id, attempt), removal }
}

const BUSY: FailureMessage = FailureMessage::TemporaryChannelFailure { channel_update: Vec::new() };
const UNKNOWN: FailureMessage =
    FailureMessage::IncorrectOrUnknownPaymentDetails { amount: Msat(21_000), height: BlockHeight(100) };

fn refusal(told: &mut UnboundedReceiver<(u64, Told)>) -> PayRefusal {
    match told.try_recv().unwrap() {
        (7, Told::Refused(refusal)) => refusal,
        other => panic!("{other:?}"),
    }
}

fn drain(told: &mut UnboundedReceiver<(u64, Told)>) -> Vec<Told> {
    std::iter::from_fn(|| told.try_recv().ok().map(|(_, told)| told)).collect()
}

/// Accepted and out there.
fn under_way(payer: &mut Payer, n: u8) -> (PaymentId, ChannelId, Entry, UnboundedReceiver<(u64, Told)>) {
    let told = payer.pay(request(bolt11(n)));
    let (id, _, channel_id, _, entry) = payer.offer();
    payer.entry(&entry);
    payer.fact(channel_id, committed(id, 0, 0));
    (id, channel_id, entry, told)
}

#[test]
fn the_acceptance_travels_with_the_first_offer_and_nothing_is_told_before_it_is_durable() {
    let mut payer = Payer::new(vec![usual(A)]);
    let mut told = payer.pay(keyed(9, "k"));
    let (id, attempt, channel_id, offer, entry) = payer.offer();
    assert_eq!((attempt, channel_id, offer.amount, offer.payment_hash), (0, A, Msat(21_000), hash(9)));
    let PaymentEntry::Accepted(accepted) = PaymentEntry::decode(&entry.bytes).unwrap() else { panic!() };
    assert_eq!(accepted.started.id, id);
    assert!(accepted.key.is_some(), "the key is in the same step");
    assert!(told.try_recv().is_err());
    payer.entry(&entry);
    assert!(matches!(drain(&mut told)[..], [Told::Accepted { .. }, Told::Attempt(_)]));
    payer.fact(A, committed(id, 0, 3));
    payer.fact(A, fulfilled(id, 0, 3, 9));
    let told = drain(&mut told);
    let [Told::Paid { preimage, row: Some(row), .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!(preimage.hash(), hash(9));
    assert!(matches!(row.status, PaymentStatus::Succeeded { .. }));
    let removal = Removal::Fulfill { preimage: Preimage::new([9; 32]), attribution: None };
    payer.fact(A, Fact::OfferResolved { id: HtlcId(3), origin: origin(id, 0), removal });
    assert!(matches!(payer.orders[..], [Order::Release(A, HtlcId(3))]));
    assert!(matches!(payer.happened[..], [Happened::PaymentStarted(_), Happened::PaymentSucceeded { .. }]));
}

#[test]
fn refused_by_every_channel_it_leaves_nothing_behind() {
    let mut payer = Payer::new(vec![usual(A), usual(B)]);
    let mut told = payer.pay(keyed(9, "k"));
    let (id, _, first, _, _) = payer.offer();
    payer.refuse(id, 0, Refusal::InsufficientBalance { amount: Msat(21_000), available: Msat(5) });
    let (_, attempt, second, _, entry) = payer.offer();
    assert_ne!(first, second, "the other channel is asked");
    assert_eq!(attempt, 0, "nobody has seen the attempt yet");
    assert!(matches!(PaymentEntry::decode(&entry.bytes).unwrap(), PaymentEntry::Accepted(_)));
    payer.refuse(id, 0, Refusal::InsufficientBalance { amount: Msat(21_000), available: Msat(6) });
    let expected = PayRefusal::InsufficientBalance { amount: Msat(21_000), available: Msat(6) };
    assert_eq!(refusal(&mut told), expected);
    assert_eq!(payer.sending.len(), 0);
    // The key is free for another request.
    let key = KeyHash::of("k").unwrap();
    assert_eq!(payer.keys.reserve(key, RequestHash([1; 32]), b"x", 0).unwrap(), Reserved::New);
}

#[test]
fn limits_before_anybody_is_asked() {
    let pay = |channels: Vec<Arc<ChannelSnapshot>>, amount: u64| {
        let mut payer = Payer::new(channels);
        let bolt11 = NewInvoice { amount: Some(Msat(amount)), ..new_invoice(9) }.sign(&key(2)).unwrap();
        let mut told = payer.pay(request(bolt11));
        assert!(payer.orders.is_empty());
        refusal(&mut told)
    };
    assert_eq!(pay(vec![], 5_000), PayRefusal::NoChannel { payee: node(2) });
    let closed = channel(A, |snapshot, _| snapshot.state = ChannelState::Closed);
    assert_eq!(pay(vec![closed], 5_000), PayRefusal::NoChannel { payee: node(2) });
    let away = channel(A, |snapshot, _| snapshot.is_online = false);
    assert_eq!(pay(vec![away], 5_000), PayRefusal::PeerAway { payee: node(2) });
    let opening = channel(A, |snapshot, _| snapshot.state = ChannelState::Opening);
    assert!(matches!(pay(vec![opening], 5_000), PayRefusal::NotUsable { .. }));
    assert_eq!(pay(vec![usual(A)], 999), PayRefusal::BelowMinimum { amount: Msat(999), minimum: Msat(1_000) });
    let most = Msat(900_000_000);
    assert_eq!(pay(vec![usual(A)], most.0 + 1), PayRefusal::AboveMaximum { amount: Msat(most.0 + 1), maximum: most });
}

#[test]
fn an_expired_invoice_is_refused_but_not_to_whoever_paid_it() {
    let mut payer = Payer::new(vec![usual(A)]);
    let (id, _, _, _) = {
        payer.pay(keyed(9, "k"));
        let (id, _, channel_id, _, entry) = payer.offer();
        payer.entry(&entry);
        (id, channel_id, entry, ())
    };
    payer.unix_ms = 10_000_000_000;
    let mut told = payer.pay(request(bolt11(8)));
    assert!(matches!(refusal(&mut told), PayRefusal::Expired { .. }));
    let mut told = payer.pay(keyed(9, "k"));
    assert!(matches!(drain(&mut told)[..], [Told::Accepted { .. }, Told::Attempt(_)]), "the key attaches");
    assert_eq!(payer.sending.len(), 1);
    payer.fact(A, fulfilled(id, 0, 0, 9));
    let mut told = payer.pay(keyed(9, "k"));
    assert!(told.try_recv().is_err());
    assert!(matches!(&payer.orders[..], [Order::LookUp(LookUp::Id(found), _)] if *found == id));
}

#[test]
fn one_invoice_is_paid_once_whatever_the_keys() {
    let mut payer = Payer::new(vec![usual(A)]);
    let (id, _, _, mut first) = under_way(&mut payer, 9);
    let mut second = payer.pay(keyed(9, "other"));
    assert!(payer.orders.is_empty(), "the same terms: the same payment");
    let open_amount = NewInvoice { amount: None, ..new_invoice(9) }.sign(&key(2)).unwrap();
    let mut other = payer.pay(PayRequest { amount: Some(Msat(5_000)), ..request(open_amount) });
    assert_eq!(refusal(&mut other), PayRefusal::AlreadyPaid { payment_hash: hash(9) });
    payer.fact(A, fulfilled(id, 0, 0, 9));
    for told in [&mut first, &mut second] {
        assert!(matches!(drain(told).last(), Some(Told::Paid { .. })));
    }
    payer.pay(request(bolt11(9)));
    assert!(matches!(&payer.orders[..], [Order::LookUp(LookUp::Paid { .. }, _)]), "paid: never a second HTLC");
    // Known until the invoice has expired, also after a restart.
    let mut restarted = payer.restarted();
    restarted.pay(request(bolt11(9)));
    assert!(matches!(&restarted.orders[..], [Order::LookUp(LookUp::Paid { .. }, _)]));
    restarted.sending.prune(u64::MAX);
    assert!(restarted.sending.section().paid.is_empty());
}

#[test]
fn a_key_for_another_request_is_refused() {
    let mut payer = Payer::new(vec![usual(A)]);
    payer.pay(keyed(9, "k"));
    payer.offer();
    let mut told = payer.pay(keyed(8, "k"));
    assert_eq!(refusal(&mut told), PayRefusal::Key(crate::idempotency::KeyError::Conflict));
}

#[test]
fn the_payees_refusal_ends_it_and_its_outcome_is_kept_until_that_is_durable() {
    let mut payer = Payer::new(vec![usual(A), usual(B)]);
    let (id, channel_id, _, mut told) = under_way(&mut payer, 9);
    drain(&mut told);
    payer.fact(channel_id, failed(id, 0, 0, &UNKNOWN));
    let given_up = &payer.write()[0];
    assert!(told.try_recv().is_err(), "not told before it is durable");
    // Told again meanwhile: decided once.
    payer.fact(channel_id, failed(id, 0, 0, &UNKNOWN));
    assert!(payer.orders.is_empty());
    payer.entry(given_up);
    assert!(matches!(payer.orders[..], [Order::Release(_, HtlcId(0))]));
    let told = drain(&mut told);
    let [Told::Failed { failure, .. }] = &told[..] else { panic!("{told:?}") };
    assert_eq!((failure.reason, failure.code), (FailureReason::PayeeRefused, 0x400f));
    // An invoice whose payment failed is tried again.
    payer.orders.clear();
    payer.pay(request(bolt11(9)));
    let (again, attempt, _, _, _) = payer.offer();
    assert!(again != id && attempt == 0);
}

#[test]
fn a_busy_channel_is_followed_by_another_attempt_with_another_onion() {
    let mut payer = Payer::new(vec![usual(A), usual(B)]);
    payer.pay(request(bolt11(9)));
    let (id, _, first, offer, entry) = payer.offer();
    payer.entry(&entry);
    payer.fact(first, committed(id, 0, 0));
    payer.fact(first, failed(id, 0, 0, &BUSY));
    let Some(Order::Write(ended)) = payer.orders.pop() else { panic!("{:?}", payer.orders) };
    let (_, attempt, second, again, entry) = payer.offer();
    assert_eq!(attempt, 1);
    assert_ne!(first, second);
    assert_ne!(offer.onion, again.onion);
    let offered = PaymentEntry::decode(&entry.bytes).unwrap();
    assert!(matches!(offered, PaymentEntry::Offered { .. }));
    payer.entry(&entry);
    assert!(payer.orders.is_empty(), "the outcome is kept until why it failed is durable");
    payer.entry(&ended[0]);
    assert!(matches!(payer.orders[..], [Order::Release(channel, HtlcId(0))] if channel == first));
    payer.orders.clear();
    payer.fact(second, committed(id, 1, 0));
    payer.fact(second, fulfilled(id, 1, 0, 9));
    let names: Vec<bool> = payer.happened.iter().map(|what| matches!(what, Happened::AttemptBegun { .. })).collect();
    assert_eq!(names.iter().filter(|is_begun| **is_begun).count(), 1);
    assert!(matches!(payer.happened.last(), Some(Happened::PaymentSucceeded { .. })));
}

#[test]
fn no_second_attempt_after_its_time() {
    let mut payer = Payer::new(vec![usual(A), usual(B)]);
    let (id, channel_id, _, _) = under_way(&mut payer, 9);
    payer.now = Millis(60_000);
    payer.fact(channel_id, failed(id, 0, 0, &BUSY));
    assert!(matches!(payer.orders[..], [Order::Write(_)]));
}

#[test]
fn no_second_attempt_after_its_invoice_has_expired() {
    let mut payer = Payer::new(vec![usual(A), usual(B)]);
    let (id, channel_id, _, _) = under_way(&mut payer, 9);
    payer.unix_ms = 10_000_000_000;
    payer.fact(channel_id, failed(id, 0, 0, &BUSY));
    let (_, failure) = payer.given_up();
    assert_eq!(failure.reason, FailureReason::InvoiceExpired);
}

#[test]
fn dropped_with_the_connection_it_fails_unless_another_channel_takes_it() {
    let mut payer = Payer::new(vec![usual(A)]);
    payer.pay(request(bolt11(9)));
    let (id, _, _, _, entry) = payer.offer();
    payer.entry(&entry);
    payer.fact(A, Fact::OfferDropped { origin: origin(id, 0) });
    let (_, failure) = payer.given_up();
    assert_eq!(failure.reason, FailureReason::PeerDisconnected);
}

#[test]
fn come_back_on_chain_it_has_failed_for_good() {
    let mut payer = Payer::new(vec![usual(A), usual(B)]);
    let (id, channel_id, _, _) = under_way(&mut payer, 9);
    payer.fact(channel_id, Fact::OfferTimedOut { id: HtlcId(0), origin: origin(id, 0) });
    let (_, failure) = payer.given_up();
    assert_eq!(failure.reason, FailureReason::ChannelClosed);
}

#[test]
fn full_channels_make_it_wait_and_a_free_slot_lets_it_go() {
    let narrow = channel(A, |_, terms| terms.parties.remote.max_accepted_htlcs = 1);
    let mut payer = Payer::new(vec![narrow]);
    let (id, _, _, _) = under_way(&mut payer, 9);
    let mut waiting = payer.pay(request(bolt11(8)));
    assert!(payer.orders.is_empty() && waiting.try_recv().is_err());
    payer.fact(A, fulfilled(id, 0, 0, 9));
    payer.with(|sending, world, out| sending.retry(world, false, out));
    assert!(payer.orders.is_empty(), "fulfilled, but its slot is not free yet");
    let removal = Removal::Fulfill { preimage: Preimage::new([9; 32]), attribution: None };
    payer.fact(A, Fact::OfferResolved { id: HtlcId(0), origin: origin(id, 0), removal });
    payer.orders.clear();
    payer.with(|sending, world, out| sending.retry(world, false, out));
    let (_, _, _, offer, _) = payer.offer();
    assert_eq!(offer.payment_hash, hash(8));
    // Another one waits too long.
    let mut late = payer.pay(request(bolt11(7)));
    payer.now = Millis(60_001);
    payer.with(|sending, world, out| sending.retry(world, true, out));
    assert_eq!(refusal(&mut late), PayRefusal::TooManyHtlcs { limit: 1 });
}

#[test]
fn the_load_is_spread_over_the_channels() {
    let mut payer = Payer::new(vec![usual(A), usual(B)]);
    let mut by_channel = HashMap::new();
    for n in 1..=10 {
        payer.pay(request(bolt11(n)));
        let (_, _, channel_id, _, _) = payer.offer();
        *by_channel.entry(channel_id).or_insert(0) += 1;
    }
    assert_eq!((by_channel[&A], by_channel[&B]), (5, 5));
}

#[test]
fn after_a_restart_what_never_left_is_given_up_once_and_what_left_is_waited_for() {
    let mut payer = Payer::new(vec![usual(A)]);
    payer.pay(request(bolt11(9)));
    let (never_left, _, _, _, entry) = payer.offer();
    payer.entry(&entry);
    let (left, _, _, _) = under_way(&mut payer, 8);
    let mut restarted = payer.restarted();
    let mut out = Vec::new();
    restarted.sending.sweep(&mut out);
    let [Order::Write(entries)] = &out[..] else { panic!("{out:?}") };
    let [entry] = &entries[..] else { panic!("{entries:?}") };
    let PaymentEntry::GivenUp { id, failure } = PaymentEntry::decode(&entry.bytes).unwrap() else { panic!() };
    assert_eq!((id, failure.reason), (never_left, FailureReason::PeerDisconnected));
    let mut again = Vec::new();
    restarted.sending.sweep(&mut again);
    assert!(again.is_empty(), "once");
    restarted.entry(entry);
    restarted.fact(A, fulfilled(left, 0, 0, 8));
    assert_eq!(restarted.sending.len(), 0);
    let last = &restarted.happened[restarted.happened.len() - 1];
    assert!(matches!(last, Happened::PaymentSucceeded { id, .. } if *id == left));
}

#[test]
fn after_a_restart_a_failure_that_is_told_again_is_read_with_the_same_key() {
    let mut payer = Payer::new(vec![usual(A)]);
    let (id, _, _, _) = under_way(&mut payer, 9);
    let mut restarted = payer.restarted();
    restarted.fact(A, failed(id, 0, 0, &UNKNOWN));
    let (_, failure) = restarted.given_up();
    assert_eq!(failure.reason, FailureReason::PayeeRefused);
    let mut out = Vec::new();
    restarted.sending.sweep(&mut out);
    assert!(out.is_empty(), "it is decided already");
}

#[test]
fn facts_that_come_before_the_acceptance_on_replay_are_not_lost() {
    let mut payer = Payer::new(vec![usual(A)]);
    payer.pay(request(bolt11(9)));
    let (id, _, _, _, entry) = payer.offer();
    let mut replayed = Payer::new(vec![usual(A)]);
    for fact in [committed(id, 0, 0), fulfilled(id, 0, 0, 9)] {
        let Payer { sending, orders, happened, .. } = &mut replayed;
        sending.on_fact(B, fact, 5, true, None, orders, happened);
    }
    assert!(replayed.happened.is_empty());
    replayed.entry(&entry);
    assert!(matches!(replayed.happened[..], [Happened::PaymentStarted(_), Happened::PaymentSucceeded { .. }]));
    assert_eq!(replayed.sending.len(), 0);
}

/// D6 and D14, cut after every step of a story: what is replayed is what was live, and what was in the journal is known.
#[test]
fn cut_anywhere_replay_equals_live() {
    let mut payer = Payer::new(vec![usual(A), usual(B)]);
    let mut journal: Vec<(Option<ChannelId>, Vec<Entry>, Vec<Fact>)> = Vec::new();
    let mut states = vec![payer.sending.section()];
    let step =
        |payer: &mut Payer, journal: &mut Vec<_>, source: Option<ChannelId>, entries: Vec<Entry>, facts: Vec<Fact>| {
            entries.iter().for_each(|entry| payer.entry(entry));
            facts.iter().for_each(|fact| payer.fact(source.unwrap(), fact.clone()));
            journal.push((source, entries, facts));
            postcard::to_stdvec(&payer.sending.section()).unwrap()
        };
    let mut live = vec![postcard::to_stdvec(&states.remove(0)).unwrap()];
    // One that succeeds, one that is tried twice and succeeds, one that fails.
    let mut ids = Vec::new();
    for n in [1, 2, 3] {
        payer.pay(keyed(n, &format!("key {n}")));
        let (id, _, channel_id, _, entry) = payer.offer();
        live.push(step(&mut payer, &mut journal, Some(channel_id), vec![entry], vec![committed(id, 0, u64::from(n))]));
        ids.push((id, channel_id));
    }
    let (one, a) = ids[0];
    live.push(step(&mut payer, &mut journal, Some(a), vec![], vec![fulfilled(one, 0, 1, 1)]));
    let (two, b) = ids[1];
    live.push(step(&mut payer, &mut journal, Some(b), vec![], vec![failed(two, 0, 2, &BUSY)]));
    let Some(Order::Write(ended)) = payer.orders.pop() else { panic!("{:?}", payer.orders) };
    let (_, _, other, _, offered) = payer.offer();
    let facts = vec![committed(two, 1, 4)];
    live.push(step(&mut payer, &mut journal, Some(other), vec![offered], facts));
    live.push(step(&mut payer, &mut journal, None, ended, vec![]));
    payer.orders.clear();
    live.push(step(&mut payer, &mut journal, Some(other), vec![], vec![fulfilled(two, 1, 4, 2)]));
    let (three, c) = ids[2];
    live.push(step(&mut payer, &mut journal, Some(c), vec![], vec![failed(three, 0, 3, &UNKNOWN)]));
    let given_up = payer.write();
    live.push(step(&mut payer, &mut journal, None, given_up, vec![]));
    assert_eq!(payer.sending.len(), 0);

    for cut in 0..=journal.len() {
        let mut replayed = Payer::new(vec![usual(A), usual(B)]);
        replayed.unix_ms = payer.unix_ms;
        for (source, entries, facts) in &journal[..cut] {
            entries.iter().for_each(|entry| replayed.entry(entry));
            for fact in facts {
                let Payer { sending, orders, happened, unix_ms, .. } = &mut replayed;
                sending.on_fact(source.unwrap(), fact.clone(), *unix_ms, true, None, orders, happened);
            }
        }
        let found: SendingSection = postcard::from_bytes(&live[cut]).unwrap();
        let expected = (found.payments.len(), found.paid.clone());
        let section = replayed.sending.section();
        assert_eq!((section.payments.len(), section.paid.clone()), expected, "cut after {cut}");
        for (mine, theirs) in section.payments.iter().zip(&found.payments) {
            assert_eq!(mine.row, theirs.row, "cut after {cut}");
            let states = |saved: &Saved| saved.attempts.iter().map(|a| a.state).collect::<Vec<_>>();
            assert_eq!(states(mine), states(theirs), "cut after {cut}");
        }
        // Each HTLC that may be out there belongs to a payment that is known, and each key to its payment.
        for (n, (id, _)) in (1_u8..).zip(ids.iter().take(cut.min(3))) {
            let request = RequestHash::of("pay", bolt11(n).as_bytes());
            let hash = KeyHash::of(&format!("key {n}")).unwrap();
            assert_eq!(replayed.keys.reserve(hash, request, b"new", 0).unwrap(), Reserved::Same(id.0[..].into()));
            let started = |what: &Happened| matches!(what, Happened::PaymentStarted(s) if s.id == *id);
            assert!(replayed.happened.iter().any(started));
        }
    }
}
