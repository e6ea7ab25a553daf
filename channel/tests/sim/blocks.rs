//! The chain of the simulator: blocks that can be taken back, a mempool, and the real interpreter at the door.

use std::collections::{HashMap, HashSet};

use bitcoin::absolute::LockTime;
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Witness, relative};
use millrace_wire::BlockHeight;

use crate::support::script::verify_tx;

/// One block.
#[derive(Clone)]
pub struct Block {
    pub height: BlockHeight,
    /// Its identity: a count of all blocks ever mined.
    pub id: u64,
    pub txs: Vec<Transaction>,
}

/// Outputs, and the height of the block that made each.
type Unspent = HashMap<OutPoint, (TxOut, u32)>;

/// The chain.
pub struct Blocks {
    pub chain: Vec<Block>,
    mempool: Vec<Transaction>,
    /// What is unspent after each block.
    unspent: Vec<Unspent>,
    mined: u64,
    coin_count: u32,
}

pub const START: u32 = 100;

impl Blocks {
    pub fn new() -> Self {
        let genesis = Block { height: BlockHeight(START), id: 0, txs: Vec::new() };
        Self { chain: vec![genesis], mempool: Vec::new(), unspent: vec![Unspent::new()], mined: 0, coin_count: 0 }
    }

    pub fn tip(&self) -> &Block {
        self.chain.last().expect("there is always a first block")
    }

    /// A coin that anyone can spend, older than the chain.
    pub fn coin(&mut self, value: Amount) -> TxIn {
        self.coin_count += 1;
        let mut txid = [0xcc; 32];
        txid[..4].copy_from_slice(&self.coin_count.to_le_bytes());
        let outpoint = OutPoint { txid: bitcoin::hashes::Hash::from_byte_array(txid), vout: 0 };
        let script = ScriptBuf::from_bytes(vec![0x51]);
        for unspent in &mut self.unspent {
            unspent.insert(outpoint, (TxOut { value, script_pubkey: script.to_p2wsh() }, START));
        }
        let witness = Witness::from_slice(&[script.as_bytes()]);
        TxIn { previous_output: outpoint, witness, ..TxIn::default() }
    }

    fn unspent(&self) -> &Unspent {
        self.unspent.last().expect("there is always a first block")
    }

    /// What a wallet script owns.
    pub fn owned(&self, script: &ScriptBuf) -> u64 {
        self.unspent()
            .values()
            .filter(|(output, _)| output.script_pubkey == *script)
            .map(|(output, _)| output.value.to_sat())
            .sum()
    }

    pub fn broadcast(&mut self, tx: Transaction) {
        let txid = tx.compute_txid();
        if !self.mempool.iter().any(|other| other.compute_txid() == txid) {
            self.mempool.push(tx);
        }
    }

    /// Mines what can be mined. What cannot yet stays in the mempool; what never can leaves it.
    pub fn mine(&mut self) -> Block {
        let mut unspent = self.unspent().clone();
        let height = self.tip().height.0 + 1;
        let mut txs = Vec::new();
        let mut left = Vec::new();
        let waiting = std::mem::take(&mut self.mempool);
        for tx in waiting {
            match refusal(&unspent, &tx, height) {
                None => {
                    apply(&mut unspent, &tx, height);
                    txs.push(tx);
                }
                Some(_) => left.push(tx),
            }
        }
        self.mempool = left;
        self.mined += 1;
        let block = Block { height: BlockHeight(height), id: self.mined, txs };
        self.chain.push(block.clone());
        self.unspent.push(unspent);
        block
    }

    /// Takes the newest `depth` blocks back; their transactions may be mined again.
    pub fn take_back(&mut self, depth: usize) -> Vec<Block> {
        let depth = depth.min(self.chain.len() - 1);
        let gone = self.chain.split_off(self.chain.len() - depth);
        self.unspent.truncate(self.chain.len());
        for block in &gone {
            for tx in &block.txs {
                self.broadcast(tx.clone());
            }
        }
        gone
    }

    /// Where a node that last saw this block has to begin again: the blocks to be told gone (by height, highest first), and
    /// those that follow.
    pub fn since(&self, height: BlockHeight, id: u64) -> (Vec<BlockHeight>, Vec<Block>) {
        let known: HashSet<u64> = self.chain.iter().map(|block| block.id).collect();
        if known.contains(&id) {
            return (Vec::new(), self.chain.iter().filter(|block| block.height > height).cloned().collect());
        }
        // Its block is gone; how far back the fork lies is not remembered: everything since the start is told again.
        let gone = (START + 1..=height.0).rev().map(BlockHeight).collect();
        (gone, self.chain[1..].to_vec())
    }

    /// What the interpreter has against `tx`, if all it spends is there.
    pub fn script_fault(&self, tx: &Transaction) -> Option<String> {
        let unspent = self.unspent();
        let prevouts: Option<Vec<TxOut>> = tx
            .input
            .iter()
            .map(|input| unspent.get(&input.previous_output).map(|(output, _)| output.clone()))
            .collect();
        prevouts.and_then(|prevouts| verify_tx(tx, &prevouts).err())
    }
}

fn apply(unspent: &mut Unspent, tx: &Transaction, height: u32) {
    for input in &tx.input {
        unspent.remove(&input.previous_output);
    }
    let txid = tx.compute_txid();
    for (vout, output) in (0..).zip(&tx.output) {
        unspent.insert(OutPoint { txid, vout }, (output.clone(), height));
    }
}

/// Why a transaction may not stand in the block at `height`.
fn refusal(unspent: &Unspent, tx: &Transaction, height: u32) -> Option<String> {
    if let LockTime::Blocks(lock) = tx.lock_time
        && tx.is_lock_time_enabled()
        && lock.to_consensus_u32() >= height
    {
        return Some(format!("locked until {lock}"));
    }
    let mut prevouts = Vec::new();
    for input in &tx.input {
        let Some((output, confirmed)) = unspent.get(&input.previous_output) else {
            return Some(format!("{} is missing or spent", input.previous_output));
        };
        if let Some(relative::LockTime::Blocks(blocks)) = input.sequence.to_relative_lock_time()
            && confirmed + u32::from(blocks.value()) > height
        {
            return Some(format!("{} is too young", input.previous_output));
        }
        prevouts.push(output.clone());
    }
    verify_tx(tx, &prevouts).err()
}
