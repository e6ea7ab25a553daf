//! The actor around the wallet: one task owns it, others ask through a bounded queue.
//!
//! Whoever asks waits for room in the queue; nothing on a payment's way asks. The wallet waits only for the journal,
//! which never waits for the wallet: there is no cycle. An answer leaves once everything that changed is on disk.

use std::future::Future;
use std::sync::Arc;

use bitcoin::{Address, Block, BlockHash, ScriptBuf, Transaction, Txid};
use millrace_wire::{FeeratePerKw, Sat};
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::codec::Label;
use super::coin::AddressType;
use super::error::WalletError;
use super::ledger::Wallet;
use super::list::{Balance, Utxo, WalletTx};
use super::spend::{Amount, AttachFee, Cpfp, Made};

/// Requests that may wait; a block is up to 4 MB, so not many.
const QUEUE_MAX: usize = 16;

/// What is left to do once the change is on disk: answer.
type Answer = Box<dyn FnOnce(&mut Wallet) + Send>;
/// A request.
type Job = Box<dyn FnOnce(&mut Wallet) -> Answer + Send>;

/// The wallet's task has ended: the node is stopping.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("the wallet has stopped")]
pub struct Closed;

/// Asks the wallet. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct WalletHandle {
    jobs: mpsc::Sender<Job>,
}

/// Starts the wallet's task. `sink` puts bytes into the journal; its future ends when they are on disk. The task ends,
/// and gives the wallet back, when the last handle is gone.
pub fn spawn<S, F>(wallet: Wallet, sink: S) -> (WalletHandle, JoinHandle<Wallet>)
where
    S: FnMut(Vec<u8>) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let (jobs, queue) = mpsc::channel(QUEUE_MAX);
    (WalletHandle { jobs }, tokio::spawn(run(wallet, queue, sink)))
}

async fn run<S, F>(mut wallet: Wallet, mut queue: mpsc::Receiver<Job>, mut sink: S) -> Wallet
where
    S: FnMut(Vec<u8>) -> F,
    F: Future<Output = ()>,
{
    // A new wallet has its keys to record, before it has been asked anything.
    for bytes in wallet.take_staged() {
        sink(bytes).await;
    }
    while let Some(job) = queue.recv().await {
        let answer = job(&mut wallet);
        for bytes in wallet.take_staged() {
            sink(bytes).await;
        }
        answer(&mut wallet);
    }
    wallet
}

impl WalletHandle {
    /// Asks anything. `f` must be short: the wallet does nothing else meanwhile.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn ask<T, F>(&self, f: F) -> Result<T, Closed>
    where
        T: Send + 'static,
        F: FnOnce(&mut Wallet) -> T + Send + 'static,
    {
        self.ask_or(f, |_, _| ()).await
    }

    /// As [`WalletHandle::ask`]; `unheard` takes back what was done if nobody is there any more to hear the answer.
    async fn ask_or<T, F>(&self, f: F, unheard: fn(&mut Wallet, T)) -> Result<T, Closed>
    where
        T: Send + 'static,
        F: FnOnce(&mut Wallet) -> T + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job: Job = Box::new(move |wallet| {
            let result = f(wallet);
            Box::new(move |wallet| {
                if let Err(result) = sender.send(result) {
                    unheard(wallet, result);
                }
            })
        });
        self.jobs.send(job).await.map_err(|_| Closed)?;
        receiver.await.map_err(|_| Closed)
    }

    async fn make<F>(&self, f: F) -> Result<Result<Made, WalletError>, Closed>
    where
        F: FnOnce(&mut Wallet) -> Result<Made, WalletError> + Send + 'static,
    {
        let release = |wallet: &mut Wallet, made: Result<Made, WalletError>| {
            if let Ok(made) = made {
                wallet.release(&made.tx.compute_txid());
            }
        };
        self.ask_or(f, release).await
    }

    /// [`Wallet::new_address`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn new_address(&self, kind: AddressType) -> Result<Address, Closed> {
        self.ask(move |wallet| wallet.new_address(kind)).await
    }

    /// [`Wallet::new_destination`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn new_destination(&self) -> Result<ScriptBuf, Closed> {
        self.ask(Wallet::new_destination).await
    }

    /// [`Wallet::balance`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn balance(&self) -> Result<Balance, Closed> {
        self.ask(|wallet| wallet.balance()).await
    }

    /// [`Wallet::utxos`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn utxos(&self) -> Result<Vec<Utxo>, Closed> {
        self.ask(|wallet| wallet.utxos()).await
    }

    /// [`Wallet::transactions`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn transactions(&self) -> Result<Vec<WalletTx>, Closed> {
        self.ask(|wallet| wallet.transactions()).await
    }

    /// [`Wallet::send`].
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError`].
    pub async fn send(
        &self,
        address: String,
        amount: Amount,
        feerate: FeeratePerKw,
    ) -> Result<Result<Made, WalletError>, Closed> {
        self.make(move |wallet| wallet.send(&address, amount, feerate)).await
    }

    /// [`Wallet::bump_fee`].
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError`].
    pub async fn bump_fee(&self, txid: Txid, feerate: FeeratePerKw) -> Result<Result<Made, WalletError>, Closed> {
        self.make(move |wallet| wallet.bump_fee(&txid, feerate)).await
    }

    /// [`Wallet::fund_channel`].
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError`].
    pub async fn fund_channel(
        &self,
        script: ScriptBuf,
        amount: Sat,
        feerate: FeeratePerKw,
        has_anchors: bool,
    ) -> Result<Result<Made, WalletError>, Closed> {
        self.make(move |wallet| wallet.fund_channel(script, amount, feerate, has_anchors)).await
    }

    /// [`Wallet::divide`].
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError`].
    pub async fn divide(&self, more: u32, feerate: FeeratePerKw) -> Result<Result<Made, WalletError>, Closed> {
        self.make(move |wallet| wallet.divide(more, feerate)).await
    }

    /// [`Wallet::cpfp`].
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError`].
    pub async fn cpfp(&self, request: Cpfp) -> Result<Result<Made, WalletError>, Closed> {
        self.make(move |wallet| wallet.cpfp(&request)).await
    }

    /// [`Wallet::attach_fee`].
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError`].
    pub async fn attach_fee(&self, request: AttachFee) -> Result<Result<Made, WalletError>, Closed> {
        self.make(move |wallet| wallet.attach_fee(&request)).await
    }

    /// [`Wallet::release`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn release(&self, txid: Txid) -> Result<(), Closed> {
        self.ask(move |wallet| wallet.release(&txid)).await
    }

    /// [`Wallet::mark_broadcast`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn mark_broadcast(&self, tx: Transaction, label: Label, now: u64) -> Result<(), Closed> {
        self.ask(move |wallet| wallet.mark_broadcast(&tx, label, now)).await
    }

    /// [`Wallet::abandon`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn abandon(&self, txid: Txid, now: u64) -> Result<(), Closed> {
        self.ask(move |wallet| wallet.abandon(&txid, now)).await
    }

    /// [`Wallet::set_label`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn set_label(&self, txid: Txid, label: Label) -> Result<(), Closed> {
        self.ask(move |wallet| wallet.set_label(txid, label)).await
    }

    /// [`Wallet::apply_block`]. When this returns, the block's news are on disk.
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError::OutOfOrder`].
    pub async fn apply_block(&self, height: u32, block: Arc<Block>) -> Result<Result<(), WalletError>, Closed> {
        self.ask(move |wallet| wallet.apply_block(height, &block)).await
    }

    /// [`Wallet::disconnect_block`].
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError::OutOfOrder`].
    pub async fn disconnect_block(&self, height: u32, hash: BlockHash) -> Result<Result<(), WalletError>, Closed> {
        self.ask(move |wallet| wallet.disconnect_block(height, hash)).await
    }

    /// [`Wallet::evict_transactions`], then [`Wallet::see_transaction`] for each.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn mempool(&self, arrived: Vec<Transaction>, gone: Vec<Txid>, now: u64) -> Result<(), Closed> {
        self.ask(move |wallet| {
            wallet.evict_transactions(&gone, now);
            arrived.iter().for_each(|tx| wallet.see_transaction(tx, now));
        })
        .await
    }

    /// [`Wallet::unconfirmed_txids`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn unconfirmed_txids(&self) -> Result<Vec<Txid>, Closed> {
        self.ask(|wallet| wallet.unconfirmed_txids()).await
    }

    /// [`Wallet::tip`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn tip(&self) -> Result<(u32, BlockHash), Closed> {
        self.ask(|wallet| wallet.tip()).await
    }

    /// [`Wallet::set_anchor_channels`].
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn set_anchor_channels(&self, channels: u32) -> Result<(), Closed> {
        self.ask(move |wallet| wallet.set_anchor_channels(channels)).await
    }

    /// [`Wallet::check_reserve_for`].
    ///
    /// # Errors
    /// [`Closed`]; inside, [`WalletError::Reserve`].
    pub async fn check_reserve_for(&self, more: u32) -> Result<Result<(), WalletError>, Closed> {
        self.ask(move |wallet| wallet.check_reserve_for(more)).await
    }

    /// [`Wallet::snapshot`]: everything in it is on disk already.
    ///
    /// # Errors
    /// [`Closed`].
    pub async fn snapshot(&self) -> Result<Vec<u8>, Closed> {
        self.ask(Wallet::snapshot).await
    }
}
