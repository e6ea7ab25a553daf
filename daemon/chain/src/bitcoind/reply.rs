//! What bitcoind's answers look like, and what can be verified about them without a chain of our own.
//!
//! Only the fields that are used are read, so that Core and Knots from 27 on fit alike. It does not
//! verify consensus rules beyond a block's own hash, work, Merkle root and witness commitment.

use bitcoin::block::{Header, Version};
use bitcoin::consensus::encode::deserialize_hex;
use bitcoin::consensus::params::Params;
use bitcoin::{
    Amount, Block, BlockHash, CompactTarget, Network, ScriptBuf, Transaction, TxMerkleNode, Txid, Work, merkle_tree,
};
use serde::Deserialize;
use std::collections::{BTreeMap, HashSet};

use crate::{ChainError, Result};

/// `getblockchaininfo`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct ChainInfo {
    /// The chain's name in bitcoind's words: `main`, `test`, `testnet4`, `signet`, `regtest`.
    pub chain: String,
    /// The height of the chain.
    pub blocks: u32,
    /// The highest header it knows.
    pub headers: u32,
    /// The last block of the chain.
    #[serde(rename = "bestblockhash")]
    pub best: BlockHash,
    /// Its own estimate of how far it is, from 0 to 1.
    #[serde(rename = "verificationprogress")]
    pub progress: f64,
    /// Whether it is in its first download, or was switched off for more than a day.
    #[serde(rename = "initialblockdownload")]
    pub is_initial: bool,
    /// Whether it throws old blocks away.
    #[serde(rename = "pruned")]
    pub is_pruned: bool,
    /// The lowest height whose block it has, if it is pruned.
    #[serde(rename = "pruneheight", default)]
    pub kept_from: Option<u32>,
}

impl ChainInfo {
    /// Whether it has all blocks that it knows of. A regtest chain's tip may be as old as it likes.
    #[must_use]
    pub fn is_synced(&self, network: Network) -> bool {
        self.blocks >= self.headers && (!self.is_initial || network == Network::Regtest)
    }

    /// The error that says how far it is.
    #[must_use]
    pub fn syncing(&self) -> ChainError {
        ChainError::Syncing { blocks: self.blocks, headers: self.headers, progress: self.progress }
    }
}

/// `getnetworkinfo`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct NetworkInfo {
    /// Its version as a number: 270100 is 27.1.
    pub version: u32,
    /// Its name for itself.
    pub subversion: String,
}

/// A block's header, with what bitcoind says about its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderInfo {
    /// The header; its hash was verified.
    pub header: Header,
    /// Its height, as bitcoind says.
    pub height: u32,
    /// Whether it is in the active chain, as bitcoind says.
    pub is_active: bool,
    /// All the work up to it, as bitcoind says.
    pub work: Work,
}

/// `getblockheader`, verbose: all of the header is in it.
#[derive(Debug, Deserialize)]
pub(super) struct HeaderReply {
    confirmations: i64,
    height: u32,
    version: i32,
    #[serde(rename = "merkleroot")]
    merkle_root: TxMerkleNode,
    time: u32,
    nonce: u32,
    bits: String,
    #[serde(rename = "chainwork")]
    work: String,
    #[serde(rename = "previousblockhash")]
    previous: Option<BlockHash>,
}

impl HeaderReply {
    pub(super) fn verify(&self, asked: &BlockHash) -> Result<HeaderInfo> {
        const METHOD: &str = "getblockheader";
        let number = |what: &str, text: &str| ChainError::odd(METHOD, format!("{what} {text:?} is not a number"));
        let bits = CompactTarget::from_unprefixed_hex(&self.bits).map_err(|_| number("bits", &self.bits))?;
        let work = Work::from_unprefixed_hex(&self.work).map_err(|_| number("chainwork", &self.work))?;
        let header = Header {
            version: Version::from_consensus(self.version),
            prev_blockhash: self.previous.unwrap_or_else(all_zeros),
            merkle_root: self.merkle_root,
            time: self.time,
            bits,
            nonce: self.nonce,
        };
        let found = header.block_hash();
        if found != *asked {
            return Err(ChainError::odd(METHOD, format!("header {asked} was asked for, {found} came")));
        }
        Ok(HeaderInfo { header, height: self.height, is_active: self.confirmations >= 0, work })
    }
}

fn all_zeros() -> BlockHash {
    use bitcoin::hashes::Hash;
    BlockHash::all_zeros()
}

/// Decodes a block and verifies that it is the one that was asked for, whole and unchanged.
pub(super) fn verify_block(asked: &BlockHash, hex: &str, network: Network) -> Result<Block> {
    let odd = |reason: String| ChainError::odd("getblock", reason);
    let block: Block = deserialize_hex(hex).map_err(|error| odd(format!("block {asked}: {error}")))?;
    let found = block.block_hash();
    if found != *asked {
        return Err(odd(format!("block {asked} was asked for, {found} came")));
    }
    let target = block.header.target();
    if target > Params::new(network).max_attainable_target || block.header.validate_pow(target).is_err() {
        return Err(odd(format!("block {asked} has not the work that the network {network} demands")));
    }
    let txids: Vec<Txid> = block.txdata.iter().map(Transaction::compute_txid).collect();
    let distinct: HashSet<&Txid> = txids.iter().collect();
    if distinct.len() != txids.len() {
        // Repeating the last transactions of a block leaves its Merkle root as it was.
        return Err(odd(format!("block {asked} has a transaction twice")));
    }
    let root = merkle_tree::calculate_root(txids.iter().map(|txid| txid.to_raw_hash()));
    if root != Some(block.header.merkle_root.to_raw_hash()) {
        return Err(odd(format!("block {asked}: its transactions do not give its Merkle root")));
    }
    if !block.check_witness_commitment() {
        return Err(odd(format!("block {asked}: its witnesses do not give its witness commitment")));
    }
    Ok(block)
}

/// `getblock` with the ids of its transactions: all of the header is in it.
#[derive(Debug, Deserialize)]
pub(super) struct BlockTxidsReply {
    #[serde(flatten)]
    header: HeaderReply,
    #[serde(rename = "tx")]
    txids: Vec<Txid>,
}

impl BlockTxidsReply {
    /// The list gives the Merkle root of the header, and the header the hash.
    pub(super) fn verify(self, asked: &BlockHash) -> Result<Vec<Txid>> {
        let header = self.header.verify(asked)?.header;
        // As with a whole block: repeated at the end, transactions leave the Merkle root as it was.
        let distinct: HashSet<&Txid> = self.txids.iter().collect();
        let root = merkle_tree::calculate_root(self.txids.iter().map(|txid| txid.to_raw_hash()));
        if distinct.len() == self.txids.len() && root == Some(header.merkle_root.to_raw_hash()) {
            return Ok(self.txids);
        }
        Err(ChainError::odd(
            "getblock",
            format!("block {asked}: its list of transactions does not give its Merkle root"),
        ))
    }
}

/// Decodes a transaction and verifies that it is the one that was asked for.
pub(super) fn verify_transaction(asked: &Txid, hex: &str) -> Result<Transaction> {
    let odd = |reason: String| ChainError::odd("getrawtransaction", reason);
    let transaction: Transaction =
        deserialize_hex(hex).map_err(|error| odd(format!("transaction {asked}: {error}")))?;
    let found = transaction.compute_txid();
    if found != *asked {
        return Err(odd(format!("transaction {asked} was asked for, {found} came")));
    }
    Ok(transaction)
}

/// `waitforblockheight`, `waitfornewblock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Tip {
    /// The last block of the chain.
    pub hash: BlockHash,
    /// Its height.
    pub height: u32,
}

/// An unspent output, as bitcoind says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Utxo {
    /// What it holds.
    pub value: Amount,
    /// What it is locked with.
    pub script_pubkey: ScriptBuf,
    /// How deep it is: 1 is in the last block, 0 is in the mempool.
    pub confirmations: u32,
    /// Whether it is a mining reward.
    pub is_coinbase: bool,
}

/// `gettxout`.
#[derive(Debug, Deserialize)]
pub(super) struct UtxoReply {
    #[serde(with = "bitcoin::amount::serde::as_btc")]
    value: Amount,
    #[serde(rename = "scriptPubKey")]
    script_pubkey: ScriptReply,
    confirmations: u32,
    #[serde(rename = "coinbase")]
    is_coinbase: bool,
}

#[derive(Debug, Deserialize)]
struct ScriptReply {
    hex: ScriptBuf,
}

impl From<UtxoReply> for Utxo {
    fn from(reply: UtxoReply) -> Self {
        Self {
            value: reply.value,
            script_pubkey: reply.script_pubkey.hex,
            confirmations: reply.confirmations,
            is_coinbase: reply.is_coinbase,
        }
    }
}

/// `getmempoolinfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct MempoolInfo {
    /// What a transaction has to pay to get in now, per 1000 virtual bytes.
    #[serde(rename = "mempoolminfee", with = "bitcoin::amount::serde::as_btc")]
    pub minimum: Amount,
    /// What a transaction has to pay to be relayed at all, per 1000 virtual bytes.
    #[serde(rename = "minrelaytxfee", with = "bitcoin::amount::serde::as_btc")]
    pub relay_minimum: Amount,
}

/// What a transaction of the mempool pays, and what has to be outbid to replace it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MempoolEntry {
    /// Its own fee.
    pub fee: Amount,
    /// Its fee and those of all that rest on it: they go with it.
    pub fee_with_descendants: Amount,
}

/// `getmempoolentry`.
#[derive(Debug, Deserialize)]
pub(super) struct EntryReply {
    fees: EntryFees,
}

#[derive(Debug, Deserialize)]
struct EntryFees {
    #[serde(with = "bitcoin::amount::serde::as_btc")]
    base: Amount,
    #[serde(with = "bitcoin::amount::serde::as_btc")]
    descendant: Amount,
}

impl From<EntryReply> for MempoolEntry {
    fn from(reply: EntryReply) -> Self {
        let EntryFees { base, descendant } = reply.fees;
        Self { fee: base, fee_with_descendants: descendant.max(base) }
    }
}

/// `gettxspendingprevout`, for one output.
#[derive(Debug, Deserialize)]
pub(super) struct SpenderReply {
    pub(super) txid: Txid,
    pub(super) vout: u32,
    #[serde(rename = "spendingtxid")]
    pub(super) spender: Option<Txid>,
}

/// `estimatesmartfee`.
#[derive(Debug, Deserialize)]
pub(super) struct FeeReply {
    #[serde(default, rename = "feerate", with = "bitcoin::amount::serde::as_btc::opt")]
    pub(super) per_kvb: Option<Amount>,
}

/// `testmempoolaccept`, for one transaction.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TestAccept {
    /// Which transaction.
    pub txid: Txid,
    /// Whether the mempool would take it. `None`: it was not looked at, as one before it failed.
    pub allowed: Option<bool>,
    /// Why not, in bitcoind's words.
    #[serde(rename = "reject-reason")]
    pub reason: Option<String>,
}

/// `submitpackage`.
#[derive(Debug, Deserialize)]
pub(super) struct PackageReply {
    #[serde(rename = "package_msg")]
    pub(super) message: String,
    #[serde(rename = "tx-results", default)]
    results: BTreeMap<String, PackageEntry>,
}

#[derive(Debug, Deserialize)]
struct PackageEntry {
    txid: Txid,
    error: Option<String>,
}

/// What became of one transaction of a package: `Ok` is in the mempool.
pub type PackageOutcome = std::result::Result<(), String>;

impl PackageReply {
    /// What became of `txid`.
    pub(super) fn outcome(&self, txid: &Txid) -> PackageOutcome {
        match self.results.values().find(|entry| entry.txid == *txid) {
            Some(PackageEntry { error: None, .. }) if self.message == "success" => Ok(()),
            Some(PackageEntry { error: None, .. }) => Err(self.message.clone()),
            Some(PackageEntry { error: Some(error), .. }) => Err(error.clone()),
            None => Err(self.message.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bitcoin::consensus::encode::serialize_hex;
    use bitcoin::constants::genesis_block;

    fn genesis() -> (BlockHash, Block) {
        let block = genesis_block(Network::Regtest);
        (block.block_hash(), block)
    }

    /// Finds a nonce, so that a changed block has its work again.
    fn mine(block: &mut Block) -> BlockHash {
        while block.header.validate_pow(block.header.target()).is_err() {
            block.header.nonce += 1;
        }
        block.block_hash()
    }

    mod verify_block {
        use super::*;

        #[test]
        fn the_one_asked_for() {
            let (hash, block) = genesis();
            assert_eq!(verify_block(&hash, &serialize_hex(&block), Network::Regtest).unwrap(), block);
        }

        #[test]
        fn another_one() {
            let (hash, _) = genesis();
            let other = serialize_hex(&genesis_block(Network::Signet));
            let error = verify_block(&hash, &other, Network::Regtest).unwrap_err().to_string();
            assert!(error.contains("was asked for"), "{error}");
        }

        #[test]
        fn a_transaction_changed() {
            let (hash, mut block) = genesis();
            block.txdata[0].output[0].value = Amount::from_sat(1);
            let error = verify_block(&hash, &serialize_hex(&block), Network::Regtest).unwrap_err().to_string();
            assert!(error.contains("Merkle root"), "{error}");
        }

        #[test]
        fn a_transaction_repeated() {
            let (_, mut block) = genesis();
            block.txdata.push(block.txdata[0].clone());
            block.header.merkle_root = block.compute_merkle_root().unwrap();
            let hash = mine(&mut block);
            let error = verify_block(&hash, &serialize_hex(&block), Network::Regtest).unwrap_err().to_string();
            assert!(error.contains("twice"), "{error}");
        }

        #[test]
        fn a_witness_added() {
            let (hash, mut block) = genesis();
            block.txdata[0].input[0].witness.push([1]);
            let error = verify_block(&hash, &serialize_hex(&block), Network::Regtest).unwrap_err().to_string();
            assert!(error.contains("witness commitment"), "{error}");
        }

        #[test]
        fn cheap_work_on_a_dear_network() {
            let (hash, block) = genesis();
            let error = verify_block(&hash, &serialize_hex(&block), Network::Bitcoin).unwrap_err().to_string();
            assert!(error.contains("work"), "{error}");
        }

        #[test]
        fn half_a_block_or_garbage() {
            let (hash, block) = genesis();
            let hex = serialize_hex(&block);
            for text in [&hex[..hex.len() / 2], "", "zz", &format!("{hex}00")] {
                assert!(matches!(verify_block(&hash, text, Network::Regtest), Err(ChainError::Odd { .. })));
            }
        }
    }

    mod header {
        use super::*;

        fn reply(time: u32) -> HeaderReply {
            let (_, block) = genesis();
            let text = format!(
                r#"{{"confirmations":1,"height":0,"version":1,"merkleroot":"{}","time":{time},"nonce":{},
                    "bits":"207fffff","chainwork":"{:064x}"}}"#,
                block.header.merkle_root, block.header.nonce, 2
            );
            serde_json::from_str(&text).unwrap()
        }

        #[test]
        fn of_genesis() {
            let (hash, block) = genesis();
            let info = reply(block.header.time).verify(&hash).unwrap();
            assert_eq!((info.header, info.height, info.is_active), (block.header, 0, true));
        }

        #[test]
        fn with_one_field_changed() {
            let (hash, block) = genesis();
            assert!(matches!(reply(block.header.time + 1).verify(&hash), Err(ChainError::Odd { .. })));
        }
    }

    mod is_synced {
        use super::*;

        fn info(blocks: u32, headers: u32, is_initial: bool) -> ChainInfo {
            ChainInfo {
                chain: String::new(),
                blocks,
                headers,
                best: genesis().0,
                progress: 1.0,
                is_initial,
                is_pruned: false,
                kept_from: None,
            }
        }

        #[test]
        fn all_blocks_and_not_the_first_download() {
            assert!(info(7, 7, false).is_synced(Network::Bitcoin));
            assert!(!info(6, 7, false).is_synced(Network::Bitcoin));
            assert!(!info(7, 7, true).is_synced(Network::Bitcoin));
            assert!(info(7, 7, true).is_synced(Network::Regtest));
            assert!(!info(6, 7, true).is_synced(Network::Regtest));
        }
    }

    mod package {
        use super::*;

        #[test]
        fn outcomes_by_transaction() {
            let [a, b] = ["01", "02"].map(|byte| byte.repeat(32).parse::<Txid>().unwrap());
            let text = format!(
                r#"{{"package_msg":"transaction failed","tx-results":{{
                    "x":{{"txid":"{a}","vsize":100}},"y":{{"txid":"{b}","error":"min relay fee not met"}}}}}}"#
            );
            let reply: PackageReply = serde_json::from_str(&text).unwrap();
            assert_eq!(reply.outcome(&a), Err("transaction failed".to_owned()));
            assert_eq!(reply.outcome(&b), Err("min relay fee not met".to_owned()));
        }
    }
}
