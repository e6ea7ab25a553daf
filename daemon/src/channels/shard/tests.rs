//! A shard whose journal is held back, and a peer that is played by the pure channel crate: what leaves before a flush,
//! what after, and what never.

#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Instant;

use bitcoin::hashes::Hash;
use bitcoin::{Amount, BlockHash, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use millrace_chain::SyncState;
use millrace_chain::fees::FeeEstimates;
use millrace_channel::curve::Serial;
use millrace_channel::keys::ChannelKeys;
use millrace_channel::ledger::htlc::Origin;
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::phase::opening::{
    AcceptParams, LocalParams, Opening, OpeningEvent, OpeningFeatures, OpeningLimits, Surroundings,
};
use millrace_channel::{Effects, Fact, Offer, Policy};
use millrace_journal::{Journal, Options, Space, SubmitError, Wake};
use millrace_wire::{
    BlockHeight, ChainHash, CltvExpiry, Features, FeeratePerKw, Msat, OnionPacket, Preimage, Sat, ShortChannelId,
};
use secp256k1::{SECP256K1, SecretKey};
use tokio::sync::{mpsc, watch};

use super::*;
use crate::channels::curve_pool::CurvePool;
use crate::channels::directory::Directory;
use crate::channels::keys::FreshKeys;
use crate::channels::{
    ChannelRules, ChannelSnapshot, ChannelWallet, CommandResult, DestinationReply, FundingRequest, FundingTransaction,
    OpenOrder, Registry, ReserveReply,
};
use crate::entry::{Kind, Step};
use crate::facts::{Fold, Folds};
use crate::peer::link::{Link, Outgoing};
use crate::steps::StepLog;

const PATIENCE: Duration = Duration::from_secs(20);
/// So long nothing must come of something that is held back. It cannot fail a correct shard, however slow the machine.
const QUIET: Duration = Duration::from_millis(60);

// --- a journal that says nothing ---

struct Held {
    is_held: bool,
    kept: Vec<(WakeHandle, Flush)>,
}

/// The real journal, but nobody is told of its flushes while it is held.
struct HeldLog {
    journal: Journal,
    held: Arc<Mutex<Held>>,
    wakes: Mutex<Vec<(usize, WakeHandle)>>,
    largest_step: std::sync::atomic::AtomicUsize,
}

struct HoldingWake {
    inner: WakeHandle,
    held: Arc<Mutex<Held>>,
}

impl Wake for HoldingWake {
    fn durable(&self, flush: &Flush) {
        let mut held = self.held.lock().unwrap();
        if held.is_held {
            held.kept.push((Arc::clone(&self.inner), *flush));
        } else {
            self.inner.durable(flush);
        }
    }
}

impl StepLog for HeldLog {
    fn submit(&self, step: Vec<u8>, wake: WakeHandle) -> Result<Ticket, SubmitError> {
        // One handle for each of the shard's, as the journal calls each once per flush.
        let mut wakes = self.wakes.lock().unwrap();
        let key = Arc::as_ptr(&wake).cast::<()>() as usize;
        let known = wakes.iter().find(|(known, _)| *known == key).map(|(_, wake)| Arc::clone(wake));
        let holding = known.unwrap_or_else(|| {
            let holding: WakeHandle = Arc::new(HoldingWake { inner: wake, held: Arc::clone(&self.held) });
            wakes.push((key, Arc::clone(&holding)));
            holding
        });
        self.largest_step.fetch_max(step.len(), std::sync::atomic::Ordering::Relaxed);
        self.journal.submit(step, Some(holding))
    }

    fn queued_bytes(&self) -> u64 {
        0
    }

    fn space(&self) -> Space {
        Space::Enough
    }
}

impl HeldLog {
    fn hold(&self) {
        self.held.lock().unwrap().is_held = true;
    }

    fn let_go(&self) {
        let mut held = self.held.lock().unwrap();
        held.is_held = false;
        for (wake, flush) in held.kept.drain(..) {
            wake.durable(&flush);
        }
    }
}

// --- the node under test ---

#[derive(Default)]
struct OneCoin;

impl ChannelWallet for OneCoin {
    fn fund(&self, request: FundingRequest) {
        let transaction = Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint { txid: Txid::from_byte_array([3; 32]), vout: 0 },
                script_sig: ScriptBuf::new(),
                sequence: Sequence::MAX,
                witness: Witness::from_slice(&[[1; 64]]),
            }],
            output: vec![TxOut { value: Amount::from_sat(request.amount.0), script_pubkey: request.script_pubkey }],
        };
        request.reply.answer(Ok(FundingTransaction { transaction, vout: 0 }));
    }

    fn reserve(&self, _others: usize, reply: ReserveReply) {
        reply(Ok(()));
    }

    fn release(&self, _transaction: &Transaction) {}

    fn destination(&self, reply: DestinationReply) {
        reply(ScriptBuf::new());
    }

    fn claim(&self, _channel_id: ChannelId, _claims: Claims) {}
}

#[derive(Default)]
struct Told(Mutex<Vec<News>>);

impl Fold for Told {
    fn name(&self) -> &'static str {
        "told"
    }

    fn restore(&self, _section: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn tell(&self, news: News) {
        self.0.lock().unwrap().push(news);
    }

    fn section(&self, _up_to: millrace_journal::Position) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }
}

impl Told {
    fn has(&self, is_it: impl Fn(&Item) -> bool) -> bool {
        self.0.lock().unwrap().iter().flat_map(|news| &news.items).any(is_it)
    }

    fn has_fact(&self, is_it: impl Fn(&Fact) -> bool) -> bool {
        self.has(|item| matches!(item, Item::Fact { fact, .. } if is_it(fact)))
    }
}

struct Bench {
    log: Arc<HeldLog>,
    registry: Registry,
    told: Arc<Told>,
    chain: mpsc::UnboundedReceiver<ChainOrder>,
    outgoing: mpsc::UnboundedReceiver<Outgoing>,
    thread: Option<std::thread::JoinHandle<()>>,
    mailbox: Mailbox<Input>,
    epoch: u64,
    /// The other half, and what it was sent.
    peer: PeerChannel,
    _dir: tempfile::TempDir,
    _sync: watch::Sender<SyncState>,
}

enum PeerChannel {
    None,
    Opening(Box<Opening>),
    Channel(Box<Channel>),
}

fn peer_id() -> PublicKey {
    SecretKey::from_slice(&[9; 32]).unwrap().public_key(SECP256K1)
}

fn our_id() -> PublicKey {
    SecretKey::from_slice(&[8; 32]).unwrap().public_key(SECP256K1)
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 8 << 20, reserve_bytes: 8 << 20, ..Options::default() };
    let (journal, _) = Journal::open(dir.path(), options).unwrap();
    let held = Arc::new(Mutex::new(Held { is_held: false, kept: Vec::new() }));
    let log = Arc::new(HeldLog { journal, held, wakes: Mutex::default(), largest_step: 0.into() });
    let (sync, synced) = watch::channel(SyncState::Synced { height: 100 });
    let mailbox = Mailbox::new();
    let directory = Arc::new(Directory::new(5, 50));
    let dyn_log = Arc::clone(&log) as Arc<dyn StepLog>;
    let registry = Registry::new(Arc::clone(&directory), vec![mailbox.clone()], Arc::clone(&dyn_log), synced);
    let told = Arc::new(Told::default());
    let (chain_sender, chain) = mpsc::unbounded_channel();
    let fresh_keys = Arc::new(FreshKeys::new(0));
    let shared = Arc::new(Shared {
        rules: ChannelRules::usual(ChainHash::REGTEST),
        keys_of: Arc::new(|index| ChannelKeys::from_seed(&[u8::try_from(index % 200).unwrap() + 1; 32])),
        fresh_keys: Arc::clone(&fresh_keys),
        curve: CurvePool::new(0).unwrap(),
        log: dyn_log,
        directory,
        folds: Folds::new(vec![Arc::clone(&told) as Arc<dyn Fold>], log.journal.durable_up_to()),
        wallet: Arc::new(OneCoin),
        chain: chain_sender,
        fees: watch::channel(FeeEstimates::fallback(Network::Regtest)).1,
        registry: registry.clone(),
    });
    let shard = Shard::new(0, shared, mailbox.clone(), Vec::new());
    let thread = Some(std::thread::spawn(move || shard.run()));
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(fresh_keys.refill(&registry.journal()));
    let outgoing = mpsc::unbounded_channel().1;
    let peer = PeerChannel::None;
    let mut bench =
        Bench { log, registry, told, chain, outgoing, thread, mailbox, epoch: 0, peer, _dir: dir, _sync: sync };
    bench.chain_news(vec![ChainNews::All(tip(100))]);
    bench.link_up();
    bench
}

fn tip(height: u32) -> ChainEvent {
    ChainEvent::Tip { height: BlockHeight(height), block: BlockHash::all_zeros() }
}

fn both_features() -> Arc<Features> {
    Arc::new(Features::ours(false))
}

impl Bench {
    fn link_up(&mut self) {
        self.epoch += 1;
        let (link, outgoing, _queued) = Link::new();
        self.outgoing = outgoing;
        let (peer, epoch) = (peer_id(), Epoch(self.epoch));
        self.mailbox.put(Input::LinkUp(LinkUp { peer, epoch, ours: both_features(), theirs: both_features(), link }));
    }

    fn link_down(&mut self) {
        self.mailbox.put(Input::LinkDown { peer: peer_id(), epoch: Epoch(self.epoch) });
    }

    fn chain_news(&mut self, news: Vec<ChainNews>) {
        let (done, _) = Done::new();
        self.mailbox.put(Input::Chain { news, done });
    }

    /// To the node, on the present connection.
    fn say(&self, message: Message) {
        self.say_on(self.epoch, message);
    }

    fn say_on(&self, epoch: u64, message: Message) {
        let channel_id = message.channel_id().unwrap();
        let (peer, epoch) = (peer_id(), Epoch(epoch));
        self.mailbox.put(Input::Message(PeerMessage { peer, epoch, channel_id, message, credit: None }));
    }

    /// The next message of the node.
    fn next(&mut self) -> Message {
        let started = Instant::now();
        loop {
            match self.outgoing.try_recv() {
                Ok(Outgoing::Message(message)) => return *message,
                Ok(Outgoing::Bytes(bytes)) => panic!("{} bytes of gossip", bytes.len()),
                Ok(Outgoing::Close(why)) => panic!("closed: {why}"),
                Err(_) => assert!(started.elapsed() < PATIENCE, "the node says nothing"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The node says nothing, does nothing and tells nothing for a while.
    fn is_quiet(&mut self) {
        let told = self.told.0.lock().unwrap().len();
        std::thread::sleep(QUIET);
        assert!(self.outgoing.try_recv().is_err(), "a message left before its flush");
        assert!(self.chain.try_recv().is_err(), "an order to the chain left before its flush");
        assert_eq!(self.told.0.lock().unwrap().len(), told, "something was told before its flush");
    }

    fn eventually(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            assert!(started.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn chain_order(&mut self) -> ChainOrder {
        let started = Instant::now();
        loop {
            match self.chain.try_recv() {
                Ok(order) => return order,
                Err(_) => assert!(started.elapsed() < PATIENCE, "nothing is asked of the chain"),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// To the peer; what it answers.
    fn peer_hears(&mut self, message: Message) -> VecDeque<Message> {
        let mut fx = Effects::default();
        let is_taken = |_| false;
        let around = Surroundings { height: BlockHeight(100), policy: Policy::default(), is_taken: &is_taken };
        match (std::mem::replace(&mut self.peer, PeerChannel::None), message) {
            (PeerChannel::None, Message::OpenChannel(open)) => {
                let (opening, answer) = Opening::accept(*open, accept_params(), &around).unwrap();
                self.peer = PeerChannel::Opening(Box::new(opening));
                return VecDeque::from([answer]);
            }
            (PeerChannel::Opening(mut opening), message) => {
                match opening.on_message(message, &around, &Serial, &mut fx).unwrap() {
                    Some(OpeningEvent::Opened(channel)) => self.peer = PeerChannel::Channel(channel),
                    _ => self.peer = PeerChannel::Opening(opening),
                }
            }
            (PeerChannel::Channel(mut channel), message) => {
                channel.on_message(message, &Serial, &mut fx).unwrap();
                channel.commit(Millis(0), &Serial, &mut fx);
                self.peer = PeerChannel::Channel(channel);
            }
            (PeerChannel::None, message) => panic!("the peer has no use for {message:?}"),
        }
        sends(fx)
    }

    fn peer_does(&mut self, act: impl FnOnce(&mut Channel, &mut Effects)) -> VecDeque<Message> {
        let PeerChannel::Channel(channel) = &mut self.peer else { panic!("no channel yet") };
        let mut fx = Effects::default();
        act(channel, &mut fx);
        channel.commit(Millis(0), &Serial, &mut fx);
        sends(fx)
    }

    fn order(&self) -> OpenOrder {
        OpenOrder {
            peer: peer_id(),
            capacity: Sat(1_000_000),
            push: Msat(400_000_000),
            funding_feerate: FeeratePerKw(1000),
            zero_conf: false,
            announce: false,
            to_self_delay: None,
            htlc_minimum: None,
            max_in_flight: None,
            upfront_shutdown_script: None,
            when_opened: Some(Box::new(|id| vec![Entry::new(Kind::Idempotency, id.0.to_vec())])),
        }
    }

    /// The opening up to `funding_signed`, which is not delivered yet.
    fn open_up_to_signed(&mut self) -> (mpsc::UnboundedReceiver<OpenProgress>, Message) {
        let progress = self.registry.open_channel(self.order()).unwrap();
        let open = self.next();
        let accept = self.peer_hears(open).pop_front().unwrap();
        self.say(accept);
        let created = self.next();
        let signed = self.peer_hears(created).pop_front().unwrap();
        assert!(matches!(signed, Message::FundingSigned(_)), "{signed:?}");
        (progress, signed)
    }

    /// A channel that both can use.
    fn open(&mut self) -> ChannelId {
        let (_progress, signed) = self.open_up_to_signed();
        self.say(signed);
        let id = loop {
            if let ChainOrder::Broadcast(id, broadcast) = self.chain_order() {
                self.confirm(id, &broadcast.tx);
                break id;
            }
        };
        let ready = self.next();
        assert!(matches!(ready, Message::ChannelReady(_)), "{ready:?}");
        self.peer_hears(ready);
        self.eventually("ready", |bench| bench.told.has_fact(|fact| *fact == Fact::Ready));
        while self.chain.try_recv().is_ok() {}
        id
    }

    fn confirm(&mut self, id: ChannelId, tx: &Transaction) {
        let confirmed = ChainEvent::Confirmed { tx: Arc::new(tx.clone()), index: 1 };
        let mut news = vec![ChainNews::All(tip(101)), ChainNews::One(id, confirmed.clone())];
        news.extend([102, 103, 104].map(|height| ChainNews::All(tip(height))));
        let events: Vec<ChainEvent> = news
            .iter()
            .map(|news| match news {
                ChainNews::All(event) | ChainNews::One(_, event) => event.clone(),
            })
            .collect();
        self.chain_news(news);
        let ready = self.peer_does(|channel, fx| events.into_iter().for_each(|event| channel.on_chain(event, fx)));
        ready.into_iter().for_each(|message| self.say(message));
    }

    fn snapshot(&self, id: ChannelId) -> Arc<ChannelSnapshot> {
        self.registry.snapshot(id).unwrap()
    }

    /// Everything that both sides say, until both are silent.
    fn exchange(&mut self) {
        let mut silent_since = Instant::now();
        while silent_since.elapsed() < QUIET {
            if let Ok(Outgoing::Message(message)) = self.outgoing.try_recv() {
                let answers = self.peer_hears(*message);
                answers.into_iter().for_each(|answer| self.say(answer));
                silent_since = Instant::now();
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.log.let_go();
        self.mailbox.put(Input::Stop);
        let joined = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(std::thread::panicking() || matches!(joined, Some(Ok(()))), "the shard panicked");
    }
}

fn sends(fx: Effects) -> VecDeque<Message> {
    fx.list
        .into_iter()
        .filter_map(|effect| if let Effect::Send(message) = effect { Some(*message) } else { None })
        .collect()
}

fn accept_params() -> AcceptParams {
    AcceptParams {
        remote_node: our_id(),
        chain_hash: ChainHash::REGTEST,
        local: LocalParams::usual_for(Sat(1_000_000)),
        limits: OpeningLimits::default(),
        features: OpeningFeatures::negotiated(&both_features(), &both_features()),
        minimum_depth: 3,
        is_zero_conf_allowed: false,
        keys: ChannelKeys::from_seed(&[250; 32]),
        keys_index: 0,
        local_alias: ShortChannelId(77),
    }
}

fn offer(preimage: &Preimage) -> Offer {
    Offer {
        amount: Msat(50_000_000),
        payment_hash: preimage.hash(),
        cltv_expiry: CltvExpiry(500),
        onion: Box::new(OnionPacket([7; 1366])),
        path_key: None,
        origin: Origin::Payment { id: [1; 32], attempt: 0 },
    }
}

fn is_offered(result: &CommandResult) -> bool {
    matches!(result, Ok(Accepted::Offered(_)))
}

// --- how much is written at once ---

/// As many HTLCs as there is room for, all offered in a moment, each with something large to be written.
fn with_many_htlcs(bench: &mut Bench, entry_bytes: usize) -> (ChannelId, u8) {
    const HTLCS: u8 = 120;
    let id = bench.open();
    let answers: Vec<_> = (0..HTLCS)
        .map(|number| {
            let mut one = offer(&Preimage::new([number; 32]));
            (one.amount, one.origin) = (Msat(1_000_000), Origin::Payment { id: [number; 32], attempt: 0 });
            let entries = vec![Entry::new(Kind::Payment, vec![number; entry_bytes])];
            bench.registry.offer(id, one, entries)
        })
        .collect();
    for answer in answers {
        assert!(is_offered(&answer.blocking_recv().unwrap()));
    }
    for _ in 0..20 {
        bench.exchange();
        if bench.snapshot(id).htlc_counts.local == usize::from(HTLCS) {
            break;
        }
    }
    assert_eq!(bench.snapshot(id).htlc_counts.local, usize::from(HTLCS));
    (id, HTLCS)
}

fn largest_step(bench: &Bench) -> usize {
    bench.log.largest_step.load(std::sync::atomic::Ordering::Relaxed)
}

#[test]
fn a_turn_with_much_to_write_is_several_steps() {
    let mut bench = bench();
    with_many_htlcs(&mut bench, 64 << 10);
    assert!(largest_step(&bench) < 2 << 20, "{} bytes", largest_step(&bench));
}

/// A peer fails everything at once, each with as long a reason as a message holds: it is written down, and answered.
#[test]
fn long_reasons_of_all_htlcs_at_once_are_written_down() {
    let mut bench = bench();
    let (id, htlcs) = with_many_htlcs(&mut bench, 10);
    let messages = bench.peer_does(|channel, fx| {
        for number in 0..htlcs {
            let reason = vec![1; 65_000];
            let fail =
                millrace_channel::Command::Fail { id: millrace_wire::HtlcId(number.into()), reason, attribution: None };
            channel.on_command(fail, fx).unwrap();
        }
    });
    messages.into_iter().for_each(|message| bench.say(message));
    assert!(matches!(bench.next(), Message::RevokeAndAck(_)));
    assert!(largest_step(&bench) < 1 << 20, "{} bytes", largest_step(&bench));
    bench.eventually("the failures are shown", |bench| {
        bench.snapshot(id).htlcs.iter().all(|htlc| htlc.stage.starts_with("removing"))
    });
}

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
            bench.registry.fulfill(id, htlc_id, preimage, Vec::new())
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
