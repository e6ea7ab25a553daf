//! The wallet's place in the node: what it reads back from the journal, what it does for the channels, how it follows the
//! chain. The wallet itself, and the task that owns it, are in `wallet`.

use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use bitcoin::{Block, BlockHash, Transaction, Txid};
use millrace_chain::broadcast::{Broadcaster, Status, Submission};
use millrace_chain::fees::FeeEstimates;
use millrace_channel::CommitmentFormat;
use millrace_channel::effect::Purpose;
use millrace_channel::phase::on_chain::Claims;
use millrace_journal::Position;
use millrace_wire::{ChannelId, FeeratePerKw, Sat};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};

use crate::chain_feed::{BlockFollower, BroadcastOrder, Following, MempoolNews};
use crate::channels::{
    ChannelSnapshot, ChannelState, ChannelWallet, DestinationReply, FundingRequest, FundingTransaction, NoFunding,
    Registry, ReserveReply,
};
use crate::claims::Claimer;
use crate::clock;
use crate::entry::{Entry, Kind};
use crate::facts::{Fold, Item, News, Telling};
use crate::steps::JournalHandle;
use crate::wallet::{Closed, Label, TxKind, WalletError, WalletHandle};

/// How often it is looked whether each channel has a coin of its own.
const LOOK_EVERY: Duration = Duration::from_secs(5);

const LOCK: &str = "nothing panics while the wallet's records are locked";

/// The wallet's records, as they are read back; afterwards, its state for checkpoints.
#[derive(Default)]
pub struct WalletRecords {
    records: Mutex<Vec<Vec<u8>>>,
    running: OnceLock<(Handle, WalletHandle)>,
}

impl WalletRecords {
    /// Everything that was read back, in order, to load the wallet from.
    #[must_use]
    pub fn take(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut *self.records.lock().expect(LOCK))
    }

    /// From here on the task answers for the wallet. To be called on the runtime it runs on.
    pub fn run_by(&self, wallet: WalletHandle) {
        // Called once, by `run`; a second wallet would be another node's.
        let _first = self.running.set((Handle::current(), wallet));
    }
}

impl Fold for WalletRecords {
    fn name(&self) -> &'static str {
        "wallet"
    }

    fn restore(&self, section: &[u8]) -> Result<(), String> {
        self.records.lock().expect(LOCK).push(section.to_vec());
        Ok(())
    }

    /// Applying a record twice, or an old one again, does no harm: nothing is held against positions.
    fn tell(&self, news: &News) {
        if news.telling != Telling::Replay {
            return;
        }
        let of_wallet = news.items.iter().filter_map(|item| match item {
            Item::Entry(Entry { kind: Kind::Wallet, bytes }) => Some(bytes.clone()),
            Item::Entry(_) | Item::Fact { .. } => None,
        });
        self.records.lock().expect(LOCK).extend(of_wallet);
    }

    fn section(&self, _up_to: Position) -> Result<Vec<u8>, String> {
        let (runtime, wallet) = self.running.get().ok_or("the wallet does not run yet")?;
        runtime.block_on(wallet.snapshot()).map_err(|closed| closed.to_string())
    }
}

/// Puts the wallet's records into the journal.
pub fn sink(
    journal: JournalHandle,
) -> impl FnMut(Vec<u8>) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> + Send {
    move |bytes| {
        let journal = journal.clone();
        Box::pin(async move {
            if journal.write(vec![Entry { kind: Kind::Wallet, bytes }]).await.is_err() {
                // The node is stopping: nobody may be told of what is not on disk.
                std::future::pending::<()>().await;
            }
        })
    }
}

/// The wallet, as the channels and the chain see it.
pub struct Coins {
    runtime: Handle,
    wallet: WalletHandle,
    claimer: Claimer,
    registry: Registry,
    broadcaster: Broadcaster,
    fees: watch::Receiver<FeeEstimates>,
}

impl Coins {
    /// To be called on the runtime that the wallet runs on.
    #[must_use]
    pub fn new(
        wallet: WalletHandle,
        claimer: Claimer,
        registry: Registry,
        broadcaster: Broadcaster,
        fees: watch::Receiver<FeeEstimates>,
    ) -> Arc<Self> {
        let coins = Arc::new(Self { runtime: Handle::current(), wallet, claimer, registry, broadcaster, fees });
        tokio::spawn(Self::look_after(Arc::downgrade(&coins)));
        coins
    }

    /// Keeps back what the channels of this moment may need: after every block, and before the first call is answered.
    pub async fn keep_reserve(&self) {
        keep_reserve(&self.wallet, &self.registry).await;
    }

    /// Looks now and then whether there are coins enough for each channel. A block is no moment for that: while it is
    /// handed on, channels are not seen yet as it leaves them.
    async fn look_after(coins: Weak<Self>) {
        let mut ticks = interval(LOOK_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(coins) = coins.upgrade() else { return };
            if coins.registry.check_new_work().is_err() {
                continue;
            }
            coins.keep_reserve().await;
            if coins.divide().await.is_err() {
                return tracing::debug!("the wallet has stopped: no coins are divided");
            }
        }
    }

    /// Divides enough that is in too few coins. Not before a channel is in a block, which has cost its opener a fee: what is
    /// merely proposed must not cost this node one.
    async fn divide(&self) -> Result<(), Closed> {
        let Err(WalletError::ReserveCoins { .. }) = self.wallet.check_reserve_for(0).await? else { return Ok(()) };
        let feerate = FeeratePerKw(self.fees.borrow().mutual_close().0);
        let made = match self.wallet.divide(0, feerate).await? {
            Ok(made) => made,
            Err(error) => {
                tracing::warn!(%error, "coins cannot be divided for the reserve");
                return Ok(());
            }
        };
        let txid = made.tx.compute_txid();
        if let Err(reason) = try_out(&self.wallet, &self.broadcaster, &made.tx).await {
            tracing::warn!(%txid, reason, "coins cannot be divided for the reserve now");
            return Ok(());
        }
        let label = Label { kind: TxKind::Withdrawal, channel: None };
        self.wallet.mark_broadcast(made.tx.clone(), label, clock::unix_ms() / 1000).await?;
        let status = self.broadcaster.submit(Submission::Single(made.tx)).await;
        let fee = made.fee.0;
        tracing::info!(%txid, fee, ?status, "coins divided: each channel has one to get its commitment confirmed");
        Ok(())
    }

    /// Broadcasts of channels pass here, so that the wallet knows its own money when it goes out.
    #[must_use]
    pub fn watch_broadcasts(
        self: &Arc<Self>,
        onward: mpsc::UnboundedSender<BroadcastOrder>,
    ) -> mpsc::UnboundedSender<BroadcastOrder> {
        let (sender, mut orders) = mpsc::unbounded_channel();
        let coins = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(order) = orders.recv().await {
                if let BroadcastOrder::Submit(channel_id, broadcast) = &order {
                    coins.on_broadcast(*channel_id, broadcast.purpose, &broadcast.tx).await;
                }
                if onward.send(order).is_err() {
                    return;
                }
            }
        });
        sender
    }

    async fn on_broadcast(&self, channel_id: ChannelId, purpose: Purpose, tx: &Transaction) {
        let kind = match purpose {
            Purpose::Funding => TxKind::Funding,
            Purpose::Commitment => TxKind::Commitment,
            Purpose::MutualClose => TxKind::CooperativeClose,
            Purpose::Htlc => TxKind::Sweep,
        };
        let label = Label { kind, channel: Some(channel_id) };
        let done = match purpose {
            Purpose::Funding => self.wallet.mark_broadcast(tx.clone(), label, clock::unix_ms() / 1000).await,
            Purpose::Commitment | Purpose::MutualClose | Purpose::Htlc => {
                self.wallet.set_label(tx.compute_txid(), label).await
            }
        };
        if done.is_err() {
            tracing::debug!(%channel_id, "the wallet has stopped: a broadcast is not labelled");
        }
    }
}

fn has_open_anchors(snapshot: &ChannelSnapshot) -> bool {
    snapshot.terms.format() == CommitmentFormat::Anchors && snapshot.state != ChannelState::Closed
}

/// Keeps back what the channels of this moment may need to get their commitments confirmed: before anything is spent.
pub(crate) async fn keep_reserve(wallet: &WalletHandle, registry: &Registry) {
    let is_counted = |snapshot: &ChannelSnapshot| has_open_anchors(snapshot) && !snapshot.is_only_promised();
    let channels = registry.snapshots().iter().filter(|snapshot| is_counted(snapshot)).count();
    // A wallet that has stopped gives nothing away.
    let _stopped = wallet.set_anchor_channels(u32::try_from(channels).unwrap_or(u32::MAX)).await;
}

fn no_funding(error: &WalletError) -> NoFunding {
    match error {
        WalletError::InsufficientFunds { needed, available } => {
            NoFunding::Funds { needed: *needed, available: *available }
        }
        WalletError::Reserve { reserve, left, .. } => NoFunding::Reserve { reserve: *reserve, available: *left },
        WalletError::ReserveCoins { coins, left, each } => {
            let of = |coins: u32| each.checked_mul(u64::from(coins)).unwrap_or(Sat::MAX_MONEY);
            NoFunding::Reserve { reserve: of(*coins), available: of(*left) }
        }
        other => NoFunding::Other(other.to_string()),
    }
}

/// Whether bitcoind would take a transaction that the wallet has just made. If not, its coins are free again. A bitcoind
/// that cannot be asked is no reason to give up: what was promised is sent until it is there.
///
/// # Errors
/// bitcoind's words.
pub(crate) async fn try_out(wallet: &WalletHandle, broadcaster: &Broadcaster, tx: &Transaction) -> Result<(), String> {
    match broadcaster.try_out(tx).await {
        Status::Refused { reason, .. } => {
            // A wallet that has stopped holds no locks.
            let _stopped = wallet.release(tx.compute_txid()).await;
            Err(reason)
        }
        Status::InMempool | Status::Confirmed | Status::Waiting { .. } => Ok(()),
    }
}

impl ChannelWallet for Coins {
    fn fund(&self, request: FundingRequest) {
        let (wallet, registry, broadcaster) = (self.wallet.clone(), self.registry.clone(), self.broadcaster.clone());
        self.runtime.spawn(async move {
            keep_reserve(&wallet, &registry).await;
            let FundingRequest { script_pubkey, amount, feerate, has_anchors, reply } = request;
            let made = wallet.fund_channel(script_pubkey, amount, feerate, has_anchors).await;
            reply.answer(match made {
                Ok(Ok(made)) => match try_out(&wallet, &broadcaster, &made.tx).await {
                    Ok(()) => Ok(FundingTransaction { transaction: made.tx, vout: made.vout }),
                    Err(reason) => Err(NoFunding::Refused(reason)),
                },
                Ok(Err(error)) => Err(no_funding(&error)),
                Err(_) => Err(NoFunding::Gone),
            });
        });
    }

    fn reserve(&self, others: usize, reply: ReserveReply) {
        let (wallet, registry) = (self.wallet.clone(), self.registry.clone());
        self.runtime.spawn(async move {
            keep_reserve(&wallet, &registry).await;
            // What others have promised may come true.
            let is_promised =
                |snapshot: &&std::sync::Arc<ChannelSnapshot>| has_open_anchors(snapshot) && snapshot.is_only_promised();
            let promised = registry.snapshots().iter().filter(is_promised).count();
            let more = u32::try_from(others + promised).unwrap_or(u32::MAX).saturating_add(1);
            reply(match wallet.check_reserve_for(more).await {
                // They are divided once the channel is in a block.
                Ok(Err(WalletError::ReserveCoins { .. })) => Ok(()),
                Ok(checked) => checked.map_err(|error| no_funding(&error)),
                Err(_) => Err(NoFunding::Gone),
            });
        });
    }

    fn release(&self, transaction: &Transaction) {
        let (wallet, txid) = (self.wallet.clone(), transaction.compute_txid());
        self.runtime.spawn(async move {
            if wallet.release(txid).await.is_err() {
                tracing::debug!(%txid, "the wallet has stopped: its locks end with it");
            }
        });
    }

    fn destination(&self, reply: DestinationReply) {
        let wallet = self.wallet.clone();
        self.runtime.spawn(async move {
            if let Ok(script) = wallet.new_destination().await {
                reply(script);
            }
        });
    }

    fn claim(&self, channel_id: ChannelId, claims: Claims) {
        self.claimer.claim(channel_id, claims);
    }
}

impl BlockFollower for Coins {
    fn on_connected(&self, height: u32, block: Arc<Block>) -> Following<'_> {
        Box::pin(async move {
            let applied = self.wallet.apply_block(height, block).await;
            if let Ok(Err(error)) = applied {
                tracing::error!(height, %error, "the wallet cannot follow the chain");
            }
            self.keep_reserve().await;
        })
    }

    fn on_disconnected(&self, height: u32, hash: BlockHash) -> Following<'_> {
        Box::pin(async move {
            if let Ok(Err(error)) = self.wallet.disconnect_block(height, hash).await {
                tracing::error!(height, %error, "the wallet cannot follow the chain back");
            }
        })
    }

    fn on_mempool(&self, news: MempoolNews) -> Following<'_> {
        Box::pin(async move {
            let arrived: Vec<Transaction> = news.arrived.iter().map(|tx| (**tx).clone()).collect();
            let gone: Vec<Txid> = news.gone;
            let _stopped = self.wallet.mempool(arrived, gone, clock::unix_ms() / 1000).await;
        })
    }
}
