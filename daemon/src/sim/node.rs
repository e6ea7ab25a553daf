//! One node: its disk, and what runs while it lives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bitcoin::hashes::Hash;
use bitcoin::{Amount, BlockHash, Network, OutPoint, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Txid, Witness};
use futures::FutureExt;
use millrace_chain::SyncState;
use millrace_chain::fees::FeeEstimates;
use millrace_channel::ChainEvent;
use millrace_channel::keys::Identity;
use millrace_channel::phase::on_chain::Claims;
use millrace_journal::{Checkpoint, DurableStep, Position, Ticket};
use millrace_wire::{BlockHeight, ChainHash, ChannelId, PublicKey};
use tokio::sync::{mpsc, watch};

use super::disk::Disk;
use super::gate::Gate;
use crate::channels::curve_pool::CurvePool;
use crate::channels::directory::Directory;
use crate::channels::input::{ChainNews, Done, Input};
use crate::channels::keys::{FreshKeys, KeysOf};
use crate::channels::mailbox::Mailbox;
use crate::channels::shard::Shard;
use crate::channels::shared::{ChainOrder, Shared};
use crate::channels::{
    ChannelRules, ChannelWallet, DestinationReply, FundingRequest, FundingTransaction, NoGuards, Registry,
    ReserveReply, shard_of,
};
use crate::checkpoint::{ChannelSections, NodeSection, of_fold};
use crate::facts::{Fold, Folds};
use crate::keys::Keys;
use crate::payments::{
    EXPIRED_KEPT_MS, FIRST_PAUSE_MS, ForwardRules, Heard, MPP_TIMEOUT_MS, PaymentRules, Payments, Task,
};
use crate::recovery::{Recovery, recover};
use crate::seed::Seed;
use crate::steps::StepLog;

/// Inputs that a shard or the payments' task take in one turn.
pub(super) const INPUTS_MAX: usize = 512;

/// A node, alive or not.
pub(super) struct Node {
    pub(super) id: PublicKey,
    pub(super) keys: Keys,
    pub(super) rules: PaymentRules,
    pub(super) disk: Arc<Disk>,
    pub(super) network: crate::network::Network,
    pub(super) life: Option<Life>,
    shards: usize,
}

/// What runs.
pub(super) struct Life {
    pub(super) shards: Vec<Shard>,
    pub(super) mailboxes: Vec<Mailbox<Input>>,
    pub(super) registry: Registry,
    pub(super) payments: Arc<Payments>,
    pub(super) task: Task,
    /// The task has had its first turn: that may be before or after the first connections.
    has_begun: bool,
    /// Something may have arrived for the task.
    pub(super) is_task_due: bool,
    pub(super) gate: Arc<Gate>,
    pub(super) chain: mpsc::UnboundedReceiver<ChainOrder>,
    sync: watch::Sender<SyncState>,
    /// A shard that does nothing any more.
    pub(super) stalled: Option<usize>,
    next_key: u64,
    /// A checkpoint that is being made, and from where on it needs the steps.
    checkpoint: Option<(Position, ChannelSections)>,
}

fn keys(number: u8) -> Keys {
    Keys::derive(&Seed::from_entropy(&[number; 32]), Network::Regtest)
}

fn payment_rules(forwards: ForwardRules) -> PaymentRules {
    PaymentRules {
        network: Network::Regtest,
        max_cltv_expiry_blocks: 2_016,
        final_cltv_delta: 42,
        invoice_expiry_s: 86_400,
        keys_kept_ms: 86_400_000,
        accepts_keysend: false,
        mpp_timeout_ms: MPP_TIMEOUT_MS,
        first_pause_ms: FIRST_PAUSE_MS,
        expired_kept_ms: EXPIRED_KEPT_MS,
        forwards,
    }
}

impl Node {
    /// One that has never run, and does not run.
    pub(super) fn new(number: u8, shards: usize, forwards: ForwardRules) -> Self {
        let keys = keys(number);
        Self {
            id: keys.node_id(),
            keys,
            rules: payment_rules(forwards),
            disk: Arc::default(),
            network: crate::network::Network::default(),
            life: None,
            shards,
        }
    }

    /// The same, with another disk: not running.
    pub(super) fn with_disk(&self, disk: Arc<Disk>) -> Self {
        Self {
            id: self.id,
            keys: self.keys.clone(),
            rules: self.rules.clone(),
            disk,
            network: self.network.clone(),
            life: None,
            shards: self.shards,
        }
    }

    fn channel_rules(&self) -> ChannelRules {
        ChannelRules { shards: self.shards, ..ChannelRules::usual(ChainHash::REGTEST) }
    }

    fn keys_of(&self) -> KeysOf {
        let keys = self.keys.clone();
        Arc::new(move |index| keys.channel_keys(index).of_node(Identity::new(*keys.node_key(), ChainHash::REGTEST)))
    }

    fn folds(&self, fold: Arc<dyn Fold>) -> Folds {
        Folds::new(vec![fold], Ticket(self.disk.written() as u64))
    }

    /// What its disk says, from the first step on; a fold is told of all of it.
    pub(super) fn read_all(&self, fold: Arc<dyn Fold>) -> Recovery {
        self.read(None, self.disk.steps(), fold)
    }

    /// The same as at a start: from the newest checkpoint on.
    pub(super) fn read_back(&self, fold: Arc<dyn Fold>) -> Recovery {
        let (checkpoint, tail) = self.disk.recovered();
        self.read(checkpoint, tail, fold)
    }

    fn read(&self, checkpoint: Option<Checkpoint>, tail: Vec<DurableStep>, fold: Arc<dyn Fold>) -> Recovery {
        let folds = self.folds(fold);
        recover(checkpoint, tail.into_iter().map(Ok), self.channel_rules().policy, &self.keys_of(), &folds).unwrap()
    }

    /// Starts it from its disk, in the order of `node::Beginning`, up to the moment at which peers may come.
    pub(super) fn start(&mut self, height: u32, opens: bool) {
        let payments = Payments::new(self.keys.clone(), self.rules.clone());
        payments.find_ways_by_hand(self.network.clone());
        let gate = Gate::new(Arc::clone(&payments));
        let recovery = self.read_back(Arc::clone(&gate) as Arc<dyn Fold>);
        let rules = self.channel_rules();
        let (sync, synced) = watch::channel(SyncState::Synced { height });
        let log = Arc::clone(&self.disk) as Arc<dyn StepLog>;
        let mailboxes: Vec<Mailbox<Input>> = (0..self.shards).map(|_| Mailbox::new()).collect();
        let directory = Arc::new(Directory::new(rules.openings_per_peer_max, rules.openings_max));
        let registry = Registry::new(Arc::clone(&directory), mailboxes.clone(), Arc::clone(&log), synced.clone());
        let (orders, chain) = mpsc::unbounded_channel();
        let fresh_keys = Arc::new(FreshKeys::new(recovery.next_key));
        let shared = Arc::new(Shared {
            rules,
            keys_of: self.keys_of(),
            fresh_keys: Arc::clone(&fresh_keys),
            curve: CurvePool::new(0).unwrap(),
            log,
            directory,
            folds: self.folds(Arc::clone(&gate) as Arc<dyn Fold>),
            wallet: Arc::new(Coins { next: AtomicU64::new(1), node: self.id }),
            guards: Arc::new(NoGuards),
            chain: orders,
            fees: watch::channel(FeeEstimates::fallback(Network::Regtest)).1,
            registry: registry.clone(),
        });
        let mut by_shard: Vec<Vec<_>> = mailboxes.iter().map(|_| Vec::new()).collect();
        for actor in recovery.actors {
            by_shard[shard_of(actor.id(), self.shards)].push(actor);
        }
        let shards = mailboxes.iter().zip(by_shard).enumerate();
        let mut shards: Vec<Shard> = shards
            .map(|(index, (mailbox, actors))| Shard::new(index, Arc::clone(&shared), mailbox.clone(), actors))
            .collect();
        if opens {
            let journal = registry.journal();
            let mut refill = Box::pin(fresh_keys.refill(&journal));
            while refill.as_mut().now_or_never().is_none() {
                run_dry(&mut shards, &self.disk);
            }
        }
        let (done, _) = Done::new();
        registry.put_all(|| Input::Chain { news: vec![ChainNews::All(tip(height))], done: done.clone() });
        registry.put_all(|| Input::Resume { watches_only: true, done: done.clone() });
        registry.put_all(|| Input::Resume { watches_only: false, done: done.clone() });
        run_dry(&mut shards, &self.disk);
        self.life = Some(Life {
            shards,
            mailboxes,
            task: payments.task_by_hand(registry.clone(), synced).unwrap(),
            registry,
            payments,
            has_begun: false,
            is_task_due: true,
            gate,
            chain,
            sync,
            stalled: None,
            next_key: recovery.next_key,
            checkpoint: None,
        });
    }

    /// Begins a checkpoint; `end_checkpoint` ends it when everything that it waits for has left.
    pub(super) fn begin_checkpoint(&mut self) {
        let replay_from = self.disk.end();
        let life = self.life();
        if life.checkpoint.is_none() {
            life.checkpoint = Some((replay_from, ChannelSections::ask(&life.registry)));
        }
    }

    /// Whether a checkpoint could be ended that was begun.
    pub(super) fn end_checkpoint(&mut self) -> bool {
        let Some(life) = &mut self.life else { return false };
        let is_whole = life.stalled.is_none() && !life.gate.is_shut();
        let is_quiet = is_whole && life.mailboxes.iter().all(Mailbox::is_empty);
        if !is_quiet || self.disk.pending() > 0 || self.disk.has_untold() {
            return false;
        }
        let Some((replay_from, sections)) = life.checkpoint.take() else { return false };
        let mut sections = sections.wait();
        let payments = life.task.section_by_hand(replay_from);
        sections.push(of_fold(life.payments.name(), payments));
        sections.push(NodeSection { next_key: life.next_key, ..NodeSection::default() }.section());
        self.disk.write_checkpoint(Checkpoint { replay_from, sections });
        true
    }

    /// It is dead, at once. What was not written is gone.
    pub(super) fn kill(&mut self) {
        self.life = None;
        self.disk.crash();
    }

    pub(super) fn life(&mut self) -> &mut Life {
        self.life.as_mut().expect("it lives")
    }

    pub(super) fn is_alive(&self) -> bool {
        self.life.is_some()
    }
}

impl Life {
    /// Lets the task hear one thing more; false if there is nothing.
    pub(super) fn hear(&mut self, first: usize, inputs_max: usize) -> bool {
        if !self.has_begun {
            self.has_begun = true;
            self.task.begin_by_hand();
            return true;
        }
        let all = Heard::ALL;
        let is_any = (0..all.len()).any(|n| self.task.hear(all[(first + n) % all.len()], inputs_max));
        self.is_task_due = is_any;
        is_any
    }

    pub(super) fn put(&self, shard: usize, input: Input) {
        self.mailboxes[shard].put(input);
    }

    /// Some time has passed.
    pub(super) fn tick(&mut self) {
        if self.has_begun {
            self.task.tick();
            self.is_task_due = true;
        }
    }

    pub(super) fn chain_news(&self, height: u32, news: &[ChainNews]) {
        let (done, _) = Done::new();
        self.sync.send_replace(SyncState::Synced { height });
        self.registry.put_all(|| Input::Chain { news: news.to_vec(), done: done.clone() });
    }
}

/// Until nothing more comes by itself.
fn run_dry(shards: &mut [Shard], disk: &Disk) {
    loop {
        let mut is_dry = true;
        for shard in shards.iter_mut().filter(|shard| shard.has_work()) {
            shard.turn_by_hand(INPUTS_MAX);
            is_dry = false;
        }
        if disk.pending() > 0 {
            disk.write(usize::MAX);
            disk.tell();
            is_dry = false;
        }
        if is_dry {
            return;
        }
    }
}

pub(super) fn tip(height: u32) -> ChainEvent {
    ChainEvent::Tip { height: BlockHeight(height), block: BlockHash::all_zeros() }
}

/// A wallet that always has another coin.
struct Coins {
    next: AtomicU64,
    node: PublicKey,
}

impl ChannelWallet for Coins {
    fn fund(&self, request: FundingRequest) {
        let mut coin = [0; 32];
        coin[..24].copy_from_slice(&self.node.serialize()[1..25]);
        coin[24..].copy_from_slice(&self.next.fetch_add(1, Ordering::Relaxed).to_be_bytes());
        let transaction = Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::ZERO,
            input: vec![TxIn {
                previous_output: OutPoint { txid: Txid::from_byte_array(coin), vout: 0 },
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
