//! What the chain tells the wallet: blocks, and what comes and goes in the mempool.

use bdk_wallet::ChangeSet;
use bdk_wallet::chain::{BlockId, Indexer};
use bitcoin::{Block, BlockHash, Transaction, TxIn, Txid};

use super::codec::{Change, Label, TxKind};
use super::error::WalletError;
use super::ledger::Wallet;
use crate::keys::Account;

/// Both accounts see the same chain.
const ACCOUNTS: [Account; 2] = [Account::Taproot, Account::Segwit];

impl Wallet {
    /// The height of the last block; 0 before the first.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.taproot.local_chain().tip().height()
    }

    /// The last block; before the first, the network's genesis block.
    #[must_use]
    pub fn tip(&self) -> (u32, BlockHash) {
        let tip = self.taproot.local_chain().tip().block_id();
        (tip.height, tip.hash)
    }

    /// A block on top of the last one. The first may have any height. One that the wallet has is no news.
    ///
    /// # Errors
    /// [`WalletError::OutOfOrder`].
    pub fn apply_block(&mut self, height: u32, block: &Block) -> Result<(), WalletError> {
        let hash = block.block_hash();
        let chain = self.taproot.local_chain();
        if chain.get(height).is_some_and(|known| known.hash() == hash) {
            return Ok(());
        }
        let tip = chain.tip().block_id();
        let genesis = BlockId { height: 0, hash: chain.genesis_hash() };
        let out_of_order = WalletError::OutOfOrder { height, hash, last: tip.height };
        let connected_to = if tip.height == 0 && height > 1 {
            genesis
        } else {
            let previous = height.checked_sub(1).ok_or_else(|| out_of_order.clone())?;
            BlockId { height: previous, hash: block.header.prev_blockhash }
        };
        if tip.height > 0 && tip != connected_to {
            return Err(out_of_order);
        }
        let block = &self.without_foreign_witnesses(block);
        for account in ACCOUNTS {
            let applied = self.account_mut(account).apply_block_connected_to(block, height, connected_to);
            applied.map_err(|_| out_of_order.clone())?;
        }
        if !self.locks.is_empty() {
            for input in block.txdata.iter().flat_map(|tx| &tx.input) {
                self.locks.remove(&input.previous_output);
            }
        }
        self.stage();
        Ok(())
    }

    /// The last block is no longer in the chain: what was in it is unconfirmed again.
    ///
    /// # Errors
    /// [`WalletError::OutOfOrder`] if it is not the last one. One that the wallet never had is no news.
    pub fn disconnect_block(&mut self, height: u32, hash: BlockHash) -> Result<(), WalletError> {
        let chain = self.taproot.local_chain();
        let last = chain.tip().height();
        if height == 0 || chain.get(height).is_none_or(|known| known.hash() != hash) {
            return Ok(());
        }
        if last != height {
            return Err(WalletError::OutOfOrder { height, hash, last });
        }
        self.stage();
        let removal = || ChangeSet { local_chain: [(height, None)].into_iter().collect(), ..ChangeSet::default() };
        self.record(Change { taproot: removal(), segwit: removal(), ..Change::default() });
        self.reload();
        Ok(())
    }

    /// A transaction is in the mempool. Times are in seconds of the Unix epoch.
    pub fn see_transaction(&mut self, tx: &Transaction, now: u64) {
        if !ACCOUNTS.iter().any(|account| self.account(*account).spk_index().is_tx_relevant(tx)) {
            return;
        }
        // The mempool holds one of several that spend the same: the others are gone.
        self.drop_transactions(&self.rivals(tx), now);
        let tx = &self.without_foreign_witness(tx);
        // To BDK an eviction weighs more than a sighting of the same second.
        let seen_at = now.max(self.evicted_at + 1);
        for account in ACCOUNTS {
            self.account_mut(account).apply_unconfirmed_txs([(tx.clone(), seen_at)]);
        }
        self.seen_at = self.seen_at.max(seen_at);
        self.stage();
    }

    /// What others have signed with is of no use to the wallet, and may be most of a block.
    fn without_foreign_witness(&self, tx: &Transaction) -> Transaction {
        let mut tx = tx.clone();
        let is_ours = |outpoint| self.prevout(outpoint).is_some_and(|output| self.is_mine(&output.script_pubkey));
        if !tx.input.iter().any(|input| is_ours(&input.previous_output)) {
            tx.input.iter_mut().for_each(|input| input.witness.clear());
        }
        tx
    }

    fn without_foreign_witnesses(&self, block: &Block) -> Block {
        let txdata = block.txdata.iter().map(|tx| self.without_foreign_witness(tx)).collect();
        Block { header: block.header, txdata }
    }

    /// Transactions left the mempool without being mined. Withdrawals and funding transactions of ours stay: they are
    /// broadcast again until they, or rivals, are buried, and their coins must not be spent twice.
    pub fn evict_transactions(&mut self, txids: &[Txid], now: u64) {
        let stays = |txid: &Txid| {
            let kind = self.recorded.labels.get(txid).map(|label| label.kind);
            matches!(kind, Some(TxKind::Withdrawal | TxKind::Funding))
        };
        let gone: Vec<Txid> = txids.iter().copied().filter(|txid| !stays(txid) && self.has(txid)).collect();
        self.drop_transactions(&gone, now);
    }

    /// A transaction of ours was handed to bitcoind: its inputs are spent, and its change can be used.
    pub fn mark_broadcast(&mut self, tx: &Transaction, label: Label, now: u64) {
        let txid = tx.compute_txid();
        let drafted = self.drafts.remove(&txid).unwrap_or_default();
        for (outpoint, output) in drafted {
            for account in ACCOUNTS {
                if self.account(account).tx_graph().get_txout(outpoint).is_none() {
                    self.account_mut(account).insert_txout(outpoint, output.clone());
                }
            }
        }
        self.see_transaction(tx, now);
        self.label(txid, label);
        self.locks.retain(|_, owner| *owner != txid);
    }

    /// A transaction of ours was broadcast and will never be mined: its coins are free again.
    pub fn abandon(&mut self, txid: &Txid, now: u64) {
        self.release(txid);
        self.drop_transactions(&[*txid], now);
    }

    /// The unconfirmed transactions that the wallet knows: what to ask the mempool about.
    #[must_use]
    pub fn unconfirmed_txids(&self) -> Vec<Txid> {
        let mut txids: Vec<Txid> = ACCOUNTS
            .iter()
            .flat_map(|account| self.account(*account).transactions())
            .filter(|tx| tx.chain_position.is_unconfirmed())
            .map(|tx| tx.tx_node.txid)
            .collect();
        txids.sort_unstable();
        txids.dedup();
        txids
    }

    /// Transactions that spend what this one spends, and were never in a block.
    fn rivals(&self, tx: &Transaction) -> Vec<Txid> {
        let nodes =
            |txid| ACCOUNTS.iter().filter_map(move |account| self.account(*account).tx_graph().get_tx_node(txid));
        let mut rivals = self.others_that_spend_the_same(tx);
        rivals.retain(|other| nodes(*other).all(|tx| tx.anchors.is_empty()));
        rivals
    }

    /// Looked up by what is spent: anybody may make the list of all transactions long.
    fn others_that_spend_the_same(&self, tx: &Transaction) -> Vec<Txid> {
        let txid = tx.compute_txid();
        let graphs = ACCOUNTS.map(|account| self.account(account).tx_graph());
        let spenders = |input: &TxIn| graphs.map(|graph| graph.outspends(input.previous_output).iter().copied());
        let mut others: Vec<Txid> = tx.input.iter().flat_map(|input| spenders(input).into_iter().flatten()).collect();
        others.retain(|other| *other != txid);
        others.sort_unstable();
        others.dedup();
        others
    }

    fn drop_transactions(&mut self, txids: &[Txid], now: u64) {
        if txids.is_empty() {
            return;
        }
        let evicted_at = now.max(self.seen_at);
        for account in ACCOUNTS {
            self.account_mut(account).apply_evicted_txs(txids.iter().map(|txid| (*txid, evicted_at)));
        }
        self.evicted_at = self.evicted_at.max(evicted_at);
        self.stage();
    }

    /// Whether a transaction that the wallet has had gave way to another that spends the same.
    #[must_use]
    pub fn is_replaced(&self, txid: &Txid) -> bool {
        let known = ACCOUNTS.iter().find_map(|account| self.account(*account).tx_graph().get_tx(*txid));
        known.is_some_and(|tx| {
            !self.has(txid) && self.others_that_spend_the_same(&tx).iter().any(|other| self.has(other))
        })
    }

    /// Whether the transaction stands in one of the accounts.
    pub(super) fn has(&self, txid: &Txid) -> bool {
        ACCOUNTS.iter().any(|account| self.account(*account).get_tx(*txid).is_some())
    }

    /// Builds both accounts again from what is recorded: BDK has no way to take a block away.
    fn reload(&mut self) {
        let records = [self.recorded.encode()];
        let fresh = Self::load(records, self.keys.clone(), self.reserve_policy);
        let fresh = fresh.expect("what this wallet recorded makes this wallet");
        self.taproot = fresh.taproot;
        self.segwit = fresh.segwit;
    }
}
