//! Nothing is broadcast before the journal has the breach, in either mode.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, Network};
use millrace_chain::bitcoind::Answers;
use millrace_channel::terms::CommitmentFormat;
use millrace_journal::Ticket;
use millrace_wire::CommitmentNumber;
use secp256k1::{SECP256K1, SecretKey};
use serde_json::{Value, json};

use super::*;
use crate::keeper::tests::MemoryLog;
use crate::keeper::{Log, Promised};
use crate::samples::Sample;
use crate::sealed::seal;
use crate::tower::Tower;
use crate::vault::Group;

/// A bitcoind that notes, with each transaction that it is given, how much of the journal is not durable at that moment.
struct Noting {
    log: Arc<MemoryLog>,
    given: Mutex<Vec<usize>>,
    txids: Mutex<Vec<Txid>>,
    refuses: AtomicBool,
    /// An output that something in its mempool spends already, at a price that nobody outbids.
    taken: Mutex<Option<OutPoint>>,
    /// Whether it takes anything that conflicts, as all may.
    replaces: AtomicBool,
    accepted: Mutex<BTreeSet<OutPoint>>,
}

impl Answers for Noting {
    fn answer(&self, method: &str, arguments: &[Value]) -> Result<Value, ChainError> {
        assert_eq!(method, "sendrawtransaction");
        self.given.lock().unwrap().push(self.log.pending());
        let raw = hex::decode(arguments[0].as_str().unwrap()).unwrap();
        let tx: Transaction = bitcoin::consensus::deserialize(&raw).unwrap();
        self.txids.lock().unwrap().push(tx.compute_txid());
        if self.refuses.load(Ordering::Relaxed) {
            let (method, message) = (method.to_owned(), "min relay fee not met".to_owned());
            return Err(ChainError::Rpc { method, code: -26, message });
        }
        let spends: BTreeSet<OutPoint> = tx.input.iter().map(|input| input.previous_output).collect();
        let is_taken = self.taken.lock().unwrap().is_some_and(|taken| spends.contains(&taken));
        if is_taken || !self.replaces.load(Ordering::Relaxed) {
            let (method, message) = (method.to_owned(), "insufficient fee, rejecting replacement".to_owned());
            return Err(ChainError::Rpc { method, code: -26, message });
        }
        self.accepted.lock().unwrap().extend(spends);
        Ok(json!(tx.compute_txid().to_string()))
    }
}

/// A guard at the tip whose keeper knows one channel, by its key or by a blob.
async fn guard(log: &Arc<MemoryLog>, with_blob: bool) -> (Guard, Arc<Noting>, watch::Sender<SyncState>) {
    guard_of(log, with_blob, 1).await
}

/// The same with further channels, which it knows by their keys.
async fn guard_of(
    log: &Arc<MemoryLog>,
    with_blob: bool,
    channels: u32,
) -> (Guard, Arc<Noting>, watch::Sender<SyncState>) {
    let sample = Sample::new(1, CommitmentFormat::Anchors);
    let (mut keeper, durability) = Keeper::new(Tower::default(), Arc::clone(log) as Arc<dyn Log>, Ticket(0));
    let client = SecretKey::from_slice(&[1; 32]).unwrap().public_key(SECP256K1);
    let commitment = sample.commitment(0, 2_000_000, 0, 0);
    if with_blob {
        let Promised { .. } = keeper.allow_blobs(client, 1).unwrap();
        let vout = commitment.to_local.unwrap();
        let value = Sat::from(commitment.output(vout).value);
        let sealed = seal(&sample.registration(), &sample.secret(0), &commitment.txid, vout, value).unwrap();
        let Promised { .. } = keeper.take_blob(&client, Group([1; 16]), 0, sealed, 0).unwrap();
    } else {
        let Promised { .. } = keeper.allow(client, channels).unwrap();
        let handle = keeper.register(client, sample.registration()).unwrap().answer.handle;
        let Promised { .. } = keeper.reveal(&client, handle, CommitmentNumber(0), sample.secret(0), 0).unwrap();
        let Promised { .. } = keeper.checked([handle]);
    }
    let mut txs = vec![commitment.tx];
    for seed in 2..=channels {
        let sample = Sample::new(seed, CommitmentFormat::Anchors);
        let handle = keeper.register(client, sample.registration()).unwrap().answer.handle;
        let Promised { .. } = keeper.reveal(&client, handle, CommitmentNumber(0), sample.secret(0), 0).unwrap();
        let Promised { .. } = keeper.checked([handle]);
        txs.push(sample.commitment(0, 2_000_000, 0, 0).tx);
    }
    log.flush();
    let Promised { .. } = keeper.connect(BlockHeight(7), BlockHash::hash(&[7]), &txs);
    let (desk, _thread) = Desk::open(keeper).unwrap();
    let noting = Arc::new(Noting {
        log: Arc::clone(log),
        given: Mutex::default(),
        txids: Mutex::default(),
        refuses: AtomicBool::new(false),
        taken: Mutex::default(),
        replaces: AtomicBool::new(true),
        accepted: Mutex::default(),
    });
    let bitcoind = Bitcoind::within(Arc::clone(&noting) as Arc<dyn Answers>, Network::Regtest);
    let (blocks, sync) = watch::channel(SyncState::Synced { height: 7 });
    let (_, fees) = watch::channel(FeeEstimates::fallback(Network::Regtest));
    let guard = Guard {
        broadcaster: Broadcaster::start(bitcoind.clone(), sync.clone()),
        bitcoind,
        desk,
        durability,
        fees,
        sync,
        view: watch::channel(first_view()).0,
        bids: BTreeMap::new(),
        since: BTreeMap::new(),
        is_at_tip: true,
    };
    (guard, noting, blocks)
}

async fn check(with_blob: bool) {
    let log = Arc::new(MemoryLog::default());
    let (mut guard, noting, _blocks) = guard(&log, with_blob).await;
    let desk = guard.desk.clone();
    {
        let acting = guard.act();
        tokio::pin!(acting);
        // Time for many more steps than a broadcast takes: each turn has the keeper answer once.
        for _ in 0..1_000 {
            tokio::select! {
                biased;
                ended = &mut acting => panic!("it did not wait for the disk: {ended:?}"),
                asked = desk.ask(|_| ()) => asked.unwrap(),
            }
        }
        assert!(log.pending() > 0 && noting.given.lock().unwrap().is_empty());
        log.flush();
        acting.await.unwrap();
    }
    assert_eq!(*noting.given.lock().unwrap(), [0], "once, and after everything was on the disk");
    assert_eq!(guard.bids.len(), 1);
    // Nothing new has happened: nothing is made again.
    guard.act().await.unwrap();
    let tried: BTreeSet<Txid> = noting.txids.lock().unwrap().iter().copied().collect();
    assert_eq!(tried.len(), 1);
}

#[tokio::test]
async fn breach_by_the_key_is_on_disk_before_the_first_broadcast() {
    check(false).await;
}

#[tokio::test]
async fn breach_by_a_blob_is_on_disk_before_the_first_broadcast() {
    check(true).await;
}

/// A refusal is never the end: what was refused stays bid, and is broadcast again with the next block.
#[tokio::test]
async fn penalty_that_bitcoind_refuses_is_broadcast_again_with_the_next_block() {
    for with_blob in [false, true] {
        let log = Arc::new(MemoryLog::default());
        let (mut guard, noting, blocks) = guard(&log, with_blob).await;
        log.flush();
        noting.refuses.store(true, Ordering::Relaxed);
        guard.act().await.unwrap();
        assert_eq!((guard.bids.len(), noting.given.lock().unwrap().len()), (1, 1));
        let said = guard.view.borrow().penalties[0].status.clone();
        assert!(said.contains("min relay fee not met"), "{said}");
        noting.refuses.store(false, Ordering::Relaxed);
        blocks.send_replace(SyncState::Synced { height: 8 });
        let again = async {
            while guard.view.borrow().penalties[0].status != "in the mempool" {
                tokio::task::yield_now().await;
                guard.act().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), again).await.expect("again in time");
        assert_eq!(noting.given.lock().unwrap().len(), 2);
    }
}

/// After a start nothing is remembered of what was made before: one output of a batch may be spent in the mempool.
#[tokio::test]
async fn batch_that_is_refused_for_one_of_its_outputs_goes_without_it() {
    const CHANNELS: u32 = 7;
    let log = Arc::new(MemoryLog::default());
    let (mut guard, noting, _blocks) = guard_of(&log, false, CHANNELS).await;
    log.flush();
    let asked = guard.desk.ask(|keeper| keeper.tower().claims()).await.unwrap();
    let outpoints: BTreeSet<OutPoint> = asked.iter().map(|claim| claim.outpoint).collect();
    assert_eq!(outpoints.len(), CHANNELS as usize);
    let taken = *outpoints.iter().nth(3).unwrap();
    *noting.taken.lock().unwrap() = Some(taken);
    guard.act().await.unwrap();
    let accepted = noting.accepted.lock().unwrap().clone();
    assert_eq!(accepted, outpoints.iter().copied().filter(|outpoint| *outpoint != taken).collect());
    // It is still bid for, alone.
    let bids_of = |guard: &Guard, wanted: OutPoint| -> Vec<usize> {
        let of = |bid: &&Bid| bid.inputs().any(|input| input == wanted);
        guard.bids.values().filter(of).map(|bid| bid.tx.input.len()).collect()
    };
    assert_eq!(bids_of(&guard, taken), [1]);
    // By halves, and the rest at last; whatever is refused may be broadcast again meanwhile.
    let tried: BTreeSet<Txid> = noting.txids.lock().unwrap().iter().copied().collect();
    assert!(tried.len() <= 8, "{} transactions", tried.len());
    guard.act().await.unwrap();
    let after: BTreeSet<Txid> = noting.txids.lock().unwrap().iter().copied().collect();
    assert_eq!(after, tried, "nothing new has happened");
}

/// Of what was made before a start nothing is known, and all of it is in the mempool: it is outbid together, or not at all.
#[tokio::test]
async fn batch_of_which_everything_is_taken_stays_one_bid() {
    let log = Arc::new(MemoryLog::default());
    let (mut guard, noting, _blocks) = guard_of(&log, false, 5).await;
    log.flush();
    noting.replaces.store(false, Ordering::Relaxed);
    guard.act().await.unwrap();
    assert!(noting.accepted.lock().unwrap().is_empty());
    assert_eq!(guard.bids.values().map(|bid| bid.tx.input.len()).collect::<Vec<_>>(), [5]);
}

/// What is refused for another reason than a conflict is not divided.
#[tokio::test]
async fn batch_that_pays_too_little_stays_whole() {
    let log = Arc::new(MemoryLog::default());
    let (mut guard, noting, _blocks) = guard_of(&log, false, 5).await;
    log.flush();
    noting.refuses.store(true, Ordering::Relaxed);
    guard.act().await.unwrap();
    assert_eq!(guard.bids.values().map(|bid| bid.tx.input.len()).collect::<Vec<_>>(), [5]);
    assert_eq!(noting.given.lock().unwrap().len(), 1);
}
