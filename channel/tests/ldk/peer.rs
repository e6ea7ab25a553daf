//! LDK: one `ChannelManager` with its monitors, saved as bytes and brought back from them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use bitcoin::block::{Header, Version};
use bitcoin::hashes::Hash;
use bitcoin::{BlockHash, CompactTarget, Network, OutPoint, ScriptBuf, Transaction, TxMerkleNode, TxOut};
use lightning::chain::chainmonitor::ChainMonitor;
use lightning::chain::channelmonitor::ChannelMonitor;
use lightning::chain::{BestBlock, Listen};
use lightning::events::bump_transaction::sync::{BumpTransactionEventHandlerSync, WalletSync};
use lightning::events::{ClosureReason, Event, EventsProvider};
use lightning::ln::channel_state::ChannelDetails;
use lightning::ln::channelmanager::{ChainParameters, ChannelManager, ChannelManagerReadArgs};
use lightning::ln::msgs::{self, BaseMessageHandler, ErrorAction, MessageSendEvent};
use lightning::ln::types::ChannelId;
use lightning::sign::{InMemorySigner, KeysManager, NodeSigner, Recipient, SignerProvider, SpendableOutputDescriptor};
use lightning::types::payment::PaymentHash;
use lightning::util::config::UserConfig;
use lightning::util::ser::{ReadableArgs, Writeable};
use millrace_wire::Message;
use secp256k1::{PublicKey, Secp256k1};

use crate::codec;
use crate::parts::{Broadcasts, Coins, Fees, Log, NoDisk, NoFilter, NoRoutes, anyones};

pub(crate) type Monitors =
    ChainMonitor<InMemorySigner, Arc<NoFilter>, Arc<Broadcasts>, Arc<Fees>, Arc<Log>, Arc<NoDisk>, Arc<KeysManager>>;

pub(crate) type Manager = ChannelManager<
    Arc<Monitors>,
    Arc<Broadcasts>,
    Arc<KeysManager>,
    Arc<KeysManager>,
    Arc<KeysManager>,
    Arc<Fees>,
    Arc<NoRoutes>,
    Arc<NoRoutes>,
    Arc<Log>,
>;

/// A block as LDK is given it.
#[derive(Clone)]
pub(crate) struct Block {
    pub(crate) height: u32,
    pub(crate) header: Header,
    pub(crate) txs: Vec<Transaction>,
}

/// The hash of the block before the first.
pub(crate) fn genesis() -> BlockHash {
    BlockHash::from_byte_array([0x0b; 32])
}

impl Block {
    pub(crate) fn after(previous: BlockHash, height: u32, txs: Vec<Transaction>) -> Self {
        let header = Header {
            version: Version::TWO,
            prev_blockhash: previous,
            merkle_root: TxMerkleNode::all_zeros(),
            time: 1_700_000_000 + height,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: height,
        };
        Self { height, header, txs }
    }
}

/// What it takes to build LDK anew.
#[derive(Clone)]
pub(crate) struct Parts {
    keys: Arc<KeysManager>,
    pub(crate) fees: Arc<Fees>,
    broadcasts: Arc<Broadcasts>,
    pub(crate) log: Arc<Log>,
    pub(crate) coins: Arc<Coins>,
    config: UserConfig,
}

impl Parts {
    fn monitors(&self) -> Arc<Monitors> {
        Arc::new(ChainMonitor::new(
            None,
            self.broadcasts.clone(),
            self.log.clone(),
            self.fees.clone(),
            Arc::new(NoDisk),
            self.keys.clone(),
            self.keys.get_peer_storage_key(),
        ))
    }
}

impl Parts {
    /// Sends outputs to LDK's wallet. Not by `spend_spendable_outputs`: it asserts that no signature is very short.
    fn sweep(&self, outputs: &[SpendableOutputDescriptor]) -> Option<Transaction> {
        let secp = Secp256k1::new();
        let outputs: Vec<_> = outputs.iter().collect();
        let script = anyones().to_p2wsh();
        let (psbt, _) =
            SpendableOutputDescriptor::create_spendable_outputs_psbt(&secp, &outputs, Vec::new(), script, 253, None)
                .ok()?;
        let signed = self.keys.sign_spendable_outputs_psbt(&outputs, psbt, &secp).unwrap();
        Some(signed.extract_tx_unchecked_fee_rate())
    }
}

/// A payment that LDK could claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claimable {
    pub(crate) hash: PaymentHash,
    pub(crate) amount_msat: u64,
}

/// What LDK has told, saved along with it.
#[derive(Clone, Default, Debug)]
pub(crate) struct Told {
    pub(crate) claimable: Vec<Claimable>,
    pub(crate) ready: bool,
    pub(crate) closed: Option<Closed>,
    /// HTLCs that it failed although nobody asked for it, and why.
    pub(crate) handling_failures: Vec<String>,
    /// The `channel_announcement` that it passes on, without its type.
    pub(crate) announced: Option<Vec<u8>>,
}

/// `Event::ChannelClosed`.
#[derive(Clone, Debug)]
pub(crate) struct Closed {
    pub(crate) reason: ClosureReason,
    pub(crate) balance_msat: Option<u64>,
}

/// The bytes of LDK at a moment.
#[derive(Clone)]
struct Saved {
    manager: Vec<u8>,
    monitors: Vec<Vec<u8>>,
    told: Told,
}

/// LDK.
pub(crate) struct Ldk {
    pub(crate) manager: Arc<Manager>,
    monitors: Arc<Monitors>,
    pub(crate) parts: Parts,
    pub(crate) us: PublicKey,
    pub(crate) id: PublicKey,
    saved: Saved,
    pub(crate) told: Told,
    /// What may leave: everything in it is saved.
    pub(crate) outbox: VecDeque<Vec<u8>>,
    pub(crate) mempool: Vec<Transaction>,
    /// Errors, warnings and disconnects of its own.
    pub(crate) complaints: Vec<String>,
    pub(crate) wants_disconnect: bool,
    /// Volatile: of an opening.
    pub(crate) open_request: Option<ChannelId>,
    pub(crate) funding_wanted: Option<(ChannelId, ScriptBuf, u64)>,
}

impl Ldk {
    pub(crate) fn new(seed: [u8; 32], us: PublicKey, height: u32, feerate: u32, config: &UserConfig) -> Self {
        let parts = Parts {
            keys: Arc::new(KeysManager::new(&seed, 1_700_000_000, 0, true)),
            fees: Arc::new(Fees(AtomicU32::new(feerate))),
            broadcasts: Arc::default(),
            log: Arc::default(),
            coins: Arc::default(),
            config: config.clone(),
        };
        let monitors = parts.monitors();
        let params = ChainParameters { network: Network::Regtest, best_block: BestBlock::new(genesis(), height) };
        let manager = Arc::new(ChannelManager::new(
            parts.fees.clone(),
            monitors.clone(),
            parts.broadcasts.clone(),
            Arc::new(NoRoutes),
            Arc::new(NoRoutes),
            parts.log.clone(),
            parts.keys.clone(),
            parts.keys.clone(),
            parts.keys.clone(),
            parts.config.clone(),
            params,
            1_700_000_000,
        ));
        let id = parts.keys.get_node_id(Recipient::Node).unwrap();
        let saved = Saved { manager: manager.encode(), monitors: Vec::new(), told: Told::default() };
        Self {
            manager,
            monitors,
            parts,
            us,
            id,
            saved,
            told: Told::default(),
            outbox: VecDeque::new(),
            mempool: Vec::new(),
            complaints: Vec::new(),
            wants_disconnect: false,
            open_request: None,
            funding_wanted: None,
        }
    }

    // --- bytes ---

    fn save(&mut self) {
        let bytes_of = |id| self.monitors.get_monitor(id).unwrap().encode();
        let monitors = self.monitors.list_monitors().into_iter().map(bytes_of).collect();
        self.saved = Saved { manager: self.manager.encode(), monitors, told: self.told.clone() };
    }

    /// LDK again, from the bytes that were saved last, and the blocks since.
    pub(crate) fn restart(&mut self, blocks: &[Block]) {
        // What it was about to broadcast went with it.
        self.parts.broadcasts.take();
        let (manager, monitors) = revive(&self.parts, &self.saved);
        (self.manager, self.monitors) = (manager, monitors);
        self.told = self.saved.told.clone();
        self.outbox.clear();
        (self.open_request, self.funding_wanted) = (None, None);
        let from = self.manager.current_best_block().height;
        for block in blocks.iter().filter(|block| block.height > from) {
            self.connect_block(block);
        }
    }

    /// A second LDK, from the present state, that shares nothing with the first but its keys.
    pub(crate) fn copy(&mut self) -> Self {
        self.save();
        let parts = Parts { broadcasts: Arc::default(), log: Arc::default(), ..self.parts.clone() };
        let (manager, monitors) = revive(&parts, &self.saved);
        Self {
            manager,
            monitors,
            parts,
            us: self.us,
            id: self.id,
            saved: self.saved.clone(),
            told: self.told.clone(),
            outbox: VecDeque::new(),
            mempool: Vec::new(),
            complaints: Vec::new(),
            wants_disconnect: false,
            open_request: None,
            funding_wanted: None,
        }
    }

    // --- inputs ---

    pub(crate) fn receive(&mut self, message: &Message) -> Result<(), String> {
        codec::deliver(&*self.manager, self.us, message)
    }

    pub(crate) fn connected(&mut self, init: &millrace_wire::Init, is_inbound: bool) {
        // What is for the whole network comes up between connections too, by blocks; LDK's own peer handler takes it out
        // before the next one comes about.
        for event in self.manager.get_and_clear_pending_msg_events() {
            self.send(event);
        }
        self.outbox.clear();
        self.manager.peer_connected(self.us, &codec::to_ldk_init(init), is_inbound).unwrap();
    }

    pub(crate) fn disconnected(&mut self) {
        self.manager.peer_disconnected(self.us);
        self.outbox.clear();
    }

    pub(crate) fn connect_block(&self, block: &Block) {
        let txs: Vec<(usize, &Transaction)> = block.txs.iter().enumerate().collect();
        self.monitors.filtered_block_connected(&block.header, &txs, block.height);
        self.manager.filtered_block_connected(&block.header, &txs, block.height);
    }

    pub(crate) fn force_close(&self, id: ChannelId) -> Result<(), String> {
        let closed = self.manager.force_close_broadcasting_latest_txn(&id, &self.us, "the user wants it".to_owned());
        closed.map_err(|error| format!("LDK does not close: {error:?}"))
    }

    pub(crate) fn set_feerate(&self, feerate: u32) {
        self.parts.fees.0.store(feerate, Ordering::Relaxed);
    }

    pub(crate) fn channel(&self) -> Option<ChannelDetails> {
        self.manager.list_channels().into_iter().next()
    }

    // --- what comes of it ---

    /// Lets LDK handle what waits inside it: events, and HTLCs to be looked at.
    pub(crate) fn think(&mut self) {
        if self.manager.needs_pending_htlc_processing() {
            self.manager.process_pending_htlc_forwards();
        }
        let events = RefCell::new(Vec::new());
        let handler = |event: Event| {
            events.borrow_mut().push(event);
            Ok(())
        };
        self.manager.process_pending_events(&handler);
        self.monitors.process_pending_events(&handler);
        for event in events.into_inner() {
            self.on_event(event);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::FundingGenerationReady { temporary_channel_id, output_script, channel_value_satoshis, .. } => {
                self.funding_wanted = Some((temporary_channel_id, output_script, channel_value_satoshis));
            }
            Event::OpenChannelRequest { temporary_channel_id, .. } => self.open_request = Some(temporary_channel_id),
            Event::ChannelReady { .. } => self.told.ready = true,
            Event::PaymentClaimable { payment_hash, amount_msat, .. } => {
                let claimable = Claimable { hash: payment_hash, amount_msat };
                if !self.told.claimable.contains(&claimable) {
                    self.told.claimable.push(claimable);
                    // LDK finds them in the order of a hash map.
                    self.told.claimable.sort_by_key(|claimable| claimable.hash.0);
                }
            }
            Event::ChannelClosed { reason, last_local_balance_msat, .. } => {
                self.told.closed = Some(Closed { reason, balance_msat: last_local_balance_msat });
            }
            Event::HTLCHandlingFailed { failure_reason, .. } => {
                self.told.handling_failures.push(format!("{failure_reason:?}"));
            }
            Event::SpendableOutputs { outputs, .. } => {
                // An output worth less than its spend stays where it is.
                self.mempool.extend(self.parts.sweep(&outputs));
            }
            Event::BumpTransaction(event) => {
                let wallet = Arc::new(WalletSync::new(self.parts.coins.clone(), self.parts.log.clone()));
                let (broadcasts, keys, log) =
                    (self.parts.broadcasts.clone(), self.parts.keys.clone(), self.parts.log.clone());
                BumpTransactionEventHandlerSync::new(broadcasts, wallet, keys, log).handle_event(&event);
            }
            _ => {}
        }
    }

    /// Lets everything out that waits, saved first: messages, and transactions.
    pub(crate) fn flush(&mut self) {
        self.think();
        let events = self.manager.get_and_clear_pending_msg_events();
        let txs = self.parts.broadcasts.take();
        if !events.is_empty() || !txs.is_empty() {
            self.save();
        }
        for event in events {
            self.send(event);
        }
        self.mempool.extend(txs);
    }

    fn send(&mut self, event: MessageSendEvent) {
        match event {
            MessageSendEvent::SendOpenChannel { msg, .. } => self.put(32, &msg),
            MessageSendEvent::SendAcceptChannel { msg, .. } => self.put(33, &msg),
            MessageSendEvent::SendFundingCreated { msg, .. } => self.put(34, &msg),
            MessageSendEvent::SendFundingSigned { msg, .. } => self.put(35, &msg),
            MessageSendEvent::SendChannelReady { msg, .. } => self.put(36, &msg),
            MessageSendEvent::SendShutdown { msg, .. } => self.put(38, &msg),
            MessageSendEvent::SendClosingSigned { msg, .. } => self.put(39, &msg),
            MessageSendEvent::SendRevokeAndACK { msg, .. } => self.put(133, &msg),
            MessageSendEvent::SendChannelReestablish { msg, .. } => self.put(136, &msg),
            MessageSendEvent::UpdateHTLCs { updates, .. } => self.send_updates(&updates),
            // Gossip is for the node around the channel; our codec reads it all the same.
            MessageSendEvent::SendChannelUpdate { msg, .. } | MessageSendEvent::BroadcastChannelUpdate { msg } => {
                codec::read_lenient(&codec::encode(258, &msg));
            }
            MessageSendEvent::SendAnnouncementSignatures { msg, .. } => self.put(259, &msg),
            MessageSendEvent::BroadcastChannelAnnouncement { msg, .. }
            | MessageSendEvent::SendChannelAnnouncement { msg, .. } => self.told.announced = Some(msg.encode()),
            MessageSendEvent::HandleError { action, .. } => self.on_error_action(action),
            other => self.complaints.push(format!("LDK wants to send {other:?}")),
        }
    }

    /// In the order in which LDK's own connection sends them.
    fn send_updates(&mut self, updates: &msgs::CommitmentUpdate) {
        updates.update_fulfill_htlcs.iter().for_each(|message| self.put(130, message));
        updates.update_fail_htlcs.iter().for_each(|message| self.put(131, message));
        updates.update_fail_malformed_htlcs.iter().for_each(|message| self.put(135, message));
        updates.update_add_htlcs.iter().for_each(|message| self.put(128, message));
        updates.update_fee.iter().for_each(|message| self.put(134, message));
        updates.commitment_signed.iter().for_each(|message| self.put(132, message));
    }

    fn put(&mut self, type_number: u16, message: &impl Writeable) {
        self.outbox.push_back(codec::encode(type_number, message));
    }

    fn on_error_action(&mut self, action: ErrorAction) {
        match action {
            ErrorAction::SendErrorMessage { msg } => {
                self.put(17, &msg);
                self.complaints.push(format!("error: {}", msg.data));
            }
            ErrorAction::DisconnectPeer { msg } => {
                if let Some(msg) = &msg {
                    self.put(17, msg);
                }
                self.complaints.push(format!("disconnect: {msg:?}"));
            }
            // A peer that does not answer in time is to connect again: time is ours here.
            ErrorAction::DisconnectPeerWithWarning { msg } if msg.data.contains("timeout awaiting response") => {
                self.wants_disconnect = true;
            }
            ErrorAction::DisconnectPeerWithWarning { msg } => {
                self.complaints.push(format!("disconnect with a warning: {}", msg.data));
            }
            ErrorAction::SendWarningMessage { msg, .. } => self.complaints.push(format!("warning: {}", msg.data)),
            ErrorAction::IgnoreError | ErrorAction::IgnoreAndLog(_) | ErrorAction::IgnoreDuplicateGossip => {}
        }
    }

    /// What LDK still has to get on chain.
    pub(crate) fn claimable_balances(&self) -> Vec<lightning::chain::channelmonitor::Balance> {
        self.monitors.get_claimable_balances(&[])
    }

    /// Whether LDK, or its user, is paid there without anything more to do.
    pub(crate) fn is_wallets(&self, script: &ScriptBuf) -> bool {
        *script == anyones().to_p2wsh()
            || self.parts.keys.get_destination_script([0; 32]).is_ok_and(|own| own == *script)
    }

    pub(crate) fn give_coin(&self, outpoint: OutPoint, output: TxOut) {
        self.parts.coins.0.lock().unwrap().push((outpoint, output));
    }

    pub(crate) fn forget_spent_coins(&self, is_unspent: impl Fn(OutPoint) -> bool) {
        self.parts.coins.0.lock().unwrap().retain(|(outpoint, _)| is_unspent(*outpoint));
    }
}

fn revive(parts: &Parts, saved: &Saved) -> (Arc<Manager>, Arc<Monitors>) {
    let read = |bytes: &Vec<u8>| {
        <(BlockHash, ChannelMonitor<InMemorySigner>)>::read(&mut &bytes[..], (&*parts.keys, &*parts.keys)).unwrap().1
    };
    let stored: Vec<ChannelMonitor<InMemorySigner>> = saved.monitors.iter().map(read).collect();
    let monitors = parts.monitors();
    let args = ChannelManagerReadArgs::new(
        parts.keys.clone(),
        parts.keys.clone(),
        parts.keys.clone(),
        parts.fees.clone(),
        monitors.clone(),
        parts.broadcasts.clone(),
        Arc::new(NoRoutes),
        Arc::new(NoRoutes),
        parts.log.clone(),
        parts.config.clone(),
        stored.iter().collect(),
    );
    let (_, manager) = <(BlockHash, Manager)>::read(&mut &saved.manager[..], args).unwrap();
    for monitor in stored {
        monitors.load_existing_monitor(monitor.channel_id(), monitor).unwrap();
    }
    (Arc::new(manager), monitors)
}
