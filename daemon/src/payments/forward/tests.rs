#![allow(clippy::unwrap_used)]

mod hand;
mod late;
mod model;

use std::sync::Arc;

use lightning::ln::msgs::{self, UnsignedChannelUpdate};
use millrace_channel::keys::ChannelKeys;
use millrace_channel::ledger::htlc::Removal;
use millrace_channel::phase::on_chain::ending::LastState;
use millrace_channel::{Both, ChannelType, Fact, PartyTerms, Side, Terms};
use millrace_routing::SharedSecret;
use millrace_routing::failure::{Failure, FailureMessage, code, decode_attributed, encrypt};
use millrace_routing::onion::Forward;
use millrace_wire::{
    BlockHeight, ChainHash, ChannelId, ChannelUpdate, CltvDelta, CltvExpiry, CommitmentNumber, FeeratePerKw, HtlcId,
    Msat, OnionPacket, Preimage, PublicKey, Sat, ShortChannelId,
};
use secp256k1::{SECP256K1, SecretKey};

use super::choose::Channels;
use super::*;
use crate::channels::{Accepted, ChannelSnapshot, ChannelState, CommandError, NoNewWork};
use crate::payments::judge::Received;
use crate::policy::{ForwardPolicy, Policies};

/// Comes in here, from node 1.
const IN: ChannelId = ChannelId([1; 32]);
/// Goes out here, to node 2.
const OUT: ChannelId = ChannelId([2; 32]);
/// Or here, to the same.
const ALSO: ChannelId = ChannelId([3; 32]);
const KEY: Key = (IN, HtlcId(5));
const SECRET: SharedSecret = SharedSecret::new([9; 32]);
const UPDATE: [u8; 5] = [1, 2, 7, 8, 9];

fn node(n: u8) -> PublicKey {
    SecretKey::from_slice(&[n; 32]).unwrap().public_key(SECP256K1)
}

fn preimage() -> Preimage {
    Preimage::new([4; 32])
}

fn alias(id: ChannelId) -> ShortChannelId {
    ShortChannelId(u64::from(id.0[0]))
}

fn channel(id: ChannelId, peer: u8) -> ChannelSnapshot {
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
    let terms = Terms {
        channel_id: id,
        remote_node: node(peer),
        funder: Side::Local,
        channel_type: ChannelType::ANCHORS,
        funding_outpoint: bitcoin::OutPoint::null(),
        capacity: Sat(1_000_000),
        push: Msat(0),
        minimum_depth: 3,
        announce: false,
        parties: Both { local: party(), remote: party() },
    };
    ChannelSnapshot {
        channel_id: id,
        peer: node(peer),
        terms: Arc::new(terms),
        state: ChannelState::Normal,
        is_online: true,
        opened_ms: 0,
        short_channel_id: Some(ShortChannelId(1_000 + u64::from(id.0[0]))),
        local_alias: alias(id),
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
        announcement: None,
        ending: None,
        last_error: None,
    }
}

/// Channels as they are.
#[derive(Default)]
struct Table(Vec<ChannelSnapshot>);

impl Table {
    fn find(&self, is_it: impl Fn(&ChannelSnapshot) -> bool) -> Option<Arc<ChannelSnapshot>> {
        self.0.iter().find(|channel| is_it(channel)).cloned().map(Arc::new)
    }
}

impl Channels for Table {
    fn by_scid(&self, scid: ShortChannelId) -> Option<Arc<ChannelSnapshot>> {
        self.find(|channel| channel.local_alias == scid || channel.short_channel_id == Some(scid))
    }

    fn channel(&self, id: ChannelId) -> Option<Arc<ChannelSnapshot>> {
        self.find(|channel| channel.channel_id == id)
    }

    fn with(&self, peer: &PublicKey) -> Vec<Arc<ChannelSnapshot>> {
        self.0.iter().filter(|channel| channel.peer == *peer).cloned().map(Arc::new).collect()
    }
}

/// A switch and what surrounds it.
struct Stand {
    forwarding: Forwarding,
    table: Table,
    policies: Policies,
    new_work: Result<(), NoNewWork>,
    height: Option<BlockHeight>,
    now_ms: u64,
    update: Vec<u8>,
    acts: Vec<Act>,
    happened: Vec<Happened>,
}

impl Stand {
    fn new() -> Self {
        Self {
            forwarding: Forwarding::default(),
            table: Table(vec![channel(IN, 1), channel(OUT, 2), channel(ALSO, 2)]),
            policies: Policies::new(ForwardPolicy::default()),
            new_work: Ok(()),
            height: Some(BlockHeight(1_000)),
            now_ms: 50_000,
            update: UPDATE.to_vec(),
            acts: Vec::new(),
            happened: Vec::new(),
        }
    }

    fn tell(&mut self, channel_id: ChannelId, fact: &Fact) {
        self.tell_with(channel_id, fact, None);
    }

    fn tell_with(&mut self, channel_id: ChannelId, fact: &Fact, onion: Option<u8>) {
        let onion = onion.map(|n| ReceivedOnion { onion: Box::new(OnionPacket([n; 1366])), path_key: None });
        let Self { forwarding, acts, happened, now_ms, .. } = self;
        forwarding.on_fact(channel_id, fact, onion.as_ref(), *now_ms, false, acts, happened);
    }

    /// What follows now.
    fn go_on(&mut self) -> Vec<Act> {
        self.go_on_at(false)
    }

    fn go_on_at(&mut self, is_tick: bool) -> Vec<Act> {
        let Self { forwarding, table, policies, new_work, height, now_ms, acts, update, .. } = self;
        let sight = Sight {
            channels: table,
            policies,
            update_of: &|_| Some(update.clone()),
            new_work: new_work.clone(),
            height: *height,
            peer_share_percent: 50,
            unix_ms: *now_ms,
        };
        forwarding.go_on(&sight, is_tick, acts);
        std::mem::take(acts)
    }

    fn receive(&mut self, key: Key) {
        let fact = received_fact(key, 10_002_000, 1_180);
        self.tell_with(key.0, &fact, Some(u8::try_from(key.1.0).unwrap()));
    }

    fn peel(&mut self, key: Key, forward: Forward) {
        assert!(self.forwarding.take_onion(key));
        self.forwarding.begin(&received(key), SECRET, forward, self.now_ms);
    }

    /// One that asks for what the policy just allows.
    fn forward_one(&mut self, key: Key) -> Vec<Act> {
        self.receive(key);
        self.peel(key, forward(10_000_000, 1_100));
        self.go_on()
    }

    /// The code with which it fails at once.
    fn fails(&mut self, change: impl FnOnce(&mut Self, &mut Forward)) -> FailureMessage {
        self.receive(KEY);
        let mut asked = forward(10_000_000, 1_100);
        change(self, &mut asked);
        self.peel(KEY, asked);
        let acts = self.go_on();
        let [Act::Fail { key: KEY, failure, went_on: false }] = acts.as_slice() else { panic!("{acts:?}") };
        read(failure)
    }
}

fn read(failure: &Failure) -> FailureMessage {
    let read = decode_attributed(&[SECRET], &failure.reason, Some(&failure.attribution));
    assert_eq!((read.hold_times.hops.len(), read.hold_times.broken_at), (1, None));
    read.failure.unwrap().message
}

fn received_fact((_, id): Key, amount: u64, expiry: u32) -> Fact {
    Fact::HtlcReceived {
        id,
        amount: Msat(amount),
        payment_hash: preimage().hash(),
        cltv_expiry: CltvExpiry(expiry),
        over_dust_exposure: false,
    }
}

fn received(key: Key) -> Received {
    Received {
        channel_id: key.0,
        id: key.1,
        amount: Msat(10_002_000),
        payment_hash: preimage().hash(),
        cltv_expiry: CltvExpiry(1_180),
        over_dust_exposure: false,
    }
}

fn forward(amount: u64, expiry: u32) -> Forward {
    Forward {
        next: alias(OUT),
        amount: Msat(amount),
        expiry: CltvExpiry(expiry),
        packet: Box::new(OnionPacket([8; 1366])),
    }
}

fn origin(key: Key) -> Origin {
    Origin::Forward { channel_id: key.0, htlc_id: key.1 }
}

fn committed(key: Key) -> Fact {
    Fact::OfferCommitted { id: HtlcId(70), origin: origin(key), amount: Msat(10_000_000) }
}

fn fulfilled(key: Key) -> Fact {
    Fact::OfferFulfilled { id: HtlcId(70), origin: origin(key), preimage: preimage() }
}

fn resolved(key: Key, removal: Removal) -> Fact {
    Fact::OfferResolved { id: HtlcId(70), origin: origin(key), removal }
}

fn settled_removal() -> Removal {
    Removal::Fulfill { preimage: preimage(), attribution: None }
}

fn is_offer_to(acts: &[Act], channel: ChannelId) -> bool {
    matches!(acts, [Act::Offer { channel_id, .. }] if *channel_id == channel)
}

#[test]
fn a_preimage_goes_up_at_once_and_the_outcome_is_kept_until_the_end() {
    let mut stand = Stand::new();
    let acts = stand.forward_one(KEY);
    let [Act::Offer { key: KEY, channel_id: OUT, offer }] = acts.as_slice() else { panic!("{acts:?}") };
    assert_eq!((offer.amount, offer.cltv_expiry, offer.origin), (Msat(10_000_000), CltvExpiry(1_100), origin(KEY)));
    assert_eq!(offer.payment_hash, preimage().hash());
    stand.forwarding.answered(KEY, OUT, Ok(Accepted::Offered(HtlcId(70))), 0);
    stand.tell(OUT, &committed(KEY));
    assert_eq!(stand.go_on(), []);
    stand.tell(OUT, &fulfilled(KEY));
    let acts = stand.go_on();
    assert!(matches!(&acts[..], [Act::Fulfill { key: KEY, preimage: p, attribution: Some(_) }] if *p == preimage()));
    stand.tell(OUT, &resolved(KEY, settled_removal()));
    assert_eq!(stand.go_on(), [], "once is enough, and nothing is released yet");
    stand.tell(IN, &Fact::RemovalIrrevocable { id: KEY.1, fulfilled: true });
    assert_eq!(stand.go_on(), [Act::Release(OUT, HtlcId(70))]);
    assert_eq!((stand.forwarding.len(), stand.forwarding.live.len()), (0, 0));
    let [Happened::Forwarded(told)] = stand.happened.as_slice() else { panic!("{:?}", stand.happened) };
    assert_eq!((told.end, told.fee()), (ForwardEnd::Settled, Msat(2_000)));
}

#[test]
fn how_long_others_held_it_goes_up_with_the_preimage() {
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    let behind = SharedSecret::new([6; 32]);
    let attribution = millrace_routing::failure::fulfill(&behind, None, millrace_routing::failure::HoldTime(3));
    stand.tell(OUT, &Fact::OfferAttributed { origin: origin(KEY), attribution });
    stand.tell(OUT, &fulfilled(KEY));
    stand.now_ms += 500;
    let acts = stand.go_on();
    let [Act::Fulfill { attribution: Some(attribution), .. }] = acts.as_slice() else { panic!("{acts:?}") };
    let times = millrace_routing::failure::hold_times(&[SECRET, behind], attribution);
    assert_eq!((times.hops.iter().map(|time| time.0).collect::<Vec<_>>(), times.broken_at), (vec![5, 3], None));
}

#[test]
fn a_failure_goes_up_only_when_the_removal_is_irrevocable() {
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    stand.now_ms += 700;
    let reason = encrypt(&SharedSecret::new([6; 32]), &FailureMessage::TemporaryNodeFailure);
    stand.tell(OUT, &resolved(KEY, Removal::Fail { reason, attribution: None }));
    let acts = stand.go_on();
    let [Act::Fail { failure, went_on: true, .. }] = acts.as_slice() else { panic!("{acts:?}") };
    let read = decode_attributed(&[SECRET, SharedSecret::new([6; 32])], &failure.reason, Some(&failure.attribution));
    let decoded = read.failure.unwrap();
    assert_eq!((decoded.hop, decoded.message), (1, FailureMessage::TemporaryNodeFailure));
    assert_eq!(read.hold_times.hops[0].0, 7, "700 ms");
    stand.tell(IN, &Fact::RemovalIrrevocable { id: KEY.1, fulfilled: false });
    assert_eq!(stand.go_on(), [Act::Release(OUT, HtlcId(70))]);
}

#[test]
fn what_the_next_hop_cannot_read_or_what_ends_on_chain_fails_by_our_word() {
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    let removal = Removal::Malformed { sha256_of_onion: [3; 32], failure_code: code::INVALID_ONION_KEY };
    stand.tell(OUT, &resolved(KEY, removal));
    let acts = stand.go_on();
    let [Act::Fail { failure, .. }] = acts.as_slice() else { panic!("{acts:?}") };
    assert_eq!(read(failure), FailureMessage::InvalidOnionKey { sha256_of_onion: [3; 32] });

    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    stand.tell(OUT, &Fact::OfferTimedOut { id: HtlcId(70), origin: origin(KEY) });
    let acts = stand.go_on();
    let [Act::Fail { failure, .. }] = acts.as_slice() else { panic!("{acts:?}") };
    assert_eq!(read(failure), FailureMessage::PermanentChannelFailure);
}

#[test]
fn a_channel_that_is_closed_ends_what_was_in_it() {
    let closed = || {
        Fact::Closed(Box::new(LastState {
            short_channel_id: None,
            local_alias: alias(OUT),
            remote_alias: None,
            required_depth: 3,
            balances: Both::default(),
            feerate: FeeratePerKw(253),
            commitment_numbers: Both { local: CommitmentNumber(0), remote: CommitmentNumber(0) },
            ending: None,
        }))
    };
    // Downstream: what was not resolved never will be.
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    stand.tell(OUT, &closed());
    assert!(matches!(&stand.go_on()[..], [Act::Fail { went_on: true, .. }]));
    // With a preimage it has succeeded all the same.
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    stand.tell(OUT, &fulfilled(KEY));
    stand.tell(OUT, &closed());
    assert!(matches!(&stand.go_on()[..], [Act::Fulfill { .. }]));
    // Upstream: nobody is to be told anything any more, and the outcome need not be kept.
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    stand.tell(IN, &closed());
    assert_eq!(stand.go_on(), []);
    assert_eq!(stand.forwarding.len(), 1, "it is still out there");
    stand.tell(OUT, &resolved(KEY, settled_removal()));
    assert_eq!(stand.go_on(), [Act::Release(OUT, HtlcId(70))]);
    assert_eq!(stand.forwarding.len(), 0);
}

#[test]
fn each_reason_not_to_pass_it_on() {
    let with = |code| (code, UPDATE.to_vec());
    type Change = fn(&mut Stand, &mut Forward);
    let table: [(&str, Change, u16); 18] = [
        ("no such channel", |_, asked| asked.next = ShortChannelId(99), code::UNKNOWN_NEXT_PEER),
        ("not open yet", |stand, _| both(stand, ChannelState::Opening), code::UNKNOWN_NEXT_PEER),
        ("closing", |stand, _| both(stand, ChannelState::ShuttingDown), code::CHANNEL_DISABLED),
        ("on chain", |stand, _| both(stand, ChannelState::OnChain), code::PERMANENT_CHANNEL_FAILURE),
        ("the peer is away", |stand, _| away(stand), code::TEMPORARY_CHANNEL_FAILURE),
        ("it is announced as disabled", |stand, _| announced_as_disabled(stand), code::CHANNEL_DISABLED),
        ("no balance", |stand, _| poor(stand), code::TEMPORARY_CHANNEL_FAILURE),
        ("too little fee", |_, asked| asked.amount = Msat(10_000_001), code::FEE_INSUFFICIENT),
        ("more out than in", |_, asked| asked.amount = Msat(10_002_001), code::FEE_INSUFFICIENT),
        ("too few blocks", |_, asked| asked.expiry = CltvExpiry(1_101), code::INCORRECT_CLTV_EXPIRY),
        ("too soon", |_, asked| asked.expiry = CltvExpiry(1_012), code::EXPIRY_TOO_SOON),
        ("too small", |stand, _| bounds(stand, Msat(10_000_001), None), code::AMOUNT_BELOW_MINIMUM),
        ("too large", |stand, _| bounds(stand, Msat(1), Some(Msat(9_999_999))), code::TEMPORARY_CHANNEL_FAILURE),
        ("no chain", |stand, _| stand.height = None, code::TEMPORARY_NODE_FAILURE),
        ("the disk is full", |stand, _| stand.new_work = Err(disk_low()), code::TEMPORARY_NODE_FAILURE),
        ("the peer takes no such small ones", |stand, _| picky(stand), code::AMOUNT_BELOW_MINIMUM),
        (
            "its own channel is on chain",
            |stand, _| stand.table.0[0].state = ChannelState::OnChain,
            code::TEMPORARY_CHANNEL_FAILURE,
        ),
        ("its real id", |stand, asked| secret_id(stand, asked), code::UNKNOWN_NEXT_PEER),
    ];
    for (name, change, expected) in table {
        let message = Stand::new().fails(change);
        assert_eq!(message.code(), expected, "{name}: {message:?}");
        if let FailureMessage::FeeInsufficient { amount, channel_update } = message {
            assert_eq!((code::FEE_INSUFFICIENT, channel_update), with(expected));
            assert_eq!(amount, Msat(10_002_000), "what came in");
        }
    }
    let mut stand = Stand::new();
    stand.tell_with(IN, &received_fact(KEY, 10_002_000, 3_100), Some(5));
    stand.peel(KEY, forward(10_000_000, 1_100));
    let acts = stand.go_on();
    let [Act::Fail { failure, .. }] = acts.as_slice() else { panic!("{acts:?}") };
    assert_eq!(read(failure), FailureMessage::ExpiryTooFar);
}

fn both(stand: &mut Stand, state: ChannelState) {
    stand.table.0[1].state = state;
    stand.table.0[2].state = state;
}

fn away(stand: &mut Stand) {
    stand.table.0[1].is_online = false;
    stand.table.0[2].is_online = false;
}

fn poor(stand: &mut Stand) {
    stand.table.0[1].available_to_send = Msat(9_999_999);
    stand.table.0[2].available_to_send = Msat(9_999_999);
}

fn announced_as_disabled(stand: &mut Stand) {
    away(stand);
    let contents = UnsignedChannelUpdate {
        chain_hash: ChainHash::REGTEST,
        short_channel_id: 1,
        timestamp: 5,
        message_flags: 1,
        channel_flags: 2,
        cltv_expiry_delta: 80,
        htlc_minimum_msat: 1,
        htlc_maximum_msat: 2,
        fee_base_msat: 3,
        fee_proportional_millionths: 4,
        excess_data: Vec::new(),
    };
    let signature = secp256k1::ecdsa::Signature::from_compact(&[1; 64]).unwrap();
    let update = ChannelUpdate::new(msgs::ChannelUpdate { signature, contents });
    stand.update = [&258_u16.to_be_bytes()[..], update.bytes()].concat();
}

fn picky(stand: &mut Stand) {
    for channel in &mut stand.table.0 {
        Arc::get_mut(&mut channel.terms).unwrap().parties.remote.htlc_minimum = Msat(10_000_001);
    }
}

fn secret_id(stand: &mut Stand, asked: &mut Forward) {
    Arc::get_mut(&mut stand.table.0[1].terms).unwrap().channel_type.scid_alias = true;
    asked.next = stand.table.0[1].short_channel_id.unwrap();
}

fn bounds(stand: &mut Stand, htlc_minimum: Msat, htlc_maximum: Option<Msat>) {
    stand.policies.set(OUT, ForwardPolicy { htlc_minimum, htlc_maximum, ..ForwardPolicy::default() });
    // What held before is taken for ten minutes.
    stand.now_ms = u64::MAX;
}

fn disk_low() -> NoNewWork {
    NoNewWork::DiskLow("full".to_owned())
}

#[test]
fn another_channel_with_the_same_peer_that_asks_for_no_more() {
    let mut stand = Stand::new();
    stand.table.0[1].available_to_send = Msat(5);
    assert!(is_offer_to(&stand.forward_one(KEY), ALSO));
    // It refuses, and the named one cannot: then nothing can.
    let refusal = CommandError::Refused(millrace_channel::Refusal::NotUsable("it is closing"));
    stand.forwarding.answered(KEY, ALSO, Err(refusal), 0);
    let acts = stand.go_on();
    let [Act::Fail { failure, .. }] = acts.as_slice() else { panic!("{acts:?}") };
    assert_eq!(read(failure).code(), code::TEMPORARY_CHANNEL_FAILURE);

    let mut stand = Stand::new();
    stand.table.0[1].available_to_send = Msat(5);
    stand.policies.set(ALSO, ForwardPolicy { cltv_delta: CltvDelta(81), ..ForwardPolicy::default() });
    stand.now_ms = u64::MAX;
    let acts = stand.forward_one(KEY);
    assert!(matches!(&acts[..], [Act::Fail { .. }]), "the other one asks for more: {acts:?}");
}

#[test]
fn an_offer_that_was_dropped_goes_by_the_other_channel_once() {
    let mut stand = Stand::new();
    assert!(is_offer_to(&stand.forward_one(KEY), OUT));
    stand.tell(OUT, &Fact::OfferDropped { origin: origin(KEY) });
    assert!(is_offer_to(&stand.go_on(), ALSO));
    // Late answers and news of the first change nothing.
    stand.forwarding.answered(KEY, OUT, Ok(Accepted::Offered(HtlcId(70))), 0);
    assert_eq!(stand.go_on(), []);
    stand.tell(ALSO, &Fact::OfferDropped { origin: origin(KEY) });
    let acts = stand.go_on();
    assert!(matches!(&acts[..], [Act::Fail { went_on: false, .. }]), "{acts:?}");
}

#[test]
fn while_the_node_stops_nothing_is_decided() {
    let mut stand = Stand::new();
    stand.new_work = Err(NoNewWork::Stopping);
    assert_eq!(stand.forward_one(KEY), []);
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.forwarding.answered(KEY, OUT, Err(CommandError::NoNewWork(NoNewWork::Stopping)), 0);
    assert_eq!(stand.go_on_at(true), [], "it may be on its way to the disk");
}

#[test]
fn a_busy_channel_is_waited_for_but_not_for_long() {
    let mut stand = Stand::new();
    let busy = || Err(CommandError::Busy { waiting: 9 });
    stand.forward_one(KEY);
    stand.forwarding.answered(KEY, OUT, busy(), stand.now_ms);
    assert_eq!(stand.go_on(), []);
    assert!(is_offer_to(&stand.go_on_at(true), OUT), "tried again at the tick");
    stand.forwarding.answered(KEY, OUT, busy(), stand.now_ms);
    stand.now_ms += 1_000;
    assert!(is_offer_to(&stand.go_on_at(true), ALSO));
    stand.forwarding.answered(KEY, ALSO, busy(), stand.now_ms);
    let acts = stand.go_on();
    assert!(matches!(&acts[..], [Act::Fail { .. }]), "{acts:?}");
}

#[test]
fn the_queue_of_a_channel_has_an_end() {
    let mut stand = Stand::new();
    stand.table.0.truncate(2);
    for n in 0..65 {
        let key = (IN, HtlcId(n));
        assert!(is_offer_to(&stand.forward_one(key), OUT));
        stand.forwarding.answered(key, OUT, Err(CommandError::Busy { waiting: 9 }), stand.now_ms);
        let acts = stand.go_on();
        assert_eq!(acts.len(), usize::from(n == 64), "{n}: {acts:?}");
    }
}

#[test]
fn one_peer_gets_half_of_the_slots_and_of_the_liquidity() {
    let mut stand = Stand::new();
    stand.table.0.truncate(2);
    Arc::get_mut(&mut stand.table.0[1].terms).unwrap().parties.remote.max_accepted_htlcs = 4;
    // A second channel of the first peer counts to the same share; another peer has its own.
    let (second, other) = (ChannelId([7; 32]), ChannelId([8; 32]));
    stand.table.0.extend([channel(second, 1), channel(other, 3)]);
    for key in [(IN, HtlcId(1)), (second, HtlcId(2))] {
        assert!(is_offer_to(&stand.forward_one(key), OUT));
        stand.tell(OUT, &committed(key));
    }
    let mut restarted = Stand { table: Table(stand.table.0.clone()), ..Stand::new() };
    restarted.forwarding.restore(stand.forwarding.section());
    for stand in [&mut stand, &mut restarted] {
        assert!(matches!(&stand.forward_one((IN, HtlcId(3)))[..], [Act::Fail { .. }]));
    }
    assert!(is_offer_to(&stand.forward_one((other, HtlcId(4))), OUT));
    // A slot that is free again.
    stand.tell(OUT, &resolved((IN, HtlcId(1)), settled_removal()));
    stand.go_on();
    assert!(is_offer_to(&stand.forward_one((IN, HtlcId(6))), OUT));

    let mut stand = Stand::new();
    stand.table.0.truncate(2);
    (stand.table.0[1].balances.local, stand.table.0[1].in_flight.local) = (Msat(25_000_000), Msat(10_000_000));
    assert!(is_offer_to(&stand.forward_one((IN, HtlcId(1))), OUT));
    assert!(matches!(&stand.forward_one((IN, HtlcId(2)))[..], [Act::Fail { .. }]), "20 of 35 is more than half");
}

#[test]
fn an_onion_that_went_on_is_never_taken_again() {
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    let again = (IN, HtlcId(6));
    stand.tell_with(IN, &received_fact(again, 10_002_000, 1_180), Some(5));
    assert!(!stand.forwarding.take_onion(again), "another HTLC has it");
    stand.tell(OUT, &committed(KEY));
    stand.tell(OUT, &resolved(KEY, settled_removal()));
    stand.tell(IN, &Fact::RemovalIrrevocable { id: KEY.1, fulfilled: true });
    stand.go_on();
    let mut restarted = Stand::new();
    restarted.forwarding.restore(stand.forwarding.section());
    assert!(!restarted.forwarding.take_onion(again), "also after a restart");
    restarted.forwarding.prune(BlockHeight(1_400));
    assert!(restarted.forwarding.take_onion(again), "it has expired");
}

#[test]
fn an_htlc_that_went_on_before_a_restart_waits_for_its_end() {
    let mut stand = Stand::new();
    stand.forward_one(KEY);
    stand.tell(OUT, &committed(KEY));
    let mut restarted = Stand::new();
    restarted.forwarding.restore(stand.forwarding.section());
    restarted.receive(KEY);
    restarted.peel(KEY, forward(10_000_000, 1_100));
    assert_eq!(restarted.go_on(), [], "it is out there");
    // Failed while nothing was peeled yet: it waits for the secret.
    let mut unpeeled = Stand::new();
    unpeeled.forwarding.restore(stand.forwarding.section());
    unpeeled.receive(KEY);
    let reason = encrypt(&SharedSecret::new([6; 32]), &FailureMessage::TemporaryNodeFailure);
    unpeeled.tell(OUT, &resolved(KEY, Removal::Fail { reason, attribution: None }));
    assert_eq!(unpeeled.go_on(), []);
    unpeeled.peel(KEY, forward(10_000_000, 1_100));
    assert!(matches!(&unpeeled.go_on()[..], [Act::Fail { went_on: true, .. }]));
}
