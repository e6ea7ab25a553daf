//! The wallet itself: both accounts, what was promised to whom, and what has to be written down.

use std::collections::BTreeMap;

use bdk_wallet::chain::Merge;
use bdk_wallet::{KeychainKind, LocalOutput};
use bitcoin::constants::COINBASE_MATURITY;
use bitcoin::{Address, OutPoint, ScriptBuf, TxOut, Txid};

use super::codec::{Change, Label};
use super::coin::{AddressType, Coin, Reach};
use super::error::LoadError;
use super::reserve::ReservePolicy;
use crate::keys::{Account, Branch, WalletKeys};

/// The on-chain wallet. One task owns it.
pub struct Wallet {
    pub(super) keys: WalletKeys,
    pub(super) taproot: bdk_wallet::Wallet,
    pub(super) segwit: bdk_wallet::Wallet,
    /// All that ever changed, folded.
    pub(super) recorded: Change,
    /// What has changed since [`Wallet::take_staged`].
    pub(super) staged: Change,
    /// Coins that are promised, and to which transaction.
    pub(super) locks: BTreeMap<OutPoint, Txid>,
    /// What the transactions spend that were made and not yet broadcast.
    pub(super) drafts: BTreeMap<Txid, Vec<(OutPoint, TxOut)>>,
    pub(super) reserve_policy: ReservePolicy,
    pub(super) anchor_channels: u32,
    /// The latest time at which a transaction was called evicted.
    pub(super) evicted_at: u64,
    /// The latest time at which a transaction was called seen.
    pub(super) seen_at: u64,
}

impl Wallet {
    /// The wallet as its records tell it: a snapshot, records or both, in their order; nothing for a new wallet.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(
        records: impl IntoIterator<Item = Vec<u8>>,
        keys: WalletKeys,
        reserve_policy: ReservePolicy,
    ) -> Result<Self, LoadError> {
        let mut recorded = Change::default();
        for (index, bytes) in records.into_iter().enumerate() {
            let change = Change::decode(index, &bytes)?;
            check_same(&recorded, &change)?;
            recorded.merge(change);
        }
        let taproot = load_account(&keys, Account::Taproot, recorded.taproot.clone())?;
        let segwit = load_account(&keys, Account::Segwit, recorded.segwit.clone())?;
        let latest = |times: &BTreeMap<Txid, u64>| times.values().copied().max().unwrap_or(0);
        let both = [&recorded.taproot.tx_graph, &recorded.segwit.tx_graph];
        let evicted_at = both.map(|graph| latest(&graph.last_evicted)).into_iter().max().unwrap_or(0);
        let seen_at = both.map(|graph| latest(&graph.last_seen)).into_iter().max().unwrap_or(0);
        let mut wallet = Self {
            keys,
            taproot,
            segwit,
            recorded,
            staged: Change::default(),
            locks: BTreeMap::new(),
            drafts: BTreeMap::new(),
            reserve_policy,
            anchor_channels: 0,
            evicted_at,
            seen_at,
        };
        wallet.stage();
        Ok(wallet)
    }

    /// What has changed since the last call, to be put into the journal in this order, as one record as a rule. Nothing that
    /// rests on it may leave before it is on disk.
    pub fn take_staged(&mut self) -> Vec<Vec<u8>> {
        self.stage();
        let mut change = std::mem::take(&mut self.staged);
        change.seen = self.seen_in(&change);
        if change.is_empty() {
            return Vec::new();
        }
        change.into_pieces().iter().map(Change::encode).collect()
    }

    /// All of it, for a checkpoint: takes the place of every record so far.
    pub fn snapshot(&mut self) -> Vec<u8> {
        self.stage();
        self.recorded.pruned().encode()
    }

    /// A fresh address for somebody to pay to.
    pub fn new_address(&mut self, kind: AddressType) -> Address {
        let address = self.account_mut(kind.account()).reveal_next_address(KeychainKind::External).address;
        self.stage();
        address
    }

    /// A fresh script of the wallet's, for sweeps and cooperative closes. What arrives there counts only when
    /// it is confirmed.
    pub fn new_destination(&mut self) -> ScriptBuf {
        self.new_address(AddressType::Taproot).script_pubkey()
    }

    /// Whether the wallet can spend outputs with this script.
    #[must_use]
    pub fn is_mine(&self, script: &ScriptBuf) -> bool {
        self.taproot.is_mine(script.clone()) || self.segwit.is_mine(script.clone())
    }

    /// Gives up a transaction that was made and will not be broadcast: its coins are free again.
    pub fn release(&mut self, txid: &Txid) {
        self.locks.retain(|_, owner| owner != txid);
        self.drafts.remove(txid);
    }

    /// Moves what BDK has staged to where it is kept and to where it is waiting to be taken.
    pub(super) fn stage(&mut self) {
        let change = Change {
            taproot: self.taproot.take_staged().unwrap_or_default(),
            segwit: self.segwit.take_staged().unwrap_or_default(),
            ..Change::default()
        };
        self.record(change);
    }

    pub(super) fn record(&mut self, change: Change) {
        if !change.is_empty() {
            self.recorded.merge(change.clone());
            self.staged.merge(change);
        }
    }

    pub(super) fn label(&mut self, txid: Txid, label: Label) {
        if self.recorded.labels.get(&txid) != Some(&label) {
            self.record(Change { labels: BTreeMap::from([(txid, label)]), ..Change::default() });
        }
    }

    pub(super) const fn account(&self, account: Account) -> &bdk_wallet::Wallet {
        match account {
            Account::Taproot => &self.taproot,
            Account::Segwit => &self.segwit,
        }
    }

    pub(super) const fn account_mut(&mut self, account: Account) -> &mut bdk_wallet::Wallet {
        match account {
            Account::Taproot => &mut self.taproot,
            Account::Segwit => &mut self.segwit,
        }
    }

    /// The output that an input spends, if the wallet has ever seen it.
    pub(super) fn prevout(&self, outpoint: &OutPoint) -> Option<TxOut> {
        let of = |account: &bdk_wallet::Wallet| account.tx_graph().get_txout(*outpoint).cloned();
        of(&self.taproot).or_else(|| of(&self.segwit))
    }

    /// Every unspent output.
    pub(super) fn coins(&self) -> Vec<Coin> {
        let of = |account: Account| self.account(account).list_unspent().map(move |output| self.coin(account, output));
        of(Account::Taproot).chain(of(Account::Segwit)).collect()
    }

    /// The coins that can be spent by those who go so far.
    pub(super) fn coins_within(&self, reach: Reach) -> Vec<Coin> {
        self.coins().into_iter().filter(|coin| coin.is_within(reach)).collect()
    }

    pub(super) fn coin(&self, account: Account, output: LocalOutput) -> Coin {
        let height = output.chain_position.confirmation_height_upper_bound();
        let is_coinbase = || {
            let tx = self.account(account).tx_graph().get_tx(output.outpoint.txid);
            tx.is_some_and(|tx| tx.is_coinbase())
        };
        // Of a coinbase in block h, block h + 100 is the first that can hold the spending.
        let is_young = height.is_some_and(|height| self.height() + 1 < height.saturating_add(COINBASE_MATURITY));
        Coin {
            outpoint: output.outpoint,
            branch: match output.keychain {
                KeychainKind::External => Branch::Receive,
                KeychainKind::Internal => Branch::Change,
            },
            index: output.derivation_index,
            height,
            is_immature: is_young && is_coinbase(),
            is_locked: self.locks.contains_key(&output.outpoint),
            account,
            output: output.txout,
        }
    }
}

impl std::fmt::Debug for Wallet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wallet").field("height", &self.height()).finish_non_exhaustive()
    }
}

fn load_account(
    keys: &WalletKeys,
    account: Account,
    recorded: bdk_wallet::ChangeSet,
) -> Result<bdk_wallet::Wallet, LoadError> {
    let receive = keys.descriptor(account, Branch::Receive);
    let change = keys.descriptor(account, Branch::Change);
    if recorded.is_empty() {
        let created = bdk_wallet::Wallet::create(receive, change).network(keys.network()).create_wallet_no_persist();
        return Ok(created.expect("the descriptors are ours and of this network"));
    }
    let loaded = bdk_wallet::Wallet::load()
        .descriptor(KeychainKind::External, Some(receive))
        .descriptor(KeychainKind::Internal, Some(change))
        .check_network(keys.network())
        .load_wallet_no_persist(recorded);
    let loaded = loaded.map_err(|error| LoadError::Foreign(error.to_string()))?;
    Ok(loaded.expect("records that are not empty give a wallet"))
}

/// BDK only asserts this when it merges, and not in a release build.
fn check_same(recorded: &Change, change: &Change) -> Result<(), LoadError> {
    let accounts = [(&recorded.taproot, &change.taproot), (&recorded.segwit, &change.segwit)];
    for (old, new) in accounts {
        let differs = (new.descriptor.is_some() && old.descriptor.is_some() && new.descriptor != old.descriptor)
            || (new.network.is_some() && old.network.is_some() && new.network != old.network);
        if differs {
            return Err(LoadError::Foreign("two records name different keys".to_owned()));
        }
    }
    Ok(())
}
