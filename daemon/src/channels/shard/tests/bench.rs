//! A shard whose journal is held back, and its peer.

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

use super::super::*;
use crate::channels::curve_pool::CurvePool;
use crate::channels::directory::Directory;
use crate::channels::keys::FreshKeys;
use crate::channels::{
    ChannelRules, ChannelSnapshot, ChannelWallet, CommandResult, DestinationReply, FundingRequest, FundingTransaction,
    NoGuards, OpenOrder, Registry, ReserveReply,
};
use crate::entry::Kind;
use crate::facts::{Fold, Folds};
use crate::peer::link::{Link, Outgoing};
use crate::steps::StepLog;

pub(super) const PATIENCE: Duration = Duration::from_secs(20);
/// So long nothing must come of something that is held back. It cannot fail a correct shard, however slow the machine.
pub(super) const QUIET: Duration = Duration::from_millis(60);

// --- a journal that says nothing ---

pub(super) struct Held {
    pub(super) is_held: bool,
    pub(super) kept: Vec<(WakeHandle, Flush)>,
}

/// The real journal, but nobody is told of its flushes while it is held.
pub(super) struct HeldLog {
    pub(super) journal: Journal,
    pub(super) held: Arc<Mutex<Held>>,
    pub(super) wakes: Mutex<Vec<(usize, WakeHandle)>>,
    pub(super) largest_step: std::sync::atomic::AtomicUsize,
}

pub(super) struct HoldingWake {
    pub(super) inner: WakeHandle,
    pub(super) held: Arc<Mutex<Held>>,
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
    pub(super) fn hold(&self) {
        self.held.lock().unwrap().is_held = true;
    }

    pub(super) fn let_go(&self) {
        let mut held = self.held.lock().unwrap();
        held.is_held = false;
        for (wake, flush) in held.kept.drain(..) {
            wake.durable(&flush);
        }
    }
}

// --- the node under test ---

#[derive(Default)]
pub(super) struct OneCoin;

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
pub(super) struct Told(pub(super) Mutex<Vec<News>>);

impl Fold for Told {
    fn name(&self) -> &'static str {
        "told"
    }

    fn restore(&self, _section: &[u8]) -> Result<(), String> {
        Ok(())
    }

    fn tell(&self, news: &News) {
        self.0.lock().unwrap().push(news.clone());
    }

    fn section(&self, _up_to: millrace_journal::Position) -> Result<Vec<u8>, String> {
        Ok(Vec::new())
    }
}

impl Told {
    pub(super) fn has(&self, is_it: impl Fn(&Item) -> bool) -> bool {
        self.0.lock().unwrap().iter().flat_map(|news| &news.items).any(is_it)
    }

    pub(super) fn has_fact(&self, is_it: impl Fn(&Fact) -> bool) -> bool {
        self.has(|item| matches!(item, Item::Fact { fact, .. } if is_it(fact)))
    }
}

pub(super) struct Bench {
    pub(super) log: Arc<HeldLog>,
    pub(super) registry: Registry,
    pub(super) told: Arc<Told>,
    pub(super) chain: mpsc::UnboundedReceiver<ChainOrder>,
    pub(super) outgoing: mpsc::UnboundedReceiver<Outgoing>,
    pub(super) thread: Option<std::thread::JoinHandle<()>>,
    pub(super) mailbox: Mailbox<Input>,
    pub(super) epoch: u64,
    /// The other half, and what it was sent.
    pub(super) peer: PeerChannel,
    pub(super) _dir: tempfile::TempDir,
    pub(super) _sync: watch::Sender<SyncState>,
}

pub(super) enum PeerChannel {
    None,
    Opening(Box<Opening>),
    Channel(Box<Channel>),
}

pub(super) fn peer_id() -> PublicKey {
    SecretKey::from_slice(&[9; 32]).unwrap().public_key(SECP256K1)
}

pub(super) fn our_id() -> PublicKey {
    SecretKey::from_slice(&[8; 32]).unwrap().public_key(SECP256K1)
}

pub(super) fn bench() -> Bench {
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
        rules: ChannelRules { closing_cost_percent: 100, ..ChannelRules::usual(ChainHash::REGTEST) },
        keys_of: Arc::new(|index| ChannelKeys::from_seed(&[u8::try_from(index % 200).unwrap() + 1; 32])),
        fresh_keys: Arc::clone(&fresh_keys),
        curve: CurvePool::new(0).unwrap(),
        log: dyn_log,
        directory,
        folds: Folds::new(vec![Arc::clone(&told) as Arc<dyn Fold>], log.journal.durable_up_to()),
        wallet: Arc::new(OneCoin),
        guards: Arc::new(NoGuards),
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

pub(super) fn tip(height: u32) -> ChainEvent {
    ChainEvent::Tip { height: BlockHeight(height), block: BlockHash::all_zeros() }
}

pub(super) fn both_features() -> Arc<Features> {
    Arc::new(Features::ours(false))
}

impl Bench {
    pub(super) fn link_up(&mut self) {
        self.epoch += 1;
        let (link, outgoing, _queued) = Link::new();
        self.outgoing = outgoing;
        let (peer, epoch) = (peer_id(), Epoch(self.epoch));
        self.mailbox.put(Input::LinkUp(LinkUp { peer, epoch, ours: both_features(), theirs: both_features(), link }));
    }

    pub(super) fn link_down(&mut self) {
        self.mailbox.put(Input::LinkDown { peer: peer_id(), epoch: Epoch(self.epoch) });
    }

    pub(super) fn chain_news(&mut self, news: Vec<ChainNews>) {
        let (done, _) = Done::new();
        self.mailbox.put(Input::Chain { news, done });
    }

    /// To the node, on the present connection.
    pub(super) fn say(&self, message: Message) {
        self.say_on(self.epoch, message);
    }

    pub(super) fn say_on(&self, epoch: u64, message: Message) {
        let channel_id = message.channel_id().unwrap();
        let (peer, epoch) = (peer_id(), Epoch(epoch));
        self.mailbox.put(Input::Message(PeerMessage { peer, epoch, channel_id, message, credit: None }));
    }

    /// The next message of the node.
    pub(super) fn next(&mut self) -> Message {
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
    pub(super) fn is_quiet(&mut self) {
        let told = self.told.0.lock().unwrap().len();
        std::thread::sleep(QUIET);
        assert!(self.outgoing.try_recv().is_err(), "a message left before its flush");
        assert!(self.chain.try_recv().is_err(), "an order to the chain left before its flush");
        assert_eq!(self.told.0.lock().unwrap().len(), told, "something was told before its flush");
    }

    pub(super) fn eventually(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let started = Instant::now();
        while !is_so(self) {
            assert!(started.elapsed() < PATIENCE, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub(super) fn chain_order(&mut self) -> ChainOrder {
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
    pub(super) fn peer_hears(&mut self, message: Message) -> VecDeque<Message> {
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

    pub(super) fn peer_does(&mut self, act: impl FnOnce(&mut Channel, &mut Effects)) -> VecDeque<Message> {
        let PeerChannel::Channel(channel) = &mut self.peer else { panic!("no channel yet") };
        let mut fx = Effects::default();
        act(channel, &mut fx);
        channel.commit(Millis(0), &Serial, &mut fx);
        sends(fx)
    }

    pub(super) fn order(&self) -> OpenOrder {
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
    pub(super) fn open_up_to_signed(&mut self) -> (mpsc::UnboundedReceiver<OpenProgress>, Message) {
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
    pub(super) fn open(&mut self) -> ChannelId {
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

    pub(super) fn confirm(&mut self, id: ChannelId, tx: &Transaction) {
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

    pub(super) fn snapshot(&self, id: ChannelId) -> Arc<ChannelSnapshot> {
        self.registry.snapshot(id).unwrap()
    }

    /// Everything that both sides say, until both are silent.
    pub(super) fn exchange(&mut self) {
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

pub(super) fn sends(fx: Effects) -> VecDeque<Message> {
    fx.list
        .into_iter()
        .filter_map(|effect| if let Effect::Send(message) = effect { Some(*message) } else { None })
        .collect()
}

pub(super) fn accept_params() -> AcceptParams {
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

pub(super) fn offer(preimage: &Preimage) -> Offer {
    Offer {
        amount: Msat(50_000_000),
        payment_hash: preimage.hash(),
        cltv_expiry: CltvExpiry(500),
        onion: Box::new(OnionPacket([7; 1366])),
        path_key: None,
        origin: Origin::Payment { id: [1; 32], attempt: 0 },
    }
}

pub(super) fn is_offered(result: &CommandResult) -> bool {
    matches!(result, Ok(Accepted::Offered(_)))
}
