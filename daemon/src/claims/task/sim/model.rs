//! A bitcoind without a network: blocks, a mempool, estimates, and answers that may be wrong, late or missing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use bitcoin::block::{Header, Version as BlockVersion};
use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use bitcoin::hashes::Hash;
use bitcoin::transaction::Version;
use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, OutPoint, Transaction, TxIn, TxMerkleNode, TxOut, Txid, absolute,
};
use millrace_chain::ChainError;
use millrace_chain::bitcoind::Answers;
use secp256k1::rand::Rng;
use secp256k1::rand::rngs::StdRng;
use serde_json::{Value, json};

use super::mempool::{Chain, INCREMENTAL, Mempool, Refusal};

/// The height before the first block of a story.
pub(super) const BEGIN: u32 = 99;

/// The model, for the node that asks it and for the story that moves it.
pub(super) struct Model(Mutex<State>);

/// What there is.
pub(super) struct State {
    pub(super) blocks: Vec<Arc<Block>>,
    /// For each block, the outputs that it spent.
    undo: Vec<Vec<(OutPoint, (TxOut, u32))>>,
    pub(super) unspent: BTreeMap<OutPoint, (TxOut, u32)>,
    /// Every output that was ever heard of.
    pub(super) outputs: BTreeMap<OutPoint, TxOut>,
    pub(super) mempool: Mempool,
    /// What the mempool demands, in sat per 1000 virtual bytes.
    pub(super) minimum: u64,
    /// What the next block takes, likewise; and what is estimated for it.
    pub(super) next: u64,
    pub(super) estimate: u64,
    pub(super) can: Can,
    pub(super) faults: Faults,
    /// What the node has handed over, in that order: parents before children; and whether the mempool took it.
    pub(super) sent: Vec<Sent>,
    serial: u32,
}

/// What this version of bitcoind has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Can {
    pub(super) packages: bool,
    pub(super) replace_packages: bool,
}

/// How often something goes wrong, in thousandths.
pub(super) struct Faults {
    pub(super) rng: StdRng,
    pub(super) permille: u32,
}

/// An attempt of the node.
#[derive(Clone)]
pub(super) struct Sent {
    pub(super) tx: Transaction,
    pub(super) is_taken: bool,
}

impl Model {
    pub(super) fn new(rng: StdRng, can: Can) -> Arc<Self> {
        Arc::new(Self(Mutex::new(State {
            blocks: Vec::new(),
            undo: Vec::new(),
            unspent: BTreeMap::new(),
            outputs: BTreeMap::new(),
            mempool: Mempool::default(),
            minimum: INCREMENTAL,
            next: INCREMENTAL,
            estimate: INCREMENTAL,
            can,
            faults: Faults { rng, permille: 0 },
            sent: Vec::new(),
            serial: 0,
        })))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl Answers for Model {
    fn answer(&self, method: &str, arguments: &[Value]) -> Result<Value, ChainError> {
        let mut state = self.lock();
        let is_send = matches!(method, "sendrawtransaction" | "submitpackage");
        match state.fault(is_send) {
            None => state.serve(method, arguments),
            Some(Fault::Before(error)) => Err(error),
            Some(Fault::After(error)) => {
                let _lost = state.serve(method, arguments);
                Err(error)
            }
            Some(Fault::Refused(code, message)) => Err(rpc(method, code, message)),
        }
    }
}

/// What goes wrong with a call.
enum Fault {
    /// It does not arrive.
    Before(ChainError),
    /// It is served, and the answer does not arrive, or makes no sense.
    After(ChainError),
    /// Some refusal of the many that there are.
    Refused(i32, &'static str),
}

const REFUSALS: [(i32, &str); 9] = [
    (-25, "bad-txns-inputs-missingorspent"),
    (-25, "TX decode failed"),
    (-26, "txn-mempool-conflict"),
    (-26, "insufficient fee, rejecting replacement"),
    (-26, "mempool min fee not met, 1 < 2"),
    (-26, "too-long-mempool-chain"),
    (-26, "package-mempool-limits"),
    (-1, "out of memory"),
    (-32601, "Method not found"),
];

fn rpc(method: &str, code: i32, message: impl Into<String>) -> ChainError {
    ChainError::Rpc { method: method.to_owned(), code, message: message.into() }
}

fn txid_in(value: &Value) -> Txid {
    serde_json::from_value(value.clone()).expect("the client sends ids")
}

fn tx_in(value: &Value) -> Transaction {
    deserialize_hex(value.as_str().expect("the client sends hex")).expect("of a transaction")
}

fn per_kvb(rate: u64) -> f64 {
    Amount::from_sat(rate).to_btc()
}

// --- what it answers ---

impl State {
    fn fault(&mut self, is_send: bool) -> Option<Fault> {
        let Faults { rng, permille } = &mut self.faults;
        if !rng.gen_ratio(*permille, 1_000) {
            return None;
        }
        let away = || ChainError::Away { reason: "connection refused".to_owned() };
        Some(match rng.gen_range(0..6) {
            0 => Fault::Before(away()),
            1 => Fault::After(ChainError::Away { reason: "timed out".to_owned() }),
            2 => Fault::After(ChainError::Odd { method: "a call".to_owned(), reason: "garbage".to_owned() }),
            _ if is_send => {
                let (code, message) = REFUSALS[rng.gen_range(0..REFUSALS.len())];
                Fault::Refused(code, message)
            }
            _ => Fault::Before(away()),
        })
    }

    fn serve(&mut self, method: &str, arguments: &[Value]) -> Result<Value, ChainError> {
        match method {
            "gettxspendingprevout" => Ok(self.spending_prevouts(&arguments[0])),
            "getmempoolentry" => {
                let txid = txid_in(&arguments[0]);
                let Some(entry) = self.mempool.entries.get(&txid) else {
                    return Err(rpc(method, -5, "Transaction not in mempool"));
                };
                let all = self.mempool.with_descendants(&BTreeSet::from([txid]));
                let descendants: u64 = all.iter().map(|txid| self.mempool.entries[txid].fee).sum();
                let btc = |fee| Amount::from_sat(fee).to_btc();
                Ok(json!({ "fees": { "base": btc(entry.fee), "descendant": btc(descendants) } }))
            }
            "getrawtransaction" => match self.mempool.entries.get(&txid_in(&arguments[0])) {
                Some(entry) => Ok(json!(serialize_hex(&entry.tx))),
                None => Err(rpc(method, -5, "No such mempool transaction")),
            },
            "gettxout" => Ok(self.tx_out(arguments)),
            "getmempoolinfo" => {
                Ok(json!({ "mempoolminfee": per_kvb(self.minimum), "minrelaytxfee": per_kvb(INCREMENTAL) }))
            }
            "estimatesmartfee" => {
                let blocks = arguments[0].as_u64().unwrap_or(1);
                let share = if blocks <= 6 {
                    100
                } else if blocks <= 12 {
                    80
                } else {
                    50
                };
                Ok(json!({ "feerate": per_kvb(self.estimate * share / 100), "blocks": blocks }))
            }
            "sendrawtransaction" => {
                let tx = tx_in(&arguments[0]);
                match self.send(&tx, true) {
                    Ok(()) => Ok(json!(tx.compute_txid())),
                    Err((code, message)) => Err(rpc(method, code, message)),
                }
            }
            "submitpackage" if self.can.packages => Ok(self.submit_package(&arguments[0])),
            _ => Err(rpc(method, -32601, "Method not found")),
        }
    }

    fn spending_prevouts(&self, asked: &Value) -> Value {
        let one = |value: &Value| {
            let outpoint = OutPoint {
                txid: txid_in(&value["txid"]),
                vout: u32::try_from(value["vout"].as_u64().unwrap()).unwrap(),
            };
            match self.mempool.spenders.get(&outpoint) {
                Some(spender) => json!({ "txid": outpoint.txid, "vout": outpoint.vout, "spendingtxid": spender }),
                None => json!({ "txid": outpoint.txid, "vout": outpoint.vout }),
            }
        };
        Value::Array(asked.as_array().unwrap().iter().map(one).collect())
    }

    fn tx_out(&self, arguments: &[Value]) -> Value {
        let vout = u32::try_from(arguments[1].as_u64().unwrap()).unwrap();
        let outpoint = OutPoint { txid: txid_in(&arguments[0]), vout };
        let found = match self.unspent.get(&outpoint) {
            Some((output, height)) => Some((output.clone(), self.height() + 1 - height)),
            None => self.mempool.output(&self.chain(), &outpoint).map(|output| (output, 0)),
        };
        let with_mempool = arguments[2] == json!(true);
        let is_hidden = |confirmations: u32| {
            if with_mempool { self.mempool.spenders.contains_key(&outpoint) } else { confirmations == 0 }
        };
        match found.filter(|(_, confirmations)| !is_hidden(*confirmations)) {
            Some((output, confirmations)) => json!({
                "value": output.value.to_btc(),
                "scriptPubKey": { "hex": output.script_pubkey.to_hex_string() },
                "confirmations": confirmations,
                "coinbase": false,
            }),
            None => Value::Null,
        }
    }

    fn submit_package(&mut self, hex: &Value) -> Value {
        let txs: Vec<Transaction> = hex.as_array().unwrap().iter().map(tx_in).collect();
        let [parent, child] = &txs[..] else { panic!("a parent and its child") };
        let result = self.package(parent, child, true);
        let error = |tx: &Transaction| {
            let is_in = self.mempool.entries.contains_key(&tx.compute_txid());
            match (&result, is_in) {
                (Ok(()), _) | (Err(_), true) => json!({ "txid": tx.compute_txid() }),
                (Err((_, reason)), false) => json!({ "txid": tx.compute_txid(), "error": reason }),
            }
        };
        let message = if result.is_ok() { "success" } else { "transaction failed" };
        json!({ "package_msg": message, "tx-results": { "a": error(parent), "b": error(child) } })
    }

    /// As `sendrawtransaction`.
    pub(super) fn send(&mut self, tx: &Transaction, is_nodes: bool) -> Result<(), Refusal> {
        self.know(tx);
        let txid = tx.compute_txid();
        let result = if self.mempool.entries.contains_key(&txid) {
            Ok(())
        } else if (0..tx.output.len()).any(|vout| {
            let vout = u32::try_from(vout).unwrap();
            self.unspent.contains_key(&OutPoint { txid, vout })
        }) {
            Err((-27, "Transaction outputs already in utxo set".to_owned()))
        } else {
            let chain = Chain { height: self.height(), unspent: &self.unspent };
            let candidate = self.mempool.examine(&chain, tx, None);
            candidate.and_then(|candidate| self.mempool.accept(candidate, self.minimum))
        };
        if is_nodes {
            self.sent.push(Sent { tx: tx.clone(), is_taken: result.is_ok() });
        }
        result
    }

    /// As `submitpackage`: each by itself if it pays for itself, else both together.
    pub(super) fn package(&mut self, parent: &Transaction, child: &Transaction, is_nodes: bool) -> Result<(), Refusal> {
        self.know(parent);
        self.know(child);
        let result = self.package_now(parent, child);
        if is_nodes {
            for tx in [parent, child] {
                let is_taken = self.mempool.entries.contains_key(&tx.compute_txid());
                self.sent.push(Sent { tx: tx.clone(), is_taken });
            }
        }
        result
    }

    fn package_now(&mut self, parent: &Transaction, child: &Transaction) -> Result<(), Refusal> {
        let alone = self.send(parent, false);
        if alone.is_ok() {
            return self.send(child, false);
        }
        let is_about_fee = |refusal: &Refusal| refusal.1.contains("fee");
        if alone.is_err_and(|refusal| !is_about_fee(&refusal)) {
            return Err((0, "bad-txns-inputs-missingorspent".to_owned()));
        }
        let chain = Chain { height: self.height(), unspent: &self.unspent };
        let (one, other) =
            (self.mempool.examine(&chain, parent, None)?, self.mempool.examine(&chain, child, Some(parent))?);
        self.mempool.accept_package(one, other, self.minimum, self.can.replace_packages)
    }
}

// --- what happens to it ---

impl State {
    pub(super) fn height(&self) -> u32 {
        BEGIN + u32::try_from(self.blocks.len()).unwrap()
    }

    pub(super) fn chain(&self) -> Chain<'_> {
        Chain { height: self.height(), unspent: &self.unspent }
    }

    fn know(&mut self, tx: &Transaction) {
        let txid = tx.compute_txid();
        for (vout, output) in (0..).zip(&tx.output) {
            self.outputs.insert(OutPoint { txid, vout }, output.clone());
        }
    }

    /// What a transaction pays; none if it spends what was never heard of.
    pub(super) fn fee_of(&self, tx: &Transaction) -> Option<u64> {
        let value = |input: &TxIn| self.outputs.get(&input.previous_output).map(|output| output.value.to_sat());
        let value_in: u64 = tx.input.iter().map(value).sum::<Option<u64>>()?;
        value_in.checked_sub(tx.output.iter().map(|output| output.value.to_sat()).sum())
    }

    /// A block with these transactions, whatever they pay: each must be able to stand there.
    pub(super) fn mine(&mut self, txs: &[Transaction]) -> Arc<Block> {
        self.serial += 1;
        let height = self.height() + 1;
        let coinbase = Transaction {
            version: Version::TWO,
            lock_time: absolute::LockTime::from_consensus(self.serial),
            input: vec![TxIn { previous_output: OutPoint::null(), ..TxIn::default() }],
            output: vec![],
        };
        let header = Header {
            version: BlockVersion::TWO,
            prev_blockhash: self.blocks.last().map_or(BlockHash::all_zeros(), |block| block.block_hash()),
            merkle_root: TxMerkleNode::all_zeros(),
            time: height * 600,
            bits: CompactTarget::from_consensus(0x207f_ffff),
            nonce: self.serial,
        };
        let txdata = std::iter::once(coinbase).chain(txs.iter().cloned()).collect();
        let block = Arc::new(Block { header, txdata });
        let mut undo = Vec::new();
        for tx in txs {
            self.know(tx);
            let txid = tx.compute_txid();
            for input in &tx.input {
                let Some(spent) = self.unspent.remove(&input.previous_output) else {
                    continue; // A coin out of nowhere.
                };
                undo.push((input.previous_output, spent));
                if let Some(rival) = self.mempool.spenders.get(&input.previous_output).copied().filter(|s| *s != txid) {
                    for gone in self.mempool.with_descendants(&BTreeSet::from([rival])) {
                        self.mempool.remove(&gone);
                    }
                }
            }
            self.mempool.remove(&txid);
            for (vout, output) in (0..).zip(&tx.output) {
                self.unspent.insert(OutPoint { txid, vout }, (output.clone(), height));
            }
        }
        self.undo.push(undo);
        self.blocks.push(Arc::clone(&block));
        block
    }

    /// The last block is taken out of the chain. Its transactions go back to the mempool, as far as they fit.
    pub(super) fn unmine(&mut self) -> Arc<Block> {
        let (block, undo) = (self.blocks.pop().unwrap(), self.undo.pop().unwrap());
        for tx in block.txdata.iter().rev() {
            let txid = tx.compute_txid();
            for vout in 0..tx.output.len() {
                self.unspent.remove(&OutPoint { txid, vout: u32::try_from(vout).unwrap() });
            }
        }
        let created: BTreeSet<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
        self.unspent.extend(undo.into_iter().filter(|(outpoint, _)| !created.contains(&outpoint.txid)));
        let before = std::mem::take(&mut self.mempool);
        let back = block.txdata.iter().skip(1).cloned();
        let stayed = before.best(0);
        for tx in back.chain(stayed) {
            let chain = Chain { height: self.height(), unspent: &self.unspent };
            if let Ok(candidate) = self.mempool.examine(&chain, &tx, None)
                && tx.input.iter().all(|input| !self.mempool.spenders.contains_key(&input.previous_output))
            {
                self.mempool.put(candidate);
            }
        }
        block
    }
}
