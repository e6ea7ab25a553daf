//! What the wallet tells about itself: balance, coins, transactions.

use std::collections::BTreeMap;

use bdk_wallet::chain::{ChainPosition, ConfirmationBlockTime};
use bitcoin::{Address, OutPoint, Transaction, Txid};
use millrace_wire::{ChannelId, Sat};

use super::codec::{Change, Label, TxKind};
use super::coin::{Coin, Reach};
use super::ledger::Wallet;
use crate::happened::WalletSeen;

/// What the wallet owns.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Balance {
    /// Confirmed, the reserve included.
    pub confirmed: Sat,
    /// By unconfirmed transactions, our own change included.
    pub unconfirmed: Sat,
    /// Mined, and not yet 100 blocks deep.
    pub immature: Sat,
    /// Promised to transactions that are being made; part of the first two.
    pub locked: Sat,
    /// Kept back for anchors; part of the first two.
    pub reserved: Sat,
    /// The most that can be sent now, before its fee.
    pub spendable: Sat,
}

/// An unspent output.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Utxo {
    /// Which.
    pub outpoint: OutPoint,
    /// Its amount.
    pub amount: Sat,
    /// Its address.
    pub address: Address,
    /// 0 unconfirmed, 1 in the last block.
    pub confirmations: u32,
    /// Whether the reserve for anchors rests on it.
    pub is_reserved: bool,
    /// Whether it is promised to a transaction that is being made.
    pub is_locked: bool,
}

/// A transaction that touches the wallet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WalletTx {
    /// Its id.
    pub txid: Txid,
    /// What it brings to the wallet.
    pub received: Sat,
    /// What it takes out of the wallet.
    pub sent: Sat,
    /// What the miners get, if all of its inputs are known.
    pub fee: Option<Sat>,
    /// Its block.
    pub height: Option<u32>,
    /// 0 unconfirmed, 1 in the last block.
    pub confirmations: u32,
    /// When it was confirmed, or first seen. Unix time in seconds.
    pub time_s: u64,
    /// What it is for.
    pub label: Label,
}

impl Wallet {
    /// What the wallet owns.
    #[must_use]
    pub fn balance(&self) -> Balance {
        let coins = self.coins();
        let sum =
            |wanted: &dyn Fn(&Coin) -> bool| -> Sat { coins.iter().filter(|coin| wanted(coin)).map(Coin::value).sum() };
        let within = sum(&|coin| coin.is_within(Reach::OwnChange));
        let reserve = self.reserve();
        Balance {
            confirmed: sum(&|coin| coin.height.is_some() && !coin.is_immature),
            unconfirmed: sum(&|coin| coin.height.is_none()),
            immature: sum(&|coin| coin.is_immature),
            locked: sum(&|coin| coin.is_locked),
            reserved: reserve.min(within),
            spendable: within.saturating_sub(reserve),
        }
    }

    /// Every unspent output, the oldest first.
    #[must_use]
    pub fn utxos(&self) -> Vec<Utxo> {
        let mut coins = self.coins();
        let reserved = self.reserved_outpoints(&coins);
        coins.sort_by_key(|coin| (coin.height.unwrap_or(u32::MAX), coin.outpoint));
        let utxo = |coin: Coin| {
            let address = Address::from_script(&coin.output.script_pubkey, self.keys.network());
            Utxo {
                outpoint: coin.outpoint,
                amount: coin.value(),
                address: address.expect("the wallet's scripts have addresses"),
                confirmations: self.confirmations(coin.height),
                is_reserved: reserved.contains(&coin.outpoint),
                is_locked: coin.is_locked,
            }
        };
        coins.into_iter().map(utxo).collect()
    }

    /// Every transaction that touches the wallet and is not void, the newest first.
    #[must_use]
    pub fn transactions(&self) -> Vec<WalletTx> {
        let mut all = BTreeMap::new();
        for account in [&self.taproot, &self.segwit] {
            for tx in account.transactions() {
                all.entry(tx.tx_node.txid).or_insert_with(|| self.describe(&tx.tx_node.tx, &tx.chain_position));
            }
        }
        let mut all: Vec<WalletTx> = all.into_values().collect();
        all.sort_by_key(|tx| std::cmp::Reverse((tx.height.unwrap_or(u32::MAX), tx.time_s, tx.txid)));
        all
    }

    /// One of them.
    #[must_use]
    pub fn transaction(&self, txid: &Txid) -> Option<WalletTx> {
        let known = self.taproot.get_tx(*txid).or_else(|| self.segwit.get_tx(*txid))?;
        Some(self.describe(&known.tx_node.tx, &known.chain_position))
    }

    /// What sweeps in blocks have brought back from each channel, less what they took out of the wallet for fees.
    #[must_use]
    pub fn swept(&self) -> BTreeMap<ChannelId, Sat> {
        let mut swept: BTreeMap<ChannelId, (Sat, Sat)> = BTreeMap::new();
        for tx in self.transactions().into_iter().filter(|tx| tx.height.is_some()) {
            if let Label { kind: TxKind::Sweep, channel: Some(channel_id) } = tx.label {
                let (received, sent) = swept.entry(channel_id).or_default();
                *received = received.checked_add(tx.received).unwrap_or(*received);
                *sent = sent.checked_add(tx.sent).unwrap_or(*sent);
            }
        }
        swept.into_iter().map(|(channel_id, (received, sent))| (channel_id, received.saturating_sub(sent))).collect()
    }

    /// Says what a transaction is for, such as a close that pays the wallet.
    pub fn set_label(&mut self, txid: Txid, label: Label) {
        self.label(txid, label);
    }

    /// What a change says of transactions: which appeared, were confirmed, or went.
    pub(super) fn seen_in(&self, change: &Change) -> Vec<WalletSeen> {
        let mut touched: BTreeMap<Txid, bool> = BTreeMap::new();
        for (change, recorded) in [(&change.taproot, &self.recorded.taproot), (&change.segwit, &self.recorded.segwit)] {
            let graph = &change.tx_graph;
            for txid in graph.txs.iter().map(|tx| tx.compute_txid()) {
                touched.entry(txid).or_default();
            }
            for (_, txid) in &graph.anchors {
                touched.entry(*txid).or_default();
            }
            touched.extend(graph.last_evicted.keys().map(|txid| (*txid, true)));
            // A block that went takes its transactions along.
            let gone = |height: &u32| change.local_chain.blocks.get(height) == Some(&None);
            let unsettled = recorded.tx_graph.anchors.iter().filter(|(anchor, _)| gone(&anchor.block_id.height));
            touched.extend(unsettled.map(|(_, txid)| (*txid, true)));
        }
        touched.into_iter().filter_map(|(txid, is_gone)| self.seen(&txid, is_gone)).collect()
    }

    /// None of what is not the wallet's.
    fn seen(&self, txid: &Txid, is_gone: bool) -> Option<WalletSeen> {
        let known = self.transaction(txid).or_else(|| {
            // What was evicted is in the graph still.
            let tx = [&self.taproot, &self.segwit].into_iter().find_map(|account| account.tx_graph().get_tx(*txid))?;
            Some(self.describe(&tx, &ChainPosition::Unconfirmed { first_seen: None, last_seen: None }))
        })?;
        let WalletTx { txid, received, sent, fee, height, confirmations: _, time_s, label } = known;
        let is_ours = received != Sat::ZERO || sent != Sat::ZERO;
        let is_replaced = is_gone && height.is_none();
        is_ours.then_some(WalletSeen { txid, received, sent, fee, height, time_s, label, is_replaced })
    }

    fn describe(&self, tx: &Transaction, position: &ChainPosition<ConfirmationBlockTime>) -> WalletTx {
        let mine = |outputs: &mut dyn Iterator<Item = bitcoin::TxOut>| -> Sat {
            outputs.filter(|output| self.is_mine(&output.script_pubkey)).map(|output| Sat::from(output.value)).sum()
        };
        let spent: Vec<_> = tx.input.iter().map(|input| self.prevout(&input.previous_output)).collect();
        let (received, sent) = (mine(&mut tx.output.iter().cloned()), mine(&mut spent.iter().flatten().cloned()));
        let known: Option<Vec<Sat>> = spent.iter().map(|output| Some(Sat::from(output.as_ref()?.value))).collect();
        let value_out: Sat = tx.output.iter().map(|output| Sat::from(output.value)).sum();
        let txid = tx.compute_txid();
        let height = position.confirmation_height_upper_bound();
        let kind = if sent == Sat::ZERO { TxKind::Deposit } else { TxKind::Withdrawal };
        WalletTx {
            txid,
            received,
            sent,
            fee: known.and_then(|known| known.iter().sum::<Sat>().checked_sub(value_out)),
            height,
            confirmations: self.confirmations(height),
            time_s: match position {
                ChainPosition::Confirmed { anchor, .. } => anchor.confirmation_time,
                ChainPosition::Unconfirmed { first_seen, .. } => first_seen.unwrap_or(0),
            },
            label: self.recorded.labels.get(&txid).copied().unwrap_or(Label { kind, channel: None }),
        }
    }

    fn confirmations(&self, height: Option<u32>) -> u32 {
        height.map_or(0, |height| (self.height() + 1).saturating_sub(height))
    }

    /// The smallest coins of which each is enough for a channel, one for each; while there are not so many, the largest, until
    /// they cover the reserve.
    fn reserved_outpoints(&self, coins: &[Coin]) -> Vec<OutPoint> {
        let mut candidates: Vec<&Coin> = coins.iter().filter(|coin| coin.is_within(Reach::OwnChange)).collect();
        candidates.sort_by_key(|coin| std::cmp::Reverse(coin.value()));
        let enough = candidates.iter().rev().filter(|coin| coin.value() >= self.reserve_policy.per_channel);
        let count = self.reserve_policy.coins(self.anchor_channels) as usize;
        let each: Vec<OutPoint> = enough.take(count).map(|coin| coin.outpoint).collect();
        if each.len() == count {
            return each;
        }
        let mut missing = self.reserve();
        let mut reserved = Vec::new();
        for coin in candidates {
            if missing == Sat::ZERO {
                break;
            }
            missing = missing.saturating_sub(coin.value());
            reserved.push(coin.outpoint);
        }
        reserved
    }
}
