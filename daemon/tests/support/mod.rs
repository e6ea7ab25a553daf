//! Two whole nodes in one process: real journals and sockets, a chain and wallets that are made up.

#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses its part of it")]

pub mod announced;
pub mod tap;
pub mod wild;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bitcoin::absolute::LockTime;
use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::hashes::{Hash, sha256};
use bitcoin::pow::CompactTarget;
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, Block, BlockHash, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxMerkleNode, TxOut, Txid, Witness,
};
use millrace_chain::fees::FeeEstimates;
use millrace_chain::{ChainEvent, SyncState, Trail};
use millrace_channel::keys::{ChannelKeys, Identity};
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::{Fact, Offer};
use millrace_journal::{Options, Position};
use millrace_wire::{
    ChainHash, ChannelId, CltvExpiry, Features, FeeratePerKw, HtlcId, Msat, OnionPacket, PaymentHash, Preimage,
    PublicKey, Sat,
};
use millraced::announce::node::Face;
use millraced::announce::{Announcer, Parts};
use millraced::chain_feed::{BroadcastOrder, MempoolNews};
use millraced::channels::{
    Accepted, ChannelRules, ChannelSnapshot, ChannelState, ChannelWallet, DestinationReply, FundingRequest,
    FundingTransaction, NoFunding, OpenOrder, OpenProgress, ReserveReply,
};
use millraced::entry::Entry;
use millraced::facts::{Fold, Item, News, Telling};
use millraced::gossip::{FundingSource, Gossip, GossipRules};
use millraced::network::Network;
use millraced::node::{ChainSource, Node, Origins, Surroundings, open};
use millraced::peer::PeerRules;
use millraced::policy::{ForwardPolicy, Policies};
use secp256k1::{SECP256K1, SecretKey};
use tokio::sync::{mpsc, watch};

use announced::FakeFunding;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

// --- folders ---

/// Folders of nodes. After a panic they stay: a node whose journal vanishes under it would end the process before the panic
/// is told.
pub struct Homes<const N: usize>([tempfile::TempDir; N]);

impl<const N: usize> Homes<N> {
    pub fn new() -> Self {
        Self(std::array::from_fn(|_| tempfile::tempdir().unwrap()))
    }
}

impl<const N: usize> std::ops::Deref for Homes<N> {
    type Target = [tempfile::TempDir; N];

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl<const N: usize> Drop for Homes<N> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.iter_mut().for_each(|home| home.disable_cleanup(true));
        }
    }
}

// --- a chain ---

/// A chain that is mined by hand.
#[derive(Clone)]
pub struct FakeChain(Arc<Mutex<ChainState>>);

struct ChainState {
    blocks: Vec<Block>,
    mempool: Vec<Transaction>,
    known: HashSet<Txid>,
    spent: HashSet<OutPoint>,
    followers: Vec<mpsc::UnboundedSender<ChainEvent>>,
    fees: watch::Sender<FeeEstimates>,
    nonce: u32,
    /// Of each block's transactions; of the first, nobody asks.
    txids: Vec<Vec<Txid>>,
}

impl FakeChain {
    pub fn new() -> Self {
        let state = ChainState {
            blocks: vec![bitcoin::constants::genesis_block(bitcoin::Network::Regtest)],
            mempool: Vec::new(),
            known: HashSet::new(),
            spent: HashSet::new(),
            followers: Vec::new(),
            fees: watch::Sender::new(FeeEstimates::fallback(bitcoin::Network::Regtest)),
            nonce: 0,
            txids: vec![Vec::new()],
        };
        let chain = Self(Arc::new(Mutex::new(state)));
        chain.mine(100);
        chain
    }

    pub fn height(&self) -> u32 {
        u32::try_from(self.0.lock().unwrap().blocks.len() - 1).unwrap()
    }

    /// Mines blocks; the first takes the mempool.
    pub fn mine(&self, count: u32) {
        let mut state = self.0.lock().unwrap();
        for _ in 0..count {
            let txdata = std::mem::take(&mut state.mempool);
            state.nonce += 1;
            let header = Header {
                version: BlockVersion::TWO,
                prev_blockhash: state.blocks.last().unwrap().block_hash(),
                merkle_root: TxMerkleNode::all_zeros(),
                time: 1_700_000_000,
                bits: CompactTarget::from_consensus(0x207f_ffff),
                nonce: state.nonce,
            };
            state.txids.push(txdata.iter().map(Transaction::compute_txid).collect());
            state.blocks.push(Block { header, txdata });
            let height = u32::try_from(state.blocks.len() - 1).unwrap();
            let events = state.connected(height);
            state.followers.retain(|follower| events.iter().all(|event| follower.send(event.clone()).is_ok()));
        }
    }

    /// Mines blocks that leave the mempool as it is.
    pub fn mine_empty(&self, count: u32) {
        let waiting = std::mem::take(&mut self.0.lock().unwrap().mempool);
        self.mine(count);
        self.0.lock().unwrap().mempool.extend(waiting);
    }

    /// Takes the last blocks off; what was in them is in the mempool again.
    pub fn disconnect(&self, count: u32) {
        let mut state = self.0.lock().unwrap();
        for _ in 0..count {
            let height = u32::try_from(state.blocks.len() - 1).unwrap();
            let block = state.blocks.pop().unwrap();
            state.txids.pop();
            let event = ChainEvent::Disconnected { height, hash: block.block_hash() };
            state.mempool.extend(block.txdata);
            state.followers.retain(|follower| follower.send(event.clone()).is_ok());
        }
    }

    /// Transactions that wait for a block.
    pub fn mempool(&self) -> Vec<Transaction> {
        self.0.lock().unwrap().mempool.clone()
    }

    /// A transaction from anywhere.
    pub fn submit(&self, tx: Transaction) {
        let mut state = self.0.lock().unwrap();
        let txid = tx.compute_txid();
        let spends: Vec<OutPoint> = tx.input.iter().map(|input| input.previous_output).collect();
        if state.known.contains(&txid) || spends.iter().any(|outpoint| state.spent.contains(outpoint)) {
            return;
        }
        state.known.insert(txid);
        state.spent.extend(spends);
        state.mempool.push(tx);
    }

    /// From now on every node on this chain estimates fees so.
    pub fn estimate(&self, fees: FeeEstimates) {
        self.0.lock().unwrap().fees.send_replace(fees);
    }

    /// An output, if it is in the chain and unspent there.
    pub fn unspent(&self, outpoint: &OutPoint) -> Option<TxOut> {
        let state = self.0.lock().unwrap();
        let mut inputs = state.blocks.iter().flat_map(|block| &block.txdata).flat_map(|tx| &tx.input);
        if inputs.any(|input| input.previous_output == *outpoint) {
            return None;
        }
        let (block, place) = state
            .txids
            .iter()
            .enumerate()
            .find_map(|(block, txids)| Some((block, txids.iter().position(|txid| *txid == outpoint.txid)?)))?;
        state.blocks[block].txdata[place].output.get(outpoint.vout as usize).cloned()
    }

    /// The id of a transaction by its place.
    pub fn txid_at(&self, height: u32, index: u32) -> Option<Txid> {
        let state = self.0.lock().unwrap();
        state.txids.get(height as usize)?.get(index as usize).copied()
    }

    pub fn source(&self, trail: &Trail) -> ChainSource {
        let (events, receiver) = mpsc::channel(8);
        let (sender, mut unbounded) = mpsc::unbounded_channel();
        {
            let mut state = self.0.lock().unwrap();
            let tip = u32::try_from(state.blocks.len() - 1).unwrap();
            let from = trail.newest().map_or(tip, |newest| newest.height + 1);
            for height in from..=tip {
                state.connected(height).into_iter().take(1).for_each(|event| sender.send(event).unwrap());
            }
            sender.send(state.tip(tip)).unwrap();
            state.followers.push(sender);
        }
        tokio::spawn(async move {
            while let Some(event) = unbounded.recv().await {
                if events.send(event).await.is_err() {
                    return;
                }
            }
        });
        let (broadcasts, mut orders) = mpsc::unbounded_channel();
        let chain = self.clone();
        tokio::spawn(async move {
            while let Some(order) = orders.recv().await {
                if let BroadcastOrder::Submit(_, broadcast) = order {
                    chain.submit(broadcast.tx);
                }
            }
        });
        let fees = self.0.lock().unwrap().fees.subscribe();
        ChainSource { events: receiver, mempool: mpsc::channel::<MempoolNews>(1).1, fees, broadcasts }
    }
}

impl ChainState {
    fn connected(&self, height: u32) -> Vec<ChainEvent> {
        let block = Arc::new(self.blocks[height as usize].clone());
        vec![ChainEvent::Connected { height, hash: block.block_hash(), block }, self.tip(height)]
    }

    fn tip(&self, height: u32) -> ChainEvent {
        let hash: BlockHash = self.blocks[height as usize].block_hash();
        ChainEvent::Tip { height, hash, time: 1_700_000_000 }
    }
}

// --- a wallet ---

/// A wallet with coins out of nowhere.
#[derive(Default)]
pub struct FakeWallet {
    pub funded: Mutex<Vec<Transaction>>,
    pub released: Mutex<Vec<Txid>>,
    pub claims: Mutex<HashMap<ChannelId, Claims>>,
    pub is_empty: std::sync::atomic::AtomicBool,
}

impl ChannelWallet for FakeWallet {
    fn fund(&self, request: FundingRequest) {
        if self.is_empty.load(std::sync::atomic::Ordering::Relaxed) {
            return request.reply.answer(Err(NoFunding::Other("there are no coins".to_owned())));
        }
        let mut funded = self.funded.lock().unwrap();
        let seed = [request.script_pubkey.as_bytes(), &[u8::try_from(funded.len()).unwrap()]].concat();
        let txid = Txid::from_byte_array(sha256::Hash::hash(&seed).to_byte_array());
        let transaction = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint { txid, vout: 0 },
                script_sig: ScriptBuf::new(),
                sequence: Sequence::MAX,
                witness: Witness::from_slice(&[[1; 64]]),
            }],
            output: vec![TxOut { value: Amount::from_sat(request.amount.0), script_pubkey: request.script_pubkey }],
        };
        funded.push(transaction.clone());
        request.reply.answer(Ok(FundingTransaction { transaction, vout: 0 }));
    }

    fn reserve(&self, _others: usize, reply: ReserveReply) {
        let is_empty = self.is_empty.load(std::sync::atomic::Ordering::Relaxed);
        reply(if is_empty { Err(NoFunding::Other("there are no coins".to_owned())) } else { Ok(()) });
    }

    fn release(&self, transaction: &Transaction) {
        self.released.lock().unwrap().push(transaction.compute_txid());
    }

    fn destination(&self, reply: DestinationReply) {
        reply(ScriptBuf::from_bytes([vec![0, 20], vec![9; 20]].concat()));
    }

    fn claim(&self, channel_id: ChannelId, claims: Claims) {
        self.claims.lock().unwrap().insert(channel_id, claims);
    }
}

// --- a fold ---

/// Remembers everything it is told; its section is what it has applied.
#[derive(Default)]
pub struct Witnessing {
    state: Mutex<Vec<News>>,
}

impl Fold for Witnessing {
    fn name(&self) -> &'static str {
        "witnessing"
    }

    fn restore(&self, section: &[u8]) -> Result<(), String> {
        if section == b"seen" { Ok(()) } else { Err("not mine".to_owned()) }
    }

    fn tell(&self, news: &News) {
        self.state.lock().unwrap().push(news.clone());
    }

    fn section(&self, _up_to: Position) -> Result<Vec<u8>, String> {
        Ok(b"seen".to_vec())
    }
}

impl Witnessing {
    pub fn news(&self) -> Vec<News> {
        self.state.lock().unwrap().clone()
    }

    /// The facts, in order, that the journal holds.
    pub fn durable_facts(&self, telling: Telling) -> Vec<(ChannelId, Fact)> {
        let news = self.news();
        let of = |news: &News| match news.source {
            millraced::facts::Source::Channel(id) => id,
            millraced::facts::Source::Node => ChannelId([0; 32]),
        };
        news.iter()
            .filter(|news| news.telling == telling && news.position.is_some())
            .flat_map(|news| news.items.iter().map(move |item| (of(news), item)))
            .filter_map(|(id, item)| match item {
                Item::Fact { fact, .. } => Some((id, fact.clone())),
                Item::Entry(_) => None,
            })
            .collect()
    }

    pub fn entries(&self, telling: Telling) -> Vec<Entry> {
        let news = self.news();
        news.iter()
            .filter(|news| news.telling == telling)
            .flat_map(|news| &news.items)
            .filter_map(|item| match item {
                Item::Entry(entry) => Some(entry.clone()),
                Item::Fact { .. } => None,
            })
            .collect()
    }

    fn find<T>(&self, pick: impl Fn(&Fact) -> Option<T>) -> Option<T> {
        self.news().iter().flat_map(|news| &news.items).find_map(|item| match item {
            Item::Fact { fact, .. } => pick(fact),
            Item::Entry(_) => None,
        })
    }

    /// Waits for a fact.
    pub async fn wait_for<T>(&self, what: &str, pick: impl Fn(&Fact) -> Option<T>) -> T {
        eventually(what, || self.find(&pick)).await
    }
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, ask: impl Fn() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(started.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

// --- a node ---

/// A node of a test, running.
pub struct TestNode {
    pub node: Node,
    pub fold: Arc<Witnessing>,
    pub wallet: Arc<FakeWallet>,
    pub sync: watch::Sender<SyncState>,
    pub address: SocketAddr,
    pub key: SecretKey,
    pub dir: PathBuf,
    pub announcer: Arc<Announcer>,
    pub policies: Policies,
    pub network: Network,
    /// What was given to be passed on.
    pub relayed: Relayed,
    pub gossip: Option<Gossip>,
    pub funding: Arc<FakeFunding>,
}

/// Whole messages, in order.
pub type Relayed = Arc<Mutex<Vec<Vec<u8>>>>;

/// How a node is to be started.
#[derive(Clone)]
pub struct Setup {
    pub seed: u8,
    pub listen: SocketAddr,
    pub peers: PeerRules,
    pub openings_per_peer_max: usize,
    pub face: Face,
    /// Whether it has a public graph, and of which rules.
    pub gossip: Option<GossipRules>,
}

impl Setup {
    pub fn new(seed: u8) -> Self {
        let peers = PeerRules {
            reconnect_min: Duration::from_millis(50),
            reconnect_max: Duration::from_millis(400),
            ..PeerRules::default()
        };
        let listen = "127.0.0.1:0".parse().unwrap();
        Self { seed, listen, peers, openings_per_peer_max: 5, face: Face::default(), gossip: None }
    }

    pub fn key(&self) -> SecretKey {
        SecretKey::from_slice(&[self.seed; 32]).unwrap()
    }
}

/// Starts a node on what is in a folder, and waits until it serves.
pub async fn start(setup: &Setup, chain: &FakeChain, dir: &Path) -> TestNode {
    let fold = Arc::new(Witnessing::default());
    let wallet = Arc::new(FakeWallet::default());
    let (sync, synced) = watch::channel(SyncState::Synced { height: chain.height() });
    let (seed, node_key) = (setup.seed, setup.key());
    let (policies, network) = (Policies::new(ForwardPolicy::default()), Network::default());
    let announcer = Announcer::new(Parts {
        node_key,
        chain_hash: ChainHash::REGTEST,
        features: Features::ours(false),
        face: setup.face.clone(),
        policies: policies.clone(),
        peer_share_percent: 50,
        network: network.clone(),
    });
    let relayed = Relayed::default();
    let heard = Arc::clone(&relayed);
    announcer.relay_by(Arc::new(move |messages| heard.lock().unwrap().extend(messages)));
    let mut rules = ChannelRules::usual(ChainHash::REGTEST);
    // Small channels with as many HTLCs as BOLT 2 allows.
    rules.closing_cost_percent = u8::MAX;
    rules.openings_per_peer_max = setup.openings_per_peer_max;
    rules.shards = 2;
    let recovered = open(Origins {
        journal: dir,
        options: Options { segment_bytes: 4 << 20, reserve_bytes: 4 << 20, ..Options::default() },
        rules,
        keys_of: Arc::new(move |index| {
            let bytes = [&[seed][..], &index.to_be_bytes()].concat();
            let keys = ChannelKeys::from_seed(&sha256::Hash::hash(&bytes).to_byte_array());
            keys.of_node(Identity::new(node_key, ChainHash::REGTEST))
        }),
        folds: vec![Arc::clone(&fold) as Arc<dyn Fold>, Arc::clone(&announcer) as Arc<dyn Fold>],
        sync: synced,
    })
    .unwrap();
    let follow = chain.clone();
    let funding = Arc::new(FakeFunding::new(chain));
    let gossip = setup.gossip.clone().map(|rules| {
        Gossip::start(ChainHash::REGTEST, rules, Arc::clone(&funding) as Arc<dyn FundingSource>, network.clone())
    });
    let node = recovered
        .start(Surroundings {
            node_key: setup.key(),
            peers: setup.peers.clone(),
            listen: Some(setup.listen),
            wallet: Arc::clone(&wallet) as Arc<dyn ChannelWallet>,
            guards: Arc::new(millraced::channels::NoGuards),
            announcer: Some(Arc::clone(&announcer)),
            gossip: gossip.clone(),
            followers: Vec::new(),
            chain: Box::new(move |trail| follow.source(&trail)),
        })
        .unwrap();
    let mut readiness = node.readiness();
    let ready = tokio::time::timeout(PATIENCE, readiness.wait_for(millraced::readiness::Readiness::is_ready)).await;
    drop(ready.expect("the node starts").unwrap());
    let address = node.listening().borrow().expect("it listens");
    let (key, dir) = (setup.key(), dir.to_path_buf());
    TestNode { node, fold, wallet, sync, address, key, dir, announcer, policies, network, relayed, gossip, funding }
}

impl TestNode {
    /// Stops it, and waits until its last task has let go of the journal: a process would simply have ended.
    pub async fn end(self) {
        let Self { node, announcer, dir, .. } = self;
        node.stop().await;
        drop(announcer);
        let lock = std::fs::File::open(dir.join("lock")).unwrap();
        eventually("the journal is free", || lock.try_lock().ok()).await;
    }

    pub fn id(&self) -> PublicKey {
        self.key.public_key(SECP256K1)
    }

    pub async fn connect(&self, other: &TestNode) {
        self.node.peers().connect(other.id(), &other.address.to_string()).await.unwrap();
    }

    pub fn snapshot(&self, id: ChannelId) -> Arc<ChannelSnapshot> {
        self.node.registry().snapshot(id).expect("the channel is there")
    }

    pub async fn fresh(&self, id: ChannelId) -> Arc<ChannelSnapshot> {
        self.node.registry().fresh_snapshot(id).await.expect("the channel is there")
    }

    /// Waits until a channel is seen to be so.
    pub async fn wait_until(&self, id: ChannelId, what: &str, is_so: impl Fn(&ChannelSnapshot) -> bool) {
        let registry = self.node.registry();
        eventually(what, || registry.snapshot(id).filter(|snapshot| is_so(snapshot)).map(|_| ())).await;
    }

    pub fn order(&self, peer: PublicKey, capacity: u64) -> OpenOrder {
        OpenOrder {
            peer,
            capacity: Sat(capacity),
            push: Msat(0),
            funding_feerate: FeeratePerKw(1000),
            zero_conf: false,
            announce: false,
            to_self_delay: None,
            htlc_minimum: None,
            max_in_flight: None,
            upfront_shutdown_script: None,
            when_opened: None,
        }
    }

    pub async fn offer(&self, id: ChannelId, preimage: &Preimage, amount: u64, entries: Vec<Entry>) -> HtlcId {
        let answer = self.node.registry().offer(id, offer_of(preimage, amount, 1_000), entries).await.unwrap();
        match answer.unwrap() {
            Accepted::Offered(id) => id,
            Accepted::Done => panic!("an offer is answered with its id"),
        }
    }

    /// Fulfils the HTLC with this preimage once it has come.
    pub async fn fulfill(&self, channel: ChannelId, preimage: &Preimage) {
        let hash = preimage.hash();
        let id = self
            .fold
            .wait_for("the HTLC comes", |fact| match fact {
                Fact::HtlcReceived { id, payment_hash, .. } if *payment_hash == hash => Some(*id),
                _ => None,
            })
            .await;
        let answer = self.node.registry().fulfill(channel, id, preimage.clone(), None, Vec::new()).await;
        assert_eq!(answer.unwrap(), Ok(Accepted::Done));
    }

    pub async fn wait_fulfilled(&self, preimage: &Preimage) {
        let hash: PaymentHash = preimage.hash();
        self.fold
            .wait_for("the payment is resolved", |fact| match fact {
                Fact::OfferResolved { removal, .. } => {
                    removal.preimage().filter(|preimage| preimage.hash() == hash).map(|_| ())
                }
                _ => None,
            })
            .await;
    }
}

pub fn preimage(n: u8) -> Preimage {
    Preimage::new([n; 32])
}

pub fn offer_of(preimage: &Preimage, amount: u64, expiry: u32) -> Offer {
    Offer {
        amount: Msat(amount),
        payment_hash: preimage.hash(),
        cltv_expiry: CltvExpiry(expiry),
        onion: Box::new(OnionPacket([7; 1366])),
        path_key: None,
        origin: millrace_channel::ledger::htlc::Origin::Payment { id: preimage.hash().0, attempt: 0 },
    }
}

/// Opens a channel from `a` to `b` and waits until both can use it.
pub async fn open_between(a: &TestNode, b: &TestNode, chain: &FakeChain, capacity: u64) -> ChannelId {
    open_by(a, a.order(b.id(), capacity), b, chain).await
}

/// The same, of a channel that the network is to be told of.
pub async fn open_public(a: &TestNode, b: &TestNode, chain: &FakeChain, capacity: u64) -> ChannelId {
    open_by(a, OpenOrder { announce: true, ..a.order(b.id(), capacity) }, b, chain).await
}

async fn open_by(a: &TestNode, order: OpenOrder, b: &TestNode, chain: &FakeChain) -> ChannelId {
    // Who was called may not have noticed yet.
    eventually("the peer is there", || a.node.peers().is_connected(&b.id()).then_some(())).await;
    let mut progress = a.node.registry().open_channel(order).unwrap();
    let negotiated = tokio::time::timeout(PATIENCE, progress.recv()).await.unwrap().unwrap();
    assert!(matches!(negotiated, OpenProgress::Negotiated { minimum_depth: 3, .. }), "{negotiated:?}");
    let opened = tokio::time::timeout(PATIENCE, progress.recv()).await.unwrap().unwrap();
    let OpenProgress::Opened { channel_id, funding_outpoint } = opened else { panic!("{opened:?}") };
    eventually("the funding is broadcast", || {
        chain.mempool().iter().any(|tx| tx.compute_txid() == funding_outpoint.txid).then_some(())
    })
    .await;
    chain.mine(3);
    for node in [a, b] {
        node.wait_until(channel_id, "the channel is usable", ChannelSnapshot::is_usable).await;
    }
    channel_id
}

/// What is on disk at this moment, as a crash would leave it. Files are copied one after the other while the node writes:
/// the journal last, for everything else is made from what it has already.
pub fn copy_as_after_a_crash(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    let mut entries: Vec<_> = std::fs::read_dir(from).unwrap().map(Result::unwrap).collect();
    entries.sort_by_key(|entry| (entry.file_name() == "journal", entry.file_name()));
    for entry in entries {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_as_after_a_crash(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

pub fn is_closed(snapshot: &ChannelSnapshot) -> bool {
    snapshot.state == ChannelState::Closed
}
