//! Blocks of this program's choosing: what is told to be in the next one is, and of the mempool all that does not
//! contradict it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use bitcoin::absolute::LockTime;
use bitcoin::consensus::encode::{deserialize_hex, serialize_hex};
use bitcoin::transaction::Version;
use bitcoin::{Address, OutPoint, Transaction, TxOut, Txid};
use serde_json::{Value, json};

use crate::bitcoind::Bitcoind;
use crate::network::Error;

/// A block that was made.
pub(crate) struct Made {
    pub(crate) height: u32,
    /// With their places.
    pub(crate) txs: Vec<(u32, Arc<Transaction>)>,
    /// What each pays the miners, in sat.
    pub(crate) fees: HashMap<Txid, u64>,
}

/// A transaction of the mempool.
struct Waiting {
    tx: Arc<Transaction>,
    depends: Vec<Txid>,
}

/// The maker of blocks. Transactions that were seen are not asked for again.
pub(crate) struct Chain {
    miner: Address,
    seen: HashMap<Txid, Arc<Transaction>>,
}

impl Chain {
    pub(crate) fn new(bitcoind: &Bitcoind) -> Result<Self, Error> {
        Ok(Self { miner: bitcoind.new_address()?, seen: HashMap::new() })
    }

    /// What the mempool spends, and by which transaction.
    pub(crate) fn spends(&mut self, bitcoind: &Bitcoind) -> Result<HashMap<OutPoint, Arc<Transaction>>, Error> {
        let mut spends = HashMap::new();
        for waiting in self.pool(bitcoind)?.into_values() {
            for input in &waiting.tx.input {
                spends.insert(input.previous_output, Arc::clone(&waiting.tx));
            }
        }
        Ok(spends)
    }

    pub(crate) fn seen(&self, txid: &Txid) -> Option<&Transaction> {
        self.seen.get(txid).map(Arc::as_ref)
    }

    /// Of all that was ever in the mempool.
    pub(crate) fn spenders(&self, outpoint: &OutPoint) -> Vec<Txid> {
        let spends = |tx: &Transaction| tx.input.iter().any(|input| input.previous_output == *outpoint);
        self.seen.iter().filter(|(_, tx)| spends(tx)).map(|(txid, _)| *txid).collect()
    }

    fn pool(&mut self, bitcoind: &Bitcoind) -> Result<BTreeMap<Txid, Waiting>, Error> {
        let told = bitcoind.call("getrawmempool", &json!([true]))?;
        let mut pool = BTreeMap::new();
        for (name, entry) in told.as_object().into_iter().flatten() {
            let txid = txid_of(name)?;
            let tx = match self.seen.get(&txid) {
                Some(tx) => Arc::clone(tx),
                None => {
                    // It may be gone meanwhile.
                    let Ok(hex) = bitcoind.call("getrawtransaction", &json!([name])) else { continue };
                    let tx = Arc::new(tx_of(&hex)?);
                    self.seen.insert(txid, Arc::clone(&tx));
                    tx
                }
            };
            let depends = entry["depends"].as_array().into_iter().flatten();
            let depends = depends.map(|parent| txid_of(parent.as_str().unwrap_or_default()));
            pool.insert(txid, Waiting { tx, depends: depends.collect::<Result<_, _>>()? });
        }
        Ok(pool)
    }

    /// Makes a block of `forced` and of what the mempool holds besides, but for what is `kept_out`.
    pub(crate) fn make(
        &mut self,
        bitcoind: &Bitcoind,
        forced: &[Transaction],
        kept_out: impl Fn(&Transaction) -> bool,
    ) -> Result<Made, Error> {
        let mut pool = self.pool(bitcoind)?;
        let own: BTreeSet<Txid> = forced.iter().map(Transaction::compute_txid).collect();
        let taken: HashSet<OutPoint> =
            forced.iter().flat_map(|tx| &tx.input).map(|input| input.previous_output).collect();
        let contradicts = |tx: &Transaction| tx.input.iter().any(|input| taken.contains(&input.previous_output));
        pool.retain(|txid, waiting| own.contains(txid) || !(contradicts(&waiting.tx) || kept_out(&waiting.tx)));
        let mut list: Vec<String> = ordered(pool).iter().map(ToString::to_string).collect();
        let in_list: HashSet<String> = list.iter().cloned().collect();
        let raw = forced.iter().filter(|tx| !in_list.contains(&tx.compute_txid().to_string()));
        list.extend(raw.map(serialize_hex));
        let block = bitcoind.call("generateblock", &json!([self.miner.to_string(), list]))?;
        self.read(bitcoind, &block["hash"])
    }

    /// Whether a block may hold these besides nothing.
    pub(crate) fn check(&self, bitcoind: &Bitcoind, txs: &[Transaction]) -> Result<(), String> {
        let list: Vec<String> = txs.iter().map(serialize_hex).collect();
        let tried = bitcoind.call("generateblock", &json!([self.miner.to_string(), list, false]));
        tried.map(drop).map_err(|error| error.to_string())
    }

    fn read(&mut self, bitcoind: &Bitcoind, hash: &Value) -> Result<Made, Error> {
        let told = bitcoind.call("getblock", &json!([hash, 2]))?;
        let height = told["height"].as_u64().and_then(|height| u32::try_from(height).ok());
        let height = height.ok_or_else(|| Error::Wrong("a block without a height".to_owned()))?;
        let (mut txs, mut fees) = (Vec::new(), HashMap::new());
        for (index, entry) in (0..).zip(told["tx"].as_array().into_iter().flatten()) {
            let tx = Arc::new(tx_of(&entry["hex"])?);
            let txid = tx.compute_txid();
            // bitcoind prints eight decimals: below 2^53 sat a float still tells them apart.
            fees.insert(txid, (entry["fee"].as_f64().unwrap_or_default() * 1e8).round() as u64);
            txs.push((index, tx));
        }
        Ok(Made { height, txs, fees })
    }
}

/// Parents before their children; a child without one of its parents is left out.
fn ordered(mut pool: BTreeMap<Txid, Waiting>) -> Vec<Txid> {
    let mut list: Vec<Txid> = Vec::new();
    let mut placed: HashSet<Txid> = HashSet::new();
    loop {
        let ready = |waiting: &Waiting| waiting.depends.iter().all(|parent| placed.contains(parent));
        let next: Vec<Txid> = pool.iter().filter(|(_, waiting)| ready(waiting)).map(|(txid, _)| *txid).collect();
        if next.is_empty() {
            return list;
        }
        for txid in next {
            pool.remove(&txid);
            placed.insert(txid);
            list.push(txid);
        }
    }
}

fn txid_of(text: &str) -> Result<Txid, Error> {
    text.parse().map_err(|error| Error::Wrong(format!("bitcoind says `{text}` is a txid: {error}")))
}

pub(crate) fn tx_of(hex: &Value) -> Result<Transaction, Error> {
    let text = hex.as_str().unwrap_or_default();
    deserialize_hex(text).map_err(|error| Error::Wrong(format!("bitcoind shows no transaction: {error}")))
}

/// A transaction of the miner's wallet with these outputs, and change behind them. It is not broadcast.
pub(crate) fn signed(bitcoind: &Bitcoind, outputs: Vec<TxOut>) -> Result<Transaction, Error> {
    let bare = Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: Vec::new(), output: outputs };
    let wallet = bitcoind.wallet()?;
    let count = bare.output.len();
    let options = json!({ "changePosition": count, "change_type": "bech32", "fee_rate": 10 });
    // Without inputs it is written with segwit's marker and flag behind the version, and bitcoind wants none there.
    let marked = serialize_hex(&bare);
    let hex = [&marked[..8], &marked[12..]].concat();
    let funded = wallet.call("fundrawtransaction", &json!([hex, options, false]))?;
    let signed = wallet.call("signrawtransactionwithwallet", &json!([funded["hex"]]))?;
    if signed["complete"] != json!(true) {
        return Err(Error::Wrong("the miner's wallet cannot sign".to_owned()));
    }
    tx_of(&signed["hex"])
}
