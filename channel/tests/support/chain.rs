//! A chain in memory that takes only what the real one would take: scripts run in the real interpreter, lock times
//! and relative lock times are kept, nothing is spent twice, nobody makes money.

use std::collections::BTreeMap;
use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::relative;
use bitcoin::transaction::Version;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid, Witness};
use millrace_channel::ChainEvent;
use millrace_channel::keys::ChannelKeys;
use millrace_channel::phase::on_chain::Claims;
use millrace_channel::tx::claim::sweep_tx;
use millrace_wire::{BlockHeight, FeeratePerKw};

use super::node::{HEIGHT, Node};
use super::script::verify_tx;

/// The chain, and what is unspent in it.
pub struct Chain {
    pub height: BlockHeight,
    unspent: BTreeMap<OutPoint, (TxOut, BlockHeight)>,
    pub confirmed: Vec<Transaction>,
    coins: u32,
}

impl Chain {
    /// A chain that holds nothing.
    pub fn empty() -> Self {
        Self { height: HEIGHT, unspent: BTreeMap::new(), confirmed: Vec::new(), coins: 0 }
    }

    /// A chain that holds the funding output of a channel.
    pub fn with_funding(node: &Node) -> Self {
        let terms = node.channel.terms();
        let output = millrace_channel::tx::funding::output_of(terms);
        let unspent = BTreeMap::from([(terms.funding_outpoint, (output, HEIGHT))]);
        Self { height: HEIGHT, unspent, confirmed: Vec::new(), coins: 0 }
    }

    /// A coin of the test's wallet that anyone can spend.
    pub fn coin(&mut self, value: Amount) -> OutPoint {
        self.coins += 1;
        let mut txid = [0xcc; 32];
        txid[..4].copy_from_slice(&self.coins.to_le_bytes());
        let outpoint = OutPoint { txid: bitcoin::hashes::Hash::from_byte_array(txid), vout: 0 };
        self.unspent.insert(outpoint, (TxOut { value, script_pubkey: anyones().to_p2wsh() }, HEIGHT));
        outpoint
    }

    /// Why a transaction may not stand in the next block, if it may not.
    pub fn refusal(&self, tx: &Transaction) -> Option<String> {
        let next = self.height.0 + 1;
        if let LockTime::Blocks(height) = tx.lock_time
            && tx.is_lock_time_enabled()
            && height.to_consensus_u32() >= next
        {
            return Some(format!("lock time {height} in block {next}"));
        }
        let mut prevouts = Vec::new();
        for input in &tx.input {
            let Some((output, confirmed)) = self.unspent.get(&input.previous_output) else {
                return Some(format!("{} is not there, or spent", input.previous_output));
            };
            if let Some(relative::LockTime::Blocks(blocks)) = input.sequence.to_relative_lock_time()
                && confirmed.0 + u32::from(blocks.value()) > next
            {
                return Some(format!(
                    "{} is {} blocks old, not {}",
                    input.previous_output,
                    next - confirmed.0,
                    blocks.value()
                ));
            }
            prevouts.push(output.clone());
        }
        let (inputs, outputs): (Amount, Amount) =
            (prevouts.iter().map(|output| output.value).sum(), tx.output.iter().map(|output| output.value).sum());
        if outputs > inputs {
            return Some(format!("{outputs} out of {inputs}"));
        }
        verify_tx(tx, &prevouts).err()
    }

    /// Puts transactions into the next block. A refused one fails the test.
    pub fn mine(&mut self, txs: &[Transaction], nodes: &mut [&mut Node]) {
        for tx in txs {
            if let Some(refusal) = self.refusal(tx) {
                panic!("the chain refuses {}: {refusal}", tx.compute_txid());
            }
            let txid = tx.compute_txid();
            for input in &tx.input {
                self.unspent.remove(&input.previous_output);
            }
            for (vout, output) in (0..).zip(&tx.output) {
                let height = BlockHeight(self.height.0 + 1);
                self.unspent.insert(OutPoint { txid, vout }, (output.clone(), height));
            }
            self.confirmed.push(tx.clone());
        }
        self.height = BlockHeight(self.height.0 + 1);
        for node in nodes {
            node.tip(self.height);
            for (index, tx) in (0..).zip(txs) {
                node.chain(ChainEvent::Confirmed { tx: Arc::new(tx.clone()), index });
            }
        }
    }

    /// Empty blocks up to a height.
    pub fn mine_to(&mut self, height: u32, nodes: &mut [&mut Node]) {
        while self.height.0 < height {
            self.mine(&[], nodes);
        }
    }

    pub fn is_unspent(&self, outpoint: OutPoint) -> bool {
        self.unspent.contains_key(&outpoint)
    }

    /// What an unspent output is worth, in sat.
    pub fn value_of(&self, outpoint: OutPoint) -> Option<u64> {
        self.unspent.get(&outpoint).map(|(output, _)| output.value.to_sat())
    }

    /// The outputs of a confirmed transaction that nobody has spent.
    pub fn unspent_of(&self, txid: Txid) -> Vec<TxOut> {
        self.unspent
            .iter()
            .filter(|(outpoint, _)| outpoint.txid == txid)
            .map(|(_, (output, _))| output.clone())
            .collect()
    }

    /// What a wallet makes of the claims: one transaction each, to `destination`.
    pub fn claim(&mut self, claims: &Claims, keys: &ChannelKeys, destination: &ScriptBuf) -> Vec<Transaction> {
        let mut txs = Vec::new();
        for sweep in &claims.sweeps {
            let claim = std::slice::from_ref(&sweep.claim);
            txs.extend(sweep_tx(claim, destination.clone(), FeeratePerKw(253), keys).ok());
        }
        for claim in &claims.htlc_txs {
            let mut tx = claim.htlc_tx.tx.clone();
            let coin = self.coin(Amount::from_sat(10_000));
            tx.input.push(anyones_input(coin));
            tx.output.push(TxOut { value: Amount::from_sat(9_000), script_pubkey: destination.clone() });
            tx.input[0].witness = claim.witness(&tx, 0, keys);
            txs.push(tx);
        }
        txs
    }

    /// A child of the anchor that the claims name.
    pub fn child(&mut self, claims: &Claims, keys: &ChannelKeys, destination: &ScriptBuf) -> Option<Transaction> {
        let cpfp = claims.parent.as_ref()?;
        let coin = self.coin(Amount::from_sat(20_000));
        let mut tx = Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![cpfp.anchor.input(), anyones_input(coin)],
            output: vec![TxOut { value: Amount::from_sat(15_000), script_pubkey: destination.clone() }],
        };
        tx.input[0].witness = cpfp.anchor.witness(&tx, 0, keys);
        Some(tx)
    }
}

fn anyones() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![0x51])
}

/// Spends a coin of [`Chain::coin`].
pub fn anyones_input(coin: OutPoint) -> TxIn {
    let witness = Witness::from_slice(&[anyones().as_bytes()]);
    TxIn { previous_output: coin, witness, ..TxIn::default() }
}
